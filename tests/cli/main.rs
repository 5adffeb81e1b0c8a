//! `nodectl` from outside: names, flags, exit codes and JSON shapes that others rely on (DESIGN 8).
#![allow(clippy::unwrap_used)] // a failed story may panic

#[path = "../support/mod.rs"]
mod support;

mod authority;
mod cluster;
mod local;
mod shapes;
mod store;
mod storm;
mod usage;

use std::process::{Command, Output};

/// `nodectl args...` without anything in the environment that names a cluster.
fn nodectl(args: &[&str]) -> Command {
    let mut command = support::binaries::nodectl();
    command.args(args).env_remove("BREAKWATER_AUTHORITY").env_remove("BREAKWATER_CLUSTER");
    command
}

/// Runs it and expects this exit code; gives stdout and stderr.
fn exits(code: i32, args: &[&str]) -> (String, String) {
    expect(code, args, &nodectl(args).output().unwrap())
}

fn expect(code: i32, args: &[&str], output: &Output) -> (String, String) {
    let said = String::from_utf8_lossy(&output.stderr).into_owned();
    assert_eq!(output.status.code(), Some(code), "nodectl {args:?} said: {said}");
    (String::from_utf8_lossy(&output.stdout).into_owned(), said)
}
