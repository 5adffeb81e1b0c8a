//! Dead ends and their exits: what is said, what is refused, what a person's word does (I11, I16, R12).

use engine_core::authority::document::{
    AttachVolume, Consequences, Explain, RecoverVolume, ReleaseCopies, ReplaceDevice, SegmentName,
};
use engine_core::authority::io::{Answer, Call, CallError, ErrorCode};
use engine_core::config::Config;
use engine_core::ids::{Epoch, NodeId, Seq};
use engine_core::limits::NODE_SILENCE;
use engine_core::message::{Decision, FromAuthority, PermitAsk, Registration, ReplicaReport, ToAuthority};
use engine_core::record::Standing;
use engine_core::time::Span;

use crate::stories::propose;
use crate::world::{World, booted, device, registration};

pub(crate) fn facts(config: &Config, standing: Standing, commit: u64) -> ReplicaReport {
    ReplicaReport {
        segment: config.segment,
        incarnation: config.incarnation,
        epoch: config.epoch,
        log_epoch: config.epoch,
        standing,
        commit: Seq(commit),
        last: Seq(commit),
    }
}

pub(crate) fn holds(w: &mut World, node: NodeId, part: Vec<ReplicaReport>) {
    w.say(node, ToAuthority::Replicas { part, last: true });
}

fn explain(w: &mut World) -> Explain {
    let call = w.call(Call::Explain("v".into()));
    match w.answer(call) {
        Some(Ok(Answer::Explain(explain))) => *explain,
        other => panic!("{other:?}"),
    }
}

fn consequences(w: &mut World, request: Call) -> Result<Consequences, CallError> {
    let call = w.call(request);
    match w.answer(call).unwrap() {
        Ok(Answer::Consequences(document)) => Ok(*document),
        Ok(other) => panic!("{other:?}"),
        Err(error) => Err(error),
    }
}

fn recover(from: NodeId, lose: Option<&str>, dry_run: bool) -> Call {
    Call::Recover("v".into(), RecoverVolume { segment: 0, from, lose: lose.map(Into::into), dry_run })
}

/// Three nodes hold a segment; all are lost but one, whose copy is stale.
fn one_stale_copy() -> (World, Config, NodeId) {
    let mut w = World::new(4);
    w.volume("v", 1);
    let config = w.segment(0);
    let stale = config.members[2];
    for node in &config.members[..2] {
        w.leave(node.0);
    }
    holds(&mut w, stale, vec![facts(&config, Standing::Stale { base: Seq(40) }, 40)]);
    w.pass(NODE_SILENCE);
    (w, config, stale)
}

#[test]
fn an_explanation_says_who_has_to_come_back_and_what_would_lose_data() {
    let (mut w, config, stale) = one_stale_copy();
    let explained = explain(&mut w);
    let segment = &explained.segments[0];
    assert_eq!(segment.condition, "stuck");
    assert!(segment.why.contains("nobody in touch holds every acknowledged write"), "{}", segment.why);
    assert!(segment.why.contains(&format!("{stale} holds a stale copy: everything up to s40")), "{}", segment.why);
    for node in &config.members[..2] {
        assert!(segment.next.contains(&node.to_string()), "{}", segment.next);
    }
    assert!(segment.next.contains(&format!("nodectl volume recover v --segment 0 --from {stale}")), "{}", segment.next);
    let held = segment.replicas.iter().find(|replica| replica.node == stale).unwrap();
    assert!(held.holds.as_ref().unwrap().contains("stale copy"));
}

#[test]
fn a_recovery_is_refused_with_its_losses_until_the_volume_is_named() {
    let (mut w, config, stale) = one_stale_copy();
    let error = consequences(&mut w, recover(stale, None, false)).unwrap_err();
    assert_eq!(error.code, ErrorCode::Refused);
    for word in ["this would lose data", "a safe way is left", "nothing was changed", "the last epoch is e1"] {
        assert!(error.message.contains(word), "no `{word}` in {error}");
    }
    assert!(error.next.unwrap().contains("--lose v"));
    assert_eq!(consequences(&mut w, recover(stale, Some("w"), false)).unwrap_err().code, ErrorCode::Refused);
    let dry = consequences(&mut w, recover(stale, Some("v"), true)).unwrap();
    assert!(!dry.done && dry.loses.len() == 3, "{dry:?}");
    assert_eq!(w.segment(0), config, "nothing was changed");
    let away = config.members[0];
    assert_eq!(consequences(&mut w, recover(away, Some("v"), false)).unwrap_err().code, ErrorCode::IllegalState);
}

#[test]
fn a_named_recovery_begins_a_new_life_and_is_said_until_confirmed() {
    let (mut w, old, stale) = one_stale_copy();
    w.sent.clear();
    assert!(consequences(&mut w, recover(stale, Some("v"), false)).unwrap().done);
    let config = w.segment(0);
    assert_eq!((config.incarnation, config.epoch), (old.incarnation.next(), old.epoch.next()));
    assert_eq!((config.primary, &config.members, &config.electable), (stale, &vec![stale], &vec![stale]));
    assert!(config.generation > old.generation, "who has it attached is fenced off (I2)");
    assert_eq!(w.records_of("release"), 2, "the others start from nothing (I11)");
    assert_eq!(w.heard(stale), [FromAuthority::Recover { config: config.clone() }]);

    // Neither a restart nor its own old life lets the authority forget, or release, the copy that counts.
    w.restart();
    for id in (1..=4).filter(|id| !old.members.contains(&NodeId(*id)) || old.members[1].0 == *id) {
        w.back(booted(2, registration(id)));
    }
    w.register(booted(2, registration(stale.0)));
    holds(&mut w, stale, vec![facts(&old, Standing::Stale { base: Seq(40) }, 40)]);
    let heard = w.heard(stale);
    assert!(heard.contains(&FromAuthority::Recover { config: config.clone() }), "{heard:?}");
    assert!(!heard.iter().any(|message| matches!(message, FromAuthority::Release { .. })), "{heard:?}");
    let (segment, incarnation) = (config.segment, config.incarnation);
    w.say(stale, ToAuthority::Created { segment, incarnation, result: Ok(()) });
    w.sent.clear();
    w.pass(Span::seconds(6));
    assert!(!w.heard(stale).iter().any(|message| matches!(message, FromAuthority::Recover { .. })), "confirmed");
    let Decision::Installed(led) = propose(&mut w, 0, stale, &[stale], &[]) else { panic!("it leads its new life") };
    assert_eq!(led.epoch, config.epoch.next());
    // A copy of the old life that comes back is let go.
    let other = old.members[0];
    w.register(booted(2, registration(other.0)));
    assert!(w.heard(other).contains(&FromAuthority::Release { segment, incarnation: old.incarnation }));
}

#[test]
fn a_recovery_ends_an_attach_that_is_under_way() {
    let (mut w, config, stale) = one_stale_copy();
    let call = w.call(Call::Attach("v".into(), AttachVolume { client: "me".into() }));
    assert!(consequences(&mut w, recover(stale, Some("v"), false)).unwrap().done);
    // I2: it brings a newer generation, which no other segment was fenced for.
    let error = w.answer(call).unwrap().unwrap_err();
    assert_eq!(error.code, ErrorCode::IllegalState);
    assert!(error.message.contains("was recovered meanwhile"), "{error}");
    let (segment, generation) = (config.segment, w.segment(0).generation);
    w.say(stale, ToAuthority::FenceDone { segment, generation });
    assert!(w.answer(call).is_none());
}

#[test]
fn a_segment_that_serves_is_not_recovered() {
    let mut w = World::new(3);
    w.volume("v", 1);
    let config = w.segment(0);
    holds(&mut w, config.primary, vec![facts(&config, Standing::Member, 3)]);
    assert_eq!(
        consequences(&mut w, recover(config.primary, Some("v"), false)).unwrap_err().code,
        ErrorCode::IllegalState
    );
}

fn replace(node: NodeId, lose: &[&str]) -> Call {
    let lose = lose.iter().map(|name| (*name).to_owned()).collect();
    Call::ReplaceDevice(node, ReplaceDevice { device: None, lose, dry_run: false })
}

#[test]
fn a_lost_disk_is_replaced_under_the_same_node_id() {
    let mut w = World::new(3);
    w.volume("v", 1);
    let config = w.segment(0);
    let (primary, backup, lost) = (config.members[0], config.members[1], config.members[2]);
    for node in [primary, backup] {
        holds(&mut w, node, vec![facts(&config, Standing::Member, 3)]);
    }
    assert_eq!(consequences(&mut w, replace(lost, &[])).unwrap_err().code, ErrorCode::Refused, "it is in touch");
    w.leave(lost.0);
    let Decision::Installed(shrunk) = propose(&mut w, 0, primary, &[primary, backup], &[]) else { panic!("shrunk") };
    let blank = Registration { devices: vec![device(77)], ..registration(lost.0) };
    w.register(blank.clone());
    let reason = w.refused.pop().expect("another device");
    assert!(reason.contains(&format!("nodectl node replace-device {lost}")), "{reason}");

    w.sent.clear();
    assert!(consequences(&mut w, replace(lost, &[])).unwrap().done);
    let next = w.segment(0);
    assert_eq!(next.epoch, shrunk.epoch.next());
    assert!(!next.holders().any(|node| node == lost), "{next:?}");
    assert_eq!(w.heard(primary), [FromAuthority::Decisions(vec![Decision::Conflict(next.clone())])]);
    w.register(registration(lost.0));
    assert!(w.refused.pop().expect("the old device").contains("declared gone"), "its copies are not needed");
    w.register(blank);
    assert!(w.refused.is_empty());
    // Its space is free for a new copy, of this segment too.
    w.say(primary, ToAuthority::PermitAsks(vec![PermitAsk { segment: next.segment, epoch: next.epoch, members: 2 }]));
    w.sent.clear();
    w.pass(Span::millis(200));
    assert!(w.heard(lost).iter().any(|message| matches!(message, FromAuthority::Reserve { .. })));
}

#[test]
fn a_lost_disk_that_still_counts_demands_the_volumes_by_name() {
    let mut w = World::new(3);
    w.volume("v", 1);
    let config = w.segment(0);
    let lost = config.members[2];
    for node in 1..=3 {
        w.leave(node);
    }
    w.pass(NODE_SILENCE);
    let error = consequences(&mut w, replace(lost, &[])).unwrap_err();
    assert_eq!(error.code, ErrorCode::Refused);
    assert!(error.message.contains("v/0: nobody else in touch"), "{error}");
    assert!(error.next.unwrap().contains("--lose v"));
    assert!(consequences(&mut w, replace(lost, &["v"])).unwrap().done);
    let left = w.segment(0);
    assert_eq!((left.members.len(), left.is_member(lost)), (2, false));
}

#[test]
fn copies_in_quarantine_are_shown_and_released_only_where_it_is_safe() {
    let mut w = World::new(3);
    w.volume("v", 1);
    let config = w.segment(0);
    let (primary, backup, away) = (config.members[0], config.members[1], config.members[2]);
    for node in [primary, backup] {
        holds(&mut w, node, vec![facts(&config, Standing::Member, 3)]);
    }
    w.leave(away.0);
    assert!(matches!(propose(&mut w, 0, primary, &[primary, backup], &[]), Decision::Installed(_)));
    let call = w.call(Call::Node(away));
    let Some(Ok(Answer::Node(info))) = w.answer(call) else { panic!("shown") };
    assert_eq!(info.quarantine.len(), 1);
    assert!(info.quarantine[0].why.contains("2 of 3 copies are in sync"), "{:?}", info.quarantine);

    let one = SegmentName { volume: "v".into(), index: 0 };
    let release = |segment, lose: &[&str], dry_run| {
        let lose = lose.iter().map(|name| (*name).to_owned()).collect();
        Call::Release(away, ReleaseCopies { segment, lose, dry_run })
    };
    w.leave(backup.0);
    w.pass(NODE_SILENCE);
    let error = consequences(&mut w, release(Some(one.clone()), &[], false)).unwrap_err();
    assert_eq!(error.code, ErrorCode::Refused);
    assert!(error.message.contains("v/0 has 1 of at least 2 copies"), "{error}");
    assert!(!consequences(&mut w, release(None, &[], true)).unwrap().done);
    assert_eq!(w.records_of("release"), 0);
    w.register(booted(2, registration(backup.0)));
    holds(&mut w, backup, vec![facts(&config, Standing::Member, 3)]);
    assert!(consequences(&mut w, release(Some(one), &[], false)).unwrap().done);
    assert_eq!((w.records_of("release"), w.segment(0).former.len()), (1, 0));
    assert_eq!(w.segment(0).epoch, Epoch(3));
    assert_eq!(consequences(&mut w, release(None, &[], false)).unwrap_err().code, ErrorCode::NotFound);
}

/// Seed 500071 of the swarm: an image of a device from before its replica was made.
#[test]
fn members_that_have_nothing_of_it_any_more_do_not_hold_the_primary_up() {
    let mut w = World::new(3);
    w.volume("v", 1);
    let config = w.segment(0);
    for node in &config.members[1..] {
        w.leave(node.0);
        w.register(registration(node.0));
    }
    let alone = &config.members[..1];
    let held_up = propose(&mut w, 0, config.primary, alone, &[]);
    assert!(matches!(held_up, Decision::Denied(..)), "they have not said yet what they hold (I9)");
    for node in &config.members[1..] {
        holds(&mut w, *node, vec![]);
    }
    assert!(matches!(propose(&mut w, 0, config.primary, alone, &[]), Decision::Installed(_)));
}
