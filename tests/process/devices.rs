//! Wrong devices: a clear error, and not one byte of them changes. A full device: an answer, and everything goes on
//! (I9, I13).

use std::fs::{File, OpenOptions};
use std::io::{Read, Write};
use std::path::{Path, PathBuf};
use std::time::Duration;

use crate::support::binaries::nodectl;
use crate::support::child::{self, Child};
use crate::support::cluster::{PATIENCE, SMALL, Shape, TestCluster};
use crate::support::{alone, wait_for};

/// Three nodes, one of which is taken out and started by hand with something wrong.
const THREE: Shape = Shape { nodes: 3, ..SMALL };

/// How a node of a cluster is started, changed flag by flag.
pub(crate) struct Start {
    line: Vec<String>,
    device: PathBuf,
}

impl Start {
    pub(crate) fn of(cluster: &TestCluster, node: &str) -> Self {
        let pid = cluster.pid(node);
        let running = child::processes_of(&cluster.dir());
        let line = running.into_iter().find(|(other, _)| *other == pid).expect("the node runs").1;
        let device = cluster.node(node)["device"].as_str().expect("a path").into();
        Self { line, device }
    }

    /// The same with another value of one flag.
    fn with(&self, flag: &str, value: &str) -> Self {
        let mut line = self.line.clone();
        match line.iter().position(|word| word == flag) {
            Some(at) => value.clone_into(&mut line[at + 1]),
            None => line.extend([flag.to_owned(), value.to_owned()]),
        }
        Self { line, device: self.device.clone() }
    }

    /// Runs it; it has to end by itself, with an error that names everything in `words`.
    pub(crate) fn refused(&self, cluster: &TestCluster, story: &str, words: &[&str]) {
        let mut command = nodectl();
        command.args(&self.line[1..]);
        let mut child = Child::start(command, cluster.scratch(), story);
        let status = child.wait(PATIENCE);
        let said = format!("{}{}", child.stdout(), child.stderr());
        assert!(!status.success(), "{story}: it ended well and said: {said}");
        assert!(!said.contains("panicked"), "{story}: {said}");
        for word in words {
            assert!(said.to_lowercase().contains(&word.to_lowercase()), "{story}: no word of `{word}` in: {said}");
        }
    }

    /// As [`Self::refused`], and the device is what it was.
    pub(crate) fn refused_untouched(&self, cluster: &TestCluster, story: &str, words: &[&str]) {
        let before = content(&self.device);
        self.refused(cluster, story, words);
        assert_eq!(before, content(&self.device), "{story}: the device was changed");
    }
}

/// Length and checksum of a whole file.
fn content(path: &Path) -> (u64, u32) {
    let mut file = File::open(path).unwrap_or_else(|error| panic!("{}: {error}", path.display()));
    let mut sum = crc32fast::Hasher::new();
    let mut buffer = vec![0; 1 << 20];
    let mut len = 0;
    loop {
        match file.read(&mut buffer).expect("a readable device") {
            0 => return (len, sum.finalize()),
            n => {
                sum.update(&buffer[..n]);
                len += n as u64;
            }
        }
    }
}

#[test]
fn wrong_devices_are_refused_and_left_alone() {
    let _alone = alone();
    let cluster = TestCluster::start("device", THREE);
    cluster.create("v", "64M", &[]);
    let good = Start::of(&cluster, "n1");
    let running = Start::of(&cluster, "n2");
    running.refused(&cluster, "two-nodes-on-one-device", &["use"]);
    cluster.wait_healthy();
    cluster.act("stop", "n1");

    let absent = cluster.scratch().join("absent");
    good.with("--device", &absent.to_string_lossy()).without_size().refused(&cluster, "missing", &["absent"]);
    assert!(!absent.exists(), "a device was made up");

    good.with("--id", "n9").refused_untouched(&cluster, "another-node", &["n1", "n9"]);

    let (_other, url) = another_authority(&cluster);
    good.with("--authority", &url).refused_untouched(&cluster, "wrong-cluster", &["cluster"]);

    let foreign = cluster.scratch().join("foreign");
    let mut file = File::create(&foreign).expect("a file");
    for _ in 0..512 {
        file.write_all(&vec![b'x'; 1 << 20]).expect("room for a file");
    }
    drop(file);
    let mut strange = good.with("--device", &foreign.to_string_lossy()).with("--id", "n9").without_size();
    strange.device.clone_from(&foreign);
    strange.refused_untouched(&cluster, "foreign", &["holds something"]);

    let whole = std::fs::metadata(&good.device).expect("a device").len();
    let kept = cluster.scratch().join("kept");
    std::fs::copy(&good.device, &kept).expect("room for a copy");
    let file = OpenOptions::new().write(true).open(&good.device).expect("a device");
    file.set_len(whole / 2).expect("a shorter device");
    good.refused_untouched(&cluster, "shrunk", &["shrunk"]);
    std::fs::rename(&kept, &good.device).expect("the device is put back");

    // After all of that the right device still serves.
    cluster.act("start", "n1");
    cluster.wait_healthy();
}

impl Start {
    /// Without leave to create the device.
    fn without_size(mut self) -> Self {
        if let Some(at) = self.line.iter().position(|word| word == "--device-size") {
            self.line.drain(at..at + 2);
        }
        self
    }
}

/// The authority of another cluster, and where it is.
fn another_authority(cluster: &TestCluster) -> (Child, String) {
    let (_, line) = cluster.authority();
    let dir = cluster.scratch().join("other");
    let own = cluster.dir().join("authority").to_string_lossy().into_owned();
    let port = free_port();
    let mut command = nodectl();
    let mut words = line[1..].iter();
    while let Some(word) = words.next() {
        if word == "--listen" {
            words.next();
        } else {
            command.arg(word.replace(&own, &dir.to_string_lossy()));
        }
    }
    command.args(["--listen", &format!("127.0.0.1:{port}")]);
    let url = format!("http://127.0.0.1:{port}");
    let authority = Child::start(command, cluster.scratch(), "other-authority");
    crate::support::wait_for("the other authority", PATIENCE, || {
        ureq::get(format!("{url}/v1/cluster"))
            .call()
            .map(drop)
            .map_err(|error| format!("{error}: {}", authority.stderr()))
    });
    (authority, url)
}

fn free_port() -> u16 {
    let socket = std::net::TcpListener::bind("127.0.0.1:0").expect("a free port");
    socket.local_addr().expect("an address").port()
}

/// I13: a creation that does not fit is refused with the figures; a volume written to its last byte on devices that
/// hold nothing else still reads, overwrites, trims and is re-mirrored from.
#[test]
fn a_full_device_answers_and_goes_on() {
    let _alone = alone();
    let cluster = TestCluster::start("full", THREE);
    let said = cluster.refused(&["volume", "create", "huge", "--size", "1T"], 4);
    assert!(said.contains("room") && said.contains("most free"), "no figures in: {said}");
    let status = cluster.json(&["status"]);
    assert_eq!(status["booked"], 0, "a refused creation left something behind: {status}");

    let mut volumes = 0;
    while cluster
        .command(&["volume", "create", &format!("v{volumes}"), "--size", "64M", "--segment-size", "64M"])
        .output()
        .expect("nodectl runs")
        .status
        .success()
    {
        volumes += 1;
        assert!(volumes < 100, "64 MiB volumes without end on small devices");
    }
    assert!(volumes > 0, "not even one volume fits");
    cluster.wait_healthy();
    for number in 0..volumes {
        let gateway = cluster.attach(&format!("v{number}"));
        let mut client = gateway.connect(Duration::from_secs(60));
        for at in (0..client.size).step_by(1 << 20) {
            client.write(at, &vec![7; 1 << 20]).expect("booked space is there");
        }
        client.write(0, &[8; 4096]).expect("a full volume is overwritten");
        client.trim(1 << 20, 1 << 20).expect("a full volume is trimmed");
        client.write(1 << 20, &vec![9; 1 << 20]).expect("what was trimmed is written again");
        client.flush().expect("a flush");
        assert!(client.read(0, 4096).expect("a read").iter().all(|byte| *byte == 8));
    }
    let node = cluster.primary("v0", 0);
    cluster.act("kill", &node);
    let gateway = cluster.attach("v0");
    let mut client = gateway.connect(Duration::from_secs(60));
    client.write(0, &[6; 4096]).expect("a full volume goes on without a node");
    cluster.act("start", &node);
    cluster.wait_healthy();
    // I16: what somebody uses is not deleted; what nobody uses gives its space back.
    cluster.refused(&["volume", "delete", "v0"], 4);
    assert_eq!(client.read(0, 4096).expect("it is still there"), [6; 4096]);
    drop(client);
    drop(gateway);
    cluster.run(&["volume", "detach", "v0"]);
    cluster.run(&["volume", "delete", "v0"]);
    wait_for("the space to be free again", PATIENCE, || {
        let made = cluster.command(&["volume", "create", "again", "--size", "64M", "--segment-size", "64M"]).output();
        let made = made.expect("nodectl runs");
        if made.status.success() { Ok(()) } else { Err(String::from_utf8_lossy(&made.stderr).into_owned()) }
    });
}
