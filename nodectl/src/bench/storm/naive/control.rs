//! The control plane of 2011: one pool of threads for the whole region, a queue without a bound, long time-outs.
//!
//! A call that can't be done at once holds its thread until its time-out. A caller who has waited too long asks again;
//! what was asked before stays in the queue and is done all the same.

use std::cmp::Reverse;
use std::collections::{BinaryHeap, VecDeque};

use engine_core::time::{Span, Time};

/// What is asked.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum Ask {
    /// A volume in this zone.
    Create(usize),
    /// Who is this segment's primary, and may other copies go?
    Settle(u32),
}

/// A call in the queue.
#[derive(Debug, Clone, Copy)]
pub(super) struct Call {
    pub(super) ask: Ask,
    pub(super) asked: Time,
}

/// What a call needs of its thread.
#[derive(Debug, Clone, Copy)]
pub(super) struct Work {
    pub(super) takes: Span,
    pub(super) succeeds: bool,
}

/// A call that has ended.
#[derive(Debug, Clone, Copy)]
pub(super) struct Done {
    pub(super) call: Call,
    pub(super) at: Time,
    pub(super) succeeded: bool,
}

/// The pool.
#[derive(Debug)]
pub(super) struct Pool {
    /// When each thread is free.
    free: BinaryHeap<Reverse<Time>>,
    queue: VecDeque<Call>,
    running: BinaryHeap<Reverse<(Time, u64)>>,
    begun: std::collections::BTreeMap<u64, Done>,
    number: u64,
    pub(super) is_stopped: bool,
}

impl Pool {
    pub(super) fn new(threads: usize) -> Self {
        Self {
            free: std::iter::repeat_n(Reverse(Time(0)), threads).collect(),
            queue: VecDeque::new(),
            running: BinaryHeap::new(),
            begun: std::collections::BTreeMap::new(),
            number: 0,
            is_stopped: false,
        }
    }

    pub(super) fn ask(&mut self, call: Call) {
        self.queue.push_back(call);
    }

    pub(super) fn waiting(&self) -> usize {
        self.queue.len()
    }

    /// Lets threads take calls until `until`; gives back what has ended by then.
    pub(super) fn run(&mut self, until: Time, work: &mut dyn FnMut(&Call) -> Work) -> Vec<Done> {
        while !self.is_stopped {
            let (Some(Reverse(free)), Some(call)) = (self.free.peek().copied(), self.queue.front().copied()) else {
                break;
            };
            let starts = free.max(call.asked);
            if starts > until {
                break;
            }
            self.queue.pop_front();
            let Work { takes, succeeds } = work(&call);
            let at = starts + takes;
            self.free.pop();
            self.free.push(Reverse(at));
            self.number += 1;
            self.running.push(Reverse((at, self.number)));
            self.begun.insert(self.number, Done { call, at, succeeded: succeeds });
        }
        let mut done = Vec::new();
        while let Some(Reverse((_, number))) = self.running.peek().copied().filter(|Reverse((at, _))| *at <= until) {
            self.running.pop();
            done.extend(self.begun.remove(&number));
        }
        done
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn one_sick_zone_holds_every_thread_and_the_others_wait() {
        let mut pool = Pool::new(2);
        let second = Span::seconds(1);
        let mut work = |call: &Call| match call.ask {
            Ask::Create(0) => Work { takes: Span::seconds(60), succeeds: false },
            _ => Work { takes: Span::millis(50), succeeds: true },
        };
        pool.ask(Call { ask: Ask::Create(1), asked: Time(0) });
        assert!(pool.run(Time(0) + second, &mut work).iter().all(|done| done.succeeded));
        let at = Time(0) + second;
        (0..2).for_each(|_| pool.ask(Call { ask: Ask::Create(0), asked: at }));
        pool.ask(Call { ask: Ask::Create(1), asked: at });
        assert!(pool.run(at + Span::seconds(59), &mut work).is_empty());
        assert_eq!(pool.waiting(), 1);
        let done = pool.run(at + Span::seconds(62), &mut work);
        assert_eq!(done.iter().filter(|done| done.succeeded).count(), 1);
    }
}
