//! Fuzz targets for everything on a device: hostile bytes, as they are and with checksums that are right, are errors or
//! decode to what encodes to the same again, and cost no more memory than their length allows.
use super::*;
use crate::fuzz::{run, within};

/// Bytes of memory for each byte of records: the shortest record takes nine of them on the device.
const PER_BYTE: usize = 100;
/// And whatever the length.
const BASE: usize = 64 * 1024;

fn bound(bytes: &[u8]) -> usize {
    BASE + PER_BYTE * bytes.len()
}

fn seed(name: &str, bytes: impl Into<Vec<u8>>) -> (String, Vec<u8>) {
    (name.to_owned(), bytes.into())
}

fn put(bytes: &[u8], at: usize, with: &[u8]) -> Vec<u8> {
    let mut bytes = bytes.to_vec();
    bytes[at..at + with.len()].copy_from_slice(with);
    bytes
}

/// A batch of these records.
fn batch_of(records: &[WalRecord]) -> Vec<u8> {
    let header =
        BatchHeader { device: DeviceId(0xABCD), shard: 1, boot: BootCount(3), number: 42, head: 0, len: 0, sum: 0 };
    let size = records.iter().map(record_size).fold(Size::default(), |sum, size| sum + size);
    let (front, data) = encode_batch(&header, records.iter(), size);
    let mut batch = front.to_vec();
    data.iter().for_each(|data| batch.extend_from_slice(data));
    batch
}

/// Decoded, it encodes to bytes that decode to the same.
fn same_again(header: &BatchHeader, bytes: &[u8]) {
    let Ok(records) = within(bound(bytes), || decode_batch(header, bytes)) else { return };
    let again = batch_of(&records);
    let header = peek(&again).expect("what we write we read");
    assert_eq!(decode_batch(&header, &again).as_ref(), Ok(&records));
}

fn look_at_batch(bytes: &[u8]) {
    if let Some(header) = within(BASE, || peek(bytes)) {
        same_again(&header, bytes);
    }
    // The same with a header that fits: of the golden batch's length, and of all that is there.
    let len = bytes.len() / 4096 * 4096;
    let Some(fields) = bytes.get(..BATCH_HEADER) else { return };
    let said = u32::from_le_bytes(fields[38..42].try_into().unwrap()) as usize;
    for head in [said, len] {
        let Some(records) = bytes[..len].get(BATCH_HEADER..head) else { continue };
        let (device, boot) = (DeviceId(0xABCD), BootCount(3));
        let (head, len) = (head as u32, len as u32);
        let header = BatchHeader { device, shard: 1, boot, number: 42, head, len, sum: crc(records) };
        same_again(&header, &bytes[..len as usize]);
    }
}

#[test]
fn wal_records() {
    let batch = sample_batch();
    // Where the first record's fields are: kind, segment, promised, log epoch, standing, base, then the configuration.
    let meta = BATCH_HEADER + 1 + 8;
    let lists = meta + 8 + 8 + 1 + 8 + 8 + 4 + 8 + 2;
    let one = |record: &WalRecord| batch_of(std::slice::from_ref(record));
    let write = one(&samples()[4]);
    let redirected = one(&samples()[11]);
    let zero = one(&samples()[5]);
    let map = one(&samples()[9]);
    // Kind, segment, commit, epoch and seq are in front of an entry's blocks.
    let entry = BATCH_HEADER + 1 + 4 * 8;
    let mut seeds = vec![
        seed("golden", batch.clone()),
        seed("header-alone", &batch[..64]),
        seed("cut-in-the-records", &batch[..200]),
        seed("cut-in-the-data", &batch[..8192]),
        seed("head-longer-than-all", put(&batch, 38, &u32::MAX.to_le_bytes())),
        seed("head-zero", put(&batch, 38, &[0; 4])),
        seed("length-huge", put(&batch, 42, &0xffff_f000_u32.to_le_bytes())),
        seed("kind-unknown", put(&write, BATCH_HEADER, &[99])),
        seed("members-65535", put(&batch, lists, &u16::MAX.to_le_bytes())),
        seed("members-512", put(&batch, lists, &512_u16.to_le_bytes())),
        seed("member-zero", put(&batch, lists + 2, &[0; 2])),
        seed("standing-unknown", put(&batch, meta + 16, &[9])),
        seed("write-of-nothing", put(&write, entry + 4, &[0; 4])),
        seed("write-of-4-gib-blocks", put(&write, entry + 4, &u32::MAX.to_le_bytes())),
        seed("write-at-the-end-of-numbers", put(&write, entry, &(u32::MAX - 33).to_le_bytes())),
        seed("redirected", redirected.clone()),
        seed("redirected-slabs-4-gib", put(&redirected, entry + 8 + 34 * 4, &u32::MAX.to_le_bytes())),
        seed("redirected-last-extent", put(&redirected, entry + 8 + 34 * 4 + 4, &(u32::MAX / 32).to_le_bytes())),
        seed("zero-of-everything", put(&zero, entry, &[0, 0, 0, 0, 0xd0, 0xff, 0xff, 0xff])),
        seed("map-all-present", put(&map, BATCH_HEADER + 9 + 4 + 4 + 8 + 4, &[0xff; 4])),
        seed("map-nothing-in-a-slab", put(&map, BATCH_HEADER + 9 + 4 + 4 + 8 + 4, &[0; 4])),
    ];
    for (at, record) in samples().iter().enumerate() {
        seeds.push(seed(&format!("record-{at:02}"), one(record)));
    }
    // Lists that are each allowed, and together longer than a state may be.
    let lists: Vec<u8> = [511_u16.to_le_bytes().to_vec(), vec![1; 511 * 2]].concat().repeat(4);
    let front = &batch[..meta + 8 + 8 + 1 + 8 + 8 + 4 + 8 + 2];
    let mut long = [front, &lists[..], &[7, 0, 0, 0, 0, 0, 0, 0, 3, 2, 0, 2, 0, 0]].concat();
    let head = long.len() as u32;
    long[38..42].copy_from_slice(&head.to_le_bytes());
    long.resize(8192, 0);
    seeds.push(seed("lists-longer-than-a-state", long));
    run("wal", 1200, seeds, look_at_batch);
}

/// With the checksum that is right for what is before it.
fn resealed(bytes: &[u8], at: usize) -> Vec<u8> {
    if bytes.len() < at + 4 {
        return bytes.to_vec();
    }
    put(bytes, at, &crc(&bytes[..at]).to_le_bytes())
}

fn look_at_superblock(bytes: &[u8]) {
    const SUM_AT: usize = 292;
    for bytes in [bytes, &resealed(bytes, SUM_AT)] {
        let Ok(Ok(found)) = within(BASE, || decode_superblock(bytes)) else { continue };
        let again = encode_superblock(&found);
        assert_eq!(decode_superblock(&again), Ok(Ok(found)));
        // What opening would do with it, on a device that holds nothing else.
        let mut disk = crate::device::memory::Disk::new(2 << 20);
        crate::device::WholeDevice::write_at(&mut disk, 0, &again).unwrap();
        let _ = crate::store::read(&mut disk);
        let _ = crate::store::examine(&mut disk, crate::store::Depth::Data, &mut |_, _| ());
    }
}

#[test]
fn superblock() {
    let whole = encode_superblock(&sample_superblock()).to_vec();
    let whole = whole[..512].to_vec();
    // Geometry begins behind magic, version, features, algorithm, ids and boot.
    let size = 8 + 4 + 8 + 8 + 4 + 16 + 16 + 2 + 8;
    let small = |size: u64, wal_size: u64| {
        let geometry = Geometry { size, shards: 1, wal_size };
        encode_superblock(&Superblock { geometry, ..sample_superblock() })[..512].to_vec()
    };
    let seeds = vec![
        seed("golden", whole.clone()),
        seed("cut", &whole[..100]),
        seed("empty", []),
        seed("zeros", vec![0; 512]),
        seed("version-0", put(&whole, 8, &[0; 4])),
        seed("version-2", put(&whole, 8, &[2, 0, 0, 0])),
        seed("version-huge", put(&whole, 8, &[0xff; 4])),
        seed("features-all", put(&whole, 12, &[0xff; 8])),
        seed("algorithm-0", put(&whole, 28, &[0; 4])),
        seed("node-0", put(&whole, 64, &[0; 2])),
        seed("shards-0", put(&whole, size + 8, &[0; 2])),
        seed("shards-65535", put(&whole, size + 8, &[0xff; 2])),
        seed("size-huge", put(&whole, size, &[0xff; 8])),
        seed("wal-huge", put(&whole, size + 10, &[0xff; 8])),
        seed("no-room-for-slabs", small(2 << 20, 64 << 10)),
        seed("all-wal", small(2 << 20, 1 << 20)),
        seed("opening-0", put(&whole, size + 26 + 16, &[0; 8])),
        seed("openings-all-ones", put(&whole, size + 26, &[0xff; 24 * 8])),
    ];
    run("superblock", 300, seeds, look_at_superblock);
}

/// A page is its own checksum, then what that is of.
fn look_at_page(bytes: &[u8]) {
    let label = page_label();
    let resealed = bytes.get(4..).map(|rest| [&crc(rest).to_le_bytes(), rest].concat()).unwrap_or_default();
    for bytes in [bytes, &resealed] {
        let sum = bytes.first_chunk().map_or(0, |sum| u32::from_le_bytes(*sum));
        if let Ok(homes) = within(BASE, || decode_page(bytes, &label, sum)) {
            let (again, sum) = encode_page(&label, &homes);
            assert_eq!(decode_page(&again, &label, sum), Ok(homes));
        }
    }
    let sealed: Vec<u8> = bytes
        .chunks(512)
        .flat_map(|cell| [&crc(&cell[cell.len().min(4)..]).to_le_bytes(), &cell[cell.len().min(4)..]].concat())
        .collect();
    for bytes in [bytes, &sealed] {
        for slab in PAGE_SLABS..2 * PAGE_SLABS {
            let whole = within(BASE, || is_whole(bytes, CELLS, slab));
            let sum = sum_in(bytes, slab, 31);
            if whole && bytes.len() == 4096 {
                let mut page = AlignedBuf::zeroed(4096);
                page.copy_from_slice(bytes);
                put_sums(&mut page, CELLS, slab, 1, &[7; 32]);
                assert!(is_whole(&page, CELLS, slab));
                assert_eq!((sum_in(&page, slab, 0), sum_in(&page, slab, 31)), (7, sum));
            }
        }
    }
    for bytes in [bytes, &super::fuzz::resealed(bytes, 82)] {
        if let Ok(header) = within(BASE, || decode_header(bytes)) {
            assert_eq!(decode_header(&encode_header(&header)), Ok(header));
        }
    }
    if let Ok(replicas) = within(bound(bytes), || decode_body(bytes)) {
        let mut again = Vec::new();
        replicas.iter().for_each(|replica| put_replica(&mut again, replica));
        assert_eq!(decode_body(&again), Ok(replicas));
    }
}

/// Map pages and what leads to them and to the data: roots, checksum pages.
#[test]
fn map_pages() {
    let (page, sum) = encode_page(&page_label(), &sample_homes());
    assert_eq!(page[..4], sum.to_le_bytes());
    let page = page.to_vec();
    let (header, body) = (encode_header(&sample_header())[..128].to_vec(), sample_body());
    let cells = sample_cells().to_vec();
    let lists = 8 + 8 + 8 + 1 + 8 + 8 + 4 + 8 + 2;
    let count = body.len() / 2;
    let seeds = vec![
        seed("page", page.clone()),
        seed("page-cut", &page[..4095]),
        seed("page-longer", [&page[..], &[0]].concat()),
        seed("page-of-another", put(&page, 34, &[9])),
        seed("page-slab-without-blocks", put(&page, 64 + 12, &[0; 4])),
        seed("page-blocks-without-slab", put(&page, 64 + 8, &[0xff; 4])),
        seed("page-stamps-all-ones", put(&page, 64, &[0xff; 252 * 16])),
        seed("cells", cells.clone()),
        seed("cells-cut", &cells[..700]),
        seed("cells-of-another", put(&cells, 512 + 8, &[0; 4])),
        seed("root", header.clone()),
        seed("root-cut", &header[..60]),
        seed("root-version-2", put(&header, 8, &[2])),
        seed("root-oldest-behind-batch", put(&header, 54, &[0xff; 8])),
        seed("root-body-huge", put(&header, 70, &[0xff; 8])),
        seed("body", body.clone()),
        seed("body-empty", []),
        seed("body-cut", &body[..count]),
        seed("body-members-65535", put(&body, lists, &[0xff; 2])),
        seed("body-pages-4-gib", put(&body, body.len() - 4, &[0xff; 4])),
    ];
    run("map", 4096, seeds, look_at_page);
}
