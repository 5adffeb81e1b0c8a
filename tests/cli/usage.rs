//! What can't be meant is refused with exit code 2 before anything is done.

use crate::{exits, expect, nodectl};

#[test]
fn what_cannot_be_meant_is_2() {
    let table: &[&[&str]] = &[
        &[],
        &["nonsense"],
        &["status", "--nonsense"],
        &["-o", "yaml", "status"],
        &["--cluster", "d", "--authority", "http://127.0.0.1:1", "status"],
        &["volume", "create", "v"],
        &["volume", "create", "v", "--size", "4X"],
        &["volume", "create", "v", "--size", "4G", "--zone", "a", "--spread", "zone"],
        &["volume", "create", "v", "--size", "4G", "--spread", "rack"],
        &["volume", "create", "v", "--size", "4G", "--iops", "many"],
        &["volume", "set", "v"],
        &["volume", "set", "v", "--iops", "-1"],
        &["volume", "attach", "v"],
        &["volume", "attach", "v", "--nbd", "nowhere"],
        &["cluster", "up"],
        &["cluster", "up", "--dir", "d", "--nodes", "0"],
        &["cluster", "kill", "x7", "--dir", "d"],
        &["cluster", "kill", "n1"],
        &["node", "show", "n0"],
        &["bench", "io", "v", "--rw", "append"],
        &["bench", "io", "v", "--qd", "0"],
        &["verify", "write", "v"],
        &["verify", "check", "v"],
        &["verify", "check", "v", "--log", "l", "--replicas", "--nbd", "127.0.0.1:1"],
        &["demo", "--nodes", "2"],
        &["store", "inspect"],
        &["store", "check", "a", "b"],
        &["store", "repair", "a"],
    ];
    for args in table {
        let (stdout, _) = exits(2, args);
        assert_eq!(stdout, "", "nodectl {args:?}: stdout is for results");
    }
}

#[test]
fn no_cluster_named_is_2_and_says_how_to_name_one() {
    let (_, said) = exits(2, &["status"]);
    assert!(said.contains("--cluster") && said.contains("--authority"), "{said}");
}

#[test]
fn a_name_that_is_no_volumes_name_is_2() {
    for name in ["../x", "a b", "-x", "a/b"] {
        exits(2, &["--authority", "http://127.0.0.1:1", "volume", "show", "--", name]);
    }
}

#[test]
fn the_environment_names_a_cluster_and_flags_win() {
    let run = |args: &[&str], name: &str, value: &str, code| {
        let output = nodectl(args).env(name, value).output().unwrap();
        expect(code, args, &output).1
    };
    let said = run(&["status"], "BREAKWATER_AUTHORITY", "http://127.0.0.1:1", 20);
    assert!(said.contains("127.0.0.1:1"), "{said}");
    run(&["status"], "BREAKWATER_CLUSTER", "/nonexistent", 3);
    run(&["--cluster", "/nonexistent", "status"], "BREAKWATER_AUTHORITY", "http://127.0.0.1:1", 3);
    run(&["--authority", "http://127.0.0.1:1", "status"], "BREAKWATER_CLUSTER", "/nonexistent", 20);
}

#[test]
fn help_and_version_are_0() {
    for args in [&["--help"][..], &["--version"], &["volume", "create", "--help"], &["cluster", "up", "--help"]] {
        let (stdout, _) = exits(0, args);
        assert!(!stdout.is_empty());
    }
    let (help, _) = exits(0, &["--help"]);
    for command in ["demo", "cluster", "status", "node", "volume", "store", "bench", "verify", "Exit codes"] {
        assert!(help.contains(command), "help does not name {command}");
    }
    assert!(!help.contains("noded"), "the servers inside are not for people");
}
