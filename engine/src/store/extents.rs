//! Where the data of a replica's extents is: 16 bytes each, in chunks that exist only where something was written.
//!
//! A chunk is what one map page holds. Chunks are shared with the checkpoint that writes them and copied when they are
//! changed meanwhile, so that taking a checkpoint costs nothing per extent.

use std::rc::Rc;

use engine_core::ids::{ExtentIndex, Seq};

/// Extents of one chunk, which is one map page.
pub(crate) const CHUNK_EXTENTS: usize = 252;
/// "No slab".
pub(crate) const NO_SLAB: u32 = u32::MAX;

/// An extent's home.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) struct Home {
    /// Every committed change up to here is in the home.
    pub(crate) stamp: Seq,
    /// [`NO_SLAB`]: all of it reads as zeros, or is lost when `present` says that there was something.
    pub(crate) slab: u32,
    /// Blocks that hold data; the others read as zeros whatever is in the slab.
    pub(crate) present: u32,
}

impl Default for Home {
    fn default() -> Self {
        Self { stamp: Seq(0), slab: NO_SLAB, present: 0 }
    }
}

impl Home {
    /// What stands for an extent whose map page is damaged: never served, until a copy or a write replaces it (I14).
    pub(crate) const LOST: Self = Self { stamp: Seq(0), slab: NO_SLAB, present: u32::MAX };

    pub(crate) fn slab(&self) -> Option<u32> {
        (self.slab != NO_SLAB).then_some(self.slab)
    }

    pub(crate) fn is_lost(&self) -> bool {
        self.slab == NO_SLAB && self.present != 0
    }
}

/// The homes of one chunk.
pub(crate) type Homes = [Home; CHUNK_EXTENTS];

/// One chunk.
#[derive(Debug)]
pub(crate) struct Chunk {
    pub(crate) homes: Rc<Homes>,
    /// Where its page is in the newest checkpoint taken, and that page's checksum.
    pub(crate) page: Option<(u32, u32)>,
    /// Changed since then.
    pub(crate) dirty: bool,
}

/// All homes of a replica.
#[derive(Debug, Default)]
pub(crate) struct Extents {
    chunks: Vec<Option<Box<Chunk>>>,
    /// Extents with a slab.
    pub(crate) slabs: u64,
    lost: bool,
}

#[allow(clippy::cast_possible_truncation)] // 252
const fn split(extent: ExtentIndex) -> (usize, usize) {
    (extent.0 as usize / CHUNK_EXTENTS, extent.0 as usize % CHUNK_EXTENTS)
}

impl Extents {
    /// One chunk as a checkpoint has it; `page` is `None` when its page is damaged.
    pub(crate) fn load(&mut self, chunk: usize, homes: Rc<Homes>, page: Option<(u32, u32)>) {
        if self.chunks.len() <= chunk {
            self.chunks.resize_with(chunk + 1, || None);
        }
        self.slabs += homes.iter().filter(|home| home.slab().is_some()).count() as u64;
        self.lost |= homes.iter().any(Home::is_lost);
        self.chunks[chunk] = Some(Box::new(Chunk { homes, page, dirty: page.is_none() }));
    }

    pub(crate) fn home(&self, extent: ExtentIndex) -> Home {
        let (chunk, at) = split(extent);
        self.chunks.get(chunk).and_then(Option::as_ref).map_or_else(Home::default, |chunk| chunk.homes[at])
    }

    /// Gives an extent another home; returns the one it had.
    pub(crate) fn set(&mut self, extent: ExtentIndex, home: Home) -> Home {
        let (index, at) = split(extent);
        if self.chunks.len() <= index {
            self.chunks.resize_with(index + 1, || None);
        }
        let chunk = self.chunks[index].get_or_insert_with(|| {
            Box::new(Chunk { homes: Rc::new([Home::default(); CHUNK_EXTENTS]), page: None, dirty: true })
        });
        chunk.dirty = true;
        let old = std::mem::replace(&mut Rc::make_mut(&mut chunk.homes)[at], home);
        self.slabs += u64::from(home.slab().is_some());
        self.slabs -= u64::from(old.slab().is_some());
        old
    }

    /// A chunk has to be written again.
    pub(crate) fn mark_dirty(&mut self, chunk: u32) {
        if let Some(Some(chunk)) = self.chunks.get_mut(chunk as usize) {
            chunk.dirty = true;
        }
    }

    /// Everything that is to be here has come: what is still lost was never written.
    pub(crate) fn forget_lost(&mut self) {
        if !std::mem::take(&mut self.lost) {
            return;
        }
        for chunk in self.chunks.iter_mut().flatten().filter(|chunk| chunk.homes.iter().any(Home::is_lost)) {
            chunk.dirty = true;
            Rc::make_mut(&mut chunk.homes)
                .iter_mut()
                .filter(|home| home.is_lost())
                .for_each(|home| *home = Home::default());
        }
    }

    /// The extents from `from` on that were ever given a home, in order.
    pub(crate) fn from(&self, from: ExtentIndex) -> impl Iterator<Item = (ExtentIndex, Home)> + '_ {
        let (first, at) = split(from);
        self.chunks.iter().enumerate().skip(first).filter_map(|(index, chunk)| Some((index, chunk.as_ref()?))).flat_map(
            move |(index, chunk)| {
                let skip = if index == first { at } else { 0 };
                let homes = chunk.homes.iter().enumerate().skip(skip).filter(|(_, home)| **home != Home::default());
                #[allow(clippy::cast_possible_truncation)] // an extent's index is a u32
                homes.map(move |(at, home)| (ExtentIndex((index * CHUNK_EXTENTS + at) as u32), *home))
            },
        )
    }

    /// The chunks there are, with their numbers.
    pub(crate) fn chunks(&self) -> impl Iterator<Item = (u32, &Chunk)> {
        #[allow(clippy::cast_possible_truncation)] // far fewer than extents
        self.chunks.iter().enumerate().filter_map(|(index, chunk)| Some((index as u32, &**chunk.as_ref()?)))
    }

    /// The same, to be changed by a checkpoint.
    pub(crate) fn chunks_mut(&mut self) -> impl Iterator<Item = (u32, &mut Chunk)> {
        #[allow(clippy::cast_possible_truncation)] // far fewer than extents
        self.chunks.iter_mut().enumerate().filter_map(|(index, chunk)| Some((index as u32, &mut **chunk.as_mut()?)))
    }
}
