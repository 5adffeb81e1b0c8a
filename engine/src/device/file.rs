//! A device as a file descriptor: a raw block device, or a regular file made for it.
//!
//! Opened with O_DIRECT and locked exclusively, so that two nodes never write to one device. A regular file is
//! preallocated and fully written when it is made: later writes change data only, never the file's metadata.

use std::fs::{File, OpenOptions};
use std::io;
use std::os::fd::{AsRawFd, RawFd};
use std::os::unix::fs::{FileExt, FileTypeExt, OpenOptionsExt};
use std::path::{Path, PathBuf};
use std::sync::Arc;

use super::WholeDevice;
use super::buffer::AlignedBuf;

/// Zeros written at a time when a file is made.
const ZEROS: usize = 1024 * 1024;

/// Why a device cannot be opened or made. Nothing was changed unless it says so.
#[derive(Debug, thiserror::Error)]
pub enum DeviceError {
    /// There is nothing at this path.
    #[error(
        "{path}: no such device or file; nothing was changed. Give an existing block device, or a size to create a file"
    )]
    Missing {
        /// The path.
        path: PathBuf,
    },
    /// Another process has it open as a device.
    #[error(
        "{path} is in use: another noded (or nodectl store) has it open. Nothing was changed; stop that one or use another device"
    )]
    InUse {
        /// The path.
        path: PathBuf,
    },
    /// Neither a block device nor a regular file.
    #[error("{path} is neither a block device nor a regular file; nothing was changed")]
    NotADevice {
        /// The path.
        path: PathBuf,
    },
    /// The file system cannot bypass the page cache.
    #[error("{path} cannot be opened with O_DIRECT: its file system does not support it (tmpfs?); use another place")]
    NoDirect {
        /// The path.
        path: PathBuf,
    },
    /// A size that is no whole number of blocks, or zero.
    #[error(
        "{size} bytes is not a size for a device file: it must be a multiple of 1 MiB and not 0; nothing was changed"
    )]
    BadSize {
        /// The size.
        size: u64,
    },
    /// The operating system says no.
    #[error("{path}: {doing}: {source}")]
    Io {
        /// The path.
        path: PathBuf,
        /// What was being done.
        doing: &'static str,
        /// Its words.
        source: io::Error,
    },
}

/// An open, locked device. Clones share the descriptor and the lock, which ends with the last of them.
#[derive(Debug, Clone)]
pub struct DeviceFile {
    file: Arc<File>,
    path: Arc<Path>,
    size: u64,
}

impl DeviceFile {
    /// Opens what is there.
    ///
    /// # Errors
    /// [`DeviceError`].
    pub fn open(path: &Path) -> Result<Self, DeviceError> {
        let file = open_direct(path, false)?;
        lock(&file, path, libc::LOCK_EX)?;
        Self::measure(file, path)
    }

    /// Opens what is there for reading only. Others may read it meanwhile; a node that runs on it, or wants to, may not.
    ///
    /// # Errors
    /// [`DeviceError`].
    pub fn open_read_only(path: &Path) -> Result<Self, DeviceError> {
        let open = |direct| {
            // Not waiting: a pipe without a writer would.
            let flags = direct | libc::O_CLOEXEC | libc::O_NONBLOCK;
            OpenOptions::new().read(true).custom_flags(flags).open(path)
        };
        let opened = match open(libc::O_DIRECT) {
            // An image somewhere without O_DIRECT can still be looked at.
            Err(error) if error.raw_os_error() == Some(libc::EINVAL) => open(0),
            opened => opened,
        };
        let file = opened.map_err(|source| failed_open(path, source, false))?;
        let device = Self::measure(file, path)?;
        lock(&device.file, path, libc::LOCK_SH)?;
        Ok(device)
    }

    /// Makes a regular file of `size` zero bytes, every one written. `progress` gets bytes written so far.
    /// Interrupted, it leaves a file of zeros, which is as good as a blank device.
    ///
    /// # Errors
    /// [`DeviceError`]; an existing path is never touched.
    pub fn create(path: &Path, size: u64, progress: &mut dyn FnMut(u64)) -> Result<Self, DeviceError> {
        if size == 0 || !size.is_multiple_of(ZEROS as u64) {
            return Err(DeviceError::BadSize { size });
        }
        let io = |doing| move |source| DeviceError::Io { path: path.into(), doing, source };
        let file = open_direct(path, true)?;
        lock(&file, path, libc::LOCK_EX)?;
        let len = libc::off_t::try_from(size).map_err(|_| DeviceError::BadSize { size })?;
        // SAFETY: a plain system call on a descriptor we own.
        let result = unsafe { libc::posix_fallocate(file.as_raw_fd(), 0, len) };
        if result != 0 {
            let _ = std::fs::remove_file(path);
            return Err(io("reserving its space")(io::Error::from_raw_os_error(result)));
        }
        let zeros = AlignedBuf::zeroed(ZEROS);
        for offset in (0..size).step_by(ZEROS) {
            file.write_all_at(&zeros, offset).map_err(io("writing zeros"))?;
            progress(offset + ZEROS as u64);
        }
        file.sync_all().map_err(io("syncing"))?;
        if let Some(parent) = path.parent().filter(|parent| !parent.as_os_str().is_empty()) {
            File::open(parent).and_then(|dir| dir.sync_all()).map_err(io("syncing its directory"))?;
        }
        Self::measure(file, path)
    }

    /// Opens what is there, or makes a file when there is nothing and a size is given.
    ///
    /// # Errors
    /// [`DeviceError`].
    pub fn open_or_create(path: &Path, size: Option<u64>, progress: &mut dyn FnMut(u64)) -> Result<Self, DeviceError> {
        match (Self::open(path), size) {
            (Err(DeviceError::Missing { .. }), Some(size)) => Self::create(path, size, progress),
            (result, _) => result,
        }
    }

    fn measure(file: File, path: &Path) -> Result<Self, DeviceError> {
        let io = |doing| move |source| DeviceError::Io { path: path.into(), doing, source };
        let metadata = file.metadata().map_err(io("reading its size"))?;
        let size = if metadata.file_type().is_block_device() {
            block_device_size(&file).map_err(io("reading its size"))?
        } else if metadata.is_file() {
            metadata.len()
        } else {
            return Err(DeviceError::NotADevice { path: path.into() });
        };
        Ok(Self { file: Arc::new(file), path: path.into(), size })
    }

    /// Where it is.
    #[must_use]
    pub fn path(&self) -> &Path {
        &self.path
    }

    /// The descriptor, valid as long as this or a clone lives.
    #[must_use]
    pub fn raw_fd(&self) -> RawFd {
        self.file.as_raw_fd()
    }
}

fn open_direct(path: &Path, create: bool) -> Result<File, DeviceError> {
    let mut options = OpenOptions::new();
    options.read(true).write(true).create_new(create).custom_flags(libc::O_DIRECT | libc::O_CLOEXEC);
    options.open(path).map_err(|source| failed_open(path, source, create))
}

fn failed_open(path: &Path, source: io::Error, create: bool) -> DeviceError {
    match (source.kind(), source.raw_os_error()) {
        (io::ErrorKind::NotFound, _) if !create => DeviceError::Missing { path: path.into() },
        (io::ErrorKind::IsADirectory, _) => DeviceError::NotADevice { path: path.into() },
        (_, Some(libc::EINVAL)) => DeviceError::NoDirect { path: path.into() },
        _ => DeviceError::Io { path: path.into(), doing: "opening it", source },
    }
}

fn lock(file: &File, path: &Path, kind: libc::c_int) -> Result<(), DeviceError> {
    // SAFETY: a plain system call on a descriptor we own.
    if unsafe { libc::flock(file.as_raw_fd(), kind | libc::LOCK_NB) } == 0 {
        return Ok(());
    }
    let source = io::Error::last_os_error();
    match source.raw_os_error() {
        Some(libc::EWOULDBLOCK) => Err(DeviceError::InUse { path: path.into() }),
        _ => Err(DeviceError::Io { path: path.into(), doing: "locking it", source }),
    }
}

fn block_device_size(file: &File) -> io::Result<u64> {
    // _IOR(0x12, 114, size_t)
    const BLKGETSIZE64: libc::c_ulong = 0x8008_1272;
    let mut size = 0u64;
    // SAFETY: BLKGETSIZE64 writes one u64 to the pointer, which points to one.
    if unsafe { libc::ioctl(file.as_raw_fd(), BLKGETSIZE64 as _, &raw mut size) } < 0 {
        return Err(io::Error::last_os_error());
    }
    Ok(size)
}

impl WholeDevice for DeviceFile {
    fn size(&self) -> u64 {
        self.size
    }

    fn read_at(&mut self, offset: u64, buffer: &mut AlignedBuf) -> io::Result<()> {
        self.file.read_exact_at(buffer, offset)
    }

    fn write_at(&mut self, offset: u64, buffer: &AlignedBuf) -> io::Result<()> {
        self.file.write_all_at(buffer, offset)?;
        self.file.sync_data()
    }
}

#[cfg(test)]
mod tests {
    #![allow(clippy::unwrap_used)]
    use super::*;

    #[test]
    fn a_second_opener_is_refused_and_a_missing_one_is_named() {
        let dir = super::super::uring::tests::direct_dir();
        let Some(dir) = dir else { return };
        let path = dir.path().join("device");
        assert!(matches!(DeviceFile::open(&path), Err(DeviceError::Missing { .. })));
        assert!(matches!(DeviceFile::create(&path, 4097, &mut |_| ()), Err(DeviceError::BadSize { .. })));
        let mut written = 0;
        let first = DeviceFile::create(&path, 4 << 20, &mut |bytes| written = bytes).unwrap();
        assert_eq!((first.size(), written), (4 << 20, 4 << 20));
        let error = DeviceFile::open(&path).unwrap_err();
        assert!(error.to_string().contains("in use"), "{error}");
        drop(first);
        assert_eq!(DeviceFile::open(&path).unwrap().size(), 4 << 20);
        assert!(matches!(DeviceFile::open(dir.path()), Err(DeviceError::NotADevice { .. })));
    }
}
