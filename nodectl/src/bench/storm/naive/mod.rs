//! The same storm under the policy of 2011 , as the public report of that outage tells it.
//!
//! A small model of its own, second by second: nodes that lose a peer treat it as failed and search for space at once,
//! each by itself, without pause, for ever; nothing is reserved, so several copies begin into the same free space and
//! fail when it is full; every holder keeps its copy, and goes on searching, until another side is confirmed to own the
//! segment; a segment's I/O is blocked while its primary is not settled and while it searches without finding; settling
//! needs the control plane ([`control`]), which shares one pool with `CreateVolume` of every zone. A node that closes very
//! many copies at once may crash, and is not used again.

mod control;
mod copying;

use std::collections::{BTreeMap, BTreeSet};

use engine_core::authority::document::Spread;
use engine_core::random::{Random, mix};
use engine_core::time::{Span, Time};

use self::control::{Ask, Call, Done, Pool, Work};
use self::copying::Transfer;
use super::cluster::{Cluster, START, Step, float, whole};
use super::scenario::Scenario;
use super::series::{Figures, Recorder, SAMPLE_EVERY, Sample, Series};

/// Time goes in such steps.
const STEP: Span = Span::seconds(1);

/// A node.
#[derive(Debug, Clone)]
struct Node {
    up: bool,
    /// Crashed: in quarantine for as long as this goes on.
    crashed: bool,
    /// Bytes nothing was written to.
    free: u64,
    sends: u32,
    takes: u32,
    /// Copies it closed within this step.
    closed: u32,
    /// Segments it has, or had, a copy of.
    holds: BTreeSet<u32>,
}

/// A segment: who holds it with its primary, and who else keeps a copy until it is confirmed that it need not.
#[derive(Debug, Clone)]
struct Segment {
    primary: u16,
    mirrors: Vec<u16>,
    strays: Vec<u16>,
    counted: bool,
    /// The control plane has said who is primary.
    settled: bool,
    /// It has confirmed that the strays may go.
    confirmed: bool,
    asked: Option<Time>,
}

/// Somebody who searches for space for one segment.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash)]
struct Search {
    segment: u32,
    /// `None`: the side of the primary. A stray searches for itself.
    stray: Option<u16>,
}

struct World<'a> {
    plan: &'a Cluster,
    scenario: &'a Scenario,
    now: Time,
    random: Random,
    nodes: Vec<Node>,
    segments: Vec<Segment>,
    /// Where space may be looked for: the zone's nodes, or all.
    places: Vec<Vec<u16>>,
    /// Which of the strays' searches have copies already.
    searches: BTreeMap<Search, u8>,
    copies: Vec<Transfer>,
    pool: Pool,
    unsettled: BTreeSet<u32>,
    /// Segments of which something may be wrong.
    troubled: BTreeSet<u32>,
    next_calls: Vec<Time>,
    /// Nodes that search, as of the last sample.
    searching: u64,
    /// Calls for volumes whose callers still wait.
    waited_for: BTreeSet<(Time, usize)>,
    copied: u64,
    negotiated: u64,
    recorder: Recorder,
    size: u64,
}

/// Simulates it; `progress` hears how far it is.
pub(super) fn run(scenario: &Scenario, plan: &Cluster, seed: u64, progress: &dyn Fn(Time, u64)) -> (Figures, Series) {
    let mut world = World::new(scenario, plan, seed);
    let mut steps = plan.steps.iter().copied().peekable();
    while world.now < plan.end {
        world.now = world.now + STEP;
        while let Some((_, step)) = steps.next_if(|(at, _)| *at <= world.now) {
            world.step(step);
        }
        world.ask_control();
        world.control();
        world.search();
        world.copy();
        world.crash();
        let (stuck, degraded) = world.count();
        if world.now.since(START).0.is_multiple_of(SAMPLE_EVERY.0) {
            world.sample(stuck, degraded);
            progress(world.now, stuck);
        }
    }
    world.recorder.finish(plan.end)
}

impl<'a> World<'a> {
    fn new(scenario: &'a Scenario, plan: &'a Cluster, seed: u64) -> Self {
        let hit = scenario.hit_zone();
        let size = scenario.cluster.segment_size.0;
        let capacity = scenario.cluster.capacity.0;
        let node =
            Node { up: true, crashed: false, free: capacity, sends: 0, takes: 0, closed: 0, holds: BTreeSet::new() };
        let mut nodes = vec![node; plan.zones.len()];
        let segments: Vec<Segment> = (0..plan.segments())
            .map(|at| {
                let mirrors = plan.members(at).to_vec();
                for node in &mirrors {
                    let node = &mut nodes[usize::from(*node)];
                    node.free -= size;
                    node.holds.insert(u32::try_from(at).unwrap_or(u32::MAX));
                }
                let counted = plan.is_counted(at, hit);
                let (primary, strays) = (mirrors[0], Vec::new());
                Segment { primary, mirrors, strays, counted, settled: true, confirmed: true, asked: None }
            })
            .collect();
        let counted = segments.iter().filter(|segment| segment.counted).count() as u64;
        let zones = &scenario.cluster.zones;
        let all: Vec<u16> = (0..u16::try_from(plan.zones.len()).unwrap_or(u16::MAX)).collect();
        let places = (0..zones.len())
            .map(|zone| {
                let wide = scenario.cluster.spread == Spread::Zone;
                all.iter().copied().filter(|node| wide || usize::from(plan.zones[usize::from(*node)]) == zone).collect()
            })
            .collect();
        let mut world = Self {
            plan,
            scenario,
            now: START,
            random: Random::new(mix(seed ^ 0x2011)),
            nodes,
            segments,
            places,
            searches: BTreeMap::new(),
            copies: Vec::new(),
            pool: Pool::new(scenario.naive.pool_threads),
            unsettled: BTreeSet::new(),
            troubled: BTreeSet::new(),
            next_calls: vec![START; zones.len()],
            waited_for: BTreeSet::new(),
            searching: 0,
            copied: 0,
            negotiated: 0,
            recorder: Recorder::new(zones, hit, counted, plan.broken_at, plan.healed_at),
            size,
        };
        (0..zones.len()).for_each(|zone| world.next_calls[zone] = START + world.until_next_call());
        world
    }

    fn is_up(&self, node: u16) -> bool {
        self.nodes[usize::from(node)].up
    }

    fn step(&mut self, step: Step) {
        match step {
            Step::Cut(node) => self.cut(node),
            Step::Back(node) => self.back(node),
            // There is only one, for all zones.
            Step::Stop(_) => self.pool.is_stopped = true,
            Step::Resume(_) => self.pool.is_stopped = false,
        }
    }

    /// Nobody reaches this node: its peers take it for failed, and it takes them for failed.
    fn cut(&mut self, node: u16) {
        if !std::mem::replace(&mut self.nodes[usize::from(node)].up, false) {
            return;
        }
        self.close_copies(node);
        let held: Vec<u32> = self.held(node);
        for at in held {
            self.troubled.insert(at);
            let others = self.segments[at as usize].mirrors.iter().any(|other| *other != node && self.is_up(*other));
            let segment = &mut self.segments[at as usize];
            if !segment.mirrors.contains(&node) || !others {
                continue;
            }
            segment.mirrors.retain(|mirror| *mirror != node);
            segment.strays.push(node);
            segment.confirmed = false;
            if segment.primary == node {
                segment.settled = false;
                self.unsettled.insert(at);
            }
            self.searches.insert(Search { segment: at, stray: None }, 0);
        }
    }

    /// Segments it has a copy of.
    fn held(&mut self, node: u16) -> Vec<u32> {
        let segments = &self.segments;
        let holds = &mut self.nodes[usize::from(node)].holds;
        holds.retain(|at| {
            let segment = &segments[*at as usize];
            segment.mirrors.contains(&node) || segment.strays.contains(&node)
        });
        holds.iter().copied().collect()
    }

    /// It is back: for each copy it has it took the others for failed, and searches until it is told that it need not.
    fn back(&mut self, node: u16) {
        let place = &mut self.nodes[usize::from(node)];
        if place.crashed || std::mem::replace(&mut place.up, true) {
            return;
        }
        for at in self.held(node) {
            self.troubled.insert(at);
            let claims = self.plan.members(at as usize)[0] == node;
            let segment = &mut self.segments[at as usize];
            if segment.strays.contains(&node) {
                self.searches.insert(Search { segment: at, stray: Some(node) }, 1);
                // Two who take themselves for the primary: nobody writes until it is settled who is.
                if claims {
                    segment.settled = false;
                    self.unsettled.insert(at);
                }
            } else if segment.mirrors.len() < self.plan.copies {
                self.searches.insert(Search { segment: at, stray: None }, 0);
            }
        }
    }

    fn until_next_call(&mut self) -> Span {
        let mean = float(Span::seconds(1).0) / self.scenario.api.creates_per_second;
        Span(whole(mean / 2.0) + self.random.between(0, whole(mean)))
    }

    /// People ask for volumes; segments ask who is primary, and whether strays may go.
    fn ask_control(&mut self) {
        for zone in 0..self.next_calls.len() {
            while self.next_calls[zone] <= self.now {
                let asked = self.next_calls[zone];
                self.next_calls[zone] = asked + self.until_next_call();
                self.pool.ask(Call { ask: Ask::Create(zone), asked });
                self.waited_for.insert((asked, zone));
            }
        }
        let again = Span::seconds(self.scenario.naive.caller_timeout);
        let mut asks = Vec::new();
        for at in &self.unsettled {
            let segment = &self.segments[*at as usize];
            let due = segment.asked.is_none_or(|asked| self.now.since(asked) >= again);
            if due && segment.mirrors.iter().any(|node| self.is_up(*node)) {
                asks.push(*at);
            }
        }
        for at in asks {
            self.segments[at as usize].asked = Some(self.now);
            self.pool.ask(Call { ask: Ask::Settle(at), asked: self.now });
            self.negotiated += 1;
        }
    }

    fn control(&mut self) {
        let (nodes, segments, places, size) = (&self.nodes, &self.segments, &self.places, self.size);
        let naive = &self.scenario.naive;
        let quick = Work { takes: Span::millis(naive.service_millis), succeeds: true };
        let long = Span::seconds(naive.long_timeout);
        // No headroom: a new volume takes what it finds, like everybody.
        let has_space: Vec<bool> = places
            .iter()
            .map(|all| {
                let fits = |node: &&u16| nodes[usize::from(**node)].up && nodes[usize::from(**node)].free >= size;
                all.iter().filter(fits).take(self.plan.copies).count() == self.plan.copies
            })
            .collect();
        let mut work = |call: &Call| match call.ask {
            Ask::Create(zone) if has_space[zone] => quick,
            Ask::Create(_) => Work { takes: long, succeeds: false },
            Ask::Settle(at) => {
                let segment = &segments[at as usize];
                let answers = |node: &u16| nodes[usize::from(*node)].up;
                // Who does not answer is waited for until the time is over.
                let all = segment.mirrors.iter().chain(&segment.strays).all(answers);
                if all { quick } else { Work { takes: long, succeeds: true } }
            }
        };
        let done = self.pool.run(self.now, &mut work);
        for Done { call, at, succeeded } in done {
            match call.ask {
                Ask::Create(zone) => {
                    if self.waited_for.remove(&(call.asked, zone)) {
                        let took = at.since(call.asked);
                        self.recorder.call(zone, at, if succeeded { Ok(took) } else { Err(()) });
                    }
                }
                Ask::Settle(segment) => self.settled(segment),
            }
        }
        // Callers give up; their calls stay where they are.
        let patience = Span::seconds(self.scenario.naive.caller_timeout);
        while let Some((asked, zone)) =
            self.waited_for.first().copied().filter(|(at, _)| self.now.since(*at) >= patience)
        {
            self.waited_for.remove(&(asked, zone));
            self.recorder.call(zone, self.now, Err(()));
        }
    }

    /// The control plane has decided: who has a copy beside the primary is the segment; strays go once it is whole.
    fn settled(&mut self, at: u32) {
        let up: Vec<u16> =
            self.segments[at as usize].mirrors.iter().copied().filter(|node| self.is_up(*node)).collect();
        let Some(first) = up.first().copied() else { return };
        // Two take themselves for the primary, and neither is confirmed to own it: nobody gives way, it is asked again.
        let former = self.plan.members(at as usize)[0];
        let contested = self.segments[at as usize].strays.contains(&former) && self.is_up(former);
        if contested && self.segments[at as usize].mirrors.len() < self.plan.copies {
            return;
        }
        let segment = &mut self.segments[at as usize];
        if !up.contains(&segment.primary) {
            segment.primary = first;
        }
        (segment.settled, segment.asked) = (true, None);
        self.unsettled.remove(&at);
        if segment.mirrors.len() < self.plan.copies {
            return;
        }
        segment.confirmed = true;
        let strays = std::mem::take(&mut segment.strays);
        for node in strays {
            self.nodes[usize::from(node)].free += self.size;
        }
        self.drop_strays_searches(at);
    }

    /// The set of owners that was announced is not to be: it has to be negotiated again.
    fn unsettle(&mut self, at: u32) {
        self.segments[at as usize].settled = false;
        self.unsettled.insert(at);
        self.troubled.insert(at);
    }

    /// A side is whole: it asks that the others be told.
    fn whole(&mut self, at: u32) {
        let segment = &mut self.segments[at as usize];
        if !segment.confirmed || !segment.settled {
            self.unsettled.insert(at);
        }
        self.searches.remove(&Search { segment: at, stray: None });
    }

    fn count(&mut self) -> (u64, u64) {
        let (mut stuck, mut degraded) = (0, 0);
        let copying: BTreeSet<u32> =
            self.copies.iter().filter(|copy| copy.search.stray.is_none()).map(|copy| copy.search.segment).collect();
        let mut well = Vec::new();
        for at in &self.troubled {
            let segment = &self.segments[*at as usize];
            let up = segment.mirrors.iter().filter(|node| self.is_up(**node)).count();
            let missing = up < self.plan.copies;
            let blocked = !segment.settled || up == 0 || missing && !copying.contains(at);
            if segment.counted {
                stuck += u64::from(blocked);
                degraded += u64::from(missing);
            }
            if !blocked && !missing && segment.strays.is_empty() {
                well.push(*at);
            }
        }
        for at in well {
            self.troubled.remove(&at);
        }
        self.recorder.count(self.now, stuck, degraded);
        (stuck, degraded)
    }

    fn sample(&mut self, stuck: u64, degraded: u64) {
        let searching: BTreeSet<u16> = self.searches.keys().filter_map(|search| self.searcher(search)).collect();
        self.searching = searching.len() as u64;
        let capacity = self.scenario.cluster.capacity.0;
        let in_reach = self.places[self.scenario.hit_zone()].iter().map(|node| &self.nodes[usize::from(*node)]);
        let (count, free) =
            in_reach.filter(|node| node.up).fold((0, 0), |(count, free), node| (count + 1, free + node.free));
        let sample = Sample {
            searching_nodes: self.searching,
            free_share: if count == 0 { 0.0 } else { float(free) / float(count * capacity) },
            copied_bytes: std::mem::take(&mut self.copied),
            queue: self.pool.waiting() as u64,
            messages: std::mem::take(&mut self.negotiated) / (SAMPLE_EVERY.0 / STEP.0),
        };
        self.recorder.sample(self.now, stuck, degraded, &sample);
    }
}
