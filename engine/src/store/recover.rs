//! Opening a shard: the newest whole checkpoint, then the WAL from where it says. Nothing is written; slabs are given
//! out only after everything was read.
//!
//! Batches before the checkpoint's own number only bring back what the logs held; those behind it change the map too.
//! What is damaged costs as little as can be shown to be enough (I14): a map page its extents, data of an entry that
//! entry, records of a batch every replica's word about its log (I9). The core is told, until it has dealt with it.
//!
//! [`read_shard`] reads, [`ShardStore::open`] goes on with what it read, and `nodectl store check` shows it: one way to
//! read a shard, so that what is checked is what would happen.

use std::rc::Rc;

use bytes::Bytes;
use engine_core::ids::{BlockIndex, ExtentIndex, SegmentId, Seq};
use engine_core::limits::{EXTENT_BLOCKS, EXTENT_SIZE};
use engine_core::record::{Record, Recovered, Standing};

use super::entry::Kind;
use super::extents::{CHUNK_EXTENTS, Extents, Home};
use super::findings::{Findings, REPLICA};
use super::format::{CellLabel, PageLabel, RootHeader, RootReplica, WalRecord, decode_page, record_size};
use super::ledger::Batch;
use super::map::Map;
use super::read::{BLOCK, block_sum};
use super::replica::{Replica, Source};
use super::report::{Place, Verdict};
use super::roots::{RootFound, newest, read_roots};
use super::scan::Scan;
use super::shard::{Label, Parts, ShardStore};
use super::slabs::{Slabs, Taken};
use super::sums::SumStore;
use super::superblock::{OpenError, Region, Superblock};
use super::wal::{Queued, Ring, Wal};
use crate::device::buffer::AlignedBuf;
use crate::device::{Device, WholeDevice};

/// What a shard's part of a device says.
pub(crate) struct ShardRead {
    pub(crate) header: RootHeader,
    pub(crate) map: Map,
    pub(crate) slabs: Slabs,
    pub(crate) pages: Slabs,
    pub(crate) wal: Wal,
    pub(crate) recovered: Vec<Recovered>,
    /// Records in the part of the ring that was read.
    pub(crate) records: u64,
}

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
        let mut findings = Findings::of(region);
        let roots = read_roots(whole, &region, &label);
        let read = read_shard(whole, &region, &label, roots, &mut findings);
        for problem in &findings.problems {
            tracing::error!("{problem}");
        }
        let ShardRead { header, map, slabs, pages, wal, recovered, .. } = read?;
        let sums = SumStore::new(CellLabel { device: label.device, shard });
        let number = header.number;
        // What the checkpoint's number says must stay true of every batch: the next one waits for another checkpoint.
        let checkpoint_first = wal.ring.number < header.batch;
        let mut store = Self::assemble(Parts { device, region, label, map, slabs, pages, sums, wal, number });
        store.recovered = recovered;
        store.damaged_structures = findings.structures();
        store.checkpoint_first = checkpoint_first;
        store.keep_books();
        Ok(store)
    }
}

/// Reads one shard; writes nothing.
pub(crate) fn read_shard(
    whole: &mut impl WholeDevice,
    region: &Region,
    label: &Label,
    roots: [RootFound; 2],
    findings: &mut Findings,
) -> Result<ShardRead, OpenError> {
    let (header, replicas, fell_back) = newest(roots, region, findings)?;
    let mut map = Map::default();
    let pages = load_pages(whole, region, label, &mut map, replicas, findings)?;
    let Replayed { ring, records, cut_short, suspects } = replay(whole, region, label, &header, &mut map, findings);
    map.finish_recovery();
    suspects.iter().for_each(|suspect| tell_suspect(&map, region, *suspect, findings));
    let slabs = count_slabs(&mut map, region, findings)?;
    // Whatever is in use in the end was counted. Pages the root names stay until another one counts.
    map.ledger.slabs.clear();
    let mut wal = Wal::new(ring);
    let recovered = conclude(whole, region, &mut map, &mut wal, cut_short || fell_back, findings);
    Ok(ShardRead { header, map, slabs, pages, wal, recovered, records })
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
    findings: &mut Findings,
) -> Result<Slabs, OpenError> {
    let mut taken = Taken::none(region.pages);
    let mut wanted = Vec::new();
    for RootReplica { segment, meta, damaged, commit, pages } in replicas {
        if u64::from(meta.config.extents) > region.capacity() {
            return Err(OpenError::Damaged("a replica is larger than the shard it is in"));
        }
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
        if homes.is_none() {
            let first = u64::from(label.chunk) * CHUNK_EXTENTS as u64;
            let what = match known {
                true => format!("the page of extents {first} on is damaged"),
                false => {
                    format!("the page of extents {first} on is said to lie at {place}, which is another's or none")
                }
            };
            let at = region.base + region.page_at(place.min(region.pages));
            findings.add(at, "map page", Place::of(label.segment), Verdict::Copied, what);
        }
        map.with(label.segment, |replica, _| {
            let page = known.then_some((place, sum));
            if let Some(homes) = homes {
                replica.extents.load(label.chunk as usize, Rc::from(homes), page);
            } else {
                replica.damaged = true;
                replica.extents.load(label.chunk as usize, Rc::new([Home::LOST; CHUNK_EXTENTS]), page);
                replica.extents.mark_dirty(label.chunk);
            }
        });
    }
    Ok(Slabs::new(region.pages, &taken))
}

/// What the WAL held.
struct Replayed {
    ring: Ring,
    records: u64,
    /// It ends before something that was durable.
    cut_short: bool,
    /// Entries whose data does not match, with the place of their batch.
    suspects: Vec<(SegmentId, Seq, u64)>,
}

/// Reads the WAL into the map.
fn replay(
    whole: &mut impl WholeDevice,
    region: &Region,
    label: &Label,
    header: &RootHeader,
    map: &mut Map,
    findings: &mut Findings,
) -> Replayed {
    let mut scan = Scan::new(whole, region, label, header);
    let (mut number, mut start, mut records, mut suspects) = (header.oldest, 0, 0, Vec::new());
    while let Some(found) = scan.next_batch(number) {
        let batch = Batch { boot: found.boot, position: found.position, start, live: 1 };
        map.ledger.batches.push(number, batch);
        let total: u64 = found.records.iter().map(bytes).sum::<u64>().max(1);
        records += found.records.len() as u64;
        for record in found.records {
            if let WalRecord::Entry { segment, seq, entry, .. } = &record
                && matches!(&entry.kind, Kind::Write(write) if write.suspect)
            {
                suspects.push((*segment, *seq, found.position));
            }
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
    let later = scan.later_than(number);
    let cut_short = number < header.batch || later.is_some();
    if cut_short {
        let what = match later {
            Some(later) => format!("batch {number} is not whole, and batch {later} lies behind it"),
            None => format!("batch {number} is not whole, and the checkpoint is of batch {}", header.batch),
        };
        findings.add(region.base + scan.position, "WAL", Place::default(), Verdict::Copied, what);
    }
    let ring = Ring { size: region.wal, head: scan.position, number, start, tail: 0 };
    Replayed { ring, records, cut_short, suspects }
}

fn bytes(record: &WalRecord) -> u64 {
    let size = record_size(record);
    size.head + size.data
}

/// What data that does not match costs.
fn tell_suspect(map: &Map, region: &Region, (segment, seq, position): (SegmentId, Seq, u64), findings: &mut Findings) {
    let (at, place) = (region.base + position, Place::of(segment));
    let replica = map.replicas.get(&segment);
    let entry = replica.and_then(|replica| Some((replica, &replica.log.get(seq)?.entry)));
    let Some((replica, entry)) = entry else {
        let what = format!("data of change {seq}, which is in its home already, does not match its checksum");
        return findings.add(at, "WAL", place, Verdict::Harmless, what);
    };
    if seq > replica.commit {
        let what = format!("data of change {seq}, which is not known to be committed, does not match its checksum");
        return findings.add(at, "WAL", place, Verdict::Copied, what);
    }
    let (first, count) = entry.range();
    for block in (first..first + count).map(BlockIndex) {
        if let Source::Log(data, sum, true) = replica.source(block)
            && block_sum(segment, block, data) != sum
        {
            let what = format!("data of change {seq}, which is committed, does not match its checksum");
            findings.add(at, "WAL", place.block(block), Verdict::Mended, what);
        }
    }
}

/// Counts what is in use. An extent whose slab is another's already is lost: only an older checkpoint than the last can
/// say such a thing.
fn count_slabs(map: &mut Map, region: &Region, findings: &mut Findings) -> Result<Slabs, OpenError> {
    let mut taken = Taken::none(region.slabs);
    let mut lost = Vec::new();
    for (segment, replica) in &map.replicas {
        for (extent, home) in replica.extents.from(ExtentIndex(0)) {
            if home.slab().is_some_and(|slab| !taken.take(slab)) {
                lost.push((*segment, extent, home.slab));
            }
        }
    }
    for segment in map.replicas.keys().copied().collect::<Vec<_>>() {
        map.with(segment, |replica, ledger| {
            let slabs: Vec<u32> = replica.log_slabs().collect();
            if slabs.iter().all(|slab| taken.is_free(*slab)) {
                slabs.into_iter().for_each(|slab| assert!(taken.take(slab), "looked at just now"));
            } else {
                let what = "a change that is not committed has a slab that is another's or none".to_owned();
                findings.add(region.base, "WAL", Place::of(segment), Verdict::Copied, what);
                replica.damaged = true;
                replica.truncate(replica.commit, ledger);
            }
        });
    }
    for (segment, extent, slab) in lost {
        let place = Place::of(segment).extent(extent);
        let (at, what) = if slab < region.slabs {
            (region.slab_at(slab), format!("slab {slab} is claimed by another extent too"))
        } else {
            (0, format!("it is said to lie in slab {slab}, which does not exist"))
        };
        findings.add(region.base + at, "extent map", place, Verdict::Copied, what);
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
    findings: &mut Findings,
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
        let gap = replica.log.from(last.next()).next().is_some();
        let member = matches!(replica.meta.standing, Standing::Member | Standing::Joining { .. });
        let mut records = Vec::new();
        if gap {
            replica.hold(last);
            records.push(WalRecord::Core(Record::Truncate { segment: *segment, above: Seq(last.0) }));
        }
        if damaged || replica.damaged || gap && member {
            let gap = if gap { ", with a gap behind" } else { "" };
            let what = format!("the replica counts as damaged: committed to {}, whole to {last}{gap}", replica.commit);
            findings.add(region.base, REPLICA, Place::of(*segment), Verdict::Copied, what);
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
