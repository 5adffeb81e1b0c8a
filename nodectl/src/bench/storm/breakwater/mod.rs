//! A storm under this product's policy, in virtual time: the production authority decides, size-only replicas ask.
//!
//! The authority of each cell is the production machine, whole: elections, permits, reservations, placement, breaker,
//! releases, `CreateVolume` ([`seat`]). On a node's side `Gather`, `Reservations` and `Backoff` are the production ones.
//! What a replica does is aggregated ([`segment`]): it has no data and no log, only its configuration, how long it has
//! served since a member left it, and what is being copied; whatever holds of all replicas of a node pair (heartbeats,
//! leases, connections) is worked out once from when nodes were cut off. Nothing is simulated of a segment that is well.

mod links;
mod seat;
mod segment;

use std::cmp::{Ordering, Reverse};
use std::collections::{BTreeMap, BTreeSet, BinaryHeap};

use engine_core::gather::Gather;
use engine_core::ids::NodeId;
use engine_core::limits::{
    AUTHORITY_TICK, BATCH_PAUSE, LEASE_ASKS_EVERY, PERMIT_ASKS_EVERY, REPORT_EVERY, SOCKET_SILENCE_MAX,
};
use engine_core::message::{FromAuthority, ToAuthority};
use engine_core::random::Random;
use engine_core::remirror::reservation::Reservations;
use engine_core::time::{Span, Time};

use self::seat::Seat;
use self::segment::{Landing, Segment};
use super::cluster::{Cluster, START, Step, float};
use super::scenario::Scenario;
use super::series::{Figures, Recorder, SAMPLE_EVERY, Sample, Series};

/// What a message between two processes takes.
const DELAY: Span = Span::millis(1);
/// What a durable write takes.
const DISK: Span = Span::millis(1);

/// What happens at a time.
#[derive(Debug)]
enum Event {
    Step(Step),
    Sample,
    /// A segment may do something, or another one may matter to it.
    Look(u32),
    /// The node's gatherer may let something go.
    Gather(u16),
    /// A node's connection to the authority is given up, if it is still away since then.
    SessionEnds(u16, Time),
    Register(u16, Time),
    ToCell(u16, u64, Box<ToAuthority>),
    FromCell(u16, u64, Box<FromAuthority>),
    CellTick(u16),
    CellTurn(u16),
    CopyDone(u64),
    Call(u16),
}

struct Entry(Time, u64, Event);

impl PartialEq for Entry {
    fn eq(&self, other: &Self) -> bool {
        (self.0, self.1) == (other.0, other.1)
    }
}

impl Eq for Entry {}

impl PartialOrd for Entry {
    fn partial_cmp(&self, other: &Self) -> Option<Ordering> {
        Some(self.cmp(other))
    }
}

impl Ord for Entry {
    fn cmp(&self, other: &Self) -> Ordering {
        (self.0, self.1).cmp(&(other.0, other.1))
    }
}

/// A node: alive all the time, but not always in reach.
struct Node {
    cell: u16,
    zone: u8,
    up: bool,
    cut_at: Time,
    back_at: Time,
    /// Its connection to the authority; 0 is none.
    session: u64,
    gather: Gather,
    gather_at: Time,
    book: Reservations,
    /// Extents of replicas here.
    booked: u64,
    /// Segments it has a copy of.
    holds: BTreeSet<u32>,
    /// Copies under way from here and to here.
    sends: u64,
    takes: u64,
    copied: u64,
}

/// The whole region.
pub(super) struct World<'a> {
    plan: &'a Cluster,
    scenario: &'a Scenario,
    now: Time,
    queue: BinaryHeap<Reverse<Entry>>,
    number: u64,
    random: Random,
    nodes: Vec<Node>,
    seats: Vec<Seat>,
    segments: Vec<Segment>,
    /// Extents a node has, and a segment.
    capacity: u64,
    extents: u32,
    /// Copies under way, by number; and how many were begun.
    landings: BTreeMap<u64, Landing>,
    copies: u64,
    stuck: u64,
    degraded: u64,
    sessions: u64,
    /// Since the last sample.
    copied: u64,
    asking: BTreeSet<u16>,
    recorder: Recorder,
    /// Nodes that came back at least once.
    returned: BTreeSet<u16>,
    /// Whole copies begun: the segment, and who was missing.
    remirrored: Vec<(u32, Vec<NodeId>)>,
}

/// Index of a node by its id.
const fn index(node: NodeId) -> usize {
    node.0 as usize - 1
}

/// Id of a node by its index.
const fn id(index: u16) -> NodeId {
    NodeId(index + 1)
}

/// Simulates it; `progress` hears how far it is.
pub(super) fn run(scenario: &Scenario, plan: &Cluster, seed: u64, progress: &dyn Fn(Time, u64)) -> (Figures, Series) {
    let mut world = World::new(scenario, plan, seed);
    world.begin();
    while let Some(Reverse(Entry(at, _, event))) = world.queue.pop() {
        if at > plan.end {
            break;
        }
        world.now = at;
        let sampled = matches!(event, Event::Sample);
        world.dispatch(event);
        if sampled {
            progress(at, world.stuck);
        }
    }
    world.finish()
}

/// Messages a node may send the authority within a second, at most: its report, asks for permits and leases, and batches
/// of proposals that are not full, of two kinds, with what may go at once; full ones hold hundreds and are answered first.
const fn node_messages() -> u64 {
    let second = Span::seconds(1).0;
    second / REPORT_EVERY.0
        + second / PERMIT_ASKS_EVERY.0
        + second / LEASE_ASKS_EVERY.0
        + 2 * (second / BATCH_PAUSE.0 + engine_core::limits::BATCH_BURST as u64)
}

impl<'a> World<'a> {
    fn new(scenario: &'a Scenario, plan: &'a Cluster, seed: u64) -> Self {
        let hit = scenario.hit_zone();
        let counted = (0..plan.segments()).filter(|at| plan.is_counted(*at, hit)).count() as u64;
        let recorder = Recorder::new(&scenario.cluster.zones, hit, counted, plan.broken_at, plan.healed_at);
        let node = |zone: &u8| Node {
            cell: 0,
            zone: *zone,
            up: true,
            cut_at: Time(0),
            back_at: Time(0),
            session: 0,
            gather: Gather::new(),
            gather_at: Time(0),
            book: Reservations::new(),
            booked: 0,
            holds: BTreeSet::new(),
            sends: 0,
            takes: 0,
            copied: 0,
        };
        Self {
            plan,
            scenario,
            now: START,
            queue: BinaryHeap::new(),
            number: 0,
            random: Random::new(engine_core::random::mix(seed ^ 0xB4EA)),
            nodes: plan.zones.iter().map(node).collect(),
            seats: Vec::new(),
            segments: Vec::with_capacity(plan.segments()),
            capacity: scenario.cluster.capacity.0 / engine_core::limits::EXTENT_SIZE,
            extents: scenario.extents(),
            landings: BTreeMap::new(),
            copies: 0,
            stuck: 0,
            degraded: 0,
            sessions: 0,
            copied: 0,
            asking: BTreeSet::new(),
            recorder,
            returned: BTreeSet::new(),
            remirrored: Vec::new(),
        }
    }

    fn begin(&mut self) {
        self.open_seats();
        let steps: Vec<(Time, Step)> = self.plan.steps.clone();
        steps.into_iter().for_each(|(at, step)| self.at(at, Event::Step(step)));
        self.after(SAMPLE_EVERY, Event::Sample);
        for zone in 0..self.scenario.cluster.zones.len() {
            let zone = u16::try_from(zone).unwrap_or_default();
            let wait = self.until_next_call();
            self.after(wait, Event::Call(zone));
        }
    }

    fn at(&mut self, at: Time, event: Event) {
        self.number += 1;
        self.queue.push(Reverse(Entry(at.max(self.now), self.number, event)));
    }

    fn after(&mut self, span: Span, event: Event) {
        self.at(self.now + span, event);
    }

    fn dispatch(&mut self, event: Event) {
        match event {
            Event::Step(step) => self.step(step),
            Event::Sample => self.sample(),
            Event::Look(segment) => self.look(segment),
            Event::Gather(node) => {
                if self.nodes[usize::from(node)].gather_at == self.now {
                    self.nodes[usize::from(node)].gather_at = Time(0);
                    self.pump(node);
                }
            }
            Event::SessionEnds(node, cut_at) => self.session_ends(node, cut_at),
            Event::Register(node, back_at) => self.register_again(node, back_at),
            Event::ToCell(cell, session, message) => self.cell_hears(cell, session, *message),
            Event::FromCell(node, session, message) => {
                let place = &self.nodes[usize::from(node)];
                if place.up && place.session == session {
                    self.node_hears(node, *message);
                }
            }
            Event::CellTick(cell) => self.cell_ticks(cell),
            Event::CellTurn(cell) => self.cell_turns(cell),
            Event::CopyDone(number) => self.copy_done(number),
            Event::Call(zone) => self.calls(zone),
        }
    }

    fn step(&mut self, step: Step) {
        match step {
            Step::Cut(node) => self.cut(node),
            Step::Back(node) => self.back(node),
            Step::Stop(zone) => self.stop_cells(zone, true),
            Step::Resume(zone) => self.stop_cells(zone, false),
        }
    }

    fn cut(&mut self, node: u16) {
        let now = self.now;
        let place = &mut self.nodes[usize::from(node)];
        if !place.up {
            return;
        }
        (place.up, place.cut_at) = (false, now);
        // What it had said and was not decided is said again once it is back.
        place.gather.forget();
        let held: Vec<u32> = place.holds.iter().copied().collect();
        self.break_copies(id(node));
        self.after(SOCKET_SILENCE_MAX, Event::SessionEnds(node, now));
        held.into_iter().for_each(|segment| self.look(segment));
    }

    fn back(&mut self, node: u16) {
        let now = self.now;
        let place = &mut self.nodes[usize::from(node)];
        if place.up {
            return;
        }
        (place.up, place.back_at) = (true, now);
        let held: Vec<u32> = place.holds.iter().copied().collect();
        self.returned.insert(node);
        let wait = self.dials_authority(node);
        self.at(wait, Event::Register(node, now));
        held.into_iter().for_each(|segment| self.look(segment));
    }

    /// What the node has to say goes out, as far as its gatherer lets it.
    fn pump(&mut self, node: u16) {
        let now = self.now;
        let place = &mut self.nodes[usize::from(node)];
        if !place.up || place.session == 0 {
            return;
        }
        let said = place.gather.next(now);
        let wake = place.gather.wake_at().map(|at| at.max(now + Span(1)));
        if let Some(wake) = wake.filter(|wake| place.gather_at == Time(0) || *wake < place.gather_at) {
            place.gather_at = wake;
            self.at(wake, Event::Gather(node));
        }
        for message in said {
            if matches!(message, ToAuthority::PermitAsks(_)) {
                self.asking.insert(node);
            }
            self.say(node, message);
        }
    }

    /// A node says something to its authority.
    fn say(&mut self, node: u16, message: ToAuthority) {
        let place = &self.nodes[usize::from(node)];
        if place.up && place.session != 0 {
            let event = Event::ToCell(place.cell, place.session, Box::new(message));
            self.after(DELAY, event);
        }
    }

    fn sample(&mut self) {
        self.expire_calls();
        let (mut queue, mut messages) = (0, 0);
        for seat in &mut self.seats {
            let (waited, most) = seat.take_peaks(self.now);
            queue = queue.max(waited);
            messages = messages.max(most);
        }
        let sample = Sample {
            searching_nodes: std::mem::take(&mut self.asking).len() as u64,
            free_share: self.free_share(),
            copied_bytes: std::mem::take(&mut self.copied),
            queue,
            messages,
        };
        self.recorder.sample(self.now, self.stuck, self.degraded, &sample);
        self.after(SAMPLE_EVERY, Event::Sample);
    }

    /// Of the nodes in reach where it went wrong.
    fn free_share(&self) -> f64 {
        let hit = self.scenario.hit_zone();
        let wide = self.scenario.cluster.spread == engine_core::authority::document::Spread::Zone;
        let in_reach = self.nodes.iter().filter(|node| node.up && (wide || usize::from(node.zone) == hit));
        let (count, booked) = in_reach.fold((0, 0), |(count, booked), node| (count + 1, booked + node.booked));
        if count == 0 { 0.0 } else { 1.0 - float(booked) / float(count * self.capacity) }
    }

    fn finish(mut self) -> (Figures, Series) {
        let could_return = |node: &NodeId| self.nodes[index(*node)].up || self.returned.contains(&(node.0 - 1));
        let needless = self.remirrored.iter().filter(|(_, missing)| missing.iter().any(could_return)).count();
        self.recorder.figures.remirrors = self.remirrored.len() as u64;
        self.recorder.figures.remirrors_needless = needless as u64;
        let nodes = self.seats.iter().map(|seat| seat.nodes.len() as u64).max().unwrap_or(0);
        self.recorder.figures.authority_messages_bound = Some(nodes * node_messages());
        self.recorder.finish(self.plan.end)
    }
}

/// How often time is handed to a cell in which nothing is wrong: what a tick finds there, any tick finds.
const CALM_TICKS: u64 = Span::seconds(30).0 / AUTHORITY_TICK.0;
