//! One shard's store: the state machine behind [`Store`]. The parts of its work are in `log` (batches), `landing` (data
//! that goes to slabs first), `read`, `copy`, `apply` and `checkpoint`; this file holds the state, the dispatch of
//! completions, and the trait.

use std::collections::{BTreeMap, HashMap};

use engine_core::ids::{BlockIndex, BootCount, DeviceId, ExtentIndex, SegmentId, Seq};
use engine_core::limits::EXTENT_BLOCKS;
use engine_core::record::{ExtentCopy, Record, Recovered};

use super::apply::Apply;
use super::checkpoint::Checkpoint;
use super::copy::Copies;
use super::format::WalRecord;
use super::landing::Landings;
use super::map::Map;
use super::read::{Reads, What};
use super::replica::{Replica, Source};
use super::slabs::Slabs;
use super::sums::SumStore;
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
    /// A page of checksums, read.
    Page(u32),
    /// Data on its way to a slab nothing points to.
    Land { job: u64, slab: u32 },
    /// The flush behind such data.
    Landed,
    /// A write of an apply job.
    Apply { job: u64, slab: u32 },
    /// A map page, or a chunk of a checkpoint's body.
    Chunk,
    /// A page of checksums, written.
    Sums(u32),
    /// The flush before a checkpoint's header.
    Flushed,
    /// A checkpoint's header.
    Header,
    /// Nobody's.
    #[cfg(test)]
    Ignored,
}

impl Purpose {
    const fn slab(self) -> Option<u32> {
        match self {
            Self::Read { slab, .. } | Self::Land { slab, .. } | Self::Apply { slab, .. } => Some(slab),
            _ => None,
        }
    }
}

/// What every batch and checkpoint of this shard carries.
#[derive(Debug, Clone, Copy)]
pub(crate) struct Label {
    pub(crate) device: DeviceId,
    pub(crate) shard: u16,
    pub(crate) boot: BootCount,
}

/// What `recover` puts together.
pub(crate) struct Parts<D> {
    pub(crate) device: D,
    pub(crate) region: Region,
    pub(crate) label: Label,
    pub(crate) map: Map,
    pub(crate) slabs: Slabs,
    pub(crate) pages: Slabs,
    pub(crate) sums: SumStore,
    pub(crate) wal: Wal,
    /// Of the last checkpoint.
    pub(crate) number: u64,
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
    /// Places of map pages.
    pub(crate) pages: Slabs,
    pub(crate) sums: SumStore,
    pub(crate) wal: Wal,
    pub(crate) reads: Reads,
    pub(crate) copies: Copies,
    pub(crate) landings: Landings,
    pub(crate) apply: Apply,
    pub(crate) checkpoint: Checkpoint,
    /// No batch before the next checkpoint.
    pub(crate) checkpoint_first: bool,
    pub(crate) operations: HashMap<Tag, Purpose>,
    next_tag: u64,
    pub(crate) events: Vec<Event>,
    pub(crate) recovered: Vec<Recovered>,
    pub(crate) damaged_blocks: u64,
    /// Found when it was opened.
    pub(crate) damaged_structures: u64,
    flushes: u64,
    failed: bool,
    pub(crate) settling: bool,
    pub(crate) idle_polls: u32,
    done: Vec<Completion>,
}

impl<D: Device> ShardStore<D> {
    /// Put together by `recover`.
    pub(crate) fn assemble(parts: Parts<D>) -> Self {
        let Parts { device, region, label, map, slabs, pages, sums, wal, number } = parts;
        Self {
            device,
            region,
            label,
            map,
            creating: BTreeMap::new(),
            slabs,
            slabs_wanted: false,
            pages,
            sums,
            wal,
            reads: Reads::default(),
            copies: Copies::default(),
            landings: Landings::default(),
            apply: Apply::default(),
            checkpoint: Checkpoint::after(number),
            checkpoint_first: false,
            operations: HashMap::new(),
            next_tag: 0,
            events: Vec::new(),
            recovered: Vec::new(),
            damaged_blocks: 0,
            damaged_structures: 0,
            flushes: 0,
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

    /// Keeps at most so many pages of checksums in memory, instead of `limits::SUM_PAGES_MAX`.
    pub fn set_sum_pages(&mut self, pages: usize) {
        self.sums.set_bound(pages);
    }

    pub(crate) fn submit(&mut self, purpose: Purpose, operation: Operation) {
        let tag = Tag(self.next_tag);
        self.next_tag += 1;
        if let Some(slab) = purpose.slab() {
            self.slabs.start(slab);
        }
        self.flushes += u64::from(operation.is_flush());
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
        if let Some(slab) = purpose.slab() {
            self.slabs.finish(slab);
        }
        if self.failed {
            return;
        }
        let doing = match purpose {
            Purpose::Read { job, part, .. } => return self.on_read(job, part, buffer.filter(|_| result.is_ok())),
            Purpose::Page(page) => return self.on_page(page, buffer.filter(|_| result.is_ok())),
            Purpose::Batch => "writing the WAL",
            Purpose::Land { .. } | Purpose::Landed => "writing data to its place",
            Purpose::Apply { .. } => "applying",
            _ => "writing a checkpoint",
        };
        if let Err(error) = result {
            return self.fail(doing, &error);
        }
        match purpose {
            Purpose::Batch => self.on_batch(),
            Purpose::Land { job, .. } => self.on_landed(job),
            Purpose::Landed => self.on_landings_flushed(),
            Purpose::Apply { job, .. } => self.on_applied(job),
            Purpose::Chunk => self.on_chunk(),
            Purpose::Sums(page) => self.on_sums(page, buffer),
            Purpose::Flushed => self.on_flushed(),
            Purpose::Header => self.on_header(),
            Purpose::Read { .. } | Purpose::Page(_) => {}
            #[cfg(test)]
            Purpose::Ignored => {}
        }
    }

    /// What the map's changes mean for slabs, pages, checksums and admission.
    pub(crate) fn keep_books(&mut self) {
        let ledger = &mut self.map.ledger;
        for sums in ledger.sums.drain(..) {
            self.sums.set(&sums);
        }
        for slab in ledger.slabs.drain(..) {
            self.slabs.retire(slab);
        }
        for place in ledger.pages.drain(..) {
            self.pages.retire(place);
        }
        self.wal.earn(std::mem::take(&mut ledger.settled));
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
        let landing = self.landings.slabs().chain(self.redirected_slabs());
        self.slabs.audit(self.map.slabs().chain(in_jobs).chain(landing));
        let chunks = self.map.replicas.values().flat_map(|replica| replica.extents.chunks());
        self.pages.audit(chunks.filter_map(|(_, chunk)| Some(chunk.page?.0)));
        let held = self.map.replicas.values().map(|replica| replica.log_slabs().count() as u64);
        assert_eq!(self.map.ledger.redirected, held.sum::<u64>());
        assert_eq!(self.map.unresolved, self.map.replicas.values().map(|replica| replica.unresolved).sum::<u64>());
        assert_eq!(self.map.dirty, self.map.replicas.values().map(|replica| replica.overlay.len()).sum::<usize>());
        assert!(self.map.replicas.values().all(|replica| replica.used() == replica.recount()));
        assert_eq!(self.map.booked, self.map.replicas.values().map(|r| u64::from(r.meta.config.extents)).sum::<u64>());
        assert!(self.map.booked <= self.region.capacity());
    }
}

/// A buffer with these bytes.
pub(crate) fn aligned(parts: &[&[u8]]) -> AlignedBuf {
    let len: usize = parts.iter().map(|part| part.len()).sum();
    let mut buffer = AlignedBuf::to_fill(len.next_multiple_of(4096));
    let mut at = 0;
    for part in parts {
        buffer[at..at + part.len()].copy_from_slice(part);
        at += part.len();
    }
    buffer[at..].fill(0);
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
        let mut records: Vec<WalRecord> = records.into_iter().map(WalRecord::new).collect();
        let landing = self.redirect(&mut records);
        self.note_queued(&records);
        let queued = Queued { landing, landed: landing.is_none(), ..Queued::new(records, Some(ticket)) };
        let bytes = queued.size.batch();
        assert!(bytes <= self.wal.ring.persist_max() + 8192, "a persist of {bytes} bytes is too long");
        self.wal.push(queued);
    }

    fn commit(&mut self, segment: SegmentId, through: Seq) {
        if let Some((_, commit)) = self.creating.get_mut(&segment) {
            *commit = through.max(*commit);
        } else {
            self.map.with(segment, |replica, ledger| replica.tell(through, ledger));
            self.keep_books();
        }
    }

    fn read(&mut self, segment: SegmentId, block: BlockIndex, count: u32, ticket: Ticket) {
        if !self.failed {
            self.start_read(segment, What::Blocks { block, count }, ticket);
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
            self.start_read(segment, What::Extent(extent), ticket);
        }
    }

    fn list(&self, segment: SegmentId, above: Seq, from: ExtentIndex, limit: usize) -> Page {
        let mut listed = Vec::new();
        let Some(replica) = self.map.replicas.get(&segment) else { return (listed, None) };
        let mut homes = replica.extents.from(from).map(|(extent, _)| extent).peekable();
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

    fn damaged(&self) -> Vec<(SegmentId, BlockIndex)> {
        self.reads.damaged().collect()
    }

    fn unbooked(&self) -> u64 {
        self.region.capacity().saturating_sub(self.booked())
    }

    fn space(&self) -> Space {
        Space {
            capacity: self.region.capacity(),
            booked: self.booked(),
            used: self.map.replicas.values().map(Replica::used).sum(),
        }
    }

    fn used_by(&self, segment: SegmentId) -> u64 {
        self.map.replicas.get(&segment).map_or(0, Replica::used)
    }

    fn damaged_blocks(&self) -> u64 {
        self.damaged_blocks
    }

    fn flushes(&self) -> u64 {
        self.flushes
    }

    fn look_anew(&mut self) {
        self.sums.forget_pages();
    }

    fn damaged_structures(&self) -> u64 {
        self.damaged_structures
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
            self.keep_books();
            // Lanes in their order: WAL, reads (started when asked for), apply, copies, checkpoint.
            self.start_checkpoint_if_due();
            self.start_batch();
            self.start_applies(self.idle_polls >= IDLE_POLLS);
            self.start_copies();
            self.flush_landings();
            self.write_checkpoint();
            // Apply may have queued the store's own records.
            self.start_batch();
            self.keep_books();
        }
        self.device.kick();
        events.append(&mut self.events);
    }

    fn settle(&mut self) {
        self.settling = true;
    }

    fn is_quiet(&self) -> bool {
        let idle = self.wal.is_idle() && self.operations.is_empty() && self.copies.is_idle() && self.events.is_empty();
        let idle = idle && self.landings.is_idle();
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
                self.map.with(*segment, |replica, _| {
                    // A committed entry is never undone (I4), also not by a truncate that knows less than we do.
                    *above = replica.commit.max(*above);
                    replica.hold(*above);
                });
            }
            Record::Drop { segment, incarnation } => {
                self.map.with(*segment, |replica, _| {
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
                self.map.with(*segment, |replica, _| replica.hold(floor));
            }
            Record::State { .. } => {}
        }
    }

    /// Only what is above everything ever queued may go to slabs of its own.
    fn note_queued(&mut self, records: &[WalRecord]) {
        for record in records {
            if let WalRecord::Entry { segment, seq, .. } = record
                && let Some(replica) = self.map.replicas.get_mut(segment)
            {
                replica.last = replica.last.max(*seq);
            }
        }
    }
}
