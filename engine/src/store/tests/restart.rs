//! A restart with the largest map: 8.4 million written extents (1 TiB) and a full WAL of 1 GiB, on a sparse file.
//! `cargo test --release -p engine --lib store::tests::restart -- --ignored --nocapture` prints the figures.
use std::fs::File;
use std::os::unix::fs::FileExt;
use std::time::Instant;

use engine_core::ids::ExtentIndex;

use super::*;
use crate::device::buffer::AlignedBuf;
use crate::device::{Completion, Device, Operation, Tag, WholeDevice};
use crate::store::Ticket;
use crate::store::extents::Home;

/// A file through the page cache: what is measured is the work, and reading from memory.
struct Sparse {
    file: File,
    base: u64,
    len: u64,
    done: Vec<Completion>,
}

impl Sparse {
    fn new(file: &File, base: u64, len: u64) -> Self {
        Self { file: file.try_clone().unwrap(), base, len, done: Vec::new() }
    }
}

impl WholeDevice for Sparse {
    fn size(&self) -> u64 {
        self.len
    }

    fn read_at(&mut self, offset: u64, buffer: &mut AlignedBuf) -> std::io::Result<()> {
        self.file.read_exact_at(buffer, self.base + offset)
    }

    fn write_at(&mut self, offset: u64, buffer: &AlignedBuf) -> std::io::Result<()> {
        self.file.write_all_at(buffer, self.base + offset)
    }
}

impl Device for Sparse {
    fn len(&self) -> u64 {
        self.len
    }

    fn submit(&mut self, tag: Tag, operation: Operation) {
        let (result, buffer) = match operation {
            Operation::Read { offset, mut buffer } => {
                (self.file.read_exact_at(&mut buffer, self.base + offset), Some(buffer))
            }
            Operation::Write { offset, buffer, .. } => {
                (self.file.write_all_at(&buffer, self.base + offset), Some(buffer))
            }
            Operation::WriteVectored { offset, buffer, pieces, .. } => {
                let (mut at, mut result) = (self.base + offset, Ok(()));
                for part in buffer.iter().map(|b| &b[..]).chain(pieces.iter().map(|p| &p[..])) {
                    result = result.and_then(|()| self.file.write_all_at(part, at));
                    at += part.len() as u64;
                }
                (result, buffer)
            }
            Operation::Flush => (Ok(()), None),
        };
        self.done.push(Completion { tag, buffer, result });
    }

    fn kick(&mut self) {}

    fn reap(&mut self, done: &mut Vec<Completion>) {
        done.append(&mut self.done);
    }

    fn wake_fd(&self) -> Option<std::os::fd::RawFd> {
        None
    }
}

fn resident() -> u64 {
    let statm = std::fs::read_to_string("/proc/self/statm").unwrap();
    statm.split(' ').nth(1).unwrap().parse::<u64>().unwrap() * 4096
}

fn reopen(file: &File, superblock: &Superblock) -> ShardStore<Sparse> {
    let region = superblock.geometry.region(0);
    let mut whole = Sparse::new(file, 0, superblock.geometry.size);
    ShardStore::open(&mut whole, Sparse::new(file, region.base, region.len), superblock, 0).unwrap()
}

fn settle(store: &mut ShardStore<Sparse>) {
    store.settle();
    let mut events = Vec::new();
    while !store.is_quiet() {
        store.poll(&mut events);
    }
}

#[test]
#[ignore = "needs 2 GiB of disk and of memory; see the module"]
fn of_a_written_tib_and_a_full_wal() {
    const SEGMENTS: u32 = 16;
    const EXTENTS: u32 = 524_288;
    let file = tempfile::tempfile_in(std::env::current_exe().unwrap().parent().unwrap()).unwrap();
    let size = 1100 << 30;
    file.set_len(size).unwrap();
    let geometry = Geometry::plan(size, 1, 1 << 30).unwrap();
    let superblock = Superblock { geometry, boot: BootCount(1), ..superblock(size, 1 << 30) };
    crate::store::format(&mut Sparse::new(&file, 0, size), &superblock).unwrap();
    let mut store = reopen(&file, &superblock);
    let before = resident();
    for index in 0..SEGMENTS {
        store.persist(vec![create(segment(index), EXTENTS)], Ticket(0));
    }
    settle(&mut store);
    println!("16 segments of 64 GiB, unwritten: {} MiB of memory", (resident() - before) >> 20);
    for index in 0..SEGMENTS {
        for extent in 0..EXTENTS {
            let home = Home { stamp: Seq(1), slab: store.slabs.take().unwrap(), present: u32::MAX };
            store.map.rehome(segment(index), ExtentIndex(extent), home);
        }
    }
    let begun = Instant::now();
    settle(&mut store);
    println!("checkpoint of 8.4 million extents: {:?}", begun.elapsed());
    println!("8.4 million extents: {} MiB of memory", (resident() - before) >> 20);
    let (mut writes, mut events) = (0u64, Vec::new());
    while !store.wal.ring.is_above(27) {
        for _ in 0..64 {
            let at = segment((writes % u64::from(SEGMENTS)) as u32);
            let (seq, block) = (2 + writes / u64::from(SEGMENTS), writes * 7919 % (u64::from(EXTENTS) * 32));
            store.persist(vec![prepare(at, seq - 1, write(at, seq, block as u32, 1, seq))], Ticket(writes));
            writes += 1;
        }
        store.poll(&mut events);
        events.clear();
        // As if they were resolved, and not applied.
        store.map.unresolved = 0;
        store.map.replicas.values_mut().for_each(|replica| replica.unresolved = 0);
    }
    println!("WAL: {} MiB used, {writes} writes", store.wal.ring.used() >> 20);
    drop(store);
    let before = resident();
    let begun = Instant::now();
    let store = reopen(&file, &superblock);
    println!("restart: {:?}, {} MiB of memory", begun.elapsed(), (resident() - before) >> 20);
    assert_eq!(store.recovered.len(), SEGMENTS as usize);
}
