//! Whole clusters in virtual time: the production core, store and authority over a simulated network, clock and device.
//!
//! A *story* tells what must happen when one thing goes wrong; the *swarm* lets everything go wrong at once, seed by
//! seed. Both are tests here (`cargo test -p breakwater-sim`) and commands of `nodectl sim`.
//!
//! | file | what |
//! |---|---|
//! | `world` | the queue of events, the clock, the nodes' places |
//! | `node` | one run of a node: the machines over the store |
//! | `network`, `conns` | connections between nodes, and of clients |
//! | `seat` | the authority, its records and its sessions |
//! | `client`, `load` | the client and what it does by itself |
//! | `faults` | what goes wrong, and what is looked at afterwards |
//! | `checkers`, `linear`, `chronicle` | what must hold |
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
mod conns;
mod faults;
mod linear;
mod load;
mod network;
mod node;
mod seat;
mod stories;
mod swarm;
mod world;

pub use stories::{Story, stories};
pub use swarm::{Outcome, swarm};
