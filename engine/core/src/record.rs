//! What a replica makes durable, and the data it is made of. The store gives these types their bytes (`store/format`).
//!
//! The one thing here that is bytes already is a list of checksums ([`Blocks::sums`]):
//!
//! | bytes | what |
//! |---|---|
//! | 4i..4i + 4 | checksum of block i, little-endian |

use alloc::vec::Vec;

use bytes::Bytes;

use crate::config::Config;
use crate::ids::{BlockIndex, Epoch, ExtentIndex, Incarnation, SegmentId, Seq};
use crate::limits::{BLOCK_SIZE, EXTENT_BLOCKS};

/// Whole blocks of data with a checksum each, computed once at the edge and carried to the disk and back.
#[derive(Clone, PartialEq, Eq, Default)]
pub struct Blocks {
    /// A multiple of 4 KiB.
    pub data: Bytes,
    /// One little-endian `u32` per block: CRC-32 of the block, started from [`sum_seed`].
    pub sums: Bytes,
}

impl core::fmt::Debug for Blocks {
    fn fmt(&self, f: &mut core::fmt::Formatter<'_>) -> core::fmt::Result {
        write!(f, "Blocks({})", self.count())
    }
}

#[allow(clippy::cast_possible_truncation)] // usize has 64 bits (asserted in limits)
impl Blocks {
    /// Number of blocks.
    #[must_use]
    #[allow(clippy::cast_possible_truncation)] // bounded by FRAME_PAYLOAD_MAX
    pub const fn count(&self) -> u32 {
        (self.data.len() as u64 / BLOCK_SIZE) as u32
    }

    /// Whether there are whole blocks and a checksum for each.
    #[must_use]
    pub const fn is_well_formed(&self) -> bool {
        (self.data.len() as u64).is_multiple_of(BLOCK_SIZE) && self.sums.len() == self.count() as usize * 4
    }

    /// Checksum of block `index`.
    #[must_use]
    pub fn sum(&self, index: u32) -> u32 {
        let at = index as usize * 4;
        u32::from_le_bytes([self.sums[at], self.sums[at + 1], self.sums[at + 2], self.sums[at + 3]])
    }

    /// Data of block `index`.
    #[must_use]
    pub fn block(&self, index: u32) -> Bytes {
        const LEN: usize = 4096;
        let at = index as usize * LEN;
        self.data.slice(at..at + LEN)
    }
}

/// A checksum as it stands in [`Blocks::sums`].
#[must_use]
pub const fn sum_bytes(sum: u32) -> [u8; 4] {
    sum.to_le_bytes()
}

/// Where the checksum of a block starts from, so that a block read from a wrong place does not match (DESIGN: a
/// misdirected write shows).
#[must_use]
#[allow(clippy::cast_possible_truncation)] // folded on purpose
pub const fn sum_seed(segment: SegmentId, block: BlockIndex) -> u32 {
    crate::random::mix(crate::random::mix(segment.to_u64()) ^ block.0 as u64) as u32
}

/// One ordered change of a segment.
#[derive(Clone, PartialEq, Eq, Debug)]
pub enum Change {
    /// These blocks now hold this data.
    Write {
        /// First block.
        block: BlockIndex,
        /// Data and checksums.
        blocks: Blocks,
    },
    /// These blocks read as zeros and use no space.
    Zero {
        /// First block.
        block: BlockIndex,
        /// Number of blocks.
        count: u32,
    },
    /// Nothing changes; a place in the order only.
    Nothing,
}

impl Change {
    /// First block and number of blocks.
    #[must_use]
    pub const fn range(&self) -> (BlockIndex, u32) {
        match self {
            Self::Write { block, blocks } => (*block, blocks.count()),
            Self::Zero { block, count } => (*block, *count),
            Self::Nothing => (BlockIndex(0), 0),
        }
    }

    /// Bytes of data it carries.
    #[must_use]
    pub const fn data_len(&self) -> u64 {
        match self {
            Self::Write { blocks, .. } => blocks.data.len() as u64,
            Self::Zero { .. } | Self::Nothing => 0,
        }
    }

    /// Extents it touches.
    pub fn extents(&self) -> impl Iterator<Item = ExtentIndex> + use<> {
        let (block, count) = self.range();
        let first = block.0 / EXTENT_BLOCKS;
        let end = if count == 0 { first } else { (block.0 + count - 1) / EXTENT_BLOCKS + 1 };
        (first..end).map(ExtentIndex)
    }
}

/// A change at its place in the segment's order.
#[derive(Clone, PartialEq, Eq, Debug)]
pub struct Entry {
    /// Epoch in which it was proposed last.
    pub epoch: Epoch,
    /// Its place.
    pub seq: Seq,
    /// What changes.
    pub change: Change,
}

/// What a replica is by its own durable word.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub enum Standing {
    /// In the in-sync set of the last configuration it adopted.
    Member,
    /// Being caught up: everything committed up to `base` is here, later extents may be.
    Candidate {
        /// The durable base; moves only when every listed extent is in.
        base: Seq,
    },
    /// Caught up and acknowledging live writes; becomes a member with the configuration that says so (I10).
    Joining {
        /// Everything up to here is in it and committed, whatever its log says: a candidate's log may have gaps below.
        base: Seq,
    },
    /// Lost its place, or recovered less than it may have acknowledged: only catch-up from `base` brings it back (I9).
    Stale {
        /// Everything committed up to here is in it.
        base: Seq,
    },
}

/// A replica's durable state apart from data. Written whole whenever it changes.
#[derive(Clone, PartialEq, Eq, Debug)]
pub struct Meta {
    /// Nothing below this epoch is obeyed any more (I2).
    pub promised: Epoch,
    /// The log above the commit point is the one of this epoch, whole (I9: tails are compared by it first).
    pub log_epoch: Epoch,
    /// The last configuration adopted.
    pub config: Config,
    /// What this replica is.
    pub standing: Standing,
}

/// One thing made durable. The records of one `Persist` become durable together or not at all.
#[derive(Clone, PartialEq, Eq, Debug)]
pub enum Record {
    /// A replica begins here, empty, and its space is booked.
    Create {
        /// Of this segment.
        segment: SegmentId,
        /// First state; holds incarnation and length.
        meta: Meta,
    },
    /// The replica's state is now this.
    State {
        /// Of this segment.
        segment: SegmentId,
        /// Whole new state.
        meta: Meta,
    },
    /// A prepared change. Replaces an entry of the same `seq`.
    Prepare {
        /// Of this segment.
        segment: SegmentId,
        /// Commit point known when it was written.
        commit: Seq,
        /// The change at its place.
        entry: Entry,
    },
    /// Entries above `above` are no longer part of this replica's log.
    Truncate {
        /// Of this segment.
        segment: SegmentId,
        /// Last entry kept.
        above: Seq,
    },
    /// The replica ends here; its space is free once this is durable.
    Drop {
        /// Of this segment.
        segment: SegmentId,
        /// Only this life of it.
        incarnation: Incarnation,
    },
}

/// A copy of one extent: for catch-up and re-mirroring.
#[derive(Clone, PartialEq, Eq, Debug)]
pub struct ExtentCopy {
    /// Which.
    pub extent: ExtentIndex,
    /// Every committed change of the extent up to here is in it.
    pub stamp: Seq,
    /// Bit i: block i of the extent holds data; the others read as zeros.
    pub present: u32,
    /// The present blocks, in order, without gaps.
    pub blocks: Blocks,
}

/// What one replica holds in one extent, in short: for comparing members with each other.
#[derive(Clone, PartialEq, Eq, Debug)]
pub struct ExtentDigest {
    /// No committed change of the extent after this one is known to it, up to `stamp`.
    pub since: Seq,
    /// Every committed change of the extent up to here is in it.
    pub stamp: Seq,
    /// As [`ExtentCopy::present`].
    pub present: u32,
    /// Checksums of the present blocks, in order; each was compared with its block when this was made.
    pub sums: Vec<u32>,
}

impl ExtentDigest {
    /// Of a copy that was just read, when the last committed change of its extent was `since`.
    #[must_use]
    pub fn of(copy: &ExtentCopy, since: Seq) -> Self {
        let sums = (0..copy.blocks.count()).map(|at| copy.blocks.sum(at)).collect();
        Self { since, stamp: copy.stamp, present: copy.present, sums }
    }

    /// Whether both hold the same; `None` when there is no state of the segment that both tell of: in its order neither
    /// may have changed after what the other has.
    #[must_use]
    pub fn is_like(&self, other: &Self) -> Option<bool> {
        let in_common = self.since.max(other.since) <= self.stamp.min(other.stamp);
        in_common.then(|| (self.present, &self.sums) == (other.present, &other.sums))
    }
}

/// What a store knew about one replica when it was opened.
#[derive(Clone, PartialEq, Eq, Debug)]
pub struct Recovered {
    /// The segment.
    pub segment: SegmentId,
    /// Its durable state.
    pub meta: Meta,
    /// Highest commit point found.
    pub commit: Seq,
    /// Entries above it, in order, without gaps.
    pub tail: Vec<Entry>,
    /// The log is damaged or may be shorter than what was acknowledged (I9, I14).
    pub damaged: bool,
}

impl Recovered {
    /// The device is an older state of itself: whatever is here may be less than was acknowledged, and its log may have
    /// been replaced since (I9). Only catch-up from nothing brings it back. The record makes that durable.
    #[must_use]
    pub fn distrust(&mut self) -> Record {
        self.damaged = true;
        self.tail.clear();
        self.meta.standing = Standing::Stale { base: Seq(0) };
        Record::State { segment: self.segment, meta: self.meta.clone() }
    }
}
