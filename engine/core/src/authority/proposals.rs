//! Proposals: the only way a configuration changes. A compare-and-swap from one epoch to the next, judged by rules.
//!
//! The intuition: the primary of an epoch may carry on with fewer members, with candidates that caught up, or with new
//! candidates, or hand the lead over to another member; anyone else must come with promises, and only from among those that hold every acknowledged write.
//! [`judge`] is pure; the tables in `fixtures/election` are its specification.
//! Invariants: at most one configuration per epoch (I1); nobody is electable who may lack an acknowledged write (I5);
//! below `min_copies` nobody in touch is left behind (I9); a copy is released only when the segment is whole (I12).

use alloc::format;
use alloc::string::String;
use alloc::vec::Vec;

use super::io::Effects;
use super::records::SegmentRecord;
use super::{Authority, names};
use crate::config::Config;
use crate::ids::{Epoch, Generation, NodeId};
use crate::limits::{BATCH_BODY_MAX, PROPOSALS_MAX};
use crate::message::{self, Decision, FromAuthority};
use crate::sabotage::{Invariant, breaks};
use crate::time::Time;

/// A proposal with everything its judgement depends on.
pub struct Proposal<'a> {
    /// The segment as it is.
    pub current: &'a SegmentRecord,
    /// Who asks.
    pub sender: NodeId,
    /// Epoch of the configuration it means to replace.
    pub expected: Epoch,
    /// What it wants; only epoch, primary, members and candidates are taken from it.
    pub wanted: &'a Config,
    /// An election: the members named have durably promised.
    pub promised: bool,
    /// Targets of permits granted for this segment.
    pub targets: &'a [NodeId],
    /// The volume's current attachment.
    pub generation: Generation,
    /// Whether a node is in touch with the authority.
    pub in_touch: &'a dyn Fn(NodeId) -> bool,
}

/// What becomes of it.
#[derive(Clone, PartialEq, Eq, Debug)]
pub enum Verdict {
    /// Install this; these nodes' copies are no longer needed (I12).
    Install(SegmentRecord, Vec<NodeId>),
    /// It was made for another configuration than the current one.
    Conflict,
    /// Not allowed, and why.
    Denied(String),
}

/// Judges a proposal.
#[must_use]
pub fn judge(proposal: &Proposal<'_>) -> Verdict {
    let (current, wanted) = (&proposal.current.config, proposal.wanted);
    // The one place where a configuration's epoch is compared (I1).
    let follows = proposal.expected == current.epoch && wanted.epoch == current.epoch.next();
    if !follows && !breaks(Invariant::I1) {
        return Verdict::Conflict;
    }
    let rules = [shape(current, wanted), candidates(proposal), lead(proposal), floor(proposal)];
    match rules.into_iter().find_map(Result::err) {
        Some(reason) => Verdict::Denied(reason),
        None => install(proposal),
    }
}

type Rule = Result<(), String>;

fn shape(current: &Config, wanted: &Config) -> Rule {
    let (copies, min_copies) = (wanted.copies, wanted.min_copies);
    if (copies, min_copies, wanted.extents) != (current.copies, current.min_copies, current.extents) {
        return Err("copies, min_copies and length of a segment do not change by proposal".into());
    }
    let places: Vec<NodeId> = wanted.members.iter().chain(&wanted.candidates).copied().collect();
    if let Some(twice) = (1..places.len()).find(|at| places[..*at].contains(&places[*at])) {
        return Err(format!("{} is named twice", places[twice]));
    }
    if !wanted.is_member(wanted.primary) {
        return Err(format!("the primary {} is not a member", wanted.primary));
    }
    if wanted.members.len() > usize::from(copies) || wanted.candidates.len() > usize::from(copies) {
        return Err(format!("more than {copies} members or candidates"));
    }
    Ok(())
}

fn candidates(proposal: &Proposal<'_>) -> Rule {
    let current = &proposal.current.config;
    let known = |node: &NodeId| {
        current.is_candidate(*node)
            || current.former.contains(node)
            || current.is_member(*node)
            || proposal.targets.contains(node)
    };
    match proposal.wanted.candidates.iter().find(|node| !known(node)) {
        Some(node) => Err(format!("{node} neither held a copy of this segment nor has a permit for one")),
        None => Ok(()),
    }
}

fn lead(proposal: &Proposal<'_>) -> Rule {
    let (current, wanted, sender) = (&proposal.current.config, proposal.wanted, proposal.sender);
    if proposal.promised {
        let outsider = wanted.members.iter().chain([&sender]).find(|node| !current.electable.contains(node));
        return match outsider {
            Some(node) => Err(format!("{node} is not electable, only {} are (I5)", names(&current.electable))),
            None => Ok(()),
        };
    }
    if sender != current.primary {
        return Err(format!("without promises only the primary {} may go on", current.primary));
    }
    if wanted.primary != sender {
        return hand_over(current, wanted);
    }
    match wanted.members.iter().find(|node| !current.is_member(**node) && !current.is_candidate(**node)) {
        Some(node) => Err(format!("{node} is neither a member nor a candidate, so it can't have caught up (I10)")),
        None => Ok(()),
    }
}

/// The primary gives the lead away. No promises are needed: it alone orders in its epoch and steps down for this one, and
/// every member holds what it has acknowledged (I3, I9). Whoever joins in the same step would not.
fn hand_over(current: &Config, wanted: &Config) -> Rule {
    match wanted.members.iter().find(|node| !current.is_member(**node)) {
        Some(node) => Err(format!("{node} is not a member, the lead is handed over among members only (I9)")),
        None => Ok(()),
    }
}

/// Below `min_copies`, nobody who could still help is left behind (I9).
fn floor(proposal: &Proposal<'_>) -> Rule {
    let (current, wanted) = (&proposal.current.config, proposal.wanted);
    if wanted.members.len() >= usize::from(wanted.min_copies) {
        return Ok(());
    }
    let left_out = |node: &&NodeId| !wanted.is_member(**node) && (proposal.in_touch)(**node);
    let behind = if proposal.promised {
        // A candidate is on its way back already; it need not be elected to be kept.
        current.electable.iter().find(|node| left_out(node) && !current.is_candidate(**node))
    } else {
        // A primary may send a damaged member back to candidate: that is how it becomes whole again (I9).
        current.members.iter().find(|node| left_out(node) && !wanted.is_candidate(**node))
    };
    match behind {
        Some(node) => Err(format!(
            "{} of at least {} members, while {node} is in touch and would be left out (I9)",
            wanted.members.len(),
            wanted.min_copies
        )),
        None => Ok(()),
    }
}

fn install(proposal: &Proposal<'_>) -> Verdict {
    let (record, wanted) = (proposal.current, proposal.wanted);
    let current = &record.config;
    let stays = |node: &NodeId| wanted.is_member(*node) || wanted.is_candidate(*node);

    let mut electable = wanted.members.clone();
    if !wanted.may_commit() {
        electable = current.electable.clone();
        electable.extend(wanted.members.iter().filter(|node| !current.electable.contains(node)));
    }

    let mut former: Vec<NodeId> = Vec::new();
    let mut released = Vec::new();
    for node in current.former.iter().chain(&current.members).chain(&current.candidates).filter(|node| !stays(node)) {
        if current.is_candidate(*node) && record.fresh.contains(node) {
            released.push(*node);
        } else if !former.contains(node) {
            former.push(*node);
        }
    }
    if wanted.members.len() == usize::from(current.copies) || breaks(Invariant::I12) {
        released.append(&mut former);
    }

    let known = |node: &NodeId| {
        record.fresh.contains(node)
            || !(current.is_candidate(*node) || current.is_member(*node) || current.former.contains(node))
    };
    let fresh = wanted.candidates.iter().copied().filter(known).collect();
    let config = Config {
        epoch: wanted.epoch,
        primary: wanted.primary,
        members: wanted.members.clone(),
        candidates: wanted.candidates.clone(),
        electable,
        former,
        generation: proposal.generation,
        ..current.clone()
    };
    Verdict::Install(SegmentRecord { config, fresh, recovering: false }, released)
}

impl Authority {
    /// Decides each for itself, in order; one save for all, the answers in as few messages as hold them.
    pub(super) fn on_proposals(
        &mut self,
        now: Time,
        sender: NodeId,
        proposals: &[message::Proposal],
        effects: &mut Effects,
    ) {
        let mut part = Vec::new();
        let mut bytes = 0;
        // More than a node may send in one message is not looked at: it comes again.
        for proposal in proposals.iter().take(PROPOSALS_MAX) {
            let decision = self.decide(now, sender, proposal, effects);
            let len = decision.wire_bytes();
            if bytes + len > BATCH_BODY_MAX {
                effects.send(sender, FromAuthority::Decisions(core::mem::take(&mut part)));
                bytes = 0;
            }
            bytes += len;
            part.push(decision);
        }
        if !part.is_empty() {
            effects.send(sender, FromAuthority::Decisions(part));
        }
    }

    fn decide(&mut self, now: Time, sender: NodeId, proposal: &message::Proposal, effects: &mut Effects) -> Decision {
        let message::Proposal { expected, config: wanted, promised } = proposal;
        let segment = wanted.segment;
        let Some(current) = self.books.segments().get(&segment) else { return Decision::Unknown(segment) };
        let generation = self.books.volumes()[&segment.volume].generation;
        // I2: whoever missed a decision may begin its epoch only now, when the attachment is another one already.
        let known = Config { generation, ..current.config.clone() };
        if let Some((why, _)) = self.why_standstill() {
            return Decision::Denied(known, why);
        }
        let verdict = if wanted.incarnation == current.config.incarnation {
            let targets: Vec<NodeId> = self.permits.target(segment).into_iter().collect();
            judge(&Proposal {
                current,
                sender,
                expected: *expected,
                wanted,
                promised: *promised,
                targets: &targets,
                generation,
                // Whoever says that its copy is not to be trusted could not help (I9).
                in_touch: &|node| self.in_touch(now, node) && !self.disowns(node, segment),
            })
        } else {
            Verdict::Conflict
        };
        match verdict {
            Verdict::Conflict => Decision::Conflict(known),
            Verdict::Denied(reason) => {
                effects.log(format!("segment {segment}: proposal of {sender} for {} denied: {reason}", wanted.epoch));
                Decision::Denied(known, reason)
            }
            Verdict::Install(record, released) => {
                let (config, before) = (record.config.clone(), current.config.members.clone());
                self.books.set_segment(segment, Some(record));
                for node in released {
                    self.release(node, &config, effects);
                }
                self.permit_follows(now, &config, effects);
                self.note_members(&config, &before);
                Decision::Installed(config)
            }
        }
    }
}
