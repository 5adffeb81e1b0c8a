//! What the authority does when nodes come, go, hang and come back.

use engine_core::authority::document::{AcceptOlder, AttachVolume, Health, ResizeVolume};
use engine_core::authority::io::{Answer, Call, ErrorCode};
use engine_core::config::Config;
use engine_core::ids::{BootCount, BootId, Epoch, NodeId, Revision};
use engine_core::limits::{EXTENT_SIZE, NODE_SILENCE, PERMIT_TTL, PERMITS_PER_SOURCE, REVISION_EVERY};
use engine_core::message::{Decision, FromAuthority, LeaseAsk, PermitAsk, Proposal, Registration, ToAuthority};
use engine_core::openings::{Opening, Openings};
use engine_core::record::Standing;
use engine_core::time::{Span, Time};

use crate::exits::{facts, holds};
use crate::world::{World, booted, device, image, registration, wish};

/// Proposes `members` over the current configuration.
pub(crate) fn say_proposal(w: &mut World, index: u32, from: NodeId, members: &[NodeId], candidates: &[NodeId]) {
    let current = w.segment(index);
    let promised = from != current.primary;
    let config = Config {
        epoch: current.epoch.next(),
        primary: from,
        members: members.to_vec(),
        candidates: candidates.to_vec(),
        ..current.clone()
    };
    w.sent.clear();
    w.say(from, ToAuthority::Proposals(vec![Proposal { expected: current.epoch, config, promised }]));
}

/// What the authority decides about `members` proposed over the current configuration.
pub(crate) fn propose(w: &mut World, index: u32, from: NodeId, members: &[NodeId], candidates: &[NodeId]) -> Decision {
    say_proposal(w, index, from, members, candidates);
    let decided = w.heard(from).into_iter().find_map(|message| match message {
        FromAuthority::Decisions(mut decisions) => decisions.pop(),
        _ => None,
    });
    decided.unwrap()
}

fn ask(config: &Config) -> ToAuthority {
    ToAuthority::PermitAsks(vec![PermitAsk { segment: config.segment, epoch: config.epoch, members: 2 }])
}

pub(crate) fn error(w: &mut World, request: Call) -> (ErrorCode, String) {
    let call = w.call(request);
    match w.answer(call) {
        Some(Err(error)) => (error.code, error.message),
        other => panic!("{other:?}"),
    }
}

#[test]
fn primaries_and_copies_are_spread_evenly() {
    let mut w = World::new(6);
    w.volume("v", 12);
    let mut leads = [0; 7];
    for index in 0..12 {
        let config = w.segment(index);
        leads[usize::from(config.primary.0)] += 1;
        let mut zones: Vec<u16> = config.members.iter().map(|node| node.0 % 3).collect();
        zones.sort_unstable();
        assert_eq!(zones, [0, 1, 2], "one copy in each zone");
    }
    assert_eq!(&leads[1..], &[2; 6]);
    let status = w.status();
    assert_eq!((status.health, status.segments.full, status.segments.total), (Health::Ok, 12, 12));
}

#[test]
fn a_refused_replica_rolls_the_creation_back_and_a_later_one_gets_a_new_life() {
    let mut w = World::new(3);
    let call = w.create("v", 64 << 20);
    let config = w.segment(0);
    let (good, bad) = (config.members[0], config.members[1]);
    let (segment, incarnation) = (config.segment, config.incarnation);
    w.say(good, ToAuthority::Created { segment, incarnation, result: Ok(()) });
    w.say(bad, ToAuthority::Created { segment, incarnation, result: Err("device full".into()) });
    let error = w.answer(call).unwrap().unwrap_err();
    assert_eq!(error.code, ErrorCode::NoSpace);
    assert!(error.message.contains("device full") && error.message.contains(&bad.to_string()), "{error}");
    assert_eq!((w.records_of("segment"), w.records_of("release")), (0, 3));
    w.settle();
    assert_eq!((w.records_of("release"), w.records_of("volume")), (0, 0), "all gone once confirmed");

    w.volume("v", 1);
    let call = w.call(Call::Resize("v".into(), ResizeVolume { size: 128 << 20 }));
    let grown = w.segment(1);
    let (segment, incarnation) = (grown.segment, grown.incarnation);
    w.say(grown.primary, ToAuthority::Created { segment, incarnation, result: Err("full".into()) });
    assert!(w.answer(call).unwrap().unwrap_err().message.contains("keeps its size"));
    w.settle();
    let call = w.call(Call::Resize("v".into(), ResizeVolume { size: 128 << 20 }));
    w.settle();
    assert!(matches!(w.answer(call), Some(Ok(Answer::Volume(info))) if info.size == 128 << 20));
    assert!(w.segment(1).incarnation > incarnation, "another life of the same segment (I11)");
}

#[test]
fn a_creation_survives_the_authority_and_ends_at_its_deadline() {
    let mut w = World::new(3);
    w.create("v", 64 << 20);
    w.restart();
    for id in 1..=3 {
        w.back(registration(id));
    }
    w.settle();
    assert_eq!(w.status().segments.full, 1, "asked for again, and ready");

    let call = w.create("w", 64 << 20);
    w.sent.clear();
    w.pass(Span::seconds(31));
    let error = w.answer(call).unwrap().unwrap_err();
    assert_eq!(error.code, ErrorCode::Timeout);
    assert!(error.message.contains("n1, n2, n3"), "{error}");
}

#[test]
fn an_election_below_min_copies_waits_until_the_others_are_out_of_touch_also_after_a_restart() {
    let mut w = World::new(3);
    w.volume("v", 1);
    let (old, new) = (w.segment(0).members[0], w.segment(0).members[1]);
    let third = w.segment(0).members[2];
    w.leave(old.0);
    w.leave(third.0);
    assert!(matches!(propose(&mut w, 0, new, &[new], &[]), Decision::Denied(..)), "heard a moment ago");
    w.restart();
    w.register(registration(new.0));
    let copy = facts(&w.segment(0), Standing::Member, 0);
    holds(&mut w, new, vec![copy]);
    // One of three is no majority: a person has to say that this record is the newest (I11).
    let revision = Some(w.status().revision);
    let call = w.call(Call::AcceptOlder(AcceptOlder { revision, ..AcceptOlder::default() }));
    assert!(matches!(w.answer(call), Some(Ok(Answer::Consequences(document))) if document.done));
    assert!(matches!(propose(&mut w, 0, new, &[new], &[]), Decision::Denied(..)), "they may be about to come");
    w.pass(NODE_SILENCE);
    let Decision::Installed(config) = propose(&mut w, 0, new, &[new], &[]) else { panic!("nobody else is there") };
    assert_eq!(config.electable.len(), 3, "whoever has every acknowledged write stays electable (I5)");
    let status = w.status();
    assert_eq!((status.segments.read_only, status.health), (1, Health::Impaired));
}

#[test]
fn an_attach_follows_the_primary_through_an_election() {
    let mut w = World::new(3);
    w.volume("v", 1);
    let (old, new) = (w.segment(0).members[0], w.segment(0).members[1]);
    let third = w.segment(0).members[2];
    let call = w.call(Call::Attach("v".into(), AttachVolume { client: "me".into() }));
    assert!(w.heard(old).iter().any(|m| matches!(m, FromAuthority::Fence { .. })));
    w.leave(old.0);
    let Decision::Installed(config) = propose(&mut w, 0, new, &[new, third], &[]) else { panic!("elected") };
    assert_eq!(config.generation.0, 1, "the configuration asserts the attachment (I2)");
    w.pass(Span::millis(200));
    assert!(w.heard(new).iter().any(|m| matches!(m, FromAuthority::Fence { .. })));
    let segment = config.segment;
    w.say(third, ToAuthority::FenceDone { segment, generation: config.generation });
    assert!(w.answer(call).is_none(), "only the primary's word counts");
    w.say(new, ToAuthority::FenceDone { segment, generation: config.generation });
    assert!(matches!(w.answer(call), Some(Ok(Answer::Map(map))) if map.generation.0 == 1));
}

#[test]
fn a_decision_that_was_lost_is_told_with_the_attachment_of_now() {
    let mut w = World::new(3);
    w.volume("v", 1);
    let before = w.segment(0);
    let (primary, backup) = (before.members[0], before.members[1]);
    // Installed, and its primary never hears of it: so it confirms the fence in the epoch before.
    let Decision::Installed(lost) = propose(&mut w, 0, primary, &[primary, backup], &[]) else { panic!("shrunk") };
    let call = w.call(Call::Attach("v".into(), AttachVolume { client: "me".into() }));
    w.say(primary, ToAuthority::FenceDone { segment: lost.segment, generation: lost.generation.next() });
    assert!(matches!(w.answer(call), Some(Ok(Answer::Map(_)))));
    w.sent.clear();
    let repeated = Proposal { expected: before.epoch, config: lost.clone(), promised: false };
    w.say(primary, ToAuthority::Proposals(vec![repeated]));
    let heard = w.heard(primary);
    let Some(FromAuthority::Decisions(decisions)) = heard.first() else { panic!("{heard:?}") };
    let [Decision::Conflict(known)] = decisions.as_slice() else { panic!("{decisions:?}") };
    assert_eq!(
        (known.epoch, known.generation),
        (lost.epoch, lost.generation.next()),
        "no way back behind the fence (I2)"
    );
}

#[test]
fn an_attach_fences_the_segments_a_resize_is_making() {
    let grow = |w: &mut World| w.call(Call::Resize("v".into(), ResizeVolume { size: 128 << 20 }));
    let attach = |w: &mut World| w.call(Call::Attach("v".into(), AttachVolume { client: "me".into() }));
    let fenced = |w: &mut World, index: u32, generation| {
        let Config { primary, segment, .. } = w.segment(index);
        w.say(primary, ToAuthority::FenceDone { segment, generation });
    };
    let mut w = World::new(3);
    w.volume("v", 1);
    grow(&mut w);
    let made = w.segment(1);
    let call = attach(&mut w);
    fenced(&mut w, 0, made.generation.next());
    let (segment, incarnation) = (made.segment, made.incarnation);
    for node in made.members {
        w.say(node, ToAuthority::Created { segment, incarnation, result: Ok(()) });
    }
    // I2: its primary began with the generation before; whoever has the map must be listened to there too.
    assert!(w.answer(call).is_none());
    fenced(&mut w, 1, made.generation.next());
    assert!(matches!(w.answer(call), Some(Ok(Answer::Map(map))) if map.segments.len() == 2));

    let mut w = World::new(3);
    w.volume("v", 1);
    grow(&mut w);
    let made = w.segment(1);
    let call = attach(&mut w);
    fenced(&mut w, 0, made.generation.next());
    let refused = ToAuthority::Created { segment, incarnation, result: Err("full".into()) };
    w.say(made.primary, refused);
    w.pass(Span::millis(200));
    assert!(
        matches!(w.answer(call), Some(Ok(Answer::Map(map))) if map.segments.len() == 1),
        "nobody waits for what was rolled back"
    );
}

#[test]
fn an_attach_nobody_confirms_names_the_segments() {
    let mut w = World::new(3);
    w.volume("v", 2);
    let call = w.call(Call::Attach("v".into(), AttachVolume { client: "me".into() }));
    w.pass(Span::seconds(31));
    let error = w.answer(call).unwrap().unwrap_err();
    assert_eq!(error.code, ErrorCode::Timeout);
    assert!(error.message.contains("1.0 (primary n") && error.message.contains("1.1 (primary n"), "{error}");
}

#[test]
fn a_lost_copy_is_made_elsewhere_with_permit_and_reservation() {
    let mut w = World::new(4);
    w.volume("v", 1);
    let config = w.segment(0);
    let (primary, backup, lost) = (config.members[0], config.members[1], config.members[2]);
    let segment = config.segment;
    // n4 shares a zone with n1: only if the lost one is n1 (or the volume is spread over nodes) it may take over.
    w.leave(lost.0);
    let Decision::Installed(config) = propose(&mut w, 0, primary, &[primary, backup], &[]) else { panic!() };
    w.pass(NODE_SILENCE);
    w.sent.clear();
    w.say(primary, ask(&config));
    w.pass(Span::millis(100));
    let free_zone = lost.0 % 3 == 4 % 3;
    if !free_zone {
        assert_eq!(w.status().remirror.parked, 1, "no zone without a copy has a node in touch");
        // The lost node's zone gets a new node: the parked ask goes through without being asked again (R5).
        let spare = if lost.0 % 3 == 2 { 5 } else { 6 };
        w.register(registration(spare));
        w.pass(Span::millis(100));
    }
    let (target, permit) = w
        .sent
        .iter()
        .find_map(|(to, m)| match m {
            FromAuthority::Reserve { permit, extents, .. } if *extents == config.extents => Some((*to, *permit)),
            _ => None,
        })
        .unwrap();
    assert_eq!(target.0 % 3, lost.0 % 3, "the zone that misses its copy");
    w.sent.clear();
    let denied = propose(&mut w, 0, primary, &[primary, backup], &[target]);
    assert!(matches!(denied, Decision::Denied(..)), "no permit before the reservation");
    w.say(target, ToAuthority::Reserved { permit, segment, granted: true });
    assert!(w.heard(primary).contains(&FromAuthority::Granted { segment, permit, target }));
    assert!(matches!(propose(&mut w, 0, primary, &[primary, backup], &[target]), Decision::Installed(_)));
    let whole = propose(&mut w, 0, primary, &[primary, backup, target], &[]);
    assert!(matches!(&whole, Decision::Installed(config) if config.former.is_empty()), "{whole:?}");
    assert_eq!(w.records_of("release"), 1, "the lost copy, until its node confirms");

    // It comes back, with its device, and is told to let go.
    w.restart();
    for id in (1..=4).filter(|id| *id != lost.0) {
        w.back(registration(id));
    }
    w.register(booted(2, registration(lost.0)));
    assert!(w.heard(lost).iter().any(|m| matches!(m, FromAuthority::Release { .. })));
    w.say(lost, ToAuthority::Released { segment, incarnation: config.incarnation });
    assert_eq!(w.records_of("release"), 0);
}

/// A copy that is gone for good, on a node that is back: where nobody else has a place, it is made there anew, in the
/// space that is booked for it already.
#[test]
fn a_former_member_that_holds_nothing_any_more_gets_its_copy_anew() {
    let mut w = World::new(3);
    w.volume("v", 1);
    let config = w.segment(0);
    let (primary, backup, lost) = (config.members[0], config.members[1], config.members[2]);
    w.leave(lost.0);
    let Decision::Installed(config) = propose(&mut w, 0, primary, &[primary, backup], &[]) else { panic!() };
    let reserved = |w: &World| {
        w.sent.iter().find_map(|(to, m)| match m {
            FromAuthority::Reserve { permit, extents, .. } if *extents == config.extents => Some((*to, *permit)),
            _ => None,
        })
    };
    // It may still have it as long as it has not said all it holds.
    let mut back = booted(2, registration(lost.0));
    back.devices[0].capacity = u64::from(config.extents);
    w.register(back);
    w.sent.clear();
    w.say(primary, ask(&config));
    w.pass(Span::millis(100));
    assert_eq!((reserved(&w), w.status().remirror.parked), (None, 1));

    w.say(lost, ToAuthority::Replicas { part: Vec::new(), last: true });
    w.pass(Span::seconds(1));
    let (target, permit) = reserved(&w).expect("a place for it");
    assert_eq!(target, lost);
    assert_eq!(w.status().booked, 3 * u64::from(config.extents) * EXTENT_SIZE, "nothing is booked twice");
    w.say(target, ToAuthority::Reserved { permit, segment: config.segment, granted: true });
    assert!(matches!(propose(&mut w, 0, primary, &[primary, backup], &[target]), Decision::Installed(_)));
    let whole = propose(&mut w, 0, primary, &[primary, backup, target], &[]);
    assert!(matches!(&whole, Decision::Installed(config) if config.former.is_empty()), "{whole:?}");
    assert_eq!(w.status().booked, 3 * u64::from(config.extents) * EXTENT_SIZE);
}

#[test]
fn permits_are_capped_per_source_and_silence_ends_them() {
    let mut w = World::new(6);
    w.volume("v", 12);
    let lost = NodeId(1);
    w.leave(1);
    w.pass(NODE_SILENCE);
    let mut asked = 0;
    for index in 0..12 {
        let config = w.segment(index);
        if config.primary == lost || !config.is_member(lost) {
            continue;
        }
        let primary = config.primary;
        let rest: Vec<NodeId> = config.members.iter().copied().filter(|node| *node != lost).collect();
        let Decision::Installed(config) = propose(&mut w, index, primary, &rest, &[]) else { panic!() };
        w.say(primary, ask(&config));
        asked += 1;
    }
    w.sent.clear();
    w.pass(Span::millis(100));
    let reserved: Vec<NodeId> = w
        .sent
        .iter()
        .filter(|(_, message)| matches!(message, FromAuthority::Reserve { .. }))
        .map(|(to, _)| *to)
        .collect();
    assert_eq!(reserved, [NodeId(4); PERMITS_PER_SOURCE], "n4 is the other node of the zone; two at a time");
    assert_eq!(w.status().remirror.parked, asked - 2);
    w.settle();
    w.pass(PERMIT_TTL);
    assert_eq!(w.status().remirror.parked, 0, "asks nobody repeats are forgotten");
}

#[test]
fn a_volume_in_use_is_not_deleted_and_a_deleted_one_is_remembered_until_all_have_confirmed() {
    let mut w = World::new(4);
    w.volume("v", 1);
    let held = w.segment(0);
    let call = w.call(Call::Attach("v".into(), AttachVolume { client: "me".into() }));
    w.settle();
    assert!(w.answer(call).unwrap().is_ok());
    assert_eq!(error(&mut w, Call::Delete("v".into())).0, ErrorCode::Refused);
    let call = w.call(Call::Detach("v".into(), engine_core::authority::document::DetachVolume { generation: None }));
    w.settle();
    assert!(matches!(w.answer(call), Some(Ok(Answer::Volume(info))) if info.generation.0 == 2));

    let away = held.members[2];
    w.leave(away.0);
    let call = w.call(Call::Delete("v".into()));
    assert!(w.answer(call).unwrap().is_ok());
    w.settle();
    assert_eq!((w.records_of("release"), w.records_of("volume")), (1, 1), "{away} has not confirmed");
    let late = propose_raw(&mut w, held.primary, &held);
    assert_eq!(late, Decision::Unknown(held.segment));
    w.volume("v", 1); // the name is free
    w.register(registration(away.0));
    w.settle();
    assert_eq!((w.records_of("release"), w.records_of("volume")), (0, 1));
}

fn propose_raw(w: &mut World, from: NodeId, config: &Config) -> Decision {
    let config = Config { epoch: Epoch(config.epoch.0 + 1), ..config.clone() };
    w.sent.clear();
    let proposal = Proposal { expected: Epoch(config.epoch.0 - 1), config, promised: true };
    w.say(from, ToAuthority::Proposals(vec![proposal]));
    match w.heard(from).pop() {
        Some(FromAuthority::Decisions(mut decisions)) => decisions.remove(0),
        other => panic!("{other:?}"),
    }
}

#[test]
fn who_may_register() {
    let mut w = World::new(2);
    let cases = [
        (Registration { devices: vec![device(77)], ..registration(1) }, "a node id of its own"),
        (Registration { zone: "not a zone".into(), ..registration(4) }, "not a zone name"),
        (
            Registration {
                address: engine_core::message::NodeAddress {
                    primary: registration(2).address.primary,
                    ..registration(4).address
                },
                ..registration(4)
            },
            "address of n2",
        ),
    ];
    for (registration, why) in cases {
        w.register(registration);
        let reason = w.refused.pop().expect(why);
        assert!(reason.contains(why), "{reason}");
    }
}

/// I9: what a rolled-back device holds is not trusted; two processes with one device are not both taken in.
#[test]
fn a_rolled_back_device_is_taken_in_and_not_trusted() {
    let mut w = World::new(2);
    let boot = |boot| booted(boot, registration(1));
    w.leave(1);
    w.register_as(boot(4), 1);
    // Another process has opened the device as it was before that.
    let older = |count, id| image(count, openings(&[(1, 1), (count, id)]), boot(count));
    w.register_image(older(4, 2), 2);
    let reason = w.refused.pop().expect("the first is in touch");
    assert!(reason.contains("another process"), "{reason}");
    w.leave(1);
    w.sent.clear();
    w.register_image(older(4, 2), 2);
    assert_eq!(w.welcome(1), (false, BootCount(5)), "its counter goes above the one remembered");
    // It has not heard that; nothing else changes.
    w.register_image(older(4, 2), 2);
    assert_eq!(w.welcome(1), (false, BootCount(5)));
    let taken = image(5, openings(&[(5, 2)]), boot(5));
    w.register_image(taken, 2);
    assert_eq!(w.welcome(1), (true, BootCount(5)), "the same run over a new connection");
    w.leave(1);
    w.restart();
    w.register_image(image(6, openings(&[(5, 2), (6, 3)]), boot(6)), 3);
    assert_eq!(w.welcome(1), (true, BootCount(6)));
}

/// What a device carries: counter and run of the opening known to be taken in, and of those since.
pub(crate) fn openings(list: &[(u64, u128)]) -> Box<Openings> {
    let opening = |(count, id): &(u64, u128)| Opening { id: BootId(*id), count: BootCount(*count) };
    let mut openings = Openings::default();
    openings.take_in(opening(&list[0]));
    list[1..].iter().map(opening).for_each(|opening| openings.open(opening));
    Box::new(openings)
}

/// I9: the counter of an older image goes up with every opening, also those the authority hears nothing of.
#[test]
fn a_rolled_back_device_is_not_trusted_however_often_it_was_opened() {
    let with = |list: &[(u64, u128)]| {
        let count = list.last().unwrap().0;
        image(count, openings(list), registration(1))
    };
    let mut w = World::new(2);
    for (run, taken) in [(2, (1, 1)), (3, (2, 2)), (4, (3, 3))] {
        w.leave(1);
        w.register_image(with(&[taken, (u64::try_from(run).unwrap(), run)]), run);
        assert!(w.welcome(1).0, "an ordinary start");
    }
    w.leave(1);
    w.sent.clear();
    // As it was while boot 2 was the last; opened three times since, under counters the device had and above them.
    w.register_image(with(&[(2, 2), (3, 13), (4, 14), (5, 15)]), 15);
    assert_eq!(w.welcome(1), (false, BootCount(6)));
    // Its node ended before it had distrusted everything: nothing of that is on the device.
    w.leave(1);
    w.sent.clear();
    w.register_image(with(&[(2, 2), (3, 13), (4, 14), (5, 15), (6, 16)]), 16);
    assert_eq!(w.welcome(1), (false, BootCount(7)));
    w.leave(1);
    w.sent.clear();
    w.register_image(with(&[(7, 16), (8, 17)]), 17);
    assert_eq!(w.welcome(1), (true, BootCount(8)), "and then it is the device");
}

/// A node that ends between the authority's word and its own note of it comes back as what it was.
#[test]
fn an_answer_that_was_lost_takes_nobodys_trust() {
    let mut w = World::new(2);
    w.leave(1);
    w.register_image(image(2, openings(&[(1, 1), (2, 2)]), registration(1)), 2);
    w.leave(1);
    w.sent.clear();
    let third = openings(&[(1, 1), (2, 2), (3, 3)]);
    w.register_image(image(3, third, registration(1)), 3);
    assert_eq!(w.welcome(1), (true, BootCount(3)));
}

/// I11: what a restored record does not know was taken in later; whose record is older is not the device's fault.
#[test]
fn a_device_that_knows_a_later_opening_than_the_record_is_trusted() {
    let mut w = World::new(3);
    let before = w.backup();
    for id in 1..=3 {
        w.leave(id);
        w.register_as(booted(2, registration(id)), 20 + u128::from(id));
    }
    w.restore(before);
    for id in 1..=3 {
        let list = [(2, 20 + u128::from(id)), (3, 30 + u128::from(id))];
        w.register_image(image(3, openings(&list), registration(id)), list[1].1);
        assert_eq!(w.welcome(id), (true, BootCount(3)));
    }
}

#[test]
fn nodes_hear_of_the_revision_as_it_grows() {
    let mut w = World::new(3);
    w.volume("v", 1);
    w.sent.clear();
    w.pass(REVISION_EVERY);
    let revision = w.status().revision;
    assert!(w.heard(NodeId(1)).contains(&FromAuthority::Revision(revision)), "{revision}");
    w.sent.clear();
    w.pass(REVISION_EVERY);
    assert!(!w.heard(NodeId(1)).iter().any(|m| matches!(m, FromAuthority::Revision(_))), "told once");
}

#[test]
fn an_authority_older_than_its_nodes_changes_nothing() {
    let mut w = World::new(3);
    w.volume("v", 1);
    let primary = w.segment(0).primary;
    w.register(Registration { revision: Revision(10_000), ..booted(2, registration(1)) });
    let members = w.segment(0).members;
    let denied = propose(&mut w, 0, primary, &members, &[]);
    assert!(matches!(&denied, Decision::Denied(_, why) if why.contains("frozen")), "{denied:?}");
    let (code, message) = error(&mut w, Call::Create(wish("w", 1)));
    assert_eq!(code, ErrorCode::Unavailable);
    assert!(message.contains("older than what n1 knows: revision ") && message.contains(" < 10000"), "{message}");
    assert!(w.status().frozen.is_some());
}

#[test]
fn an_explanation_names_the_node_its_silence_and_what_comes_next() {
    let mut w = World::new(3);
    w.volume("v", 1);
    let config = w.segment(0);
    w.leave(config.primary.0);
    w.pass(Span::seconds(3));
    let call = w.call(Call::Explain("v".into()));
    let Some(Ok(Answer::Explain(explain))) = w.answer(call) else { panic!("explained") };
    let segment = &explain.segments[0];
    assert_eq!(segment.condition, "stuck");
    let primary = config.primary;
    assert!(segment.why.contains(&format!("{primary} was last heard 3 s ago")), "{}", segment.why);
    assert!(segment.next.contains("elect a new primary"), "{}", segment.next);
}

#[test]
fn a_lease_is_for_the_primary_of_the_configuration_at_work_and_who_asks_about_an_earlier_one_hears_of_it() {
    let mut w = World::new(3);
    w.volume("v", 1);
    let old = w.segment(0);
    let (primary, backup, third) = (old.members[0], old.members[1], old.members[2]);
    let ask = LeaseAsk { segment: old.segment, incarnation: old.incarnation, epoch: old.epoch, sent: Time(77) };
    let asks = || ToAuthority::LeaseAsks(vec![ask]);
    w.sent.clear();
    w.say(backup, asks());
    assert_eq!(w.heard(backup), [], "it does not lead");
    w.say(primary, asks());
    assert_eq!(w.heard(primary), [FromAuthority::Leased(vec![ask])]);
    propose(&mut w, 0, backup, &[backup, third], &[]);
    w.sent.clear();
    w.say(primary, asks());
    assert_eq!(w.heard(primary), [FromAuthority::Decisions(vec![Decision::Conflict(w.segment(0))])]);
    // I7: after a start the records may be older than what was decided. Nothing is said before that is known.
    let current = LeaseAsk { epoch: w.segment(0).epoch, ..ask };
    w.restart();
    w.back(booted(2, registration(backup.0)));
    w.sent.clear();
    w.say(backup, ToAuthority::LeaseAsks(vec![current]));
    assert_eq!(w.heard(backup), []);
    w.back(booted(2, registration(third.0)));
    w.sent.clear();
    w.say(backup, ToAuthority::LeaseAsks(vec![current]));
    assert_eq!(w.heard(backup), [FromAuthority::Leased(vec![current])]);
}
