//! What one shard still has to say over one connection.
//!
//! What a turn says to one connection goes with one system call, at the end of the turn, and an acknowledgement that a
//! later one of the same turn covers does not go at all.
//!
//! A shard never waits for a socket: what the connection's outbox does not take spills over here and is pushed in
//! order as it drains. A shard with a congested sink takes no further client requests, so the spill is bounded by
//! what was already ordered; beyond the bound, or when nothing moves, the connection is cut (I15).

use std::collections::VecDeque;

use engine_core::limits::{OUTBOX_BYTES_MAX, OUTBOX_MAX, PEER_BATCH_MAX, PREPARE_DEADLINE};
use engine_core::message::{Peer, PeerMessage};
use engine_core::time::Time;

use crate::wire::{Message, Outbox, SendError};

/// One shard's way into one connection.
#[derive(Debug)]
pub(crate) struct Sink {
    outbox: Outbox,
    /// Small messages of this turn, in order; what is pushed next goes behind them.
    small: Vec<PeerMessage>,
    spill: VecDeque<Message>,
    /// Something was handed to the outbox that may not be written yet.
    posted: bool,
    /// It is on the list of those to be flushed.
    pub(crate) listed: bool,
    congested_since: Option<Time>,
}

impl Sink {
    pub(crate) fn new(outbox: Outbox) -> Self {
        Self { outbox, small: Vec::new(), spill: VecDeque::new(), posted: false, listed: false, congested_since: None }
    }

    /// Says it with the next flush, or as soon after it as the socket takes it. Lost when the connection is over.
    pub(crate) fn push(&mut self, message: Message) {
        match message {
            Message::Peer(message) if is_small(&message.body) => {
                match self.small.last_mut() {
                    Some(last) if message.covers(last) => *last = message,
                    _ => self.small.push(message),
                }
                if self.small.len() >= PEER_BATCH_MAX {
                    self.push_small();
                }
            }
            other => {
                self.push_small();
                self.push_frame(other);
            }
        }
    }

    fn push_small(&mut self) {
        if self.small.len() > 1 {
            let small = std::mem::take(&mut self.small);
            self.push_frame(Message::Peers(small));
        } else if let Some(one) = self.small.pop() {
            self.push_frame(Message::Peer(one));
        }
    }

    fn push_frame(&mut self, message: Message) {
        if self.spill.is_empty() && self.offer(&message) {
            return;
        }
        if self.spill.len() >= OUTBOX_MAX {
            tracing::warn!("a connection is cut: {} messages wait for it and it takes none", self.spill.len());
            self.cut();
        } else if !self.outbox.is_closed() {
            self.spill.push_back(message);
        }
    }

    /// Writes what was pushed, and what spilled over, as far as it goes; cuts a connection that has taken nothing for
    /// too long. Whether it wants to be flushed again although nothing more is pushed.
    pub(crate) fn flush(&mut self, now: Time) -> bool {
        self.push_small();
        if !self.posted && self.spill.is_empty() && self.congested_since.is_none() {
            return false;
        }
        while let Some(message) = self.spill.pop_front() {
            if !self.offer(&message) {
                self.spill.push_front(message);
                break;
            }
        }
        if std::mem::take(&mut self.posted) {
            self.outbox.flush();
        }
        if self.outbox.is_closed() {
            self.spill.clear();
        }
        if !self.is_congested() {
            self.congested_since = None;
            return false;
        }
        // A member that takes nothing for this long is lost anyway (I8); its queue must not hold up the others.
        let since = *self.congested_since.get_or_insert(now);
        if now.since(since) > PREPARE_DEADLINE {
            tracing::warn!("a connection is cut: it has been congested for {:?}", now.since(since));
            self.cut();
        }
        true
    }

    /// Whether work that adds to it should wait.
    pub(crate) fn is_congested(&self) -> bool {
        let (messages, bytes) = self.outbox.queued();
        let full = messages > OUTBOX_MAX / 2 || bytes > OUTBOX_BYTES_MAX / 2;
        (full || !self.spill.is_empty()) && !self.outbox.is_closed()
    }

    /// Ends the connection.
    pub(crate) fn cut(&mut self) {
        self.small.clear();
        self.spill.clear();
        self.outbox.abort();
    }

    /// `true`: nothing more to do about this message.
    fn offer(&mut self, message: &Message) -> bool {
        match self.outbox.post(message) {
            Ok(()) => {
                self.posted = true;
                true
            }
            Err(SendError::Closed) => true,
            Err(SendError::Full) => false,
            Err(SendError::Unsendable(error)) => {
                tracing::error!(%error, "a message that no frame can hold was dropped");
                true
            }
        }
    }
}

/// Whether it has no data and no long list: so many of these always fit one frame.
const fn is_small(message: &Peer) -> bool {
    !matches!(message, Peer::Prepare { .. } | Peer::Reconcile { .. } | Peer::CopyData { .. } | Peer::CopyPage { .. })
}

#[cfg(test)]
mod tests {
    #![allow(clippy::unwrap_used)]
    use engine_core::ids::{Epoch, Incarnation, SegmentId, Seq, VolumeId};
    use engine_core::record::{Change, Entry};

    use super::*;
    use crate::wire::{Hello, Local, Network, Who, accept, greet};

    fn message(index: u32, body: Peer) -> PeerMessage {
        PeerMessage { segment: SegmentId { volume: VolumeId(1), index }, incarnation: Incarnation(1), body }
    }

    fn ack(index: u32) -> PeerMessage {
        message(index, Peer::PrepareAck { epoch: Epoch(1), durable: Seq(u64::from(index)) })
    }

    #[tokio::test]
    async fn small_messages_of_a_turn_are_one_frame_and_everything_stays_in_order() {
        let (near, far) = tokio::io::duplex(1 << 20);
        let cluster = engine_core::ids::ClusterId(1);
        let boot = engine_core::ids::BootId(1);
        let id = engine_core::ids::NodeId(1);
        let who = Who::Node { id, boot, shards: 1, lane: engine_core::message::Lane::Live, network: Network::Primary };
        let hello = Hello { cluster, who };
        let local = Local { cluster, node: Some(engine_core::ids::NodeId(2)), boot, shards: 1 };
        let (dialled, accepted) = tokio::join!(greet(near, &hello), accept(far, &local));
        let (_kept, outbox) = dialled.unwrap().1.split();
        let (mut inbound, _kept) = accepted.unwrap().1.split();
        let entry = Entry { epoch: Epoch(1), seq: Seq(9), change: Change::Nothing };
        let prepare = message(7, Peer::Prepare { commit: Seq(0), entry });
        let mut sink = Sink::new(outbox);
        for one in [ack(1), ack(2), prepare.clone(), ack(3)] {
            sink.push(Message::Peer(one));
        }
        sink.flush(Time(0));
        assert_eq!(inbound.next().await.unwrap(), Message::Peers(vec![ack(1), ack(2)]));
        assert_eq!(inbound.next().await.unwrap(), Message::Peer(prepare));
        assert_eq!(inbound.next().await.unwrap(), Message::Peer(ack(3)));
        // Of one segment's acknowledgements the last says it all; another epoch's, or another segment's, says its own.
        let said = |epoch, durable| Peer::PrepareAck { epoch: Epoch(epoch), durable: Seq(durable) };
        for one in
            [message(1, said(1, 5)), message(1, said(1, 6)), message(1, said(2, 6)), ack(2), message(1, said(2, 7))]
        {
            sink.push(Message::Peer(one));
        }
        sink.flush(Time(0));
        let kept = vec![message(1, said(1, 6)), message(1, said(2, 6)), ack(2), message(1, said(2, 7))];
        assert_eq!(inbound.next().await.unwrap(), Message::Peers(kept));
        // However many there are, a frame is bounded.
        (0..1000).for_each(|index| sink.push(Message::Peer(ack(index))));
        sink.flush(Time(0));
        for _ in 0..1000_usize.div_ceil(PEER_BATCH_MAX) {
            let Message::Peers(part) = inbound.next().await.unwrap() else { panic!("one at a time") };
            assert_eq!(part.len(), PEER_BATCH_MAX);
        }
    }
}
