//! A volume against nodes that run in the test: they keep blocks in memory and misbehave on demand.
#![allow(clippy::unwrap_used, clippy::cast_possible_truncation)]

use std::collections::BTreeSet;

use bytes::Bytes;
use engine_core::config::Config;
use engine_core::ids::{BlockIndex, BootId, Incarnation};
use engine_core::message::Refusal;
use engine_core::record::Blocks;
use tokio::net::TcpListener;
use tokio::task::{JoinHandle, JoinSet, LocalSet};
use tokio::time::timeout;

use super::*;
use crate::gateway::Export;
use crate::wire::{Message, Welcome, accept, with_sums};

const CLUSTER: ClusterId = ClusterId(9);
const VOLUME: VolumeId = VolumeId(1);
const MIB: u64 = 1 << 20;
const SIZE: u64 = 130 * MIB;
const A: NodeId = NodeId(1);
const B: NodeId = NodeId(2);
const C: NodeId = NodeId(3);

/// What all nodes know together, and how they are to misbehave.
struct World {
    configs: Vec<Config>,
    blocks: HashMap<(u32, u32), Bytes>,
    generation: Generation,
    /// Sessions seen by writes, in order, with their first block.
    log: Vec<(Session, u32)>,
    /// So many requests are refused as busy.
    busy: u32,
    /// So many changes are made and then the connection is closed instead of an answer.
    swallow: u32,
    /// So many reads are answered with zeros in the name of an earlier epoch.
    stale: u32,
    /// So many reads are answered with a damaged block.
    damaged: u32,
    /// Nodes that take requests and say nothing.
    silent: BTreeSet<NodeId>,
    connections: usize,
}

fn config(layout: &Layout, index: u32) -> Config {
    Config {
        segment: SegmentId { volume: VOLUME, index },
        incarnation: Incarnation(1),
        epoch: Epoch(2),
        primary: A,
        members: vec![A, B, C],
        candidates: vec![],
        electable: vec![A, B, C],
        former: vec![],
        generation: Generation(3),
        copies: 3,
        min_copies: 2,
        extents: layout.extents(index),
    }
}

impl World {
    fn answer(&mut self, node: NodeId, request: &Request) -> Option<Reply> {
        let config = self.configs[request.segment.index as usize].clone();
        let reply = |epoch, outcome| {
            let Request { segment, session, request, .. } = *request;
            Some(Reply { segment, epoch, session, request, outcome })
        };
        let refuse = |refusal| reply(config.epoch, Outcome::Refused(refusal));
        match request.op {
            Op::Locate { .. } => return reply(config.epoch, Outcome::Located(config)),
            Op::Peek { block, count } => {
                return reply(config.epoch, Outcome::Data(self.read(request.segment, block, count)));
            }
            _ => {}
        }
        if request.generation < self.generation {
            return refuse(Refusal::Fenced(self.generation));
        }
        if config.primary != node {
            return refuse(Refusal::NotPrimary(Some(config.clone())));
        }
        if self.busy > 0 {
            self.busy -= 1;
            return refuse(Refusal::Busy);
        }
        match &request.op {
            Op::Read { block, count } => {
                let mut blocks = self.read(request.segment, *block, *count);
                if self.stale > 0 {
                    self.stale -= 1;
                    let zeros = Bytes::from(vec![0; blocks.data.len()]);
                    blocks = with_sums(request.segment, *block, zeros);
                    return reply(Epoch(config.epoch.0 - 1), Outcome::Data(blocks));
                }
                if self.damaged > 0 {
                    self.damaged -= 1;
                    let mut data = blocks.data.to_vec();
                    data[77] ^= 1;
                    blocks.data = data.into();
                }
                reply(config.epoch, Outcome::Data(blocks))
            }
            Op::Write(change) => {
                self.change(request, change);
                if self.swallow > 0 {
                    self.swallow -= 1;
                    return None;
                }
                reply(config.epoch, Outcome::Written)
            }
            Op::Allocation { block, count } => {
                let held = |at| self.blocks.contains_key(&(request.segment.index, at));
                reply(config.epoch, Outcome::Allocation((block.0..block.0 + count).map(|at| (1, held(at))).collect()))
            }
            Op::Locate { .. } | Op::Peek { .. } => unreachable!(),
        }
    }

    fn read(&self, segment: SegmentId, block: BlockIndex, count: u32) -> Blocks {
        let mut data = Vec::new();
        for at in block.0..block.0 + count {
            match self.blocks.get(&(segment.index, at)) {
                Some(held) => data.extend_from_slice(held),
                None => data.resize(data.len() + 4096, 0),
            }
        }
        with_sums(segment, block, data.into())
    }

    fn change(&mut self, request: &Request, change: &Change) {
        let (first, count) = change.range();
        self.log.push((request.session, first.0));
        for at in 0..count {
            let key = (request.segment.index, first.0 + at);
            match change {
                Change::Write { blocks, .. } => {
                    crate::wire::check_sums(request.segment, first, blocks).unwrap();
                    self.blocks.insert(key, blocks.block(at));
                }
                _ => {
                    self.blocks.remove(&key);
                }
            }
        }
    }
}

/// Three nodes and a volume of two segments.
struct Cluster {
    world: Rc<RefCell<World>>,
    map: VolumeMap,
    running: RefCell<BTreeMap<NodeId, JoinHandle<()>>>,
}

impl Cluster {
    async fn new() -> Self {
        let layout = Layout::new(SIZE, 64 * MIB);
        let configs: Vec<Config> = (0..layout.segments()).map(|index| config(&layout, index)).collect();
        let world = World {
            configs: configs.clone(),
            blocks: HashMap::new(),
            generation: Generation(3),
            log: vec![],
            busy: 0,
            swallow: 0,
            stale: 0,
            damaged: 0,
            silent: BTreeSet::new(),
            connections: 0,
        };
        let map = VolumeMap {
            cluster: CLUSTER,
            volume: VOLUME,
            name: "v".into(),
            size: SIZE,
            generation: Generation(3),
            limits: VolumeLimits::default(),
            layout,
            segments: configs,
            nodes: vec![],
        };
        let mut cluster = Self { world: Rc::new(RefCell::new(world)), map, running: RefCell::default() };
        for node in [A, B, C] {
            let address = cluster.start(node, "127.0.0.1:0").await;
            cluster.map.nodes.push(Address { node, primary: address.clone(), replication: address, shards: 1 });
        }
        cluster
    }

    async fn start(&self, node: NodeId, address: &str) -> String {
        let listener = TcpListener::bind(address).await.unwrap();
        let address = listener.local_addr().unwrap().to_string();
        let task = spawn_local(serve(node, listener, Rc::clone(&self.world)));
        self.running.borrow_mut().insert(node, task);
        address
    }

    async fn kill(&self, node: NodeId) {
        let task = self.running.borrow_mut().remove(&node).unwrap();
        task.abort();
        let _ = task.await;
    }

    fn elect(&self, primary: NodeId) {
        for config in &mut self.world.borrow_mut().configs {
            config.epoch = config.epoch.next();
            config.primary = primary;
        }
    }

    fn open(&self) -> Volume {
        self.open_with(Options::default())
    }

    fn open_with(&self, options: Options) -> Volume {
        Volume::open(self.map.clone(), options)
    }
}

async fn serve(node: NodeId, listener: TcpListener, world: Rc<RefCell<World>>) {
    let local = Welcome { cluster: CLUSTER, node: Some(node), boot: BootId(1), shards: 1 };
    let mut connections = JoinSet::new();
    loop {
        let (stream, _) = listener.accept().await.unwrap();
        let (local, world) = (local.clone(), Rc::clone(&world));
        connections.spawn_local(async move {
            let Ok((_, link)) = accept(stream, &local).await else { return };
            let (mut inbound, outbox) = link.split();
            world.borrow_mut().connections += 1;
            while let Ok(Message::Request(request)) = inbound.next().await {
                if world.borrow().silent.contains(&node) {
                    continue;
                }
                let Some(reply) = world.borrow_mut().answer(node, &request) else { break };
                outbox.try_send(&Message::Reply(reply)).unwrap();
            }
            world.borrow_mut().connections -= 1;
        });
    }
}

/// Runs a story; one that hangs fails.
fn story(work: impl Future<Output = ()>) {
    let runtime = tokio::runtime::Builder::new_current_thread().enable_all().build().unwrap();
    LocalSet::new().block_on(&runtime, async { timeout(Duration::from_secs(30), work).await.expect("it hangs") });
}

fn pattern(len: u64, seed: u64) -> Bytes {
    let mut random = Random::new(seed);
    (0..len).map(|_| random.next_u64() as u8).collect::<Vec<u8>>().into()
}

#[test]
fn any_alignment_reads_what_was_written() {
    story(async {
        let cluster = Cluster::new().await;
        let volume = cluster.open();
        // Around chunk borders of the stripe and the end of the volume.
        let windows = [(MIB - 8192, 16384), (2 * MIB - 4096, MIB + 12288), (SIZE - 16384, 16384)];
        let mut random = Random::new(3);
        for (start, len) in windows {
            let mut model = vec![0; index(len)];
            for round in 0..60 {
                let from = random.between(0, len / 512 - 1) * 512;
                let size = random.between(1, ((len - from) / 512).min(20)) * 512;
                let (at, to) = (index(from), index(from + size));
                match random.between(0, 3) {
                    0 => {
                        volume.zero(start + from, size, round % 2 == 0).await.unwrap();
                        model[at..to].fill(0);
                    }
                    _ => {
                        let data = pattern(size, round);
                        model[at..to].copy_from_slice(&data);
                        volume.write(start + from, data).await.unwrap();
                    }
                }
                let read = volume.read(start + from, size).await.unwrap();
                assert_eq!(read, &model[at..to]);
            }
            assert_eq!(volume.read(start, len).await.unwrap(), model);
            assert_eq!(volume.peek(C, start, len).await.unwrap(), model);
        }
        assert!(volume.read(SIZE - 512, 1024).await.is_err());
        assert!(volume.write(u64::MAX, Bytes::from_static(&[0; 512])).await.is_err());
    });
}

fn index(bytes: u64) -> usize {
    usize::try_from(bytes).unwrap()
}

#[test]
fn allocation_shows_holes_cut_to_what_was_asked() {
    story(async {
        let cluster = Cluster::new().await;
        let volume = cluster.open();
        volume.write(8192, pattern(8192, 1)).await.unwrap();
        volume.write(MIB, pattern(4096, 1)).await.unwrap();
        let runs = volume.allocation(512, 2 * MIB).await.unwrap();
        assert_eq!(runs, [(7680, false), (8192, true), (MIB - 16384, false), (4096, true), (MIB - 3584, false)]);
        assert_eq!(volume.allocation(8704, 512).await.unwrap(), [(512, true)]);
        volume.zero(8192, 8192, true).await.unwrap();
        assert_eq!(volume.allocation(0, MIB).await.unwrap(), [(MIB, false)]);
        volume.zero(8192, 8192, false).await.unwrap();
        assert_eq!(volume.allocation(0, 16384).await.unwrap(), [(8192, false), (8192, true)]);
        assert!(!volume.allocation(0, SIZE).await.unwrap().is_empty());
    });
}

#[test]
fn a_dead_primary_is_followed_to_the_next_one() {
    story(async {
        let cluster = Cluster::new().await;
        let volume = cluster.open();
        volume.write(0, pattern(4096, 1)).await.unwrap();
        cluster.kill(A).await;
        let began = Instant::now();
        let (written, ()) = tokio::join!(volume.write(4096, pattern(4096, 2)), async {
            sleep(Duration::from_millis(200)).await;
            cluster.elect(B);
        });
        written.unwrap();
        assert!(began.elapsed() < Duration::from_millis(600), "{:?}", began.elapsed());
        assert_eq!(volume.read(0, 4096).await.unwrap(), pattern(4096, 1));
        assert!(volume.stats().longest_wait >= Duration::from_millis(200));
        assert_eq!(volume.stats().failed, 0);
        assert!(volume.stats().connections_lost >= 1);
    });
}

#[test]
fn a_primary_that_hangs_is_left_when_the_others_have_another() {
    story(async {
        let cluster = Cluster::new().await;
        let volume = cluster.open();
        volume.write(0, pattern(4096, 1)).await.unwrap();
        cluster.world.borrow_mut().silent.insert(A);
        cluster.elect(C);
        assert_eq!(volume.read(0, 4096).await.unwrap(), pattern(4096, 1));
    });
}

#[test]
fn a_write_whose_answer_was_lost_is_sent_again_before_later_ones() {
    story(async {
        let cluster = Cluster::new().await;
        let volume = cluster.open();
        volume.write(0, pattern(4096, 1)).await.unwrap();
        cluster.world.borrow_mut().swallow = 1;
        let (first, second, other) = tokio::join!(
            volume.write(4096, pattern(4096, 2)),
            volume.write(4096, pattern(4096, 3)),
            volume.write(8192, pattern(4096, 4)),
        );
        first.and(second).and(other).unwrap();
        assert_eq!(volume.read(4096, 4096).await.unwrap(), pattern(4096, 3));
        let log = cluster.world.borrow().log.clone();
        let sessions: Vec<(u64, u32)> = log.iter().map(|(session, block)| (session.0 - log[0].0.0, *block)).collect();
        assert_eq!(sessions, [(0, 0), (0, 1), (1, 1), (1, 2), (1, 1)]);
    });
}

#[test]
fn a_fenced_volume_fails_at_once_and_for_ever() {
    story(async {
        let cluster = Cluster::new().await;
        let volume = cluster.open();
        volume.write(0, pattern(4096, 1)).await.unwrap();
        assert!(!volume.is_fenced());
        cluster.world.borrow_mut().generation = Generation(4);
        assert_eq!(volume.write(0, pattern(4096, 2)).await, Err(ExportError::Fenced));
        assert!(volume.is_fenced());
        // Also where no node was asked: another segment, and nodes that are gone.
        cluster.kill(A).await;
        assert_eq!(volume.read(MIB, 4096).await, Err(ExportError::Fenced));
        assert_eq!(cluster.world.borrow().log.len(), 1);
    });
}

#[test]
fn busy_primaries_and_answers_of_earlier_epochs_are_waited_out() {
    story(async {
        let cluster = Cluster::new().await;
        let volume = cluster.open();
        cluster.world.borrow_mut().busy = 5;
        volume.write(0, pattern(4096, 1)).await.unwrap();
        cluster.world.borrow_mut().stale = 3;
        assert_eq!(volume.read(0, 4096).await.unwrap(), pattern(4096, 1));
        cluster.world.borrow_mut().damaged = 2;
        assert_eq!(volume.read(0, 4096).await.unwrap(), pattern(4096, 1));
        cluster.world.borrow_mut().damaged = 3;
        assert!(matches!(volume.read(0, 4096).await, Err(ExportError::Io(_))));
    });
}

#[test]
fn halves_of_one_block_written_at_the_same_time_both_survive() {
    story(async {
        let cluster = Cluster::new().await;
        let volume = cluster.open();
        for round in 0..50 {
            let (low, high) = (pattern(512, round), pattern(1024, round + 1000));
            let whole = pattern(4096, round + 2000);
            let (a, b, c) =
                tokio::join!(volume.write(0, low.clone()), volume.write(3072, high.clone()), volume.write(4096, whole));
            a.and(b).and(c).unwrap();
            let read = volume.read(0, 4096).await.unwrap();
            assert_eq!((&read[..512], &read[3072..]), (&low[..], &high[..]), "round {round}");
        }
        // A write of the whole block in between is before or after, never half.
        for round in 0..50 {
            let (low, whole) = (pattern(512, round), pattern(8192, round + 5));
            let (a, b) = tokio::join!(
                volume.write(4096 - 512, [&low[..], &low[..]].concat().into()),
                volume.write(0, whole.clone())
            );
            a.and(b).unwrap();
            let read = volume.read(0, 8192).await.unwrap();
            assert_eq!((&read[..3584], &read[4608..]), (&whole[..3584], &whole[4608..]));
        }
    });
}

#[test]
fn the_time_limit_is_kept_and_a_fresh_map_is_followed() {
    story(async {
        let mut cluster = Cluster::new().await;
        let limit = Options { io_limit: Some(Duration::from_millis(300)), ..Options::default() };
        let good = cluster.map.clone();
        // Nobody listens at any address of the map.
        for node in [A, B, C] {
            cluster.kill(node).await;
        }
        assert_eq!(cluster.open_with(limit).write(0, pattern(4096, 1)).await, Err(ExportError::TimedOut));
        let mut fresh = good.clone();
        for address in &mut fresh.nodes {
            address.primary = cluster.start(address.node, "127.0.0.1:0").await;
        }
        let refresh: Refresh = Rc::new(move || {
            let fresh = fresh.clone();
            Box::pin(async move { Some(fresh) })
        });
        cluster.map = good;
        let volume = cluster.open_with(Options { refresh: Some(refresh), ..Options::default() });
        volume.write(0, pattern(4096, 1)).await.unwrap();
    });
}

#[test]
fn the_replication_network_is_the_second_way_to_a_node() {
    story(async {
        let mut cluster = Cluster::new().await;
        let gone = TcpListener::bind("127.0.0.1:0").await.unwrap().local_addr().unwrap().to_string();
        for address in &mut cluster.map.nodes {
            address.primary.clone_from(&gone);
        }
        cluster.open().write(0, pattern(4096, 1)).await.unwrap();
    });
}

#[test]
fn a_closed_volume_fails_and_leaves_no_connections() {
    story(async {
        let cluster = Cluster::new().await;
        let volume = cluster.open();
        volume.write(0, pattern(4096, 1)).await.unwrap();
        volume.peek(B, 0, 4096).await.unwrap();
        volume.peek(C, 0, 4096).await.unwrap();
        assert_eq!(cluster.world.borrow().connections, 3);
        cluster.world.borrow_mut().silent.insert(A);
        let (result, ()) = tokio::join!(volume.read(0, 4096), async {
            tokio::task::yield_now().await;
            volume.close();
        });
        assert!(matches!(result, Err(ExportError::Io(_))));
        assert!(volume.read(0, 4096).await.is_err());
        while cluster.world.borrow().connections > 0 {
            tokio::task::yield_now().await;
        }
        // The same by dropping.
        cluster.world.borrow_mut().silent.clear();
        let volume = cluster.open();
        volume.clone().write(0, pattern(4096, 1)).await.unwrap();
        drop(volume);
        while cluster.world.borrow().connections > 0 {
            tokio::task::yield_now().await;
        }
    });
}

#[test]
fn a_long_queue_is_worked_off_within_its_bounds() {
    story(async {
        let cluster = Cluster::new().await;
        let volume = cluster.open();
        let mut tasks = JoinSet::new();
        for at in 0..3000 {
            let volume = volume.clone();
            tasks.spawn_local(async move { volume.write(at * 4096, pattern(4096, at)).await });
        }
        for at in 0..40 {
            let volume = volume.clone();
            tasks.spawn_local(async move { volume.write(64 * MIB + at * MIB, pattern(MIB, at)).await });
        }
        while let Some(done) = tasks.join_next().await {
            done.unwrap().unwrap();
        }
        assert_eq!(volume.read(77 * 4096, 4096).await.unwrap(), pattern(4096, 77));
        assert_eq!(volume.read(70 * MIB, MIB).await.unwrap(), pattern(MIB, 6));
    });
}

#[test]
fn a_limited_volume_begins_no_more_than_its_rate_and_in_order() {
    story(async {
        // Ten requests, or 25 blocks, fit the burst; each of the others takes its time.
        for (limits, least) in [((100, 0), Duration::from_millis(299)), ((0, 1), Duration::from_millis(55))] {
            let mut cluster = Cluster::new().await;
            cluster.map.limits = VolumeLimits { iops: limits.0, mibps: limits.1 };
            let volume = cluster.open();
            let began = Instant::now();
            let mut writes = JoinSet::new();
            for block in 0..40 {
                let volume = volume.clone();
                writes.spawn_local(async move { volume.write(block * 4096, pattern(4096, block)).await.unwrap() });
            }
            while let Some(written) = writes.join_next().await {
                written.unwrap();
            }
            assert!(began.elapsed() >= least, "{:?}", began.elapsed());
            let seen: Vec<u32> = cluster.world.borrow().log.iter().map(|(_, block)| *block).collect();
            assert_eq!(seen, (0..40).collect::<Vec<u32>>());
        }
    });
}
