//! The wire: frames, handshake and connections between clients, nodes and the authority.
//!
//! [`dial`] or [`accept`] makes a [`Link`]; split, it is an [`Inbound`] to await messages from and an [`Outbox`] to
//! drop messages into without waiting. Messages of one link arrive in the order they were sent, or not at all: when a
//! link ends, an unknown tail of what was sent is lost and nothing after it was received. Whoever cares sends again
//! on the next link. Everything that can grow has a bound and everything that can hang a deadline (I15).
//!
//! What is said over it, byte by byte: docs/protocol.md, `codec/types.rs`.

mod codec;
mod hello;
mod link;
mod outbox;

#[cfg(test)]
mod tests;

use engine_core::message::{FromAuthority, PeerMessage, Reply, Request, ToAuthority};

pub use codec::frame::{HEADER_LEN, MAGIC, VERSION, looks_like_wire};
pub use codec::{Malformed, Unsendable, check_peer, check_request, check_sums, with_sums};
pub use hello::{Hello, Local, Network, Welcome, Who, accept, accept_if, dial, greet};
pub use link::{Inbound, Link, Stream};
pub use outbox::{Outbox, SendError, Writing};

/// Anything that is said after the handshake.
#[derive(Clone, PartialEq, Eq, Debug)]
pub enum Message {
    /// Between two nodes.
    Peer(PeerMessage),
    /// Several between two nodes, none of them with data; at most [`engine_core::limits::PEER_BATCH_MAX`].
    Peers(Vec<PeerMessage>),
    /// A client to a node.
    Request(Request),
    /// A node to a client.
    Reply(Reply),
    /// A node to the authority.
    ToAuthority(ToAuthority),
    /// The authority to a node.
    FromAuthority(FromAuthority),
}

/// How a link ended, or why there is none.
#[derive(Debug, thiserror::Error)]
pub enum WireError {
    /// The host answered and nobody listens there: its process is gone (I8: a hint, no more).
    #[error("connection refused")]
    Refused,
    /// The other side closed or reset the connection, or this side ended it.
    #[error("connection closed")]
    Closed,
    /// A deadline passed: which.
    #[error("too slow: {0}")]
    Slow(&'static str),
    /// The other side sent something that is not the protocol.
    #[error("malformed: {0}")]
    Malformed(#[from] Malformed),
    /// The other side speaks another version of the protocol.
    #[error("the other side speaks version {0} of the protocol, this side version {VERSION}")]
    Version(u16),
    /// The other side does not want this connection: its reason.
    #[error("rejected by the other side: {0}")]
    Rejected(String),
    /// This side does not want this connection, and told the other side so.
    #[error("rejected: {0}")]
    Unwelcome(String),
    /// The address or the network does not work.
    #[error("{0}")]
    Io(std::io::Error),
}

impl WireError {
    /// Whether the host answered that nobody listens there.
    #[must_use]
    pub fn is_refused(&self) -> bool {
        matches!(self, Self::Refused)
    }
}

impl From<std::io::Error> for WireError {
    fn from(error: std::io::Error) -> Self {
        use std::io::ErrorKind;
        match error.kind() {
            ErrorKind::ConnectionRefused => Self::Refused,
            ErrorKind::ConnectionReset
            | ErrorKind::ConnectionAborted
            | ErrorKind::BrokenPipe
            | ErrorKind::NotConnected
            | ErrorKind::UnexpectedEof => Self::Closed,
            ErrorKind::TimedOut => Self::Slow("the network took nothing for too long"),
            _ => Self::Io(error),
        }
    }
}
