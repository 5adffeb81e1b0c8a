//! One copy of one segment: the machine that every node runs for every replica it holds.
//!
//! Intuition: a replica is a log (`log`) with a fence around it (`epoch`). It follows a primary (`follower`), stands for
//! election when it hears none (`election`), leads (`primary`: order, commit, serve; `membership`: who is in), or is
//! brought up to date (`candidate`, fed by the primary's `source`).
//!
//! Invariants upheld here: I2 (promises durable before they are acted on), I3 and I5 (`primary`), I4 (only `Effect::Commit`
//! moves home), I6 (`Role::Primary` exists only from `begin` on, never from disk), I7 and I8 (`lease`), I9 (`election`,
//! `follower`), I10 (`candidate`, `membership`).

use alloc::boxed::Box;
use alloc::collections::{BTreeMap, VecDeque};
use alloc::vec;
use alloc::vec::Vec;

use crate::config::Config;
use crate::epoch;
use crate::fair::Cost;
use crate::ids::{Epoch, NodeId, SegmentId, Seq};
use crate::lease::Granted;
use crate::message::{Decision, Op, Outcome, Peer, Refusal, Reply, Request};
use crate::random::Random;
use crate::record::{Entry, Meta, Record, Recovered, Standing};
use crate::sabotage::{Invariant, breaks};
use crate::time::{Span, Time};

mod announce;
mod candidate;
mod compare;
mod election;
mod flapping;
mod follower;
mod handover;
pub mod io;
mod log;
mod lone;
mod membership;
mod mend;
mod peers;
mod primary;
mod reconcile;
mod recover;
mod source;
mod wake;

pub use compare::Compared;
use compare::Said;
use io::{ClientRef, Durable, Effect, Effects, Input, ReadPurpose, RoleName, View};

/// One copy of one segment.
#[derive(Debug)]
pub struct Replica {
    node: NodeId,
    segment: SegmentId,
    /// As last written; what is promised in memory is promised durably before anybody hears of it.
    meta: Meta,
    log: log::Log,
    /// Last entry of the own log known to be durable.
    durable: Seq,
    /// Since when a write of the own log is under way without becoming durable.
    writing_since: Option<Time>,
    /// Peers with a live connection; `false`: the host answered and nobody listens.
    links: BTreeMap<NodeId, Link>,
    role: Role,
    /// Leases given to primaries, whatever role this replica has had since (I7).
    granted: Granted,
    /// Requests that came before the configuration they speak of.
    early: VecDeque<handover::Early>,
    /// The node is stopping on purpose.
    stopping: Option<handover::Stopping>,
    grace: Span,
    random: Random,
    /// Something happened that the next tick has to think over (`wake`).
    look: bool,
    /// What is whole of a damaged log: only a person may say that it counts (`recover`).
    salvage: Vec<Entry>,
    /// Damaged extents that are being fetched from another member (I14).
    mends: mend::Mends,
    /// What comparing members with each other has found.
    compared: Compared,
}

/// What is known of the live connection to a peer. Absent: nothing yet.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Link {
    Up,
    Down { refused: bool },
}

#[derive(Debug)]
enum Role {
    /// A member that does not lead.
    Follower(follower::Follower),
    /// A member that stands for election.
    Electing(election::Election),
    /// Primary of an epoch begun in this boot (I6).
    Primary(Box<primary::Primary>),
    /// Being caught up.
    Candidate(Box<candidate::CatchUp>),
    /// Out, or not trusted: only an invitation changes that.
    Stale,
    /// Its store failed: it says and serves nothing.
    Failed,
}

impl Replica {
    /// A machine over a replica that was just created: nothing was written to it, and it has given nobody a lease.
    #[must_use]
    pub fn create(node: NodeId, segment: SegmentId, meta: Meta, grace: Span, now: Time, seed: u64) -> Self {
        let recovered = Recovered { segment, meta, commit: Seq(0), tail: Vec::new(), damaged: false };
        Self { granted: Granted::default(), ..Self::open(node, recovered, grace, now, seed) }
    }

    /// A machine over what a store recovered.
    #[must_use]
    pub fn open(node: NodeId, recovered: Recovered, grace: Span, now: Time, seed: u64) -> Self {
        let Recovered { segment, mut meta, commit, mut tail, damaged } = recovered;
        // I9: less than it may have acknowledged; everything is compared stamp by stamp.
        let mut salvage = Vec::new();
        if damaged {
            if matches!(meta.standing, Standing::Member) {
                salvage = tail.iter().filter(|entry| entry.seq > commit).cloned().collect();
            }
            meta.standing = Standing::Stale { base: Seq(0) };
        }
        // I4: what lies at or below its base is committed, also where no record of its own says so (a base is durable
        // before the commit point is). A catch-up copies what comes after the base only. I10: so is what it ignored
        // while it was caught up.
        let commit = match meta.standing {
            Standing::Member => commit,
            Standing::Joining { base } | Standing::Candidate { base } | Standing::Stale { base } => commit.max(base),
        };
        let role = match meta.standing {
            Standing::Member | Standing::Joining { .. } => {
                tail.retain(|entry| entry.seq > commit);
                Role::Follower(follower::Follower::new(now))
            }
            // A log heard while being caught up counts for nothing.
            Standing::Candidate { .. } | Standing::Stale { .. } => {
                tail.clear();
                Role::Stale
            }
        };
        let log = log::Log::new(commit, tail);
        let durable = log.last();
        let random = Random::new(seed ^ crate::random::mix(segment.to_u64() ^ u64::from(node.0)));
        // I7: the earlier process may have given leases, also where nothing was written yet: what is written next would be
        // missing in what they let a primary read. Also where nobody else is a member: somebody was, and led.
        let granted = Granted::forgotten(now);
        let (links, early) = (BTreeMap::new(), VecDeque::new());
        let (writing_since, stopping, look) = (None, None, true);
        Self {
            node,
            segment,
            meta,
            log,
            durable,
            writing_since,
            links,
            role,
            granted,
            early,
            stopping,
            grace,
            random,
            look,
            salvage,
            mends: mend::Mends::default(),
            compared: Compared::default(),
        }
    }

    /// Lets the replica begin: says whom it needs to reach. Call once, first.
    pub fn start(&mut self, effects: &mut Effects) {
        effects.push(Effect::Commit(self.log.commit()));
        self.want_peers(effects);
    }

    /// Takes one input and says what has to be done, in order.
    pub fn handle(&mut self, now: Time, input: Input, effects: &mut Effects) {
        if matches!(self.role, Role::Failed) {
            return self.refuse_as_failed(input, effects);
        }
        self.look = !matches!(input, Input::Tick) && (self.look || wake::matters(&input));
        match input {
            Input::Tick => self.on_tick(now, effects),
            Input::Peer { from, message } => self.on_peer(now, from, message, effects),
            Input::PeerUp(node) => self.on_peer_up(now, node, effects),
            Input::PeerDown { node, refused } => self.on_peer_down(now, node, refused, effects),
            Input::Client { client, request } => self.on_client(now, client, request, effects),
            Input::ClientGone(client) => self.on_client_gone(client),
            Input::Decided(decision) => self.on_decided(now, decision, effects),
            Input::Leased { incarnation, sent } => self.on_leased(now, incarnation, sent, effects),
            Input::Granted { permit, target } => self.on_granted(now, permit, target, effects),
            Input::HandOver { epoch, to } => self.on_hand_over(now, epoch, to, effects),
            Input::Fence(generation) => self.on_fence(now, generation, effects),
            Input::Durable(durable) => self.on_durable(now, durable, effects),
            Input::Read { purpose, result } => self.on_read(now, purpose, result, effects),
            Input::Allocation { purpose, runs } => self.on_allocation(now, purpose, runs, effects),
            Input::Extent { to, extent, copy } => self.on_extent(now, to, extent, copy, effects),
            Input::Damaged(extent) => self.mend(now, extent, effects),
            Input::Scrubbed { extent, digest } => self.on_scrubbed(now, extent, digest, effects),
            Input::Digest { to, extent, digest } => self.on_digest(now, to, extent, digest, effects),
            Input::Listed { purpose, from, listed, next } => self.on_listed(now, purpose, from, listed, next, effects),
            Input::Recover(config) => self.on_recover(now, config, effects),
            Input::StoreFailed => self.role = Role::Failed,
            Input::Stopping => self.on_stopping(now, effects),
            Input::Stopped => self.on_stopped(effects),
        }
    }

    fn on_tick(&mut self, now: Time, effects: &mut Effects) {
        match &self.role {
            Role::Follower(_) => self.follower_tick(now, effects),
            Role::Electing(_) => self.election_tick(now, effects),
            Role::Primary(_) => self.primary_tick(now, effects),
            Role::Candidate(_) => self.candidate_tick(now, effects),
            Role::Stale | Role::Failed => {}
        }
        self.forget_wish(now);
        self.early_tick(now, effects);
        self.mend_tick(now, effects);
        self.compare_tick(now, effects);
        self.stopping_tick(now, effects);
    }

    fn on_peer(&mut self, now: Time, from: NodeId, message: Peer, effects: &mut Effects) {
        match message {
            Peer::Prepare { commit, entry } => self.on_prepare(now, from, commit, entry, effects),
            Peer::PrepareAck { epoch, durable } => self.on_ack(now, from, epoch, durable, effects),
            Peer::Refused { promised, config } => self.on_refused(now, from, promised, config, effects),
            Peer::Beat { epoch, commit, sent } => self.on_beat(now, from, epoch, commit, sent, effects),
            Peer::BeatAck { epoch, sent, durable } => self.on_beat_ack(now, from, epoch, sent, durable, effects),
            Peer::Seal { epoch, from: base } => self.on_seal(now, from, epoch, base, effects),
            Peer::Promise { epoch, log_epoch, last, commit: _, lease_left } => {
                self.on_promise(now, from, epoch, election::Promised { log_epoch, last, lease_left }, effects);
            }
            Peer::StillHeard { epoch } => self.on_still_heard(now, epoch),
            Peer::Begin { config, lease_left } => self.on_begin(now, config, lease_left, effects),
            Peer::Advance { config, log_epoch, commit, sent } => {
                self.on_advance(now, from, config, log_epoch, commit, sent, effects);
            }
            Peer::Reconcile { config, commit, sent, part, last, entries } => {
                let piece = follower::Piece { commit, sent, part, last, entries };
                self.on_reconcile(now, from, config, piece, effects);
            }
            Peer::Adopted { epoch, log_epoch, last, commit, sent } => {
                if self.learn_commit(now, from, epoch, commit, effects) {
                    self.on_adopted(now, from, epoch, log_epoch, last, sent, effects);
                }
            }
            Peer::Invite { config } => self.on_invite(now, from, config, effects),
            Peer::Held { epoch, standing } => self.on_held(now, from, epoch, standing, effects),
            Peer::Stream { epoch, first } => self.on_stream(now, from, epoch, first, effects),
            Peer::CopyList { stream, above, from: first, .. } => {
                self.on_copy_list(from, stream, above, first, effects);
            }
            Peer::CopyPage { stream, from: first, listed, next, .. } => {
                self.on_copy_page(now, from, (stream, first), &listed, next, effects);
            }
            Peer::CopyGet { extent, .. } => self.on_copy_get(from, extent, effects),
            Peer::CopyData { copy, .. } => self.on_copy_data(now, from, copy, effects),
            Peer::CopyFailed { extent, .. } => self.on_copy_failed(now, from, extent),
            Peer::Compare { extent } => self.on_compare(from, extent, effects),
            Peer::Compared { extent, digest } => self.on_compared(now, from, extent, Said::Holds(digest), effects),
            Peer::CompareFailed { extent } => self.on_compared(now, from, extent, Said::Unreadable, effects),
            Peer::Differs { extent } => self.on_differs(now, from, extent, effects),
            Peer::CaughtUp { epoch, durable, copied: _ } => self.on_caught_up(now, from, epoch, durable, effects),
            Peer::TakeOver { generation } => self.on_take_over(now, from, generation, effects),
            Peer::Leaving { epoch } => self.on_leaving(now, from, epoch, effects),
            Peer::Farewell { epoch } => self.on_farewell(from, epoch),
        }
    }

    fn on_peer_up(&mut self, now: Time, node: NodeId, effects: &mut Effects) {
        self.links.insert(node, Link::Up);
        match &self.role {
            Role::Primary(_) => self.primary_peer_up(now, node, effects),
            Role::Electing(_) => self.election_peer_up(node, effects),
            _ => {}
        }
    }

    fn on_peer_down(&mut self, now: Time, node: NodeId, refused: bool, effects: &mut Effects) {
        self.links.insert(node, Link::Down { refused });
        match &self.role {
            Role::Primary(_) => self.primary_peer_down(now, node, effects),
            Role::Follower(_) => self.follower_tick(now, effects),
            _ => {}
        }
    }

    fn on_client(&mut self, now: Time, client: ClientRef, request: Request, effects: &mut Effects) {
        match (&request.op, &self.role) {
            (Op::Locate { unreachable }, _) => self.on_locate(now, client, &request, *unreachable, effects),
            (Op::Peek { block, count }, _) => {
                let (block, count) = (*block, *count);
                if !self.is_sound(&request) {
                    return self.reply(client, &request, Outcome::Refused(Refusal::Malformed), effects);
                }
                effects.push(Effect::Read { block, count, purpose: ReadPurpose { client, request } });
            }
            (_, Role::Primary(_)) => self.primary_request(now, client, request, effects),
            _ => self.keep_early(now, client, request, effects),
        }
    }

    fn on_decided(&mut self, now: Time, decision: Decision, effects: &mut Effects) {
        match (&self.role, decision) {
            (Role::Electing(_), decision) => self.election_decided(now, decision, effects),
            (Role::Primary(_), decision) => self.primary_decided(now, decision, effects),
            (_, Decision::Installed(config) | Decision::Conflict(config) | Decision::Denied(config, _)) => {
                self.learn(now, config, effects);
            }
            (_, Decision::Unknown(_)) => {}
        }
    }

    fn on_durable(&mut self, now: Time, durable: Durable, effects: &mut Effects) {
        match durable {
            // I9: of a log that another one has replaced since; it says nothing about this one.
            Durable::Log { epoch, .. } if epoch::log_is_behind(epoch, self.log_at_work()) => {}
            Durable::Log { epoch: _, durable } => {
                self.durable = self.durable.max(durable.min(self.log.last()));
                if self.durable >= self.log.last() {
                    self.writing_since = None;
                } else {
                    self.writing_since = Some(now);
                }
                self.primary_advance(now, effects);
            }
            Durable::Promise(epoch) => self.on_own_promise(now, epoch, effects),
            Durable::Begun(epoch) => self.on_begun(now, epoch, effects),
            Durable::Mended(extent) => self.on_mended(now, extent, effects),
            Durable::Copied(extent, stamp) => self.on_copied(now, extent, stamp, effects),
            Durable::Joining { first, .. } => self.on_joining(first, effects),
            Durable::Recovered(life) => self.on_recovered(now, life, effects),
        }
    }

    /// Takes over a configuration that the authority has installed and this replica did not know. Never a reason to
    /// lead without beginning anew (I6).
    fn learn(&mut self, now: Time, config: Config, effects: &mut Effects) {
        if !epoch::supersedes(&config, &self.meta.config) {
            return;
        }
        if let Role::Primary(_) = self.role {
            self.step_down(Some(&config), effects);
        }
        if config.primary == self.node && config.is_member(self.node) && self.is_trusted() {
            return self.begin(now, config, crate::limits::LEASE, effects);
        }
        let old = &self.meta.config;
        if !epoch::is_next(&config, old) || !old.may_commit() || !old.is_member(self.node) {
            // I7: in between, or until now, somebody may have led below min_copies, or before this one was a member, needing
            // no lease of it.
            self.granted.suppose(now);
        }
        let stays = config.is_member(self.node) || config.is_candidate(self.node);
        // I5: whoever holds everything acknowledged keeps it, and may be elected, until a later epoch commits.
        let trusted = self.is_trusted() && (stays || config.electable.contains(&self.node));
        let stops = self.meta.config.may_commit() && !config.may_commit();
        let copying = config.is_candidate(self.node) && matches!(self.role, Role::Candidate(_)) && !stops;
        self.adopt_config(config);
        if trusted && !copying {
            self.role = Role::Follower(follower::Follower::new(now));
        } else if !copying {
            self.lose_membership();
            self.role = Role::Stale;
        }
        self.log_state(effects);
        self.want_peers(effects);
    }

    /// Everything up to the commit point stays; the rest of the log is somebody else's to decide.
    fn lose_membership(&mut self) {
        let base = match self.meta.standing {
            Standing::Member | Standing::Joining { .. } => self.log.commit(),
            Standing::Candidate { base } | Standing::Stale { base } => base,
        };
        self.meta.standing = Standing::Stale { base };
    }

    fn adopt_config(&mut self, mut config: Config) {
        self.meta.promised = epoch::higher(self.meta.promised, config.epoch);
        // I2: a fence heard of meanwhile outlives a configuration installed before it.
        config.generation = config.generation.max(self.meta.config.generation);
        self.meta.config = config;
    }

    /// Whether its log may count in an election or a commit.
    const fn is_trusted(&self) -> bool {
        matches!(self.meta.standing, Standing::Member | Standing::Joining { .. })
    }

    /// Whether the own device keeps up: who cannot write does not say that all is well (I8).
    fn is_healthy(&self, now: Time) -> bool {
        breaks(Invariant::I8)
            || self.writing_since.is_none_or(|since| now.since(since) < crate::limits::PREPARE_DEADLINE)
    }

    /// The log that is written to now.
    fn log_at_work(&self) -> Epoch {
        match &self.role {
            Role::Candidate(catch_up) => catch_up.common(),
            _ => self.meta.log_epoch,
        }
    }

    fn state_record(&self) -> Record {
        Record::State { segment: self.segment, meta: self.meta.clone() }
    }

    fn log_state(&self, effects: &mut Effects) {
        effects.persist(vec![self.state_record()]);
    }

    fn want_peers(&self, effects: &mut Effects) {
        let peers: Vec<NodeId> = self.meta.config.holders().filter(|node| *node != self.node).collect();
        effects.push(Effect::Peers(peers));
    }

    fn commit_to(&mut self, through: Seq, effects: &mut Effects) -> bool {
        let moved = self.log.commit_to(through);
        if moved {
            effects.push(Effect::Commit(if breaks(Invariant::I4) { self.log.last() } else { through }));
        }
        moved
    }

    fn is_up(&self, node: NodeId) -> bool {
        self.links.get(&node) == Some(&Link::Up)
    }

    fn is_refused(&self, node: NodeId) -> bool {
        self.links.get(&node) == Some(&Link::Down { refused: true })
    }

    const fn is_outside(&self, block: u32, count: u32) -> bool {
        let end = block as u64 + count as u64;
        count == 0 || end > self.meta.config.extents as u64 * crate::limits::EXTENT_BLOCKS as u64
    }

    fn reply(&self, client: ClientRef, request: &Request, outcome: Outcome, effects: &mut Effects) {
        let reply = Reply {
            segment: self.segment,
            epoch: self.meta.config.epoch,
            session: request.session,
            request: request.request,
            outcome,
        };
        effects.push(Effect::Reply { client, reply });
    }

    /// The segment.
    #[must_use]
    pub const fn segment(&self) -> SegmentId {
        self.segment
    }

    /// The configuration this replica knows.
    #[must_use]
    pub const fn config(&self) -> &Config {
        &self.meta.config
    }

    /// Whether it leads and answers clients.
    #[must_use]
    pub fn is_serving(&self) -> bool {
        matches!(&self.role, Role::Primary(primary) if primary.is_resolved())
    }

    /// What clients' writes keep at work, here and at the other members. What only waits is not counted: for its turn,
    /// or, held by everybody who can go on, for a member that is gone or stands still to come back or be left out.
    #[must_use]
    pub fn in_hand(&self, now: Time) -> Cost {
        let Role::Primary(primary) = &self.role else { return Cost::default() };
        let reached = primary.peers.held_by_who_goes_on(self.durable, now);
        match primary.ordered_after(reached) {
            0 => Cost::default(),
            requests => Cost::of(requests, self.log.bytes_after(reached)),
        }
    }

    /// Whether its configuration wants it to lead.
    #[must_use]
    pub fn should_serve(&self) -> bool {
        self.meta.config.primary == self.node && self.is_trusted()
    }

    /// What a status page or a report shows.
    #[must_use]
    pub fn view(&self) -> View {
        let role = match &self.role {
            Role::Follower(_) => RoleName::Backup,
            Role::Electing(_) => RoleName::Electing,
            Role::Primary(primary) if primary.is_resolved() => RoleName::Primary,
            Role::Primary(_) => RoleName::Reconciling,
            Role::Candidate(_) => RoleName::Candidate,
            Role::Stale => RoleName::Stale,
            Role::Failed => RoleName::Failed,
        };
        View {
            segment: self.segment,
            config: self.meta.config.clone(),
            role,
            commit: self.log.commit(),
            last: self.log.last(),
            copy: self.copy_progress(),
        }
    }

    /// Extents mended from another member since the replica was opened (I14).
    #[must_use]
    pub const fn mended(&self) -> u64 {
        self.mends.mended()
    }

    /// A copy arriving here: whether from nothing, bytes in, bytes listed and not in.
    #[must_use]
    pub fn copy_progress(&self) -> Option<(bool, u64, u64)> {
        if let Role::Candidate(catch_up) = &self.role { Some(catch_up.progress()) } else { None }
    }
}

/// One request of a client, kept until it is answered.
#[derive(Debug, Clone)]
struct Asked {
    client: ClientRef,
    request: Request,
}
