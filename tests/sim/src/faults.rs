//! What goes wrong in the world, and how it is put right.

use std::collections::{BTreeMap, BTreeSet};
use std::rc::Rc;

use engine_core::authority::document::{AttachVolume, CreateVolume, Spread};
use engine_core::authority::io::{Answer, Call, CallId};
use engine_core::config::Config;
use engine_core::ids::{BlockIndex, BootId, Epoch, Generation, NodeId, RequestId, SegmentId, Session};
use engine_core::limits::{SOCKET_SILENCE_MAX, STOP_WAIT};
use engine_core::message::{Op, Request};
use engine_core::replica::io::RoleName;
use engine_core::time::{Span, Time};

use crate::client::Client;
use crate::conns::{CHECKER, ClientId};
use crate::load::Load;
use crate::network::{NETS, Net};
use crate::node::{Heard, Process};
use crate::world::{Event, Shape, World};

pub(crate) const VOLUME: &str = "story";
const MIB: u64 = 1 << 20;
/// How long it takes until both ends know of a connection that was reset.
pub(crate) const RESET: Span = Span::millis(2);

impl World {
    /// A world whose nodes serve one volume of `megabytes`, attached.
    pub(crate) fn serving(seed: u64, nodes: u16, copies: u8, min_copies: u8, megabytes: u64) -> Self {
        let shape = Shape { nodes, zones: 1, extents: 4096, copies, min_copies, megabytes, spread_zone: false };
        Self::shaped(seed, &shape)
    }

    /// A world of this shape whose nodes serve one volume, attached.
    pub(crate) fn shaped(seed: u64, shape: &Shape) -> Self {
        let mut world = Self::new(seed, shape);
        world.open(shape);
        world
    }

    /// Authority and nodes start and serve one volume, attached.
    pub(crate) fn open(&mut self, shape: &Shape) {
        self.start_authority();
        let all: Vec<NodeId> = self.places.keys().copied().collect();
        for node in &all {
            self.start(*node);
        }
        self.run(Span::millis(1500));
        self.create(shape);
        self.attach();
    }

    fn create(&mut self, shape: &Shape) {
        self.create_volume(VOLUME, shape);
    }

    fn create_volume(&mut self, name: &str, shape: &Shape) {
        let request = CreateVolume {
            name: name.into(),
            size: shape.megabytes * MIB,
            copies: Some(shape.copies),
            min_copies: Some(shape.min_copies),
            segment_size: Some(64 * MIB),
            zone: None,
            spread: Some(if shape.spread_zone { Spread::Zone } else { Spread::Node }),
            iops: None,
            mibps: None,
        };
        self.call(Call::Create(request), Span::seconds(30)).expect("created");
    }

    /// A volume more with a client of its own; `with` leads its only segment, and `without` has no copy of it.
    pub(crate) fn add_neighbour(&mut self, shape: &Shape, with: NodeId, without: NodeId) -> SegmentId {
        for _ in 0..16 {
            let name = format!("neighbour-{}", self.all_segments().len());
            self.create_volume(&name, shape);
            let segment = self.all_segments().into_iter().max().expect("just created");
            let config = self.config(segment);
            if config.primary != with || config.is_member(without) {
                continue;
            }
            let attach = Call::Attach(name, AttachVolume { client: "neighbour".into() });
            let Ok(Answer::Map(map)) = self.call(attach, Span::seconds(30)) else { self.fail("not attached") };
            // Numbers of clients of the first volume follow each other.
            let before = std::mem::replace(&mut self.attached, 1000 + self.neighbours.len() as ClientId);
            self.open_client(map.generation, &map.segments);
            self.neighbours.push(std::mem::replace(&mut self.attached, before));
            return segment;
        }
        self.fail("no volume came to lie there")
    }

    /// Attaches a new client at once; the one before has not heard of it yet.
    pub(crate) fn attach(&mut self) {
        let call = self.ask_attach();
        self.attaching = Some(call);
        if !self.until(Span::seconds(40), |world| world.attaching.is_none()) {
            self.fail("attach failed");
        }
    }

    /// Somebody makes volumes until there is no space for another one.
    pub(crate) fn fill(&mut self, copies: u8, min_copies: u8, megabytes: u64) {
        self.fillers += 1;
        let request = CreateVolume {
            name: format!("filler-{}", self.fillers),
            size: megabytes * MIB,
            copies: Some(copies),
            min_copies: Some(min_copies),
            segment_size: Some(512 * MIB),
            zone: None,
            spread: Some(Spread::Node),
            iops: None,
            mibps: None,
        };
        let call = self.ask(Call::Create(request));
        self.filling.push(call);
    }

    /// Looks what became of them.
    pub(crate) fn poll_filling(&mut self) {
        let first = self.seat.first_call;
        let Self { filling, seat, coverage, .. } = self;
        filling.retain(|call| {
            match seat.answers.remove(call) {
                Some(Ok(_)) => coverage.count("state: a volume more was made"),
                // I13: that is all lack of space is.
                Some(Err(reason)) if reason.contains("space") => coverage.count("state: no space for another volume"),
                Some(Err(_)) => {}
                None => return call.0 >= first,
            }
            false
        });
    }

    pub(crate) fn ask_attach(&mut self) -> CallId {
        self.ask(Call::Attach(VOLUME.into(), AttachVolume { client: "sim".into() }))
    }

    /// A client begins.
    pub(crate) fn open_client(&mut self, generation: Generation, segments: &[Config]) {
        self.history.attached(self.now, generation);
        let seed = self.between(0, u64::MAX - 1);
        self.attached += 1;
        self.clients.insert(self.attached, Client::new(generation, segments, self.now, seed));
    }

    /// The first segment.
    pub(crate) fn segment(&self) -> SegmentId {
        self.all_segments()[0]
    }

    /// Starts a node; says whether its disk could be opened.
    pub(crate) fn start(&mut self, node: NodeId) -> bool {
        let seed = self.between(0, u64::MAX - 1);
        let place = self.places.get_mut(&node).expect("a node");
        if place.process.is_some() {
            return true;
        }
        place.life += 1;
        place.paused = None;
        let life = place.life;
        match Process::start(node, &place.disk, BootId(u128::from(life)), seed, Rc::clone(&self.chronicle)) {
            Ok(process) => place.process = Some(process),
            Err(reason) => {
                assert!(self.damage, "{node} cannot open its disk: {reason}");
                self.coverage.count("state: a damaged disk was not opened");
                return false;
            }
        }
        self.register_soon(node, life);
        self.after(Span(1_000), Event::Node { node, life, heard: Heard::Tick });
        true
    }

    /// The node dies; what its device had not made durable may be lost. `refuses`: its host lives and says so.
    pub(crate) fn crash(&mut self, node: NodeId, refuses: bool) {
        let place = self.places.get_mut(&node).expect("a node");
        if place.process.take().is_none() {
            return;
        }
        place.life += 1;
        place.paused = None;
        place.refuses = refuses;
        place.forget();
        let disk = place.disk.clone();
        disk.crash(&mut self.random);
        self.drop_session(node);
        let others: Vec<NodeId> = self.places.keys().copied().filter(|other| *other != node).collect();
        for other in others {
            self.sever(node, other, false);
            if refuses {
                self.sever(other, node, false);
            } else {
                self.stall(other, node);
            }
        }
        // A host that lives says so at once; of a dead one nobody hears anything.
        self.drop_conns(node, if refuses { RESET } else { SOCKET_SILENCE_MAX });
    }

    /// The process is killed; everything it has written stays, and its host says that nobody is there.
    pub(crate) fn kill(&mut self, node: NodeId) {
        let disk = self.places[&node].disk.clone();
        disk.keep();
        self.crash(node, true);
    }

    /// Puts an older image of its disk under a node that is down.
    pub(crate) fn roll_back(&mut self, node: NodeId, image: &engine::device::memory::Disk) {
        let place = self.places.get_mut(&node).expect("a node");
        assert!(place.process.is_none(), "{node} runs");
        place.disk = image.image();
    }

    /// A node that is gone gets a blank disk, as long as the one it had.
    pub(crate) fn new_disk(&mut self, node: NodeId, extents: u64) {
        let place = self.places.get_mut(&node).expect("a node");
        assert!(place.process.is_none(), "{node} runs");
        place.disks += 1;
        place.disk = crate::node::format(node, place.disks, extents);
        place.refuses = true;
    }

    /// The authority dies and is started again at once.
    pub(crate) fn restart_authority(&mut self) {
        self.stop_authority();
        self.start_authority();
    }

    /// The node stops on purpose, as a node's process does: it serves on until it may go, or has waited long enough.
    pub(crate) fn stop(&mut self, node: NodeId) {
        let place = self.places.get_mut(&node).expect("a node");
        let (life, Some(process)) = (place.life, &mut place.process) else { return };
        // Also one that stands still: it will hear of it when it goes on, and whoever heals the world has to know.
        process.leaving = true;
        self.on_node(node, life, Heard::Leave);
        self.after(Span::millis(1), Event::Stopping { node, life, until: self.now + STOP_WAIT });
    }

    pub(crate) fn on_stopping(&mut self, node: NodeId, life: u64, until: Time) {
        let place = &self.places[&node];
        let Some(process) = place.process.as_ref().filter(|_| place.life == life) else { return };
        if place.paused.is_some() || !process.quay.may_stop() && self.now < until {
            return self.after(Span::millis(1), Event::Stopping { node, life, until });
        }
        self.on_node(node, life, Heard::Stop);
        self.crash(node, true);
    }

    /// Gone for good.
    pub(crate) fn lose(&mut self, node: NodeId) {
        self.crash(node, false);
        self.places.get_mut(&node).expect("a node").refuses = false;
    }

    /// The process stands still, its connections stay.
    pub(crate) fn pause(&mut self, node: NodeId, span: Span) {
        let place = self.places.get_mut(&node).expect("a node");
        if place.process.is_some() && place.paused.is_none() {
            place.paused = Some(Vec::new());
            let life = place.life;
            self.after(span, Event::Resume { node, life });
        }
    }

    /// Nothing gets from `from` to `to`, by either network.
    pub(crate) fn block(&mut self, from: NodeId, to: NodeId) {
        for net in NETS {
            self.block_on(net, from, to);
        }
    }

    /// Nothing gets from `from` to `to` by this network.
    pub(crate) fn block_on(&mut self, net: Net, from: NodeId, to: NodeId) {
        self.network.cut.insert(((from, to), net));
        self.stall(from, to);
        self.stall(to, from);
    }

    /// Both ways between every node of one list and every one of the other.
    pub(crate) fn partition(&mut self, ones: &[NodeId], others: &[NodeId]) {
        for one in ones {
            for other in others {
                if one != other {
                    self.block(*one, *other);
                    self.block(*other, *one);
                }
            }
        }
    }

    /// A packet filter between two nodes: nothing passes, and each is told that the other's process is gone.
    pub(crate) fn filter(&mut self, one: NodeId, other: NodeId) {
        self.partition(&[one], &[other]);
        self.network.filtered.extend([(one, other), (other, one)]);
    }

    /// All ways are open again.
    pub(crate) fn heal(&mut self) {
        self.network.filtered.clear();
        let ways = std::mem::take(&mut self.network.cut);
        for (way, _) in ways {
            self.release_stuck(way);
        }
        self.client_cut.clear();
        self.seat.cut.clear();
    }

    /// Both connections between two nodes break.
    pub(crate) fn flap(&mut self, one: NodeId, other: NodeId) {
        self.sever(one, other, false);
        self.sever(other, one, false);
    }

    /// A node and the authority do not hear each other.
    pub(crate) fn cut_authority(&mut self, node: NodeId) {
        self.seat.cut.insert(node);
        self.drop_session(node);
    }

    /// No client reaches a node.
    pub(crate) fn cut_client(&mut self, node: NodeId) {
        self.client_cut.insert(node);
        self.drop_conns(node, SOCKET_SILENCE_MAX);
    }

    pub(crate) fn primary(&self) -> NodeId {
        self.config(self.segment()).primary
    }

    /// Members that do not lead.
    pub(crate) fn backups(&self) -> Vec<NodeId> {
        let config = self.config(self.segment());
        config.members.iter().copied().filter(|node| *node != config.primary).collect()
    }

    pub(crate) fn role(&self, node: NodeId, segment: SegmentId) -> Option<RoleName> {
        Some(self.places[&node].process.as_ref()?.replica(segment)?.view().role)
    }

    /// Extents a node's replica has mended from another member.
    pub(crate) fn mended(&self, node: NodeId, segment: SegmentId) -> u64 {
        let process = self.places[&node].process.as_ref();
        process.and_then(|process| process.replica(segment)).map_or(0, engine_core::replica::Replica::mended)
    }

    /// Zones where a copy is missing and no node that could take it has the space: one for each that is missing.
    pub(crate) fn zones_without_space(&self, shape: &Shape) -> Vec<String> {
        let missing = self.all_segments().into_iter().map(|segment| self.config(segment));
        let lacking = missing.filter(|config| config.missing() > 0 && !self.has_space_for(shape, config));
        let zones: BTreeSet<String> = lacking.map(|config| self.zone_for(shape, &config)).collect();
        zones.into_iter().collect()
    }

    /// Main volumes may want zones of their own for their copies; what fills the nodes does not.
    fn wants_zone(&self, shape: &Shape, config: &Config, zone: &str) -> bool {
        let spread = shape.spread_zone && config.segment.volume == self.segment().volume;
        !spread || config.members.iter().all(|member| self.places[member].zone != zone)
    }

    fn has_space_for(&self, shape: &Shape, config: &Config) -> bool {
        self.places.iter().any(|(node, place)| {
            let space = place.process.as_ref().map(|process| engine::store::Store::space(process.quay.store()));
            let fits = space.is_some_and(|space| space.capacity - space.booked >= u64::from(config.extents));
            !config.is_member(*node) && self.wants_zone(shape, config, &place.zone) && fits
        })
    }

    fn zone_for(&self, shape: &Shape, config: &Config) -> String {
        let zones = self.places.values().map(|place| &place.zone);
        zones.filter(|zone| self.wants_zone(shape, config, zone)).min().expect("a zone").clone()
    }

    /// Whether every segment has all its copies and a primary that serves.
    pub(crate) fn is_whole(&self) -> bool {
        self.all_segments().into_iter().all(|segment| {
            let config = self.config(segment);
            let leads = |replica: &engine_core::replica::Replica| {
                replica.is_serving() && replica.config().epoch == config.epoch
            };
            let follows = |node: &NodeId| {
                let replica = self.places[node].process.as_ref().and_then(|process| process.replica(segment));
                replica.is_some_and(|replica| replica.config().epoch == config.epoch)
            };
            config.missing() == 0
                && config.members.iter().all(follows)
                && config.candidates.is_empty()
                && self.places[&config.primary].process.as_ref().and_then(|p| p.replica(segment)).is_some_and(leads)
        })
    }

    pub(crate) fn fail(&self, what: &str) -> ! {
        for segment in self.all_segments() {
            eprintln!("{:?}", self.config(segment));
            for (node, place) in &self.places {
                let replica = place.process.as_ref().and_then(|process| process.replica(segment));
                eprintln!(
                    "  {node} life {} {:?}",
                    place.life,
                    replica.map(|replica| (
                        replica.view().role,
                        replica.view().commit,
                        replica.view().last,
                        replica.config().epoch,
                        replica.view().copy
                    ))
                );
                if self.print {
                    eprintln!("  {replica:?}");
                }
            }
        }
        panic!("at {:.3} s: {what}", self.now.0 as f64 / 1e9);
    }

    pub(crate) fn expect(&mut self, what: &str, limit: Span, holds: impl FnMut(&mut Self) -> bool) {
        if !self.until(limit, holds) {
            self.fail(&format!("not within {limit:?}: {what}"));
        }
    }

    /// Load on all segments.
    pub(crate) fn load(&mut self, blocks: u32) {
        let segments = self.all_segments();
        let (every, hot, depth, burst, longest) = (Span::millis(2), 8, 32, 2, 4);
        self.load = Some(Load { segments, blocks, hot, depth, every, burst, reads: 30, zeros: 5, longest, large: 0 });
    }

    /// Everything is read and equals what was acknowledged; replicas are identical; books are in order.
    pub(crate) fn verify(&mut self) {
        self.load = None;
        self.expect_done(Span::seconds(60));
        let written: Vec<(SegmentId, u32)> = self.history.blocks.keys().copied().collect();
        for chunk in written.chunks(64) {
            for (segment, block) in chunk {
                self.read(*segment, *block, 1);
            }
            self.expect_done(Span::seconds(20));
        }
        // Beats carry the commit point.
        self.run(Span::millis(1500));
        self.compare(&written);
        if let Err(torn) = self.history.check() {
            self.fail(&torn);
        }
        self.check_books();
    }

    /// Every node's books are in order, and nothing is promised twice (I13).
    pub(crate) fn check_books(&self) {
        for (node, place) in &self.places {
            let Some(process) = &place.process else { continue };
            process.quay.store().inner.audit();
            let space = engine::store::Store::space(process.quay.store());
            assert!(space.booked <= space.capacity && space.used <= space.booked, "{node}: {space:?} (I13)");
        }
    }

    /// What members hold, block by block.
    fn compare(&mut self, written: &[(SegmentId, u32)]) {
        for segment in self.all_segments() {
            let config = self.config(segment);
            self.peeked.clear();
            let blocks: Vec<u32> = written.iter().filter(|(s, _)| *s == segment).map(|(_, block)| *block).collect();
            for node in &config.members {
                let life = self.places[node].life;
                let conn = self.open_conn(CHECKER, *node, life);
                for block in &blocks {
                    let op = Op::Peek { block: BlockIndex(*block), count: 1 };
                    let session = Session(u64::from(*block));
                    let request = RequestId(u64::MAX);
                    let (epoch, generation) = (Epoch(0), Generation(0));
                    self.carry_request(conn, Request { segment, epoch, generation, session, request, op });
                }
                let (node, wanted) = (*node, blocks.len());
                self.expect("peeks are answered", Span::seconds(10), |world| {
                    wanted == 0 || world.peeked.get(&node).is_some_and(|got| got.len() == wanted)
                });
            }
            let all: Vec<&BTreeMap<u32, u64>> = self.peeked.values().collect();
            if all.windows(2).any(|pair| pair[0] != pair[1]) {
                for pair in all.windows(2).filter(|_| self.print) {
                    let differ: Vec<_> =
                        pair[0].iter().filter(|(block, got)| pair[1].get(block) != Some(got)).collect();
                    eprintln!("{differ:?}");
                }
                self.fail("replicas differ");
            }
        }
    }
}
