//! Serving a volume to programs: an NBD server over anything that can be exported.

pub mod memory;
pub mod nbd;

use bytes::Bytes;

/// Why an exported volume did not do what was asked.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
pub enum ExportError {
    /// A newer attachment took over: nothing works here any more.
    #[error("fenced: a newer attachment of this volume exists")]
    Fenced,
    /// Could not be done within the configured time.
    #[error("timed out after waiting for the segment's primary")]
    TimedOut,
    /// No space for it.
    #[error("no space")]
    NoSpace,
    /// Damaged or otherwise unreadable, and why.
    #[error("{0}")]
    Io(String),
}

/// A volume that can be exported. Every method is called for ranges inside `size()` and of non-zero length, of any
/// alignment to 512 bytes; calls run concurrently. A change is durable when its future is ready.
pub trait Export: 'static {
    /// Bytes.
    fn size(&self) -> u64;

    /// Reads.
    fn read(&self, offset: u64, len: u64) -> impl Future<Output = Result<Bytes, ExportError>>;

    /// Writes.
    fn write(&self, offset: u64, data: Bytes) -> impl Future<Output = Result<(), ExportError>>;

    /// Makes the range read as zeros. `punch`: its whole blocks need no longer use space.
    fn zero(&self, offset: u64, len: u64, punch: bool) -> impl Future<Output = Result<(), ExportError>>;

    /// Runs from `offset` on, in order: length in bytes, and whether they hold data. Covers at least one byte, at
    /// most `len`.
    fn allocation(&self, offset: u64, len: u64) -> impl Future<Output = Result<Vec<(u64, bool)>, ExportError>>;

    /// Whether this attachment was fenced off.
    fn is_fenced(&self) -> bool;
}
