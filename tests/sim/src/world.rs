//! The simulated world: nodes, their networks, the authority and clients under one virtual clock.
//!
//! Everything that happens is an event in one queue, ordered by time and number; every choice comes from one seeded
//! generator. The same seed gives the same trace, byte for byte ([`World::trace`]).

use std::cell::RefCell;
use std::collections::{BTreeMap, BTreeSet};
use std::rc::Rc;

use engine::device::memory::Disk;
use engine_core::authority::Authority;
use engine_core::authority::io::{Answer, CallId, Input, SessionRef};
use engine_core::authority::policy::Policy;
use engine_core::authority::records::{Key, StoredRecord};
use engine_core::ids::{NodeId, SegmentId};
use engine_core::limits::{AUTHORITY_TICK, TICK};
use engine_core::message::{FromAuthority, Lane, PeerMessage, Reply, ToAuthority};
use engine_core::random::Random;
use engine_core::replica::io::ClientRef;
use engine_core::time::{Span, Time};

use crate::checkers::History;
use crate::chronicle::Chronicle;
use crate::client::Client;
use crate::clock::Clock;
use crate::conns::{ClientId, Conn};
use crate::coverage::Coverage;
use crate::network::{Net, Network, Way};
use crate::node::{self, Heard, Out, Process};
use crate::queue::Queue;
use crate::trace::{self, Trace};

/// What is going to happen.
#[derive(Debug)]
pub(crate) enum Event {
    /// Given to one run of a node.
    Node {
        node: NodeId,
        life: u64,
        heard: Heard,
    },
    Arrive {
        link: u64,
        to: NodeId,
        from: NodeId,
        life: u64,
        message: PeerMessage,
    },
    Dial {
        way: Way,
        lane: Lane,
        net: Net,
        life: u64,
    },
    /// A connection over the replication network looks for the primary network.
    Better {
        way: Way,
        link: u64,
    },
    /// A connection that gets nothing through is given up.
    Stalled {
        way: Way,
        lane: Lane,
        link: u64,
    },
    Broken {
        way: Way,
        life: u64,
        refused: bool,
    },
    Register {
        node: NodeId,
        life: u64,
    },
    Report {
        node: NodeId,
        session: SessionRef,
    },
    ToAuthority {
        session: SessionRef,
        message: ToAuthority,
    },
    FromAuthority {
        session: SessionRef,
        message: FromAuthority,
    },
    AuthorityTick(u64),
    /// An authority that stands still goes on.
    AuthorityResumes(u64),
    Load,
    ClientTick(ClientId),
    ClientDial {
        client: ClientId,
        node: NodeId,
        attempt: u64,
    },
    Refresh(ClientId),
    Reply {
        conn: ClientRef,
        reply: Reply,
    },
    ConnLost {
        client: ClientId,
        conn: ClientRef,
        node: NodeId,
    },
    Resume {
        node: NodeId,
        life: u64,
    },
    /// Whether a node that stops on purpose may end, or has waited long enough.
    Stopping {
        node: NodeId,
        life: u64,
        until: Time,
    },
}

/// A node's place: what survives its process.
pub(crate) struct Place {
    pub(crate) disk: Disk,
    /// Disks it had before this one.
    pub(crate) disks: u64,
    pub(crate) process: Option<Process>,
    /// Number of the present run.
    pub(crate) life: u64,
    pub(crate) zone: String,
    pub(crate) clock: Clock,
    pub(crate) paused: Option<Vec<Heard>>,
    /// The host answers for a process that is gone.
    pub(crate) refuses: bool,
    pub(crate) session: Option<SessionRef>,
    pub(crate) disk_slow: Span,
    /// The whole device hangs until then.
    pub(crate) disk_hangs: Time,
    disk_due: bool,
    pub(crate) want: BTreeSet<NodeId>,
}

impl Place {
    fn new(node: NodeId, zone: String, extents: u64, ahead: u64) -> Self {
        Self {
            disk: node::format(node, 0, extents),
            disks: 0,
            process: None,
            life: 0,
            zone,
            clock: Clock::new(ahead),
            paused: None,
            refuses: true,
            session: None,
            disk_slow: DISK_SLOW,
            disk_hangs: Time(0),
            disk_due: false,
            want: BTreeSet::new(),
        }
    }

    /// The process is gone, with its connections and wishes.
    pub(crate) fn forget(&mut self) {
        self.disk_due = false;
        self.want.clear();
    }
}

/// More events than any world needs.
const EVENTS_MAX: u64 = 100_000_000;
/// How long an operation of a disk takes, at most, when nothing is wrong.
pub(crate) const DISK_SLOW: Span = Span(200_000);

/// The authority and what survives it.
pub(crate) struct Seat {
    pub(crate) machine: Option<Authority>,
    pub(crate) records: BTreeMap<Key, StoredRecord>,
    pub(crate) sessions: BTreeMap<SessionRef, (NodeId, u64)>,
    /// By which connection a node is spoken to.
    pub(crate) accepted: BTreeMap<NodeId, SessionRef>,
    pub(crate) last_session: u64,
    pub(crate) life: u64,
    pub(crate) cut: BTreeSet<NodeId>,
    pub(crate) answers: BTreeMap<CallId, Result<Answer, String>>,
    pub(crate) last_call: u64,
    /// Calls before this one were asked of a process that is gone.
    pub(crate) first_call: u64,
    /// Replies on proposals are lost.
    pub(crate) mute_decisions: bool,
    /// A person tells it to go on from older records: configurations are taken over from what nodes report (I11).
    pub(crate) accepting: bool,
    /// Segments a permit was granted for, and whether they could commit then.
    pub(crate) granted: Vec<(SegmentId, bool)>,
    /// How long a message to it or from it takes.
    pub(crate) slow: Span,
    /// Its host's clock; another one after some starts.
    pub(crate) clock: Clock,
    /// What it has not heard, while it stands still.
    pub(crate) stalled: Option<Vec<Input>>,
    /// Earliest arrival there, and back.
    there: Time,
    back: Time,
}

/// What a message to or from the authority takes when nothing is wrong.
pub(crate) const SEAT_SLOW: Span = Span(200_000);

impl Seat {
    const fn new() -> Self {
        Self {
            clock: Clock::new(1 << 40),
            stalled: None,
            machine: None,
            records: BTreeMap::new(),
            sessions: BTreeMap::new(),
            accepted: BTreeMap::new(),
            last_session: 0,
            accepting: false,
            life: 0,
            cut: BTreeSet::new(),
            answers: BTreeMap::new(),
            last_call: 0,
            first_call: 0,
            mute_decisions: false,
            granted: Vec::new(),
            slow: SEAT_SLOW,
            there: Time(0),
            back: Time(0),
        }
    }
}

impl World {
    /// When what is said to the authority now arrives.
    pub(crate) fn seat_hears(&mut self) -> Time {
        self.seat.there = self.seat.there.max(self.now + self.seat.slow);
        self.seat.there
    }

    /// When what the authority says now arrives.
    pub(crate) fn seat_heard(&mut self) -> Time {
        self.seat.back = self.seat.back.max(self.now + self.seat.slow);
        self.seat.back
    }
}

/// What a world is made of.
#[derive(Debug, Clone, Copy)]
pub(crate) struct Shape {
    pub(crate) nodes: u16,
    pub(crate) zones: u16,
    /// Extents each node has space for.
    pub(crate) extents: u64,
    pub(crate) copies: u8,
    pub(crate) min_copies: u8,
    /// Size of the volume.
    pub(crate) megabytes: u64,
    /// Each copy in a zone of its own.
    pub(crate) spread_zone: bool,
}

pub(crate) struct World {
    pub(crate) now: Time,
    queue: Queue<Event>,
    pub(crate) random: Random,
    pub(crate) places: BTreeMap<NodeId, Place>,
    pub(crate) network: Network,
    pub(crate) seat: Seat,
    pub(crate) clients: BTreeMap<ClientId, Client>,
    /// The client that is attached last; 0: none yet.
    pub(crate) attached: ClientId,
    /// Clients of other volumes.
    pub(crate) neighbours: Vec<ClientId>,
    /// Somebody asks to be attached.
    pub(crate) attaching: Option<CallId>,
    pub(crate) conns: BTreeMap<ClientRef, Conn>,
    pub(crate) last_conn: u64,
    pub(crate) client_cut: BTreeSet<NodeId>,
    pub(crate) history: History,
    /// Answers with data, by node.
    pub(crate) shown: BTreeMap<NodeId, u64>,
    pub(crate) chronicle: Rc<RefCell<Chronicle>>,
    pub(crate) peeked: BTreeMap<NodeId, BTreeMap<u32, u64>>,
    pub(crate) load: Option<crate::load::Load>,
    /// Volumes that were asked for to fill the nodes.
    pub(crate) filling: Vec<CallId>,
    pub(crate) fillers: u64,
    pub(crate) grace: Span,
    pub(crate) policy: Policy,
    /// Some disk has lied or rotted: damage may be found.
    pub(crate) damage: bool,
    pub(crate) coverage: Coverage,
    pub(crate) events: u64,
    trace: Trace,
    pub(crate) print: bool,
}

impl World {
    /// Nodes n1, n2, ..., in zones by turns, each with a blank disk.
    pub(crate) fn new(seed: u64, shape: &Shape) -> Self {
        let mut random = Random::new(seed);
        let mut place = |id: u16| {
            let node = NodeId(id);
            let zone = format!("z{}", (id - 1) % shape.zones + 1);
            (node, Place::new(node, zone, shape.extents, random.between(0, 1 << 40)))
        };
        let places = (1..=shape.nodes).map(&mut place).collect();
        let mut world = Self {
            now: Time(1_000_000_000),
            queue: Queue::new(),
            places,
            network: Network::new(),
            seat: Seat::new(),
            clients: BTreeMap::new(),
            attached: 0,
            neighbours: Vec::new(),
            attaching: None,
            conns: BTreeMap::new(),
            last_conn: 0,
            client_cut: BTreeSet::new(),
            history: History::new(),
            shown: BTreeMap::new(),
            chronicle: Rc::default(),
            peeked: BTreeMap::new(),
            load: None,
            filling: Vec::new(),
            fillers: 0,
            grace: Span::seconds(5),
            policy: Policy { breaker_stable: Span::seconds(20), ..Policy::default() },
            damage: false,
            coverage: Coverage::default(),
            events: 0,
            trace: Trace(random.next_u64()),
            random,
            print: trace::is_printed(),
        };
        world.after(Span(1), Event::Load);
        world
    }

    /// One node more, with a blank disk.
    pub(crate) fn add_node(&mut self, zone: &str, extents: u64) -> NodeId {
        let node = NodeId(self.places.keys().next_back().map_or(1, |last| last.0 + 1));
        let ahead = self.between(0, 1 << 40);
        self.places.insert(node, Place::new(node, zone.into(), extents, ahead));
        node
    }

    /// Hash of everything that has happened.
    pub(crate) const fn trace(&self) -> u64 {
        self.trace.0
    }

    pub(crate) fn after(&mut self, span: Span, event: Event) {
        self.at(self.now + span, event);
    }

    pub(crate) fn at(&mut self, time: Time, event: Event) {
        self.queue.push(time.max(self.now), event);
    }

    pub(crate) const fn between(&mut self, low: u64, high: u64) -> u64 {
        self.random.between(low, high)
    }

    /// Lets time pass.
    pub(crate) fn run(&mut self, span: Span) {
        let end = self.now + span;
        while let Some((time, event)) = self.queue.pop_until(end) {
            self.now = time;
            self.events += 1;
            assert!(self.events < EVENTS_MAX, "it goes round in circles");
            let random = self.random.clone().next_u64();
            self.trace.event(time, random, &event);
            if self.print {
                self.show(&event);
            }
            self.dispatch(event);
        }
        self.now = end;
    }

    fn show(&self, event: &Event) {
        if let Event::Node { heard: Heard::Tick | Heard::Disk, .. }
        | Event::Load
        | Event::ClientTick(_)
        | Event::AuthorityTick(_) = event
        {
            return;
        }
        eprintln!("{:>12.6} {event:?}", self.now.0 as f64 / 1e9);
    }

    /// Says something in the printed trace.
    pub(crate) fn say(&self, what: &str) {
        if self.print {
            eprintln!("{:>12.6} {what}", self.now.0 as f64 / 1e9);
        }
    }

    /// Lets time pass until something holds; says whether it did within `limit`.
    pub(crate) fn until(&mut self, limit: Span, mut holds: impl FnMut(&mut Self) -> bool) -> bool {
        let end = self.now + limit;
        while !holds(self) {
            if self.now >= end {
                return false;
            }
            self.run(Span::millis(20));
        }
        true
    }

    fn dispatch(&mut self, event: Event) {
        match event {
            Event::Node { node, life, heard } => self.on_node(node, life, heard),
            Event::Arrive { link, to, from, life, message } => {
                if self.network.arrives(link, self.now) {
                    self.on_node(to, life, Heard::Peer { from, message });
                }
            }
            Event::Dial { way, lane, net, life } => self.on_dial(way, lane, net, life),
            Event::Better { way, link } => self.on_better(way, link),
            Event::Stalled { way, lane, link } => self.on_stalled(way, lane, link),
            // Of a connection that has been replaced since: the node knows.
            Event::Broken { way, .. } if self.network.number(way, Lane::Live) != 0 => {}
            Event::Broken { way: (from, to), life, refused } => {
                self.on_node(from, life, Heard::PeerDown { node: to, refused });
                self.dial(from, to, Lane::Live);
            }
            Event::Register { node, life } => self.on_register(node, life),
            Event::Report { node, session } => self.on_report(node, session),
            Event::ToAuthority { session, message } => self.tell_authority(Input::Node { session, message }),
            Event::FromAuthority { session, message } => {
                if let Some((node, life)) = self.seat.sessions.get(&session).copied() {
                    if message == FromAuthority::ShowConfigs {
                        self.show_configs(node, session);
                    }
                    self.on_node(node, life, Heard::Authority(message));
                }
            }
            Event::AuthorityTick(life) => {
                if life == self.seat.life && self.seat.machine.is_some() {
                    self.tell_authority(Input::Tick);
                    self.after(AUTHORITY_TICK, Event::AuthorityTick(life));
                }
            }
            Event::AuthorityResumes(life) if life == self.seat.life => self.resume_authority(),
            Event::AuthorityResumes(_) => {}
            Event::Load => self.on_load(),
            Event::ClientTick(client) => self.on_client_tick(client),
            Event::ClientDial { client, node, attempt } => self.on_client_dial(client, node, attempt),
            Event::Refresh(client) => self.on_refresh(client),
            Event::Reply { conn, reply } => self.on_reply(conn, reply),
            Event::ConnLost { client, conn, node } => self.on_conn_lost(client, conn, node),
            Event::Resume { node, life } => self.on_resume(node, life),
            Event::Stopping { node, life, until } => self.on_stopping(node, life, until),
        }
    }

    // ---- nodes

    pub(crate) fn on_node(&mut self, node: NodeId, life: u64, heard: Heard) {
        let Some(place) = self.places.get_mut(&node).filter(|place| place.life == life) else { return };
        let now = place.clock.at(self.now);
        let ticks = matches!(heard, Heard::Tick);
        if let Some(backlog) = &mut place.paused {
            if !ticks {
                backlog.push(heard);
            }
            return;
        }
        let Some(process) = &mut place.process else { return };
        if matches!(heard, Heard::Disk) {
            if place.disk_hangs > self.now {
                let until = place.disk_hangs;
                return self.at(until, Event::Node { node, life, heard });
            }
            place.disk_due = false;
            // Operations end in any order, and some together.
            let many = self.random.between(1, 3);
            for _ in 0..many {
                let running = process.device().running() as u64;
                if running > 0 {
                    let index = self.random.between(0, running - 1) as usize;
                    process.device().finish(index);
                }
            }
        }
        let out = process.hear(now, heard);
        self.schedule_disk(node);
        for out in out {
            self.put(node, out);
        }
        if ticks {
            self.after(TICK, Event::Node { node, life, heard: Heard::Tick });
        }
    }

    fn schedule_disk(&mut self, node: NodeId) {
        let Some(place) = self.places.get_mut(&node) else { return };
        let running = place.process.as_mut().is_some_and(|process| process.device().running() > 0);
        if running && !place.disk_due {
            place.disk_due = true;
            let (slow, life) = (place.disk_slow.0, place.life);
            let mut wait = self.random.between(10_000, slow.max(20_000));
            if self.random.between(0, 299) == 0 {
                wait *= 30;
            }
            self.after(Span(wait), Event::Node { node, life, heard: Heard::Disk });
        }
    }

    fn put(&mut self, node: NodeId, out: Out) {
        match out {
            Out::Peer { to, lane, message } => {
                self.coverage.said(&message.body);
                self.send_peer(node, to, lane, message);
            }
            Out::Reply { client, reply } => self.carry_reply(client, reply),
            Out::Authority(message) => {
                let session = self.places[&node].session;
                if let Some(session) = session.filter(|session| self.seat.sessions.contains_key(session)) {
                    let at = self.seat_hears();
                    self.at(at, Event::ToAuthority { session, message });
                }
            }
            Out::Want(wanted) => self.want(node, wanted),
        }
    }

    fn on_resume(&mut self, node: NodeId, life: u64) {
        let Some(place) = self.places.get_mut(&node).filter(|place| place.life == life) else { return };
        let backlog = place.paused.take().unwrap_or_default();
        let first = self.random.between(0, 1) == 0;
        if first {
            self.on_node(node, life, Heard::Tick);
        }
        for heard in backlog {
            self.on_node(node, life, heard);
        }
        if !first {
            self.on_node(node, life, Heard::Tick);
        }
    }
}
