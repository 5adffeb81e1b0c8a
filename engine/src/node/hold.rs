//! Getting hold of the device: look first, decide whether it is ours, and only then write.

use std::path::{Path, PathBuf};

use engine_core::ids::{BootCount, BootId, ClusterId, DeviceId, NodeId, Revision};
use engine_core::limits::{DEVICE_ANSWER_WAIT, DEVICE_OPEN_WAIT};
use engine_core::openings::Openings;
use engine_core::time::Span;

use super::config::{Config, default_shards};
use crate::device::WholeDevice;
use crate::device::file::{DeviceError, DeviceFile};
use crate::store::{self, FormatError, Geometry, OpenError, Superblock};

const MIB: u64 = 1024 * 1024;
/// Bounds of a shard's log where nobody asked for a size: a sixteenth of the shard's part, within these.
const WAL_DEFAULT: (u64, u64) = (64 * MIB, 256 * MIB);

/// Why the device cannot be used.
#[derive(Debug, thiserror::Error)]
pub enum HoldError {
    /// It cannot be opened.
    #[error(transparent)]
    Device(#[from] DeviceError),
    /// It is not this node's, or not whole.
    #[error("{path}: {error}")]
    NotOurs {
        /// The device.
        path: PathBuf,
        /// What it is.
        error: OpenError,
    },
    /// It cannot be formatted.
    #[error("{path}: {error}")]
    Format {
        /// The device.
        path: PathBuf,
        /// Why not.
        error: FormatError,
    },
    /// The configuration asks for what was fixed otherwise when the device was formatted.
    #[error(
        "{path} was formatted with {name} {found}; it cannot be {asked} now. Nothing was written; leave the setting away"
    )]
    Fixed {
        /// The device.
        path: PathBuf,
        /// Which setting.
        name: &'static str,
        /// As formatted.
        found: u64,
        /// As configured.
        asked: u64,
    },
}

impl HoldError {
    /// The process's exit code (DESIGN 8).
    #[must_use]
    pub fn exit_code(&self) -> u8 {
        match self {
            Self::Device(DeviceError::Missing { .. }) => 3,
            Self::Device(DeviceError::InUse { .. }) => 5,
            Self::Device(DeviceError::BadSize { .. }) | Self::Fixed { .. } => 2,
            Self::NotOurs { error: OpenError::Foreign, .. } | Self::Format { error: FormatError::NotBlank, .. } => 4,
            Self::NotOurs { error: OpenError::Io(_), .. } | Self::Format { error: FormatError::Io(_), .. } => 1,
            Self::Format { error: FormatError::BadSettings { .. } | FormatError::TooSmall { .. }, .. } => 2,
            Self::NotOurs { .. } => 5,
            Self::Device(_) => 1,
        }
    }
}

/// What was found where the device should be. Nothing has been written.
pub(crate) enum Hold {
    /// This node's.
    Ours(DeviceFile, Box<Superblock>),
    /// Nothing on it yet.
    Blank(DeviceFile, Geometry),
    /// Not even a file: one of this size will be made.
    Absent(u64, Geometry),
}

/// The device, ready for use.
pub(crate) struct Held {
    pub(crate) file: DeviceFile,
    pub(crate) superblock: Superblock,
    /// Copies of the superblock that were damaged, and are whole again.
    pub(crate) damaged_copies: u64,
}

/// Looks, locks, and checks everything that can be checked without the authority.
pub(crate) fn look(config: &Config, path: &Path) -> Result<Hold, HoldError> {
    let mut file = match (DeviceFile::open(path), config.device_size) {
        (Ok(file), _) => file,
        (Err(DeviceError::Missing { .. }), Some(size)) => {
            if size == 0 || !size.is_multiple_of(MIB) {
                return Err(DeviceError::BadSize { size }.into());
            }
            return Ok(Hold::Absent(size, plan(config, path, size)?));
        }
        (Err(error), _) => return Err(error.into()),
    };
    match store::read(&mut file) {
        Ok(found) => {
            check_owner(config, path, &found, config.id)?;
            Ok(Hold::Ours(file, Box::new(found)))
        }
        Err(OpenError::NotFormatted) => {
            let geometry = plan(config, path, file.size())?;
            Ok(Hold::Blank(file, geometry))
        }
        Err(error) => Err(HoldError::NotOurs { path: path.into(), error }),
    }
}

fn check_owner(config: &Config, path: &Path, found: &Superblock, expected: NodeId) -> Result<(), HoldError> {
    let path = || path.to_path_buf();
    if found.node != expected {
        let error = OpenError::OtherNode { found: found.node, expected };
        return Err(HoldError::NotOurs { path: path(), error });
    }
    let geometry = &found.geometry;
    let settings = [
        ("shards", config.shards.map(u64::from), u64::from(geometry.shards)),
        ("wal_size", config.wal_size, geometry.wal_size),
    ];
    for (name, asked, found) in settings {
        if let Some(asked) = asked.filter(|asked| *asked != found) {
            return Err(HoldError::Fixed { path: path(), name, found, asked });
        }
    }
    Ok(())
}

/// How a device of `size` bytes will be divided. Without a wish, as many shards as fit.
fn plan(config: &Config, path: &Path, size: u64) -> Result<Geometry, HoldError> {
    let mut shards = config.shards.unwrap_or_else(|| default_shards(config.devices.len()));
    loop {
        let part = size / u64::from(shards) / 16;
        let wal = config.wal_size.unwrap_or((part - part % MIB).clamp(WAL_DEFAULT.0, WAL_DEFAULT.1));
        match Geometry::plan(size, shards, wal) {
            Ok(geometry) => return Ok(geometry),
            Err(FormatError::TooSmall { .. }) if config.shards.is_none() && shards > 1 => shards -= 1,
            Err(error) => return Err(HoldError::Format { path: path.into(), error }),
        }
    }
}

impl Hold {
    /// The device's cluster; `ClusterId(0)` is "none yet".
    pub(crate) fn cluster(&self) -> ClusterId {
        match self {
            Self::Ours(_, superblock) => superblock.cluster,
            Self::Blank(..) | Self::Absent(..) => ClusterId(0),
        }
    }

    /// Shards it has or will have.
    pub(crate) fn shards(&self) -> u16 {
        match self {
            Self::Ours(_, superblock) => superblock.geometry.shards,
            Self::Blank(_, geometry) | Self::Absent(_, geometry) => geometry.shards,
        }
    }

    /// How long it may take until it is this node's; a file that is made is written from end to end.
    pub(crate) const fn patience(&self) -> Option<Span> {
        match self {
            Self::Ours(..) => Some(DEVICE_ANSWER_WAIT),
            Self::Blank(..) => Some(DEVICE_OPEN_WAIT),
            Self::Absent(..) => None,
        }
    }

    /// Makes it this node's where it is not yet, and counts this boot durably (I9). From here on things are written.
    pub(crate) fn take(
        self,
        config: &Config,
        path: &Path,
        cluster: ClusterId,
        device: DeviceId,
        id: BootId,
    ) -> Result<Held, HoldError> {
        let mut damaged_copies = 0;
        let (mut file, fresh) = match self {
            Self::Ours(mut file, found) => {
                #[cfg(test)]
                super::devices::stuck::wait(super::devices::stuck::Step::Take, found.device);
                drop(found);
                damaged_copies = store::damaged_copies(&mut file);
                (file, None)
            }
            Self::Blank(file, geometry) => (file, Some(geometry)),
            Self::Absent(size, geometry) => (create(path, size)?, Some(geometry)),
        };
        if let Some(geometry) = fresh {
            let (boot, revision) = (BootCount(0), Revision(0));
            let openings = Openings::default();
            let (features, compatible, node) = (0, 0, config.id);
            let superblock =
                Superblock { features, compatible, cluster, node, device, boot, geometry, revision, openings };
            store::format(&mut file, &superblock).map_err(|error| HoldError::Format { path: path.into(), error })?;
            tracing::info!(path = %path.display(), %device, "the device was formatted");
        }
        let superblock = store::open(&mut file, cluster, config.id, id)
            .map_err(|error| HoldError::NotOurs { path: path.into(), error })?;
        if damaged_copies > 0 {
            tracing::error!(path = %path.display(), damaged_copies, "copies of the superblock were damaged; they are written again");
        }
        Ok(Held { file, superblock, damaged_copies })
    }
}

fn create(path: &Path, size: u64) -> Result<DeviceFile, HoldError> {
    tracing::info!(path = %path.display(), size, "making the device file; every byte of it is written once");
    let mut tenth = 0;
    let file = DeviceFile::create(path, size, &mut |written| {
        if written * 10 / size > tenth {
            tenth = written * 10 / size;
            tracing::info!("{} %", tenth * 10);
        }
    })?;
    Ok(file)
}
