//! Why a volume is as it is, segment by segment: what is missing, since when, what is awaited, what to do (R16).

use alloc::format;
use alloc::string::String;
use alloc::vec::Vec;

use super::document::{Explain, ExplainReplica, ExplainSegment};
use super::records::SegmentRecord;
use super::status::Condition;
use super::{Authority, names};
use crate::config::Config;
use crate::ids::{NodeId, SegmentId, VolumeId};
use crate::limits::{EXPLAIN_SEGMENTS_MAX, NODE_SILENCE};
use crate::time::{Span, Time};

impl Authority {
    pub(super) fn explain(&self, now: Time, id: VolumeId) -> Explain {
        let count = self.books.volumes()[&id].layout.segments() as usize;
        let mut segments: Vec<_> = self
            .books
            .segments_of(id)
            .take(count)
            .map(|(segment, record)| (self.condition(now, *segment, record), *segment, record))
            .collect();
        segments.sort_by_key(|(condition, segment, _)| (*condition, *segment));
        segments.truncate(EXPLAIN_SEGMENTS_MAX);
        Explain {
            volume: self.volume_info(now, id),
            segments: segments.into_iter().map(|(c, segment, r)| self.explain_segment(now, c, segment, r)).collect(),
        }
    }

    fn explain_segment(
        &self,
        now: Time,
        condition: Condition,
        segment: SegmentId,
        record: &SegmentRecord,
    ) -> ExplainSegment {
        let config = &record.config;
        let (mut why, mut next) = match condition {
            Condition::Full => self.why_full(config),
            Condition::Degraded => self.why_degraded(now, segment, config),
            Condition::ReadOnly => self.why_read_only(now, config),
            Condition::Stuck => self.why_stuck(now, config),
        };
        if let Some((standstill, way_out)) = self.why_standstill() {
            why = format!("{why}; {standstill}");
            next = way_out;
        }
        ExplainSegment {
            segment,
            config: config.clone(),
            condition: condition.name().into(),
            why,
            next,
            replicas: config.holders().map(|node| self.explain_replica(now, condition, config, node)).collect(),
        }
    }

    fn explain_replica(&self, now: Time, condition: Condition, config: &Config, node: NodeId) -> ExplainReplica {
        let troubled = matches!(condition, Condition::Stuck | Condition::ReadOnly);
        let role = if node == config.primary {
            "primary"
        } else if config.is_member(node) {
            "backup"
        } else if config.is_candidate(node) {
            "candidate"
        } else {
            "former"
        };
        let copied = self.presence.get(&node).and_then(|presence| {
            let copy = presence.report.copies.iter().find(|copy| copy.segment == config.segment)?;
            Some((copy.copied, copy.left))
        });
        ExplainReplica {
            node,
            zone: self.books.nodes().get(&node).map(|record| record.zone.clone()).unwrap_or_default(),
            role: role.into(),
            up: self.is_up(now, node),
            copied,
            holds: troubled.then(|| self.holds(now, config, node)),
        }
    }

    /// How long a node has been silent, in words.
    fn silent(&self, now: Time, node: NodeId) -> String {
        match self.presence.get(&node) {
            Some(presence) if !presence.known => {
                format!("{node} was not heard since the authority started {} s ago", seconds(presence.silence(now)))
            }
            Some(presence) => format!("{node} was last heard {} s ago", seconds(presence.silence(now))),
            None => format!("{node} is not registered"),
        }
    }

    fn why_full(&self, config: &Config) -> (String, String) {
        let why = format!("all {} copies are in place and {} serves", config.copies, config.primary);
        (why, "nothing to do".into())
    }

    fn why_degraded(&self, now: Time, segment: SegmentId, config: &Config) -> (String, String) {
        let silent: Vec<String> =
            config.holders().filter(|node| !self.is_reachable(now, *node)).map(|node| self.silent(now, node)).collect();
        let mut why = format!(
            "{} of {} copies are in sync (on {}), {} serves reads and writes",
            config.members.len(),
            config.copies,
            names(&config.members),
            config.primary
        );
        for reason in silent {
            why.push_str("; ");
            why.push_str(&reason);
        }
        (why, self.next_copy(now, segment, config))
    }

    /// How the missing copy will come.
    fn next_copy(&self, now: Time, segment: SegmentId, config: &Config) -> String {
        let grace = seconds(self.settings.grace);
        if let Some(candidate) = config.candidates.first() {
            return format!("{candidate} is being brought up to date and joins by itself");
        }
        let barred = self.why_no_permits(now);
        if let Some(state) = self.permits.state_of(segment, barred.as_deref()) {
            return state;
        }
        if config.missing() == 0 {
            return format!("{} leaves the silent copy behind with its next write", config.primary);
        }
        if config.former.is_empty() {
            return format!("{} asks for a new copy elsewhere", config.primary);
        }
        let former = names(&config.former);
        let next = format!("{former} can come back by catch-up; after {grace} s of grace a new copy is made elsewhere");
        barred.map_or_else(|| next.clone(), |why| format!("{next}, but not now: {why}"))
    }

    fn why_read_only(&self, now: Time, config: &Config) -> (String, String) {
        let left: Vec<NodeId> = config.holders().filter(|node| !config.is_member(*node)).collect();
        // I7: it needs the authority's word that nobody else leads.
        let reads = if self.stands_still() { "reads wait until the authority goes on" } else { "reads go on" };
        let why = format!(
            "only {} of at least {} copies are in sync (on {}): {reads}, writes wait; {}",
            config.members.len(),
            config.min_copies,
            names(&config.members),
            left.iter().map(|node| self.silent(now, *node)).collect::<Vec<_>>().join("; ")
        );
        (
            why,
            format!(
                "{}; writes go on when {} copies are in sync",
                self.next_copy(now, config.segment, config),
                config.min_copies
            ),
        )
    }

    fn why_stuck(&self, now: Time, config: &Config) -> (String, String) {
        let primary = config.primary;
        if !self.is_hopeful(now, config) {
            let each: Vec<String> = config
                .electable
                .iter()
                .map(|node| format!("{node} holds {}", self.holds(now, config, *node)))
                .collect();
            let why =
                format!("nobody in touch holds every acknowledged write of {}: {}", config.epoch, each.join("; "));
            return (why, self.way_out(now, config));
        }
        if self.is_reachable(now, primary) {
            let why = format!("{primary} leads {} and reports that it does not serve yet", config.epoch);
            return (
                why,
                format!("{primary} finishes an election or waits for promises of {}", names(&config.electable)),
            );
        }
        let silent = self.silent(now, primary);
        let others: Vec<NodeId> = config.electable.iter().copied().filter(|node| *node != primary).collect();
        let (up, down): (Vec<NodeId>, Vec<NodeId>) = others.iter().partition(|node| self.is_up(now, **node));
        let why = format!("its primary {silent}; no other has been elected");
        let next = if up.is_empty() {
            let hint = if down.is_empty() { "it holds the only copy".into() } else { format!("{} too", names(&down)) };
            format!("start {primary} again ({hint}): nobody in touch holds every acknowledged write (nodectl node ls)")
        } else if up.len() < usize::from(config.min_copies) {
            let limit = seconds(NODE_SILENCE);
            format!(
                "{} may be elected once {primary} was silent for {limit} s; writes wait for another copy",
                names(&up)
            )
        } else {
            format!("{} elect a new primary by themselves within seconds", names(&up))
        };
        (why, next)
    }
}

fn seconds(span: Span) -> u64 {
    span.as_millis() / 1000
}
