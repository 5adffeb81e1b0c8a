//! What a volume's client holds itself to: so many requests and so many MiB per second.
//!
//! Intuition: a bucket that fills at the stated rate and holds what fits [`LIMIT_BURST`]. A request takes what it costs
//! out of it and begins when that is there. It is kept as one point in time, at which the bucket will be full again: a
//! request moves that point by its cost, and time alone brings it closer. One with more cost than the bucket holds
//! begins when the bucket is full and leaves it in debt, so the largest request is never starved and the rate holds
//! all the same.
//!
//! Invariants:
//! - In any span of time no more begins than the rate gives for it, what the bucket holds, and one request.
//! - Whoever always has something to ask gets the rate: fractions of a nanosecond are carried on (no drift), and who
//!   begins late has lost nothing that fits the bucket.
//! - Requests begin in the order they are let in, and the one let in next waits no longer than [`LIMIT_WAIT_MAX`] when
//!   the one before has begun (whoever asks lets in one at a time).
//! - A new limit forgives no debt.

#[cfg(feature = "openapi")]
use alloc::{string::String, vec::Vec};

use serde::{Deserialize, Serialize};

use crate::limits::{LIMIT_BURST, LIMIT_IOPS_MAX, LIMIT_MIBPS_MAX};
use crate::time::{Span, Time};

/// Limits of a volume; 0 is none.
#[derive(Clone, Copy, PartialEq, Eq, Default, Debug, Serialize, Deserialize)]
#[cfg_attr(feature = "openapi", derive(utoipa::ToSchema))]
pub struct VolumeLimits {
    /// Requests per second. A request is of at most 1 MiB: a longer one counts as several.
    #[serde(default)]
    pub iops: u32,
    /// MiB of data per second, read and written together.
    #[serde(default)]
    pub mibps: u32,
}

/// A limit no volume can have.
#[derive(Debug, Clone, Copy, PartialEq, Eq, thiserror::Error)]
pub enum BadLimit {
    /// Of requests.
    #[error("a volume is limited to 1 to {LIMIT_IOPS_MAX} requests per second (0: no limit), not {0}")]
    Iops(u32),
    /// Of data.
    #[error("a volume is limited to 1 to {LIMIT_MIBPS_MAX} MiB per second (0: no limit), not {0}")]
    Mibps(u32),
}

impl VolumeLimits {
    /// No limit at all.
    #[must_use]
    pub const fn is_none(self) -> bool {
        self.iops == 0 && self.mibps == 0
    }

    /// These with what was asked for in place of what was; what nobody asked for stays.
    ///
    /// # Errors
    /// When a limit is none a volume can have.
    pub fn with(self, iops: Option<u32>, mibps: Option<u32>) -> Result<Self, BadLimit> {
        let (iops, mibps) = (iops.unwrap_or(self.iops), mibps.unwrap_or(self.mibps));
        if iops > LIMIT_IOPS_MAX {
            return Err(BadLimit::Iops(iops));
        }
        if mibps > LIMIT_MIBPS_MAX {
            return Err(BadLimit::Mibps(mibps));
        }
        Ok(Self { iops, mibps })
    }
}

/// One rate.
#[derive(Clone, Copy, PartialEq, Eq, Default, Debug)]
struct Bucket {
    /// What may begin in a second; 0: anything.
    rate: u64,
    /// When it is full.
    full: Time,
    /// What `full` leaves out of a nanosecond, in parts of the rate.
    rest: u64,
}

impl Bucket {
    const fn set(&mut self, rate: u64) {
        if self.rate != rate {
            self.rate = rate;
            self.rest = 0;
        }
    }

    /// How long it takes to fill in so much, and the rest.
    const fn fills(&self, cost: u64) -> (Span, u64) {
        const SECOND: u64 = 1_000_000_000;
        let parts = cost.saturating_mul(SECOND).saturating_add(self.rest);
        (Span(parts / self.rate), parts % self.rate)
    }

    /// When a request of this cost may begin.
    fn opens(&self, now: Time, cost: u64) -> Time {
        if self.rate == 0 {
            return now;
        }
        let (needs, _) = self.fills(cost);
        // What is left in it then; nothing for what is larger than the bucket: that begins when it is full.
        let left = Span(LIMIT_BURST.0.saturating_sub(needs.0));
        now.max(self.full - left)
    }

    fn take(&mut self, begins: Time, cost: u64) {
        if self.rate == 0 {
            return;
        }
        if self.full < begins {
            (self.full, self.rest) = (begins, 0);
        }
        let (needs, rest) = self.fills(cost);
        (self.full, self.rest) = (self.full + needs, rest);
    }
}

/// One client's requests under its volume's limits.
#[derive(Debug, Clone, PartialEq, Eq, Default)]
pub struct Throttle {
    limits: VolumeLimits,
    requests: Bucket,
    bytes: Bucket,
    /// When the request let in last begins.
    latest: Time,
}

impl Throttle {
    /// Under these limits, with full buckets.
    #[must_use]
    pub fn new(limits: VolumeLimits) -> Self {
        let mut throttle = Self::default();
        throttle.set(limits);
        throttle
    }

    /// The limits.
    #[must_use]
    pub const fn limits(&self) -> VolumeLimits {
        self.limits
    }

    /// From now on these limits count; what has begun stays counted.
    pub fn set(&mut self, limits: VolumeLimits) {
        self.limits = limits;
        self.requests.set(u64::from(limits.iops));
        self.bytes.set(u64::from(limits.mibps) << 20);
    }

    /// When a request with so many bytes of data may begin, which may be `now`. Nothing is counted yet: whoever waits for
    /// it may give up.
    #[must_use]
    pub fn opens(&self, now: Time, bytes: u64) -> Time {
        self.requests.opens(now, 1).max(self.bytes.opens(now, bytes)).max(self.latest)
    }

    /// It begins, at the time that was given for it.
    pub fn take(&mut self, begins: Time, bytes: u64) {
        self.requests.take(begins, 1);
        self.bytes.take(begins, bytes);
        self.latest = begins;
    }
}

#[cfg(test)]
mod tests;
