//! Golden files and hostile bytes.
#![allow(clippy::unwrap_used, clippy::cast_possible_truncation)]

use std::path::Path;

use bytes::Bytes;
use engine_core::ids::{BlockIndex, BootCount, ClusterId, DeviceId, ExtentIndex, NodeId, Revision, VolumeId};
use engine_core::random::Random;
use engine_core::record::{Blocks, Change, Entry, Record};

use super::*;
use crate::store::map::Map;
use crate::store::superblock::{Geometry, Superblock};

fn sample_meta(standing: Standing) -> Meta {
    let config = Config {
        segment: SegmentId { volume: VolumeId(5), index: 6 },
        incarnation: Incarnation(2),
        epoch: Epoch(9),
        primary: NodeId(1),
        members: vec![NodeId(1), NodeId(2)],
        candidates: vec![NodeId(3)],
        electable: vec![NodeId(1), NodeId(2)],
        former: vec![NodeId(4)],
        generation: Generation(7),
        copies: 3,
        min_copies: 2,
        extents: 512,
    };
    Meta { promised: Epoch(10), log_epoch: Epoch(9), config, standing }
}

fn samples() -> Vec<WalRecord> {
    let segment = SegmentId { volume: VolumeId(5), index: 6 };
    let entry = |seq, change| {
        let entry = Entry { epoch: Epoch(9), seq: Seq(seq), change };
        WalRecord::Core(Record::Prepare { segment, commit: Seq(seq - 1), entry })
    };
    let data = Bytes::from((0..8192u32).map(|at| (at % 251) as u8).collect::<Vec<_>>());
    let blocks = Blocks { data, sums: Bytes::from_static(&[1, 2, 3, 4, 5, 6, 7, 8]) };
    let mut sums = Box::new([0; 32]);
    (sums[0], sums[31]) = (11, 12);
    let (incarnation, extent, stamp) = (Incarnation(2), ExtentIndex(3), Seq(8));
    vec![
        WalRecord::Core(Record::Create { segment, meta: sample_meta(Standing::Candidate { base: Seq(4) }) }),
        WalRecord::Core(Record::State { segment, meta: sample_meta(Standing::Joining { base: Seq(5) }) }),
        WalRecord::Core(Record::State { segment, meta: sample_meta(Standing::Stale { base: Seq(6) }) }),
        WalRecord::Core(Record::State { segment, meta: sample_meta(Standing::Member) }),
        entry(7, Change::Write { block: BlockIndex(40), blocks }),
        entry(8, Change::Zero { block: BlockIndex(0), count: 64 }),
        entry(9, Change::Nothing),
        WalRecord::Core(Record::Truncate { segment, above: Seq(8) }),
        WalRecord::Commit { segment, through: Seq(8) },
        WalRecord::Map(MapRecord { segment, incarnation, extent, stamp, slab: Some(17), present: 1 | 1 << 31, sums }),
        WalRecord::Damaged { segment },
        WalRecord::Core(Record::Drop { segment: SegmentId { volume: VolumeId(8), index: 0 }, incarnation }),
    ]
}

fn sample_batch() -> Vec<u8> {
    let header = BatchHeader { device: DeviceId(0xABCD), shard: 1, boot: BootCount(3), number: 42, len: 0, sum: 0 };
    let records = samples();
    let bytes = records.iter().map(record_len).sum();
    encode_batch(header, records.iter(), bytes).to_vec()
}

fn sample_body() -> Vec<u8> {
    let mut map = Map::default();
    samples().into_iter().take(11).for_each(|record| map.absorb(record));
    encode_body(&map)
}

fn sample_superblock() -> Superblock {
    Superblock {
        features: 0,
        cluster: ClusterId(0x1234),
        node: NodeId(9),
        device: DeviceId(0xABCD),
        boot: BootCount(3),
        geometry: Geometry { size: 1 << 30, shards: 2, wal_size: 64 << 20 },
        revision: Revision(77),
    }
}

/// Compares with the file byte for byte; `BREAKWATER_BLESS=1` writes it (only ever for a new version).
fn golden(name: &str, bytes: &[u8]) {
    let path = Path::new(env!("CARGO_MANIFEST_DIR")).join("../fixtures/disk/v0").join(name);
    if std::env::var_os("BREAKWATER_BLESS").is_some() {
        std::fs::create_dir_all(path.parent().unwrap()).unwrap();
        std::fs::write(&path, bytes).unwrap();
    }
    let want = std::fs::read(&path).unwrap_or_else(|error| panic!("{}: {error}", path.display()));
    assert!(want == bytes, "{name} is no longer what version {VERSION} wrote: that needs a new version");
}

#[test]
fn version_0_is_what_it_was() {
    golden("superblock.bin", &encode_superblock(&sample_superblock()));
    golden("batch.bin", &sample_batch());
    golden("checkpoint-body.bin", &sample_body());
    let body = sample_body();
    let header = CheckpointHeader {
        device: DeviceId(0xABCD),
        shard: 1,
        number: 5,
        boot: BootCount(3),
        position: 8192,
        batch: 43,
        len: body.len() as u64,
        sum: crc(&body),
    };
    golden("checkpoint-header.bin", &encode_header(&header));
    assert_eq!(decode_header(&encode_header(&header)).unwrap(), header);
}

#[test]
fn what_is_written_is_read() {
    assert_eq!(decode_superblock(&encode_superblock(&sample_superblock())).unwrap(), Ok(sample_superblock()));
    let batch = sample_batch();
    let header = peek(&batch).unwrap();
    assert_eq!(decode_batch(&header, &batch[..header.len as usize]).unwrap(), samples());
    let map = decode_body(&sample_body(), 64).unwrap();
    assert_eq!((map.booked, map.slabs().collect::<Vec<_>>()), (512, vec![17]));
    assert_eq!(encode_body(&map), sample_body());
}

#[test]
fn hostile_bytes_are_errors_and_nothing_else() {
    let mut random = Random::new(1);
    let (batch, body) = (sample_batch(), sample_body());
    let (block, head) = (encode_superblock(&sample_superblock()).to_vec(), batch[..64].to_vec());
    for _ in 0..20_000 {
        let mut spoil = |bytes: &[u8]| {
            let mut bytes = bytes[..random.between(0, bytes.len() as u64) as usize].to_vec();
            for _ in 0..random.between(0, 4) {
                if !bytes.is_empty() {
                    let at = random.between(0, (bytes.len() as u64 - 1).min(600)) as usize;
                    bytes[at] = random.next_u64() as u8;
                }
            }
            bytes
        };
        let _ = decode_superblock(&spoil(&block));
        let _ = decode_header(&spoil(&block));
        let _ = decode_body(&spoil(&body), 64);
        let _ = peek(&spoil(&head));
        // With a right checksum, so that the records themselves are read.
        let bytes = spoil(&batch);
        if let (Some(header), true) = (peek(&batch), bytes.len() >= BATCH_HEADER) {
            let header = BatchHeader { len: bytes.len() as u32, sum: crc(&bytes[BATCH_HEADER..]), ..header };
            let _ = decode_batch(&header, &bytes);
        }
    }
}
