//! The store on a real file, through io_uring.
use super::*;
use crate::device::file::DeviceFile;
use crate::device::uring::UringDevice;
use crate::device::uring::tests::direct_dir;
use crate::store::Ticket;

fn reopen(file: &DeviceFile) -> ShardStore<UringDevice> {
    let mut whole = file.clone();
    let superblock = crate::store::open(&mut whole, CLUSTER, NODE, BootId(1)).unwrap();
    let region = superblock.geometry.region(0);
    let device = UringDevice::new(file.clone(), region.base, region.len).unwrap();
    ShardStore::open(&mut whole, device, &superblock, 0).unwrap()
}

fn wait(store: &mut ShardStore<UringDevice>, mut until: impl FnMut(&Event) -> bool) -> Event {
    let mut events = Vec::new();
    let begun = std::time::Instant::now();
    while begun.elapsed().as_secs() < 20 {
        store.poll(&mut events);
        if let Some(at) = events.iter().position(&mut until) {
            return events.swap_remove(at);
        }
        std::thread::yield_now();
    }
    panic!("nothing happens: {events:?}");
}

#[test]
fn small_and_large_writes_come_back_after_a_restart() {
    let Some(dir) = direct_dir() else { return };
    let size = 40 * MIB;
    let mut file = DeviceFile::create(&dir.path().join("device"), size, &mut |_| ()).unwrap();
    crate::store::format(&mut file, &superblock(size, 4 * MIB)).unwrap();
    let mut store = reopen(&file);
    store.persist(vec![create(segment(0), 32)], Ticket(0));
    wait(&mut store, |event| matches!(event, Event::Persisted(Ticket(0))));
    let mut model = vec![0; 1024];
    for seq in 1..=200u64 {
        let (block, count) =
            ((seq * 31 % 900) as u32, if seq % 5 == 0 { 33 + seq as u32 % 40 } else { 1 + seq as u32 % 8 });
        store.persist(vec![prepare(segment(0), seq - 1, write(segment(0), seq, block, count, seq))], Ticket(seq));
        wait(&mut store, |event| matches!(event, Event::Persisted(Ticket(at)) if *at == seq));
        store.commit(segment(0), Seq(seq));
        model[block as usize..(block + count) as usize].fill(seq);
        if seq % 70 == 0 {
            drop(store);
            store = reopen(&file);
            assert!(!store.take_recovered()[0].damaged);
            store.commit(segment(0), Seq(seq));
        }
    }
    store.read(segment(0), BlockIndex(0), 1024, Ticket(1));
    let Event::Read(_, Ok(blocks)) = wait(&mut store, |event| matches!(event, Event::Read(..))) else { panic!() };
    assert_eq!(numbers(&blocks), model);
    store.audit();
}
