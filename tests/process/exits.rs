//! States with an exit: a device rolled back to an older image (I9).

use crate::support::alone;
use crate::support::cluster::{PATIENCE, SMALL, Shape, TestCluster};

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
