//! Which of a shard's replicas are to be given time, and when: so that thousands that wait for nothing cost nothing.
//!
//! Invariant: a replica is ticked at the first [`crate::limits::TICK`] at or after its [`Replica::wake_at`]. An entry may be
//! early (a deadline that moved back is noticed when the old one comes), never late.
//!
//! [`Replica::wake_at`]: crate::replica::Replica::wake_at

use alloc::collections::BTreeSet;
use alloc::vec::Vec;

use crate::ids::SegmentId;
use crate::time::Time;

/// When replicas are due, earliest first. Each replica's owner keeps its [`Alarm`].
#[derive(Debug, Default)]
pub struct Schedule {
    due: BTreeSet<(Time, SegmentId)>,
}

/// The entry of one replica in its [`Schedule`]: none, or for when.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq)]
pub struct Alarm(Option<Time>);

impl Schedule {
    /// Nobody is due.
    #[must_use]
    pub fn new() -> Self {
        Self::default()
    }

    /// Makes sure that `segment` is due at `wake` or before.
    pub fn set(&mut self, alarm: &mut Alarm, segment: SegmentId, wake: Option<Time>) {
        let Some(wake) = wake else { return };
        if let Some(set) = alarm.0 {
            // What moved back is left: that saves an entry with every write and every beat.
            if set <= wake {
                return;
            }
            self.due.remove(&(set, segment));
        }
        self.due.insert((wake, segment));
        alarm.0 = Some(wake);
    }

    /// The replica is gone.
    pub fn forget(&mut self, alarm: Alarm, segment: SegmentId) {
        if let Some(set) = alarm.0 {
            self.due.remove(&(set, segment));
        }
    }

    /// Everyone who is due, in order; their alarms are to be cleared and, after the tick, set again.
    pub fn take_due(&mut self, now: Time) -> Vec<SegmentId> {
        let mut due = Vec::new();
        while let Some((_, segment)) = self.due.first().filter(|(at, _)| *at <= now).copied() {
            self.due.pop_first();
            due.push(segment);
        }
        due
    }
}

impl Alarm {
    /// It rang.
    pub fn clear(&mut self) {
        self.0 = None;
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::ids::VolumeId;

    fn segment(index: u32) -> SegmentId {
        SegmentId { volume: VolumeId(1), index }
    }

    #[test]
    fn earliest_first_never_late_and_gone_when_forgotten() {
        let mut schedule = Schedule::new();
        let mut alarms = [Alarm::default(); 3];
        schedule.set(&mut alarms[0], segment(0), Some(Time(30)));
        schedule.set(&mut alarms[1], segment(1), Some(Time(20)));
        schedule.set(&mut alarms[2], segment(2), Some(Time(10)));
        schedule.set(&mut alarms[0], segment(0), Some(Time(5)));
        // Moved back, or waiting for nothing any more: the old entry stays and is a tick too many.
        schedule.set(&mut alarms[1], segment(1), Some(Time(99)));
        schedule.set(&mut alarms[1], segment(1), None);
        schedule.forget(alarms[2], segment(2));
        assert_eq!(schedule.take_due(Time(4)), []);
        assert_eq!(schedule.take_due(Time(20)), [segment(0), segment(1)]);
        assert_eq!(schedule.take_due(Time(1000)), []);
        alarms[1].clear();
        schedule.set(&mut alarms[1], segment(1), Some(Time(99)));
        assert_eq!(schedule.take_due(Time(99)), [segment(1)]);
    }
}
