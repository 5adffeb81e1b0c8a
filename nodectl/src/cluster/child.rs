//! The processes of a local cluster: this same executable, run as `authorityd` or `noded`.
//!
//! A child stands in a process group of its own, so that Ctrl-C in a terminal reaches `cluster up` alone, and gets
//! SIGKILL when the thread that started it ends: no orphans, however `cluster up` dies.

use std::ffi::OsString;
use std::fs::{self, File};
use std::io::{Read, Seek, SeekFrom};
use std::os::fd::RawFd;
use std::os::unix::process::CommandExt;
use std::path::Path;
use std::process::{Child, Command, ExitStatus, Stdio};
use std::time::Duration;

use super::dir::{ClusterFile, Dir, NodeEntry, Settings};
use crate::failure::{Context, Failure};

/// Bytes of a log's end that an error shows.
const TAIL: u64 = 1500;

/// Seconds until an open breaker is half-open: of a local cluster everybody sees what was lost.
const BREAKER_STABLE: u64 = 60;

/// Starts the authority.
pub(crate) fn authority(dir: &Dir, settings: &Settings, file: &ClusterFile) -> Result<Child, Failure> {
    let listen = file.authority.trim_start_matches("http://");
    let args: Vec<OsString> = vec![
        "authorityd".into(),
        "--dir".into(),
        dir.authority().into(),
        "--listen".into(),
        listen.into(),
        "--grace".into(),
        settings.grace_ms.div_ceil(1000).to_string().into(),
        "--breaker-stable".into(),
        BREAKER_STABLE.to_string().into(),
    ];
    spawn(&dir.authority(), &args, None)
}

/// Starts a node, in a network namespace of its own if one is given.
pub(crate) fn node(
    dir: &Dir,
    settings: &Settings,
    authority: &str,
    node: &NodeEntry,
    namespace: Option<RawFd>,
) -> Result<Child, Failure> {
    let mut args: Vec<OsString> = vec![
        "noded".into(),
        "--id".into(),
        node.id.to_string().into(),
        "--authority".into(),
        authority.into(),
        "--zone".into(),
        node.zone.as_str().into(),
        "--device-size".into(),
        settings.device_size.to_string().into(),
        "--primary-addr".into(),
        node.primary_addr.as_str().into(),
        "--replication-addr".into(),
        node.replication_addr.as_str().into(),
        "--shards".into(),
        settings.shards.to_string().into(),
    ];
    for device in node.all_devices() {
        args.extend(["--device".into(), device.into()]);
    }
    if let Some(size) = settings.wal_size {
        args.extend(["--wal-size".into(), size.to_string().into()]);
    }
    spawn(&dir.node(node.id), &args, namespace)
}

/// Moves this thread into a network namespace. For use between fork and exec: one system call, nothing allocated.
pub(crate) fn enter(namespace: RawFd) -> std::io::Result<()> {
    // SAFETY: setns is async-signal-safe and takes plain numbers.
    if unsafe { libc::setns(namespace, libc::CLONE_NEWNET) } == 0 {
        Ok(())
    } else {
        Err(std::io::Error::last_os_error())
    }
}

/// Starts this executable with `args`; what it says goes to `home/log`.
fn spawn(home: &Path, args: &[OsString], namespace: Option<RawFd>) -> Result<Child, Failure> {
    fs::create_dir_all(home).could_not(|| format!("make the directory {}", home.display()))?;
    let path = home.join("log");
    let log = File::options().create(true).append(true).open(&path).could_not(|| format!("open {}", path.display()))?;
    let errors = log.try_clone().could_not(|| format!("open {}", path.display()))?;
    // Not `current_exe`: this names the running program even after it was rebuilt or removed.
    let mut command = Command::new("/proc/self/exe");
    command.arg0("nodectl").args(args).stdin(Stdio::null()).stdout(log).stderr(errors).process_group(0);
    let parent = std::process::id();
    let before_exec = move || {
        if let Some(namespace) = namespace {
            enter(namespace)?;
        }
        // SAFETY: prctl and getppid are async-signal-safe and touch no memory of ours.
        let parent_now = unsafe {
            libc::prctl(libc::PR_SET_PDEATHSIG, libc::SIGKILL);
            libc::getppid()
        };
        // The parent may have died before the line above.
        if u32::try_from(parent_now) == Ok(parent) { Ok(()) } else { Err(std::io::ErrorKind::Interrupted.into()) }
    };
    // SAFETY: the closure only makes the system calls above; it allocates nothing.
    unsafe { command.pre_exec(before_exec) };
    command.spawn().could_not(|| format!("start {} (log: {})", args[0].to_string_lossy(), path.display()))
}

/// Sends SIGTERM.
pub(crate) fn ask_to_stop(child: &Child) {
    if let Ok(pid) = libc::pid_t::try_from(child.id()) {
        // SAFETY: the child is ours and not yet waited for, so the id can't be another's.
        unsafe { libc::kill(pid, libc::SIGTERM) };
    }
}

/// Waits for its end; `None` when it takes longer than `limit`.
pub(crate) async fn wait(child: &mut Child, limit: Duration) -> Option<ExitStatus> {
    let until = tokio::time::Instant::now() + limit;
    loop {
        if let Ok(Some(status)) = child.try_wait() {
            return Some(status);
        }
        if tokio::time::Instant::now() >= until {
            return None;
        }
        tokio::time::sleep(Duration::from_millis(10)).await;
    }
}

/// The end of a process's log.
pub(crate) fn log_tail(home: &Path) -> String {
    let read = || -> std::io::Result<String> {
        let mut file = File::open(home.join("log"))?;
        let len = file.metadata()?.len();
        file.seek(SeekFrom::Start(len.saturating_sub(TAIL)))?;
        let mut bytes = Vec::new();
        file.read_to_end(&mut bytes)?;
        Ok(String::from_utf8_lossy(&bytes).trim().to_owned())
    };
    read().unwrap_or_default()
}
