//! What happened: faults by kind, and states a run came through. A kind that never happens is a hole in the net.

use std::collections::BTreeMap;

use engine_core::config::Config;
use engine_core::message::{Decision, FromAuthority, Judgement, Peer, Refusal};

/// States a long run has to reach.
pub(crate) const STATES: [&str; 38] = [
    "state: election won",
    "state: primary kept over a change of members",
    "state: member left out",
    "state: below min_copies",
    "state: member joined",
    "state: candidate named",
    "state: candidate dropped",
    "state: segment whole again",
    "state: election asked for",
    "state: promise given",
    "state: election refused, the primary is heard",
    "state: reconciled without a tail",
    "state: reconciled with a tail",
    "state: former member invited",
    "state: nothing held by the invited",
    "state: catch-up from a former copy",
    "state: copy from nothing",
    "state: extent copied",
    "state: extent not readable for a copy",
    "state: stale epoch refused by a replica",
    "state: live traffic on the replication network",
    "state: permit granted",
    "state: proposal installed",
    "state: proposal in conflict",
    "state: proposal denied",
    "state: copy released",
    "state: a client attached",
    "state: a client was fenced",
    "refusal: not primary",
    "refusal: fenced",
    "refusal: busy",
    "refusal: old session",
    "refusal: unknown",
    "state: a damaged block was refused to a client",
    "state: a node came for want of space",
    "state: a rolled-back device was not trusted",
    "state: a volume more was made",
    "state: no space for another volume",
];

/// Counters by name.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub struct Coverage {
    counts: BTreeMap<&'static str, u64>,
}

impl Coverage {
    /// Once more.
    pub(crate) fn count(&mut self, what: &'static str) {
        *self.counts.entry(what).or_default() += 1;
    }

    /// How often.
    pub(crate) fn times(&self, what: &str) -> u64 {
        self.counts.get(what).copied().unwrap_or_default()
    }

    /// Adds another run's.
    pub fn add(&mut self, other: &Self) {
        for (what, times) in &other.counts {
            *self.counts.entry(what).or_default() += times;
        }
    }

    /// Every fault and state there is with how often it happened, 0 included.
    #[must_use]
    pub fn all(&self) -> BTreeMap<&'static str, u64> {
        let mut all = self.counts.clone();
        for what in STATES.into_iter().chain(crate::mixture::names()) {
            all.entry(what).or_default();
        }
        all
    }

    /// A configuration was installed.
    pub(crate) fn installed(&mut self, old: &Config, new: &Config) {
        if new.primary != old.primary {
            self.count("state: election won");
        } else if new.members != old.members {
            self.count("state: primary kept over a change of members");
        }
        if old.members.iter().any(|node| !new.is_member(*node)) {
            self.count("state: member left out");
        }
        if old.may_commit() && !new.may_commit() {
            self.count("state: below min_copies");
        }
        if new.members.iter().any(|node| !old.is_member(*node)) {
            self.count("state: member joined");
        }
        if new.candidates.iter().any(|node| !old.is_candidate(*node)) {
            self.count("state: candidate named");
        }
        if old.candidates.iter().any(|node| !new.is_candidate(*node) && !new.is_member(*node)) {
            self.count("state: candidate dropped");
        }
        if old.missing() > 0 && new.missing() == 0 {
            self.count("state: segment whole again");
        }
    }

    /// A node says something to another.
    pub(crate) fn said(&mut self, body: &Peer) {
        let what = match body {
            Peer::Seal { .. } => "state: election asked for",
            Peer::Promise { .. } => "state: promise given",
            Peer::StillHeard { .. } => "state: election refused, the primary is heard",
            Peer::Reconcile { entries, .. } if entries.is_empty() => "state: reconciled without a tail",
            Peer::Reconcile { .. } => "state: reconciled with a tail",
            Peer::Invite { .. } => "state: former member invited",
            Peer::Held { standing: None, .. } => "state: nothing held by the invited",
            Peer::CopyList { above, from, .. } if from.0 == 0 && above.0 == 0 => "state: copy from nothing",
            Peer::CopyList { from, .. } if from.0 == 0 => "state: catch-up from a former copy",
            Peer::CopyData { .. } => "state: extent copied",
            Peer::CopyFailed { .. } => "state: extent not readable for a copy",
            Peer::Differs { .. } => "state: a member was found to hold something else",
            Peer::Refused { .. } => "state: stale epoch refused by a replica",
            _ => return,
        };
        self.count(what);
    }

    /// The authority says something to a node.
    pub(crate) fn decided(&mut self, said: &FromAuthority) {
        match said {
            FromAuthority::Decisions(decisions) => decisions.iter().for_each(|decision| self.decision(decision)),
            FromAuthority::Registered { devices, .. }
                if devices.iter().any(|said| matches!(said.judgement, Judgement::Distrusted { .. })) =>
            {
                self.count("state: a rolled-back device was not trusted");
            }
            FromAuthority::Granted { .. } => self.count("state: permit granted"),
            FromAuthority::Release { .. } => self.count("state: copy released"),
            _ => {}
        }
    }

    fn decision(&mut self, decision: &Decision) {
        self.count(match decision {
            Decision::Installed(_) => "state: proposal installed",
            Decision::Conflict(_) => "state: proposal in conflict",
            Decision::Denied(..) => "state: proposal denied",
            Decision::Unknown(_) => return,
        });
    }

    /// A replica refuses a client's request.
    pub(crate) fn refused(&mut self, refusal: &Refusal) {
        self.count(match refusal {
            Refusal::NotPrimary(_) => "refusal: not primary",
            Refusal::Fenced(_) => "refusal: fenced",
            Refusal::Busy => "refusal: busy",
            Refusal::OldSession => "refusal: old session",
            Refusal::Unknown => "refusal: unknown",
            Refusal::Malformed => "refusal: malformed",
            Refusal::Corrupt(_) => "refusal: corrupt",
        });
    }
}
