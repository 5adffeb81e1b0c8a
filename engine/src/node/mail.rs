//! What reaches a shard from the tasks around it, and what a shard asks of them. Every box is bounded (I15).

use engine_core::ids::NodeId;
use engine_core::limits::INBOX_MAX;
use engine_core::message::{FromAuthority, HeldConfig, PeerMessage, ReplicaReport, Request};
use engine_core::replica::io::ClientRef;
use engine_core::time::Span;
use tokio::sync::{mpsc, oneshot};

use super::quay::Figures;
use crate::wire::Outbox;

/// For a shard, other than from clients.
#[derive(Debug)]
pub(crate) enum Mail {
    /// Take everything that was found for damaged, durably (I9). Comes before `Serve`, if at all.
    Distrust(oneshot::Sender<()>),
    /// Open the machines and begin to take part; until then only `Status` and `Replicas` are answered.
    Serve {
        /// Grace time of the cluster.
        grace: Span,
    },
    /// A peer said this.
    Peer {
        /// Who.
        from: NodeId,
        /// What.
        message: PeerMessage,
    },
    /// A peer said these.
    Peers {
        /// Who.
        from: NodeId,
        /// What, in order.
        messages: Vec<PeerMessage>,
    },
    /// The own live connection to this node is up.
    PeerUp {
        /// To whom.
        node: NodeId,
        /// The connection.
        live: Outbox,
        /// Where bulk messages for it go.
        bulk: mpsc::Sender<PeerMessage>,
    },
    /// It is gone.
    PeerDown {
        /// To whom.
        node: NodeId,
        /// Its host answered, its process did not.
        refused: bool,
    },
    /// The authority says this about a segment of this shard.
    Authority(FromAuthority),
    /// Tell your figures.
    Status(oneshot::Sender<Figures>),
    /// List what you hold.
    Replicas(oneshot::Sender<Vec<ReplicaReport>>),
    /// Tell the configuration of everything you hold.
    Configs(oneshot::Sender<Vec<HeldConfig>>),
    /// The node stops on purpose: hand over and leave while serving on; answered when the machines may stop.
    Leave(oneshot::Sender<()>),
    /// Its device is not to be served: let go of it, and take no part from now on. Comes instead of `Serve`.
    Retire,
    /// Stop now; answered when everything is quiet.
    Stop(oneshot::Sender<()>),
}

/// For a shard, from a client's connection. A box of its own: it is the one that is left unread under pressure.
#[derive(Debug)]
pub(crate) enum ClientMail {
    /// Answers for this client go here. Comes before its first request.
    Up(ClientRef, Outbox),
    /// A request.
    Request(ClientRef, Box<Request>),
    /// The connection is gone.
    Gone(ClientRef),
}

/// For whoever keeps the connections to a peer.
#[derive(Debug)]
pub(crate) enum PeerControl {
    /// This shard wants, or no longer wants, a connection to the node.
    Want {
        /// Which shard.
        shard: u16,
        /// To whom.
        node: NodeId,
        /// Whether it does.
        wanted: bool,
    },
    /// The node has made, or lost, a live connection to here.
    Incoming {
        /// Who.
        node: NodeId,
        /// Its boot.
        boot: engine_core::ids::BootId,
        /// Whether the connection began or ended.
        up: bool,
    },
}

/// How the tasks of all threads reach one shard.
#[derive(Debug, Clone)]
pub(crate) struct ShardBox {
    pub(crate) work: mpsc::Sender<Mail>,
    pub(crate) requests: mpsc::Sender<ClientMail>,
}

/// The shard's ends.
#[derive(Debug)]
pub(crate) struct ShardInbox {
    pub(crate) work: mpsc::Receiver<Mail>,
    pub(crate) requests: mpsc::Receiver<ClientMail>,
}

/// A shard's boxes and their ends.
pub(crate) fn shard_box() -> (ShardBox, ShardInbox) {
    let (work, work_end) = mpsc::channel(INBOX_MAX);
    let (requests, requests_end) = mpsc::channel(INBOX_MAX);
    (ShardBox { work, requests }, ShardInbox { work: work_end, requests: requests_end })
}
