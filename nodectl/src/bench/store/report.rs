//! What was measured on the bare disk and on the store, as one document.

use serde::Serialize;

use super::cases::Case;
use super::subject::Run;
use crate::bench::figure::{self, Figure, median};
use crate::bench::fio::Bare;
use crate::bench::machine::Machine;
use crate::bench::rounds::Ran;
use crate::output::Table;

/// What it ran with.
#[derive(Debug, Clone, Serialize)]
pub(super) struct Options {
    pub(super) place: String,
    #[serde(flatten)]
    pub(super) ran: Ran,
}

/// One case, round by round.
#[derive(Debug, Clone, Serialize)]
pub(super) struct Row {
    case: &'static str,
    figure: Figure,
    target_ratio: Option<f64>,
    pub(super) bare: Vec<Bare>,
    pub(super) store: Vec<Run>,
}

/// The report.
#[derive(Debug, Clone, Serialize)]
pub(super) struct Report {
    pub(super) at: String,
    pub(super) machine: Machine,
    pub(super) options: Options,
    pub(super) rows: Vec<Row>,
    pub(super) seconds: f64,
}

impl Run {
    const fn figure(&self, which: Figure) -> f64 {
        match which {
            Figure::Latency => self.p50_us,
            Figure::Iops => self.iops,
            Figure::Throughput => self.mib_per_second,
        }
    }
}

impl Row {
    pub(super) const fn new(case: &Case) -> Self {
        let Case { name, figure, ratio, .. } = *case;
        Self { case: name, figure, target_ratio: ratio, bare: Vec::new(), store: Vec::new() }
    }

    fn bare_figures(&self) -> Vec<f64> {
        self.bare.iter().map(|bare| bare.figure(self.figure)).collect()
    }

    fn store_figures(&self) -> Vec<f64> {
        self.store.iter().map(|run| run.figure(self.figure)).collect()
    }

    fn ratio(&self) -> f64 {
        figure::ratio(&self.store_figures(), &self.bare_figures())
    }

    fn verdict(&self) -> &'static str {
        match self.target_ratio {
            None => "",
            Some(target) if self.figure.is_met(self.ratio(), target) => "ok",
            Some(_) => "MISSED",
        }
    }

    /// The last round, in a line.
    pub(super) fn last(&self) -> String {
        let (Some(bare), Some(run)) = (self.bare.last(), self.store.last()) else { return String::new() };
        let (bare, store) = (bare.figure(self.figure), run.figure(self.figure));
        let (unit, ratio) = (self.figure.unit(), store / bare);
        format!("{:36} bare {bare:.0}, store {store:.0} {unit}: {ratio:.2}", self.case)
    }
}

/// For people.
pub(super) fn table(report: &Report) -> String {
    let mut table = Table::new([
        "case",
        "bare",
        "store",
        "",
        "ratio",
        "target",
        "p50 us",
        "p99 us",
        "slowest s",
        "flushes/s",
        "cpu ms",
        "WAL",
        "",
    ]);
    for row in &report.rows {
        let of = |figure: fn(&Run) -> f64| median(row.store.iter().map(figure));
        let slowest = row.store.iter().filter_map(|run| run.slowest_second).min();
        let wal = of(|run| run.wal_rounds);
        table.row([
            row.case.to_owned(),
            format!("{:.0}", median(row.bare_figures().into_iter())),
            format!("{:.0}", median(row.store_figures().into_iter())),
            row.figure.unit().to_owned(),
            format!("{:.2}", row.ratio()),
            row.target_ratio.map_or_else(String::new, |target| row.figure.target(target)),
            format!("{:.0}", of(|run| run.p50_us)),
            format!("{:.0}", of(|run| run.p99_us)),
            slowest.map_or_else(String::new, |requests| requests.to_string()),
            format!("{:.0}", of(|run| run.flushes_per_second)),
            format!("{:.4}", of(|run| run.cpu_ms)),
            if wal > 0.0 { format!("{wal:.1}x") } else { String::new() },
            row.verdict().to_owned(),
        ]);
    }
    let Options { place, ran } = &report.options;
    let ran = ran.text("store", &format!("one shard, no network, in {place}"), "set", "");
    format!("{table}\n\n{ran}\n{}; {:.0} s", report.machine, report.seconds)
}

#[cfg(test)]
mod tests {
    #![allow(clippy::unwrap_used)]
    use super::super::cases::CASES;
    use super::*;

    fn run(p50_us: f64, iops: f64) -> Run {
        Run {
            iops,
            mib_per_second: iops / 256.0,
            p50_us,
            p99_us: p50_us,
            slowest_second: Some(1),
            flushes_per_second: 1.0,
            cpu_ms: 0.01,
            wal_rounds: 0.5,
        }
    }

    #[test]
    fn a_row_is_held_against_its_target_and_one_without_is_only_told() {
        let bare = |p50_us: f64, iops: f64| Bare { iops, mib_per_second: iops / 256.0, p50_us };
        let row = |name: &str, bare: Vec<Bare>, store: Vec<Run>| {
            let case = CASES.iter().find(|case| case.name == name).unwrap();
            Row { bare, store, ..Row::new(case) }
        };
        let write = |p50: f64| row("4K write, depth 1", vec![bare(100.0, 1.0); 3], vec![run(p50, 1.0); 3]);
        assert_eq!((write(120.0).verdict(), write(121.0).verdict()), ("ok", "MISSED"));
        let deep = |iops: f64| row("4K write, depth 32", vec![bare(1.0, 100.0)], vec![run(1.0, iops)]);
        assert_eq!((deep(90.0).verdict(), deep(89.0).verdict()), ("ok", "MISSED"));
        let told = row("4K read, depth 1, 1/8 of checksums", vec![bare(100.0, 1.0)], vec![run(500.0, 1.0)]);
        assert_eq!((told.verdict(), told.ratio()), ("", 5.0));
    }
}
