//! The checksums of home blocks, apart from the data, by slab.
//!
//! What has changed since the last checkpoint is in `fresh` (and in `sealing` while a checkpoint writes it); the rest
//! is read from checksum pages when it is needed, and pages are kept within a bound. So applying never waits for a
//! page. A page is written in place, by checkpoints only: whatever a crash tears there belongs to blocks the WAL still
//! holds.

use std::collections::{BTreeMap, HashMap};
use std::rc::Rc;

use engine_core::limits::{EXTENT_BLOCKS, EXTENT_SIZE, SUM_PAGES_MAX};

use super::format::{CellLabel, PAGE_SLABS, Sums, is_whole, put_sums, sum_in};
use super::ledger::NewSums;
use crate::device::buffer::AlignedBuf;

/// Bytes of data whose checksums one page holds.
pub const PAGE_BYTES: u64 = PAGE_SLABS as u64 * EXTENT_SIZE;

/// Some checksums of one slab.
#[derive(Debug)]
struct Some32 {
    known: u32,
    sums: Sums,
}

/// What a checkpoint brings to one page.
#[derive(Debug, Default)]
struct Sealing {
    slabs: Vec<(u32, Box<Some32>)>,
    /// Its write is under way.
    submitted: bool,
}

/// A page in memory.
#[derive(Debug)]
struct Kept {
    page: u32,
    bytes: Rc<AlignedBuf>,
    used: bool,
}

/// See the module.
#[derive(Debug)]
pub(crate) struct SumStore {
    label: CellLabel,
    fresh: HashMap<u32, Box<Some32>>,
    /// By page: what the checkpoint under way writes.
    sealing: BTreeMap<u32, Sealing>,
    kept: Vec<Kept>,
    places: HashMap<u32, usize>,
    hand: usize,
    bound: usize,
    /// Pages being read; `true` when what comes is older than what has been written meanwhile.
    reading: HashMap<u32, bool>,
}

/// A checksum as far as it is known.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum Known {
    Is(u32),
    /// Its cell is damaged.
    Lost,
    /// Its page has to be read.
    Unread,
}

pub(crate) const fn page_of(slab: u32) -> u32 {
    slab / PAGE_SLABS
}

impl SumStore {
    pub(crate) fn new(label: CellLabel) -> Self {
        Self {
            label,
            fresh: HashMap::new(),
            sealing: BTreeMap::new(),
            kept: Vec::new(),
            places: HashMap::new(),
            hand: 0,
            bound: SUM_PAGES_MAX,
            reading: HashMap::new(),
        }
    }

    /// Keeps at most so many pages. For a store with nothing under way: a checkpoint's pages may be among those that go.
    pub(crate) fn set_bound(&mut self, pages: usize) {
        self.bound = pages.max(1);
        self.kept.truncate(self.bound);
        self.places.retain(|_, at| *at < self.bound);
        self.hand = 0;
    }

    /// Slabs with checksums no checkpoint has.
    pub(crate) fn fresh(&self) -> usize {
        self.fresh.len()
    }

    /// A slab's blocks now have these checksums.
    pub(crate) fn set(&mut self, new: &NewSums) {
        let slab = self.fresh.entry(new.slab).or_insert_with(|| Box::new(Some32 { known: 0, sums: [0; 32] }));
        slab.known |= new.known;
        for (block, sum) in new.sums.iter().enumerate() {
            if new.known & (1 << block) != 0 {
                slab.sums[block] = *sum;
            }
        }
    }

    /// The checksum of a block of a slab.
    pub(crate) fn sum(&mut self, slab: u32, block: u32) -> Known {
        let bit = 1 << block;
        if let Some(fresh) = self.fresh.get(&slab).filter(|fresh| fresh.known & bit != 0) {
            return Known::Is(fresh.sums[block as usize]);
        }
        if !self.sealing.is_empty()
            && let Some(page) = self.sealing.get(&page_of(slab))
            && let Some((_, sealing)) = page.slabs.iter().find(|(at, sealing)| *at == slab && sealing.known & bit != 0)
        {
            return Known::Is(sealing.sums[block as usize]);
        }
        let Some(at) = self.places.get(&page_of(slab)) else { return Known::Unread };
        let kept = &mut self.kept[*at];
        kept.used = true;
        if is_whole(&kept.bytes, self.label, slab) { Known::Is(sum_in(&kept.bytes, slab, block)) } else { Known::Lost }
    }

    /// Whether the page has to be asked for: it is now being read.
    pub(crate) fn wants(&mut self, page: u32) -> bool {
        if self.places.contains_key(&page) || self.reading.contains_key(&page) {
            return false;
        }
        self.reading.insert(page, false);
        true
    }

    pub(crate) fn has(&self, page: u32) -> bool {
        self.places.contains_key(&page)
    }

    /// A page was read; `None`: it cannot be. `false`: it has to be read again.
    pub(crate) fn arrived(&mut self, page: u32, bytes: Option<AlignedBuf>) -> bool {
        if let Some(stale) = self.reading.get_mut(&page)
            && std::mem::take(stale)
        {
            return false;
        }
        self.reading.remove(&page);
        // What cannot be read is a page without a whole cell.
        self.keep(page, Rc::new(bytes.unwrap_or_else(|| AlignedBuf::zeroed(4096))));
        true
    }

    fn keep(&mut self, page: u32, bytes: Rc<AlignedBuf>) {
        if let Some(at) = self.places.get(&page) {
            self.kept[*at].bytes = bytes;
            return;
        }
        let kept = Kept { page, bytes, used: true };
        if self.kept.len() < self.bound {
            self.places.insert(page, self.kept.len());
            return self.kept.push(kept);
        }
        // Every page that was used since the hand came by last gets another turn.
        loop {
            self.hand = (self.hand + 1) % self.kept.len();
            let old = &mut self.kept[self.hand];
            if !std::mem::take(&mut old.used) {
                self.places.remove(&old.page);
                *old = kept;
                self.places.insert(page, self.hand);
                return;
            }
        }
    }

    /// Lets go of every page: each is what the device holds, and can be read again like one that made room for another.
    pub(crate) fn forget_pages(&mut self) {
        self.kept.clear();
        self.places.clear();
        self.hand = 0;
    }

    /// A checkpoint is taken: what is fresh now goes into it. Its pages, in order.
    pub(crate) fn seal(&mut self) -> Vec<u32> {
        assert!(self.sealing.is_empty(), "one checkpoint at a time");
        for (slab, sums) in self.fresh.drain() {
            self.sealing.entry(page_of(slab)).or_default().slabs.push((slab, sums));
        }
        self.sealing.keys().copied().collect()
    }

    /// The page as the checkpoint writes it, given once; it has been read.
    pub(crate) fn sealed(&mut self, page: u32) -> Option<AlignedBuf> {
        let kept = &self.kept[*self.places.get(&page)?];
        let sealing = self.sealing.get_mut(&page).filter(|sealing| !sealing.submitted)?;
        sealing.submitted = true;
        let mut bytes = AlignedBuf::to_fill(4096);
        bytes.copy_from_slice(&kept.bytes);
        for (slab, sums) in &sealing.slabs {
            put_sums(&mut bytes, self.label, *slab, sums.known, &sums.sums);
        }
        Some(bytes)
    }

    /// The page was written.
    pub(crate) fn written(&mut self, page: u32, bytes: Option<AlignedBuf>) {
        self.sealing.remove(&page);
        if let Some(stale) = self.reading.get_mut(&page) {
            *stale = true;
        }
        if let Some(bytes) = bytes {
            self.keep(page, Rc::new(bytes));
        }
    }
}

const _: () = assert!(EXTENT_BLOCKS == 32);
