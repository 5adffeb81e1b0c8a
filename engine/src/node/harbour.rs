//! What one thread's connection tasks share, and the task that starts them.

use std::collections::BTreeMap;
use std::rc::Rc;
use std::sync::atomic::{AtomicU64, Ordering};
use std::sync::{Arc, OnceLock};

use engine_core::ids::NodeId;
use engine_core::message::NodeAddress;
use engine_core::replica::io::ClientRef;
use tokio::sync::{mpsc, watch};

use super::listen::{self, Arrival, Doors};
use super::mail::{PeerControl, ShardBox};
use super::peers;
use super::routes::Pilot;
use crate::wire::Local;

/// Where nodes are, as the authority said last; kept while it is away.
pub(crate) type Addresses = Arc<BTreeMap<NodeId, NodeAddress>>;

/// What one thread's connection tasks share.
#[derive(Debug)]
pub(crate) struct Harbour {
    pub(crate) local: Local,
    pub(crate) shards: Vec<ShardBox>,
    /// Which of them has what.
    pub(crate) pilot: Pilot,
    pub(crate) keepers: Keepers,
    pub(crate) addresses: watch::Receiver<Addresses>,
    pub(crate) doors: Doors,
    /// Names for clients, shared by all threads.
    pub(crate) last_client: Arc<AtomicU64>,
}

impl Harbour {
    /// A name for a new client's connection.
    pub(crate) fn name_client(&self) -> ClientRef {
        ClientRef(self.last_client.fetch_add(1, Ordering::Relaxed) + 1)
    }

    /// Who keeps the connections to this node.
    pub(crate) fn keeper(&self, node: NodeId) -> &mpsc::Sender<PeerControl> {
        self.keepers.of(node)
    }
}

/// Who keeps connections to peers: of the threads at work, by the peer's id modulo their number.
#[derive(Debug, Clone)]
pub(crate) struct Keepers {
    all: Arc<[mpsc::Sender<PeerControl>]>,
    at_work: Arc<OnceLock<Vec<usize>>>,
}

impl Keepers {
    /// One for each thread; all are at work until somebody says otherwise.
    pub(crate) fn new(all: Vec<mpsc::Sender<PeerControl>>) -> Self {
        Self { all: all.into(), at_work: Arc::default() }
    }

    /// Only these threads are at work: the others' devices have not answered. Said once, before anybody looks for a
    /// keeper; a thread that comes later is asked nothing.
    pub(crate) fn only(&self, at_work: Vec<usize>) {
        // Whoever said it first is believed.
        let _ = self.at_work.set(at_work);
    }

    /// Who keeps the connections to this node.
    pub(crate) fn of(&self, node: NodeId) -> &mpsc::Sender<PeerControl> {
        let at_work = self.at_work.get().filter(|at_work| !at_work.is_empty());
        let at = at_work.map_or_else(
            || usize::from(node.0) % self.all.len(),
            |at_work| at_work[usize::from(node.0) % at_work.len()],
        );
        &self.all[at]
    }
}

/// Starts a task for every arrival, and keeps this thread's share of peer connections. Runs inside a `LocalSet`.
pub(crate) async fn run(
    harbour: Rc<Harbour>,
    mut arrivals: mpsc::Receiver<Arrival>,
    control: mpsc::Receiver<PeerControl>,
) {
    tokio::task::spawn_local(peers::keep_all(Rc::clone(&harbour), control));
    while let Some(arrival) = arrivals.recv().await {
        tokio::task::spawn_local(listen::receive(Rc::clone(&harbour), arrival));
    }
}
