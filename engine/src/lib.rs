//! Breakwater's engine: it does what the core decides.
//!
//! `store` over `device` keeps replicas, `wire` carries messages, `node` and `authority` are the two servers' loops,
//! `client` reaches a volume and `gateway` serves it as NBD. No decision about replication, election, placement or
//! re-mirroring is made here: those are in `engine_core`.

pub mod authority;
pub mod client;
pub mod device;
pub mod gateway;
pub mod node;
pub mod store;
pub mod wire;

#[cfg(test)]
#[path = "fuzz/tests.rs"]
mod fuzz;
