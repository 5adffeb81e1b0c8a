//! An NBD server of our own, over anything that can be exported.
//!
//! A connection is first talked into a session ([`negotiate`]) and then served ([`transmit`]): each request is checked by
//! a pure function ([`request`]), run by itself, and its outcome encoded and written ([`reply`]). All bytes and numbers
//! of the protocol are in [`proto`]. What a stranger can make this side hold is bounded: connections, time and bytes of
//! a handshake, requests and bytes in flight of each connection (I15).

mod address;
mod negotiate;
mod proto;
mod reply;
mod request;
#[cfg(test)]
mod tests;
mod transmit;

use std::io;
use std::rc::Rc;
use std::sync::Arc;
use std::time::Duration;

use engine_core::limits::{NBD_CONNECTIONS_MAX, NBD_FAREWELL, NBD_HANDSHAKE, NBD_SECTOR};
use tokio::io::{AsyncRead, AsyncWrite, BufReader};
use tokio::net::TcpStream;
use tokio::sync::{Semaphore, watch};
use tokio::task::JoinSet;
use tracing::Instrument as _;

use super::Export;
use address::Socket;
pub use address::{Address, AddressError, Listener};
use negotiate::{HandshakeError, Offer};
use transmit::End;

/// Bytes read from a socket at a time, for headers and small payloads.
const READ_BUFFER: usize = 256 * 1024;
/// Pause after the system refused to accept a connection (for want of file descriptors, mostly).
const ACCEPT_PAUSE: Duration = Duration::from_millis(100);

/// Bytes of an export that can be reached in whole sectors.
fn served_size<E: Export>(export: &E) -> u64 {
    export.size() / NBD_SECTOR * NBD_SECTOR
}

/// Serves one export to any number of clients.
#[derive(Debug)]
pub struct NbdServer<E> {
    export: Rc<E>,
    name: Rc<str>,
    /// How long a handshake may take.
    handshake: Duration,
    slots: Arc<Semaphore>,
    stop: watch::Receiver<bool>,
}

impl<E: Export> NbdServer<E> {
    /// Serves `export` under `name` on every listener until `shutdown` is ready; then what is in flight is finished (for
    /// a bounded time) and every connection closed. Must run inside a `LocalSet`.
    pub async fn serve(listeners: Vec<Listener>, export: Rc<E>, name: &str, shutdown: impl Future<Output = ()>) {
        let (stopper, stop) = watch::channel(false);
        let slots = Arc::new(Semaphore::new(NBD_CONNECTIONS_MAX));
        let handshake = Duration::from_nanos(NBD_HANDSHAKE.0);
        let server = Rc::new(Self { export, name: name.into(), handshake, slots: Arc::clone(&slots), stop });
        let mut accepting = JoinSet::new();
        for listener in listeners {
            accepting.spawn_local(Rc::clone(&server).accept(listener));
        }
        shutdown.await;
        accepting.shutdown().await;
        stopper.send_replace(true);
        let all = u32::try_from(NBD_CONNECTIONS_MAX).expect("a small number");
        // A connection gives its slot back when it is closed; twice the time each of them may take is enough.
        let _ = tokio::time::timeout(Duration::from_nanos(2 * NBD_FAREWELL.0), slots.acquire_many(all)).await;
    }

    /// Accepts connections for as long as it is let.
    async fn accept(self: Rc<Self>, listener: Listener) {
        loop {
            let accepted = match &listener.socket {
                Socket::Tcp(socket) => socket.accept().await.map(|(stream, peer)| {
                    let span = tracing::info_span!("nbd", %peer);
                    prepare(&stream);
                    let (reader, writer) = stream.into_split();
                    self.admit(reader, writer, span);
                }),
                Socket::Unix(socket) => socket.accept().await.map(|(stream, _)| {
                    let (reader, writer) = stream.into_split();
                    self.admit(reader, writer, tracing::info_span!("nbd", peer = "unix"));
                }),
            };
            if let Err(error) = accepted {
                tracing::warn!(%error, "cannot accept an NBD connection");
                tokio::time::sleep(ACCEPT_PAUSE).await;
            }
        }
    }

    /// Serves a connection if there is room for one more, else closes it.
    fn admit<R, W>(self: &Rc<Self>, reader: R, writer: W, span: tracing::Span)
    where
        R: AsyncRead + Unpin + 'static,
        W: AsyncWrite + Unpin + 'static,
    {
        let Ok(slot) = Arc::clone(&self.slots).try_acquire_owned() else {
            span.in_scope(|| tracing::warn!(max = NBD_CONNECTIONS_MAX, "closed: too many NBD connections"));
            return;
        };
        let server = Rc::clone(self);
        let serve = async move {
            server.connection(reader, writer).await;
            drop(slot);
        };
        tokio::task::spawn_local(serve.instrument(span));
    }

    /// Serves a connection to its end and logs how it ended.
    async fn connection<R, W>(&self, reader: R, mut writer: W)
    where
        R: AsyncRead + Unpin + 'static,
        W: AsyncWrite + Unpin + 'static,
    {
        let mut reader = BufReader::with_capacity(READ_BUFFER, reader);
        let mut stop = self.stop.clone();
        let offer = Offer { name: &self.name, size: served_size(&*self.export) };
        let deadline = self.handshake;
        let handshake = tokio::time::timeout(deadline, negotiate::negotiate(&mut reader, &mut writer, offer));
        let handshake = tokio::select! {
            biased;
            _ = stop.wait_for(|stop| *stop) => return,
            done = handshake => done,
        };
        let session = match handshake {
            Ok(Ok(session)) => session,
            Ok(Err(HandshakeError::Aborted)) => return tracing::debug!("closed: handshake aborted by the client"),
            Ok(Err(HandshakeError::Io(error))) if error.kind() == io::ErrorKind::UnexpectedEof => {
                return tracing::debug!("closed: the client left in the handshake");
            }
            Ok(Err(reason)) => return tracing::warn!(%reason, "closed in the handshake"),
            Err(_) => return tracing::warn!(?deadline, "closed: handshake not finished in time"),
        };
        tracing::debug!(?session, "connected");
        match transmit::transmit(reader, writer, Rc::clone(&self.export), session, stop).await {
            reason @ (End::BadMagic(_) | End::Broken) => tracing::warn!(%reason, "closed"),
            reason => tracing::debug!(%reason, "closed"),
        }
    }
}

/// Small replies go out at once, and a client's host that vanished is noticed in the end.
fn prepare(stream: &TcpStream) {
    let keepalive =
        socket2::TcpKeepalive::new().with_time(Duration::from_secs(60)).with_interval(Duration::from_secs(20));
    let set = stream.set_nodelay(true).and_then(|()| socket2::SockRef::from(stream).set_tcp_keepalive(&keepalive));
    if let Err(error) = set {
        tracing::debug!(%error, "socket options not set");
    }
}
