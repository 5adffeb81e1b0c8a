//! The cells' authorities: the production machine of each, what reaches it and what it says, and what people ask it for.
//!
//! Cost of a turn: a commit, and so much for every message; whatever comes meanwhile is in the next turn. A cell in which
//! nothing is wrong is handed time seldom; its nodes report as ever.

use std::collections::BTreeMap;

use engine_core::authority::document::{CreateVolume, Spread};
use engine_core::authority::io::{Answer, Call, CallId, Effect, Effects, Input, SessionRef};
use engine_core::authority::policy::Policy;
use engine_core::authority::records::{
    ClusterRecord, DeviceRecord, Key, NodeRecord, SegmentRecord, StoredRecord, Value, VolumeRecord, VolumeState,
};
use engine_core::authority::{Authority, Setup};
use engine_core::config::Config;
use engine_core::ids::{
    BootCount, BootId, ClusterId, DeviceId, Epoch, Generation, Incarnation, NodeId, Revision, SegmentId, Seq, VolumeId,
};
use engine_core::layout::Layout;
use engine_core::limits::{AUTHORITY_TICK, HTTP_DEADLINE, LIST_MAX, REPORT_EVERY};
use engine_core::message::{
    Decision, DeviceOpened, FromAuthority, NodeAddress, Proposal, Registration, ReplicaReport, Report, ToAuthority,
};
use engine_core::openings::{Opening, Openings};
use engine_core::record::Standing;
use engine_core::throttle::VolumeLimits;
use engine_core::time::{Span, Time};

use super::super::cluster::{Cell, START, float, whole};
use super::segment::Segment;
use super::{CALM_TICKS, DELAY, Event, World, id, index};

/// Segments of each volume there is to begin with.
const VOLUME_SEGMENTS: u32 = 64;
/// What a commit of the authority's records takes.
const COMMIT: Span = Span::millis(10);
/// What a message costs it beside that.
const PER_MESSAGE: Span = Span(20_000);
/// Nodes report by turns, so many groups of them.
const GROUPS: u64 = REPORT_EVERY.0 / AUTHORITY_TICK.0;
/// So long after the last trouble a cell is handed time as if there were some.
const AFTERMATH: Span = Span::seconds(120);

/// One cell's authority and what waits for it.
pub(super) struct Seat {
    authority: Authority,
    pub(super) nodes: Vec<u16>,
    /// Its segments among those of the cluster.
    first: usize,
    segments: usize,
    inbox: Vec<Input>,
    turn_due: bool,
    busy_until: Time,
    is_stopped: bool,
    ticks: u64,
    /// Segments in trouble, and when that number changed last.
    pub(super) trouble: u64,
    pub(super) troubled_at: Time,
    /// Messages in this second, and in the busiest since the last sample.
    second: u64,
    messages: u64,
    messages_most: u64,
    queue_most: u64,
    calls: BTreeMap<CallId, (Time, usize)>,
    last_call: u64,
}

impl Seat {
    fn new(authority: Authority, cell: &Cell) -> Self {
        Self {
            authority,
            nodes: cell.nodes.clone(),
            first: cell.segments.start,
            segments: cell.segments.len(),
            inbox: Vec::new(),
            turn_due: false,
            busy_until: START,
            is_stopped: false,
            ticks: 0,
            trouble: 0,
            troubled_at: START,
            second: 0,
            messages: 0,
            messages_most: 0,
            queue_most: 0,
            calls: BTreeMap::new(),
            last_call: 0,
        }
    }

    /// Most that waited, and most messages within a second, since this was asked last.
    pub(super) fn take_peaks(&mut self, now: Time) -> (u64, u64) {
        self.count(now, 0);
        (std::mem::take(&mut self.queue_most), std::mem::take(&mut self.messages_most))
    }

    fn count(&mut self, now: Time, messages: u64) {
        let second = now.0 / Span::seconds(1).0;
        if second != self.second {
            self.messages_most = self.messages_most.max(self.messages);
            (self.second, self.messages) = (second, 0);
        }
        self.messages += messages;
    }

    /// Which of the cluster's segments; none for those that were made since.
    fn segment(&self, segment: SegmentId) -> Option<u32> {
        let at = (segment.volume.0 as usize - 1) * VOLUME_SEGMENTS as usize + segment.index as usize;
        (at < self.segments).then(|| u32::try_from(self.first + at).unwrap_or(u32::MAX))
    }
}

fn opening(node: u16) -> Opening {
    Opening { id: BootId(u128::from(id(node).0)), count: BootCount(1) }
}

fn segment_id(at: usize) -> SegmentId {
    let at = u32::try_from(at).unwrap_or(u32::MAX);
    SegmentId { volume: VolumeId(at / VOLUME_SEGMENTS + 1), index: at % VOLUME_SEGMENTS }
}

impl World<'_> {
    /// Every cell's authority begins over its records, and its nodes come to it.
    pub(super) fn open_seats(&mut self) {
        for (number, cell) in self.plan.cells.iter().enumerate() {
            let number = u16::try_from(number).unwrap_or(u16::MAX);
            let mut records = vec![StoredRecord {
                key: Key::Cluster,
                version: 1,
                value: Value::Cluster(ClusterRecord {
                    cluster: ClusterId(u128::from(number) + 1),
                    revision: Revision(1),
                    next_volume: VolumeId(segment_id(cell.segments.len()).volume.0 + 1),
                    breaker_held: false,
                }),
            }];
            records.extend(cell.nodes.iter().map(|node| self.node_record(*node)));
            self.add_segments(cell.segments.clone(), &mut records);
            let setup = Setup {
                now: self.now,
                cluster: ClusterId(u128::from(number) + 1),
                grace: self.scenario.cluster.grace.0,
                policy: Policy::default(),
                seed: self.random.next_u64(),
            };
            let authority = Authority::restore(records, &setup).expect("records that belong together");
            self.seats.push(Seat::new(authority, cell));
            for node in &cell.nodes {
                self.nodes[usize::from(*node)].cell = number;
                self.enlist(*node);
            }
            self.after(AUTHORITY_TICK, Event::CellTick(number));
        }
    }

    fn node_record(&self, node: u16) -> StoredRecord {
        let Opening { id: boot_id, count: boot } = opening(node);
        let NodeAddress { primary, replication, .. } = address(node);
        let zone = self.scenario.cluster.zones[usize::from(self.plan.zones[usize::from(node)])].clone();
        let capacity = self.capacity;
        let device = DeviceId(u128::from(id(node).0));
        let devices = vec![DeviceRecord { device, lost: false, boot, boot_id, capacity }];
        let record = NodeRecord { zone, primary, replication, shards: 1, devices };
        StoredRecord { key: Key::Node(id(node)), version: 1, value: Value::Node(record) }
    }

    fn add_segments(&mut self, range: std::ops::Range<usize>, records: &mut Vec<StoredRecord>) {
        let cluster = &self.scenario.cluster;
        let hit = self.scenario.hit_zone();
        let size = cluster.segment_size.0;
        for (at, segment) in range.clone().enumerate() {
            let members: Vec<NodeId> = self.plan.members(segment).iter().map(|node| id(*node)).collect();
            let number = segment_id(at);
            if number.index == 0 {
                let left = u64::try_from(range.len() - at).unwrap_or(u64::MAX).min(u64::from(VOLUME_SEGMENTS));
                let zone = &cluster.zones[usize::from(self.plan.zones[index(members[0])])];
                let record = VolumeRecord {
                    name: format!("v{}", number.volume.0),
                    segment_size: size,
                    copies: cluster.copies,
                    min_copies: cluster.min_copies,
                    spread: cluster.spread,
                    zone: (cluster.spread == Spread::Node).then(|| zone.clone()),
                    state: VolumeState::Ready,
                    layout: Layout::new(left * size, size),
                    growing: None,
                    generation: Generation(1),
                    attached: Some("client".into()),
                    limits: VolumeLimits::default(),
                    life: Incarnation(1),
                };
                records.push(StoredRecord {
                    key: Key::Volume(number.volume),
                    version: 1,
                    value: Value::Volume(record),
                });
            }
            let config = Config {
                segment: number,
                incarnation: Incarnation(1),
                epoch: Epoch(1),
                primary: members[0],
                electable: members.clone(),
                candidates: Vec::new(),
                former: Vec::new(),
                generation: Generation(1),
                copies: cluster.copies,
                min_copies: cluster.min_copies,
                extents: self.extents,
                members,
            };
            let at = u32::try_from(segment).unwrap_or(u32::MAX);
            for node in &config.members {
                let place = &mut self.nodes[index(*node)];
                place.holds.insert(at);
                place.booked += u64::from(self.extents);
            }
            self.segments.push(Segment::new(config.clone(), self.plan.is_counted(segment, hit)));
            let record = SegmentRecord { config, fresh: Vec::new(), recovering: false };
            records.push(StoredRecord { key: Key::Segment(number), version: 1, value: Value::Segment(record) });
        }
    }

    /// A node comes to its authority, which was told everything before anything goes wrong.
    fn enlist(&mut self, node: u16) {
        let mut effects = Effects::new();
        let now = self.now;
        for input in self.registration(node) {
            let cell = usize::from(self.nodes[usize::from(node)].cell);
            self.seats[cell].authority.handle(now, input, &mut effects);
        }
        effects.drain();
    }

    fn registration(&mut self, node: u16) -> Vec<Input> {
        self.sessions += 1;
        let session = SessionRef(self.sessions);
        self.nodes[usize::from(node)].session = self.sessions;
        let registration = Registration {
            address: address(node),
            zone: self.scenario.cluster.zones[usize::from(self.plan.zones[usize::from(node)])].clone(),
            devices: vec![DeviceOpened {
                device: DeviceId(u128::from(id(node).0)),
                boot: BootCount(1),
                openings: Box::new(Openings { taken: Some(opening(node)), ..Openings::default() }),
                capacity: self.capacity,
            }],
            absent: Vec::new(),
            revision: Revision(0),
        };
        let mut inputs = vec![Input::Register { session, boot: opening(node).id, registration }];
        let held: Vec<ReplicaReport> =
            self.nodes[usize::from(node)].holds.iter().map(|at| self.replica(node, *at)).collect();
        let parts = held.len().div_ceil(LIST_MAX).max(1);
        for (number, part) in held.chunks(LIST_MAX).enumerate() {
            let message = ToAuthority::Replicas { part: part.to_vec(), last: number + 1 == parts };
            inputs.push(Input::Node { session, message });
        }
        if held.is_empty() {
            inputs.push(Input::Node { session, message: ToAuthority::Replicas { part: Vec::new(), last: true } });
        }
        inputs
    }

    /// A former member does not know yet that it is one.
    fn replica(&self, node: u16, at: u32) -> ReplicaReport {
        let config = &self.segments[at as usize].config;
        let (epoch, standing) = if config.is_candidate(id(node)) {
            (config.epoch, Standing::Candidate { base: Seq(0) })
        } else if config.is_member(id(node)) {
            (config.epoch, Standing::Member)
        } else {
            (Epoch(1), Standing::Member)
        };
        let (segment, incarnation) = (config.segment, config.incarnation);
        ReplicaReport { segment, incarnation, epoch, log_epoch: epoch, standing, commit: Seq(0), last: Seq(0) }
    }

    pub(super) fn session_ends(&mut self, node: u16, cut_at: Time) {
        let place = &mut self.nodes[usize::from(node)];
        let lost = place.cut_at == cut_at && (!place.up || place.back_at >= cut_at) && place.session != 0;
        if lost && !place.up {
            let (cell, session) = (place.cell, std::mem::take(&mut place.session));
            self.tell(cell, Input::Gone(SessionRef(session)));
        }
    }

    pub(super) fn register_again(&mut self, node: u16, back_at: Time) {
        let place = &self.nodes[usize::from(node)];
        if !place.up || place.back_at != back_at || place.session != 0 {
            return; // away again, or its connection lived through it
        }
        let cell = place.cell;
        if self.seats[usize::from(cell)].is_stopped {
            return self.after(Span::seconds(1), Event::Register(node, back_at));
        }
        let inputs = self.registration(node);
        inputs.into_iter().for_each(|input| self.tell(cell, input));
    }

    pub(super) fn stop_cells(&mut self, zone: usize, stopped: bool) {
        for cell in self.cells_of(zone) {
            let seat = &mut self.seats[usize::from(cell)];
            seat.is_stopped = stopped;
            seat.troubled_at = self.now;
            if !stopped {
                self.turn_soon(cell);
            }
        }
    }

    fn cells_of(&self, zone: usize) -> Vec<u16> {
        let has = |seat: &Seat| seat.nodes.iter().any(|node| usize::from(self.plan.zones[usize::from(*node)]) == zone);
        (0..).zip(&self.seats).filter(|(_, seat)| has(seat)).map(|(cell, _)| cell).collect()
    }

    pub(super) fn cell_hears(&mut self, cell: u16, session: u64, message: ToAuthority) {
        // A stopped one loses what is said; nodes say it again.
        if !self.seats[usize::from(cell)].is_stopped {
            self.tell(cell, Input::Node { session: SessionRef(session), message });
        }
    }

    fn tell(&mut self, cell: u16, input: Input) {
        let now = self.now;
        let seat = &mut self.seats[usize::from(cell)];
        seat.inbox.push(input);
        seat.count(now, 1);
        seat.queue_most = seat.queue_most.max(seat.inbox.len() as u64);
        self.turn_soon(cell);
    }

    fn turn_soon(&mut self, cell: u16) {
        let now = self.now;
        let seat = &mut self.seats[usize::from(cell)];
        if !seat.is_stopped && !seat.inbox.is_empty() && !std::mem::replace(&mut seat.turn_due, true) {
            let at = seat.busy_until.max(now);
            self.at(at, Event::CellTurn(cell));
        }
    }

    pub(super) fn cell_turns(&mut self, cell: u16) {
        let now = self.now;
        let seat = &mut self.seats[usize::from(cell)];
        seat.turn_due = false;
        if seat.is_stopped {
            return;
        }
        let inputs = std::mem::take(&mut seat.inbox);
        let mut effects = Effects::new();
        let mut cost = Span::ZERO;
        for input in inputs {
            let parts =
                if let Input::Node { message: ToAuthority::Proposals(all), .. } = &input { all.len() } else { 1 };
            cost = Span(cost.0 + PER_MESSAGE.0 * parts as u64);
            seat.authority.handle(now, input, &mut effects);
        }
        self.carry_out(cell, cost, effects.drain().collect());
    }

    /// Runs what the authority wants done, once it is durable.
    fn carry_out(&mut self, cell: u16, cost: Span, list: Vec<Effect>) {
        let saves = list.iter().any(|effect| matches!(effect, Effect::Save(_)));
        let seat = &mut self.seats[usize::from(cell)];
        let done = seat.busy_until.max(self.now) + cost + if saves { COMMIT } else { Span::ZERO };
        seat.busy_until = done;
        for effect in list {
            match effect {
                Effect::Send { to, message } => {
                    let session = self.nodes[index(to)].session;
                    // Where everybody is does not change here.
                    if session != 0 && !matches!(message, FromAuthority::Nodes(_)) {
                        self.at(done + DELAY, Event::FromCell(to.0 - 1, session, Box::new(message)));
                    }
                }
                Effect::Answer { call, result } => self.answered(cell, call, done + DELAY, result.ok()),
                Effect::Refuse { reason, .. } => panic!("a node of the simulation is refused: {reason}"),
                Effect::Save(_) | Effect::Accept { .. } | Effect::Log(_) => {}
            }
        }
    }

    /// A tenth of a second: a tenth of the nodes report; time passes for the authority.
    pub(super) fn cell_ticks(&mut self, cell: u16) {
        let now = self.now;
        self.after(AUTHORITY_TICK, Event::CellTick(cell));
        let seat = &mut self.seats[usize::from(cell)];
        seat.ticks += 1;
        if seat.is_stopped {
            return;
        }
        let mut effects = Effects::new();
        let group = usize::try_from(seat.ticks % GROUPS).unwrap_or_default();
        let mut reports = 0;
        for node in seat.nodes.iter().skip(group).step_by(usize::try_from(GROUPS).unwrap_or(1)) {
            let place = &self.nodes[usize::from(*node)];
            if place.up && place.session != 0 {
                let report = Report {
                    booked: place.booked,
                    replicas: u32::try_from(place.holds.len()).unwrap_or(u32::MAX),
                    copied_bytes: place.copied,
                    ..Report::default()
                };
                let message = ToAuthority::Report(report);
                seat.authority.handle(now, Input::Node { session: SessionRef(place.session), message }, &mut effects);
                reports += 1;
            }
        }
        seat.count(now, reports);
        let troubled = seat.trouble > 0 || now.since(seat.troubled_at) < AFTERMATH;
        if troubled || seat.ticks.is_multiple_of(CALM_TICKS) {
            seat.authority.handle(now, Input::Tick, &mut effects);
        }
        self.carry_out(cell, Span(reports * PER_MESSAGE.0), effects.drain().collect());
    }

    /// What the authority says reaches a node.
    pub(super) fn node_hears(&mut self, node: u16, message: FromAuthority) {
        let now = self.now;
        let cell = usize::from(self.nodes[usize::from(node)].cell);
        self.nodes[usize::from(node)].gather.hear(&message);
        match message {
            FromAuthority::Decisions(decisions) => {
                for decision in decisions {
                    let Some(at) = self.seats[cell].segment(decision.segment()) else { continue };
                    match decision {
                        Decision::Installed(config) | Decision::Conflict(config) => self.adopt(at, &config),
                        Decision::Denied(config, _) => {
                            self.adopt(at, &config);
                            self.denied(at);
                        }
                        Decision::Unknown(_) => {}
                    }
                }
                self.pump(node);
            }
            FromAuthority::Create { config } => {
                self.nodes[usize::from(node)].booked += u64::from(config.extents);
                let (segment, incarnation) = (config.segment, config.incarnation);
                self.say(node, ToAuthority::Created { segment, incarnation, result: Ok(()) });
            }
            FromAuthority::Reserve { permit, segment, extents } => {
                let place = &mut self.nodes[usize::from(node)];
                let free = self.capacity.saturating_sub(place.booked);
                let granted = place.book.reserve(now, permit, segment, u64::from(extents), free);
                self.say(node, ToAuthority::Reserved { permit, segment, granted });
            }
            FromAuthority::Granted { segment, permit, target } => {
                if let Some(at) = self.seats[cell].segment(segment) {
                    self.granted(at, node, permit, target);
                }
            }
            FromAuthority::HandOver { segment, epoch, to } => self.hand_over(node, segment, epoch, to),
            FromAuthority::Release { segment, incarnation } => {
                let known = self.seats[cell].segment(segment);
                let place = &mut self.nodes[usize::from(node)];
                if known.is_none_or(|at| place.holds.remove(&at)) {
                    place.booked = place.booked.saturating_sub(u64::from(self.extents));
                }
                self.say(node, ToAuthority::Released { segment, incarnation });
            }
            _ => {}
        }
    }

    /// A segment that is well changes its primary.
    fn hand_over(&mut self, node: u16, segment: SegmentId, epoch: Epoch, to: NodeId) {
        let now = self.now;
        let Some(at) = self.seats[usize::from(self.nodes[usize::from(node)].cell)].segment(segment) else { return };
        let config = &self.segments[at as usize].config;
        if config.epoch != epoch || config.primary != id(node) || !config.is_member(to) || !self.is_linked(id(node), to)
        {
            return;
        }
        let wanted = Config { epoch: epoch.next(), primary: to, ..config.clone() };
        let proposal = Proposal { expected: epoch, config: wanted, promised: false };
        self.nodes[usize::from(node)].gather.take(now, ToAuthority::Proposals(vec![proposal]));
        self.pump(node);
    }

    pub(super) fn until_next_call(&mut self) -> Span {
        let mean = float(Span::seconds(1).0) / self.scenario.api.creates_per_second;
        Span(whole(mean / 2.0) + self.random.between(0, whole(mean)))
    }

    /// Somebody wants a volume in this zone.
    pub(super) fn calls(&mut self, zone: u16) {
        let next = self.until_next_call();
        self.after(next, Event::Call(zone));
        let cells = self.cells_of(usize::from(zone));
        let cell = cells[usize::try_from(self.random.between(0, cells.len() as u64 - 1)).unwrap_or_default()];
        let cluster = &self.scenario.cluster;
        let now = self.now;
        let seat = &mut self.seats[usize::from(cell)];
        seat.last_call += 1;
        let call = CallId(seat.last_call);
        seat.calls.insert(call, (now, usize::from(zone)));
        let request = CreateVolume {
            name: format!("call-{}", call.0),
            size: cluster.segment_size.0,
            copies: Some(cluster.copies),
            min_copies: Some(cluster.min_copies),
            segment_size: Some(cluster.segment_size.0),
            zone: (cluster.spread == Spread::Node).then(|| cluster.zones[usize::from(zone)].clone()),
            spread: Some(cluster.spread),
            iops: None,
            mibps: None,
        };
        self.tell(cell, Input::Call { call, request: Call::Create(request) });
    }

    /// What was made is deleted again: the cluster stays as full as it is.
    fn answered(&mut self, cell: u16, call: CallId, at: Time, answer: Option<Answer>) {
        let seat = &mut self.seats[usize::from(cell)];
        let Some((asked, zone)) = seat.calls.remove(&call) else { return };
        self.recorder.call(zone, self.now, answer.as_ref().map(|_| at.since(asked)).ok_or(()));
        if let Some(Answer::Volume(volume)) = answer {
            seat.last_call += 1;
            let call = CallId(seat.last_call);
            self.tell(cell, Input::Call { call, request: Call::Delete(volume.name) });
        }
    }

    /// Calls nobody answered in time.
    pub(super) fn expire_calls(&mut self) {
        let now = self.now;
        for seat in &mut self.seats {
            for (_, (_, zone)) in seat.calls.extract_if(.., |_, (asked, _)| now.since(*asked) >= HTTP_DEADLINE) {
                self.recorder.call(zone, now, Err(()));
            }
        }
    }
}

fn address(node: u16) -> NodeAddress {
    let node = id(node);
    NodeAddress { node, primary: format!("{node}:1"), replication: format!("{node}:2"), shards: 1 }
}
