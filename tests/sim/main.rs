//! The core over a simulated network, a virtual clock and the production store and authority.
//!
//! `stories` tell what must happen when one thing goes wrong; `swarm` lets everything go wrong at once, seed by seed:
//! `BREAKWATER_SEEDS=1000 cargo test --test sim swarm`, and one seed again with `BREAKWATER_SEED=7`.
#![allow(
    missing_docs,
    clippy::unwrap_used,
    clippy::cast_possible_truncation,
    clippy::cast_precision_loss,
    clippy::needless_pass_by_value
)]

mod checkers;
mod client;
mod conns;
mod faults;
mod load;
mod network;
mod node;
mod seat;
mod stories;
mod swarm;
mod world;
