//! The part of a replica's log above its commit point, in memory.
//!
//! Contiguous: the first entry is the one after the commit point. (Only a candidate's log may begin later; it counts for
//! nothing until the candidate has joined.) The store holds the same bytes durably; here they wait to be sent again,
//! re-proposed or looked at.

use alloc::collections::VecDeque;

use crate::ids::{BlockIndex, Seq};
use crate::record::Entry;

/// Entries above the commit point.
#[derive(Debug, Clone)]
pub(super) struct Log {
    commit: Seq,
    last: Seq,
    bytes: u64,
    entries: VecDeque<Entry>,
}

impl Log {
    pub(super) fn new(commit: Seq, tail: impl IntoIterator<Item = Entry>) -> Self {
        let mut log = Self { commit, last: commit, bytes: 0, entries: VecDeque::new() };
        for entry in tail {
            log.append(entry);
        }
        log
    }

    pub(super) const fn commit(&self) -> Seq {
        self.commit
    }

    pub(super) const fn last(&self) -> Seq {
        self.last
    }

    pub(super) const fn bytes(&self) -> u64 {
        self.bytes
    }

    /// Bytes of the entries after `seq`.
    pub(super) fn bytes_after(&self, seq: Seq) -> u64 {
        if seq <= self.commit {
            return self.bytes;
        }
        let after = self.entries.iter().rev().take_while(|entry| entry.seq > seq);
        after.map(|entry| entry.change.data_len()).sum()
    }

    pub(super) fn len(&self) -> usize {
        self.entries.len()
    }

    pub(super) fn append(&mut self, entry: Entry) {
        assert!(entry.seq > self.last, "{} after {}", entry.seq, self.last);
        self.last = entry.seq;
        self.bytes += entry.change.data_len();
        self.entries.push_back(entry);
    }

    /// Begins anew behind `last`, with nothing above the commit point.
    pub(super) fn restart_at(&mut self, last: Seq) {
        self.entries.clear();
        self.bytes = 0;
        self.last = last.max(self.commit);
    }

    /// Raises the commit point; tells whether it moved.
    pub(super) fn commit_to(&mut self, through: Seq) -> bool {
        if through <= self.commit {
            return false;
        }
        while self.entries.front().is_some_and(|entry| entry.seq <= through) {
            if let Some(entry) = self.entries.pop_front() {
                self.bytes -= entry.change.data_len();
            }
        }
        self.commit = through;
        self.last = self.last.max(through);
        true
    }

    /// Entries after `seq`, in order.
    pub(super) fn after(&self, seq: Seq) -> impl Iterator<Item = &Entry> {
        self.entries.iter().skip_while(move |entry| entry.seq <= seq)
    }

    /// Whether an uncommitted entry touches these blocks.
    pub(super) fn touches(&self, block: BlockIndex, count: u32) -> bool {
        self.entries.iter().any(|entry| {
            let (first, len) = entry.change.range();
            first.0 < block.0 + count && block.0 < first.0 + len
        })
    }
}
