//! Where an address of a volume lies: stripe groups, chunks, segments. Pure arithmetic.
//!
//! A volume is a list of groups. A group spreads its addresses over up to [`STRIPE_WIDTH_MAX`] segments in turns of
//! one chunk, so that one sequential stream uses several primaries. A group never changes once made; growing a
//! volume adds a group. (docs/decisions/0003-striping.md)

#[cfg(feature = "openapi")]
use alloc::string::String;
use alloc::vec::Vec;

use serde::{Deserialize, Serialize};

use crate::ids::BlockIndex;
use crate::limits::{BLOCK_SIZE, CHUNK_SIZE, EXTENT_SIZE, STRIPE_WIDTH_MAX};

/// Some segments that share a range of addresses.
#[derive(Clone, Copy, PartialEq, Eq, Debug, Serialize, Deserialize)]
#[cfg_attr(feature = "openapi", derive(utoipa::ToSchema))]
pub struct Group {
    /// Index of its first segment in the volume.
    pub first: u32,
    /// Number of its segments.
    pub width: u32,
    /// Bytes of addresses it covers; a multiple of 4 KiB.
    pub bytes: u64,
}

/// How a volume's addresses map to segments.
#[derive(Clone, PartialEq, Eq, Debug, Default, Serialize, Deserialize)]
#[cfg_attr(feature = "openapi", derive(utoipa::ToSchema))]
pub struct Layout {
    /// In address order.
    pub groups: Vec<Group>,
}

/// A run of addresses that lies in one segment.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub struct Run {
    /// Index of the segment in its volume.
    pub segment: u32,
    /// First byte within the segment.
    pub offset: u64,
    /// Length in bytes.
    pub len: u64,
}

impl Run {
    /// The block it begins in.
    #[must_use]
    #[allow(clippy::cast_possible_truncation)] // a segment is at most 64 GiB
    pub const fn block(&self) -> BlockIndex {
        BlockIndex((self.offset / BLOCK_SIZE) as u32)
    }
}

impl Layout {
    /// A layout of `bytes` (a multiple of 4 KiB) in segments of `segment_size`.
    #[must_use]
    pub fn new(bytes: u64, segment_size: u64) -> Self {
        let mut layout = Self::default();
        layout.grow(bytes, segment_size);
        layout
    }

    /// Adds `bytes` of addresses behind the last. What was mapped stays where it is.
    pub fn grow(&mut self, mut bytes: u64, segment_size: u64) {
        assert!(bytes.is_multiple_of(BLOCK_SIZE) && segment_size.is_multiple_of(CHUNK_SIZE));
        let mut first = self.segments();
        while bytes > 0 {
            let covered = bytes.min(segment_size * u64::from(STRIPE_WIDTH_MAX));
            let width = u32::try_from(covered.div_ceil(segment_size)).expect("at most STRIPE_WIDTH_MAX");
            self.groups.push(Group { first, width, bytes: covered });
            first += width;
            bytes -= covered;
        }
    }

    /// Addresses in all.
    #[must_use]
    pub fn bytes(&self) -> u64 {
        self.groups.iter().map(|group| group.bytes).sum()
    }

    /// Segments in all.
    #[must_use]
    pub fn segments(&self) -> u32 {
        self.groups.last().map_or(0, |group| group.first + group.width)
    }

    /// Length of segment `index` in extents; 0 when there is no such segment.
    #[must_use]
    #[allow(clippy::cast_possible_truncation)] // a segment is at most 64 GiB
    pub fn extents(&self, index: u32) -> u32 {
        let Some(group) = self.groups.iter().find(|g| (g.first..g.first + g.width).contains(&index)) else { return 0 };
        let chunks = group.bytes.div_ceil(CHUNK_SIZE);
        let width = u64::from(group.width);
        let own = chunks / width + u64::from(u64::from(index - group.first) < chunks % width);
        (own * CHUNK_SIZE / EXTENT_SIZE) as u32
    }

    /// The first run of `offset..offset + len`; `None` when `offset` is at or behind the end, or `len` is 0.
    #[must_use]
    #[allow(clippy::cast_possible_truncation)] // remainder of a division by width
    pub fn first_run(&self, offset: u64, len: u64) -> Option<Run> {
        let mut start = 0;
        for group in &self.groups {
            if offset < start + group.bytes {
                let within = offset - start;
                let chunk = within / CHUNK_SIZE;
                let in_chunk = within % CHUNK_SIZE;
                let width = u64::from(group.width);
                let left = (CHUNK_SIZE - in_chunk).min(group.bytes - within);
                let run = Run {
                    segment: group.first + (chunk % width) as u32,
                    offset: chunk / width * CHUNK_SIZE + in_chunk,
                    // A group of one segment is contiguous: no need to cut at chunks.
                    len: len.min(if width == 1 { group.bytes - within } else { left }),
                };
                return (len > 0).then_some(run);
            }
            start += group.bytes;
        }
        None
    }

    /// All runs of `offset..offset + len`, in address order, ending at the end of the volume.
    pub fn runs(&self, mut offset: u64, mut len: u64) -> impl Iterator<Item = Run> + '_ {
        core::iter::from_fn(move || {
            let run = self.first_run(offset, len)?;
            offset += run.len;
            len -= run.len;
            Some(run)
        })
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    const GIB: u64 = 1 << 30;
    const MIB: u64 = 1 << 20;

    #[test]
    fn every_address_has_one_home_of_its_own() {
        let layout = Layout::new(130 * MIB + 12 * 1024, 64 * MIB);
        assert_eq!(layout.segments(), 3);
        let mut homes: Vec<(u32, u64, u64)> =
            layout.runs(0, layout.bytes()).map(|r| (r.segment, r.offset, r.len)).collect();
        assert_eq!(homes.iter().map(|h| h.2).sum::<u64>(), layout.bytes());
        homes.sort_unstable();
        for pair in homes.windows(2) {
            assert!(pair[0].0 < pair[1].0 || pair[0].1 + pair[0].2 <= pair[1].1, "{pair:?}");
        }
        for (segment, offset, len) in homes {
            assert!(offset + len <= u64::from(layout.extents(segment)) * EXTENT_SIZE);
        }
    }

    #[test]
    fn growing_moves_nothing() {
        let mut layout = Layout::new(2 * GIB, GIB);
        let before: Vec<Run> = layout.runs(0, 2 * GIB).collect();
        layout.grow(3 * GIB, GIB);
        assert_eq!(layout.segments(), 5);
        assert_eq!(before, layout.runs(0, 2 * GIB).collect::<Vec<_>>());
        assert_eq!(layout.bytes(), 5 * GIB);
    }

    #[test]
    fn the_end_is_the_end() {
        let layout = Layout::new(64 * MIB, 64 * MIB);
        assert_eq!(layout.first_run(64 * MIB, 1), None);
        assert_eq!(layout.first_run(0, 0), None);
        assert_eq!(layout.runs(60 * MIB, GIB).map(|r| r.len).sum::<u64>(), 4 * MIB);
        assert_eq!(layout.extents(1), 0);
    }
}
