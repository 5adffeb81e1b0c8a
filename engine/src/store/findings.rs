//! What is wrong with a device, gathered while it is read. The list is bounded, the counts are not.

use engine_core::limits::PROBLEMS_LISTED_MAX;

use super::report::{Place, Problem, Verdict};
use super::superblock::Region;

/// Not a structure on the device: the replica that suffers from what is wrong with one.
pub(crate) const REPLICA: &str = "replica";

/// Problems of one shard, or of the whole device.
#[derive(Debug, Default)]
pub(crate) struct Findings {
    shard: Option<u16>,
    /// The first of them.
    pub(crate) problems: Vec<Problem>,
    /// The others.
    pub(crate) left_off: u64,
}

impl Findings {
    pub(crate) fn of(region: Region) -> Self {
        Self { shard: Some(region.shard), ..Self::default() }
    }

    /// How many structures are damaged. What that means for a replica is no further damage.
    pub(crate) fn structures(&self) -> u64 {
        let damaged = self.problems.iter().filter(|problem| problem.structure != REPLICA);
        damaged.count() as u64 + self.left_off
    }

    /// `offset` is on the device.
    pub(crate) fn add(
        &mut self,
        offset: u64,
        structure: &'static str,
        place: Place,
        verdict: Verdict,
        what: impl Into<String>,
    ) {
        if self.problems.len() < PROBLEMS_LISTED_MAX {
            let (shard, what) = (self.shard, what.into());
            let next = verdict.advice();
            self.problems.push(Problem { shard, offset, structure, place, verdict, what, next });
        } else {
            self.left_off += 1;
        }
    }
}
