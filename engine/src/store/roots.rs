//! The two roots of a shard, read: which of them counts when it is opened.
//!
//! Odd numbers are in root A, even ones in B, each a block of header that is durable after all it names. So once there
//! was a second checkpoint both headers are whole, with consecutive numbers; the body of the older may be half
//! overwritten by the next.

use super::findings::Findings;
use super::format::{ROOT_HEADER, RootHeader, RootReplica, claims_root, crc, decode_body, decode_header};
use super::read::BLOCK;
use super::report::{Place, Verdict};
use super::shard::Label;
use super::superblock::{OpenError, Region};
use crate::device::WholeDevice;
use crate::device::buffer::AlignedBuf;

/// What is where a root should be.
#[derive(Debug)]
pub(crate) enum RootFound {
    /// Nothing of this shard's.
    Nothing,
    /// A header that is damaged, or that cannot be read.
    BadHeader,
    /// A header whose body does not match it.
    BadBody(RootHeader),
    Whole(RootHeader, Vec<RootReplica>),
}

impl RootFound {
    /// What its header says, if that is whole.
    pub(crate) const fn header(&self) -> Option<&RootHeader> {
        match self {
            Self::BadBody(header) | Self::Whole(header, _) => Some(header),
            Self::Nothing | Self::BadHeader => None,
        }
    }
}

/// Reads both.
pub(crate) fn read_roots(whole: &mut impl WholeDevice, region: &Region, label: &Label) -> [RootFound; 2] {
    [0, 1].map(|which| read_root(whole, region, label, region.base + region.area_at(which)))
}

fn read_root(whole: &mut impl WholeDevice, region: &Region, label: &Label, at: u64) -> RootFound {
    let mut block = AlignedBuf::zeroed(BLOCK);
    if whole.read_at(at, &mut block).is_err() {
        return RootFound::BadHeader;
    }
    let Ok(header) = decode_header(&block) else {
        return if claims_root(&block) { RootFound::BadHeader } else { RootFound::Nothing };
    };
    if header.device != label.device || header.shard != label.shard {
        return RootFound::Nothing;
    }
    let fits = header.len <= region.area - ROOT_HEADER && header.position <= region.wal;
    if !fits || !header.position.is_multiple_of(4096) {
        return RootFound::BadHeader;
    }
    let Ok(len) = usize::try_from(header.len) else { return RootFound::BadHeader };
    let mut body = AlignedBuf::zeroed(len.next_multiple_of(BLOCK).max(BLOCK));
    if len > 0 && whole.read_at(at + ROOT_HEADER, &mut body).is_err() || crc(&body[..len]) != header.sum {
        return RootFound::BadBody(header);
    }
    match decode_body(&body[..len]) {
        Ok(replicas) => RootFound::Whole(header, replicas),
        Err(_) => RootFound::BadBody(header),
    }
}

/// The newest whole root; `true` when a newer one is damaged.
pub(crate) fn newest(
    roots: [RootFound; 2],
    region: &Region,
    findings: &mut Findings,
) -> Result<(RootHeader, Vec<RootReplica>, bool), OpenError> {
    let whole = |root: &RootFound| if let RootFound::Whole(header, _) = root { header.number } else { 0 };
    let number = roots.iter().map(whole).max().unwrap_or(0);
    let mut fell_back = false;
    for (which, root) in (0..).zip(&roots) {
        let newer = root.header().is_some_and(|header| header.number > number);
        fell_back |= newer;
        // The first checkpoint has no other beside it.
        let missing = number > 1 && matches!(root, RootFound::Nothing);
        let (verdict, what) = match root {
            _ if newer && number > 0 => (Verdict::Copied, "the newer root is damaged: the older one counts"),
            RootFound::BadHeader if number > 0 => (Verdict::Harmless, "the header of the other root is damaged"),
            _ if missing => (Verdict::Harmless, "the other root is gone"),
            _ => continue,
        };
        findings.add(region.base + region.area_at(which), "root", Place::default(), verdict, what.to_owned());
    }
    let found = roots.into_iter().find_map(|root| match root {
        RootFound::Whole(header, replicas) if header.number == number => Some((header, replicas)),
        _ => None,
    });
    let (header, replicas) = found.ok_or(OpenError::Damaged("no checkpoint of a shard is whole"))?;
    Ok((header, replicas, fell_back))
}
