//! The storage node's program.

use std::process::ExitCode;

use clap::Parser;

/// Storage node of Breakwater: keeps replicas on one device and replicates them with its peers.
#[derive(Debug, Parser)]
#[command(name = "noded", version)]
struct Cli {
    #[command(flatten)]
    args: engine::node::cli::Args,
}

/// Log entries, messages and their lists come and go with every write: an eighth of a node's time with the system's
/// allocator, a third of that with this one.
#[global_allocator]
static ALLOCATOR: mimalloc::MiMalloc = mimalloc::MiMalloc;

fn main() -> ExitCode {
    engine::node::cli::run(Cli::parse().args)
}
