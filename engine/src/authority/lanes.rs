//! What waits for the authority's loop, by class: elections are first in line, and nothing can crowd anything else out.
//!
//! Every class has a queue of its own and a share of every turn. So a burst of reports or of people's questions costs an
//! election nothing but its share of one turn, and a burst of elections starves nobody (I15). What one connection says
//! within one class stays in order; between classes nothing depends on it: a node says nothing before it has been
//! told that it is registered, and what overtakes the end of its session is ignored, as what came before may be.

use engine_core::limits::AUTHORITY_QUEUE_MAX;
use engine_core::message::ToAuthority;
use tokio::sync::mpsc;

use super::desk::Event;

/// Classes, first in line first.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
enum Class {
    /// Proposals that members have promised: somebody waits for a primary.
    Elections,
    /// Other proposals, and answers somebody waits for.
    Changes,
    /// Nodes that come and go, and what they hold.
    Sessions,
    /// People and programs.
    Calls,
    /// What comes again by itself.
    Reports,
}

const CLASSES: usize = 5;

/// How much of each class one turn takes at least before the next commit; a message of many proposals counts as many.
const SHARES: [usize; CLASSES] = [2048, 1024, 8, 16, 256];

impl Class {
    const fn of(event: &Event) -> Self {
        match event {
            Event::Register { .. } | Event::Gone(_) => Self::Sessions,
            Event::Call { .. } => Self::Calls,
            Event::Node { message, .. } => Self::of_message(message),
        }
    }

    const fn of_message(message: &ToAuthority) -> Self {
        match message {
            ToAuthority::Proposals(proposals) => match proposals.as_slice() {
                // A node gathers elections and other proposals apart.
                [first, ..] if first.promised => Self::Elections,
                _ => Self::Changes,
            },
            ToAuthority::PermitEnd { .. }
            | ToAuthority::FenceDone { .. }
            | ToAuthority::Created { .. }
            | ToAuthority::Reserved { .. }
            | ToAuthority::Released { .. } => Self::Changes,
            ToAuthority::Register(_) | ToAuthority::Replicas { .. } | ToAuthority::Configs { .. } => Self::Sessions,
            ToAuthority::Report(_) | ToAuthority::PermitAsks(_) | ToAuthority::LeaseAsks(_) => Self::Reports,
        }
    }
}

fn weight(event: &Event) -> usize {
    match event {
        Event::Node { message: ToAuthority::Proposals(proposals), .. } => proposals.len().max(1),
        _ => 1,
    }
}

/// Nobody takes events any more: the authority stops.
#[derive(Debug, PartialEq, Eq)]
pub(super) struct Stopped;

/// Too much of this class waits, or nobody takes it any more.
#[derive(Debug, PartialEq, Eq)]
pub(super) struct Full;

/// The end into which events go.
#[derive(Clone)]
pub(super) struct Lanes([mpsc::Sender<Event>; CLASSES]);

/// The loop's end.
pub(super) struct Inbox([mpsc::Receiver<Event>; CLASSES]);

/// Both ends.
pub(super) fn lanes() -> (Lanes, Inbox) {
    let pairs: [_; CLASSES] = std::array::from_fn(|_| mpsc::channel(AUTHORITY_QUEUE_MAX));
    let mut receivers = Vec::with_capacity(CLASSES);
    let senders = pairs.map(|(sender, receiver)| {
        receivers.push(receiver);
        sender
    });
    let mut receivers = receivers.into_iter();
    let inbox = std::array::from_fn(|_| receivers.next().expect("as many as pairs"));
    (Lanes(senders), Inbox(inbox))
}

impl Lanes {
    /// Puts an event in its line; waits while that is full. What comes again by itself is dropped instead.
    pub(super) async fn send(&self, event: Event) -> Result<(), Stopped> {
        let class = Class::of(&event);
        let lane = &self.0[class as usize];
        if class == Class::Reports {
            return match lane.try_send(event) {
                Ok(()) => Ok(()),
                Err(mpsc::error::TrySendError::Full(_)) => {
                    tracing::debug!("a report was dropped; the next one comes soon");
                    Ok(())
                }
                Err(mpsc::error::TrySendError::Closed(_)) => Err(Stopped),
            };
        }
        lane.send(event).await.map_err(|_| Stopped)
    }

    /// Puts an event in its line, or tells that this is full.
    pub(super) fn try_send(&self, event: Event) -> Result<(), Full> {
        self.0[Class::of(&event) as usize].try_send(event).map_err(|_| Full)
    }
}

impl Inbox {
    /// Waits for events, then gives a turn's worth in the order of their classes; `None` when nobody can bring any more.
    /// Cancel-safe.
    pub(super) async fn turn(&mut self) -> Option<Vec<Event>> {
        let [elections, changes, sessions, calls, reports] = &mut self.0;
        let first = tokio::select! {
            biased;
            event = elections.recv() => event,
            event = changes.recv() => event,
            event = sessions.recv() => event,
            event = calls.recv() => event,
            event = reports.recv() => event,
        }?;
        Some(self.fill(first))
    }

    fn fill(&mut self, first: Event) -> Vec<Event> {
        let begun = Class::of(&first) as usize;
        let mut first = Some(first);
        let mut events = Vec::new();
        for (class, lane) in self.0.iter_mut().enumerate() {
            let mut taken = 0;
            if let Some(event) = first.take_if(|_| class == begun) {
                taken += weight(&event);
                events.push(event);
            }
            while taken < SHARES[class] {
                let Ok(event) = lane.try_recv() else { break };
                taken += weight(&event);
                events.push(event);
            }
        }
        events
    }
}

#[cfg(test)]
mod tests {
    #![allow(clippy::unwrap_used)]
    use engine_core::authority::io::{Call, SessionRef};
    use engine_core::message::Report;
    use tokio::sync::oneshot;

    use super::*;

    fn said(message: ToAuthority) -> Event {
        Event::Node { session: SessionRef(1), message }
    }

    fn election() -> Event {
        let config = engine_core::config::Config {
            segment: engine_core::ids::SegmentId { volume: engine_core::ids::VolumeId(1), index: 0 },
            incarnation: engine_core::ids::Incarnation(1),
            epoch: engine_core::ids::Epoch(2),
            primary: engine_core::ids::NodeId(1),
            members: vec![],
            candidates: vec![],
            electable: vec![],
            former: vec![],
            generation: engine_core::ids::Generation(0),
            copies: 3,
            min_copies: 2,
            extents: 512,
        };
        let expected = engine_core::ids::Epoch(1);
        said(ToAuthority::Proposals(vec![engine_core::message::Proposal { expected, config, promised: true }]))
    }

    #[tokio::test]
    async fn an_election_is_first_in_line_whatever_came_before() {
        let (lanes, mut inbox) = lanes();
        for _ in 0..10_000 {
            lanes.send(said(ToAuthority::Report(Report::default()))).await.unwrap();
        }
        for _ in 0..1000 {
            let (reply, _) = oneshot::channel();
            lanes.try_send(Event::Call { request: Call::Status, reply }).unwrap();
        }
        lanes.send(election()).await.unwrap();
        let turn = inbox.turn().await.unwrap();
        assert_eq!(Class::of(&turn[0]), Class::Elections);
        assert!(turn.len() <= SHARES.iter().sum(), "a turn is bounded");
    }

    #[tokio::test]
    async fn elections_starve_nobody() {
        let (lanes, mut inbox) = lanes();
        for _ in 0..4000 {
            lanes.send(election()).await.unwrap();
        }
        lanes.send(said(ToAuthority::Report(Report::default()))).await.unwrap();
        let (reply, _) = oneshot::channel();
        lanes.send(Event::Call { request: Call::Status, reply }).await.unwrap();
        let turn = inbox.turn().await.unwrap();
        for class in [Class::Calls, Class::Reports] {
            assert!(turn.iter().any(|event| Class::of(event) == class), "{class:?}");
        }
    }
}
