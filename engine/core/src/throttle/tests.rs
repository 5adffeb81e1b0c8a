//! Limits in virtual time: tables of single cases, then drawn mixtures held against the invariants.
#![allow(clippy::unwrap_used)]

use alloc::vec;
use alloc::vec::Vec;

use super::*;
use crate::limits::{LIMIT_WAIT_MAX, REQUEST_BYTES_MAX};
use crate::random::Random;

const MIB: u64 = 1 << 20;

impl Throttle {
    /// Somebody waits until it may begin, and begins.
    fn admit(&mut self, now: Time, bytes: u64) -> Time {
        let begins = self.opens(now, bytes);
        self.take(begins, bytes);
        begins
    }
}

fn limits(iops: u32, mibps: u32) -> VolumeLimits {
    VolumeLimits { iops, mibps }
}

/// A client that always has the next request ready: when each began, in milliseconds.
fn hungry(throttle: &mut Throttle, mut now: Time, requests: &[u64]) -> Vec<u64> {
    let mut began = Vec::new();
    for bytes in requests {
        now = throttle.admit(now, *bytes);
        began.push(now.since(Time(0)).as_millis());
    }
    began
}

#[test]
fn without_limits_everything_begins_at_once() {
    let mut throttle = Throttle::new(VolumeLimits::default());
    assert!(throttle.limits().is_none());
    for _ in 0..10_000 {
        assert_eq!(throttle.admit(Time(7), REQUEST_BYTES_MAX), Time(7));
    }
}

#[test]
fn a_burst_then_the_rate() {
    let start = Time(0) + Span::seconds(1);
    let began = hungry(&mut Throttle::new(limits(50, 0)), start, &[4096; 9]);
    assert_eq!(began, [1000, 1000, 1000, 1000, 1000, 1020, 1040, 1060, 1080]);
    let began = hungry(&mut Throttle::new(limits(0, 10)), start, &[MIB / 2; 5]);
    assert_eq!(began, [1000, 1000, 1050, 1100, 1150]);
}

#[test]
fn a_request_larger_than_the_burst_begins_when_the_bucket_is_full_and_leaves_a_debt() {
    let start = Time(0) + Span::seconds(1);
    // The bucket holds 100 KiB or so.
    let began = hungry(&mut Throttle::new(limits(0, 1)), start, &[MIB, MIB, 4096, MIB]);
    assert_eq!(began, [1000, 2000, 2903, 3003]);
    // Not even one request fits it.
    let began = hungry(&mut Throttle::new(limits(1, 0)), start, &[4096; 3]);
    assert_eq!(began, [1000, 2000, 3000]);
}

#[test]
fn the_tighter_limit_counts() {
    let start = Time(0) + Span::seconds(1);
    let began = hungry(&mut Throttle::new(limits(10, 1000)), start, &[MIB; 4]);
    assert_eq!(began, [1000, 1100, 1200, 1300]);
    let began = hungry(&mut Throttle::new(limits(1000, 10)), start, &[MIB; 4]);
    assert_eq!(began, [1000, 1100, 1200, 1300]);
    // What carries no data (a hole, a question) is a request all the same.
    let began = hungry(&mut Throttle::new(limits(10, 1)), start, &[0; 3]);
    assert_eq!(began, [1000, 1100, 1200]);
}

#[test]
fn a_rate_that_is_no_whole_number_of_nanoseconds_does_not_drift() {
    for iops in [3, 7, 333, 4_999, 999_983] {
        let mut throttle = Throttle::new(limits(iops, 0));
        // Buckets are full at zero, and everybody asks at once: the last of an hour's requests.
        let mut last = Time(0);
        for _ in 0..=u64::from(iops) * 60 {
            last = throttle.admit(Time(0), 4096);
        }
        let (minute, burst) = (Span::seconds(60).0, LIMIT_BURST.0);
        let due = minute - burst.saturating_sub(1_000_000_000 / u64::from(iops));
        assert!(last.0.abs_diff(due) <= 1, "{iops}: {last:?}, not {due}");
    }
}

#[test]
fn who_comes_late_has_not_lost_what_fits_the_bucket() {
    // A timer of a millisecond, requests every tenth of one.
    let mut throttle = Throttle::new(limits(10_000, 0));
    let (mut now, mut begun) = (Time(0), 0);
    while now < Time(0) + Span::seconds(10) {
        now = now.max(Time(throttle.admit(now, 4096).0.next_multiple_of(Span::millis(1).0)));
        begun += 1;
    }
    assert!((100_000..=101_010).contains(&begun), "{begun}");
}

#[test]
fn a_new_limit_forgives_no_debt_and_none_lets_all_in() {
    let mut throttle = Throttle::new(limits(0, 1));
    assert_eq!(throttle.admit(Time(0), MIB), Time(0));
    throttle.set(limits(0, 100));
    assert_eq!(throttle.admit(Time(0), MIB), Time(0) + Span::millis(910));
    throttle.set(limits(0, 0));
    let now = Time(0) + Span::seconds(2);
    assert_eq!(throttle.admit(now, MIB), now);
    // Back again long after: a full bucket, no more.
    throttle.set(limits(100, 0));
    let began = hungry(&mut throttle, now + Span::seconds(60), &[0; 12]);
    assert_eq!((began[0], began[9], began[10], began[11]), (62_000, 62_000, 62_010, 62_020));
    // The same again changes nothing.
    let before = throttle.clone();
    throttle.set(limits(100, 0));
    assert_eq!(throttle, before);
}

/// Requests and bytes that began.
fn begun_in(log: &[(Time, u64)], from: Time, to: Time) -> (u64, u64) {
    let inside = log.iter().filter(|(at, _)| (from..=to).contains(at));
    inside.fold((0, 0), |(count, bytes), (_, more)| (count + 1, bytes + more))
}

#[test]
fn drawn_mixtures_hold_the_invariants() {
    for seed in 0..200 {
        let mut random = Random::new(seed);
        let draw = |random: &mut Random, max: u64| u32::try_from(random.between(0, max)).unwrap();
        let (iops, mibps) = (draw(&mut random, 2000), draw(&mut random, 50));
        let mut throttle = Throttle::new(limits(iops, mibps));
        let (mut now, mut log) = (Time(0), vec![]);
        for _ in 0..400 {
            now = now + Span(random.between(0, 4) * random.between(0, 3_000_000));
            let bytes = [0, 4096, 65536, REQUEST_BYTES_MAX][usize::try_from(random.between(0, 3)).unwrap()];
            let begins = throttle.admit(now, bytes);
            assert!(begins >= now && begins.since(now) <= LIMIT_WAIT_MAX, "seed {seed}");
            assert!(log.last().is_none_or(|(at, _)| *at <= begins), "seed {seed}: out of order");
            log.push((begins, bytes));
            // One at a time, as the client does it.
            now = begins;
        }
        for _ in 0..200 {
            let one = usize::try_from(random.between(0, 399)).unwrap();
            let other = usize::try_from(random.between(0, 399)).unwrap();
            let (from, to) = (log[one.min(other)].0, log[one.max(other)].0);
            let (count, bytes) = begun_in(&log, from, to);
            let given = u128::from(to.since(from).0 + LIMIT_BURST.0);
            let most = |rate: u64| u64::try_from(given * u128::from(rate) / 1_000_000_000).unwrap();
            assert!(iops == 0 || count <= most(iops.into()) + 1, "seed {seed}: {count} requests");
            let rate = u64::from(mibps) * MIB;
            assert!(mibps == 0 || bytes <= most(rate) + REQUEST_BYTES_MAX, "seed {seed}: {bytes} bytes");
        }
    }
}

#[test]
fn limits_no_volume_can_have_are_refused_and_what_nobody_names_stays() {
    let some = limits(200, 30);
    assert_eq!(some.with(None, None), Ok(some));
    assert_eq!(some.with(Some(0), None), Ok(limits(0, 30)));
    assert_eq!(some.with(None, Some(7)), Ok(limits(200, 7)));
    assert_eq!(some.with(Some(LIMIT_IOPS_MAX), Some(LIMIT_MIBPS_MAX)), Ok(limits(LIMIT_IOPS_MAX, LIMIT_MIBPS_MAX)));
    assert_eq!(some.with(Some(LIMIT_IOPS_MAX + 1), None), Err(BadLimit::Iops(LIMIT_IOPS_MAX + 1)));
    assert_eq!(some.with(None, Some(u32::MAX)), Err(BadLimit::Mibps(u32::MAX)));
}
