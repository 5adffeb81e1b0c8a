//! The frame: a fixed header, a body (the message) and a payload (the data of its blocks), little-endian.
//!
//! Lengths are checked against their bounds before a byte is allocated, and the header carries its own checksum, so
//! that a damaged length is never believed. The payload has no checksum of its own: every block travels with the one
//! its client computed, which every node compares before it stores the block and every client before it uses it; a
//! second pass over the data would protect nothing more. Layout: docs/protocol.md.

use engine_core::limits::{BLOCK_SIZE, FRAME_BODY_MAX, FRAME_PAYLOAD_MAX};

use super::Malformed;
use crate::wire::WireError;

/// First bytes of every frame. Not ASCII in front, so no HTTP request can begin like it.
pub const MAGIC: [u8; 4] = [0xB7, b'B', b'R', b'K'];
/// Version of the protocol this build speaks.
pub const VERSION: u16 = 1;
/// Bytes of a frame's header.
pub const HEADER_LEN: usize = 24;

/// What a frame's body is.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
#[repr(u8)]
pub(in crate::wire) enum Kind {
    /// First frame of whoever dialled.
    Hello = 1,
    /// Answer to a hello: come in.
    Welcome = 2,
    /// Answer to a hello: no, and why.
    Reject = 3,
    /// Between two nodes.
    Peer = 4,
    /// From a client.
    Request = 5,
    /// To a client.
    Reply = 6,
    /// From a node to the authority.
    ToAuthority = 7,
    /// From the authority to a node.
    FromAuthority = 8,
    /// Several small messages between two nodes.
    Peers = 9,
}

impl Kind {
    const fn from_u8(number: u8) -> Option<Self> {
        Some(match number {
            1 => Self::Hello,
            2 => Self::Welcome,
            3 => Self::Reject,
            4 => Self::Peer,
            5 => Self::Request,
            6 => Self::Reply,
            7 => Self::ToAuthority,
            8 => Self::FromAuthority,
            9 => Self::Peers,
            _ => return None,
        })
    }
}

/// A checked header.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub(in crate::wire) struct Header {
    /// What the body is.
    pub kind: Kind,
    /// Bytes of the body; at most [`FRAME_BODY_MAX`].
    pub body_len: usize,
    /// Bytes of the payload; whole blocks, at most [`FRAME_PAYLOAD_MAX`].
    pub payload_len: usize,
    /// CRC-32 of the body.
    pub body_crc: u32,
}

impl Header {
    /// Its bytes.
    #[must_use]
    #[allow(clippy::cast_possible_truncation)] // both lengths are far below 4 GiB
    pub(in crate::wire) fn to_bytes(self) -> [u8; HEADER_LEN] {
        assert!(self.body_len <= FRAME_BODY_MAX && self.payload_len <= FRAME_PAYLOAD_MAX);
        let mut bytes = [0; HEADER_LEN];
        bytes[0..4].copy_from_slice(&MAGIC);
        bytes[4..6].copy_from_slice(&VERSION.to_le_bytes());
        bytes[6] = self.kind as u8;
        bytes[8..12].copy_from_slice(&(self.body_len as u32).to_le_bytes());
        bytes[12..16].copy_from_slice(&(self.payload_len as u32).to_le_bytes());
        bytes[16..20].copy_from_slice(&self.body_crc.to_le_bytes());
        let crc = crc32fast::hash(&bytes[..20]);
        bytes[20..24].copy_from_slice(&crc.to_le_bytes());
        bytes
    }

    /// Reads and checks a header. Magic and version come first: they stay where they are in every version.
    pub(in crate::wire) fn from_bytes(bytes: &[u8; HEADER_LEN]) -> Result<Self, WireError> {
        if bytes[0..4] != MAGIC {
            return Err(Malformed("not a frame of this protocol").into());
        }
        let version = u16::from_le_bytes([bytes[4], bytes[5]]);
        if version != VERSION {
            return Err(WireError::Version(version));
        }
        let word = |at: usize| u32::from_le_bytes([bytes[at], bytes[at + 1], bytes[at + 2], bytes[at + 3]]);
        if word(20) != crc32fast::hash(&bytes[..20]) {
            return Err(Malformed("the header's checksum does not match").into());
        }
        let kind = Kind::from_u8(bytes[6]).ok_or(Malformed("a frame of unknown kind"))?;
        if bytes[7] != 0 {
            return Err(Malformed("the header's reserved byte is not 0").into());
        }
        let header = Self { kind, body_len: word(8) as usize, payload_len: word(12) as usize, body_crc: word(16) };
        if header.body_len > FRAME_BODY_MAX {
            return Err(Malformed("the body is longer than allowed").into());
        }
        if header.payload_len > FRAME_PAYLOAD_MAX || !(header.payload_len as u64).is_multiple_of(BLOCK_SIZE) {
            return Err(Malformed("the payload is longer than allowed or not whole blocks").into());
        }
        Ok(header)
    }
}

/// Whether these first bytes of a connection belong to this protocol; anything else is HTTP or garbage.
#[must_use]
pub fn looks_like_wire(first: &[u8; 4]) -> bool {
    *first == MAGIC
}
