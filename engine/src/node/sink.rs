//! What one shard still has to say over one connection.
//!
//! A shard never waits for a socket: what the connection's outbox does not take spills over here and is pushed in
//! order as it drains. A shard with a congested sink takes no further client requests, so the spill is bounded by
//! what was already ordered; beyond the bound, or when nothing moves, the connection is cut (I15).

use std::collections::VecDeque;

use engine_core::limits::{OUTBOX_BYTES_MAX, OUTBOX_MAX, PREPARE_DEADLINE};
use engine_core::time::Time;

use crate::wire::{Message, Outbox, SendError};

/// One shard's way into one connection.
#[derive(Debug)]
pub(crate) struct Sink {
    outbox: Outbox,
    spill: VecDeque<Message>,
    congested_since: Option<Time>,
}

impl Sink {
    pub(crate) fn new(outbox: Outbox) -> Self {
        Self { outbox, spill: VecDeque::new(), congested_since: None }
    }

    /// Says it, now or as soon as the socket takes it. Lost when the connection is over.
    pub(crate) fn push(&mut self, message: Message) {
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

    /// Pushes what spilled over as far as it goes; cuts a connection that has taken nothing for too long.
    pub(crate) fn flush(&mut self, now: Time) {
        while let Some(message) = self.spill.pop_front() {
            if !self.offer(&message) {
                self.spill.push_front(message);
                break;
            }
        }
        if self.outbox.is_closed() {
            self.spill.clear();
        }
        if !self.is_congested() {
            self.congested_since = None;
            return;
        }
        // A member that takes nothing for this long is lost anyway (I8); its queue must not hold up the others.
        let since = *self.congested_since.get_or_insert(now);
        if now.since(since) > PREPARE_DEADLINE {
            tracing::warn!("a connection is cut: it has been congested for {:?}", now.since(since));
            self.cut();
        }
    }

    /// Whether work that adds to it should wait.
    pub(crate) fn is_congested(&self) -> bool {
        let (messages, bytes) = self.outbox.queued();
        let full = messages > OUTBOX_MAX / 2 || bytes > OUTBOX_BYTES_MAX / 2;
        (full || !self.spill.is_empty()) && !self.outbox.is_closed()
    }

    /// Ends the connection.
    pub(crate) fn cut(&mut self) {
        self.spill.clear();
        self.outbox.abort();
    }

    /// `true`: nothing more to do about this message.
    fn offer(&self, message: &Message) -> bool {
        match self.outbox.try_send(message) {
            Ok(()) | Err(SendError::Closed) => true,
            Err(SendError::Full) => false,
            Err(SendError::Unsendable(error)) => {
                tracing::error!(%error, "a message that no frame can hold was dropped");
                true
            }
        }
    }
}
