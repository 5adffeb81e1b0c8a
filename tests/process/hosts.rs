//! Several hosts: every process in a network namespace of its own, configured as the README says, on two networks.
//! A host that loses its primary network is not lost (R8, I8).

use std::path::PathBuf;
use std::process::Command;
use std::time::Duration;

use serde_json::Value;

use crate::support::binaries::program;
use crate::support::child::Child;
use crate::support::cluster::PATIENCE;
use crate::support::nbd::Nbd;
use crate::support::scratch::Scratch;
use crate::support::{alone, needs, wait_for};

const AUTHORITY: &str = "http://10.77.0.1:7400";
const STORAGE_HOSTS: u8 = 3;
const CLIENT_HOST: u8 = 9;

/// Namespaces joined by two bridges in one more; gone when it is dropped.
struct Hosts {
    prefix: String,
    made: Vec<String>,
}

impl Hosts {
    fn new() -> Self {
        let mut hosts = Self { prefix: format!("bw{}", std::process::id()), made: Vec::new() };
        let switch = hosts.add("switch");
        for bridge in ["primary", "small"] {
            ip(&["-n", &switch, "link", "add", bridge, "type", "bridge"]);
            ip(&["-n", &switch, "link", "set", bridge, "up"]);
        }
        hosts
    }

    fn add(&mut self, name: &str) -> String {
        let name = format!("{}-{name}", self.prefix);
        ip(&["netns", "add", &name]);
        ip(&["-n", &name, "link", "set", "lo", "up"]);
        self.made.push(name.clone());
        name
    }

    /// A host with `10.77.0.number` on the primary network and `10.78.0.number` on the small one.
    fn host(&mut self, number: u8) -> String {
        let name = self.add(&number.to_string());
        let switch = format!("{}-switch", self.prefix);
        for (bridge, net) in [("primary", 77), ("small", 78)] {
            let port = format!("{bridge}{number}");
            ip(&["-n", &name, "link", "add", bridge, "type", "veth", "peer", "name", &port, "netns", &switch]);
            ip(&["-n", &name, "addr", "add", &format!("10.{net}.0.{number}/24"), "dev", bridge]);
            ip(&["-n", &name, "link", "set", bridge, "up"]);
            ip(&["-n", &switch, "link", "set", &port, "master", bridge]);
            ip(&["-n", &switch, "link", "set", &port, "up"]);
        }
        name
    }

    /// Plugs a host's cable in or out.
    fn cable(&self, number: u8, bridge: &str, state: &str) {
        let switch = format!("{}-switch", self.prefix);
        ip(&["-n", &switch, "link", "set", &format!("{bridge}{number}"), state]);
    }
}

impl Drop for Hosts {
    fn drop(&mut self) {
        for name in &self.made {
            let _ = Command::new("ip").args(["netns", "del", name]).status();
        }
    }
}

fn ip(args: &[&str]) {
    let output = Command::new("ip").args(args).output().expect("ip runs");
    assert!(output.status.success(), "ip {args:?}: {}", String::from_utf8_lossy(&output.stderr));
}

/// `program args...` on a host.
fn on(host: &str, name: &str, args: &[&str]) -> Command {
    let mut command = Command::new("ip");
    command.args(["netns", "exec", host]).arg(program(name)).args(args);
    command
}

/// The README's configuration file of a node, with this host's values.
fn configuration(number: u8, device: &str) -> String {
    let readme = include_str!("../../README.md");
    let block = readme.split("```toml\n").nth(1).and_then(|rest| rest.split("```").next());
    let lines = block.expect("the README shows a node's configuration").lines().map(|line| {
        let key = line.split('=').next().unwrap_or_default().trim();
        let value = match key {
            "id" => format!("n{number}"),
            "authority" => AUTHORITY.to_owned(),
            "device" => device.to_owned(),
            "zone" => "a".to_owned(),
            "primary_addr" => format!("10.77.0.{}:7401", 10 + number),
            "replication_addr" => format!("10.78.0.{}:7401", 10 + number),
            _ => panic!("the README's configuration has a key this test does not know: {line}"),
        };
        format!("{key} = \"{value}\"\n")
    });
    lines.collect::<String>() + "device_size = \"1G\"\n"
}

/// Everything that runs, in the order in which it has to end.
struct Site {
    processes: Vec<Child>,
    client: String,
    hosts: Hosts,
    scratch: Scratch,
}

impl Site {
    fn new() -> Self {
        let scratch = Scratch::new("hosts");
        let mut hosts = Hosts::new();
        let authority = hosts.host(1);
        let client = hosts.host(CLIENT_HOST);
        let dir = scratch.join("authority");
        let line = ["--dir", &*dir.to_string_lossy(), "--listen", "10.77.0.1:7400"];
        let mut processes = vec![Child::start(on(&authority, "authorityd", &line), scratch.path(), "authorityd")];
        for number in 1..=STORAGE_HOSTS {
            let host = hosts.host(10 + number);
            let file = scratch.join(&format!("n{number}.toml"));
            let device = scratch.join(&format!("n{number}.device"));
            std::fs::write(&file, configuration(number, &device.to_string_lossy())).expect("a configuration");
            let command = on(&host, "noded", &["--config", &file.to_string_lossy()]);
            processes.push(Child::start(command, scratch.path(), &format!("n{number}")));
        }
        Self { processes, client, hosts, scratch }
    }

    /// `nodectl --authority URL args...` on the client's host.
    fn nodectl(&self, args: &[&str]) -> Result<Value, String> {
        let line = [&["--authority", AUTHORITY], args, &["-o", "json"]].concat();
        let output = on(&self.client, "nodectl", &line).output().expect("nodectl runs");
        if !output.status.success() {
            return Err(format!("nodectl {args:?}: {}", String::from_utf8_lossy(&output.stderr)));
        }
        serde_json::from_slice(&output.stdout).map_err(|error| error.to_string())
    }

    fn wait_healthy(&self) {
        wait_for("health", PATIENCE, || {
            let status = self.nodectl(&["status"])?;
            let well = status["health"] == "ok" && status["nodes_up"] == STORAGE_HOSTS;
            if well { Ok(()) } else { Err(status.to_string()) }
        });
    }

    /// Attaches on the client's host; a socket file is reached from anywhere.
    fn attach(&mut self, volume: &str) -> Nbd {
        let socket: PathBuf = self.scratch.join("s");
        let at = format!("unix:{}", socket.display());
        let command =
            on(&self.client, "nodectl", &["--authority", AUTHORITY, "volume", "attach", volume, "--nbd", &at]);
        self.processes.push(Child::start(command, self.scratch.path(), "gateway"));
        let uri = format!("nbd+unix:///{volume}?socket={}", socket.display());
        wait_for("the gateway", PATIENCE, || Nbd::connect(&uri, PATIENCE).map_err(|error| format!("{error:?}")))
    }
}

#[test]
fn every_node_on_a_host_of_its_own() {
    if !needs::root("every_node_on_a_host_of_its_own") || !needs::programs("every_node_on_a_host_of_its_own", &["ip"]) {
        return;
    }
    let _alone = alone();
    let mut site = Site::new();
    wait_for("all nodes", PATIENCE, || {
        let nodes = site.nodectl(&["node", "ls"])?;
        let up = nodes.as_array().map_or(0, |list| list.iter().filter(|node| node["state"] == "up").count());
        if up == usize::from(STORAGE_HOSTS) { Ok(()) } else { Err(nodes.to_string()) }
    });
    site.nodectl(&["volume", "create", "disk", "--size", "128M", "--segment-size", "64M"]).expect("a volume");
    site.wait_healthy();
    let mut client = site.attach("disk");
    let mut written = 0u64;
    let mut write_some = |client: &mut Nbd| {
        for _ in 0..32 {
            written += 1;
            let value = written.to_le_bytes()[0];
            client.write(written * 4096, &[value; 4096]).expect("a write");
        }
        written
    };
    write_some(&mut client);
    // One host after the other loses its primary network and gets it back; the client never sees an error.
    for number in 1..=STORAGE_HOSTS {
        site.hosts.cable(10 + number, "primary", "down");
        write_some(&mut client);
        site.hosts.cable(10 + number, "primary", "up");
        site.wait_healthy();
    }
    let written = write_some(&mut client);
    for block in 1..=written {
        let found = client.read(block * 4096, 4096).expect("a read");
        let want = block.to_le_bytes()[0];
        assert!(found.iter().all(|byte| *byte == want), "block {block} is not what was acknowledged");
    }
    drop(client);
    for process in site.processes.iter_mut().rev() {
        process.stop(Duration::from_secs(10));
    }
}
