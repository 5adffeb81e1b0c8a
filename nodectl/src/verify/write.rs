//! Writing stamped blocks and logging what was acknowledged.
//!
//! Two writes to one block are never in flight together, so that the order of write numbers is the order of the
//! writes, and "a later one is there" has a meaning. A write is logged before it is counted; zeros, which carry no number,
//! are announced in the log before they are written.

use std::cell::RefCell;
use std::collections::BTreeMap;
use std::rc::Rc;
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, AtomicU64, Ordering};
use std::time::{Duration, Instant};

use bytes::Bytes;
use engine::gateway::{Export, ExportError};
use engine_core::random::Random;
use serde::Serialize;
use tokio::task::JoinSet;

use super::log::{Ack, Log};
use super::stamp::{BLOCK, Stamp};
use crate::failure::{Exit, Failure};
use crate::units;

/// Where the next write goes.
#[derive(Debug, Clone, Copy, PartialEq, Eq, clap::ValueEnum)]
pub(crate) enum Pattern {
    /// Anywhere.
    Random,
    /// From the beginning to the end, again and again.
    Sequential,
}

/// What to write.
#[derive(Debug, Clone)]
pub(crate) struct Plan {
    /// The volume's id, in every stamp.
    pub(crate) volume: u64,
    /// Stop after this time.
    pub(crate) limit: Option<Duration>,
    /// Stop after this many bytes.
    pub(crate) bytes: Option<u64>,
    /// Writes in flight.
    pub(crate) depth: usize,
    /// Decides places and sizes.
    pub(crate) seed: u64,
    /// Sizes to choose from, each a multiple of 4 KiB.
    pub(crate) sizes: Vec<u64>,
    /// Writes in a hundred that are zeros, half of them holes.
    pub(crate) zeroes: u8,
    /// Places.
    pub(crate) pattern: Pattern,
    /// At most this many bytes per second.
    pub(crate) rate: Option<u64>,
}

/// What a writer tells while it works, and how it is told to stop.
#[derive(Debug, Default)]
pub(crate) struct Progress {
    writes: AtomicU64,
    bytes: AtomicU64,
    gap_micros: AtomicU64,
    wait_micros: AtomicU64,
    stop: AtomicBool,
}

impl Progress {
    /// Asks the writer to finish what is in flight and end.
    pub(crate) fn stop(&self) {
        self.stop.store(true, Ordering::Relaxed);
    }

    fn is_stopped(&self) -> bool {
        self.stop.load(Ordering::Relaxed)
    }

    /// Acknowledged writes so far.
    pub(crate) fn writes(&self) -> u64 {
        self.writes.load(Ordering::Relaxed)
    }

    /// Acknowledged bytes so far.
    pub(crate) fn bytes(&self) -> u64 {
        self.bytes.load(Ordering::Relaxed)
    }

    /// Longest time without an acknowledgement so far.
    pub(crate) fn longest_gap(&self) -> Duration {
        Duration::from_micros(self.gap_micros.load(Ordering::Relaxed))
    }

    /// Longest time one write took so far.
    pub(crate) fn longest_wait(&self) -> Duration {
        Duration::from_micros(self.wait_micros.load(Ordering::Relaxed))
    }
}

/// What was written.
#[derive(Debug, Clone, Serialize)]
pub(crate) struct Written {
    /// Acknowledged writes.
    pub(crate) acknowledged_writes: u64,
    /// Bytes in them.
    pub(crate) acknowledged_bytes: u64,
    /// Time it took.
    pub(crate) seconds: f64,
    /// MiB per second.
    pub(crate) mib_per_second: f64,
    /// Longest time between two acknowledgements, in milliseconds.
    pub(crate) longest_gap_ms: f64,
    /// Longest time one write took from its issue to its acknowledgement, in milliseconds.
    pub(crate) longest_wait_ms: f64,
    /// Why it ended early, if it did.
    pub(crate) error: Option<String>,
}

impl Written {
    /// What `progress` says after `elapsed`.
    pub(crate) fn of(progress: &Progress, elapsed: Duration, error: Option<&Failure>) -> Self {
        Self {
            acknowledged_writes: progress.writes(),
            acknowledged_bytes: progress.bytes(),
            seconds: elapsed.as_secs_f64(),
            mib_per_second: units::mib_per_second(progress.bytes(), elapsed),
            longest_gap_ms: units::millis(progress.longest_gap()),
            longest_wait_ms: units::millis(progress.longest_wait()),
            error: error.map(|failure| failure.what.clone()),
        }
    }
}

/// What a write leaves.
#[derive(Debug, Clone, Copy)]
enum Kind {
    Data,
    /// Space stays taken for them, where that makes a difference.
    Zeros,
    /// No space is.
    Hole,
}

/// A writer's shared state; one task per write in flight uses it.
struct Writer {
    plan: Plan,
    log: Log,
    progress: Arc<Progress>,
    random: Random,
    /// Blocks of the volume.
    blocks: u64,
    /// Next block of the sequential pattern.
    cursor: u64,
    /// Writes in flight: first block to number of blocks.
    busy: BTreeMap<u64, u32>,
    /// Bytes issued.
    issued: u64,
    begun: Instant,
    last: Instant,
    /// When the next write may be issued, where there is a rate.
    paced: Instant,
    error: Option<Failure>,
}

impl Writer {
    /// The next write, unless the plan is fulfilled; registers it as in flight.
    fn next(&mut self) -> Option<(Ack, Kind)> {
        let over = self.plan.limit.is_some_and(|limit| self.begun.elapsed() >= limit)
            || self.plan.bytes.is_some_and(|bytes| self.issued >= bytes);
        if over || self.progress.is_stopped() || self.error.is_some() {
            return None;
        }
        let (block, blocks) = self.place();
        self.busy.insert(block, blocks);
        self.issued += u64::from(blocks) * BLOCK as u64;
        let ack = Ack { block, number: self.log.issue(), blocks };
        let zeros = self.plan.zeroes > 0 && self.random.between(0, 99) < u64::from(self.plan.zeroes);
        if !zeros {
            return Some((ack, Kind::Data));
        }
        if let Err(error) = self.log.announces(ack) {
            self.error = Some(error);
            return None;
        }
        Some((ack, if self.random.between(0, 1) == 0 { Kind::Zeros } else { Kind::Hole }))
    }

    /// A place where nothing is in flight. Depth times size is a small part of the volume (checked at the start), so
    /// a free place is found soon.
    fn place(&mut self) -> (u64, u32) {
        loop {
            let index = self.index(self.plan.sizes.len() as u64);
            let size = self.plan.sizes[index];
            let wanted = size / BLOCK as u64;
            let block = match self.plan.pattern {
                Pattern::Random => {
                    // Aligned to its own size, as most programs write; clipped at the end of the volume.
                    let places = self.blocks.div_ceil(wanted);
                    self.random.between(0, places - 1) * wanted
                }
                Pattern::Sequential => {
                    let block = if self.cursor >= self.blocks { 0 } else { self.cursor };
                    self.cursor = block + wanted;
                    block
                }
            };
            let blocks = u32::try_from(wanted.min(self.blocks - block)).unwrap_or(u32::MAX);
            if !self.is_busy(block, blocks) {
                return (block, blocks);
            }
        }
    }

    #[allow(clippy::cast_possible_truncation)] // below `len`, which was a usize
    fn index(&mut self, len: u64) -> usize {
        self.random.between(0, len - 1) as usize
    }

    fn is_busy(&self, block: u64, blocks: u32) -> bool {
        let before = self.busy.range(..block + u64::from(blocks)).next_back();
        before.is_some_and(|(first, count)| first + u64::from(*count) > block)
    }

    /// When the write just chosen may be issued.
    fn pace(&mut self, bytes: u64) -> Option<Instant> {
        let rate = self.plan.rate?;
        let at = self.paced.max(Instant::now());
        self.paced = at + Duration::from_secs_f64(units::ratio(bytes, rate));
        Some(at)
    }

    /// A write came back.
    fn done(&mut self, ack: Ack, issued: Instant, result: Result<(), ExportError>) {
        self.progress.wait_micros.fetch_max(micros(issued.elapsed()), Ordering::Relaxed);
        self.busy.remove(&ack.block);
        let outcome = match result {
            Ok(()) => self.log.acknowledged(ack),
            Err(error) => Err(failure(&error, ack)),
        };
        match outcome {
            Ok(()) => {
                self.note_gap();
                self.last = Instant::now();
                self.progress.writes.fetch_add(1, Ordering::Relaxed);
                self.progress.bytes.fetch_add(u64::from(ack.blocks) * BLOCK as u64, Ordering::Relaxed);
            }
            Err(error) => self.error = self.error.take().or(Some(error)),
        }
    }

    fn note_gap(&self) {
        self.progress.gap_micros.fetch_max(micros(self.last.elapsed()), Ordering::Relaxed);
    }
}

fn micros(time: Duration) -> u64 {
    u64::try_from(time.as_micros()).unwrap_or(u64::MAX)
}

fn failure(error: &ExportError, ack: Ack) -> Failure {
    let exit = match error {
        ExportError::Fenced => Exit::IllegalState,
        ExportError::TimedOut => Exit::WaitTimedOut,
        ExportError::NoSpace => Exit::Refused,
        ExportError::Io(_) => Exit::Failed,
    };
    Failure::new(exit, format!("write {} at block {} was not acknowledged: {error}", ack.number, ack.block))
        .untouched("every write in the log stays acknowledged")
        .next("nodectl volume explain VOLUME; nodectl verify check VOLUME --log FILE")
}

fn payload(volume: u64, ack: Ack) -> Bytes {
    let mut data = vec![0; ack.blocks as usize * BLOCK];
    for (block, bytes) in (ack.block..).zip(data.chunks_mut(BLOCK)) {
        Stamp { volume, block, number: ack.number }.fill(bytes);
    }
    data.into()
}

/// Writes by the plan until it is fulfilled, `progress` says stop, or a write fails. Needs a `LocalSet`.
pub(crate) async fn run<E: Export>(
    volume: Rc<E>,
    plan: Plan,
    log: Log,
    progress: Arc<Progress>,
) -> (Written, Option<Failure>) {
    let now = Instant::now();
    let blocks = volume.size() / BLOCK as u64;
    let depth = plan.depth;
    let largest = plan.sizes.iter().max().copied().unwrap_or_default();
    let needed = 2 * depth as u64 * largest;
    let writer = Rc::new(RefCell::new(Writer {
        random: Random::new(plan.seed),
        blocks,
        cursor: 0,
        busy: BTreeMap::new(),
        issued: 0,
        begun: now,
        last: now,
        paced: now,
        error: (needed > volume.size()).then(|| {
            Failure::usage(format!("{depth} writes in flight of {} do not fit the volume", units::size(largest)))
                .next("use a smaller --qd or --bs")
        }),
        plan,
        log,
        progress: progress.clone(),
    }));
    let mut tasks = JoinSet::new();
    for _ in 0..depth {
        tasks.spawn_local(worker(volume.clone(), writer.clone()));
    }
    while let Some(joined) = tasks.join_next().await {
        joined.expect("a worker does not panic");
    }
    let mut state = writer.borrow_mut();
    if state.error.is_some() {
        state.note_gap();
    }
    let report = Written::of(&progress, state.begun.elapsed(), state.error.as_ref());
    (report, state.error.take())
}

async fn worker<E: Export>(volume: Rc<E>, writer: Rc<RefCell<Writer>>) {
    loop {
        let Some((ack, kind)) = writer.borrow_mut().next() else { return };
        let bytes = u64::from(ack.blocks) * BLOCK as u64;
        let at = writer.borrow_mut().pace(bytes);
        if let Some(at) = at {
            tokio::time::sleep_until(at.into()).await;
        }
        let data = matches!(kind, Kind::Data).then(|| payload(writer.borrow().plan.volume, ack));
        let (issued, offset) = (Instant::now(), ack.block * BLOCK as u64);
        let result = match kind {
            Kind::Data => volume.write(offset, data.unwrap_or_default()).await,
            Kind::Zeros => volume.zero(offset, bytes, false).await,
            Kind::Hole => volume.zero(offset, bytes, true).await,
        };
        writer.borrow_mut().done(ack, issued, result);
    }
}
