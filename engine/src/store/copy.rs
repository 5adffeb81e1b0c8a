//! Copies coming in: each goes to a fresh slab, durably, then a map record names it. Until then nothing points there.

use std::collections::{BTreeMap, VecDeque};

use engine_core::ids::{ExtentIndex, SegmentId};
use engine_core::limits::{COPY_IN_INFLIGHT, EXTENT_BLOCKS};
use engine_core::record::ExtentCopy;

use super::format::{MapRecord, WalRecord};
use super::read::BLOCK;
use super::shard::{Purpose, ShardStore, aligned};
use super::wal::Queued;
use super::{Event, Ticket};
use crate::device::{Device, Operation};

#[derive(Debug)]
struct Job {
    segment: SegmentId,
    life: u64,
    ticket: Ticket,
    record: MapRecord,
    /// Device writes under way.
    left: usize,
}

/// A copy as it came.
#[derive(Debug)]
struct Arrived {
    segment: SegmentId,
    life: u64,
    copy: ExtentCopy,
    /// The own home is damaged: it goes, even when it has the same stamp.
    mends: bool,
    ticket: Ticket,
}

/// Copies waiting and under way.
#[derive(Debug, Default)]
pub(crate) struct Copies {
    /// Bounded by what the candidates of this shard ask for at a time (COPY_INFLIGHT each).
    waiting: VecDeque<Arrived>,
    writing: BTreeMap<u64, Job>,
    /// Their map records are queued or in flight, in this order.
    mapping: VecDeque<Job>,
    next: u64,
}

impl Copies {
    pub(crate) fn is_idle(&self) -> bool {
        self.waiting.is_empty() && self.writing.is_empty() && self.mapping.is_empty()
    }

    /// Slabs nothing points to yet.
    pub(crate) fn slabs(&self) -> impl Iterator<Item = u32> + '_ {
        self.writing.values().chain(&self.mapping).filter_map(|job| job.record.slab)
    }
}

/// Runs of set bits: first and end.
pub(crate) fn runs(mut mask: u32) -> impl Iterator<Item = (u32, u32)> {
    std::iter::from_fn(move || {
        let first = mask.trailing_zeros();
        let len = mask.checked_shr(first)?.trailing_ones();
        let end = first + len;
        mask = if end >= 32 { 0 } else { mask >> end << end };
        Some((first, end))
    })
}

impl<D: Device> ShardStore<D> {
    pub(crate) fn queue_copy(&mut self, segment: SegmentId, copy: ExtentCopy, mends: bool, ticket: Ticket) {
        let Some(replica) = self.map.replicas.get(&segment).filter(|replica| !replica.dropping) else {
            tracing::debug!(%segment, "a copy for a replica that is not here is dropped");
            return;
        };
        let sound = copy.blocks.is_well_formed() && copy.blocks.count() == copy.present.count_ones();
        if !sound || copy.extent.0 >= replica.meta.config.extents {
            tracing::warn!(%segment, extent = %copy.extent, "a malformed copy is dropped");
            return;
        }
        self.copies.waiting.push_back(Arrived { segment, life: replica.life, copy, mends, ticket });
    }

    pub(crate) fn start_copies(&mut self) {
        if self.wal.is_tight(self.map.log_bytes) {
            return;
        }
        while self.copies.writing.len() + self.copies.mapping.len() < COPY_IN_INFLIGHT {
            let Some(arrived) = self.copies.waiting.pop_front() else { break };
            let Arrived { segment, life, ref copy, mends, ticket } = arrived;
            let replica = self.map.replicas.get(&segment).filter(|replica| replica.life == life && !replica.dropping);
            let Some(replica) = replica else { continue };
            // What a copy mends is damaged whatever its stamp is, as long as the copy is not older.
            let is_old = if mends {
                replica.stamp(copy.extent) > copy.stamp
            } else {
                replica.full_stamp(copy.extent) >= copy.stamp
            };
            if is_old {
                self.events.push(Event::CopiedIn(ticket));
                continue;
            }
            let incarnation = replica.meta.config.incarnation;
            let slab = if copy.present == 0 { None } else { self.take_slab() };
            if slab.is_none() && copy.present != 0 {
                // A checkpoint is under way to free some.
                self.copies.waiting.push_front(arrived);
                break;
            }
            let mut sums = Box::new([0; EXTENT_BLOCKS as usize]);
            let present = (0..EXTENT_BLOCKS).filter(|block| copy.present & (1 << block) != 0);
            for (at, block) in (0..).zip(present) {
                sums[block as usize] = copy.blocks.sum(at);
            }
            let (extent, stamp, present) = (copy.extent, copy.stamp, copy.present);
            let record = MapRecord { segment, incarnation, extent, stamp, slab, present, sums };
            self.write_copy(Job { segment, life, ticket, record, left: 0 }, &copy.blocks.data);
        }
    }

    fn write_copy(&mut self, mut job: Job, data: &[u8]) {
        let Some(slab) = job.record.slab else { return self.map_copy(job) };
        let id = self.copies.next;
        self.copies.next += 1;
        let mut at = 0;
        for (first, end) in runs(job.record.present) {
            let len = (end - first) as usize * BLOCK;
            let (offset, buffer) = (self.block_at(slab, first), aligned(&[&data[at..at + len]]));
            self.submit(Purpose::Copy { job: id, slab }, Operation::Write { offset, buffer, durable: true });
            at += len;
            job.left += 1;
        }
        self.copies.writing.insert(id, job);
    }

    pub(crate) fn on_copy_written(&mut self, id: u64) {
        let Some(job) = self.copies.writing.get_mut(&id) else { return };
        job.left -= 1;
        if job.left == 0
            && let Some(job) = self.copies.writing.remove(&id)
        {
            self.map_copy(job);
        }
    }

    /// The data is durable: now the record that points to it.
    fn map_copy(&mut self, job: Job) {
        let replica = self.map.replicas.get(&job.segment);
        if replica.is_some_and(|replica| replica.life == job.life && !replica.dropping) {
            self.wal.own.push_back(Queued::new(vec![WalRecord::Map(job.record.clone())], None));
            self.copies.mapping.push_back(job);
        } else if let Some(slab) = job.record.slab {
            self.slabs.retire(slab);
        }
    }

    /// A map record is durable and taken in. They are, in the order they were queued.
    pub(crate) fn on_copy_mapped(&mut self, segment: SegmentId, extent: ExtentIndex) {
        let job = self.copies.mapping.pop_front().expect("every map record has its job");
        assert!(job.segment == segment && job.record.extent == extent, "map records are durable in order");
        self.events.push(Event::CopiedIn(job.ticket));
    }
}

#[cfg(test)]
mod tests {
    use super::runs;

    #[test]
    fn runs_of_bits() {
        assert_eq!(runs(0).count(), 0);
        assert_eq!(runs(u32::MAX).collect::<Vec<_>>(), [(0, 32)]);
        assert_eq!(runs(0b1011_0001).collect::<Vec<_>>(), [(0, 1), (4, 6), (7, 8)]);
        assert_eq!(runs(1 << 31).collect::<Vec<_>>(), [(31, 32)]);
    }
}
