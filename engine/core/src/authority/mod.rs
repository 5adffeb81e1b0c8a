//! The authority: which configuration each segment has, who may lead it, where copies go, who is attached.
//!
//! One machine, driven by [`Authority::handle`]. Durable are the [`records`]; liveness, permits, reports and pending
//! fences are not, and come back by themselves after a restart. The save of all changes of one step stands in front of
//! everything that step announces: no effect is seen before the change that justifies it is durable (I1).
//!
//! Invariants: I1 (`proposals`), I2 (`attach`), I5 and I9 (`proposals`), I11 (`standstill`, `release`), I12 (`release`),
//! I13 (`placement`), I15 (`permits`). Deliberately absent: polling nodes for space, pushing configurations, deciding who is dead.

pub mod document;
pub mod headroom;
pub mod io;
pub mod placement;
pub mod policy;
pub mod proposals;
pub mod rebalance;
pub mod records;
pub mod space;
pub mod status;

mod accept;
mod attach;
mod devices;
mod explain;
mod judge;
mod leases;
mod permits;
mod recover;
mod registry;
mod release;
mod standstill;
mod throttle;
mod volumes;

use alloc::boxed::Box;
use alloc::collections::{BTreeMap, BTreeSet};
use alloc::format;
use alloc::string::{String, ToString};
use alloc::vec::Vec;

use self::attach::Fencing;
use self::document::NodeInfo;
use self::io::{Answer, Call, CallError, CallId, Effects, ErrorCode, Input, SessionRef};
use self::permits::Permits;
use self::policy::Policy;
use self::rebalance::Rebalancing;
use self::records::{Books, RestoreError, StoredRecord};
use self::registry::Presence;
use self::space::Watch;
use self::standstill::Standstill;
use self::volumes::Building;
use crate::ids::{ClusterId, NodeId, Revision, SegmentId, VolumeId};
use crate::message::Settings;
use crate::remirror::breaker::Breaker;
use crate::time::{Span, Time};

/// What an authority starts with, beside its records.
#[derive(Debug, Clone)]
pub struct Setup {
    /// The time of the start.
    pub now: Time,
    /// The cluster's id, if there are no records yet.
    pub cluster: ClusterId,
    /// How long a missing replica may come back before its segment is re-mirrored.
    pub grace: Span,
    /// When and where copies are made.
    pub policy: Policy,
    /// Randomness of this run.
    pub seed: u64,
}

/// The authority's machine.
#[derive(Debug)]
pub struct Authority {
    books: Books,
    presence: BTreeMap<NodeId, Presence>,
    sessions: BTreeMap<SessionRef, NodeId>,
    permits: Permits,
    breaker: Breaker,
    policy: Policy,
    /// When it is looked who is lost and what is left, next.
    looked_at: Time,
    /// Where space runs out, as said last.
    space: Watch,
    rebalancing: Rebalancing,
    fencing: BTreeMap<VolumeId, Fencing>,
    building: BTreeMap<VolumeId, Building>,
    standstill: Option<Standstill>,
    /// Segments whose copy that counts has not confirmed it yet.
    recovering: BTreeSet<SegmentId>,
    settings: Settings,
    seed: u64,
    copied_total: u64,
}

impl Authority {
    /// An authority over the records found; over a new cluster if there are none. A new cluster's first record is
    /// saved with the first `handle`.
    ///
    /// # Errors
    /// [`RestoreError`] when the records do not fit together.
    pub fn restore(records: Vec<StoredRecord>, setup: &Setup) -> Result<Self, RestoreError> {
        let books = if records.is_empty() { Books::found(setup.cluster) } else { Books::restore(records)? };
        let presence = books.nodes().keys().map(|node| (*node, Presence::unheard(setup.now))).collect();
        let recovering = books.segments().iter().filter(|(_, r)| r.recovering).map(|(segment, _)| *segment).collect();
        let mut breaker = Breaker::new(setup.now, setup.policy.breaker_stable);
        if books.cluster().breaker_held {
            breaker.hold();
        }
        let mut authority = Self {
            books,
            presence,
            sessions: BTreeMap::new(),
            permits: Permits::new(setup.seed),
            breaker,
            policy: setup.policy,
            looked_at: setup.now,
            space: Watch::default(),
            rebalancing: Rebalancing::default(),
            fencing: BTreeMap::new(),
            building: BTreeMap::new(),
            standstill: None,
            recovering,
            settings: Settings { grace: setup.grace },
            seed: setup.seed,
            copied_total: 0,
        };
        authority.begin_standstill();
        if !authority.stands_still() {
            authority.resume_building(setup.now);
        }
        Ok(authority)
    }

    /// The cluster's id, for handshakes.
    #[must_use]
    pub fn cluster_id(&self) -> ClusterId {
        self.books.cluster().cluster
    }

    /// One step: something happened, this is what has to be done about it.
    pub fn handle(&mut self, now: Time, input: Input, effects: &mut Effects) {
        let start = effects.len();
        match input {
            Input::Tick => self.on_tick(now, effects),
            Input::Register { session, boot, registration } => {
                self.on_register(now, session, boot, &registration, effects);
            }
            Input::Node { session, message } => self.on_node(now, session, message, effects),
            Input::Gone(session) => self.on_gone(now, session, effects),
            Input::Call { call, request } => self.on_call(now, call, request, effects),
        }
        if self.books.has_changes() {
            assert!(!self.stands_still(), "an authority that stands still changes nothing (I11)");
            effects.save_before(start, self.books.take_changes());
        }
    }

    fn on_tick(&mut self, now: Time, effects: &mut Effects) {
        if self.stands_still() {
            return self.tick_standstill(now, effects);
        }
        self.tick_building(now, effects);
        self.tick_fences(now, effects);
        self.tick_policy(now, effects);
        self.tick_permits(now, effects);
        self.tick_rebalancing(now, effects);
        self.repeat_releases(now, effects);
        self.tell_revision(now, effects);
    }

    fn on_call(&mut self, now: Time, call: CallId, request: Call, effects: &mut Effects) {
        if self.call_stands_still(now, call, &request, effects) {
            return;
        }
        match request {
            Call::Create(request) => self.on_create(now, call, &request, effects),
            Call::Delete(name) => self.on_delete(now, call, &name, effects),
            Call::Resize(name, request) => self.on_resize(now, call, &name, &request, effects),
            Call::Set(name, request) => self.on_set(now, call, &name, request, effects),
            Call::Attach(name, request) => self.on_attach(now, call, &name, &request, effects),
            Call::Detach(name, request) => self.on_detach(now, call, &name, &request, effects),
            Call::Recover(name, request) => self.on_recover(now, call, &name, &request, effects),
            Call::ReplaceDevice(node, request) => self.on_replace_device(now, call, node, &request, effects),
            Call::Scrub(node) => self.on_scrub(now, call, node, effects),
            Call::Release(node, request) => self.on_release_copies(now, call, node, &request, effects),
            Call::SetBreaker(wish) => self.on_set_breaker(now, call, wish, effects),
            Call::AcceptOlder(request) => self.on_accept_older(now, call, &request, effects),
            question => effects.answer(call, self.look_up(now, &question)),
        }
    }

    fn look_up(&self, now: Time, question: &Call) -> Result<Answer, CallError> {
        match question {
            Call::Status => Ok(Answer::Status(Box::new(self.status(now)))),
            Call::Cluster => Ok(Answer::Cluster(self.cluster())),
            Call::Breaker => Ok(Answer::Breaker(Box::new(self.breaker_info(now)))),
            Call::Nodes => {
                Ok(Answer::Nodes(self.books.nodes().keys().filter_map(|node| self.node_info(now, *node)).collect()))
            }
            Call::Node(id) => match self.node_info(now, *id) {
                Some(info) => Ok(Answer::Node(Box::new(NodeInfo { quarantine: self.quarantine(now, *id), ..info }))),
                None => {
                    Err(CallError::new(ErrorCode::NotFound, format!("there is no node {id}")).next("nodectl node ls"))
                }
            },
            Call::Volumes => {
                Ok(Answer::Volumes(self.books.volumes().keys().map(|id| self.volume_info(now, *id)).collect()))
            }
            Call::Volume(name) => Ok(Answer::Volume(Box::new(self.volume_info(now, self.find_volume(name)?)))),
            Call::Map(name) => Ok(Answer::Map(Box::new(self.volume_map(self.ready_volume(name)?)))),
            Call::Explain(name) => Ok(Answer::Explain(Box::new(self.explain(now, self.find_volume(name)?)))),
            _ => unreachable!("handled by on_call"),
        }
    }

    /// The revision after the save of this step: what nodes remember must not be higher than what is durable.
    fn revision_to_tell(&self) -> Revision {
        let saved = self.books.cluster().revision;
        if self.books.has_changes() { saved.next() } else { saved }
    }
}

impl Call {
    /// Whether it asks for a change rather than a look.
    const fn changes(&self) -> bool {
        !matches!(
            self,
            Self::Status
                | Self::Cluster
                | Self::Breaker
                | Self::Nodes
                | Self::Node(_)
                | Self::Volumes
                | Self::Volume(_)
                | Self::Map(_)
                | Self::Explain(_)
        )
    }
}

/// Nodes in a sentence: `n1, n2`.
fn names(nodes: &[NodeId]) -> String {
    nodes.iter().map(ToString::to_string).collect::<Vec<_>>().join(", ")
}
