//! States nobody gets out of alone elsewhere: devices rolled back, copies that may not be trusted (I9, I11).

use engine_core::authority::document::AttachVolume;
use engine_core::authority::io::Call;
use engine_core::ids::NodeId;
use engine_core::replica::io::RoleName;
use engine_core::time::Span;

use super::{busy, expect_progress, expect_whole};
use crate::faults::VOLUME;
use crate::world::World;

told! {
    a_rolled_back_backup_comes_back_by_catch_up: 50,
    a_rolled_back_device_is_never_elected_alone: 51,
    a_rolled_back_primary_of_two_does_not_keep_the_other_waiting: 52,
    an_authority_from_an_old_backup_changes_nothing: 53,
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

fn a_rolled_back_device_is_never_elected_alone(seed: u64) {
    let mut w = busy(seed);
    let (primary, backups) = (w.primary(), w.backups());
    let segment = w.segment();
    roll_back(&mut w, backups[0]);
    // Everybody else goes too: all that is left is a state from before what was acknowledged since.
    w.crash(primary, true);
    w.crash(backups[1], true);
    w.start(backups[0]);
    w.run(Span::seconds(20));
    assert_eq!(w.role(backups[0], segment), Some(RoleName::Stale), "it knows that it is not to be trusted");
    w.start(primary);
    w.start(backups[1]);
    expect_progress(&mut w, Span::seconds(20));
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
    expect_progress(&mut w, Span::seconds(2));
}
