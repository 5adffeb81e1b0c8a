//! `nodectl demo`: the whole thread once, with real processes, under load, proved at the end.
//!
//! A story in steps ([`story`]), each with a time limit and a sentence that says what did not happen; the figures go
//! into a [`report`]. Whatever the outcome, no process is left; the directory is removed after success, and after a
//! failure only the devices are, so that the logs can be read.

mod report;
pub(crate) mod running;
mod story;

use std::path::{Path, PathBuf};
use std::time::{Duration, Instant};

use self::report::Report;
use self::running::Running;
use self::story::Story;
use crate::Global;
use crate::cluster::dir::Dir;
use crate::cluster::up;
use crate::failure::{Exit, Failure};
use crate::{scratch, units};

/// Size of each node's device: one node must be able to hold a copy of the whole volume, when it is the last of its
/// zone, with headroom.
const DEVICE: u64 = 3 << 30;
/// How long a missing replica may come back: long enough for a killed node to return, short enough to watch.
const GRACE: Duration = Duration::from_secs(10);

/// Arguments of `demo`.
#[derive(Debug, clap::Args)]
pub(crate) struct Args {
    /// Nodes.
    #[arg(long, default_value_t = 6, value_parser = clap::value_parser!(u16).range(4..=8))]
    nodes: u16,
    /// Zones.
    #[arg(long, default_value_t = 3, value_parser = clap::value_parser!(u16).range(1..=8))]
    zones: u16,
    /// Where to put it; must be new, and is kept [default: a temporary directory, removed after success].
    #[arg(long)]
    dir: Option<PathBuf>,
}

/// Tells the story and prints the report.
pub(crate) fn run(global: &Global, args: &Args) -> Result<(), Failure> {
    let begun = Instant::now();
    let dir = args.dir.clone().unwrap_or_else(|| scratch::temporary("demo"));
    if dir.join("cluster.json").exists() {
        return Err(Failure::new(Exit::IllegalState, format!("there is a cluster in {} already", dir.display()))
            .untouched("nothing was started")
            .next("name a new --dir, or none"));
    }
    scratch::enough_space(&dir, u64::from(args.nodes) * DEVICE)?;
    let outcome = tell(&dir, args);
    let keep = args.dir.is_some();
    match outcome {
        Ok(report) => {
            if !keep {
                let _ = std::fs::remove_dir_all(&dir);
            }
            let report = Report { seconds: begun.elapsed().as_secs_f64(), ..report };
            global.output.show(&report, report::table)?;
            report.verdict()
        }
        Err(failure) => {
            if !keep {
                scratch::remove_devices(&dir, args.nodes);
            }
            let logs = dir.display();
            Err(failure
                .untouched(format!("no process is left; logs are kept in {logs}/n*/log and {logs}/authority/log")))
        }
    }
}

fn tell(dir: &Path, args: &Args) -> Result<Report, Failure> {
    let up = up::Args {
        dir: dir.to_owned(),
        nodes: Some(args.nodes),
        zones: Some(args.zones),
        device_size: Some(DEVICE),
        grace: Some(GRACE),
        shards: Some(1),
        wal_size: None,
        devices: Some(1),
    };
    let begun = Instant::now();
    let running = Running::start(up)?;
    let story = Story::new(Dir::new(dir), running.authority(), args.nodes, args.zones);
    story.say(&format!("{} nodes in {} zones serve, after {}", args.nodes, args.zones, units::time(begun.elapsed())));
    let report = story.tell();
    let stopped = running.stop();
    let report = report?;
    stopped?;
    Ok(report)
}
