//! Reads: committed content from the log where it is newer, else from home, every home block checked (I7, I14).
//!
//! The answer is made when the device has answered, from what the map says then. Home blocks that were read are good
//! as long as no extent's home has changed meanwhile; otherwise the read is planned again.

use std::collections::BTreeMap;

use bytes::Bytes;
use engine_core::ids::{BlockIndex, ExtentIndex, SegmentId};
use engine_core::limits::{BLOCK_SIZE, EXTENT_BLOCKS};
use engine_core::record::{Blocks, ExtentCopy, sum_bytes, sum_seed};
use engine_core::sabotage::{Invariant, breaks};

use super::map::{Replica, Source};
use super::shard::{Purpose, ShardStore};
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
    first: u32,
    end: u32,
    buffer: Option<AlignedBuf>,
}

#[derive(Debug)]
struct Job {
    segment: SegmentId,
    life: u64,
    what: What,
    ticket: Ticket,
    /// By extent of the range: version of its home when the read was planned.
    versions: Vec<u32>,
    parts: Vec<Part>,
    left: usize,
}

/// Reads under way.
#[derive(Debug, Default)]
pub(crate) struct Reads {
    jobs: BTreeMap<u64, Job>,
    next: u64,
}

fn versions(replica: &Replica, what: What) -> Vec<u32> {
    let (block, count) = what.range();
    let extents = block / EXTENT_BLOCKS..=(block + count - 1) / EXTENT_BLOCKS;
    extents.map(|extent| replica.extents.get(&ExtentIndex(extent)).map_or(0, |home| home.version)).collect()
}

/// Parts to read and their slabs.
fn plan(replica: &Replica, what: What) -> Vec<(u32, Part)> {
    let (block, count) = what.range();
    let mut parts: Vec<(u32, Part)> = Vec::new();
    for block in block..block + count {
        if !matches!(replica.source(BlockIndex(block)), Source::Home) {
            continue;
        }
        let home = replica.extents.get(&ExtentIndex(block / EXTENT_BLOCKS));
        let Some(slab) = home.and_then(|home| home.slab) else { continue };
        match parts.last_mut() {
            Some((same, part)) if *same == slab => part.end = block + 1,
            _ => parts.push((slab, Part { first: block, end: block + 1, buffer: None })),
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
        let id = self.reads.next;
        self.reads.next += 1;
        let planned = plan(replica, what);
        let (life, versions) = (replica.life, versions(replica, what));
        let mut parts = Vec::with_capacity(planned.len());
        for (index, (slab, part)) in planned.into_iter().enumerate() {
            let offset = self.block_at(slab, part.first % EXTENT_BLOCKS);
            let buffer = AlignedBuf::zeroed((part.end - part.first) as usize * BLOCK);
            self.submit(Purpose::Read { job: id, part: index, slab }, Operation::Read { offset, buffer });
            parts.push(part);
        }
        let job = Job { segment, life, what, ticket, versions, left: parts.len(), parts };
        if job.left == 0 {
            self.finish_read(job);
        } else {
            self.reads.jobs.insert(id, job);
        }
    }

    /// A part is there; `None`: the device cannot read it.
    pub(crate) fn on_read(&mut self, id: u64, part: usize, buffer: Option<AlignedBuf>) {
        let Some(job) = self.reads.jobs.get_mut(&id) else { return };
        job.parts[part].buffer = buffer;
        job.left -= 1;
        if job.left == 0
            && let Some(job) = self.reads.jobs.remove(&id)
        {
            self.finish_read(job);
        }
    }

    fn finish_read(&mut self, mut job: Job) {
        let replica = self.map.replicas.get(&job.segment).filter(|replica| replica.life == job.life);
        let Some(replica) = replica else { return self.answer(job.what, job.ticket, Err(ReadError::Unknown)) };
        if versions(replica, job.what) != job.versions {
            return self.start_read(job.segment, job.what, job.ticket);
        }
        let result = match job.what {
            What::Blocks { block, count } => {
                collect(replica, &mut job, block.0..block.0 + count, false).map(|got| got.0)
            }
            What::Extent(extent) => {
                let first = extent.0 * EXTENT_BLOCKS;
                let collected = collect(replica, &mut job, first..first + EXTENT_BLOCKS, true);
                let stamp = replica.commit.max(replica.full_stamp(extent));
                return match collected {
                    Ok((blocks, present)) => {
                        let copy = ExtentCopy { extent, stamp, present, blocks };
                        self.events.push(Event::Extent(job.ticket, Ok(copy)));
                    }
                    Err(error) => self.answer(job.what, job.ticket, Err(error)),
                };
            }
        };
        self.answer(job.what, job.ticket, result);
    }

    fn answer(&mut self, what: What, ticket: Ticket, result: Result<Blocks, ReadError>) {
        self.damaged_blocks += u64::from(matches!(result, Err(ReadError::Damaged(_))));
        match (what, result) {
            (What::Blocks { .. }, result) => self.events.push(Event::Read(ticket, result)),
            (What::Extent(_), Err(error)) => self.events.push(Event::Extent(ticket, Err(error))),
            (What::Extent(_), Ok(_)) => unreachable!("an extent's copy is answered with its stamp"),
        }
    }
}

/// The blocks of a range, all of them or (`sparse`) those that hold data, with a map of the latter.
fn collect(
    replica: &Replica,
    job: &mut Job,
    range: std::ops::Range<u32>,
    sparse: bool,
) -> Result<(Blocks, u32), ReadError> {
    let mut sums = Vec::with_capacity(range.len() * 4);
    let mut pieces: Vec<&[u8]> = Vec::with_capacity(range.len());
    let (mut present, mut from_home) = (0u32, 0);
    let mut parts = job.parts.iter().peekable();
    for block in range {
        let index = BlockIndex(block);
        let sum = match replica.source(index) {
            Source::Zero if sparse => continue,
            Source::Zero => {
                pieces.push(&ZEROS);
                block_sum(job.segment, index, &ZEROS)
            }
            Source::Log(blocks, at) => {
                pieces.push(&blocks.data[at as usize * BLOCK..][..BLOCK]);
                blocks.sum(at)
            }
            Source::Home => {
                while parts.next_if(|part| part.end <= block).is_some() {}
                let buffer = parts.peek().filter(|part| part.first <= block).and_then(|part| {
                    let at = (block - part.first) as usize * BLOCK;
                    part.buffer.as_ref()?.get(at..at + BLOCK)
                });
                let content = buffer.ok_or(ReadError::Damaged(index))?;
                let home = &replica.extents[&ExtentIndex(block / EXTENT_BLOCKS)];
                let want = home.sum((block % EXTENT_BLOCKS) as usize);
                if block_sum(job.segment, index, content) != want && !breaks(Invariant::I14) {
                    return Err(ReadError::Damaged(index));
                }
                pieces.push(content);
                from_home += 1;
                want
            }
        };
        sums.extend_from_slice(&sum_bytes(sum));
        present |= 1u32.wrapping_shl(block % EXTENT_BLOCKS);
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
    Ok((Blocks { data, sums: Bytes::from(sums) }, present))
}
