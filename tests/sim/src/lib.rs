//! Whole clusters in virtual time: the production core, store and authority over a simulated network, clock and device.
//!
//! A *story* tells what must happen when one thing goes wrong; the *swarm* lets everything go wrong at once, seed by
//! seed. Both are tests here (`cargo test -p breakwater-sim`) and commands of `nodectl sim`.
//!
//! | file | what |
//! |---|---|
//! | `world`, `queue`, `trace` | the clock, what is going to happen, what has happened; the nodes' places |
//! | `node` | one run of a node: the machines over the store |
//! | `clock` | a node's own idea of time |
//! | `network`, `wires`, `conns` | the two networks; connections between nodes, and of clients |
//! | `scale` | a world of its own: nodes with ten thousand replicas |
//! | `seat` | the authority, its records and its sessions |
//! | `client`, `load` | the client and what it does by itself |
//! | `faults`, `mixture` | what goes wrong; all kinds of it, drawn by a seed |
//! | `checkers`, `linear`, `chronicle`, `coverage` | what must hold; what has been tried |
//! | `stories`, `swarm` | what happens |
//!
//! Invariants: one seed gives one trace, byte for byte; so nothing here asks a clock, a thread or an unordered map.
#![allow(
    // It is a test: what must not happen ends it, with the seed that shows it again.
    clippy::unwrap_used,
    clippy::cast_possible_truncation,
    clippy::cast_precision_loss,
    clippy::needless_pass_by_value
)]

mod checkers;
mod chronicle;
mod client;
mod clock;
mod conns;
mod coverage;
mod faults;
mod linear;
mod load;
mod mixture;
mod network;
mod node;
mod queue;
mod scale;
mod seat;
mod seeds;
mod stories;
mod swarm;
mod trace;
mod wires;
mod world;

pub use coverage::Coverage;
pub use scale::{Counted, Death, death_with_many_replicas};
pub use seeds::known_seeds;
pub use stories::{Story, stories};
pub use swarm::{FAULTS_MIN, Outcome, SECONDS, swarm};
pub use trace::print_trace;
