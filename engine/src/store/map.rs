//! What a shard holds, in memory: each replica's state, its log, and where each extent's data is.
//!
//! An entry lives in its replica's `log` from the moment it is durable until every extent it touches has it. Committed
//! entries are also in `overlay`, by extent: reads look there first and see nothing above the commit point, apply takes
//! its work from there. An entry changes an extent only when it is above the extent's stamp: a copy that came later
//! already holds it.

use std::collections::{BTreeMap, BTreeSet};

use engine_core::ids::{BlockIndex, ExtentIndex, SegmentId, Seq};
use engine_core::limits::EXTENT_BLOCKS;
use engine_core::record::{Blocks, Change, Entry, Meta, Record, Standing};

use super::format::{MapRecord, WalRecord, record_len};

const BLOCKS: usize = EXTENT_BLOCKS as usize;

/// Checksums of an extent's blocks.
pub(crate) type Sums = [u32; BLOCKS];

/// An extent's home.
#[derive(Debug, Clone, Default)]
pub(crate) struct Extent {
    /// Every committed change up to here is in the home.
    pub(crate) stamp: Seq,
    pub(crate) slab: Option<u32>,
    /// Blocks that hold data; the others read as zeros whatever is in the slab.
    pub(crate) present: u32,
    sums: Option<Box<Sums>>,
    /// Grows with every change of the home: a read that began before one is planned again.
    pub(crate) version: u32,
}

impl Extent {
    pub(crate) fn home(stamp: Seq, slab: Option<u32>, present: u32, sums: Box<Sums>) -> Self {
        let sums = (present != 0).then_some(sums);
        Self { stamp, slab, present, sums, version: 0 }
    }

    pub(crate) fn sums(&self) -> Sums {
        self.sums.as_deref().copied().unwrap_or_default()
    }

    pub(crate) fn sum(&self, block: usize) -> u32 {
        self.sums.as_ref().map_or(0, |sums| sums[block])
    }
}

/// Committed entries of one extent that its home does not have.
#[derive(Debug, Default)]
pub(crate) struct Overlay {
    seqs: BTreeSet<Seq>,
    /// By block: the last of them that touches it; 0 is none.
    latest: [u64; BLOCKS],
}

/// An entry of the log.
#[derive(Debug)]
pub(crate) struct Logged {
    pub(crate) entry: Entry,
    /// In how many overlays it is. 0 while it is not committed.
    left: u32,
}

/// Where a block's committed content is.
pub(crate) enum Source<'a> {
    /// Nowhere: zeros.
    Zero,
    /// In the log: block `1` of these.
    Log(&'a Blocks, u32),
    /// In the extent's slab.
    Home,
}

/// What applying brings to an extent.
pub(crate) struct Composed {
    /// Last entry in it.
    pub(crate) through: Seq,
    /// By block: what it becomes. Outer `None`: unchanged; inner `None`: zeros.
    pub(crate) blocks: [Option<Option<(Seq, u32)>>; BLOCKS],
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
    pub(crate) overlay: BTreeMap<ExtentIndex, Overlay>,
    pub(crate) extents: BTreeMap<ExtentIndex, Extent>,
    /// Extents with a slab.
    pub(crate) slabs: u64,
    log_bytes: u64,
}

/// Bytes an entry takes in the WAL.
fn entry_bytes(segment: SegmentId, entry: &Entry) -> u64 {
    // Of the same size whatever the data is: only the lengths count.
    let change = match &entry.change {
        Change::Write { block, .. } => Change::Zero { block: *block, count: 1 },
        other => other.clone(),
    };
    let record = Record::Prepare { segment, commit: Seq(0), entry: Entry { change, ..*entry } };
    let sums = if let Change::Write { blocks, .. } = &entry.change { blocks.sums.len() as u64 } else { 0 };
    record_len(&WalRecord::Core(record)) + sums + entry.change.data_len()
}

/// The blocks of `extent` that a change touches, as indexes within the extent.
fn touched(change: &Change, extent: ExtentIndex) -> std::ops::Range<usize> {
    let (block, count) = change.range();
    let start = extent.0 * EXTENT_BLOCKS;
    let first = block.0.max(start) - start;
    let end = (block.0 + count).min(start + EXTENT_BLOCKS).saturating_sub(start);
    first as usize..end as usize
}

impl Replica {
    /// As a checkpoint has it: nothing is shown as committed before the whole WAL was read.
    pub(crate) fn recovered(meta: Meta, damaged: bool, commit: Seq, extents: BTreeMap<ExtentIndex, Extent>) -> Self {
        let slabs = extents.values().filter(|extent| extent.slab.is_some()).count() as u64;
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
            extents,
            slabs,
            log_bytes: 0,
        }
    }

    pub(crate) fn stamp(&self, extent: ExtentIndex) -> Seq {
        self.extents.get(&extent).map_or(Seq(0), |home| home.stamp)
    }

    /// The highest committed change that touched the extent, applied or not.
    pub(crate) fn full_stamp(&self, extent: ExtentIndex) -> Seq {
        let above = self.overlay.get(&extent).and_then(|overlay| overlay.seqs.last().copied());
        above.unwrap_or_default().max(self.stamp(extent))
    }

    fn insert(&mut self, entry: Entry) {
        let (segment, seq) = (self.meta.config.segment, entry.seq);
        if let Some(known) = self.log.get_mut(&seq) {
            if known.entry.change == entry.change {
                // Proposed again by a later epoch.
                known.entry.epoch = entry.epoch;
                return;
            }
            self.remove(seq);
        }
        self.log_bytes += entry_bytes(segment, &entry);
        self.log.insert(seq, Logged { entry, left: 0 });
        if seq <= self.commit {
            self.index(seq);
        }
    }

    /// Takes an entry out of the log and the overlays.
    fn remove(&mut self, seq: Seq) {
        let Some(logged) = self.log.remove(&seq) else { return };
        self.log_bytes -= entry_bytes(self.meta.config.segment, &logged.entry);
        if logged.left == 0 {
            return;
        }
        for extent in logged.entry.change.extents() {
            let Some(overlay) = self.overlay.get_mut(&extent) else { continue };
            if overlay.seqs.remove(&seq) {
                overlay.latest = [0; BLOCKS];
                for seq in &overlay.seqs {
                    for block in touched(&self.log[seq].entry.change, extent) {
                        overlay.latest[block] = seq.0;
                    }
                }
            }
            if overlay.seqs.is_empty() {
                self.overlay.remove(&extent);
            }
        }
    }

    /// Shows a committed entry to reads; one that every extent already has leaves the log.
    fn index(&mut self, seq: Seq) {
        let Some(logged) = self.log.get_mut(&seq) else { return };
        for extent in logged.entry.change.extents() {
            if self.extents.get(&extent).is_some_and(|home| home.stamp >= seq) {
                continue;
            }
            let overlay = self.overlay.entry(extent).or_default();
            overlay.seqs.insert(seq);
            for block in touched(&logged.entry.change, extent) {
                overlay.latest[block] = overlay.latest[block].max(seq.0);
            }
            logged.left += 1;
        }
        if logged.left == 0 {
            self.remove(seq);
        }
    }

    /// The core says that everything up to here is committed.
    pub(crate) fn tell(&mut self, through: Seq) {
        self.told = self.told.max(through);
        self.advance();
    }

    /// A record is queued that may replace everything above `floor`.
    pub(crate) fn hold(&mut self, floor: Seq) {
        *self.held.entry(floor).or_default() += 1;
    }

    fn release(&mut self, floor: Seq) {
        if let Some(count) = self.held.get_mut(&floor) {
            *count -= 1;
            if *count == 0 {
                self.held.remove(&floor);
            }
        }
        self.advance();
    }

    fn advance(&mut self) {
        let floor = self.held.keys().next().copied().unwrap_or(self.told);
        let through = self.told.min(floor);
        if through <= self.commit {
            return;
        }
        let seqs: Vec<Seq> = self.log.range(self.commit.next()..=through).map(|(seq, _)| *seq).collect();
        self.commit = through;
        for seq in seqs {
            self.index(seq);
        }
    }

    /// Drops what is above `above`. The caller has made sure that nothing committed is.
    fn truncate(&mut self, above: Seq) {
        for logged in self.log.split_off(&above.next()).into_values() {
            debug_assert_eq!(logged.left, 0, "a committed entry is never truncated");
            self.log_bytes -= entry_bytes(self.meta.config.segment, &logged.entry);
        }
    }

    /// The extent's home now has everything up to `through`: overlays let go of it.
    fn settle(&mut self, extent: ExtentIndex, through: Seq) {
        let Some(overlay) = self.overlay.get_mut(&extent) else { return };
        let rest = overlay.seqs.split_off(&through.next());
        let settled = std::mem::replace(&mut overlay.seqs, rest);
        for latest in overlay.latest.iter_mut().filter(|latest| **latest <= through.0) {
            *latest = 0;
        }
        if overlay.seqs.is_empty() {
            self.overlay.remove(&extent);
        }
        for seq in settled {
            let Some(logged) = self.log.get_mut(&seq) else { continue };
            logged.left -= 1;
            if logged.left == 0 {
                self.remove(seq);
            }
        }
    }

    /// Gives the extent a new home; the old slab, if it is another one, is given back.
    pub(crate) fn rehome(&mut self, extent: ExtentIndex, home: Extent) -> Option<u32> {
        let through = home.stamp;
        let slot = self.extents.entry(extent).or_default();
        let version = slot.version.wrapping_add(1);
        let old = slot.slab.filter(|old| Some(*old) != home.slab);
        self.slabs += u64::from(home.slab.is_some());
        self.slabs -= u64::from(slot.slab.is_some());
        *slot = Extent { version, ..home };
        self.settle(extent, through);
        old
    }

    /// Where a block's committed content is.
    pub(crate) fn source(&self, block: BlockIndex) -> Source<'_> {
        let extent = ExtentIndex(block.0 / EXTENT_BLOCKS);
        let within = (block.0 % EXTENT_BLOCKS) as usize;
        let seq = self.overlay.get(&extent).map_or(0, |overlay| overlay.latest[within]);
        if seq != 0 {
            return match &self.log[&Seq(seq)].entry.change {
                Change::Write { block: first, blocks } => Source::Log(blocks, block.0 - first.0),
                Change::Zero { .. } | Change::Nothing => Source::Zero,
            };
        }
        match self.extents.get(&extent) {
            Some(home) if home.present & (1 << within) != 0 => Source::Home,
            _ => Source::Zero,
        }
    }

    /// Everything committed up to `bound` that the extent's home lacks.
    pub(crate) fn compose(&self, extent: ExtentIndex, bound: Seq) -> Option<Composed> {
        let overlay = self.overlay.get(&extent)?;
        let mut composed = Composed { through: Seq(0), blocks: [None; BLOCKS] };
        for seq in overlay.seqs.range(..=bound) {
            let change = &self.log[seq].entry.change;
            let first = change.range().0;
            for block in touched(change, extent) {
                #[allow(clippy::cast_possible_truncation)] // below 32
                let absolute = extent.0 * EXTENT_BLOCKS + block as u32;
                composed.blocks[block] = match change {
                    Change::Write { .. } => Some(Some((*seq, absolute - first.0))),
                    Change::Zero { .. } | Change::Nothing => Some(None),
                };
            }
            composed.through = *seq;
        }
        (composed.through > Seq(0)).then_some(composed)
    }

    /// Extents that hold data, not yet applied ones included.
    pub(crate) fn used(&self) -> u64 {
        let has_slab = |extent| self.extents.get(extent).is_some_and(|home| home.slab.is_some());
        let writes = |overlay: &Overlay| {
            let mut latest = overlay.latest.iter().filter(|seq| **seq != 0);
            latest.any(|seq| matches!(self.log[&Seq(*seq)].entry.change, Change::Write { .. }))
        };
        let fresh = self.overlay.iter().filter(|(extent, overlay)| !has_slab(extent) && writes(overlay));
        self.slabs + fresh.count() as u64
    }

    /// The log above the commit point as far as it has no gap.
    pub(crate) fn tail(&self) -> Vec<Entry> {
        let above = self.log.range(self.commit.next()..);
        above
            .zip(self.commit.0 + 1..)
            .take_while(|((seq, _), want)| seq.0 == *want)
            .map(|((_, logged), _)| logged.entry.clone())
            .collect()
    }

    /// Apply may go up to here.
    pub(crate) fn bound(&self) -> Seq {
        self.commit.min(self.durable_commit)
    }
}

/// All replicas of a shard.
#[derive(Debug, Default)]
pub(crate) struct Map {
    pub(crate) replicas: BTreeMap<SegmentId, Replica>,
    /// Slabs given up; the store retires them.
    pub(crate) freed: Vec<u32>,
    /// Bytes of WAL that would be needed to write all logs again.
    pub(crate) log_bytes: u64,
    /// Extents with something to apply.
    pub(crate) dirty: usize,
    /// Extents booked by the replicas.
    pub(crate) booked: u64,
    lives: u64,
}

impl Map {
    /// Changes a replica and keeps the totals right.
    pub(crate) fn with<R>(&mut self, segment: SegmentId, change: impl FnOnce(&mut Replica) -> R) -> Option<R> {
        let replica = self.replicas.get_mut(&segment)?;
        let (bytes, dirty) = (replica.log_bytes, replica.overlay.len());
        let result = change(replica);
        self.log_bytes = self.log_bytes + replica.log_bytes - bytes;
        self.dirty = self.dirty + replica.overlay.len() - dirty;
        Some(result)
    }

    /// Gives an extent a new home.
    pub(crate) fn rehome(&mut self, segment: SegmentId, extent: ExtentIndex, home: Extent) {
        let old = self.with(segment, |replica| replica.rehome(extent, home)).flatten();
        self.freed.extend(old);
    }

    fn forget(&mut self, segment: SegmentId) {
        if let Some(replica) = self.replicas.remove(&segment) {
            self.log_bytes -= replica.log_bytes;
            self.dirty -= replica.overlay.len();
            self.booked -= u64::from(replica.meta.config.extents);
            self.freed.extend(replica.extents.values().filter_map(|extent| extent.slab));
        }
    }

    /// Takes in a durable record. Records of replicas that are not here any more change nothing.
    pub(crate) fn absorb(&mut self, record: WalRecord) {
        match record {
            WalRecord::Core(record) => self.absorb_core(record),
            WalRecord::Commit { segment, through } => {
                self.with(segment, |replica| replica.durable_commit = replica.durable_commit.max(through));
            }
            WalRecord::Map(map) => self.absorb_map(map),
            WalRecord::Damaged { segment } => {
                self.with(segment, |replica| replica.damaged = true);
            }
        }
    }

    fn absorb_core(&mut self, record: Record) {
        match record {
            Record::Create { segment, meta } => {
                self.forget(segment);
                self.lives += 1;
                self.booked += u64::from(meta.config.extents);
                let replica = Replica::recovered(meta, false, Seq(0), BTreeMap::new());
                self.replicas.insert(segment, Replica { life: self.lives, ..replica });
            }
            Record::State { segment, meta } => {
                self.with(segment, |replica| {
                    if let Standing::Joining { base } = meta.standing {
                        // A durable word that everything up to there is committed.
                        replica.durable_commit = replica.durable_commit.max(base);
                    }
                    replica.meta = meta;
                    // The core knows of the damage and says now what this replica is.
                    replica.damaged = false;
                });
            }
            Record::Prepare { segment, commit, entry } => {
                self.with(segment, |replica| {
                    replica.durable_commit = replica.durable_commit.max(commit);
                    let floor = Seq(entry.seq.0.saturating_sub(1));
                    replica.insert(entry);
                    replica.release(floor);
                });
            }
            Record::Truncate { segment, above } => {
                self.with(segment, |replica| {
                    replica.truncate(above);
                    replica.release(above);
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

    /// A copy is in place, unless what is here is as new: then its slab is given up.
    fn absorb_map(&mut self, map: MapRecord) {
        let wanted = self.replicas.get(&map.segment).is_some_and(|replica| {
            replica.meta.config.incarnation == map.incarnation
                && map.extent.0 < replica.meta.config.extents
                && replica.stamp(map.extent) <= map.stamp
        });
        if wanted {
            self.rehome(map.segment, map.extent, Extent::home(map.stamp, map.slab, map.present, map.sums));
        } else {
            self.freed.extend(map.slab);
        }
    }

    /// After everything on the device was read: commit points count now, and what they cover is shown.
    pub(crate) fn finish_recovery(&mut self) {
        self.booked = self.replicas.values().map(|replica| u64::from(replica.meta.config.extents)).sum();
        for segment in self.replicas.keys().copied().collect::<Vec<_>>() {
            self.lives += 1;
            let life = self.lives;
            self.with(segment, |replica| {
                replica.life = life;
                let through = replica.durable_commit;
                replica.commit = Seq(0);
                replica.tell(through);
            });
        }
    }

    /// Every slab in use.
    pub(crate) fn slabs(&self) -> impl Iterator<Item = u32> + '_ {
        self.replicas.values().flat_map(|replica| replica.extents.values().filter_map(|extent| extent.slab))
    }
}
