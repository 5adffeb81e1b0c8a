//! One history per segment: whatever any replica commits as entry n is what every other one has committed as entry n
//! (I1, I3, I4, I9).
//!
//! A store is wrapped ([`Watched`]) and everything it is told to make durable and to commit is noted on the way; it is
//! held against the chronicle of the whole world the moment it is committed, long before anybody reads it.

use std::cell::RefCell;
use std::collections::BTreeMap;
use std::rc::Rc;

use engine::store::{Event, Page, Space, Store, Ticket};
use engine::wire::with_sums;
use engine_core::ids::{BlockIndex, ExtentIndex, Incarnation, NodeId, SegmentId, Seq};
use engine_core::record::{Change, Entry, ExtentCopy, Record, Recovered};

/// What was committed, by whom first.
#[derive(Debug, Default)]
pub(crate) struct Chronicle {
    committed: BTreeMap<(SegmentId, Incarnation, Seq), (u64, NodeId)>,
}

impl Chronicle {
    fn note(&mut self, node: NodeId, segment: SegmentId, incarnation: Incarnation, seq: Seq, change: u64) {
        let (known, by) = *self.committed.entry((segment, incarnation, seq)).or_insert((change, node));
        assert!(
            known == change,
            "{segment} {incarnation}: entry {seq} of {node} is not the one that {by} committed (I4, I9)"
        );
    }
}

/// What tells a change from another one; `None`: its place in the order, without its content.
fn digest(change: &Change) -> Option<u64> {
    let (block, count) = change.range();
    let mut hash = 0xcbf2_9ce4_8422_2325_u64 ^ u64::from(block.0) << 32 ^ u64::from(count);
    match change {
        Change::Nothing => return None,
        Change::Zero { .. } => hash = !hash,
        Change::Write { blocks, .. } => {
            for byte in &blocks.sums {
                hash = (hash ^ u64::from(*byte)).wrapping_mul(0x0100_0000_01b3);
            }
        }
    }
    Some(hash)
}

/// A replica's log as its store has been told of it.
#[derive(Debug)]
struct Told {
    incarnation: Incarnation,
    /// Entries not committed here.
    tail: BTreeMap<Seq, Option<u64>>,
}

/// A store, watched.
#[derive(Debug)]
pub(crate) struct Watched<S> {
    pub(crate) inner: S,
    node: NodeId,
    chronicle: Rc<RefCell<Chronicle>>,
    told: BTreeMap<SegmentId, Told>,
    /// The next write that begins with this block never gets there; something else does, and its checksums match.
    pub(crate) loses: Option<(SegmentId, BlockIndex)>,
}

impl<S: Store> Watched<S> {
    pub(crate) fn new(inner: S, node: NodeId, chronicle: Rc<RefCell<Chronicle>>) -> Self {
        Self { inner, node, chronicle, told: BTreeMap::new(), loses: None }
    }

    fn begin(&mut self, segment: SegmentId, incarnation: Incarnation, tail: &[Entry]) {
        let tail = tail.iter().map(|entry| (entry.seq, digest(&entry.change))).collect();
        self.told.insert(segment, Told { incarnation, tail });
    }

    fn lose(&mut self, record: &mut Record) {
        if let Record::Prepare { segment, entry: Entry { change: Change::Write { block, blocks }, .. }, .. } = record
            && self.loses == Some((*segment, *block))
        {
            self.loses = None;
            let before: Vec<u8> = blocks.data.iter().map(|byte| !byte).collect();
            *blocks = with_sums(*segment, *block, before.into());
        }
    }

    fn tell(&mut self, record: &Record) {
        match record {
            Record::Create { segment, meta } => self.begin(*segment, meta.config.incarnation, &[]),
            Record::Drop { segment, .. } => drop(self.told.remove(segment)),
            Record::Prepare { segment, entry, .. } => {
                if let Some(told) = self.told.get_mut(segment) {
                    told.tail.insert(entry.seq, digest(&entry.change));
                }
            }
            Record::Truncate { segment, above } => {
                if let Some(told) = self.told.get_mut(segment) {
                    told.tail.split_off(&above.next());
                }
            }
            Record::State { segment, meta } => {
                if let Some(told) = self.told.get_mut(segment) {
                    told.incarnation = meta.config.incarnation;
                }
            }
        }
    }
}

impl<S: Store> Store for Watched<S> {
    fn take_recovered(&mut self) -> Vec<Recovered> {
        let recovered = self.inner.take_recovered();
        for found in &recovered {
            self.begin(found.segment, found.meta.config.incarnation, &found.tail);
        }
        recovered
    }

    fn persist(&mut self, mut records: Vec<Record>, ticket: Ticket) {
        records.iter().for_each(|record| self.tell(record));
        records.iter_mut().for_each(|record| self.lose(record));
        self.inner.persist(records, ticket);
    }

    fn commit(&mut self, segment: SegmentId, through: Seq) {
        if let Some(told) = self.told.get_mut(&segment) {
            let above = told.tail.split_off(&through.next());
            let mut chronicle = self.chronicle.borrow_mut();
            for (seq, change) in std::mem::replace(&mut told.tail, above) {
                if let Some(change) = change {
                    chronicle.note(self.node, segment, told.incarnation, seq, change);
                }
            }
        }
        self.inner.commit(segment, through);
    }

    fn read(&mut self, segment: SegmentId, block: BlockIndex, count: u32, ticket: Ticket) {
        self.inner.read(segment, block, count, ticket);
    }

    fn allocation(&self, segment: SegmentId, block: BlockIndex, count: u32) -> Vec<(u32, bool)> {
        self.inner.allocation(segment, block, count)
    }

    fn read_extent(&mut self, segment: SegmentId, extent: ExtentIndex, ticket: Ticket) {
        self.inner.read_extent(segment, extent, ticket);
    }

    fn list(&self, segment: SegmentId, above: Seq, from: ExtentIndex, limit: usize) -> Page {
        self.inner.list(segment, above, from, limit)
    }

    fn copy_in(&mut self, segment: SegmentId, copy: ExtentCopy, ticket: Ticket) {
        self.inner.copy_in(segment, copy, ticket);
    }

    fn mend(&mut self, segment: SegmentId, copy: ExtentCopy, ticket: Ticket) {
        self.inner.mend(segment, copy, ticket);
    }

    fn space(&self) -> Space {
        self.inner.space()
    }

    fn used_by(&self, segment: SegmentId) -> u64 {
        self.inner.used_by(segment)
    }

    fn damaged_blocks(&self) -> u64 {
        self.inner.damaged_blocks()
    }

    fn flushes(&self) -> u64 {
        self.inner.flushes()
    }

    fn look_anew(&mut self) {
        self.inner.look_anew();
    }

    fn damaged_structures(&self) -> u64 {
        self.inner.damaged_structures()
    }

    fn poll(&mut self, events: &mut Vec<Event>) {
        self.inner.poll(events);
    }

    fn settle(&mut self) {
        self.inner.settle();
    }

    fn is_quiet(&self) -> bool {
        self.inner.is_quiet()
    }
}
