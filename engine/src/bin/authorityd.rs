//! The control plane's program.

fn main() {}
