//! What goes into the authority's machine and what comes out of it.
//!
//! Effects are run in order, and whatever stands behind a [`Effect::Save`] is run only once that save is durable.
//! `handle` puts the save of all its changes first, so an announcement before durability cannot be written down (I1).

use alloc::boxed::Box;
use alloc::string::String;
use alloc::vec::Vec;

use super::document::{
    AcceptOlder, AttachVolume, Cluster, Consequences, CreateVolume, DetachVolume, Explain, NodeInfo, RecoverVolume,
    ReleaseCopies, ReplaceDevice, ResizeVolume, SetVolume, Status, VolumeInfo, VolumeMap,
};
use super::policy::{BreakerInfo, SetBreaker};
use super::records::RecordChange;
use crate::ids::{BootId, NodeId};
use crate::message::{FromAuthority, Registration, ToAuthority};

/// The shell's name for one connection of a node. Unique within one run of the authority, never reused.
#[derive(Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash, Debug)]
pub struct SessionRef(pub u64);

/// The shell's name for one call of a person or program. Unique within one run of the authority, never reused.
#[derive(Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash, Debug)]
pub struct CallId(pub u64);

/// Everything that can happen to the authority. `now` comes beside it.
#[derive(Debug, Clone, PartialEq)]
pub enum Input {
    /// Time passes; given at least every [`crate::limits::AUTHORITY_TICK`].
    Tick,
    /// The first message of a node's connection.
    Register {
        /// The connection.
        session: SessionRef,
        /// The run of the node's process, from its handshake.
        boot: BootId,
        /// Who it says it is.
        registration: Registration,
    },
    /// A registered node says something.
    Node {
        /// By which connection; one that was replaced is ignored.
        session: SessionRef,
        /// What.
        message: ToAuthority,
    },
    /// A node's connection is gone.
    Gone(SessionRef),
    /// A person or program asks; answered by [`Effect::Answer`] exactly once.
    Call {
        /// The call.
        call: CallId,
        /// What is asked.
        request: Call,
    },
}

/// What a person or program may ask.
#[derive(Debug, Clone, PartialEq)]
pub enum Call {
    /// Overall status.
    Status,
    /// Cluster id and revision.
    Cluster,
    /// The breaker's state.
    Breaker,
    /// A person says what the breaker is to do.
    SetBreaker(SetBreaker),
    /// All nodes.
    Nodes,
    /// One node.
    Node(NodeId),
    /// All volumes.
    Volumes,
    /// One volume.
    Volume(String),
    /// Make a volume.
    Create(CreateVolume),
    /// Delete a volume.
    Delete(String),
    /// Grow a volume.
    Resize(String, ResizeVolume),
    /// Change a volume's limits.
    Set(String, SetVolume),
    /// Attach a volume.
    Attach(String, AttachVolume),
    /// Detach a volume.
    Detach(String, DetachVolume),
    /// Where a volume's data is.
    Map(String),
    /// Why a volume is as it is.
    Explain(String),
    /// One copy of a segment counts, whatever is lost.
    Recover(String, RecoverVolume),
    /// A node's device is gone for good.
    ReplaceDevice(NodeId, ReplaceDevice),
    /// Copies in quarantine are dropped.
    Release(NodeId, ReleaseCopies),
    /// There is no newer record than this older one.
    AcceptOlder(AcceptOlder),
    /// A node compares everything it holds with its checksums now.
    Scrub(NodeId),
}

/// A good answer.
#[derive(Debug, Clone, PartialEq)]
pub enum Answer {
    /// To `Status`.
    Status(Box<Status>),
    /// To `Cluster`.
    Cluster(Cluster),
    /// To `Breaker`, `SetBreaker`.
    Breaker(Box<BreakerInfo>),
    /// To `Nodes`.
    Nodes(Vec<NodeInfo>),
    /// To `Node`, `Scrub`.
    Node(Box<NodeInfo>),
    /// To `Volumes`.
    Volumes(Vec<VolumeInfo>),
    /// To `Volume`, `Create`, `Delete`, `Resize`, `Set`, `Detach`.
    Volume(Box<VolumeInfo>),
    /// To `Attach`, `Map`.
    Map(Box<VolumeMap>),
    /// To `Explain`.
    Explain(Box<Explain>),
    /// To `Recover`, `ReplaceDevice`, `Release`, `AcceptOlder`.
    Consequences(Box<Consequences>),
}

/// What kind of no it is. Each leads the caller to do something else.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub enum ErrorCode {
    /// Ask differently.
    Invalid,
    /// It does not exist: look at what does.
    NotFound,
    /// It exists and is not in the state for this: bring it there.
    IllegalState,
    /// It would be unsafe: do what the answer says first.
    Refused,
    /// Not now: try again.
    Unavailable,
    /// Nodes did not answer in time: look at them.
    Timeout,
    /// Add capacity.
    NoSpace,
}

impl ErrorCode {
    /// Its name in the API.
    #[must_use]
    pub const fn name(self) -> &'static str {
        match self {
            Self::Invalid => "invalid",
            Self::NotFound => "not_found",
            Self::IllegalState => "illegal_state",
            Self::Refused => "refused",
            Self::Unavailable => "unavailable",
            Self::Timeout => "timeout",
            Self::NoSpace => "no_space",
        }
    }
}

/// A no: what was wrong, what stayed untouched, what to do next.
#[derive(Clone, PartialEq, Eq, Debug, thiserror::Error)]
#[error("{message}")]
pub struct CallError {
    /// Which kind.
    pub code: ErrorCode,
    /// What was wrong and what stayed untouched.
    pub message: String,
    /// The next command to try.
    pub next: Option<String>,
}

impl CallError {
    /// A no of this kind.
    #[must_use]
    pub const fn new(code: ErrorCode, message: String) -> Self {
        Self { code, message, next: None }
    }

    /// Names the next command to try.
    #[must_use]
    pub fn next(mut self, command: impl Into<String>) -> Self {
        self.next = Some(command.into());
        self
    }
}

/// What the shell has to do, in this order.
#[derive(Debug, Clone, PartialEq)]
pub enum Effect {
    /// Make these changes durable, all or none. Everything behind waits for it.
    Save(Vec<RecordChange>),
    /// This connection is the node's now; close an older one.
    Accept {
        /// The connection.
        session: SessionRef,
        /// The node.
        node: NodeId,
    },
    /// Tell this connection why it is not welcome, and close it.
    Refuse {
        /// The connection.
        session: SessionRef,
        /// Why.
        reason: String,
    },
    /// Send to a node. Lost when there is no connection; the machine says it again.
    Send {
        /// To whom.
        to: NodeId,
        /// What.
        message: FromAuthority,
    },
    /// Answer a call.
    Answer {
        /// Which.
        call: CallId,
        /// The answer.
        result: Result<Answer, CallError>,
    },
    /// Something an operator should find in the log.
    Log(String),
}

/// The list of effects `handle` calls fill.
#[derive(Debug, Default)]
pub struct Effects {
    list: Vec<Effect>,
}

impl Effects {
    /// An empty list.
    #[must_use]
    pub fn new() -> Self {
        Self::default()
    }

    /// Sends to a node.
    pub fn send(&mut self, to: NodeId, message: FromAuthority) {
        self.list.push(Effect::Send { to, message });
    }

    /// Answers a call.
    pub fn answer(&mut self, call: CallId, result: Result<Answer, CallError>) {
        self.list.push(Effect::Answer { call, result });
    }

    /// Tells the operator.
    pub fn log(&mut self, line: String) {
        self.list.push(Effect::Log(line));
    }

    /// Adds one.
    pub(super) fn push(&mut self, effect: Effect) {
        self.list.push(effect);
    }

    /// How many there are.
    pub(super) fn len(&self) -> usize {
        self.list.len()
    }

    /// Puts the save of one `handle` call in front of everything that call announced.
    pub(super) fn save_before(&mut self, start: usize, changes: Vec<RecordChange>) {
        self.list.insert(start, Effect::Save(changes));
    }

    /// Takes everything, in order; the list is empty afterwards and keeps its capacity.
    pub fn drain(&mut self) -> alloc::vec::Drain<'_, Effect> {
        self.list.drain(..)
    }
}
