//! Which slabs are free. A slab is free, taken, or retired: given up in memory, but still named by the checkpoint on
//! disk or by the WAL, so that it must not be overwritten before a checkpoint without it is durable and no operation
//! on it is in flight.

use std::collections::BTreeMap;

/// The slabs of a shard.
#[derive(Debug, Default)]
pub(crate) struct Slabs {
    total: u32,
    free: Vec<u32>,
    retired: Vec<u32>,
    /// Retired before the checkpoint that is being written was taken.
    leaving: Vec<u32>,
    /// Operations in flight.
    busy: BTreeMap<u32, u32>,
}

impl Slabs {
    /// All free but those `taken` says.
    pub(crate) fn new(total: u32, taken: &[bool]) -> Self {
        let free = (0..total).rev().filter(|slab| !taken[*slab as usize]).collect();
        Self { total, free, ..Self::default() }
    }

    pub(crate) fn take(&mut self) -> Option<u32> {
        self.free.pop()
    }

    pub(crate) fn retire(&mut self, slab: u32) {
        #[cfg(test)]
        if super::tests::mistake(super::tests::Mistake::ReuseAtOnce) {
            return self.free.push(slab);
        }
        self.retired.push(slab);
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
                self.free.push(slab);
            }
        }
    }

    pub(crate) fn free(&self) -> usize {
        self.free.len()
    }

    pub(crate) fn has_retired(&self) -> bool {
        !self.retired.is_empty()
    }

    /// Every slab is in exactly one place: free, retired, or among those in use.
    pub(crate) fn audit(&self, used: impl Iterator<Item = u32>) {
        let mut seen = vec![false; self.total as usize];
        for slab in self.free.iter().chain(&self.retired).chain(&self.leaving).copied().chain(used) {
            assert!(!std::mem::replace(&mut seen[slab as usize], true), "slab {slab} is in two places");
        }
        assert!(seen.iter().all(|seen| *seen), "a slab is lost");
    }
}
