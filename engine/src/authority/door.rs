//! One port for nodes and HTTP. The first byte tells: the wire's magic begins with one that no HTTP request can.
//!
//! Every connection counts against a bound, HTTP against a smaller one of its own, and every connection that does not
//! get on within a deadline is closed: a stranger costs a socket for a few seconds, never the nodes' places (R21).

use std::net::SocketAddr;
use std::pin::Pin;
use std::sync::Arc;
use std::task::{Context, Poll};
use std::time::Duration;

use engine_core::authority::io::SessionRef;
use engine_core::limits::{
    AUTHORITY_CONNECTIONS_MAX, HTTP_CONNECTIONS_MAX, HTTP_DEADLINE, NODE_SILENCE, SNIFF_DEADLINE,
};
use tokio::io::{AsyncRead, AsyncWrite, ReadBuf};
use tokio::net::{TcpListener, TcpStream};
use tokio::sync::{OwnedSemaphorePermit, Semaphore, mpsc};
use tokio::time::{Instant, Sleep, sleep, timeout};

use super::lanes::Lanes;
use super::{http, session};
use crate::wire::{Local, MAGIC};

/// How long to leave the listener alone when the system has no socket to give.
const ACCEPT_PAUSE: Duration = Duration::from_millis(50);

/// Takes connections until it is dropped.
pub(super) async fn keep(listener: TcpListener, local: Local, events: Lanes) {
    let Ok(address) = listener.local_addr() else { return };
    let places = Arc::new(Semaphore::new(AUTHORITY_CONNECTIONS_MAX));
    let http_places = Arc::new(Semaphore::new(HTTP_CONNECTIONS_MAX));
    let (to_http, from_door) = mpsc::channel(HTTP_CONNECTIONS_MAX);
    let server = tokio::spawn(http::serve(HttpDoor { inbox: from_door, address }, http::Desk::new(events.clone())));
    let _server = AbortOnDrop(server);
    let mut last = 0;
    loop {
        let (stream, from) = match listener.accept().await {
            Ok(accepted) => accepted,
            Err(error) => {
                tracing::warn!(%error, "no connection could be taken");
                sleep(ACCEPT_PAUSE).await;
                continue;
            }
        };
        let Ok(place) = Arc::clone(&places).try_acquire_owned() else {
            tracing::warn!(%from, "closed: {AUTHORITY_CONNECTIONS_MAX} connections are open");
            continue;
        };
        last += 1;
        let caller = Caller { stream, from, place, session: SessionRef(last) };
        tokio::spawn(caller.show_in(local.clone(), events.clone(), to_http.clone(), Arc::clone(&http_places)));
    }
}

struct AbortOnDrop(tokio::task::JoinHandle<()>);

impl Drop for AbortOnDrop {
    fn drop(&mut self) {
        self.0.abort();
    }
}

/// Somebody at the door.
struct Caller {
    stream: TcpStream,
    from: SocketAddr,
    place: OwnedSemaphorePermit,
    session: SessionRef,
}

impl Caller {
    async fn show_in(
        self,
        local: Local,
        events: Lanes,
        to_http: mpsc::Sender<HttpStream>,
        http_places: Arc<Semaphore>,
    ) {
        let Self { stream, from, place, session } = self;
        let mut first = [0];
        let peeked = timeout(Duration::from_nanos(SNIFF_DEADLINE.0), stream.peek(&mut first)).await;
        match peeked {
            Err(_) => tracing::info!(%from, "closed: said nothing"),
            Ok(Err(error)) => tracing::info!(%from, %error, "closed"),
            Ok(Ok(0)) => {}
            Ok(Ok(_)) if first[0] == MAGIC[0] => {
                let ended = session::serve(stream, &local, session, &events).await;
                tracing::info!(%from, "a node's connection ended: {}", ended.map_or_else(|e| e.to_string(), |()| "stopping".into()));
                drop(place);
            }
            Ok(Ok(_)) => match http_places.try_acquire_owned() {
                Ok(http_place) => {
                    let stream = HttpStream::new(stream, from, [place, http_place]);
                    // As many places in the queue as permits: it is never full. Closed means stopping.
                    let _ = to_http.try_send(stream);
                }
                Err(_) => tracing::warn!(%from, "closed: {HTTP_CONNECTIONS_MAX} HTTP connections are open"),
            },
        }
    }
}

/// HTTP connections, as the HTTP server takes them.
pub(super) struct HttpDoor {
    inbox: mpsc::Receiver<HttpStream>,
    address: SocketAddr,
}

impl axum::serve::Listener for HttpDoor {
    type Io = HttpStream;
    type Addr = SocketAddr;

    async fn accept(&mut self) -> (HttpStream, SocketAddr) {
        match self.inbox.recv().await {
            Some(stream) => {
                let from = stream.from;
                (stream, from)
            }
            // The door is closed; whoever runs this server ends it.
            None => std::future::pending().await,
        }
    }

    fn local_addr(&self) -> std::io::Result<SocketAddr> {
        Ok(self.address)
    }
}

/// An HTTP connection that ends when a request or its answer does not get on.
pub(super) struct HttpStream {
    stream: TcpStream,
    from: SocketAddr,
    /// Since the last byte of an answer: how long the next one may take.
    deadline: Pin<Box<Sleep>>,
    _places: [OwnedSemaphorePermit; 2],
}

impl HttpStream {
    fn new(stream: TcpStream, from: SocketAddr, places: [OwnedSemaphorePermit; 2]) -> Self {
        Self { stream, from, deadline: Box::pin(sleep(Self::patience())), _places: places }
    }

    /// A little longer than a call may take, so that its answer still finds the connection.
    const fn patience() -> Duration {
        Duration::from_nanos(HTTP_DEADLINE.0 + NODE_SILENCE.0)
    }

    fn check(&mut self, context: &mut Context<'_>) -> Result<(), std::io::Error> {
        match self.deadline.as_mut().poll(context) {
            Poll::Ready(()) => Err(std::io::ErrorKind::TimedOut.into()),
            Poll::Pending => Ok(()),
        }
    }

    fn got_on(&mut self) {
        self.deadline.as_mut().reset(Instant::now() + Self::patience());
    }
}

impl AsyncRead for HttpStream {
    fn poll_read(
        mut self: Pin<&mut Self>,
        context: &mut Context<'_>,
        into: &mut ReadBuf<'_>,
    ) -> Poll<std::io::Result<()>> {
        self.check(context)?;
        Pin::new(&mut self.stream).poll_read(context, into)
    }
}

impl AsyncWrite for HttpStream {
    fn poll_write(mut self: Pin<&mut Self>, context: &mut Context<'_>, bytes: &[u8]) -> Poll<std::io::Result<usize>> {
        self.check(context)?;
        let written = Pin::new(&mut self.stream).poll_write(context, bytes);
        if matches!(written, Poll::Ready(Ok(_))) {
            self.got_on();
        }
        written
    }

    fn poll_flush(mut self: Pin<&mut Self>, context: &mut Context<'_>) -> Poll<std::io::Result<()>> {
        Pin::new(&mut self.stream).poll_flush(context)
    }

    fn poll_shutdown(mut self: Pin<&mut Self>, context: &mut Context<'_>) -> Poll<std::io::Result<()>> {
        Pin::new(&mut self.stream).poll_shutdown(context)
    }
}
