//! A primary compares what its members hold with what it holds itself, an extent at a time (I14).
//!
//! Intuition: a checksum says that a block is what was written there once, not that it is what was written last. A write
//! that a device lost whole, checksum and all, shows only where somebody else has it. So what a scrub has read at the
//! primary is compared with each member's. Nobody holds still for that: a digest says between which two places in the
//! segment's order it is the extent's content. Where two such spans have a place in common, both tell of the same state
//! (I4), and if they differ then one of them is wrong: that is a finding, never a guess. Where they have none, something was
//! written in between, or a member has not heard of the commit point yet: they are read again a little later, and left to
//! the next pass in the end.
//!
//! Who is right: the primary, whose content matches its checksums and is what clients were shown. Only where two members
//! or more all say the same, and nobody says what the primary says, the primary is the one that lost something. Without an
//! answer from every member nothing is said about any. Whoever is wrong fetches the extent again (`mend`), and neither shows
//! it to clients nor gives it away meanwhile.
//!
//! Bounds (I15): one extent of a segment at a time, [`COMPARES_WAITING`] more wait (the scrub waits with the next), each is
//! tried [`COMPARE_TRIES`] times; [`FINDINGS_KEPT`] findings are remembered beside their number.

use alloc::collections::{BTreeMap, VecDeque};
use alloc::vec;
use alloc::vec::Vec;

use super::io::{Effect, Effects};
use super::{Replica, Role};
use crate::ids::{ExtentIndex, NodeId};
use crate::limits::{COMPARE_PATIENCE, COMPARE_PAUSE, COMPARE_TRIES, COMPARES_WAITING, FINDINGS_KEPT};
use crate::message::Peer;
use crate::record::ExtentDigest;
use crate::time::Time;

/// Members compared with each other since the replica was opened.
#[derive(Debug, Clone, PartialEq, Eq, Default)]
pub struct Compared {
    /// Extents that every member was compared in.
    pub extents: u64,
    /// Extents left to the next pass: written all the time, or a member was away.
    pub unsettled: u64,
    /// Members found to hold something else, each extent by itself.
    pub differing: u64,
    /// The latest of them.
    pub latest: VecDeque<(ExtentIndex, NodeId)>,
}

impl Compared {
    fn note(&mut self, extent: ExtentIndex, member: NodeId) {
        self.differing += 1;
        if self.latest.len() >= FINDINGS_KEPT {
            self.latest.pop_front();
        }
        self.latest.push_back((extent, member));
    }
}

/// What a member has said of an extent.
#[derive(Debug)]
pub(super) enum Said {
    /// Nothing yet.
    Awaited,
    /// It cannot read it, and mends it.
    Unreadable,
    /// This is in it.
    Holds(ExtentDigest),
}

/// The extent that is being compared.
#[derive(Debug)]
struct Round {
    extent: ExtentIndex,
    /// `None`: it is being read again.
    own: Option<ExtentDigest>,
    members: BTreeMap<NodeId, Said>,
    tries: u32,
    /// It is asked again at `acts_at`; else answers are awaited until then.
    pauses: bool,
    acts_at: Time,
}

/// What a primary compares.
#[derive(Debug, Default)]
pub(super) struct Comparing {
    round: Option<Round>,
    waiting: VecDeque<(ExtentIndex, ExtentDigest)>,
}

impl Comparing {
    /// When the next tick changes something.
    pub(super) fn wakes(&self) -> Option<Time> {
        self.round.as_ref().map(|round| round.acts_at)
    }
}

/// What comes out of a round.
#[derive(Debug, PartialEq, Eq)]
enum Verdict {
    /// Answers are missing.
    Open,
    /// There is no state that all of them tell of.
    Again,
    /// These do not hold what was committed.
    Wrong(Vec<NodeId>),
}

impl Round {
    fn verdict(&self, node: NodeId) -> Verdict {
        let Some(own) = &self.own else { return Verdict::Open };
        if self.members.values().any(|said| matches!(said, Said::Awaited)) {
            return Verdict::Open;
        }
        let mut others: Vec<(NodeId, &ExtentDigest)> = Vec::new();
        for (member, said) in &self.members {
            let Said::Holds(digest) = said else { return Verdict::Again };
            match own.is_like(digest) {
                None => return Verdict::Again,
                Some(true) => {}
                Some(false) => others.push((*member, digest)),
            }
        }
        let nobody_agrees = others.len() >= 2 && others.len() == self.members.len();
        let with_one_voice = others.windows(2).all(|pair| pair[0].1.is_like(pair[1].1) == Some(true));
        if nobody_agrees && with_one_voice {
            return Verdict::Wrong(vec![node]);
        }
        Verdict::Wrong(others.into_iter().map(|(member, _)| member).collect())
    }
}

impl Replica {
    /// What comparing members has found.
    #[must_use]
    pub const fn compared(&self) -> &Compared {
        &self.compared
    }

    /// Whether an extent that was scrubbed is still being compared: the scrub goes no further meanwhile.
    #[must_use]
    pub fn is_comparing(&self) -> bool {
        matches!(&self.role, Role::Primary(primary) if primary.comparing.round.is_some())
    }

    /// A scrub has read this extent here, and it matches its checksums.
    pub(super) fn on_scrubbed(&mut self, now: Time, extent: ExtentIndex, digest: ExtentDigest, effects: &mut Effects) {
        let suspect = self.mends.is_wrong(extent);
        let Role::Primary(primary) = &mut self.role else { return };
        if primary.is_resolved() && !suspect && primary.comparing.waiting.len() < COMPARES_WAITING {
            primary.comparing.waiting.push_back((extent, digest));
            self.compare_next(now, effects);
        }
    }

    fn compare_next(&mut self, now: Time, effects: &mut Effects) {
        while !self.is_comparing() {
            let Role::Primary(primary) = &mut self.role else { return };
            let Some((extent, digest)) = primary.comparing.waiting.pop_front() else { return };
            let (own, members, acts_at) = (Some(digest), BTreeMap::new(), now);
            self.compare(now, Round { extent, own, members, tries: 0, pauses: false, acts_at }, effects);
        }
    }

    /// Asks every other member; without all of them nothing is said about any.
    fn compare(&mut self, now: Time, mut round: Round, effects: &mut Effects) {
        let Role::Primary(primary) = &self.role else { return };
        let others: Vec<NodeId> =
            primary.peers.0.iter().filter(|(_, peer)| peer.join.is_none()).map(|(node, _)| *node).collect();
        if others.is_empty() {
            return;
        }
        let in_step = |node: &NodeId| primary.peers.0.get(node).is_some_and(|peer| peer.synced && !peer.broken);
        if !others.iter().all(|node| in_step(node) && self.is_up(*node)) {
            self.compared.unsettled += 1;
            return;
        }
        if round.own.is_none() {
            effects.push(Effect::Digest { to: self.node, extent: round.extent });
        }
        for member in &others {
            effects.send_bulk(*member, Peer::Compare { extent: round.extent });
        }
        round.members = others.into_iter().map(|member| (member, Said::Awaited)).collect();
        (round.tries, round.pauses, round.acts_at) = (round.tries + 1, false, now + COMPARE_PATIENCE);
        if let Role::Primary(primary) = &mut self.role {
            primary.comparing.round = Some(round);
        }
    }

    /// A primary asks what is in an extent here.
    pub(super) fn on_compare(&self, from: NodeId, extent: ExtentIndex, effects: &mut Effects) {
        if extent.0 >= self.meta.config.extents || !self.may_copy(from) {
            return;
        }
        if self.mends.is_mending(extent) {
            return effects.send_bulk(from, Peer::CompareFailed { extent });
        }
        effects.push(Effect::Digest { to: from, extent });
    }

    /// An extent was read in order to be compared.
    pub(super) fn on_digest(
        &mut self,
        now: Time,
        to: NodeId,
        extent: ExtentIndex,
        digest: Option<ExtentDigest>,
        effects: &mut Effects,
    ) {
        if digest.is_none() {
            self.mend(now, extent, effects);
        }
        if to != self.node {
            let answer = digest.map_or(Peer::CompareFailed { extent }, |digest| Peer::Compared { extent, digest });
            return effects.send_bulk(to, answer);
        }
        let Some(round) = self.round_of(extent) else { return };
        if digest.is_none() {
            return self.try_again(now, effects);
        }
        round.own = digest;
        self.judge(now, effects);
    }

    /// A member says what is in an extent there.
    pub(super) fn on_compared(
        &mut self,
        now: Time,
        from: NodeId,
        extent: ExtentIndex,
        says: Said,
        effects: &mut Effects,
    ) {
        let Some(said) = self.round_of(extent).and_then(|round| round.members.get_mut(&from)) else { return };
        *said = says;
        self.judge(now, effects);
    }

    /// The extent's round, while answers are awaited.
    fn round_of(&mut self, extent: ExtentIndex) -> Option<&mut Round> {
        let Role::Primary(primary) = &mut self.role else { return None };
        primary.comparing.round.as_mut().filter(|round| round.extent == extent && !round.pauses)
    }

    fn judge(&mut self, now: Time, effects: &mut Effects) {
        let node = self.node;
        let Role::Primary(primary) = &mut self.role else { return };
        let Some(round) = primary.comparing.round.take() else { return };
        match round.verdict(node) {
            Verdict::Open => primary.comparing.round = Some(round),
            Verdict::Again => {
                primary.comparing.round = Some(round);
                self.try_again(now, effects);
            }
            Verdict::Wrong(wrong) => {
                self.compared.extents += 1;
                for member in wrong {
                    self.compared.note(round.extent, member);
                    if member == node {
                        self.suspect(now, round.extent, effects);
                    } else {
                        effects.send_bulk(member, Peer::Differs { extent: round.extent });
                    }
                }
                self.compare_next(now, effects);
            }
        }
    }

    /// After a pause, or in the next pass.
    fn try_again(&mut self, now: Time, effects: &mut Effects) {
        let Role::Primary(primary) = &mut self.role else { return };
        let Some(round) = &mut primary.comparing.round else { return };
        if round.tries < COMPARE_TRIES {
            (round.pauses, round.acts_at) = (true, now + COMPARE_PAUSE);
            return;
        }
        primary.comparing.round = None;
        self.compared.unsettled += 1;
        self.compare_next(now, effects);
    }

    /// Asks again after a pause; waits for nobody for long.
    pub(super) fn compare_tick(&mut self, now: Time, effects: &mut Effects) {
        let Role::Primary(primary) = &mut self.role else { return };
        let Some(round) = primary.comparing.round.take_if(|round| round.acts_at <= now) else { return };
        if round.pauses {
            self.compare(now, Round { own: None, ..round }, effects);
            self.compare_next(now, effects);
        } else {
            primary.comparing.round = Some(round);
            self.try_again(now, effects);
        }
    }

    /// The primary has compared this extent: what is here is not what was committed.
    pub(super) fn on_differs(&mut self, now: Time, from: NodeId, extent: ExtentIndex, effects: &mut Effects) {
        let follows = matches!(self.role, Role::Follower(_)) && self.may_copy(from);
        if follows && extent.0 < self.meta.config.extents {
            self.suspect(now, extent, effects);
        }
    }
}

#[cfg(test)]
mod tests;
