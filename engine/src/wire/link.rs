//! A connection after its handshake: messages in, messages out.
//!
//! In: a fixed buffer takes whatever arrives; frames are decoded out of it, and a payload goes straight into its own
//! block-aligned buffer, from which the device can write. Out: messages are encoded by whoever sends them and queued;
//! one task per link gathers everything queued into vectored writes, payloads uncopied. A peer that stops reading,
//! stops in the middle of a frame or vanishes ends the link within a stated time (I15).

use std::collections::VecDeque;
use std::io::IoSlice;
use std::sync::{Arc, Mutex, MutexGuard, OnceLock, PoisonError};
use std::time::Duration;

use bytes::{Buf, Bytes};
use engine_core::limits::{
    FRAME_BODY_MAX, FRAME_DEADLINE, HELLO_BODY_MAX, OUTBOX_BYTES_MAX, OUTBOX_MAX, SOCKET_SILENCE_MAX, WRITE_STALL_MAX,
};
use socket2::{SockRef, TcpKeepalive};
use tokio::io::{AsyncRead, AsyncReadExt, AsyncWrite, AsyncWriteExt, DuplexStream};
use tokio::net::TcpStream;
use tokio::sync::Notify;
use tokio::task::AbortHandle;
use tokio::time::{Instant, timeout, timeout_at};

use super::codec::frame::{HEADER_LEN, Header, Kind};
use super::codec::{Frame, decode, encode};
use super::{Malformed, Message, Unsendable, WireError};
use crate::device::buffer::AlignedBuf;

/// Bytes of a link's receive buffer. A larger body makes it grow for that one frame.
const BUFFER_LEN: usize = 128 * 1024;
/// Pieces handed to the kernel in one vectored write.
const PIECES_MAX: usize = 128;

type Reading = Box<dyn AsyncRead + Send + Unpin>;
type Writing = Box<dyn AsyncWrite + Send + Unpin>;

/// A byte stream a link can run over.
pub trait Stream: Send + Unpin + 'static {
    /// Its two directions.
    fn halves(self) -> (Reading, Writing);

    /// Sets what a link needs of its socket: no delay, and an end when the other host vanishes.
    fn tune(&self) -> std::io::Result<()> {
        Ok(())
    }
}

impl Stream for TcpStream {
    fn halves(self) -> (Reading, Writing) {
        let (reading, writing) = self.into_split();
        (Box::new(reading), Box::new(writing))
    }

    fn tune(&self) -> std::io::Result<()> {
        let silence = Duration::from_nanos(SOCKET_SILENCE_MAX.0);
        let socket = SockRef::from(self);
        socket.set_tcp_nodelay(true)?;
        let probes = TcpKeepalive::new().with_time(silence / 2).with_interval(silence / 10).with_retries(5);
        socket.set_tcp_keepalive(&probes)?;
        socket.set_tcp_user_timeout(Some(silence))
    }
}

impl Stream for DuplexStream {
    fn halves(self) -> (Reading, Writing) {
        let (reading, writing) = tokio::io::split(self);
        (Box::new(reading), Box::new(writing))
    }
}

/// A stream during its handshake.
pub(super) struct Halves {
    pub(super) inbound: Inbound,
    pub(super) writer: Writing,
}

impl Halves {
    pub(super) fn new(stream: impl Stream) -> Self {
        let (reader, writer) = stream.halves();
        Self { inbound: Inbound::new(reader), writer }
    }

    pub(super) fn into_link(self) -> Link {
        let shared = Arc::clone(&self.inbound.shared);
        let task = tokio::spawn(write_queued(self.writer, Arc::clone(&shared)));
        // Set once: a link is made once.
        let _ = shared.writer.set(task.abort_handle());
        Link { inbound: self.inbound, outbox: Outbox { sender: Arc::new(Sender(shared)) } }
    }

    pub(super) async fn finish(mut self) {
        let _ = self.writer.shutdown().await;
    }
}

/// A connection whose handshake is done. Must be made and used inside a tokio runtime.
#[derive(Debug)]
pub struct Link {
    inbound: Inbound,
    outbox: Outbox,
}

impl Link {
    /// Its two directions. They may be used on different threads.
    #[must_use]
    pub fn split(self) -> (Inbound, Outbox) {
        (self.inbound, self.outbox)
    }
}

/// What both directions know of each other.
#[derive(Default)]
struct Shared {
    queue: Mutex<Queue>,
    /// Wakes the writing task.
    work: Notify,
    /// Wakes whoever waits in [`Inbound::next`].
    over: Notify,
    writer: OnceLock<AbortHandle>,
}

#[derive(Default)]
struct Queue {
    frames: VecDeque<Frame>,
    /// Messages and bytes not yet taken by the socket, those being written included.
    messages: usize,
    bytes: usize,
    /// No more is taken; what is queued is still written.
    closing: bool,
    /// Nothing is written any more.
    dead: bool,
}

impl Shared {
    fn queue(&self) -> MutexGuard<'_, Queue> {
        // A panic while the lock was held leaves a queue that is still a queue.
        self.queue.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// Everything queued; `None` when nothing is and nothing more will be.
    fn take(&self) -> Option<VecDeque<Frame>> {
        let mut queue = self.queue();
        let over = queue.dead || (queue.closing && queue.frames.is_empty());
        (!over).then(|| std::mem::take(&mut queue.frames))
    }

    /// Ends the link now; what is queued is dropped.
    fn kill(&self) {
        let mut queue = self.queue();
        queue.dead = true;
        queue.frames.clear();
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
    /// Queues a message behind all before it. Never waits.
    pub fn try_send(&self, message: &Message) -> Result<(), SendError> {
        let frame = match message {
            Message::Peer(message) => encode(Kind::Peer, message),
            Message::Peers(messages) => encode(Kind::Peers, messages),
            Message::Request(message) => encode(Kind::Request, message),
            Message::Reply(message) => encode(Kind::Reply, message),
            Message::ToAuthority(message) => encode(Kind::ToAuthority, message),
            Message::FromAuthority(message) => encode(Kind::FromAuthority, message),
        }?;
        let len = frame.len();
        let mut queue = self.sender.0.queue();
        if queue.closing || queue.dead {
            return Err(SendError::Closed);
        }
        if queue.messages >= OUTBOX_MAX || queue.bytes + len > OUTBOX_BYTES_MAX {
            return Err(SendError::Full);
        }
        queue.messages += 1;
        queue.bytes += len;
        queue.frames.push_back(frame);
        drop(queue);
        self.sender.0.work.notify_one();
        Ok(())
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

/// The writing task of one link.
async fn write_queued(mut writer: Writing, shared: Arc<Shared>) {
    let mut pieces = VecDeque::new();
    loop {
        let Some(frames) = shared.take() else { break };
        if frames.is_empty() {
            shared.work.notified().await;
            continue;
        }
        let (messages, bytes) = (frames.len(), frames.iter().map(Frame::len).sum::<usize>());
        for frame in frames {
            pieces.push_back(frame.head);
            pieces.extend(frame.payload);
        }
        if let Err(error) = write_pieces(&mut writer, &mut pieces).await {
            tracing::debug!(%error, "a connection ends while writing");
            break;
        }
        let mut queue = shared.queue();
        queue.messages -= messages;
        queue.bytes -= bytes;
    }
    let _ = timeout(Duration::from_nanos(WRITE_STALL_MAX.0), writer.shutdown()).await;
    let mut queue = shared.queue();
    queue.dead = true;
    queue.frames.clear();
    drop(queue);
    shared.over.notify_one();
}

pub(super) async fn write_frame(writer: &mut Writing, frame: Frame) -> Result<(), WireError> {
    let mut pieces: VecDeque<Bytes> = frame.payload.into();
    pieces.push_front(frame.head);
    write_pieces(writer, &mut pieces).await
}

async fn write_pieces(writer: &mut Writing, pieces: &mut VecDeque<Bytes>) -> Result<(), WireError> {
    while !pieces.is_empty() {
        let mut slices = [IoSlice::new(&[]); PIECES_MAX];
        let mut used = 0;
        for (slice, piece) in slices.iter_mut().zip(pieces.iter()) {
            *slice = IoSlice::new(piece);
            used += 1;
        }
        let stall = Duration::from_nanos(WRITE_STALL_MAX.0);
        let mut written = match timeout(stall, writer.write_vectored(&slices[..used])).await {
            Ok(Ok(0)) => return Err(WireError::Closed),
            Ok(written) => written?,
            Err(_) => return Err(WireError::Slow("the other side takes nothing any more")),
        };
        while let Some(piece) = pieces.front_mut() {
            if written < piece.len() {
                piece.advance(written);
                break;
            }
            written -= piece.len();
            pieces.pop_front();
        }
    }
    Ok(())
}

/// A payload on its way in.
struct Arriving {
    data: AlignedBuf,
    filled: usize,
    /// Bytes of it that came through the small-frame buffer and still lie there.
    buffered: usize,
}

/// The receiving direction. Dropping it ends the link.
pub struct Inbound {
    reader: Reading,
    /// Received and not yet decoded: `buffer[start..end]`. Header and body of the frame being received stay at `start`.
    buffer: Vec<u8>,
    start: usize,
    end: usize,
    payload: Option<Arriving>,
    /// When the frame being received has to be whole.
    due: Option<Instant>,
    body_max: usize,
    failed: bool,
    shared: Arc<Shared>,
}

impl std::fmt::Debug for Inbound {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        write!(f, "Inbound({} bytes buffered)", self.end - self.start)
    }
}

impl Drop for Inbound {
    fn drop(&mut self) {
        self.shared.kill();
    }
}

impl Inbound {
    fn new(reader: Reading) -> Self {
        Self {
            reader,
            buffer: vec![0; HEADER_LEN + HELLO_BODY_MAX],
            start: 0,
            end: 0,
            payload: None,
            due: None,
            body_max: HELLO_BODY_MAX,
            failed: false,
            shared: Arc::default(),
        }
    }

    /// The next message. An error ends the link, and is the only one it reports for its reason. Cancel-safe.
    pub async fn next(&mut self) -> Result<Message, WireError> {
        if self.failed {
            return Err(WireError::Closed);
        }
        self.body_max = FRAME_BODY_MAX;
        let received = self.receive().await;
        let message = received.and_then(|header| self.message(header));
        if message.is_err() {
            self.failed = true;
            self.shared.kill();
        }
        message
    }

    fn message(&mut self, header: Header) -> Result<Message, WireError> {
        let (payload, buffered) = match self.payload.take() {
            Some(arriving) => (Bytes::from_owner(arriving.data), arriving.buffered),
            None => (Bytes::new(), 0),
        };
        let body = &self.buffer[self.start + HEADER_LEN..][..header.body_len];
        let message = match header.kind {
            Kind::Peer => Message::Peer(decode(body, payload)?),
            Kind::Peers => Message::Peers(decode(body, payload)?),
            Kind::Request => Message::Request(decode(body, payload)?),
            Kind::Reply => Message::Reply(decode(body, payload)?),
            Kind::ToAuthority => Message::ToAuthority(decode(body, payload)?),
            Kind::FromAuthority => Message::FromAuthority(decode(body, payload)?),
            Kind::Hello | Kind::Welcome | Kind::Reject => {
                return Err(Malformed("a handshake frame after the handshake").into());
            }
        };
        self.consume(HEADER_LEN + header.body_len + buffered);
        Ok(message)
    }

    /// The next frame, which must be one of a handshake: small and without payload.
    pub(super) async fn handshake_frame(&mut self) -> Result<(Kind, Vec<u8>), WireError> {
        let header = self.receive().await?;
        let body = self.buffer[self.start + HEADER_LEN..][..header.body_len].to_vec();
        self.consume(HEADER_LEN + header.body_len);
        Ok((header.kind, body))
    }

    /// Waits until a frame is whole: header and body at `start`, its payload in `payload`. Keeps what it has when
    /// cancelled.
    async fn receive(&mut self) -> Result<Header, WireError> {
        loop {
            if let Some(header) = self.header()? {
                let have = self.end - self.start;
                let need = HEADER_LEN + header.body_len;
                if have < need {
                    self.make_room(need);
                } else {
                    self.check_body(&header)?;
                    if self.payload_whole(&header) {
                        self.due = None;
                        return Ok(header);
                    }
                }
            } else {
                self.make_room(HEADER_LEN);
            }
            self.read_some().await?;
        }
    }

    fn header(&self) -> Result<Option<Header>, WireError> {
        let Some(bytes) = self.buffer[self.start..self.end].first_chunk::<HEADER_LEN>() else {
            // Garbage is known by its first bytes; nobody has to wait for a whole header of it.
            let got = (self.end - self.start).min(super::MAGIC.len());
            if self.buffer[self.start..][..got] != super::MAGIC[..got] {
                return Err(Malformed("not a frame of this protocol").into());
            }
            return Ok(None);
        };
        let header = Header::from_bytes(bytes)?;
        if header.body_len > self.body_max || (self.body_max == HELLO_BODY_MAX && header.payload_len > 0) {
            return Err(Malformed("a handshake longer than allowed").into());
        }
        Ok(Some(header))
    }

    fn check_body(&self, header: &Header) -> Result<(), WireError> {
        if self.payload.is_some() {
            return Ok(()); // checked when the payload began
        }
        let body = &self.buffer[self.start + HEADER_LEN..][..header.body_len];
        if crc32fast::hash(body) == header.body_crc {
            Ok(())
        } else {
            Err(Malformed("the body's checksum does not match").into())
        }
    }

    /// Begins the payload, if the frame has one, with what is buffered of it. Whether it is whole.
    fn payload_whole(&mut self, header: &Header) -> bool {
        if header.payload_len == 0 {
            return true;
        }
        let behind = self.start + HEADER_LEN + header.body_len;
        let payload = self.payload.get_or_insert_with(|| {
            let mut data = AlignedBuf::zeroed(header.payload_len);
            let buffered = (self.end - behind).min(header.payload_len);
            data[..buffered].copy_from_slice(&self.buffer[behind..behind + buffered]);
            Arriving { data, filled: buffered, buffered }
        });
        payload.filled == header.payload_len
    }

    fn consume(&mut self, len: usize) {
        self.start += len;
        if self.start == self.end {
            (self.start, self.end) = (0, 0);
            if self.buffer.len() > BUFFER_LEN {
                self.buffer = vec![0; BUFFER_LEN];
            }
        }
    }

    /// Makes sure a frame of `need` bytes fits behind `start`.
    fn make_room(&mut self, need: usize) {
        let target = if self.body_max == HELLO_BODY_MAX { need } else { need.max(BUFFER_LEN) };
        // Moving is cheap: less than one frame is there.
        if self.buffer.len() - self.end < target / 4 || self.start + need > self.buffer.len() {
            self.buffer.copy_within(self.start..self.end, 0);
            (self.start, self.end) = (0, self.end - self.start);
            if self.buffer.len() < target {
                self.buffer.resize(target, 0);
            }
        }
    }

    async fn read_some(&mut self) -> Result<(), WireError> {
        let partial = self.end > self.start;
        let into = match &mut self.payload {
            Some(payload) => &mut payload.data[payload.filled..],
            None => &mut self.buffer[self.end..],
        };
        let read = async {
            tokio::select! {
                biased;
                read = self.reader.read(into) => read.map_err(WireError::from),
                () = self.shared.over.notified() => Err(WireError::Closed),
            }
        };
        let read = if partial {
            let due = *self.due.get_or_insert_with(|| Instant::now() + Duration::from_nanos(FRAME_DEADLINE.0));
            timeout_at(due, read).await.unwrap_or(Err(WireError::Slow("a frame was not whole in time")))?
        } else {
            read.await?
        };
        if read == 0 {
            return Err(WireError::Closed);
        }
        match &mut self.payload {
            Some(payload) => payload.filled += read,
            None => self.end += read,
        }
        Ok(())
    }
}
