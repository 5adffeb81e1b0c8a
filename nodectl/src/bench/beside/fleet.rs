//! The cluster that is measured: `cluster up` on a thread of this process, loads by `bench io` in a process of its own.

use std::path::Path;
use std::process::{Command, Stdio};
use std::time::{Duration, Instant};

use engine::authority::api::{CreateVolume, Spread};
use serde::{Deserialize, Serialize};

use super::cases::Case;
use super::nbd;
use crate::bench::figure::Figure;
use crate::bench::fio::Bare;
use crate::cluster::dir::Dir;
use crate::cluster::up;
use crate::demo::running::Running;
use crate::failure::{Context, Failure};
use crate::http::Api;

const VOLUME: &str = "side-by-side";
/// Nodes count as quiet when they have written nothing for this long...
const QUIET: Duration = Duration::from_millis(1500);
/// ...and are not waited for any longer than this.
const QUIET_LIMIT: Duration = Duration::from_secs(60);
const POLL: Duration = Duration::from_millis(100);

/// What one run of `bench io` said.
#[derive(Debug, Clone, Serialize, Deserialize)]
pub(super) struct Load {
    pub(super) iops: f64,
    pub(super) mib_per_second: f64,
    pub(super) latency: Latency,
    pub(super) slowest_second: Option<u64>,
    client_cpu_ms_per_io: f64,
    cluster_cpu_ms_per_io: Option<f64>,
}

/// In microseconds.
#[derive(Debug, Clone, Serialize, Deserialize)]
pub(super) struct Latency {
    pub(super) p50_us: f64,
    pub(super) p99_us: f64,
}

impl Load {
    /// The one a case is about.
    pub(super) const fn figure(&self, which: Figure) -> f64 {
        match which {
            Figure::Latency => self.latency.p50_us,
            Figure::Iops => self.iops,
            Figure::Throughput => self.mib_per_second,
        }
    }

    /// Processor milliseconds per request, over all processes.
    pub(super) fn cpu_ms(&self) -> f64 {
        self.client_cpu_ms_per_io + self.cluster_cpu_ms_per_io.unwrap_or_default()
    }
}

/// A running cluster with a volume every block of which is written.
pub(super) struct Fleet {
    dir: Dir,
    running: Running,
}

impl Fleet {
    pub(super) fn start(path: &Path, nodes: u16, device: u64, wal_size: u64, size: u64) -> Result<Self, Failure> {
        let up = up::Args {
            dir: path.to_owned(),
            nodes: Some(nodes),
            device_size: Some(device),
            wal_size: Some(wal_size),
            ..up::Args::default()
        };
        let fleet = Self { dir: Dir::new(path), running: Running::start(up)? };
        Api::new(fleet.running.authority(), None).create(&CreateVolume {
            name: VOLUME.to_owned(),
            size,
            copies: u8::try_from(nodes).ok(),
            min_copies: None,
            segment_size: None,
            zone: None,
            spread: Some(Spread::Node),
            iops: None,
            mibps: None,
        })?;
        fleet.fill(size)?;
        fleet.quiet();
        Ok(fleet)
    }

    /// Writes every block once.
    fn fill(&self, size: u64) -> Result<(), Failure> {
        eprintln!("writing the volume");
        let wanted = size >> 20;
        self.bench(&["--rw", "write", "--bs", "1m", "--qd", "8", "--seconds", "3600", "--ios", &wanted.to_string()])?;
        Ok(())
    }

    pub(super) fn measure(&self, case: &Case, seconds: u32) -> Result<Load, Failure> {
        let (depth, seconds) = (case.depth.to_string(), seconds.to_string());
        self.bench(&["--rw", case.mode, "--bs", case.block, "--qd", &depth, "--seconds", &seconds])
    }

    /// The same by fio through a gateway, at the case's own depth.
    pub(super) fn through_nbd(&self, case: &Case, seconds: u32) -> Result<Bare, Failure> {
        nbd::measure(self.dir.path(), VOLUME, &case.through_nbd(), seconds)
    }

    /// A process of its own, so that its processor time is the client's alone.
    fn bench(&self, args: &[&str]) -> Result<Load, Failure> {
        let mut command = Command::new("/proc/self/exe");
        command.arg("--cluster").arg(self.dir.path()).args(["-o", "json", "bench", "io", VOLUME]).args(args);
        let output = command.stdin(Stdio::null()).output().could_not(|| "run bench io".to_owned())?;
        if !output.status.success() {
            return Err(Failure::failed(format!("bench io: {}", String::from_utf8_lossy(&output.stderr).trim())));
        }
        serde_json::from_slice(&output.stdout)
            .map_err(|error| Failure::failed(format!("the report of bench io cannot be read: {error}")))
    }

    /// Waits until the nodes write nothing any more: what one case left to be applied is not the next one's.
    pub(super) fn quiet(&self) {
        let until = Instant::now() + QUIET_LIMIT;
        let (mut written, mut since) = (self.written(), Instant::now());
        while since.elapsed() < QUIET && Instant::now() < until {
            std::thread::sleep(POLL);
            let now = self.written();
            // A report to the authority makes nobody busy: blocks count.
            if now.abs_diff(written) > 64 * 1024 {
                (written, since) = (now, Instant::now());
            }
        }
    }

    fn written(&self) -> u64 {
        let Ok(file) = self.dir.read() else { return 0 };
        let bytes = |pid: u32| {
            let io = std::fs::read_to_string(format!("/proc/{pid}/io")).ok()?;
            io.lines().find_map(|line| line.strip_prefix("write_bytes: "))?.trim().parse::<u64>().ok()
        };
        file.nodes.iter().filter_map(|node| node.pid).filter_map(bytes).sum()
    }

    pub(super) fn stop(self) -> Result<(), Failure> {
        let path = self.dir.path().to_owned();
        self.running.stop()?;
        // The next cluster may need its space.
        let _ = std::fs::remove_dir_all(path);
        Ok(())
    }
}
