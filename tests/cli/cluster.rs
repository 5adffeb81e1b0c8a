//! With a cluster: orders and their exit codes, and the figures of `bench` and `verify` on both paths.

use crate::support::alone;
use crate::support::cluster::{SMALL, TestCluster};

fn order(cluster: &TestCluster, act: &str, node: &str, exit: i32) -> String {
    let dir = cluster.dir();
    let args = ["cluster", act, node, "--dir", dir.to_str().unwrap(), "-o", "json"];
    crate::exits(exit, &args).0
}

#[test]
fn orders_are_carried_out_and_noted() {
    let _turn = alone();
    let cluster = TestCluster::start("orders", SMALL);
    let first = cluster.pid("n1");
    for (act, state) in [("kill", "killed"), ("start", "running"), ("stop", "stopped"), ("start", "running")] {
        let said: serde_json::Value = serde_json::from_str(&order(&cluster, act, "n1", 0)).unwrap();
        assert_eq!((&said["node"], &said["state"]), (&"n1".into(), &state.into()));
        assert_eq!(cluster.node("n1")["state"], state);
        assert_eq!(cluster.node("n1")["pid"].is_u64(), state == "running");
        order(&cluster, act, "n1", 5);
    }
    assert_ne!(cluster.pid("n1"), first);
    order(&cluster, "lose", "n4", 0);
    assert_eq!(cluster.node("n4")["state"], "lost");
    assert!(!cluster.dir().join("n4/device").exists());
    order(&cluster, "start", "n4", 5);
    order(&cluster, "lose", "n4", 5);
    order(&cluster, "kill", "n9", 3);
    order(&cluster, "stop", "authority", 0);
    cluster.refused(&["status"], 20);
    order(&cluster, "start", "authority", 0);
    cluster.refused(&["volume", "show", "none"], 3);
    let dir = cluster.dir();
    crate::exits(5, &["cluster", "up", "--dir", dir.to_str().unwrap()]);
}

#[test]
fn figures_have_their_shapes_on_both_paths() {
    let _turn = alone();
    let cluster = TestCluster::start("figures", SMALL);
    cluster.create("v", "128M", &[]);
    let log = cluster.scratch().join("acked");
    let log = log.to_str().unwrap();
    let write = ["verify", "write", "v", "--log", log, "--bytes", "8M", "--bs", "4k,64k"];
    let written = cluster.json(&write);
    assert!(written["acknowledged_bytes"].as_u64().unwrap() >= 8 << 20, "{written}");
    assert!(written["longest_gap_ms"].as_f64().unwrap() > 0.0);
    let checked = cluster.json(&["verify", "check", "v", "--log", log, "--replicas"]);
    let blocks = checked["acknowledged_blocks"].as_u64().unwrap();
    assert_eq!(checked["member_blocks_acknowledged"], 3 * blocks, "{checked}");
    assert_eq!(checked["wrong"], 0);

    let mut gateway = cluster.attach("v");
    let mut more = write.to_vec();
    more.extend(["--nbd", &gateway.uri]);
    cluster.json(&more);
    let checked = cluster.json(&["verify", "check", "v", "--log", log, "--nbd", &gateway.uri]);
    assert_eq!((&checked["wrong"], &checked["member_blocks"]), (&0.into(), &0.into()));
    let bench = cluster.json(&["bench", "io", "v", "--seconds", "1", "--qd", "4", "--nbd", &gateway.uri]);
    assert_eq!(bench["path"], "nbd");
    assert!(gateway.stop());

    let bench = cluster.json(&["bench", "io", "v", "--rw", "randrw", "--seconds", "1", "--qd", "4"]);
    let place = serde_json::json!({ "spread": "node", "copies": 3, "zones": ["a"] });
    assert_eq!(bench["place"], place, "where its copies are, since that is what latency hangs on");
    for latency in ["read_latency", "write_latency"] {
        assert!(bench[latency]["p99_us"].as_u64() > Some(0), "{bench}");
    }
    let bench = cluster.json(&["bench", "io", "v", "--rw", "randwrite", "--seconds", "1", "--qd", "4"]);
    assert_eq!((&bench["path"], &bench["rw"], &bench["reads"]), (&"native".into(), &"randwrite".into(), &0.into()));
    for figure in ["iops", "mib_per_second", "longest_gap_ms", "cluster_cpu_ms_per_io"] {
        assert!(bench[figure].as_f64().unwrap() > 0.0, "{figure}: {bench}");
    }
    assert!(bench["latency"]["p50_us"].as_u64() <= bench["latency"]["p99_us"].as_u64());
    // What the bench wrote over it is not what was promised, and the check says so.
    let said = cluster.refused(&["verify", "check", "v", "--log", log], 1);
    assert!(said.contains("not what they have to be"), "{said}");
}

#[test]
fn a_failover_is_measured_on_a_cluster_of_its_own() {
    let _turn = alone();
    let scratch = crate::support::scratch::Scratch::new("failover");
    let dir = scratch.join("d");
    let dir = dir.to_str().unwrap();
    let line = ["bench", "failover", "--only", "kill-primary,zone", "--repeat", "1", "--nodes", "4", "--zones", "1"];
    let (said, _) = crate::exits(0, &[&line[..], &["--network", "loopback", "--dir", dir, "-o", "json"]].concat());
    let report: serde_json::Value = serde_json::from_str(&said).unwrap();
    let row = &report["faults"][0];
    assert_eq!((&row["fault"], &row["repetitions"]), (&"kill-primary".into(), &1.into()), "{report}");
    for stream in ["write", "read"] {
        assert!(row[stream]["max_ms"].as_f64() > Some(0.0), "{report}");
    }
    assert_eq!(report["skipped"][0]["fault"], "zone", "nothing falls silent on 127.0.0.1: {report}");
    assert_eq!((&report["verified"]["blocks"], &report["verified"]["member_blocks"]), (&2048.into(), &6144.into()));
    // The same directory is somebody's now.
    crate::exits(5, &[&line[..], &["--dir", dir]].concat());
}

/// Requests begun in two seconds by somebody who always has the next ones ready.
fn done_in_two_seconds(cluster: &TestCluster, volume: &str, more: &[&str]) -> u64 {
    let mut args = vec!["bench", "io", volume, "--rw", "randwrite", "--seconds", "2", "--qd", "8"];
    args.extend(more);
    let bench = cluster.json(&args);
    bench["ios"].as_u64().unwrap_or_else(|| panic!("{bench}"))
}

#[test]
fn a_volume_keeps_to_its_limits_over_a_restart_and_through_a_gateway() {
    let _turn = alone();
    let cluster = TestCluster::start("limits", SMALL);
    cluster.create("v", "64M", &["--iops", "200"]);
    // What two seconds give, a burst, one request; what is under way when the time is over may be counted.
    let most = 200 * 2 + 20 + 1 + 8;
    let done = done_in_two_seconds(&cluster, "v", &[]);
    assert!((100..=most).contains(&done), "{done}");

    cluster.act("kill", "authority");
    cluster.act("start", "authority");
    cluster.wait_healthy();
    assert_eq!(cluster.json(&["volume", "show", "v"])["limits"], serde_json::json!({"iops": 200, "mibps": 0}));
    let mut gateway = cluster.attach("v");
    let done = done_in_two_seconds(&cluster, "v", &["--nbd", &gateway.uri]);
    assert!((100..=most).contains(&done), "{done}");
    assert!(gateway.stop());

    let said = cluster.refused(&["volume", "set", "v", "--mibps", "4000000000"], 2);
    assert!(said.contains("1 to 1000000 MiB per second"), "{said}");
    // 1 MiB a second: 256 blocks, and 25 of a burst.
    let set = cluster.json(&["volume", "set", "v", "--iops", "0", "--mibps", "1"]);
    assert_eq!(set["limits"], serde_json::json!({"iops": 0, "mibps": 1}));
    let done = done_in_two_seconds(&cluster, "v", &[]);
    assert!((2 * 128..=2 * 256 + 26 + 8).contains(&done), "{done}");

    cluster.run(&["volume", "set", "v", "--mibps", "0"]);
    let done = done_in_two_seconds(&cluster, "v", &[]);
    assert!(done > 3 * most, "without limits: {done}");
}
