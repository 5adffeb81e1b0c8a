//! What a shard holds, in memory: each replica's state, its log, and where each extent's data is.
//!
//! An entry lives in its replica's `log` from the moment it is durable until every extent it touches has it. Committed
//! entries are also in `overlay`, by extent: reads look there first and see nothing above the commit point, apply takes
//! its work from there. An entry changes an extent only when it is above the extent's stamp: a copy that came later
//! already holds it. A slab of an entry becomes its extent's home the moment the entry is committed: nothing on the
//! device changes by that, and the next checkpoint says it together with the commit point (I4).

use std::collections::BTreeMap;

use engine_core::ids::{BlockIndex, ExtentIndex, SegmentId, Seq};
use engine_core::limits::EXTENT_BLOCKS;
use engine_core::record::{Meta, Record, Standing};

use super::entry::{Kind, LogEntry, Place, Write};
use super::extents::{Extents, Home, NO_SLAB};
use super::format::{MapRecord, WalRecord};
use super::ledger::{Ledger, NewSums};

const BLOCKS: usize = EXTENT_BLOCKS as usize;

/// Committed entries of one extent that its home does not have.
#[derive(Debug, Default)]
pub(crate) struct Overlay {
    /// In order.
    seqs: Vec<Seq>,
    /// By block: the last of them that touches it; 0 is none.
    latest: [u64; BLOCKS],
    /// It holds data and its extent has no slab yet.
    fresh: bool,
}

/// An entry of the log.
#[derive(Debug)]
pub(crate) struct Logged {
    pub(crate) entry: LogEntry,
    /// Its newest record is in this batch, and takes about so many bytes of the ring.
    pub(crate) batch: u64,
    pub(crate) cost: u64,
    /// Committed, and shown to reads: its slabs are not its own any more.
    shown: bool,
    /// In how many overlays it is.
    left: u32,
}

/// Where a block's committed content is.
pub(crate) enum Source<'a> {
    /// Nowhere: zeros.
    Zero,
    /// In the log: the bytes, and their checksum; `true` when they must be looked at before they are believed.
    Log(&'a [u8], u32, bool),
    /// In this slab, the extent's home.
    Home(u32),
    /// Unknown: the map page that said where is damaged.
    Lost,
}

/// What applying brings to an extent.
pub(crate) struct Composed {
    /// Last entry in it.
    pub(crate) through: Seq,
    /// By block: what it becomes. Outer `None`: unchanged; inner `None`: zeros.
    pub(crate) blocks: [Option<Option<Seq>>; BLOCKS],
}

/// One replica.
#[derive(Debug)]
pub(crate) struct Replica {
    /// Tells this replica from an earlier one of the same segment.
    pub(crate) life: u64,
    pub(crate) meta: Meta,
    pub(crate) damaged: bool,
    /// Its drop is queued: nothing more is written for it.
    pub(crate) dropping: bool,
    /// As told by the core, as far as nothing queued may still replace entries below (`held`).
    pub(crate) commit: Seq,
    /// As told by the core.
    told: Seq,
    /// Floors of queued records: the commit point waits below entries that are not durable yet, because the log may
    /// still hold what they replace. With their number.
    held: BTreeMap<Seq, u32>,
    /// As the WAL knows it. Applied is at most the lower of the two (I4).
    pub(crate) durable_commit: Seq,
    pub(crate) log: BTreeMap<Seq, Logged>,
    /// Boxed: what a lookup passes by stays small.
    pub(crate) overlay: BTreeMap<ExtentIndex, Box<Overlay>>,
    /// How many of them are fresh.
    fresh: u64,
    pub(crate) extents: Extents,
    /// The highest entry ever queued: only what is above goes to slabs of its own.
    pub(crate) last: Seq,
    /// Bytes of the ring its entries above the commit point take.
    pub(crate) unresolved: u64,
}

impl Replica {
    /// As a checkpoint has it: nothing is shown as committed before the whole WAL was read.
    pub(crate) fn recovered(meta: Meta, damaged: bool, commit: Seq, extents: Extents) -> Self {
        Self {
            life: 0,
            meta,
            damaged,
            dropping: false,
            commit: Seq(0),
            told: Seq(0),
            held: BTreeMap::new(),
            durable_commit: commit,
            log: BTreeMap::new(),
            overlay: BTreeMap::new(),
            fresh: 0,
            extents,
            last: Seq(0),
            unresolved: 0,
        }
    }

    /// The highest committed change that touched the extent, applied or not.
    pub(crate) fn full_stamp(&self, extent: ExtentIndex) -> Seq {
        let above = self.overlay.get(&extent).and_then(|overlay| overlay.seqs.last().copied());
        above.unwrap_or_default().max(self.extents.home(extent).stamp)
    }

    fn insert(&mut self, seq: Seq, entry: LogEntry, batch: u64, cost: u64, ledger: &mut Ledger) {
        if let Some(known) = self.log.get_mut(&seq) {
            if known.shown && known.entry.kind == entry.kind {
                // Proposed again by a later epoch.
                known.entry.epoch = entry.epoch;
                return;
            }
            // The later record counts, here as when the WAL is read again.
            self.remove(seq, ledger);
        }
        self.last = self.last.max(seq);
        self.unresolved += cost;
        ledger.redirected += entry.slabs().len() as u64;
        ledger.batches.keep(batch);
        self.log.insert(seq, Logged { entry, batch, cost, shown: false, left: 0 });
        if seq <= self.commit {
            self.show(seq, ledger);
        }
    }

    /// An entry's record was written again, in this batch.
    fn moved(&mut self, seq: Seq, batch: u64, ledger: &mut Ledger) {
        if let Some(logged) = self.log.get_mut(&seq) {
            ledger.batches.keep(batch);
            ledger.batches.release(std::mem::replace(&mut logged.batch, batch));
        }
    }

    /// Takes an entry out of the log and the overlays.
    fn remove(&mut self, seq: Seq, ledger: &mut Ledger) {
        let Some(logged) = self.log.remove(&seq) else { return };
        self.leave(&logged, ledger);
        if logged.left == 0 {
            return;
        }
        for extent in logged.entry.extents() {
            let Some(overlay) = self.overlay.get_mut(&extent) else { continue };
            if let Ok(at) = overlay.seqs.binary_search(&seq) {
                overlay.seqs.remove(at);
                overlay.latest = [0; BLOCKS];
                for seq in &overlay.seqs {
                    for block in self.log[seq].entry.touched(extent) {
                        overlay.latest[block] = seq.0;
                    }
                }
            }
            self.freshen(extent);
        }
    }

    /// An overlay, or the home below it, has changed: whether it is fresh is found out again, and an empty one goes.
    fn freshen(&mut self, extent: ExtentIndex) {
        let Some(overlay) = self.overlay.get(&extent) else { return };
        let (was, fresh, empty) = (overlay.fresh, self.is_fresh(extent, overlay), overlay.seqs.is_empty());
        self.fresh = self.fresh + u64::from(fresh) - u64::from(was);
        if empty {
            self.overlay.remove(&extent);
        } else if let Some(overlay) = self.overlay.get_mut(&extent) {
            overlay.fresh = fresh;
        }
    }

    fn is_fresh(&self, extent: ExtentIndex, overlay: &Overlay) -> bool {
        let mut latest = overlay.latest.iter().filter(|seq| **seq != 0);
        self.extents.home(extent).slab == NO_SLAB && latest.any(|seq| self.write_at(Seq(*seq)).is_some())
    }

    /// The books, when an entry is no longer in the log.
    fn leave(&mut self, logged: &Logged, ledger: &mut Ledger) {
        ledger.batches.release(logged.batch);
        ledger.settled += logged.cost;
        if !logged.shown {
            self.unresolved -= logged.cost;
            ledger.redirected -= logged.entry.slabs().len() as u64;
            ledger.slabs.extend(logged.entry.slabs().iter().map(|(_, slab)| *slab));
        }
    }

    /// Shows a committed entry to reads; one that every extent already has leaves the log.
    fn show(&mut self, seq: Seq, ledger: &mut Ledger) {
        let Some(logged) = self.log.get_mut(&seq).filter(|logged| !logged.shown) else { return };
        logged.shown = true;
        self.unresolved -= logged.cost;
        ledger.redirected -= logged.entry.slabs().len() as u64;
        let (mut homes, mut doubtful) = (Vec::new(), Vec::new());
        for extent in logged.entry.extents() {
            let home = self.extents.home(extent);
            let old = home.stamp >= seq;
            let slab = if let Kind::Write(write) = &logged.entry.kind { write.slab_of(extent) } else { None };
            match slab {
                Some(slab) if old => ledger.slabs.push(slab),
                Some(slab) => homes.push((extent, slab)),
                None if old => {}
                None => {
                    let overlay = self.overlay.entry(extent).or_default();
                    match overlay.seqs.last() {
                        Some(last) if *last > seq => {
                            let at = overlay.seqs.partition_point(|other| *other < seq);
                            overlay.seqs.insert(at, seq);
                            doubtful.push(extent);
                        }
                        _ => overlay.seqs.push(seq),
                    }
                    for block in logged.entry.touched(extent) {
                        overlay.latest[block] = overlay.latest[block].max(seq.0);
                    }
                    if !matches!(logged.entry.kind, Kind::Write(_)) {
                        doubtful.push(extent);
                    } else if !overlay.fresh && home.slab == NO_SLAB {
                        overlay.fresh = true;
                        self.fresh += 1;
                    }
                    logged.left += 1;
                }
            }
        }
        let (done, batch) = (logged.left == 0, logged.batch);
        for extent in doubtful {
            self.freshen(extent);
        }
        for (extent, slab) in homes {
            let Some(Logged { entry: LogEntry { kind: Kind::Write(write), .. }, .. }) = self.log.get(&seq) else {
                break;
            };
            ledger.sums.push(NewSums { slab, batch, known: u32::MAX, sums: write.sums_of(extent) });
            self.rehome(extent, Home { stamp: seq, slab, present: u32::MAX }, ledger);
        }
        if done {
            self.remove(seq, ledger);
        }
    }

    /// The core says that everything up to here is committed.
    pub(crate) fn tell(&mut self, through: Seq, ledger: &mut Ledger) {
        self.told = self.told.max(through);
        self.advance(ledger);
    }

    /// A record is queued that may replace everything above `floor`.
    pub(crate) fn hold(&mut self, floor: Seq) {
        *self.held.entry(floor).or_default() += 1;
    }

    fn release(&mut self, floor: Seq, ledger: &mut Ledger) {
        if let Some(count) = self.held.get_mut(&floor) {
            *count -= 1;
            if *count == 0 {
                self.held.remove(&floor);
            }
        }
        self.advance(ledger);
    }

    fn advance(&mut self, ledger: &mut Ledger) {
        let floor = self.held.first_key_value().map_or(self.told, |(floor, _)| *floor);
        let through = self.told.min(floor);
        while self.commit < through {
            let next = self.log.range(self.commit.next()..=through).next().map(|(seq, _)| *seq);
            self.commit = next.unwrap_or(through);
            if let Some(seq) = next {
                self.show(seq, ledger);
            }
        }
    }

    /// Drops what is above `above`. The caller has made sure that nothing committed is.
    pub(crate) fn truncate(&mut self, above: Seq, ledger: &mut Ledger) {
        for logged in self.log.split_off(&above.next()).into_values() {
            debug_assert!(!logged.shown, "a committed entry is never truncated");
            self.leave(&logged, ledger);
        }
    }

    /// The extent's home now has everything up to `through`: overlays let go of it.
    fn settle(&mut self, extent: ExtentIndex, through: Seq, ledger: &mut Ledger) {
        let Some(overlay) = self.overlay.get_mut(&extent) else { return };
        let count = overlay.seqs.partition_point(|seq| *seq <= through);
        let settled: Vec<Seq> = overlay.seqs.drain(..count).collect();
        for latest in overlay.latest.iter_mut().filter(|latest| **latest <= through.0) {
            *latest = 0;
        }
        self.freshen(extent);
        for seq in settled {
            let Some(logged) = self.log.get_mut(&seq) else { continue };
            logged.left -= 1;
            if logged.left == 0 {
                self.remove(seq, ledger);
            }
        }
    }

    /// Gives the extent a new home; the old slab, if it is another one, is given back.
    pub(crate) fn rehome(&mut self, extent: ExtentIndex, home: Home, ledger: &mut Ledger) {
        let old = self.extents.set(extent, home);
        ledger.slabs.extend(old.slab().filter(|old| *old != home.slab));
        self.settle(extent, home.stamp, ledger);
    }

    fn write_at(&self, seq: Seq) -> Option<&Write> {
        match &self.log.get(&seq)?.entry.kind {
            Kind::Write(write) => Some(write),
            Kind::Zero { .. } | Kind::Nothing => None,
        }
    }

    /// The data and checksum an entry writes to a block.
    pub(crate) fn written(&self, seq: Seq, block: u32) -> Option<(&[u8], u32, bool)> {
        let write = self.write_at(seq)?;
        match write.place(block) {
            Place::Data(data) => Some((data, write.sum(block), write.suspect)),
            Place::Slab(_) => None,
        }
    }

    /// Where a block's committed content is.
    pub(crate) fn source(&self, block: BlockIndex) -> Source<'_> {
        let extent = ExtentIndex(block.0 / EXTENT_BLOCKS);
        self.source_in(self.overlay.get(&extent).map(Box::as_ref), self.extents.home(extent), block)
    }

    /// The same for one of several blocks of an extent.
    pub(crate) fn source_in(&self, overlay: Option<&Overlay>, home: Home, block: BlockIndex) -> Source<'_> {
        let within = (block.0 % EXTENT_BLOCKS) as usize;
        let seq = overlay.map_or(0, |overlay| overlay.latest[within]);
        if seq != 0 {
            return match self.written(Seq(seq), block.0) {
                Some((data, sum, suspect)) => Source::Log(data, sum, suspect),
                None => Source::Zero,
            };
        }
        match home.slab() {
            _ if home.present & (1 << within) == 0 => Source::Zero,
            Some(slab) => Source::Home(slab),
            None => Source::Lost,
        }
    }

    /// What the extent's overlay brings to its home, up to `bound`.
    pub(crate) fn compose(&self, extent: ExtentIndex, bound: Seq) -> Option<Composed> {
        let overlay = self.overlay.get(&extent)?;
        let mut composed = Composed { through: Seq(0), blocks: [None; BLOCKS] };
        for seq in overlay.seqs.iter().take_while(|seq| **seq <= bound) {
            composed.through = *seq;
            let entry = &self.log[seq].entry;
            let data = matches!(entry.kind, Kind::Write(_)).then_some(*seq);
            for block in entry.touched(extent) {
                composed.blocks[block] = Some(data);
            }
        }
        (composed.through != Seq(0)).then_some(composed)
    }

    /// Extents that hold data, not yet applied ones included.
    pub(crate) fn used(&self) -> u64 {
        self.extents.slabs + self.fresh
    }

    /// The same, counted. For tests.
    pub(crate) fn recount(&self) -> u64 {
        let fresh = self.overlay.iter().filter(|(extent, overlay)| self.is_fresh(**extent, overlay));
        self.extents.slabs + fresh.count() as u64
    }

    /// The log above the commit point as far as it has no gap and is whole.
    pub(crate) fn tail(&self) -> impl Iterator<Item = (Seq, &LogEntry)> {
        let sound = |logged: &Logged| !matches!(&logged.entry.kind, Kind::Write(Write { suspect: true, .. }));
        self.log
            .range(self.commit.next()..)
            .zip(self.commit.0 + 1..)
            .take_while(move |((seq, logged), want)| seq.0 == *want && sound(logged))
            .map(|((seq, logged), _)| (*seq, &logged.entry))
    }

    /// Apply may go up to here.
    pub(crate) fn bound(&self) -> Seq {
        self.commit.min(self.durable_commit)
    }

    /// Slabs that are its own: of extents, and of entries that are not committed.
    pub(crate) fn slabs(&self) -> impl Iterator<Item = u32> + '_ {
        let homes = self.extents.from(ExtentIndex(0)).filter_map(|(_, home)| home.slab());
        homes.chain(self.log_slabs())
    }

    pub(crate) fn log_slabs(&self) -> impl Iterator<Item = u32> + '_ {
        let own = self.log.values().filter(|logged| !logged.shown);
        own.flat_map(|logged| logged.entry.slabs().iter().map(|(_, slab)| *slab))
    }
}

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
        self.with(segment, |replica, ledger| {
            for logged in std::mem::take(&mut replica.log).into_values() {
                replica.leave(&logged, ledger);
            }
            replica.overlay.clear();
            replica.fresh = 0;
        });
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
                let replica = Replica::recovered(meta, false, Seq(0), Extents::default());
                self.replicas.insert(segment, Replica { life: self.lives, ..replica });
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
                replica.life = life;
                let through = replica.durable_commit;
                replica.last = replica.last.max(through);
                replica.held.clear();
                replica.tell(through, ledger);
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
