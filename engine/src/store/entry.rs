//! An entry of a replica's log as the store holds it: its data in memory, or in slabs nothing else points to yet.

use bytes::Bytes;
use engine_core::ids::{BlockIndex, Epoch, ExtentIndex, SegmentId, Seq};
use engine_core::limits::EXTENT_BLOCKS;
use engine_core::record::{Blocks, Change, Entry};

const BLOCK: usize = 4096;

/// What an entry does.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(crate) enum Kind {
    Write(Write),
    Zero { block: BlockIndex, count: u32 },
    Nothing,
}

/// Blocks that are written.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(crate) struct Write {
    pub(crate) block: BlockIndex,
    pub(crate) count: u32,
    /// One little-endian `u32` per block.
    pub(crate) sums: Bytes,
    /// The blocks that are in no slab, in order.
    pub(crate) data: Bytes,
    /// Whole extents whose blocks are in a slab of their own, in order (the redirect path).
    pub(crate) slabs: Vec<(ExtentIndex, u32)>,
    /// Damaged in the WAL: a block is looked at before it is believed.
    pub(crate) suspect: bool,
}

/// Where a block of a write is.
pub(crate) enum Place<'a> {
    Data(&'a [u8]),
    Slab(u32),
}

impl Write {
    /// The checksum of a block of the segment.
    pub(crate) fn sum(&self, block: u32) -> u32 {
        super::format::sum_at(&self.sums, (block - self.block.0) as usize)
    }

    /// Where a block of the segment, which this writes, is.
    pub(crate) fn place(&self, block: u32) -> Place<'_> {
        let extent = ExtentIndex(block / EXTENT_BLOCKS);
        let mut before = 0;
        for (at, slab) in &self.slabs {
            if *at == extent {
                return Place::Slab(*slab);
            }
            before += if *at < extent { EXTENT_BLOCKS } else { 0 };
        }
        let at = (block - self.block.0 - before) as usize * BLOCK;
        Place::Data(self.data.get(at..at + BLOCK).unwrap_or(&[]))
    }

    /// The slab of one extent.
    pub(crate) fn slab_of(&self, extent: ExtentIndex) -> Option<u32> {
        self.slabs.iter().find(|(at, _)| *at == extent).map(|(_, slab)| *slab)
    }

    /// Checksums of an extent all of whose blocks are written.
    pub(crate) fn sums_of(&self, extent: ExtentIndex) -> super::format::Sums {
        let mut sums = [0; EXTENT_BLOCKS as usize];
        for (sum, block) in sums.iter_mut().zip(extent.0 * EXTENT_BLOCKS..) {
            *sum = self.sum(block);
        }
        sums
    }

    /// The blocks in `data` whose content does not match its checksum.
    pub(crate) fn has_bad_data(&self, segment: SegmentId) -> bool {
        (self.block.0..self.block.0 + self.count).any(|block| match self.place(block) {
            Place::Data(data) => super::block_sum(segment, BlockIndex(block), data) != self.sum(block),
            Place::Slab(_) => false,
        })
    }
}

/// An entry's place in the order is the log's key.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(crate) struct LogEntry {
    pub(crate) epoch: Epoch,
    pub(crate) kind: Kind,
}

impl LogEntry {
    /// An entry of the core, all its data in memory.
    pub(crate) fn new(entry: Entry) -> Self {
        let kind = match entry.change {
            Change::Write { block, blocks } => {
                let (count, Blocks { data, sums }) = (blocks.count(), blocks);
                Kind::Write(Write { block, count, sums, data, slabs: Vec::new(), suspect: false })
            }
            Change::Zero { block, count } => Kind::Zero { block, count },
            Change::Nothing => Kind::Nothing,
        };
        Self { epoch: entry.epoch, kind }
    }

    /// As the core has it; the data of extents in slabs comes from `read`.
    pub(crate) fn to_core(&self, seq: Seq, mut read: impl FnMut(u32, u32) -> Option<Bytes>) -> Option<Entry> {
        let change = match &self.kind {
            Kind::Nothing => Change::Nothing,
            Kind::Zero { block, count } => Change::Zero { block: *block, count: *count },
            Kind::Write(write) if write.slabs.is_empty() => {
                let blocks = Blocks { data: write.data.clone(), sums: write.sums.clone() };
                Change::Write { block: write.block, blocks }
            }
            Kind::Write(write) => {
                let mut data = Vec::with_capacity(write.count as usize * BLOCK);
                let mut block = write.block.0;
                while block < write.block.0 + write.count {
                    match write.place(block) {
                        Place::Data(bytes) => {
                            data.extend_from_slice(bytes);
                            block += 1;
                        }
                        Place::Slab(slab) => {
                            data.extend_from_slice(&read(block / EXTENT_BLOCKS, slab)?);
                            block += EXTENT_BLOCKS;
                        }
                    }
                }
                Change::Write { block: write.block, blocks: Blocks { data: data.into(), sums: write.sums.clone() } }
            }
        };
        Some(Entry { epoch: self.epoch, seq, change })
    }

    /// The checksum of a block of the segment that it writes.
    pub(crate) fn sum(&self, block: u32) -> Option<u32> {
        match &self.kind {
            Kind::Write(write) => Some(write.sum(block)),
            Kind::Zero { .. } | Kind::Nothing => None,
        }
    }

    /// First block and number of blocks.
    pub(crate) const fn range(&self) -> (u32, u32) {
        match &self.kind {
            Kind::Write(write) => (write.block.0, write.count),
            Kind::Zero { block, count } => (block.0, *count),
            Kind::Nothing => (0, 0),
        }
    }

    /// Extents it touches.
    pub(crate) fn extents(&self) -> impl Iterator<Item = ExtentIndex> + use<> {
        let (block, count) = self.range();
        let first = block / EXTENT_BLOCKS;
        let end = if count == 0 { first } else { (block + count - 1) / EXTENT_BLOCKS + 1 };
        (first..end).map(ExtentIndex)
    }

    /// The blocks of `extent` that it touches, as indexes within the extent.
    pub(crate) fn touched(&self, extent: ExtentIndex) -> std::ops::Range<usize> {
        let (block, count) = self.range();
        let start = extent.0 * EXTENT_BLOCKS;
        let first = block.max(start) - start;
        let end = (block + count).min(start + EXTENT_BLOCKS).saturating_sub(start);
        first as usize..end as usize
    }

    /// Slabs that are this entry's.
    pub(crate) fn slabs(&self) -> &[(ExtentIndex, u32)] {
        match &self.kind {
            Kind::Write(write) => &write.slabs,
            Kind::Zero { .. } | Kind::Nothing => &[],
        }
    }
}
