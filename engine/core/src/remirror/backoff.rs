//! Pauses between attempts to reach something that does not answer (R5).
//!
//! Decorrelated jitter: each pause is drawn between the shortest one and three times the last one, so that many who
//! lost the same thing at the same moment do not come back at the same moment, and do not stay in step afterwards.

use crate::random::Random;
use crate::time::Span;

/// The pauses of one retrying loop.
#[derive(Debug, Clone)]
pub struct Backoff {
    min: Span,
    max: Span,
    last: Span,
    random: Random,
}

impl Backoff {
    /// Pauses between `min` and `max`, beginning short.
    #[must_use]
    pub const fn new(min: Span, max: Span, seed: u64) -> Self {
        assert!(min.0 > 0 && min.0 <= max.0);
        Self { min, max, last: min, random: Random::new(seed) }
    }

    /// How long to wait before the next attempt.
    pub fn pause(&mut self) -> Span {
        let highest = self.last.0.saturating_mul(3).clamp(self.min.0, self.max.0);
        self.last = Span(self.random.between(self.min.0, highest));
        self.last
    }

    /// It worked: the next loss begins with short pauses again.
    pub const fn reset(&mut self) {
        self.last = self.min;
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::limits::{REDIAL_MAX, REDIAL_MIN};

    #[test]
    fn pauses_stay_within_bounds_and_grow() {
        let mut backoff = Backoff::new(REDIAL_MIN, REDIAL_MAX, 7);
        let mut longest = Span::ZERO;
        for _ in 0..1000 {
            let pause = backoff.pause();
            assert!(pause >= REDIAL_MIN && pause <= REDIAL_MAX, "{pause:?}");
            longest = longest.max(pause);
        }
        assert!(longest > Span(REDIAL_MAX.0 / 2), "never got long: {longest:?}");
        backoff.reset();
        assert!(backoff.pause() <= Span(REDIAL_MIN.0 * 3));
    }

    #[test]
    fn two_loops_with_different_seeds_do_not_stay_in_step() {
        let mut one = Backoff::new(REDIAL_MIN, REDIAL_MAX, 1);
        let mut two = Backoff::new(REDIAL_MIN, REDIAL_MAX, 2);
        let same = (0..100).filter(|_| one.pause() == two.pause()).count();
        assert!(same < 5, "{same} equal pauses of 100");
    }
}
