//! House rules as ordinary tests: small functions and files, headers, a pure core, bytes in one home, links that lead
//! somewhere, invariants that are cited. What breaks a rule and may stay stands in `exceptions.txt`, which only shrinks.

mod docs;
mod findings;
mod rules;
mod source;

use findings::enforce;

/// Lines of `exceptions.txt`. Goes down when one is deleted, never up.
const EXCEPTIONS_MAX: usize = 0;

const RULES: [&str; 9] = [
    "function-length",
    "file-length",
    "header",
    "glob-import",
    "pure-core",
    "bytes",
    "machine-path",
    "link",
    "invariant",
];

#[test]
fn functions_fit_on_a_page() {
    enforce("function-length", &rules::long_functions(&source::tree()));
}

#[test]
fn files_hold_one_noun() {
    enforce("file-length", &rules::long_files(&source::tree()));
}

#[test]
fn every_file_says_what_it_is() {
    enforce("header", &rules::headless_files(&source::tree()));
}

#[test]
fn imports_are_named() {
    enforce("glob-import", &rules::glob_imports(&source::tree()));
}

#[test]
fn the_core_knows_no_outside_world() {
    enforce("pure-core", &rules::impure_core(&source::tree()));
}

#[test]
fn bytes_have_one_home() {
    enforce("bytes", &rules::stray_bytes(&source::tree()));
}

#[test]
fn no_path_of_one_machine() {
    enforce("machine-path", &rules::machine_paths(&source::tree()));
}

#[test]
fn links_lead_somewhere() {
    enforce("link", &docs::dead_links(&source::tree()));
}

#[test]
fn every_invariant_is_cited() {
    let text = std::fs::read_to_string(source::root().join("docs/invariants.md")).expect("docs/invariants.md");
    enforce("invariant", &docs::uncited_invariants(&source::tree(), &text));
}

#[test]
fn the_papers_are_there() {
    for paper in ["CHANGELOG.md", "README.md", "LICENSE-APACHE", "LICENSE-MIT", "docs/architecture.md"] {
        assert!(source::root().join(paper).is_file(), "{paper} is missing: a release needs it");
    }
}

#[test]
fn the_list_of_exceptions_only_shrinks() {
    let list = findings::exceptions();
    for exception in &list {
        let known = RULES.contains(&exception.rule.as_str());
        assert!(known, "exceptions.txt:{}: there is no rule `{}`: one of {RULES:?}", exception.line, exception.rule);
    }
    let now = list.len();
    assert_eq!(now, EXCEPTIONS_MAX, "more exceptions: keep the rule instead; fewer: lower EXCEPTIONS_MAX to {now}");
}

#[cfg(test)]
mod tests {
    //! The rules themselves, on small texts: each must see what it is there for and leave the rest alone.

    use crate::findings::{Finding, judge, parse};
    use crate::source::{File, mask};
    use crate::{docs, rules};

    fn file(path: &str, text: &str) -> Vec<File> {
        vec![File::new(path, text.to_owned())]
    }

    #[test]
    fn masking_leaves_code_and_lines() {
        let table = [
            ("let a = 1; // fn x", "let a = 1;        "),
            ("/* { /* } */ */ b", "                b"),
            (r#"x("a\"{", '{', '\n', b'{')"#, "x(      ,    ,     ,     )"),
            (r##"r#"}"# + &'a str"##, "       + &'a str"),
            ("for r in b {}", "for r in b {}"),
            ("\"a\nb\" c", "  \n   c"),
        ];
        for (text, want) in table {
            assert_eq!(mask(text), want, "{text}");
        }
    }

    #[test]
    fn a_function_of_71_lines_is_one_too_long() {
        let of = |lines: usize| format!("//! x\nfn a(x: [u8; 4]) {{\n{}}}\nfn b();\n", "    x;\n".repeat(lines - 2));
        assert!(rules::long_functions(&file("engine/src/a.rs", &of(70))).is_empty());
        let found = rules::long_functions(&file("engine/src/a.rs", &of(71)));
        assert_eq!((found[0].place.as_str(), found[0].line, found[0].measured), ("engine/src/a.rs::a", 2, 71));
    }

    #[test]
    fn a_file_is_measured_without_its_tests() {
        let tests = format!("#[cfg(test)]\nmod tests {{\n{}}}\n", "//\n".repeat(500));
        let of = |lines: usize| format!("{}{tests}", "//! x\n".repeat(lines));
        assert!(rules::long_files(&file("engine/src/a.rs", &of(600))).is_empty());
        assert_eq!(rules::long_files(&file("engine/src/a.rs", &of(601)))[0].measured, 601);
    }

    #[test]
    fn globs_are_for_tests() {
        let text = "use a::b;\nuse c::{\n    d, e::*,\n};\n#[cfg(test)]\nmod tests {\n    use super::*;\n}\n";
        let found = rules::glob_imports(&file("nodectl/src/a.rs", text));
        assert_eq!((found.len(), found[0].line, found[0].measured), (1, 2, 1));
        assert!(rules::glob_imports(&file("tests/sim/a.rs", text)).is_empty());
    }

    #[test]
    fn the_core_may_speak_of_time_but_not_use_it() {
        let talk = "#![no_std]\n// std::time is not for us\nconst A: &str = \"HashMap\";\n";
        assert!(rules::impure_core(&file("engine/core/src/lib.rs", talk)).is_empty());
        let used = "#![no_std]\nuse std::time::Instant;\nuse std::collections::HashMap;\n";
        assert_eq!(rules::impure_core(&file("engine/core/src/lib.rs", used))[0].measured, 3);
        assert_eq!(rules::impure_core(&file("engine/core/src/lib.rs", "//! x\n")).len(), 1);
    }

    #[test]
    fn bytes_belong_to_formats() {
        let text = "fn a() { 1u32.to_le_bytes(); }\n";
        assert_eq!(rules::stray_bytes(&file("engine/src/node/a.rs", text)).len(), 1);
        assert!(rules::stray_bytes(&file("engine/src/store/format/wal.rs", text)).is_empty());
        assert!(rules::stray_bytes(&file("engine/src/wire/codec.rs", text)).is_empty());
        let shown = format!("//! A log.\n//!\n//! | bytes | what |\n{text}");
        assert!(rules::stray_bytes(&file("nodectl/src/verify/log.rs", &shown)).is_empty());
    }

    #[test]
    fn machine_paths_are_seen_in_any_file() {
        let path = format!("see /{}/x and engine/{}/x", "home", "work");
        let found = rules::machine_paths(&file("docs/a.md", &path));
        assert_eq!((found.len(), found[0].measured), (1, 1));
    }

    #[test]
    fn links_are_followed() {
        let text =
            "# A b\n[ok](#a-b) [web](https://example.org/x)\n```\n[code](nowhere)\n```\n[no](gone.md) [no](#c)\n";
        let found = docs::dead_links(&file("docs/a.md", text));
        assert_eq!(found.iter().map(|f| f.line).collect::<Vec<_>>(), [6, 6]);
    }

    #[test]
    fn an_invariant_needs_its_citations() {
        let text: String = (1..=16).map(|n| format!("## I{n} x\n")).collect();
        let all: String = (1..=16).map(|n| format!("// I{n}\n")).collect();
        let mut files = file("engine/core/src/a.rs", &all);
        files.push(File::new("tests/sim/a.rs", all.replace("// I7\n", "")));
        let found = docs::uncited_invariants(&files, &text);
        assert_eq!(found.len(), 1);
        let admitted = format!("{text}## Not yet\n- I7 (test): later\n");
        assert!(docs::uncited_invariants(&files, &admitted).is_empty());
        let stale = format!("{admitted}- I8 (core): later\n");
        assert_eq!(docs::uncited_invariants(&files, &stale).len(), 1);
    }

    #[test]
    fn exceptions_only_shrink() {
        let finding = |measured| {
            let (place, remedy) = ("a.rs::f".to_owned(), "too long".to_owned());
            [Finding { place, line: 3, measured, remedy }]
        };
        let list = parse("# list\n\nfunction-length a.rs::f 80 because\n").unwrap_or_default();
        assert!(judge("function-length", &finding(80), &list).is_empty());
        assert_eq!(judge("function-length", &finding(81), &list).len(), 1, "grown");
        assert_eq!(judge("function-length", &finding(79), &list).len(), 1, "shrunk");
        assert_eq!(judge("function-length", &[], &list).len(), 1, "not needed");
        assert_eq!(judge("file-length", &finding(80), &list).len(), 1, "another rule");
        assert!(parse("function-length a.rs 80\n").is_err(), "no reason");
    }
}
