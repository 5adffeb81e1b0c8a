//! A device in memory that forgets like a real one: for tests and the simulator.
//!
//! A [`Disk`] holds the bytes and is shared: the store's [`MemoryDevice`]s are handles on regions of it. Writes are
//! kept apart until a durable write or a flush makes them safe; [`Disk::crash`] decides sector by sector (4 KiB) which
//! of the others survive. Faults: writes fail, leave no trace or lie elsewhere, sectors cannot be read, a bit flips.
//! Nothing here is random by itself.

use std::cell::RefCell;
use std::collections::{BTreeMap, BTreeSet, VecDeque};
use std::io;
use std::os::fd::RawFd;
use std::rc::Rc;

use engine_core::limits::BLOCK_SIZE;
use engine_core::random::Random;

use super::buffer::AlignedBuf;
use super::{Completion, Device, Operation, Tag, WholeDevice};

#[allow(clippy::cast_possible_truncation)] // 4096
const SECTOR: usize = BLOCK_SIZE as usize;

type Sector = Box<[u8]>;

#[derive(Debug, Default)]
struct Bytes {
    size: u64,
    /// What survives. Sectors never written are absent: zeros.
    durable: BTreeMap<u64, Sector>,
    /// Completed, not yet durable; every version, oldest first.
    cached: BTreeMap<u64, Vec<Sector>>,
    /// Submitted, not completed, by (device, order).
    flying: BTreeMap<u64, (u64, AlignedBuf)>,
    next_flight: u64,
    faults: Faults,
    writes: u64,
    /// Bytes read of the whole device.
    read: u64,
    /// Sectors nobody needs any more, for the next write.
    spare: Vec<Sector>,
}

/// What goes wrong next.
#[derive(Debug, Default)]
struct Faults {
    /// Writes and flushes that end with this error and change nothing.
    fail_writes: (u64, i32),
    /// Writes that are reported done and leave no trace.
    lose_writes: u64,
    /// Writes that are reported done and lie one sector further.
    misdirect_writes: u64,
    /// Sectors that cannot be read until they are written again.
    unreadable: BTreeSet<u64>,
}

impl Bytes {
    fn read(&self, offset: u64, buffer: &mut [u8]) {
        for (index, chunk) in buffer.chunks_mut(SECTOR).enumerate() {
            let sector = offset / BLOCK_SIZE + index as u64;
            let newest = self.cached.get(&sector).and_then(|versions| versions.last());
            match newest.or_else(|| self.durable.get(&sector)) {
                Some(bytes) => chunk.copy_from_slice(bytes),
                None => chunk.fill(0),
            }
        }
    }

    fn write(&mut self, offset: u64, buffer: &[u8], durable: bool) {
        for (index, chunk) in buffer.chunks(SECTOR).enumerate() {
            let sector = offset / BLOCK_SIZE + index as u64;
            if !self.faults.unreadable.is_empty() {
                self.faults.unreadable.remove(&sector);
            }
            let bytes = self.filled(chunk);
            if durable {
                let old = self.cached.remove(&sector);
                self.spare.extend(old.into_iter().flatten());
                self.spare.extend(self.durable.insert(sector, bytes));
            } else {
                self.cached.entry(sector).or_default().push(bytes);
            }
        }
    }

    /// A sector with this content, of an old one's memory if there is one.
    fn filled(&mut self, content: &[u8]) -> Sector {
        match self.spare.pop().filter(|sector| sector.len() == content.len()) {
            Some(mut sector) => {
                sector.copy_from_slice(content);
                sector
            }
            None => content.into(),
        }
    }

    /// A write as a device with faults does it.
    fn write_badly(&mut self, offset: u64, buffer: &[u8], durable: bool) {
        let faults = &mut self.faults;
        if faults.lose_writes > 0 {
            faults.lose_writes -= 1;
        } else if faults.misdirect_writes > 0 {
            faults.misdirect_writes -= 1;
            let further = offset + BLOCK_SIZE;
            if further + buffer.len() as u64 <= self.size {
                self.write(further, buffer, durable);
            }
        } else {
            self.write(offset, buffer, durable);
        }
    }

    /// The error the next write or flush ends with, if it does.
    fn failure(&mut self) -> Option<io::Error> {
        let (left, error) = &mut self.faults.fail_writes;
        *left = left.checked_sub(1)?;
        Some(io::Error::from_raw_os_error(*error))
    }

    fn is_readable(&self, offset: u64, len: usize) -> bool {
        let sectors = offset / BLOCK_SIZE..(offset + len as u64).div_ceil(BLOCK_SIZE);
        self.faults.unreadable.range(sectors).next().is_none()
    }

    fn flush(&mut self) {
        for (sector, mut versions) in std::mem::take(&mut self.cached) {
            if let Some(newest) = versions.pop() {
                self.spare.extend(self.durable.insert(sector, newest));
            }
            self.spare.append(&mut versions);
        }
    }
}

/// The bytes of a device in memory; clones are the same disk.
#[derive(Debug, Clone)]
pub struct Disk(Rc<RefCell<Bytes>>);

impl Disk {
    /// A blank disk; memory is used only for what is written.
    #[must_use]
    pub fn new(size: u64) -> Self {
        assert!(size.is_multiple_of(BLOCK_SIZE), "a disk is whole blocks");
        Self(Rc::new(RefCell::new(Bytes { size, ..Bytes::default() })))
    }

    /// A handle on a region; every handle of a crashed machine must be dropped before the disk is used again.
    #[must_use]
    pub fn device(&self, base: u64, len: u64) -> MemoryDevice {
        assert!(base + len <= self.0.borrow().size, "region outside the disk");
        MemoryDevice {
            disk: self.clone(),
            base,
            len,
            queue: VecDeque::new(),
            running: VecDeque::new(),
            finished: Vec::new(),
            held: false,
        }
    }

    /// The power fails: of what was not durable each sector keeps any version or the old content, and of a sector
    /// whose write was under way perhaps only a part.
    pub fn crash(&self, random: &mut Random) {
        let mut bytes = self.0.borrow_mut();
        let mut versions = std::mem::take(&mut bytes.cached);
        for (offset, buffer) in std::mem::take(&mut bytes.flying).into_values() {
            for (index, chunk) in buffer.chunks(SECTOR).enumerate() {
                versions.entry(offset / BLOCK_SIZE + index as u64).or_default().push(chunk.into());
            }
        }
        // Sometimes all or nothing: a cache that was just written back, or one that lost everything.
        let mood = random.between(0, 3);
        for (sector, mut candidates) in versions {
            let pick = match mood {
                0 => 0,
                1 => candidates.len() as u64,
                _ => random.between(0, candidates.len() as u64),
            };
            let Some(kept) = usize::try_from(pick).ok().and_then(|pick| pick.checked_sub(1)) else { continue };
            let mut kept = candidates.swap_remove(kept);
            if random.between(0, 31) == 0 {
                // Torn inside the sector, at a 512-byte boundary.
                let cut = usize::try_from(random.between(1, 7)).unwrap_or(1) * 512;
                match bytes.durable.get(&sector) {
                    Some(old) => kept[cut..].copy_from_slice(&old[cut..]),
                    None => kept[cut..].fill(0),
                }
            }
            bytes.durable.insert(sector, kept);
        }
        let unreadable = std::mem::take(&mut bytes.faults.unreadable);
        bytes.faults = Faults { unreadable, ..Faults::default() };
    }

    /// Another disk in the same state, whatever is under way included: to see what a crash now would leave.
    #[must_use]
    pub fn snapshot(&self) -> Self {
        let bytes = self.0.borrow();
        let flying = bytes.flying.iter().map(|(order, (offset, buffer))| {
            let mut copy = AlignedBuf::to_fill(buffer.len());
            copy.copy_from_slice(buffer);
            (*order, (*offset, copy))
        });
        Self(Rc::new(RefCell::new(Bytes {
            size: bytes.size,
            durable: bytes.durable.clone(),
            cached: bytes.cached.clone(),
            flying: flying.collect(),
            next_flight: bytes.next_flight,
            ..Bytes::default()
        })))
    }

    /// Everything completed survives from here on, as when a process dies and its host does not.
    pub fn keep(&self) {
        self.0.borrow_mut().flush();
    }

    /// The next `count` writes or flushes end with EIO and leave what they touched as it was.
    pub fn fail_writes(&self, count: u64) {
        self.fail_writes_with(count, libc::EIO);
    }

    /// The same with another error.
    pub fn fail_writes_with(&self, count: u64, error: i32) {
        self.0.borrow_mut().faults.fail_writes = (count, error);
    }

    /// The next `count` writes are reported done and leave no trace.
    pub fn lose_writes(&self, count: u64) {
        self.0.borrow_mut().faults.lose_writes = count;
    }

    /// The next `count` writes are reported done and lie one sector further.
    pub fn misdirect_writes(&self, count: u64) {
        self.0.borrow_mut().faults.misdirect_writes = count;
    }

    /// The sector at `offset` cannot be read until it is written again.
    pub fn spoil(&self, offset: u64) {
        self.0.borrow_mut().faults.unreadable.insert(offset / BLOCK_SIZE);
    }

    /// A place that was written, if there is any.
    #[must_use]
    pub fn somewhere(&self, random: &mut Random) -> Option<u64> {
        let bytes = self.0.borrow();
        let last = bytes.durable.len().checked_sub(1)? as u64;
        let index = usize::try_from(random.between(0, last)).ok()?;
        bytes.durable.keys().nth(index).map(|sector| sector * BLOCK_SIZE)
    }

    /// Flips one bit of a byte, as a bad medium would.
    pub fn flip(&self, offset: u64, bit: u8) {
        let mut bytes = self.0.borrow_mut();
        bytes.flush();
        let at = usize::try_from(offset % BLOCK_SIZE).unwrap_or(0);
        let sector = bytes.durable.entry(offset / BLOCK_SIZE).or_insert_with(|| vec![0; SECTOR].into());
        sector[at] ^= 1 << (bit % 8);
    }

    /// Another disk with what is durable on this one by now: an image of it.
    #[must_use]
    pub fn image(&self) -> Self {
        self.resized(self.0.borrow().size)
    }

    /// A disk cut to another size, with the same bytes otherwise.
    #[must_use]
    pub fn resized(&self, size: u64) -> Self {
        let bytes = self.0.borrow();
        let durable = bytes.durable.range(..size / BLOCK_SIZE).map(|(at, sector)| (*at, sector.clone())).collect();
        Self(Rc::new(RefCell::new(Bytes { size, durable, ..Bytes::default() })))
    }

    /// Writes done so far, to see that something wrote nothing.
    #[must_use]
    pub fn writes(&self) -> u64 {
        self.0.borrow().writes
    }

    /// Bytes read of it as a whole device so far: what opening it costs.
    #[must_use]
    pub fn bytes_read(&self) -> u64 {
        self.0.borrow().read
    }
}

impl WholeDevice for Disk {
    fn size(&self) -> u64 {
        self.0.borrow().size
    }

    fn read_at(&mut self, offset: u64, buffer: &mut AlignedBuf) -> io::Result<()> {
        let mut bytes = self.0.borrow_mut();
        bytes.read += buffer.len() as u64;
        if offset + buffer.len() as u64 > bytes.size {
            return Err(io::ErrorKind::UnexpectedEof.into());
        }
        if !bytes.is_readable(offset, buffer.len()) {
            return Err(io::Error::from_raw_os_error(libc::EIO));
        }
        bytes.read(offset, buffer);
        Ok(())
    }

    fn write_at(&mut self, offset: u64, buffer: &AlignedBuf) -> io::Result<()> {
        let mut bytes = self.0.borrow_mut();
        if offset + buffer.len() as u64 > bytes.size {
            return Err(io::ErrorKind::UnexpectedEof.into());
        }
        if let Some(error) = bytes.failure() {
            return Err(error);
        }
        bytes.writes += 1;
        bytes.write_badly(offset, buffer, true);
        Ok(())
    }
}

/// What is under way on a memory device.
#[derive(Debug)]
enum Running {
    Read { tag: Tag, offset: u64, buffer: AlignedBuf },
    Write { tag: Tag, flight: u64, durable: bool },
    Flush { tag: Tag },
}

/// A region of a [`Disk`].
#[derive(Debug)]
pub struct MemoryDevice {
    disk: Disk,
    base: u64,
    len: u64,
    queue: VecDeque<(Tag, Operation)>,
    running: VecDeque<Running>,
    /// Finished by hand, for the next `reap`.
    finished: Vec<Completion>,
    held: bool,
}

impl MemoryDevice {
    /// While held, `reap` gives nothing by itself: tests finish operations one by one with [`MemoryDevice::finish`].
    pub fn hold(&mut self, held: bool) {
        self.held = held;
    }

    /// How many operations are under way.
    #[must_use]
    pub fn running(&self) -> usize {
        self.running.len()
    }

    /// Their tags, in the order in which they were started.
    #[must_use]
    pub fn tags(&self) -> Vec<Tag> {
        let tag = |running: &Running| match running {
            Running::Read { tag, .. } | Running::Write { tag, .. } | Running::Flush { tag } => *tag,
        };
        self.running.iter().map(tag).collect()
    }

    /// Finishes the operation at `index` of those under way; the next `reap` gives it.
    pub fn finish(&mut self, index: usize) {
        let mut done = std::mem::take(&mut self.finished);
        self.end(index, &mut done);
        self.finished = done;
    }

    fn fly(&self, tag: Tag, offset: u64, buffer: AlignedBuf, durable: bool) -> Running {
        let mut bytes = self.disk.0.borrow_mut();
        let flight = bytes.next_flight;
        bytes.next_flight += 1;
        bytes.flying.insert(flight, (self.base + offset, buffer));
        Running::Write { tag, flight, durable }
    }

    fn end(&mut self, index: usize, done: &mut Vec<Completion>) {
        let Some(running) = self.running.remove(index) else { return };
        let mut bytes = self.disk.0.borrow_mut();
        let mut result = match &running {
            Running::Read { .. } => Ok(()),
            Running::Write { .. } | Running::Flush { .. } => bytes.failure().map_or(Ok(()), Err),
        };
        let (tag, buffer) = match running {
            Running::Read { tag, offset, mut buffer } => {
                if bytes.is_readable(self.base + offset, buffer.len()) {
                    bytes.read(self.base + offset, &mut buffer);
                } else {
                    result = Err(io::Error::from_raw_os_error(libc::EIO));
                }
                (tag, Some(buffer))
            }
            Running::Write { tag, flight, durable } => {
                let (offset, buffer) = bytes.flying.remove(&flight).expect("kept since it was started");
                if result.is_ok() {
                    bytes.writes += 1;
                    bytes.write_badly(offset, &buffer, durable);
                }
                (tag, Some(buffer))
            }
            Running::Flush { tag } => {
                if result.is_ok() {
                    bytes.flush();
                }
                (tag, None)
            }
        };
        done.push(Completion { tag, buffer, result });
    }
}

impl Device for MemoryDevice {
    fn len(&self) -> u64 {
        self.len
    }

    fn submit(&mut self, tag: Tag, operation: Operation) {
        if let Some((offset, len)) = operation.span() {
            assert!(offset + len <= self.len, "operation outside the region");
            assert!(offset.is_multiple_of(BLOCK_SIZE) && len.is_multiple_of(BLOCK_SIZE), "operation not aligned");
        }
        self.queue.push_back((tag, operation));
    }

    fn kick(&mut self) {
        while let Some((tag, operation)) = self.queue.pop_front() {
            let running = match operation {
                Operation::Read { offset, buffer } => Running::Read { tag, offset, buffer },
                Operation::Write { offset, buffer, durable } => self.fly(tag, offset, buffer, durable),
                Operation::WriteVectored { offset, buffer, pieces, durable } => {
                    let parts: Vec<&[u8]> =
                        buffer.iter().map(|buffer| &buffer[..]).chain(pieces.iter().map(|p| &p[..])).collect();
                    let mut whole = AlignedBuf::zeroed(parts.iter().map(|part| part.len()).sum());
                    let mut at = 0;
                    for part in parts {
                        whole[at..at + part.len()].copy_from_slice(part);
                        at += part.len();
                    }
                    self.fly(tag, offset, whole, durable)
                }
                Operation::Flush => Running::Flush { tag },
            };
            self.running.push_back(running);
        }
    }

    fn reap(&mut self, done: &mut Vec<Completion>) {
        done.append(&mut self.finished);
        while !self.held && !self.running.is_empty() {
            self.end(0, done);
        }
    }

    fn wake_fd(&self) -> Option<RawFd> {
        None
    }
}

#[cfg(test)]
mod tests {
    #![allow(clippy::unwrap_used)]
    use super::*;

    fn filled(byte: u8) -> AlignedBuf {
        let mut buffer = AlignedBuf::zeroed(4096);
        buffer.fill(byte);
        buffer
    }

    #[test]
    fn durable_survives_and_the_rest_is_old_or_new() {
        let (mut lost, mut kept) = (0, 0);
        for seed in 0..64 {
            let mut disk = Disk::new(1 << 20);
            let mut device = disk.device(4096, 8192);
            device.submit(Tag(1), Operation::Write { offset: 0, buffer: filled(1), durable: true });
            device.submit(Tag(2), Operation::Write { offset: 4096, buffer: filled(2), durable: false });
            device.kick();
            let mut done = Vec::new();
            device.reap(&mut done);
            assert_eq!(done.len(), 2);
            drop(device);
            disk.crash(&mut Random::new(seed));
            let mut buffer = AlignedBuf::zeroed(8192);
            disk.read_at(4096, &mut buffer).unwrap();
            assert!(buffer[..4096].iter().all(|byte| *byte == 1));
            if buffer[4096..].iter().all(|byte| *byte == 0) {
                lost += 1;
            } else if buffer[4096..].iter().all(|byte| *byte == 2) {
                kept += 1;
            }
        }
        assert!(lost > 5 && kept > 5, "{lost} {kept}");
    }
}
