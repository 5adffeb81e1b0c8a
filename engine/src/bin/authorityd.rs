//! The control plane's program.

use std::process::ExitCode;

use clap::Parser;
use engine::authority::cli::{Args, run};

/// Breakwater's control plane.
#[derive(Parser)]
#[command(version)]
struct Command {
    #[command(flatten)]
    args: Args,
}

fn main() -> ExitCode {
    run(Command::parse().args)
}
