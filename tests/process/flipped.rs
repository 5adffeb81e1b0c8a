//! Bits flipped in every region of a node's device file: what was written is read as it was written whatever was
//! flipped, the damage is found, counted and repaired from a member, and afterwards the device is clean (I9, I14).
//!
//! Every case is one restart of one node of three: the node is stopped or killed, bits are flipped, `nodectl store
//! check` says what is damaged and what becomes of it, and that is what then has to happen.

use std::collections::BTreeMap;
use std::fs::{File, OpenOptions};
use std::os::unix::fs::FileExt;
use std::path::PathBuf;
use std::time::Duration;

use serde_json::Value;

use crate::devices::Start;
use crate::support::cluster::{PATIENCE, THREE, TestCluster};
use crate::support::gateway::Gateway;
use crate::support::nbd::Nbd;
use crate::support::{alone, wait_for};

const BLOCK: usize = 4096;
const EXTENT: usize = 32 * BLOCK;
/// Blocks begin with their number above this, so that they are known on the device.
const MARK: u64 = 0xB10C_B10C << 32;

/// A volume whose content is known block by block, attached.
struct Volume {
    _gateway: Gateway,
    client: Nbd,
    /// By block: how often it was written.
    versions: BTreeMap<u32, u64>,
}

fn content(block: u32, version: u64) -> Vec<u8> {
    let head = [(MARK | u64::from(block)).to_le_bytes(), version.to_le_bytes()].concat();
    head.repeat(BLOCK / head.len())
}

impl Volume {
    fn new(cluster: &TestCluster) -> Self {
        cluster.create("v", "64M", &[]);
        let gateway = cluster.attach("v");
        let client = gateway.connect(Duration::from_secs(60));
        Self { _gateway: gateway, client, versions: BTreeMap::new() }
    }

    fn write(&mut self, first: u32, count: u32) {
        let mut data = Vec::new();
        for block in first..first + count {
            let version = self.versions.entry(block).or_default();
            *version += 1;
            data.extend(content(block, *version));
        }
        self.client.write(u64::from(first) * BLOCK as u64, &data).expect("a write");
    }

    /// Whole extents in several map pages, past the WAL, and small writes here and there.
    fn fill(&mut self) {
        for extent in [0, 8, 256, 500] {
            self.write(extent * 32, 8 * 32);
        }
        self.change();
    }

    /// Small writes: new blocks, and some of the above again.
    fn change(&mut self) {
        for block in (40..16_000).step_by(977) {
            self.write(block, 1);
            self.write(block + 5, 3);
        }
    }

    /// Every block is what it was last written as, or zeros.
    fn look(&mut self, story: &str) {
        for first in (0..64 << 20).step_by(EXTENT) {
            let found = self.client.read(first as u64, EXTENT).unwrap_or_else(|error| panic!("{story}: {error:?}"));
            for (block, found) in (0u32..).skip(first / BLOCK).zip(found.chunks(BLOCK)) {
                let want = self.versions.get(&block).map_or_else(|| vec![0; BLOCK], |version| content(block, *version));
                assert!(found == want, "{story}: block {block} is not what was written");
            }
        }
    }
}

/// A device file and where things lie in it.
struct Device {
    file: File,
    path: PathBuf,
    inspected: Value,
}

impl Device {
    fn of(cluster: &TestCluster, node: &str) -> Self {
        let path = cluster.device(node);
        let file = OpenOptions::new().read(true).write(true).open(&path).expect("the device of a node");
        let inspected = cluster.json(&["store", "inspect", &path.to_string_lossy()]);
        Self { file, path, inspected }
    }

    fn flip(&self, offset: u64) {
        let mut byte = [0];
        self.file.read_exact_at(&mut byte, offset).expect("a byte");
        self.file.write_all_at(&[byte[0] ^ 4], offset).expect("a byte");
        self.file.sync_all().expect("it is on the disk");
    }

    /// Where an area begins and ends.
    fn area(&self, name: &str) -> (u64, u64) {
        let areas = self.inspected["shards"][0]["areas"].as_array().expect("areas");
        let area = areas.iter().find(|area| area["name"] == name).unwrap_or_else(|| panic!("no area `{name}`"));
        let number = |key: &str| area[key].as_u64().expect("a number");
        (number("offset"), number("offset") + number("bytes"))
    }

    /// Where its root with this state is.
    fn root(&self, state: &str) -> u64 {
        let roots = self.inspected["shards"][0]["roots"].as_array().expect("roots");
        let root = roots.iter().find(|root| root["state"] == state).unwrap_or_else(|| panic!("no {state} root"));
        self.area(&format!("root {}", root["name"].as_str().expect("a name"))).0
    }

    /// Places of so many bytes in an area that are not blank.
    fn used(&self, area: &str, step: usize) -> Vec<u64> {
        let (from, to) = self.area(area);
        let mut bytes = vec![0; step];
        let mut used = Vec::new();
        for at in (from..to).step_by(step) {
            self.file.read_exact_at(&mut bytes, at).expect("a device");
            if bytes.iter().any(|byte| *byte != 0) {
                used.push(at);
            }
        }
        used
    }

    /// Blocks of the volume in an area: where, which, of which version.
    fn blocks(&self, area: &str) -> Vec<(u64, u32, u64)> {
        let (from, to) = self.area(area);
        let mut head = [0; 16];
        let mut found = Vec::new();
        for at in (from..to).step_by(BLOCK) {
            self.file.read_exact_at(&mut head, at).expect("a device");
            let (mark, version) = head.split_at(8);
            let mark = u64::from_le_bytes(mark.try_into().expect("eight bytes"));
            if mark & MARK == MARK {
                let version = u64::from_le_bytes(version.try_into().expect("eight bytes"));
                found.push((at, u32::try_from(mark & u64::from(u32::MAX)).expect("masked"), version));
            }
        }
        found
    }

    /// Batches in the part of the ring that counts: where they begin.
    fn batches(&self) -> Vec<u64> {
        let wal = &self.inspected["shards"][0]["wal"];
        let (ring, _) = self.area("WAL");
        let (tail, head) = (wal["tail"].as_u64().expect("a tail"), wal["head"].as_u64().expect("a head"));
        let mut mark = [0; 4];
        let mut found = Vec::new();
        for at in (ring + tail..ring + head).step_by(BLOCK) {
            self.file.read_exact_at(&mut mark, at).expect("a device");
            if mark == *b"BWWL" {
                found.push(at);
            }
        }
        found
    }
}

/// Structure and verdict of every problem `store check --data` lists, and its exit code.
fn check(cluster: &TestCluster, device: &Device) -> (Option<i32>, Vec<(String, String)>) {
    let (exit, document, _) = cluster.check_device(&device.path);
    let text = |value: &Value| value.as_str().unwrap_or_default().to_owned();
    let problems = document["problems"].as_array().cloned().unwrap_or_default();
    let problems = problems.iter().map(|problem| (text(&problem["structure"]), text(&problem["verdict"]))).collect();
    (exit, problems)
}

/// How the node ends before its bits are flipped.
#[derive(Clone, Copy, PartialEq, Eq)]
enum End {
    /// SIGTERM: everything is in its home.
    Stop,
    /// SIGKILL behind some writes: the WAL holds them.
    Kill,
}

/// What has to be counted when the node is back.
#[derive(Clone, Copy, PartialEq, Eq)]
enum Counted {
    /// `damaged_structures`, when it starts.
    AtStart,
    /// `corrupt_blocks`, by a scrub; the extents are mended.
    ByScrub,
    /// What is torn off the end of a log looks like a crash: nobody can know, the others hold it.
    NotAtAll,
}

/// A case: its name, how the node ends, which bits are flipped, what `store check` must list, and what is counted.
type Case = (&'static str, End, fn(&Device) -> Vec<u64>, &'static [(&'static str, &'static str)], Counted);

/// Every region of the format, and every structure in it (docs/format.md, "What damage costs").
const CASES: &[Case] = &[
    ("superblock 0", End::Stop, |_| vec![40], &[("superblock", "harmless")], Counted::AtStart),
    ("superblock 1", End::Kill, |_| vec![(256 << 10) + 8], &[("superblock", "harmless")], Counted::AtStart),
    ("superblock 2", End::Stop, |_| vec![512 << 10], &[("superblock", "harmless")], Counted::AtStart),
    ("superblock 3", End::Stop, |_| vec![(768 << 10) + 100], &[("superblock", "harmless")], Counted::AtStart),
    ("header of the older root", End::Stop, |d| vec![d.root("older") + 40], &[("root", "harmless")], Counted::AtStart),
    ("header of the root", End::Stop, |d| vec![d.root("current") + 40], &[("root", "harmless")], Counted::AtStart),
    (
        "body of the root",
        End::Stop,
        |d| vec![d.root("current") + 4096 + 20],
        &[("root", "copied"), ("replica", "copied")],
        Counted::AtStart,
    ),
    (
        "map pages",
        End::Stop,
        |d| d.used("map pages", BLOCK).into_iter().map(|at| at + 80).collect(),
        &[("map page", "copied"), ("replica", "copied")],
        Counted::AtStart,
    ),
    (
        "checksum pages",
        End::Stop,
        |d| d.used("checksum pages", 512).into_iter().map(|at| at + 130).collect(),
        &[("checksum page", "mended")],
        Counted::ByScrub,
    ),
    (
        "slabs",
        End::Stop,
        |d| d.blocks("slabs").into_iter().step_by(3).map(|(at, ..)| at + 1000).collect(),
        &[("data", "mended")],
        Counted::ByScrub,
    ),
    (
        "header of a batch",
        End::Kill,
        |d| vec![d.batches()[2] + 10],
        &[("WAL", "copied"), ("replica", "copied")],
        Counted::AtStart,
    ),
    (
        "records of a batch",
        End::Kill,
        |d| vec![d.batches()[2] + 70],
        &[("WAL", "copied"), ("replica", "copied")],
        Counted::AtStart,
    ),
    ("data in the WAL", End::Kill, in_the_wal, &[("WAL", "mended")], Counted::AtStart),
    ("the last batch", End::Kill, |d| vec![*d.batches().last().expect("batches") + 70], &[], Counted::NotAtAll),
];

/// Data of the latest write of some blocks, in batches that something follows.
fn in_the_wal(device: &Device) -> Vec<u64> {
    let batches = device.batches();
    let (first, last) = (batches[0], batches[batches.len() - 2]);
    let newest: BTreeMap<u32, (u64, u64)> =
        device.blocks("WAL").into_iter().fold(BTreeMap::new(), |mut newest, (at, block, version)| {
            let known = newest.entry(block).or_insert((at, version));
            if known.1 < version {
                *known = (at, version);
            }
            newest
        });
    newest.values().map(|(at, _)| *at).filter(|at| (first..last).contains(at)).step_by(2).map(|at| at + 9).collect()
}

/// Reads everything from this node alone: the others are down.
fn look_at(cluster: &TestCluster, volume: &mut Volume, node: &str, story: &str) {
    let mut others: Vec<String> = cluster.nodes().into_iter().filter(|other| other != node).collect();
    // A primary that goes hands its lead to who is left.
    let primary = cluster.primary("v", 0);
    others.sort_by_key(|other| *other == primary);
    others.iter().for_each(|other| cluster.act("stop", other));
    wait_for(story, PATIENCE, || {
        let primary = cluster.primary("v", 0);
        if primary == node { Ok(()) } else { Err(format!("{primary} leads")) }
    });
    volume.look(story);
    others.iter().for_each(|other| cluster.act("start", other));
    cluster.wait_healthy();
}

/// What a node counts: damaged structures, damaged blocks, mended extents.
fn counts(cluster: &TestCluster, node: &str) -> [u64; 3] {
    let info = cluster.json(&["node", "show", node]);
    ["damaged_structures", "corrupt_blocks", "mended_extents"].map(|key| info[key].as_u64().expect("a count"))
}

fn wait_counts(cluster: &TestCluster, node: &str, story: &str, wanted: impl Fn([u64; 3]) -> bool) {
    wait_for(story, PATIENCE, || {
        let counts = counts(cluster, node);
        if wanted(counts) { Ok(()) } else { Err(format!("{counts:?}")) }
    });
}

/// Has a node compare all it holds until a pass finds nothing any more.
fn scrub(cluster: &TestCluster, node: &str, story: &str) {
    wait_for(story, PATIENCE, || {
        let before = cluster.json(&["node", "show", node])["scrub"]["damaged_extents"].clone();
        let after = cluster.json(&["node", "scrub", node, "--now"])["scrub"]["damaged_extents"].clone();
        if before == after { Ok(()) } else { Err(format!("{before} -> {after} damaged extents")) }
    });
}

/// What makes a device useless to its node: it ends with an error, and changes nothing.
fn refused(cluster: &TestCluster, node: &str) {
    let start = Start::of(cluster, node);
    cluster.act("stop", node);
    let device = Device::of(cluster, node);
    let copies: Vec<u64> = (0..4).map(|copy| copy * (256 << 10) + 40).collect();
    copies.iter().for_each(|offset| device.flip(*offset));
    let (exit, problems) = check(cluster, &device);
    assert!(problems.contains(&("superblock".into(), "refused".into())), "{problems:?}");
    assert_eq!(exit, Some(7));
    start.refused_untouched(cluster, "no-superblock", &["superblock", "other nodes"]);
    copies.iter().for_each(|offset| device.flip(*offset));
    let roots = ["current", "older"].map(|state| device.root(state) + 40);
    roots.iter().for_each(|offset| device.flip(*offset));
    assert!(check(cluster, &device).1.contains(&("shard".into(), "refused".into())));
    start.refused(cluster, "no-root", &["checkpoint"]);
    roots.iter().for_each(|offset| device.flip(*offset));
    cluster.act("start", node);
    cluster.wait_healthy();
}

/// Bits flipped beneath a node that runs: a read finds them where it reads, a scrub everywhere else.
fn beneath(cluster: &TestCluster, volume: &mut Volume) {
    let nodes = cluster.nodes();
    // Started anew, everything is in its home and nothing of it in memory. Areas stay where they are.
    let mut devices: BTreeMap<&String, Device> = BTreeMap::new();
    for node in &nodes {
        cluster.act("stop", node);
        devices.insert(node, Device::of(cluster, node));
        cluster.act("start", node);
        cluster.wait_healthy();
    }
    let primary = cluster.primary("v", 0);
    let backup = nodes.iter().find(|node| **node != primary).expect("three nodes");
    for (node, story) in [(&primary, "beneath the primary"), (backup, "beneath a backup")] {
        let device = &devices[node];
        let homes = device.blocks("slabs");
        let current = |block: &u32, version: &u64| volume.versions.get(block) == Some(version);
        let data = homes.iter().filter(|(_, block, version)| current(block, version)).step_by(7).map(|(at, ..)| at + 1);
        let cells = device.used("checksum pages", 512).into_iter().step_by(5).map(|at| at + 140);
        data.chain(cells).for_each(|offset| device.flip(offset));
        let before = counts(cluster, node);
        volume.look(story);
        if node == &primary {
            // What it serves it has compared, and mended.
            wait_counts(cluster, node, story, |[_, blocks, mended]| blocks > before[1] && mended > before[2]);
        }
        scrub(cluster, node, story);
        wait_counts(cluster, node, story, |[_, blocks, mended]| blocks > before[1] && mended > before[2]);
        cluster.act("stop", node);
        assert_eq!(check(cluster, device), (Some(0), vec![]), "{story}: not clean afterwards");
        cluster.act("start", node);
        cluster.wait_healthy();
        volume.look(story);
    }
}

fn run(cluster: &TestCluster, volume: &mut Volume, node: &str, case: &Case) {
    let (story, end, flips, wrong, counted) = case;
    let begun = std::time::Instant::now();
    if *end == End::Kill {
        volume.change();
    }
    cluster.act(if *end == End::Kill { "kill" } else { "stop" }, node);
    let device = Device::of(cluster, node);
    let offsets = flips(&device);
    assert!(!offsets.is_empty(), "{story}: nothing to flip");
    offsets.iter().for_each(|offset| device.flip(*offset));
    let (exit, problems) = check(cluster, &device);
    assert_eq!(exit, Some(if wrong.is_empty() { 0 } else { 7 }), "{story}: {problems:?}");
    for (structure, verdict) in *wrong {
        let listed = problems.iter().any(|(found, what)| found == structure && what == verdict);
        assert!(listed, "{story}: no {structure}, {verdict} in {problems:?}");
    }
    cluster.act("start", node);
    cluster.wait_healthy();
    volume.look(story);
    if wrong.iter().any(|(_, verdict)| *verdict == "mended") {
        scrub(cluster, node, story);
        wait_counts(cluster, node, story, |[_, blocks, mended]| blocks > 0 && mended > 0);
    }
    match counted {
        Counted::AtStart => wait_counts(cluster, node, story, |[structures, ..]| structures > 0),
        Counted::ByScrub => {
            let blocks = cluster.json(&["status"])["damage"]["blocks"].as_u64();
            assert!(blocks >= Some(offsets.len() as u64), "{story}: {blocks:?} of {} counted", offsets.len());
        }
        Counted::NotAtAll => {}
    }
    if wrong.iter().any(|(structure, _)| *structure != "superblock") || wrong.is_empty() {
        look_at(cluster, volume, node, story);
    }
    cluster.act("stop", node);
    let found = check(cluster, &device);
    assert_eq!(found, (Some(0), vec![]), "{story}: not clean afterwards");
    cluster.act("start", node);
    cluster.wait_healthy();
    eprintln!("{story}: {} bits flipped, {} problems, {:?}", offsets.len(), problems.len(), begun.elapsed());
}

#[test]
fn bits_flipped_in_every_region_of_a_stopped_node() {
    let _alone = alone();
    let cluster = TestCluster::start("flip", THREE);
    let mut volume = Volume::new(&cluster);
    volume.fill();
    for (number, case) in CASES.iter().enumerate() {
        run(&cluster, &mut volume, ["n1", "n2", "n3"][number % 3], case);
    }
}

#[test]
fn bits_flipped_beneath_a_node_that_runs_and_too_many_of_them() {
    let _alone = alone();
    let cluster = TestCluster::start("beneath", THREE);
    let mut volume = Volume::new(&cluster);
    volume.fill();
    beneath(&cluster, &mut volume);
    refused(&cluster, "n2");
    volume.look("after everything");
}
