//! Random proposals: whatever is asked, the configurations installed keep the promises of I1, I5, I10 and I12.

use engine_core::authority::proposals::{Proposal, Verdict, judge};
use engine_core::authority::records::SegmentRecord;
use engine_core::config::Config;
use engine_core::ids::{Epoch, Generation, Incarnation, NodeId, SegmentId, VolumeId};
use proptest::prelude::*;

const NODES: u16 = 6;

#[derive(Debug, Clone)]
struct Asked {
    sender: u16,
    behind: u64,
    primary: u16,
    places: Vec<u8>,
    promised: bool,
    touch: u8,
    targets: u8,
}

fn asked() -> impl Strategy<Value = Asked> {
    let places = proptest::collection::vec(0..3_u8, usize::from(NODES));
    (
        1..=NODES,
        prop_oneof![8 => Just(0_u64), 1 => 1..3_u64],
        1..=NODES,
        places,
        any::<bool>(),
        any::<u8>(),
        any::<u8>(),
    )
        .prop_map(|(sender, behind, primary, places, promised, touch, targets)| Asked {
            sender,
            behind,
            primary,
            places,
            promised,
            touch,
            targets,
        })
}

fn first() -> SegmentRecord {
    let members: Vec<NodeId> = (1..=3).map(NodeId).collect();
    let config = Config {
        segment: SegmentId { volume: VolumeId(1), index: 0 },
        incarnation: Incarnation(1),
        epoch: Epoch(1),
        primary: NodeId(1),
        electable: members.clone(),
        members,
        candidates: Vec::new(),
        former: Vec::new(),
        generation: Generation(0),
        copies: 3,
        min_copies: 2,
        extents: 512,
    };
    SegmentRecord { config, fresh: Vec::new(), recovering: false }
}

fn chosen(bits: u8) -> Vec<NodeId> {
    (1..=NODES).filter(|node| bits & (1 << node) != 0).map(NodeId).collect()
}

fn step(current: &SegmentRecord, asked: &Asked) -> (Verdict, Vec<NodeId>) {
    let placed = |what: u8| (1..=NODES).filter(|n| asked.places[usize::from(n - 1)] == what).map(NodeId).collect();
    let expected = Epoch(current.config.epoch.0.saturating_sub(asked.behind));
    let wanted = Config {
        epoch: expected.next(),
        primary: NodeId(asked.primary),
        members: placed(1),
        candidates: placed(2),
        ..current.config.clone()
    };
    let touch = chosen(asked.touch);
    let verdict = judge(&Proposal {
        current,
        sender: NodeId(asked.sender),
        expected,
        wanted: &wanted,
        promised: asked.promised,
        targets: &chosen(asked.targets),
        generation: Generation(3),
        in_touch: &|node| touch.contains(&node),
    });
    (verdict, touch)
}

fn check(before: &Config, asked: &Asked, after: &SegmentRecord, released: &[NodeId], touch: &[NodeId]) {
    let config = &after.config;
    assert_eq!(config.epoch, before.epoch.next(), "I1: the next epoch, made from the current one");
    assert!(config.is_member(config.primary));
    let mut places: Vec<NodeId> = [&config.members[..], &config.candidates, &config.former].concat();
    places.sort();
    let count = places.len();
    places.dedup();
    assert_eq!(count, places.len(), "nobody is in two places: {config:?}");
    for member in &config.members {
        let held = before.is_member(*member) || before.electable.contains(member);
        let caught_up = !asked.promised && before.is_candidate(*member);
        assert!(held || caught_up, "I10: {member} had no way to catch up");
    }
    if config.may_commit() {
        assert_eq!(config.electable, config.members, "I5: who acknowledges is electable, nobody else");
    } else {
        assert!(before.electable.iter().all(|node| config.electable.contains(node)), "I5: nobody is forgotten");
        let new = config.electable.iter().filter(|node| !before.electable.contains(node));
        assert!(new.into_iter().all(|node| config.is_member(*node)), "I5: nobody slips in");
    }
    if asked.promised {
        assert!(config.members.iter().all(|node| before.electable.contains(node)), "I9");
    } else {
        assert_eq!(NodeId(asked.sender), before.primary, "I9: only the primary goes on or hands over");
        let handed_over = config.primary != before.primary;
        assert!(!handed_over || config.members.iter().all(|node| before.is_member(*node)), "I9: among members");
    }
    if !config.may_commit() && asked.promised {
        let behind = before
            .electable
            .iter()
            .find(|node| touch.contains(node) && !config.is_member(**node) && !before.is_candidate(**node));
        assert_eq!(behind, None, "I9: left behind");
    }
    for node in released {
        assert!(!config.holders().any(|holder| holder == *node), "I12: {node} is still needed");
        let never_member = before.is_candidate(*node) && !before.electable.contains(node);
        assert!(never_member || config.missing() == 0, "I12: released before whole");
    }
    let needed = before.holders().filter(|node| !released.contains(node));
    assert!(needed.into_iter().all(|node| config.holders().any(|holder| holder == node)), "I12: a copy is forgotten");
}

proptest! {
    #![proptest_config(ProptestConfig::with_cases(512))]

    #[test]
    fn whatever_is_proposed_configurations_stay_safe(asks in proptest::collection::vec(asked(), 1..60)) {
        let mut current = first();
        for asked in &asks {
            let (verdict, touch) = step(&current, asked);
            match verdict {
                Verdict::Install(record, released) => {
                    prop_assert_eq!(asked.behind.min(current.config.epoch.0), 0);
                    check(&current.config, asked, &record, &released, &touch);
                    current = record;
                }
                Verdict::Conflict => prop_assert!(asked.behind > 0),
                Verdict::Denied(reason) => prop_assert!(!reason.is_empty()),
            }
        }
    }
}
