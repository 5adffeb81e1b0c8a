//! The two servers inside this executable, so that a local cluster needs no other file.
//!
//! They are looked for before the command line is read: their flags are their own (`--authority` here means what
//! `noded` means by it).

use std::ffi::OsStr;
use std::process::ExitCode;

use clap::Parser;

#[derive(Debug, Parser)]
#[command(name = "nodectl authorityd", about = "The control plane, as authorityd")]
struct Authorityd {
    #[command(flatten)]
    args: engine::authority::cli::Args,
}

#[derive(Debug, Parser)]
#[command(name = "nodectl noded", about = "A storage node, as noded")]
struct Noded {
    #[command(flatten)]
    args: engine::node::cli::Args,
}

/// Runs a server if the first argument names one.
pub(crate) fn run() -> Option<ExitCode> {
    let mut args = std::env::args_os();
    args.next();
    let which = args.next()?;
    let rest = std::iter::once(which.clone()).chain(args);
    if which == OsStr::new("authorityd") {
        return Some(engine::authority::cli::run(Authorityd::parse_from(rest).args));
    }
    if which == OsStr::new("noded") {
        return Some(engine::node::cli::run(Noded::parse_from(rest).args));
    }
    None
}
