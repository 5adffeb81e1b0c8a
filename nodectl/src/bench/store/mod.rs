//! `nodectl bench store`: the bare disk and the store alone on it, in turns, in one run.
//!
//! What a node can do is bounded by what its store makes of the disk. So here is the store of one shard with nothing
//! around it, beside fio on a file of the same file system: every round measures every case on both, one after the other,
//! the order changing from round to round; what counts is the median over the rounds of their ratio. fio writes without
//! a flush except at depth 1; the store's writes are all durable before they count.

mod cases;
mod report;
mod subject;

use std::path::{Path, PathBuf};
use std::time::Instant;

use self::cases::{CASES, Case, FILL};
use self::report::{Options, Report, Row};
use self::subject::{Subject, Until, device_size};
use super::fio::{self, BareFile};
use super::machine::Machine;
use crate::Global;
use crate::failure::{Context, Exit, Failure};
use crate::{scratch, units};

const MIB: u64 = 1 << 20;
/// Seconds of a bare run: what the disk does then, it does throughout.
const BARE_SECONDS_MAX: u32 = 20;

/// Arguments of `bench store`.
#[derive(Debug, clap::Args)]
pub(crate) struct Args {
    /// Rounds; the median of their ratios counts.
    #[arg(long, default_value_t = 5, value_parser = clap::value_parser!(u32).range(1..=100))]
    rounds: u32,
    /// Seconds of each measurement.
    #[arg(long, default_value_t = 3, value_parser = clap::value_parser!(u32).range(1..=600))]
    seconds: u32,
    /// Seconds of the sustained case, in every round; 0 leaves it out.
    #[arg(long, default_value_t = 60)]
    sustained: u32,
    /// Bytes that are written and read; also the size of the bare file.
    #[arg(long, default_value = "1G", value_parser = units::parse_size)]
    size: u64,
    /// Write-ahead log.
    #[arg(long, default_value = "1G", value_parser = units::parse_size)]
    wal_size: u64,
    /// Write-ahead log of the sustained case, whose set is at least eight times as large.
    #[arg(long, default_value = "128M", value_parser = units::parse_size)]
    sustained_wal_size: u64,
    /// Only cases whose name contains this.
    #[arg(long)]
    only: Option<String>,
    /// Where to put it; must be new [default: a temporary directory]. Removed afterwards.
    #[arg(long)]
    dir: Option<PathBuf>,
}

impl Args {
    fn cases(&self, sustained: bool) -> Vec<Case> {
        let wanted = |case: &Case| self.only.as_ref().is_none_or(|only| case.name.contains(only.as_str()));
        let asked_for = !sustained || self.sustained > 0;
        CASES.into_iter().filter(|case| asked_for && case.sustained == sustained && wanted(case)).collect()
    }

    fn sustained_size(&self) -> u64 {
        self.size.max(8 * self.sustained_wal_size)
    }
}

/// Runs it and prints the report.
pub(crate) fn run(global: &Global, args: &Args) -> Result<(), Failure> {
    if args.size == 0 || !args.size.is_multiple_of(MIB) {
        return Err(Failure::usage("--size has to be a multiple of 1M").next("--size 1G"));
    }
    let fio = fio::version()?;
    let dir = args.dir.clone().unwrap_or_else(|| scratch::temporary("store"));
    if dir.exists() {
        return Err(Failure::new(Exit::IllegalState, format!("{} exists already", dir.display()))
            .untouched("nothing was started")
            .next("name a new --dir, or none"));
    }
    let short = device_size(args.size, args.wal_size);
    let sustained = device_size(args.sustained_size(), args.sustained_wal_size);
    scratch::enough_space(&dir, args.sustained_size() + short.max(sustained))?;
    std::fs::create_dir_all(&dir).could_not(|| format!("make {}", dir.display()))?;
    let measured = measure(args, &dir, &fio);
    // Nothing in it is of use to anybody.
    let _ = std::fs::remove_dir_all(&dir);
    global.output.show(&measured?, report::table)
}

fn measure(args: &Args, dir: &Path, fio: &str) -> Result<Report, Failure> {
    let (begun, machine) = (Instant::now(), Machine::here());
    let bare = BareFile::create(dir, args.sustained_size())?;
    let mut rows = rounds(args, dir, &bare, false)?;
    rows.extend(rounds(args, dir, &bare, true)?);
    let options = Options {
        size: args.size,
        wal_size: args.wal_size,
        sustained_size: args.sustained_size(),
        sustained_wal_size: args.sustained_wal_size,
        rounds: args.rounds,
        seconds: args.seconds,
        sustained_seconds: args.sustained,
        place: dir.parent().unwrap_or(dir).display().to_string(),
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

/// The short cases, or the sustained one, round by round.
fn rounds(args: &Args, dir: &Path, bare: &BareFile, sustained: bool) -> Result<Vec<Row>, Failure> {
    let cases = args.cases(sustained);
    let mut rows: Vec<Row> = cases.iter().map(Row::new).collect();
    if cases.is_empty() {
        return Ok(rows);
    }
    let (size, wal, seconds) = if sustained {
        (args.sustained_size(), args.sustained_wal_size, args.sustained)
    } else {
        (args.size, args.wal_size, args.seconds)
    };
    let place = dir.join(if sustained { "sustained" } else { "short" });
    std::fs::create_dir(&place).could_not(|| format!("make {}", place.display()))?;
    let mut subject = Subject::create(&place, size, wal, &FILL)?;
    for round in 0..args.rounds {
        eprintln!("round {} of {}", round + 1, args.rounds);
        for (case, row) in cases.iter().zip(&mut rows) {
            let mut one = |row: &mut Row, store: bool| {
                if store {
                    row.store.push(subject.run(case, Until::Seconds(seconds))?);
                } else {
                    row.bare.push(bare.measure(&case.job, seconds.min(BARE_SECONDS_MAX))?);
                }
                Ok::<_, Failure>(())
            };
            let first = round % 2 == 1;
            one(row, first)?;
            one(row, !first)?;
            eprintln!("  {}", row.last());
        }
    }
    drop(subject);
    // The next one may need its space.
    let _ = std::fs::remove_dir_all(place);
    Ok(rows)
}
