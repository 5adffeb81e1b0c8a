//! The only home of byte offsets: every structure on the device, version 1, little-endian (docs/format.md).
//!
//! Encoding goes into a [`Sink`], so that the same code measures and writes. Decoding never trusts a byte: a
//! [`Reader`] returns [`Malformed`] instead of running over an end, and whoever gets numbers checks their range.

mod cell;
mod page;
mod record;
mod root;
mod superblock;

pub(crate) use cell::{CellLabel, PAGE_SLABS, Sums, is_whole, put_sums, sum_at, sum_in};
pub(crate) use page::{PageLabel, decode_page, encode_page};
pub(crate) use record::{
    BATCH_HEADER, BatchHeader, MapRecord, Size, WalRecord, decode_batch, encode_batch, peek, record_size,
};
pub(crate) use root::{
    ROOT_HEADER, ROOT_PAGE, ROOT_REPLICA_MAX, RootHeader, RootPage, RootReplica, claims_root, decode_body,
    decode_header, encode_header, put_replica,
};
pub(crate) use superblock::{decode_superblock, encode_superblock, is_ours};

use engine_core::config::Config;
use engine_core::ids::{BlockIndex, Epoch, ExtentIndex, Generation, Incarnation, NodeId, SegmentId, Seq};
use engine_core::limits::META_BYTES_MAX;
use engine_core::record::{Meta, Standing};

/// The version this code writes and reads.
pub(crate) const VERSION: u32 = 1;

/// Bytes that are not what the format says.
#[derive(Debug, Clone, Copy, PartialEq, Eq, thiserror::Error)]
#[error("malformed {0}")]
pub(crate) struct Malformed(pub(crate) &'static str);

/// Where encoded bytes go.
pub(crate) trait Sink {
    fn put(&mut self, bytes: &[u8]);

    fn u8(&mut self, number: u8) {
        self.put(&[number]);
    }
    fn u16(&mut self, number: u16) {
        self.put(&number.to_le_bytes());
    }
    fn u32(&mut self, number: u32) {
        self.put(&number.to_le_bytes());
    }
    fn u64(&mut self, number: u64) {
        self.put(&number.to_le_bytes());
    }
    fn u128(&mut self, number: u128) {
        self.put(&number.to_le_bytes());
    }
    fn count(&mut self, len: usize) {
        self.u32(u32::try_from(len).expect("lists and data are far below 4 GiB"));
    }
}

/// Only counts.
pub(crate) struct Measure(pub(crate) usize);

impl Sink for Measure {
    fn put(&mut self, bytes: &[u8]) {
        self.0 += bytes.len();
    }
}

/// Writes into a slice that was measured before.
pub(crate) struct Cursor<'a> {
    bytes: &'a mut [u8],
    at: usize,
}

impl<'a> Cursor<'a> {
    pub(crate) fn new(bytes: &'a mut [u8]) -> Self {
        Self { bytes, at: 0 }
    }
}

impl Sink for Cursor<'_> {
    fn put(&mut self, bytes: &[u8]) {
        self.bytes[self.at..self.at + bytes.len()].copy_from_slice(bytes);
        self.at += bytes.len();
    }
}

impl Sink for Vec<u8> {
    fn put(&mut self, bytes: &[u8]) {
        self.extend_from_slice(bytes);
    }
}

/// Takes bytes from the front.
pub(crate) struct Reader<'a> {
    bytes: &'a [u8],
    what: &'static str,
}

impl<'a> Reader<'a> {
    pub(crate) const fn new(bytes: &'a [u8], what: &'static str) -> Self {
        Self { bytes, what }
    }

    pub(crate) const fn bad<T>(&self) -> Result<T, Malformed> {
        Err(Malformed(self.what))
    }

    pub(crate) fn take(&mut self, len: usize) -> Result<&'a [u8], Malformed> {
        match self.bytes.split_at_checked(len) {
            Some((taken, rest)) => {
                self.bytes = rest;
                Ok(taken)
            }
            None => self.bad(),
        }
    }

    fn array<const N: usize>(&mut self) -> Result<[u8; N], Malformed> {
        let what = self.what;
        self.take(N)?.try_into().map_err(|_| Malformed(what))
    }

    pub(crate) fn u8(&mut self) -> Result<u8, Malformed> {
        Ok(u8::from_le_bytes(self.array()?))
    }
    pub(crate) fn u16(&mut self) -> Result<u16, Malformed> {
        Ok(u16::from_le_bytes(self.array()?))
    }
    pub(crate) fn u32(&mut self) -> Result<u32, Malformed> {
        Ok(u32::from_le_bytes(self.array()?))
    }
    pub(crate) fn u64(&mut self) -> Result<u64, Malformed> {
        Ok(u64::from_le_bytes(self.array()?))
    }
    pub(crate) fn u128(&mut self) -> Result<u128, Malformed> {
        Ok(u128::from_le_bytes(self.array()?))
    }
    pub(crate) fn segment(&mut self) -> Result<SegmentId, Malformed> {
        Ok(SegmentId::from_u64(self.u64()?))
    }
    pub(crate) fn seq(&mut self) -> Result<Seq, Malformed> {
        Ok(Seq(self.u64()?))
    }
    pub(crate) fn epoch(&mut self) -> Result<Epoch, Malformed> {
        Ok(Epoch(self.u64()?))
    }
    pub(crate) fn extent(&mut self) -> Result<ExtentIndex, Malformed> {
        Ok(ExtentIndex(self.u32()?))
    }
    pub(crate) fn block(&mut self) -> Result<BlockIndex, Malformed> {
        Ok(BlockIndex(self.u32()?))
    }
    pub(crate) fn node(&mut self) -> Result<NodeId, Malformed> {
        match self.u16()? {
            0 => self.bad(),
            number => Ok(NodeId(number)),
        }
    }

    /// Nothing may be left.
    pub(crate) fn end(&self) -> Result<(), Malformed> {
        if self.bytes.is_empty() { Ok(()) } else { self.bad() }
    }

    pub(crate) const fn left(&self) -> usize {
        self.bytes.len()
    }
}

pub(crate) fn crc(bytes: &[u8]) -> u32 {
    crc32fast::hash(bytes)
}

/// Writes a replica's state.
pub(super) fn put_meta(sink: &mut impl Sink, meta: &Meta) {
    let config = &meta.config;
    let mut size = Measure(0);
    put_meta_fields(&mut size, meta, config);
    assert!(size.0 <= META_BYTES_MAX, "a configuration's lists are bounded");
    put_meta_fields(sink, meta, config);
}

fn put_meta_fields(sink: &mut impl Sink, meta: &Meta, config: &Config) {
    sink.u64(meta.promised.0);
    sink.u64(meta.log_epoch.0);
    let (kind, base) = match meta.standing {
        Standing::Member => (0, Seq(0)),
        Standing::Candidate { base } => (1, base),
        Standing::Joining { base } => (2, base),
        Standing::Stale { base } => (3, base),
    };
    sink.u8(kind);
    sink.u64(base.0);
    sink.u64(config.segment.to_u64());
    sink.u32(config.incarnation.0);
    sink.u64(config.epoch.0);
    sink.u16(config.primary.0);
    for list in [&config.members, &config.candidates, &config.electable, &config.former] {
        sink.u16(u16::try_from(list.len()).expect("lists of nodes are short"));
        for node in list {
            sink.u16(node.0);
        }
    }
    sink.u64(config.generation.0);
    sink.u8(config.copies);
    sink.u8(config.min_copies);
    sink.u32(config.extents);
}

/// Reads a replica's state.
pub(super) fn take_meta(reader: &mut Reader<'_>) -> Result<Meta, Malformed> {
    let begin = reader.left();
    let promised = reader.epoch()?;
    let log_epoch = reader.epoch()?;
    let kind = reader.u8()?;
    let base = reader.seq()?;
    let standing = match kind {
        0 => Standing::Member,
        1 => Standing::Candidate { base },
        2 => Standing::Joining { base },
        3 => Standing::Stale { base },
        _ => return reader.bad(),
    };
    let segment = reader.segment()?;
    let incarnation = Incarnation(reader.u32()?);
    let epoch = reader.epoch()?;
    let primary = reader.node()?;
    let mut lists: [Vec<NodeId>; 4] = Default::default();
    for list in &mut lists {
        let len = reader.u16()?;
        if usize::from(len) * 2 > META_BYTES_MAX {
            return reader.bad();
        }
        for _ in 0..len {
            list.push(reader.node()?);
        }
    }
    let [members, candidates, electable, former] = lists;
    let generation = Generation(reader.u64()?);
    let copies = reader.u8()?;
    let min_copies = reader.u8()?;
    let extents = reader.u32()?;
    // Lists that are each short enough may together be longer than a state, which could not be written again.
    if begin - reader.left() > META_BYTES_MAX {
        return reader.bad();
    }
    let config = Config {
        segment,
        incarnation,
        epoch,
        primary,
        members,
        candidates,
        electable,
        former,
        generation,
        copies,
        min_copies,
        extents,
    };
    Ok(Meta { promised, log_epoch, config, standing })
}

#[cfg(test)]
mod tests;
