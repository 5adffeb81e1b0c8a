//! A segment's configuration: who holds it, who leads, who may write. Owned by the authority, changed only by
//! compare-and-swap from one epoch to the next (I1).

#[cfg(feature = "openapi")]
use alloc::string::String;
use alloc::vec::Vec;

use serde::{Deserialize, Serialize};

use crate::ids::{Epoch, Generation, Incarnation, NodeId, SegmentId};

/// One configuration of one segment. Two configurations of one segment with one epoch are the same configuration.
#[derive(Clone, PartialEq, Eq, Debug, Serialize, Deserialize)]
#[cfg_attr(feature = "openapi", derive(utoipa::ToSchema))]
pub struct Config {
    /// The segment.
    pub segment: SegmentId,
    /// Which life of its data.
    pub incarnation: Incarnation,
    /// Number of this configuration.
    pub epoch: Epoch,
    /// The member that orders writes, once it has begun this epoch (I6).
    pub primary: NodeId,
    /// The in-sync set, primary included: every acknowledged write is durable on all of them (I3).
    pub members: Vec<NodeId>,
    /// Being caught up: they get live writes, their acknowledgement does not count yet.
    pub candidates: Vec<NodeId>,
    /// Who may be elected: members of the last epoch that could acknowledge a write (I5).
    pub electable: Vec<NodeId>,
    /// Left out, but their copy may still come back by catch-up; kept until the segment is whole without them (I12).
    pub former: Vec<NodeId>,
    /// The attachment every request is checked against (I2).
    pub generation: Generation,
    /// Copies wanted.
    pub copies: u8,
    /// Fewer members than this commit nothing (I5).
    pub min_copies: u8,
    /// Length of the segment in extents of 128 KiB.
    pub extents: u32,
}

impl Config {
    /// Whether writes may be acknowledged in this configuration (I5).
    #[must_use]
    pub fn may_commit(&self) -> bool {
        self.members.len() >= usize::from(self.min_copies)
    }

    /// Whether `node` is in the in-sync set.
    #[must_use]
    pub fn is_member(&self, node: NodeId) -> bool {
        self.members.contains(&node)
    }

    /// Whether `node` is being caught up.
    #[must_use]
    pub fn is_candidate(&self, node: NodeId) -> bool {
        self.candidates.contains(&node)
    }

    /// Whether the segment goes on without `node`, whatever copy that holds.
    #[must_use]
    pub fn is_out(&self, node: NodeId) -> bool {
        !self.is_member(node) && !self.is_candidate(node)
    }

    /// Everyone whose copy matters or may matter again: members, candidates, former members, electable nodes.
    pub fn holders(&self) -> impl Iterator<Item = NodeId> + '_ {
        let lists = [&self.members, &self.candidates, &self.former, &self.electable];
        (0..lists.len()).flat_map(move |which| {
            lists[which].iter().copied().filter(move |node| !lists[..which].iter().any(|list| list.contains(node)))
        })
    }

    /// Bytes it needs in a message, at most.
    #[must_use]
    pub const fn wire_bytes(&self) -> usize {
        let named = self.members.len() + self.candidates.len() + self.electable.len() + self.former.len();
        128 + named * size_of::<NodeId>()
    }

    /// Copies that are missing.
    #[must_use]
    pub fn missing(&self) -> usize {
        usize::from(self.copies).saturating_sub(self.members.len())
    }

    /// Of these, copies that nobody is being caught up to become.
    #[must_use]
    pub fn searched(&self) -> usize {
        self.missing().saturating_sub(self.candidates.len())
    }
}
