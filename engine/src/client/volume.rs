//! What bytes of a volume become: whole blocks of segments, read, changed and joined again.
//!
//! The edges of a change that do not fall on blocks are read, patched and written back while the range is held alone
//! (`locks`); everything else goes through uncopied. Every block gets its checksum here, and every block read is compared
//! with its own before it is believed.

use std::rc::Rc;

use bytes::{Bytes, BytesMut};
use engine_core::client::{Answer, Failure};
use engine_core::ids::{BlockIndex, Generation, NodeId, SegmentId};
use engine_core::limits::{ALLOCATION_BLOCKS_MAX, BLOCK_SIZE, REQUEST_BYTES_MAX, ZERO_BYTES_MAX};
use engine_core::message::{Op, Outcome};
use engine_core::record::{Blocks, Change};
use tokio::sync::oneshot;

use super::locks::Held;
use super::{Options, Shared, Stats, nodes};
use crate::authority::api::VolumeMap;
use crate::gateway::{Export, ExportError};
use crate::wire::{check_sums, with_sums};

/// Bytes of one question for allocation.
const ALLOCATION_BYTES_MAX: u64 = ALLOCATION_BLOCKS_MAX as u64 * BLOCK_SIZE;
/// Questions for allocation asked at a time; what is behind them is left for the next call.
const ALLOCATION_PIECES_MAX: usize = 64;
/// Reads of a block whose checksum does not match, before that is an error.
const READ_ATTEMPTS: u32 = 3;
/// What zeros are written from.
static ZEROS: [u8; ZEROS_LEN] = [0; ZEROS_LEN];
#[allow(clippy::cast_possible_truncation)] // 1 MiB
const ZEROS_LEN: usize = REQUEST_BYTES_MAX as usize;

type Receiver = oneshot::Receiver<Result<Answer, Failure>>;

/// An attached volume. Clones are the same volume; the last one that goes closes its connections.
#[derive(Clone)]
pub struct Volume(Rc<Handle>);

impl std::fmt::Debug for Volume {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        write!(f, "Volume({}, {})", self.0.shared.volume, self.0.shared.generation)
    }
}

struct Handle {
    shared: Rc<Shared>,
}

impl Drop for Handle {
    fn drop(&mut self) {
        self.shared.close();
    }
}

/// What a range is changed to.
#[derive(Clone)]
enum Fill {
    Data(Bytes),
    /// Zeros that keep their space.
    Zeros(u64),
    /// Zeros that use no space.
    Hole(u64),
}

impl Fill {
    const fn len(&self) -> u64 {
        match self {
            Self::Data(data) => data.len() as u64,
            Self::Zeros(len) | Self::Hole(len) => *len,
        }
    }

    fn slice(&self, start: u64, len: u64) -> Self {
        match self {
            Self::Data(data) => Self::Data(data.slice(index(start)..index(start + len))),
            Self::Zeros(_) => Self::Zeros(len),
            Self::Hole(_) => Self::Hole(len),
        }
    }

    fn piece_max(&self) -> u64 {
        if let Self::Hole(_) = self { ZERO_BYTES_MAX } else { REQUEST_BYTES_MAX }
    }
}

/// A part of a range that lies in one segment.
#[derive(Debug, Clone, Copy)]
struct Piece {
    /// From the beginning of the range.
    at: u64,
    segment: SegmentId,
    block: BlockIndex,
    len: u64,
}

impl Piece {
    #[allow(clippy::cast_possible_truncation)] // a segment has fewer than 2^32 blocks
    const fn count(&self) -> u32 {
        (self.len / BLOCK_SIZE) as u32
    }
}

/// A length in memory.
fn index(bytes: u64) -> usize {
    usize::try_from(bytes).expect("ranges in memory are far shorter than its addresses")
}

impl Volume {
    /// Opens a volume by its map. Connections are made in the background; nothing is asked before somebody asks.
    /// Must be called inside a `LocalSet`.
    #[must_use]
    pub fn open(map: VolumeMap, options: Options) -> Self {
        Self(Rc::new(Handle { shared: Shared::open(map, options) }))
    }

    /// Ends it: everything undecided fails, connections close.
    pub fn close(&self) {
        self.0.shared.close();
    }

    /// The attachment it was opened with.
    #[must_use]
    pub fn generation(&self) -> Generation {
        self.0.shared.generation
    }

    /// What happened so far.
    #[must_use]
    pub fn stats(&self) -> Stats {
        self.0.shared.stats.get()
    }

    /// Counts from nothing again.
    pub fn reset_stats(&self) {
        self.0.shared.stats.set(Stats::default());
    }

    /// Reads whole blocks from what one node holds of them, whatever its role: for verification. Waits for a
    /// connection with the node as long as the caller does.
    pub async fn peek(&self, node: NodeId, offset: u64, len: u64) -> Result<Bytes, ExportError> {
        self.check(offset, len)?;
        if !is_whole(offset, len) {
            return Err(ExportError::Io("only whole blocks can be peeked at".into()));
        }
        let shared = &self.0.shared;
        let Some(target) = shared.node(node) else {
            return Err(ExportError::Io(format!("{node} is not in the volume's map")));
        };
        let mut joined = BytesMut::with_capacity(index(len));
        for piece in self.pieces(offset, len, REQUEST_BYTES_MAX) {
            let op = Op::Peek { block: piece.block, count: piece.count() };
            let blocks = match nodes::peek(shared, &target, piece.segment, op).await {
                Some(Outcome::Data(blocks)) if blocks.is_well_formed() && blocks.count() == piece.count() => blocks,
                Some(other) => return Err(ExportError::Io(format!("{node} answers a peek with {other:?}"))),
                None => return Err(ExportError::Io(format!("the connection with {node} was lost"))),
            };
            check_sums(piece.segment, piece.block, &blocks).map_err(|block| mismatch(piece.segment, block))?;
            joined.extend_from_slice(&blocks.data);
        }
        Ok(joined.freeze())
    }

    fn check(&self, offset: u64, len: u64) -> Result<(), ExportError> {
        let fits = offset.checked_add(len).is_some_and(|end| end <= self.0.shared.size);
        if fits && len > 0 { Ok(()) } else { Err(ExportError::Io("outside the volume".into())) }
    }

    /// The requests a range of whole blocks takes.
    fn pieces(&self, offset: u64, len: u64, piece_max: u64) -> impl Iterator<Item = Piece> + '_ {
        let shared = &self.0.shared;
        let mut at = 0;
        std::iter::from_fn(move || {
            let run = shared.layout.first_run(offset + at, (len - at).min(piece_max))?;
            let segment = SegmentId { volume: shared.volume, index: run.segment };
            let piece = Piece { at, segment, block: run.block(), len: run.len };
            at += run.len;
            Some(piece)
        })
    }

    async fn start(&self, piece: &Piece, op: Op, held: Option<&Rc<Held>>) -> Result<Receiver, ExportError> {
        self.0.shared.start(piece.segment.index, op, held.cloned()).await
    }

    /// Reads whole blocks.
    async fn read_blocks(&self, offset: u64, len: u64) -> Result<Bytes, ExportError> {
        let pieces: Vec<Piece> = self.pieces(offset, len, REQUEST_BYTES_MAX).collect();
        if let [piece] = pieces[..] {
            let receiver = self.start_read(&piece).await?;
            return self.read_piece(&piece, receiver).await;
        }
        let mut receivers = Vec::with_capacity(pieces.len());
        for piece in &pieces {
            receivers.push(self.start_read(piece).await?);
        }
        let mut joined = BytesMut::with_capacity(index(len));
        for (piece, receiver) in pieces.iter().zip(receivers) {
            joined.extend_from_slice(&self.read_piece(piece, receiver).await?);
        }
        Ok(joined.freeze())
    }

    async fn start_read(&self, piece: &Piece) -> Result<Receiver, ExportError> {
        self.start(piece, Op::Read { block: piece.block, count: piece.count() }, None).await
    }

    async fn read_piece(&self, piece: &Piece, mut receiver: Receiver) -> Result<Bytes, ExportError> {
        let mut attempt = 1;
        loop {
            let blocks: Blocks = match answer(receiver).await? {
                Answer::Data(blocks) => blocks,
                _ => return Err(nonsense()),
            };
            match check_sums(piece.segment, piece.block, &blocks) {
                Ok(()) => return Ok(blocks.data),
                Err(block) if attempt >= READ_ATTEMPTS => return Err(mismatch(piece.segment, block)),
                Err(block) => tracing::warn!(segment = %piece.segment, %block, "a checksum does not match on arrival"),
            }
            attempt += 1;
            receiver = self.start_read(piece).await?;
        }
    }

    /// Changes a range of any alignment.
    async fn change(&self, offset: u64, fill: Fill) -> Result<(), ExportError> {
        let len = fill.len();
        self.check(offset, len)?;
        let end = offset + len;
        let whole = is_whole(offset, len);
        let range = offset / BLOCK_SIZE..end.div_ceil(BLOCK_SIZE);
        let held = Rc::new(self.0.shared.locks.hold(range, !whole).await);
        let mut receivers = Vec::new();
        if whole {
            self.start_change(offset, fill, &held, &mut receivers).await?;
            return written(receivers).await;
        }
        let (first, last) = (offset / BLOCK_SIZE * BLOCK_SIZE, end / BLOCK_SIZE * BLOCK_SIZE);
        let inner = offset.next_multiple_of(BLOCK_SIZE);
        let mut parts = Vec::with_capacity(3);
        if first != offset {
            parts.push((first, self.patched(first, offset, &fill).await?));
        }
        if last != end && (last != first || first == offset) {
            parts.push((last, self.patched(last, offset, &fill).await?));
        }
        if inner < last {
            parts.push((inner, fill.slice(inner - offset, last - inner)));
        }
        for (at, part) in parts {
            self.start_change(at, part, &held, &mut receivers).await?;
        }
        written(receivers).await
    }

    /// The block at `block` with what `fill` (beginning at `offset`) says of it put in.
    async fn patched(&self, block: u64, offset: u64, fill: &Fill) -> Result<Fill, ExportError> {
        let mut data = BytesMut::from(&self.read_blocks(block, BLOCK_SIZE).await?[..]);
        let (start, end) = (block.max(offset), (block + BLOCK_SIZE).min(offset + fill.len()));
        let target = &mut data[index(start - block)..index(end - block)];
        match fill {
            Fill::Data(bytes) => target.copy_from_slice(&bytes[index(start - offset)..index(end - offset)]),
            Fill::Zeros(_) | Fill::Hole(_) => target.fill(0),
        }
        Ok(Fill::Data(data.freeze()))
    }

    /// Begins a change of whole blocks, all its pieces at a time.
    async fn start_change(
        &self,
        offset: u64,
        fill: Fill,
        held: &Rc<Held>,
        receivers: &mut Vec<Receiver>,
    ) -> Result<(), ExportError> {
        for piece in self.pieces(offset, fill.len(), fill.piece_max()) {
            let change = match fill.slice(piece.at, piece.len) {
                Fill::Data(data) => {
                    Change::Write { block: piece.block, blocks: with_sums(piece.segment, piece.block, data) }
                }
                Fill::Zeros(len) => {
                    let zeros = Bytes::from_static(&ZEROS[..index(len)]);
                    Change::Write { block: piece.block, blocks: with_sums(piece.segment, piece.block, zeros) }
                }
                Fill::Hole(_) => Change::Zero { block: piece.block, count: piece.count() },
            };
            receivers.push(self.start(&piece, Op::Write(change), Some(held)).await?);
        }
        Ok(())
    }

    async fn allocated_blocks(&self, offset: u64, len: u64) -> Result<Vec<(u64, bool)>, ExportError> {
        let mut asked = Vec::new();
        for piece in self.pieces(offset, len, ALLOCATION_BYTES_MAX).take(ALLOCATION_PIECES_MAX) {
            let op = Op::Allocation { block: piece.block, count: piece.count() };
            asked.push((piece, self.start(&piece, op, None).await?));
        }
        let mut runs: Vec<(u64, bool)> = Vec::new();
        for (piece, receiver) in asked {
            let Answer::Allocation(found) = answer(receiver).await? else { return Err(nonsense()) };
            let mut covered = 0;
            for (blocks, data) in found {
                let bytes = u64::from(blocks) * BLOCK_SIZE;
                covered += bytes;
                match runs.last_mut() {
                    Some((run, same)) if *same == data => *run += bytes,
                    _ => runs.push((bytes, data)),
                }
            }
            if covered < piece.len {
                break; // behind a gap nothing can be said in order
            }
        }
        Ok(runs)
    }
}

impl Export for Volume {
    fn size(&self) -> u64 {
        self.0.shared.size
    }

    async fn read(&self, offset: u64, len: u64) -> Result<Bytes, ExportError> {
        self.check(offset, len)?;
        if is_whole(offset, len) {
            return self.read_blocks(offset, len).await;
        }
        let first = offset / BLOCK_SIZE * BLOCK_SIZE;
        let end = (offset + len).next_multiple_of(BLOCK_SIZE);
        let blocks = self.read_blocks(first, end - first).await?;
        Ok(blocks.slice(index(offset - first)..index(offset + len - first)))
    }

    async fn write(&self, offset: u64, data: Bytes) -> Result<(), ExportError> {
        self.change(offset, Fill::Data(data)).await
    }

    async fn zero(&self, offset: u64, len: u64, punch: bool) -> Result<(), ExportError> {
        self.change(offset, if punch { Fill::Hole(len) } else { Fill::Zeros(len) }).await
    }

    async fn allocation(&self, offset: u64, len: u64) -> Result<Vec<(u64, bool)>, ExportError> {
        self.check(offset, len)?;
        let first = offset / BLOCK_SIZE * BLOCK_SIZE;
        let end = (offset + len).next_multiple_of(BLOCK_SIZE);
        let mut runs = self.allocated_blocks(first, end - first).await?;
        // Both ends are cut to what was asked for; no run becomes empty, since each holds a whole block.
        let covered: u64 = runs.iter().map(|(bytes, _)| *bytes).sum();
        if let Some((bytes, _)) = runs.first_mut() {
            *bytes -= offset - first;
        }
        if let Some((bytes, _)) = runs.last_mut() {
            *bytes -= (first + covered).saturating_sub(offset + len);
        }
        Ok(runs)
    }

    fn is_fenced(&self) -> bool {
        self.0.shared.fenced.is_set()
    }
}

const fn is_whole(offset: u64, len: u64) -> bool {
    offset.is_multiple_of(BLOCK_SIZE) && len.is_multiple_of(BLOCK_SIZE)
}

async fn written(receivers: Vec<Receiver>) -> Result<(), ExportError> {
    for receiver in receivers {
        match answer(receiver).await? {
            Answer::Written => {}
            _ => return Err(nonsense()),
        }
    }
    Ok(())
}

async fn answer(receiver: Receiver) -> Result<Answer, ExportError> {
    match receiver.await {
        Ok(Ok(answer)) => Ok(answer),
        Ok(Err(Failure::Fenced)) => Err(ExportError::Fenced),
        Ok(Err(Failure::TimedOut)) => Err(ExportError::TimedOut),
        Ok(Err(Failure::Malformed)) => Err(nonsense()),
        Ok(Err(Failure::Corrupt(block))) => {
            Err(ExportError::Io(format!("block {} of its segment is damaged and could not be repaired", block.0)))
        }
        Err(_) => Err(ExportError::Io("the volume is closed".into())),
    }
}

fn nonsense() -> ExportError {
    ExportError::Io("the primary and this client do not understand each other".into())
}

fn mismatch(segment: SegmentId, block: BlockIndex) -> ExportError {
    ExportError::Io(format!("block {} of segment {segment} does not match its checksum", block.0))
}
