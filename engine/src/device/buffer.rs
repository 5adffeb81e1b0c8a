//! Buffers a device can read into and write from: aligned to 4 KiB, a multiple of 4 KiB long.
//!
//! Each thread keeps some that were given up, by length, so that the steady state of I/O asks nobody for memory and
//! clears none of it. Buffers of one block, by far the most, are cut out of larger pieces and never given back to the
//! system: an allocator that aligns each of them by itself needs twice the memory and ten times the time. A piece costs
//! as much time as several writes (page by page the kernel finds it, clears it, and on a virtual machine waits for the
//! host): what a node is going to need is set aside beforehand. A buffer is given up by its last owner alone, and that is
//! never somebody the kernel may still write for (`uring`).

use std::alloc::{Layout, alloc_zeroed, dealloc, handle_alloc_error};
use std::cell::RefCell;
use std::ops::{Deref, DerefMut};
use std::ptr::NonNull;
use std::sync::{Mutex, PoisonError};

use engine_core::limits::{POOL_BUFFER_MAX, POOL_BYTES_MAX};

const ALIGN: usize = 4096;
/// Bytes that buffers of one block are cut out of.
const PIECE: usize = 128 * ALIGN;
/// Shelves for lengths of 1, 2, 3... blocks up to this many; longer ones are kept by powers of two.
const FINE: usize = 16;
const SHELVES: usize = FINE + (POOL_BUFFER_MAX / ALIGN / FINE).ilog2() as usize + 1;

/// An owned, aligned run of bytes, all of them initialised.
pub struct AlignedBuf {
    start: NonNull<u8>,
    len: usize,
    /// Bytes there are, at least `len`.
    room: usize,
}

// SAFETY: it owns its memory alone, like a Box<[u8]>.
unsafe impl Send for AlignedBuf {}
// SAFETY: shared access is read-only.
unsafe impl Sync for AlignedBuf {}

/// What a thread keeps, by length.
struct Pool {
    shelves: [Vec<NonNull<u8>>; SHELVES],
    bytes: usize,
}

/// A buffer of one block that nobody has, or the first of a piece.
struct Block(NonNull<u8>);

// SAFETY: whoever has it owns its memory alone.
unsafe impl Send for Block {}

/// Pieces set aside, of which nothing was cut yet.
static PIECES: Mutex<Vec<Block>> = Mutex::new(Vec::new());

/// Buffers of one block of threads that have ended.
static ORPHANS: Mutex<Vec<Block>> = Mutex::new(Vec::new());

thread_local! {
    static POOL: RefCell<Pool> = const { RefCell::new(Pool { shelves: [const { Vec::new() }; SHELVES], bytes: 0 }) };
}

/// The shelf for a length, and the length of what lies there; `None`: too long to be kept.
const fn shelf(len: usize) -> Option<(usize, usize)> {
    let blocks = len / ALIGN;
    if blocks <= FINE {
        return Some((blocks - 1, len));
    }
    let room = len.next_power_of_two();
    if room > POOL_BUFFER_MAX {
        return None;
    }
    Some((FINE - 1 + (room / ALIGN / FINE).ilog2() as usize, room))
}

fn layout(len: usize) -> Layout {
    Layout::from_size_align(len, ALIGN).expect("a length that fits memory")
}

fn allocate(room: usize) -> NonNull<u8> {
    let layout = layout(room);
    // SAFETY: the layout is not of size 0.
    NonNull::new(unsafe { alloc_zeroed(layout) }).unwrap_or_else(|| handle_alloc_error(layout))
}

/// A piece of zero bytes that is never unmapped. Memory that is touched block by block costs a fault for each; here the
/// kernel maps all of it at once. Large pages were tried, also from a thread of their own: where the page cache has filled
/// the memory, finding one costs far more than its faults.
fn map_piece() -> NonNull<u8> {
    let (access, flags) = (libc::PROT_READ | libc::PROT_WRITE, libc::MAP_PRIVATE | libc::MAP_ANONYMOUS);
    // SAFETY: a new mapping, of which nobody else knows.
    let start = unsafe { libc::mmap(std::ptr::null_mut(), PIECE, access, flags | libc::MAP_POPULATE, -1, 0) };
    match NonNull::new(start.cast::<u8>()) {
        Some(piece) if start != libc::MAP_FAILED => piece,
        _ => handle_alloc_error(layout(PIECE)),
    }
}

/// Sets so many bytes aside for buffers of one block, for whichever thread needs them first. Takes its time: for a thread
/// of its own.
pub fn set_aside(bytes: u64) {
    for _ in 0..bytes / PIECE as u64 {
        let piece = Block(map_piece());
        PIECES.lock().unwrap_or_else(PoisonError::into_inner).push(piece);
    }
}

impl Pool {
    fn take(&mut self, len: usize) -> Option<(NonNull<u8>, usize)> {
        let (shelf, room) = shelf(len)?;
        let start = self.shelves[shelf].pop()?;
        if room > ALIGN {
            self.bytes -= room;
        }
        Some((start, room))
    }

    /// More buffers of one block.
    fn refill(&mut self) {
        let mut orphans = ORPHANS.lock().unwrap_or_else(PoisonError::into_inner);
        if orphans.is_empty() {
            let spare = PIECES.lock().unwrap_or_else(PoisonError::into_inner).pop();
            let piece = spare.map_or_else(map_piece, |first| first.0);
            // SAFETY: each begins within the piece, which is never unmapped.
            self.shelves[0].extend((0..PIECE / ALIGN).map(|block| unsafe { piece.add(block * ALIGN) }));
        } else {
            self.shelves[0].extend(orphans.drain(..).map(|block| block.0));
        }
    }

    /// `false`: there is no place for it.
    fn keep(&mut self, start: NonNull<u8>, room: usize) -> bool {
        if room == ALIGN {
            self.shelves[0].push(start);
            return true;
        }
        let Some((shelf, kept)) = shelf(room).filter(|_| self.bytes + room <= POOL_BYTES_MAX) else { return false };
        debug_assert_eq!(kept, room, "what lies on a shelf has its length");
        self.bytes += room;
        self.shelves[shelf].push(start);
        true
    }
}

impl Drop for Pool {
    fn drop(&mut self) {
        orphan(self.shelves[0].drain(..));
        for (index, starts) in self.shelves.iter_mut().enumerate() {
            let room = if index < FINE { (index + 1) * ALIGN } else { (FINE * ALIGN) << (index - FINE + 1) };
            for start in starts.drain(..) {
                // SAFETY: allocated in `allocate` with this length, the one of its shelf.
                unsafe { dealloc(start.as_ptr(), layout(room)) }
            }
        }
    }
}

fn orphan(starts: impl Iterator<Item = NonNull<u8>>) {
    ORPHANS.lock().unwrap_or_else(PoisonError::into_inner).extend(starts.map(Block));
}

impl AlignedBuf {
    /// `len` zero bytes; `len` is a multiple of 4 KiB and not 0.
    #[must_use]
    pub fn zeroed(len: usize) -> Self {
        let (mut buffer, used) = Self::get(len);
        if used {
            buffer.fill(0);
        }
        buffer
    }

    /// `len` bytes of whatever was there before, for who overwrites all of them; `len` as in [`AlignedBuf::zeroed`].
    #[must_use]
    pub fn to_fill(len: usize) -> Self {
        Self::get(len).0
    }

    /// And whether it was used before.
    fn get(len: usize) -> (Self, bool) {
        assert!(len > 0 && len.is_multiple_of(ALIGN), "{len} bytes is not a whole number of blocks");
        let kept = POOL.try_with(|pool| {
            let mut pool = pool.borrow_mut();
            if len == ALIGN && pool.shelves[0].is_empty() {
                pool.refill();
            }
            pool.take(len)
        });
        // A thread at its end has no pool any more.
        if let Some((start, room)) = kept.ok().flatten() {
            return (Self { start, len, room }, true);
        }
        let room = shelf(len).map_or(len, |(_, room)| room);
        (Self { start: allocate(room), len, room }, false)
    }
}

impl Drop for AlignedBuf {
    fn drop(&mut self) {
        let kept = POOL.try_with(|pool| pool.borrow_mut().keep(self.start, self.room)).unwrap_or(false);
        if kept {
            return;
        }
        if self.room == ALIGN {
            orphan(std::iter::once(self.start));
        } else {
            // SAFETY: allocated in `allocate` with this length.
            unsafe { dealloc(self.start.as_ptr(), layout(self.room)) }
        }
    }
}

impl Deref for AlignedBuf {
    type Target = [u8];

    fn deref(&self) -> &[u8] {
        // SAFETY: `start` points to `len` initialised bytes owned by self.
        unsafe { std::slice::from_raw_parts(self.start.as_ptr(), self.len) }
    }
}

impl DerefMut for AlignedBuf {
    fn deref_mut(&mut self) -> &mut [u8] {
        // SAFETY: as in `deref`, and self is borrowed mutably.
        unsafe { std::slice::from_raw_parts_mut(self.start.as_ptr(), self.len) }
    }
}

impl AsRef<[u8]> for AlignedBuf {
    fn as_ref(&self) -> &[u8] {
        self
    }
}

impl std::fmt::Debug for AlignedBuf {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        write!(f, "AlignedBuf({})", self.len)
    }
}

const _: () = assert!(POOL_BUFFER_MAX.is_power_of_two() && POOL_BUFFER_MAX > FINE * ALIGN);

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_buffer_that_is_given_up_serves_again_and_zeros_are_zeros() {
        for blocks in [1, 3, 16, 17, 20, 32, 33, 256, POOL_BUFFER_MAX / ALIGN, POOL_BUFFER_MAX / ALIGN + 1] {
            let len = blocks * ALIGN;
            let mut first = AlignedBuf::to_fill(len);
            first.fill(7);
            let at = first.as_ptr();
            drop(first);
            let again = AlignedBuf::to_fill(len);
            assert_eq!(again.len(), len);
            assert_eq!(at == again.as_ptr() && again[0] == 7, len <= POOL_BUFFER_MAX, "{blocks} blocks");
            drop(again);
            assert!(AlignedBuf::zeroed(len).iter().all(|byte| *byte == 0));
        }
    }

    #[test]
    fn what_a_thread_keeps_is_bounded() {
        let long = 2 * ALIGN;
        let buffers: Vec<AlignedBuf> = (0..POOL_BYTES_MAX / long + 10).map(|_| AlignedBuf::to_fill(long)).collect();
        drop(buffers);
        POOL.with(|pool| assert!(pool.borrow().bytes <= POOL_BYTES_MAX));
        // What was made here may end elsewhere.
        let buffers: Vec<AlignedBuf> = (0..1000).map(|_| AlignedBuf::zeroed(ALIGN)).collect();
        let starts: std::collections::BTreeSet<_> = buffers.iter().map(|buffer| buffer.as_ptr()).collect();
        assert_eq!(starts.len(), 1000, "each is a buffer of its own");
        std::thread::spawn(move || drop(buffers)).join().expect("it only drops buffers");
    }
}
