//! The authority dies: what is healthy goes on without it (I8), and it comes back with everything it knew (I1).

use std::time::{Duration, Instant};

use crate::support::alone;
use crate::support::cluster::{PATIENCE, SMALL, TestCluster};

#[test]
fn the_authority_is_killed_under_load_and_comes_back() {
    let _alone = alone();
    let cluster = TestCluster::start("auth", SMALL);
    cluster.create("v", "256M", &[]);
    let before = cluster.json(&["volume", "show", "v"]);
    let load = cluster.load("v", 600);
    cluster.act("kill", "authority");
    assert!(cluster.try_json(&["status"]).is_err(), "the authority answers from its grave");
    // Longer than leases, silence and reports together: whoever needed the authority would have noticed by now.
    let begin = Instant::now();
    while begin.elapsed() < Duration::from_secs(8) {
        load.goes_on(Duration::from_secs(5));
    }
    cluster.act("start", "authority");
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
