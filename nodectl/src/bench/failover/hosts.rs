//! Hosts for the cluster's nodes: a network namespace each, on two bridges, so that a cable can be cut.
//!
//! Everything is private to this process: it moves into a namespace of its own, where the bridges are, and holds those
//! of its nodes by file descriptors alone. Nothing has a name on the machine, so nothing stays behind, however this
//! process ends. A cut cable is silent: neither a refusal nor the end of a connection comes through it.

use std::collections::BTreeMap;
use std::fmt::Write as _;
use std::fs::File;
use std::io::Write as _;
use std::os::fd::{AsRawFd, RawFd};
use std::os::unix::process::CommandExt;
use std::process::{Command, Stdio};

use engine_core::ids::NodeId;

use crate::cluster::child;

/// The two networks: bridge and interface, third part of the address.
const NETWORKS: [(&str, u8); 2] = [("primary", 77), ("small", 78)];
/// Hosts have addresses from here on, their node's number added.
const FIRST: u16 = 10;
/// Most hosts: an address has one byte for them.
pub(super) const HOSTS_MAX: u16 = 200;

/// The hosts, by node.
#[derive(Debug)]
pub(super) struct Hosts(BTreeMap<NodeId, File>);

impl Hosts {
    /// Moves this thread, and those it starts from here on, into a namespace with two empty bridges.
    pub(super) fn new() -> Result<Self, String> {
        new_namespace()?;
        let mut script = String::from("link set lo up\n");
        for (bridge, net) in NETWORKS {
            let _ = writeln!(script, "link add br-{bridge} type bridge\naddr add 10.{net}.0.1/24 dev br-{bridge}");
            let _ = writeln!(script, "link set br-{bridge} up");
        }
        ip(None, &script)?;
        Ok(Self(BTreeMap::new()))
    }

    /// Address of this process on the primary network.
    pub(super) const fn own() -> &'static str {
        "10.77.0.1"
    }

    /// A node's addresses on both networks.
    pub(super) fn addresses(node: NodeId) -> [String; 2] {
        NETWORKS.map(|(_, net)| format!("10.{net}.0.{}", FIRST + node.0))
    }

    /// Makes a node's host.
    pub(super) fn add(&mut self, node: NodeId) -> Result<(), String> {
        // A thread's namespace, kept by its descriptor when the thread has ended.
        let made = std::thread::spawn(|| {
            new_namespace()?;
            File::open("/proc/thread-self/ns/net").map_err(|error| error.to_string())
        });
        let host = made.join().map_err(|_| "the thread that makes a namespace panicked".to_owned())??;
        let at = format!("/proc/{}/fd/{}", std::process::id(), host.as_raw_fd());
        let (mut outside, mut inside) = (String::new(), String::from("link set lo up\n"));
        for ((network, _), address) in NETWORKS.iter().zip(Self::addresses(node)) {
            let port = port(network, node);
            let _ = writeln!(outside, "link add {port} type veth peer name {network} netns {at}");
            let _ = writeln!(outside, "link set {port} master br-{network} up");
            let _ = writeln!(inside, "addr add {address}/24 dev {network}\nlink set {network} up");
        }
        ip(None, &outside)?;
        ip(Some(host.as_raw_fd()), &inside)?;
        self.0.insert(node, host);
        Ok(())
    }

    /// A node's namespace.
    pub(super) fn of(&self, node: NodeId) -> Option<RawFd> {
        self.0.get(&node).map(AsRawFd::as_raw_fd)
    }

    /// Cuts or plugs in both cables of these hosts, all in one go.
    pub(super) fn cables(nodes: &[NodeId], state: &str) -> Result<(), String> {
        let mut script = String::new();
        for node in nodes {
            for (network, _) in NETWORKS {
                let _ = writeln!(script, "link set {} {state}", port(network, *node));
            }
        }
        ip(None, &script)
    }
}

/// The bridge's end of a cable.
fn port(network: &str, node: NodeId) -> String {
    format!("{}-{node}", &network[..1])
}

fn new_namespace() -> Result<(), String> {
    // SAFETY: unshare takes a plain number and changes this thread's namespace alone.
    if unsafe { libc::unshare(libc::CLONE_NEWNET) } == 0 {
        return Ok(());
    }
    Err(format!("no network namespace: {} (root may make one)", std::io::Error::last_os_error()))
}

/// Runs a batch of `ip` commands, in another namespace if one is given.
fn ip(inside: Option<RawFd>, script: &str) -> Result<(), String> {
    let mut command = Command::new("ip");
    command.args(["-batch", "-"]).stdin(Stdio::piped()).stdout(Stdio::null()).stderr(Stdio::piped());
    if let Some(namespace) = inside {
        // SAFETY: the closure makes one system call and allocates nothing.
        unsafe { command.pre_exec(move || child::enter(namespace)) };
    }
    let mut child = command.spawn().map_err(|error| format!("`ip` (iproute2) cannot be run: {error}"))?;
    let mut stdin = child.stdin.take().expect("it was piped");
    stdin.write_all(script.as_bytes()).map_err(|error| format!("`ip` takes no commands: {error}"))?;
    drop(stdin);
    let output = child.wait_with_output().map_err(|error| error.to_string())?;
    if output.status.success() {
        return Ok(());
    }
    Err(format!("`ip` refused: {}", String::from_utf8_lossy(&output.stderr).trim()))
}
