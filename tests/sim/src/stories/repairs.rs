//! What a person has to say, by the commands of `nodectl` (`volume recover`, `node replace-device`): what they refuse, what
//! they do, and that power that fails and an authority that restarts in the middle of it change nothing (I9, I11, I16).

use engine_core::authority::document::{AcceptOlder, Consequences, RecoverVolume, ReplaceDevice};
use engine_core::authority::io::{Answer, Call};
use engine_core::ids::NodeId;
use engine_core::replica::io::RoleName;
use engine_core::time::Span;

use super::{busy, expect_progress, expect_whole};
use crate::faults::VOLUME;
use crate::world::World;

told! {
    a_copy_that_was_left_behind_counts_once_the_volume_is_named: 90,
    of_copies_that_were_all_rolled_back_one_counts_once_the_volume_is_named: 91,
    the_last_member_is_waited_for_and_nothing_is_lost: 92,
    a_new_device_under_an_old_node_is_let_in_by_name: 93,
    the_device_of_the_last_member_is_given_up_only_by_naming_the_volume: 94,
}

/// Extents of a node's device in these worlds.
const EXTENTS: u64 = 4096;
/// When, after the command, the power fails and the authority restarts.
const MIDDLES: [Span; 4] = [Span::ZERO, Span::millis(2), Span::millis(40), Span::millis(900)];

fn three(seed: u64, min_copies: u8) -> World {
    let mut w = World::serving(seed, 3, 3, min_copies, 4);
    w.load(256);
    w.run(Span::seconds(2));
    w
}

fn consequences(result: Result<Answer, String>) -> Consequences {
    match result {
        Ok(Answer::Consequences(consequences)) => *consequences,
        other => panic!("{other:?}"),
    }
}

/// `nodectl volume recover VOLUME --segment 0 --from NODE`, with or without `--lose VOLUME`.
fn recover(w: &mut World, from: NodeId, lose: bool) -> Result<Answer, String> {
    let lose = lose.then(|| VOLUME.to_owned());
    let request = RecoverVolume { segment: 0, from, lose, dry_run: false };
    w.call(Call::Recover(VOLUME.into(), request), Span::seconds(5))
}

/// `nodectl node replace-device NODE`, with or without `--lose VOLUME`.
fn replace_device(w: &mut World, node: NodeId, lose: bool) -> Result<Answer, String> {
    let lose = if lose { vec![VOLUME.to_owned()] } else { Vec::new() };
    w.call(Call::ReplaceDevice(node, ReplaceDevice { device: None, lose, dry_run: false }), Span::seconds(5))
}

/// What `nodectl volume explain VOLUME` says is to be done next.
fn next(w: &mut World) -> String {
    match w.call(Call::Explain(VOLUME.into()), Span::seconds(5)) {
        Ok(Answer::Explain(explain)) => explain.segments[0].next.clone(),
        other => panic!("{other:?}"),
    }
}

/// In the middle of what a person asked for: a node's power fails, the authority restarts.
fn in_the_middle(w: &mut World, after: Span, node: NodeId) {
    w.run(after);
    w.crash(node, false);
    w.restart_authority();
    w.run(Span::millis(500));
    w.start(node);
}

/// Nothing is served, however long one waits; nobody takes the lead with less than everything.
fn expect_nobody(w: &mut World) {
    let (segment, before) = (w.segment(), w.history.acknowledged);
    w.run(Span::seconds(15));
    let leads = |node: &NodeId| w.role(*node, segment) == Some(RoleName::Primary);
    let leading: Vec<NodeId> = w.places.keys().copied().filter(leads).collect();
    assert_eq!((leading, w.history.acknowledged), (Vec::new(), before), "I9: nobody has all that was acknowledged");
}

/// A recovery is done; whoever comes next finds one state, whole again.
fn expect_one_state(w: &mut World) {
    w.attach();
    expect_whole(w, Span::seconds(60));
    w.load(256);
    expect_progress(w, Span::seconds(5));
    w.verify();
}

/// An authority that restarted waits for most of its nodes; where these are gone a person says that its record is the
/// newest (I11).
fn go_on_without_the_rest(w: &mut World) {
    let Ok(Answer::Status(status)) = w.call(Call::Status, Span::seconds(1)) else { panic!("status") };
    if status.waiting.is_some() {
        let request = AcceptOlder { revision: Some(status.revision), ..AcceptOlder::default() };
        assert!(consequences(w.call(Call::AcceptOlder(request), Span::seconds(1))).done);
    }
}

/// Whoever is gone for good comes again with a blank device: not before a person says so.
fn come_with_blank_devices(w: &mut World, nodes: &[NodeId]) {
    go_on_without_the_rest(w);
    for node in nodes {
        w.new_disk(*node, EXTENTS);
        w.start(*node);
        w.run(Span::seconds(2));
        assert!(!w.places[node].process.as_ref().expect("up").quay.is_serving(), "an unknown device was let in");
        assert!(consequences(replace_device(w, *node, false)).done);
    }
}

fn a_copy_that_was_left_behind_counts_once_the_volume_is_named(seed: u64) {
    for (seed, middle) in (seed..).step_by(100).zip(MIDDLES) {
        let mut w = three(seed, 2);
        let left = w.backups()[0];
        w.crash(left, true);
        expect_progress(&mut w, Span::seconds(5));
        w.load = None;
        let others: Vec<NodeId> = w.places.keys().copied().filter(|node| *node != left).collect();
        others.iter().for_each(|node| w.lose(*node));
        w.start(left);
        expect_nobody(&mut w);
        let said = next(&mut w);
        let command = format!("nodectl volume recover {VOLUME} --segment 0 --from {left}");
        assert!(said.contains(&command) && said.contains("nothing is lost"), "{said}");
        let refused = recover(&mut w, left, false).expect_err("the volume was not named");
        assert!(refused.contains("would lose data") && refused.contains("a safe way is left"), "{refused}");
        assert!(consequences(recover(&mut w, left, true)).done);
        in_the_middle(&mut w, middle, left);
        let now = w.now;
        w.history.lost(now);
        come_with_blank_devices(&mut w, &others);
        expect_one_state(&mut w);
    }
}

fn of_copies_that_were_all_rolled_back_one_counts_once_the_volume_is_named(seed: u64) {
    for (seed, middle) in (seed..).step_by(100).zip(MIDDLES) {
        let mut w = three(seed, 2);
        let segment = w.segment();
        let all: Vec<NodeId> = w.places.keys().copied().collect();
        all.iter().for_each(|node| w.crash(*node, true));
        let images: Vec<_> = all.iter().map(|node| w.places[node].disk.image()).collect();
        all.iter().for_each(|node| assert!(w.start(*node)));
        expect_progress(&mut w, Span::seconds(15));
        w.load = None;
        all.iter().for_each(|node| w.crash(*node, true));
        for (node, image) in all.iter().zip(&images) {
            w.roll_back(*node, image);
            w.start(*node);
        }
        expect_nobody(&mut w);
        assert!(all.iter().all(|node| w.role(*node, segment) == Some(RoleName::Stale)), "all of them know it");
        let best = all[1];
        let refused = recover(&mut w, best, false).expect_err("the volume was not named");
        assert!(refused.contains("would lose data") && !refused.contains("safe way"), "{refused}");
        assert!(consequences(recover(&mut w, best, true)).done);
        in_the_middle(&mut w, middle, best);
        let now = w.now;
        w.history.lost(now);
        expect_one_state(&mut w);
    }
}

fn the_last_member_is_waited_for_and_nothing_is_lost(seed: u64) {
    for (seed, middle) in (seed..).step_by(100).zip(MIDDLES) {
        let mut w = World::serving(seed, 2, 2, 1, 4);
        w.load(256);
        w.run(Span::seconds(2));
        let (last, left) = (w.primary(), w.backups()[0]);
        w.crash(left, true);
        expect_progress(&mut w, Span::seconds(4));
        w.crash(last, false);
        w.start(left);
        expect_nobody(&mut w);
        let said = next(&mut w);
        assert!(said.starts_with(&format!("start {last} (nothing is lost)")), "{said}");
        let refused = recover(&mut w, left, false).expect_err("the volume was not named");
        assert!(refused.contains(&format!("a safe way is left: {last}")), "{refused}");
        w.start(last);
        in_the_middle(&mut w, middle, last);
        expect_whole(&mut w, Span::seconds(30));
        // Its client hears of a host without power when its socket has been silent for long.
        expect_progress(&mut w, Span::seconds(15));
        w.verify();
    }
}

fn a_new_device_under_an_old_node_is_let_in_by_name(seed: u64) {
    for (seed, middle) in (seed..).step_by(100).zip(MIDDLES) {
        let mut w = busy(seed);
        let (primary, lost) = (w.primary(), w.backups()[0]);
        let refused = replace_device(&mut w, lost, false).expect_err("it is in touch");
        assert!(refused.contains("is in touch"), "{refused}");
        w.lose(lost);
        expect_progress(&mut w, Span::seconds(5));
        come_with_blank_devices(&mut w, &[lost]);
        in_the_middle(&mut w, middle, primary);
        expect_progress(&mut w, Span::seconds(15));
        expect_whole(&mut w, Span::seconds(40));
        let process = w.places[&lost].process.as_ref().expect("up");
        assert!(process.quay.is_serving(), "it is one of them again");
        w.verify();
    }
}

fn the_device_of_the_last_member_is_given_up_only_by_naming_the_volume(seed: u64) {
    for (seed, middle) in (seed..).step_by(100).zip(MIDDLES) {
        let mut w = World::serving(seed, 2, 2, 1, 4);
        w.load(256);
        w.run(Span::seconds(2));
        let (last, left) = (w.primary(), w.backups()[0]);
        w.crash(left, true);
        expect_progress(&mut w, Span::seconds(4));
        w.load = None;
        w.lose(last);
        w.start(left);
        expect_nobody(&mut w);
        let refused = replace_device(&mut w, last, false).expect_err("what it holds counts");
        assert!(refused.contains("nobody else in touch holds every acknowledged write"), "{refused}");
        assert!(consequences(replace_device(&mut w, last, true)).done);
        in_the_middle(&mut w, middle, left);
        // That the device is gone makes nobody a member: which copy counts is another question.
        expect_nobody(&mut w);
        let refused = recover(&mut w, left, false).expect_err("the volume was not named");
        assert!(refused.contains("would lose data") && !refused.contains("safe way"), "{refused}");
        assert!(consequences(recover(&mut w, left, true)).done);
        in_the_middle(&mut w, middle, left);
        let now = w.now;
        w.history.lost(now);
        w.new_disk(last, EXTENTS);
        w.start(last);
        expect_one_state(&mut w);
    }
}
