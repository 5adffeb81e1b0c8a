//! fio, beside which everything is measured: io_uring and O_DIRECT on a file of the same file system.

use std::path::{Path, PathBuf};
use std::process::{Command, Stdio};

use engine::device::file::DeviceFile;
use serde::{Deserialize, Serialize};
use serde_json::Value;

use super::figure::Figure;
use crate::failure::{Context, Failure};
use crate::output;

/// What fio is to do.
#[derive(Debug, Clone, Copy)]
pub(crate) struct Job {
    /// As fio calls it.
    pub(crate) mode: &'static str,
    pub(crate) block: &'static str,
    pub(crate) depth: u16,
    /// It flushes after every write.
    pub(crate) flushes: bool,
}

impl Job {
    fn writes(&self) -> bool {
        self.mode.ends_with("write")
    }
}

/// What one run of fio said.
#[derive(Debug, Clone, Copy, Serialize)]
pub(crate) struct Bare {
    pub(crate) iops: f64,
    pub(crate) mib_per_second: f64,
    /// Of the request from its submission on, and of the flush behind it where there is one.
    pub(crate) p50_us: f64,
}

impl Bare {
    /// The one a case is about.
    pub(crate) const fn figure(&self, which: Figure) -> f64 {
        match which {
            Figure::Latency => self.p50_us,
            Figure::Iops => self.iops,
            Figure::Throughput => self.mib_per_second,
        }
    }
}

/// The version of fio here.
pub(crate) fn version() -> Result<String, Failure> {
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
pub(crate) struct BareFile {
    path: PathBuf,
    size: u64,
}

impl BareFile {
    /// Makes it.
    pub(crate) fn create(dir: &Path, size: u64) -> Result<Self, Failure> {
        let path = dir.join("bare");
        let bar = output::bar(size, "writing the bare file");
        // Made like a device, so that both are laid out alike.
        let made = DeviceFile::create(&path, size, &mut |written| bar.set_position(written));
        bar.finish_and_clear();
        made.map_err(|error| Failure::failed(error.to_string()))?;
        Ok(Self { path, size })
    }

    /// One run.
    pub(crate) fn measure(&self, job: &Job, seconds: u32) -> Result<Bare, Failure> {
        let place = [
            "--ioengine=io_uring".to_owned(),
            "--direct=1".to_owned(),
            format!("--filename={}", self.path.display()),
            format!("--size={}", self.size),
        ];
        run(&place, job, seconds)
    }
}

/// One run, where these arguments say.
pub(crate) fn run(place: &[String], job: &Job, seconds: u32) -> Result<Bare, Failure> {
    let mut command = Command::new("fio");
    command
        .args(["--name=bare", "--norandommap", "--randrepeat=0"])
        .args(["--time_based", "--group_reporting", "--output-format=json"])
        // Of the whole request: what fio tells by itself begins only when the kernel has taken it.
        .args(["--lat_percentiles=1", "--clat_percentiles=0"])
        .args(place)
        .arg(format!("--rw={}", job.mode))
        .arg(format!("--bs={}", job.block))
        .arg(format!("--iodepth={}", job.depth))
        .arg(format!("--runtime={seconds}"));
    if job.flushes {
        command.arg("--fdatasync=1");
    }
    let output = command.stdin(Stdio::null()).output().could_not(|| "run fio".to_owned())?;
    if !output.status.success() {
        return Err(Failure::failed(format!("fio failed: {}", String::from_utf8_lossy(&output.stderr).trim())));
    }
    let said =
        document(&output.stdout).map_err(|error| Failure::failed(format!("fio's report cannot be read: {error}")))?;
    read(&said, job).ok_or_else(|| Failure::failed("fio's report does not hold what was asked for"))
}

/// The one document among what fio prints: its nbd engine has something to say before and behind it.
fn document(said: &[u8]) -> Result<Value, serde_json::Error> {
    let begins = said.iter().position(|byte| *byte == b'{').unwrap_or(0);
    Value::deserialize(&mut serde_json::Deserializer::from_slice(&said[begins..]))
}

fn read(said: &Value, job: &Job) -> Option<Bare> {
    let run = said.get("jobs")?.get(0)?;
    let side = run.get(if job.writes() { "write" } else { "read" })?;
    let p50 = |of: &Value| of.get("percentile")?.get("50.000000")?.as_f64();
    let flush = if job.flushes { p50(run.get("sync")?.get("lat_ns")?)? } else { 0.0 };
    Some(Bare {
        iops: side.get("iops")?.as_f64()?,
        mib_per_second: side.get("bw_bytes")?.as_f64()? / f64::from(1 << 20),
        p50_us: (p50(side.get("lat_ns")?)? + flush) / 1e3,
    })
}

#[cfg(test)]
mod tests {
    #![allow(clippy::unwrap_used)]
    use super::*;

    #[test]
    fn fios_report_is_read() {
        let said = serde_json::json!({"jobs": [{
            "write": {"iops": 1000.0, "bw_bytes": 4_194_304, "lat_ns": {"percentile": {"50.000000": 40_000}}},
            "sync": {"lat_ns": {"percentile": {"50.000000": 50_000}}},
        }]});
        let job = Job { mode: "randwrite", block: "4k", depth: 1, flushes: true };
        let bare = read(&said, &job).unwrap();
        assert_eq!((bare.iops, bare.mib_per_second, bare.p50_us), (1000.0, 4.0, 90.0));
        assert!(read(&serde_json::json!({"jobs": []}), &job).is_none());
        assert_eq!(document(b"fio: connected\n{\"jobs\": []}\nclosed\n").unwrap(), serde_json::json!({"jobs": []}));
        assert!(document(b"fio: no such engine\n").is_err());
    }
}
