//! What a round says, by what was said in it; a member that is told that it is wrong.

use super::*;
use crate::config::Config;
use crate::ids::{BlockIndex, Epoch, Generation, Incarnation, RequestId, SegmentId, Seq, Session, VolumeId};
use crate::message::{Decision, Op, Request};
use crate::record::{ExtentCopy, Meta, Recovered, Standing};
use crate::replica::io::{ClientRef, Durable, Input};
use crate::time::Span;

const OWN: NodeId = NodeId(1);
const EXTENT: ExtentIndex = ExtentIndex(3);

/// What is in the extent from `since` to `stamp`; one block, with this checksum.
fn digest(since: u64, stamp: u64, sum: u32) -> ExtentDigest {
    ExtentDigest { since: Seq(since), stamp: Seq(stamp), present: 1, sums: vec![sum] }
}

fn verdict(own: ExtentDigest, others: &[ExtentDigest]) -> Verdict {
    let members = (2..).map(NodeId).zip(others.iter().cloned().map(Said::Holds)).collect();
    let round = Round { extent: EXTENT, own: Some(own), members, tries: 1, pauses: false, acts_at: Time(0) };
    round.verdict(OWN)
}

#[test]
fn who_differs_is_found_where_both_tell_of_one_state() {
    let (right, wrong) = (digest(5, 20, 7), |since, stamp| digest(since, stamp, 8));
    let nobody = Verdict::Wrong(vec![]);
    assert_eq!(verdict(right.clone(), &[digest(5, 6, 7), digest(20, 30, 7)]), nobody);
    // A copy came in there at 12: its stamp says so, its content is the same.
    assert_eq!(verdict(right.clone(), &[digest(12, 12, 7)]), nobody);
    // It never heard of the change at 5, although it says so.
    assert_eq!(verdict(right.clone(), &[wrong(0, 9)]), Verdict::Wrong(vec![NodeId(2)]));
    // It has not heard of the commit point yet, or has something newer.
    assert_eq!(verdict(right.clone(), &[wrong(0, 4)]), Verdict::Again);
    assert_eq!(verdict(right.clone(), &[wrong(21, 30)]), Verdict::Again);
    assert_eq!(verdict(right.clone(), &[wrong(5, 6), wrong(21, 30)]), Verdict::Again, "all or none");
    assert_eq!(verdict(right.clone(), &[wrong(5, 6), digest(5, 6, 7)]), Verdict::Wrong(vec![NodeId(2)]));
    assert_eq!(verdict(right.clone(), &[wrong(5, 6), digest(5, 6, 9)]), Verdict::Wrong(vec![NodeId(2), NodeId(3)]));
    // Both others say the same: the primary is the one that lost it.
    assert_eq!(verdict(right.clone(), &[wrong(5, 6), wrong(6, 9)]), Verdict::Wrong(vec![OWN]));
    let zeros = ExtentDigest { present: 0, sums: vec![], ..right };
    assert_eq!(verdict(digest(5, 20, 7), &[zeros]), Verdict::Wrong(vec![NodeId(2)]));
}

const SEGMENT: SegmentId = SegmentId { volume: VolumeId(1), index: 0 };

fn open(node: NodeId, members: &[NodeId]) -> (Replica, Time) {
    let (segment, members) = (SEGMENT, members.to_vec());
    let config = Config {
        segment,
        incarnation: Incarnation(1),
        epoch: Epoch(4),
        primary: OWN,
        members: members.clone(),
        candidates: vec![],
        electable: members,
        former: vec![],
        generation: Generation(1),
        copies: 2,
        min_copies: 1,
        extents: 512,
    };
    let meta = Meta { promised: Epoch(4), log_epoch: Epoch(4), config, standing: Standing::Member };
    let recovered = Recovered { segment, meta, commit: Seq(5), tail: vec![], damaged: false };
    let now = Time(0) + Span::seconds(10);
    (Replica::open(node, recovered, Span::seconds(1), now, 1), now)
}

fn say(replica: &mut Replica, now: Time, input: Input) -> Vec<Effect> {
    let mut effects = Effects::new();
    replica.handle(now, input, &mut effects);
    effects.drain().collect()
}

fn hear(replica: &mut Replica, now: Time, from: NodeId, message: Peer) -> Vec<Effect> {
    say(replica, now, Input::Peer { from, message })
}

fn sent(effects: &[Effect], what: impl Fn(&Peer) -> bool) -> usize {
    effects.iter().filter(|effect| matches!(effect, Effect::Send { message, .. } if what(message))).count()
}

/// In step with its primary, everything up to 5 committed.
fn backup() -> (Replica, Time) {
    let (mut replica, now) = open(NodeId(2), &[OWN, NodeId(2)]);
    say(&mut replica, now, Input::PeerUp(OWN));
    let config = replica.config().clone();
    hear(&mut replica, now, OWN, Peer::Advance { config, log_epoch: Epoch(4), commit: Seq(5), sent: now });
    (replica, now)
}

#[test]
fn a_member_that_differs_fetches_the_extent_and_gives_it_to_nobody_meanwhile() {
    let (mut replica, now) = backup();
    let asks = |effects: &[Effect]| sent(effects, |message| matches!(message, Peer::CopyGet { .. }));
    let refuses = |effects: &[Effect]| sent(effects, |message| matches!(message, Peer::CopyFailed { .. }));
    let differs = Peer::Differs { extent: EXTENT };
    assert_eq!(asks(&hear(&mut replica, now, NodeId(3), differs.clone())), 0, "only its primary can say so");
    assert_eq!(asks(&hear(&mut replica, now, OWN, Peer::Differs { extent: ExtentIndex(512) })), 0);
    assert_eq!(asks(&hear(&mut replica, now, OWN, differs)), 1);
    let get = Peer::CopyGet { epoch: Epoch(4), extent: EXTENT };
    assert_eq!(refuses(&hear(&mut replica, now, OWN, get.clone())), 1);
    let compared = hear(&mut replica, now, OWN, Peer::Compare { extent: EXTENT });
    assert_eq!(sent(&compared, |message| matches!(message, Peer::CompareFailed { .. })), 1);
    // Nobody answers for a long time. What only the comparison knew is not forgotten.
    let later = now + Span::seconds(100);
    hear(&mut replica, later, OWN, Peer::Beat { epoch: Epoch(4), commit: Seq(5), sent: later });
    assert_eq!(asks(&say(&mut replica, later, Input::Tick)), 1);
    let blocks = crate::record::Blocks::default();
    let copy = ExtentCopy { extent: EXTENT, stamp: Seq(5), present: 0, blocks };
    let mends = hear(&mut replica, later, OWN, Peer::CopyData { epoch: Epoch(4), copy });
    assert!(matches!(mends.as_slice(), [Effect::Mend { .. }]), "{mends:?}");
    say(&mut replica, later, Input::Durable(Durable::Mended(EXTENT)));
    let given = hear(&mut replica, later, OWN, get);
    assert!(matches!(given.as_slice(), [Effect::ReadExtent { .. }]), "{given:?}");
}

#[test]
fn who_does_not_lead_compares_nothing() {
    let (mut replica, now) = backup();
    let effects = say(&mut replica, now, Input::Scrubbed { extent: EXTENT, digest: digest(1, 5, 7) });
    assert!(effects.is_empty() && !replica.is_comparing());
    assert!(hear(&mut replica, now, OWN, Peer::Compared { extent: EXTENT, digest: digest(1, 5, 8) }).is_empty());
    assert_eq!(replica.compared(), &Compared::default());
}

/// Leads epoch 5 of three members that are all in step.
fn primary() -> (Replica, Time) {
    let others = [NodeId(2), NodeId(3)];
    let (mut replica, now) = open(OWN, &[OWN, NodeId(2), NodeId(3)]);
    others.iter().for_each(|node| drop(say(&mut replica, now, Input::PeerUp(*node))));
    let epoch = Epoch(5);
    let config = Config { epoch, ..replica.config().clone() };
    say(&mut replica, now, Input::Decided(Decision::Installed(config)));
    say(&mut replica, now, Input::Durable(Durable::Begun(epoch)));
    let adopted = Peer::Adopted { epoch, log_epoch: epoch, last: Seq(5), commit: Seq(5), sent: now };
    others.iter().for_each(|node| drop(hear(&mut replica, now, *node, adopted.clone())));
    assert!(replica.is_serving());
    (replica, now)
}

fn ask(replica: &mut Replica, now: Time, op: Op) -> Vec<Effect> {
    let (generation, session, request) = (Generation(1), Session(1), RequestId(1));
    let request = Request { segment: SEGMENT, epoch: Epoch(5), generation, session, request, op };
    say(replica, now, Input::Client { client: ClientRef(1), request })
}

#[test]
fn a_primary_that_two_others_contradict_shows_nothing_of_the_extent_before_it_is_mended() {
    let (mut replica, now) = primary();
    let is_asked = |message: &Peer| matches!(message, Peer::Compare { extent: EXTENT });
    let scrubbed = Input::Scrubbed { extent: EXTENT, digest: digest(1, 5, 7) };
    assert_eq!(sent(&say(&mut replica, now, scrubbed), is_asked), 2);
    let other = Peer::Compared { extent: EXTENT, digest: digest(2, 5, 8) };
    assert!(hear(&mut replica, now, NodeId(2), other.clone()).is_empty() && replica.is_comparing());
    let fetches = hear(&mut replica, now, NodeId(3), other);
    assert_eq!(sent(&fetches, |message| matches!(message, Peer::CopyGet { .. })), 1);
    assert_eq!((replica.compared().differing, replica.is_comparing()), (1, false));

    let (block, count) = (BlockIndex(EXTENT.0 * 32 + 31), 2);
    assert_eq!(ask(&mut replica, now, Op::Read { block, count }), []);
    assert_eq!(ask(&mut replica, now, Op::Allocation { block, count }), []);
    let beside = ask(&mut replica, now, Op::Read { block: BlockIndex(block.0 + 1), count });
    assert!(matches!(beside.as_slice(), [Effect::Read { .. }]), "{beside:?}");
    let (stamp, blocks) = (Seq(5), crate::record::Blocks::default());
    let copy = ExtentCopy { extent: EXTENT, stamp, present: 0, blocks };
    hear(&mut replica, now, NodeId(2), Peer::CopyData { epoch: Epoch(5), copy });
    let shown = say(&mut replica, now, Input::Durable(Durable::Mended(EXTENT)));
    assert!(matches!(shown.as_slice(), [Effect::Read { .. }, Effect::Allocation { .. }]), "{shown:?}");
}

#[test]
fn what_cannot_be_compared_is_tried_again_and_left_in_the_end() {
    let (mut replica, mut now) = primary();
    say(&mut replica, now, Input::Scrubbed { extent: EXTENT, digest: digest(1, 5, 7) });
    let mut asked = 1;
    while replica.is_comparing() {
        // It has something newer each time.
        for node in [NodeId(2), NodeId(3)] {
            hear(&mut replica, now, node, Peer::Compared { extent: EXTENT, digest: digest(6, 6, 8) });
        }
        if !replica.is_comparing() {
            break;
        }
        assert!(replica.wake_at().is_some_and(|wake| wake <= now + COMPARE_PAUSE), "something wakes it");
        now = now + COMPARE_PAUSE;
        let again = say(&mut replica, now, Input::Tick);
        assert_eq!(again.iter().filter(|effect| matches!(effect, Effect::Digest { to: OWN, .. })).count(), 1);
        asked += 1;
        say(&mut replica, now, Input::Digest { to: OWN, extent: EXTENT, digest: Some(digest(1, 5, 7)) });
    }
    assert_eq!((asked, replica.compared().unsettled, replica.compared().differing), (COMPARE_TRIES, 1, 0));
    // Without all members nothing is begun.
    say(&mut replica, now, Input::PeerDown { node: NodeId(3), refused: false });
    say(&mut replica, now, Input::Scrubbed { extent: EXTENT, digest: digest(1, 5, 7) });
    assert_eq!((replica.is_comparing(), replica.compared().unsettled), (false, 2));
}
