//! The figures of both policies beside those of the report of 2011.

use super::series::Figures;
use super::{Document, Outcome};
use crate::output::Table;
use crate::units;

fn percent(share: f64) -> String {
    format!("{:.2} %", share * 100.0)
}

fn after(seconds: Option<f64>) -> String {
    seconds.map_or_else(|| "never".into(), |seconds| format!("{seconds:.1} s"))
}

fn millis(millis: f64) -> String {
    format!("{millis:.1} ms")
}

/// A figure by what it is called, what the report says, and how it is read.
type Row = (&'static str, &'static str, fn(&Figures) -> String);

const ROWS: [Row; 23] = [
    ("stuck segments, peak", "", |f| percent(f.stuck_peak_share)),
    ("stuck segments, mean while the fault lasts", "", |f| percent(f.stuck_mean_during_share)),
    ("stuck segments, peak since the network is back", "13 %", |f| percent(f.stuck_peak_after_share)),
    ("stuck segments one hour later", "above 10 %", |f| {
        f.stuck_hour_after_share.map_or_else(|| "not simulated".into(), percent)
    }),
    ("no segment stuck after", "3.5 days", |f| after(f.unstuck_after_s)),
    ("all copies there after", "35 h (97.8 %)", |f| after(f.whole_after_s)),
    ("segments short of copies at the end", "", |f| f.degraded_at_end.to_string()),
    ("nodes searching, peak", "", |f| f.searching_nodes_peak.to_string()),
    ("nodes searching at the end", "", |f| f.searching_nodes_at_end.to_string()),
    ("questions for space", "", |f| f.searches.to_string()),
    ("whole copies begun", "", |f| f.remirrors.to_string()),
    ("... that a former copy could have spared", "", |f| f.remirrors_needless.to_string()),
    ("... given up", "", |f| f.copies_failed.to_string()),
    ("catch-ups", "", |f| f.catch_ups.to_string()),
    ("copied", "", |f| units::size(f.copied_bytes)),
    ("least free space", "none left", |f| percent(f.free_min_share)),
    ("nodes crashed", "", |f| f.crashed_nodes.to_string()),
    ("control plane: most waiting", "", |f| f.authority_queue_peak.to_string()),
    ("control plane: messages per second, most", "", |f| match f.authority_messages_bound {
        Some(bound) => format!("{} (bound {bound})", f.authority_messages_peak),
        None => f.authority_messages_peak.to_string(),
    }),
    ("other zones, CreateVolume p99: calm", "", |f| millis(f.api_other_zones.calm_p99_ms)),
    ("other zones, CreateVolume p99: since the fault", "down for hours", |f| millis(f.api_other_zones.storm_p99_ms)),
    ("other zones, CreateVolume failed", "down for hours", |f| percent(f.api_other_zones.storm_failed_share)),
    ("zone that was hit, CreateVolume failed", "switched off by hand", |f| percent(f.api_hit_zone.storm_failed_share)),
];

/// The table for people.
pub(super) fn table(document: &Document) -> String {
    let mut lines = vec![
        format!("{}: {}", document.scenario, document.about),
        format!(
            "{} nodes in {} zones and {} cells, {} segments ({} counted: those of what was hit), {} s simulated, seed {}",
            document.nodes,
            document.zones.len(),
            document.cells,
            document.segments,
            document.policies.first().map_or(0, |outcome| outcome.figures.segments),
            document.simulated_s,
            document.seed
        ),
    ];
    if document.shifted_load > 0.0 {
        lines.push(format!("shifted traffic: {:.2} of what the small network carries", document.shifted_load));
    }
    lines.push(String::new());
    let mut table = Table::new(["", "naive", "breakwater", "report of 2011"]);
    let of = |policy: &str| document.policies.iter().find(|outcome| outcome.policy == policy);
    let cell = |outcome: Option<&Outcome>, read: fn(&Figures) -> String| {
        outcome.map_or_else(String::new, |outcome| read(&outcome.figures))
    };
    for (name, said, read) in ROWS {
        // The report is about one storm.
        let said = if document.scenario == "april-2011" { said } else { "" };
        table.row([name.to_owned(), cell(of("naive"), read), cell(of("breakwater"), read), said.to_owned()]);
    }
    lines.push(table.to_string());
    lines.push(String::new());
    let took: Vec<String> = document
        .policies
        .iter()
        .zip(&document.machine.run_s)
        .map(|(outcome, seconds)| format!("{} {seconds:.1} s", outcome.policy))
        .collect();
    let memory = units::size(document.machine.peak_rss_bytes);
    lines.push(format!("simulated in: {}; peak memory {memory}", took.join(", ")));
    lines.join("\n")
}
