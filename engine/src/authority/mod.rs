//! The control plane's process: HTTP for people and programs, the wire for nodes, records in redb.
//!
//! It does what `engine_core::authority` decides. One thread, one loop: gather what has happened, run the core over
//! all of it, commit every change in one transaction, then do the effects in order. Connections are tasks that only
//! turn bytes into events and answers into bytes.
//!
//! - `door`: one port for both: the first byte tells nodes from HTTP
//! - `session`: one node's connection; `http`: the API and its OpenAPI document
//! - `desk`: the loop; `records`: where durable state lies

pub mod api;
pub mod cli;
pub mod records;

mod desk;
mod door;
mod http;
mod lanes;
mod session;

#[cfg(test)]
mod tests;

pub use desk::{Options, ServeError, serve};
pub use http::openapi;
