//! The WAL: a ring of batches, one in flight at a time.
//!
//! Whatever is queued while a batch is in flight goes into the next one; when nothing is in flight it goes at once.
//! Space: ordinary persists use up to 3/16 of the ring between two checkpoints, the
//! store's own records a little more. So when a checkpoint is taken, all that
//! its logs still hold fits behind it a second time (I15), beside what is written meanwhile.

use std::collections::{BTreeMap, VecDeque};

use engine_core::ids::SegmentId;
use engine_core::limits::{BATCH_BYTES, BLOCK_SIZE};
use engine_core::record::Record;

use super::Ticket;
use super::format::{BATCH_HEADER, WalRecord, record_len};

/// Where the next batch goes.
#[derive(Debug, Clone, Copy)]
pub(crate) struct Ring {
    pub(crate) size: u64,
    /// Position of the next batch.
    pub(crate) head: u64,
    /// Number of the next batch.
    pub(crate) number: u64,
    /// Bytes from where recovery would begin to the head, skipped ends of the ring included.
    pub(crate) used: u64,
    /// Bytes since the last checkpoint was taken (durable yet or not).
    pub(crate) since: u64,
}

impl Ring {
    /// Position and cost of a batch with so many bytes of records. A batch never wraps: it skips the ring's end.
    fn place(&self, bytes: u64) -> (u64, u64) {
        let len = (bytes + BATCH_HEADER as u64).next_multiple_of(BLOCK_SIZE);
        if self.head + len <= self.size { (self.head, len) } else { (0, len + self.size - self.head) }
    }

    pub(crate) fn cost(&self, bytes: u64) -> u64 {
        self.place(bytes).1
    }

    /// Takes the place of a batch.
    pub(crate) fn advance(&mut self, bytes: u64) -> (u64, u64) {
        let (position, cost) = self.place(bytes);
        assert!(self.used + cost <= self.size, "the WAL never overtakes itself");
        let number = self.number;
        self.head = position + (bytes + BATCH_HEADER as u64).next_multiple_of(BLOCK_SIZE);
        self.number += 1;
        self.used += cost;
        self.since += cost;
        (position, number)
    }

    /// Bytes of records after which a batch is full.
    pub(crate) fn batch_bytes(&self) -> u64 {
        BATCH_BYTES.min(self.size / 16)
    }

    /// The largest persist: with the end of the ring it may skip, it still fits what persists may use.
    pub(crate) fn persist_max(&self) -> u64 {
        self.size / 7
    }
}

/// Records that become durable together.
#[derive(Debug)]
pub(crate) struct Queued {
    pub(crate) records: Vec<WalRecord>,
    pub(crate) bytes: u64,
    pub(crate) ticket: Option<Ticket>,
    /// The one segment all of them are about.
    pub(crate) segment: Option<SegmentId>,
    /// Not only prepared changes: a promise, a configuration, the end of a log.
    pub(crate) control: bool,
}

impl Queued {
    pub(crate) fn new(records: Vec<WalRecord>, ticket: Option<Ticket>) -> Self {
        let bytes = records.iter().map(record_len).sum();
        let mut segments = records.iter().map(WalRecord::segment);
        let first = segments.next();
        let segment = first.filter(|first| segments.all(|other| other == *first));
        let control = !records.iter().all(|record| matches!(record, WalRecord::Core(Record::Prepare { .. })));
        Self { records, bytes, ticket, segment, control }
    }
}

/// A batch under way.
#[derive(Debug)]
pub(crate) struct Flight {
    pub(crate) items: Vec<Queued>,
    /// Entries that are written again: nothing changes in memory when they are durable.
    pub(crate) relogged: Vec<WalRecord>,
}

/// The ring, what waits for it, and what is under way.
#[derive(Debug)]
pub(crate) struct Wal {
    pub(crate) ring: Ring,
    /// The core's persists, in order. Bounded by the windows of the segments.
    pub(crate) queue: VecDeque<Queued>,
    /// How many of the queued are control records, by segment.
    controls: BTreeMap<SegmentId, usize>,
    /// The store's own small records; they go first and may use more of the ring, since they lead to its trimming.
    pub(crate) own: VecDeque<Queued>,
    /// Log entries as they were when the checkpoint was taken, to be written again right behind it. Nothing else goes
    /// into the ring before all of them are in a batch, so no later record is undone by one of them.
    pub(crate) relog: VecDeque<WalRecord>,
    pub(crate) relog_bytes: u64,
    pub(crate) flight: Option<Flight>,
}

impl Wal {
    pub(crate) fn new(ring: Ring) -> Self {
        Self {
            ring,
            queue: VecDeque::new(),
            controls: BTreeMap::new(),
            own: VecDeque::new(),
            relog: VecDeque::new(),
            relog_bytes: 0,
            flight: None,
        }
    }

    /// Room kept for writing `log_bytes` again, padding and skipped ends included.
    fn again(&self, log_bytes: u64) -> u64 {
        log_bytes + log_bytes / 4 + self.ring.size / 8
    }

    /// Whether after `cost` more bytes this checkpoint's log still fits, and the next one's.
    fn leaves_room(&self, cost: u64, log_bytes: u64) -> bool {
        let unfinished = if self.relog.is_empty() { 0 } else { self.again(self.relog_bytes) };
        self.ring.used + cost + unfinished <= self.ring.size
            && self.ring.since + cost + self.again(log_bytes) <= self.ring.size
    }

    /// Queues a persist.
    pub(crate) fn push(&mut self, queued: Queued) {
        if let (true, Some(segment)) = (queued.control, queued.segment) {
            *self.controls.entry(segment).or_default() += 1;
        }
        self.queue.push_back(queued);
    }

    /// Takes what fits beside `bytes` into the next batch, until that has `full`: the queue in order; and when its head
    /// has to wait for room, the control records further behind, with what their segments queued before them. It is
    /// they that resolve what fills the ring, so they may use more of it. Each segment's order is kept.
    pub(crate) fn take(&mut self, bytes: &mut u64, full: u64, log_bytes: u64, items: &mut Vec<Queued>) {
        let mut at = 0;
        while *bytes < full
            && let Some(next) = self.queue.get(at)
        {
            let urgent = next.segment.is_some_and(|segment| self.controls.contains_key(&segment));
            let fits = at == 0 && self.admits(*bytes + next.bytes, log_bytes);
            if fits || urgent && self.admits_own(*bytes + next.bytes, log_bytes + *bytes + next.bytes) {
                *bytes += next.bytes;
                if let Some(next) = self.queue.remove(at) {
                    self.taken(&next);
                    items.push(next);
                }
            } else if self.controls.is_empty() || urgent || next.segment.is_none() {
                return;
            } else {
                at += 1;
            }
        }
    }

    fn taken(&mut self, queued: &Queued) {
        if let (true, Some(segment)) = (queued.control, queued.segment)
            && let Some(count) = self.controls.get_mut(&segment)
        {
            *count -= 1;
            if *count == 0 {
                self.controls.remove(&segment);
            }
        }
    }

    /// Whether a batch of so many bytes of records may hold an ordinary persist.
    pub(crate) fn admits(&self, bytes: u64, log_bytes: u64) -> bool {
        let len = (bytes + BATCH_HEADER as u64).next_multiple_of(BLOCK_SIZE);
        self.ring.since + len <= self.ring.size / 16 * 3 && self.leaves_room(self.ring.cost(bytes), log_bytes + bytes)
    }

    /// Whether a batch of so many bytes may hold the store's own records. Bounded too: a restart brings back everything
    /// since the last checkpoint, and all of that must fit once more.
    pub(crate) fn admits_own(&self, bytes: u64, log_bytes: u64) -> bool {
        let (cost, size) = (self.ring.cost(bytes), self.ring.size);
        if self.is_tight(log_bytes) {
            // Only what is small and resolves the log gets through.
            return bytes <= size / 64 && self.ring.used + cost + size / 16 <= size;
        }
        self.ring.since + cost <= size / 16 * 5 && self.leaves_room(cost, log_bytes)
    }

    /// The ring is so full that only applying can make the log fit behind a checkpoint: after a restart, when the crash
    /// was in the middle of a checkpoint.
    pub(crate) fn is_tight(&self, log_bytes: u64) -> bool {
        self.ring.used + self.again(log_bytes) > self.ring.size
    }

    /// The next persist has to wait for a checkpoint.
    pub(crate) fn is_blocked(&self, log_bytes: u64) -> bool {
        self.queue.front().is_some_and(|next| !self.admits(next.bytes, log_bytes))
    }

    pub(crate) fn is_idle(&self) -> bool {
        self.flight.is_none() && self.queue.is_empty() && self.own.is_empty() && self.relog.is_empty()
    }
}
