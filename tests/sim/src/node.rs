//! A simulated node: the production quay (machines over the store) with wires that end in a list.

use std::cell::RefCell;
use std::collections::BTreeSet;
use std::rc::Rc;

use engine::device::memory::{Disk, MemoryDevice};
use engine::node::quay::{self, Quay, Wires};
use engine::store::{self, Geometry, ShardStore, Superblock};
use engine_core::gather::Gather;
use engine_core::ids::{BootCount, BootId, ClusterId, DeviceId, NodeId, Revision, SegmentId};
use engine_core::limits::{EXTENT_SIZE, WAL_SIZE_MIN};
use engine_core::message::{
    DeviceJudged, FromAuthority, Judgement, Lane, PeerMessage, Reply, Report, Request, ToAuthority,
};
use engine_core::openings::Openings;
use engine_core::replica::Replica;
use engine_core::replica::io::ClientRef;
use engine_core::time::{Span, Time};

use crate::chronicle::{Chronicle, Watched};

pub(crate) const CLUSTER: ClusterId = ClusterId(7);

/// What a node puts on a wire.
pub(crate) enum Out {
    Peer {
        to: NodeId,
        lane: Lane,
        message: PeerMessage,
    },
    Reply {
        client: ClientRef,
        reply: Reply,
    },
    Authority(ToAuthority),
    /// Whom it wants connections to.
    Want(BTreeSet<NodeId>),
}

/// What a node hears.
#[derive(Debug, Clone)]
pub(crate) enum Heard {
    Tick,
    Disk,
    Peer {
        from: NodeId,
        message: PeerMessage,
    },
    PeerUp(NodeId),
    PeerDown {
        node: NodeId,
        refused: bool,
    },
    Client {
        client: ClientRef,
        request: Request,
    },
    ClientGone(ClientRef),
    Authority(FromAuthority),
    /// The node stops on purpose.
    Leave,
    /// It ends now.
    Stop,
}

/// The ends of a node's wires: what was said waits for the world to carry it.
#[derive(Default)]
pub(crate) struct Ends {
    /// Live connections it has made.
    up: BTreeSet<NodeId>,
    said: Vec<Out>,
    /// For the authority, not gathered yet.
    wishes: Vec<ToAuthority>,
}

impl Wires for Ends {
    fn peer(&mut self, to: NodeId, lane: Lane, message: PeerMessage) {
        if self.up.contains(&to) {
            self.said.push(Out::Peer { to, lane, message });
        }
    }

    fn is_up(&self, peer: NodeId) -> bool {
        self.up.contains(&peer)
    }

    fn client(&mut self, client: ClientRef, reply: Reply) {
        self.said.push(Out::Reply { client, reply });
    }

    fn authority(&mut self, message: ToAuthority) {
        self.wishes.push(message);
    }
}

/// One run of a node.
pub(crate) struct Process {
    pub(crate) quay: Quay<Watched<ShardStore<MemoryDevice>>, Ends>,
    pub(crate) superblock: Superblock,
    /// This run of it.
    pub(crate) id: BootId,
    disk: Disk,
    /// It may not serve before it has said durably that nothing found is to be trusted: as its authority said it.
    distrusting: Option<(Span, BootCount)>,
    gather: Gather,
    wanted: BTreeSet<NodeId>,
    events: Vec<store::Event>,
    /// It stops on purpose.
    pub(crate) leaving: bool,
}

/// A blank, formatted disk for `node`: its first one, or the next ones.
pub(crate) fn format(node: NodeId, which: u64, extents: u64) -> Disk {
    let size = (WAL_SIZE_MIN + 64 * 1024 * 1024 + extents * EXTENT_SIZE).next_multiple_of(1024 * 1024);
    let geometry = Geometry::plan(size, 1, WAL_SIZE_MIN).expect("large enough");
    let superblock = Superblock {
        features: 0,
        compatible: 0,
        cluster: CLUSTER,
        node,
        device: DeviceId(u128::from(node.0) | u128::from(which) << 64),
        boot: BootCount(0),
        geometry,
        revision: Revision(0),
        openings: Openings::default(),
    };
    let mut disk = Disk::new(size);
    store::format(&mut disk, &superblock).expect("a blank disk");
    disk
}

/// As a node writes down the highest revision of the authority (I11), and that it was taken in (I9).
fn remember(superblock: &mut Superblock, disk: &mut Disk, revision: Revision, taken: Option<BootId>) {
    let before = *superblock;
    superblock.revision = superblock.revision.max(revision);
    if let Some(id) = taken {
        superblock.taken_in(id, superblock.boot);
    }
    if *superblock != before {
        // What cannot be written is told again after the next start.
        let _ = store::rewrite(disk, superblock);
    }
}

/// Whether the only device is trusted, and its boot counter from now on.
fn judged(devices: &[DeviceJudged]) -> (bool, BootCount) {
    match devices {
        [DeviceJudged { judgement: Judgement::Sound { boot }, .. }] => (true, *boot),
        [DeviceJudged { judgement: Judgement::Distrusted { boot }, .. }] => (false, *boot),
        other => unreachable!("a node of one device is taken in with it: {other:?}"),
    }
}

impl Process {
    /// Opens the disk; `Err` says why it cannot be.
    pub(crate) fn start(
        node: NodeId,
        disk: &Disk,
        id: BootId,
        seed: u64,
        chronicle: Rc<RefCell<Chronicle>>,
    ) -> Result<Self, String> {
        let mut whole = disk.clone();
        let superblock = store::open(&mut whole, CLUSTER, node, id).map_err(|error| error.to_string())?;
        let region = superblock.geometry.region(0);
        let mut device = disk.device(region.base, region.len);
        // Operations take time: the world finishes them one by one, in any order.
        device.hold(true);
        let store = ShardStore::open(&mut whole, device, &superblock, 0).map_err(|error| error.to_string())?;
        let mut quay = Quay::new(node, 0, seed, Watched::new(store, node, chronicle), Ends::default());
        // It takes long; one run of eight finds what there is to find.
        if cfg!(debug_assertions) && seed.is_multiple_of(8) {
            quay.doubt_schedule();
        }
        let (gather, wanted) = (Gather::new(), BTreeSet::new());
        Ok(Self {
            quay,
            superblock,
            id,
            disk: whole,
            distrusting: None,
            gather,
            wanted,
            events: Vec::new(),
            leaving: false,
        })
    }

    /// Takes one thing, and lets the store go on; gives what was said.
    pub(crate) fn hear(&mut self, now: Time, heard: Heard) -> Vec<Out> {
        let quay = &mut self.quay;
        match &heard {
            Heard::Authority(FromAuthority::Registered { .. }) => self.gather.forget(),
            Heard::Authority(said) => self.gather.hear(said),
            _ => {}
        }
        match heard {
            Heard::Tick => quay.tick(now),
            Heard::Disk => {}
            Heard::Peer { from, message } => quay.peer_said(now, from, message),
            Heard::PeerUp(node) => {
                quay.wires().up.insert(node);
                quay.peer_up(now, node);
            }
            Heard::PeerDown { node, refused } => {
                quay.wires().up.remove(&node);
                quay.peer_down(now, node, refused);
            }
            Heard::Client { client, request } => quay.client_asks(now, client, request),
            Heard::ClientGone(client) => quay.client_gone(now, client),
            Heard::Authority(FromAuthority::Registered { settings, revision, devices, complete: _ }) => {
                let (trusted, boot) = judged(&devices);
                assert!(trusted || !quay.is_serving(), "it trusted its disk before it was told not to");
                remember(&mut self.superblock, &mut self.disk, revision, trusted.then_some(self.id));
                if trusted {
                    quay.serve(now, settings.grace);
                } else {
                    quay.distrust();
                    self.distrusting = Some((settings.grace, boot));
                }
            }
            Heard::Authority(FromAuthority::Revision(revision)) => {
                remember(&mut self.superblock, &mut self.disk, revision, None);
            }
            Heard::Authority(
                FromAuthority::RegisterRefused(_) | FromAuthority::Nodes(_) | FromAuthority::ShowConfigs,
            ) => {}
            Heard::Authority(said) => quay.authority_said(now, said),
            Heard::Leave => {
                self.leaving = true;
                quay.leave(now);
            }
            Heard::Stop => quay.stop(now),
        }
        while quay.advance(now, &mut self.events) {}
        if let Some((grace, boot)) = self.distrusting.take_if(|_| quay.is_distrusted()) {
            self.superblock.taken_in(self.id, boot);
            if store::rewrite(&mut self.disk, &self.superblock).is_ok() {
                quay.serve(now, grace);
                while quay.advance(now, &mut self.events) {}
            }
        }
        if quay.take_peers_changed() {
            let wanted = quay.wanted();
            if wanted != self.wanted {
                self.wanted.clone_from(&wanted);
                quay.wires().said.push(Out::Want(wanted));
            }
        }
        let wishes = std::mem::take(&mut quay.wires().wishes);
        let mut said = std::mem::take(&mut quay.wires().said);
        let at_once = wishes.into_iter().filter_map(|wish| self.gather.take(now, wish));
        said.extend(at_once.map(Out::Authority));
        said.extend(self.gather.next(now).into_iter().map(Out::Authority));
        said
    }

    pub(crate) fn device(&mut self) -> &mut MemoryDevice {
        self.quay.store_mut().inner.device_mut()
    }

    /// Whether it has heard that it has a connection to this one.
    pub(crate) fn is_up(&mut self, peer: NodeId) -> bool {
        self.quay.wires().up.contains(&peer)
    }

    pub(crate) fn replica(&self, segment: SegmentId) -> Option<&Replica> {
        self.quay.replica(segment)
    }

    /// A pass of its scrub begins now.
    pub(crate) fn scrub(&mut self) {
        self.quay.scrub_now();
    }

    /// The regular report.
    pub(crate) fn report(&self, now: Time) -> Report {
        quay::report(&[self.quay.figures(now)])
    }
}
