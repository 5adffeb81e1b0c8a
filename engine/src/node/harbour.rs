//! What one thread's connection tasks share, and the task that starts them.

use std::collections::BTreeMap;
use std::rc::Rc;
use std::sync::Arc;
use std::sync::atomic::{AtomicU64, Ordering};

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
    /// Who keeps connections to peers, by node id modulo their number.
    pub(crate) keepers: Vec<mpsc::Sender<PeerControl>>,
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
        &self.keepers[usize::from(node.0) % self.keepers.len()]
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
