//! Which of a node's devices a segment lies on: found where it is, and decided where it is to be.
//!
//! Intuition: a replica that is held is where its device says it is; that is the only truth, and it is not written down
//! anywhere else. A new one goes to the device with most room, because room is what a device runs out of. No rule is
//! computed from the segment and the number of devices: that would break whenever a device comes or goes.
//!
//! Invariants: a segment is held on at most one device. While a device of the node is missing, what is not found is not
//! known to be nowhere: it may be there (I11), so nobody is told that nothing of it is here, and no copy begins because a
//! peer assumes one.

use alloc::collections::BTreeMap;
use alloc::vec::Vec;

use crate::ids::SegmentId;

/// Where a segment is.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
enum Place {
    /// Something may begin there.
    Promised(usize),
    /// A replica is there.
    Held(usize),
}

impl Place {
    const fn device(self) -> usize {
        match self {
            Self::Promised(device) | Self::Held(device) => device,
        }
    }
}

#[derive(Clone, Copy, PartialEq, Eq, Debug, Default)]
struct Room {
    /// Not in service: nothing on it is served.
    out: bool,
    /// It takes nothing new: a write on it has failed.
    failed: bool,
    /// Extents free, as far as is known.
    free: u64,
}

/// The devices of a node and what lies on them.
#[derive(Clone, PartialEq, Eq, Debug)]
pub struct Lodging {
    devices: Vec<Room>,
    /// Every device that was asked for is there.
    present: bool,
    /// And the authority knows of no other one.
    complete: bool,
    places: BTreeMap<SegmentId, Place>,
}

impl Lodging {
    /// Nothing is known of any device yet; `present`: none that was asked for is missing.
    #[must_use]
    pub fn new(devices: usize, present: bool) -> Self {
        let room = Room { free: u64::MAX, ..Room::default() };
        Self { devices: alloc::vec![room; devices], present, complete: false, places: BTreeMap::new() }
    }

    /// The device a segment lies on, or is to lie on.
    #[must_use]
    pub fn find(&self, segment: SegmentId) -> Option<usize> {
        self.places.get(&segment).map(|place| place.device())
    }

    /// Whether what is not found here is known to be nowhere on this node.
    #[must_use]
    pub fn is_whole(&self) -> bool {
        self.present && self.complete && self.devices.iter().all(|room| !room.out)
    }

    /// The authority says whether the devices it was told of are all of this node's that still count. Until it does, one may be
    /// missing that nobody here knows of.
    pub const fn heard(&mut self, complete: bool) {
        self.complete = complete;
    }

    /// Whether nothing on this device is served.
    #[must_use]
    pub fn is_out(&self, device: usize) -> bool {
        self.devices.get(device).is_none_or(|room| room.out)
    }

    /// These were found on a device when it was opened. `Err`: one of them lies on another device too, and nothing was
    /// noted: two replicas of one segment under one node would answer for each other.
    pub fn found(&mut self, device: usize, segments: &[SegmentId]) -> Result<(), SegmentId> {
        if let Some(twice) = segments.iter().find(|segment| self.places.contains_key(segment)) {
            return Err(*twice);
        }
        self.places.extend(segments.iter().map(|segment| (*segment, Place::Held(device))));
        Ok(())
    }

    /// Where a replica of `extents` is to begin, now and whenever this is asked again: where one is, else where it was
    /// promised if that still has room, else where most room is; of equals the first.
    pub fn choose(&mut self, segment: SegmentId, extents: u64) -> usize {
        let fits = |device: usize, devices: &[Room]| {
            let room = devices[device];
            !room.out && !room.failed && room.free >= extents
        };
        match self.places.get(&segment) {
            Some(Place::Held(device)) => return *device,
            Some(Place::Promised(device)) if fits(*device, &self.devices) => return *device,
            _ => {}
        }
        let device = self.roomiest();
        self.places.insert(segment, Place::Promised(device));
        self.devices[device].free = self.devices[device].free.saturating_sub(extents);
        device
    }

    /// Of the devices in service, the one with most room; whoever fails takes nothing while another does not.
    #[must_use]
    pub fn roomiest(&self) -> usize {
        let in_service = self.devices.iter().enumerate().filter(|(_, room)| !room.out);
        let best = in_service.max_by_key(|(at, room)| (!room.failed, room.free, core::cmp::Reverse(*at)));
        best.map_or(0, |(at, _)| at)
    }

    /// A replica begins on a device. `false`: another device has it, and it must not begin.
    pub fn begins(&mut self, segment: SegmentId, device: usize) -> bool {
        match self.places.get(&segment) {
            Some(Place::Held(other)) if *other != device => false,
            _ => {
                self.places.insert(segment, Place::Held(device));
                true
            }
        }
    }

    /// The replica on this device has ended.
    pub fn ended(&mut self, segment: SegmentId, device: usize) {
        if self.find(segment) == Some(device) {
            self.places.remove(&segment);
        }
    }

    /// Nothing on this device is served from now on.
    pub fn take_out(&mut self, device: usize) {
        self.devices[device].out = true;
        self.places.retain(|_, place| place.device() != device);
    }

    /// How much is free on a device, and whether it fails.
    pub fn note(&mut self, device: usize, free: u64, failed: bool) {
        if let Some(room) = self.devices.get_mut(device) {
            (room.free, room.failed) = (free, failed);
        }
    }
}

#[cfg(test)]
mod tests {
    use super::Lodging;
    use crate::ids::{SegmentId, VolumeId};

    fn segment(index: u32) -> SegmentId {
        SegmentId { volume: VolumeId(1), index }
    }

    fn two(first: u64, second: u64) -> Lodging {
        let mut lodging = Lodging::new(2, true);
        lodging.heard(true);
        lodging.note(0, first, false);
        lodging.note(1, second, false);
        lodging
    }

    #[test]
    fn what_is_held_is_found_where_it_is_and_a_new_one_goes_where_most_room_is() {
        let mut lodging = two(100, 200);
        assert_eq!(lodging.found(0, &[segment(1), segment(2)]), Ok(()));
        assert_eq!((lodging.find(segment(1)), lodging.find(segment(9))), (Some(0), None));
        assert_eq!(lodging.choose(segment(1), 10), 0, "held there, whatever room there is");
        assert_eq!(lodging.choose(segment(3), 150), 1);
        assert_eq!(lodging.choose(segment(4), 60), 0, "what was promised is not free");
    }

    #[test]
    fn a_promise_stays_until_it_no_longer_fits() {
        let mut lodging = two(100, 99);
        assert_eq!(lodging.choose(segment(1), 50), 0);
        assert_eq!(lodging.choose(segment(1), 50), 0, "asked again");
        lodging.note(0, 10, false);
        assert_eq!(lodging.choose(segment(1), 50), 1);
        lodging.note(0, 1000, false);
        assert!(lodging.begins(segment(1), 1));
        assert_eq!(lodging.choose(segment(1), 50), 1, "held by now");
    }

    #[test]
    fn nobody_knows_that_all_devices_are_there_before_the_authority_says_so() {
        let mut lodging = Lodging::new(1, true);
        assert!(!lodging.is_whole(), "one may have been left out of the configuration");
        lodging.heard(true);
        assert!(lodging.is_whole());
        lodging.heard(false);
        assert!(!lodging.is_whole());
        let mut lodging = Lodging::new(1, false);
        lodging.heard(true);
        assert!(!lodging.is_whole(), "one could not be opened");
    }

    #[test]
    fn a_segment_is_held_once() {
        let mut lodging = two(100, 100);
        assert_eq!(lodging.found(0, &[segment(1)]), Ok(()));
        assert_eq!(lodging.found(1, &[segment(2), segment(1)]), Err(segment(1)));
        assert_eq!(lodging.find(segment(2)), None, "nothing of that device was noted");
        assert!(!lodging.begins(segment(1), 1));
        lodging.ended(segment(1), 1);
        assert_eq!(lodging.find(segment(1)), Some(0), "not its end");
        lodging.ended(segment(1), 0);
        assert!(lodging.begins(segment(1), 1));
    }

    #[test]
    fn a_device_that_is_out_or_fails_takes_nothing_new() {
        let mut lodging = two(200, 100);
        assert_eq!(lodging.found(0, &[segment(1)]), Ok(()));
        lodging.note(0, 200, true);
        assert_eq!(lodging.choose(segment(2), 10), 1);
        assert_eq!(lodging.find(segment(1)), Some(0), "what is there is asked there still");
        lodging.take_out(0);
        assert!(!lodging.is_whole() && lodging.is_out(0), "what is not found may be there");
        assert_eq!(lodging.find(segment(1)), None);
        assert_eq!(lodging.roomiest(), 1);
    }
}
