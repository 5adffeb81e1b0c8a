//! Field by field, the order in which every message is written. Changing a line here changes the protocol: version,
//! golden frames and docs/protocol.md change with it.
//!
//! Patterns name every field, so a field added to a message and forgotten here does not compile.

use engine_core::config::Config;
use engine_core::ids::{
    BlockIndex, BootCount, BootId, ClusterId, DeviceId, Epoch, ExtentIndex, Generation, Incarnation, NodeId, PermitId,
    RequestId, Revision, SegmentId, Seq, Session, VolumeId,
};
use engine_core::message::{
    CopyReport, Decision, DeviceJudged, DeviceOpened, DeviceReport, FromAuthority, HeldConfig, Judgement, Lane,
    LeaseAsk, NodeAddress, Op, Outcome, Peer, PeerMessage, PermitAsk, Proposal, Refusal, Registration, ReplicaReport,
    Reply, Report, Request, Settings, ToAuthority,
};
use engine_core::openings::{Opening, Openings};
use engine_core::record::{Change, Entry, ExtentCopy, ExtentDigest, Standing};
use engine_core::report::Differing;
use engine_core::scrub::ScrubReport;
use engine_core::time::{Span, Time};

use super::super::hello::{Hello, Network, Reject, Welcome, Who};
use super::{Malformed, Reader, Wire, Writer};

#[cfg(test)]
use super::sample::{Sample, pick};

macro_rules! numbers {
    ($($type:ident),* $(,)?) => {$(
        impl Wire for $type {
            fn put(&self, to: &mut Writer) {
                self.0.put(to);
            }

            fn get(from: &mut Reader<'_>) -> Result<Self, Malformed> {
                Wire::get(from).map(Self)
            }
        }

        #[cfg(test)]
        impl Sample for $type {
            fn sample(random: &mut engine_core::random::Random) -> Self {
                Self(Sample::sample(random))
            }
        }
    )*};
}

macro_rules! fields {
    ($($type:ident { $($field:ident),* $(,)? })*) => {$(
        impl Wire for $type {
            fn put(&self, to: &mut Writer) {
                let Self { $($field),* } = self;
                $($field.put(to);)*
            }

            fn get(from: &mut Reader<'_>) -> Result<Self, Malformed> {
                Ok(Self { $($field: Wire::get(from)?),* })
            }
        }

        #[cfg(test)]
        impl Sample for $type {
            fn sample(random: &mut engine_core::random::Random) -> Self {
                Self { $($field: Sample::sample(random)),* }
            }
        }
    )*};
}

macro_rules! variants {
    ($($type:ident { $($tag:literal = $name:ident $({ $($field:ident),* })? $(( $($at:tt : $item:ident),* ))?),* $(,)? })*) => {$(
        impl Wire for $type {
            fn put(&self, to: &mut Writer) {
                match self {
                    $(Self::$name { $($($field),*)? $($($at: $item),*)? } => {
                        to.bytes(&[$tag]);
                        $($($field.put(to);)*)?
                        $($($item.put(to);)*)?
                    })*
                }
            }

            fn get(from: &mut Reader<'_>) -> Result<Self, Malformed> {
                Ok(match u8::get(from)? {
                    $($tag => Self::$name {
                        $($($field: Wire::get(from)?),*)?
                        $($($at: Wire::get(from)?),*)?
                    },)*
                    _ => return Err(Malformed(concat!("unknown ", stringify!($type)))),
                })
            }
        }

        #[cfg(test)]
        impl Sample for $type {
            const VARIANTS: &'static [&'static str] = &[$(stringify!($name)),*];

            fn sample(random: &mut engine_core::random::Random) -> Self {
                let name = pick(Self::VARIANTS, random);
                Self::sample_variant(name, random)
            }

            fn sample_variant(name: &str, random: &mut engine_core::random::Random) -> Self {
                $(if name == stringify!($name) {
                    return Self::$name {
                        $($($field: Sample::sample(random)),*)?
                        $($($at: Sample::sample(random)),*)?
                    };
                })*
                let _ = random; // unused where no variant has a field
                panic!("no variant {name}")
            }
        }
    )*};
}

numbers!(
    VolumeId,
    Incarnation,
    Epoch,
    Seq,
    Generation,
    Session,
    RequestId,
    BootCount,
    Revision,
    BlockIndex,
    ExtentIndex,
    PermitId,
    ClusterId,
    DeviceId,
    BootId,
    Time,
    Span,
);

impl Wire for NodeId {
    fn put(&self, to: &mut Writer) {
        self.0.put(to);
    }

    fn get(from: &mut Reader<'_>) -> Result<Self, Malformed> {
        match u16::get(from)? {
            0 => Err(Malformed("node id 0")),
            number => Ok(Self(number)),
        }
    }
}

impl Wire for ExtentCopy {
    fn put(&self, to: &mut Writer) {
        let Self { extent, stamp, present, blocks } = self;
        extent.put(to);
        stamp.put(to);
        present.put(to);
        blocks.put(to);
    }

    fn get(from: &mut Reader<'_>) -> Result<Self, Malformed> {
        let copy = Self {
            extent: Wire::get(from)?,
            stamp: Wire::get(from)?,
            present: Wire::get(from)?,
            blocks: Wire::get(from)?,
        };
        if copy.present.count_ones() != copy.blocks.count() {
            return Err(Malformed("an extent whose blocks are not those it says are present"));
        }
        Ok(copy)
    }
}

impl Wire for Box<Openings> {
    fn put(&self, to: &mut Writer) {
        let Openings { taken, since } = &**self;
        taken.put(to);
        since.iter().for_each(|opening| opening.put(to));
    }

    fn get(from: &mut Reader<'_>) -> Result<Self, Malformed> {
        let mut openings = Self::new(Openings { taken: Wire::get(from)?, ..Openings::default() });
        for slot in &mut openings.since {
            *slot = Wire::get(from)?;
        }
        Ok(openings)
    }
}

#[cfg(test)]
impl Sample for Box<Openings> {
    fn sample(random: &mut engine_core::random::Random) -> Self {
        Self::new(Openings { taken: Sample::sample(random), since: std::array::from_fn(|_| Sample::sample(random)) })
    }
}

fields! {
    SegmentId { volume, index }
    Config {
        segment, incarnation, epoch, primary, members, candidates, electable, former, generation, copies, min_copies,
        extents,
    }
    Entry { epoch, seq, change }
    PeerMessage { segment, incarnation, body }
    Request { segment, epoch, generation, session, request, op }
    Reply { segment, epoch, session, request, outcome }
    NodeAddress { node, primary, replication, shards }
    Registration { address, zone, devices, absent, revision }
    DeviceOpened { device, boot, openings, capacity }
    DeviceJudged { device, judgement }
    DeviceReport { device, capacity, booked, used, failed }
    Opening { id, count }
    Proposal { expected, config, promised }
    PermitAsk { segment, epoch, members }
    LeaseAsk { segment, incarnation, epoch, sent }
    ReplicaReport { segment, incarnation, epoch, log_epoch, standing, commit, last }
    HeldConfig { config, promised }
    CopyReport { segment, full, copied, left }
    Report { booked, used, replicas, serving, not_serving, copies, copied_bytes, corrupt_blocks, damaged_structures, mended, scrub, differing, flushes, stranded, devices }
    ScrubReport { passes, running, done, damaged, compared, unsettled, differing }
    Differing { segment, extent, member }
    ExtentDigest { since, stamp, present, sums }
    Settings { grace }
    Hello { cluster, who }
    Welcome { cluster, node, boot, shards }
    Reject { reason }
}

variants! {
    Lane { 0 = Live, 1 = Bulk }
    Network { 0 = Primary, 1 = Replication }
    Who { 0 = Node { id, boot, shards, lane, network }, 1 = Client { name } }
    Change { 0 = Nothing, 1 = Write { block, blocks }, 2 = Zero { block, count } }
    Standing { 0 = Member, 1 = Candidate { base }, 2 = Joining { base }, 3 = Stale { base } }
    Peer {
        1 = Prepare { commit, entry },
        2 = PrepareAck { epoch, durable },
        3 = Refused { promised, config },
        4 = Beat { epoch, commit, sent },
        5 = BeatAck { epoch, sent, durable },
        6 = Seal { epoch, from },
        7 = Promise { epoch, log_epoch, last, commit, lease_left },
        8 = StillHeard { epoch },
        9 = Begin { config, lease_left },
        10 = Advance { config, log_epoch, commit, sent },
        11 = Reconcile { config, commit, sent, part, last, entries },
        12 = Adopted { epoch, log_epoch, last, commit, sent },
        13 = Invite { config },
        14 = Held { epoch, standing },
        15 = Stream { epoch, first },
        16 = CopyList { epoch, stream, above, from },
        17 = CopyPage { epoch, stream, from, listed, next },
        18 = CopyGet { epoch, extent },
        19 = CopyData { epoch, copy },
        20 = CopyFailed { epoch, extent },
        21 = CaughtUp { epoch, durable, copied },
        22 = Leaving { epoch },
        23 = Farewell { epoch },
        24 = TakeOver { generation },
        25 = Compare { extent },
        26 = Compared { extent, digest },
        27 = CompareFailed { extent },
        28 = Differs { extent },
    }
    Judgement { 0 = Sound { boot }, 1 = Distrusted { boot }, 2 = Refused(0: reason) }
    Op {
        1 = Read { block, count },
        2 = Write(0: change),
        3 = Allocation { block, count },
        4 = Locate { unreachable },
        5 = Peek { block, count },
    }
    Outcome {
        1 = Written,
        2 = Data(0: blocks),
        3 = Allocation(0: runs),
        4 = Located(0: config),
        5 = Refused(0: refusal),
    }
    Refusal {
        1 = NotPrimary(0: config),
        2 = Fenced(0: generation),
        3 = Busy,
        4 = OldSession,
        5 = Unknown,
        6 = Malformed,
        7 = Corrupt(0: block),
    }
    ToAuthority {
        1 = Register(0: registration),
        2 = Replicas { part, last },
        3 = Report(0: report),
        4 = Proposals(0: proposals),
        5 = PermitAsks(0: asks),
        6 = PermitEnd { segment, permit },
        7 = FenceDone { segment, generation },
        8 = Created { segment, incarnation, result },
        9 = Reserved { permit, segment, granted },
        10 = Released { segment, incarnation },
        11 = Configs { part, last },
        12 = LeaseAsks(0: asks),
    }
    Decision { 1 = Installed(0: config), 2 = Conflict(0: config), 3 = Denied(0: config, 1: reason), 4 = Unknown(0: segment) }
    FromAuthority {
        1 = Registered { settings, revision, devices, complete },
        2 = RegisterRefused(0: reason),
        3 = Nodes(0: nodes),
        4 = Decisions(0: decisions),
        5 = Create { config },
        6 = Reserve { permit, segment, extents },
        7 = Granted { segment, permit, target },
        8 = Fence { segment, generation },
        9 = Release { segment, incarnation },
        10 = Revision(0: revision),
        11 = Recover { config },
        12 = HandOver { segment, epoch, to },
        13 = ShowConfigs,
        14 = Scrub,
        15 = Leased(0: asks),
    }
}
