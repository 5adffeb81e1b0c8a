//! Checkpoints: the changed pages of the map to free places, the checksums that changed, then a root that names all
//! pages, to one of two areas in turn; then the WAL before what the logs still need is free.
//!
//! Taken between two batches: memory then is exactly what the WAL up to there says, and a checkpoint is that moment
//! whatever happens while it is written. What the logs still hold stays where it is in the ring, and the header says
//! where the oldest of it begins. Order: pages, checksums and body durable, then the header, then the old part of the
//! ring, the retired slabs and the old places of pages are reused.

use std::collections::VecDeque;
use std::rc::Rc;

use engine_core::limits::{CHECKPOINT_INFLIGHT, FRESH_SUMS_MAX, SCRATCH_SLABS_MIN};

use super::extents::Homes;
use super::format::{
    PageLabel, ROOT_HEADER, RootHeader, RootPage, RootReplica, crc, encode_header, encode_page, put_replica,
};
use super::shard::{Purpose, ShardStore, aligned};
use crate::device::buffer::AlignedBuf;
use crate::device::{Device, Operation};

/// Bytes of a body written at a time.
const CHUNK: usize = 256 * 1024;

/// A map page as it is when a checkpoint is taken: its place, whose it is, and what it holds.
type TakenPage = (u32, PageLabel, Rc<Homes>);

/// A checkpoint while it is written.
#[derive(Debug)]
struct Writing {
    header: RootHeader,
    /// Map pages not written yet.
    pages: VecDeque<TakenPage>,
    /// Pages of checksums not asked for yet.
    sums: VecDeque<u32>,
    body: Vec<u8>,
    next: usize,
    in_flight: usize,
}

#[derive(Debug)]
enum Phase {
    Idle,
    Writing(Box<Writing>),
    /// All of that is being made durable.
    Flushing(RootHeader),
    /// The header that makes it count.
    Sealing,
}

/// The checkpoint being written, if any.
#[derive(Debug)]
pub(crate) struct Checkpoint {
    phase: Phase,
    /// Number of the last one taken.
    number: u64,
    /// It was taken to settle.
    settles: bool,
    /// What it lets go of the ring, once it counts.
    tail: u64,
}

impl Checkpoint {
    pub(crate) const fn after(number: u64) -> Self {
        Self { phase: Phase::Idle, number, settles: false, tail: 0 }
    }

    pub(crate) const fn is_idle(&self) -> bool {
        matches!(self.phase, Phase::Idle)
    }
}

impl<D: Device> ShardStore<D> {
    /// Bytes of the ring a checkpoint would free now.
    fn freeable(&self) -> u64 {
        let oldest = self.map.ledger.batches.oldest().map_or(self.wal.ring.start, |(_, batch)| batch.start);
        oldest - self.wal.ring.tail
    }

    /// Something is to be gained: room in the ring, slabs, or a quick restart.
    fn checkpoint_is_due(&self) -> bool {
        let (ring, freeable) = (&self.wal.ring, self.freeable());
        let blocked = self.wal.blocked || !self.wal.own.is_empty() && ring.is_above(28);
        let low = (self.slabs.free() as u64) < SCRATCH_SLABS_MIN / 2;
        let slabs = (self.slabs_wanted || low) && self.slabs.has_retired();
        let settled = self.settling && self.map.dirty == 0 && self.apply.is_idle();
        freeable > ring.size / 8
            || blocked && freeable > ring.size / 64
            || slabs
            || settled
            || self.sums.fresh() > FRESH_SUMS_MAX
            || self.checkpoint_first
    }

    pub(crate) fn start_checkpoint_if_due(&mut self) {
        if !self.checkpoint.is_idle() || self.wal.flight.is_some() || !self.checkpoint_is_due() {
            return;
        }
        self.keep_books();
        self.slabs_wanted = false;
        self.slabs.checkpoint_taken();
        self.pages.checkpoint_taken();
        self.checkpoint.number += 1;
        self.checkpoint.settles = self.settling
            && self.map.dirty == 0
            && self.wal.is_idle()
            && self.copies.is_idle()
            && self.landings.is_idle();
        let ring = &self.wal.ring;
        let oldest = self.map.ledger.batches.oldest();
        self.checkpoint.tail = oldest.map_or(ring.start, |(_, batch)| batch.start);
        let (boot, position) = oldest.map_or((self.label.boot, ring.head), |(_, batch)| (batch.boot, batch.position));
        let (number, batch) = (self.checkpoint.number, ring.number);
        let oldest = oldest.map_or(batch, |(number, _)| number);
        let (body, pages) = self.take_pages();
        assert!(body.len() as u64 + ROOT_HEADER <= self.region.area, "the area is made for the largest map");
        let (len, sum) = (body.len() as u64, crc(&body));
        let (device, shard) = (self.label.device, self.label.shard);
        let header = RootHeader { device, shard, number, boot, position, oldest, batch, len, sum };
        let sums = self.sums.seal().into();
        let writing = Writing { header, pages, sums, body, next: 0, in_flight: 0 };
        self.checkpoint.phase = Phase::Writing(Box::new(writing));
        #[cfg(test)]
        if super::tests::mistake(super::tests::Mistake::FreedEarly) {
            self.wal.ring.tail = self.checkpoint.tail;
        }
        #[cfg(test)]
        if super::tests::mistake(super::tests::Mistake::HeaderFirst) {
            let offset = self.region.area_at((number + 1) % 2);
            self.submit(Purpose::Ignored, Operation::Write { offset, buffer: encode_header(&header), durable: true });
        }
    }

    /// The body, and the pages that changed, each with its new place.
    fn take_pages(&mut self) -> (Vec<u8>, VecDeque<TakenPage>) {
        let (mut body, mut changed) = (Vec::new(), VecDeque::new());
        for (segment, replica) in &mut self.map.replicas {
            let mut pages = Vec::new();
            for (chunk, held) in replica.extents.chunks_mut() {
                let label = PageLabel { device: self.label.device, shard: self.label.shard, segment: *segment, chunk };
                if held.dirty || held.page.is_none() {
                    let place = self.pages.take().expect("there are places for two maps");
                    let (_, sum) = encode_page(&label, &held.homes);
                    if let Some((old, _)) = held.page.replace((place, sum)) {
                        self.pages.leave(old);
                    }
                    held.dirty = false;
                    changed.push_back((place, label, held.homes.clone()));
                }
                if let Some((place, sum)) = held.page {
                    pages.push(RootPage { chunk, place, sum });
                }
            }
            let (meta, commit) = (replica.meta.clone(), replica.commit.max(replica.durable_commit));
            let (segment, damaged) = (*segment, replica.damaged);
            put_replica(&mut body, &RootReplica { segment, meta, damaged, commit, pages });
        }
        (body, changed)
    }

    pub(crate) fn write_checkpoint(&mut self) {
        loop {
            let Phase::Writing(writing) = &mut self.checkpoint.phase else { return };
            if writing.in_flight >= CHECKPOINT_INFLIGHT {
                return;
            }
            writing.in_flight += 1;
            if let Some((place, label, homes)) = writing.pages.pop_front() {
                let (offset, (buffer, _)) = (self.region.page_at(place), encode_page(&label, &homes));
                self.submit(Purpose::Chunk, Operation::Write { offset, buffer, durable: false });
            } else if let Some(page) = writing.sums.pop_front() {
                self.write_or_ask(page);
            } else if writing.next < writing.body.len() {
                let end = (writing.next + CHUNK).min(writing.body.len());
                let buffer = aligned(&[&writing.body[writing.next..end]]);
                let area = self.region.area_at((writing.header.number + 1) % 2);
                let offset = area + ROOT_HEADER + writing.next as u64;
                writing.next = end;
                self.submit(Purpose::Chunk, Operation::Write { offset, buffer, durable: false });
            } else {
                writing.in_flight -= 1;
                if writing.in_flight == 0 {
                    self.checkpoint.phase = Phase::Flushing(writing.header);
                    self.submit(Purpose::Flushed, Operation::Flush);
                }
                return;
            }
        }
    }

    fn write_or_ask(&mut self, page: u32) {
        if self.sums.has(page) {
            self.write_sum_page(page);
        } else {
            self.ask_page(page);
        }
    }

    /// Writes a page of checksums if the checkpoint under way has one to write, and has got to it.
    pub(crate) fn write_sum_page(&mut self, page: u32) {
        let Phase::Writing(writing) = &self.checkpoint.phase else { return };
        let waits = writing.sums.front().is_none_or(|next| page < *next);
        if waits && let Some(buffer) = self.sums.sealed(page) {
            let offset = self.region.sums_at(page);
            self.submit(Purpose::Sums(page), Operation::Write { offset, buffer, durable: false });
        }
    }

    pub(crate) fn on_sums(&mut self, page: u32, buffer: Option<AlignedBuf>) {
        self.sums.written(page, buffer);
        self.on_chunk();
    }

    pub(crate) fn on_chunk(&mut self) {
        if let Phase::Writing(writing) = &mut self.checkpoint.phase {
            writing.in_flight -= 1;
        }
    }

    /// Pages, checksums, body and everything applied before are durable.
    pub(crate) fn on_flushed(&mut self) {
        let Phase::Flushing(header) = self.checkpoint.phase else { return };
        self.checkpoint.phase = Phase::Sealing;
        let offset = self.region.area_at((header.number + 1) % 2);
        self.submit(Purpose::Header, Operation::Write { offset, buffer: encode_header(&header), durable: true });
    }

    /// It counts: what only the one before needed is free.
    pub(crate) fn on_header(&mut self) {
        self.checkpoint.phase = Phase::Idle;
        self.checkpoint_first = false;
        self.wal.ring.tail = self.checkpoint.tail;
        self.slabs.checkpoint_durable();
        self.pages.checkpoint_durable();
        if self.checkpoint.settles {
            self.settling = false;
        }
    }
}
