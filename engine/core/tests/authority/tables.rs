//! Runs the text tables in `fixtures/placement` and `fixtures/election`.

use std::collections::BTreeMap;
use std::fmt::Write;
use std::path::Path;

use engine_core::authority::document::Spread;
use engine_core::authority::placement::{Need, Purpose, Room, choose};
use engine_core::authority::proposals::{Proposal, Verdict, judge};
use engine_core::authority::records::SegmentRecord;
use engine_core::config::Config;
use engine_core::ids::{Epoch, Generation, Incarnation, NodeId, SegmentId, VolumeId};

/// `a=b` pairs of a line; a word alone is there with an empty value.
struct Pairs(BTreeMap<String, String>);

impl Pairs {
    fn of(line: &str) -> Self {
        let pair = |word: &str| {
            let (key, value) = word.split_once('=').unwrap_or((word, ""));
            (key.to_owned(), value.to_owned())
        };
        Self(line.split_whitespace().map(pair).collect())
    }

    fn text(&self, key: &str) -> Option<&str> {
        self.0.get(key).map(String::as_str)
    }

    fn number(&self, key: &str) -> Option<u64> {
        self.text(key).map(|text| text.parse().unwrap_or_else(|_| panic!("`{text}` is no number")))
    }

    fn words(&self, key: &str) -> Vec<&str> {
        self.text(key).unwrap_or_default().split(',').filter(|word| !word.is_empty()).collect()
    }

    fn nodes(&self, key: &str) -> Vec<NodeId> {
        self.words(key).into_iter().map(|word| word.parse().unwrap()).collect()
    }
}

/// One case: its story, its lines before `=>` by first word, and what stands behind it.
struct Case {
    place: String,
    lines: Vec<(String, String)>,
    want: String,
}

/// Reads a file of cases; `standing` lines hold for all cases below them, until `fresh` ones replace them.
fn cases(dir: &str, standing: &str, replaces: bool) -> Vec<Case> {
    let dir = Path::new(env!("CARGO_MANIFEST_DIR")).join("../../fixtures").join(dir);
    let mut found = Vec::new();
    let mut files: Vec<_> = std::fs::read_dir(&dir).unwrap().map(|entry| entry.unwrap().path()).collect();
    files.sort();
    for file in files {
        let text = std::fs::read_to_string(&file).unwrap();
        let (mut holds, mut own, mut story) = (Vec::new(), Vec::new(), String::new());
        for (number, line) in text.lines().enumerate().filter(|(_, l)| !l.is_empty() && !l.starts_with('#')) {
            let (first, rest) = line.split_once(' ').unwrap();
            let entry = (first.to_owned(), rest.trim().to_owned());
            match first {
                "case" => {
                    story = rest.to_owned();
                    own.clear();
                }
                "=>" => {
                    let lines = holds.iter().chain(&own).cloned().collect();
                    let place = format!("{}:{}: {story}", file.display(), number + 1);
                    found.push(Case { place, lines, want: rest.to_owned() });
                }
                _ if first == standing => {
                    if replaces {
                        holds.clear();
                    }
                    holds.push(entry);
                }
                _ => own.push(entry),
            }
        }
    }
    assert!(!found.is_empty(), "no cases in {}", dir.display());
    found
}

impl Case {
    fn pairs(&self, first: &str) -> Pairs {
        let line = self.lines.iter().find(|(word, _)| word == first);
        Pairs::of(&line.unwrap_or_else(|| panic!("{}: no `{first}`", self.place)).1)
    }

    fn expect(&self, got: &str) -> Result<(), String> {
        let want = &self.want;
        let right = match want.strip_prefix("denied ").or_else(|| want.strip_prefix("none ")) {
            Some(words) => got.starts_with(&want[..want.len() - words.len()]) && got.contains(words),
            None => got == want,
        };
        if right { Ok(()) } else { Err(format!("{}\n  want: {want}\n  got:  {got}", self.place)) }
    }
}

#[test]
fn placement_follows_its_tables() {
    let mut wrong = Vec::new();
    for case in cases("placement", "node", false) {
        let nodes: Vec<(NodeId, Pairs)> = case
            .lines
            .iter()
            .filter(|(word, _)| word == "node")
            .map(|(_, rest)| (rest.split(' ').next().unwrap().parse().unwrap(), Pairs::of(rest)))
            .collect();
        let room = |(node, pairs): &(NodeId, Pairs)| Room {
            node: *node,
            zone: Box::leak(pairs.text("zone").unwrap().to_owned().into_boxed_str()),
            capacity: pairs.number("capacity").unwrap(),
            booked: pairs.number("booked").unwrap(),
            kept: pairs.number("kept").unwrap_or_else(|| pairs.number("capacity").unwrap().div_ceil(10)),
            fits: pairs.number("fits").unwrap_or(u64::MAX),
            primaries: pairs.number("primaries").unwrap(),
        };
        let rooms: Vec<Room<'_>> = nodes.iter().map(room).collect();
        let pairs = case.pairs("need");
        let need = Need {
            copies: usize::try_from(pairs.number("copies").unwrap()).unwrap(),
            extents: u32::try_from(pairs.number("extents").unwrap()).unwrap(),
            spread: if pairs.text("spread") == Some("zone") { Spread::Zone } else { Spread::Node },
            zone: pairs.text("zone"),
            without: &pairs.nodes("without"),
            taken: &pairs.words("taken"),
            purpose: if pairs.text("purpose") == Some("remirror") { Purpose::Remirror } else { Purpose::NewVolume },
            seed: pairs.number("seed").unwrap(),
        };
        let got = match choose(&rooms, &need) {
            Ok(chosen) => chosen.iter().map(ToString::to_string).collect::<Vec<_>>().join(" "),
            Err(none) => format!("none {none}"),
        };
        wrong.extend(case.expect(&got).err());
    }
    assert!(wrong.is_empty(), "{}", wrong.join("\n"));
}

fn config(epoch: u64, pairs: &Pairs) -> Config {
    Config {
        segment: SegmentId { volume: VolumeId(1), index: 0 },
        incarnation: Incarnation(1),
        epoch: Epoch(epoch),
        primary: pairs.text("primary").unwrap().parse().unwrap(),
        members: pairs.nodes("members"),
        candidates: pairs.nodes("candidates"),
        electable: pairs.nodes("electable"),
        former: pairs.nodes("former"),
        generation: Generation(1),
        copies: 3,
        min_copies: 2,
        extents: 512,
    }
}

fn describe(verdict: &Verdict) -> String {
    match verdict {
        Verdict::Conflict => "conflict".into(),
        Verdict::Denied(reason) => format!("denied {reason}"),
        Verdict::Install(SegmentRecord { config, fresh, .. }, released) => {
            assert_eq!((config.epoch, config.generation), (Epoch(6), Generation(9)));
            let mut text = "installed".to_owned();
            let lists = [
                ("members", &config.members),
                ("candidates", &config.candidates),
                ("electable", &config.electable),
                ("former", &config.former),
                ("fresh", fresh),
                ("released", released),
            ];
            for (name, nodes) in lists.into_iter().filter(|(_, nodes)| !nodes.is_empty()) {
                let mut nodes = nodes.clone();
                nodes.sort();
                let nodes: Vec<String> = nodes.iter().map(ToString::to_string).collect();
                write!(text, " {name}={}", nodes.join(",")).unwrap();
            }
            text
        }
    }
}

#[test]
fn proposals_are_judged_by_their_tables() {
    let mut wrong = Vec::new();
    for case in cases("election", "current", true) {
        let (now, asks, touch) = (case.pairs("current"), case.pairs("propose"), case.pairs("touch"));
        let current = SegmentRecord { config: config(5, &now), fresh: now.nodes("fresh"), recovering: false };
        let touch: Vec<NodeId> = touch.0.keys().flat_map(|list| list.split(',')).map(|n| n.parse().unwrap()).collect();
        let verdict = judge(&Proposal {
            current: &current,
            sender: asks.text("from").unwrap().parse().unwrap(),
            expected: Epoch(asks.number("expected").unwrap_or(5)),
            wanted: &config(asks.number("epoch").unwrap_or(6), &asks),
            promised: asks.text("promised").is_some(),
            targets: &asks.nodes("targets"),
            generation: Generation(9),
            in_touch: &|node| touch.contains(&node),
        });
        wrong.extend(case.expect(&describe(&verdict)).err());
    }
    assert!(wrong.is_empty(), "{}", wrong.join("\n"));
}
