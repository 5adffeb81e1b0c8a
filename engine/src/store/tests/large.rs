//! Stories about large writes, a ring that stays usable, and damage in every structure of the device.
use super::*;
use crate::store::{ReadError, Ticket};
use engine_core::ids::ExtentIndex;
use engine_core::record::{ExtentCopy, Recovered};

const SIZE: u64 = 24 * MIB;
const WAL: u64 = 1024 * 1024;

fn read(store: &mut ShardStore<MemoryDevice>, block: u32, count: u32) -> Result<Vec<u64>, ReadError> {
    store.read(segment(0), BlockIndex(block), count, Ticket(1 << 40));
    let answer = run(store).into_iter().find_map(|event| match event {
        Event::Read(_, result) => Some(result),
        _ => None,
    });
    answer.unwrap().map(|blocks| {
        let uniform = |block: &[u8]| block == block[..8].repeat(512);
        assert!(blocks.data.chunks(4096).all(uniform), "something else than what was written");
        numbers(&blocks)
    })
}

fn settled(disk: &Disk, entries: &[Entry]) -> ShardStore<MemoryDevice> {
    let mut store = open(disk);
    store.persist(vec![create(segment(0), 8)], Ticket(0));
    for entry in entries {
        store.persist(vec![prepare(segment(0), 0, entry.clone())], Ticket(entry.seq.0));
        run(&mut store);
        store.commit(segment(0), entry.seq);
    }
    store.settle();
    run(&mut store);
    store
}

#[test]
fn a_large_write_is_written_once_and_an_undone_one_gives_its_slabs_back() {
    let disk = formatted(SIZE, WAL);
    let mut store = open(&disk);
    store.persist(vec![create(segment(0), 8)], Ticket(0));
    run(&mut store);
    let (used, free) = (store.wal.ring.used(), store.slabs.free());
    // Two blocks, two extents, one block.
    store.persist(vec![prepare(segment(0), 0, write(segment(0), 1, 30, 67, 5))], Ticket(1));
    run(&mut store);
    assert!(store.wal.ring.used() - used <= 5 * 4096, "{}", store.wal.ring.used() - used);
    assert_eq!(store.slabs.free(), free - 2);
    store.audit();
    assert_eq!(read(&mut store, 29, 4), Ok(vec![0; 4]));
    // Found again, not committed: the core gets all of it.
    drop(store);
    let mut store = open(&disk);
    let [Recovered { tail, damaged: false, .. }] = &store.take_recovered()[..] else { panic!() };
    assert_eq!(*tail, [write(segment(0), 1, 30, 67, 5)]);
    store.audit();
    store.commit(segment(0), Seq(1));
    assert_eq!(read(&mut store, 29, 69), Ok([&[0][..], &[5; 67], &[0]].concat()));
    // Proposed again it goes through the WAL; above, into slabs, and is dropped.
    store.persist(vec![prepare(segment(0), 1, write(segment(0), 2, 32, 32, 6))], Ticket(2));
    store.persist(vec![Record::Truncate { segment: segment(0), above: Seq(1) }], Ticket(3));
    store.persist(vec![prepare(segment(0), 1, write(segment(0), 2, 32, 32, 7))], Ticket(4));
    run(&mut store);
    assert_eq!((store.map.ledger.redirected, store.space().used), (0, 4));
    store.settle();
    run(&mut store);
    store.audit();
    drop(store);
    let mut store = open(&disk);
    store.audit();
    store.commit(segment(0), Seq(2));
    assert_eq!(read(&mut store, 31, 34), Ok([&[5][..], &[7; 32], &[5]].concat()));
}

#[test]
fn entries_that_cannot_be_resolved_move_aside_and_hold_nobody_up() {
    let disk = formatted(SIZE, WAL);
    let mut store = open(&disk);
    store.persist(vec![create(segment(0), 4), create(segment(1), 4)], Ticket(0));
    for seq in 1..=10 {
        store.persist(vec![prepare(segment(0), 0, write(segment(0), seq, 0, 1, seq))], Ticket(0));
    }
    run(&mut store);
    // Ten times what the ring holds, in another segment.
    for seq in 1..=2600u64 {
        store
            .persist(vec![prepare(segment(1), seq - 1, write(segment(1), seq, seq as u32 % 128, 1, seq))], Ticket(seq));
        let mut events = Vec::new();
        for _ in 0..200 {
            store.poll(&mut events);
            if events.iter().any(|event| matches!(event, Event::Persisted(_))) {
                break;
            }
        }
        assert!(!events.is_empty(), "{seq} is held up: {:?} {:?}", store.wal.ring, store.map.ledger.batches.oldest());
        store.commit(segment(1), Seq(seq));
    }
    drop(store);
    let mut store = open(&disk);
    store.audit();
    let recovered = store.take_recovered();
    assert_eq!((recovered[0].tail.len(), recovered[0].damaged), (10, false));
    assert_eq!((recovered[1].commit, recovered[1].tail.len(), recovered[1].damaged), (Seq(2599), 1, false));
    store.commit(segment(0), Seq(10));
    assert_eq!(read(&mut store, 0, 2), Ok(vec![10, 0]));
}

#[test]
fn every_damaged_block_counts_once_however_often_it_is_met() {
    let disk = formatted(SIZE, WAL);
    let mut store = settled(&disk, &[write(segment(0), 1, 0, 8, 5)]);
    let slab = store.map.slabs().next().unwrap();
    for block in [1, 3, 6] {
        disk.flip(store.region.base + store.region.slab_at(slab) + block * 4096 + 17, 3);
    }
    for _ in 0..3 {
        assert_eq!(read(&mut store, 0, 8), Err(ReadError::Damaged(BlockIndex(1))));
        assert_eq!(read(&mut store, 4, 4), Err(ReadError::Damaged(BlockIndex(6))));
    }
    assert_eq!((store.damaged_blocks(), store.damaged().len(), store.damaged_structures()), (3, 3, 0));
    drop(store);
    // One sector that cannot be read is one block, although nothing of what was asked for with it came.
    let mut store = open(&disk);
    disk.spoil(store.region.base + store.region.slab_at(slab) + 3 * 4096);
    assert!(read(&mut store, 0, 8).is_err());
    assert_eq!(store.damaged_blocks(), 1);
}

#[test]
fn checksums_in_memory_hide_no_damage_from_who_looks_anew() {
    let disk = formatted(SIZE, WAL);
    let mut store = settled(&disk, &[write(segment(0), 1, 0, 8, 5)]);
    assert_eq!(read(&mut store, 0, 8), Ok(vec![5; 8]));
    let slab = store.map.slabs().next().unwrap();
    let cell = store.region.sums_at(slab / 24) + u64::from(slab % 24 / 3) * 512;
    disk.flip(store.region.base + cell + 130, 1);
    assert_eq!(read(&mut store, 0, 8), Ok(vec![5; 8]), "the page is in memory");
    store.look_anew();
    assert_eq!(read(&mut store, 0, 8), Err(ReadError::Damaged(BlockIndex(0))));
}

#[test]
fn a_damaged_block_is_whole_again_after_a_copy_of_the_same_stamp() {
    let disk = formatted(SIZE, WAL);
    let mut store = settled(&disk, &[write(segment(0), 1, 0, 8, 5)]);
    let slab = store.map.slabs().next().unwrap();
    disk.flip(store.region.base + store.region.slab_at(slab) + 3 * 4096 + 17, 3);
    assert_eq!(read(&mut store, 0, 8), Err(ReadError::Damaged(BlockIndex(3))));
    assert_eq!(store.damaged(), [(segment(0), BlockIndex(3))]);
    let all: Vec<_> = (0..8).map(|at| (at, 5)).collect();
    let copy =
        || ExtentCopy { extent: ExtentIndex(0), stamp: Seq(1), present: 0xff, blocks: blocks(segment(0), 0, &all) };
    store.copy_in(segment(0), copy(), Ticket(2));
    run(&mut store);
    assert!(read(&mut store, 0, 8).is_err(), "an ordinary copy of the same stamp changes nothing");
    store.mend(segment(0), copy(), Ticket(3));
    run(&mut store);
    assert_eq!((read(&mut store, 0, 8), store.damaged()), (Ok(vec![5; 8]), vec![]));
    drop(store);
    let mut store = open(&disk);
    store.audit();
    assert_eq!(read(&mut store, 0, 8), Ok(vec![5; 8]));
}

#[test]
fn a_lost_map_page_costs_its_extents_until_they_are_copied() {
    let disk = formatted(SIZE, WAL);
    let store = settled(&disk, &[write(segment(0), 1, 0, 8, 5), write(segment(0), 2, 64, 8, 6)]);
    let place = store.map.replicas[&segment(0)].extents.chunks().next().unwrap().1.page.unwrap().0;
    let at = store.region.base + store.region.page_at(place);
    drop(store);
    disk.spoil(at);
    for _ in 0..2 {
        let mut store = open(&disk);
        store.audit();
        assert!(store.take_recovered()[0].damaged);
        assert!(matches!(read(&mut store, 0, 1), Err(ReadError::Damaged(_))));
        store.settle();
        run(&mut store);
    }
    let mut store = open(&disk);
    let copy =
        ExtentCopy { extent: ExtentIndex(0), stamp: Seq(1), present: 1, blocks: blocks(segment(0), 0, &[(0, 5)]) };
    store.copy_in(segment(0), copy, Ticket(1));
    run(&mut store);
    assert_eq!(read(&mut store, 0, 2), Ok(vec![5, 0]));
    assert!(read(&mut store, 64, 1).is_err());
    let joining = meta(segment(0), 8, Standing::Joining { base: Seq(2) }, 1);
    store.persist(vec![Record::State { segment: segment(0), meta: joining }], Ticket(2));
    run(&mut store);
    assert_eq!(read(&mut store, 64, 1), Ok(vec![0]), "everything that was to come has come");
}

/// One bit anywhere that matters: what is read is right, or is not read.
#[test]
fn a_bit_flipped_anywhere_is_never_served() {
    for seed in 0..150 {
        let mut random = engine_core::random::Random::new(seed);
        let disk = formatted(SIZE, WAL);
        let entries: Vec<_> =
            (1..=20).map(|seq| write(segment(0), seq, (seq as u32 * 13) % 200, 4 + seq as u32 % 40, seq)).collect();
        let mut store = settled(&disk, &entries[..12]);
        for entry in &entries[12..] {
            store.persist(vec![prepare(segment(0), entry.seq.0 - 1, entry.clone())], Ticket(entry.seq.0));
            run(&mut store);
            store.commit(segment(0), entry.seq.min(Seq(19)));
        }
        let (region, mut model) = (store.region, vec![0; 256]);
        for entry in &entries {
            let (block, count) = entry.change.range();
            model[block.0 as usize..(block.0 + count) as usize].fill(entry.seq.0);
        }
        drop(store);
        for _ in 0..1 + seed % 3 {
            let at = loop {
                let at = disk.somewhere(&mut random).unwrap();
                if at >= region.base {
                    break at;
                }
            };
            disk.flip(at + random.between(0, 4095), 3);
        }
        let mut whole = disk.clone();
        let superblock = crate::store::open(&mut whole, CLUSTER, NODE, BootId(1)).unwrap();
        let device = disk.device(region.base, region.len);
        let Ok(mut store) = ShardStore::open(&mut whole, device, &superblock, 0) else { continue };
        store.audit();
        let recovered = store.take_recovered();
        let Some(found) = recovered.first() else { continue };
        // Unless it says that it is damaged, everything is there.
        if !found.damaged {
            let last = found.tail.last().map_or(found.commit, |entry| entry.seq);
            assert!(last == Seq(20) || last == Seq(19), "seed {seed}: {last}");
            if last < Seq(20) {
                continue; // the end of the log cannot be told from a write that was never answered
            }
            store.commit(segment(0), last);
            for block in 0..256u32 {
                match read(&mut store, block, 1) {
                    Ok(got) => assert_eq!(got, [model[block as usize]], "seed {seed} block {block}"),
                    Err(error) => assert_eq!(error, ReadError::Damaged(BlockIndex(block)), "seed {seed}"),
                }
            }
        }
    }
}

#[test]
fn ignoring_checksums_is_noticed() {
    let hook = std::panic::take_hook();
    std::panic::set_hook(Box::new(|_| ()));
    MISTAKE.set(Some(Mistake::ChecksumIgnored));
    let seen = std::panic::catch_unwind(a_bit_flipped_anywhere_is_never_served).is_err();
    MISTAKE.set(None);
    std::panic::set_hook(hook);
    assert!(seen);
}

#[test]
fn a_slab_that_served_two_owners_since_the_checkpoint_has_the_sums_of_the_later() {
    let disk = formatted(SIZE, WAL);
    let mut store = open(&disk);
    store.persist(vec![create(segment(0), 8)], Ticket(0));
    run(&mut store);
    // The second takes the extent over from the first, and the WAL knows that both are committed.
    for (seq, commit) in [(1, 0), (2, 1)] {
        store.persist(vec![prepare(segment(0), commit, write(segment(0), seq, 32, 32, seq))], Ticket(seq));
        run(&mut store);
    }
    store.persist(vec![prepare(segment(0), 2, write(segment(0), 3, 200, 1, 3))], Ticket(3));
    run(&mut store);
    drop(store);
    // The first one's slab is free after a start, and a copy gets it.
    let mut store = open(&disk);
    let numbers: Vec<_> = (0..32).map(|at| (at, 9)).collect();
    let blocks = blocks(segment(0), 96, &numbers);
    store.copy_in(
        segment(0),
        ExtentCopy { extent: ExtentIndex(3), stamp: Seq(3), present: u32::MAX, blocks },
        Ticket(4),
    );
    run(&mut store);
    assert_eq!(store.map.replicas[&segment(0)].extents.home(ExtentIndex(3)).slab, 0, "the first slab there is");
    drop(store);
    // The WAL names it twice.
    let mut store = open(&disk);
    assert_eq!(read(&mut store, 96, 32), Ok(vec![9; 32]));
    assert_eq!(read(&mut store, 32, 32), Ok(vec![2; 32]));
}
