//! The faults: what is done to whom, for how long, and how long a client may feel it.

use std::time::Duration;

use engine_core::config::Config;
use engine_core::ids::NodeId;
use serde::{Serialize, Serializer};

use super::fleet::Fleet;
use crate::failure::Failure;

/// How long a process that was killed stays away.
const KILLED: Duration = Duration::from_secs(3);
/// How long a paused process, a zone or the authority stays away: longer than every lease and silence.
const SILENT: Duration = Duration::from_secs(6);

/// One kind of fault.
#[derive(Debug, Clone, Copy, PartialEq, Eq, clap::ValueEnum)]
pub(super) enum Fault {
    /// SIGKILL to the primary.
    KillPrimary,
    /// SIGKILL to a backup.
    KillBackup,
    /// SIGSTOP to the primary, SIGCONT later.
    StopPrimary,
    /// SIGSTOP to a backup, SIGCONT later.
    StopBackup,
    /// SIGTERM to the primary: it stops on purpose.
    TermPrimary,
    /// SIGTERM to a backup.
    TermBackup,
    /// Power-off of the primary's whole zone: silence on both networks.
    Zone,
    /// Power-off of a backup's whole zone.
    ZoneBackup,
    /// The primary's device stands still.
    StalledPrimary,
    /// A backup's device stands still.
    StalledBackup,
    /// SIGKILL to the authority.
    Authority,
}

impl Fault {
    /// All, those that take longest last.
    pub(super) const ALL: [Self; 11] = [
        Self::KillPrimary,
        Self::KillBackup,
        Self::TermPrimary,
        Self::TermBackup,
        Self::Authority,
        Self::StopPrimary,
        Self::StopBackup,
        Self::Zone,
        Self::ZoneBackup,
        Self::StalledPrimary,
        Self::StalledBackup,
    ];

    /// As on the command line.
    pub(super) const fn name(self) -> &'static str {
        match self {
            Self::KillPrimary => "kill-primary",
            Self::KillBackup => "kill-backup",
            Self::StopPrimary => "stop-primary",
            Self::StopBackup => "stop-backup",
            Self::TermPrimary => "term-primary",
            Self::TermBackup => "term-backup",
            Self::Zone => "zone",
            Self::ZoneBackup => "zone-backup",
            Self::StalledPrimary => "stalled-primary",
            Self::StalledBackup => "stalled-backup",
            Self::Authority => "authority",
        }
    }

    /// Longest gap a client may see, in milliseconds: half of the times, ever. `None`: no longer than without a fault.
    pub(super) const fn target(self) -> Option<(f64, f64)> {
        match self {
            Self::KillPrimary => Some((150.0, 400.0)),
            Self::KillBackup => Some((50.0, 200.0)),
            Self::TermPrimary | Self::TermBackup => Some((20.0, 50.0)),
            Self::Authority => None,
            _ => Some((3000.0, 4000.0)),
        }
    }

    /// How long it lasts.
    pub(super) const fn lasts(self, stall: Duration) -> Duration {
        match self {
            Self::KillPrimary | Self::KillBackup | Self::TermPrimary | Self::TermBackup => KILLED,
            Self::StalledPrimary | Self::StalledBackup => stall,
            _ => SILENT,
        }
    }

    /// Whom it hits; nobody where it is the authority's.
    pub(super) fn victim(self, config: &Config, repetition: u32) -> Option<NodeId> {
        match self {
            Self::Authority => None,
            Self::KillPrimary | Self::StopPrimary | Self::TermPrimary | Self::Zone | Self::StalledPrimary => {
                Some(config.primary)
            }
            _ => {
                let backups: Vec<NodeId> =
                    config.members.iter().copied().filter(|node| *node != config.primary).collect();
                backups.get(usize::try_from(repetition).unwrap_or_default() % backups.len().max(1)).copied()
            }
        }
    }

    /// Why this cluster cannot show it, if it cannot.
    pub(super) fn impossible(self, fleet: &Fleet) -> Option<String> {
        match self {
            Self::Zone | Self::ZoneBackup if !fleet.has_cables() => {
                Some("needs hosts of their own for the nodes (--network hosts, as root)".to_owned())
            }
            Self::StalledPrimary | Self::StalledBackup => fleet.no_stall().map(str::to_owned),
            _ => None,
        }
    }

    /// Does it.
    pub(super) fn strike(self, fleet: &mut Fleet, victim: Option<NodeId>) -> Result<(), Failure> {
        let Some(node) = victim else { return fleet.kill_authority() };
        match self {
            Self::KillPrimary | Self::KillBackup | Self::Authority => fleet.kill_node(node),
            Self::TermPrimary | Self::TermBackup => fleet.terminate_node(node),
            Self::StopPrimary | Self::StopBackup => {
                fleet.signal(node, libc::SIGSTOP);
                Ok(())
            }
            Self::Zone | Self::ZoneBackup => fleet.power_off(&fleet.zone_of(node)),
            Self::StalledPrimary | Self::StalledBackup => fleet.stall(node, true),
        }
    }

    /// Undoes it.
    pub(super) fn heal(self, fleet: &mut Fleet, victim: Option<NodeId>) -> Result<(), Failure> {
        let Some(node) = victim else { return fleet.start_authority() };
        match self {
            Self::KillPrimary | Self::KillBackup | Self::TermPrimary | Self::TermBackup | Self::Authority => {
                fleet.start_node(node)
            }
            Self::StopPrimary | Self::StopBackup => {
                fleet.signal(node, libc::SIGCONT);
                Ok(())
            }
            Self::Zone | Self::ZoneBackup => fleet.power_on(&fleet.zone_of(node)),
            Self::StalledPrimary | Self::StalledBackup => fleet.stall(node, false),
        }
    }
}

impl Serialize for Fault {
    fn serialize<S: Serializer>(&self, serializer: S) -> Result<S::Ok, S::Error> {
        serializer.serialize_str(self.name())
    }
}

#[cfg(test)]
mod tests {
    use clap::ValueEnum as _;

    use super::*;

    #[test]
    fn every_fault_has_one_name_and_is_among_all() {
        for fault in Fault::value_variants() {
            assert_eq!(fault.to_possible_value().map(|v| v.get_name().to_owned()).as_deref(), Some(fault.name()));
            assert!(Fault::ALL.contains(fault), "{}", fault.name());
        }
    }
}
