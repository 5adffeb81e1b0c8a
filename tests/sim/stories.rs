//! One thing goes wrong at a time, and what must happen then.

use engine_core::ids::NodeId;
use engine_core::limits::EXTENT_SIZE;
use engine_core::replica::io::RoleName;
use engine_core::time::Span;

use crate::world::World;

/// Three of four nodes hold a volume of 4 MiB, written all over, with load on it.
fn busy(seed: u64) -> World {
    let mut w = World::serving(seed, 4, 3, 2, 4);
    w.load(1024);
    w.run(Span::seconds(3));
    w
}

fn outsider(w: &World) -> NodeId {
    let config = w.config(w.segment());
    *w.places.keys().find(|node| !config.is_member(**node)).expect("a node without a copy")
}

/// Writes go on being acknowledged.
fn expect_progress(w: &mut World, limit: Span) {
    let before = w.history.acknowledged;
    w.expect("writes are acknowledged", limit, |w| w.history.acknowledged > before + 50);
}

fn expect_whole(w: &mut World, limit: Span) {
    w.expect("all copies are back", limit, |w| w.is_whole());
}

#[test]
fn a_healthy_volume_serves() {
    let mut w = busy(1);
    w.run(Span::seconds(7));
    assert!(w.history.acknowledged > 1000, "{}", w.history.acknowledged);
    assert!(w.is_whole());
    w.verify();
}

#[test]
fn a_lost_backup_stops_nobody_and_comes_back_by_catch_up() {
    let mut w = busy(2);
    let backup = w.backups()[0];
    w.crash(backup, true);
    expect_progress(&mut w, Span::seconds(4));
    w.run(Span::seconds(1));
    w.start(backup);
    expect_whole(&mut w, Span::seconds(10));
    w.verify();
}

#[test]
fn a_lost_primary_is_replaced_by_a_member() {
    let mut w = busy(3);
    let old = w.primary();
    w.crash(old, true);
    expect_progress(&mut w, Span::seconds(5));
    assert_ne!(w.primary(), old);
    w.start(old);
    expect_whole(&mut w, Span::seconds(10));
    w.verify();
}

#[test]
fn a_primary_that_vanishes_with_its_host_is_replaced() {
    let mut w = busy(4);
    let old = w.primary();
    w.lose(old);
    expect_progress(&mut w, Span::seconds(8));
    assert_ne!(w.primary(), old);
    // Nobody comes back within the grace time: the fourth node gets a copy, with a permit.
    expect_whole(&mut w, Span::seconds(20));
    assert!(!w.config(w.segment()).is_member(old));
    w.verify();
}

#[test]
fn catch_up_copies_only_what_changed() {
    let mut w = busy(5);
    w.load = None;
    w.expect_done(Span::seconds(5));
    let (segment, backup) = (w.segment(), w.backups()[0]);
    w.crash(backup, true);
    w.run(Span::seconds(3));
    // Two extents of 32 change while it is away.
    for block in [3, 40, 41] {
        w.write(segment, block, 1);
    }
    w.expect_done(Span::seconds(5));
    w.start(backup);
    expect_whole(&mut w, Span::seconds(10));
    let copied = w.places[&backup].process.as_ref().expect("up").copied_bytes;
    // What was committed when it died and unknown to it may come as well: the last writes before.
    assert!(copied <= 4 * EXTENT_SIZE, "{copied} bytes for two changed extents");
    w.verify();
}

#[test]
fn a_primary_cut_off_from_its_backups_is_replaced_and_never_answers_stale() {
    let mut w = busy(6);
    let (old, others) = (w.primary(), w.backups());
    w.partition(&[old], &others);
    expect_progress(&mut w, Span::seconds(10));
    assert_ne!(w.primary(), old);
    w.run(Span::seconds(5));
    w.heal();
    expect_whole(&mut w, Span::seconds(30));
    w.verify();
}

#[test]
fn a_primary_cut_off_from_everybody_but_the_client_never_answers_stale() {
    let mut w = busy(7);
    let (old, all) = (w.primary(), w.places.keys().copied().collect::<Vec<_>>());
    w.partition(&[old], &all);
    w.cut_authority(old);
    expect_progress(&mut w, Span::seconds(15));
    assert_ne!(w.primary(), old);
    w.heal();
    expect_whole(&mut w, Span::seconds(30));
    w.verify();
}

#[test]
fn a_member_that_hears_and_is_not_heard_is_left_out() {
    let mut w = busy(8);
    let (primary, deaf) = (w.primary(), w.backups()[0]);
    w.block(deaf, primary);
    expect_progress(&mut w, Span::seconds(5));
    w.heal();
    expect_whole(&mut w, Span::seconds(30));
    w.verify();
}

#[test]
fn all_nodes_crash_and_return() {
    let mut w = busy(9);
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

#[test]
fn a_primary_paused_past_its_lease_answers_nothing_stale() {
    for seed in 10..14 {
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

#[test]
fn a_lost_copy_is_made_anew_elsewhere_and_the_old_one_is_released() {
    let mut w = busy(14);
    let (lost, target) = (w.backups()[0], outsider(&w));
    let segment = w.segment();
    w.crash(lost, true);
    expect_whole(&mut w, Span::seconds(20));
    assert!(w.config(segment).is_member(target));
    // It comes back with a copy nobody needs.
    w.start(lost);
    w.expect("the stale copy is released", Span::seconds(10), |w| {
        let process = w.places[&lost].process.as_ref();
        process.is_some_and(|process| process.serving && process.segments().is_empty())
    });
    assert_eq!(engine::store::Store::space(&w.places[&lost].process.as_ref().expect("up").store).booked, 0);
    w.run(Span::seconds(5));
    assert!(w.role(lost, segment).is_none(), "nothing resurrects");
    w.verify();
}

#[test]
fn a_candidate_survives_its_primary_its_own_crash_and_hot_extents() {
    for seed in 20..26 {
        let mut w = busy(seed);
        let segment = w.segment();
        let (lost, target) = (w.backups()[0], outsider(&w));
        w.lose(lost);
        w.expect("a copy begins", Span::seconds(20), |w| w.config(segment).is_candidate(target));
        w.run(Span::millis(10));
        let primary = w.primary();
        if seed % 2 == 0 {
            w.crash(primary, true);
            w.run(Span::millis(3000));
            w.start(primary);
        } else {
            w.crash(target, true);
            w.run(Span::millis(300));
            w.start(target);
        }
        expect_whole(&mut w, Span::seconds(40));
        w.verify();
    }
}

#[test]
fn a_hot_extent_does_not_keep_a_candidate_out() {
    let mut w = World::serving(30, 3, 3, 2, 4);
    w.load(1024);
    w.run(Span::seconds(1));
    let backup = w.backups()[0];
    w.crash(backup, true);
    w.run(Span::seconds(1));
    // One extent is overwritten without a pause.
    let segments = w.all_segments();
    w.load = Some(crate::load::Load { segments, blocks: 32, hot: 32, depth: 64, burst: 16, reads: 0, longest: 1 });
    w.network.delay_max = Span::millis(2);
    w.start(backup);
    expect_whole(&mut w, Span::seconds(10));
    w.verify();
}

#[test]
fn an_old_member_with_a_tail_of_its_own_returns_and_the_tail_is_dropped() {
    let mut w = busy(31);
    let (old, others) = (w.primary(), w.backups());
    // What it orders from here on reaches nobody.
    w.partition(&[old], &others);
    w.run(Span::millis(300));
    w.crash(old, true);
    expect_progress(&mut w, Span::seconds(10));
    w.heal();
    w.start(old);
    expect_whole(&mut w, Span::seconds(20));
    w.verify();
}

#[test]
fn below_min_copies_writes_wait_and_reads_go_on_until_a_member_is_back() {
    let mut w = World::serving(32, 2, 2, 2, 4);
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
    let left: Vec<bool> = w.client.as_ref().expect("attached").tasks.values().map(|t| t.write.is_some()).collect();
    assert_eq!(left, [true], "the read is answered, the write waits");
    w.start(backup);
    w.expect_done(Span::seconds(6));
    expect_whole(&mut w, Span::seconds(6));
    w.verify();
}

#[test]
fn the_last_member_but_one_stays_electable_until_a_later_epoch_commits() {
    // The primary is left alone below min_copies, then dies; the member left out before holds everything.
    let mut w = World::serving(33, 2, 2, 2, 4);
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

#[test]
fn a_new_attachment_fences_the_old_one() {
    let mut w = busy(34);
    let old = w.client.take().expect("attached");
    w.attach();
    let segment = w.segment();
    w.load = None;
    let blocks: Vec<u32> = w.history.blocks.keys().map(|(_, block)| *block).collect();
    for block in &blocks {
        w.read(segment, *block, 1);
        w.expect_done(Span::seconds(5));
    }
    let before = w.history.versions();
    // The old client writes on; nothing of it lands.
    let new = w.client.replace(old).expect("attached");
    for block in &blocks {
        w.write(segment, *block, 1);
    }
    w.run(Span::seconds(2));
    assert!(w.client.as_ref().is_some_and(|client| client.fenced));
    w.history.abandoned();
    w.client = Some(new);
    for block in &blocks {
        w.read(segment, *block, 1);
        w.expect_done(Span::seconds(5));
    }
    assert_eq!(before, w.history.versions());
    w.verify();
}

#[test]
fn an_attachment_fences_writes_under_way_while_the_primary_dies() {
    let mut w = busy(35);
    let old = w.primary();
    w.crash(old, true);
    w.attach();
    expect_progress(&mut w, Span::seconds(6));
    w.start(old);
    expect_whole(&mut w, Span::seconds(20));
    w.verify();
}

#[test]
fn a_lost_answer_of_the_authority_does_not_stop_the_primary() {
    let mut w = busy(36);
    let backup = w.backups()[0];
    w.seat.mute_decisions = true;
    w.crash(backup, true);
    w.run(Span::millis(2500));
    w.seat.mute_decisions = false;
    let primary = w.primary();
    expect_progress(&mut w, Span::millis(1500));
    assert_eq!(w.primary(), primary);
    w.start(backup);
    expect_whole(&mut w, Span::seconds(10));
    w.verify();
}

#[test]
fn healthy_segments_serve_without_the_authority() {
    let mut w = busy(37);
    w.stop_authority();
    for _ in 0..10 {
        expect_progress(&mut w, Span::seconds(2));
        w.run(Span::seconds(1));
    }
    w.start_authority();
    w.run(Span::seconds(2));
    let backup = w.backups()[0];
    w.crash(backup, true);
    expect_progress(&mut w, Span::seconds(5));
    w.start(backup);
    expect_whole(&mut w, Span::seconds(10));
    w.verify();
}

#[test]
fn a_connection_that_breaks_costs_no_membership() {
    let mut w = busy(38);
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

#[test]
fn only_the_way_back_of_a_joining_candidate_breaks() {
    // Its word that it has caught up is lost; it says so again.
    for seed in 40..48 {
        let mut w = busy(seed);
        let (primary, backup) = (w.primary(), w.backups()[0]);
        w.crash(backup, true);
        w.run(Span::seconds(1));
        w.start(backup);
        for _ in 0..40 {
            w.run(Span::millis(25));
            w.sever(backup, primary, false);
        }
        expect_whole(&mut w, Span::seconds(12));
        w.verify();
    }
}

#[test]
fn the_same_seed_gives_the_same_trace() {
    let run = |seed| {
        let mut w = busy(seed);
        let primary = w.primary();
        w.crash(primary, true);
        w.run(Span::seconds(4));
        w.start(primary);
        w.run(Span::seconds(4));
        (w.trace(), w.history.acknowledged)
    };
    assert_eq!(run(50), run(50));
    assert_ne!(run(50).0, run(51).0);
}
