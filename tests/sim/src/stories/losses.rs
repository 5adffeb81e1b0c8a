//! Nodes lost, cut off, paused: who serves then, and who does not (I3, I5, I6, I7, I9).

use engine_core::ids::NodeId;
use engine_core::replica::io::RoleName;
use engine_core::time::Span;

use super::{busy, expect_progress, expect_whole};
use crate::world::World;

told! {
    a_healthy_volume_serves: 1,
    a_lost_backup_stops_nobody_and_comes_back_by_catch_up: 2,
    a_lost_primary_is_replaced_by_a_member: 3,
    a_primary_that_vanishes_with_its_host_is_replaced: 4,
    a_primary_cut_off_from_its_backups_is_replaced_and_never_answers_stale: 6,
    a_primary_cut_off_from_everybody_but_the_client_never_answers_stale: 7,
    a_member_that_hears_and_is_not_heard_is_left_out: 8,
    all_nodes_crash_and_return: 9,
    a_primary_paused_past_its_lease_answers_nothing_stale: 10,
    below_min_copies_writes_wait_and_reads_go_on_until_a_member_is_back: 32,
    the_last_member_but_one_stays_electable_until_a_later_epoch_commits: 33,
    a_connection_that_breaks_costs_no_membership: 38,
}

fn a_healthy_volume_serves(seed: u64) {
    let mut w = busy(seed);
    w.run(Span::seconds(7));
    assert!(w.history.acknowledged > 1000, "{}", w.history.acknowledged);
    assert!(w.is_whole());
    w.verify();
}

fn a_lost_backup_stops_nobody_and_comes_back_by_catch_up(seed: u64) {
    let mut w = busy(seed);
    let backup = w.backups()[0];
    w.crash(backup, true);
    expect_progress(&mut w, Span::seconds(4));
    w.run(Span::seconds(1));
    w.start(backup);
    expect_whole(&mut w, Span::seconds(10));
    w.verify();
}

fn a_lost_primary_is_replaced_by_a_member(seed: u64) {
    let mut w = busy(seed);
    let old = w.primary();
    w.crash(old, true);
    expect_progress(&mut w, Span::seconds(5));
    assert_ne!(w.primary(), old);
    w.start(old);
    expect_whole(&mut w, Span::seconds(10));
    w.verify();
}

fn a_primary_that_vanishes_with_its_host_is_replaced(seed: u64) {
    let mut w = busy(seed);
    let old = w.primary();
    w.lose(old);
    expect_progress(&mut w, Span::seconds(8));
    assert_ne!(w.primary(), old);
    // Nobody comes back within the grace time: the fourth node gets a copy, with a permit.
    expect_whole(&mut w, Span::seconds(20));
    assert!(!w.config(w.segment()).is_member(old));
    w.verify();
}

fn a_primary_cut_off_from_its_backups_is_replaced_and_never_answers_stale(seed: u64) {
    let mut w = busy(seed);
    let (old, others) = (w.primary(), w.backups());
    w.partition(&[old], &others);
    expect_progress(&mut w, Span::seconds(10));
    assert_ne!(w.primary(), old);
    w.run(Span::seconds(5));
    w.heal();
    expect_whole(&mut w, Span::seconds(30));
    w.verify();
}

fn a_primary_cut_off_from_everybody_but_the_client_never_answers_stale(seed: u64) {
    let mut w = busy(seed);
    let (old, all) = (w.primary(), w.places.keys().copied().collect::<Vec<_>>());
    w.partition(&[old], &all);
    w.cut_authority(old);
    expect_progress(&mut w, Span::seconds(15));
    assert_ne!(w.primary(), old);
    w.heal();
    expect_whole(&mut w, Span::seconds(30));
    w.verify();
}

fn a_member_that_hears_and_is_not_heard_is_left_out(seed: u64) {
    let mut w = busy(seed);
    let (primary, deaf) = (w.primary(), w.backups()[0]);
    w.block(deaf, primary);
    expect_progress(&mut w, Span::seconds(5));
    w.heal();
    expect_whole(&mut w, Span::seconds(30));
    w.verify();
}

fn all_nodes_crash_and_return(seed: u64) {
    let mut w = busy(seed);
    let all: Vec<NodeId> = w.places.keys().copied().collect();
    for node in &all {
        w.crash(*node, true);
    }
    w.run(Span::seconds(2));
    for node in all {
        w.start(node);
        w.run(Span::millis(200));
    }
    expect_whole(&mut w, Span::seconds(15));
    expect_progress(&mut w, Span::seconds(5));
    w.verify();
}

fn a_primary_paused_past_its_lease_answers_nothing_stale(seed: u64) {
    for seed in seed..seed + 4 {
        let mut w = busy(seed);
        let old = w.primary();
        w.pause(old, Span::seconds(6));
        expect_progress(&mut w, Span::seconds(6));
        assert_ne!(w.primary(), old);
        w.run(Span::seconds(5));
        expect_whole(&mut w, Span::seconds(15));
        w.verify();
    }
}

fn below_min_copies_writes_wait_and_reads_go_on_until_a_member_is_back(seed: u64) {
    let mut w = World::serving(seed, 2, 2, 2, 4);
    let segment = w.segment();
    for block in 0..64 {
        w.write(segment, block, 1);
    }
    w.expect_done(Span::seconds(5));
    let backup = w.backups()[0];
    w.crash(backup, true);
    w.run(Span::seconds(8));
    assert_eq!(w.config(segment).members.len(), 1);
    w.write(segment, 5, 1);
    w.read(segment, 6, 4);
    w.run(Span::seconds(2));
    let left: Vec<bool> = w.client().expect("attached").tasks.values().map(|task| task.is_write()).collect();
    assert_eq!(left, [true], "the read is answered, the write waits");
    w.start(backup);
    w.expect_done(Span::seconds(6));
    expect_whole(&mut w, Span::seconds(6));
    w.verify();
}

fn the_last_member_but_one_stays_electable_until_a_later_epoch_commits(seed: u64) {
    // The primary is left alone below min_copies, then dies; the member left out before holds everything.
    let mut w = World::serving(seed, 2, 2, 2, 4);
    let segment = w.segment();
    w.load(256);
    w.run(Span::seconds(2));
    let (primary, backup) = (w.primary(), w.backups()[0]);
    w.crash(backup, true);
    w.run(Span::seconds(8));
    assert_eq!(w.config(segment).members, [primary]);
    w.start(backup);
    // It has heard that it is out when the primary dies.
    w.run(Span::millis(600));
    w.lose(primary);
    w.load = None;
    w.expect("reads are answered by the member that is left", Span::seconds(25), |w| {
        w.role(backup, segment) == Some(RoleName::Primary)
    });
}

fn a_connection_that_breaks_costs_no_membership(seed: u64) {
    let mut w = busy(seed);
    let (primary, backups) = (w.primary(), w.backups());
    let epoch = w.config(w.segment()).epoch;
    for round in 0..20 {
        w.flap(primary, backups[round % 2]);
        w.run(Span::millis(700));
    }
    expect_progress(&mut w, Span::seconds(2));
    assert_eq!(w.config(w.segment()).epoch, epoch);
    w.verify();
}
