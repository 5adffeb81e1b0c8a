//! Batches: what goes into the next one, and what a durable one changes in memory.

use engine_core::ids::{SegmentId, Seq};
use engine_core::limits::VECTOR_MAX;
use engine_core::record::Record;

use super::Event;
use super::format::{BatchHeader, WalRecord, encode_batch, record_size};
use super::ledger::Batch;
use super::shard::{Purpose, ShardStore, aligned};
use super::wal::{Flight, MOVES_FROM, MOVES_TO, Queued};
use crate::device::{Device, Operation};

impl<D: Device> ShardStore<D> {
    /// Writes the next batch when none is in flight. This is where a write becomes durable (I3).
    pub(crate) fn start_batch(&mut self) {
        if self.wal.flight.is_some() || self.checkpoint_first {
            return;
        }
        let mut flight = Flight::default();
        let moved = self.move_aside(&mut flight);
        self.wal.take_own(&mut flight);
        self.wal.take(&self.map, &mut flight);
        if flight.items.is_empty() && moved.is_empty() {
            return;
        }
        let ring = &mut self.wal.ring;
        let (number, start) = (ring.number, ring.start);
        let (position, cost) = ring.advance(flight.size.batch());
        (flight.number, flight.cost) = (number, cost);
        self.pace_apply(cost);
        self.map.ledger.batches.push(number, Batch { boot: self.label.boot, position, start, live: 1 });
        let header = BatchHeader {
            device: self.label.device,
            shard: self.label.shard,
            boot: self.label.boot,
            number,
            head: 0,
            len: 0,
            sum: 0,
        };
        let queued = flight.items.iter().flat_map(|item| &item.records);
        let (buffer, pieces) = encode_batch(&header, moved.iter().chain(queued), flight.size);
        self.wal.flight = Some(flight);
        let durable = is_durable();
        let operation = match in_place(pieces) {
            Ok(pieces) if pieces.is_empty() => Operation::Write { offset: position, buffer, durable },
            Ok(pieces) => Operation::WriteVectored { offset: position, buffer: Some(buffer), pieces, durable },
            Err(pieces) => {
                let parts: Vec<&[u8]> = std::iter::once(&buffer[..]).chain(pieces.iter().map(|p| &p[..])).collect();
                Operation::Write { offset: position, buffer: aligned(&parts), durable }
            }
        };
        self.submit(Purpose::Batch, operation);
    }

    /// Entries that cannot be resolved, and are where the ring has to be freed next, are written again at its head
    /// (I15). Memory is what the durable batches say, and everything that is queued comes behind: no order changes.
    fn move_aside(&mut self, flight: &mut Flight) -> Vec<WalRecord> {
        let mut records = Vec::new();
        let ring = &self.wal.ring;
        if !ring.is_above(MOVES_FROM) || self.map.unresolved == 0 || !self.moves_are_due() {
            return records;
        }
        let Some(last) = self.map.ledger.batches.last_before(ring.tail + ring.size / 8) else { return records };
        for (segment, replica) in &self.map.replicas {
            if replica.unresolved == 0 || replica.dropping {
                continue;
            }
            for (seq, logged) in replica.log.from(replica.commit.next()).filter(|(_, logged)| logged.batch <= last) {
                let entry = logged.entry.clone();
                let record = WalRecord::Entry { segment: *segment, commit: replica.durable_commit, seq, entry };
                let size = flight.size + record_size(&record);
                if size.batch() > ring.size / 16 || !ring.fits(size, MOVES_TO) {
                    return records;
                }
                flight.size = size;
                flight.moved.push((*segment, seq));
                records.push(record);
            }
        }
        records
    }

    /// Nothing that can be applied is in the oldest part of the ring, and what is in it was not moved just now.
    fn moves_are_due(&self) -> bool {
        let oldest = self.map.ledger.batches.oldest().map_or(u64::MAX, |(number, _)| number);
        let freed = self.map.ledger.batches.oldest().map_or(self.wal.ring.start, |(_, batch)| batch.start);
        // A checkpoint would free something: that comes first.
        let pinned = freed - self.wal.ring.tail < self.wal.ring.size / 32;
        pinned && (self.map.dirty == 0 || self.apply.passed > oldest)
    }

    /// The batch is durable: its records count now.
    pub(crate) fn on_batch(&mut self) {
        let Some(flight) = self.wal.flight.take() else { return };
        let total = (flight.size.head + flight.size.data).max(1);
        for (segment, seq) in flight.moved {
            self.map.moved(segment, seq, flight.number);
        }
        for Queued { records, ticket, size, landing, .. } in flight.items {
            if let Some(landing) = landing {
                self.forget_landing(landing);
            }
            // Its part of the batch's padding included.
            let cost = flight.cost * (size.head + size.data) / total / records.len().max(1) as u64;
            for record in records {
                self.absorb(record, flight.number, cost);
            }
            self.events.extend(ticket.map(Event::Persisted));
        }
        self.map.ledger.batches.release(flight.number);
        self.keep_books();
    }

    fn absorb(&mut self, record: WalRecord, batch: u64, cost: u64) {
        let created: Option<(SegmentId, Seq)> = match &record {
            WalRecord::Core(Record::Create { segment, .. }) => {
                self.creating.remove(segment).map(|(_, commit)| (*segment, commit))
            }
            _ => None,
        };
        if matches!(record, WalRecord::Commit { .. }) {
            self.apply.on_commit_point();
        }
        let map = if let WalRecord::Map(map) = &record { Some((map.segment, map.extent)) } else { None };
        self.map.absorb(record, batch, cost);
        if let Some((segment, commit)) = created {
            self.map.with(segment, |replica, ledger| replica.tell(commit, ledger));
        }
        if let Some((segment, extent)) = map {
            self.on_copy_mapped(segment, extent);
        }
    }
}

/// The pieces, as long as a device can take them from where they are.
fn in_place(pieces: Vec<bytes::Bytes>) -> Result<Vec<bytes::Bytes>, Vec<bytes::Bytes>> {
    let fits = pieces.len() < VECTOR_MAX && pieces.iter().all(is_aligned);
    if fits { Ok(pieces) } else { Err(pieces) }
}

/// Every batch is (I3).
fn is_durable() -> bool {
    #[cfg(test)]
    if super::tests::mistake(super::tests::Mistake::AckBeforeSync) {
        return false;
    }
    true
}

pub(crate) fn is_aligned(bytes: &bytes::Bytes) -> bool {
    bytes.as_ptr().addr().is_multiple_of(4096)
}
