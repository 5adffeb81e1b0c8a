//! Replies: how an outcome looks to this client, and the one task that writes them to its socket.
//!
//! A reply keeps its request's place in the connection's budget until its bytes are with the kernel, so a client that
//! does not read its replies stops being read from. Replies go out in the order they become ready.

use std::borrow::Cow;
use std::io;

use bytes::Bytes;
use engine_core::limits::NBD_REQUESTS_MAX;
use tokio::io::{AsyncWrite, AsyncWriteExt};
use tokio::sync::{OwnedSemaphorePermit, mpsc};

use super::proto::{self, Errno, RequestHeader};
use super::request::Session;

/// Replies with less data are copied together into one write.
const GATHER_BELOW: usize = 32 * 1024;
/// A write is started when that much was gathered.
const GATHER_MAX: usize = 256 * 1024;

/// How a request ended.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(super) enum Outcome {
    Done,
    Data(Bytes),
    /// Runs from the request's offset on: length, and whether it holds data.
    Status(Vec<(u32, bool)>),
    Failed(Errno, Cow<'static, str>),
}

/// A place in the connection's budget: one request, and its bytes.
#[derive(Debug)]
pub(super) struct Place {
    pub(super) _request: OwnedSemaphorePermit,
    pub(super) _bytes: OwnedSemaphorePermit,
}

/// A reply's bytes.
#[derive(Debug)]
pub(super) struct Reply {
    head: Vec<u8>,
    data: Bytes,
    _place: Option<Place>,
}

/// Encodes an outcome the way the session wants it.
pub(super) fn encode(session: Session, header: &RequestHeader, outcome: Outcome, place: Option<Place>) -> Reply {
    let RequestHeader { cookie, offset, len, .. } = *header;
    let read = header.command == proto::COMMAND_READ;
    let mut head = Vec::with_capacity(32);
    let mut data = Bytes::new();
    match outcome {
        Outcome::Failed(errno, why) if session.structured => proto::put_error(&mut head, cookie, errno, &why),
        Outcome::Failed(errno, _) => proto::put_simple(&mut head, cookie, Some(errno)),
        Outcome::Status(runs) => proto::put_status(&mut head, cookie, &runs),
        Outcome::Data(bytes) if !session.structured => {
            proto::put_simple(&mut head, cookie, None);
            data = bytes;
        }
        // A hole is one chunk too, so "do not fragment" does not mind.
        Outcome::Data(bytes) if is_zero(&bytes) => proto::put_hole(&mut head, cookie, offset, len),
        Outcome::Data(bytes) => {
            proto::put_data(&mut head, cookie, offset, bytes.len());
            data = bytes;
        }
        Outcome::Done if session.structured && read => proto::put_none(&mut head, cookie),
        Outcome::Done => proto::put_simple(&mut head, cookie, None),
    }
    Reply { head, data, _place: place }
}

/// Whether there are only zeros; usually decided by the first few bytes.
fn is_zero(bytes: &[u8]) -> bool {
    bytes.chunks(64).all(|chunk| chunk.iter().fold(0, |all, byte| all | byte) == 0)
}

/// Writes replies until nobody can send another one, then says goodbye.
pub(super) async fn write_all<W: AsyncWrite + Unpin>(
    mut replies: mpsc::Receiver<Reply>,
    mut writer: W,
) -> io::Result<()> {
    let mut batch = Vec::with_capacity(NBD_REQUESTS_MAX);
    let mut gathered = Vec::new();
    while replies.recv_many(&mut batch, NBD_REQUESTS_MAX).await > 0 {
        for reply in batch.drain(..) {
            gathered.extend_from_slice(&reply.head);
            if reply.data.len() < GATHER_BELOW {
                gathered.extend_from_slice(&reply.data);
            }
            if reply.data.len() >= GATHER_BELOW || gathered.len() >= GATHER_MAX {
                writer.write_all(&gathered).await?;
                gathered.clear();
            }
            if reply.data.len() >= GATHER_BELOW {
                writer.write_all(&reply.data).await?;
            }
        }
        writer.write_all(&gathered).await?;
        gathered.clear();
    }
    writer.shutdown().await
}
