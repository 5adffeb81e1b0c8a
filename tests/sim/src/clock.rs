//! A node's clock: it may stand elsewhere than the world's, and run faster or slower.
//!
//! Nodes agree on nothing but that two clocks differ in speed by no more than
//! [`DRIFT_PER_MILLE`](engine_core::limits::DRIFT_PER_MILLE). A world may break even that; then reads prove nothing,
//! and writes have to be safe all the same (I8).

use engine_core::time::Time;

/// A clock that never goes back.
#[derive(Debug, Clone, Copy)]
pub(crate) struct Clock {
    /// The world's time at which it showed `shown`.
    since: Time,
    shown: Time,
    /// How much faster than the world it runs, per ten thousand.
    faster: i64,
}

impl Clock {
    pub(crate) const fn new(ahead: u64) -> Self {
        Self { since: Time(0), shown: Time(ahead), faster: 0 }
    }

    /// What it shows.
    pub(crate) fn at(&self, now: Time) -> Time {
        let passed = i128::from(now.since(self.since).0);
        let shown = passed + passed * i128::from(self.faster) / 10_000;
        Time(self.shown.0 + u64::try_from(shown).unwrap_or(0))
    }

    /// From now on it runs so much faster (per ten thousand; negative: slower).
    pub(crate) fn run(&mut self, now: Time, faster: i64) {
        assert!(faster > -10_000, "a clock never stands still");
        *self = Self { since: now, shown: self.at(now), faster };
    }
}
