//! `nodectl`: the operator's command line, the gateway, the load generator, the checker and the local cluster.
//!
//! One file per subcommand; each ends in a result on stdout or a [`Failure`], which is an exit code and three
//! sentences (DESIGN 8). Nothing is decided here about volumes: the authority and the nodes do that.

use std::path::PathBuf;
use std::process::ExitCode;
use std::time::Duration;

use clap::{Parser, Subcommand};

mod attach;
mod authority;
mod bench;
mod cluster;
mod daemon;
mod demo;
mod failure;
mod http;
mod nbd;
mod node;
mod output;
mod reach;
mod remirror;
mod scratch;
mod signals;
mod sim;
mod status;
mod store;
mod units;
mod verify;
mod volume;

use crate::cluster::dir::Dir;
use crate::failure::Failure;
use crate::http::Api;
use crate::output::Format;

/// Nodes of a local cluster are this program too: see `noded`.
#[global_allocator]
static ALLOCATOR: mimalloc::MiMalloc = mimalloc::MiMalloc;

/// Breakwater: a replicated block store whose re-mirroring cannot become a storm.
#[derive(Debug, Parser)]
#[command(name = "nodectl", version, max_term_width = 100)]
#[command(after_help = "Exit codes: 0 done, 1 failed, 2 usage, 3 not found, 4 refused as unsafe, 5 illegal state, \
    6 wait timed out, 7 damaged,\n20 cannot connect, 21 deadline passed. Sizes are binary: 4G is 4 GiB.")]
struct Cli {
    #[command(flatten)]
    global: Global,
    #[command(subcommand)]
    command: Command,
}

/// What every subcommand understands.
#[derive(Debug, Clone, clap::Args)]
pub(crate) struct Global {
    /// A local cluster's directory [env: BREAKWATER_CLUSTER].
    #[arg(long, global = true, value_name = "DIR", conflicts_with = "authority")]
    cluster: Option<PathBuf>,
    /// The authority's URL [env: BREAKWATER_AUTHORITY].
    #[arg(long, global = true, value_name = "URL")]
    authority: Option<String>,
    /// What stdout carries.
    #[arg(short, long, global = true, value_enum, default_value = "table")]
    output: Format,
    /// How long one call to the authority may take [default: 10s; longer for calls that wait].
    #[arg(long, global = true, value_name = "TIME", value_parser = units::parse_duration)]
    deadline: Option<Duration>,
}

impl Global {
    /// The local cluster's directory, if one was named.
    fn dir(&self) -> Option<Dir> {
        if self.authority.is_some() {
            return None;
        }
        let named = self.cluster.clone();
        let from_env = || {
            let url = std::env::var_os("BREAKWATER_AUTHORITY").filter(|value| !value.is_empty());
            let dir = std::env::var_os("BREAKWATER_CLUSTER").filter(|value| !value.is_empty());
            dir.filter(|_| url.is_none()).map(PathBuf::from)
        };
        named.or_else(from_env).map(|path| Dir::new(&path))
    }

    /// A client of the authority named by flag or environment. Flags win, an URL wins over a directory.
    pub(crate) fn api(&self) -> Result<Api, Failure> {
        if let Some(dir) = self.dir() {
            return Ok(Api::new(&dir.read()?.authority, self.deadline));
        }
        let from_env = || std::env::var("BREAKWATER_AUTHORITY").ok().filter(|value| !value.is_empty());
        let url = self.authority.clone().or_else(from_env).ok_or_else(|| {
            Failure::usage("which cluster? neither --cluster nor --authority was given")
                .next("--cluster DIR (a local cluster) or --authority http://HOST:PORT; nodectl demo needs neither")
        })?;
        Ok(Api::new(&url, self.deadline))
    }

    /// Processes of the local cluster's nodes; empty where only a URL is known.
    pub(crate) fn cluster_pids(&self) -> Vec<u32> {
        let file = self.dir().and_then(|dir| dir.read().ok());
        file.map(|file| file.nodes.iter().filter_map(|node| node.pid).collect()).unwrap_or_default()
    }
}

#[derive(Debug, Subcommand)]
enum Command {
    /// Show it all: a local cluster, load, a killed and a lost node, every acknowledged byte verified.
    Demo(demo::Args),
    /// A local cluster of real processes.
    #[command(subcommand)]
    Cluster(cluster::Cluster),
    /// Health, copies, re-mirroring, nodes.
    Status(status::Args),
    /// The authority's own record.
    #[command(subcommand)]
    Authority(authority::Authority),
    /// Nodes.
    #[command(subcommand)]
    Node(node::Node),
    /// Re-mirroring.
    #[command(subcommand)]
    Remirror(remirror::Remirror),
    /// Volumes.
    #[command(subcommand)]
    Volume(volume::Volume),
    /// The device of a node that is down: what is on it, and whether it is what it should be.
    #[command(subcommand)]
    Store(store::Store),
    /// Measure.
    #[command(subcommand)]
    Bench(bench::Bench),
    /// The cluster in virtual time: stories, swarm, soak.
    Sim(sim::Args),
    /// Stamped data: what was acknowledged must be there.
    #[command(subcommand)]
    Verify(verify::Verify),
}

fn main() -> ExitCode {
    if let Some(exit) = daemon::run() {
        return exit;
    }
    let Cli { global, command } = Cli::parse();
    // A simulated world breaks on purpose all the time; it says what matters itself.
    log(if matches!(command, Command::Sim(_)) { "off" } else { "warn" });
    let result = match command {
        Command::Demo(args) => demo::run(&global, &args),
        Command::Cluster(command) => cluster::run(&global, command),
        Command::Status(args) => status::run(&global, &args),
        Command::Authority(command) => authority::run(&global, &command),
        Command::Node(command) => node::run(&global, &command),
        Command::Remirror(command) => remirror::run(&global, &command),
        Command::Volume(command) => volume::run(&global, command),
        Command::Store(command) => store::run(&global, &command),
        Command::Bench(command) => bench::run(&global, command),
        Command::Sim(args) => sim::run(&global, &args),
        Command::Verify(command) => verify::run(&global, command),
    };
    match result {
        Ok(()) => ExitCode::SUCCESS,
        Err(failure) => failure.report(),
    }
}

/// What the client and the gateway have to say goes to stderr, from warnings on.
fn log(usual: &str) {
    let filter = tracing_subscriber::EnvFilter::try_from_env("BREAKWATER_LOG")
        .unwrap_or_else(|_| tracing_subscriber::EnvFilter::new(usual));
    let _ = tracing_subscriber::fmt().with_env_filter(filter).with_writer(std::io::stderr).with_ansi(false).try_init();
}
