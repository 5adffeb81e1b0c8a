//! The NBD protocol's numbers and bytes; no other file knows either.
//!
//! Everything on the wire is big-endian. Decoding takes bytes from a stranger: it never panics, and what it cannot read
//! is the caller's to refuse. Encoding appends to a buffer. Names follow the protocol's document (`NBD_OPT_GO` is
//! [`OPTION_GO`]).

/// First eight bytes a server says: "NBDMAGIC".
pub(super) const MAGIC_SERVER: u64 = 0x4e42_444d_4147_4943;
/// Before every option: "IHAVEOPT".
pub(super) const MAGIC_OPTION: u64 = 0x4948_4156_454f_5054;
/// Before every reply to an option.
pub(super) const MAGIC_OPTION_REPLY: u64 = 0x0003_e889_0455_65a9;
/// Before every request.
pub(super) const MAGIC_REQUEST: u32 = 0x2560_9513;
/// Before a simple reply.
pub(super) const MAGIC_SIMPLE: u32 = 0x6744_6698;
/// Before a chunk of a structured reply.
pub(super) const MAGIC_CHUNK: u32 = 0x668e_33ef;

/// Handshake flag, the same bit from both sides: fixed newstyle.
pub(super) const FIXED_NEWSTYLE: u16 = 1;
/// Handshake flag, the same bit from both sides: no padding after the answer to `EXPORT_NAME`.
pub(super) const NO_ZEROES: u16 = 2;
/// Padding after the answer to `EXPORT_NAME` where `NO_ZEROES` was not agreed on.
pub(super) const PADDING: [u8; 124] = [0; 124];

/// Options.
pub(super) const OPTION_EXPORT_NAME: u32 = 1;
pub(super) const OPTION_ABORT: u32 = 2;
pub(super) const OPTION_LIST: u32 = 3;
pub(super) const OPTION_STARTTLS: u32 = 5;
pub(super) const OPTION_INFO: u32 = 6;
pub(super) const OPTION_GO: u32 = 7;
pub(super) const OPTION_STRUCTURED_REPLY: u32 = 8;
pub(super) const OPTION_LIST_META_CONTEXT: u32 = 9;
pub(super) const OPTION_SET_META_CONTEXT: u32 = 10;

/// Replies to options.
pub(super) const REPLY_ACK: u32 = 1;
pub(super) const REPLY_SERVER: u32 = 2;
pub(super) const REPLY_INFO: u32 = 3;
pub(super) const REPLY_META_CONTEXT: u32 = 4;
pub(super) const REPLY_ERR_UNSUP: u32 = (1 << 31) + 1;
pub(super) const REPLY_ERR_INVALID: u32 = (1 << 31) + 3;
pub(super) const REPLY_ERR_UNKNOWN: u32 = (1 << 31) + 6;
pub(super) const REPLY_ERR_TOO_BIG: u32 = (1 << 31) + 9;

/// What `REPLY_INFO` can tell.
pub(super) const INFO_EXPORT: u16 = 0;
pub(super) const INFO_NAME: u16 = 1;
pub(super) const INFO_BLOCK_SIZE: u16 = 3;

/// Transmission flags.
pub(super) const HAS_FLAGS: u16 = 1;
pub(super) const SEND_FLUSH: u16 = 1 << 2;
pub(super) const SEND_FUA: u16 = 1 << 3;
pub(super) const SEND_TRIM: u16 = 1 << 5;
pub(super) const SEND_WRITE_ZEROES: u16 = 1 << 6;
pub(super) const SEND_DF: u16 = 1 << 7;
pub(super) const CAN_MULTI_CONN: u16 = 1 << 8;
pub(super) const SEND_CACHE: u16 = 1 << 10;
pub(super) const SEND_FAST_ZERO: u16 = 1 << 11;

/// Commands.
pub(super) const COMMAND_READ: u16 = 0;
pub(super) const COMMAND_WRITE: u16 = 1;
pub(super) const COMMAND_DISC: u16 = 2;
pub(super) const COMMAND_FLUSH: u16 = 3;
pub(super) const COMMAND_TRIM: u16 = 4;
pub(super) const COMMAND_CACHE: u16 = 5;
pub(super) const COMMAND_WRITE_ZEROES: u16 = 6;
pub(super) const COMMAND_BLOCK_STATUS: u16 = 7;

/// Flags of commands.
pub(super) const FLAG_FUA: u16 = 1;
pub(super) const FLAG_NO_HOLE: u16 = 1 << 1;
pub(super) const FLAG_DF: u16 = 1 << 2;
pub(super) const FLAG_REQ_ONE: u16 = 1 << 3;
pub(super) const FLAG_FAST_ZERO: u16 = 1 << 4;

/// Chunks of a structured reply.
const CHUNK_DONE: u16 = 1;
const CHUNK_NONE: u16 = 0;
const CHUNK_OFFSET_DATA: u16 = 1;
const CHUNK_OFFSET_HOLE: u16 = 2;
const CHUNK_BLOCK_STATUS: u16 = 5;
const CHUNK_ERROR: u16 = (1 << 15) + 1;

/// The one metadata context served, and the number it goes by.
pub(super) const CONTEXT_ALLOCATION: &str = "base:allocation";
/// Asks `LIST_META_CONTEXT` for everything in that namespace.
pub(super) const CONTEXT_BASE: &str = "base:";
pub(super) const CONTEXT_ALLOCATION_ID: u32 = 1;
/// State in [`CONTEXT_ALLOCATION`]: uses no space, reads as zeros.
const STATE_HOLE_ZERO: u32 = 1 | 2;

/// Longest string of the protocol; a longer one is refused.
pub(super) const STRING_MAX: usize = 4096;
/// Bytes of a request's header.
pub(super) const REQUEST_BYTES: usize = 28;
/// Bytes of an option's header.
pub(super) const OPTION_BYTES: usize = 16;

/// The errors a request can be answered with.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
#[repr(u32)]
pub(super) enum Errno {
    Io = 5,
    Invalid = 22,
    NoSpace = 28,
    Overflow = 75,
    NotSupported = 95,
    Shutdown = 108,
}

/// Bytes that are not NBD where NBD must be: the connection has lost its place and can only be closed.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
#[error("{what} starts with {got:#x}, which is not its magic number")]
pub(super) struct BadMagic {
    what: &'static str,
    got: u64,
}

/// Takes big-endian fields from the front of a stranger's bytes; `None` when they end too early.
pub(super) struct Fields<'a>(pub(super) &'a [u8]);

impl<'a> Fields<'a> {
    fn bytes<const N: usize>(&mut self) -> Option<[u8; N]> {
        let (head, rest) = self.0.split_first_chunk::<N>()?;
        self.0 = rest;
        Some(*head)
    }

    pub(super) fn u16(&mut self) -> Option<u16> {
        self.bytes().map(u16::from_be_bytes)
    }

    pub(super) fn u32(&mut self) -> Option<u32> {
        self.bytes().map(u32::from_be_bytes)
    }

    fn u64(&mut self) -> Option<u64> {
        self.bytes().map(u64::from_be_bytes)
    }

    /// A length and that many bytes of UTF-8.
    pub(super) fn string(&mut self) -> Option<&'a str> {
        let len = usize::try_from(self.u32()?).ok()?;
        let (head, rest) = self.0.split_at_checked(len)?;
        self.0 = rest;
        std::str::from_utf8(head).ok().filter(|text| text.len() <= STRING_MAX)
    }

    /// Whether nothing is left.
    pub(super) fn is_end(&self) -> bool {
        self.0.is_empty()
    }
}

/// An option's header; `len` bytes of data follow it.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) struct OptionHeader {
    pub(super) option: u32,
    pub(super) len: u32,
}

impl OptionHeader {
    pub(super) fn decode(bytes: &[u8; OPTION_BYTES]) -> Result<OptionHeader, BadMagic> {
        let mut fields = Fields(bytes);
        let got = fields.u64().unwrap_or(0);
        match (fields.u32(), fields.u32()) {
            (Some(option), Some(len)) if got == MAGIC_OPTION => Ok(OptionHeader { option, len }),
            _ => Err(BadMagic { what: "an option", got }),
        }
    }
}

/// A request's header; a `WRITE` is followed by `len` bytes.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) struct RequestHeader {
    pub(super) flags: u16,
    pub(super) command: u16,
    pub(super) cookie: u64,
    pub(super) offset: u64,
    pub(super) len: u32,
}

impl RequestHeader {
    pub(super) fn decode(bytes: &[u8; REQUEST_BYTES]) -> Result<RequestHeader, BadMagic> {
        let mut fields = Fields(bytes);
        let magic = fields.u32().unwrap_or(0);
        let bad = BadMagic { what: "a request", got: u64::from(magic) };
        let header = (|| {
            Some(RequestHeader {
                flags: fields.u16()?,
                command: fields.u16()?,
                cookie: fields.u64()?,
                offset: fields.u64()?,
                len: fields.u32()?,
            })
        })();
        header.filter(|_| magic == MAGIC_REQUEST).ok_or(bad)
    }

    /// Bytes that follow the header, whether the request is a good one or not.
    pub(super) fn payload(&self) -> u64 {
        if self.command == COMMAND_WRITE { u64::from(self.len) } else { 0 }
    }
}

/// The length field of something of ours.
fn length(bytes: usize) -> u32 {
    u32::try_from(bytes).expect("no more than NBD_BYTES_MAX and a small header")
}

/// A server's first words.
pub(super) fn greeting() -> [u8; 18] {
    let mut out = [0; 18];
    out[..8].copy_from_slice(&MAGIC_SERVER.to_be_bytes());
    out[8..16].copy_from_slice(&MAGIC_OPTION.to_be_bytes());
    out[16..].copy_from_slice(&(FIXED_NEWSTYLE | NO_ZEROES).to_be_bytes());
    out
}

/// Appends a reply to an option.
pub(super) fn put_option_reply(out: &mut Vec<u8>, option: u32, reply: u32, data: &[u8]) {
    out.extend_from_slice(&MAGIC_OPTION_REPLY.to_be_bytes());
    out.extend_from_slice(&option.to_be_bytes());
    out.extend_from_slice(&reply.to_be_bytes());
    out.extend_from_slice(&length(data.len()).to_be_bytes());
    out.extend_from_slice(data);
}

/// Data of `REPLY_SERVER`: an export's name.
pub(super) fn server_data(name: &str) -> Vec<u8> {
    let mut out = length(name.len()).to_be_bytes().to_vec();
    out.extend_from_slice(name.as_bytes());
    out
}

/// Data of `REPLY_META_CONTEXT`.
pub(super) fn context_data(id: u32, name: &str) -> Vec<u8> {
    let mut out = id.to_be_bytes().to_vec();
    out.extend_from_slice(name.as_bytes());
    out
}

/// Size and transmission flags: what `EXPORT_NAME` is answered with.
pub(super) fn export_data(size: u64, flags: u16) -> Vec<u8> {
    let mut out = size.to_be_bytes().to_vec();
    out.extend_from_slice(&flags.to_be_bytes());
    out
}

/// Data of `REPLY_INFO` about the export itself.
pub(super) fn info_export(size: u64, flags: u16) -> Vec<u8> {
    let mut out = INFO_EXPORT.to_be_bytes().to_vec();
    out.extend_from_slice(&export_data(size, flags));
    out
}

/// Data of `REPLY_INFO` with the export's name.
pub(super) fn info_name(name: &str) -> Vec<u8> {
    let mut out = INFO_NAME.to_be_bytes().to_vec();
    out.extend_from_slice(name.as_bytes());
    out
}

/// Data of `REPLY_INFO` with the block sizes: smallest, preferred, and the longest payload.
pub(super) fn info_block_size(min: u32, preferred: u32, max: u32) -> Vec<u8> {
    let mut out = INFO_BLOCK_SIZE.to_be_bytes().to_vec();
    for size in [min, preferred, max] {
        out.extend_from_slice(&size.to_be_bytes());
    }
    out
}

/// Appends a simple reply; `error` is none for "done", and then a `READ`'s data follows.
pub(super) fn put_simple(out: &mut Vec<u8>, cookie: u64, error: Option<Errno>) {
    out.extend_from_slice(&MAGIC_SIMPLE.to_be_bytes());
    out.extend_from_slice(&error.map_or(0, |errno| errno as u32).to_be_bytes());
    out.extend_from_slice(&cookie.to_be_bytes());
}

/// Appends the header of a reply's only chunk.
fn put_chunk(out: &mut Vec<u8>, cookie: u64, kind: u16, len: usize) {
    out.extend_from_slice(&MAGIC_CHUNK.to_be_bytes());
    out.extend_from_slice(&CHUNK_DONE.to_be_bytes());
    out.extend_from_slice(&kind.to_be_bytes());
    out.extend_from_slice(&cookie.to_be_bytes());
    out.extend_from_slice(&length(len).to_be_bytes());
}

/// Appends a structured reply that says "done".
pub(super) fn put_none(out: &mut Vec<u8>, cookie: u64) {
    put_chunk(out, cookie, CHUNK_NONE, 0);
}

/// Appends what goes before the `len` bytes read at `offset`.
pub(super) fn put_data(out: &mut Vec<u8>, cookie: u64, offset: u64, len: usize) {
    put_chunk(out, cookie, CHUNK_OFFSET_DATA, 8 + len);
    out.extend_from_slice(&offset.to_be_bytes());
}

/// Appends the reply for a read that found zeros only.
pub(super) fn put_hole(out: &mut Vec<u8>, cookie: u64, offset: u64, len: u32) {
    put_chunk(out, cookie, CHUNK_OFFSET_HOLE, 12);
    out.extend_from_slice(&offset.to_be_bytes());
    out.extend_from_slice(&len.to_be_bytes());
}

/// Appends the states of the runs of a range: length, and whether it holds data.
pub(super) fn put_status(out: &mut Vec<u8>, cookie: u64, runs: &[(u32, bool)]) {
    put_chunk(out, cookie, CHUNK_BLOCK_STATUS, 4 + 8 * runs.len());
    out.extend_from_slice(&CONTEXT_ALLOCATION_ID.to_be_bytes());
    for (len, data) in runs {
        out.extend_from_slice(&len.to_be_bytes());
        out.extend_from_slice(&(if *data { 0 } else { STATE_HOLE_ZERO }).to_be_bytes());
    }
}

/// Appends an error with words for a person; they are cut to the longest string there is.
pub(super) fn put_error(out: &mut Vec<u8>, cookie: u64, errno: Errno, message: &str) {
    let cut = message.floor_char_boundary(STRING_MAX);
    let message = &message.as_bytes()[..cut];
    put_chunk(out, cookie, CHUNK_ERROR, 6 + message.len());
    out.extend_from_slice(&(errno as u32).to_be_bytes());
    out.extend_from_slice(&u16::try_from(message.len()).expect("cut to STRING_MAX").to_be_bytes());
    out.extend_from_slice(message);
}
