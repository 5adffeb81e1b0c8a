//! Leading below `min_copies`: reads need a lease of the authority beside those of the members (I7).
//!
//! Intuition: whoever was in the last epoch that could commit stays electable (I5), and when enough of them are back they
//! elect without asking a member here. What they cannot do without is the authority. So a primary that may not commit
//! asks it whether its configuration is still the one at work, and reads for a lease's time from when it asked. It asks
//! only while somebody reads.
//!
//! Invariant: the lease ends before anybody who succeeds this primary without its promise has waited for it
//! (`election`, `Replica::learn`): both are counted from points in time before and after that one's installation.

use alloc::vec;

use super::io::{Effect, Effects};
use super::{Replica, Role};
use crate::ids::Incarnation;
use crate::limits::{BEAT_EVERY, LEASE};
use crate::message::{LeaseAsk, ToAuthority};
use crate::time::Time;

/// What is asked of the authority for reads.
#[derive(Debug, Clone, Copy, Default)]
pub(super) struct Lone {
    asked: Option<Time>,
    /// When something was read last.
    read: Option<Time>,
}

impl Replica {
    /// Reads are served now.
    pub(super) fn note_lone_read(&mut self, now: Time) {
        if let Role::Primary(primary) = &mut self.role
            && primary.has_reads()
        {
            primary.lone.read = Some(now);
        }
    }

    /// Somebody wants to read, and some lease is missing.
    pub(super) fn ask_lone_lease(&mut self, now: Time, effects: &mut Effects) {
        if let Role::Primary(primary) = &self.role
            && primary.has_reads()
            && !primary.lease.covers_outsiders(now)
            && primary.lone.asked.is_none_or(|asked| now.since(asked) >= BEAT_EVERY)
        {
            self.send_lone_ask(now, effects);
        }
    }

    /// Part of a primary's beat: whoever reads does not wait for a lease that has run out.
    pub(super) fn renew_lone_lease(&mut self, now: Time, effects: &mut Effects) {
        if let Role::Primary(primary) = &self.role
            && (primary.has_reads() || primary.lone.read.is_some_and(|read| now.since(read) < LEASE))
        {
            self.send_lone_ask(now, effects);
        }
    }

    fn send_lone_ask(&mut self, now: Time, effects: &mut Effects) {
        let config = &self.meta.config;
        if config.may_commit() || !self.is_healthy(now) {
            return;
        }
        let ask = LeaseAsk { segment: self.segment, incarnation: config.incarnation, epoch: config.epoch, sent: now };
        let Role::Primary(primary) = &mut self.role else { return };
        primary.lone.asked = Some(now);
        effects.push(Effect::Authority(ToAuthority::LeaseAsks(vec![ask])));
    }

    /// The authority has answered what was asked at `sent`. In which epoch does not matter: whoever leads this reign now
    /// led then, so whatever replaces it is installed later than that.
    pub(super) fn on_leased(&mut self, now: Time, incarnation: Incarnation, sent: Time, effects: &mut Effects) {
        let same_life = incarnation == self.meta.config.incarnation;
        let Role::Primary(primary) = &mut self.role else { return };
        // What this reign has not asked is an echo of another one.
        if same_life && primary.lone.asked.is_some_and(|asked| sent <= asked) {
            primary.lease.renew_by_authority(sent);
            self.serve(now, effects);
        }
    }
}
