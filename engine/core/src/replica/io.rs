//! What goes into a replica's machine and what comes out of it.
//!
//! Effects are run in order. What may only happen after a write is durable hangs on that write
//! ([`Effect::Persist`]`::then`): an acknowledgement before durability cannot be written down.

use alloc::vec::Vec;

use crate::config::Config;
use crate::ids::{BlockIndex, ExtentIndex, Generation, Incarnation, NodeId, PermitId, SegmentId, Seq};
use crate::message::{Decision, Lane, Peer, Reply, Request, ToAuthority};
use crate::record::{Blocks, ExtentCopy, ExtentDigest, Record};
use crate::time::Time;

/// The shell's name for a client's connection. Unique within one boot, never reused.
#[derive(Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash, Debug)]
pub struct ClientRef(pub u64);

/// Everything that can happen to a replica. `now` comes beside it.
#[derive(Debug, Clone, PartialEq)]
pub enum Input {
    /// Time passes; given at least every [`crate::limits::TICK`].
    Tick,
    /// A peer said something about this segment (incarnation already compared).
    Peer {
        /// Who.
        from: NodeId,
        /// What.
        message: Peer,
    },
    /// The live connection to this node is up; nothing sent before is on it.
    PeerUp(NodeId),
    /// The live connection to this node is gone. `refused`: its host answered, its process did not; a hint only (I8).
    PeerDown {
        /// Who.
        node: NodeId,
        /// Nobody listens there.
        refused: bool,
    },
    /// A client asks. The shell has checked the segment id and nothing else.
    Client {
        /// Whose connection.
        client: ClientRef,
        /// The request.
        request: Request,
    },
    /// This client's connection is gone: drop what it had queued.
    ClientGone(ClientRef),
    /// The authority decided on this segment's proposal.
    Decided(Decision),
    /// The authority still had this replica's configuration at work when it was asked (I7).
    Leased {
        /// Of which life.
        incarnation: Incarnation,
        /// When it was asked, by the own clock.
        sent: Time,
    },
    /// The authority allows a re-mirror to this node, where space is reserved.
    Granted {
        /// The permit.
        permit: PermitId,
        /// Where to.
        target: NodeId,
    },
    /// The authority would like another member to lead.
    HandOver {
        /// Epoch of the configuration it was thought up for.
        epoch: crate::ids::Epoch,
        /// Who.
        to: NodeId,
    },
    /// The authority asks to fence everything below this attachment (I2).
    Fence(Generation),
    /// A write hung on a [`Effect::Persist`] is durable: this was its `then`.
    Durable(Durable),
    /// A [`Effect::Read`] is done. `Err` names the damaged block.
    Read {
        /// What it was for.
        purpose: ReadPurpose,
        /// The data.
        result: Result<Blocks, BlockIndex>,
    },
    /// An [`Effect::Allocation`] is answered.
    Allocation {
        /// What it was for.
        purpose: ReadPurpose,
        /// Runs in order.
        runs: Vec<(u32, bool)>,
    },
    /// An [`Effect::ReadExtent`] is done; `None` when it cannot be read.
    Extent {
        /// Who wanted it.
        to: NodeId,
        /// Which.
        extent: ExtentIndex,
        /// Its content.
        copy: Option<ExtentCopy>,
    },
    /// A scrub, or whoever else looked, found this extent damaged.
    Damaged(ExtentIndex),
    /// A scrub has read this extent, and it matches its checksums.
    Scrubbed {
        /// Which.
        extent: ExtentIndex,
        /// What is in it.
        digest: ExtentDigest,
    },
    /// An [`Effect::Digest`] is done; `None` when the extent cannot be read.
    Digest {
        /// Who wanted it; this very node, to compare with the others.
        to: NodeId,
        /// Which.
        extent: ExtentIndex,
        /// What is in it.
        digest: Option<ExtentDigest>,
    },
    /// An [`Effect::List`] is answered.
    Listed {
        /// What it was for.
        purpose: ListPurpose,
        /// First extent of the page, as asked.
        from: ExtentIndex,
        /// Extents stamped above, in order.
        listed: Vec<(ExtentIndex, Seq)>,
        /// First extent of the next page; `None` is the end.
        next: Option<ExtentIndex>,
    },
    /// A person said that this copy counts from now on, in a new life of the segment, whatever is lost (I11).
    Recover(Config),
    /// The store can no longer write for this segment: its state is unknown (DESIGN 6). The replica serves nothing more.
    StoreFailed,
    /// The node stops on purpose: hand over what is led, leave what is held ([`crate::replica::Replica::may_stop`]).
    Stopping,
    /// It ends now.
    Stopped,
}

/// What a replica wants to hear when a write of its own is durable. Never leaves the node.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub enum Durable {
    /// As primary: own copy of the log is durable up to here.
    Log {
        /// Epoch it was written in.
        epoch: crate::ids::Epoch,
        /// Last durable entry.
        durable: Seq,
    },
    /// As candidate for primary: the own promise.
    Promise(crate::ids::Epoch),
    /// As new primary: the configuration begun, log included.
    Begun(crate::ids::Epoch),
    /// As the only copy of a new life: that it is.
    Recovered(Incarnation),
    /// A damaged extent has its content again.
    Mended(ExtentIndex),
    /// As candidate: this extent.
    Copied(ExtentIndex, Seq),
    /// As candidate: standing `Joining`.
    Joining {
        /// Of the configuration that made it a candidate.
        epoch: crate::ids::Epoch,
        /// First entry of the stream it was caught up with.
        first: Seq,
    },
}

impl Durable {
    /// Whether this, coming right behind `earlier`, makes that unnecessary: a log is durable from its beginning on.
    #[must_use]
    pub fn covers(&self, earlier: &Self) -> bool {
        matches!((self, earlier), (Self::Log { epoch, durable }, Self::Log { epoch: before, durable: less })
            if epoch == before && durable >= less)
    }
}

/// What a read is for.
#[derive(Clone, PartialEq, Eq, Debug)]
pub struct ReadPurpose {
    /// Who asked.
    pub client: ClientRef,
    /// The request, to be answered when the lease still holds (I7).
    pub request: Request,
}

/// What a list is for.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub enum ListPurpose {
    /// This candidate asked for a page.
    Peer {
        /// Who.
        node: NodeId,
        /// First entry of its stream.
        stream: Seq,
    },
    /// Own stamps, to skip what an interrupted copy left.
    Own,
}

/// What the shell has to do, in this order.
#[derive(Debug, Clone, PartialEq)]
pub enum Effect {
    /// Make these durable, all or none; then run `then`. Persists of one replica become durable in order.
    Persist {
        /// The records.
        records: Vec<Record>,
        /// Run when durable.
        then: Vec<Effect>,
    },
    /// Send to a peer. Lost when there is no connection; the machine hears of that by `PeerDown`.
    Send {
        /// To whom.
        to: NodeId,
        /// By which connection.
        lane: Lane,
        /// What.
        message: Peer,
    },
    /// Answer a client.
    Reply {
        /// Whose connection.
        client: ClientRef,
        /// The answer.
        reply: Reply,
    },
    /// Tell the authority. Lost when there is no connection; the machine asks again.
    Authority(ToAuthority),
    /// Everything up to here is committed: show it to reads and apply it (I4). No I/O has to happen now.
    Commit(Seq),
    /// Read committed blocks; `Input::Read`.
    Read {
        /// First block.
        block: BlockIndex,
        /// Number of blocks.
        count: u32,
        /// Comes back.
        purpose: ReadPurpose,
    },
    /// Which committed blocks hold data; `Input::Allocation`.
    Allocation {
        /// First block.
        block: BlockIndex,
        /// Number of blocks.
        count: u32,
        /// Comes back.
        purpose: ReadPurpose,
    },
    /// Read one extent with its stamp for a copy; `Input::Extent`.
    ReadExtent {
        /// For whom.
        to: NodeId,
        /// Which.
        extent: ExtentIndex,
    },
    /// Read one extent in order to compare it; `Input::Digest`.
    Digest {
        /// For whom.
        to: NodeId,
        /// Which.
        extent: ExtentIndex,
    },
    /// List extents stamped above; `Input::Listed`. At most [`crate::limits::COPY_PAGE`].
    List {
        /// Comes back.
        purpose: ListPurpose,
        /// Base of whoever wants it.
        above: Seq,
        /// First extent.
        from: ExtentIndex,
    },
    /// Put an extent's copy in place, durably, unless the own stamp is higher; then run `then`.
    CopyIn {
        /// The copy.
        copy: ExtentCopy,
        /// Run when durable.
        then: Vec<Effect>,
    },
    /// Like `CopyIn`, for an extent found damaged: also where the own home has the same stamp.
    Mend {
        /// The copy.
        copy: ExtentCopy,
        /// Run when durable.
        then: Vec<Effect>,
    },
    /// Give this back to the same machine. Only inside a `then`.
    Feed(Durable),
    /// Keep connections to these nodes (members, candidates, former members).
    Peers(Vec<NodeId>),
}

/// The list of effects one `handle` call fills.
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

    /// Adds one.
    pub fn push(&mut self, effect: Effect) {
        self.list.push(effect);
    }

    /// Sends on the live lane.
    pub fn send(&mut self, to: NodeId, message: Peer) {
        self.push(Effect::Send { to, lane: Lane::Live, message });
    }

    /// Sends on the bulk lane.
    pub fn send_bulk(&mut self, to: NodeId, message: Peer) {
        self.push(Effect::Send { to, lane: Lane::Bulk, message });
    }

    /// Makes records durable; what depends on them hangs on the returned guard.
    pub fn persist(&mut self, records: Vec<Record>) -> AfterDurable<'_> {
        self.push(Effect::Persist { records, then: Vec::new() });
        match self.list.last_mut() {
            Some(Effect::Persist { then, .. }) => AfterDurable { then },
            _ => unreachable!("pushed above"),
        }
    }

    /// Takes everything, in order; the list is empty afterwards and keeps its capacity.
    pub fn drain(&mut self) -> alloc::vec::Drain<'_, Effect> {
        self.list.drain(..)
    }
}

/// What runs once a write is durable.
#[derive(Debug)]
pub struct AfterDurable<'a> {
    then: &'a mut Vec<Effect>,
}

impl AfterDurable<'_> {
    /// Sends on the live lane once durable.
    pub fn then_send(self, to: NodeId, message: Peer) -> Self {
        self.then.push(Effect::Send { to, lane: Lane::Live, message });
        self
    }

    /// Feeds back once durable.
    pub fn then_feed(self, durable: Durable) -> Self {
        self.then.push(Effect::Feed(durable));
        self
    }
}

/// A short, stable view of a replica for status pages and reports.
#[derive(Debug, Clone, PartialEq)]
pub struct View {
    /// The segment.
    pub segment: SegmentId,
    /// Configuration it knows.
    pub config: Config,
    /// One word for its role.
    pub role: RoleName,
    /// Commit point.
    pub commit: Seq,
    /// Last entry of its log.
    pub last: Seq,
    /// A copy arriving here: whether from nothing, bytes in, bytes listed and not in.
    pub copy: Option<(bool, u64, u64)>,
}

/// One word for what a replica is doing.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub enum RoleName {
    /// Orders writes and serves.
    Primary,
    /// Primary of an epoch it has not finished beginning.
    Reconciling,
    /// Follows a primary.
    Backup,
    /// Stands for election.
    Electing,
    /// Being caught up.
    Candidate,
    /// Out; waits to be invited.
    Stale,
    /// Its store failed.
    Failed,
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::ids::Epoch;

    #[test]
    fn only_a_later_word_about_the_same_log_makes_an_earlier_one_unnecessary() {
        let log = |epoch, durable| Durable::Log { epoch: Epoch(epoch), durable: Seq(durable) };
        assert!(log(3, 8).covers(&log(3, 7)) && log(3, 8).covers(&log(3, 8)));
        // What was begun in another epoch may have been replaced since (I9); what is less says less.
        assert!(!log(4, 8).covers(&log(3, 7)) && !log(3, 6).covers(&log(3, 7)));
        assert!(!log(3, 8).covers(&Durable::Begun(Epoch(3))) && !Durable::Begun(Epoch(3)).covers(&log(3, 7)));
    }
}
