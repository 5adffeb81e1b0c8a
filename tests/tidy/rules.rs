//! The rules about Rust files. Each takes the files and gives what breaks it; pure, so each is tested on small texts.

use crate::findings::Finding;
use crate::source::{self, File};

/// Longest function, its signature included.
pub(crate) const FUNCTION_LINES_MAX: usize = 70;
/// Longest file, its test parts left out.
pub(crate) const FILE_LINES_MAX: usize = 600;

/// Functions longer than [`FUNCTION_LINES_MAX`]. A function inside another counts for both.
pub(crate) fn long_functions(files: &[File]) -> Vec<Finding> {
    let mut findings: Vec<Finding> = Vec::new();
    for file in files.iter().filter(|f| f.is_rust()) {
        for at in file.words("fn") {
            let rest = file.code[at + 2..].trim_start();
            let name: String = rest.chars().take_while(|c| c.is_alphanumeric() || *c == '_').collect();
            // `fn(` is a type; a function without a body has no lines to count.
            let Ok(body) = source::body(&file.code, at) else { continue };
            if name.is_empty() {
                continue;
            }
            let (first, last) = (file.line(at), file.line(body.end - 1));
            let lines = last - first + 1;
            if lines > FUNCTION_LINES_MAX {
                let place = format!("{}::{name}", file.path);
                let remedy =
                    format!("`{name}` has {lines} lines, more than {FUNCTION_LINES_MAX}: cut it where it branches");
                findings.push(Finding { place, line: first, measured: lines, remedy });
            }
        }
    }
    findings
}

/// Files longer than [`FILE_LINES_MAX`] without their test parts.
pub(crate) fn long_files(files: &[File]) -> Vec<Finding> {
    let of = |file: &File| {
        let in_tests: usize = file.tests.iter().map(|range| file.text[range.clone()].lines().count()).sum();
        let lines = file.text.lines().count() - in_tests;
        let remedy = format!("{lines} lines without tests, more than {FILE_LINES_MAX}: one noun per file");
        (lines > FILE_LINES_MAX).then_some(Finding { place: file.path.clone(), line: 1, measured: lines, remedy })
    };
    files.iter().filter(|f| f.is_rust() && !f.path.ends_with("/tests.rs")).filter_map(of).collect()
}

/// Rust files that do not open with a `//!` header.
pub(crate) fn headless_files(files: &[File]) -> Vec<Finding> {
    let headless = files.iter().filter(|f| f.is_rust() && !f.text.starts_with("//! "));
    let remedy = "open the file with `//!`: what it is, the intuition, its invariants";
    headless.map(|f| Finding { place: f.path.clone(), line: 1, measured: 1, remedy: remedy.into() }).collect()
}

/// `use ...::*` outside tests.
pub(crate) fn glob_imports(files: &[File]) -> Vec<Finding> {
    let globs = |file: &File| {
        let is_glob = |at: usize| {
            let statement = file.code[at..].split(';').next().unwrap_or_default();
            !file.in_tests(at) && statement.contains("::*")
        };
        file.words("use").filter(|&at| is_glob(at)).collect()
    };
    count(files, |f| f.is_rust(), globs, "glob import: name what is used")
}

/// What the core may not know: the outside world and unordered maps.
pub(crate) fn impure_core(files: &[File]) -> Vec<Finding> {
    const FORBIDDEN: [&str; 11] = [
        "std::time",
        "std::fs",
        "std::net",
        "std::thread",
        "std::io",
        "extern crate std",
        "SystemTime",
        "Instant",
        "HashMap",
        "HashSet",
        "thread_rng",
    ];
    // What derived schemas name; the crate itself stays without it, and the words above stay forbidden.
    const FOR_SCHEMAS: &str = "#[cfg(feature = \"openapi\")]\n";
    let for_schemas = |file: &File, at: usize| {
        file.text.get(at..).is_some_and(|text| text.starts_with("extern crate std"))
            && file.text[..at].ends_with(FOR_SCHEMAS)
    };
    let found = |file: &File| {
        let outside = FORBIDDEN.iter().flat_map(|word| file.words(word));
        outside.filter(|&at| !file.in_tests(at) && !for_schemas(file, at)).collect()
    };
    let remedy = "the core has no I/O, clock, thread or unordered map: take it as an input, use BTreeMap";
    let mut findings = count(files, |f| f.is_rust() && f.path.starts_with("engine/core/src/"), found, remedy);
    for file in files.iter().filter(|f| f.path == "engine/core/src/lib.rs") {
        if !file.code.contains("#![no_std]") {
            let remedy = "the core is `#![no_std]`: put it back".into();
            findings.push(Finding { place: file.path.clone(), line: 1, measured: 1, remedy });
        }
    }
    findings
}

/// Numbers turned into bytes, or back, away from the files that own a format.
pub(crate) fn stray_bytes(files: &[File]) -> Vec<Finding> {
    const TURNS: [&str; 6] =
        ["to_le_bytes", "from_le_bytes", "to_be_bytes", "from_be_bytes", "to_ne_bytes", "from_ne_bytes"];
    let owns_a_format = |file: &File| {
        let mut parts = file.path.split('/').map(|part| part.trim_end_matches(".rs"));
        // A file may also be the home of one small format of its own: then its header shows the bytes.
        parts.any(|part| matches!(part, "format" | "codec" | "proto")) || file.text.contains("\n//! | bytes |")
    };
    let found = |file: &File| {
        let turns = TURNS.iter().flat_map(|word| file.words(word));
        turns.filter(|&at| !file.in_tests(at)).collect()
    };
    let remedy =
        "bytes have one home: move this into a `format`, `codec` or `proto` file, or show the bytes in the header";
    count(files, |f| f.is_rust() && !owns_a_format(f), found, remedy)
}

/// Paths of somebody's machine, in any text file.
pub(crate) fn machine_paths(files: &[File]) -> Vec<Finding> {
    // Put together here, so that this file does not break its own rule.
    let words = ["work", "root", "home"].map(|dir| format!("/{dir}/"));
    let outside = [format!("..{}shared", '/')];
    let found = |file: &File| {
        let mut at: Vec<usize> = Vec::new();
        for word in words.iter().chain(&outside) {
            let hits = file.text.match_indices(word.as_str()).map(|(at, _)| at);
            // `engine/work/x.rs` is a path of ours; only a path that begins there is a machine's.
            at.extend(hits.filter(|&at| at == 0 || !file.text.as_bytes()[at - 1].is_ascii_alphanumeric()));
        }
        at
    };
    count(files, |_| true, found, "a path of one machine: make it relative, or an argument")
}

/// One finding per file with at least one position; it points at the first.
fn count(
    files: &[File],
    applies: impl Fn(&File) -> bool,
    found: impl Fn(&File) -> Vec<usize>,
    remedy: &str,
) -> Vec<Finding> {
    let of = |file: &File| {
        let positions = found(file);
        let line = file.line(*positions.iter().min()?);
        let remedy = format!("{remedy} ({} in this file)", positions.len());
        Some(Finding { place: file.path.clone(), line, measured: positions.len(), remedy })
    };
    files.iter().filter(|f| applies(f)).filter_map(of).collect()
}
