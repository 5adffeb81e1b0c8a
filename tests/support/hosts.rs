//! Hosts: a network namespace each, on two bridges. Cables are pulled, single ways between two hosts are cut, links are
//! made slow; what is cut is silent.

use std::process::Command;

/// The two networks: interface, second part of the address.
const NETWORKS: [(&str, u8); 2] = [("primary", 77), ("small", 78)];
/// A hardware address nobody has: frames to it reach nobody.
const NOBODY: &str = "02:00:00:00:00:ff";

/// Namespaces joined by two bridges in one more; gone when it is dropped.
pub(crate) struct Hosts {
    prefix: String,
    made: Vec<String>,
}

impl Hosts {
    /// The bridges, and nobody on them.
    pub(crate) fn new() -> Self {
        let mut hosts = Self { prefix: format!("bw{}", std::process::id()), made: Vec::new() };
        let switch = hosts.add("switch");
        for (bridge, _) in NETWORKS {
            ip(&["-n", &switch, "link", "add", bridge, "type", "bridge"]);
            ip(&["-n", &switch, "link", "set", bridge, "up"]);
        }
        hosts
    }

    fn add(&mut self, name: &str) -> String {
        let name = self.name(name);
        ip(&["netns", "add", &name]);
        ip(&["-n", &name, "link", "set", "lo", "up"]);
        self.made.push(name.clone());
        name
    }

    fn name(&self, name: &str) -> String {
        format!("{}-{name}", self.prefix)
    }

    /// A host with `10.77.0.number` on the primary network and `10.78.0.number` on the small one.
    pub(crate) fn host(&mut self, number: u8) -> String {
        let name = self.add(&number.to_string());
        let switch = self.name("switch");
        for (bridge, net) in NETWORKS {
            let port = format!("{bridge}{number}");
            ip(&["-n", &name, "link", "add", bridge, "type", "veth", "peer", "name", &port, "netns", &switch]);
            ip(&["-n", &name, "addr", "add", &format!("10.{net}.0.{number}/24"), "dev", bridge]);
            ip(&["-n", &name, "link", "set", bridge, "up"]);
            ip(&["-n", &switch, "link", "set", &port, "master", bridge]);
            ip(&["-n", &switch, "link", "set", &port, "up"]);
        }
        name
    }

    /// Plugs a host's cable in (`up`) or out (`down`).
    pub(crate) fn cable(&self, number: u8, bridge: &str, state: &str) {
        ip(&["-n", &self.name("switch"), "link", "set", &format!("{bridge}{number}"), state]);
    }

    /// Both cables of several hosts.
    pub(crate) fn cables(&self, numbers: &[u8], state: &str) {
        for number in numbers {
            NETWORKS.iter().for_each(|(bridge, _)| self.cable(*number, bridge, state));
        }
    }

    /// Cuts the way from one host to another on both networks: what `from` sends does not arrive. The way back stays.
    pub(crate) fn cut(&self, from: u8, to: u8) {
        for (bridge, net) in NETWORKS {
            let address = format!("10.{net}.0.{to}");
            let host = self.name(&from.to_string());
            ip(&["-n", &host, "neigh", "replace", &address, "lladdr", NOBODY, "dev", bridge, "nud", "permanent"]);
        }
    }

    /// Opens it again.
    pub(crate) fn mend(&self, from: u8, to: u8) {
        for (bridge, net) in NETWORKS {
            let host = self.name(&from.to_string());
            ip(&["-n", &host, "neigh", "del", &format!("10.{net}.0.{to}"), "dev", bridge]);
        }
    }

    /// Limits what a host can send and receive on its primary network to so many kbit/s.
    pub(crate) fn slow(&self, number: u8, kbit: u32) {
        let (host, port) = (self.name(&number.to_string()), format!("primary{number}"));
        for (namespace, device) in [(&host, "primary"), (&self.name("switch"), &*port)] {
            let rate = format!("{kbit}kbit");
            let line = ["-n", namespace, "qdisc", "add", "dev", device, "root", "tbf", "rate", &rate];
            run("tc", &[&line[..], &["burst", "16k", "limit", "256k"]].concat());
        }
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
    run("ip", args);
}

fn run(program: &str, args: &[&str]) {
    let output = Command::new(program).args(args).output().unwrap_or_else(|error| panic!("{program}: {error}"));
    assert!(output.status.success(), "{program} {args:?}: {}", String::from_utf8_lossy(&output.stderr));
}
