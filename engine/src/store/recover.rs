//! Opening a shard: the newest whole checkpoint, then the WAL from where it says. Nothing is written; slabs are given
//! out only after everything was read.
//!
//! Batches before the checkpoint's own number only bring back what the logs held; those behind it change the map too.
//! What is damaged costs as little as can be shown to be enough (I14): a map page its extents, data of an entry that
//! entry, records of a batch every replica's word about its log (I9). The core is told, until it has dealt with it.

use std::rc::Rc;

use bytes::Bytes;
use engine_core::ids::{BlockIndex, ExtentIndex, Seq};
use engine_core::limits::{EXTENT_BLOCKS, EXTENT_SIZE};
use engine_core::record::{Record, Recovered, Standing};

use super::extents::{CHUNK_EXTENTS, Extents, Home};
use super::format::{
    CellLabel, PageLabel, ROOT_HEADER, RootHeader, RootReplica, WalRecord, crc, decode_body, decode_header,
    decode_page, record_size,
};
use super::ledger::Batch;
use super::map::{Map, Replica};
use super::read::{BLOCK, block_sum};
use super::scan::Scan;
use super::shard::{Label, Parts, ShardStore};
use super::slabs::{Slabs, Taken};
use super::sums::SumStore;
use super::superblock::{OpenError, Region, Superblock};
use super::wal::{Queued, Ring, Wal};
use crate::device::buffer::AlignedBuf;
use crate::device::{Device, WholeDevice};

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
        let (header, replicas, fell_back) = load_root(whole, &region, &label)?;
        let mut map = Map::default();
        let pages = load_pages(whole, &region, &label, &mut map, replicas);
        let (ring, cut_short) = replay(whole, &region, &label, &header, &mut map);
        map.finish_recovery();
        let slabs = count_slabs(&mut map, &region)?;
        // Whatever is in use in the end was counted. Pages the root names stay until another one counts.
        map.ledger.slabs.clear();
        let mut wal = Wal::new(ring);
        let recovered = conclude(whole, &region, &mut map, &mut wal, cut_short || fell_back);
        let sums = SumStore::new(CellLabel { device: label.device, shard });
        let number = header.number;
        // What the checkpoint's number says must stay true of every batch: the next one waits for another checkpoint.
        let checkpoint_first = wal.ring.number < header.batch;
        let mut store = Self::assemble(Parts { device, region, label, map, slabs, pages, sums, wal, number });
        store.recovered = recovered;
        store.checkpoint_first = checkpoint_first;
        store.keep_books();
        Ok(store)
    }
}

/// The newest whole root; `true` when a newer one is damaged.
fn load_root(
    whole: &mut impl WholeDevice,
    region: &Region,
    label: &Label,
) -> Result<(RootHeader, Vec<RootReplica>, bool), OpenError> {
    let mut found: Vec<(RootHeader, u64)> = Vec::new();
    for area in [region.area_at(0), region.area_at(1)] {
        let mut block = AlignedBuf::zeroed(BLOCK);
        if whole.read_at(region.base + area, &mut block).is_err() {
            continue;
        }
        let Ok(header) = decode_header(&block) else { continue };
        let ours = header.device == label.device && header.shard == label.shard;
        let fits = header.len <= region.area - ROOT_HEADER && header.position <= region.wal;
        if ours && fits && header.position.is_multiple_of(4096) {
            found.push((header, area));
        }
    }
    found.sort_by_key(|(header, _)| std::cmp::Reverse(header.number));
    for (tried, (header, area)) in found.iter().enumerate() {
        let len = usize::try_from(header.len).map_err(|_| OpenError::Damaged("its checkpoint is too long"))?;
        let mut body = AlignedBuf::zeroed(len.next_multiple_of(BLOCK).max(BLOCK));
        if len > 0 && whole.read_at(region.base + area + ROOT_HEADER, &mut body).is_err() {
            continue;
        }
        if crc(&body[..len]) == header.sum
            && let Ok(replicas) = decode_body(&body[..len])
        {
            return Ok((*header, replicas, tried > 0));
        }
    }
    Err(OpenError::Damaged("no checkpoint of a shard is whole"))
}

/// Pages read at a time where they lie together.
const RUN: u32 = 256;

/// Reads the map pages the root names, in the order in which they lie.
fn load_pages(
    whole: &mut impl WholeDevice,
    region: &Region,
    label: &Label,
    map: &mut Map,
    replicas: Vec<RootReplica>,
) -> Slabs {
    let mut taken = Taken::none(region.pages);
    let mut wanted = Vec::new();
    for RootReplica { segment, meta, damaged, commit, pages } in replicas {
        let chunks = u64::from(meta.config.extents).div_ceil(CHUNK_EXTENTS as u64);
        for page in pages.into_iter().filter(|page| u64::from(page.chunk) < chunks) {
            let label = PageLabel { device: label.device, shard: label.shard, segment, chunk: page.chunk };
            let known = taken.take(page.place);
            wanted.push((page.place, page.sum, label, known));
        }
        map.booked += u64::from(meta.config.extents);
        map.replicas.insert(segment, Replica::recovered(meta, damaged, commit, Extents::default()));
    }
    wanted.sort_unstable_by_key(|(place, ..)| *place);
    let mut run = AlignedBuf::zeroed(RUN as usize * BLOCK);
    let mut read = 0..0;
    for (place, sum, label, known) in wanted {
        if known && !read.contains(&place) {
            read = place..place.saturating_add(RUN).min(region.pages);
            let len = read.len() * BLOCK;
            if run.len() != len {
                run = AlignedBuf::zeroed(len);
            }
            if whole.read_at(region.base + region.page_at(place), &mut run).is_err() {
                // One bad sector: page by page.
                run = AlignedBuf::zeroed(BLOCK);
                let failed = whole.read_at(region.base + region.page_at(place), &mut run).is_err();
                read = if failed { 0..0 } else { place..place + 1 };
            }
        }
        let at = (place.saturating_sub(read.start)) as usize * BLOCK;
        let bytes = if known && read.contains(&place) { run.get(at..at + BLOCK) } else { None };
        let homes = bytes.and_then(|bytes| decode_page(bytes, &label, sum).ok());
        map.with(label.segment, |replica, _| {
            let page = known.then_some((place, sum));
            if let Some(homes) = homes {
                replica.extents.load(label.chunk as usize, Rc::from(homes), page);
            } else {
                tracing::error!(segment = %label.segment, chunk = label.chunk, "a page of the map is damaged");
                replica.damaged = true;
                replica.extents.load(label.chunk as usize, Rc::new([Home::LOST; CHUNK_EXTENTS]), page);
                replica.extents.mark_dirty(label.chunk);
            }
        });
    }
    Slabs::new(region.pages, &taken)
}

/// Reads the WAL into the map. Whether it ends before something that was durable.
fn replay(
    whole: &mut impl WholeDevice,
    region: &Region,
    label: &Label,
    header: &RootHeader,
    map: &mut Map,
) -> (Ring, bool) {
    let mut scan = Scan::new(whole, region, label, header);
    let (mut number, mut start) = (header.oldest, 0);
    while let Some(found) = scan.next_batch(number) {
        let batch = Batch { boot: found.boot, position: found.position, start, live: 1 };
        map.ledger.batches.push(number, batch);
        let total: u64 = found.records.iter().map(bytes).sum::<u64>().max(1);
        for record in found.records {
            let cost = found.cost * bytes(&record) / total;
            if number < header.batch {
                map.absorb_old(record, number, cost);
            } else {
                map.absorb(record, number, cost);
            }
        }
        map.ledger.batches.release(number);
        start += found.cost;
        number += 1;
    }
    let cut_short = number < header.batch || scan.is_cut_short(number);
    (Ring { size: region.wal, head: scan.position, number, start, tail: 0 }, cut_short)
}

fn bytes(record: &WalRecord) -> u64 {
    let size = record_size(record);
    size.head + size.data
}

/// Counts what is in use. An extent whose slab is another's already is lost: only an older checkpoint than the last can
/// say such a thing.
fn count_slabs(map: &mut Map, region: &Region) -> Result<Slabs, OpenError> {
    let mut taken = Taken::none(region.slabs);
    let mut lost = Vec::new();
    for (segment, replica) in &map.replicas {
        for (extent, home) in replica.extents.from(ExtentIndex(0)) {
            if home.slab().is_some_and(|slab| !taken.take(slab)) {
                lost.push((*segment, extent));
            }
        }
    }
    for segment in map.replicas.keys().copied().collect::<Vec<_>>() {
        map.with(segment, |replica, ledger| {
            let slabs: Vec<u32> = replica.log_slabs().collect();
            if slabs.iter().all(|slab| taken.is_free(*slab)) {
                slabs.into_iter().for_each(|slab| assert!(taken.take(slab), "looked at just now"));
            } else {
                tracing::error!(%segment, "an entry's slab is another's");
                replica.damaged = true;
                replica.truncate(replica.commit, ledger);
            }
        });
    }
    for (segment, extent) in lost {
        tracing::error!(%segment, %extent, "two extents claim one slab");
        map.with(segment, |replica, _| {
            replica.damaged = true;
            replica.extents.set(extent, Home::LOST);
        });
    }
    if map.booked > region.capacity() {
        return Err(OpenError::Damaged("its replicas book more than it has"));
    }
    Ok(Slabs::new(region.slabs, &taken))
}

/// What each replica's core is told. What it is told to forget, the WAL forgets first.
fn conclude(
    whole: &mut impl WholeDevice,
    region: &Region,
    map: &mut Map,
    wal: &mut Wal,
    damaged: bool,
) -> Vec<Recovered> {
    let mut recovered = Vec::new();
    for (segment, replica) in &mut map.replicas {
        let mut tail = Vec::new();
        for (seq, entry) in replica.tail() {
            let read = |extent: u32, slab: u32| {
                let mut buffer = AlignedBuf::zeroed(usize::try_from(EXTENT_SIZE).ok()?);
                whole.read_at(region.base + region.slab_at(slab), &mut buffer).ok()?;
                let sound = |block: u32| {
                    let content = &buffer[block as usize * BLOCK..][..BLOCK];
                    let index = BlockIndex(extent * EXTENT_BLOCKS + block);
                    entry.sum(index.0) == Some(block_sum(*segment, index, content))
                };
                (0..EXTENT_BLOCKS).all(sound).then(|| Bytes::from_owner(buffer))
            };
            let Some(entry) = entry.to_core(seq, read) else { break };
            tail.push(entry);
        }
        let last = tail.last().map_or(replica.commit, |entry| entry.seq);
        let gap = replica.log.range(last.next()..).next().is_some();
        let member = matches!(replica.meta.standing, Standing::Member | Standing::Joining { .. });
        let mut records = Vec::new();
        if gap {
            replica.hold(last);
            records.push(WalRecord::Core(Record::Truncate { segment: *segment, above: Seq(last.0) }));
        }
        if damaged || replica.damaged || gap && member {
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
