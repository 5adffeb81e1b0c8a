//! The authority's side of the re-mirroring policy: what the breaker sees, what a person may say about it (R5, R11, R16).
//!
//! The breaker itself, with its laws, is [`crate::remirror::breaker`]. It sees a node as lost that holds something and is out
//! of reach, or without which a segment goes on: a break between nodes shows although each of them is in touch with the authority.

use alloc::boxed::Box;
use alloc::string::{String, ToString};
use alloc::vec::Vec;

use serde::{Deserialize, Serialize};

use super::Authority;
use super::headroom::Headroom;
use super::io::{Answer, CallError, CallId, Effects, ErrorCode};
use super::space::Thresholds;
use crate::ids::NodeId;
use crate::limits::{BREAKER_EVERY, BREAKER_STABLE};
use crate::remirror::breaker::{Position, Seen};
use crate::time::{Span, Time};

/// `GET /v1/remirror/breaker`, and part of the status.
#[derive(Debug, Clone, Default, PartialEq, Eq, Serialize, Deserialize)]
#[cfg_attr(feature = "openapi", derive(utoipa::ToSchema))]
pub struct BreakerInfo {
    /// `closed`: copies are made as usual; `open` or `held`: none; `half_open`: a few; `starting`: none yet.
    pub state: String,
    /// Why it is not closed, and what changes that.
    pub why: Option<String>,
    /// Since when it has not been closed.
    pub since_ms: Option<u64>,
    /// Nodes that hold something and are missed now.
    pub lost: Vec<NodeId>,
}

/// What a person may say about the breaker.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
#[cfg_attr(feature = "openapi", derive(utoipa::ToSchema))]
pub enum BreakerWish {
    /// Nothing is re-mirrored until `reset`.
    Hold,
    /// Do not wait any longer: a few copies at a time.
    HalfOpen,
    /// Who is lost now is lost: copies are made as usual.
    Close,
    /// No person holds it any more.
    Reset,
}

/// `POST /v1/remirror/breaker`.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
#[cfg_attr(feature = "openapi", derive(utoipa::ToSchema))]
pub struct SetBreaker {
    /// What it is to do.
    pub set: BreakerWish,
}

/// When and where copies are made, as whoever runs the authority states it.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Policy {
    /// How long the set of lost nodes has to be the same until an open breaker lets a few re-mirrors begin.
    pub breaker_stable: Span,
    /// What failure the headroom is for.
    pub headroom: Headroom,
    /// When an operator should know that space runs out.
    pub space: Thresholds,
}

impl Default for Policy {
    fn default() -> Self {
        Self { breaker_stable: BREAKER_STABLE, headroom: Headroom::default(), space: Thresholds::default() }
    }
}

impl Authority {
    /// Looks who is lost and what is left.
    pub(super) fn tick_policy(&mut self, now: Time, effects: &mut Effects) {
        if now >= self.looked_at {
            self.looked_at = now + BREAKER_EVERY;
            self.tick_breaker(now, effects);
            self.tick_space(now, effects);
        }
    }

    /// Counts who is lost; an opening breaker takes back what no primary was told of yet.
    fn tick_breaker(&mut self, now: Time, effects: &mut Effects) {
        let nodes = self.books.nodes().iter().filter(|(_, record)| !record.is_gone());
        let seen: Vec<Seen<'_>> = nodes.map(|(node, record)| self.seen(now, *node, &record.zone)).collect();
        if let Some(change) = self.breaker.observe(now, seen.into_iter()) {
            effects.log(change);
            self.permits.look_again();
        }
        if self.breaker.allows(now) == 0 {
            self.take_back_reserved(now);
        }
    }

    /// A node that holds something is lost where it is out of reach, for this authority or for a segment's primary.
    fn seen<'a>(&self, now: Time, node: NodeId, zone: &'a str) -> Seen<'a> {
        let (usage, is_up) = (self.books.usage(node), self.is_reachable(now, node));
        Seen { node, zone, is_lost: usage.out > 0 || usage.holds > 0 && !is_up, is_up }
    }

    pub(super) fn breaker_info(&self, now: Time) -> BreakerInfo {
        BreakerInfo {
            state: self.breaker.position(now).name().to_string(),
            why: self.breaker.why(now),
            since_ms: self.breaker.since().map(|since| now.since(since).as_millis()),
            lost: self.breaker.lost(),
        }
    }

    /// What keeps every re-mirror waiting, if anything does.
    pub(super) fn why_no_permits(&self, now: Time) -> Option<String> {
        self.breaker.why(now).filter(|_| self.breaker.allows(now) == 0)
    }

    pub(super) fn on_set_breaker(&mut self, now: Time, call: CallId, wish: SetBreaker, effects: &mut Effects) {
        let result = self.set_breaker(now, wish.set);
        if result.is_ok() {
            self.books.hold_breaker(self.breaker.is_held());
            self.permits.look_again();
            effects.log(self.breaker.why(now).unwrap_or_else(|| "the breaker was closed by an operator".to_string()));
        }
        effects.answer(call, result.map(|()| Answer::Breaker(Box::new(self.breaker_info(now)))));
    }

    fn set_breaker(&mut self, now: Time, wish: BreakerWish) -> Result<(), CallError> {
        match wish {
            BreakerWish::Hold => self.breaker.hold(),
            BreakerWish::Reset => self.breaker.reset(),
            BreakerWish::Close => self.breaker.force_closed(),
            BreakerWish::HalfOpen if self.breaker.half_open(now) => {}
            BreakerWish::HalfOpen => {
                let message = match self.breaker.position(now) {
                    Position::HalfOpen => "the breaker is half-open already",
                    Position::Held => "the breaker is held, and would be closed without that; it stays held",
                    _ => "the breaker is not open: there is nothing to wait for; it stays as it is",
                };
                let error = CallError::new(ErrorCode::IllegalState, message.into());
                return Err(error.next("nodectl remirror breaker show"));
            }
        }
        Ok(())
    }
}
