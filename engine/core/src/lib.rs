//! Breakwater's decisions, apart from everything that does them.
//!
//! Each state machine is driven by `handle(now, Input, &mut Effects)`: no I/O, no clock, no random source, no thread,
//! no iteration over unordered maps. The same inputs give the same effects, here, in the node and in the simulator.
#![no_std]

// The schemas that the `openapi` feature derives for documents name these macros and `std`; nothing else does.
#[cfg_attr(feature = "openapi", macro_use)]
extern crate alloc;
#[cfg(feature = "openapi")]
extern crate std;

pub mod authority;
pub mod client;
pub mod config;
pub mod decision;
pub mod epoch;
pub mod fair;
pub mod gather;
pub mod ids;
pub mod layout;
pub mod lease;
pub mod limits;
pub mod lodging;
pub mod message;
pub mod openings;
pub mod random;
pub mod record;
pub mod remirror;
pub mod replica;
pub mod report;
pub mod sabotage;
pub mod schedule;
pub mod scrub;
pub mod throttle;
pub mod time;
pub mod wanted;
