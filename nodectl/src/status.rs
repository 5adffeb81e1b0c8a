//! `nodectl status`: is it well, and if not, what is being done about it.

use std::io::IsTerminal;
use std::time::Duration;

use engine::authority::api::{Health, NodeInfo, Status};

use crate::Global;
use crate::failure::Failure;
use crate::output::{Format, Table};
use crate::{node, units};

/// How often `--watch` asks.
const EVERY: Duration = Duration::from_secs(1);

/// Arguments of `status`.
#[derive(Debug, clap::Args)]
pub(crate) struct Args {
    /// Again every second, until interrupted.
    #[arg(long)]
    watch: bool,
}

/// Prints the cluster's condition.
pub(crate) fn run(global: &Global, args: &Args) -> Result<(), Failure> {
    let api = global.api()?;
    loop {
        let status = api.status()?;
        match global.output {
            Format::Json => global.output.line(&status)?,
            Format::Table => {
                let nodes = api.nodes()?;
                if args.watch && std::io::stdout().is_terminal() {
                    // Clears the terminal and goes to its first line.
                    print!("\x1b[2J\x1b[H");
                }
                global.output.show(&status, |status| table(status, &nodes))?;
            }
        }
        if !args.watch {
            return Ok(());
        }
        std::thread::sleep(EVERY);
    }
}

fn table(status: &Status, nodes: &[NodeInfo]) -> String {
    let health = match status.health {
        Health::Ok => "ok: every segment has all its copies and a serving primary",
        Health::Degraded => "degraded: everything can be read and written, copies are missing",
        Health::Impaired => "impaired: something cannot be written or reached",
    };
    let segments = &status.segments;
    let mut conditions = Table::new(["segments", "full", "degraded", "read-only", "stuck"]);
    conditions.row(
        [segments.total, segments.full, segments.degraded, segments.read_only, segments.stuck].map(|n| n.to_string()),
    );
    let remirror = &status.remirror;
    let mut copies = Table::new(["re-mirroring", "parked", "rate", "copied"]);
    copies.row([
        remirror.active.to_string(),
        remirror.parked.to_string(),
        units::rate(remirror.bytes_per_second),
        units::size(remirror.bytes_total),
    ]);
    let breaker = status.breaker.why.as_ref().map_or_else(String::new, |why| format!("\n{why}"));
    let space = space(status);
    let next = status.next.as_ref().map_or_else(String::new, |next| format!("\n  next: {next}"));
    let why = status.frozen.as_ref().or(status.waiting.as_ref());
    let standstill = why.map_or_else(String::new, |why| format!("\nauthority {why}{next}"));
    format!(
        "health {health}{standstill}{breaker}\ncluster {}, revision {}, {} of {} nodes up, {} used, {} booked of {}\n{space}\n{conditions}\n\n{copies}\n\n{}",
        status.cluster,
        status.revision.0,
        status.nodes_up,
        status.nodes_total,
        units::size(status.used),
        units::size(status.booked),
        units::size(status.capacity),
        node::table(nodes),
    )
}

fn space(status: &Status) -> String {
    let space = &status.space;
    let mut text = format!(
        "{} free for new volumes, {} kept for re-mirroring ({})\n",
        units::size(space.free_for_new),
        units::size(space.headroom),
        space.policy
    );
    for alarm in &space.alarms {
        text.push_str(&format!("{}: {}\n", alarm.level, alarm.message));
    }
    text
}
