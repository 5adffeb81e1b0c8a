//! Load: what clients do by themselves while faults happen.

use engine_core::ids::SegmentId;
use engine_core::time::Span;

use crate::client::{Task, Wish};
use crate::conns::ClientId;
use crate::world::World;

/// Blocks of the longest operations: beyond 16 they may go around the log, straight to fresh slabs.
const LARGE: u64 = 40;

/// A mix of reads, writes, zeroes and questions for allocation.
#[derive(Debug, Clone)]
pub(crate) struct Load {
    pub(crate) segments: Vec<SegmentId>,
    /// Blocks it touches, of each segment.
    pub(crate) blocks: u32,
    /// Of these many are touched half of the time.
    pub(crate) hot: u32,
    /// Operations under way at most.
    pub(crate) depth: usize,
    /// How often operations are begun.
    pub(crate) every: Span,
    /// How many at a time at most.
    pub(crate) burst: u64,
    /// Reads in a hundred.
    pub(crate) reads: u64,
    /// Zeroes in a hundred writes.
    pub(crate) zeros: u64,
    /// Longest ordinary operation in blocks.
    pub(crate) longest: u64,
    /// Operations in a hundred that are longer.
    pub(crate) large: u64,
}

impl Load {
    fn step(&self, world: &mut World) {
        let begun = world.between(0, self.burst);
        for _ in 0..begun {
            // One that was replaced and has not heard of it goes on for a while.
            let id = if world.attached > 1 && world.between(0, 15) == 0 { world.attached - 1 } else { world.attached };
            let usable = world.clients.get(&id).filter(|client| client.is_usable());
            if usable.is_none_or(|client| client.tasks.len() >= self.depth) {
                continue;
            }
            let which = world.between(0, self.segments.len() as u64 - 1);
            let segment = self.segments[usize::try_from(which).expect("few")];
            let range = if world.between(0, 1) == 0 { self.hot } else { self.blocks };
            let longest = if world.between(0, 99) < self.large { LARGE } else { self.longest };
            let count = world.between(1, longest.min(u64::from(range)));
            let block = world.between(0, u64::from(range) - count);
            let (block, count) = (u32::try_from(block).expect("small"), u32::try_from(count).expect("small"));
            if world.between(0, 99) < self.reads {
                let allocation = world.between(0, 9) == 0;
                world.begin_read(id, segment, block, count, allocation);
            } else {
                let zero = world.between(0, 99) < self.zeros;
                world.begin_write(id, segment, block, count, zero);
            }
        }
    }
}

impl World {
    /// Load goes on, as long as there is one.
    pub(crate) fn on_load(&mut self) {
        self.poll_attach();
        self.poll_filling();
        let mut every = Span::millis(2);
        if let Some(load) = self.load.take() {
            load.step(self);
            every = load.every;
            self.load.get_or_insert(load);
        }
        self.after(every, crate::world::Event::Load);
    }

    /// Begins a write.
    pub(crate) fn write(&mut self, segment: SegmentId, block: u32, count: u32) {
        self.begin_write(self.attached_to(segment), segment, block, count, false);
    }

    pub(crate) fn begin_write(&mut self, id: ClientId, segment: SegmentId, block: u32, count: u32, zero: bool) {
        let Some(by) = self.clients.get(&id).map(|client| client.generation) else { return };
        let versions = self.history.issue(self.now, by, (segment, block), count, zero);
        let wish = if zero { Wish::Zero(versions) } else { Wish::Write(versions) };
        self.submit(id, Task { segment, block, count, wish, begun: self.now });
    }

    /// Begins a read.
    pub(crate) fn read(&mut self, segment: SegmentId, block: u32, count: u32) {
        self.begin_read(self.attached_to(segment), segment, block, count, false);
    }

    pub(crate) fn begin_read(&mut self, id: ClientId, segment: SegmentId, block: u32, count: u32, allocation: bool) {
        let floors = self.history.floors(segment, block, count);
        let wish = if allocation { Wish::Allocation(floors) } else { Wish::Read(floors) };
        self.submit(id, Task { segment, block, count, wish, begun: self.now });
    }

    pub(crate) fn is_idle(&self) -> bool {
        let neighbours = self.neighbours.iter().filter_map(|id| self.clients.get(id));
        self.client().into_iter().chain(neighbours).all(|client| client.tasks.is_empty())
    }

    /// Who may ask for something in this segment.
    fn attached_to(&self, segment: SegmentId) -> ClientId {
        let is_its = |id: &&ClientId| self.clients.get(id).is_some_and(|client| client.sessions.contains_key(&segment));
        self.neighbours.iter().find(is_its).copied().unwrap_or(self.attached)
    }

    /// Waits until everything begun is done.
    pub(crate) fn expect_done(&mut self, limit: Span) {
        let done = self.until(limit, |world| world.is_idle());
        if !done {
            let tasks = self.client().map(|client| format!("{:?} {:?}", client.sessions, client.tasks.values().next()));
            self.fail(&format!("operations hang: {}", tasks.unwrap_or_default()));
        }
    }
}
