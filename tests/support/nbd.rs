//! A small NBD client: one connection, one request at a time, errors as numbers. Stories use it where the real clients
//! would hide what the server said.

use std::io::{self, Read, Write};
use std::net::TcpStream;
use std::os::unix::net::UnixStream;
use std::time::Duration;

/// Errno of NBD replies.
pub(crate) const EIO: u32 = 5;
/// See [`EIO`].
pub(crate) const EINVAL: u32 = 22;
/// See [`EIO`].
pub(crate) const ENOSPC: u32 = 28;
/// See [`EIO`].
pub(crate) const ESHUTDOWN: u32 = 108;

const IHAVEOPT: u64 = 0x4948_4156_454F_5054;
const OPTION_REPLY: u64 = 0x0003_e889_0455_65a9;
const REQUEST: u32 = 0x2560_9513;
const SIMPLE_REPLY: u32 = 0x6744_6698;
const OPT_GO: u32 = 7;
const REP_ACK: u32 = 1;
const REP_INFO: u32 = 3;

/// Why a request gave nothing.
#[derive(Debug)]
pub(crate) enum Failed {
    /// The server answered with this errno.
    Errno(u32),
    /// The connection broke.
    Connection(io::Error),
}

impl From<io::Error> for Failed {
    fn from(error: io::Error) -> Self {
        Self::Connection(error)
    }
}

trait Stream: Read + Write + Send {}
impl<T: Read + Write + Send> Stream for T {}

/// A connection to an export.
pub(crate) struct Nbd {
    stream: Box<dyn Stream>,
    cookie: u64,
    /// Bytes of the export.
    pub(crate) size: u64,
}

impl Nbd {
    /// Connects to `nbd://host:port/export` or `nbd+unix:///export?socket=path`. `patience` bounds every answer.
    pub(crate) fn connect(uri: &str, patience: Duration) -> Result<Self, Failed> {
        let (mut stream, export) = open(uri, patience)?;
        let mut greeting = [0; 18];
        stream.read_exact(&mut greeting)?;
        if &greeting[..8] != b"NBDMAGIC" || greeting[8..16] != IHAVEOPT.to_be_bytes() {
            return Err(Failed::Connection(io::Error::other("not an NBD server")));
        }
        stream.write_all(&3u32.to_be_bytes())?; // fixed newstyle, no zeroes
        let mut data = Vec::new();
        data.extend(u32::try_from(export.len()).unwrap_or(0).to_be_bytes());
        data.extend(export.as_bytes());
        data.extend(0u16.to_be_bytes());
        let mut option = Vec::new();
        option.extend(IHAVEOPT.to_be_bytes());
        option.extend(OPT_GO.to_be_bytes());
        option.extend(u32::try_from(data.len()).unwrap_or(0).to_be_bytes());
        option.extend(&data);
        stream.write_all(&option)?;
        let size = negotiated(&mut *stream)?;
        Ok(Self { stream, cookie: 0, size })
    }

    /// Reads.
    pub(crate) fn read(&mut self, offset: u64, len: usize) -> Result<Vec<u8>, Failed> {
        let mut data = vec![0; len];
        self.ask(0, 0, offset, len, &[])?;
        self.stream.read_exact(&mut data)?;
        Ok(data)
    }

    /// Writes.
    pub(crate) fn write(&mut self, offset: u64, data: &[u8]) -> Result<(), Failed> {
        self.ask(0, 1, offset, data.len(), data)
    }

    /// Sends a write and does not wait for its answer.
    pub(crate) fn write_unanswered(&mut self, offset: u64, data: &[u8]) -> io::Result<()> {
        self.send(0, 1, offset, data.len(), data)
    }

    /// Flushes.
    pub(crate) fn flush(&mut self) -> Result<(), Failed> {
        self.ask(0, 3, 0, 0, &[])
    }

    /// Trims.
    pub(crate) fn trim(&mut self, offset: u64, len: usize) -> Result<(), Failed> {
        self.ask(0, 4, offset, len, &[])
    }

    fn send(&mut self, flags: u16, command: u16, offset: u64, len: usize, data: &[u8]) -> io::Result<()> {
        self.cookie += 1;
        let mut request = Vec::with_capacity(28 + data.len());
        request.extend(REQUEST.to_be_bytes());
        request.extend(flags.to_be_bytes());
        request.extend(command.to_be_bytes());
        request.extend(self.cookie.to_be_bytes());
        request.extend(offset.to_be_bytes());
        request.extend(u32::try_from(len).unwrap_or(u32::MAX).to_be_bytes());
        request.extend(data);
        self.stream.write_all(&request)
    }

    fn ask(&mut self, flags: u16, command: u16, offset: u64, len: usize, data: &[u8]) -> Result<(), Failed> {
        self.send(flags, command, offset, len, data)?;
        let mut reply = [0; 16];
        self.stream.read_exact(&mut reply)?;
        if reply[..4] != SIMPLE_REPLY.to_be_bytes() || reply[8..] != self.cookie.to_be_bytes() {
            return Err(Failed::Connection(io::Error::other("not the reply to this request")));
        }
        match u32::from_be_bytes([reply[4], reply[5], reply[6], reply[7]]) {
            0 => Ok(()),
            errno => Err(Failed::Errno(errno)),
        }
    }
}

fn open(uri: &str, patience: Duration) -> Result<(Box<dyn Stream>, String), Failed> {
    let odd = || Failed::Connection(io::Error::other(format!("`{uri}` is not an NBD URI of ours")));
    if let Some(rest) = uri.strip_prefix("nbd+unix:///") {
        let (export, socket) = rest.split_once("?socket=").ok_or_else(odd)?;
        let stream = UnixStream::connect(socket)?;
        stream.set_read_timeout(Some(patience))?;
        return Ok((Box::new(stream), export.to_owned()));
    }
    let rest = uri.strip_prefix("nbd://").ok_or_else(odd)?;
    let (address, export) = rest.split_once('/').unwrap_or((rest, ""));
    let stream = TcpStream::connect(address)?;
    stream.set_read_timeout(Some(patience))?;
    stream.set_nodelay(true)?;
    Ok((Box::new(stream), export.to_owned()))
}

/// Reads the answers to OPT_GO; gives the export's size.
fn negotiated(stream: &mut dyn Stream) -> Result<u64, Failed> {
    let mut size = 0;
    loop {
        let mut head = [0; 20];
        stream.read_exact(&mut head)?;
        if head[..8] != OPTION_REPLY.to_be_bytes() {
            return Err(Failed::Connection(io::Error::other("not an option reply")));
        }
        let word = |at: usize| u32::from_be_bytes([head[at], head[at + 1], head[at + 2], head[at + 3]]);
        let (kind, len) = (word(12), word(16));
        let mut data = vec![0; usize::try_from(len).unwrap_or(0).min(65536)];
        stream.read_exact(&mut data)?;
        match kind {
            REP_ACK => return Ok(size),
            REP_INFO if data.len() >= 12 && data[..2] == [0, 0] => {
                size = data[2..10].iter().fold(0, |number, byte| number << 8 | u64::from(*byte));
            }
            REP_INFO => {}
            kind => return Err(Failed::Errno(kind)),
        }
    }
}
