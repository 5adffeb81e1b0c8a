//! States nobody gets out of alone elsewhere: devices rolled back, copies that may not be trusted (I9, I11).

use engine_core::authority::document::{AcceptOlder, AttachVolume};
use engine_core::authority::io::{Answer, Call};
use engine_core::ids::{NodeId, Revision};
use engine_core::replica::io::RoleName;
use engine_core::time::Span;

use super::{busy, expect_progress, expect_whole};
use crate::faults::VOLUME;
use crate::world::World;

told! {
    a_rolled_back_backup_comes_back_by_catch_up: 50,
    a_rolled_back_device_is_never_elected_alone: 51,
    a_rolled_back_device_is_known_however_often_it_was_opened: 56,
    a_device_is_itself_although_the_answers_to_its_node_were_lost: 57,
    a_copy_its_node_has_no_memory_of_is_made_there_anew: 58,
    a_rolled_back_primary_of_two_does_not_keep_the_other_waiting: 52,
    an_authority_from_an_old_backup_changes_nothing: 53,
    an_older_record_that_is_accepted_goes_on_from_what_its_nodes_know: 54,
    a_restarted_authority_waits_for_most_of_its_nodes: 55,
}

/// Stops the node, and starts it again with a device as it was two boots ago.
fn roll_back(w: &mut World, node: NodeId) {
    w.crash(node, true);
    let image = w.places[&node].disk.image();
    w.start(node);
    expect_whole(w, Span::seconds(10));
    w.run(Span::seconds(2));
    w.crash(node, true);
    w.roll_back(node, &image);
}

fn a_rolled_back_backup_comes_back_by_catch_up(seed: u64) {
    let mut w = busy(seed);
    let backup = w.backups()[0];
    roll_back(&mut w, backup);
    expect_progress(&mut w, Span::seconds(4));
    w.start(backup);
    expect_whole(&mut w, Span::seconds(20));
    w.verify();
    // Its boot counter is above the one remembered now: the next start is an ordinary one.
    w.crash(backup, true);
    w.start(backup);
    expect_whole(&mut w, Span::seconds(20));
    w.verify();
}

/// Started alone, the node knows that its device is not to be trusted; with the others everything comes back.
fn expect_stale_alone(w: &mut World, node: NodeId, others: [NodeId; 2]) {
    w.start(node);
    w.run(Span::seconds(20));
    assert_eq!(w.role(node, w.segment()), Some(RoleName::Stale), "it knows that it is not to be trusted");
    for other in others {
        w.start(other);
    }
    expect_progress(w, Span::seconds(20));
    expect_whole(w, Span::seconds(30));
    w.verify();
}

fn a_rolled_back_device_is_never_elected_alone(seed: u64) {
    let mut w = busy(seed);
    let (primary, backups) = (w.primary(), w.backups());
    roll_back(&mut w, backups[0]);
    // Everybody else goes too: all that is left is a state from before what was acknowledged since.
    w.crash(primary, true);
    w.crash(backups[1], true);
    expect_stale_alone(&mut w, backups[0], [primary, backups[1]]);
}

fn a_rolled_back_device_is_known_however_often_it_was_opened(seed: u64) {
    let mut w = busy(seed);
    let (primary, backups) = (w.primary(), w.backups());
    roll_back(&mut w, backups[0]);
    w.crash(primary, true);
    w.crash(backups[1], true);
    // Opened while the authority is away, its boot counter goes up, past everything the authority has seen.
    for _ in 0..3 {
        w.cut_authority(backups[0]);
        w.start(backups[0]);
        w.run(Span::seconds(1));
        w.crash(backups[0], true);
    }
    w.heal();
    expect_stale_alone(&mut w, backups[0], [primary, backups[1]]);
}

fn a_device_is_itself_although_the_answers_to_its_node_were_lost(seed: u64) {
    let mut w = busy(seed);
    let all = w.config(w.segment()).members;
    // Each comes back, and ends between the authority's record of that and its own; a few times in a row.
    for node in all.iter().cycle().take(3 * all.len()) {
        w.crash(*node, true);
        w.start(*node);
        let before = w.seat.accepted.get(node).copied();
        while w.seat.accepted.get(node).copied() == before {
            w.run(Span(100_000));
        }
        w.crash(*node, true);
    }
    for node in &all {
        w.start(*node);
    }
    expect_progress(&mut w, Span::seconds(20));
    expect_whole(&mut w, Span::seconds(30));
    assert_eq!(w.coverage.times("state: a rolled-back device was not trusted"), 0, "none was");
    w.verify();
}

fn a_copy_its_node_has_no_memory_of_is_made_there_anew(seed: u64) {
    // As many nodes as copies: there is no other place for it, and its space there is booked.
    let mut w = busy(seed);
    let node = w.backups()[0];
    w.crash(node, true);
    let image = w.places[&node].disk.image();
    w.start(node);
    expect_whole(&mut w, Span::seconds(10));
    w.fill(3, 2, 64);
    w.run(Span::seconds(2));
    assert_eq!(w.all_segments().len(), 2);
    w.crash(node, true);
    w.roll_back(node, &image);
    w.start(node);
    expect_whole(&mut w, Span::seconds(30));
    w.verify();
}

fn a_rolled_back_primary_of_two_does_not_keep_the_other_waiting(seed: u64) {
    // Without it there are fewer than min_copies, and it is in touch: nobody may leave it out, and nobody elect it.
    let mut w = World::serving(seed, 2, 2, 2, 4);
    w.load(256);
    w.run(Span::seconds(2));
    let primary = w.primary();
    roll_back(&mut w, primary);
    w.start(primary);
    expect_whole(&mut w, Span::seconds(20));
    expect_progress(&mut w, Span::seconds(5));
    w.verify();
}

fn an_authority_from_an_old_backup_changes_nothing(seed: u64) {
    let mut w = busy(seed);
    let old = w.seat.records.clone();
    let backup = w.backups()[0];
    w.crash(backup, true);
    expect_progress(&mut w, Span::seconds(4));
    w.start(backup);
    expect_whole(&mut w, Span::seconds(20));
    // The nodes hear of its revision every so often.
    w.run(Span::seconds(5));
    w.stop_authority();
    w.seat.records = old;
    w.start_authority();
    w.run(Span::seconds(3));
    // I11: it says so, changes nothing, and the volume serves as it is.
    let said = w.call(Call::Attach(VOLUME.into(), AttachVolume { client: "late".into() }), Span::seconds(40));
    assert!(said.as_ref().is_err_and(|error| error.contains("frozen")), "{said:?}");
    let Ok(Answer::Explain(explained)) = w.call(Call::Explain(VOLUME.into()), Span::seconds(1)) else {
        panic!("explained")
    };
    let segment = &explained.segments[0];
    assert!(segment.why.contains("the authority's record is older than what n"), "{}", segment.why);
    assert!(segment.next.contains("accept-older"), "{}", segment.next);
    expect_progress(&mut w, Span::seconds(2));
}

fn an_older_record_that_is_accepted_goes_on_from_what_its_nodes_know(seed: u64) {
    let mut w = busy(seed);
    let old = w.seat.records.clone();
    // Since the backup the lead and the epochs have moved on, and what was acknowledged then is known to nodes only.
    let (primary, backup) = (w.primary(), w.backups()[0]);
    w.crash(primary, true);
    expect_progress(&mut w, Span::seconds(5));
    w.start(primary);
    expect_whole(&mut w, Span::seconds(20));
    w.run(Span::seconds(5));
    let segment = w.segment();
    let last = w.config(segment).epoch;
    w.stop_authority();
    w.seat.records = old.clone();
    w.start_authority();
    w.run(Span::seconds(3));
    // A member dies, and nothing may be changed: writes wait, nothing is decided twice.
    w.crash(backup, true);
    w.run(Span::seconds(5));
    assert_eq!(w.seat.records, old, "nothing is changed (I11)");
    let silent = accept(&mut w, None).expect_err("one that may know more is silent");
    assert!(silent.contains(&format!("{backup} have not said")), "{silent}");
    w.start(backup);
    w.run(Span::seconds(3));
    let forgotten = accept(&mut w, None).expect_err("it says first what is forgotten");
    assert!(forgotten.contains("this would forget") && forgotten.contains("goes on from what n"), "{forgotten}");
    assert_eq!(w.seat.records, old, "nothing is changed (I11)");
    let seen = w.places.values().filter_map(|place| place.process.as_ref()).map(|process| process.superblock.revision);
    let seen = seen.max();
    accept(&mut w, seen).expect("named");
    assert!(w.config(segment).epoch > last, "no epoch is made twice (I1)");
    expect_progress(&mut w, Span::seconds(10));
    expect_whole(&mut w, Span::seconds(30));
    let primary = w.primary();
    w.crash(primary, true);
    expect_progress(&mut w, Span::seconds(10));
    w.start(primary);
    expect_whole(&mut w, Span::seconds(30));
    w.verify();
}

fn accept(w: &mut World, revision: Option<Revision>) -> Result<Answer, String> {
    w.seat.accepting = true;
    let answer = w.call(Call::AcceptOlder(AcceptOlder { revision, ..AcceptOlder::default() }), Span::seconds(1));
    w.seat.accepting = false;
    answer
}

fn a_restarted_authority_waits_for_most_of_its_nodes(seed: u64) {
    let mut w = busy(seed);
    let (primary, backups) = (w.primary(), w.backups());
    w.stop_authority();
    let all: Vec<NodeId> = w.places.keys().copied().collect();
    let cut: Vec<NodeId> = all.iter().copied().filter(|node| *node != backups[0]).collect();
    w.seat.cut.extend(&cut);
    let before = w.seat.records.clone();
    w.start_authority();
    w.crash(primary, true);
    w.run(Span::seconds(10));
    assert_eq!(w.seat.records, before, "nothing is changed before a majority has reported (I11)");
    // As soon as it has, the election that waits is decided.
    w.seat.cut.clear();
    expect_progress(&mut w, Span::seconds(6));
    w.start(primary);
    expect_whole(&mut w, Span::seconds(30));
    w.verify();
}
