//! `nodectl bench side-by-side`: the bare disk and a cluster on it, in turns, in one run.
//!
//! A figure of a cluster means nothing without the same disk's figure of the same minutes. So every round measures every
//! case on both, one after the other, the order changing from round to round; what counts is the median over the
//! rounds of their ratio. The cluster is three nodes with three copies on loopback and one disk: every write is
//! written three times to the disk that the bare case writes once. Small requests go through NBD too, beside the native
//! client of the same round.

mod cases;
mod fleet;
mod nbd;
mod report;

use std::path::{Path, PathBuf};
use std::time::Instant;

use self::cases::{CASES, Case};
use self::fleet::Fleet;
use self::report::{Options, Report, Row};
use super::fio::{self, BareFile};
use super::machine::Machine;
use crate::Global;
use crate::failure::{Context, Exit, Failure};
use crate::{scratch, units};

const NODES: u16 = 3;
/// Beside WAL and volume: maps, scratch slabs, headroom.
const SPARE: u64 = 1 << 30;

/// Arguments of `bench side-by-side`.
#[derive(Debug, clap::Args)]
pub(crate) struct Args {
    /// Rounds; the median of their ratios counts.
    #[arg(long, default_value_t = 5, value_parser = clap::value_parser!(u32).range(1..=100))]
    rounds: u32,
    /// Seconds of each measurement.
    #[arg(long, default_value_t = 3, value_parser = clap::value_parser!(u32).range(1..=600))]
    seconds: u32,
    /// Seconds of the sustained case; 0 leaves it out.
    #[arg(long, default_value_t = 60)]
    sustained: u32,
    /// Size of the volume and of the bare file.
    #[arg(long, default_value = "1G", value_parser = units::parse_size)]
    size: u64,
    /// Write-ahead log of each node.
    #[arg(long, default_value = "1G", value_parser = units::parse_size)]
    wal_size: u64,
    /// Write-ahead log of each node in the sustained case, whose volume is at least eight times as large.
    #[arg(long, default_value = "128M", value_parser = units::parse_size)]
    sustained_wal_size: u64,
    /// Only cases whose name contains this.
    #[arg(long)]
    only: Option<String>,
    /// Where to put it; must be new [default: a temporary directory]. Removed after success.
    #[arg(long)]
    dir: Option<PathBuf>,
}

impl Args {
    fn cases(&self, sustained: bool) -> Vec<Case> {
        let wanted = |case: &Case| self.only.as_ref().is_none_or(|only| case.name.contains(only.as_str()));
        CASES.into_iter().filter(|case| case.sustained == sustained && wanted(case)).collect()
    }

    fn sustained_size(&self) -> u64 {
        self.size.max(8 * self.sustained_wal_size)
    }
}

/// Runs it and prints the report.
pub(crate) fn run(global: &Global, args: &Args) -> Result<(), Failure> {
    let fio = fio::version()?;
    let dir = args.dir.clone().unwrap_or_else(|| scratch::temporary("side-by-side"));
    if dir.exists() {
        return Err(Failure::new(Exit::IllegalState, format!("{} exists already", dir.display()))
            .untouched("nothing was started")
            .next("name a new --dir, or none"));
    }
    let largest = (args.wal_size + args.size).max(args.sustained_wal_size + args.sustained_size());
    scratch::enough_space(&dir, u64::from(NODES) * (largest + SPARE) + args.sustained_size())?;
    std::fs::create_dir_all(&dir).could_not(|| format!("make {}", dir.display()))?;
    match measure(args, &dir, &fio) {
        Ok(report) => {
            let _ = std::fs::remove_dir_all(&dir);
            global.output.show(&report, report::table)
        }
        Err(failure) => {
            let _ = std::fs::remove_file(dir.join("bare"));
            for part in ["short", "sustained"] {
                scratch::remove_devices(&dir.join(part), NODES);
            }
            Err(failure.untouched(format!("no process is left; logs are in {}/*/n*/log", dir.display())))
        }
    }
}

fn measure(args: &Args, dir: &Path, fio: &str) -> Result<Report, Failure> {
    let (begun, machine) = (Instant::now(), Machine::here());
    let bare = BareFile::create(dir, args.size)?;
    let mut rows = short(args, dir, &bare)?;
    if args.sustained > 0 {
        rows.extend(sustained(args, dir, &bare)?);
    }
    let options = Options {
        nodes: NODES,
        copies: NODES,
        network: "loopback, one disk",
        size: args.size,
        wal_size: args.wal_size,
        sustained_size: args.sustained_size(),
        sustained_wal_size: args.sustained_wal_size,
        rounds: args.rounds,
        seconds: args.seconds,
        sustained_seconds: args.sustained,
        bare: format!("{fio}, io_uring, O_DIRECT, on a file that was written before"),
    };
    Ok(Report {
        at: jiff::Timestamp::now().to_string(),
        machine,
        options,
        rows,
        seconds: begun.elapsed().as_secs_f64(),
    })
}

/// Every short case, round by round.
fn short(args: &Args, dir: &Path, bare: &BareFile) -> Result<Vec<Row>, Failure> {
    let cases = args.cases(false);
    let mut rows: Vec<Row> = cases.iter().map(Row::new).collect();
    if cases.is_empty() {
        return Ok(rows);
    }
    let fleet = Fleet::start(&dir.join("short"), NODES, args.wal_size + args.size + SPARE, args.wal_size, args.size)?;
    let through_nbd = nbd::is_known();
    for round in 0..args.rounds {
        eprintln!("round {} of {}", round + 1, args.rounds);
        for (case, row) in cases.iter().zip(&mut rows) {
            let one = |row: &mut Row, cluster: bool| {
                fleet.quiet();
                if cluster {
                    row.cluster.push(fleet.measure(case, args.seconds)?);
                } else {
                    row.bare.push(bare.measure(&case.bare(), args.seconds)?);
                }
                Ok::<_, Failure>(())
            };
            let first = round % 2 == 1;
            one(row, first)?;
            one(row, !first)?;
            eprintln!("  {}", row.last());
            if case.has_nbd() && through_nbd {
                fleet.quiet();
                row.nbd.push(fleet.through_nbd(case, args.seconds)?);
            }
        }
    }
    fleet.stop()?;
    Ok(rows)
}

/// The sustained case: once, for long, the bare disk before and after it.
fn sustained(args: &Args, dir: &Path, bare: &BareFile) -> Result<Vec<Row>, Failure> {
    let mut rows = Vec::new();
    let cases = args.cases(true);
    if cases.is_empty() {
        return Ok(rows);
    }
    let (size, wal_size) = (args.sustained_size(), args.sustained_wal_size);
    let fleet = Fleet::start(&dir.join("sustained"), NODES, wal_size + size + SPARE, wal_size, size)?;
    for case in &cases {
        let mut row = Row::new(case);
        let bare_once = |row: &mut Row| {
            fleet.quiet();
            row.bare.push(bare.measure(&case.bare(), args.seconds)?);
            Ok::<_, Failure>(())
        };
        bare_once(&mut row)?;
        let written = fleet.measure(case, args.sustained)?;
        bare_once(&mut row)?;
        row.cluster.push(written);
        eprintln!("  {}", row.last());
        rows.push(row);
    }
    fleet.stop()?;
    Ok(rows)
}
