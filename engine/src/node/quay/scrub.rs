//! Walking over what the shard holds, as its scrub says, and telling replicas of what is damaged (I14).

use engine_core::ids::{ExtentIndex, SegmentId, Seq};
use engine_core::limits::SCRUB_YIELD;
use engine_core::record::{ExtentCopy, ExtentDigest};
use engine_core::replica::io::Input;
use engine_core::time::Time;

use super::{Quay, Slot, Waiting, Wires};
use crate::store::{ReadError, Store};

impl<S: Store, W: Wires> Quay<S, W> {
    /// A pass over everything begins now.
    pub fn scrub_now(&mut self) {
        if let Some(scrub) = &mut self.scrub {
            scrub.hurry();
        }
    }

    pub(super) fn scrub_tick(&mut self, now: Time) {
        // Whoever waits for the device goes first.
        if self.failed.is_some() || self.waiting.len() > SCRUB_YIELD {
            return;
        }
        while let Some(at) = self.scrub.as_mut().and_then(|scrub| scrub.due(now)) {
            if at == (SegmentId::from_u64(0), ExtentIndex(0)) {
                // A pass begins: checksums in memory would hide what has become of them on the device.
                self.store.look_anew();
            }
            // Members are compared one extent at a time: the pass keeps to that, and ends behind it.
            if matches!(self.slots.get(&at.0), Some(Slot::Open(open)) if open.replica.is_comparing()) {
                return;
            }
            let home = self.next_home(at);
            let Some(scrub) = &mut self.scrub else { return };
            let Some((segment, birth, extent)) = home else {
                if scrub.is_reading() {
                    return;
                }
                scrub.ends();
                continue;
            };
            scrub.reads(now, segment, extent);
            let ticket = self.wait_for(Waiting::Scrub { segment, birth, extent });
            self.store.read_extent(segment, extent, ticket);
        }
    }

    /// The first extent at or behind this place that was ever written.
    fn next_home(&self, (segment, from): (SegmentId, ExtentIndex)) -> Option<(SegmentId, u64, ExtentIndex)> {
        self.slots.range(segment..).find_map(|(at, slot)| {
            let Slot::Open(open) = slot else { return None };
            let from = if *at == segment { from } else { ExtentIndex(0) };
            let (listed, _) = self.store.list(*at, Seq(0), from, 1);
            listed.first().map(|(extent, _)| (*at, open.birth, *extent))
        })
    }

    pub(super) fn scrubbed(
        &mut self,
        segment: SegmentId,
        birth: u64,
        extent: ExtentIndex,
        result: Result<ExtentCopy, ReadError>,
    ) {
        let damaged = matches!(result, Err(ReadError::Damaged(_)));
        if let Some(scrub) = &mut self.scrub {
            scrub.has_read(damaged);
        }
        if damaged {
            tracing::warn!(%segment, %extent, "a scrub found damage");
            self.give_back(segment, birth, Input::Damaged(extent));
        }
        if let Ok(copy) = result {
            let digest = self.digest(segment, &copy);
            self.give_back(segment, birth, Input::Scrubbed { extent, digest });
        }
    }

    /// A copy in short. What was committed since it was read only makes it say less: a change it does not hold is above its
    /// stamp.
    pub(super) fn digest(&self, segment: SegmentId, copy: &ExtentCopy) -> ExtentDigest {
        let (listed, _) = self.store.list(segment, Seq(0), copy.extent, 1);
        let since = listed.first().filter(|(extent, _)| *extent == copy.extent).map(|(_, stamp)| *stamp);
        ExtentDigest::of(copy, since.unwrap_or_default())
    }
}
