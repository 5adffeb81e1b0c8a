//! The two servers inside this executable, so that a local cluster needs no other file.
//!
//! They are looked for before the command line is read: their flags are their own (`--authority` here means what
//! `noded` means by it).

use std::process::ExitCode;

/// Runs a server if the first argument names one.
pub(crate) fn run() -> Option<ExitCode> {
    let which = std::env::args().nth(1)?;
    if which == "authorityd" || which == "noded" {
        eprintln!("{which} is not joined to nodectl yet");
        return Some(ExitCode::FAILURE);
    }
    None
}
