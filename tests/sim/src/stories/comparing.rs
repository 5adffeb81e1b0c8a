//! Members compared with each other by a scrub of their primary: what a device lost whole, checksum and all, is found and
//! brought back; what only differs for a moment never is (I14).

use engine_core::ids::{BlockIndex, ExtentIndex, NodeId};
use engine_core::report::Differing;
use engine_core::time::Span;

use super::{busy, expect_progress, expect_whole};
use crate::load::Load;
use crate::world::World;

told! {
    a_write_that_a_member_lost_whole_is_found_by_comparing: 120,
    a_write_that_the_primary_lost_whole_is_brought_back_by_the_others: 123,
    nothing_is_found_where_nothing_is_wrong: 126,
}

fn scrub(w: &mut World, node: NodeId) {
    w.places.get_mut(&node).and_then(|place| place.process.as_mut()).expect("it runs").scrub();
}

/// A whole pass: what was found since the start, the number of extents compared, and of those that could not be.
fn pass(w: &mut World, node: NodeId) -> (Vec<Differing>, u64, u64) {
    let report = |w: &World| w.places[&node].process.as_ref().expect("it runs").report(w.now);
    let before = report(w).scrub.passes;
    scrub(w, node);
    w.expect("a pass of the scrub", Span::seconds(30), |w| report(w).scrub.passes > before);
    let found = report(w);
    assert_eq!(found.scrub.differing, found.differing.len() as u64);
    (found.differing, found.scrub.compared, found.scrub.unsettled)
}

/// One write gets to every member; in the store of `victim` something else lands, and its checksum matches.
fn lose(w: &mut World, victim: NodeId, block: u32) {
    let segment = w.segment();
    let process = w.places.get_mut(&victim).and_then(|place| place.process.as_mut()).expect("it runs");
    process.quay.store_mut().loses = Some((segment, BlockIndex(block)));
    w.write(segment, block, 1);
    w.expect_done(Span::seconds(5));
    let process = w.places.get_mut(&victim).and_then(|place| place.process.as_mut()).expect("it runs");
    assert_eq!(process.quay.store_mut().loses, None, "the story tells nothing");
}

/// Three members that have written a while; then `victim` loses a write of extent 2, and a while passes, in which it may
/// get from the WAL to its home or not.
fn with_a_loss(seed: u64, wait: Span, victim: impl Fn(&World) -> NodeId) -> (World, Differing) {
    let mut w = busy(seed);
    w.load = None;
    w.expect_done(Span::seconds(5));
    let (segment, member) = (w.segment(), victim(&w));
    lose(&mut w, member, 2 * 32 + 5);
    w.run(wait);
    (w, Differing { segment, extent: ExtentIndex(2), member })
}

const WAITS: [Span; 3] = [Span::ZERO, Span::millis(600), Span::seconds(5)];

fn a_write_that_a_member_lost_whole_is_found_by_comparing(seed: u64) {
    for (seed, wait) in (seed..).zip(WAITS) {
        let (mut w, lost) = with_a_loss(seed, wait, |w| w.backups()[0]);
        let primary = w.primary();
        let (found, compared, unsettled) = pass(&mut w, primary);
        assert_eq!((found, unsettled), (vec![lost], 0));
        assert!(compared > 1, "{compared}");
        w.expect("it has the extent again", Span::seconds(1), |w| w.mended(lost.member, lost.segment) == 1);
        assert_eq!(pass(&mut w, primary).0, [lost], "the second pass finds nothing more");
        w.verify();
        // And whoever lost it may lead.
        w.crash(primary, true);
        expect_progress_of_one(&mut w);
        w.start(primary);
        expect_whole(&mut w, Span::seconds(30));
        w.verify();
    }
}

fn expect_progress_of_one(w: &mut World) {
    let segment = w.segment();
    w.write(segment, 7, 1);
    w.expect_done(Span::seconds(10));
}

fn a_write_that_the_primary_lost_whole_is_brought_back_by_the_others(seed: u64) {
    for (seed, wait) in (seed..).zip(WAITS) {
        let (mut w, lost) = with_a_loss(seed, wait, World::primary);
        assert_eq!(w.backups().len(), 2, "one alone would not be believed");
        let (found, ..) = pass(&mut w, lost.member);
        assert_eq!(found, [lost]);
        w.read(lost.segment, 2 * 32 + 5, 1);
        w.expect_done(Span::seconds(2));
        assert_eq!(w.mended(lost.member, lost.segment), 1);
        w.verify();
    }
}

/// Passes without a pause, on every node that runs: nothing is found.
fn scrub_on(w: &mut World, span: Span) -> (u64, u64) {
    let end = w.now + span;
    while w.now < end {
        let running: Vec<NodeId> =
            w.places.iter().filter(|(_, place)| place.process.is_some()).map(|(node, _)| *node).collect();
        for node in running {
            let report = w.places[&node].process.as_ref().expect("it runs").report(w.now);
            assert_eq!(report.differing, [], "{node}: nothing is wrong (I14)");
            scrub(w, node);
        }
        w.run(Span::millis(50));
    }
    let processes = w.places.values().filter_map(|place| place.process.as_ref());
    let scrubs = processes.map(|process| process.report(w.now).scrub);
    scrubs.fold((0, 0), |(compared, unsettled), scrub| (compared + scrub.compared, unsettled + scrub.unsettled))
}

fn nothing_is_found_where_nothing_is_wrong(seed: u64) {
    for seed in seed..seed + 3 {
        let mut w = World::serving(seed, 4, 3, 2, 4);
        let (segments, every) = (w.all_segments(), Span::millis(1));
        // Few extents, so that they change while they are compared; zeros, and writes that take slabs of their own.
        let (depth, burst, reads, zeros, longest, large) = (32, 4, 10, 20, 8, 10);
        w.load = Some(Load { segments, blocks: 512, hot: 64, depth, every, burst, reads, zeros, longest, large });
        let (compared, unsettled) = scrub_on(&mut w, Span::seconds(4));
        assert!(compared > 50 && unsettled < compared / 4, "{compared} {unsettled}: beneath a load too");
        let (primary, backup) = (w.primary(), w.backups()[0]);
        w.crash(backup, false);
        scrub_on(&mut w, Span::seconds(3));
        w.start(backup);
        scrub_on(&mut w, Span::seconds(3));
        w.crash(primary, true);
        scrub_on(&mut w, Span::seconds(4));
        w.start(primary);
        scrub_on(&mut w, Span::seconds(3));
        expect_progress(&mut w, Span::seconds(5));
        w.load = None;
        expect_whole(&mut w, Span::seconds(30));
        w.verify();
        scrub_on(&mut w, Span::seconds(2));
    }
}
