//! When a replica has to be given time again: most replicas wait for nothing nearly always, and a node holds thousands.
//!
//! Intuition: what a tick would do hangs on the state and the clock. The clock's part is a handful of points in time,
//! one per pause and deadline of the role ([`Replica::wake_at`]); the state's part can change only by an input, so every
//! input that may matter asks for one tick soon after it (`matters`). A tick too many costs nothing.
//!
//! Invariant: a tick before [`Replica::wake_at`] changes nothing and has no effect. A primary beats, so it is ticked at
//! least every [`crate::limits::BEAT_EVERY`], whatever is forgotten here.

use super::io::{Durable, Input};
use super::{Replica, Role};
use crate::message::Peer;
use crate::time::Time;

impl Replica {
    /// Ticks before this change nothing; `None`: none will until something happens. May lie in the past: tick as soon as
    /// it is time for ticks at all. To be asked again after every input.
    #[must_use]
    pub fn wake_at(&self) -> Option<Time> {
        let of_role = match &self.role {
            Role::Follower(_) => self.election_due(),
            Role::Electing(election) => Some(self.election_wakes(election)),
            Role::Primary(_) | Role::Candidate(_) if self.look => Some(Time(0)),
            Role::Primary(primary) => Some(self.primary_wakes(primary)),
            Role::Candidate(catch_up) => catch_up.asks_at(),
            Role::Stale | Role::Failed => None,
        };
        let fence = if let Role::Primary(primary) = &self.role { primary.fence_waits_until() } else { None };
        let compares = if let Role::Primary(primary) = &self.role { primary.comparing.wakes() } else { None };
        [of_role, fence, compares, self.handover_wakes(), self.mends.wakes()].into_iter().flatten().min()
    }
}

/// Whether what a primary or candidate plans may hang on this input. What comes with every write and every beat does
/// not: it moves deadlines, which `wake_at` knows, and nothing else.
pub(super) const fn matters(input: &Input) -> bool {
    !matches!(
        input,
        Input::Tick
            | Input::Client { .. }
            | Input::Leased { .. }
            | Input::ClientGone(_)
            | Input::Read { .. }
            | Input::Allocation { .. }
            | Input::Extent { .. }
            | Input::Scrubbed { .. }
            | Input::Digest { .. }
            | Input::Durable(Durable::Log { .. })
            | Input::Peer {
                message: Peer::PrepareAck { .. }
                    | Peer::Beat { .. }
                    | Peer::BeatAck { .. }
                    | Peer::CopyList { .. }
                    | Peer::CopyGet { .. }
                    | Peer::Compare { .. }
                    | Peer::Compared { .. }
                    | Peer::CompareFailed { .. },
                ..
            }
    )
}
