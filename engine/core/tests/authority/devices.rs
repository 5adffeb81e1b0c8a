//! Nodes with several devices: each is judged by itself, one that is missing is waited for, one that is given up is let
//! go of alone (I9, I11).

use engine_core::authority::document::{DeviceState, NodeInfo, ReplaceDevice};
use engine_core::authority::io::{Answer, Call, CallError, ErrorCode};
use engine_core::ids::{BootCount, DeviceId, NodeId};
use engine_core::message::{
    DeviceJudged, DeviceReport, FromAuthority, Judgement, PermitAsk, Registration, Report, ToAuthority,
};
use engine_core::record::Standing;
use engine_core::time::Span;

use crate::exits::facts;
use crate::stories::propose;
use crate::world::{World, device, registration};

/// Node `id` with these of its devices; each was opened so often.
fn with(id: u16, devices: &[(u128, u64)]) -> Registration {
    let opened = |(id, boot): &(u128, u64)| {
        let mut device = device(*id);
        device.boot = BootCount(*boot);
        device
    };
    Registration { devices: devices.iter().map(opened).collect(), ..registration(id) }
}

fn names(judged: &[DeviceJudged]) -> Vec<(u128, &'static str)> {
    let name = |said: &DeviceJudged| match said.judgement {
        Judgement::Sound { .. } => "sound",
        Judgement::Distrusted { .. } => "distrusted",
        Judgement::Refused(_) => "refused",
    };
    judged.iter().map(|said| (said.device.0, name(said))).collect()
}

fn called(w: &mut World, request: Call) -> Result<Answer, CallError> {
    let call = w.call(request);
    w.answer(call).unwrap()
}

fn info(w: &mut World, node: u16) -> NodeInfo {
    match called(w, Call::Node(NodeId(node))) {
        Ok(Answer::Node(info)) => *info,
        other => panic!("{other:?}"),
    }
}

fn states(w: &mut World, node: u16) -> Vec<DeviceState> {
    info(w, node).devices.iter().map(|device| device.state).collect()
}

fn replace(w: &mut World, node: u16, device: Option<u128>) -> Result<Answer, CallError> {
    let device = device.map(|device| DeviceId(device).to_string());
    called(w, Call::ReplaceDevice(NodeId(node), ReplaceDevice { device, lose: Vec::new(), dry_run: false }))
}

/// The table: who was known as n9 with what, who comes now, what is said of each.
#[test]
fn each_device_is_judged_by_itself() {
    type Devices = &'static [(u128, u64)];
    type Said = &'static [(u128, &'static str)];
    let cases: &[(&str, Devices, Devices, Said)] = &[
        ("a new node with two", &[], &[(91, 1), (92, 1)], &[(91, "sound"), (92, "sound")]),
        ("both have lived on", &[(91, 1), (92, 1)], &[(91, 2), (92, 2)], &[(91, "sound"), (92, "sound")]),
        ("in another order", &[(91, 1), (92, 1)], &[(92, 2), (91, 2)], &[(92, "sound"), (91, "sound")]),
        ("one is missing", &[(91, 1), (92, 1)], &[(92, 2)], &[(92, "sound")]),
        ("a second one joins as a blank one", &[(91, 1)], &[(91, 2), (92, 1)], &[(91, "sound"), (92, "distrusted")]),
        (
            "one in the place of one that is missing",
            &[(91, 1), (92, 1)],
            &[(91, 2), (93, 1)],
            &[(91, "sound"), (93, "refused")],
        ),
    ];
    for (story, known, comes, said) in cases {
        let mut w = World::new(3);
        if !known.is_empty() {
            w.register_as(with(9, known), 1);
            w.leave(9);
            w.sent.clear();
        }
        w.register_as(with(9, comes), 2);
        assert_eq!(names(&w.judged(9)), *said, "{story}");
    }
}

#[test]
fn one_device_rolled_back_takes_nothing_from_the_other() {
    let mut w = World::new(3);
    for run in 1..=3 {
        w.register_as(with(9, &[(91, run), (92, run)]), u128::from(run));
        w.leave(9);
    }
    w.sent.clear();
    // 92 is as it was in its first boot.
    let mut back = with(9, &[(91, 4), (92, 2)]);
    back.devices[0].openings = crate::stories::openings(&[(3, 3), (4, 4)]);
    back.devices[1].openings = crate::stories::openings(&[(1, 1), (2, 4)]);
    w.register_image(back, 4);
    let judged = w.judged(9);
    assert_eq!(judged[0].judgement, Judgement::Sound { boot: BootCount(4) });
    assert_eq!(judged[1].judgement, Judgement::Distrusted { boot: BootCount(4) }, "above the one remembered");
}

#[test]
fn nobody_comes_without_a_device_or_with_one_twice() {
    let mut w = World::new(3);
    for devices in [&[][..], &[(91, 1), (91, 1)]] {
        w.register(with(9, devices));
        assert!(w.refused.pop().expect("refused").contains("with an id of its own"));
    }
}

/// I11: what is on a missing device counts as what it was, until a person says otherwise; and only that.
#[test]
fn a_missing_device_is_waited_for_and_let_go_of_alone() {
    let mut w = World::new(3);
    w.register(with(9, &[(91, 1), (92, 1)]));
    // Only now there is a choice: both segments get a copy on n9.
    w.leave(3);
    w.pass(engine_core::limits::NODE_SILENCE);
    w.volume("v", 2);
    let (first, second) = (w.segment(0), w.segment(1));
    let holder = NodeId(9);
    assert!([&first, &second].iter().all(|config| config.is_member(holder)), "{first:?} {second:?}");
    w.leave(9);

    // It comes back without 92, on which the second segment was.
    w.sent.clear();
    w.register_as(with(9, &[(91, 2)]), 2);
    w.say(holder, ToAuthority::Replicas { part: vec![facts(&first, Standing::Member, 3)], last: true });
    assert_eq!(states(&mut w, 9), [DeviceState::InUse, DeviceState::Missing]);
    let next = info(&mut w, 9).devices[1].next.clone().expect("a command");
    assert!(next.contains(&format!("nodectl node replace-device n9 --device {}", DeviceId(92))), "{next}");

    // The others go on without that copy. It is not made anew on n9: it may come back.
    let others: Vec<NodeId> = second.members.iter().copied().filter(|node| *node != holder).collect();
    let shrunk = match propose(&mut w, 1, others[0], &others, &[]) {
        engine_core::message::Decision::Installed(config) => config,
        other => panic!("{other:?}"),
    };
    w.sent.clear();
    let ask = PermitAsk { segment: shrunk.segment, epoch: shrunk.epoch, members: 2 };
    w.say(shrunk.primary, ToAuthority::PermitAsks(vec![ask]));
    w.pass(Span::millis(300));
    let reserved =
        |w: &World| w.sent.iter().any(|(to, said)| *to == holder && matches!(said, FromAuthority::Reserve { .. }));
    assert!(!reserved(&w), "it may have it still");

    // A person lets go of the one that is missing; not of one that is there, nor of the node.
    assert_eq!(replace(&mut w, 9, Some(91)).unwrap_err().code, ErrorCode::Refused);
    assert_eq!(replace(&mut w, 9, Some(99)).unwrap_err().code, ErrorCode::NotFound);
    assert_eq!(replace(&mut w, 9, None).unwrap_err().code, ErrorCode::Refused);
    for node in &others {
        w.say(*node, ToAuthority::Replicas { part: vec![facts(&shrunk, Standing::Member, 3)], last: true });
    }
    replace(&mut w, 9, Some(92)).unwrap();
    assert!(!w.segment(1).holders().any(|node| node == holder), "let go of");
    assert!(w.segment(0).is_member(holder), "the other device's copy stays a member");
    assert_eq!(states(&mut w, 9), [DeviceState::InUse, DeviceState::Lost]);
    let epoch = w.segment(1).epoch;
    w.sent.clear();
    w.say(shrunk.primary, ToAuthority::PermitAsks(vec![PermitAsk { epoch, ..ask }]));
    w.pass(Span::millis(300));
    assert!(reserved(&w), "its other device has room");

    // Another device comes in its place; the one given up does not.
    w.leave(9);
    w.sent.clear();
    w.register_as(with(9, &[(91, 3), (92, 2), (93, 1)]), 3);
    assert_eq!(names(&w.judged(9)), [(91, "sound"), (92, "refused"), (93, "distrusted")]);
}

fn complete(w: &mut World, node: u16) -> bool {
    let said = w.heard(NodeId(node)).into_iter().rev().find_map(|message| match message {
        FromAuthority::Registered { complete, .. } => Some(complete),
        _ => None,
    });
    said.expect("it was taken in")
}

/// I11, I12: a node that does not know that one of its devices was left out cannot say that nothing of a segment is there.
#[test]
fn nobody_confirms_the_end_of_a_copy_that_may_be_on_a_missing_device() {
    let mut w = World::new(3);
    w.leave(3);
    w.pass(engine_core::limits::NODE_SILENCE);
    w.register(with(9, &[(91, 1), (92, 1)]));
    assert!(complete(&mut w, 9), "both are there");
    w.volume("v", 2);
    let (first, second) = (w.segment(0), w.segment(1));
    w.leave(9);
    // Its configuration names one of them only.
    w.register_as(with(9, &[(91, 2)]), 2);
    assert!(!complete(&mut w, 9), "it is told that another one counts");
    w.say(NodeId(9), ToAuthority::Replicas { part: vec![facts(&first, Standing::Member, 3)], last: true });
    w.sent.clear();
    called(&mut w, Call::Delete("v".into())).unwrap();
    w.pass(Span::seconds(6));
    let asked = |w: &World, config: &engine_core::config::Config| {
        let of =
            |said: &FromAuthority| matches!(said, FromAuthority::Release { segment, .. } if *segment == config.segment);
        w.sent.iter().any(|(to, said)| *to == NodeId(9) && of(said))
    };
    assert!(asked(&w, &first) && !asked(&w, &second), "of what it has said it has");
    w.settle();
    // It says so all the same.
    let (segment, incarnation) = (second.segment, second.incarnation);
    w.say(NodeId(9), ToAuthority::Released { segment, incarnation });
    w.settle();
    assert_eq!(w.records_of("release"), 1, "what is on 92 is still to be dropped");

    w.leave(9);
    w.register_as(with(9, &[(91, 3), (92, 2)]), 3);
    assert!(complete(&mut w, 9));
    w.say(NodeId(9), ToAuthority::Replicas { part: vec![facts(&second, Standing::Member, 3)], last: true });
    w.pass(Span::seconds(6));
    w.settle();
    assert_eq!((w.records_of("release"), w.records_of("volume")), (0, 0), "now it is gone");
}

/// I9, I11: a record from before a device was added does not say that nothing on it counts.
#[test]
fn an_older_authority_distrusts_no_device_that_it_does_not_know() {
    let mut w = World::new(3);
    w.register(with(9, &[(91, 1)]));
    w.pass(Span::seconds(3));
    let older = w.backup();
    w.leave(9);
    w.register_as(with(9, &[(91, 2), (92, 1)]), 2);
    w.volume("v", 1);
    w.pass(Span::seconds(3));
    let newest = w.status().revision;

    // It comes first, and knows what the authority does not.
    w.restore(older.clone());
    w.register_as(Registration { revision: newest, ..with(9, &[(91, 3), (92, 2)]) }, 3);
    assert_eq!(names(&w.judged(9)), [(91, "sound"), (92, "sound")], "as it is: whoever accepts the record decides");

    // It had not heard of it: nobody can tell yet, and nothing is said for good.
    w.restore(older);
    w.register_as(with(9, &[(91, 4), (92, 3)]), 4);
    assert_eq!(names(&w.judged(9)), [(91, "sound"), (92, "refused")]);
    for id in 1..=3 {
        w.back(crate::world::booted(2, registration(id)));
    }
    assert!(w.status().waiting.is_none());
    w.leave(9);
    w.register_as(with(9, &[(91, 5), (92, 4)]), 5);
    assert_eq!(names(&w.judged(9)), [(91, "sound"), (92, "distrusted")], "nobody knows of anything newer");
}

/// n9 has two devices and comes back without 92; then it begins a copy of the only segment, beside two others.
fn begun_without_92(w: &mut World) -> engine_core::config::Config {
    w.volume("v", 1);
    w.register(with(9, &[(91, 1), (92, 1)]));
    w.leave(9);
    w.leave(3);
    w.register_as(with(9, &[(91, 2)]), 2);
    w.say(NodeId(9), ToAuthority::Replicas { part: Vec::new(), last: true });
    w.pass(engine_core::limits::NODE_SILENCE);
    let two = [NodeId(1), NodeId(2)];
    let shrunk = match propose(w, 0, two[0], &two, &[]) {
        engine_core::message::Decision::Installed(config) => config,
        other => panic!("{other:?}"),
    };
    w.sent.clear();
    let mut reserve = None;
    for _ in 0..30 {
        let ask = PermitAsk { segment: shrunk.segment, epoch: shrunk.epoch, members: 2 };
        w.say(shrunk.primary, ToAuthority::PermitAsks(vec![ask]));
        w.pass(Span::seconds(1));
        reserve = w.heard(NodeId(9)).into_iter().find_map(|said| match said {
            FromAuthority::Reserve { permit, segment, .. } => Some((permit, segment)),
            _ => None,
        });
        if reserve.is_some() {
            break;
        }
    }
    let (permit, segment) = reserve.expect("a copy is to begin on n9");
    w.say(NodeId(9), ToAuthority::Reserved { permit, segment, granted: true });
    match propose(w, 0, shrunk.primary, &two, &[NodeId(9)]) {
        engine_core::message::Decision::Installed(config) => config,
        other => panic!("{other:?}"),
    }
}

#[test]
fn a_copy_begun_since_a_device_went_missing_is_not_let_go_of_with_it() {
    let mut w = World::new(3);
    begun_without_92(&mut w);
    for node in [1, 2] {
        let config = w.segment(0);
        w.say(NodeId(node), ToAuthority::Replicas { part: vec![facts(&config, Standing::Member, 3)], last: true });
    }
    replace(&mut w, 9, Some(92)).unwrap();
    assert!(w.segment(0).is_candidate(NodeId(9)), "{:?}", w.segment(0));
}

/// I12: its space counts as used until it has said that it is gone.
#[test]
fn the_end_of_a_copy_begun_since_a_device_went_missing_is_still_asked_for() {
    let mut w = World::new(3);
    let config = begun_without_92(&mut w);
    w.sent.clear();
    propose(&mut w, 0, config.primary, &config.members, &[]);
    let released = |w: &mut World| w.heard(NodeId(9)).iter().any(|said| matches!(said, FromAuthority::Release { .. }));
    assert!(released(&mut w), "it is on the device that is there");
    assert_eq!(w.records_of("release"), 1);
    replace(&mut w, 9, Some(92)).unwrap();
    assert_eq!(w.records_of("release"), 1, "it was not on 92");
    let (segment, incarnation) = (config.segment, config.incarnation);
    w.say(NodeId(9), ToAuthority::Released { segment, incarnation });
    assert_eq!(w.records_of("release"), 0);
}

/// I11: else two devices would have a replica each, and none of them could be told from the other.
#[test]
fn what_a_node_may_have_made_on_a_missing_device_is_not_made_again_beside_it() {
    let mut w = World::new(3);
    w.leave(3);
    w.pass(engine_core::limits::NODE_SILENCE);
    w.register(with(9, &[(91, 1), (92, 1)]));
    w.sent.clear();
    w.create("v", 64 << 20);
    let asked = |w: &mut World| w.heard(NodeId(9)).iter().any(|said| matches!(said, FromAuthority::Create { .. }));
    assert!(asked(&mut w));
    for restarts in [false, true] {
        // Its answer is lost, and then the device.
        if restarts {
            w.restart();
            for node in 1..=3 {
                w.back(crate::world::booted(2, registration(node)));
            }
        } else {
            w.leave(9);
        }
        let boot = if restarts { 4 } else { 2 };
        w.register_as(with(9, &[(91, boot)]), u128::from(boot));
        w.say(NodeId(9), ToAuthority::Replicas { part: Vec::new(), last: true });
        assert!(!asked(&mut w), "{restarts}");
        w.leave(9);
        w.register_as(with(9, &[(91, boot + 1), (92, boot)]), u128::from(boot + 1));
        w.say(NodeId(9), ToAuthority::Replicas { part: Vec::new(), last: true });
        assert!(asked(&mut w), "{restarts}");
    }
}

/// I13: a copy lies on one device; room on two that is enough together is not enough.
#[test]
fn a_copy_has_to_fit_one_device() {
    let mut w = World::new(3);
    for id in 1..=3_u16 {
        w.leave(id);
        w.register_as(with(id, &[(u128::from(id), 2), (u128::from(id) + 10, 1)]), 2);
        let devices = [u128::from(id), u128::from(id) + 10].map(|device| DeviceReport {
            device: DeviceId(device),
            capacity: 10_000,
            booked: 9_600,
            used: 0,
            failed: false,
        });
        w.say(NodeId(id), ToAuthority::Report(Report { devices: devices.to_vec(), ..Report::default() }));
    }
    let error = called(&mut w, Call::Create(crate::world::wish("v", 64 << 20))).unwrap_err();
    assert!(error.message.contains("have room"), "{error}");
}
