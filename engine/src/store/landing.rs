//! Data that goes to fresh slabs before a record names them: large writes (the redirect path) and copies.
//!
//! Nothing points to such a slab yet, so its data is written once, where it will stay. One flush, shared by all that
//! was written meanwhile, makes it durable; only then is the record queued, or let go, that names it (I4).

use std::collections::HashMap;

use bytes::Bytes;
use engine_core::ids::{ExtentIndex, SegmentId, Seq};
use engine_core::limits::{EXTENT_BLOCKS, EXTENT_SIZE, LANDING_INFLIGHT, REDIRECT_BYTES_MIN};

use super::copy::CopyJob;
use super::entry::{Kind, Write};
use super::format::WalRecord;
use super::log::is_aligned;
use super::read::BLOCK;
use super::shard::{Purpose, ShardStore, aligned};
use crate::device::{Device, Operation};

/// What is being written.
#[derive(Debug)]
enum Landing {
    /// For a queued persist that waits under this number.
    Persist(u64),
    Copy(Box<CopyJob>),
}

/// See the module.
#[derive(Debug, Default)]
pub(crate) struct Landings {
    jobs: HashMap<u64, (usize, Landing)>,
    next: u64,
    /// Written, not flushed.
    written: Vec<Landing>,
    /// Being flushed.
    flushing: Vec<Landing>,
    /// Slabs of persists that are queued.
    redirected: HashMap<u64, Vec<u32>>,
}

impl Landings {
    pub(crate) fn is_idle(&self) -> bool {
        self.jobs.is_empty() && self.written.is_empty() && self.flushing.is_empty()
    }

    /// Slabs nothing points to yet.
    pub(crate) fn slabs(&self) -> impl Iterator<Item = u32> + '_ {
        let copies = self.jobs.values().map(|(_, landing)| landing).chain(&self.written).chain(&self.flushing);
        copies.filter_map(|landing| match landing {
            Landing::Copy(job) => job.record.slab,
            Landing::Persist(_) => None,
        })
    }

    /// Copies under way.
    pub(crate) fn copies(&self) -> usize {
        let all = self.jobs.values().map(|(_, landing)| landing).chain(&self.written).chain(&self.flushing);
        all.filter(|landing| matches!(landing, Landing::Copy(_))).count()
    }
}

impl<D: Device> ShardStore<D> {
    /// Sends whole extents of large writes to slabs of their own, as far as there are slabs to spare. The number under
    /// which the persist waits for them.
    pub(crate) fn redirect(&mut self, records: &mut [WalRecord]) -> Option<u64> {
        let mut landing = None;
        for record in records {
            let WalRecord::Entry { segment, seq, entry, .. } = record else { continue };
            let Kind::Write(write) = &mut entry.kind else { continue };
            if u64::from(write.count) * BLOCK as u64 >= REDIRECT_BYTES_MIN && self.may_redirect(*segment, *seq) {
                self.redirect_write(write, &mut landing);
            }
        }
        landing
    }

    /// A change that was here before goes through the WAL: which of its two slabs counts would depend on the past.
    fn may_redirect(&self, segment: SegmentId, seq: Seq) -> bool {
        self.map.replicas.get(&segment).is_some_and(|replica| seq > replica.last && !replica.dropping)
    }

    fn redirect_write(&mut self, write: &mut Write, landing: &mut Option<u64>) {
        let first = write.block.0.div_ceil(EXTENT_BLOCKS);
        let end = (write.block.0 + write.count) / EXTENT_BLOCKS;
        let extents = end.saturating_sub(first);
        if extents == 0 || !self.has_slabs_to_spare(extents) {
            return;
        }
        let id = *landing.get_or_insert_with(|| {
            self.landings.next += 1;
            self.landings.next
        });
        let at = (first * EXTENT_BLOCKS - write.block.0) as usize * BLOCK;
        #[allow(clippy::cast_possible_truncation)] // 128 KiB
        let len = EXTENT_SIZE as usize;
        for extent in first..end {
            let Some(slab) = self.slabs.take() else { break };
            let from = at + (extent - first) as usize * len;
            write.slabs.push((ExtentIndex(extent), slab));
            self.landings.redirected.entry(id).or_default().push(slab);
            self.land(id, || Landing::Persist(id), slab, 0, write.data.slice(from..from + len));
        }
        #[allow(clippy::cast_possible_truncation)] // at most a few
        let behind = at + write.slabs.len() * len;
        write.data = match (at, write.data.len() - behind) {
            (_, 0) => write.data.slice(..at),
            (0, _) => write.data.slice(behind..),
            _ => [&write.data[..at], &write.data[behind..]].concat().into(),
        };
    }

    /// Enough for what must always go on: applying to extents that have no slab, and copies (I13).
    fn has_slabs_to_spare(&self, extents: u32) -> bool {
        let scratch = u64::from(self.region.scratch);
        let held = self.map.ledger.redirected + self.landings.redirected.values().map(|s| s.len() as u64).sum::<u64>();
        held + u64::from(extents) <= scratch / 2
            && self.slabs.free() as u64 > scratch / 2 + u64::from(extents)
            && self.landings.jobs.len() < LANDING_INFLIGHT
    }

    /// Writes blocks of a slab from `block` on.
    fn land(&mut self, id: u64, landing: impl FnOnce() -> Landing, slab: u32, block: u32, data: Bytes) {
        self.landings.jobs.entry(id).or_insert_with(|| (0, landing())).0 += 1;
        let offset = self.block_at(slab, block);
        let operation = if is_aligned(&data) {
            Operation::WriteVectored { offset, buffer: None, pieces: vec![data], durable: false }
        } else {
            Operation::Write { offset, buffer: aligned(&[&data]), durable: false }
        };
        self.submit(Purpose::Land { job: id, slab }, operation);
    }

    /// Writes a copy's data. The runs are first block, and bytes.
    pub(crate) fn land_copy(&mut self, job: CopyJob, slab: u32, runs: Vec<(u32, Bytes)>) {
        self.landings.next += 1;
        let id = self.landings.next;
        let mut job = Some(Landing::Copy(Box::new(job)));
        for (block, data) in runs {
            self.land(id, || job.take().expect("asked for once"), slab, block, data);
        }
    }

    pub(crate) fn on_landed(&mut self, id: u64) {
        let Some((left, _)) = self.landings.jobs.get_mut(&id) else { return };
        *left -= 1;
        if *left == 0
            && let Some((_, landing)) = self.landings.jobs.remove(&id)
        {
            self.landings.written.push(landing);
        }
    }

    /// One flush at a time; what is written meanwhile goes with the next.
    pub(crate) fn flush_landings(&mut self) {
        if self.landings.flushing.is_empty() && !self.landings.written.is_empty() {
            self.landings.flushing = std::mem::take(&mut self.landings.written);
            self.submit(Purpose::Landed, Operation::Flush);
        }
    }

    pub(crate) fn on_landings_flushed(&mut self) {
        for landing in std::mem::take(&mut self.landings.flushing) {
            match landing {
                Landing::Persist(id) => self.wal.landed(id),
                Landing::Copy(job) => self.map_copy(*job),
            }
        }
    }

    /// The persist that waited under this number is durable: its slabs are its entries' now.
    pub(crate) fn forget_landing(&mut self, id: u64) {
        self.landings.redirected.remove(&id);
    }

    /// Slabs of persists that are queued or in flight.
    pub(crate) fn redirected_slabs(&self) -> impl Iterator<Item = u32> + '_ {
        self.landings.redirected.values().flatten().copied()
    }
}
