//! Which shard a segment's messages go to: first the device it lies on, as `engine_core::lodging` says, then that
//! device's shard by the segment's id.
//!
//! A node of one device, once the authority has said that there is no other, asks nobody: its shard follows from the id. With several, every thread remembers what it has
//! asked until something changes, so that no lock is on the path of a write.

use std::cell::RefCell;
use std::collections::HashMap;
use std::ops::Range;
use std::sync::atomic::{AtomicBool, AtomicU64, Ordering};
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};

use engine_core::ids::SegmentId;
use engine_core::lodging::Lodging;

/// What all threads of a node share: the shards of each device, and what lies where.
#[derive(Debug)]
pub(crate) struct Routes {
    /// Shards of each device.
    devices: Vec<Range<u16>>,
    /// There is one, and none that should be here is missing: a segment is there, or nowhere on this node.
    single: AtomicBool,
    lodging: Mutex<Lodging>,
    /// Goes up with every change of a place.
    version: AtomicU64,
}

impl Routes {
    /// Devices with so many shards each; `present`: none that was asked for is missing.
    pub(crate) fn new(shards: impl IntoIterator<Item = u16>, present: bool) -> Self {
        let mut next = 0;
        let devices: Vec<Range<u16>> = shards
            .into_iter()
            .map(|shards| {
                let first = next;
                next += shards;
                first..next
            })
            .collect();
        let lodging = Mutex::new(Lodging::new(devices.len(), present));
        Self { devices, single: AtomicBool::new(false), lodging, version: AtomicU64::new(1) }
    }

    /// The authority says whether these are all devices of the node that still count.
    pub(crate) fn heard(&self, complete: bool) {
        let whole = self.change(|lodging| {
            lodging.heard(complete);
            lodging.is_whole()
        });
        self.single.store(self.devices.len() == 1 && whole, Ordering::Release);
    }

    fn is_single(&self) -> bool {
        self.single.load(Ordering::Acquire)
    }

    /// The device that has this shard.
    pub(crate) fn device_of(&self, shard: u16) -> usize {
        self.devices.iter().position(|shards| shards.contains(&shard)).unwrap_or(0)
    }

    /// The shards of a device.
    pub(crate) fn shards_of(&self, device: usize) -> Range<usize> {
        self.devices.get(device).map_or(0..0, |shards| usize::from(shards.start)..usize::from(shards.end))
    }

    fn lodging(&self) -> MutexGuard<'_, Lodging> {
        // Whoever panics ends the process.
        self.lodging.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// Asks, or notes what changes no place.
    pub(crate) fn ask<T>(&self, question: impl FnOnce(&mut Lodging) -> T) -> T {
        question(&mut self.lodging())
    }

    /// Changes where something is.
    pub(crate) fn change<T>(&self, change: impl FnOnce(&mut Lodging) -> T) -> T {
        let mut lodging = self.lodging();
        let changed = change(&mut lodging);
        self.version.fetch_add(1, Ordering::Release);
        changed
    }

    /// Its shard on this device.
    fn shard_on(&self, device: usize, segment: SegmentId) -> u16 {
        let shards = &self.devices[device];
        shards.start + segment.shard(shards.end - shards.start)
    }

    /// Where a replica of `extents` is to begin.
    pub(crate) fn choose(&self, segment: SegmentId, extents: u32) -> u16 {
        self.shard_on(self.change(|lodging| lodging.choose(segment, extents.into())), segment)
    }

    /// A replica begins on this device; `false`: it must not.
    pub(crate) fn begins(&self, segment: SegmentId, device: usize) -> bool {
        self.change(|lodging| lodging.begins(segment, device))
    }

    /// The replica on this device has ended.
    pub(crate) fn ended(&self, segment: SegmentId, device: usize) {
        self.change(|lodging| lodging.ended(segment, device));
    }
}

/// Where a segment's messages go.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub(crate) enum Way {
    /// To the shard that has it, or is to have it.
    There(u16),
    /// Nothing of it is on this node: this shard says so.
    Nowhere(u16),
    /// Nothing of it is where one could look; a device is missing. This shard may say only that it has nothing.
    NotKnown(u16),
}

impl Way {
    /// The shard, whatever is known.
    pub(crate) const fn shard(self) -> u16 {
        match self {
            Self::There(shard) | Self::Nowhere(shard) | Self::NotKnown(shard) => shard,
        }
    }
}

/// One thread's view of the routes.
#[derive(Debug)]
pub(crate) struct Pilot {
    routes: Arc<Routes>,
    /// As of which version, and what was found.
    known: RefCell<(u64, HashMap<SegmentId, u16>)>,
}

impl Pilot {
    pub(crate) fn new(routes: Arc<Routes>) -> Self {
        Self { routes, known: RefCell::default() }
    }

    /// What all threads share.
    pub(crate) fn routes(&self) -> &Routes {
        &self.routes
    }

    /// The same, to keep.
    pub(crate) fn share(&self) -> Arc<Routes> {
        Arc::clone(&self.routes)
    }

    /// Where messages about this segment go.
    pub(crate) fn way(&self, segment: SegmentId) -> Way {
        let routes = &*self.routes;
        if routes.is_single() {
            return Way::There(routes.shard_on(0, segment));
        }
        let mut known = self.known.borrow_mut();
        let version = routes.version.load(Ordering::Acquire);
        if known.0 != version {
            *known = (version, HashMap::new());
        }
        if let Some(shard) = known.1.get(&segment) {
            return Way::There(*shard);
        }
        let lodging = routes.lodging();
        match lodging.find(segment) {
            Some(device) => {
                let shard = routes.shard_on(device, segment);
                known.1.insert(segment, shard);
                Way::There(shard)
            }
            None => {
                let shard = routes.shard_on(lodging.roomiest(), segment);
                if lodging.is_whole() { Way::Nowhere(shard) } else { Way::NotKnown(shard) }
            }
        }
    }
}

#[cfg(test)]
mod tests {
    use engine_core::ids::VolumeId;

    use super::*;

    fn segment(index: u32) -> SegmentId {
        SegmentId { volume: VolumeId(1), index }
    }

    #[test]
    fn one_device_is_asked_nothing() {
        let pilot = Pilot::new(Arc::new(Routes::new([4], true)));
        assert!(matches!(pilot.way(segment(1)), Way::NotKnown(_)), "another one may be missing");
        pilot.routes().heard(true);
        for index in 0..64 {
            assert_eq!(pilot.way(segment(index)), Way::There(segment(index).shard(4)));
        }
    }

    #[test]
    fn a_thread_hears_of_every_change() {
        let routes = Arc::new(Routes::new([2, 3], true));
        routes.heard(true);
        let pilot = Pilot::new(Arc::clone(&routes));
        assert!(matches!(pilot.way(segment(1)), Way::Nowhere(_)));
        assert!(routes.begins(segment(1), 1));
        let there = Way::There(2 + segment(1).shard(3));
        assert_eq!((pilot.way(segment(1)), pilot.way(segment(1))), (there, there));
        assert!(!routes.begins(segment(1), 0), "held on the other device");
        assert_eq!(routes.choose(segment(1), 10), there.shard());
        routes.change(|lodging| lodging.take_out(1));
        assert!(matches!(pilot.way(segment(1)), Way::NotKnown(shard) if shard < 2));
    }

    #[test]
    fn shards_are_numbered_through_all_devices() {
        let routes = Routes::new([2, 3], true);
        assert_eq!((routes.device_of(1), routes.device_of(2), routes.device_of(4)), (0, 1, 1));
        assert_eq!((routes.shards_of(0), routes.shards_of(1)), (0..2, 2..5));
    }
}
