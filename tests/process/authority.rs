//! The authority dies: what is healthy goes on without it (I8), and it comes back with everything it knew (I1).

use std::process::Command;
use std::time::Duration;

use crate::support::child::{self, Child};
use crate::support::cluster::{PATIENCE, SMALL, TestCluster};
use crate::support::{alone, wait_for};

#[test]
fn the_authority_is_killed_under_load_and_comes_back() {
    let _alone = alone();
    let cluster = TestCluster::start("auth", SMALL);
    cluster.create("v", "256M", &[]);
    let before = cluster.json(&["volume", "show", "v"]);
    let load = cluster.load("v", 600);
    let (pid, line) = cluster.authority();
    child::send(pid, libc::SIGKILL);
    wait_for("the authority to be gone", PATIENCE, || {
        cluster.try_json(&["status"]).map_or(Ok(()), |status| Err(status.to_string()))
    });
    // Longer than leases, silence and reports together: whoever needed the authority would have noticed by now.
    let begin = std::time::Instant::now();
    while begin.elapsed() < Duration::from_secs(8) {
        load.goes_on(Duration::from_secs(5));
    }
    let mut again = Command::new(&line[0]);
    again.args(&line[1..]);
    let _authority = Child::start(again, cluster.scratch(), "authority-again");
    cluster.wait_healthy();
    let after = cluster.json(&["volume", "show", "v"]);
    for kept in ["id", "name", "size", "copies", "segments"] {
        assert_eq!(before[kept], after[kept], "{kept}");
    }
    // It works again, not only answers: a volume is made, a node killed and brought back.
    cluster.create("w", "64M", &[]);
    let node = cluster.primary("v", 0);
    cluster.act("kill", &node);
    load.goes_on(PATIENCE);
    cluster.act("start", &node);
    cluster.wait_healthy();
    load.finish(&cluster);
}
