//! Which nodes the replicas of a shard want connections to: counted, so that a change of one of thousands costs nothing.

use alloc::collections::{BTreeMap, BTreeSet};

use crate::ids::NodeId;

/// For every node, how many replicas want it.
#[derive(Debug, Default)]
pub struct Wanted {
    count: BTreeMap<NodeId, usize>,
    changed: bool,
}

impl Wanted {
    /// Nobody is wanted.
    #[must_use]
    pub fn new() -> Self {
        Self::default()
    }

    /// A replica that wanted `before` wants `after` now.
    pub fn exchange(&mut self, before: &BTreeSet<NodeId>, after: &BTreeSet<NodeId>) {
        for node in after.difference(before) {
            let count = self.count.entry(*node).or_insert(0);
            *count += 1;
            self.changed |= *count == 1;
        }
        for node in before.difference(after) {
            let count = self.count.get_mut(node).map_or(0, |count| {
                *count -= 1;
                *count
            });
            if count == 0 {
                self.count.remove(node);
                self.changed = true;
            }
        }
    }

    /// Whether `nodes` may say something else than when this was asked last.
    pub const fn take_changed(&mut self) -> bool {
        core::mem::replace(&mut self.changed, false)
    }

    /// Everyone who is wanted.
    #[must_use]
    pub fn nodes(&self) -> BTreeSet<NodeId> {
        self.count.keys().copied().collect()
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn wanted_until_the_last_one_wants_it_no_more() {
        let (one, two, three) = (NodeId(1), NodeId(2), NodeId(3));
        let mut wanted = Wanted::new();
        wanted.exchange(&[].into(), &[one, two].into());
        wanted.exchange(&[].into(), &[two, three].into());
        assert_eq!((wanted.take_changed(), wanted.nodes()), (true, [one, two, three].into()));
        wanted.exchange(&[two, three].into(), &[three].into());
        assert!(!wanted.take_changed());
        wanted.exchange(&[one, two].into(), &[].into());
        assert_eq!((wanted.take_changed(), wanted.nodes()), (true, [three].into()));
    }
}
