//! When two nodes have a connection again: the production pauses of each pair, from when it broke.

use engine_core::ids::NodeId;
use engine_core::limits::{REDIAL_MAX, REDIAL_MIN};
use engine_core::random::mix;
use engine_core::remirror::backoff::Backoff;
use engine_core::time::Time;

use super::{DELAY, World, index};

impl World<'_> {
    /// Since when (or from when on) these two are connected; `None` while one of them is out of reach.
    pub(super) fn linked_at(&self, one: NodeId, other: NodeId) -> Option<Time> {
        let (a, b) = (&self.nodes[index(one)], &self.nodes[index(other)]);
        if !a.up || !b.up {
            return None;
        }
        let back = a.back_at.max(b.back_at);
        if back == Time(0) {
            return Some(back);
        }
        // Both dial since the first of the two was cut off; whoever succeeds first connects them.
        let (low, high) = (one.min(other), one.max(other));
        let pair = u64::from(low.0) << 16 | u64::from(high.0);
        let broken = if a.back_at > b.back_at { a.cut_at } else { b.cut_at };
        Some(dialled(broken, back, pair).min(dialled(broken, back, !pair)))
    }

    /// Whether they are connected now.
    pub(super) fn is_linked(&self, one: NodeId, other: NodeId) -> bool {
        self.linked_at(one, other).is_some_and(|at| at <= self.now)
    }

    /// When a node that is back reaches the authority.
    pub(super) fn dials_authority(&self, node: u16) -> Time {
        let place = &self.nodes[usize::from(node)];
        dialled(place.cut_at, place.back_at, u64::from(node) | 1 << 40)
    }
}

/// The first attempt since `back` of somebody who dials since `broken`.
fn dialled(broken: Time, back: Time, seed: u64) -> Time {
    let mut backoff = Backoff::new(REDIAL_MIN, REDIAL_MAX, mix(seed));
    let mut at = broken;
    while at < back {
        at = at + backoff.pause();
    }
    at + DELAY + DELAY
}
