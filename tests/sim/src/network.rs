//! The simulated network: connections made by one side for what it sends (as `engine::node::peers` does), with delay,
//! partitions per direction, and loss only by a break.
//!
//! In order within one connection; two connections, two lanes or two directions promise each other nothing: what was
//! sent on a broken connection may still arrive after what was sent on the next one.

use std::collections::{BTreeMap, BTreeSet};

use engine_core::ids::NodeId;
use engine_core::message::{Lane, PeerMessage};
use engine_core::random::Random;
use engine_core::time::{Span, Time};

/// One direction between two nodes.
pub(crate) type Way = (NodeId, NodeId);

/// A connection that one node has made to another.
#[derive(Debug, Clone, Default)]
pub(crate) struct Link {
    /// Its number; numbers are never used again. 0: none.
    pub(crate) number: u64,
    /// Earliest arrival of the next message, by lane.
    busy_until: [Time; 2],
    /// What was sent into a partition.
    pub(crate) stuck: Vec<(Lane, PeerMessage)>,
    /// An attempt to make it is on its way.
    pub(crate) dialling: bool,
    /// Last pause before an attempt.
    pub(crate) pause: Span,
}

/// All connections between nodes.
#[derive(Debug, Default)]
pub(crate) struct Network {
    pub(crate) links: BTreeMap<Way, Link>,
    pub(crate) blocked: BTreeSet<Way>,
    /// Broken connections, and until when their last messages still arrive.
    broken: BTreeMap<u64, Time>,
    last: u64,
    /// Longest ordinary delay.
    pub(crate) delay_max: Span,
}

impl Network {
    pub(crate) fn new() -> Self {
        Self { delay_max: Span(400_000), ..Self::default() }
    }

    pub(crate) fn is_blocked(&self, from: NodeId, to: NodeId) -> bool {
        self.blocked.contains(&(from, to))
    }

    pub(crate) fn number(&self, from: NodeId, to: NodeId) -> u64 {
        self.links.get(&(from, to)).map_or(0, |link| link.number)
    }

    /// Makes a connection; gives its number.
    pub(crate) fn connect(&mut self, from: NodeId, to: NodeId) -> u64 {
        self.last += 1;
        self.links.insert((from, to), Link { number: self.last, ..Link::default() });
        self.last
    }

    /// Breaks a connection; a part of what is on its way still arrives. Gives its number.
    pub(crate) fn sever(&mut self, from: NodeId, to: NodeId, now: Time, random: &mut Random) -> Option<u64> {
        let link = self.links.get_mut(&(from, to)).filter(|link| link.number != 0)?;
        let number = std::mem::take(link).number;
        self.broken.insert(number, now + Span(random.between(0, 3_000_000)));
        Some(number)
    }

    /// Whether what was sent by this connection still arrives at `now`.
    pub(crate) fn arrives(&self, number: u64, now: Time) -> bool {
        self.broken.get(&number).is_none_or(|until| now <= *until)
    }

    /// When a message sent now arrives; `None`: not as long as the way is blocked, or never.
    pub(crate) fn send(
        &mut self,
        (from, to): Way,
        lane: Lane,
        message: &PeerMessage,
        now: Time,
        random: &mut Random,
    ) -> Option<(u64, Time)> {
        let blocked = self.is_blocked(from, to);
        let delay_max = self.delay_max.0;
        let link = self.links.get_mut(&(from, to)).filter(|link| link.number != 0)?;
        if blocked {
            link.stuck.push((lane, message.clone()));
            return None;
        }
        let mut delay = random.between(30_000, delay_max);
        if random.between(0, 199) == 0 {
            delay *= 20;
        }
        let busy = &mut link.busy_until[usize::from(lane == Lane::Bulk)];
        *busy = (*busy).max(now + Span(delay));
        Some((link.number, *busy))
    }
}
