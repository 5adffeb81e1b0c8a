//! What the demo found, as one document.

use serde::Serialize;

use crate::failure::Failure;
use crate::output::Table;
use crate::units;
use crate::verify::check::Checked;

/// One thing that had to hold.
#[derive(Debug, Clone, Serialize)]
pub(crate) struct Claim {
    /// What.
    pub(crate) claim: &'static str,
    /// Whether it did.
    pub(crate) held: bool,
    /// In figures.
    pub(crate) figures: String,
}

/// The killed node's return.
#[derive(Debug, Clone, Serialize)]
pub(crate) struct CatchUp {
    /// Which node.
    pub(crate) node: String,
    /// Seconds from SIGKILL to its start.
    pub(crate) away_seconds: f64,
    /// Seconds from its start until every copy was whole again.
    pub(crate) seconds: f64,
    /// Bytes that were copied to it.
    pub(crate) caught_up_bytes: u64,
    /// Bytes it holds.
    pub(crate) held_bytes: u64,
}

/// The lost node's replacement.
#[derive(Debug, Clone, Serialize)]
pub(crate) struct Remirror {
    /// Which node was lost.
    pub(crate) node: String,
    /// Replicas it held.
    pub(crate) replicas: u64,
    /// Seconds from the loss until the first byte was copied (the grace time included).
    pub(crate) waited_seconds: f64,
    /// Seconds from the first byte until every copy was whole again.
    pub(crate) seconds: f64,
    /// Bytes copied.
    pub(crate) bytes: u64,
    /// MiB per second.
    pub(crate) mib_per_second: f64,
}

/// The report.
#[derive(Debug, Clone, Serialize)]
pub(crate) struct Report {
    /// When it was made.
    pub(crate) at: String,
    /// Whether everything held.
    pub(crate) ok: bool,
    /// What had to hold.
    pub(crate) claims: Vec<Claim>,
    /// Nodes and zones.
    pub(crate) nodes: u16,
    /// Zones.
    pub(crate) zones: u16,
    /// Acknowledged writes.
    pub(crate) acknowledged_writes: u64,
    /// Bytes in them.
    pub(crate) acknowledged_bytes: u64,
    /// Seconds they took.
    pub(crate) load_seconds: f64,
    /// Longest time between two acknowledgements of any writes, failovers included.
    pub(crate) longest_client_gap_ms: f64,
    /// Longest time one write took, failovers included.
    pub(crate) longest_client_wait_ms: f64,
    /// The killed primary's return.
    pub(crate) catch_up: CatchUp,
    /// The lost node's replacement.
    pub(crate) remirror: Remirror,
    /// What the check at the end found.
    pub(crate) verified: Checked,
    /// The whole demo.
    pub(crate) seconds: f64,
}

impl Report {
    /// Exit 0 only if everything held.
    pub(crate) fn verdict(&self) -> Result<(), Failure> {
        let broken: Vec<&str> = self.claims.iter().filter(|claim| !claim.held).map(|claim| claim.claim).collect();
        if broken.is_empty() {
            return Ok(());
        }
        Err(Failure::failed(format!("did not hold: {}", broken.join("; "))))
    }
}

/// For people.
pub(crate) fn table(report: &Report) -> String {
    let mut table = Table::new(["", "what had to hold", "figures"]);
    for claim in &report.claims {
        let mark = if claim.held { "ok" } else { "BROKEN" };
        table.row([mark.to_owned(), claim.claim.to_owned(), claim.figures.clone()]);
    }
    let end = if report.ok { "Everything held" } else { "NOT everything held" };
    format!("\n{table}\n\n{end}, in {}.", units::time(std::time::Duration::from_secs_f64(report.seconds)))
}
