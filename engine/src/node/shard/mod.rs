//! One shard: its store, its replicas' machines, and the turn that joins them.
//!
//! A turn takes a bounded batch of messages, gives each to its machine, runs the machine's effects in order, then
//! moves the store along. Whatever an effect's `then` holds runs when the store says its write is durable, and only
//! if the machine that asked is still the one that is here. No decision is made here.

mod effects;
mod figures;
mod holdings;
mod run;

use std::collections::{BTreeMap, BTreeSet, HashMap, VecDeque};

use engine_core::ids::{Epoch, Incarnation, NodeId, SegmentId};
use engine_core::limits::STORE_INFLIGHT_MAX;
use engine_core::message::{Decision, FromAuthority, Outcome, Peer, PeerMessage, Refusal, Reply, Request, ToAuthority};
use engine_core::random::Random;
use engine_core::record::Recovered;
use engine_core::remirror::reservation::Reservations;
use engine_core::replica::Replica;
use engine_core::replica::io::{ClientRef, Effects, Input};
use engine_core::time::{Span, Time};
use tokio::sync::mpsc;

use super::mail::{ClientMail, Mail, PeerControl};
use super::sink::Sink;

use crate::store::{Store, Ticket};
use crate::wire::Message;

pub(crate) use run::run;

/// What a shard is told when it is made.
#[derive(Debug)]
pub(crate) struct Surroundings {
    pub(crate) node: NodeId,
    /// Which shard this is.
    pub(crate) shard: u16,
    /// To the authority, as long as somebody listens.
    pub(crate) authority: mpsc::Sender<ToAuthority>,
    /// Who keeps connections to peers, by node id modulo their number.
    pub(crate) peers: Vec<mpsc::Sender<PeerControl>>,
    pub(crate) seed: u64,
}

/// A machine in its place.
struct Open {
    /// Tells this machine from an earlier one of the same segment.
    birth: u64,
    incarnation: Incarnation,
    replica: Box<Replica>,
    /// Whom it wants connections to.
    peers: BTreeSet<NodeId>,
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
    Then { segment: SegmentId, birth: u64, effects: Vec<engine_core::replica::io::Effect>, copied: u64 },
    /// A machine's read.
    Read { segment: SegmentId, birth: u64, purpose: engine_core::replica::io::ReadPurpose },
    /// A machine's read of an extent.
    Extent { segment: SegmentId, birth: u64, to: NodeId, extent: engine_core::ids::ExtentIndex },
    /// A replica's first record.
    Create(SegmentId),
    /// A replica's last record.
    Drop(SegmentId, Incarnation),
}

impl Waiting {
    fn segment(&self) -> SegmentId {
        match self {
            Self::Then { segment, .. }
            | Self::Read { segment, .. }
            | Self::Extent { segment, .. }
            | Self::Create(segment)
            | Self::Drop(segment, _) => *segment,
        }
    }
}

/// The connections to one peer.
struct Line {
    live: Sink,
    bulk: mpsc::Sender<PeerMessage>,
}

/// One shard of a node.
pub(crate) struct Shard<S> {
    around: Surroundings,
    store: S,
    /// What the store found, until the machines are opened.
    found: Vec<Recovered>,
    serving: bool,
    grace: Span,
    slots: BTreeMap<SegmentId, Slot>,
    waiting: HashMap<Ticket, Waiting>,
    last_ticket: u64,
    last_birth: u64,
    lines: BTreeMap<NodeId, Line>,
    clients: HashMap<ClientRef, Sink>,
    reservations: Reservations,
    /// Inputs that effects gave back, in order.
    given_back: VecDeque<(SegmentId, Input)>,
    effects: Effects,
    /// Whom the peers' keepers were told this shard wants.
    announced: BTreeSet<NodeId>,
    peers_changed: bool,
    copied_bytes: u64,
    /// Why the store can no longer write.
    failed: Option<String>,
    random: Random,
}

impl<S: Store> Shard<S> {
    pub(crate) fn new(around: Surroundings, mut store: S) -> Self {
        let found = store.take_recovered();
        let random = Random::new(around.seed);
        Self {
            around,
            store,
            found,
            serving: false,
            grace: Span::ZERO,
            slots: BTreeMap::new(),
            waiting: HashMap::new(),
            last_ticket: 0,
            last_birth: 0,
            lines: BTreeMap::new(),
            clients: HashMap::new(),
            reservations: Reservations::new(),
            given_back: VecDeque::new(),
            effects: Effects::new(),
            announced: BTreeSet::new(),
            peers_changed: false,
            copied_bytes: 0,
            failed: None,
            random,
        }
    }

    /// Takes one message.
    pub(crate) fn take(&mut self, now: Time, mail: Mail) {
        match mail {
            Mail::Serve { grace } => self.serve(now, grace),
            Mail::Peer { from, message } => self.on_peer(now, from, message),
            Mail::PeerUp { node, live, bulk } => {
                self.lines.insert(node, Line { live: Sink::new(live), bulk });
                self.tell_those_with(now, node, &Input::PeerUp(node));
            }
            Mail::PeerDown { node, refused } => {
                self.lines.remove(&node);
                self.tell_those_with(now, node, &Input::PeerDown { node, refused });
            }
            Mail::Authority(said) => self.on_authority(now, said),
            // Whoever asked may have stopped waiting.
            Mail::Status(answer) => drop(answer.send(self.figures())),
            Mail::Replicas(answer) => drop(answer.send(self.replicas())),
            Mail::Stop(_) => debug_assert!(false, "the loop keeps this"),
        }
        self.settle_given_back(now);
    }

    /// Takes one message of a client.
    pub(crate) fn take_client(&mut self, now: Time, mail: ClientMail) {
        match mail {
            ClientMail::Up(client, outbox) => drop(self.clients.insert(client, Sink::new(outbox))),
            ClientMail::Request(client, request) => self.on_request(now, client, *request),
            ClientMail::Gone(client) => {
                self.clients.remove(&client);
                for segment in self.segments() {
                    self.handle(now, segment, Input::ClientGone(client));
                }
            }
        }
        self.settle_given_back(now);
    }

    /// Time passes.
    pub(crate) fn tick(&mut self, now: Time) {
        for segment in self.segments() {
            self.handle(now, segment, Input::Tick);
        }
        self.settle_given_back(now);
        self.announce_peers();
    }

    /// Moves the store along and runs what hung on it. `true`: there is more to do at once.
    pub(crate) fn advance(&mut self, now: Time, events: &mut Vec<crate::store::Event>) -> bool {
        /// Rounds before other tasks of the thread have their turn.
        const ROUNDS: usize = 8;
        for _ in 0..ROUNDS {
            self.store.poll(events);
            if events.is_empty() {
                self.flush(now);
                return false;
            }
            for event in events.drain(..) {
                self.on_event(now, event);
            }
            self.settle_given_back(now);
        }
        self.flush(now);
        true
    }

    /// Whether client requests should wait.
    pub(crate) fn is_congested(&self) -> bool {
        self.waiting.len() >= STORE_INFLIGHT_MAX || self.lines.values().any(|line| line.live.is_congested())
    }

    /// Whether nothing is queued or in flight.
    pub(crate) fn is_quiet(&self) -> bool {
        self.failed.is_some() || (self.waiting.is_empty() && self.store.is_quiet())
    }

    /// Asks the store to leave everything ready for a quick restart.
    pub(crate) fn settle(&mut self) {
        self.store.settle();
    }

    fn flush(&mut self, now: Time) {
        for line in self.lines.values_mut() {
            line.live.flush(now);
        }
        for client in self.clients.values_mut() {
            client.flush(now);
        }
        if self.peers_changed {
            self.announce_peers();
        }
    }

    fn serve(&mut self, now: Time, grace: Span) {
        if self.serving {
            return;
        }
        (self.serving, self.grace) = (true, grace);
        for recovered in std::mem::take(&mut self.found) {
            self.open(now, recovered);
        }
    }

    /// The node stops on purpose.
    pub(crate) fn take_stop(&mut self, now: Time) {
        for segment in self.segments() {
            self.handle(now, segment, Input::Stopping);
        }
        self.settle_given_back(now);
    }

    fn segments(&self) -> Vec<SegmentId> {
        self.slots.keys().copied().collect()
    }

    /// Opens a machine. Which of its peers are there it hears once it has named them.
    fn open(&mut self, now: Time, recovered: Recovered) {
        self.last_birth += 1;
        let (segment, incarnation) = (recovered.segment, recovered.meta.config.incarnation);
        let seed = self.random.next_u64();
        let mut replica = Box::new(Replica::open(self.around.node, recovered, self.grace, now, seed));
        replica.start(&mut self.effects);
        let open = Open { birth: self.last_birth, incarnation, replica, peers: BTreeSet::new() };
        self.slots.insert(segment, Slot::Open(open));
        self.run_what_it_says(segment, self.last_birth);
    }

    /// Gives an input to a machine and runs what comes out.
    fn handle(&mut self, now: Time, segment: SegmentId, input: Input) {
        let Some(Slot::Open(open)) = self.slots.get_mut(&segment) else { return };
        open.replica.handle(now, input, &mut self.effects);
        let birth = open.birth;
        self.run_what_it_says(segment, birth);
    }

    fn run_what_it_says(&mut self, segment: SegmentId, birth: u64) {
        let effects: Vec<_> = self.effects.drain().collect();
        self.run_effects(segment, birth, effects);
    }

    /// Hands back what effects produced, until there is no more. Ends, because only a bounded number of inputs makes
    /// more of them: each belongs to a request, a page or a write.
    fn settle_given_back(&mut self, now: Time) {
        while let Some((segment, input)) = self.given_back.pop_front() {
            self.handle(now, segment, input);
        }
    }

    fn tell_those_with(&mut self, now: Time, node: NodeId, input: &Input) {
        for segment in self.segments() {
            if matches!(self.slots.get(&segment), Some(Slot::Open(open)) if open.peers.contains(&node)) {
                self.handle(now, segment, input.clone());
            }
        }
    }

    fn on_peer(&mut self, now: Time, from: NodeId, message: PeerMessage) {
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
    }

    fn on_request(&mut self, now: Time, client: ClientRef, request: Request) {
        let refusal = match self.slots.get(&request.segment) {
            Some(Slot::Open(_)) => {
                let segment = request.segment;
                return self.handle(now, segment, Input::Client { client, request });
            }
            Some(Slot::Creating(_)) => Refusal::Busy,
            None if !self.serving => Refusal::Busy,
            Some(Slot::Dropping) | None => Refusal::Unknown,
        };
        let outcome = Outcome::Refused(refusal);
        let Request { segment, session, request, .. } = request;
        self.reply(client, Reply { segment, epoch: Epoch(0), session, request, outcome });
    }

    fn reply(&mut self, client: ClientRef, reply: Reply) {
        if let Some(sink) = self.clients.get_mut(&client) {
            sink.push(Message::Reply(reply));
        }
    }

    fn on_authority(&mut self, now: Time, said: FromAuthority) {
        match said {
            FromAuthority::Create { config } => self.create_for_authority(now, &config),
            FromAuthority::Reserve { permit, segment, extents } => self.reserve(now, permit, segment, extents),
            FromAuthority::Release { segment, incarnation } => self.release(now, segment, incarnation),
            FromAuthority::Granted { segment, permit, target } => {
                self.handle(now, segment, Input::Granted { permit, target });
            }
            FromAuthority::Fence { segment, generation } => self.handle(now, segment, Input::Fence(generation)),
            FromAuthority::Decided(decision) => {
                let segment = decided_segment(&decision);
                self.handle(now, segment, Input::Decided(decision));
            }
            FromAuthority::Registered { .. } | FromAuthority::RegisterRefused(_) | FromAuthority::Nodes(_) => {
                debug_assert!(false, "the authority's session keeps these");
            }
        }
    }

    fn tell_authority(&self, message: ToAuthority) {
        if self.around.authority.try_send(message).is_err() {
            tracing::debug!("a message to the authority was dropped; it will be asked for or sent again");
        }
    }

    fn send(&mut self, to: NodeId, segment: SegmentId, incarnation: Incarnation, body: Peer) {
        if let Some(line) = self.lines.get_mut(&to) {
            line.live.push(Message::Peer(PeerMessage { segment, incarnation, body }));
        }
    }

    /// Tells the keepers of peer connections what has changed. What does not fit now goes with the next tick.
    fn announce_peers(&mut self) {
        let wanted: BTreeSet<NodeId> = self
            .slots
            .values()
            .filter_map(|slot| if let Slot::Open(open) = slot { Some(&open.peers) } else { None })
            .flatten()
            .copied()
            .filter(|node| *node != self.around.node)
            .collect();
        self.peers_changed = false;
        let changed: Vec<NodeId> = wanted.symmetric_difference(&self.announced).copied().collect();
        for node in changed {
            let is_wanted = wanted.contains(&node);
            let keeper = &self.around.peers[usize::from(node.0) % self.around.peers.len()];
            if keeper.try_send(PeerControl::Want { shard: self.around.shard, node, wanted: is_wanted }).is_err() {
                continue;
            }
            if is_wanted {
                self.announced.insert(node);
            } else {
                self.announced.remove(&node);
            }
        }
    }
}

/// The segment a decision is about.
pub(crate) fn decided_segment(decision: &Decision) -> SegmentId {
    match decision {
        Decision::Installed(config) | Decision::Conflict(config) | Decision::Denied(config, _) => config.segment,
        Decision::Unknown(segment) => *segment,
    }
}
