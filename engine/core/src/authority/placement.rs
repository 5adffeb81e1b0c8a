//! Where a copy goes: a pure function of the nodes, the need and a seed.
//!
//! Failure domains come first (no two copies on a node; no two in a zone where the volume is spread over zones), then
//! room, then chance by seed so that equals share the load. Of the nodes chosen, the one that leads least is primary.
//! The tables in `fixtures/placement` say what is chosen and why.

use alloc::string::{String, ToString};
use alloc::vec::Vec;
use core::fmt;

use super::document::Spread;
use crate::ids::NodeId;
use crate::limits::EXTENT_SIZE;
use crate::random::mix;
use crate::sabotage::{Invariant, breaks};

/// A node as placement sees it. Only nodes in touch are offered.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub struct Room<'a> {
    /// The node.
    pub node: NodeId,
    /// Its failure domain.
    pub zone: &'a str,
    /// Extents it can hold.
    pub capacity: u64,
    /// Extents booked.
    pub booked: u64,
    /// Of its capacity, extents that new volumes do not get.
    pub kept: u64,
    /// Extents free on that of its devices which has most: a copy lies on one. What is not known is no limit.
    pub fits: u64,
    /// Segments it leads.
    pub primaries: u64,
}

/// What the space is for.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub enum Purpose {
    /// A new volume: the headroom is not for it (I13).
    NewVolume,
    /// A copy that is missing: may use everything.
    Remirror,
}

impl Room<'_> {
    /// Extents that may still be booked for this purpose.
    #[must_use]
    pub fn free(&self, purpose: Purpose) -> u64 {
        let usable = match purpose {
            Purpose::NewVolume => self.capacity - self.kept.min(self.capacity),
            Purpose::Remirror => self.capacity,
        };
        if breaks(Invariant::I13) { usable } else { usable.saturating_sub(self.booked).min(self.fits) }
    }
}

/// What is needed.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub struct Need<'a> {
    /// How many copies to place now.
    pub copies: usize,
    /// Length of each in extents.
    pub extents: u32,
    /// Failure domain that copies must not share.
    pub spread: Spread,
    /// All copies in this zone.
    pub zone: Option<&'a str>,
    /// Nodes that must not be chosen: they hold a copy, or still have to drop one.
    pub without: &'a [NodeId],
    /// Zones that hold a copy already.
    pub taken: &'a [&'a str],
    /// What the space is for.
    pub purpose: Purpose,
    /// Decides among equals.
    pub seed: u64,
}

/// Why no place was found, with figures.
#[derive(Clone, PartialEq, Eq, Debug)]
pub struct NoPlace {
    /// Copies asked for.
    pub copies: usize,
    /// Length of each.
    pub extents: u32,
    /// The rule on failure domains, in words.
    pub domain: String,
    /// Nodes that may be chosen at all.
    pub nodes: usize,
    /// Of these, how many have room.
    pub fitting: usize,
    /// Most free extents on any of them.
    pub largest: u64,
}

impl fmt::Display for NoPlace {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let copies = if self.copies == 1 { "copy" } else { "copies" };
        let needed = Size(u64::from(self.extents) * EXTENT_SIZE);
        write!(f, "{} {copies} of {needed} needed{}: ", self.copies, self.domain)?;
        write!(f, "{} of {} nodes in touch that qualify have room, ", self.fitting, self.nodes)?;
        write!(f, "the most free on one is {}", Size(self.largest * EXTENT_SIZE))
    }
}

impl core::error::Error for NoPlace {}

/// Bytes for people, in binary units.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub struct Size(pub u64);

impl fmt::Display for Size {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let units = [(1_u64 << 40, "TiB"), (1 << 30, "GiB"), (1 << 20, "MiB"), (1 << 10, "KiB")];
        match units.into_iter().find(|(unit, _)| self.0 >= *unit) {
            Some((unit, name)) if self.0.is_multiple_of(unit) => write!(f, "{} {name}", self.0 / unit),
            Some((unit, name)) => write!(f, "{}.{} {name}", self.0 / unit, self.0 % unit * 10 / unit),
            None => write!(f, "{} bytes", self.0),
        }
    }
}

/// Chooses `need.copies` nodes, the primary first.
///
/// # Errors
/// [`NoPlace`] with the figures when there are not enough failure domains with room.
pub fn choose(rooms: &[Room<'_>], need: &Need<'_>) -> Result<Vec<NodeId>, NoPlace> {
    let mut chosen: Vec<&Room<'_>> = Vec::with_capacity(need.copies);
    while chosen.len() < need.copies {
        match best(rooms, need, &chosen) {
            Some(room) => chosen.push(room),
            None => return Err(no_place(rooms, need)),
        }
    }
    // Leads least first; the rest in the order chosen.
    if let Some(first) = (0..chosen.len()).min_by_key(|at| (chosen[*at].primaries, rank(need.seed, chosen[*at].node))) {
        chosen[..=first].rotate_right(1);
    }
    Ok(chosen.iter().map(|room| room.node).collect())
}

fn best<'r, 'z>(rooms: &'r [Room<'z>], need: &Need<'_>, chosen: &[&Room<'_>]) -> Option<&'r Room<'z>> {
    let shares_zone =
        |room: &Room<'_>| need.taken.contains(&room.zone) || chosen.iter().any(|other| other.zone == room.zone);
    rooms
        .iter()
        .filter(|room| allowed(room, need))
        .filter(|room| !chosen.iter().any(|other| other.node == room.node))
        .filter(|room| room.free(need.purpose) >= u64::from(need.extents))
        .filter(|room| need.spread == Spread::Node || !shares_zone(room))
        .min_by_key(|room| {
            // Sixteenths of the device first: nodes of different size fill up alike. Then equals share evenly.
            let fullness = room.booked * 16 / room.capacity.max(1);
            (shares_zone(room), fullness, room.booked, room.primaries, rank(need.seed, room.node))
        })
}

fn allowed(room: &Room<'_>, need: &Need<'_>) -> bool {
    !need.without.contains(&room.node)
        && need.zone.is_none_or(|zone| zone == room.zone)
        && !(need.spread == Spread::Zone && need.taken.contains(&room.zone))
}

const fn rank(seed: u64, node: NodeId) -> u64 {
    mix(seed ^ mix(node.0 as u64))
}

fn no_place(rooms: &[Room<'_>], need: &Need<'_>) -> NoPlace {
    let usable = || rooms.iter().filter(|room| allowed(room, need));
    let largest = usable().map(|room| room.free(need.purpose)).max().unwrap_or(0);
    let domain = match (need.zone, need.spread, need.copies) {
        (Some(zone), ..) => alloc::format!(" on different nodes of zone {zone}"),
        (None, Spread::Zone, 1) => " in a zone without one".to_string(),
        (None, Spread::Zone, _) => " in different zones".to_string(),
        (None, Spread::Node, _) => " on different nodes".to_string(),
    };
    NoPlace {
        copies: need.copies,
        extents: need.extents,
        domain,
        nodes: usable().count(),
        fitting: usable().filter(|room| room.free(need.purpose) >= u64::from(need.extents)).count(),
        largest,
    }
}
