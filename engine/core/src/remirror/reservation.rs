//! Space a shard has promised to re-mirrors that have not begun yet (R4).
//!
//! A promise holds extents until the replica it was made for is created, or until nobody renews it for
//! [`PERMIT_TTL`]: silence ends it. Promises live in memory; after a restart the authority asks again.

use alloc::collections::BTreeMap;

use crate::ids::{PermitId, SegmentId};
use crate::limits::{PERMIT_TTL, RESERVATIONS_MAX};
use crate::time::Time;

#[derive(Debug, Clone, Copy)]
struct Promise {
    segment: SegmentId,
    extents: u64,
    ends: Time,
}

/// The promises of one shard.
#[derive(Debug, Default)]
pub struct Reservations {
    promises: BTreeMap<PermitId, Promise>,
}

impl Reservations {
    /// No promises.
    #[must_use]
    pub fn new() -> Self {
        Self::default()
    }

    /// Promises `extents` of the `free` ones, or says no. Asking again for the same permit renews the promise.
    pub fn reserve(&mut self, now: Time, permit: PermitId, segment: SegmentId, extents: u64, free: u64) -> bool {
        self.expire(now);
        self.promises.retain(|held, promise| *held == permit || promise.segment != segment);
        let promised_to_others = self.held_except(permit);
        let known = self.promises.contains_key(&permit);
        if promised_to_others.saturating_add(extents) > free || (!known && self.promises.len() >= RESERVATIONS_MAX) {
            return false;
        }
        self.promises.insert(permit, Promise { segment, extents, ends: now + PERMIT_TTL });
        true
    }

    /// Ends the promise made for this segment, if one is alive, because its replica now books the space itself.
    pub fn take(&mut self, now: Time, segment: SegmentId) -> Option<u64> {
        self.expire(now);
        let permit = self.promises.iter().find(|(_, promise)| promise.segment == segment).map(|(permit, _)| *permit)?;
        self.promises.remove(&permit).map(|promise| promise.extents)
    }

    /// Extents promised at `now`.
    pub fn held(&mut self, now: Time) -> u64 {
        self.expire(now);
        self.promises.values().map(|promise| promise.extents).sum()
    }

    fn held_except(&self, permit: PermitId) -> u64 {
        self.promises.iter().filter(|(held, _)| **held != permit).map(|(_, promise)| promise.extents).sum()
    }

    fn expire(&mut self, now: Time) {
        self.promises.retain(|_, promise| promise.ends > now);
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::ids::VolumeId;
    use crate::time::Span;

    fn segment(index: u32) -> SegmentId {
        SegmentId { volume: VolumeId(1), index }
    }

    #[test]
    fn never_promises_more_than_is_free() {
        let mut book = Reservations::new();
        assert!(book.reserve(Time(0), PermitId(1), segment(0), 60, 100));
        assert!(!book.reserve(Time(0), PermitId(2), segment(1), 60, 100));
        assert!(book.reserve(Time(0), PermitId(2), segment(1), 40, 100));
        assert_eq!(book.held(Time(0)), 100);
    }

    #[test]
    fn asking_again_renews_and_silence_ends() {
        let mut book = Reservations::new();
        let half = Time(PERMIT_TTL.0 / 2);
        assert!(book.reserve(Time(0), PermitId(1), segment(0), 60, 100));
        assert!(book.reserve(half, PermitId(1), segment(0), 60, 100));
        assert_eq!(book.held(Time(0) + PERMIT_TTL), 60);
        assert_eq!(book.held(half + PERMIT_TTL + Span(1)), 0);
    }

    #[test]
    fn a_new_permit_for_the_same_segment_replaces_the_old_one() {
        let mut book = Reservations::new();
        assert!(book.reserve(Time(0), PermitId(1), segment(0), 60, 100));
        assert!(book.reserve(Time(0), PermitId(2), segment(0), 60, 100));
        assert_eq!(book.held(Time(0)), 60);
    }

    #[test]
    fn the_replica_takes_its_promise_once() {
        let mut book = Reservations::new();
        assert!(book.reserve(Time(0), PermitId(1), segment(0), 60, 100));
        assert_eq!(book.take(Time(1), segment(0)), Some(60));
        assert_eq!(book.take(Time(1), segment(0)), None);
        assert_eq!(book.held(Time(1)), 0);
    }
}
