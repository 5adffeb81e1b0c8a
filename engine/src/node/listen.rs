//! Who may come in: the two listening addresses, the handshake, and how many of whom.
//!
//! Connections are accepted on the node's own thread and dealt to the shards' threads in turns; the handshake runs
//! where the connection will live. Strangers, clients and peers are counted apart, so that one crowd never shuts out
//! another (I15).

use std::net::SocketAddr;
use std::rc::Rc;
use std::sync::Arc;
use std::sync::atomic::{AtomicUsize, Ordering};
use std::time::Duration;

use engine_core::limits::{CLIENT_CONNECTIONS_MAX, PEER_CONNECTIONS_MAX, STRANGERS_MAX};
use engine_core::message::Lane;
use tokio::net::{TcpListener, TcpStream};
use tokio::sync::mpsc;

use super::ears::Ears;
use super::harbour::Harbour;
use super::{clients, peers};
use crate::wire::{self, Hello, Network, Who};

/// A connection nobody has talked on yet.
#[derive(Debug)]
pub(crate) struct Arrival {
    stream: std::net::TcpStream,
    network: Network,
    from: SocketAddr,
    /// Counts it until its handshake is done.
    stranger: Seat,
}

/// Connections of a node, by kind.
#[derive(Debug, Clone, Default)]
pub(crate) struct Doors {
    strangers: Arc<AtomicUsize>,
    clients: Arc<AtomicUsize>,
    peers: Arc<AtomicUsize>,
    /// Which connection of a peer is listened to.
    pub(crate) ears: Ears,
}

/// One place of a bounded number; free again when dropped.
#[derive(Debug)]
pub(crate) struct Seat(Arc<AtomicUsize>);

impl Seat {
    fn take(count: &Arc<AtomicUsize>, max: usize) -> Option<Self> {
        let seat = Self(Arc::clone(count));
        // The seat is dropped, and with it the count restored, when there was none left.
        (count.fetch_add(1, Ordering::Relaxed) < max).then_some(seat)
    }
}

impl Drop for Seat {
    fn drop(&mut self) {
        self.0.fetch_sub(1, Ordering::Relaxed);
    }
}

/// Accepts for ever and deals connections out to the shards' threads.
pub(crate) async fn listen(
    listener: TcpListener,
    network: Network,
    doors: Doors,
    threads: Rc<Vec<mpsc::Sender<Arrival>>>,
) {
    /// Pause when the process can open no more descriptors.
    const PAUSE: Duration = Duration::from_millis(50);
    let mut turn = 0;
    loop {
        let (stream, from) = match listener.accept().await {
            Ok(accepted) => accepted,
            Err(error) => {
                tracing::warn!(%error, "cannot accept a connection");
                tokio::time::sleep(PAUSE).await;
                continue;
            }
        };
        let Some(stranger) = Seat::take(&doors.strangers, STRANGERS_MAX) else {
            tracing::warn!(%from, "a connection is closed: {STRANGERS_MAX} have not said who they are yet");
            continue;
        };
        let Ok(stream) = stream.into_std() else { continue };
        turn = (turn + 1) % threads.len();
        if threads[turn].try_send(Arrival { stream, network, from, stranger }).is_err() {
            tracing::warn!(%from, "a connection is closed: its thread has too many new ones waiting");
        }
    }
}

/// Shakes hands with an arrival and serves it until it goes.
pub(crate) async fn receive(harbour: Rc<Harbour>, arrival: Arrival) {
    let Arrival { stream, network, from, stranger } = arrival;
    let stream = match TcpStream::from_std(stream) {
        Ok(stream) => stream,
        Err(error) => return tracing::warn!(%from, %error, "a connection cannot be used"),
    };
    let mut seat = None;
    let check = |hello: &Hello| {
        seat = Some(admit(&harbour, network, hello)?);
        Ok(())
    };
    let accepted = wire::accept_if(stream, &harbour.local, check).await;
    drop(stranger);
    let (hello, link) = match accepted {
        Ok(accepted) => accepted,
        Err(error) => return tracing::info!(%from, %error, "a connection was closed in its handshake"),
    };
    let ended = match hello.who {
        Who::Node { id, boot, lane, .. } => {
            tracing::debug!(peer = %id, %from, ?lane, "a peer has connected");
            peers::receive(&harbour, id, boot, lane, link).await
        }
        Who::Client { name } => {
            tracing::info!(client = %name, %from, "a client has connected");
            clients::serve(&harbour, link).await
        }
    };
    drop(seat);
    tracing::info!(%from, reason = %ended, "a connection has ended");
}

/// A seat for whoever said this, or why there is none.
fn admit(harbour: &Harbour, network: Network, hello: &Hello) -> Result<Seat, String> {
    match &hello.who {
        Who::Node { id, .. } if Some(*id) == harbour.local.node => Err(format!("this is {id} itself")),
        Who::Node { lane: Lane::Bulk, .. } if network == Network::Replication => {
            Err("copies run over the primary network only".into())
        }
        Who::Node { .. } => Seat::take(&harbour.doors.peers, PEER_CONNECTIONS_MAX)
            .ok_or_else(|| format!("{PEER_CONNECTIONS_MAX} connections of peers are open already")),
        Who::Client { .. } if network == Network::Replication => {
            Err("clients connect to the address on the primary network".into())
        }
        Who::Client { .. } => Seat::take(&harbour.doors.clients, CLIENT_CONNECTIONS_MAX)
            .ok_or_else(|| format!("{CLIENT_CONNECTIONS_MAX} clients are connected already")),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn seats_are_bounded_and_come_back() {
        let count = Arc::new(AtomicUsize::new(0));
        let first = Seat::take(&count, 1);
        assert!(first.is_some());
        assert!(Seat::take(&count, 1).is_none());
        drop(first);
        assert!(Seat::take(&count, 1).is_some());
    }
}
