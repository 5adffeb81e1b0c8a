//! The breaker: many nodes that vanish at once mean the network, not the disks (R5).
//!
//! Intuition: one lost node is re-mirrored; a lost zone is waited for. Who is lost is counted within a window, per zone and
//! in the whole cluster. Too many: *open*, nothing is searched for, everybody only reconnects. Once the lost set has not
//! changed for a time: *half-open*, a few re-mirrors at a time. Nobody lost any more, or a few copies made while nobody
//! else was lost: *closed*.
//!
//! Invariants: while it is open, held, or has not seen yet who is there, nothing is granted (I15). What counts is who is
//! lost and still holds something, so whatever is back or re-mirrored keeps nothing open. A change of the lost set
//! begins the wait anew. The laws with their reasons: docs/decisions/0019-breaker.md.

use alloc::collections::{BTreeMap, BTreeSet};
use alloc::format;
use alloc::string::{String, ToString};
use alloc::vec::Vec;

use crate::ids::NodeId;
use crate::limits::{
    BREAKER_CALM, BREAKER_CLUSTER_PER_MILLE, BREAKER_NODES_MIN, BREAKER_SETTLE, BREAKER_TRIAL_COPIES, BREAKER_WINDOW,
    BREAKER_ZONE_PER_MILLE, BREAKER_ZONE_WHOLE_MIN, PERMITS_PER_ZONE, PERMITS_PER_ZONE_HALF_OPEN,
};
use crate::sabotage::{Invariant, breaks};
use crate::time::{Span, Time};

/// A node as the breaker sees it.
#[derive(Debug, Clone, Copy)]
pub struct Seen<'a> {
    /// The node.
    pub node: NodeId,
    /// Its failure domain.
    pub zone: &'a str,
    /// It holds something of a segment, and is out of touch, or a segment goes on without it.
    pub is_lost: bool,
    /// It is in touch all the same.
    pub is_up: bool,
}

#[derive(Debug, Clone)]
struct Lost {
    zone: String,
    since: Time,
    /// Not waited out yet: it counts against the thresholds.
    counts: bool,
    is_up: bool,
}

/// Why it opened.
#[derive(Debug, Clone, PartialEq, Eq)]
struct Storm {
    lost: usize,
    known: usize,
    /// All of one zone, if that is what it was.
    zone: Option<String>,
    within: Span,
}

#[derive(Debug, Clone)]
enum State {
    /// Permits are granted within their caps.
    Closed,
    /// None is granted.
    Open { since: Time, storm: Storm },
    /// A few are. So many copies were made since.
    HalfOpen { since: Time, storm: Storm, copies: u32 },
}

/// In which state it is, for people and programs.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Position {
    /// It has not seen yet who is there.
    Starting,
    /// Permits are granted within their caps.
    Closed,
    /// None is granted.
    Open,
    /// A few are, the most endangered first.
    HalfOpen,
    /// A person said that none is to be granted.
    Held,
}

impl Position {
    /// Its name in the API.
    #[must_use]
    pub const fn name(self) -> &'static str {
        match self {
            Self::Starting => "starting",
            Self::Closed => "closed",
            Self::Open => "open",
            Self::HalfOpen => "half_open",
            Self::Held => "held",
        }
    }
}

/// The breaker of one cell.
#[derive(Debug, Clone)]
pub struct Breaker {
    /// How long the lost set has to be the same.
    stable: Span,
    /// When it began to look.
    begun: Option<Time>,
    held: bool,
    state: State,
    lost: BTreeMap<NodeId, Lost>,
    /// When the lost set was another one last.
    changed: Time,
}

impl Breaker {
    /// A breaker that has seen nothing yet.
    #[must_use]
    pub const fn new(now: Time, stable: Span) -> Self {
        Self { stable, begun: None, held: false, state: State::Closed, lost: BTreeMap::new(), changed: now }
    }

    /// Looks at all nodes that are to be counted on; says in words what changed about it, if anything did.
    pub fn observe<'a>(&mut self, now: Time, nodes: impl Iterator<Item = Seen<'a>>) -> Option<String> {
        self.begun.get_or_insert(now);
        let mut known: BTreeMap<&str, usize> = BTreeMap::new();
        let mut back: BTreeSet<NodeId> = self.lost.keys().copied().collect();
        let (mut newly, mut moved) = (false, false);
        for Seen { node, zone, is_lost, is_up } in nodes {
            *known.entry(zone).or_default() += 1;
            if !is_lost {
                continue;
            }
            back.remove(&node);
            let lost = self.lost.entry(node).or_insert_with(|| {
                newly = true;
                Lost { zone: zone.to_string(), since: now, counts: true, is_up }
            });
            // Who comes and goes and is not taken up by anybody is not settled, either.
            moved |= core::mem::replace(&mut lost.is_up, is_up) != is_up;
        }
        for node in &back {
            self.lost.remove(node);
        }
        if newly || moved || !back.is_empty() {
            self.changed = now;
        }
        let before = self.position(now);
        self.judge(now, &known, newly);
        let after = self.position(now);
        (before != after).then(|| self.why(now).unwrap_or_else(|| "re-mirroring goes on as usual".to_string()))
    }

    fn judge(&mut self, now: Time, known: &BTreeMap<&str, usize>, newly: bool) {
        match &self.state {
            State::Closed => {
                if let Some(storm) = self.storm(now, known) {
                    self.state = State::Open { since: now, storm };
                }
            }
            State::Open { since, storm } => {
                let (since, storm) = (*since, storm.clone());
                let quiet = now.since(self.changed);
                let few = self.lost.is_empty() || (self.is_calm(known) && quiet >= self.stable.min(BREAKER_CALM));
                if few {
                    self.close();
                } else if quiet >= self.stable {
                    self.state = State::HalfOpen { since: now, storm, copies: 0 };
                } else if let Some(worse) = self.storm(now, known).filter(|worse| worse.lost > storm.lost) {
                    self.state = State::Open { since, storm: worse };
                }
            }
            // Somebody else vanishes while a few copies are tried: it is not over.
            State::HalfOpen { since, storm, .. } if newly => {
                self.state = State::Open { since: *since, storm: storm.clone() };
            }
            State::HalfOpen { copies, .. } => {
                if self.lost.is_empty() || *copies >= BREAKER_TRIAL_COPIES {
                    self.close();
                }
            }
        }
    }

    fn close(&mut self) {
        self.state = State::Closed;
        // Who is lost by now was waited for: only what is lost from here on is news.
        self.lost.values_mut().for_each(|lost| lost.counts = false);
    }

    /// Whether those who were lost within the window are too many for chance.
    fn storm(&self, now: Time, known: &BTreeMap<&str, usize>) -> Option<Storm> {
        let lately = |lost: &&Lost| lost.counts && now.since(lost.since) < BREAKER_WINDOW;
        self.correlated(known, lately)
    }

    /// Whether those who are lost still would not open it, had they been lost together.
    fn is_calm(&self, known: &BTreeMap<&str, usize>) -> bool {
        self.correlated(known, |_| true).is_none()
    }

    fn correlated(&self, known: &BTreeMap<&str, usize>, counts: impl Fn(&&Lost) -> bool) -> Option<Storm> {
        let mut zones: BTreeMap<&str, Vec<Time>> = BTreeMap::new();
        for lost in self.lost.values().filter(|lost| counts(lost)) {
            zones.entry(&lost.zone).or_default().push(lost.since);
        }
        // The zone says more than the cluster, where both do.
        let one = zones.iter().find_map(|(zone, times)| {
            let known = known.get(zone).copied().unwrap_or(0);
            let whole = times.len() >= known && times.len() >= BREAKER_ZONE_WHOLE_MIN;
            let many = times.len() >= threshold(known, BREAKER_ZONE_PER_MILLE);
            (whole || many).then(|| storm(times, known, Some(zone)))
        });
        let only = zones.len() == 1;
        let all: Vec<Time> = zones.values().flatten().copied().collect();
        let total: usize = known.values().sum();
        let many = all.len() >= threshold(total, BREAKER_CLUSTER_PER_MILLE);
        if only && one.is_some() || !many { one } else { Some(storm(&all, total, None)) }
    }

    /// A copy under a permit became a member.
    pub const fn copied(&mut self) {
        if let State::HalfOpen { copies, .. } = &mut self.state {
            *copies = copies.saturating_add(1);
        }
    }

    /// How many re-mirrors may run at once into one zone; 0: nothing is granted at all.
    #[must_use]
    pub fn allows(&self, now: Time) -> usize {
        if breaks(Invariant::Breaker) {
            return PERMITS_PER_ZONE;
        }
        match self.position(now) {
            Position::Starting | Position::Open | Position::Held => 0,
            Position::HalfOpen => PERMITS_PER_ZONE_HALF_OPEN,
            Position::Closed => PERMITS_PER_ZONE,
        }
    }

    /// Its state.
    #[must_use]
    pub fn position(&self, now: Time) -> Position {
        match self.state {
            _ if self.held => Position::Held,
            State::Closed if self.begun.is_none_or(|begun| now.since(begun) < BREAKER_SETTLE) => Position::Starting,
            State::Closed => Position::Closed,
            State::Open { .. } => Position::Open,
            State::HalfOpen { .. } => Position::HalfOpen,
        }
    }

    /// Since when it has not been closed.
    #[must_use]
    pub const fn since(&self) -> Option<Time> {
        match &self.state {
            State::Closed => None,
            State::Open { since, .. } | State::HalfOpen { since, .. } => Some(*since),
        }
    }

    /// Who is lost.
    #[must_use]
    pub fn lost(&self) -> Vec<NodeId> {
        self.lost.keys().copied().collect()
    }

    /// Why it is not closed, and what will change that; nothing where it is.
    #[must_use]
    pub fn why(&self, now: Time) -> Option<String> {
        let storm = |since: &Time, storm: &Storm| {
            let Storm { lost, known, zone, within } = storm;
            let place = zone.as_ref().map_or_else(|| "the cluster".to_string(), |zone| format!("zone {zone}"));
            let within = (within.as_millis().div_ceil(1000)).max(1);
            format!("since {} s, {lost} of {known} nodes of {place} lost within {within} s", seconds(now.since(*since)))
        };
        let gone = self.lost.len();
        let under = match &self.state {
            State::Closed => None,
            State::Open { since, storm: why } => {
                let quiet = now.since(self.changed);
                let left = Span(self.stable.0.saturating_sub(quiet.0));
                Some(format!(
                    "breaker open {}; {gone} lost now, half-open in {} s if nobody else comes or goes",
                    storm(since, why),
                    left.as_millis().div_ceil(1000)
                ))
            }
            State::HalfOpen { since, storm: why, copies } => Some(format!(
                "breaker half-open {}; {gone} lost now, {PERMITS_PER_ZONE_HALF_OPEN} copies at a time into one zone, closed \
                 after {} more or when nobody is lost",
                storm(since, why),
                BREAKER_TRIAL_COPIES.saturating_sub(*copies)
            )),
        };
        if self.held {
            let beside = under.map_or_else(String::new, |under| format!("; without that: {under}"));
            return Some(format!("breaker held by an operator: nothing is re-mirrored until it is reset{beside}"));
        }
        let starting = || {
            let left = self.begun.map_or(BREAKER_SETTLE, |begun| Span(BREAKER_SETTLE.0 - now.since(begun).0));
            let left = left.as_millis().div_ceil(1000);
            format!("the authority has just started: nothing is re-mirrored until it knows who is there, in {left} s")
        };
        under.or_else(|| (self.position(now) == Position::Starting).then(starting))
    }

    /// A person says that nothing is to be granted until [`Breaker::reset`].
    pub const fn hold(&mut self) {
        self.held = true;
    }

    /// Whether a person holds it.
    #[must_use]
    pub const fn is_held(&self) -> bool {
        self.held
    }

    /// It judges for itself again.
    pub const fn reset(&mut self) {
        self.held = false;
    }

    /// A person does not want to wait until it is half-open. Only an open one can be.
    pub fn half_open(&mut self, now: Time) -> bool {
        let State::Open { storm, .. } = &self.state else { return false };
        self.held = false;
        self.state = State::HalfOpen { since: now, storm: storm.clone(), copies: 0 };
        true
    }

    /// A person says that who is lost now is lost, and is to be re-mirrored at full pace.
    pub fn force_closed(&mut self) {
        self.held = false;
        self.close();
    }
}

fn storm(times: &[Time], known: usize, zone: Option<&str>) -> Storm {
    let (first, last) = (times.iter().min().copied(), times.iter().max().copied());
    let within = first.zip(last).map_or(Span::ZERO, |(first, last)| last.since(first));
    Storm { lost: times.len(), known, zone: zone.map(ToString::to_string), within }
}

/// How many of `known` are too many.
fn threshold(known: usize, per_mille: usize) -> usize {
    (known * per_mille).div_ceil(1000).max(BREAKER_NODES_MIN)
}

const fn seconds(span: Span) -> u64 {
    span.as_millis() / 1000
}

#[cfg(test)]
mod tests {
    #![allow(clippy::unwrap_used)]
    use super::*;

    const STABLE: Span = Span::seconds(600);

    /// Nodes n1 to n`count` in zones a, b, c by turns.
    struct Cells {
        breaker: Breaker,
        count: u16,
        away: BTreeSet<u16>,
        now: Time,
    }

    impl Cells {
        fn new(count: u16) -> Self {
            let mut cells = Self { breaker: Breaker::new(Time(0), STABLE), count, away: BTreeSet::new(), now: Time(0) };
            cells.pass(10);
            assert_eq!(cells.position(), Position::Closed);
            cells
        }

        fn look(&mut self) {
            let zones = ["c", "a", "b"];
            let seen = (1..=self.count).map(|id| {
                let is_lost = self.away.contains(&id);
                Seen { node: NodeId(id), zone: zones[usize::from(id) % 3], is_lost, is_up: !is_lost }
            });
            self.breaker.observe(self.now, seen);
        }

        fn pass(&mut self, seconds: u64) {
            for _ in 0..seconds {
                self.now = self.now + Span::seconds(1);
                self.look();
            }
        }

        fn lose(&mut self, nodes: impl IntoIterator<Item = u16>) {
            self.away.extend(nodes);
            self.look();
        }

        fn position(&self) -> Position {
            self.breaker.position(self.now)
        }
    }

    #[test]
    fn few_are_chance_and_many_at_once_are_not() {
        // Nodes, the lost ones, whether that opens it.
        let zone_of_six = [1, 4];
        let cases: [(u16, &[u16], bool); 8] = [
            (3, &[1], false),
            (3, &[1, 2], false),
            (6, &zone_of_six, true), // all of a zone
            (6, &[1, 2], false),     // of two zones
            (9, &[1, 2, 3], true),   // three of nine
            (30, &[1, 2], false),
            (90, &[1, 4, 7], true), // three of thirty of a zone
            (90, &[1, 2, 3], false),
        ];
        for (count, lost, opens) in cases {
            let mut cells = Cells::new(count);
            cells.lose(lost.iter().copied());
            assert_eq!(cells.position() == Position::Open, opens, "{lost:?} of {count}");
        }
    }

    #[test]
    fn losses_one_after_the_other_are_chance() {
        let mut cells = Cells::new(9);
        for node in [1, 4, 7, 2] {
            cells.lose([node]);
            cells.pass(61);
        }
        assert_eq!(cells.position(), Position::Closed);
    }

    #[test]
    fn it_is_half_open_after_a_stable_time_and_closed_after_some_copies() {
        let mut cells = Cells::new(9);
        cells.lose([1, 4]);
        cells.pass(12);
        assert_eq!(cells.position(), Position::Closed, "not yet too many");
        cells.lose([7]);
        assert_eq!((cells.position(), cells.breaker.allows(cells.now)), (Position::Open, 0));
        let why = cells.breaker.why(cells.now).unwrap();
        assert!(why.contains("since 0 s, 3 of 3 nodes of zone a lost within 12 s"), "{why}");
        cells.pass(300);
        cells.lose([2]); // somebody else: it begins anew
        cells.pass(599);
        assert_eq!(cells.position(), Position::Open);
        cells.pass(1);
        assert_eq!(cells.position(), Position::HalfOpen);
        assert_eq!(cells.breaker.allows(cells.now), PERMITS_PER_ZONE_HALF_OPEN);
        for _ in 0..BREAKER_TRIAL_COPIES - 1 {
            cells.breaker.copied();
        }
        cells.pass(1);
        assert_eq!(cells.position(), Position::HalfOpen);
        cells.breaker.copied();
        cells.pass(1);
        assert_eq!(cells.position(), Position::Closed);
        cells.pass(1000);
        assert_eq!(cells.position(), Position::Closed, "who was waited for does not open it again");
    }

    #[test]
    fn whoever_else_is_lost_while_a_few_copies_are_tried_opens_it_again() {
        let mut cells = Cells::new(9);
        cells.lose([1, 4, 7]);
        cells.pass(600);
        assert_eq!(cells.position(), Position::HalfOpen);
        cells.away.remove(&1);
        cells.pass(1);
        assert_eq!(cells.position(), Position::HalfOpen, "one that returns is good news");
        cells.lose([1]);
        assert_eq!(cells.position(), Position::Open);
    }

    #[test]
    fn it_closes_when_all_are_back_and_soon_when_few_are_left() {
        let mut cells = Cells::new(9);
        cells.lose([1, 4, 7]);
        cells.pass(100);
        cells.away.clear();
        cells.pass(1);
        assert_eq!(cells.position(), Position::Closed);

        cells.lose([1, 4, 7]);
        cells.pass(100);
        cells.away = [4].into();
        cells.pass(BREAKER_CALM.as_millis() / 1000);
        assert_eq!(cells.position(), Position::Open);
        cells.pass(1);
        assert_eq!(cells.position(), Position::Closed, "what is left of it is one lost node");
    }

    #[test]
    fn nothing_is_granted_before_it_knows_who_is_there() {
        let mut breaker = Breaker::new(Time(0), STABLE);
        assert_eq!(breaker.allows(Time(0) + Span::seconds(100)), 0, "it has not looked yet");
        let start = Time(0) + Span::seconds(100);
        breaker.observe(start, core::iter::empty());
        assert!(breaker.why(start).unwrap().contains("just started"));
        assert_eq!(breaker.position(start), Position::Starting);
        assert_eq!(breaker.position(start + BREAKER_SETTLE), Position::Closed);
    }

    #[test]
    fn people_hold_it_and_let_it_go() {
        let mut cells = Cells::new(9);
        cells.breaker.hold();
        assert_eq!((cells.position(), cells.breaker.half_open(cells.now)), (Position::Held, false));
        cells.lose([1, 4, 7]);
        cells.breaker.reset();
        assert_eq!(cells.position(), Position::Open, "it has judged all the time");
        assert!(cells.breaker.half_open(cells.now));
        assert_eq!(cells.position(), Position::HalfOpen);
        cells.breaker.force_closed();
        cells.pass(1);
        assert_eq!(cells.position(), Position::Closed);
    }
}
