//! A running hash of everything that happens: two runs of one seed are the same exactly if it is.
//!
//! Of an event only what tells it from another one that could stand there goes in, with the state of the generator of
//! random numbers, on which everything depends; so it costs little.

use std::hash::{Hash, Hasher};
use std::sync::atomic::{AtomicBool, Ordering};

use engine_core::random::mix;
use engine_core::time::Time;

use crate::node::Heard;
use crate::world::Event;

static PRINT: AtomicBool = AtomicBool::new(false);

/// Worlds made from here on print every event to stderr; so they do where `BREAKWATER_TRACE` is set.
pub fn print_trace(print: bool) {
    PRINT.store(print, Ordering::Relaxed);
}

/// Whether a new world prints its events.
pub(crate) fn is_printed() -> bool {
    PRINT.load(Ordering::Relaxed) || std::env::var_os("BREAKWATER_TRACE").is_some()
}

/// The hash so far.
#[derive(Debug, Clone, Copy)]
pub(crate) struct Trace(pub(crate) u64);

impl Hasher for Trace {
    fn finish(&self) -> u64 {
        self.0
    }

    fn write(&mut self, bytes: &[u8]) {
        for byte in bytes {
            self.write_u64(u64::from(*byte));
        }
    }

    fn write_u64(&mut self, number: u64) {
        self.0 = mix(self.0 ^ number);
    }

    fn write_isize(&mut self, number: isize) {
        self.write_u64(number as u64);
    }
}

impl Trace {
    pub(crate) fn event(&mut self, now: Time, random: u64, event: &Event) {
        self.write_u64(now.0 ^ mix(random));
        std::mem::discriminant(event).hash(self);
        match event {
            Event::Node { node, life, heard } => {
                self.write_u64(u64::from(node.0) << 32 | life);
                self.heard(heard);
            }
            Event::Arrive { link, to, message, .. } => {
                self.write_u64(u64::from(to.0) << 32 | link);
                self.write_u64(message.segment.to_u64());
                std::mem::discriminant(&message.body).hash(self);
            }
            Event::Reply { conn, reply } => {
                self.write_u64(conn.0);
                self.write_u64(reply.request.0 ^ reply.epoch.0 << 32);
                std::mem::discriminant(&reply.outcome).hash(self);
            }
            _ => {}
        }
    }

    fn heard(&mut self, heard: &Heard) {
        std::mem::discriminant(heard).hash(self);
        match heard {
            Heard::Client { client, request } => {
                self.write_u64(client.0);
                self.write_u64(request.request.0 ^ request.session.0 << 20);
                std::mem::discriminant(&request.op).hash(self);
            }
            Heard::Authority(said) => std::mem::discriminant(said).hash(self),
            _ => {}
        }
    }
}
