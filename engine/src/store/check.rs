//! A look at a whole device that nobody uses: what is on it, and whether it is what it should be. Writes nothing.
//!
//! A shard is read by the same code that opens it (`recover`), so that what is told is what would happen. Beyond that
//! the copies of the superblock are compared, and every checksum that stands for home data is looked for; with
//! [`Depth::Data`] all that data is read and compared too. What the WAL still holds is not compared with its home: a
//! crash may have torn it there, and opening writes it again.

use engine_core::ids::{BlockIndex, ExtentIndex, SegmentId};
use engine_core::limits::{BLOCK_SIZE, EXTENT_BLOCKS, EXTENT_SIZE};
use engine_core::record::Standing;

use super::extents::Home;
use super::findings::Findings;
use super::format::{CellLabel, PAGE_SLABS, VERSION, decode_superblock};
use super::read::{BLOCK, block_sum};
use super::recover::{ShardRead, read_shard};
use super::replica::{Replica, Source};
use super::report::{
    Area, Identity, Place, ReplicaReport, Report, Root, ShardReport, SpaceReport, SuperblockCopy, Verdict, WalReport,
};
use super::roots::{RootFound, read_roots};
use super::shard::Label;
use super::sums::{Known, SumStore, page_of};
use super::superblock::{COPIES, OpenError, Region, Superblock};
use crate::device::WholeDevice;
use crate::device::buffer::AlignedBuf;

/// How far to look.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord)]
pub enum Depth {
    /// What opening the device would read.
    Structure,
    /// Also all checksums of home data.
    Checksums,
    /// Also the data.
    Data,
}

/// Looks at a device. `progress` gets bytes of slabs looked at, and how many there are in this shard.
///
/// # Errors
/// [`OpenError`], when the device is not one of ours or of another version. One that is ours and damaged is a report.
pub fn examine(
    whole: &mut impl WholeDevice,
    depth: Depth,
    progress: &mut dyn FnMut(u64, u64),
) -> Result<Report, OpenError> {
    let mut report = Report { size: whole.size(), ..Report::default() };
    let mut findings = Findings::default();
    let superblock = match super::read(whole) {
        Ok(superblock) => superblock,
        Err(error @ (OpenError::Damaged(_) | OpenError::Shrunk { .. })) => {
            report.copies = copies(whole, None, &mut findings);
            findings.add(0, "superblock", Place::default(), Verdict::Refused, error.to_string());
            (report.problems, report.problems_left_off) = (findings.problems, findings.left_off);
            return Ok(report);
        }
        Err(error) => return Err(error),
    };
    report.copies = copies(whole, Some(&superblock), &mut findings);
    report.superblock = Some(identity(&superblock));
    take(&mut report, findings);
    for shard in 0..superblock.geometry.shards {
        let region = superblock.geometry.region(shard);
        let label = Label { device: superblock.device, shard, boot: superblock.boot };
        let mut findings = Findings::of(region);
        let (shard, verified) = shard_report(whole, &region, &label, depth, &mut findings, progress);
        report.shards.push(shard);
        report.verified_bytes += verified;
        take(&mut report, findings);
    }
    Ok(report)
}

fn take(report: &mut Report, findings: Findings) {
    report.problems.extend(findings.problems);
    report.problems_left_off += findings.left_off;
}

fn identity(superblock: &Superblock) -> Identity {
    Identity {
        version: VERSION,
        features: superblock.features,
        compatible_features: superblock.compatible,
        cluster: superblock.cluster.to_string(),
        device: superblock.device.to_string(),
        node: superblock.node.to_string(),
        boot: superblock.boot.0,
        revision: superblock.revision.0,
        size: superblock.geometry.size,
        shards: superblock.geometry.shards,
        wal_size: superblock.geometry.wal_size,
    }
}

/// All copies. Older whole ones are what a crash between two copies leaves.
fn copies(whole: &mut impl WholeDevice, current: Option<&Superblock>, findings: &mut Findings) -> Vec<SuperblockCopy> {
    let mut list = Vec::new();
    let inside = COPIES.into_iter().filter(|offset| offset + BLOCK_SIZE <= whole.size()).collect::<Vec<_>>();
    for offset in inside {
        let mut block = AlignedBuf::zeroed(BLOCK);
        let read = whole.read_at(offset, &mut block);
        let found = read.map(|()| decode_superblock(&block));
        let (state, copy) = match found {
            Ok(Ok(Ok(copy))) if Some(&copy) == current => ("current", Some(copy)),
            Ok(Ok(Ok(copy))) => ("older", Some(copy)),
            Ok(Ok(Err(_))) => ("other_version", None),
            Ok(Err(_)) => ("damaged", None),
            Err(_) => ("unreadable", None),
        };
        if copy.is_none() {
            let what = format!("a copy of the superblock is {}", state.replace('_', " of an"));
            findings.add(offset, "superblock", Place::default(), Verdict::Harmless, what);
        }
        let (boot, revision) = (copy.map(|copy| copy.boot.0), copy.map(|copy| copy.revision.0));
        list.push(SuperblockCopy { offset, state, boot, revision });
    }
    list
}

fn shard_report(
    whole: &mut impl WholeDevice,
    region: &Region,
    label: &Label,
    depth: Depth,
    findings: &mut Findings,
    progress: &mut dyn FnMut(u64, u64),
) -> (ShardReport, u64) {
    let roots = read_roots(whole, region, label);
    let mut report = ShardReport {
        shard: region.shard,
        areas: areas(region),
        roots: root_reports(&roots),
        wal: None,
        space: None,
        replicas: Vec::new(),
    };
    let mut read = match read_shard(whole, region, label, roots, findings) {
        Ok(read) => read,
        Err(error) => {
            findings.add(region.base, "shard", Place::default(), Verdict::Refused, error.to_string());
            return (report, 0);
        }
    };
    report.wal = Some(wal_report(&read));
    report.space = Some(space_report(region, &read));
    report.replicas = read.map.replicas.iter().map(|(segment, replica)| replica_report(*segment, replica)).collect();
    let verified = match depth {
        Depth::Structure => 0,
        Depth::Checksums | Depth::Data => {
            let device = label.device;
            let mut sums = SumStore::new(CellLabel { device, shard: label.shard });
            read.map.ledger.sums.drain(..).for_each(|new| sums.set(&new));
            Homes { whole, region, sums, data: depth == Depth::Data, verified: 0, findings }.check(&read, progress)
        }
    };
    (report, verified)
}

fn areas(region: &Region) -> Vec<Area> {
    let page = |place| region.page_at(place);
    let bounds = [
        ("WAL", 0, region.wal),
        ("root A", region.area_at(0), region.area_at(1)),
        ("root B", region.area_at(1), page(0)),
        ("map pages", page(0), page(region.pages)),
        ("checksum pages", region.sums_at(0), region.slab_at(0)),
        ("slabs", region.slab_at(0), region.slab_at(region.slabs)),
    ];
    bounds.map(|(name, from, to)| Area { name, offset: region.base + from, bytes: to - from }).into()
}

fn root_reports(roots: &[RootFound; 2]) -> Vec<Root> {
    let whole = |root: &RootFound| if let RootFound::Whole(header, _) = root { header.number } else { 0 };
    let newest = roots.iter().map(whole).max().unwrap_or(0);
    let one = |(name, root): (&'static str, &RootFound)| {
        let state = match root {
            RootFound::Nothing => "none",
            RootFound::BadHeader => "damaged",
            RootFound::BadBody(header) if header.number > newest => "damaged",
            RootFound::BadBody(_) => "overwritten",
            RootFound::Whole(header, _) if header.number == newest => "current",
            RootFound::Whole(..) => "older",
        };
        let header = root.header();
        Root {
            name,
            state,
            number: header.map(|header| header.number),
            batch: header.map(|header| header.batch),
            oldest: header.map(|header| header.oldest),
            position: header.map(|header| header.position),
        }
    };
    ["A", "B"].into_iter().zip(roots).map(one).collect()
}

fn wal_report(read: &ShardRead) -> WalReport {
    let ring = &read.wal.ring;
    WalReport {
        size: ring.size,
        tail: read.header.position,
        head: ring.head,
        used: ring.used(),
        first_batch: read.header.oldest,
        next_batch: ring.number,
        records: read.records,
        changes: read.map.replicas.values().map(|replica| replica.log.len() as u64).sum(),
    }
}

fn space_report(region: &Region, read: &ShardRead) -> SpaceReport {
    let replicas = || read.map.replicas.values();
    SpaceReport {
        slabs: u64::from(region.slabs),
        used: replicas().map(|replica| replica.extents.slabs).sum(),
        pending: replicas().map(|replica| replica.log_slabs().count() as u64).sum(),
        free: read.slabs.free() as u64,
        scratch: u64::from(region.scratch),
        capacity: region.capacity(),
        booked: read.map.booked,
        map_pages: u64::from(region.pages),
        map_pages_used: u64::from(region.pages) - read.pages.free() as u64,
    }
}

fn replica_report(segment: SegmentId, replica: &Replica) -> ReplicaReport {
    let config = &replica.meta.config;
    let last = replica.log.last().unwrap_or_default();
    ReplicaReport {
        segment: segment.to_string(),
        incarnation: config.incarnation.0,
        epoch: config.epoch.0,
        promised: replica.meta.promised.0,
        log_epoch: replica.meta.log_epoch.0,
        standing: match replica.meta.standing {
            Standing::Member => "member",
            Standing::Candidate { .. } => "candidate",
            Standing::Joining { .. } => "joining",
            Standing::Stale { .. } => "stale",
        },
        members: config.members.iter().map(ToString::to_string).collect(),
        extents: config.extents,
        written: replica.extents.slabs,
        stamp: replica.extents.from(ExtentIndex(0)).map(|(_, home)| home.stamp.0).max().unwrap_or(0),
        commit: replica.commit.0,
        last: last.max(replica.commit).0,
        unapplied: replica.log.all().take_while(|(seq, _)| *seq <= replica.commit).count() as u64,
        damaged: replica.damaged,
    }
}

/// Looks at home data and its checksums, in the order in which it lies.
struct Homes<'a, W> {
    whole: &'a mut W,
    region: &'a Region,
    sums: SumStore,
    data: bool,
    /// Bytes of data that were read and are right.
    verified: u64,
    findings: &'a mut Findings,
}

/// Blocks of a slab that hold what their extent reads as, with their checksums.
type Wanted = Vec<(u32, u32)>;

impl<W: WholeDevice> Homes<'_, W> {
    fn check(mut self, read: &ShardRead, progress: &mut dyn FnMut(u64, u64)) -> u64 {
        let replicas: Vec<(&SegmentId, &Replica)> = read.map.replicas.iter().collect();
        let mut homes: Vec<(u32, u32, ExtentIndex)> = Vec::new();
        for (index, (_, replica)) in (0..).zip(&replicas) {
            let with_slab = replica.extents.from(ExtentIndex(0));
            homes.extend(with_slab.filter_map(|(extent, home)| Some((home.slab()?, index, extent))));
        }
        homes.sort_unstable();
        let total = homes.len() as u64 * EXTENT_SIZE;
        for (done, (slab, index, extent)) in (0..).zip(homes) {
            let (segment, replica) = replicas[index as usize];
            let wanted = self.sums_of(*segment, replica, extent, replica.extents.home(extent), slab);
            if self.data && !wanted.is_empty() {
                self.slab(*segment, extent, slab, &wanted);
            }
            progress((done + 1) * EXTENT_SIZE, total);
        }
        self.verified
    }

    /// What the blocks of a slab should be; those the WAL holds are not asked for.
    fn sums_of(&mut self, segment: SegmentId, replica: &Replica, extent: ExtentIndex, home: Home, slab: u32) -> Wanted {
        let overlay = replica.overlay.get(&extent).map(Box::as_ref);
        let (mut wanted, mut lost) = (Vec::new(), 0);
        for within in 0..EXTENT_BLOCKS {
            let block = BlockIndex(extent.0 * EXTENT_BLOCKS + within);
            if !matches!(replica.source_in(overlay, home, block), Source::Home(_)) {
                continue;
            }
            match self.sum(slab, within) {
                Known::Is(sum) => wanted.push((within, sum)),
                Known::Lost | Known::Unread => lost += 1,
            }
        }
        if lost > 0 {
            let at = self.region.base + self.region.sums_at(page_of(slab));
            let what =
                format!("the checksums of {lost} blocks are damaged (cell {} of the page)", slab % PAGE_SLABS / 3);
            self.findings.add(at, "checksum page", Place::of(segment).extent(extent), Verdict::Mended, what);
        }
        wanted
    }

    fn sum(&mut self, slab: u32, block: u32) -> Known {
        let known = self.sums.sum(slab, block);
        let page = page_of(slab);
        if known != Known::Unread || !self.sums.wants(page) {
            return known;
        }
        let mut bytes = AlignedBuf::zeroed(BLOCK);
        let read = self.whole.read_at(self.region.base + self.region.sums_at(page), &mut bytes);
        self.sums.arrived(page, read.is_ok().then_some(bytes));
        self.sums.sum(slab, block)
    }

    /// Reads a slab and compares.
    fn slab(&mut self, segment: SegmentId, extent: ExtentIndex, slab: u32, wanted: &Wanted) {
        let at = self.region.base + self.region.slab_at(slab);
        let mut buffer = AlignedBuf::zeroed(EXTENT_BLOCKS as usize * BLOCK);
        let whole = self.whole.read_at(at, &mut buffer).is_ok();
        for (within, sum) in wanted {
            let (at, from) = (at + u64::from(*within) * BLOCK_SIZE, *within as usize * BLOCK);
            let mut one = AlignedBuf::zeroed(BLOCK);
            // One bad sector: block by block.
            let content = match whole {
                true => Some(&buffer[from..from + BLOCK]),
                false => self.whole.read_at(at, &mut one).is_ok().then_some(&one[..]),
            };
            let block = BlockIndex(extent.0 * EXTENT_BLOCKS + within);
            let what = match content {
                Some(content) if block_sum(segment, block, content) == *sum => {
                    self.verified += BLOCK_SIZE;
                    continue;
                }
                Some(_) => "the data does not match its checksum",
                None => "the device cannot read it",
            };
            let place = Place::of(segment).extent(extent).block(block);
            self.findings.add(at, "data", place, Verdict::Mended, what);
        }
    }
}
