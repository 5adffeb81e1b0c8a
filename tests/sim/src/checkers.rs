//! What must hold: reads and acknowledged writes have one order ([`Linear`]; the obvious cases are named at once), nothing
//! of a fenced attachment is acknowledged (I2), configurations form one chain (I1, I5, I10).

use std::collections::BTreeMap;

use engine_core::config::Config;
use engine_core::ids::{Epoch, Generation, NodeId, SegmentId};
use engine_core::time::Time;

use crate::client::Task;
use crate::linear::Linear;

/// What is known of one block's versions.
#[derive(Debug, Clone, Copy, Default)]
pub(crate) struct Block {
    pub(crate) issued: u64,
    pub(crate) acknowledged: u64,
    seen: u64,
    pub(crate) writing: bool,
}

/// Every block ever written.
#[derive(Debug, Default)]
pub(crate) struct History {
    pub(crate) blocks: BTreeMap<(SegmentId, u32), Block>,
    pub(crate) acknowledged: u64,
    pub(crate) reads: u64,
    pub(crate) last_ack: Time,
    pub(crate) linear: Linear,
    /// The newest attachment that a client was told of, and when.
    attached: (Generation, Time),
}

impl History {
    /// New versions for these blocks; `None`: one of them is being written.
    pub(crate) fn issue(&mut self, now: Time, segment: SegmentId, block: u32, count: u32) -> Option<Vec<u64>> {
        let range = (segment, block)..(segment, block + count);
        if self.blocks.range(range).any(|(_, known)| known.writing) {
            return None;
        }
        let next = |block| {
            let known = self.blocks.entry((segment, block)).or_default();
            (known.issued, known.writing) = (known.issued + 1, true);
            known.issued
        };
        let versions: Vec<u64> = (block..block + count).map(next).collect();
        for (block, version) in (block..).zip(&versions) {
            self.linear.begins(now, (segment, block), *version, false);
        }
        Some(versions)
    }

    /// The oldest versions a read that begins now may return.
    pub(crate) fn floors(&self, segment: SegmentId, block: u32, count: u32) -> Vec<u64> {
        let floor = |block| self.blocks.get(&(segment, block)).map_or(0, |b| b.acknowledged.max(b.seen));
        (block..block + count).map(floor).collect()
    }

    pub(crate) fn acknowledged(&mut self, now: Time, by: Generation, task: &Task) {
        let (newest, since) = self.attached;
        assert!(by >= newest || task.begun <= since, "{by} was fenced for {newest} and has a write acknowledged (I2)");
        self.acknowledged += 1;
        self.last_ack = now;
        for (block, version) in (task.block..).zip(task.write.iter().flatten()) {
            let known = self.blocks.get_mut(&(task.segment, block)).expect("issued");
            (known.acknowledged, known.writing) = (*version, false);
            self.linear.acknowledged(now, (task.segment, block), *version);
        }
    }

    /// Newest version of each block that is known to be there.
    pub(crate) fn versions(&self) -> Vec<u64> {
        self.blocks.values().map(|block| block.acknowledged.max(block.seen)).collect()
    }

    /// An attachment is at work: what older ones left without an answer is there by now, or never will be (I2).
    pub(crate) fn attached(&mut self, now: Time, generation: Generation) {
        self.attached = self.attached.max((generation, now));
        for (place, known) in &mut self.blocks {
            if std::mem::take(&mut known.writing) {
                self.linear.abandoned(now, *place, known.issued);
            }
        }
    }

    pub(crate) fn read(&mut self, now: Time, from: NodeId, epoch: Epoch, task: &Task, got: &[u64]) {
        self.reads += 1;
        for ((block, got), floor) in (task.block..).zip(got).zip(&task.floors) {
            let known = self.blocks.entry((task.segment, block)).or_default();
            assert!(
                got >= floor && *got <= known.issued,
                "{} block {block} read from {from} in {epoch} at {now:?}: version {got}, but {floor} was there when the \
                 read began ({:?}) and {} was issued last (I7)",
                task.segment,
                task.begun,
                known.issued
            );
            known.seen = known.seen.max(*got);
            self.linear.read(task.begun, now, (task.segment, block), *got);
        }
    }
}

/// Checks that `new` may follow `old`.
pub(crate) fn follows(old: Option<&Config>, new: &Config) {
    let mut places: Vec<NodeId> = new.members.iter().chain(&new.candidates).copied().collect();
    places.sort_unstable();
    places.dedup();
    assert_eq!(places.len(), new.members.len() + new.candidates.len(), "named twice: {new:?}");
    assert!(new.is_member(new.primary), "{new:?}");
    assert!(new.members.len() <= usize::from(new.copies));
    let Some(old) = old else { return };
    assert_eq!(new.epoch, old.epoch.next(), "one chain (I1): {old:?} then {new:?}");
    assert!(new.generation >= old.generation);
    for node in &new.members {
        let known = old.is_member(*node) || old.is_candidate(*node) || old.electable.contains(node);
        assert!(known, "{node} came from nowhere (I10): {old:?} then {new:?}");
    }
    if !new.may_commit() {
        assert!(old.electable.iter().all(|node| new.electable.contains(node)), "I5: {old:?} then {new:?}");
    }
}
