//! How much space is left, for whom, and who should know before it runs out (R4, R16).
//!
//! Three words, each worse than the one before: *low*, new volumes are about to be refused; *headroom*, re-mirroring lives on what was
//! kept for it; *short*, little of that is left. Looked at for the cluster and for each zone, over the nodes in reach.
//!
//! Invariant: hysteresis. A word is taken back only when it is clearly untrue, so that it does not come and go with every segment.

use alloc::collections::{BTreeMap, BTreeSet};
use alloc::format;
use alloc::string::{String, ToString};
use alloc::vec::Vec;

use serde::{Deserialize, Serialize};

use super::Authority;
use super::document::Spread;
use super::headroom::Kept;
use super::io::Effects;
use super::placement::Size;
use super::records::{NodeRecord, VolumeRecord};
use crate::limits::{EXTENT_SIZE, SPACE_HYSTERESIS_PER_MILLE};
use crate::time::Time;

/// Space, as part of the status. Bytes, of the nodes in reach.
#[derive(Debug, Clone, Default, PartialEq, Eq, Serialize, Deserialize)]
#[cfg_attr(feature = "openapi", derive(utoipa::ToSchema))]
pub struct SpaceInfo {
    /// What is kept for re-mirroring, in words with figures.
    pub policy: String,
    /// Kept for re-mirroring.
    pub headroom: u64,
    /// New volumes may still book, copies included, where it lies well.
    pub free_for_new: u64,
    /// Re-mirroring may still book.
    pub free: u64,
    /// What an operator should know.
    pub alarms: Vec<SpaceAlarm>,
}

/// Space runs out somewhere.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[cfg_attr(feature = "openapi", derive(utoipa::ToSchema))]
pub struct SpaceAlarm {
    /// A zone, or nothing for the whole cluster.
    pub zone: Option<String>,
    /// `low`: new volumes are about to be refused; `headroom`: it is being used; `short`: little of it is left.
    pub level: String,
    /// With figures, and what to do.
    pub message: String,
}

/// What was found when it was looked last.
#[derive(Debug, Clone, Default)]
pub(super) struct Watch {
    levels: BTreeMap<Option<String>, Level>,
    kept: Option<Kept>,
    /// Some volume's lost copies can only be made in the zone they were in: then zones keep for themselves.
    local: bool,
}

/// How bad it is.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord)]
enum Level {
    Low,
    Headroom,
    Short,
}

/// From where on.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Thresholds {
    /// Booked, per thousand of what new volumes may book.
    pub low_per_mille: u64,
    /// Left of the headroom, per thousand of it.
    pub short_per_mille: u64,
}

impl Default for Thresholds {
    fn default() -> Self {
        use crate::limits::{SPACE_LOW_PER_MILLE, SPACE_SHORT_PER_MILLE};
        Self { low_per_mille: SPACE_LOW_PER_MILLE, short_per_mille: SPACE_SHORT_PER_MILLE }
    }
}

/// Extents of some nodes together.
#[derive(Debug, Clone, Copy, Default)]
struct Account {
    capacity: u64,
    kept: u64,
    booked: u64,
}

impl Account {
    /// How bad it is, given how bad it was.
    fn level(&self, thresholds: Thresholds, was: Option<Level>) -> Option<Level> {
        let Self { capacity, kept, booked } = *self;
        let for_new = capacity - kept;
        // Who is in a state stays there until so much has been given back.
        let slack = |level| if was >= Some(level) { part(capacity, SPACE_HYSTERESIS_PER_MILLE) } else { 0 };
        let short = capacity - part(kept, thresholds.short_per_mille);
        if kept > 0 && booked + slack(Level::Short) > short {
            Some(Level::Short)
        } else if booked + slack(Level::Headroom) > for_new {
            Some(Level::Headroom)
        } else if booked + slack(Level::Low) >= part(for_new, thresholds.low_per_mille) && capacity > 0 {
            Some(Level::Low)
        } else {
            None
        }
    }

    fn message(&self, level: Level, place: &str) -> String {
        let Self { capacity, kept, booked } = *self;
        let size = |extents: u64| Size(extents * EXTENT_SIZE);
        let left = size(capacity.saturating_sub(booked));
        let add = "add nodes, or delete what is not needed";
        match level {
            Level::Low => {
                let for_new = size((capacity - kept).saturating_sub(booked));
                format!("{place}: {for_new} are left for new volumes, of {}; {add}", size(capacity - kept))
            }
            Level::Headroom => format!(
                "{place}: re-mirroring lives on its headroom, {left} of {} are left, new volumes are refused; {add}",
                size(kept)
            ),
            Level::Short => format!(
                "{place}: only {left} of the {} kept for re-mirroring are left: lost copies may find no place; {add}",
                size(kept)
            ),
        }
    }
}

const fn part(of: u64, per_mille: u64) -> u64 {
    of / 1000 * per_mille + of % 1000 * per_mille / 1000
}

const fn name(level: Level) -> &'static str {
    match level {
        Level::Low => "low",
        Level::Headroom => "headroom",
        Level::Short => "short",
    }
}

/// Whether a lost copy of this volume can only be made in the zone it was in.
pub(super) fn is_local(volume: &VolumeRecord, zones: usize) -> bool {
    volume.zone.is_some() || volume.spread == Spread::Zone && usize::from(volume.copies) >= zones
}

impl Authority {
    /// What is kept of each node that is there or may come back.
    pub(super) fn kept(&self) -> Kept {
        let nodes = self.books.nodes().iter().filter(|(_, record)| !record.is_gone());
        Kept::new(self.policy.headroom, nodes.map(|(node, record)| (*node, record.zone.as_str(), record.capacity())))
    }

    /// Extents of a node that new volumes do not get.
    pub(super) fn headroom_of(&self, record: &NodeRecord) -> u64 {
        let Watch { kept, local, .. } = &self.space;
        kept.as_ref().map_or(0, |kept| kept.of(&record.zone, record.capacity(), *local))
    }

    /// How many zones there are.
    pub(super) fn zones(&self) -> usize {
        let zones: BTreeSet<&str> = self.books.nodes().values().map(|record| record.zone.as_str()).collect();
        zones.len()
    }

    /// Extents, by zone; the whole cluster under none.
    fn accounts(&self, now: Time, kept: &Kept, local: bool) -> BTreeMap<Option<String>, Account> {
        let mut accounts: BTreeMap<Option<String>, Account> = BTreeMap::new();
        for (node, record) in self.books.nodes().iter().filter(|(node, _)| self.is_up(now, **node)) {
            let (capacity, booked) = (record.capacity(), self.books.usage(*node).booked + self.permits.reserved(*node));
            let kept = kept.of(&record.zone, capacity, local);
            for place in [None, Some(record.zone.clone())] {
                let account = accounts.entry(place).or_default();
                account.capacity += capacity;
                account.kept += kept;
                account.booked += booked;
            }
        }
        accounts
    }

    /// Looks how much is left; says so where it has become worse or better.
    pub(super) fn tick_space(&mut self, now: Time, effects: &mut Effects) {
        let (kept, zones) = (self.kept(), self.zones());
        let local = self.books.volumes().values().any(|volume| is_local(volume, zones));
        let accounts = self.accounts(now, &kept, local);
        let mut levels = BTreeMap::new();
        for (place, account) in &accounts {
            let was = self.space.levels.get(place).copied();
            let level = account.level(self.policy.space, was);
            if let Some(level) = level {
                levels.insert(place.clone(), level);
            }
            match level {
                Some(level) if was != Some(level) => effects.log(account.message(level, &called(place.as_deref()))),
                None if was.is_some() => effects.log(format!("{}: there is space again", called(place.as_deref()))),
                _ => {}
            }
        }
        self.space = Watch { levels, kept: Some(kept), local };
    }

    pub(super) fn space_info(&self, now: Time) -> SpaceInfo {
        let Watch { levels, kept: Some(kept), local } = &self.space else { return SpaceInfo::default() };
        let accounts = self.accounts(now, kept, *local);
        let alarm = |(place, level): (&Option<String>, &Level)| {
            let account = accounts.get(place)?;
            let message = account.message(*level, &called(place.as_deref()));
            Some(SpaceAlarm { zone: place.clone(), level: name(*level).to_string(), message })
        };
        let all = accounts.get(&None).copied().unwrap_or_default();
        SpaceInfo {
            policy: kept.why().to_string(),
            headroom: all.kept * EXTENT_SIZE,
            free_for_new: (all.capacity - all.kept).saturating_sub(all.booked) * EXTENT_SIZE,
            free: all.capacity.saturating_sub(all.booked) * EXTENT_SIZE,
            alarms: levels.iter().filter_map(alarm).collect(),
        }
    }
}

fn called(zone: Option<&str>) -> String {
    zone.map_or_else(|| "the cluster".to_string(), |zone| format!("zone {zone}"))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn words_come_in_turn_and_are_not_taken_back_for_a_trifle() {
        let thresholds = Thresholds { low_per_mille: 850, short_per_mille: 500 };
        let mut level = None;
        let mut at = |booked| {
            let account = Account { capacity: 10_000, kept: 1000, booked };
            level = account.level(thresholds, level);
            level
        };
        assert_eq!(at(0), None);
        assert_eq!(at(7649), None);
        assert_eq!(at(7650), Some(Level::Low));
        assert_eq!(at(7550), Some(Level::Low), "a hundred is a trifle");
        assert_eq!(at(7400), None);
        assert_eq!(at(9001), Some(Level::Headroom));
        assert_eq!(at(8901), Some(Level::Headroom));
        assert_eq!(at(9501), Some(Level::Short));
        assert_eq!(at(9400), Some(Level::Short));
        assert_eq!(at(9100), Some(Level::Headroom));
        assert_eq!(at(8700), Some(Level::Low));
    }

    #[test]
    fn nodes_without_headroom_are_full_and_never_short_of_it() {
        let account = Account { capacity: 1000, kept: 0, booked: 1000 };
        assert_eq!(account.level(Thresholds::default(), None), Some(Level::Low));
        assert_eq!(Account::default().level(Thresholds::default(), None), None, "nobody is there");
    }
}
