//! The transmission phase: requests in, each run by itself, replies out as they become ready.
//!
//! One task reads, one writes, and each request in between has its own. What is in flight is bounded twice, by number
//! and by bytes; at either bound the connection is not read from until a reply has gone out. However the connection
//! ends, what was started is run to its end, and its replies are written if the client still takes them: a `DISC` is
//! answered by closing only after that.

use std::borrow::Cow;
use std::io;
use std::rc::Rc;
use std::sync::Arc;
use std::time::Duration;

use bytes::{Bytes, BytesMut};
use engine_core::limits::{BLOCK_SIZE, NBD_BYTES_MAX, NBD_EXTENTS_MAX, NBD_FAREWELL, NBD_REQUESTS_MAX};
use tokio::io::{AsyncRead, AsyncReadExt, AsyncWrite};
use tokio::sync::{Semaphore, mpsc, watch};
use tokio::task::JoinSet;

use super::negotiate::discard;
use super::proto::{self, Errno, RequestHeader};
use super::reply::{self, Outcome, Place, Reply};
use super::request::{self, Command, Refusal, Session};
use crate::gateway::{Export, ExportError};

/// Why a connection is no longer read from.
#[derive(Debug, thiserror::Error)]
pub(super) enum End {
    /// The client asked for it.
    #[error("the client disconnected")]
    Disconnect,
    /// The server stops.
    #[error("the server stops")]
    Stop,
    /// The socket ended or failed.
    #[error("the connection was cut: {0}")]
    Cut(#[from] io::Error),
    /// A request of it made us panic; its answer will never come.
    #[error("a request was not run to its end")]
    Broken,
    /// The client lost its place in the stream.
    #[error(transparent)]
    BadMagic(#[from] proto::BadMagic),
}

/// A connection's state while it is read from.
struct Transmission<E> {
    export: Rc<E>,
    size: u64,
    session: Session,
    requests: Arc<Semaphore>,
    /// In blocks, which a permit's `u32` can count.
    blocks: Arc<Semaphore>,
    replies: mpsc::Sender<Reply>,
    running: JoinSet<()>,
}

/// Serves a negotiated connection to its end, and says why it ended.
pub(super) async fn transmit<E, R, W>(
    mut reader: R,
    writer: W,
    export: Rc<E>,
    session: Session,
    mut stop: watch::Receiver<bool>,
) -> End
where
    E: Export,
    R: AsyncRead + Unpin,
    W: AsyncWrite + Unpin + 'static,
{
    let (replies, outbox) = mpsc::channel(NBD_REQUESTS_MAX);
    let mut writing = JoinSet::new();
    writing.spawn_local(reply::write_all(outbox, writer));
    let mut transmission = Transmission {
        size: super::served_size(&*export),
        export,
        session,
        requests: Arc::new(Semaphore::new(NBD_REQUESTS_MAX)),
        blocks: Arc::new(Semaphore::new(blocks(NBD_BYTES_MAX) as usize)),
        replies,
        running: JoinSet::new(),
    };
    let end = tokio::select! {
        biased;
        _ = stop.wait_for(|stop| *stop) => End::Stop,
        Err(end) = transmission.read(&mut reader) => end,
    };
    let farewell = async {
        drop(transmission.replies);
        while transmission.running.join_next().await.is_some() {}
        // Everything is done; only a client that does not take its replies can be waited for now.
        let _ = tokio::time::timeout(wait(), writing.join_next()).await;
    };
    tokio::select! {
        () = farewell => {}
        () = async { let _ = stop.wait_for(|stop| *stop).await; tokio::time::sleep(wait()).await } => {
            tracing::warn!("requests still undecided are abandoned: the server stops");
        }
    }
    end
}

fn wait() -> Duration {
    Duration::from_nanos(NBD_FAREWELL.0)
}

/// Whole blocks that hold that many bytes.
fn blocks(bytes: u64) -> u32 {
    u32::try_from(bytes.div_ceil(BLOCK_SIZE)).expect("a request's bytes fit into a u32")
}

impl<E: Export> Transmission<E> {
    /// Reads requests and starts them, until there is a reason not to.
    async fn read<R: AsyncRead + Unpin>(&mut self, reader: &mut R) -> Result<(), End> {
        loop {
            let header = self.header(reader).await?;
            match request::check(&header, self.session, self.size) {
                Ok(Command::Disconnect) => return Err(End::Disconnect),
                Ok(command) => self.start(reader, header, command).await?,
                Err(refusal) => self.refuse(reader, header, refusal).await?,
            }
        }
    }

    /// Reads a request's header, and meanwhile sees off the requests that are done.
    async fn header<R: AsyncRead + Unpin>(&mut self, reader: &mut R) -> Result<RequestHeader, End> {
        let mut bytes = [0; proto::REQUEST_BYTES];
        let mut reading = std::pin::pin!(reader.read_exact(&mut bytes));
        loop {
            tokio::select! {
                Some(done) = self.running.join_next() => done.map_err(|_| End::Broken)?,
                read = &mut reading => {
                    read?;
                    return Ok(RequestHeader::decode(&bytes)?);
                }
            }
        }
    }

    /// Waits for room for one more request of that many bytes.
    async fn place(&self, bytes: u64) -> Place {
        let closed = "never closed";
        let request = Arc::clone(&self.requests).acquire_owned().await.expect(closed);
        let bytes = Arc::clone(&self.blocks).acquire_many_owned(blocks(bytes)).await.expect(closed);
        Place { _request: request, _bytes: bytes }
    }

    async fn start<R>(&mut self, reader: &mut R, header: RequestHeader, command: Command) -> Result<(), End>
    where
        R: AsyncRead + Unpin,
    {
        let bytes = match command {
            Command::Read | Command::Write => u64::from(header.len),
            Command::Status { .. } => 8 * NBD_EXTENTS_MAX as u64,
            Command::Flush | Command::Zero { .. } | Command::Cache | Command::Disconnect => 0,
        };
        let place = self.place(bytes).await;
        let payload = read_payload(reader, header.payload()).await?;
        let (export, session, replies) = (Rc::clone(&self.export), self.session, self.replies.clone());
        self.running.spawn_local(async move {
            let outcome = run(&*export, &header, command, payload).await;
            // Nobody writes replies any more when the socket failed; then nobody waits for this one.
            let _ = replies.send(reply::encode(session, &header, outcome, Some(place))).await;
        });
        Ok(())
    }

    async fn refuse<R>(&mut self, reader: &mut R, header: RequestHeader, refusal: Refusal) -> Result<(), End>
    where
        R: AsyncRead + Unpin,
    {
        tracing::debug!(?header, reason = refusal.reason, "request refused");
        let place = self.place(0).await;
        discard(reader, header.payload()).await?;
        let outcome = Outcome::Failed(refusal.errno, Cow::Borrowed(refusal.reason));
        let _ = self.replies.send(reply::encode(self.session, &header, outcome, Some(place))).await;
        Ok(())
    }
}

/// Reads a payload into a buffer of its size, without clearing it first.
async fn read_payload<R: AsyncRead + Unpin>(reader: &mut R, len: u64) -> io::Result<Bytes> {
    let capacity = usize::try_from(len).map_err(|_| io::ErrorKind::OutOfMemory)?;
    let mut payload = BytesMut::with_capacity(capacity);
    let mut rest = reader.take(len);
    while payload.len() < capacity {
        if rest.read_buf(&mut payload).await? == 0 {
            return Err(io::ErrorKind::UnexpectedEof.into());
        }
    }
    Ok(payload.freeze())
}

/// Runs a checked request.
async fn run<E: Export>(export: &E, header: &RequestHeader, command: Command, payload: Bytes) -> Outcome {
    if export.is_fenced() {
        return failed(ExportError::Fenced);
    }
    let (offset, len) = (header.offset, u64::from(header.len));
    let done = match command {
        Command::Read => return export.read(offset, len).await.map_or_else(failed, |data| whole(data, len)),
        Command::Status { one } => {
            return export.allocation(offset, len).await.map_or_else(failed, |runs| status(&runs, len, one));
        }
        Command::Write => export.write(offset, payload).await,
        Command::Zero { punch } => export.zero(offset, len, punch).await,
        // A change is durable when it is answered, and what could be read ahead is as near as the rest.
        Command::Flush | Command::Cache | Command::Disconnect => Ok(()),
    };
    done.map_or_else(failed, |()| Outcome::Done)
}

/// What was read, if it is all that was asked for: a wrong length would put the client out of step.
fn whole(data: Bytes, len: u64) -> Outcome {
    if data.len() as u64 == len {
        return Outcome::Data(data);
    }
    failed(ExportError::Io(format!("read {} bytes instead of {len}", data.len())))
}

/// Puts runs of equal state together and cuts the list to the range and to what a reply holds.
fn status(runs: &[(u64, bool)], len: u64, one: bool) -> Outcome {
    let max = if one { 1 } else { NBD_EXTENTS_MAX };
    let mut merged: Vec<(u32, bool)> = Vec::new();
    let mut left = len;
    for &(run, data) in runs {
        let run = run.min(left);
        left -= run;
        let run = u32::try_from(run).expect("cut to the request's length");
        let full = merged.len() == max;
        match merged.last_mut() {
            _ if run == 0 => {}
            Some((last, state)) if *state == data => *last += run,
            _ if full => break,
            _ => merged.push((run, data)),
        }
    }
    if merged.is_empty() {
        // The protocol wants at least one; "holds data" is always safe to say.
        merged.push((u32::try_from(len).expect("a request's length"), true));
    }
    Outcome::Status(merged)
}

fn failed(error: ExportError) -> Outcome {
    match error {
        ExportError::Fenced => Outcome::Failed(Errno::Shutdown, error.to_string().into()),
        ExportError::NoSpace => Outcome::Failed(Errno::NoSpace, error.to_string().into()),
        ExportError::TimedOut => Outcome::Failed(Errno::Io, error.to_string().into()),
        ExportError::Io(why) => Outcome::Failed(Errno::Io, why.into()),
    }
}
