//! An authority with virtual time, nodes that answer when told to, and records that survive.

use std::collections::BTreeMap;

use engine_core::authority::document::{CreateVolume, Status};
use engine_core::authority::io::{Answer, Call, CallError, CallId, Effect, Effects, Input, SessionRef};
use engine_core::authority::policy::Policy;
use engine_core::authority::records::{Key, StoredRecord, Value};
use engine_core::authority::{Authority, Setup};
use engine_core::config::Config;
use engine_core::ids::{BootCount, BootId, ClusterId, DeviceId, NodeId, Revision};
use engine_core::limits::{AUTHORITY_TICK, BREAKER_SETTLE};
use engine_core::message::{
    DeviceJudged, DeviceOpened, FromAuthority, Judgement, NodeAddress, Registration, Report, ToAuthority,
};
use engine_core::openings::{Opening, Openings};
use engine_core::time::{Span, Time};

pub(crate) struct World {
    pub(crate) core: Authority,
    policy: Policy,
    pub(crate) now: Time,
    records: BTreeMap<String, StoredRecord>,
    answers: BTreeMap<CallId, Result<Answer, CallError>>,
    /// Messages to nodes not looked at yet.
    pub(crate) sent: Vec<(NodeId, FromAuthority)>,
    pub(crate) refused: Vec<String>,
    calls: u64,
    sessions: u64,
    session_of: BTreeMap<NodeId, SessionRef>,
    /// What sound devices remember.
    openings: BTreeMap<DeviceId, Openings>,
}

fn setup(now: Time, policy: Policy) -> Setup {
    Setup { now, cluster: ClusterId(5), grace: Span::seconds(5), policy, seed: 1 }
}

pub(crate) fn registration(id: u16) -> Registration {
    Registration {
        address: NodeAddress {
            node: NodeId(id),
            primary: format!("p:{id}"),
            replication: format!("r:{id}"),
            shards: 1,
        },
        zone: ["c", "a", "b"][usize::from(id) % 3].into(),
        devices: vec![device(u128::from(id))],
        absent: Vec::new(),
        revision: Revision(0),
    }
}

/// A device opened for the first time.
pub(crate) fn device(id: u128) -> DeviceOpened {
    DeviceOpened { device: DeviceId(id), boot: BootCount(1), openings: Box::default(), capacity: 10_000 }
}

/// With its first device opened so often.
pub(crate) fn booted(count: u64, mut registration: Registration) -> Registration {
    registration.devices[0].boot = BootCount(count);
    registration
}

/// With its first device opened so often, carrying these openings.
pub(crate) fn image(count: u64, openings: Box<Openings>, registration: Registration) -> Registration {
    let mut registration = booted(count, registration);
    registration.devices[0].openings = openings;
    registration
}

impl World {
    /// An authority with nodes n1 to n`nodes` in zones a, b, c in turns.
    pub(crate) fn new(nodes: u16) -> Self {
        Self::with(nodes, Policy { breaker_stable: Span::seconds(20), ..Policy::default() })
    }

    /// The same with another policy.
    pub(crate) fn with(nodes: u16, policy: Policy) -> Self {
        let now = Time(1_000_000_000_000);
        let core = Authority::restore(Vec::new(), &setup(now, policy)).unwrap();
        let mut world = Self {
            core,
            policy,
            now,
            records: BTreeMap::new(),
            answers: BTreeMap::new(),
            sent: Vec::new(),
            refused: Vec::new(),
            calls: 0,
            sessions: 0,
            session_of: BTreeMap::new(),
            openings: BTreeMap::new(),
        };
        world.handle(Input::Tick);
        for id in 1..=nodes {
            world.register(registration(id));
        }
        // No permit is granted before it is known who is out of touch.
        world.pass(BREAKER_SETTLE);
        world.sent.clear();
        world
    }

    /// The authority ends without notice and starts again from what is durable.
    pub(crate) fn restart(&mut self) {
        let records = self.records.values().cloned().collect();
        self.core = Authority::restore(records, &setup(self.now, self.policy)).unwrap();
        self.session_of.clear();
        self.sent.clear();
        self.answers.clear();
    }

    pub(crate) fn handle(&mut self, input: Input) {
        let mut effects = Effects::new();
        self.core.handle(self.now, input, &mut effects);
        let mut told = false;
        for effect in effects.drain() {
            match effect {
                Effect::Save(changes) => {
                    assert!(!told, "a save stands in front of what it justifies");
                    assert!(changes.iter().any(|change| change.key == Key::Cluster), "every save moves the revision");
                    for change in changes {
                        let key = change.key.to_string();
                        let found = self.records.get(&key).map_or(0, |record| record.version);
                        assert_eq!(found, change.expected, "version of {key}");
                        match change.value {
                            Some(value) => drop(
                                self.records.insert(key, StoredRecord { key: change.key, version: found + 1, value }),
                            ),
                            None => drop(self.records.remove(&key)),
                        }
                    }
                }
                Effect::Send { to, message } => {
                    told = true;
                    self.sent.push((to, message));
                }
                Effect::Answer { call, result } => {
                    told = true;
                    assert!(self.answers.insert(call, result).is_none(), "one answer per call");
                }
                Effect::Refuse { reason, .. } => self.refused.push(reason),
                Effect::Accept { .. } | Effect::Log(_) => {}
            }
        }
    }

    pub(crate) fn register(&mut self, registration: Registration) {
        self.register_as(registration, 1);
    }

    /// Registers, and says that it holds nothing.
    pub(crate) fn back(&mut self, registration: Registration) {
        let node = registration.address.node;
        self.register(registration);
        self.say(node, ToAuthority::Replicas { part: Vec::new(), last: true });
    }

    /// The authority's records, to be brought back later.
    pub(crate) fn backup(&self) -> BTreeMap<String, StoredRecord> {
        self.records.clone()
    }

    /// The authority starts again, from these records.
    pub(crate) fn restore(&mut self, records: BTreeMap<String, StoredRecord>) {
        self.records = records;
        self.restart();
    }

    /// As the process with this boot id, which has opened the device as it was when it was opened last.
    pub(crate) fn register_as(&mut self, mut registration: Registration, boot: u128) {
        for device in &mut registration.devices {
            let openings = self.openings.entry(device.device).or_default();
            let opening = Opening { id: BootId(boot), count: device.boot };
            if !openings.have(opening) {
                openings.open(opening);
            }
            *device.openings = *openings;
        }
        self.register_image(registration, boot);
    }

    /// With a device as the registration tells of it.
    pub(crate) fn register_image(&mut self, registration: Registration, boot: u128) {
        self.sessions += 1;
        let (session, node, refused) = (SessionRef(self.sessions), registration.address.node, self.refused.len());
        self.handle(Input::Register { session, boot: BootId(boot), registration });
        if self.refused.len() == refused {
            self.session_of.insert(node, session);
        }
    }

    /// Whether the node's only device was trusted when it was taken in last, and its boot counter from then on.
    pub(crate) fn welcome(&mut self, node: u16) -> (bool, BootCount) {
        match self.judged(node).as_slice() {
            [DeviceJudged { judgement: Judgement::Sound { boot }, .. }] => (true, *boot),
            [DeviceJudged { judgement: Judgement::Distrusted { boot }, .. }] => (false, *boot),
            other => panic!("{other:?}"),
        }
    }

    /// What was said of each device when the node was taken in last.
    pub(crate) fn judged(&mut self, node: u16) -> Vec<DeviceJudged> {
        let said = self.heard(NodeId(node)).into_iter().rev().find_map(|message| match message {
            FromAuthority::Registered { devices, .. } => Some(devices),
            _ => None,
        });
        said.unwrap()
    }

    pub(crate) fn leave(&mut self, node: u16) {
        let session = self.session_of.remove(&NodeId(node)).unwrap();
        self.handle(Input::Gone(session));
    }

    pub(crate) fn say(&mut self, node: NodeId, message: ToAuthority) {
        if let Some(session) = self.session_of.get(&node).copied() {
            self.handle(Input::Node { session, message });
        }
    }

    /// Time passes; nodes that have a session report.
    pub(crate) fn pass(&mut self, span: Span) {
        let end = self.now + span;
        while self.now < end {
            self.now = self.now + AUTHORITY_TICK;
            let nodes: Vec<NodeId> = self.session_of.keys().copied().collect();
            for node in nodes {
                self.say(node, ToAuthority::Report(Report::default()));
            }
            self.handle(Input::Tick);
        }
    }

    pub(crate) fn call(&mut self, request: Call) -> CallId {
        self.calls += 1;
        let call = CallId(self.calls);
        self.handle(Input::Call { call, request });
        call
    }

    pub(crate) fn answer(&mut self, call: CallId) -> Option<Result<Answer, CallError>> {
        self.answers.remove(&call)
    }

    /// Nodes confirm what they were asked for, until nothing is left to confirm.
    pub(crate) fn settle(&mut self) {
        while !self.sent.is_empty() {
            for (node, message) in std::mem::take(&mut self.sent) {
                let answer = match message {
                    FromAuthority::Create { config } => ToAuthority::Created {
                        segment: config.segment,
                        incarnation: config.incarnation,
                        result: Ok(()),
                    },
                    FromAuthority::Release { segment, incarnation } => ToAuthority::Released { segment, incarnation },
                    FromAuthority::Fence { segment, generation } => ToAuthority::FenceDone { segment, generation },
                    FromAuthority::Reserve { permit, segment, .. } => {
                        ToAuthority::Reserved { permit, segment, granted: true }
                    }
                    _ => continue,
                };
                self.say(node, answer);
            }
        }
    }

    pub(crate) fn create(&mut self, name: &str, size: u64) -> CallId {
        self.call(Call::Create(wish(name, size)))
    }

    /// A volume of this many segments of 64 MiB.
    pub(crate) fn volume(&mut self, name: &str, segments: u64) {
        let call = self.create(name, segments * (64 << 20));
        self.settle();
        self.answer(call).unwrap().unwrap();
    }

    pub(crate) fn segment(&self, index: u32) -> Config {
        let found = self.records.values().find_map(|record| match &record.value {
            Value::Segment(segment) if segment.config.segment.index == index => Some(segment.config.clone()),
            _ => None,
        });
        found.unwrap()
    }

    /// All configurations.
    pub(crate) fn segments(&self) -> Vec<Config> {
        let config = |record: &StoredRecord| match &record.value {
            Value::Segment(segment) => Some(segment.config.clone()),
            _ => None,
        };
        self.records.values().filter_map(config).collect()
    }

    pub(crate) fn records_of(&self, kind: &str) -> usize {
        self.records.keys().filter(|key| key.starts_with(kind)).count()
    }

    pub(crate) fn status(&mut self) -> Status {
        let call = self.call(Call::Status);
        match self.answer(call) {
            Some(Ok(Answer::Status(status))) => *status,
            other => panic!("{other:?}"),
        }
    }

    pub(crate) fn heard(&mut self, node: NodeId) -> Vec<FromAuthority> {
        let (own, rest) = std::mem::take(&mut self.sent).into_iter().partition(|(to, _)| *to == node);
        self.sent = rest;
        own.into_iter().map(|(_, message)| message).collect()
    }
}

pub(crate) fn wish(name: &str, size: u64) -> CreateVolume {
    CreateVolume {
        name: name.into(),
        size,
        copies: None,
        min_copies: None,
        segment_size: Some(64 << 20),
        zone: None,
        spread: None,
        iops: None,
        mibps: None,
    }
}
