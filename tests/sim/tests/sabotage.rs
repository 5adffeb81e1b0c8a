//! Would it notice? Each invariant is broken on purpose, exactly it, and the swarm has to find that within a stated
//! number of seeds (docs/testing.md has the table).
//!
//! `cargo test --release -p breakwater-sim --features sabotage --test sabotage`; one switch alone with
//! `BREAKWATER_BREAK=I7`.

use std::panic;

use breakwater_sim::{SECONDS, swarm};
use engine_core::sabotage::{Invariant, choose};

/// What is broken, and by which seed at the latest it has to be noticed.
const TABLE: [(Invariant, u64); 14] = [
    (Invariant::I1, 20),
    (Invariant::I2, 20),
    (Invariant::I3, 20),
    (Invariant::I4, 20),
    (Invariant::I5, 20),
    (Invariant::I6, 20),
    (Invariant::I7, 20),
    (Invariant::I8, 20),
    (Invariant::I9, 20),
    (Invariant::I10, 20),
    (Invariant::I11, 20),
    (Invariant::I12, 20),
    (Invariant::I13, 20),
    (Invariant::I14, 20),
];

/// One test, one process: the switch belongs to the process.
#[test]
fn every_broken_invariant_is_noticed() {
    let only = std::env::var("BREAKWATER_BREAK").ok();
    let chosen = |invariant: &Invariant| only.as_ref().is_none_or(|only| *only == format!("{invariant:?}"));
    panic::set_hook(Box::new(|_| {}));
    let mut missed = Vec::new();
    for (invariant, seeds) in TABLE.into_iter().filter(|(invariant, _)| chosen(invariant)) {
        choose(Some(invariant));
        let noticed = (1..=seeds).find_map(|seed| Some((seed, panic::catch_unwind(|| swarm(seed, SECONDS)).err()?)));
        choose(None);
        match noticed {
            Some((seed, cause)) => println!("{invariant:?}: seed {seed}: {}", said(cause.as_ref())),
            None => {
                println!("{invariant:?}: not noticed in {seeds} seeds");
                missed.push(invariant);
            }
        }
    }
    let _ = panic::take_hook();
    assert!(missed.is_empty(), "not noticed: {missed:?}");
}

/// What a panic said, in one line.
fn said(cause: &(dyn std::any::Any + Send)) -> &str {
    let text = cause.downcast_ref::<String>().map(String::as_str).or_else(|| cause.downcast_ref::<&str>().copied());
    let line = text.unwrap_or("?").lines().next().unwrap_or("?");
    line.get(..160).unwrap_or(line)
}
