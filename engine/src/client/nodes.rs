//! One connection per node: dialled, kept, dialled again; replies go to their segments.
//!
//! The primary address is tried first, then the one on the replication network. After a failure the pause grows with
//! decorrelated jitter (R5); a segment that needs the node wakes it up early.

use std::cell::{Cell, RefCell};
use std::rc::Rc;
use std::time::Duration;

use engine_core::client::Input;
use engine_core::ids::{NodeId, RequestId, SegmentId};
use engine_core::limits::{REDIAL_MAX, REDIAL_MIN};
use engine_core::message::{Op, Outcome, Request};
use engine_core::random::Random;
use tokio::sync::{Notify, oneshot};
use tokio::time::sleep;

use super::{PEEKS, Shared};
use crate::authority::api::Address;
use crate::wire::{Hello, Inbound, Message, Outbox, Who, WireError, dial};

/// One address is given up after this long, so that the other network gets its turn.
const DIAL_DEADLINE: Duration = Duration::from_millis(700);

/// A node as one client knows it.
pub(super) struct Node {
    id: NodeId,
    address: RefCell<Address>,
    outbox: RefCell<Option<Outbox>>,
    /// Somebody wants a connection soon.
    wanted: Notify,
    /// A connection came or went.
    changed: Notify,
}

impl Node {
    pub(super) fn new(address: Address) -> Self {
        Self {
            id: address.node,
            address: RefCell::new(address),
            outbox: RefCell::default(),
            wanted: Notify::new(),
            changed: Notify::new(),
        }
    }

    pub(super) fn set_address(&self, address: Address) {
        *self.address.borrow_mut() = address;
    }

    pub(super) fn want(&self) {
        self.wanted.notify_one();
    }

    /// Sends, if there is a connection. One that cannot take it is ended: its segments hear of that.
    pub(super) fn send(&self, request: Request) {
        let outbox = self.outbox.borrow();
        let Some(outbox) = outbox.as_ref() else { return };
        if let Err(error) = outbox.try_send(&Message::Request(request)) {
            tracing::warn!(node = %self.id, %error, "the connection is given up");
            outbox.abort();
        }
    }

    pub(super) fn hang_up(&self) {
        if let Some(outbox) = self.outbox.borrow_mut().take() {
            outbox.close();
        }
    }

    async fn connected(&self) {
        loop {
            let changed = self.changed.notified();
            if self.outbox.borrow().is_some() {
                return;
            }
            self.want();
            changed.await;
        }
    }
}

/// Keeps a connection with one node until the client ends.
pub(super) async fn keep(shared: Rc<Shared>, node: Rc<Node>, random: Random) {
    tokio::select! {
        () = shared.ended() => {}
        () = keep_connected(&shared, &node, random) => {}
    }
    node.hang_up();
}

async fn keep_connected(shared: &Rc<Shared>, node: &Node, mut random: Random) {
    let mut pause = REDIAL_MIN.0;
    loop {
        match connect(shared, node).await {
            Ok((inbound, outbox)) => {
                pause = REDIAL_MIN.0;
                let error = use_connection(shared, node, inbound, outbox).await;
                tracing::info!(node = %node.id, %error, "connection lost");
            }
            Err(error) => {
                tracing::debug!(node = %node.id, %error, "not reached");
                pause = random.between(REDIAL_MIN.0, pause.saturating_mul(3)).min(REDIAL_MAX.0);
                let shortest = Duration::from_nanos(REDIAL_MIN.0);
                sleep(shortest).await;
                tokio::select! {
                    () = sleep(Duration::from_nanos(pause).saturating_sub(shortest)) => {}
                    () = node.wanted.notified() => {}
                }
            }
        }
    }
}

async fn connect(shared: &Shared, node: &Node) -> Result<(Inbound, Outbox), WireError> {
    let (primary, replication) = {
        let address = node.address.borrow();
        (address.primary.clone(), address.replication.clone())
    };
    let hello = Hello { cluster: shared.cluster, who: Who::Client { name: shared.options.name.clone() } };
    let mut result = Err(WireError::Closed);
    for address in [primary, replication] {
        result = dial(&address, &hello, DIAL_DEADLINE).await.and_then(|(welcome, link)| {
            if welcome.node == Some(node.id) {
                Ok(link.split())
            } else {
                Err(WireError::Unwelcome(format!("{address} is not {} (any more)", node.id)))
            }
        });
        if result.is_ok() {
            break;
        }
    }
    result
}

async fn use_connection(shared: &Rc<Shared>, node: &Node, mut inbound: Inbound, outbox: Outbox) -> WireError {
    *node.outbox.borrow_mut() = Some(outbox);
    node.changed.notify_waiters();
    shared.feed_all(&Input::Up(node.id));
    let error = loop {
        match inbound.next().await {
            Ok(Message::Reply(reply)) => shared.on_reply(node.id, reply),
            Ok(_) => break WireError::Malformed(crate::wire::Malformed("a node that does not reply but talk")),
            Err(error) => break error,
        }
    };
    *node.outbox.borrow_mut() = None;
    node.changed.notify_waiters();
    shared.peeks.borrow_mut().retain(|_, (of, _)| *of != node.id);
    shared.feed_all(&Input::Down(node.id));
    error
}

/// Reads what one replica holds, whatever its role. One attempt; `None` when the connection was lost.
pub(super) async fn peek(shared: &Shared, node: &Node, segment: SegmentId, op: Op) -> Option<Outcome> {
    node.connected().await;
    let (sender, receiver) = oneshot::channel();
    let request = RequestId(PEEKS | shared.next_token());
    shared.peeks.borrow_mut().insert(request, (node.id, sender));
    let _forget = Forget { shared, request };
    node.send(shared.unordered(segment, request, op));
    receiver.await.ok()
}

/// Nobody waits for this answer any more, however that came.
struct Forget<'a> {
    shared: &'a Shared,
    request: RequestId,
}

impl Drop for Forget<'_> {
    fn drop(&mut self) {
        self.shared.peeks.borrow_mut().remove(&self.request);
    }
}

/// A flag that many can wait for.
#[derive(Default)]
pub(super) struct Latch {
    set: Cell<bool>,
    changed: Notify,
}

impl Latch {
    pub(super) fn set(&self) {
        self.set.set(true);
        self.changed.notify_waiters();
    }

    pub(super) fn is_set(&self) -> bool {
        self.set.get()
    }

    pub(super) async fn wait(&self) {
        loop {
            let changed = self.changed.notified();
            if self.set.get() {
                return;
            }
            changed.await;
        }
    }
}
