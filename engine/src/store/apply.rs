//! Apply: committed entries go from the log to their extents' homes, everything an extent has waiting at once (I4).
//!
//! A pass first makes the commit points it will use durable, then goes once through all extents that have something.
//! Slabs are written in place: until the next checkpoint the WAL still holds every block a pass may have torn.

use std::collections::{BTreeMap, BTreeSet};

use engine_core::ids::{ExtentIndex, SegmentId, Seq};
use engine_core::limits::APPLY_INFLIGHT;
use engine_core::record::{Blocks, Change};

use super::copy::runs;
use super::format::WalRecord;
use super::map::{Composed, Extent, Replica, Sums};
use super::shard::{Purpose, ShardStore, aligned};
use super::wal::Queued;
use crate::device::{Device, Operation};

#[derive(Debug)]
struct Job {
    segment: SegmentId,
    life: u64,
    extent: ExtentIndex,
    /// Version of the home it started from: another one means that a copy came between.
    version: u32,
    home: Extent,
    /// The slab was taken for this.
    fresh: bool,
    left: usize,
}

/// Where a pass stands.
#[derive(Debug, Default, Clone, Copy, PartialEq, Eq)]
enum Phase {
    #[default]
    Idle,
    /// So many of its commit points are queued and not durable.
    Committing(usize),
    /// At this extent or behind it.
    Passing(SegmentId, ExtentIndex),
}

/// What is being applied.
#[derive(Debug, Default)]
pub(crate) struct Apply {
    phase: Phase,
    jobs: BTreeMap<u64, Job>,
    extents: BTreeSet<(SegmentId, ExtentIndex)>,
    next: u64,
}

impl Apply {
    pub(crate) fn is_idle(&self) -> bool {
        self.phase == Phase::Idle && self.jobs.is_empty()
    }

    /// A commit point is durable.
    pub(crate) fn on_commit_point(&mut self) {
        if let Phase::Committing(left) = &mut self.phase {
            *left -= 1;
        }
    }

    /// Slabs taken and not in the map yet.
    pub(crate) fn fresh_slabs(&self) -> impl Iterator<Item = u32> + '_ {
        self.jobs.values().filter(|job| job.fresh).filter_map(|job| job.home.slab)
    }
}

impl<D: Device> ShardStore<D> {
    pub(crate) fn start_applies(&mut self, idle: bool) {
        if self.apply.phase == Phase::Idle {
            let ring = &self.wal.ring;
            let due = idle
                || self.settling
                || ring.since > ring.size / 8
                || self.wal.is_blocked(self.map.log_bytes)
                || self.wal.is_tight(self.map.log_bytes);
            if self.map.dirty == 0 || !due {
                return;
            }
            self.apply.phase = Phase::Committing(self.commit_points());
        }
        if self.apply.phase == Phase::Committing(0) {
            self.apply.phase = Phase::Passing(SegmentId::from_u64(0), ExtentIndex(0));
        }
        while let Phase::Passing(segment, extent) = self.apply.phase
            && self.apply.jobs.len() < APPLY_INFLIGHT
        {
            let Some((segment, extent)) = self.next_dirty(segment, extent) else {
                self.apply.phase = Phase::Idle;
                break;
            };
            if !self.apply_extent(segment, extent) {
                break;
            }
            self.apply.phase = Phase::Passing(segment, extent.next());
        }
    }

    /// Queues the commit points that the WAL does not know yet, in one go; says how many.
    fn commit_points(&mut self) -> usize {
        #[cfg(test)]
        if super::tests::mistake(super::tests::Mistake::ApplyBeforeCommit) {
            return 0;
        }
        let dirty = self.map.replicas.iter().filter(|(_, replica)| {
            !replica.overlay.is_empty() && replica.durable_commit < replica.commit && !replica.dropping
        });
        let records: Vec<_> =
            dirty.map(|(segment, replica)| WalRecord::Commit { segment: *segment, through: replica.commit }).collect();
        // One record is 17 bytes; several batches where there are very many.
        for chunk in records.chunks(1024) {
            self.wal.own.push_back(Queued::new(chunk.to_vec(), None));
        }
        records.len()
    }

    fn next_dirty(&self, segment: SegmentId, extent: ExtentIndex) -> Option<(SegmentId, ExtentIndex)> {
        self.map.replicas.range(segment..).find_map(|(at, replica)| {
            let from = if *at == segment { extent } else { ExtentIndex(0) };
            replica.overlay.range(from..).next().map(|(extent, _)| (*at, *extent))
        })
    }

    /// Starts one extent. False: no slab is free, come again.
    fn apply_extent(&mut self, segment: SegmentId, extent: ExtentIndex) -> bool {
        let replica = &self.map.replicas[&segment];
        if replica.dropping || self.apply.extents.contains(&(segment, extent)) {
            return true;
        }
        let Some(composed) = replica.compose(extent, self.apply_bound(replica)) else { return true };
        let old = replica.extents.get(&extent).cloned().unwrap_or_default();
        let (present, written, sums) = merge(replica, &old, &composed);
        let (life, through, version) = (replica.life, composed.through, old.version);
        let slab = match old.slab {
            _ if present == 0 => None,
            Some(slab) => Some(slab),
            None => match self.take_slab() {
                None => return false,
                taken => taken,
            },
        };
        let fresh = slab.is_some() && old.slab.is_none();
        let home = Extent::home(through, slab, present, Box::new(sums));
        let mut job = Job { segment, life, extent, version, home, fresh, left: 0 };
        let id = self.apply.next;
        self.apply.next += 1;
        if let Some(slab) = slab {
            for (first, end) in runs(written) {
                let replica = &self.map.replicas[&segment];
                let pieces: Vec<&[u8]> = (first..end).filter_map(|block| piece(replica, &composed, block)).collect();
                let (offset, buffer) = (self.block_at(slab, first), aligned(&pieces));
                self.submit(Purpose::Apply { job: id, slab }, Operation::Write { offset, buffer, durable: false });
                job.left += 1;
            }
        }
        if job.left == 0 {
            self.finish_apply(job);
        } else {
            self.apply.extents.insert((segment, extent));
            self.apply.jobs.insert(id, job);
        }
        true
    }

    /// Home changes only at or below a commit point that is durable (I4).
    fn apply_bound(&self, replica: &Replica) -> Seq {
        #[cfg(test)]
        if super::tests::mistake(super::tests::Mistake::ApplyBeforeCommit) {
            return Seq(u64::MAX);
        }
        replica.bound()
    }

    pub(crate) fn on_applied(&mut self, id: u64) {
        let Some(job) = self.apply.jobs.get_mut(&id) else { return };
        job.left -= 1;
        if job.left == 0
            && let Some(job) = self.apply.jobs.remove(&id)
        {
            self.apply.extents.remove(&(job.segment, job.extent));
            self.finish_apply(job);
        }
    }

    fn finish_apply(&mut self, job: Job) {
        let replica = self.map.replicas.get(&job.segment).filter(|replica| replica.life == job.life);
        let version = replica.map(|replica| replica.extents.get(&job.extent).map_or(0, |home| home.version));
        if version == Some(job.version) {
            self.map.rehome(job.segment, job.extent, job.home);
        } else if job.fresh {
            // A copy came between, or the replica is gone: what was written is pointed to by nothing.
            self.map.freed.extend(job.home.slab);
        }
    }
}

fn write_of(replica: &Replica, seq: Seq) -> Option<&Blocks> {
    match &replica.log.get(&seq)?.entry.change {
        Change::Write { blocks, .. } => Some(blocks),
        Change::Zero { .. } | Change::Nothing => None,
    }
}

fn piece<'a>(replica: &'a Replica, composed: &Composed, block: u32) -> Option<&'a [u8]> {
    let (seq, at) = composed.blocks[block as usize]??;
    write_of(replica, seq)?.data.get(at as usize * 4096..at as usize * 4096 + 4096)
}

/// The extent's new presence map, the blocks to write, and the new checksums.
fn merge(replica: &Replica, old: &Extent, composed: &Composed) -> (u32, u32, Sums) {
    let (mut present, mut written, mut sums) = (old.present, 0, old.sums());
    for (block, (becomes, sum)) in composed.blocks.iter().zip(&mut sums).enumerate() {
        match *becomes {
            None => {}
            Some(None) => {
                present &= !(1 << block);
                *sum = 0;
            }
            Some(Some((seq, at))) => {
                present |= 1 << block;
                written |= 1 << block;
                *sum = write_of(replica, seq).map_or(0, |blocks| blocks.sum(at));
            }
        }
    }
    (present, written, sums)
}
