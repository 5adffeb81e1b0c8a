//! Everything goes wrong at once, seed by seed: faults and load are drawn, then everything heals, and what must hold
//! is checked: every acknowledged write is read back, replicas are identical, all copies come back.

use engine_core::ids::NodeId;
use engine_core::random::Random;
use engine_core::time::Span;

use crate::load::Load;
use crate::world::World;

/// After healing, everything serves and has all its copies within this time: grace, a permit, a copy, some patience.
const HEALED_WITHIN: Span = Span::seconds(90);

/// What one seed came to.
#[derive(Debug, Clone, Copy)]
pub struct Outcome {
    /// Writes acknowledged.
    pub writes: u64,
    /// How long the world ran.
    pub seconds: u64,
}

/// Runs one seed.
///
/// # Panics
/// When something that must hold does not.
#[must_use]
pub fn swarm(seed: u64) -> Outcome {
    let mut random = Random::new(seed ^ 0x5EED);
    let nodes = u16::try_from(random.between(3, 6)).expect("small");
    let copies = random.between(2, 3) as u8;
    let min_copies = if random.between(0, 4) == 0 { 1 } else { 2 };
    let megabytes = [1, 4, 16, 66][random.between(0, 3) as usize];
    let mut w = World::serving(seed, nodes, copies, min_copies, megabytes);
    w.grace = Span::seconds(5);
    let segments = w.all_segments();
    let blocks = [64, 256, 256 * megabytes as u32 / segments.len() as u32][random.between(0, 2) as usize];
    w.load = Some(Load {
        segments,
        blocks: blocks.min(1024),
        hot: random.between(4, 40) as u32,
        depth: random.between(4, 96) as usize,
        burst: random.between(1, 4),
        reads: random.between(10, 60),
        longest: [1, 4, 24][random.between(0, 2) as usize],
    });
    for _ in 0..random.between(1, 3) {
        for _ in 0..random.between(2, 10) {
            fault(&mut w, &mut random);
            let pause = [50, 400, 1500, 6000][random.between(0, 3) as usize];
            w.run(Span::millis(random.between(1, pause)));
        }
        heal(&mut w);
        if random.between(0, 2) > 0 {
            w.expect("all copies are back", HEALED_WITHIN, |w| w.is_whole());
        } else {
            w.run(Span::millis(random.between(1, 3000)));
        }
    }
    w.expect("all copies are back", HEALED_WITHIN, |w| w.is_whole());
    let before = w.history.acknowledged;
    w.expect("writes go on", Span::seconds(10), |w| w.history.acknowledged > before + 20);
    w.verify();
    Outcome { writes: w.history.acknowledged, seconds: w.now.0 / 1_000_000_000 }
}

fn heal(w: &mut World) {
    w.heal();
    w.seat.mute_decisions = false;
    w.network.delay_max = Span(400_000);
    let all: Vec<NodeId> = w.places.keys().copied().collect();
    for node in all {
        let place = w.places.get_mut(&node).expect("a node");
        place.disk_slow = Span(200_000);
        place.disk.fail_writes(0);
        if place.process.as_ref().is_some_and(|process| process.quay.failure().is_some()) {
            w.crash(node, true);
        }
        w.start(node);
    }
    if w.seat.machine.is_none() {
        w.start_authority();
    }
}

fn fault(w: &mut World, random: &mut Random) {
    let all: Vec<NodeId> = w.places.keys().copied().collect();
    let mut pick = || all[random.between(0, all.len() as u64 - 1) as usize];
    let (one, other) = (pick(), pick());
    match random.between(0, 22) {
        0..=3 => w.crash(one, random.between(0, 3) > 0),
        4..=6 => w.start(one),
        7 => {
            let primary = w.primary();
            w.crash(primary, true);
        }
        8 => {
            w.crash(one, true);
            w.start(one);
        }
        9 => w.pause(one, Span::millis(random.between(10, 8000))),
        10 if one != other => w.block(one, other),
        11 => w.partition(&[one], &all),
        12 if one != other => w.partition(&[one], &[other]),
        13 => w.heal(),
        14 | 15 => {
            for _ in 0..random.between(1, 6) {
                w.sever(one, other, false);
                w.run(Span::millis(random.between(1, 60)));
                w.sever(other, one, false);
            }
        }
        16 => w.cut_authority(one),
        17 => w.cut_client(one),
        18 => w.drop_conn(one),
        19 => {
            if w.seat.machine.is_some() {
                w.stop_authority();
            } else {
                w.start_authority();
            }
        }
        20 => w.seat.mute_decisions = !w.seat.mute_decisions,
        21 => {
            w.places.get_mut(&one).expect("a node").disk_slow = Span::millis(random.between(1, 60));
            w.network.delay_max = Span::millis(random.between(1, 8));
        }
        22 if w.places[&one].process.is_some() => w.places[&one].disk.fail_writes(1),
        _ => {}
    }
}

#[cfg(test)]
mod tests {
    /// Seeds of an ordinary run.
    const SEEDS: u64 = 24;

    #[test]
    fn swarm() {
        let number = |name| std::env::var(name).ok().and_then(|text| text.parse::<u64>().ok());
        if let Some(seed) = number("BREAKWATER_SEED") {
            eprintln!("seed {seed}: {:?}", super::swarm(seed));
            return;
        }
        let (seeds, first) = (number("BREAKWATER_SEEDS").unwrap_or(SEEDS), number("BREAKWATER_FIRST").unwrap_or(1));
        let (mut failed, mut total) = (Vec::new(), 0);
        for seed in first..first + seeds {
            match std::panic::catch_unwind(|| super::swarm(seed)) {
                Ok(outcome) => total += outcome.seconds,
                Err(_) => {
                    eprintln!("seed {seed} failed; again: BREAKWATER_SEED={seed} cargo test -p breakwater-sim swarm");
                    failed.push(seed);
                }
            }
        }
        eprintln!("{seeds} seeds, {total} s of virtual time");
        assert!(failed.is_empty(), "failed seeds: {failed:?}");
    }
}
