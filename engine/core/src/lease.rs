//! Leases between members of a segment (I7, I8): the right of a primary to answer reads.
//!
//! A backup that renews a lease says: until it ends I help nobody else to answer reads. A primary needs the leases of
//! *all* other members, so one member that stopped renewing is enough to make its reads end in time. The holder counts
//! from the moment it asked and subtracts the stated drift; the granter counts from the moment it answered: the holder's
//! end always comes first. Write safety never depends on any of this.
//!
//! Who becomes a member later knows nothing of leases given before. It need not: it stands for nothing before it knows
//! that it is one. Its primary tells it, and the lease in its answer ends after all that was given before that primary was
//! elected; or somebody else does, and then it counts with the longest lease there can be.
//!
//! Below `min_copies` whoever is electable and no member can elect another primary without asking a member. So such a
//! primary needs a lease of the authority too: its word that the configuration is still the one at work. The authority
//! remembers nothing of it. Whoever succeeds such a primary without its promise counts [`LEASE`] from when it hears that
//! its own configuration was installed, and what the authority said before that was asked for before that.

use alloc::collections::BTreeMap;

use crate::ids::NodeId;
use crate::limits::{DRIFT_PER_MILLE, LEASE};
use crate::time::{Span, Time};

/// Leases a primary holds.
#[derive(Debug, Clone, Default)]
pub struct Held {
    until: BTreeMap<NodeId, Time>,
    /// What the authority gave a primary whose members are too few to elect another without it.
    authority: Time,
}

/// The end of a lease asked for at `sent`, by the clock that asked.
const fn end(sent: Time) -> Time {
    Time(sent.0.saturating_add(LEASE.0 - LEASE.0 / 1000 * DRIFT_PER_MILLE))
}

impl Held {
    /// A member renewed in answer to what was sent at `sent` by the own clock.
    pub fn renew(&mut self, from: NodeId, sent: Time) {
        let until = end(sent);
        let held = self.until.entry(from).or_insert(until);
        *held = until.max(*held);
    }

    /// After `sent` by the own clock the authority still had the configuration this primary leads. Whoever leads a later
    /// one waits [`LEASE`] from when that was installed, which is after `sent`.
    pub fn renew_by_authority(&mut self, sent: Time) {
        self.authority = end(sent).max(self.authority);
    }

    /// Whether nobody else, elected by nodes that are no members, can be answering yet.
    #[must_use]
    pub fn covers_outsiders(&self, now: Time) -> bool {
        now < self.authority
    }

    /// Whether every one of `others` still helps nobody else.
    pub fn covers(&self, mut others: impl Iterator<Item = NodeId>, now: Time) -> bool {
        others.all(|node| self.until.get(&node).is_some_and(|until| now < *until))
    }
}

/// The leases a member gave: to its present primary, and what still runs of those before.
#[derive(Debug, Clone, Copy, Default)]
pub struct Granted {
    to: Option<NodeId>,
    until: Time,
    before: Time,
}

impl Granted {
    /// After a restart nobody knows what was given before: the most that can still run.
    #[must_use]
    pub fn forgotten(now: Time) -> Self {
        Self { before: now + LEASE, ..Self::default() }
    }

    /// Renewed just now, to this primary.
    pub fn renew(&mut self, to: NodeId, now: Time) {
        if self.to != Some(to) {
            self.before = self.before.max(self.until);
            self.to = Some(to);
        }
        self.until = now + LEASE;
    }

    /// A primary this member knows nothing of may have a lease that was not given by it: the most that can still run.
    pub fn suppose(&mut self, now: Time) {
        self.before = self.before.max(now + LEASE);
    }

    /// How long any primary may still answer reads by leases of this member. What was given to `restarted`, whose
    /// process is a new one, died with the old process.
    #[must_use]
    pub fn left(&self, restarted: Option<NodeId>, now: Time) -> Span {
        let latest = if restarted.is_some() && restarted == self.to { Time(0) } else { self.until };
        latest.max(self.before).since(now)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_holder_stops_before_the_granter_forgets() {
        let (mut held, mut granted) = (Held::default(), Granted::default());
        let asked = Time(1_000);
        let answered = asked + Span::millis(3);
        granted.renew(NodeId(1), answered);
        held.renew(NodeId(2), asked);
        let end = answered + granted.left(None, answered);
        assert!(!held.covers([NodeId(2)].into_iter(), end - Span::millis(1)));
        assert!(held.covers([NodeId(2)].into_iter(), asked + Span::millis(100)));
        assert!(!held.covers([NodeId(2), NodeId(3)].into_iter(), asked), "all members, not some");
    }

    #[test]
    fn a_member_that_restarted_counts_what_it_may_have_given() {
        let granted = Granted::forgotten(Time(5));
        assert_eq!(granted.left(Some(NodeId(1)), Time(5)), LEASE);
        assert_eq!(granted.left(None, Time(5) + LEASE), Span::ZERO);
    }

    #[test]
    fn a_new_primary_does_not_hide_the_lease_of_the_one_before() {
        let mut granted = Granted::default();
        granted.renew(NodeId(1), Time(0));
        granted.renew(NodeId(2), Time(10));
        assert_eq!(granted.left(None, Time(10)), LEASE);
        assert_eq!(granted.left(Some(NodeId(2)), Time(10)), Span(LEASE.0 - 10), "what the first was given still runs");
    }
}
