//! The sending direction of a link: a bounded queue, and who writes it to the socket.
//!
//! Whoever sends either lets the link's task write what is queued ([`Outbox::try_send`]), which runs behind everything
//! that is ready on its thread and so gathers it, or posts several messages and writes them at once with one system
//! call ([`Outbox::post`], [`Outbox::flush`]). What the socket does not take at once is the task's in any case. One of
//! them writes at a time, and nobody else waits for that.

use std::collections::VecDeque;
use std::io::{self, IoSlice};
use std::net::Shutdown;
use std::sync::{Arc, Mutex, MutexGuard, OnceLock, PoisonError};
use std::time::Duration;

use bytes::{Buf, Bytes};
use engine_core::limits::{OUTBOX_BYTES_MAX, OUTBOX_MAX, WRITE_STALL_MAX};
use socket2::SockRef;
use tokio::io::{AsyncWrite, AsyncWriteExt};
use tokio::net::tcp::OwnedWriteHalf;
use tokio::sync::Notify;
use tokio::task::AbortHandle;
use tokio::time::timeout;

use super::codec::frame::Kind;
use super::codec::{Frame, encode};
use super::{Message, Unsendable, WireError};

/// Pieces handed to the kernel in one vectored write.
const PIECES_MAX: usize = 128;

/// Where a link's bytes go.
pub enum Writing {
    /// A socket, which whoever sends may write to.
    Socket(Arc<OwnedWriteHalf>),
    /// Anything else; only the link's task writes to it.
    Other(Box<dyn AsyncWrite + Send + Unpin>),
}

impl std::fmt::Debug for Writing {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.write_str(if let Self::Socket(_) = self { "Socket" } else { "Other" })
    }
}

impl Writing {
    /// Writes something, as soon as something is taken.
    async fn write(&mut self, slices: &[IoSlice<'_>]) -> io::Result<usize> {
        match self {
            Self::Socket(socket) => loop {
                match socket.try_write_vectored(slices) {
                    Err(error) if error.kind() == io::ErrorKind::WouldBlock => socket.writable().await?,
                    written => return written,
                }
            },
            Self::Other(stream) => stream.write_vectored(slices).await,
        }
    }

    pub(super) async fn shutdown(&mut self) {
        match self {
            Self::Socket(socket) => hang_up(socket),
            // Whoever does not take the end does not hear of it.
            Self::Other(stream) => drop(timeout(stall(), stream.shutdown()).await),
        }
    }
}

fn hang_up(socket: &OwnedWriteHalf) {
    // It may have ended by itself.
    let _ = SockRef::from(socket.as_ref()).shutdown(Shutdown::Write);
}

const fn stall() -> Duration {
    Duration::from_nanos(WRITE_STALL_MAX.0)
}

/// A part of a frame.
struct Piece {
    bytes: Bytes,
    /// A frame ends with it.
    last: bool,
}

/// What both directions know of each other.
#[derive(Default)]
pub(super) struct Shared {
    queue: Mutex<Queue>,
    /// Wakes the writing task.
    work: Notify,
    /// Wakes whoever waits in `Inbound::next`.
    pub(super) over: Notify,
    writer: OnceLock<AbortHandle>,
}

#[derive(Default)]
struct Queue {
    pieces: VecDeque<Piece>,
    /// An empty list that keeps its room, for when `pieces` is being written.
    spare: VecDeque<Piece>,
    /// Messages and bytes not yet taken by the socket, those being written included.
    messages: usize,
    bytes: usize,
    socket: Option<Arc<OwnedWriteHalf>>,
    /// Somebody writes; what comes meanwhile is queued behind it.
    writing: bool,
    /// No more is taken; what is queued is still written.
    closing: bool,
    /// Nothing is written any more.
    dead: bool,
}

impl Queue {
    fn end(&mut self) {
        self.dead = true;
        self.pieces.clear();
        self.socket = None;
    }

    /// Gives what is queued to whoever writes now.
    fn take(&mut self) -> VecDeque<Piece> {
        self.writing = true;
        let spare = std::mem::take(&mut self.spare);
        std::mem::replace(&mut self.pieces, spare)
    }

    /// Takes back what was not written.
    fn put_back(&mut self, mut rest: VecDeque<Piece>, done: Done) {
        self.writing = false;
        self.messages -= done.messages;
        self.bytes -= done.bytes;
        if self.dead {
            return;
        }
        if rest.is_empty() {
            self.spare = rest;
        } else {
            rest.append(&mut self.pieces);
            self.spare = std::mem::replace(&mut self.pieces, rest);
        }
    }
}

/// How much has been written.
#[derive(Default, Clone, Copy)]
struct Done {
    messages: usize,
    bytes: usize,
}

impl Done {
    fn count(&mut self, pieces: &mut VecDeque<Piece>, mut written: usize) {
        self.bytes += written;
        while let Some(piece) = pieces.front_mut() {
            if written < piece.bytes.len() {
                piece.bytes.advance(written);
                return;
            }
            written -= piece.bytes.len();
            self.messages += usize::from(piece.last);
            pieces.pop_front();
        }
    }
}

fn slices<'a>(pieces: &'a VecDeque<Piece>, into: &mut [IoSlice<'a>; PIECES_MAX]) -> usize {
    let used = pieces.len().min(PIECES_MAX);
    for (slice, piece) in into.iter_mut().zip(pieces) {
        *slice = IoSlice::new(&piece.bytes);
    }
    used
}

impl Shared {
    fn queue(&self) -> MutexGuard<'_, Queue> {
        // A panic while the lock was held leaves a queue that is still a queue.
        self.queue.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// Starts the task that writes what nobody else writes.
    pub(super) fn start(self: &Arc<Self>, writing: Writing) {
        if let Writing::Socket(socket) = &writing {
            self.queue().socket = Some(Arc::clone(socket));
        }
        let task = tokio::spawn(write_queued(writing, Arc::clone(self)));
        // Set once: a link is made once.
        let _ = self.writer.set(task.abort_handle());
    }

    /// Ends the link now; what is queued is dropped.
    pub(super) fn kill(&self) {
        let mut queue = self.queue();
        if let Some(socket) = &queue.socket {
            hang_up(socket);
        }
        queue.end();
        drop(queue);
        if let Some(writer) = self.writer.get() {
            writer.abort();
        }
        self.over.notify_one();
    }

    fn close(&self) {
        self.queue().closing = true;
        self.work.notify_one();
    }

    fn push(&self, frame: Frame) -> Result<(), SendError> {
        let len = frame.len();
        let mut queue = self.queue();
        if queue.closing || queue.dead {
            return Err(SendError::Closed);
        }
        if queue.messages >= OUTBOX_MAX || queue.bytes + len > OUTBOX_BYTES_MAX {
            return Err(SendError::Full);
        }
        queue.messages += 1;
        queue.bytes += len;
        let Frame { head, payload } = frame;
        queue.pieces.push_back(Piece { bytes: head, last: payload.is_empty() });
        let behind = payload.len().saturating_sub(1);
        queue.pieces.extend(payload.into_iter().enumerate().map(|(at, bytes)| Piece { bytes, last: at == behind }));
        Ok(())
    }

    /// Writes what the socket takes at once; leaves the rest to the task.
    fn flush(&self) {
        let mut queue = self.queue();
        while !queue.writing && !queue.dead && !queue.pieces.is_empty() {
            let Some(socket) = queue.socket.clone() else { break };
            let mut pieces = queue.take();
            drop(queue);
            let (done, result) = write_now(&socket, &mut pieces);
            queue = self.queue();
            queue.put_back(pieces, done);
            match result {
                Ok(true) => {}
                Ok(false) => break,
                Err(error) => {
                    tracing::debug!(%error, "a connection ends while writing");
                    drop(queue);
                    return self.kill();
                }
            }
        }
        if !queue.writing && (queue.closing || !queue.pieces.is_empty()) {
            self.work.notify_one();
        }
    }
}

/// Whether all of it was taken.
fn write_now(socket: &OwnedWriteHalf, pieces: &mut VecDeque<Piece>) -> (Done, io::Result<bool>) {
    let mut done = Done::default();
    while !pieces.is_empty() {
        let mut into = [IoSlice::new(&[]); PIECES_MAX];
        let used = slices(pieces, &mut into);
        match socket.try_write_vectored(&into[..used]) {
            Ok(0) => return (done, Err(io::ErrorKind::WriteZero.into())),
            Ok(written) => done.count(pieces, written),
            Err(error) if error.kind() == io::ErrorKind::WouldBlock => return (done, Ok(false)),
            Err(error) => return (done, Err(error)),
        }
    }
    (done, Ok(true))
}

/// Why a message was not taken.
#[derive(Debug, Clone, Copy, PartialEq, Eq, thiserror::Error)]
pub enum SendError {
    /// Too much waits for this socket already. Nothing was queued.
    #[error("too much waits for this connection")]
    Full,
    /// The link is over.
    #[error("connection closed")]
    Closed,
    /// No frame can hold it: a mistake of the sender.
    #[error(transparent)]
    Unsendable(#[from] Unsendable),
}

/// The sending direction. Clones share one queue; the link closes when the last is dropped.
#[derive(Clone)]
pub struct Outbox {
    sender: Arc<Sender>,
}

impl std::fmt::Debug for Outbox {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        let queue = self.sender.0.queue();
        write!(f, "Outbox({} messages, {} bytes)", queue.messages, queue.bytes)
    }
}

struct Sender(Arc<Shared>);

impl Drop for Sender {
    fn drop(&mut self) {
        self.0.close();
    }
}

impl Outbox {
    pub(super) fn new(shared: Arc<Shared>) -> Self {
        Self { sender: Arc::new(Sender(shared)) }
    }

    /// Queues a message behind all before it; it is written when the link's task has its turn. Never waits.
    pub fn try_send(&self, message: &Message) -> Result<(), SendError> {
        self.post(message)?;
        self.sender.0.work.notify_one();
        Ok(())
    }

    /// Queues a message behind all before it; it is written with the next [`Outbox::flush`]. Never waits.
    pub fn post(&self, message: &Message) -> Result<(), SendError> {
        let frame = match message {
            Message::Peer(message) => encode(Kind::Peer, message),
            Message::Peers(messages) => encode(Kind::Peers, messages),
            Message::Request(message) => encode(Kind::Request, message),
            Message::Reply(message) => encode(Kind::Reply, message),
            Message::ToAuthority(message) => encode(Kind::ToAuthority, message),
            Message::FromAuthority(message) => encode(Kind::FromAuthority, message),
        }?;
        self.sender.0.push(frame)
    }

    /// Writes what is queued, as far as the socket takes it; the rest follows by itself. Never waits.
    pub fn flush(&self) {
        self.sender.0.flush();
    }

    /// Takes no more messages; what is queued is still written, then the link ends.
    pub fn close(&self) {
        self.sender.0.close();
    }

    /// Ends the link at once; what is queued is lost.
    pub fn abort(&self) {
        self.sender.0.kill();
    }

    /// Whether the link is over or ending.
    #[must_use]
    pub fn is_closed(&self) -> bool {
        let queue = self.sender.0.queue();
        queue.closing || queue.dead
    }

    /// Messages and bytes that wait for the socket.
    #[must_use]
    pub fn queued(&self) -> (usize, usize) {
        let queue = self.sender.0.queue();
        (queue.messages, queue.bytes)
    }
}

/// What the writing task finds when it looks.
enum Next {
    Write(VecDeque<Piece>),
    Wait,
    End,
}

impl Shared {
    fn next(&self) -> Next {
        let mut queue = self.queue();
        if queue.dead || (queue.closing && queue.pieces.is_empty() && !queue.writing) {
            Next::End
        } else if queue.pieces.is_empty() || queue.writing {
            Next::Wait
        } else {
            Next::Write(queue.take())
        }
    }
}

/// The writing task of one link.
async fn write_queued(mut writing: Writing, shared: Arc<Shared>) {
    loop {
        let mut pieces = match shared.next() {
            Next::Write(pieces) => pieces,
            Next::Wait => {
                shared.work.notified().await;
                continue;
            }
            Next::End => break,
        };
        let mut done = Done::default();
        let result = write_pieces(&mut writing, &mut pieces, &mut done).await;
        shared.queue().put_back(pieces, done);
        if let Err(error) = result {
            tracing::debug!(%error, "a connection ends while writing");
            break;
        }
    }
    writing.shutdown().await;
    shared.queue().end();
    shared.over.notify_one();
}

pub(super) async fn write_frame(writing: &mut Writing, frame: Frame) -> Result<(), WireError> {
    let parts = std::iter::once(frame.head).chain(frame.payload);
    let mut pieces = parts.map(|bytes| Piece { bytes, last: false }).collect();
    write_pieces(writing, &mut pieces, &mut Done::default()).await
}

async fn write_pieces(writing: &mut Writing, pieces: &mut VecDeque<Piece>, done: &mut Done) -> Result<(), WireError> {
    while !pieces.is_empty() {
        let mut into = [IoSlice::new(&[]); PIECES_MAX];
        let used = slices(pieces, &mut into);
        match timeout(stall(), writing.write(&into[..used])).await {
            Ok(Ok(0)) => return Err(WireError::Closed),
            Ok(written) => done.count(pieces, written?),
            Err(_) => return Err(WireError::Slow("the other side takes nothing any more")),
        }
    }
    Ok(())
}
