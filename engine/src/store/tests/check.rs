//! What `nodectl store check` tells of a device: nothing of one that is whole, whatever crashed on it; and of each
//! damage where it is and what becomes of it.
use engine_core::random::Random;

use super::*;
use crate::device::WholeDevice;
use crate::device::buffer::AlignedBuf;
use crate::store::format::{
    PageLabel, RootHeader, crc, decode_body, decode_header, decode_page, encode_header, encode_page, put_replica,
};
use crate::store::report::{Report, Verdict};
use crate::store::{Depth, OpenError, Region, Ticket, examine};

const SIZE: u64 = 24 * MIB;
const WAL: u64 = MIB;

fn look(disk: &Disk, depth: Depth) -> Report {
    let before = disk.writes();
    let report = examine(&mut disk.clone(), depth, &mut |_, _| ()).unwrap();
    assert_eq!(disk.writes(), before, "it only reads");
    report
}

fn try_open(disk: &Disk) -> Result<ShardStore<MemoryDevice>, OpenError> {
    let mut whole = disk.clone();
    let superblock = crate::store::open(&mut whole, CLUSTER, NODE, BootId(1))?;
    let region = superblock.geometry.region(0);
    ShardStore::open(&mut whole, disk.device(region.base, region.len), &superblock, 0)
}

/// Structure and verdict of everything that is wrong.
fn wrong(disk: &Disk) -> Vec<(&'static str, Verdict)> {
    look(disk, Depth::Data).problems.iter().map(|problem| (problem.structure, problem.verdict)).collect()
}

/// Where things are on the device that [`written`] makes.
struct Places {
    region: Region,
    /// Of blocks 0 to 7, and of blocks 32 to 63.
    slabs: [u32; 2],
    /// In the ring: of a committed change that is in no home yet, and of one that is not committed.
    committed: u64,
    tail: u64,
}

/// A device with homes, a checkpoint before the last, committed changes that are in no home, and a tail.
fn written() -> (Disk, Places) {
    let disk = formatted(SIZE, WAL);
    let mut store = open(&disk);
    store.persist(vec![create(segment(0), 8)], Ticket(0));
    store.persist(vec![prepare(segment(0), 0, write(segment(0), 1, 0, 8, 5))], Ticket(1));
    store.persist(vec![prepare(segment(0), 1, write(segment(0), 2, 32, 32, 6))], Ticket(2));
    run(&mut store);
    store.commit(segment(0), Seq(2));
    for _ in 0..2 {
        store.settle();
        run(&mut store);
    }
    let home = |extent| store.map.replicas[&segment(0)].extents.home(engine_core::ids::ExtentIndex(extent)).slab;
    let slabs = [home(0), home(1)];
    let committed = store.wal.ring.head;
    store.persist(vec![prepare(segment(0), 2, write(segment(0), 3, 3, 2, 7))], Ticket(3));
    run(&mut store);
    // Says that change 3 is committed.
    store.persist(vec![prepare(segment(0), 3, zero(4, 200, 4))], Ticket(4));
    run(&mut store);
    let tail = store.wal.ring.head;
    store.persist(vec![prepare(segment(0), 3, write(segment(0), 5, 100, 2, 8))], Ticket(5));
    run(&mut store);
    store.persist(vec![prepare(segment(0), 3, zero(6, 220, 4))], Ticket(6));
    run(&mut store);
    let region = store.region;
    (disk, Places { region, slabs, committed, tail })
}

#[test]
fn a_whole_device_is_clean_and_its_books_are_the_stores() {
    let (disk, places) = written();
    let report = look(&disk, Depth::Data);
    assert_eq!((report.problems.len(), report.verified_bytes), (0, (6 + 32) * 4096), "two blocks are the WAL's");
    let shard = &report.shards[0];
    let replica = &shard.replicas[0];
    assert_eq!((replica.commit, replica.last, replica.unapplied, replica.stamp, replica.written), (3, 6, 1, 2, 2));
    let (wal, space) = (shard.wal.as_ref().unwrap(), shard.space.as_ref().unwrap());
    assert_eq!((wal.tail, wal.changes, wal.records), (places.committed, 4, 4));
    assert_eq!(shard.roots.iter().map(|root| root.state).collect::<Vec<_>>(), ["current", "older"]);
    let store = open(&disk);
    assert_eq!(wal.head, store.wal.ring.head);
    assert_eq!((space.used, space.free as usize), (2, store.slabs.free()));
    assert_eq!((space.capacity, space.booked), (store.space().capacity, store.space().booked));
    assert_eq!(space.used + space.pending + space.free, space.slabs);
    let end = shard.areas.last().map(|area| area.offset + area.bytes).unwrap();
    assert!(end <= places.region.base + places.region.len);
    let blank = formatted(SIZE, WAL);
    assert_eq!(look(&blank, Depth::Data).problems, []);
}

/// What is told is what happens, and what is counted.
fn happens_as_told(disk: &Disk, story: &str, want: &[(&'static str, Verdict)]) {
    let copies = want.iter().filter(|told| **told == ("superblock", Verdict::Harmless)).count() as u64;
    assert_eq!(crate::store::damaged_copies(&mut disk.clone()), copies, "{story}");
    let structures = want.iter().filter(|(structure, _)| ["root", "map page", "WAL"].contains(structure)).count();
    let opened = try_open(disk).map(|mut store| {
        assert_eq!(store.damaged_structures(), structures as u64, "{story}");
        store.take_recovered()
    });
    assert_eq!(opened.is_err(), want.iter().any(|(_, verdict)| *verdict == Verdict::Refused), "{story}");
    let damaged = opened.is_ok_and(|recovered| recovered[0].damaged);
    assert_eq!(damaged, want.contains(&("replica", Verdict::Copied)), "{story}");
}

#[test]
fn each_damage_is_told_with_what_becomes_of_it() {
    use Verdict::{Copied, Harmless, Mended, Refused};
    let (_, Places { region, slabs, committed, tail }) = written();
    let (base, slab) = (region.base, |at: usize| region.base + region.slab_at(slabs[at]));
    let page = (0..region.pages).map(|place| base + region.page_at(place));
    let newest = |disk: &Disk, which| {
        let report = look(disk, Depth::Structure);
        report.shards[0].roots.iter().position(|root| root.state == which).unwrap() as u64
    };
    let root = |disk: &Disk, which| base + region.area_at(newest(disk, which));
    type Flip<'a> = Box<dyn Fn(&Disk) -> Vec<u64> + 'a>;
    let at = |offset: u64| -> Flip<'_> { Box::new(move |_| vec![offset]) };
    type Case<'a> = (&'a str, Flip<'a>, Vec<(&'static str, Verdict)>);
    let table: Vec<Case<'_>> = vec![
        ("a copy of the superblock", at(256 * 1024 + 30), vec![("superblock", Harmless)]),
        ("the version in a copy of the superblock", at(256 * 1024 + 8), vec![("superblock", Harmless)]),
        (
            "all of them",
            Box::new(|_| (0..4).map(|copy| copy * 256 * 1024 + 30).collect()),
            [vec![("superblock", Harmless); 4], vec![("superblock", Refused)]].concat(),
        ),
        ("the older root's header", Box::new(|disk| vec![root(disk, "older") + 40]), vec![("root", Harmless)]),
        (
            "the newer root's body",
            Box::new(|disk| vec![root(disk, "current") + 4096 + 20]),
            vec![("root", Copied), ("replica", Copied)],
        ),
        (
            "both roots' bodies",
            Box::new(|disk| vec![root(disk, "current") + 4096 + 20, root(disk, "older") + 4096 + 20]),
            vec![("shard", Refused)],
        ),
        (
            "a map page",
            Box::new(|disk| {
                let mut whole = disk.clone();
                let mut block = AlignedBuf::zeroed(4096);
                whole.read_at(root(disk, "current") + 4096, &mut block).unwrap();
                let place = current_body(disk, &region, newest(disk, "current"))[0].pages[0].place;
                vec![page.clone().nth(place as usize).unwrap() + 80]
            }),
            vec![("map page", Copied), ("replica", Copied)],
        ),
        ("records in the WAL", at(base + committed + 70), vec![("WAL", Copied), ("replica", Copied)]),
        ("committed data in the WAL", at(base + committed + 4096 + 9), vec![("WAL", Mended)]),
        ("data of the tail", at(base + tail + 4096 + 9), vec![("WAL", Copied), ("replica", Copied)]),
        (
            "checksums",
            at(base + region.sums_at(slabs[0] / 24) + u64::from(slabs[0] % 24 / 3) * 512 + 130),
            vec![("checksum page", Mended); 2],
        ),
        ("data", at(slab(1) + 5 * 4096 + 17), vec![("data", Mended)]),
        ("data the WAL has", at(slab(0) + 3 * 4096 + 17), vec![]),
        ("a block nobody wrote", at(slab(0) + 20 * 4096), vec![]),
    ];
    for (story, offsets, want) in table {
        let (disk, _) = written();
        offsets(&disk).into_iter().for_each(|offset| disk.flip(offset, 2));
        assert_eq!(wrong(&disk), want, "{story}");
        happens_as_told(&disk, story, &want);
    }
}

#[test]
fn a_bad_block_is_named() {
    let (disk, places) = written();
    let offset = places.region.base + places.region.slab_at(places.slabs[1]) + 5 * 4096;
    disk.flip(offset + 17, 0);
    assert_eq!(look(&disk, Depth::Checksums).problems, [], "without --data no data is read");
    let report = look(&disk, Depth::Data);
    let problem = &report.problems[0];
    assert_eq!((problem.offset, problem.shard, problem.place.block), (offset, Some(0), Some(BlockIndex(37))));
    assert_eq!(report.verified_bytes, (6 + 31) * 4096);
    disk.spoil(offset);
    let report = look(&disk, Depth::Data);
    assert_eq!((report.problems.len(), report.verified_bytes), (1, (6 + 31) * 4096), "only that one");
    assert!(report.problems[0].what.contains("cannot read"));
}

fn current_body(disk: &Disk, region: &Region, which: u64) -> Vec<crate::store::format::RootReplica> {
    let mut whole = disk.clone();
    let at = region.base + region.area_at(which);
    let mut block = AlignedBuf::zeroed(4096);
    whole.read_at(at, &mut block).unwrap();
    let len = decode_header(&block).unwrap().len as usize;
    let mut body = AlignedBuf::zeroed(len.next_multiple_of(4096));
    whole.read_at(at + 4096, &mut body).unwrap();
    decode_body(&body[..len]).unwrap()
}

/// Changes the homes in the first map page of the current checkpoint, every checksum right again.
fn forge(disk: &Disk, region: &Region, change: impl FnOnce(&mut crate::store::extents::Homes)) {
    let roots = look(disk, Depth::Structure).shards[0].roots.clone();
    let which = roots.iter().position(|root| root.state == "current").unwrap() as u64;
    let mut body = current_body(disk, region, which);
    let mut whole = disk.clone();
    let at = region.base + region.area_at(which);
    let mut block = AlignedBuf::zeroed(4096);
    whole.read_at(at, &mut block).unwrap();
    let header = decode_header(&block).unwrap();
    let page = &mut body[0].pages[0];
    let label = PageLabel { device: header.device, shard: 0, segment: segment(0), chunk: page.chunk };
    let offset = region.base + region.page_at(page.place);
    whole.read_at(offset, &mut block).unwrap();
    let mut homes = decode_page(&block, &label, page.sum).unwrap();
    change(&mut homes);
    let (forged, sum) = encode_page(&label, &homes);
    page.sum = sum;
    whole.write_at(offset, &forged).unwrap();
    let mut bytes = Vec::new();
    body.iter().for_each(|replica| put_replica(&mut bytes, replica));
    let header = RootHeader { len: bytes.len() as u64, sum: crc(&bytes), ..header };
    whole.write_at(at + 4096, &crate::store::shard::aligned(&[&bytes])).unwrap();
    whole.write_at(at, &encode_header(&header)).unwrap();
}

#[test]
fn slabs_that_overlap_or_do_not_exist_are_told() {
    let (disk, places) = written();
    forge(&disk, &places.region, |homes| homes[1].slab = homes[0].slab);
    let report = look(&disk, Depth::Data);
    assert!(report.problems[0].what.contains("claimed by another"), "{:?}", report.problems);
    assert_eq!(wrong(&disk)[0], ("extent map", Verdict::Copied));
    let (disk, places) = written();
    forge(&disk, &places.region, |homes| homes[1].slab = places.region.slabs);
    assert!(look(&disk, Depth::Data).problems[0].what.contains("does not exist"));
}

#[test]
fn strangers_and_other_versions_are_refused_by_name() {
    let examine = |disk: &Disk| examine(&mut disk.clone(), Depth::Data, &mut |_, _| ());
    assert!(matches!(examine(&Disk::new(0)), Err(OpenError::NotFormatted)));
    assert!(matches!(examine(&Disk::new(MIB)), Err(OpenError::NotFormatted)));
    let mut garbage = Disk::new(2 * MIB);
    let mut random = Random::new(5);
    let mut block = AlignedBuf::zeroed(4096);
    for at in (0..2 * MIB).step_by(4096) {
        block.iter_mut().for_each(|byte| *byte = random.between(0, 255) as u8);
        garbage.write_at(at, &block).unwrap();
    }
    assert!(matches!(examine(&garbage), Err(OpenError::Foreign)));
    let mut known = superblock(SIZE, WAL);
    known.features = 1 << 40;
    let mut disk = Disk::new(SIZE);
    crate::store::format(&mut disk, &known).unwrap();
    assert!(matches!(examine(&disk), Err(OpenError::UnknownFeatures(_))));
    let disk = formatted(SIZE, WAL);
    (0..4).for_each(|copy| disk.flip(copy * 256 * 1024 + 8, 1));
    assert!(matches!(examine(&disk), Err(OpenError::UnknownVersion(3))));
}

/// Whatever is flipped, nothing panics, nothing wrong is called right: what opens is what was told.
#[test]
fn any_bits_flipped_anywhere_are_survived_and_told() {
    for seed in 0..150 {
        let mut random = Random::new(seed);
        let (disk, places) = written();
        let slabs = places.region.base + places.region.slab_at(0);
        for _ in 0..random.between(1, 6) {
            // Half of them where the device is in use.
            let used = [0, places.region.base, places.region.base + places.region.area_at(0), slabs];
            let begin = used[random.between(0, 3) as usize];
            let reach = if random.between(0, 1) == 0 { 40_000 } else { SIZE - begin - 1 };
            disk.flip(begin + random.between(0, reach), random.between(0, 7) as u8);
        }
        let Ok(report) = examine(&mut disk.clone(), Depth::Data, &mut |_, _| ()) else { continue };
        let refused = report.problems.iter().any(|problem| problem.verdict == Verdict::Refused);
        assert_eq!(try_open(&disk).is_err(), refused, "seed {seed}: {:?}", report.problems);
    }
}
