//! A new primary's log becomes the common one: it is sent whole above the commit point, and whoever lacks or has something
//! else gives way to it (I9). `follower` takes it, whole or not at all.

use alloc::vec;
use alloc::vec::Vec;

use super::io::Effects;
use super::{Replica, Role};
use crate::ids::NodeId;
use crate::limits::FRAME_PAYLOAD_MAX;
use crate::message::Peer;
use crate::record::Entry;
use crate::time::Time;

/// Entries in one part of a reconciliation.
const PART_ENTRIES: usize = 128;

impl Replica {
    /// Sends the whole log above the commit point, in parts that fit a frame (I9).
    pub(super) fn send_reconcile(&mut self, now: Time, to: NodeId, effects: &mut Effects) {
        let commit = self.log.commit();
        let mut parts: Vec<Vec<Entry>> = vec![Vec::new()];
        let mut bytes = 0;
        for entry in self.log.after(commit) {
            let len = entry.change.data_len();
            let full = bytes + len > FRAME_PAYLOAD_MAX as u64;
            if full || parts.last().is_some_and(|part| part.len() >= PART_ENTRIES) {
                parts.push(Vec::new());
                bytes = 0;
            }
            bytes += len;
            if let Some(part) = parts.last_mut() {
                part.push(entry.clone());
            }
        }
        let count = parts.len();
        for (part, entries) in (0u32..).zip(parts) {
            let last = part as usize + 1 == count;
            let config = self.meta.config.clone();
            effects.send(to, Peer::Reconcile { config, commit, sent: now, part, last, entries });
        }
        if let Role::Primary(primary) = &mut self.role
            && let Some(peer) = primary.peers.0.get_mut(&to)
        {
            peer.asked = now;
        }
    }
}
