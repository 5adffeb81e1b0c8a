//! Real processes, really killed: nodes, authority and gateways under verified load, hostile input, wrong devices,
//! hosts of their own.
//!
//! Each story starts its own cluster and runs alone ([`support::alone`]), but for `limits`, which has little to do. None
//! waits for a span it hopes is long enough: it waits for what it needs to see, with a limit.

#[path = "../support/mod.rs"]
mod support;

mod authority;
mod devices;
mod exits;
mod flipped;
mod gateways;
mod hosts;
mod input;
mod killed;
mod limits;
mod lost_device;
mod nodes;
mod stale;
mod zones;
