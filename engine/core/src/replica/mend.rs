//! A block that is not what was written is fetched again from another member (I14).
//!
//! Intuition: the damaged extent is asked for as a candidate asks for one (`CopyGet`): a backup asks its primary, a primary
//! its backups in turn. What comes holds committed history only (I4) and counts when it is at least as new as what was
//! committed here when the damage was found. A client's read that met the damage waits and is read again; when nobody can
//! help in time it is refused by the block's number. It is never shown.
//!
//! Bounds (I15): [`MENDS_MAX`] extents are known, [`COPY_INFLIGHT`] of them asked for at a time, [`MEND_READS_MAX`] reads wait
//! for each; further damage is refused, and found again by the next read or scrub. An extent that is damaged again right after it was mended is refused for a while: its
//! device cannot hold it.

use alloc::collections::BTreeMap;
use alloc::vec;
use alloc::vec::Vec;

use super::io::{ClientRef, Durable, Effect, Effects, ReadPurpose};
use super::peers::Join;
use super::{Replica, Role};
use crate::ids::{BlockIndex, ExtentIndex, NodeId, Seq};
use crate::limits::{COPY_INFLIGHT, EXTENT_BLOCKS, MEND_READS_MAX, MENDS_MAX};
use crate::message::{Op, Outcome, Peer, Refusal};
use crate::record::ExtentCopy;
use crate::time::{Span, Time};

/// Somebody else is asked after that.
const ASK_AGAIN: Span = Span::millis(300);
/// A copy that is too old, or none: its source catches up soon, or another one has it.
const ASK_SOON: Span = Span::millis(20);
/// So long a client's read waits.
const READ_PATIENCE: Span = Span::seconds(3);
/// So long copies are asked for before the next read or scrub has to find the damage again.
const PATIENCE: Span = Span::seconds(30);
/// So long after it was mended an extent is not mended again.
const REST: Span = Span::seconds(1);

/// A read that met damage.
#[derive(Debug)]
struct Waiting {
    purpose: ReadPurpose,
    block: BlockIndex,
}

/// How far the mending of one extent is.
#[derive(Debug)]
enum Stage {
    /// A copy is asked for, or will be when it is this extent's turn.
    Asking { of: Option<NodeId>, again: Time },
    /// It is on its way to the disk.
    Landing,
    /// It was put in place then.
    Done(Time),
}

#[derive(Debug)]
struct Mend {
    since: Time,
    /// Everything that was committed when the damage was found has to be in the copy.
    lowest: Seq,
    tries: usize,
    stage: Stage,
    reads: Vec<Waiting>,
    /// It matches its checksums and is not what was committed (`compare`): only this says so, so it is kept until it is
    /// mended.
    wrong: bool,
}

impl Mend {
    fn acts_at(&self) -> Option<Time> {
        let own = match self.stage {
            Stage::Asking { again, .. } => Some(again),
            Stage::Landing => None,
            Stage::Done(at) => Some(at + REST),
        };
        let read = (!self.reads.is_empty()).then(|| self.since + READ_PATIENCE);
        own.into_iter().chain(read).min()
    }
}

/// The damaged extents of one replica.
#[derive(Debug, Default)]
pub(super) struct Mends {
    extents: BTreeMap<ExtentIndex, Mend>,
    /// Extents mended since the start.
    mended: u64,
}

impl Mends {
    /// When the next tick changes something.
    pub(super) fn wakes(&self) -> Option<Time> {
        self.extents.values().filter_map(Mend::acts_at).min()
    }

    /// Extents mended since the start.
    pub(super) const fn mended(&self) -> u64 {
        self.mended
    }

    /// The reads that wait; nobody waits afterwards.
    pub(super) fn take_reads(&mut self) -> impl Iterator<Item = ReadPurpose> + '_ {
        self.extents.values_mut().flat_map(|mend| mend.reads.drain(..)).map(|waiting| waiting.purpose)
    }

    /// Whether this extent waits for its content.
    pub(super) fn is_mending(&self, extent: ExtentIndex) -> bool {
        self.extents.get(&extent).is_some_and(|mend| !matches!(mend.stage, Stage::Done(_)))
    }

    /// Whether it does although its checksums match.
    pub(super) fn is_wrong(&self, extent: ExtentIndex) -> bool {
        self.is_mending(extent) && self.extents.get(&extent).is_some_and(|mend| mend.wrong)
    }

    /// First of these blocks that must not be shown although its checksum matches.
    pub(super) fn first_wrong(&self, block: BlockIndex, count: u32) -> Option<BlockIndex> {
        if self.extents.is_empty() {
            return None;
        }
        let (first, last) = (block.0 / EXTENT_BLOCKS, (block.0 + count.saturating_sub(1)) / EXTENT_BLOCKS);
        let extents = self.extents.range(ExtentIndex(first)..=ExtentIndex(last)).map(|(extent, _)| *extent);
        let wrong = extents.into_iter().find(|extent| self.is_wrong(*extent))?;
        Some(BlockIndex((wrong.0 * EXTENT_BLOCKS).max(block.0)))
    }

    pub(super) fn forget_client(&mut self, client: ClientRef) {
        for mend in self.extents.values_mut() {
            mend.reads.retain(|waiting| waiting.purpose.client != client);
        }
    }
}

impl Replica {
    /// A read met a damaged block: it waits until the extent is mended, or is refused.
    pub(super) fn on_damaged_read(
        &mut self,
        now: Time,
        purpose: ReadPurpose,
        block: BlockIndex,
        effects: &mut Effects,
    ) {
        let extent = ExtentIndex(block.0 / EXTENT_BLOCKS);
        self.mend(now, extent, effects);
        // A member that is only looked at says what it has.
        let waits = !matches!(purpose.request.op, Op::Peek { .. });
        let mend = self.mends.extents.get_mut(&extent).filter(|mend| !matches!(mend.stage, Stage::Done(_)));
        match mend.filter(|mend| waits && mend.reads.len() < MEND_READS_MAX) {
            Some(mend) => mend.reads.push(Waiting { purpose, block }),
            None => self.answer_read(now, purpose, Outcome::Refused(Refusal::Corrupt(block)), effects),
        }
    }

    /// An extent here is damaged: a copy is asked for, if anybody can give one.
    pub(super) fn mend(&mut self, now: Time, extent: ExtentIndex, effects: &mut Effects) {
        let may_begin = self.mends.extents.len() < MENDS_MAX && self.mend_source(0).is_some();
        if self.mends.extents.contains_key(&extent) || !may_begin {
            return;
        }
        let (lowest, stage) = (self.log.commit(), Stage::Asking { of: None, again: now });
        self.mends
            .extents
            .insert(extent, Mend { since: now, lowest, tries: 0, stage, reads: Vec::new(), wrong: false });
        self.ask_in_turn(now, effects);
    }

    /// What is here is not what was committed, whatever its checksums say: fetched anew, and shown to nobody until then.
    pub(super) fn suspect(&mut self, now: Time, extent: ExtentIndex, effects: &mut Effects) {
        self.mend(now, extent, effects);
        if let Some(mend) = self.mends.extents.get_mut(&extent) {
            mend.wrong = true;
        }
    }

    /// Asks for what is due, a bounded number at a time.
    fn ask_in_turn(&mut self, now: Time, effects: &mut Effects) {
        let is_out = |mend: &&Mend| match mend.stage {
            Stage::Asking { of, again } => of.is_some() && again > now,
            Stage::Landing => true,
            Stage::Done(_) => false,
        };
        let out = self.mends.extents.values().filter(is_out).count();
        let is_due = |mend: &Mend| matches!(mend.stage, Stage::Asking { again, .. } if again <= now);
        let due = self.mends.extents.iter().filter(|(_, mend)| is_due(mend)).map(|(extent, _)| *extent);
        let next: Vec<ExtentIndex> = due.take(COPY_INFLIGHT.saturating_sub(out)).collect();
        for extent in next {
            self.ask_for_mending(now, extent, effects);
        }
    }

    fn ask_for_mending(&mut self, now: Time, extent: ExtentIndex, effects: &mut Effects) {
        let epoch = self.meta.config.epoch;
        let Some(tries) = self.mends.extents.get(&extent).map(|mend| mend.tries) else { return };
        let of = self.mend_source(tries);
        if let Some(mend) = self.mends.extents.get_mut(&extent) {
            mend.tries += 1;
            mend.stage = Stage::Asking { of, again: now + ASK_AGAIN };
        }
        if let Some(node) = of {
            effects.send_bulk(node, Peer::CopyGet { epoch, extent });
        }
    }

    /// Who holds everything that is committed, and can be asked.
    fn mend_source(&self, tries: usize) -> Option<NodeId> {
        let primary = self.meta.config.primary;
        match &self.role {
            Role::Primary(leading) if leading.is_resolved() => {
                let sound =
                    leading.peers.0.iter().filter(|(_, peer)| peer.join.is_none() && peer.synced && !peer.broken);
                let sources: Vec<NodeId> = sound.map(|(node, _)| *node).filter(|node| self.is_up(*node)).collect();
                sources.get(tries.checked_rem(sources.len())?).copied()
            }
            Role::Follower(follower) if follower.is_in_step() => Some(primary).filter(|node| self.is_up(*node)),
            Role::Candidate(catch_up) if catch_up.is_streaming() => Some(primary).filter(|node| self.is_up(*node)),
            _ => None,
        }
    }

    /// Whether this node may have committed extents of this replica: of the set, and in step with it.
    pub(super) fn may_copy(&self, node: NodeId) -> bool {
        match &self.role {
            Role::Primary(primary) => {
                let in_step = |peer: &super::peers::PeerState| peer.synced && peer.join != Some(Join::Enlisting);
                primary.is_resolved() && primary.peers.0.get(&node).is_some_and(in_step)
            }
            Role::Follower(follower) => follower.is_in_step() && node == self.meta.config.primary && self.is_trusted(),
            _ => false,
        }
    }

    /// A copy came that was asked for here; gives it back when it was not.
    pub(super) fn take_mending(
        &mut self,
        now: Time,
        from: NodeId,
        copy: ExtentCopy,
        effects: &mut Effects,
    ) -> Option<ExtentCopy> {
        let Some(mend) = self.mends.extents.get_mut(&copy.extent) else { return Some(copy) };
        if !matches!(mend.stage, Stage::Asking { of, .. } if of == Some(from)) {
            return Some(copy);
        }
        if copy.stamp < mend.lowest {
            mend.stage = Stage::Asking { of: None, again: now + ASK_SOON };
            return None;
        }
        mend.stage = Stage::Landing;
        let then = vec![Effect::Feed(Durable::Mended(copy.extent))];
        effects.push(Effect::Mend { copy, then });
        None
    }

    /// Whoever was asked cannot read it either, for now.
    pub(super) fn mending_failed(&mut self, now: Time, from: NodeId, extent: ExtentIndex) {
        if let Some(mend) = self.mends.extents.get_mut(&extent)
            && matches!(mend.stage, Stage::Asking { of, .. } if of == Some(from))
        {
            mend.stage = Stage::Asking { of: None, again: now + ASK_SOON };
        }
    }

    pub(super) fn on_mended(&mut self, now: Time, extent: ExtentIndex, effects: &mut Effects) {
        let Some(mend) = self.mends.extents.get_mut(&extent) else { return };
        mend.stage = Stage::Done(now);
        self.mends.mended += 1;
        for Waiting { purpose, .. } in core::mem::take(&mut mend.reads) {
            match purpose.request.op {
                Op::Read { block, count } => effects.push(Effect::Read { block, count, purpose }),
                Op::Allocation { block, count } => effects.push(Effect::Allocation { block, count, purpose }),
                _ => {}
            }
        }
        self.ask_in_turn(now, effects);
    }

    /// Asks again, refuses whoever has waited for too long, forgets what is over.
    pub(super) fn mend_tick(&mut self, now: Time, effects: &mut Effects) {
        let due = |mend: &Mend| mend.acts_at().is_some_and(|at| at <= now);
        let due: Vec<ExtentIndex> =
            self.mends.extents.iter().filter(|(_, mend)| due(mend)).map(|(extent, _)| *extent).collect();
        for extent in due {
            let Some(mend) = self.mends.extents.get_mut(&extent) else { continue };
            if now >= mend.since + READ_PATIENCE {
                for Waiting { purpose, block } in core::mem::take(&mut mend.reads) {
                    self.answer_read(now, purpose, Outcome::Refused(Refusal::Corrupt(block)), effects);
                }
            }
            let Some(mend) = self.mends.extents.get(&extent) else { continue };
            match mend.stage {
                Stage::Asking { .. } if mend.wrong => {}
                Stage::Asking { .. } if now >= mend.since + PATIENCE => drop(self.mends.extents.remove(&extent)),
                Stage::Done(at) if now >= at + REST => drop(self.mends.extents.remove(&extent)),
                _ => {}
            }
        }
        self.ask_in_turn(now, effects);
    }
}

#[cfg(test)]
mod tests;
