//! What the faults did to the client, as one document.

use std::time::Duration;

use serde::Serialize;

use super::fault::Fault;
use super::load::{Pair, Verified};
use crate::bench::machine::Machine;
use crate::output::Table;
use crate::units;

/// Gaps of one stream over the repetitions, in milliseconds.
#[derive(Debug, Clone, Serialize)]
pub(super) struct Gaps {
    p50_ms: f64,
    max_ms: f64,
    all_ms: Vec<f64>,
}

impl Gaps {
    fn of(gaps: impl Iterator<Item = Duration>) -> Self {
        let all_ms: Vec<f64> = gaps.map(units::millis).collect();
        let mut sorted = all_ms.clone();
        sorted.sort_by(f64::total_cmp);
        let p50_ms = sorted.get(sorted.len().saturating_sub(1) / 2).copied().unwrap_or_default();
        Self { p50_ms, max_ms: sorted.last().copied().unwrap_or_default(), all_ms }
    }

    fn both(gaps: &[Pair<Duration>]) -> Streams {
        Streams {
            write: Self::of(gaps.iter().map(|pair| pair.write)),
            read: Self::of(gaps.iter().map(|pair| pair.read)),
        }
    }

    fn within(&self, p50: f64, max: f64) -> bool {
        self.p50_ms <= p50 && self.max_ms <= max
    }

    fn text(&self) -> String {
        format!("{:.0} / {:.0}", self.p50_ms, self.max_ms)
    }
}

/// Longest gaps of both streams.
#[derive(Debug, Clone, Serialize)]
pub(super) struct Streams {
    write: Gaps,
    read: Gaps,
}

/// What was measured of one fault, repetition by repetition.
#[derive(Debug, Default)]
pub(super) struct Measured {
    /// Just before it.
    pub(super) calm: Vec<Pair<Duration>>,
    /// While it lasted.
    pub(super) fault: Vec<Pair<Duration>>,
    /// From its end until the volume was whole again.
    pub(super) back: Vec<Pair<Duration>>,
}

/// One fault.
#[derive(Debug, Clone, Serialize)]
pub(super) struct Row {
    fault: Fault,
    repetitions: usize,
    /// Longest time between two answers, while the fault lasted.
    #[serde(flatten)]
    gaps: Streams,
    /// The same just before.
    calm: Streams,
    /// The same from the fault's end until the volume was whole again.
    back: Streams,
    target_p50_ms: Option<f64>,
    target_max_ms: Option<f64>,
    met: bool,
}

impl Row {
    pub(super) fn new(fault: Fault, measured: &Measured) -> Self {
        let [gaps, calm, back] = [&measured.fault, &measured.calm, &measured.back].map(|gaps| Gaps::both(gaps));
        let target = fault.target();
        // No gap at all is one that is not longer than without a fault, give or take this machine's noise.
        let limit = |calm: &Gaps| target.unwrap_or((2.0 * calm.p50_ms + 10.0, 2.0 * calm.max_ms + 10.0));
        let ((p50_w, max_w), (p50_r, max_r)) = (limit(&calm.write), limit(&calm.read));
        let met = gaps.write.within(p50_w, max_w) && gaps.read.within(p50_r, max_r);
        let (target_p50_ms, target_max_ms) = target.unzip();
        Self { fault, repetitions: measured.fault.len(), gaps, calm, back, target_p50_ms, target_max_ms, met }
    }
}

/// A fault this machine cannot show.
#[derive(Debug, Clone, Serialize)]
pub(super) struct Skipped {
    pub(super) fault: Fault,
    pub(super) why: String,
}

/// What it ran with.
#[derive(Debug, Clone, Serialize)]
pub(super) struct Options {
    pub(super) nodes: u16,
    pub(super) zones: u16,
    pub(super) network: &'static str,
    pub(super) spread: &'static str,
    pub(super) copies: u8,
    pub(super) depth: u16,
    pub(super) repeat: u32,
    pub(super) stall_seconds: f64,
}

/// The report.
#[derive(Debug, Clone, Serialize)]
pub(super) struct Report {
    pub(super) at: String,
    pub(super) machine: Machine,
    pub(super) options: Options,
    /// Longest gaps without any fault: this machine's noise.
    pub(super) calm: Streams,
    pub(super) faults: Vec<Row>,
    pub(super) skipped: Vec<Skipped>,
    pub(super) verified: Verified,
    pub(super) seconds: f64,
}

/// All calm windows together.
pub(super) fn calm(all: &[Pair<Duration>]) -> Streams {
    Gaps::both(all)
}

/// For people.
pub(super) fn table(report: &Report) -> String {
    let mut table = Table::new(["fault", "times", "writes", "reads", "target", "", "back: writes", "reads"]);
    let (calm, none) = (&report.calm, String::new);
    let times = calm.write.all_ms.len().to_string();
    table.row(["(none)".to_owned(), times, calm.write.text(), calm.read.text(), none(), none(), none(), none()]);
    for row in &report.faults {
        let target = row.target_p50_ms.zip(row.target_max_ms);
        table.row([
            row.fault.name().to_owned(),
            row.repetitions.to_string(),
            row.gaps.write.text(),
            row.gaps.read.text(),
            target.map_or("no gap".to_owned(), |(p50, max)| format!("{p50:.0} / {max:.0}")),
            if row.met { "ok" } else { "MISSED" }.to_owned(),
            row.back.write.text(),
            row.back.read.text(),
        ]);
    }
    let (machine, options, verified) = (&report.machine, &report.options, &report.verified);
    let skipped: String = report.skipped.iter().map(|s| format!("\nskipped {}: {}", s.fault.name(), s.why)).collect();
    format!(
        "Longest time a client got no answer, p50 / max in ms: while the fault lasted, and from its end until all \
         copies were back.\n\n{table}\n{skipped}\n\
         {} nodes in {} zones, network: {}, spread: {}, {} copies, 4K writes and 4K reads with {} in flight each\n\
         {machine}\n\
         verified: {} writes, {} reads (none stale), {} blocks, {} on members; {:.0} s",
        options.nodes,
        options.zones,
        options.network,
        options.spread,
        options.copies,
        options.depth,
        verified.writes,
        verified.reads,
        verified.blocks,
        verified.member_blocks,
        report.seconds,
    )
}

#[cfg(test)]
mod tests {
    use super::*;

    fn pair(millis: u64) -> Pair<Duration> {
        Pair { write: Duration::from_millis(millis), read: Duration::from_millis(1) }
    }

    #[test]
    fn half_of_the_times_and_ever() {
        let gaps = Gaps::both(&[pair(30), pair(10), pair(20), pair(40)]);
        assert_eq!((gaps.write.p50_ms, gaps.write.max_ms), (20.0, 40.0));
        assert_eq!(Gaps::both(&[]).write.text(), "0 / 0");
    }

    #[test]
    fn a_target_is_missed_by_either_figure() {
        let row = |fault: &[u64]| {
            let fault: Vec<_> = fault.iter().copied().map(pair).collect();
            Row::new(Fault::KillBackup, &Measured { calm: fault.clone(), back: Vec::new(), fault }).met
        };
        assert!(row(&[50, 50, 200]));
        assert!(!row(&[51, 51, 60]), "half of them");
        assert!(!row(&[1, 1, 201]), "one of them");
    }
}
