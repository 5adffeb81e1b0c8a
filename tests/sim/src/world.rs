//! The simulated world: nodes, their network, the authority and a client under one virtual clock.
//!
//! Everything that happens is an event in one queue, ordered by time and number; every choice comes from one seeded
//! generator. The same seed gives the same trace, byte for byte ([`World::trace`]).

use std::cell::RefCell;
use std::collections::{BTreeMap, BTreeSet};
use std::fmt::Write as _;
use std::rc::Rc;

use engine::device::memory::Disk;
use engine_core::authority::Authority;
use engine_core::authority::io::{Answer, CallId, Input, SessionRef};
use engine_core::authority::records::{Key, StoredRecord};
use engine_core::ids::NodeId;
use engine_core::limits::{AUTHORITY_TICK, TICK};
use engine_core::message::{FromAuthority, Lane, PeerMessage, Reply, ToAuthority};
use engine_core::random::Random;
use engine_core::replica::io::ClientRef;
use engine_core::time::{Span, Time};

use crate::checkers::History;
use crate::chronicle::Chronicle;
use crate::client::Client;
use crate::network::Network;
use crate::node::{self, Heard, Out, Process};

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
        from: NodeId,
        to: NodeId,
        life: u64,
    },
    /// A blocked connection is given up.
    Stalled {
        from: NodeId,
        to: NodeId,
        link: u64,
    },
    Broken {
        from: NodeId,
        to: NodeId,
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
    ClientTick,
    Reply {
        conn: ClientRef,
        reply: Reply,
    },
    ConnLost {
        conn: ClientRef,
        node: NodeId,
    },
    Resume {
        node: NodeId,
        life: u64,
    },
}

/// A node's place: what survives its process.
pub(crate) struct Place {
    pub(crate) disk: Disk,
    pub(crate) process: Option<Process>,
    /// Number of the present run.
    pub(crate) life: u64,
    pub(crate) zone: String,
    pub(crate) paused: Option<Vec<Heard>>,
    /// The host answers for a process that is gone.
    pub(crate) refuses: bool,
    pub(crate) session: Option<SessionRef>,
    pub(crate) disk_slow: Span,
    disk_due: bool,
    want: BTreeSet<NodeId>,
}

impl Place {
    /// The process is gone, with its connections and wishes.
    pub(crate) fn forget(&mut self) {
        self.disk_due = false;
        self.want.clear();
    }
}

/// The authority and what survives it.
pub(crate) struct Seat {
    pub(crate) machine: Option<Authority>,
    pub(crate) records: BTreeMap<Key, StoredRecord>,
    pub(crate) sessions: BTreeMap<SessionRef, (NodeId, u64)>,
    pub(crate) last_session: u64,
    pub(crate) life: u64,
    pub(crate) cut: BTreeSet<NodeId>,
    pub(crate) answers: BTreeMap<CallId, Result<Answer, String>>,
    pub(crate) last_call: u64,
    /// Replies on proposals are lost.
    pub(crate) mute_decisions: bool,
}

pub(crate) struct World {
    pub(crate) now: Time,
    queue: BTreeMap<(Time, u64), Event>,
    number: u64,
    pub(crate) random: Random,
    pub(crate) places: BTreeMap<NodeId, Place>,
    pub(crate) network: Network,
    pub(crate) seat: Seat,
    pub(crate) client: Option<Client>,
    pub(crate) conns: BTreeMap<ClientRef, (NodeId, u64)>,
    pub(crate) conn_of: BTreeMap<NodeId, ClientRef>,
    pub(crate) last_conn: u64,
    pub(crate) conn_busy: BTreeMap<ClientRef, (Time, Time)>,
    pub(crate) client_cut: BTreeSet<NodeId>,
    pub(crate) history: History,
    pub(crate) chronicle: Rc<RefCell<Chronicle>>,
    pub(crate) peeked: BTreeMap<NodeId, Vec<u64>>,
    pub(crate) load: Option<crate::load::Load>,
    pub(crate) grace: Span,
    trace: Fnv,
    pub(crate) print: bool,
}

/// A running hash of everything that happened.
struct Fnv(u64);

impl std::fmt::Write for Fnv {
    fn write_str(&mut self, text: &str) -> std::fmt::Result {
        for byte in text.bytes() {
            self.0 = (self.0 ^ u64::from(byte)).wrapping_mul(0x0100_0000_01b3);
        }
        Ok(())
    }
}

impl World {
    /// Nodes n1 to `nodes`, each in a zone of three, each with space for `extents`.
    pub(crate) fn new(seed: u64, nodes: u16, extents: u64) -> Self {
        let mut random = Random::new(seed);
        let place = |id: u16| {
            let node = NodeId(id);
            let place = Place {
                disk: node::format(node, extents),
                process: None,
                life: 0,
                zone: "z".into(),
                paused: None,
                refuses: true,
                session: None,
                disk_slow: Span(200_000),
                disk_due: false,
                want: BTreeSet::new(),
            };
            (node, place)
        };
        let seat = Seat {
            machine: None,
            records: BTreeMap::new(),
            sessions: BTreeMap::new(),
            last_session: 0,
            life: 0,
            cut: BTreeSet::new(),
            answers: BTreeMap::new(),
            last_call: 0,
            mute_decisions: false,
        };
        let mut world = Self {
            now: Time(1_000_000_000),
            queue: BTreeMap::new(),
            number: 0,
            places: (1..=nodes).map(place).collect(),
            network: Network::new(),
            seat,
            client: None,
            conns: BTreeMap::new(),
            conn_of: BTreeMap::new(),
            last_conn: 0,
            conn_busy: BTreeMap::new(),
            client_cut: BTreeSet::new(),
            history: History::default(),
            chronicle: Rc::default(),
            peeked: BTreeMap::new(),
            load: None,
            grace: Span::seconds(5),
            trace: Fnv(random.next_u64()),
            random,
            print: std::env::var_os("BREAKWATER_TRACE").is_some(),
        };
        world.after(Span(1), Event::ClientTick);
        world
    }

    /// Hash of everything that has happened.
    pub(crate) fn trace(&self) -> u64 {
        self.trace.0
    }

    pub(crate) fn after(&mut self, span: Span, event: Event) {
        self.at(self.now + span, event);
    }

    pub(crate) fn at(&mut self, time: Time, event: Event) {
        self.number += 1;
        self.queue.insert((time.max(self.now), self.number), event);
    }

    pub(crate) fn between(&mut self, low: u64, high: u64) -> u64 {
        self.random.between(low, high)
    }

    /// Lets time pass.
    pub(crate) fn run(&mut self, span: Span) {
        let end = self.now + span;
        while let Some(entry) = self.queue.first_entry() {
            if entry.key().0 > end {
                break;
            }
            let ((time, _), event) = entry.remove_entry();
            self.now = time;
            let _ = write!(self.trace, "{} {event:?}", time.0);
            if self.print {
                self.show(&event);
            }
            self.dispatch(event);
        }
        self.now = end;
    }

    fn show(&self, event: &Event) {
        if let Event::Node { heard: Heard::Tick | Heard::Disk, .. } | Event::ClientTick | Event::AuthorityTick(_) =
            event
        {
            return;
        }
        eprintln!("{:>12.6} {event:?}", self.now.0 as f64 / 1e9);
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
            Event::Dial { from, to, life } => self.on_dial(from, to, life),
            Event::Stalled { from, to, link } => self.on_stalled(from, to, link),
            Event::Broken { from, to, life, refused } => {
                self.on_node(from, life, Heard::PeerDown { node: to, refused });
                self.dial(from, to);
            }
            Event::Register { node, life } => self.on_register(node, life),
            Event::Report { node, session } => self.on_report(node, session),
            Event::ToAuthority { session, message } => self.tell_authority(Input::Node { session, message }),
            Event::FromAuthority { session, message } => {
                if let Some((node, life)) = self.seat.sessions.get(&session).copied() {
                    self.on_node(node, life, Heard::Authority(message));
                }
            }
            Event::AuthorityTick(life) => {
                if life == self.seat.life && self.seat.machine.is_some() {
                    self.tell_authority(Input::Tick);
                    self.after(AUTHORITY_TICK, Event::AuthorityTick(life));
                }
            }
            Event::ClientTick => self.on_client_tick(),
            Event::Reply { conn, reply } => self.on_reply(conn, reply),
            Event::ConnLost { conn, node } => {
                self.conns.remove(&conn);
                if self.conn_of.get(&node) == Some(&conn) {
                    self.conn_of.remove(&node);
                }
                self.client_lost(node);
            }
            Event::Resume { node, life } => self.on_resume(node, life),
        }
    }

    // ---- nodes

    pub(crate) fn on_node(&mut self, node: NodeId, life: u64, heard: Heard) {
        let now = self.now;
        let Some(place) = self.places.get_mut(&node).filter(|place| place.life == life) else { return };
        let ticks = matches!(heard, Heard::Tick);
        if let Some(backlog) = &mut place.paused {
            if !ticks {
                backlog.push(heard);
            }
            return;
        }
        let Some(process) = &mut place.process else { return };
        if matches!(heard, Heard::Disk) {
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
            Out::Peer { to, lane, message } => self.send_peer(node, to, lane, message),
            Out::Reply { client, reply } => {
                let delay = Span(self.random.between(30_000, 300_000));
                let Some((_, busy)) = self.conn_busy.get_mut(&client) else { return };
                *busy = (*busy).max(self.now + delay);
                let at = *busy;
                self.at(at, Event::Reply { conn: client, reply });
            }
            Out::Authority(message) => {
                let session = self.places[&node].session;
                if let Some(session) = session.filter(|session| self.seat.sessions.contains_key(session)) {
                    self.after(Span(200_000), Event::ToAuthority { session, message });
                }
            }
            Out::Want(wanted) => self.want(node, wanted),
        }
    }

    fn send_peer(&mut self, from: NodeId, to: NodeId, lane: Lane, message: PeerMessage) {
        let life = self.places.get(&to).map_or(0, |place| place.life);
        if let Some((link, at)) = self.network.send((from, to), lane, &message, self.now, &mut self.random) {
            self.at(at, Event::Arrive { link, to, from, life, message });
        }
    }

    /// What a partition held back goes on its way.
    pub(crate) fn release_stuck(&mut self, from: NodeId, to: NodeId) {
        let stuck = self.network.links.get_mut(&(from, to)).map(|link| std::mem::take(&mut link.stuck));
        for (lane, message) in stuck.into_iter().flatten() {
            self.send_peer(from, to, lane, message);
        }
    }

    fn want(&mut self, node: NodeId, wanted: BTreeSet<NodeId>) {
        let Some(place) = self.places.get_mut(&node) else { return };
        let before = std::mem::replace(&mut place.want, wanted.clone());
        for to in before.difference(&wanted) {
            if self.network.sever(node, *to, self.now, &mut self.random).is_some() {
                let life = self.places[&node].life;
                self.on_node(node, life, Heard::PeerDown { node: *to, refused: false });
            }
        }
        for to in wanted.difference(&before) {
            self.dial(node, *to);
        }
    }

    /// Tries to connect, after a pause.
    pub(crate) fn dial(&mut self, from: NodeId, to: NodeId) {
        let Some(place) = self.places.get(&from) else { return };
        let life = place.life;
        if !place.want.contains(&to) || place.process.is_none() {
            return;
        }
        let link = self.network.links.entry((from, to)).or_default();
        if link.number != 0 || link.dialling {
            return;
        }
        link.dialling = true;
        let pause = link.pause.0;
        link.pause = Span((pause * 2).clamp(20_000_000, 1_000_000_000));
        let wait = self.random.between(200_000, pause.max(400_000));
        self.after(Span(wait), Event::Dial { from, to, life });
    }

    fn on_dial(&mut self, from: NodeId, to: NodeId, life: u64) {
        if let Some(link) = self.network.links.get_mut(&(from, to)) {
            link.dialling = false;
        }
        if self.places[&from].life != life || self.network.number(from, to) != 0 {
            return self.dial(from, to);
        }
        let blocked = self.network.is_blocked(from, to) || self.network.is_blocked(to, from);
        let Some(there) = self.places.get(&to) else { return };
        if !blocked && there.process.is_some() && there.paused.is_none() {
            self.network.connect(from, to);
            return self.on_node(from, life, Heard::PeerUp(to));
        }
        if !blocked && there.process.is_none() && there.refuses {
            self.on_node(from, life, Heard::PeerDown { node: to, refused: true });
        }
        self.dial(from, to);
    }

    fn on_stalled(&mut self, from: NodeId, to: NodeId, link: u64) {
        let blocked = self.network.is_blocked(from, to) || self.network.is_blocked(to, from);
        if blocked && self.network.number(from, to) == link {
            self.sever(from, to, false);
        }
    }

    /// Breaks a connection; its maker hears of it shortly after.
    pub(crate) fn sever(&mut self, from: NodeId, to: NodeId, refused: bool) {
        if self.network.sever(from, to, self.now, &mut self.random).is_some() {
            let life = self.places[&from].life;
            let delay = Span(self.random.between(100_000, 2_000_000));
            self.after(delay, Event::Broken { from, to, life, refused });
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
