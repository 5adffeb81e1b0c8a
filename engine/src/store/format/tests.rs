//! Golden files and hostile bytes.
#![allow(clippy::unwrap_used, clippy::cast_possible_truncation)]

mod fuzz;

use std::path::Path;

use bytes::Bytes;
use engine_core::ids::{BlockIndex, BootCount, BootId, ClusterId, DeviceId, ExtentIndex, NodeId, Revision, VolumeId};
use engine_core::openings::{Opening, Openings};
use engine_core::record::{Blocks, Change, Entry, Record};

use super::*;
use crate::device::buffer::AlignedBuf;
use crate::store::entry::{Kind, LogEntry, Write};
use crate::store::extents::{CHUNK_EXTENTS, Home};
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
        WalRecord::new(Record::Prepare { segment, commit: Seq(seq - 1), entry })
    };
    let data = Bytes::from((0..8192u32).map(|at| (at % 251) as u8).collect::<Vec<_>>());
    let sum = |at: u32| crate::store::block_sum(segment, BlockIndex(40 + at), &data[at as usize * 4096..][..4096]);
    let block_sums: Vec<u8> = (0..2).flat_map(|block| sum(block).to_le_bytes()).collect();
    let blocks = Blocks { data: data.clone(), sums: Bytes::from(block_sums) };
    // Block 63, the extent behind it in a slab of its own, and block 96.
    let sum = |block: u32, at: usize| crate::store::block_sum(segment, BlockIndex(block), &data[at..at + 4096]);
    let mut long: Vec<u8> = [9; 34 * 4].to_vec();
    long[..4].copy_from_slice(&sum(63, 0).to_le_bytes());
    long[33 * 4..].copy_from_slice(&sum(96, 4096).to_le_bytes());
    let (block, sums) = (BlockIndex(63), Bytes::from(long));
    let write = Write { block, count: 34, sums, data: data.clone(), slabs: vec![(ExtentIndex(2), 5)], suspect: false };
    let redirected = LogEntry { epoch: Epoch(9), kind: Kind::Write(write) };
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
        WalRecord::Map(MapRecord {
            segment,
            incarnation,
            extent,
            stamp,
            repair: false,
            slab: Some(17),
            present: 1 | 1 << 31,
            sums,
        }),
        WalRecord::Map(MapRecord {
            segment,
            incarnation,
            extent: ExtentIndex(4),
            stamp,
            repair: true,
            slab: None,
            present: 0,
            sums: Box::new([0; 32]),
        }),
        WalRecord::Entry { segment, commit: Seq(8), seq: Seq(10), entry: redirected },
        WalRecord::Damaged { segment },
        WalRecord::Core(Record::Drop { segment: SegmentId { volume: VolumeId(8), index: 0 }, incarnation }),
    ]
}

fn sample_batch() -> Vec<u8> {
    let (device, boot) = (DeviceId(0xABCD), BootCount(3));
    let header = BatchHeader { device, shard: 1, boot, number: 42, head: 0, len: 0, sum: 0 };
    let records = samples();
    let size = records.iter().map(record_size).fold(Size::default(), |sum, size| sum + size);
    let (front, data) = encode_batch(&header, records.iter(), size);
    let mut batch = front.to_vec();
    data.iter().for_each(|data| batch.extend_from_slice(data));
    assert_eq!(batch.len() as u64, size.batch());
    batch
}

fn sample_root() -> Vec<RootReplica> {
    let replica = |volume, pages| RootReplica {
        segment: SegmentId { volume: VolumeId(volume), index: 6 },
        meta: sample_meta(Standing::Member),
        damaged: volume == 6,
        commit: Seq(8),
        pages,
    };
    let pages = vec![RootPage { chunk: 0, place: 7, sum: 0x1234 }, RootPage { chunk: 2, place: 3, sum: 0x5678 }];
    vec![replica(5, pages), replica(6, vec![])]
}

fn sample_body() -> Vec<u8> {
    let mut body = Vec::new();
    sample_root().iter().for_each(|replica| put_replica(&mut body, replica));
    body
}

fn page_label() -> PageLabel {
    let segment = SegmentId { volume: VolumeId(5), index: 6 };
    PageLabel { device: DeviceId(0xABCD), shard: 1, segment, chunk: 2 }
}

fn sample_homes() -> [Home; CHUNK_EXTENTS] {
    let mut homes = [Home::default(); CHUNK_EXTENTS];
    homes[0] = Home { stamp: Seq(8), slab: 17, present: 1 | 1 << 31 };
    homes[CHUNK_EXTENTS - 1] = Home { stamp: Seq(9), ..Home::default() };
    homes
}

const CELLS: CellLabel = CellLabel { device: DeviceId(0xABCD), shard: 1 };

fn sample_cells() -> AlignedBuf {
    let mut page = AlignedBuf::zeroed(4096);
    let sums = std::array::from_fn(|block| 100 + block as u32);
    put_sums(&mut page, CELLS, PAGE_SLABS + 4, u32::MAX, &sums);
    put_sums(&mut page, CELLS, PAGE_SLABS + 23, 1 << 31, &sums);
    page
}

fn sample_openings() -> Openings {
    let opening = |count| Opening { id: BootId(0xB007_0000 + u128::from(count)), count: BootCount(count) };
    let mut openings = Openings::default();
    openings.take_in(opening(1));
    (2..=3).for_each(|count| openings.open(opening(count)));
    openings
}

fn sample_superblock() -> Superblock {
    Superblock {
        features: 0,
        compatible: 0,
        cluster: ClusterId(0x1234),
        node: NodeId(9),
        device: DeviceId(0xABCD),
        boot: BootCount(3),
        geometry: Geometry { size: 1 << 30, shards: 2, wal_size: 64 << 20 },
        revision: Revision(77),
        openings: sample_openings(),
    }
}

/// Compares with the file byte for byte; `BREAKWATER_BLESS=1` writes it (only ever for a new version).
fn golden(name: &str, bytes: &[u8]) {
    let path = Path::new(env!("CARGO_MANIFEST_DIR")).join("../fixtures/disk/v1").join(name);
    if std::env::var_os("BREAKWATER_BLESS").is_some() {
        std::fs::create_dir_all(path.parent().unwrap()).unwrap();
        std::fs::write(&path, bytes).unwrap();
    }
    let want = std::fs::read(&path).unwrap_or_else(|error| panic!("{}: {error}", path.display()));
    assert!(want == bytes, "{name} is no longer what version {VERSION} wrote: that needs a new version");
}

fn sample_header() -> RootHeader {
    let body = sample_body();
    RootHeader {
        device: DeviceId(0xABCD),
        shard: 1,
        number: 5,
        boot: BootCount(3),
        position: 8192,
        oldest: 40,
        batch: 43,
        len: body.len() as u64,
        sum: crc(&body),
    }
}

#[test]
fn version_1_is_what_it_was() {
    golden("superblock.bin", &encode_superblock(&sample_superblock()));
    golden("batch.bin", &sample_batch());
    golden("root-header.bin", &encode_header(&sample_header()));
    golden("root-body.bin", &sample_body());
    golden("map-page.bin", &encode_page(&page_label(), &sample_homes()).0);
    golden("checksum-page.bin", &sample_cells());
}

#[test]
fn what_is_written_is_read() {
    assert_eq!(decode_superblock(&encode_superblock(&sample_superblock())).unwrap(), Ok(sample_superblock()));
    let batch = sample_batch();
    let header = peek(&batch).unwrap();
    assert_eq!(header.len as usize, batch.len());
    assert_eq!(decode_batch(&header, &batch).unwrap(), samples());
    assert_eq!(decode_header(&encode_header(&sample_header())).unwrap(), sample_header());
    assert_eq!(decode_body(&sample_body()).unwrap(), sample_root());
    let (page, sum) = encode_page(&page_label(), &sample_homes());
    assert_eq!(*decode_page(&page, &page_label(), sum).unwrap(), sample_homes());
    assert!(decode_page(&page, &page_label(), sum ^ 1).is_err(), "an older page in its place");
    assert!(decode_page(&page, &PageLabel { chunk: 3, ..page_label() }, sum).is_err());
    let cells = sample_cells();
    for slab in [PAGE_SLABS + 3, PAGE_SLABS + 4, PAGE_SLABS + 5, PAGE_SLABS + 23] {
        assert!(is_whole(&cells, CELLS, slab), "{slab}");
    }
    assert!(!is_whole(&cells, CELLS, PAGE_SLABS) && !is_whole(&cells, CELLS, 4), "no cell, or another page's");
    assert_eq!((sum_in(&cells, PAGE_SLABS + 4, 0), sum_in(&cells, PAGE_SLABS + 4, 31)), (100, 131));
    assert_eq!((sum_in(&cells, PAGE_SLABS + 23, 30), sum_in(&cells, PAGE_SLABS + 23, 31)), (0, 131));
}

#[test]
fn data_that_does_not_match_is_suspect_and_costs_nobody_else_anything() {
    let mut batch = sample_batch();
    let last = batch.len() - 1;
    batch[last] ^= 1;
    let header = peek(&batch).unwrap();
    let records = decode_batch(&header, &batch).unwrap();
    let suspects = records.iter().filter(
        |record| matches!(record, WalRecord::Entry { entry: LogEntry { kind: Kind::Write(write), .. }, .. } if write.suspect),
    );
    assert_eq!((suspects.count(), records.len()), (1, samples().len()));
}

/// Bytes of a sample, cut and with some of them changed.
fn spoiled(sample: Vec<u8>) -> impl proptest::strategy::Strategy<Value = Vec<u8>> {
    use proptest::prelude::*;
    let len = sample.len();
    let changes = proptest::collection::vec((0..len.min(1600), any::<u8>()), 0..4);
    (changes, prop_oneof![3 => Just(len), 1 => 0..=len]).prop_map(move |(changes, len)| {
        let mut bytes = sample.clone();
        changes.into_iter().for_each(|(at, byte)| bytes[at] = byte);
        bytes.truncate(len);
        bytes
    })
}

/// With right checksums, so that what is behind them is read too.
fn resealed_batch(mut bytes: Vec<u8>) -> Option<(BatchHeader, Vec<u8>)> {
    let whole = peek(&sample_batch())?;
    bytes.truncate(bytes.len() / 4096 * 4096);
    let head = (whole.head as usize).min(bytes.len());
    let sum = crc(bytes.get(BATCH_HEADER..head)?);
    Some((BatchHeader { head: head as u32, len: bytes.len() as u32, sum, ..whole }, bytes))
}

proptest::proptest! {
    #![proptest_config(proptest::prelude::ProptestConfig { failure_persistence: None, ..Default::default() })]

    #[test]
    fn hostile_bytes_are_errors_and_nothing_else(
        batch in spoiled(sample_batch()),
        block in spoiled(encode_superblock(&sample_superblock()).to_vec()),
        root in spoiled(encode_header(&sample_header()).to_vec()),
        body in spoiled(sample_body()),
        page in spoiled(encode_page(&page_label(), &sample_homes()).0.to_vec()),
        cells in spoiled(sample_cells().to_vec()),
        noise in proptest::collection::vec(proptest::prelude::any::<u8>(), 0..600),
    ) {
        for bytes in [&batch, &block, &root, &body, &page, &cells, &noise] {
            let _ = decode_superblock(bytes);
            let _ = decode_header(bytes);
            let _ = decode_body(bytes);
            let _ = decode_page(bytes, &page_label(), 0);
            let _ = is_whole(bytes, CELLS, PAGE_SLABS + 4);
            let _ = sum_in(bytes, PAGE_SLABS + 4, 31);
            if let Some(header) = peek(bytes) {
                let _ = decode_batch(&header, bytes);
            }
        }
        if page.len() == 4096 {
            let _ = decode_page(&page, &page_label(), crc(&page[4..]));
        }
        if let Some((header, bytes)) = resealed_batch(batch) {
            let _ = decode_batch(&header, &bytes);
        }
    }
}
