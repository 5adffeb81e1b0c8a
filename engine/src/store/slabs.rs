//! Which slabs, and which places of map pages, are free. One is free, taken, or retired: given up in memory, but still
//! named by the checkpoint on disk or by the WAL, so that it must not be overwritten before a checkpoint without it is
//! durable and no operation on it is in flight.
//!
//! One bit each. They are given out in rising order, so that what is written together lies together.

use std::collections::HashMap;

/// The slabs of a shard.
#[derive(Debug, Default)]
pub(crate) struct Slabs {
    total: u32,
    /// A set bit is a free one.
    bits: Vec<u64>,
    free: usize,
    /// Where to look first.
    cursor: usize,
    retired: Vec<u32>,
    /// Retired before the checkpoint that is being written was taken.
    leaving: Vec<u32>,
    /// Operations in flight.
    busy: HashMap<u32, u32>,
}

impl Slabs {
    /// All free but those `taken` says.
    pub(crate) fn new(total: u32, taken: &Taken) -> Self {
        let mut slabs = Self { total, bits: taken.bits.iter().map(|word| !word).collect(), ..Self::default() };
        if let (Some(last), rest @ 1..) = (slabs.bits.last_mut(), total % 64) {
            *last &= (1 << rest) - 1;
        }
        slabs.free = slabs.bits.iter().map(|word| word.count_ones() as usize).sum();
        slabs
    }

    #[allow(clippy::cast_possible_truncation)] // total is a u32
    pub(crate) fn take(&mut self) -> Option<u32> {
        if self.free == 0 {
            return None;
        }
        while self.bits[self.cursor] == 0 {
            self.cursor = (self.cursor + 1) % self.bits.len();
        }
        let bit = self.bits[self.cursor].trailing_zeros();
        self.bits[self.cursor] &= !(1 << bit);
        self.free -= 1;
        Some(self.cursor as u32 * 64 + bit)
    }

    /// One nothing on the device can point to is free at once.
    pub(crate) fn give_back(&mut self, slab: u32) {
        let (word, bit) = (slab as usize / 64, slab % 64);
        assert!(slab < self.total && self.bits[word] & (1 << bit) == 0, "slab {slab} is free twice");
        self.bits[word] |= 1 << bit;
        self.free += 1;
    }

    pub(crate) fn retire(&mut self, slab: u32) {
        #[cfg(test)]
        if super::tests::mistake(super::tests::Mistake::ReuseAtOnce) {
            return self.give_back(slab);
        }
        self.retired.push(slab);
    }

    /// Given up by the checkpoint that was just taken.
    pub(crate) fn leave(&mut self, place: u32) {
        self.leaving.push(place);
    }

    pub(crate) fn start(&mut self, slab: u32) {
        *self.busy.entry(slab).or_default() += 1;
    }

    pub(crate) fn finish(&mut self, slab: u32) {
        let count = self.busy.get_mut(&slab).expect("started before");
        *count -= 1;
        if *count == 0 {
            self.busy.remove(&slab);
        }
    }

    /// A checkpoint is taken now: it names none of the retired.
    pub(crate) fn checkpoint_taken(&mut self) {
        self.leaving.append(&mut self.retired);
    }

    /// It is durable.
    pub(crate) fn checkpoint_durable(&mut self) {
        for slab in std::mem::take(&mut self.leaving) {
            if self.busy.contains_key(&slab) {
                self.retired.push(slab);
            } else {
                self.give_back(slab);
            }
        }
    }

    pub(crate) const fn free(&self) -> usize {
        self.free
    }

    pub(crate) fn has_retired(&self) -> bool {
        !self.retired.is_empty()
    }

    /// Every slab is in exactly one place: free, retired, or among those in use.
    pub(crate) fn audit(&self, used: impl Iterator<Item = u32>) {
        let mut seen: Vec<bool> =
            (0..self.total).map(|slab| self.bits[slab as usize / 64] & (1 << (slab % 64)) != 0).collect();
        assert_eq!(seen.iter().filter(|seen| **seen).count(), self.free, "free slabs are miscounted");
        for slab in self.retired.iter().chain(&self.leaving).copied().chain(used) {
            assert!(!std::mem::replace(&mut seen[slab as usize], true), "slab {slab} is in two places");
        }
        assert!(seen.iter().all(|seen| *seen), "a slab is lost");
    }
}

/// A count of what is in use.
#[derive(Debug)]
pub(crate) struct Taken {
    total: u32,
    bits: Vec<u64>,
}

impl Taken {
    pub(crate) fn none(total: u32) -> Self {
        Self { total, bits: vec![0; (total as usize).div_ceil(64)] }
    }

    pub(crate) fn is_free(&self, slab: u32) -> bool {
        slab < self.total && self.bits[slab as usize / 64] & (1 << (slab % 64)) == 0
    }

    /// Counts one; `false` when there is no such one, or it is in use already.
    pub(crate) fn take(&mut self, slab: u32) -> bool {
        let free = self.is_free(slab);
        if free {
            self.bits[slab as usize / 64] |= 1 << (slab % 64);
        }
        free
    }
}
