//! The exit from a record that is older than what nodes know: a person says that there is no newer one (I11, I16).
//!
//! Nodes know two things an older record lacks: the configurations of their replicas, and how far they promised. By I1
//! the configurations of one life of a segment form one chain, and no write is acknowledged before every member of its
//! configuration has adopted it, durably (I2, I3). So once every node that could be a member of anything has spoken, the
//! highest configuration any of them reports is the last one in which anything was acknowledged: it is taken, one epoch
//! above everything adopted or promised, so that no epoch is made twice. A node that will never speak has to be given
//! up by name, with its device, which is never taken in again.
//!
//! What nodes cannot tell is forgotten, and named before: volumes made since (their copies are kept: unknown is not
//! deleted), names, sizes, who is attached. Invariants: nothing is released because an older record says so, where nodes
//! know a later configuration; ids, generations and lives go on above everything nodes report.

use alloc::boxed::Box;
use alloc::collections::{BTreeMap, BTreeSet};
use alloc::format;
use alloc::string::{String, ToString};
use alloc::vec;
use alloc::vec::Vec;

use super::document::{AcceptOlder, Consequences};
use super::io::{Answer, CallError, CallId, Effects, ErrorCode};
use super::records::{DeviceRecord, NodeRecord, SegmentRecord, VolumeState};
use super::{Authority, names};
use crate::config::Config;
use crate::ids::{Epoch, Generation, Incarnation, NodeId, Revision, SegmentId, VolumeId};
use crate::limits::{EXPLAIN_SEGMENTS_MAX, PROPOSALS_MAX, SEGMENTS_MAX};
use crate::message::{Decision, FromAuthority, HeldConfig};
use crate::time::Time;

/// A configuration to be taken over.
struct Adoption {
    config: Config,
    /// In words, where a node knows a later one than the record.
    news: Option<String>,
}

impl Authority {
    /// Remembers what a node reports beyond the records.
    pub(super) fn on_configs(&mut self, node: NodeId, part: Vec<HeldConfig>, last: bool) {
        if self.frozen().is_none() {
            return;
        }
        let news: Vec<HeldConfig> = part.into_iter().filter(|held| self.is_news(held)).collect();
        let Some(presence) = self.presence.get_mut(&node) else { return };
        presence.told_configs |= last;
        for held in news {
            if presence.configs.len() < SEGMENTS_MAX {
                presence.configs.insert(held.config.segment, held);
            }
        }
    }

    fn is_news(&self, held: &HeldConfig) -> bool {
        let config = &held.config;
        let Some(volume) = self.books.volumes().get(&config.segment.volume) else { return false };
        let Some(known) = self.books.segments().get(&config.segment).map(|record| &record.config) else {
            return config.generation > volume.generation;
        };
        life(config) > life(known)
            || (config.incarnation == known.incarnation && held.promised > known.epoch)
            || config.generation > volume.generation
    }

    pub(super) fn on_accept_older(&mut self, now: Time, call: CallId, request: &AcceptOlder, effects: &mut Effects) {
        let result = if self.frozen().is_some() {
            self.try_accept(now, request, effects)
        } else if self.stands_still() {
            self.try_go_on(now, request, effects)
        } else {
            let message = "the authority does not stand still: no node knows more than its record; nothing was changed";
            Err(CallError::new(ErrorCode::IllegalState, message.into()).next("nodectl status"))
        };
        effects.answer(call, result);
    }

    /// Nobody is known to know more: a person only says that the rest need not be heard.
    fn try_go_on(&mut self, now: Time, request: &AcceptOlder, effects: &mut Effects) -> Result<Answer, CallError> {
        let (own, unheard) = (self.books.cluster().revision, names(&self.unheard()));
        if !request.without.is_empty() {
            let message = "nobody is given up while no node is known to know more; nothing was changed".into();
            return Err(CallError::new(ErrorCode::Invalid, message).next("without --without; later replace-device"));
        }
        let does =
            vec![format!("the authority goes on from its record (revision {}) without hearing {unheard}", own.0)];
        let loses = vec![format!(
            "if this record is not the newest, what only {unheard} know is decided again, otherwise: writes acknowledged \
             since may be lost"
        )];
        if !request.dry_run {
            self.confirmed(request, own, &does, &loses)?;
            effects.log(format!("going on from revision {} without {unheard}, because a person said so (I11)", own.0));
            self.go_on(now, effects);
        }
        Ok(Answer::Consequences(Box::new(Consequences { done: !request.dry_run, does, loses })))
    }

    fn confirmed(
        &self,
        request: &AcceptOlder,
        revision: Revision,
        does: &[String],
        loses: &[String],
    ) -> Result<(), CallError> {
        if request.revision == Some(revision) {
            return Ok(());
        }
        let without = request.without.iter().map(|node| format!(" --without {node}")).collect::<String>();
        let message =
            format!("this would forget: {}. It would: {}; nothing was changed", loses.join("; "), does.join("; "));
        let again = format!("nodectl authority accept-older --revision {}{without}", revision.0);
        let next = format!("bring back the newest record instead; or, if there is none: {again}");
        Err(CallError::new(ErrorCode::Refused, message).next(next))
    }

    fn try_accept(&mut self, now: Time, request: &AcceptOlder, effects: &mut Effects) -> Result<Answer, CallError> {
        let (own, without) = (self.books.cluster().revision, &request.without);
        if let Some(node) = without.iter().copied().find(|node| self.is_up(now, *node)) {
            let message = format!("{node} is in touch, it cannot be given up; nothing was changed");
            return Err(CallError::new(ErrorCode::Refused, message).next("nodectl node ls"));
        }
        let needed = self.needed();
        if let Some(node) = without.iter().find(|node| !needed.contains(node)) {
            let message = format!("{node} is not waited for; nothing was changed");
            return Err(CallError::new(ErrorCode::NotFound, message).next("nodectl node ls"));
        }
        let silent: Vec<NodeId> =
            needed.into_iter().filter(|node| !without.contains(node) && !self.has_told(now, *node)).collect();
        let seen = self.highest_seen();
        let adoptions = self.adoptions(without);
        let does = self.acceptance(seen, &adoptions, without);
        let mut loses = self.forgotten(now, own, without);
        if !silent.is_empty() {
            loses.push(format!("what only {} know, which have not said what they hold", names(&silent)));
        }
        if !request.dry_run {
            if !silent.is_empty() {
                return Err(refuse_silent(&silent, without));
            }
            self.confirmed(request, seen, &does, &loses)?;
            effects.log(format!("going on from revision {} above {}, because a person said so (I11)", own.0, seen.0));
            self.accept(now, seen, adoptions, without, effects);
        }
        Ok(Answer::Consequences(Box::new(Consequences { done: !request.dry_run, does, loses })))
    }

    /// Nodes that may know something: those in the records, those in touch, and those named by what these report.
    fn needed(&self) -> BTreeSet<NodeId> {
        let registered = self.books.nodes().iter().filter(|(_, record)| !record.is_gone()).map(|(node, _)| *node);
        let newest = self.news().into_iter().filter_map(|segment| self.newest(segment));
        let named: BTreeSet<NodeId> = newest.flat_map(|(_, held)| held.config.holders().collect::<Vec<_>>()).collect();
        registered.chain(self.sessions.values().copied()).chain(named).collect()
    }

    fn has_told(&self, now: Time, node: NodeId) -> bool {
        self.is_up(now, node)
            && self.presence.get(&node).is_some_and(|presence| presence.listed && presence.told_configs)
            // What is on a device that is missing nobody has told.
            && !self.misses_device(node)
    }

    /// The highest revision any node has seen.
    fn highest_seen(&self) -> Revision {
        let told = self.presence.values().map(|presence| presence.seen).max().unwrap_or(Revision(0));
        told.max(self.books.cluster().revision).max(self.frozen().map_or(Revision(0), |frozen| frozen.seen))
    }

    /// Segments somebody reports something new about.
    fn news(&self) -> BTreeSet<SegmentId> {
        self.presence.values().flat_map(|presence| presence.configs.keys().copied()).collect()
    }

    /// Who reports the latest configuration.
    fn newest(&self, segment: SegmentId) -> Option<(NodeId, &HeldConfig)> {
        let told = self.presence.iter().filter_map(|(node, presence)| Some((*node, presence.configs.get(&segment)?)));
        told.max_by_key(|(_, held)| life(&held.config))
    }

    fn adoptions(&self, without: &[NodeId]) -> Vec<Adoption> {
        self.news().into_iter().filter_map(|segment| self.adoption(segment, without)).collect()
    }

    fn adoption(&self, segment: SegmentId, without: &[NodeId]) -> Option<Adoption> {
        let known = &self.books.segments().get(&segment)?.config;
        let (node, held) = self.newest(segment)?;
        let newer = life(&held.config) > life(known);
        let base = if newer { &held.config } else { known };
        let of_life = self.presence.values().filter_map(|presence| presence.configs.get(&segment));
        let promised = of_life.filter(|held| held.config.incarnation == base.incarnation).map(|held| held.promised);
        let promised = promised.max().unwrap_or(Epoch(0));
        if !newer && promised <= known.epoch {
            return None;
        }
        // Who is named as a member and holds nothing was left out later, by a configuration nobody in touch knows: then
        // nothing is put above what its holders know, so that they are heard when they come.
        let holds = |node: &NodeId| {
            let facts = self.presence.get(node).and_then(|presence| presence.facts.get(&segment));
            without.contains(node) || facts.is_some_and(|facts| facts.incarnation == base.incarnation)
        };
        let whole = base.members.iter().all(holds);
        if !newer && !whole {
            return None;
        }
        let epoch = if whole { base.epoch.max(promised).next() } else { base.epoch };
        let news = newer.then(|| {
            let (there, here) = (&held.config, known);
            format!(
                "segment {}/{} goes on from what {node} reports: {} {} with {}; here it was {} {} with {}",
                self.volume_name(segment.volume),
                segment.index,
                there.incarnation,
                there.epoch,
                names(&there.members),
                here.incarnation,
                here.epoch,
                names(&here.members)
            )
        });
        Some(Adoption { config: Config { epoch, ..base.clone() }, news })
    }

    fn volume_name(&self, volume: VolumeId) -> String {
        self.books.volumes().get(&volume).map_or_else(|| volume.to_string(), |record| record.name.clone())
    }

    /// What accepting does, in sentences.
    fn acceptance(&self, seen: Revision, adoptions: &[Adoption], without: &[NodeId]) -> Vec<String> {
        let mut does = vec![format!("the authority goes on above revision {}", seen.0)];
        does.extend(bounded(adoptions.iter().filter_map(|adoption| adoption.news.clone())));
        if !without.is_empty() {
            does.push(format!("{} are given up with their devices; segments let go of them", names(without)));
        }
        does
    }

    /// What is forgotten, in sentences.
    fn forgotten(&self, now: Time, own: Revision, without: &[NodeId]) -> Vec<String> {
        let ahead = self.presence.iter().filter(|(_, presence)| presence.seen > own);
        let ahead: Vec<String> = ahead.map(|(node, presence)| format!("{node} (saw {})", presence.seen.0)).collect();
        let who = if ahead.is_empty() { "nobody saw a higher one".into() } else { ahead.join(", ") };
        let mut lines = vec![format!(
            "whatever was changed after revision {} and no node can tell: names, sizes, limits, deletions, attachments; {who}",
            own.0
        )];
        let mut unknown: BTreeMap<VolumeId, (BTreeSet<NodeId>, BTreeSet<u32>)> = BTreeMap::new();
        for (node, presence) in &self.presence {
            for segment in presence.facts.keys().filter(|segment| !self.books.segments().contains_key(segment)) {
                let (nodes, segments) = unknown.entry(segment.volume).or_default();
                nodes.insert(*node);
                segments.insert(segment.index);
            }
        }
        lines.extend(bounded(unknown.into_iter().map(|(volume, (nodes, segments))| {
            let nodes: Vec<NodeId> = nodes.into_iter().collect();
            format!(
                "{} segments of volume {} on {}, which the record does not know: their copies are kept",
                segments.len(),
                self.volume_name(volume),
                names(&nodes)
            )
        })));
        let held = |volume: VolumeId| {
            self.presence.values().any(|presence| presence.facts.keys().any(|segment| segment.volume == volume))
        };
        lines.extend(bounded(self.books.volumes().iter().filter(|(id, _)| !held(**id)).map(|(_, record)| {
            format!(
                "volume {} is in the record, and no node in touch holds anything of it: it stays there",
                record.name
            )
        })));
        for node in without {
            let last = self.counted_on(now, *node);
            if last > 0 {
                lines.push(format!(
                    "{node} is given up, and {last} segments have nobody else in touch who holds every acknowledged write"
                ));
            }
        }
        lines
    }

    fn accept(
        &mut self,
        now: Time,
        seen: Revision,
        adoptions: Vec<Adoption>,
        without: &[NodeId],
        effects: &mut Effects,
    ) {
        self.books.skip_to(seen);
        self.go_above_reports();
        let adopted: Vec<SegmentId> = adoptions.iter().map(|adoption| adoption.config.segment).collect();
        for Adoption { config, .. } in adoptions {
            self.adopt(config);
        }
        for presence in self.presence.values_mut() {
            presence.configs.clear();
            presence.told_configs = false;
        }
        self.go_on(now, effects);
        for node in without {
            self.give_up(now, *node, effects);
        }
        self.tell_adopted(&adopted, effects);
    }

    /// Ids, generations and lives go on above everything nodes report; what was under way is taken for done.
    fn go_above_reports(&mut self) {
        let held: BTreeMap<SegmentId, Incarnation> = self
            .presence
            .values()
            .flat_map(|presence| presence.facts.values().map(|facts| (facts.segment, facts.incarnation)))
            .fold(BTreeMap::new(), |mut lives, (segment, life)| {
                let highest = lives.entry(segment).or_insert(life);
                *highest = life.max(*highest);
                lives
            });
        if let Some((last, _)) = held.last_key_value() {
            self.books.skip_volume(last.volume);
        }
        let mut generations: BTreeMap<VolumeId, Generation> = BTreeMap::new();
        for config in self.presence.values().flat_map(|presence| presence.configs.values()).map(|held| &held.config) {
            let highest = generations.entry(config.segment.volume).or_default();
            *highest = config.generation.max(*highest);
        }
        for (id, old) in self.books.volumes().clone() {
            let mut volume = old.clone();
            let range = SegmentId { volume: id, index: 0 }..=SegmentId { volume: id, index: u32::MAX };
            for (segment, life) in held.range(range) {
                // A segment the record does not know is not made again as the one that is there.
                let known = self.books.segments().contains_key(segment);
                volume.life = volume.life.max(if known { *life } else { life.next() });
            }
            if let Some(generation) = generations.get(&id).filter(|generation| **generation > volume.generation) {
                volume.generation = *generation;
                volume.attached = Some("a client this older record does not know".into());
            }
            // It may have ended since, and be full of data: nothing is rolled back (I11).
            if volume.state == VolumeState::Creating {
                volume.state = VolumeState::Ready;
            }
            if let Some(layout) = volume.growing.take() {
                volume.layout = layout;
            }
            if volume != old {
                self.books.set_volume(id, Some(volume));
            }
        }
    }

    fn adopt(&mut self, config: Config) {
        let segment = config.segment;
        let (Some(record), Some(volume)) =
            (self.books.segments().get(&segment), self.books.volumes().get(&segment.volume))
        else {
            return;
        };
        let recovering = record.recovering && record.config.incarnation == config.incarnation;
        let config = Config { generation: volume.generation, ..config };
        // An obligation to drop a copy that is older than this configuration may mean one that counts again by now.
        for node in self.books.nodes_releasing(segment).collect::<Vec<_>>() {
            self.books.set_release(node, segment, config.incarnation, None);
        }
        self.permits.forget(segment);
        self.books.set_segment(segment, Some(SegmentRecord { config, fresh: Vec::new(), recovering }));
    }

    /// The node never comes back as it was: its device is not taken in again.
    fn give_up(&mut self, now: Time, node: NodeId, effects: &mut Effects) {
        let record = match self.books.nodes().get(&node) {
            Some(known) => {
                let devices = known.devices.iter().map(|device| DeviceRecord { lost: true, ..*device }).collect();
                NodeRecord { devices, ..known.clone() }
            }
            // Named by others only: no device may come under its name before a person says so.
            None => NodeRecord {
                zone: String::new(),
                primary: String::new(),
                replication: String::new(),
                shards: 1,
                devices: vec![DeviceRecord::NOT_KNOWN],
            },
        };
        self.books.set_node(node, record);
        self.let_go_everywhere(now, node, effects);
    }

    fn tell_adopted(&self, adopted: &[SegmentId], effects: &mut Effects) {
        let mut news: BTreeMap<NodeId, Vec<Decision>> = BTreeMap::new();
        for config in adopted.iter().filter_map(|id| self.books.segments().get(id)).map(|record| &record.config) {
            news.entry(config.primary).or_default().push(Decision::Conflict(config.clone()));
        }
        for (primary, decisions) in news {
            for part in decisions.chunks(PROPOSALS_MAX) {
                effects.send(primary, FromAuthority::Decisions(part.to_vec()));
            }
        }
    }
}

/// Configurations of one segment are ordered by life, then epoch.
const fn life(config: &Config) -> (Incarnation, Epoch) {
    (config.incarnation, config.epoch)
}

/// As many lines as a person reads.
fn bounded(lines: impl Iterator<Item = String>) -> Vec<String> {
    let mut all: Vec<String> = lines.collect();
    let more = all.len().saturating_sub(EXPLAIN_SEGMENTS_MAX);
    all.truncate(EXPLAIN_SEGMENTS_MAX);
    if more > 0 {
        all.push(format!("and {more} more"));
    }
    all
}

fn refuse_silent(silent: &[NodeId], without: &[NodeId]) -> CallError {
    let message = format!(
        "{} have not said what they hold, and what only they know would be forgotten; nothing was changed",
        names(silent)
    );
    let all = without.iter().chain(silent).map(|node| format!(" --without {node}")).collect::<String>();
    let next = format!(
        "start {}; or, if they are gone for good with their devices: nodectl authority accept-older{all}",
        names(silent)
    );
    CallError::new(ErrorCode::Refused, message).next(next)
}
