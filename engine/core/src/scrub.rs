//! A shard's scrub: everything at home is read and compared with its checksums, again and again, so that damage is found
//! while another member still has what it destroyed (I14).
//!
//! Intuition: a pass walks over segments and extents in order, at a pace that a device does not feel; between passes it
//! rests. A person may want a pass now, at a quicker pace. The walker remembers nothing across a restart: then a pass
//! begins anew, a while after the start. This machine says when to read the next extent; the shard reads it, and tells the
//! replica of what it finds.
//!
//! Bounds (I15): [`SCRUB_INFLIGHT`] extents at a time; bytes per second by [`SCRUB_PACE`] and [`SCRUB_PACE_NOW`].

use crate::ids::{ExtentIndex, SegmentId};
use crate::limits::{
    EXTENT_SIZE, SCRUB_AFTER_START, SCRUB_EVERY, SCRUB_INFLIGHT, SCRUB_PACE, SCRUB_PACE_NOW, SCRUB_SPREAD,
};
use crate::time::{Span, Time};

/// A pass under way.
#[derive(Debug)]
struct Pass {
    began: Time,
    /// Where the next extent is looked for.
    at: (SegmentId, ExtentIndex),
    /// Not before: the pace.
    not_before: Time,
    /// Somebody waits for it.
    quick: bool,
    done: u64,
}

/// See the module.
#[derive(Debug)]
pub struct Scrub {
    pass: Option<Pass>,
    /// When the next pass begins by itself.
    next: Time,
    /// A person wants one.
    wanted: bool,
    inflight: usize,
    facts: ScrubReport,
}

/// What a scrub has done since the start.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default)]
pub struct ScrubReport {
    /// Passes completed.
    pub passes: u64,
    /// A pass is under way.
    pub running: bool,
    /// Extents the pass under way has read; the last one's when none is.
    pub done: u64,
    /// Extents found damaged by scrubs.
    pub damaged: u64,
    /// Extents compared with those of every member, where it led.
    pub compared: u64,
    /// Extents that could not be, and are left to the next pass.
    pub unsettled: u64,
    /// Members found to hold something else than what was committed, each extent by itself.
    pub differing: u64,
}

impl ScrubReport {
    /// Of a node whose shards say these.
    pub fn add(&mut self, shard: &Self) {
        self.passes += shard.passes;
        self.running |= shard.running;
        self.done += shard.done;
        self.damaged += shard.damaged;
        self.compared += shard.compared;
        self.unsettled += shard.unsettled;
        self.differing += shard.differing;
    }
}

impl Scrub {
    /// The first pass begins a while after `now`; `phase` spreads the nodes of a cluster.
    #[must_use]
    pub fn new(now: Time, phase: u64) -> Self {
        let next = now + SCRUB_AFTER_START + Span(phase % SCRUB_SPREAD.0);
        Self { pass: None, next, wanted: false, inflight: 0, facts: ScrubReport::default() }
    }

    /// A pass begins now; one under way goes on at the quicker pace.
    pub const fn hurry(&mut self) {
        match &mut self.pass {
            Some(pass) => pass.quick = true,
            None => self.wanted = true,
        }
    }

    /// Where to look for the next extent to read, if it is time for one.
    pub fn due(&mut self, now: Time) -> Option<(SegmentId, ExtentIndex)> {
        if self.pass.is_none() && (self.wanted || now >= self.next) {
            let at = (SegmentId::from_u64(0), ExtentIndex(0));
            self.pass = Some(Pass { began: now, at, not_before: now, quick: self.wanted, done: 0 });
            self.wanted = false;
        }
        let pass = self.pass.as_ref()?;
        (now >= pass.not_before && self.inflight < SCRUB_INFLIGHT).then_some(pass.at)
    }

    /// This one is being read.
    pub fn reads(&mut self, now: Time, segment: SegmentId, extent: ExtentIndex) {
        let Some(pass) = &mut self.pass else { return };
        let pace = if pass.quick { SCRUB_PACE_NOW } else { SCRUB_PACE };
        let span = Span(EXTENT_SIZE * 1_000_000_000 / pace);
        // What was missed while the shard was busy is not made up for in a burst.
        pass.not_before = now + span;
        pass.at = (segment, extent.next());
        pass.done += 1;
        self.inflight += 1;
    }

    /// One that was being read is done.
    pub const fn has_read(&mut self, damaged: bool) {
        self.inflight -= 1;
        self.facts.damaged += damaged as u64;
    }

    /// Whether something is being read.
    #[must_use]
    pub const fn is_reading(&self) -> bool {
        self.inflight > 0
    }

    /// There is nothing behind the place it was sent to: the pass is complete.
    pub fn ends(&mut self) {
        if let Some(pass) = self.pass.take() {
            self.next = pass.began + SCRUB_EVERY;
            self.facts.done = pass.done;
            self.facts.passes += 1;
        }
    }

    /// What it has done.
    #[must_use]
    pub fn report(&self) -> ScrubReport {
        let done = self.pass.as_ref().map_or(self.facts.done, |pass| pass.done);
        ScrubReport { running: self.pass.is_some(), done, ..self.facts }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    const SEGMENT: SegmentId = SegmentId::from_u64(7);

    /// Reads what is due of a segment with so many extents, until `end`; says when each was begun.
    fn walk(scrub: &mut Scrub, extents: u32, mut now: Time, end: Time) -> alloc::vec::Vec<Time> {
        let mut begun = alloc::vec::Vec::new();
        while now < end {
            while let Some((segment, from)) = scrub.due(now) {
                let extent = if segment < SEGMENT { ExtentIndex(0) } else { from };
                if segment > SEGMENT || extent.0 >= extents {
                    scrub.ends();
                    continue;
                }
                scrub.reads(now, SEGMENT, extent);
                scrub.has_read(false);
                begun.push(now);
            }
            now = now + Span::millis(1);
        }
        begun
    }

    #[test]
    fn a_pass_keeps_its_pace_and_the_next_one_waits() {
        let start = Time(0) + Span::seconds(5);
        let mut scrub = Scrub::new(start, 0);
        assert_eq!(scrub.due(start), None);
        let begins = start + SCRUB_AFTER_START;
        let begun = walk(&mut scrub, 100, begins, begins + Span::seconds(60));
        assert_eq!((begun.len(), scrub.report().passes), (100, 1), "one pass, and no second one");
        let bytes = 99 * EXTENT_SIZE;
        let took = begun[99].since(begun[0]);
        assert!(bytes * 1_000_000_000 <= SCRUB_PACE * took.0, "{took:?}");
        assert!(scrub.due(begins + SCRUB_EVERY).is_some());
    }

    #[test]
    fn a_person_need_not_wait() {
        let start = Time(0) + Span::seconds(5);
        let mut scrub = Scrub::new(start, 12_345);
        scrub.hurry();
        let begun = walk(&mut scrub, 100, start, start + Span::seconds(10));
        assert_eq!((begun.len(), scrub.report().passes), (100, 1));
        assert!(begun[99].since(begun[0]) < Span(100 * EXTENT_SIZE * 1_000_000_000 / SCRUB_PACE));
    }

    #[test]
    fn few_extents_are_read_at_a_time() {
        let mut scrub = Scrub::new(Time(0), 0);
        scrub.hurry();
        let mut now = Time(0);
        for at in 0..10 {
            now = now + Span::seconds(1);
            if scrub.due(now).is_some() {
                scrub.reads(now, SEGMENT, ExtentIndex(at));
            }
        }
        assert_eq!(scrub.report().done, SCRUB_INFLIGHT as u64);
        scrub.has_read(true);
        assert!(scrub.due(now).is_some());
        assert_eq!(scrub.report().damaged, 1);
    }
}
