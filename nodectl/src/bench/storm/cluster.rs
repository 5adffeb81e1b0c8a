//! The cluster of a scenario: nodes in zones and cells, where each copy is to begin with, and who is cut off when.
//!
//! Both policies begin with exactly this. Copies are placed evenly: every node holds as many, leads as many, and shares
//! segments with a bounded set of peers (DESIGN 5), whatever the seed.

use engine_core::authority::document::Spread;
use engine_core::random::{Random, mix};
use engine_core::time::{Span, Time};

use super::scenario::{Fault, Scenario};

/// Simulated time 0; clocks never stand at nothing.
pub(super) const START: Time = Time(1_000_000_000);
/// Nodes of a cell at most: one authority knows 1024 (R23).
const CELL_NODES: usize = 1000;
/// Segments of a cell at most: below what one authority keeps, so that volumes can be made.
const CELL_SEGMENTS: usize = 200_000;
/// Other places in the ring of a zone's nodes that copies of one node's segments go to.
const SCATTER: usize = 32;

/// Something that happens to the cluster.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum Step {
    /// This node reaches nobody from now on.
    Cut(u16),
    /// It does again.
    Back(u16),
    /// The control plane of this zone is away.
    Stop(usize),
    /// It is there again.
    Resume(usize),
}

/// Nodes and segments of one authority.
#[derive(Debug)]
pub(super) struct Cell {
    pub(super) nodes: Vec<u16>,
    pub(super) segments: std::ops::Range<usize>,
}

/// The cluster as it is to begin with, and what happens to it.
#[derive(Debug)]
pub(super) struct Cluster {
    /// Zone of each node.
    pub(super) zones: Vec<u8>,
    pub(super) cells: Vec<Cell>,
    pub(super) copies: usize,
    /// Nodes of each segment, the primary first; `copies` each.
    members: Vec<u16>,
    /// In order of time.
    pub(super) steps: Vec<(Time, Step)>,
    /// When the first fault began, and the last of those that end was over.
    pub(super) broken_at: Time,
    pub(super) healed_at: Time,
    pub(super) end: Time,
    /// Most traffic that was shifted onto a small network, in parts of what it can carry.
    pub(super) shifted_load: f64,
}

/// Lossless for what a scenario can hold.
#[allow(clippy::cast_precision_loss)]
pub(super) const fn float(number: u64) -> f64 {
    number as f64
}

/// Of a float that is not negative and not large.
#[allow(clippy::cast_possible_truncation, clippy::cast_sign_loss)]
pub(super) const fn whole(number: f64) -> u64 {
    number as u64
}

/// A count of things in memory.
#[allow(clippy::cast_possible_truncation)] // usize has 64 bits (asserted in limits)
pub(super) const fn count(number: u64) -> usize {
    number as usize
}

/// Index of a node or zone; there are less than 64 Ki of them.
#[allow(clippy::cast_possible_truncation)]
const fn small(index: usize) -> u16 {
    index as u16
}

impl Cluster {
    pub(super) fn new(scenario: &Scenario, seed: u64) -> Self {
        let zones = scenario.cluster.zones.len();
        let per_zone = scenario.cluster.nodes_per_zone;
        #[allow(clippy::cast_possible_truncation)] // at most 16 zones
        let zone_of: Vec<u8> = (0..zones * per_zone).map(|node| (node / per_zone) as u8).collect();
        let end = START + scenario.duration.0;
        let mut cluster = Self {
            zones: zone_of,
            cells: Vec::new(),
            copies: usize::from(scenario.cluster.copies),
            members: Vec::new(),
            steps: Vec::new(),
            broken_at: end,
            healed_at: START,
            end,
            shifted_load: 0.0,
        };
        let mut random = Random::new(mix(seed));
        let per_node = scenario.cluster.capacity.0 / scenario.cluster.segment_size.0;
        let leads = (count(whole(float(per_node) * scenario.cluster.fill)) / cluster.copies).max(1);
        cluster.place(scenario.cluster.spread, zones, per_zone, leads, &mut random);
        cluster.plan_faults(scenario, &mut random);
        cluster
    }

    /// Cells of a size one authority can serve, each with segments of which every node leads `leads`.
    fn place(&mut self, spread: Spread, zones: usize, per_zone: usize, leads: usize, random: &mut Random) {
        let rings: Vec<Vec<u16>> = (0..zones)
            .map(|zone| {
                let mut ring: Vec<u16> = (0..per_zone).map(|at| small(zone * per_zone + at)).collect();
                shuffle(&mut ring, random);
                ring
            })
            .collect();
        let groups: Vec<Vec<&[u16]>> = match spread {
            Spread::Node => rings.iter().map(|ring| vec![ring.as_slice()]).collect(),
            Spread::Zone => vec![rings.iter().map(Vec::as_slice).collect()],
        };
        for group in groups {
            let nodes: usize = group.iter().map(|ring| ring.len()).sum();
            let parts = nodes.div_ceil(CELL_NODES).max((nodes * leads).div_ceil(CELL_SEGMENTS));
            for part in 0..parts {
                let cut = |ring: &[u16], at: usize| ring.len() * at / parts;
                let rings: Vec<&[u16]> = group.iter().map(|ring| &ring[cut(ring, part)..cut(ring, part + 1)]).collect();
                self.fill_cell(&rings, leads);
            }
        }
    }

    fn fill_cell(&mut self, rings: &[&[u16]], leads: usize) {
        let first = self.segments();
        for round in 0..leads {
            for (which, ring) in rings.iter().enumerate() {
                for at in 0..ring.len() {
                    for copy in 0..self.copies {
                        self.members.push(member(rings, which, at, copy, round, self.copies));
                    }
                }
            }
        }
        let mut nodes: Vec<u16> = rings.concat();
        nodes.sort_unstable();
        let segments = first..self.segments();
        self.cells.push(Cell { nodes, segments });
    }

    pub(super) fn segments(&self) -> usize {
        self.members.len() / self.copies
    }

    pub(super) fn members(&self, segment: usize) -> &[u16] {
        &self.members[segment * self.copies..][..self.copies]
    }

    /// Whether what becomes of this segment counts: one of the zone that is hit, or any where copies are spread over zones.
    pub(super) fn is_counted(&self, segment: usize, hit: usize) -> bool {
        let zone = |node: &u16| usize::from(self.zones[usize::from(*node)]);
        let members = self.members(segment);
        zone(&members[0]) == hit || members.iter().any(|node| zone(node) != zone(&members[0]))
    }

    fn plan_faults(&mut self, scenario: &Scenario, random: &mut Random) {
        for fault in &scenario.faults {
            let zone = scenario.cluster.zones.iter().position(|zone| zone == fault.zone()).unwrap_or(0);
            let (from, until) = (START + fault.at(), fault.until().map(|until| START + until));
            match fault {
                Fault::ShiftTraffic { share, .. } => {
                    let load = shifted_load(scenario, *share);
                    self.shifted_load = self.shifted_load.max(load);
                    // What the small network can carry does no harm; beyond that heartbeats are lost like the rest.
                    if load > 1.0 {
                        self.cut(zone, self.count(zone, *share), from, until, random);
                    }
                }
                Fault::Isolate { share, .. } => self.cut(zone, self.count(zone, *share), from, until, random),
                Fault::LoseNodes { nodes, share, .. } => {
                    let count = nodes.or(share.map(|share| self.count(zone, share))).unwrap_or(1);
                    self.cut(zone, count, from, None, random);
                }
                Fault::Flap { share, down, up, .. } => {
                    let chosen = self.choose(zone, self.count(zone, *share), random);
                    let (mut at, until) = (from, until.unwrap_or(self.end));
                    while at < until {
                        let back = (at + down.0).min(until);
                        self.steps
                            .extend(chosen.iter().flat_map(|node| [(at, Step::Cut(*node)), (back, Step::Back(*node))]));
                        at = back + up.0;
                    }
                }
                Fault::StopAuthority { .. } => {
                    self.steps.push((from, Step::Stop(zone)));
                    self.steps.extend(until.map(|until| (until, Step::Resume(zone))));
                }
            }
            self.broken_at = self.broken_at.min(from);
            self.healed_at = self.healed_at.max(until.unwrap_or(from));
        }
        self.steps.sort_by_key(|(at, _)| *at);
        self.steps.retain(|(at, _)| *at < self.end);
    }

    fn count(&self, zone: usize, share: f64) -> usize {
        let all = self.zones.iter().filter(|of| usize::from(**of) == zone).count();
        count(whole((float(all as u64) * share).round())).clamp(1, all)
    }

    fn choose(&self, zone: usize, count: usize, random: &mut Random) -> Vec<u16> {
        let mut nodes: Vec<u16> =
            (0..self.zones.len()).filter(|at| usize::from(self.zones[*at]) == zone).map(small).collect();
        shuffle(&mut nodes, random);
        nodes.truncate(count);
        nodes
    }

    fn cut(&mut self, zone: usize, count: usize, from: Time, until: Option<Time>, random: &mut Random) {
        for node in self.choose(zone, count, random) {
            // A router's table or a switch is not changed everywhere in the same moment.
            let spread = Span(random.between(0, Span::millis(200).0));
            self.steps.push((from + spread, Step::Cut(node)));
            self.steps.extend(until.map(|until| (until, Step::Back(node))));
        }
    }
}

/// Which node holds this copy of the segment that `rings[which][at]` leads in this round.
fn member(rings: &[&[u16]], which: usize, at: usize, copy: usize, round: usize, copies: usize) -> u16 {
    if rings.len() > 1 {
        // Over zones: the next rings, another shift each round.
        let ring = rings[(which + copy * (1 + round % zones_apart(rings.len(), copies))) % rings.len()];
        let shift = if copy == 0 { 0 } else { 1 + (round * 7 + copy * 3) % SCATTER };
        return ring[(at + shift) % ring.len()];
    }
    let ring = rings[which];
    if copy == 0 {
        return ring[at];
    }
    let width = SCATTER.min(ring.len() - 1);
    let apart = 1 + (round / width) % (width - 1).checked_div(copies - 2).unwrap_or(1).max(1);
    ring[(at + 1 + (round * 7 + (copy - 1) * apart) % width) % ring.len()]
}

/// How many strides through the rings never meet the same ring twice.
fn zones_apart(rings: usize, copies: usize) -> usize {
    let meets = |stride: usize| (1..copies).any(|copy| (copy * stride).is_multiple_of(rings));
    (1..rings).find(|stride| meets(*stride)).map_or(rings - 1, |first| first - 1).max(1)
}

/// In parts of what the small network of the zone can carry.
fn shifted_load(scenario: &Scenario, share: f64) -> f64 {
    let (cluster, clients) = (&scenario.cluster, &scenario.clients);
    let copies = f64::from(cluster.copies);
    let leads = float(cluster.capacity.0) * cluster.fill / float(cluster.segment_size.0) / copies;
    // A node takes the writes it leads, passes each on to the other copies, takes those of others; and answers reads.
    let written = clients.writes_per_second * (1.0 + 2.0 * (copies - 1.0));
    let node = leads * (written + clients.reads_per_second) * float(clients.request_size.0);
    node * share / float(scenario.network.replication_capacity.0)
}

fn shuffle(nodes: &mut [u16], random: &mut Random) {
    for at in (1..nodes.len()).rev() {
        let other = count(random.between(0, at as u64));
        nodes.swap(at, other);
    }
}

#[cfg(test)]
mod tests {
    #![allow(clippy::unwrap_used)]
    use std::collections::BTreeSet;

    use super::*;
    use crate::bench::storm::scenario::SHIPPED;

    fn cluster(name: &str, nodes: usize) -> Cluster {
        let text = SHIPPED.iter().find(|(known, _)| *known == name).unwrap().1;
        Cluster::new(&Scenario::parse(text).unwrap().with_nodes(nodes).unwrap(), 1)
    }

    #[test]
    fn every_node_holds_as_many_and_no_segment_is_twice_on_one() {
        for (name, nodes) in [("april-2011", 60), ("april-2011", 5000), ("zone-loss", 60), ("zone-loss", 400)] {
            let cluster = cluster(name, nodes);
            let mut holds = vec![0; cluster.zones.len()];
            for segment in 0..cluster.segments() {
                let members = cluster.members(segment);
                members.iter().for_each(|node| holds[usize::from(*node)] += 1);
                assert_eq!(members.iter().collect::<BTreeSet<_>>().len(), cluster.copies, "{members:?}");
                let zones: BTreeSet<u8> = members.iter().map(|node| cluster.zones[usize::from(*node)]).collect();
                assert_eq!(zones.len(), if name == "zone-loss" { cluster.copies } else { 1 }, "{members:?}");
            }
            assert!(holds.iter().all(|count| *count == holds[0]), "{name} {nodes}: {holds:?}");
            assert!(cluster.cells.iter().all(|cell| cell.nodes.len() <= CELL_NODES));
        }
    }

    #[test]
    fn traffic_that_the_small_network_can_carry_cuts_nobody_off() {
        let text = SHIPPED[0].1;
        let cut = |text: &str| Cluster::new(&Scenario::parse(text).unwrap(), 1).steps.len();
        assert!(cut(text) > 0);
        assert_eq!(cut(&text.replace("replication_capacity = \"5M\"", "replication_capacity = \"100M\"")), 0);
    }
}
