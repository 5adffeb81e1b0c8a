//! A node with several devices loses one and keeps serving the other (I5, I9, I11): while it runs, when it starts again
//! without it, and until a person lets go of it and another takes its place.

use std::path::{Path, PathBuf};
use std::process::Command;

use serde_json::Value;

use crate::support::cluster::{PATIENCE, Shape, TestCluster};
use crate::support::{alone, child, needs, wait_for};

/// Three copies, a node to spare, and a lost copy is made anew soon.
const TWO_EACH: Shape = Shape { nodes: 4, zones: 1, device: "448M", grace: "3s" };

/// A device no process may write to: a durable write on it fails, as does opening it.
struct Failing(PathBuf);

impl Failing {
    fn begin(path: &Path) -> Self {
        assert!(Self::attribute("+i", path), "chattr +i {}", path.display());
        Self(path.to_owned())
    }

    fn attribute(change: &str, path: &Path) -> bool {
        Command::new("chattr").arg(change).arg(path).status().is_ok_and(|status| status.success())
    }

    /// Whether the file system knows such a thing.
    fn is_possible(scratch: &Path) -> bool {
        let probe = scratch.join("probe");
        std::fs::write(&probe, b"x").expect("a file");
        let possible = Self::attribute("+i", &probe);
        drop(Self(probe));
        possible
    }
}

impl Drop for Failing {
    fn drop(&mut self) {
        Self::attribute("-i", &self.0);
    }
}

fn devices(cluster: &TestCluster, node: &str) -> Vec<Value> {
    cluster.json(&["node", "show", node])["devices"].as_array().cloned().expect("devices")
}

fn in_state(cluster: &TestCluster, node: &str, state: &str) -> Vec<String> {
    let found = devices(cluster, node).into_iter().filter(|device| device["state"] == state);
    found.map(|device| device["id"].as_str().expect("an id").to_owned()).collect()
}

/// Waits until one device of a node is in this state; gives its id.
fn wait_state(cluster: &TestCluster, node: &str, state: &str) -> String {
    wait_for(&format!("a device that is {state}"), PATIENCE, || match in_state(cluster, node, state).as_slice() {
        [one] => Ok(one.clone()),
        _ => Err(format!("{:?}", devices(cluster, node))),
    })
}

/// How many segments of a volume count on a node.
fn memberships(cluster: &TestCluster, volume: &str, node: &str) -> usize {
    let explain = cluster.json(&["volume", "explain", volume]);
    let segments = explain["segments"].as_array().cloned().unwrap_or_default();
    let is_member =
        |segment: &&Value| segment["config"]["members"].as_array().into_iter().flatten().any(|member| member == node);
    segments.iter().filter(is_member).count()
}

#[test]
fn a_node_that_loses_one_of_two_devices_serves_the_other() {
    let story = "a node that loses one of two devices";
    if !needs::root(story) || !needs::programs(story, &["chattr"]) {
        return;
    }
    let _alone = alone();
    let cluster = TestCluster::start_with("lost-device", TWO_EACH, &["--devices", "2"]);
    if !Failing::is_possible(cluster.scratch()) {
        needs::skip(story, "the file system has no files that cannot be changed");
        return;
    }
    cluster.create("v", "512M", &[]);
    // Both devices of every node have got something: that which is roomiest comes next.
    let victim = "n2";
    wait_for("replicas on both devices", PATIENCE, || {
        let devices = devices(&cluster, victim);
        let used = devices.iter().filter(|device| device["booked"].as_u64() > Some(0)).count();
        if used == 2 { Ok(()) } else { Err(format!("{devices:?}")) }
    });
    let load = cluster.load("v", 3600);
    let pid = cluster.pid(victim);

    let paths = cluster.node(victim)["devices"].as_array().cloned().expect("paths");
    let path = PathBuf::from(paths[1].as_str().expect("a path"));
    let failing = Failing::begin(&path);
    let lost = wait_state(&cluster, victim, "failed");
    load.goes_on(PATIENCE);
    cluster.wait_full();
    load.goes_on(PATIENCE);
    assert_eq!(cluster.pid(victim), pid, "its process went on");
    assert!(memberships(&cluster, "v", victim) > 0, "what is on its other device counts still");

    // It starts again without the device: what is on the other comes back by catch-up.
    child::send(pid, libc::SIGKILL);
    wait_for("the node to be gone", PATIENCE, || {
        let state = cluster.node(victim)["state"].clone();
        if state == "running" { Err(state.to_string()) } else { Ok(()) }
    });
    cluster.act("start", victim);
    assert_eq!(wait_state(&cluster, victim, "missing"), lost);
    let info = cluster.json(&["node", "show", victim]);
    assert!(info["absent"].to_string().contains("device-2"), "{info}");
    cluster.wait_healthy();
    load.goes_on(PATIENCE);
    assert!(memberships(&cluster, "v", victim) > 0, "{info}");

    // Nobody takes the place of a device that may come back; a person says that it does not.
    drop(failing);
    std::fs::remove_file(&path).expect("the device is deleted");
    cluster.act("stop", victim);
    cluster.act("start", victim);
    assert_eq!(wait_state(&cluster, victim, "missing"), lost);
    let refused = devices(&cluster, victim).into_iter().find(|device| device["state"] == "refused");
    let why = refused.expect("the new one")["why"].to_string();
    assert!(why.contains(&format!("replace-device {victim} --device {lost}")), "{why}");
    cluster.wait_full();
    let done = cluster.json(&["node", "replace-device", victim, "--device", &lost]);
    assert_eq!(done["done"], true, "{done}");
    cluster.act("stop", victim);
    cluster.act("start", victim);
    wait_for("both devices", PATIENCE, || {
        let (now, gone) = (in_state(&cluster, victim, "in_use"), in_state(&cluster, victim, "lost"));
        if now.len() == 2 && gone == [lost.clone()] { Ok(()) } else { Err(format!("{:?}", devices(&cluster, victim))) }
    });
    cluster.wait_healthy();
    load.goes_on(PATIENCE);
    load.finish(&cluster);
}
