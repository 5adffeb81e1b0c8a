//! WAL batches and the records in them.
//!
//! A batch is one contiguous write: a header of 64 bytes, records one after the other, zeros up to the next 4 KiB, then
//! the data of the records in whole blocks, in order. So data goes to the device from where it was received. The header
//! names device, shard, boot and number and carries the checksum of the records; they hold the checksums of the data.

use bytes::Bytes;
use engine_core::ids::{BlockIndex, BootCount, DeviceId, ExtentIndex, Incarnation, SegmentId, Seq};
use engine_core::limits::{BLOCK_SIZE, EXTENT_BLOCKS, REQUEST_BYTES_MAX};
use engine_core::record::Record;

use super::{Cursor, Malformed, Measure, Reader, Sink, Sums, crc, put_meta, take_meta};
use crate::device::buffer::AlignedBuf;
use crate::store::entry::{Kind, LogEntry, Write};
use crate::store::extents::NO_SLAB;

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
    pub(crate) head: u32,
    /// Bytes of the whole batch: a multiple of 4 KiB.
    pub(crate) len: u32,
    /// Checksum of the records.
    pub(crate) sum: u32,
}

/// Bytes of a record in a batch.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default)]
pub(crate) struct Size {
    /// Among the records.
    pub(crate) head: u64,
    /// Behind them.
    pub(crate) data: u64,
}

impl Size {
    /// Bytes of a batch of such records.
    pub(crate) const fn batch(self) -> u64 {
        (self.head + BATCH_HEADER as u64).next_multiple_of(BLOCK_SIZE) + self.data
    }
}

impl std::ops::Add for Size {
    type Output = Self;

    fn add(self, other: Self) -> Self {
        Self { head: self.head + other.head, data: self.data + other.data }
    }
}

/// An extent's new home, written by a copy.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(crate) struct MapRecord {
    pub(crate) segment: SegmentId,
    pub(crate) incarnation: Incarnation,
    pub(crate) extent: ExtentIndex,
    pub(crate) stamp: Seq,
    /// It counts also where the own stamp is the same.
    pub(crate) repair: bool,
    /// None: all of it reads as zeros.
    pub(crate) slab: Option<u32>,
    pub(crate) present: u32,
    /// By block; 0 where not present.
    pub(crate) sums: Box<Sums>,
}

/// Everything the WAL can hold.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(crate) enum WalRecord {
    /// What the core made durable, prepared changes apart.
    Core(Record),
    /// A prepared change.
    Entry { segment: SegmentId, commit: Seq, seq: Seq, entry: LogEntry },
    /// The commit point, before anything is applied by it (I4).
    Commit { segment: SegmentId, through: Seq },
    /// A copy is in place.
    Map(MapRecord),
    /// The store found this replica's log damaged; stands until the core's next state of it.
    Damaged { segment: SegmentId },
}

impl WalRecord {
    /// As the core says it.
    pub(crate) fn new(record: Record) -> Self {
        match record {
            Record::Prepare { segment, commit, entry } => {
                Self::Entry { segment, commit, seq: entry.seq, entry: LogEntry::new(entry) }
            }
            other => Self::Core(other),
        }
    }

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
            | Self::Entry { segment, .. }
            | Self::Commit { segment, .. }
            | Self::Damaged { segment } => *segment,
            Self::Map(map) => map.segment,
        }
    }

    /// What of it stands behind the records.
    fn data(&self) -> Option<&Bytes> {
        match self {
            Self::Entry { entry: LogEntry { kind: Kind::Write(write), .. }, .. } => Some(&write.data),
            _ => None,
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
const REPAIR: u8 = 11;

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
        WalRecord::Core(Record::Prepare { .. }) => unreachable!("a prepared change is made an entry first"),
        WalRecord::Entry { segment, commit, seq, entry } => put_entry(sink, *segment, *commit, *seq, entry),
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
        WalRecord::Map(map) => put_map(sink, map),
        WalRecord::Damaged { segment } => {
            sink.u8(DAMAGED);
            sink.u64(segment.to_u64());
        }
    }
}

fn put_entry(sink: &mut impl Sink, segment: SegmentId, commit: Seq, seq: Seq, entry: &LogEntry) {
    sink.u8(match &entry.kind {
        Kind::Write(_) => WRITE,
        Kind::Zero { .. } => ZERO,
        Kind::Nothing => NOTHING,
    });
    sink.u64(segment.to_u64());
    sink.u64(commit.0);
    sink.u64(entry.epoch.0);
    sink.u64(seq.0);
    match &entry.kind {
        Kind::Write(write) => {
            sink.u32(write.block.0);
            sink.u32(write.count);
            sink.put(&write.sums);
            sink.count(write.slabs.len());
            for (extent, slab) in &write.slabs {
                sink.u32(extent.0);
                sink.u32(*slab);
            }
        }
        Kind::Zero { block, count } => {
            sink.u32(block.0);
            sink.u32(*count);
        }
        Kind::Nothing => {}
    }
}

fn put_map(sink: &mut impl Sink, map: &MapRecord) {
    sink.u8(if map.repair { REPAIR } else { MAP });
    sink.u64(map.segment.to_u64());
    sink.u32(map.incarnation.0);
    sink.u32(map.extent.0);
    sink.u64(map.stamp.0);
    sink.u32(map.slab.unwrap_or(NO_SLAB));
    sink.u32(map.present);
    for (block, sum) in map.sums.iter().enumerate() {
        if map.present & (1 << block) != 0 {
            sink.u32(*sum);
        }
    }
}

/// Bytes of one record in a batch.
pub(crate) fn record_size(record: &WalRecord) -> Size {
    let mut size = Measure(0);
    put_record(&mut size, record);
    Size { head: size.0 as u64, data: record.data().map_or(0, |data| data.len() as u64) }
}

/// The front of a batch, and the data that follows it. `size` is the sum of the records'.
pub(crate) fn encode_batch<'a>(
    header: &BatchHeader,
    records: impl Iterator<Item = &'a WalRecord>,
    size: Size,
) -> (AlignedBuf, Vec<Bytes>) {
    let head = BATCH_HEADER + usize::try_from(size.head).expect("bounded by PERSIST_BYTES_MAX");
    let mut buffer = AlignedBuf::to_fill(head.next_multiple_of(4096));
    buffer[..BATCH_HEADER].fill(0);
    buffer[head..].fill(0);
    let mut data = Vec::new();
    let mut sink = Cursor::new(&mut buffer[BATCH_HEADER..head]);
    for record in records {
        put_record(&mut sink, record);
        data.extend(record.data().filter(|data| !data.is_empty()).cloned());
    }
    let sum = crc(&buffer[BATCH_HEADER..head]);
    let mut sink = Cursor::new(&mut buffer);
    sink.u32(MAGIC);
    sink.u128(header.device.0);
    sink.u16(header.shard);
    sink.u64(header.boot.0);
    sink.u64(header.number);
    sink.count(head);
    sink.u32(u32::try_from(size.batch()).expect("bounded by PERSIST_BYTES_MAX"));
    sink.u32(sum);
    let sum = crc(&buffer[..HEADER_SUM_AT]);
    buffer[HEADER_SUM_AT..BATCH_HEADER].copy_from_slice(&sum.to_le_bytes());
    (buffer, data)
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
    let head = reader.u32().ok()?;
    let len = reader.u32().ok()?;
    let sum = reader.u32().ok()?;
    let own = u32::from_le_bytes(bytes[HEADER_SUM_AT..BATCH_HEADER].try_into().ok()?);
    let sane = head as usize >= BATCH_HEADER && head <= len && len.is_multiple_of(4096);
    (own == crc(&bytes[..HEADER_SUM_AT]) && sane).then_some(BatchHeader { device, shard, boot, number, head, len, sum })
}

/// The records of a batch; `bytes` is as long as the header says. Data that does not match is `suspect`, no error.
pub(crate) fn decode_batch(header: &BatchHeader, bytes: &[u8]) -> Result<Vec<WalRecord>, Malformed> {
    let mut reader = Reader::new(bytes, "batch");
    if header.len as usize != bytes.len() || header.head as usize > bytes.len() {
        return reader.bad();
    }
    let head = reader.take(header.head as usize)?;
    let Some(head) = head.get(BATCH_HEADER..).filter(|head| crc(head) == header.sum) else { return reader.bad() };
    let mut records_reader = Reader::new(head, "batch");
    let padding = (header.head as usize).next_multiple_of(4096) - header.head as usize;
    reader.take(padding)?;
    let mut records = Vec::new();
    while records_reader.left() > 0 {
        records.push(take_record(&mut records_reader, &mut reader)?);
    }
    reader.end()?;
    Ok(records)
}

fn take_record(reader: &mut Reader<'_>, data: &mut Reader<'_>) -> Result<WalRecord, Malformed> {
    let kind = reader.u8()?;
    let segment = reader.segment()?;
    Ok(match kind {
        CREATE => WalRecord::Core(Record::Create { segment, meta: take_meta(reader)? }),
        STATE => WalRecord::Core(Record::State { segment, meta: take_meta(reader)? }),
        WRITE | ZERO | NOTHING => take_entry(reader, data, kind, segment)?,
        TRUNCATE => WalRecord::Core(Record::Truncate { segment, above: reader.seq()? }),
        DROP => WalRecord::Core(Record::Drop { segment, incarnation: Incarnation(reader.u32()?) }),
        COMMIT => WalRecord::Commit { segment, through: reader.seq()? },
        MAP | REPAIR => WalRecord::Map(take_map(reader, segment, kind == REPAIR)?),
        DAMAGED => WalRecord::Damaged { segment },
        _ => return reader.bad(),
    })
}

fn take_map(reader: &mut Reader<'_>, segment: SegmentId, repair: bool) -> Result<MapRecord, Malformed> {
    let incarnation = Incarnation(reader.u32()?);
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
    Ok(MapRecord { segment, incarnation, extent, stamp, repair, slab, present, sums })
}

fn take_entry(
    reader: &mut Reader<'_>,
    data: &mut Reader<'_>,
    kind: u8,
    segment: SegmentId,
) -> Result<WalRecord, Malformed> {
    let commit = reader.seq()?;
    let epoch = reader.epoch()?;
    let seq = reader.seq()?;
    let kind = if kind == NOTHING {
        Kind::Nothing
    } else {
        let block = reader.block()?;
        let count = reader.u32()?;
        if count == 0 || block.0.checked_add(count).is_none_or(|end| end > u32::MAX - EXTENT_BLOCKS) {
            return reader.bad();
        }
        if kind == ZERO {
            Kind::Zero { block, count }
        } else {
            Kind::Write(take_write(reader, data, segment, block, count)?)
        }
    };
    Ok(WalRecord::Entry { segment, commit, seq, entry: LogEntry { epoch, kind } })
}

fn take_write(
    reader: &mut Reader<'_>,
    data: &mut Reader<'_>,
    segment: SegmentId,
    block: BlockIndex,
    count: u32,
) -> Result<Write, Malformed> {
    if u64::from(count) * BLOCK_SIZE > REQUEST_BYTES_MAX {
        return reader.bad();
    }
    // Copied: an entry must not keep the whole window of the ring it was read from.
    let sums = Bytes::copy_from_slice(reader.take(count as usize * 4)?);
    let mut slabs: Vec<(ExtentIndex, u32)> = Vec::new();
    let mut inline = count;
    for _ in 0..reader.u32()? {
        let (extent, slab) = (reader.extent()?, reader.u32()?);
        let first = extent.0.checked_mul(EXTENT_BLOCKS);
        let end = first.and_then(|first| first.checked_add(EXTENT_BLOCKS));
        let inside = first.zip(end).is_some_and(|(first, end)| first >= block.0 && end <= block.0 + count);
        if !inside || slabs.last().is_some_and(|(last, _)| *last >= extent) {
            return reader.bad();
        }
        slabs.push((extent, slab));
        inline -= EXTENT_BLOCKS;
    }
    let data = Bytes::copy_from_slice(data.take(inline as usize * 4096)?);
    let mut write = Write { block, count, sums, data, slabs, suspect: false };
    write.suspect = write.has_bad_data(segment);
    Ok(write)
}
