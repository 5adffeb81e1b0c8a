//! Whether what a node comes with is what it was: each of its devices is judged by itself (I9).
//!
//! Intuition: a node is its devices. One that carries the opening taken in last has lived on; one that does not is older,
//! and nothing on it is trusted; one that was given up is never served again. One nobody knows is taken in only while none
//! of the known ones is missing, because it may have been put in the place of one whose content still counts: a person
//! says that it does not.
//!
//! Invariants: what is said about one device changes nothing for the others. A device that joins a node in use is taken
//! for blank: if anything is on it, none of that is trusted.

use alloc::borrow::ToOwned;
use alloc::format;
use alloc::string::String;
use alloc::vec::Vec;

use super::Authority;
use super::io::Effects;
use super::records::{DeviceRecord, NodeRecord};
use crate::ids::{BootCount, BootId, DeviceId, NodeId};
use crate::limits::DEVICES_MAX;
use crate::message::{DeviceJudged, DeviceOpened, Judgement, NodeAddress, Registration};
use crate::openings::{Opening, Openings};
use crate::time::Time;

/// Whether a device has lived on since the opening of it that was taken in last (I9), or this memory is itself older
/// than the device's (I11): then what the device carries is at least as new.
fn carries(openings: &Openings, known: &DeviceRecord) -> bool {
    openings.have(Opening { id: known.boot_id, count: known.boot }) || openings.outlived(known.boot)
}

/// Known devices that nobody has given up and that did not come.
pub(super) fn missing<'a>(known: &'a [DeviceRecord], here: &[DeviceId]) -> impl Iterator<Item = &'a DeviceRecord> {
    let here = here.to_owned();
    known.iter().filter(move |record| !record.lost && !here.contains(&record.device))
}

/// What a person says to let go of one device of a node.
pub(super) fn replace_command(node: NodeId, known: &[DeviceRecord], device: DeviceId) -> String {
    if known.iter().filter(|record| !record.lost).count() > 1 {
        format!("nodectl node replace-device {node} --device {device}")
    } else {
        format!("nodectl node replace-device {node}")
    }
}

/// A node's record from now on: what it says, and its devices as they were judged.
pub(super) fn node_record(
    known: &[DeviceRecord],
    run: BootId,
    registration: &Registration,
    judged: &[DeviceJudged],
    older: bool,
) -> NodeRecord {
    let NodeAddress { node: _, primary, replication, shards } = registration.address.clone();
    let mut devices: Vec<DeviceRecord> = known.iter().copied().filter(|record| record.device.0 != 0).collect();
    let unknown = |said: &DeviceJudged| {
        !matches!(said.judgement, Judgement::Refused(_)) && !known.iter().any(|record| record.device == said.device)
    };
    if older && judged.iter().any(unknown) {
        // I11: the record is older than the device that is not in it; what was replaced it does not know.
        let came = |record: &DeviceRecord| registration.devices.iter().any(|opened| opened.device == record.device);
        devices.retain(|record| record.lost || came(record));
    }
    for (opened, said) in registration.devices.iter().zip(judged) {
        let (Judgement::Sound { boot } | Judgement::Distrusted { boot }) = said.judgement else { continue };
        let DeviceOpened { device, capacity, .. } = *opened;
        let record = DeviceRecord { device, lost: false, boot, boot_id: run, capacity };
        match devices.iter_mut().find(|known| known.device == device) {
            Some(known) => *known = record,
            None => devices.push(record),
        }
    }
    // Those given up longest ago are forgotten: whoever brings one back finds that it is not taken for sound.
    while devices.len() > DEVICES_MAX {
        let Some(at) = devices.iter().position(|record| record.lost) else { break };
        devices.remove(at);
    }
    NodeRecord { zone: registration.zone.clone(), primary, replication, shards, devices }
}

impl Authority {
    /// What is said of each device a node comes with; `Err` when none of them may be served.
    pub(super) fn judge_devices(
        &self,
        now: Time,
        run: BootId,
        registration: &Registration,
        effects: &mut Effects,
    ) -> Result<Vec<DeviceJudged>, String> {
        let node = registration.address.node;
        let came: Vec<DeviceId> = registration.devices.iter().map(|opened| opened.device).collect();
        let twice = |(at, device): (usize, &DeviceId)| device.0 == 0 || came[..at].contains(device);
        if came.is_empty() || came.len() > DEVICES_MAX || came.iter().enumerate().any(twice) {
            return Err(format!("a node comes with 1 to {DEVICES_MAX} devices, each with an id of its own"));
        }
        let mut judged = Vec::with_capacity(came.len());
        for opened in &registration.devices {
            let judgement = self.judge(now, run, node, &came, opened, effects)?;
            judged.push(DeviceJudged { device: opened.device, judgement });
        }
        if let Some(Judgement::Refused(why)) = judged.first().map(|said| &said.judgement)
            && judged.iter().all(|said| matches!(said.judgement, Judgement::Refused(_)))
        {
            return Err(why.clone());
        }
        Ok(judged)
    }

    /// `Err`: another process with this device is in touch.
    fn judge(
        &self,
        now: Time,
        run: BootId,
        node: NodeId,
        came: &[DeviceId],
        opened: &DeviceOpened,
        effects: &mut Effects,
    ) -> Result<Judgement, String> {
        let sound = Judgement::Sound { boot: opened.boot };
        let Some(record) = self.known_as(node) else { return Ok(sound) };
        Ok(match record.device(opened.device) {
            None => self.judge_unknown(node, record, came, opened),
            Some(known) if known.lost => Judgement::Refused(format!(
                "device {} of {node} was declared gone for good; what it holds is not needed. Wipe it, or use another",
                known.device
            )),
            Some(known) if carries(&opened.openings, known) => sound,
            Some(known) if run != known.boot_id && self.is_up(now, node) => {
                return Err(format!(
                    "another process with device {} is in touch as {node} (boot counter {}, this one has {}): stop one \
                     of the two",
                    known.device, known.boot, opened.boot
                ));
            }
            Some(known) => Judgement::Distrusted { boot: counter_of(node, run, known, opened, effects) },
        })
    }

    /// A device that is not in the records of its node.
    fn judge_unknown(&self, node: NodeId, record: &NodeRecord, came: &[DeviceId], opened: &DeviceOpened) -> Judgement {
        // An older record may not know that a device was replaced; whoever accepts it decides (I11).
        if self.frozen().is_some() {
            return Judgement::Sound { boot: opened.boot };
        }
        if let Some(missing) = missing(&record.devices, came).next() {
            return Judgement::Refused(format!(
                "{node} is registered with device {}, this is device {}. If the old one is gone for good: {}, then start \
                 this node again; if not, give this device a node id of its own",
                missing.device,
                opened.device,
                replace_command(node, &record.devices, missing.device)
            ));
        }
        let in_use = record.devices.iter().filter(|known| !known.lost).count();
        match in_use {
            0 => Judgement::Sound { boot: opened.boot },
            // I11: what is not in the record may be newer than it. To say that nothing on it counts would be for ever.
            _ if self.stands_still() => Judgement::Refused(format!(
                "the authority does not know this device of {node}, nor yet whether what it remembers is the newest there is: \
                 start noded on {node} again when `nodectl status` says that changes go on"
            )),
            _ if in_use >= DEVICES_MAX => Judgement::Refused(format!("{node} has {DEVICES_MAX} devices already")),
            // It joins those there are, as a blank one.
            _ => Judgement::Distrusted { boot: opened.boot },
        }
    }

    /// Known devices of a node that nobody has given up and that are not there: those its process did not come with.
    pub(super) fn misses_device(&self, node: NodeId) -> bool {
        let Some(presence) = self.presence.get(&node).filter(|presence| presence.since.is_some()) else { return false };
        self.known_as(node).is_some_and(|record| missing(&record.devices, &presence.devices).next().is_some())
    }
}

/// The boot counter a device has from now on: one that was rolled back goes above the one remembered and its own, once
/// everything on it is distrusted, durably. Until then its next opening does not carry this one, either.
fn counter_of(
    node: NodeId,
    run: BootId,
    known: &DeviceRecord,
    opened: &DeviceOpened,
    effects: &mut Effects,
) -> BootCount {
    if run == known.boot_id {
        return known.boot; // told before; it has not heard it
    }
    effects.log(format!(
        "{node} comes with boot counter {} and does not carry the opening taken in last, with {}: its device {} was \
         rolled back; everything on it is taken for damaged and comes back by catch-up (I9)",
        opened.boot, known.boot, known.device
    ));
    known.boot.max(opened.boot).next()
}
