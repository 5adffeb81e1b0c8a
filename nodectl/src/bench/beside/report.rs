//! What was measured side by side, as one document.

use serde::Serialize;

use super::cases::Case;
use super::fleet::Load;
use crate::bench::figure::{self, Figure, median};
use crate::bench::fio::Bare;
use crate::bench::machine::Machine;
use crate::bench::rounds::Ran;
use crate::output::Table;

/// What it ran with.
#[derive(Debug, Clone, Serialize)]
pub(super) struct Options {
    pub(super) nodes: u16,
    pub(super) copies: u16,
    pub(super) network: &'static str,
    #[serde(flatten)]
    pub(super) ran: Ran,
}

/// One case, round by round.
#[derive(Debug, Clone, Serialize)]
pub(super) struct Row {
    case: &'static str,
    figure: Figure,
    target_ratio: f64,
    target_p50_us: Option<f64>,
    target_cpu_ms: Option<f64>,
    pub(super) bare: Vec<Bare>,
    pub(super) cluster: Vec<Load>,
    /// What it is held against beside `cluster`, where it is measured through NBD; empty `nbd`: this fio cannot.
    through_nbd: Option<Through>,
    pub(super) nbd: Vec<Bare>,
}

/// What the way through NBD may cost, beside the native client.
#[derive(Debug, Clone, Copy, Serialize)]
#[serde(rename_all = "snake_case")]
enum Through {
    /// At most so many microseconds more.
    MoreUs(f64),
    /// At least this part of it.
    Part(f64),
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

impl Row {
    pub(super) fn new(case: &Case) -> Self {
        Self {
            case: case.name,
            figure: case.figure,
            target_ratio: case.ratio,
            target_p50_us: case.p50_max_us,
            target_cpu_ms: case.cpu_max_ms,
            bare: Vec::new(),
            cluster: Vec::new(),
            through_nbd: case.has_nbd().then_some(match case.figure {
                Figure::Latency => Through::MoreUs(60.0),
                Figure::Iops | Figure::Throughput => Through::Part(0.5),
            }),
            nbd: Vec::new(),
        }
    }

    fn bare_figure(&self) -> f64 {
        median(self.bare.iter().map(|bare| bare.figure(self.figure)))
    }

    fn cluster_figure(&self) -> f64 {
        median(self.cluster.iter().map(|load| load.figure(self.figure)))
    }

    fn cpu_ms(&self) -> f64 {
        median(self.cluster.iter().map(Load::cpu_ms))
    }

    fn ratio(&self) -> f64 {
        let ours: Vec<f64> = self.cluster.iter().map(|load| load.figure(self.figure)).collect();
        let bare: Vec<f64> = self.bare.iter().map(|bare| bare.figure(self.figure)).collect();
        figure::ratio(&ours, &bare)
    }

    fn is_met(&self) -> bool {
        let fast = self.figure.is_met(self.ratio(), self.target_ratio);
        let quick = self.target_p50_us.is_none_or(|most| self.cluster_figure() <= most);
        fast && quick && self.target_cpu_ms.is_none_or(|most| self.cpu_ms() <= most)
    }

    /// Through NBD, and beside the native client: the median of the rounds' differences or ratios.
    fn nbd_figures(&self, target: Through) -> (f64, f64) {
        let nbd: Vec<f64> = self.nbd.iter().map(|nbd| nbd.figure(self.figure)).collect();
        let native = self.cluster.iter().map(|load| load.figure(self.figure));
        let beside = match target {
            Through::MoreUs(_) => median(nbd.iter().zip(native).map(|(nbd, native)| nbd - native)),
            Through::Part(_) => median(nbd.iter().zip(native).map(|(nbd, native)| nbd / native)),
        };
        (median(nbd.into_iter()), beside)
    }

    /// Of the second table.
    fn nbd_row(&self) -> Option<[String; 7]> {
        let target = self.through_nbd?;
        let (name, unit) = (self.case.to_owned(), self.figure.unit().to_owned());
        let native = format!("{:.0}", self.cluster_figure());
        if self.nbd.is_empty() {
            let none = "fio has no nbd engine".to_owned();
            return Some([name, native, String::new(), unit, String::new(), String::new(), none]);
        }
        let (nbd, beside) = self.nbd_figures(target);
        let (beside, target, met) = match target {
            Through::MoreUs(most) => (format!("{beside:+.0} us"), format!("<= +{most:.0} us"), beside <= most),
            Through::Part(least) => (format!("{beside:.2}"), format!(">= {least}"), beside >= least),
        };
        let met = if met { "ok" } else { "MISSED" }.to_owned();
        Some([name, native, format!("{nbd:.0}"), unit, beside, target, met])
    }

    /// The last round, in a line.
    pub(super) fn last(&self) -> String {
        let (Some(bare), Some(load)) = (self.bare.last(), self.cluster.last()) else { return String::new() };
        let (bare, cluster) = (bare.figure(self.figure), load.figure(self.figure));
        let (unit, ratio) = (self.figure.unit(), cluster / bare);
        format!("{:30} bare {bare:.0}, cluster {cluster:.0} {unit}: {ratio:.2}; {:.4} ms", self.case, load.cpu_ms())
    }
}

/// For people.
pub(super) fn table(report: &Report) -> String {
    let mut table = Table::new([
        "case",
        "bare",
        "cluster",
        "",
        "ratio",
        "target",
        "p50 us",
        "p99 us",
        "slowest s",
        "cpu ms",
        "target",
        "",
    ]);
    for row in &report.rows {
        let most = row.target_p50_us.map_or_else(String::new, |most| format!(", <= {most:.0} us"));
        table.row([
            row.case.to_owned(),
            format!("{:.0}", row.bare_figure()),
            format!("{:.0}", row.cluster_figure()),
            row.figure.unit().to_owned(),
            format!("{:.2}", row.ratio()),
            format!("{}{most}", row.figure.target(row.target_ratio)),
            format!("{:.0}", median(row.cluster.iter().map(|load| load.latency.p50_us))),
            format!("{:.0}", median(row.cluster.iter().map(|load| load.latency.p99_us))),
            row.cluster.iter().filter_map(|load| load.slowest_second).min().map_or_else(String::new, |n| n.to_string()),
            format!("{:.4}", row.cpu_ms()),
            row.target_cpu_ms.map_or_else(String::new, |most| format!("<= {most}")),
            if row.is_met() { "ok" } else { "MISSED" }.to_owned(),
        ]);
    }
    let mut through = Table::new(["through NBD", "native", "nbd", "", "beside", "target", ""]);
    let rows: Vec<_> = report.rows.iter().filter_map(Row::nbd_row).collect();
    let nbd = !rows.is_empty();
    rows.into_iter().for_each(|row| through.row(row));
    let through = if nbd { format!("\n\n{through}") } else { String::new() };
    let Options { nodes, copies, network, ran } = &report.options;
    let described = format!("{nodes} nodes, {copies} copies, {network}");
    let ran = ran.text("cluster", &described, "volume", " per node");
    format!("{table}{through}\n\n{ran}\n{}; {:.0} s", report.machine, report.seconds)
}

#[cfg(test)]
mod tests {
    #![allow(clippy::unwrap_used)]
    use super::super::cases::CASES;
    use super::*;

    fn load(p50_us: f64, iops: f64, cpu: f64) -> Load {
        serde_json::from_value(serde_json::json!({
            "iops": iops, "mib_per_second": 1.0, "latency": {"p50_us": p50_us, "p99_us": p50_us},
            "slowest_second": 1, "client_cpu_ms_per_io": cpu, "cluster_cpu_ms_per_io": 0.0,
        }))
        .unwrap()
    }

    #[test]
    fn the_median_of_the_ratios_counts_and_each_target_alone_can_miss() {
        let bare = |p50_us: f64, iops: f64| Bare { iops, mib_per_second: 1.0, p50_us };
        let case = |name: &str| CASES.iter().find(|case| case.name == name).unwrap();
        let mut row = Row::new(case("4K write, depth 1"));
        row.bare = vec![bare(80.0, 1.0), bare(100.0, 1.0), bare(10.0, 1.0)];
        row.cluster = vec![load(160.0, 1.0, 1.0), load(150.0, 1.0, 1.0), load(180.0, 1.0, 1.0)];
        assert_eq!((row.ratio(), row.is_met()), (2.0, true));
        row.cluster = vec![load(191.0, 1.0, 1.0); 3];
        assert!(!row.is_met());
        let mut row = Row::new(case("4K write, depth 32"));
        row.bare = vec![bare(1.0, 100.0)];
        row.cluster = vec![load(1.0, 95.0, 0.025)];
        assert!(row.is_met());
        row.cluster = vec![load(1.0, 95.0, 0.026)];
        assert!(!row.is_met(), "too much processor time");
        row.cluster = vec![load(1.0, 89.0, 0.001)];
        assert!(!row.is_met(), "too slow");
    }

    #[test]
    fn through_nbd_is_held_against_the_native_client_of_the_same_round() {
        let nbd = |p50_us: f64, iops: f64| Bare { iops, mib_per_second: 1.0, p50_us };
        let row = |name: &str| Row::new(CASES.iter().find(|case| case.name == name).unwrap());
        let last = |row: &Row| row.nbd_row().unwrap()[6].clone();
        let mut write = row("4K write, depth 1");
        write.cluster = vec![load(150.0, 1.0, 1.0), load(170.0, 1.0, 1.0), load(900.0, 1.0, 1.0)];
        assert_eq!(last(&write), "fio has no nbd engine");
        write.nbd = vec![nbd(209.0, 1.0), nbd(230.0, 1.0), nbd(961.0, 1.0)];
        assert_eq!(last(&write), "ok");
        write.nbd[0].p50_us = 220.0;
        assert_eq!(last(&write), "MISSED");
        let mut read = row("4K read, depth 32");
        (read.cluster, read.nbd) = (vec![load(1.0, 100.0, 1.0)], vec![nbd(1.0, 50.0)]);
        assert_eq!(last(&read), "ok");
        read.nbd[0].iops = 49.0;
        assert_eq!(last(&read), "MISSED");
        assert!(row("4K write, depth 128").nbd_row().is_none());
    }
}
