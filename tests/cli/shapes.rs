//! The JSON that programs rely on, against an authority that always says the same.

use serde_json::{Value, json};

use crate::authority::stranger;
use crate::exits;

fn shown(document: &Value, args: &[&str]) -> Value {
    let url = stranger("200 OK", Some(document.to_string()));
    let mut all = vec!["--authority", &url, "-o", "json"];
    all.extend(args);
    let (stdout, _) = exits(0, &all);
    assert_eq!(stdout.lines().count(), 1, "one document");
    serde_json::from_str(&stdout).unwrap()
}

fn segments() -> Value {
    json!({"total": 8, "full": 6, "degraded": 1, "read_only": 1, "stuck": 0})
}

fn volume() -> Value {
    json!({
        "id": 7, "name": "v", "size": 4_u64 << 30, "segment_size": 1 << 30, "copies": 3, "min_copies": 2,
        "spread": "zone", "zone": null, "state": "ready", "generation": 2, "attached": null, "limits": {"iops": 200, "mibps": 0},
        "segments": segments()
    })
}

#[test]
fn status_has_what_the_contract_names() {
    let status = json!({
        "cluster": "000102030405060708090a0b0c0d0e0f", "revision": 12, "health": "degraded", "segments": segments(),
        "remirror": {"active": 1, "parked": 0, "bytes_per_second": 1024, "bytes_total": 4096},
        "breaker": breaker(),
        "space": {"policy": "10% of every node are kept for re-mirroring", "headroom": 100, "free_for_new": 400, "free": 500,
                  "alarms": [{"zone": "a", "level": "low", "message": "zone a: 1 GiB are left for new volumes"}]},
        "damage": {"blocks": 3, "structures": 1, "mended_extents": 2},
        "nodes_up": 5, "nodes_total": 6, "capacity": 1000, "booked": 500, "used": 100, "frozen": null,
        "waiting": null, "next": null
    });
    assert_eq!(shown(&status, &["status"]), status);
}

fn breaker() -> Value {
    json!({"state": "half_open", "why": "breaker half-open since 700 s", "since_ms": 700_000, "lost": ["n3", "n6"]})
}

#[test]
fn the_breaker_is_shown_and_told_what_to_do() {
    for command in ["show", "hold", "half-open", "close", "reset"] {
        assert_eq!(shown(&breaker(), &["remirror", "breaker", command]), breaker());
    }
}

#[test]
fn volumes_and_nodes_come_as_the_api_says_them() {
    assert_eq!(shown(&volume(), &["volume", "show", "v"]), volume());
    assert_eq!(shown(&json!([volume()]), &["volume", "ls"]), json!([volume()]));
    assert_eq!(shown(&volume(), &["volume", "create", "v", "--size", "4G"]), volume());
    assert_eq!(shown(&volume(), &["volume", "delete", "v"]), volume());
    assert_eq!(shown(&volume(), &["volume", "delete", "v", "--dry-run"]), volume());
    assert_eq!(shown(&volume(), &["volume", "resize", "v", "--size", "8G"]), volume());
    assert_eq!(shown(&volume(), &["volume", "set", "v", "--iops", "200"]), volume());
    assert_eq!(shown(&volume(), &["volume", "detach", "v"]), volume());
    let node = json!({
        "id": "n3", "zone": "a", "state": "up", "primary_addr": "127.0.0.1:1", "replication_addr": "127.0.0.1:2",
        "capacity": 1, "booked": 1, "used": 1, "replicas": 1, "serving": 1, "shards": 1, "silent_ms": 1,
        "copied_bytes": 0, "corrupt_blocks": 0, "damaged_structures": 0, "mended_extents": 0,
        "scrub": {"passes": 1, "running": false, "compared": 0, "damaged_extents": 0, "compared_extents": 7,
                  "not_compared_extents": 1, "differing_extents": 1,
                  "differing": [{"segment": {"volume": 3, "index": 0}, "extent": 9, "member": "n2"}]}, "flushes": 0, "device_lost": false,
        "headroom": 5,
        "devices": [{
            "id": "000102030405060708090a0b0c0d0e0f", "state": "missing", "capacity": 1, "booked": 0, "used": 0, "why": null,
            "next": "nodectl node replace-device n3 --device 000102030405060708090a0b0c0d0e0f"
        }],
        "absent": ["/dev/example: it did not answer"], "awaited": false, "quarantine": []
    });
    assert_eq!(shown(&node, &["node", "show", "n3"]), node);
    assert_eq!(shown(&node, &["node", "scrub", "n3"]), node);
    assert_eq!(shown(&json!([node]), &["node", "ls"]), json!([node]));
}

#[test]
fn what_destroys_says_what_it_did_or_would_do() {
    let said = json!({"done": false, "does": ["segment 1.0 goes on from n2"], "loses": ["n1 loses what it holds"]});
    let recover = ["volume", "recover", "v", "--segment", "0", "--from", "n2", "--dry-run"];
    assert_eq!(shown(&said, &recover), said);
    assert_eq!(shown(&said, &["node", "replace-device", "n3", "--lose", "v"]), said);
    assert_eq!(shown(&said, &["node", "release", "n3", "--segment", "v/3"]), said);
    let accept = ["authority", "accept-older", "--revision", "94", "--without", "n3"];
    assert_eq!(shown(&said, &accept), said);
    let url = stranger("200 OK", Some(said.to_string()));
    let (stdout, _) = exits(0, &[&["--authority", &url][..], &recover].concat());
    assert!(stdout.contains("nothing was done; it would:") && stdout.contains("would be lost:"), "{stdout}");

    let error = json!({"code": "refused", "message": "this would lose data", "next": "nodectl volume recover"});
    let url = stranger("409 Conflict", Some(error.to_string()));
    let (_, stderr) = exits(4, &["--authority", &url, "node", "release", "n3", "--all"]);
    assert!(stderr.contains("this would lose data") && stderr.contains("next: nodectl volume recover"), "{stderr}");
    exits(2, &["--authority", &url, "node", "release", "n3"]);
    exits(2, &["--authority", &url, "node", "release", "n3", "--segment", "v"]);
}

#[test]
fn tables_are_for_people() {
    let url = stranger("200 OK", Some(volume().to_string()));
    let (stdout, _) = exits(0, &["--authority", &url, "volume", "show", "v"]);
    assert!(stdout.contains("4 GiB") && stdout.contains("3, at least 2 to write"), "{stdout}");
    assert!(stdout.contains("200 IOPS"), "{stdout}");
}
