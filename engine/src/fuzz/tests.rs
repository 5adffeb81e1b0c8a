//! What the fuzz targets share: a corpus of files, mutations of it, and a count of what a decoder allocates.
//!
//! A target is a function of bytes that panics when something is wrong. It gets every file of `fixtures/fuzz/<target>`
//! as it is, then as many mutations of them as `BREAKWATER_FUZZ` says (2,000), drawn from `BREAKWATER_SEED`. A failing
//! input is made as small as it gets, and written to a file that can be put into the corpus as it is. How to run it
//! long: docs/testing.md.
#![allow(clippy::unwrap_used)]

use std::alloc::{GlobalAlloc, Layout, System};
use std::cell::Cell;
use std::path::PathBuf;

use proptest::prelude::{Just, Strategy, any, prop_oneof};
use proptest::sample::Index;
use proptest::test_runner::{Config, RngAlgorithm, TestCaseError, TestError, TestRng, TestRunner};

/// Counts, thread by thread, what is allocated; otherwise the system's.
struct Counting;

thread_local! {
    static LIVE: Cell<isize> = const { Cell::new(0) };
    static PEAK: Cell<isize> = const { Cell::new(0) };
}

fn count(change: isize) {
    // A thread that ends counts no more.
    let live = LIVE.try_with(|live| {
        live.set(live.get() + change);
        live.get()
    });
    if let Ok(live) = live {
        let _ = PEAK.try_with(|peak| peak.set(peak.get().max(live)));
    }
}

// SAFETY: everything is done by the system's allocator; counting allocates nothing.
unsafe impl GlobalAlloc for Counting {
    unsafe fn alloc(&self, layout: Layout) -> *mut u8 {
        count(layout.size().cast_signed());
        // SAFETY: the caller keeps the contract.
        unsafe { System.alloc(layout) }
    }

    unsafe fn dealloc(&self, start: *mut u8, layout: Layout) {
        count(-layout.size().cast_signed());
        // SAFETY: the caller keeps the contract.
        unsafe { System.dealloc(start, layout) }
    }
}

#[global_allocator]
static ALLOCATOR: Counting = Counting;

/// Does something; fails when it held more than `bound` bytes of memory at any time.
pub(crate) fn within<R>(bound: usize, run: impl FnOnce() -> R) -> R {
    let before = LIVE.get();
    PEAK.set(before);
    let result = run();
    let held = PEAK.get() - before;
    assert!(held <= bound.cast_signed(), "{held} bytes were allocated; the bound is {bound}");
    result
}

/// One change to an input, whatever it means there.
#[derive(Debug, Clone)]
enum Mutation {
    Bit(Index, u8),
    /// A number of so many bytes, low byte first.
    Number(Index, usize, u64),
    Cut(Index),
    Insert(Index, usize, u8),
    Remove(Index, usize),
    /// From one place to another.
    Copy(Index, Index, usize),
    /// The rest is another file's.
    Splice(Index, Index),
}

/// Numbers at which decoders go wrong.
const ODD: [u64; 14] =
    [0, 1, 31, 32, 0x7f, 0x80, 0xff, 0x7fff, 0xffff, 0x0fff_ffff, 0x7fff_ffff, 0xffff_ffff, i64::MAX as u64, u64::MAX];

fn mutation() -> impl Strategy<Value = Mutation> {
    let number = prop_oneof![3 => proptest::sample::select(&ODD[..]), 1 => any::<u64>()];
    let width = prop_oneof![Just(1_usize), Just(2), Just(4), Just(8)];
    let at = any::<Index>;
    prop_oneof![
        3 => (at(), 0..8u8).prop_map(|(at, bit)| Mutation::Bit(at, bit)),
        6 => (at(), width, number).prop_map(|(at, width, number)| Mutation::Number(at, width, number)),
        1 => at().prop_map(Mutation::Cut),
        1 => (at(), 1..70_usize, any::<u8>()).prop_map(|(at, len, byte)| Mutation::Insert(at, len, byte)),
        1 => (at(), 1..70_usize).prop_map(|(at, len)| Mutation::Remove(at, len)),
        1 => (at(), at(), 1..70_usize).prop_map(|(from, to, len)| Mutation::Copy(from, to, len)),
        1 => (at(), at()).prop_map(|(file, at)| Mutation::Splice(file, at)),
    ]
}

impl Mutation {
    /// `front` bytes are where structures are; most changes go there.
    fn apply(&self, bytes: &mut Vec<u8>, corpus: &[(String, Vec<u8>)], front: usize) {
        let place = |at: &Index, len: usize| at.index(len.min(front) + 1);
        let len = bytes.len();
        match self {
            Self::Bit(at, bit) => {
                if let Some(byte) = bytes.get_mut(place(at, len)) {
                    *byte ^= 1 << bit;
                }
            }
            Self::Number(at, width, number) => {
                let at = place(at, len);
                bytes.iter_mut().skip(at).zip(&number.to_le_bytes()[..*width]).for_each(|(to, from)| *to = *from);
            }
            Self::Cut(at) => bytes.truncate(at.index(len + 1)),
            Self::Insert(at, count, byte) => {
                let at = place(at, len);
                bytes.splice(at..at, std::iter::repeat_n(*byte, *count));
            }
            Self::Remove(at, count) => {
                let at = place(at, len);
                bytes.drain(at..(at + count).min(len));
            }
            Self::Copy(from, to, count) => {
                let (from, to) = (place(from, len), place(to, len));
                let piece = bytes[from..(from + count).min(len)].to_vec();
                bytes.iter_mut().skip(to).zip(piece).for_each(|(to, from)| *to = from);
            }
            Self::Splice(file, at) => {
                let at = place(at, len);
                bytes.truncate(at);
                bytes.extend(corpus[file.index(corpus.len())].1.iter().skip(at));
            }
        }
    }
}

fn folder(target: &str) -> PathBuf {
    PathBuf::from(concat!(env!("CARGO_MANIFEST_DIR"), "/../fixtures/fuzz")).join(target)
}

/// The files of a corpus, in order. The seeds are among them; `BREAKWATER_BLESS=1` writes those anew.
fn corpus(target: &str, seeds: Vec<(String, Vec<u8>)>) -> Vec<(String, Vec<u8>)> {
    let folder = folder(target);
    if std::env::var_os("BREAKWATER_BLESS").is_some() {
        std::fs::create_dir_all(&folder).unwrap();
        seeds.iter().for_each(|(name, bytes)| std::fs::write(folder.join(name), bytes).unwrap());
    }
    let listed = std::fs::read_dir(&folder).unwrap_or_else(|error| panic!("{}: {error}", folder.display()));
    let mut files: Vec<(String, Vec<u8>)> = listed
        .map(|entry| {
            let entry = entry.unwrap();
            (entry.file_name().into_string().unwrap(), std::fs::read(entry.path()).unwrap())
        })
        .collect();
    files.sort();
    for seed in seeds {
        assert!(files.contains(&seed), "{target}/{} is not what it should be (BREAKWATER_BLESS=1 writes it)", seed.0);
    }
    files
}

fn number(name: &str, otherwise: u64) -> u64 {
    let said = std::env::var(name).ok();
    said.map_or(otherwise, |text| text.parse().unwrap_or_else(|_| panic!("{name}={text} is no number")))
}

/// Runs a target over its corpus and mutations of it. `front`: as many bytes hold structures, data is behind them.
pub(crate) fn run(target: &str, front: usize, seeds: Vec<(String, Vec<u8>)>, look: impl Fn(&[u8])) {
    let corpus = corpus(target, seeds);
    for (name, bytes) in &corpus {
        let seen = std::panic::catch_unwind(std::panic::AssertUnwindSafe(|| look(bytes)));
        assert!(seen.is_ok(), "{target}/{name}: see above");
    }
    let (cases, seed) = (number("BREAKWATER_FUZZ", 2000), number("BREAKWATER_SEED", 1));
    let config = Config { cases: u32::try_from(cases).unwrap(), failure_persistence: None, ..Config::default() };
    let mut key = [0; 32];
    key[..8].copy_from_slice(&seed.to_le_bytes());
    let mut runner = TestRunner::new_with_rng(config, TestRng::from_seed(RngAlgorithm::ChaCha, &key));
    let input = (any::<Index>(), proptest::collection::vec(mutation(), 0..6));
    let build = |(file, changes): &(Index, Vec<Mutation>)| {
        let mut bytes = corpus[file.index(corpus.len())].1.clone();
        changes.iter().for_each(|change| change.apply(&mut bytes, &corpus, front));
        bytes
    };
    let found = runner.run(&input, |input| {
        look(&build(&input));
        Ok::<_, TestCaseError>(())
    });
    if let Err(TestError::Fail(reason, input)) = found {
        let path = std::env::temp_dir().join(format!("fuzz-{target}-{seed}"));
        std::fs::write(&path, build(&input)).unwrap();
        let place = format!("{} holds it, to be mended and put into fixtures/fuzz/{target}", path.display());
        panic!("{target}, BREAKWATER_SEED={seed}: {reason}; {place}");
    }
}

#[test]
fn what_is_allocated_is_counted() {
    within(5000, || drop(vec![0_u8; 4000]));
    let noticed = std::panic::catch_unwind(|| within(5000, || drop(vec![0_u8; 6000])));
    assert!(noticed.is_err());
    let grown = || (0..300_u64).collect::<Vec<_>>().len();
    assert_eq!(within(2400 + 4096, grown), 300, "what is given back does not count");
}
