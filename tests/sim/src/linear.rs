//! Linearizability of every block: each write takes effect at one instant between its beginning and its answer, each
//! read shows the last write before an instant between its own (I3, I7).
//!
//! Intuition (Gibbons and Korach, "Testing shared memories", 1997): where no two writes write the same, everything that
//! wrote or read one version is a cluster, and a cluster occupies its block at least from the first end in it to the last
//! beginning in it. When that is a span (*forward*), no other cluster may occupy any of it; when it is none (*backward*),
//! the cluster fits anywhere between the two, but not inside somebody else's span. There is an order that explains
//! everything seen exactly if no two clusters are in each other's way: nothing is missed, nothing is made up.
//!
//! A write without an answer (its client died) may have taken effect, or not: without a reader it is in nobody's way. It
//! has to be decided by the time its attachment is fenced (I2): from then on that counts as its end.

use std::collections::BTreeMap;
use std::fmt;

use engine_core::ids::SegmentId;
use engine_core::time::Time;

/// The end of what has not ended.
const NEVER: Time = Time(u64::MAX);

/// One block of one segment.
pub(crate) type Place = (SegmentId, u32);

/// One version of one block: who wrote and read it, and when.
#[derive(Debug, Clone, Copy)]
struct Cluster {
    first_end: Time,
    last_start: Time,
    /// Nobody has seen it, and nobody was told that it is there.
    unseen: bool,
    /// It writes zeros, like others.
    zero: bool,
}

impl Cluster {
    const fn is_forward(&self) -> bool {
        self.first_end.0 < self.last_start.0
    }

    fn begins(&self) -> Time {
        self.first_end.min(self.last_start)
    }

    fn ends(&self) -> Time {
        self.first_end.max(self.last_start)
    }
}

/// Everything written and read.
#[derive(Debug, Default)]
pub(crate) struct Linear {
    blocks: BTreeMap<Place, BTreeMap<u64, Cluster>>,
}

/// Two versions that no order explains.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) struct Torn {
    place: Place,
    one: u64,
    other: u64,
    span: (Time, Time),
}

impl fmt::Display for Torn {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let Self { place: (segment, block), one, other, span } = self;
        write!(
            f,
            "{segment} block {block}: version {one} was there from {} to {} ns, and version {other} in between (I3, I7)",
            span.0.0, span.1.0
        )
    }
}

impl Linear {
    /// A write of this version begins.
    pub(crate) fn begins(&mut self, now: Time, place: Place, version: u64, zero: bool) {
        let versions = self.blocks.entry(place).or_insert_with(fresh);
        let cluster = Cluster { first_end: NEVER, last_start: now, unseen: true, zero };
        assert!(versions.insert(version, cluster).is_none(), "version {version} of {place:?} is written twice");
    }

    /// It was acknowledged.
    pub(crate) fn acknowledged(&mut self, now: Time, place: Place, version: u64) {
        if let Some(cluster) = self.blocks.get_mut(&place).and_then(|versions| versions.get_mut(&version)) {
            cluster.first_end = cluster.first_end.min(now);
            cluster.unseen = false;
        }
    }

    /// It was never acknowledged, and whoever wrote it is fenced: it has taken effect by now or never will (I2).
    pub(crate) fn abandoned(&mut self, now: Time, place: Place, version: u64) {
        if let Some(cluster) = self.blocks.get_mut(&place).and_then(|versions| versions.get_mut(&version)) {
            cluster.first_end = cluster.first_end.min(now);
        }
    }

    /// What was there by now may be there or not: as if all of it were begun now, and answered by nobody.
    pub(crate) fn lost(&mut self, now: Time) {
        for cluster in self.blocks.values_mut().flat_map(BTreeMap::values_mut) {
            (cluster.first_end, cluster.last_start, cluster.unseen) = (NEVER, now, true);
        }
    }

    /// A read has returned a version; 0: zeros.
    pub(crate) fn read(&mut self, begun: Time, now: Time, place: Place, version: u64) {
        let versions = self.blocks.entry(place).or_insert_with(fresh);
        let version = if version == 0 {
            // Several writes write zeros: which of them was seen is known only while there is one.
            let mut zeros = versions.iter().filter(|(_, cluster)| cluster.zero).map(|(version, _)| *version);
            match (zeros.next(), zeros.next()) {
                (Some(only), None) => only,
                _ => return,
            }
        } else {
            version
        };
        let cluster = versions.get_mut(&version);
        let cluster = cluster.unwrap_or_else(|| panic!("{place:?} shows version {version}, which nobody wrote (I14)"));
        cluster.first_end = cluster.first_end.min(now);
        cluster.last_start = cluster.last_start.max(begun);
        cluster.unseen = false;
    }

    /// Looks for an order that explains everything.
    pub(crate) fn check(&self) -> Result<(), Torn> {
        self.blocks.iter().try_for_each(|(place, versions)| check_block(*place, versions))
    }
}

/// A block that nobody has written: zeros, since ever.
fn fresh() -> BTreeMap<u64, Cluster> {
    BTreeMap::from([(0, Cluster { first_end: Time(0), last_start: Time(0), unseen: false, zero: true })])
}

fn check_block(place: Place, versions: &BTreeMap<u64, Cluster>) -> Result<(), Torn> {
    let mut clusters: Vec<(u64, Cluster)> =
        versions.iter().filter(|(_, cluster)| !cluster.unseen).map(|(version, cluster)| (*version, *cluster)).collect();
    clusters.sort_by_key(|(version, cluster)| (cluster.begins(), *version));
    // Everything before begins earlier; of the forward ones among it the one that ends last decides.
    let mut longest: Option<(u64, Cluster)> = None;
    for (version, cluster) in clusters {
        let (begins, ends) = (cluster.begins(), cluster.ends());
        if let Some((other, forward)) = longest {
            let overlaps = cluster.is_forward() && begins < forward.ends();
            let inside = !cluster.is_forward() && forward.begins() < begins && ends < forward.ends();
            if overlaps || inside {
                return Err(Torn { place, one: other, other: version, span: (forward.begins(), forward.ends()) });
            }
        }
        let longer = longest.is_none_or(|(_, forward)| forward.ends() < ends);
        if cluster.is_forward() && longer {
            longest = Some((version, cluster));
        }
    }
    Ok(())
}

#[cfg(test)]
mod tests {
    use engine_core::ids::VolumeId;

    use super::*;

    const PLACE: Place = (SegmentId { volume: VolumeId(1), index: 0 }, 3);

    /// Writes as (version, begun, answered; 0 is never), reads as (version, begun, answered).
    fn order(writes: &[(u64, u64, u64)], reads: &[(u64, u64, u64)]) -> Result<(), Torn> {
        let mut linear = Linear::default();
        for (version, begun, answered) in writes {
            linear.begins(Time(*begun), PLACE, *version, false);
            if *answered > 0 {
                linear.acknowledged(Time(*answered), PLACE, *version);
            }
        }
        for (version, begun, answered) in reads {
            linear.read(Time(*begun), Time(*answered), PLACE, *version);
        }
        linear.check()
    }

    #[test]
    fn what_can_be_explained_passes() {
        assert_eq!(order(&[(1, 10, 20), (2, 30, 40)], &[(0, 5, 15), (1, 12, 35), (2, 31, 33), (2, 50, 60)]), Ok(()));
        // Two writes at the same time, in either order.
        assert_eq!(order(&[(1, 10, 50), (2, 10, 50)], &[(2, 60, 70)]), Ok(()));
        assert_eq!(order(&[(1, 10, 50), (2, 10, 50)], &[(1, 60, 70)]), Ok(()));
        // Nobody was told about 2, nobody has seen it; or somebody has, late.
        assert_eq!(order(&[(1, 10, 20), (2, 30, 0), (3, 40, 50)], &[(3, 60, 70)]), Ok(()));
        assert_eq!(order(&[(1, 10, 20), (2, 30, 0)], &[(1, 60, 70), (2, 80, 90)]), Ok(()));
    }

    #[test]
    fn what_cannot_be_explained_is_found() {
        let lost = order(&[(1, 10, 20), (2, 30, 40)], &[(1, 50, 60)]);
        assert!(lost.is_err(), "an acknowledged write is gone");
        let unwritten = order(&[(1, 10, 20)], &[(0, 30, 40)]);
        assert!(unwritten.is_err(), "and so is the first one");
        let back = order(&[(1, 10, 20), (2, 30, 0)], &[(2, 40, 50), (1, 60, 70)]);
        assert!(back.is_err(), "what was seen once stays");
        let both = order(&[(1, 10, 50), (2, 10, 50)], &[(1, 60, 70), (2, 80, 90)]);
        assert!(both.is_err(), "one of the two was last");
        let between = order(&[(1, 10, 20), (2, 30, 40)], &[(1, 12, 18), (1, 45, 50), (2, 60, 70)]);
        assert!(between.is_err());
    }

    #[test]
    fn an_abandoned_write_is_decided_when_its_attachment_is_fenced() {
        let mut linear = Linear::default();
        linear.begins(Time(10), PLACE, 1, false);
        linear.acknowledged(Time(20), PLACE, 1);
        linear.begins(Time(30), PLACE, 2, false);
        linear.abandoned(Time(40), PLACE, 2);
        linear.read(Time(50), Time(60), PLACE, 1);
        assert_eq!(linear.check(), Ok(()));
        linear.read(Time(70), Time(80), PLACE, 2);
        assert!(linear.check().is_err(), "it came after all");
    }

    #[test]
    fn zeros_of_unknown_origin_prove_nothing() {
        let mut linear = Linear::default();
        linear.begins(Time(10), PLACE, 1, false);
        linear.acknowledged(Time(20), PLACE, 1);
        linear.begins(Time(30), PLACE, 2, true);
        linear.acknowledged(Time(40), PLACE, 2);
        linear.read(Time(50), Time(60), PLACE, 0);
        assert_eq!(linear.check(), Ok(()));
        linear.read(Time(70), Time(80), PLACE, 1);
        assert!(linear.check().is_err(), "the zeros were acknowledged");
    }
}
