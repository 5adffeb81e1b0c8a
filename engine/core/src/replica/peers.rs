//! What a primary knows of the other nodes of its set: who holds what, who owes an answer, who is lost.
//!
//! Invariants: an entry counts as held only by who adopted this primary's log (I3); a candidate counts from the moment
//! it holds everything (I10).

use alloc::collections::BTreeMap;

use crate::config::Config;
use crate::ids::{Epoch, NodeId, Seq};
use crate::limits::{FAIR_PATIENCE, LEASE, PREPARE_DEADLINE};
use crate::sabotage::{Invariant, breaks};
use crate::time::Time;

/// What a primary knows of one other node of its set.
#[derive(Debug)]
pub(super) struct PeerState {
    /// `None`: a member.
    pub(super) join: Option<Join>,
    /// On this connection it has said where it stands, and everything since was sent on it.
    pub(super) synced: bool,
    /// Last entry it is known to hold durably; `None` until it has adopted this primary's log.
    pub(super) acked: Option<Seq>,
    /// First entry of its stream, as a candidate.
    pub(super) first: Seq,
    /// Last entry sent.
    pub(super) sent: Seq,
    /// Since when it owes an acknowledgement.
    pub(super) owes_since: Option<Time>,
    pub(super) heard: Time,
    /// When it was last asked where it stands.
    pub(super) asked: Time,
    /// It lacks what was committed: out, whatever else it says (I9).
    pub(super) broken: bool,
    /// It promised a higher epoch and takes nothing in this one: not lost, the next epoch has it back.
    pub(super) sealed: bool,
    /// The last epoch of this primary that it has obeyed.
    pub(super) knows: Epoch,
    /// Its node is stopping on purpose.
    pub(super) leaving: bool,
}

#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum Join {
    /// Told that it is a candidate.
    Enlisting,
    /// Gets live writes and copies.
    Streaming,
    /// Holds everything: its acknowledgement counts from here on (I10).
    Joining,
}

/// Members and candidates of the configuration, without the primary.
#[derive(Debug)]
pub(super) struct Peers(pub(super) BTreeMap<NodeId, PeerState>);

impl Peers {
    pub(super) fn new(config: &Config, own: NodeId, now: Time) -> Self {
        let mut peers = Self(BTreeMap::new());
        peers.follow(config, own, now);
        peers
    }

    /// Takes over the lists of a new configuration; what is known of those who stay, stays.
    pub(super) fn follow(&mut self, config: &Config, own: NodeId, now: Time) {
        self.0.retain(|node, _| config.is_member(*node) || config.is_candidate(*node));
        for peer in self.0.values_mut().filter(|peer| peer.sealed) {
            (peer.sealed, peer.heard, peer.owes_since) = (false, now, None);
        }
        for node in config.members.iter().filter(|node| **node != own) {
            self.0.entry(*node).or_insert_with(|| PeerState::new(None, now)).join = None;
        }
        for node in &config.candidates {
            let state = self.0.entry(*node).or_insert_with(|| PeerState::new(Some(Join::Enlisting), now));
            if state.join.is_none() {
                *state = PeerState::new(Some(Join::Enlisting), now);
            }
        }
    }

    /// First live entry of a candidate's stream.
    pub(super) fn stream_of(&self, node: NodeId) -> Option<Seq> {
        self.0.get(&node).filter(|peer| peer.join.is_some() && peer.streams()).map(|peer| peer.first)
    }

    /// Last entry that everybody who counts holds; `None` while one of them has not adopted the log.
    pub(super) fn acked_by_all(&self) -> Option<Seq> {
        let counting = self.0.values().filter(|peer| matches!(peer.join, None | Some(Join::Joining)));
        let counting = counting.filter(|peer| peer.synced || !breaks(Invariant::I5));
        counting.map(|peer| peer.acked).try_fold(Seq(u64::MAX), |lowest, acked| Some(lowest.min(acked?)))
    }

    /// Last entry that is held by everybody who counts and can go on: by the primary, up to `own`, and by the others with
    /// a live stream that do not stand still. What is behind it keeps somebody at work.
    pub(super) fn held_by_who_goes_on(&self, own: Seq, now: Time) -> Seq {
        self.0.values().filter(|peer| peer.goes_on(now)).filter_map(|peer| peer.acked).fold(own, Seq::min)
    }

    /// Who gets an entry that is ordered now; notes that they owe an acknowledgement.
    pub(super) fn in_stream(&mut self, now: Time, seq: Seq) -> impl Iterator<Item = NodeId> + '_ {
        self.0.iter_mut().filter(|(_, peer)| peer.streams()).map(move |(node, peer)| {
            peer.sent = seq;
            peer.owes_since.get_or_insert(now);
            *node
        })
    }

    /// Notes an acknowledgement; tells whether it counts.
    pub(super) fn ack(&mut self, from: NodeId, durable: Seq, now: Time) -> bool {
        let Some(peer) = self.0.get_mut(&from) else { return false };
        peer.heard = now;
        if !peer.synced {
            return false;
        }
        if peer.acked.is_none_or(|acked| acked < durable) {
            peer.acked = Some(durable);
            peer.owes_since = (durable < peer.sent).then_some(now);
        }
        true
    }
}

impl PeerState {
    pub(super) const fn new(join: Option<Join>, now: Time) -> Self {
        let (acked, owes_since) = (None, None);
        Self {
            join,
            synced: false,
            acked,
            first: Seq(0),
            sent: Seq(0),
            owes_since,
            heard: now,
            asked: Time(0),
            broken: false,
            sealed: false,
            knows: Epoch(0),
            leaving: false,
        }
    }

    pub(super) fn streams(&self) -> bool {
        self.synced && !self.broken && self.join != Some(Join::Enlisting)
    }

    /// Whether what it owes may come any moment. Says nothing of who is lost: that takes longer, and is the authority's to
    /// confirm (I5).
    fn goes_on(&self, now: Time) -> bool {
        let counts = matches!(self.join, None | Some(Join::Joining));
        let stands_still = self.owes_since.is_some_and(|since| now.since(since) >= FAIR_PATIENCE);
        counts && self.streams() && !self.sealed && !stands_still
    }

    /// When it will be lost if nothing more is heard; `None`: not by time.
    pub(super) fn lost_at(&self) -> Option<Time> {
        let owes = self.owes_since.filter(|_| !breaks(Invariant::I8));
        let late = owes.map_or(Time(u64::MAX), |since| since + PREPARE_DEADLINE);
        (!self.sealed).then(|| late.min(self.heard + LEASE))
    }

    /// Whether a member with this state is lost (I8: the prepare deadline counts, whatever its lease says).
    pub(super) fn is_lost(&self, refused: bool, now: Time) -> bool {
        self.broken || refused || self.lost_at().is_some_and(|at| at <= now)
    }
}
