//! When to reconnect, when to search, when to stop (DESIGN 7). Here so far: pauses between attempts, the breaker, the books
//! of a node that promises space, and how a copy begins on a node that has nothing.

pub mod backoff;
pub mod breaker;
pub mod newcomer;
pub mod reservation;
