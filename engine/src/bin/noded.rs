//! The storage node's program.

fn main() {}
