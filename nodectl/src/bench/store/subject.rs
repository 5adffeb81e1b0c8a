//! One shard's store on a file, driven as a node's shard drives it: one thread, a tokio runtime that waits for the
//! device's descriptor and a tick, turns that poll until nothing more comes.
//!
//! Around the store there is nothing: no machine, no peer, no client. A write is persisted, and told to be committed as
//! soon as it is durable, which is what a segment with a single copy comes to. Data and checksums are there before, as
//! they come from a client (the checksum is made at the edge and carried): what is measured is the store.

use std::collections::HashMap;
use std::os::fd::{BorrowedFd, OwnedFd};
use std::path::Path;
use std::time::{Duration, Instant};

use bytes::Bytes;
use engine::device::Device;
use engine::device::buffer::AlignedBuf;
use engine::device::file::DeviceFile;
use engine::device::uring::UringDevice;
use engine::store::{self, Event, Geometry, ShardStore, Store, Superblock, Ticket, block_sum};
use engine_core::config::Config;
use engine_core::ids::{
    BlockIndex, BootCount, BootId, ClusterId, DeviceId, Epoch, Generation, Incarnation, NodeId, Revision, SegmentId,
    Seq, VolumeId,
};
use engine_core::limits::{BLOCK_SIZE, EXTENT_SIZE, SUM_PAGES_MAX, TICK};
use engine_core::openings::Openings;
use engine_core::random::Random;
use engine_core::record::{Blocks, Change, Entry, Meta, Record, Standing, sum_bytes};
use hdrhistogram::Histogram;
use tokio::io::Interest;
use tokio::io::unix::AsyncFd;
use tokio::time::{Interval, MissedTickBehavior};

use super::cases::Case;
use crate::bench::cpu;
use crate::failure::{Context, Failure};
use crate::{output, units};

/// Of the device, beside the WAL and twice the data: roots, maps, checksums, scratch slabs.
const SPARE: u64 = 256 << 20;
/// Random bytes that writes take their data from: far more than a processor caches.
const POOL: usize = 64 << 20;
const SEGMENT: SegmentId = SegmentId { volume: VolumeId(1), index: 0 };
const EPOCH: Epoch = Epoch(1);
/// As a shard does before others of its thread have their turn.
const ROUNDS: usize = 8;
/// A store that is not at rest by then never will be.
const SETTLE_LIMIT: Duration = Duration::from_secs(300);

/// What one run did.
#[derive(Debug, Clone, serde::Serialize)]
pub(super) struct Run {
    pub(super) iops: f64,
    pub(super) mib_per_second: f64,
    pub(super) p50_us: f64,
    pub(super) p99_us: f64,
    /// Requests done in the second with the fewest, of the whole seconds.
    pub(super) slowest_second: Option<u64>,
    pub(super) flushes_per_second: f64,
    /// Processor milliseconds per request.
    pub(super) cpu_ms: f64,
    /// How often the WAL was written round.
    pub(super) wal_rounds: f64,
}

/// When a run ends.
#[derive(Debug, Clone, Copy)]
pub(super) enum Until {
    Seconds(u32),
    Requests(u64),
}

/// A run under way.
struct Load {
    case: Case,
    until: Until,
    begun: Instant,
    random: Random,
    /// Requests begun so far.
    asked: u64,
    done: u64,
    flying: HashMap<Ticket, Instant>,
    latency: Histogram<u64>,
    seconds: Vec<u64>,
}

impl Load {
    fn wants_more(&self, now: Instant) -> bool {
        let more = match self.until {
            Until::Seconds(seconds) => now - self.begun < Duration::from_secs(u64::from(seconds)),
            Until::Requests(requests) => self.asked < requests,
        };
        more && self.flying.len() < usize::from(self.case.job.depth)
    }

    fn done(&mut self, ticket: Ticket) {
        let Some(begun) = self.flying.remove(&ticket) else { return };
        let now = Instant::now();
        let nanos = u64::try_from((now - begun).as_nanos()).unwrap_or(u64::MAX);
        self.latency.saturating_record(nanos);
        self.done += 1;
        let second = usize::try_from((now - self.begun).as_secs()).unwrap_or(usize::MAX);
        if let Some(count) = self.seconds.get_mut(second) {
            *count += 1;
        }
    }
}

/// The store, and what drives it.
pub(super) struct Subject {
    runtime: tokio::runtime::Runtime,
    store: ShardStore<UringDevice>,
    wake: AsyncFd<OwnedFd>,
    ticks: Interval,
    blocks: u32,
    wal: u64,
    data: Bytes,
    /// Of every block of the set, with the data it always gets.
    sums: Bytes,
    events: Vec<Event>,
    /// The last entry's place in the order, and the last one known to be durable.
    last: u64,
    committed: u64,
    runs: u64,
}

/// Bytes of the device for a set of `size`: half of it stays free, as large writes go to free slabs.
pub(super) const fn device_size(size: u64, wal: u64) -> u64 {
    wal + 2 * size + SPARE
}

impl Subject {
    /// Makes the device, formats it, and writes every block of the set once.
    pub(super) fn create(dir: &Path, size: u64, wal: u64, fill: &Case) -> Result<Self, Failure> {
        let len = device_size(size, wal);
        let bar = output::bar(len, "writing the device");
        let made = DeviceFile::create(&dir.join("device"), len, &mut |written| bar.set_position(written));
        bar.finish_and_clear();
        let failed = |error: &dyn std::fmt::Display| Failure::failed(error.to_string());
        let mut file = made.map_err(|error| failed(&error))?;
        let geometry = Geometry::plan(len, 1, wal).map_err(|error| failed(&error))?;
        store::format(&mut file, &superblock(geometry)).map_err(|error| failed(&error))?;
        let superblock = store::open(&mut file, ClusterId(1), NodeId(1), BootId(1)).map_err(|error| failed(&error))?;
        let region = superblock.geometry.region(0);
        let device = UringDevice::new(file.clone(), region.base, region.len).could_not(|| "use io_uring".to_owned())?;
        let runtime = tokio::runtime::Builder::new_current_thread().enable_all().build();
        let runtime = runtime.could_not(|| "start a runtime".to_owned())?;
        let (wake, ticks) = {
            let _inside = runtime.enter();
            let mut ticks = tokio::time::interval(Duration::from_nanos(TICK.0));
            ticks.set_missed_tick_behavior(MissedTickBehavior::Delay);
            (watch(&device).could_not(|| "wait for the device".to_owned())?, ticks)
        };
        let store = ShardStore::open(&mut file, device, &superblock, 0).map_err(|error| failed(&error))?;
        let blocks = u32::try_from(size / BLOCK_SIZE).map_err(|_| Failure::usage("the set is too large"))?;
        let data = random_data();
        let sums = sums(&data, blocks);
        let (last, committed, events) = (0, 0, Vec::new());
        let mut subject =
            Self { runtime, store, wake, ticks, blocks, wal, data, sums, events, last, committed, runs: 0 };
        subject.begin_replica(size)?;
        subject.run(fill, Until::Requests(size / u64::from(fill.block_bytes)))?;
        Ok(subject)
    }

    fn begin_replica(&mut self, size: u64) -> Result<(), Failure> {
        let extents = u32::try_from(size / EXTENT_SIZE).map_err(|_| Failure::usage("the set is too large"))?;
        self.store.persist(vec![Record::Create { segment: SEGMENT, meta: meta(extents) }], Ticket(0));
        self.settle()
    }

    /// One run of a case; before it everything is applied, so that nobody pays for the one before.
    pub(super) fn run(&mut self, case: &Case, until: Until) -> Result<Run, Failure> {
        self.settle()?;
        let few = u64::from(self.blocks) * BLOCK_SIZE / store::SUM_PAGE_BYTES / 8;
        self.store.set_sum_pages(if case.few_sums { usize::try_from(few).unwrap_or(1) } else { SUM_PAGES_MAX });
        self.runs += 1;
        let seconds = if let Until::Seconds(seconds) = until { seconds } else { 0 };
        let mut load = Load {
            case: *case,
            until,
            begun: Instant::now(),
            random: Random::new(self.runs),
            asked: 0,
            done: 0,
            flying: HashMap::new(),
            latency: Histogram::new_with_bounds(1, 60_000_000_000, 3).expect("constant bounds are valid"),
            seconds: vec![0; seconds as usize],
        };
        let own = [std::process::id()];
        let (cpu, flushes) = (cpu::of_all(&own), self.store.flushes());
        self.drive(Some(&mut load))?;
        let elapsed = load.begun.elapsed().as_secs_f64();
        let flushes = self.store.flushes() - flushes;
        let cpu = cpu::of_all(&own).saturating_sub(cpu);
        let bytes = load.done * u64::from(case.block_bytes);
        Ok(Run {
            iops: units::ratio(load.done, 1) / elapsed,
            mib_per_second: units::ratio(bytes, 1 << 20) / elapsed,
            p50_us: units::ratio(load.latency.value_at_quantile(0.5), 1000),
            p99_us: units::ratio(load.latency.value_at_quantile(0.99), 1000),
            slowest_second: load.seconds.iter().min().copied(),
            flushes_per_second: units::ratio(flushes, 1) / elapsed,
            cpu_ms: cpu.as_secs_f64() * 1e3 / units::ratio(load.done.max(1), 1),
            wal_rounds: if case.writes() { units::ratio(bytes, self.wal) } else { 0.0 },
        })
    }

    /// Everything applied and checkpointed, nothing under way.
    fn settle(&mut self) -> Result<(), Failure> {
        self.store.settle();
        self.drive(None)
    }

    /// Takes turns until the load is done; without one, until the store is at rest.
    fn drive(&mut self, mut load: Option<&mut Load>) -> Result<(), Failure> {
        let Self { runtime, store, wake, ticks, .. } = self;
        let mut driver = Driver {
            store,
            blocks: self.blocks,
            data: &self.data,
            sums: &self.sums,
            events: &mut self.events,
            last: &mut self.last,
            committed: &mut self.committed,
        };
        let begun = Instant::now();
        runtime.block_on(async {
            loop {
                let again = driver.turn(load.as_deref_mut())?;
                let over = match &load {
                    Some(load) => load.flying.is_empty() && !load.wants_more(Instant::now()),
                    None => driver.store.is_quiet(),
                };
                if over {
                    return Ok(());
                }
                if load.is_none() && begun.elapsed() > SETTLE_LIMIT {
                    return Err(Failure::failed("the store does not come to rest"));
                }
                if again {
                    tokio::task::yield_now().await;
                    continue;
                }
                tokio::select! {
                    ready = wake.readable() => ready.could_not(|| "wait for the device".to_owned())?.clear_ready(),
                    _ = ticks.tick() => {}
                }
            }
        })
    }
}

/// What a turn works with.
struct Driver<'a> {
    store: &'a mut ShardStore<UringDevice>,
    blocks: u32,
    data: &'a Bytes,
    sums: &'a Bytes,
    events: &'a mut Vec<Event>,
    last: &'a mut u64,
    committed: &'a mut u64,
}

impl Driver<'_> {
    /// `true`: there is more to do at once.
    fn turn(&mut self, mut load: Option<&mut Load>) -> Result<bool, Failure> {
        for _ in 0..ROUNDS {
            if let Some(load) = load.as_deref_mut() {
                let mut now = Instant::now();
                while load.wants_more(now) {
                    self.begin(load, now);
                    now = Instant::now();
                }
            }
            self.store.poll(self.events);
            if self.events.is_empty() {
                return Ok(false);
            }
            let mut events = std::mem::take(self.events);
            for event in events.drain(..) {
                self.on_event(load.as_deref_mut(), event)?;
            }
            *self.events = events;
        }
        Ok(true)
    }

    fn begin(&mut self, load: &mut Load, now: Instant) {
        let count = load.case.block_bytes / 4096;
        let places = u64::from(self.blocks / count);
        let place = if load.case.is_random() { load.random.between(0, places - 1) } else { load.asked % places };
        let block = u32::try_from(place).expect("places of a set") * count;
        load.asked += 1;
        if load.case.writes() {
            *self.last += 1;
            let ticket = Ticket(*self.last);
            load.flying.insert(ticket, now);
            let (first, end) = (block as usize, (block + count) as usize);
            let at = first * 4096 % POOL;
            let data = self.data.slice(at..at + load.case.block_bytes as usize);
            let sums = self.sums.slice(first * 4..end * 4);
            let change = Change::Write { block: BlockIndex(block), blocks: Blocks { data, sums } };
            let entry = Entry { epoch: EPOCH, seq: Seq(ticket.0), change };
            let record = Record::Prepare { segment: SEGMENT, commit: Seq(*self.committed), entry };
            self.store.persist(vec![record], ticket);
        } else {
            let ticket = Ticket(load.asked);
            load.flying.insert(ticket, now);
            self.store.read(SEGMENT, BlockIndex(block), count, ticket);
        }
    }

    fn on_event(&mut self, load: Option<&mut Load>, event: Event) -> Result<(), Failure> {
        let ticket = match event {
            Event::Persisted(ticket) => {
                if ticket.0 > 0 {
                    *self.committed = ticket.0;
                    self.store.commit(SEGMENT, Seq(ticket.0));
                }
                ticket
            }
            Event::Read(ticket, Ok(_)) => ticket,
            Event::Read(_, Err(error)) => return Err(Failure::failed(format!("a read failed: {error}"))),
            Event::Failed(why) => return Err(Failure::failed(why)),
            Event::Extent(..) | Event::CopiedIn(_) => return Ok(()),
        };
        if let Some(load) = load {
            load.done(ticket);
        }
        Ok(())
    }
}

/// A descriptor of our own for the one the device tells its completions by.
fn watch(device: &UringDevice) -> std::io::Result<AsyncFd<OwnedFd>> {
    let fd = device.wake_fd().ok_or(std::io::ErrorKind::Unsupported)?;
    // SAFETY: the device keeps it open, and outlives this call.
    let own = unsafe { BorrowedFd::borrow_raw(fd) }.try_clone_to_owned()?;
    // SAFETY: an OwnedFd stays the same open descriptor until it is dropped.
    Ok(unsafe { AsyncFd::register_with_interest(own, Interest::READABLE) }?)
}

/// Where the kernel can take it from, as data that came from a socket is.
fn random_data() -> Bytes {
    let mut data = AlignedBuf::to_fill(POOL);
    let mut random = Random::new(7);
    #[allow(clippy::cast_possible_truncation)] // any byte will do
    data.fill_with(|| random.next_u64() as u8);
    Bytes::from_owner(data)
}

fn sums(data: &Bytes, blocks: u32) -> Bytes {
    let pool = data.chunks_exact(4096).cycle();
    let sums =
        (0..blocks).zip(pool).flat_map(|(block, content)| sum_bytes(block_sum(SEGMENT, BlockIndex(block), content)));
    Bytes::from(sums.collect::<Vec<u8>>())
}

fn superblock(geometry: Geometry) -> Superblock {
    Superblock {
        features: 0,
        compatible: 0,
        cluster: ClusterId(1),
        node: NodeId(1),
        device: DeviceId(1),
        boot: BootCount(0),
        geometry,
        revision: Revision(0),
        openings: Openings::default(),
    }
}

fn meta(extents: u32) -> Meta {
    let config = Config {
        segment: SEGMENT,
        incarnation: Incarnation(1),
        epoch: EPOCH,
        primary: NodeId(1),
        members: vec![NodeId(1)],
        candidates: vec![],
        electable: vec![NodeId(1)],
        former: vec![],
        generation: Generation(1),
        copies: 1,
        min_copies: 1,
        extents,
    };
    Meta { promised: EPOCH, log_epoch: EPOCH, config, standing: Standing::Member }
}
