//! The cluster a failover is measured on: real processes, each on a host of its own where that can be had.
//!
//! Unlike `cluster up` this does to its nodes what nobody would: it stops their processes, pulls their cables, lets
//! their disks stand still. The thread that starts the processes has to live as long as they do (they die with it).

use std::collections::BTreeMap;
use std::path::Path;
use std::process::Child;
use std::time::{Duration, Instant};

use engine_core::ids::NodeId;

use super::hosts::{HOSTS_MAX, Hosts};
use super::stall::Throttle;
use crate::cluster::child;
use crate::cluster::dir::{ClusterFile, Dir, Settings};
use crate::cluster::up;
use crate::failure::{Exit, Failure};
use crate::http::Api;

/// How long the cluster may take until every node serves.
const READY_LIMIT: Duration = Duration::from_secs(120);
/// How long a process may take to end when asked.
const STOP_LIMIT: Duration = Duration::from_secs(30);
/// How long one asking of the authority may take.
const DEADLINE: Duration = Duration::from_secs(3);
const POLL: Duration = Duration::from_millis(20);
const AUTHORITY_PORT: u16 = 7400;
const NODE_PORT: u16 = 7401;

/// A running cluster.
pub(super) struct Fleet {
    dir: Dir,
    settings: Settings,
    file: ClusterFile,
    api: Api,
    hosts: Option<Hosts>,
    throttle: Result<Throttle, String>,
    authority: Option<Child>,
    nodes: BTreeMap<NodeId, Child>,
}

impl Fleet {
    /// Starts everything and waits until every node serves. `apart`: every node on a host of its own.
    pub(super) fn start(args: &up::Args, apart: bool) -> Result<Self, Failure> {
        let dir = Dir::new(&args.dir);
        let settings = args.fresh();
        let mut file = up::fresh_file(&dir, &settings)?;
        let hosts = apart.then(|| separate(&mut file)).transpose().map_err(Failure::failed)?;
        std::fs::create_dir_all(dir.path())
            .map_err(|error| Failure::failed(format!("could not make {}: {error}", dir.path().display())))?;
        let throttle = Throttle::new(dir.path());
        let api = Api::new(&file.authority, Some(DEADLINE));
        let nodes = BTreeMap::new();
        let mut fleet = Self { dir, settings, file, api, hosts, throttle, authority: None, nodes };
        fleet.start_authority()?;
        for node in fleet.ids() {
            fleet.start_node(node)?;
        }
        fleet.wait("every node to serve", READY_LIMIT, |fleet| Ok(fleet.all_up()?.then_some(())))?;
        Ok(fleet)
    }

    /// A client of its authority.
    pub(super) const fn api(&self) -> &Api {
        &self.api
    }

    /// Where logs are.
    pub(super) fn path(&self) -> &Path {
        self.dir.path()
    }

    /// Whether cables can be pulled.
    pub(super) const fn has_cables(&self) -> bool {
        self.hosts.is_some()
    }

    /// Why disks cannot be let stand still, if they cannot.
    pub(super) fn no_stall(&self) -> Option<&str> {
        self.throttle.as_ref().err().map(String::as_str)
    }

    fn ids(&self) -> Vec<NodeId> {
        self.file.nodes.iter().map(|node| node.id).collect()
    }

    /// Nodes of the zone a node is in.
    pub(super) fn zone_of(&self, node: NodeId) -> Vec<NodeId> {
        let zone = self.file.nodes.iter().find(|entry| entry.id == node).map(|entry| entry.zone.as_str());
        self.file.nodes.iter().filter(|entry| Some(entry.zone.as_str()) == zone).map(|entry| entry.id).collect()
    }

    /// Whether every node is in touch with the authority.
    pub(super) fn all_up(&self) -> Result<bool, Failure> {
        let nodes = self.api.nodes()?;
        Ok(nodes.len() == self.file.nodes.len() && nodes.iter().all(|node| node.state == "up"))
    }

    pub(super) fn start_authority(&mut self) -> Result<(), Failure> {
        self.authority = Some(child::authority(&self.dir, &self.settings, &self.file)?);
        Ok(())
    }

    pub(super) fn kill_authority(&mut self) -> Result<(), Failure> {
        let Some(child) = self.authority.take() else { return Ok(()) };
        end(child, "authority")
    }

    pub(super) fn start_node(&mut self, node: NodeId) -> Result<(), Failure> {
        let entry = self.file.nodes.iter().find(|entry| entry.id == node).expect("only nodes there are get started");
        let namespace = self.hosts.as_ref().and_then(|hosts| hosts.of(node));
        let child = child::node(&self.dir, &self.settings, &self.file.authority, entry, namespace)?;
        if let Ok(throttle) = &mut self.throttle
            && let Err(why) = throttle.adopt(node, child.id())
        {
            self.throttle = Err(why);
        }
        self.nodes.insert(node, child);
        Ok(())
    }

    /// SIGKILL, and waits until the process is gone.
    pub(super) fn kill_node(&mut self, node: NodeId) -> Result<(), Failure> {
        let Some(child) = self.nodes.remove(&node) else { return Ok(()) };
        end(child, &node.to_string())
    }

    /// SIGTERM, and waits until the process has ended.
    pub(super) fn terminate_node(&mut self, node: NodeId) -> Result<(), Failure> {
        let Some(mut child) = self.nodes.remove(&node) else { return Ok(()) };
        child::ask_to_stop(&child);
        let begun = Instant::now();
        while begun.elapsed() < STOP_LIMIT {
            if let Ok(Some(_)) = child.try_wait() {
                return Ok(());
            }
            std::thread::sleep(POLL);
        }
        end(child, &node.to_string())?;
        Err(Failure::new(Exit::WaitTimedOut, format!("{node} was asked to stop and ran on for 30 s")))
    }

    /// SIGSTOP, SIGCONT.
    pub(super) fn signal(&self, node: NodeId, signal: i32) {
        if let Some(pid) = self.nodes.get(&node).and_then(|child| libc::pid_t::try_from(child.id()).ok()) {
            // SAFETY: the child is ours and not yet waited for, so the id can't be another's.
            unsafe { libc::kill(pid, signal) };
        }
    }

    /// Lets a node's device stand still, or go on.
    pub(super) fn stall(&self, node: NodeId, still: bool) -> Result<(), Failure> {
        let throttle = self.throttle.as_ref().map_err(|why| Failure::failed(why.clone()))?;
        throttle.set(node, still).map_err(Failure::failed)
    }

    /// Power off: the cables first, so that nobody hears the processes die.
    pub(super) fn power_off(&mut self, nodes: &[NodeId]) -> Result<(), Failure> {
        Hosts::cables(nodes, "down").map_err(Failure::failed)?;
        nodes.iter().try_for_each(|node| self.kill_node(*node))
    }

    /// Power on.
    pub(super) fn power_on(&mut self, nodes: &[NodeId]) -> Result<(), Failure> {
        Hosts::cables(nodes, "up").map_err(Failure::failed)?;
        nodes.iter().try_for_each(|node| self.start_node(*node))
    }

    /// Asks until there is an answer. An authority that cannot be asked is asked again.
    pub(super) fn wait<T>(
        &self,
        what: &str,
        limit: Duration,
        mut ask: impl FnMut(&Self) -> Result<Option<T>, Failure>,
    ) -> Result<T, Failure> {
        let begun = Instant::now();
        loop {
            let last = match ask(self) {
                Ok(Some(answer)) => return Ok(answer),
                Ok(None) => String::new(),
                Err(failure) => format!(" (last error: {})", failure.what),
            };
            if begun.elapsed() > limit {
                let what = format!("waited {:.0} s for {what}{last}", limit.as_secs_f64());
                return Err(Failure::new(Exit::WaitTimedOut, what));
            }
            std::thread::sleep(POLL);
        }
    }

    /// SIGTERM to all; what does not end in time gets SIGKILL.
    pub(super) fn stop(mut self) {
        for node in self.ids() {
            let _ = self.stall(node, false);
            self.signal(node, libc::SIGCONT);
        }
        self.nodes.values().for_each(child::ask_to_stop);
        for node in self.ids() {
            if let Err(failure) = self.terminate_node(node) {
                eprintln!("{failure}");
            }
        }
        let _ = self.kill_authority();
    }
}

/// Gives every node a host of its own and its addresses there; the authority stays with this process.
fn separate(file: &mut ClusterFile) -> Result<Hosts, String> {
    if file.nodes.len() > usize::from(HOSTS_MAX) {
        return Err(format!("at most {HOSTS_MAX} nodes can have hosts of their own"));
    }
    let mut hosts = Hosts::new()?;
    file.authority = format!("http://{}:{AUTHORITY_PORT}", Hosts::own());
    for node in &mut file.nodes {
        hosts.add(node.id)?;
        let [primary, replication] = Hosts::addresses(node.id);
        node.primary_addr = format!("{primary}:{NODE_PORT}");
        node.replication_addr = format!("{replication}:{NODE_PORT}");
    }
    Ok(hosts)
}

fn end(mut child: Child, who: &str) -> Result<(), Failure> {
    let ended = child.kill().and_then(|()| child.wait());
    ended.map(drop).map_err(|error| Failure::failed(format!("could not end the process of {who}: {error}")))
}
