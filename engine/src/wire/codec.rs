//! Bytes of every message: a `Writer` and a `Reader` by hand, and one list of fields per type (`codec/types.rs`).
//!
//! What comes in is hostile until decoded: every length is compared with what is really there before anything is
//! allocated, nothing panics, nothing may be left over. Block data is not in the body: it is taken from the payload,
//! as slices of the one buffer it was received into.

pub(super) mod frame;
mod sums;
mod types;

#[cfg(test)]
pub(super) mod sample;

pub use sums::{check_peer, check_request, check_sums, with_sums};

use bytes::Bytes;
use engine_core::limits::{BLOCK_SIZE, FRAME_BODY_MAX, FRAME_PAYLOAD_MAX, LIST_MAX, TEXT_BYTES_MAX};
use engine_core::record::Blocks;

use frame::{HEADER_LEN, Header, Kind};

#[allow(clippy::cast_possible_truncation)] // 4096
const BLOCK_LEN: usize = BLOCK_SIZE as usize;

/// What was wrong with bytes that should have been a frame.
#[derive(Debug, Clone, Copy, PartialEq, Eq, thiserror::Error)]
#[error("{0}")]
pub struct Malformed(pub &'static str);

/// A message that cannot be put into one frame: a mistake of whoever made it.
#[derive(Debug, Clone, Copy, PartialEq, Eq, thiserror::Error)]
#[error("a message that fits no frame: {0}")]
pub struct Unsendable(pub &'static str);

/// A type with bytes.
pub(super) trait Wire: Sized {
    fn put(&self, to: &mut Writer);
    fn get(from: &mut Reader<'_>) -> Result<Self, Malformed>;
}

/// One frame ready for a socket: header and body, then the payload's pieces as they are.
#[derive(Debug, Clone)]
pub(super) struct Frame {
    pub(super) head: Bytes,
    pub(super) payload: Vec<Bytes>,
}

impl Frame {
    pub(super) fn len(&self) -> usize {
        self.head.len() + self.payload.iter().map(Bytes::len).sum::<usize>()
    }
}

/// Collects a body and the pieces of its payload.
pub(super) struct Writer {
    head: Vec<u8>,
    payload: Vec<Bytes>,
    payload_len: usize,
    problem: Option<&'static str>,
}

impl Writer {
    fn bytes(&mut self, bytes: &[u8]) {
        self.head.extend_from_slice(bytes);
    }

    fn blocks(&mut self, blocks: &Blocks) {
        if !blocks.is_well_formed() {
            self.problem = Some("blocks without a checksum each");
            return;
        }
        blocks.count().put(self);
        self.bytes(&blocks.sums);
        if !blocks.data.is_empty() {
            self.payload_len += blocks.data.len();
            self.payload.push(blocks.data.clone());
        }
    }
}

/// The frame of one value.
pub(super) fn encode<T: Wire>(kind: Kind, value: &T) -> Result<Frame, Unsendable> {
    let mut head = Vec::with_capacity(128);
    head.resize(HEADER_LEN, 0);
    let mut writer = Writer { head, payload: Vec::new(), payload_len: 0, problem: None };
    value.put(&mut writer);
    let Writer { mut head, payload, payload_len, problem } = writer;
    if let Some(problem) = problem {
        return Err(Unsendable(problem));
    }
    let body = &head[HEADER_LEN..];
    if body.len() > FRAME_BODY_MAX || payload_len > FRAME_PAYLOAD_MAX {
        return Err(Unsendable("too long"));
    }
    let header = Header { kind, body_len: body.len(), payload_len, body_crc: crc32fast::hash(body) };
    head[..HEADER_LEN].copy_from_slice(&header.to_bytes());
    Ok(Frame { head: head.into(), payload })
}

/// The value of a body and its payload, all of both.
pub(super) fn decode<T: Wire>(body: &[u8], payload: Bytes) -> Result<T, Malformed> {
    let mut reader = Reader { body, payload };
    let value = T::get(&mut reader)?;
    if !reader.body.is_empty() || !reader.payload.is_empty() {
        return Err(Malformed("bytes left over behind the message"));
    }
    Ok(value)
}

/// Takes a body and its payload apart.
pub(super) struct Reader<'a> {
    body: &'a [u8],
    payload: Bytes,
}

impl<'a> Reader<'a> {
    fn bytes(&mut self, len: usize) -> Result<&'a [u8], Malformed> {
        let (taken, rest) = self.body.split_at_checked(len).ok_or(Malformed("the message ends too early"))?;
        self.body = rest;
        Ok(taken)
    }

    fn blocks(&mut self) -> Result<Blocks, Malformed> {
        let count = u32::get(self)? as usize;
        if count > self.payload.len() / BLOCK_LEN {
            return Err(Malformed("more blocks than payload"));
        }
        let sums = Bytes::copy_from_slice(self.bytes(count * 4)?);
        Ok(Blocks { data: self.payload.split_to(count * BLOCK_LEN), sums })
    }
}

macro_rules! integers {
    ($($type:ty),*) => {$(
        impl Wire for $type {
            fn put(&self, to: &mut Writer) {
                to.bytes(&self.to_le_bytes());
            }

            fn get(from: &mut Reader<'_>) -> Result<Self, Malformed> {
                let mut bytes = [0; size_of::<$type>()];
                bytes.copy_from_slice(from.bytes(size_of::<$type>())?);
                Ok(Self::from_le_bytes(bytes))
            }
        }
    )*};
}
integers!(u8, u16, u32, u64, u128);

impl Wire for bool {
    fn put(&self, to: &mut Writer) {
        u8::from(*self).put(to);
    }

    fn get(from: &mut Reader<'_>) -> Result<Self, Malformed> {
        match u8::get(from)? {
            0 => Ok(false),
            1 => Ok(true),
            _ => Err(Malformed("a truth value that is neither 0 nor 1")),
        }
    }
}

impl<T: Wire> Wire for Option<T> {
    fn put(&self, to: &mut Writer) {
        self.is_some().put(to);
        if let Some(value) = self {
            value.put(to);
        }
    }

    fn get(from: &mut Reader<'_>) -> Result<Self, Malformed> {
        if bool::get(from)? { T::get(from).map(Some) } else { Ok(None) }
    }
}

impl<T: Wire> Wire for Vec<T> {
    fn put(&self, to: &mut Writer) {
        if self.len() > LIST_MAX {
            to.problem = Some("a list longer than allowed");
            return;
        }
        u16::try_from(self.len()).unwrap_or(u16::MAX).put(to);
        for item in self {
            item.put(to);
        }
    }

    fn get(from: &mut Reader<'_>) -> Result<Self, Malformed> {
        let len = usize::from(u16::get(from)?);
        if len > LIST_MAX {
            return Err(Malformed("a list longer than allowed"));
        }
        // Every item has at least one byte: a length the body cannot hold never becomes an allocation.
        if len > from.body.len() {
            return Err(Malformed("the message ends too early"));
        }
        let mut list = Vec::with_capacity(len.min(64));
        for _ in 0..len {
            list.push(T::get(from)?);
        }
        Ok(list)
    }
}

impl Wire for String {
    fn put(&self, to: &mut Writer) {
        // A text is for people or is far shorter: cut rather than refused.
        let text = &self[..self.floor_char_boundary(TEXT_BYTES_MAX)];
        u16::try_from(text.len()).unwrap_or(u16::MAX).put(to);
        to.bytes(text.as_bytes());
    }

    fn get(from: &mut Reader<'_>) -> Result<Self, Malformed> {
        let len = usize::from(u16::get(from)?);
        if len > TEXT_BYTES_MAX {
            return Err(Malformed("a text longer than allowed"));
        }
        let text = core::str::from_utf8(from.bytes(len)?).map_err(|_| Malformed("a text that is not UTF-8"))?;
        Ok(text.into())
    }
}

impl Wire for Result<(), String> {
    fn put(&self, to: &mut Writer) {
        self.as_ref().err().cloned().put(to);
    }

    fn get(from: &mut Reader<'_>) -> Result<Self, Malformed> {
        Ok(Option::<String>::get(from)?.map_or(Ok(()), Err))
    }
}

impl<A: Wire, B: Wire> Wire for (A, B) {
    fn put(&self, to: &mut Writer) {
        self.0.put(to);
        self.1.put(to);
    }

    fn get(from: &mut Reader<'_>) -> Result<Self, Malformed> {
        Ok((A::get(from)?, B::get(from)?))
    }
}

impl Wire for Blocks {
    fn put(&self, to: &mut Writer) {
        to.blocks(self);
    }

    fn get(from: &mut Reader<'_>) -> Result<Self, Malformed> {
        from.blocks()
    }
}
