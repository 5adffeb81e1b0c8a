//! Networks that fail one without the other, clients that die, clocks that disagree (I2, I7, I8).

use engine_core::ids::NodeId;
use engine_core::limits::DRIFT_PER_MILLE;
use engine_core::time::Span;

use super::{busy, expect_progress, expect_whole};
use crate::network::Net;
use crate::world::World;

told! {
    a_node_without_its_primary_network_stops_nobody: 60,
    a_client_that_dies_leaves_its_writes_decided: 61,
    clocks_that_drift_within_the_bound_make_no_read_stale: 62,
    clocks_that_run_wild_lose_no_write: 63,
    a_killed_process_comes_back_with_what_it_had: 64,
}

fn cut(w: &mut World, net: Net, node: NodeId) {
    let others: Vec<NodeId> = w.places.keys().copied().filter(|other| *other != node).collect();
    for other in others {
        w.block_on(net, node, other);
        w.block_on(net, other, node);
    }
}

fn a_node_without_its_primary_network_stops_nobody(seed: u64) {
    for (seed, backup) in [(seed, false), (seed + 100, true)] {
        let mut w = busy(seed);
        let node = if backup { w.backups()[0] } else { w.primary() };
        cut(&mut w, Net::Primary, node);
        expect_progress(&mut w, Span::seconds(8));
        // Live traffic finds the other network; copies wait for the large one (R8).
        w.run(Span::seconds(12));
        expect_progress(&mut w, Span::seconds(2));
        assert!(w.coverage.all()["state: live traffic on the replication network"] > 0);
        w.heal();
        expect_whole(&mut w, Span::seconds(30));
        w.verify();
    }
}

fn a_client_that_dies_leaves_its_writes_decided(seed: u64) {
    let mut w = busy(seed);
    for _ in 0..3 {
        w.kill_client(w.attached);
        w.attach();
        expect_progress(&mut w, Span::seconds(3));
    }
    // Whoever comes next reads the same twice, whatever became of what was under way.
    w.verify();
    let before = w.history.versions();
    w.verify();
    assert_eq!(before, w.history.versions());
}

/// Each clock runs off by up to so much, per ten thousand, some ahead and some behind.
fn drift(w: &mut World, most: i64) {
    let now = w.now;
    for (place, faster) in w.places.values_mut().zip([most, -most, most / 2, 0].into_iter().cycle()) {
        place.clock.run(now, faster);
    }
}

fn clocks_that_drift_within_the_bound_make_no_read_stale(seed: u64) {
    let mut w = busy(seed);
    drift(&mut w, DRIFT_PER_MILLE as i64 * 5);
    for _ in 0..3 {
        let old = w.primary();
        w.pause(old, Span::seconds(4));
        expect_progress(&mut w, Span::seconds(8));
        w.run(Span::seconds(3));
        expect_whole(&mut w, Span::seconds(20));
    }
    w.verify();
}

fn clocks_that_run_wild_lose_no_write(seed: u64) {
    let mut w = busy(seed);
    w.history.clocks_agree = false;
    drift(&mut w, 5_000);
    for _ in 0..3 {
        let old = w.primary();
        w.pause(old, Span::seconds(4));
        w.run(Span::seconds(8));
    }
    drift(&mut w, 0);
    expect_progress(&mut w, Span::seconds(10));
    expect_whole(&mut w, Span::seconds(30));
    w.verify();
}

fn a_killed_process_comes_back_with_what_it_had(seed: u64) {
    let mut w = busy(seed);
    let all: Vec<NodeId> = w.places.keys().copied().collect();
    all.iter().for_each(|node| w.kill(*node));
    all.iter().for_each(|node| assert!(w.start(*node)));
    expect_progress(&mut w, Span::seconds(10));
    expect_whole(&mut w, Span::seconds(15));
    w.verify();
}
