//! Giving the lead away on purpose, and leaving a set on purpose: nobody waits for a deadline that need not pass.
//!
//! Intuition: a hand-over is an ordinary proposal of the primary whose next configuration names another member. The
//! primary serves on as if nothing were until it hears that the authority has installed it; in that very step it leads
//! no more, sends whoever waits to its successor, and tells the successor to begin. So a hand-over that gets no answer
//! costs nothing, and the visible gap is one reconciliation among nodes that are all there. A member or candidate that
//! stops says so (`Leaving`) and is left out while it still acknowledges everything.
//!
//! Why no promises of the other members are needed (I9). Only this primary orders in its epoch `e`. The successor is a
//! member of `e` and has adopted this primary's log, so it holds every write acknowledged in `e` or before, durably
//! (I3), up to the moment this primary steps down: an acknowledgement needs the successor, and the successor, once it
//! has begun `e + 1`, acknowledges nothing of `e` (I2). Its log is a beginning of this primary's, hence comparable with
//! every other member's, and becomes the common one by reconciliation. That this primary goes on in `e` until it hears
//! the answer is what any primary does that has not yet heard of the next configuration; what fences it is the
//! promise of any one member of `e`. If it dies before it can say `Begin`, the others stand for `e + 1`, learn by the
//! conflict that it exists, and the successor begins it, with a full lease wait.
//!
//! Why the successor need not wait for leases (I7). This primary alone held leases of the members for `e`; it answers no
//! read after the step in which it sends `Begin`. What it had itself still to wait for, of primaries before it, it
//! passes on. That holds only for the configuration directly after its own: nobody led in between.

use alloc::vec::Vec;

use super::io::{ClientRef, Effects};
use super::{Asked, Replica, Role};
use crate::config::Config;
use crate::epoch;
use crate::ids::{Epoch, Generation, NodeId};
use crate::limits::{BEAT_EVERY, EARLY_MAX, EARLY_WAIT, LEAVING_EVERY, TAKE_OVER_PAUSE, WISH_FOR};
use crate::message::{Outcome, Peer, Refusal, Request};
use crate::random::mix;
use crate::time::{Span, Time};

/// The node is stopping on purpose.
#[derive(Debug)]
pub(super) struct Stopping {
    /// When the primary was last told.
    told: Option<Time>,
    /// It has said that it goes on as it is: waiting longer changes nothing.
    excused: bool,
}

impl Stopping {
    /// Whether the primary has to be told (again).
    fn is_due(&self, now: Time) -> bool {
        !self.excused && self.told.is_none_or(|told| now.since(told) >= LEAVING_EVERY)
    }
}

/// A wish for another primary.
#[derive(Debug)]
pub(super) struct Wish {
    to: NodeId,
    until: Time,
}

/// A request of a client that knows a newer configuration than this replica does.
#[derive(Debug)]
pub(super) struct Early {
    since: Time,
    asked: Asked,
}

impl Replica {
    /// Leads on until the lead is handed over, counts on until it is left out.
    pub(super) fn on_stopping(&mut self, now: Time, effects: &mut Effects) {
        if self.stopping.is_none() {
            self.stopping = Some(Stopping { told: None, excused: false });
            self.stopping_tick(now, effects);
        }
    }

    /// Whether the node may end without anybody having to notice by a deadline what could be said before.
    #[must_use]
    pub fn may_stop(&self) -> bool {
        let Some(stopping) = &self.stopping else { return false };
        let config = &self.meta.config;
        match &self.role {
            Role::Stale | Role::Failed => true,
            Role::Primary(primary) => {
                let stays =
                    |node: &&NodeId| **node != self.node && primary.peers.0.get(node).is_none_or(|peer| !peer.leaving);
                config.members.iter().find(stays).is_none()
            }
            Role::Electing(election) => !election.is_proposed(),
            Role::Follower(_) | Role::Candidate(_) => {
                let counts = config.is_member(self.node) || config.is_candidate(self.node);
                !counts || stopping.excused || !self.is_up(config.primary)
            }
        }
    }

    /// The node ends now, whatever has become of its leaving: whoever asks is sent elsewhere, and what is ordered is
    /// left to be decided by the members.
    pub(super) fn on_stopped(&mut self, effects: &mut Effects) {
        self.refuse_early(effects);
        if let Role::Primary(_) = self.role {
            self.step_down(None, effects);
            self.role = Role::Stale;
        }
    }

    pub(super) const fn is_stopping(&self) -> bool {
        self.stopping.is_some()
    }

    /// When a stop, a wish or an early request has to be looked at again.
    pub(super) fn handover_wakes(&self) -> Option<Time> {
        let early = self.early.front().map(|early| early.since + EARLY_WAIT);
        let config = &self.meta.config;
        let counts = config.is_member(self.node) || config.is_candidate(self.node);
        let stopping = self.stopping.as_ref();
        let other = match &self.role {
            // Whether somebody can take over may change with every word of a member.
            Role::Primary(primary) => (stopping.is_some() || primary.wish.is_some()).then_some(Time(0)),
            Role::Follower(_) | Role::Candidate(_) if counts => stopping
                .filter(|stopping| !stopping.excused)
                .map(|stopping| stopping.told.map_or(Time(0), |told| told + LEAVING_EVERY)),
            _ => None,
        };
        early.into_iter().chain(other).min()
    }

    /// Moves a stop along: a primary looks for its successor, others say that they leave until they are heard.
    pub(super) fn stopping_tick(&mut self, now: Time, effects: &mut Effects) {
        let config = &self.meta.config;
        let (primary, epoch) = (config.primary, config.epoch);
        let counts = config.is_member(self.node) || config.is_candidate(self.node);
        let Some(stopping) = &mut self.stopping else { return };
        match &self.role {
            Role::Primary(_) => self.reconsider(now, effects),
            Role::Follower(_) | Role::Candidate(_) if counts && stopping.is_due(now) => {
                stopping.told = Some(now);
                effects.send(primary, Peer::Leaving { epoch });
            }
            _ => {}
        }
    }

    /// A member or candidate stops on purpose: it is left out before it goes, if enough are left without it.
    pub(super) fn on_leaving(&mut self, now: Time, from: NodeId, said: Epoch, effects: &mut Effects) {
        let current = epoch::is_current(said, &self.meta.config);
        let Role::Primary(primary) = &mut self.role else { return };
        let resolved = primary.is_resolved();
        let Some(peer) = primary.peers.0.get_mut(&from).filter(|_| current) else { return };
        peer.leaving = true;
        if !resolved {
            // First this epoch has to be begun, with its help; it says it again.
            return;
        }
        self.reconsider(now, effects);
        if self.without_leaving(self.meta.config.members.clone()).contains(&from) {
            effects.send(from, Peer::Farewell { epoch: said });
        }
    }

    pub(super) fn on_farewell(&mut self, from: NodeId, said: Epoch) {
        let heard = from == self.meta.config.primary && epoch::is_current(said, &self.meta.config);
        if let Some(stopping) = &mut self.stopping
            && heard
        {
            stopping.excused = true;
        }
    }

    /// These members without those who are leaving, as far as enough to commit are left (I5); the primary stays.
    pub(super) fn without_leaving(&self, mut members: Vec<NodeId>) -> Vec<NodeId> {
        let config = &self.meta.config;
        let Role::Primary(primary) = &self.role else { return members };
        for (node, _) in primary.peers.0.iter().filter(|(_, peer)| peer.leaving) {
            leave_out(&mut members, *node, config);
        }
        members
    }

    /// The next configuration with another primary, if one is wished for and possible now.
    pub(super) fn wanted_hand_over(&self, now: Time) -> Option<Config> {
        let Role::Primary(primary) = &self.role else { return None };
        let config = &self.meta.config;
        // A primary that has not made its log the common one has no successor that is known to hold it (I9).
        if !primary.is_resolved() || primary.membership.awaited.is_some() || !config.may_commit() {
            return None;
        }
        let mut members = config.members.clone();
        // I8: whoever cannot write goes as one who stops does, instead of falling silent first.
        let successor = if self.is_stopping() || !self.is_healthy(now) {
            let successor = self.successor(now)?;
            members = self.without_leaving(members);
            leave_out(&mut members, self.node, config);
            successor
        } else {
            let wish = primary.wish.as_ref().filter(|wish| now < wish.until)?;
            self.may_succeed(wish.to, now).then_some(wish.to)?
        };
        let candidates = config.candidates.iter().copied().filter(|node| !members.contains(node)).collect();
        Some(Config { epoch: config.epoch.next(), primary: successor, members, candidates, ..config.clone() })
    }

    /// The authority would like `to` to lead: it leads less than its share.
    pub(super) fn on_hand_over(&mut self, now: Time, said: Epoch, to: NodeId, effects: &mut Effects) {
        if epoch::is_current(said, &self.meta.config) {
            self.wish_for(now, to, effects);
        }
    }

    /// A client that reaches this member and not its primary, as it says: the primary knows whether that is so.
    pub(super) fn on_locate(
        &self,
        now: Time,
        client: ClientRef,
        request: &Request,
        unreachable: bool,
        effects: &mut Effects,
    ) {
        let Config { generation, primary, .. } = self.meta.config;
        // One attachment is the only reader and writer: what another client reaches is of no interest (I2).
        if unreachable && request.generation == generation && self.hears_primary(now) {
            effects.send(primary, Peer::TakeOver { generation });
        }
        self.reply(client, request, Outcome::Located(self.meta.config.clone()), effects);
    }

    /// The attached client reaches that member and, as it says, not this primary.
    pub(super) fn on_take_over(&mut self, now: Time, from: NodeId, said: Generation, effects: &mut Effects) {
        let Role::Primary(primary) = &self.role else { return };
        // Whose requests are here reaches this primary: it waits for something else. And nobody calls the lead to and
        // fro with the weather of a network.
        let waits = primary.is_waited_for() || primary.has_ordered();
        if said == self.meta.config.generation && !waits && !primary.is_new(TAKE_OVER_PAUSE, now) {
            self.wish_for(now, from, effects);
        }
    }

    fn wish_for(&mut self, now: Time, to: NodeId, effects: &mut Effects) {
        let Role::Primary(primary) = &mut self.role else { return };
        // Who was lost a moment ago may have said so before, and may be lost again: its link is no better than this one's.
        if primary.membership.was_lost_lately(to, now) {
            return;
        }
        primary.wish = Some(Wish { to, until: now + WISH_FOR });
        self.reconsider(now, effects);
    }

    /// A wish that could not be granted in time is forgotten.
    pub(super) fn forget_wish(&mut self, now: Time) {
        if let Role::Primary(primary) = &mut self.role
            && primary.wish.as_ref().is_some_and(|wish| now >= wish.until)
        {
            primary.wish = None;
        }
    }

    /// Whether this member is at work in this epoch, as far as was heard just now.
    fn may_succeed(&self, node: NodeId, now: Time) -> bool {
        let Role::Primary(primary) = &self.role else { return false };
        let fit = |peer: &super::peers::PeerState| {
            let fresh = now.since(peer.heard) < Span(BEAT_EVERY.0 * 2);
            // It has heard that it is a member, and was not left out meanwhile.
            let knows = epoch::is_current(peer.knows, &self.meta.config);
            let sound = peer.join.is_none() && peer.synced && !peer.broken && !peer.sealed;
            sound && knows && fresh && !peer.leaving
        };
        self.is_up(node) && self.meta.config.is_member(node) && primary.peers.0.get(&node).is_some_and(fit)
    }

    /// The member that lacks least; among equals each segment has its own, so that a node's lead goes to many.
    fn successor(&self, now: Time) -> Option<NodeId> {
        let Role::Primary(primary) = &self.role else { return None };
        let segment = self.segment.to_u64();
        let rank = |node: &NodeId| {
            let acked = primary.peers.0.get(node).and_then(|peer| peer.acked);
            (acked, mix(segment ^ u64::from(node.0)))
        };
        self.meta.config.members.iter().copied().filter(|node| self.may_succeed(*node, now)).max_by_key(rank)
    }

    /// Another configuration than the one this primary goes on with has been installed. Directly after its own, it is
    /// this primary who can tell the next one to begin.
    pub(super) fn succeeded(&mut self, now: Time, config: Config, effects: &mut Effects) {
        let Role::Primary(primary) = &self.role else { return };
        let directly = epoch::is_next(&config, &self.meta.config) && config.primary != self.node;
        let lease_left = primary.lease_left(now);
        // Answers whoever waits and forgets every lease: nothing is read here any more (I7).
        self.learn(now, config.clone(), effects);
        if directly {
            effects.send(config.primary, Peer::Begin { config, lease_left });
        }
        if let Some(stopping) = &mut self.stopping {
            // In the same breath: a successor that stops too must not hand the lead back.
            stopping.told = None;
            self.stopping_tick(now, effects);
        }
    }

    /// A client that knows more than this replica may be right: its new primary begins in a moment.
    pub(super) fn keep_early(&mut self, now: Time, client: ClientRef, request: Request, effects: &mut Effects) {
        let ahead = epoch::is_ahead(request.epoch, &self.meta.config);
        let may_lead = matches!(self.role, Role::Follower(_) | Role::Electing(_)) && !self.is_stopping();
        if ahead && may_lead && self.early.len() < EARLY_MAX {
            self.early.push_back(Early { since: now, asked: Asked { client, request } });
        } else {
            self.refuse(client, &request, effects);
        }
    }

    /// It has begun: what came early is asked now.
    pub(super) fn serve_early(&mut self, now: Time, effects: &mut Effects) {
        for Early { asked: Asked { client, request }, .. } in core::mem::take(&mut self.early) {
            self.primary_request(now, client, request, effects);
        }
    }

    pub(super) fn early_tick(&mut self, now: Time, effects: &mut Effects) {
        while self.early.front().is_some_and(|early| now.since(early.since) >= EARLY_WAIT) {
            let Some(Early { asked, .. }) = self.early.pop_front() else { return };
            self.refuse(asked.client, &asked.request, effects);
        }
    }

    pub(super) fn forget_early(&mut self, client: ClientRef) {
        self.early.retain(|early| early.asked.client != client);
    }

    fn refuse_early(&mut self, effects: &mut Effects) {
        for Early { asked, .. } in core::mem::take(&mut self.early) {
            self.refuse(asked.client, &asked.request, effects);
        }
    }

    fn refuse(&self, client: ClientRef, request: &Request, effects: &mut Effects) {
        let known = Some(self.meta.config.clone());
        self.reply(client, request, Outcome::Refused(Refusal::NotPrimary(known)), effects);
    }
}

/// Leaves a node out, if that leaves enough members.
fn leave_out(members: &mut Vec<NodeId>, node: NodeId, config: &Config) {
    if members.len() > usize::from(config.min_copies) {
        members.retain(|member| *member != node);
    }
}

#[cfg(test)]
mod tests;
