//! `nodectl store`: a look at a device that no node uses. Only reads; the device is opened read-only, and locked so
//! that no node starts on it meanwhile.

use std::path::{Path, PathBuf};

use clap::Subcommand;
use engine::device::WholeDevice;
use engine::device::file::{DeviceError, DeviceFile};
use engine::store::report::{Report, ShardReport, Verdict};
use engine::store::{Depth, OpenError, examine};

use crate::Global;
use crate::failure::{Exit, Failure};
use crate::output::{self, Table};
use crate::units;

/// Bytes between two moves of the bar.
const BAR_STEP: u64 = 16 * 1024 * 1024;

/// A node's device, while the node is down.
#[derive(Debug, Subcommand)]
pub(crate) enum Store {
    /// What is on it: superblock, WAL, map, replicas, space.
    Inspect {
        /// A block device or a device file.
        path: PathBuf,
    },
    /// Whether all of it is what it should be. Exit code 7 when it is not.
    Check {
        /// A block device or a device file.
        path: PathBuf,
        /// Read all written data and compare it with its checksums.
        #[arg(long)]
        data: bool,
    },
}

/// Runs one of them.
pub(crate) fn run(global: &Global, command: &Store) -> Result<(), Failure> {
    match command {
        Store::Inspect { path } => {
            let report = look(path, Depth::Structure)?;
            global.output.show(&report, inspected)
        }
        Store::Check { path, data } => {
            let report = look(path, if *data { Depth::Data } else { Depth::Checksums })?;
            global.output.show(&report, |report| checked(report, *data))?;
            verdict(path, &report)
        }
    }
}

fn look(path: &Path, depth: Depth) -> Result<Report, Failure> {
    let mut device = DeviceFile::open_read_only(path).map_err(|error| not_opened(&error))?;
    let size = device.size();
    let bar = output::bar(size, "comparing");
    let (mut shown, mut before) = (0, 0);
    let report = examine(&mut device, depth, &mut |done, total| {
        if done < before {
            shown = 0;
        }
        before = done;
        if done >= shown + BAR_STEP || done == total {
            shown = done;
            bar.set_length(total);
            bar.set_position(done);
        }
    });
    bar.finish_and_clear();
    report.map_err(|error| not_ours(path, &error))
}

fn not_opened(error: &DeviceError) -> Failure {
    let exit = match error {
        DeviceError::Missing { .. } => Exit::NotFound,
        DeviceError::InUse { .. } => Exit::IllegalState,
        _ => Exit::Failed,
    };
    let next = match error {
        DeviceError::InUse { .. } => "stop the node; while it runs: nodectl node scrub NODE --now",
        _ => "nodectl node show NODE tells where a node's device is",
    };
    Failure::new(exit, error.to_string()).untouched("nothing was read or written").next(next)
}

fn not_ours(path: &Path, error: &OpenError) -> Failure {
    let (exit, next) = match error {
        OpenError::UnknownVersion(_) | OpenError::UnknownFeatures(_) => {
            (Exit::Refused, "nodectl of the version that wrote it")
        }
        OpenError::Io(_) => (Exit::Failed, "the kernel's log says what the device's matter is"),
        _ => (Exit::IllegalState, "nodectl node show NODE tells where a node's device is"),
    };
    Failure::new(exit, format!("{}: {error}", path.display())).untouched("it was only read").next(next)
}

/// The exit code of a check, with the worst that was found.
fn verdict(path: &Path, report: &Report) -> Result<(), Failure> {
    let Some(worst) = report.problems.iter().map(|problem| problem.verdict).max() else { return Ok(()) };
    let count = report.problems.len() as u64 + report.problems_left_off;
    let what = format!("{}: {count} problem{}, at worst: {worst}", path.display(), if count == 1 { "" } else { "s" });
    Err(Failure::new(Exit::Damaged, what).untouched("it was only read").next(worst.advice()))
}

fn inspected(report: &Report) -> String {
    let mut parts = vec![identity(report), copies(report)];
    for shard in &report.shards {
        parts.push(shard_table(shard));
        parts.push(places(shard));
        if !shard.replicas.is_empty() {
            parts.push(replicas(shard));
        }
    }
    if !report.problems.is_empty() {
        parts.push(problems(report));
    }
    parts.join("\n\n")
}

fn checked(report: &Report, data: bool) -> String {
    let mut table = Table::new(["shard", "slabs", "used", "pending", "free", "booked", "replicas", "batches"]);
    for shard in &report.shards {
        let (Some(space), Some(wal)) = (&shard.space, &shard.wal) else { continue };
        let cells = [
            u64::from(shard.shard),
            space.slabs,
            space.used,
            space.pending,
            space.free,
            space.booked,
            shard.replicas.len() as u64,
            wal.next_batch.saturating_sub(wal.first_batch),
        ];
        table.row(cells.map(|number| number.to_string()));
    }
    let mut parts = vec![table.to_string()];
    if data {
        parts.push(format!("{} of written data match their checksums", units::size(report.verified_bytes)));
    }
    parts.push(if report.problems.is_empty() { "clean".to_owned() } else { problems(report) });
    parts.join("\n\n")
}

fn identity(report: &Report) -> String {
    let mut table = Table::new(["what", "value"]);
    let mut row = |what: &str, value: String| table.row([what.to_owned(), value]);
    row("device", units::size(report.size));
    let Some(identity) = &report.superblock else { return table.to_string() };
    row("format version", identity.version.to_string());
    row("features", format!("{:#x} required, {:#x} compatible", identity.features, identity.compatible_features));
    row("cluster", identity.cluster.clone());
    row("device id", identity.device.clone());
    row("node", identity.node.clone());
    row("boot", identity.boot.to_string());
    row("authority's revision", identity.revision.to_string());
    row("in use", units::size(identity.size));
    row("shards", format!("{}, each with a WAL of {}", identity.shards, units::size(identity.wal_size)));
    table.to_string()
}

fn copies(report: &Report) -> String {
    let mut table = Table::new(["superblock", "offset", "boot", "revision"]);
    for copy in &report.copies {
        table.row([copy.state.to_owned(), hex(copy.offset), or_dash(copy.boot), or_dash(copy.revision)]);
    }
    table.to_string()
}

fn shard_table(shard: &ShardReport) -> String {
    let mut table = Table::new(["shard", &shard.shard.to_string()]);
    let mut row = |what: &str, value: String| table.row([what.to_owned(), value]);
    for root in &shard.roots {
        let detail = root.number.map_or(String::new(), |number| {
            let (batch, oldest) = (or_dash(root.batch), or_dash(root.oldest));
            format!(", checkpoint {number}: everything before batch {batch}, log from batch {oldest} on")
        });
        row(&format!("root {}", root.name), format!("{}{detail}", root.state));
    }
    if let Some(wal) = &shard.wal {
        let (used, size) = (units::size(wal.used), units::size(wal.size));
        row("WAL", format!("{used} of {size}, from {} to {}", hex(wal.tail), hex(wal.head)));
        row("batches", format!("{} to {}, not included", wal.first_batch, wal.next_batch));
        row("records", format!("{}; {} changes not in their homes yet", wal.records, wal.changes));
    }
    if let Some(space) = &shard.space {
        let (used, pending, free) = (space.used, space.pending, space.free);
        row("slabs", format!("{}: {used} used, {pending} of uncommitted changes, {free} free", space.slabs));
        row("booked", format!("{} of {} extents, {} in reserve", space.booked, space.capacity, space.scratch));
        row("map pages", format!("{} of {}", space.map_pages_used, space.map_pages));
    }
    table.to_string()
}

fn places(shard: &ShardReport) -> String {
    let mut table = Table::new(["area", "offset", "length"]);
    for area in &shard.areas {
        table.row([area.name.to_owned(), hex(area.offset), units::size(area.bytes)]);
    }
    table.to_string()
}

fn replicas(shard: &ShardReport) -> String {
    let mut table = Table::new([
        "segment",
        "incarnation",
        "epoch",
        "standing",
        "members",
        "extents",
        "written",
        "stamp",
        "commit",
        "last",
        "damaged",
    ]);
    for replica in &shard.replicas {
        table.row([
            replica.segment.clone(),
            replica.incarnation.to_string(),
            replica.epoch.to_string(),
            replica.standing.to_owned(),
            replica.members.join(","),
            replica.extents.to_string(),
            replica.written.to_string(),
            replica.stamp.to_string(),
            replica.commit.to_string(),
            replica.last.to_string(),
            if replica.damaged { "yes" } else { "no" }.to_owned(),
        ]);
    }
    table.to_string()
}

fn problems(report: &Report) -> String {
    let mut table = Table::new(["shard", "offset", "in", "whose", "what becomes of it", "what"]);
    let mut seen: Vec<Verdict> = Vec::new();
    for problem in &report.problems {
        let shard = problem.shard.map_or("-".to_owned(), |shard| shard.to_string());
        let (structure, place) = (problem.structure.to_owned(), problem.place.to_string());
        let (verdict, what) = (problem.verdict.to_string(), problem.what.clone());
        table.row([shard, hex(problem.offset), structure, place, verdict, what]);
        if !seen.contains(&problem.verdict) {
            seen.push(problem.verdict);
        }
    }
    let mut lines = vec![table.to_string()];
    if report.problems_left_off > 0 {
        lines.push(format!("and {} more", report.problems_left_off));
    }
    lines.push(String::new());
    seen.sort_unstable();
    lines.extend(seen.iter().map(|verdict| format!("{verdict}: {}", verdict.advice())));
    lines.join("\n")
}

fn hex(offset: u64) -> String {
    format!("{offset:#x}")
}

fn or_dash(number: Option<u64>) -> String {
    number.map_or("-".to_owned(), |number| number.to_string())
}
