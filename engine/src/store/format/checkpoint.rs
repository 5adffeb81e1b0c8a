//! A checkpoint: one header block, then the whole map of the shard.

use std::collections::BTreeMap;

use engine_core::ids::{BootCount, DeviceId};

use super::record::{put_extent, take_extent};
use super::{Cursor, Malformed, Reader, Sink, VERSION, crc, put_meta, take_meta};
use crate::device::buffer::AlignedBuf;
use crate::store::map::{Extent, Map, Replica};

const MAGIC: &[u8; 8] = b"BRKCHECK";
const LEN: usize = 8 + 4 + 16 + 2 + 8 + 8 + 8 + 8 + 8 + 4;

/// What a checkpoint's header says.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) struct CheckpointHeader {
    pub(crate) device: DeviceId,
    pub(crate) shard: u16,
    /// The higher of two valid ones counts.
    pub(crate) number: u64,
    /// Boot in which it was written.
    pub(crate) boot: BootCount,
    /// Where in the ring recovery goes on.
    pub(crate) position: u64,
    /// The number of the batch there.
    pub(crate) batch: u64,
    /// Bytes of the body, without padding.
    pub(crate) len: u64,
    /// Checksum of the body.
    pub(crate) sum: u32,
}

pub(crate) fn encode_header(header: &CheckpointHeader) -> AlignedBuf {
    let mut buffer = AlignedBuf::zeroed(4096);
    let mut sink = Cursor::new(&mut buffer);
    sink.put(MAGIC);
    sink.u32(VERSION);
    sink.u128(header.device.0);
    sink.u16(header.shard);
    sink.u64(header.number);
    sink.u64(header.boot.0);
    sink.u64(header.position);
    sink.u64(header.batch);
    sink.u64(header.len);
    sink.u32(header.sum);
    let sum = crc(&buffer[..LEN]);
    buffer[LEN..LEN + 4].copy_from_slice(&sum.to_le_bytes());
    buffer
}

pub(crate) fn decode_header(bytes: &[u8]) -> Result<CheckpointHeader, Malformed> {
    let mut reader = Reader::new(bytes, "checkpoint header");
    if reader.take(8)? != MAGIC || reader.u32()? != VERSION {
        return reader.bad();
    }
    let header = CheckpointHeader {
        device: DeviceId(reader.u128()?),
        shard: reader.u16()?,
        number: reader.u64()?,
        boot: BootCount(reader.u64()?),
        position: reader.u64()?,
        batch: reader.u64()?,
        len: reader.u64()?,
        sum: reader.u32()?,
    };
    if reader.u32()? == crc(&bytes[..LEN]) { Ok(header) } else { reader.bad() }
}

/// The whole map; the log is not in it, it is written again to the WAL behind `position`.
pub(crate) fn encode_body(map: &Map) -> Vec<u8> {
    let mut out = Vec::new();
    out.count(map.replicas.len());
    for (segment, replica) in &map.replicas {
        out.u64(segment.to_u64());
        put_meta(&mut out, &replica.meta);
        out.u8(u8::from(replica.damaged));
        out.u64(replica.commit.max(replica.durable_commit).0);
        out.count(replica.extents.len());
        for (index, extent) in &replica.extents {
            put_extent(&mut out, *index, extent.stamp, extent.slab, extent.present, &extent.sums());
        }
    }
    out
}

/// A map without logs. Slabs are below `slabs` and named once.
pub(crate) fn decode_body(bytes: &[u8], slabs: u32) -> Result<Map, Malformed> {
    let mut reader = Reader::new(bytes, "checkpoint");
    let mut seen = vec![false; slabs as usize];
    let mut map = Map::default();
    for _ in 0..reader.u32()? {
        let segment = reader.segment()?;
        let meta = take_meta(&mut reader)?;
        let damaged = reader.u8()? != 0;
        let commit = reader.seq()?;
        let mut extents = BTreeMap::new();
        for _ in 0..reader.u32()? {
            let fields = take_extent(&mut reader)?;
            if let Some(slab) = fields.slab {
                match seen.get_mut(slab as usize) {
                    Some(seen) if !*seen => *seen = true,
                    _ => return reader.bad(),
                }
            }
            if fields.extent.0 >= meta.config.extents {
                return reader.bad();
            }
            extents.insert(fields.extent, Extent::home(fields.stamp, fields.slab, fields.present, fields.sums));
        }
        map.booked += u64::from(meta.config.extents);
        let replica = Replica::recovered(meta, damaged, commit, extents);
        if map.replicas.insert(segment, replica).is_some() {
            return reader.bad();
        }
    }
    reader.end()?;
    Ok(map)
}
