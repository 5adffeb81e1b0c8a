//! Local clusters as far as no process is needed.

use crate::exits;
use crate::support::scratch::Scratch;

const CLUSTER: &str = r#"{"authority": "http://127.0.0.1:1", "nodes": [{"id": "n1", "zone": "a", "pid": null,
    "primary_addr": "127.0.0.1:2", "replication_addr": "127.0.0.1:3", "device": "/d/n1/device", "state": "stopped"}]}"#;

#[test]
fn a_directory_without_a_cluster_is_3() {
    let scratch = Scratch::new("none");
    let dir = scratch.path().to_str().unwrap();
    for args in [&["--cluster", dir, "status"][..], &["cluster", "kill", "n1", "--dir", dir]] {
        let (_, said) = exits(3, args);
        assert!(said.contains("next: nodectl cluster up --dir"), "{said}");
    }
}

#[test]
fn orders_need_a_running_cluster_and_an_existing_node() {
    let scratch = Scratch::new("orders");
    std::fs::write(scratch.join("cluster.json"), CLUSTER).unwrap();
    let dir = scratch.path().to_str().unwrap();
    for verb in ["stop", "kill", "start", "lose"] {
        let (_, said) = exits(5, &["cluster", verb, "n1", "--dir", dir]);
        assert!(said.contains("no `cluster up` runs"), "{said}");
        exits(3, &["cluster", verb, "n9", "--dir", dir]);
    }
    exits(5, &["cluster", "kill", "authority", "--dir", dir]);
    exits(20, &["--cluster", dir, "status"]);
}

#[test]
fn a_damaged_description_is_told() {
    let scratch = Scratch::new("damaged");
    std::fs::write(scratch.join("cluster.json"), "{").unwrap();
    let (_, said) = exits(1, &["--cluster", scratch.path().to_str().unwrap(), "status"]);
    assert!(said.contains("is damaged"), "{said}");
}

#[test]
fn a_log_that_is_not_there_is_3() {
    exits(3, &["--authority", "http://127.0.0.1:1", "verify", "check", "v", "--log", "/nonexistent/log"]);
}

#[test]
fn a_demo_never_uses_somebody_elses_directory() {
    let scratch = Scratch::new("taken");
    std::fs::write(scratch.join("cluster.json"), CLUSTER).unwrap();
    exits(5, &["demo", "--dir", scratch.path().to_str().unwrap()]);
    assert_eq!(std::fs::read_to_string(scratch.join("cluster.json")).unwrap(), CLUSTER);
}
