//! The simulated networks: connections made by one side for what it sends (as `engine::node::peers` does), over the
//! primary or the replication network, with delay, bandwidth, ways that are cut in one direction, and loss only by a
//! break.
//!
//! In order within one connection, as TCP has it: there nothing is lost, repeated or reordered. Between two
//! connections, two lanes or two directions nothing is promised: what was sent on a broken connection may still arrive
//! after what was sent on the next one, and its tail never.

use std::collections::{BTreeMap, BTreeSet};

use engine_core::ids::NodeId;
use engine_core::message::{Lane, Peer, PeerMessage};
use engine_core::random::Random;
use engine_core::time::{Span, Time};

/// One direction between two nodes.
pub(crate) type Way = (NodeId, NodeId);

/// Which of the two networks (R8).
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord)]
pub(crate) enum Net {
    Primary,
    Replication,
}

/// Both.
pub(crate) const NETS: [Net; 2] = [Net::Primary, Net::Replication];
/// Both lanes.
pub(crate) const LANES: [Lane; 2] = [Lane::Live, Lane::Bulk];
/// Longest ordinary delay of a message.
pub(crate) const DELAY: Span = Span(400_000);
/// Bytes per second of a node's way into each network.
const RATES: [u64; 2] = [1_250_000_000, 125_000_000];

/// A connection that one node has made to another.
#[derive(Debug, Clone)]
pub(crate) struct Link {
    /// Its number; numbers are never used again. 0: none.
    pub(crate) number: u64,
    pub(crate) net: Net,
    /// Earliest arrival of the next message.
    busy_until: Time,
    /// What was sent into a cut way, or waits for a bulk connection.
    pub(crate) stuck: Vec<PeerMessage>,
    /// An attempt to make it is on its way.
    pub(crate) dialling: bool,
    /// Last pause before an attempt.
    pub(crate) pause: Span,
}

impl Default for Link {
    fn default() -> Self {
        Self {
            number: 0,
            net: Net::Primary,
            busy_until: Time(0),
            stuck: Vec::new(),
            dialling: false,
            pause: Span::ZERO,
        }
    }
}

/// A node's way into one network.
#[derive(Debug, Clone, Copy)]
struct Port {
    free: Time,
    rate: u64,
}

/// What became of a message.
#[derive(Debug, PartialEq, Eq)]
pub(crate) enum Sent {
    /// There is no connection.
    Lost,
    /// The way is cut: it waits in the sender's kernel.
    Stuck,
    /// It arrives then, if this connection does not break before.
    At(u64, Time),
}

/// All connections between nodes.
#[derive(Debug)]
pub(crate) struct Network {
    pub(crate) links: BTreeMap<(Way, Lane), Link>,
    pub(crate) cut: BTreeSet<(Way, Net)>,
    /// Ways that a packet filter closes: whoever tries to connect is told that nobody is there.
    pub(crate) filtered: BTreeSet<Way>,
    /// Broken connections, and until when their last messages still arrive.
    broken: BTreeMap<u64, Time>,
    ports: BTreeMap<(NodeId, Net), Port>,
    last: u64,
    /// Longest ordinary delay.
    pub(crate) delay_max: Span,
}

impl Network {
    pub(crate) const fn new() -> Self {
        Self {
            links: BTreeMap::new(),
            cut: BTreeSet::new(),
            filtered: BTreeSet::new(),
            broken: BTreeMap::new(),
            ports: BTreeMap::new(),
            last: 0,
            delay_max: DELAY,
        }
    }

    pub(crate) fn is_cut(&self, way: Way, net: Net) -> bool {
        self.cut.contains(&(way, net))
    }

    /// Whether both directions are open.
    pub(crate) fn is_open(&self, (from, to): Way, net: Net) -> bool {
        !self.is_cut((from, to), net) && !self.is_cut((to, from), net)
    }

    pub(crate) fn number(&self, way: Way, lane: Lane) -> u64 {
        self.links.get(&(way, lane)).map_or(0, |link| link.number)
    }

    /// Which network the connection takes, if there is one.
    pub(crate) fn net(&self, way: Way, lane: Lane) -> Option<Net> {
        self.links.get(&(way, lane)).filter(|link| link.number != 0).map(|link| link.net)
    }

    /// Makes a connection; gives its number and what waited for it.
    pub(crate) fn connect(&mut self, way: Way, lane: Lane, net: Net) -> (u64, Vec<PeerMessage>) {
        self.last += 1;
        let old = self.links.insert((way, lane), Link { number: self.last, net, ..Link::default() });
        (self.last, old.map(|link| link.stuck).unwrap_or_default())
    }

    /// Breaks a connection; a part of what is on its way still arrives. Says whether there was one.
    pub(crate) fn sever(&mut self, way: Way, lane: Lane, now: Time, random: &mut Random) -> bool {
        let Some(link) = self.links.get_mut(&(way, lane)).filter(|link| link.number != 0) else { return false };
        let dialling = link.dialling;
        let number = std::mem::replace(link, Link { dialling, ..Link::default() }).number;
        // Nothing is on its way longer than this.
        self.broken.retain(|_, until| until.0 + 60_000_000_000 > now.0);
        self.broken.insert(number, now + Span(random.between(0, 3_000_000)));
        true
    }

    /// Whether what was sent by this connection still arrives at `now`.
    pub(crate) fn arrives(&self, number: u64, now: Time) -> bool {
        self.broken.get(&number).is_none_or(|until| now <= *until)
    }

    /// Sets how many bytes per second a node gets into a network; `None`: as many as usual.
    pub(crate) fn limit(&mut self, node: NodeId, net: Net, rate: Option<u64>) {
        let usual = RATES[usize::from(net == Net::Replication)];
        self.port(node, net).rate = rate.unwrap_or(usual);
    }

    fn port(&mut self, node: NodeId, net: Net) -> &mut Port {
        let rate = RATES[usize::from(net == Net::Replication)];
        self.ports.entry((node, net)).or_insert(Port { free: Time(0), rate })
    }

    /// When a message sent now arrives.
    pub(crate) fn send(&mut self, way: Way, lane: Lane, message: &PeerMessage, now: Time, random: &mut Random) -> Sent {
        let Some(net) = self.net(way, lane) else { return Sent::Lost };
        if self.is_cut(way, net) {
            let link = self.links.get_mut(&(way, lane)).expect("just seen");
            link.stuck.push(message.clone());
            return Sent::Stuck;
        }
        let mut delay = random.between(30_000, self.delay_max.0);
        if random.between(0, 199) == 0 {
            delay *= 20;
        }
        let port = self.port(way.0, net);
        let left = port.free.max(now) + Span(weight(&message.body) * 1_000_000_000 / port.rate);
        port.free = left;
        let link = self.links.get_mut(&(way, lane)).expect("just seen");
        link.busy_until = link.busy_until.max(left + Span(delay));
        Sent::At(link.number, link.busy_until)
    }
}

/// Bytes of a message, roughly.
fn weight(body: &Peer) -> u64 {
    let data = match body {
        Peer::Prepare { entry, .. } => entry.change.data_len(),
        Peer::Reconcile { entries, .. } => entries.iter().map(|entry| entry.change.data_len() + 64).sum(),
        Peer::CopyData { copy, .. } => copy.blocks.data.len() as u64,
        Peer::CopyPage { listed, .. } => listed.len() as u64 * 12,
        _ => 0,
    };
    128 + data
}
