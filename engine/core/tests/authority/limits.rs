//! A volume's limits: made with it, changed, kept over a restart, told with the map.

use engine_core::authority::document::{AttachVolume, CreateVolume, SetVolume, VolumeInfo};
use engine_core::authority::io::{Answer, Call, CallError, ErrorCode};
use engine_core::limits::{LIMIT_IOPS_MAX, LIMIT_MIBPS_MAX};
use engine_core::throttle::VolumeLimits;

use crate::world::{World, registration, wish};

const fn limits(iops: u32, mibps: u32) -> VolumeLimits {
    VolumeLimits { iops, mibps }
}

fn info(answer: Option<Result<Answer, CallError>>) -> VolumeInfo {
    match answer {
        Some(Ok(Answer::Volume(info))) => *info,
        other => panic!("{other:?}"),
    }
}

fn refused(answer: Option<Result<Answer, CallError>>, code: ErrorCode, why: &str) {
    match answer {
        Some(Err(error)) => assert!(error.code == code && error.message.contains(why), "{error:?}"),
        other => panic!("{other:?}"),
    }
}

fn set(w: &mut World, iops: Option<u32>, mibps: Option<u32>) -> Option<Result<Answer, CallError>> {
    let call = w.call(Call::Set("v".into(), SetVolume { iops, mibps }));
    w.answer(call)
}

/// What whoever attaches is told.
fn attached(w: &mut World) -> VolumeLimits {
    let call = w.call(Call::Attach("v".into(), AttachVolume { client: "me".into() }));
    w.settle();
    match w.answer(call) {
        Some(Ok(Answer::Map(map))) => map.limits,
        other => panic!("{other:?}"),
    }
}

#[test]
fn limits_are_made_changed_and_kept() {
    let mut w = World::new(3);
    let call = w.call(Call::Create(CreateVolume { iops: Some(200), ..wish("v", 64 << 20) }));
    w.settle();
    assert_eq!(info(w.answer(call)).limits, limits(200, 0));
    assert_eq!(attached(&mut w), limits(200, 0));

    // Also while it is attached; what is not named stays.
    assert_eq!(info(set(&mut w, None, Some(30))).limits, limits(200, 30));
    assert_eq!(info(set(&mut w, Some(0), None)).limits, limits(0, 30));
    w.restart();
    for node in 1..=3 {
        w.back(registration(node));
    }
    assert_eq!(attached(&mut w), limits(0, 30));
    assert_eq!(info(set(&mut w, Some(0), Some(0))).limits, VolumeLimits::default());
}

#[test]
fn what_is_no_limit_is_refused_and_changes_nothing() {
    let mut w = World::new(3);
    let call = w.call(Call::Create(CreateVolume { iops: Some(LIMIT_IOPS_MAX + 1), ..wish("v", 64 << 20) }));
    refused(w.answer(call), ErrorCode::Invalid, "not 10000001");
    refused(set(&mut w, Some(1), None), ErrorCode::NotFound, "there is no volume `v`");
    w.volume("v", 1);
    let before = w.backup();
    refused(set(&mut w, None, None), ErrorCode::Invalid, "nothing was named");
    refused(set(&mut w, Some(5), Some(LIMIT_MIBPS_MAX + 1)), ErrorCode::Invalid, "1 to 1000000 MiB per second");
    // The same again is no change: it costs no record.
    assert_eq!(info(set(&mut w, Some(0), None)).limits, VolumeLimits::default());
    assert_eq!(w.backup(), before);
}
