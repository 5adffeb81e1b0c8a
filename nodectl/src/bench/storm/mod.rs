//! `nodectl bench storm`: the storm of April 2011 on demand, under its own policy and under this product's (issue R3-R9).
//!
//! One scenario, one cluster, the same capacities and faults; two policies in virtual time: [`naive`] as the report of
//! 2011 tells it, [`breakwater`] with the production authority. No figure is an input: they follow from the mechanisms.
//! What is aggregated, and every parameter with its source, is in `docs/storm.md`.

mod breakwater;
mod cluster;
mod naive;
mod page;
mod report;
mod scenario;
mod series;

use std::path::PathBuf;
use std::time::Instant;

use engine_core::time::Time;
use indicatif::{ProgressBar, ProgressDrawTarget, ProgressStyle};
use serde::Serialize;

use self::cluster::{Cluster, START};
use self::scenario::{NODES_MAX, Scenario};
use self::series::{Figures, Series};
use crate::Global;
use crate::failure::{Context, Failure};
use crate::units;

/// A storm, under one policy or both.
#[derive(Debug, clap::Args)]
pub(crate) struct Args {
    /// `april-2011`, `node-loss`, `zone-loss`, `flapping-link`, `authority-outage`, or a file (docs/storm.md).
    #[arg(value_name = "SCENARIO")]
    scenario: String,
    /// In virtual time, in this process.
    #[arg(long)]
    sim: bool,
    /// Whose policy.
    #[arg(long, value_enum, default_value = "both")]
    policy: Which,
    /// Nodes in all, instead of the scenario's.
    #[arg(long, value_name = "N")]
    nodes: Option<usize>,
    /// Everything random comes from it.
    #[arg(long, value_name = "N", default_value_t = 1)]
    seed: u64,
    /// Write a report with plots: one HTML file that needs nothing else.
    #[arg(long, value_name = "FILE")]
    report: Option<PathBuf>,
}

#[derive(Debug, Clone, Copy, PartialEq, Eq, clap::ValueEnum)]
enum Which {
    Naive,
    Breakwater,
    Both,
}

/// How one policy did.
#[derive(Debug, Serialize)]
struct Outcome {
    policy: &'static str,
    figures: Figures,
    series: Series,
}

/// What is printed as JSON.
#[derive(Debug, Serialize)]
struct Document {
    scenario: String,
    about: String,
    seed: u64,
    nodes: usize,
    segments: usize,
    zones: Vec<String>,
    hit_zone: String,
    cells: usize,
    simulated_s: u64,
    /// Seconds at which the first fault began, and the last that ends was over.
    broken_at_s: f64,
    healed_at_s: f64,
    /// Traffic shifted, in parts of what the small network carries.
    shifted_load: f64,
    headroom_share: f64,
    naive_parameters: scenario::Naive,
    policies: Vec<Outcome>,
    /// What it took here; differs from run to run.
    machine: Machine,
}

#[derive(Debug, Default, Serialize)]
struct Machine {
    /// By policy, in its order.
    run_s: Vec<f64>,
    peak_rss_bytes: u64,
}

/// Runs the subcommand.
pub(crate) fn run(global: &Global, args: &Args) -> Result<(), Failure> {
    if !args.sim {
        let what = "only the simulator can make a storm so far";
        return Err(Failure::usage(what).next(format!("nodectl bench storm {} --sim", args.scenario)));
    }
    let mut scenario = Scenario::load(&args.scenario)?;
    if let Some(nodes) = args.nodes {
        if nodes > NODES_MAX {
            return Err(Failure::usage(format!("--nodes: at most {NODES_MAX}")));
        }
        scenario = scenario.with_nodes(nodes).map_err(|error| Failure::usage(format!("--nodes {nodes}: {error}")))?;
    }
    let document = simulate(&scenario, args.policy, args.seed);
    if let Some(path) = &args.report {
        std::fs::write(path, page::html(&document)?).could_not(|| format!("write {}", path.display()))?;
        eprintln!("report: {}", path.display());
    }
    global.output.show(&document, report::table)
}

fn simulate(scenario: &Scenario, which: Which, seed: u64) -> Document {
    let plan = Cluster::new(scenario, seed);
    let seconds = |at: Time| cluster::float(at.since(START).0) / 1e9;
    let mut document = Document {
        scenario: scenario.name.clone(),
        about: scenario.about.clone(),
        seed,
        nodes: plan.zones.len(),
        segments: plan.segments(),
        zones: scenario.cluster.zones.clone(),
        hit_zone: scenario.cluster.zones[scenario.hit_zone()].clone(),
        cells: plan.cells.len(),
        simulated_s: scenario.duration.0.as_millis() / 1000,
        broken_at_s: seconds(plan.broken_at),
        healed_at_s: seconds(plan.healed_at),
        shifted_load: series::round(plan.shifted_load, 1e3),
        headroom_share: cluster::float(engine_core::limits::HEADROOM_PER_MILLE) / 1000.0,
        naive_parameters: scenario.naive,
        policies: Vec::new(),
        machine: Machine::default(),
    };
    type Run = fn(&Scenario, &Cluster, u64, &dyn Fn(Time, u64)) -> (Figures, Series);
    let runs: [(Which, &'static str, Run); 2] =
        [(Which::Naive, "naive", naive::run), (Which::Breakwater, "breakwater", breakwater::run)];
    for (policy, name, run) in runs {
        if which != policy && which != Which::Both {
            continue;
        }
        let bar = progress(scenario, name);
        let began = Instant::now();
        let (figures, series) = run(scenario, &plan, seed, &|at, stuck| {
            bar.set_position(at.since(START).as_millis() / 1000);
            bar.set_message(format!("{name}: {stuck} segments stuck"));
        });
        bar.finish_and_clear();
        let took = began.elapsed();
        eprintln!(
            "{name}: {} simulated in {}",
            units::time(std::time::Duration::from_nanos(scenario.duration.0.0)),
            units::time(took)
        );
        document.machine.run_s.push(series::round(took.as_secs_f64(), 1e3));
        document.policies.push(Outcome { policy: name, figures, series });
    }
    document.machine.peak_rss_bytes = peak_rss();
    document
}

fn progress(scenario: &Scenario, name: &str) -> ProgressBar {
    let total = scenario.duration.0.as_millis() / 1000;
    let bar = ProgressBar::with_draw_target(Some(total), ProgressDrawTarget::stderr());
    if let Ok(style) = ProgressStyle::with_template("{msg:40} [{bar:24}] {pos:>6}/{len} simulated seconds ({elapsed})")
    {
        bar.set_style(style.progress_chars("=> "));
    }
    bar.set_message(name.to_owned());
    bar
}

/// Most memory this process has had.
fn peak_rss() -> u64 {
    let status = std::fs::read_to_string("/proc/self/status").unwrap_or_default();
    let line = status.lines().find_map(|line| line.strip_prefix("VmHWM:"));
    let kib = line.and_then(|rest| rest.trim().trim_end_matches("kB").trim().parse::<u64>().ok());
    kib.unwrap_or(0) * 1024
}

#[cfg(test)]
mod tests;
