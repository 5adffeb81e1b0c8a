//! A shard's durable home of its replicas: WAL, extent map, slabs. Executes what the core decided; decides nothing.
//!
//! [`Store`] is a state machine over a [`crate::device::Device`]: requests go in with a ticket, [`Store::poll`] moves
//! the device's completions along and gives events out. It never blocks and never calls back, so the node and the
//! simulator drive the same code.
//!
//! Promises to the caller:
//! - the records of one `persist` become durable together or not at all, and those of one segment in the order of the
//!   calls;
//! - reads see exactly what is at or below the commit point told by `commit` (I4, I7), from the WAL window or home;
//! - home extents change only at or below a commit point that is durable (I4);
//! - a block whose checksum does not match is never returned (I14).

mod apply;
mod check;
mod checkpoint;
mod copy;
mod entries;
mod entry;
mod extents;
mod findings;
mod format;
mod landing;
mod ledger;
mod log;
mod map;
mod read;
mod recover;
mod replica;
pub mod report;
mod roots;
mod scan;
mod shard;
mod slabs;
mod sums;
mod superblock;
mod wal;

pub use check::{Depth, examine};
pub use read::block_sum;
pub use shard::ShardStore;
pub use sums::PAGE_BYTES as SUM_PAGE_BYTES;
pub use superblock::{
    FormatError, Geometry, OpenError, Region, Superblock, damaged_copies, format, open, read, rewrite,
};
pub(crate) use wal::window;

use engine_core::ids::{BlockIndex, ExtentIndex, SegmentId, Seq};
use engine_core::record::{Blocks, ExtentCopy, Record, Recovered};

/// The caller's name for a request; comes back with its event.
#[derive(Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash, Debug)]
pub struct Ticket(pub u64);

/// Why a read gave nothing.
#[derive(Debug, Clone, Copy, PartialEq, Eq, thiserror::Error)]
pub enum ReadError {
    /// No replica of this segment here.
    #[error("no replica of this segment here")]
    Unknown,
    /// The block's content does not match its checksum, or the device cannot read it.
    #[error("block {0} is damaged")]
    Damaged(BlockIndex),
}

/// Something a store has finished.
#[derive(Debug)]
pub enum Event {
    /// The records of this `persist` are durable.
    Persisted(Ticket),
    /// A `read` is done.
    Read(Ticket, Result<Blocks, ReadError>),
    /// A `read_extent` is done.
    Extent(Ticket, Result<ExtentCopy, ReadError>),
    /// A `copy_in` is durable (or was not needed: the own stamp is higher or equal).
    CopiedIn(Ticket),
    /// A durable write failed: what is on the device is unknown. Nothing more is taken or served (DESIGN 6). Given once.
    Failed(String),
}

/// Space of a shard, in extents.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default)]
pub struct Space {
    /// Extents replicas can book (scratch slabs are not among them, I13).
    pub capacity: u64,
    /// Extents booked by replicas (their whole length: no over-commit).
    pub booked: u64,
    /// Extents that hold data.
    pub used: u64,
}

/// One page of extents with their stamps, and where the next page begins.
pub type Page = (Vec<(ExtentIndex, Seq)>, Option<ExtentIndex>);

/// A shard's store.
pub trait Store {
    /// What was found when it was opened. Given once.
    fn take_recovered(&mut self) -> Vec<Recovered>;

    /// Makes records durable, all or none, for each segment in the order of the calls. `Event::Persisted`.
    fn persist(&mut self, records: Vec<Record>, ticket: Ticket);

    /// The segment's commit point is now at least `through`: show it to reads, apply it in time.
    fn commit(&mut self, segment: SegmentId, through: Seq);

    /// Reads committed blocks. `Event::Read`.
    fn read(&mut self, segment: SegmentId, block: BlockIndex, count: u32, ticket: Ticket);

    /// Which committed blocks hold data: runs in order.
    fn allocation(&self, segment: SegmentId, block: BlockIndex, count: u32) -> Vec<(u32, bool)>;

    /// Reads one extent with the stamp "everything up to the commit point of this call is in it". `Event::Extent`.
    fn read_extent(&mut self, segment: SegmentId, extent: ExtentIndex, ticket: Ticket);

    /// Up to `limit` extents from `from` on whose stamp (committed, not yet applied changes included) is above `above`.
    fn list(&self, segment: SegmentId, above: Seq, from: ExtentIndex, limit: usize) -> Page;

    /// Puts an extent's copy in place durably, unless the own stamp is at least as high. `Event::CopiedIn`; no event
    /// when the replica is not here or ends, or the copy is malformed.
    fn copy_in(&mut self, segment: SegmentId, copy: ExtentCopy, ticket: Ticket);

    /// Like `copy_in`, for an extent found damaged: also where the own home has the same stamp. `Event::CopiedIn`.
    fn mend(&mut self, segment: SegmentId, copy: ExtentCopy, ticket: Ticket);

    /// Blocks found damaged since it was opened and not replaced since, as far as they are remembered.
    fn damaged(&self) -> Vec<(SegmentId, BlockIndex)> {
        Vec::new()
    }

    /// Space of the shard.
    fn space(&self) -> Space;

    /// Extents no replica has booked. As `space` says it, at less cost where there are many replicas.
    fn unbooked(&self) -> u64 {
        let space = self.space();
        space.capacity.saturating_sub(space.booked)
    }

    /// Extents of one segment that hold data.
    fn used_by(&self, segment: SegmentId) -> u64;

    /// Blocks found damaged since it was opened.
    fn damaged_blocks(&self) -> u64;

    /// Flushes the device was asked for since it was opened: durable writes, and flushes of what was written before.
    fn flushes(&self) -> u64;

    /// What is in memory of the device is read anew when it is wanted, so that damage beneath it shows.
    fn look_anew(&mut self);

    /// What was found damaged when it was opened, blocks at home apart: roots, map pages, places in the WAL.
    fn damaged_structures(&self) -> u64;

    /// Starts what is queued, takes completions, does due background work, and gives events out. Never waits.
    fn poll(&mut self, events: &mut Vec<Event>);

    /// Asks to have everything applied and checkpointed, for a quick restart; `poll` until `is_quiet`.
    fn settle(&mut self);

    /// Nothing queued, nothing in flight, nothing left to apply.
    fn is_quiet(&self) -> bool;
}

#[cfg(test)]
mod tests;
