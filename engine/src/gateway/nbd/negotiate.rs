//! The handshake: from the greeting to an agreed session, or a reason why there is none.
//!
//! Fixed newstyle only. A client may try options as often as it likes within the handshake's deadline (which the caller
//! keeps); each costs this side at most [`NBD_OPTION_BYTES_MAX`] of memory, and a longer one is skipped, not kept. There
//! is one export; its name or the empty name (the protocol's "default export") reach it.

use std::io;

use engine_core::limits::{BLOCK_SIZE, NBD_BYTES_MAX, NBD_OPTION_BYTES_MAX, NBD_SECTOR};
use tokio::io::{AsyncRead, AsyncReadExt, AsyncWrite, AsyncWriteExt};

use super::proto::{self, Fields, OptionHeader};
use super::request::Session;

/// What a server tells about its one export.
#[derive(Debug, Clone, Copy)]
pub(super) struct Offer<'a> {
    pub(super) name: &'a str,
    pub(super) size: u64,
}

impl Offer<'_> {
    fn is_named(&self, name: &str) -> bool {
        name.is_empty() || name == self.name
    }

    fn flags(session: Session) -> u16 {
        let always = proto::HAS_FLAGS
            | proto::SEND_FLUSH
            | proto::SEND_FUA
            | proto::SEND_TRIM
            | proto::SEND_WRITE_ZEROES
            | proto::CAN_MULTI_CONN
            | proto::SEND_CACHE
            | proto::SEND_FAST_ZERO;
        if session.structured { always | proto::SEND_DF } else { always }
    }
}

/// Why a connection did not get through the handshake.
#[derive(Debug, thiserror::Error)]
pub(super) enum HandshakeError {
    /// The socket failed or the client left.
    #[error(transparent)]
    Io(#[from] io::Error),
    /// The client said goodbye; not an error of anybody.
    #[error("the client aborted the handshake")]
    Aborted,
    /// It does not speak the protocol.
    #[error(transparent)]
    BadMagic(#[from] proto::BadMagic),
    /// It wants a handshake this server does not know.
    #[error("client flags {0:#x} are not known here")]
    ClientFlags(u32),
    /// It asked for an export that is not here, in a way that leaves no room for an answer.
    #[error("no export of the name it asked for")]
    UnknownExport,
    /// It sent an option that its handshake has no answer for.
    #[error("an option of a client that is not \"fixed newstyle\"")]
    NotFixed,
}

/// What the reply to an option leads to.
enum Next {
    Another,
    Transmission(Session),
}

/// A handshake in progress.
struct Handshake<'a, R, W> {
    reader: &'a mut R,
    writer: &'a mut W,
    offer: Offer<'a>,
    client_flags: u16,
    structured: bool,
    /// The export name whose `base:allocation` was selected last.
    selected: Option<String>,
    out: Vec<u8>,
}

/// Talks a client into a session.
pub(super) async fn negotiate<R, W>(reader: &mut R, writer: &mut W, offer: Offer<'_>) -> Result<Session, HandshakeError>
where
    R: AsyncRead + Unpin,
    W: AsyncWrite + Unpin,
{
    writer.write_all(&proto::greeting()).await?;
    let flags = reader.read_u32().await?;
    let known = proto::FIXED_NEWSTYLE | proto::NO_ZEROES;
    let client_flags =
        u16::try_from(flags).ok().filter(|flags| flags & !known == 0).ok_or(HandshakeError::ClientFlags(flags))?;
    let mut handshake =
        Handshake { reader, writer, offer, client_flags, structured: false, selected: None, out: Vec::new() };
    loop {
        let next = handshake.option().await?;
        handshake.writer.write_all(&handshake.out).await?;
        handshake.out.clear();
        if let Next::Transmission(session) = next {
            return Ok(session);
        }
    }
}

impl<R: AsyncRead + Unpin, W: AsyncWrite + Unpin> Handshake<'_, R, W> {
    /// Takes one option and leaves the reply in `out`.
    async fn option(&mut self) -> Result<Next, HandshakeError> {
        let mut header = [0; proto::OPTION_BYTES];
        self.reader.read_exact(&mut header).await?;
        let OptionHeader { option, len } = OptionHeader::decode(&header)?;
        if self.client_flags & proto::FIXED_NEWSTYLE == 0 && option != proto::OPTION_EXPORT_NAME {
            return Err(HandshakeError::NotFixed);
        }
        if len > NBD_OPTION_BYTES_MAX {
            return self.skip(option, len).await;
        }
        let mut data = vec![0; len as usize];
        self.reader.read_exact(&mut data).await?;
        match option {
            proto::OPTION_EXPORT_NAME => return self.on_export_name(&data),
            proto::OPTION_ABORT => return self.on_abort().await,
            proto::OPTION_LIST => self.on_list(&data),
            proto::OPTION_INFO => drop(self.on_info(option, &data)),
            proto::OPTION_GO => return Ok(self.on_info(option, &data).map_or(Next::Another, Next::Transmission)),
            proto::OPTION_STRUCTURED_REPLY => self.on_structured_reply(&data),
            proto::OPTION_LIST_META_CONTEXT => self.on_meta_context(option, &data),
            proto::OPTION_SET_META_CONTEXT => self.on_meta_context(option, &data),
            proto::OPTION_STARTTLS => self.refuse(option, proto::REPLY_ERR_UNSUP, "no TLS here"),
            _ => self.refuse(option, proto::REPLY_ERR_UNSUP, "unknown option"),
        }
        Ok(Next::Another)
    }

    /// Passes over the data of an option that is too long to look at.
    async fn skip(&mut self, option: u32, len: u32) -> Result<Next, HandshakeError> {
        if option == proto::OPTION_EXPORT_NAME {
            return Err(HandshakeError::UnknownExport);
        }
        discard(self.reader, u64::from(len)).await?;
        self.refuse(option, proto::REPLY_ERR_TOO_BIG, "longer than any option this server knows");
        Ok(Next::Another)
    }

    fn reply(&mut self, option: u32, reply: u32, data: &[u8]) {
        proto::put_option_reply(&mut self.out, option, reply, data);
    }

    fn acknowledge(&mut self, option: u32) {
        self.reply(option, proto::REPLY_ACK, &[]);
    }

    fn refuse(&mut self, option: u32, reply: u32, why: &str) {
        self.reply(option, reply, why.as_bytes());
    }

    /// The session that follows when the transmission starts under this export name.
    fn session(&self, name: &str) -> Session {
        Session { structured: self.structured, allocation: self.selected.as_deref() == Some(name) }
    }

    fn on_export_name(&mut self, data: &[u8]) -> Result<Next, HandshakeError> {
        let name = std::str::from_utf8(data).ok().filter(|name| self.offer.is_named(name));
        let session = self.session(name.ok_or(HandshakeError::UnknownExport)?);
        self.out.extend(proto::export_data(self.offer.size, Offer::flags(session)));
        if self.client_flags & proto::NO_ZEROES == 0 {
            self.out.extend(proto::PADDING);
        }
        Ok(Next::Transmission(session))
    }

    async fn on_abort(&mut self) -> Result<Next, HandshakeError> {
        self.acknowledge(proto::OPTION_ABORT);
        self.writer.write_all(&self.out).await?;
        self.writer.shutdown().await?;
        Err(HandshakeError::Aborted)
    }

    fn on_list(&mut self, data: &[u8]) {
        if !data.is_empty() {
            return self.refuse(proto::OPTION_LIST, proto::REPLY_ERR_INVALID, "LIST takes no data");
        }
        self.reply(proto::OPTION_LIST, proto::REPLY_SERVER, &proto::server_data(self.offer.name));
        self.acknowledge(proto::OPTION_LIST);
    }

    /// Answers `INFO` and `GO`; the session when the answer was a good one.
    fn on_info(&mut self, option: u32, data: &[u8]) -> Option<Session> {
        let Some((name, asked)) = info_request(data) else {
            self.refuse(option, proto::REPLY_ERR_INVALID, "malformed request for information");
            return None;
        };
        if !self.offer.is_named(name) {
            self.refuse(option, proto::REPLY_ERR_UNKNOWN, "no export of that name");
            return None;
        }
        let session = self.session(name);
        self.reply(option, proto::REPLY_INFO, &proto::info_export(self.offer.size, Offer::flags(session)));
        // Sent unasked too: who knows it does better, who does not passes over it.
        let [min, preferred, max] =
            [NBD_SECTOR, BLOCK_SIZE, NBD_BYTES_MAX].map(|bytes| u32::try_from(bytes).expect("asserted in limits"));
        self.reply(option, proto::REPLY_INFO, &proto::info_block_size(min, preferred, max));
        if asked.contains(&proto::INFO_NAME) {
            self.reply(option, proto::REPLY_INFO, &proto::info_name(self.offer.name));
        }
        self.acknowledge(option);
        Some(session)
    }

    fn on_structured_reply(&mut self, data: &[u8]) {
        let option = proto::OPTION_STRUCTURED_REPLY;
        if !data.is_empty() {
            return self.refuse(option, proto::REPLY_ERR_INVALID, "STRUCTURED_REPLY takes no data");
        }
        self.structured = true;
        self.acknowledge(option);
    }

    fn on_meta_context(&mut self, option: u32, data: &[u8]) {
        let setting = option == proto::OPTION_SET_META_CONTEXT;
        if setting {
            // Also a failing request replaces what was selected before.
            self.selected = None;
        }
        if !self.structured {
            return self.refuse(option, proto::REPLY_ERR_INVALID, "structured replies come first");
        }
        let Some((name, queries)) = context_request(data) else {
            return self.refuse(option, proto::REPLY_ERR_INVALID, "malformed request for metadata contexts");
        };
        if !self.offer.is_named(name) {
            return self.refuse(option, proto::REPLY_ERR_UNKNOWN, "no export of that name");
        }
        let found = queries
            .iter()
            .any(|query| *query == proto::CONTEXT_ALLOCATION || (!setting && *query == proto::CONTEXT_BASE));
        if found || (!setting && queries.is_empty()) {
            let id = if setting { proto::CONTEXT_ALLOCATION_ID } else { 0 };
            self.reply(option, proto::REPLY_META_CONTEXT, &proto::context_data(id, proto::CONTEXT_ALLOCATION));
            if setting {
                self.selected = Some(name.to_owned());
            }
        }
        self.acknowledge(option);
    }
}

/// Reads `INFO` and `GO`: an export's name and the kinds of information asked for.
fn info_request(data: &[u8]) -> Option<(&str, Vec<u16>)> {
    let mut fields = Fields(data);
    let name = fields.string()?;
    let count = fields.u16()?;
    let asked = (0..count).map(|_| fields.u16()).collect::<Option<Vec<_>>>()?;
    fields.is_end().then_some((name, asked))
}

/// Reads a request about metadata contexts: an export's name and queries.
fn context_request(data: &[u8]) -> Option<(&str, Vec<&str>)> {
    let mut fields = Fields(data);
    let name = fields.string()?;
    let count = fields.u32()?;
    // Not sized by the count, which is a stranger's: it ends with the data.
    let queries = (0..count).map(|_| fields.string()).collect::<Option<Vec<_>>>()?;
    fields.is_end().then_some((name, queries))
}

/// Reads `len` bytes and forgets them.
pub(super) async fn discard<R: AsyncRead + Unpin>(reader: &mut R, len: u64) -> io::Result<()> {
    let got = tokio::io::copy(&mut reader.take(len), &mut tokio::io::sink()).await?;
    if got == len { Ok(()) } else { Err(io::ErrorKind::UnexpectedEof.into()) }
}
