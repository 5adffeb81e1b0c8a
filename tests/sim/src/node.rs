//! A simulated node: the production machines over the production store, in a loop that mirrors the node's shard.
//!
//! What is decided is decided by the core; this file only runs effects in order, as `engine::node::shard` does.

use std::collections::{BTreeMap, BTreeSet, VecDeque};

use engine::device::memory::{Disk, MemoryDevice};
use engine::store::{self, Event, Geometry, ReadError, ShardStore, Store, Superblock, Ticket};
use engine_core::ids::{BootCount, ClusterId, DeviceId, Incarnation, NodeId, SegmentId, Seq};
use engine_core::limits::{COPY_PAGE, EXTENT_SIZE, WAL_SIZE_MIN};
use engine_core::message::{
    CopyReport, Decision, FromAuthority, Lane, Outcome, Peer, PeerMessage, Refusal, ReplicaReport, Reply, Report,
    Request, ToAuthority,
};
use engine_core::random::Random;
use engine_core::record::{Meta, Record, Recovered};
use engine_core::remirror::newcomer::{self, Newcomer};
use engine_core::remirror::reservation::Reservations;
use engine_core::replica::Replica;
use engine_core::replica::io::{ClientRef, Effect, Effects, Input, ReadPurpose};
use engine_core::time::{Span, Time};

pub(crate) const CLUSTER: ClusterId = ClusterId(7);

/// What a node puts on a wire.
pub(crate) enum Out {
    Peer {
        to: NodeId,
        lane: Lane,
        message: PeerMessage,
    },
    Reply {
        client: ClientRef,
        reply: Reply,
    },
    Authority(ToAuthority),
    /// Whom it wants connections to.
    Want(BTreeSet<NodeId>),
}

/// What a node hears.
#[derive(Debug, Clone)]
pub(crate) enum Heard {
    Tick,
    Disk,
    Peer { from: NodeId, message: PeerMessage },
    PeerUp(NodeId),
    PeerDown { node: NodeId, refused: bool },
    Client { client: ClientRef, request: Request },
    ClientGone(ClientRef),
    Authority(FromAuthority),
}

pub(crate) struct Open {
    birth: u64,
    incarnation: Incarnation,
    pub(crate) replica: Box<Replica>,
    peers: BTreeSet<NodeId>,
}

enum Slot {
    Creating { meta: Box<Meta>, for_authority: bool, held: Vec<(NodeId, Peer)> },
    Open(Open),
    Dropping,
}

enum Waiting {
    Then { segment: SegmentId, birth: u64, effects: Vec<Effect>, copied: u64 },
    Read { segment: SegmentId, birth: u64, purpose: ReadPurpose },
    Extent { segment: SegmentId, birth: u64, to: NodeId, extent: engine_core::ids::ExtentIndex },
    Create(SegmentId),
    Drop(SegmentId, Incarnation),
}

/// One run of a node.
pub(crate) struct Process {
    node: NodeId,
    pub(crate) store: ShardStore<MemoryDevice>,
    pub(crate) superblock: Superblock,
    found: Vec<Recovered>,
    pub(crate) serving: bool,
    grace: Span,
    slots: BTreeMap<SegmentId, Slot>,
    waiting: BTreeMap<Ticket, Waiting>,
    last_ticket: u64,
    last_birth: u64,
    /// Live connections it has made.
    up: BTreeSet<NodeId>,
    wanted: BTreeSet<NodeId>,
    reservations: Reservations,
    given_back: VecDeque<(SegmentId, Input)>,
    effects: Effects,
    pub(crate) out: Vec<Out>,
    pub(crate) copied_bytes: u64,
    pub(crate) failed: bool,
    random: Random,
}

/// A blank, formatted disk for `node`.
pub(crate) fn format(node: NodeId, extents: u64) -> Disk {
    let size = (WAL_SIZE_MIN + 64 * 1024 * 1024 + extents * EXTENT_SIZE).next_multiple_of(1024 * 1024);
    let geometry = Geometry::plan(size, 1, WAL_SIZE_MIN).expect("large enough");
    let superblock = Superblock {
        features: 0,
        cluster: CLUSTER,
        node,
        device: DeviceId(u128::from(node.0)),
        boot: BootCount(0),
        geometry,
    };
    let mut disk = Disk::new(size);
    store::format(&mut disk, &superblock).expect("a blank disk");
    disk
}

impl Process {
    pub(crate) fn start(node: NodeId, disk: &Disk, seed: u64) -> Self {
        let mut whole = disk.clone();
        let superblock = store::open(&mut whole, CLUSTER, node).expect("a formatted disk");
        let region = superblock.geometry.region(0);
        let mut device = disk.device(region.base, region.len);
        // Operations take time: the world finishes them one by one, in any order.
        device.hold(true);
        let mut store = ShardStore::open(&mut whole, device, &superblock, 0).expect("a sound disk");
        let found = store.take_recovered();
        Self {
            node,
            store,
            superblock,
            found,
            serving: false,
            grace: Span::ZERO,
            slots: BTreeMap::new(),
            waiting: BTreeMap::new(),
            last_ticket: 0,
            last_birth: 0,
            up: BTreeSet::new(),
            wanted: BTreeSet::new(),
            reservations: Reservations::new(),
            given_back: VecDeque::new(),
            effects: Effects::new(),
            out: Vec::new(),
            copied_bytes: 0,
            failed: false,
            random: Random::new(seed),
        }
    }

    /// Takes one thing, and lets the store go on.
    pub(crate) fn hear(&mut self, now: Time, heard: Heard) {
        match heard {
            Heard::Tick => {
                for segment in self.segments() {
                    self.handle(now, segment, Input::Tick);
                }
            }
            Heard::Disk => {}
            Heard::Peer { from, message } => self.on_peer(now, from, message),
            Heard::PeerUp(node) => {
                self.up.insert(node);
                self.tell_those_with(now, node, &Input::PeerUp(node));
            }
            Heard::PeerDown { node, refused } => {
                self.up.remove(&node);
                self.tell_those_with(now, node, &Input::PeerDown { node, refused });
            }
            Heard::Client { client, request } => self.on_request(now, client, request),
            Heard::ClientGone(client) => {
                for segment in self.segments() {
                    self.handle(now, segment, Input::ClientGone(client));
                }
            }
            Heard::Authority(said) => self.on_authority(now, said),
        }
        self.settle(now);
        self.advance(now);
        self.want();
    }

    fn advance(&mut self, now: Time) {
        let mut events = Vec::new();
        loop {
            self.store.poll(&mut events);
            if events.is_empty() {
                return;
            }
            for event in events.drain(..) {
                self.on_event(now, event);
            }
            self.settle(now);
        }
    }

    fn settle(&mut self, now: Time) {
        while let Some((segment, input)) = self.given_back.pop_front() {
            self.handle(now, segment, input);
        }
    }

    fn want(&mut self) {
        let open = self.slots.values().filter_map(|slot| if let Slot::Open(open) = slot { Some(open) } else { None });
        let own = self.node;
        let wanted: BTreeSet<NodeId> = open.flat_map(|open| open.peers.iter().copied()).filter(|n| *n != own).collect();
        if wanted != self.wanted {
            self.wanted.clone_from(&wanted);
            self.out.push(Out::Want(wanted));
        }
    }

    pub(crate) fn segments(&self) -> Vec<SegmentId> {
        self.slots.keys().copied().collect()
    }

    pub(crate) fn replica(&self, segment: SegmentId) -> Option<&Replica> {
        match self.slots.get(&segment) {
            Some(Slot::Open(open)) => Some(&open.replica),
            _ => None,
        }
    }

    fn handle(&mut self, now: Time, segment: SegmentId, input: Input) {
        let Some(Slot::Open(open)) = self.slots.get_mut(&segment) else { return };
        open.replica.handle(now, input, &mut self.effects);
        let birth = open.birth;
        let effects: Vec<Effect> = self.effects.drain().collect();
        self.run(segment, birth, effects);
    }

    fn is_here(&self, segment: SegmentId, birth: u64) -> bool {
        matches!(self.slots.get(&segment), Some(Slot::Open(open)) if open.birth == birth)
    }

    fn run(&mut self, segment: SegmentId, birth: u64, effects: Vec<Effect>) {
        for effect in effects {
            if !self.is_here(segment, birth) {
                return;
            }
            self.run_one(segment, birth, effect);
        }
    }

    fn run_one(&mut self, segment: SegmentId, birth: u64, effect: Effect) {
        match effect {
            Effect::Persist { records, then } => {
                let ticket = self.wait_for(Waiting::Then { segment, birth, effects: then, copied: 0 });
                self.store.persist(records, ticket);
            }
            Effect::CopyIn { copy, then } => {
                let copied = copy.blocks.data.len() as u64;
                let ticket = self.wait_for(Waiting::Then { segment, birth, effects: then, copied });
                self.store.copy_in(segment, copy, ticket);
            }
            Effect::Commit(through) => self.store.commit(segment, through),
            Effect::Read { block, count, purpose } => {
                let ticket = self.wait_for(Waiting::Read { segment, birth, purpose });
                self.store.read(segment, block, count, ticket);
            }
            Effect::ReadExtent { to, extent } => {
                let ticket = self.wait_for(Waiting::Extent { segment, birth, to, extent });
                self.store.read_extent(segment, extent, ticket);
            }
            Effect::Allocation { block, count, purpose } => {
                let runs = self.store.allocation(segment, block, count);
                self.given_back.push_back((segment, Input::Allocation { purpose, runs }));
            }
            Effect::List { purpose, above, from } => {
                let (listed, next) = self.store.list(segment, above, from, COPY_PAGE);
                self.given_back.push_back((segment, Input::Listed { purpose, from, listed, next }));
            }
            Effect::Send { to, lane, message } => self.send(segment, to, lane, message),
            Effect::Reply { client, reply } => self.out.push(Out::Reply { client, reply }),
            Effect::Authority(message) => self.out.push(Out::Authority(message)),
            Effect::Feed(durable) => self.given_back.push_back((segment, Input::Durable(durable))),
            Effect::Peers(nodes) => self.set_peers(segment, &nodes),
        }
    }

    fn send(&mut self, segment: SegmentId, to: NodeId, lane: Lane, body: Peer) {
        let Some(Slot::Open(open)) = self.slots.get(&segment) else { return };
        let message = PeerMessage { segment, incarnation: open.incarnation, body };
        self.out.push(Out::Peer { to, lane, message });
    }

    fn set_peers(&mut self, segment: SegmentId, nodes: &[NodeId]) {
        let Some(Slot::Open(open)) = self.slots.get_mut(&segment) else { return };
        let before = std::mem::replace(&mut open.peers, nodes.iter().copied().collect());
        for node in open.peers.difference(&before) {
            if self.up.contains(node) {
                self.given_back.push_back((segment, Input::PeerUp(*node)));
            }
        }
    }

    fn wait_for(&mut self, waiting: Waiting) -> Ticket {
        self.last_ticket += 1;
        let ticket = Ticket(self.last_ticket);
        self.waiting.insert(ticket, waiting);
        ticket
    }

    fn on_event(&mut self, now: Time, event: Event) {
        match event {
            Event::Persisted(ticket) | Event::CopiedIn(ticket) => match self.waiting.remove(&ticket) {
                Some(Waiting::Then { segment, birth, effects, copied }) => {
                    self.copied_bytes += copied;
                    self.run(segment, birth, effects);
                }
                Some(Waiting::Create(segment)) => self.created(now, segment),
                Some(Waiting::Drop(segment, incarnation)) => {
                    if matches!(self.slots.get(&segment), Some(Slot::Dropping)) {
                        self.slots.remove(&segment);
                    }
                    self.out.push(Out::Authority(ToAuthority::Released { segment, incarnation }));
                }
                _ => unreachable!("{ticket:?} was not a write"),
            },
            Event::Read(ticket, result) => {
                let Some(Waiting::Read { segment, birth, purpose }) = self.waiting.remove(&ticket) else { return };
                let result = match result {
                    Ok(blocks) => Ok(blocks),
                    Err(ReadError::Damaged(block)) => panic!("{}: {segment} {block} is damaged", self.node),
                    Err(ReadError::Unknown) => return,
                };
                self.give_back(segment, birth, Input::Read { purpose, result });
            }
            Event::Extent(ticket, result) => {
                let Some(Waiting::Extent { segment, birth, to, extent }) = self.waiting.remove(&ticket) else { return };
                self.give_back(segment, birth, Input::Extent { to, extent, copy: result.ok() });
            }
            Event::Failed(_) => {
                self.failed = true;
                self.waiting.clear();
                for segment in self.segments() {
                    self.handle(now, segment, Input::StoreFailed);
                }
            }
        }
    }

    fn give_back(&mut self, segment: SegmentId, birth: u64, input: Input) {
        if self.is_here(segment, birth) {
            self.given_back.push_back((segment, input));
        }
    }

    fn tell_those_with(&mut self, now: Time, node: NodeId, input: &Input) {
        for segment in self.segments() {
            if matches!(self.slots.get(&segment), Some(Slot::Open(open)) if open.peers.contains(&node)) {
                self.handle(now, segment, input.clone());
            }
        }
    }

    fn on_peer(&mut self, now: Time, from: NodeId, message: PeerMessage) {
        let PeerMessage { segment, incarnation, body } = message;
        if !self.serving {
            return;
        }
        match self.slots.get_mut(&segment) {
            Some(Slot::Open(open)) if open.incarnation == incarnation => {
                self.handle(now, segment, Input::Peer { from, message: body });
            }
            Some(Slot::Creating { meta, held, .. }) if meta.config.incarnation == incarnation => {
                held.push((from, body));
            }
            Some(_) => {}
            None => match newcomer::receive(self.node, &body) {
                Newcomer::Ignore => {}
                Newcomer::Answer(answer) => {
                    let message = PeerMessage { segment, incarnation, body: answer };
                    self.out.push(Out::Peer { to: from, lane: Lane::Live, message });
                }
                Newcomer::Begin(meta) => {
                    self.reservations.take(now, segment);
                    self.begin(now, meta, false, vec![(from, body)]);
                }
            },
        }
    }

    fn begin(&mut self, now: Time, meta: Meta, for_authority: bool, held: Vec<(NodeId, Peer)>) -> bool {
        let segment = meta.config.segment;
        let free = self.unbooked().saturating_sub(self.reservations.held(now));
        if self.failed || u64::from(meta.config.extents) > free {
            return false;
        }
        let ticket = self.wait_for(Waiting::Create(segment));
        self.store.persist(vec![Record::Create { segment, meta: meta.clone() }], ticket);
        self.slots.insert(segment, Slot::Creating { meta: Box::new(meta), for_authority, held });
        true
    }

    fn unbooked(&self) -> u64 {
        let space = self.store.space();
        space.capacity.saturating_sub(space.booked)
    }

    fn created(&mut self, now: Time, segment: SegmentId) {
        let Some(Slot::Creating { meta, for_authority, held }) = self.slots.remove(&segment) else { return };
        let incarnation = meta.config.incarnation;
        if for_authority {
            self.out.push(Out::Authority(ToAuthority::Created { segment, incarnation, result: Ok(()) }));
        }
        self.open(now, Recovered { segment, meta: *meta, commit: Seq(0), tail: Vec::new(), damaged: false });
        for (from, message) in held {
            self.handle(now, segment, Input::Peer { from, message });
        }
    }

    fn open(&mut self, now: Time, recovered: Recovered) {
        self.last_birth += 1;
        let (segment, incarnation) = (recovered.segment, recovered.meta.config.incarnation);
        let seed = self.random.next_u64();
        let mut replica = Box::new(Replica::open(self.node, recovered, self.grace, now, seed));
        replica.start(&mut self.effects);
        let birth = self.last_birth;
        self.slots.insert(segment, Slot::Open(Open { birth, incarnation, replica, peers: BTreeSet::new() }));
        let effects: Vec<Effect> = self.effects.drain().collect();
        self.run(segment, birth, effects);
    }

    fn on_request(&mut self, now: Time, client: ClientRef, request: Request) {
        let refusal = match self.slots.get(&request.segment) {
            Some(Slot::Open(_)) => {
                return self.handle(now, request.segment, Input::Client { client, request });
            }
            Some(Slot::Creating { .. }) => Refusal::Busy,
            None if !self.serving => Refusal::Busy,
            Some(Slot::Dropping) | None => Refusal::Unknown,
        };
        let Request { segment, session, request, .. } = request;
        let epoch = engine_core::ids::Epoch(0);
        let reply = Reply { segment, epoch, session, request, outcome: Outcome::Refused(refusal) };
        self.out.push(Out::Reply { client, reply });
    }

    fn on_authority(&mut self, now: Time, said: FromAuthority) {
        match said {
            FromAuthority::Registered { settings, .. } => {
                if !self.serving {
                    (self.serving, self.grace) = (true, settings.grace);
                    for recovered in std::mem::take(&mut self.found) {
                        self.open(now, recovered);
                    }
                }
            }
            FromAuthority::RegisterRefused(reason) => panic!("{} was refused: {reason}", self.node),
            FromAuthority::Nodes(_) => {}
            FromAuthority::Create { config } => self.create(now, config),
            FromAuthority::Reserve { permit, segment, extents } => {
                let free = self.unbooked();
                let here = self.slots.contains_key(&segment);
                let granted = here || self.reservations.reserve(now, permit, segment, u64::from(extents), free);
                self.out.push(Out::Authority(ToAuthority::Reserved { permit, segment, granted }));
            }
            FromAuthority::Release { segment, incarnation } => self.release(now, segment, incarnation),
            FromAuthority::Granted { segment, permit, target } => {
                self.handle(now, segment, Input::Granted { permit, target });
            }
            FromAuthority::Fence { segment, generation } => self.handle(now, segment, Input::Fence(generation)),
            FromAuthority::Decided(decision) => {
                let segment = match &decision {
                    Decision::Installed(config) | Decision::Conflict(config) | Decision::Denied(config, _) => {
                        config.segment
                    }
                    Decision::Unknown(segment) => *segment,
                };
                self.handle(now, segment, Input::Decided(decision));
            }
        }
    }

    fn create(&mut self, now: Time, config: engine_core::config::Config) {
        let (segment, incarnation) = (config.segment, config.incarnation);
        let result = match self.slots.get(&segment) {
            Some(Slot::Creating { .. }) => return,
            Some(_) => Ok(()),
            None => match newcomer::created(self.node, &config) {
                Ok(meta) => {
                    if self.begin(now, meta, true, Vec::new()) {
                        return;
                    }
                    Err("no space".into())
                }
                Err(reason) => Err(reason.into()),
            },
        };
        self.out.push(Out::Authority(ToAuthority::Created { segment, incarnation, result }));
    }

    fn release(&mut self, now: Time, segment: SegmentId, incarnation: Incarnation) {
        let here = match self.slots.get(&segment) {
            Some(Slot::Open(open)) => Some(open.incarnation),
            Some(Slot::Creating { meta, .. }) => Some(meta.config.incarnation),
            Some(Slot::Dropping) => return,
            None => None,
        };
        if here != Some(incarnation) {
            return self.out.push(Out::Authority(ToAuthority::Released { segment, incarnation }));
        }
        self.handle(now, segment, Input::Stopping);
        self.slots.insert(segment, Slot::Dropping);
        let ticket = self.wait_for(Waiting::Drop(segment, incarnation));
        self.store.persist(vec![Record::Drop { segment, incarnation }], ticket);
    }

    /// Everything held durably, for the authority.
    pub(crate) fn replicas(&self) -> Vec<ReplicaReport> {
        let found = self.found.iter().map(|recovered| &recovered.meta.config);
        let open = self.slots.values().filter_map(|slot| match slot {
            Slot::Open(open) => Some(open.replica.config()),
            _ => None,
        });
        let all = found.chain(open);
        all.map(|c| ReplicaReport { segment: c.segment, incarnation: c.incarnation, epoch: c.epoch }).collect()
    }

    /// The regular report.
    pub(crate) fn report(&self) -> Report {
        let space = self.store.space();
        let mut report = Report { booked: space.booked, used: space.used, ..Report::default() };
        report.copied_bytes = self.copied_bytes;
        for segment in self.slots.keys() {
            let Some(replica) = self.replica(*segment) else { continue };
            report.replicas += 1;
            if replica.is_serving() {
                report.serving += 1;
            } else if replica.should_serve() {
                report.not_serving.push(*segment);
            }
            if let Some((full, copied, left)) = replica.view().copy {
                report.copies.push(CopyReport { segment: *segment, full, copied, left });
            }
        }
        report
    }
}
