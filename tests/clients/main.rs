//! Real NBD clients against our server: nbdinfo, nbdcopy, qemu-img, qemu-io, fio, and a file system's own checker.
//!
//! Each client has a script. It runs against the server alone (over a volume in memory, for mistakes in the protocol),
//! against a volume of a real cluster, and against one whose nodes are killed and started again meanwhile. A script may
//! be repeated on the volume it left behind.
//!
//! A client that is not installed is a visible skip, and a failure where `CI=true` or `BREAKWATER_REQUIRE_CLIENTS=1`.

mod content;
mod memory;
mod scripts;
#[path = "../support/mod.rs"]
mod support;
mod weather;

use scripts::{SCRIPTS, Script, Target};
use support::cluster::{SMALL, TestCluster};
use support::gateway::Gateway;
use support::scratch::Scratch;

/// Bytes of a volume: several segments of the smallest size.
const SIZE: u64 = 192 << 20;

/// Runs one client against the server alone, over TCP and a unix socket.
fn alone(name: &str) {
    let script = SCRIPTS.iter().find(|script| script.name == name).expect("a script of that name");
    if !script.can_run() {
        return;
    }
    let scratch = Scratch::new(name);
    let server = memory::Server::start(SIZE, &scratch.join("nbd"));
    for uri in [&server.tcp, &server.unix] {
        (script.run)(&Target { uri, size: SIZE, dir: scratch.path() });
    }
}

#[test]
fn nbdinfo_and_the_server_alone() {
    alone("nbdinfo");
}

#[test]
fn nbdcopy_and_the_server_alone() {
    alone("nbdcopy");
}

#[test]
fn qemu_img_and_the_server_alone() {
    alone("qemu-img");
}

#[test]
fn qemu_io_and_the_server_alone() {
    alone("qemu-io");
}

#[test]
fn fio_and_the_server_alone() {
    alone("fio");
}

#[test]
fn ext4_and_the_server_alone() {
    alone("ext4");
}

/// The scripts whose clients are installed.
fn runnable() -> Vec<&'static Script> {
    SCRIPTS.iter().filter(|script| script.can_run()).collect()
}

#[test]
fn clients_of_a_healthy_cluster() {
    let _turn = support::alone();
    let cluster = TestCluster::start("calm", SMALL);
    cluster.create("calm", &SIZE.to_string(), &[]);
    let gateway = cluster.attach("calm");
    for script in runnable() {
        weather::timed(script.name, || (script.run)(&Target { uri: &gateway.uri, size: SIZE, dir: cluster.scratch() }));
    }
}

#[test]
fn clients_while_nodes_are_killed_and_started_again() {
    let _turn = support::alone();
    let cluster = TestCluster::start("storm", SMALL);
    cluster.create("storm", &SIZE.to_string(), &[]);
    let socket = format!("unix:{}", cluster.scratch().join("nbd").display());
    let gateway = Gateway::start_at(&cluster, "storm", &socket);
    weather::storm(&cluster, "storm", |storm| {
        for script in runnable() {
            // Again, until a node was killed and came back meanwhile.
            let before = storm.survived();
            while storm.survived() < before + 2 {
                let target = Target { uri: &gateway.uri, size: SIZE, dir: cluster.scratch() };
                weather::timed(script.name, || (script.run)(&target));
            }
        }
    });
    cluster.wait_healthy();
}
