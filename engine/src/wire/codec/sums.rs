//! Checksums of blocks: computed by the client that writes, compared by whoever uses the data.

use bytes::Bytes;
use engine_core::ids::{BlockIndex, SegmentId};
use engine_core::record::{Blocks, sum_bytes, sum_seed};

use super::BLOCK_LEN;

fn sum(segment: SegmentId, block: BlockIndex, data: &[u8]) -> u32 {
    let mut hasher = crc32fast::Hasher::new_with_initial(sum_seed(segment, block));
    hasher.update(data);
    hasher.finalize()
}

/// Whole blocks of `data`, the first of them block `first` of `segment`, with their checksums.
#[must_use]
pub fn with_sums(segment: SegmentId, first: BlockIndex, data: Bytes) -> Blocks {
    assert!(data.len().is_multiple_of(BLOCK_LEN), "{} bytes are not whole blocks", data.len());
    let numbered = (first.0..).zip(data.chunks_exact(BLOCK_LEN));
    let sums = numbered.flat_map(|(block, data)| sum_bytes(sum(segment, BlockIndex(block), data)));
    let sums = sums.collect::<Vec<u8>>().into();
    Blocks { data, sums }
}

/// Compares every block with its checksum; `Err` names the first that differs.
pub fn check_sums(segment: SegmentId, first: BlockIndex, blocks: &Blocks) -> Result<(), BlockIndex> {
    let numbered = (0..).zip(blocks.data.chunks_exact(BLOCK_LEN));
    for (index, data) in numbered {
        let block = BlockIndex(first.0.wrapping_add(index));
        if sum(segment, block, data) != blocks.sum(index) {
            return Err(block);
        }
    }
    Ok(())
}
