//! The one place where epochs are compared (I1, I2, I9).
//!
//! Intuition: an epoch is a promise never to look back. A replica obeys its promised epoch and later ones, a
//! configuration replaces only an earlier one, and logs are ranked by the epoch in which they became the common one.

use crate::config::Config;
use crate::ids::{Epoch, Seq};

/// Whether something said in `said` must be refused by a replica that promised `promised` (I2).
#[must_use]
pub fn is_stale(said: Epoch, promised: Epoch) -> bool {
    said < promised
}

/// Whether `new` replaces `old`. One epoch is one configuration (I1), so equal epochs never replace each other.
#[must_use]
pub fn supersedes(new: &Config, old: &Config) -> bool {
    new.incarnation == old.incarnation && new.epoch > old.epoch
}

/// Whether `new` is the configuration directly after `old`: nobody led in between.
#[must_use]
pub fn is_next(new: &Config, old: &Config) -> bool {
    new.incarnation == old.incarnation && new.epoch == old.epoch.next()
}

/// Whether whoever has seen `seen` knows of a configuration after the one at work.
#[must_use]
pub fn is_ahead(seen: Epoch, at_work: &Config) -> bool {
    seen > at_work.epoch
}

/// Whether a message of epoch `said` belongs to exactly the configuration at work.
#[must_use]
pub fn is_current(said: Epoch, at_work: &Config) -> bool {
    said == at_work.epoch
}

/// Whether whoever starts from `base` has missed a configuration.
#[must_use]
pub fn is_outdated(base: Epoch, at_work: &Config) -> bool {
    base < at_work.epoch
}

/// Whether a promise of `epoch` may be given by a replica with this promise and configuration. Giving the same promise
/// twice is harmless: the authority installs at most one configuration of that epoch (I1).
#[must_use]
pub fn may_promise(epoch: Epoch, promised: Epoch, at_work: &Config) -> bool {
    epoch >= promised && epoch > at_work.epoch
}

/// Whether a log of `own` must be reconciled before it follows a primary whose log became common in `common` (I9).
#[must_use]
pub fn log_is_behind(own: Epoch, common: Epoch) -> bool {
    own < common
}

/// Whether two logs are one: then the shorter is a beginning of the longer.
#[must_use]
pub fn is_same_log(one: Epoch, other: Epoch) -> bool {
    one == other
}

/// Whether a replica that says this has a log that counts; a copy in the making has none and says 0.
#[must_use]
pub fn names_a_log(said: Epoch) -> bool {
    said > Epoch(0)
}

/// Rank of a tail in an election: the log's epoch first, its length second (I9).
#[must_use]
pub fn tail_rank(log_epoch: Epoch, last: Seq) -> (Epoch, Seq) {
    (log_epoch, last)
}

/// The higher of two promises.
#[must_use]
pub fn higher(a: Epoch, b: Epoch) -> Epoch {
    a.max(b)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_longer_log_of_an_older_epoch_loses() {
        assert!(tail_rank(Epoch(3), Seq(10)) > tail_rank(Epoch(2), Seq(99)));
        assert!(tail_rank(Epoch(3), Seq(11)) > tail_rank(Epoch(3), Seq(10)));
    }

    #[test]
    fn a_promise_refuses_only_what_is_lower() {
        assert!(is_stale(Epoch(4), Epoch(5)));
        assert!(!is_stale(Epoch(5), Epoch(5)));
    }
}
