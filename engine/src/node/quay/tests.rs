//! What a quay says, and does not say, while its machines are not open yet; how volumes share it.
#![allow(clippy::unwrap_used)]

use engine_core::config::Config;
use engine_core::ids::{
    BlockIndex, BootCount, BootId, ClusterId, DeviceId, Generation, RequestId, Revision, Seq, Session, VolumeId,
};
use engine_core::limits::{EXTENT_SIZE, FAIR_IN_HAND, FAIR_PATIENCE, WAL_SIZE_MIN};
use engine_core::message::Decision;
use engine_core::openings::Openings;
use engine_core::record::Change;

use super::*;
use crate::device::memory::{Disk, MemoryDevice};
use crate::store::{self, Geometry, ShardStore, Superblock};
use crate::wire::with_sums;

const CLUSTER: ClusterId = ClusterId(7);
const OWN: NodeId = NodeId(1);
const NOW: Time = Time(1_000_000_000);

/// When a copy that was alone from its beginning stands for election.
const LATER: Time = Time(20_000_000_000);

/// Keeps what is said to the authority, and to clients.
#[derive(Default)]
struct Said(Vec<ToAuthority>, Vec<Reply>);

impl Wires for Said {
    fn peer(&mut self, _: NodeId, _: Lane, _: PeerMessage) {}

    fn is_up(&self, _: NodeId) -> bool {
        false
    }

    fn client(&mut self, _: ClientRef, reply: Reply) {
        self.1.push(reply);
    }

    fn authority(&mut self, message: ToAuthority) {
        self.0.push(message);
    }
}

type Shard = Quay<ShardStore<MemoryDevice>, Said>;

fn blank() -> Disk {
    let size = (WAL_SIZE_MIN + (64 << 20) + 256 * EXTENT_SIZE).next_multiple_of(1 << 20);
    let geometry = Geometry::plan(size, 1, WAL_SIZE_MIN).unwrap();
    let (device, boot, revision) = (DeviceId(1), BootCount(0), Revision(0));
    let (features, compatible, openings) = (0, 0, Openings::default());
    let (cluster, node) = (CLUSTER, OWN);
    let superblock = Superblock { features, compatible, cluster, node, device, boot, geometry, revision, openings };
    let mut disk = Disk::new(size);
    store::format(&mut disk, &superblock).unwrap();
    disk
}

/// The shard as its process finds it: not serving yet.
fn start(disk: &Disk) -> Shard {
    let mut whole = disk.clone();
    let superblock = store::open(&mut whole, CLUSTER, OWN, BootId(1)).unwrap();
    let region = superblock.geometry.region(0);
    let store = ShardStore::open(&mut whole, disk.device(region.base, region.len), &superblock, 0).unwrap();
    Quay::new(OWN, 0, 1, store, Said::default())
}

fn hear(quay: &mut Shard, said: FromAuthority) -> Vec<ToAuthority> {
    quay.authority_said(NOW, said);
    run(quay)
}

fn run(quay: &mut Shard) -> Vec<ToAuthority> {
    // What a poll submits, a later one finishes.
    for _ in 0..8 {
        while quay.advance(NOW, &mut Vec::new()) {}
    }
    std::mem::take(&mut quay.wires().0)
}

fn first_configuration(index: u32) -> Config {
    Config {
        segment: SegmentId { volume: VolumeId(1), index },
        incarnation: Incarnation(1),
        epoch: Epoch(1),
        primary: NodeId(2),
        members: vec![NodeId(2), OWN],
        candidates: vec![],
        electable: vec![NodeId(2), OWN],
        former: vec![],
        generation: Generation(1),
        copies: 2,
        min_copies: 1,
        extents: 16,
    }
}

#[test]
fn nothing_is_confirmed_or_begun_before_the_machines_are_open() {
    let disk = blank();
    let mut quay = start(&disk);
    quay.serve(NOW, Span::ZERO);
    let config = first_configuration(0);
    let (segment, incarnation) = (config.segment, config.incarnation);
    let created = ToAuthority::Created { segment, incarnation, result: Ok(()) };
    assert_eq!(hear(&mut quay, FromAuthority::Create { config }), [created]);

    let mut quay = start(&disk);
    // I11: its volume was deleted meanwhile; the copy is found and not opened, and must not be said to be gone.
    assert_eq!(hear(&mut quay, FromAuthority::Release { segment, incarnation }), []);
    let other = first_configuration(1);
    assert_eq!(hear(&mut quay, FromAuthority::Create { config: other.clone() }), []);
    assert_eq!(quay.replicas().len(), 1);

    quay.serve(NOW, Span::ZERO);
    let said = run(&mut quay);
    assert!(said.contains(&ToAuthority::Released { segment, incarnation }), "{said:?}");
    let created = ToAuthority::Created { segment: other.segment, incarnation: other.incarnation, result: Ok(()) };
    assert!(said.contains(&created), "what is said only once is not lost: {said:?}");
    drop(quay);
    let left: Vec<SegmentId> = start(&disk).replicas().iter().map(|replica| replica.segment).collect();
    assert_eq!(left, [other.segment], "it was dropped before it was said to be gone");
}

/// Makes this shard the only holder and the primary of a volume's first segment.
fn lead(quay: &mut Shard, volume: u32) -> SegmentId {
    lead_segment(quay, SegmentId { volume: VolumeId(volume), index: 0 })
}

fn lead_segment(quay: &mut Shard, segment: SegmentId) -> SegmentId {
    let alone = vec![OWN];
    let config = Config {
        segment,
        primary: OWN,
        members: alone.clone(),
        electable: alone,
        copies: 1,
        extents: 64,
        ..first_configuration(0)
    };
    hear(quay, FromAuthority::Create { config: config.clone() });
    quay.tick(LATER);
    run(quay);
    let installed = Config { epoch: config.epoch.next(), ..config };
    quay.authority_said(LATER, FromAuthority::Decisions(vec![Decision::Installed(installed)]));
    run(quay);
    assert!(quay.replica(segment).unwrap().is_serving());
    segment
}

fn ask(quay: &mut Shard, segment: SegmentId, number: u64) {
    let block = BlockIndex(u32::try_from(number).unwrap());
    let blocks = with_sums(segment, block, vec![7; 4096].into());
    let op = Op::Write(Change::Write { block, blocks });
    let (generation, session, request) = (Generation(1), Session(1), RequestId(number));
    let request = Request { segment, epoch: Epoch(2), generation, session, request, op };
    quay.client_asks(LATER, ClientRef(u64::from(segment.volume.0)), request);
}

/// A shard that leads a busy volume and a quiet one, which has asked for something just now.
fn shared() -> (Shard, SegmentId, SegmentId) {
    let mut quay = start(&blank());
    quay.serve(NOW, Span::ZERO);
    let (busy, quiet) = (lead(&mut quay, 1), lead(&mut quay, 2));
    ask(&mut quay, quiet, 1);
    run(&mut quay);
    (quay, busy, quiet)
}

/// Lets the device finish one operation at a time until this segment is answered; gives how many others were before.
fn answered_before(quay: &mut Shard, segment: SegmentId) -> usize {
    quay.wires().1.clear();
    quay.store_mut().device_mut().hold(true);
    for _ in 0..10_000 {
        while quay.advance(LATER, &mut Vec::new()) {}
        let replies = &quay.wires().1;
        if let Some(at) = replies.iter().position(|reply| reply.segment == segment) {
            assert_eq!(replies[at].outcome, Outcome::Written);
            return at;
        }
        quay.store_mut().device_mut().finish(0);
    }
    panic!("nobody answered {segment}");
}

#[test]
fn two_hundred_and_fifty_six_waiting_requests_hold_up_a_neighbour_by_what_may_be_in_hand() {
    let (mut quay, busy, quiet) = shared();
    assert_eq!(quay.wires().1.len(), 1);

    quay.store_mut().device_mut().hold(true);
    (1..=256).for_each(|number| ask(&mut quay, busy, number));
    ask(&mut quay, quiet, 2);
    let in_hand = usize::try_from(FAIR_IN_HAND / (2 * 4096)).unwrap();
    let before = answered_before(&mut quay, quiet);
    assert!(before <= in_hand, "{before} of the busy volume's writes went before");

    // Every one of them is answered in the end, and nothing is left in hand.
    quay.store_mut().device_mut().hold(false);
    (0..256).for_each(|_| drop(run(&mut quay)));
    assert_eq!(quay.wires().1.iter().filter(|reply| reply.segment == busy).count(), 256);
    assert_eq!(quay.replica(busy).unwrap().in_hand(LATER), Cost::default());
}

#[test]
fn what_a_client_that_went_had_waiting_is_dropped() {
    let (mut quay, busy, _) = shared();
    quay.store_mut().device_mut().hold(true);
    (1..=256).for_each(|number| ask(&mut quay, busy, number));
    // I2: its next session, elsewhere, says what of it still counts.
    quay.client_gone(LATER, ClientRef(1));
    quay.store_mut().device_mut().hold(false);
    (0..256).for_each(|_| drop(run(&mut quay)));
    let written = quay.replica(busy).unwrap().view().last;
    assert_eq!(written, Seq(FAIR_IN_HAND / (2 * 4096)));
}

const BACKUP: NodeId = NodeId(2);

/// Makes this shard the primary of a volume's first segment, and hears from its one backup that it follows.
fn lead_with_backup(quay: &mut Shard, volume: u32) -> SegmentId {
    let segment = SegmentId { volume: VolumeId(volume), index: 0 };
    let config = Config { segment, extents: 64, ..first_configuration(0) };
    hear(quay, FromAuthority::Create { config: config.clone() });
    let installed = Config { epoch: config.epoch.next(), primary: OWN, ..config };
    quay.authority_said(LATER, FromAuthority::Decisions(vec![Decision::Installed(installed.clone())]));
    quay.peer_up(LATER, BACKUP);
    run(quay);
    let (epoch, last) = (installed.epoch, Seq(0));
    backup_says(quay, segment, Peer::Adopted { epoch, log_epoch: epoch, last, commit: last, sent: LATER });
    assert!(quay.replica(segment).unwrap().is_serving());
    segment
}

fn backup_says(quay: &mut Shard, segment: SegmentId, body: Peer) {
    quay.peer_said(LATER, BACKUP, PeerMessage { segment, incarnation: Incarnation(1), body });
    run(quay);
}

fn answers(quay: &mut Shard, segment: SegmentId) -> usize {
    quay.wires().1.iter().filter(|reply| reply.segment == segment && reply.outcome == Outcome::Written).count()
}

/// A shard whose backup of a busy volume's first segment owes acknowledgements; behind that one's requests wait those of
/// the volume's other segment, and of a neighbour, which have no such backup.
fn held_up() -> (Shard, SegmentId, SegmentId, SegmentId) {
    let mut quay = start(&blank());
    quay.serve(NOW, Span::ZERO);
    let quiet = lead(&mut quay, 2);
    let busy = lead_with_backup(&mut quay, 1);
    let other = lead_segment(&mut quay, SegmentId { index: 1, ..busy });
    ask(&mut quay, quiet, 1);
    run(&mut quay);
    (1..=256).for_each(|number| ask(&mut quay, busy, number));
    ask(&mut quay, other, 1);
    (0..64).for_each(|_| drop(run(&mut quay)));
    assert_eq!(quay.replica(busy).unwrap().in_hand(LATER), Cost(FAIR_IN_HAND), "the backup has it before it");
    assert_eq!((answers(&mut quay, busy), answers(&mut quay, other)), (0, 0));
    (quay, busy, other, quiet)
}

#[test]
fn what_waits_for_a_member_that_is_gone_holds_up_nobody() {
    let (mut quay, busy, other, quiet) = held_up();
    // Its process died. The epoch without it is not there yet, and no time has passed.
    quay.peer_down(LATER, BACKUP, false);
    (2..=32).for_each(|number| ask(&mut quay, quiet, number));
    (0..64).for_each(|_| drop(run(&mut quay)));
    assert_eq!((answers(&mut quay, busy), answers(&mut quay, other), answers(&mut quay, quiet)), (0, 1, 32));
    assert_eq!(quay.replica(busy).unwrap().view().last, Seq(256), "all of it is ordered and waits there");

    // It is back and has nothing of it: now it has everything before it, and that counts.
    let last = quay.replica(busy).unwrap().view().last;
    quay.peer_up(LATER, BACKUP);
    run(&mut quay);
    let epoch = Epoch(2);
    let commit = Seq(0);
    let said = Peer::Adopted { epoch, log_epoch: epoch, last: commit, commit, sent: LATER };
    backup_says(&mut quay, busy, said);
    assert_eq!(quay.replica(busy).unwrap().in_hand(LATER), Cost::of(256, 256 * 4096));
    backup_says(&mut quay, busy, Peer::PrepareAck { epoch, durable: last });
    assert_eq!(answers(&mut quay, busy), 256);
    assert_eq!(quay.replica(busy).unwrap().in_hand(LATER), Cost::default());
}

#[test]
fn what_waits_for_a_member_that_stands_still_holds_up_nobody_for_long() {
    let (mut quay, busy, other, _) = held_up();
    let later = LATER + FAIR_PATIENCE;
    assert_eq!(quay.replica(busy).unwrap().in_hand(later), Cost::default());
    // A beat or anything else that happens to it after that, and the volume's other segment goes on.
    quay.peer_said(
        later,
        BACKUP,
        PeerMessage {
            segment: busy,
            incarnation: Incarnation(1),
            body: Peer::PrepareAck { epoch: Epoch(2), durable: Seq(0) },
        },
    );
    for _ in 0..64 {
        for _ in 0..8 {
            while quay.advance(later, &mut Vec::new()) {}
        }
    }
    assert_eq!((answers(&mut quay, busy), answers(&mut quay, other)), (0, 1));

    // One acknowledgement, and it goes on: what it has before it counts again.
    backup_says(&mut quay, busy, Peer::PrepareAck { epoch: Epoch(2), durable: Seq(8) });
    assert_eq!(answers(&mut quay, busy), 8);
    assert!(quay.replica(busy).unwrap().in_hand(LATER) > Cost::default());
}
