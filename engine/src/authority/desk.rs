//! The authority's loop: gather, decide, commit, do.
//!
//! Everything that has happened meanwhile goes through the core in one go; the changes of all of it are committed in
//! one transaction; only then is anything sent or answered (I1). A commit that fails ends the process: what the core
//! believes and what is durable may differ, and nothing built on it may be told.

use std::collections::BTreeMap;
use std::future::Future;
use std::net::SocketAddr;
use std::path::PathBuf;
use std::time::Duration;

use engine_core::authority::io::{Answer, Call, CallError, CallId, Effect, Effects, Input, SessionRef};
use engine_core::authority::policy::Policy;
use engine_core::authority::records::RestoreError;
use engine_core::authority::{Authority, Setup};
use engine_core::ids::{BootId, ClusterId, NodeId};
use engine_core::limits::AUTHORITY_TICK;
use engine_core::message::{FromAuthority, Registration, ToAuthority};
use engine_core::time::{Span, Time};
use tokio::net::TcpListener;
use tokio::sync::oneshot;
use tokio::time::MissedTickBehavior;

use super::door;
use super::lanes::{Inbox, lanes};
use super::records::{Records, RecordsError, RedbRecords};
use crate::wire::{Local, Message, Outbox, SendError};

/// How to run an authority.
#[derive(Debug, Clone)]
pub struct Options {
    /// Where its records are.
    pub dir: PathBuf,
    /// `host:port` to listen on, for HTTP and nodes.
    pub listen: String,
    /// How long a missing replica may come back before its segment is re-mirrored.
    pub grace: Duration,
    /// When and where copies are made.
    pub policy: Policy,
}

/// Why an authority did not start, or ended.
#[derive(Debug, thiserror::Error)]
pub enum ServeError {
    /// Its records failed.
    #[error(transparent)]
    Records(#[from] RecordsError),
    /// Its records do not fit together.
    #[error("{0}; nothing was changed")]
    Restore(#[from] RestoreError),
    /// The address cannot be listened on.
    #[error("can't listen on {address}: {source}")]
    Listen {
        /// The address.
        address: String,
        /// Why not.
        source: std::io::Error,
    },
    /// The operating system gave no random numbers.
    #[error("no randomness: {0}")]
    Random(getrandom::Error),
}

/// The outcome of a call.
pub(super) type Outcome = Result<Answer, CallError>;

/// Something that happened at a connection.
#[derive(Debug)]
pub(super) enum Event {
    /// A node's first message.
    Register { session: SessionRef, boot: BootId, registration: Registration, outbox: Outbox },
    /// A node's later message.
    Node { session: SessionRef, message: ToAuthority },
    /// A node's connection is gone.
    Gone(SessionRef),
    /// An HTTP request.
    Call { request: Call, reply: oneshot::Sender<Outcome> },
}

/// Runs an authority until `stop` is ready. `ready` hears the address once it listens.
///
/// # Errors
/// [`ServeError`]; after one, nothing that was not durable has been told to anybody.
pub async fn serve(
    options: Options,
    ready: impl FnOnce(ClusterId, SocketAddr),
    stop: impl Future<Output = ()>,
) -> Result<(), ServeError> {
    let records = RedbRecords::open(&options.dir)?;
    let setup = Setup {
        now: now(),
        cluster: ClusterId(random()?),
        grace: Span(u64::try_from(options.grace.as_nanos()).unwrap_or(u64::MAX)),
        policy: options.policy,
        seed: getrandom::u64().map_err(ServeError::Random)?,
    };
    let core = Authority::restore(records.load()?, &setup)?;
    let mut desk = Desk::new(core, records);
    // A new cluster exists before anybody can ask for it.
    desk.handle(Vec::new())?;

    let unusable = |source| ServeError::Listen { address: options.listen.clone(), source };
    let listener = TcpListener::bind(&options.listen).await.map_err(unusable)?;
    let address = listener.local_addr().map_err(unusable)?;
    let local = Local { cluster: desk.core.cluster_id(), node: None, boot: BootId(random()?), shards: 0 };
    let (events, inbox) = lanes();
    let door = tokio::spawn(door::keep(listener, local.clone(), events));
    ready(local.cluster, address);
    let ended = desk.run(inbox, stop).await;
    door.abort();
    ended
}

fn random() -> Result<u128, ServeError> {
    let half = || getrandom::u64().map(u128::from).map_err(ServeError::Random);
    // 0 means "none yet" in handshakes.
    Ok(half()? << 64 | half()? | 1)
}

/// `CLOCK_BOOTTIME`: goes on while the machine sleeps, is never set back.
fn now() -> Time {
    let mut spec = libc::timespec { tv_sec: 0, tv_nsec: 0 };
    // SAFETY: `spec` is a valid timespec, and the call writes nothing else.
    let done = unsafe { libc::clock_gettime(libc::CLOCK_BOOTTIME, &raw mut spec) };
    assert_eq!(done, 0, "CLOCK_BOOTTIME exists on every Linux this runs on");
    let (seconds, nanos) = (u64::try_from(spec.tv_sec), u64::try_from(spec.tv_nsec));
    Time(seconds.unwrap_or(0).saturating_mul(1_000_000_000).saturating_add(nanos.unwrap_or(0)))
}

struct Desk<R> {
    core: Authority,
    records: R,
    effects: Effects,
    sessions: BTreeMap<SessionRef, Outbox>,
    nodes: BTreeMap<NodeId, SessionRef>,
    calls: BTreeMap<CallId, oneshot::Sender<Outcome>>,
    last_call: u64,
}

impl<R: Records> Desk<R> {
    fn new(core: Authority, records: R) -> Self {
        Self {
            core,
            records,
            effects: Effects::new(),
            sessions: BTreeMap::new(),
            nodes: BTreeMap::new(),
            calls: BTreeMap::new(),
            last_call: 0,
        }
    }

    async fn run(&mut self, mut inbox: Inbox, stop: impl Future<Output = ()>) -> Result<(), ServeError> {
        let mut tick = tokio::time::interval(Duration::from_nanos(AUTHORITY_TICK.0));
        tick.set_missed_tick_behavior(MissedTickBehavior::Delay);
        tokio::pin!(stop);
        loop {
            let mut inputs = Vec::new();
            tokio::select! {
                biased;
                () = &mut stop => return Ok(()),
                _ = tick.tick() => inputs.push(Input::Tick),
                events = inbox.turn() => match events {
                    Some(events) => inputs.extend(events.into_iter().map(|event| self.input(event))),
                    None => return Ok(()),
                },
            }
            self.handle(inputs)?;
        }
    }

    fn input(&mut self, event: Event) -> Input {
        match event {
            Event::Register { session, boot, registration, outbox } => {
                self.sessions.insert(session, outbox);
                Input::Register { session, boot, registration }
            }
            Event::Node { session, message } => Input::Node { session, message },
            Event::Gone(session) => {
                self.sessions.remove(&session);
                self.nodes.retain(|_, of_node| *of_node != session);
                Input::Gone(session)
            }
            Event::Call { request, reply } => {
                self.last_call += 1;
                let call = CallId(self.last_call);
                self.calls.insert(call, reply);
                Input::Call { call, request }
            }
        }
    }

    /// Runs the core over `inputs` (none: only what it has to save at a start), commits, then does the rest in order.
    fn handle(&mut self, inputs: Vec<Input>) -> Result<(), ServeError> {
        let now = now();
        let inputs = if inputs.is_empty() { vec![Input::Tick] } else { inputs };
        for input in inputs {
            self.core.handle(now, input, &mut self.effects);
        }
        let mut changes = Vec::new();
        let mut rest = Vec::new();
        for effect in self.effects.drain() {
            match effect {
                Effect::Save(mut saved) => changes.append(&mut saved),
                other => rest.push(other),
            }
        }
        if !changes.is_empty() {
            self.records.commit(&changes)?;
        }
        for effect in rest {
            self.run_effect(effect);
        }
        Ok(())
    }

    fn run_effect(&mut self, effect: Effect) {
        match effect {
            Effect::Save(_) => unreachable!("gathered above"),
            Effect::Accept { session, node } => {
                if let Some(older) = self.nodes.insert(node, session).and_then(|older| self.sessions.remove(&older)) {
                    older.abort();
                }
            }
            Effect::Refuse { session, reason } => {
                if let Some(outbox) = self.sessions.remove(&session) {
                    // If even this does not fit, closing says enough.
                    let _ = outbox.try_send(&Message::FromAuthority(FromAuthority::RegisterRefused(reason)));
                    outbox.close();
                }
            }
            Effect::Send { to, message } => self.send(to, message),
            Effect::Answer { call, result } => {
                if let Some(reply) = self.calls.remove(&call) {
                    // Whoever asked may have gone.
                    let _ = reply.send(result);
                }
            }
            Effect::Log(line) => tracing::info!("{line}"),
        }
    }

    fn send(&mut self, to: NodeId, message: FromAuthority) {
        let Some(outbox) = self.nodes.get(&to).and_then(|session| self.sessions.get(session)) else { return };
        match outbox.try_send(&Message::FromAuthority(message)) {
            Ok(()) | Err(SendError::Closed) => {}
            // A slow node must not make the others wait: it comes again and is told again.
            Err(SendError::Full) => {
                tracing::warn!(node = %to, "does not take its messages: disconnected");
                outbox.abort();
            }
            Err(error @ SendError::Unsendable(_)) => tracing::error!(node = %to, %error, "message not sent"),
        }
    }
}
