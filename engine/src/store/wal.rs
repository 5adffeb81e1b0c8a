//! The WAL: a ring of batches, one in flight at a time.
//!
//! Whatever is queued while a batch is in flight goes into the next one; when nothing is in flight it goes at once.
//! The ring is free again up to the oldest batch the newest durable checkpoint needs. How full it may become:
//!
//! | part of the ring | from there on |
//! |---|---|
//! | 3/8 | committed entries are applied, in passes, so much for what comes in; the fuller it is, the more (`apply`) |
//! | 3/4 | prepared changes come in as fast as others are applied |
//! | 7/8 | they wait; records that resolve what fills the ring go on, and unresolved entries move aside |
//! | 15/16 | only the store's own records go on, which lead to its being freed |
//!
//! A segment whose unresolved entries take an eighth of the ring waits alone, all together get a quarter (I15).

use std::collections::{BTreeMap, VecDeque};

use engine_core::ids::{SegmentId, Seq};
use engine_core::limits::{BATCH_BYTES, BLOCK_SIZE};

use super::Ticket;
use super::format::{Size, WalRecord, record_size};
use super::map::Map;

/// Where the next batch goes.
#[derive(Debug, Clone, Copy)]
pub(crate) struct Ring {
    pub(crate) size: u64,
    /// Position of the next batch.
    pub(crate) head: u64,
    /// Number of the next batch.
    pub(crate) number: u64,
    /// Bytes that ever went in, since it was opened, skipped ends of the ring included.
    pub(crate) start: u64,
    /// How many of them are free again.
    pub(crate) tail: u64,
}

impl Ring {
    pub(crate) const fn used(&self) -> u64 {
        self.start - self.tail
    }

    /// Position and cost of a batch of so many bytes. A batch never wraps: it skips the ring's end.
    const fn place(&self, len: u64) -> (u64, u64) {
        if self.head + len <= self.size { (self.head, len) } else { (0, len + self.size - self.head) }
    }

    /// Takes the place of a batch: position and cost.
    pub(crate) fn advance(&mut self, len: u64) -> (u64, u64) {
        let (position, cost) = self.place(len);
        assert!(self.used() + cost <= self.size, "the WAL never overtakes itself");
        self.head = position + len;
        self.number += 1;
        self.start += cost;
        (position, cost)
    }

    /// Whether a batch of these records leaves it filled to at most `parts` of 32.
    pub(crate) const fn fits(&self, size: Size, parts: u64) -> bool {
        self.used() + self.place(size.batch()).1 <= self.size / 32 * parts
    }

    pub(crate) const fn is_above(&self, parts: u64) -> bool {
        self.used() > self.size / 32 * parts
    }

    /// Bytes after which a batch is full.
    pub(crate) fn batch_bytes(&self) -> u64 {
        BATCH_BYTES.min(self.size / 16)
    }

    /// The largest persist: with the end of the ring it may skip, it still fits what persists may use.
    pub(crate) const fn persist_max(&self) -> u64 {
        self.size / 7
    }
}

/// The longest batch there can be: a full one, and the largest persist behind it.
pub(crate) fn batch_max(ring: u64) -> u64 {
    BATCH_BYTES.min(ring / 16) + ring / 7 + 2 * BLOCK_SIZE
}

/// Parts of 32 of the ring: see the module.
pub(crate) const APPLY_FROM: u64 = 12;
/// Where entries that cannot be resolved begin to be in the way.
pub(crate) const MOVES_FROM: u64 = 18;
pub(crate) const SLOW_FROM: u64 = 24;
pub(crate) const CHANGES_TO: u64 = 28;
const CONTROLS_TO: u64 = 30;
const OWN_TO: u64 = 32;
pub(crate) const MOVES_TO: u64 = 31;

/// Bytes of blocks that are in memory, about, when small writes keep coming into a WAL of this size.
pub(crate) const fn window(size: u64) -> u64 {
    size / 32 * MOVES_FROM
}

/// Records that become durable together.
#[derive(Debug)]
pub(crate) struct Queued {
    pub(crate) records: Vec<WalRecord>,
    pub(crate) size: Size,
    pub(crate) ticket: Option<Ticket>,
    /// The one segment all of them are about.
    pub(crate) segment: Option<SegmentId>,
    /// Not only prepared changes: a promise, a configuration, the end of a log.
    pub(crate) control: bool,
    /// Some of its data went to slabs of its own, under this number.
    pub(crate) landing: Option<u64>,
    /// All of that is there. Until then it waits, and what its segment says next with it.
    pub(crate) landed: bool,
}

impl Queued {
    pub(crate) fn new(records: Vec<WalRecord>, ticket: Option<Ticket>) -> Self {
        let size = records.iter().map(record_size).fold(Size::default(), |sum, size| sum + size);
        let mut segments = records.iter().map(WalRecord::segment);
        let first = segments.next();
        let segment = first.filter(|first| segments.all(|other| other == *first));
        let control = !records.iter().all(|record| matches!(record, WalRecord::Entry { .. }));
        Self { records, size, ticket, segment, control, landing: None, landed: true }
    }
}

/// A batch under way.
#[derive(Debug, Default)]
pub(crate) struct Flight {
    pub(crate) number: u64,
    /// What it takes of the ring.
    pub(crate) cost: u64,
    pub(crate) size: Size,
    /// Entries that are written again: in memory nothing changes but where they are.
    pub(crate) moved: Vec<(SegmentId, Seq)>,
    pub(crate) items: Vec<Queued>,
}

/// The ring, what waits for it, and what is under way.
#[derive(Debug)]
pub(crate) struct Wal {
    pub(crate) ring: Ring,
    /// The core's persists, in order. Bounded by the windows of the segments.
    pub(crate) queue: VecDeque<Queued>,
    /// How many of the queued are control records, by segment.
    controls: BTreeMap<SegmentId, usize>,
    /// The store's own small records; they go first and may use more of the ring, since they lead to its trimming.
    pub(crate) own: VecDeque<Queued>,
    pub(crate) flight: Option<Flight>,
    /// Bytes that may come in while the ring is fuller than `SLOW_FROM`.
    credit: u64,
    /// A persist had to wait for room when the last batch was gathered.
    pub(crate) blocked: bool,
}

impl Wal {
    pub(crate) const fn new(ring: Ring) -> Self {
        Self {
            ring,
            queue: VecDeque::new(),
            controls: BTreeMap::new(),
            own: VecDeque::new(),
            flight: None,
            credit: 0,
            blocked: false,
        }
    }

    /// Queues a persist.
    pub(crate) fn push(&mut self, queued: Queued) {
        if let (true, Some(segment)) = (queued.control, queued.segment) {
            *self.controls.entry(segment).or_default() += 1;
        }
        self.queue.push_back(queued);
    }

    /// So many bytes of the ring belong to entries that are applied now.
    pub(crate) fn earn(&mut self, bytes: u64) {
        self.credit = (self.credit + bytes).min(self.ring.size / 16);
    }

    /// What it named is in its slabs.
    pub(crate) fn landed(&mut self, landing: u64) {
        if let Some(queued) = self.queue.iter_mut().find(|queued| queued.landing == Some(landing)) {
            queued.landed = true;
        }
    }

    /// Takes the store's own records into a batch.
    pub(crate) fn take_own(&mut self, flight: &mut Flight) {
        while flight.size.batch() < self.ring.batch_bytes()
            && let Some(next) = self.own.front()
            && self.ring.fits(flight.size + next.size, OWN_TO)
        {
            flight.size = flight.size + next.size;
            flight.items.extend(self.own.pop_front());
        }
    }

    /// Takes what may go into a batch, until that is full: the queue in order, past segments that have to wait. What
    /// resolves the entries that fill the ring may use more of it. Each segment's order is kept.
    pub(crate) fn take(&mut self, map: &Map, flight: &mut Flight) {
        let full = self.ring.batch_bytes();
        let slow = self.ring.is_above(SLOW_FROM) && map.dirty > 0;
        let mut budget = if slow { self.credit } else { u64::MAX };
        let (mut waiting, mut taken): (Vec<SegmentId>, BTreeMap<SegmentId, u64>) = (Vec::new(), BTreeMap::new());
        let (mut at, mut full_up) = (0, false);
        self.blocked = false;
        while flight.size.batch() < full
            && let Some(next) = self.queue.get(at)
        {
            let behind = match next.segment {
                Some(segment) => waiting.contains(&segment),
                None => !waiting.is_empty(),
            };
            let size = flight.size + next.size;
            let bytes = next.size.head + next.size.data;
            // What a segment said before its control record goes with it.
            let urgent = next.control || next.segment.is_some_and(|segment| self.controls.contains_key(&segment));
            let room = if urgent {
                self.ring.fits(size, CONTROLS_TO)
            } else {
                // Nobody passes one that waits for room: it would wait for ever.
                full_up |= !self.ring.fits(size, CHANGES_TO) || budget < bytes.min(BLOCK_SIZE);
                !full_up && self.is_within(map, next, &taken)
            };
            if next.landed && !behind && room {
                if !urgent {
                    budget = budget.saturating_sub(bytes);
                    if let (Some(segment), true) = (next.segment, self.is_crowded(map)) {
                        *taken.entry(segment).or_default() += bytes;
                    }
                }
                flight.size = size;
                let next = if at == 0 { self.queue.pop_front() } else { self.queue.remove(at) };
                if let Some(next) = next {
                    self.taken(&next);
                    flight.items.push(next);
                }
                continue;
            }
            self.blocked |= next.landed && !behind;
            let Some(segment) = next.segment else { break };
            if !behind {
                waiting.push(segment);
            }
            at += 1;
            // Further behind only control records, or other segments while there is room, can still go.
            if self.controls.is_empty() && full_up {
                break;
            }
        }
        if slow {
            self.credit = budget;
        }
    }

    fn taken(&mut self, queued: &Queued) {
        if let (true, Some(segment)) = (queued.control, queued.segment)
            && let Some(count) = self.controls.get_mut(&segment)
        {
            *count -= 1;
            if *count == 0 {
                self.controls.remove(&segment);
            }
        }
    }

    const fn is_crowded(&self, map: &Map) -> bool {
        map.unresolved > self.ring.size / 16
    }

    /// Whether a segment's unresolved entries, and all together, stay within their bounds.
    fn is_within(&self, map: &Map, next: &Queued, taken: &BTreeMap<SegmentId, u64>) -> bool {
        let (Some(segment), true) = (next.segment, self.is_crowded(map)) else { return true };
        let own = map.replicas.get(&segment).map_or(0, |replica| replica.unresolved);
        let more = taken.get(&segment).copied().unwrap_or(0) + next.size.head + next.size.data;
        own == 0 || own + more <= self.ring.size / 8 && map.unresolved + more <= self.ring.size / 4
    }

    pub(crate) fn is_idle(&self) -> bool {
        self.flight.is_none() && self.queue.is_empty() && self.own.is_empty()
    }
}
