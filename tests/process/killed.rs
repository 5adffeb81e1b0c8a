//! Nodes killed again and again at any moment, under verified load: whenever a process dies, its device is clean, and in
//! the end everything acknowledged is there (I3, I9, I13, I14).
//!
//! Clean is what `nodectl store check --data` says: every written block matches its checksum, every slab is owned once and
//! none is lost. Nodes die while they write, apply, make checkpoints and are caught up; alone and two of three at once.

use std::time::Duration;

use engine_core::random::Random;

use crate::support::cluster::{PATIENCE, THREE, TestCluster};
use crate::support::{alone, child, wait_for};

/// Every way a write can go: by the WAL, past it into slabs of its own, as zeros and as holes.
const KINDS: &[&str] = &["--bs", "4k,16k,256k,1M", "--zeroes", "15"];

fn number(variable: &str, default: u64) -> u64 {
    std::env::var(variable).map_or(default, |text| text.parse().unwrap_or_else(|_| panic!("{variable}={text}")))
}

/// The device of a process that has ended, by whatever end.
fn is_clean(cluster: &TestCluster, node: &str, story: &str) {
    let device = cluster.device(node);
    // What the process had under way is the kernel's to end: until then the device is in use, which is said by an exit
    // code of its own.
    let found = wait_for("the device to be free", PATIENCE, || match cluster.check_device(&device) {
        (Some(0), ..) => Ok(None),
        (Some(7), document, _) => Ok(Some(document)),
        (.., said) => Err(said),
    });
    assert_eq!(found, None, "{story}: the device of {node} is not clean");
}

/// SIGKILL to all of them at once; then each device is looked at, and its node started again.
fn kill(cluster: &TestCluster, nodes: &[&String], story: &str) {
    let pids: Vec<u32> = nodes.iter().map(|node| cluster.pid(node)).collect();
    pids.into_iter().for_each(|pid| child::send(pid, libc::SIGKILL));
    for node in nodes {
        wait_for("a killed node to be gone", PATIENCE, || {
            let state = cluster.node(node)["state"].clone();
            if state == "running" { Err(format!("{node} is {state}")) } else { Ok(()) }
        });
        is_clean(cluster, node, story);
    }
    nodes.iter().for_each(|node| cluster.act("start", node));
}

#[test]
fn whenever_nodes_are_killed_their_devices_are_clean_and_nothing_is_lost() {
    let _alone = alone();
    let (rounds, seed) = (number("BREAKWATER_KILLS", 8), number("BREAKWATER_SEED", 1));
    let cluster = TestCluster::start("killed", THREE);
    cluster.create("v", "64M", &[]);
    let load = cluster.load_of("v", 3600, KINDS);
    let nodes = cluster.nodes();
    let mut random = Random::new(seed);
    for round in 0..rounds {
        let victim = usize::try_from(random.between(0, 2)).expect("one of three");
        let mut victims = vec![&nodes[victim]];
        if round % 4 == 3 {
            // Nothing is acknowledged until one of them is back.
            victims.push(&nodes[(victim + 1) % 3]);
        }
        let story = format!("round {round} of seed {seed}: {victims:?} killed");
        // The moment is the story. Every other round it comes while those of the round before may be being caught up.
        std::thread::sleep(Duration::from_millis(random.between(0, 700)));
        kill(&cluster, &victims, &story);
        if round % 2 == 1 {
            cluster.wait_healthy();
            load.goes_on(PATIENCE);
        }
    }
    cluster.wait_healthy();
    load.goes_on(PATIENCE);
    load.finish(&cluster);
    for node in &nodes {
        cluster.act("stop", node);
        is_clean(&cluster, node, "stopped in the end");
    }
}
