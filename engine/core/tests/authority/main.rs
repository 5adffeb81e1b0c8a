//! The authority's core: its rules by tables, its behaviour by stories, its safety by random proposals.
#![allow(clippy::unwrap_used)]

mod cancel;
mod devices;
mod exits;
mod limits;
mod proposals;
mod revision;
mod space;
mod stories;
mod tables;
mod world;
