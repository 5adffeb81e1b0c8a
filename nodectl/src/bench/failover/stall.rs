//! A device that stands still: the kernel's I/O throttle at one byte a second, for one process.
//!
//! A control group per node limits what its process may read and write on the disk that carries its device. The process
//! lives, answers, keeps its connections, and its I/O does not come back until the limit is lifted: what a dying disk
//! looks like from above.

use std::fs;
use std::os::unix::fs::MetadataExt;
use std::path::{Path, PathBuf};

use engine_core::ids::NodeId;

/// Where version 1 and version 2 of control groups usually are.
const V1: &str = "/sys/fs/cgroup/blkio";
const V2: &str = "/sys/fs/cgroup";

/// One control group per node.
#[derive(Debug)]
pub(super) struct Throttle {
    root: PathBuf,
    is_v2: bool,
    /// `major:minor` of the disk below the devices.
    disk: String,
    groups: Vec<PathBuf>,
}

impl Throttle {
    /// Finds the disk below `dir` and a place for control groups.
    pub(super) fn new(dir: &Path) -> Result<Self, String> {
        let disk = disk_of(dir)?;
        let is_v2 = !Path::new(V1).join("blkio.throttle.read_bps_device").exists();
        let root = Path::new(if is_v2 { V2 } else { V1 }).join(format!("breakwater-{}", std::process::id()));
        let could_not =
            |error: std::io::Error| format!("no control group for I/O limits at {}: {error}", root.display());
        if is_v2 {
            fs::write(Path::new(V2).join("cgroup.subtree_control"), "+io").map_err(could_not)?;
        }
        fs::create_dir(&root).map_err(could_not)?;
        let throttle = Self { root: root.clone(), is_v2, disk, groups: vec![root.clone()] };
        if is_v2 {
            fs::write(root.join("cgroup.subtree_control"), "+io").map_err(could_not)?;
        }
        Ok(throttle)
    }

    /// Puts a node's process, just started, into its group.
    pub(super) fn adopt(&mut self, node: NodeId, pid: u32) -> Result<(), String> {
        let group = self.group(node);
        if !group.exists() {
            fs::create_dir(&group).map_err(|error| format!("{}: {error}", group.display()))?;
            self.groups.push(group.clone());
        }
        write(&group.join("cgroup.procs"), &pid.to_string())
    }

    /// Lets the node's I/O stand still, or go on.
    pub(super) fn set(&self, node: NodeId, still: bool) -> Result<(), String> {
        let (group, disk) = (self.group(node), &self.disk);
        if self.is_v2 {
            let limit = if still { "1" } else { "max" };
            return write(&group.join("io.max"), &format!("{disk} rbps={limit} wbps={limit}"));
        }
        let limit = u8::from(still);
        write(&group.join("blkio.throttle.read_bps_device"), &format!("{disk} {limit}"))?;
        write(&group.join("blkio.throttle.write_bps_device"), &format!("{disk} {limit}"))
    }

    fn group(&self, node: NodeId) -> PathBuf {
        self.root.join(node.to_string())
    }
}

impl Drop for Throttle {
    fn drop(&mut self) {
        // A group whose processes are still ending stays; it limits nobody.
        for group in self.groups.iter().rev() {
            let _ = fs::remove_dir(group);
        }
    }
}

/// The whole disk a directory's files are on: limits are for disks, not for partitions.
fn disk_of(dir: &Path) -> Result<String, String> {
    let device = fs::metadata(dir).map_err(|error| format!("{}: {error}", dir.display()))?.dev();
    let number = format!("{}:{}", libc::major(device), libc::minor(device));
    let block = PathBuf::from(format!("/sys/dev/block/{number}"));
    if !block.exists() {
        return Err(format!("{} is not on a disk whose I/O could be limited", dir.display()));
    }
    if !block.join("partition").exists() {
        return Ok(number);
    }
    let parent = fs::canonicalize(&block).ok().and_then(|path| Some(path.parent()?.join("dev")));
    let number = parent.and_then(|path| fs::read_to_string(path).ok());
    number.map(|text| text.trim().to_owned()).ok_or_else(|| format!("no disk is known below {}", dir.display()))
}

fn write(path: &Path, text: &str) -> Result<(), String> {
    fs::write(path, text).map_err(|error| format!("{}: {error}", path.display()))
}
