//! The device under a simulated node's store: the production memory device, finished operation by operation when the
//! world says so, in any order. What is not durable when the node dies may be lost (`device::memory`).

use std::os::fd::RawFd;

use engine::device::memory::{Disk, MemoryDevice};
use engine::device::{Completion, Device, Operation, Tag};

/// A memory device whose operations take time.
pub(crate) struct SlowDevice {
    inner: MemoryDevice,
    ready: Vec<Completion>,
}

impl SlowDevice {
    pub(crate) fn new(disk: &Disk, base: u64, len: u64) -> Self {
        let mut inner = disk.device(base, len);
        inner.hold(true);
        Self { inner, ready: Vec::new() }
    }

    /// Operations under way.
    pub(crate) fn running(&self) -> usize {
        self.inner.running()
    }

    /// Finishes one of them.
    pub(crate) fn finish(&mut self, index: usize) {
        self.inner.finish(index, &mut self.ready);
    }
}

impl Device for SlowDevice {
    fn len(&self) -> u64 {
        self.inner.len()
    }

    fn submit(&mut self, tag: Tag, operation: Operation) {
        self.inner.submit(tag, operation);
    }

    fn kick(&mut self) {
        self.inner.kick();
    }

    fn reap(&mut self, done: &mut Vec<Completion>) {
        done.append(&mut self.ready);
    }

    fn wake_fd(&self) -> Option<RawFd> {
        None
    }
}
