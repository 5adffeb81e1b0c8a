//! The device under a shard's store: one trait, so that "the bytes that survive a crash" can be tested in memory.
//!
//! Operations go in with their buffer and come out, by [`Device::reap`], with the same buffer: whoever waits may
//! disappear, the buffer stays here until the kernel is done with it. All offsets are relative to the shard's region
//! and, like all lengths, multiples of 4 KiB.

use std::os::fd::RawFd;

/// What the caller calls an operation; comes back with its completion.
#[derive(Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash, Debug)]
pub struct Tag(pub u64);

/// An operation on a device. `B` is its aligned buffer ([`buffer::AlignedBuf`]).
#[derive(Debug)]
pub enum Operation {
    /// Fill the whole buffer from `offset`.
    Read {
        /// First byte.
        offset: u64,
        /// Filled when done.
        buffer: buffer::AlignedBuf,
    },
    /// Write the whole buffer at `offset`.
    Write {
        /// First byte.
        offset: u64,
        /// Given back when done.
        buffer: buffer::AlignedBuf,
        /// Complete only when it survives power loss.
        durable: bool,
    },
    /// Write the buffer, if there is one, and right behind it the pieces, in one go.
    WriteVectored {
        /// First byte.
        offset: u64,
        /// What comes first; given back when done.
        buffer: Option<buffer::AlignedBuf>,
        /// What follows: each a multiple of 4 KiB long and aligned to 4 KiB; at most `limits::VECTOR_MAX` of them.
        pieces: Vec<bytes::Bytes>,
        /// Complete only when it survives power loss.
        durable: bool,
    },
    /// Complete only when every write completed before this was submitted survives power loss.
    Flush,
}

impl Operation {
    /// Where it begins on the device and how many bytes it moves.
    #[must_use]
    pub fn span(&self) -> Option<(u64, u64)> {
        match self {
            Self::Read { offset, buffer } | Self::Write { offset, buffer, .. } => Some((*offset, buffer.len() as u64)),
            Self::WriteVectored { offset, buffer, pieces, .. } => {
                let pieces: u64 = pieces.iter().map(|piece| piece.len() as u64).sum();
                Some((*offset, buffer.as_ref().map_or(0, |buffer| buffer.len() as u64) + pieces))
            }
            Self::Flush => None,
        }
    }

    /// Whether the device has to flush for it: what it writes, or what was written before, survives power loss.
    #[must_use]
    pub const fn is_flush(&self) -> bool {
        matches!(self, Self::Write { durable: true, .. } | Self::WriteVectored { durable: true, .. } | Self::Flush)
    }
}

/// How an operation ended.
#[derive(Debug)]
pub struct Completion {
    /// Whose.
    pub tag: Tag,
    /// The operation's buffer, if it had one.
    pub buffer: Option<buffer::AlignedBuf>,
    /// A short read or write is an error too.
    pub result: std::io::Result<()>,
}

/// A shard's part of a device. Operations may complete in any order.
pub trait Device {
    /// Bytes of the region.
    fn len(&self) -> u64;

    /// Whether the region holds nothing.
    fn is_empty(&self) -> bool {
        self.len() == 0
    }

    /// Queues an operation. Nothing has to start before [`Device::kick`].
    fn submit(&mut self, tag: Tag, operation: Operation);

    /// Starts what is queued.
    fn kick(&mut self);

    /// Takes finished operations; never waits.
    fn reap(&mut self, done: &mut Vec<Completion>);

    /// Becomes readable, each time anew (an edge), when `reap` has something to take. `None` where nothing is waited for (memory).
    fn wake_fd(&self) -> Option<RawFd>;
}

/// A whole device, read and written while nothing else runs on it: formatting, opening, recovery. Calls wait.
pub trait WholeDevice {
    /// Bytes of the device.
    fn size(&self) -> u64;

    /// Fills the whole buffer from `offset`.
    ///
    /// # Errors
    /// The device's; a short read too.
    fn read_at(&mut self, offset: u64, buffer: &mut buffer::AlignedBuf) -> std::io::Result<()>;

    /// Writes the whole buffer at `offset`; it survives power loss when this returns.
    ///
    /// # Errors
    /// The device's; a short write too.
    fn write_at(&mut self, offset: u64, buffer: &buffer::AlignedBuf) -> std::io::Result<()>;
}

pub mod buffer;
pub mod file;
pub mod memory;
pub mod uring;
