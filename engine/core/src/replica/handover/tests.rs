//! Three replicas with a perfect network, a disk without delay and the authority's judgement. What shall go wrong is
//! held back by name.
#![allow(clippy::unwrap_used)]

use alloc::boxed::Box;
use alloc::collections::VecDeque;
use alloc::vec;

use super::*;
use crate::authority::proposals::{Proposal, Verdict, judge};
use crate::authority::records::SegmentRecord;
use crate::ids::{BlockIndex, Generation, Incarnation, RequestId, SegmentId, Seq, Session, VolumeId};
use crate::limits::{LEASE, PREPARE_DEADLINE, PROPOSAL_RETRY, SILENCE, TICK};
use crate::message::{self, Decision, Op, Reply, ToAuthority};
use crate::record::{Blocks, Change, Meta, Recovered, Standing};
use crate::replica::io::{Durable, Effect, Input, ReadPurpose};

const SEGMENT: SegmentId = SegmentId { volume: VolumeId(1), index: 0 };
const A: NodeId = NodeId(1);
const B: NodeId = NodeId(2);
const C: NodeId = NodeId(3);
const CLIENT: ClientRef = ClientRef(1);

struct Trio {
    now: Time,
    nodes: Vec<(NodeId, Box<Replica>)>,
    record: SegmentRecord,
    work: VecDeque<(NodeId, Input)>,
    /// Disk reads that nobody has finished yet.
    reads: Vec<(NodeId, ReadPurpose)>,
    replies: Vec<(NodeId, Reply)>,
    /// Messages with these names get lost.
    lost: Vec<&'static str>,
    proposals: usize,
    cut: Vec<NodeId>,
    /// Devices that write nothing.
    still: Vec<NodeId>,
    requests: u64,
}

impl Trio {
    /// n1 leads n1, n2 and n3; at least `min_copies` have to hold what is acknowledged.
    fn new(members: &[NodeId], min_copies: u8) -> Self {
        let config = Config {
            segment: SEGMENT,
            incarnation: Incarnation(1),
            epoch: Epoch(1),
            primary: A,
            members: members.to_vec(),
            candidates: vec![],
            electable: members.to_vec(),
            former: vec![],
            generation: Generation(1),
            copies: u8::try_from(members.len()).unwrap(),
            min_copies,
            extents: 512,
        };
        let open = |node: &NodeId| {
            let meta =
                Meta { promised: Epoch(1), log_epoch: Epoch(1), config: config.clone(), standing: Standing::Member };
            (*node, Box::new(Replica::create(*node, SEGMENT, meta, Span::seconds(1), Time(0), 1)))
        };
        let mut trio = Self {
            now: Time(0) + Span::seconds(100),
            nodes: members.iter().map(open).collect(),
            record: SegmentRecord { config: config.clone(), fresh: vec![], recovering: false },
            work: VecDeque::new(),
            reads: vec![],
            replies: vec![],
            lost: vec![],
            proposals: 0,
            cut: vec![],
            still: vec![],
            requests: 0,
        };
        for one in members {
            for other in members.iter().filter(|other| *other != one) {
                trio.give(*one, Input::PeerUp(*other));
            }
        }
        trio.pass(Span::seconds(3));
        assert_eq!(trio.record.config.primary, A);
        assert!(trio.serves(A));
        trio.replies.clear();
        trio
    }

    fn node(&mut self, node: NodeId) -> &mut Replica {
        &mut self.nodes.iter_mut().find(|(id, _)| *id == node).unwrap().1
    }

    fn serves(&mut self, node: NodeId) -> bool {
        self.node(node).is_serving()
    }

    /// Gives an input, and everything that follows from it at once.
    fn give(&mut self, node: NodeId, input: Input) {
        self.work.push_back((node, input));
        while let Some((node, input)) = self.work.pop_front() {
            if self.cut.contains(&node) {
                continue;
            }
            let mut effects = Effects::new();
            let now = self.now;
            self.node(node).handle(now, input, &mut effects);
            let effects: Vec<Effect> = effects.drain().collect();
            self.run(node, effects);
        }
    }

    fn run(&mut self, node: NodeId, effects: Vec<Effect>) {
        for effect in effects {
            match effect {
                Effect::Persist { .. } if self.still.contains(&node) => {}
                Effect::Persist { then, .. } | Effect::CopyIn { then, .. } => self.run(node, then),
                Effect::Feed(durable) => self.work.push_back((node, Input::Durable(durable))),
                Effect::Send { to, message, .. } => {
                    let name = alloc::format!("{message:?}");
                    if !self.lost.iter().any(|lost| name.starts_with(lost)) {
                        self.work.push_back((to, Input::Peer { from: node, message }));
                    }
                }
                Effect::Reply { reply, .. } => self.replies.push((node, reply)),
                // Nothing was ever written: a catch-up has nothing to copy.
                Effect::List { purpose, from, .. } => {
                    self.work.push_back((node, Input::Listed { purpose, from, listed: vec![], next: None }));
                }
                Effect::Read { purpose, .. } => self.reads.push((node, purpose)),
                Effect::Authority(ToAuthority::Proposals(proposals)) => {
                    for message::Proposal { expected, config, promised } in proposals {
                        self.propose(node, expected, &config, promised);
                    }
                }
                _ => {}
            }
        }
    }

    fn propose(&mut self, sender: NodeId, expected: Epoch, wanted: &Config, promised: bool) {
        self.proposals += 1;
        if self.lost.contains(&"Propose") {
            return;
        }
        let verdict = judge(&Proposal {
            current: &self.record,
            sender,
            expected,
            wanted,
            promised,
            targets: &[],
            generation: Generation(1),
            in_touch: &|_| true,
        });
        let decision = match verdict {
            Verdict::Install(record, _) => {
                self.record = record;
                Decision::Installed(self.record.config.clone())
            }
            Verdict::Conflict => Decision::Conflict(self.record.config.clone()),
            Verdict::Denied(reason) => Decision::Denied(self.record.config.clone(), reason),
        };
        if !self.lost.contains(&"Decided") {
            self.work.push_back((sender, Input::Decided(decision)));
        }
    }

    fn pass(&mut self, span: Span) {
        let end = self.now + span;
        while self.now < end {
            self.now = self.now + TICK;
            let ids: Vec<NodeId> = self.nodes.iter().map(|(id, _)| *id).collect();
            for id in ids {
                self.give(id, Input::Tick);
            }
        }
    }

    /// A process that is gone, to everybody at once.
    fn crash(&mut self, node: NodeId) {
        self.cut.push(node);
        for other in [A, B, C].into_iter().filter(|other| *other != node) {
            if self.nodes.iter().any(|(id, _)| *id == other) {
                self.give(other, Input::PeerDown { node, refused: true });
            }
        }
    }

    fn ask(&mut self, node: NodeId, epoch: u64, op: Op) -> RequestId {
        self.requests += 1;
        let request = RequestId(self.requests);
        let (generation, session) = (Generation(1), Session(epoch));
        let request = Request { segment: SEGMENT, epoch: Epoch(epoch), generation, session, request, op };
        let number = request.request;
        self.give(node, Input::Client { client: CLIENT, request });
        number
    }

    fn write(&mut self, node: NodeId, epoch: u64) -> RequestId {
        self.ask(node, epoch, Op::Write(Change::Zero { block: BlockIndex(0), count: 1 }))
    }

    fn answer(&self, request: RequestId) -> Option<(NodeId, Outcome)> {
        let found = self.replies.iter().find(|(_, reply)| reply.request == request);
        found.map(|(node, reply)| (*node, reply.outcome.clone()))
    }

    fn finish_reads(&mut self) {
        for (node, purpose) in core::mem::take(&mut self.reads) {
            let blocks = Blocks { data: bytes::Bytes::from(vec![0; 4096]), sums: bytes::Bytes::from(vec![0; 4]) };
            self.give(node, Input::Read { purpose, result: Ok(blocks) });
        }
    }
}

fn sends_to(outcome: Option<(NodeId, Outcome)>, by: NodeId, successor: NodeId) -> bool {
    matches!(outcome, Some((node, Outcome::Refused(Refusal::NotPrimary(Some(config)))))
        if node == by && config.primary == successor)
}

#[test]
fn a_primary_that_stops_is_succeeded_at_once_and_nobody_waits_for_a_deadline() {
    let mut trio = Trio::new(&[A, B, C], 2);
    let epoch = trio.record.config.epoch;
    let before = trio.now;
    trio.give(A, Input::Stopping);
    let config = trio.record.config.clone();
    assert_eq!((config.epoch, trio.now), (epoch.next(), before), "one change, without a tick");
    assert_eq!(config.members, vec![B, C], "enough are left: its end costs no second change");
    let successor = config.primary;
    assert!(trio.serves(successor) && trio.node(A).may_stop());
    let asked = trio.write(A, epoch.0);
    assert!(sends_to(trio.answer(asked), A, successor));
    let asked = trio.write(successor, config.epoch.0);
    assert_eq!(trio.answer(asked), Some((successor, Outcome::Written)));
    // It does not come back by itself while it stops.
    trio.pass(Span::seconds(3));
    assert_eq!(trio.record.config.members, vec![B, C]);
}

/// I8: its deadline is enough to know; nobody waits for the silence of somebody who can speak.
#[test]
fn a_primary_whose_device_stands_still_is_succeeded_when_its_deadline_has_passed() {
    let mut trio = Trio::new(&[A, B, C], 2);
    let epoch = trio.record.config.epoch;
    trio.still.push(A);
    let asked = trio.write(A, epoch.0);
    trio.pass(Span(PREPARE_DEADLINE.0 - TICK.0));
    assert_eq!((trio.record.config.epoch, trio.answer(asked)), (epoch, None));
    trio.pass(Span(2 * TICK.0));
    let config = trio.record.config.clone();
    assert_eq!(config.members, vec![B, C], "it is left out by the same change");
    assert!(sends_to(trio.answer(asked), A, config.primary));
    let asked = trio.write(config.primary, config.epoch.0);
    assert_eq!(trio.answer(asked), Some((config.primary, Outcome::Written)));
}

#[test]
fn undecided_requests_are_sent_to_the_successor_and_reads_in_flight_answer_nothing() {
    let mut trio = Trio::new(&[A, B, C], 2);
    let epoch = trio.record.config.epoch.0;
    let read = trio.ask(A, epoch, Op::Read { block: BlockIndex(0), count: 1 });
    assert_eq!(trio.reads.len(), 1);
    trio.lost = vec!["PrepareAck"];
    let written = trio.write(A, epoch);
    trio.lost.clear();
    trio.give(A, Input::Stopping);
    let successor = trio.record.config.primary;
    assert!(sends_to(trio.answer(written), A, successor), "{:?}", trio.replies);
    // I7: the successor may have committed another value meanwhile.
    trio.finish_reads();
    assert!(sends_to(trio.answer(read), A, successor), "{:?}", trio.replies);
    // I9: what was ordered and not decided is decided by the successor.
    let view = trio.node(successor).view();
    assert_eq!((view.commit, view.last), (Seq(1), Seq(1)));
}

#[test]
fn without_an_answer_of_the_authority_the_primary_serves_on() {
    let mut trio = Trio::new(&[A, B, C], 2);
    let epoch = trio.record.config.epoch.0;
    trio.lost = vec!["Propose"];
    trio.give(A, Input::Stopping);
    for _ in 0..4 {
        let asked = trio.write(A, epoch);
        assert_eq!(trio.answer(asked), Some((A, Outcome::Written)), "I8: the authority is not needed");
        trio.pass(Span::millis(700));
    }
    assert!(!trio.node(A).may_stop());
    trio.lost.clear();
    trio.pass(PROPOSAL_RETRY);
    assert_ne!(trio.record.config.primary, A);
    assert!(trio.node(A).may_stop());
}

#[test]
fn a_lost_answer_is_found_out_and_the_successor_is_told() {
    let mut trio = Trio::new(&[A, B, C], 2);
    let epoch = trio.record.config.epoch.0;
    trio.lost = vec!["Decided"];
    trio.give(A, Input::Stopping);
    let successor = trio.record.config.primary;
    assert!(successor != A && trio.serves(A) && !trio.serves(successor));
    let asked = trio.write(A, epoch);
    assert_eq!(trio.answer(asked), Some((A, Outcome::Written)), "held by every member of its epoch");
    trio.lost.clear();
    trio.pass(Span(PROPOSAL_RETRY.0 + TICK.0));
    assert!(trio.serves(successor) && !trio.serves(A));
    assert_eq!(trio.node(successor).view().commit, Seq(1));
}

#[test]
fn when_begin_is_lost_with_the_primary_the_others_find_the_successor() {
    let mut trio = Trio::new(&[A, B, C], 2);
    trio.lost = vec!["Begin"];
    trio.give(A, Input::Stopping);
    let successor = trio.record.config.primary;
    assert!(!trio.serves(successor));
    trio.lost.clear();
    trio.crash(A);
    trio.pass(Span(SILENCE.0 + LEASE.0 + 1_000_000_000));
    let leads = trio.record.config.primary;
    assert!(trio.serves(leads));
}

#[test]
fn a_request_that_comes_before_begin_waits_for_it() {
    let mut trio = Trio::new(&[A, B, C], 2);
    trio.lost = vec!["Begin"];
    trio.give(A, Input::Stopping);
    let config = trio.record.config.clone();
    let early = trio.write(config.primary, config.epoch.0);
    assert_eq!(trio.answer(early), None);
    let begin = Peer::Begin { config: config.clone(), lease_left: Span::ZERO };
    trio.give(config.primary, Input::Peer { from: A, message: begin });
    assert_eq!(trio.answer(early), Some((config.primary, Outcome::Written)));
    // And not for ever.
    let other = if config.primary == B { C } else { B };
    let nonsense = trio.write(other, config.epoch.0 + 7);
    trio.pass(Span(EARLY_WAIT.0 + TICK.0));
    assert!(sends_to(trio.answer(nonsense), other, config.primary));
}

/// Seed 200839 of the swarm: a successor that ended before its epoch was durable began it again with a shorter log, and
/// those who had adopted the first one took it for theirs.
#[test]
fn nobody_hears_of_a_reign_whose_first_record_is_not_durable() {
    let mut trio = Trio::new(&[A, B, C], 2);
    trio.still = vec![B, C];
    trio.give(A, Input::Stopping);
    let config = trio.record.config.clone();
    let other = if config.primary == B { C } else { B };
    assert!(matches!(trio.node(config.primary).role, Role::Primary(_)), "it has begun, for itself");
    trio.give(config.primary, Input::PeerUp(other));
    trio.pass(Span::millis(50));
    assert!(epoch::is_ahead(config.epoch, &trio.node(other).meta.config), "I2, I9");
    // Nor when the authority has installed one more meanwhile.
    let more = Config { epoch: config.epoch.next(), ..config.clone() };
    trio.record.config = more.clone();
    trio.give(config.primary, Input::Decided(Decision::Installed(more.clone())));
    trio.pass(Span::millis(50));
    assert!(epoch::is_ahead(config.epoch, &trio.node(other).meta.config), "I2, I9");
    trio.still.clear();
    trio.give(config.primary, Input::Durable(Durable::Begun(config.epoch)));
    assert!(!trio.serves(config.primary), "of the epoch at work nothing is known to be durable");
    trio.give(config.primary, Input::Durable(Durable::Begun(more.epoch)));
    assert!(trio.serves(config.primary));
}

#[test]
fn nothing_is_ordered_in_an_epoch_that_nobody_has_heard_of() {
    let mut trio = Trio::new(&[A, B, C], 2);
    let config = trio.record.config.clone();
    trio.still = vec![A];
    trio.crash(C);
    trio.pass(Span::millis(50));
    let next = trio.record.config.clone();
    assert!(next.epoch == config.epoch.next() && next.members == [A, B] && next.primary == A, "{next:?}");
    let asked = trio.write(A, next.epoch.0);
    assert!(epoch::is_ahead(next.epoch, &trio.node(B).meta.config), "B has not heard of it");
    assert_eq!((trio.answer(asked), trio.node(A).view().last), (None, Seq(0)));
    trio.still.clear();
    trio.give(A, Input::Durable(Durable::Begun(next.epoch)));
    assert_eq!(trio.answer(asked), Some((A, Outcome::Written)));
}

#[test]
fn what_a_primary_still_waited_for_its_successor_waits_for() {
    let mut trio = Trio::new(&[A, B, C], 2);
    // A crashes as primary and B takes over: its leases may run. B hands over before any client came.
    trio.crash(A);
    trio.pass(Span::millis(300));
    let leads = trio.record.config.primary;
    assert!(trio.serves(leads));
    trio.record.config.min_copies = 1;
    trio.node(leads).meta.config.min_copies = 1;
    trio.give(leads, Input::Stopping);
    let successor = trio.record.config.primary;
    assert_ne!(successor, leads);
    let Role::Primary(primary) = &trio.node(successor).role else { panic!("it has begun") };
    let now = Time(0) + Span::seconds(100);
    assert!(primary.lease_left(now) > Span::ZERO, "I7");
}

#[test]
fn a_backup_that_stops_is_left_out_while_it_still_acknowledges() {
    let mut trio = Trio::new(&[A, B, C], 2);
    let before = trio.now;
    trio.give(C, Input::Stopping);
    assert_eq!((trio.record.config.members.clone(), trio.now), (vec![A, B], before));
    assert!(trio.node(C).may_stop() && trio.serves(A));
}

#[test]
fn a_backup_that_is_needed_is_told_to_go_as_it_is() {
    let mut trio = Trio::new(&[A, B], 2);
    let epoch = trio.record.config.epoch;
    trio.give(B, Input::Stopping);
    assert_eq!(trio.record.config.epoch, epoch);
    assert!(trio.node(B).may_stop());
    // And the primary has nobody left to hand over to.
    trio.give(A, Input::Stopping);
    assert!(trio.node(A).may_stop());
    assert_eq!(trio.record.config.primary, A);
}

#[test]
fn a_primary_that_is_needed_hands_over_and_stays_a_member() {
    let mut trio = Trio::new(&[A, B], 2);
    trio.give(A, Input::Stopping);
    assert_eq!((trio.record.config.primary, trio.record.config.members.clone()), (B, vec![A, B]));
    trio.pass(Span::millis(300));
    assert!(trio.serves(B) && trio.node(A).may_stop());
}

#[test]
fn all_stop_together_and_none_waits_for_the_others() {
    let mut trio = Trio::new(&[A, B, C], 2);
    for node in [A, B, C] {
        trio.give(node, Input::Stopping);
    }
    trio.pass(Span::millis(500));
    for node in [A, B, C] {
        assert!(trio.node(node).may_stop(), "{node}");
    }
}

#[test]
fn what_a_replica_left_out_has_committed_stays_committed_when_it_starts_again() {
    let trio = Trio::new(&[A, B, C], 2);
    let config = trio.record.config;
    let base = Seq(5);
    for standing in [Standing::Stale { base }, Standing::Candidate { base }, Standing::Joining { base }] {
        let meta = Meta { promised: config.epoch, log_epoch: config.epoch, config: config.clone(), standing };
        // Its state says more than its log: the record of the commit point was still to come.
        let recovered = Recovered { segment: SEGMENT, meta, commit: Seq(3), tail: vec![], damaged: false };
        let mut replica = Replica::open(C, recovered, Span::seconds(1), Time(0), 1);
        let mut effects = Effects::new();
        replica.start(&mut effects);
        let said: Vec<Effect> = effects.drain().collect();
        assert_eq!(said[0], Effect::Commit(base), "I4: a catch-up copies only what comes after its base");
    }
}

#[test]
fn a_wish_of_the_authority_moves_the_lead_and_nothing_else() {
    let mut trio = Trio::new(&[A, B, C], 2);
    let before = trio.record.config.clone();
    trio.give(A, Input::HandOver { epoch: Epoch(before.epoch.0 - 1), to: B });
    assert_eq!(trio.record.config, before, "thought up for another configuration");
    trio.give(A, Input::HandOver { epoch: before.epoch, to: B });
    assert_eq!((trio.record.config.primary, &trio.record.config.members), (B, &before.members));
    assert!(trio.serves(B) && !trio.serves(A));
}

#[test]
fn a_client_that_reaches_a_member_only_gets_it_as_primary_but_not_to_and_fro() {
    let mut trio = Trio::new(&[A, B, C], 2);
    let epoch = trio.record.config.epoch.0;
    trio.pass(TAKE_OVER_PAUSE);
    trio.ask(B, epoch, Op::Locate { unreachable: false });
    assert_eq!(trio.record.config.primary, A);
    trio.ask(B, epoch, Op::Locate { unreachable: true });
    assert!(trio.record.config.primary == B && trio.serves(B));
    trio.ask(C, epoch, Op::Locate { unreachable: true });
    assert_eq!(trio.record.config.primary, B, "it has only begun");
}

#[test]
fn a_primary_whose_client_waits_for_something_else_is_reached_by_it() {
    let mut trio = Trio::new(&[A, B, C], 2);
    let epoch = trio.record.config.epoch.0;
    trio.pass(TAKE_OVER_PAUSE);
    trio.lost = vec!["PrepareAck", "BeatAck"];
    trio.write(A, epoch);
    trio.ask(B, epoch, Op::Locate { unreachable: true });
    assert_eq!(trio.record.config.primary, A);
}

#[test]
fn a_member_that_flaps_is_let_back_only_after_a_quiet_while() {
    let mut trio = Trio::new(&[A, B, C], 2);
    let first = trio.record.config.epoch.0;
    for _ in 0..20 {
        trio.give(A, Input::PeerDown { node: C, refused: true });
        trio.pass(Span::seconds(1));
        trio.give(A, Input::PeerUp(C));
        trio.pass(Span::seconds(2));
    }
    let epochs = trio.record.config.epoch.0 - first;
    assert!(epochs <= 15, "{epochs} epochs in a minute");
}
