//! The store against a model, through crashes.
#![allow(clippy::unwrap_used, clippy::cast_possible_truncation)]

mod check;
mod crash;
mod large;
mod real;
mod restart;
mod ring;
mod stories;

use std::cell::Cell;

use bytes::Bytes;
use engine_core::config::Config;
use engine_core::ids::{
    BlockIndex, BootCount, BootId, ClusterId, DeviceId, Epoch, Generation, Incarnation, NodeId, Revision, SegmentId,
    Seq, VolumeId,
};
use engine_core::openings::Openings;
use engine_core::record::{Blocks, Change, Entry, Meta, Record, Standing};

use super::superblock::{Geometry, Superblock};
use super::{Event, ShardStore, Store, block_sum};
use crate::device::memory::{Disk, MemoryDevice};

thread_local! {
    static MISTAKE: Cell<Option<Mistake>> = const { Cell::new(None) };
}

/// What the store is told to do wrong, to see that the crash test notices.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum Mistake {
    /// Apply does not wait for the commit point to be durable.
    ApplyBeforeCommit,
    /// A slab given up is used again at once.
    ReuseAtOnce,
    /// A batch is answered when it is written, durable or not.
    AckBeforeSync,
    /// A checkpoint counts before what it names is durable.
    HeaderFirst,
    /// What was read is returned whatever its checksum.
    ChecksumIgnored,
    /// The ring is used again before the checkpoint that allows it is durable.
    FreedEarly,
}

/// Whether this mistake is to be made.
pub(crate) fn mistake(which: Mistake) -> bool {
    MISTAKE.get() == Some(which)
}

const CLUSTER: ClusterId = ClusterId(7);
const NODE: NodeId = NodeId(1);
const MIB: u64 = 1 << 20;

fn superblock(size: u64, wal_size: u64) -> Superblock {
    let geometry = Geometry { size, shards: 1, wal_size };
    Superblock {
        features: 0,
        compatible: 0,
        cluster: CLUSTER,
        node: NODE,
        device: DeviceId(99),
        boot: BootCount(0),
        geometry,
        revision: Revision(0),
        openings: Openings::default(),
    }
}

fn formatted(size: u64, wal_size: u64) -> Disk {
    let mut disk = Disk::new(size);
    super::format(&mut disk, &superblock(size, wal_size)).unwrap();
    disk
}

fn open(disk: &Disk) -> ShardStore<MemoryDevice> {
    let mut whole = disk.clone();
    let superblock = super::open(&mut whole, CLUSTER, NODE, BootId(1)).unwrap();
    let region = superblock.geometry.region(0);
    let mut store = ShardStore::open(&mut whole, disk.device(region.base, region.len), &superblock, 0).unwrap();
    // So few that they come and go.
    store.set_sum_pages(2);
    store
}

fn segment(index: u32) -> SegmentId {
    SegmentId { volume: VolumeId(3), index }
}

fn meta(segment: SegmentId, extents: u32, standing: Standing, epoch: u64) -> Meta {
    let config = Config {
        segment,
        incarnation: Incarnation(1),
        epoch: Epoch(epoch),
        primary: NODE,
        members: vec![NODE, NodeId(2)],
        candidates: vec![NodeId(3)],
        electable: vec![NODE, NodeId(2)],
        former: vec![],
        generation: Generation(4),
        copies: 3,
        min_copies: 2,
        extents,
    };
    Meta { promised: Epoch(epoch), log_epoch: Epoch(epoch), config, standing }
}

/// Blocks filled with one number each.
fn blocks(segment: SegmentId, first: u32, contents: &[(u32, u64)]) -> Blocks {
    let (mut data, mut sums) = (Vec::new(), Vec::new());
    for (block, number) in contents {
        let content = number.to_le_bytes().repeat(512);
        sums.extend(block_sum(segment, BlockIndex(first + block), &content).to_le_bytes());
        data.extend(content);
    }
    Blocks { data: Bytes::from(data), sums: Bytes::from(sums) }
}

fn write(segment: SegmentId, seq: u64, block: u32, count: u32, number: u64) -> Entry {
    let contents: Vec<_> = (0..count).map(|at| (at, number)).collect();
    let change = Change::Write { block: BlockIndex(block), blocks: blocks(segment, block, &contents) };
    Entry { epoch: Epoch(1), seq: Seq(seq), change }
}

fn zero(seq: u64, block: u32, count: u32) -> Entry {
    Entry { epoch: Epoch(1), seq: Seq(seq), change: Change::Zero { block: BlockIndex(block), count } }
}

fn prepare(segment: SegmentId, commit: u64, entry: Entry) -> Record {
    Record::Prepare { segment, commit: Seq(commit), entry }
}

fn create(segment: SegmentId, extents: u32) -> Record {
    Record::Create { segment, meta: meta(segment, extents, Standing::Member, 1) }
}

/// Polls until nothing is left to be done; gives all events.
fn run(store: &mut ShardStore<MemoryDevice>) -> Vec<Event> {
    let mut events = Vec::new();
    for _ in 0..10_000 {
        store.poll(&mut events);
        if store.is_quiet() {
            return events;
        }
    }
    let queued = (store.wal.queue.len(), store.wal.own.len(), store.map.unresolved, store.map.dirty, store.settling);
    panic!("the store does not come to rest: {:?} {queued:?} {:?}", store.wal.ring, store.checkpoint);
}

/// The number in each block, 0 for zeros.
fn numbers(blocks: &Blocks) -> Vec<u64> {
    assert!(blocks.is_well_formed());
    blocks.data.chunks(4096).map(|block| u64::from_le_bytes(block[..8].try_into().unwrap())).collect()
}
