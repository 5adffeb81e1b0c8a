//! Copies that are no longer needed: a durable obligation per replica, said until its node confirms (I11, I12).
//!
//! Unknown is not deleted: a replica nobody remembers is kept and named in the log. Only three things let go of one:
//! its obligation, a newer life of the same segment, or a whole segment whose configuration does not name it.

use alloc::format;

use super::Authority;
use super::io::Effects;
use super::records::{ReleaseRecord, VolumeState};
use crate::config::Config;
use crate::ids::{Incarnation, NodeId, SegmentId, VolumeId};
use crate::limits::{RELEASE_RETRY, RELEASES_INFLIGHT};
use crate::message::{FromAuthority, ReplicaReport};
use crate::time::Time;

impl Authority {
    /// Makes `node`'s copy an obligation and says so once that is durable.
    pub(super) fn release(&mut self, node: NodeId, config: &Config, effects: &mut Effects) {
        let (segment, life) = (config.segment, config.incarnation);
        self.books.set_release(node, segment, life, Some(ReleaseRecord { extents: config.extents }));
        self.say_release(node, segment, life, effects);
    }

    /// Whether the node's word that it has no copy of this segment counts: not while one of its devices is missing, unless
    /// the copy of this life is known to be on one that is there (I11, I12).
    fn can_tell(&self, node: NodeId, segment: SegmentId, life: Incarnation) -> bool {
        let is_there = || self.presence.get(&node).is_some_and(|presence| presence.has(segment, Some(life)));
        !self.misses_device(node) || is_there()
    }

    fn say_release(&mut self, node: NodeId, segment: SegmentId, incarnation: Incarnation, effects: &mut Effects) {
        if !self.can_tell(node, segment, incarnation) {
            return;
        }
        let Some(presence) = self.presence.get_mut(&node).filter(|presence| presence.session.is_some()) else { return };
        if presence.releasing.len() < RELEASES_INFLIGHT && presence.releasing.insert((segment, incarnation)) {
            effects.send(node, FromAuthority::Release { segment, incarnation });
        }
    }

    /// Says the next releases to this node.
    pub(super) fn pump_releases(&mut self, now: Time, node: NodeId, effects: &mut Effects) {
        let Some(presence) = self.presence.get_mut(&node) else { return };
        presence.released_at = now;
        let room = RELEASES_INFLIGHT - presence.releasing.len();
        let presence = &self.presence[&node];
        let due = self.books.releases_of(node).filter(|release| !presence.releasing.contains(release));
        let next: alloc::vec::Vec<_> =
            due.filter(|(segment, life)| self.can_tell(node, *segment, *life)).take(room).collect();
        for (segment, life) in next {
            self.say_release(node, segment, life, effects);
        }
    }

    /// Says unconfirmed releases again.
    pub(super) fn repeat_releases(&mut self, now: Time, effects: &mut Effects) {
        let due = |presence: &super::registry::Presence| {
            presence.session.is_some() && now.since(presence.released_at) >= RELEASE_RETRY
        };
        let nodes: alloc::vec::Vec<NodeId> =
            self.presence.iter().filter(|(_, presence)| due(presence)).map(|(node, _)| *node).collect();
        for node in nodes {
            if let Some(presence) = self.presence.get_mut(&node) {
                presence.releasing.clear();
            }
            self.say_recoveries(node, effects);
            self.pump_releases(now, node, effects);
        }
    }

    pub(super) fn on_released(
        &mut self,
        now: Time,
        node: NodeId,
        segment: SegmentId,
        life: Incarnation,
        effects: &mut Effects,
    ) {
        let can_tell = self.can_tell(node, segment, life);
        if let Some(presence) = self.presence.get_mut(&node) {
            presence.releasing.remove(&(segment, life));
            presence.facts.remove(&segment);
            presence.begun.remove(&segment);
        }
        if !can_tell {
            return;
        }
        if self.stands_still() || !self.books.releases().contains_key(&(node, segment, life)) {
            return;
        }
        self.books.set_release(node, segment, life, None);
        self.permits.look_again();
        self.end_deleted(segment.volume);
        let drained = self.presence.get(&node).is_some_and(|presence| presence.releasing.is_empty());
        if drained {
            self.pump_releases(now, node, effects);
        }
    }

    /// A deleted volume is forgotten when every former holder has confirmed (I11).
    pub(super) fn end_deleted(&mut self, volume: VolumeId) {
        let deleting = self.books.volumes().get(&volume).is_some_and(|record| record.state == VolumeState::Deleting);
        if deleting && !self.books.is_releasing(volume) {
            self.books.set_volume(volume, None);
        }
    }

    pub(super) fn on_replicas(&mut self, node: NodeId, part: &[ReplicaReport], effects: &mut Effects) {
        if self.stands_still() {
            return;
        }
        for replica in part {
            let (segment, incarnation) = (replica.segment, replica.incarnation);
            if self.books.releases().contains_key(&(node, segment, incarnation)) {
                self.say_release(node, segment, incarnation, effects);
                continue;
            }
            let Some(record) = self.books.segments().get(&segment) else {
                effects.log(format!("{node} holds a replica of {segment} {incarnation}, which is unknown: kept (I11)"));
                continue;
            };
            let config = &record.config;
            // The copy that a new life begins with is of the old one until it confirms.
            if record.recovering && config.is_member(node) {
                continue;
            }
            let older = incarnation < config.incarnation;
            let unneeded = config.missing() == 0
                && incarnation == config.incarnation
                && !config.holders().any(|holder| holder == node)
                && self.permits.target(segment) != Some(node);
            if older || unneeded {
                effects.send(node, FromAuthority::Release { segment, incarnation });
            }
        }
    }
}
