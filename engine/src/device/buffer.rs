//! Buffers a device can read into and write from: aligned to 4 KiB, a multiple of 4 KiB long.

use std::alloc::{Layout, alloc_zeroed, dealloc, handle_alloc_error};
use std::ops::{Deref, DerefMut};
use std::ptr::NonNull;

const ALIGN: usize = 4096;

/// An owned, aligned, zero-initialised run of bytes.
pub struct AlignedBuf {
    start: NonNull<u8>,
    len: usize,
}

// SAFETY: it owns its memory alone, like a Box<[u8]>.
unsafe impl Send for AlignedBuf {}
// SAFETY: shared access is read-only.
unsafe impl Sync for AlignedBuf {}

impl AlignedBuf {
    /// `len` zero bytes; `len` is a multiple of 4 KiB and not 0.
    #[must_use]
    pub fn zeroed(len: usize) -> Self {
        assert!(len > 0 && len.is_multiple_of(ALIGN), "{len} bytes is not a whole number of blocks");
        let layout = Layout::from_size_align(len, ALIGN).expect("a length that fits memory");
        // SAFETY: the layout is not of size 0.
        let raw = unsafe { alloc_zeroed(layout) };
        let start = NonNull::new(raw).unwrap_or_else(|| handle_alloc_error(layout));
        Self { start, len }
    }
}

impl Drop for AlignedBuf {
    fn drop(&mut self) {
        let layout = Layout::from_size_align(self.len, ALIGN).expect("as allocated");
        // SAFETY: allocated in `zeroed` with this layout.
        unsafe { dealloc(self.start.as_ptr(), layout) }
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
