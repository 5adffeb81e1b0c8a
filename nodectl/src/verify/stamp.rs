//! Stamped blocks: every 4 KiB says which volume, block and write it is, and carries its own checksum.
//!
//! A block that reads back can then be judged without remembering its content: it is exactly a block of this place
//! or it is not, and its write number says whether an acknowledged write got lost. The filler depends on all three
//! numbers, so that a block is never all zeros and never equal to a neighbour's.
//!
//! | bytes | what |
//! |---|---|
//! | 0..8 | `BWstamp1` |
//! | 8..16 | volume id |
//! | 16..24 | block number in the volume |
//! | 24..32 | write number |
//! | 32..4092 | filler |
//! | 4092..4096 | CRC-32 of everything before |
//!
//! All little-endian.

use engine_core::limits::BLOCK_SIZE;
use engine_core::random::Random;

/// Bytes of a stamped block.
#[allow(clippy::cast_possible_truncation)] // 4096
pub(crate) const BLOCK: usize = BLOCK_SIZE as usize;
const MAGIC: [u8; 8] = *b"BWstamp1";
const SUM: usize = BLOCK - 4;

/// What a block says about itself.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) struct Stamp {
    /// The volume's id.
    pub(crate) volume: u64,
    /// Which 4 KiB of the volume.
    pub(crate) block: u64,
    /// Number of the write, growing for each block.
    pub(crate) number: u64,
}

/// What a block turned out to be.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum Content {
    /// Never written, or trimmed.
    Zero,
    /// A whole stamped block.
    Stamped(Stamp),
    /// Has our mark, but its checksum does not fit its content: torn or damaged.
    Torn,
    /// Something else.
    Foreign,
}

impl Stamp {
    /// Fills one block.
    pub(crate) fn fill(&self, block: &mut [u8]) {
        assert_eq!(block.len(), BLOCK);
        block[..8].copy_from_slice(&MAGIC);
        block[8..16].copy_from_slice(&self.volume.to_le_bytes());
        block[16..24].copy_from_slice(&self.block.to_le_bytes());
        block[24..32].copy_from_slice(&self.number.to_le_bytes());
        let mut filler = Random::new(self.volume ^ self.block.rotate_left(32) ^ self.number);
        for word in block[32..SUM].chunks_mut(8) {
            word.copy_from_slice(&filler.next_u64().to_le_bytes()[..word.len()]);
        }
        let sum = crc32fast::hash(&block[..SUM]);
        block[SUM..].copy_from_slice(&sum.to_le_bytes());
    }

    /// Judges one block.
    pub(crate) fn read(block: &[u8]) -> Content {
        assert_eq!(block.len(), BLOCK);
        if block[..8] != MAGIC {
            return if block.iter().all(|byte| *byte == 0) { Content::Zero } else { Content::Foreign };
        }
        if crc32fast::hash(&block[..SUM]).to_le_bytes() != block[SUM..] {
            return Content::Torn;
        }
        Content::Stamped(Self { volume: word(block, 8), block: word(block, 16), number: word(block, 24) })
    }
}

fn word(block: &[u8], at: usize) -> u64 {
    let mut bytes = [0; 8];
    bytes.copy_from_slice(&block[at..at + 8]);
    u64::from_le_bytes(bytes)
}

/// Why a block is not what it has to be.
#[derive(Debug, Clone, Copy, PartialEq, Eq, serde::Serialize)]
#[serde(rename_all = "snake_case")]
pub(crate) enum Wrong {
    /// An acknowledged write is not there: zeros, or an older write.
    Lost,
    /// Torn or damaged.
    Torn,
    /// A stamped block of another volume or place.
    Misplaced,
    /// Not written by `verify write`.
    Foreign,
    /// Could not be read.
    Unreadable,
    /// Members hold different content.
    Differs,
}

/// Judges what is at `block` of `volume`, where write `acknowledged` is the last known to be acknowledged, and `zeros` the
/// last that would have written zeros there (if any).
pub(crate) fn judge(
    content: Content,
    volume: u64,
    block: u64,
    acknowledged: Option<u64>,
    zeros: Option<u64>,
) -> Result<(), Wrong> {
    match (content, acknowledged) {
        (Content::Torn, _) => Err(Wrong::Torn),
        (Content::Foreign, _) => Err(Wrong::Foreign),
        // Also where nothing is acknowledged: `None` is below any number.
        (Content::Zero, acknowledged) if acknowledged <= zeros => Ok(()),
        (Content::Zero, _) => Err(Wrong::Lost),
        (Content::Stamped(stamp), _) if (stamp.volume, stamp.block) != (volume, block) => Err(Wrong::Misplaced),
        (Content::Stamped(stamp), Some(number)) if stamp.number < number => Err(Wrong::Lost),
        (Content::Stamped(_), _) => Ok(()),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn filled(volume: u64, block: u64, number: u64) -> Vec<u8> {
        let mut bytes = vec![0; BLOCK];
        Stamp { volume, block, number }.fill(&mut bytes);
        bytes
    }

    #[test]
    fn what_was_stamped_is_read() {
        let stamp = Stamp { volume: 7, block: 1 << 40, number: 3 };
        assert_eq!(Stamp::read(&filled(7, 1 << 40, 3)), Content::Stamped(stamp));
        assert_ne!(filled(7, 1, 3)[32..64], filled(7, 1, 4)[32..64], "content differs by write");
        assert_ne!(filled(7, 1, 3)[32..64], filled(7, 2, 3)[32..64], "content differs by block");
    }

    #[test]
    fn every_single_flipped_byte_shows() {
        let good = filled(1, 2, 3);
        for at in 0..BLOCK {
            let mut bad = good.clone();
            bad[at] ^= 0x40;
            assert!(matches!(Stamp::read(&bad), Content::Torn | Content::Foreign), "byte {at}");
        }
        let mut half = filled(1, 2, 4);
        half[2048..].copy_from_slice(&good[2048..]);
        assert_eq!(Stamp::read(&half), Content::Torn, "half of another write");
    }

    #[test]
    fn judging() {
        let here = |number| Content::Stamped(Stamp { volume: 7, block: 5, number });
        let table = [
            ("acknowledged and there", here(3), Some(3), None, Ok(())),
            ("a later one is there", here(9), Some(3), None, Ok(())),
            ("an older one is there", here(2), Some(3), None, Err(Wrong::Lost)),
            ("zeros instead", Content::Zero, Some(3), None, Err(Wrong::Lost)),
            ("zeros, as acknowledged", Content::Zero, Some(3), Some(3), Ok(())),
            ("zeros that were under way", Content::Zero, Some(3), Some(4), Ok(())),
            ("zeros from before", Content::Zero, Some(3), Some(2), Err(Wrong::Lost)),
            ("what was there before the zeros", here(2), Some(3), Some(3), Err(Wrong::Lost)),
            ("a later one behind zeros", here(4), Some(3), Some(3), Ok(())),
            ("zeros under way that never came", here(3), Some(3), Some(4), Ok(())),
            ("never acknowledged, not written", Content::Zero, None, None, Ok(())),
            ("never acknowledged, yet zeros", Content::Zero, None, Some(1), Ok(())),
            ("never acknowledged, yet written", here(1), None, None, Ok(())),
            ("torn", Content::Torn, None, None, Err(Wrong::Torn)),
            ("foreign", Content::Foreign, None, None, Err(Wrong::Foreign)),
        ];
        for (story, content, acknowledged, zeros, verdict) in table {
            assert_eq!(judge(content, 7, 5, acknowledged, zeros), verdict, "{story}");
        }
        assert_eq!(judge(here(3), 8, 5, None, None), Err(Wrong::Misplaced));
        assert_eq!(judge(here(3), 7, 6, Some(1), None), Err(Wrong::Misplaced));
    }
}
