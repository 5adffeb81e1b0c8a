//! What a rule found, held against the one list of exceptions.
//!
//! The list may only shrink: an exception states the number that was measured; a larger one fails, and so does a
//! smaller one or none at all until the line is lowered or deleted.

use crate::source;

/// One place that breaks a rule.
#[derive(Debug)]
pub(crate) struct Finding {
    /// File, and the item in it where a rule is about items.
    pub(crate) place: String,
    /// Where to look first.
    pub(crate) line: usize,
    /// How much: lines of a function or file, occurrences in a file.
    pub(crate) measured: usize,
    /// What is wrong and how to put it right.
    pub(crate) remedy: String,
}

/// One line of `tests/tidy/exceptions.txt`: `rule place number reason...`.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(crate) struct Exception {
    pub(crate) line: usize,
    pub(crate) rule: String,
    pub(crate) place: String,
    pub(crate) allowed: usize,
}

const LIST: &str = "tests/tidy/exceptions.txt";

/// The list as it is in the tree.
pub(crate) fn exceptions() -> Vec<Exception> {
    let text = std::fs::read_to_string(source::root().join(LIST)).expect("the list of exceptions");
    parse(&text).unwrap_or_else(|problem| panic!("{problem}"))
}

/// Reads a list; the error names the line.
pub(crate) fn parse(text: &str) -> Result<Vec<Exception>, String> {
    let mut list = Vec::new();
    for (index, line) in text.lines().enumerate() {
        let line_number = index + 1;
        if line.is_empty() || line.starts_with('#') {
            continue;
        }
        let mut fields = line.split_whitespace();
        let (rule, place, number) = (fields.next(), fields.next(), fields.next().and_then(|n| n.parse().ok()));
        let (Some(rule), Some(place), Some(allowed), Some(_reason)) = (rule, place, number, fields.next()) else {
            return Err(format!("{LIST}:{line_number}: write `rule place number reason`"));
        };
        list.push(Exception { line: line_number, rule: rule.into(), place: place.into(), allowed });
    }
    Ok(list)
}

/// Everything that is wrong once exceptions are taken into account, as lines for people.
pub(crate) fn judge(rule: &str, findings: &[Finding], exceptions: &[Exception]) -> Vec<String> {
    let mut wrong = Vec::new();
    let own: Vec<&Exception> = exceptions.iter().filter(|e| e.rule == rule).collect();
    for finding in findings {
        let file = finding.place.split("::").next().unwrap_or(&finding.place);
        let at = format!("{file}:{}", finding.line);
        match own.iter().find(|e| e.place == finding.place) {
            None => wrong.push(format!("{at}: {}", finding.remedy)),
            Some(e) if finding.measured > e.allowed => {
                wrong.push(format!("{at}: {} (its exception allows {})", finding.remedy, e.allowed));
            }
            Some(e) if finding.measured < e.allowed => {
                let now = finding.measured;
                wrong.push(format!("{LIST}:{}: {} is down to {now}: lower {} to {now}", e.line, e.place, e.allowed));
            }
            Some(_) => {}
        }
    }
    for exception in own {
        if !findings.iter().any(|f| f.place == exception.place) {
            let Exception { line, place, .. } = exception;
            wrong.push(format!("{LIST}:{line}: {place} keeps rule `{rule}` now: delete this line"));
        }
    }
    wrong
}

/// Fails the test with everything that breaks `rule`.
pub(crate) fn enforce(rule: &str, findings: &[Finding]) {
    let wrong = judge(rule, findings, &exceptions());
    assert!(wrong.is_empty(), "rule `{rule}`:\n  {}\n", wrong.join("\n  "));
}
