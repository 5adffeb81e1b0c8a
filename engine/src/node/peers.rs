//! Connections to other nodes: one live and one bulk per peer that a shard wants, each side dialling for what it
//! sends; and what peers send here.
//!
//! A live connection that breaks is dialled again at once: "nobody listens there" is the quickest sign that the
//! peer's process is gone (I8: a hint, no more). After that attempts are spread by decorrelated jitter (R5). Live
//! prefers the primary network and falls back to the replication network; bulk never does (R8).

use std::cell::{Cell, RefCell};
use std::collections::{BTreeMap, BTreeSet};
use std::rc::Rc;

use engine_core::ids::{BootId, NodeId, SegmentId};
use engine_core::limits::{DIAL_WAIT, PRIMARY_AGAIN, REDIAL_MAX, REDIAL_MIN, REFUSAL_WAIT};
use engine_core::message::{Lane, NodeAddress, PeerMessage};
use engine_core::remirror::backoff::Backoff;
use tokio::net::TcpStream;
use tokio::sync::{Notify, mpsc};
use tokio::time::timeout;

use super::bulk;
use super::clock::{duration, seed};
use super::harbour::Harbour;
use super::mail::{Mail, PeerControl};
use super::routes::{Pilot, Way};
use crate::wire::{self, Hello, Inbound, Link, Message, Network, Outbox, Who, WireError};

/// Reads what a peer sends over a connection it has made, until that ends or it makes another; gives the reason.
pub(crate) async fn receive(harbour: &Harbour, from: NodeId, boot: BootId, lane: Lane, link: Link) -> WireError {
    let listening = harbour.doors.ears.listen(from, lane).await;
    let keeper = harbour.keeper(from);
    // The keeper lives as long as its thread; without it the node is stopping.
    if lane == Lane::Live {
        let _ = keeper.send(PeerControl::Incoming { node: from, boot, up: true }).await;
    }
    let (mut inbound, _kept_open) = link.split();
    let reason = loop {
        let Some(said) = listening.unless_later(inbound.next()).await else { break WireError::Closed };
        let mail = match said {
            // Nothing that was damaged on its way is stored; what a new connection lacks is sent again.
            Ok(Message::Peer(message)) => match wire::check_peer(&message) {
                Ok(()) => heard_by(&harbour.pilot, message.segment)
                    .map(|shard| (shard, Mail::Peer { from, message }))
                    .into_iter()
                    .collect(),
                Err(damaged) => break damaged.into(),
            },
            Ok(Message::Peers(messages)) => match messages.iter().try_for_each(wire::check_peer) {
                Ok(()) => by_shard(harbour, from, messages),
                Err(damaged) => break damaged.into(),
            },
            Ok(_) => break WireError::Unwelcome("a peer sends messages for peers and nothing else".into()),
            Err(error) => break error,
        };
        // Waits while the shard is busy: then this socket is not read either.
        let mut closed = false;
        for (shard, mail) in mail {
            let sent = listening.unless_later(harbour.shards[shard].work.send(mail)).await;
            closed |= !matches!(sent, Some(Ok(())));
        }
        if closed {
            break WireError::Closed;
        }
    };
    if lane == Lane::Live {
        let _ = keeper.send(PeerControl::Incoming { node: from, boot, up: false }).await;
    }
    reason
}

/// Who hears what a peer says about this segment; nobody where it may be on a device that is missing: no copy begins
/// beside one that may come back.
fn heard_by(pilot: &Pilot, segment: SegmentId) -> Option<usize> {
    match pilot.way(segment) {
        Way::There(shard) | Way::Nowhere(shard) => Some(usize::from(shard)),
        Way::NotKnown(_) => None,
    }
}

/// One mail for each shard; the order of each shard's messages stays.
fn by_shard(harbour: &Harbour, from: NodeId, messages: Vec<PeerMessage>) -> Vec<(usize, Mail)> {
    let mut parts: Vec<Vec<PeerMessage>> = harbour.shards.iter().map(|_| Vec::new()).collect();
    for message in messages {
        if let Some(shard) = heard_by(&harbour.pilot, message.segment) {
            parts[shard].push(message);
        }
    }
    let filled = parts.into_iter().enumerate().filter(|(_, part)| !part.is_empty());
    filled.map(|(shard, messages)| (shard, Mail::Peers { from, messages })).collect()
}

/// What the keeper tells the task of one peer.
#[derive(Debug, Default)]
struct News {
    wake: Notify,
    stop: Cell<bool>,
    /// The peer's boot, by its own latest incoming connection.
    boot: Cell<Option<BootId>>,
    /// Its incoming connection broke: look whether it is still there.
    doubt: Cell<bool>,
}

struct Kept {
    wanting: BTreeSet<u16>,
    incoming: usize,
    news: Rc<News>,
}

/// Keeps connections to the peers of this thread's share.
pub(crate) async fn keep_all(harbour: Rc<Harbour>, mut control: mpsc::Receiver<PeerControl>) {
    let peers: Rc<RefCell<BTreeMap<NodeId, Kept>>> = Rc::default();
    while let Some(control) = control.recv().await {
        let (PeerControl::Want { node, .. } | PeerControl::Incoming { node, .. }) = control;
        let mut peers = peers.borrow_mut();
        let kept = peers.entry(node).or_insert_with(|| {
            let news = Rc::new(News::default());
            tokio::task::spawn_local(keep(Rc::clone(&harbour), node, Rc::clone(&news)));
            Kept { wanting: BTreeSet::new(), incoming: 0, news }
        });
        match control {
            PeerControl::Want { shard, wanted: true, .. } => drop(kept.wanting.insert(shard)),
            PeerControl::Want { shard, wanted: false, .. } => drop(kept.wanting.remove(&shard)),
            PeerControl::Incoming { boot, up: true, .. } => {
                kept.incoming += 1;
                kept.news.boot.set(Some(boot));
            }
            PeerControl::Incoming { up: false, .. } => {
                kept.incoming = kept.incoming.saturating_sub(1);
                kept.news.doubt.set(true);
            }
        }
        if kept.wanting.is_empty() && kept.incoming == 0 {
            kept.news.stop.set(true);
        }
        kept.news.wake.notify_one();
        if kept.news.stop.get() {
            peers.remove(&node);
        }
    }
}

/// An established live connection.
struct Connected {
    inbound: Inbound,
    outbox: Outbox,
    boot: BootId,
    network: Network,
}

/// Why there is no connection.
#[derive(Debug)]
enum NoWay {
    /// Nobody listens at any of its addresses, though its host answers.
    Refused,
    /// Anything else.
    Other(String),
}

/// How a connection ended.
enum End {
    Broken(String),
    /// The primary network works again.
    Better(Connected),
    Stop,
}

/// Keeps the live connection to one peer until told to stop.
async fn keep(harbour: Rc<Harbour>, node: NodeId, news: Rc<News>) {
    let mut backoff = Backoff::new(REDIAL_MIN, REDIAL_MAX, seed());
    let mut addresses = harbour.addresses.clone();
    let (bulk_box, bulk_end) = mpsc::channel::<PeerMessage>(bulk::WAITING);
    tokio::task::spawn_local(bulk::carry(Rc::clone(&harbour), node, bulk_end));
    let mut next: Option<Connected> = None;
    let mut refusal_told = false;
    while !news.stop.get() {
        news.doubt.set(false);
        let dialled = match next.take() {
            Some(connected) => Ok(connected),
            None => dial_live(&harbour, node).await,
        };
        match dialled {
            Ok(connected) => {
                backoff.reset();
                tracing::info!(peer = %node, network = ?connected.network, "connected");
                let up = || Mail::PeerUp { node, live: connected.outbox.clone(), bulk: bulk_box.clone() };
                tell_all(&harbour, up).await;
                let end = hold(&harbour, node, connected, &news).await;
                if let End::Broken(reason) = &end {
                    tracing::info!(peer = %node, %reason, "the connection is gone");
                }
                let refused;
                (next, refused) = match end {
                    End::Better(connected) => (Some(connected), false),
                    End::Stop => (None, false),
                    // At once: the answer tells whether its process is gone.
                    End::Broken(_) => match timeout(duration(REFUSAL_WAIT), dial_live(&harbour, node)).await {
                        Ok(Ok(connected)) => (Some(connected), false),
                        Ok(Err(NoWay::Refused)) => (None, true),
                        Ok(Err(NoWay::Other(_))) | Err(_) => (None, false),
                    },
                };
                refusal_told = refused;
                tell_all(&harbour, || Mail::PeerDown { node, refused }).await;
                if next.is_some() {
                    continue;
                }
            }
            Err(NoWay::Refused) if !refusal_told => {
                refusal_told = true;
                tell_all(&harbour, || Mail::PeerDown { node, refused: true }).await;
            }
            Err(NoWay::Refused) => {}
            Err(NoWay::Other(reason)) => tracing::debug!(peer = %node, %reason, "cannot connect"),
        }
        tokio::select! {
            () = tokio::time::sleep(duration(backoff.pause())) => {}
            () = news.wake.notified() => {}
            changed = addresses.changed() => if changed.is_err() { return },
        }
    }
}

async fn tell_all(harbour: &Harbour, mail: impl Fn() -> Mail) {
    for shard in &harbour.shards {
        // A shard that is over needs no news.
        let _ = shard.work.send(mail()).await;
    }
}

/// Waits until the connection ends or should.
async fn hold(harbour: &Harbour, node: NodeId, mut connected: Connected, news: &News) -> End {
    let mut again = tokio::time::interval(duration(PRIMARY_AGAIN));
    again.tick().await; // the first is at once
    loop {
        tokio::select! {
            // The other side sends over the connections it makes; here only the end is waited for.
            said = connected.inbound.next() => match said {
                Ok(_) => return End::Broken("the peer sent something over a connection for the other direction".into()),
                Err(error) => return End::Broken(error.to_string()),
            },
            () = news.wake.notified() => {
                if news.stop.get() {
                    return End::Stop;
                }
                if news.boot.get().is_some_and(|boot| boot != connected.boot) {
                    return End::Broken("the peer has restarted".into());
                }
                if news.doubt.take() && all_refuse(harbour, node).await {
                    return End::Broken("nobody listens there any more".into());
                }
            }
            _ = again.tick(), if connected.network == Network::Replication => {
                let Some(address) = address_of(harbour, node) else { continue };
                if let Ok(better) = dial_one(harbour, node, &address.primary, Network::Primary).await {
                    return End::Better(better);
                }
            }
        }
    }
}

fn address_of(harbour: &Harbour, node: NodeId) -> Option<NodeAddress> {
    harbour.addresses.borrow().get(&node).cloned()
}

async fn dial_live(harbour: &Harbour, node: NodeId) -> Result<Connected, NoWay> {
    let address = address_of(harbour, node).ok_or_else(|| NoWay::Other("its address is not known".into()))?;
    let ways = [(&address.primary, Network::Primary), (&address.replication, Network::Replication)];
    let mut refused = 0;
    let mut reason = String::new();
    for (address, network) in ways {
        match dial_one(harbour, node, address, network).await {
            Ok(connected) => return Ok(connected),
            Err(error) if error.is_refused() => refused += 1,
            Err(error) => reason = error.to_string(),
        }
    }
    Err(if refused == ways.len() { NoWay::Refused } else { NoWay::Other(reason) })
}

async fn dial_one(harbour: &Harbour, node: NodeId, address: &str, network: Network) -> Result<Connected, WireError> {
    let hello = hello(harbour, Lane::Live, network)?;
    let (welcome, link) = wire::dial(address, &hello, duration(DIAL_WAIT)).await?;
    if welcome.node != Some(node) {
        return Err(WireError::Unwelcome(format!("{address} is not {node}")));
    }
    let (inbound, outbox) = link.split();
    Ok(Connected { inbound, outbox, boot: welcome.boot, network })
}

/// What this node says to a peer it dials.
pub(super) fn hello(harbour: &Harbour, lane: Lane, network: Network) -> Result<Hello, WireError> {
    let local = &harbour.local;
    let id = local.node.ok_or_else(|| WireError::Unwelcome("not a node".into()))?;
    let who = Who::Node { id, boot: local.boot, shards: local.shards, lane, network };
    Ok(Hello { cluster: local.cluster, who })
}

/// Whether its host says on every address that nobody listens there.
async fn all_refuse(harbour: &Harbour, node: NodeId) -> bool {
    let Some(address) = address_of(harbour, node) else { return false };
    for address in [&address.primary, &address.replication] {
        match timeout(duration(REFUSAL_WAIT), TcpStream::connect(address.as_str())).await {
            Ok(Err(error)) if error.kind() == std::io::ErrorKind::ConnectionRefused => {}
            _ => return false,
        }
    }
    true
}

#[cfg(test)]
mod tests;
