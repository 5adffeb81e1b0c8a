//! The claims of the benchmark on a small cluster, and that a seed is a whole run.
#![allow(clippy::unwrap_used)]

use super::{Document, Scenario, Which, simulate};

/// The storm of April 2011 with so many nodes in two zones, for so long.
fn april(nodes: usize, duration: &str, which: Which, seed: u64) -> Document {
    let text = super::scenario::SHIPPED[0].1.replace("duration = \"2h\"", &format!("duration = \"{duration}\""));
    let text = text.replace("[\"a\", \"b\", \"c\", \"d\"]", "[\"a\", \"b\"]");
    let scenario = Scenario::parse(&text).unwrap().with_nodes(nodes).unwrap();
    simulate(&scenario, which, seed)
}

#[test]
fn the_old_policy_storms_and_this_one_does_not() {
    let document = april(96, "75m", Which::Both, 1);
    let of = |policy: &str| &document.policies.iter().find(|outcome| outcome.policy == policy).unwrap().figures;
    let (naive, breakwater) = (of("naive"), of("breakwater"));

    assert!((0.05..=0.30).contains(&naive.stuck_peak_after_share), "{naive:?}");
    assert!(naive.stuck_hour_after_share.unwrap() >= 0.05, "{naive:?}");
    assert!(naive.searching_nodes_at_end > 0 && naive.unstuck_after_s.is_none(), "{naive:?}");

    assert!(breakwater.unstuck_after_s.unwrap() <= 60.0, "{breakwater:?}");
    assert_eq!(breakwater.stuck_at_end, 0);
    assert_eq!(breakwater.degraded_at_end, 0, "{breakwater:?}");
    assert_eq!((breakwater.remirrors, breakwater.remirrors_needless), (0, 0), "a former copy could bring back each");
    assert!(breakwater.free_min_share >= document.headroom_share, "{breakwater:?}");
    assert!(breakwater.authority_messages_peak <= breakwater.authority_messages_bound.unwrap(), "{breakwater:?}");
    let api = &breakwater.api_other_zones;
    assert!(api.storm_p99_ms <= 1.1 * api.calm_p99_ms && api.storm_failed_share == 0.0, "{api:?}");
}

#[test]
fn the_same_seed_is_the_same_storm() {
    let said = |seed| {
        let document = Document { machine: super::Machine::default(), ..april(16, "20m", Which::Both, seed) };
        serde_json::to_string(&document).unwrap()
    };
    assert_eq!(said(3), said(3));
    assert_ne!(said(3), said(4));
}

#[test]
fn the_page_holds_its_data_and_needs_nothing_else() {
    let page = super::page::html(&april(16, "6m", Which::Naive, 1)).unwrap();
    assert!(page.contains("\"policy\":\"naive\"") && !page.contains("{{"));
    assert!(!page.contains("src=") && !page.contains("@import"), "nothing is fetched");
    assert_eq!(page.matches("</script>").count(), 2);
}
