//! A device that is an older state of itself: everything on it is taken for damaged before anything is opened.
//!
//! Invariant: the word that a replica is not to be trusted is durable before the device's boot counter goes above the
//! one the authority remembers (I9); a crash in between finds the counter as low as before, and does it again.

use engine_core::record::{Record, Recovered};

use super::{Quay, Waiting, Wires};
use crate::store::Store;

/// Replicas whose new state goes into one write.
const STATES_PER_WRITE: usize = 256;

impl<S: Store, W: Wires> Quay<S, W> {
    /// Says durably that nothing found here is to be trusted. Comes before [`Quay::serve`], if at all.
    pub fn distrust(&mut self) {
        assert!(!self.serving, "only what is not open yet can be opened otherwise");
        let states: Vec<Record> = self.found.iter_mut().map(Recovered::distrust).collect();
        tracing::warn!(shard = self.shard, replicas = states.len(), "an older state of this device is back");
        for some in states.chunks(STATES_PER_WRITE) {
            let ticket = self.wait_for(Waiting::Distrust);
            self.store.persist(some.to_vec(), ticket);
            self.distrusting += 1;
        }
    }

    /// Whether what [`Quay::distrust`] began is durable.
    pub const fn is_distrusted(&self) -> bool {
        self.distrusting == 0
    }
}
