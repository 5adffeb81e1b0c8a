//! Map pages: where the data of 252 extents in a row is. Written to a free place each time, never in place.

use engine_core::ids::{DeviceId, SegmentId, Seq};

use super::{Cursor, Malformed, Reader, Sink, crc};
use crate::device::buffer::AlignedBuf;
use crate::store::extents::{CHUNK_EXTENTS, Home, Homes};

const MAGIC: u32 = 0x504D_5742; // "BWMP"
const HEADER: usize = 64;
const _: () = assert!(HEADER + CHUNK_EXTENTS * 16 == 4096);

/// Whose page it is.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) struct PageLabel {
    pub(crate) device: DeviceId,
    pub(crate) shard: u16,
    pub(crate) segment: SegmentId,
    /// Which run of extents of the segment.
    pub(crate) chunk: u32,
}

fn put_label(sink: &mut impl Sink, label: &PageLabel) {
    sink.u32(MAGIC);
    sink.u128(label.device.0);
    sink.u16(label.shard);
    sink.u64(label.segment.to_u64());
    sink.u32(label.chunk);
}

/// The page and its checksum, which the root repeats: so that an older page left in its place shows.
pub(crate) fn encode_page(label: &PageLabel, homes: &Homes) -> (AlignedBuf, u32) {
    let mut buffer = AlignedBuf::zeroed(4096);
    put_label(&mut Cursor::new(&mut buffer[4..HEADER]), label);
    let mut sink = Cursor::new(&mut buffer[HEADER..]);
    for home in homes {
        sink.u64(home.stamp.0);
        sink.u32(home.slab);
        sink.u32(home.present);
    }
    let sum = crc(&buffer[4..]);
    buffer[..4].copy_from_slice(&sum.to_le_bytes());
    (buffer, sum)
}

/// The homes in a page that is the one with this label and checksum.
pub(crate) fn decode_page(bytes: &[u8], label: &PageLabel, sum: u32) -> Result<Box<Homes>, Malformed> {
    let mut reader = Reader::new(bytes, "map page");
    if reader.u32()? != sum || crc(bytes.get(4..4096).unwrap_or(&[])) != sum || bytes.len() != 4096 {
        return reader.bad();
    }
    let mut want = Vec::with_capacity(HEADER);
    put_label(&mut want, label);
    if reader.take(HEADER - 4)?.get(..want.len()) != Some(&want[..]) {
        return reader.bad();
    }
    let mut homes = Box::new([Home::default(); CHUNK_EXTENTS]);
    for home in homes.iter_mut() {
        *home = Home { stamp: Seq(reader.u64()?), slab: reader.u32()?, present: reader.u32()? };
    }
    Ok(homes)
}
