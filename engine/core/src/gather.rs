//! What the replicas of one node want of the authority, gathered into few bounded messages.
//!
//! Intuition: while one batch of proposals is at the authority, further ones gather here; its answer lets the next one go.
//! So a node that loses a peer with thousands of replicas says so in a handful of messages, and the slower the authority
//! is, the larger the batches are and the fewer. It decides nothing: whoever proposed repeats itself, and a repetition
//! takes the place of what waits instead of standing behind it.
//!
//! Invariants (I15): at most one batch per node is at the authority, or one per [`PROPOSAL_RETRY`] if it does not answer.
//! Batches that are not full are few: of elections, and of other proposals, [`BATCH_BURST`] at once and one more per
//! [`BATCH_PAUSE`]. At most [`PERMIT_ASKS_MAX`] asks for permits go per [`PERMIT_ASKS_EVERY`], the most endangered first;
//! at most [`LEASE_ASKS_MAX`] asks for leases per [`LEASE_ASKS_EVERY`], by turns.
//! Elections come before everything else.

use alloc::collections::{BTreeMap, BTreeSet};
use alloc::vec::Vec;

use crate::ids::{Epoch, SegmentId};
use crate::limits::{
    BATCH_BODY_MAX, BATCH_BURST, BATCH_PAUSE, GATHERED_MAX, LEASE_ASKS_EVERY, LEASE_ASKS_MAX, PERMIT_ASK_STALE,
    PERMIT_ASKS_EVERY, PERMIT_ASKS_MAX, PROPOSAL_RETRY, PROPOSALS_MAX,
};
use crate::message::{Decision, FromAuthority, LeaseAsk, PermitAsk, Proposal, ToAuthority};
use crate::time::Time;

/// What kind of proposal; the first comes first.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord)]
enum Kind {
    Election,
    Other,
}

/// Its turn: by kind, then in the order in which they came.
type Turn = (Kind, u64);

/// How many batches that are not full may go at once.
#[derive(Debug)]
struct Bucket {
    left: u32,
    /// When one more may.
    refill: Time,
}

impl Default for Bucket {
    fn default() -> Self {
        Self { left: BATCH_BURST, refill: Time(0) }
    }
}

impl Bucket {
    fn look(&mut self, now: Time) {
        while self.left < BATCH_BURST && self.refill <= now {
            self.left += 1;
            self.refill = self.refill + BATCH_PAUSE;
        }
    }

    fn take(&mut self, now: Time) {
        if self.left == BATCH_BURST {
            self.refill = now + BATCH_PAUSE;
        }
        self.left = self.left.saturating_sub(1);
    }
}

#[derive(Debug)]
struct Ask {
    ask: PermitAsk,
    /// When its primary asked last.
    heard: Time,
    /// When it was passed on last.
    passed: Option<Time>,
}

/// What one node has to say to the authority and has not said yet.
#[derive(Debug, Default)]
pub struct Gather {
    waiting: BTreeMap<SegmentId, (Turn, Proposal)>,
    turns: BTreeSet<(Turn, SegmentId)>,
    last: u64,
    /// How many wait, and what may go, by kind.
    counts: [usize; 2],
    buckets: [Bucket; 2],
    /// At the authority: what each replaces.
    flying: BTreeMap<SegmentId, Epoch>,
    flown_at: Time,
    asks: BTreeMap<SegmentId, Ask>,
    asked_at: Option<Time>,
    leases: BTreeMap<SegmentId, LeaseAsk>,
    leases_at: Option<Time>,
    /// Whose turn it is next.
    lease_turn: u64,
}

impl Gather {
    /// Nothing to say.
    #[must_use]
    pub fn new() -> Self {
        Self::default()
    }

    /// Takes what a replica says; gives back what goes at once.
    pub fn take(&mut self, now: Time, message: ToAuthority) -> Option<ToAuthority> {
        match message {
            ToAuthority::Proposals(proposals) => proposals.into_iter().for_each(|proposal| self.propose(proposal)),
            ToAuthority::PermitAsks(asks) => asks.into_iter().for_each(|ask| self.ask(now, ask)),
            ToAuthority::LeaseAsks(asks) => asks.into_iter().for_each(|ask| self.ask_lease(ask)),
            other => return Some(other),
        }
        None
    }

    fn propose(&mut self, proposal: Proposal) {
        let segment = proposal.config.segment;
        let kind = if proposal.promised { Kind::Election } else { Kind::Other };
        self.last += 1;
        let turn = match self.remove(segment) {
            Some(((_, number), _)) => (kind, number),
            None if self.waiting.len() >= GATHERED_MAX => return,
            None => (kind, self.last),
        };
        self.counts[kind as usize] += 1;
        self.turns.insert((turn, segment));
        self.waiting.insert(segment, (turn, proposal));
    }

    fn remove(&mut self, segment: SegmentId) -> Option<(Turn, Proposal)> {
        let (turn, proposal) = self.waiting.remove(&segment)?;
        self.turns.remove(&(turn, segment));
        self.counts[turn.0 as usize] -= 1;
        Some((turn, proposal))
    }

    fn ask(&mut self, now: Time, ask: PermitAsk) {
        if let Some(known) = self.asks.get_mut(&ask.segment) {
            (known.ask, known.heard) = (ask, now);
        } else if self.asks.len() < GATHERED_MAX {
            self.asks.insert(ask.segment, Ask { ask, heard: now, passed: None });
        }
    }

    fn ask_lease(&mut self, ask: LeaseAsk) {
        if self.leases.len() < GATHERED_MAX || self.leases.contains_key(&ask.segment) {
            self.leases.insert(ask.segment, ask);
        }
    }

    /// As many as a message holds, in a circle: where there are more, none starves.
    fn next_leases(&mut self) -> Vec<LeaseAsk> {
        let turn = SegmentId::from_u64(self.lease_turn);
        let circle = self.leases.range(turn..).chain(self.leases.range(..turn));
        let asks: Vec<LeaseAsk> = circle.map(|(_, ask)| *ask).take(LEASE_ASKS_MAX).collect();
        for ask in &asks {
            self.leases.remove(&ask.segment);
            self.lease_turn = ask.segment.to_u64().wrapping_add(1);
        }
        asks
    }

    /// Notes what the authority said.
    pub fn hear(&mut self, said: &FromAuthority) {
        match said {
            FromAuthority::Decisions(decisions) => decisions.iter().for_each(|decision| self.decided(decision)),
            FromAuthority::Granted { segment, .. } => drop(self.asks.remove(segment)),
            _ => {}
        }
    }

    fn decided(&mut self, decision: &Decision) {
        let segment = decision.segment();
        let Some(expected) = self.flying.remove(&segment) else { return };
        // Said again because the answer took long: it is here now.
        if self.waiting.get(&segment).is_some_and(|(_, proposal)| proposal.expected == expected) {
            self.remove(segment);
        }
    }

    /// The connection to the authority is gone: whoever wants something says it again.
    pub fn forget(&mut self) {
        let last = self.last;
        *self = Self { last, ..Self::default() };
    }

    /// What goes to the authority now; to be asked after every other call and at [`Gather::wake_at`].
    pub fn next(&mut self, now: Time) -> Vec<ToAuthority> {
        let mut out = Vec::new();
        let free = self.flying.is_empty() || now >= self.flown_at + PROPOSAL_RETRY;
        if let Some(kind) = self.due(now).filter(|_| free) {
            let batch = self.next_batch(kind);
            if batch.len() < PROPOSALS_MAX {
                self.buckets[kind as usize].take(now);
            }
            self.flying = batch.iter().map(|proposal| (proposal.config.segment, proposal.expected)).collect();
            self.flown_at = now;
            out.push(ToAuthority::Proposals(batch));
        }
        if self.asked_at.is_none_or(|at| now >= at + PERMIT_ASKS_EVERY) {
            let asks = self.next_asks(now);
            if !asks.is_empty() {
                self.asked_at = Some(now);
                out.push(ToAuthority::PermitAsks(asks));
            }
        }
        if !self.leases.is_empty() && self.leases_at.is_none_or(|at| now >= at + LEASE_ASKS_EVERY) {
            self.leases_at = Some(now);
            out.push(ToAuthority::LeaseAsks(self.next_leases()));
        }
        out
    }

    /// Of which kind the next batch may be.
    fn due(&mut self, now: Time) -> Option<Kind> {
        self.buckets.iter_mut().for_each(|bucket| bucket.look(now));
        let may_go = |kind: &Kind| {
            let count = self.counts[*kind as usize];
            count >= PROPOSALS_MAX || count > 0 && self.buckets[*kind as usize].left > 0
        };
        [Kind::Election, Kind::Other].into_iter().find(may_go)
    }

    /// All of one kind: the authority takes elections first.
    fn next_batch(&mut self, kind: Kind) -> Vec<Proposal> {
        let mut batch: Vec<Proposal> = Vec::new();
        let mut bytes = 0;
        let first = ((kind, 0), SegmentId::from_u64(0));
        while let Some((turn, segment)) = self.turns.range(first..).next().copied() {
            let Some((_, proposal)) = self.waiting.get(&segment).filter(|_| turn.0 == kind) else { break };
            bytes += proposal.config.wire_bytes();
            if batch.len() >= PROPOSALS_MAX || bytes > BATCH_BODY_MAX && !batch.is_empty() {
                break;
            }
            batch.extend(self.remove(segment).map(|(_, proposal)| proposal));
        }
        batch
    }

    fn next_asks(&mut self, now: Time) -> Vec<PermitAsk> {
        self.asks.retain(|_, ask| now < ask.heard + PERMIT_ASK_STALE);
        let mut order: Vec<_> = self.asks.values().map(|ask| (ask.ask.members, ask.passed, ask.ask.segment)).collect();
        order.sort_unstable();
        order.truncate(PERMIT_ASKS_MAX);
        let mut asks = Vec::with_capacity(order.len());
        for (_, _, segment) in order {
            if let Some(ask) = self.asks.get_mut(&segment) {
                ask.passed = Some(now);
                asks.push(ask.ask);
            }
        }
        asks
    }

    /// When time alone lets something go.
    #[must_use]
    pub fn wake_at(&self) -> Option<Time> {
        let refill = |kind: Kind| {
            let bucket = &self.buckets[kind as usize];
            let waits = self.counts[kind as usize] > 0;
            waits.then_some(if bucket.left > 0 { Time(0) } else { bucket.refill })
        };
        let answer = if self.flying.is_empty() { Time(0) } else { self.flown_at + PROPOSAL_RETRY };
        let batch = [Kind::Election, Kind::Other].into_iter().filter_map(refill).min().map(|at| at.max(answer));
        let asks = (!self.asks.is_empty()).then(|| self.asked_at.map_or(Time(0), |at| at + PERMIT_ASKS_EVERY));
        let leases = (!self.leases.is_empty()).then(|| self.leases_at.map_or(Time(0), |at| at + LEASE_ASKS_EVERY));
        batch.into_iter().chain(asks).chain(leases).min()
    }
}

#[cfg(test)]
mod tests {
    use alloc::vec;

    use super::*;
    use crate::config::Config;
    use crate::ids::{Generation, Incarnation, NodeId, VolumeId};
    use crate::time::Span;

    fn segment(index: u32) -> SegmentId {
        SegmentId { volume: VolumeId(1), index }
    }

    fn proposal(index: u32, promised: bool) -> Proposal {
        let config = Config {
            segment: segment(index),
            incarnation: Incarnation(1),
            epoch: Epoch(2),
            primary: NodeId(1),
            members: vec![NodeId(1), NodeId(2)],
            candidates: vec![],
            electable: vec![NodeId(1), NodeId(2), NodeId(3)],
            former: vec![],
            generation: Generation(1),
            copies: 3,
            min_copies: 2,
            extents: 512,
        };
        Proposal { expected: Epoch(1), config, promised }
    }

    fn batch(gather: &mut Gather, now: Time) -> Vec<Proposal> {
        match gather.next(now).pop() {
            Some(ToAuthority::Proposals(batch)) => batch,
            Some(other) => panic!("{other:?}"),
            None => vec![],
        }
    }

    fn say(gather: &mut Gather, proposal: Proposal) {
        assert_eq!(gather.take(Time(0), ToAuthority::Proposals(vec![proposal])), None);
    }

    fn answer(gather: &mut Gather, batch: Vec<Proposal>) {
        let decisions = batch.into_iter().map(|proposal| Decision::Installed(proposal.config)).collect();
        gather.hear(&FromAuthority::Decisions(decisions));
    }

    #[test]
    fn ten_thousand_proposals_are_as_few_messages_as_frames_allow_one_at_a_time() {
        let mut gather = Gather::new();
        (0..10_000).for_each(|index| say(&mut gather, proposal(index, true)));
        let (mut messages, mut proposals) = (0, 0);
        loop {
            let batch = batch(&mut gather, Time(1));
            if batch.is_empty() {
                break;
            }
            assert!(gather.next(Time(2)).is_empty(), "one batch at a time");
            messages += 1;
            proposals += batch.len();
            answer(&mut gather, batch);
        }
        assert_eq!((messages, proposals), (10_000_usize.div_ceil(PROPOSALS_MAX), 10_000));
    }

    #[test]
    fn elections_overtake_and_a_repetition_takes_the_place_of_what_waits() {
        let mut gather = Gather::new();
        say(&mut gather, proposal(1, false));
        let first = batch(&mut gather, Time(1));
        say(&mut gather, proposal(2, false));
        say(&mut gather, proposal(3, true));
        say(&mut gather, proposal(2, false));
        // Repeated although it is decided just now: the decision covers it.
        say(&mut gather, proposal(1, false));
        answer(&mut gather, first);
        let elections = batch(&mut gather, Time(2));
        assert_eq!(elections, [proposal(3, true)]);
        answer(&mut gather, elections);
        assert_eq!(batch(&mut gather, Time(3)), [proposal(2, false)]);
    }

    #[test]
    fn proposals_that_trickle_in_are_gathered_and_none_is_forgotten() {
        let mut gather = Gather::new();
        let (mut messages, mut proposals) = (0, 0);
        // One per millisecond, each answered at once.
        for milli in 0..2000 {
            let now = Time(0) + Span::millis(milli);
            if milli < 1000 {
                say(&mut gather, proposal(u32::try_from(milli).unwrap_or(0), true));
            }
            if gather.wake_at().is_some_and(|at| at <= now) {
                let batch = batch(&mut gather, now);
                assert!(!batch.is_empty(), "woken for nothing");
                messages += 1;
                proposals += batch.len();
                answer(&mut gather, batch);
            }
        }
        let most = u64::from(BATCH_BURST) + 1000 / BATCH_PAUSE.as_millis() + 1;
        assert!(messages <= most, "{messages} of at most {most}");
        assert_eq!(proposals, 1000);
    }

    #[test]
    fn an_authority_that_does_not_answer_hears_one_message_per_retry() {
        let mut gather = Gather::new();
        let mut messages = 0;
        for tick in 0..1000 {
            let now = Time(0) + Span::millis(tick * 20);
            if tick % 50 == 0 {
                (0..100).for_each(|index| say(&mut gather, proposal(index, true)));
            }
            messages += gather.next(now).len();
        }
        assert_eq!(messages, 20, "20 s, one per PROPOSAL_RETRY");
    }

    #[test]
    fn the_most_endangered_ask_first_and_everyone_has_a_turn() {
        let mut gather = Gather::new();
        let ask = |index, members| PermitAsk { segment: segment(index), epoch: Epoch(1), members };
        let mut seen = BTreeSet::new();
        for second in 0..4 {
            let now = Time(0) + Span::seconds(second);
            let all = (0..200).map(|index| ask(index, if index == 150 { 1 } else { 2 }));
            assert_eq!(gather.take(now, ToAuthority::PermitAsks(all.collect())), None);
            let out = gather.next(now);
            let [ToAuthority::PermitAsks(asks)] = out.as_slice() else { panic!("{out:?}") };
            assert!(asks.len() <= PERMIT_ASKS_MAX && asks[0].members == 1);
            seen.extend(asks.iter().map(|ask| ask.segment));
            assert!(gather.next(now).is_empty());
        }
        assert_eq!(seen.len(), 200);
    }

    #[test]
    fn asks_for_leases_go_in_bounded_messages_by_turns() {
        let (mut gather, mut now) = (Gather::new(), Time(0));
        let many = u32::try_from(LEASE_ASKS_MAX).expect("few") + 10;
        let ask = |index| {
            let (incarnation, epoch) = (Incarnation(1), Epoch(2));
            LeaseAsk { segment: segment(index), incarnation, epoch, sent: Time(7) }
        };
        let next = |gather: &mut Gather, now| match gather.next(now).as_slice() {
            [ToAuthority::LeaseAsks(asks)] => asks.iter().map(|ask| ask.segment.index).collect::<Vec<u32>>(),
            [] => Vec::new(),
            other => panic!("{other:?}"),
        };
        for index in 0..many {
            assert_eq!(gather.take(now, ToAuthority::LeaseAsks(vec![ask(index)])), None);
        }
        let first = next(&mut gather, now);
        assert_eq!((first.len(), first[0]), (LEASE_ASKS_MAX, 0));
        // All ask again: those who have not had their turn come first.
        (0..many).for_each(|index| drop(gather.take(now, ToAuthority::LeaseAsks(vec![ask(index)]))));
        assert!(next(&mut gather, now).is_empty() && gather.wake_at() == Some(now + LEASE_ASKS_EVERY));
        now = now + LEASE_ASKS_EVERY;
        let second = next(&mut gather, now);
        assert_eq!((second.len(), second[0]), (LEASE_ASKS_MAX, many - 10));
        gather.forget();
        assert_eq!(gather.wake_at(), None);
    }
}
