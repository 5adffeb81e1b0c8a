//! Everything goes wrong at once, seed by seed: a world, its load and a mixture of faults are drawn, faults happen,
//! everything heals, and what must hold is checked: every acknowledged write is read back, replicas are identical, all
//! copies come back in time.

use engine_core::random::Random;
use engine_core::time::Span;

use crate::coverage::Coverage;
use crate::load::Load;
use crate::mixture::Mixture;
use crate::world::{Shape, World};

/// After healing, everything serves and has all its copies within this time: grace, a permit, a copy, some patience.
const HEALED_WITHIN: Span = Span::seconds(90);
/// How long a seed's world runs at least.
pub const SECONDS: u64 = 60;
/// Faults every seed makes at least.
pub const FAULTS_MIN: u64 = 5;

/// What one seed came to.
#[derive(Debug, Clone)]
pub struct Outcome {
    /// Hash of everything that happened.
    pub trace: u64,
    /// Nodes of its cluster.
    pub nodes: u64,
    /// Operations that were answered.
    pub operations: u64,
    /// Writes acknowledged.
    pub writes: u64,
    /// Faults made.
    pub faults: u64,
    /// Events of the simulation.
    pub events: u64,
    /// How long the world ran.
    pub span: Span,
    /// Faults and states by kind.
    pub coverage: Coverage,
}

/// Runs one seed for at least `seconds` of its time.
///
/// # Panics
/// When something that must hold does not.
#[must_use]
pub fn swarm(seed: u64, seconds: u64) -> Outcome {
    let mut random = Random::new(seed ^ 0x5EED);
    let shape = shape(&mut random);
    let mut w = World::shaped(seed, &shape);
    let begun = w.now;
    w.load = Some(load(&w, &shape, &mut random));
    let keeps = shape.min_copies >= 2;
    let mut mixture = Mixture::draw(&w, &mut random, &shape, keeps);
    w.say(&format!("{shape:?} {mixture:?} {:?}", w.load));
    while w.now.since(begun) < Span::seconds(seconds) || mixture.made < FAULTS_MIN {
        for _ in 0..random.between(2, 8) {
            mixture.strike(&mut w, &mut random);
            let pause = [50, 400, 1500, 6000][random.between(0, 3) as usize];
            w.run(Span::millis(random.between(1, pause)));
        }
        mixture.heal(&mut w);
        if random.between(0, 2) > 0 {
            expect_whole(&mut w, &shape);
        } else {
            w.run(Span::millis(random.between(1, 3000)));
        }
    }
    mixture.heal(&mut w);
    expect_whole(&mut w, &shape);
    w.expect("a client is attached", Span::seconds(60), |w| w.client().is_some_and(|client| client.is_usable()));
    let before = w.history.acknowledged;
    w.expect("writes go on", Span::seconds(10), |w| w.history.acknowledged > before + 20);
    w.verify();
    Outcome {
        trace: w.trace(),
        nodes: u64::from(shape.nodes),
        operations: w.clients.values().map(|client| client.done).sum(),
        writes: w.history.acknowledged,
        faults: mixture.made,
        events: w.events,
        span: w.now.since(begun),
        coverage: w.coverage,
    }
}

fn expect_whole(w: &mut World, shape: &Shape) {
    // A node that was lost for good had space nobody else has: what waits for it gets it from nodes that come (R13).
    for _ in 0..shape.nodes {
        if w.until(HEALED_WITHIN, |w| w.is_whole()) {
            return;
        }
        let zones = w.zones_without_space(shape);
        if zones.is_empty() {
            w.fail("not all copies are back in time");
        }
        for zone in zones {
            let new = w.add_node(&zone, shape.extents);
            w.start(new);
            w.say(&format!("{new} comes, because space is wanted in {zone}"));
            w.coverage.count("state: a node came for want of space");
        }
    }
    w.expect("all copies are back", HEALED_WITHIN, |w| w.is_whole());
}

fn shape(random: &mut Random) -> Shape {
    let spread_zone = random.between(0, 3) == 0;
    let copies = random.between(2, 3) as u8;
    let zones = if spread_zone { 3 } else { 1 };
    Shape {
        nodes: random.between(3, 6) as u16,
        zones,
        extents: 4096,
        copies,
        min_copies: if random.between(0, 4) == 0 { 1 } else { 2 },
        megabytes: [1, 4, 16, 66, 130][random.between(0, 4) as usize],
        spread_zone,
    }
}

/// At least a hundred operations a second, when nothing is in their way.
fn load(w: &World, shape: &Shape, random: &mut Random) -> Load {
    let segments = w.all_segments();
    let all = 256 * shape.megabytes as u32 / segments.len() as u32;
    let blocks = [64, 256, all][random.between(0, 2) as usize];
    // `burst` operations begin, at most, every so often: half of that on the average.
    let burst = [1, 4, 24][random.between(0, 2) as usize];
    let a_second = random.between(130, 260);
    Load {
        segments,
        blocks: blocks.min(1024).min(all),
        hot: random.between(4, 40) as u32,
        depth: random.between(16, 96) as usize,
        every: Span(burst * 500_000_000 / a_second),
        burst,
        reads: random.between(20, 70),
        zeros: [0, 5, 30][random.between(0, 2) as usize],
        longest: [1, 2, 4, 8][random.between(0, 3) as usize],
        large: [0, 2][random.between(0, 1) as usize],
    }
}

#[cfg(test)]
mod tests {
    /// Seeds of an ordinary run.
    const SEEDS: u64 = 16;

    #[test]
    fn seeds_that_found_something_once() {
        for (seed, _) in crate::known_seeds() {
            let _ = super::swarm(seed, super::SECONDS);
        }
    }

    #[test]
    fn the_same_seed_is_the_same_run() {
        let traces: Vec<(u64, u64)> = (0..2).map(|_| super::swarm(7, 20)).map(|o| (o.trace, o.events)).collect();
        assert_eq!(traces[0], traces[1]);
    }

    #[test]
    fn swarm() {
        let number = |name| std::env::var(name).ok().and_then(|text| text.parse::<u64>().ok());
        if let Some(seed) = number("BREAKWATER_SEED") {
            eprintln!("seed {seed}: {:?}", super::swarm(seed, super::SECONDS));
            return;
        }
        let (seeds, first) = (number("BREAKWATER_SEEDS").unwrap_or(SEEDS), number("BREAKWATER_FIRST").unwrap_or(1));
        let (mut failed, mut total) = (Vec::new(), 0);
        for seed in first..first + seeds {
            match std::panic::catch_unwind(|| super::swarm(seed, super::SECONDS)) {
                Ok(outcome) => total += outcome.span.as_millis() / 1000,
                Err(_) => {
                    eprintln!("seed {seed} failed; again: nodectl sim swarm --seed {seed}");
                    failed.push(seed);
                }
            }
        }
        eprintln!("{seeds} seeds, {total} s of virtual time");
        assert!(failed.is_empty(), "failed seeds: {failed:?}");
    }
}
