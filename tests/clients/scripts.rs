//! What each client does with an export, and what must come out.
//!
//! A script runs the programs a user would, to their end, and looks at what they say and at the bytes. It leaves the
//! export in any state and expects it in any state.

use std::path::{Path, PathBuf};
use std::process::Command;
use std::sync::atomic::{AtomicU64, Ordering};
use std::time::Duration;

use serde_json::Value;

use crate::content;
use crate::support::child::Child;
use crate::support::needs;

/// One client program may take that long, node failures included.
const LIMIT: Duration = Duration::from_secs(100);

/// An export to work on, and a directory for files.
pub(crate) struct Target<'a> {
    pub(crate) uri: &'a str,
    pub(crate) size: u64,
    pub(crate) dir: &'a Path,
}

/// A client's script.
pub(crate) struct Script {
    pub(crate) name: &'static str,
    needs: &'static [&'static str],
    pub(crate) run: fn(&Target<'_>),
}

/// All of them.
pub(crate) const SCRIPTS: [Script; 6] = [
    Script { name: "nbdinfo", needs: &["nbdinfo"], run: nbdinfo },
    Script { name: "nbdcopy", needs: &["nbdcopy"], run: nbdcopy },
    Script { name: "qemu-img", needs: &["qemu-img", "qemu-io"], run: qemu_img },
    Script { name: "qemu-io", needs: &["qemu-io"], run: qemu_io },
    Script { name: "fio", needs: &["fio"], run: fio },
    Script { name: "ext4", needs: &["nbdcopy", "mkfs.ext4", "e2fsck", "debugfs"], run: ext4 },
];

impl Script {
    /// Whether its programs are installed; says so when not.
    pub(crate) fn can_run(&self) -> bool {
        needs::programs(self.name, self.needs)
    }
}

/// A number that was not there before: for names, and for content that differs from what an earlier run left.
fn fresh() -> u64 {
    static NEXT: AtomicU64 = AtomicU64::new(1);
    NEXT.fetch_add(1, Ordering::Relaxed)
}

impl Target<'_> {
    /// Runs a program that has to end well; gives what it printed.
    fn run(&self, program: &str, args: &[&str]) -> String {
        let mut command = Command::new(program);
        let path = std::env::var("PATH").unwrap_or_default();
        // The file system's tools are where an ordinary user does not look.
        command.args(args).env("PATH", format!("{path}:/usr/sbin:/sbin")).current_dir(self.dir);
        let mut child = Child::start(command, self.dir, &format!("{program}-{}", fresh()));
        let status = child.wait(LIMIT);
        let (out, said) = (child.stdout(), child.stderr());
        assert!(status.success(), "{program} {args:?}: {status}\n{out}\n{said}");
        out
    }

    fn json(&self, program: &str, args: &[&str]) -> Value {
        let out = self.run(program, args);
        // fio says first what it is about to do.
        let document = out.find(['{', '[']).map_or("", |begin| &out[begin..]);
        serde_json::from_str(document).unwrap_or_else(|error| panic!("{program} {args:?}: {error} in\n{out}"))
    }

    fn file(&self, name: &str) -> PathBuf {
        self.dir.join(name)
    }
}

fn text(path: &Path) -> &str {
    path.to_str().expect("the story's directory has a plain name")
}

fn nbdinfo(target: &Target<'_>) {
    let info = target.json("nbdinfo", &["--json", target.uri]);
    let export = &info["exports"][0];
    assert_eq!(info["protocol"], "newstyle-fixed", "{info}");
    let sizes = [
        ("export-size", target.size),
        ("block_size_minimum", 512),
        ("block_size_preferred", 4096),
        ("block_size_maximum", 32 << 20),
    ];
    for (field, want) in sizes {
        assert_eq!(export[field], want, "{field} of {export}");
    }
    assert_eq!(export["is_read_only"], false, "{export}");
    for able in ["cache", "df", "fast_zero", "flush", "fua", "multi_conn", "trim", "zero"] {
        assert_eq!(export[&format!("can_{able}")], true, "can_{able} of {export}");
    }
    assert_eq!(export["contexts"][0], "base:allocation", "{export}");
    assert_eq!(target.run("nbdinfo", &["--size", target.uri]).trim(), target.size.to_string());
    let list = target.json("nbdinfo", &["--list", "--json", target.uri]);
    assert_eq!(list["exports"][0]["export-name"], export["export-name"], "{list}");
    let map = target.json("nbdinfo", &["--map", "--json", target.uri]);
    let total: u64 = map.as_array().into_iter().flatten().filter_map(|run| run["length"].as_u64()).sum();
    assert_eq!(total, target.size, "{map}");
}

fn nbdcopy(target: &Target<'_>) {
    let (source, back) = (target.file("nbdcopy.raw"), target.file("nbdcopy.back"));
    for options in [&["--connections=4", "--requests=16"][..], &["--allocated", "--request-size=2097152", "--flush"]] {
        content::image(&source, target.size, fresh());
        let _ = std::fs::remove_file(&back);
        target.run("nbdcopy", &[options, &[text(&source), target.uri]].concat());
        target.run("nbdcopy", &[options, &[target.uri, text(&back)]].concat());
        content::assert_same(&source, &back);
    }
}

fn qemu_img(target: &Target<'_>) {
    let [raw, source, back] = ["qemu.raw", "qemu.qcow2", "back.qcow2"].map(|name| target.file(name));
    let data = content::image(&raw, target.size, fresh());
    let [raw, source, back] = [&raw, &source, &back].map(|path| text(path));
    target.run("qemu-img", &["convert", "-f", "raw", "-O", "qcow2", raw, source]);
    target.run("qemu-img", &["convert", "-n", "-W", "-m", "8", "-f", "qcow2", "-O", "raw", source, target.uri]);
    target.run("qemu-img", &["compare", "-f", "qcow2", "-F", "raw", source, target.uri]);
    let mapped = mapped_data(target);
    assert!((data..=2 * data).contains(&mapped), "islands of {data} bytes and little else, but {mapped}");
    target.run("qemu-img", &["convert", "-f", "raw", "-O", "qcow2", target.uri, back]);
    target.run("qemu-img", &["compare", "-f", "qcow2", "-F", "qcow2", source, back]);
    let everything = format!("discard 0 {}", target.size);
    patterns_hold(&target.run("qemu-io", &["-f", "raw", "-c", &everything, target.uri]));
    assert_eq!(mapped_data(target), 0, "what was trimmed uses no space");
}

/// Bytes the export says hold data.
fn mapped_data(target: &Target<'_>) -> u64 {
    let map = target.json("qemu-img", &["map", "-f", "raw", "--output=json", target.uri]);
    let runs = || map.as_array().into_iter().flatten();
    let sum = |wanted: bool| -> u64 {
        runs().filter(|run| run["data"] == wanted).filter_map(|run| run["length"].as_u64()).sum()
    };
    assert_eq!(sum(true) + sum(false), target.size, "{map}");
    assert!(runs().all(|run| run["data"] == true || run["zero"] == true), "what is no data is zero: {map}");
    sum(true)
}

fn qemu_io(target: &Target<'_>) {
    // `-P`: the pattern written or expected; `-f`: FUA; `-z`: zeroes, `-u`: a hole if possible, `-n`: only if fast.
    const STEPS: [&[&str]; 4] = [
        &[
            "write -P 0xa1 0 2M",
            "write -f -P 0xa2 4k 64k",
            "read -P 0xa1 0 4k",
            "read -P 0xa2 4k 64k",
            "read -P 0xa1 68k 1980k",
            "flush",
        ],
        &[
            "discard 128k 256k",
            "read -P 0 128k 256k",
            "read -P 0xa1 384k 128k",
            "write -z -u 512k 128k",
            "write -z 640k 128k",
            "write -z -n -u 768k 128k",
            "write -z -f 896k 4k",
            "read -P 0 512k 388k",
            "read -P 0xa1 900k 1M",
        ],
        &[
            "write -P 0x11 1049088 512",
            "write -f -P 0x12 1049600 3072",
            "write -z 1050112 1024",
            "writev -P 0x13 1056256 512 4096 1024",
            "read -P 0xa1 1M 512",
            "read -P 0x11 1049088 512",
            "read -P 0x12 1049600 512",
            "read -P 0 1050112 1024",
            "read -P 0x12 1051136 1536",
            "read -P 0xa1 1052672 3584",
            "readv -P 0x13 1056256 1024 4608",
            "read -P 0xa1 1061888 512",
        ],
        // Concurrent requests, some on two halves of the same blocks.
        &[
            "aio_write -P 0x21 33553920 4096",
            "aio_write -P 0x22 33558016 4096",
            "aio_write -P 0x23 33562112 512",
            "aio_write -f -P 0x24 33562624 3584",
            "aio_write -z 33566208 512",
            "aio_flush",
            "read -P 0x21 33553920 4096",
            "read -P 0x22 33558016 4096",
            "read -P 0x23 33562112 512",
            "read -P 0x24 33562624 3584",
            "read -P 0 33566208 512",
        ],
    ];
    for steps in STEPS {
        let mut args = vec!["-f", "raw"];
        steps.iter().for_each(|step| args.extend(["-c", step]));
        args.push(target.uri);
        patterns_hold(&target.run("qemu-io", &args));
    }
    let last = target.size - 512;
    let (write, read) = (format!("write -P 0x31 {last} 512"), format!("read -P 0x31 {last} 512"));
    patterns_hold(&target.run("qemu-io", &["-f", "raw", "-c", &write, "-c", &read, target.uri]));
}

fn patterns_hold(said: &str) {
    assert!(!said.contains("failed"), "{said}");
}

fn fio(target: &Target<'_>) {
    let (uri, seed) = (format!("--uri={}", target.uri), format!("--randseed={}", fresh()));
    let size = ["--size=32M", "--verify_state_save=0"];
    for job in [
        &["--name=random", "--rw=randwrite", "--bssplit=512/20:4k/50:12k/10:64k/20", "--iodepth=16"][..],
        &["--name=sequential", "--rw=write", "--bs=256k", "--iodepth=4", "--offset=64M"],
        &["--name=mixed", "--rw=randrw", "--bs=4k", "--iodepth=32", "--verify_backlog=128", "--offset=96M"],
    ] {
        let common =
            ["--ioengine=nbd", &uri, &seed, size[0], size[1], "--verify=crc32c", "--verify_fatal=1", "--do_verify=1"];
        let report = target.json("fio", &[&common[..], job, &["--output-format=json"]].concat());
        let done = &report["jobs"][0];
        assert_eq!(done["error"], 0, "{done}");
        assert!(done["read"]["total_ios"].as_u64() > Some(0), "nothing was verified: {done}");
    }
}

fn ext4(target: &Target<'_>) {
    let tree = Path::new(env!("CARGO_MANIFEST_DIR")).join("engine");
    let [image, back, out] = ["ext4.img", "ext4.back", "ext4.out"].map(|name| target.file(name));
    for path in [&image, &back] {
        let _ = std::fs::remove_file(path);
    }
    let _ = std::fs::remove_dir_all(&out);
    std::fs::create_dir_all(&out).expect("a directory in the story's");
    let kib = format!("{}k", target.size >> 10);
    let before = content::tree(&tree);
    target.run("mkfs.ext4", &["-q", "-F", "-d", text(&tree), text(&image), &kib]);
    target.run("nbdcopy", &[text(&image), target.uri]);
    target.run("nbdcopy", &[target.uri, text(&back)]);
    target.run("e2fsck", &["-f", "-n", text(&back)]);
    target.run("debugfs", &["-R", &format!("rdump / {}", text(&out)), text(&back)]);
    let _ = std::fs::remove_dir_all(out.join("lost+found"));
    let after = content::tree(&out);
    assert!(before.len() > 10 && before == after, "{:?} and {:?}", before.keys(), after.keys());
}
