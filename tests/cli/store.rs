//! `nodectl store`: what it says of a device, and that it only reads.

use std::fs::{File, OpenOptions};
use std::os::fd::AsRawFd;
use std::os::unix::fs::FileExt;
use std::path::{Path, PathBuf};

use bytes::Bytes;
use engine::device::WholeDevice;
use engine::device::buffer::AlignedBuf;
use engine::device::memory::Disk;
use engine::store::{self, Geometry, ShardStore, Store, Superblock, Ticket};
use engine_core::config::Config;
use engine_core::ids::{
    BlockIndex, BootCount, ClusterId, DeviceId, Epoch, Generation, Incarnation, NodeId, Revision, SegmentId, Seq,
    VolumeId,
};
use engine_core::record::{Blocks, Change, Entry, Meta, Record, Standing, sum_bytes};
use serde_json::Value;

use crate::exits;
use crate::support::scratch::Scratch;

const SIZE: u64 = 14 << 20;
const SEGMENT: SegmentId = SegmentId { volume: VolumeId(3), index: 0 };

fn superblock() -> Superblock {
    Superblock {
        features: 0,
        compatible: 0,
        cluster: ClusterId(7),
        node: NodeId(1),
        device: DeviceId(99),
        boot: BootCount(0),
        geometry: Geometry { size: SIZE, shards: 1, wal_size: 512 * 1024 },
        revision: Revision(5),
        openings: engine_core::openings::Openings::default(),
    }
}

/// Writes a disk to a file. Where the last block of the test's data is.
fn dump(disk: &mut Disk, path: &Path) -> Option<u64> {
    let file = File::create(path).unwrap();
    let (mut block, mut last) = (AlignedBuf::zeroed(4096), None);
    for at in (0..SIZE).step_by(4096) {
        disk.read_at(at, &mut block).unwrap();
        file.write_all_at(&block, at).unwrap();
        if block.iter().all(|byte| *byte == 0xA5) {
            last = Some(at);
        }
    }
    last
}

/// A device file with one replica, of which one extent is written and applied. Where its data is.
fn device(scratch: &Scratch, name: &str) -> (PathBuf, u64) {
    let mut disk = Disk::new(SIZE);
    let Superblock { cluster, node, geometry, .. } = superblock();
    store::format(&mut disk, &superblock()).unwrap();
    let superblock = store::open(&mut disk, cluster, node, engine_core::ids::BootId(1)).unwrap();
    let region = geometry.region(0);
    let device = disk.device(region.base, region.len);
    let mut shard = ShardStore::open(&mut disk, device, &superblock, 0).unwrap();
    let config = Config {
        segment: SEGMENT,
        incarnation: Incarnation(1),
        epoch: Epoch(2),
        primary: node,
        members: vec![node],
        candidates: vec![],
        electable: vec![node],
        former: vec![],
        generation: Generation(1),
        copies: 1,
        min_copies: 1,
        extents: 8,
    };
    let meta = Meta { promised: Epoch(2), log_epoch: Epoch(2), config, standing: Standing::Member };
    let data = Bytes::from(vec![0xA5; 2 * 4096]);
    let sums: Vec<u8> =
        (0..2).flat_map(|block| sum_bytes(store::block_sum(SEGMENT, BlockIndex(block), &data[..4096]))).collect();
    let change = Change::Write { block: BlockIndex(0), blocks: Blocks { data, sums: sums.into() } };
    let entry = Entry { epoch: Epoch(2), seq: Seq(1), change };
    shard.persist(vec![Record::Create { segment: SEGMENT, meta }], Ticket(1));
    shard.persist(vec![Record::Prepare { segment: SEGMENT, commit: Seq(0), entry }], Ticket(2));
    let mut events = Vec::new();
    for step in 0..1000 {
        shard.poll(&mut events);
        if step == 20 {
            shard.commit(SEGMENT, Seq(1));
            shard.settle();
        }
    }
    assert!(shard.is_quiet());
    drop(shard);
    let path = scratch.join(name);
    let last = dump(&mut disk, &path).unwrap();
    (path, last - 4096)
}

fn flip(path: &Path, offset: u64, bits: u8) {
    let file = OpenOptions::new().read(true).write(true).open(path).unwrap();
    let mut byte = [0];
    file.read_exact_at(&mut byte, offset).unwrap();
    file.write_all_at(&[byte[0] ^ bits], offset).unwrap();
}

fn content(path: &Path) -> u32 {
    crc32fast::hash(&std::fs::read(path).unwrap())
}

/// Runs it on a device, which stays what it is; gives the JSON document, the table and what was said.
fn look(code: i32, args: &[&str], path: &Path) -> (Value, String, String) {
    let before = content(path);
    let args = [&["store"][..], args, &[path.to_str().unwrap()]].concat();
    let (table, said) = exits(code, &args);
    let (json, _) = exits(code, &[&args[..], &["-o", "json"]].concat());
    assert_eq!(content(path), before, "nodectl {args:?} changed the device");
    (serde_json::from_str(&json).unwrap_or(Value::Null), table, said)
}

#[test]
fn a_whole_device_is_shown_and_clean() {
    let scratch = Scratch::new("store-whole");
    let (path, _) = device(&scratch, "device");
    let (json, table, _) = look(0, &["inspect"], &path);
    assert_eq!(json["superblock"]["node"], "n1");
    assert_eq!(json["superblock"]["version"], 1);
    assert_eq!(json["copies"].as_array().unwrap().len(), 4);
    let shard = &json["shards"][0];
    assert_eq!((&shard["space"]["used"], &shard["replicas"][0]["segment"]), (&1.into(), &"3.0".into()));
    assert_eq!((&shard["replicas"][0]["commit"], &shard["roots"][1]["name"]), (&1.into(), &"B".into()));
    assert_eq!(shard["wal"]["size"], 512 * 1024);
    for word in ["format version", "current", "root A", "WAL", "checksum pages", "3.0", "member", "booked"] {
        assert!(table.contains(word), "no `{word}` in:\n{table}");
    }
    let (json, table, said) = look(0, &["check", "--data"], &path);
    assert_eq!((json["problems"].as_array().unwrap().len(), &json["verified_bytes"]), (0, &8192.into()));
    assert!(table.contains("clean") && table.contains("8 KiB") && said.is_empty(), "{table}{said}");
}

#[test]
fn what_is_wrong_is_7_and_listed() {
    let scratch = Scratch::new("store-wrong");
    let (path, home) = device(&scratch, "device");
    flip(&path, home + 100, 4);
    look(0, &["check"], &path);
    let (json, table, said) = look(7, &["check", "--data"], &path);
    let problem = &json["problems"][0];
    assert_eq!((&problem["offset"], &problem["structure"]), (&home.into(), &"data".into()));
    assert_eq!((&problem["segment"], &problem["block"]), (&"3.0".into(), &0.into()));
    assert_eq!((&problem["verdict"], json["verified_bytes"].as_u64()), (&"mended".into(), Some(4096)));
    assert!(problem["next"].as_str().unwrap().contains("scrub"));
    assert!(table.contains("segment 3.0 block 0") && table.contains("mended"), "{table}");
    assert!(said.contains("1 problem") && said.contains("untouched") && said.contains("next: "), "{said}");
    flip(&path, 50, 1);
    let (json, ..) = look(7, &["check"], &path);
    assert_eq!((&json["problems"][0]["verdict"], &json["copies"][0]["state"]), (&"harmless".into(), &"damaged".into()));
    look(0, &["inspect"], &path);
    (1..4).for_each(|copy| flip(&path, copy * 256 * 1024 + 50, 1));
    let (json, _, said) = look(7, &["check"], &path);
    assert_eq!(json["superblock"], Value::Null);
    assert!(said.contains("replace-device"), "{said}");
}

#[test]
fn strangers_are_refused_with_their_own_codes() {
    let scratch = Scratch::new("store-strangers");
    let named = |name: &str, content: &[u8]| {
        let path = scratch.join(name);
        std::fs::write(&path, content).unwrap();
        path
    };
    let noise: Vec<u8> = (0..3_000_001u32).map(|at| (at.wrapping_mul(2_654_435_761) >> 13).to_le_bytes()[0]).collect();
    for (path, word) in [
        (named("empty", b""), "not formatted"),
        (named("zeros", &[0; 1 << 20]), "not formatted"),
        (named("short", b"hello"), "not"),
        (named("noise", &noise), "not Breakwater's"),
    ] {
        for command in ["inspect", "check"] {
            let (_, table, said) = look(5, &[command], &path);
            assert!(table.is_empty() && said.contains(word), "{}: {said}", path.display());
        }
    }
    let mut disk = Disk::new(SIZE);
    store::format(&mut disk, &Superblock { features: 1 << 6, ..superblock() }).unwrap();
    let (featured, versioned) = (scratch.join("features"), scratch.join("version"));
    dump(&mut disk, &featured);
    let mut disk = Disk::new(SIZE);
    store::format(&mut disk, &superblock()).unwrap();
    dump(&mut disk, &versioned);
    (0..4).for_each(|copy| flip(&versioned, copy * 256 * 1024 + 8, 2));
    for (path, word) in [(featured, "features"), (versioned, "version 3")] {
        let (_, _, said) = look(4, &["check"], &path);
        assert!(said.contains(word) && said.contains("next: "), "{said}");
        look(4, &["inspect"], &path);
    }
    exits(3, &["store", "check", "nowhere/device"]);
    exits(1, &["store", "check", scratch.path().to_str().unwrap()]);
}

#[test]
fn a_device_in_use_is_5_and_left_alone() {
    let scratch = Scratch::new("store-used");
    let (path, _) = device(&scratch, "device");
    let file = File::open(&path).unwrap();
    // SAFETY: a plain system call on a descriptor we own.
    assert_eq!(unsafe { libc::flock(file.as_raw_fd(), libc::LOCK_EX) }, 0);
    for command in ["inspect", "check"] {
        let (_, _, said) = look(5, &[command], &path);
        assert!(said.contains("in use") && said.contains("scrub"), "{said}");
    }
}
