//! Copies that come back, are made anew or are no longer needed (I10, I12).

use engine_core::limits::EXTENT_SIZE;
use engine_core::time::Span;

use super::{busy, expect_progress, expect_whole, outsider};
use crate::load::Load;
use crate::world::World;

told! {
    catch_up_copies_only_what_changed: 5,
    a_lost_copy_is_made_anew_elsewhere_and_the_old_one_is_released: 14,
    a_candidate_survives_its_primary_its_own_crash_and_hot_extents: 20,
    a_hot_extent_does_not_keep_a_candidate_out: 30,
    an_old_member_with_a_tail_of_its_own_returns_and_the_tail_is_dropped: 31,
    only_the_way_back_of_a_joining_candidate_breaks: 40,
    an_image_of_the_same_boot_is_noticed_by_a_primary_that_remembers: 41,
}

fn catch_up_copies_only_what_changed(seed: u64) {
    let mut w = busy(seed);
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
    let copied = w.places[&backup].process.as_ref().expect("up").quay.figures(w.now).copied_bytes;
    // What was committed when it died and unknown to it may come as well: the last writes before.
    assert!(copied <= 4 * EXTENT_SIZE, "{copied} bytes for two changed extents");
    w.verify();
}

fn a_lost_copy_is_made_anew_elsewhere_and_the_old_one_is_released(seed: u64) {
    let mut w = busy(seed);
    let (lost, target) = (w.backups()[0], outsider(&w));
    let segment = w.segment();
    w.crash(lost, true);
    expect_whole(&mut w, Span::seconds(20));
    assert!(w.config(segment).is_member(target));
    // It comes back with a copy nobody needs.
    w.start(lost);
    w.expect("the stale copy is released", Span::seconds(10), |w| {
        let process = w.places[&lost].process.as_ref();
        process.is_some_and(|process| process.quay.is_serving() && process.quay.segments().is_empty())
    });
    assert_eq!(engine::store::Store::space(w.places[&lost].process.as_ref().expect("up").quay.store()).booked, 0);
    w.run(Span::seconds(5));
    assert!(w.role(lost, segment).is_none(), "nothing resurrects");
    w.verify();
}

fn a_candidate_survives_its_primary_its_own_crash_and_hot_extents(seed: u64) {
    for seed in seed..seed + 6 {
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

fn a_hot_extent_does_not_keep_a_candidate_out(seed: u64) {
    let mut w = World::serving(seed, 3, 3, 2, 4);
    w.load(1024);
    w.run(Span::seconds(1));
    let backup = w.backups()[0];
    w.crash(backup, true);
    w.run(Span::seconds(1));
    // One extent is overwritten without a pause.
    let segments = w.all_segments();
    let every = Span::millis(2);
    let (blocks, hot) = (32, 32);
    w.load =
        Some(Load { segments, blocks, hot, depth: 64, every, burst: 16, reads: 0, zeros: 0, longest: 1, large: 0 });
    w.network.delay_max = Span::millis(2);
    w.start(backup);
    expect_whole(&mut w, Span::seconds(10));
    w.verify();
}

fn an_old_member_with_a_tail_of_its_own_returns_and_the_tail_is_dropped(seed: u64) {
    let mut w = busy(seed);
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

fn only_the_way_back_of_a_joining_candidate_breaks(seed: u64) {
    // Its word that it has caught up is lost; it says so again.
    for seed in seed..seed + 8 {
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

fn an_image_of_the_same_boot_is_noticed_by_a_primary_that_remembers(seed: u64) {
    for away in [false, true] {
        let mut w = busy(seed);
        let (primary, backup) = (w.primary(), w.backups()[0]);
        let image = w.places[&backup].disk.image();
        w.run(Span::seconds(1));
        if away {
            // Nobody can leave it out: it is a member still when it comes back with less than it acknowledged (I9).
            w.cut_authority(primary);
        }
        w.crash(backup, true);
        w.roll_back(backup, &image);
        w.start(backup);
        w.run(Span::seconds(2));
        w.heal();
        expect_whole(&mut w, Span::seconds(20));
        w.verify();
    }
}
