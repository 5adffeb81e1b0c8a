//! Checkpoints: the whole map to one of two areas in turn, then the WAL before it is free again.
//!
//! Taken between two batches: memory then is exactly what the WAL up to there says. What the logs still hold is
//! written again behind that place (I15), so recovery needs nothing older. Order: body and log durable, then the
//! header, then the old part of the ring and the retired slabs are reused.

use engine_core::limits::{CHECKPOINT_INFLIGHT, SCRATCH_SLABS_MIN};
use engine_core::record::Record;

use super::format::{CheckpointHeader, WalRecord, crc, encode_body, encode_header, record_len};
use super::shard::{Purpose, ShardStore, aligned};
use crate::device::{Device, Operation};

/// Bytes of a body written at a time.
const CHUNK: usize = 1024 * 1024;

#[derive(Debug)]
enum Phase {
    Idle,
    /// The body is being written, and the log again.
    Writing {
        header: CheckpointHeader,
        body: Vec<u8>,
        next: usize,
        in_flight: usize,
    },
    /// All of that is being made durable.
    Flushing(CheckpointHeader),
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
}

impl Checkpoint {
    pub(crate) const fn after(number: u64) -> Self {
        Self { phase: Phase::Idle, number, settles: false }
    }

    pub(crate) const fn is_idle(&self) -> bool {
        matches!(self.phase, Phase::Idle)
    }
}

impl<D: Device> ShardStore<D> {
    /// Something is to be gained: room in the ring, slabs, or a quick restart.
    fn checkpoint_is_due(&self) -> bool {
        let ring = &self.wal.ring;
        let garbage = ring.since.saturating_sub(self.map.log_bytes);
        let blocked = self.wal.is_blocked(self.map.log_bytes);
        let own_blocked = self.wal.own.front().is_some_and(|own| !self.wal.admits_own(own.bytes, self.map.log_bytes));
        let needs = blocked && garbage > ring.size / 64 && self.apply.is_idle();
        let low = (self.slabs.free() as u64) < SCRATCH_SLABS_MIN / 2;
        let slabs = (self.slabs_wanted || low) && self.slabs.has_retired();
        let settled = self.settling && self.map.dirty == 0 && self.apply.is_idle();
        garbage > ring.size / 8 || needs || slabs || settled || own_blocked
    }

    pub(crate) fn start_checkpoint_if_due(&mut self) {
        if !self.checkpoint.is_idle()
            || self.wal.flight.is_some()
            || !self.checkpoint_is_due()
            || self.wal.is_tight(self.map.log_bytes)
        {
            return;
        }
        self.retire_freed();
        self.slabs_wanted = false;
        self.slabs.checkpoint_taken();
        self.checkpoint.number += 1;
        self.checkpoint.settles = self.settling && self.map.dirty == 0 && self.wal.is_idle() && self.copies.is_idle();
        let body = encode_body(&self.map);
        assert!(body.len() as u64 + 4096 <= self.region.area, "the area is made for the largest map");
        let header = CheckpointHeader {
            device: self.label.device,
            shard: self.label.shard,
            number: self.checkpoint.number,
            boot: self.label.boot,
            position: self.wal.ring.head,
            batch: self.wal.ring.number,
            len: body.len() as u64,
            sum: crc(&body),
        };
        self.wal.ring.since = 0;
        let log = self.map.replicas.iter().flat_map(|(segment, replica)| {
            replica.log.values().map(|logged| {
                let (commit, entry) = (replica.durable_commit, logged.entry.clone());
                WalRecord::Core(Record::Prepare { segment: *segment, commit, entry })
            })
        });
        self.wal.relog = log.collect();
        self.wal.relog_bytes = self.wal.relog.iter().map(record_len).sum();
        #[cfg(test)]
        if super::tests::mistake(super::tests::Mistake::NoRelog) {
            self.wal.relog.clear();
            self.wal.relog_bytes = 0;
        }
        self.checkpoint.phase = Phase::Writing { header, body, next: 0, in_flight: 0 };
    }

    pub(crate) fn write_checkpoint(&mut self) {
        let Phase::Writing { header, body, next, in_flight } = &mut self.checkpoint.phase else { return };
        let area = self.region.area_at((header.number + 1) % 2) + 4096;
        let mut chunks = Vec::new();
        while *in_flight < CHECKPOINT_INFLIGHT && *next < body.len() {
            let end = (*next + CHUNK).min(body.len());
            chunks.push((area + *next as u64, aligned(&[&body[*next..end]])));
            *next = end;
            *in_flight += 1;
        }
        let written = *in_flight == 0 && *next == body.len();
        if written && self.wal.relog.is_empty() && self.wal.flight.as_ref().is_none_or(|f| f.relogged.is_empty()) {
            let header = *header;
            self.checkpoint.phase = Phase::Flushing(header);
            self.submit(Purpose::Flushed, Operation::Flush);
        }
        for (offset, buffer) in chunks {
            self.submit(Purpose::Chunk, Operation::Write { offset, buffer, durable: false });
        }
    }

    pub(crate) fn on_chunk(&mut self) {
        if let Phase::Writing { in_flight, .. } = &mut self.checkpoint.phase {
            *in_flight -= 1;
        }
    }

    /// Body, log and everything applied before are durable.
    pub(crate) fn on_flushed(&mut self) {
        let Phase::Flushing(header) = self.checkpoint.phase else { return };
        self.checkpoint.phase = Phase::Sealing;
        let offset = self.region.area_at((header.number + 1) % 2);
        self.submit(Purpose::Header, Operation::Write { offset, buffer: encode_header(&header), durable: true });
    }

    /// It counts: what only the one before needed is free.
    pub(crate) fn on_header(&mut self) {
        self.checkpoint.phase = Phase::Idle;
        self.wal.ring.used = self.wal.ring.since;
        self.slabs.checkpoint_durable();
        if self.checkpoint.settles {
            self.settling = false;
        }
    }
}
