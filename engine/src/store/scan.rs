//! Walking the WAL ring when a shard is opened: batch after batch, up to the first that is not whole.
//!
//! Batches carry consecutive numbers and never a lower boot than the one before. One batch is in flight at a time, so a
//! whole batch with the next number behind a place where one is not says that that one was durable once. The place is
//! looked for as far as the longest batch reaches.

use engine_core::ids::BootCount;

use super::entry::{Kind, LogEntry, Write};
use super::format::{BATCH_HEADER, BatchHeader, RootHeader, WalRecord, decode_batch, peek};
use super::shard::Label;
use super::superblock::Region;
use crate::device::WholeDevice;
use crate::device::buffer::AlignedBuf;

/// Bytes of the ring read at a time; a longer batch is read whole.
const WINDOW: u64 = 4 * 1024 * 1024;

/// A batch that was found.
pub(crate) struct Found {
    pub(crate) boot: BootCount,
    pub(crate) position: u64,
    /// Bytes it takes of the ring, a skipped end before it included.
    pub(crate) cost: u64,
    pub(crate) records: Vec<WalRecord>,
}

/// Walks the ring.
pub(crate) struct Scan<'a, W> {
    whole: &'a mut W,
    region: &'a Region,
    label: &'a Label,
    /// Where the next batch should be.
    pub(crate) position: u64,
    boot: BootCount,
    window: AlignedBuf,
    window_at: u64,
    window_len: u64,
}

impl<'a, W: WholeDevice> Scan<'a, W> {
    pub(crate) fn new(whole: &'a mut W, region: &'a Region, label: &'a Label, from: &RootHeader) -> Self {
        let window = AlignedBuf::zeroed(4096);
        let (position, boot) = (from.position, from.boot);
        Self { whole, region, label, position, boot, window, window_at: 0, window_len: 0 }
    }

    /// `len` bytes of the ring at `at`, reading ahead. What cannot be read is `None`.
    fn bytes(&mut self, at: u64, len: u64) -> Option<&[u8]> {
        if at + len > self.region.wal {
            return None;
        }
        if at < self.window_at || at + len > self.window_at + self.window_len {
            let ahead = WINDOW.max(len.next_multiple_of(4096)).min(self.region.wal - at);
            self.window_len = 0;
            // One bad sector ahead must not hide what is before it.
            for take in [ahead, len.next_multiple_of(4096)] {
                let size = usize::try_from(take).ok()?;
                if self.window.len() != size {
                    self.window = AlignedBuf::zeroed(size);
                }
                if self.whole.read_at(self.region.base + at, &mut self.window).is_ok() {
                    (self.window_at, self.window_len) = (at, take);
                    break;
                }
            }
        }
        if self.window_len == 0 {
            return None;
        }
        let start = usize::try_from(at - self.window_at).ok()?;
        self.window.get(start..start + usize::try_from(len).ok()?)
    }

    fn header_at(&mut self, at: u64) -> Option<BatchHeader> {
        let (label, boot) = (*self.label, self.boot);
        let header = self.bytes(at, BATCH_HEADER as u64).and_then(peek)?;
        (header.device == label.device && header.shard == label.shard && header.boot >= boot).then_some(header)
    }

    /// The batch of this number, here or at the ring's begin. Where both hold one, the one here was never whole: an
    /// earlier process wrote it, and the next one wrote another of the same number, too long for the place.
    pub(crate) fn next_batch(&mut self, number: u64) -> Option<Found> {
        let skipped = self.region.wal - self.position;
        // The second place is looked at only where the first has nothing: that moves the window.
        for (at, skipped) in [(self.position, 0), (0, skipped)] {
            let Some(header) = self.header_at(at).filter(|header| header.number == number) else { continue };
            let Some(bytes) = self.bytes(at, u64::from(header.len)) else { continue };
            let Ok(records) = decode_batch(&header, bytes) else { continue };
            let end = at + u64::from(header.len);
            // Data that does not match was never all written, unless something came behind it.
            if records.iter().any(is_suspect) && !self.is_followed(&header, end) {
                continue;
            }
            self.boot = header.boot;
            self.position = end;
            return Some(Found { boot: header.boot, position: at, cost: skipped + u64::from(header.len), records });
        }
        None
    }

    fn is_followed(&mut self, before: &BatchHeader, end: u64) -> bool {
        let follows = |next: BatchHeader| next.number == before.number + 1 && next.boot >= before.boot;
        [end, 0].into_iter().any(|at| self.header_at(at).is_some_and(follows))
    }

    /// The number of a later batch behind the one of this number, which is not whole: then that was durable once.
    pub(crate) fn later_than(&mut self, number: u64) -> Option<u64> {
        let reach = (super::wal::batch_max(self.region.wal) + 4096).next_multiple_of(4096);
        let behind = self.position..(self.position + reach).min(self.region.wal);
        let mut places = behind.chain(0..reach.min(self.region.wal)).step_by(4096);
        places.find_map(|at| self.header_at(at).map(|header| header.number).filter(|later| *later > number))
    }
}

fn is_suspect(record: &WalRecord) -> bool {
    matches!(record, WalRecord::Entry { entry: LogEntry { kind: Kind::Write(Write { suspect: true, .. }), .. }, .. })
}
