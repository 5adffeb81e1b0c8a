//! Garbage, truncated, oversized and slow input on every listening port: the connection ends with a logged reason,
//! memory stays bounded, the service is unharmed (I15).

use std::io::{ErrorKind, Read, Write};
use std::net::{Shutdown, TcpStream};
use std::path::{Path, PathBuf};
use std::time::{Duration, Instant};

use engine_core::random::Random;

use crate::support::child::resident;
use crate::support::cluster::{PATIENCE, SMALL, TestCluster};
use crate::support::gateway::Gateway;
use crate::support::nbd::Nbd;
use crate::support::{alone, wait_for};

/// Every deadline of a handshake is shorter.
const CLOSED_WITHIN: Duration = Duration::from_secs(30);
/// What hostile input may cost a process, all of it together.
const MEMORY: u64 = 64 << 20;

/// A listening port and whose it is.
struct Port {
    name: String,
    address: String,
    pid: u32,
    logs: PathBuf,
}

#[test]
fn hostile_input_on_every_port_harms_nobody() {
    let _alone = alone();
    let cluster = TestCluster::start("input", SMALL);
    cluster.create("v", "128M", &[]);
    cluster.create("w", "64M", &[]);
    let load = cluster.load("v", 600);
    let gateway = cluster.attach("w");
    let ports = ports(&cluster, &gateway);
    let before: Vec<u64> = ports.iter().map(|port| resident(port.pid)).collect();
    std::thread::scope(|scope| {
        for port in &ports {
            scope.spawn(|| abuse(port));
        }
    });
    for (port, before) in ports.iter().zip(before) {
        let after = resident(port.pid);
        assert!(after > 0, "{} is gone", port.name);
        assert!(after < before + MEMORY, "{}: {before} bytes grew to {after}", port.name);
    }
    // The crowd is gone, but its places are free only when the gateway has seen that.
    let mut client = wait_for("a place at the gateway", PATIENCE, || {
        Nbd::connect(&gateway.uri, CLOSED_WITHIN).map_err(|error| format!("{error:?}"))
    });
    client.write(0, &[1; 4096]).expect("NBD still serves");
    load.goes_on(PATIENCE);
    cluster.wait_healthy();
    load.finish(&cluster);
}

fn ports(cluster: &TestCluster, gateway: &Gateway) -> Vec<Port> {
    let node = cluster.primary("v", 0);
    let entry = cluster.node(&node);
    let text = |value: &serde_json::Value| value.as_str().expect("a text").to_owned();
    let strip = |url: &str| url.trim_start_matches("http://").trim_start_matches("nbd://").to_owned();
    let host = |url: &str| strip(url).split('/').next().unwrap_or_default().to_owned();
    let of = |name: &str, address: String, pid: u32, logs: PathBuf| Port { name: name.into(), address, pid, logs };
    let dir = cluster.dir();
    let authority = text(&cluster.description()["authority"]);
    vec![
        of("authority", host(&authority), cluster.authority().0, dir.join("authority")),
        of("primary network", text(&entry["primary_addr"]), cluster.pid(&node), dir.join(&node)),
        of("replication network", text(&entry["replication_addr"]), cluster.pid(&node), dir.join(&node)),
        of("NBD", host(&gateway.uri), gateway.pid(), cluster.scratch().to_owned()),
    ]
}

/// Everything a stranger may send, one after the other; each connection has to be ended by the other side.
fn abuse(port: &Port) {
    let mut random = Random::new(1);
    let garbage: Vec<u8> = (0..64 * 1024).map(|_| random.next_u64().to_le_bytes()[0]).collect();
    let oversized = frame_header(u32::MAX, u32::MAX);
    let announced = [frame_header(1000, 0).as_slice(), b"short"].concat();
    let request_line = [b"GET /".as_slice(), &vec![b'a'; 1 << 20]].concat();
    let body = b"POST /v1/volumes HTTP/1.1\r\nhost: x\r\ncontent-length: 99999999999\r\n\r\n{".to_vec();
    let table: [(&str, &[u8], bool); 8] = [
        ("nothing at all", &[], false),
        ("one byte", &[0xB7], false),
        ("garbage", &garbage, false),
        ("half a header", &oversized[..10], true),
        ("an oversized frame", &oversized, false),
        ("half a frame", &announced, true),
        ("an endless request line", &request_line, false),
        ("an oversized body", &body, true),
    ];
    for (what, bytes, finish) in table {
        let logged = log_bytes(&port.logs);
        ended_by_the_other_side(port, what, bytes, finish);
        wait_for(&format!("a logged reason for {what} on {}", port.name), PATIENCE, || {
            // HTTP is answered with a status, not with a line in the log; and nobody logs an empty connection there.
            if log_bytes(&port.logs) > logged || port.name == "authority" { Ok(()) } else { Err("nothing".into()) }
        });
    }
    crowd(port);
}

/// Many connections that say nothing: whoever comes properly afterwards is served.
fn crowd(port: &Port) {
    let crowd: Vec<TcpStream> = (0..200).filter_map(|_| TcpStream::connect(&port.address).ok()).collect();
    assert!(!crowd.is_empty(), "{} takes no connection at all", port.name);
}

fn ended_by_the_other_side(port: &Port, what: &str, bytes: &[u8], finish: bool) {
    let mut stream = TcpStream::connect(&port.address).unwrap_or_else(|error| panic!("{}: {error}", port.name));
    stream.set_read_timeout(Some(CLOSED_WITHIN)).expect("a socket");
    stream.set_write_timeout(Some(CLOSED_WITHIN)).expect("a socket");
    // The other side may close before it has taken everything: that is an end too.
    let _ = stream.write_all(bytes);
    if finish {
        let _ = stream.shutdown(Shutdown::Write);
    }
    let begin = Instant::now();
    let mut answer = [0; 4096];
    loop {
        match stream.read(&mut answer) {
            Ok(0) => return,
            Ok(_) => {}
            Err(error) if matches!(error.kind(), ErrorKind::WouldBlock | ErrorKind::TimedOut) => {
                panic!("{}: still open {:?} after {what}", port.name, begin.elapsed());
            }
            Err(_) => return,
        }
        assert!(begin.elapsed() < 2 * CLOSED_WITHIN, "{}: keeps answering {what}", port.name);
    }
}

/// A header of the wire protocol (docs/protocol.md) that is right but for what it announces.
fn frame_header(body: u32, payload: u32) -> Vec<u8> {
    let mut header = vec![0xB7, 0x42, 0x52, 0x4B, 1, 0, 1, 0];
    header.extend(body.to_le_bytes());
    header.extend(payload.to_le_bytes());
    header.extend(0u32.to_le_bytes());
    header.extend(crc32fast::hash(&header).to_le_bytes());
    header
}

/// Bytes of all logs in a directory.
fn log_bytes(dir: &Path) -> u64 {
    let entries = std::fs::read_dir(dir).into_iter().flatten().flatten();
    let logs = entries.filter(|entry| entry.file_name().to_string_lossy().contains("log"));
    logs.filter_map(|entry| entry.metadata().ok()).map(|meta| meta.len()).sum()
}
