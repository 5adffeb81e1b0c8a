//! Nodes that go on purpose: what they lead is handed over, what they hold goes on without them (I9).

use engine_core::time::Span;

use super::{busy, expect_progress, expect_whole, longest_gap};
use crate::world::World;

told! {
    a_primary_that_stops_hands_over_without_a_gap: 60,
    a_backup_that_stops_leaves_without_a_gap: 61,
    every_node_stops_in_turn: 62,
    a_primary_stops_while_the_authority_is_away: 63,
    two_copies_both_needed: 64,
    a_hand_over_whose_answer_is_lost: 65,
    a_hand_over_while_the_successor_dies: 66,
}

/// Some slow operations of a device and a pause of the client; no lease, no silence, no deadline of anybody.
const NO_GAP: Span = Span::millis(100);

fn a_primary_that_stops_hands_over_without_a_gap(seed: u64) {
    for seed in seed..seed + 300 * 8 {
        if seed % 300 != 60 {
            continue;
        }
        let mut w = busy(seed);
        let old = w.primary();
        w.stop(old);
        let gap = longest_gap(&mut w, Span::millis(800));
        assert!(gap <= NO_GAP, "{gap:?} with seed {seed}");
        assert_ne!(w.primary(), old);
        assert!(w.places[&old].process.is_none(), "it need not wait");
        w.start(old);
        expect_whole(&mut w, Span::seconds(10));
        w.verify();
    }
}

fn a_backup_that_stops_leaves_without_a_gap(seed: u64) {
    let mut w = busy(seed);
    let backup = w.backups()[0];
    w.stop(backup);
    let gap = longest_gap(&mut w, Span::millis(800));
    assert!(gap <= NO_GAP, "{gap:?}");
    assert!(w.places[&backup].process.is_none(), "it need not wait");
    assert!(!w.config(w.segment()).is_member(backup));
    w.start(backup);
    expect_whole(&mut w, Span::seconds(10));
    w.verify();
}

fn every_node_stops_in_turn(seed: u64) {
    let mut w = busy(seed);
    let all: Vec<_> = w.places.keys().copied().collect();
    for node in all {
        expect_whole(&mut w, Span::seconds(20));
        w.stop(node);
        let gap = longest_gap(&mut w, Span::seconds(1));
        assert!(gap <= NO_GAP, "{gap:?} when {node} stopped");
        w.start(node);
    }
    expect_whole(&mut w, Span::seconds(20));
    w.verify();
}

fn a_primary_stops_while_the_authority_is_away(seed: u64) {
    let mut w = busy(seed);
    let old = w.primary();
    w.stop_authority();
    w.stop(old);
    // It serves for as long as it waits; then only an election helps.
    let gap = longest_gap(&mut w, Span::seconds(4));
    assert!(gap <= NO_GAP, "{gap:?}");
    w.run(Span::seconds(3));
    w.start_authority();
    expect_progress(&mut w, Span::seconds(8));
    w.start(old);
    expect_whole(&mut w, Span::seconds(20));
    w.verify();
}

fn two_copies_both_needed(seed: u64) {
    let mut w = World::serving(seed, 2, 2, 2, 4);
    w.load(256);
    w.run(Span::seconds(2));
    let (old, other) = (w.primary(), w.backups()[0]);
    w.stop(old);
    w.run(Span::seconds(1));
    assert_eq!((w.primary(), w.places[&old].process.is_none()), (other, true));
    w.start(old);
    expect_whole(&mut w, Span::seconds(10));
    expect_progress(&mut w, Span::seconds(5));
    w.verify();
}

fn a_hand_over_whose_answer_is_lost(seed: u64) {
    let mut w = busy(seed);
    let old = w.primary();
    w.seat.mute_decisions = true;
    w.stop(old);
    let gap = longest_gap(&mut w, Span::millis(600));
    assert!(gap <= NO_GAP, "{gap:?}: it serves until it knows");
    w.seat.mute_decisions = false;
    let gap = longest_gap(&mut w, Span::millis(1500));
    assert!(gap <= NO_GAP, "{gap:?}: then the successor does");
    assert_ne!(w.primary(), old);
    w.start(old);
    expect_whole(&mut w, Span::seconds(10));
    w.verify();
}

fn a_hand_over_while_the_successor_dies(seed: u64) {
    let mut w = busy(seed);
    let (old, backups) = (w.primary(), w.backups());
    w.stop(old);
    for backup in &backups[..1] {
        w.crash(*backup, true);
    }
    w.run(Span::seconds(1));
    w.start(old);
    expect_progress(&mut w, Span::seconds(8));
    for backup in backups {
        w.start(backup);
    }
    expect_whole(&mut w, Span::seconds(20));
    w.verify();
}
