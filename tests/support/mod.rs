//! What the tests with real processes share: the binaries, a local cluster, gateways, a small NBD client.
//!
//! A story owns what it starts: whatever ends a test, its processes are gone afterwards and its directory too. A
//! failed story prints the end of every log first and keeps the logs (not the devices).
#![allow(dead_code)] // every test target uses its own part of this

pub(crate) mod binaries;
pub(crate) mod child;
pub(crate) mod cluster;
pub(crate) mod gateway;
pub(crate) mod hosts;
pub(crate) mod nbd;
pub(crate) mod needs;
pub(crate) mod scratch;
pub(crate) mod site;

use std::sync::{Mutex, MutexGuard, PoisonError};
use std::time::{Duration, Instant};

/// Stories that load the machine run one at a time.
pub(crate) fn alone() -> MutexGuard<'static, ()> {
    static TURN: Mutex<()> = Mutex::new(());
    // A failed story has cleaned up after itself: the next one may run.
    TURN.lock().unwrap_or_else(PoisonError::into_inner)
}

/// Asks until there is an answer; fails with `what` and the last refusal when there is none in time.
pub(crate) fn wait_for<T>(what: &str, limit: Duration, mut ask: impl FnMut() -> Result<T, String>) -> T {
    let begin = Instant::now();
    loop {
        let refusal = match ask() {
            Ok(answer) => return answer,
            Err(refusal) => refusal,
        };
        assert!(begin.elapsed() < limit, "waited {limit:?} for {what}; last: {refusal}");
        std::thread::sleep(Duration::from_millis(50));
    }
}
