//! Who may change which blocks at the same time.
//!
//! A write that does not cover whole blocks reads them, puts its bytes in and writes them back. In between, nobody
//! else may change them: it holds its range alone. Writes of whole blocks share theirs. First come, first served: a
//! ticket waits only for tickets drawn before, so nobody starves and nobody waits in a circle.

use std::cell::{Cell, RefCell};
use std::collections::BTreeMap;
use std::ops::Range;
use std::rc::Rc;

use tokio::sync::Notify;

/// The tickets of one volume.
#[derive(Default)]
pub(super) struct BlockLocks {
    next: Cell<u64>,
    alone: RefCell<BTreeMap<u64, Range<u64>>>,
    shared: RefCell<BTreeMap<u64, Range<u64>>>,
    released: Notify,
}

/// A range that is held until this is dropped.
pub(super) struct Held {
    locks: Rc<BlockLocks>,
    ticket: u64,
    alone: bool,
}

fn overlap(a: &Range<u64>, b: &Range<u64>) -> bool {
    a.start < b.end && b.start < a.end
}

impl BlockLocks {
    /// Waits for `range`, counted in blocks.
    pub(super) async fn hold(self: &Rc<Self>, range: Range<u64>, alone: bool) -> Held {
        let ticket = self.next.get();
        self.next.set(ticket + 1);
        let list = if alone { &self.alone } else { &self.shared };
        list.borrow_mut().insert(ticket, range.clone());
        // Made before the first wait: who gives up waiting leaves the list, too.
        let held = Held { locks: Rc::clone(self), ticket, alone };
        loop {
            let released = self.released.notified();
            if !self.is_taken(ticket, &range, alone) {
                return held;
            }
            released.await;
        }
    }

    fn is_taken(&self, ticket: u64, range: &Range<u64>, alone: bool) -> bool {
        let earlier = |list: &RefCell<BTreeMap<u64, Range<u64>>>| {
            list.borrow().range(..ticket).any(|(_, other)| overlap(other, range))
        };
        earlier(&self.alone) || (alone && earlier(&self.shared))
    }
}

impl Drop for Held {
    fn drop(&mut self) {
        let list = if self.alone { &self.locks.alone } else { &self.locks.shared };
        list.borrow_mut().remove(&self.ticket);
        self.locks.released.notify_waiters();
    }
}
