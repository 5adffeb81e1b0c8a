//! Clients that come and go, and an authority that is silent (I2, I8).

use engine_core::ids::NodeId;
use engine_core::replica::io::RoleName;
use engine_core::time::Span;

use super::{busy, expect_progress, expect_whole};
use crate::world::World;

told! {
    a_new_attachment_fences_the_old_one: 34,
    an_attachment_fences_writes_under_way_while_the_primary_dies: 35,
    a_lost_answer_of_the_authority_does_not_stop_the_primary: 36,
    healthy_segments_serve_without_the_authority: 37,
    a_primary_that_is_alone_confirms_no_fence: 39,
    the_same_seed_gives_the_same_trace: 50,
}

fn a_new_attachment_fences_the_old_one(seed: u64) {
    let mut w = busy(seed);
    let old = w.attached;
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
    for block in &blocks {
        w.begin_write(old, segment, *block, 1, false);
    }
    w.run(Span::seconds(2));
    assert!(w.clients[&old].fenced);
    for block in &blocks {
        w.read(segment, *block, 1);
        w.expect_done(Span::seconds(5));
    }
    assert_eq!(before, w.history.versions());
    w.verify();
}

fn an_attachment_fences_writes_under_way_while_the_primary_dies(seed: u64) {
    let mut w = busy(seed);
    let old = w.primary();
    w.crash(old, true);
    w.attach();
    expect_progress(&mut w, Span::seconds(6));
    w.start(old);
    expect_whole(&mut w, Span::seconds(20));
    w.verify();
}

fn a_lost_answer_of_the_authority_does_not_stop_the_primary(seed: u64) {
    let mut w = busy(seed);
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

fn healthy_segments_serve_without_the_authority(seed: u64) {
    let mut w = busy(seed);
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

fn leads_alone(w: &mut World, node: NodeId) {
    let segment = w.segment();
    w.expect("it leads alone", Span::seconds(20), |w| {
        w.config(segment).members == [node] && w.role(node, segment) == Some(RoleName::Primary)
    });
}

fn a_primary_that_is_alone_confirms_no_fence(seed: u64) {
    let mut w = World::serving(seed, 2, 2, 2, 4);
    let (segment, first, second) = (w.segment(), w.primary(), w.backups()[0]);
    w.write(segment, 5, 1);
    w.expect_done(Span::seconds(2));
    // Both know that it is committed: whoever leads alone has nothing undecided of its own.
    w.run(Span::seconds(1));
    // A write that one of the two holds, and nobody has an answer to.
    w.block(first, second);
    w.write(segment, 5, 1);
    w.run(Span::millis(100));
    w.kill(first);
    w.heal();
    leads_alone(&mut w, second);
    // I2, I5: whoever attaches now cannot be told that nothing older will happen: it may, once the other is back.
    let old = w.attached;
    w.begin_attach();
    w.run(Span::seconds(5));
    if w.attached != old {
        w.read(segment, 5, 1);
        w.expect_done(Span::seconds(3));
    }
    let too_early = w.attached != old;
    w.kill(second);
    w.start(first);
    leads_alone(&mut w, first);
    w.start(second);
    expect_whole(&mut w, Span::seconds(20));
    w.expect("a client is attached", Span::seconds(40), |w| w.attached != old);
    w.verify();
    assert!(!too_early, "it was told too early, though no harm came of it");
}

fn the_same_seed_gives_the_same_trace(seed: u64) {
    let run = |seed| {
        let mut w = busy(seed);
        let primary = w.primary();
        w.crash(primary, true);
        w.run(Span::seconds(4));
        w.start(primary);
        w.run(Span::seconds(4));
        (w.trace(), w.history.acknowledged)
    };
    assert_eq!(run(seed), run(seed));
    assert_ne!(run(seed).0, run(seed + 1).0);
}
