//! The way through NBD, as any NBD client goes it: fio's nbd engine at a gateway in a process of its own.
//!
//! The gateway lives for one measurement, as the native client's attachment would fence it off anyway.

use std::io::{BufRead, BufReader};
use std::path::Path;
use std::process::{Child, Command, Stdio};

use crate::bench::fio::{self, Bare, Job};
use crate::failure::{Context, Failure};

/// Whether fio here can do it; without it the rows say so.
pub(super) fn is_known() -> bool {
    let asked = Command::new("fio").arg("--enghelp").stdin(Stdio::null()).output();
    asked.is_ok_and(|said| String::from_utf8_lossy(&said.stdout).lines().any(|line| line.trim() == "nbd"))
}

/// One run of fio through a gateway to the volume of the cluster in `dir`.
pub(super) fn measure(dir: &Path, volume: &str, job: &Job, seconds: u32) -> Result<Bare, Failure> {
    let gateway = Gateway::start(dir, volume)?;
    fio::run(&["--ioengine=nbd".to_owned(), format!("--uri={}", gateway.uri)], job, seconds)
}

struct Gateway {
    child: Child,
    uri: String,
}

impl Gateway {
    fn start(dir: &Path, volume: &str) -> Result<Self, Failure> {
        let socket = format!("unix:{}", dir.join("nbd.sock").display());
        let mut command = Command::new("/proc/self/exe");
        command.arg("--cluster").arg(dir).args(["-o", "json", "volume", "attach", volume, "--nbd", &socket]);
        let child = command.stdin(Stdio::null()).stdout(Stdio::piped()).spawn();
        let mut gateway = Self { child: child.could_not(|| "start a gateway".to_owned())?, uri: String::new() };
        // One document, once it serves; the end of the stream when it cannot.
        let mut said = String::new();
        if let Some(stdout) = gateway.child.stdout.take() {
            let mut lines = BufReader::new(stdout).lines().map_while(Result::ok);
            while serde_json::from_str::<serde_json::Value>(&said).is_err() {
                let Some(line) = lines.next() else { break };
                said.push_str(&line);
            }
        }
        let serving = serde_json::from_str::<serde_json::Value>(&said).ok();
        let uri = serving.as_ref().and_then(|serving| serving.get("uri")?.as_str());
        let uri = uri.ok_or_else(|| Failure::failed("the gateway does not serve the volume"))?;
        uri.clone_into(&mut gateway.uri);
        Ok(gateway)
    }
}

impl Drop for Gateway {
    fn drop(&mut self) {
        // It detaches on a signal; one that is gone already needs none.
        if let (Ok(None), Ok(pid)) = (self.child.try_wait(), libc::pid_t::try_from(self.child.id())) {
            // SAFETY: a plain system call; the child was not waited for, so the pid is still its.
            unsafe { libc::kill(pid, libc::SIGTERM) };
        }
        let _ = self.child.wait();
    }
}
