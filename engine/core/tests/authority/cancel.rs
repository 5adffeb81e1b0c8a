//! Ten thousand asks for copies that end at once, because a zone is back: an ordinary event (R7, I15).

use std::collections::BTreeMap;

use engine_core::authority::document::{CreateVolume, Spread};
use engine_core::authority::io::Call;
use engine_core::authority::policy::{BreakerWish, SetBreaker};
use engine_core::config::Config;
use engine_core::ids::NodeId;
use engine_core::limits::{NODE_SILENCE, PARKED_MAX, PERMIT_ASKS_MAX, PERMITS_PER_ZONE, PROPOSALS_MAX};
use engine_core::message::{FromAuthority, PermitAsk, Proposal, ToAuthority};
use engine_core::time::Span;

use crate::world::{World, registration, wish};

const SEGMENTS: u32 = 10_000;

/// Every configuration, by index: the world looks one up by going through all.
fn all(w: &World) -> Vec<Config> {
    let mut all = w.segments();
    all.sort_by_key(|config| config.segment);
    all
}

/// What each node wants of the segments it leads by now, in messages as long as may be.
fn propose(w: &mut World, next: impl Fn(&Config) -> Option<Config>) {
    let mut said: BTreeMap<NodeId, Vec<Proposal>> = BTreeMap::new();
    for config in all(w) {
        let Some(wanted) = next(&config) else { continue };
        let promised = wanted.primary != config.primary;
        let wanted = Config { epoch: config.epoch.next(), ..wanted };
        let proposal = Proposal { expected: config.epoch, config: wanted.clone(), promised };
        said.entry(wanted.primary).or_default().push(proposal);
    }
    for (node, proposals) in said {
        for part in proposals.chunks(PROPOSALS_MAX) {
            w.say(node, ToAuthority::Proposals(part.to_vec()));
        }
    }
}

fn ask(w: &mut World) {
    let mut asks: BTreeMap<NodeId, Vec<PermitAsk>> = BTreeMap::new();
    for config in all(w).into_iter().filter(|config| config.searched() > 0) {
        let ask = PermitAsk { segment: config.segment, epoch: config.epoch, members: 2 };
        asks.entry(config.primary).or_default().push(ask);
    }
    for (node, asks) in asks {
        for part in asks.chunks(PERMIT_ASKS_MAX) {
            w.say(node, ToAuthority::PermitAsks(part.to_vec()));
        }
    }
}

/// Orders about copies since: neither answers nor what is said of the lead and the revision.
fn orders(w: &mut World) -> usize {
    use FromAuthority::{Create, Granted, Release, Reserve};
    let sent = std::mem::take(&mut w.sent);
    let order =
        |message: &FromAuthority| matches!(message, Create { .. } | Granted { .. } | Release { .. } | Reserve { .. });
    sent.iter().filter(|(_, message)| order(message)).count()
}

#[test]
fn ten_thousand_asks_end_at_once_and_nobody_is_flooded() {
    let mut w = World::new(0);
    let large = |id| {
        let mut registration = registration(id);
        registration.devices[0].capacity = 100_000_000;
        registration
    };
    (1..=9).for_each(|id| w.register(large(id)));
    let wish = wish("v", u64::from(SEGMENTS) << 26);
    let call = w.call(Call::Create(CreateVolume { spread: Some(Spread::Node), ..wish }));
    w.settle();
    assert!(w.answer(call).unwrap().is_ok());

    // A zone is gone, and with it one copy of each segment.
    let gone = [1, 4, 7].map(NodeId);
    gone.iter().for_each(|node| w.leave(node.0));
    w.pass(NODE_SILENCE);
    propose(&mut w, |config| {
        let members: Vec<NodeId> = config.members.iter().copied().filter(|node| !gone.contains(node)).collect();
        Some(Config { primary: members[0], members, ..config.clone() })
    });
    ask(&mut w);
    w.pass(Span::seconds(1));
    let status = w.status();
    assert_eq!((status.remirror.parked, status.breaker.state.as_str()), (PARKED_MAX as u64, "open"));
    w.sent.clear();
    w.pass(Span::seconds(5));
    assert_eq!(orders(&mut w), 0, "what waits is told nothing");

    // Some have begun when it returns.
    w.call(Call::SetBreaker(SetBreaker { set: BreakerWish::Close }));
    ask(&mut w);
    w.pass(Span::millis(100));
    let reserved: Vec<_> = w.sent.iter().filter(|(_, m)| matches!(m, FromAuthority::Reserve { .. })).cloned().collect();
    let running = 2 * PERMITS_PER_ZONE;
    assert!((1..=running).contains(&reserved.len()), "{}", reserved.len());
    for (node, message) in reserved {
        let FromAuthority::Reserve { permit, segment, .. } = message else { continue };
        w.say(node, ToAuthority::Reserved { permit, segment, granted: true });
    }
    gone.iter().for_each(|node| w.register_as(large(node.0), 2));
    w.pass(Span::millis(100));
    orders(&mut w);

    // Every primary takes its former member back, those with a permit as well.
    propose(&mut w, |config| {
        (config.searched() > 0).then(|| Config { candidates: config.former.clone(), ..config.clone() })
    });
    assert_eq!(w.status().remirror.parked, 0, "each ask ends with its reason");
    let mut told = orders(&mut w);
    w.pass(Span::seconds(1));
    propose(&mut w, |config| {
        let members = config.members.iter().chain(&config.candidates).copied().collect();
        Some(Config { members, candidates: Vec::new(), ..config.clone() })
    });
    w.pass(Span::seconds(40));
    told += orders(&mut w);
    assert!(told <= 2 * running, "{told} orders for {running} permits that ended");
    let status = w.status();
    assert_eq!((status.segments.full, status.remirror.parked), (u64::from(SEGMENTS), 0));
    assert_eq!(w.records_of("release"), 0, "nothing was copied that has to be dropped");
}
