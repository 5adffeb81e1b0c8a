//! `nodectl bench storm`: a scenario of one's own, one JSON document, errors that name the field.

use serde_json::Value;

use crate::exits;
use crate::support::scratch::Scratch;

/// The storm of April 2011, cut short.
fn short() -> String {
    let path = concat!(env!("CARGO_MANIFEST_DIR"), "/fixtures/scenarios/april-2011.toml");
    let text = std::fs::read_to_string(path).unwrap();
    text.replace("\"2h\"", "\"4m\"").replace("\"5m\"", "\"1m\"").replace("\"13m\"", "\"2m\"")
}

#[test]
fn a_storm_is_one_document_with_both_policies_and_a_page() {
    let scratch = Scratch::new("storm");
    let (file, page) = (scratch.join("short.toml"), scratch.join("storm.html"));
    std::fs::write(&file, short()).unwrap();
    let (file, page) = (file.to_str().unwrap(), page.to_str().unwrap());
    let args = ["bench", "storm", file, "--sim", "--nodes", "24", "-o", "json", "--report", page];
    let (stdout, _) = exits(0, &args);
    assert_eq!(stdout.lines().count(), 1);
    let document: Value = serde_json::from_str(&stdout).unwrap();
    let policies = document["policies"].as_array().unwrap();
    assert_eq!(policies.iter().map(|one| one["policy"].as_str().unwrap()).collect::<Vec<_>>(), ["naive", "breakwater"]);
    for outcome in policies {
        assert_eq!(outcome["series"]["stuck"].as_array().unwrap().len(), 24, "one sample each ten seconds");
        assert!(outcome["figures"]["stuck_peak_share"].as_f64().unwrap() > 0.0, "{}", outcome["figures"]);
    }
    assert!(std::fs::read_to_string(page).unwrap().contains("\"policy\":\"naive\""));
}

#[test]
fn a_scenario_that_cannot_be_meant_is_refused_by_its_field() {
    let scratch = Scratch::new("storms");
    let file = scratch.join("bad.toml");
    std::fs::write(&file, short().replace("fill = 0.85", "fill = 3")).unwrap();
    let (_, said) = exits(2, &["bench", "storm", file.to_str().unwrap(), "--sim"]);
    assert!(said.contains("cluster.fill"), "{said}");
    let (_, said) = exits(3, &["bench", "storm", "may-2012", "--sim"]);
    assert!(said.contains("april-2011"), "{said}");
    exits(2, &["bench", "storm", "april-2011"]);
}
