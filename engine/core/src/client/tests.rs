//! Stories of one segment's session: each line is an input, behind the arrow what came of it.
#![allow(clippy::unwrap_used)]

use alloc::format;
use alloc::string::{String, ToString};
use alloc::vec;

use bytes::Bytes;

use super::*;
use crate::ids::{Incarnation, VolumeId};

const SEGMENT: SegmentId = SegmentId { volume: VolumeId(1), index: 0 };
const A: NodeId = NodeId(1);
const B: NodeId = NodeId(2);
const C: NodeId = NodeId(3);

fn config(epoch: u64, primary: NodeId) -> Config {
    Config {
        segment: SEGMENT,
        incarnation: Incarnation(1),
        epoch: Epoch(epoch),
        primary,
        members: vec![A, B, C],
        candidates: vec![],
        electable: vec![A, B, C],
        former: vec![],
        generation: Generation(4),
        copies: 3,
        min_copies: 2,
        extents: 512,
    }
}

/// A segment's session with a clock, speaking in words.
struct Story {
    now: Time,
    segment: Segment,
}

impl Story {
    fn new() -> Self {
        Self { now: Time(0), segment: Segment::new(config(1, A), Generation(4), Session(0), Random::new(5)) }
    }

    /// All three nodes connected.
    fn connected() -> Self {
        let mut story = Self::new();
        for node in [A, B, C] {
            story.up(node, "");
        }
        story
    }

    fn give(&mut self, input: Input, expected: &str) {
        let mut effects = Vec::new();
        let said = format!("{input:?}");
        self.segment.handle(self.now, input, &mut effects);
        let words: Vec<String> = effects.iter().map(in_words).collect();
        assert_eq!(words.join(", "), expected, "after {said} at {:?}", self.now);
        let sent = self.segment.pending.iter().filter(|pending| pending.sent.is_some()).count();
        assert_eq!(sent, self.segment.in_flight);
    }

    fn write(&mut self, token: Token, block: u32, expected: &str) {
        self.give(Input::Submit { token, op: write(block), due: None }, expected);
    }

    fn up(&mut self, node: NodeId, expected: &str) {
        self.give(Input::Up(node), expected);
    }

    fn down(&mut self, node: NodeId, expected: &str) {
        self.give(Input::Down(node), expected);
    }

    fn tick(&mut self, millis: u64, expected: &str) {
        self.now = self.now + Span::millis(millis);
        self.give(Input::Tick, expected);
    }

    /// A reply of the current session.
    fn reply(&mut self, from: NodeId, epoch: u64, request: u64, outcome: Outcome, expected: &str) {
        let session = self.segment.session;
        self.reply_in(session, from, epoch, request, outcome, expected);
    }

    fn reply_in(&mut self, session: Session, from: NodeId, epoch: u64, request: u64, outcome: Outcome, expected: &str) {
        let reply = Reply { segment: SEGMENT, epoch: Epoch(epoch), session, request: RequestId(request), outcome };
        self.give(Input::Reply { from, reply }, expected);
    }
}

fn write(block: u32) -> Op {
    let blocks = Blocks { data: Bytes::from(vec![1; 4096]), sums: Bytes::from(vec![0; 4]) };
    Op::Write(Change::Write { block: BlockIndex(block), blocks })
}

fn refused(refusal: Refusal) -> Outcome {
    Outcome::Refused(refusal)
}

fn in_words(effect: &Effect) -> String {
    match effect {
        Effect::Connect(node) => format!("connect {node}"),
        Effect::Send { to, request } if matches!(request.op, Op::Locate { .. }) => format!("locate {to}"),
        Effect::Send { to, request } => {
            format!("{to}: {} in {} at {}", request.request, request.session, request.epoch)
        }
        Effect::Done { token, result: Ok(_) } => format!("done {token}"),
        Effect::Done { token, result: Err(failure) } => format!("failed {token} {failure:?}"),
        Effect::Fenced(generation) => format!("fenced {generation}"),
        Effect::Refresh => "refresh".to_string(),
    }
}

#[test]
fn a_write_goes_to_the_primary_and_is_decided_once() {
    let mut story = Story::connected();
    story.write(7, 0, "n1: r1 in c1 at e1");
    story.reply(A, 1, 1, Outcome::Written, "done 7");
    story.reply(A, 1, 1, Outcome::Written, "");
    assert!(story.segment.is_idle());
    story.tick(60_000, "");
}

#[test]
fn a_lost_primary_is_searched_at_once_and_everything_undecided_sent_again_in_order() {
    let mut story = Story::connected();
    story.write(1, 0, "n1: r1 in c1 at e1");
    story.write(2, 8, "n1: r2 in c1 at e1");
    story.reply(A, 1, 1, Outcome::Written, "done 1");
    story.write(3, 16, "n1: r3 in c1 at e1");
    story.down(A, "connect n1, locate n2, locate n3");
    // They know nothing newer yet; asked again in turn, within 50 ms.
    story.reply(B, 1, 0, Outcome::Located(config(1, A)), "connect n1");
    story.tick(50, "connect n1, connect n1, locate n2");
    story.tick(50, "connect n1, locate n3");
    story.reply(C, 2, 0, Outcome::Located(config(2, C)), "n3: r2 in c2 at e2, n3: r3 in c2 at e2");
    // The old session's answers are nobody's any more.
    story.reply_in(Session(1), A, 1, 2, Outcome::Written, "");
    story.reply(C, 2, 2, Outcome::Written, "done 2");
    story.reply(C, 2, 3, Outcome::Written, "done 3");
}

#[test]
fn a_primary_that_comes_back_first_is_tried() {
    let mut story = Story::connected();
    story.write(1, 0, "n1: r1 in c1 at e1");
    story.down(A, "connect n1, locate n2, locate n3");
    story.up(A, "n1: r1 in c2 at e1");
    story.reply(A, 1, 1, refused(Refusal::NotPrimary(Some(config(2, B)))), "n2: r1 in c3 at e2");
    story.reply(B, 2, 1, Outcome::Written, "done 1");
}

#[test]
fn a_primary_that_is_still_to_begin_is_asked_again_after_a_pause() {
    let mut story = Story::connected();
    story.write(1, 0, "n1: r1 in c1 at e1");
    // It knows a newer epoch than the client: at once, with that epoch.
    story.reply(A, 1, 1, refused(Refusal::NotPrimary(Some(config(2, A)))), "n1: r1 in c2 at e2");
    // It knows nothing new: not at once.
    story.reply(A, 1, 1, refused(Refusal::NotPrimary(Some(config(2, A)))), "");
    story.tick(10, "");
    story.tick(40, "locate n1");
    story.reply(A, 2, 0, Outcome::Located(config(2, A)), "n1: r1 in c3 at e2");
    story.reply(A, 2, 1, Outcome::Written, "done 1");
}

#[test]
fn busy_is_tried_again_after_a_pause_in_the_same_session() {
    let mut story = Story::connected();
    story.write(1, 0, "n1: r1 in c1 at e1");
    story.write(2, 8, "n1: r2 in c1 at e1");
    story.reply(A, 1, 1, refused(Refusal::Busy), "");
    story.write(3, 16, "");
    story.tick(50, "n1: r1 in c1 at e1, n1: r3 in c1 at e1");
}

#[test]
fn pauses_grow_up_to_their_bound() {
    let mut story = Story::connected();
    story.write(1, 0, "n1: r1 in c1 at e1");
    let mut longest = Span::ZERO;
    for _ in 0..400 {
        story.give(
            Input::Reply {
                from: A,
                reply: Reply {
                    segment: SEGMENT,
                    epoch: Epoch(1),
                    session: story.segment.session,
                    request: RequestId(1),
                    outcome: refused(Refusal::Busy),
                },
            },
            "",
        );
        let pause = story.segment.pause_until.since(story.now);
        assert!(pause >= RETRY_MIN && pause <= RETRY_MAX, "{pause:?}");
        longest = longest.max(pause);
        story.now = story.segment.pause_until;
        story.give(Input::Tick, "n1: r1 in c1 at e1");
    }
    assert!(longest > Span::millis(300));
}

#[test]
fn an_answer_of_an_earlier_epoch_does_not_count() {
    let mut story = Story::connected();
    story.write(1, 0, "n1: r1 in c1 at e1");
    story.write(2, 8, "n1: r2 in c1 at e1");
    story.reply(A, 3, 1, Outcome::Written, "done 1");
    // I7: below 3 nothing counts any more, whoever says it; the request is asked again.
    story.reply(A, 2, 2, Outcome::Written, "");
    story.tick(50, "n1: r2 in c1 at e3");
    story.give(Input::Learned(config(2, B)), "");
    story.reply(A, 3, 2, Outcome::Written, "done 2");
}

#[test]
fn a_fence_is_for_ever() {
    let mut story = Story::connected();
    story.write(1, 0, "n1: r1 in c1 at e1");
    story.write(2, 8, "n1: r2 in c1 at e1");
    let fenced = refused(Refusal::Fenced(Generation(5)));
    story.reply(A, 1, 2, fenced, "fenced g5, failed 1 Fenced, failed 2 Fenced");
    story.write(3, 0, "failed 3 Fenced");
    story.up(A, "");
    story.give(Input::Fenced(Generation(6)), "");
    let mut other = Story::connected();
    other.write(1, 0, "n1: r1 in c1 at e1");
    other.give(Input::Fenced(Generation(4)), ""); // its own
    other.give(Input::Fenced(Generation(5)), "fenced g5, failed 1 Fenced");
}

#[test]
fn writes_of_the_same_blocks_go_one_after_the_other() {
    let mut story = Story::connected();
    let zero = |block, count| Op::Write(Change::Zero { block: BlockIndex(block), count });
    story.write(1, 4, "n1: r1 in c1 at e1");
    story.give(Input::Submit { token: 2, op: zero(0, 8), due: None }, "");
    story.write(3, 7, "");
    story.write(4, 8, "n1: r4 in c1 at e1");
    story.give(
        Input::Submit { token: 5, op: Op::Read { block: BlockIndex(0), count: 8 }, due: None },
        "n1: r5 in c1 at e1",
    );
    story.reply(A, 1, 1, Outcome::Written, "done 1, n1: r2 in c1 at e1");
    story.down(A, "connect n1, locate n2, locate n3");
    story.up(A, "n1: r2 in c2 at e1, n1: r4 in c2 at e1, n1: r5 in c2 at e1");
    story.reply(A, 1, 2, Outcome::Written, "done 2, n1: r3 in c2 at e1");
}

#[test]
fn not_more_than_the_bound_is_in_flight() {
    let mut story = Story::connected();
    for token in 0..CLIENT_INFLIGHT_MAX as u64 {
        let block = u32::try_from(token).unwrap();
        story.write(token, block, &format!("n1: r{} in c1 at e1", token + 1));
    }
    story.write(999, 9999, "");
    story.reply(A, 1, 17, Outcome::Written, "done 16, n1: r257 in c1 at e1");
}

#[test]
fn a_silent_primary_makes_the_client_ask_others_and_at_last_start_over() {
    let mut story = Story::connected();
    story.write(1, 0, "n1: r1 in c1 at e1");
    story.tick(499, "");
    story.tick(1, "locate n2");
    story.tick(20, "");
    story.reply(B, 1, 0, Outcome::Located(config(1, A)), "");
    story.tick(500, "locate n3");
    story.tick(10_000, "n1: r1 in c2 at e1");
    story.tick(600, "locate n2");
    story.reply(B, 2, 0, Outcome::Located(config(2, B)), "n2: r1 in c3 at e2");
}

#[test]
fn the_time_limit_ends_a_request_wherever_it_is() {
    let mut story = Story::new();
    let due = Some(Time(0) + Span::seconds(1));
    story.give(Input::Submit { token: 1, op: write(0), due }, "connect n1, connect n2, connect n3");
    story.tick(1000, "failed 1 TimedOut");
    story.up(A, "");
    assert!(story.segment.is_idle());
}

#[test]
fn when_nobody_knows_further_a_fresh_map_is_asked_for_and_followed() {
    let mut story = Story::new();
    story.write(1, 0, "connect n1, connect n2, connect n3");
    let mut asked = 0;
    let mut effects = Vec::new();
    for _ in 0..20 {
        story.now = story.now + Span::millis(50);
        story.segment.handle(story.now, Input::Tick, &mut effects);
        asked += effects.drain(..).filter(|effect| *effect == Effect::Refresh).count();
    }
    assert_eq!(asked, 2);
    let moved = Config { primary: NodeId(9), members: vec![NodeId(9)], ..config(8, B) };
    story.give(Input::Learned(moved), "connect n9");
    story.up(NodeId(9), "n9: r1 in c1 at e8");
}

#[test]
fn answers_are_looked_at_before_they_are_believed() {
    let read = |count| Op::Read { block: BlockIndex(0), count };
    let blocks = |count: usize| Blocks { data: vec![0; count * 4096].into(), sums: vec![0; count * 4].into() };
    let allocation = |count| Op::Allocation { block: BlockIndex(0), count };
    let table = [
        (read(2), Outcome::Data(blocks(2)), "done"),
        (read(2), Outcome::Data(blocks(3)), "failed Malformed"),
        (read(2), Outcome::Written, "failed Malformed"),
        (write(0), Outcome::Written, "done"),
        (write(0), Outcome::Data(blocks(1)), "failed Malformed"),
        (allocation(4), Outcome::Allocation(vec![(1, true), (3, false)]), "done"),
        (allocation(4), Outcome::Allocation(vec![(5, true)]), "failed Malformed"),
        (allocation(4), Outcome::Allocation(vec![]), "failed Malformed"),
        (read(2), refused(Refusal::Malformed), "failed Malformed"),
        (read(2), refused(Refusal::Corrupt(BlockIndex(1))), "failed Corrupt(blk1)"),
    ];
    for (op, outcome, expected) in table {
        let words = match decided(&op, outcome.clone()) {
            Ok(_) => "done".to_string(),
            Err(failure) => format!("failed {failure:?}"),
        };
        assert_eq!(words, expected, "{op:?} {outcome:?}");
    }
}

/// No more in flight than allowed, and never two writes of one block.
fn assert_flight_is_lawful(segment: &Segment, seed: u64) {
    let flying: Vec<_> = segment.pending.iter().filter(|pending| pending.sent.is_some()).collect();
    assert!(flying.len() == segment.in_flight && segment.in_flight <= CLIENT_INFLIGHT_MAX);
    let mut ranges: Vec<_> = flying.iter().filter_map(|pending| written_range(&pending.op)).collect();
    ranges.sort_unstable();
    assert!(ranges.windows(2).all(|pair| pair[0].1 <= pair[1].0), "seed {seed}: {ranges:?}");
}

/// A healthy segment: everything is connected and every request answered, until nothing is left to decide.
fn settle(segment: &mut Segment, mut now: Time, epoch: u64, done: &mut BTreeSet<u64>) {
    for node in [A, B, C] {
        segment.handle(now, Input::Up(node), &mut Vec::new());
    }
    for _ in 0..2000 {
        now = now + Span::millis(20);
        let mut effects = Vec::new();
        segment.handle(now, Input::Tick, &mut effects);
        while let Some(effect) = effects.pop() {
            match effect {
                Effect::Send { to, request: Request { segment: id, session, request, op, .. } } => {
                    let outcome = match op {
                        Op::Locate { .. } => Outcome::Located(config(epoch, segment.config().primary)),
                        _ => Outcome::Written,
                    };
                    let reply = Reply { segment: id, epoch: Epoch(epoch), session, request, outcome };
                    segment.handle(now, Input::Reply { from: to, reply }, &mut effects);
                }
                Effect::Done { token, .. } => assert!(done.insert(token), "{token} decided twice"),
                _ => {}
            }
        }
        if segment.is_idle() {
            return;
        }
    }
}

/// Whatever happens in whatever order: every request is decided at most once, never more are in flight than allowed,
/// never two writes of one block are in flight in one session, and in the end a healthy segment decides all.
#[test]
fn no_order_of_events_breaks_the_rules() {
    for seed in 0..300 {
        let random = &mut Random::new(seed);
        let mut segment = Segment::new(config(1, A), Generation(4), Session(0), Random::new(seed));
        let mut now = Time(0);
        let (mut epoch, mut tokens, mut done) = (1, 0, BTreeSet::new());
        let mut sent: Vec<(NodeId, Request)> = Vec::new();
        for step in 0..600 {
            now = now + Span::millis(random.between(0, 30));
            let node = [A, B, C][usize::try_from(random.between(0, 2)).unwrap()];
            let settling = step >= 400;
            let input = match random.between(0, 9) {
                0 | 1 if !settling => {
                    tokens += 1;
                    let op = write(u32::try_from(random.between(0, 6)).unwrap());
                    Input::Submit { token: tokens, op, due: None }
                }
                2 if !settling => Input::Down(node),
                3 => Input::Up(node),
                4 if !settling => {
                    epoch += random.between(0, 1);
                    Input::Learned(config(epoch, node))
                }
                5 | 6 if !sent.is_empty() => {
                    let at = usize::try_from(random.between(0, sent.len() as u64 - 1)).unwrap();
                    let (from, asked) = sent.swap_remove(at);
                    let outcome = match (&asked.op, random.between(0, 5)) {
                        (Op::Locate { .. }, _) => Outcome::Located(config(epoch, segment.config().primary)),
                        (_, 0) if !settling => refused(Refusal::Busy),
                        (_, 1) if !settling => refused(Refusal::NotPrimary(None)),
                        (_, 2) if !settling => refused(Refusal::OldSession),
                        _ => Outcome::Written,
                    };
                    let Request { segment, session, request, .. } = asked;
                    Input::Reply { from, reply: Reply { segment, epoch: Epoch(epoch), session, request, outcome } }
                }
                _ => Input::Tick,
            };
            if let Input::Up(node) | Input::Down(node) = input {
                sent.retain(|(to, _)| *to != node); // what was under way is lost
            }
            let mut effects = Vec::new();
            segment.handle(now, input, &mut effects);
            for effect in effects {
                match effect {
                    Effect::Send { to, request } => sent.push((to, request)),
                    Effect::Done { token, result } => {
                        assert_eq!(result, Ok(Answer::Written));
                        assert!(done.insert(token), "seed {seed}: {token} decided twice");
                    }
                    _ => {}
                }
            }
            assert_flight_is_lawful(&segment, seed);
        }
        settle(&mut segment, now, epoch, &mut done);
        assert_eq!(done.len() as u64, tokens, "seed {seed}: undecided {:?}", segment.pending);
    }
}
