//! What changes of the map mean for the rest of the store: batches that are needed no more, slabs and pages given up,
//! checksums that are new.
//!
//! A batch of the WAL is needed as long as an entry of a log is in it. The oldest such batch is where recovery would
//! begin, were a checkpoint taken now.

use std::collections::VecDeque;

use engine_core::ids::BootCount;

use super::format::Sums;

/// A batch in the ring.
#[derive(Debug, Clone, Copy)]
pub(crate) struct Batch {
    pub(crate) boot: BootCount,
    /// Where it is in the ring.
    pub(crate) position: u64,
    /// Bytes that went into the ring before it since the store was opened.
    pub(crate) start: u64,
    /// Entries of logs whose newest record is in it; one more while it is in flight.
    pub(crate) live: u32,
}

/// The batches from the oldest needed on, with consecutive numbers.
#[derive(Debug, Default)]
pub(crate) struct Batches {
    list: VecDeque<Batch>,
    /// Number of the first.
    first: u64,
}

impl Batches {
    pub(crate) fn push(&mut self, number: u64, batch: Batch) {
        if self.list.is_empty() {
            self.first = number;
        }
        assert!(number == self.first + self.list.len() as u64, "batches are numbered one by one");
        self.list.push_back(batch);
    }

    fn at(&mut self, number: u64) -> Option<&mut Batch> {
        let index = usize::try_from(number.checked_sub(self.first)?).ok()?;
        self.list.get_mut(index)
    }

    pub(crate) fn keep(&mut self, number: u64) {
        self.at(number).expect("an entry's batch is known").live += 1;
    }

    pub(crate) fn release(&mut self, number: u64) {
        let batch = self.at(number).expect("an entry's batch is known");
        batch.live = batch.live.checked_sub(1).expect("kept before");
        while self.list.front().is_some_and(|batch| batch.live == 0) {
            self.list.pop_front();
            self.first += 1;
        }
    }

    /// The oldest batch that is needed, with its number.
    pub(crate) fn oldest(&self) -> Option<(u64, Batch)> {
        self.list.front().map(|batch| (self.first, *batch))
    }

    /// The number of the last batch that begins before `start`, if any does.
    pub(crate) fn last_before(&self, start: u64) -> Option<u64> {
        let count = self.list.partition_point(|batch| batch.start < start) as u64;
        (count > 0).then(|| self.first + count - 1)
    }
}

/// Checksums of some blocks of a slab.
#[derive(Debug, Clone)]
pub(crate) struct NewSums {
    pub(crate) slab: u32,
    /// The batch whose record says so: the order they count in when the WAL is read again.
    pub(crate) batch: u64,
    pub(crate) known: u32,
    pub(crate) sums: Sums,
}

/// See the module.
#[derive(Debug, Default)]
pub(crate) struct Ledger {
    pub(crate) batches: Batches,
    /// Slabs given up; the store retires them.
    pub(crate) slabs: Vec<u32>,
    /// Places of map pages given up.
    pub(crate) pages: Vec<u32>,
    /// Checksums of what homes hold now.
    pub(crate) sums: Vec<NewSums>,
    /// Bytes of the ring whose entries left the logs: that much may come in (admission).
    pub(crate) settled: u64,
    /// Slabs that only entries of logs point to.
    pub(crate) redirected: u64,
}
