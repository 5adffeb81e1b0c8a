//! A primary's word to its set: which epoch is at work, where the log stands, that it lives.
//!
//! Intuition: a reign is announced by its whole log above the commit point (`reconcile`), every further epoch of it by a
//! line that says that the log goes on (`Advance`). Whoever has not said where it stands is asked again.
//!
//! Invariant: nobody hears of an epoch before the own record of it is durable (I2, I9; [`Primary::is_silent`]).
//!
//! [`Primary::is_silent`]: super::primary::Primary::is_silent

use alloc::vec::Vec;

use super::io::Effects;
use super::membership::ASK_AGAIN;
use super::peers::PeerState;
use super::{Replica, Role};
use crate::ids::{NodeId, Seq};
use crate::limits::BEAT_EVERY;
use crate::message::Peer;
use crate::record::Entry;
use crate::time::Time;

impl Replica {
    /// Tells members and candidates of the reign that has begun.
    pub(super) fn announce_reign(&mut self, now: Time, effects: &mut Effects) {
        if let Role::Primary(primary) = &mut self.role {
            primary.begun = true;
            // Nobody owed an answer to what was not said.
            primary.peers.0.values_mut().for_each(|peer| peer.heard = now);
        }
        for node in self.meta.config.members.clone() {
            if node != self.node && self.is_up(node) {
                self.send_reconcile(now, node, effects);
            }
        }
        for node in self.meta.config.candidates.clone() {
            self.send_advance(now, node, effects);
        }
    }

    /// The epoch at work is durable: everybody hears of it.
    pub(super) fn announce_epoch(&mut self, now: Time, effects: &mut Effects) {
        let config = self.meta.config.clone();
        let own = self.node;
        for node in config.members.iter().chain(&config.candidates).copied().filter(|node| *node != own) {
            self.send_advance(now, node, effects);
        }
        // Those left out are told at once; an invitation follows when they answer.
        let Role::Primary(primary) = &mut self.role else { return };
        let told = core::mem::take(&mut primary.membership.left_out);
        for node in told.into_iter().filter(|node| config.is_out(*node) && self.is_up(*node)) {
            effects.send(node, Peer::Invite { config: config.clone() });
        }
    }

    pub(super) fn send_advance(&mut self, now: Time, to: NodeId, effects: &mut Effects) {
        let (config, log_epoch, commit) = (self.meta.config.clone(), self.meta.log_epoch, self.log.commit());
        if let Role::Primary(primary) = &mut self.role
            && let Some(peer) = primary.peers.0.get_mut(&to)
        {
            peer.asked = now;
        }
        effects.send(to, Peer::Advance { config, log_epoch, commit, sent: now });
    }

    /// Asks those again who have a connection and have not said where they stand.
    pub(super) fn ask_unsynced(&mut self, now: Time, effects: &mut Effects) {
        let Role::Primary(primary) = &self.role else { return };
        if primary.is_silent() {
            return;
        }
        let silent = |peer: &PeerState| !peer.synced && now.since(peer.asked) >= ASK_AGAIN;
        let asked: Vec<NodeId> =
            primary.peers.0.iter().filter(|(_, peer)| silent(peer)).map(|(node, _)| *node).collect();
        for node in asked {
            if self.is_up(node) {
                self.send_advance(now, node, effects);
            }
        }
    }

    /// Sends what comes after `after` again. It is proposed in the epoch at work: nothing earlier is obeyed any more.
    pub(super) fn send_entries(&self, to: NodeId, after: Seq, effects: &mut Effects) {
        let (epoch, commit) = (self.meta.config.epoch, self.log.commit());
        for entry in self.log.after(after) {
            effects.send(to, Peer::Prepare { commit, entry: Entry { epoch, ..entry.clone() } });
        }
    }

    /// Renews the leases of those who answer (I8).
    pub(super) fn beat(&mut self, now: Time, effects: &mut Effects) {
        let (epoch, commit, healthy) = (self.meta.config.epoch, self.log.commit(), self.is_healthy(now));
        let Role::Primary(primary) = &mut self.role else { return };
        // I8: a primary whose device stands still goes silent, so that another one is elected.
        if now < primary.membership.beat_at || !healthy {
            return;
        }
        primary.membership.beat_at = now + BEAT_EVERY;
        self.renew_lone_lease(now, effects);
        let Role::Primary(primary) = &self.role else { return };
        if primary.is_silent() {
            return;
        }
        for (node, _) in primary.peers.0.iter().filter(|(_, peer)| peer.synced) {
            effects.send(*node, Peer::Beat { epoch, commit, sent: now });
        }
    }
}
