//! Copies coming in: each goes to a fresh slab, durably, then a map record names it. Until then nothing points there.

use std::collections::VecDeque;

use bytes::Bytes;
use engine_core::ids::{ExtentIndex, SegmentId};
use engine_core::limits::{COPY_IN_INFLIGHT, EXTENT_BLOCKS};
use engine_core::record::ExtentCopy;

use super::format::{MapRecord, WalRecord};
use super::read::BLOCK;
use super::shard::ShardStore;
use super::wal::{CHANGES_TO, Queued};
use super::{Event, Ticket};
use crate::device::Device;

/// A copy that waits.
#[derive(Debug)]
struct Waiting {
    segment: SegmentId,
    life: u64,
    copy: ExtentCopy,
    repair: bool,
    ticket: Ticket,
}

/// A copy under way.
#[derive(Debug)]
pub(crate) struct CopyJob {
    segment: SegmentId,
    life: u64,
    ticket: Ticket,
    pub(crate) record: MapRecord,
}

/// Copies waiting and under way.
#[derive(Debug, Default)]
pub(crate) struct Copies {
    /// Bounded by what the candidates of this shard ask for at a time (COPY_INFLIGHT each).
    waiting: VecDeque<Waiting>,
    /// Their map records are queued or in flight, in this order.
    mapping: VecDeque<CopyJob>,
}

impl Copies {
    pub(crate) fn is_idle(&self) -> bool {
        self.waiting.is_empty() && self.mapping.is_empty()
    }

    /// Slabs nothing points to yet.
    pub(crate) fn slabs(&self) -> impl Iterator<Item = u32> + '_ {
        self.mapping.iter().filter_map(|job| job.record.slab)
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
    pub(crate) fn queue_copy(&mut self, segment: SegmentId, copy: ExtentCopy, repair: bool, ticket: Ticket) {
        let Some(replica) = self.map.replicas.get(&segment).filter(|replica| !replica.dropping) else {
            tracing::debug!(%segment, "a copy for a replica that is not here is dropped");
            return;
        };
        let sound = copy.blocks.is_well_formed() && copy.blocks.count() == copy.present.count_ones();
        if !sound || copy.extent.0 >= replica.meta.config.extents {
            tracing::warn!(%segment, extent = %copy.extent, "a malformed copy is dropped");
            return;
        }
        let life = replica.life;
        self.copies.waiting.push_back(Waiting { segment, life, copy, repair, ticket });
    }

    pub(crate) fn start_copies(&mut self) {
        // Map records are small, and come in like other changes.
        while !self.copies.waiting.is_empty()
            && !self.wal.ring.is_above(CHANGES_TO)
            && self.landings.copies() + self.copies.mapping.len() < COPY_IN_INFLIGHT
        {
            let Some(waiting) = self.copies.waiting.pop_front() else { break };
            if let Some(later) = self.start_copy(waiting) {
                // A checkpoint is under way to free slabs.
                self.copies.waiting.push_front(later);
                break;
            }
        }
    }

    /// Gives it back when there is no slab.
    fn start_copy(&mut self, waiting: Waiting) -> Option<Waiting> {
        let Waiting { segment, life, copy, repair, ticket } = &waiting;
        let replica = self.map.replicas.get(segment).filter(|replica| replica.life == *life && !replica.dropping)?;
        let stamp = if *repair { replica.extents.home(copy.extent).stamp } else { replica.full_stamp(copy.extent) };
        if stamp > copy.stamp || stamp == copy.stamp && !repair {
            self.events.push(Event::CopiedIn(*ticket));
            return None;
        }
        let incarnation = replica.meta.config.incarnation;
        let slab = if copy.present == 0 { None } else { self.take_slab() };
        if slab.is_none() && copy.present != 0 {
            return Some(waiting);
        }
        let mut sums = Box::new([0; EXTENT_BLOCKS as usize]);
        let present = (0..EXTENT_BLOCKS).filter(|block| copy.present & (1 << block) != 0);
        for (at, block) in (0..).zip(present) {
            sums[block as usize] = copy.blocks.sum(at);
        }
        let (extent, stamp, present, repair) = (copy.extent, copy.stamp, copy.present, *repair);
        let record = MapRecord { segment: *segment, incarnation, extent, stamp, repair, slab, present, sums };
        let job = CopyJob { segment: *segment, life: *life, ticket: *ticket, record };
        match slab {
            None => self.map_copy(job),
            Some(slab) => {
                let mut data = waiting.copy.blocks.data.clone();
                let runs: Vec<(u32, Bytes)> =
                    runs(present).map(|(first, end)| (first, data.split_to((end - first) as usize * BLOCK))).collect();
                self.land_copy(job, slab, runs);
            }
        }
        None
    }

    /// The data is durable: now the record that points to it.
    pub(crate) fn map_copy(&mut self, job: CopyJob) {
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
        self.forget_damage(segment, extent);
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
