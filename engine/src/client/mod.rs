//! A volume's native client: layout, sessions, retries, block locks. It decides nothing about order.
//!
//! A [`Volume`] cuts what is asked into requests of one segment each, gives every block its checksum, and hands them
//! to the segment's session (`engine_core::client`), which says what to send where; connections with the nodes are in
//! `nodes`, what bytes become of blocks in `volume`, who may change which blocks at a time in `locks`, the volume's limits
//! in `pace`. Everything of one volume runs on one thread, inside a `LocalSet`.

mod locks;
mod nodes;
mod pace;
mod volume;

#[cfg(test)]
mod tests;

use std::cell::{Cell, RefCell};
use std::collections::{BTreeMap, HashMap};
use std::future::Future;
use std::pin::Pin;
use std::rc::Rc;
use std::sync::Arc;
use std::time::Duration;

use engine_core::client::{Answer, Effect, Failure, Input, Segment, Token};
use engine_core::ids::{ClusterId, Epoch, Generation, NodeId, RequestId, SegmentId, Session, VolumeId};
use engine_core::layout::Layout;
use engine_core::limits::{BLOCK_SIZE, CLIENT_BYTES_MAX, CLIENT_REQUESTS_MAX, TICK};
use engine_core::message::{Op, Outcome, Reply, Request};
use engine_core::random::Random;
use engine_core::record::Change;
use engine_core::time::{Span, Time};
use tokio::sync::{Notify, OwnedSemaphorePermit, Semaphore, oneshot};
use tokio::task::spawn_local;
use tokio::time::{Instant, sleep};

use crate::authority::api::{Address, VolumeLimits, VolumeMap};
use crate::gateway::ExportError;
use locks::{BlockLocks, Held};
use nodes::{Latch, Node};
use pace::Pace;

pub use volume::Volume;

/// Set in the numbers of requests that belong to no session.
const PEEKS: u64 = 1 << 63;
/// Shortest time between two asks for a fresh map.
const REFRESH_EVERY: Duration = Duration::from_secs(1);

/// Gets a fresh map from the authority; `None` when it cannot be had.
pub type Refresh = Rc<dyn Fn() -> Pin<Box<dyn Future<Output = Option<VolumeMap>>>>>;

/// Gets a volume's limits from the authority; `None` when they cannot be had.
pub type AskLimits = Rc<dyn Fn() -> Pin<Box<dyn Future<Output = Option<VolumeLimits>>>>>;

/// How a volume is used.
#[derive(Clone, Default)]
pub struct Options {
    /// Who this is, for the nodes' logs.
    pub name: String,
    /// When to give up on a request; `None`: never, it waits until the volume can do it.
    pub io_limit: Option<Duration>,
    /// Asked when no member of a segment knows further, at most once a second.
    pub refresh: Option<Refresh>,
    /// Asked now and then for the volume's limits, so that a change reaches whoever has it attached.
    pub limits: Option<AskLimits>,
}

impl std::fmt::Debug for Options {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        write!(f, "Options({:?}, {:?})", self.name, self.io_limit)
    }
}

/// What happened so far.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default)]
pub struct Stats {
    /// Requests decided.
    pub requests: u64,
    /// Requests that failed.
    pub failed: u64,
    /// Longest time from asking to deciding; what an application saw as a pause.
    pub longest_wait: Duration,
    /// Connections with nodes that were lost.
    pub connections_lost: u64,
}

/// Who waits for a request, and what is held until it is decided, even when nobody waits any more.
struct Waiter {
    answer: oneshot::Sender<Result<Answer, Failure>>,
    since: Instant,
    _room: (OwnedSemaphorePermit, OwnedSemaphorePermit),
    _held: Option<Rc<Held>>,
}

struct Slot {
    session: Segment,
    waiters: HashMap<Token, Waiter>,
}

/// One volume's client, as its tasks share it.
struct Shared {
    cluster: ClusterId,
    volume: VolumeId,
    size: u64,
    layout: Layout,
    generation: Generation,
    options: Options,
    started: Instant,
    segments: Vec<RefCell<Slot>>,
    nodes: RefCell<BTreeMap<NodeId, Rc<Node>>>,
    peeks: RefCell<HashMap<RequestId, (NodeId, oneshot::Sender<Outcome>)>>,
    locks: Rc<BlockLocks>,
    /// Room for requests and for blocks on their way (I15).
    requests: Arc<Semaphore>,
    blocks: Arc<Semaphore>,
    pace: Pace,
    tokens: Cell<u64>,
    undecided: Cell<usize>,
    busy: Notify,
    refreshing: Cell<bool>,
    fenced: Latch,
    over: Latch,
    stats: Cell<Stats>,
}

impl Shared {
    fn open(map: VolumeMap, options: Options) -> Rc<Self> {
        let seed = getrandom::u64().unwrap_or_else(|_| u64::from(std::process::id()));
        let mut random = Random::new(seed);
        let session = first_session();
        let slot = |config| {
            let session = Segment::new(config, map.generation, session, Random::new(random.next_u64()));
            RefCell::new(Slot { session, waiters: HashMap::new() })
        };
        let shared = Rc::new(Self {
            cluster: map.cluster,
            volume: map.volume,
            size: map.size,
            layout: map.layout,
            generation: map.generation,
            options,
            started: Instant::now(),
            segments: map.segments.into_iter().map(slot).collect(),
            nodes: RefCell::default(),
            peeks: RefCell::default(),
            locks: Rc::default(),
            requests: Arc::new(Semaphore::new(CLIENT_REQUESTS_MAX)),
            blocks: Arc::new(Semaphore::new(CLIENT_BYTES_MAX / 4096)),
            pace: Pace::new(map.limits),
            tokens: Cell::new(0),
            undecided: Cell::new(0),
            busy: Notify::new(),
            refreshing: Cell::new(false),
            fenced: Latch::default(),
            over: Latch::default(),
            stats: Cell::default(),
        });
        shared.know_nodes(map.nodes);
        spawn_local(tick(Rc::clone(&shared)));
        if let Some(ask) = shared.options.limits.clone() {
            spawn_local(pace::follow(Rc::clone(&shared), ask, random));
        }
        shared
    }

    fn now(&self) -> Time {
        Time(u64::try_from(self.started.elapsed().as_nanos()).unwrap_or(u64::MAX))
    }

    fn next_token(&self) -> u64 {
        self.tokens.set(self.tokens.get() + 1);
        self.tokens.get()
    }

    async fn ended(&self) {
        self.over.wait().await;
    }

    fn close(&self) {
        self.over.set();
        for slot in &self.segments {
            // Whoever waits is told by the loss of his waiter.
            slot.borrow_mut().waiters.clear();
        }
        for node in self.nodes.borrow().values() {
            node.hang_up();
        }
    }

    fn know_nodes(self: &Rc<Self>, addresses: Vec<Address>) {
        let mut nodes = self.nodes.borrow_mut();
        for address in addresses {
            if let Some(node) = nodes.get(&address.node) {
                node.set_address(address);
                continue;
            }
            let id = address.node;
            let node = Rc::new(Node::new(address));
            let random = Random::new(u64::from(id.0) ^ getrandom::u64().unwrap_or_default());
            spawn_local(nodes::keep(Rc::clone(self), Rc::clone(&node), random));
            nodes.insert(id, node);
        }
    }

    /// Puts a request into its segment's session; the answer comes by the receiver.
    async fn start(
        self: &Rc<Self>,
        index: u32,
        op: Op,
        held: Option<Rc<Held>>,
    ) -> Result<oneshot::Receiver<Result<Answer, Failure>>, ExportError> {
        let closed = || ExportError::Io("the volume is closed".into());
        let blocks = match &op {
            Op::Write(change @ Change::Write { .. }) => change.range().1,
            Op::Read { count, .. } => *count,
            _ => 0,
        };
        let since = Instant::now();
        let one = Arc::clone(&self.requests).acquire_owned().await.map_err(|_| closed())?;
        let all = Arc::clone(&self.blocks).acquire_many_owned(blocks).await.map_err(|_| closed())?;
        self.pass(u64::from(blocks) * BLOCK_SIZE).await;
        if self.over.is_set() {
            return Err(closed());
        }
        let Some(slot) = self.segments.get(index as usize) else {
            return Err(ExportError::Io(format!("the map has no segment {index}")));
        };
        let (answer, receiver) = oneshot::channel();
        let token = self.next_token();
        slot.borrow_mut().waiters.insert(token, Waiter { answer, since, _room: (one, all), _held: held });
        self.undecided.set(self.undecided.get() + 1);
        self.busy.notify_one();
        let limit = self.options.io_limit.map(|limit| Span(u64::try_from(limit.as_nanos()).unwrap_or(u64::MAX)));
        let due = limit.map(|limit| self.now() + limit);
        self.feed(index as usize, Input::Submit { token, op, due });
        Ok(receiver)
    }

    fn feed(self: &Rc<Self>, index: usize, input: Input) {
        let mut effects = Vec::new();
        self.segments[index].borrow_mut().session.handle(self.now(), input, &mut effects);
        for effect in effects {
            self.run(index, effect);
        }
    }

    fn feed_all(self: &Rc<Self>, input: &Input) {
        if let Input::Down(_) = input {
            self.count(|stats| stats.connections_lost += 1);
        }
        for index in 0..self.segments.len() {
            self.feed(index, input.clone());
        }
    }

    fn run(self: &Rc<Self>, index: usize, effect: Effect) {
        match effect {
            Effect::Connect(node) => match self.node(node) {
                Some(node) => node.want(),
                None => self.refresh(),
            },
            Effect::Send { to, request } => {
                if let Some(node) = self.node(to) {
                    node.send(request);
                }
            }
            Effect::Done { token, result } => self.done(index, token, result),
            Effect::Fenced(generation) => self.fence(generation),
            Effect::Refresh => self.refresh(),
        }
    }

    fn node(&self, id: NodeId) -> Option<Rc<Node>> {
        self.nodes.borrow().get(&id).cloned()
    }

    fn done(&self, index: usize, token: Token, result: Result<Answer, Failure>) {
        self.undecided.set(self.undecided.get() - 1);
        let Some(waiter) = self.segments[index].borrow_mut().waiters.remove(&token) else { return };
        let waited = waiter.since.elapsed();
        self.count(|stats| {
            stats.requests += 1;
            stats.failed += u64::from(result.is_err());
            stats.longest_wait = stats.longest_wait.max(waited);
        });
        // Nobody may wait any more; then the answer is nobody's.
        let _ = waiter.answer.send(result);
    }

    fn count(&self, change: impl FnOnce(&mut Stats)) {
        let mut stats = self.stats.get();
        change(&mut stats);
        self.stats.set(stats);
    }

    fn fence(self: &Rc<Self>, generation: Generation) {
        if !self.fenced.is_set() {
            self.fenced.set();
            tracing::warn!(%generation, "fenced: a newer attachment of this volume exists");
            self.feed_all(&Input::Fenced(generation));
        }
    }

    fn on_reply(self: &Rc<Self>, from: NodeId, reply: Reply) {
        let index = reply.segment.index as usize;
        if reply.segment.volume != self.volume || index >= self.segments.len() {
            tracing::warn!(node = %from, segment = %reply.segment, "a reply about somebody else's segment");
            return;
        }
        if reply.request.0 & PEEKS == 0 {
            self.feed(index, Input::Reply { from, reply });
        } else if let Some((_, answer)) = self.peeks.borrow_mut().remove(&reply.request) {
            let _ = answer.send(reply.outcome);
        }
    }

    /// Asks the authority for a fresh map, unless that is under way or was done just now.
    fn refresh(self: &Rc<Self>) {
        let Some(refresh) = self.options.refresh.clone() else { return };
        if self.refreshing.replace(true) {
            return;
        }
        let shared = Rc::clone(self);
        spawn_local(async move {
            let work = async {
                if let Some(map) = refresh().await {
                    shared.learn(map);
                }
                sleep(REFRESH_EVERY).await;
            };
            tokio::select! {
                () = shared.ended() => {}
                () = work => {}
            }
            shared.refreshing.set(false);
        });
    }

    fn learn(self: &Rc<Self>, map: VolumeMap) {
        if map.volume != self.volume || map.cluster != self.cluster {
            return;
        }
        self.know_nodes(map.nodes);
        if map.generation > self.generation {
            self.fence(map.generation);
        }
        for config in map.segments {
            let index = config.segment.index as usize;
            if index < self.segments.len() {
                self.feed(index, Input::Learned(config));
            }
        }
    }

    /// A request outside of every session.
    fn unordered(&self, segment: SegmentId, request: RequestId, op: Op) -> Request {
        Request { segment, epoch: Epoch(0), generation: self.generation, session: Session(0), request, op }
    }
}

/// Lets time pass in every segment that has something undecided.
async fn tick(shared: Rc<Shared>) {
    let ticking = async {
        loop {
            if shared.undecided.get() == 0 {
                shared.busy.notified().await;
            }
            sleep(Duration::from_nanos(TICK.0)).await;
            for index in 0..shared.segments.len() {
                if !shared.segments[index].borrow().session.is_idle() {
                    shared.feed(index, Input::Tick);
                }
            }
        }
    };
    tokio::select! {
        () = shared.ended() => {}
        () = ticking => {}
    }
}

/// Sessions of one attachment grow, also when its client starts again: they begin at the clock.
fn first_session() -> Session {
    let since = std::time::SystemTime::now().duration_since(std::time::UNIX_EPOCH).unwrap_or_default();
    Session(u64::try_from(since.as_millis()).unwrap_or_default())
}

const _: () = assert!(CLIENT_BYTES_MAX as u64 >= engine_core::limits::REQUEST_BYTES_MAX && BLOCK_SIZE == 4096);
