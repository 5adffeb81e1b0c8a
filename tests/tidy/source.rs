//! The tree as text: every file once, and Rust files with comments and literals blanked out.
//!
//! No parser: a masked copy with the same bytes per line is enough to find functions, imports and words, and it never
//! disagrees with the compiler about what a line number is. Invariant: `code` and `text` have the same length and the
//! same line breaks.

use std::ops::Range;
use std::path::{Path, PathBuf};

/// One text file of the tree.
pub(crate) struct File {
    /// Path from the root, with `/`.
    pub(crate) path: String,
    /// As it is on disk.
    pub(crate) text: String,
    /// Rust only: `text` with comments, strings and characters blanked out. Other files: a copy.
    pub(crate) code: String,
    /// Rust only: byte ranges that are compiled for tests alone.
    pub(crate) tests: Vec<Range<usize>>,
}

impl File {
    /// A file from its content.
    pub(crate) fn new(path: &str, text: String) -> Self {
        let rust = path.ends_with(".rs");
        let code = if rust { mask(&text) } else { text.clone() };
        let tests = if rust { test_ranges(&code) } else { Vec::new() };
        Self { path: path.to_owned(), text, code, tests }
    }

    /// Whether it is Rust.
    pub(crate) fn is_rust(&self) -> bool {
        self.path.ends_with(".rs")
    }

    /// Whether the whole file is there for tests only.
    pub(crate) fn is_test_file(&self) -> bool {
        self.path.starts_with("tests/") || self.path.contains("/tests/") || self.path.ends_with("/tests.rs")
    }

    /// Whether `at` is compiled for tests only.
    pub(crate) fn in_tests(&self, at: usize) -> bool {
        self.is_test_file() || self.tests.iter().any(|range| range.contains(&at))
    }

    /// Line number of a byte, from 1.
    pub(crate) fn line(&self, at: usize) -> usize {
        self.text.as_bytes()[..at].iter().filter(|&&b| b == b'\n').count() + 1
    }

    /// Positions of `word` in the code, where it is not part of a longer word.
    pub(crate) fn words<'a>(&'a self, word: &'a str) -> impl Iterator<Item = usize> + 'a {
        words(&self.code, word)
    }
}

/// Positions of `word` in `text`, where it is not part of a longer word.
pub(crate) fn words<'a>(text: &'a str, word: &'a str) -> impl Iterator<Item = usize> + 'a {
    let bytes = text.as_bytes();
    let is_word = |b: u8| b.is_ascii_alphanumeric() || b == b'_';
    text.match_indices(word).map(|(at, _)| at).filter(move |&at| {
        let end = at + word.len();
        let open = at == 0 || !is_word(bytes[at - 1]) || !is_word(bytes[at]);
        let close = end == bytes.len() || !is_word(bytes[end]) || !is_word(bytes[end - 1]);
        open && close
    })
}

/// Every text file of the tree that belongs to the project, in a stable order.
pub(crate) fn tree() -> Vec<File> {
    let root = root();
    let mut paths = Vec::new();
    collect(&root, &mut paths);
    paths.sort();
    let mut files = Vec::new();
    for path in paths {
        // Not UTF-8 is not text: golden files and images are nobody's prose.
        let Ok(text) = std::fs::read_to_string(&path) else { continue };
        let relative = path.strip_prefix(&root).expect("found below the root");
        files.push(File::new(&relative.to_string_lossy(), text));
    }
    files
}

/// The root of the tree.
pub(crate) fn root() -> PathBuf {
    PathBuf::from(env!("CARGO_MANIFEST_DIR"))
}

fn collect(dir: &Path, into: &mut Vec<PathBuf>) {
    let entries = std::fs::read_dir(dir).unwrap_or_else(|error| panic!("{}: {error}", dir.display()));
    for entry in entries {
        let path = entry.expect("a readable directory").path();
        let name = path.file_name().unwrap_or_default().to_string_lossy().into_owned();
        if matches!(name.as_str(), "target" | ".git" | "Cargo.lock") {
            continue;
        }
        if path.is_dir() {
            collect(&path, into);
        } else if path.is_file() {
            into.push(path);
        }
    }
}

/// `text` with every comment, string and character blanked out; line breaks stay.
pub(crate) fn mask(text: &str) -> String {
    let bytes = text.as_bytes();
    let mut out = bytes.to_vec();
    let mut at = 0;
    while at < bytes.len() {
        let end = literal_end(bytes, at);
        if end == at {
            at += 1;
            continue;
        }
        for byte in &mut out[at..end] {
            if *byte != b'\n' {
                *byte = b' ';
            }
        }
        at = end;
    }
    String::from_utf8(out).expect("whole characters were replaced")
}

/// End of the comment or literal that begins at `at`; `at` itself when none does.
fn literal_end(bytes: &[u8], at: usize) -> usize {
    let rest = &bytes[at..];
    let before_is_word = at > 0 && (bytes[at - 1].is_ascii_alphanumeric() || bytes[at - 1] == b'_');
    match rest[0] {
        b'/' if rest.starts_with(b"//") => at + rest.iter().position(|&b| b == b'\n').unwrap_or(rest.len()),
        b'/' if rest.starts_with(b"/*") => block_comment_end(bytes, at),
        b'"' => string_end(bytes, at + 1),
        b'r' | b'b' | b'c' if !before_is_word => prefixed_end(bytes, at),
        b'\'' => char_end(bytes, at),
        _ => at,
    }
}

fn block_comment_end(bytes: &[u8], start: usize) -> usize {
    let mut depth = 0;
    let mut at = start;
    while at < bytes.len() {
        if bytes[at..].starts_with(b"/*") {
            depth += 1;
            at += 2;
        } else if bytes[at..].starts_with(b"*/") {
            depth -= 1;
            at += 2;
            if depth == 0 {
                return at;
            }
        } else {
            at += 1;
        }
    }
    at
}

/// End of an ordinary string whose first character is at `at`.
fn string_end(bytes: &[u8], mut at: usize) -> usize {
    while at < bytes.len() {
        match bytes[at] {
            b'\\' => at += 2,
            b'"' => return at + 1,
            _ => at += 1,
        }
    }
    bytes.len()
}

/// End of `r"..."`, `r#"..."#`, `b"..."`, `br"..."`, `c"..."`, `b'x'`.
fn prefixed_end(bytes: &[u8], start: usize) -> usize {
    let mut at = start;
    let mut raw = false;
    while at < bytes.len() && at < start + 2 && matches!(bytes[at], b'r' | b'b' | b'c') {
        raw |= bytes[at] == b'r';
        at += 1;
    }
    if !raw {
        return match bytes.get(at) {
            Some(b'"') => string_end(bytes, at + 1),
            Some(b'\'') => char_end(bytes, at),
            _ => start,
        };
    }
    let hashes = bytes[at..].iter().take_while(|&&b| b == b'#').count();
    if bytes.get(at + hashes) != Some(&b'"') {
        return start;
    }
    let mut close = vec![b'"'];
    close.resize(1 + hashes, b'#');
    let body = at + hashes + 1;
    bytes[body..].windows(close.len()).position(|w| w == close).map_or(bytes.len(), |found| body + found + close.len())
}

/// End of a character; `at` for a lifetime.
fn char_end(bytes: &[u8], at: usize) -> usize {
    match bytes.get(at + 1) {
        Some(b'\\') => bytes[at + 3..].iter().position(|&b| b == b'\'').map_or(bytes.len(), |found| at + 4 + found),
        Some(&first) => {
            let width = match first {
                0x00..=0x7F => 1,
                0x80..=0xDF => 2,
                0xE0..=0xEF => 3,
                _ => 4,
            };
            if bytes.get(at + 1 + width) == Some(&b'\'') { at + 2 + width } else { at }
        }
        None => at,
    }
}

/// Items behind `#[cfg(test)]`, and test functions of their own.
fn test_ranges(code: &str) -> Vec<Range<usize>> {
    code.match_indices("#[cfg(test)]").map(|(at, attribute)| at..item_end(code, at + attribute.len())).collect()
}

/// End of the item that begins at `at`: behind its body, or its `;`.
pub(crate) fn item_end(code: &str, at: usize) -> usize {
    body(code, at).map_or_else(|end| end, |body| body.end)
}

/// The braces of the item that begins at `at`; `Err` is the end of an item without any.
pub(crate) fn body(code: &str, at: usize) -> Result<Range<usize>, usize> {
    let bytes = code.as_bytes();
    let mut nested = 0i32;
    let mut start = at;
    while start < bytes.len() {
        match bytes[start] {
            b'(' | b'[' => nested += 1,
            b')' | b']' => nested -= 1,
            b';' if nested == 0 => return Err(start + 1),
            b'{' if nested == 0 => break,
            _ => {}
        }
        start += 1;
    }
    let mut depth = 0i32;
    for (offset, byte) in bytes[start..].iter().enumerate() {
        depth += i32::from(*byte == b'{') - i32::from(*byte == b'}');
        if depth == 0 {
            return Ok(start..start + offset + 1);
        }
    }
    Err(bytes.len())
}
