//! Newtypes for every id and number that crosses a boundary.
//!
//! Two of them can never be swapped by accident, and each prints the way people write it (`n3`, `7.0`, `e12`).
//! Nothing here compares epochs to decide anything: that is `epoch`'s work.

use alloc::string::String;
#[cfg(feature = "openapi")]
use alloc::vec::Vec;
use core::fmt;
use core::str::FromStr;

use serde::{Deserialize, Serialize};

macro_rules! number {
    ($(#[$doc:meta])* $name:ident($inner:ty), $prefix:literal) => {
        $(#[$doc])*
        #[derive(Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash, Default, Serialize, Deserialize)]
        #[serde(transparent)]
        #[cfg_attr(feature = "openapi", derive(utoipa::ToSchema))]
        pub struct $name(pub $inner);

        impl fmt::Display for $name {
            fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
                write!(f, concat!($prefix, "{}"), self.0)
            }
        }

        impl fmt::Debug for $name {
            fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
                fmt::Display::fmt(self, f)
            }
        }

        impl $name {
            /// The next number.
            #[must_use]
            pub const fn next(self) -> Self {
                Self(self.0 + 1)
            }
        }
    };
}

number!(/// A volume. Never reused.
    VolumeId(u32), "v");
number!(/// Which life of a segment's data this is; a forced, data-losing exit starts a new one (I11).
    Incarnation(u32), "i");
number!(/// Number of a configuration (I1). 0 is "before the first".
    Epoch(u64), "e");
number!(/// Position of a write in its segment's order. 0 is "before the first".
    Seq(u64), "s");
number!(/// Attachment generation: number of the one client allowed to write (I2). 0 is "never attached".
    Generation(u64), "g");
number!(/// Number of a client's session within its attachment; grows with every reconnect (I2).
    Session(u64), "c");
number!(/// A client's number for one request within its session.
    RequestId(u64), "r");
number!(/// How often a device has been opened by a node: grows by one each boot (I9).
    BootCount(u64), "b");
number!(/// How many changes the authority has made; orders its states (I11).
    Revision(u64), "rev");
number!(/// Index of a 4 KiB block within its segment.
    BlockIndex(u32), "blk");
number!(/// Index of a 128 KiB extent within its segment.
    ExtentIndex(u32), "ext");
number!(/// A permit to run one re-mirror.
    PermitId(u64), "p");

/// A storage node, as people write it: `n3`. Chosen by the operator, one per device, never 0.
#[derive(Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash, Serialize, Deserialize)]
#[serde(try_from = "String", into = "String")]
#[cfg_attr(feature = "openapi", derive(utoipa::ToSchema), schema(value_type = String))]
pub struct NodeId(pub u16);

impl fmt::Display for NodeId {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "n{}", self.0)
    }
}

impl fmt::Debug for NodeId {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        fmt::Display::fmt(self, f)
    }
}

/// What a text that should name a node looked like instead.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
#[error("`{0}` is not a node id: write n1 to n65535")]
pub struct BadNodeId(pub String);

impl FromStr for NodeId {
    type Err = BadNodeId;

    fn from_str(text: &str) -> Result<Self, BadNodeId> {
        match text.strip_prefix('n').unwrap_or(text).parse::<u16>() {
            Ok(number) if number > 0 => Ok(Self(number)),
            _ => Err(BadNodeId(text.into())),
        }
    }
}

impl TryFrom<String> for NodeId {
    type Error = BadNodeId;

    fn try_from(text: String) -> Result<Self, BadNodeId> {
        text.parse()
    }
}

impl From<NodeId> for String {
    fn from(node: NodeId) -> Self {
        alloc::format!("{node}")
    }
}

/// A segment: the volume it belongs to and its index there. Never reused, because volume ids are not.
#[derive(Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash, Serialize, Deserialize)]
#[cfg_attr(feature = "openapi", derive(utoipa::ToSchema))]
pub struct SegmentId {
    /// The volume.
    pub volume: VolumeId,
    /// Position in the volume's list of segments.
    pub index: u32,
}

impl SegmentId {
    /// One number for wire and disk.
    #[must_use]
    pub const fn to_u64(self) -> u64 {
        ((self.volume.0 as u64) << 32) | self.index as u64
    }

    /// The inverse of [`SegmentId::to_u64`].
    #[must_use]
    #[allow(clippy::cast_possible_truncation)] // the two halves, on purpose
    pub const fn from_u64(number: u64) -> Self {
        Self { volume: VolumeId((number >> 32) as u32), index: number as u32 }
    }

    /// Which of a node's shards owns this segment. Every peer can compute it.
    #[must_use]
    #[allow(clippy::cast_possible_truncation)] // below `shards`
    pub const fn shard(self, shards: u16) -> u16 {
        (crate::random::mix(self.to_u64()) % shards as u64) as u16
    }
}

impl fmt::Display for SegmentId {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{}.{}", self.volume.0, self.index)
    }
}

impl fmt::Debug for SegmentId {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        fmt::Display::fmt(self, f)
    }
}

macro_rules! uuid {
    ($(#[$doc:meta])* $name:ident) => {
        $(#[$doc])*
        #[derive(Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash, Default, Serialize, Deserialize)]
        #[serde(try_from = "String", into = "String")]
        #[cfg_attr(feature = "openapi", derive(utoipa::ToSchema), schema(value_type = String))]
        pub struct $name(pub u128);

        impl fmt::Display for $name {
            fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
                write!(f, "{:032x}", self.0)
            }
        }

        impl fmt::Debug for $name {
            fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
                fmt::Display::fmt(self, f)
            }
        }

        impl From<$name> for String {
            fn from(id: $name) -> Self {
                alloc::format!("{id}")
            }
        }

        impl TryFrom<String> for $name {
            type Error = BadHexId;

            fn try_from(text: String) -> Result<Self, BadHexId> {
                match u128::from_str_radix(&text, 16) {
                    Ok(number) if text.len() == 32 => Ok(Self(number)),
                    _ => Err(BadHexId(text)),
                }
            }
        }
    };
}

/// A text that should be 32 hexadecimal digits and is not.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
#[error("`{0}` is not an id of 32 hexadecimal digits")]
pub struct BadHexId(pub String);

uuid!(/// A cluster: made once with its authority, carried by every handshake and superblock.
    ClusterId);
uuid!(/// A formatted device: made when it is formatted, in every copy of its superblock.
    DeviceId);
uuid!(/// One run of one process; a new one at every start.
    BootId);
