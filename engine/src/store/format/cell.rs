//! Checksum pages: 4 KiB of eight cells, each with the block checksums of three slabs.
//!
//! A cell is one sector of 512 bytes with its own checksum: a page that was torn by a crash has each cell old or new,
//! never a mixture, and one bad sector costs three slabs, not twenty-four.

use engine_core::ids::DeviceId;
use engine_core::limits::EXTENT_BLOCKS;

use super::{Cursor, Reader, Sink, crc};
use crate::device::buffer::AlignedBuf;

const MAGIC: u32 = 0x5343_5742; // "BWCS"
const CELL: usize = 512;
const CELL_SLABS: u32 = 3;
/// Slabs of one page: eight cells.
pub(crate) const PAGE_SLABS: u32 = CELL_SLABS * 8;
const BLOCKS: usize = EXTENT_BLOCKS as usize;
const HEADER: usize = 128;
const _: () = assert!(HEADER + CELL_SLABS as usize * BLOCKS * 4 == CELL && CELL * 8 == 4096);

/// Checksums of a slab's blocks.
pub(crate) type Sums = [u32; BLOCKS];

/// Where the cells of a shard belong.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) struct CellLabel {
    pub(crate) device: DeviceId,
    pub(crate) shard: u16,
}

fn place(slab: u32) -> (usize, usize) {
    let within = slab % PAGE_SLABS;
    let cell = (within / CELL_SLABS) as usize * CELL;
    (cell, cell + HEADER + (within % CELL_SLABS) as usize * BLOCKS * 4)
}

fn first_of_cell(slab: u32) -> u32 {
    slab - slab % CELL_SLABS
}

/// Whether the cell of a slab is whole and the right one.
pub(crate) fn is_whole(page: &[u8], label: CellLabel, slab: u32) -> bool {
    let (cell, _) = place(slab);
    let Some(bytes) = page.get(cell..cell + CELL) else { return false };
    let mut reader = Reader::new(bytes, "checksum cell");
    let mut check = || {
        let whole = reader.u32()? == crc(&bytes[4..])
            && reader.u32()? == MAGIC
            && reader.u32()? == first_of_cell(slab)
            && reader.u128()? == label.device.0
            && reader.u16()? == label.shard;
        Ok::<_, super::Malformed>(whole)
    };
    check().unwrap_or(false)
}

/// The checksum of one block, from a page whose cell is whole.
pub(crate) fn sum_in(page: &[u8], slab: u32, block: u32) -> u32 {
    let (_, sums) = place(slab);
    sum_at(page.get(sums..).unwrap_or(&[]), block as usize)
}

/// One of a list of checksums; 0 where it has none.
pub(crate) fn sum_at(sums: &[u8], index: usize) -> u32 {
    let bytes = sums.get(index * 4..index * 4 + 4).and_then(|bytes| bytes.try_into().ok());
    bytes.map_or(0, u32::from_le_bytes)
}

/// Puts the checksums of the blocks in `known` into a page. What a cell that is not whole held is gone: its other
/// blocks will not match whatever is read.
pub(crate) fn put_sums(page: &mut AlignedBuf, label: CellLabel, slab: u32, known: u32, sums: &Sums) {
    let (cell, at) = place(slab);
    if !is_whole(page, label, slab) {
        page[cell..cell + CELL].fill(0);
    }
    for (block, sum) in sums.iter().enumerate() {
        if known & (1 << block) != 0 {
            page[at + block * 4..at + block * 4 + 4].copy_from_slice(&sum.to_le_bytes());
        }
    }
    let mut sink = Cursor::new(&mut page[cell + 4..cell + HEADER]);
    sink.u32(MAGIC);
    sink.u32(first_of_cell(slab));
    sink.u128(label.device.0);
    sink.u16(label.shard);
    let sum = crc(&page[cell + 4..cell + CELL]);
    page[cell..cell + 4].copy_from_slice(&sum.to_le_bytes());
}
