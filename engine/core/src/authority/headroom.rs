//! Headroom: space that only re-mirroring may use, sized to a stated failure (R4, I13).
//!
//! Intuition: whoever is lost has to fit on the others. Kept is a part of every node, the same for all, so that nodes fill up
//! alike: a stated percentage, or as much as the largest node, or zone, has. Where copies need every zone, a lost node's can only be made
//! in its own zone, and what is kept is reckoned within each zone.
//!
//! Invariants: a part is never more than the whole; where nobody could take over (a zone of one node), keeping space back would help
//! nobody, and what is kept follows the cluster.

use alloc::collections::BTreeMap;
use alloc::format;
use alloc::string::{String, ToString};
use core::fmt;
use core::str::FromStr;

use super::placement::Size;
use crate::ids::NodeId;
use crate::limits::{EXTENT_SIZE, HEADROOM_PER_MILLE};
use crate::sabotage::{Invariant, breaks};

/// What failure the headroom is for.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub enum Headroom {
    /// None in particular: this part of every node, per thousand.
    PerMille(u64),
    /// The loss of the largest node.
    Node,
    /// The loss of the largest zone.
    Zone,
}

impl Default for Headroom {
    fn default() -> Self {
        Self::PerMille(HEADROOM_PER_MILLE)
    }
}

impl fmt::Display for Headroom {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::PerMille(part) if part.is_multiple_of(10) => write!(f, "{}%", part / 10),
            Self::PerMille(part) => write!(f, "{}.{}%", part / 10, part % 10),
            Self::Node => f.write_str("node"),
            Self::Zone => f.write_str("zone"),
        }
    }
}

/// A text that says nothing about headroom.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
#[error("headroom is `node`, `zone`, or a percentage from `0%` to `90%`, not `{0}`")]
pub struct BadHeadroom(String);

impl FromStr for Headroom {
    type Err = BadHeadroom;

    fn from_str(text: &str) -> Result<Self, BadHeadroom> {
        let percent = |text: &str| text.strip_suffix('%')?.parse().ok().filter(|percent| *percent <= 90);
        match text {
            "node" => Ok(Self::Node),
            "zone" => Ok(Self::Zone),
            _ => percent(text).map(|percent: u64| Self::PerMille(percent * 10)).ok_or_else(|| BadHeadroom(text.into())),
        }
    }
}

/// A part of a node's capacity.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
struct Part {
    of: u64,
    whole: u64,
}

impl Part {
    /// Rounded up: what is kept is never less than stated.
    fn of(self, capacity: u64) -> u64 {
        let kept = (u128::from(capacity) * u128::from(self.of)).div_ceil(u128::from(self.whole.max(1)));
        u64::try_from(kept).unwrap_or(u64::MAX).min(capacity)
    }
}

/// How much is kept of each node, for the nodes there are.
#[derive(Debug, Clone)]
pub struct Kept {
    part: Part,
    /// Within each zone, for volumes whose copies need every zone.
    zones: BTreeMap<String, Part>,
    why: String,
}

impl Kept {
    /// By this policy, over nodes with zone and capacity in extents.
    pub fn new<'a>(policy: Headroom, nodes: impl Iterator<Item = (NodeId, &'a str, u64)>) -> Self {
        let mut zones: BTreeMap<&str, Sum> = BTreeMap::new();
        for (node, zone, capacity) in nodes {
            zones.entry(zone).or_default().add(node, capacity);
        }
        let mut all = Sum::default();
        zones.values().for_each(|zone| all.join(zone));
        let largest_zone = zones.iter().max_by_key(|(_, zone)| zone.total).filter(|_| zones.len() > 1);
        let (part, why) = match (policy, largest_zone) {
            (Headroom::PerMille(part), _) => {
                (Part { of: part, whole: 1000 }, format!("{policy} of every node are kept for re-mirroring"))
            }
            (Headroom::Zone, Some((name, zone))) => {
                let size = Size(zone.total * EXTENT_SIZE);
                let why = format!("as much is kept for re-mirroring as the largest zone has ({name}, {size})");
                (Part { of: zone.total, whole: all.total }, why)
            }
            (Headroom::Node | Headroom::Zone, _) => all.of_largest(),
        };
        let local = |zone: &Sum| match policy {
            Headroom::PerMille(_) => part,
            // Of a zone that is lost, nothing can be made anew where every other zone has a copy: a node of it can.
            Headroom::Node | Headroom::Zone if zone.nodes > 1 => zone.of_largest().0,
            Headroom::Node | Headroom::Zone => part,
        };
        let zones = zones.iter().map(|(name, zone)| (name.to_string(), local(zone))).collect();
        Self { part, zones, why }
    }

    /// Extents of a node that new volumes do not get; of one whose copies need every zone, if `local`.
    #[must_use]
    pub fn of(&self, zone: &str, capacity: u64, local: bool) -> u64 {
        let part = self.zones.get(zone).filter(|_| local).unwrap_or(&self.part);
        if breaks(Invariant::Headroom) { 0 } else { part.of(capacity) }
    }

    /// The policy with its figures.
    #[must_use]
    pub fn why(&self) -> &str {
        &self.why
    }
}

#[derive(Debug, Clone, Copy, Default)]
struct Sum {
    nodes: usize,
    total: u64,
    largest: Option<(u64, NodeId)>,
}

impl Sum {
    fn add(&mut self, node: NodeId, capacity: u64) {
        self.join(&Self { nodes: 1, total: capacity, largest: Some((capacity, node)) });
    }

    fn join(&mut self, other: &Self) {
        self.nodes += other.nodes;
        self.total += other.total;
        self.largest = self.largest.max(other.largest);
    }

    /// So much of each that the others can take what the largest has, were all as full as may be: with a part f kept of
    /// all, f (total - largest) >= (1 - f) largest. One node alone has no others.
    fn of_largest(&self) -> (Part, String) {
        let Some((largest, node)) = self.largest.filter(|_| self.nodes > 1) else {
            return (Part { of: 0, whole: 1 }, "nothing is kept for re-mirroring: there is no other node".into());
        };
        let size = Size(largest * EXTENT_SIZE);
        let why = format!("as much is kept for re-mirroring as the largest node has ({node}, {size})");
        (Part { of: largest, whole: self.total }, why)
    }
}

#[cfg(test)]
mod tests {
    #![allow(clippy::unwrap_used)]
    use super::*;

    /// Nodes by zone and capacity.
    fn kept(policy: Headroom, nodes: &[(&'static str, u64)]) -> Kept {
        let node = |(id, (zone, capacity)): (u16, &(&'static str, u64))| (NodeId(id), *zone, *capacity);
        Kept::new(policy, (1..).zip(nodes).map(node))
    }

    #[test]
    fn what_is_kept_holds_what_is_lost() {
        let nodes = [("a", 1000), ("a", 3000), ("b", 2000), ("b", 2000), ("c", 500), ("c", 500)];
        for (policy, lost) in [(Headroom::Node, 1..2), (Headroom::Zone, 0..2), (Headroom::Zone, 2..4)] {
            let kept = kept(policy, &nodes);
            // Everybody is as full as may be.
            let full = |(zone, capacity): &(&'static str, u64)| capacity - kept.of(zone, *capacity, false);
            let content: u64 = nodes[lost.clone()].iter().map(full).sum();
            let rest = nodes.iter().enumerate().filter(|(at, _)| !lost.contains(at));
            let room: u64 = rest.map(|(_, (zone, capacity))| kept.of(zone, *capacity, false)).sum();
            assert!(room >= content, "{policy}: {content} lost, room for {room}");
            assert!(room < content + content / 2, "{policy}: {room} is far more than {content}");
        }
    }

    #[test]
    fn where_copies_need_every_zone_a_zone_keeps_for_its_own() {
        let kept = kept(Headroom::Node, &[("a", 1000), ("a", 1000), ("b", 1000), ("b", 1000), ("c", 1000)]);
        assert_eq!(kept.of("a", 1000, false), 200);
        assert_eq!(kept.of("a", 1000, true), 500, "one of the two holds what the other had");
        assert_eq!(kept.of("c", 1000, true), 200, "no other node in the zone: nothing could be made there anew");
        assert!(kept.why().contains("n5") || kept.why().contains("125 MiB"), "{}", kept.why());
    }

    #[test]
    fn a_percentage_is_the_same_everywhere_and_rounded_up() {
        let kept = kept(Headroom::default(), &[("a", 1001), ("b", 5)]);
        assert_eq!((kept.of("a", 1001, true), kept.of("b", 5, false)), (101, 1));
        assert_eq!(kept.why(), "10% of every node are kept for re-mirroring");
    }

    #[test]
    fn a_node_alone_or_one_zone_alone_keep_nothing_for_nobody() {
        assert_eq!(kept(Headroom::Node, &[("a", 1000)]).of("a", 1000, true), 0);
        let zone = kept(Headroom::Zone, &[("a", 1000), ("a", 1000)]);
        assert_eq!(zone.of("a", 1000, false), 500, "there is no other zone: for a node of it");
    }

    #[test]
    fn policies_read_back_as_they_are_written() {
        for policy in [Headroom::Node, Headroom::Zone, Headroom::PerMille(0), Headroom::PerMille(900)] {
            assert_eq!(policy.to_string().parse(), Ok(policy));
        }
        for bad in ["", "10", "91%", "-1%", "rack", "%"] {
            assert!(bad.parse::<Headroom>().is_err(), "{bad}");
        }
    }
}
