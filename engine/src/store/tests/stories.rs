//! Small stories: each says what it shows.
use super::*;
use crate::store::{OpenError, ReadError, Ticket};
use engine_core::ids::ExtentIndex;
use engine_core::record::ExtentCopy;

const SIZE: u64 = 14 * MIB;
const WAL: u64 = 512 * 1024;

fn read(store: &mut ShardStore<MemoryDevice>, block: u32, count: u32) -> Vec<u64> {
    store.read(segment(0), BlockIndex(block), count, Ticket(1 << 40));
    for event in run(store) {
        if let Event::Read(_, result) = event {
            let blocks = result.unwrap();
            for at in 0..blocks.count() {
                let sum = block_sum(segment(0), BlockIndex(block + at), &blocks.block(at));
                assert_eq!(sum, blocks.sum(at));
            }
            return numbers(&blocks);
        }
    }
    panic!("no answer");
}

#[test]
fn a_write_is_seen_once_committed_and_survives_restarts_applied_or_not() {
    let disk = formatted(SIZE, WAL);
    let mut store = open(&disk);
    store.persist(vec![create(segment(0), 4), prepare(segment(0), 0, write(segment(0), 1, 30, 4, 77))], Ticket(1));
    assert!(matches!(run(&mut store)[..], [Event::Persisted(Ticket(1))]));
    assert_eq!(read(&mut store, 29, 6), [0; 6]);
    drop(store);
    let mut store = open(&disk);
    let recovered = store.take_recovered();
    assert_eq!((recovered[0].commit, recovered[0].tail.len(), recovered[0].damaged), (Seq(0), 1, false));
    store.commit(segment(0), Seq(1));
    store.read(segment(0), BlockIndex(29), 6, Ticket(2));
    let mut events = Vec::new();
    store.poll(&mut events);
    let [Event::Read(_, Ok(blocks))] = &events[..] else { panic!("the log needs no device: {events:?}") };
    assert_eq!(numbers(blocks), [0, 77, 77, 77, 77, 0]);
    store.settle();
    run(&mut store);
    store.audit();
    assert_eq!(store.space().used, 2);
    drop(store);
    let mut store = open(&disk);
    let recovered = store.take_recovered();
    assert_eq!((recovered[0].commit, recovered[0].tail.len()), (Seq(1), 0));
    assert_eq!(read(&mut store, 29, 6), [0, 77, 77, 77, 77, 0]);
    assert_eq!(store.allocation(segment(0), BlockIndex(28), 8), [(2, false), (4, true), (2, false)]);
    assert_eq!(
        store.list(segment(0), Seq(0), ExtentIndex(0), 1),
        (vec![(ExtentIndex(0), Seq(1))], Some(ExtentIndex(1)))
    );
}

#[test]
fn what_is_there_when_a_batch_begins_shares_its_flush() {
    let disk = formatted(SIZE, WAL);
    let mut store = open(&disk);
    store.persist(vec![create(segment(0), 4)], Ticket(0));
    run(&mut store);
    let before = store.flushes();
    for seq in 1..=4 {
        store.persist(vec![prepare(segment(0), 0, write(segment(0), seq, 30, 1, seq))], Ticket(seq));
    }
    assert_eq!(run(&mut store).len(), 4);
    assert_eq!(store.flushes() - before, 1);
}

#[test]
fn a_zeroed_extent_gives_its_slab_back_and_keeps_its_stamp() {
    let disk = formatted(SIZE, WAL);
    let mut store = open(&disk);
    store.persist(vec![create(segment(0), 4), prepare(segment(0), 0, write(segment(0), 1, 0, 8, 5))], Ticket(1));
    store.persist(vec![prepare(segment(0), 0, zero(2, 0, 128))], Ticket(2));
    run(&mut store);
    store.commit(segment(0), Seq(1));
    store.settle();
    run(&mut store);
    assert_eq!(store.space().used, 1);
    store.commit(segment(0), Seq(2));
    store.settle();
    run(&mut store);
    store.audit();
    assert_eq!((store.space().used, store.used_by(segment(0))), (0, 0));
    assert_eq!(store.list(segment(0), Seq(1), ExtentIndex(0), 9).0.len(), 4);
    store.persist(vec![Record::Drop { segment: segment(0), incarnation: Incarnation(1) }], Ticket(3));
    run(&mut store);
    assert_eq!(store.space().booked, 0);
    store.read(segment(0), BlockIndex(0), 1, Ticket(4));
    assert!(matches!(run(&mut store)[..], [Event::Read(_, Err(ReadError::Unknown))]));
}

#[test]
fn a_copy_counts_unless_the_own_extent_is_as_new() {
    let disk = formatted(SIZE, WAL);
    let mut store = open(&disk);
    store.persist(vec![create(segment(0), 4)], Ticket(1));
    run(&mut store);
    let copy = |stamp, number| ExtentCopy {
        extent: ExtentIndex(1),
        stamp: Seq(stamp),
        present: 0b101,
        blocks: blocks(segment(0), 32, &[(0, number), (2, number)]),
    };
    for (stamp, number) in [(5, 50), (4, 40), (9, 90)] {
        store.copy_in(segment(0), copy(stamp, number), Ticket(stamp));
        assert!(matches!(run(&mut store)[..], [Event::CopiedIn(Ticket(got))] if got == stamp));
    }
    assert_eq!(read(&mut store, 32, 3), [90, 0, 90]);
    // An entry the copy has already is not applied over it.
    store.persist(vec![prepare(segment(0), 9, write(segment(0), 8, 32, 1, 1))], Ticket(2));
    store.commit(segment(0), Seq(9));
    run(&mut store);
    drop(store);
    let mut store = open(&disk);
    store.audit();
    assert_eq!(read(&mut store, 32, 3), [90, 0, 90]);
    store.read_extent(segment(0), ExtentIndex(1), Ticket(3));
    let [Event::Extent(_, Ok(copy))] = &run(&mut store)[..] else { panic!() };
    assert_eq!((copy.present, copy.stamp, numbers(&copy.blocks)), (0b101, Seq(9), vec![90, 90]));
}

#[test]
fn a_flipped_bit_is_never_served() {
    let disk = formatted(SIZE, WAL);
    let mut store = open(&disk);
    store.persist(vec![create(segment(0), 4), prepare(segment(0), 1, write(segment(0), 1, 0, 8, 5))], Ticket(1));
    store.commit(segment(0), Seq(1));
    store.settle();
    run(&mut store);
    let slab = store.map.slabs().next().unwrap();
    disk.flip(store.region.base + store.region.slab_at(slab) + 3 * 4096 + 17, 3);
    store.read(segment(0), BlockIndex(0), 8, Ticket(2));
    let [Event::Read(_, Err(ReadError::Damaged(block)))] = run(&mut store)[..] else { panic!() };
    assert_eq!((block, store.damaged_blocks()), (BlockIndex(3), 1));
    assert_eq!(read(&mut store, 4, 4), [5; 4]);
}

#[test]
fn a_damaged_batch_in_the_middle_is_told_until_the_core_has_dealt_with_it() {
    let disk = formatted(SIZE, WAL);
    let mut store = open(&disk);
    store.persist(vec![create(segment(0), 4)], Ticket(1));
    run(&mut store);
    let position = store.wal.ring.head;
    for seq in 1..4 {
        store.persist(vec![prepare(segment(0), 0, write(segment(0), seq, 0, 1, seq))], Ticket(seq));
        run(&mut store);
    }
    let base = store.region.base;
    drop(store);
    disk.flip(base + position + 100, 0);
    for _ in 0..3 {
        let mut store = open(&disk);
        let recovered = store.take_recovered();
        assert!(recovered[0].damaged && recovered[0].tail.is_empty());
        run(&mut store);
    }
    let mut store = open(&disk);
    let stale = meta(segment(0), 4, Standing::Stale { base: Seq(0) }, 1);
    store.persist(vec![Record::State { segment: segment(0), meta: stale }], Ticket(1));
    run(&mut store);
    drop(store);
    assert!(!open(&disk).take_recovered()[0].damaged);
}

#[test]
fn a_failed_durable_write_is_told_once_and_ends_everything() {
    let disk = formatted(SIZE, WAL);
    let mut store = open(&disk);
    disk.fail_writes(1);
    store.persist(vec![create(segment(0), 4)], Ticket(1));
    assert!(matches!(run(&mut store)[..], [Event::Failed(_)]));
    let mut events = Vec::new();
    for _ in 0..5 {
        store.poll(&mut events);
        store.persist(vec![create(segment(1), 4)], Ticket(2));
        store.read(segment(0), BlockIndex(0), 1, Ticket(3));
        store.poll(&mut events);
    }
    assert!(events.is_empty(), "{events:?}");
}

#[test]
fn each_wrong_device_is_named_and_nothing_is_written() {
    let size = 256 * MIB;
    let geometry = Geometry::plan(size, 1, 64 * MIB).unwrap();
    let good = Superblock { geometry, ..superblock(size, 0) };
    let mut disk = Disk::new(size);
    let tell = |disk: &Disk, cluster, node| {
        let before = disk.writes();
        let error = crate::store::open(&mut disk.clone(), cluster, node, BootId(1)).unwrap_err();
        assert_eq!(disk.writes(), before);
        error
    };
    assert!(matches!(tell(&disk, CLUSTER, NODE), OpenError::NotFormatted));
    super::super::format(&mut disk, &good).unwrap();
    assert!(matches!(tell(&disk, ClusterId(8), NODE), OpenError::OtherCluster { .. }));
    let text = tell(&disk, CLUSTER, NodeId(2)).to_string();
    assert!(text.contains("n1") && text.contains("n2"), "{text}");
    assert!(matches!(tell(&disk.resized(200 * MIB), CLUSTER, NODE), OpenError::Shrunk { .. }));
    assert!(super::super::format(&mut disk, &good).is_err(), "not blank");
    for copy in 0..3 {
        disk.flip(copy * 256 * 1024 + 20, 1);
    }
    assert_eq!(crate::store::open(&mut disk, CLUSTER, NODE, BootId(1)).unwrap().boot, BootCount(1));
    for copy in 0..4 {
        disk.flip(copy * 256 * 1024 + 20, 1);
    }
    assert!(matches!(tell(&disk, CLUSTER, NODE), OpenError::Damaged(_)));
    for copy in 0..4 {
        disk.flip(copy * 256 * 1024 + 8, 1);
    }
    assert!(matches!(tell(&disk, CLUSTER, NODE), OpenError::UnknownVersion(3)));
    let foreign = Disk::new(size);
    foreign.flip(1080, 1);
    assert!(matches!(tell(&foreign, CLUSTER, NODE), OpenError::Foreign));
    let error = Geometry::plan(100 * MIB, 2, 64 * MIB).unwrap_err().to_string();
    assert!(error.contains("104857600"), "{error}");
}

#[test]
fn a_full_device_still_applies_reads_copies_and_deletes() {
    let disk = formatted(SIZE, WAL);
    let mut store = open(&disk);
    let extents = store.space().capacity as u32;
    store.persist(vec![create(segment(0), extents)], Ticket(1));
    run(&mut store);
    for round in 0..4u64 {
        for extent in 0..extents {
            let seq = round * u64::from(extents) + u64::from(extent) + 1;
            store.persist(vec![prepare(segment(0), seq - 1, write(segment(0), seq, extent * 32, 8, seq))], Ticket(seq));
            store.commit(segment(0), Seq(seq));
            run(&mut store);
        }
        for extent in 0..extents {
            let stamp = Seq((round + 1) * u64::from(extents));
            let blocks = blocks(segment(0), extent * 32, &[(0, 7)]);
            let copy = ExtentCopy { extent: ExtentIndex(extent), stamp, present: 1, blocks };
            store.copy_in(segment(0), copy, Ticket(0));
        }
        run(&mut store);
        store.audit();
    }
    assert_eq!(store.space().used, u64::from(extents));
    assert_eq!(read(&mut store, 0, 2), [7, 0]);
}

#[test]
fn a_tiny_wal_full_of_unresolved_entries_goes_on_as_soon_as_they_are_committed() {
    let disk = formatted(SIZE, WAL);
    let mut store = open(&disk);
    store.persist(vec![create(segment(0), 4), create(segment(1), 4)], Ticket(0));
    run(&mut store);
    // Far more than the ring holds; nothing of segment 0 is committed for now, all of segment 1 at once.
    let (mut persisted, mut events) = (0, Vec::new());
    for seq in 1..=60u64 {
        store.persist(vec![prepare(segment(0), 0, write(segment(0), seq, 0, 1, seq))], Ticket(seq));
        store.persist(vec![prepare(segment(1), seq - 1, write(segment(1), seq, 64, 2, seq))], Ticket(1000 + seq));
    }
    for _ in 0..2000 {
        store.poll(&mut events);
        for event in events.drain(..) {
            let Event::Persisted(Ticket(ticket)) = event else { continue };
            persisted += 1;
            if ticket > 1000 {
                store.commit(segment(1), Seq(ticket - 1000));
            }
        }
    }
    assert!((20..120).contains(&persisted), "the ring is full: {persisted}");
    for _ in 0..5000 {
        store.poll(&mut events);
        for event in events.drain(..) {
            let Event::Persisted(Ticket(ticket)) = event else { continue };
            persisted += 1;
            store.commit(segment(u32::from(ticket > 1000)), Seq(ticket % 1000));
        }
        store.commit(segment(0), Seq(20));
    }
    assert_eq!(persisted, 120);
    assert_eq!(read(&mut store, 0, 2), [60, 0]);
}
