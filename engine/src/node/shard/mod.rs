//! One shard: its quay (machines and store), the connections its machines speak by, and the turn that joins them.
//!
//! A turn takes a bounded batch of messages, gives each to the quay, then moves the store along. No decision is made
//! here.

mod run;

use std::collections::{BTreeMap, BTreeSet, HashMap};
use std::sync::Arc;

use engine_core::ids::{NodeId, SegmentId};
use engine_core::limits::STORE_INFLIGHT_MAX;
use engine_core::message::{Lane, PeerMessage, Reply, ToAuthority};
use engine_core::replica::io::ClientRef;
use engine_core::time::Time;
use tokio::sync::{mpsc, oneshot};

use super::harbour::Keepers;
use super::mail::{ClientMail, Mail, PeerControl};
use super::quay::{Quay, Wires};
use super::routes::Routes;
use super::sink::Sink;
use super::thread::Opened;

use crate::store::Store;
use crate::wire::Message;

pub(crate) use run::{Ended, idle, run};

/// What a shard is told when it is made.
#[derive(Debug)]
pub(crate) struct Surroundings {
    pub(crate) node: NodeId,
    /// Which shard this is.
    pub(crate) shard: u16,
    /// To the authority, as long as somebody listens.
    pub(crate) authority: mpsc::Sender<ToAuthority>,
    pub(crate) peers: Keepers,
    pub(crate) seed: u64,
    /// What lies where on this node, and which of its devices this shard is of.
    pub(crate) routes: Arc<Routes>,
    pub(crate) device: usize,
}

/// The connections to one peer.
struct Line {
    live: Sink,
    bulk: mpsc::Sender<PeerMessage>,
}

/// All connections the shard's machines speak by.
struct Lines {
    peers: BTreeMap<NodeId, Line>,
    clients: HashMap<ClientRef, Sink>,
    /// Clients something was said to, or that do not take what was.
    told: Vec<ClientRef>,
    authority: mpsc::Sender<ToAuthority>,
    routes: Arc<Routes>,
    device: usize,
}

impl Wires for Lines {
    fn peer(&mut self, to: NodeId, lane: Lane, message: PeerMessage) {
        let Some(line) = self.peers.get_mut(&to) else { return };
        match lane {
            Lane::Live => line.live.push(Message::Peer(message)),
            Lane::Bulk => {
                let segment = message.segment;
                // Full or gone: the copy's own pace notices and asks again.
                if line.bulk.try_send(message).is_err() {
                    tracing::debug!(%segment, peer = %to, "a bulk message was dropped");
                }
            }
        }
    }

    fn is_up(&self, peer: NodeId) -> bool {
        self.peers.contains_key(&peer)
    }

    fn client(&mut self, client: ClientRef, reply: Reply) {
        if let Some(sink) = self.clients.get_mut(&client) {
            sink.push(Message::Reply(reply));
            if !std::mem::replace(&mut sink.listed, true) {
                self.told.push(client);
            }
        }
    }

    fn authority(&mut self, message: ToAuthority) {
        if self.authority.try_send(message).is_err() {
            tracing::debug!("a message to the authority was dropped; it will be asked for or sent again");
        }
    }

    fn begins(&mut self, segment: SegmentId) -> bool {
        self.routes.begins(segment, self.device)
    }

    fn ended(&mut self, segment: SegmentId) {
        self.routes.ended(segment, self.device);
    }
}

/// One shard of a node.
pub(crate) struct Shard<S> {
    shard: u16,
    keepers: Keepers,
    quay: Quay<S, Lines>,
    /// Whom the peers' keepers were told this shard wants.
    announced: BTreeSet<NodeId>,
    /// Who waits until nothing that was found is trusted any more, durably.
    distrusting: Option<oneshot::Sender<()>>,
}

impl<S: Store> Shard<S> {
    pub(crate) fn new(around: Surroundings, store: S) -> Self {
        let Surroundings { node, shard, authority, peers, seed, routes, device } = around;
        let (connected, clients) = (BTreeMap::new(), HashMap::new());
        let lines = Lines { peers: connected, clients, told: Vec::new(), authority, routes, device };
        let quay = Quay::new(node, shard, seed, store, lines);
        Self { shard, keepers: peers, quay, announced: BTreeSet::new(), distrusting: None }
    }

    /// What its store found.
    pub(crate) fn opened(&self) -> Opened {
        let segments = self.quay.replicas().into_iter().map(|replica| replica.segment).collect();
        Opened { capacity: self.quay.store().space().capacity, segments }
    }

    /// Takes one message.
    pub(crate) fn take(&mut self, now: Time, mail: Mail) {
        match mail {
            Mail::Distrust(done) => {
                self.quay.distrust();
                self.distrusting = Some(done);
            }
            Mail::Serve { grace } => self.quay.serve(now, grace),
            Mail::Peer { from, message } => self.quay.peer_said(now, from, message),
            Mail::Peers { from, messages } => {
                messages.into_iter().for_each(|message| self.quay.peer_said(now, from, message));
            }
            Mail::PeerUp { node, live, bulk } => {
                self.quay.wires().peers.insert(node, Line { live: Sink::new(live), bulk });
                self.quay.peer_up(now, node);
            }
            Mail::PeerDown { node, refused } => {
                self.quay.wires().peers.remove(&node);
                self.quay.peer_down(now, node, refused);
            }
            Mail::Authority(said) => self.quay.authority_said(now, said),
            // Whoever asked may have stopped waiting.
            Mail::Status(answer) => drop(answer.send(self.quay.figures(now))),
            Mail::Replicas(answer) => drop(answer.send(self.quay.replicas())),
            Mail::Configs(answer) => drop(answer.send(self.quay.configs())),
            Mail::Leave(_) | Mail::Stop(_) | Mail::Retire => debug_assert!(false, "the loop keeps this"),
        }
    }

    /// Takes one message of a client.
    pub(crate) fn take_client(&mut self, now: Time, mail: ClientMail) {
        match mail {
            ClientMail::Up(client, outbox) => drop(self.quay.wires().clients.insert(client, Sink::new(outbox))),
            ClientMail::Request(client, request) => self.quay.client_asks(now, client, *request),
            ClientMail::Gone(client) => {
                self.quay.wires().clients.remove(&client);
                self.quay.client_gone(now, client);
            }
        }
    }

    /// Time passes.
    pub(crate) fn tick(&mut self, now: Time) {
        self.quay.tick(now);
        self.announce_peers();
    }

    /// Moves the store along and runs what hung on it. `true`: there is more to do at once.
    pub(crate) fn advance(&mut self, now: Time, events: &mut Vec<crate::store::Event>) -> bool {
        // What the machines have said so far goes first: the others' devices work while this one is being started.
        self.flush(now);
        let more = self.quay.advance(now, events);
        if let Some(done) = self.distrusting.take_if(|_| self.quay.is_distrusted() && self.quay.failure().is_none()) {
            // Whoever waited may have gone.
            let _ = done.send(());
        }
        self.flush(now);
        more
    }

    /// Whether client requests should wait.
    pub(crate) fn is_congested(&mut self) -> bool {
        self.quay.is_full()
            || self.quay.waiting() >= STORE_INFLIGHT_MAX
            || self.quay.wires().peers.values().any(|line| line.live.is_congested())
    }

    /// Whether nothing is queued or in flight.
    pub(crate) fn is_quiet(&self) -> bool {
        self.quay.is_quiet()
    }

    /// Asks the store to leave everything ready for a quick restart.
    pub(crate) fn settle(&mut self) {
        self.quay.store_mut().settle();
    }

    /// The node stops on purpose: machines hand over and leave, and serve on meanwhile.
    pub(crate) fn take_leave(&mut self, now: Time) {
        self.quay.leave(now);
    }

    /// Whether no machine here has anything left to hand over or to leave.
    pub(crate) fn may_stop(&self) -> bool {
        self.quay.may_stop()
    }

    /// The node ends now.
    pub(crate) fn take_stop(&mut self, now: Time) {
        self.quay.stop(now);
    }

    fn flush(&mut self, now: Time) {
        let lines = self.quay.wires();
        for line in lines.peers.values_mut() {
            line.live.flush(now);
        }
        let clients = &mut lines.clients;
        lines.told.retain(|client| {
            let Some(sink) = clients.get_mut(client) else { return false };
            sink.listed = sink.flush(now);
            sink.listed
        });
        if self.quay.take_peers_changed() {
            self.announce_peers();
        }
    }

    /// Tells the keepers of peer connections what has changed. What does not fit now goes with the next tick.
    fn announce_peers(&mut self) {
        let wanted = self.quay.wanted();
        let changed: Vec<NodeId> = wanted.symmetric_difference(&self.announced).copied().collect();
        for node in changed {
            let is_wanted = wanted.contains(&node);
            if self.keepers.of(node).try_send(PeerControl::Want { shard: self.shard, node, wanted: is_wanted }).is_err()
            {
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
