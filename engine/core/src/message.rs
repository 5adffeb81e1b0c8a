//! Every message that crosses the wire between nodes, clients and the authority. `wire/codec` gives them bytes.
//!
//! Three conversations, each with its own pair of enums: peers about one segment ([`Peer`]), a client with a
//! segment's replica ([`Request`], [`Reply`]), a node with the authority ([`ToAuthority`], [`FromAuthority`]).

use alloc::string::String;
use alloc::vec::Vec;

use crate::config::Config;
pub use crate::decision::Decision;
use crate::ids::{
    BlockIndex, Epoch, ExtentIndex, Generation, Incarnation, NodeId, PermitId, RequestId, Revision, SegmentId, Seq,
    Session,
};
use crate::record::{Blocks, Change, Entry, ExtentCopy, ExtentDigest, Standing};
pub use crate::report::{
    CopyReport, DeviceJudged, DeviceOpened, DeviceReport, HeldConfig, Judgement, NodeAddress, Registration,
    ReplicaReport, Report,
};
use crate::time::{Span, Time};

/// Which connection of a node pair a message takes.
#[derive(Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash, Debug)]
pub enum Lane {
    /// Control, leases and live replication, in order.
    Live,
    /// Catch-up and re-mirroring. Never on the replication network (R8).
    Bulk,
}

/// A message between two nodes about one segment.
#[derive(Clone, PartialEq, Eq, Debug)]
pub struct PeerMessage {
    /// The segment.
    pub segment: SegmentId,
    /// Which life of it. A message of another life is dropped (I11).
    pub incarnation: Incarnation,
    /// What is said.
    pub body: Peer,
}

impl PeerMessage {
    /// Whether this, said right behind `earlier`, makes that unnecessary: acknowledgements are cumulative (I3).
    #[must_use]
    pub fn covers(&self, earlier: &Self) -> bool {
        let (Peer::PrepareAck { epoch, durable }, Peer::PrepareAck { epoch: before, durable: less }) =
            (&self.body, &earlier.body)
        else {
            return false;
        };
        let same = self.segment == earlier.segment && self.incarnation == earlier.incarnation && epoch == before;
        same && durable >= less
    }
}

/// What one node says to another about a segment.
#[derive(Clone, PartialEq, Eq, Debug)]
pub enum Peer {
    /// Primary: make this change durable.
    Prepare {
        /// Commit point of the primary.
        commit: Seq,
        /// The change; `entry.epoch` is the primary's epoch.
        entry: Entry,
    },
    /// Backup: everything up to `durable` is durable here. Cumulative.
    PrepareAck {
        /// Epoch it was prepared in.
        epoch: Epoch,
        /// Last durable entry.
        durable: Seq,
    },
    /// Backup: I have promised a higher epoch and obey no lower one (I2).
    Refused {
        /// The promised epoch.
        promised: Epoch,
        /// The configuration this node knows, when it is newer than what was said.
        config: Option<Config>,
    },
    /// Primary: I am at work in this epoch; renew your lease (I8). Also carries the commit point.
    Beat {
        /// The primary's epoch.
        epoch: Epoch,
        /// Commit point.
        commit: Seq,
        /// The primary's clock, sent back as it is.
        sent: Time,
    },
    /// Backup: renewed.
    BeatAck {
        /// Epoch of the beat.
        epoch: Epoch,
        /// `sent` of the beat.
        sent: Time,
        /// Last durable entry.
        durable: Seq,
    },
    /// A member stands for election: promise this epoch to me.
    Seal {
        /// The epoch it wants to install.
        epoch: Epoch,
        /// The configuration it starts from.
        from: Epoch,
    },
    /// The promise is durable.
    Promise {
        /// The promised epoch.
        epoch: Epoch,
        /// Which log this member has.
        log_epoch: Epoch,
        /// Its last entry.
        last: Seq,
        /// Its commit point.
        commit: Seq,
        /// How long the lease it gave to the old primary still runs.
        lease_left: Span,
    },
    /// No promise: this member still hears its primary.
    StillHeard {
        /// Epoch that was asked for.
        epoch: Epoch,
    },
    /// The authority has installed this configuration and you are its primary: begin it (sent by who ran the election).
    Begin {
        /// The configuration.
        config: Config,
        /// How long leases of earlier primaries may still run.
        lease_left: Span,
    },
    /// Primary: the configuration is now this, the log goes on. Answered by `Adopted`.
    Advance {
        /// The configuration.
        config: Config,
        /// The epoch in which this primary's log became the common one.
        log_epoch: Epoch,
        /// Commit point.
        commit: Seq,
        /// The primary's clock, sent back as it is.
        sent: Time,
    },
    /// New primary: this is the log above the commit point; drop what is not in it (I9). In several parts where one
    /// frame cannot hold it; adopted whole or not at all.
    Reconcile {
        /// The configuration.
        config: Config,
        /// Commit point.
        commit: Seq,
        /// The primary's clock, sent back as it is.
        sent: Time,
        /// Number of this part, from 0.
        part: u32,
        /// Whether this is the last part.
        last: bool,
        /// Entries above the commit point, continuing the part before.
        entries: Vec<Entry>,
    },
    /// Member or candidate: this is where I stand in your epoch. Durable.
    Adopted {
        /// Epoch adopted.
        epoch: Epoch,
        /// Which log this replica has.
        log_epoch: Epoch,
        /// Its last entry.
        last: Seq,
        /// Its commit point.
        commit: Seq,
        /// Clock of the message answered.
        sent: Time,
    },
    /// Primary to a former member or new target: what do you hold?
    Invite {
        /// The primary's configuration.
        config: Config,
    },
    /// Answer: this.
    Held {
        /// The configuration's epoch as invited.
        epoch: Epoch,
        /// What this node holds; `None` is nothing at all.
        standing: Option<Standing>,
    },
    /// Primary to candidate: live writes from `first` on are yours too.
    Stream {
        /// The primary's epoch.
        epoch: Epoch,
        /// First live entry.
        first: Seq,
    },
    /// Candidate: which extents have changed above `above`?
    CopyList {
        /// Epoch of the configuration that made it a candidate.
        epoch: Epoch,
        /// First entry of its stream: what changed before that is to be listed.
        stream: Seq,
        /// Its base.
        above: Seq,
        /// First extent of the page.
        from: ExtentIndex,
    },
    /// A page of the answer.
    CopyPage {
        /// Epoch asked in.
        epoch: Epoch,
        /// The stream it is for, as asked: a page of an earlier stream has not seen what came between.
        stream: Seq,
        /// First extent of the page, as asked.
        from: ExtentIndex,
        /// Extents stamped above, in order.
        listed: Vec<(ExtentIndex, Seq)>,
        /// First extent of the next page; `None` is the end.
        next: Option<ExtentIndex>,
    },
    /// Candidate: send this extent.
    CopyGet {
        /// Epoch of the configuration that made it a candidate.
        epoch: Epoch,
        /// Which.
        extent: ExtentIndex,
    },
    /// The extent.
    CopyData {
        /// Epoch asked in.
        epoch: Epoch,
        /// Its content and stamp.
        copy: ExtentCopy,
    },
    /// The source cannot read this extent now.
    CopyFailed {
        /// Epoch asked in.
        epoch: Epoch,
        /// Which.
        extent: ExtentIndex,
    },
    /// Primary to member: what is in this extent of yours?
    Compare {
        /// Which.
        extent: ExtentIndex,
    },
    /// This; true whatever has happened since, because it says of which states.
    Compared {
        /// Which.
        extent: ExtentIndex,
        /// What is in it.
        digest: ExtentDigest,
    },
    /// It cannot be read, or is being mended.
    CompareFailed {
        /// Which.
        extent: ExtentIndex,
    },
    /// Primary to member: not what was committed. Fetch it from me (I14).
    Differs {
        /// Which.
        extent: ExtentIndex,
    },
    /// Candidate: everything is in, durably, and live writes are acknowledged up to `durable` (I10).
    CaughtUp {
        /// Epoch of the configuration that made it a candidate.
        epoch: Epoch,
        /// Last durable live entry.
        durable: Seq,
        /// Bytes that were copied for it.
        copied: u64,
    },
    /// Member: a client of this attachment reaches me and not you; let me lead if nobody waits for you.
    TakeOver {
        /// The client's attachment.
        generation: Generation,
    },
    /// Member or candidate: my node stops on purpose, go on without me. Repeated until it is left out or excused.
    Leaving {
        /// Epoch of the configuration it knows.
        epoch: Epoch,
    },
    /// Primary: too few are left without you, but nothing more can be done about it; go.
    Farewell {
        /// Epoch of `Leaving`.
        epoch: Epoch,
    },
}

/// A client's request to one segment.
#[derive(Clone, PartialEq, Eq, Debug)]
pub struct Request {
    /// The segment.
    pub segment: SegmentId,
    /// Highest epoch the client has seen of it (I7).
    pub epoch: Epoch,
    /// The client's attachment (I2). Ignored by `Locate` and `Peek`.
    pub generation: Generation,
    /// The client's session with this segment (I2).
    pub session: Session,
    /// Sent back with the reply.
    pub request: RequestId,
    /// What is asked.
    pub op: Op,
}

/// What a client asks of a segment.
#[derive(Clone, PartialEq, Eq, Debug)]
pub enum Op {
    /// Read blocks.
    Read {
        /// First block.
        block: BlockIndex,
        /// Number of blocks.
        count: u32,
    },
    /// Change blocks; acknowledged when durable on all members (I3).
    Write(Change),
    /// Which blocks hold data?
    Allocation {
        /// First block.
        block: BlockIndex,
        /// Number of blocks.
        count: u32,
    },
    /// Which configuration do you know? Answered by any replica; also a hint that its primary may be gone (I8).
    Locate {
        /// The client has heard nothing of the primary for a while.
        unreachable: bool,
    },
    /// Read this replica's own committed blocks, whatever its role. For verification only: no lease, no order.
    Peek {
        /// First block.
        block: BlockIndex,
        /// Number of blocks.
        count: u32,
    },
}

/// Answer to a [`Request`].
#[derive(Clone, PartialEq, Eq, Debug)]
pub struct Reply {
    /// The segment.
    pub segment: SegmentId,
    /// Epoch of the replica that answers; a client drops replies of a lower one than it has seen (I7).
    pub epoch: Epoch,
    /// Session of the request.
    pub session: Session,
    /// Number of the request.
    pub request: RequestId,
    /// The outcome.
    pub outcome: Outcome,
}

/// Outcome of a client's request.
#[derive(Clone, PartialEq, Eq, Debug)]
pub enum Outcome {
    /// Durable on every member.
    Written,
    /// The blocks asked for.
    Data(Blocks),
    /// Runs of blocks, in order: their number and whether they hold data.
    Allocation(Vec<(u32, bool)>),
    /// The configuration this replica knows.
    Located(Config),
    /// Not done, and never will be by this request.
    Refused(Refusal),
}

/// Why a replica refused a client's request. Each leads the client to do something else.
#[derive(Clone, PartialEq, Eq, Debug)]
pub enum Refusal {
    /// Ask the primary of this configuration; when it names the one that answered, ask again shortly.
    NotPrimary(Option<Config>),
    /// A newer attachment exists: stop for good (I2).
    Fenced(Generation),
    /// Queues are full or a change of epoch is under way: come again after a pause.
    Busy,
    /// A newer session of this client exists; nobody waits for this answer.
    OldSession,
    /// No such segment here.
    Unknown,
    /// The range lies outside the segment, or the data is not whole checksummed blocks.
    Malformed,
    /// A block cannot be read: its checksum does not match and no member could repair it (I14).
    Corrupt(BlockIndex),
}

/// Please install this configuration over `expected`.
#[derive(Clone, PartialEq, Eq, Debug)]
pub struct Proposal {
    /// Epoch of the configuration it replaces.
    pub expected: Epoch,
    /// The configuration wanted; its epoch is `expected` + 1.
    pub config: Config,
    /// The members have durably promised its epoch (an election), rather than following on (I9).
    pub promised: bool,
}

/// Please allow a re-mirror of this segment.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub struct PermitAsk {
    /// The segment.
    pub segment: SegmentId,
    /// Configuration of the asking primary.
    pub epoch: Epoch,
    /// Members it has left: the fewer, the more it is endangered.
    pub members: u8,
}

/// Is this still the configuration at work? Asked by a primary that may not commit; being answered is its lease (I7).
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub struct LeaseAsk {
    /// The segment.
    pub segment: SegmentId,
    /// Which life.
    pub incarnation: Incarnation,
    /// Configuration of the asking primary.
    pub epoch: Epoch,
    /// When it asked, by its own clock.
    pub sent: Time,
}

/// A node to the authority.
#[derive(Clone, PartialEq, Eq, Debug)]
pub enum ToAuthority {
    /// First message of a connection.
    Register(Registration),
    /// Replicas held, in parts, after registering. Answered where the authority wants something done about them.
    Replicas {
        /// Some of them.
        part: Vec<ReplicaReport>,
        /// Whether this is the last part.
        last: bool,
    },
    /// Regular report.
    Report(Report),
    /// Please install these configurations; at most [`crate::limits::PROPOSALS_MAX`]. Each is decided for itself.
    Proposals(Vec<Proposal>),
    /// Please allow re-mirrors; at most [`crate::limits::PERMIT_ASKS_MAX`], the most endangered segments first.
    PermitAsks(Vec<PermitAsk>),
    /// Leases for primaries below `min_copies`; at most [`crate::limits::LEASE_ASKS_MAX`] (I7).
    LeaseAsks(Vec<LeaseAsk>),
    /// The re-mirror under this permit is done, or given up.
    PermitEnd {
        /// The segment.
        segment: SegmentId,
        /// The permit.
        permit: PermitId,
    },
    /// Every write of an attachment before `generation` is committed or dropped; none will be taken (I2).
    FenceDone {
        /// The segment.
        segment: SegmentId,
        /// Generation fenced for.
        generation: Generation,
    },
    /// The replica asked for exists durably, or why it does not.
    Created {
        /// The segment.
        segment: SegmentId,
        /// Which life.
        incarnation: Incarnation,
        /// `Err` names the reason.
        result: Result<(), String>,
    },
    /// Space is reserved, or there is none.
    Reserved {
        /// The permit it is for.
        permit: PermitId,
        /// The segment.
        segment: SegmentId,
        /// Whether there was space.
        granted: bool,
    },
    /// Configurations of the replicas held, in parts, because `ShowConfigs` asked for them.
    Configs {
        /// Some of them.
        part: Vec<HeldConfig>,
        /// Whether this is the last part.
        last: bool,
    },
    /// The replica is gone from here.
    Released {
        /// The segment.
        segment: SegmentId,
        /// Which life.
        incarnation: Incarnation,
    },
}

/// Cluster-wide settings, told to every node when it registers.
#[derive(Clone, PartialEq, Eq, Debug)]
pub struct Settings {
    /// How long a missing replica may come back before its segment is re-mirrored.
    pub grace: Span,
}

/// The authority to a node.
#[derive(Clone, PartialEq, Eq, Debug)]
pub enum FromAuthority {
    /// Welcome.
    Registered {
        /// Cluster-wide settings.
        settings: Settings,
        /// Revision of the authority.
        revision: Revision,
        /// Each device the node came with; at least one of them may be served.
        devices: Vec<DeviceJudged>,
        /// They are all devices of the node that still count: what is on none of them is nowhere on it (I11).
        complete: bool,
    },
    /// What the authority's revision is by now: to be remembered durably (I11).
    Revision(Revision),
    /// Not welcome, and why. The node must not serve.
    RegisterRefused(String),
    /// Where nodes are; told after registering and whenever it changes.
    Nodes(Vec<NodeAddress>),
    /// Answers to `Proposals`, in their order, in as many parts as frames need.
    Decisions(Vec<Decision>),
    /// Create this replica; answered by `Created`. `config` is epoch 1; its primary stands for election at once.
    Create {
        /// First configuration.
        config: Config,
    },
    /// Reserve space for a re-mirror; answered by `Reserved`.
    Reserve {
        /// The permit it is for.
        permit: PermitId,
        /// The segment.
        segment: SegmentId,
        /// Extents needed.
        extents: u32,
    },
    /// Permit and reservation: re-mirror to `target`.
    Granted {
        /// The segment.
        segment: SegmentId,
        /// The permit.
        permit: PermitId,
        /// Where to.
        target: NodeId,
    },
    /// Those of `LeaseAsks` that ask about the configuration at work (I7). Who asked about an earlier one is told the one
    /// at work by `Decisions`.
    Leased(Vec<LeaseAsk>),
    /// Please hand this segment's lead over to `to`, if that is possible without harm. A wish, not repeated.
    HandOver {
        /// The segment.
        segment: SegmentId,
        /// Epoch of the configuration it was thought up for.
        epoch: Epoch,
        /// The member that leads less than its share.
        to: NodeId,
    },
    /// Compare everything held with its checksums now.
    Scrub,
    /// Take no request below this generation; answered by `FenceDone` once nothing older is undecided (I2).
    Fence {
        /// The segment.
        segment: SegmentId,
        /// The new attachment.
        generation: Generation,
    },
    /// This replica is no longer needed (I11, I12): drop it and confirm with `Released`.
    Release {
        /// The segment.
        segment: SegmentId,
        /// Only this life of it.
        incarnation: Incarnation,
    },
    /// Tell the configuration of every replica held: these records are older than what nodes know, and a person may want
    /// to go on with what they report (I11). Answered by `Configs`.
    ShowConfigs,
    /// A person said that this replica counts from now on, in a new life of its segment, whatever is lost (I11);
    /// answered by `Created` for that life.
    Recover {
        /// First configuration of the new life; this node is its only member.
        config: Config,
    },
}
