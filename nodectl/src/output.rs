//! Results on stdout, as a table for people or as JSON for programs; progress on stderr.
//!
//! In JSON a command prints exactly one document, or one per line where it goes on (`status --watch`). Progress never
//! goes to stdout, so that `nodectl ... -o json | jq` always works.

use std::fmt;
use std::io::Write;
use std::time::Duration;

use indicatif::{ProgressBar, ProgressDrawTarget, ProgressStyle};
use serde::Serialize;

use crate::failure::Failure;

/// What stdout carries.
#[derive(Debug, Clone, Copy, PartialEq, Eq, clap::ValueEnum)]
pub(crate) enum Format {
    /// For people.
    Table,
    /// For programs.
    Json,
}

impl Format {
    /// Prints a result: the document itself, or the text `table` makes of it.
    pub(crate) fn show<T: Serialize>(self, document: &T, table: impl FnOnce(&T) -> String) -> Result<(), Failure> {
        match self {
            Self::Json => self.line(document),
            Self::Table => print(&table(document)),
        }
    }

    /// Prints one document on one line (NDJSON).
    pub(crate) fn line<T: Serialize>(self, document: &T) -> Result<(), Failure> {
        let text = serde_json::to_string(document)
            .map_err(|error| Failure::failed(format!("could not write the result as JSON: {error}")))?;
        print(&text)
    }
}

/// A line on stdout. A reader who has gone away (`| head`) is not an error worth a panic.
fn print(text: &str) -> Result<(), Failure> {
    let mut stdout = std::io::stdout().lock();
    writeln!(stdout, "{}", text.trim_end())
        .and_then(|()| stdout.flush())
        .map_err(|error| Failure::failed(format!("could not write to stdout: {error}")))
}

/// Rows under a header, columns aligned, no lines: easy to read and to cut.
#[derive(Debug)]
pub(crate) struct Table(comfy_table::Table);

impl Table {
    /// An empty table.
    pub(crate) fn new<const N: usize>(header: [&str; N]) -> Self {
        let mut table = comfy_table::Table::new();
        table.load_style(comfy_table::presets::NOTHING);
        table.set_content_arrangement(comfy_table::ContentArrangement::Disabled);
        table.set_header(header.map(str::to_uppercase));
        Self(table)
    }

    /// Adds a row.
    pub(crate) fn row<const N: usize>(&mut self, cells: [String; N]) {
        self.0.add_row(cells);
    }
}

impl fmt::Display for Table {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let text = self.0.to_string();
        let lines: Vec<&str> = text.lines().map(str::trim_end).collect();
        f.write_str(&lines.join("\n"))
    }
}

/// A bar on stderr that fills from 0 to `total` bytes; invisible when stderr is not a terminal.
pub(crate) fn bar(total: u64, what: &str) -> ProgressBar {
    let bar = ProgressBar::with_draw_target(Some(total), ProgressDrawTarget::stderr());
    let template = "{msg:32} [{bar:24}] {binary_bytes:>10}/{binary_total_bytes} {binary_bytes_per_sec}";
    if let Ok(style) = ProgressStyle::with_template(template) {
        bar.set_style(style.progress_chars("=> "));
    }
    bar.set_message(what.to_owned());
    bar
}

/// A line on stderr for something of unknown length, with the time it has taken.
pub(crate) fn spinner(what: &str) -> ProgressBar {
    let spinner = ProgressBar::with_draw_target(None, ProgressDrawTarget::stderr());
    if let Ok(style) = ProgressStyle::with_template("{spinner} {msg} ({elapsed})") {
        spinner.set_style(style);
    }
    spinner.set_message(what.to_owned());
    spinner.enable_steady_tick(Duration::from_millis(200));
    spinner
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_table_is_plain_columns() {
        let mut table = Table::new(["name", "size"]);
        table.row(["a".to_owned(), "4 GiB".to_owned()]);
        let text = table.to_string();
        let lines: Vec<&str> = text.lines().collect();
        assert_eq!(lines.len(), 2, "{text}");
        assert!(lines[0].contains("NAME") && lines[0].contains("SIZE"));
        assert_eq!(lines[1].split_whitespace().collect::<Vec<_>>(), ["a", "4", "GiB"]);
    }
}
