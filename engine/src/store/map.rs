//! What a shard holds, in memory: all its replicas, and what a durable record changes of them.
//!
//! Every change of a replica goes through [`Map::with`], which keeps the totals of all replicas right.

use std::collections::BTreeMap;

use engine_core::ids::{ExtentIndex, SegmentId, Seq};
use engine_core::record::{Record, Standing};

use super::extents::{Extents, Home, NO_SLAB};
use super::format::{MapRecord, WalRecord};
use super::ledger::{Ledger, NewSums};
use super::replica::Replica;

/// All replicas of a shard.
#[derive(Debug, Default)]
pub(crate) struct Map {
    pub(crate) replicas: BTreeMap<SegmentId, Replica>,
    pub(crate) ledger: Ledger,
    /// Extents with something to apply.
    pub(crate) dirty: usize,
    /// Extents booked by the replicas.
    pub(crate) booked: u64,
    /// Bytes of the ring taken by entries above their replicas' commit points.
    pub(crate) unresolved: u64,
    lives: u64,
}

impl Map {
    /// Changes a replica and keeps the totals right.
    pub(crate) fn with<R>(
        &mut self,
        segment: SegmentId,
        change: impl FnOnce(&mut Replica, &mut Ledger) -> R,
    ) -> Option<R> {
        let replica = self.replicas.get_mut(&segment)?;
        let (dirty, unresolved) = (replica.overlay.len(), replica.unresolved);
        let result = change(replica, &mut self.ledger);
        self.dirty = self.dirty + replica.overlay.len() - dirty;
        self.unresolved = self.unresolved + replica.unresolved - unresolved;
        Some(result)
    }

    /// Gives an extent a new home.
    pub(crate) fn rehome(&mut self, segment: SegmentId, extent: ExtentIndex, home: Home) {
        self.with(segment, |replica, ledger| replica.rehome(extent, home, ledger));
    }

    fn forget(&mut self, segment: SegmentId) {
        self.with(segment, Replica::clear);
        if let Some(replica) = self.replicas.remove(&segment) {
            self.booked -= u64::from(replica.meta.config.extents);
            self.ledger.slabs.extend(replica.slabs());
            self.ledger.pages.extend(replica.extents.chunks().filter_map(|(_, chunk)| Some(chunk.page?.0)));
        }
    }

    /// Takes in a durable record of batch `batch`, which takes about `cost` bytes of the ring. Records of replicas that
    /// are not here any more change nothing.
    pub(crate) fn absorb(&mut self, record: WalRecord, batch: u64, cost: u64) {
        match record {
            WalRecord::Core(record) => self.absorb_core(record),
            WalRecord::Entry { segment, entry, .. } if !self.replicas.contains_key(&segment) => {
                self.ledger.slabs.extend(entry.slabs().iter().map(|(_, slab)| *slab));
            }
            WalRecord::Entry { segment, commit, seq, entry } => {
                self.with(segment, |replica, ledger| {
                    replica.durable_commit = replica.durable_commit.max(commit);
                    replica.insert(seq, entry, batch, cost, ledger);
                    replica.release(Seq(seq.0.saturating_sub(1)), ledger);
                });
            }
            WalRecord::Commit { segment, through } => {
                self.with(segment, |replica, _| replica.durable_commit = replica.durable_commit.max(through));
            }
            WalRecord::Map(map) => self.absorb_map(&map, batch),
            WalRecord::Damaged { segment } => {
                self.with(segment, |replica, _| replica.damaged = true);
            }
        }
    }

    fn absorb_core(&mut self, record: Record) {
        match record {
            Record::Create { segment, meta } => {
                self.forget(segment);
                self.lives += 1;
                self.booked += u64::from(meta.config.extents);
                let mut replica = Replica::recovered(meta, false, Seq(0), Extents::default());
                replica.life = self.lives;
                self.replicas.insert(segment, replica);
            }
            Record::State { segment, meta } => {
                self.with(segment, |replica, _| {
                    if let Standing::Joining { base } = meta.standing {
                        // A durable word that everything up to there is committed, and that all of it is here.
                        replica.durable_commit = replica.durable_commit.max(base);
                        replica.extents.forget_lost();
                    }
                    replica.meta = meta;
                    // The core knows of the damage and says now what this replica is.
                    replica.damaged = false;
                });
            }
            Record::Prepare { .. } => unreachable!("a prepared change is made an entry first"),
            Record::Truncate { segment, above } => {
                self.with(segment, |replica, ledger| {
                    replica.truncate(above, ledger);
                    replica.release(above, ledger);
                });
            }
            Record::Drop { segment, incarnation } => {
                let matches = |replica: &Replica| replica.meta.config.incarnation == incarnation;
                if self.replicas.get(&segment).is_some_and(matches) {
                    self.forget(segment);
                }
            }
        }
    }

    /// A record of a batch the checkpoint has: all it still says is what the log may hold. A drop needs no word: either
    /// the checkpoint does not know the replica, or a create follows.
    pub(crate) fn absorb_old(&mut self, record: WalRecord, batch: u64, cost: u64) {
        match record {
            WalRecord::Entry { segment, seq, entry, .. } => {
                self.with(segment, |replica, ledger| replica.insert(seq, entry, batch, cost, ledger));
            }
            WalRecord::Core(Record::Truncate { segment, above }) => {
                self.with(segment, |replica, ledger| replica.truncate(above, ledger));
            }
            WalRecord::Core(Record::Create { segment, .. }) => {
                self.with(segment, |replica, ledger| replica.truncate(Seq(0), ledger));
            }
            WalRecord::Core(_) | WalRecord::Commit { .. } | WalRecord::Map(_) | WalRecord::Damaged { .. } => {}
        }
    }

    /// An entry's record was written again in `batch`.
    pub(crate) fn moved(&mut self, segment: SegmentId, seq: Seq, batch: u64) {
        self.with(segment, |replica, ledger| replica.moved(seq, batch, ledger));
    }

    /// A copy is in place, unless what is here is as new: then its slab is given up.
    fn absorb_map(&mut self, map: &MapRecord, batch: u64) {
        let wanted = self.replicas.get(&map.segment).is_some_and(|replica| {
            let stamp = replica.extents.home(map.extent).stamp;
            replica.meta.config.incarnation == map.incarnation
                && map.extent.0 < replica.meta.config.extents
                && (stamp < map.stamp || map.repair && stamp == map.stamp)
        });
        if !wanted {
            return self.ledger.slabs.extend(map.slab);
        }
        if let Some(slab) = map.slab {
            self.ledger.sums.push(NewSums { slab, batch, known: u32::MAX, sums: *map.sums });
        }
        let home = Home { stamp: map.stamp, slab: map.slab.unwrap_or(NO_SLAB), present: map.present };
        self.rehome(map.segment, map.extent, home);
    }

    /// After everything on the device was read: commit points count now, and what they cover is shown.
    pub(crate) fn finish_recovery(&mut self) {
        for segment in self.replicas.keys().copied().collect::<Vec<_>>() {
            self.lives += 1;
            let life = self.lives;
            self.with(segment, |replica, ledger| {
                replica.begin(life, ledger);
            });
        }
        // Entries were shown only now, copies while the WAL was read. A slab may have been an entry's, and after an
        // earlier start a copy's: what the later record says of it counts.
        self.ledger.sums.sort_by_key(|new| new.batch);
    }

    /// Every slab in use.
    pub(crate) fn slabs(&self) -> impl Iterator<Item = u32> + '_ {
        self.replicas.values().flat_map(Replica::slabs)
    }
}
