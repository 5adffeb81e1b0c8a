//! What a node says of itself to the authority: who it is when it comes, what it holds, and how it does, regularly.
//!
//! A report's size is bounded whatever happens (I15): lists in it are cut at their limits.

use alloc::boxed::Box;
use alloc::string::String;
use alloc::vec::Vec;

use crate::config::Config;
use crate::ids::{BootCount, DeviceId, Epoch, ExtentIndex, Incarnation, NodeId, Revision, SegmentId, Seq};
use crate::openings::Openings;
use crate::record::Standing;
use crate::scrub::ScrubReport;

/// Where a node can be reached.
#[derive(Clone, PartialEq, Eq, Debug)]
pub struct NodeAddress {
    /// The node.
    pub node: NodeId,
    /// `host:port` on the primary network.
    pub primary: String,
    /// `host:port` on the replication network.
    pub replication: String,
    /// How many shards it has.
    pub shards: u16,
}

/// Who a node says it is when it comes to the authority.
#[derive(Clone, PartialEq, Eq, Debug)]
pub struct Registration {
    /// Its addresses and id.
    pub address: NodeAddress,
    /// Its failure domain.
    pub zone: String,
    /// Its devices that could be opened; at most [`crate::limits::DEVICES_MAX`].
    pub devices: Vec<DeviceOpened>,
    /// Those that could not, in words: which, and why; at most [`crate::limits::DEVICES_MAX`].
    pub absent: Vec<String>,
    /// Highest authority revision it has seen (I11).
    pub revision: Revision,
}

/// A device as its node has opened it.
#[derive(Clone, PartialEq, Eq, Debug)]
pub struct DeviceOpened {
    /// Its id.
    pub device: DeviceId,
    /// How often it was opened (I9).
    pub boot: BootCount,
    /// By which openings of it the authority may know it (I9).
    pub openings: Box<Openings>,
    /// Extents it can hold.
    pub capacity: u64,
}

/// What the authority says of a device that a node came with.
#[derive(Clone, PartialEq, Eq, Debug)]
pub struct DeviceJudged {
    /// Its id.
    pub device: DeviceId,
    /// What it said.
    pub judgement: Judgement,
}

/// Whether a device's content counts. Each device of a node is judged by itself.
#[derive(Clone, PartialEq, Eq, Debug)]
pub enum Judgement {
    /// It is as new as the one the authority remembers.
    Sound {
        /// Its boot counter.
        boot: BootCount,
    },
    /// It was rolled back, or nobody knows what it was: everything on it is opened as damaged (I9), durably, before the
    /// boot counter here is written.
    Distrusted {
        /// The boot counter it has from now on.
        boot: BootCount,
    },
    /// Nothing on it may be served, and why.
    Refused(String),
}

/// How a device does.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub struct DeviceReport {
    /// Its id.
    pub device: DeviceId,
    /// Extents it can hold.
    pub capacity: u64,
    /// Extents booked by replicas on it.
    pub booked: u64,
    /// Extents that hold data.
    pub used: u64,
    /// Whether a durable write on it has failed: a part of it or all of it is out of service until the node starts again.
    pub failed: bool,
}

/// One replica as a node reports it.
#[derive(Clone, PartialEq, Eq, Debug)]
pub struct ReplicaReport {
    /// The segment.
    pub segment: SegmentId,
    /// Which life.
    pub incarnation: Incarnation,
    /// Epoch of the configuration it knows.
    pub epoch: Epoch,
    /// Which log it has.
    pub log_epoch: Epoch,
    /// What it is by its own durable word.
    pub standing: Standing,
    /// Its commit point.
    pub commit: Seq,
    /// Last entry of its log.
    pub last: Seq,
}

/// What a replica knows about its segment's configuration.
#[derive(Clone, PartialEq, Eq, Debug)]
pub struct HeldConfig {
    /// The last configuration it adopted.
    pub config: Config,
    /// Nothing below this epoch is obeyed there any more (I2).
    pub promised: Epoch,
}

/// Progress of bringing one replica up to date on the reporting node.
#[derive(Clone, PartialEq, Eq, Debug)]
pub struct CopyReport {
    /// The segment.
    pub segment: SegmentId,
    /// Whether the copy began from nothing (re-mirror) or from a former replica (catch-up).
    pub full: bool,
    /// Bytes in so far.
    pub copied: u64,
    /// Bytes still listed.
    pub left: u64,
}

/// An extent in which a member held something else than what was committed.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub struct Differing {
    /// The segment.
    pub segment: SegmentId,
    /// Which extent of it.
    pub extent: ExtentIndex,
    /// Whose copy was wrong.
    pub member: NodeId,
}

/// A node's regular report; bounded in size and period, storm or not (DESIGN 7).
#[derive(Clone, PartialEq, Eq, Debug, Default)]
pub struct Report {
    /// Extents booked by replicas.
    pub booked: u64,
    /// Extents that hold data.
    pub used: u64,
    /// Replicas held.
    pub replicas: u32,
    /// Segments this node is the serving primary of.
    pub serving: u32,
    /// Segments it should lead and does not serve; at most [`crate::limits::REPORT_SEGMENTS_MAX`].
    pub not_serving: Vec<SegmentId>,
    /// Copies arriving here; at most [`crate::limits::REPORT_SEGMENTS_MAX`].
    pub copies: Vec<CopyReport>,
    /// Bytes of catch-up and re-mirroring that arrived here since the node started.
    pub copied_bytes: u64,
    /// Blocks found damaged since the node started.
    pub corrupt_blocks: u64,
    /// Structures of its device found damaged when it was opened: copies of the superblock, roots, map pages, places in
    /// the WAL (I14).
    pub damaged_structures: u64,
    /// Extents mended from another member since the node started.
    pub mended: u64,
    /// What its scrubs have done.
    pub scrub: ScrubReport,
    /// What was found by comparing members, the latest; at most [`crate::limits::REPORT_SEGMENTS_MAX`].
    pub differing: Vec<Differing>,
    /// Flushes its device was asked for since the node started: durable writes, most of them shared by many requests.
    pub flushes: u64,
    /// Replicas here that neither lead, nor hear a primary, nor are being caught up; at most
    /// [`crate::limits::REPORT_SEGMENTS_MAX`].
    pub stranded: Vec<ReplicaReport>,
    /// Its devices one by one; at most [`crate::limits::DEVICES_MAX`].
    pub devices: Vec<DeviceReport>,
}
