//! The client's place in the world: its connections to nodes, what goes out and what comes back.

use engine_core::ids::NodeId;
use engine_core::message::{Reply, Request};
use engine_core::replica::io::ClientRef;
use engine_core::time::Span;

use crate::node::Heard;
use crate::world::{Event, World};

impl World {
    pub(crate) fn on_client_tick(&mut self) {
        let now = self.now;
        if let Some(mut load) = self.load.take() {
            load.step(self);
            self.load.get_or_insert(load);
        }
        let lost = self.client.as_mut().map(|client| std::mem::take(&mut client.lost)).unwrap_or_default();
        for segment in lost.into_iter().filter(|_| self.seat.machine.is_some()) {
            let config = self.config(segment);
            self.client.as_mut().expect("it has lost it").learn(now, config);
        }
        if let Some(client) = &mut self.client {
            client.on_tick(now);
        }
        self.flush_client();
        self.after(Span::millis(2), Event::ClientTick);
    }

    pub(crate) fn flush_client(&mut self) {
        let Some(client) = &mut self.client else { return };
        for (to, request) in std::mem::take(&mut client.sends) {
            self.send_request(to, request);
        }
    }

    pub(crate) fn send_request(&mut self, to: NodeId, request: Request) {
        let Some(place) = self.places.get(&to) else { return };
        let life = place.life;
        let known = self.conn_of.get(&to).copied().filter(|c| self.conns.get(c) == Some(&(to, life)));
        let Some(conn) = known.or_else(|| self.connect_client(to)) else {
            let delay = Span(self.random.between(1_000_000, 20_000_000));
            return self.after(delay, Event::ConnLost { conn: ClientRef(0), node: to });
        };
        let delay = Span(self.random.between(30_000, 300_000));
        let (busy, _) = self.conn_busy.entry(conn).or_default();
        *busy = (*busy).max(self.now + delay);
        let at = *busy;
        self.at(at, Event::Node { node: to, life, heard: Heard::Client { client: conn, request } });
    }

    pub(crate) fn connect_client(&mut self, to: NodeId) -> Option<ClientRef> {
        let place = self.places.get(&to).filter(|place| place.process.is_some())?;
        if self.client_cut.contains(&to) {
            return None;
        }
        self.last_conn += 1;
        let conn = ClientRef(self.last_conn);
        self.conns.insert(conn, (to, place.life));
        self.conn_of.insert(to, conn);
        self.conn_busy.insert(conn, (self.now, self.now));
        Some(conn)
    }

    /// The client's connection to a node breaks.
    pub(crate) fn drop_conn(&mut self, node: NodeId) {
        let Some(conn) = self.conn_of.remove(&node) else { return };
        if let Some((node, life)) = self.conns.remove(&conn) {
            let delay = Span(self.random.between(100_000, 2_000_000));
            self.after(delay, Event::Node { node, life, heard: Heard::ClientGone(conn) });
        }
        let delay = Span(self.random.between(100_000, 2_000_000));
        self.after(delay, Event::ConnLost { conn, node });
    }

    pub(crate) fn client_lost(&mut self, node: NodeId) {
        let now = self.now;
        if let Some(client) = &mut self.client {
            client.on_lost(now, node);
        }
        self.flush_client();
    }

    pub(crate) fn on_reply(&mut self, conn: ClientRef, reply: Reply) {
        let Some((node, _)) = self.conns.get(&conn).copied() else { return };
        if reply.request.0 == u64::MAX {
            if let engine_core::message::Outcome::Data(blocks) = &reply.outcome {
                let first = u32::try_from(reply.session.0).expect("a block");
                let got = crate::client::versions(first, blocks);
                self.peeked.entry(node).or_default().extend(got);
            }
            return;
        }
        let now = self.now;
        if let Some(client) = &mut self.client {
            client.on_reply(now, node, reply, &mut self.history);
        }
        self.flush_client();
    }
}
