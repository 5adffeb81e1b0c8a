//! `nodectl verify`: stamped data. What was acknowledged must be there.

pub(crate) mod check;
pub(crate) mod log;
pub(crate) mod stamp;
pub(crate) mod write;

use std::path::PathBuf;
use std::rc::Rc;
use std::sync::Arc;
use std::time::Duration;

use clap::Subcommand;
use engine::authority::api::VolumeMap;

use self::check::Checked;
use self::log::{Ledger, Log};
use self::write::{Pattern, Plan, Progress, Written};
use crate::Global;
use crate::failure::{Exit, Failure};
use crate::http::Api;
use crate::output::{self, Table};
use crate::reach::{self, Reach, Session};
use crate::{nbd, signals, units};

/// How long writes in flight may take to end after a signal.
const END_LIMIT: Duration = Duration::from_secs(30);

/// Stamped data.
#[derive(Debug, Subcommand)]
pub(crate) enum Verify {
    /// Write stamped blocks and log each acknowledged write. Overwrites the volume's data. Ends with --seconds or
    /// --bytes, or by SIGINT or SIGTERM.
    Write(WriteArgs),
    /// Prove that every acknowledged write, or a later one, is there.
    Check(CheckArgs),
}

/// Arguments of `verify write`.
#[derive(Debug, clap::Args)]
pub(crate) struct WriteArgs {
    /// The volume (attached for the time of the run: any other attachment is fenced off).
    volume: String,
    /// Where acknowledged writes are logged; an existing log of this volume is continued.
    #[arg(long)]
    log: PathBuf,
    /// Stop after so long.
    #[arg(long, value_parser = units::parse_duration)]
    seconds: Option<Duration>,
    /// Stop after so much.
    #[arg(long, value_parser = units::parse_size)]
    bytes: Option<u64>,
    /// Writes in flight.
    #[arg(long, default_value_t = 16, value_parser = clap::value_parser!(u16).range(1..=1024))]
    qd: u16,
    /// Bytes of one write, a multiple of 4k; several, as in 4k,64k,1M, are mixed.
    #[arg(long, default_value = "4k", value_delimiter = ',', value_parser = units::parse_size)]
    bs: Vec<u64>,
    /// So many writes in a hundred are zeros instead: half of them written, half of them punched as holes.
    #[arg(long, value_name = "PERCENT", default_value_t = 0, value_parser = clap::value_parser!(u8).range(..=100))]
    zeroes: u8,
    /// Where writes go.
    #[arg(long, value_enum, default_value = "random")]
    pattern: Pattern,
    /// At most so much per second.
    #[arg(long, value_parser = units::parse_size)]
    rate: Option<u64>,
    /// Decides places [default: another one each time].
    #[arg(long)]
    seed: Option<u64>,
    /// Fail a write that could not be done for so long [default: wait for as long as it takes].
    #[arg(long, value_name = "SECONDS", value_parser = units::parse_duration)]
    io_limit: Option<Duration>,
    /// Go through this NBD server instead of the native client; the volume is not attached then.
    #[arg(long, value_name = "URI")]
    nbd: Option<nbd::Address>,
}

/// Arguments of `verify check`.
#[derive(Debug, clap::Args)]
pub(crate) struct CheckArgs {
    /// The volume (attached for the time of the run: any other attachment is fenced off).
    volume: String,
    /// The log of acknowledged writes.
    #[arg(long)]
    log: PathBuf,
    /// Check every member's own copy too.
    #[arg(long, conflicts_with = "nbd")]
    replicas: bool,
    /// Go through this NBD server instead of the native client; the volume is not attached then.
    #[arg(long, value_name = "URI")]
    nbd: Option<nbd::Address>,
}

/// Runs one of them.
pub(crate) fn run(global: &Global, command: Verify) -> Result<(), Failure> {
    match command {
        Verify::Write(args) => run_write(global, &args),
        Verify::Check(args) => run_check(global, &args),
    }
}

impl WriteArgs {
    fn plan(&self, volume: u64) -> Result<Plan, Failure> {
        let block = stamp::BLOCK as u64;
        if let Some(bad) = self.bs.iter().find(|size| **size == 0 || !size.is_multiple_of(block) || **size > 32 << 20) {
            return Err(Failure::usage(format!("--bs {bad} is not a multiple of 4 KiB up to 32 MiB")));
        }
        let random = || getrandom::u64().map_err(|error| Failure::failed(format!("no random numbers: {error}")));
        Ok(Plan {
            volume,
            limit: self.seconds,
            bytes: self.bytes,
            depth: usize::from(self.qd),
            seed: self.seed.map_or_else(random, Ok)?,
            sizes: self.bs.clone(),
            zeroes: self.zeroes,
            pattern: self.pattern,
            rate: self.rate,
        })
    }
}

fn run_write(global: &Global, args: &WriteArgs) -> Result<(), Failure> {
    let api = global.api()?;
    let volume = u64::from(api.volume(&args.volume)?.id.0);
    let plan = args.plan(volume)?;
    let log = Log::open(&args.log, volume)?;
    let task = async move |volume: Rc<Reach>| write_until_told(volume, plan, log).await;
    let (written, failure) = match &args.nbd {
        Some(address) => reach::over_nbd(address, task)?,
        None => reach::attached(&api, &args.volume, args.io_limit, async |session| task(session.volume).await)?,
    };
    global.output.show(&written, written_table)?;
    failure.map_or(Ok(()), Err)
}

/// Writes until the plan is fulfilled or a signal comes, showing progress.
async fn write_until_told(volume: Rc<Reach>, plan: Plan, log: Log) -> (Written, Option<Failure>) {
    let progress = Arc::new(Progress::default());
    let bar = plan.bytes.map_or_else(|| output::spinner("writing"), |bytes| output::bar(bytes, "writing"));
    let mut writing = std::pin::pin!(write::run(volume, plan, log, progress.clone()));
    let mut told = std::pin::pin!(signals::terminated());
    let mut until = None;
    let outcome = loop {
        let tick = tokio::time::sleep(Duration::from_millis(200));
        tokio::select! {
            outcome = &mut writing => break outcome,
            () = &mut told, if until.is_none() => {
                progress.stop();
                until = Some(tokio::time::Instant::now() + END_LIMIT);
            }
            () = tick => bar.set_position(progress.bytes()),
        }
        if until.is_some_and(|until| tokio::time::Instant::now() >= until) {
            let failure = Failure::new(Exit::WaitTimedOut, "writes in flight did not end within 30 s of the signal")
                .untouched("every write in the log stays acknowledged")
                .next("nodectl volume explain VOLUME");
            break (Written::of(&progress, Duration::ZERO, Some(&failure)), Some(failure));
        }
    };
    bar.finish_and_clear();
    outcome
}

fn written_table(written: &Written) -> String {
    let mut table = Table::new(["what", "value"]);
    let mut row = |what: &str, value: String| table.row([what.to_owned(), value]);
    row("acknowledged writes", written.acknowledged_writes.to_string());
    row("acknowledged", units::size(written.acknowledged_bytes));
    row("time", format!("{:.1} s", written.seconds));
    row("throughput", format!("{:.1} MiB/s", written.mib_per_second));
    row("longest gap", format!("{:.1} ms", written.longest_gap_ms));
    row("longest single write", format!("{:.1} ms", written.longest_wait_ms));
    table.to_string()
}

fn run_check(global: &Global, args: &CheckArgs) -> Result<(), Failure> {
    let ledger = Ledger::read(&args.log)?;
    let api = global.api()?;
    belongs(&ledger, &api, &args.volume)?;
    let replicas = args.replicas;
    let task = async move |volume: Rc<Reach>, map: VolumeMap| checked(volume, map, ledger, replicas).await;
    let found = match &args.nbd {
        Some(address) => {
            let map = api.map(&args.volume)?;
            reach::over_nbd(address, async |volume| task(volume, map).await)?
        }
        None => {
            let task = async |Session { volume, map }| task(volume, map).await;
            reach::attached(&api, &args.volume, None, task)?
        }
    };
    global.output.show(&found, checked_table)?;
    verdict(&found)
}

/// A log is of one volume; another one of the same name is another volume.
fn belongs(ledger: &Ledger, api: &Api, name: &str) -> Result<(), Failure> {
    let id = u64::from(api.volume(name)?.id.0);
    if ledger.volume == id {
        return Ok(());
    }
    let what = format!("the log is of volume v{}, but {name} is v{id}", ledger.volume);
    Err(Failure::new(Exit::IllegalState, what).untouched("nothing was checked").next("name the log of this volume"))
}

async fn checked(volume: Rc<Reach>, map: VolumeMap, ledger: Ledger, replicas: bool) -> Checked {
    let passes = if replicas { 2 } else { 1 };
    let bar = output::bar(map.size * passes, "verifying");
    let found = check::run(volume, map, ledger, replicas, check::CATCH_UP, bar.clone()).await;
    bar.finish_and_clear();
    found
}

/// Exit 1 on any loss.
pub(crate) fn verdict(found: &Checked) -> Result<(), Failure> {
    let Some(first) = found.first_wrong.first() else { return Ok(()) };
    let what = format!(
        "{} blocks are not what they have to be; first: block {} at {}: {:?}, {} (acknowledged: {})",
        found.wrong,
        first.block,
        first.at,
        first.wrong,
        first.found,
        first.acknowledged.map_or_else(|| "nothing".to_owned(), |number| format!("write {number}")),
    );
    Err(Failure::failed(what).untouched("the check only read").next("nodectl volume explain VOLUME; keep the log"))
}

fn checked_table(found: &Checked) -> String {
    let mut table = Table::new(["what", "value"]);
    let mut row = |what: &str, value: String| table.row([what.to_owned(), value]);
    row("acknowledged writes", found.acknowledged_writes.to_string());
    row("blocks acknowledged", found.acknowledged_blocks.to_string());
    row("blocks read by the client", found.client_blocks.to_string());
    row("blocks read on members", found.member_blocks.to_string());
    row("blocks wrong", found.wrong.to_string());
    for loss in &found.first_wrong {
        row(&format!("block {} at {}", loss.block, loss.at), format!("{:?}: {}", loss.wrong, loss.found));
    }
    table.to_string()
}

#[cfg(test)]
mod tests;
