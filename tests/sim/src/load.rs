//! Load: what the client does by itself while faults happen.

use engine_core::ids::SegmentId;
use engine_core::time::Span;

use crate::world::World;

/// A mix of reads and writes.
#[derive(Debug, Clone)]
pub(crate) struct Load {
    pub(crate) segments: Vec<SegmentId>,
    /// Blocks it touches.
    pub(crate) blocks: u32,
    /// Of these many are touched half of the time.
    pub(crate) hot: u32,
    /// Operations under way at most.
    pub(crate) depth: usize,
    /// Operations begun per two milliseconds at most.
    pub(crate) burst: u64,
    /// Reads in a hundred.
    pub(crate) reads: u64,
    /// Longest operation in blocks.
    pub(crate) longest: u64,
}

impl Load {
    pub(crate) fn step(&mut self, world: &mut World) {
        let begun = world.between(0, self.burst);
        for _ in 0..begun {
            let under_way = world.client.as_ref().map_or(usize::MAX, |client| client.tasks.len());
            if under_way >= self.depth {
                return;
            }
            let which = world.between(0, self.segments.len() as u64 - 1);
            let segment = self.segments[usize::try_from(which).expect("few")];
            let range = if world.between(0, 1) == 0 { self.hot } else { self.blocks };
            let count = world.between(1, self.longest.min(u64::from(range)));
            let block = world.between(0, u64::from(range) - count);
            let (block, count) = (u32::try_from(block).expect("small"), u32::try_from(count).expect("small"));
            if world.between(0, 99) < self.reads {
                world.read(segment, block, count);
            } else {
                world.write(segment, block, count);
            }
        }
    }
}

impl World {
    /// Begins a write, unless one of the blocks is being written; says whether.
    pub(crate) fn write(&mut self, segment: SegmentId, block: u32, count: u32) -> bool {
        if self.client.as_ref().is_none_or(|client| client.fenced) {
            return false;
        }
        let Some(versions) = self.history.issue(self.now, segment, block, count) else { return false };
        let now = self.now;
        if let Some(client) = &mut self.client {
            client.begin(now, segment, block, count, Some(versions), Vec::new());
        }
        self.flush_client();
        true
    }

    /// Begins a read.
    pub(crate) fn read(&mut self, segment: SegmentId, block: u32, count: u32) {
        let floors = self.history.floors(segment, block, count);
        let now = self.now;
        if let Some(client) = &mut self.client {
            client.begin(now, segment, block, count, None, floors);
        }
        self.flush_client();
    }

    pub(crate) fn is_idle(&self) -> bool {
        self.client.as_ref().is_none_or(|client| client.tasks.is_empty())
    }

    /// Waits until everything begun is done.
    pub(crate) fn expect_done(&mut self, limit: Span) {
        let done = self.until(limit, |world| world.is_idle());
        if !done {
            let tasks =
                self.client.as_ref().map(|client| format!("{:?} {:?}", client.segs, client.tasks.iter().next()));
            self.fail(&format!("operations hang: {}", tasks.unwrap_or_default()));
        }
    }
}
