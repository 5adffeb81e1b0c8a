//! The clients' place in the world: their connections to nodes, what goes out, what comes back, and who attaches. As
//! `engine::client` does it: one connection per node, dialled again with growing pauses, sooner when a segment asks.

use engine_core::authority::io::Answer;
use engine_core::client::{Effect, Failure, Input, Token};
use engine_core::ids::{NodeId, SegmentId};
use engine_core::limits::{REDIAL_MAX, REDIAL_MIN, TICK};
use engine_core::message::{Outcome, Reply, Request};
use engine_core::replica::io::ClientRef;
use engine_core::time::{Span, Time};

use crate::client::{Client, Task};
use crate::node::Heard;
use crate::world::{Event, World};

/// Number of a client. They are never used again.
pub(crate) type ClientId = u32;

/// Not a client: the checker, which looks at single replicas.
pub(crate) const CHECKER: ClientId = 0;

/// A client's connection to one run of a node.
#[derive(Debug, Clone, Copy)]
pub(crate) struct Conn {
    pub(crate) client: ClientId,
    pub(crate) node: NodeId,
    pub(crate) life: u64,
    /// Earliest arrival there, and back.
    there: Time,
    back: Time,
}

impl World {
    /// The client that is attached last.
    pub(crate) fn client(&self) -> Option<&Client> {
        self.clients.get(&self.attached)
    }

    /// Asks a client's machine for something.
    pub(crate) fn submit(&mut self, id: ClientId, task: Task) {
        let Some(client) = self.clients.get_mut(&id) else { return };
        let (segment, op) = (task.segment, task.op());
        let token = client.note(task);
        self.feed(id, segment, Input::Submit { token, op, due: None });
        let Some(client) = self.clients.get_mut(&id) else { return };
        if !client.ticking {
            client.ticking = true;
            self.after(TICK, Event::ClientTick(id));
        }
    }

    /// Time passes for a client that waits for something.
    pub(crate) fn on_client_tick(&mut self, id: ClientId) {
        let Some(client) = self.clients.get_mut(&id).filter(|client| !client.dead) else { return };
        let busy: Vec<SegmentId> = client.sessions.values().filter(|s| !s.is_idle()).map(|s| s.id()).collect();
        client.ticking = !busy.is_empty();
        if client.ticking {
            self.after(TICK, Event::ClientTick(id));
        }
        for segment in busy {
            self.feed(id, segment, Input::Tick);
        }
    }

    fn feed(&mut self, id: ClientId, segment: SegmentId, input: Input) {
        let now = self.now;
        let client = self.clients.get_mut(&id).filter(|client| !client.dead);
        let Some(session) = client.and_then(|client| client.sessions.get_mut(&segment)) else { return };
        let mut effects = Vec::new();
        session.handle(now, input, &mut effects);
        for effect in effects {
            match effect {
                Effect::Connect(node) => self.client_wants(id, node),
                Effect::Send { to, request } => self.send_request(id, to, request),
                Effect::Done { token, result } => self.done(id, token, result),
                Effect::Fenced(generation) => {
                    self.coverage.count("state: a client was fenced");
                    self.clients.get_mut(&id).expect("just seen").fenced = true;
                    self.feed_all(id, &Input::Fenced(generation));
                }
                Effect::Refresh => self.refresh_soon(id),
            }
        }
    }

    fn feed_all(&mut self, id: ClientId, input: &Input) {
        let Some(client) = self.clients.get(&id) else { return };
        let all: Vec<SegmentId> = client.sessions.keys().copied().collect();
        for segment in all {
            self.feed(id, segment, input.clone());
        }
    }

    fn done(&mut self, id: ClientId, token: Token, result: Result<engine_core::client::Answer, Failure>) {
        let now = self.now;
        let Some(client) = self.clients.get_mut(&id) else { return };
        let Some(task) = client.tasks.remove(&token) else { return };
        match result {
            Ok(answer) => {
                client.done += 1;
                let by = client.generation;
                self.history.answered(now, by, &task, &answer);
            }
            Err(Failure::Fenced) => {}
            Err(Failure::Corrupt(block)) => {
                assert!(self.damage, "{} {block} is damaged, and no disk was (I14)", task.segment);
                self.coverage.count("state: a damaged block was refused to a client");
            }
            Err(failure @ (Failure::Malformed | Failure::TimedOut)) => panic!("client {id}: {task:?}: {failure:?}"),
        }
    }

    // ---- the map

    fn refresh_soon(&mut self, id: ClientId) {
        let delay = Span(self.random.between(500_000, 20_000_000));
        if let Some(client) = self.clients.get_mut(&id).filter(|client| !client.refreshing) {
            client.refreshing = true;
            self.after(delay, Event::Refresh(id));
        }
    }

    /// A client asks the authority for a fresh map.
    pub(crate) fn on_refresh(&mut self, id: ClientId) {
        if let Some(client) = self.clients.get_mut(&id) {
            client.refreshing = false;
        }
        if self.seat.machine.is_none() {
            return;
        }
        for segment in self.all_segments() {
            let config = self.config(segment);
            self.feed(id, segment, Input::Learned(config));
        }
    }

    // ---- attaching

    /// A client comes and asks to be attached; the one before goes on until it is fenced.
    pub(crate) fn begin_attach(&mut self) {
        if self.attaching.is_none() {
            let call = self.ask_attach();
            self.attaching = Some(call);
        }
    }

    /// Looks whether the authority has answered who wants to attach.
    pub(crate) fn poll_attach(&mut self) {
        let Some(call) = self.attaching else { return };
        let Some(answer) = self.seat.answers.remove(&call) else {
            if call.0 < self.seat.first_call {
                // Whoever should have answered is gone.
                let call = self.ask_attach();
                self.attaching = Some(call);
            }
            return;
        };
        self.attaching = None;
        match answer {
            Ok(Answer::Map(map)) => {
                self.coverage.count("state: a client attached");
                self.open_client(map.generation, &map.segments);
            }
            Ok(other) => panic!("an attach is not answered by {other:?}"),
            Err(_) => self.begin_attach(),
        }
    }

    /// The client's process is gone; what it had under way is undecided.
    pub(crate) fn kill_client(&mut self, id: ClientId) {
        let Some(client) = self.clients.get_mut(&id) else { return };
        client.dead = true;
        client.tasks.clear();
        let conns: Vec<ClientRef> =
            self.conns.iter().filter(|(_, conn)| conn.client == id).map(|(conn, _)| *conn).collect();
        for conn in conns {
            self.hang_up(conn, Span::millis(2));
        }
    }

    // ---- connections

    /// A segment of the client needs this node soon.
    fn client_wants(&mut self, id: ClientId, node: NodeId) {
        let now = self.now;
        let Some(client) = self.clients.get_mut(&id) else { return };
        let link = client.links.entry(node).or_default();
        let soon = now + REDIAL_MIN;
        if link.conn.is_some() || (link.attempt > 0 && link.due > now && link.due <= soon) {
            return;
        }
        let first = link.attempt == 0;
        link.attempt += 1;
        link.due = if first { now + Span(300_000) } else { soon };
        let (due, attempt) = (link.due, link.attempt);
        self.at(due, Event::ClientDial { client: id, node, attempt });
    }

    pub(crate) fn on_client_dial(&mut self, id: ClientId, node: NodeId, attempt: u64) {
        let cut = self.client_cut.contains(&node);
        let Some(place) = self.places.get(&node) else { return };
        let (life, up) = (place.life, place.process.is_some() && place.paused.is_none() && !cut);
        let says_no = place.refuses && !cut;
        let Some(client) = self.clients.get_mut(&id).filter(|client| client.is_usable()) else { return };
        let Some(link) = client.links.get_mut(&node).filter(|link| link.attempt == attempt && link.conn.is_none())
        else {
            return;
        };
        if !up {
            let pause = self.random.between(REDIAL_MIN.0, (link.pause.0 * 3).max(REDIAL_MIN.0 + 1));
            link.pause = Span(pause.min(REDIAL_MAX.0));
            link.attempt += 1;
            // A host that says nothing costs the time of two attempts.
            link.due = self.now + link.pause + if says_no { Span::ZERO } else { Span::millis(1400) };
            let (due, attempt) = (link.due, link.attempt);
            return self.at(due, Event::ClientDial { client: id, node, attempt });
        }
        let conn = self.open_conn(id, node, life);
        let link = self.clients.get_mut(&id).and_then(|client| client.links.get_mut(&node)).expect("just seen");
        (link.conn, link.pause) = (Some(conn), Span::ZERO);
        self.feed_all(id, &Input::Up(node));
    }

    /// How often a node has answered with data.
    pub(crate) fn data_from(&self, node: NodeId) -> u64 {
        self.shown.get(&node).copied().unwrap_or_default()
    }

    pub(crate) fn open_conn(&mut self, client: ClientId, node: NodeId, life: u64) -> ClientRef {
        self.last_conn += 1;
        let conn = ClientRef(self.last_conn);
        self.conns.insert(conn, Conn { client, node, life, there: self.now, back: self.now });
        conn
    }

    pub(crate) fn send_request(&mut self, id: ClientId, to: NodeId, request: Request) {
        let conn = self.clients.get(&id).and_then(|client| client.links.get(&to)).and_then(|link| link.conn);
        // Without a connection it is lost; the machine hears, or has heard, of that.
        if let Some(conn) = conn.filter(|_| !self.client_cut.contains(&to)) {
            self.carry_request(conn, request);
        }
    }

    pub(crate) fn carry_request(&mut self, client: ClientRef, request: Request) {
        let delay = Span(self.random.between(30_000, 300_000));
        let Some(conn) = self.conns.get_mut(&client) else { return };
        conn.there = conn.there.max(self.now + delay);
        let (node, life, at) = (conn.node, conn.life, conn.there);
        self.at(at, Event::Node { node, life, heard: Heard::Client { client, request } });
    }

    pub(crate) fn carry_reply(&mut self, client: ClientRef, reply: Reply) {
        let delay = Span(self.random.between(30_000, 300_000));
        let Some(conn) = self.conns.get_mut(&client) else { return };
        if matches!(reply.outcome, Outcome::Data(_)) {
            *self.shown.entry(conn.node).or_default() += 1;
        }
        if self.client_cut.contains(&conn.node) && conn.client != CHECKER {
            return;
        }
        conn.back = conn.back.max(self.now + delay);
        let at = conn.back;
        self.at(at, Event::Reply { conn: client, reply });
    }

    /// A connection ends; both sides hear of it within `within`.
    fn hang_up(&mut self, client: ClientRef, within: Span) {
        let Some(Conn { client: id, node, life, .. }) = self.conns.remove(&client) else { return };
        let delay = Span(self.random.between(100_000, within.0));
        self.after(delay, Event::Node { node, life, heard: Heard::ClientGone(client) });
        let delay = Span(self.random.between(100_000, within.0));
        self.after(delay, Event::ConnLost { client: id, conn: client, node });
    }

    /// The clients' connections to a node break, and they hear of it within `within`.
    pub(crate) fn drop_conns(&mut self, node: NodeId, within: Span) {
        let conns: Vec<ClientRef> =
            self.conns.iter().filter(|(_, conn)| conn.node == node).map(|(conn, _)| *conn).collect();
        for conn in conns {
            self.hang_up(conn, within);
        }
    }

    pub(crate) fn on_conn_lost(&mut self, id: ClientId, conn: ClientRef, node: NodeId) {
        let Some(client) = self.clients.get_mut(&id).filter(|client| client.is_usable()) else { return };
        let Some(link) = client.links.get_mut(&node).filter(|link| link.conn == Some(conn)) else { return };
        link.conn = None;
        link.attempt += 1;
        link.due = self.now + Span(300_000);
        let (due, attempt) = (link.due, link.attempt);
        self.at(due, Event::ClientDial { client: id, node, attempt });
        self.feed_all(id, &Input::Down(node));
    }

    pub(crate) fn on_reply(&mut self, conn: ClientRef, reply: Reply) {
        // A connection that is over carries nothing any more.
        let Some(Conn { client, node, .. }) = self.conns.get(&conn).copied() else { return };
        if client == CHECKER {
            if let Outcome::Data(blocks) = &reply.outcome {
                let first = u32::try_from(reply.session.0).expect("a block");
                let got = crate::client::versions(first, blocks);
                self.peeked.entry(node).or_default().extend((first..).zip(got));
            }
            return;
        }
        if let Outcome::Refused(refusal) = &reply.outcome {
            self.coverage.refused(refusal);
        }
        let segment = reply.segment;
        self.feed(client, segment, Input::Reply { from: node, reply });
    }
}
