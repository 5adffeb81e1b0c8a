//! `nodectl volume`: volumes, made, changed, explained and deleted. Attaching is in `attach`.

use clap::Subcommand;
use engine::authority::api::{
    Consequences, CreateVolume, Explain, ExplainSegment, RecoverVolume, SetVolume, Spread, VolumeInfo, VolumeLimits,
};
use engine_core::ids::NodeId;

use crate::Global;
use crate::attach;
use crate::failure::Failure;
use crate::output::Table;
use crate::units;

/// Volumes.
#[derive(Debug, Subcommand)]
pub(crate) enum Volume {
    /// All volumes.
    Ls,
    /// One volume.
    Show {
        /// Its name.
        name: String,
    },
    /// Make a volume.
    Create(Create),
    /// Delete a volume and everything on it.
    Delete {
        /// Its name.
        name: String,
        /// Only say what would be deleted.
        #[arg(long)]
        dry_run: bool,
    },
    /// Make a volume larger.
    Resize {
        /// Its name.
        name: String,
        /// The new size.
        #[arg(long, value_parser = units::parse_size)]
        size: u64,
    },
    /// Change a volume's limits. Who has it attached follows within about 30 s, without attaching again.
    Set(Set),
    /// Attach a volume here and serve it by NBD until SIGINT or SIGTERM. Any older attachment is fenced off.
    Attach(attach::Args),
    /// End whichever attachment the volume has; who used it is fenced off.
    Detach {
        /// Its name.
        name: String,
    },
    /// Why each segment is in the condition it is in, and what happens next.
    Explain {
        /// Its name.
        name: String,
    },
    /// Go on from one copy of a segment where no safe way is left. Loses data: says what, and demands the volume's name.
    Recover {
        /// The volume's name.
        name: String,
        /// The segment's index, as in `explain`.
        #[arg(long)]
        segment: u32,
        /// The node whose copy counts from now on.
        #[arg(long)]
        from: NodeId,
        /// The volume's name again: what only other copies hold is lost.
        #[arg(long, value_name = "NAME")]
        lose: Option<String>,
        /// Only say what would happen.
        #[arg(long)]
        dry_run: bool,
    },
}

/// What over the copies are spread.
#[derive(Debug, Clone, Copy, clap::ValueEnum)]
pub(crate) enum Over {
    /// Each copy on another node.
    Node,
    /// Each copy in another zone.
    Zone,
}

/// Arguments of `volume set`.
#[derive(Debug, clap::Args)]
#[group(id = "limits", required = true, multiple = true, args = ["iops", "mibps"])]
pub(crate) struct Set {
    /// Its name.
    name: String,
    /// Requests per second its client may make; 0 takes the limit away.
    #[arg(long, value_name = "N")]
    iops: Option<u32>,
    /// MiB per second its client may read and write; 0 takes the limit away.
    #[arg(long, value_name = "M")]
    mibps: Option<u32>,
}

/// Arguments of `volume create`.
#[derive(Debug, clap::Args)]
pub(crate) struct Create {
    /// Its name: 1 to 64 of a-z A-Z 0-9 . _ -.
    name: String,
    /// Its size, such as 4G.
    #[arg(long, value_parser = units::parse_size)]
    size: u64,
    /// Copies of each segment [default: 3].
    #[arg(long)]
    copies: Option<u8>,
    /// Fewest copies that may acknowledge writes [default: 2].
    #[arg(long)]
    min_copies: Option<u8>,
    /// Bytes of a segment, a power of two [default: 1G].
    #[arg(long, value_parser = units::parse_size)]
    segment_size: Option<u64>,
    /// Keep all copies in this zone.
    #[arg(long, conflicts_with = "spread")]
    zone: Option<String>,
    /// What copies are spread over [default: zone where there are as many zones as copies, else node].
    #[arg(long, value_enum)]
    spread: Option<Over>,
    /// Requests per second its client may make, each of at most 1 MiB [default: any].
    #[arg(long, value_name = "N")]
    iops: Option<u32>,
    /// MiB per second its client may read and write [default: any].
    #[arg(long, value_name = "M")]
    mibps: Option<u32>,
}

impl From<Create> for CreateVolume {
    fn from(create: Create) -> Self {
        let spread = create.spread.map(|over| match over {
            Over::Node => Spread::Node,
            Over::Zone => Spread::Zone,
        });
        Self {
            name: create.name,
            size: create.size,
            copies: create.copies,
            min_copies: create.min_copies,
            segment_size: create.segment_size,
            zone: create.zone,
            spread,
            iops: create.iops,
            mibps: create.mibps,
        }
    }
}

/// Runs one of them.
pub(crate) fn run(global: &Global, command: Volume) -> Result<(), Failure> {
    let (api, format) = (global.api()?, global.output);
    match command {
        Volume::Ls => format.show(&api.volumes()?, |volumes| table(volumes)),
        Volume::Show { name } => format.show(&api.volume(&name)?, detail),
        Volume::Create(create) => format.show(&api.create(&create.into())?, detail),
        Volume::Delete { name, dry_run: true } => {
            format.show(&api.volume(&name)?, |volume| format!("would delete:\n{}", detail(volume)))
        }
        Volume::Delete { name, dry_run: false } => {
            format.show(&api.delete(&name)?, |volume| format!("{} is deleted", volume.name))
        }
        Volume::Resize { name, size } => format.show(&api.resize(&name, size)?, detail),
        Volume::Set(Set { name, iops, mibps }) => format.show(&api.set(&name, SetVolume { iops, mibps })?, detail),
        Volume::Attach(args) => attach::run(global, &args),
        Volume::Detach { name } => {
            format.show(&api.detach(&name, None)?, |volume| format!("{} is detached", volume.name))
        }
        Volume::Recover { name, segment, from, lose, dry_run } => {
            let wanted = RecoverVolume { segment, from, lose, dry_run };
            format.show(&api.recover(&name, &wanted)?, consequences)
        }
        Volume::Explain { name } => format.show(&api.explain(&name)?, explain),
    }
}

/// What a destructive act did, or would do.
pub(crate) fn consequences(consequences: &Consequences) -> String {
    let mut text = if consequences.done { "done:".to_owned() } else { "nothing was done; it would:".to_owned() };
    for line in &consequences.does {
        text.push_str("\n  ");
        text.push_str(line);
    }
    if !consequences.loses.is_empty() {
        text.push_str(if consequences.done { "\nlost:" } else { "\nwould be lost:" });
        for line in &consequences.loses {
            text.push_str("\n  ");
            text.push_str(line);
        }
    }
    text
}

fn table(volumes: &[VolumeInfo]) -> String {
    let mut table =
        Table::new(["name", "size", "copies", "state", "segments", "full", "degraded", "stuck", "limits", "attached"]);
    for volume in volumes {
        table.row([
            volume.name.clone(),
            units::size(volume.size),
            volume.copies.to_string(),
            volume.state.clone(),
            volume.segments.total.to_string(),
            volume.segments.full.to_string(),
            volume.segments.degraded.to_string(),
            (volume.segments.read_only + volume.segments.stuck).to_string(),
            limits(volume.limits),
            volume.attached.clone().unwrap_or_default(),
        ]);
    }
    table.to_string()
}

/// Such as `200 IOPS, 30 MiB/s`; nothing where there are none.
fn limits(limits: VolumeLimits) -> String {
    let iops = (limits.iops > 0).then(|| format!("{} IOPS", limits.iops));
    let mibps = (limits.mibps > 0).then(|| format!("{} MiB/s", limits.mibps));
    iops.into_iter().chain(mibps).collect::<Vec<_>>().join(", ")
}

fn detail(volume: &VolumeInfo) -> String {
    let mut table = Table::new(["what", "value"]);
    let mut row = |what: &str, value: String| table.row([what.to_owned(), value]);
    row("volume", format!("{} ({})", volume.name, volume.id));
    row("state", volume.state.clone());
    row("size", units::size(volume.size));
    row("segment size", units::size(volume.segment_size));
    row("copies", format!("{}, at least {} to write", volume.copies, volume.min_copies));
    let spread = match volume.spread {
        Spread::Node => "node",
        Spread::Zone => "zone",
    };
    row("copies on another", spread.to_owned());
    if let Some(zone) = &volume.zone {
        row("kept in zone", zone.clone());
    }
    if !volume.limits.is_none() {
        row("limited to", limits(volume.limits));
    }
    let attached = volume.attached.clone().unwrap_or_else(|| "nobody".to_owned());
    row("attached by", format!("{attached} (generation {})", volume.generation.0));
    let s = &volume.segments;
    row(
        "segments",
        format!("{}: {} full, {} degraded, {} read-only, {} stuck", s.total, s.full, s.degraded, s.read_only, s.stuck),
    );
    table.to_string()
}

fn explain(explain: &Explain) -> String {
    let mut text = detail(&explain.volume);
    for segment in &explain.segments {
        text.push_str("\n\n");
        text.push_str(&explain_segment(segment));
    }
    text
}

fn explain_segment(segment: &ExplainSegment) -> String {
    let mut table = Table::new(["node", "zone", "role", "state", "copied", "holds"]);
    for replica in &segment.replicas {
        table.row([
            replica.node.to_string(),
            replica.zone.clone(),
            replica.role.clone(),
            if replica.up { "up" } else { "down" }.to_owned(),
            replica.copied.map_or_else(String::new, |(copied, left)| {
                format!("{} of {}", units::size(copied), units::size(copied + left))
            }),
            replica.holds.clone().unwrap_or_default(),
        ]);
    }
    format!(
        "segment {}: {}, epoch {}\n  why:  {}\n  next: {}\n{table}",
        segment.segment, segment.condition, segment.config.epoch.0, segment.why, segment.next
    )
}
