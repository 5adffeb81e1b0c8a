//! Turns of volumes, as stories with small numbers.

use alloc::vec::Vec;

use super::*;
use crate::limits::BLOCK_SIZE;
use crate::time::Span;

const BUSY: VolumeId = VolumeId(1);
const QUIET: VolumeId = VolumeId(2);
const THIRD: VolumeId = VolumeId(3);
/// One request about one block.
const BLOCK: Cost = Cost::of(1, BLOCK_SIZE);
/// So many of them fill what may be in hand.
const FILLS: u64 = FAIR_IN_HAND / BLOCK.0;

/// The queue and what of it has begun: requests are numbers.
#[derive(Default)]
struct World {
    now: Time,
    fair: Fair<(VolumeId, u64)>,
    began: Vec<(VolumeId, u64)>,
}

impl World {
    /// A world in which the quiet volume asked for something just now.
    fn shared() -> Self {
        let mut w = Self { now: Time(0) + Span::seconds(1), ..Self::default() };
        w.ask(QUIET, BLOCK, 0);
        w.end(QUIET, BLOCK);
        w.began.clear();
        w
    }

    fn ask(&mut self, volume: VolumeId, cost: Cost, number: u64) -> bool {
        match self.fair.offer(self.now, volume, cost, (volume, number)) {
            Offered::Now(request) => self.begin(request, cost),
            Offered::Waits => {}
            Offered::Full(_) => return false,
        }
        true
    }

    fn ask_many(&mut self, volume: VolumeId, count: u64) {
        (0..count).for_each(|number| assert!(self.ask(volume, BLOCK, number)));
    }

    fn begin(&mut self, request: (VolumeId, u64), cost: Cost) {
        self.fair.began(self.now, request.0, cost);
        self.began.push(request);
    }

    /// Something of the volume ends, and what may begin in the next turn does.
    fn end(&mut self, volume: VolumeId, cost: Cost) {
        self.fair.ended(self.now, volume, cost);
        self.fair.begin_turn();
        self.go_on();
    }

    /// All waiting requests cost the same here.
    fn go_on(&mut self) {
        while let Some(request) = self.fair.next(self.now) {
            self.begin(request, BLOCK);
        }
    }

    fn begun_of(&self, volume: VolumeId) -> u64 {
        self.began.iter().filter(|(of, _)| *of == volume).count() as u64
    }
}

#[test]
fn one_volume_alone_begins_everything_at_once() {
    let mut w = World::default();
    w.ask_many(BUSY, 10 * FILLS);
    assert_eq!((w.begun_of(BUSY), w.fair.waiting()), (10 * FILLS, 0));
}

#[test]
fn beside_another_one_only_so_much_is_in_hand_and_the_other_goes_at_once() {
    let mut w = World::shared();
    w.ask_many(BUSY, 8 * FILLS);
    assert_eq!(w.begun_of(BUSY), FILLS);
    w.ask(QUIET, BLOCK, 1);
    assert_eq!(w.began.last(), Some(&(QUIET, 1)), "it has nothing in hand, so it does not wait");
    w.end(BUSY, BLOCK);
    assert_eq!(w.begun_of(BUSY), FILLS, "room for one is taken by the other's");
    w.end(BUSY, BLOCK);
    assert_eq!(w.begun_of(BUSY), FILLS + 1);
    // Each begins in the order it came in.
    let busy: Vec<u64> = w.began.iter().filter(|(of, _)| *of == BUSY).map(|(_, number)| *number).collect();
    assert!(busy.is_sorted());
}

#[test]
fn volumes_that_wait_take_turns_of_equal_cost() {
    let mut w = World::shared();
    w.ask_many(BUSY, 20 * FILLS);
    w.ask_many(QUIET, 2 * FILLS);
    w.ask_many(THIRD, 2 * FILLS);
    w.began.clear();
    for _ in 0..FILLS {
        w.end(BUSY, BLOCK);
    }
    let turn = FAIR_TURN / BLOCK.0;
    for volume in [BUSY, QUIET, THIRD] {
        // Two had begun one each although nothing was left to begin.
        assert!(w.begun_of(volume).abs_diff((FILLS - 2) / 3) <= turn, "{volume}: {:?}", w.began);
    }
}

#[test]
fn a_large_request_is_paid_for_with_turns() {
    let mut w = World::shared();
    w.ask_many(BUSY, FILLS);
    // Both wait now: one with large requests, the other with small ones; what is in hand is counted as small.
    let large = Cost(16 * FAIR_TURN);
    for number in 0..4 {
        w.ask(BUSY, large, FILLS + number);
    }
    w.ask_many(THIRD, 400);
    w.began.clear();
    for _ in 0..FILLS {
        w.end(BUSY, BLOCK);
    }
    assert!(w.begun_of(BUSY) <= 1, "{:?}", w.began);
    assert!(w.begun_of(THIRD) >= FILLS - 2);
}

#[test]
fn alone_again_after_a_while_everything_begins() {
    let mut w = World::shared();
    w.ask_many(BUSY, 4 * FILLS);
    assert_eq!(w.begun_of(BUSY), FILLS);
    w.now = w.now + FAIR_MEMORY;
    w.go_on();
    assert_eq!((w.begun_of(BUSY), w.fair.waiting()), (4 * FILLS, 0));
}

#[test]
fn what_stands_still_does_not_hold_up_others_for_ever() {
    let mut w = World::shared();
    w.ask_many(BUSY, 4 * FILLS);
    w.ask_many(THIRD, 4 * FILLS);
    assert_eq!((w.begun_of(BUSY), w.begun_of(THIRD)), (FILLS, 1));
    // Nothing of the busy one ends: one of its members is lost. The third one's do, one by one.
    for step in 1..=4 {
        w.now = w.now + Span(FAIR_PATIENCE.0 / 2);
        w.ask(QUIET, BLOCK, 1);
        w.end(QUIET, BLOCK);
        w.end(THIRD, BLOCK);
        assert!(step < 3 || w.begun_of(THIRD) > FILLS / 4, "{step}: {:?}", w.began);
    }
}

#[test]
fn what_ends_at_once_leaves_the_shard_its_turns() {
    let mut w = World::shared();
    w.ask_many(BUSY, 4 * FILLS);
    // All of it comes from memory, or is refused: nothing stays in hand.
    w.fair.ended(w.now, BUSY, Cost(FILLS * BLOCK.0));
    let mut turns = Vec::new();
    while w.fair.waiting() > 0 {
        assert!(w.fair.wants_turn(w.now));
        w.fair.begin_turn();
        if turns.len() == 1 {
            w.ask(QUIET, BLOCK, 1);
            assert_eq!(w.began.last(), Some(&(QUIET, 1)), "whoever came in between waits for one turn at most");
        }
        let mut began = 0;
        while w.fair.next(w.now).is_some() {
            began += 1;
        }
        turns.push(began);
    }
    assert_eq!(turns.iter().sum::<u64>(), 3 * FILLS);
    assert!(turns.iter().all(|began| *began <= FILLS), "{turns:?}");
}

#[test]
fn too_much_is_handed_back_and_what_nobody_wants_is_dropped() {
    let mut w = World::shared();
    w.ask_many(BUSY, FILLS + FAIR_WAITING_MAX as u64);
    assert!(!w.ask(BUSY, BLOCK, 0), "its queue is full");
    assert!(w.ask(THIRD, BLOCK, 0), "that is nobody else's trouble");
    assert!(!w.fair.is_full());
    w.fair.retain(|(volume, _)| *volume != BUSY);
    assert_eq!(w.fair.waiting(), 0);
    for _ in 0..FILLS {
        w.end(BUSY, BLOCK);
    }
    assert_eq!((w.fair.next(w.now), w.begun_of(BUSY)), (None, FILLS));
    let huge = Cost(FAIR_WAITING_BYTES);
    w.ask_many(QUIET, FILLS - 1);
    assert!(w.ask(QUIET, huge, 0) && !w.ask(QUIET, BLOCK, 0), "bytes are bounded as well");
}
