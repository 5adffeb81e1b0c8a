//! When to reconnect, when to search, when to stop. Here so far: pauses between attempts.

pub mod backoff;
