//! Nodes: who is registered, who is in touch, what each reports.
//!
//! A node's record is durable; its session, its reports and when it was heard last are not. After a start, every
//! registered node counts as heard at the start: nobody is written off before he had time to come (R26).

use alloc::collections::{BTreeMap, BTreeSet};
use alloc::format;
use alloc::string::String;
use alloc::vec::Vec;

use super::io::{Effect, Effects, SessionRef};
use super::records::NodeRecord;
use super::recover::is_trusted;
use super::{Authority, judge, volumes};
use crate::ids::{BootId, DeviceId, Incarnation, NodeId, Revision, SegmentId};
use crate::limits::{
    ADDRESS_BYTES_MAX, DEVICES_MAX, NODE_SILENCE, NODES_MAX, REPORT_EVERY, REVISION_EVERY, SEGMENTS_MAX, SESSION_GRACE,
    SHARDS_MAX,
};
use crate::message::{
    DeviceJudged, FromAuthority, HeldConfig, Judgement, NodeAddress, Registration, ReplicaReport, Report, ToAuthority,
};
use crate::sabotage::{Invariant, breaks};
use crate::time::{Span, Time};

/// What is known of a node for now.
#[derive(Debug, Clone)]
pub(super) struct Presence {
    /// Its connection.
    pub(super) session: Option<SessionRef>,
    /// When that began.
    pub(super) since: Option<Time>,
    /// When it was heard last; the start of the authority until then.
    heard: Time,
    /// Whether it was heard since the authority started.
    pub(super) known: bool,
    /// Its last report.
    pub(super) report: Report,
    /// When that came.
    reported: Option<Time>,
    /// Bytes per second of copies arriving there, between its last two reports.
    rate: u64,
    /// Releases said and not confirmed.
    pub(super) releasing: BTreeSet<(SegmentId, Incarnation)>,
    /// When they were said last.
    pub(super) released_at: Time,
    /// What it holds, as it said when it registered and since.
    pub(super) facts: BTreeMap<SegmentId, ReplicaReport>,
    /// Copies it has begun since it registered, because it was asked to: it does not list them.
    pub(super) begun: BTreeMap<SegmentId, Incarnation>,
    /// Whether it has said all it holds.
    pub(super) listed: bool,
    /// What is to be written down about it once something may be changed again (I11).
    pub(super) pending: Option<NodeRecord>,
    /// The highest revision it has seen.
    pub(super) seen: Revision,
    /// Configurations it reports beyond the records, while these are frozen.
    pub(super) configs: BTreeMap<SegmentId, HeldConfig>,
    /// Whether it has said all of those.
    pub(super) told_configs: bool,
    /// The devices it came with that may be served.
    pub(super) devices: Vec<DeviceId>,
    /// Those that may not, and why.
    pub(super) turned_away: Vec<(DeviceId, String)>,
    /// Those it could not open, in its words.
    pub(super) absent: Vec<String>,
    /// The revision it was told last, and when.
    told: (Revision, Time),
}

impl Presence {
    pub(super) fn unheard(now: Time) -> Self {
        Self {
            session: None,
            since: None,
            heard: now,
            known: false,
            report: Report::default(),
            reported: None,
            rate: 0,
            releasing: BTreeSet::new(),
            released_at: now,
            facts: BTreeMap::new(),
            begun: BTreeMap::new(),
            listed: false,
            pending: None,
            seen: Revision(0),
            configs: BTreeMap::new(),
            told_configs: false,
            devices: Vec::new(),
            turned_away: Vec::new(),
            absent: Vec::new(),
            told: (Revision(0), now),
        }
    }

    /// It came with these devices, and this was said of them.
    fn came(&mut self, registration: &Registration, judged: &[DeviceJudged]) {
        self.devices.clear();
        self.turned_away.clear();
        for DeviceJudged { device, judgement } in judged {
            match judgement {
                Judgement::Sound { .. } | Judgement::Distrusted { .. } => self.devices.push(*device),
                Judgement::Refused(why) => self.turned_away.push((*device, why.clone())),
            }
        }
        self.absent = registration.absent.iter().take(DEVICES_MAX).cloned().collect();
    }

    /// It has space for a copy, on a device that is there.
    pub(super) fn begins(&mut self, segment: SegmentId, life: Incarnation) {
        if self.begun.len() < SEGMENTS_MAX || self.begun.contains_key(&segment) {
            self.begun.insert(segment, life);
        }
    }

    /// Whether its copy of this segment, of any life or of this one, is known to be on a device that is there.
    pub(super) fn has(&self, segment: SegmentId, life: Option<Incarnation>) -> bool {
        let is = |known: Incarnation| life.is_none_or(|life| life == known);
        self.facts.get(&segment).is_some_and(|facts| is(facts.incarnation))
            || self.begun.get(&segment).is_some_and(|begun| is(*begun))
    }

    /// How long nothing was heard.
    pub(super) fn silence(&self, now: Time) -> Span {
        now.since(self.heard)
    }

    /// Bytes of copies arriving per second, as of the last reports.
    pub(super) fn rate(&self, now: Time) -> u64 {
        let fresh = self.reported.is_some_and(|at| now.since(at) < Span(3 * REPORT_EVERY.0));
        if fresh { self.rate } else { 0 }
    }
}

impl Authority {
    /// In touch: heard within [`NODE_SILENCE`]. Elections below `min_copies` hang on it (I9).
    pub(super) fn in_touch(&self, now: Time, node: NodeId) -> bool {
        self.presence.get(&node).is_some_and(|presence| presence.silence(now) < NODE_SILENCE)
    }

    /// Whether the node can be given work now.
    pub(super) fn is_up(&self, now: Time, node: NodeId) -> bool {
        self.in_touch(now, node) && self.presence.get(&node).is_some_and(|presence| presence.session.is_some())
    }

    /// Whether people should count on the node: up, or gone too short a time to say.
    pub(super) fn is_reachable(&self, now: Time, node: NodeId) -> bool {
        self.presence.get(&node).is_some_and(|presence| {
            let patience = if presence.session.is_some() || !presence.known { NODE_SILENCE } else { SESSION_GRACE };
            presence.silence(now) < patience
        })
    }

    pub(super) fn on_register(
        &mut self,
        now: Time,
        session: SessionRef,
        boot: BootId,
        registration: &Registration,
        effects: &mut Effects,
    ) {
        let node = registration.address.node;
        let welcome = self.may_register(now, registration);
        // Before anything is said of its devices: an older record may know less of them than they do (I11).
        let is_newer = registration.revision > self.books.cluster().revision && !breaks(Invariant::I11);
        if welcome.is_ok() && is_newer {
            self.on_newer_revision(now, node, registration.revision, effects);
        }
        let judged = match welcome.and_then(|()| self.judge_devices(now, boot, registration, effects)) {
            Ok(judged) => judged,
            Err(reason) => {
                effects.log(format!("registration of {node} refused: {reason}"));
                effects.push(Effect::Refuse { session, reason });
                return;
            }
        };
        let seen = registration.revision;
        let known = self.known_as(node).map(|record| record.devices.clone()).unwrap_or_default();
        let record = judge::node_record(&known, boot, registration, &judged, self.frozen().is_some());
        let still = self.stands_still();
        let changed = !still && self.books.note_node(node, record.clone());
        let presence = self.presence.entry(node).or_insert_with(|| Presence::unheard(now));
        presence.pending = still.then_some(record);
        presence.since = Some(now);
        if let Some(old) = presence.session.replace(session) {
            self.sessions.remove(&old);
        }
        presence.heard = now;
        presence.known = true;
        presence.releasing.clear();
        presence.facts.clear();
        presence.begun.clear();
        presence.listed = false;
        presence.seen = seen;
        presence.configs.clear();
        presence.told_configs = false;
        presence.came(registration, &judged);
        self.sessions.insert(session, node);

        effects.push(Effect::Accept { session, node });
        let revision = self.revision_to_tell();
        if let Some(presence) = self.presence.get_mut(&node) {
            presence.told = (revision, now);
        }
        let (settings, complete) = (self.settings.clone(), !self.misses_device(node));
        effects.send(node, FromAuthority::Registered { settings, revision, devices: judged, complete });
        if changed {
            self.tell_addresses(effects);
        } else {
            effects.send(node, FromAuthority::Nodes(self.addresses()));
        }
        if self.frozen().is_some() {
            effects.send(node, FromAuthority::ShowConfigs);
        }
        if !still {
            self.create_again(node, effects);
            self.say_recoveries(node, effects);
            self.pump_releases(now, node, effects);
            self.permits.look_again();
        }
    }

    fn may_register(&self, now: Time, registration: &Registration) -> Result<(), String> {
        let NodeAddress { node, primary, replication, shards } = &registration.address;
        if node.0 == 0 || *shards == 0 || *shards > SHARDS_MAX {
            return Err(format!("node ids begin with n1, shards are 1 to {SHARDS_MAX}"));
        }
        volumes::check_name("zone", &registration.zone).map_err(|error| error.message)?;
        for address in [primary, replication] {
            if address.len() > ADDRESS_BYTES_MAX || !address.contains(':') {
                return Err(format!("`{address}` is not an address: write host:port"));
            }
        }
        let taken = self
            .books
            .nodes()
            .iter()
            .find(|(other, record)| *other != node && (record.primary == *primary) && self.is_up(now, **other));
        if let Some((other, _)) = taken {
            return Err(format!("{primary} is the address of {other}, which is in touch"));
        }
        if self.known_as(*node).is_none() && self.books.nodes().len() >= NODES_MAX {
            return Err(format!("there are {NODES_MAX} nodes already"));
        }
        Ok(())
    }

    /// What is known of a node: what it said last, even if that could not be written down yet.
    pub(super) fn known_as(&self, node: NodeId) -> Option<&NodeRecord> {
        let pending = self.presence.get(&node).and_then(|presence| presence.pending.as_ref());
        pending.or_else(|| self.books.nodes().get(&node))
    }

    /// Tells nodes what the revision is by now, so that they would notice an older authority (I11).
    pub(super) fn tell_revision(&mut self, now: Time, effects: &mut Effects) {
        let revision = self.revision_to_tell();
        for (node, presence) in self.presence.iter_mut().filter(|(_, presence)| presence.session.is_some()) {
            let (told, at) = presence.told;
            if told < revision && now.since(at) >= REVISION_EVERY {
                presence.told = (revision, now);
                effects.send(*node, FromAuthority::Revision(revision));
            }
        }
    }

    pub(super) fn addresses(&self) -> Vec<NodeAddress> {
        let address = |(node, record): (&NodeId, &NodeRecord)| NodeAddress {
            node: *node,
            primary: record.primary.clone(),
            replication: record.replication.clone(),
            shards: record.shards,
        };
        // Where a node that was given up can be reached nobody knows.
        self.books.nodes().iter().filter(|(_, record)| !record.primary.is_empty()).map(address).collect()
    }

    pub(super) fn tell_addresses(&self, effects: &mut Effects) {
        let addresses = self.addresses();
        for (node, _) in self.presence.iter().filter(|(_, presence)| presence.session.is_some()) {
            effects.send(*node, FromAuthority::Nodes(addresses.clone()));
        }
    }

    pub(super) fn on_gone(&mut self, now: Time, session: SessionRef, effects: &mut Effects) {
        let Some(node) = self.sessions.remove(&session) else { return };
        if let Some(presence) = self.presence.get_mut(&node) {
            presence.session = None;
            presence.releasing.clear();
        }
        self.permits.target_gone(node);
        self.permits.look_again();
        effects.log(format!("{node} has left (last heard {} ms ago)", self.silence_ms(now, node)));
    }

    pub(super) fn silence_ms(&self, now: Time, node: NodeId) -> u64 {
        self.presence.get(&node).map_or(0, |presence| presence.silence(now).as_millis())
    }

    pub(super) fn on_node(&mut self, now: Time, session: SessionRef, message: ToAuthority, effects: &mut Effects) {
        let Some(node) = self.sessions.get(&session).copied() else { return };
        if let Some(presence) = self.presence.get_mut(&node) {
            presence.heard = now;
        }
        if self.message_waits(now, session, &message) {
            return;
        }
        match message {
            ToAuthority::Register(_) => effects.log(format!("{node} registers twice in one session; ignored")),
            ToAuthority::Replicas { part, last } => {
                self.learn_facts(node, &part);
                if let Some(presence) = self.presence.get_mut(&node) {
                    presence.listed |= last;
                }
                // What it has lost may be made there anew.
                self.permits.look_again();
                self.look_for_newer(now, node, &part, effects);
                self.on_replicas(node, &part, effects);
                self.look_whether_to_go_on(now, effects);
            }
            ToAuthority::Report(report) => {
                self.learn_facts(node, &report.stranded);
                self.on_report(now, node, report);
            }
            ToAuthority::Proposals(proposals) => self.on_proposals(now, node, &proposals, effects),
            ToAuthority::PermitAsks(asks) => self.on_permit_asks(now, node, &asks, effects),
            ToAuthority::LeaseAsks(asks) => self.on_lease_asks(node, &asks, effects),
            ToAuthority::PermitEnd { segment, permit } => self.on_permit_end(node, segment, permit, effects),
            ToAuthority::FenceDone { segment, generation } => {
                self.on_fence_done(now, node, segment, generation, effects);
            }
            ToAuthority::Created { segment, incarnation, result } => {
                self.on_created(now, node, segment, incarnation, result, effects);
            }
            ToAuthority::Reserved { permit, segment, granted } => {
                self.on_reserved(now, node, permit, segment, granted, effects);
            }
            ToAuthority::Configs { part, last } => self.on_configs(node, part, last),
            ToAuthority::Released { segment, incarnation } => {
                self.on_released(now, node, segment, incarnation, effects);
            }
        }
    }

    fn learn_facts(&mut self, node: NodeId, said: &[ReplicaReport]) {
        let Some(presence) = self.presence.get_mut(&node) else { return };
        for facts in said {
            if presence.facts.len() < SEGMENTS_MAX || presence.facts.contains_key(&facts.segment) {
                presence.facts.insert(facts.segment, facts.clone());
            }
        }
    }

    /// Whether the node itself has said, since it became a member of this segment last, that its copy is not to be
    /// trusted, or that it is not at work: an image of its device from before is back, or that device is not there.
    pub(super) fn disowns(&self, node: NodeId, segment: SegmentId) -> bool {
        let facts = self.presence.get(&node).and_then(|presence| presence.facts.get(&segment));
        facts.map_or_else(|| self.is_without(node, segment), |facts| !is_trusted(facts))
    }

    /// Whether the node has said all that is at work there, this segment was not among it, and has not begun since.
    pub(super) fn is_without(&self, node: NodeId, segment: SegmentId) -> bool {
        self.presence.get(&node).is_some_and(|presence| {
            presence.listed && presence.facts.len() < SEGMENTS_MAX && !presence.has(segment, None)
        })
    }

    /// Whether the node has said all it holds, and this segment was not among it. While one of its devices is missing,
    /// nobody knows what is on that (I11).
    pub(super) fn has_nothing_of(&self, node: NodeId, segment: SegmentId) -> bool {
        self.is_without(node, segment) && !self.misses_device(node)
    }

    fn on_report(&mut self, now: Time, node: NodeId, report: Report) {
        for copy in &report.copies {
            self.permits.renew(copy.segment, node, now);
        }
        let Some(presence) = self.presence.get_mut(&node) else { return };
        if let Some(before) = presence.reported {
            // A counter below the one before began anew with the node.
            let began =
                if report.copied_bytes < presence.report.copied_bytes { 0 } else { presence.report.copied_bytes };
            let arrived = report.copied_bytes - began;
            let millis = now.since(before).as_millis().max(1);
            presence.rate = arrived.saturating_mul(1000) / millis;
            self.copied_total = self.copied_total.saturating_add(arrived);
        }
        presence.reported = Some(now);
        presence.report = report;
    }
}
