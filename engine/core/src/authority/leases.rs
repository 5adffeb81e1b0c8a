//! Leases for primaries below `min_copies`: the authority's word that a configuration is still the one at work (I7).
//!
//! Intuition: nothing is granted and nothing remembered. Who leads next waits out whatever was said before its own
//! configuration was installed; what is said afterwards is only that there is a later one.

use alloc::vec::Vec;

use super::Authority;
use super::io::Effects;
use crate::config::Config;
use crate::ids::NodeId;
use crate::limits::{BATCH_BODY_MAX, LEASE_ASKS_MAX};
use crate::message::{Decision, FromAuthority, LeaseAsk};

impl Authority {
    pub(super) fn on_lease_asks(&self, node: NodeId, asks: &[LeaseAsk], effects: &mut Effects) {
        let mut leased: Vec<LeaseAsk> = Vec::new();
        let mut later: Vec<Decision> = Vec::new();
        let mut bytes = 0;
        for ask in asks.iter().take(LEASE_ASKS_MAX) {
            let Some(config) = self.books.segments().get(&ask.segment).map(|record| &record.config) else { continue };
            if ask.incarnation != config.incarnation {
                continue;
            }
            if crate::epoch::is_current(ask.epoch, config) && config.primary == node {
                leased.push(*ask);
            } else if crate::epoch::is_outdated(ask.epoch, config) && bytes < BATCH_BODY_MAX {
                // The asker may be the only one who has not heard of it. Who finds no room asks again.
                bytes += config.wire_bytes();
                let volume = self.books.volumes().get(&ask.segment.volume);
                let generation = volume.map_or(config.generation, |volume| volume.generation);
                later.push(Decision::Conflict(Config { generation, ..config.clone() }));
            }
        }
        if !leased.is_empty() {
            effects.send(node, FromAuthority::Leased(leased));
        }
        if !later.is_empty() {
            effects.send(node, FromAuthority::Decisions(later));
        }
    }
}
