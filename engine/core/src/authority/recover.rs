//! The data-losing exit: one copy is taken for whole, in a new life of its segment; every other one starts from nothing.
//!
//! Only where the segment does not serve, only because a person named what is lost, and never quietly: without the name
//! it says what every copy holds, what would be lost, and which node would have to come back instead (I16).
//! Invariant: the copy that counts is in no list of releases; it is told until it has confirmed the new life (I11).

use alloc::boxed::Box;
use alloc::format;
use alloc::string::{String, ToString};
use alloc::vec;
use alloc::vec::Vec;

use super::document::{Consequences, RecoverVolume};
use super::io::{Answer, CallError, CallId, Effects, ErrorCode};
use super::records::SegmentRecord;
use super::status::Condition;
use super::{Authority, names};
use crate::config::Config;
use crate::ids::{Incarnation, NodeId, SegmentId};
use crate::message::{FromAuthority, ReplicaReport};
use crate::record::Standing;
use crate::time::Time;

/// What a node holds of a segment, as far as the authority knows.
pub(super) enum Holding<'a> {
    /// It said so.
    Known(&'a ReplicaReport),
    /// It is in touch and has nothing of this life.
    Nothing,
    /// It is not in touch, or has not said yet.
    Unknown,
    /// A person said that its device is gone for good.
    Gone,
}

impl Holding<'_> {
    /// Whether its copy may hold every acknowledged write, if it could be elected at all.
    pub(super) fn may_be_whole(&self) -> bool {
        match self {
            Holding::Known(facts) => is_trusted(facts),
            Holding::Unknown => true,
            Holding::Nothing | Holding::Gone => false,
        }
    }
}

pub(super) const fn is_trusted(facts: &ReplicaReport) -> bool {
    matches!(facts.standing, Standing::Member | Standing::Joining { .. })
}

/// A copy in words.
fn describe(facts: &ReplicaReport, counts: bool) -> String {
    let ReplicaReport { epoch, log_epoch, commit, last, .. } = facts;
    match facts.standing {
        Standing::Member | Standing::Joining { .. } if !counts => {
            format!(
                "a copy that was left behind (knows {epoch}; log of {log_epoch} up to {last}, {commit} known as committed)"
            )
        }
        Standing::Member | Standing::Joining { .. } => {
            format!("a whole copy (log of {log_epoch} up to {last}, {commit} known as committed)")
        }
        Standing::Candidate { base } => {
            format!("a copy being caught up: everything up to {base}, later changes in part (knows {epoch})")
        }
        Standing::Stale { base } if base.0 == 0 => {
            format!(
                "a copy that is not trusted: damaged, rolled back or never finished ({commit} of {log_epoch}, log up to {last})"
            )
        }
        Standing::Stale { base } => format!("a stale copy: everything up to {base} (knows {epoch})"),
    }
}

impl Authority {
    pub(super) fn holding(&self, now: Time, config: &Config, node: NodeId) -> Holding<'_> {
        if self.books.nodes().get(&node).is_none_or(super::records::NodeRecord::is_gone) {
            return Holding::Gone;
        }
        let Some(presence) = self.presence.get(&node) else { return Holding::Unknown };
        if !self.is_up(now, node) || !presence.listed {
            return Holding::Unknown;
        }
        match presence.facts.get(&config.segment).filter(|facts| facts.incarnation == config.incarnation) {
            Some(facts) => Holding::Known(facts),
            // Nobody knows what is on a device that is missing (I11).
            None if self.misses_device(node) => Holding::Unknown,
            None => Holding::Nothing,
        }
    }

    /// What a node holds, in words.
    pub(super) fn holds(&self, now: Time, config: &Config, node: NodeId) -> String {
        match self.holding(now, config, node) {
            Holding::Known(facts) => describe(facts, config.electable.contains(&node)),
            Holding::Nothing => "nothing of it".into(),
            Holding::Unknown if self.is_up(now, node) && self.has_listed(node) => {
                format!("not known: a device of it is missing (nodectl node show {node})")
            }
            Holding::Unknown if self.is_up(now, node) => "not known yet: it has just come".into(),
            Holding::Unknown => "not known: it is not in touch".into(),
            Holding::Gone => "nothing: its device is gone for good".into(),
        }
    }

    /// Nodes whose coming back, or whose election, would lose nothing.
    pub(super) fn safe_ways(&self, now: Time, config: &Config) -> Vec<NodeId> {
        let safe = |node: &NodeId| self.holding(now, config, *node).may_be_whole();
        config.electable.iter().copied().filter(safe).collect()
    }

    /// The copy in touch that would lose least.
    pub(super) fn best_copy(&self, now: Time, config: &Config) -> Option<NodeId> {
        let known = config.holders().filter_map(|node| match self.holding(now, config, node) {
            Holding::Known(facts) => Some((is_trusted(facts), facts.log_epoch, facts.commit, facts.last, node)),
            _ => None,
        });
        known.max().map(|(.., node)| node)
    }

    pub(super) fn on_recover(
        &mut self,
        now: Time,
        call: CallId,
        name: &str,
        request: &RecoverVolume,
        effects: &mut Effects,
    ) {
        let result = self.try_recover(now, name, request, effects);
        effects.answer(call, result);
    }

    fn try_recover(
        &mut self,
        now: Time,
        name: &str,
        request: &RecoverVolume,
        effects: &mut Effects,
    ) -> Result<Answer, CallError> {
        let id = self.ready_volume(name)?;
        let segment = SegmentId { volume: id, index: request.segment };
        let explain = || format!("nodectl volume explain {name}");
        let Some(record) = self.books.segments().get(&segment).cloned() else {
            let message = format!("`{name}` has no segment {}; nothing was changed", request.segment);
            return Err(CallError::new(ErrorCode::NotFound, message).next(explain()));
        };
        let (config, from) = (&record.config, request.from);
        if !matches!(self.condition(now, segment, &record), Condition::Stuck | Condition::ReadOnly) || record.recovering
        {
            let message = format!("segment {segment} serves, or is being recovered already; it stays as it is");
            return Err(CallError::new(ErrorCode::IllegalState, message).next(explain()));
        }
        if !matches!(self.holding(now, config, from), Holding::Known(_)) {
            let held = self.holds(now, config, from);
            let message = format!("{from} cannot be chosen, it holds {held}; nothing was changed");
            return Err(CallError::new(ErrorCode::IllegalState, message).next(explain()));
        }
        let does = vec![
            format!("segment {segment} goes on from {from}: {}", self.holds(now, config, from)),
            format!(
                "it begins {} with {from} as its only member; writes wait until {} copies are made",
                config.incarnation.next(),
                config.min_copies
            ),
            "every older attachment of the volume is fenced off".into(),
        ];
        let loses = self.losses(now, config, from);
        if !request.dry_run && request.lose.as_deref() != Some(name) {
            return Err(self.refusal(now, name, config, from, &loses));
        }
        if !request.dry_run {
            self.recover(&record, from, effects);
        }
        Ok(Answer::Consequences(Box::new(Consequences { done: !request.dry_run, does, loses })))
    }

    fn losses(&self, now: Time, config: &Config, from: NodeId) -> Vec<String> {
        let others = config.holders().filter(|node| *node != from);
        let mut loses: Vec<String> = others
            .map(|node| {
                let counted = if config.electable.contains(&node) {
                    "held every acknowledged write"
                } else {
                    "was left out before"
                };
                format!("{node} ({counted}) loses what it holds: {}", self.holds(now, config, node))
            })
            .collect();
        let whole = matches!(self.holding(now, config, from), Holding::Known(facts) if is_trusted(facts));
        if !(whole && config.electable.contains(&from)) {
            loses.insert(
                0,
                format!("acknowledged writes that {from} does not have are gone; the last epoch is {}", config.epoch),
            );
        }
        loses
    }

    fn refusal(&self, now: Time, name: &str, config: &Config, from: NodeId, loses: &[String]) -> CallError {
        let index = config.segment.index;
        let again = format!("nodectl volume recover {name} --segment {index} --from {from} --lose {name}");
        let safe: Vec<NodeId> = self.safe_ways(now, config);
        let (way, next) = if safe.is_empty() {
            (String::new(), again)
        } else {
            (
                format!("; a safe way is left: {} may hold every acknowledged write, start it first", names(&safe)),
                format!("nodectl node ls; or, if it never comes back: {again}"),
            )
        };
        let message = format!("this would lose data: {}{way}; nothing was changed", loses.join("; "));
        CallError::new(ErrorCode::Refused, message).next(next)
    }

    fn recover(&mut self, record: &SegmentRecord, from: NodeId, effects: &mut Effects) {
        let old = &record.config;
        let segment = old.segment;
        let mut volume = self.books.volumes()[&segment.volume].clone();
        let incarnation = old.incarnation.next();
        // Whoever has the volume attached saw what may be gone now: it has to attach again (I2).
        volume.generation = volume.generation.next();
        volume.attached = None;
        volume.life = volume.life.max(incarnation);
        let config = Config {
            incarnation,
            epoch: old.epoch.next(),
            primary: from,
            members: vec![from],
            candidates: Vec::new(),
            electable: vec![from],
            former: Vec::new(),
            generation: volume.generation,
            ..old.clone()
        };
        self.abandon_fence(segment.volume, "one of its segments was recovered meanwhile", effects);
        self.books.set_volume(segment.volume, Some(volume));
        self.books.set_segment(segment, Some(SegmentRecord { config, fresh: Vec::new(), recovering: true }));
        self.permits.forget(segment);
        self.recovering.insert(segment);
        for node in old.holders().filter(|node| *node != from) {
            self.release(node, old, effects);
        }
        effects.log(format!("segment {segment} goes on from {from} alone as {incarnation}, because a person said so"));
        self.say_recoveries(from, effects);
    }

    /// Tells a node which of its copies count from now on, until it has confirmed.
    pub(super) fn say_recoveries(&mut self, node: NodeId, effects: &mut Effects) {
        let segments = self.books.segments();
        self.recovering.retain(|segment| segments.get(segment).is_some_and(|record| record.recovering));
        for record in self.recovering.iter().filter_map(|segment| segments.get(segment)) {
            if record.config.is_member(node) {
                effects.send(node, FromAuthority::Recover { config: record.config.clone() });
            }
        }
    }

    /// Whether this was about a recovery; then it is done, or why not.
    pub(super) fn on_recovered(
        &mut self,
        node: NodeId,
        segment: SegmentId,
        life: Incarnation,
        result: &Result<(), String>,
        effects: &mut Effects,
    ) -> bool {
        let Some(record) = self.books.segments().get(&segment) else { return false };
        let about = record.recovering && record.config.incarnation == life && record.config.is_member(node);
        if !about || self.stands_still() {
            return about;
        }
        match result {
            Ok(()) => {
                let record = SegmentRecord { recovering: false, ..record.clone() };
                // It begins a new life with what it has; what it said of the one before counts no more.
                self.note_members(&record.config, &[]);
                self.recovering.remove(&segment);
                self.books.set_segment(segment, Some(record));
            }
            Err(reason) => effects.log(format!("{node} cannot go on with segment {segment}: {reason}")),
        }
        true
    }

    /// A configuration says who holds a copy, before they say so themselves. Of whoever was a member `before` it says
    /// nothing new: such a node may have said since that it holds nothing, or nothing to be trusted (I9).
    pub(super) fn note_members(&mut self, config: &Config, before: &[NodeId]) {
        for node in config.members.iter().filter(|node| !before.contains(node)) {
            let Some(presence) = self.presence.get_mut(node) else { continue };
            let first = || ReplicaReport {
                segment: config.segment,
                incarnation: config.incarnation,
                epoch: config.epoch,
                log_epoch: config.epoch,
                standing: Standing::Member,
                commit: crate::ids::Seq(0),
                last: crate::ids::Seq(0),
            };
            let facts = presence.facts.entry(config.segment).or_insert_with(first);
            if facts.incarnation != config.incarnation || !is_trusted(facts) {
                *facts = first();
            }
        }
    }

    /// Whether somebody in touch holds every acknowledged write, as far as is known.
    pub(super) fn is_hopeful(&self, now: Time, config: &Config) -> bool {
        config.electable.iter().any(|node| match self.holding(now, config, *node) {
            Holding::Known(facts) => is_trusted(facts),
            Holding::Unknown => self.is_up(now, *node) && !self.has_listed(*node),
            Holding::Nothing | Holding::Gone => false,
        })
    }

    /// The next commands for a segment that nobody can be elected for.
    pub(super) fn way_out(&self, now: Time, config: &Config) -> String {
        let name = &self.books.volumes()[&config.segment.volume].name;
        let awaited: Vec<NodeId> = config
            .electable
            .iter()
            .copied()
            .filter(|node| matches!(self.holding(now, config, *node), Holding::Unknown))
            .collect();
        let hope =
            if awaited.is_empty() { "where no other copy comes back" } else { "if none of them ever comes back" };
        let mut ways = Vec::new();
        if !awaited.is_empty() {
            ways.push(format!("start {} (nothing is lost)", names(&awaited)));
        }
        match self.best_copy(now, config) {
            Some(best) => ways.push(format!(
                "{hope}: nodectl volume recover {name} --segment {} --from {best} (says first what \
                 is lost)",
                config.segment.index
            )),
            None if awaited.is_empty() => {
                let former = config.holders().map(|node| node.to_string()).collect::<Vec<_>>().join(", ");
                ways.push(format!(
                    "no copy is left on {former}: nodectl volume delete {name}, and restore it from a backup"
                ));
            }
            None => {}
        }
        ways.join("; ")
    }
}
