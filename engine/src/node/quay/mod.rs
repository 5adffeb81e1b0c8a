//! The replicas' machines of one shard, tied to its store: who gets which input, and what becomes of each effect.
//!
//! A machine's effects are run in order. Whatever an effect's `then` holds runs when the store says its write is
//! durable, and only if the machine that asked is still the one that is here. Nothing here waits, reads a clock or
//! knows a socket: what is said goes out by [`Wires`]. So a node's shard and a simulated node run the same code. No
//! decision is made here.

mod distrust;
mod effects;
mod figures;
mod holdings;
mod scrub;

use std::collections::{BTreeMap, BTreeSet, HashMap, VecDeque};

use engine_core::fair::{Cost, Fair, Offered};
use engine_core::ids::{Epoch, ExtentIndex, Incarnation, NodeId, SegmentId};
use engine_core::limits::UNHEARD_MAX;
use engine_core::message::{
    FromAuthority, Lane, LeaseAsk, Op, Outcome, Peer, PeerMessage, Refusal, Reply, Request, ToAuthority,
};
use engine_core::random::Random;
use engine_core::record::Recovered;
use engine_core::remirror::reservation::Reservations;
use engine_core::replica::Replica;
use engine_core::replica::io::{ClientRef, Effect, Effects, Input, ReadPurpose};
use engine_core::schedule::{Alarm, Schedule};
use engine_core::scrub::Scrub;
use engine_core::time::{Span, Time};
use engine_core::wanted::Wanted;

use crate::store::{Event, Store, Ticket};

pub use figures::{Figures, report};

/// Where what the machines say goes. Nothing of it waits; what cannot be sent is lost, and its sender asks again.
pub trait Wires {
    /// To a peer, by this lane.
    fn peer(&mut self, to: NodeId, lane: Lane, message: PeerMessage);

    /// Whether the live connection to this peer is up.
    fn is_up(&self, peer: NodeId) -> bool;

    /// To a client.
    fn client(&mut self, client: ClientRef, reply: Reply);

    /// To the authority.
    fn authority(&mut self, message: ToAuthority);

    /// A replica of this segment is to begin here. `false`: another device of this node has one.
    fn begins(&mut self, _segment: SegmentId) -> bool {
        true
    }

    /// The replica of this segment has ended here.
    fn ended(&mut self, _segment: SegmentId) {}
}

/// A machine in its place.
struct Open {
    /// Tells this machine from an earlier one of the same segment.
    birth: u64,
    incarnation: Incarnation,
    replica: Box<Replica>,
    /// Whom it wants connections to.
    peers: BTreeSet<NodeId>,
    alarm: Alarm,
    /// What of it counts as begun with its volume's requests.
    in_hand: Cost,
}

/// What is here of a segment.
enum Slot {
    /// Its first record is on the way to the device.
    Creating(holdings::Creating),
    /// At work.
    Open(Open),
    /// Its drop is on the way to the device.
    Dropping,
}

/// What waits for the store.
enum Waiting {
    /// A machine's write.
    Then { segment: SegmentId, birth: u64, effects: Vec<Effect>, copied: u64 },
    /// A machine's read.
    Read { segment: SegmentId, birth: u64, purpose: ReadPurpose },
    /// A machine's read of an extent.
    Extent { segment: SegmentId, birth: u64, to: NodeId, extent: ExtentIndex },
    /// A machine's read of an extent that it compares.
    Digest { segment: SegmentId, birth: u64, to: NodeId, extent: ExtentIndex },
    /// The scrub's read of an extent.
    Scrub { segment: SegmentId, birth: u64, extent: ExtentIndex },
    /// A replica's first record.
    Create(SegmentId),
    /// A replica's last record.
    Drop(SegmentId, Incarnation),
    /// States of replicas that are not trusted any more.
    Distrust,
}

impl Waiting {
    fn segment(&self) -> Option<SegmentId> {
        Some(match self {
            Self::Then { segment, .. }
            | Self::Read { segment, .. }
            | Self::Extent { segment, .. }
            | Self::Digest { segment, .. }
            | Self::Scrub { segment, .. }
            | Self::Create(segment)
            | Self::Drop(segment, _) => *segment,
            Self::Distrust => return None,
        })
    }
}

/// The machines of one shard over its store.
pub struct Quay<S, W> {
    node: NodeId,
    shard: u16,
    store: S,
    wires: W,
    /// What the store found, until the machines are opened.
    found: Vec<Recovered>,
    /// Writes under way that say that none of it is to be trusted.
    distrusting: usize,
    serving: bool,
    /// What the authority said before the machines were open.
    unheard: Vec<FromAuthority>,
    /// The node stops on purpose.
    leaving: bool,
    grace: Span,
    slots: BTreeMap<SegmentId, Slot>,
    /// Which machines want time, and when.
    schedule: Schedule,
    /// Every tick the schedule leaves out is tried: it must change nothing.
    doubts_schedule: bool,
    waiting: HashMap<Ticket, Waiting>,
    last_ticket: u64,
    last_birth: u64,
    reservations: Reservations,
    /// Requests of clients that have not begun.
    fair: Fair<(ClientRef, Request)>,
    /// Inputs that effects gave back, in order.
    given_back: VecDeque<(SegmentId, Input)>,
    effects: Effects,
    /// Whom the machines want connections to.
    wanted: Wanted,
    copied_bytes: u64,
    /// Begins with the machines.
    scrub: Option<Scrub>,
    /// Why the store can no longer write.
    failed: Option<String>,
    random: Random,
}

impl<S: Store, W: Wires> Quay<S, W> {
    /// The machines of `shard` of `node`, not opened yet.
    pub fn new(node: NodeId, shard: u16, seed: u64, mut store: S, wires: W) -> Self {
        let found = store.take_recovered();
        Self {
            node,
            shard,
            store,
            wires,
            found,
            distrusting: 0,
            serving: false,
            unheard: Vec::new(),
            leaving: false,
            grace: Span::ZERO,
            slots: BTreeMap::new(),
            schedule: Schedule::new(),
            doubts_schedule: false,
            waiting: HashMap::new(),
            last_ticket: 0,
            last_birth: 0,
            reservations: Reservations::new(),
            fair: Fair::new(),
            given_back: VecDeque::new(),
            effects: Effects::new(),
            wanted: Wanted::new(),
            copied_bytes: 0,
            scrub: None,
            failed: None,
            random: Random::new(seed),
        }
    }

    /// Where what is said goes.
    pub const fn wires(&mut self) -> &mut W {
        &mut self.wires
    }

    /// The store, to look at.
    pub const fn store(&self) -> &S {
        &self.store
    }

    /// The store.
    pub const fn store_mut(&mut self) -> &mut S {
        &mut self.store
    }

    /// Whether the machines are open.
    pub const fn is_serving(&self) -> bool {
        self.serving
    }

    /// Why the store can no longer write, if so.
    pub fn failure(&self) -> Option<&str> {
        self.failed.as_deref()
    }

    /// How much was handed to the store and is not done.
    pub fn waiting(&self) -> usize {
        self.waiting.len()
    }

    /// Whether so many requests of clients wait for their turn that no more should be brought.
    pub const fn is_full(&self) -> bool {
        self.fair.is_full()
    }

    /// Whether nothing is queued or in flight.
    pub fn is_quiet(&self) -> bool {
        self.failed.is_some() || (self.waiting.is_empty() && self.store.is_quiet())
    }

    /// Opens the machines; from here on it takes part. A second time does nothing.
    pub fn serve(&mut self, now: Time, grace: Span) {
        if self.serving {
            return;
        }
        (self.serving, self.grace) = (true, grace);
        self.scrub = Some(Scrub::new(now, self.random.next_u64()));
        for recovered in std::mem::take(&mut self.found) {
            self.open(now, recovered);
        }
        self.settle_given_back(now);
        for said in std::mem::take(&mut self.unheard) {
            self.authority_said(now, said);
        }
    }

    /// Time passes.
    pub fn tick(&mut self, now: Time) {
        for segment in self.schedule.take_due(now) {
            if let Some(Slot::Open(open)) = self.slots.get_mut(&segment) {
                open.alarm.clear();
                self.handle(now, segment, Input::Tick);
            }
        }
        if self.doubts_schedule {
            self.check_schedule(now);
        }
        self.scrub_tick(now);
        self.settle_given_back(now);
    }

    /// From now on every tick that is left out is tried, and has to change nothing. For tests: it takes long.
    pub const fn doubt_schedule(&mut self) {
        self.doubts_schedule = true;
    }

    fn check_schedule(&mut self, now: Time) {
        for (segment, slot) in &mut self.slots {
            let Slot::Open(open) = slot else { continue };
            let wake = open.replica.wake_at();
            if wake.is_some_and(|wake| wake <= now) {
                continue;
            }
            let before = shown(&open.replica);
            open.replica.handle(now, Input::Tick, &mut self.effects);
            let effects: Vec<Effect> = self.effects.drain().collect();
            let after = shown(&open.replica);
            assert!(
                effects.is_empty() && before == after,
                "{} {segment}: left out at {now:?} until {wake:?}: {effects:?}\n{before}\n{after}",
                self.node
            );
        }
    }

    /// The node stops on purpose: machines hand over and leave, and serve on meanwhile.
    pub fn leave(&mut self, now: Time) {
        self.leaving = true;
        self.tell_all(now, &Input::Stopping);
    }

    /// Whether no machine has anything left to hand over or to leave.
    pub fn may_stop(&self) -> bool {
        self.machines().all(|open| open.replica.may_stop())
    }

    /// The node ends now.
    pub fn stop(&mut self, now: Time) {
        self.tell_all(now, &Input::Stopped);
    }

    /// A client's connection is gone.
    pub fn client_gone(&mut self, now: Time, client: ClientRef) {
        self.fair.retain(|(of, _)| *of != client);
        self.tell_all(now, &Input::ClientGone(client));
    }

    /// The live connection to a peer is up; [`Wires::is_up`] says so already.
    pub fn peer_up(&mut self, now: Time, node: NodeId) {
        self.tell_those_with(now, node, &Input::PeerUp(node));
    }

    /// It is gone.
    pub fn peer_down(&mut self, now: Time, node: NodeId, refused: bool) {
        self.tell_those_with(now, node, &Input::PeerDown { node, refused });
    }

    /// A peer said this.
    pub fn peer_said(&mut self, now: Time, from: NodeId, message: PeerMessage) {
        if !self.serving {
            return;
        }
        let PeerMessage { segment, incarnation, body } = message;
        match self.slots.get_mut(&segment) {
            Some(Slot::Open(open)) if open.incarnation == incarnation => {
                self.handle(now, segment, Input::Peer { from, message: body });
            }
            Some(Slot::Creating(creating)) => creating.hold(from, incarnation, body),
            // Another life of the segment (I11), or one that is just going away: nobody here to listen.
            Some(Slot::Open(_) | Slot::Dropping) => {}
            None => self.on_peer_of_nothing(now, from, segment, incarnation, body),
        }
        self.settle_given_back(now);
    }

    /// A client asks: of volumes that share this shard, each in its turn.
    pub fn client_asks(&mut self, now: Time, client: ClientRef, request: Request) {
        let cost = Cost::of_request(&request.op);
        let offered = match request.op {
            // Who leads now is a question that costs nothing, and others wait for the answer.
            Op::Locate { .. } => Offered::Now((client, request)),
            _ => self.fair.offer(now, request.segment.volume, cost, (client, request)),
        };
        match offered {
            Offered::Now((client, request)) => self.begin_request(now, client, request),
            Offered::Waits => {}
            Offered::Full((client, request)) => self.refuse(client, &request, Refusal::Busy),
        }
        self.settle_given_back(now);
    }

    fn begin_request(&mut self, now: Time, client: ClientRef, request: Request) {
        match self.slots.get(&request.segment) {
            Some(Slot::Open(_)) => self.handle(now, request.segment, Input::Client { client, request }),
            Some(Slot::Creating(_)) => self.refuse(client, &request, Refusal::Busy),
            None if !self.serving => self.refuse(client, &request, Refusal::Busy),
            Some(Slot::Dropping) | None => self.refuse(client, &request, Refusal::Unknown),
        }
    }

    fn refuse(&mut self, client: ClientRef, request: &Request, refusal: Refusal) {
        let Request { segment, session, request, .. } = *request;
        let outcome = Outcome::Refused(refusal);
        self.wires.client(client, Reply { segment, epoch: Epoch(0), session, request, outcome });
    }

    /// The authority says this about a segment of this shard.
    pub fn authority_said(&mut self, now: Time, said: FromAuthority) {
        if !self.serving {
            // I11: what was found has no slot yet, and "nothing of it is here" would end its tombstone. Kept, because not
            // all of it is said twice; where that is too much, an obligation is repeated and the rest comes with the next
            // registration.
            if self.unheard.len() < UNHEARD_MAX {
                self.unheard.push(said);
            }
            return;
        }
        match said {
            FromAuthority::Create { config } => self.create_for_authority(now, &config),
            FromAuthority::Reserve { permit, segment, extents } => self.reserve(now, permit, segment, extents),
            FromAuthority::Release { segment, incarnation } => self.release(now, segment, incarnation),
            FromAuthority::Granted { segment, permit, target } => {
                self.handle(now, segment, Input::Granted { permit, target });
            }
            FromAuthority::HandOver { segment, epoch, to } => self.handle(now, segment, Input::HandOver { epoch, to }),
            FromAuthority::Fence { segment, generation } => self.handle(now, segment, Input::Fence(generation)),
            FromAuthority::Decisions(decisions) => {
                for decision in decisions {
                    self.handle(now, decision.segment(), Input::Decided(decision));
                }
            }
            FromAuthority::Leased(asks) => {
                for LeaseAsk { segment, incarnation, sent, epoch: _ } in asks {
                    self.handle(now, segment, Input::Leased { incarnation, sent });
                }
            }
            FromAuthority::Recover { config } => self.recover(now, config),
            FromAuthority::Scrub => self.scrub_now(),
            FromAuthority::Registered { .. }
            | FromAuthority::Revision(_)
            | FromAuthority::RegisterRefused(_)
            | FromAuthority::Nodes(_)
            | FromAuthority::ShowConfigs => {
                debug_assert!(false, "the authority's session keeps these");
            }
        }
        self.settle_given_back(now);
    }

    /// Moves the store along and runs what hung on it. `true`: there is more to do at once.
    pub fn advance(&mut self, now: Time, events: &mut Vec<Event>) -> bool {
        /// Rounds before other tasks of the thread have their turn.
        const ROUNDS: usize = 8;
        self.fair.begin_turn();
        self.settle_given_back(now);
        for _ in 0..ROUNDS {
            self.store.poll(events);
            if events.is_empty() {
                return self.fair.wants_turn(now);
            }
            for event in events.drain(..) {
                self.on_event(now, event);
            }
            self.settle_given_back(now);
        }
        true
    }

    /// Whether [`Quay::wanted`] may have changed since this was asked last.
    pub const fn take_peers_changed(&mut self) -> bool {
        self.wanted.take_changed()
    }

    /// Whom the machines want connections to.
    pub fn wanted(&self) -> BTreeSet<NodeId> {
        self.wanted.nodes()
    }

    /// The machine of a segment.
    pub fn replica(&self, segment: SegmentId) -> Option<&Replica> {
        match self.slots.get(&segment) {
            Some(Slot::Open(open)) => Some(&open.replica),
            _ => None,
        }
    }

    /// Segments of which something is here.
    pub fn segments(&self) -> Vec<SegmentId> {
        self.slots.keys().copied().collect()
    }

    /// Opens the machine of a replica that was here when the node started.
    fn open(&mut self, now: Time, recovered: Recovered) {
        let seed = self.random.next_u64();
        self.start_machine(now, Replica::open(self.node, recovered, self.grace, now, seed));
    }

    /// Which of its peers are there a machine hears once it has named them.
    fn start_machine(&mut self, now: Time, replica: Replica) {
        self.last_birth += 1;
        let config = replica.config();
        let (segment, incarnation) = (config.segment, config.incarnation);
        let mut replica = Box::new(replica);
        replica.start(&mut self.effects);
        if self.leaving {
            replica.handle(now, Input::Stopping, &mut self.effects);
        }
        let mut alarm = Alarm::default();
        self.schedule.set(&mut alarm, segment, replica.wake_at());
        let open = Open {
            birth: self.last_birth,
            incarnation,
            replica,
            peers: BTreeSet::new(),
            alarm,
            in_hand: Cost::default(),
        };
        self.slots.insert(segment, Slot::Open(open));
        self.run_what_it_says(now, segment, self.last_birth);
    }

    /// Gives an input to a machine and runs what comes out.
    fn handle(&mut self, now: Time, segment: SegmentId, input: Input) {
        let Some(Slot::Open(open)) = self.slots.get_mut(&segment) else { return };
        open.replica.handle(now, input, &mut self.effects);
        self.schedule.set(&mut open.alarm, segment, open.replica.wake_at());
        let (birth, before) = (open.birth, std::mem::replace(&mut open.in_hand, open.replica.in_hand(now)));
        let after = open.in_hand;
        if after > before {
            self.fair.began(now, segment.volume, Cost(after.0 - before.0));
        } else if after < before {
            self.fair.ended(now, segment.volume, Cost(before.0 - after.0));
        }
        self.run_what_it_says(now, segment, birth);
    }

    fn run_what_it_says(&mut self, now: Time, segment: SegmentId, birth: u64) {
        // Lent out: what runs may make other machines speak.
        let mut effects = std::mem::take(&mut self.effects);
        self.run_effects(now, segment, birth, effects.drain());
        self.effects = effects;
    }

    /// Hands back what effects produced, until there is no more. Ends, because only a bounded number of inputs makes
    /// more of them: each belongs to a request, a page or a write.
    ///
    /// What ends makes room for what waits: that begins here too.
    fn settle_given_back(&mut self, now: Time) {
        loop {
            while let Some((segment, input)) = self.given_back.pop_front() {
                self.handle(now, segment, input);
            }
            let Some((client, request)) = self.fair.next(now) else { return };
            self.begin_request(now, client, request);
        }
    }

    fn tell_all(&mut self, now: Time, input: &Input) {
        for segment in self.segments() {
            self.handle(now, segment, input.clone());
        }
        self.settle_given_back(now);
    }

    fn tell_those_with(&mut self, now: Time, node: NodeId, input: &Input) {
        for segment in self.segments() {
            if matches!(self.slots.get(&segment), Some(Slot::Open(open)) if open.peers.contains(&node)) {
                self.handle(now, segment, input.clone());
            }
        }
        self.settle_given_back(now);
    }

    fn machines(&self) -> impl Iterator<Item = &Open> {
        self.slots.values().filter_map(|slot| if let Slot::Open(open) = slot { Some(open) } else { None })
    }

    fn send(&mut self, to: NodeId, lane: Lane, segment: SegmentId, incarnation: Incarnation, body: Peer) {
        self.wires.peer(to, lane, PeerMessage { segment, incarnation, body });
    }
}

/// A replica's state, without what says only when it was looked at.
fn shown(replica: &Replica) -> String {
    let all = format!("{replica:?}").replace("look: true", "look: false");
    let Some((before, rest)) = all.split_once("considered: ") else { return all };
    let after = rest.split_once(',').map_or("", |(_, after)| after);
    format!("{before}{after}")
}

#[cfg(test)]
mod tests;
