//! The authority's seat in the world: the production machine, its records, and the nodes' sessions with it.

use engine_core::authority::io::{Answer, Call, CallId, Effect, Effects, Input, SessionRef};
use engine_core::authority::records::{Key, RecordChange, StoredRecord, Value};
use engine_core::authority::{Authority, Setup};
use engine_core::config::Config;
use engine_core::ids::{NodeId, SegmentId};
use engine_core::limits::REPORT_EVERY;
use engine_core::message::{DeviceOpened, FromAuthority, NodeAddress, Registration, ToAuthority};
use engine_core::time::Span;

use crate::checkers;
use crate::node::CLUSTER;
use crate::world::{Event, World};

impl World {
    /// Starts the authority, over its records.
    pub(crate) fn start_authority(&mut self) {
        let seed = self.random.next_u64();
        let (now, policy) = (self.seat.clock.at(self.now), self.policy);
        let setup = Setup { now, cluster: CLUSTER, grace: self.grace, policy, seed };
        let records = self.seat.records.values().cloned().collect();
        self.seat.machine = Some(Authority::restore(records, &setup).expect("its own records"));
        self.seat.life += 1;
        self.seat.first_call = self.seat.last_call + 1;
        let life = self.seat.life;
        self.after(Span(1), Event::AuthorityTick(life));
    }

    /// The authority's process is gone; its records stay.
    pub(crate) fn stop_authority(&mut self) {
        self.seat.machine = None;
        self.seat.stalled = None;
        self.seat.accepted.clear();
        let sessions = std::mem::take(&mut self.seat.sessions);
        for (node, life) in sessions.into_values() {
            self.register_soon(node, life);
        }
    }

    /// The authority's process stands still; its connections stay.
    pub(crate) fn stall_authority(&mut self, span: Span) {
        if self.seat.machine.is_some() && self.seat.stalled.is_none() {
            self.seat.stalled = Some(Vec::new());
            let life = self.seat.life;
            self.after(span, Event::AuthorityResumes(life));
        }
    }

    /// It goes on: time has passed, and whatever was said meanwhile is heard at once.
    pub(crate) fn resume_authority(&mut self) {
        for input in self.seat.stalled.take().into_iter().flatten() {
            self.tell_authority(input);
        }
    }

    /// The authority is started on a host whose clock stands elsewhere, earlier or later.
    pub(crate) fn move_authority(&mut self, clock: u64) {
        self.stop_authority();
        self.seat.clock = crate::clock::Clock::new(clock);
        self.start_authority();
    }

    pub(crate) fn register_soon(&mut self, node: NodeId, life: u64) {
        let wait = Span(self.random.between(1_000_000, 300_000_000));
        self.after(wait, Event::Register { node, life });
    }

    /// A node's connection to the authority breaks.
    pub(crate) fn drop_session(&mut self, node: NodeId) {
        let Some(session) = self.places.get_mut(&node).and_then(|place| place.session.take()) else { return };
        if let Some((node, life)) = self.seat.sessions.remove(&session) {
            self.tell_authority(Input::Gone(session));
            self.register_soon(node, life);
        }
    }

    pub(crate) fn on_register(&mut self, node: NodeId, life: u64) {
        let cut = self.seat.machine.is_none() || self.seat.cut.contains(&node);
        let Some(place) = self.places.get_mut(&node).filter(|place| place.life == life) else { return };
        let Some(process) = &place.process else { return };
        if cut || place.paused.is_some() {
            return self.register_soon(node, life);
        }
        self.seat.last_session += 1;
        let session = SessionRef(self.seat.last_session);
        place.session = Some(session);
        self.seat.sessions.insert(session, (node, life));
        let address = NodeAddress { node, primary: format!("{node}:1"), replication: format!("{node}:2"), shards: 1 };
        let registration = Registration {
            address,
            zone: place.zone.clone(),
            devices: vec![DeviceOpened {
                device: process.superblock.device,
                boot: process.superblock.boot,
                openings: Box::new(process.superblock.openings),
                capacity: engine::store::Store::space(process.quay.store()).capacity,
            }],
            absent: Vec::new(),
            revision: process.superblock.revision,
        };
        let boot = process.id;
        self.tell_authority(Input::Register { session, boot, registration });
        let part = self.places[&node].process.as_ref().map(|process| process.quay.replicas()).unwrap_or_default();
        let at = self.seat_hears();
        self.at(at, Event::ToAuthority { session, message: ToAuthority::Replicas { part, last: true } });
        self.at(at, Event::Report { node, session });
    }

    /// A node tells the configurations it knows.
    pub(crate) fn show_configs(&mut self, node: NodeId, session: SessionRef) {
        let Some(process) = &self.places[&node].process else { return };
        let part = process.quay.configs();
        let at = self.seat_hears();
        self.at(at, Event::ToAuthority { session, message: ToAuthority::Configs { part, last: true } });
    }

    pub(crate) fn on_report(&mut self, node: NodeId, session: SessionRef) {
        let place = &self.places[&node];
        if place.session != Some(session) || !self.seat.sessions.contains_key(&session) {
            return;
        }
        if let (Some(process), None) = (&place.process, &place.paused) {
            let message = ToAuthority::Report(process.report(self.now));
            let at = self.seat_hears();
            self.at(at, Event::ToAuthority { session, message });
        }
        self.after(REPORT_EVERY, Event::Report { node, session });
    }

    pub(crate) fn tell_authority(&mut self, input: Input) {
        if let Some(unheard) = &mut self.seat.stalled {
            if !matches!(input, Input::Tick) {
                unheard.push(input);
            }
            return;
        }
        let Some(machine) = &mut self.seat.machine else { return };
        let mut effects = Effects::new();
        machine.handle(self.seat.clock.at(self.now), input, &mut effects);
        let list: Vec<Effect> = effects.drain().collect();
        for effect in list {
            match effect {
                Effect::Save(changes) => self.save(changes),
                Effect::Accept { session, node } => {
                    self.seat.accepted.insert(node, session);
                }
                Effect::Refuse { session, reason } => self.refused(session, &reason),
                Effect::Send { to, message } => self.authority_says(to, message),
                Effect::Answer { call, result } => {
                    let result = result.map_err(|error| format!("{error}"));
                    self.seat.answers.insert(call, result);
                }
                Effect::Log(line) => {
                    if self.print {
                        eprintln!("{:>12.6} authority: {line}", self.now.0 as f64 / 1e9);
                    }
                }
            }
        }
    }

    /// The connection is closed; whoever was refused comes again.
    fn refused(&mut self, session: SessionRef, reason: &str) {
        let Some((node, life)) = self.seat.sessions.remove(&session) else { return };
        let place = &self.places[&node];
        assert!(self.damage || place.disks > 0, "{node} is refused: {reason}");
        self.coverage.count("state: a node was refused");
        self.say(&format!("{node} is refused: {reason}"));
        self.register_soon(node, life);
    }

    pub(crate) fn authority_says(&mut self, to: NodeId, message: FromAuthority) {
        if self.seat.mute_decisions && matches!(message, FromAuthority::Decisions(_)) {
            return;
        }
        // By the connection it was accepted with: a later one may be open, and not heard of yet.
        let Some(session) = self.seat.accepted.get(&to).copied() else { return };
        if self.seat.sessions.contains_key(&session) {
            self.coverage.decided(&message);
            if let FromAuthority::Granted { segment, .. } = &message {
                self.seat.granted.push((*segment, self.config(*segment).may_commit()));
            }
            let at = self.seat_heard();
            self.at(at, Event::FromAuthority { session, message });
        }
    }

    pub(crate) fn save(&mut self, changes: Vec<RecordChange>) {
        let stored = self.seat.records.iter().map(|(key, record)| (key, &record.value));
        let changed = changes.iter().filter_map(|change| Some((&change.key, change.value.as_ref()?)));
        let gone: Vec<NodeId> = stored.chain(changed).filter_map(|(key, value)| lost(key, value)).collect();
        for RecordChange { key, expected, value } in changes {
            let version = self.seat.records.get(&key).map_or(0, |record| record.version);
            assert_eq!(version, expected, "a compare-and-swap of {key} failed");
            let Some(value) = value else {
                self.seat.records.remove(&key);
                continue;
            };
            if let Value::Segment(record) = &value {
                let old = self.seat.records.get(&key).and_then(|old| match &old.value {
                    Value::Segment(old) => Some(&old.config),
                    _ => None,
                });
                // What else is known of a segment may change by itself.
                if self.seat.accepting {
                    checkers::jumps(old, &record.config);
                } else if old != Some(&record.config) {
                    checkers::follows(old, &record.config, &gone);
                }
                if let Some(old) = old {
                    self.coverage.installed(old, &record.config);
                }
            }
            self.seat.records.insert(key, StoredRecord { key, version: version + 1, value });
        }
    }

    /// Asks the authority; the answer comes into [`Seat::answers`](crate::world::Seat).
    pub(crate) fn ask(&mut self, request: Call) -> CallId {
        self.seat.last_call += 1;
        let call = CallId(self.seat.last_call);
        self.tell_authority(Input::Call { call, request });
        call
    }

    /// Asks the authority, and waits for its answer.
    pub(crate) fn call(&mut self, request: Call, limit: Span) -> Result<Answer, String> {
        let call = self.ask(request);
        let answered = self.until(limit, |world| world.seat.answers.contains_key(&call));
        assert!(answered, "no answer within {limit:?}");
        self.seat.answers.remove(&call).expect("just seen")
    }

    /// The configuration of a segment.
    pub(crate) fn config(&self, segment: SegmentId) -> Config {
        match self.seat.records.get(&Key::Segment(segment)).map(|record| &record.value) {
            Some(Value::Segment(record)) => record.config.clone(),
            _ => panic!("no segment {segment}"),
        }
    }

    pub(crate) fn all_segments(&self) -> Vec<SegmentId> {
        let segment = |key: &Key| if let Key::Segment(segment) = key { Some(*segment) } else { None };
        self.seat.records.keys().filter_map(segment).collect()
    }
}

/// The node whose device is gone for good, as a person said.
fn lost(key: &Key, value: &Value) -> Option<NodeId> {
    match (key, value) {
        (Key::Node(node), Value::Node(record)) if record.is_gone() => Some(*node),
        _ => None,
    }
}
