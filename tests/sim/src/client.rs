//! A client of the volume (what a gateway has inside): the production machine of each segment, and what it was asked.
//!
//! Each write gives every block a version of its own, so that what a read may show is a range of versions
//! (`checkers::History`).

use std::collections::BTreeMap;

use bytes::Bytes;
use engine::store::block_sum;
use engine_core::client::{Segment, Token};
use engine_core::config::Config;
use engine_core::ids::{BlockIndex, Generation, NodeId, SegmentId, Session};
use engine_core::message::Op;
use engine_core::random::Random;
use engine_core::record::{Blocks, Change};
use engine_core::replica::io::ClientRef;
use engine_core::time::{Span, Time};

/// What was asked for.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(crate) enum Wish {
    /// A write of these versions.
    Write(Vec<u64>),
    /// Zeros, as these versions.
    Zero(Vec<u64>),
    /// A read, which may show nothing older than these versions.
    Read(Vec<u64>),
    /// Which blocks hold data; those with these versions do, unless 0.
    Allocation(Vec<u64>),
}

/// What is under way.
#[derive(Debug, Clone)]
pub(crate) struct Task {
    pub(crate) segment: SegmentId,
    pub(crate) block: u32,
    pub(crate) count: u32,
    pub(crate) wish: Wish,
    pub(crate) begun: Time,
}

impl Task {
    pub(crate) fn is_write(&self) -> bool {
        self.written().is_some()
    }

    /// Versions it writes.
    pub(crate) fn written(&self) -> Option<&[u64]> {
        match &self.wish {
            Wish::Write(versions) | Wish::Zero(versions) => Some(versions),
            Wish::Read(_) | Wish::Allocation(_) => None,
        }
    }

    /// What the machine is asked for.
    pub(crate) fn op(&self) -> Op {
        let (block, count) = (BlockIndex(self.block), self.count);
        match &self.wish {
            Wish::Write(versions) => {
                Op::Write(Change::Write { block, blocks: content(self.segment, self.block, versions) })
            }
            Wish::Zero(_) => Op::Write(Change::Zero { block, count }),
            Wish::Read(_) => Op::Read { block, count },
            Wish::Allocation(_) => Op::Allocation { block, count },
        }
    }
}

/// A client's way to one node.
#[derive(Debug, Default)]
pub(crate) struct ClientLink {
    pub(crate) conn: Option<ClientRef>,
    /// Number of the attempt that counts.
    pub(crate) attempt: u64,
    pub(crate) pause: Span,
    /// When that attempt ends.
    pub(crate) due: Time,
}

/// A client, from its attach to its end.
#[derive(Debug)]
pub(crate) struct Client {
    pub(crate) generation: Generation,
    pub(crate) sessions: BTreeMap<SegmentId, Segment>,
    pub(crate) tasks: BTreeMap<Token, Task>,
    pub(crate) fenced: bool,
    last_token: Token,
    pub(crate) done: u64,
    pub(crate) links: BTreeMap<NodeId, ClientLink>,
    /// Time is being handed to it.
    pub(crate) ticking: bool,
    /// A fresh map is on its way.
    pub(crate) refreshing: bool,
    /// Its process is gone.
    pub(crate) dead: bool,
}

impl Client {
    pub(crate) fn new(generation: Generation, segments: &[Config], now: Time, seed: u64) -> Self {
        let mut random = Random::new(seed);
        // Sessions of one attachment grow, also when its client starts again: they begin at the clock.
        let first = Session(now.0 / 1_000_000);
        let session = |config: &Config| {
            let machine = Segment::new(config.clone(), generation, first, Random::new(random.next_u64()));
            (config.segment, machine)
        };
        Self {
            generation,
            sessions: segments.iter().map(session).collect(),
            tasks: BTreeMap::new(),
            fenced: false,
            last_token: 0,
            done: 0,
            links: BTreeMap::new(),
            ticking: false,
            refreshing: false,
            dead: false,
        }
    }

    /// Notes what is asked; gives its name.
    pub(crate) fn note(&mut self, task: Task) -> Token {
        self.last_token += 1;
        self.tasks.insert(self.last_token, task);
        self.last_token
    }

    /// Whether it can be asked for anything.
    pub(crate) const fn is_usable(&self) -> bool {
        !self.fenced && !self.dead
    }
}

/// A block's content: its version and place, recognisable.
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

/// The versions in what was read; 0 is a block of zeros.
pub(crate) fn versions(block: u32, blocks: &Blocks) -> Vec<u64> {
    let version = |(at, block): (u32, u32)| {
        let data = blocks.block(at);
        let word = |from: usize| u64::from_le_bytes(data[from..from + 8].try_into().expect("eight bytes"));
        let version = word(0);
        assert!(version == 0 || word(8) == u64::from(block), "block {block} holds block {} (I14)", word(8));
        // Each byte is like the one before.
        let even = data[16..4095] == data[17..4096];
        assert!(even && u64::from(data[16]) == version % 251, "block {block} is torn (I14)");
        version
    };
    (0..blocks.count()).zip(block..).map(version).collect()
}
