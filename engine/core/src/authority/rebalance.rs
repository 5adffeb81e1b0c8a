//! Rebalancing: who leads how much, once a node is back and has been there for a while.
//!
//! The intuition: a node's share of the lead is, for each segment it is a member of, one part of as many as it has members.
//! Who leads clearly more than its share is asked to hand a segment over to a member that leads clearly less; the
//! primary does it when it can, or not. [`choose`] is pure; the rest is pacing.
//!
//! Invariants: a choice never turns the order of two nodes around, so there is no ping-pong; a node that comes and goes is
//! not counted on, a segment that moved stays for a while; what is asked at a time is bounded (I15). Nothing is decided
//! about a configuration here: the primary proposes (I1).

use alloc::collections::BTreeMap;
use alloc::vec::Vec;

use super::Authority;
use super::io::Effects;
use crate::config::Config;
use crate::ids::{NodeId, SegmentId};
use crate::limits::{COPIES_MAX, REBALANCE_EVERY, REBALANCE_PAUSE, REBALANCE_SETTLED, REBALANCES_PER_LOOK};
use crate::message::FromAuthority;
use crate::time::Time;

/// A segment counts for this much, so that a part of it is a whole number whatever its members.
const WHOLE: i64 = 60;
const _: () = assert!(COPIES_MAX <= 5, "60 is divided by every number of members");
/// Two nodes this far apart are uneven: handing one segment over brings them at most level.
const UNEVEN: i64 = 2 * WHOLE;

/// What was asked lately. Volatile: after a restart every node has to settle anew.
#[derive(Debug, Clone, Default)]
pub(super) struct Rebalancing {
    looked: Time,
    asked: BTreeMap<SegmentId, Time>,
}

/// A segment whose lead should move.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Move {
    /// Which.
    pub segment: SegmentId,
    /// To this member.
    pub to: NodeId,
}

/// What a node leads beside what it should, in parts of a segment.
#[derive(Debug, Clone, Copy, Default)]
struct Standing {
    leads: i64,
    share: i64,
}

impl Standing {
    const fn excess(self) -> i64 {
        self.leads - self.share
    }
}

/// Chooses at most `most` segments whose lead should move, among those that `may_move`, between nodes that are `settled`.
#[must_use]
pub fn choose<'a>(
    segments: impl Iterator<Item = &'a Config> + Clone,
    settled: impl Fn(NodeId) -> bool,
    may_move: impl Fn(SegmentId) -> bool,
    most: usize,
) -> Vec<Move> {
    let mut standings: BTreeMap<NodeId, Standing> = BTreeMap::new();
    for config in segments.clone() {
        standings.entry(config.primary).or_default().leads += WHOLE;
        let part = WHOLE / i64::try_from(config.members.len().max(1)).unwrap_or(WHOLE);
        for member in &config.members {
            standings.entry(*member).or_default().share += part;
        }
    }
    let mut moves = Vec::new();
    // A copy under way goes on undisturbed.
    let quiet = |config: &&Config| config.may_commit() && config.candidates.is_empty() && may_move(config.segment);
    for config in segments.filter(quiet) {
        if moves.len() >= most {
            break;
        }
        let from = standings.get(&config.primary).copied().unwrap_or_default();
        let excess = |node: &NodeId| standings.get(node).copied().unwrap_or_default().excess();
        let others = config.members.iter().copied().filter(|node| *node != config.primary && settled(*node));
        let Some(to) = others.min_by_key(excess) else { continue };
        let clearly = UNEVEN.max(from.share / 10);
        if !settled(config.primary) || from.excess() - excess(&to) < clearly {
            continue;
        }
        standings.entry(config.primary).or_default().leads -= WHOLE;
        standings.entry(to).or_default().leads += WHOLE;
        moves.push(Move { segment: config.segment, to });
    }
    moves
}

impl Authority {
    pub(super) fn tick_rebalancing(&mut self, now: Time, effects: &mut Effects) {
        if now.since(self.rebalancing.looked) < REBALANCE_EVERY {
            return;
        }
        self.rebalancing.looked = now;
        self.rebalancing.asked.retain(|_, asked| now.since(*asked) < REBALANCE_PAUSE);
        let configs = self.books.segments().values().map(|record| &record.config);
        let settled = |node| self.is_settled(now, node);
        let may_move = |segment| !self.rebalancing.asked.contains_key(&segment);
        for Move { segment, to } in choose(configs, settled, may_move, REBALANCES_PER_LOOK) {
            let Config { primary, epoch, .. } = self.books.segments()[&segment].config;
            self.rebalancing.asked.insert(segment, now);
            effects.send(primary, FromAuthority::HandOver { segment, epoch, to });
        }
    }

    /// Whether the node has been there for long enough to be counted on.
    fn is_settled(&self, now: Time, node: NodeId) -> bool {
        let since = self.presence.get(&node).and_then(|presence| presence.since);
        self.is_up(now, node) && since.is_some_and(|since| now.since(since) >= REBALANCE_SETTLED)
    }
}

#[cfg(test)]
mod tests {
    use alloc::vec;

    use super::*;
    use crate::ids::{Epoch, Generation, Incarnation, VolumeId};

    fn config(index: u32, primary: u16, members: &[u16]) -> Config {
        let members: Vec<NodeId> = members.iter().copied().map(NodeId).collect();
        Config {
            segment: SegmentId { volume: VolumeId(1), index },
            incarnation: Incarnation(1),
            epoch: Epoch(4),
            primary: NodeId(primary),
            electable: members.clone(),
            members,
            candidates: vec![],
            former: vec![],
            generation: Generation(1),
            copies: 3,
            min_copies: 2,
            extents: 512,
        }
    }

    /// Moves until nothing is left to move; how many moves it took, and who leads how many in the end.
    fn settle(configs: &mut [Config]) -> (usize, Vec<usize>) {
        let mut count = 0;
        loop {
            let moves = choose(configs.iter(), |_| true, |_| true, 4);
            if moves.is_empty() {
                let leads = |node| configs.iter().filter(|config| config.primary == NodeId(node)).count();
                return (count, (1..=4).map(leads).collect());
            }
            count += moves.len();
            for Move { segment, to } in moves {
                configs[segment.index as usize].primary = to;
            }
            assert!(count < 1000, "ping-pong");
        }
    }

    #[test]
    fn a_node_that_is_back_gets_its_share_and_no_more() {
        let mut configs: Vec<Config> = (0..30).map(|i| config(i, if i % 2 == 0 { 1 } else { 2 }, &[1, 2, 3])).collect();
        let (count, leads) = settle(&mut configs);
        assert_eq!(leads, [10, 10, 10, 0]);
        assert_eq!(count, 10, "none moves twice");
    }

    #[test]
    fn little_is_left_as_it_is() {
        let mut one = vec![config(0, 1, &[1, 2, 3])];
        assert_eq!(settle(&mut one).0, 0);
        let mut two = vec![config(0, 1, &[1, 2, 3]), config(1, 2, &[1, 2, 3])];
        assert_eq!(settle(&mut two).0, 0);
    }

    #[test]
    fn a_node_that_comes_and_goes_gets_nothing_and_a_segment_that_moved_stays() {
        let configs: Vec<Config> = (0..9).map(|i| config(i, 1, &[1, 2, 3])).collect();
        let chosen = choose(configs.iter(), |node| node != NodeId(3), |segment| segment.index > 3, 100);
        assert!(!chosen.is_empty());
        assert!(chosen.iter().all(|chosen| chosen.to == NodeId(2) && chosen.segment.index > 3), "{chosen:?}");
    }

    #[test]
    fn large_numbers_are_level_within_a_tenth() {
        let mut configs: Vec<Config> = (0..400).map(|i| config(i, 1 + u16::from(i % 8 == 0), &[1, 2, 3])).collect();
        let (_, leads) = settle(&mut configs);
        assert!(leads[..3].iter().all(|leads| (113..=153).contains(leads)), "{leads:?}");
    }
}
