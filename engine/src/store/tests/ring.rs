//! A checkpoint that takes for ever while the ring fills: what it would free is not used before it counts.
use engine_core::random::Random;

use super::*;
use crate::store::Ticket;
use crate::store::shard::Purpose;

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
