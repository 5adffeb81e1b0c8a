//! What must hold: reads and acknowledged writes have one order ([`Linear`]; the obvious cases are named at once), nothing
//! of a fenced attachment is acknowledged (I2), configurations form one chain (I1, I5, I10).

use std::collections::{BTreeMap, BTreeSet};

use engine_core::client::Answer;
use engine_core::config::Config;
use engine_core::ids::{Generation, NodeId, SegmentId};
use engine_core::time::Time;

use crate::client::{Task, Wish, versions};
use crate::linear::{Linear, Place};

/// What is known of one block's versions.
#[derive(Debug, Clone, Default)]
pub(crate) struct Block {
    pub(crate) issued: u64,
    pub(crate) acknowledged: u64,
    seen: u64,
    /// Versions that are zeros, in order.
    zeros: Vec<u64>,
}

impl Block {
    /// Nothing older may be read from now on.
    pub(crate) fn floor(&self) -> u64 {
        self.acknowledged.max(self.seen)
    }

    /// The oldest version that looks like `content` and is not below `floor`.
    fn version(&self, content: u64, floor: u64) -> Option<u64> {
        if content > 0 {
            return (floor..=self.issued).contains(&content).then_some(content);
        }
        if floor == 0 {
            return Some(0);
        }
        self.zeros.iter().copied().find(|zero| *zero >= floor)
    }

    /// Whether it holds data for certain: nothing that may be there now is zeros.
    fn holds_data(&self, floor: u64) -> bool {
        self.version(0, floor).is_none()
    }
}

/// Every block ever written.
#[derive(Debug)]
pub(crate) struct History {
    pub(crate) blocks: BTreeMap<(SegmentId, u32), Block>,
    pub(crate) acknowledged: u64,
    pub(crate) reads: u64,
    pub(crate) last_ack: Time,
    /// Clocks keep their promise: reads may be held against it.
    pub(crate) clocks_agree: bool,
    linear: Linear,
    /// The newest attachment that a client was told of, and when.
    attached: (Generation, Time),
    /// Writes without an answer, and whose they are.
    undecided: BTreeMap<(Place, u64), Generation>,
    /// Writes of attachments that were fenced before: they must not be there.
    void: BTreeSet<(Place, u64)>,
}

impl History {
    pub(crate) fn new() -> Self {
        Self {
            blocks: BTreeMap::new(),
            acknowledged: 0,
            reads: 0,
            last_ack: Time(0),
            clocks_agree: true,
            linear: Linear::default(),
            attached: (Generation(0), Time(0)),
            undecided: BTreeMap::new(),
            void: BTreeSet::new(),
        }
    }

    /// An attachment is at work: what older ones left without an answer is there by now, or never will be (I2).
    pub(crate) fn attached(&mut self, now: Time, generation: Generation) {
        self.attached = self.attached.max((generation, now));
        let older = |_: &(Place, u64), by: &mut Generation| *by < generation;
        for ((place, version), _) in self.undecided.extract_if(.., older) {
            self.linear.abandoned(now, place, version);
        }
    }

    /// A person said that acknowledged writes may be gone (I11): of each block any version may be there, and from now on
    /// it is that one for everybody.
    pub(crate) fn lost(&mut self, now: Time) {
        for known in self.blocks.values_mut() {
            (known.acknowledged, known.seen) = (0, 0);
        }
        self.undecided.clear();
        self.linear.lost(now);
    }

    /// Looks for an order that explains everything.
    pub(crate) fn check(&self) -> Result<(), String> {
        if self.clocks_agree { self.linear.check().map_err(|torn| torn.to_string()) } else { Ok(()) }
    }

    /// New versions for these blocks. One client's writes of one block take effect in the order in which they are
    /// begun, so versions grow.
    pub(crate) fn issue(&mut self, now: Time, by: Generation, place: Place, count: u32, zero: bool) -> Vec<u64> {
        let mut versions = Vec::new();
        for block in place.1..place.1 + count {
            let place = (place.0, block);
            let known = self.blocks.entry(place).or_default();
            known.issued += 1;
            if zero {
                known.zeros.push(known.issued);
            }
            versions.push(known.issued);
            if by < self.attached.0 {
                self.void.insert((place, known.issued));
            } else {
                self.linear.begins(now, place, known.issued, zero);
                self.undecided.insert((place, known.issued), by);
            }
        }
        versions
    }

    /// The oldest versions a read that begins now may return.
    pub(crate) fn floors(&self, segment: SegmentId, block: u32, count: u32) -> Vec<u64> {
        (block..block + count).map(|block| self.blocks.get(&(segment, block)).map_or(0, Block::floor)).collect()
    }

    /// A client was answered.
    pub(crate) fn answered(&mut self, now: Time, by: Generation, task: &Task, answer: &Answer) {
        match (answer, &task.wish) {
            (Answer::Written, _) => self.acknowledged(now, by, task),
            (Answer::Data(blocks), Wish::Read(floors)) => {
                assert_eq!(blocks.count(), task.count);
                self.read(now, task, floors, &versions(task.block, blocks));
            }
            (Answer::Allocation(runs), Wish::Allocation(floors)) => self.allocation(task, floors, runs),
            _ => panic!("{task:?} is not answered by {answer:?}"),
        }
    }

    fn acknowledged(&mut self, now: Time, by: Generation, task: &Task) {
        let (newest, since) = self.attached;
        assert!(by >= newest || task.begun <= since, "{by} was fenced for {newest} and has a write acknowledged (I2)");
        self.acknowledged += 1;
        self.last_ack = now;
        for (block, version) in (task.block..).zip(task.written().into_iter().flatten()) {
            let known = self.blocks.get_mut(&(task.segment, block)).expect("issued");
            known.acknowledged = known.acknowledged.max(*version);
            self.linear.acknowledged(now, (task.segment, block), *version);
            self.undecided.remove(&((task.segment, block), *version));
        }
    }

    /// What is known to be there of each block.
    pub(crate) fn versions(&self) -> Vec<u64> {
        self.blocks.values().map(Block::floor).collect()
    }

    fn read(&mut self, now: Time, task: &Task, floors: &[u64], got: &[u64]) {
        self.reads += 1;
        for ((block, got), floor) in (task.block..).zip(got).zip(floors) {
            let known = self.blocks.entry((task.segment, block)).or_default();
            let Some(version) = known.version(*got, *floor) else {
                assert!(
                    !self.clocks_agree && *got <= known.issued,
                    "{} block {block} at {now:?}: version {got}, but {floor} was there when the read began ({:?}) and {} \
                     was issued last (I7)",
                    task.segment,
                    task.begun,
                    known.issued
                );
                continue;
            };
            let place = (task.segment, block);
            assert!(*got == 0 || !self.void.contains(&(place, *got)), "{place:?} shows {got} of a fenced client (I2)");
            if self.clocks_agree {
                known.seen = known.seen.max(version);
                self.linear.read(task.begun, now, place, *got);
            }
        }
    }

    /// A block that holds data for certain is never called empty.
    fn allocation(&self, task: &Task, floors: &[u64], runs: &[(u32, bool)]) {
        let told = runs.iter().flat_map(|(count, data)| std::iter::repeat_n(*data, *count as usize));
        for ((block, data), floor) in (task.block..).zip(told).zip(floors) {
            let known = self.blocks.get(&(task.segment, block));
            let holds = known.is_some_and(|known| known.holds_data(*floor));
            assert!(data || !holds || !self.clocks_agree, "{} block {block} is called empty", task.segment);
        }
    }
}

/// Checks a configuration that an older record takes over from what nodes report: it jumps, but never back, and never
/// to an epoch that there was (I1, I11).
pub(crate) fn jumps(old: Option<&Config>, new: &Config) {
    let Some(old) = old else { return };
    assert!(new.epoch > old.epoch && new.generation >= old.generation, "{old:?} then {new:?}");
}

/// Checks that `new` may follow `old`; of the nodes that are `gone` a person said that nothing is left.
pub(crate) fn follows(old: Option<&Config>, new: &Config, gone: &[NodeId]) {
    let mut places: Vec<NodeId> = new.members.iter().chain(&new.candidates).copied().collect();
    places.sort_unstable();
    places.dedup();
    assert_eq!(places.len(), new.members.len() + new.candidates.len(), "named twice: {new:?}");
    assert!(new.is_member(new.primary), "{new:?}");
    assert!(new.members.len() <= usize::from(new.copies));
    let Some(old) = old else { return };
    assert_eq!(new.epoch, old.epoch.next(), "one chain (I1): {old:?} then {new:?}");
    assert!(new.generation >= old.generation);
    if new.incarnation > old.incarnation {
        // A person said whose copy counts: that one alone begins a new life (I11).
        let alone = new.members.len() == 1 && new.electable == new.members;
        let held = old.holders().any(|node| node == new.primary);
        assert!(alone && held && new.candidates.is_empty(), "{old:?} then {new:?} (I11)");
        return;
    }
    for node in &new.members {
        let known = old.is_member(*node) || old.is_candidate(*node) || old.electable.contains(node);
        assert!(known, "{node} came from nowhere (I10): {old:?} then {new:?}");
    }
    if !new.may_commit() {
        let kept = |node: &NodeId| new.electable.contains(node) || gone.contains(node);
        assert!(old.electable.iter().all(kept), "I5: {old:?} then {new:?}");
    }
}
