//! `nodectl bench failover`: how long a client gets no answer when something fails.
//!
//! A cluster of its own, a volume with one segment, a stream of writes and one of reads ([`load`]). Then, again and
//! again: wait until all copies are there, look at the calm for a moment, strike ([`fault`]), watch, heal, watch. What
//! counts is the longest time between two answers of a stream, since an average hides a failover.

mod fault;
mod fleet;
mod hosts;
mod load;
mod report;
mod stall;

use std::path::{Path, PathBuf};
use std::time::{Duration, Instant};

use engine::authority::api::{CreateVolume, Spread, VolumeMap};
use engine_core::config::Config;

use self::fault::Fault;
use self::fleet::Fleet;
use self::load::{Load, Verified};
use self::report::{Measured, Options, Report, Row, Skipped};
use crate::Global;
use crate::bench::machine::Machine;
use crate::cluster::up;
use crate::failure::{Exit, Failure};
use crate::http::Api;
use crate::{reach, scratch, units};

const VOLUME: &str = "failover";
/// The volume, and its one segment.
const SIZE: u64 = 256 << 20;
const COPIES: u8 = 3;
const DEVICE: u64 = 1 << 30;
/// How long the calm is looked at before each fault, and everything after it has healed.
const CALM: Duration = Duration::from_secs(1);
/// How long the volume may take until it is whole again, and a stream until it is answered again.
const WHOLE_LIMIT: Duration = Duration::from_secs(120);
const ANSWER_LIMIT: Duration = Duration::from_secs(60);
const POLL: Duration = Duration::from_millis(20);
/// Answers of a stream after which it is under way.
const UNDER_WAY: u64 = 200;

/// Arguments of `bench failover`.
#[derive(Debug, clap::Args)]
pub(crate) struct Args {
    /// Faults, in this order [default: all].
    #[arg(long, value_enum, value_delimiter = ',')]
    only: Vec<Fault>,
    /// How often each.
    #[arg(long, default_value_t = 20, value_parser = clap::value_parser!(u32).range(1..=1000))]
    repeat: u32,
    /// Requests in flight of each of the two streams.
    #[arg(long, default_value_t = 1, value_parser = clap::value_parser!(u16).range(1..=256))]
    qd: u16,
    /// How long a device stands still.
    #[arg(long, default_value = "60s", value_parser = units::parse_duration)]
    stall: Duration,
    /// Nodes.
    #[arg(long, default_value_t = 6, value_parser = clap::value_parser!(u16).range(4..=64))]
    nodes: u16,
    /// Zones.
    #[arg(long, default_value_t = 3, value_parser = clap::value_parser!(u16).range(1..=64))]
    zones: u16,
    /// Where nodes are [default: hosts as root, else loopback].
    #[arg(long, value_enum)]
    network: Option<Network>,
    /// Where to put it; must be new, and is kept [default: a temporary directory, removed after success].
    #[arg(long)]
    dir: Option<PathBuf>,
}

/// Where nodes are.
#[derive(Debug, Clone, Copy, PartialEq, Eq, clap::ValueEnum)]
enum Network {
    /// Each in a network namespace of its own, with a cable to pull out (needs root and iproute2).
    Hosts,
    /// All on 127.0.0.1: whole zones cannot fall silent.
    Loopback,
}

/// Runs it and prints the report.
pub(crate) fn run(global: &Global, args: &Args) -> Result<(), Failure> {
    let dir = args.dir.clone().unwrap_or_else(|| scratch::temporary("failover"));
    if dir.exists() {
        return Err(Failure::new(Exit::IllegalState, format!("{} exists already", dir.display()))
            .untouched("nothing was started")
            .next("name a new --dir, or none"));
    }
    scratch::enough_space(&dir, u64::from(args.nodes) * DEVICE)?;
    match measure(args, &dir) {
        Ok(report) => {
            if args.dir.is_none() {
                let _ = std::fs::remove_dir_all(&dir);
            }
            global.output.show(&report, report::table)
        }
        Err(failure) => {
            if args.dir.is_none() {
                scratch::remove_devices(&dir, args.nodes);
            }
            let logs = dir.display();
            Err(failure.untouched(format!("no process is left; logs are in {logs}/n*/log and {logs}/authority/log")))
        }
    }
}

fn is_root() -> bool {
    // SAFETY: geteuid takes nothing and cannot fail.
    unsafe { libc::geteuid() == 0 }
}

fn measure(args: &Args, dir: &Path) -> Result<Report, Failure> {
    let begun = Instant::now();
    let machine = Machine::here();
    let network = args.network.unwrap_or(if is_root() { Network::Hosts } else { Network::Loopback });
    let up = up::Args {
        dir: dir.to_owned(),
        nodes: Some(args.nodes),
        zones: Some(args.zones),
        device_size: Some(DEVICE),
        ..up::Args::default()
    };
    let fleet = Fleet::start(&up, network == Network::Hosts)?;
    // Where a zone has one node only, no other could take over its copies: then each copy on another node must do.
    let spread = if args.zones >= u16::from(COPIES) { Spread::Zone } else { Spread::Node };
    let options = Options {
        nodes: args.nodes,
        zones: args.zones,
        network: if network == Network::Hosts { "hosts" } else { "loopback" },
        spread: if spread == Spread::Zone { "zone" } else { "node" },
        copies: COPIES,
        depth: args.qd,
        repeat: args.repeat,
        stall_seconds: args.stall.as_secs_f64(),
    };
    let mut run = Run { fleet, begun, measured: Vec::new(), skipped: Vec::new() };
    let outcome = run.all(args, spread);
    run.fleet.stop();
    let verified = outcome?;
    let calm: Vec<_> = run.measured.iter().flat_map(|(_, measured)| measured.calm.iter().copied()).collect();
    Ok(Report {
        at: jiff::Timestamp::now().to_string(),
        machine,
        options,
        calm: report::calm(&calm),
        faults: run.measured.iter().map(|(fault, measured)| Row::new(*fault, measured)).collect(),
        skipped: run.skipped,
        verified,
        seconds: begun.elapsed().as_secs_f64(),
    })
}

/// A run under way.
struct Run {
    fleet: Fleet,
    begun: Instant,
    measured: Vec<(Fault, Measured)>,
    skipped: Vec<Skipped>,
}

impl Run {
    fn say(&self, what: &str) {
        eprintln!("{:7.1} s  {what}", self.begun.elapsed().as_secs_f64());
    }

    fn all(&mut self, args: &Args, spread: Spread) -> Result<Verified, Failure> {
        let map = self.create(spread)?;
        self.say(&format!("{} nodes serve in {}", args.nodes, self.fleet.path().display()));
        let load = Load::start(self.fleet.api(), map, args.qd);
        let result = self.strike_all(args, &load);
        self.say("verifying");
        let verified = load.finish().map_err(Failure::failed);
        // What the load met explains best why a fault could not be measured.
        match (result, verified) {
            (_, Err(failure)) | (Err(failure), Ok(_)) => Err(failure),
            (Ok(()), Ok(verified)) => Ok(verified),
        }
    }

    fn create(&self, spread: Spread) -> Result<VolumeMap, Failure> {
        let api = Api::new(self.fleet.api().base(), None);
        api.create(&CreateVolume {
            name: VOLUME.to_owned(),
            size: SIZE,
            copies: Some(COPIES),
            min_copies: None,
            segment_size: Some(SIZE),
            zone: None,
            spread: Some(spread),
            iops: None,
            mibps: None,
        })?;
        self.whole()?;
        api.attach(VOLUME, &reach::client_name("failover"))
    }

    /// Waits until all copies are there and every node is up; gives the configuration.
    fn whole(&self) -> Result<Config, Failure> {
        self.fleet.wait("all copies and all nodes to be there", WHOLE_LIMIT, |fleet| {
            let map = fleet.api().map(VOLUME)?;
            let Some(config) = map.segments.into_iter().next() else { return Ok(None) };
            let whole = config.missing() == 0 && config.candidates.is_empty() && fleet.all_up()?;
            Ok(whole.then_some(config))
        })
    }

    fn strike_all(&mut self, args: &Args, load: &Load) -> Result<(), Failure> {
        self.answered(load, UNDER_WAY)?;
        let faults = if args.only.is_empty() { Fault::ALL.to_vec() } else { args.only.clone() };
        for fault in faults {
            if let Some(why) = fault.impossible(&self.fleet) {
                self.say(&format!("{} is skipped: {why}", fault.name()));
                self.skipped.push(Skipped { fault, why });
                continue;
            }
            self.measured.push((fault, Measured::default()));
            for repetition in 0..args.repeat {
                self.strike(fault, repetition, args, load)?;
            }
        }
        Ok(())
    }

    /// One fault, once.
    fn strike(&mut self, fault: Fault, repetition: u32, args: &Args, load: &Load) -> Result<(), Failure> {
        self.whole()?;
        std::thread::sleep(CALM);
        load.mark();
        // Where the calm itself is the measure it is looked at for as long.
        std::thread::sleep(if fault.target().is_none() { fault.lasts(args.stall) } else { CALM });
        let calm = load.gaps();
        let victim = fault.victim(&self.whole()?, repetition);
        load.mark();
        let struck = Instant::now();
        fault.strike(&mut self.fleet, victim)?;
        let passed = struck.elapsed();
        std::thread::sleep(fault.lasts(args.stall).saturating_sub(passed));
        self.answered(load, 1)?;
        let gaps = load.gaps();
        load.mark();
        fault.heal(&mut self.fleet, victim)?;
        std::thread::sleep(CALM);
        self.whole()?;
        self.answered(load, 1)?;
        let back = load.gaps();
        let whom = victim.map_or("authority".to_owned(), |node| node.to_string());
        let ms = units::millis;
        self.say(&format!(
            "{:16} {:3}/{} {whom:9} write {:6.1} ms, read {:6.1} ms; back {:.1}, {:.1}; calm {:.1}, {:.1}",
            fault.name(),
            repetition + 1,
            args.repeat,
            ms(gaps.write),
            ms(gaps.read),
            ms(back.write),
            ms(back.read),
            ms(calm.write),
            ms(calm.read)
        ));
        let (_, measured) = self.measured.last_mut().expect("the fault at work is the last");
        measured.calm.push(calm);
        measured.fault.push(gaps);
        measured.back.push(back);
        Ok(())
    }

    /// Waits until both streams got so many more answers: a gap still open is not measured yet.
    fn answered(&self, load: &Load, more: u64) -> Result<(), Failure> {
        let before = load.answered();
        let until = Instant::now() + ANSWER_LIMIT;
        loop {
            if let Some(error) = load.error() {
                return Err(Failure::failed(error));
            }
            let now = load.answered();
            if now.write >= before.write + more && now.read >= before.read + more {
                return Ok(());
            }
            if Instant::now() > until {
                let what = format!(
                    "a stream got no answer for {} s (writes: {} more, reads: {} more)",
                    ANSWER_LIMIT.as_secs(),
                    now.write - before.write,
                    now.read - before.read
                );
                return Err(Failure::new(Exit::WaitTimedOut, what));
            }
            std::thread::sleep(POLL);
        }
    }
}
