//! What a story needs from its machine. Missing: a visible skip for people, a failure in continuous integration.

use std::io::Write as _;

/// Whether a story can run; says so on stderr when it can't, and fails where `CI=true` or
/// `BREAKWATER_REQUIRE_CLIENTS=1`.
pub(crate) fn programs(story: &str, wanted: &[&str]) -> bool {
    let missing: Vec<&&str> = wanted.iter().filter(|name| !has(name)).collect();
    if missing.is_empty() {
        return true;
    }
    skip(story, &format!("needs {missing:?}"))
}

/// Whether we are root; the same consequences.
pub(crate) fn root(story: &str) -> bool {
    // SAFETY: geteuid takes nothing and cannot fail.
    let user = unsafe { libc::geteuid() };
    user == 0 || skip(story, "needs root")
}

/// Says that a story is skipped. Gives false.
pub(crate) fn skip(story: &str, why: &str) -> bool {
    let is = |name: &str, wanted: &str| std::env::var(name).is_ok_and(|value| value == wanted);
    let strict = is("CI", "true") || is("BREAKWATER_REQUIRE_CLIENTS", "1");
    assert!(!strict, "{story}: {why}, and this environment lets nothing be skipped");
    // Not `eprintln!`, which nobody gets to see of a test that passes.
    let _ = writeln!(std::io::stderr(), "SKIPPED {story}: {why}");
    false
}

fn has(name: &str) -> bool {
    let path = std::env::var_os("PATH").unwrap_or_default();
    std::env::split_paths(&path).chain(["/sbin".into(), "/usr/sbin".into()]).any(|dir| dir.join(name).is_file())
}
