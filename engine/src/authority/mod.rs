//! The control plane's process: HTTP for people and programs, the wire for nodes, records in redb.

pub mod api;
