//! The primary as source of copies: begins the stream, lists what changed, reads extents, nothing more. The candidate
//! keeps the plan. Extents are also read for members whose own are damaged (`mend`).

use super::io::{Effect, Effects, ListPurpose};
use super::peers::{Join, PeerState};
use super::{Replica, Role};
use crate::epoch;
use crate::ids::{Epoch, ExtentIndex, NodeId, Seq};
use crate::message::Peer;
use crate::record::ExtentCopy;
use crate::time::Time;

impl Replica {
    /// A candidate may know of more that is committed than its source: it was told by an earlier primary, of an epoch in
    /// which every member held it, this one among them (I3). What is committed stays so (I4), and a stream that begins
    /// below would be taken for known already, while the copies of it never came (I10). Says whether it may be listened
    /// to: where not all of that is durable here yet, it is asked again.
    pub(super) fn learn_commit(
        &mut self,
        now: Time,
        from: NodeId,
        said: Epoch,
        commit: Seq,
        effects: &mut Effects,
    ) -> bool {
        let through = commit.min(self.durable).min(self.log.last());
        let Role::Primary(primary) = &self.role else { return true };
        let candidate = primary.peers.0.get(&from).is_some_and(|peer| peer.join.is_some());
        if !candidate || !epoch::is_current(said, &self.meta.config) {
            return true;
        }
        if primary.membership.awaited.is_none() {
            self.commit_through(now, through, effects);
        }
        commit <= self.log.commit()
    }

    /// A candidate has heard of its place and has everything live up to `last`: live writes are its own from here on.
    pub(super) fn stream_to(&mut self, now: Time, to: NodeId, last: Seq, effects: &mut Effects) {
        // What is not committed is not in any copy, and may have to wait for this very candidate: it is streamed too.
        let (epoch, commit) = (self.meta.config.epoch, self.log.commit());
        let first = commit.next();
        let Role::Primary(primary) = &mut self.role else { return };
        let undecided = primary.membership.proposal.is_some();
        let Some(peer) = primary.peers.0.get_mut(&to) else { return };
        let begins = match peer.join {
            Some(Join::Enlisting) => true,
            // It has lost its stream.
            Some(Join::Streaming) => last.next() <= peer.first,
            // It has lost more than that; whether it is a member already is not known while a proposal is under way.
            Some(Join::Joining) => !undecided,
            None => false,
        };
        if begins {
            *peer = PeerState::new(Some(Join::Streaming), now);
            peer.synced = true;
            peer.first = first;
            peer.sent = self.log.last();
            effects.send(to, Peer::Stream { epoch, first });
            self.send_entries(to, commit, effects);
        }
    }

    pub(super) fn on_copy_list(
        &self,
        from: NodeId,
        stream: Seq,
        above: Seq,
        first: ExtentIndex,
        effects: &mut Effects,
    ) {
        // Before that point a change could be neither in the list nor in the live stream; the candidate asks again.
        let complete = self.streams_from(from) == Some(stream) && self.log.commit().next() >= stream;
        if self.is_serving() && complete {
            effects.push(Effect::List { purpose: ListPurpose::Peer { node: from, stream }, above, from: first });
        }
    }

    /// First live entry of a candidate's stream, if it has one.
    fn streams_from(&self, node: NodeId) -> Option<Seq> {
        let Role::Primary(primary) = &self.role else { return None };
        primary.peers.stream_of(node)
    }

    pub(super) fn on_listed(
        &mut self,
        now: Time,
        purpose: ListPurpose,
        from: ExtentIndex,
        listed: alloc::vec::Vec<(ExtentIndex, Seq)>,
        next: Option<ExtentIndex>,
        effects: &mut Effects,
    ) {
        match purpose {
            ListPurpose::Peer { node, stream } => {
                let epoch = self.meta.config.epoch;
                effects.send_bulk(node, Peer::CopyPage { epoch, stream, from, listed, next });
            }
            ListPurpose::Own => self.on_own_listed(now, &listed, next, effects),
        }
    }

    pub(super) fn on_copy_get(&self, from: NodeId, extent: ExtentIndex, effects: &mut Effects) {
        let inside = extent.0 < self.meta.config.extents;
        if self.mends.is_wrong(extent) && self.may_copy(from) {
            let epoch = self.meta.config.epoch;
            effects.send_bulk(from, Peer::CopyFailed { epoch, extent });
        } else if inside && self.may_copy(from) {
            effects.push(Effect::ReadExtent { to: from, extent });
        }
    }

    pub(super) fn on_extent(
        &mut self,
        now: Time,
        to: NodeId,
        extent: ExtentIndex,
        copy: Option<ExtentCopy>,
        effects: &mut Effects,
    ) {
        if copy.is_none() {
            self.mend(now, extent, effects);
        }
        let epoch = self.meta.config.epoch;
        effects.send_bulk(
            to,
            match copy {
                Some(copy) => Peer::CopyData { epoch, copy },
                None => Peer::CopyFailed { epoch, extent },
            },
        );
    }
}
