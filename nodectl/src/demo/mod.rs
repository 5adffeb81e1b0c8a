//! `nodectl demo`: the whole thread once, with real processes, under load, proved at the end.
//!
//! A story in steps ([`story`]), each with a time limit and a sentence that says what did not happen; the figures go
//! into a [`report`]. Whatever the outcome, no process is left; the directory is removed after success, and after a
//! failure only the devices are, so that the logs can be read.

mod report;
mod running;
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
use crate::units;

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
    let dir = args.dir.clone().unwrap_or_else(temporary);
    if dir.join("cluster.json").exists() {
        return Err(Failure::new(Exit::IllegalState, format!("there is a cluster in {} already", dir.display()))
            .untouched("nothing was started")
            .next("name a new --dir, or none"));
    }
    enough_space(&dir, u64::from(args.nodes) * DEVICE)?;
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
                remove_devices(&dir, args.nodes);
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

/// A directory of this process: below the target directory where we were built, as `/tmp` may be memory.
fn temporary() -> PathBuf {
    let built = std::env::current_exe().ok();
    let target = built.as_deref().and_then(Path::parent).and_then(Path::parent).map(|target| target.join("tmp"));
    let place = target.filter(|place| place.is_dir()).unwrap_or_else(std::env::temp_dir);
    place.join(format!("demo-{}", std::process::id()))
}

/// Refuses before anything is written where the disk is too small.
fn enough_space(dir: &Path, needed: u64) -> Result<(), Failure> {
    let existing = dir.ancestors().find(|place| place.is_dir()).unwrap_or(Path::new("."));
    let Some(free) = free_space(existing) else { return Ok(()) };
    if free >= needed {
        return Ok(());
    }
    let what =
        format!("the demo needs {} in {}, {} are free", units::size(needed), existing.display(), units::size(free));
    Err(Failure::failed(what)
        .untouched("nothing was started")
        .next("nodectl demo --dir on a larger disk, or --nodes 4"))
}

fn free_space(place: &Path) -> Option<u64> {
    use std::os::unix::ffi::OsStrExt;
    let path = std::ffi::CString::new(place.as_os_str().as_bytes()).ok()?;
    // SAFETY: statvfs is plain data, for which all zeros is a value.
    let mut stat: libc::statvfs = unsafe { std::mem::zeroed() };
    // SAFETY: the path ends with a zero byte and the result points to a statvfs of ours.
    let result = unsafe { libc::statvfs(path.as_ptr(), &raw mut stat) };
    (result == 0).then(|| stat.f_bavail.saturating_mul(stat.f_frsize))
}

fn remove_devices(dir: &Path, nodes: u16) {
    let dir = Dir::new(dir);
    for node in 1..=nodes {
        let _ = std::fs::remove_file(dir.node(engine_core::ids::NodeId(node)).join("device"));
    }
}
