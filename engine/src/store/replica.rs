//! One replica in memory: its state, its log, and where each extent's data is.
//!
//! An entry lives in its replica's `log` from the moment it is durable until every extent it touches has it. Committed
//! entries are also in `overlay`, by extent: reads look there first and see nothing above the commit point, apply takes
//! its work from there. An entry changes an extent only when it is above the extent's stamp: a copy that came later
//! already holds it. A slab of an entry becomes its extent's home the moment the entry is committed: nothing on the
//! device changes by that, and the next checkpoint says it together with the commit point (I4).

use std::collections::BTreeMap;

use engine_core::ids::{BlockIndex, ExtentIndex, Seq};
use engine_core::limits::EXTENT_BLOCKS;
use engine_core::record::Meta;

use super::entries::Entries;
use super::entry::{Kind, LogEntry, Place, Write};
use super::extents::{Extents, Home, NO_SLAB};
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

impl Logged {
    /// One whose record is durable in this batch; nothing has it yet.
    pub(crate) const fn new(entry: LogEntry, batch: u64, cost: u64) -> Self {
        Self { entry, batch, cost, shown: false, left: 0 }
    }
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
    /// Bytes of the ring its entries take.
    pub(crate) cost: u64,
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
    pub(crate) log: Entries,
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
            log: Entries::default(),
            overlay: BTreeMap::new(),
            fresh: 0,
            extents,
            last: Seq(0),
            unresolved: 0,
        }
    }

    /// Everything on the device was read: the commit point counts now, and what it covers is shown.
    pub(crate) fn begin(&mut self, life: u64, ledger: &mut Ledger) {
        self.life = life;
        let through = self.durable_commit;
        self.last = self.last.max(through);
        self.held.clear();
        self.tell(through, ledger);
    }

    /// Lets go of its log.
    pub(crate) fn clear(&mut self, ledger: &mut Ledger) {
        for logged in self.log.take_from(Seq(0)) {
            self.leave(&logged, ledger);
        }
        self.overlay.clear();
        self.fresh = 0;
    }

    /// The highest committed change that touched the extent, applied or not.
    pub(crate) fn full_stamp(&self, extent: ExtentIndex) -> Seq {
        let above = self.overlay.get(&extent).and_then(|overlay| overlay.seqs.last().copied());
        above.unwrap_or_default().max(self.extents.home(extent).stamp)
    }

    pub(crate) fn insert(&mut self, seq: Seq, entry: LogEntry, batch: u64, cost: u64, ledger: &mut Ledger) {
        if let Some(known) = self.log.get_mut(seq) {
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
        self.log.insert(seq, Logged::new(entry, batch, cost));
        if seq <= self.commit {
            self.show(seq, ledger);
        }
    }

    /// An entry's record was written again, in this batch.
    pub(crate) fn moved(&mut self, seq: Seq, batch: u64, ledger: &mut Ledger) {
        if let Some(logged) = self.log.get_mut(seq) {
            ledger.batches.keep(batch);
            ledger.batches.release(std::mem::replace(&mut logged.batch, batch));
        }
    }

    /// Takes an entry out of the log and the overlays.
    fn remove(&mut self, seq: Seq, ledger: &mut Ledger) {
        let Some(logged) = self.log.remove(seq) else { return };
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
                    for block in self.log[*seq].entry.touched(extent) {
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
        let Some(logged) = self.log.get_mut(seq).filter(|logged| !logged.shown) else { return };
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
            let Some(Logged { entry: LogEntry { kind: Kind::Write(write), .. }, .. }) = self.log.get(seq) else {
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

    pub(crate) fn release(&mut self, floor: Seq, ledger: &mut Ledger) {
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
            let next = self.log.from(self.commit.next()).next().map(|(seq, _)| seq).filter(|seq| *seq <= through);
            self.commit = next.unwrap_or(through);
            if let Some(seq) = next {
                self.show(seq, ledger);
            }
        }
    }

    /// Drops what is above `above`. The caller has made sure that nothing committed is.
    pub(crate) fn truncate(&mut self, above: Seq, ledger: &mut Ledger) {
        for logged in self.log.take_from(above.next()) {
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
            let Some(logged) = self.log.get_mut(seq) else { continue };
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
        match &self.log.get(seq)?.entry.kind {
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
        let mut composed = Composed { through: Seq(0), cost: 0, blocks: [None; BLOCKS] };
        for seq in overlay.seqs.iter().take_while(|seq| **seq <= bound) {
            composed.through = *seq;
            let Logged { entry, cost, left, .. } = &self.log[*seq];
            composed.cost += cost / u64::from(*left).max(1);
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
            .from(self.commit.next())
            .zip(self.commit.0 + 1..)
            .take_while(move |((seq, logged), want)| seq.0 == *want && sound(logged))
            .map(|((seq, logged), _)| (seq, &logged.entry))
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
        let own = self.log.all().filter(|(_, logged)| !logged.shown);
        own.flat_map(|(_, logged)| logged.entry.slabs().iter().map(|(_, slab)| *slab))
    }
}
