//! What may not be read any more, and who may not hold others up (I7, I8, I14, I13).

use engine_core::ids::NodeId;
use engine_core::limits::{EXTENT_BLOCKS, LEASE, PREPARE_DEADLINE, WAL_SIZE_MIN};
use engine_core::replica::io::RoleName;
use engine_core::time::Span;

use super::{busy, expect_progress, expect_whole};
use crate::conns::ClientId;
use crate::world::{Shape, World};

told! {
    a_reader_left_with_a_cut_off_primary_is_not_shown_the_past: 60,
    a_primary_left_alone_with_a_reader_is_not_believed_once_others_lead: 68,
    who_succeeds_a_primary_left_alone_waits_for_its_lease: 71,
    a_primary_left_alone_reads_on_in_touch_with_the_authority_and_not_without_it: 69,
    leases_given_before_a_restart_count_also_where_nothing_was_written: 72,
    what_a_newcomer_gives_its_primary_covers_what_others_gave_before: 73,
    a_read_that_was_at_the_disk_while_others_led_is_not_answered: 61,
    a_backup_whose_device_hangs_is_left_out_by_its_prepare_deadline: 62,
    a_primary_whose_device_hangs_is_replaced: 63,
    what_has_rotted_is_mended_from_another_member: 64,
    what_nobody_reads_is_mended_by_a_scrub: 67,
    what_nobody_can_mend_is_refused_and_never_shown: 66,
    where_there_is_no_space_no_copy_is_made: 65,
}

/// Like [`busy`], then nothing: everything is at home.
fn calm(seed: u64) -> World {
    let mut w = busy(seed);
    w.load = None;
    w.expect_done(Span::seconds(5));
    w.run(Span::seconds(5));
    w
}

/// The primary hears nobody, except the clients that have a connection to it.
fn cut_off(w: &mut World, primary: NodeId) {
    let all: Vec<NodeId> = w.places.keys().copied().collect();
    w.partition(&[primary], &all);
    w.cut_authority(primary);
}

fn a_reader_left_with_a_cut_off_primary_is_not_shown_the_past(seed: u64) {
    let mut w = calm(seed);
    let (segment, left, reader) = (w.segment(), w.primary(), w.attached);
    cut_off(&mut w, left);
    w.expect("others lead", Span::seconds(6), |w| w.primary() != left);
    w.attach();
    for block in 0..8 {
        w.write(segment, block, 1);
    }
    w.expect_done(Span::seconds(5));
    // I7: its primary has no leases any more; what it would show is the past.
    let answered = w.data_from(left);
    for block in 0..8 {
        w.begin_read(reader, segment, block, 1, false);
    }
    w.run(Span::seconds(3));
    assert_eq!(w.data_from(left), answered);
    assert!(w.clients[&reader].fenced, "it asked others and heard of the new attachment");
    w.heal();
    expect_whole(&mut w, Span::seconds(30));
    w.verify();
}

/// Three nodes hold the volume; the two backups go, by `end`, and the authority lets the primary go on alone.
fn lone(seed: u64, end: impl Fn(&mut World, NodeId)) -> (World, NodeId, Vec<NodeId>) {
    let mut w = World::serving(seed, 3, 3, 2, 4);
    w.load(64);
    w.run(Span::seconds(2));
    w.load = None;
    w.expect_done(Span::seconds(5));
    let (segment, primary, backups) = (w.segment(), w.primary(), w.backups());
    for backup in &backups {
        end(&mut w, *backup);
    }
    w.expect("it leads alone", Span::seconds(20), |w| {
        w.config(segment).members == [primary] && w.role(primary, segment) == Some(RoleName::Primary)
    });
    (w, primary, backups)
}

/// This client reads for a tenth of a second.
fn reads(w: &mut World, reader: ClientId) {
    let segment = w.segment();
    for block in 0..8 {
        w.begin_read(reader, segment, block, 1, false);
    }
    w.run(Span::millis(100));
}

/// The lone primary is left with a reader; others lead, and a new client writes. Nothing older may be shown after that.
fn overtake(w: &mut World, left: NodeId, back: impl FnOnce(&mut World)) {
    let (segment, reader) = (w.segment(), w.attached);
    // It reads all the time: its primary holds as long a lease as it can have.
    let before = w.data_from(left);
    for _ in 0..10 {
        reads(w, reader);
    }
    assert!(w.data_from(left) > before, "reads go on");
    back(w);
    w.begin_attach();
    for _ in 0..600 {
        reads(w, reader);
        if w.attached != reader {
            break;
        }
    }
    assert!(w.attached != reader && w.primary() != left, "others lead, and fenced for the new client");
    let answered = w.data_from(left);
    for block in 0..8 {
        w.write(segment, block, 1);
    }
    for _ in 0..30 {
        reads(w, reader);
    }
    w.expect_done(Span::seconds(5));
    assert_eq!(w.data_from(left), answered, "the checker would notice, if the reader saw the past (I7)");
}

/// Everything is in touch again.
fn mend(mut w: World) {
    w.heal();
    expect_whole(&mut w, Span::seconds(30));
    w.verify();
}

fn a_primary_left_alone_with_a_reader_is_not_believed_once_others_lead(seed: u64) {
    let (mut w, left, backups) = lone(seed, |w, backup| w.crash(backup, true));
    overtake(&mut w, left, |w| {
        cut_off(w, left);
        backups.iter().for_each(|backup| assert!(w.start(*backup)));
    });
    mend(w);
}

fn who_succeeds_a_primary_left_alone_waits_for_its_lease(seed: u64) {
    // They are cut off instead. What they have granted has ended long ago, and they know that; what the authority says
    // to the one that leads they cannot know. They have heard of its configuration, and may not be elected one by one.
    let (mut w, left, backups) = lone(seed, cut_off);
    w.seat.cut.clear();
    w.run(Span::seconds(6));
    overtake(&mut w, left, |w| {
        let reader = w.attached;
        w.heal();
        w.partition(&[left], &backups);
        for _ in 0..100 {
            reads(w, reader);
            if w.primary() != left {
                break;
            }
        }
        w.cut_authority(left);
    });
    mend(w);
}

fn a_primary_left_alone_reads_on_in_touch_with_the_authority_and_not_without_it(seed: u64) {
    let (mut w, left, backups) = lone(seed, |w, backup| w.crash(backup, true));
    let segment = w.segment();
    let reads = |w: &mut World| {
        let before = w.data_from(left);
        for _ in 0..100 {
            w.read(segment, 3, 1);
            w.run(Span::millis(100));
        }
        w.data_from(left) - before
    };
    assert!(reads(&mut w) >= 99, "one lease after the other, without a gap (I7)");
    w.stall_authority(Span::seconds(15));
    w.run(LEASE);
    assert_eq!(reads(&mut w), 0, "the price: who may lead instead is not known");
    w.expect_done(Span::seconds(5));
    assert!(reads(&mut w) >= 99, "and they were only waiting");
    for backup in backups {
        w.start(backup);
    }
    expect_whole(&mut w, Span::seconds(30));
    w.verify();
}

fn leases_given_before_a_restart_count_also_where_nothing_was_written(seed: u64) {
    let mut w = World::serving(seed, 3, 3, 2, 4);
    let (left, backups) = (w.primary(), w.backups());
    overtake(&mut w, left, |w| {
        // Both start again within its leases, with empty logs, and are told that its process is gone. It lives.
        w.cut_authority(left);
        for backup in &backups {
            w.kill(*backup);
            w.filter(left, *backup);
            assert!(w.start(*backup));
        }
    });
    mend(w);
}

fn what_a_newcomer_gives_its_primary_covers_what_others_gave_before(seed: u64) {
    let mut w = World::serving(seed, 3, 3, 1, 4);
    let (segment, left, backups) = (w.segment(), w.primary(), w.backups());
    let (first, newcomer) = (backups[0], backups[1]);
    cut_off(&mut w, newcomer);
    w.load(64);
    w.expect("it is left out", Span::seconds(10), |w| !w.config(segment).is_member(newcomer));
    w.run(Span::seconds(1));
    w.load = None;
    w.expect_done(Span::seconds(5));
    overtake(&mut w, left, |w| {
        // Another member starts again, is told that the primary's process is gone, leads within the leases it gave, makes
        // this one a member again, and dies: who leads next never heard of those leases.
        w.heal();
        w.cut_authority(left);
        w.kill(first);
        [first, newcomer].into_iter().for_each(|other| w.filter(left, other));
        assert!(w.start(first));
        let since = w.now;
        w.expect("it is a member of another primary", Span::seconds(10), |w| {
            w.primary() == first && w.config(segment).is_member(newcomer)
        });
        assert!(w.now.since(since) < LEASE, "too late to tell anything");
        w.crash(first, true);
    });
    assert!(w.start(first));
    mend(w);
}

fn a_read_that_was_at_the_disk_while_others_led_is_not_answered(seed: u64) {
    let mut w = calm(seed);
    let (segment, left) = (w.segment(), w.primary());
    // Some of what is read is at home for certain: the disk is asked, and does not answer.
    w.places.get_mut(&left).expect("a node").disk_hangs = w.now + Span::seconds(7);
    for extent in 0..8 {
        w.read(segment, extent * EXTENT_BLOCKS, 1);
    }
    w.run(Span::millis(5));
    let answered = w.data_from(left);
    let waiting = w.client().expect("attached").tasks.len();
    assert!(waiting > 0, "all was in memory: the story tells nothing");
    // It stands still until after its leases, and others lead. Then its disk answers.
    w.pause(left, Span::seconds(6));
    w.expect("others lead", Span::seconds(6), |w| w.primary() != left);
    w.expect_done(Span::seconds(5));
    w.run(Span::seconds(6));
    assert_eq!(w.data_from(left), answered, "I7: looked at again after the disk read");
    expect_whole(&mut w, Span::seconds(30));
    w.verify();
}

fn a_backup_whose_device_hangs_is_left_out_by_its_prepare_deadline(seed: u64) {
    let mut w = busy(seed);
    let backup = w.backups()[0];
    w.places.get_mut(&backup).expect("a node").disk_hangs = w.now + Span::seconds(60);
    // I8: its process is well and hears everything; that does not help it.
    expect_progress(&mut w, Span::seconds(3));
    assert!(!w.config(w.segment()).is_member(backup));
    w.run(Span::seconds(60));
    expect_whole(&mut w, Span::seconds(30));
    w.verify();
}

fn a_primary_whose_device_hangs_is_replaced(seed: u64) {
    let mut w = busy(seed);
    let primary = w.primary();
    w.places.get_mut(&primary).expect("a node").disk_hangs = w.now + Span::seconds(60);
    // I8: it knows by its own deadline and says so; nobody waits for its silence.
    expect_progress(&mut w, Span(PREPARE_DEADLINE.0 + Span::millis(700).0));
    assert_ne!(w.primary(), primary);
    w.run(Span::seconds(60));
    expect_whole(&mut w, Span::seconds(30));
    w.verify();
}

/// The home blocks of these nodes rot all over; nothing of them is in memory any more.
fn rot(w: &mut World, nodes: &[NodeId]) {
    w.damage = true;
    for node in nodes {
        w.kill(*node);
        w.start(*node);
    }
    w.expect("it serves again", Span::seconds(10), |w| w.client().is_some() && w.is_whole());
    for node in nodes {
        let disk = w.places[node].disk.clone();
        for _ in 0..4_000 {
            let at = disk.somewhere(&mut w.random).expect("written");
            // Behind the log: what is at home, and the map, which nobody reads any more.
            if at >= WAL_SIZE_MIN + 1024 * 1024 {
                disk.flip(at + 100, 3);
            }
        }
    }
}

fn read_all(w: &mut World) {
    let segment = w.segment();
    for block in 0..1024 {
        w.read(segment, block, 1);
    }
    w.expect_done(Span::seconds(30));
}

fn what_has_rotted_is_mended_from_another_member(seed: u64) {
    let mut w = calm(seed);
    let primary = w.primary();
    rot(&mut w, &[primary]);
    let primary = w.primary();
    read_all(&mut w);
    let refused = w.coverage.times("state: a damaged block was refused to a client");
    assert_eq!(refused, 0, "another member has every block of it (I14)");
    let segment = w.segment();
    w.expect("it was rotten", Span::seconds(1), |w| w.mended(primary, segment) > 0);
    w.verify();
}

fn what_nobody_reads_is_mended_by_a_scrub(seed: u64) {
    let mut w = calm(seed);
    let (segment, backup) = (w.segment(), w.backups()[0]);
    rot(&mut w, &[backup]);
    // Until its primary has spoken to it, nobody can help.
    w.run(Span::seconds(1));
    let pass = |w: &mut World, number: u64| {
        w.places.get_mut(&backup).and_then(|place| place.process.as_mut()).expect("it runs").scrub();
        w.expect("a pass of the scrub", Span::seconds(20), |w| {
            let process = w.places[&backup].process.as_ref().expect("it runs");
            process.report(w.now).scrub.passes >= number
        });
        w.run(Span::seconds(1));
        w.places[&backup].process.as_ref().expect("it runs").report(w.now).scrub.damaged
    };
    let found = pass(&mut w, 1);
    let mended = w.mended(backup, segment);
    assert!(found > 0 && mended >= found, "{found} {mended}: a backup serves nobody; only a scrub looks (I14)");
    assert_eq!(pass(&mut w, 2), found, "the second pass finds nothing");
    w.verify();
}

fn what_nobody_can_mend_is_refused_and_never_shown(seed: u64) {
    let mut w = calm(seed);
    let members = w.config(w.segment()).members;
    rot(&mut w, &members);
    read_all(&mut w);
    let refused = w.coverage.times("state: a damaged block was refused to a client");
    assert!(refused > 0, "nothing that was read was rotten everywhere: the story tells nothing (I14)");
}

fn where_there_is_no_space_no_copy_is_made(seed: u64) {
    // Each of six nodes has space for one replica of 512 extents (its device is a little larger than asked for), and
    // each has one.
    let shape =
        Shape { nodes: 6, zones: 1, extents: 250, copies: 3, min_copies: 2, megabytes: 128, spread_zone: false };
    let mut w = World::shaped(seed, &shape);
    w.load(256);
    let lost = w.backups()[0];
    w.crash(lost, true);
    // Long after the grace time: the segment has what it has (I13).
    w.run(Span::seconds(30));
    expect_progress(&mut w, Span::seconds(2));
    assert_eq!(w.config(w.segment()).missing(), 1);
    w.check_books();
    w.start(lost);
    expect_whole(&mut w, Span::seconds(15));
    w.verify();
}
