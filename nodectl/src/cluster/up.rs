//! `nodectl cluster up`: starts the processes, keeps `cluster.json` true, takes orders, and stops everything again.
//!
//! One loop owns the children. Nobody else signals or reaps them, so a process id in `cluster.json` is always that
//! of a child not yet waited for, and an order is carried out before the next is looked at. A child that ends by
//! itself is noted, not restarted: what that does to the volumes is the product's business, not this file's.

use std::collections::BTreeMap;
use std::fs;
use std::net::TcpListener;
use std::path::PathBuf;
use std::process::Child;
use std::time::{Duration, Instant};

use engine_core::ids::NodeId;
use engine_core::random::Random;
use tokio::io::{AsyncBufReadExt, AsyncWriteExt, BufReader};
use tokio::net::{UnixListener, UnixStream};

use super::child;
use super::control::{self, Answer, Done, Order, Verb, Who};
use super::dir::{ClusterFile, Dir, NodeEntry, Settings, State, zone};
use crate::Global;
use crate::failure::{Context, Exit, Failure};
use crate::http::Api;
use crate::output::{Format, Table};
use crate::{signals, units};

/// How long the cluster may take until every node serves.
const READY_LIMIT: Duration = Duration::from_secs(120);
/// How long a process may take to stop when asked.
const STOP_LIMIT: Duration = Duration::from_secs(30);
/// How long somebody may take to say what he wants.
const ORDER_PATIENCE: Duration = Duration::from_secs(2);
/// How often children are looked after.
const TICK: Duration = Duration::from_millis(100);
/// Ports to choose from: below those the system hands out to clients, so that a stopped node's stay free.
const PORTS: (u64, u64) = (15_000, 32_000);

/// Arguments of `cluster up`. What is not given is 6 nodes, 3 zones, 1 device, 3G, 5s, 1 shard, or what the directory was made
/// with.
#[derive(Debug, Clone, Default, clap::Args)]
pub(crate) struct Args {
    /// The cluster's directory.
    #[arg(long)]
    pub(crate) dir: PathBuf,
    /// Nodes [default: 6].
    #[arg(long, value_parser = clap::value_parser!(u16).range(1..=1024))]
    pub(crate) nodes: Option<u16>,
    /// Zones the nodes are spread over [default: 3].
    #[arg(long, value_parser = clap::value_parser!(u16).range(1..=1024))]
    pub(crate) zones: Option<u16>,
    /// Devices of each node [default: 1].
    #[arg(long, value_parser = clap::value_parser!(u16).range(1..=8))]
    pub(crate) devices: Option<u16>,
    /// Size of each device [default: 3G].
    #[arg(long, value_parser = units::parse_size)]
    pub(crate) device_size: Option<u64>,
    /// How long a missing replica may come back before it is re-mirrored [default: 5s].
    #[arg(long, value_parser = units::parse_duration)]
    pub(crate) grace: Option<Duration>,
    /// Shards of each device [default: 1].
    #[arg(long, value_parser = clap::value_parser!(u16).range(1..=64))]
    pub(crate) shards: Option<u16>,
    /// Write-ahead log of each shard [default: a part of its device].
    #[arg(long, value_parser = units::parse_size)]
    pub(crate) wal_size: Option<u64>,
}

impl Args {
    /// The settings of a new cluster.
    pub(crate) fn fresh(&self) -> Settings {
        let grace = self.grace.unwrap_or(Duration::from_secs(5));
        Settings {
            nodes: self.nodes.unwrap_or(6),
            zones: self.zones.unwrap_or(3),
            devices: self.devices.unwrap_or(1),
            device_size: self.device_size.unwrap_or(3 << 30),
            grace_ms: u64::try_from(grace.as_millis()).unwrap_or(u64::MAX),
            shards: self.shards.unwrap_or(1),
            wal_size: self.wal_size,
        }
    }

    /// What was asked for and differs from what the directory was made with.
    fn conflict(&self, made: &Settings) -> Option<String> {
        let wanted = self.fresh();
        let pairs = [
            ("--nodes", self.nodes.is_some() && wanted.nodes != made.nodes, made.nodes.to_string()),
            ("--zones", self.zones.is_some() && wanted.zones != made.zones, made.zones.to_string()),
            (
                "--device-size",
                self.device_size.is_some() && wanted.device_size != made.device_size,
                units::size(made.device_size),
            ),
            ("--devices", self.devices.is_some() && wanted.devices != made.devices, made.devices.to_string()),
            ("--grace", self.grace.is_some() && wanted.grace_ms != made.grace_ms, format!("{}ms", made.grace_ms)),
            ("--shards", self.shards.is_some() && wanted.shards != made.shards, made.shards.to_string()),
            (
                "--wal-size",
                self.wal_size.is_some() && wanted.wal_size != made.wal_size,
                made.wal_size.map_or_else(|| "of its own choice".to_owned(), units::size),
            ),
        ];
        pairs.into_iter().find(|(_, differs, _)| *differs).map(|(flag, _, made)| format!("{flag} {made}"))
    }
}

/// Runs a local cluster until a signal.
pub(crate) fn run(global: &Global, args: &Args) -> Result<(), Failure> {
    let format = global.output;
    signals::block_on(async move {
        let ready = |dir: &Dir, file: &ClusterFile| announce(format, dir, file);
        serve(args, ready, signals::terminated()).await
    })
}

fn announce(format: Format, dir: &Dir, file: &ClusterFile) -> Result<(), Failure> {
    format.show(file, |file| {
        let mut table = Table::new(["node", "zone", "pid", "primary", "replication", "device"]);
        for node in &file.nodes {
            table.row([
                node.id.to_string(),
                node.zone.clone(),
                node.pid.map(|pid| pid.to_string()).unwrap_or_default(),
                node.primary_addr.clone(),
                node.replication_addr.clone(),
                node.all_devices().iter().map(|device| device.display().to_string()).collect::<Vec<_>>().join(" "),
            ]);
        }
        let dir = dir.path().display();
        format!(
            "authority {}\n{table}\nready: nodectl --cluster {dir} status; Ctrl-C stops the cluster",
            file.authority
        )
    })
}

/// Runs a cluster on this thread until `stop`; `ready` is called once every node serves.
pub(crate) async fn serve(
    args: &Args,
    ready: impl FnOnce(&Dir, &ClusterFile) -> Result<(), Failure>,
    stop: impl Future<Output = ()>,
) -> Result<(), Failure> {
    let dir = Dir::new(&args.dir);
    let _lock = dir.lock()?;
    let mut supervisor = Supervisor::open(dir.clone(), args)?;
    let (path, _open) = control::socket(&dir)?;
    let _ = fs::remove_file(&path);
    let listener = UnixListener::bind(&path).could_not(|| format!("listen in {}", dir.path().display()))?;
    let mut result = supervisor.start_all();
    if result.is_ok() {
        result = supervisor.work(&listener, ready, stop).await;
    }
    supervisor.stop_all().await;
    let _ = fs::remove_file(&path);
    result
}

/// The children and what is known of them.
struct Supervisor {
    dir: Dir,
    settings: Settings,
    file: ClusterFile,
    authority: Option<Child>,
    nodes: BTreeMap<NodeId, Child>,
}

impl Supervisor {
    fn open(dir: Dir, args: &Args) -> Result<Self, Failure> {
        let (settings, file) = match dir.read_settings()? {
            Some(settings) => {
                if let Some(made) = args.conflict(&settings) {
                    let what = format!("the cluster in {} was made with {made}", dir.path().display());
                    return Err(Failure::new(Exit::IllegalState, what)
                        .untouched("nothing was started")
                        .next(format!("nodectl cluster up --dir {}", dir.path().display())));
                }
                let file = dir.read()?;
                (settings, file)
            }
            None => {
                let settings = args.fresh();
                let file = fresh_file(&dir, &settings)?;
                // The settings come last: a directory that has them has everything.
                dir.write(&file)?;
                dir.write_settings(&settings)?;
                (settings, file)
            }
        };
        Ok(Self { dir, settings, file, authority: None, nodes: BTreeMap::new() })
    }

    fn start_all(&mut self) -> Result<(), Failure> {
        self.start(Who::Authority)?;
        let there: Vec<NodeId> =
            self.file.nodes.iter().filter(|node| node.state != State::Lost).map(|node| node.id).collect();
        for node in there {
            self.start(Who::Node(node))?;
        }
        Ok(())
    }

    /// Orders, dead children, readiness, until told to stop.
    async fn work(
        &mut self,
        listener: &UnixListener,
        ready: impl FnOnce(&Dir, &ClusterFile) -> Result<(), Failure>,
        stop: impl Future<Output = ()>,
    ) -> Result<(), Failure> {
        let mut stop = std::pin::pin!(stop);
        let mut ready = Some(ready);
        let begun = Instant::now();
        let api = Api::new(&self.file.authority, Some(Duration::from_secs(1)));
        loop {
            tokio::select! {
                () = &mut stop => return Ok(()),
                accepted = listener.accept() => {
                    if let Ok((stream, _)) = accepted {
                        self.take_order(stream).await;
                    }
                }
                () = tokio::time::sleep(TICK) => {}
            }
            let died = self.reap();
            if ready.is_none() {
                continue;
            }
            if let Some(who) = died {
                return Err(self.did_not_start(who, "ended while the cluster was starting"));
            }
            match self.missing(&api) {
                None => {
                    if let Some(ready) = ready.take() {
                        ready(&self.dir, &self.file)?;
                    }
                }
                Some(who) if begun.elapsed() > READY_LIMIT => {
                    return Err(self.did_not_start(who, "does not serve 120 s after its start"));
                }
                Some(_) => {}
            }
        }
    }

    /// A process that does not serve yet, if there is one.
    fn missing(&self, api: &Api) -> Option<Who> {
        let Ok(nodes) = api.nodes() else { return Some(Who::Authority) };
        let up = |id: &NodeId| nodes.iter().any(|node| node.id == *id && node.state == "up");
        self.nodes.keys().find(|id| !up(id)).map(|id| Who::Node(*id))
    }

    fn did_not_start(&self, who: Who, what: &str) -> Failure {
        let home = self.home(who);
        let exit = if what.starts_with("ended") { Exit::Failed } else { Exit::WaitTimedOut };
        let tail = child::log_tail(&home);
        Failure::new(exit, format!("{who} {what}; the end of its log:\n{tail}"))
            .untouched("the cluster was stopped; its data stays in the directory")
            .next(format!("see {}, then the same command again", home.join("log").display()))
    }

    fn home(&self, who: Who) -> PathBuf {
        match who {
            Who::Authority => self.dir.authority(),
            Who::Node(node) => self.dir.node(node),
        }
    }

    fn entry(&mut self, id: NodeId) -> &mut NodeEntry {
        self.file.nodes.iter_mut().find(|node| node.id == id).expect("orders are checked first")
    }

    /// Notes a node's state; `cluster.json` is right again when this returns.
    fn note(&mut self, who: Who, state: State, pid: Option<u32>) -> Result<Done, Failure> {
        if let Who::Node(id) = who {
            let entry = self.entry(id);
            (entry.state, entry.pid) = (state, pid);
            self.dir.write(&self.file)?;
        }
        Ok(Done { node: who, state, pid })
    }

    fn start(&mut self, who: Who) -> Result<Done, Failure> {
        let child = match who {
            Who::Authority => child::authority(&self.dir, &self.settings, &self.file)?,
            Who::Node(id) => {
                let entry = self.entry(id).clone();
                child::node(&self.dir, &self.settings, &self.file.authority, &entry, None)?
            }
        };
        let pid = child.id();
        match who {
            Who::Authority => self.authority = Some(child),
            Who::Node(id) => drop(self.nodes.insert(id, child)),
        }
        self.note(who, State::Running, Some(pid))
    }

    fn take_child(&mut self, who: Who) -> Option<Child> {
        match who {
            Who::Authority => self.authority.take(),
            Who::Node(id) => self.nodes.remove(&id),
        }
    }

    fn put_child(&mut self, who: Who, child: Child) {
        match who {
            Who::Authority => self.authority = Some(child),
            Who::Node(id) => drop(self.nodes.insert(id, child)),
        }
    }

    /// Notes children that ended by themselves; gives the first of them.
    fn reap(&mut self) -> Option<Who> {
        let mut dead = Vec::new();
        let everybody = self.authority.iter_mut().map(|child| (Who::Authority, child));
        let everybody = everybody.chain(self.nodes.iter_mut().map(|(id, child)| (Who::Node(*id), child)));
        for (who, child) in everybody {
            if let Ok(Some(status)) = child.try_wait() {
                dead.push((who, status));
            }
        }
        for (who, status) in &dead {
            self.take_child(*who);
            eprintln!("{who} ended by itself ({status}); log: {}", self.home(*who).join("log").display());
            let state = if status.code().is_some() { State::Stopped } else { State::Killed };
            if let Err(failure) = self.note(*who, state, None) {
                eprintln!("{failure}");
            }
        }
        dead.first().map(|(who, _)| *who)
    }

    /// One connection: one order, one answer.
    async fn take_order(&mut self, mut stream: UnixStream) {
        let mut line = String::new();
        let mut reader = BufReader::new(tokio::io::AsyncReadExt::take(&mut stream, 4096));
        let read = tokio::time::timeout(ORDER_PATIENCE, reader.read_line(&mut line)).await;
        if !matches!(read, Ok(Ok(_))) {
            return;
        }
        self.reap();
        let result = match serde_json::from_str(&line) {
            Ok(order) => self.carry_out(order).await,
            Err(error) => Err(Failure::usage(format!("not an order: {error}"))),
        };
        if let Err(failure) = &result {
            eprintln!("{failure}");
        }
        let mut answer = serde_json::to_string(&Answer::from(result)).expect("plain data");
        answer.push('\n');
        let _ = stream.write_all(answer.as_bytes()).await;
    }

    async fn carry_out(&mut self, order: Order) -> Result<Done, Failure> {
        let Order { verb, who } = order;
        let state = match who {
            Who::Authority if self.authority.is_some() => State::Running,
            Who::Authority => State::Stopped,
            Who::Node(id) => {
                self.file.nodes.iter().find(|node| node.id == id).map(|node| node.state).ok_or_else(|| {
                    Failure::new(Exit::NotFound, format!("there is no node {id}")).untouched("nothing was changed")
                })?
            }
        };
        match (verb, state, who) {
            (_, State::Lost, _) => {
                Err(Failure::new(Exit::IllegalState, format!("{who} is lost for good, its device deleted"))
                    .untouched("nothing was changed")
                    .next("nodectl status shows whether its copies are re-mirrored"))
            }
            (Verb::Lose, _, Who::Authority) => {
                Err(Failure::usage("the authority has no device to lose").next("cluster kill authority --dir DIR"))
            }
            (Verb::Start, State::Running, _) => Err(illegal(who, "is running already")),
            (Verb::Start, ..) => self.start(who),
            (Verb::Lose, State::Running, Who::Node(id)) => {
                self.kill(who).await?;
                self.delete_device(id)
            }
            (Verb::Lose, _, Who::Node(id)) => self.delete_device(id),
            (Verb::Kill, State::Running, _) => self.kill(who).await,
            (Verb::Stop, State::Running, _) => self.stop(who).await,
            (Verb::Kill | Verb::Stop, ..) => Err(illegal(who, "is not running")),
        }
    }

    async fn kill(&mut self, who: Who) -> Result<Done, Failure> {
        if let Some(mut child) = self.take_child(who) {
            let _ = child.kill();
            if child::wait(&mut child, STOP_LIMIT).await.is_none() {
                self.put_child(who, child);
                return Err(Failure::new(
                    Exit::WaitTimedOut,
                    format!("{who} got SIGKILL and is still there after 30 s"),
                ));
            }
        }
        self.note(who, State::Killed, None)
    }

    async fn stop(&mut self, who: Who) -> Result<Done, Failure> {
        if let Some(mut child) = self.take_child(who) {
            child::ask_to_stop(&child);
            if child::wait(&mut child, STOP_LIMIT).await.is_none() {
                self.put_child(who, child);
                return Err(Failure::new(
                    Exit::WaitTimedOut,
                    format!("{who} was asked to stop and runs on after 30 s"),
                )
                .untouched("its process was left alone")
                .next(format!("nodectl cluster kill {who} --dir {}", self.dir.path().display())));
            }
        }
        self.note(who, State::Stopped, None)
    }

    fn delete_device(&mut self, id: NodeId) -> Result<Done, Failure> {
        for device in self.entry(id).all_devices() {
            match fs::remove_file(&device) {
                Err(error) if error.kind() != std::io::ErrorKind::NotFound => {
                    return Err(Failure::failed(format!("could not delete {}: {error}", device.display())));
                }
                _ => {}
            }
        }
        self.note(Who::Node(id), State::Lost, None)
    }

    /// Everybody at once: nodes first, so that they can still say goodbye to the authority.
    async fn stop_all(&mut self) {
        self.reap();
        let nodes: Vec<Who> = self.nodes.keys().map(|id| Who::Node(*id)).collect();
        self.nodes.values().for_each(child::ask_to_stop);
        for who in nodes.into_iter().chain([Who::Authority]) {
            let outcome = match self.stop(who).await {
                Err(failure) => {
                    eprintln!("{failure}\n  it gets SIGKILL");
                    self.kill(who).await
                }
                done => done,
            };
            if let Err(failure) = outcome {
                eprintln!("{failure}");
            }
        }
    }
}

fn illegal(who: Who, what: &str) -> Failure {
    Failure::new(Exit::IllegalState, format!("{who} {what}")).untouched("nothing was changed").next("nodectl node ls")
}

/// A new cluster: ids, zones, free ports, devices.
pub(crate) fn fresh_file(dir: &Dir, settings: &Settings) -> Result<ClusterFile, Failure> {
    let seed = getrandom::u64().map_err(|error| Failure::failed(format!("no random numbers: {error}")))?;
    let mut ports = FreePorts { random: Random::new(seed), held: Vec::new() };
    let authority = format!("http://{}", ports.next()?);
    let mut nodes = Vec::new();
    for index in 0..settings.nodes {
        let id = NodeId(index + 1);
        let device = dir.node(id).join("device");
        let others = (2..=settings.devices).map(|number| dir.node(id).join(format!("device-{number}")));
        nodes.push(NodeEntry {
            id,
            zone: zone(index, settings.zones),
            pid: None,
            primary_addr: ports.next()?,
            replication_addr: ports.next()?,
            devices: std::iter::once(device.clone()).chain(others).collect(),
            device,
            state: State::Stopped,
        });
    }
    Ok(ClusterFile { authority, nodes })
}

/// Finds free ports; holds each until all are found, so that none is given twice.
struct FreePorts {
    random: Random,
    held: Vec<TcpListener>,
}

impl FreePorts {
    fn next(&mut self) -> Result<String, Failure> {
        for _ in 0..1000 {
            let port = self.random.between(PORTS.0, PORTS.1);
            let address = format!("127.0.0.1:{port}");
            if let Ok(listener) = TcpListener::bind(&address) {
                self.held.push(listener);
                return Ok(address);
            }
        }
        Err(Failure::failed("found no free port on 127.0.0.1").untouched("nothing was started"))
    }
}

#[cfg(test)]
mod tests {
    #![allow(clippy::unwrap_used)]
    use super::*;

    #[test]
    fn ports_are_all_different() {
        let settings = Args { nodes: Some(20), ..Args::default() }.fresh();
        let file = fresh_file(&Dir::new("d".as_ref()), &settings).unwrap();
        let mut all: Vec<String> =
            file.nodes.iter().flat_map(|node| [node.primary_addr.clone(), node.replication_addr.clone()]).collect();
        all.push(file.authority.trim_start_matches("http://").to_owned());
        all.sort();
        all.dedup();
        assert_eq!(all.len(), 41);
    }

    #[test]
    fn resuming_with_other_numbers_is_told() {
        let made = Args::default().fresh();
        assert_eq!(Args::default().conflict(&made), None);
        assert_eq!(Args { nodes: Some(6), ..Args::default() }.conflict(&made), None);
        assert_eq!(Args { nodes: Some(7), ..Args::default() }.conflict(&made), Some("--nodes 6".to_owned()));
        let larger = Args { device_size: Some(4 << 30), ..Args::default() };
        assert_eq!(larger.conflict(&made), Some("--device-size 3 GiB".to_owned()));
    }
}
