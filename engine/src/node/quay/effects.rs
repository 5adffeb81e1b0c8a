//! Running a machine's effects, in order, and taking back what the store has finished.

use engine_core::fair::Cost;
use engine_core::ids::{NodeId, SegmentId};
use engine_core::limits::COPY_PAGE;
use engine_core::message::Peer;
use engine_core::replica::io::{Effect, Input};
use engine_core::time::Time;

use super::{Quay, Slot, Waiting, Wires};
use crate::store::{Event, ReadError, Store, Ticket};

impl<S: Store, W: Wires> Quay<S, W> {
    /// Runs effects of the machine born as `birth`, as long as it is the one that is here.
    pub(super) fn run_effects(
        &mut self,
        now: Time,
        segment: SegmentId,
        birth: u64,
        effects: impl IntoIterator<Item = Effect>,
    ) {
        for effect in effects {
            if !self.is_here(segment, birth) {
                return;
            }
            self.run_effect(now, segment, birth, effect);
        }
    }

    fn is_here(&self, segment: SegmentId, birth: u64) -> bool {
        matches!(self.slots.get(&segment), Some(Slot::Open(open)) if open.birth == birth)
    }

    fn run_effect(&mut self, now: Time, segment: SegmentId, birth: u64, effect: Effect) {
        match effect {
            Effect::Persist { records, then } => {
                let ticket = self.wait_for(Waiting::Then { segment, birth, effects: then, copied: 0 });
                self.store.persist(records, ticket);
            }
            Effect::CopyIn { copy, then } => {
                let copied = copy.blocks.data.len() as u64;
                let ticket = self.wait_for(Waiting::Then { segment, birth, effects: then, copied });
                self.store.copy_in(segment, copy, ticket);
            }
            Effect::Mend { copy, then } => {
                let ticket = self.wait_for(Waiting::Then { segment, birth, effects: then, copied: 0 });
                self.store.mend(segment, copy, ticket);
            }
            Effect::Commit(through) => self.store.commit(segment, through),
            Effect::Read { block, count, purpose } => {
                self.fair.began(now, segment.volume, Cost::of_request(&purpose.request.op));
                let ticket = self.wait_for(Waiting::Read { segment, birth, purpose });
                self.store.read(segment, block, count, ticket);
            }
            Effect::ReadExtent { to, extent } => {
                let ticket = self.wait_for(Waiting::Extent { segment, birth, to, extent });
                self.store.read_extent(segment, extent, ticket);
            }
            Effect::Digest { to, extent } => {
                let ticket = self.wait_for(Waiting::Digest { segment, birth, to, extent });
                self.store.read_extent(segment, extent, ticket);
            }
            Effect::Allocation { block, count, purpose } => {
                let runs = self.store.allocation(segment, block, count);
                self.given_back.push_back((segment, Input::Allocation { purpose, runs }));
            }
            Effect::List { purpose, above, from } => {
                let (listed, next) = self.store.list(segment, above, from, COPY_PAGE);
                self.given_back.push_back((segment, Input::Listed { purpose, from, listed, next }));
            }
            Effect::Send { to, lane, message } => {
                if let Peer::Differs { extent } = message {
                    tracing::warn!(%segment, %extent, member = %to, "a scrub found a member that holds something else");
                }
                if let Some(Slot::Open(open)) = self.slots.get(&segment) {
                    let incarnation = open.incarnation;
                    self.send(to, lane, segment, incarnation, message);
                }
            }
            Effect::Reply { client, reply } => self.wires.client(client, reply),
            Effect::Authority(message) => self.wires.authority(message),
            Effect::Feed(durable) => match self.given_back.back_mut() {
                // One batch makes many entries of a log durable: the last says it all.
                Some((same, Input::Durable(last))) if *same == segment && durable.covers(last) => *last = durable,
                _ => self.given_back.push_back((segment, Input::Durable(durable))),
            },
            Effect::Peers(nodes) => self.set_peers(segment, nodes),
        }
    }

    fn set_peers(&mut self, segment: SegmentId, nodes: Vec<NodeId>) {
        let Some(Slot::Open(open)) = self.slots.get_mut(&segment) else { return };
        let before = std::mem::replace(&mut open.peers, nodes.into_iter().collect());
        for node in open.peers.difference(&before) {
            if self.wires.is_up(*node) {
                self.given_back.push_back((segment, Input::PeerUp(*node)));
            }
        }
        self.wanted.exchange(&before, &open.peers);
    }

    pub(super) fn wait_for(&mut self, waiting: Waiting) -> Ticket {
        self.last_ticket += 1;
        let ticket = Ticket(self.last_ticket);
        self.waiting.insert(ticket, waiting);
        ticket
    }

    /// The store will never answer these.
    pub(super) fn forget_waiting(&mut self, now: Time, which: impl Fn(&Waiting) -> bool) {
        let fair = &mut self.fair;
        self.waiting.retain(|_, waiting| {
            let gone = which(waiting);
            if let (true, Waiting::Read { segment, purpose, .. }) = (gone, &*waiting) {
                fair.ended(now, segment.volume, Cost::of_request(&purpose.request.op));
            }
            !gone
        });
    }

    pub(super) fn on_event(&mut self, now: Time, event: Event) {
        match event {
            Event::Persisted(ticket) | Event::CopiedIn(ticket) => match self.waiting.remove(&ticket) {
                Some(Waiting::Then { segment, birth, effects, copied }) => {
                    self.copied_bytes += copied;
                    self.run_effects(now, segment, birth, effects);
                }
                Some(Waiting::Create(segment)) => self.created(now, segment),
                Some(Waiting::Drop(segment, incarnation)) => self.dropped(now, segment, incarnation),
                Some(Waiting::Distrust) => self.distrusting -= 1,
                _ => {} // its replica is gone
            },
            Event::Read(ticket, result) => {
                let Some(Waiting::Read { segment, birth, purpose }) = self.waiting.remove(&ticket) else { return };
                self.fair.ended(now, segment.volume, Cost::of_request(&purpose.request.op));
                let result = match result {
                    Ok(blocks) => Ok(blocks),
                    Err(ReadError::Damaged(block)) => Err(block),
                    Err(ReadError::Unknown) => return, // dropped meanwhile
                };
                self.give_back(segment, birth, Input::Read { purpose, result });
            }
            Event::Extent(ticket, result) => match self.waiting.remove(&ticket) {
                Some(Waiting::Extent { segment, birth, to, extent }) => {
                    self.give_back(segment, birth, Input::Extent { to, extent, copy: result.ok() });
                }
                Some(Waiting::Scrub { segment, birth, extent }) => {
                    self.scrubbed(segment, birth, extent, result);
                }
                Some(Waiting::Digest { segment, birth, to, extent }) => {
                    let digest = result.ok().map(|copy| self.digest(segment, &copy));
                    self.give_back(segment, birth, Input::Digest { to, extent, digest });
                }
                _ => {} // its replica is gone
            },
            Event::Failed(reason) => self.on_failed(now, reason),
        }
    }

    pub(super) fn give_back(&mut self, segment: SegmentId, birth: u64, input: Input) {
        if self.is_here(segment, birth) {
            self.given_back.push_back((segment, input));
        }
    }

    /// What is on the device is unknown: nothing of this shard is served or confirmed any more (DESIGN 6).
    fn on_failed(&mut self, now: Time, reason: String) {
        tracing::error!(shard = self.shard, %reason, "the device failed; this shard's replicas are out of service");
        self.failed = Some(reason);
        self.forget_waiting(now, |_| true);
        for segment in self.segments() {
            self.handle(now, segment, Input::StoreFailed);
        }
    }
}
