//! Members that are lost again and again: the next time they come back, they have to be quiet for a while first.
//!
//! The intuition: leaving a member out and letting it in again costs three epochs and a catch-up. A restart is let back at
//! once; a link that flaps is not, or the segment would do little else. What it costs is a copy less for the time being.
//!
//! Invariant: what is remembered is bounded by the holders of a segment (I15); a pause is bounded, so everybody comes back.

use alloc::collections::BTreeMap;

use crate::ids::NodeId;
use crate::limits::{FLAP_WINDOW, FLAPS_FREE, QUIET_MAX, QUIET_MIN};
use crate::time::{Span, Time};

/// How often members were lost lately.
#[derive(Debug, Default)]
pub(super) struct Flaps {
    lost: BTreeMap<NodeId, Lost>,
}

#[derive(Debug)]
struct Lost {
    times: u32,
    last: Time,
}

impl Flaps {
    /// A member was left out although it did not ask for it.
    pub(super) fn note(&mut self, node: NodeId, now: Time) {
        self.lost.retain(|_, lost| now.since(lost.last) < FLAP_WINDOW);
        let lost = self.lost.entry(node).or_insert(Lost { times: 0, last: now });
        lost.times = lost.times.saturating_add(1);
        lost.last = now;
    }

    /// Whether this node was lost less than `span` ago.
    pub(super) fn lost_within(&self, span: Span, node: NodeId, now: Time) -> bool {
        self.lost.get(&node).is_some_and(|lost| now.since(lost.last) < span)
    }

    /// How long the connection of this node has to hold before it is asked back.
    pub(super) fn quiet(&self, node: NodeId, now: Time) -> Span {
        let Some(lost) = self.lost.get(&node).filter(|lost| now.since(lost.last) < FLAP_WINDOW) else {
            return Span::ZERO;
        };
        match lost.times.saturating_sub(FLAPS_FREE) {
            0 => Span::ZERO,
            again => Span(QUIET_MIN.0 << (again - 1).min(8)).min(QUIET_MAX),
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_restart_is_free_and_flapping_is_not() {
        let node = NodeId(2);
        let mut flaps = Flaps::default();
        let mut now = Time(0);
        let mut pauses = alloc::vec::Vec::new();
        for _ in 0..7 {
            flaps.note(node, now);
            now = now + Span::seconds(3);
            pauses.push(flaps.quiet(node, now).as_millis());
        }
        assert_eq!(pauses, [0, 0, 2000, 4000, 8000, 10_000, 10_000]);
        assert!(flaps.lost_within(Span::seconds(4), node, now) && !flaps.lost_within(Span::seconds(3), node, now));
        assert_eq!(flaps.quiet(NodeId(3), now), Span::ZERO);
        assert_eq!(flaps.quiet(node, now + FLAP_WINDOW), Span::ZERO, "forgotten");
    }
}
