//! A storage node's process: it receives, asks the core, and does what the core says, in order. No decision here.
//!
//! One thread per shard owns a part of the device, that part's store and the machines of the replicas in it; the
//! same thread's runtime carries connections. The node's own thread accepts connections, keeps the session with the
//! authority and waits for signals. Threads and sockets do not grow with the cluster.
//!
//! | file | what |
//! |---|---|
//! | `cli`, `config` | flags, the configuration file, what they have to say |
//! | `start`, `hold`, `thread` | from a configuration to a running node, and to its end; its device; its threads |
//! | `quay/` | the machines of one shard over its store: inputs, effects; what the simulator runs too |
//! | `shard/` | the loop of one shard: its quay and its connections |
//! | `devices` | all of a node's devices: those that can be used, those that cannot, what the authority says of each |
//! | `routes` | which shard a segment's messages go to |
//! | `mail` | bounded boxes between the tasks |
//! | `sink` | what a shard still has to say over one connection |
//! | `listen`, `harbour` | who may come in; what a thread's connections share |
//! | `peers`, `bulk` | connections to other nodes |
//! | `clients` | connections of clients |
//! | `authority`, `report` | the session with the authority; what is told it regularly |
//!
//! Invariants: a shard never waits for a socket, a socket waits for its shard (I15); what hangs on a durable write
//! runs only when the store has said that it is durable; nothing is written to a device before every check of it has
//! passed.

mod authority;
mod bulk;
pub mod cli;
mod clients;
mod clock;
pub mod config;
mod devices;
mod ears;
mod harbour;
mod hold;
mod listen;
mod mail;
mod memory;
mod peers;
pub mod quay;
mod report;
mod routes;
mod shard;
mod sink;
pub mod start;
#[cfg(test)]
mod tests;
mod thread;

pub use hold::HoldError;
