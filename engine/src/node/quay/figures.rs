//! What a shard tells about itself; bounded whatever happens (DESIGN 7).

use engine_core::ids::SegmentId;
use engine_core::limits::REPORT_SEGMENTS_MAX;
use engine_core::message::{CopyReport, HeldConfig, ReplicaReport, Report};
use engine_core::replica::Compared;
use engine_core::report::Differing;
use engine_core::scrub::{Scrub, ScrubReport};
use engine_core::time::Time;

use super::{Quay, Wires};
use crate::store::{Space, Store};

/// A shard's figures for the node's report.
#[derive(Debug, Clone, Default)]
pub struct Figures {
    /// Space of the shard.
    pub space: Space,
    /// Replicas here.
    pub replicas: u32,
    /// Of them, primaries that serve.
    pub serving: u32,
    /// Primaries that do not serve; at most [`REPORT_SEGMENTS_MAX`].
    pub not_serving: Vec<SegmentId>,
    /// Copies that arrive here; at most [`REPORT_SEGMENTS_MAX`].
    pub copies: Vec<CopyReport>,
    /// Bytes copies have brought in since the start.
    pub copied_bytes: u64,
    /// Blocks found damaged since the start.
    pub corrupt_blocks: u64,
    /// Structures found damaged at the start: roots, map pages, places in the WAL.
    pub damaged_structures: u64,
    /// Extents mended from another member since the start.
    pub mended: u64,
    /// What the scrub has done.
    pub scrub: ScrubReport,
    /// What was found by comparing members; at most [`REPORT_SEGMENTS_MAX`].
    pub differing: Vec<Differing>,
    /// Flushes the device was asked for since the start.
    pub flushes: u64,
    /// Replicas that are nobody's; at most [`REPORT_SEGMENTS_MAX`].
    pub stranded: Vec<ReplicaReport>,
    /// Whether its store can no longer write.
    pub failed: bool,
}

impl Figures {
    fn note_compared(&mut self, segment: SegmentId, compared: &Compared) {
        self.scrub.compared += compared.extents;
        self.scrub.unsettled += compared.unsettled;
        self.scrub.differing += compared.differing;
        let room = REPORT_SEGMENTS_MAX.saturating_sub(self.differing.len());
        let latest = compared.latest.iter().take(room);
        self.differing.extend(latest.map(|(extent, member)| Differing { segment, extent: *extent, member: *member }));
    }
}

impl<S: Store, W: Wires> Quay<S, W> {
    /// What a report says.
    pub fn figures(&self, now: Time) -> Figures {
        let mut figures = Figures {
            space: self.store.space(),
            corrupt_blocks: self.store.damaged_blocks(),
            damaged_structures: self.store.damaged_structures(),
            copied_bytes: self.copied_bytes,
            flushes: self.store.flushes(),
            failed: self.failure().is_some(),
            scrub: self.scrub.as_ref().map(Scrub::report).unwrap_or_default(),
            ..Figures::default()
        };
        for open in self.machines() {
            figures.replicas += 1;
            figures.mended += open.replica.mended();
            figures.note_compared(open.replica.segment(), open.replica.compared());
            if open.replica.is_serving() {
                figures.serving += 1;
            } else if open.replica.should_serve() && figures.not_serving.len() < REPORT_SEGMENTS_MAX {
                figures.not_serving.push(open.replica.segment());
            }
            if figures.stranded.len() < REPORT_SEGMENTS_MAX && open.replica.is_stranded(now) {
                figures.stranded.push(open.replica.facts());
            }
            if let Some((full, copied, left)) = open.replica.copy_progress()
                && figures.copies.len() < REPORT_SEGMENTS_MAX
            {
                figures.copies.push(CopyReport { segment: open.replica.segment(), full, copied, left });
            }
        }
        figures
    }

    /// Everything held durably, whether its machine is open yet or not.
    pub fn replicas(&self) -> Vec<ReplicaReport> {
        let found = self.found.iter().map(|recovered| ReplicaReport {
            segment: recovered.segment,
            incarnation: recovered.meta.config.incarnation,
            epoch: recovered.meta.config.epoch,
            log_epoch: recovered.meta.log_epoch,
            standing: recovered.meta.standing,
            commit: recovered.commit,
            last: recovered.tail.last().map_or(recovered.commit, |entry| entry.seq),
        });
        let mut list: Vec<ReplicaReport> = found.collect();
        list.extend(self.machines().map(|open| open.replica.facts()));
        list
    }

    /// Configurations of everything held.
    pub fn configs(&self) -> Vec<HeldConfig> {
        let found = self.found.iter().map(|recovered| &recovered.meta);
        let found = found.map(|meta| HeldConfig { config: meta.config.clone(), promised: meta.promised });
        found.chain(self.machines().map(|open| open.replica.held_config())).collect()
    }
}

/// A node's report out of its shards' figures.
#[must_use]
pub fn report<'a>(shards: impl IntoIterator<Item = &'a Figures>) -> Report {
    let mut report = Report::default();
    for shard in shards {
        report.booked += shard.space.booked;
        report.used += shard.space.used;
        report.replicas += shard.replicas;
        report.serving += shard.serving;
        report.not_serving.extend(&shard.not_serving);
        report.copies.extend(shard.copies.iter().cloned());
        report.copied_bytes += shard.copied_bytes;
        report.corrupt_blocks += shard.corrupt_blocks;
        report.damaged_structures += shard.damaged_structures;
        report.mended += shard.mended;
        report.scrub.add(&shard.scrub);
        report.differing.extend(&shard.differing);
        report.flushes += shard.flushes;
        report.stranded.extend(shard.stranded.iter().cloned());
    }
    report.not_serving.truncate(REPORT_SEGMENTS_MAX);
    report.copies.truncate(REPORT_SEGMENTS_MAX);
    report.differing.truncate(REPORT_SEGMENTS_MAX);
    report.stranded.truncate(REPORT_SEGMENTS_MAX);
    report
}
