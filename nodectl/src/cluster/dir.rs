//! A local cluster's directory: what lies where, and `cluster.json`, which tells everybody else.
//!
//! `cluster.json` is replaced whole by a rename, so a reader sees one state or the next, never half of one. Only the
//! process that holds `lock` writes here. What `cluster up` itself has to remember (sizes, settings) is in
//! `settings.json`, so that `cluster.json` stays exactly the contract's shape.

use std::fs::{self, File};
use std::io::Write;
use std::path::{Path, PathBuf};

use engine_core::ids::NodeId;
use serde::de::DeserializeOwned;
use serde::{Deserialize, Serialize};

use crate::failure::{Context, Exit, Failure};

/// What a node's process is doing.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub(crate) enum State {
    /// A process is there.
    Running,
    /// Ended by itself or because it was asked to.
    Stopped,
    /// Ended by a signal it could not answer.
    Killed,
    /// Gone for good, its device deleted.
    Lost,
}

/// A node in `cluster.json`.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub(crate) struct NodeEntry {
    /// Its id.
    pub(crate) id: NodeId,
    /// Its failure domain.
    pub(crate) zone: String,
    /// Its process, while there is one.
    pub(crate) pid: Option<u32>,
    /// `host:port` on the primary network.
    pub(crate) primary_addr: String,
    /// `host:port` on the replication network.
    pub(crate) replication_addr: String,
    /// Its device, or the first of them.
    pub(crate) device: PathBuf,
    /// All of its devices.
    #[serde(default)]
    pub(crate) devices: Vec<PathBuf>,
    /// What its process is doing.
    pub(crate) state: State,
}

impl NodeEntry {
    /// All of its devices, also where an older file names only one.
    pub(crate) fn all_devices(&self) -> Vec<PathBuf> {
        if self.devices.is_empty() { vec![self.device.clone()] } else { self.devices.clone() }
    }
}

/// `cluster.json`.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub(crate) struct ClusterFile {
    /// The authority's URL.
    pub(crate) authority: String,
    /// Every node, by id.
    pub(crate) nodes: Vec<NodeEntry>,
}

/// What a cluster was made with; stays the same for its whole life.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub(crate) struct Settings {
    /// Nodes.
    pub(crate) nodes: u16,
    /// Zones they are spread over in turn.
    pub(crate) zones: u16,
    /// Bytes of each device.
    pub(crate) device_size: u64,
    /// Devices of each node.
    #[serde(default = "one")]
    pub(crate) devices: u16,
    /// How long a missing replica may come back before it is re-mirrored, in milliseconds.
    pub(crate) grace_ms: u64,
    /// Shards of each node.
    pub(crate) shards: u16,
    /// Bytes of each shard's write-ahead log, where it was chosen.
    #[serde(default)]
    pub(crate) wal_size: Option<u64>,
}

const fn one() -> u16 {
    1
}

/// The directory.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(crate) struct Dir(PathBuf);

impl Dir {
    /// The directory at `path`, existing or not.
    pub(crate) fn new(path: &Path) -> Self {
        Self(std::path::absolute(path).unwrap_or_else(|_| path.to_owned()))
    }

    /// Its path.
    pub(crate) fn path(&self) -> &Path {
        &self.0
    }

    /// The authority's records.
    pub(crate) fn authority(&self) -> PathBuf {
        self.0.join("authority")
    }

    /// A node's own directory: device and log.
    pub(crate) fn node(&self, node: NodeId) -> PathBuf {
        self.0.join(node.to_string())
    }

    /// `cluster.json`.
    pub(crate) fn cluster_file(&self) -> PathBuf {
        self.0.join("cluster.json")
    }

    /// The socket `cluster up` takes orders on.
    pub(crate) fn socket_name(&self) -> &'static str {
        "control.sock"
    }

    fn settings_file(&self) -> PathBuf {
        self.0.join("settings.json")
    }

    /// Reads `cluster.json`.
    pub(crate) fn read(&self) -> Result<ClusterFile, Failure> {
        read_json(&self.cluster_file())?.ok_or_else(|| {
            Failure::new(Exit::NotFound, format!("there is no local cluster in {}", self.0.display()))
                .untouched("nothing was done")
                .next(format!("nodectl cluster up --dir {}", self.0.display()))
        })
    }

    /// Replaces `cluster.json`.
    pub(crate) fn write(&self, file: &ClusterFile) -> Result<(), Failure> {
        write_json(&self.cluster_file(), file)
    }

    /// Reads `settings.json`.
    pub(crate) fn read_settings(&self) -> Result<Option<Settings>, Failure> {
        read_json(&self.settings_file())
    }

    /// Replaces `settings.json`.
    pub(crate) fn write_settings(&self, settings: &Settings) -> Result<(), Failure> {
        write_json(&self.settings_file(), settings)
    }

    /// Takes the directory for this process; ends with the file's life.
    pub(crate) fn lock(&self) -> Result<File, Failure> {
        fs::create_dir_all(&self.0).could_not(|| format!("make the directory {}", self.0.display()))?;
        let path = self.0.join("lock");
        let file = File::options().create(true).truncate(false).write(true).open(&path);
        let file = file.could_not(|| format!("open {}", path.display()))?;
        file.try_lock().map_err(|_| {
            Failure::new(Exit::IllegalState, format!("a `cluster up` already runs in {}", self.0.display()))
                .untouched("nothing was started")
                .next("use the running one, or name another --dir")
        })?;
        Ok(file)
    }
}

fn read_json<T: DeserializeOwned>(path: &Path) -> Result<Option<T>, Failure> {
    let bytes = match fs::read(path) {
        Err(error) if error.kind() == std::io::ErrorKind::NotFound => return Ok(None),
        bytes => bytes.could_not(|| format!("read {}", path.display()))?,
    };
    serde_json::from_slice(&bytes).map(Some).map_err(|error| {
        Failure::failed(format!("{} is damaged: {error}", path.display())).untouched("nothing was started or changed")
    })
}

fn write_json<T: Serialize>(path: &Path, value: &T) -> Result<(), Failure> {
    let could_not = || format!("write {}", path.display());
    let mut text = serde_json::to_vec_pretty(value).map_err(|error| Failure::failed(error.to_string()))?;
    text.push(b'\n');
    let temporary = path.with_extension("json.new");
    let mut file = File::create(&temporary).could_not(could_not)?;
    file.write_all(&text).and_then(|()| file.sync_all()).could_not(could_not)?;
    fs::rename(&temporary, path).could_not(could_not)
}

/// Name of the zone of the `index`th node (from 0): a, b, c, ... in turn.
pub(crate) fn zone(index: u16, zones: u16) -> String {
    let zone = index % zones;
    match u8::try_from(zone) {
        Ok(small) if small < 26 => char::from(b'a' + small).to_string(),
        _ => format!("z{}", zone + 1),
    }
}

#[cfg(test)]
mod tests {
    #![allow(clippy::unwrap_used)]
    use super::*;

    #[test]
    fn cluster_json_has_the_contracts_shape() {
        let file = ClusterFile {
            authority: "http://127.0.0.1:1".to_owned(),
            nodes: vec![NodeEntry {
                id: NodeId(1),
                zone: zone(0, 3),
                pid: Some(42),
                primary_addr: "127.0.0.1:2".to_owned(),
                replication_addr: "127.0.0.1:3".to_owned(),
                device: "/d/n1/device".into(),
                devices: vec!["/d/n1/device".into(), "/d/n1/device-2".into()],
                state: State::Running,
            }],
        };
        let want = r#"{"authority":"http://127.0.0.1:1","nodes":[{"id":"n1","zone":"a","pid":42,"primary_addr":"127.0.0.1:2","replication_addr":"127.0.0.1:3","device":"/d/n1/device","devices":["/d/n1/device","/d/n1/device-2"],"state":"running"}]}"#;
        assert_eq!(serde_json::to_string(&file).unwrap(), want);
    }

    #[test]
    fn zones_take_turns() {
        let names: Vec<String> = (0..5).map(|i| zone(i, 3)).collect();
        assert_eq!(names, ["a", "b", "c", "a", "b"]);
        assert_eq!(zone(26, 30), "z27");
    }
}
