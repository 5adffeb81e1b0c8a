//! Reads: committed content from the log where it is newer, else from home, every home block checked (I7, I14).
//!
//! The answer is made when the device has answered, from what the map says then. Home blocks that were read are good
//! as long as no extent's home has changed meanwhile; otherwise the read is planned again. Checksums that are not in
//! memory are read beside the data.

use std::collections::{BTreeSet, HashMap};

use bytes::Bytes;
use engine_core::ids::{BlockIndex, ExtentIndex, SegmentId};
use engine_core::limits::{BLOCK_SIZE, DAMAGED_LISTED_MAX, EXTENT_BLOCKS};
use engine_core::record::{Blocks, ExtentCopy, sum_bytes, sum_seed};
use engine_core::sabotage::{Invariant, breaks};

use super::extents::Home;
use super::replica::{Replica, Source};
use super::shard::{Purpose, ShardStore};
use super::sums::{Known, SumStore, page_of};
use super::{Event, ReadError, Ticket};
use crate::device::buffer::AlignedBuf;
use crate::device::{Device, Operation};

#[allow(clippy::cast_possible_truncation)] // 4096
pub(crate) const BLOCK: usize = BLOCK_SIZE as usize;
static ZEROS: [u8; BLOCK] = [0; BLOCK];

/// The checksum of a block's content.
#[must_use]
pub fn block_sum(segment: SegmentId, block: BlockIndex, content: &[u8]) -> u32 {
    let mut hasher = crc32fast::Hasher::new_with_initial(sum_seed(segment, block));
    hasher.update(content);
    hasher.finalize()
}

/// What is read.
#[derive(Debug, Clone, Copy)]
pub(crate) enum What {
    Blocks { block: BlockIndex, count: u32 },
    Extent(ExtentIndex),
}

impl What {
    const fn range(self) -> (u32, u32) {
        match self {
            Self::Blocks { block, count } => (block.0, count),
            Self::Extent(extent) => (extent.0 * EXTENT_BLOCKS, EXTENT_BLOCKS),
        }
    }
}

/// Blocks of one extent's slab, from the first to the last that is needed.
#[derive(Debug)]
struct Part {
    slab: u32,
    first: u32,
    end: u32,
    buffer: Option<AlignedBuf>,
    /// By block, from `first` on. Empty until they are known.
    sums: Vec<Known>,
}

impl Part {
    /// Whether all checksums are known now.
    fn resolve(&mut self, store: &mut SumStore) -> bool {
        let within = |block: u32| block % EXTENT_BLOCKS;
        let sums: Vec<Known> = (self.first..self.end).map(|block| store.sum(self.slab, within(block))).collect();
        let known = !sums.contains(&Known::Unread);
        if known {
            self.sums = sums;
        }
        known
    }

    /// A block that is what was written, and its checksum.
    fn sound(&self, segment: SegmentId, block: BlockIndex) -> Option<(&[u8], u32)> {
        let at = (block.0 - self.first) as usize;
        let content = self.buffer.as_ref()?.get(at * BLOCK..(at + 1) * BLOCK)?;
        let Known::Is(want) = *self.sums.get(at)? else { return None };
        is_sound(segment, block, content, want).then_some((content, want))
    }
}

#[derive(Debug)]
struct Job {
    segment: SegmentId,
    life: u64,
    what: What,
    ticket: Ticket,
    /// By extent of the range: its home when the read was planned.
    homes: Vec<Home>,
    parts: Vec<Part>,
    left: usize,
}

/// Reads under way.
#[derive(Debug, Default)]
pub(crate) struct Reads {
    jobs: HashMap<u64, Job>,
    /// By page of checksums: the parts that wait for it.
    pages: HashMap<u32, Vec<(u64, usize)>>,
    next: u64,
    /// Blocks found damaged and not replaced since; at most `DAMAGED_LISTED_MAX`.
    damaged: BTreeSet<(SegmentId, BlockIndex)>,
}

impl Reads {
    pub(crate) fn damaged(&self) -> impl Iterator<Item = (SegmentId, BlockIndex)> + '_ {
        self.damaged.iter().copied()
    }
}

fn homes(replica: &Replica, what: What) -> Vec<Home> {
    let (block, count) = what.range();
    let extents = block / EXTENT_BLOCKS..=(block + count - 1) / EXTENT_BLOCKS;
    extents.map(|extent| replica.extents.home(ExtentIndex(extent))).collect()
}

/// Parts to read.
fn plan(replica: &Replica, what: What) -> Vec<Part> {
    let (block, count) = what.range();
    let mut parts: Vec<Part> = Vec::new();
    for block in block..block + count {
        let Source::Home(slab) = replica.source(BlockIndex(block)) else { continue };
        match parts.last_mut() {
            Some(part) if part.slab == slab => part.end = block + 1,
            _ => parts.push(Part { slab, first: block, end: block + 1, buffer: None, sums: Vec::new() }),
        }
    }
    parts
}

impl<D: Device> ShardStore<D> {
    pub(crate) fn start_read(&mut self, segment: SegmentId, what: What, ticket: Ticket) {
        let (block, count) = what.range();
        let known = self.map.replicas.get(&segment).filter(|replica| !replica.dropping);
        let Some(replica) = known else { return self.answer(what, ticket, Err(ReadError::Unknown)) };
        let blocks = u64::from(replica.meta.config.extents) * u64::from(EXTENT_BLOCKS);
        assert!(count > 0 && u64::from(block) + u64::from(count) <= blocks, "a read lies inside its segment");
        let (life, homes, mut parts) = (replica.life, homes(replica, what), plan(replica, what));
        let id = self.reads.next;
        self.reads.next += 1;
        let mut left = parts.len();
        for (index, part) in parts.iter_mut().enumerate() {
            let offset = self.block_at(part.slab, part.first % EXTENT_BLOCKS);
            let buffer = AlignedBuf::to_fill((part.end - part.first) as usize * BLOCK);
            let purpose = Purpose::Read { job: id, part: index, slab: part.slab };
            self.submit(purpose, Operation::Read { offset, buffer });
            if !part.resolve(&mut self.sums) {
                left += 1;
                self.reads.pages.entry(page_of(part.slab)).or_default().push((id, index));
                self.ask_page(page_of(part.slab));
            }
        }
        let job = Job { segment, life, what, ticket, homes, left, parts };
        if job.left == 0 {
            self.finish_read(job);
        } else {
            self.reads.jobs.insert(id, job);
        }
    }

    /// Reads a page of checksums unless it is here or on its way.
    pub(crate) fn ask_page(&mut self, page: u32) {
        if self.sums.wants(page) {
            let (offset, buffer) = (self.region.sums_at(page), AlignedBuf::to_fill(BLOCK));
            self.submit(Purpose::Page(page), Operation::Read { offset, buffer });
        }
    }

    /// A page of checksums is there; `None`: the device cannot read it.
    pub(crate) fn on_page(&mut self, page: u32, buffer: Option<AlignedBuf>) {
        if !self.sums.arrived(page, buffer) {
            let (offset, buffer) = (self.region.sums_at(page), AlignedBuf::to_fill(BLOCK));
            return self.submit(Purpose::Page(page), Operation::Read { offset, buffer });
        }
        for (id, part) in self.reads.pages.remove(&page).unwrap_or_default() {
            let Some(job) = self.reads.jobs.get_mut(&id) else { continue };
            job.parts[part].resolve(&mut self.sums);
            job.left -= 1;
            self.finish_if_whole(id);
        }
        self.write_sum_page(page);
    }

    /// A part is there; `None`: the device cannot read it.
    pub(crate) fn on_read(&mut self, id: u64, part: usize, buffer: Option<AlignedBuf>) {
        let Some(job) = self.reads.jobs.get_mut(&id) else { return };
        job.parts[part].buffer = buffer;
        job.left -= 1;
        self.finish_if_whole(id);
    }

    fn finish_if_whole(&mut self, id: u64) {
        if self.reads.jobs.get(&id).is_some_and(|job| job.left == 0)
            && let Some(job) = self.reads.jobs.remove(&id)
        {
            self.finish_read(job);
        }
    }

    fn finish_read(&mut self, mut job: Job) {
        let (segment, what, ticket) = (job.segment, job.what, job.ticket);
        let replica = self.map.replicas.get(&segment).filter(|replica| replica.life == job.life);
        let Some(replica) = replica else { return self.answer(what, ticket, Err(ReadError::Unknown)) };
        let collected = if homes(replica, what) == job.homes { collect(replica, &mut job) } else { Collected::Again };
        let result = match (what, collected) {
            (_, Collected::Again) => return self.start_read(segment, what, ticket),
            (_, Collected::Damaged(first, mut more)) => {
                more.push(first);
                self.note_damage(segment, &more);
                Err(ReadError::Damaged(first))
            }
            (What::Blocks { .. }, Collected::Whole(blocks, _)) => Ok(blocks),
            (What::Extent(extent), Collected::Whole(blocks, present)) => {
                let stamp = replica.commit.max(replica.full_stamp(extent));
                let copy = ExtentCopy { extent, stamp, present, blocks };
                return self.events.push(Event::Extent(ticket, Ok(copy)));
            }
        };
        self.answer(what, ticket, result);
    }

    fn answer(&mut self, what: What, ticket: Ticket, result: Result<Blocks, ReadError>) {
        match (what, result) {
            (What::Blocks { .. }, result) => self.events.push(Event::Read(ticket, result)),
            (What::Extent(_), Err(error)) => self.events.push(Event::Extent(ticket, Err(error))),
            (What::Extent(_), Ok(_)) => unreachable!("an extent's copy is answered with its stamp"),
        }
    }

    /// Blocks were found damaged. Each counts once, however often it is met, as far as they are remembered.
    fn note_damage(&mut self, segment: SegmentId, blocks: &[BlockIndex]) {
        for block in blocks {
            let full = self.reads.damaged.len() >= DAMAGED_LISTED_MAX;
            let known = self.reads.damaged.contains(&(segment, *block));
            self.damaged_blocks += u64::from(!known);
            if !full && !known {
                self.reads.damaged.insert((segment, *block));
            }
        }
    }

    /// An extent was replaced by a copy: what was damaged in it is gone.
    pub(crate) fn forget_damage(&mut self, segment: SegmentId, extent: ExtentIndex) {
        let first = extent.0 * EXTENT_BLOCKS;
        let blocks = (segment, BlockIndex(first))..(segment, BlockIndex(first + EXTENT_BLOCKS));
        let gone: Vec<_> = self.reads.damaged.range(blocks).copied().collect();
        for block in gone {
            self.reads.damaged.remove(&block);
        }
    }
}

enum Collected {
    /// The blocks, and a map of those that hold data.
    Whole(Blocks, u32),
    /// The first damaged block, and the others of the range.
    Damaged(BlockIndex, Vec<BlockIndex>),
    /// What is committed lies elsewhere by now.
    Again,
}

/// Whether what was read is what was written (I14).
fn is_sound(segment: SegmentId, block: BlockIndex, content: &[u8], want: u32) -> bool {
    #[cfg(test)]
    if super::tests::mistake(super::tests::Mistake::ChecksumIgnored) {
        return true;
    }
    block_sum(segment, block, content) == want || breaks(Invariant::I14)
}

/// The blocks of the job's range: all of them, or of an extent those that hold data.
fn collect(replica: &Replica, job: &mut Job) -> Collected {
    let sparse = matches!(job.what, What::Extent(_));
    let (first, count) = job.what.range();
    let mut sums = Vec::with_capacity(count as usize * 4);
    let mut pieces: Vec<&[u8]> = Vec::with_capacity(count as usize);
    let (mut present, mut from_home) = (0u32, 0);
    let mut parts = job.parts.iter().peekable();
    let mut damaged: Vec<BlockIndex> = Vec::new();
    for block in first..first + count {
        let index = BlockIndex(block);
        let found = match replica.source(index) {
            Source::Zero if sparse => continue,
            Source::Zero => Some((&ZEROS[..], block_sum(job.segment, index, &ZEROS))),
            Source::Lost => None,
            Source::Log(data, sum, suspect) => {
                (!suspect || is_sound(job.segment, index, data, sum)).then_some((data, sum))
            }
            Source::Home(slab) => {
                while parts.next_if(|part| part.end <= block).is_some() {}
                let Some(part) = parts.peek().filter(|part| part.first <= block && part.slab == slab) else {
                    return Collected::Again;
                };
                // One sector that cannot be read is one damaged block, not as many as were asked for with it.
                if part.buffer.is_none() && damaged.last().is_some_and(|last| last.0 >= part.first) {
                    continue;
                }
                from_home += 1;
                part.sound(job.segment, index)
            }
        };
        let Some((content, sum)) = found else {
            damaged.push(index);
            continue;
        };
        pieces.push(content);
        sums.extend_from_slice(&sum_bytes(sum));
        present |= 1u32.wrapping_shl(block % EXTENT_BLOCKS);
    }
    if let Some(first) = damaged.first().copied() {
        return Collected::Damaged(first, damaged.split_off(1));
    }
    let whole = from_home == pieces.len()
        && job.parts.len() == 1
        && (job.parts[0].end - job.parts[0].first) as usize == from_home;
    let data = if whole {
        // Everything asked for lies in one buffer: it goes on as it is.
        job.parts[0].buffer.take().map(Bytes::from_owner).unwrap_or_default()
    } else {
        Bytes::from(pieces.concat())
    };
    Collected::Whole(Blocks { data, sums: Bytes::from(sums) }, present)
}
