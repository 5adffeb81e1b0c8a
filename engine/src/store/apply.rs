//! Apply: committed entries go from the log to their extents' homes, everything an extent has waiting at once (I4).
//!
//! A pass first makes the commit points it will use durable, then goes once through all extents that have something,
//! in order: blocks written many times meanwhile are written once. Slabs are written in place: until the next checkpoint
//! the WAL still holds every block a pass may have torn.
//!
//! How much of it begins follows from what comes into the ring: as much at first, and the fuller the ring, the more. Under
//! a steady load the ring so settles where as much leaves as comes, and apply is a little work beside each batch instead of a
//! burst that everybody waits behind. When nobody writes, or changes have to slow down, it goes on as fast as it can.

use std::collections::{BTreeSet, HashMap};

use engine_core::ids::{ExtentIndex, SegmentId, Seq};
use engine_core::limits::{
    APPLY_DUE_MAX, APPLY_INFLIGHT, APPLY_PACE_MAX, APPLY_PACE_MIN, APPLY_WRITE_COST, APPLY_WRITES_MAX, BLOCK_SIZE,
    EXTENT_BLOCKS,
};

use super::copy::runs;
use super::extents::{Home, NO_SLAB};
use super::format::WalRecord;
use super::ledger::NewSums;
use super::replica::{Composed, Replica};
use super::shard::{Purpose, ShardStore, aligned};
use super::wal::{APPLY_FROM, Queued, SLOW_FROM};
use crate::device::{Device, Operation};

#[derive(Debug)]
struct Job {
    segment: SegmentId,
    life: u64,
    extent: ExtentIndex,
    /// The home it started from: another one by now means that a copy came between.
    old: Home,
    home: Home,
    sums: NewSums,
    left: usize,
}

impl Job {
    /// The slab that was taken for this.
    fn fresh(&self) -> Option<u32> {
        self.home.slab().filter(|slab| *slab != self.old.slab)
    }
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
    jobs: HashMap<u64, Job>,
    /// Writes in flight for all of them.
    writes: usize,
    /// Bytes of the ring that are to be applied now, because so many came in; what an extent took beyond is made up for ([`ShardStore::pace_apply`]).
    due: i64,
    extents: BTreeSet<(SegmentId, ExtentIndex)>,
    next: u64,
    /// The batch that was next when the pass began, and when the last whole one did: what committed entries were before
    /// that are applied.
    from: u64,
    pub(crate) passed: u64,
}

impl Apply {
    pub(crate) fn is_idle(&self) -> bool {
        self.phase == Phase::Idle && self.jobs.is_empty()
    }

    /// A commit point is durable.
    pub(crate) fn on_commit_point(&mut self) {
        if let Phase::Committing(left) = &mut self.phase {
            *left = left.saturating_sub(1);
        }
    }

    /// Slabs taken and not in the map yet.
    pub(crate) fn fresh_slabs(&self) -> impl Iterator<Item = u32> + '_ {
        self.jobs.values().filter_map(Job::fresh)
    }
}

impl<D: Device> ShardStore<D> {
    pub(crate) fn start_applies(&mut self, idle: bool) {
        if self.apply.phase == Phase::Idle {
            let due = idle || self.settling || self.wal.ring.is_above(APPLY_FROM) || self.wal.blocked;
            if self.map.dirty == 0 || !due {
                return;
            }
            (self.apply.from, self.apply.due) = (self.wal.ring.number, 0);
            self.apply.phase = Phase::Committing(self.commit_points());
        }
        if self.apply.phase == Phase::Committing(0) {
            self.apply.phase = Phase::Passing(SegmentId::from_u64(0), ExtentIndex(0));
        }
        let at_once = idle || self.settling || self.wal.blocked || self.wal.ring.is_above(SLOW_FROM);
        while let Phase::Passing(segment, extent) = self.apply.phase
            && self.apply.jobs.len() < APPLY_INFLIGHT
            && self.apply.writes < APPLY_WRITES_MAX
            && (at_once || self.apply.due > 0)
        {
            let Some((segment, extent)) = self.next_dirty(segment, extent) else {
                if self.apply.jobs.is_empty() {
                    (self.apply.phase, self.apply.passed) = (Phase::Idle, self.apply.from);
                }
                break;
            };
            if !self.apply_extent(segment, extent) {
                break;
            }
            self.apply.phase = Phase::Passing(segment, extent.next());
        }
        self.keep_books();
    }

    /// So many bytes came into the ring: some of what is in it is due to be applied. The fuller the ring, the more.
    pub(crate) fn pace_apply(&mut self, came: u64) {
        let ring = &self.wal.ring;
        let (from, to) = (ring.size / 32 * APPLY_FROM, ring.size / 32 * SLOW_FROM);
        let above = ring.used().saturating_sub(from).min(to - from) / BLOCK_SIZE;
        let pace = APPLY_PACE_MIN + (APPLY_PACE_MAX - APPLY_PACE_MIN) * above / ((to - from) / BLOCK_SIZE);
        let more = i64::try_from(came * pace / 16).unwrap_or(i64::MAX);
        self.apply.due = self.apply.due.saturating_add(more).min(APPLY_DUE_MAX.max(more));
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
        if self.map.dirty == 0 {
            return None;
        }
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
        let old = replica.extents.home(extent);
        let (present, written, mut sums) = merge(replica, old, &composed, extent);
        let writes = runs(written).count() as u64;
        let cost = i64::try_from(composed.cost.max(writes * APPLY_WRITE_COST)).unwrap_or(i64::MAX);
        self.apply.due = self.apply.due.saturating_sub(cost).max(-APPLY_DUE_MAX);
        let (life, through) = (replica.life, composed.through);
        let slab = match old.slab() {
            _ if present == 0 => NO_SLAB,
            Some(slab) => slab,
            None => match self.take_slab() {
                None => return false,
                Some(taken) => taken,
            },
        };
        if slab != old.slab {
            // What a former owner left behind counts for nothing; what is lost stays so (no checksum fits).
            sums.known = u32::MAX;
        }
        sums.slab = slab;
        let home = Home { stamp: through, slab, present };
        let mut job = Job { segment, life, extent, old, home, sums, left: 0 };
        let id = self.apply.next;
        self.apply.next += 1;
        if slab != NO_SLAB {
            for (first, end) in runs(written) {
                let replica = &self.map.replicas[&segment];
                let pieces: Vec<&[u8]> =
                    (first..end).filter_map(|block| piece(replica, &composed, extent, block)).collect();
                let (offset, buffer) = (self.block_at(slab, first), aligned(&pieces));
                self.submit(Purpose::Apply { job: id, slab }, Operation::Write { offset, buffer, durable: false });
                job.left += 1;
                self.apply.writes += 1;
            }
        }
        if job.left == 0 {
            self.finish_apply(&job);
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
        self.apply.writes -= 1;
        job.left -= 1;
        if job.left == 0
            && let Some(job) = self.apply.jobs.remove(&id)
        {
            self.apply.extents.remove(&(job.segment, job.extent));
            self.finish_apply(&job);
            self.keep_books();
        }
    }

    fn finish_apply(&mut self, job: &Job) {
        let replica = self.map.replicas.get(&job.segment).filter(|replica| replica.life == job.life);
        if replica.is_some_and(|replica| replica.extents.home(job.extent) == job.old) {
            if job.home.slab != NO_SLAB {
                self.sums.set(&job.sums);
            }
            self.map.rehome(job.segment, job.extent, job.home);
        } else {
            // A copy came between, or the replica is gone: what was written is pointed to by nothing.
            self.map.ledger.slabs.extend(job.fresh());
        }
    }
}

fn piece<'a>(replica: &'a Replica, composed: &Composed, extent: ExtentIndex, block: u32) -> Option<&'a [u8]> {
    let seq = composed.blocks[block as usize]??;
    replica.written(seq, extent.0 * EXTENT_BLOCKS + block).map(|(data, ..)| data)
}

/// The extent's new presence map, the blocks to write, and the new checksums.
fn merge(replica: &Replica, old: Home, composed: &Composed, extent: ExtentIndex) -> (u32, u32, NewSums) {
    let (mut present, mut new) =
        (old.present, NewSums { slab: NO_SLAB, batch: 0, known: 0, sums: [0; EXTENT_BLOCKS as usize] });
    for (block, becomes) in (0..EXTENT_BLOCKS).zip(&composed.blocks) {
        match becomes {
            None => {}
            Some(None) => present &= !(1 << block),
            Some(Some(seq)) => {
                present |= 1 << block;
                new.known |= 1 << block;
                let written = replica.written(*seq, extent.0 * EXTENT_BLOCKS + block);
                new.sums[block as usize] = written.map_or(0, |(_, sum, _)| sum);
            }
        }
    }
    (present, new.known, new)
}
