//! The bare disk: fio with io_uring and O_DIRECT on a file of the same file system as the cluster's devices.

use std::path::{Path, PathBuf};
use std::process::{Command, Stdio};

use engine::device::file::DeviceFile;
use serde::Serialize;
use serde_json::Value;

use super::cases::{Case, Figure};
use crate::failure::{Context, Failure};
use crate::output;

/// What one run of fio said.
#[derive(Debug, Clone, Copy, Serialize)]
pub(super) struct Bare {
    pub(super) iops: f64,
    pub(super) mib_per_second: f64,
    /// Of the request, and of the flush behind it where there is one.
    pub(super) p50_us: f64,
}

impl Bare {
    /// The one a case is about.
    pub(super) const fn figure(&self, which: Figure) -> f64 {
        match which {
            Figure::Latency => self.p50_us,
            Figure::Iops => self.iops,
            Figure::Throughput => self.mib_per_second,
        }
    }
}

/// The version of fio here.
pub(super) fn version() -> Result<String, Failure> {
    let missing = |why: String| {
        Failure::failed(format!("fio cannot be run ({why}): without it there is no bare disk to compare with"))
            .untouched("nothing was started")
            .next("install fio (3.30 or later, with io_uring)")
    };
    let output = Command::new("fio").arg("--version").output().map_err(|error| missing(error.to_string()))?;
    if !output.status.success() {
        return Err(missing(output.status.to_string()));
    }
    Ok(String::from_utf8_lossy(&output.stdout).trim().to_owned())
}

/// The file the bare disk is measured on, every byte of it written.
#[derive(Debug)]
pub(super) struct BareFile {
    path: PathBuf,
    size: u64,
}

impl BareFile {
    /// Makes it.
    pub(super) fn create(dir: &Path, size: u64) -> Result<Self, Failure> {
        let path = dir.join("bare");
        let bar = output::bar(size, "writing the bare file");
        // Made like a device, so that both are laid out alike.
        let made = DeviceFile::create(&path, size, &mut |written| bar.set_position(written));
        bar.finish_and_clear();
        made.map_err(|error| Failure::failed(error.to_string()))?;
        Ok(Self { path, size })
    }

    /// One run.
    pub(super) fn measure(&self, case: &Case, seconds: u32) -> Result<Bare, Failure> {
        let mut command = Command::new("fio");
        command
            .args(["--name=bare", "--ioengine=io_uring", "--direct=1", "--norandommap", "--randrepeat=0"])
            .args(["--time_based", "--group_reporting", "--output-format=json"])
            .arg(format!("--filename={}", self.path.display()))
            .arg(format!("--size={}", self.size))
            .arg(format!("--rw={}", case.mode))
            .arg(format!("--bs={}", case.block))
            .arg(format!("--iodepth={}", case.bare_depth))
            .arg(format!("--runtime={seconds}"));
        if case.bare_flushes {
            command.arg("--fdatasync=1");
        }
        let output = command.stdin(Stdio::null()).output().could_not(|| "run fio".to_owned())?;
        if !output.status.success() {
            return Err(Failure::failed(format!("fio failed: {}", String::from_utf8_lossy(&output.stderr).trim())));
        }
        let said: Value = serde_json::from_slice(&output.stdout)
            .map_err(|error| Failure::failed(format!("fio's report cannot be read: {error}")))?;
        read(&said, case).ok_or_else(|| Failure::failed("fio's report does not hold what was asked for"))
    }
}

fn read(said: &Value, case: &Case) -> Option<Bare> {
    let job = said.get("jobs")?.get(0)?;
    let side = job.get(if case.writes() { "write" } else { "read" })?;
    let p50 = |of: &Value| of.get("percentile")?.get("50.000000")?.as_f64();
    let flush = if case.bare_flushes { p50(job.get("sync")?.get("lat_ns")?)? } else { 0.0 };
    Some(Bare {
        iops: side.get("iops")?.as_f64()?,
        mib_per_second: side.get("bw_bytes")?.as_f64()? / f64::from(1 << 20),
        p50_us: (p50(side.get("clat_ns")?)? + flush) / 1e3,
    })
}

#[cfg(test)]
mod tests {
    #![allow(clippy::unwrap_used)]
    use super::super::cases::CASES;
    use super::*;

    #[test]
    fn fios_report_is_read() {
        let said = serde_json::json!({"jobs": [{
            "write": {"iops": 1000.0, "bw_bytes": 4_194_304, "clat_ns": {"percentile": {"50.000000": 40_000}}},
            "sync": {"lat_ns": {"percentile": {"50.000000": 50_000}}},
        }]});
        let case = CASES.iter().find(|case| case.bare_flushes).unwrap();
        let bare = read(&said, case).unwrap();
        assert_eq!((bare.iops, bare.mib_per_second, bare.p50_us), (1000.0, 4.0, 90.0));
        assert!(read(&serde_json::json!({"jobs": []}), case).is_none());
    }
}
