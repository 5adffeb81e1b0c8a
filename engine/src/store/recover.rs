//! Opening a shard: the newest whole checkpoint, then the WAL behind it, batch by batch, up to the first that is not
//! whole. Nothing is written; slabs are given out only after everything was read.
//!
//! Batches carry consecutive numbers and never a lower boot than the one before. One batch is in flight at a time, so a
//! whole batch with a higher number behind the end means that the one at the end was durable once and is damaged now:
//! then any replica may have less than it acknowledged (I9, I14), and says so until the core has dealt with it.

use engine_core::ids::{BootCount, Seq};
use engine_core::record::{Record, Recovered, Standing};

use super::format::{
    BATCH_HEADER, BatchHeader, CheckpointHeader, WalRecord, crc, decode_batch, decode_body, decode_header, peek,
};
use super::map::Map;
use super::shard::{Label, ShardStore};
use super::slabs::Slabs;
use super::superblock::{OpenError, Region, Superblock};
use super::wal::{Queued, Ring, Wal};
use crate::device::buffer::AlignedBuf;
use crate::device::{Device, WholeDevice};

/// Bytes of the ring read at a time; a longer batch is read whole.
const WINDOW: u64 = 4 * 1024 * 1024;

impl<D: Device> ShardStore<D> {
    /// Reads one shard's state from `whole` and goes on with it on `device`, which is the shard's region of the same
    /// device. Call it on the shard's thread, after [`super::open`] has counted the boot.
    ///
    /// # Errors
    /// When neither checkpoint is whole, or the device cannot be read.
    pub fn open(
        whole: &mut impl WholeDevice,
        device: D,
        superblock: &Superblock,
        shard: u16,
    ) -> Result<Self, OpenError> {
        let region = superblock.geometry.region(shard);
        assert_eq!(device.len(), region.len, "the device is the shard's region");
        let label = Label { device: superblock.device, shard, boot: superblock.boot };
        let (header, mut map, fell_back) = load_checkpoint(whole, &region, &label)?;
        let mut scan = Scan::new(whole, &region, &label, &header);
        let mut number = header.batch;
        while let Some(records) = scan.next_batch(number)? {
            for record in records {
                map.absorb(record);
            }
            number += 1;
        }
        let damaged = scan.is_cut_short(number)? || fell_back;
        let ring = Ring { size: region.wal, head: scan.position, number, used: scan.used, since: scan.used };
        map.finish_recovery();
        map.freed.clear();
        let slabs = count_slabs(&map, &region)?;
        let mut wal = Wal::new(ring);
        let recovered = conclude(&mut map, &mut wal, damaged);
        let mut store = Self::assemble(device, region, label, map, slabs, wal, header.number);
        store.recovered = recovered;
        Ok(store)
    }
}

/// The newest whole checkpoint; `true` when a newer one is damaged.
fn load_checkpoint(
    whole: &mut impl WholeDevice,
    region: &Region,
    label: &Label,
) -> Result<(CheckpointHeader, Map, bool), OpenError> {
    let mut found: Vec<(CheckpointHeader, u64)> = Vec::new();
    for area in [region.area_at(0), region.area_at(1)] {
        let mut block = AlignedBuf::zeroed(4096);
        whole.read_at(region.base + area, &mut block)?;
        let Ok(header) = decode_header(&block) else { continue };
        let ours = header.device == label.device && header.shard == label.shard;
        let fits = header.len + 4096 <= region.area && header.position <= region.wal;
        if ours && fits && header.position.is_multiple_of(4096) {
            found.push((header, area));
        }
    }
    found.sort_by_key(|(header, _)| std::cmp::Reverse(header.number));
    for (tried, (header, area)) in found.iter().enumerate() {
        let len = usize::try_from(header.len).map_err(|_| OpenError::Damaged("its checkpoint is too long"))?;
        let mut body = AlignedBuf::zeroed(len.next_multiple_of(4096).max(4096));
        whole.read_at(region.base + area + 4096, &mut body)?;
        if crc(&body[..len]) == header.sum
            && let Ok(map) = decode_body(&body[..len], region.slabs)
        {
            return Ok((*header, map, tried > 0));
        }
    }
    Err(OpenError::Damaged("no checkpoint of a shard is whole"))
}

/// Walks the ring.
struct Scan<'a, W> {
    whole: &'a mut W,
    region: &'a Region,
    label: &'a Label,
    /// Where the next batch should be.
    position: u64,
    used: u64,
    boot: BootCount,
    window: AlignedBuf,
    window_at: u64,
    window_len: u64,
}

impl<'a, W: WholeDevice> Scan<'a, W> {
    fn new(whole: &'a mut W, region: &'a Region, label: &'a Label, from: &CheckpointHeader) -> Self {
        let window = AlignedBuf::zeroed(4096);
        let (position, boot) = (from.position, from.boot);
        Self { whole, region, label, position, used: 0, boot, window, window_at: 0, window_len: 0 }
    }

    /// `len` bytes of the ring at `at`, reading ahead.
    fn bytes(&mut self, at: u64, len: u64) -> Result<Option<&[u8]>, OpenError> {
        if at + len > self.region.wal {
            return Ok(None);
        }
        if at < self.window_at || at + len > self.window_at + self.window_len {
            let take = WINDOW.max(len.next_multiple_of(4096)).min(self.region.wal - at);
            let size = usize::try_from(take).map_err(|_| OpenError::Damaged("its WAL is too long"))?;
            if self.window.len() != size {
                self.window = AlignedBuf::zeroed(size);
            }
            self.window_len = 0;
            self.whole.read_at(self.region.base + at, &mut self.window)?;
            (self.window_at, self.window_len) = (at, take);
        }
        #[allow(clippy::cast_possible_truncation)] // inside the window
        let start = (at - self.window_at) as usize;
        #[allow(clippy::cast_possible_truncation)] // as above
        Ok(Some(&self.window[start..start + len as usize]))
    }

    fn header_at(&mut self, at: u64) -> Result<Option<BatchHeader>, OpenError> {
        let label = *self.label;
        let ours = |header: &BatchHeader| header.device == label.device && header.shard == label.shard;
        Ok(self.bytes(at, BATCH_HEADER as u64)?.and_then(peek).filter(ours))
    }

    /// The batch of this number, here or at the ring's begin.
    fn next_batch(&mut self, number: u64) -> Result<Option<Vec<WalRecord>>, OpenError> {
        let skipped = self.region.wal - self.position;
        for (at, skipped) in [(self.position, 0), (0, skipped)] {
            let boot = self.boot;
            let due = |header: &BatchHeader| header.number == number && header.boot >= boot;
            let Some(header) = self.header_at(at)?.filter(due) else { continue };
            let Some(bytes) = self.bytes(at, u64::from(header.len))? else { continue };
            let Ok(records) = decode_batch(&header, bytes) else { continue };
            let len = u64::from(header.len).next_multiple_of(4096);
            self.boot = header.boot;
            self.position = at + len;
            self.used += skipped + len;
            return Ok(Some(records));
        }
        Ok(None)
    }

    /// Whether a whole batch of a later number is somewhere in the ring.
    fn is_cut_short(&mut self, number: u64) -> Result<bool, OpenError> {
        for at in (0..self.region.wal).step_by(4096) {
            let boot = self.boot;
            let later = |header: &BatchHeader| header.number > number && header.boot >= boot;
            let Some(header) = self.header_at(at)?.filter(later) else { continue };
            let Some(bytes) = self.bytes(at, u64::from(header.len))? else { continue };
            if decode_batch(&header, bytes).is_ok() {
                tracing::error!(shard = self.label.shard, number, later = header.number, "the WAL is damaged");
                return Ok(true);
            }
        }
        Ok(false)
    }
}

fn count_slabs(map: &Map, region: &Region) -> Result<Slabs, OpenError> {
    let mut taken = vec![false; region.slabs as usize];
    for slab in map.slabs() {
        match taken.get_mut(slab as usize) {
            Some(taken) if !*taken => *taken = true,
            _ => return Err(OpenError::Damaged("two extents claim one slab")),
        }
    }
    if map.booked > region.capacity() {
        return Err(OpenError::Damaged("its replicas book more than it has"));
    }
    Ok(Slabs::new(region.slabs, &taken))
}

/// What each replica's core is told. What it is told to forget, the WAL forgets first.
fn conclude(map: &mut Map, wal: &mut Wal, damaged: bool) -> Vec<Recovered> {
    let mut recovered = Vec::new();
    for (segment, replica) in &mut map.replicas {
        let tail = replica.tail();
        let last = tail.last().map_or(replica.commit, |entry| entry.seq);
        let gap = replica.log.range(last.next()..).next().is_some();
        let member = matches!(replica.meta.standing, Standing::Member | Standing::Joining { .. });
        let mut records = Vec::new();
        if gap {
            replica.hold(last);
            records.push(WalRecord::Core(Record::Truncate { segment: *segment, above: Seq(last.0) }));
        }
        if damaged || gap && member {
            tracing::error!(%segment, commit = %replica.commit, %last, gap, "a replica's log is damaged");
            replica.damaged = true;
            records.push(WalRecord::Damaged { segment: *segment });
        }
        if !records.is_empty() {
            wal.own.push_back(Queued::new(records, None));
        }
        recovered.push(Recovered {
            segment: *segment,
            meta: replica.meta.clone(),
            commit: replica.commit,
            tail,
            damaged: replica.damaged,
        });
    }
    recovered
}
