//! What a request asks for, or the protocol's error for asking that.
//!
//! A pure function from a stranger's header to a [`Command`] that is safe to run: inside the export, not empty, aligned,
//! of a length the server can hold, with flags that belong to it. Everything after it trusts that. Where the protocol
//! names an error for a mistake, it is that one; else `EINVAL`.

use engine_core::limits::{BLOCK_SIZE, NBD_BYTES_MAX, NBD_SECTOR};

use super::proto::{self, Errno, RequestHeader};

/// A request fit to be run. Ranges come from the header.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum Command {
    Read,
    Write,
    Disconnect,
    Flush,
    /// Reads as zeros from now on, and need not use space (`punch`).
    Zero {
        punch: bool,
    },
    Cache,
    /// States of the range; of its first run only (`one`).
    Status {
        one: bool,
    },
}

/// Why a request was not run.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) struct Refusal {
    pub(super) errno: Errno,
    pub(super) reason: &'static str,
}

const fn refuse<T>(errno: Errno, reason: &'static str) -> Result<T, Refusal> {
    Err(Refusal { errno, reason })
}

/// What was agreed on for one connection.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default)]
pub(super) struct Session {
    /// Replies may be structured; those to `READ` must.
    pub(super) structured: bool,
    /// `BLOCK_STATUS` may be asked for `base:allocation`.
    pub(super) allocation: bool,
}

/// Checks a request against the session and an export of `size` bytes.
pub(super) fn check(header: &RequestHeader, session: Session, size: u64) -> Result<Command, Refusal> {
    let (command, flags) = match header.command {
        proto::COMMAND_READ if session.structured => (Command::Read, proto::FLAG_DF),
        proto::COMMAND_READ => (Command::Read, 0),
        proto::COMMAND_WRITE => (Command::Write, 0),
        proto::COMMAND_DISC => return Ok(Command::Disconnect),
        proto::COMMAND_FLUSH => (Command::Flush, 0),
        proto::COMMAND_TRIM => (Command::Zero { punch: true }, 0),
        proto::COMMAND_CACHE => (Command::Cache, 0),
        proto::COMMAND_WRITE_ZEROES => {
            let punch = header.flags & proto::FLAG_NO_HOLE == 0;
            (Command::Zero { punch }, proto::FLAG_NO_HOLE | proto::FLAG_FAST_ZERO)
        }
        proto::COMMAND_BLOCK_STATUS if session.allocation => {
            (Command::Status { one: header.flags & proto::FLAG_REQ_ONE != 0 }, proto::FLAG_REQ_ONE)
        }
        proto::COMMAND_BLOCK_STATUS => return refuse(Errno::Invalid, "no metadata context was negotiated"),
        _ => return refuse(Errno::Invalid, "unknown command"),
    };
    // FUA is allowed with every command; every change here is durable before it is answered.
    if header.flags & !(flags | proto::FLAG_FUA) != 0 {
        return refuse(Errno::Invalid, "a flag that does not belong to this command");
    }
    match command {
        Command::Flush if header.offset != 0 || header.len != 0 => {
            refuse(Errno::Invalid, "a flush has neither offset nor length")
        }
        Command::Flush => Ok(command),
        _ => check_range(header, size).map(|()| command),
    }
}

/// Checks the range of a request that has one.
fn check_range(header: &RequestHeader, size: u64) -> Result<(), Refusal> {
    let len = u64::from(header.len);
    let payload = matches!(header.command, proto::COMMAND_READ | proto::COMMAND_WRITE);
    if len == 0 {
        return refuse(Errno::Invalid, "an empty range");
    }
    if payload && len > NBD_BYTES_MAX {
        // With "do not fragment" the protocol has a name for it.
        let errno = if header.flags & proto::FLAG_DF != 0 { Errno::Overflow } else { Errno::Invalid };
        return refuse(errno, "longer than the largest payload");
    }
    if !header.offset.is_multiple_of(NBD_SECTOR) || !len.is_multiple_of(NBD_SECTOR) {
        return refuse(Errno::Invalid, "not aligned to 512 bytes");
    }
    if header.offset.checked_add(len).is_none_or(|end| end > size) {
        let grows = matches!(header.command, proto::COMMAND_WRITE | proto::COMMAND_WRITE_ZEROES);
        let errno = if grows { Errno::NoSpace } else { Errno::Invalid };
        return refuse(errno, "beyond the end of the export");
    }
    let fast = header.flags & proto::FLAG_FAST_ZERO != 0;
    let whole = header.offset.is_multiple_of(BLOCK_SIZE) && len.is_multiple_of(BLOCK_SIZE);
    if fast && (!whole || header.flags & proto::FLAG_NO_HOLE != 0) {
        // Part of a block, or space that must stay provisioned, costs as much as writing the zeros.
        return refuse(Errno::NotSupported, "would not be faster than writing zeros");
    }
    Ok(())
}
