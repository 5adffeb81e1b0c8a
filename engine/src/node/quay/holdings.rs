//! Replicas that begin here and replicas that end here, and the space for them.
//!
//! Invariants: a replica begins only where its whole length is free of other bookings and promises (I13); it ends
//! only because the authority said so for this very life of it (I11, I12).

use std::collections::BTreeSet;

use engine_core::config::Config;
use engine_core::ids::{Incarnation, NodeId, PermitId, SegmentId};
use engine_core::limits::CREATING_HELD_MAX;
use engine_core::message::{Lane, Peer, ToAuthority};
use engine_core::record::{Meta, Record};
use engine_core::remirror::newcomer::{self, Newcomer};
use engine_core::replica::Replica;
use engine_core::replica::io::Input;
use engine_core::sabotage::{Invariant, breaks};
use engine_core::time::Time;

use super::{Quay, Slot, Waiting, Wires};
use crate::store::Store;

/// A replica whose first record is not durable yet.
pub(super) struct Creating {
    meta: Meta,
    /// The authority waits for `Created`.
    for_authority: bool,
    /// What peers said meanwhile.
    held: Vec<(NodeId, Peer)>,
}

impl Creating {
    pub(super) fn incarnation(&self) -> Incarnation {
        self.meta.config.incarnation
    }

    /// Keeps a message until the machine is there.
    pub(super) fn hold(&mut self, from: NodeId, incarnation: Incarnation, body: Peer) {
        if incarnation == self.incarnation() && self.held.len() < CREATING_HELD_MAX {
            self.held.push((from, body));
        }
    }
}

impl<S: Store, W: Wires> Quay<S, W> {
    pub(super) fn create_for_authority(&mut self, now: Time, config: &Config) {
        let (segment, incarnation) = (config.segment, config.incarnation);
        let answer = match self.slots.get_mut(&segment) {
            Some(Slot::Open(open)) if open.incarnation == incarnation => Ok(()),
            Some(Slot::Creating(creating)) if creating.incarnation() == incarnation => {
                creating.for_authority = true;
                return;
            }
            Some(_) => Err("another life of this segment is here".into()),
            None => match newcomer::created(self.node, config) {
                Ok(meta) => match self.begin(now, meta, true, Vec::new()) {
                    Ok(()) => return,
                    Err(reason) => Err(reason),
                },
                Err(reason) => Err(reason.into()),
            },
        };
        self.wires.authority(ToAuthority::Created { segment, incarnation, result: answer });
    }

    /// A peer's message for a segment that is not here.
    pub(super) fn on_peer_of_nothing(
        &mut self,
        now: Time,
        from: NodeId,
        segment: SegmentId,
        incarnation: Incarnation,
        body: Peer,
    ) {
        match newcomer::receive(self.node, &body) {
            Newcomer::Ignore => {}
            Newcomer::Answer(answer) => self.send(from, Lane::Live, segment, incarnation, answer),
            Newcomer::Begin(meta) if meta.config.segment != segment || meta.config.incarnation != incarnation => {}
            Newcomer::Begin(meta) => {
                // The replica books for itself what was promised to it.
                self.reservations.take(now, segment);
                if let Err(reason) = self.begin(now, meta, false, vec![(from, body)]) {
                    tracing::warn!(%segment, %reason, "a copy cannot begin here");
                }
            }
        }
    }

    /// Writes a replica's first record, if its whole length is free.
    fn begin(&mut self, now: Time, meta: Meta, for_authority: bool, held: Vec<(NodeId, Peer)>) -> Result<(), String> {
        let segment = meta.config.segment;
        let needed = u64::from(meta.config.extents);
        let free = self.unbooked().saturating_sub(self.reservations.held(now));
        if let Some(reason) = &self.failed {
            return Err(format!("the device failed: {reason}"));
        }
        if needed > free {
            return Err(format!(
                "no space: {needed} extents needed, {free} of {} free in shard {}",
                self.store.space().capacity,
                self.shard
            ));
        }
        if !self.wires.begins(segment) {
            return Err("another device of this node has a copy of it".into());
        }
        tracing::info!(%segment, epoch = %meta.config.epoch, "a replica begins here");
        let ticket = self.wait_for(Waiting::Create(segment));
        self.store.persist(vec![Record::Create { segment, meta: meta.clone() }], ticket);
        self.slots.insert(segment, Slot::Creating(Creating { meta, for_authority, held }));
        Ok(())
    }

    /// Extents no replica has booked. Promises are counted apart.
    fn unbooked(&self) -> u64 {
        if breaks(Invariant::I13) { self.store.space().capacity } else { self.store.unbooked() }
    }

    pub(super) fn created(&mut self, now: Time, segment: SegmentId) {
        let Some(Slot::Creating(_)) = self.slots.get(&segment) else { return };
        let Some(Slot::Creating(creating)) = self.slots.remove(&segment) else { return };
        let incarnation = creating.incarnation();
        if creating.for_authority {
            self.wires.authority(ToAuthority::Created { segment, incarnation, result: Ok(()) });
        }
        let seed = self.random.next_u64();
        self.start_machine(now, Replica::create(self.node, segment, creating.meta, self.grace, now, seed));
        for (from, message) in creating.held {
            self.handle(now, segment, Input::Peer { from, message });
        }
    }

    pub(super) fn reserve(&mut self, now: Time, permit: PermitId, segment: SegmentId, extents: u32) {
        let free = self.unbooked();
        // A copy that has begun holds its space already.
        let here = self.slots.contains_key(&segment);
        let granted = self.failed.is_none()
            && (here || self.reservations.reserve(now, permit, segment, u64::from(extents), free));
        self.wires.authority(ToAuthority::Reserved { permit, segment, granted });
    }

    pub(super) fn release(&mut self, now: Time, segment: SegmentId, incarnation: Incarnation) {
        let here = match self.slots.get(&segment) {
            Some(Slot::Open(open)) => Some(open.incarnation),
            Some(Slot::Creating(creating)) => Some(creating.incarnation()),
            Some(Slot::Dropping) => return,
            None => None,
        };
        if here != Some(incarnation) {
            // Nothing of that life is here: what was asked for is so already.
            return self.wires.authority(ToAuthority::Released { segment, incarnation });
        }
        tracing::info!(%segment, "the replica here is no longer needed; it is dropped");
        // Whoever waits at it hears that it goes.
        self.handle(now, segment, Input::Stopping);
        if let Some(Slot::Open(open)) = self.slots.insert(segment, Slot::Dropping) {
            self.schedule.forget(open.alarm, segment);
            self.fair.ended(now, segment.volume, open.in_hand);
            self.wanted.exchange(&open.peers, &BTreeSet::new());
        }
        let ticket = self.wait_for(Waiting::Drop(segment, incarnation));
        self.store.persist(vec![Record::Drop { segment, incarnation }], ticket);
    }

    /// A person said that the copy here counts, in a new life of its segment (I11).
    pub(super) fn recover(&mut self, now: Time, config: Config) {
        let (segment, incarnation) = (config.segment, config.incarnation);
        let Some(Slot::Open(open)) = self.slots.get_mut(&segment) else {
            let result = Err("there is no replica of it here".into());
            return self.wires.authority(ToAuthority::Created { segment, incarnation, result });
        };
        tracing::warn!(%segment, %incarnation, "this copy is taken for whole from now on, as a person said");
        // What is said in the old life is not listened to any more.
        open.incarnation = open.incarnation.max(incarnation);
        self.handle(now, segment, Input::Recover(config));
    }

    pub(super) fn dropped(&mut self, now: Time, segment: SegmentId, incarnation: Incarnation) {
        if matches!(self.slots.get(&segment), Some(Slot::Dropping)) {
            self.slots.remove(&segment);
            self.wires.ended(segment);
            // The store has forgotten it: whatever was still asked of it gets no answer.
            self.forget_waiting(now, |waiting| waiting.segment() == Some(segment));
        }
        self.wires.authority(ToAuthority::Released { segment, incarnation });
    }
}
