//! Limits of a volume that is attached: its client hears of a change while it serves.
//!
//! It asks every 15 to 30 s, so this story mostly waits. It starts one node and asks for little: unlike the others it runs
//! beside them.

use std::time::{Duration, Instant};

use engine_core::limits::LIMITS_EVERY;

use crate::support::cluster::{PATIENCE, SMALL, Shape, TestCluster};
use crate::support::nbd::Nbd;
use crate::support::wait_for;

const BLOCK: usize = 4096;
/// Writes of a probe, one after the other.
const PROBE: u64 = 10;
/// Requests per second: slower than any machine that tests run on.
const IOPS: u64 = 4;

fn probe(client: &mut Nbd) -> Duration {
    let begun = Instant::now();
    for block in 0..PROBE {
        client.write(block * BLOCK as u64, &[7; BLOCK]).expect("a write");
    }
    begun.elapsed()
}

#[test]
fn a_change_of_limits_reaches_an_attached_client() {
    let cluster = TestCluster::start("limits", Shape { nodes: 1, device: "256M", ..SMALL });
    cluster.create("v", "64M", &["--copies", "1", "--min-copies", "1"]);
    let gateway = cluster.attach("v");
    let mut client = gateway.connect(PATIENCE);
    // The first request may begin at once.
    let limited = Duration::from_millis((PROBE - 1) * 1000 / IOPS);
    wait_for("an unlimited probe", PATIENCE, || {
        let took = probe(&mut client);
        if took < limited / 2 { Ok(()) } else { Err(format!("{took:?}")) }
    });
    cluster.run(&["volume", "set", "v", "--iops", &IOPS.to_string()]);
    let patience = Duration::from_nanos(LIMITS_EVERY.0) + Duration::from_secs(20);
    wait_for("the limit to be kept", patience, || {
        let took = probe(&mut client);
        if took >= limited { Ok(()) } else { Err(format!("{took:?} for {PROBE} writes")) }
    });
}
