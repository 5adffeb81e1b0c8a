//! Directories for clusters that live as long as one command.

use std::path::{Path, PathBuf};

use crate::cluster::dir::Dir;
use crate::failure::Failure;
use crate::units;

/// A directory of this process: below the target directory where we were built, as `/tmp` may be memory.
pub(crate) fn temporary(what: &str) -> PathBuf {
    let built = std::env::current_exe().ok();
    let target = built.as_deref().and_then(Path::parent).and_then(Path::parent).map(|target| target.join("tmp"));
    let place = target.filter(|place| place.is_dir()).unwrap_or_else(std::env::temp_dir);
    place.join(format!("{what}-{}", std::process::id()))
}

/// Refuses before anything is written where the disk is too small.
pub(crate) fn enough_space(dir: &Path, needed: u64) -> Result<(), Failure> {
    let existing = dir.ancestors().find(|place| place.is_dir()).unwrap_or(Path::new("."));
    let Some(free) = free_space(existing) else { return Ok(()) };
    if free >= needed {
        return Ok(());
    }
    let what = format!("this needs {} in {}, {} are free", units::size(needed), existing.display(), units::size(free));
    Err(Failure::failed(what).untouched("nothing was started").next("name a --dir on a larger disk, or fewer --nodes"))
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

/// Deletes the devices and keeps the logs.
pub(crate) fn remove_devices(dir: &Path, nodes: u16) {
    let dir = Dir::new(dir);
    for node in 1..=nodes {
        let _ = std::fs::remove_file(dir.node(engine_core::ids::NodeId(node)).join("device"));
    }
}
