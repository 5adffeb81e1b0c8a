//! `nodectl sim`: whole clusters in virtual time, in this process: one story, one seed of the swarm, or a soak of many.
//!
//! A seed is a whole run: same seed, same events. So a failure is a number, and what is printed with it is the one
//! command that shows it again.

use std::collections::BTreeMap;
use std::panic;
use std::sync::atomic::{AtomicBool, AtomicU64, Ordering};
use std::sync::mpsc;
use std::time::{Duration, Instant};

use breakwater_sim::{Coverage, FAULTS_MIN, Outcome, SECONDS, Story, known_seeds, stories, swarm};
use indicatif::{ProgressBar, ProgressDrawTarget, ProgressStyle};
use serde::Serialize;

use crate::Global;
use crate::failure::Failure;
use crate::output::{Format, Table};
use crate::units;

/// A soak stops after this many failures: more say nothing new.
const FAILURES_MAX: usize = 20;

/// Run the cluster in virtual time.
#[derive(Debug, clap::Args)]
pub(crate) struct Args {
    /// `list`, `swarm`, `soak`, or a story's name.
    #[arg(value_name = "SCENARIO")]
    scenario: String,
    /// Everything random comes from it [default: 1 for swarm, a story's own].
    #[arg(long, value_name = "N")]
    seed: Option<u64>,
    /// Show every event on stderr.
    #[arg(long)]
    trace: bool,
    /// Simulated seconds of one seed, at least.
    #[arg(long, value_name = "N", default_value_t = SECONDS)]
    seconds: u64,
    /// soak: how many seeds [default: 100, or as many as --for allows].
    #[arg(long, value_name = "N")]
    seeds: Option<u64>,
    /// soak: the first seed.
    #[arg(long, value_name = "N", default_value_t = 1)]
    first: u64,
    /// soak: begin no further seed after this long.
    #[arg(long = "for", value_name = "TIME", value_parser = units::parse_duration)]
    limit: Option<Duration>,
    /// soak: seeds at a time [default: one per processor].
    #[arg(long, value_name = "N", value_parser = clap::value_parser!(u16).range(1..))]
    jobs: Option<u16>,
    /// soak: first the seeds that found something once (fixtures/seeds).
    #[arg(long)]
    known: bool,
}

/// Runs the subcommand.
pub(crate) fn run(global: &Global, args: &Args) -> Result<(), Failure> {
    breakwater_sim::print_trace(args.trace);
    match args.scenario.as_str() {
        "list" => list(global.output),
        "swarm" => one_seed(global.output, args),
        "soak" => soak(global.output, args),
        name => match stories().find(|story| story.name == name) {
            Some(story) => tell(global.output, args, story),
            None => Err(Failure::usage(format!("there is no scenario {name}")).next("nodectl sim list")),
        },
    }
}

#[derive(Debug, Serialize)]
struct Listed {
    name: &'static str,
    seed: u64,
}

fn list(output: Format) -> Result<(), Failure> {
    let all: Vec<Listed> = stories().map(|story| Listed { name: story.name, seed: story.seed }).collect();
    output.show(&all, |all| {
        let mut table = Table::new(["scenario", "seed"]);
        all.iter().for_each(|story| table.row([story.name.replace('_', " "), story.seed.to_string()]));
        table.to_string()
    })
}

#[derive(Debug, Serialize)]
struct Told {
    scenario: &'static str,
    seed: u64,
}

fn tell(output: Format, args: &Args, story: &Story) -> Result<(), Failure> {
    let seed = args.seed.unwrap_or(story.seed);
    let command = format!("nodectl sim {} --seed {seed} --trace", story.name);
    attempt(|| (story.tell)(seed)).map_err(|what| Failure::failed(what).next(command))?;
    output.show(&Told { scenario: story.name, seed }, |told| {
        format!("{}: it was so (seed {seed})", told.scenario.replace('_', " "))
    })
}

/// One seed's figures.
#[derive(Debug, Serialize)]
struct Figures {
    seed: u64,
    trace: String,
    simulated_seconds: f64,
    operations: u64,
    writes: u64,
    faults: u64,
    events: u64,
    happened: BTreeMap<&'static str, u64>,
}

fn one_seed(output: Format, args: &Args) -> Result<(), Failure> {
    let seed = args.seed.unwrap_or(1);
    let outcome =
        attempt(|| swarm(seed, args.seconds)).map_err(|what| Failure::failed(what).next(replay(seed, args.seconds)))?;
    let mut happened = outcome.coverage.all();
    happened.retain(|_, times| *times > 0);
    let figures = Figures {
        seed,
        trace: format!("{:016x}", outcome.trace),
        simulated_seconds: seconds(&outcome),
        operations: outcome.operations,
        writes: outcome.writes,
        faults: outcome.faults,
        events: outcome.events,
        happened,
    };
    output.show(&figures, |figures| {
        format!(
            "seed {seed}: {:.1} simulated seconds, {} operations, {} faults, trace {}\n\n{}",
            figures.simulated_seconds,
            figures.operations,
            figures.faults,
            figures.trace,
            counts(&figures.happened)
        )
    })
}

fn replay(seed: u64, seconds: u64) -> String {
    let length = if seconds == SECONDS { String::new() } else { format!(" --seconds {seconds}") };
    format!("nodectl sim swarm --seed {seed}{length} --trace")
}

#[allow(clippy::cast_precision_loss)] // for people
fn seconds(outcome: &Outcome) -> f64 {
    outcome.span.as_millis() as f64 / 1e3
}

fn counts(happened: &BTreeMap<&'static str, u64>) -> String {
    let mut table = Table::new(["what", "times"]);
    happened.iter().for_each(|(what, times)| table.row([(*what).to_owned(), times.to_string()]));
    table.to_string()
}

/// What went wrong, where it did: a world that finds something panics.
fn attempt<T>(what: impl FnOnce() -> T) -> Result<T, String> {
    panic::catch_unwind(panic::AssertUnwindSafe(what)).map_err(|cause| {
        let text = cause.downcast_ref::<String>().map(String::as_str).or_else(|| cause.downcast_ref::<&str>().copied());
        text.unwrap_or("it panicked").to_owned()
    })
}

#[derive(Debug, Serialize)]
struct Failed {
    seed: u64,
    what: String,
    replay: String,
}

/// What a soak came to.
#[derive(Debug, Default, Serialize)]
struct Soak {
    first: u64,
    seeds: u64,
    failed: Vec<Failed>,
    wall_seconds: f64,
    simulated_hours: f64,
    /// Simulated hours times nodes.
    node_hours: f64,
    /// Simulated seconds per second of one job.
    speed_up: f64,
    operations: u64,
    operations_per_simulated_second: f64,
    faults: u64,
    fewest_faults: u64,
    events: u64,
    never: Vec<&'static str>,
    happened: BTreeMap<&'static str, u64>,
}

/// Seeds in the order in which they are run.
struct Queue {
    known: Vec<u64>,
    first: u64,
    fresh: u64,
    next: AtomicU64,
    until: Option<Instant>,
    enough: AtomicBool,
}

impl Queue {
    fn take(&self) -> Option<u64> {
        let late = self.until.is_some_and(|until| Instant::now() >= until);
        if late || self.enough.load(Ordering::Relaxed) {
            return None;
        }
        let index = self.next.fetch_add(1, Ordering::Relaxed);
        let known = self.known.len() as u64;
        match usize::try_from(index).ok().and_then(|index| self.known.get(index)) {
            Some(seed) => Some(*seed),
            None => (index - known < self.fresh).then(|| self.first.wrapping_add(index - known)),
        }
    }
}

fn soak(output: Format, args: &Args) -> Result<(), Failure> {
    let begun = Instant::now();
    let jobs = args.jobs.map_or_else(|| std::thread::available_parallelism().map_or(1, usize::from), usize::from);
    let queue = Queue {
        known: if args.known { known_seeds().map(|(seed, _)| seed).collect() } else { Vec::new() },
        first: args.first,
        fresh: args.seeds.unwrap_or(if args.limit.is_some() { u64::MAX } else { 100 }),
        next: AtomicU64::new(0),
        until: args.limit.map(|limit| begun + limit),
        enough: AtomicBool::new(false),
    };
    let mut soak = Soak { first: args.first, fewest_faults: u64::MAX, ..Soak::default() };
    let mut coverage = Coverage::default();
    let bar = progress(args);
    let (sender, results) = mpsc::channel();
    std::thread::scope(|scope| {
        for _ in 0..jobs {
            let (queue, sender) = (&queue, sender.clone());
            scope.spawn(move || {
                while let Some(seed) = queue.take() {
                    // Whoever listens has seen enough.
                    let _ = sender.send((seed, attempt(|| swarm(seed, args.seconds))));
                }
            });
        }
        drop(sender);
        for (seed, result) in results {
            soak.add(seed, args.seconds, result, &mut coverage);
            bar.inc(1);
            queue.enough.store(soak.failed.len() >= FAILURES_MAX, Ordering::Relaxed);
        }
    });
    bar.finish_and_clear();
    soak.finish(begun.elapsed(), jobs, &coverage);
    output.show(&soak, Soak::table)?;
    match soak.failed.first() {
        None => Ok(()),
        Some(first) => {
            Err(Failure::failed(format!("{} of {} seeds failed", soak.failed.len(), soak.seeds))
                .next(first.replay.clone()))
        }
    }
}

#[allow(clippy::cast_precision_loss)] // for people
impl Soak {
    fn add(&mut self, seed: u64, length: u64, result: Result<Outcome, String>, coverage: &mut Coverage) {
        self.seeds += 1;
        match result {
            Ok(outcome) => {
                self.simulated_hours += seconds(&outcome) / 3600.0;
                self.node_hours += seconds(&outcome) * outcome.nodes as f64 / 3600.0;
                self.operations += outcome.operations;
                self.faults += outcome.faults;
                self.fewest_faults = self.fewest_faults.min(outcome.faults);
                self.events += outcome.events;
                coverage.add(&outcome.coverage);
            }
            Err(what) => {
                let replay = replay(seed, length);
                eprintln!("seed {seed} failed: {what}\n  again: {replay}");
                self.failed.push(Failed { seed, what, replay });
            }
        }
    }

    fn finish(&mut self, wall: Duration, jobs: usize, coverage: &Coverage) {
        self.wall_seconds = wall.as_secs_f64();
        self.speed_up = self.simulated_hours * 3600.0 / (self.wall_seconds * jobs as f64);
        self.operations_per_simulated_second = self.operations as f64 / (self.simulated_hours * 3600.0).max(1.0);
        self.fewest_faults = if self.fewest_faults == u64::MAX { 0 } else { self.fewest_faults };
        self.happened = coverage.all();
        self.never = self.happened.iter().filter(|(_, times)| **times == 0).map(|(what, _)| *what).collect();
    }

    fn table(&self) -> String {
        let mut text = format!(
            "{} seeds, {} failed; {:.2} simulated cluster-hours ({:.1} node-hours) in {:.1} s, {:.0} times real time per \
             job\n{} operations ({:.0} a simulated second), {} faults (at least {} a seed, {FAULTS_MIN} wanted), {} \
             events\n\n{}",
            self.seeds,
            self.failed.len(),
            self.simulated_hours,
            self.node_hours,
            self.wall_seconds,
            self.speed_up,
            self.operations,
            self.operations_per_simulated_second,
            self.faults,
            self.fewest_faults,
            self.events,
            counts(&self.happened)
        );
        for what in &self.never {
            text.push_str(&format!("\nwarning: never happened: {what}"));
        }
        for failed in &self.failed {
            text.push_str(&format!("\nseed {} failed: {}\n  again: {}", failed.seed, failed.what, failed.replay));
        }
        text
    }
}

fn progress(args: &Args) -> ProgressBar {
    let total = args.seeds.or(args.limit.is_none().then_some(100));
    let bar = ProgressBar::with_draw_target(total, ProgressDrawTarget::stderr());
    let template = if total.is_some() {
        "{pos:>7}/{len} seeds [{bar:24}] {elapsed}, {eta} to go"
    } else {
        "{pos:>7} seeds, {elapsed}"
    };
    if let Ok(style) = ProgressStyle::with_template(template) {
        bar.set_style(style);
    }
    bar
}
