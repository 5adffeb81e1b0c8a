//! One copy of the superblock: one block of 4 KiB.

use engine_core::ids::{BootCount, BootId, ClusterId, DeviceId, Revision};
use engine_core::limits::OPENINGS_MAX;
use engine_core::openings::{Opening, Openings};

use super::{Cursor, Malformed, Reader, Sink, VERSION, crc};
use crate::device::buffer::AlignedBuf;
use crate::store::superblock::{Geometry, Superblock};

const MAGIC: &[u8; 8] = b"BRKWATER";
/// Magic, version, features (required, compatible), checksum algorithm, ids, boot, shape, revision, openings; the checksum
/// of it all follows.
const LEN: usize = 8 + 4 + 8 + 8 + 4 + 16 + 16 + 2 + 8 + 8 + 2 + 8 + 8 + OPENING * (1 + OPENINGS_MAX);
/// Run and boot counter; zeros for none.
const OPENING: usize = 16 + 8;
/// CRC-32 (IEEE), seeded as `engine_core::record::sum_seed` says.
const CHECKSUM_CRC32: u32 = 1;

pub(crate) fn encode_superblock(superblock: &Superblock) -> AlignedBuf {
    let mut buffer = AlignedBuf::zeroed(4096);
    let mut sink = Cursor::new(&mut buffer);
    sink.put(MAGIC);
    sink.u32(VERSION);
    sink.u64(superblock.features);
    sink.u64(superblock.compatible);
    sink.u32(CHECKSUM_CRC32);
    sink.u128(superblock.cluster.0);
    sink.u128(superblock.device.0);
    sink.u16(superblock.node.0);
    sink.u64(superblock.boot.0);
    sink.u64(superblock.geometry.size);
    sink.u16(superblock.geometry.shards);
    sink.u64(superblock.geometry.wal_size);
    sink.u64(superblock.revision.0);
    put_opening(&mut sink, superblock.openings.taken);
    superblock.openings.since.iter().for_each(|opening| put_opening(&mut sink, *opening));
    let sum = crc(&buffer[..LEN]);
    buffer[LEN..LEN + 4].copy_from_slice(&sum.to_le_bytes());
    buffer
}

fn put_opening(sink: &mut Cursor<'_>, opening: Option<Opening>) {
    sink.u128(opening.map_or(0, |opening| opening.id.0));
    sink.u64(opening.map_or(0, |opening| opening.count.0));
}

/// An opening counts from 1.
fn opening(reader: &mut Reader<'_>) -> Result<Option<Opening>, Malformed> {
    let opening = Opening { id: BootId(reader.u128()?), count: BootCount(reader.u64()?) };
    Ok((opening.count != BootCount(0)).then_some(opening))
}

/// Whether the bytes claim to be a superblock of ours, of whatever version.
pub(crate) fn is_ours(bytes: &[u8]) -> bool {
    bytes.starts_with(MAGIC)
}

/// `Err(version)` when it is of another version.
pub(crate) fn decode_superblock(bytes: &[u8]) -> Result<Result<Superblock, u32>, Malformed> {
    let mut reader = Reader::new(bytes, "superblock");
    if reader.take(8)? != MAGIC {
        return reader.bad();
    }
    let version = reader.u32()?;
    if version != VERSION {
        return Ok(Err(version));
    }
    let features = reader.u64()?;
    let compatible = reader.u64()?;
    let algorithm = reader.u32()?;
    let cluster = ClusterId(reader.u128()?);
    let device = DeviceId(reader.u128()?);
    let node = reader.node()?;
    let boot = BootCount(reader.u64()?);
    let size = reader.u64()?;
    let shards = reader.u16()?;
    let wal_size = reader.u64()?;
    let revision = Revision(reader.u64()?);
    let mut openings = Openings { taken: opening(&mut reader)?, ..Openings::default() };
    for slot in &mut openings.since {
        *slot = opening(&mut reader)?;
    }
    if reader.u32()? != crc(&bytes[..LEN]) || algorithm != CHECKSUM_CRC32 {
        return reader.bad();
    }
    let geometry = Geometry { size, shards, wal_size };
    Ok(Ok(Superblock { features, compatible, cluster, node, device, boot, geometry, revision, openings }))
}
