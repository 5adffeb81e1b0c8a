//! A local cluster of real processes in a directory of its own, driven by `nodectl` as an operator would.

use std::path::{Path, PathBuf};
use std::process::{Command, Output};
use std::time::Duration;

use serde_json::Value;

use super::binaries::nodectl;
use super::child::{self, Child};
use super::gateway::Gateway;
use super::scratch::Scratch;
use super::wait_for;

/// How long a healthy small cluster may take to come up, or back to health, on a slow machine.
pub(crate) const PATIENCE: Duration = Duration::from_secs(90);

/// What a story asks for.
#[derive(Clone, Copy)]
pub(crate) struct Shape {
    pub(crate) nodes: u16,
    pub(crate) zones: u16,
    /// Size of each device, as on the command line.
    pub(crate) device: &'static str,
    /// How long a missing replica may come back before it is re-mirrored.
    pub(crate) grace: &'static str,
}

/// Small enough for a laptop, large enough for three copies and a spare node.
pub(crate) const SMALL: Shape = Shape { nodes: 4, zones: 1, device: "1G", grace: "600s" };

/// Three copies and nobody else; one shard each, small enough to be looked through, and a WAL that a load goes round.
pub(crate) const THREE: Shape = Shape { nodes: 3, device: "256M", ..SMALL };

/// A cluster that ends with the story.
pub(crate) struct TestCluster {
    up: Child,
    // Behind `up`: dropped last, when nobody writes into it any more.
    scratch: Scratch,
}

impl TestCluster {
    /// Starts a cluster and waits until all its nodes are in touch with the authority.
    pub(crate) fn start(story: &str, shape: Shape) -> Self {
        Self::start_with(story, shape, &[])
    }

    /// With more flags of `cluster up`.
    pub(crate) fn start_with(story: &str, shape: Shape, more: &[&str]) -> Self {
        let scratch = Scratch::new(story);
        let dir = scratch.join("d");
        let mut command = nodectl();
        command.args(["cluster", "up", "--nodes", &shape.nodes.to_string(), "--zones", &shape.zones.to_string()]);
        command.args(["--device-size", shape.device, "--grace", shape.grace]).args(more).arg("--dir").arg(&dir);
        let up = Child::start(command, scratch.path(), "up");
        let mut cluster = Self { up, scratch };
        wait_for("the cluster to come up", PATIENCE, || {
            assert!(cluster.up.ended().is_none(), "`cluster up` ended:\n{}", cluster.up.stderr());
            let status = cluster.try_json(&["status"])?;
            let up = status["nodes_up"].as_u64().unwrap_or_default();
            if up == u64::from(shape.nodes) { Ok(()) } else { Err(format!("{up} nodes up")) }
        });
        cluster
    }

    /// The cluster's directory.
    pub(crate) fn dir(&self) -> PathBuf {
        self.scratch.join("d")
    }

    /// The story's directory, for its own files.
    pub(crate) fn scratch(&self) -> &Path {
        self.scratch.path()
    }

    /// `nodectl --cluster D args...`, ready to run.
    pub(crate) fn command(&self, args: &[&str]) -> Command {
        let mut command = nodectl();
        command.arg("--cluster").arg(self.dir()).args(args);
        command
    }

    /// Runs a command that has to work.
    pub(crate) fn run(&self, args: &[&str]) -> String {
        succeeded(args, &self.command(args).output().expect("nodectl runs"))
    }

    /// Runs a command that has to be refused, with this exit code. Gives what it said.
    pub(crate) fn refused(&self, args: &[&str], exit: i32) -> String {
        let output = self.command(args).output().expect("nodectl runs");
        let said = String::from_utf8_lossy(&output.stderr).into_owned();
        assert_eq!(output.status.code(), Some(exit), "nodectl {args:?} said: {said}");
        said
    }

    /// Runs a command with `-o json` and reads its document.
    pub(crate) fn json(&self, args: &[&str]) -> Value {
        self.try_json(args).unwrap_or_else(|problem| panic!("{problem}"))
    }

    /// As [`Self::json`], with the problem as text.
    pub(crate) fn try_json(&self, args: &[&str]) -> Result<Value, String> {
        let output = self.command(args).args(["-o", "json"]).output().expect("nodectl runs");
        if !output.status.success() {
            return Err(format!("nodectl {args:?}: {}", String::from_utf8_lossy(&output.stderr)));
        }
        serde_json::from_slice(&output.stdout).map_err(|error| format!("nodectl {args:?}: {error}"))
    }

    /// `nodectl cluster ACT NODE`, for `stop`, `kill`, `start` (waits until it serves), `lose`; also for `authority`.
    pub(crate) fn act(&self, act: &str, node: &str) {
        let mut command = nodectl();
        command.args(["cluster", act, node]).arg("--dir").arg(self.dir());
        succeeded(&["cluster", act, node], &command.output().expect("nodectl runs"));
    }

    /// What `D/cluster.json` says.
    pub(crate) fn description(&self) -> Value {
        let path = self.dir().join("cluster.json");
        let text = std::fs::read(&path).unwrap_or_else(|error| panic!("{}: {error}", path.display()));
        serde_json::from_slice(&text).unwrap_or_else(|error| panic!("{}: {error}", path.display()))
    }

    /// What it says of one node.
    pub(crate) fn node(&self, node: &str) -> Value {
        let description = self.description();
        let nodes = description["nodes"].as_array().cloned().unwrap_or_default();
        let found = nodes.into_iter().find(|entry| entry["id"] == node);
        found.unwrap_or_else(|| panic!("cluster.json names no {node}: {description}"))
    }

    /// The device of a node.
    pub(crate) fn device(&self, node: &str) -> PathBuf {
        PathBuf::from(self.node(node)["device"].as_str().expect("a path"))
    }

    /// `nodectl store check --data` of a device: its exit code, its document, and what it said.
    pub(crate) fn check_device(&self, device: &Path) -> (Option<i32>, Value, String) {
        let args = ["store", "check", "--data", "-o", "json", &device.to_string_lossy()];
        let output = self.command(&args).output().expect("nodectl runs");
        let document = serde_json::from_slice(&output.stdout).unwrap_or_default();
        (output.status.code(), document, String::from_utf8_lossy(&output.stderr).into_owned())
    }

    /// Ids of all nodes.
    pub(crate) fn nodes(&self) -> Vec<String> {
        let description = self.description();
        let nodes = description["nodes"].as_array().cloned().unwrap_or_default();
        nodes.iter().filter_map(|node| node["id"].as_str().map(str::to_owned)).collect()
    }

    /// Process id of a node.
    pub(crate) fn pid(&self, node: &str) -> u32 {
        let pid = self.node(node)["pid"].as_u64().and_then(|pid| u32::try_from(pid).ok());
        pid.unwrap_or_else(|| panic!("{node} does not run"))
    }

    /// Process id and command line of the authority.
    pub(crate) fn authority(&self) -> (u32, Vec<String>) {
        let running = child::processes_of(&self.dir());
        let found = running.into_iter().find(|(_, line)| line.iter().any(|word| word.ends_with("authorityd")));
        found.expect("the authority runs")
    }

    /// SIGSTOP.
    pub(crate) fn pause(&self, node: &str) {
        child::send(self.pid(node), libc::SIGSTOP);
    }

    /// SIGCONT.
    pub(crate) fn resume(&self, node: &str) {
        child::send(self.pid(node), libc::SIGCONT);
    }

    /// Waits until `status` is as wanted.
    pub(crate) fn wait_status(&self, what: &str, wanted: impl Fn(&Value) -> bool) -> Value {
        wait_for(what, PATIENCE, || {
            let status = self.try_json(&["status"])?;
            if wanted(&status) { Ok(status) } else { Err(status.to_string()) }
        })
    }

    /// Waits until every segment has all its copies and serves, and every node is up.
    pub(crate) fn wait_healthy(&self) {
        self.wait_status("health", |status| status["health"] == "ok" && status["nodes_up"] == status["nodes_total"]);
    }

    /// Waits until every segment has all its copies and serves, whichever nodes are down.
    pub(crate) fn wait_full(&self) {
        self.wait_status("all copies", |status| status["health"] == "ok");
    }

    /// Creates a volume with small segments and waits until it serves.
    pub(crate) fn create(&self, volume: &str, size: &str, more: &[&str]) {
        let mut args = vec!["volume", "create", volume, "--size", size, "--segment-size", "64M"];
        args.extend(more);
        self.run(&args);
        self.wait_status("the volume to serve", |status| status["health"] == "ok");
    }

    /// The primary of a volume's segment.
    pub(crate) fn primary(&self, volume: &str, index: u64) -> String {
        let explain = self.json(&["volume", "explain", volume]);
        let segments = explain["segments"].as_array().cloned().unwrap_or_default();
        let found = segments.iter().find(|segment| segment["segment"]["index"] == index);
        let primary = found.and_then(|segment| segment["config"]["primary"].as_str());
        primary.unwrap_or_else(|| panic!("no primary of {volume}.{index}: {explain}")).to_owned()
    }

    /// Attaches a volume and serves it as NBD.
    pub(crate) fn attach(&self, volume: &str) -> Gateway {
        Gateway::start(self, volume)
    }

    /// Starts verified load: stamped writes until it is told to end, logged in `log`.
    pub(crate) fn load(&self, volume: &str, seconds: u32) -> Load {
        self.load_of(volume, seconds, &["--bs", "4k,16k,256k"])
    }

    /// The same with writes of other kinds.
    pub(crate) fn load_of(&self, volume: &str, seconds: u32, kinds: &[&str]) -> Load {
        let log = self.scratch.join(&format!("{volume}.acked"));
        let mut command = self.command(&["verify", "write", volume, "--seconds", &seconds.to_string()]);
        // Slow enough to leave the machine some time for the rest of the cluster.
        command.args(kinds).args(["--rate", "16M", "-o", "json", "--log"]).arg(&log);
        let child = Child::start(command, self.scratch(), &format!("load-{volume}"));
        // The log grows with every acknowledgement: once there is one, the load is under way.
        wait_for("the first acknowledged write", PATIENCE, || match std::fs::metadata(&log) {
            Ok(meta) if meta.len() > 100 => Ok(()),
            _ => Err(child.stderr()),
        });
        Load { child, volume: volume.to_owned(), log }
    }
}

impl Drop for TestCluster {
    fn drop(&mut self) {
        // A paused node would not hear the end.
        for (pid, _) in child::processes_of(&self.dir()) {
            child::send(pid, libc::SIGCONT);
        }
        self.up.stop(Duration::from_secs(10));
        for (pid, _) in child::processes_of(&self.dir()) {
            child::send(pid, libc::SIGKILL);
        }
    }
}

/// Stamped writes under way.
pub(crate) struct Load {
    child: Child,
    volume: String,
    log: PathBuf,
}

impl Load {
    /// Bytes of the log of acknowledged writes: it grows while writes are acknowledged.
    pub(crate) fn acknowledged(&self) -> u64 {
        std::fs::metadata(&self.log).map_or(0, |meta| meta.len())
    }

    /// Waits until some more writes are acknowledged.
    pub(crate) fn goes_on(&self, limit: Duration) {
        let before = self.acknowledged();
        wait_for("writes to go on", limit, || {
            let now = self.acknowledged();
            if now >= before + 20 * 24 { Ok(()) } else { Err(format!("{before} -> {now}: {}", self.child.stderr())) }
        });
    }

    /// Ends the load; no error may have reached it. Then every acknowledged write must be there, on every member.
    pub(crate) fn finish(mut self, cluster: &TestCluster) -> Value {
        self.child.signal(libc::SIGINT);
        let status = self.child.wait(PATIENCE);
        assert!(status.success(), "the load met an error: {status}\n{}", self.child.stderr());
        check(cluster, &self.volume, &self.log)
    }
}

/// Proves that everything acknowledged in `log` is there, on the client's path and on every member.
pub(crate) fn check(cluster: &TestCluster, volume: &str, log: &Path) -> Value {
    let log = log.to_string_lossy();
    cluster.json(&["verify", "check", volume, "--log", &log, "--replicas"])
}

fn succeeded(args: &[&str], output: &Output) -> String {
    let said = String::from_utf8_lossy(&output.stderr);
    assert!(output.status.success(), "nodectl {args:?}: {}\n{said}", output.status);
    String::from_utf8_lossy(&output.stdout).into_owned()
}
