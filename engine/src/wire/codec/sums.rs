//! Checksums of blocks: computed by the client that writes, compared by whoever uses the data.

use bytes::Bytes;
use engine_core::ids::{BlockIndex, SegmentId};
use engine_core::limits::EXTENT_BLOCKS;
use engine_core::message::{Op, Peer, PeerMessage, Request};
use engine_core::record::{Blocks, Change, ExtentCopy, sum_bytes, sum_seed};

use super::{BLOCK_LEN, Malformed};

const DAMAGED: Malformed = Malformed("a block that does not match its checksum");

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

/// Compares the blocks a request would write with their checksums: what was damaged on its way is nobody's write.
pub fn check_request(request: &Request) -> Result<(), Malformed> {
    match &request.op {
        Op::Write(change) => check_change(request.segment, change),
        _ => Ok(()),
    }
}

/// Compares the blocks a peer's message would have stored here with their checksums.
pub fn check_peer(message: &PeerMessage) -> Result<(), Malformed> {
    let segment = message.segment;
    match &message.body {
        Peer::Prepare { entry, .. } => check_change(segment, &entry.change),
        Peer::Reconcile { entries, .. } => entries.iter().try_for_each(|entry| check_change(segment, &entry.change)),
        Peer::CopyData { copy, .. } => check_copy(segment, copy),
        _ => Ok(()),
    }
}

fn check_change(segment: SegmentId, change: &Change) -> Result<(), Malformed> {
    match change {
        Change::Write { block, blocks } => check_sums(segment, *block, blocks).map_err(|_| DAMAGED),
        Change::Zero { .. } | Change::Nothing => Ok(()),
    }
}

fn check_copy(segment: SegmentId, copy: &ExtentCopy) -> Result<(), Malformed> {
    let first = copy.extent.0.checked_mul(EXTENT_BLOCKS).ok_or(Malformed("an extent that cannot be"))?;
    let present = (0..EXTENT_BLOCKS).filter(|block| copy.present & (1 << block) != 0);
    let mut content = (0..).zip(copy.blocks.data.chunks_exact(BLOCK_LEN)).zip(present);
    let damaged =
        |((at, data), block): ((u32, &[u8]), u32)| sum(segment, BlockIndex(first + block), data) != copy.blocks.sum(at);
    if content.any(damaged) { Err(DAMAGED) } else { Ok(()) }
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

#[cfg(test)]
mod tests {
    #![allow(clippy::unwrap_used)]

    use engine_core::ids::{Epoch, ExtentIndex, Incarnation, Seq, VolumeId};

    use super::*;

    const SEGMENT: SegmentId = SegmentId { volume: VolumeId(1), index: 2 };

    fn peer(body: Peer) -> PeerMessage {
        PeerMessage { segment: SEGMENT, incarnation: Incarnation(1), body }
    }

    #[test]
    fn a_bit_that_flips_on_the_way_is_seen_on_arrival() {
        let block = BlockIndex(2 * EXTENT_BLOCKS + 3);
        let good = with_sums(SEGMENT, block, Bytes::from(vec![7; BLOCK_LEN]));
        let mut data = good.data.to_vec();
        data[99] ^= 1;
        let bad = Blocks { data: data.into(), ..good.clone() };
        for (blocks, sound) in [(good, true), (bad, false)] {
            let (extent, stamp, present) = (ExtentIndex(2), Seq(1), 1 << 3);
            let copy = ExtentCopy { extent, stamp, present, blocks: blocks.clone() };
            assert_eq!(check_peer(&peer(Peer::CopyData { epoch: Epoch(1), copy })).is_ok(), sound);
            let entry =
                engine_core::record::Entry { epoch: Epoch(1), seq: Seq(1), change: Change::Write { block, blocks } };
            assert_eq!(check_peer(&peer(Peer::Prepare { commit: Seq(0), entry })).is_ok(), sound);
        }
    }
}
