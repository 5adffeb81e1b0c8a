//! Switches that break one invariant, or one part of the re-mirroring policy, each, to prove that the simulated world would notice.
//!
//! They exist only with the feature `sabotage`, which no product is built with: without it [`breaks`] is a constant
//! `false` and nothing of a switch is left. The choice belongs to the process: one switch, one run.

/// The invariants there is a switch for; what each switch does is said where it is asked.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
#[allow(missing_docs, reason = "docs/invariants.md says what each is")]
pub enum Invariant {
    I1,
    I2,
    I3,
    I4,
    I5,
    I6,
    I7,
    I8,
    I9,
    I10,
    I11,
    I12,
    I13,
    I14,
    /// No invariant of its own: what keeps I15 when many nodes vanish at once.
    Breaker,
    /// The part of I13 that keeps space for re-mirroring.
    Headroom,
}

#[cfg(feature = "sabotage")]
mod chosen {
    use core::sync::atomic::{AtomicU8, Ordering};

    use super::Invariant;

    const NONE: u8 = u8::MAX;

    static CHOSEN: AtomicU8 = AtomicU8::new(NONE);

    /// From now on this process breaks `invariant`, or none.
    pub fn choose(invariant: Option<Invariant>) {
        CHOSEN.store(invariant.map_or(NONE, |invariant| invariant as u8), Ordering::Relaxed);
    }

    /// Whether this process breaks `invariant`.
    #[must_use]
    pub fn breaks(invariant: Invariant) -> bool {
        CHOSEN.load(Ordering::Relaxed) == invariant as u8
    }
}

#[cfg(feature = "sabotage")]
pub use chosen::{breaks, choose};

/// Whether this process breaks `invariant`: never, in this build.
#[cfg(not(feature = "sabotage"))]
#[must_use]
pub const fn breaks(_: Invariant) -> bool {
    false
}
