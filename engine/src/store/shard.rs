//! One shard's store: the state machine behind [`Store`]. The parts of its work are in `log` (batches), `read`,
//! `copy`, `apply` and `checkpoint`; this file holds the state, the dispatch of completions, and the trait.

use std::collections::BTreeMap;

use engine_core::ids::{BlockIndex, BootCount, DeviceId, ExtentIndex, SegmentId, Seq};
use engine_core::limits::EXTENT_BLOCKS;
use engine_core::record::{ExtentCopy, Record, Recovered};

use super::apply::Apply;
use super::checkpoint::Checkpoint;
use super::copy::Copies;
use super::format::WalRecord;
use super::map::{Map, Source};
use super::read::Reads;
use super::slabs::Slabs;
use super::superblock::Region;
use super::wal::{Queued, Wal};
use super::{Event, Page, Space, Store, Ticket};
use crate::device::buffer::AlignedBuf;
use crate::device::{Completion, Device, Operation, Tag};

/// Polls without anything to do after which committed entries are applied although there is room.
const IDLE_POLLS: u32 = 50;

/// Whose operation completed.
#[derive(Debug, Clone, Copy)]
pub(crate) enum Purpose {
    /// The WAL batch in flight.
    Batch,
    /// Part of a read job.
    Read { job: u64, part: usize, slab: u32 },
    /// A write of a copy.
    Copy { job: u64, slab: u32 },
    /// A write of an apply job.
    Apply { job: u64, slab: u32 },
    /// A chunk of a checkpoint's body.
    Chunk,
    /// The flush before a checkpoint's header.
    Flushed,
    /// A checkpoint's header.
    Header,
}

/// What every batch and checkpoint of this shard carries.
#[derive(Debug, Clone, Copy)]
pub(crate) struct Label {
    pub(crate) device: DeviceId,
    pub(crate) shard: u16,
    pub(crate) boot: BootCount,
}

/// See the module and [`Store`].
pub struct ShardStore<D> {
    pub(crate) device: D,
    pub(crate) region: Region,
    pub(crate) label: Label,
    pub(crate) map: Map,
    /// Creates that are queued: extents booked, and the commit point told meanwhile.
    pub(crate) creating: BTreeMap<SegmentId, (u64, Seq)>,
    pub(crate) slabs: Slabs,
    /// Something waits for a free slab.
    pub(crate) slabs_wanted: bool,
    pub(crate) wal: Wal,
    pub(crate) reads: Reads,
    pub(crate) copies: Copies,
    pub(crate) apply: Apply,
    pub(crate) checkpoint: Checkpoint,
    pub(crate) operations: BTreeMap<Tag, Purpose>,
    next_tag: u64,
    pub(crate) events: Vec<Event>,
    pub(crate) recovered: Vec<Recovered>,
    pub(crate) damaged_blocks: u64,
    failed: bool,
    pub(crate) settling: bool,
    pub(crate) idle_polls: u32,
    done: Vec<Completion>,
}

impl<D: Device> ShardStore<D> {
    /// Put together by `recover`.
    pub(crate) fn assemble(
        device: D,
        region: Region,
        label: Label,
        map: Map,
        slabs: Slabs,
        wal: Wal,
        number: u64,
    ) -> Self {
        Self {
            device,
            region,
            label,
            map,
            creating: BTreeMap::new(),
            slabs,
            slabs_wanted: false,
            wal,
            reads: Reads::default(),
            copies: Copies::default(),
            apply: Apply::default(),
            checkpoint: Checkpoint::after(number),
            operations: BTreeMap::new(),
            next_tag: 0,
            events: Vec::new(),
            recovered: Vec::new(),
            damaged_blocks: 0,
            failed: false,
            settling: false,
            idle_polls: 0,
            done: Vec::new(),
        }
    }

    /// The device, for its wake descriptor.
    pub const fn device(&self) -> &D {
        &self.device
    }

    /// The device, for tests that finish its operations one by one.
    pub const fn device_mut(&mut self) -> &mut D {
        &mut self.device
    }

    pub(crate) fn submit(&mut self, purpose: Purpose, operation: Operation) {
        let tag = Tag(self.next_tag);
        self.next_tag += 1;
        if let Purpose::Read { slab, .. } | Purpose::Copy { slab, .. } | Purpose::Apply { slab, .. } = purpose {
            self.slabs.start(slab);
        }
        self.operations.insert(tag, purpose);
        self.device.submit(tag, operation);
    }

    /// A durable write failed: what is on the device is unknown (DESIGN 6). Latches.
    pub(crate) fn fail(&mut self, doing: &str, error: &std::io::Error) {
        if !self.failed {
            self.failed = true;
            self.events.push(Event::Failed(format!("shard {}: {doing}: {error}", self.label.shard)));
        }
    }

    fn complete(&mut self, completion: Completion) {
        let Completion { tag, buffer, result } = completion;
        let Some(purpose) = self.operations.remove(&tag) else { return };
        if let Purpose::Read { slab, .. } | Purpose::Copy { slab, .. } | Purpose::Apply { slab, .. } = purpose {
            self.slabs.finish(slab);
        }
        if self.failed {
            return;
        }
        let doing = match purpose {
            Purpose::Read { job, part, .. } => return self.on_read(job, part, buffer.filter(|_| result.is_ok())),
            Purpose::Batch => "writing the WAL",
            Purpose::Copy { .. } => "writing a copy",
            Purpose::Apply { .. } => "applying",
            Purpose::Chunk | Purpose::Flushed | Purpose::Header => "writing a checkpoint",
        };
        if let Err(error) = result {
            return self.fail(doing, &error);
        }
        match purpose {
            Purpose::Batch => self.on_batch(),
            Purpose::Copy { job, .. } => self.on_copy_written(job),
            Purpose::Apply { job, .. } => self.on_applied(job),
            Purpose::Chunk => self.on_chunk(),
            Purpose::Flushed => self.on_flushed(),
            Purpose::Header => self.on_header(),
            Purpose::Read { .. } => {}
        }
    }

    /// Slabs the map gave up wait for a checkpoint.
    pub(crate) fn retire_freed(&mut self) {
        for slab in self.map.freed.drain(..) {
            self.slabs.retire(slab);
        }
    }

    /// A free slab, or a note that a checkpoint is wanted to get one.
    pub(crate) fn take_slab(&mut self) -> Option<u32> {
        let slab = self.slabs.take();
        self.slabs_wanted |= slab.is_none();
        slab
    }

    /// Blocks of an extent's slab, for the device.
    pub(crate) const fn block_at(&self, slab: u32, block: u32) -> u64 {
        self.region.slab_at(slab) + block as u64 * engine_core::limits::BLOCK_SIZE
    }

    /// Recounts every slab. For tests.
    pub fn audit(&self) {
        let in_jobs = self.copies.slabs().chain(self.apply.fresh_slabs());
        self.slabs.audit(self.map.slabs().chain(in_jobs));
        assert_eq!(self.map.booked, self.map.replicas.values().map(|r| u64::from(r.meta.config.extents)).sum::<u64>());
        assert!(self.map.booked <= self.region.capacity());
    }
}

/// A buffer with these bytes.
pub(crate) fn aligned(parts: &[&[u8]]) -> AlignedBuf {
    let len: usize = parts.iter().map(|part| part.len()).sum();
    let mut buffer = AlignedBuf::zeroed(len.next_multiple_of(4096));
    let mut at = 0;
    for part in parts {
        buffer[at..at + part.len()].copy_from_slice(part);
        at += part.len();
    }
    buffer
}

impl<D: Device> Store for ShardStore<D> {
    fn take_recovered(&mut self) -> Vec<Recovered> {
        std::mem::take(&mut self.recovered)
    }

    fn persist(&mut self, mut records: Vec<Record>, ticket: Ticket) {
        if self.failed {
            return;
        }
        for record in &mut records {
            self.foresee(record);
        }
        let queued = Queued::new(records.into_iter().map(WalRecord::Core).collect(), Some(ticket));
        assert!(queued.bytes <= self.wal.ring.persist_max(), "a persist of {} bytes is too long", queued.bytes);
        self.wal.push(queued);
    }

    fn commit(&mut self, segment: SegmentId, through: Seq) {
        if let Some((_, commit)) = self.creating.get_mut(&segment) {
            *commit = through.max(*commit);
        } else {
            self.map.with(segment, |replica| replica.tell(through));
        }
    }

    fn read(&mut self, segment: SegmentId, block: BlockIndex, count: u32, ticket: Ticket) {
        if !self.failed {
            self.start_read(segment, super::read::What::Blocks { block, count }, ticket);
        }
    }

    fn allocation(&self, segment: SegmentId, block: BlockIndex, count: u32) -> Vec<(u32, bool)> {
        let mut runs: Vec<(u32, bool)> = Vec::new();
        let replica = self.map.replicas.get(&segment);
        for block in block.0..block.0 + count {
            let data = replica.is_some_and(|replica| !matches!(replica.source(BlockIndex(block)), Source::Zero));
            match runs.last_mut() {
                Some((run, same)) if *same == data => *run += 1,
                _ => runs.push((1, data)),
            }
        }
        runs
    }

    fn read_extent(&mut self, segment: SegmentId, extent: ExtentIndex, ticket: Ticket) {
        if !self.failed {
            self.start_read(segment, super::read::What::Extent(extent), ticket);
        }
    }

    fn list(&self, segment: SegmentId, above: Seq, from: ExtentIndex, limit: usize) -> Page {
        let mut listed = Vec::new();
        let Some(replica) = self.map.replicas.get(&segment) else { return (listed, None) };
        let mut homes = replica.extents.range(from..).map(|(extent, _)| *extent).peekable();
        let mut overlays = replica.overlay.range(from..).map(|(extent, _)| *extent).peekable();
        loop {
            let next = match (homes.peek(), overlays.peek()) {
                (None, None) => return (listed, None),
                (Some(one), None) | (None, Some(one)) => *one,
                (Some(one), Some(other)) => *one.min(other),
            };
            homes.next_if_eq(&next);
            overlays.next_if_eq(&next);
            let stamp = replica.full_stamp(next);
            if stamp <= above {
                continue;
            }
            if listed.len() == limit {
                return (listed, Some(next));
            }
            listed.push((next, stamp));
        }
    }

    fn copy_in(&mut self, segment: SegmentId, copy: ExtentCopy, ticket: Ticket) {
        if !self.failed {
            self.queue_copy(segment, copy, false, ticket);
        }
    }

    fn mend(&mut self, segment: SegmentId, copy: ExtentCopy, ticket: Ticket) {
        if !self.failed {
            self.queue_copy(segment, copy, true, ticket);
        }
    }

    fn unbooked(&self) -> u64 {
        self.region.capacity().saturating_sub(self.booked())
    }

    fn space(&self) -> Space {
        Space {
            capacity: self.region.capacity(),
            booked: self.booked(),
            used: self.map.replicas.values().map(super::map::Replica::used).sum(),
        }
    }

    fn used_by(&self, segment: SegmentId) -> u64 {
        self.map.replicas.get(&segment).map_or(0, super::map::Replica::used)
    }

    fn damaged_blocks(&self) -> u64 {
        self.damaged_blocks
    }

    fn poll(&mut self, events: &mut Vec<Event>) {
        let mut done = std::mem::take(&mut self.done);
        self.device.reap(&mut done);
        let idle = done.is_empty() && self.wal.is_idle() && self.operations.is_empty();
        self.idle_polls = if idle { self.idle_polls.saturating_add(1) } else { 0 };
        for completion in done.drain(..) {
            self.complete(completion);
        }
        self.done = done;
        if !self.failed {
            self.retire_freed();
            // Lanes in their order: WAL, reads (started when asked for), apply, copies, checkpoint.
            self.start_checkpoint_if_due();
            self.start_batch();
            self.start_applies(self.idle_polls >= IDLE_POLLS);
            self.start_copies();
            self.write_checkpoint();
            // Apply may have queued the store's own records.
            self.start_batch();
            self.retire_freed();
        }
        self.device.kick();
        events.append(&mut self.events);
    }

    fn settle(&mut self) {
        self.settling = true;
    }

    fn is_quiet(&self) -> bool {
        let idle = self.wal.is_idle() && self.operations.is_empty() && self.copies.is_idle() && self.events.is_empty();
        self.failed
            || idle && self.apply.is_idle() && self.checkpoint.is_idle() && !self.settling && self.map.dirty == 0
    }
}

impl<D: Device> ShardStore<D> {
    fn booked(&self) -> u64 {
        self.map.booked + self.creating.values().map(|(extents, _)| extents).sum::<u64>()
    }

    /// What a record means before it is durable: space is booked, a replica that ends gets nothing more.
    fn foresee(&mut self, record: &mut Record) {
        match record {
            Record::Create { segment, meta } => {
                let extents = u64::from(meta.config.extents);
                let (booked, capacity) = (self.booked(), self.region.capacity());
                let replaced = self.map.replicas.get(segment).map_or(0, |old| u64::from(old.meta.config.extents));
                assert!(booked - replaced + extents <= capacity, "space is checked before a Create (I13)");
                self.creating.insert(*segment, (extents, Seq(0)));
            }
            Record::Truncate { segment, above } => {
                self.map.with(*segment, |replica| {
                    // A committed entry is never undone (I4), also not by a truncate that knows less than we do.
                    *above = replica.commit.max(*above);
                    replica.hold(*above);
                });
            }
            Record::Drop { segment, incarnation } => {
                self.map.with(*segment, |replica| {
                    replica.dropping |= replica.meta.config.incarnation == *incarnation;
                });
            }
            Record::Prepare { segment, entry, .. } => {
                let (block, count) = entry.change.range();
                if let Some(replica) = self.map.replicas.get(segment) {
                    let blocks = u64::from(replica.meta.config.extents) * u64::from(EXTENT_BLOCKS);
                    assert!(u64::from(block.0) + u64::from(count) <= blocks, "a change lies inside its segment");
                }
                let floor = Seq(entry.seq.0.saturating_sub(1));
                self.map.with(*segment, |replica| replica.hold(floor));
            }
            Record::State { .. } => {}
        }
    }
}
