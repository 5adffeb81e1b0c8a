//! By what the authority knows a device again: which openings of it may have been taken in (I9).
//!
//! Intuition: a counter alone does not tell an older image from the device itself, because the image counts on: opened
//! twice it has numbers the device had, too. So each opening also has a name nobody else has, the id of the run that
//! opens it, and that name is durable on the device *before* the run comes to the authority. The authority keeps the
//! one opening it took in last. An image from before that opening cannot carry its name, however often it is opened; a
//! device that lived on carries it, whether or not its node ever heard the authority's answer. So nothing has to be
//! confirmed, and a crash at any point between the two is harmless.
//!
//! Invariants: an opening is listed here durably before a registration names it. Its counter is above those of all
//! openings before it on this device, and the authority's is never above one that the device itself still has.

use crate::ids::{BootCount, BootId};
use crate::limits::OPENINGS_MAX;

/// One opening of a device.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub struct Opening {
    /// The run that opened it.
    pub id: BootId,
    /// The device's boot counter then.
    pub count: BootCount,
}

/// The openings of a device by which an authority may know it.
#[derive(Clone, Copy, PartialEq, Eq, Debug, Default)]
pub struct Openings {
    /// The last one of which the node knows that it was taken in.
    pub taken: Option<Opening>,
    /// Those since, in their order: the authority may have taken them in, and its answer may have been lost.
    pub since: [Option<Opening>; OPENINGS_MAX],
}

impl Openings {
    /// The device is opened. Where there are too many since the last one known to be taken in, the oldest of them is
    /// forgotten: were it the one the authority knows, a sound device would be taken for an older one. That costs a
    /// catch-up, or a person's word where nobody else holds all of a segment; never a write.
    pub fn open(&mut self, opening: Opening) {
        if self.since[OPENINGS_MAX - 1].is_some() {
            self.since.rotate_left(1);
            self.since[OPENINGS_MAX - 1] = None;
        }
        if let Some(free) = self.since.iter_mut().find(|slot| slot.is_none()) {
            *free = Some(opening);
        }
    }

    /// The authority has taken this one in: nothing older is asked for again.
    pub fn take_in(&mut self, opening: Opening) {
        *self = Self { taken: Some(opening), since: [None; OPENINGS_MAX] };
    }

    /// Whether this opening is among them.
    #[must_use]
    pub fn have(&self, opening: Opening) -> bool {
        self.taken.iter().chain(self.since.iter().flatten()).any(|one| *one == opening)
    }

    /// Whether a later one than this was taken in: then whoever remembers this one is itself an older state (I11).
    #[must_use]
    pub fn outlived(&self, count: BootCount) -> bool {
        self.taken.is_some_and(|taken| taken.count > count)
    }
}

#[cfg(test)]
mod tests {
    use super::{Opening, Openings};
    use crate::ids::{BootCount, BootId};
    use crate::limits::OPENINGS_MAX;

    fn opening(count: u64) -> Opening {
        Opening { id: BootId(u128::from(count) + 100), count: BootCount(count) }
    }

    #[test]
    fn the_last_one_taken_in_is_never_forgotten() {
        let mut openings = Openings::default();
        openings.open(opening(1));
        openings.take_in(opening(1));
        let many = OPENINGS_MAX as u64 + 5;
        (2..=many).for_each(|count| openings.open(opening(count)));
        assert!(openings.have(opening(1)) && openings.have(opening(many)));
        assert!(openings.have(opening(many + 1 - OPENINGS_MAX as u64)));
        assert!(!openings.have(opening(many - OPENINGS_MAX as u64)), "too many: the oldest of them");
        assert!(openings.outlived(BootCount(0)) && !openings.outlived(BootCount(1)));
    }

    #[test]
    fn the_same_counter_of_another_run_is_another_opening() {
        let mut openings = Openings::default();
        openings.open(opening(4));
        assert!(!openings.have(Opening { id: BootId(7), ..opening(4) }));
        assert!(!openings.outlived(BootCount(3)), "nobody took it in as far as is known");
    }
}
