//! Nodes die, hang and come back under verified load; no error reaches the client and nothing acknowledged is lost
//! (I3, I5, I6, I9, I10).

use std::time::Duration;

use crate::support::alone;
use crate::support::cluster::{PATIENCE, SMALL, Shape, TestCluster};
use crate::support::wait_for;

/// Longer than a lease and the silence after which members elect.
const PAUSE: Duration = Duration::from_secs(5);

#[test]
fn every_node_killed_in_turn_under_load() {
    let _alone = alone();
    let cluster = TestCluster::start("kill", SMALL);
    cluster.create("v", "256M", &[]);
    let load = cluster.load("v", 600);
    for node in cluster.nodes() {
        cluster.act("kill", &node);
        load.goes_on(PATIENCE);
        cluster.act("start", &node);
        cluster.wait_healthy();
        load.goes_on(PATIENCE);
    }
    load.finish(&cluster);
}

#[test]
fn every_node_paused_in_turn_under_load() {
    let _alone = alone();
    let cluster = TestCluster::start("pause", SMALL);
    cluster.create("v", "256M", &[]);
    let load = cluster.load("v", 600);
    for node in cluster.nodes() {
        cluster.pause(&node);
        // The pause itself is the story: it has to outlast every lease.
        std::thread::sleep(PAUSE);
        load.goes_on(PATIENCE);
        cluster.resume(&node);
        cluster.wait_healthy();
        load.goes_on(PATIENCE);
    }
    load.finish(&cluster);
}

#[test]
fn all_nodes_killed_at_once_and_started_again() {
    let _alone = alone();
    let cluster = TestCluster::start("all", SMALL);
    cluster.create("v", "256M", &[]);
    let load = cluster.load("v", 600);
    let nodes = cluster.nodes();
    let pids: Vec<u32> = nodes.iter().map(|node| cluster.pid(node)).collect();
    for pid in pids {
        crate::support::child::send(pid, libc::SIGKILL);
    }
    wait_for("cluster.json to say that all are down", PATIENCE, || {
        let states: Vec<_> = nodes.iter().map(|node| cluster.node(node)["state"].clone()).collect();
        if states.iter().all(|state| state != "running") { Ok(()) } else { Err(format!("{states:?}")) }
    });
    for node in &nodes {
        cluster.act("start", node);
    }
    cluster.wait_healthy();
    load.goes_on(PATIENCE);
    load.finish(&cluster);
}

/// I11, I12: what was re-mirrored meanwhile is dropped where it was, and nothing old comes back to life.
#[test]
fn a_node_comes_back_after_its_segments_were_re_mirrored() {
    let _alone = alone();
    let shape = Shape { grace: "2s", ..SMALL };
    let cluster = TestCluster::start("back", shape);
    cluster.create("v", "256M", &[]);
    let load = cluster.load("v", 600);
    let gone = cluster.primary("v", 0);
    cluster.act("kill", &gone);
    load.goes_on(PATIENCE);
    cluster.wait_full();
    let down = cluster.json(&["node", "show", &gone]);
    assert_eq!(down["state"], "down", "{down}");
    cluster.act("start", &gone);
    wait_for("the stale replicas to be dropped", PATIENCE, || {
        let node = cluster.try_json(&["node", "show", &gone])?;
        if node["state"] == "up" && node["replicas"] == 0 && node["used"] == 0 { Ok(()) } else { Err(node.to_string()) }
    });
    cluster.wait_healthy();
    load.goes_on(PATIENCE);
    load.finish(&cluster);
}

/// A node lost for good, with its device: another one takes over every copy.
#[test]
fn a_node_lost_for_good_is_replaced() {
    let _alone = alone();
    let shape = Shape { grace: "2s", ..SMALL };
    let cluster = TestCluster::start("lose", shape);
    cluster.create("v", "256M", &[]);
    let load = cluster.load("v", 600);
    let gone = cluster.primary("v", 1);
    let device = cluster.node(&gone)["device"].as_str().expect("a path").to_owned();
    cluster.act("lose", &gone);
    assert!(!std::path::Path::new(&device).exists(), "{device} is still there");
    cluster.wait_full();
    load.goes_on(PATIENCE);
    load.finish(&cluster);
}
