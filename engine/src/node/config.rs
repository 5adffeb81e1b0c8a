//! What a node has to be told: from flags, from a TOML file, or both; flags override the file.
//!
//! Nothing is opened or written here. A key or flag nobody knows is an error, never ignored: a misspelt `zone` would
//! put every copy into the wrong failure domain.

use std::net::{SocketAddr, ToSocketAddrs};
use std::path::{Path, PathBuf};

use clap::Args as ClapArgs;
use engine_core::ids::NodeId;
use engine_core::limits::{DEVICES_MAX, NAME_BYTES_MAX, SHARDS_MAX};
use serde::Deserialize;

/// Shards where nobody asked for a number: one per core, at most this many.
const SHARDS_DEFAULT_MAX: usize = 4;
/// Largest configuration file; a larger one is not one.
const FILE_BYTES_MAX: u64 = 64 * 1024;

/// Flags of a storage node.
#[derive(Debug, Clone, Default, ClapArgs)]
pub struct Args {
    /// TOML file with the same names as the flags (`device_size` for `--device-size`); flags override it
    #[arg(long, value_name = "FILE")]
    pub config: Option<PathBuf>,
    #[command(flatten)]
    #[allow(missing_docs)] // flattened: its fields are the flags
    pub values: Values,
}

/// The values themselves, each optional because it may come from the other source.
#[derive(Debug, Clone, Default, ClapArgs, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct Values {
    /// This node: n1 to n65535
    #[arg(long)]
    pub id: Option<NodeId>,
    /// The authority, e.g. http://10.0.0.1:7700
    #[arg(long, value_name = "URL")]
    pub authority: Option<String>,
    /// Block device or preallocated file this node owns; once for each (in the file: one, or a list)
    #[arg(long, value_name = "PATH")]
    #[serde(default, deserialize_with = "one_or_many")]
    pub device: Vec<PathBuf>,
    /// Create a device as a file of this size if it does not exist, e.g. 20G
    #[arg(long, value_name = "SIZE")]
    pub device_size: Option<String>,
    /// Failure domain, e.g. a
    #[arg(long)]
    pub zone: Option<String>,
    /// Listen here on the primary network, HOST:PORT
    #[arg(long, value_name = "ADDR")]
    pub primary_addr: Option<String>,
    /// Listen here on the replication network, HOST:PORT
    #[arg(long, value_name = "ADDR")]
    pub replication_addr: Option<String>,
    /// Threads of each device, each with its part of it; fixed when the device is formatted (default: one per core, at
    /// most 4, shared by the devices)
    #[arg(long)]
    pub shards: Option<u16>,
    /// Write-ahead log of each shard; fixed when the device is formatted, e.g. 256M
    #[arg(long, value_name = "SIZE")]
    pub wal_size: Option<String>,
}

/// Everything a node needs to know, checked.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Config {
    /// Its id.
    pub id: NodeId,
    /// `host:port` of the authority.
    pub authority: String,
    /// Its devices, one or more.
    pub devices: Vec<PathBuf>,
    /// Create a device as a file of this many bytes if it does not exist.
    pub device_size: Option<u64>,
    /// Failure domain.
    pub zone: String,
    /// Listen address on the primary network.
    pub primary: SocketAddr,
    /// Listen address on the replication network.
    pub replication: SocketAddr,
    /// Threads asked for; `None` where the device or the default decides.
    pub shards: Option<u16>,
    /// Bytes of each shard's write-ahead log; `None` is the store's default.
    pub wal_size: Option<u64>,
}

/// What is wrong with a configuration. Nothing was opened or written.
#[derive(Debug, thiserror::Error)]
pub enum ConfigError {
    /// The file cannot be read.
    #[error("cannot read the configuration {path}: {error}")]
    Unreadable {
        /// Which file.
        path: PathBuf,
        /// Why.
        error: std::io::Error,
    },
    /// The file is not what it should be.
    #[error("{path} is not a node's configuration: {reason}")]
    Unparsable {
        /// Which file.
        path: PathBuf,
        /// Where and what.
        reason: String,
    },
    /// A value is missing in both.
    #[error("no `{0}`: give --{flag} or write it into the configuration file", flag = .0.replace('_', "-"))]
    Missing(&'static str),
    /// A value makes no sense.
    #[error("`{name}` is `{value}`: {reason}")]
    Bad {
        /// Which.
        name: &'static str,
        /// As given.
        value: String,
        /// Why not.
        reason: String,
    },
}

impl Args {
    /// Reads the file, lets the flags override it, and checks everything.
    pub fn resolve(self) -> Result<Config, ConfigError> {
        let file = match &self.config {
            Some(path) => read_file(path)?,
            None => Values::default(),
        };
        self.values.over(file).check()
    }
}

fn read_file(path: &Path) -> Result<Values, ConfigError> {
    let unreadable = |error| ConfigError::Unreadable { path: path.into(), error };
    let length = std::fs::metadata(path).map_err(unreadable)?.len();
    if length > FILE_BYTES_MAX {
        let reason = format!("it has {length} bytes, more than {FILE_BYTES_MAX}");
        return Err(ConfigError::Unparsable { path: path.into(), reason });
    }
    let text = std::fs::read_to_string(path).map_err(unreadable)?;
    toml::from_str(&text)
        .map_err(|error| ConfigError::Unparsable { path: path.into(), reason: error.to_string().trim_end().to_owned() })
}

impl Values {
    fn over(self, file: Self) -> Self {
        Self {
            id: self.id.or(file.id),
            authority: self.authority.or(file.authority),
            device: if self.device.is_empty() { file.device } else { self.device },
            device_size: self.device_size.or(file.device_size),
            zone: self.zone.or(file.zone),
            primary_addr: self.primary_addr.or(file.primary_addr),
            replication_addr: self.replication_addr.or(file.replication_addr),
            shards: self.shards.or(file.shards),
            wal_size: self.wal_size.or(file.wal_size),
        }
    }

    fn check(self) -> Result<Config, ConfigError> {
        let config = Config {
            id: self.id.ok_or(ConfigError::Missing("id"))?,
            authority: authority_address(&self.authority.ok_or(ConfigError::Missing("authority"))?)?,
            devices: devices(self.device)?,
            device_size: self.device_size.map(|text| size("device_size", &text)).transpose()?,
            zone: zone(self.zone.ok_or(ConfigError::Missing("zone"))?)?,
            primary: listen("primary_addr", &self.primary_addr.ok_or(ConfigError::Missing("primary_addr"))?)?,
            replication: listen(
                "replication_addr",
                &self.replication_addr.ok_or(ConfigError::Missing("replication_addr"))?,
            )?,
            shards: self.shards.map(shards).transpose()?,
            wal_size: self.wal_size.map(|text| size("wal_size", &text)).transpose()?,
        };
        if config.primary == config.replication && config.primary.port() != 0 {
            let reason = "it is the same as `primary_addr`; the two networks need an address each".into();
            return Err(ConfigError::Bad { name: "replication_addr", value: config.replication.to_string(), reason });
        }
        Ok(config)
    }
}

/// Shards for one of so many devices that is formatted now.
#[must_use]
#[allow(clippy::cast_possible_truncation)] // at most SHARDS_DEFAULT_MAX
pub fn default_shards(devices: usize) -> u16 {
    let cores = std::thread::available_parallelism().map_or(1, std::num::NonZero::get);
    (cores.min(SHARDS_DEFAULT_MAX) / devices.max(1)).max(1) as u16
}

/// In the file, one path or a list of them.
fn one_or_many<'de, D: serde::Deserializer<'de>>(from: D) -> Result<Vec<PathBuf>, D::Error> {
    #[derive(Deserialize)]
    #[serde(untagged)]
    enum Paths {
        One(PathBuf),
        Many(Vec<PathBuf>),
    }
    Ok(match Paths::deserialize(from)? {
        Paths::One(path) => vec![path],
        Paths::Many(paths) => paths,
    })
}

fn devices(paths: Vec<PathBuf>) -> Result<Vec<PathBuf>, ConfigError> {
    let bad = |value: String, reason: String| ConfigError::Bad { name: "device", value, reason };
    if paths.is_empty() {
        return Err(ConfigError::Missing("device"));
    }
    if paths.len() > DEVICES_MAX {
        return Err(bad(format!("{} devices", paths.len()), format!("a node has at most {DEVICES_MAX}")));
    }
    if let Some((_, twice)) = paths.iter().enumerate().find(|(at, path)| paths[..*at].contains(path)) {
        return Err(bad(twice.display().to_string(), "it is named twice".into()));
    }
    Ok(paths)
}

fn shards(number: u16) -> Result<u16, ConfigError> {
    if (1..=SHARDS_MAX).contains(&number) {
        return Ok(number);
    }
    let reason = format!("write a number from 1 to {SHARDS_MAX}");
    Err(ConfigError::Bad { name: "shards", value: number.to_string(), reason })
}

fn zone(name: String) -> Result<String, ConfigError> {
    let good = |c: char| c.is_ascii_alphanumeric() || matches!(c, '.' | '_' | '-');
    if !name.is_empty() && name.len() <= NAME_BYTES_MAX && name.chars().all(good) {
        return Ok(name);
    }
    let reason = format!("a zone is 1 to {NAME_BYTES_MAX} of a-z A-Z 0-9 . _ -");
    Err(ConfigError::Bad { name: "zone", value: name, reason })
}

/// Takes `http://host:port` (a path of `/` at most) and gives `host:port`.
fn authority_address(url: &str) -> Result<String, ConfigError> {
    let bad = |reason: &str| ConfigError::Bad { name: "authority", value: url.into(), reason: reason.into() };
    let rest = url.strip_prefix("http://").ok_or_else(|| bad("write http://HOST:PORT"))?;
    let address = rest.trim_end_matches('/');
    let (host, port) = address.rsplit_once(':').ok_or_else(|| bad("the port is missing: write http://HOST:PORT"))?;
    if host.is_empty() || host.contains('/') || port.parse::<u16>().is_err() {
        return Err(bad("write http://HOST:PORT"));
    }
    Ok(address.into())
}

/// An address to listen on, which is also the one others are told.
fn listen(name: &'static str, text: &str) -> Result<SocketAddr, ConfigError> {
    let bad = |reason: String| ConfigError::Bad { name, value: text.into(), reason };
    let mut found = text.to_socket_addrs().map_err(|error| bad(format!("write HOST:PORT ({error})")))?;
    let address = found.next().ok_or_else(|| bad("the name has no address".into()))?;
    if address.ip().is_unspecified() {
        return Err(bad("other nodes are told this address, so it must be one of this host's, not all of them".into()));
    }
    Ok(address)
}

fn size(name: &'static str, text: &str) -> Result<u64, ConfigError> {
    parse_size(text).ok_or_else(|| {
        let reason = "write bytes or a number with K, M, G or T (binary), e.g. 20G".into();
        ConfigError::Bad { name, value: text.into(), reason }
    })
}

/// Reads a size the way people write it: `4096`, `256M`, `4G`, `4GiB`. Binary units.
#[must_use]
pub fn parse_size(text: &str) -> Option<u64> {
    let text = text.trim();
    let digits = text.bytes().take_while(u8::is_ascii_digit).count();
    let (number, unit) = text.split_at(digits);
    let shift = match unit.trim().to_ascii_lowercase().as_str() {
        "" | "b" => 0,
        "k" | "kib" => 10,
        "m" | "mib" => 20,
        "g" | "gib" => 30,
        "t" | "tib" => 40,
        _ => return None,
    };
    number.parse::<u64>().ok()?.checked_mul(1 << shift)
}

#[cfg(test)]
mod tests {
    #![allow(clippy::unwrap_used)]
    use super::*;

    const GOOD: &str = r#"
        id = "n3"
        authority = "http://127.0.0.1:7700"
        device = "/dev/example"
        device_size = "20G"
        zone = "a"
        primary_addr = "127.0.0.1:7701"
        replication_addr = "127.0.0.2:7701"
        shards = 2
    "#;

    fn from_file(text: &str, flags: Values) -> Result<Config, ConfigError> {
        let dir = tempfile::tempdir().unwrap();
        let path = dir.path().join("node.toml");
        std::fs::write(&path, text).unwrap();
        Args { config: Some(path), values: flags }.resolve()
    }

    #[test]
    fn a_file_alone_is_enough_and_flags_override_it() {
        let config = from_file(GOOD, Values::default()).unwrap();
        assert_eq!((config.id, config.device_size, config.shards), (NodeId(3), Some(20 << 30), Some(2)));
        assert_eq!(config.authority, "127.0.0.1:7700");
        let flags = Values { zone: Some("b".into()), shards: Some(1), ..Values::default() };
        let config = from_file(GOOD, flags).unwrap();
        assert_eq!((config.zone.as_str(), config.shards, config.id), ("b", Some(1), NodeId(3)));
    }

    #[test]
    fn a_node_has_one_device_or_several() {
        let devices = |text: &str, flags: Values| {
            from_file(&GOOD.replace("device = \"/dev/example\"", text), flags).map(|config| config.devices)
        };
        let paths = |names: &[&str]| names.iter().map(PathBuf::from).collect::<Vec<_>>();
        assert_eq!(devices("device = \"/a\"", Values::default()).unwrap(), paths(&["/a"]));
        assert_eq!(devices("device = [\"/a\", \"/b\"]", Values::default()).unwrap(), paths(&["/a", "/b"]));
        let flags = Values { device: paths(&["/c"]), ..Values::default() };
        assert_eq!(devices("device = [\"/a\", \"/b\"]", flags).unwrap(), paths(&["/c"]));
        assert!(devices("", Values::default()).unwrap_err().to_string().contains("no `device`"));
        let twice = devices("device = [\"/a\", \"/a\"]", Values::default());
        assert!(twice.unwrap_err().to_string().contains("named twice"));
    }

    #[test]
    fn every_mistake_is_named() {
        let with =
            |from: &str, to: &str| from_file(&GOOD.replace(from, to), Values::default()).unwrap_err().to_string();
        let table = [
            ("zone =", "zoen =", "unknown field `zoen`"),
            ("zone = \"a\"", "", "no `zone`: give --zone"),
            ("\"n3\"", "\"n0\"", "not a node id"),
            ("20G", "20X", "`device_size` is `20X`"),
            ("shards = 2", "shards = 0", "`shards` is `0`: write a number from 1 to 64"),
            ("shards = 2", "shards = [", "is not a node's configuration"),
            ("http://127.0.0.1:7700", "127.0.0.1:7700", "write http://HOST:PORT"),
            ("http://127.0.0.1:7700", "http://127.0.0.1", "port is missing"),
            ("127.0.0.2:7701", "127.0.0.1:7701", "need an address each"),
            ("127.0.0.2:7701", "0.0.0.0:7701", "must be one of this host's"),
            ("zone = \"a\"", "zone = \"a b\"", "a zone is 1 to 64"),
        ];
        for (from, to, expected) in table {
            let said = with(from, to);
            assert!(said.contains(expected), "{from} -> {to}: `{said}` does not say `{expected}`");
        }
        let missing = Args { config: Some("/nonexistent.toml".into()), values: Values::default() };
        assert!(missing.resolve().unwrap_err().to_string().contains("cannot read the configuration"));
    }

    #[test]
    fn sizes_are_binary() {
        for (text, bytes) in [("4096", 4096), ("256M", 256 << 20), ("4G", 4 << 30), ("4GiB", 4 << 30), ("1 T", 1 << 40)]
        {
            assert_eq!(parse_size(text), Some(bytes), "{text}");
        }
        for text in ["", "G", "-1", "4X", "99999999999999999999", "99999999T"] {
            assert_eq!(parse_size(text), None, "{text}");
        }
    }
}
