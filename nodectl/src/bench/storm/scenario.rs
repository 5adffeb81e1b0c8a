//! What a storm is made of: a cluster, what its clients do, and what goes wrong when. A TOML file; `docs/storm.md`.
//!
//! Both policies get the same scenario. A file that can't be meant is refused, with the name of the field.

use std::path::Path;

use engine_core::authority::document::Spread;
use engine_core::limits::{COPIES_MAX, EXTENT_SIZE, GRACE_DEFAULT, SEGMENT_SIZE_MAX, SEGMENT_SIZE_MIN};
use engine_core::time::Span;
use serde::{Deserialize, Serialize};

use crate::failure::Failure;
use crate::units;

/// Most nodes of a scenario: their ids are 16 bits, and a region is no larger.
pub(super) const NODES_MAX: usize = 20_000;

/// Scenarios that need no file.
pub(super) const SHIPPED: [(&str, &str); 5] = [
    ("april-2011", include_str!("../../../../fixtures/scenarios/april-2011.toml")),
    ("node-loss", include_str!("../../../../fixtures/scenarios/node-loss.toml")),
    ("zone-loss", include_str!("../../../../fixtures/scenarios/zone-loss.toml")),
    ("flapping-link", include_str!("../../../../fixtures/scenarios/flapping-link.toml")),
    ("authority-outage", include_str!("../../../../fixtures/scenarios/authority-outage.toml")),
];

/// A time in a scenario: `90s`, `2h30m`.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Deserialize)]
#[serde(try_from = "String")]
pub(super) struct Moment(pub(super) Span);

impl TryFrom<String> for Moment {
    type Error = String;

    fn try_from(text: String) -> Result<Self, String> {
        let time = units::parse_duration(&text)?;
        u64::try_from(time.as_nanos()).map(|nanos| Self(Span(nanos))).map_err(|_| format!("`{text}` is too long"))
    }
}

/// A size, or a rate per second.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Deserialize)]
#[serde(try_from = "String")]
pub(super) struct Size(pub(super) u64);

impl TryFrom<String> for Size {
    type Error = String;

    fn try_from(text: String) -> Result<Self, String> {
        units::parse_size(&text).map(Self)
    }
}

/// A whole scenario.
#[derive(Debug, Clone, Deserialize)]
#[serde(deny_unknown_fields)]
pub(super) struct Scenario {
    pub(super) name: String,
    pub(super) about: String,
    /// How long both are simulated.
    pub(super) duration: Moment,
    pub(super) cluster: Cluster,
    pub(super) network: Network,
    pub(super) clients: Clients,
    pub(super) api: Api,
    #[serde(default)]
    pub(super) naive: Naive,
    #[serde(default, rename = "fault")]
    pub(super) faults: Vec<Fault>,
}

/// Nodes and what is on them.
#[derive(Debug, Clone, Deserialize)]
#[serde(deny_unknown_fields)]
pub(super) struct Cluster {
    pub(super) zones: Vec<String>,
    pub(super) nodes_per_zone: usize,
    /// Of one node.
    pub(super) capacity: Size,
    /// Part of all capacity that segments book to begin with.
    pub(super) fill: f64,
    pub(super) segment_size: Size,
    pub(super) copies: u8,
    pub(super) min_copies: u8,
    pub(super) spread: Spread,
    #[serde(default = "grace")]
    pub(super) grace: Moment,
}

const fn grace() -> Moment {
    Moment(GRACE_DEFAULT)
}

/// What nodes can carry.
#[derive(Debug, Clone, Deserialize)]
#[serde(deny_unknown_fields)]
pub(super) struct Network {
    /// Bytes of copies a node sends, and takes, per second over the primary network.
    pub(super) copy_rate: Size,
    /// What a zone's replication network carries per second, per node of the zone.
    pub(super) replication_capacity: Size,
}

/// What clients do to each segment.
#[derive(Debug, Clone, Deserialize)]
#[serde(deny_unknown_fields)]
pub(super) struct Clients {
    pub(super) writes_per_second: f64,
    pub(super) reads_per_second: f64,
    pub(super) request_size: Size,
    /// Part of a segment that writes go to.
    pub(super) working_set: f64,
}

/// What people ask the control plane for.
#[derive(Debug, Clone, Deserialize)]
#[serde(deny_unknown_fields)]
pub(super) struct Api {
    /// `CreateVolume` of one segment, each deleted when it is done; per zone.
    pub(super) creates_per_second: f64,
}

/// How the policy of 2011 does it. Each default cites the report (docs/storm.md).
#[derive(Debug, Clone, Copy, Deserialize, Serialize)]
#[serde(deny_unknown_fields, default)]
pub(super) struct Naive {
    /// Questions for space a node asks per second while it searches: without pause, each as soon as the last is answered.
    pub(super) searches_per_second: u32,
    /// Threads of the one regional pool.
    pub(super) pool_threads: usize,
    /// Seconds for which a call that can't be done holds its thread.
    pub(super) long_timeout: u64,
    /// Seconds after which a caller gives up and asks again; what it asked before stays in the queue.
    pub(super) caller_timeout: u64,
    /// Milliseconds for which a call that can be done holds its thread.
    pub(super) service_millis: u64,
    /// Copies one node has to close within a second for the race that crashes it to be possible.
    pub(super) crash_closes: u32,
    /// How likely it then is.
    pub(super) crash_chance: f64,
}

impl Default for Naive {
    fn default() -> Self {
        Self {
            searches_per_second: 100,
            pool_threads: 200,
            long_timeout: 60,
            caller_timeout: 30,
            service_millis: 50,
            crash_closes: 10,
            crash_chance: 0.02,
        }
    }
}

/// What goes wrong.
#[derive(Debug, Clone, Deserialize)]
#[serde(tag = "kind", rename_all = "kebab-case", deny_unknown_fields)]
pub(super) enum Fault {
    /// Traffic of part of a zone's nodes goes over the replication network. Where that can't carry it, both fail.
    ShiftTraffic { at: Moment, until: Moment, zone: String, share: f64 },
    /// Nodes nobody can reach, and that reach nobody.
    Isolate { at: Moment, until: Moment, zone: String, share: f64 },
    /// Nodes that are gone for good.
    LoseNodes { at: Moment, zone: String, nodes: Option<usize>, share: Option<f64> },
    /// Nodes that come and go.
    Flap { at: Moment, until: Moment, zone: String, share: f64, down: Moment, up: Moment },
    /// The control plane of a zone says and hears nothing (the regional one, where there is only one).
    StopAuthority { at: Moment, until: Moment, zone: String },
}

impl Fault {
    pub(super) const fn at(&self) -> Span {
        match self {
            Self::ShiftTraffic { at, .. }
            | Self::Isolate { at, .. }
            | Self::LoseNodes { at, .. }
            | Self::Flap { at, .. }
            | Self::StopAuthority { at, .. } => at.0,
        }
    }

    pub(super) const fn until(&self) -> Option<Span> {
        match self {
            Self::ShiftTraffic { until, .. }
            | Self::Isolate { until, .. }
            | Self::Flap { until, .. }
            | Self::StopAuthority { until, .. } => Some(until.0),
            Self::LoseNodes { .. } => None,
        }
    }

    pub(super) fn zone(&self) -> &str {
        match self {
            Self::ShiftTraffic { zone, .. }
            | Self::Isolate { zone, .. }
            | Self::LoseNodes { zone, .. }
            | Self::Flap { zone, .. }
            | Self::StopAuthority { zone, .. } => zone,
        }
    }

    fn share(&self) -> Option<f64> {
        match self {
            Self::ShiftTraffic { share, .. } | Self::Isolate { share, .. } | Self::Flap { share, .. } => Some(*share),
            Self::LoseNodes { share, .. } => *share,
            Self::StopAuthority { .. } => None,
        }
    }
}

impl Scenario {
    /// A shipped one by its name, or a file.
    pub(super) fn load(name: &str) -> Result<Self, Failure> {
        let shipped = SHIPPED.iter().find(|(known, _)| *known == name).map(|(_, text)| (*text).to_owned());
        let text = match shipped {
            Some(text) => text,
            None if Path::new(name).exists() => std::fs::read_to_string(name)
                .map_err(|error| Failure::failed(format!("could not read {name}: {error}")))?,
            None => {
                let known: Vec<&str> = SHIPPED.iter().map(|(known, _)| *known).collect();
                let what = format!("there is no scenario and no file {name}; shipped are {}", known.join(", "));
                return Err(Failure::new(crate::failure::Exit::NotFound, what));
            }
        };
        Self::parse(&text).map_err(|error| {
            Failure::usage(format!("scenario {name}: {error}")).next("docs/storm.md says what a scenario can hold")
        })
    }

    /// Reads and checks it.
    pub(super) fn parse(text: &str) -> Result<Self, String> {
        let scenario: Self = toml::from_str(text).map_err(|error| error.to_string().trim_end().to_owned())?;
        scenario.check()?;
        Ok(scenario)
    }

    /// The same with so many nodes in all.
    pub(super) fn with_nodes(mut self, nodes: usize) -> Result<Self, String> {
        self.cluster.nodes_per_zone = nodes.div_ceil(self.cluster.zones.len());
        self.check()?;
        Ok(self)
    }

    fn check(&self) -> Result<(), String> {
        self.check_cluster()?;
        self.check_load()?;
        self.faults.iter().enumerate().try_for_each(|(at, fault)| self.check_fault(at + 1, fault))
    }

    fn check_cluster(&self) -> Result<(), String> {
        let Cluster { zones, nodes_per_zone, capacity, fill, segment_size, copies, min_copies, spread, .. } =
            &self.cluster;
        let twice = (1..zones.len()).any(|at| zones[..at].contains(&zones[at]));
        ensure(!zones.is_empty() && zones.len() <= 16 && !twice, "cluster.zones", "1 to 16 different names")?;
        let count = usize::from(*copies);
        ensure((2..=COPIES_MAX).contains(&count), "cluster.copies", "2 to 5")?;
        ensure((1..=*copies).contains(min_copies), "cluster.min_copies", "1 to copies")?;
        ensure(
            *nodes_per_zone > count && nodes_per_zone * zones.len() <= NODES_MAX,
            "cluster.nodes_per_zone",
            "more than copies, and no more than 20000 nodes in all",
        )?;
        ensure(
            *spread == Spread::Node || zones.len() >= count,
            "cluster.spread",
            "`zone` only where there are as many zones as copies",
        )?;
        ensure(
            segment_size.0.is_power_of_two() && (SEGMENT_SIZE_MIN..=SEGMENT_SIZE_MAX).contains(&segment_size.0),
            "cluster.segment_size",
            "a power of two from 64M to 64G",
        )?;
        ensure(
            capacity.0 >= 8 * segment_size.0 && capacity.0 <= 1 << 50,
            "cluster.capacity",
            "at least eight segments, at most 1P",
        )?;
        ensure(*fill > 0.0 && *fill <= 0.98, "cluster.fill", "above 0, at most 0.98")
    }

    fn check_load(&self) -> Result<(), String> {
        let minute = Span::seconds(60);
        ensure(
            self.duration.0 >= minute && self.duration.0 <= Span::seconds(24 * 3600),
            "duration",
            "from one minute to 24 hours",
        )?;
        ensure(self.network.copy_rate.0 >= 1 << 20, "network.copy_rate", "at least 1M")?;
        ensure(self.network.replication_capacity.0 > 0, "network.replication_capacity", "more than nothing")?;
        let Clients { writes_per_second, reads_per_second, request_size, working_set } = &self.clients;
        ensure((0.0..=1e6).contains(writes_per_second), "clients.writes_per_second", "0 to 1000000")?;
        ensure((0.0..=1e6).contains(reads_per_second), "clients.reads_per_second", "0 to 1000000")?;
        ensure((4096..=1 << 20).contains(&request_size.0), "clients.request_size", "4k to 1M")?;
        ensure(*working_set > 0.0 && *working_set <= 1.0, "clients.working_set", "above 0, at most 1")?;
        let creates = self.api.creates_per_second;
        ensure((0.01..=1000.0).contains(&creates), "api.creates_per_second", "0.01 to 1000")?;
        let naive = &self.naive;
        ensure(naive.pool_threads > 0 && naive.pool_threads <= 100_000, "naive.pool_threads", "1 to 100000")?;
        ensure((0.0..=1.0).contains(&naive.crash_chance), "naive.crash_chance", "0 to 1")?;
        ensure(naive.searches_per_second <= 10_000, "naive.searches_per_second", "at most 10000")?;
        ensure(
            naive.caller_timeout > 0 && naive.long_timeout > 0,
            "naive.caller_timeout",
            "at least 1, as long_timeout",
        )?;
        ensure(naive.service_millis > 0, "naive.service_millis", "at least 1")
    }

    fn check_fault(&self, number: usize, fault: &Fault) -> Result<(), String> {
        let name = |field: &str| format!("fault {number}: {field}");
        ensure(fault.at() < self.duration.0, &name("at"), "before the scenario ends")?;
        ensure(fault.until().is_none_or(|until| until > fault.at()), &name("until"), "after at")?;
        let known = self.cluster.zones.iter().any(|zone| zone == fault.zone());
        ensure(known, &name("zone"), "one of cluster.zones")?;
        ensure(fault.share().is_none_or(|share| share > 0.0 && share <= 1.0), &name("share"), "above 0, at most 1")?;
        match fault {
            Fault::LoseNodes { nodes, share, .. } => {
                ensure(nodes.is_some() != share.is_some(), &name("nodes"), "given, or share instead")?;
                let all = self.cluster.nodes_per_zone;
                ensure(nodes.is_none_or(|nodes| (1..=all).contains(&nodes)), &name("nodes"), "1 to all of the zone")
            }
            Fault::Flap { down, up, .. } => {
                let second = Span::seconds(1);
                ensure(down.0 >= second && up.0 >= second, &name("down"), "at least 1s, as up")
            }
            _ => Ok(()),
        }
    }

    /// Extents of a segment.
    pub(super) fn extents(&self) -> u32 {
        u32::try_from(self.cluster.segment_size.0 / EXTENT_SIZE).unwrap_or(u32::MAX)
    }

    /// The zone that is hit first.
    pub(super) fn hit_zone(&self) -> usize {
        let first = self.faults.iter().min_by_key(|fault| fault.at());
        first.and_then(|fault| self.cluster.zones.iter().position(|zone| zone == fault.zone())).unwrap_or(0)
    }
}

fn ensure(holds: bool, field: &str, rule: &str) -> Result<(), String> {
    if holds { Ok(()) } else { Err(format!("{field} has to be {rule}")) }
}

#[cfg(test)]
mod tests {
    #![allow(clippy::unwrap_used)]
    use super::*;

    #[test]
    fn what_is_shipped_can_be_read() {
        for (name, text) in SHIPPED {
            let scenario = Scenario::parse(text).unwrap_or_else(|error| panic!("{name}: {error}"));
            assert_eq!(scenario.name, name);
            scenario.with_nodes(60).unwrap();
        }
    }

    #[test]
    fn what_cannot_be_meant_is_refused_by_the_name_of_its_field() {
        let good = SHIPPED[0].1;
        let bad = [
            ("fill = 0.85", "fill = 1.85", "cluster.fill"),
            ("copies = 3", "copies = 9", "cluster.copies"),
            ("zone = \"a\"", "zone = \"x\"", "fault 1: zone"),
            ("working_set", "workingset", "workingset"),
            ("segment_size = \"1G\"", "segment_size = \"3G\"", "cluster.segment_size"),
            ("spread = \"node\"", "spread = \"rack\"", "spread"),
            ("capacity = \"353G\"", "capacity = \"big\"", "`big` is not a size"),
        ];
        for (from, to, field) in bad {
            assert!(good.contains(from), "{from}");
            let error = Scenario::parse(&good.replacen(from, to, 1)).unwrap_err();
            assert!(error.contains(field), "{error}");
        }
    }
}
