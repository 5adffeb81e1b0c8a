//! A connection after its handshake: messages in, messages out.
//!
//! In: a fixed buffer takes whatever arrives; frames are decoded out of it. A long payload goes straight into its own
//! block-aligned buffer, from which the device can write; a short one is copied there. Out: see `outbox`. A peer that stops reading, stops in the
//! middle of a frame or vanishes ends the link within a stated time (I15).

use std::sync::Arc;
use std::time::Duration;

use bytes::Bytes;
use engine_core::limits::{FRAME_BODY_MAX, FRAME_DEADLINE, HELLO_BODY_MAX, SOCKET_SILENCE_MAX};
use socket2::{SockRef, TcpKeepalive};
use tokio::io::{AsyncRead, AsyncReadExt, DuplexStream};
use tokio::net::TcpStream;
use tokio::time::{Instant, timeout_at};

use super::codec::decode;
use super::codec::frame::{HEADER_LEN, Header, Kind};
use super::outbox::{Outbox, Shared, Writing};
use super::{Malformed, Message, WireError};
use crate::device::buffer::AlignedBuf;

/// Bytes of a link's receive buffer. A larger body makes it grow for that one frame.
const BUFFER_LEN: usize = 256 * 1024;
/// Longest payload that is received together with whatever comes around it, and copied out: copying it costs less than
/// a system call of its own.
const GATHERED_MAX: usize = 32 * 1024;

type Reading = Box<dyn AsyncRead + Send + Unpin>;

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
        (Box::new(reading), Writing::Socket(Arc::new(writing)))
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
        (Box::new(reading), Writing::Other(Box::new(writing)))
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
        shared.start(self.writer);
        Link { inbound: self.inbound, outbox: Outbox::new(shared) }
    }

    pub(super) async fn finish(mut self) {
        self.writer.shutdown().await;
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
        if self.payload.is_none() && header.payload_len <= GATHERED_MAX && self.end - behind < header.payload_len {
            self.make_room(HEADER_LEN + header.body_len + header.payload_len);
            return false;
        }
        let payload = self.payload.get_or_insert_with(|| {
            let mut data = AlignedBuf::to_fill(header.payload_len);
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
