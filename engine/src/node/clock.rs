//! The clock of a node: `CLOCK_BOOTTIME`, which runs on while the host sleeps, so that a lease never outlives a
//! suspend (I8).

use engine_core::time::Time;

/// This moment.
#[must_use]
pub(crate) fn now() -> Time {
    let mut at = libc::timespec { tv_sec: 0, tv_nsec: 0 };
    // SAFETY: `at` is a valid place to write a timespec to, and the clock exists on every Linux since 2.6.39.
    let done = unsafe { libc::clock_gettime(libc::CLOCK_BOOTTIME, &raw mut at) };
    assert_eq!(done, 0, "CLOCK_BOOTTIME cannot be read");
    let (seconds, nanos) = (at.tv_sec.unsigned_abs(), at.tv_nsec.unsigned_abs());
    Time(seconds * 1_000_000_000 + nanos)
}

/// A span as the runtime's timers want it.
#[must_use]
pub(crate) const fn duration(span: engine_core::time::Span) -> std::time::Duration {
    std::time::Duration::from_nanos(span.0)
}

/// A number nobody can guess, to seed what must differ between nodes.
#[must_use]
pub(crate) fn seed() -> u64 {
    getrandom::u64().unwrap_or_else(|_| now().0)
}
