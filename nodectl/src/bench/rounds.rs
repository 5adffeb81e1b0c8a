//! What the benches beside the bare disk have in common: rounds of cases, a short set and a sustained one, in a place of
//! their own.

use std::path::PathBuf;

use serde::Serialize;

use crate::failure::{Exit, Failure};
use crate::{scratch, units};

/// Their arguments.
#[derive(Debug, clap::Args)]
pub(crate) struct Rounds {
    /// Rounds; the median of their ratios counts.
    #[arg(long = "rounds", default_value_t = 5, value_parser = clap::value_parser!(u32).range(1..=100))]
    pub(crate) count: u32,
    /// Seconds of each measurement.
    #[arg(long, default_value_t = 3, value_parser = clap::value_parser!(u32).range(1..=600))]
    pub(crate) seconds: u32,
    /// Seconds of the sustained case; 0 leaves it out.
    #[arg(long, default_value_t = 60)]
    pub(crate) sustained: u32,
    /// Bytes that are written and read: the size of the volume or set, and of the bare file.
    #[arg(long, default_value = "1G", value_parser = units::parse_size)]
    pub(crate) size: u64,
    /// Write-ahead log, of each node where there are several.
    #[arg(long, default_value = "1G", value_parser = units::parse_size)]
    pub(crate) wal_size: u64,
    /// Write-ahead log in the sustained case, whose volume or set is at least eight times as large.
    #[arg(long, default_value = "128M", value_parser = units::parse_size)]
    pub(crate) sustained_wal_size: u64,
    /// Only cases whose name contains this.
    #[arg(long)]
    only: Option<String>,
    /// Where to put it; must be new [default: a temporary directory]. Removed after success.
    #[arg(long)]
    dir: Option<PathBuf>,
}

impl Rounds {
    pub(crate) fn sustained_size(&self) -> u64 {
        self.size.max(8 * self.sustained_wal_size)
    }

    /// Whether a case of this name is asked for.
    pub(crate) fn wants(&self, name: &str) -> bool {
        self.only.as_ref().is_none_or(|only| name.contains(only.as_str()))
    }

    /// A directory that is not there yet.
    pub(crate) fn place(&self, what: &str) -> Result<PathBuf, Failure> {
        let dir = self.dir.clone().unwrap_or_else(|| scratch::temporary(what));
        if dir.exists() {
            return Err(Failure::new(Exit::IllegalState, format!("{} exists already", dir.display()))
                .untouched("nothing was started")
                .next("name a new --dir, or none"));
        }
        Ok(dir)
    }

    /// What a report says of them.
    pub(crate) fn ran(&self, fio: &str) -> Ran {
        Ran {
            size: self.size,
            wal_size: self.wal_size,
            sustained_size: self.sustained_size(),
            sustained_wal_size: self.sustained_wal_size,
            rounds: self.count,
            seconds: self.seconds,
            sustained_seconds: self.sustained,
            bare: format!("{fio}, io_uring, O_DIRECT, on a file that was written before"),
        }
    }
}

/// What it ran with.
#[derive(Debug, Clone, Serialize)]
pub(crate) struct Ran {
    size: u64,
    wal_size: u64,
    sustained_size: u64,
    sustained_wal_size: u64,
    rounds: u32,
    seconds: u32,
    sustained_seconds: u32,
    bare: String,
}

impl Ran {
    /// Under a table: how it was measured on `ours`, which is so described and writes to what is called `set`.
    pub(crate) fn text(&self, ours: &str, described: &str, set: &str, each: &str) -> String {
        let Self { rounds, seconds, sustained_seconds, bare, .. } = self;
        let sizes = [self.size, self.wal_size, self.sustained_size, self.sustained_wal_size].map(units::size);
        let [size, wal, sustained, sustained_wal] = sizes;
        format!(
            "medians of {rounds} rounds of {seconds} s, bare and {ours} in turns\n\
             {ours}: {described}; {set} {size}, WAL {wal}{each}; sustained: {set} {sustained}, WAL {sustained_wal}, \
             {sustained_seconds} s\nbare: {bare}"
        )
    }
}
