//! The log of acknowledged writes: what has to be there, whatever happens to anybody else.
//!
//! One fixed record per acknowledgement, appended with one `write` as soon as it is known and before it is counted.
//! So a killed writer has logged everything it counted; at most its last record is incomplete, and that one is
//! dropped when the log is opened again. Records in the middle must be whole.
//!
//! | bytes | header | record |
//! |---|---|---|
//! | 0..8 | `BWverif1` | first block |
//! | 8..16 | volume id | write number |
//! | 16..20 | zero | number of blocks; bit 31: zeros are about to be written there |
//! | 20..24 | CRC-32 of bytes 0..20 | CRC-32 of bytes 0..20 |
//!
//! Zeros carry no stamp. So they are announced before they are written: where zeros are found, a write of zeros with a
//! number not below the last acknowledged one was under way. Its acknowledgement is a record like any other.

use std::collections::HashMap;
use std::fs::{File, OpenOptions};
use std::io::{BufReader, Read, Write};
use std::path::{Path, PathBuf};

use crate::failure::{Context, Exit, Failure};

const MAGIC: [u8; 8] = *b"BWverif1";
const RECORD: usize = 24;
/// Write numbers skipped when a log is continued: more than any writer has in flight, so that a number issued but
/// never acknowledged is not issued again.
const SKIP: u64 = 1 << 20;

/// In the number of blocks: these are announced as zeros.
const ZEROS: u32 = 1 << 31;

/// One acknowledged write.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) struct Ack {
    /// First block.
    pub(crate) block: u64,
    /// Number of the write, the same in all its blocks.
    pub(crate) number: u64,
    /// Number of blocks.
    pub(crate) blocks: u32,
}

impl Ack {
    fn encode(self) -> [u8; RECORD] {
        sealed(self.block.to_le_bytes(), self.number, self.blocks)
    }
}

fn sealed(first: [u8; 8], second: u64, third: u32) -> [u8; RECORD] {
    let mut bytes = [0; RECORD];
    bytes[..8].copy_from_slice(&first);
    bytes[8..16].copy_from_slice(&second.to_le_bytes());
    bytes[16..20].copy_from_slice(&third.to_le_bytes());
    let sum = crc32fast::hash(&bytes[..20]);
    bytes[20..].copy_from_slice(&sum.to_le_bytes());
    bytes
}

/// The three fields, if the checksum fits.
fn unsealed(bytes: &[u8; RECORD]) -> Option<([u8; 8], u64, u32)> {
    let field = |at: usize| -> [u8; 8] { std::array::from_fn(|i| bytes[at + i]) };
    let word = |at: usize| u32::from_le_bytes(std::array::from_fn(|i| bytes[at + i]));
    (crc32fast::hash(&bytes[..20]) == word(20)).then(|| (field(0), u64::from_le_bytes(field(8)), word(16)))
}

/// Everything a log says.
#[derive(Debug, Default, PartialEq, Eq)]
pub(crate) struct Ledger {
    /// The volume's id.
    pub(crate) volume: u64,
    /// Last acknowledged write number of each block that has one.
    pub(crate) blocks: HashMap<u64, u64>,
    /// Last number under which zeros were announced for each block that has one.
    pub(crate) zeros: HashMap<u64, u64>,
    /// Acknowledged writes.
    pub(crate) writes: u64,
    /// Blocks in them, overwritten ones counted each time.
    pub(crate) written_blocks: u64,
    /// Highest write number.
    pub(crate) highest: u64,
}

impl Ledger {
    /// Counts one acknowledgement.
    pub(crate) fn add(&mut self, ack: Ack) {
        note(&mut self.blocks, ack);
        self.writes += 1;
        self.written_blocks += u64::from(ack.blocks);
        self.highest = self.highest.max(ack.number);
    }

    /// Counts one announcement of zeros.
    pub(crate) fn announce(&mut self, zeros: Ack) {
        note(&mut self.zeros, zeros);
        self.highest = self.highest.max(zeros.number);
    }

    /// Reads a log. An incomplete last record was never counted by its writer and is not counted here.
    pub(crate) fn read(path: &Path) -> Result<Self, Failure> {
        let file = File::open(path).map_err(|error| match error.kind() {
            std::io::ErrorKind::NotFound => Failure::new(Exit::NotFound, format!("there is no log {}", path.display()))
                .untouched("nothing was checked")
                .next("nodectl verify write VOLUME --log FILE makes one"),
            _ => Failure::failed(format!("could not open {}: {error}", path.display())),
        })?;
        Self::parse(path, BufReader::with_capacity(1 << 20, file)).map(|(ledger, _)| ledger)
    }

    /// The ledger and how many bytes of the file are whole.
    fn parse(path: &Path, mut from: impl Read) -> Result<(Self, u64), Failure> {
        let mut ledger = Self::default();
        let mut whole = 0;
        let mut damaged = None;
        let mut bytes = [0; RECORD];
        while read_whole(&mut from, &mut bytes).could_not(|| format!("read {}", path.display()))? {
            if let Some(at) = damaged {
                let what = format!("the log {} is damaged at byte {at}", path.display());
                return Err(Failure::failed(what).untouched("nothing was checked or written"));
            }
            match unsealed(&bytes) {
                Some((magic, volume, _)) if whole == 0 && magic == MAGIC => ledger.volume = volume,
                Some((block, number, blocks)) if whole > 0 => {
                    let ack = Ack { block: u64::from_le_bytes(block), number, blocks: blocks & !ZEROS };
                    if blocks & ZEROS == 0 { ledger.add(ack) } else { ledger.announce(ack) }
                }
                _ if whole == 0 => {
                    let what = format!("{} is not a log of `verify write`", path.display());
                    return Err(Failure::usage(what));
                }
                _ => {
                    damaged = Some(whole);
                    continue;
                }
            }
            whole += RECORD as u64;
        }
        Ok((ledger, whole))
    }
}

fn note(last: &mut HashMap<u64, u64>, ack: Ack) {
    for block in ack.block..ack.block.saturating_add(u64::from(ack.blocks)) {
        let last = last.entry(block).or_default();
        *last = ack.number.max(*last);
    }
}

/// Fills the buffer; `false` at the end of the file, also in the middle of a record.
fn read_whole(from: &mut impl Read, bytes: &mut [u8; RECORD]) -> std::io::Result<bool> {
    match from.read_exact(bytes) {
        Ok(()) => Ok(true),
        Err(error) if error.kind() == std::io::ErrorKind::UnexpectedEof => Ok(false),
        Err(error) => Err(error),
    }
}

/// A log being written.
#[derive(Debug)]
pub(crate) struct Log {
    path: PathBuf,
    file: File,
    next: u64,
}

impl Log {
    /// Begins a log for `volume`, or goes on with the one that is there.
    pub(crate) fn open(path: &Path, volume: u64) -> Result<Self, Failure> {
        let name = || format!("open {}", path.display());
        let mut options = OpenOptions::new();
        let mut file = options.read(true).write(true).create(true).truncate(false).open(path).could_not(name)?;
        let (ledger, whole) = Ledger::parse(path, BufReader::new(&file))?;
        if whole == 0 {
            if file.metadata().could_not(name)?.len() > 0 {
                return Err(Failure::usage(format!("{} is not a log of `verify write`", path.display())));
            }
            file.write_all(&sealed(MAGIC, volume, 0)).could_not(name)?;
        } else if ledger.volume != volume {
            return Err(Failure::new(
                Exit::IllegalState,
                format!("{} is the log of volume v{}, not v{volume}", path.display(), ledger.volume),
            )
            .untouched("nothing was written")
            .next("name another file with --log"));
        } else {
            use std::io::Seek;
            file.set_len(whole).could_not(name)?;
            file.seek(std::io::SeekFrom::Start(whole)).could_not(name)?;
        }
        let next = if whole <= RECORD as u64 { 1 } else { ledger.highest + SKIP };
        Ok(Self { path: path.to_owned(), file, next })
    }

    /// A write number never used before in this volume.
    pub(crate) fn issue(&mut self) -> u64 {
        self.next += 1;
        self.next - 1
    }

    /// Notes that zeros are about to be written. After it returns, killing this process does not lose it.
    pub(crate) fn announces(&mut self, zeros: Ack) -> Result<(), Failure> {
        self.append(Ack { blocks: zeros.blocks | ZEROS, ..zeros })
    }

    /// Notes an acknowledged write. After it returns, killing this process does not lose it.
    pub(crate) fn acknowledged(&mut self, ack: Ack) -> Result<(), Failure> {
        self.append(ack)
    }

    fn append(&mut self, ack: Ack) -> Result<(), Failure> {
        self.file.write_all(&ack.encode()).could_not(|| format!("append to {}", self.path.display()))
    }
}

#[cfg(test)]
mod tests {
    #![allow(clippy::unwrap_used)]
    use super::*;

    /// A file name of this test alone, removed at the end.
    struct Scratch(PathBuf);

    impl Scratch {
        fn new(name: &str) -> Self {
            let path = std::env::temp_dir().join(format!("nodectl-log-{}-{name}", std::process::id()));
            let _ = std::fs::remove_file(&path);
            Self(path)
        }
    }

    impl Drop for Scratch {
        fn drop(&mut self) {
            let _ = std::fs::remove_file(&self.0);
        }
    }

    fn ack(block: u64, number: u64, blocks: u32) -> Ack {
        Ack { block, number, blocks }
    }

    #[test]
    fn what_was_logged_is_read_back() {
        let file = Scratch::new("round");
        let mut log = Log::open(&file.0, 7).unwrap();
        assert_eq!((log.issue(), log.issue()), (1, 2));
        log.acknowledged(ack(10, 1, 2)).unwrap();
        log.acknowledged(ack(11, 2, 1)).unwrap();
        let ledger = Ledger::read(&file.0).unwrap();
        assert_eq!(ledger.blocks, HashMap::from([(10, 1), (11, 2)]));
        assert_eq!((ledger.volume, ledger.writes, ledger.written_blocks, ledger.highest), (7, 2, 3, 2));
    }

    #[test]
    fn announced_zeros_are_no_acknowledgement() {
        let file = Scratch::new("zeros");
        let mut log = Log::open(&file.0, 7).unwrap();
        log.acknowledged(ack(10, 1, 2)).unwrap();
        log.announces(ack(11, 2, 2)).unwrap();
        let ledger = Ledger::read(&file.0).unwrap();
        assert_eq!(ledger.blocks, HashMap::from([(10, 1), (11, 1)]));
        assert_eq!(ledger.zeros, HashMap::from([(11, 2), (12, 2)]));
        assert_eq!((ledger.writes, ledger.highest), (1, 2), "its number is not issued again");
    }

    #[test]
    fn a_killed_writers_log_goes_on() {
        let file = Scratch::new("killed");
        let mut log = Log::open(&file.0, 7).unwrap();
        for number in 1..=3 {
            log.acknowledged(ack(number, number, 1)).unwrap();
        }
        drop(log);
        let mut bytes = std::fs::read(&file.0).unwrap();
        bytes.truncate(bytes.len() - 5);
        std::fs::write(&file.0, &bytes).unwrap();
        assert_eq!(Ledger::read(&file.0).unwrap().writes, 2, "the torn record does not count");
        let mut log = Log::open(&file.0, 7).unwrap();
        let number = log.issue();
        assert!(number > 3 + 1000, "no number is issued twice");
        log.acknowledged(ack(3, number, 1)).unwrap();
        let ledger = Ledger::read(&file.0).unwrap();
        assert_eq!((ledger.writes, ledger.highest), (3, number));
    }

    #[test]
    fn damage_in_the_middle_and_strangers_are_told() {
        let file = Scratch::new("damaged");
        let mut log = Log::open(&file.0, 7).unwrap();
        for number in 1..=3 {
            log.acknowledged(ack(number, number, 1)).unwrap();
        }
        let mut bytes = std::fs::read(&file.0).unwrap();
        bytes[RECORD + 3] ^= 1;
        std::fs::write(&file.0, &bytes).unwrap();
        assert!(Ledger::read(&file.0).unwrap_err().what.contains("damaged at byte 24"));
        std::fs::write(&file.0, [b'x'; 100]).unwrap();
        assert_eq!(Ledger::read(&file.0).unwrap_err().exit, Exit::Usage);
        assert_eq!(Log::open(&file.0, 7).unwrap_err().exit, Exit::Usage);
        assert_eq!(std::fs::read(&file.0).unwrap(), [b'x'; 100], "a stranger's file stays as it is");
    }

    #[test]
    fn a_log_belongs_to_one_volume() {
        let file = Scratch::new("other");
        drop(Log::open(&file.0, 7).unwrap());
        assert_eq!(Log::open(&file.0, 8).unwrap_err().exit, Exit::IllegalState);
        assert_eq!(Ledger::read(&Scratch::new("none").0).unwrap_err().exit, Exit::NotFound);
    }
}
