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

fn main() -> ExitCode {
    engine::node::cli::run(Cli::parse().args)
}
