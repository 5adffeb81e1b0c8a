//! The rules about prose: links lead somewhere, and every invariant is cited where it is upheld and where it is tested.

use std::collections::BTreeMap;

use crate::findings::Finding;
use crate::source::{self, File};

/// Links of Markdown files, and `docs/...md` mentioned in Rust, that lead nowhere.
pub(crate) fn dead_links(files: &[File]) -> Vec<Finding> {
    let mut findings = Vec::new();
    for file in files {
        let links = if file.path.ends_with(".md") {
            markdown_links(&file.text)
        } else if file.is_rust() && !file.path.starts_with("tests/tidy/") {
            doc_mentions(&file.text)
        } else {
            continue;
        };
        for (line, target) in links {
            if let Some(problem) = problem_of(files, file, &target) {
                findings.push(Finding { place: file.path.clone(), line, measured: 1, remedy: problem });
            }
        }
    }
    findings
}

/// `[text](target)` with its line, outside code fences.
pub(crate) fn markdown_links(text: &str) -> Vec<(usize, String)> {
    let mut links = Vec::new();
    let mut fenced = false;
    for (index, line) in text.lines().enumerate() {
        if line.trim_start().starts_with("```") {
            fenced = !fenced;
        }
        if fenced {
            continue;
        }
        for (at, open) in line.match_indices("](") {
            let target = line[at + open.len()..].split(')').next().unwrap_or_default();
            links.push((index + 1, target.to_owned()));
        }
    }
    links
}

/// Mentions of the form `docs/x/y.md` in a Rust file, with their line.
fn doc_mentions(text: &str) -> Vec<(usize, String)> {
    let mut mentions = Vec::new();
    for (index, line) in text.lines().enumerate() {
        for at in source::words(line, "docs/") {
            let is_path = |c: char| c.is_ascii_alphanumeric() || "/._-".contains(c);
            let path: String = line[at..].chars().take_while(|c| is_path(*c)).collect();
            if let Some((path, _)) = path.split_once(".md") {
                mentions.push((index + 1, format!("/{path}.md")));
            }
        }
    }
    mentions
}

fn problem_of(files: &[File], from: &File, target: &str) -> Option<String> {
    if target.contains("://") || target.starts_with("mailto:") {
        return None;
    }
    let (path, anchor) = target.split_once('#').unwrap_or((target, ""));
    let wanted = if path.is_empty() { from.path.clone() } else { resolve(&from.path, path) };
    let known = files.iter().any(|file| file.path == wanted);
    if !known && !source::root().join(&wanted).exists() {
        return Some(format!("the link `{target}` leads nowhere: there is no `{wanted}`"));
    }
    let missing = |file: &File| !anchors(&file.text).any(|known| known == anchor);
    let lost = !anchor.is_empty() && files.iter().find(|f| f.path == wanted).is_none_or(missing);
    lost.then(|| format!("the link `{target}` leads nowhere: `{wanted}` has no heading `{anchor}`"))
}

/// `path` as seen from the directory of `from`; a leading `/` is the root of the tree.
fn resolve(from: &str, path: &str) -> String {
    let mut parts: Vec<&str> = if path.starts_with('/') { Vec::new() } else { from.split('/').collect() };
    parts.pop();
    for part in path.split('/') {
        match part {
            "" | "." => {}
            ".." => {
                parts.pop();
            }
            name => parts.push(name),
        }
    }
    parts.join("/")
}

/// Names under which a Markdown file's headings can be linked to.
fn anchors(text: &str) -> impl Iterator<Item = String> + '_ {
    text.lines().filter(|line| line.starts_with('#')).map(|line| {
        let heading = line.trim_start_matches('#').trim().to_lowercase();
        let kept = heading.chars().filter(|c| c.is_alphanumeric() || " -_".contains(*c));
        kept.map(|c| if c == ' ' { '-' } else { c }).collect()
    })
}

/// What `docs/invariants.md` says about itself: its invariants, and those it admits are cited nowhere yet.
pub(crate) struct Promises {
    /// Headings `## I<n> ...`, with their line.
    pub(crate) listed: BTreeMap<u32, usize>,
    /// Lines `- I<n> (core): why` and `- I<n> (test): why` below `## Not yet`.
    pub(crate) not_yet: BTreeMap<(u32, &'static str), usize>,
}

/// Reads `docs/invariants.md`.
pub(crate) fn promises(text: &str) -> Promises {
    let mut promises = Promises { listed: BTreeMap::new(), not_yet: BTreeMap::new() };
    let mut below_not_yet = false;
    for (index, line) in text.lines().enumerate() {
        if let Some(heading) = line.strip_prefix("## ") {
            below_not_yet = heading == "Not yet";
            if let Some(number) = number_after_i(heading) {
                promises.listed.insert(number, index + 1);
            }
        }
        let Some(item) = line.strip_prefix("- ").filter(|_| below_not_yet) else { continue };
        let Some(number) = number_after_i(item) else { continue };
        for place in ["core", "test"] {
            if item.contains(&format!("({place})")) {
                promises.not_yet.insert((number, place), index + 1);
            }
        }
    }
    promises
}

fn number_after_i(text: &str) -> Option<u32> {
    let digits: String = text.strip_prefix('I')?.chars().take_while(char::is_ascii_digit).collect();
    digits.parse().ok()
}

/// Invariants that nobody cites, and admissions that are no longer true.
pub(crate) fn uncited_invariants(files: &[File], text: &str) -> Vec<Finding> {
    const DOC: &str = "docs/invariants.md";
    let promises = promises(text);
    let mut findings = Vec::new();
    let mut found = |line: usize, remedy: String| {
        findings.push(Finding { place: DOC.into(), line, measured: 1, remedy });
    };
    for number in 1..=16 {
        let Some(&line) = promises.listed.get(&number) else {
            found(1, format!("I{number} has no section `## I{number} ...`"));
            continue;
        };
        for (place, prefix) in [("core", "engine/core/src/"), ("test", "tests/")] {
            let cites = |f: &&File| {
                let ours = f.is_rust() && f.path.starts_with(prefix) && !f.path.starts_with("tests/tidy/");
                ours && source::words(&f.text, &format!("I{number}")).next().is_some()
            };
            let cited = files.iter().find(cites);
            match (cited, promises.not_yet.get(&(number, place))) {
                (None, None) => {
                    found(line, format!("I{number} is cited nowhere below {prefix}: cite it where it is upheld"));
                }
                (Some(file), Some(&line)) => {
                    found(line, format!("I{number} is cited in {}: delete its `not yet ({place})`", file.path));
                }
                _ => {}
            }
        }
    }
    findings
}
