//! `cargo bench --bench store`: runs `nodectl bench store`, which holds the store alone against fio on the same disk.
//!
//! It is the product's own command, so that anybody can measure their own disk with a released program; here is only the
//! way to it. Options go behind `--` (`cargo bench --bench store -- --rounds 3 -o json`) or come from the environment,
//! which wins nothing over what is written out. benches/README.md says how to read the figures.

use std::os::unix::process::CommandExt;
use std::process::Command;

/// From the environment, as options of the command.
const OPTIONS: [(&str, &str); 6] = [
    ("BREAKWATER_BENCH_ROUNDS", "--rounds"),
    ("BREAKWATER_BENCH_SECONDS", "--seconds"),
    ("BREAKWATER_BENCH_SUSTAINED", "--sustained"),
    ("BREAKWATER_BENCH_ONLY", "--only"),
    ("BREAKWATER_BENCH_DIR", "--dir"),
    ("BREAKWATER_BENCH_OUTPUT", "--output"),
];

fn main() {
    let given: Vec<String> = std::env::args().skip(1).collect();
    // Cargo says it to benches only: as a test it has nothing to do.
    if !given.iter().any(|arg| arg == "--bench") {
        return println!("store: measures only under `cargo bench --bench store`");
    }
    let mut command = Command::new(env!("CARGO_BIN_EXE_nodectl"));
    command.args(["bench", "store"]);
    for (variable, option) in OPTIONS {
        let written_out = given.iter().any(|arg| arg.split('=').next() == Some(option));
        if let Some(value) = std::env::var_os(variable).filter(|value| !value.is_empty() && !written_out) {
            command.arg(option).arg(value);
        }
    }
    command.args(given.iter().filter(|arg| *arg != "--bench"));
    let error = command.exec();
    eprintln!("error: could not run nodectl: {error}");
    std::process::exit(1);
}
