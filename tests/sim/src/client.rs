//! A client of one volume: follows `engine_core::client`'s rules in a simpler shape, and knows what it wrote.
//!
//! One write per block is under way at a time, each with a version of its own, so that what a read may return is a
//! range of versions (`checkers::History`).

use std::collections::{BTreeMap, BTreeSet};

use bytes::Bytes;
use engine::store::block_sum;
use engine_core::config::Config;
use engine_core::ids::{BlockIndex, Epoch, Generation, NodeId, RequestId, SegmentId, Session};
use engine_core::message::{Op, Outcome, Refusal, Reply, Request};
use engine_core::random::Random;
use engine_core::record::{Blocks, Change};
use engine_core::time::{Span, Time};

use crate::checkers::History;

/// What is under way.
#[derive(Debug, Clone)]
pub(crate) struct Task {
    pub(crate) segment: SegmentId,
    pub(crate) block: u32,
    pub(crate) count: u32,
    /// `Some`: a write of these versions. `None`: a read with these floors.
    pub(crate) write: Option<Vec<u64>>,
    pub(crate) floors: Vec<u64>,
    pub(crate) begun: Time,
    /// Session it was sent in last; 0: not sent.
    sent_in: Session,
    again_at: Time,
}

/// What the client knows of one segment.
#[derive(Debug)]
pub(crate) struct Seg {
    pub(crate) config: Config,
    epoch: Epoch,
    session: Session,
    at: Option<NodeId>,
    turn: usize,
    seek_at: Time,
    heard: Time,
}

pub(crate) struct Client {
    pub(crate) generation: Generation,
    pub(crate) segs: BTreeMap<SegmentId, Seg>,
    pub(crate) tasks: BTreeMap<RequestId, Task>,
    pub(crate) fenced: bool,
    last_request: u64,
    pub(crate) done: u64,
    /// Segments that moved away from where they were known to be: the authority knows more.
    pub(crate) lost: BTreeSet<SegmentId>,
    pub(crate) sends: Vec<(NodeId, Request)>,
    random: Random,
}

/// A block's content: its version, recognisable.
pub(crate) fn content(segment: SegmentId, block: u32, versions: &[u64]) -> Blocks {
    let mut data = Vec::with_capacity(versions.len() * 4096);
    let mut sums = Vec::with_capacity(versions.len() * 4);
    for (block, version) in (block..).zip(versions) {
        let at = data.len();
        data.extend_from_slice(&version.to_le_bytes());
        data.extend_from_slice(&u64::from(block).to_le_bytes());
        data.resize(at + 4096, u8::try_from(version % 251).unwrap_or(0));
        sums.extend_from_slice(&block_sum(segment, BlockIndex(block), &data[at..]).to_le_bytes());
    }
    Blocks { data: Bytes::from(data), sums: Bytes::from(sums) }
}

/// The versions in what was read; 0 is a block never written.
pub(crate) fn versions(block: u32, blocks: &Blocks) -> Vec<u64> {
    let version = |(at, block): (u32, u32)| {
        let data = blocks.block(at);
        let word = |from: usize| u64::from_le_bytes(data[from..from + 8].try_into().expect("eight bytes"));
        let version = word(0);
        assert!(version == 0 || word(8) == u64::from(block), "block {block} holds block {}", word(8));
        assert!(data[16..].iter().all(|b| u64::from(*b) == version % 251), "block {block} is torn");
        version
    };
    (0..blocks.count()).zip(block..).map(version).collect()
}

impl Client {
    pub(crate) fn new(generation: Generation, segments: &[Config], now: Time, seed: u64) -> Self {
        let seg = |config: &Config| Seg {
            config: config.clone(),
            epoch: config.epoch,
            session: Session(1),
            at: Some(config.primary),
            turn: 0,
            seek_at: now,
            heard: now,
        };
        Self {
            generation,
            segs: segments.iter().map(|config| (config.segment, seg(config))).collect(),
            tasks: BTreeMap::new(),
            fenced: false,
            last_request: 0,
            done: 0,
            lost: BTreeSet::new(),
            sends: Vec::new(),
            random: Random::new(seed),
        }
    }

    pub(crate) fn begin(
        &mut self,
        now: Time,
        segment: SegmentId,
        block: u32,
        count: u32,
        write: Option<Vec<u64>>,
        floors: Vec<u64>,
    ) -> RequestId {
        self.last_request += 1;
        let id = RequestId(self.last_request);
        let task = Task { segment, block, count, write, floors, begun: now, sent_in: Session(0), again_at: now };
        self.tasks.insert(id, task);
        self.push(now, segment);
        id
    }

    /// Sends what has not been sent in this session.
    fn push(&mut self, now: Time, segment: SegmentId) {
        let Some(seg) = self.segs.get(&segment) else { return };
        let Some(at) = seg.at else { return };
        for (id, task) in self.tasks.iter_mut().filter(|(_, task)| task.segment == segment) {
            if task.sent_in == seg.session || task.again_at > now {
                continue;
            }
            task.sent_in = seg.session;
            let (block, count) = (BlockIndex(task.block), task.count);
            let op = match &task.write {
                Some(versions) => Op::Write(Change::Write { block, blocks: content(segment, task.block, versions) }),
                None => Op::Read { block, count },
            };
            let (epoch, generation, session) = (seg.epoch, self.generation, seg.session);
            self.sends.push((at, Request { segment, epoch, generation, session, request: *id, op }));
        }
    }

    fn turn_to(&mut self, now: Time, segment: SegmentId, at: Option<NodeId>) {
        let pause = Span(self.random.between(20_000_000, 100_000_000));
        let Some(seg) = self.segs.get_mut(&segment) else { return };
        seg.session = seg.session.next();
        seg.at = at;
        seg.seek_at = now + pause;
        for task in self.tasks.values_mut().filter(|task| task.segment == segment) {
            task.again_at = now + if at.is_some() { Span(1_000_000) } else { Span::ZERO };
        }
        self.push(now, segment);
    }

    pub(crate) fn on_lost(&mut self, now: Time, node: NodeId) {
        let lost: Vec<SegmentId> = self.segs.iter().filter(|(_, s)| s.at == Some(node)).map(|(id, _)| *id).collect();
        for segment in lost {
            self.turn_to(now, segment, None);
        }
    }

    pub(crate) fn on_tick(&mut self, now: Time) {
        let segments: Vec<SegmentId> = self.segs.keys().copied().collect();
        for segment in segments {
            self.push(now, segment);
            let pending = self.tasks.values().any(|task| task.segment == segment);
            let pause = Span(self.random.between(20_000_000, 200_000_000));
            let generation = self.generation;
            let Some(seg) = self.segs.get_mut(&segment) else { continue };
            let silent = now.since(seg.heard) > Span::millis(1000);
            if pending && now >= seg.seek_at && (seg.at.is_none() || silent) {
                let asked: Vec<NodeId> = seg.config.holders().collect();
                seg.turn += 1;
                seg.seek_at = now + pause;
                let to = asked[seg.turn % asked.len()];
                let (epoch, session, request) = (seg.epoch, seg.session, RequestId(0));
                self.sends.push((to, Request { segment, epoch, generation, session, request, op: Op::Locate }));
            }
        }
    }

    pub(crate) fn learn(&mut self, now: Time, config: Config) {
        let segment = config.segment;
        let Some(seg) = self.segs.get_mut(&segment) else { return };
        let newer = config.epoch > seg.config.epoch;
        if newer {
            seg.epoch = seg.epoch.max(config.epoch);
            seg.config = config.clone();
        }
        let moves = seg.at != Some(config.primary) && config.epoch >= seg.config.epoch;
        if moves {
            self.turn_to(now, segment, Some(config.primary));
        }
    }

    /// Takes a reply; checks it against the history.
    pub(crate) fn on_reply(&mut self, now: Time, from: NodeId, reply: Reply, history: &mut History) {
        let Some(seg) = self.segs.get_mut(&reply.segment) else { return };
        if let Outcome::Located(config) = reply.outcome {
            return self.learn(now, config);
        }
        if matches!(reply.outcome, Outcome::Refused(Refusal::Unknown)) {
            self.lost.insert(reply.segment);
        }
        if reply.session != seg.session || seg.at != Some(from) {
            return;
        }
        // I7: an answer of an epoch below the highest seen is dropped; whoever gave it has not heard of that epoch yet.
        if reply.epoch < seg.epoch {
            let segment = reply.segment;
            return self.turn_to(now, segment, None);
        }
        seg.epoch = reply.epoch;
        seg.heard = now;
        let (segment, id) = (reply.segment, reply.request);
        match reply.outcome {
            Outcome::Written => {
                let Some(task) = self.tasks.remove(&id) else { return };
                self.done += 1;
                history.acknowledged(now, self.generation, &task);
            }
            Outcome::Data(blocks) => {
                let Some(task) = self.tasks.remove(&id) else { return };
                self.done += 1;
                assert_eq!(blocks.count(), task.count);
                history.read(now, from, reply.epoch, &task, &versions(task.block, &blocks));
            }
            Outcome::Refused(refusal) => self.on_refused(now, from, segment, id, refusal),
            Outcome::Allocation(_) | Outcome::Located(_) => {}
        }
    }

    fn on_refused(&mut self, now: Time, from: NodeId, segment: SegmentId, id: RequestId, refusal: Refusal) {
        match refusal {
            Refusal::NotPrimary(Some(config)) if config.primary != from => {
                self.turn_to(now, segment, None);
                self.learn(now, config);
            }
            Refusal::NotPrimary(Some(config)) => {
                self.learn(now, config);
                self.turn_to(now, segment, Some(from));
            }
            Refusal::NotPrimary(None) => self.turn_to(now, segment, None),
            Refusal::Unknown => {
                self.lost.insert(segment);
                self.turn_to(now, segment, None);
            }
            Refusal::Busy => {
                let pause = Span(self.random.between(20_000_000, 100_000_000));
                if let Some(task) = self.tasks.get_mut(&id) {
                    (task.sent_in, task.again_at) = (Session(0), now + pause);
                }
            }
            Refusal::OldSession => {}
            Refusal::Fenced(_) => {
                self.fenced = true;
                self.tasks.clear();
            }
            Refusal::Malformed | Refusal::Corrupt(_) => panic!("{from}: {segment} {id}: {refusal:?}"),
        }
    }
}
