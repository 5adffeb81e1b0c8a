//! A shard's region of a device over io_uring and O_DIRECT.
//!
//! One ring per shard, used by its thread alone: where the kernel knows how, it is told so, and does the work of a
//! completion when this thread asks for it instead of interrupting it (DEFER_TASKRUN; [`Setup`] has the ways for older
//! kernels). Buffers of started operations live in `running` until the kernel has answered for them, whoever
//! submitted them: dropping the device waits for every answer before memory is freed. An eventfd is registered with
//! the ring, so that a tokio `AsyncFd` can wait for completions (the ring's own descriptor would tell nothing of deferred
//! ones). It is never read: every completion is an edge, and an edge is what is waited for.

use std::collections::VecDeque;
use std::io;
use std::os::fd::{AsRawFd, FromRawFd, OwnedFd, RawFd};

use engine_core::limits::{BLOCK_SIZE, DEVICE_INFLIGHT};
use io_uring::{IoUring, opcode, types};

use super::buffer::AlignedBuf;
use super::file::DeviceFile;
use super::{Completion, Device, Operation, Tag};

/// So many operations go to the device at once, although more may come in the same turn: it has something to do while the
/// rest is prepared.
const KICK_AT: usize = 4;

/// A started operation.
struct Running {
    tag: Tag,
    buffer: Option<AlignedBuf>,
    /// What a vectored write reads beside the buffer.
    _pieces: Option<Box<Pieces>>,
    /// Bytes it moves.
    len: usize,
}

/// The memory of a vectored write, and where the kernel finds its parts.
struct Pieces {
    _bytes: Vec<bytes::Bytes>,
    vectors: Vec<libc::iovec>,
}

/// How the kernel tells of completions.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Setup {
    /// When this thread, the only one that uses the ring, asks for them (Linux 6.1).
    Deferred,
    /// When this thread enters the kernel for whatever reason (Linux 5.19).
    Cooperative,
    /// At once, interrupting this thread.
    Plain,
}

impl Setup {
    /// Best first.
    pub const ALL: [Self; 3] = [Self::Deferred, Self::Cooperative, Self::Plain];

    fn ring(self) -> io::Result<IoUring> {
        let mut builder = IoUring::builder();
        match self {
            Self::Deferred => drop(builder.setup_single_issuer().setup_defer_taskrun().setup_taskrun_flag()),
            Self::Cooperative => drop(builder.setup_coop_taskrun().setup_taskrun_flag()),
            Self::Plain => {}
        }
        #[allow(clippy::cast_possible_truncation)] // a constant of 256
        builder.build(DEVICE_INFLIGHT as u32)
    }
}

/// See the module.
pub struct UringDevice {
    ring: IoUring,
    wake: OwnedFd,
    file: DeviceFile,
    base: u64,
    len: u64,
    queue: VecDeque<(Tag, Operation)>,
    /// Slot number = the ring's user data.
    running: Vec<Option<Running>>,
    free: Vec<usize>,
    /// The ring itself is broken: every operation ends with this.
    broken: Option<io::ErrorKind>,
    /// Ended without the ring.
    ended: Vec<Completion>,
}

impl UringDevice {
    /// A ring for the region `base..base + len` of a device. Call it on the thread that will use it.
    ///
    /// # Errors
    /// When the kernel gives no ring (io_uring disabled?).
    #[allow(clippy::needless_pass_by_value)] // it is kept, by a clone of each attempt
    pub fn new(file: DeviceFile, base: u64, len: u64) -> io::Result<Self> {
        let mut failed = io::Error::from(io::ErrorKind::Unsupported);
        for setup in Setup::ALL {
            match Self::with_setup(&file, base, len, setup) {
                Ok(device) => return Ok(device),
                // A kernel that does not know a flag says so; anything else another setup does not heal.
                Err(error) if error.raw_os_error() == Some(libc::EINVAL) => failed = error,
                Err(error) => return Err(error),
            }
        }
        Err(failed)
    }

    /// As [`UringDevice::new`], with this setup or none.
    ///
    /// # Errors
    /// `EINVAL` when the kernel does not know the setup.
    pub fn with_setup(file: &DeviceFile, base: u64, len: u64, setup: Setup) -> io::Result<Self> {
        assert!(base.is_multiple_of(BLOCK_SIZE) && len.is_multiple_of(BLOCK_SIZE), "regions are whole blocks");
        // The file is not registered with the ring: a killed process would leave it, and its lock, to a ring that the
        // kernel takes down in its own time, and the next one would find the device in use.
        let ring = setup.ring()?;
        // SAFETY: a plain system call without pointers.
        let raw = unsafe { libc::eventfd(0, libc::EFD_CLOEXEC | libc::EFD_NONBLOCK) };
        if raw < 0 {
            return Err(io::Error::last_os_error());
        }
        // SAFETY: just created, owned by nobody else.
        let wake = unsafe { OwnedFd::from_raw_fd(raw) };
        ring.submitter().register_eventfd(wake.as_raw_fd())?;
        Ok(Self {
            ring,
            wake,
            file: file.clone(),
            base,
            len,
            queue: VecDeque::new(),
            running: (0..DEVICE_INFLIGHT).map(|_| None).collect(),
            free: (0..DEVICE_INFLIGHT).rev().collect(),
            broken: None,
            ended: Vec::new(),
        })
    }

    fn start(&mut self, slot: usize, tag: Tag, operation: Operation) {
        let fd = types::Fd(self.file.raw_fd());
        let len = operation.span().map_or(0, |(_, len)| usize::try_from(len).expect("usize has 64 bits"));
        #[allow(clippy::cast_possible_truncation)] // buffers are at most a few MiB
        let (entry, buffer, pieces) = match operation {
            Operation::Read { offset, mut buffer } => {
                let read = opcode::Read::new(fd, buffer.as_mut_ptr(), buffer.len() as u32).offset(self.base + offset);
                (read.build(), Some(buffer), None)
            }
            Operation::Write { offset, buffer, durable } => {
                let flags = if durable { libc::RWF_DSYNC } else { 0 };
                let write = opcode::Write::new(fd, buffer.as_ptr(), buffer.len() as u32)
                    .offset(self.base + offset)
                    .rw_flags(flags);
                (write.build(), Some(buffer), None)
            }
            Operation::WriteVectored { offset, buffer, pieces, durable } => {
                let flags = if durable { libc::RWF_DSYNC } else { 0 };
                let vector =
                    |bytes: &[u8]| libc::iovec { iov_base: bytes.as_ptr().cast_mut().cast(), iov_len: bytes.len() };
                let vectors = buffer
                    .iter()
                    .map(|buffer| vector(buffer))
                    .chain(pieces.iter().map(|piece| vector(piece)))
                    .collect();
                let pieces = Box::new(Pieces { _bytes: pieces, vectors });
                let write = opcode::Writev::new(fd, pieces.vectors.as_ptr(), pieces.vectors.len() as u32)
                    .offset(self.base + offset)
                    .rw_flags(flags);
                (write.build(), buffer, Some(pieces))
            }
            // Completed writes are in the device by now, so no drain is needed: fdatasync covers all of them.
            Operation::Flush => (opcode::Fsync::new(fd).flags(types::FsyncFlags::DATASYNC).build(), None, None),
        };
        let entry = entry.user_data(slot as u64);
        // SAFETY: the memory of buffer and pieces does not move with their owners and stays in `running` until the
        // completion has been taken; the descriptor lives as long as `self.file`.
        let pushed = unsafe { self.ring.submission().push(&entry) };
        assert!(pushed.is_ok(), "the ring has a place for each of our slots");
        self.running[slot] = Some(Running { tag, buffer, _pieces: pieces, len });
    }

    fn collect(&mut self, done: &mut Vec<Completion>) {
        for entry in self.ring.completion() {
            let slot = usize::try_from(entry.user_data()).expect("our slot number");
            let Running { tag, buffer, len: want, .. } =
                self.running[slot].take().expect("a completion belongs to a running one");
            let result = match usize::try_from(entry.result()) {
                Err(_) => Err(io::Error::from_raw_os_error(-entry.result())),
                Ok(got) if got != want => {
                    Err(io::Error::new(io::ErrorKind::UnexpectedEof, format!("{got} of {want} bytes done")))
                }
                Ok(_) => Ok(()),
            };
            self.free.push(slot);
            done.push(Completion { tag, buffer, result });
        }
    }

    /// Lets the kernel finish what is done and waits for this thread to ask.
    fn run_deferred(&mut self) {
        if self.ring.submission().taskrun() {
            // What goes wrong here goes wrong again, and is looked at, when something is started.
            let _ = self.ring.submit();
        }
    }

    fn fail_queued(&mut self, kind: io::ErrorKind) {
        for (tag, operation) in self.queue.drain(..) {
            let buffer = match operation {
                Operation::Read { buffer, .. } | Operation::Write { buffer, .. } => Some(buffer),
                Operation::WriteVectored { buffer, .. } => buffer,
                Operation::Flush => None,
            };
            self.ended.push(Completion { tag, buffer, result: Err(kind.into()) });
        }
    }
}

impl Device for UringDevice {
    fn len(&self) -> u64 {
        self.len
    }

    fn submit(&mut self, tag: Tag, operation: Operation) {
        if let Some((offset, len)) = operation.span() {
            let fits = offset.checked_add(len).is_some_and(|end| end <= self.len);
            assert!(fits && offset.is_multiple_of(BLOCK_SIZE), "operation outside the region");
        }
        self.queue.push_back((tag, operation));
        if self.queue.len() >= KICK_AT {
            self.kick();
        }
    }

    fn kick(&mut self) {
        if let Some(kind) = self.broken {
            return self.fail_queued(kind);
        }
        while !self.queue.is_empty() {
            let Some(slot) = self.free.pop() else { break };
            if let Some((tag, operation)) = self.queue.pop_front() {
                self.start(slot, tag, operation);
            }
        }
        if self.ring.submission().is_empty() {
            return;
        }
        match self.ring.submit() {
            Ok(_) => {}
            // Full for now: what is left in the submission queue goes with the next kick.
            Err(error) if matches!(error.raw_os_error(), Some(libc::EINTR | libc::EAGAIN | libc::EBUSY)) => {}
            Err(error) => {
                self.broken = Some(error.kind());
                self.fail_queued(error.kind());
            }
        }
    }

    fn reap(&mut self, done: &mut Vec<Completion>) {
        self.run_deferred();
        self.collect(done);
        done.append(&mut self.ended);
        if !self.queue.is_empty() || !self.ring.submission().is_empty() {
            self.kick();
        }
    }

    fn wake_fd(&self) -> Option<RawFd> {
        Some(self.wake.as_raw_fd())
    }
}

impl Drop for UringDevice {
    fn drop(&mut self) {
        let mut done = Vec::new();
        while self.free.len() < DEVICE_INFLIGHT {
            match self.ring.submit_and_wait(1) {
                Ok(_) => self.collect(&mut done),
                Err(error) if error.kind() == io::ErrorKind::Interrupted => {}
                Err(error) => {
                    // The kernel may still write there: leaking is the only safe end.
                    tracing::error!(%error, "cannot wait for the device; its buffers are leaked");
                    for running in self.running.iter_mut().filter_map(Option::take) {
                        std::mem::forget(running);
                    }
                    return;
                }
            }
        }
    }
}

#[cfg(test)]
pub(crate) mod tests {
    #![allow(clippy::unwrap_used, clippy::cast_possible_truncation)]
    use super::*;

    /// A directory whose file system knows O_DIRECT; without one the test says that it is skipped.
    pub(crate) fn direct_dir() -> Option<tempfile::TempDir> {
        let exe = std::env::current_exe().unwrap();
        let dir = tempfile::tempdir_in(exe.parent().unwrap()).unwrap();
        let probe = DeviceFile::create(&dir.path().join("probe"), 1 << 20, &mut |_| ());
        match probe {
            Ok(_) => Some(dir),
            Err(error) => {
                eprintln!("SKIPPED: no O_DIRECT beside the test binary: {error}");
                None
            }
        }
    }

    fn wait(device: &mut UringDevice, want: usize) -> Vec<Completion> {
        let mut done = Vec::new();
        device.kick();
        while done.len() < want {
            let mut poll = libc::pollfd { fd: device.wake_fd().unwrap(), events: libc::POLLIN, revents: 0 };
            // SAFETY: one pollfd, as said.
            assert_eq!(unsafe { libc::poll(&raw mut poll, 1, 10_000) }, 1, "no completion in 10 s");
            let mut count = 0u64;
            // Here nobody waits for edges.
            // SAFETY: reads up to 8 bytes into 8 bytes; non-blocking.
            unsafe { libc::read(poll.fd, (&raw mut count).cast(), 8) };
            device.reap(&mut done);
        }
        done
    }

    #[test]
    fn what_is_written_is_read_in_its_own_region_even_beyond_the_rings_size() {
        for setup in Setup::ALL {
            write_and_read(setup);
        }
    }

    fn write_and_read(setup: Setup) {
        let Some(dir) = direct_dir() else { return };
        let file = DeviceFile::create(&dir.path().join("device"), 8 << 20, &mut |_| ()).unwrap();
        let mut device = match UringDevice::with_setup(&file, 1 << 20, 4 << 20, setup) {
            Ok(device) => device,
            Err(error) => return eprintln!("SKIPPED: {setup:?}: {error}"),
        };
        let blocks = DEVICE_INFLIGHT as u64 * 3;
        for block in 0..blocks {
            let mut buffer = AlignedBuf::zeroed(4096);
            buffer.fill(block as u8 | 1);
            device.submit(Tag(block), Operation::Write { offset: block * 4096, buffer, durable: block % 7 == 0 });
        }
        assert!(wait(&mut device, blocks as usize).iter().all(|done| done.result.is_ok()));
        device.submit(Tag(0), Operation::Flush);
        assert!(wait(&mut device, 1)[0].result.is_ok());
        for block in 0..blocks {
            device.submit(Tag(block), Operation::Read { offset: block * 4096, buffer: AlignedBuf::zeroed(4096) });
        }
        for done in wait(&mut device, blocks as usize) {
            done.result.unwrap();
            assert!(done.buffer.unwrap().iter().all(|byte| *byte == done.tag.0 as u8 | 1));
        }
        drop(device);
        // The neighbour's region is untouched.
        let mut outside = UringDevice::new(file, 0, 1 << 20).unwrap();
        outside.submit(Tag(1), Operation::Read { offset: 0, buffer: AlignedBuf::zeroed(1 << 20) });
        assert!(wait(&mut outside, 1).pop().unwrap().buffer.unwrap().iter().all(|byte| *byte == 0));
    }

    #[test]
    fn a_short_read_is_an_error_and_dropping_waits_for_what_runs() {
        let Some(dir) = direct_dir() else { return };
        let path = dir.path().join("device");
        let file = DeviceFile::create(&path, 2 << 20, &mut |_| ()).unwrap();
        let mut device = UringDevice::new(file, 0, 2 << 20).unwrap();
        std::fs::OpenOptions::new().write(true).open(&path).unwrap().set_len(1 << 20).unwrap();
        device.submit(Tag(1), Operation::Read { offset: (1 << 20) - 4096, buffer: AlignedBuf::zeroed(8192) });
        assert!(wait(&mut device, 1)[0].result.is_err());
        for block in 0..64 {
            let buffer = AlignedBuf::zeroed(64 * 1024);
            device.submit(Tag(block), Operation::Write { offset: block % 16 * 65536, buffer, durable: true });
        }
        device.kick();
        drop(device);
    }
}
