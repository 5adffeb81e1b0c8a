//! The load a failover is felt by: a stream of 4K writes and a stream of 4K reads on one attached volume, each with so
//! many requests in flight, as fast as they go.
//!
//! Every block carries a stamp with the number of its write. A read must give the newest write acknowledged before it
//! was asked, or a later one: anything else is a stale read, and the run failed. At the end every block is read again,
//! from the volume and from each member.

use std::cell::RefCell;
use std::rc::Rc;
use std::sync::atomic::{AtomicBool, Ordering};
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::thread::JoinHandle;
use std::time::{Duration, Instant};

use bytes::{Bytes, BytesMut};
use engine::authority::api::VolumeMap;
use engine::gateway::Export;
use engine_core::ids::NodeId;
use engine_core::random::Random;
use tokio::task::JoinSet;

use crate::http::Api;
use crate::reach::{self, Reach};
use crate::signals;
use crate::verify::check::Peek;
use crate::verify::stamp::{BLOCK, Content, Stamp};

/// Blocks the streams work on: few enough to be verified in a moment, too many to meet often.
const BLOCKS: u64 = 2048;
/// Blocks looked at in one step of the verification.
const STEP: u64 = 64;
/// How long a member may be behind when everything has ended.
const CATCH_UP: Duration = Duration::from_secs(20);

/// What one stream has seen.
#[derive(Debug, Clone, Copy)]
pub(super) struct Stream {
    last: Instant,
    longest: Duration,
    /// Requests answered so far.
    pub(super) answered: u64,
}

impl Stream {
    fn new() -> Self {
        Self { last: Instant::now(), longest: Duration::ZERO, answered: 0 }
    }

    fn tick(&mut self) {
        let now = Instant::now();
        self.longest = self.longest.max(now - self.last);
        self.last = now;
        self.answered += 1;
    }
}

/// Writes and reads.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) struct Pair<T> {
    pub(super) write: T,
    pub(super) read: T,
}

/// What the load's thread and the one that makes the faults share.
#[derive(Debug)]
struct Shared {
    write: Mutex<Stream>,
    read: Mutex<Stream>,
    stop: AtomicBool,
    error: Mutex<Option<String>>,
}

impl Shared {
    fn fail(&self, what: String) {
        lock(&self.error).get_or_insert(what);
        self.stop.store(true, Ordering::Relaxed);
    }

    fn is_over(&self) -> bool {
        self.stop.load(Ordering::Relaxed)
    }
}

/// The load under way.
pub(super) struct Load {
    shared: Arc<Shared>,
    thread: JoinHandle<Result<Verified, String>>,
}

/// What was proved at the end.
#[derive(Debug, Clone, Copy, serde::Serialize)]
pub(super) struct Verified {
    /// Writes acknowledged.
    pub(super) writes: u64,
    /// Reads answered, each of them judged.
    pub(super) reads: u64,
    /// Blocks read back from the volume at the end.
    pub(super) blocks: u64,
    /// Blocks read back from members.
    pub(super) member_blocks: u64,
}

impl Load {
    /// Attaches to the volume and begins.
    pub(super) fn start(api: &Api, map: VolumeMap, depth: u16) -> Self {
        let shared = Arc::new(Shared {
            write: Mutex::new(Stream::new()),
            read: Mutex::new(Stream::new()),
            stop: AtomicBool::new(false),
            error: Mutex::new(None),
        });
        let (api, here) = (api.clone(), Arc::clone(&shared));
        let thread = std::thread::spawn(move || signals::block_on(run(api, map, depth, here)));
        Self { shared, thread }
    }

    /// Begins a new window: gaps are counted from the last answer before it.
    pub(super) fn mark(&self) {
        lock(&self.shared.write).longest = Duration::ZERO;
        lock(&self.shared.read).longest = Duration::ZERO;
    }

    /// Longest gaps of the window so far, one that still lasts included.
    pub(super) fn gaps(&self) -> Pair<Duration> {
        let of = |stream: Stream| stream.longest.max(stream.last.elapsed());
        Pair { write: of(*lock(&self.shared.write)), read: of(*lock(&self.shared.read)) }
    }

    /// Answers so far.
    pub(super) fn answered(&self) -> Pair<u64> {
        Pair { write: lock(&self.shared.write).answered, read: lock(&self.shared.read).answered }
    }

    /// What went wrong, if something has.
    pub(super) fn error(&self) -> Option<String> {
        lock(&self.shared.error).clone()
    }

    /// Ends it, and verifies everything.
    pub(super) fn finish(self) -> Result<Verified, String> {
        self.shared.stop.store(true, Ordering::Relaxed);
        self.thread.join().map_err(|_| "the load's thread panicked".to_owned())?
    }
}

fn lock<T>(mutex: &Mutex<T>) -> MutexGuard<'_, T> {
    mutex.lock().unwrap_or_else(PoisonError::into_inner)
}

/// One block's history.
#[derive(Debug, Clone, Copy, Default)]
struct History {
    issued: u64,
    acknowledged: u64,
    /// A write is on its way.
    busy: bool,
}

struct Work {
    volume: Rc<Reach>,
    /// What stamps say of it.
    id: u64,
    blocks: RefCell<Vec<History>>,
    random: RefCell<Random>,
    shared: Arc<Shared>,
}

async fn run(api: Api, map: VolumeMap, depth: u16, shared: Arc<Shared>) -> Result<Verified, String> {
    let id = u64::from(map.volume.0);
    let work = Rc::new(Work {
        volume: Rc::new(reach::open(&api, &map, None)),
        id,
        blocks: RefCell::new(vec![History::default(); index(BLOCKS)]),
        random: RefCell::new(Random::new(id ^ 0x5eed)),
        shared,
    });
    let mut tasks = JoinSet::new();
    for _ in 0..depth {
        let (writer, reader) = (Rc::clone(&work), Rc::clone(&work));
        tasks.spawn_local(async move { writer.write_on().await });
        tasks.spawn_local(async move { reader.read_on().await });
    }
    while let Some(ended) = tasks.join_next().await {
        ended.map_err(|error| error.to_string())?;
    }
    if let Some(error) = lock(&work.shared.error).clone() {
        return Err(error);
    }
    work.verify(&api, &map.name).await
}

impl Work {
    /// A block nobody is writing, so that the order of its writes is known.
    fn pick(&self) -> u64 {
        loop {
            let block = self.random.borrow_mut().between(0, BLOCKS - 1);
            if !self.blocks.borrow()[index(block)].busy {
                return block;
            }
        }
    }

    async fn write_on(&self) {
        while !self.shared.is_over() {
            let block = self.pick();
            let number = {
                let history = &mut self.blocks.borrow_mut()[index(block)];
                (history.issued, history.busy) = (history.issued + 1, true);
                history.issued
            };
            let mut data = BytesMut::zeroed(BLOCK);
            Stamp { volume: self.id, block, number }.fill(&mut data);
            if let Err(error) = self.volume.write(block * BLOCK as u64, data.freeze()).await {
                return self.shared.fail(format!("a write failed: {error}"));
            }
            lock(&self.shared.write).tick();
            let history = &mut self.blocks.borrow_mut()[index(block)];
            (history.acknowledged, history.busy) = (number, false);
        }
    }

    async fn read_on(&self) {
        while !self.shared.is_over() {
            let block = self.random.borrow_mut().between(0, BLOCKS - 1);
            let before = self.blocks.borrow()[index(block)].acknowledged;
            let data = match self.volume.read(block * BLOCK as u64, BLOCK as u64).await {
                Ok(data) => data,
                Err(error) => return self.shared.fail(format!("a read failed: {error}")),
            };
            lock(&self.shared.read).tick();
            let after = self.blocks.borrow()[index(block)].issued;
            if let Err(wrong) = self.judge(block, &data, before, after) {
                return self.shared.fail(format!("a stale or wrong read: {wrong}"));
            }
        }
    }

    /// Whether a block holds a write of its own with a number in this range.
    fn judge(&self, block: u64, data: &[u8], at_least: u64, at_most: u64) -> Result<(), String> {
        let found = match Stamp::read(data) {
            Content::Zero => Some(0),
            Content::Stamped(stamp) if (stamp.volume, stamp.block) == (self.id, block) => Some(stamp.number),
            _ => None,
        };
        match found {
            Some(number) if (at_least..=at_most).contains(&number) => Ok(()),
            Some(number) => Err(format!("block {block} holds write {number} of it, not {at_least} to {at_most}")),
            None => Err(format!("block {block} holds something else")),
        }
    }

    /// Nothing is on its way any more: every block holds exactly its last write, on every member.
    async fn verify(&self, api: &Api, name: &str) -> Result<Verified, String> {
        let mut verified = Verified {
            writes: lock(&self.shared.write).answered,
            reads: lock(&self.shared.read).answered,
            blocks: 0,
            member_blocks: 0,
        };
        let len = STEP * BLOCK as u64;
        for first in (0..BLOCKS).step_by(index(STEP)) {
            let data = self.volume.read(first * BLOCK as u64, len).await;
            self.judge_run(first, &data.map_err(|error| format!("a read failed: {error}"))?)?;
            verified.blocks += STEP;
        }
        let map = api.map(name).map_err(|failure| failure.what)?;
        let members = map.segments.first().map(|config| config.members.clone()).unwrap_or_default();
        // Members may be others than when the volume was opened: they are asked by way of today's map.
        let today = reach::open(api, &map, None);
        let until = Instant::now() + CATCH_UP;
        for node in members {
            for first in (0..BLOCKS).step_by(index(STEP)) {
                while let Err(wrong) = self.peek(&today, node, first, len).await {
                    if Instant::now() > until {
                        return Err(format!("member {node}: {wrong}"));
                    }
                    tokio::time::sleep(Duration::from_millis(100)).await;
                }
                verified.member_blocks += STEP;
            }
        }
        Ok(verified)
    }

    async fn peek(&self, volume: &Reach, node: NodeId, first: u64, len: u64) -> Result<(), String> {
        self.judge_run(first, &volume.peek(node, first * BLOCK as u64, len).await?)
    }

    fn judge_run(&self, first: u64, data: &Bytes) -> Result<(), String> {
        for (block, bytes) in (first..).zip(data.chunks_exact(BLOCK)) {
            let last = self.blocks.borrow()[index(block)].acknowledged;
            self.judge(block, bytes, last, last)?;
        }
        Ok(())
    }
}

/// A number of blocks as an index.
fn index(blocks: u64) -> usize {
    usize::try_from(blocks).expect("few blocks")
}
