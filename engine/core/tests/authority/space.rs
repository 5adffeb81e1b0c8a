//! Space: what new volumes get and what is kept, what is said before it runs out (R4; I13).

use engine_core::authority::headroom::Headroom;
use engine_core::authority::io::{Call, ErrorCode};
use engine_core::authority::policy::Policy;
use engine_core::limits::{BREAKER_EVERY, EXTENT_SIZE};
use engine_core::time::Span;

use crate::stories::error;
use crate::world::{World, wish};

const MIB: u64 = 1 << 20;

fn look(w: &mut World) {
    w.pass(Span(2 * BREAKER_EVERY.0));
}

#[test]
fn a_volume_that_would_eat_headroom_is_refused_with_the_figures() {
    // Six nodes of 1250 MiB in three zones, two in each.
    for (headroom, fits, why) in [
        (Headroom::default(), 17, "10% of every node are kept for re-mirroring"),
        (Headroom::Node, 9, "as much is kept for re-mirroring as the largest node has (n6, 1.2 GiB)"),
        (Headroom::Zone, 9, "as much is kept for re-mirroring as the largest zone has (c, 2.4 GiB)"),
    ] {
        let mut w = World::with(6, Policy { headroom, ..Policy::default() });
        // Three copies need every zone: of each zone's two nodes one could be lost.
        for number in 0..fits * 2 {
            w.volume(&format!("v{number}"), 1);
        }
        let (code, message) = error(&mut w, Call::Create(wish("more", 64 * MIB)));
        assert_eq!(code, ErrorCode::NoSpace, "{headroom}");
        assert!(message.contains(why) && message.contains("0 of 6 nodes"), "{headroom}: {message}");
        look(&mut w);
        let space = w.status().space;
        assert_eq!(space.policy, why);
        assert!(space.free >= space.headroom, "{space:?}");
        assert_eq!(space.free - space.headroom, space.free_for_new);
    }
}

#[test]
fn an_operator_hears_of_it_before_space_runs_out_and_until_there_is_some_again() {
    let mut w = World::new(3);
    // Three nodes of 10,000 extents, of which 9000 are for new volumes: 17 segments of 512, not 18.
    let levels = |w: &mut World| {
        look(w);
        let alarms = w.status().space.alarms;
        alarms.into_iter().map(|alarm| (alarm.zone, alarm.level)).collect::<Vec<_>>()
    };
    for number in 0..14 {
        w.volume(&format!("v{number}"), 1);
    }
    assert_eq!(levels(&mut w), []);
    w.volume("v14", 1);
    let everywhere = [None, Some("a"), Some("b"), Some("c")].map(|zone| (zone.map(String::from), "low".to_string()));
    assert_eq!(levels(&mut w), everywhere);
    let call = w.call(Call::Delete("v14".into()));
    assert!(w.answer(call).unwrap().is_ok());
    w.settle();
    assert_eq!(levels(&mut w), [], "a segment is more than a trifle");
    w.volume("w", 3);
    assert_eq!(levels(&mut w), everywhere);
    let alarm = w.status().space.alarms.remove(0);
    assert_eq!(alarm.level, "low");
    assert!(alarm.message.contains("left for new volumes"), "{}", alarm.message);
    assert_eq!(w.status().space.headroom, 3 * 1000 * EXTENT_SIZE);
}
