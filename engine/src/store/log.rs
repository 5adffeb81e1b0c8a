//! Batches: what goes into the next one, and what a durable one changes in memory.

use engine_core::record::Record;

use super::Event;
use super::format::{BatchHeader, WalRecord, encode_batch, record_len};
use super::shard::{Purpose, ShardStore};
use super::wal::{Flight, Queued};
use crate::device::{Device, Operation};

impl<D: Device> ShardStore<D> {
    /// Writes the next batch when none is in flight. This is where a write becomes durable (I3).
    pub(crate) fn start_batch(&mut self) {
        if self.wal.flight.is_some() {
            return;
        }
        let (flight, bytes) = self.gather();
        if bytes == 0 {
            return;
        }
        let (position, number) = self.wal.ring.advance(bytes);
        let header = BatchHeader {
            device: self.label.device,
            shard: self.label.shard,
            boot: self.label.boot,
            number,
            len: 0,
            sum: 0,
        };
        let queued = flight.items.iter().flat_map(|item| &item.records);
        let buffer = encode_batch(header, flight.relogged.iter().chain(queued), bytes);
        self.wal.flight = Some(flight);
        self.submit(Purpose::Batch, Operation::Write { offset: position, buffer, durable: true });
    }

    /// Entries to write again first, then the store's own records, then the core's, in order, until the batch is full.
    fn gather(&mut self) -> (Flight, u64) {
        let full = self.wal.ring.batch_bytes();
        let mut flight = Flight { items: Vec::new(), relogged: Vec::new() };
        let mut bytes = 0;
        while bytes < full {
            let Some(record) = self.wal.relog.pop_front() else { break };
            bytes += record_len(&record);
            flight.relogged.push(record);
        }
        self.wal.relog_bytes -= bytes;
        if !self.wal.relog.is_empty() {
            return (flight, bytes);
        }
        let log_bytes = self.map.log_bytes;
        while bytes < full
            && let Some(next) = self.wal.own.front()
            && self.wal.admits_own(bytes + next.bytes, log_bytes)
        {
            bytes += next.bytes;
            flight.items.extend(self.wal.own.pop_front());
        }
        self.wal.take(&mut bytes, full, log_bytes, &mut flight.items);
        (flight, bytes)
    }

    /// The batch is durable: its records count now.
    pub(crate) fn on_batch(&mut self) {
        let Some(flight) = self.wal.flight.take() else { return };
        for Queued { records, ticket, .. } in flight.items {
            for record in records {
                self.absorb(record);
            }
            self.events.extend(ticket.map(Event::Persisted));
        }
    }

    fn absorb(&mut self, record: WalRecord) {
        let created = match &record {
            WalRecord::Core(Record::Create { segment, .. }) => Some(*segment),
            _ => None,
        };
        if matches!(record, WalRecord::Commit { .. }) {
            self.apply.on_commit_point();
        }
        let map = if let WalRecord::Map(map) = &record { Some((map.segment, map.extent)) } else { None };
        self.map.absorb(record);
        if let Some(segment) = created
            && let Some((_, commit)) = self.creating.remove(&segment)
        {
            self.map.with(segment, |replica| replica.tell(commit));
        }
        if let Some((segment, extent)) = map {
            self.on_copy_mapped(segment, extent);
        }
    }
}
