//! `nodectl cluster`: a local cluster of real processes, and giving its nodes a hard time.

pub(crate) mod child;
pub(crate) mod control;
pub(crate) mod dir;
pub(crate) mod up;

use std::path::PathBuf;

use clap::Subcommand;

use self::control::{Done, Order, Verb, Who};
use self::dir::Dir;
use crate::Global;
use crate::failure::Failure;

/// A local cluster.
#[derive(Debug, Subcommand)]
pub(crate) enum Cluster {
    /// Run a local cluster in the foreground until SIGINT or SIGTERM; the same directory again resumes it.
    Up(up::Args),
    /// Stop a node (or `authority`) gracefully.
    Stop(Target),
    /// Kill a node (or `authority`) with SIGKILL.
    Kill(Target),
    /// Start a stopped or killed node (or `authority`) again, and wait until it serves.
    Start(Target),
    /// Lose a node for good: SIGKILL, and its device deleted.
    Lose(Target),
}

/// Which process of which cluster.
#[derive(Debug, clap::Args)]
pub(crate) struct Target {
    /// A node such as n3, or `authority`.
    node: Who,
    /// The cluster's directory.
    #[arg(long)]
    dir: PathBuf,
}

/// Runs one of them.
pub(crate) fn run(global: &Global, command: Cluster) -> Result<(), Failure> {
    let (verb, target) = match command {
        Cluster::Up(args) => return up::run(global, &args),
        Cluster::Stop(target) => (Verb::Stop, target),
        Cluster::Kill(target) => (Verb::Kill, target),
        Cluster::Start(target) => (Verb::Start, target),
        Cluster::Lose(target) => (Verb::Lose, target),
    };
    let done = control::order(&Dir::new(&target.dir), Order { verb, who: target.node })?;
    global.output.show(&done, |Done { node, state, pid }| {
        let state = format!("{state:?}").to_lowercase();
        pid.map_or_else(|| format!("{node} is {state}"), |pid| format!("{node} is {state} (pid {pid})"))
    })
}
