//! A segment without its data: what its replicas would do, by what they see of each other.
//!
//! Followed is what the production replica does: a primary that misses a member goes on without it after
//! `PREPARE_DEADLINE`; members that miss their primary stand for election after `SILENCE`, one after the other; a former
//! member that is connected again is invited first and brought up to date with what changed since (R5, R6); only after
//! the grace time leave to search is asked for, and asked again, until it is granted. Every change is proposed to the
//! production authority, which judges it.

use engine_core::config::Config;
use engine_core::ids::{NodeId, PermitId};
use engine_core::limits::{
    BEAT_EVERY, ELECTION_STAGGER, EXTENT_SIZE, PREPARE_DEADLINE, PROPOSAL_RETRY, SEAL_WAIT, SILENCE,
};
use engine_core::message::{LeaseAsk, PermitAsk, Proposal, ToAuthority};
use engine_core::time::{Span, Time};

use super::super::cluster::{float, whole};
use super::{DELAY, DISK, World, index};

/// Pause between asks for a permit, and after a denied proposal; as in the production replica.
const ASK_AGAIN: Span = Span::millis(1000);
/// A candidate that is out of reach for this long is given up; as in the production replica.
const CANDIDATE_SILENCE: Span = Span::seconds(10);

/// A segment; `care` only while something is wrong with it.
#[derive(Debug)]
pub(super) struct Segment {
    pub(super) config: Config,
    pub(super) counted: bool,
    stuck: bool,
    degraded: bool,
    care: Option<Box<Care>>,
}

/// What is remembered of a segment in trouble.
#[derive(Debug, Default)]
struct Care {
    look_at: Time,
    proposed: Option<Time>,
    not_before: Time,
    /// Until then a new primary makes the log common.
    begins: Time,
    stuck_since: Time,
    /// How long it did not serve.
    stuck_for: u64,
    /// Who was left out, and how long it had served then.
    left: Vec<(NodeId, u64)>,
    missing_since: Option<Time>,
    asked: Time,
    leased: Time,
    permit: Option<(PermitId, NodeId)>,
    /// To be made candidates.
    enlist: Vec<NodeId>,
    /// Being copied to.
    copies: Vec<NodeId>,
    /// Holds everything.
    done: Vec<NodeId>,
}

/// A copy under way.
#[derive(Debug)]
pub(super) struct Landing {
    segment: u32,
    from: NodeId,
    to: NodeId,
    bytes: u64,
}

impl Segment {
    pub(super) const fn new(config: Config, counted: bool) -> Self {
        Self { config, counted, stuck: false, degraded: false, care: None }
    }

    fn care(&mut self) -> &mut Care {
        self.care.get_or_insert_default()
    }
}

/// The first of two times.
fn earlier(one: Option<Time>, other: Option<Time>) -> Option<Time> {
    one.into_iter().chain(other).min()
}

impl World<'_> {
    /// Works out how the segment is, and does what its replicas would do now.
    pub(super) fn look(&mut self, at: u32) {
        self.judge(at);
        if self.segments[at as usize].care.is_none() {
            return;
        }
        let config = self.segments[at as usize].config.clone();
        let primary = &self.nodes[index(config.primary)];
        let next = if primary.up { self.as_primary(at, &config) } else { self.as_member(at, &config) };
        if let Some(next) = next {
            self.look_at(at, next);
        }
        let segment = &self.segments[at as usize];
        if !segment.stuck && !segment.degraded && self.is_settled(&segment.config) {
            self.segments[at as usize].care = None;
        }
    }

    fn look_at(&mut self, at: u32, when: Time) {
        let now = self.now;
        let care = self.segments[at as usize].care();
        let when = when.max(now + Span(1));
        if care.look_at <= now || when < care.look_at {
            care.look_at = when;
            self.at(when, super::Event::Look(at));
        }
    }

    /// All are in reach of the primary: nothing is going to happen.
    fn is_settled(&self, config: &Config) -> bool {
        let up = |node: &NodeId| self.is_linked(config.primary, *node) || *node == config.primary;
        config.members.iter().all(up) && config.missing() == 0
    }

    /// Whether it serves, and has all its copies.
    fn judge(&mut self, at: u32) {
        let segment = &self.segments[at as usize];
        let config = &segment.config;
        let begun = segment.care.as_ref().is_none_or(|care| care.begins <= self.now);
        let lead = config.primary;
        let serves = self.nodes[index(lead)].up
            && begun
            && config.may_commit()
            && config.members.iter().all(|node| *node == lead || self.is_linked(lead, *node));
        let absent = config.members.iter().any(|node| !self.nodes[index(*node)].up);
        let (stuck, degraded) = (!serves, config.missing() > 0 || absent);
        let (was_stuck, was_degraded) = (segment.stuck, segment.degraded);
        let cell = self.nodes[index(lead)].cell;
        let now = self.now;
        let segment = &mut self.segments[at as usize];
        (segment.stuck, segment.degraded) = (stuck, degraded);
        if stuck || degraded {
            let care = segment.care();
            match (was_stuck, stuck) {
                (false, true) => care.stuck_since = now,
                (true, false) => care.stuck_for += now.since(care.stuck_since).0,
                _ => {}
            }
        }
        if (was_stuck, was_degraded) == (stuck, degraded) {
            return;
        }
        if segment.counted {
            self.stuck = self.stuck + u64::from(stuck) - u64::from(was_stuck);
            self.degraded = self.degraded + u64::from(degraded) - u64::from(was_degraded);
            self.recorder.count(now, self.stuck, self.degraded);
        }
        let seat = &mut self.seats[usize::from(cell)];
        seat.trouble = seat.trouble + u64::from(stuck || degraded) - u64::from(was_stuck || was_degraded);
        seat.troubled_at = now;
    }

    /// How long it has served, beside an offset.
    fn served(&self, at: u32) -> u64 {
        let segment = &self.segments[at as usize];
        let Some(care) = &segment.care else { return self.now.0 };
        let open = if segment.stuck { self.now.since(care.stuck_since).0 } else { 0 };
        self.now.0 - care.stuck_for - open
    }

    /// What the primary does; when it has something to do again.
    fn as_primary(&mut self, at: u32, config: &Config) -> Option<Time> {
        let begins = self.segments[at as usize].care().begins;
        let (mut wanted, next) = self.in_reach(at, config);
        let mut next = earlier(next, (begins > self.now).then_some(begins));
        self.let_in(at, config, &mut wanted);
        if (&wanted.members, &wanted.candidates) != (&config.members, &config.candidates) {
            next = earlier(next, Some(self.propose(at, config.primary, wanted, false)));
        }
        self.copy_to_candidates(at, config);
        earlier(next, self.ask(at, config))
    }

    /// The configuration without whom it misses for too long and with whom it has back; when that may change.
    fn in_reach(&self, at: u32, config: &Config) -> (Config, Option<Time>) {
        let (now, lead) = (self.now, config.primary);
        let mut next = None;
        let mut wanted = Config { epoch: config.epoch.next(), ..config.clone() };
        for node in config.members.iter().chain(&config.candidates).filter(|node| **node != lead) {
            let link = self.linked_at(lead, *node);
            if link.is_some_and(|link| link <= now) {
                continue;
            }
            let patience = if config.is_member(*node) { PREPARE_DEADLINE } else { CANDIDATE_SILENCE };
            let lost = self.nodes[index(*node)].cut_at.max(self.nodes[index(lead)].cut_at) + patience;
            if lost <= now {
                wanted.members.retain(|member| member != node);
                wanted.candidates.retain(|candidate| candidate != node);
            } else {
                next = earlier(next, Some(lost));
            }
            next = earlier(next, link);
        }
        for node in config.holders().filter(|node| !config.is_member(*node) && !config.is_candidate(*node)) {
            let Some(link) = self.linked_at(lead, node) else { continue };
            // Invited, answered.
            let answered = link + DELAY + DELAY;
            if answered > now {
                next = earlier(next, Some(answered));
            } else if wanted.missing() > 0 && self.nodes[index(node)].holds.contains(&at) {
                wanted.candidates.push(node);
            }
        }
        (wanted, next)
    }

    /// Adds whom a permit is for, and makes members of those who hold everything.
    fn let_in(&mut self, at: u32, config: &Config, wanted: &mut Config) {
        let lead = config.primary;
        let care = self.segments[at as usize].care();
        let (enlist, done) = (care.enlist.clone(), care.done.clone());
        for node in enlist.into_iter().filter(|node| self.is_linked(lead, *node)) {
            if !wanted.is_candidate(node) && !wanted.is_member(node) {
                wanted.candidates.push(node);
            }
        }
        wanted.candidates.truncate(usize::from(config.copies));
        for node in done {
            if wanted.is_candidate(node) && wanted.missing() > 0 {
                wanted.candidates.retain(|candidate| *candidate != node);
                wanted.members.push(node);
            }
        }
        if wanted.missing() == 0 {
            // A catch-up was quicker than a copy: it wins.
            wanted.candidates.clear();
        }
    }

    /// What members do whose primary is out of reach; when the first of them stands for election.
    fn as_member(&mut self, at: u32, config: &Config) -> Option<Time> {
        let now = self.now;
        let silent = self.nodes[index(config.primary)].cut_at + SILENCE;
        let ranked = config.electable.iter().copied().filter(|node| *node != config.primary);
        let up: Vec<(u64, NodeId)> = (0..).zip(ranked).filter(|(_, node)| self.nodes[index(*node)].up).collect();
        let (rank, stands) = up.first().copied()?;
        // Whoever does not answer is waited for.
        let due = silent + Span(ELECTION_STAGGER.0 * rank) + SEAL_WAIT;
        let due = due.max(self.nodes[index(stands)].back_at + SEAL_WAIT);
        if due > now {
            return Some(due);
        }
        let members: Vec<NodeId> =
            up.iter().map(|(_, node)| *node).filter(|node| *node == stands || self.is_linked(stands, *node)).collect();
        let links = up.iter().filter_map(|(_, node)| self.linked_at(stands, *node)).filter(|link| *link > now).min();
        let wanted =
            Config { epoch: config.epoch.next(), primary: stands, members, candidates: Vec::new(), ..config.clone() };
        let again = self.propose(at, stands, wanted, true);
        Some(links.map_or(again, |link| link.min(again)))
    }

    /// Proposes it, or waits for what was proposed.
    fn propose(&mut self, at: u32, sender: NodeId, config: Config, promised: bool) -> Time {
        let now = self.now;
        let expected = self.segments[at as usize].config.epoch;
        let care = self.segments[at as usize].care();
        let again = care.proposed.map_or(Time(0), |at| at + PROPOSAL_RETRY).max(care.not_before);
        if again > now {
            return again;
        }
        care.proposed = Some(now);
        let proposal = ToAuthority::Proposals(vec![Proposal { expected, config, promised }]);
        let node = sender.0 - 1;
        self.nodes[usize::from(node)].gather.take(now, proposal);
        self.pump(node);
        now + PROPOSAL_RETRY
    }

    /// Asks of a primary: leave to search, and for a lease where it may not commit.
    fn ask(&mut self, at: u32, config: &Config) -> Option<Time> {
        let (now, grace) = (self.now, self.scenario.cluster.grace.0);
        let lead = config.primary;
        let hopeful = config.holders().any(|node| !config.is_member(node) && !config.is_candidate(node));
        let care = self.segments[at as usize].care();
        let mut next = None;
        let mut said = Vec::new();
        if config.missing() > config.candidates.len() + care.enlist.len() {
            let since = *care.missing_since.get_or_insert(now);
            let due = (since + if hopeful { grace } else { Span::ZERO }).max(care.asked + ASK_AGAIN);
            if care.permit.is_none() && due <= now {
                care.asked = now;
                let members = u8::try_from(config.members.len()).unwrap_or(u8::MAX);
                said.push(ToAuthority::PermitAsks(vec![PermitAsk {
                    segment: config.segment,
                    epoch: config.epoch,
                    members,
                }]));
            }
            next = Some(due.max(now + ASK_AGAIN));
        } else {
            care.missing_since = None;
        }
        if !config.may_commit() {
            if now >= care.leased + BEAT_EVERY {
                care.leased = now;
                let ask = LeaseAsk {
                    segment: config.segment,
                    incarnation: config.incarnation,
                    epoch: config.epoch,
                    sent: now,
                };
                said.push(ToAuthority::LeaseAsks(vec![ask]));
            }
            let beat = care.leased + BEAT_EVERY;
            next = Some(next.map_or(beat, |next: Time| next.min(beat)));
        }
        if !said.is_empty() {
            for message in said {
                self.nodes[index(lead)].gather.take(now, message);
            }
            self.pump(lead.0 - 1);
        }
        next
    }

    /// The authority has said how the segment is configured.
    pub(super) fn adopt(&mut self, at: u32, config: &Config) {
        if config.epoch <= self.segments[at as usize].config.epoch {
            return;
        }
        let (now, served, extents) = (self.now, self.served(at), u64::from(self.extents));
        let old = std::mem::replace(&mut self.segments[at as usize].config, config.clone());
        for node in config.members.iter().chain(&config.candidates) {
            let place = &mut self.nodes[index(*node)];
            if place.holds.insert(at) {
                // From now on its replica books what was promised (I13).
                place.book.take(now, config.segment);
                place.booked += extents;
            }
        }
        let moved = old.primary != config.primary;
        let in_trouble = self.segments[at as usize].care.is_some();
        if !in_trouble && config.missing() == 0 {
            return; // handed over
        }
        let care = self.segments[at as usize].care();
        care.proposed = None;
        for node in old.members.iter().filter(|node| !config.is_member(**node)) {
            care.left.retain(|(left, _)| left != node);
            care.left.push((*node, served));
        }
        care.enlist.retain(|node| !config.is_candidate(*node) && !config.is_member(*node));
        care.copies.retain(|node| config.is_candidate(*node) && !moved);
        care.done.retain(|node| config.is_candidate(*node) && !moved);
        if moved {
            care.begins = now + DELAY + DELAY + DISK;
            (care.permit, care.missing_since) = (None, None);
            care.enlist.clear();
        }
        let goes_on = |target: &NodeId| config.is_candidate(*target) || care.enlist.contains(target);
        if config.missing() == 0 || care.permit.is_some_and(|(_, target)| !goes_on(&target)) {
            care.permit = None;
        }
        self.look(at);
    }

    /// It was not allowed: not again at once.
    pub(super) fn denied(&mut self, at: u32) {
        let now = self.now;
        if let Some(care) = &mut self.segments[at as usize].care {
            // What it was granted may have ended: then it is asked for anew.
            (care.proposed, care.permit) = (None, None);
            care.enlist.clear();
            care.not_before = now + ASK_AGAIN;
            self.look_at(at, now + ASK_AGAIN);
        }
    }

    /// Permit and reservation: the copy may begin.
    pub(super) fn granted(&mut self, at: u32, by: u16, permit: PermitId, target: NodeId) {
        let segment = &mut self.segments[at as usize];
        if segment.config.primary.0 - 1 != by || segment.config.missing() == 0 {
            return;
        }
        let care = segment.care();
        care.permit = Some((permit, target));
        if !care.enlist.contains(&target) {
            care.enlist.push(target);
        }
        self.look(at);
    }

    fn copy_to_candidates(&mut self, at: u32, config: &Config) {
        for node in &config.candidates {
            let care = self.segments[at as usize].care();
            let known = care.copies.contains(node) || care.done.contains(node);
            if known || !self.is_linked(config.primary, *node) {
                continue;
            }
            let care = self.segments[at as usize].care();
            care.copies.push(*node);
            let left = care.left.iter().find(|(left, _)| left == node).map(|(_, served)| *served);
            let served = self.served(at);
            let bytes = left.map_or(u64::from(self.extents) * EXTENT_SIZE, |left| self.changed(served - left));
            if left.is_some() {
                self.recorder.figures.catch_ups += 1;
            } else {
                let missing = config.holders().filter(|node| !config.is_member(*node) && !config.is_candidate(*node));
                self.remirrored.push((at, missing.collect()));
            }
            let (source, target) = (index(config.primary), index(*node));
            self.nodes[source].sends += 1;
            self.nodes[target].takes += 1;
            // Those under way share a node's rate.
            let sharing = self.nodes[source].sends.max(self.nodes[target].takes);
            let seconds = float(bytes) * float(sharing) / float(self.scenario.network.copy_rate.0);
            let takes = Span(whole(seconds * 1e9) + 2 * DELAY.0 + DISK.0);
            self.copies += 1;
            let landing = Landing { segment: at, from: config.primary, to: *node, bytes };
            self.landings.insert(self.copies, landing);
            self.after(takes, super::Event::CopyDone(self.copies));
        }
    }

    /// Bytes of extents that changed while the segment served for so long.
    fn changed(&self, served: u64) -> u64 {
        let clients = &self.scenario.clients;
        let set = (f64::from(self.extents) * clients.working_set).max(1.0);
        let writes = clients.writes_per_second * float(served) / 1e9;
        whole((set * (1.0 - (-writes / set).exp())).ceil()) * EXTENT_SIZE
    }

    /// A copy has arrived, if both were in reach all the time.
    pub(super) fn copy_done(&mut self, number: u64) {
        let Some(landing) = self.landings.remove(&number) else { return };
        self.end_copy(&landing);
        let Landing { segment: at, to, bytes, .. } = landing;
        let Some(care) = self.segments[at as usize].care.as_mut().filter(|care| care.copies.contains(&to)) else {
            self.recorder.figures.copies_failed += 1;
            return;
        };
        care.copies.retain(|node| *node != to);
        care.done.push(to);
        care.left.retain(|(node, _)| *node != to);
        self.copied += bytes;
        self.nodes[index(to)].copied += bytes;
        self.look(at);
    }

    fn end_copy(&mut self, landing: &Landing) {
        self.nodes[index(landing.from)].sends -= 1;
        self.nodes[index(landing.to)].takes -= 1;
    }

    /// A node is out of reach: copies from it and to it have ended.
    pub(super) fn break_copies(&mut self, node: NodeId) {
        let ends = |_: &u64, landing: &mut Landing| landing.from == node || landing.to == node;
        let broken: Vec<Landing> = self.landings.extract_if(.., ends).map(|(_, landing)| landing).collect();
        for landing in broken {
            self.end_copy(&landing);
            self.recorder.figures.copies_failed += 1;
            if let Some(care) = &mut self.segments[landing.segment as usize].care {
                care.copies.retain(|to| *to != landing.to);
            }
        }
    }
}
