//! The authority's durable state: versioned records under keys, and the books in memory that mirror them.
//!
//! Every change goes through a setter of [`Books`], which remembers the key; `take_changes` turns what changed since
//! into one atomic set of compare-and-swaps, together with the cluster's next revision (I1, I11). Bookings per node
//! are kept along, so that placement never walks all segments.

use alloc::collections::{BTreeMap, BTreeSet};
use alloc::string::String;
use alloc::vec::Vec;
use core::fmt;
use core::str::FromStr;

use serde::{Deserialize, Serialize};

use super::document::Spread;
use crate::config::Config;
use crate::ids::{
    BootCount, BootId, ClusterId, DeviceId, Generation, Incarnation, NodeId, Revision, SegmentId, VolumeId,
};
use crate::layout::Layout;
use crate::throttle::VolumeLimits;

/// Name of a record.
#[derive(Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Debug)]
pub enum Key {
    /// The cluster.
    Cluster,
    /// A node.
    Node(NodeId),
    /// A volume.
    Volume(VolumeId),
    /// A segment's configuration.
    Segment(SegmentId),
    /// A replica that is to be dropped, until its node confirms (I11, I12).
    Release(NodeId, SegmentId, Incarnation),
}

impl fmt::Display for Key {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::Cluster => write!(f, "cluster"),
            Self::Node(node) => write!(f, "node/{}", node.0),
            Self::Volume(volume) => write!(f, "volume/{}", volume.0),
            Self::Segment(segment) => write!(f, "segment/{segment}"),
            Self::Release(node, segment, life) => write!(f, "release/{}/{segment}/{}", node.0, life.0),
        }
    }
}

/// A text that should be a record's key and is not.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
#[error("`{0}` is not the key of a record")]
pub struct BadKey(pub String);

impl FromStr for Key {
    type Err = BadKey;

    fn from_str(text: &str) -> Result<Self, BadKey> {
        let mut parts = text.split('/');
        let parsed = match parts.next() {
            Some("cluster") => Some(Self::Cluster),
            Some("node") => number(parts.next()).map(|node| Self::Node(NodeId(node))),
            Some("volume") => number(parts.next()).map(|volume| Self::Volume(VolumeId(volume))),
            Some("segment") => segment(parts.next()).map(Self::Segment),
            Some("release") => match (number(parts.next()), segment(parts.next()), number(parts.next())) {
                (Some(node), Some(segment), Some(life)) => {
                    Some(Self::Release(NodeId(node), segment, Incarnation(life)))
                }
                _ => None,
            },
            _ => None,
        };
        match (parsed, parts.next()) {
            (Some(key), None) => Ok(key),
            _ => Err(BadKey(text.into())),
        }
    }
}

fn number<T: FromStr>(text: Option<&str>) -> Option<T> {
    text?.parse().ok()
}

fn segment(text: Option<&str>) -> Option<SegmentId> {
    let (volume, index) = text?.split_once('.')?;
    Some(SegmentId { volume: VolumeId(volume.parse().ok()?), index: index.parse().ok()? })
}

/// The cluster itself.
#[derive(Clone, PartialEq, Eq, Debug, Serialize, Deserialize)]
pub struct ClusterRecord {
    /// Made once, at the first start.
    pub cluster: ClusterId,
    /// Grows with every change (I11).
    pub revision: Revision,
    /// The next volume's id; ids are never reused.
    pub next_volume: VolumeId,
    /// A person holds the breaker: nothing is re-mirrored, until it is reset.
    #[serde(default)]
    pub breaker_held: bool,
}

/// A registered node.
#[derive(Clone, PartialEq, Eq, Debug, Serialize, Deserialize)]
pub struct NodeRecord {
    /// Failure domain.
    pub zone: String,
    /// `host:port` on the primary network.
    pub primary: String,
    /// `host:port` on the replication network.
    pub replication: String,
    /// Shards.
    pub shards: u16,
    /// Its devices, in the order in which they came, those given up not forgotten: another one is taken in only where
    /// none of these is missing.
    pub devices: Vec<DeviceRecord>,
}

/// A device of a node.
#[derive(Clone, Copy, PartialEq, Eq, Debug, Serialize, Deserialize)]
pub struct DeviceRecord {
    /// Its id.
    pub device: DeviceId,
    /// A person said that it is gone for good: the next one that comes takes its place.
    #[serde(default)]
    pub lost: bool,
    /// Boot counter of the opening taken in last (I9).
    pub boot: BootCount,
    /// The run of that opening.
    pub boot_id: BootId,
    /// Extents it can hold.
    pub capacity: u64,
}

impl DeviceRecord {
    /// A device of a node that is known by name only.
    pub(super) const NOT_KNOWN: Self =
        Self { device: DeviceId(0), lost: false, boot: BootCount(0), boot_id: BootId(0), capacity: 0 };

    /// Nobody waits for it: a person said so, or there never was one.
    #[must_use]
    pub const fn is_gone(&self) -> bool {
        self.lost || self.device.0 == 0
    }
}

impl NodeRecord {
    /// A person said that what it had will never be there again: nobody waits for it.
    #[must_use]
    pub fn is_gone(&self) -> bool {
        self.devices.iter().all(DeviceRecord::is_gone)
    }

    /// One of its devices.
    #[must_use]
    pub fn device(&self, device: DeviceId) -> Option<&DeviceRecord> {
        self.devices.iter().find(|known| known.device == device)
    }

    /// Extents that fit on the devices nobody has given up.
    #[must_use]
    pub fn capacity(&self) -> u64 {
        let counted = self.devices.iter().filter(|device| !device.lost).map(|device| device.capacity);
        // Whatever a node says: a sum of it ends nothing.
        counted.fold(0, u64::saturating_add)
    }
}

/// Where a volume is in its life.
#[derive(Clone, Copy, PartialEq, Eq, Debug, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum VolumeState {
    /// Its replicas are being made.
    Creating,
    /// In use.
    Ready,
    /// Gone for its users; kept until every former holder has confirmed (I11).
    Deleting,
}

/// A volume.
#[derive(Clone, PartialEq, Eq, Debug, Serialize, Deserialize)]
pub struct VolumeRecord {
    /// Its name; unique among volumes that are not being deleted.
    pub name: String,
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
    /// Where it is in its life.
    pub state: VolumeState,
    /// Address to segment.
    pub layout: Layout,
    /// The layout it will have when the segments being added exist.
    pub growing: Option<Layout>,
    /// Current attachment (I2).
    pub generation: Generation,
    /// Who is attached, for people.
    pub attached: Option<String>,
    /// What its client holds itself to.
    #[serde(default)]
    pub limits: VolumeLimits,
    /// Incarnation of the next segments made: higher than that of any that was rolled back.
    pub life: Incarnation,
}

/// A segment.
#[derive(Clone, PartialEq, Eq, Debug, Serialize, Deserialize)]
pub struct SegmentRecord {
    /// Its configuration.
    pub config: Config,
    /// Candidates that never were members: when given up they are released, not kept as former members.
    pub fresh: Vec<NodeId>,
    /// A person said that its only member's copy counts, in a new life; that node has not confirmed it yet (I11).
    #[serde(default)]
    pub recovering: bool,
}

/// A replica to be dropped.
#[derive(Clone, Copy, PartialEq, Eq, Debug, Serialize, Deserialize)]
pub struct ReleaseRecord {
    /// Extents it books until then.
    pub extents: u32,
}

/// Content of a record.
#[derive(Clone, PartialEq, Eq, Debug, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum Value {
    /// Under [`Key::Cluster`].
    Cluster(ClusterRecord),
    /// Under [`Key::Node`].
    Node(NodeRecord),
    /// Under [`Key::Volume`].
    Volume(VolumeRecord),
    /// Under [`Key::Segment`].
    Segment(SegmentRecord),
    /// Under [`Key::Release`].
    Release(ReleaseRecord),
}

/// A record as it is stored.
#[derive(Clone, PartialEq, Eq, Debug)]
pub struct StoredRecord {
    /// Its name.
    pub key: Key,
    /// 1 when it was made, one more with every change.
    pub version: u64,
    /// Its content.
    pub value: Value,
}

/// One change: a compare-and-swap on the record's version.
#[derive(Clone, PartialEq, Eq, Debug)]
pub struct RecordChange {
    /// Which record.
    pub key: Key,
    /// Its version before; 0 is "does not exist". The new version is one more.
    pub expected: u64,
    /// The new content; `None` removes it.
    pub value: Option<Value>,
}

/// Stored records do not fit together: the authority must not start.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
pub enum RestoreError {
    /// Key and content are of different kinds.
    #[error("record `{0}` holds another kind of content")]
    Kind(String),
    /// A segment or release without its volume, or a configuration of another segment.
    #[error("record `{0}` belongs to nothing")]
    Orphan(String),
    /// There are records, but not the cluster's.
    #[error("the record of the cluster is missing among {0} records")]
    NoCluster(usize),
}

/// What a node has booked and leads.
#[derive(Clone, Copy, PartialEq, Eq, Debug, Default)]
pub(super) struct Usage {
    /// Extents of all replicas it holds or may have to give back.
    pub(super) booked: u64,
    /// Segments whose configuration names it primary.
    pub(super) primaries: u64,
    /// Segments of which it holds a copy that counts, or may count again.
    pub(super) holds: u64,
    /// Of these, segments that go on without it for now.
    pub(super) out: u64,
}

/// All durable state, in memory.
#[derive(Debug, Clone)]
pub(super) struct Books {
    cluster: ClusterRecord,
    nodes: BTreeMap<NodeId, NodeRecord>,
    volumes: BTreeMap<VolumeId, VolumeRecord>,
    segments: BTreeMap<SegmentId, SegmentRecord>,
    releases: BTreeMap<(NodeId, SegmentId, Incarnation), ReleaseRecord>,
    usage: BTreeMap<NodeId, Usage>,
    versions: BTreeMap<Key, u64>,
    changed: BTreeSet<Key>,
}

impl Books {
    /// The books of a new cluster: nothing but itself, not saved yet.
    pub(super) fn found(cluster: ClusterId) -> Self {
        Self {
            cluster: ClusterRecord { cluster, revision: Revision(0), next_volume: VolumeId(1), breaker_held: false },
            nodes: BTreeMap::new(),
            volumes: BTreeMap::new(),
            segments: BTreeMap::new(),
            releases: BTreeMap::new(),
            usage: BTreeMap::new(),
            versions: BTreeMap::new(),
            changed: [Key::Cluster].into(),
        }
    }

    /// The books as they were saved.
    pub(super) fn restore(records: Vec<StoredRecord>) -> Result<Self, RestoreError> {
        let count = records.len();
        let mut books = Self::found(ClusterId(0));
        let mut found = false;
        for record in records {
            books.versions.insert(record.key, record.version);
            match (record.key, record.value) {
                (Key::Cluster, Value::Cluster(cluster)) => {
                    books.cluster = cluster;
                    found = true;
                }
                (Key::Node(id), Value::Node(node)) => books.set_node(id, node),
                (Key::Volume(id), Value::Volume(volume)) => books.set_volume(id, Some(volume)),
                (Key::Segment(id), Value::Segment(segment)) if segment.config.segment == id => {
                    books.set_segment(id, Some(segment));
                }
                (Key::Segment(id), Value::Segment(_)) => return Err(orphan(Key::Segment(id))),
                (Key::Release(node, segment, life), Value::Release(release)) => {
                    books.set_release(node, segment, life, Some(release));
                }
                (key, _) => return Err(RestoreError::Kind(alloc::format!("{key}"))),
            }
        }
        if !found {
            return Err(RestoreError::NoCluster(count));
        }
        books.changed.clear();
        match books.segments.keys().find(|id| !books.volumes.contains_key(&id.volume)) {
            Some(id) => Err(orphan(Key::Segment(*id))),
            None => Ok(books),
        }
    }

    pub(super) fn cluster(&self) -> &ClusterRecord {
        &self.cluster
    }

    pub(super) fn nodes(&self) -> &BTreeMap<NodeId, NodeRecord> {
        &self.nodes
    }

    pub(super) fn volumes(&self) -> &BTreeMap<VolumeId, VolumeRecord> {
        &self.volumes
    }

    pub(super) fn segments(&self) -> &BTreeMap<SegmentId, SegmentRecord> {
        &self.segments
    }

    pub(super) fn releases(&self) -> &BTreeMap<(NodeId, SegmentId, Incarnation), ReleaseRecord> {
        &self.releases
    }

    /// Segments of one volume, by index.
    pub(super) fn segments_of(&self, volume: VolumeId) -> impl Iterator<Item = (&SegmentId, &SegmentRecord)> {
        self.segments.range(SegmentId { volume, index: 0 }..=SegmentId { volume, index: u32::MAX })
    }

    /// Releases one node has not confirmed.
    pub(super) fn releases_of(&self, node: NodeId) -> impl Iterator<Item = (SegmentId, Incarnation)> + '_ {
        let first = (node, SegmentId::from_u64(0), Incarnation(0));
        let last = (node, SegmentId::from_u64(u64::MAX), Incarnation(u32::MAX));
        self.releases.range(first..=last).map(|((_, segment, life), _)| (*segment, *life))
    }

    /// Nodes that have not confirmed the release of a copy of this segment, whichever life of it.
    pub(super) fn nodes_releasing(&self, segment: SegmentId) -> impl Iterator<Item = NodeId> + '_ {
        let of = move |node: &NodeId| {
            let (first, last) = ((*node, segment, Incarnation(0)), (*node, segment, Incarnation(u32::MAX)));
            self.releases.range(first..=last).next().is_some()
        };
        self.nodes.keys().copied().filter(of)
    }

    /// Whether a copy of any segment of this volume has still to be released.
    pub(super) fn is_releasing(&self, volume: VolumeId) -> bool {
        let (low, high) = (SegmentId { volume, index: 0 }, SegmentId { volume, index: u32::MAX });
        self.nodes.keys().any(|node| {
            let (first, last) = ((*node, low, Incarnation(0)), (*node, high, Incarnation(u32::MAX)));
            self.releases.range(first..=last).next().is_some()
        })
    }

    pub(super) fn usage(&self, node: NodeId) -> Usage {
        self.usage.get(&node).copied().unwrap_or_default()
    }

    /// The volume people mean by this name: one in use before one that is being deleted.
    pub(super) fn named(&self, name: &str) -> Option<(VolumeId, &VolumeRecord)> {
        let mut found = None;
        for (id, volume) in self.volumes.iter().filter(|(_, volume)| volume.name == name) {
            if volume.state != VolumeState::Deleting {
                return Some((*id, volume));
            }
            found = Some((*id, volume));
        }
        found
    }

    /// Takes the next volume id.
    pub(super) fn next_volume(&mut self) -> VolumeId {
        let id = self.cluster.next_volume;
        self.cluster.next_volume = id.next();
        self.changed.insert(Key::Cluster);
        id
    }

    /// Whether a person holds the breaker.
    pub(super) fn hold_breaker(&mut self, held: bool) {
        if self.cluster.breaker_held != held {
            self.cluster.breaker_held = held;
            self.changed.insert(Key::Cluster);
        }
    }

    /// Goes above `revision`, because a person said that what this authority knows is what counts (I11).
    pub(super) fn skip_to(&mut self, revision: Revision) {
        self.cluster.revision = self.cluster.revision.max(revision);
        self.changed.insert(Key::Cluster);
    }

    /// No volume made from now on gets this id, or a lower one.
    pub(super) fn skip_volume(&mut self, volume: VolumeId) {
        self.cluster.next_volume = self.cluster.next_volume.max(volume.next());
        self.changed.insert(Key::Cluster);
    }

    pub(super) fn set_node(&mut self, id: NodeId, node: NodeRecord) {
        self.changed.insert(Key::Node(id));
        self.nodes.insert(id, node);
    }

    /// Notes what a node says it is; whether others have to hear of it, because it can be reached elsewhere.
    pub(super) fn note_node(&mut self, id: NodeId, node: NodeRecord) -> bool {
        let known = self.nodes.get(&id);
        let moved = known.is_none_or(|old| {
            (&old.primary, &old.replication, old.shards) != (&node.primary, &node.replication, node.shards)
        });
        if known != Some(&node) {
            self.set_node(id, node);
        }
        moved
    }

    pub(super) fn set_volume(&mut self, id: VolumeId, volume: Option<VolumeRecord>) {
        self.changed.insert(Key::Volume(id));
        match volume {
            Some(volume) => drop(self.volumes.insert(id, volume)),
            None => drop(self.volumes.remove(&id)),
        }
    }

    pub(super) fn set_segment(&mut self, id: SegmentId, segment: Option<SegmentRecord>) {
        self.changed.insert(Key::Segment(id));
        if let Some(old) = self.segments.remove(&id) {
            for node in old.config.holders() {
                let usage = self.usage.entry(node).or_default();
                usage.booked -= u64::from(old.config.extents);
                usage.holds -= 1;
                usage.out -= u64::from(old.config.is_out(node));
            }
            self.usage.entry(old.config.primary).or_default().primaries -= 1;
        }
        if let Some(new) = segment {
            for node in new.config.holders() {
                let usage = self.usage.entry(node).or_default();
                usage.booked += u64::from(new.config.extents);
                usage.holds += 1;
                usage.out += u64::from(new.config.is_out(node));
            }
            self.usage.entry(new.config.primary).or_default().primaries += 1;
            self.segments.insert(id, new);
        }
    }

    pub(super) fn set_release(
        &mut self,
        node: NodeId,
        segment: SegmentId,
        life: Incarnation,
        release: Option<ReleaseRecord>,
    ) {
        self.changed.insert(Key::Release(node, segment, life));
        let key = (node, segment, life);
        if let Some(old) = self.releases.remove(&key) {
            self.usage.entry(node).or_default().booked -= u64::from(old.extents);
        }
        if let Some(new) = release {
            self.usage.entry(node).or_default().booked += u64::from(new.extents);
            self.releases.insert(key, new);
        }
    }

    fn value(&self, key: Key) -> Option<Value> {
        match key {
            Key::Cluster => Some(Value::Cluster(self.cluster.clone())),
            Key::Node(id) => self.nodes.get(&id).cloned().map(Value::Node),
            Key::Volume(id) => self.volumes.get(&id).cloned().map(Value::Volume),
            Key::Segment(id) => self.segments.get(&id).cloned().map(Value::Segment),
            Key::Release(node, segment, life) => self.releases.get(&(node, segment, life)).copied().map(Value::Release),
        }
    }

    /// Whether anything waits to be saved.
    pub(super) fn has_changes(&self) -> bool {
        !self.changed.is_empty()
    }

    /// Everything changed since the last time, as one atomic set, with the cluster's next revision in it.
    pub(super) fn take_changes(&mut self) -> Vec<RecordChange> {
        if self.changed.is_empty() {
            return Vec::new();
        }
        self.cluster.revision = self.cluster.revision.next();
        self.changed.insert(Key::Cluster);
        let mut changes = Vec::with_capacity(self.changed.len());
        for key in core::mem::take(&mut self.changed) {
            let expected = self.versions.get(&key).copied().unwrap_or(0);
            let value = self.value(key);
            match (&value, expected) {
                (None, 0) => continue, // made and removed within one step
                (None, _) => drop(self.versions.remove(&key)),
                (Some(_), _) => drop(self.versions.insert(key, expected + 1)),
            }
            changes.push(RecordChange { key, expected, value });
        }
        changes
    }
}

fn orphan(key: Key) -> RestoreError {
    RestoreError::Orphan(alloc::format!("{key}"))
}

#[cfg(test)]
mod tests {
    #![allow(clippy::unwrap_used)]
    use super::*;

    #[test]
    fn keys_read_back_as_they_are_written() {
        let segment = SegmentId { volume: VolumeId(7), index: 3 };
        for key in [
            Key::Cluster,
            Key::Node(NodeId(9)),
            Key::Volume(VolumeId(7)),
            Key::Segment(segment),
            Key::Release(NodeId(9), segment, Incarnation(2)),
        ] {
            assert_eq!(alloc::format!("{key}").parse::<Key>(), Ok(key));
        }
        for bad in ["", "cluster/1", "node/x", "segment/7", "release/9/7.3", "volume/7/8"] {
            assert!(bad.parse::<Key>().is_err(), "{bad}");
        }
    }
}
