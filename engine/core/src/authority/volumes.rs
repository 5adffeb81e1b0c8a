//! Volumes: made, grown, deleted. Each is an operation over many replicas that either ends whole or is rolled back.
//!
//! First the records, durably, with every node chosen; then the nodes are asked, a few replicas each at a time, until
//! all have confirmed. A refusal or the deadline turns every replica asked for into a release (I11): a node that never
//! heard of it confirms just the same.

use alloc::boxed::Box;
use alloc::collections::BTreeMap;
use alloc::format;
use alloc::string::{String, ToString};
use alloc::vec::Vec;

use super::document::{CreateVolume, ResizeVolume, Spread};
use super::io::{Answer, CallError, CallId, Effects, ErrorCode};
use super::placement::{Need, Purpose, Room, Size, choose};
use super::records::{NodeRecord, SegmentRecord, VolumeRecord, VolumeState};
use super::space::is_local;
use super::{Authority, names, throttle};
use crate::config::Config;
use crate::ids::{Epoch, Generation, Incarnation, NodeId, SegmentId, VolumeId};
use crate::layout::Layout;
use crate::limits::{
    BLOCK_SIZE, CALL_LIMIT, COPIES_MAX, CREATES_INFLIGHT, NAME_BYTES_MAX, SEGMENT_SIZE_DEFAULT, SEGMENT_SIZE_MAX,
    SEGMENT_SIZE_MIN, SEGMENTS_MAX, SEGMENTS_PER_VOLUME_MAX, VOLUME_SIZE_MAX, VOLUMES_MAX,
};
use crate::message::{DeviceReport, FromAuthority};
use crate::random::mix;
use crate::throttle::VolumeLimits;
use crate::time::Time;

/// Replicas of a volume being made.
#[derive(Debug, Clone)]
pub(super) struct Building {
    /// Who waits; nobody when the authority restarted in between.
    call: Option<CallId>,
    deadline: Time,
    /// Replicas not confirmed yet, and whether their node was asked.
    waiting: BTreeMap<(NodeId, SegmentId), bool>,
    /// How many each node was asked for when last counted, less those it has confirmed since.
    asked: BTreeMap<NodeId, usize>,
}

/// Names of volumes and zones: they appear in paths, commands and metrics.
pub(super) fn check_name(what: &str, name: &str) -> Result<(), CallError> {
    let plain = |c: char| c.is_ascii_alphanumeric() || matches!(c, '.' | '_' | '-');
    if !name.is_empty()
        && name.len() <= NAME_BYTES_MAX
        && name.chars().all(plain)
        && name.starts_with(|c: char| c.is_ascii_alphanumeric())
    {
        return Ok(());
    }
    let shown: String = name.chars().take(NAME_BYTES_MAX).collect();
    let message = format!(
        "`{shown}` is not a {what} name: 1 to {NAME_BYTES_MAX} of a-z A-Z 0-9 . _ -, beginning with a letter or digit"
    );
    Err(CallError::new(ErrorCode::Invalid, message))
}

/// Who attaches: free text for people, bounded and printable.
pub(super) fn check_client(client: &str) -> Result<(), CallError> {
    if !client.is_empty() && client.len() <= 4 * NAME_BYTES_MAX && !client.chars().any(char::is_control) {
        return Ok(());
    }
    let message = format!("`client` is 1 to {} printable bytes that say who attaches", 4 * NAME_BYTES_MAX);
    Err(CallError::new(ErrorCode::Invalid, message))
}

fn invalid(message: String) -> CallError {
    CallError::new(ErrorCode::Invalid, message)
}

fn check_size(size: u64, segment_size: u64) -> Result<u64, CallError> {
    if size == 0 || size > VOLUME_SIZE_MAX {
        return Err(invalid(format!("a volume has 1 byte to {}, not {}", Size(VOLUME_SIZE_MAX), Size(size))));
    }
    let size = size.next_multiple_of(BLOCK_SIZE);
    if size.div_ceil(segment_size) > u64::from(SEGMENTS_PER_VOLUME_MAX) {
        let message = format!(
            "{} in segments of {} are more than {SEGMENTS_PER_VOLUME_MAX} segments: choose larger segments",
            Size(size),
            Size(segment_size)
        );
        return Err(invalid(message));
    }
    Ok(size)
}

/// What was asked for, checked and with the defaults in place.
fn plan(request: &CreateVolume, zones: usize) -> Result<VolumeRecord, CallError> {
    check_name("volume", &request.name)?;
    let segment_size = request.segment_size.unwrap_or(SEGMENT_SIZE_DEFAULT);
    if !segment_size.is_power_of_two() || !(SEGMENT_SIZE_MIN..=SEGMENT_SIZE_MAX).contains(&segment_size) {
        let (min, max) = (Size(SEGMENT_SIZE_MIN), Size(SEGMENT_SIZE_MAX));
        return Err(invalid(format!("a segment is a power of two from {min} to {max}, not {segment_size} bytes")));
    }
    let size = check_size(request.size, segment_size)?;
    let copies = request.copies.unwrap_or(3);
    if copies == 0 || usize::from(copies) > COPIES_MAX {
        return Err(invalid(format!("a volume has 1 to {COPIES_MAX} copies, not {copies}")));
    }
    let min_copies = request.min_copies.unwrap_or(copies.min(2));
    if min_copies == 0 || min_copies > copies {
        return Err(invalid(format!("min_copies is 1 to copies ({copies}), not {min_copies}")));
    }
    if let Some(zone) = &request.zone {
        check_name("zone", zone)?;
        if request.spread == Some(Spread::Zone) && copies > 1 {
            return Err(invalid(format!("copies can't all be in zone {zone} and each in another zone")));
        }
    }
    let wide = request.zone.is_none() && zones >= usize::from(copies);
    Ok(VolumeRecord {
        name: request.name.clone(),
        segment_size,
        copies,
        min_copies,
        spread: request.spread.unwrap_or(if wide { Spread::Zone } else { Spread::Node }),
        zone: request.zone.clone(),
        state: VolumeState::Creating,
        layout: Layout::new(size, segment_size),
        growing: None,
        generation: Generation(0),
        attached: None,
        limits: throttle::limits(VolumeLimits::default(), request.iops, request.mibps)?,
        life: Incarnation(1),
    })
}

impl Authority {
    pub(super) fn on_create(&mut self, now: Time, call: CallId, request: &CreateVolume, effects: &mut Effects) {
        if let Err(error) = self.try_create(now, call, request, effects) {
            effects.answer(call, Err(error));
        }
    }

    fn try_create(
        &mut self,
        now: Time,
        call: CallId,
        request: &CreateVolume,
        effects: &mut Effects,
    ) -> Result<(), CallError> {
        let zones: alloc::collections::BTreeSet<&str> = self.rooms(now).map(|room| room.zone).collect();
        let record = plan(request, zones.len())?;
        if let Some((_, other)) = self.books.named(&record.name).filter(|(_, v)| v.state != VolumeState::Deleting) {
            let message = format!("there is a volume `{}` already; it stays as it is", other.name);
            return Err(
                CallError::new(ErrorCode::IllegalState, message).next(format!("nodectl volume show {}", other.name))
            );
        }
        if self.books.volumes().len() >= VOLUMES_MAX {
            let message = format!("there are {VOLUMES_MAX} volumes already; nothing was made");
            return Err(CallError::new(ErrorCode::Refused, message).next("nodectl volume ls"));
        }
        if let Some(zone) = record.zone.as_ref().filter(|zone| !zones.contains(zone.as_str())) {
            let zones: Vec<&str> = zones.into_iter().collect();
            let message = format!("no node of zone {zone} is in touch; zones are: {}", zones.join(", "));
            return Err(invalid(message).next("nodectl node ls"));
        }
        let id = self.books.cluster().next_volume;
        let configs = self.place(now, id, &record, &record.layout, 0)?;
        self.books.next_volume();
        self.books.set_volume(id, Some(record));
        self.build(now, id, Some(call), configs, effects);
        Ok(())
    }

    /// Nodes that can be given space, as placement sees them; nothing for new volumes, unless what is kept is said.
    pub(super) fn rooms(&self, now: Time) -> impl Iterator<Item = Room<'_>> {
        self.books.nodes().iter().filter(move |(node, _)| self.is_up(now, **node)).map(|(node, record)| {
            let usage = self.books.usage(*node);
            Room {
                node: *node,
                zone: &record.zone,
                capacity: record.capacity(),
                booked: usage.booked + self.permits.reserved(*node),
                kept: record.capacity(),
                fits: self.fits(*node, record),
                primaries: usage.primaries,
            }
        })
    }

    /// Extents free on that device of a node which has most, as its reports say; its own books decide in the end.
    fn fits(&self, node: NodeId, record: &NodeRecord) -> u64 {
        let reported = self.presence.get(&node).map_or(&[][..], |presence| &presence.report.devices);
        if record.devices.len() < 2 || reported.is_empty() {
            return u64::MAX;
        }
        let free = |device: &DeviceReport| device.capacity.saturating_sub(device.booked);
        let most = reported.iter().filter(|device| !device.failed).map(free).max().unwrap_or(0);
        most.saturating_sub(self.permits.reserved(node))
    }

    /// First configurations of the segments from index `first` on, or why there is no place for them.
    fn place(
        &self,
        now: Time,
        id: VolumeId,
        record: &VolumeRecord,
        layout: &Layout,
        first: u32,
    ) -> Result<Vec<Config>, CallError> {
        let (kept, local) = (self.kept(), is_local(record, self.zones()));
        let mut rooms: Vec<Room<'_>> = self.rooms(now).collect();
        rooms.iter_mut().for_each(|room| room.kept = kept.of(room.zone, room.capacity, local));
        let added = (layout.segments() - first) as usize;
        if self.books.segments().len() + added > SEGMENTS_MAX {
            let message = format!("this authority keeps at most {SEGMENTS_MAX} segments: choose larger segments");
            return Err(CallError::new(ErrorCode::Refused, message));
        }
        let mut configs = Vec::with_capacity(added);
        for index in first..layout.segments() {
            let segment = SegmentId { volume: id, index };
            let extents = layout.extents(index);
            let need = Need {
                copies: usize::from(record.copies),
                extents,
                spread: record.spread,
                zone: record.zone.as_deref(),
                without: &[],
                taken: &[],
                purpose: Purpose::NewVolume,
                seed: mix(segment.to_u64() ^ self.seed),
            };
            let members = choose(&rooms, &need).map_err(|none| {
                let placed = configs.len();
                let message = format!(
                    "no place for segment {} of {added} of `{}`: {none} ({}); nothing was made",
                    placed + 1,
                    record.name,
                    kept.why(),
                );
                CallError::new(ErrorCode::NoSpace, message).next("nodectl node ls")
            })?;
            for room in rooms.iter_mut().filter(|room| members.contains(&room.node)) {
                room.booked += u64::from(extents);
                room.primaries += u64::from(members[0] == room.node);
            }
            configs.push(Config {
                segment,
                incarnation: record.life,
                epoch: Epoch(1),
                primary: members[0],
                electable: members.clone(),
                members,
                candidates: Vec::new(),
                former: Vec::new(),
                generation: record.generation,
                copies: record.copies,
                min_copies: record.min_copies,
                extents,
            });
        }
        Ok(configs)
    }

    /// Books the segments and asks their nodes to make the replicas.
    fn build(&mut self, now: Time, id: VolumeId, call: Option<CallId>, configs: Vec<Config>, effects: &mut Effects) {
        let mut building =
            Building { call, deadline: now + CALL_LIMIT, waiting: BTreeMap::new(), asked: BTreeMap::new() };
        for config in configs {
            let segment = config.segment;
            building.waiting.extend(config.members.iter().map(|node| ((*node, segment), false)));
            self.books.set_segment(segment, Some(SegmentRecord { config, fresh: Vec::new(), recovering: false }));
        }
        self.building.insert(id, building);
        self.pump_creates(id, effects);
    }

    /// Operations the last run of the authority left behind go on; every replica is asked for again.
    pub(super) fn resume_building(&mut self, now: Time) {
        let unfinished = |record: &VolumeRecord| record.state == VolumeState::Creating || record.growing.is_some();
        let ids: Vec<VolumeId> =
            self.books.volumes().iter().filter(|(_, v)| unfinished(v)).map(|(id, _)| *id).collect();
        for id in ids {
            let first = self.first_built(id);
            let mut building =
                Building { call: None, deadline: now + CALL_LIMIT, waiting: BTreeMap::new(), asked: BTreeMap::new() };
            for (segment, record) in self.books.segments_of(id).filter(|(segment, _)| segment.index >= first) {
                building.waiting.extend(record.config.members.iter().map(|node| ((*node, *segment), false)));
            }
            self.building.insert(id, building);
        }
    }

    /// Index of the first segment the operation under way makes.
    fn first_built(&self, id: VolumeId) -> u32 {
        let record = &self.books.volumes()[&id];
        if record.state == VolumeState::Creating { 0 } else { record.layout.segments() }
    }

    fn pump_creates(&mut self, id: VolumeId, effects: &mut Effects) {
        // What the last run of the authority asked for may be on a device that is missing (I11).
        let cannot_tell: Vec<NodeId> = self.presence.keys().copied().filter(|node| self.misses_device(*node)).collect();
        let Some(building) = self.building.get_mut(&id) else { return };
        let resumed = building.call.is_none();
        let asked = &mut building.asked;
        asked.clear();
        for ((node, _), _) in building.waiting.iter().filter(|(_, asked)| **asked) {
            *asked.entry(*node).or_default() += 1;
        }
        for ((node, segment), sent) in building.waiting.iter_mut().filter(|(_, asked)| !**asked) {
            let up = self.presence.get(node).is_some_and(|presence| presence.session.is_some());
            let count = asked.entry(*node).or_default();
            if !up || *count >= CREATES_INFLIGHT || (resumed && cannot_tell.contains(node)) {
                continue;
            }
            let Some(record) = self.books.segments().get(segment) else { continue };
            *sent = true;
            *count += 1;
            // An election may have been quicker: then this is its configuration, not the first.
            let config = record.config.clone();
            effects.send(*node, FromAuthority::Create { config });
        }
    }

    /// A node has come (again): what it was asked for before may be lost; or on a device that is missing, and then it is
    /// not made a second time (I11).
    pub(super) fn create_again(&mut self, node: NodeId, effects: &mut Effects) {
        let ids: Vec<VolumeId> = self.building.keys().copied().collect();
        let can_tell = !self.misses_device(node);
        for id in ids {
            if let Some(building) = self.building.get_mut(&id).filter(|_| can_tell) {
                for ((_, _), sent) in building.waiting.iter_mut().filter(|((holder, _), _)| *holder == node) {
                    *sent = false;
                }
            }
            self.pump_creates(id, effects);
        }
    }

    pub(super) fn on_created(
        &mut self,
        now: Time,
        node: NodeId,
        segment: SegmentId,
        life: Incarnation,
        result: Result<(), String>,
        effects: &mut Effects,
    ) {
        let id = segment.volume;
        if self.on_recovered(node, segment, life, &result, effects) {
            return;
        }
        let current = self.books.segments().get(&segment).is_some_and(|record| record.config.incarnation == life);
        let Some(building) = self.building.get_mut(&id).filter(|_| current) else { return };
        match result {
            Err(reason) if building.waiting.contains_key(&(node, segment)) => {
                let message = format!("{node} could not make its replica of segment {segment}: {reason}");
                self.roll_back(id, CallError::new(ErrorCode::NoSpace, message).next("nodectl node ls"), effects);
            }
            Err(_) => {}
            Ok(()) => {
                building.waiting.remove(&(node, segment));
                let left = building.asked.get_mut(&node).map_or(0, |asked| {
                    *asked = asked.saturating_sub(1);
                    *asked
                });
                let last = building.waiting.is_empty();
                if let Some(config) = self.books.segments().get(&segment).map(|record| record.config.clone()) {
                    self.note_members(&config, &[]);
                }
                if last {
                    self.built(now, id, effects);
                } else if left <= CREATES_INFLIGHT / 2 {
                    // Not for every one: what is left is thousands.
                    self.pump_creates(id, effects);
                }
            }
        }
    }

    fn built(&mut self, now: Time, id: VolumeId, effects: &mut Effects) {
        let Some(building) = self.building.remove(&id) else { return };
        let mut record = self.books.volumes()[&id].clone();
        record.state = VolumeState::Ready;
        if let Some(layout) = record.growing.take() {
            record.layout = layout;
        }
        self.books.set_volume(id, Some(record));
        if let Some(call) = building.call {
            effects.answer(call, Ok(Answer::Volume(Box::new(self.volume_info(now, id)))));
        }
    }

    /// Undoes the operation under way: every replica it asked for is released.
    fn roll_back(&mut self, id: VolumeId, error: CallError, effects: &mut Effects) {
        let Some(building) = self.building.remove(&id) else { return };
        let first = self.first_built(id);
        let mut record = self.books.volumes()[&id].clone();
        let grown = record.growing.take().is_some();
        self.drop_segments(id, first, effects);
        record.life = record.life.next();
        if !grown {
            record.state = VolumeState::Deleting;
        }
        let kept = if grown { "the volume keeps its size" } else { "no volume was made" };
        let message = format!("{}; {kept}", error.message);
        effects.log(format!("volume `{}`: {message}", record.name));
        self.books.set_volume(id, Some(record));
        self.end_deleted(id);
        if let Some(call) = building.call {
            effects.answer(call, Err(CallError { message, ..error }));
        }
    }

    /// Segments from `first` on end here: their holders get tombstones (I11).
    fn drop_segments(&mut self, id: VolumeId, first: u32, effects: &mut Effects) {
        let configs: Vec<Config> = self
            .books
            .segments_of(id)
            .filter(|(segment, _)| segment.index >= first)
            .map(|(_, record)| record.config.clone())
            .collect();
        for config in configs {
            self.permits.forget(config.segment);
            self.books.set_segment(config.segment, None);
            for node in config.holders().collect::<Vec<_>>() {
                self.release(node, &config, effects);
            }
        }
    }

    pub(super) fn tick_building(&mut self, now: Time, effects: &mut Effects) {
        // Who is no member any more is its primary's business: a copy will be brought there or elsewhere.
        for building in self.building.values_mut() {
            let segments = self.books.segments();
            building.waiting.retain(|(node, id), _| segments.get(id).is_some_and(|s| s.config.is_member(*node)));
        }
        let building: Vec<VolumeId> = self.building.keys().copied().collect();
        for id in building {
            self.pump_creates(id, effects);
        }
        let done: Vec<VolumeId> =
            self.building.iter().filter(|(_, building)| building.waiting.is_empty()).map(|(id, _)| *id).collect();
        for id in done {
            self.built(now, id, effects);
        }
        let late: Vec<VolumeId> =
            self.building.iter().filter(|(_, building)| now >= building.deadline).map(|(id, _)| *id).collect();
        for id in late {
            let waiting = &self.building[&id].waiting;
            let mut nodes: Vec<NodeId> = waiting.keys().map(|(node, _)| *node).collect();
            nodes.dedup();
            let message = format!(
                "{} replicas were not confirmed within {} s by {}",
                waiting.len(),
                CALL_LIMIT.as_millis() / 1000,
                names(&nodes)
            );
            self.roll_back(id, CallError::new(ErrorCode::Timeout, message).next("nodectl node ls"), effects);
        }
    }

    pub(super) fn on_resize(
        &mut self,
        now: Time,
        call: CallId,
        name: &str,
        request: &ResizeVolume,
        effects: &mut Effects,
    ) {
        if let Err(error) = self.try_resize(now, call, name, request, effects) {
            effects.answer(call, Err(error));
        }
    }

    fn try_resize(
        &mut self,
        now: Time,
        call: CallId,
        name: &str,
        request: &ResizeVolume,
        effects: &mut Effects,
    ) -> Result<(), CallError> {
        let id = self.ready_volume(name)?;
        let mut record = self.books.volumes()[&id].clone();
        let show = || format!("nodectl volume show {name}");
        if record.growing.is_some() {
            let message = format!("`{name}` is being resized already; wait until that has ended");
            return Err(CallError::new(ErrorCode::IllegalState, message).next(show()));
        }
        let size = check_size(request.size, record.segment_size)?;
        let before = record.layout.bytes();
        if size < before {
            let message = format!("`{name}` has {}; volumes only grow, it stays as it is", Size(before));
            return Err(CallError::new(ErrorCode::Refused, message).next(show()));
        }
        if size == before {
            effects.answer(call, Ok(Answer::Volume(Box::new(self.volume_info(now, id)))));
            return Ok(());
        }
        let mut layout = record.layout.clone();
        layout.grow(size - before, record.segment_size);
        if layout.segments() > SEGMENTS_PER_VOLUME_MAX {
            return Err(invalid(format!("`{name}` would have more than {SEGMENTS_PER_VOLUME_MAX} segments")));
        }
        let configs = self.place(now, id, &record, &layout, record.layout.segments())?;
        record.growing = Some(layout);
        self.books.set_volume(id, Some(record));
        self.build(now, id, Some(call), configs, effects);
        Ok(())
    }

    pub(super) fn on_delete(&mut self, now: Time, call: CallId, name: &str, effects: &mut Effects) {
        let result = self.try_delete(now, name, effects);
        effects.answer(call, result);
    }

    fn try_delete(&mut self, now: Time, name: &str, effects: &mut Effects) -> Result<Answer, CallError> {
        let id = self.ready_volume(name)?;
        let mut record = self.books.volumes()[&id].clone();
        if self.building.contains_key(&id) {
            let message = format!("`{name}` is being resized; it stays as it is");
            return Err(CallError::new(ErrorCode::IllegalState, message).next(format!("nodectl volume show {name}")));
        }
        if record.attached.is_some() || self.fencing.contains_key(&id) {
            let who = record.attached.as_deref().unwrap_or("somebody");
            let message = format!("`{name}` is attached by {who}; it stays as it is");
            return Err(CallError::new(ErrorCode::Refused, message).next(format!("nodectl volume detach {name}")));
        }
        record.state = VolumeState::Deleting;
        self.books.set_volume(id, Some(record));
        let info = self.volume_info(now, id);
        self.drop_segments(id, 0, effects);
        self.end_deleted(id);
        Ok(Answer::Volume(Box::new(info)))
    }

    /// The volume of this name, whatever its state.
    pub(super) fn find_volume(&self, name: &str) -> Result<VolumeId, CallError> {
        check_name("volume", name)?;
        self.books.named(name).map(|(id, _)| id).ok_or_else(|| {
            CallError::new(ErrorCode::NotFound, format!("there is no volume `{name}`")).next("nodectl volume ls")
        })
    }

    /// The volume of this name, if it is in use.
    pub(super) fn ready_volume(&self, name: &str) -> Result<VolumeId, CallError> {
        let id = self.find_volume(name)?;
        let what = match self.books.volumes()[&id].state {
            VolumeState::Ready => return Ok(id),
            VolumeState::Creating => "still being created".to_string(),
            VolumeState::Deleting => "being deleted".to_string(),
        };
        let message = format!("`{name}` is {what}");
        Err(CallError::new(ErrorCode::IllegalState, message).next(format!("nodectl volume show {name}")))
    }

    /// Gives up waiting for replicas, because nothing may change any more; their records stay as they are.
    pub(super) fn abandon_building(&mut self, error: &CallError, effects: &mut Effects) {
        for (_, building) in core::mem::take(&mut self.building) {
            if let Some(call) = building.call {
                effects.answer(call, Err(error.clone()));
            }
        }
    }
}
