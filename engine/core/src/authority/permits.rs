//! Permits: leave to run one re-mirror. They keep the cluster's copying bounded (I15, R4, R5).
//!
//! A primary asks; the ask is parked until caps and space allow it, holding nothing. Then a target is chosen and asked
//! to reserve the space; only with the reservation in hand the primary hears `Granted`: both or neither. Progress
//! renews, silence ends. Asks are looked through when something changed, never polled; the most endangered first.

use alloc::collections::BTreeMap;
use alloc::format;
use alloc::string::{String, ToString};
use alloc::vec::Vec;

use super::Authority;
use super::document::Spread;
use super::io::Effects;
use super::placement::{Need, Purpose, Room, choose};
use crate::config::Config;
use crate::ids::{NodeId, PermitId, SegmentId};
use crate::limits::{
    PARKED_MAX, PERMIT_ASKS_MAX, PERMIT_LOOKS_MAX, PERMIT_TTL, PERMITS_PER_SOURCE, PERMITS_PER_TARGET, RESERVE_WAIT,
};
use crate::message::{Decision, FromAuthority, PermitAsk};
use crate::random::mix;
use crate::sabotage::{Invariant, breaks};
use crate::time::{Span, Time};

#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum State {
    /// The target was asked for the space.
    Reserving,
    /// Space reserved, primary told.
    Granted,
}

#[derive(Debug, Clone)]
struct Permit {
    id: PermitId,
    source: NodeId,
    target: NodeId,
    zone: String,
    /// Beyond what configurations book.
    extents: u32,
    state: State,
    renewed: Time,
}

/// An ask that waits.
#[derive(Debug, Clone)]
struct Ask {
    source: NodeId,
    since: Time,
    asked: Time,
    /// Nodes that had no space for it or did not answer, until then.
    refused: BTreeMap<NodeId, Time>,
    why: String,
}

/// All permits and parked asks. Volatile: after a restart primaries ask again.
#[derive(Debug, Clone)]
pub(super) struct Permits {
    last: u64,
    running: BTreeMap<SegmentId, Permit>,
    parked: BTreeMap<SegmentId, Ask>,
    look: bool,
}

impl Permits {
    /// No permits yet; ids begin at a place no other run of the authority began at.
    pub(super) fn new(seed: u64) -> Self {
        Self { last: mix(seed) >> 8, running: BTreeMap::new(), parked: BTreeMap::new(), look: false }
    }

    /// Something changed that may let a parked ask through.
    pub(super) fn look_again(&mut self) {
        self.look = true;
    }

    /// Where this segment's granted re-mirror goes.
    pub(super) fn target(&self, segment: SegmentId) -> Option<NodeId> {
        self.running.get(&segment).filter(|permit| permit.state == State::Granted).map(|permit| permit.target)
    }

    /// Extents promised on `node` that no configuration books yet.
    pub(super) fn reserved(&self, node: NodeId) -> u64 {
        self.running.values().filter(|permit| permit.target == node).map(|permit| u64::from(permit.extents)).sum()
    }

    /// Progress was reported.
    pub(super) fn renew(&mut self, segment: SegmentId, target: NodeId, now: Time) {
        if let Some(permit) = self.running.get_mut(&segment).filter(|permit| permit.target == target) {
            permit.renewed = now;
        }
    }

    pub(super) fn parked(&self) -> u64 {
        self.parked.len() as u64
    }

    /// What this segment's ask or permit waits for.
    pub(super) fn state_of(&self, segment: SegmentId, barred: Option<&str>) -> Option<String> {
        if let Some(permit) = self.running.get(&segment) {
            let what = match permit.state {
                State::Reserving => "space is being reserved on",
                State::Granted => "a copy is being made on",
            };
            return Some(format!("{what} {} ({})", permit.target, permit.id));
        }
        self.parked.get(&segment).map(|ask| format!("its re-mirror is parked: {}", barred.unwrap_or(&ask.why)))
    }

    /// The segment is gone.
    pub(super) fn forget(&mut self, segment: SegmentId) {
        self.running.remove(&segment);
        self.parked.remove(&segment);
        self.look = true;
    }

    /// A target that was asked for space has left: ask another.
    pub(super) fn target_gone(&mut self, node: NodeId) {
        for permit in self.running.values_mut().filter(|p| p.target == node && p.state == State::Reserving) {
            permit.renewed = Time(0);
        }
    }

    pub(super) fn clear(&mut self) {
        self.running.clear();
        self.parked.clear();
    }

    fn room_for(&self, source: NodeId) -> Result<(), String> {
        let running = self.running.values().filter(|permit| permit.source == source).count();
        if running >= PERMITS_PER_SOURCE {
            return Err(format!("{source} is the source of {running} re-mirrors already"));
        }
        Ok(())
    }

    fn target_is_free(&self, room: &Room<'_>, per_zone: usize) -> bool {
        let of_target = self.running.values().filter(|permit| permit.target == room.node).count();
        let of_zone = self.running.values().filter(|permit| permit.zone == room.zone).count();
        of_target < PERMITS_PER_TARGET && of_zone < per_zone
    }
}

impl Authority {
    pub(super) fn on_permit_asks(&mut self, now: Time, source: NodeId, asks: &[PermitAsk], effects: &mut Effects) {
        for ask in asks.iter().take(PERMIT_ASKS_MAX) {
            self.on_permit_ask(now, source, *ask, effects);
        }
    }

    fn on_permit_ask(&mut self, now: Time, source: NodeId, ask: PermitAsk, effects: &mut Effects) {
        let PermitAsk { segment, epoch, members: _ } = ask;
        let Some(record) = self.books.segments().get(&segment) else { return };
        let config = &record.config;
        let right = config.primary == source && config.epoch == epoch && config.searched() > 0;
        if config.primary == source && config.epoch != epoch {
            // It has not heard of what was changed by hand.
            let known = Config { generation: self.books.volumes()[&segment.volume].generation, ..config.clone() };
            return effects.send(source, FromAuthority::Decisions(alloc::vec![Decision::Conflict(known)]));
        }
        if self.stands_still() || !right {
            return;
        }
        // Asked again, or by a new primary, which carries on under the same permit.
        if let Some(permit) = self.permits.running.get_mut(&segment) {
            permit.source = source;
            if permit.state == State::Granted {
                let (permit, target) = (permit.id, permit.target);
                effects.send(source, FromAuthority::Granted { segment, permit, target });
            }
            return;
        }
        if let Some(ask) = self.permits.parked.get_mut(&segment) {
            (ask.source, ask.asked) = (source, now);
            return;
        }
        if self.permits.parked.len() >= PARKED_MAX {
            self.make_place(now, segment);
        }
        if self.permits.parked.len() < PARKED_MAX {
            let why = "just asked for".to_string();
            let fresh = Ask { source, since: now, asked: now, refused: BTreeMap::new(), why };
            self.permits.parked.insert(segment, fresh);
            self.permits.look = true;
        }
    }

    /// The least endangered of the parked asks gives way to a segment that is more so; it asks again.
    fn make_place(&mut self, now: Time, segment: SegmentId) {
        let least = self.permits.parked.iter().map(|(parked, ask)| (self.urgency(*parked, ask.since), *parked)).max();
        if let Some((_, other)) = least.filter(|(urgency, _)| self.urgency(segment, now) < *urgency) {
            self.permits.parked.remove(&other);
        }
    }

    /// Who comes first: the lower, the sooner.
    fn urgency(&self, segment: SegmentId, since: Time) -> (bool, usize, Time) {
        let config = self.books.segments().get(&segment).map(|record| &record.config);
        config.map_or((true, usize::MAX, since), |config| (config.may_commit(), config.members.len(), since))
    }

    /// Looks through parked asks if something changed, ends what nobody renewed.
    pub(super) fn tick_permits(&mut self, now: Time, effects: &mut Effects) {
        let overdue: Vec<SegmentId> = self
            .permits
            .running
            .iter()
            .filter(|(_, permit)| {
                let limit = if permit.state == State::Reserving { RESERVE_WAIT } else { PERMIT_TTL };
                now.since(permit.renewed) >= limit
            })
            .map(|(segment, _)| *segment)
            .collect();
        for segment in overdue {
            self.overdue(now, segment, effects);
        }
        let books = &self.books;
        let before = self.permits.parked.len();
        self.permits.parked.retain(|segment, ask| {
            let wanted = books
                .segments()
                .get(segment)
                .is_some_and(|r| r.config.primary == ask.source && r.config.searched() > 0);
            ask.refused.retain(|_, until| now < *until);
            wanted && now.since(ask.asked) < PERMIT_TTL
        });
        // A node that had no space a while ago may have some now: look about once per such while.
        let waited = self.permits.parked.values().any(|ask| now.since(ask.asked) < crate::limits::AUTHORITY_TICK);
        if core::mem::take(&mut self.permits.look) || waited || before != self.permits.parked.len() {
            self.look_through(now, effects);
        }
    }

    fn overdue(&mut self, now: Time, segment: SegmentId, effects: &mut Effects) {
        let Some(permit) = self.permits.running.get_mut(&segment) else { return };
        let candidate =
            self.books.segments().get(&segment).is_some_and(|record| record.config.is_candidate(permit.target));
        if permit.state == State::Granted && candidate && self.is_up_node(now, segment) {
            if let Some(permit) = self.permits.running.get_mut(&segment) {
                permit.renewed = now;
            }
            return;
        }
        self.pass_over(now, segment, "did not answer", effects);
    }

    fn is_up_node(&self, now: Time, segment: SegmentId) -> bool {
        self.permits.running.get(&segment).is_some_and(|permit| self.is_up(now, permit.target))
    }

    /// This target is not to be: park the ask again, without that node for a while.
    fn pass_over(&mut self, now: Time, segment: SegmentId, why: &str, effects: &mut Effects) {
        let Some(permit) = self.permits.running.get(&segment).cloned() else { return };
        self.end_permit(segment, effects);
        if permit.state == State::Reserving {
            let why = format!("{} {why}", permit.target);
            let refused = [(permit.target, now + PERMIT_TTL)].into();
            self.permits.parked.insert(segment, Ask { source: permit.source, since: now, asked: now, refused, why });
        }
    }

    /// The breaker is open: who was not told of a permit yet is not, and its ask waits with the others.
    pub(super) fn take_back_reserved(&mut self, now: Time) {
        let reserving = |(_, permit): &(&SegmentId, &Permit)| permit.state == State::Reserving;
        let taken: Vec<SegmentId> = self.permits.running.iter().filter(reserving).map(|(id, _)| *id).collect();
        for segment in taken {
            let Some(permit) = self.permits.running.remove(&segment) else { continue };
            let why = "the breaker opened".to_string();
            let ask = Ask { source: permit.source, since: now, asked: now, refused: BTreeMap::new(), why };
            self.permits.parked.insert(segment, ask);
        }
    }

    /// Ends a permit. What its target may have begun and no configuration names is dropped again.
    fn end_permit(&mut self, segment: SegmentId, effects: &mut Effects) {
        let Some(permit) = self.permits.running.remove(&segment) else { return };
        self.permits.look = true;
        let Some(record) = self.books.segments().get(&segment) else { return };
        let config = &record.config;
        if permit.state == State::Granted && !config.holders().any(|node| node == permit.target) {
            effects.send(permit.target, FromAuthority::Release { segment, incarnation: config.incarnation });
        }
    }

    fn look_through(&mut self, now: Time, effects: &mut Effects) {
        let per_zone = self.breaker.allows(now);
        if per_zone == 0 {
            return; // they stay parked, and hold nothing
        }
        let parked = self.permits.parked.iter();
        let mut asks: Vec<_> = parked.map(|(segment, ask)| (self.urgency(*segment, ask.since), *segment)).collect();
        asks.sort_unstable();
        // Whoever is behind these waits for the next look: when many wait, caps are what they wait for.
        for (_, segment) in asks.into_iter().take(PERMIT_LOOKS_MAX) {
            match self.try_reserve(now, segment, per_zone) {
                Ok(permit) => {
                    let extents = self.books.segments()[&segment].config.extents;
                    let reserve = FromAuthority::Reserve { permit: permit.id, segment, extents };
                    effects.send(permit.target, reserve);
                    self.permits.parked.remove(&segment);
                    self.permits.running.insert(segment, permit);
                }
                Err(why) => {
                    if let Some(ask) = self.permits.parked.get_mut(&segment) {
                        ask.why = why;
                    }
                }
            }
        }
    }

    fn try_reserve(&mut self, now: Time, segment: SegmentId, per_zone: usize) -> Result<Permit, String> {
        let ask = &self.permits.parked[&segment];
        self.permits.room_for(ask.source)?;
        let config = &self.books.segments()[&segment].config;
        if let Some(why) = self.may_come_back(now, config) {
            return Err(why);
        }
        let volume = &self.books.volumes()[&segment.volume];
        let holders = config.holders().filter(|node| !self.may_begin_again(config, *node));
        let mut without: Vec<NodeId> = holders.chain(ask.refused.keys().copied()).collect();
        without.extend(self.books.nodes_releasing(segment));
        let zone_of = |node: &NodeId| self.books.nodes().get(node).map(|record| record.zone.as_str());
        let taken: Vec<&str> = config.members.iter().chain(&config.candidates).filter_map(zone_of).collect();
        let booked = |node| if config.holders().any(|holder| holder == node) { config.extents } else { 0 };
        let mut all: Vec<Room<'_>> = self.rooms(now).collect();
        all.iter_mut().for_each(|room| room.booked = room.booked.saturating_sub(u64::from(booked(room.node))));
        let free: Vec<Room<'_>> =
            all.iter().copied().filter(|room| self.permits.target_is_free(room, per_zone)).collect();
        let need = Need {
            copies: 1,
            extents: config.extents,
            spread: if volume.zone.is_some() { Spread::Node } else { volume.spread },
            zone: volume.zone.as_deref(),
            without: &without,
            taken: &taken,
            purpose: Purpose::Remirror,
            seed: mix(segment.to_u64() ^ self.seed),
        };
        let target = match (choose(&free, &need), choose(&all, &need)) {
            (Ok(chosen), _) => chosen[0],
            (Err(_), Ok(_)) => return Err("every node with room is the target of as many re-mirrors as allowed".into()),
            (Err(_), Err(none)) => return Err(format!("no space: {none}")),
        };
        let zone = zone_of(&target).unwrap_or_default().to_string();
        let (source, extents) = (ask.source, config.extents - booked(target));
        self.permits.last += 1;
        let id = PermitId(self.permits.last);
        Ok(Permit { id, source, target, zone, extents, state: State::Reserving, renewed: now })
    }

    /// Who has just come back comes back by catch-up: no copy is made elsewhere before it had its time for that (R5).
    fn may_come_back(&self, now: Time, config: &Config) -> Option<String> {
        if breaks(Invariant::Breaker) {
            return None;
        }
        let out = config.holders().filter(|node| config.is_out(*node));
        out.filter(|node| self.is_up(now, *node) && !self.has_nothing_of(*node, config.segment)).find_map(|node| {
            let back = now.since(self.presence.get(&node)?.since?);
            let left = self.settings.grace.0.saturating_sub(back.0);
            let left = Span(left).as_millis().div_ceil(1000);
            let why = || {
                format!(
                    "{node} is back since {} s and may be caught up; in {left} s a copy is made elsewhere",
                    back.as_millis() / 1000
                )
            };
            (left > 0).then(why)
        })
    }

    /// Whether a former member says that it holds nothing of the segment any more: its space is booked still, and a copy
    /// made there anew takes it. Where every other node is full, or has a copy, there is no other place for one.
    fn may_begin_again(&self, config: &Config, node: NodeId) -> bool {
        config.is_out(node) && self.has_nothing_of(node, config.segment)
    }

    pub(super) fn on_reserved(
        &mut self,
        now: Time,
        node: NodeId,
        id: PermitId,
        segment: SegmentId,
        granted: bool,
        effects: &mut Effects,
    ) {
        let Some(permit) = self.permits.running.get_mut(&segment) else { return };
        if permit.id != id || permit.target != node || permit.state != State::Reserving {
            return;
        }
        if !granted {
            return self.pass_over(now, segment, "had no space", effects);
        }
        permit.state = State::Granted;
        permit.renewed = now;
        effects.send(permit.source, FromAuthority::Granted { segment, permit: id, target: node });
        let life = self.books.segments().get(&segment).map(|record| record.config.incarnation);
        if let (Some(life), Some(presence)) = (life, self.presence.get_mut(&node)) {
            presence.begins(segment, life);
        }
    }

    pub(super) fn on_permit_end(&mut self, node: NodeId, segment: SegmentId, id: PermitId, effects: &mut Effects) {
        if self.permits.running.get(&segment).is_some_and(|permit| permit.id == id && permit.source == node) {
            self.end_permit(segment, effects);
        }
    }

    /// A new configuration: its copies may be complete, or the target may have joined.
    pub(super) fn permit_follows(&mut self, now: Time, config: &Config, effects: &mut Effects) {
        let segment = config.segment;
        let whole = config.missing() == 0;
        if config.searched() == 0 {
            self.permits.parked.remove(&segment);
        }
        let Some(permit) = self.permits.running.get_mut(&segment) else { return };
        if whole || config.is_member(permit.target) {
            if config.is_member(permit.target) {
                self.breaker.copied();
            }
            self.end_permit(segment, effects);
        } else if config.is_candidate(permit.target) {
            permit.renewed = now;
            permit.extents = 0; // from now on the configuration books them
        }
    }
}
