//! WAL batches and the records in them.
//!
//! A batch is one contiguous write: a header of 64 bytes, records one after the other, zeros up to the next 4 KiB.
//! The header names device, shard, boot and number and carries the checksum of everything, so that a torn batch and
//! one left from an earlier turn of the ring are both recognised.

use bytes::Bytes;
use engine_core::ids::{BootCount, DeviceId, ExtentIndex, Incarnation, SegmentId, Seq};
use engine_core::limits::{BLOCK_SIZE, EXTENT_BLOCKS, REQUEST_BYTES_MAX};
use engine_core::record::{Blocks, Change, Entry, Record};

use super::{Cursor, Malformed, Measure, Reader, Sink, crc, put_meta, take_meta};
use crate::device::buffer::AlignedBuf;

const MAGIC: u32 = 0x4C57_5742; // "BWWL"
/// Bytes of a batch header.
pub(crate) const BATCH_HEADER: usize = 64;
/// Where the header's own checksum stands; it covers what is before it.
const HEADER_SUM_AT: usize = 60;

/// Who wrote a batch, and which it is.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) struct BatchHeader {
    pub(crate) device: DeviceId,
    pub(crate) shard: u16,
    pub(crate) boot: BootCount,
    pub(crate) number: u64,
    /// Bytes of header and records, without padding.
    pub(crate) len: u32,
    /// Checksum of the records.
    pub(crate) sum: u32,
}

/// An extent's new home, written by a copy.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(crate) struct MapRecord {
    pub(crate) segment: SegmentId,
    pub(crate) incarnation: Incarnation,
    pub(crate) extent: ExtentIndex,
    pub(crate) stamp: Seq,
    /// None: all of it reads as zeros.
    pub(crate) slab: Option<u32>,
    pub(crate) present: u32,
    /// By block; 0 where not present.
    pub(crate) sums: Box<[u32; EXTENT_BLOCKS as usize]>,
}

/// Everything the WAL can hold.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(crate) enum WalRecord {
    /// What the core made durable.
    Core(Record),
    /// The commit point, before anything is applied by it (I4).
    Commit { segment: SegmentId, through: Seq },
    /// A copy is in place.
    Map(MapRecord),
    /// The store found this replica's log damaged; stands until the core's next state of it.
    Damaged { segment: SegmentId },
}

impl WalRecord {
    /// Which segment it is about.
    pub(crate) const fn segment(&self) -> SegmentId {
        match self {
            Self::Core(
                Record::Create { segment, .. }
                | Record::State { segment, .. }
                | Record::Prepare { segment, .. }
                | Record::Truncate { segment, .. }
                | Record::Drop { segment, .. },
            )
            | Self::Commit { segment, .. }
            | Self::Damaged { segment } => *segment,
            Self::Map(map) => map.segment,
        }
    }
}

const CREATE: u8 = 1;
const STATE: u8 = 2;
const WRITE: u8 = 3;
const ZERO: u8 = 4;
const NOTHING: u8 = 5;
const TRUNCATE: u8 = 6;
const DROP: u8 = 7;
const COMMIT: u8 = 8;
const MAP: u8 = 9;
const DAMAGED: u8 = 10;
/// "No slab".
pub(super) const NO_SLAB: u32 = u32::MAX;

fn put_record(sink: &mut impl Sink, record: &WalRecord) {
    match record {
        WalRecord::Core(Record::Create { segment, meta }) => {
            sink.u8(CREATE);
            sink.u64(segment.to_u64());
            put_meta(sink, meta);
        }
        WalRecord::Core(Record::State { segment, meta }) => {
            sink.u8(STATE);
            sink.u64(segment.to_u64());
            put_meta(sink, meta);
        }
        WalRecord::Core(Record::Prepare { segment, commit, entry }) => put_entry(sink, *segment, *commit, entry),
        WalRecord::Core(Record::Truncate { segment, above }) => {
            sink.u8(TRUNCATE);
            sink.u64(segment.to_u64());
            sink.u64(above.0);
        }
        WalRecord::Core(Record::Drop { segment, incarnation }) => {
            sink.u8(DROP);
            sink.u64(segment.to_u64());
            sink.u32(incarnation.0);
        }
        WalRecord::Commit { segment, through } => {
            sink.u8(COMMIT);
            sink.u64(segment.to_u64());
            sink.u64(through.0);
        }
        WalRecord::Map(map) => {
            sink.u8(MAP);
            sink.u64(map.segment.to_u64());
            sink.u32(map.incarnation.0);
            put_extent(sink, map.extent, map.stamp, map.slab, map.present, &map.sums);
        }
        WalRecord::Damaged { segment } => {
            sink.u8(DAMAGED);
            sink.u64(segment.to_u64());
        }
    }
}

fn put_entry(sink: &mut impl Sink, segment: SegmentId, commit: Seq, entry: &Entry) {
    let kind = match entry.change {
        Change::Write { .. } => WRITE,
        Change::Zero { .. } => ZERO,
        Change::Nothing => NOTHING,
    };
    sink.u8(kind);
    sink.u64(segment.to_u64());
    sink.u64(commit.0);
    sink.u64(entry.epoch.0);
    sink.u64(entry.seq.0);
    match &entry.change {
        Change::Write { block, blocks } => {
            sink.u32(block.0);
            sink.u32(blocks.count());
            sink.put(&blocks.sums);
            sink.put(&blocks.data);
        }
        Change::Zero { block, count } => {
            sink.u32(block.0);
            sink.u32(*count);
        }
        Change::Nothing => {}
    }
}

pub(super) fn put_extent(
    sink: &mut impl Sink,
    extent: ExtentIndex,
    stamp: Seq,
    slab: Option<u32>,
    present: u32,
    sums: &[u32; EXTENT_BLOCKS as usize],
) {
    sink.u32(extent.0);
    sink.u64(stamp.0);
    sink.u32(slab.unwrap_or(NO_SLAB));
    sink.u32(present);
    for (block, sum) in sums.iter().enumerate() {
        if present & (1 << block) != 0 {
            sink.u32(*sum);
        }
    }
}

/// An extent as it stands on disk.
pub(super) struct ExtentFields {
    pub(super) extent: ExtentIndex,
    pub(super) stamp: Seq,
    pub(super) slab: Option<u32>,
    pub(super) present: u32,
    pub(super) sums: Box<[u32; EXTENT_BLOCKS as usize]>,
}

pub(super) fn take_extent(reader: &mut Reader<'_>) -> Result<ExtentFields, Malformed> {
    let extent = reader.extent()?;
    let stamp = reader.seq()?;
    let slab = Some(reader.u32()?).filter(|slab| *slab != NO_SLAB);
    let present = reader.u32()?;
    if slab.is_none() != (present == 0) {
        return reader.bad();
    }
    let mut sums = Box::new([0; EXTENT_BLOCKS as usize]);
    for (block, sum) in sums.iter_mut().enumerate() {
        if present & (1 << block) != 0 {
            *sum = reader.u32()?;
        }
    }
    Ok(ExtentFields { extent, stamp, slab, present, sums })
}

/// Bytes of one record in a batch.
pub(crate) fn record_len(record: &WalRecord) -> u64 {
    let mut size = Measure(0);
    put_record(&mut size, record);
    size.0 as u64
}

/// One batch, ready to be written. `bytes` is the sum of [`record_len`] of the records.
pub(crate) fn encode_batch<'a>(
    mut header: BatchHeader,
    records: impl Iterator<Item = &'a WalRecord>,
    bytes: u64,
) -> AlignedBuf {
    let len = BATCH_HEADER + usize::try_from(bytes).expect("bounded by PERSIST_BYTES_MAX");
    let mut buffer = AlignedBuf::zeroed(len.next_multiple_of(4096));
    let mut sink = Cursor::new(&mut buffer[BATCH_HEADER..len]);
    for record in records {
        put_record(&mut sink, record);
    }
    header.len = u32::try_from(len).expect("bounded by PERSIST_BYTES_MAX");
    header.sum = crc(&buffer[BATCH_HEADER..len]);
    let mut sink = Cursor::new(&mut buffer);
    sink.u32(MAGIC);
    sink.u128(header.device.0);
    sink.u16(header.shard);
    sink.u64(header.boot.0);
    sink.u64(header.number);
    sink.u32(header.len);
    sink.u32(header.sum);
    let sum = crc(&buffer[..HEADER_SUM_AT]);
    buffer[HEADER_SUM_AT..BATCH_HEADER].copy_from_slice(&sum.to_le_bytes());
    buffer
}

/// The header of a batch, if these bytes begin with one whose own checksum is right.
pub(crate) fn peek(bytes: &[u8]) -> Option<BatchHeader> {
    let mut reader = Reader::new(bytes.get(..BATCH_HEADER)?, "batch header");
    if reader.u32().ok()? != MAGIC {
        return None;
    }
    let device = DeviceId(reader.u128().ok()?);
    let shard = reader.u16().ok()?;
    let boot = BootCount(reader.u64().ok()?);
    let number = reader.u64().ok()?;
    let len = reader.u32().ok()?;
    let sum = reader.u32().ok()?;
    let own = u32::from_le_bytes(bytes[HEADER_SUM_AT..BATCH_HEADER].try_into().ok()?);
    (own == crc(&bytes[..HEADER_SUM_AT]) && len as usize >= BATCH_HEADER).then_some(BatchHeader {
        device,
        shard,
        boot,
        number,
        len,
        sum,
    })
}

/// The records of a batch; `bytes` is as long as the header says.
pub(crate) fn decode_batch(header: &BatchHeader, bytes: &[u8]) -> Result<Vec<WalRecord>, Malformed> {
    let mut reader = Reader::new(bytes, "batch");
    reader.take(BATCH_HEADER)?;
    if header.len as usize != bytes.len() || crc(&bytes[BATCH_HEADER..]) != header.sum {
        return reader.bad();
    }
    let mut records = Vec::new();
    while reader.left() > 0 {
        records.push(take_record(&mut reader)?);
    }
    Ok(records)
}

fn take_record(reader: &mut Reader<'_>) -> Result<WalRecord, Malformed> {
    let kind = reader.u8()?;
    let segment = reader.segment()?;
    Ok(match kind {
        CREATE => WalRecord::Core(Record::Create { segment, meta: take_meta(reader)? }),
        STATE => WalRecord::Core(Record::State { segment, meta: take_meta(reader)? }),
        WRITE | ZERO | NOTHING => WalRecord::Core(take_entry(reader, kind, segment)?),
        TRUNCATE => WalRecord::Core(Record::Truncate { segment, above: reader.seq()? }),
        DROP => WalRecord::Core(Record::Drop { segment, incarnation: Incarnation(reader.u32()?) }),
        COMMIT => WalRecord::Commit { segment, through: reader.seq()? },
        MAP => {
            let incarnation = Incarnation(reader.u32()?);
            let fields = take_extent(reader)?;
            let (extent, stamp, slab) = (fields.extent, fields.stamp, fields.slab);
            WalRecord::Map(MapRecord {
                segment,
                incarnation,
                extent,
                stamp,
                slab,
                present: fields.present,
                sums: fields.sums,
            })
        }
        DAMAGED => WalRecord::Damaged { segment },
        _ => return reader.bad(),
    })
}

fn take_entry(reader: &mut Reader<'_>, kind: u8, segment: SegmentId) -> Result<Record, Malformed> {
    let commit = reader.seq()?;
    let epoch = reader.epoch()?;
    let seq = reader.seq()?;
    let change = if kind == NOTHING {
        Change::Nothing
    } else {
        let block = reader.block()?;
        let count = reader.u32()?;
        if count == 0 || block.0.checked_add(count).is_none() {
            return reader.bad();
        }
        if kind == ZERO {
            Change::Zero { block, count }
        } else {
            if u64::from(count) * BLOCK_SIZE > REQUEST_BYTES_MAX {
                return reader.bad();
            }
            // Copied: an entry must not keep the whole window of the ring it was read from.
            let sums = Bytes::copy_from_slice(reader.take(count as usize * 4)?);
            let data = Bytes::copy_from_slice(reader.take(count as usize * 4096)?);
            Change::Write { block, blocks: Blocks { data, sums } }
        }
    };
    Ok(Record::Prepare { segment, commit, entry: Entry { epoch, seq, change } })
}
