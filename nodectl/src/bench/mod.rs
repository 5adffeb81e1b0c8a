//! `nodectl bench`: how fast it is, with the percentiles that matter.

mod beside;
pub(crate) mod cpu;
pub(crate) mod failover;
mod figure;
mod fio;
pub(crate) mod io;
mod machine;
mod rounds;
mod store;
pub(crate) mod storm;

use clap::Subcommand;

use crate::Global;
use crate::failure::Failure;

/// Measure.
#[derive(Debug, Subcommand)]
pub(crate) enum Bench {
    /// Reads and writes of one volume, by the native client or through NBD. Overwrites the volume's data.
    Io(io::Args),
    /// How long a client gets no answer when something fails: on a cluster of its own, fault by fault.
    Failover(failover::Args),
    /// The bare disk and a cluster of three nodes on it, in turns: what the way through the cluster costs.
    SideBySide(beside::Args),
    /// The bare disk and the store alone on it, in turns: one shard, no network, no copies.
    Store(store::Args),
    /// A re-mirroring storm as in April 2011, under that policy and under this one, in virtual time.
    Storm(storm::Args),
}

/// Runs one of them.
pub(crate) fn run(global: &Global, bench: Bench) -> Result<(), Failure> {
    match bench {
        Bench::Io(args) => io::run(global, args),
        Bench::Failover(args) => failover::run(global, &args),
        Bench::SideBySide(args) => beside::run(global, &args),
        Bench::Store(args) => store::run(global, &args),
        Bench::Storm(args) => storm::run(global, &args),
    }
}
