//! Who leads how much when a node is back: its share, soon, unnoticed, and once (I9, I15).

use std::collections::BTreeMap;

use engine_core::ids::NodeId;
use engine_core::limits::{REBALANCE_EVERY, REBALANCE_PAUSE, REBALANCE_SETTLED};
use engine_core::time::Span;

use super::{expect_progress, expect_whole, longest_wait};
use crate::world::World;

told! {
    a_node_that_returns_leads_its_share_again: 80,
    a_node_that_comes_and_goes_is_not_given_the_lead: 81,
    an_authority_that_restarts_lets_nodes_settle_first: 82,
}

/// A node has to be there for a while; then every look moves what it may.
const SPREAD_WITHIN: Span = Span(REBALANCE_SETTLED.0 + 3 * REBALANCE_EVERY.0);
/// A hand-over is one reconciliation among nodes that are all there.
const UNNOTICED: Span = Span::millis(200);

/// Six segments on three nodes, each of which leads two.
fn even(seed: u64) -> World {
    let mut w = World::serving(seed, 3, 3, 2, 384);
    w.load(64);
    w.expect("the lead is spread", Span::seconds(60), |w| is_even(w));
    w.run(Span::seconds(2));
    w
}

fn leads(w: &World) -> BTreeMap<NodeId, usize> {
    let mut leads: BTreeMap<NodeId, usize> = w.places.keys().map(|node| (*node, 0)).collect();
    for segment in w.all_segments() {
        *leads.entry(w.config(segment).primary).or_default() += 1;
    }
    leads
}

fn is_even(w: &World) -> bool {
    leads(w).values().all(|leads| *leads == 2)
}

fn epochs(w: &World) -> Vec<u64> {
    w.all_segments().into_iter().map(|segment| w.config(segment).epoch.0).collect()
}

/// A node is away until others lead what it led, and comes back.
fn away_and_back(w: &mut World, node: NodeId) {
    w.kill(node);
    w.expect("others lead", Span::seconds(6), |w| leads(w)[&node] == 0);
    w.run(Span::seconds(3));
    w.start(node);
    expect_whole(w, Span::seconds(10));
    assert_eq!(leads(w)[&node], 0, "whole at once, spread later");
}

fn a_node_that_returns_leads_its_share_again(seed: u64) {
    for node in [1, 2, 3] {
        let mut w = even(seed + node);
        let node = NodeId(node as u16);
        away_and_back(&mut w, node);
        let before = epochs(&w);
        let wait = longest_wait(&mut w, SPREAD_WITHIN);
        assert!(is_even(&w), "{:?} of {node}", leads(&w));
        assert!(wait <= UNNOTICED, "{wait:?} while the lead was spread");
        let after = epochs(&w);
        let moves: Vec<u64> = after.iter().zip(&before).map(|(after, before)| after - before).collect();
        // Two to the node that is back, and one between the others, perhaps.
        let count: u64 = moves.iter().sum();
        assert!((2..=3).contains(&count) && moves.iter().all(|times| *times <= 1), "{moves:?}");
        w.run(Span(REBALANCE_PAUSE.0 + Span::seconds(10).0));
        assert_eq!(epochs(&w), after, "what is even stays");
        w.verify();
    }
}

fn a_node_that_comes_and_goes_is_not_given_the_lead(seed: u64) {
    let mut w = even(seed);
    let node = NodeId(2);
    away_and_back(&mut w, node);
    let before = epochs(&w);
    for _ in 0..12 {
        w.run(Span::seconds(5));
        w.drop_session(node);
    }
    assert_eq!((leads(&w)[&node], epochs(&w)), (0, before), "it is not counted on");
    w.expect("then it leads its share", SPREAD_WITHIN, |w| is_even(w));
    w.verify();
}

fn an_authority_that_restarts_lets_nodes_settle_first(seed: u64) {
    let mut w = even(seed);
    let node = NodeId(3);
    away_and_back(&mut w, node);
    let before = epochs(&w);
    for _ in 0..6 {
        w.run(Span::seconds(7));
        w.stop_authority();
        w.run(Span::millis(300));
        w.start_authority();
    }
    assert_eq!(epochs(&w), before, "after a start it knows nobody for long enough");
    w.expect("then it is spread", Span(SPREAD_WITHIN.0 + Span::seconds(1).0), |w| is_even(w));
    expect_progress(&mut w, Span::seconds(2));
    w.verify();
}
