//! What is going to happen, in order: by time, and at one time by number.
//!
//! Events lie in slots; the heap moves only keys. Invariant: two worlds that put the same in take the same out.

use std::cmp::Reverse;
use std::collections::BinaryHeap;

use engine_core::time::Time;

/// A queue of events.
#[derive(Debug)]
pub(crate) struct Queue<E> {
    heap: BinaryHeap<Reverse<(Time, u64, usize)>>,
    slots: Vec<Option<E>>,
    free: Vec<usize>,
    number: u64,
}

impl<E> Queue<E> {
    pub(crate) const fn new() -> Self {
        Self { heap: BinaryHeap::new(), slots: Vec::new(), free: Vec::new(), number: 0 }
    }

    pub(crate) fn push(&mut self, time: Time, event: E) {
        let slot = self.free.pop().unwrap_or_else(|| {
            self.slots.push(None);
            self.slots.len() - 1
        });
        self.slots[slot] = Some(event);
        self.number += 1;
        self.heap.push(Reverse((time, self.number, slot)));
    }

    /// The next event, unless it is later than `end`.
    pub(crate) fn pop_until(&mut self, end: Time) -> Option<(Time, E)> {
        let Reverse((time, _, slot)) = *self.heap.peek().filter(|entry| entry.0.0 <= end)?;
        self.heap.pop();
        self.free.push(slot);
        Some((time, self.slots[slot].take().expect("a slot in the heap is full")))
    }
}
