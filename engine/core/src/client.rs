//! A client's side of one segment: which request goes where, and what is sent again.
//!
//! Intuition: keep every undecided request, in order; talk to whoever the newest known configuration calls primary;
//! when that stops working, take the next session number, ask the members what they know, follow it, and send
//! everything undecided again. Writes are plain data at a place, so sending one twice does no harm, with one
//! exception: never after a later write to the same blocks was acknowledged. Hence a write waits here until every
//! earlier undecided write to any of its blocks is decided.
//!
//! Invariants:
//! - A reply counts only if it answers a request sent in the current session, and (I7) only if its epoch is not below
//!   the highest seen. A reply that does not count leaves its request undecided.
//! - The session number grows whenever requests may have been lost or go to another node (I2).
//! - Once fenced, nothing is sent any more, and everything fails at once (I2).
//! - At most [`CLIENT_INFLIGHT_MAX`] requests are sent and unanswered; retries pause, with jitter, longer and longer.

use alloc::collections::{BTreeSet, VecDeque};
use alloc::vec::Vec;

use crate::config::Config;
use crate::ids::{BlockIndex, Epoch, Generation, NodeId, RequestId, SegmentId, Session};
use crate::limits::{
    CLIENT_INFLIGHT_MAX, CLIENT_PATIENCE, CLIENT_RESEND_AFTER, CLIENT_UNREACHABLE, RETRY_MAX, RETRY_MIN,
};
use crate::message::{Op, Outcome, Refusal, Reply, Request};
use crate::random::Random;
use crate::record::{Blocks, Change};
use crate::time::{Span, Time};

/// Number of every `Locate`; other requests count from 1.
const LOCATE: RequestId = RequestId(0);
/// Retries before pauses begin to grow: about a second, in which most failovers are over.
const QUICK_RETRIES: u32 = 32;
/// Search steps without success between two asks for a fresh map.
const REFRESH_STEPS: u32 = 8;

/// The caller's name for a request it waits for.
pub type Token = u64;

/// Everything that can happen to a client's segment. `now` comes beside it.
#[derive(Clone, PartialEq, Debug)]
pub enum Input {
    /// Somebody wants this done, until `due` at the latest; answered by [`Effect::Done`].
    Submit {
        /// Comes back.
        token: Token,
        /// Read, Write or Allocation.
        op: Op,
        /// When to give up.
        due: Option<Time>,
    },
    /// A node replied about this segment.
    Reply {
        /// Who.
        from: NodeId,
        /// What.
        reply: Reply,
    },
    /// There is a connection with this node; nothing sent before is on it.
    Up(NodeId),
    /// The connection with this node is gone.
    Down(NodeId),
    /// A configuration from elsewhere (a fresh map).
    Learned(Config),
    /// A newer attachment of the volume is known to exist.
    Fenced(Generation),
    /// Time passes; given every [`crate::limits::TICK`] while not idle.
    Tick,
}

/// What the shell has to do, in this order.
#[derive(Clone, PartialEq, Debug)]
pub enum Effect {
    /// A connection with this node is wanted, soon. Answered by `Up` when there is one.
    Connect(NodeId),
    /// Send. A connection that cannot take it has to be ended (`Down`).
    Send {
        /// To whom.
        to: NodeId,
        /// What.
        request: Request,
    },
    /// A submitted request is decided.
    Done {
        /// As submitted.
        token: Token,
        /// How.
        result: Result<Answer, Failure>,
    },
    /// A newer attachment exists; tell the other segments.
    Fenced(Generation),
    /// No member knows further: a fresh map would help.
    Refresh,
}

/// What was asked for.
#[derive(Clone, PartialEq, Eq, Debug)]
pub enum Answer {
    /// The change is durable on every member.
    Written,
    /// The blocks; their checksums are still to be compared.
    Data(Blocks),
    /// Runs of blocks, in order: their number and whether they hold data.
    Allocation(Vec<(u32, bool)>),
}

/// Why it is not to be had.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub enum Failure {
    /// A newer attachment exists (I2).
    Fenced,
    /// The time limit passed. A write may still happen.
    TimedOut,
    /// The primary found the request, or this client the answer, to be nonsense.
    Malformed,
    /// This block is damaged beyond repair (I14).
    Corrupt(BlockIndex),
}

/// An undecided request.
#[derive(Debug)]
struct Pending {
    request: RequestId,
    token: Token,
    op: Op,
    due: Option<Time>,
    /// When it was sent in this session; `None`: it waits.
    sent: Option<Time>,
}

#[derive(Debug, PartialEq)]
enum Mode {
    /// The primary is connected and believed to serve.
    Serving {
        /// Next time to ask others, should a reply be overdue.
        probe_at: Time,
    },
    /// Nobody to send to. `step` 0 asks everyone, later ones one after the other.
    Searching { at: Time, step: u32 },
}

/// A client's session with one segment.
#[derive(Debug)]
pub struct Segment {
    generation: Generation,
    config: Config,
    /// Highest epoch of a configuration or of a primary's answer (I7).
    seen: Epoch,
    session: Session,
    next_request: RequestId,
    /// Undecided requests, in the order they were submitted.
    pending: VecDeque<Pending>,
    /// How many of them are sent.
    in_flight: usize,
    connected: BTreeSet<NodeId>,
    mode: Mode,
    /// Nothing is sent before.
    pause_until: Time,
    /// Failed attempts since the last answer.
    attempts: u32,
    /// Whose turn it is to be asked.
    turn: usize,
    fenced: Option<Generation>,
    /// When the primary was heard last, or somebody began to wait for it.
    heard: Time,
    random: Random,
}

impl Segment {
    /// A session of attachment `generation`, beginning behind `session`.
    #[must_use]
    pub fn new(config: Config, generation: Generation, session: Session, random: Random) -> Self {
        Self {
            generation,
            seen: config.epoch,
            config,
            session: session.next(),
            next_request: LOCATE.next(),
            pending: VecDeque::new(),
            in_flight: 0,
            connected: BTreeSet::new(),
            mode: Mode::Searching { at: Time(0), step: 0 },
            pause_until: Time(0),
            attempts: 0,
            turn: 0,
            fenced: None,
            heard: Time(0),
            random,
        }
    }

    /// The segment.
    #[must_use]
    pub const fn id(&self) -> SegmentId {
        self.config.segment
    }

    /// The newest configuration known.
    #[must_use]
    pub const fn config(&self) -> &Config {
        &self.config
    }

    /// Number of the current session.
    #[must_use]
    pub const fn session(&self) -> Session {
        self.session
    }

    /// Whether nothing is undecided: no ticks are needed.
    #[must_use]
    pub fn is_idle(&self) -> bool {
        self.pending.is_empty()
    }

    /// Takes one input; what has to be done is added to `effects`.
    pub fn handle(&mut self, now: Time, input: Input, effects: &mut Vec<Effect>) {
        match input {
            Input::Submit { token, op, due } => self.on_submit(now, token, op, due, effects),
            Input::Reply { from, reply } => self.on_reply(now, from, reply, effects),
            Input::Up(node) => self.on_up(now, node, effects),
            Input::Down(node) => self.on_down(now, node),
            Input::Learned(config) => self.learn(now, config, effects),
            Input::Fenced(generation) => self.fence(generation, effects),
            Input::Tick => self.on_tick(now, effects),
        }
        self.search(now, effects);
        self.dispatch(now, effects);
    }

    fn on_submit(&mut self, now: Time, token: Token, op: Op, due: Option<Time>, effects: &mut Vec<Effect>) {
        if self.fenced.is_some() {
            effects.push(Effect::Done { token, result: Err(Failure::Fenced) });
            return;
        }
        if self.pending.is_empty() {
            self.heard = now;
        }
        if self.pending.is_empty()
            && let Mode::Searching { at, .. } = &mut self.mode
        {
            // Nobody asked while nobody waited; now somebody does.
            *at = now;
        }
        let request = self.next_request;
        self.next_request = request.next();
        self.pending.push_back(Pending { request, token, op, due, sent: None });
    }

    fn on_up(&mut self, now: Time, node: NodeId, effects: &mut Vec<Effect>) {
        self.connected.insert(node);
        if self.is_serving() {
            if node == self.config.primary {
                // A new connection without a word about the end of the old one: what was on it is lost.
                self.new_session(now);
                self.serve(now);
            }
        } else if node == self.config.primary {
            self.serve(now);
        } else if !self.pending.is_empty() {
            self.locate(now, node, effects);
        }
    }

    fn on_down(&mut self, now: Time, node: NodeId) {
        self.connected.remove(&node);
        if node == self.config.primary && self.is_serving() {
            self.new_session(now);
        }
    }

    fn on_tick(&mut self, now: Time, effects: &mut Vec<Effect>) {
        self.expire(now, effects);
        let Mode::Serving { probe_at } = self.mode else { return };
        let Some(oldest) = self.pending.iter().filter_map(|pending| pending.sent).min() else { return };
        let waited = now.since(oldest);
        if waited >= CLIENT_RESEND_AFTER {
            self.new_session(now);
            self.serve(now);
        } else if waited >= CLIENT_PATIENCE && now >= probe_at {
            // The connection lives and nothing comes: whether the primary does, the others know better.
            self.mode = Mode::Serving { probe_at: now + CLIENT_PATIENCE };
            self.ask_next(now, effects, Some(self.config.primary));
        }
    }

    fn expire(&mut self, now: Time, effects: &mut Vec<Effect>) {
        let mut index = 0;
        while index < self.pending.len() {
            if self.pending[index].due.is_some_and(|due| due <= now) {
                self.finish(index, Err(Failure::TimedOut), effects);
            } else {
                index += 1;
            }
        }
    }

    fn on_reply(&mut self, now: Time, from: NodeId, reply: Reply, effects: &mut Vec<Effect>) {
        if reply.segment != self.id() || self.fenced.is_some() {
            return;
        }
        if from == self.config.primary {
            self.heard = now;
        }
        if reply.request == LOCATE {
            match reply.outcome {
                Outcome::Located(config) => self.learn(now, config, effects),
                Outcome::Refused(Refusal::NotPrimary(Some(config))) => self.learn(now, config, effects),
                _ => {}
            }
            return;
        }
        if reply.session != self.session {
            return;
        }
        let found = self.pending.binary_search_by_key(&reply.request, |pending| pending.request);
        let Ok(index) = found else { return };
        if self.pending[index].sent.is_none() {
            return;
        }
        match reply.outcome {
            Outcome::Refused(Refusal::Fenced(generation)) if generation > self.generation => {
                self.fence(generation, effects);
            }
            Outcome::Refused(Refusal::NotPrimary(config)) => self.on_not_primary(now, from, config, effects),
            Outcome::Refused(Refusal::Unknown) => self.on_not_primary(now, from, None, effects),
            Outcome::Refused(Refusal::OldSession) => self.on_not_primary(now, from, None, effects),
            Outcome::Refused(Refusal::Busy | Refusal::Fenced(_)) | Outcome::Located(_) => self.put_back(now, index),
            _ if reply.epoch < self.seen => self.put_back(now, index),
            outcome => {
                self.seen = reply.epoch;
                self.attempts = 0;
                let result = decided(&self.pending[index].op, outcome);
                self.finish(index, result, effects);
            }
        }
    }

    /// Whoever should serve does not: nothing of this session will be done any more.
    fn on_not_primary(&mut self, now: Time, from: NodeId, config: Option<Config>, effects: &mut Vec<Effect>) {
        let (session, epoch) = (self.session, self.config.epoch);
        if let Some(config) = config {
            self.learn(now, config, effects);
        }
        if self.session != session {
            return; // on its way to another primary
        }
        self.new_session(now);
        if self.config.epoch > epoch && self.config.primary == from {
            // It was this client that was behind: the same node, asked with the epoch it wants to see (I7).
            self.serve(now);
            return;
        }
        // Nothing new: search, but not at once.
        let at = now + self.pause();
        self.mode = Mode::Searching { at, step: 1 };
        self.pause_until = at;
    }

    /// The request was not done: it waits for its next turn.
    fn put_back(&mut self, now: Time, index: usize) {
        self.pending[index].sent = None;
        self.in_flight -= 1;
        self.pause_until = now + self.pause();
    }

    fn fence(&mut self, generation: Generation, effects: &mut Vec<Effect>) {
        if self.fenced.is_some() || generation <= self.generation {
            return;
        }
        self.fenced = Some(generation);
        effects.push(Effect::Fenced(generation));
        while !self.pending.is_empty() {
            self.finish(0, Err(Failure::Fenced), effects);
        }
    }

    fn learn(&mut self, now: Time, config: Config, effects: &mut Vec<Effect>) {
        if config.segment != self.id() || config.epoch < self.seen.max(self.config.epoch) {
            return;
        }
        // I2: whoever says it, a newer attachment exists; also while nobody serves, everything fails at once.
        if config.generation > self.generation {
            return self.fence(config.generation, effects);
        }
        let moved = config.primary != self.config.primary;
        if moved {
            self.heard = now;
        }
        self.seen = config.epoch;
        self.config = config;
        if moved && self.is_serving() {
            self.new_session(now);
        }
        if self.is_serving() {
            return;
        }
        if self.connected.contains(&self.config.primary) {
            self.serve(now);
        } else if !self.pending.is_empty() {
            effects.push(Effect::Connect(self.config.primary));
        }
    }

    const fn is_serving(&self) -> bool {
        matches!(self.mode, Mode::Serving { .. })
    }

    const fn serve(&mut self, now: Time) {
        self.mode = Mode::Serving { probe_at: now };
    }

    /// Everything undecided has to be sent again, to whoever will be found (I2).
    fn new_session(&mut self, now: Time) {
        self.session = self.session.next();
        self.in_flight = 0;
        for pending in &mut self.pending {
            pending.sent = None;
        }
        self.mode = Mode::Searching { at: now, step: 0 };
    }

    fn search(&mut self, now: Time, effects: &mut Vec<Effect>) {
        let Mode::Searching { at, step } = self.mode else { return };
        if self.pending.is_empty() || now < at {
            return;
        }
        if self.connected.contains(&self.config.primary) && step == 0 && self.attempts == 0 {
            // Nothing speaks against it yet.
            self.serve(now);
            return;
        }
        for node in self.config.holders().filter(|node| !self.connected.contains(node)) {
            effects.push(Effect::Connect(node));
        }
        if step == 0 {
            let everyone: Vec<NodeId> = self.config.holders().filter(|node| self.connected.contains(node)).collect();
            everyone.iter().for_each(|node| self.locate(now, *node, effects));
        } else {
            self.ask_next(now, effects, None);
        }
        if step > 0 && step.is_multiple_of(REFRESH_STEPS) {
            effects.push(Effect::Refresh);
        }
        self.mode = Mode::Searching { at: now + self.pause(), step: step.saturating_add(1) };
    }

    /// Asks the next connected holder in turn.
    fn ask_next(&mut self, now: Time, effects: &mut Vec<Effect>, except: Option<NodeId>) {
        let holders: Vec<NodeId> = self.config.holders().filter(|node| Some(*node) != except).collect();
        for _ in 0..holders.len() {
            let node = holders[self.turn % holders.len()];
            self.turn = self.turn.wrapping_add(1);
            if self.connected.contains(&node) {
                self.locate(now, node, effects);
                return;
            }
            effects.push(Effect::Connect(node));
        }
    }

    fn locate(&self, now: Time, to: NodeId, effects: &mut Vec<Effect>) {
        let unreachable = !self.pending.is_empty() && now.since(self.heard) >= CLIENT_UNREACHABLE;
        let request = self.request(LOCATE, Op::Locate { unreachable });
        effects.push(Effect::Send { to, request });
    }

    const fn request(&self, request: RequestId, op: Op) -> Request {
        Request {
            segment: self.config.segment,
            epoch: self.seen,
            generation: self.generation,
            session: self.session,
            request,
            op,
        }
    }

    /// Sends what may be sent, oldest first.
    fn dispatch(&mut self, now: Time, effects: &mut Vec<Effect>) {
        if !self.is_serving() || now < self.pause_until || self.in_flight == self.pending.len() {
            return;
        }
        for index in self.first_unsent()..self.pending.len() {
            if self.in_flight >= CLIENT_INFLIGHT_MAX {
                return;
            }
            if self.pending[index].sent.is_some() || self.must_wait(index) {
                continue;
            }
            let request = self.request(self.pending[index].request, self.pending[index].op.clone());
            self.pending[index].sent = Some(now);
            self.in_flight += 1;
            effects.push(Effect::Send { to: self.config.primary, request });
        }
    }

    /// Index of the oldest request that is not sent. Looked for from the end, where it nearly always is.
    fn first_unsent(&self) -> usize {
        let mut unsent = self.pending.len() - self.in_flight;
        let mut index = self.pending.len();
        while unsent > 0 {
            index -= 1;
            unsent -= usize::from(self.pending[index].sent.is_none());
        }
        index
    }

    /// Whether an earlier undecided write touches a block that this one writes.
    fn must_wait(&self, index: usize) -> bool {
        let Some((first, end)) = written_range(&self.pending[index].op) else { return false };
        let earlier = self.pending.iter().take(index).filter_map(|pending| written_range(&pending.op));
        earlier.into_iter().any(|(other_first, other_end)| first < other_end && other_first < end)
    }

    fn finish(&mut self, index: usize, result: Result<Answer, Failure>, effects: &mut Vec<Effect>) {
        let Some(pending) = self.pending.remove(index) else { return };
        if pending.sent.is_some() {
            self.in_flight -= 1;
        }
        effects.push(Effect::Done { token: pending.token, result });
    }

    /// How long to wait before the next attempt.
    fn pause(&mut self) -> Span {
        self.attempts = self.attempts.saturating_add(1);
        let slower = (self.attempts / QUICK_RETRIES).min(4);
        let longest = (RETRY_MIN.0 * 5 / 2) << slower;
        Span(self.random.between(RETRY_MIN.0 << slower, longest).min(RETRY_MAX.0))
    }
}

/// Blocks a request changes, as first and end.
fn written_range(op: &Op) -> Option<(u64, u64)> {
    let Op::Write(change) = op else { return None };
    let (first, count) = change.range();
    Some((u64::from(first.0), u64::from(first.0) + u64::from(count)))
}

/// What a primary's outcome means for a request; an answer to another question is nonsense.
fn decided(op: &Op, outcome: Outcome) -> Result<Answer, Failure> {
    match (op, outcome) {
        (Op::Write(Change::Write { .. } | Change::Zero { .. } | Change::Nothing), Outcome::Written) => {
            Ok(Answer::Written)
        }
        (Op::Read { count, .. }, Outcome::Data(blocks)) if blocks.is_well_formed() && blocks.count() == *count => {
            Ok(Answer::Data(blocks))
        }
        (Op::Allocation { count, .. }, Outcome::Allocation(runs)) => {
            let covered = runs.iter().map(|(blocks, _)| u64::from(*blocks)).sum::<u64>();
            if (1..=u64::from(*count)).contains(&covered) {
                Ok(Answer::Allocation(runs))
            } else {
                Err(Failure::Malformed)
            }
        }
        (_, Outcome::Refused(Refusal::Corrupt(block))) => Err(Failure::Corrupt(block)),
        _ => Err(Failure::Malformed),
    }
}

#[cfg(test)]
mod tests;
