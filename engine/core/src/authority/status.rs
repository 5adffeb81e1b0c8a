//! What people see: the state of nodes, volumes and segments, computed when asked.

use alloc::collections::BTreeSet;
use alloc::format;
use alloc::string::ToString;
use alloc::vec::Vec;

use super::document::{
    Address, Cluster, DamageCounts, DeviceInfo, DeviceState, DifferingExtent, Health, NodeInfo, RemirrorCounts,
    ScrubInfo, SegmentCounts, Status, VolumeInfo,
};
use super::records::{SegmentRecord, VolumeState};
use super::recover::Holding;
use super::{Authority, judge};
use crate::ids::{NodeId, SegmentId, VolumeId};
use crate::limits::EXTENT_SIZE;
use crate::message::{NodeAddress, Report};
use crate::report::Differing;
use crate::time::Time;

const fn differing(found: &Differing) -> DifferingExtent {
    DifferingExtent { segment: found.segment, extent: found.extent.0, member: found.member }
}

/// In what condition a segment is.
#[derive(Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Debug)]
pub enum Condition {
    /// No serving primary.
    Stuck,
    /// Fewer members than `min_copies`: reads only.
    ReadOnly,
    /// Copies missing, serving reads and writes.
    Degraded,
    /// All copies, serving.
    Full,
}

impl Condition {
    /// Its name in the API.
    #[must_use]
    pub const fn name(self) -> &'static str {
        match self {
            Self::Stuck => "stuck",
            Self::ReadOnly => "read_only",
            Self::Degraded => "degraded",
            Self::Full => "full",
        }
    }
}

impl From<NodeAddress> for Address {
    fn from(address: NodeAddress) -> Self {
        let NodeAddress { node, primary, replication, shards } = address;
        Self { node, primary, replication, shards }
    }
}

impl Authority {
    /// In what condition a segment is.
    pub(super) fn condition(&self, now: Time, segment: SegmentId, record: &SegmentRecord) -> Condition {
        let config = &record.config;
        let stands_still = |report: &Report| {
            report.not_serving.contains(&segment) || report.stranded.iter().any(|facts| facts.segment == segment)
        };
        // Its copy may be on a device that is not there.
        let not_at_work = |node: NodeId| self.is_up(now, node) && self.is_without(node, segment);
        let holds_nothing =
            matches!(self.holding(now, config, config.primary), Holding::Nothing) || not_at_work(config.primary);
        let leads = self.is_reachable(now, config.primary)
            && !record.recovering
            && !holds_nothing
            && self.presence.get(&config.primary).is_none_or(|primary| !stands_still(&primary.report));
        if !leads {
            Condition::Stuck
        } else if !config.may_commit() {
            Condition::ReadOnly
        } else if config.missing() > 0
            || config.members.iter().any(|node| !self.is_reachable(now, *node) || not_at_work(*node))
        {
            Condition::Degraded
        } else {
            Condition::Full
        }
    }

    fn count(&self, now: Time, id: VolumeId, counts: &mut SegmentCounts) {
        let segments = self.books.volumes()[&id].layout.segments() as usize;
        for (segment, record) in self.books.segments_of(id).take(segments) {
            counts.total += 1;
            match self.condition(now, *segment, record) {
                Condition::Full => counts.full += 1,
                Condition::Degraded => counts.degraded += 1,
                Condition::ReadOnly => counts.read_only += 1,
                Condition::Stuck => counts.stuck += 1,
            }
        }
    }

    pub(super) fn cluster(&self) -> Cluster {
        let record = self.books.cluster();
        Cluster { cluster: record.cluster, revision: self.revision_to_tell() }
    }

    pub(super) fn status(&self, now: Time) -> Status {
        let mut segments = SegmentCounts::default();
        for (id, _) in self.books.volumes().iter().filter(|(_, volume)| volume.state == VolumeState::Ready) {
            self.count(now, *id, &mut segments);
        }
        let health = match segments {
            _ if self.frozen().is_some() => Health::Impaired,
            SegmentCounts { read_only: 0, stuck: 0, degraded: 0, .. } => Health::Ok,
            SegmentCounts { read_only: 0, stuck: 0, .. } => Health::Degraded,
            _ => Health::Impaired,
        };
        let copying: BTreeSet<SegmentId> = self
            .presence
            .iter()
            .filter(|(node, _)| self.is_up(now, **node))
            .flat_map(|(_, presence)| presence.report.copies.iter().map(|copy| copy.segment))
            .collect();
        let remirror = RemirrorCounts {
            active: copying.len() as u64,
            parked: self.permits.parked(),
            bytes_per_second: self.presence.values().map(|presence| presence.rate(now)).sum(),
            bytes_total: self.copied_total,
        };
        let nodes = self.books.nodes();
        let booked: u64 = nodes.keys().map(|node| self.books.usage(*node).booked).sum();
        let used: u64 = self.presence.values().map(|presence| presence.report.used).sum();
        let (why, next) = self.why_standstill().unzip();
        Status {
            cluster: self.books.cluster().cluster,
            revision: self.revision_to_tell(),
            health,
            segments,
            remirror,
            breaker: self.breaker_info(now),
            space: self.space_info(now),
            damage: self.damage(),
            nodes_up: nodes.keys().filter(|node| self.is_up(now, **node)).count() as u64,
            nodes_total: nodes.len() as u64,
            capacity: nodes.values().map(|record| record.capacity() * EXTENT_SIZE).sum(),
            booked: booked * EXTENT_SIZE,
            used: used * EXTENT_SIZE,
            frozen: why.clone().filter(|_| self.frozen().is_some()),
            waiting: why.filter(|_| self.frozen().is_none()),
            next,
        }
    }

    fn damage(&self) -> DamageCounts {
        let mut damage = DamageCounts::default();
        for presence in self.presence.values() {
            // Whatever a node says: a sum of it ends nothing.
            damage.blocks = damage.blocks.saturating_add(presence.report.corrupt_blocks);
            damage.structures = damage.structures.saturating_add(presence.report.damaged_structures);
            damage.mended_extents = damage.mended_extents.saturating_add(presence.report.mended);
        }
        damage
    }

    pub(super) fn node_info(&self, now: Time, id: NodeId) -> Option<NodeInfo> {
        let record = self.books.nodes().get(&id)?;
        let presence = self.presence.get(&id)?;
        let up = self.is_up(now, id);
        Some(NodeInfo {
            id,
            zone: record.zone.clone(),
            state: if up { "up" } else { "down" }.into(),
            primary_addr: record.primary.clone(),
            replication_addr: record.replication.clone(),
            capacity: record.capacity() * EXTENT_SIZE,
            booked: self.books.usage(id).booked * EXTENT_SIZE,
            used: presence.report.used * EXTENT_SIZE,
            replicas: u64::from(presence.report.replicas),
            // Who is down serves nothing, whatever it said last.
            serving: if up { u64::from(presence.report.serving) } else { 0 },
            shards: record.shards,
            silent_ms: presence.silence(now).as_millis(),
            copied_bytes: presence.report.copied_bytes,
            corrupt_blocks: presence.report.corrupt_blocks,
            damaged_structures: presence.report.damaged_structures,
            mended_extents: presence.report.mended,
            scrub: ScrubInfo {
                passes: presence.report.scrub.passes,
                running: presence.report.scrub.running,
                compared: presence.report.scrub.done * EXTENT_SIZE,
                damaged_extents: presence.report.scrub.damaged,
                compared_extents: presence.report.scrub.compared,
                not_compared_extents: presence.report.scrub.unsettled,
                differing_extents: presence.report.scrub.differing,
                differing: presence.report.differing.iter().map(differing).collect(),
            },
            flushes: presence.report.flushes,
            headroom: self.headroom_of(record) * EXTENT_SIZE,
            device_lost: record.is_gone(),
            devices: self.device_infos(id),
            absent: if up { presence.absent.clone() } else { Vec::new() },
            awaited: self.stands_still() && !record.is_gone() && !self.has_listed(id),
            quarantine: Vec::new(),
        })
    }

    /// A node's devices, each with how it is; those it came with and that may not be served behind those known.
    fn device_infos(&self, node: NodeId) -> Vec<DeviceInfo> {
        let (Some(record), Some(presence)) = (self.books.nodes().get(&node), self.presence.get(&node)) else {
            return Vec::new();
        };
        let known = record.devices.iter().filter(|known| known.device.0 != 0).map(|known| {
            let said = presence.report.devices.iter().find(|said| said.device == known.device);
            let said = said.filter(|_| presence.devices.contains(&known.device));
            let (state, next) = if known.lost {
                (DeviceState::Lost, None)
            } else if presence.since.is_some() && !presence.devices.contains(&known.device) {
                (DeviceState::Missing, Some(judge::replace_command(node, &record.devices, known.device)))
            } else if said.is_some_and(|said| said.failed) {
                (DeviceState::Failed, Some(format!("start noded of {node} again; if it fails again, without it")))
            } else {
                (DeviceState::InUse, None)
            };
            DeviceInfo {
                id: known.device.to_string(),
                state,
                capacity: known.capacity.saturating_mul(EXTENT_SIZE),
                booked: said.map_or(0, |said| said.booked.saturating_mul(EXTENT_SIZE)),
                used: said.map_or(0, |said| said.used.saturating_mul(EXTENT_SIZE)),
                why: None,
                next,
            }
        });
        let refused = presence.turned_away.iter().map(|(device, why)| DeviceInfo {
            id: device.to_string(),
            state: DeviceState::Refused,
            capacity: 0,
            booked: 0,
            used: 0,
            why: Some(why.clone()),
            next: None,
        });
        known.chain(refused).collect()
    }

    /// Of a volume that exists.
    pub(super) fn volume_info(&self, now: Time, id: VolumeId) -> VolumeInfo {
        let record = &self.books.volumes()[&id];
        let mut segments = SegmentCounts::default();
        self.count(now, id, &mut segments);
        let state = match record.state {
            VolumeState::Creating => "creating",
            VolumeState::Ready => "ready",
            VolumeState::Deleting => "deleting",
        };
        VolumeInfo {
            id,
            name: record.name.clone(),
            size: record.layout.bytes(),
            segment_size: record.segment_size,
            copies: record.copies,
            min_copies: record.min_copies,
            spread: record.spread,
            zone: record.zone.clone(),
            state: state.into(),
            generation: record.generation,
            attached: record.attached.clone(),
            limits: record.limits,
            segments,
        }
    }
}
