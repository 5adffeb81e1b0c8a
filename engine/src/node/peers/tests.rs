//! Connections to a peer that comes, goes, moves and lies about who it is.
#![allow(clippy::unwrap_used)]

use std::sync::Arc;
use std::sync::atomic::AtomicU64;
use std::time::Duration;

use engine_core::ids::{ClusterId, Epoch, Incarnation, SegmentId, VolumeId};
use engine_core::message::Peer;
use tokio::net::TcpListener;
use tokio::sync::watch;
use tokio::task::{LocalSet, spawn_local};

use super::*;
use crate::node::harbour::{Addresses, Keepers};
use crate::node::listen::Doors;
use crate::node::mail::{ShardInbox, shard_box};
use crate::node::routes::Routes;
use crate::wire::Local;

const CLUSTER: ClusterId = ClusterId(5);
const PEER: NodeId = NodeId(2);
const PATIENCE: Duration = Duration::from_secs(10);

struct World {
    keeper: mpsc::Sender<PeerControl>,
    inbox: ShardInbox,
    addresses: watch::Sender<Addresses>,
}

fn local(node: NodeId, boot: u128) -> Local {
    Local { cluster: CLUSTER, node: Some(node), boot: BootId(boot), shards: 1 }
}

fn world() -> World {
    let (shard, inbox) = shard_box();
    let (keeper, control) = mpsc::channel(16);
    let (addresses, seen) = watch::channel(Addresses::default());
    let harbour = Harbour {
        local: local(NodeId(1), 1),
        shards: vec![shard],
        pilot: Pilot::new(Arc::new(Routes::new([1], true))),
        keepers: Keepers::new(vec![keeper.clone()]),
        addresses: seen,
        doors: Doors::default(),
        last_client: Arc::new(AtomicU64::new(0)),
    };
    spawn_local(keep_all(Rc::new(harbour), control));
    World { keeper, inbox, addresses }
}

impl World {
    async fn want(&self, wanted: bool) {
        self.keeper.send(PeerControl::Want { shard: 0, node: PEER, wanted }).await.unwrap();
    }

    fn peer_is_at(&self, primary: &str, replication: &str) {
        let address = NodeAddress { node: PEER, primary: primary.into(), replication: replication.into(), shards: 1 };
        self.addresses.send_replace(Arc::new([(PEER, address)].into()));
    }

    async fn mail(&mut self) -> Mail {
        timeout(PATIENCE, self.inbox.work.recv()).await.expect("mail").unwrap()
    }

    async fn up(&mut self) -> (Outbox, mpsc::Sender<PeerMessage>) {
        loop {
            // A refusal may be told while the peer is not there yet.
            match self.mail().await {
                Mail::PeerUp { node: PEER, live, bulk } => return (live, bulk),
                Mail::PeerDown { node: PEER, .. } => {}
                other => panic!("{other:?}"),
            }
        }
    }

    async fn down(&mut self) -> bool {
        match self.mail().await {
            Mail::PeerDown { node: PEER, refused } => refused,
            other => panic!("{other:?}"),
        }
    }
}

async fn listener() -> (TcpListener, String) {
    let listener = TcpListener::bind("127.0.0.1:0").await.unwrap();
    let address = listener.local_addr().unwrap().to_string();
    (listener, address)
}

/// An address nobody listens at.
async fn nobody() -> String {
    listener().await.1
}

async fn accept(listener: &TcpListener, local: &Local) -> (Hello, Link) {
    let (stream, _) = timeout(PATIENCE, listener.accept()).await.expect("a connection").unwrap();
    wire::accept(stream, local).await.unwrap()
}

fn message() -> PeerMessage {
    let segment = SegmentId { volume: VolumeId(1), index: 0 };
    PeerMessage { segment, incarnation: Incarnation(1), body: Peer::StillHeard { epoch: Epoch(3) } }
}

#[tokio::test]
async fn a_process_that_is_gone_is_known_to_be_gone() {
    let story = async {
        let mut world = world();
        let (primary, primary_addr) = listener().await;
        world.peer_is_at(&primary_addr, &nobody().await);
        world.want(true).await;
        let (_, link) = accept(&primary, &local(PEER, 7)).await;
        let (live, _) = world.up().await;
        live.try_send(&Message::Peer(message())).unwrap();
        let (mut inbound, outbox) = link.split();
        assert_eq!(inbound.next().await.unwrap(), Message::Peer(message()));
        drop((primary, inbound, outbox));
        assert!(world.down().await, "nobody listens there, and that is known at once");
    };
    LocalSet::new().run_until(story).await;
}

#[tokio::test]
async fn a_connection_that_breaks_while_the_process_lives_is_no_refusal() {
    let story = async {
        let mut world = world();
        let (primary, primary_addr) = listener().await;
        world.peer_is_at(&primary_addr, &nobody().await);
        world.want(true).await;
        let first = accept(&primary, &local(PEER, 7)).await;
        world.up().await;
        drop(first);
        let _second = accept(&primary, &local(PEER, 7)).await;
        assert!(!world.down().await);
        world.up().await;
    };
    LocalSet::new().run_until(story).await;
}

#[tokio::test]
async fn live_falls_back_to_the_replication_network_and_bulk_does_not() {
    let story = async {
        let mut world = world();
        let (replication, replication_addr) = listener().await;
        world.peer_is_at(&nobody().await, &replication_addr);
        world.want(true).await;
        let (hello, _link) = accept(&replication, &local(PEER, 7)).await;
        assert!(matches!(hello.who, Who::Node { lane: Lane::Live, network: Network::Replication, .. }));
        let (_, bulk) = world.up().await;
        bulk.send(message()).await.unwrap();
        let second = timeout(Duration::from_millis(200), replication.accept()).await;
        assert!(second.is_err(), "bulk came over the replication network");
    };
    LocalSet::new().run_until(story).await;
}

#[tokio::test]
async fn bulk_is_dialled_when_there_is_something_to_carry() {
    let story = async {
        let mut world = world();
        let (primary, primary_addr) = listener().await;
        world.peer_is_at(&primary_addr, &nobody().await);
        world.want(true).await;
        let _live = accept(&primary, &local(PEER, 7)).await;
        let (_, bulk) = world.up().await;
        bulk.send(message()).await.unwrap();
        let (hello, link) = accept(&primary, &local(PEER, 7)).await;
        assert!(matches!(hello.who, Who::Node { lane: Lane::Bulk, .. }));
        let (mut inbound, _outbox) = link.split();
        assert_eq!(inbound.next().await.unwrap(), Message::Peer(message()));
    };
    LocalSet::new().run_until(story).await;
}

#[tokio::test]
async fn a_peer_that_restarted_is_dialled_again() {
    let story = async {
        let mut world = world();
        let (primary, primary_addr) = listener().await;
        world.peer_is_at(&primary_addr, &nobody().await);
        world.want(true).await;
        let _old = accept(&primary, &local(PEER, 7)).await;
        world.up().await;
        let news = PeerControl::Incoming { node: PEER, boot: BootId(8), up: true };
        world.keeper.send(news).await.unwrap();
        let _new = accept(&primary, &local(PEER, 8)).await;
        assert!(!world.down().await);
        world.up().await;
    };
    LocalSet::new().run_until(story).await;
}

#[tokio::test]
async fn whoever_answers_as_somebody_else_is_not_the_peer() {
    let story = async {
        let mut world = world();
        let (primary, primary_addr) = listener().await;
        world.peer_is_at(&primary_addr, &nobody().await);
        world.want(true).await;
        let _impostor = accept(&primary, &local(NodeId(3), 7)).await;
        let _true_one = accept(&primary, &local(PEER, 7)).await;
        world.up().await;
    };
    LocalSet::new().run_until(story).await;
}

#[tokio::test]
async fn a_peer_nobody_wants_any_more_is_let_go() {
    let story = async {
        let mut world = world();
        let (primary, primary_addr) = listener().await;
        world.peer_is_at(&primary_addr, &nobody().await);
        world.want(true).await;
        let (_, link) = accept(&primary, &local(PEER, 7)).await;
        let (live, bulk) = world.up().await;
        world.want(false).await;
        assert!(!world.down().await);
        drop((live, bulk));
        let (mut inbound, _outbox) = link.split();
        assert!(timeout(PATIENCE, inbound.next()).await.expect("it ends").is_err());
    };
    LocalSet::new().run_until(story).await;
}
