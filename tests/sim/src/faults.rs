//! What goes wrong in the world, and how it is put right.

use engine_core::authority::document::{AttachVolume, CreateVolume};
use engine_core::authority::io::{Answer, Call};
use engine_core::ids::{BlockIndex, Epoch, Generation, NodeId, RequestId, SegmentId, Session};
use engine_core::message::{Op, Request};
use engine_core::replica::io::RoleName;
use engine_core::time::Span;

use crate::client::Client;
use crate::load::Load;
use crate::node::{Heard, Process};
use crate::world::{Event, World};

const VOLUME: &str = "story";
const MIB: u64 = 1 << 20;

impl World {
    /// A world whose nodes serve one volume of `megabytes`, attached.
    pub(crate) fn serving(seed: u64, nodes: u16, copies: u8, min_copies: u8, megabytes: u64) -> Self {
        let mut world = Self::new(seed, nodes, 4096);
        world.start_authority();
        let all: Vec<NodeId> = world.places.keys().copied().collect();
        for node in &all {
            world.start(*node);
        }
        world.run(Span::millis(1500));
        world.create(copies, min_copies, megabytes);
        world.attach();
        world
    }

    fn create(&mut self, copies: u8, min_copies: u8, megabytes: u64) {
        let request = CreateVolume {
            name: VOLUME.into(),
            size: megabytes * MIB,
            copies: Some(copies),
            min_copies: Some(min_copies),
            segment_size: Some(64 * MIB),
            zone: None,
            spread: None,
        };
        self.call(Call::Create(request), Span::seconds(30)).expect("created");
    }

    /// Attaches a new client; the one before is forgotten, what it had under way is undecided.
    pub(crate) fn attach(&mut self) {
        let request = AttachVolume { client: "sim".into() };
        let Ok(Answer::Map(map)) = self.call(Call::Attach(VOLUME.into(), request), Span::seconds(40)) else {
            self.fail("attach failed");
        };
        self.history.attached(self.now, map.generation);
        let seed = self.between(0, u64::MAX - 1);
        self.client = Some(Client::new(map.generation, &map.segments, self.now, seed));
    }

    /// The first segment.
    pub(crate) fn segment(&self) -> SegmentId {
        self.all_segments()[0]
    }

    pub(crate) fn start(&mut self, node: NodeId) {
        let seed = self.between(0, u64::MAX - 1);
        let place = self.places.get_mut(&node).expect("a node");
        if place.process.is_some() {
            return;
        }
        place.life += 1;
        place.paused = None;
        let life = place.life;
        place.process = Some(Process::start(node, &place.disk, seed, self.chronicle.clone()));
        self.register_soon(node, life);
        self.after(Span(1_000), Event::Node { node, life, heard: Heard::Tick });
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
            self.network.sever(node, other, self.now, &mut self.random);
            if refuses {
                self.sever(other, node, false);
            } else {
                self.stall(other, node);
            }
        }
        self.drop_conn(node);
    }

    /// Puts an older image of its disk under a node that is down.
    pub(crate) fn roll_back(&mut self, node: NodeId, image: &engine::device::memory::Disk) {
        let place = self.places.get_mut(&node).expect("a node");
        assert!(place.process.is_none(), "{node} runs");
        place.disk = image.image();
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

    /// Nothing gets from `from` to `to`.
    pub(crate) fn block(&mut self, from: NodeId, to: NodeId) {
        self.network.blocked.insert((from, to));
        self.stall(from, to);
        self.stall(to, from);
    }

    fn stall(&mut self, from: NodeId, to: NodeId) {
        let link = self.network.number(from, to);
        let patience = Span::millis(self.between(1_000, 10_000));
        if link != 0 {
            if self.places[&to].process.is_none() {
                // Nobody acknowledges: given up after a while, as with a blocked way.
                self.network.sever(from, to, self.now, &mut self.random.clone());
                let life = self.places[&from].life;
                return self.after(patience, Event::Broken { from, to, life, refused: false });
            }
            self.after(patience, Event::Stalled { from, to, link });
        }
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

    /// All ways are open again.
    pub(crate) fn heal(&mut self) {
        let ways = std::mem::take(&mut self.network.blocked);
        for (from, to) in ways {
            self.release_stuck(from, to);
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

    /// The client does not reach a node.
    pub(crate) fn cut_client(&mut self, node: NodeId) {
        self.client_cut.insert(node);
        self.drop_conn(node);
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
        self.load = Some(Load { segments, blocks, hot: 8, depth: 32, burst: 2, reads: 30, longest: 4 });
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
        if let Err(torn) = self.history.linear.check() {
            self.fail(&torn.to_string());
        }
        for place in self.places.values() {
            if let Some(process) = &place.process {
                process.quay.store().inner.audit();
            }
        }
    }

    /// What members hold, block by block.
    fn compare(&mut self, written: &[(SegmentId, u32)]) {
        for segment in self.all_segments() {
            let config = self.config(segment);
            self.peeked.clear();
            let blocks: Vec<u32> = written.iter().filter(|(s, _)| *s == segment).map(|(_, block)| *block).collect();
            for node in &config.members {
                for block in &blocks {
                    let op = Op::Peek { block: BlockIndex(*block), count: 1 };
                    let session = Session(u64::from(*block));
                    let request = RequestId(u64::MAX);
                    let (epoch, generation) = (Epoch(0), Generation(0));
                    self.send_request(*node, Request { segment, epoch, generation, session, request, op });
                }
                let (node, wanted) = (*node, blocks.len());
                self.expect("peeks are answered", Span::seconds(10), |world| {
                    wanted == 0 || world.peeked.get(&node).is_some_and(|got| got.len() == wanted)
                });
            }
            let mut all: Vec<Vec<u64>> = self.peeked.values().cloned().collect();
            for one in &mut all {
                one.sort_unstable();
            }
            if all.windows(2).any(|pair| pair[0] != pair[1]) {
                self.fail("replicas differ");
            }
        }
    }
}
