//! Gateways: the older of two is fenced at once (I2), a killed one leaves nothing undecided, halves of a block survive.

use std::time::{Duration, Instant};

use crate::support::cluster::{SMALL, TestCluster};
use crate::support::nbd::{Failed, Nbd};
use crate::support::{alone, wait_for};

const BLOCK: usize = 4096;
const ANSWER: Duration = Duration::from_secs(60);

#[test]
fn the_older_of_two_gateways_is_fenced() {
    let _alone = alone();
    let cluster = TestCluster::start("fence", SMALL);
    cluster.create("v", "128M", &[]);
    let old = cluster.attach("v");
    let mut client = old.connect(ANSWER);
    client.write(0, &[1; BLOCK]).expect("the only gateway writes");
    let new = cluster.attach("v");
    for at in [0, 1 << 20, 64 << 20] {
        refused_at_once(&old.uri, "write", || client.write(at, &[2; BLOCK]));
        refused_at_once(&old.uri, "read", || client.read(at, BLOCK).map(drop));
    }
    if let Ok(mut late) = Nbd::connect(&old.uri, ANSWER) {
        refused_at_once(&old.uri, "write on a new connection", || late.write(0, &[3; BLOCK]));
    }
    let mut client = new.connect(ANSWER);
    for (at, want) in [(0, 1), (1 << 20, 0), (64 << 20, 0)] {
        let found = client.read(at, BLOCK).expect("the new gateway reads");
        assert!(found.iter().all(|byte| *byte == want), "at {at}: a fenced write is visible");
    }
    client.write(0, &[4; BLOCK]).expect("the new gateway writes");
}

/// At once: the gateway knows, or learns from the first answer, that it is fenced; it must not try again and again.
fn refused_at_once(uri: &str, what: &str, request: impl FnOnce() -> Result<(), Failed>) {
    let begin = Instant::now();
    match request() {
        Ok(()) => panic!("{what} on the fenced {uri} worked"),
        Err(Failed::Errno(_) | Failed::Connection(_)) => {}
    }
    assert!(begin.elapsed() < Duration::from_secs(2), "{what} took {:?} to fail", begin.elapsed());
}

#[test]
fn a_killed_gateway_is_replaced_within_a_second() {
    let _alone = alone();
    let cluster = TestCluster::start("gwkill", SMALL);
    cluster.create("v", "128M", &[]);
    let mut old = cluster.attach("v");
    let mut client = old.connect(ANSWER);
    client.write(0, &[9; BLOCK]).expect("a write");
    // In flight when it dies: decided one way or the other, nobody knows which yet.
    for number in 1..=64u8 {
        let at = u64::from(number) * (1 << 20);
        client.write_unanswered(at, &vec![number; BLOCK]).expect("sent");
    }
    old.kill();
    let begin = Instant::now();
    let new = cluster.attach("v");
    let took = begin.elapsed();
    assert!(took < Duration::from_secs(1), "attaching again took {took:?}");
    let mut client = new.connect(ANSWER);
    assert_eq!(client.read(0, BLOCK).expect("a read"), [9; BLOCK], "acknowledged");
    let first = undecided(&mut client);
    // Decided for good: another primary tells the same story.
    let primary = cluster.primary("v", 0);
    cluster.act("kill", &primary);
    wait_for("the same blocks under another primary", ANSWER, || {
        let second = undecided(&mut client);
        if first == second { Ok(()) } else { panic!("a decided write changed: {first:?} then {second:?}") }
    });
    cluster.act("start", &primary);
    cluster.wait_healthy();
    assert_eq!(first, undecided(&mut client));
}

/// Which of the writes in flight are there; each whole or not at all.
fn undecided(client: &mut Nbd) -> Vec<bool> {
    let look = |number: u8| {
        let block = client.read(u64::from(number) * (1 << 20), BLOCK).expect("a read");
        assert!(block.iter().all(|byte| *byte == block[0]), "write {number} is torn");
        assert!(block[0] == number || block[0] == 0, "write {number} is {}", block[0]);
        block[0] == number
    };
    (1..=64).map(look).collect()
}

#[test]
fn two_connections_write_two_halves_of_one_block() {
    const BLOCKS: u64 = 200;
    const HALF: u64 = 2048;
    let _alone = alone();
    let cluster = TestCluster::start("halves", SMALL);
    cluster.create("v", "128M", &[]);
    let gateway = cluster.attach("v");
    let write = |half: u64| {
        let mut client = gateway.connect(ANSWER);
        move || {
            for block in 0..BLOCKS {
                // 512 bytes at either end of the block.
                let at = block * BLOCK as u64 + half * (BLOCK as u64 - 512);
                let value = u8::try_from(1 + half).expect("small");
                client.write(at, &[value; 512]).expect("a write of half a block");
                let back = client.read(block * BLOCK as u64 + half * HALF, 2048).expect("a read");
                assert!(back.contains(&value), "own write is not there");
            }
        }
    };
    let (left, right) = (write(0), write(1));
    std::thread::scope(|scope| {
        scope.spawn(left);
        scope.spawn(right);
    });
    let mut client = gateway.connect(ANSWER);
    for block in 0..BLOCKS {
        let found = client.read(block * BLOCK as u64, BLOCK).expect("a read");
        let want: Vec<u8> = [vec![1; 512], vec![0; 3072], vec![2; 512]].concat();
        assert_eq!(found, want, "block {block} lost a half");
    }
}
