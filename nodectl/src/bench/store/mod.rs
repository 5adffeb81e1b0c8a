//! `nodectl bench store`: the bare disk and the store alone on it, in turns, in one run.
//!
//! What a node can do is bounded by what its store makes of the disk. So here is the store of one shard with nothing
//! around it, beside fio on a file of the same file system: every round measures every case on both, one after the other,
//! the order changing from round to round; what counts is the median over the rounds of their ratio. fio writes without
//! a flush except at depth 1; the store's writes are all durable before they count.

mod cases;
mod report;
mod subject;

use std::path::Path;
use std::time::Instant;

use self::cases::{CASES, Case, FILL};
use self::report::{Options, Report, Row};
use self::subject::{Subject, Until, device_size};
use super::fio::{self, BareFile};
use super::machine::Machine;
use super::rounds::Rounds;
use crate::Global;
use crate::failure::{Context, Failure};
use crate::scratch;

const MIB: u64 = 1 << 20;
/// Seconds of a bare run: what the disk does then, it does throughout.
const BARE_SECONDS_MAX: u32 = 20;

/// Arguments of `bench store`.
#[derive(Debug, clap::Args)]
pub(crate) struct Args {
    #[command(flatten)]
    rounds: Rounds,
}

impl Args {
    fn cases(&self, sustained: bool) -> Vec<Case> {
        let asked_for = !sustained || self.rounds.sustained > 0;
        let wanted = |case: &Case| asked_for && case.sustained == sustained && self.rounds.wants(case.name);
        CASES.into_iter().filter(wanted).collect()
    }
}

/// Runs it and prints the report.
pub(crate) fn run(global: &Global, args: &Args) -> Result<(), Failure> {
    if args.rounds.size == 0 || !args.rounds.size.is_multiple_of(MIB) {
        return Err(Failure::usage("--size has to be a multiple of 1M").next("--size 1G"));
    }
    let fio = fio::version()?;
    let dir = args.rounds.place("store")?;
    let short = device_size(args.rounds.size, args.rounds.wal_size);
    let sustained = device_size(args.rounds.sustained_size(), args.rounds.sustained_wal_size);
    scratch::enough_space(&dir, args.rounds.sustained_size() + short.max(sustained))?;
    std::fs::create_dir_all(&dir).could_not(|| format!("make {}", dir.display()))?;
    let measured = measure(args, &dir, &fio);
    // Nothing in it is of use to anybody.
    let _ = std::fs::remove_dir_all(&dir);
    global.output.show(&measured?, report::table)
}

fn measure(args: &Args, dir: &Path, fio: &str) -> Result<Report, Failure> {
    let (begun, machine) = (Instant::now(), Machine::here());
    let bare = BareFile::create(dir, args.rounds.sustained_size())?;
    let mut rows = rounds(args, dir, &bare, false)?;
    rows.extend(rounds(args, dir, &bare, true)?);
    let options = Options { place: dir.parent().unwrap_or(dir).display().to_string(), ran: args.rounds.ran(fio) };
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
        (args.rounds.sustained_size(), args.rounds.sustained_wal_size, args.rounds.sustained)
    } else {
        (args.rounds.size, args.rounds.wal_size, args.rounds.seconds)
    };
    let place = dir.join(if sustained { "sustained" } else { "short" });
    std::fs::create_dir(&place).could_not(|| format!("make {}", place.display()))?;
    let mut subject = Subject::create(&place, size, wal, &FILL)?;
    for round in 0..args.rounds.count {
        eprintln!("round {} of {}", round + 1, args.rounds.count);
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
