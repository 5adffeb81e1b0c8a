//! Devices that are gone and copies in quarantine: what a person may let go of, and what not (R12, I16).
//!
//! A copy that was left out stays where it is, with its space booked, until its segment is whole without it (I12): that
//! is the quarantine. Here a person ends it earlier: for a device that is gone for good, or for single copies. Each act
//! is checked segment by segment first: where a copy still counts, its volume has to be named.

use alloc::boxed::Box;
use alloc::format;
use alloc::string::{String, ToString};
use alloc::vec;
use alloc::vec::Vec;

use super::document::{Consequences, Quarantined, ReleaseCopies, ReplaceDevice};
use super::io::{Answer, CallError, CallId, Effects, ErrorCode};
use super::records::{DeviceRecord, NodeRecord, SegmentRecord};
use super::recover::{Holding, is_trusted};
use super::registry::Presence;
use super::{Authority, names};
use crate::config::Config;
use crate::ids::{DeviceId, Incarnation, NodeId, SegmentId};
use crate::limits::EXPLAIN_SEGMENTS_MAX;
use crate::message::{Decision, FromAuthority};
use crate::time::Time;

/// Segments that one act may let go of, and those that would lose something.
#[derive(Default)]
struct Plan {
    safe: Vec<SegmentId>,
    /// With the volume's name, and why.
    counted: Vec<(SegmentId, String, String)>,
}

impl Plan {
    /// Everything, if every volume that would lose something is named; the refusal with the list if not.
    fn confirmed(self, lose: &[String], again: &str) -> Result<Vec<SegmentId>, CallError> {
        let unnamed: Vec<&(SegmentId, String, String)> =
            self.counted.iter().filter(|(_, volume, _)| !lose.contains(volume)).collect();
        if unnamed.is_empty() {
            return Ok(self.safe.into_iter().chain(self.counted.into_iter().map(|(segment, ..)| segment)).collect());
        }
        let some: Vec<&str> = unnamed.iter().take(8).map(|(.., why)| why.as_str()).collect();
        let more = if unnamed.len() > 8 { format!("; and {} more", unnamed.len() - 8) } else { String::new() };
        let mut volumes: Vec<&str> = unnamed.iter().map(|(_, volume, _)| volume.as_str()).collect();
        volumes.dedup();
        let message =
            format!("{} segments still count on it: {}{more}; nothing was changed", unnamed.len(), some.join("; "));
        let lose = volumes.iter().map(|volume| format!(" --lose {volume}")).collect::<String>();
        Err(CallError::new(ErrorCode::Refused, message)
            .next(format!("wait until they are whole elsewhere; or {again}{lose}")))
    }

    fn losses(&self) -> Vec<String> {
        self.counted.iter().take(EXPLAIN_SEGMENTS_MAX).map(|(.., why)| why.clone()).collect()
    }
}

/// Whether a node's copy is kept although the configuration goes on without it.
fn is_quarantined(config: &Config, node: NodeId) -> bool {
    !config.is_member(node) && !config.is_candidate(node) && config.holders().any(|holder| holder == node)
}

/// The configuration without a node; `None` when nobody would be left.
fn without(config: &Config, node: NodeId, prefer: impl Fn(NodeId) -> bool) -> Option<Config> {
    let others = |list: &[NodeId]| list.iter().copied().filter(|other| *other != node).collect::<Vec<_>>();
    let first = |list: &[NodeId]| list.iter().copied().find(|node| prefer(*node)).or_else(|| list.first().copied());
    let (mut members, mut electable) = (others(&config.members), others(&config.electable));
    if members.is_empty() {
        members.push(first(&electable)?);
    }
    let primary = if members.contains(&config.primary) { config.primary } else { first(&members)? };
    let mut next = Config { epoch: config.epoch.next(), primary, members, ..config.clone() };
    if next.may_commit() {
        electable = next.members.clone();
    } else {
        electable.extend(next.members.iter().filter(|member| !config.electable.contains(member)));
    }
    next.electable = electable;
    next.candidates = others(&config.candidates).into_iter().filter(|other| !next.is_member(*other)).collect();
    next.former = others(&config.former).into_iter().filter(|other| !next.is_member(*other)).collect();
    Some(next)
}

fn listed(devices: &[DeviceId]) -> String {
    let names: Vec<String> = devices.iter().map(ToString::to_string).collect();
    names.join(", ")
}

impl Authority {
    /// Whether somebody else in touch holds everything acknowledged of this segment.
    fn is_safe_without(&self, now: Time, config: &Config, node: NodeId) -> bool {
        config.members.iter().chain(&config.electable).any(|other| {
            *other != node && matches!(self.holding(now, config, *other), Holding::Known(facts) if is_trusted(facts))
        })
    }

    fn named(&self, segment: SegmentId) -> String {
        self.books.volumes().get(&segment.volume).map(|volume| volume.name.clone()).unwrap_or_default()
    }

    pub(super) fn on_replace_device(
        &mut self,
        now: Time,
        call: CallId,
        node: NodeId,
        request: &ReplaceDevice,
        effects: &mut Effects,
    ) {
        let result = self.try_replace_device(now, node, request, effects);
        effects.answer(call, result);
    }

    fn try_replace_device(
        &mut self,
        now: Time,
        node: NodeId,
        request: &ReplaceDevice,
        effects: &mut Effects,
    ) -> Result<Answer, CallError> {
        let Some(mut record) = self.books.nodes().get(&node).cloned() else {
            return Err(CallError::new(ErrorCode::NotFound, format!("there is no node {node}")).next("nodectl node ls"));
        };
        let gone = self.may_replace(now, node, &record, request.device.as_deref())?;
        let one_of_several = gone.len() < record.devices.iter().filter(|device| !DeviceRecord::is_gone(device)).count();
        let mut plan = Plan::default();
        for (segment, held) in self.books.segments() {
            let config = &held.config;
            // What the node does not have at work, nor has begun since, was on the device that is missing.
            let kept = one_of_several && !self.is_without(node, *segment);
            if kept || !config.holders().any(|holder| holder == node) {
                continue;
            }
            if self.is_safe_without(now, config, node) {
                plan.safe.push(*segment);
            } else {
                let name = self.named(*segment);
                let why = format!("{name}/{}: nobody else in touch holds every acknowledged write", segment.index);
                plan.counted.push((*segment, name, why));
            }
        }
        let loses = plan.losses();
        let does = vec![
            format!(
                "device {} of {node} is taken for gone for good; the next one that comes as {node} is its own",
                listed(&gone)
            ),
            format!("{} segments let go of it", plan.safe.len() + plan.counted.len()),
        ];
        if !request.dry_run {
            let named = request.device.as_ref().map(|device| format!(" --device {device}")).unwrap_or_default();
            let again = format!("nodectl node replace-device {node}{named}");
            let segments = plan.confirmed(&request.lose, &again)?;
            record.devices.iter_mut().filter(|known| gone.contains(&known.device)).for_each(|known| known.lost = true);
            self.books.set_node(node, record);
            for segment in segments {
                self.let_go(now, segment, node, effects);
            }
            self.forget_releases(node, |presence, segment, life| !one_of_several || !presence.has(segment, Some(life)));
            effects.log(format!("device {} of {node} is gone for good, as a person said", listed(&gone)));
        }
        Ok(Answer::Consequences(Box::new(Consequences { done: !request.dry_run, does, loses })))
    }

    /// The devices of a node that a person may call gone for good now: all of them while it is down, or one that its
    /// process runs without. Only then is it known what was on that one.
    fn may_replace(
        &self,
        now: Time,
        node: NodeId,
        record: &NodeRecord,
        wanted: Option<&str>,
    ) -> Result<Vec<DeviceId>, CallError> {
        let held: Vec<DeviceId> =
            record.devices.iter().filter(|device| !device.lost).map(|device| device.device).collect();
        let show = format!("nodectl node show {node}");
        let refused = |message: String, next: String| Err(CallError::new(ErrorCode::Refused, message).next(next));
        let Some(wanted) = wanted else {
            if self.is_up(now, node) {
                let message = format!("{node} is in touch, with its device; nothing was changed");
                let next = if held.len() > 1 {
                    format!("{show}, and name one of them")
                } else {
                    format!("stop noded on {node} first")
                };
                return refused(message, next);
            }
            return Ok(held);
        };
        let Some(device) = held.iter().copied().find(|device| device.to_string() == wanted) else {
            let message = format!("{node} has no device {wanted} that is in use; nothing was changed");
            return Err(CallError::new(ErrorCode::NotFound, message).next(show));
        };
        if held.len() == 1 {
            if self.is_up(now, node) {
                let message = format!("{node} is in touch, with its device; nothing was changed");
                return refused(message, format!("stop noded on {node} first"));
            }
            return Ok(held);
        }
        let presence = self.presence.get(&node);
        if !self.is_up(now, node) || !self.has_listed(node) {
            let message = format!(
                "{node} has {} devices and is not in touch: what was on this one only it can tell; nothing was changed",
                held.len()
            );
            return refused(message, format!("start noded on {node} with the others first"));
        }
        if presence.is_some_and(|presence| presence.devices.contains(&device)) {
            let message = format!("{node} runs with device {wanted}; nothing was changed");
            return refused(message, format!("start noded on {node} again without it first"));
        }
        let missing =
            super::judge::missing(&record.devices, presence.map_or(&[], |presence| &presence.devices)).count();
        if missing > 1 {
            let message = format!(
                "{missing} devices of {node} are missing: which of them a copy was on is not known; nothing was changed"
            );
            return refused(
                message,
                format!(
                    "bring back those that still work; or stop noded on {node}, then nodectl node replace-device {node}"
                ),
            );
        }
        Ok(vec![device])
    }

    /// Every segment goes on without this node's copy, and nothing there has to be dropped any more.
    pub(super) fn let_go_everywhere(&mut self, now: Time, node: NodeId, effects: &mut Effects) {
        let holds = |record: &SegmentRecord| record.config.holders().any(|holder| holder == node);
        let held: Vec<SegmentId> =
            self.books.segments().iter().filter(|(_, record)| holds(record)).map(|(segment, _)| *segment).collect();
        for segment in held {
            self.let_go(now, segment, node, effects);
        }
        self.forget_releases(node, |_, _, _| true);
    }

    /// Segments for which nobody else in touch holds every acknowledged write.
    pub(super) fn counted_on(&self, now: Time, node: NodeId) -> usize {
        let configs = self.books.segments().values().map(|record| &record.config);
        let counts = |config: &&Config| {
            config.holders().any(|holder| holder == node) && !self.is_safe_without(now, config, node)
        };
        configs.filter(counts).count()
    }

    /// What is gone does not have to be dropped.
    fn forget_releases(&mut self, node: NodeId, which: impl Fn(&Presence, SegmentId, Incarnation) -> bool) {
        for (segment, life) in self.books.releases_of(node).collect::<Vec<_>>() {
            if self.presence.get(&node).is_some_and(|presence| !which(presence, segment, life)) {
                continue;
            }
            self.books.set_release(node, segment, life, None);
            self.end_deleted(segment.volume);
        }
        self.permits.look_again();
    }

    /// The segment goes on without this node's copy. Where nobody is left it stays as it is: only a person can say
    /// which copy counts then (`recover`).
    fn let_go(&mut self, now: Time, segment: SegmentId, node: NodeId, effects: &mut Effects) {
        let Some(record) = self.books.segments().get(&segment) else { return };
        let prefer = |other: NodeId| matches!(self.holding(now, &record.config, other), Holding::Known(facts) if is_trusted(facts));
        let Some(next) = without(&record.config, node, prefer) else { return };
        let fresh = record.fresh.iter().copied().filter(|other| *other != node).collect();
        let generation = self.books.volumes()[&segment.volume].generation;
        let config = Config { generation, ..next };
        self.books.set_segment(segment, Some(SegmentRecord { config: config.clone(), fresh, recovering: false }));
        self.permit_follows(now, &config, effects);
        // Whoever leads hears of it at once; everybody else by it.
        effects.send(config.primary, FromAuthority::Decisions(vec![Decision::Conflict(config)]));
    }

    /// Copies of a node that are kept although their segments go on without them, and why.
    pub(super) fn quarantine(&self, now: Time, node: NodeId) -> Vec<Quarantined> {
        let kept = self.books.segments().iter().filter(|(_, record)| is_quarantined(&record.config, node));
        kept.take(EXPLAIN_SEGMENTS_MAX)
            .map(|(segment, record)| {
                let config = &record.config;
                let counts = if config.electable.contains(&node) { ", and it may be the one that counts" } else { "" };
                let why = format!(
                    "{} of {} copies are in sync (on {}){counts}; it holds {}",
                    config.members.len(),
                    config.copies,
                    names(&config.members),
                    self.holds(now, config, node)
                );
                Quarantined { segment: *segment, volume: self.named(*segment), why }
            })
            .collect()
    }

    /// Asks a node to compare everything it holds with its checksums now.
    pub(super) fn on_scrub(&self, now: Time, call: CallId, node: NodeId, effects: &mut Effects) {
        let answer = match self.node_info(now, node) {
            None => {
                Err(CallError::new(ErrorCode::NotFound, format!("there is no node {node}")).next("nodectl node ls"))
            }
            Some(_) if !self.is_up(now, node) => {
                let message = format!("{node} is not in touch; nothing was begun");
                Err(CallError::new(ErrorCode::Unavailable, message).next(format!("nodectl node show {node}")))
            }
            Some(info) => {
                effects.send(node, FromAuthority::Scrub);
                Ok(Answer::Node(Box::new(info)))
            }
        };
        effects.answer(call, answer);
    }

    pub(super) fn on_release_copies(
        &mut self,
        now: Time,
        call: CallId,
        node: NodeId,
        request: &ReleaseCopies,
        effects: &mut Effects,
    ) {
        let result = self.try_release_copies(now, node, request, effects);
        effects.answer(call, result);
    }

    fn try_release_copies(
        &mut self,
        now: Time,
        node: NodeId,
        request: &ReleaseCopies,
        effects: &mut Effects,
    ) -> Result<Answer, CallError> {
        let show = format!("nodectl node show {node}");
        if !self.books.nodes().contains_key(&node) {
            return Err(CallError::new(ErrorCode::NotFound, format!("there is no node {node}")).next("nodectl node ls"));
        }
        let wanted = match &request.segment {
            Some(one) => Some(SegmentId { volume: self.find_volume(&one.volume)?, index: one.index }),
            None => None,
        };
        let mut plan = Plan::default();
        for (segment, record) in self.books.segments() {
            let config = &record.config;
            if wanted.is_some_and(|wanted| wanted != *segment) || !is_quarantined(config, node) {
                continue;
            }
            let counts = config.electable.contains(&node);
            let whole =
                |member: &NodeId| matches!(self.holding(now, config, *member), Holding::Known(f) if is_trusted(f));
            if !counts && config.may_commit() && config.members.iter().all(whole) {
                plan.safe.push(*segment);
            } else {
                let name = self.named(*segment);
                let in_touch = config.members.iter().filter(|member| whole(member)).count();
                let why = format!(
                    "{name}/{} has {in_touch} of at least {} copies in sync and in touch",
                    segment.index, config.min_copies
                );
                plan.counted.push((*segment, name, why));
            }
        }
        if plan.safe.is_empty() && plan.counted.is_empty() {
            let message = format!("nothing of that is in quarantine on {node}; nothing was changed");
            return Err(CallError::new(ErrorCode::NotFound, message).next(show));
        }
        let loses = plan.losses();
        let does = vec![format!("{node} drops {} copies", plan.safe.len() + plan.counted.len())];
        if !request.dry_run {
            let which = request
                .segment
                .as_ref()
                .map_or("--all".into(), |one| format!("--segment {}/{}", one.volume, one.index));
            let segments = plan.confirmed(&request.lose, &format!("nodectl node release {node} {which}"))?;
            for segment in segments {
                let old = self.books.segments()[&segment].config.clone();
                self.let_go(now, segment, node, effects);
                if !self.books.segments()[&segment].config.holders().any(|holder| holder == node) {
                    self.release(node, &old, effects);
                }
            }
        }
        Ok(Answer::Consequences(Box::new(Consequences { done: !request.dry_run, does, loses })))
    }
}
