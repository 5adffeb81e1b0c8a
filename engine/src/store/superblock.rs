//! Who a device belongs to and how it is divided. Formatting and opening, before any shard runs.
//!
//! Four copies, 256 KiB apart, in the first MiB; each is made durable before the next is touched, so a crash leaves
//! whole copies of the old or the new one. The highest boot counter, then revision, among the whole copies counts. Nothing is written
//! before every check has passed, and formatting refuses anything that is not blank.

use std::io;

use engine_core::ids::{BootCount, BootId, ClusterId, DeviceId, NodeId, Revision};
use engine_core::limits::{BLOCK_SIZE, EXTENT_SIZE, SCRATCH_SLABS_MIN, SHARDS_MAX, WAL_SIZE_MAX, WAL_SIZE_MIN};
use engine_core::openings::{Opening, Openings};

use super::extents::CHUNK_EXTENTS;
use super::format::{
    PAGE_SLABS, ROOT_HEADER, ROOT_PAGE, ROOT_REPLICA_MAX, RootHeader, crc, decode_superblock, encode_header,
    encode_superblock, is_ours,
};
use crate::device::WholeDevice;
use crate::device::buffer::AlignedBuf;

const MIB: u64 = 1024 * 1024;
/// Bytes before the first shard's region.
const HEAD: u64 = MIB;
pub(crate) const COPIES: [u64; 4] = [0, 256 * 1024, 512 * 1024, 768 * 1024];
/// Smallest useful room for data of one shard: a segment of 64 MiB and the scratch slabs.
const DATA_MIN: u64 = 64 * MIB + SCRATCH_SLABS_MIN * EXTENT_SIZE;

/// How a device is divided. Fixed when it is formatted.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Geometry {
    /// Bytes of the device that are used.
    pub size: u64,
    /// Equal regions, one per shard.
    pub shards: u16,
    /// Bytes of each shard's WAL.
    pub wal_size: u64,
}

/// Where things are in one shard's region; offsets are relative to it.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Region {
    /// Which shard.
    pub shard: u16,
    /// First byte on the device.
    pub base: u64,
    /// Bytes.
    pub len: u64,
    /// Bytes of the WAL, which comes first.
    pub(crate) wal: u64,
    /// Bytes of each of the two roots of checkpoints behind it.
    pub(crate) area: u64,
    /// Places of map pages behind them.
    pub(crate) pages: u32,
    /// Slabs, behind the pages of their checksums.
    pub(crate) slabs: u32,
    /// Slabs nobody books (I13).
    pub(crate) scratch: u32,
}

impl Region {
    pub(crate) const fn area_at(&self, which: u64) -> u64 {
        self.wal + self.area * which
    }

    pub(crate) const fn page_at(&self, place: u32) -> u64 {
        self.wal + self.area * 2 + place as u64 * BLOCK_SIZE
    }

    pub(crate) const fn sums_at(&self, page: u32) -> u64 {
        self.page_at(self.pages) + page as u64 * BLOCK_SIZE
    }

    pub(crate) const fn slab_at(&self, slab: u32) -> u64 {
        self.sums_at(self.slabs.div_ceil(PAGE_SLABS)) + slab as u64 * EXTENT_SIZE
    }

    /// Extents replicas can book.
    #[must_use]
    pub const fn capacity(&self) -> u64 {
        (self.slabs - self.scratch) as u64
    }
}

/// Replicas a shard of so many slabs is made for (a replica has at least 512 extents; tests make smaller ones, in
/// smaller numbers).
const fn replicas(slabs: u64) -> u64 {
    64 + slabs / 256
}

/// Map pages of the largest map.
const fn map_pages(slabs: u64) -> u64 {
    slabs / CHUNK_EXTENTS as u64 + 1 + replicas(slabs)
}

/// Bytes of a root: the header, each replica's state and the places of its pages.
const fn area_len(slabs: u64) -> u64 {
    let bytes = ROOT_HEADER + replicas(slabs) * ROOT_REPLICA_MAX + map_pages(slabs) * ROOT_PAGE;
    bytes.next_multiple_of(64 * 1024)
}

/// Bytes a shard needs beside its WAL and its slabs: two roots, places for two maps, the checksums.
const fn meta_len(slabs: u64) -> u64 {
    2 * area_len(slabs) + (2 * map_pages(slabs) + slabs.div_ceil(PAGE_SLABS as u64)) * BLOCK_SIZE
}

impl Geometry {
    /// Divides `size` bytes.
    ///
    /// # Errors
    /// With the figures, when there is too little space or a setting is out of its bounds.
    pub fn plan(size: u64, shards: u16, wal_size: u64) -> Result<Self, FormatError> {
        let settings = FormatError::BadSettings { shards, wal_size };
        if shards == 0 || shards > SHARDS_MAX || !(WAL_SIZE_MIN..=WAL_SIZE_MAX).contains(&wal_size) {
            return Err(settings);
        }
        if !wal_size.is_multiple_of(MIB) {
            return Err(settings);
        }
        let meta = meta_len(DATA_MIN / EXTENT_SIZE);
        let needed = HEAD + u64::from(shards) * (wal_size + meta + DATA_MIN + 2 * MIB).next_multiple_of(MIB);
        if size < needed {
            return Err(FormatError::TooSmall { size, needed, shards, wal_size });
        }
        Ok(Self { size: size - size % MIB, shards, wal_size })
    }

    /// One shard's region.
    #[must_use]
    pub fn region(&self, shard: u16) -> Region {
        assert!(shard < self.shards, "no such shard");
        let len = (self.size - HEAD) / u64::from(self.shards) / MIB * MIB;
        let room = len - self.wal_size;
        // The largest number of slabs that fits with all that describes them.
        let mut slabs = room / EXTENT_SIZE;
        while slabs > 0 && slabs * EXTENT_SIZE + meta_len(slabs) > room {
            slabs -= (slabs * EXTENT_SIZE + meta_len(slabs) - room).div_ceil(EXTENT_SIZE * 2).max(1).min(slabs);
        }
        let slabs = u32::try_from(slabs).unwrap_or(u32::MAX - 1);
        #[allow(clippy::cast_possible_truncation)] // 64
        let scratch = (slabs / 50).max(SCRATCH_SLABS_MIN as u32).min(slabs);
        let base = HEAD + len * u64::from(shard);
        let (area, pages) = (area_len(u64::from(slabs)), 2 * map_pages(u64::from(slabs)));
        let pages = u32::try_from(pages).unwrap_or(u32::MAX);
        Region { shard, base, len, wal: self.wal_size, area, pages, slabs, scratch }
    }

    fn is_sane(&self) -> bool {
        let regions = self.wal_size.saturating_add(4 * MIB).saturating_mul(u64::from(self.shards));
        (1..=SHARDS_MAX).contains(&self.shards)
            && self.wal_size.is_multiple_of(4096)
            && (64 * 1024..=WAL_SIZE_MAX).contains(&self.wal_size)
            && self.size.is_multiple_of(MIB)
            && self.size > HEAD.saturating_add(regions)
    }
}

/// A device's identity.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Superblock {
    /// Features a program must know to open the device; none exists yet.
    pub features: u64,
    /// Features a program may be ignorant of; kept as they are.
    pub compatible: u64,
    /// The cluster.
    pub cluster: ClusterId,
    /// The node.
    pub node: NodeId,
    /// This device.
    pub device: DeviceId,
    /// How often it was opened (I9).
    pub boot: BootCount,
    /// How it is divided.
    pub geometry: Geometry,
    /// The highest revision of the authority this node has heard of (I11).
    pub revision: Revision,
    /// By which openings the authority may know the device (I9).
    pub openings: Openings,
}

impl Superblock {
    /// Orders the copies: the one with the highest counts.
    const fn age(&self) -> (u64, u64) {
        (self.boot.0, self.revision.0)
    }

    /// The authority has taken in this opening, by the run `id`, with this boot counter. Where the counter is not the
    /// device's own, everything on it has to be distrusted durably before this is written (I9).
    pub fn taken_in(&mut self, id: BootId, boot: BootCount) {
        self.boot = boot;
        self.openings.take_in(Opening { id, count: boot });
    }
}

/// Why a device was not opened. Nothing was written.
#[derive(Debug, thiserror::Error)]
pub enum OpenError {
    /// All zero.
    #[error("the device is not formatted (it is blank)")]
    NotFormatted,
    /// Something else is on it.
    #[error(
        "the device holds something that is not Breakwater's; nothing was written. Wipe it yourself if it may go, or name another device"
    )]
    Foreign,
    /// Formatted for another cluster.
    #[error("the device belongs to cluster {found}, this node to cluster {expected}; nothing was written")]
    OtherCluster {
        /// On the device.
        found: ClusterId,
        /// This node's.
        expected: ClusterId,
    },
    /// Formatted for another node.
    #[error("the device belongs to node {found}, this is node {expected}; nothing was written")]
    OtherNode {
        /// On the device.
        found: NodeId,
        /// This node.
        expected: NodeId,
    },
    /// Smaller than when it was formatted.
    #[error("the device has shrunk: it was formatted with {expected} bytes and has {actual} now; nothing was written")]
    Shrunk {
        /// When formatted.
        expected: u64,
        /// Now.
        actual: u64,
    },
    /// Written by another version of the program.
    #[error("the device has format version {0}, which this program does not know (it knows 1); nothing was written")]
    UnknownVersion(u32),
    /// It needs something this version of the program does not have.
    #[error("the device needs features this program does not have (bits {0:#x}); nothing was written")]
    UnknownFeatures(u64),
    /// It is ours, and no copy is whole.
    #[error("the device is Breakwater's, but {0}; nothing was written. Its replicas must come from the other nodes")]
    Damaged(&'static str),
    /// The device cannot be read or written.
    #[error("the device fails: {0}")]
    Io(#[from] io::Error),
}

/// Why a device was not formatted. Nothing was written, except after [`FormatError::Io`].
#[derive(Debug, thiserror::Error)]
pub enum FormatError {
    /// There is something on it.
    #[error("the device is not blank; nothing was written. Wipe it yourself if its content may go")]
    NotBlank,
    /// Too small for its settings.
    #[error(
        "the device has {size} bytes; {shards} shards with a WAL of {wal_size} bytes each need at least {needed}; nothing was written"
    )]
    TooSmall {
        /// Bytes there.
        size: u64,
        /// Bytes needed.
        needed: u64,
        /// As asked.
        shards: u16,
        /// As asked.
        wal_size: u64,
    },
    /// Settings out of their bounds.
    #[error(
        "{shards} shards with a WAL of {wal_size} bytes: shards must be 1 to {SHARDS_MAX}, the WAL whole MiB from {WAL_SIZE_MIN} to {WAL_SIZE_MAX}"
    )]
    BadSettings {
        /// As asked.
        shards: u16,
        /// As asked.
        wal_size: u64,
    },
    /// The device cannot be read or written.
    #[error("the device fails: {0}")]
    Io(#[from] io::Error),
}

/// Formats a blank device for its owner; the boot counter starts at 0.
///
/// # Errors
/// [`FormatError`].
pub fn format(device: &mut impl WholeDevice, superblock: &Superblock) -> Result<(), FormatError> {
    let size = device.size();
    for offset in [0, size.saturating_sub(size % 4096).saturating_sub(HEAD)] {
        if !is_blank(device, offset, HEAD.min(size))? {
            return Err(FormatError::NotBlank);
        }
    }
    // An empty checkpoint for each shard first: a superblock must never name regions that are not ready. The second
    // root, the WAL, pages and checksums may hold anything: they do not carry the new device id.
    for shard in 0..superblock.geometry.shards {
        let region = superblock.geometry.region(shard);
        let header = RootHeader {
            device: superblock.device,
            shard,
            number: 1,
            boot: superblock.boot,
            position: 0,
            oldest: 1,
            batch: 1,
            len: 0,
            sum: crc(&[]),
        };
        device.write_at(region.base + region.area_at(0), &encode_header(&header))?;
    }
    write_copies(device, superblock)?;
    Ok(())
}

/// Reads who a device belongs to. Writes nothing.
///
/// # Errors
/// [`OpenError`].
pub fn read(device: &mut impl WholeDevice) -> Result<Superblock, OpenError> {
    let size = device.size();
    let mut best: Option<Superblock> = None;
    let (mut ours, mut other) = (false, None);
    for offset in COPIES.into_iter().filter(|offset| offset + 4096 <= size) {
        let mut block = AlignedBuf::zeroed(4096);
        // A block that cannot be read is one damaged copy.
        if device.read_at(offset, &mut block).is_err() {
            continue;
        }
        ours |= is_ours(&block);
        match decode_superblock(&block) {
            Ok(Ok(found)) if best.is_none_or(|best| best.age() < found.age()) => best = Some(found),
            Ok(Err(version)) => other = Some(version),
            Ok(Ok(_)) | Err(_) => {}
        }
    }
    let Some(found) = best else {
        return Err(match other {
            Some(version) => OpenError::UnknownVersion(version),
            None if ours => OpenError::Damaged("no copy of its superblock is whole"),
            None if is_blank(device, 0, HEAD.min(size))? => OpenError::NotFormatted,
            None => OpenError::Foreign,
        });
    };
    if found.features != 0 {
        return Err(OpenError::UnknownFeatures(found.features));
    }
    if !found.geometry.is_sane() {
        return Err(OpenError::Damaged("its superblock makes no sense"));
    }
    if found.geometry.size > size {
        return Err(OpenError::Shrunk { expected: found.geometry.size, actual: size });
    }
    Ok(found)
}

/// Copies of the superblock of a device of ours that are not whole. No crash leaves one: each is damage. They are written
/// again when the device is opened.
pub fn damaged_copies(device: &mut impl WholeDevice) -> u64 {
    let mut block = AlignedBuf::zeroed(4096);
    // One of another version, beside those that made the device ours, is one whose version is damaged.
    let mut is_whole =
        |offset: u64| device.read_at(offset, &mut block).is_ok() && matches!(decode_superblock(&block), Ok(Ok(_)));
    COPIES.into_iter().map(|offset| u64::from(!is_whole(offset))).sum()
}

/// Reads, checks the owner, and counts this boot durably, by the run with this id: from then on it may come to the
/// authority (I9).
///
/// # Errors
/// [`OpenError`].
pub fn open(
    device: &mut impl WholeDevice,
    cluster: ClusterId,
    node: NodeId,
    id: BootId,
) -> Result<Superblock, OpenError> {
    let mut superblock = read(device)?;
    if superblock.cluster != cluster {
        return Err(OpenError::OtherCluster { found: superblock.cluster, expected: cluster });
    }
    if superblock.node != node {
        return Err(OpenError::OtherNode { found: superblock.node, expected: node });
    }
    superblock.boot = superblock.boot.next();
    superblock.openings.open(Opening { id, count: superblock.boot });
    write_copies(device, &superblock)?;
    Ok(superblock)
}

/// Writes a newer superblock of the same device: a boot counter or a revision that went up, an opening that was taken in.
///
/// # Errors
/// The device's; then some copies may be the newer ones.
pub fn rewrite(device: &mut impl WholeDevice, superblock: &Superblock) -> io::Result<()> {
    write_copies(device, superblock)
}

fn write_copies(device: &mut impl WholeDevice, superblock: &Superblock) -> io::Result<()> {
    let block = encode_superblock(superblock);
    COPIES.into_iter().try_for_each(|offset| device.write_at(offset, &block))
}

fn is_blank(device: &mut impl WholeDevice, offset: u64, len: u64) -> io::Result<bool> {
    let mut buffer = AlignedBuf::zeroed(64 * 1024);
    for at in (offset..(offset + len).min(device.size())).step_by(4096 * 16) {
        let left = device.size() - at;
        if left < buffer.len() as u64 {
            // The last blocks of a device that is no multiple of 64 KiB.
            let whole = usize::try_from(left - left % 4096).unwrap_or(0);
            if whole == 0 {
                break;
            }
            buffer = AlignedBuf::zeroed(whole);
        }
        device.read_at(at, &mut buffer)?;
        if buffer.iter().any(|byte| *byte != 0) {
            return Ok(false);
        }
    }
    Ok(true)
}
