//! What the authority answers to a proposal of a configuration (I1).

use alloc::string::String;

use crate::config::Config;
use crate::ids::SegmentId;
use crate::limits::TEXT_BYTES_MAX;

/// What became of a proposal.
#[derive(Clone, PartialEq, Eq, Debug)]
pub enum Decision {
    /// Installed, durably.
    Installed(Config),
    /// The configuration was not `expected`; it is this. Nothing changed.
    Conflict(Config),
    /// Not allowed, and why; the configuration is still this one.
    Denied(Config, String),
    /// There is no such segment (any more).
    Unknown(SegmentId),
}

impl Decision {
    /// The segment it is about.
    #[must_use]
    pub const fn segment(&self) -> SegmentId {
        match self {
            Self::Installed(config) | Self::Conflict(config) | Self::Denied(config, _) => config.segment,
            Self::Unknown(segment) => *segment,
        }
    }

    /// Bytes it needs in a message, at most.
    #[must_use]
    pub fn wire_bytes(&self) -> usize {
        let reason = if let Self::Denied(_, reason) = self { reason.len().min(TEXT_BYTES_MAX) } else { 0 };
        match self {
            Self::Installed(config) | Self::Conflict(config) | Self::Denied(config, _) => config.wire_bytes() + reason,
            Self::Unknown(_) => 16,
        }
    }
}
