//! What is measured beside the bare disk, and what it is held against.

use crate::bench::figure::Figure;
use crate::bench::fio::Job;

/// One thing that is measured on both.
#[derive(Debug, Clone, Copy)]
pub(super) struct Case {
    pub(super) name: &'static str,
    /// As fio and `bench io` call it.
    pub(super) mode: &'static str,
    pub(super) block: &'static str,
    pub(super) depth: u16,
    /// What the bare disk does beside it.
    pub(super) bare_depth: u16,
    /// It flushes after every write.
    pub(super) bare_flushes: bool,
    pub(super) figure: Figure,
    /// Cluster to bare: at most where less is better, at least otherwise.
    pub(super) ratio: f64,
    pub(super) p50_max_us: Option<f64>,
    /// Processor milliseconds per request, over all processes.
    pub(super) cpu_max_ms: Option<f64>,
    /// For long, over far more than the WAL holds.
    pub(super) sustained: bool,
}

impl Case {
    /// What the bare disk does beside it.
    pub(super) const fn bare(&self) -> Job {
        Job { mode: self.mode, block: self.block, depth: self.bare_depth, flushes: self.bare_flushes }
    }

    /// Whether it is measured through NBD too.
    pub(super) fn has_nbd(&self) -> bool {
        self.block == "4k" && self.depth <= 32 && !self.sustained
    }

    /// What fio does through NBD. It does not flush: what a gateway acknowledges is durable.
    pub(super) const fn through_nbd(&self) -> Job {
        Job { mode: self.mode, block: self.block, depth: self.depth, flushes: false }
    }
}

const WRITE: Case = Case {
    name: "4K write, depth 1",
    mode: "randwrite",
    block: "4k",
    depth: 1,
    bare_depth: 1,
    bare_flushes: true,
    figure: Figure::Latency,
    ratio: 2.1,
    p50_max_us: Some(190.0),
    cpu_max_ms: None,
    sustained: false,
};

const READ: Case =
    Case { name: "4K read, depth 1", mode: "randread", bare_flushes: false, ratio: 2.4, p50_max_us: None, ..WRITE };

/// In the order they are measured.
pub(super) const CASES: [Case; 8] = [
    READ,
    Case { name: "4K read, depth 32", cpu_max_ms: Some(0.015), ..deep(READ, 32, 0.7) },
    Case { name: "1M read, depth 8", mode: "read", block: "1m", figure: Figure::Throughput, ..deep(READ, 8, 1.2) },
    WRITE,
    Case { name: "4K write, depth 32", cpu_max_ms: Some(0.025), ..deep(WRITE, 32, 0.9) },
    Case { name: "4K write, depth 128", ..deep(WRITE, 128, 1.5) },
    Case { name: "1M write, depth 8", mode: "write", block: "1m", figure: Figure::Throughput, ..deep(WRITE, 8, 0.3) },
    Case { name: "4K write, depth 32, sustained", cpu_max_ms: Some(0.06), sustained: true, ..deep(WRITE, 32, 0.22) },
];

/// Deeper, beside a bare disk of depth 32 (4K) or one stream (1M) that does not flush.
const fn deep(case: Case, depth: u16, ratio: f64) -> Case {
    let bare_depth = if depth == 8 { 1 } else { 32 };
    Case { depth, bare_depth, bare_flushes: false, figure: Figure::Iops, ratio, p50_max_us: None, ..case }
}
