//! Many nodes vanish at once: who is searched for, and when (DESIGN 7.4; I15, R5).

use engine_core::authority::document::Status;
use engine_core::authority::io::{Answer, Call};
use engine_core::authority::policy::{BreakerWish, SetBreaker};
use engine_core::ids::NodeId;
use engine_core::limits::{BREAKER_SETTLE, PERMITS_PER_ZONE_HALF_OPEN};
use engine_core::time::Span;

use super::{expect_progress, expect_whole};
use crate::world::{Shape, World};

told! {
    a_lost_zone_is_waited_for_then_a_few_copies_at_a_time_are_made: 110,
    a_break_that_heals_makes_no_copy_that_a_former_one_could_bring_back: 111,
    a_single_nodes_death_is_not_held_up_by_the_breaker: 112,
    a_set_that_flaps_keeps_the_breaker_open: 113,
    an_authority_that_restarts_in_the_middle_of_a_loss_lets_nothing_begin: 114,
    what_a_person_says_about_the_breaker_counts_at_once: 115,
}

/// Twelve segments on nine nodes in three zones, a copy in each.
fn nine(seed: u64) -> World {
    busy(seed, 9, 3)
}

fn busy(seed: u64, nodes: u16, zones: u16) -> World {
    let shape = Shape { nodes, zones, extents: 6000, copies: 3, min_copies: 2, megabytes: 768, spread_zone: false };
    let mut w = World::shaped(seed, &shape);
    w.load(64);
    // Minutes go by in these stories.
    w.load.iter_mut().for_each(|load| load.every = Span::millis(10));
    w.run(Span::seconds(8));
    w
}

fn of_zone(w: &World, zone: &str) -> Vec<NodeId> {
    w.places.iter().filter(|(_, place)| place.zone == zone).map(|(node, _)| *node).collect()
}

fn status(w: &mut World) -> Status {
    match w.call(Call::Status, Span::seconds(1)) {
        Ok(Answer::Status(status)) => *status,
        other => panic!("{other:?}"),
    }
}

fn expect_state(w: &mut World, state: &str, limit: Span) {
    w.expect(state, limit, |w| status(w).breaker.state == state);
}

/// Time passes, and nothing begins to be re-mirrored meanwhile.
fn expect_none(w: &mut World, span: Span) {
    let before = w.seat.granted.len();
    w.run(span);
    assert_eq!(w.seat.granted.len(), before, "{:?} (I15)", w.seat.granted);
}

fn members(w: &World) -> Vec<Vec<NodeId>> {
    let sorted = |mut nodes: Vec<NodeId>| {
        nodes.sort_unstable();
        nodes
    };
    w.all_segments().into_iter().map(|segment| sorted(w.config(segment).members)).collect()
}

fn a_lost_zone_is_waited_for_then_a_few_copies_at_a_time_are_made(seed: u64) {
    // Of three copies two are in one of two zones: its loss leaves some segments below min_copies, and some not.
    let mut w = busy(seed, 10, 2);
    for node in of_zone(&w, "z1") {
        w.lose(node);
    }
    expect_state(&mut w, "open", Span::seconds(6));
    // Long after the grace time of 5 s.
    expect_none(&mut w, Span::seconds(14));
    let Status { breaker, remirror, .. } = status(&mut w);
    let why = breaker.why.clone().expect("it says so");
    assert!(why.contains("5 of 5 nodes of zone z1 lost") && why.contains("half-open in "), "{why}");
    assert!(breaker.lost.len() == 5 && remirror.parked > 0, "{breaker:?} {remirror:?}");
    let Ok(Answer::Explain(explained)) = w.call(Call::Explain(crate::faults::VOLUME.into()), Span::seconds(1)) else {
        w.fail("no explanation")
    };
    let parked = explained.segments.iter().find(|segment| segment.next.contains("parked: breaker open"));
    assert!(parked.is_some(), "{:?} (R16)", explained.segments);

    let before = w.seat.granted.len();
    expect_state(&mut w, "half_open", Span::seconds(20));
    assert!(w.seat.granted.len() <= before + 2 * PERMITS_PER_ZONE_HALF_OPEN, "{:?}", w.seat.granted);
    expect_whole(&mut w, Span::seconds(120));
    expect_state(&mut w, "closed", Span::seconds(2));
    // Whoever could commit had to wait for those who could not.
    let granted: Vec<bool> = w.seat.granted.iter().map(|(_, may_commit)| *may_commit).collect();
    let endangered = granted.iter().filter(|may_commit| !**may_commit).count();
    assert!(
        endangered > 0 && endangered < granted.len() && granted.is_sorted(),
        "segments below min_copies first: {granted:?}"
    );
    expect_progress(&mut w, Span::seconds(3));
    w.verify();
}

fn a_break_that_heals_makes_no_copy_that_a_former_one_could_bring_back(seed: u64) {
    for (seed, and_authority) in [(seed, true), (seed + 100, false)] {
        let mut w = nine(seed);
        let (cut, before) = (of_zone(&w, "z2"), members(&w));
        let others: Vec<NodeId> = w.places.keys().copied().filter(|node| !cut.contains(node)).collect();
        w.partition(&cut, &others);
        if and_authority {
            cut.iter().for_each(|node| w.cut_authority(*node));
        }
        expect_state(&mut w, "open", Span::seconds(10));
        w.run(Span::seconds(12));
        w.heal();
        expect_whole(&mut w, Span::seconds(40));
        expect_state(&mut w, "closed", Span::seconds(30));
        assert!(w.seat.granted.is_empty(), "{:?} (R5)", w.seat.granted);
        assert_eq!(members(&w), before, "everybody is back");
        w.verify();
    }
}

fn a_single_nodes_death_is_not_held_up_by_the_breaker(seed: u64) {
    let mut w = nine(seed);
    let lost = w.primary();
    w.lose(lost);
    w.expect("the first copy begins after the grace time", Span::seconds(10), |w| !w.seat.granted.is_empty());
    expect_whole(&mut w, Span::seconds(60));
    assert_eq!(status(&mut w).breaker.state, "closed");
    w.verify();
}

fn a_set_that_flaps_keeps_the_breaker_open(seed: u64) {
    let mut w = nine(seed);
    let lost = of_zone(&w, "z1");
    for node in &lost {
        w.crash(*node, false);
    }
    expect_state(&mut w, "open", Span::seconds(6));
    for _ in 0..5 {
        expect_none(&mut w, Span::seconds(8));
        w.start(lost[0]);
        expect_none(&mut w, Span::seconds(5));
        w.crash(lost[0], false);
    }
    // Two are gone all the time, and more than a stable time has passed since.
    assert_eq!(status(&mut w).breaker.state, "open");
    expect_state(&mut w, "half_open", Span::seconds(30));
    expect_whole(&mut w, Span::seconds(120));
    w.verify();
}

fn an_authority_that_restarts_in_the_middle_of_a_loss_lets_nothing_begin(seed: u64) {
    let mut w = nine(seed);
    for node in of_zone(&w, "z3") {
        w.lose(node);
    }
    expect_state(&mut w, "open", Span::seconds(6));
    expect_none(&mut w, Span::seconds(10));
    w.stop_authority();
    w.start_authority();
    // Of nobody it knows whether he is there; who has left segments behind stands in its records.
    expect_none(&mut w, BREAKER_SETTLE);
    assert_eq!(status(&mut w).breaker.state, "open");
    expect_none(&mut w, Span::seconds(10));
    expect_whole(&mut w, Span::seconds(150));
    // Where all are there, a restart looks like nothing.
    w.stop_authority();
    w.start_authority();
    w.run(Span(2 * BREAKER_SETTLE.0));
    assert_eq!(status(&mut w).breaker.state, "closed");
    w.verify();
}

fn what_a_person_says_about_the_breaker_counts_at_once(seed: u64) {
    let mut w = nine(seed);
    let say = |w: &mut World, set| match w.call(Call::SetBreaker(SetBreaker { set }), Span::seconds(1)) {
        Ok(Answer::Breaker(info)) => Ok(info.state),
        Ok(other) => panic!("{other:?}"),
        Err(refused) => Err(refused),
    };
    assert!(say(&mut w, BreakerWish::HalfOpen).is_err(), "it is not open");
    assert_eq!(say(&mut w, BreakerWish::Hold).as_deref(), Ok("held"));
    let lost = w.primary();
    w.lose(lost);
    expect_none(&mut w, Span::seconds(15));
    // It stays held over a restart of the authority.
    w.stop_authority();
    w.start_authority();
    expect_none(&mut w, Span::seconds(15));
    let why = status(&mut w).breaker.why.expect("it says so");
    assert!(why.contains("held by an operator"), "{why}");
    assert_eq!(say(&mut w, BreakerWish::Reset).as_deref(), Ok("closed"));
    expect_whole(&mut w, Span::seconds(60));

    // Nobody waits for a zone of which a person knows that it will not come back.
    let rest = w.places.iter().filter(|(_, place)| place.process.is_some()).map(|(node, _)| *node);
    let zone: Vec<NodeId> = rest.filter(|node| node.0 % 3 != lost.0 % 3).take(3).collect();
    let three: Vec<NodeId> = of_zone(&w, &w.places[&zone[0]].zone.clone());
    three.iter().for_each(|node| w.lose(*node));
    expect_state(&mut w, "open", Span::seconds(6));
    expect_none(&mut w, Span::seconds(6));
    assert_eq!(say(&mut w, BreakerWish::HalfOpen).as_deref(), Ok("half_open"));
    w.expect("copies begin", Span::seconds(3), |w| status(w).remirror.active > 0);
    assert_eq!(say(&mut w, BreakerWish::Close).as_deref(), Ok("closed"));
    expect_whole(&mut w, Span::seconds(60));
    w.verify();
}
