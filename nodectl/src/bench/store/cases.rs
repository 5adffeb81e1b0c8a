//! What is measured on the bare disk and on the store, and what it is held against.

use crate::bench::figure::Figure;
use crate::bench::fio::Job;

/// One thing that is measured on both.
#[derive(Debug, Clone, Copy)]
pub(super) struct Case {
    pub(super) name: &'static str,
    /// What fio does. The store does the same, and makes every write durable.
    pub(super) job: Job,
    pub(super) block_bytes: u32,
    pub(super) figure: Figure,
    /// Store to bare: at most where less is better, at least otherwise. `None`: told, not held against anything.
    pub(super) ratio: Option<f64>,
    /// With memory for an eighth of the checksums.
    pub(super) few_sums: bool,
    /// For long, over far more than the WAL holds.
    pub(super) sustained: bool,
}

impl Case {
    pub(super) fn writes(&self) -> bool {
        self.job.mode.ends_with("write")
    }

    pub(super) fn is_random(&self) -> bool {
        self.job.mode.starts_with("rand")
    }
}

const WRITE: Case = Case {
    name: "4K write, depth 1",
    job: Job { mode: "randwrite", block: "4k", depth: 1, flushes: true },
    block_bytes: 4096,
    figure: Figure::Latency,
    ratio: Some(1.2),
    few_sums: false,
    sustained: false,
};

const READ: Case = Case {
    name: "4K read, depth 1",
    job: Job { mode: "randread", block: "4k", depth: 1, flushes: false },
    ratio: Some(1.15),
    ..WRITE
};

const DEEP_READ: Case = deep(READ, "4K read, depth 32", 0.9);

/// Writes the whole set once, in order.
pub(super) const FILL: Case = Case {
    name: "1M write, depth 8",
    job: Job { mode: "write", block: "1m", depth: 8, flushes: false },
    block_bytes: 1 << 20,
    figure: Figure::Throughput,
    ratio: Some(0.9),
    ..WRITE
};

/// In the order they are measured.
pub(super) const CASES: [Case; 8] = [
    READ,
    DEEP_READ,
    Case { name: "4K read, depth 1, 1/8 of checksums", few_sums: true, ratio: None, ..READ },
    Case { name: "4K read, depth 32, 1/8 of checksums", few_sums: true, ratio: None, ..DEEP_READ },
    WRITE,
    deep(WRITE, "4K write, depth 32", 0.9),
    FILL,
    Case { sustained: true, ..deep(WRITE, "4K write, depth 32, sustained", 0.5) },
];

/// At depth 32, beside a bare disk that does not flush.
const fn deep(case: Case, name: &'static str, ratio: f64) -> Case {
    let job = Job { depth: 32, flushes: false, ..case.job };
    Case { name, job, figure: Figure::Iops, ratio: Some(ratio), ..case }
}
