//! Space for what is lost is there when it is lost (R4; I13).

use engine_core::authority::document::{CreateVolume, Spread, Status};
use engine_core::authority::headroom::Headroom;
use engine_core::authority::io::{Answer, Call};
use engine_core::time::Span;

use super::expect_whole;
use crate::world::{Shape, World};

told! {
    what_the_largest_node_had_finds_a_place_on_the_others: 120,
    who_needs_every_zone_finds_a_place_within_the_zone: 121,
}

/// Volumes of one segment are made until there is no space for another; says why there is none.
fn fill(w: &mut World, copies: u8, spread: Spread) -> String {
    for number in 0..100 {
        let request = CreateVolume {
            name: format!("filler-{number}"),
            size: 64 << 20,
            copies: Some(copies),
            min_copies: Some(1),
            segment_size: Some(64 << 20),
            zone: None,
            spread: Some(spread),
            iops: None,
            mibps: None,
        };
        if let Err(why) = w.call(Call::Create(request), Span::seconds(30)) {
            return why;
        }
    }
    w.fail("it never ends")
}

fn status(w: &mut World) -> Status {
    match w.call(Call::Status, Span::seconds(1)) {
        Ok(Answer::Status(status)) => *status,
        other => panic!("{other:?}"),
    }
}

/// Each node has space for eight segments. As full as may be, with headroom for a node. Then the first node is lost for good.
fn full(seed: u64, shape: &Shape) -> World {
    let mut w = World::new(seed, shape);
    w.policy.headroom = Headroom::Node;
    w.open(shape);
    let why = fill(&mut w, shape.copies, if shape.spread_zone { Spread::Zone } else { Spread::Node });
    assert!(why.contains("kept for re-mirroring as the largest node has (n"), "{why}");
    w.run(Span::seconds(1));
    let before = status(&mut w).space;
    let lost = w.primary();
    w.lose(lost);
    expect_whole(&mut w, Span::seconds(120));
    assert!(before.headroom > 0 && before.free >= before.headroom, "{before:?}");
    assert!(before.alarms.iter().any(|alarm| alarm.zone.is_none() && alarm.level == "low"), "{before:?}");
    let space = status(&mut w).space;
    assert!(space.alarms.iter().any(|alarm| alarm.level != "low"), "it lives on its headroom: {space:?}");
    w.check_books();
    w
}

fn what_the_largest_node_had_finds_a_place_on_the_others(seed: u64) {
    let shape = Shape { nodes: 5, zones: 1, extents: 3800, copies: 2, min_copies: 1, megabytes: 4, spread_zone: false };
    full(seed, &shape).verify();
}

fn who_needs_every_zone_finds_a_place_within_the_zone(seed: u64) {
    let shape = Shape { nodes: 4, zones: 2, extents: 3800, copies: 2, min_copies: 1, megabytes: 4, spread_zone: true };
    full(seed, &shape).verify();
}
