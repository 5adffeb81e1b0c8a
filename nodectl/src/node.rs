//! `nodectl node`: the nodes as the authority knows them.

use clap::Subcommand;
use engine::authority::api::NodeInfo;
use engine_core::ids::NodeId;

use crate::Global;
use crate::failure::Failure;
use crate::output::Table;
use crate::units;

/// Nodes.
#[derive(Debug, Subcommand)]
pub(crate) enum Node {
    /// All nodes.
    Ls,
    /// One node.
    Show {
        /// Such as n3.
        node: NodeId,
    },
}

/// Runs one of them.
pub(crate) fn run(global: &Global, command: &Node) -> Result<(), Failure> {
    let api = global.api()?;
    match command {
        Node::Ls => global.output.show(&api.nodes()?, |nodes| table(nodes)),
        Node::Show { node } => global.output.show(&api.node(*node)?, detail),
    }
}

/// All nodes, a line each.
pub(crate) fn table(nodes: &[NodeInfo]) -> String {
    let mut table =
        Table::new(["node", "zone", "state", "used", "booked", "capacity", "replicas", "serving", "damaged"]);
    for node in nodes {
        table.row([
            node.id.to_string(),
            node.zone.clone(),
            node.state.clone(),
            units::size(node.used),
            units::size(node.booked),
            units::size(node.capacity),
            node.replicas.to_string(),
            node.serving.to_string(),
            node.corrupt_blocks.to_string(),
        ]);
    }
    table.to_string()
}

fn detail(node: &NodeInfo) -> String {
    let mut table = Table::new(["what", "value"]);
    let mut row = |what: &str, value: String| table.row([what.to_owned(), value]);
    row("node", node.id.to_string());
    row("zone", node.zone.clone());
    row("state", node.state.clone());
    row("last heard of", format!("{} ms ago", node.silent_ms));
    row("primary network", node.primary_addr.clone());
    row("replication network", node.replication_addr.clone());
    row("capacity", units::size(node.capacity));
    row("booked", units::size(node.booked));
    row("used", units::size(node.used));
    row("replicas", node.replicas.to_string());
    row("serving as primary", node.serving.to_string());
    row("shards", node.shards.to_string());
    row("copied in since start", units::size(node.copied_bytes));
    row("damaged blocks found", node.corrupt_blocks.to_string());
    table.to_string()
}
