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
    /// By entry: bytes appended so far, its own included.
    ends: VecDeque<u64>,
    appended: u64,
}

impl Log {
    pub(super) fn new(commit: Seq, tail: impl IntoIterator<Item = Entry>) -> Self {
        let (entries, ends) = (VecDeque::new(), VecDeque::new());
        let mut log = Self { commit, last: commit, bytes: 0, entries, ends, appended: 0 };
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

    /// Bytes of the entries after `seq`. Asked for with every input: no walk over the entries.
    pub(super) fn bytes_after(&self, seq: Seq) -> u64 {
        if seq <= self.commit {
            return self.bytes;
        }
        let upto = self.entries.partition_point(|entry| entry.seq <= seq);
        upto.checked_sub(1).and_then(|at| self.ends.get(at)).map_or(self.bytes, |end| self.appended - end)
    }

    pub(super) fn len(&self) -> usize {
        self.entries.len()
    }

    pub(super) fn append(&mut self, entry: Entry) {
        assert!(entry.seq > self.last, "{} after {}", entry.seq, self.last);
        self.last = entry.seq;
        self.bytes += entry.change.data_len();
        self.appended += entry.change.data_len();
        self.entries.push_back(entry);
        self.ends.push_back(self.appended);
    }

    /// Begins anew behind `last`, with nothing above the commit point.
    pub(super) fn restart_at(&mut self, last: Seq) {
        self.entries.clear();
        self.ends.clear();
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
                self.ends.pop_front();
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

#[cfg(test)]
mod tests {
    use alloc::vec;

    use bytes::Bytes;

    use super::*;
    use crate::ids::Epoch;
    use crate::record::{Blocks, Change};

    fn entry(seq: u64) -> Entry {
        let len = if seq.is_multiple_of(3) { 0 } else { 4096 };
        let blocks = Blocks { data: Bytes::from(vec![0; len]), sums: Bytes::new() };
        Entry { epoch: Epoch(1), seq: Seq(seq), change: Change::Write { block: BlockIndex(0), blocks } }
    }

    #[test]
    fn what_lies_after_an_entry_is_known_without_adding_it_up() {
        // As a candidate's log: it begins later than behind the commit point.
        let mut log = Log::new(Seq(5), (9..=20).map(entry));
        let right = |log: &Log| {
            for seq in (0..25).map(Seq) {
                let added: u64 = log.after(seq).map(|entry| entry.change.data_len()).sum();
                assert_eq!(log.bytes_after(seq), added, "{seq} of {log:?}");
            }
        };
        right(&log);
        for commit in [7, 9, 14, 15] {
            log.commit_to(Seq(commit));
            right(&log);
        }
        log.append(entry(21));
        right(&log);
        log.restart_at(Seq(30));
        log.append(entry(31));
        log.append(entry(32));
        right(&log);
        log.commit_to(Seq(32));
        right(&log);
    }
}
