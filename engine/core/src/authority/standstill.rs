//! When nothing may be changed: right after a start, and when a node knows more than the records say (I11).
//!
//! The intuition: records may have come back from an older copy, and only the nodes can tell. What an older copy would
//! decide was decided before, otherwise: an epoch made twice, a copy released that counts. So after every start nothing
//! is changed until most of the nodes in the records have said what they remember and hold. After an ordinary restart
//! that is the time nodes need to come back; their proposals and people's calls wait that long and are decided then, in
//! the order in which they came. Whoever comes later and knows more still freezes it.
//!
//! Nobody is waited for where no node is known: without nodes there is no segment, so nothing was ever decided that
//! could be decided twice; and the first node that comes says what it remembers before anything can be placed on it. A
//! node whose device a person gave up does not count: it can never speak again. Silence is never taken for consent:
//! where the rest is gone for good a person has to say so ([`super::accept`]).

use alloc::format;
use alloc::string::{String, ToString};
use alloc::vec::Vec;
use core::fmt;

use super::io::{Call, CallError, CallId, Effects, ErrorCode, SessionRef};
use super::{Authority, names};
use crate::ids::{NodeId, Revision, SegmentId};
use crate::limits::{PROPOSAL_RETRY, STANDSTILL_CALLS_MAX, STANDSTILL_MESSAGES_MAX, STANDSTILL_PATIENCE};
use crate::message::{FromAuthority, ReplicaReport, ToAuthority};
use crate::sabotage::{Invariant, breaks};
use crate::time::Time;

/// Why nothing may be changed now.
#[derive(Debug)]
pub(super) enum Standstill {
    /// Too few nodes have said since the start what they remember.
    Waiting(Waiting),
    /// A node knows more.
    Frozen(Frozen),
}

/// What waits to be decided.
#[derive(Debug, Default)]
pub(super) struct Waiting {
    messages: Vec<(Time, SessionRef, ToAuthority)>,
    calls: Vec<(Time, CallId, Call)>,
}

/// This authority is an older copy of itself.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(super) struct Frozen {
    /// Its revision.
    pub(super) own: Revision,
    /// The highest one any node has seen.
    pub(super) seen: Revision,
    /// Which node knows more.
    pub(super) node: NodeId,
    /// What it knows, where the revision alone does not tell.
    pub(super) held: Option<String>,
}

impl fmt::Display for Frozen {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let Self { own, seen, node, held } = self;
        write!(f, "frozen: the authority's record is older than what {node} knows: ")?;
        match held {
            Some(held) => write!(f, "{held}")?,
            None => write!(f, "revision {} < {}", own.0, seen.0)?,
        }
        write!(
            f,
            "; an older copy of it came back. Nothing is changed, volumes keep serving as they are, except that segments \
             below min_copies wait"
        )
    }
}

impl Authority {
    /// Whether nothing may be changed now.
    pub(super) const fn stands_still(&self) -> bool {
        self.standstill.is_some()
    }

    pub(super) const fn frozen(&self) -> Option<&Frozen> {
        match &self.standstill {
            Some(Standstill::Frozen(frozen)) => Some(frozen),
            _ => None,
        }
    }

    /// Begins to wait after a start, if anybody is to be waited for.
    pub(super) fn begin_standstill(&mut self) {
        if self.majority().is_err() && !breaks(Invariant::I11) {
            self.standstill = Some(Standstill::Waiting(Waiting::default()));
        }
    }

    /// How many nodes count, and how many of them have reported since the start.
    pub(super) fn reported(&self) -> (usize, usize) {
        let counted = || self.books.nodes().iter().filter(|(_, record)| !record.is_gone());
        let reported = counted().filter(|(node, _)| self.has_listed(**node)).count();
        (reported, counted().count())
    }

    pub(super) fn has_listed(&self, node: NodeId) -> bool {
        self.presence.get(&node).is_some_and(|presence| presence.listed)
    }

    /// `Err`: nodes that have not reported, while a majority has not.
    fn majority(&self) -> Result<(), Vec<NodeId>> {
        let (reported, known) = self.reported();
        if reported * 2 > known || known == 0 { Ok(()) } else { Err(self.unheard()) }
    }

    /// Nodes in the records that have not said since the start what they hold.
    pub(super) fn unheard(&self) -> Vec<NodeId> {
        let nodes = self.books.nodes().iter();
        nodes.filter(|(node, record)| !record.is_gone() && !self.has_listed(**node)).map(|(node, _)| *node).collect()
    }

    /// Why nothing is changed, and what to do.
    pub(super) fn why_standstill(&self) -> Option<(String, String)> {
        match self.standstill.as_ref()? {
            Standstill::Frozen(frozen) => {
                let next = "stop authorityd and bring back its newest records; or, if there are none: nodectl authority \
                    accept-older (says first what is forgotten)";
                Some((frozen.to_string(), next.into()))
            }
            Standstill::Waiting(_) => {
                let (reported, known) = self.reported();
                let unheard = names(&self.unheard());
                let why = format!(
                    "waiting: {reported} of {known} nodes have reported since the authority started, more than half have \
                     to say first whether its record is the newest; not heard: {unheard}. Nothing is changed, volumes \
                     keep serving as they are, except that segments below min_copies wait"
                );
                let next = format!(
                    "start {unheard} (nodectl node ls); or, if too few of them ever come back: nodectl authority \
                     accept-older (says first what may be forgotten)"
                );
                Some((why, next))
            }
        }
    }

    fn standstill_error(&self) -> Option<CallError> {
        let (why, next) = self.why_standstill()?;
        Some(CallError::new(ErrorCode::Unavailable, why).next(next))
    }

    /// Whether a call has to wait or is refused; then it was taken care of.
    pub(super) fn call_stands_still(&mut self, now: Time, call: CallId, request: &Call, effects: &mut Effects) -> bool {
        if !request.changes() || matches!(request, Call::AcceptOlder(_)) {
            return false;
        }
        let Some(error) = self.standstill_error() else { return false };
        match &mut self.standstill {
            Some(Standstill::Waiting(waiting)) if waiting.calls.len() < STANDSTILL_CALLS_MAX => {
                waiting.calls.push((now, call, request.clone()));
            }
            _ => effects.answer(call, Err(error)),
        }
        true
    }

    /// Whether a node's message has to wait; then it is kept, or lost where too many wait: its sender says it again.
    pub(super) fn message_waits(&mut self, now: Time, session: SessionRef, message: &ToAuthority) -> bool {
        let Some(Standstill::Waiting(waiting)) = &mut self.standstill else { return false };
        match message {
            ToAuthority::Proposals(_) => {
                if waiting.messages.len() < STANDSTILL_MESSAGES_MAX {
                    waiting.messages.push((now, session, message.clone()));
                }
                true
            }
            // I7: an older record may take for the configuration at work what was replaced long ago.
            ToAuthority::PermitAsks(_) | ToAuthority::LeaseAsks(_) => true,
            _ => false,
        }
    }

    /// A node has listed what it holds: perhaps those were enough.
    pub(super) fn look_whether_to_go_on(&mut self, now: Time, effects: &mut Effects) {
        if matches!(self.standstill, Some(Standstill::Waiting(_))) && self.majority().is_ok() {
            let (reported, known) = self.reported();
            effects.log(format!("{reported} of {known} nodes have reported, none knows more: going on (I11)"));
            self.go_on(now, effects);
        }
    }

    /// Calls do not wait for ever, nor do proposals whose senders repeat them.
    pub(super) fn tick_standstill(&mut self, now: Time, effects: &mut Effects) {
        let error = self.standstill_error();
        let Some(Standstill::Waiting(waiting)) = &mut self.standstill else { return };
        waiting.messages.retain(|(since, ..)| now.since(*since) < PROPOSAL_RETRY);
        let late = |(since, ..): &mut (Time, CallId, Call)| now.since(*since) >= STANDSTILL_PATIENCE;
        for (_, call, _) in waiting.calls.extract_if(.., late) {
            if let Some(error) = &error {
                effects.answer(call, Err(error.clone()));
            }
        }
    }

    /// Ends the standstill: what nodes said and asked for meanwhile counts now.
    pub(super) fn go_on(&mut self, now: Time, effects: &mut Effects) {
        let standstill = self.standstill.take();
        let mut moved = false;
        for (node, presence) in &mut self.presence {
            if let Some(record) = presence.pending.take() {
                moved |= self.books.note_node(*node, record);
            }
        }
        if moved {
            self.tell_addresses(effects);
        }
        self.permits.look_again();
        self.resume_building(now);
        let nodes: Vec<NodeId> = self.sessions.values().copied().collect();
        for node in nodes {
            self.create_again(node, effects);
            self.say_recoveries(node, effects);
            self.pump_releases(now, node, effects);
            let held: Vec<ReplicaReport> =
                self.presence.get(&node).map(|presence| presence.facts.values().cloned().collect()).unwrap_or_default();
            self.on_replicas(node, &held, effects);
        }
        self.take_what_waited(now, standstill, effects);
    }

    fn take_what_waited(&mut self, now: Time, standstill: Option<Standstill>, effects: &mut Effects) {
        let Some(Standstill::Waiting(Waiting { messages, calls })) = standstill else { return };
        for (_, session, message) in messages {
            self.on_node(now, session, message, effects);
        }
        for (_, call, request) in calls {
            self.on_call(now, call, request, effects);
        }
    }

    /// A node has seen a higher revision than this authority's: this authority is an older copy of itself.
    pub(super) fn on_newer_revision(&mut self, now: Time, node: NodeId, seen: Revision, effects: &mut Effects) {
        if self.frozen().is_none_or(|frozen| seen > frozen.seen) {
            let own = self.books.cluster().revision;
            self.freeze(now, Frozen { own, seen, node, held: None }, effects);
        }
    }

    /// A node knows a configuration, or a volume, that these records do not: they are an older copy, whatever revision it
    /// was told last.
    pub(super) fn look_for_newer(&mut self, now: Time, node: NodeId, part: &[ReplicaReport], effects: &mut Effects) {
        if self.frozen().is_some() || breaks(Invariant::I11) {
            return;
        }
        let Some(held) = part.iter().find_map(|held| self.knows_newer(held)) else { return };
        let own = self.books.cluster().revision;
        self.freeze(now, Frozen { own, seen: own, node, held: Some(held) }, effects);
    }

    /// What a replica says about the records, if they are older.
    fn knows_newer(&self, held: &ReplicaReport) -> Option<String> {
        let ReplicaReport { segment, incarnation, epoch, .. } = held;
        let SegmentId { volume, .. } = segment;
        match self.books.segments().get(segment).map(|record| &record.config) {
            Some(config) if (*incarnation, *epoch) > (config.incarnation, config.epoch) => Some(format!(
                "segment {segment} is in {incarnation} {epoch} there, in {} {} here",
                config.incarnation, config.epoch
            )),
            None if *volume >= self.books.cluster().next_volume => {
                Some(format!("it holds segment {segment}, of a volume that was never made here"))
            }
            _ => None,
        }
    }

    /// From now on nothing changes; whoever waits is told so.
    fn freeze(&mut self, now: Time, frozen: Frozen, effects: &mut Effects) {
        effects.log(frozen.to_string());
        let standstill = self.standstill.replace(Standstill::Frozen(frozen));
        let Some(error) = self.standstill_error() else { return };
        self.permits.clear();
        self.abandon_fences(&error, effects);
        self.abandon_building(&error, effects);
        self.take_what_waited(now, standstill, effects);
        let nodes: Vec<NodeId> = self.sessions.values().copied().collect();
        for node in nodes {
            effects.send(node, FromAuthority::ShowConfigs);
        }
    }
}
