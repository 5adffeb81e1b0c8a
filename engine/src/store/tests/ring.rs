//! The ring used again: not before the checkpoint that frees a place counts, and past the end of it.
use engine_core::random::Random;

use super::*;
use crate::store::Ticket;
use crate::store::shard::Purpose;
use crate::store::wal::{APPLY_FROM, SLOW_FROM};

const SIZE: u64 = 21 * MIB;
const WAL: u64 = 1024 * 1024;
const EXTENTS: u32 = 4;
const BLOCKS: u32 = EXTENTS * 32;

type Checked = Result<(), String>;

/// Writes until the ring is full while a checkpoint takes for ever; then the power fails.
fn slow_checkpoint(seed: u64) -> Checked {
    let mut random = Random::new(seed);
    let disk = formatted(SIZE, WAL);
    let mut store = open(&disk);
    store.persist(vec![create(segment(0), EXTENTS)], Ticket(0));
    run(&mut store);
    store.device_mut().hold(true);
    let (mut model, mut answered) = (vec![0; BLOCKS as usize], 0);
    'full: for seq in 1..=200u64 {
        let (block, count) = ((seq * 7 % 100) as u32, 4 + random.between(0, 12) as u32);
        store.persist(vec![prepare(segment(0), seq - 1, write(segment(0), seq, block, count, seq))], Ticket(seq));
        for round in 0.. {
            let mut events = Vec::new();
            store.poll(&mut events);
            if events.iter().any(|event| matches!(event, Event::Persisted(Ticket(at)) if *at == seq)) {
                break;
            }
            let tags = store.device_mut().tags();
            let slow = |tag| matches!(store.operations[tag], Purpose::Chunk | Purpose::Sums(_) | Purpose::Flushed);
            match tags.iter().position(|tag| !slow(tag)) {
                Some(index) => store.device_mut().finish(index),
                None if round > 300 => break 'full,
                None => {}
            }
        }
        store.commit(segment(0), Seq(seq));
        model[block as usize..(block + count) as usize].fill(seq);
        answered = seq;
    }
    disk.crash(&mut random);
    let mut store = open(&disk);
    let found = store.take_recovered().pop().ok_or("nothing is there")?;
    let last = found.tail.last().map_or(found.commit, |entry| entry.seq);
    if found.damaged || last < Seq(answered) || answered < 12 {
        return Err(format!("{answered} were answered, up to {last} is there, damaged: {}", found.damaged));
    }
    store.audit();
    store.commit(segment(0), Seq(answered));
    store.read(segment(0), BlockIndex(0), BLOCKS, Ticket(1));
    match run(&mut store).pop() {
        Some(Event::Read(_, Ok(blocks))) if numbers(&blocks) == model => Ok(()),
        other => Err(format!("{other:?}")),
    }
}

#[test]
fn the_ring_is_not_used_again_before_the_checkpoint_that_frees_it_counts() {
    for seed in 0..20 {
        slow_checkpoint(seed).unwrap_or_else(|text| panic!("seed {seed}: {text}"));
    }
    let hook = std::panic::take_hook();
    std::panic::set_hook(Box::new(|_| ()));
    MISTAKE.set(Some(Mistake::FreedEarly));
    let seen = (0..20).any(|seed| !matches!(std::panic::catch_unwind(|| slow_checkpoint(seed)), Ok(Ok(()))));
    MISTAKE.set(None);
    std::panic::set_hook(hook);
    assert!(seen);
}

/// How many writes of applying begin while changes fill the ring, of 100 changes, by parts of 32 of the ring; each change is
/// far from the others, so that each makes a write of its own. Nothing frees the ring meanwhile.
fn applied_of_100() -> Vec<usize> {
    const RING: u64 = 16 * MIB;
    let disk = formatted(80 * MIB, RING);
    let mut store = open(&disk);
    store.persist(vec![create(segment(0), 256)], Ticket(0));
    run(&mut store);
    store.device_mut().hold(true);
    let (mut changes, mut applied) = (vec![0; 32], vec![0; 32]);
    for seq in 1.. {
        let parts = (store.wal.ring.used() / (RING / 32)) as usize;
        if parts > SLOW_FROM as usize {
            break;
        }
        changes[parts] += 1;
        let block = (seq * 37 % 4096) as u32 * 2;
        store.persist(vec![prepare(segment(0), seq - 1, write(segment(0), seq, block, 1, seq))], Ticket(seq));
        let mut durable = false;
        loop {
            let mut events = Vec::new();
            store.poll(&mut events);
            durable |= events.iter().any(|event| matches!(event, Event::Persisted(Ticket(at)) if *at == seq));
            let frees = |purpose: &Purpose| matches!(purpose, Purpose::Chunk | Purpose::Sums(_) | Purpose::Flushed);
            let tags = store.device_mut().tags();
            let Some(index) = tags.iter().position(|tag| !frees(&store.operations[tag])) else { break };
            if durable && !matches!(store.operations[&tags[index]], Purpose::Apply { .. } | Purpose::Batch) {
                break;
            }
            applied[parts] += usize::from(matches!(store.operations[&tags[index]], Purpose::Apply { .. }));
            store.device_mut().finish(index);
        }
        store.commit(segment(0), Seq(seq));
    }
    changes.iter().zip(&applied).map(|(changes, applied)| applied * 100 / changes.max(&1)).collect()
}

#[test]
fn what_is_applied_follows_what_comes_in_and_how_full_the_ring_is() {
    let applied = applied_of_100();
    let (from, slow) = (APPLY_FROM as usize, SLOW_FROM as usize);
    // The change that fills a part begins in the one before.
    assert!(applied[..from - 1].iter().all(|applied| *applied == 0), "too early: {applied:?}");
    // Each of these changes takes half of what a write of applying counts for.
    assert!((1..60).contains(&applied[from]), "little when it begins: {applied:?}");
    assert!(applied[from + 1] < applied[slow - 4] && applied[slow - 4] < applied[slow - 1], "then more: {applied:?}");
    assert!((150..=220).contains(&applied[slow - 1]), "four times as much as comes in: {applied:?}");
    assert!(applied[slow] > 1000, "and all of it where changes have to slow down: {applied:?}");
}

/// Everything that is in the log of the segment, by a store that has just been opened.
fn tail(store: &mut ShardStore<MemoryDevice>) -> Vec<Seq> {
    let found = store.take_recovered().pop().unwrap();
    assert!(!found.damaged);
    found.tail.iter().map(|entry| entry.seq).collect()
}

fn write_one(store: &mut ShardStore<MemoryDevice>, seq: u64, count: u32) {
    store.persist(vec![prepare(segment(0), 0, write(segment(0), seq, 0, count, seq))], Ticket(seq));
    run(store);
}

#[test]
fn a_batch_at_the_rings_begin_counts_although_a_torn_one_of_its_number_lies_at_the_end() {
    let disk = formatted(SIZE, WAL);
    let mut store = open(&disk);
    store.persist(vec![create(segment(0), EXTENTS)], Ticket(0));
    run(&mut store);
    // Up to where a short batch has a place before the ring's end, and a long one has none.
    let mut seq = 0;
    while store.wal.ring.size - store.wal.ring.head > 32 * 1024 {
        seq += 1;
        store.persist(vec![prepare(segment(0), seq - 1, write(segment(0), seq, 0, 2, seq))], Ticket(seq));
        run(&mut store);
        store.commit(segment(0), Seq(seq));
    }
    store.settle();
    run(&mut store);
    let durable = seq;
    write_one(&mut store, seq + 1, 1);
    let (end, base) = (store.wal.ring.head, store.region.base);
    assert!(store.wal.ring.size - end < 32 * 1024, "there was a place");
    drop(store);
    // Its data never all arrived.
    disk.flip(base + end - 100, 0);

    let mut store = open(&disk);
    assert!(!tail(&mut store).contains(&Seq(durable + 1)), "nobody was told that it is durable");
    write_one(&mut store, durable + 1, 12);
    assert!(store.wal.ring.head < end, "at the ring's begin");
    write_one(&mut store, durable + 2, 1);
    drop(store);
    let mut store = open(&disk);
    assert_eq!(tail(&mut store).last(), Some(&Seq(durable + 2)), "both were answered");
}

#[test]
fn opening_reads_the_ring_once_however_many_batches_are_in_it() {
    // More of it is in use than is read at a time.
    const RING: u64 = 64 * MIB;
    let disk = formatted(SIZE + RING, RING);
    let mut store = open(&disk);
    store.persist(vec![create(segment(0), EXTENTS)], Ticket(0));
    run(&mut store);
    // No more than may be unresolved.
    for seq in 1..=200 {
        store.persist(vec![prepare(segment(0), seq - 1, write(segment(0), seq, 0, 8, seq))], Ticket(seq));
        run(&mut store);
    }
    let used = store.wal.ring.head;
    assert!(used > 6 * MIB, "each is a batch of its own: {used}");
    drop(store);
    let read = |disk: &Disk| {
        let before = disk.bytes_read();
        drop(open(disk));
        disk.bytes_read() - before
    };
    let (blank, full) = (read(&formatted(SIZE + RING, RING)), read(&disk));
    // The ring's part that counts, read ahead by some MiB; what else there is to open is read on a blank device too.
    assert!(full <= blank + used + 2 * 4 * MIB, "{full} bytes were read for {used} of the ring, {blank} without");
}
