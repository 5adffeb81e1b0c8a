//! A primary's care for its set: who is lost, who comes back, who is new.
//!
//! Intuition: the primary keeps one wish, the next configuration, computed afresh from what it sees (`wanted_config`), and
//! at most one proposal of it at the authority. A lost member is left out (I5), a former one is invited back before
//! anybody is searched for (R5), a candidate that holds everything is let in (I10).

use alloc::collections::{BTreeMap, BTreeSet};
use alloc::vec;
use alloc::vec::Vec;

use super::flapping::Flaps;
use super::io::{Durable, Effect, Effects};
use super::peers::{Join, PeerState};
use super::primary::Primary;
use super::{Link, Replica, Role};
use crate::config::Config;
use crate::epoch;
use crate::ids::{Epoch, NodeId, PermitId, Seq};
use crate::limits::{BEAT_EVERY, INVITE_MAX, INVITE_MIN, PREPARE_DEADLINE, PROPOSAL_RETRY, TAKE_OVER_PAUSE};
use crate::message::{Decision, Peer, PermitAsk, Proposal, ToAuthority};
use crate::record::Standing;
use crate::remirror::backoff::Backoff;
use crate::time::{Span, Time};

/// A candidate that says nothing for this long is given up.
const CANDIDATE_SILENCE: Span = Span::seconds(10);
/// Pause between asks for a permit, and after a denied proposal.
pub(super) const ASK_AGAIN: Span = Span::millis(1000);

/// A primary's plans for its set.
#[derive(Debug)]
pub(super) struct Membership {
    pub(super) proposal: Option<(Config, Time)>,
    /// No proposal before this.
    not_before: Time,
    /// When the wish was computed last.
    considered: Time,
    /// A member promised a higher epoch that came to nothing: the next one has to be installed all the same.
    bump: bool,
    /// To be made candidates.
    enlist: Vec<NodeId>,
    invites: BTreeMap<NodeId, Invite>,
    flaps: Flaps,
    missing_since: Option<Time>,
    permit: Option<(PermitId, NodeId)>,
    asked_at: Option<Time>,
    pub(super) beat_at: Time,
    /// The epoch whose own record is not durable yet: until then nobody hears of it.
    pub(super) awaited: Option<Epoch>,
    /// Members and candidates of epochs before it.
    pub(super) left_out: BTreeSet<NodeId>,
}

#[derive(Debug)]
struct Invite {
    /// Not before: its connection has to hold for a while.
    from: Time,
    at: Time,
    backoff: Backoff,
}

impl Membership {
    pub(super) fn new(now: Time, epoch: Epoch) -> Self {
        Self {
            proposal: None,
            not_before: now,
            considered: Time(0),
            bump: false,
            enlist: Vec::new(),
            invites: BTreeMap::new(),
            flaps: Flaps::default(),
            missing_since: None,
            permit: None,
            asked_at: None,
            beat_at: now,
            awaited: Some(epoch),
            left_out: BTreeSet::new(),
        }
    }

    /// Whether a member was left out so shortly ago that the lead is not given to it for anybody's sake.
    pub(super) fn was_lost_lately(&self, node: NodeId, now: Time) -> bool {
        self.flaps.lost_within(TAKE_OVER_PAUSE, node, now)
    }

    /// Whether a former member has to be quiet for longer before it is let in again.
    fn is_early(&self, node: NodeId, now: Time) -> bool {
        let until = self.invites.get(&node).map_or(now + self.flaps.quiet(node, now), |invite| invite.from);
        now < until
    }
}

impl Replica {
    pub(super) fn primary_tick(&mut self, now: Time, effects: &mut Effects) {
        self.beat(now, effects);
        self.ask_unsynced(now, effects);
        self.invite_former(now, effects);
        self.ask_permit(now, effects);
        self.reconsider(now, effects);
        self.serve(now, effects);
    }

    /// When the next tick of a primary changes something if nothing happens before. Whatever waits for time in
    /// `primary_tick` has its line here; whatever waits for an input needs none (`wake::matters`).
    pub(super) fn primary_wakes(&self, primary: &Primary) -> Time {
        if primary.is_waited_for() {
            return Time(0);
        }
        let plans = &primary.membership;
        if primary.is_beginning() {
            return plans.beat_at;
        }
        let asks = |node, peer: &PeerState| !primary.is_silent() && !peer.synced && self.is_up(node);
        let unsynced = primary.peers.0.iter().filter(|(node, peer)| asks(**node, peer));
        let ask = unsynced.map(|(_, peer)| peer.asked + ASK_AGAIN).min();
        let invite = |node| plans.invites.get(&node).map_or(Time(0), |invite| invite.at);
        let invite = outsiders(&self.meta.config, self.node, &self.links).map(invite).min();
        let permit = plans.missing_since.filter(|_| primary.is_resolved() && plans.permit.is_none());
        let permit = permit.map(|since| {
            let pause = plans.asked_at.map_or(Time(0), |at| at + ASK_AGAIN);
            pause.max(since + self.patience_for_former())
        });
        let timers = [Some(plans.beat_at), ask, invite, permit, self.reconsiders_at(primary)];
        timers.into_iter().flatten().min().unwrap_or(plans.beat_at)
    }

    /// When time alone may change the wished configuration, or a proposal has to be repeated.
    fn reconsiders_at(&self, primary: &Primary) -> Option<Time> {
        let plans = &primary.membership;
        if let Some((_, sent)) = &plans.proposal {
            return Some(*sent + PROPOSAL_RETRY);
        }
        let changes = primary.peers.0.values().filter_map(|peer| match peer.join {
            None => peer.lost_at(),
            Some(_) => Some(peer.heard + CANDIDATE_SILENCE),
        });
        // What lies before the last time it was computed is in it already.
        let unfit = self.writing_since.map(|since| since + PREPARE_DEADLINE);
        changes.chain([plans.not_before]).chain(unfit).filter(|at| *at > plans.considered).min()
    }

    pub(super) fn primary_peer_up(&mut self, now: Time, node: NodeId, effects: &mut Effects) {
        self.unsync(node);
        let Role::Primary(primary) = &mut self.role else { return };
        if let Some(invite) = primary.membership.invites.get_mut(&node) {
            invite.from = now + primary.membership.flaps.quiet(node, now);
            invite.at = invite.from;
            invite.backoff.reset();
        }
        if primary.peers.0.contains_key(&node) {
            if !primary.is_silent() {
                self.send_advance(now, node, effects);
            }
        } else {
            self.invite_former(now, effects);
        }
    }

    pub(super) fn primary_peer_down(&mut self, now: Time, node: NodeId, effects: &mut Effects) {
        self.unsync(node);
        self.reconsider(now, effects);
    }

    /// What was sent on the old connection may be lost.
    fn unsync(&mut self, node: NodeId) {
        let Role::Primary(primary) = &mut self.role else { return };
        if let Some(peer) = primary.peers.0.get_mut(&node) {
            (peer.synced, peer.leaving) = (false, false);
            if peer.join == Some(Join::Streaming) {
                peer.join = Some(Join::Enlisting);
            }
        }
    }

    pub(super) fn on_adopted(
        &mut self,
        now: Time,
        from: NodeId,
        said: Epoch,
        log_epoch: Epoch,
        last: Seq,
        sent: Time,
        effects: &mut Effects,
    ) {
        let common = self.meta.log_epoch;
        let (commit, own_last) = (self.log.commit(), self.log.last());
        if !epoch::is_current(said, &self.meta.config) {
            return;
        }
        let Role::Primary(primary) = &mut self.role else { return };
        let Some(peer) = primary.peers.0.get_mut(&from) else { return };
        peer.knows = said;
        peer.heard = now;
        let candidate = peer.join.is_some();
        if candidate && (!epoch::names_a_log(log_epoch) || last < commit) {
            return self.stream_to(now, from, last, effects);
        }
        // Since it adopted this log it has acknowledged more than it has now: an older state of its device is back.
        let fell_back = peer.acked.is_some_and(|acked| epoch::log_is_behind(log_epoch, common) || last < acked);
        if fell_back && sent < peer.asked {
            // An answer to an earlier question, held up on its way: it says nothing of today.
            return;
        }
        if !epoch::names_a_log(log_epoch) || last < commit || fell_back {
            // I9: less than it had acknowledged. It leaves first and comes back by catch-up.
            peer.broken = true;
            return self.reconsider(now, effects);
        }
        primary.lease.renew(from, sent);
        if epoch::log_is_behind(log_epoch, common) || last > own_last {
            return self.send_reconcile(now, from, effects);
        }
        if peer.join == Some(Join::Streaming) && last.next() < peer.first {
            // Said before its stream began; it begins from there.
            return;
        }
        if candidate {
            // I10: it holds everything up to `last`, and nothing behind that is committed without it from here on.
            peer.join = Some(Join::Joining);
            peer.acked = peer.acked.max(Some(last));
        }
        if !peer.synced {
            peer.synced = true;
            peer.sent = own_last;
            peer.owes_since = (last < own_last).then_some(now);
            peer.acked = peer.acked.max(Some(last));
            self.send_entries(from, last, effects);
        }
        self.primary_advance(now, effects);
        if candidate {
            self.reconsider(now, effects);
        }
    }

    pub(super) fn on_caught_up(&mut self, now: Time, from: NodeId, said: Epoch, durable: Seq, effects: &mut Effects) {
        let of_another_log = epoch::log_is_behind(said, self.meta.log_epoch);
        let Role::Primary(primary) = &mut self.role else { return };
        let Some(peer) = primary.peers.0.get_mut(&from) else { return };
        // Said of an earlier stream: between that and this one it has missed something.
        let missed = durable.next() < peer.first;
        if peer.join == Some(Join::Streaming) && peer.synced && !missed && !of_another_log {
            // I10: from here on nothing is committed that it does not hold; only then is it proposed.
            peer.join = Some(Join::Joining);
            peer.acked = Some(durable);
            self.reconsider(now, effects);
        }
    }

    fn invite_former(&mut self, now: Time, effects: &mut Effects) {
        let config = &self.meta.config;
        let (own, links) = (self.node, &self.links);
        let Role::Primary(primary) = &mut self.role else { return };
        if primary.is_beginning() {
            return;
        }
        let Membership { invites, flaps, .. } = &mut primary.membership;
        invites.retain(|node, _| config.is_out(*node));
        for node in outsiders(config, own, links) {
            let invite = invites.entry(node).or_insert_with(|| {
                let seed = self.random.next_u64() ^ u64::from(node.0);
                let from = now + flaps.quiet(node, now);
                Invite { from, at: from, backoff: Backoff::new(INVITE_MIN, INVITE_MAX, seed) }
            });
            if invite.at <= now {
                invite.at = now + invite.backoff.pause();
                effects.send(node, Peer::Invite { config: config.clone() });
            }
        }
    }

    pub(super) fn on_held(
        &mut self,
        now: Time,
        from: NodeId,
        said: Epoch,
        standing: Option<Standing>,
        effects: &mut Effects,
    ) {
        let known = self.meta.config.holders().any(|node| node == from);
        let Role::Primary(primary) = &self.role else { return self.on_no_voter(now, from, said, standing, effects) };
        // Said when it was left out, not when it was asked back.
        let early = primary.membership.is_early(from, now);
        if known && standing.is_some() && !early {
            self.enlist(from);
            self.reconsider(now, effects);
        }
    }

    fn enlist(&mut self, node: NodeId) {
        let config = &self.meta.config;
        let room = config.searched() > 0;
        let Role::Primary(primary) = &mut self.role else { return };
        if room && !config.is_member(node) && !config.is_candidate(node) && !primary.membership.enlist.contains(&node) {
            primary.membership.enlist.push(node);
        }
    }

    /// How long to wait for somebody to come back: not at all where nobody is left who could.
    fn patience_for_former(&self) -> Span {
        let config = &self.meta.config;
        let hopeful = config.holders().any(|node| !config.is_member(node) && !config.is_candidate(node));
        if hopeful { self.grace } else { Span::ZERO }
    }

    /// Nobody came back within the grace time: ask for leave to search (DESIGN 7).
    fn ask_permit(&mut self, now: Time, effects: &mut Effects) {
        let config = &self.meta.config;
        let (segment, epoch) = (self.segment, config.epoch);
        let members = u8::try_from(config.members.len()).unwrap_or(u8::MAX);
        let searching = config.searched() > 0;
        let grace = self.patience_for_former();
        let Role::Primary(primary) = &mut self.role else { return };
        let plans = &mut primary.membership;
        if !searching {
            plans.missing_since = None;
            return;
        }
        let missing = *plans.missing_since.get_or_insert(now);
        let asked_lately = plans.asked_at.is_some_and(|at| now.since(at) < ASK_AGAIN);
        if primary.resolved && now.since(missing) >= grace && !asked_lately && plans.permit.is_none() {
            plans.asked_at = Some(now);
            effects.push(Effect::Authority(ToAuthority::PermitAsks(vec![PermitAsk { segment, epoch, members }])));
        }
    }

    pub(super) fn on_granted(&mut self, now: Time, permit: PermitId, target: NodeId, effects: &mut Effects) {
        let config = &self.meta.config;
        let wanted = config.searched() > 0 && !config.is_member(target);
        if let Role::Primary(primary) = &mut self.role
            && wanted
        {
            primary.membership.permit = Some((permit, target));
            self.enlist(target);
            return self.reconsider(now, effects);
        }
        effects.push(Effect::Authority(ToAuthority::PermitEnd { segment: self.segment, permit }));
    }

    /// A permit whose target is no candidate (any more) is given back.
    fn end_unused_permit(&mut self, effects: &mut Effects) {
        let Role::Primary(primary) = &mut self.role else { return };
        let plans = &mut primary.membership;
        if let Some((permit, target)) = plans.permit
            && !self.meta.config.is_candidate(target)
            && !plans.enlist.contains(&target)
        {
            plans.permit = None;
            effects.push(Effect::Authority(ToAuthority::PermitEnd { segment: self.segment, permit }));
        }
    }

    /// A member promised a higher epoch to somebody whose election came to nothing.
    pub(super) fn on_member_sealed(&mut self, now: Time, from: NodeId, effects: &mut Effects) {
        if let Role::Primary(primary) = &mut self.role
            && let Some(peer) = primary.peers.0.get_mut(&from)
        {
            primary.membership.bump = true;
            // What it was sent since it promised, it has refused.
            (peer.sealed, peer.synced) = (true, false);
        }
        self.reconsider(now, effects);
    }

    /// Proposes the wanted configuration, if there is one and none is under way; repeats one that got no answer.
    pub(super) fn reconsider(&mut self, now: Time, effects: &mut Effects) {
        let Role::Primary(primary) = &self.role else { return };
        if primary.is_beginning() {
            return;
        }
        // A hand-over that got no answer is thought over anew.
        let settled = |(config, _): &(Config, Time)| config.primary == self.node;
        let thinks = !primary.membership.proposal.as_ref().is_some_and(settled);
        let wanted = if thinks { self.wanted_config(now) } else { None };
        // Being heard again is no input that matters by itself.
        self.look |= self.doubts_another(now);
        let (own, expected) = (self.node, self.meta.config.epoch);
        let same = Config { epoch: expected.next(), ..self.meta.config.clone() };
        let Role::Primary(primary) = &mut self.role else { return };
        let plans = &mut primary.membership;
        let config = match &plans.proposal {
            Some((_, sent)) if now.since(*sent) < PROPOSAL_RETRY => return,
            Some((config, _)) if config.primary == own => config.clone(),
            // Whether it was handed over is not known. Whatever is proposed now, the answer tells.
            Some(_) => wanted.unwrap_or_else(|| same.clone()),
            None if now < plans.not_before => return,
            None => {
                plans.considered = now;
                let Some(config) = wanted else { return };
                config
            }
        };
        plans.proposal = Some((config.clone(), now));
        let proposal = Proposal { expected, config, promised: false };
        effects.push(Effect::Authority(ToAuthority::Proposals(vec![proposal])));
    }

    /// Whether a member that is not lost (yet) has been silent for longer than a beat and its answer take.
    fn doubts_another(&self, now: Time) -> bool {
        let Role::Primary(primary) = &self.role else { return false };
        let silent = |peer: &PeerState| now.since(peer.heard) >= Span(2 * BEAT_EVERY.0);
        primary
            .peers
            .0
            .iter()
            .any(|(node, peer)| peer.join.is_none() && silent(peer) && !peer.is_lost(self.is_refused(*node), now))
    }

    /// The configuration this primary would like instead of the present one, if any.
    fn wanted_config(&self, now: Time) -> Option<Config> {
        let Role::Primary(primary) = &self.role else { return None };
        let config = &self.meta.config;
        // While another one may be just as silent, it is not they who are lost, perhaps, but this primary that is cut
        // off: whom it left out now could not help the other to go on without it.
        let unsure = self.doubts_another(now);
        let lost = |node: &NodeId| {
            primary.peers.0.get(node).is_some_and(|peer| {
                let sure = peer.broken || self.is_refused(*node);
                peer.is_lost(self.is_refused(*node), now) && (sure || !unsure)
            })
        };
        let broken = |node: &NodeId| self.is_up(*node) && primary.peers.0.get(node).is_some_and(|peer| peer.broken);
        let members: Vec<NodeId> = config.members.iter().copied().filter(|node| !lost(node)).collect();
        if members.len() == config.members.len()
            && let Some(config) = self.wanted_hand_over(now)
        {
            return Some(config);
        }
        let mut members = self.without_leaving(members);
        // A member that lacks something becomes whole again as a candidate (I9).
        let mut candidates: Vec<NodeId> = config.members.iter().copied().filter(broken).collect();
        let copies = usize::from(config.copies);
        let known = |node: &NodeId| primary.peers.0.get(node);
        let joins = |node: &&NodeId| known(node).is_some_and(|peer| peer.join == Some(Join::Joining));
        let stays = |node: &&NodeId| known(node).is_none_or(|peer| !peer.leaving);
        let holds_all = config.candidates.iter().filter(joins).filter(stays).filter(|_| primary.resolved);
        let free = copies.saturating_sub(members.len());
        members.extend(holds_all.take(free));
        let alive = |node: &&NodeId| known(node).is_some_and(|peer| now.since(peer.heard) < CANDIDATE_SILENCE);
        let waiting: Vec<NodeId> = config
            .candidates
            .iter()
            .filter(|node| !members.contains(node))
            .filter(alive)
            .filter(stays)
            .copied()
            .collect();
        let free = copies.saturating_sub(members.len() + candidates.len());
        candidates.extend(waiting.into_iter().take(free));
        let room = copies.saturating_sub(members.len() + candidates.len());
        let taken = |node: &NodeId| members.contains(node) || candidates.contains(node);
        let new: Vec<NodeId> =
            primary.membership.enlist.iter().copied().filter(|node| !taken(node)).take(room).collect();
        candidates.extend(new);
        let changes = members != config.members || candidates != config.candidates || primary.membership.bump;
        changes.then(|| Config { epoch: config.epoch.next(), members, candidates, ..config.clone() })
    }

    pub(super) fn primary_decided(&mut self, now: Time, decision: Decision, effects: &mut Effects) {
        let known = match &decision {
            Decision::Installed(config) | Decision::Conflict(config) => !epoch::supersedes(config, &self.meta.config),
            Decision::Denied(..) | Decision::Unknown(_) => false,
        };
        let Role::Primary(primary) = &mut self.role else { return };
        if known {
            // The answer to a proposal that was sent twice.
            return;
        }
        let proposed = primary.membership.proposal.take().map(|(config, _)| config);
        let is_own =
            |config: &Config| config.primary == self.node && proposed.as_ref().is_some_and(|p| is_like(p, config));
        // The authority itself took somebody out who is no member: the same primary, members and log go on. An election
        // of this very node would have needed its promise, and it would not lead any more.
        let now_at = &self.meta.config;
        let amended = |config: &Config| {
            epoch::is_current(config.epoch, &Config { epoch: now_at.epoch.next(), ..now_at.clone() })
                && config.primary == self.node
                && config.members == now_at.members
        };
        match decision {
            // A conflict with the own proposal: the first answer was lost.
            Decision::Installed(config) | Decision::Conflict(config) if is_own(&config) || amended(&config) => {
                self.go_on(now, config, effects);
            }
            Decision::Installed(config) | Decision::Conflict(config) => self.succeeded(now, config, effects),
            Decision::Denied(config, _) => {
                primary.wish = None;
                primary.membership.not_before = now + ASK_AGAIN;
                primary.membership.enlist.clear();
                self.end_unused_permit(effects);
                self.doubt_the_lost(now);
                self.learn(now, config, effects);
            }
            Decision::Unknown(_) => primary.membership.not_before = now + ASK_AGAIN,
        }
    }

    /// Members that may not be left out are asked anew where they stand.
    fn doubt_the_lost(&mut self, now: Time) {
        let refused: Vec<NodeId> = self.meta.config.members.iter().copied().filter(|n| self.is_refused(*n)).collect();
        let Role::Primary(primary) = &mut self.role else { return };
        for (node, peer) in &mut primary.peers.0 {
            if peer.join.is_none() && peer.is_lost(refused.contains(node), now) {
                (peer.synced, peer.broken) = (false, false);
            }
        }
    }

    /// Remembers who is left out without having asked for it.
    fn note_flaps(&mut self, now: Time, next: &Config) {
        let lost: Vec<NodeId> = self.meta.config.members.iter().copied().filter(|node| next.is_out(*node)).collect();
        let Role::Primary(primary) = &mut self.role else { return };
        for node in lost {
            if primary.peers.0.get(&node).is_some_and(|peer| !peer.leaving) {
                primary.membership.flaps.note(node, now);
            }
        }
    }

    /// The same primary and log in the next epoch.
    fn go_on(&mut self, now: Time, config: Config, effects: &mut Effects) {
        let before = self.meta.config.clone();
        self.note_flaps(now, &config);
        self.close_older(config.generation, effects);
        self.adopt_config(config);
        let epoch = self.meta.config.epoch;
        let Role::Primary(primary) = &mut self.role else { return };
        primary.peers.follow(&self.meta.config, self.node, now);
        let plans = &mut primary.membership;
        plans.bump = false;
        let config = &self.meta.config;
        plans.enlist.retain(|node| !config.is_member(*node) && !config.is_candidate(*node));
        plans.awaited = Some(epoch);
        self.end_unused_permit(effects);
        // I2: nothing is acknowledged in the new epoch before it is durable here (`on_begun`).
        effects.persist(vec![self.state_record()]).then_feed(Durable::Begun(epoch));
        let before = before.members.into_iter().chain(before.candidates);
        if let Role::Primary(primary) = &mut self.role {
            primary.membership.left_out.extend(before);
        }
        self.writing_since.get_or_insert(now);
        self.want_peers(effects);
    }
}

/// Holders that are out and can be reached: those to invite.
fn outsiders<'a>(
    config: &'a Config,
    own: NodeId,
    links: &'a BTreeMap<NodeId, Link>,
) -> impl Iterator<Item = NodeId> + 'a {
    let up = move |node: &NodeId| links.get(node) == Some(&Link::Up);
    config.holders().filter(move |node| *node != own && config.is_out(*node) && up(node))
}

/// Whether the authority has installed what was proposed; the rest of a configuration is filled in by it.
fn is_like(proposed: &Config, installed: &Config) -> bool {
    epoch::is_current(proposed.epoch, installed)
        && proposed.members == installed.members
        && proposed.candidates == installed.candidates
}
