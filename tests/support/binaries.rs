//! The programs under test, built once per test process in the profile of the test.

use std::collections::BTreeMap;
use std::path::PathBuf;
use std::process::{Command, Stdio};
use std::sync::OnceLock;

/// Where a program is.
pub(crate) fn program(name: &str) -> PathBuf {
    static BUILT: OnceLock<BTreeMap<String, PathBuf>> = OnceLock::new();
    let built = BUILT.get_or_init(build);
    built.get(name).unwrap_or_else(|| panic!("cargo built no `{name}`, only {:?}", built.keys())).clone()
}

/// `nodectl`, ready for arguments.
pub(crate) fn nodectl() -> Command {
    Command::new(program("nodectl"))
}

/// Cargo knows where the programs are and whether they are up to date; nobody has to build them first.
fn build() -> BTreeMap<String, PathBuf> {
    let cargo = std::env::var_os("CARGO").unwrap_or_else(|| env!("CARGO").into());
    let mut command = Command::new(cargo);
    command.args(["build", "--message-format=json", "-p", "nodectl", "-p", "engine", "--bins"]);
    if !cfg!(debug_assertions) {
        command.arg("--release");
    }
    let output = command.current_dir(env!("CARGO_MANIFEST_DIR")).stderr(Stdio::inherit()).output();
    let output = output.expect("cargo can be run");
    assert!(output.status.success(), "cargo could not build the programs under test");
    let mut built = BTreeMap::new();
    for line in output.stdout.split(|b| *b == b'\n').filter(|line| !line.is_empty()) {
        let message: serde_json::Value = serde_json::from_slice(line).expect("one message per line");
        let (Some(path), Some(name)) = (message["executable"].as_str(), message["target"]["name"].as_str()) else {
            continue;
        };
        built.insert(name.to_owned(), PathBuf::from(path));
    }
    built
}
