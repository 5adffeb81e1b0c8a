//! What a look at a device tells: the contract of `nodectl store inspect|check -o json`.
//!
//! Offsets are bytes from the device's begin. Nothing in here is a decision: a [`Verdict`] says what the store and the
//! cluster do with a problem anyway.

use std::fmt;

use engine_core::ids::{BlockIndex, ExtentIndex, SegmentId};
use serde::Serialize;

/// What becomes of a problem when the device is used again, from best to worst.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Serialize)]
#[serde(rename_all = "snake_case")]
pub enum Verdict {
    /// Nothing is lost; what is damaged is written again in the ordinary course of things.
    Harmless,
    /// Never served; brought back from another member by the next read or scrub.
    Mended,
    /// The replica says that it is damaged: it leaves its configuration and is brought up to date from a member.
    Copied,
    /// The node refuses the device.
    Refused,
}

impl Verdict {
    /// What a person can do.
    #[must_use]
    pub const fn advice(self) -> &'static str {
        match self {
            Self::Harmless => "nothing needs to be done",
            Self::Mended => "start the node, then `nodectl node scrub NODE --now`",
            Self::Copied => "start the node: its replica is brought up to date from a member; watch `nodectl status`",
            Self::Refused => {
                "its replicas must come from the other nodes: `nodectl node replace-device NODE --dry-run`, then a blank device"
            }
        }
    }
}

impl fmt::Display for Verdict {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(match self {
            Self::Harmless => "harmless",
            Self::Mended => "mended from a member",
            Self::Copied => "replica copied anew",
            Self::Refused => "device refused",
        })
    }
}

/// Whose bytes a problem is in, as far as that can be told.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default, Serialize)]
pub struct Place {
    /// The segment.
    #[serde(serialize_with = "as_text", skip_serializing_if = "Option::is_none")]
    pub segment: Option<SegmentId>,
    /// The extent within it.
    #[serde(serialize_with = "extent_number", skip_serializing_if = "Option::is_none")]
    pub extent: Option<ExtentIndex>,
    /// The block within the segment.
    #[serde(serialize_with = "block_number", skip_serializing_if = "Option::is_none")]
    pub block: Option<BlockIndex>,
}

impl Place {
    pub(crate) fn of(segment: SegmentId) -> Self {
        Self { segment: Some(segment), ..Self::default() }
    }

    pub(crate) const fn extent(self, extent: ExtentIndex) -> Self {
        Self { extent: Some(extent), ..self }
    }

    pub(crate) const fn block(self, block: BlockIndex) -> Self {
        Self { block: Some(block), ..self }
    }
}

impl fmt::Display for Place {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match (self.segment, self.extent, self.block) {
            (Some(segment), _, Some(block)) => write!(f, "segment {segment} block {}", block.0),
            (Some(segment), Some(extent), None) => write!(f, "segment {segment} extent {}", extent.0),
            (Some(segment), None, None) => write!(f, "segment {segment}"),
            (None, ..) => f.write_str("-"),
        }
    }
}

#[allow(clippy::ref_option)] // as serde calls it
fn as_text<S: serde::Serializer>(segment: &Option<SegmentId>, to: S) -> Result<S::Ok, S::Error> {
    to.collect_str(&segment.map(|segment| segment.to_string()).unwrap_or_default())
}

#[allow(clippy::ref_option)] // as serde calls it
fn extent_number<S: serde::Serializer>(extent: &Option<ExtentIndex>, to: S) -> Result<S::Ok, S::Error> {
    to.serialize_u32(extent.map_or(0, |extent| extent.0))
}

#[allow(clippy::ref_option)] // as serde calls it
fn block_number<S: serde::Serializer>(block: &Option<BlockIndex>, to: S) -> Result<S::Ok, S::Error> {
    to.serialize_u32(block.map_or(0, |block| block.0))
}

/// Something that is wrong.
#[derive(Debug, Clone, PartialEq, Eq, Serialize)]
pub struct Problem {
    /// In which shard's region; none: before them.
    pub shard: Option<u16>,
    /// Where on the device.
    pub offset: u64,
    /// In what.
    pub structure: &'static str,
    /// Whose.
    #[serde(flatten)]
    pub place: Place,
    /// What becomes of it.
    pub verdict: Verdict,
    /// What is wrong.
    pub what: String,
    /// What can be done: [`Verdict::advice`].
    pub next: &'static str,
}

impl fmt::Display for Problem {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let Self { offset, structure, place, what, .. } = self;
        write!(f, "{structure} at {offset:#x}: {place}: {what}")
    }
}

/// A device, as far as it was looked at.
#[derive(Debug, Clone, PartialEq, Eq, Default, Serialize)]
pub struct Report {
    /// Bytes of the device.
    pub size: u64,
    /// What the superblock that counts says; none when none does.
    pub superblock: Option<Identity>,
    /// The copies of the superblock, in order.
    pub copies: Vec<SuperblockCopy>,
    /// The shards.
    pub shards: Vec<ShardReport>,
    /// Bytes of written data that were read and verified.
    pub verified_bytes: u64,
    /// What is wrong; bounded.
    pub problems: Vec<Problem>,
    /// Problems that are not listed.
    pub problems_left_off: u64,
}

/// What a superblock says.
#[derive(Debug, Clone, PartialEq, Eq, Serialize)]
pub struct Identity {
    /// Of the format.
    pub version: u32,
    /// Features a program must know.
    pub features: u64,
    /// Features it may be ignorant of.
    pub compatible_features: u64,
    /// The cluster.
    pub cluster: String,
    /// This device.
    pub device: String,
    /// The node.
    pub node: String,
    /// How often it was opened.
    pub boot: u64,
    /// The highest revision of the authority heard of.
    pub revision: u64,
    /// Bytes in use, as formatted.
    pub size: u64,
    /// Equal regions.
    pub shards: u16,
    /// Bytes of each shard's WAL.
    pub wal_size: u64,
}

/// One copy of the superblock.
#[derive(Debug, Clone, PartialEq, Eq, Serialize)]
pub struct SuperblockCopy {
    /// Where.
    pub offset: u64,
    /// `current`, `older`, `damaged`, `unreadable` or `other_version`.
    pub state: &'static str,
    /// Its boot counter.
    pub boot: Option<u64>,
    /// Its revision of the authority.
    pub revision: Option<u64>,
}

/// One shard.
#[derive(Debug, Clone, PartialEq, Eq, Serialize)]
pub struct ShardReport {
    /// Which.
    pub shard: u16,
    /// What is where.
    pub areas: Vec<Area>,
    /// Root A and root B.
    pub roots: Vec<Root>,
    /// The WAL from the checkpoint on; none when no root is whole.
    pub wal: Option<WalReport>,
    /// Slabs and bookings.
    pub space: Option<SpaceReport>,
    /// What it holds.
    pub replicas: Vec<ReplicaReport>,
}

/// A part of a shard's region.
#[derive(Debug, Clone, PartialEq, Eq, Serialize)]
pub struct Area {
    /// What it holds.
    pub name: &'static str,
    /// Where it begins.
    pub offset: u64,
    /// Its length.
    pub bytes: u64,
}

/// A root of the map.
#[derive(Debug, Clone, PartialEq, Eq, Serialize)]
pub struct Root {
    /// `A` or `B`.
    pub name: &'static str,
    /// `current`, `older`, `overwritten` (an older one whose body gives way to the next), `damaged` or `none`.
    pub state: &'static str,
    /// Which checkpoint.
    pub number: Option<u64>,
    /// The first batch of the WAL that is not in it.
    pub batch: Option<u64>,
    /// The oldest batch it still needs.
    pub oldest: Option<u64>,
    /// Where in the ring that is.
    pub position: Option<u64>,
}

/// A shard's WAL.
#[derive(Debug, Clone, PartialEq, Eq, Serialize)]
pub struct WalReport {
    /// Bytes of the ring.
    pub size: u64,
    /// Where recovery begins, in the ring.
    pub tail: u64,
    /// Where the next batch goes.
    pub head: u64,
    /// Bytes in use, skipped ends of the ring included.
    pub used: u64,
    /// Number of the first batch.
    pub first_batch: u64,
    /// Number of the next batch.
    pub next_batch: u64,
    /// Records in them.
    pub records: u64,
    /// Changes that are not in their homes yet.
    pub changes: u64,
}

/// A shard's books, recounted.
#[derive(Debug, Clone, PartialEq, Eq, Serialize)]
pub struct SpaceReport {
    /// Slabs there are, of 128 KiB.
    pub slabs: u64,
    /// Slabs that are the home of an extent.
    pub used: u64,
    /// Slabs of changes that are not committed.
    pub pending: u64,
    /// All others.
    pub free: u64,
    /// Slabs nobody books (I13).
    pub scratch: u64,
    /// Extents replicas can book.
    pub capacity: u64,
    /// Extents they have booked.
    pub booked: u64,
    /// Places of map pages.
    pub map_pages: u64,
    /// Places in use.
    pub map_pages_used: u64,
}

/// One replica.
#[derive(Debug, Clone, PartialEq, Eq, Serialize)]
pub struct ReplicaReport {
    /// Volume number and index.
    pub segment: String,
    /// Its incarnation.
    pub incarnation: u32,
    /// Of its configuration.
    pub epoch: u64,
    /// The highest epoch it has promised.
    pub promised: u64,
    /// The epoch its log is of.
    pub log_epoch: u64,
    /// `member`, `candidate`, `joining` or `stale`.
    pub standing: &'static str,
    /// Of its configuration.
    pub members: Vec<String>,
    /// Its length.
    pub extents: u32,
    /// Extents with a slab.
    pub written: u64,
    /// The highest stamp of an extent.
    pub stamp: u64,
    /// The commit point it knows.
    pub commit: u64,
    /// The last change it holds.
    pub last: u64,
    /// Committed changes that are not in their homes yet.
    pub unapplied: u64,
    /// It says that it is damaged, until it was brought up to date.
    pub damaged: bool,
}
