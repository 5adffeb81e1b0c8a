//! A backup whose extent is damaged, and a primary that nobody can help.

use super::*;
use crate::config::Config;
use crate::ids::{Epoch, Generation, Incarnation, SegmentId, VolumeId};
use crate::record::{Blocks, Meta, Recovered, Standing};
use crate::replica::io::Input;

const PRIMARY: NodeId = NodeId(1);
const OWN: NodeId = NodeId(2);
const EXTENT: ExtentIndex = ExtentIndex(3);

/// In step with its primary, everything up to 5 committed.
fn backup() -> (Replica, Time) {
    let segment = SegmentId { volume: VolumeId(1), index: 0 };
    let config = Config {
        segment,
        incarnation: Incarnation(1),
        epoch: Epoch(4),
        primary: PRIMARY,
        members: vec![PRIMARY, OWN],
        candidates: vec![],
        electable: vec![PRIMARY, OWN],
        former: vec![],
        generation: Generation(1),
        copies: 2,
        min_copies: 1,
        extents: 512,
    };
    let meta = Meta { promised: Epoch(4), log_epoch: Epoch(4), config: config.clone(), standing: Standing::Member };
    let recovered = Recovered { segment, meta, commit: Seq(5), tail: vec![], damaged: false };
    let now = Time(0) + Span::seconds(10);
    let mut replica = Replica::open(OWN, recovered, Span::seconds(1), now, 1);
    say(&mut replica, now, Input::PeerUp(PRIMARY));
    let advance = Peer::Advance { config, log_epoch: Epoch(4), commit: Seq(5), sent: now };
    say(&mut replica, now, Input::Peer { from: PRIMARY, message: advance });
    (replica, now)
}

fn say(replica: &mut Replica, now: Time, input: Input) -> Vec<Effect> {
    let mut effects = Effects::new();
    replica.handle(now, input, &mut effects);
    effects.drain().collect()
}

fn asks(effects: &[Effect]) -> usize {
    effects.iter().filter(|effect| matches!(effect, Effect::Send { message: Peer::CopyGet { .. }, .. })).count()
}

fn data(stamp: u64) -> Input {
    let blocks = Blocks { data: bytes::Bytes::new(), sums: bytes::Bytes::new() };
    let copy = ExtentCopy { extent: EXTENT, stamp: Seq(stamp), present: 0, blocks };
    Input::Peer { from: PRIMARY, message: Peer::CopyData { epoch: Epoch(4), copy } }
}

fn mends(effects: &[Effect]) -> bool {
    matches!(effects, [Effect::Mend { .. }])
}

#[test]
fn a_backup_takes_a_copy_that_is_not_older_than_the_damage() {
    let (mut replica, now) = backup();
    assert_eq!(asks(&say(&mut replica, now, Input::Damaged(EXTENT))), 1);
    assert_eq!(asks(&say(&mut replica, now, Input::Damaged(EXTENT))), 0, "asked for once");
    assert!(say(&mut replica, now, data(4)).is_empty(), "what was committed here is not all in it (I4)");
    let soon = now + ASK_SOON;
    assert!(replica.wake_at().is_some_and(|wake| wake <= soon));
    assert_eq!(asks(&say(&mut replica, soon, Input::Tick)), 1);
    assert!(mends(&say(&mut replica, soon, data(5))));
    assert!(say(&mut replica, soon, data(6)).is_empty(), "one is on its way to the disk");
    say(&mut replica, soon, Input::Durable(Durable::Mended(EXTENT)));
    assert_eq!(replica.mended(), 1);
    assert_eq!(asks(&say(&mut replica, soon, Input::Damaged(EXTENT))), 0, "this device cannot hold it");
    say(&mut replica, soon + REST, Input::Tick);
    assert_eq!(asks(&say(&mut replica, soon + REST, Input::Damaged(EXTENT))), 1);
}

#[test]
fn what_nobody_asked_for_changes_nothing() {
    let (mut replica, now) = backup();
    assert!(say(&mut replica, now, data(9)).is_empty());
}

#[test]
fn damage_beyond_the_bound_is_left_to_be_found_again() {
    let (mut replica, now) = backup();
    let asked: usize = (0..500).map(|at| asks(&say(&mut replica, now, Input::Damaged(ExtentIndex(at))))).sum();
    assert_eq!((asked, replica.mends.extents.len()), (COPY_INFLIGHT, MENDS_MAX));
    // One is in: the next has its turn.
    assert!(mends(&say(&mut replica, now, data(5))));
    assert_eq!(asks(&say(&mut replica, now, Input::Durable(Durable::Mended(EXTENT)))), 1);
}

#[test]
fn without_its_primary_a_backup_waits_to_be_asked_again() {
    let (mut replica, now) = backup();
    say(&mut replica, now, Input::PeerDown { node: PRIMARY, refused: false });
    assert_eq!(asks(&say(&mut replica, now, Input::Damaged(EXTENT))), 0);
    assert!(replica.mends.wakes().is_none());
}
