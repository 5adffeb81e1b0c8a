//! `nodectl bench io`: one volume, so many requests in flight, for so long.
//!
//! Latencies go into a histogram of three significant digits; the longest time without any completion is told too,
//! because an average hides a failover. Where the volume's copies are is told beside the latency: spreading them over
//! zones costs a round trip between zones for every write.

use std::cell::RefCell;
use std::collections::BTreeSet;
use std::rc::Rc;
use std::time::{Duration, Instant};

use bytes::{Bytes, BytesMut};
use engine::authority::api::Spread;
use engine::gateway::{Export, ExportError};
use engine_core::random::Random;
use hdrhistogram::Histogram;
use serde::Serialize;
use tokio::task::JoinSet;

use super::cpu;
use crate::Global;
use crate::failure::{Exit, Failure};
use crate::http::Api;
use crate::output::{self, Table};
use crate::reach::{self, Reach};
use crate::units;
use crate::verify::stamp::{BLOCK, Stamp};

/// Seconds that are counted one by one.
const SECONDS_MAX: u32 = 24 * 3600;

/// Blocks a write's data may begin at.
const STOCK_BLOCKS: u64 = 256;

/// Arguments of `bench io`.
#[derive(Debug, clap::Args)]
pub(crate) struct Args {
    /// The volume (attached for the time of the run: any other attachment is fenced off).
    volume: String,
    /// What to do.
    #[arg(long, value_enum, default_value = "randrw")]
    rw: Mode,
    /// Bytes of one request.
    #[arg(long, default_value = "4k", value_parser = units::parse_size)]
    bs: u64,
    /// Requests in flight.
    #[arg(long, default_value_t = 32, value_parser = clap::value_parser!(u16).range(1..=1024))]
    qd: u16,
    /// How long to run.
    #[arg(long, default_value_t = 20, value_parser = clap::value_parser!(u32).range(1..))]
    seconds: u32,
    /// Stop after this many requests.
    #[arg(long, value_parser = clap::value_parser!(u64).range(1..))]
    ios: Option<u64>,
    /// Go through this NBD server instead of the native client; the volume is not attached then.
    #[arg(long, value_name = "URI")]
    nbd: Option<crate::nbd::Address>,
    /// Decides places and data.
    #[arg(long, default_value_t = 1)]
    seed: u64,
}

/// What to do.
#[derive(Debug, Clone, Copy, PartialEq, Eq, clap::ValueEnum, Serialize)]
#[serde(rename_all = "lowercase")]
pub(crate) enum Mode {
    /// Random writes.
    Randwrite,
    /// Random reads.
    Randread,
    /// Sequential writes.
    Write,
    /// Sequential reads.
    Read,
    /// Random, one write for each read.
    Randrw,
}

/// Latencies in microseconds.
#[derive(Debug, Clone, Serialize)]
pub(crate) struct Latency {
    mean_us: f64,
    p50_us: u64,
    p90_us: u64,
    p99_us: u64,
    p999_us: u64,
    max_us: u64,
}

/// Where a volume's copies are.
#[derive(Debug, Clone, Serialize)]
pub(crate) struct Place {
    spread: Spread,
    copies: u8,
    /// Zones its members are in.
    zones: Vec<String>,
}

/// What was measured.
#[derive(Debug, Clone, Serialize)]
pub(crate) struct Report {
    volume: String,
    /// Not known through NBD.
    place: Option<Place>,
    path: &'static str,
    rw: Mode,
    block_bytes: u64,
    depth: u16,
    seconds: f64,
    ios: u64,
    reads: u64,
    writes: u64,
    iops: f64,
    mib_per_second: f64,
    latency: Latency,
    read_latency: Option<Latency>,
    write_latency: Option<Latency>,
    longest_gap_ms: f64,
    /// Requests done in the second with the fewest, of the whole seconds since the start; `None`: there was none.
    slowest_second: Option<u64>,
    /// Processor milliseconds per request: of this process, and of all processes of the cluster (with `--cluster`).
    client_cpu_ms_per_io: f64,
    cluster_cpu_ms_per_io: Option<f64>,
}

/// Runs it and prints the report.
pub(crate) fn run(global: &Global, args: Args) -> Result<(), Failure> {
    if args.bs == 0 || !args.bs.is_multiple_of(512) || args.bs > 32 << 20 {
        return Err(Failure::usage("--bs has to be a multiple of 512 bytes, at most 32M").next("--bs 4k"));
    }
    let pids = global.cluster_pids();
    let format = global.output;
    let nbd = args.nbd.clone();
    let name = args.volume.clone();
    let task = async move |volume: Rc<Reach>| measure(volume, &args, &pids).await;
    let report = match nbd {
        Some(address) => reach::over_nbd(&address, task)??,
        None => {
            let api = global.api()?;
            let report = reach::attached(&api, &name, None, async |session| task(session.volume).await)??;
            Report { place: Some(place(&api, &name)?), ..report }
        }
    };
    format.show(&report, table)
}

fn place(api: &Api, name: &str) -> Result<Place, Failure> {
    let (volume, map, nodes) = (api.volume(name)?, api.map(name)?, api.nodes()?);
    let members: BTreeSet<_> = map.segments.iter().flat_map(|config| config.members.iter().copied()).collect();
    let mut zones: Vec<String> =
        nodes.into_iter().filter(|node| members.contains(&node.id)).map(|node| node.zone).collect();
    zones.sort_unstable();
    zones.dedup();
    Ok(Place { spread: volume.spread, copies: volume.copies, zones })
}

struct Load {
    random: Random,
    stock: Bytes,
    mode: Mode,
    blocks: u64,
    cursor: u64,
    block_bytes: u64,
    /// Requests not begun yet.
    left: u64,
    begun: Instant,
    until: Instant,
    last: Instant,
    /// Requests done by second.
    seconds: Vec<u64>,
    gap: Duration,
    read_latency: Histogram<u64>,
    write_latency: Histogram<u64>,
    reads: u64,
    writes: u64,
    error: Option<ExportError>,
}

/// Stamped blocks to take the data of writes from, made before the clock starts: what is measured is the volume, and
/// making random bytes takes half as much time as sending them. Recognisable should they ever turn up where they do not
/// belong, and of no volume there is: a check for acknowledged writes never takes them for its own.
fn stock(seed: u64, block_bytes: u64) -> Bytes {
    let blocks = STOCK_BLOCKS + block_bytes.div_ceil(BLOCK as u64);
    let mut stock = BytesMut::zeroed(BLOCK * usize::try_from(blocks).expect("at most 33 MiB"));
    for (block, bytes) in (0..).zip(stock.chunks_mut(BLOCK)) {
        Stamp { volume: !seed, block, number: 1 }.fill(bytes);
    }
    stock.freeze()
}

impl Load {
    /// Offset, and whether it is a write.
    fn next(&mut self) -> Option<(u64, bool)> {
        if Instant::now() >= self.until || self.error.is_some() || self.left == 0 {
            return None;
        }
        self.left -= 1;
        let block = match self.mode {
            Mode::Write | Mode::Read => {
                self.cursor += 1;
                (self.cursor - 1) % self.blocks
            }
            _ => self.random.between(0, self.blocks - 1),
        };
        let write = match self.mode {
            Mode::Write | Mode::Randwrite => true,
            Mode::Read | Mode::Randread => false,
            Mode::Randrw => self.random.next_u64().is_multiple_of(2),
        };
        Some((block * self.block_bytes, write))
    }

    /// What a write carries: a piece of the stock, another one each time.
    fn data(&mut self) -> Bytes {
        let start = BLOCK * usize::try_from(self.random.between(0, STOCK_BLOCKS - 1)).expect("a small number");
        self.stock.slice(start..start + usize::try_from(self.block_bytes).expect("at most 32 MiB"))
    }

    fn done(&mut self, begun: Instant, write: bool, result: Result<(), ExportError>) {
        match result {
            Ok(()) => {
                let now = Instant::now();
                self.gap = self.gap.max(now - self.last);
                self.last = now;
                let second = usize::try_from((now - self.begun).as_secs()).unwrap_or(usize::MAX);
                if let Some(count) = self.seconds.get_mut(second) {
                    *count += 1;
                }
                let micros = u64::try_from((now - begun).as_micros()).unwrap_or(u64::MAX);
                let (histogram, count) = if write {
                    (&mut self.write_latency, &mut self.writes)
                } else {
                    (&mut self.read_latency, &mut self.reads)
                };
                histogram.saturating_record(micros.max(1));
                *count += 1;
            }
            Err(error) => self.error = Some(error),
        }
    }
}

async fn worker<E: Export>(volume: Rc<E>, load: Rc<RefCell<Load>>, len: u64) {
    loop {
        let Some((offset, write)) = load.borrow_mut().next() else { return };
        let begun;
        let result = if write {
            let data = load.borrow_mut().data();
            begun = Instant::now();
            volume.write(offset, data).await
        } else {
            begun = Instant::now();
            volume.read(offset, len).await.map(drop)
        };
        load.borrow_mut().done(begun, write, result);
    }
}

async fn measure<E: Export>(volume: Rc<E>, args: &Args, pids: &[u32]) -> Result<Report, Failure> {
    let blocks = volume.size() / args.bs;
    if blocks == 0 {
        return Err(Failure::usage(format!("one request of {} is larger than the volume", units::size(args.bs))));
    }
    let stock = stock(args.seed, args.bs);
    let (client_before, cluster_before) = (cpu::of_all(&[std::process::id()]), cpu::of_all(pids));
    let begun = Instant::now();
    let limit = Duration::from_secs(u64::from(args.seconds));
    let load = Rc::new(RefCell::new(Load {
        random: Random::new(args.seed),
        stock,
        mode: args.rw,
        blocks,
        cursor: 0,
        block_bytes: args.bs,
        left: args.ios.unwrap_or(u64::MAX),
        begun,
        until: begun + limit,
        last: begun,
        seconds: vec![0; args.seconds.min(SECONDS_MAX) as usize],
        gap: Duration::ZERO,
        read_latency: histogram(),
        write_latency: histogram(),
        reads: 0,
        writes: 0,
        error: None,
    }));
    let spinner = output::spinner(&format!("bench io: {} s", args.seconds));
    let mut tasks = JoinSet::new();
    for _ in 0..args.qd {
        tasks.spawn_local(worker(volume.clone(), load.clone(), args.bs));
    }
    while let Some(joined) = tasks.join_next().await {
        joined.expect("a worker does not panic");
    }
    spinner.finish_and_clear();
    let elapsed = begun.elapsed();
    let load = load.borrow();
    if let Some(error) = &load.error {
        let exit = if *error == ExportError::Fenced { Exit::IllegalState } else { Exit::Failed };
        return Err(Failure::new(exit, format!("a request failed after {}: {error}", units::time(elapsed)))
            .next(format!("nodectl volume explain {}", args.volume)));
    }
    let client = cpu::of_all(&[std::process::id()]).saturating_sub(client_before);
    let cluster = (!pids.is_empty()).then(|| cpu::of_all(pids).saturating_sub(cluster_before));
    Ok(report(&load, args, elapsed, client, cluster))
}

fn histogram() -> Histogram<u64> {
    Histogram::new_with_bounds(1, 3_600_000_000, 3).expect("constant bounds are valid")
}

fn percentiles(of: &Histogram<u64>) -> Latency {
    let at = |percentile| of.value_at_percentile(percentile);
    Latency {
        mean_us: of.mean(),
        p50_us: at(50.0),
        p90_us: at(90.0),
        p99_us: at(99.0),
        p999_us: at(99.9),
        max_us: of.max(),
    }
}

fn report(load: &Load, args: &Args, elapsed: Duration, client: Duration, cluster: Option<Duration>) -> Report {
    let ios = load.reads + load.writes;
    let per_io = |cpu: Duration| if ios == 0 { 0.0 } else { cpu.as_secs_f64() * 1e3 / units::ratio(ios, 1) };
    let both = load.reads > 0 && load.writes > 0;
    let mut all = load.read_latency.clone();
    all.add(&load.write_latency).expect("histograms of one shape");
    Report {
        volume: args.volume.clone(),
        place: None,
        path: if args.nbd.is_some() { "nbd" } else { "native" },
        rw: args.rw,
        block_bytes: args.bs,
        depth: args.qd,
        seconds: elapsed.as_secs_f64(),
        ios,
        reads: load.reads,
        writes: load.writes,
        iops: units::ratio(ios, 1) / elapsed.as_secs_f64(),
        mib_per_second: units::mib_per_second(ios * args.bs, elapsed),
        latency: percentiles(&all),
        read_latency: both.then(|| percentiles(&load.read_latency)),
        write_latency: both.then(|| percentiles(&load.write_latency)),
        longest_gap_ms: units::millis(load.gap),
        slowest_second: load
            .seconds
            .iter()
            .take(usize::try_from(elapsed.as_secs()).unwrap_or(usize::MAX))
            .min()
            .copied(),
        client_cpu_ms_per_io: per_io(client),
        cluster_cpu_ms_per_io: cluster.map(per_io),
    }
}

fn table(report: &Report) -> String {
    let mut table = Table::new(["what", "value"]);
    let mut row = |what: &str, value: String| table.row([what.to_owned(), value]);
    let ms = |micros: u64| format!("{:.2} ms", units::ratio(micros, 1000));
    row(
        "load",
        format!("{:?} {} depth {} ({})", report.rw, units::size(report.block_bytes), report.depth, report.path),
    );
    if let Some(place) = &report.place {
        let (zones, s) = (place.zones.join(", "), if place.zones.len() == 1 { "" } else { "s" });
        row("copies", format!("{}, spread over {:?}s, in zone{s} {zones}", place.copies, place.spread).to_lowercase());
    }
    row("requests", format!("{} in {:.1} s", report.ios, report.seconds));
    row("iops", format!("{:.0}", report.iops));
    row("throughput", format!("{:.1} MiB/s", report.mib_per_second));
    row("latency p50", ms(report.latency.p50_us));
    row("latency p90", ms(report.latency.p90_us));
    row("latency p99", ms(report.latency.p99_us));
    row("latency p99.9", ms(report.latency.p999_us));
    row("latency max", ms(report.latency.max_us));
    for (what, latency) in [("reads", &report.read_latency), ("writes", &report.write_latency)] {
        if let Some(latency) = latency {
            row(&format!("{what} p50, p99"), format!("{}, {}", ms(latency.p50_us), ms(latency.p99_us)));
        }
    }
    row("longest gap", format!("{:.1} ms", report.longest_gap_ms));
    row("slowest second", report.slowest_second.map_or_else(String::new, |ios| format!("{ios} requests")));
    row("client cpu per I/O", format!("{:.3} ms", report.client_cpu_ms_per_io));
    if let Some(cluster) = report.cluster_cpu_ms_per_io {
        row("cluster cpu per I/O", format!("{cluster:.3} ms"));
    }
    table.to_string()
}
