//! Following a primary: make its prepares durable, renew its lease, adopt its epochs, suspect it when it is silent.
//!
//! Invariants: nothing below the promise is obeyed (I2); an acknowledgement hangs on the write it speaks of (I3); a log is
//! replaced above the commit point only, and whole (I9); a lease is renewed only while the own device keeps up (I8).

use alloc::vec;
use alloc::vec::Vec;

use super::io::{Durable, Effects};
use super::{Replica, Role};
use crate::config::Config;
use crate::epoch;
use crate::ids::{Epoch, NodeId, Seq};
use crate::limits::{ELECTION_STAGGER, SILENCE, WINDOW_BYTES, WINDOW_ENTRIES};
use crate::message::Peer;
use crate::record::{Change, Entry, Record, Standing};
use crate::sabotage::{Invariant, breaks};
use crate::time::{Span, Time};

/// A member that does not lead.
#[derive(Debug)]
pub(super) struct Follower {
    /// When the primary was last heard of (or this role began).
    heard: Time,
    /// Whether the primary of the configuration was heard of in this boot.
    met: bool,
    /// Whether the own log is a prefix of the primary's: only then do its prepares and commit points mean anything here.
    in_step: bool,
    /// A reconciliation of which not all parts are here.
    incoming: Option<Incoming>,
    /// No election before this.
    not_before: Time,
}

#[derive(Debug)]
struct Incoming {
    epoch: Epoch,
    next_part: u32,
    entries: Vec<Entry>,
}

/// One part of a `Reconcile`.
#[derive(Debug)]
pub(super) struct Piece {
    pub(super) commit: Seq,
    pub(super) sent: Time,
    pub(super) part: u32,
    pub(super) last: bool,
    pub(super) entries: Vec<Entry>,
}

impl Follower {
    pub(super) fn new(now: Time) -> Self {
        Self { heard: now, met: false, in_step: false, incoming: None, not_before: now }
    }

    /// Whether the own log is a beginning of its primary's, and its commit points count here.
    pub(super) const fn is_in_step(&self) -> bool {
        self.in_step
    }

    /// No election of its own before `not_before`.
    pub(super) fn patient(now: Time, not_before: Time) -> Self {
        Self { not_before, ..Self::new(now) }
    }
}

impl Replica {
    /// Suspects the primary: its process is gone, it was silent too long, or it is this very replica, restarted (I6).
    pub(super) fn follower_tick(&mut self, now: Time, effects: &mut Effects) {
        if self.election_due().is_none_or(|due| now < due) {
            return;
        }
        if self.meta.config.primary == self.node && breaks(Invariant::I6) {
            return self.begin(now, self.meta.config.clone(), Span::ZERO, effects);
        }
        self.stand_for_election(now, effects);
    }

    /// When this follower stands for election if nothing more is heard.
    pub(super) fn election_due(&self) -> Option<Time> {
        let Role::Follower(follower) = &self.role else { return None };
        let config = &self.meta.config;
        if !config.electable.contains(&self.node) || !self.is_trusted() || self.is_stopping() {
            return None;
        }
        let suspected_at = if config.primary == self.node {
            follower.heard
        } else if self.is_refused(config.primary) {
            // A refused connection is only a hint (I8): the authority and the members' promises decide.
            follower.heard
        } else {
            follower.heard + SILENCE
        };
        let stagger = Span(ELECTION_STAGGER.0 * self.election_rank());
        Some((suspected_at + stagger).max(follower.not_before))
    }

    /// Members stand one after the other, so that the first is usually the only one.
    fn election_rank(&self) -> u64 {
        let config = &self.meta.config;
        let ahead = config.electable.iter().filter(|node| **node != config.primary).take_while(|n| **n != self.node);
        if config.primary == self.node { 0 } else { ahead.count() as u64 }
    }

    /// Whether the primary is at work as far as this replica can tell: then it helps nobody against it.
    pub(super) fn hears_primary(&self, now: Time) -> bool {
        let Role::Follower(follower) = &self.role else { return false };
        follower.met && self.is_up(self.meta.config.primary) && now < follower.heard + SILENCE
    }

    fn heard_primary(&mut self, now: Time) {
        if let Role::Follower(follower) = &mut self.role {
            follower.heard = now;
            follower.met = true;
        }
        if self.is_healthy(now) {
            self.granted.renew(self.meta.config.primary, now);
        }
    }

    /// The answer to an adopted epoch renews the lease: so it is given whatever the device does.
    fn adopted_from_primary(&mut self, now: Time) {
        self.heard_primary(now);
        self.granted.renew(self.meta.config.primary, now);
    }

    fn set_in_step(&mut self) {
        if let Role::Follower(follower) = &mut self.role {
            follower.in_step = true;
        }
    }

    /// Whether `from` speaks as the primary of the configuration at work; answers with a refusal when it is stale.
    fn obeys(&self, from: NodeId, said: Epoch, effects: &mut Effects) -> bool {
        if epoch::is_stale(said, self.meta.promised) {
            let config = Some(self.meta.config.clone());
            effects.send(from, Peer::Refused { promised: self.meta.promised, config });
            return false;
        }
        epoch::is_current(said, &self.meta.config) && from == self.meta.config.primary
    }

    pub(super) fn on_prepare(&mut self, now: Time, from: NodeId, commit: Seq, entry: Entry, effects: &mut Effects) {
        if !self.obeys(from, entry.epoch, effects) || !self.fits(&entry.change) {
            return;
        }
        match &self.role {
            Role::Follower(follower) if follower.in_step => {
                self.heard_primary(now);
                if entry.seq == self.log.last().next() {
                    self.write_entry(now, from, commit, entry, effects);
                }
                self.commit_to(commit.min(self.log.last()), effects);
            }
            Role::Candidate(_) => self.candidate_prepare(now, commit, entry, effects),
            _ => {}
        }
    }

    /// A change outside the segment, or of half blocks, is nobody's: a peer that sends one is not believed.
    pub(super) fn fits(&self, change: &Change) -> bool {
        let (block, count) = change.range();
        match change {
            Change::Write { blocks, .. } => blocks.is_well_formed() && !self.is_outside(block.0, count),
            Change::Zero { .. } => !self.is_outside(block.0, count),
            Change::Nothing => true,
        }
    }

    /// Appends an entry and acknowledges it once it is durable (I3).
    pub(super) fn write_entry(&mut self, now: Time, primary: NodeId, commit: Seq, entry: Entry, effects: &mut Effects) {
        let (epoch, durable) = (entry.epoch, entry.seq);
        self.log.append(entry.clone());
        self.writing_since.get_or_insert(now);
        effects
            .persist(vec![Record::Prepare { segment: self.segment, commit, entry }])
            .then_send(primary, Peer::PrepareAck { epoch, durable })
            .then_feed(Durable::Log { epoch, durable });
    }

    pub(super) fn on_beat(
        &mut self,
        now: Time,
        from: NodeId,
        said: Epoch,
        commit: Seq,
        sent: Time,
        effects: &mut Effects,
    ) {
        if !self.obeys(from, said, effects) {
            return;
        }
        let in_step = match &self.role {
            Role::Follower(follower) => follower.in_step,
            Role::Candidate(catch_up) if catch_up.is_streaming() => true,
            // Silence tells the primary that nothing of its stream arrives here.
            _ => return,
        };
        if let Role::Candidate(_) = &self.role {
            self.candidate_commit(commit, effects);
        } else if in_step {
            self.commit_to(commit.min(self.log.last()), effects);
        }
        self.heard_primary(now);
        // I8: a member whose device does not keep up does not say that all is well.
        if self.is_healthy(now) {
            let durable = if in_step { self.durable } else { Seq(0) };
            effects.send(from, Peer::BeatAck { epoch: said, sent, durable });
            self.repeat_caught_up(effects);
        }
    }

    /// As long as it is called a candidate, its word that it holds everything may have been lost.
    fn repeat_caught_up(&self, effects: &mut Effects) {
        let config = &self.meta.config;
        let (holds_all, copied) = match &self.role {
            Role::Follower(follower) => (follower.in_step && self.is_trusted(), 0),
            Role::Candidate(catch_up) => (catch_up.has_joined(), catch_up.progress().1),
            _ => (false, 0),
        };
        if holds_all && config.is_candidate(self.node) {
            let (epoch, durable) = (config.epoch, self.durable);
            effects.send(config.primary, Peer::CaughtUp { epoch, durable, copied });
        }
    }

    pub(super) fn on_seal(&mut self, now: Time, from: NodeId, wanted: Epoch, base: Epoch, effects: &mut Effects) {
        if epoch::is_outdated(base, &self.meta.config) || epoch::is_stale(wanted, self.meta.promised) {
            let config = Some(self.meta.config.clone());
            return effects.send(from, Peer::Refused { promised: self.meta.promised, config });
        }
        let leads = matches!(self.role, Role::Primary(_)) && self.is_healthy(now);
        if from != self.meta.config.primary && (leads || self.hears_primary(now)) {
            return effects.send(from, Peer::StillHeard { epoch: wanted });
        }
        if !self.is_trusted() {
            // Its log counts for nothing; who stands need not wait for it, and may ask it back as a candidate (I9).
            return effects.send(from, Peer::Held { epoch: wanted, standing: Some(self.meta.standing) });
        }
        if !epoch::may_promise(wanted, self.meta.promised, &self.meta.config) {
            return;
        }
        let lease_left = self.granted.left(Some(from), now);
        self.step_down(None, effects);
        if !matches!(self.role, Role::Electing(_)) {
            self.role = Role::Follower(Follower::new(now));
        }
        self.meta.promised = wanted;
        // I2: durable before anybody hears of it; what was prepared before is in the log the promise speaks of.
        effects.persist(vec![self.state_record()]).then_send(
            from,
            Peer::Promise {
                epoch: wanted,
                log_epoch: self.meta.log_epoch,
                last: self.log.last(),
                commit: self.log.commit(),
                lease_left,
            },
        );
    }

    pub(super) fn on_advance(
        &mut self,
        now: Time,
        from: NodeId,
        config: Config,
        log_epoch: Epoch,
        commit: Seq,
        sent: Time,
        effects: &mut Effects,
    ) {
        if !self.takes_config_from(from, &config, effects) {
            return;
        }
        let mut changed = config != self.meta.config;
        if self.keeps_its_log(&config, log_epoch) {
            let member = config.is_member(self.node);
            // What makes it one that may count has to be durable too (I10).
            changed |= !member;
            self.follow(now, config);
            if !epoch::log_is_behind(self.meta.log_epoch, log_epoch) {
                if member {
                    self.meta.standing = Standing::Member;
                }
                self.commit_to(commit.min(self.log.last()), effects);
                self.set_in_step();
            }
            self.adopted_from_primary(now);
        } else if config.is_candidate(self.node) {
            self.become_candidate(config, log_epoch);
        } else if config.is_member(self.node) {
            // I9: it lacks something and says so.
            self.learn(now, config, effects);
        } else {
            return self.learn(now, config, effects);
        }
        self.answer_adopted(from, sent, changed, effects);
        if changed {
            self.want_peers(effects);
        }
    }

    /// Whether the own log goes on counting in this configuration: a member's does; a candidate's does when it holds
    /// everything acknowledged, because nothing was since it was a member (I5), or because it has been caught up (I10).
    fn keeps_its_log(&self, config: &Config, common: Epoch) -> bool {
        let joining = matches!(self.meta.standing, Standing::Joining { .. });
        let caught_up = joining && epoch::is_same_log(self.meta.log_epoch, common);
        let holds_all = config.electable.contains(&self.node) || caught_up;
        self.is_trusted() && (config.is_member(self.node) || config.is_candidate(self.node) && holds_all)
    }

    /// Whether a configuration said by `from`, its primary, is to be taken over.
    fn takes_config_from(&self, from: NodeId, config: &Config, effects: &mut Effects) -> bool {
        if epoch::is_stale(config.epoch, self.meta.promised) {
            let known = Some(self.meta.config.clone());
            effects.send(from, Peer::Refused { promised: self.meta.promised, config: known });
            return false;
        }
        let newer = epoch::supersedes(config, &self.meta.config);
        let same = epoch::is_current(config.epoch, &self.meta.config);
        config.primary == from && config.primary != self.node && (newer || same)
    }

    /// Becomes (or stays) a follower in this configuration.
    fn follow(&mut self, now: Time, config: Config) {
        self.adopt_config(config);
        if let Role::Follower(follower) = &mut self.role {
            follower.in_step = false;
        } else {
            self.role = Role::Follower(Follower::new(now));
        }
    }

    /// Says where this replica stands; when its state changed, only once that is durable.
    fn answer_adopted(&mut self, to: NodeId, sent: Time, changed: bool, effects: &mut Effects) {
        let streaming = matches!(&self.role, Role::Candidate(catch_up) if catch_up.is_streaming());
        let trusted = self.is_trusted() && !matches!(self.role, Role::Candidate(_));
        let answer = Peer::Adopted {
            epoch: self.meta.config.epoch,
            // A copy in the making has no log that counts; one without a stream has none at all.
            log_epoch: if trusted { self.meta.log_epoch } else { Epoch(0) },
            last: if trusted || streaming { self.log.last() } else { Seq(0) },
            commit: self.log.commit(),
            sent,
        };
        // Even unchanged, it waits for what is on its way to the disk: "last" is said as durable.
        if changed || self.durable < self.log.last() {
            effects.persist(vec![self.state_record()]).then_send(to, answer);
        } else {
            effects.send(to, answer);
        }
    }

    pub(super) fn on_reconcile(
        &mut self,
        now: Time,
        from: NodeId,
        config: Config,
        piece: Piece,
        effects: &mut Effects,
    ) {
        let own_log = self.meta.log_epoch;
        if !self.takes_config_from(from, &config, effects) || !self.keeps_its_log(&config, own_log) {
            return;
        }
        self.follow(now, config);
        self.adopted_from_primary(now);
        let (last, commit, sent) = (piece.last, piece.commit, piece.sent);
        if !epoch::log_is_behind(self.meta.log_epoch, self.meta.config.epoch) {
            // Adopted before: this one was sent earlier and knows nothing of what was acknowledged since.
            self.set_in_step();
            return if last {
                self.answer_adopted(from, sent, true, effects);
            };
        }
        if !self.gather(piece) || !last {
            return;
        }
        let Role::Follower(follower) = &mut self.role else { return };
        let Some(incoming) = follower.incoming.take() else { return };
        // I9: it lacks what was committed; it says so by a log that ends too early and adopts nothing.
        if self.log.last() < commit {
            return self.answer_adopted(from, sent, true, effects);
        }
        self.replace_tail(commit, incoming.entries, effects);
        self.set_in_step();
        self.meta.log_epoch = self.meta.config.epoch;
        if self.meta.config.is_member(self.node) {
            self.meta.standing = Standing::Member;
        }
        let epoch = self.meta.config.epoch;
        let (log_epoch, last, commit) = (self.meta.log_epoch, self.log.last(), self.log.commit());
        let mut records = vec![Record::Truncate { segment: self.segment, above: commit }];
        records.extend(self.log.after(commit).map(|entry| Record::Prepare {
            segment: self.segment,
            commit,
            entry: entry.clone(),
        }));
        records.push(self.state_record());
        self.writing_since = Some(now);
        effects
            .persist(records)
            .then_send(from, Peer::Adopted { epoch, log_epoch, last, commit, sent })
            .then_feed(Durable::Log { epoch, durable: last });
        self.want_peers(effects);
    }

    /// Collects the parts of a reconciliation; `false` when this one does not continue the last.
    fn gather(&mut self, piece: Piece) -> bool {
        let epoch = self.meta.config.epoch;
        let Role::Follower(follower) = &mut self.role else { return false };
        if piece.part == 0 {
            follower.incoming = Some(Incoming { epoch, next_part: 0, entries: Vec::new() });
        }
        let Some(incoming) = &mut follower.incoming else { return false };
        let all = || incoming.entries.iter().chain(&piece.entries);
        let room = all().count() <= WINDOW_ENTRIES && all().map(|e| e.change.data_len()).sum::<u64>() <= WINDOW_BYTES;
        if incoming.epoch != epoch || incoming.next_part != piece.part || !room {
            follower.incoming = None;
            return false;
        }
        incoming.next_part += 1;
        incoming.entries.extend(piece.entries);
        true
    }

    /// The log above the commit point becomes the primary's.
    fn replace_tail(&mut self, commit: Seq, entries: Vec<Entry>, effects: &mut Effects) {
        self.commit_to(commit, effects);
        let own = self.log.commit();
        self.log.restart_at(own);
        self.durable = own;
        for entry in entries {
            // Contiguous or not at all: a gap is a mistake of the sender and ends the tail.
            if entry.seq == self.log.last().next() && self.fits(&entry.change) {
                self.log.append(entry);
            }
        }
    }

    pub(super) fn on_invite(&mut self, now: Time, from: NodeId, config: Config, effects: &mut Effects) {
        if epoch::is_stale(config.epoch, self.meta.promised) && epoch::supersedes(&self.meta.config, &config) {
            let known = Some(self.meta.config.clone());
            return effects.send(from, Peer::Refused { promised: self.meta.promised, config: known });
        }
        let epoch = config.epoch;
        self.learn(now, config, effects);
        // Whoever is about to go does not ask to be let in.
        if self.is_stopping() {
            return;
        }
        effects.send(from, Peer::Held { epoch, standing: Some(self.meta.standing) });
    }
}
