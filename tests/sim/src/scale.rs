//! Nodes with ten thousand replicas: one dies, and every segment has a primary again soon, at a bounded cost (R21, I15).
//!
//! A world of its own, without clients and faults: production quays over production stores, gatherers and the production
//! authority, in virtual time. What one node says to another within one turn goes together, as on the wire. It counts
//! what reaches the authority.

use std::collections::{BTreeMap, BTreeSet};

use engine::device::memory::MemoryDevice;
use engine::node::quay::{self, Quay, Wires};
use engine::store::{self, Geometry, ShardStore, Store, Superblock};
use engine_core::authority::document::{CreateVolume, Spread};
use engine_core::authority::io::{Call, CallId, Effect, Effects, Input, SessionRef};
use engine_core::authority::policy::Policy;
use engine_core::authority::{Authority, Setup};
use engine_core::config::Config;
use engine_core::gather::Gather;
use engine_core::ids::{BootCount, BootId, ClusterId, DeviceId, NodeId, Revision, SegmentId};
use engine_core::limits::{
    AUTHORITY_TICK, BATCH_BURST, BATCH_PAUSE, EXTENT_SIZE, PROPOSALS_MAX, REPORT_EVERY, TICK, WAL_SIZE_MIN,
};
use engine_core::message::{
    Decision, DeviceOpened, FromAuthority, Lane, NodeAddress, PeerMessage, Registration, Reply, ToAuthority,
};
use engine_core::openings::Openings;
use engine_core::replica::io::ClientRef;
use engine_core::time::{Span, Time};

const CLUSTER: ClusterId = ClusterId(7);
/// Length of the smallest segments.
const EXTENTS: u64 = 512;
/// What a message between two processes takes.
const DELAY: Span = Span::millis(1);
/// What a device takes.
const DISK: Span = Span::millis(1);
/// What a commit of the authority's records takes; what comes meanwhile is in the next.
const COMMIT: Span = Span::millis(10);
/// Nothing is re-mirrored meanwhile.
const GRACE: Span = Span::seconds(60);
/// Within which every segment has a new primary, counted from the first notice of the death.
const SERVED_WITHIN: Span = Span::seconds(5);

type Shard = Quay<ShardStore<MemoryDevice>, Ends>;

/// Where a node's words wait to be carried.
#[derive(Default)]
struct Ends {
    up: BTreeSet<NodeId>,
    peers: BTreeMap<NodeId, Vec<PeerMessage>>,
    wishes: Vec<ToAuthority>,
}

impl Wires for Ends {
    fn peer(&mut self, to: NodeId, _: Lane, message: PeerMessage) {
        if self.up.contains(&to) {
            self.peers.entry(to).or_default().push(message);
        }
    }

    fn is_up(&self, peer: NodeId) -> bool {
        self.up.contains(&peer)
    }

    fn client(&mut self, _: ClientRef, _: Reply) {}

    fn authority(&mut self, message: ToAuthority) {
        self.wishes.push(message);
    }
}

struct Node {
    quay: Shard,
    gather: Gather,
    disk_due: bool,
    events: Vec<store::Event>,
}

enum Event {
    Tick(NodeId),
    Disk(NodeId),
    Peers { from: NodeId, to: NodeId, messages: Vec<PeerMessage> },
    Up { node: NodeId, peer: NodeId },
    Report(NodeId),
    ToAuthority(NodeId, ToAuthority),
    FromAuthority(NodeId, FromAuthority),
    Turn,
    AuthorityTick,
}

/// What the authority got.
#[derive(Debug, Default, Clone, Copy)]
pub struct Counted {
    /// Messages of proposals.
    pub batches: usize,
    /// Proposals in them.
    pub proposals: usize,
    /// Bytes of proposals, at most.
    pub bytes: usize,
    /// Other messages: reports, asks.
    pub others: usize,
}

/// What happened when a node died.
#[derive(Debug, Clone, Copy)]
pub struct Death {
    /// Replicas it held.
    pub replicas: usize,
    /// Segments it led.
    pub led: usize,
    /// From the first notice to the last segment's new primary.
    pub served_after: Span,
    /// From the first notice until every segment goes on without it.
    pub settled_after: Span,
    /// What the authority got until then.
    pub counted: Counted,
    /// Messages of proposals that the bound allows.
    pub batches_max: usize,
}

struct World {
    now: Time,
    queue: BTreeMap<(Time, u64), Event>,
    number: u64,
    nodes: BTreeMap<NodeId, Node>,
    authority: Authority,
    inbox: Vec<Input>,
    turn_due: bool,
    created: u64,
    configs: BTreeMap<SegmentId, Config>,
    counted: Counted,
}

/// A node with space for so many replicas; where it can't be written to, its device takes no memory.
fn node(id: NodeId, replicas: u64) -> Node {
    let slabs = replicas * EXTENTS * 6 / 5;
    let size = (WAL_SIZE_MIN + slabs * (EXTENT_SIZE + 512) + (256 << 20)).next_multiple_of(1 << 20);
    let geometry = Geometry::plan(size, 1, WAL_SIZE_MIN).expect("large enough");
    let (device, boot) = (DeviceId(u128::from(id.0)), BootCount(0));
    let blank = Superblock {
        features: 0,
        compatible: 0,
        cluster: CLUSTER,
        node: id,
        device,
        boot,
        geometry,
        revision: Revision(0),
        openings: Openings::default(),
    };
    let mut disk = engine::device::memory::Disk::new(size);
    store::format(&mut disk, &blank).expect("a blank disk");
    let superblock = store::open(&mut disk, CLUSTER, id, BootId(u128::from(id.0))).expect("a formatted disk");
    let region = superblock.geometry.region(0);
    let mut device = disk.device(region.base, region.len);
    device.hold(true);
    let store = ShardStore::open(&mut disk, device, &superblock, 0).expect("a sound disk");
    let quay = Quay::new(id, 0, u64::from(id.0), store, Ends::default());
    Node { quay, gather: Gather::new(), disk_due: false, events: Vec::new() }
}

impl World {
    fn new(nodes: u16, replicas: u64) -> Self {
        let now = Time(1_000_000_000);
        let setup = Setup { now, cluster: CLUSTER, grace: GRACE, policy: Policy::default(), seed: 1 };
        let mut world = Self {
            now,
            queue: BTreeMap::new(),
            number: 0,
            nodes: (1..=nodes).map(|id| (NodeId(id), node(NodeId(id), replicas))).collect(),
            authority: Authority::restore(Vec::new(), &setup).expect("a new cluster"),
            inbox: Vec::new(),
            turn_due: false,
            created: 0,
            configs: BTreeMap::new(),
            counted: Counted::default(),
        };
        world.after(Span(1), Event::AuthorityTick);
        for id in (1..=nodes).map(NodeId) {
            world.register(id);
            // Nodes do not tick in step.
            world.after(Span(TICK.0 / u64::from(nodes) * u64::from(id.0)), Event::Tick(id));
            world.after(REPORT_EVERY, Event::Report(id));
        }
        world
    }

    fn after(&mut self, span: Span, event: Event) {
        self.number += 1;
        self.queue.insert((self.now + span, self.number), event);
    }

    fn register(&mut self, id: NodeId) {
        let address = NodeAddress { node: id, primary: format!("{id}:1"), replication: format!("{id}:2"), shards: 1 };
        let registration = Registration {
            address,
            zone: "z".into(),
            devices: vec![DeviceOpened {
                device: DeviceId(u128::from(id.0)),
                boot: BootCount(1),
                openings: Box::default(),
                capacity: self.nodes[&id].quay.store().space().capacity,
            }],
            absent: Vec::new(),
            revision: Revision(0),
        };
        let session = SessionRef(u64::from(id.0));
        self.tell(Input::Register { session, boot: BootId(u128::from(id.0)), registration });
    }

    /// Something for the authority's next turn.
    fn tell(&mut self, input: Input) {
        self.inbox.push(input);
        if !std::mem::replace(&mut self.turn_due, true) {
            self.after(COMMIT, Event::Turn);
        }
    }

    fn turn(&mut self) {
        self.turn_due = false;
        let mut effects = Effects::new();
        for input in std::mem::take(&mut self.inbox) {
            self.authority.handle(self.now, input, &mut effects);
        }
        let list: Vec<Effect> = effects.drain().collect();
        for effect in list {
            match effect {
                Effect::Send { to, message } => {
                    if let FromAuthority::Decisions(decisions) = &message {
                        self.note(decisions);
                    }
                    self.after(DELAY, Event::FromAuthority(to, message));
                }
                Effect::Answer { result, .. } => {
                    result.expect("what is asked for is possible");
                    self.created += 1;
                }
                Effect::Refuse { reason, .. } => panic!("{reason}"),
                Effect::Save(_) | Effect::Accept { .. } | Effect::Log(_) => {}
            }
        }
    }

    fn note(&mut self, decisions: &[Decision]) {
        for decision in decisions {
            if let Decision::Installed(config) = decision {
                self.configs.insert(config.segment, config.clone());
            }
        }
    }

    fn run(&mut self, span: Span) {
        let end = self.now + span;
        while let Some(entry) = self.queue.first_entry().filter(|entry| entry.key().0 <= end) {
            let ((time, _), event) = entry.remove_entry();
            self.now = time;
            self.dispatch(event);
        }
        self.now = end;
    }

    fn dispatch(&mut self, event: Event) {
        let now = self.now;
        match event {
            Event::Tick(id) => {
                if self.with(id, |quay| quay.tick(now)) {
                    self.after(TICK, Event::Tick(id));
                }
            }
            Event::Disk(id) => {
                if let Some(node) = self.nodes.get_mut(&id) {
                    node.disk_due = false;
                }
                self.with(id, |quay| {
                    let device = quay.store_mut().device_mut();
                    while device.running() > 0 {
                        device.finish(0);
                    }
                });
            }
            Event::Peers { from, to, messages } => {
                self.with(to, |quay| messages.into_iter().for_each(|message| quay.peer_said(now, from, message)));
            }
            Event::Up { node, peer } => {
                self.with(node, |quay| {
                    quay.wires().up.insert(peer);
                    quay.peer_up(now, peer);
                });
            }
            Event::Report(id) => {
                let Some(node) = self.nodes.get(&id) else { return };
                let report = quay::report(&[node.quay.figures(self.now)]);
                self.after(DELAY, Event::ToAuthority(id, ToAuthority::Report(report)));
                self.after(REPORT_EVERY, Event::Report(id));
            }
            Event::ToAuthority(id, message) => self.authority_hears(id, message),
            Event::FromAuthority(id, message) => self.node_hears(id, message),
            Event::Turn => self.turn(),
            Event::AuthorityTick => {
                self.tell(Input::Tick);
                self.after(AUTHORITY_TICK, Event::AuthorityTick);
            }
        }
    }

    fn authority_hears(&mut self, id: NodeId, message: ToAuthority) {
        if let ToAuthority::Proposals(proposals) = &message {
            assert!(proposals.len() <= PROPOSALS_MAX);
            self.counted.batches += 1;
            self.counted.proposals += proposals.len();
            self.counted.bytes += proposals.iter().map(|proposal| proposal.config.wire_bytes()).sum::<usize>();
        } else {
            self.counted.others += 1;
        }
        self.tell(Input::Node { session: SessionRef(u64::from(id.0)), message });
    }

    fn node_hears(&mut self, id: NodeId, message: FromAuthority) {
        let now = self.now;
        if let Some(node) = self.nodes.get_mut(&id) {
            node.gather.hear(&message);
        }
        self.with(id, |quay| match message {
            FromAuthority::Registered { settings, .. } => quay.serve(now, settings.grace),
            FromAuthority::Nodes(_) | FromAuthority::Revision(_) => {}
            said => quay.authority_said(now, said),
        });
    }

    /// Gives a node something to do and carries what it says; tells whether it lives.
    fn with(&mut self, id: NodeId, act: impl FnOnce(&mut Shard)) -> bool {
        let now = self.now;
        let Some(node) = self.nodes.get_mut(&id) else { return false };
        act(&mut node.quay);
        while node.quay.advance(now, &mut node.events) {}
        let ends = node.quay.wires();
        let (wishes, peers) = (std::mem::take(&mut ends.wishes), std::mem::take(&mut ends.peers));
        let up = ends.up.clone();
        let mut said: Vec<ToAuthority> = wishes.into_iter().filter_map(|wish| node.gather.take(now, wish)).collect();
        said.append(&mut node.gather.next(now));
        let wanted = if node.quay.take_peers_changed() { node.quay.wanted() } else { BTreeSet::new() };
        let busy = node.quay.store_mut().device_mut().running() > 0;
        if busy && !std::mem::replace(&mut node.disk_due, true) {
            self.after(DISK, Event::Disk(id));
        }
        for message in said {
            self.after(DELAY, Event::ToAuthority(id, message));
        }
        for (to, messages) in peers {
            self.after(DELAY, Event::Peers { from: id, to, messages });
        }
        for peer in wanted.difference(&up).copied().filter(|peer| self.nodes.contains_key(peer)).collect::<Vec<_>>() {
            self.after(DELAY, Event::Up { node: id, peer });
        }
        true
    }

    /// Makes a volume of so many segments.
    fn create(&mut self, volume: u64, segments: u64) {
        let request = CreateVolume {
            name: format!("v{volume}"),
            size: segments * EXTENTS * EXTENT_SIZE,
            copies: Some(3),
            min_copies: Some(2),
            segment_size: Some(EXTENTS * EXTENT_SIZE),
            zone: None,
            spread: Some(Spread::Node),
            iops: None,
            mibps: None,
        };
        let before = self.created;
        self.tell(Input::Call { call: CallId(volume), request: Call::Create(request) });
        self.until(Span::seconds(30), "created", |world| world.created > before);
    }

    /// Lets time pass until something holds.
    fn until(&mut self, limit: Span, what: &str, holds: impl Fn(&Self) -> bool) {
        let end = self.now + limit;
        while !holds(self) {
            assert!(self.now < end, "not {what} within {limit:?}");
            self.run(Span::millis(20));
        }
    }

    fn are_served(&self, segments: &[SegmentId]) -> bool {
        segments.iter().all(|segment| {
            self.nodes.values().any(|node| node.quay.replica(*segment).is_some_and(|replica| replica.is_serving()))
        })
    }
}

/// `nodes` nodes with about `replicas` each, all served and quiet.
fn settled(nodes: u16, replicas: u64) -> (World, Vec<SegmentId>) {
    let mut world = World::new(nodes, replicas);
    world.run(Span::millis(200));
    let segments = (replicas * u64::from(nodes) / 3).div_ceil(2);
    world.create(0, segments);
    world.create(1, segments);
    let all: BTreeSet<SegmentId> = world.nodes.values().flat_map(|node| node.quay.segments()).collect();
    let all: Vec<SegmentId> = all.into_iter().collect();
    world.until(Span::seconds(30), "served to begin with", |world| world.are_served(&all));
    world.run(Span::seconds(2));
    (world, all)
}

/// `nodes` nodes with about `replicas` each; one dies, and its host says so. Panics when a bound does not hold.
#[must_use]
pub fn death_with_many_replicas(nodes: u16, replicas: u64) -> Death {
    let (mut world, _) = settled(nodes, replicas);
    let dead = NodeId(1);
    let node = world.nodes.remove(&dead).expect("it lives");
    world.counted = Counted::default();
    world.tell(Input::Gone(SessionRef(u64::from(dead.0))));
    let held = node.quay.segments();
    let led = held.iter().filter(|s| node.quay.replica(**s).is_some_and(|replica| replica.is_serving())).count();
    drop(node);
    world.run(Span::millis(2));
    let noticed = world.now;
    let others: Vec<NodeId> = world.nodes.keys().copied().collect();
    for id in &others {
        world.with(*id, |quay| {
            quay.wires().up.remove(&dead);
            quay.peer_down(noticed, dead, true);
        });
    }
    world.until(SERVED_WITHIN, "served again", |world| world.are_served(&held));
    let served_after = world.now.since(noticed);
    let goes_on = |config: &Config| !config.is_member(dead);
    world.until(SERVED_WITHIN, "without the dead one everywhere", |world| {
        held.iter().all(|segment| world.configs.get(segment).is_some_and(goes_on))
    });
    let settled_after = world.now.since(noticed);

    // docs/protocol.md, "Many replicas".
    let counted = world.counted;
    let tenths = settled_after.as_millis() / BATCH_PAUSE.as_millis() + 1;
    let not_full = others.len() * 2 * (BATCH_BURST as usize + tenths as usize);
    let batches_max = counted.proposals.div_ceil(PROPOSALS_MAX) + not_full;
    assert!(counted.batches <= batches_max, "{counted:?}, at most {batches_max} batches");
    let regular = others.len() * 2 * (settled_after.as_millis() as usize / 1000 + 1);
    assert!(counted.others <= regular, "{counted:?}, at most {regular} other messages");
    assert!(counted.proposals <= 2 * held.len(), "{counted:?}: proposals are repeated without need");
    Death { replicas: held.len(), led, served_after, settled_after, counted, batches_max }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_node_with_ten_thousand_replicas_dies() {
        let death = death_with_many_replicas(5, 10_050);
        println!("{death:?}");
        assert!(death.replicas >= 10_000, "{death:?}");
    }

    /// Processor time of this thread, in nanoseconds.
    fn spent() -> u64 {
        let stat = std::fs::read_to_string("/proc/thread-self/schedstat").unwrap();
        stat.split_whitespace().next().unwrap().parse().unwrap()
    }

    #[test]
    #[ignore = "a measurement: what a quiet node costs, without codec and sockets"]
    fn what_a_quiet_node_costs() {
        let (mut world, all) = settled(5, 10_050);
        let before = spent();
        world.run(Span::seconds(10));
        let each = (spent() - before) / 10 / 5;
        println!("{} segments, 5 nodes: {} us of a core per node and second", all.len(), each / 1000);
    }

    #[test]
    fn a_node_with_some_replicas_dies() {
        let death = death_with_many_replicas(4, 300);
        assert!(death.served_after < Span::millis(1500), "{death:?}");
    }
}
