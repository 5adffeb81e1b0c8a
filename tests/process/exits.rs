//! States with an exit: a device rolled back to an older image (I9), disks lost under their nodes, the last copy that
//! holds everything gone for good (I11, I16).

use std::path::PathBuf;
use std::time::Duration;

use crate::support::cluster::{PATIENCE, SMALL, Shape, TestCluster};
use crate::support::{alone, wait_for};

/// Kills a node and takes its device away, as when the disk dies.
fn lose_disk(cluster: &TestCluster, node: &str) {
    let device = PathBuf::from(cluster.node(node)["device"].as_str().expect("a path"));
    cluster.act("kill", node);
    std::fs::remove_file(device).expect("its device");
}

/// Starts a node with a blank device: refused with the next command, which then lets it in.
fn replace_disk(cluster: &TestCluster, node: &str) {
    let mut start = crate::support::binaries::nodectl();
    start.args(["cluster", "start", node]).arg("--dir").arg(cluster.dir());
    let refused = start.output().expect("nodectl runs");
    assert!(!refused.status.success(), "a blank device under an old node id was let in");
    cluster.run(&["node", "replace-device", node]);
    cluster.act("start", node);
}

/// I9: what an older image of a device holds is not trusted: it comes back by catch-up, without a hand, and no read
/// and no acknowledged write is lost.
#[test]
fn an_older_image_of_a_device_comes_back_by_catch_up() {
    let _alone = alone();
    let cluster = TestCluster::start("rolled-back", Shape { nodes: 3, ..SMALL });
    cluster.create("v", "64M", &[]);
    let load = cluster.load("v", 600);
    let node = cluster.primary("v", 0);
    let device = std::path::PathBuf::from(cluster.node(&node)["device"].as_str().expect("a path"));
    let image = cluster.scratch().join("image");
    cluster.act("kill", &node);
    std::fs::copy(&device, &image).expect("room for a copy");
    cluster.act("start", &node);
    cluster.wait_healthy();
    load.goes_on(PATIENCE);
    cluster.act("kill", &node);
    std::fs::copy(&image, &device).expect("the older image is put back");
    load.goes_on(PATIENCE);
    cluster.act("start", &node);
    cluster.wait_healthy();
    load.goes_on(PATIENCE);
    load.finish(&cluster);
}

/// I11, I16: whoever has everything is gone for good, an older copy is left: nothing happens before the volume is named;
/// then it goes on from that copy, and new disks under the old node ids make it whole again.
#[test]
fn what_is_left_after_two_lost_disks_is_recovered_by_name() {
    let _alone = alone();
    let cluster = TestCluster::start("recover", Shape { nodes: 3, grace: "2s", ..SMALL });
    cluster.create("v", "64M", &[]);
    let gateway = cluster.attach("v");
    let mut client = gateway.connect(Duration::from_secs(60));
    client.write(0, &[1; 4096]).expect("a write on three copies");
    client.flush().expect("a flush");
    let primary = cluster.primary("v", 0);
    let left = cluster.nodes().into_iter().find(|node| *node != primary).expect("a backup");
    cluster.act("kill", &left);
    client.write(4096, &[2; 4096]).expect("a write on two copies");
    drop(client);
    drop(gateway);
    let lost: Vec<String> = cluster.nodes().into_iter().filter(|node| *node != left).collect();
    for node in &lost {
        lose_disk(&cluster, node);
    }
    cluster.act("start", &left);
    let command = format!("nodectl volume recover v --segment 0 --from {left}");
    wait_for("an explanation that names the way out", PATIENCE, || {
        let said = cluster.run(&["volume", "explain", "v"]);
        if said.contains(&command) && said.contains("left behind") { Ok(()) } else { Err(said) }
    });
    let recover = ["volume", "recover", "v", "--segment", "0", "--from", &left];
    let said = cluster.refused(&recover, 4);
    assert!(said.contains("would lose data") && said.contains("safe way is left"), "{said}");
    let said = cluster.run(&[&recover[..], &["--dry-run"]].concat());
    assert!(said.contains("nothing was done") && said.contains("would be lost"), "{said}");
    cluster.run(&[&recover[..], &["--lose", "v"]].concat());
    for node in &lost {
        replace_disk(&cluster, node);
    }
    cluster.wait_healthy();
    let gateway = cluster.attach("v");
    let mut client = gateway.connect(Duration::from_secs(60));
    assert_eq!(client.read(0, 4096).expect("what the copy had"), [1; 4096]);
    assert_eq!(client.read(4096, 4096).expect("what it never had"), [0; 4096]);
    client.write(8192, &[3; 4096]).expect("a write on three new copies");
    assert_eq!(client.read(8192, 4096).expect("a read"), [3; 4096]);
}
