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

use std::path::Path;
use std::time::Instant;

use self::cases::{CASES, Case};
use self::fleet::Fleet;
use self::report::{Options, Report, Row};
use super::fio::{self, BareFile};
use super::machine::Machine;
use super::rounds::Rounds;
use crate::Global;
use crate::failure::{Context, Failure};
use crate::scratch;

const NODES: u16 = 3;
/// Beside WAL and volume: maps, scratch slabs, headroom.
const SPARE: u64 = 1 << 30;

/// Arguments of `bench side-by-side`.
#[derive(Debug, clap::Args)]
pub(crate) struct Args {
    #[command(flatten)]
    rounds: Rounds,
}

impl Args {
    fn cases(&self, sustained: bool) -> Vec<Case> {
        CASES.into_iter().filter(|case| case.sustained == sustained && self.rounds.wants(case.name)).collect()
    }
}

/// Runs it and prints the report.
pub(crate) fn run(global: &Global, args: &Args) -> Result<(), Failure> {
    let fio = fio::version()?;
    let dir = args.rounds.place("side-by-side")?;
    let largest =
        (args.rounds.wal_size + args.rounds.size).max(args.rounds.sustained_wal_size + args.rounds.sustained_size());
    scratch::enough_space(&dir, u64::from(NODES) * (largest + SPARE) + args.rounds.sustained_size())?;
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
    let bare = BareFile::create(dir, args.rounds.size)?;
    let mut rows = short(args, dir, &bare)?;
    if args.rounds.sustained > 0 {
        rows.extend(sustained(args, dir, &bare)?);
    }
    let options = Options { nodes: NODES, copies: NODES, network: "loopback, one disk", ran: args.rounds.ran(fio) };
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
    let fleet = Fleet::start(
        &dir.join("short"),
        NODES,
        args.rounds.wal_size + args.rounds.size + SPARE,
        args.rounds.wal_size,
        args.rounds.size,
    )?;
    let through_nbd = nbd::is_known();
    for round in 0..args.rounds.count {
        eprintln!("round {} of {}", round + 1, args.rounds.count);
        for (case, row) in cases.iter().zip(&mut rows) {
            let one = |row: &mut Row, cluster: bool| {
                fleet.quiet();
                if cluster {
                    row.cluster.push(fleet.measure(case, args.rounds.seconds)?);
                } else {
                    row.bare.push(bare.measure(&case.bare(), args.rounds.seconds)?);
                }
                Ok::<_, Failure>(())
            };
            let first = round % 2 == 1;
            one(row, first)?;
            one(row, !first)?;
            eprintln!("  {}", row.last());
            if case.has_nbd() && through_nbd {
                fleet.quiet();
                row.nbd.push(fleet.through_nbd(case, args.rounds.seconds)?);
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
    let (size, wal_size) = (args.rounds.sustained_size(), args.rounds.sustained_wal_size);
    let fleet = Fleet::start(&dir.join("sustained"), NODES, wal_size + size + SPARE, wal_size, size)?;
    for case in &cases {
        let mut row = Row::new(case);
        let bare_once = |row: &mut Row| {
            fleet.quiet();
            row.bare.push(bare.measure(&case.bare(), args.rounds.seconds)?);
            Ok::<_, Failure>(())
        };
        bare_once(&mut row)?;
        let written = fleet.measure(case, args.rounds.sustained)?;
        bare_once(&mut row)?;
        row.cluster.push(written);
        eprintln!("  {}", row.last());
        rows.push(row);
    }
    fleet.stop()?;
    Ok(rows)
}
