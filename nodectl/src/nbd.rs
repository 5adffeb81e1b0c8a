//! A small NBD client of our own, for measuring and checking through the gateway the way any NBD client sees it.
//!
//! Fixed newstyle, `OPT_GO`, simple replies, any number of requests in flight on one connection. Two tasks: one
//! writes requests in order, one takes replies and wakes whoever waits for their cookie. When either ends, everybody
//! waiting is told; nothing is retried.
//!
//! What it sends and takes in the transmission phase, all big-endian:
//!
//! | bytes | request | simple reply |
//! |---|---|---|
//! | 0..4 | magic `0x25609513` | magic `0x67446698` |
//! | 4..8 | flags, command (`u16` each) | error, 0 is none |
//! | 8..16 | cookie | cookie |
//! | 16..28 | offset (`u64`), length (`u32`) | data of a read from byte 16 on |
//! | 28.. | data of a write | |

use std::cell::RefCell;
use std::collections::HashMap;
use std::io;
use std::rc::Rc;

use bytes::{BufMut, Bytes, BytesMut};
use engine::gateway::{Export, ExportError};
use tokio::io::{AsyncRead, AsyncReadExt, AsyncWrite, AsyncWriteExt};
use tokio::net::{TcpStream, UnixStream};
use tokio::sync::{mpsc, oneshot};

const MAGIC: u64 = 0x4e42_444d_4147_4943;
const OPTION_MAGIC: u64 = 0x4948_4156_454f_5054;
const OPTION_REPLY_MAGIC: u64 = 0x0003_e889_0455_65a9;
const REQUEST_MAGIC: u32 = 0x2560_9513;
const REPLY_MAGIC: u32 = 0x6744_6698;
const OPT_GO: u32 = 7;
const REPLY_ACK: u32 = 1;
const REPLY_INFO: u32 = 3;
const COMMAND_READ: u16 = 0;
const COMMAND_WRITE: u16 = 1;
const COMMAND_DISCONNECT: u16 = 2;
const COMMAND_WRITE_ZEROES: u16 = 6;
const FLAG_NO_HOLE: u16 = 1 << 1;
/// Longest option reply taken; a longer one ends the connection.
const OPTION_REPLY_MAX: u32 = 64 * 1024;
/// Requests waiting to be written; further ones wait with their caller.
const QUEUE: usize = 256;

/// Where an NBD server listens, and the export's name.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(crate) struct Address {
    /// Where.
    pub(crate) place: Place,
    /// Export; empty is the server's default.
    pub(crate) export: String,
}

/// A TCP address or a unix socket.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(crate) enum Place {
    /// `host:port`.
    Tcp(String),
    /// A path.
    Unix(String),
}

impl std::fmt::Display for Address {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        let export = &self.export;
        match &self.place {
            Place::Tcp(host) => write!(f, "nbd://{host}/{export}"),
            Place::Unix(path) => write!(f, "nbd+unix:///{export}?socket={path}"),
        }
    }
}

impl std::str::FromStr for Address {
    type Err = String;

    /// `nbd://HOST[:PORT][/EXPORT]`, `nbd+unix:///[EXPORT]?socket=PATH`, `HOST:PORT`, `unix:PATH`.
    fn from_str(text: &str) -> Result<Self, String> {
        let wrong = || format!("`{text}` is not an NBD address: write HOST:PORT, unix:PATH or an nbd:// URI");
        if let Some(rest) = text.strip_prefix("nbd+unix:///") {
            let (export, path) = rest.split_once("?socket=").ok_or_else(wrong)?;
            return Ok(Self { place: Place::Unix(path.to_owned()), export: export.to_owned() });
        }
        if let Some(path) = text.strip_prefix("unix:").filter(|path| !path.is_empty()) {
            return Ok(Self { place: Place::Unix(path.to_owned()), export: String::new() });
        }
        let uri = text.strip_prefix("nbd://");
        let (host, export) = uri.unwrap_or(text).split_once('/').unwrap_or((uri.unwrap_or(text), ""));
        let has_port = host.rsplit_once(':').is_some_and(|(_, port)| port.parse::<u16>().is_ok());
        let host = match (has_port, uri) {
            (true, _) => host.to_owned(),
            (false, Some(_)) if !host.is_empty() && !host.contains(':') => format!("{host}:10809"),
            _ => return Err(wrong()),
        };
        Ok(Self { place: Place::Tcp(host), export: export.to_owned() })
    }
}

struct Waiting {
    len: u32,
    reply: oneshot::Sender<Result<Bytes, ExportError>>,
}

#[derive(Default)]
struct Pending {
    waiting: HashMap<u64, Waiting>,
    next: u64,
    closed: Option<String>,
}

impl Pending {
    fn close(&mut self, why: &str) {
        self.closed.get_or_insert_with(|| why.to_owned());
        for (_, waiting) in self.waiting.drain() {
            let _ = waiting.reply.send(Err(ExportError::Io(why.to_owned())));
        }
    }
}

/// One connection to an export.
pub(crate) struct Client {
    size: u64,
    requests: mpsc::Sender<Bytes>,
    pending: Rc<RefCell<Pending>>,
}

impl Client {
    /// Connects and negotiates. Needs a `LocalSet`.
    pub(crate) async fn connect(address: &Address) -> io::Result<Self> {
        match &address.place {
            Place::Tcp(host) => {
                let stream = TcpStream::connect(host.as_str()).await?;
                stream.set_nodelay(true)?;
                let (read, write) = stream.into_split();
                Self::begin(read, write, &address.export).await
            }
            Place::Unix(path) => {
                let (read, write) = UnixStream::connect(path).await?.into_split();
                Self::begin(read, write, &address.export).await
            }
        }
    }

    async fn begin<R, W>(mut read: R, mut write: W, export: &str) -> io::Result<Self>
    where
        R: AsyncRead + Unpin + 'static,
        W: AsyncWrite + Unpin + 'static,
    {
        let size = negotiate(&mut read, &mut write, export).await?;
        let pending = Rc::new(RefCell::new(Pending::default()));
        let (requests, queue) = mpsc::channel(QUEUE);
        let (to_writer, to_reader) = (pending.clone(), pending.clone());
        tokio::task::spawn_local(async move {
            if let Err(error) = write_requests(write, queue).await {
                to_writer.borrow_mut().close(&format!("NBD connection: {error}"));
            }
        });
        tokio::task::spawn_local(async move {
            let why = match read_replies(read, &to_reader).await {
                Ok(()) => "the NBD server closed the connection".to_owned(),
                Err(error) => format!("NBD connection: {error}"),
            };
            to_reader.borrow_mut().close(&why);
        });
        Ok(Self { size, requests, pending })
    }

    async fn call(&self, command: u16, flags: u16, offset: u64, len: u64, data: Bytes) -> Result<Bytes, ExportError> {
        let len = u32::try_from(len).map_err(|_| ExportError::Io("longer than an NBD request".to_owned()))?;
        let (reply, answer) = oneshot::channel();
        let cookie = {
            let mut pending = self.pending.borrow_mut();
            if let Some(why) = &pending.closed {
                return Err(ExportError::Io(why.clone()));
            }
            pending.next += 1;
            let cookie = pending.next;
            let len = if command == COMMAND_READ { len } else { 0 };
            pending.waiting.insert(cookie, Waiting { len, reply });
            cookie
        };
        let mut request = BytesMut::with_capacity(28 + data.len());
        request.put_u32(REQUEST_MAGIC);
        request.put_u16(flags);
        request.put_u16(command);
        request.put_u64(cookie);
        request.put_u64(offset);
        request.put_u32(len);
        request.put_slice(&data);
        let gone = || ExportError::Io("the NBD connection is closed".to_owned());
        self.requests.send(request.freeze()).await.map_err(|_| gone())?;
        answer.await.map_err(|_| gone())?
    }
}

impl Drop for Client {
    fn drop(&mut self) {
        let mut request = BytesMut::with_capacity(28);
        request.put_u32(REQUEST_MAGIC);
        request.put_u16(0);
        request.put_u16(COMMAND_DISCONNECT);
        request.put_bytes(0, 20);
        // A full queue or a closed connection: the server sees the end of the stream instead.
        let _ = self.requests.try_send(request.freeze());
    }
}

impl Export for Client {
    fn size(&self) -> u64 {
        self.size
    }

    async fn read(&self, offset: u64, len: u64) -> Result<Bytes, ExportError> {
        self.call(COMMAND_READ, 0, offset, len, Bytes::new()).await
    }

    async fn write(&self, offset: u64, data: Bytes) -> Result<(), ExportError> {
        self.call(COMMAND_WRITE, 0, offset, data.len() as u64, data).await.map(drop)
    }

    async fn zero(&self, offset: u64, len: u64, punch: bool) -> Result<(), ExportError> {
        let flags = if punch { 0 } else { FLAG_NO_HOLE };
        self.call(COMMAND_WRITE_ZEROES, flags, offset, len, Bytes::new()).await.map(drop)
    }

    async fn allocation(&self, _offset: u64, len: u64) -> Result<Vec<(u64, bool)>, ExportError> {
        // Not asked for: everything may hold data.
        Ok(vec![(len, true)])
    }

    fn is_fenced(&self) -> bool {
        false
    }
}

fn broken(what: impl Into<String>) -> io::Error {
    io::Error::new(io::ErrorKind::InvalidData, what.into())
}

/// Newstyle negotiation up to the transmission phase; gives the size.
async fn negotiate<R, W>(read: &mut R, write: &mut W, export: &str) -> io::Result<u64>
where
    R: AsyncRead + Unpin,
    W: AsyncWrite + Unpin,
{
    if read.read_u64().await? != MAGIC || read.read_u64().await? != OPTION_MAGIC {
        return Err(broken("this is not a newstyle NBD server"));
    }
    let flags = read.read_u16().await?;
    let name = u32::try_from(export.len()).map_err(|_| broken("the export's name is too long"))?;
    let mut hello = BytesMut::new();
    hello.put_u32(u32::from(flags & 3));
    hello.put_u64(OPTION_MAGIC);
    hello.put_u32(OPT_GO);
    hello.put_u32(4 + name + 2);
    hello.put_u32(name);
    hello.put_slice(export.as_bytes());
    hello.put_u16(0);
    write.write_all(&hello).await?;
    let mut size = None;
    loop {
        if read.read_u64().await? != OPTION_REPLY_MAGIC {
            return Err(broken("the NBD server's option reply is malformed"));
        }
        let (_option, kind, len) = (read.read_u32().await?, read.read_u32().await?, read.read_u32().await?);
        if len > OPTION_REPLY_MAX {
            return Err(broken(format!("the NBD server's option reply has {len} bytes")));
        }
        let mut data = vec![0; len as usize];
        read.read_exact(&mut data).await?;
        match kind {
            REPLY_ACK => return size.ok_or_else(|| broken("the NBD server did not tell the export's size")),
            REPLY_INFO if data.len() >= 12 && data[..2] == [0, 0] => {
                size = Some(u64::from_be_bytes(std::array::from_fn(|i| data[2 + i])));
            }
            REPLY_INFO => {}
            kind => {
                let text = String::from_utf8_lossy(&data);
                return Err(broken(format!("the NBD server refuses export `{export}` ({kind:#x}): {text}")));
            }
        }
    }
}

async fn write_requests<W: AsyncWrite + Unpin>(mut write: W, mut queue: mpsc::Receiver<Bytes>) -> io::Result<()> {
    while let Some(request) = queue.recv().await {
        write.write_all(&request).await?;
    }
    write.shutdown().await
}

async fn read_replies<R: AsyncRead + Unpin>(read: R, pending: &RefCell<Pending>) -> io::Result<()> {
    let mut read = tokio::io::BufReader::with_capacity(256 * 1024, read);
    loop {
        let magic = match read.read_u32().await {
            Err(error) if error.kind() == io::ErrorKind::UnexpectedEof => return Ok(()),
            magic => magic?,
        };
        let error = read.read_u32().await?;
        let cookie = read.read_u64().await?;
        let waiting = pending.borrow_mut().waiting.remove(&cookie);
        let Some(waiting) = waiting.filter(|_| magic == REPLY_MAGIC) else {
            return Err(broken("a reply nobody asked for"));
        };
        let result = match error {
            0 => {
                let mut data = BytesMut::zeroed(waiting.len as usize);
                read.read_exact(&mut data).await?;
                Ok(data.freeze())
            }
            28 => Err(ExportError::NoSpace),
            108 => Err(ExportError::Fenced),
            110 => Err(ExportError::TimedOut),
            number => Err(ExportError::Io(format!("NBD error {number}"))),
        };
        let _ = waiting.reply.send(result);
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn addresses() {
        let tcp = |host: &str, export: &str| Address { place: Place::Tcp(host.into()), export: export.into() };
        let unix = |path: &str, export: &str| Address { place: Place::Unix(path.into()), export: export.into() };
        for (text, address) in [
            ("127.0.0.1:1234", tcp("127.0.0.1:1234", "")),
            ("nbd://127.0.0.1:1234/db", tcp("127.0.0.1:1234", "db")),
            ("nbd://host/db", tcp("host:10809", "db")),
            ("nbd://[::1]:5", tcp("[::1]:5", "")),
            ("unix:/tmp/s", unix("/tmp/s", "")),
            ("nbd+unix:///db?socket=/tmp/s", unix("/tmp/s", "db")),
        ] {
            assert_eq!(text.parse::<Address>().as_ref(), Ok(&address), "{text}");
        }
        for text in ["", "host", "unix:", "nbd://", "nbd+unix:///db", "host:port"] {
            assert!(text.parse::<Address>().is_err(), "{text}");
        }
    }
}
