//! What the scripts copy: images with islands of data between holes, and comparing what came back.

use std::collections::BTreeMap;
use std::fs::{self, File};
use std::io::{Read, Seek, SeekFrom, Write};
use std::path::{Path, PathBuf};

/// Bytes that do not compress and differ everywhere; the same seed gives the same.
fn noise(seed: u64, len: usize) -> Vec<u8> {
    let mut state = seed.wrapping_mul(0x9e37_79b9_7f4a_7c15) | 1;
    let mut out = Vec::with_capacity(len + 8);
    while out.len() < len {
        state ^= state << 13;
        state ^= state >> 7;
        state ^= state << 17;
        out.extend(state.to_ne_bytes());
    }
    out.truncate(len);
    out
}

/// Islands of data, and how long they are. Some begin and end off every boundary but that of a sector.
const ISLAND: usize = 3 * 1024 * 1024 + 512;
/// From one island to the next.
const DISTANCE: u64 = 16 * 1024 * 1024 - 1536;

/// Writes a sparse image of `size` bytes; gives the bytes of its islands.
pub(crate) fn image(path: &Path, size: u64, seed: u64) -> u64 {
    let mut file = File::create(path).expect("an image in the story's directory");
    file.set_len(size).expect("a sparse file");
    let mut data = 0;
    let mut at = 0;
    while at + ISLAND as u64 <= size {
        file.seek(SeekFrom::Start(at)).expect("inside the file");
        file.write_all(&noise(seed + at, ISLAND)).expect("room for an image");
        data += ISLAND as u64;
        at += DISTANCE;
    }
    data
}

/// Fails at the first difference of two files.
pub(crate) fn assert_same(one: &Path, other: &Path) {
    let len = |path: &Path| fs::metadata(path).unwrap_or_else(|error| panic!("{}: {error}", path.display())).len();
    assert_eq!(len(one), len(other), "lengths of {} and {}", one.display(), other.display());
    let open = |path: &Path| File::open(path).expect("a file of the story");
    let (mut left, mut right) = (open(one), open(other));
    let (mut a, mut b) = (vec![0; 1 << 20], vec![0; 1 << 20]);
    let mut at = 0;
    while at < len(one) {
        let part = usize::try_from((len(one) - at).min(1 << 20)).expect("at most 1 MiB");
        left.read_exact(&mut a[..part]).expect("its length was asked for");
        right.read_exact(&mut b[..part]).expect("its length was asked for");
        if let Some(first) = (0..part).find(|index| a[*index] != b[*index]) {
            panic!("{} and {} differ at {}", one.display(), other.display(), at + first as u64);
        }
        at += part as u64;
    }
}

/// Every file below `root` with its content, by its path from there.
pub(crate) fn tree(root: &Path) -> BTreeMap<PathBuf, Vec<u8>> {
    let mut files = BTreeMap::new();
    let mut open = vec![root.to_owned()];
    while let Some(dir) = open.pop() {
        for entry in fs::read_dir(&dir).unwrap_or_else(|error| panic!("{}: {error}", dir.display())) {
            let path = entry.expect("an entry").path();
            if path.is_dir() {
                open.push(path);
            } else {
                let name = path.strip_prefix(root).expect("below the root").to_owned();
                files.insert(name, fs::read(&path).expect("a readable file"));
            }
        }
    }
    files
}
