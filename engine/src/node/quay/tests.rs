//! What a quay says, and does not say, while its machines are not open yet.
#![allow(clippy::unwrap_used)]

use engine_core::config::Config;
use engine_core::ids::{BootCount, BootId, ClusterId, DeviceId, Generation, Revision, VolumeId};
use engine_core::limits::{EXTENT_SIZE, WAL_SIZE_MIN};
use engine_core::openings::Openings;

use super::*;
use crate::device::memory::{Disk, MemoryDevice};
use crate::store::{self, Geometry, ShardStore, Superblock};

const CLUSTER: ClusterId = ClusterId(7);
const OWN: NodeId = NodeId(1);
const NOW: Time = Time(1_000_000_000);

/// Keeps what is said to the authority.
#[derive(Default)]
struct Said(Vec<ToAuthority>);

impl Wires for Said {
    fn peer(&mut self, _: NodeId, _: Lane, _: PeerMessage) {}

    fn is_up(&self, _: NodeId) -> bool {
        false
    }

    fn client(&mut self, _: ClientRef, _: Reply) {}

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
