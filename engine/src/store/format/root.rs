//! A checkpoint's root: one header block, then each replica's state and where its map pages are.

use engine_core::ids::{BootCount, DeviceId, SegmentId, Seq};
use engine_core::limits::META_BYTES_MAX;
use engine_core::record::Meta;

use super::{Cursor, Malformed, Reader, Sink, VERSION, crc, put_meta, take_meta};
use crate::device::buffer::AlignedBuf;

const MAGIC: &[u8; 8] = b"BRKCHECK";
const LEN: usize = 8 + 4 + 16 + 2 + 8 + 8 + 8 + 8 + 8 + 8 + 4;
/// Bytes of the header; the body follows.
pub(crate) const ROOT_HEADER: u64 = 4096;
/// Bytes one replica's state takes at most, its pages apart.
pub(crate) const ROOT_REPLICA_MAX: u64 = META_BYTES_MAX as u64 + 64;
/// Bytes of a page's place.
pub(crate) const ROOT_PAGE: u64 = 12;

/// What a checkpoint's header says.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) struct RootHeader {
    pub(crate) device: DeviceId,
    pub(crate) shard: u16,
    /// The higher of two valid ones counts.
    pub(crate) number: u64,
    /// Boot in which the batch at `position` was written, or an earlier one.
    pub(crate) boot: BootCount,
    /// Where in the ring the oldest batch is that holds an entry still needed: recovery begins there.
    pub(crate) position: u64,
    /// The number of the batch there.
    pub(crate) oldest: u64,
    /// The first batch whose records are not in the map yet.
    pub(crate) batch: u64,
    /// Bytes of the body, without padding.
    pub(crate) len: u64,
    /// Checksum of the body.
    pub(crate) sum: u32,
}

/// One replica in a root.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(crate) struct RootReplica {
    pub(crate) segment: SegmentId,
    pub(crate) meta: Meta,
    pub(crate) damaged: bool,
    pub(crate) commit: Seq,
    /// Its map pages: which run of extents, where, and the page's checksum.
    pub(crate) pages: Vec<RootPage>,
}

/// Where a map page is.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) struct RootPage {
    pub(crate) chunk: u32,
    pub(crate) place: u32,
    pub(crate) sum: u32,
}

pub(crate) fn encode_header(header: &RootHeader) -> AlignedBuf {
    let mut buffer = AlignedBuf::zeroed(4096);
    let mut sink = Cursor::new(&mut buffer);
    sink.put(MAGIC);
    sink.u32(VERSION);
    sink.u128(header.device.0);
    sink.u16(header.shard);
    sink.u64(header.number);
    sink.u64(header.boot.0);
    sink.u64(header.position);
    sink.u64(header.oldest);
    sink.u64(header.batch);
    sink.u64(header.len);
    sink.u32(header.sum);
    let sum = crc(&buffer[..LEN]);
    buffer[LEN..LEN + 4].copy_from_slice(&sum.to_le_bytes());
    buffer
}

/// Whether the bytes claim to be a root's header.
pub(crate) fn claims_root(bytes: &[u8]) -> bool {
    bytes.starts_with(MAGIC)
}

pub(crate) fn decode_header(bytes: &[u8]) -> Result<RootHeader, Malformed> {
    let mut reader = Reader::new(bytes, "checkpoint header");
    if reader.take(8)? != MAGIC || reader.u32()? != VERSION {
        return reader.bad();
    }
    let header = RootHeader {
        device: DeviceId(reader.u128()?),
        shard: reader.u16()?,
        number: reader.u64()?,
        boot: BootCount(reader.u64()?),
        position: reader.u64()?,
        oldest: reader.u64()?,
        batch: reader.u64()?,
        len: reader.u64()?,
        sum: reader.u32()?,
    };
    if reader.u32()? == crc(&bytes[..LEN]) && header.oldest <= header.batch { Ok(header) } else { reader.bad() }
}

pub(crate) fn put_replica(sink: &mut Vec<u8>, replica: &RootReplica) {
    sink.u64(replica.segment.to_u64());
    put_meta(sink, &replica.meta);
    sink.u8(u8::from(replica.damaged));
    sink.u64(replica.commit.0);
    sink.count(replica.pages.len());
    for page in &replica.pages {
        sink.u32(page.chunk);
        sink.u32(page.place);
        sink.u32(page.sum);
    }
}

/// The replicas of a root whose checksum is right.
pub(crate) fn decode_body(bytes: &[u8]) -> Result<Vec<RootReplica>, Malformed> {
    let mut reader = Reader::new(bytes, "checkpoint");
    let mut replicas = Vec::new();
    while reader.left() > 0 {
        let segment = reader.segment()?;
        let meta = take_meta(&mut reader)?;
        let damaged = reader.u8()? != 0;
        let commit = reader.seq()?;
        let mut pages = Vec::new();
        for _ in 0..reader.u32()? {
            pages.push(RootPage { chunk: reader.u32()?, place: reader.u32()?, sum: reader.u32()? });
        }
        replicas.push(RootReplica { segment, meta, damaged, commit, pages });
    }
    Ok(replicas)
}
