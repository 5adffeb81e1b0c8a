//! A cluster on several hosts, configured as the README says: the authority on host 1, storage on hosts 11 and on, a
//! client on host 9 whose every answer is looked at.

use std::path::PathBuf;
use std::process::Command;
use std::time::{Duration, Instant};

use serde_json::Value;

use super::binaries::program;
use super::child::Child;
use super::cluster::PATIENCE;
use super::hosts::Hosts;
use super::nbd::Nbd;
use super::scratch::Scratch;
use super::wait_for;

const AUTHORITY: &str = "http://10.77.0.1:7400";
/// The authority's host.
pub(crate) const AUTHORITY_HOST: u8 = 1;
/// The client's host.
pub(crate) const CLIENT_HOST: u8 = 9;
/// Node n1 is on host 11.
const FIRST: u8 = 10;
const BLOCK: usize = 4096;

/// Everything that runs, in the order in which it has to end.
pub(crate) struct Site {
    processes: Vec<Child>,
    client: String,
    /// The network.
    pub(crate) hosts: Hosts,
    scratch: Scratch,
    zones: Vec<String>,
}

impl Site {
    /// One node in each of these zones, in this order: n1, n2, ...
    pub(crate) fn new(zones: &[&str]) -> Self {
        let scratch = Scratch::new("hosts");
        let mut hosts = Hosts::new();
        let authority = hosts.host(AUTHORITY_HOST);
        let client = hosts.host(CLIENT_HOST);
        let dir = scratch.join("authority");
        let line = ["--dir", &*dir.to_string_lossy(), "--listen", "10.77.0.1:7400"];
        let mut processes = vec![Child::start(on(&authority, "authorityd", &line), scratch.path(), "authorityd")];
        for (number, zone) in (1..).zip(zones) {
            let host = hosts.host(FIRST + number);
            let file = scratch.join(&format!("n{number}.toml"));
            let device = scratch.join(&format!("n{number}.device"));
            std::fs::write(&file, configuration(number, zone, &device.to_string_lossy())).expect("a configuration");
            let command = on(&host, "noded", &["--config", &file.to_string_lossy()]);
            processes.push(Child::start(command, scratch.path(), &format!("n{number}")));
        }
        let zones = zones.iter().map(|zone| (*zone).to_owned()).collect();
        let site = Self { processes, client, hosts, scratch, zones };
        wait_for("all nodes", PATIENCE, || {
            let nodes = site.nodectl(&["node", "ls"])?;
            let up = nodes.as_array().map_or(0, |list| list.iter().filter(|node| node["state"] == "up").count());
            if up == site.zones.len() { Ok(()) } else { Err(nodes.to_string()) }
        });
        site
    }

    /// `nodectl --authority URL args...` on the client's host.
    pub(crate) fn nodectl(&self, args: &[&str]) -> Result<Value, String> {
        let line = [&["--authority", AUTHORITY], args, &["-o", "json"]].concat();
        let output = on(&self.client, "nodectl", &line).output().expect("nodectl runs");
        if !output.status.success() {
            return Err(format!("nodectl {args:?}: {}", String::from_utf8_lossy(&output.stderr)));
        }
        serde_json::from_slice(&output.stdout).map_err(|error| error.to_string())
    }

    /// Makes a volume with one segment.
    pub(crate) fn create(&self, volume: &str, more: &[&str]) {
        let line = [&["volume", "create", volume, "--size", "64M", "--segment-size", "64M"], more].concat();
        self.nodectl(&line).expect("a volume");
        self.wait_healthy();
    }

    /// Waits until every segment has all its copies and every node is up.
    pub(crate) fn wait_healthy(&self) {
        wait_for("health", PATIENCE, || {
            let status = self.nodectl(&["status"])?;
            let well = status["health"] == "ok" && status["nodes_up"] == self.zones.len();
            if well { Ok(()) } else { Err(status.to_string()) }
        });
    }

    /// The configuration of a volume's first segment.
    pub(crate) fn config(&self, volume: &str) -> Value {
        let explain = wait_for("an explanation", PATIENCE, || self.nodectl(&["volume", "explain", volume]));
        explain["segments"][0]["config"].clone()
    }

    /// Hosts of its primary and of its backups.
    pub(crate) fn members(&self, volume: &str) -> (u8, Vec<u8>) {
        let config = self.config(volume);
        let primary = host_of(&config["primary"]);
        let members = config["members"].as_array().cloned().unwrap_or_default();
        (primary, members.iter().map(host_of).filter(|host| *host != primary).collect())
    }

    /// The zone a host is in.
    pub(crate) fn zone(&self, host: u8) -> &str {
        &self.zones[usize::from(host - FIRST - 1)]
    }

    /// Hosts of a zone.
    pub(crate) fn hosts_in(&self, zone: &str) -> Vec<u8> {
        (FIRST + 1..).zip(&self.zones).filter(|(_, name)| *name == zone).map(|(host, _)| host).collect()
    }

    /// Sends a signal to the node on a host.
    pub(crate) fn signal(&self, host: u8, signal: i32) {
        self.processes[usize::from(host - FIRST)].signal(signal);
    }

    /// Attaches on the client's host; a socket file is reached from anywhere.
    pub(crate) fn attach(&mut self, volume: &str) -> Client {
        let socket: PathBuf = self.scratch.join(volume);
        let at = format!("unix:{}", socket.display());
        let command =
            on(&self.client, "nodectl", &["--authority", AUTHORITY, "volume", "attach", volume, "--nbd", &at]);
        self.processes.push(Child::start(command, self.scratch.path(), &format!("gateway-{volume}")));
        let uri = format!("nbd+unix:///{volume}?socket={}", socket.display());
        let connect = || Nbd::connect(&uri, PATIENCE).map_err(|error| format!("{error:?}"));
        Client { nbd: wait_for("the gateway", PATIENCE, connect), blocks: vec![0; 32], next: 0 }
    }

    /// Ends everything as an operator would.
    pub(crate) fn stop(mut self) {
        for process in self.processes.iter_mut().rev() {
            process.stop(Duration::from_secs(10));
        }
    }
}

/// A client that remembers what it wrote: no error may reach it, and no read may give anything older.
pub(crate) struct Client {
    nbd: Nbd,
    /// What each block was last filled with.
    blocks: Vec<u8>,
    next: usize,
}

impl Client {
    /// Writes and reads so many blocks, one after the other; gives the longest time one of them took.
    pub(crate) fn work(&mut self, rounds: usize) -> Duration {
        let mut longest = Duration::ZERO;
        for _ in 0..rounds {
            let block = self.next % self.blocks.len();
            self.next += 1;
            let value = self.blocks[block].wrapping_add(1).max(1);
            let begun = Instant::now();
            self.nbd.write(at(block), &[value; BLOCK]).expect("a write");
            longest = longest.max(begun.elapsed());
            self.blocks[block] = value;
            let begun = Instant::now();
            self.look(block);
            longest = longest.max(begun.elapsed());
        }
        longest
    }

    /// Works on for so long.
    pub(crate) fn work_for(&mut self, span: Duration) -> Duration {
        let begun = Instant::now();
        let mut longest = Duration::ZERO;
        while begun.elapsed() < span {
            longest = longest.max(self.work(1));
        }
        longest
    }

    /// Every block is what it was last filled with.
    pub(crate) fn look_at_all(&mut self) {
        (0..self.blocks.len()).for_each(|block| self.look(block));
    }

    fn look(&mut self, block: usize) {
        let found = self.nbd.read(at(block), BLOCK).expect("a read");
        let want = self.blocks[block];
        assert!(found.iter().all(|byte| *byte == want), "block {block}: {} and not {want}: a stale read", found[0]);
    }
}

fn at(block: usize) -> u64 {
    (block * BLOCK) as u64
}

/// Host of a node (`"n3"`).
fn host_of(node: &Value) -> u8 {
    let number = node.as_str().and_then(|name| name[1..].parse::<u8>().ok());
    FIRST + number.unwrap_or_else(|| panic!("no node: {node}"))
}

/// `program args...` on a host.
fn on(host: &str, name: &str, args: &[&str]) -> Command {
    let mut command = Command::new("ip");
    command.args(["netns", "exec", host]).arg(program(name)).args(args);
    command
}

/// The README's configuration file of a node, with this host's values.
fn configuration(number: u8, zone: &str, device: &str) -> String {
    let readme = include_str!("../../README.md");
    let block = readme.split("```toml\n").nth(1).and_then(|rest| rest.split("```").next());
    let lines = block.expect("the README shows a node's configuration").lines().map(|line| {
        let key = line.split('=').next().unwrap_or_default().trim();
        let value = match key {
            "id" => format!("n{number}"),
            "authority" => AUTHORITY.to_owned(),
            "device" => device.to_owned(),
            "zone" => zone.to_owned(),
            "primary_addr" => format!("10.77.0.{}:7401", FIRST + number),
            "replication_addr" => format!("10.78.0.{}:7401", FIRST + number),
            _ => panic!("the README's configuration has a key this test does not know: {line}"),
        };
        format!("{key} = \"{value}\"\n")
    });
    lines.collect::<String>() + "device_size = \"512M\"\n"
}
