//! The documents the authority answers with, as they stand in its HTTP API (version 1). Sizes are in bytes unless a
//! name says otherwise. Requests refuse unknown fields: a misspelt wish must not be ignored.

use alloc::string::String;
use alloc::vec::Vec;

use serde::{Deserialize, Serialize};

use super::policy::BreakerInfo;
use super::space::SpaceInfo;
use crate::config::Config;
use crate::ids::{ClusterId, Generation, NodeId, Revision, SegmentId, VolumeId};
use crate::layout::Layout;
use crate::throttle::VolumeLimits;

/// What went wrong.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[cfg_attr(feature = "openapi", derive(utoipa::ToSchema))]
pub struct ErrorBody {
    /// `invalid`, `not_found`, `illegal_state`, `refused`, `unavailable`, `timeout` or `no_space`.
    pub code: String,
    /// What was wrong and what stayed untouched.
    pub message: String,
    /// The next command to try.
    pub next: Option<String>,
}

/// The cluster.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[cfg_attr(feature = "openapi", derive(utoipa::ToSchema))]
pub struct Cluster {
    /// Its id.
    pub cluster: ClusterId,
    /// Changes the authority has made.
    pub revision: Revision,
}

/// Overall health.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
#[cfg_attr(feature = "openapi", derive(utoipa::ToSchema))]
pub enum Health {
    /// Every segment has all its copies and a serving primary.
    Ok,
    /// Everything can be read and written; copies are missing.
    Degraded,
    /// Something cannot be written or not be reached at all.
    Impaired,
}

/// Segments by condition. `full + degraded + read_only + stuck == total`.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default, Serialize, Deserialize)]
#[cfg_attr(feature = "openapi", derive(utoipa::ToSchema))]
pub struct SegmentCounts {
    /// All segments.
    pub total: u64,
    /// All copies, serving.
    pub full: u64,
    /// Copies missing, serving reads and writes.
    pub degraded: u64,
    /// Fewer members than `min_copies`: reads only.
    pub read_only: u64,
    /// No serving primary.
    pub stuck: u64,
}

/// Re-mirroring and catch-up at this moment.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default, Serialize, Deserialize)]
#[cfg_attr(feature = "openapi", derive(utoipa::ToSchema))]
pub struct RemirrorCounts {
    /// Segments being copied or caught up.
    pub active: u64,
    /// Asks for a permit that wait for room.
    pub parked: u64,
    /// Bytes that arrive per second, all nodes together.
    pub bytes_per_second: u64,
    /// Bytes that arrived since the authority started.
    pub bytes_total: u64,
}

/// Damage found on the devices since their nodes started (I14).
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default, Serialize, Deserialize)]
#[cfg_attr(feature = "openapi", derive(utoipa::ToSchema))]
pub struct DamageCounts {
    /// Blocks that are not what was written.
    pub blocks: u64,
    /// Copies of superblocks, roots, map pages and places in WALs, when a device was opened.
    pub structures: u64,
    /// Extents mended from another member.
    pub mended_extents: u64,
}

/// `GET /v1/status`.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
#[cfg_attr(feature = "openapi", derive(utoipa::ToSchema))]
pub struct Status {
    /// The cluster.
    pub cluster: ClusterId,
    /// Changes the authority has made.
    pub revision: Revision,
    /// In one word.
    pub health: Health,
    /// Segments by condition.
    pub segments: SegmentCounts,
    /// Copying.
    pub remirror: RemirrorCounts,
    /// What keeps re-mirroring from becoming a storm.
    #[serde(default)]
    pub breaker: BreakerInfo,
    /// How much space is left, and for whom.
    #[serde(default)]
    pub space: SpaceInfo,
    /// Damage found.
    #[serde(default)]
    pub damage: DamageCounts,
    /// Nodes in touch / registered.
    pub nodes_up: u64,
    /// Nodes registered.
    pub nodes_total: u64,
    /// Bytes of all nodes that volumes can book.
    pub capacity: u64,
    /// Bytes booked.
    pub booked: u64,
    /// Bytes that hold data.
    pub used: u64,
    /// Why the authority changes nothing, if it has come back older than its nodes remember.
    #[serde(default)]
    pub frozen: Option<String>,
    /// Why the authority changes nothing yet, if too few nodes have reported since it started.
    #[serde(default)]
    pub waiting: Option<String>,
    /// What to do about either.
    #[serde(default)]
    pub next: Option<String>,
}

/// A node.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
#[cfg_attr(feature = "openapi", derive(utoipa::ToSchema))]
pub struct NodeInfo {
    /// Its id.
    pub id: NodeId,
    /// Its failure domain.
    pub zone: String,
    /// `up` or `down`.
    pub state: String,
    /// `host:port` on the primary network.
    pub primary_addr: String,
    /// `host:port` on the replication network.
    pub replication_addr: String,
    /// Bytes replicas can book.
    pub capacity: u64,
    /// Bytes booked.
    pub booked: u64,
    /// Bytes that hold data.
    pub used: u64,
    /// Replicas it holds.
    pub replicas: u64,
    /// Segments it serves as primary.
    pub serving: u64,
    /// Shards.
    pub shards: u16,
    /// Milliseconds since it was last heard of.
    pub silent_ms: u64,
    /// Bytes of catch-up and re-mirroring that arrived since the node started.
    pub copied_bytes: u64,
    /// Blocks found damaged since the node started.
    pub corrupt_blocks: u64,
    /// Structures of its device found damaged when it was opened.
    #[serde(default)]
    pub damaged_structures: u64,
    /// Extents mended from another member since the node started.
    #[serde(default)]
    pub mended_extents: u64,
    /// What its scrubs have done since the node started.
    #[serde(default)]
    pub scrub: ScrubInfo,
    /// Flushes its device was asked for since the node started. Many requests share one.
    #[serde(default)]
    pub flushes: u64,
    /// Whether its device, or each of them, was declared gone for good.
    #[serde(default)]
    pub device_lost: bool,
    /// Of its capacity, bytes that new volumes do not get.
    #[serde(default)]
    pub headroom: u64,
    /// Its devices.
    #[serde(default)]
    pub devices: Vec<DeviceInfo>,
    /// Devices it could not open when it started, in its words.
    #[serde(default)]
    pub absent: Vec<String>,
    /// Whether the authority stands still and has not heard from it what it remembers.
    #[serde(default)]
    pub awaited: bool,
    /// Copies kept although their segments go on without them; only where one node is asked for.
    #[serde(default)]
    pub quarantine: Vec<Quarantined>,
}

/// A device of a node.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[cfg_attr(feature = "openapi", derive(utoipa::ToSchema))]
pub struct DeviceInfo {
    /// Its id: 32 hexadecimal digits.
    pub id: String,
    /// How it is.
    pub state: DeviceState,
    /// Bytes replicas can book on it.
    pub capacity: u64,
    /// Bytes booked, as its node said last.
    pub booked: u64,
    /// Bytes that hold data, as its node said last.
    pub used: u64,
    /// Why it is as it is.
    #[serde(default)]
    pub why: Option<String>,
    /// What a person may do about it.
    #[serde(default)]
    pub next: Option<String>,
}

/// How a device is.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
#[cfg_attr(feature = "openapi", derive(utoipa::ToSchema))]
pub enum DeviceState {
    /// Its node came with it.
    InUse,
    /// A durable write on it failed: what it held is out of service until the node starts again.
    Failed,
    /// Its node came without it. What is on it counts as what it was until a person says otherwise.
    Missing,
    /// Declared gone for good.
    Lost,
    /// Its node came with it, and it may not be served.
    Refused,
}

impl DeviceState {
    /// Its name in the API.
    #[must_use]
    pub const fn name(self) -> &'static str {
        match self {
            Self::InUse => "in_use",
            Self::Failed => "failed",
            Self::Missing => "missing",
            Self::Lost => "lost",
            Self::Refused => "refused",
        }
    }
}

/// A node's scrubs since it started, all its shards together.
#[derive(Debug, Clone, Default, PartialEq, Eq, Serialize, Deserialize)]
#[cfg_attr(feature = "openapi", derive(utoipa::ToSchema))]
pub struct ScrubInfo {
    /// Passes completed.
    pub passes: u64,
    /// One is under way.
    pub running: bool,
    /// Bytes compared by the pass under way, or the last one.
    pub compared: u64,
    /// Extents found damaged.
    pub damaged_extents: u64,
    /// Extents of segments it leads that were compared with every other member's.
    #[serde(default)]
    pub compared_extents: u64,
    /// Extents that were written all the time, or a member did not answer: the next pass comes by again.
    #[serde(default)]
    pub not_compared_extents: u64,
    /// Members found to hold something else than what was committed, each extent by itself. They fetched it anew.
    #[serde(default)]
    pub differing_extents: u64,
    /// The latest of them.
    #[serde(default)]
    pub differing: Vec<DifferingExtent>,
}

/// An extent in which a member held something else than what was committed.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[cfg_attr(feature = "openapi", derive(utoipa::ToSchema))]
pub struct DifferingExtent {
    /// The segment.
    pub segment: SegmentId,
    /// Number of the extent in it.
    pub extent: u32,
    /// Whose copy was wrong.
    pub member: NodeId,
}

/// Failure domain that copies of a segment are spread over.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
#[cfg_attr(feature = "openapi", derive(utoipa::ToSchema))]
pub enum Spread {
    /// Each copy on another node.
    Node,
    /// Each copy in another zone.
    Zone,
}

/// `POST /v1/volumes`.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
#[cfg_attr(feature = "openapi", derive(utoipa::ToSchema))]
pub struct CreateVolume {
    /// 1 to 64 of `a-z A-Z 0-9 . _ -`, beginning with a letter or digit.
    pub name: String,
    /// Bytes; rounded up to 4 KiB.
    pub size: u64,
    /// Copies of each segment; default 3.
    #[serde(default)]
    pub copies: Option<u8>,
    /// Fewest copies that may acknowledge writes; default 2, or 1 for a single copy.
    #[serde(default)]
    pub min_copies: Option<u8>,
    /// Bytes, a power of two; default 1 GiB.
    #[serde(default)]
    pub segment_size: Option<u64>,
    /// Keep all copies in this zone.
    #[serde(default)]
    pub zone: Option<String>,
    /// Default: zone where there are as many zones as copies, else node.
    #[serde(default)]
    pub spread: Option<Spread>,
    /// Requests per second its client may make; default 0: any.
    #[serde(default)]
    pub iops: Option<u32>,
    /// MiB per second its client may read and write; default 0: any.
    #[serde(default)]
    pub mibps: Option<u32>,
}

/// `POST /v1/volumes/{name}/set`: what is absent stays as it is.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
#[cfg_attr(feature = "openapi", derive(utoipa::ToSchema))]
pub struct SetVolume {
    /// Requests per second its client may make; 0: any.
    #[serde(default)]
    pub iops: Option<u32>,
    /// MiB per second its client may read and write; 0: any.
    #[serde(default)]
    pub mibps: Option<u32>,
}

/// `POST /v1/volumes/{name}/resize`.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
#[cfg_attr(feature = "openapi", derive(utoipa::ToSchema))]
pub struct ResizeVolume {
    /// New size in bytes; never smaller than now.
    pub size: u64,
}

/// `POST /v1/volumes/{name}/attach`.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
#[cfg_attr(feature = "openapi", derive(utoipa::ToSchema))]
pub struct AttachVolume {
    /// Who attaches, for people.
    pub client: String,
}

/// `POST /v1/volumes/{name}/detach`.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
#[cfg_attr(feature = "openapi", derive(utoipa::ToSchema))]
pub struct DetachVolume {
    /// Only if this is still the current attachment; absent: whichever it is (fences it off).
    #[serde(default)]
    pub generation: Option<Generation>,
}

/// A volume.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
#[cfg_attr(feature = "openapi", derive(utoipa::ToSchema))]
pub struct VolumeInfo {
    /// Its id.
    pub id: VolumeId,
    /// Its name.
    pub name: String,
    /// Bytes.
    pub size: u64,
    /// Bytes of a segment.
    pub segment_size: u64,
    /// Copies of each segment.
    pub copies: u8,
    /// Fewest copies that may acknowledge writes.
    pub min_copies: u8,
    /// What copies are spread over.
    pub spread: Spread,
    /// All copies in this zone.
    pub zone: Option<String>,
    /// `creating`, `ready` or `deleting`.
    pub state: String,
    /// Current attachment.
    pub generation: Generation,
    /// Who is attached, if anybody.
    pub attached: Option<String>,
    /// What its client holds itself to.
    #[serde(default)]
    pub limits: VolumeLimits,
    /// Its segments by condition.
    pub segments: SegmentCounts,
}

/// Where a node can be reached.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[cfg_attr(feature = "openapi", derive(utoipa::ToSchema))]
pub struct Address {
    /// The node.
    pub node: NodeId,
    /// `host:port` on the primary network.
    pub primary: String,
    /// `host:port` on the replication network.
    pub replication: String,
    /// Shards.
    pub shards: u16,
}

/// What a client needs to reach a volume's data.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[cfg_attr(feature = "openapi", derive(utoipa::ToSchema))]
pub struct VolumeMap {
    /// The cluster, for handshakes.
    pub cluster: ClusterId,
    /// The volume.
    pub volume: VolumeId,
    /// Its name.
    pub name: String,
    /// Bytes.
    pub size: u64,
    /// The attachment (after `attach`: the caller's own).
    pub generation: Generation,
    /// What its client holds itself to.
    #[serde(default)]
    pub limits: VolumeLimits,
    /// Address to segment.
    pub layout: Layout,
    /// Configuration of each segment, by index.
    pub segments: Vec<Config>,
    /// Nodes named in them.
    pub nodes: Vec<Address>,
}

/// One replica in an explanation.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
#[cfg_attr(feature = "openapi", derive(utoipa::ToSchema))]
pub struct ExplainReplica {
    /// Where.
    pub node: NodeId,
    /// Its zone.
    pub zone: String,
    /// `primary`, `backup`, `candidate` or `former`.
    pub role: String,
    /// Whether the node is in touch with the authority.
    pub up: bool,
    /// Copy progress, if one runs: bytes in, bytes left.
    pub copied: Option<(u64, u64)>,
    /// What it holds, in words; only where the segment does not serve reads and writes.
    #[serde(default)]
    pub holds: Option<String>,
}

/// One segment in an explanation.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
#[cfg_attr(feature = "openapi", derive(utoipa::ToSchema))]
pub struct ExplainSegment {
    /// The segment.
    pub segment: SegmentId,
    /// Its configuration.
    pub config: Config,
    /// `full`, `degraded`, `read_only` or `stuck`.
    pub condition: String,
    /// Why, in a sentence.
    pub why: String,
    /// What happens next by itself, or which command is safe.
    pub next: String,
    /// Its replicas.
    pub replicas: Vec<ExplainReplica>,
}

/// `GET /v1/volumes/{name}/explain`.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
#[cfg_attr(feature = "openapi", derive(utoipa::ToSchema))]
pub struct Explain {
    /// The volume.
    pub volume: VolumeInfo,
    /// Segment by segment; those in trouble first.
    pub segments: Vec<ExplainSegment>,
}

/// `POST /v1/volumes/{name}/recover`: one copy counts from now on, whatever is lost (I11).
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
#[cfg_attr(feature = "openapi", derive(utoipa::ToSchema))]
pub struct RecoverVolume {
    /// Index of the segment.
    pub segment: u32,
    /// Whose copy counts.
    pub from: NodeId,
    /// The volume's name: without it nothing is done, and the answer says what would be lost.
    #[serde(default)]
    pub lose: Option<String>,
    /// Only say what would happen.
    #[serde(default)]
    pub dry_run: bool,
}

/// `POST /v1/nodes/{id}/replace-device`: the node's device is gone for good.
#[derive(Debug, Clone, PartialEq, Eq, Default, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
#[cfg_attr(feature = "openapi", derive(utoipa::ToSchema))]
pub struct ReplaceDevice {
    /// Id of the device; without it the node has only this one, or all of them are meant and the node is down.
    #[serde(default)]
    pub device: Option<String>,
    /// Names of the volumes that may lose data by it.
    #[serde(default)]
    pub lose: Vec<String>,
    /// Only say what would happen.
    #[serde(default)]
    pub dry_run: bool,
}

/// One segment, as people write it: `volume/3`.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
#[cfg_attr(feature = "openapi", derive(utoipa::ToSchema))]
pub struct SegmentName {
    /// Name of its volume.
    pub volume: String,
    /// Index in it.
    pub index: u32,
}

/// `POST /v1/nodes/{id}/release`: copies in quarantine on the node are dropped.
#[derive(Debug, Clone, PartialEq, Eq, Default, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
#[cfg_attr(feature = "openapi", derive(utoipa::ToSchema))]
pub struct ReleaseCopies {
    /// Only of this segment; absent: of all.
    #[serde(default)]
    pub segment: Option<SegmentName>,
    /// Names of the volumes that may lose data by it.
    #[serde(default)]
    pub lose: Vec<String>,
    /// Only say what would happen.
    #[serde(default)]
    pub dry_run: bool,
}

/// `POST /v1/authority/accept-older`: there is no newer record than this one, although nodes know more (I11).
#[derive(Debug, Clone, PartialEq, Eq, Default, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
#[cfg_attr(feature = "openapi", derive(utoipa::ToSchema))]
pub struct AcceptOlder {
    /// The highest revision any node has seen: without it nothing is done, and the answer says what would be forgotten.
    #[serde(default)]
    pub revision: Option<Revision>,
    /// Nodes that are gone for good with their devices, and so can't say what they know.
    #[serde(default)]
    pub without: Vec<NodeId>,
    /// Only say what would happen.
    #[serde(default)]
    pub dry_run: bool,
}

/// What a destructive act did, or would do (I16).
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[cfg_attr(feature = "openapi", derive(utoipa::ToSchema))]
pub struct Consequences {
    /// Whether it was done.
    pub done: bool,
    /// What happens.
    pub does: Vec<String>,
    /// What is, or may be, lost.
    pub loses: Vec<String>,
}

/// A copy that is kept although its segment goes on without it (R12).
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[cfg_attr(feature = "openapi", derive(utoipa::ToSchema))]
pub struct Quarantined {
    /// The segment.
    pub segment: SegmentId,
    /// Name of its volume.
    pub volume: String,
    /// Why it is kept.
    pub why: String,
}
