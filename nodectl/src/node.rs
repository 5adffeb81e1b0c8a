//! `nodectl node`: the nodes as the authority knows them.

use std::time::Duration;

use clap::Subcommand;
use engine::authority::api::{DeviceState, NodeInfo, ReleaseCopies, ReplaceDevice, SegmentName};
use engine_core::ids::NodeId;

use crate::Global;
use crate::failure::{Exit, Failure};
use crate::http::Api;
use crate::output::{self, Table};
use crate::units;
use crate::volume::consequences;

/// Between two looks at a scrub under way.
const SCRUB_POLL: Duration = Duration::from_millis(500);

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
    /// What its scrubs found; with `--now` one pass over everything it holds, waited for.
    Scrub {
        /// Such as n3.
        node: NodeId,
        /// Begin a pass now, at the quicker pace, and wait for its end.
        #[arg(long)]
        now: bool,
    },
    /// Its device is gone for good: segments let go of it, the next device that comes is the node's own.
    ReplaceDevice {
        /// Such as n3.
        node: NodeId,
        /// Which of its devices, while the node runs with the others (`node show` lists them).
        #[arg(long, value_name = "ID")]
        device: Option<String>,
        /// A volume that may lose data by it; once for each.
        #[arg(long, value_name = "VOLUME")]
        lose: Vec<String>,
        /// Only say what would happen.
        #[arg(long)]
        dry_run: bool,
    },
    /// Drop copies that are in quarantine on it (`node show` lists them).
    Release {
        /// Such as n3.
        node: NodeId,
        /// Only of this segment.
        #[arg(long, value_name = "VOLUME/INDEX", value_parser = segment, required_unless_present = "all")]
        segment: Option<SegmentName>,
        /// Of every segment.
        #[arg(long, conflicts_with = "segment")]
        all: bool,
        /// A volume that may lose data by it; once for each.
        #[arg(long, value_name = "VOLUME")]
        lose: Vec<String>,
        /// Only say what would happen.
        #[arg(long)]
        dry_run: bool,
    },
}

fn segment(text: &str) -> Result<SegmentName, String> {
    let parsed = text.rsplit_once('/').and_then(|(volume, index)| Some((volume, index.parse().ok()?)));
    let (volume, index) =
        parsed.ok_or_else(|| format!("`{text}` is not a segment: write VOLUME/INDEX, such as disk/3"))?;
    Ok(SegmentName { volume: volume.to_owned(), index })
}

/// Runs one of them.
pub(crate) fn run(global: &Global, command: &Node) -> Result<(), Failure> {
    let api = global.api()?;
    match command {
        Node::Ls => global.output.show(&api.nodes()?, |nodes| table(nodes)),
        Node::Show { node } => global.output.show(&api.node(*node)?, detail),
        Node::Scrub { node, now } => {
            let info = if *now { scrub(&api, *node)? } else { api.node(*node)? };
            global.output.show(&info, scrubbed)
        }
        Node::ReplaceDevice { node, device, lose, dry_run } => {
            let wanted = ReplaceDevice { device: device.clone(), lose: lose.clone(), dry_run: *dry_run };
            global.output.show(&api.replace_device(*node, &wanted)?, consequences)
        }
        Node::Release { node, segment, all: _, lose, dry_run } => {
            let wanted = ReleaseCopies { segment: segment.clone(), lose: lose.clone(), dry_run: *dry_run };
            global.output.show(&api.release(*node, &wanted)?, consequences)
        }
    }
}

/// A pass of every shard, from its beginning to its end.
fn scrub(api: &Api, node: NodeId) -> Result<NodeInfo, Failure> {
    let before = api.scrub(node)?;
    let whole = before.scrub.passes + u64::from(before.shards);
    let bar = output::bar(before.used, "comparing");
    loop {
        std::thread::sleep(SCRUB_POLL);
        let info = api.node(node)?;
        if info.state != "up" || info.scrub.passes < before.scrub.passes {
            bar.finish_and_clear();
            return Err(Failure::new(Exit::Failed, format!("{node} went away during its scrub"))
                .untouched("what was mended stays mended")
                .next(format!("nodectl node scrub {node} --now")));
        }
        bar.set_position(info.scrub.compared);
        if info.scrub.passes >= whole && !info.scrub.running {
            bar.finish_and_clear();
            return Ok(info);
        }
    }
}

fn scrubbed(node: &NodeInfo) -> String {
    let mut table = Table::new(["what", "value"]);
    scrub_rows(node, |what, value| table.row([what.to_owned(), value]));
    table.to_string()
}

fn scrub_rows(node: &NodeInfo, mut row: impl FnMut(&str, String)) {
    let scrub = &node.scrub;
    row("damaged blocks found", node.corrupt_blocks.to_string());
    row("damaged structures found at the start", node.damaged_structures.to_string());
    row("extents mended from others", node.mended_extents.to_string());
    let state = if scrub.running { "under way" } else { "rests" };
    let passes = scrub.passes;
    row(
        "scrub",
        format!("{state}; {passes} passes of a shard since the start, {} damaged extents", scrub.damaged_extents),
    );
    row("compared by the latest pass", units::size(scrub.compared));
    row(
        "compared with other members",
        format!("{} extents, {} left to the next pass", scrub.compared_extents, scrub.not_compared_extents),
    );
    row("members that differed", scrub.differing_extents.to_string());
    for found in &scrub.differing {
        row("differed", format!("{} extent {} on {}", found.segment, found.extent, found.member));
    }
}

/// All nodes, a line each.
pub(crate) fn table(nodes: &[NodeInfo]) -> String {
    let mut table = Table::new([
        "node", "zone", "state", "used", "booked", "headroom", "capacity", "replicas", "serving", "damaged",
    ]);
    for node in nodes {
        table.row([
            node.id.to_string(),
            node.zone.clone(),
            state(node),
            units::size(node.used),
            units::size(node.booked),
            units::size(node.headroom),
            units::size(node.capacity),
            node.replicas.to_string(),
            node.serving.to_string(),
            (node.corrupt_blocks + node.damaged_structures).to_string(),
        ]);
    }
    table.to_string()
}

fn state(node: &NodeInfo) -> String {
    let count = |state| node.devices.iter().filter(|device| device.state == state).count();
    let mut text = node.state.clone();
    if node.awaited {
        text.push_str(", awaited");
    }
    for wrong in [DeviceState::Missing, DeviceState::Failed] {
        match count(wrong) {
            0 => {}
            number => text.push_str(&format!(", {number} of {} devices {}", node.devices.len(), wrong.name())),
        }
    }
    text
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
    row("kept for re-mirroring", units::size(node.headroom));
    row("used", units::size(node.used));
    row("replicas", node.replicas.to_string());
    row("serving as primary", node.serving.to_string());
    row("shards", node.shards.to_string());
    row("copied in since start", units::size(node.copied_bytes));
    row("flushes since start", node.flushes.to_string());
    scrub_rows(node, &mut row);
    if node.awaited {
        row("awaited", "the authority waits for what it remembers (nodectl status)".to_owned());
    }
    if node.device_lost {
        row("device", "gone for good; the next one that comes is its own".to_owned());
    }
    let mut text = table.to_string();
    if node.devices.len() > 1 || node.devices.iter().any(|device| device.state != DeviceState::InUse) {
        let mut devices = Table::new(["device", "state", "used", "booked", "capacity", "next"]);
        for device in &node.devices {
            devices.row([
                device.id.clone(),
                device.state.name().replace('_', " "),
                units::size(device.used),
                units::size(device.booked),
                units::size(device.capacity),
                device.next.clone().or_else(|| device.why.clone()).unwrap_or_default(),
            ]);
        }
        text.push_str(&format!("\n\n{devices}"));
    }
    for reason in &node.absent {
        text.push_str(&format!("\nnot there: {reason}"));
    }
    if !node.quarantine.is_empty() {
        let mut kept = Table::new(["in quarantine", "why"]);
        for copy in &node.quarantine {
            kept.row([format!("{}/{}", copy.volume, copy.segment.index), copy.why.clone()]);
        }
        text.push_str(&format!("\n\n{kept}"));
    }
    text
}
