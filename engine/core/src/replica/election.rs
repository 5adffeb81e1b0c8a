//! Standing for election: durable promises from the members, then one compare-and-swap at the authority (I1, I9).
//!
//! Whoever runs the election need not win it: the member with the best tail becomes primary, so nothing has to be
//! fetched before the log is common again.

use alloc::collections::{BTreeMap, BTreeSet};
use alloc::vec;
use alloc::vec::Vec;

use super::follower::Follower;
use super::io::{Durable, Effect, Effects};
use super::{Replica, Role};
use crate::config::Config;
use crate::epoch;
use crate::ids::{Epoch, NodeId, Seq};
use crate::limits::{LEASE, PROPOSAL_RETRY, SEAL_PATIENCE, SEAL_WAIT, SILENCE};
use crate::message::{Decision, Peer, Proposal, ToAuthority};
use crate::record::Standing;
use crate::time::{Span, Time};

/// An election this member runs.
#[derive(Debug)]
pub(super) struct Election {
    epoch: Epoch,
    began: Time,
    sealed: Time,
    promises: BTreeMap<NodeId, Promised>,
    /// Electable by the configuration, and not to be trusted by their own word (I9).
    no_voters: BTreeSet<NodeId>,
    proposed: Option<Time>,
}

impl Election {
    /// Whether the authority has been asked.
    pub(super) const fn is_proposed(&self) -> bool {
        self.proposed.is_some()
    }
}

/// What a member said with its promise.
#[derive(Debug, Clone, Copy)]
pub(super) struct Promised {
    pub(super) log_epoch: Epoch,
    pub(super) last: Seq,
    pub(super) lease_left: Span,
}

/// How long after an election that came to nothing before the next one.
const PAUSE: Span = Span::millis(100);

impl Replica {
    pub(super) fn stand_for_election(&mut self, now: Time, effects: &mut Effects) {
        let wanted = epoch::higher(self.meta.promised, self.meta.config.epoch.next());
        // A promise above the next epoch was given for a configuration this replica never heard of: the authority's
        // answer to a proposal brings it.
        self.role = Role::Electing(Election {
            epoch: wanted,
            began: now,
            sealed: now,
            promises: BTreeMap::new(),
            no_voters: BTreeSet::new(),
            proposed: None,
        });
        self.meta.promised = wanted;
        effects.persist(vec![self.state_record()]).then_feed(Durable::Promise(wanted));
        for node in self.voters() {
            self.send_seal(node, wanted, effects);
        }
    }

    fn voters(&self) -> Vec<NodeId> {
        self.meta.config.electable.iter().copied().filter(|node| *node != self.node).collect()
    }

    fn send_seal(&self, to: NodeId, wanted: Epoch, effects: &mut Effects) {
        effects.send(to, Peer::Seal { epoch: wanted, from: self.meta.config.epoch });
    }

    pub(super) fn election_peer_up(&self, node: NodeId, effects: &mut Effects) {
        let Role::Electing(election) = &self.role else { return };
        if election.proposed.is_none() && self.meta.config.electable.contains(&node) {
            self.send_seal(node, election.epoch, effects);
        }
    }

    pub(super) fn on_own_promise(&mut self, now: Time, promised: Epoch, effects: &mut Effects) {
        let lease_left = self.granted.left(None, now);
        let own = Promised { log_epoch: self.meta.log_epoch, last: self.log.last(), lease_left };
        self.on_promise(now, self.node, promised, own, effects);
    }

    pub(super) fn on_promise(
        &mut self,
        now: Time,
        from: NodeId,
        promised: Epoch,
        promise: Promised,
        effects: &mut Effects,
    ) {
        let Role::Electing(election) = &mut self.role else { return };
        if election.epoch == promised && election.proposed.is_none() && self.meta.config.electable.contains(&from) {
            election.promises.insert(from, promise);
            self.election_tick(now, effects);
        }
    }

    /// A member that came back with less than it acknowledged has no voice; it becomes whole again as a candidate, even
    /// where too few are left without it: nobody else can let it go (I9).
    pub(super) fn on_no_voter(
        &mut self,
        now: Time,
        from: NodeId,
        wanted: Epoch,
        standing: Option<Standing>,
        effects: &mut Effects,
    ) {
        let Role::Electing(election) = &mut self.role else { return };
        let sound = matches!(standing, None | Some(Standing::Member | Standing::Joining { .. }));
        if election.epoch == wanted && election.proposed.is_none() && !sound {
            election.no_voters.insert(from);
            self.election_tick(now, effects);
        }
    }

    pub(super) fn on_still_heard(&mut self, now: Time, wanted: Epoch) {
        let Role::Electing(election) = &self.role else { return };
        if election.epoch == wanted && election.proposed.is_none() {
            self.give_up_election(now, PAUSE);
        }
    }

    fn give_up_election(&mut self, now: Time, pause: Span) {
        self.role = Role::Follower(Follower::patient(now, now + pause));
    }

    pub(super) fn election_tick(&mut self, now: Time, effects: &mut Effects) {
        let Role::Electing(election) = &self.role else { return };
        if let Some(proposed) = election.proposed {
            // The authority may be away: begin anew, with what the members say by then.
            if now >= proposed + PROPOSAL_RETRY {
                self.stand_for_election(now, effects);
            }
            return;
        }
        let waited = now.since(election.began);
        if election.promises.contains_key(&self.node) && waited >= self.patience(election) {
            return self.propose_election(now, effects);
        }
        self.repeat_seals(now, effects);
    }

    /// When the next tick of an election changes something.
    pub(super) fn election_wakes(&self, election: &Election) -> Time {
        if let Some(proposed) = election.proposed {
            return proposed + PROPOSAL_RETRY;
        }
        let seal = election.sealed + PAUSE;
        let promised = election.promises.contains_key(&self.node);
        if promised { seal.min(election.began + self.patience(election)) } else { seal }
    }

    /// How long to wait for those who have not promised: not at all for a process that is gone, a little for a host
    /// that does not answer, longer for one that is there, because leaving it out costs a catch-up. The primary whose
    /// silence is the reason for all this has had its time already, even if its connection stands.
    fn patience(&self, election: &Election) -> Span {
        let answered = |node: &NodeId| election.promises.contains_key(node) || election.no_voters.contains(node);
        let missing = || self.meta.config.electable.iter().filter(|node| !answered(node));
        let enough = election.promises.len() >= usize::from(self.meta.config.min_copies);
        if missing().count() == 0 {
            Span::ZERO
        } else if !enough {
            // Fewer than may commit are proposed late only: the others may be on their way back.
            SILENCE
        } else if missing().all(|node| self.is_refused(*node)) {
            Span::ZERO
        } else if missing().any(|node| *node != self.meta.config.primary && self.may_be_there(*node)) {
            SEAL_PATIENCE
        } else {
            SEAL_WAIT
        }
    }

    fn may_be_there(&self, node: NodeId) -> bool {
        self.is_up(node) || !self.links.contains_key(&node)
    }

    /// A seal may have come before its replica existed, or be lost with a connection.
    fn repeat_seals(&mut self, now: Time, effects: &mut Effects) {
        let voters = self.voters();
        let Role::Electing(election) = &mut self.role else { return };
        if now.since(election.sealed) < PAUSE {
            return;
        }
        election.sealed = now;
        let wanted = election.epoch;
        let silent: Vec<NodeId> = voters.into_iter().filter(|node| !election.promises.contains_key(node)).collect();
        for node in silent {
            self.send_seal(node, wanted, effects);
        }
    }

    fn propose_election(&mut self, now: Time, effects: &mut Effects) {
        let Role::Electing(election) = &mut self.role else { return };
        let promises = &election.promises;
        // I9: the tail with the highest (epoch, sequence); among equals whoever ran, to save a message.
        let rank =
            |node: NodeId| promises.get(&node).map(|p| (epoch::tail_rank(p.log_epoch, p.last), node == self.node));
        let members: Vec<NodeId> =
            self.meta.config.electable.iter().copied().filter(|node| promises.contains_key(node)).collect();
        let Some(primary) = members.iter().copied().max_by_key(|node| rank(*node)) else { return };
        let old = &self.meta.config;
        let mut candidates: Vec<NodeId> =
            old.candidates.iter().copied().filter(|node| !members.contains(node)).collect();
        let room = usize::from(old.copies).saturating_sub(members.len() + candidates.len());
        let back = election.no_voters.iter().copied().filter(|node| !members.contains(node));
        let back: Vec<NodeId> = back.filter(|node| !candidates.contains(node)).take(room).collect();
        candidates.extend(back);
        let config = Config { epoch: old.epoch.next(), primary, candidates, members, ..old.clone() };
        election.proposed = Some(now);
        let proposal = Proposal { expected: old.epoch, config, promised: true };
        effects.push(Effect::Authority(ToAuthority::Proposals(vec![proposal])));
    }

    pub(super) fn election_decided(&mut self, now: Time, decision: Decision, effects: &mut Effects) {
        let Role::Electing(election) = &self.role else { return };
        match decision {
            Decision::Installed(config) if epoch::supersedes(&config, &self.meta.config) => {
                // Which of them an earlier primary needs is not known here: the longest rest counts (I7).
                let lease_left = election.promises.values().map(|p| p.lease_left).max().unwrap_or(LEASE);
                // Below min_copies a primary that has not promised may have none of theirs, but the authority's: asked for
                // before this was installed.
                let old = &self.meta.config;
                let told =
                    epoch::is_next(&config, old) && (old.may_commit() || election.promises.contains_key(&old.primary));
                let lease_left = if told { lease_left } else { lease_left.max(LEASE) };
                if config.primary == self.node {
                    return self.begin(now, config, lease_left, effects);
                }
                effects.send(config.primary, Peer::Begin { config: config.clone(), lease_left });
                self.give_up_election(now, Span::ZERO);
                self.learn(now, config, effects);
            }
            Decision::Installed(_) | Decision::Unknown(_) => self.give_up_election(now, SILENCE),
            Decision::Conflict(config) => {
                self.give_up_election(now, PAUSE);
                self.learn(now, config, effects);
            }
            Decision::Denied(config, _) => {
                self.give_up_election(now, Span(PAUSE.0 * 5));
                self.learn(now, config, effects);
            }
        }
    }

    /// Somebody else ran the election and this member has the best tail.
    pub(super) fn on_begin(&mut self, now: Time, config: Config, lease_left: Span, effects: &mut Effects) {
        let names_me = config.primary == self.node && config.is_member(self.node);
        if names_me && self.is_trusted() && epoch::supersedes(&config, &self.meta.config) {
            if let Role::Primary(_) = self.role {
                self.step_down(Some(&config), effects);
            }
            self.begin(now, config, lease_left, effects);
        }
    }

    /// A member or a primary refused: it promised more, or knows a later configuration.
    pub(super) fn on_refused(
        &mut self,
        now: Time,
        from: NodeId,
        promised: Epoch,
        config: Option<Config>,
        effects: &mut Effects,
    ) {
        if let Some(config) = config.filter(|config| epoch::supersedes(config, &self.meta.config)) {
            return self.learn(now, config, effects);
        }
        match &self.role {
            Role::Electing(election) if election.proposed.is_none() && epoch::is_stale(election.epoch, promised) => {
                // It promised an epoch that came to nothing; the next election asks for that one.
                self.meta.promised = epoch::higher(self.meta.promised, promised);
                self.give_up_election(now, PAUSE);
            }
            Role::Primary(_) if epoch::is_stale(self.meta.config.epoch, promised) => {
                self.on_member_sealed(now, from, effects);
            }
            _ => {}
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::ids::{Generation, Incarnation, SegmentId, VolumeId};
    use crate::record::{Meta, Standing};
    use crate::replica::io::Input;

    const FIRST: NodeId = NodeId(1);
    const OWN: NodeId = NodeId(2);
    const THIRD: NodeId = NodeId(3);

    /// The second of three members, its peers connected, its primary never heard of.
    fn member() -> Replica {
        let segment = SegmentId { volume: VolumeId(1), index: 0 };
        let all = vec![FIRST, OWN, THIRD];
        let config = Config {
            segment,
            incarnation: Incarnation(1),
            epoch: Epoch(4),
            primary: FIRST,
            members: all.clone(),
            candidates: vec![],
            electable: all,
            former: vec![],
            generation: Generation(1),
            copies: 3,
            min_copies: 2,
            extents: 512,
        };
        let meta = Meta { promised: Epoch(4), log_epoch: Epoch(4), config, standing: Standing::Member };
        let mut replica = Replica::create(OWN, segment, meta, Span::seconds(1), Time(0), 1);
        for node in [FIRST, THIRD] {
            replica.handle(Time(0), Input::PeerUp(node), &mut Effects::new());
        }
        replica
    }

    /// Whether the member proposes, when everybody but `silent` has promised and it has waited so long for that one.
    fn proposes_without(silent: NodeId, waited: Span) -> bool {
        let mut replica = member();
        let stood = Time(0) + SILENCE;
        let mut effects = Effects::new();
        replica.handle(stood, Input::Tick, &mut effects);
        replica.handle(stood, Input::Durable(Durable::Promise(Epoch(5))), &mut effects);
        let promise = Peer::Promise {
            epoch: Epoch(5),
            log_epoch: Epoch(4),
            last: Seq(0),
            commit: Seq(0),
            lease_left: Span::ZERO,
        };
        let from = if silent == FIRST { THIRD } else { FIRST };
        replica.handle(stood, Input::Peer { from, message: promise }, &mut effects);
        replica.handle(stood + waited, Input::Tick, &mut effects);
        effects.drain().any(|effect| matches!(effect, Effect::Authority(ToAuthority::Proposals(_))))
    }

    #[test]
    fn a_connected_member_is_waited_for_longer_than_the_primary_that_fell_silent() {
        assert!(!proposes_without(FIRST, Span::ZERO));
        assert!(proposes_without(FIRST, SEAL_WAIT), "it was given its time before the election");
        assert!(!proposes_without(THIRD, SEAL_WAIT));
        assert!(proposes_without(THIRD, SEAL_PATIENCE));
    }
}
