//! Leading: order writes, commit what all members hold, answer reads under their leases.
//!
//! Intuition: the commit point is the lowest entry that every member (and every joining candidate) has acknowledged; all
//! else hangs on it. A new primary begins unresolved: its log above the commit point is sent whole to every member, and
//! the first time the commit point reaches its end the primary is resolved and serves.
//!
//! Invariants: I2 (generation and session are looked at before anything is ordered), I3 (commit = all members), I5 (below
//! `min_copies` nothing commits), I6 (only `begin` makes a primary), I7 (leases before and after the disk read).

use alloc::collections::{BTreeMap, VecDeque};
use alloc::vec;
use alloc::vec::Vec;

use super::io::{ClientRef, Durable, Effect, Effects, ReadPurpose};
use super::lone::Lone;
use super::membership::Membership;
use super::peers::Peers;
use super::{Asked, Replica, Role};
use crate::config::Config;
use crate::ids::{BlockIndex, Epoch, Generation, NodeId, Seq, Session};
use crate::lease::Held;
use crate::limits::{
    ALLOCATION_BLOCKS_MAX, BLOCK_SIZE, REQUEST_BYTES_MAX, WAITING_MAX, WINDOW_BYTES, WINDOW_ENTRIES, ZERO_BYTES_MAX,
};
use crate::message::{Op, Outcome, Peer, Refusal, Request, ToAuthority};
use crate::record::{Blocks, Change, Entry, Record};
use crate::sabotage::{Invariant, breaks};
use crate::time::{Span, Time};

/// The state of leading.
#[derive(Debug)]
pub(super) struct Primary {
    /// The epoch it began with; later ones of the same log go on with it.
    reign: Epoch,
    /// A record of an epoch of this reign is durable, and it was announced.
    pub(super) begun: bool,
    /// Last entry of the log this epoch began with: at or above it the primary is resolved.
    began_with: Seq,
    pub(super) resolved: bool,
    /// Leases of earlier primaries may run until then (I7).
    lease_wait: Option<Time>,
    pub(super) lease: Held,
    /// Below `min_copies`: how the authority's lease is asked for.
    pub(super) lone: Lone,
    /// Members and candidates, as this primary knows them.
    pub(super) peers: Peers,
    pub(super) membership: Membership,
    /// Highest session of the attachment.
    session: Session,
    ordered: BTreeMap<Seq, Asked>,
    writes: VecDeque<Asked>,
    reads: VecDeque<Asked>,
    /// Confirm this generation when the commit point has reached the entry.
    fence: Option<(Generation, Seq)>,
    /// Members compared with each other (I14).
    pub(super) comparing: super::compare::Comparing,
    began: Time,
    /// Somebody would like another member to lead.
    pub(super) wish: Option<super::handover::Wish>,
}

impl Primary {
    /// Whether clients wait for something here.
    pub(super) fn is_waited_for(&self) -> bool {
        !self.writes.is_empty() || !self.reads.is_empty()
    }

    /// Whether a client waits for something to be read.
    pub(super) fn has_reads(&self) -> bool {
        !self.reads.is_empty()
    }

    /// Writes behind this entry that are ordered and not decided. In a reign nothing else comes into the log: they follow
    /// each other without gaps.
    pub(super) fn ordered_after(&self, seq: Seq) -> u64 {
        self.ordered.last_key_value().map_or(0, |(last, _)| last.0.saturating_sub(seq.0).min(self.ordered.len() as u64))
    }

    /// Whether something is ordered and not decided.
    pub(super) fn has_ordered(&self) -> bool {
        !self.ordered.is_empty()
    }

    /// Whether its log is common: it serves.
    pub(super) const fn is_resolved(&self) -> bool {
        self.resolved
    }

    /// Whether nobody may hear of the epoch at work yet, because the own record of it is not durable. A restart would forget
    /// it and begin the same epoch with another log, which those who adopted this one would take for theirs (I2, I9).
    pub(super) const fn is_silent(&self) -> bool {
        self.membership.awaited.is_some()
    }

    /// Whether nobody has heard of this reign at all: it makes no plans for its set either.
    pub(super) const fn is_beginning(&self) -> bool {
        !self.begun
    }

    /// Whether it has led for less than `span`, whatever its epoch.
    pub(super) fn is_new(&self, span: Span, now: Time) -> bool {
        now.since(self.began) < span
    }

    /// When a fence that only waits for leases of earlier primaries may be confirmed.
    pub(super) fn fence_waits_until(&self) -> Option<Time> {
        self.lease_wait.filter(|_| self.fence.is_some())
    }

    /// How long primaries before this one may still answer reads (I7).
    pub(super) fn lease_left(&self, now: Time) -> Span {
        self.lease_wait.map_or(Span::ZERO, |until| until.since(now))
    }
}

impl Replica {
    /// Becomes primary of an epoch that the authority has just installed (I6): the only way to become one.
    pub(super) fn begin(&mut self, now: Time, config: Config, lease_left: Span, effects: &mut Effects) {
        let epoch = config.epoch;
        self.adopt_config(config);
        // The own log becomes the common one; every other member's tail gives way to it (I9).
        self.meta.log_epoch = epoch;
        self.meta.standing = crate::record::Standing::Member;
        self.writing_since = Some(now);
        let peers = Peers::new(&self.meta.config, self.node, now);
        self.role = Role::Primary(alloc::boxed::Box::new(Primary {
            reign: epoch,
            begun: false,
            began_with: self.log.last(),
            resolved: breaks(Invariant::I9),
            lease_wait: (lease_left > Span::ZERO).then(|| now + lease_left),
            lease: Held::default(),
            lone: Lone::default(),
            peers,
            membership: Membership::new(now, epoch),
            session: Session(0),
            ordered: BTreeMap::new(),
            writes: VecDeque::new(),
            reads: VecDeque::new(),
            fence: None,
            comparing: super::compare::Comparing::default(),
            began: now,
            wish: None,
        }));
        effects.persist(vec![self.state_record()]).then_feed(Durable::Begun(epoch));
        self.want_peers(effects);
        self.serve_early(now, effects);
    }

    /// The record of the epoch at work is durable: now it may be spoken of, and its acknowledgements given (I2).
    pub(super) fn on_begun(&mut self, now: Time, epoch: Epoch, effects: &mut Effects) {
        let last = self.log.last();
        let Role::Primary(primary) = &mut self.role else {
            self.writing_since = None;
            return;
        };
        if primary.membership.awaited == Some(epoch) {
            let begins = primary.is_beginning();
            primary.membership.awaited = None;
            // Persists become durable in order: what was in the log before the epoch began is durable too.
            self.durable = self.durable.max(primary.began_with);
            self.writing_since = (self.durable < last).then_some(now);
            if begins {
                self.announce_reign(now, effects);
            } else {
                self.announce_epoch(now, effects);
            }
            self.primary_advance(now, effects);
            self.serve(now, effects);
        }
    }

    /// A request that needs the primary.
    pub(super) fn primary_request(&mut self, now: Time, client: ClientRef, request: Request, effects: &mut Effects) {
        let Role::Primary(primary) = &mut self.role else { return };
        let config = &self.meta.config;
        if request.generation != config.generation && !breaks(Invariant::I2) {
            // Higher: the fence of that attachment has not reached this primary; its client comes again.
            let fenced = request.generation < config.generation;
            let refusal = if fenced { Refusal::Fenced(config.generation) } else { Refusal::Busy };
            return self.reply(client, &request, Outcome::Refused(refusal), effects);
        }
        if crate::epoch::is_stale(request.epoch, primary.reign) {
            // I2: sent before this reign began, perhaps to an earlier reign of this very node, and decided elsewhere
            // since: only a client that knows of this reign is listened to.
            let known = Some(config.clone());
            return self.reply(client, &request, Outcome::Refused(Refusal::NotPrimary(known)), effects);
        }
        // I7: the only reader knows this reign and takes no answer of an earlier one.
        if primary.lease_wait.take().is_some() {
            self.confirm_fence(now, effects);
        }
        let Role::Primary(primary) = &mut self.role else { return };
        if request.session < primary.session {
            return self.reply(client, &request, Outcome::Refused(Refusal::OldSession), effects);
        }
        if request.session > primary.session {
            // I2: the older sessions are closed before anything of the newer one is ordered.
            primary.session = request.session;
            primary.writes.clear();
            primary.reads.clear();
        }
        if !self.is_sound(&request) {
            return self.reply(client, &request, Outcome::Refused(Refusal::Malformed), effects);
        }
        self.queue_request(Asked { client, request }, effects);
        self.serve(now, effects);
    }

    pub(super) fn is_sound(&self, request: &Request) -> bool {
        match &request.op {
            Op::Read { block, count } | Op::Peek { block, count } => {
                let fits = u64::from(*count) * BLOCK_SIZE <= REQUEST_BYTES_MAX;
                fits && !self.is_outside(block.0, *count)
            }
            Op::Allocation { block, count } => *count <= ALLOCATION_BLOCKS_MAX && !self.is_outside(block.0, *count),
            Op::Write(change) => {
                let fits = match change {
                    Change::Nothing => false,
                    Change::Write { .. } => change.data_len() <= REQUEST_BYTES_MAX,
                    Change::Zero { count, .. } => u64::from(*count) * BLOCK_SIZE <= ZERO_BYTES_MAX,
                };
                fits && self.fits(change)
            }
            Op::Locate { .. } => true,
        }
    }

    fn queue_request(&mut self, asked: Asked, effects: &mut Effects) {
        let Role::Primary(primary) = &mut self.role else { return };
        let queue = if let Op::Write(_) = asked.request.op { &mut primary.writes } else { &mut primary.reads };
        if queue.len() >= WAITING_MAX {
            return self.reply(asked.client, &asked.request, Outcome::Refused(Refusal::Busy), effects);
        }
        queue.push_back(asked);
    }

    /// Confirms, orders and reads whatever may be now.
    pub(super) fn serve(&mut self, now: Time, effects: &mut Effects) {
        self.confirm_fence(now, effects);
        self.serve_writes(now, effects);
        self.serve_reads(now, effects);
    }

    fn serve_writes(&mut self, now: Time, effects: &mut Effects) {
        loop {
            let may_commit = self.meta.config.may_commit();
            let room = self.log.len() < WINDOW_ENTRIES;
            let bytes = self.log.bytes();
            let Role::Primary(primary) = &mut self.role else { return };
            let waits_for_lease = primary.lease_wait.is_some_and(|until| now < until);
            // In an epoch that nobody has heard of nothing can be proposed.
            if !primary.resolved || primary.is_silent() || !may_commit || !room || waits_for_lease {
                return;
            }
            let Some(Op::Write(change)) = primary.writes.front().map(|asked| &asked.request.op) else { return };
            if bytes + change.data_len() > WINDOW_BYTES {
                return;
            }
            let Some(asked) = primary.writes.pop_front() else { return };
            self.order(now, asked, effects);
        }
    }

    /// Gives a write its place: own log and all members in parallel.
    fn order(&mut self, now: Time, asked: Asked, effects: &mut Effects) {
        let Asked { client, request } = asked;
        let Op::Write(change) = request.op else { return };
        let entry = Entry { epoch: self.meta.config.epoch, seq: self.log.last().next(), change };
        let commit = self.log.commit();
        let (epoch, seq) = (entry.epoch, entry.seq);
        self.log.append(entry.clone());
        self.writing_since.get_or_insert(now);
        let Role::Primary(primary) = &mut self.role else { return };
        // The data is in the log; what is kept is whom to answer.
        primary
            .ordered
            .insert(seq, Asked { client, request: Request { op: Op::Locate { unreachable: false }, ..request } });
        for to in primary.peers.in_stream(now, seq) {
            effects.send(to, Peer::Prepare { commit, entry: entry.clone() });
        }
        effects
            .persist(vec![Record::Prepare { segment: self.segment, commit, entry }])
            .then_feed(Durable::Log { epoch, durable: seq });
    }

    /// Recomputes the commit point; answers what it covers.
    pub(super) fn primary_advance(&mut self, now: Time, effects: &mut Effects) {
        let (durable, may_commit) = (self.durable, self.meta.config.may_commit());
        let Role::Primary(primary) = &mut self.role else { return };
        if primary.membership.awaited.is_some() {
            return;
        }
        let Some(everywhere) = primary.peers.acked_by_all() else { return };
        let through = if breaks(Invariant::I3) { durable } else { everywhere.min(durable) };
        if !primary.resolved && through >= primary.began_with {
            primary.resolved = true;
            self.look = true;
        }
        if may_commit {
            self.commit_through(now, through, effects);
        }
    }

    /// What is known to be committed is answered for.
    pub(super) fn commit_through(&mut self, now: Time, through: Seq, effects: &mut Effects) {
        let Role::Primary(primary) = &mut self.role else { return };
        let mut done = primary.ordered.split_off(&through.next());
        core::mem::swap(&mut done, &mut primary.ordered);
        if self.commit_to(through, effects) {
            for asked in done.into_values() {
                self.reply(asked.client, &asked.request, Outcome::Written, effects);
            }
        }
        self.serve(now, effects);
    }

    /// From now on only this attachment is listened to, wherever it was heard of first.
    pub(super) fn close_older(&mut self, generation: Generation, effects: &mut Effects) {
        if generation <= self.meta.config.generation {
            return;
        }
        self.meta.config.generation = generation;
        let Role::Primary(primary) = &mut self.role else { return };
        primary.session = Session(0);
        // I2: what an older attachment had queued is dropped, what is ordered will be decided.
        let dropped: Vec<Asked> = primary.writes.drain(..).chain(primary.reads.drain(..)).collect();
        for asked in dropped {
            self.reply(asked.client, &asked.request, Outcome::Refused(Refusal::Fenced(generation)), effects);
        }
    }

    pub(super) fn on_fence(&mut self, now: Time, generation: Generation, effects: &mut Effects) {
        self.close_older(generation, effects);
        let last = self.log.last();
        if let Role::Primary(primary) = &mut self.role {
            primary.fence = Some((self.meta.config.generation, last));
            self.confirm_fence(now, effects);
        }
    }

    fn confirm_fence(&mut self, now: Time, effects: &mut Effects) {
        let (segment, commit) = (self.segment, self.log.commit());
        let Role::Primary(primary) = &mut self.role else { return };
        let Some((generation, through)) = primary.fence else { return };
        // Nor below min_copies: whoever is electable beside it may hold an older write that this one has never seen, and
        // commit it in a later epoch (I5). It is dropped for certain once an epoch that may commit has begun.
        if !self.meta.config.may_commit() {
            return;
        }
        // Nor while an earlier primary may still answer the older attachment: its client was the only reader there, and
        // the new one, whose first request ends the wait, knows nothing of what that one is told (I7).
        if primary.lease_wait.is_some_and(|until| now < until) && !breaks(Invariant::I7) {
            return;
        }
        primary.lease_wait = None;
        // Nor before its epoch is durable: a restart would begin that epoch anew, with the generation it came with.
        if primary.resolved && commit >= through && primary.membership.awaited.is_none() {
            primary.fence = None;
            effects.push(Effect::Authority(ToAuthority::FenceDone { segment, generation }));
        }
    }

    fn leases_hold(&self, now: Time) -> bool {
        let Role::Primary(primary) = &self.role else { return false };
        let others = self.meta.config.members.iter().copied().filter(|node| *node != self.node);
        let members = primary.lease.covers(others, now);
        let outsiders = self.meta.config.may_commit() || primary.lease.covers_outsiders(now);
        breaks(Invariant::I7) || members && outsiders && primary.lease_wait.is_none_or(|until| until <= now)
    }

    fn serve_reads(&mut self, now: Time, effects: &mut Effects) {
        if !self.leases_hold(now) {
            return self.ask_lone_lease(now, effects);
        }
        self.note_lone_read(now);
        let (commit, epoch) = (self.log.commit(), self.meta.config.epoch);
        let Role::Primary(primary) = &mut self.role else { return };
        if !primary.resolved || primary.reads.is_empty() {
            return;
        }
        let undecided = commit < primary.began_with;
        let waiting = core::mem::take(&mut primary.reads);
        let (mut kept, mut wrong) = (VecDeque::new(), Vec::new());
        for asked in waiting {
            let (Op::Read { block, count } | Op::Allocation { block, count }) = asked.request.op else { continue };
            // I5: what this epoch began with may have been acknowledged by an earlier one; until it is committed here, a
            // block it touches has no value to show.
            if undecided && self.log.touches(block, count) && !breaks(Invariant::I9) {
                kept.push_back(asked);
                continue;
            }
            // The epoch it is read in comes back with the answer.
            let purpose = ReadPurpose { client: asked.client, request: Request { epoch, ..asked.request } };
            if let Some(block) = self.mends.first_wrong(block, count) {
                wrong.push((purpose, block));
                continue;
            }
            effects.push(match purpose.request.op {
                Op::Allocation { .. } => Effect::Allocation { block, count, purpose },
                _ => Effect::Read { block, count, purpose },
            });
        }
        if let Role::Primary(primary) = &mut self.role {
            primary.reads = kept;
        }
        // I14: its checksums match, and it is not what was committed.
        for (purpose, block) in wrong {
            self.on_damaged_read(now, purpose, block, effects);
        }
    }

    pub(super) fn on_read(
        &mut self,
        now: Time,
        purpose: ReadPurpose,
        result: Result<Blocks, BlockIndex>,
        effects: &mut Effects,
    ) {
        let outcome = match result {
            Ok(blocks) => Outcome::Data(blocks),
            Err(block) => return self.on_damaged_read(now, purpose, block, effects),
        };
        self.answer_read(now, purpose, outcome, effects);
    }

    pub(super) fn on_allocation(
        &mut self,
        now: Time,
        purpose: ReadPurpose,
        runs: Vec<(u32, bool)>,
        effects: &mut Effects,
    ) {
        self.answer_read(now, purpose, Outcome::Allocation(runs), effects);
    }

    /// I7: the lease is looked at again after the disk read; a primary that was paused in between answers nothing stale.
    pub(super) fn answer_read(&mut self, now: Time, purpose: ReadPurpose, outcome: Outcome, effects: &mut Effects) {
        let ReadPurpose { client, request } = purpose;
        if let Op::Peek { .. } = request.op {
            return self.reply(client, &request, outcome, effects);
        }
        let Role::Primary(primary) = &self.role else {
            let known = Some(self.meta.config.clone());
            return self.reply(client, &request, Outcome::Refused(Refusal::NotPrimary(known)), effects);
        };
        let generation = self.meta.config.generation;
        if request.generation < generation {
            self.reply(client, &request, Outcome::Refused(Refusal::Fenced(generation)), effects);
        } else if request.session < primary.session {
            self.reply(client, &request, Outcome::Refused(Refusal::OldSession), effects);
        } else if self.leases_hold(now) && primary.resolved && !self.is_of_the_past(&request) {
            self.reply(client, &request, outcome, effects);
        } else {
            self.queue_request(Asked { client, request }, effects);
        }
    }

    /// Read by an earlier turn as primary: others may have led in between.
    fn is_of_the_past(&self, request: &Request) -> bool {
        crate::epoch::log_is_behind(request.epoch, self.meta.log_epoch)
    }

    pub(super) fn on_client_gone(&mut self, client: ClientRef) {
        self.forget_early(client);
        self.mends.forget_client(client);
        if let Role::Primary(primary) = &mut self.role {
            primary.writes.retain(|asked| asked.client != client);
            primary.reads.retain(|asked| asked.client != client);
        }
    }

    /// Leads no more: whoever waits is sent to the next primary; what is ordered is undecided and said to be.
    pub(super) fn step_down(&mut self, successor: Option<&Config>, effects: &mut Effects) {
        let Role::Primary(primary) = &mut self.role else { return };
        let ordered = core::mem::take(&mut primary.ordered).into_values();
        let mended = self.mends.take_reads().map(|ReadPurpose { client, request }| Asked { client, request });
        let waiting = ordered.chain(primary.writes.drain(..)).chain(primary.reads.drain(..)).chain(mended);
        let waiting: Vec<Asked> = waiting.collect();
        for asked in waiting {
            let refusal = Refusal::NotPrimary(successor.cloned());
            self.reply(asked.client, &asked.request, Outcome::Refused(refusal), effects);
        }
    }

    /// A member acknowledged its log up to `durable`.
    pub(super) fn on_ack(&mut self, now: Time, from: NodeId, said: Epoch, durable: Seq, effects: &mut Effects) {
        let last = self.log.last();
        let Role::Primary(primary) = &mut self.role else { return };
        if let Some(peer) = primary.peers.0.get_mut(&from) {
            peer.knows = crate::epoch::higher(peer.knows, said);
        }
        // An acknowledgement of an earlier epoch of this same log says as much; of another log it is ignored.
        if !crate::epoch::log_is_behind(said, self.meta.log_epoch) && primary.peers.ack(from, durable.min(last), now) {
            self.primary_advance(now, effects);
        }
    }

    pub(super) fn on_beat_ack(
        &mut self,
        now: Time,
        from: NodeId,
        said: Epoch,
        sent: Time,
        durable: Seq,
        effects: &mut Effects,
    ) {
        let Role::Primary(primary) = &mut self.role else { return };
        if crate::epoch::log_is_behind(said, self.meta.log_epoch) {
            return;
        }
        primary.lease.renew(from, sent);
        self.on_ack(now, from, said, durable, effects);
        self.serve(now, effects);
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::ids::{Incarnation, RequestId, SegmentId, VolumeId};
    use crate::message::Decision;
    use crate::record::{Meta, Standing};
    use crate::replica::io::Input;

    const OWN: NodeId = NodeId(1);

    /// The only member of a segment, after it has begun the epoch behind `epoch`.
    fn primary_after(epoch: Epoch) -> (Replica, Time) {
        let segment = SegmentId { volume: VolumeId(1), index: 0 };
        let config = Config {
            segment,
            incarnation: Incarnation(1),
            epoch,
            primary: OWN,
            members: vec![OWN],
            candidates: vec![],
            electable: vec![OWN],
            former: vec![],
            generation: Generation(1),
            copies: 1,
            min_copies: 1,
            extents: 512,
        };
        let meta = Meta { promised: epoch, log_epoch: epoch, config: config.clone(), standing: Standing::Member };
        let mut replica = Replica::create(OWN, segment, meta, Span::seconds(1), Time(0), 1);
        let now = Time(0) + Span::seconds(10);
        let mut effects = Effects::new();
        let installed = Config { epoch: epoch.next(), ..config };
        for input in [
            Input::Tick,
            Input::Durable(Durable::Promise(installed.epoch)),
            Input::Decided(Decision::Installed(installed.clone())),
            Input::Durable(Durable::Begun(installed.epoch)),
        ] {
            replica.handle(now, input, &mut effects);
        }
        assert!(replica.is_serving());
        (replica, now)
    }

    fn ask(replica: &mut Replica, now: Time, epoch: Epoch, session: u64) -> Vec<Effect> {
        let op = Op::Write(Change::Zero { block: BlockIndex(0), count: 1 });
        let (segment, generation, session) = (replica.segment(), Generation(1), Session(session));
        let request = Request { segment, epoch, generation, session, request: RequestId(1), op };
        let mut effects = Effects::new();
        replica.handle(now, Input::Client { client: ClientRef(1), request }, &mut effects);
        effects.drain().collect()
    }

    #[test]
    fn a_request_of_an_earlier_reign_is_not_ordered_and_closes_no_session() {
        let (mut replica, now) = primary_after(Epoch(6));
        // I2: left in a socket since an earlier reign of this node, with a session number of that time.
        let stale = ask(&mut replica, now, Epoch(6), 99);
        let refused = |effect: &Effect| {
            matches!(effect, Effect::Reply { reply, .. }
            if matches!(reply.outcome, Outcome::Refused(Refusal::NotPrimary(Some(_)))))
        };
        assert!(matches!(stale.as_slice(), [effect] if refused(effect)), "{stale:?}");
        let known = ask(&mut replica, now, Epoch(7), 3);
        assert!(matches!(known.as_slice(), [Effect::Persist { .. }]), "{known:?}");
    }

    fn say(replica: &mut Replica, now: Time, input: Input) -> Vec<Effect> {
        let mut effects = Effects::new();
        replica.handle(now, input, &mut effects);
        effects.drain().collect()
    }

    fn write_of(replica: &Replica, generation: u64, request: u64) -> Input {
        let op = Op::Write(Change::Zero { block: BlockIndex(0), count: 1 });
        let (segment, epoch, session) = (replica.segment(), replica.config().epoch, Session(1));
        let request =
            Request { segment, epoch, generation: Generation(generation), session, request: RequestId(request), op };
        Input::Client { client: ClientRef(1), request }
    }

    #[test]
    fn a_generation_that_comes_with_a_configuration_drops_what_an_older_one_had_queued() {
        let (mut replica, now) = primary_after(Epoch(6));
        let window = WINDOW_ENTRIES as u64;
        for request in 1..=window + 1 {
            let input = write_of(&replica, 1, request);
            say(&mut replica, now, input);
        }
        // I2: the attach came between its proposal and the authority's decision.
        let next = Config { epoch: Epoch(8), generation: Generation(2), ..replica.config().clone() };
        let dropped = |effect: &Effect| {
            matches!(effect, Effect::Reply { reply, .. }
            if reply.request == RequestId(window + 1) && reply.outcome == Outcome::Refused(Refusal::Fenced(Generation(2))))
        };
        let effects = say(&mut replica, now, Input::Decided(Decision::Conflict(next)));
        assert!(effects.iter().any(dropped), "{effects:?}");
        say(&mut replica, now, Input::Durable(Durable::Begun(Epoch(8))));
        assert!(!confirms(&say(&mut replica, now, Input::Fence(Generation(2)))), "what is ordered is not decided");
        let decided = say(&mut replica, now, Input::Durable(Durable::Log { epoch: Epoch(7), durable: Seq(window) }));
        assert!(confirms(&decided));
        assert!(!decided.iter().any(|effect| matches!(effect, Effect::Persist { .. })), "nothing older is ordered");
    }

    fn confirms(effects: &[Effect]) -> bool {
        effects.iter().any(|effect| matches!(effect, Effect::Authority(ToAuthority::FenceDone { .. })))
    }

    #[test]
    fn a_fence_waits_for_the_leases_of_earlier_primaries() {
        let config = Config { epoch: Epoch(6), ..primary_after(Epoch(5)).0.config().clone() };
        let meta = Meta { promised: Epoch(6), log_epoch: Epoch(6), config: config.clone(), standing: Standing::Member };
        let now = Time(0) + Span::seconds(10);
        let mut replica = Replica::create(OWN, config.segment, meta, Span::seconds(1), now, 1);
        // It did not stand for election, so it has asked nobody what leases may run.
        let installed = Config { epoch: Epoch(7), ..config };
        say(&mut replica, now, Input::Decided(Decision::Installed(installed)));
        say(&mut replica, now, Input::Durable(Durable::Begun(Epoch(7))));
        say(&mut replica, now, Input::Tick);
        let end = now + crate::limits::LEASE;
        // I7: a client of the older attachment may still be answered by an earlier primary.
        assert!(!confirms(&say(&mut replica, now, Input::Fence(Generation(2)))));
        let mut at = now;
        let confirmed_at = loop {
            at = at.max(replica.wake_at().expect("a primary beats")) + Span::millis(1);
            if confirms(&say(&mut replica, at, Input::Tick)) {
                break at;
            }
            assert!(at < end + Span::seconds(1), "nothing wakes it");
        };
        assert!(confirmed_at >= end && confirmed_at <= end + Span::millis(2), "{confirmed_at:?}, not {end:?}");
    }

    #[test]
    fn a_fence_survives_a_decision_made_before_it() {
        let (mut replica, now) = primary_after(Epoch(6));
        assert!(confirms(&say(&mut replica, now, Input::Fence(Generation(5)))));
        // I2: the authority had installed this before the attach; the answer was lost and comes with a conflict.
        let before = Config { epoch: Epoch(8), generation: Generation(1), ..replica.config().clone() };
        say(&mut replica, now, Input::Decided(Decision::Conflict(before)));
        assert_eq!((replica.config().epoch, replica.config().generation), (Epoch(8), Generation(5)));
        assert!(!confirms(&say(&mut replica, now, Input::Fence(Generation(5)))), "its epoch is not durable yet");
        assert!(confirms(&say(&mut replica, now, Input::Durable(Durable::Begun(Epoch(8))))));
    }
}
