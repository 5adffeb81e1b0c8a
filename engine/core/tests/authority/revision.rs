//! What an authority does that may be an older copy of itself: it waits, it freezes, it is told to go on (I11).

use engine_core::authority::document::{AcceptOlder, Consequences};
use engine_core::authority::io::{Answer, Call, CallError, ErrorCode};
use engine_core::config::Config;
use engine_core::ids::{Epoch, NodeId, Revision, SegmentId, VolumeId};
use engine_core::limits::STANDSTILL_PATIENCE;
use engine_core::message::{Decision, FromAuthority, HeldConfig, Registration, ToAuthority};
use engine_core::record::Standing;
use engine_core::time::Span;

use crate::exits::facts;
use crate::stories::propose;
use crate::world::{World, booted, registration, wish};

fn accept(w: &mut World, request: AcceptOlder) -> Result<Consequences, CallError> {
    let call = w.call(Call::AcceptOlder(request));
    match w.answer(call).unwrap() {
        Ok(Answer::Consequences(document)) => Ok(*document),
        Ok(other) => panic!("{other:?}"),
        Err(error) => Err(error),
    }
}

fn again(id: u16) -> Registration {
    booted(2, registration(id))
}

#[test]
fn nothing_is_changed_before_most_nodes_have_reported_and_what_waited_is_done_then() {
    let mut w = World::new(3);
    w.volume("v", 1);
    let before = w.backup();
    w.restart();
    w.register(again(1));
    w.register(again(2));
    w.register(again(3));
    let call = w.create("w", 64 << 20);
    w.pass(Span::seconds(1));
    assert_eq!(w.backup(), before, "not even the boot counters");
    let status = w.status();
    let waiting = status.waiting.expect("it says what it waits for");
    assert!(waiting.contains("0 of 3 nodes") && waiting.contains("n1, n2, n3"), "{waiting}");
    assert!(status.next.unwrap().contains("accept-older"));

    w.back(again(1));
    assert!(w.answer(call).is_none() && w.backup() == before);
    w.back(again(2));
    assert!(w.status().waiting.is_none(), "two of three");
    w.settle();
    assert!(matches!(w.answer(call), Some(Ok(Answer::Volume(_)))), "it was kept");
}

#[test]
fn an_election_that_waited_is_decided_with_the_majority() {
    let mut w = World::new(3);
    w.volume("v", 1);
    let config = w.segment(0);
    let (old, new, third) = (config.members[0], config.members[1], config.members[2]);
    w.restart();
    w.back(again(new.0));
    w.sent.clear();
    crate::stories::say_proposal(&mut w, 0, new, &[new, third], &[]);
    assert_eq!(w.heard(new), [], "no answer: it is not decided");
    w.back(again(third.0));
    let heard = w.heard(new);
    let decided = heard.iter().any(|message| {
        matches!(message, FromAuthority::Decisions(decisions)
        if matches!(decisions.as_slice(), [Decision::Installed(config)] if config.primary == new))
    });
    assert!(decided, "{heard:?}");
    assert!(!w.segment(0).is_member(old));
}

#[test]
fn calls_do_not_wait_for_ever_and_say_what_for() {
    let mut w = World::new(3);
    w.restart();
    w.back(again(2));
    let call = w.create("v", 64 << 20);
    w.pass(STANDSTILL_PATIENCE);
    let error = w.answer(call).unwrap().unwrap_err();
    assert_eq!(error.code, ErrorCode::Unavailable);
    assert!(error.message.contains("1 of 3 nodes") && error.message.contains("n1, n3"), "{error}");
    assert!(error.next.unwrap().contains("nodectl authority accept-older"));
}

#[test]
fn a_lone_survivor_goes_on_when_a_person_says_so() {
    let mut w = World::new(3);
    w.restart();
    w.back(again(2));
    let error = accept(&mut w, AcceptOlder::default()).unwrap_err();
    assert_eq!(error.code, ErrorCode::Refused);
    assert!(error.message.contains("n1, n3") && error.message.contains("nothing was changed"), "{error}");
    let revision = w.status().revision;
    assert!(error.next.unwrap().contains(&format!("--revision {}", revision.0)));
    let wrong = AcceptOlder { revision: Some(Revision(revision.0 + 1)), ..AcceptOlder::default() };
    assert_eq!(accept(&mut w, wrong).unwrap_err().code, ErrorCode::Refused);
    let dry = AcceptOlder { dry_run: true, ..AcceptOlder::default() };
    assert!(!accept(&mut w, dry).unwrap().done && w.status().waiting.is_some());
    assert!(accept(&mut w, AcceptOlder { revision: Some(revision), ..AcceptOlder::default() }).unwrap().done);
    assert!(w.status().waiting.is_none());
    // Whoever comes later and knows more still freezes it.
    w.register(Registration { revision: Revision(10_000), ..again(3) });
    assert!(w.status().frozen.unwrap().contains("older than what n3 knows"));
}

#[test]
fn nobody_is_waited_for_where_nobody_is_known_or_all_are_given_up() {
    let mut w = World::new(0);
    w.restart();
    assert!(w.status().waiting.is_none());
    let mut w = World::new(1);
    w.restart();
    assert!(w.status().waiting.is_some());
    w.back(again(1));
    assert!(w.status().waiting.is_none(), "one of one");
}

#[test]
fn a_later_configuration_freezes_although_the_revision_was_never_told() {
    let mut w = World::new(3);
    w.volume("v", 1);
    let backup = w.backup();
    let config = w.segment(0);
    let Decision::Installed(later) = propose(&mut w, 0, config.primary, &config.members[..2], &[]) else {
        panic!("installed")
    };
    w.restore(backup);
    w.register(again(config.primary.0));
    let part = vec![facts(&later, Standing::Member, 3)];
    w.say(config.primary, ToAuthority::Replicas { part, last: true });
    let frozen = w.status().frozen.expect("it is noticed");
    assert!(frozen.contains(&format!("segment {} is in", config.segment)), "{frozen}");
    let error = crate::stories::error(&mut w, Call::Create(wish("w", 1)));
    assert!(error.1.contains("older than what"), "{error:?}");
    assert_eq!(w.segment(0), config, "nothing is changed");
    assert!(w.heard(NodeId(config.primary.0)).contains(&FromAuthority::ShowConfigs), "it is asked what it knows");
}

/// A node registers with the authority it knows to be newer, and tells everything.
fn tells(w: &mut World, id: u16, revision: u64, held: &[HeldConfig]) {
    w.register(Registration { revision: Revision(revision), ..again(id) });
    let part = held.iter().map(|held| facts(&held.config, Standing::Member, 3)).collect();
    w.say(NodeId(id), ToAuthority::Replicas { part, last: true });
    w.say(NodeId(id), ToAuthority::Configs { part: held.to_vec(), last: true });
}

/// A cluster of four whose segment was shrunk and whose second volume was made after the backup that came back.
fn older() -> (World, Config, Config, Config) {
    let mut w = World::new(4);
    w.volume("v", 1);
    let backup = w.backup();
    let old = w.segment(0);
    let Decision::Installed(later) = propose(&mut w, 0, old.primary, &old.members[..2], &[]) else {
        panic!("installed")
    };
    let segment = SegmentId { volume: VolumeId(2), index: 0 };
    let unknown = Config { segment, ..old.clone() };
    w.restore(backup);
    (w, old, later, unknown)
}

#[test]
fn an_older_record_goes_on_with_what_its_nodes_report() {
    let (mut w, old, later, unknown) = older();
    let (primary, backup, out) = (old.members[0], old.members[1], old.members[2]);
    // The backup has promised two epochs more to somebody; the one that was left out knows less.
    for id in 1..=4 {
        let held = |config: &Config, promised| HeldConfig { config: config.clone(), promised: Epoch(promised) };
        let held = match NodeId(id) {
            node if node == primary => vec![held(&later, 2), held(&unknown, 1)],
            node if node == backup => vec![held(&later, 4)],
            node if node == out => vec![held(&old, 1)],
            _ => vec![],
        };
        tells(&mut w, id, 90 + u64::from(id), &held);
    }
    let before = w.backup();
    let error = accept(&mut w, AcceptOlder::default()).unwrap_err();
    assert_eq!(error.code, ErrorCode::Refused);
    for said in ["n4 (saw 94)", "segment v/0 goes on", "1 segments of volume v2 on", "nothing was changed"] {
        assert!(error.message.contains(said), "no `{said}` in {error}");
    }
    assert!(error.next.unwrap().contains("nodectl authority accept-older --revision 94"));
    assert_eq!(w.backup(), before);

    w.sent.clear();
    assert!(accept(&mut w, AcceptOlder { revision: Some(Revision(94)), ..AcceptOlder::default() }).unwrap().done);
    let status = w.status();
    assert!(status.frozen.is_none() && status.revision > Revision(94));
    let config = w.segment(0);
    assert_eq!((config.epoch, &config.members), (Epoch(5), &later.members), "above every promise (I1)");
    assert_eq!(config.former, [out], "it may still come back by catch-up");
    let heard = w.heard(primary);
    assert!(heard.contains(&FromAuthority::Decisions(vec![Decision::Conflict(config)])), "{heard:?}");
    let released = w.sent.iter().any(|(_, message)| matches!(message, FromAuthority::Release { .. }));
    assert!(!released, "unknown is not deleted (I11)");
    w.volume("w", 1);
    assert_eq!(w.records_of("volume/2"), 0, "its id is not used again");
}

#[test]
fn an_older_record_is_not_accepted_while_somebody_who_may_know_more_is_silent() {
    let (mut w, old, later, _) = older();
    let (primary, backup, out) = (old.members[0], old.members[1], old.members[2]);
    let held = HeldConfig { config: later, promised: Epoch(2) };
    tells(&mut w, primary.0, 90, &[held]);
    let named = AcceptOlder { revision: Some(Revision(90)), ..AcceptOlder::default() };
    let error = accept(&mut w, named.clone()).unwrap_err();
    assert!(error.message.contains(&backup.to_string()) && error.message.contains(&out.to_string()), "{error}");
    for id in (1..=4).filter(|id| *id != primary.0 && *id != backup.0) {
        tells(&mut w, id, 90, &[]);
    }
    let error = accept(&mut w, named.clone()).unwrap_err();
    assert!(error.next.unwrap().contains(&format!("--without {backup}")));
    let without = AcceptOlder { without: vec![primary], ..named };
    assert!(accept(&mut w, without).unwrap_err().message.contains("is in touch"));
    assert!(w.status().frozen.is_some());
    assert!(accept(&mut w, AcceptOlder { without: vec![backup], ..named }).unwrap().done);
    let config = w.segment(0);
    assert_eq!((config.primary, &config.members), (primary, &vec![primary]), "the segment lets go of it");
    w.register(again(backup.0));
    assert!(w.refused.pop().unwrap().contains("declared gone for good"), "its device is never taken in again");
}

#[test]
fn a_copy_to_be_dropped_by_the_older_record_is_kept_where_it_counts_again() {
    let mut w = World::new(6);
    w.volume("v", 1);
    let old = w.segment(0);
    let (primary, backup, out) = (old.members[0], old.members[1], old.members[2]);
    let other = NodeId(if out.0 > 3 { out.0 - 3 } else { out.0 + 3 }); // of the same zone
    // In the record `out` is to drop its copy; since then it came back, as a member, with the same life.
    w.leave(out.0);
    w.pass(Span::seconds(6));
    propose(&mut w, 0, primary, &[primary, backup], &[]);
    let current = w.segment(0);
    let ask = engine_core::message::PermitAsk { segment: current.segment, epoch: current.epoch, members: 2 };
    w.say(primary, ToAuthority::PermitAsks(vec![ask]));
    w.pass(Span::seconds(1));
    let granted = w.heard(other).into_iter().find_map(|message| match message {
        FromAuthority::Reserve { permit, segment, .. } => Some((permit, segment)),
        _ => None,
    });
    let (permit, segment) = granted.expect("reserved");
    w.say(other, ToAuthority::Reserved { permit, segment, granted: true });
    propose(&mut w, 0, primary, &[primary, backup], &[other]);
    propose(&mut w, 0, primary, &[primary, backup, other], &[]);
    assert_eq!(w.records_of("release"), 1);
    let at_backup = w.segment(0);
    let backup_records = w.backup();
    let later = Config {
        epoch: Epoch(at_backup.epoch.0 + 5),
        members: vec![primary, out],
        electable: vec![primary, out],
        former: vec![backup, other],
        ..at_backup
    };
    w.restore(backup_records);
    for id in 1..=6 {
        let held = HeldConfig { config: later.clone(), promised: later.epoch };
        tells(&mut w, id, 90, &[held]);
    }
    w.sent.clear();
    assert!(accept(&mut w, AcceptOlder { revision: Some(Revision(90)), ..AcceptOlder::default() }).unwrap().done);
    assert_eq!(w.segment(0).members, [primary, out]);
    assert_eq!(w.records_of("release"), 0);
    assert!(!w.heard(out).iter().any(|message| matches!(message, FromAuthority::Release { .. })));
}
