//! How nodes reach each other: who dials when, over which network, and what a break means for whom. As
//! `engine::node::peers` and `engine::node::bulk` do it: each side dials for what it sends; live connections prefer the
//! primary network and fall back to the replication network, bulk connections never do (R8).

use std::collections::BTreeSet;

use engine_core::ids::NodeId;
use engine_core::limits::{DIAL_WAIT, PRIMARY_AGAIN, REDIAL_MAX, REDIAL_MIN};
use engine_core::message::{Lane, PeerMessage};
use engine_core::time::Span;

use crate::network::{LANES, Net, Sent, Way};
use crate::node::Heard;
use crate::world::{Event, World};

/// Messages that wait for a bulk connection; more are dropped.
const BULK_WAITING: usize = 256;

impl World {
    pub(crate) fn send_peer(&mut self, from: NodeId, to: NodeId, lane: Lane, message: PeerMessage) {
        let life = self.places.get(&to).map_or(0, |place| place.life);
        match self.network.send((from, to), lane, &message, self.now, &mut self.random) {
            Sent::At(link, at) => self.at(at, Event::Arrive { link, to, from, life, message }),
            Sent::Lost if lane == Lane::Bulk => {
                let link = self.network.links.entry(((from, to), lane)).or_default();
                if link.stuck.len() < BULK_WAITING {
                    link.stuck.push(message);
                }
                self.dial(from, to, lane);
            }
            Sent::Lost | Sent::Stuck => {}
        }
    }

    /// What a cut way held back goes on its way.
    pub(crate) fn release_stuck(&mut self, (from, to): Way) {
        for lane in LANES {
            let open = self.network.net((from, to), lane).is_some_and(|net| !self.network.is_cut((from, to), net));
            let Some(link) = self.network.links.get_mut(&((from, to), lane)).filter(|_| open) else { continue };
            for message in std::mem::take(&mut link.stuck) {
                self.send_peer(from, to, lane, message);
            }
        }
    }

    /// A node wants connections to these and no others.
    pub(crate) fn want(&mut self, node: NodeId, wanted: BTreeSet<NodeId>) {
        let Some(place) = self.places.get_mut(&node) else { return };
        let before = std::mem::replace(&mut place.want, wanted.clone());
        for to in before.difference(&wanted) {
            self.network.sever((node, *to), Lane::Bulk, self.now, &mut self.random);
            if self.network.sever((node, *to), Lane::Live, self.now, &mut self.random) {
                let life = self.places[&node].life;
                self.on_node(node, life, Heard::PeerDown { node: *to, refused: false });
            }
        }
        for to in wanted.difference(&before) {
            self.dial(node, *to, Lane::Live);
        }
    }

    /// Tries to connect, after a pause.
    pub(crate) fn dial(&mut self, from: NodeId, to: NodeId, lane: Lane) {
        let Some(place) = self.places.get(&from) else { return };
        let life = place.life;
        if !place.want.contains(&to) || place.process.is_none() {
            return;
        }
        let link = self.network.links.entry(((from, to), lane)).or_default();
        if link.number != 0 || link.dialling {
            return;
        }
        link.dialling = true;
        let pause = link.pause.0;
        link.pause = Span((pause * 2).clamp(REDIAL_MIN.0, REDIAL_MAX.0));
        let wait = self.random.between(200_000, pause.max(400_000));
        self.after(Span(wait), Event::Dial { way: (from, to), lane, net: Net::Primary, life });
    }

    pub(crate) fn on_dial(&mut self, way: Way, lane: Lane, net: Net, life: u64) {
        let (from, to) = way;
        if self.places[&from].life != life || self.network.number(way, lane) != 0 {
            self.network.links.entry((way, lane)).or_default().dialling = false;
            return self.dial(from, to, lane);
        }
        let Some(there) = self.places.get(&to) else { return };
        let open = self.network.is_open(way, net);
        if open && there.process.is_some() && there.paused.is_none() {
            return self.connected(way, lane, net, life);
        }
        let gone = there.process.is_none() && there.refuses;
        let refused = |net| self.network.filtered.contains(&way) || (gone && self.network.is_open(way, net));
        if lane == Lane::Live && net == Net::Primary {
            // The other network; at once where the host says that nobody is there.
            let wait = if refused(net) { Span(200_000) } else { DIAL_WAIT };
            return self.after(wait, Event::Dial { way, lane, net: Net::Replication, life });
        }
        let refused = refused(net) && refused(Net::Primary);
        let link = self.network.links.entry((way, lane)).or_default();
        link.dialling = false;
        if lane == Lane::Bulk {
            // Whoever asked asks again.
            link.stuck.clear();
            return;
        }
        if refused {
            self.on_node(from, life, Heard::PeerDown { node: to, refused: true });
        }
        self.dial(from, to, lane);
    }

    fn connected(&mut self, way: Way, lane: Lane, net: Net, life: u64) {
        let (from, to) = way;
        let (link, waited) = self.network.connect(way, lane, net);
        if lane == Lane::Bulk {
            for message in waited {
                self.send_peer(from, to, lane, message);
            }
            return;
        }
        if net == Net::Replication {
            self.coverage.count("state: live traffic on the replication network");
            self.after(PRIMARY_AGAIN, Event::Better { way, link });
        }
        // The end of the connection before may not have been heard of yet: a node hears of it first.
        let heard_up = self.places.get_mut(&from).and_then(|place| place.process.as_mut()).is_some_and(|p| p.is_up(to));
        if heard_up {
            self.on_node(from, life, Heard::PeerDown { node: to, refused: false });
        }
        self.on_node(from, life, Heard::PeerUp(to));
    }

    /// A live connection over the replication network looks whether the primary network works again.
    pub(crate) fn on_better(&mut self, way: Way, link: u64) {
        if self.network.number(way, Lane::Live) != link {
            return;
        }
        let there = &self.places[&way.1];
        if !self.network.is_open(way, Net::Primary) || there.process.is_none() || there.paused.is_some() {
            return self.after(PRIMARY_AGAIN, Event::Better { way, link });
        }
        let life = self.places[&way.0].life;
        self.network.sever(way, Lane::Live, self.now, &mut self.random);
        self.on_node(way.0, life, Heard::PeerDown { node: way.1, refused: false });
        if self.network.number(way, Lane::Live) == 0 {
            self.connected(way, Lane::Live, Net::Primary, life);
        }
    }

    /// A connection that gets nothing through is given up.
    pub(crate) fn on_stalled(&mut self, way: Way, lane: Lane, link: u64) {
        let cut = self.network.net(way, lane).is_some_and(|net| !self.network.is_open(way, net));
        if cut && self.network.number(way, lane) == link {
            self.sever_lane(way, lane, false);
        }
    }

    /// Breaks the connections one node has made to another; it hears of that shortly after.
    pub(crate) fn sever(&mut self, from: NodeId, to: NodeId, refused: bool) {
        for lane in LANES {
            self.sever_lane((from, to), lane, refused);
        }
    }

    fn sever_lane(&mut self, way: Way, lane: Lane, refused: bool) {
        if self.network.sever(way, lane, self.now, &mut self.random) && lane == Lane::Live {
            let life = self.places[&way.0].life;
            let delay = Span(self.random.between(100_000, 2_000_000));
            self.after(delay, Event::Broken { way, life, refused });
        }
    }

    /// A connection that gets nothing through, or whose other end is gone, will be given up after a while.
    pub(crate) fn stall(&mut self, from: NodeId, to: NodeId) {
        for lane in LANES {
            let link = self.network.number((from, to), lane);
            if link == 0 {
                continue;
            }
            let patience = Span::millis(self.between(1_000, 10_000));
            if self.places[&to].process.is_some() {
                self.after(patience, Event::Stalled { way: (from, to), lane, link });
                continue;
            }
            // Nobody acknowledges: given up after a while, as with a cut way.
            self.network.sever((from, to), lane, self.now, &mut self.random);
            if lane == Lane::Live {
                let life = self.places[&from].life;
                self.after(patience, Event::Broken { way: (from, to), life, refused: false });
            }
        }
    }
}
