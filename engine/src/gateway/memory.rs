//! A thin volume in memory, for testing the server above it without a cluster.
//!
//! Blocks nobody wrote do not exist and read as zeros; zeroing with `punch` makes whole blocks cease to exist.

use std::cell::{Cell, RefCell};
use std::collections::BTreeMap;

use bytes::{Bytes, BytesMut};
use engine_core::limits::BLOCK_SIZE;

use super::{Export, ExportError};

/// A block's bytes as the length of an array.
#[allow(clippy::cast_possible_truncation, reason = "4096")]
const BLOCK: usize = BLOCK_SIZE as usize;

type Block = Box<[u8; BLOCK]>;

/// See the module.
#[derive(Debug)]
pub struct MemoryVolume {
    size: u64,
    blocks: RefCell<BTreeMap<u64, Block>>,
    fenced: Cell<bool>,
}

impl MemoryVolume {
    /// An empty volume of that many bytes.
    #[must_use]
    pub fn new(size: u64) -> Self {
        Self { size, blocks: RefCell::default(), fenced: Cell::new(false) }
    }

    /// From now on it behaves like a volume attached somewhere else.
    pub fn fence(&self) {
        self.fenced.set(true);
    }

    /// Blocks that exist.
    #[must_use]
    pub fn used_blocks(&self) -> usize {
        self.blocks.borrow().len()
    }

    fn check(&self) -> Result<(), ExportError> {
        if self.fenced.get() { Err(ExportError::Fenced) } else { Ok(()) }
    }
}

/// The parts of a range in each of its blocks: block, first byte in it, bytes.
fn parts(offset: u64, len: u64) -> impl Iterator<Item = (u64, usize, usize)> {
    let end = offset + len;
    (offset / BLOCK_SIZE..end.div_ceil(BLOCK_SIZE)).map(move |block| {
        let from = offset.max(block * BLOCK_SIZE);
        let to = end.min((block + 1) * BLOCK_SIZE);
        let in_block = |bytes: u64| usize::try_from(bytes).expect("at most a block");
        (block, in_block(from - block * BLOCK_SIZE), in_block(to - from))
    })
}

impl Export for MemoryVolume {
    fn size(&self) -> u64 {
        self.size
    }

    async fn read(&self, offset: u64, len: u64) -> Result<Bytes, ExportError> {
        self.check()?;
        let blocks = self.blocks.borrow();
        let mut out = BytesMut::new();
        for (block, from, len) in parts(offset, len) {
            match blocks.get(&block) {
                Some(data) => out.extend_from_slice(&data[from..from + len]),
                None => out.resize(out.len() + len, 0),
            }
        }
        Ok(out.freeze())
    }

    async fn write(&self, offset: u64, data: Bytes) -> Result<(), ExportError> {
        self.check()?;
        let mut blocks = self.blocks.borrow_mut();
        let mut rest = &data[..];
        for (block, from, len) in parts(offset, data.len() as u64) {
            let (head, tail) = rest.split_at(len);
            let block = blocks.entry(block).or_insert_with(|| Box::new([0; BLOCK]));
            block[from..from + len].copy_from_slice(head);
            rest = tail;
        }
        Ok(())
    }

    async fn zero(&self, offset: u64, len: u64, punch: bool) -> Result<(), ExportError> {
        self.check()?;
        let mut blocks = self.blocks.borrow_mut();
        for (block, from, len) in parts(offset, len) {
            if punch && len as u64 == BLOCK_SIZE {
                blocks.remove(&block);
            } else if punch {
                blocks.entry(block).and_modify(|data| data[from..from + len].fill(0));
            } else {
                blocks.entry(block).or_insert_with(|| Box::new([0; BLOCK]))[from..from + len].fill(0);
            }
        }
        Ok(())
    }

    async fn allocation(&self, offset: u64, len: u64) -> Result<Vec<(u64, bool)>, ExportError> {
        self.check()?;
        let blocks = self.blocks.borrow();
        Ok(parts(offset, len).map(|(block, _, len)| (len as u64, blocks.contains_key(&block))).collect())
    }

    fn is_fenced(&self) -> bool {
        self.fenced.get()
    }
}
