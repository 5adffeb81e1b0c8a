//! A node as its process runs it, in this process: a real device file, real sockets, a fake authority.
#![allow(clippy::unwrap_used)]

use std::path::{Path, PathBuf};
use std::time::Duration;

use bytes::Bytes;
use engine_core::config::Config as Configuration;
use engine_core::ids::{
    BlockIndex, BootId, ClusterId, DeviceId, Epoch, Generation, Incarnation, NodeId, RequestId, Revision, SegmentId,
    Session, VolumeId,
};
use engine_core::message::{
    Decision, DeviceJudged, DeviceOpened, FromAuthority, Judgement, Op, Outcome, Proposal, Refusal, Registration,
    Reply, Request, Settings, ToAuthority,
};
use engine_core::record::{Blocks, Change, sum_seed};
use engine_core::time::Span;
use tokio::io::AsyncWriteExt;
use tokio::net::{TcpListener, TcpStream};
use tokio::sync::{mpsc, oneshot};
use tokio::task::{LocalSet, spawn_local};
use tokio::time::timeout;

use super::config::Config;
use super::devices::stuck::{Step, Stuck};
use super::start::{self, StartError};
use crate::wire::{self, Hello, Inbound, Local, Message, Outbox, Who};

const CLUSTER: ClusterId = ClusterId(0xC1);
const PATIENCE: Duration = Duration::from_secs(60);
const SIZE: u64 = 192 << 20;

/// A node on a thread of its own.
struct Running {
    stop: Option<oneshot::Sender<()>>,
    ended: oneshot::Receiver<Result<(), StartError>>,
}

fn config(device: PathBuf, authority: String) -> Config {
    Config {
        id: NodeId(1),
        authority,
        devices: vec![device],
        device_size: Some(SIZE),
        zone: "a".into(),
        primary: "127.0.0.1:0".parse().unwrap(),
        replication: "127.0.0.1:0".parse().unwrap(),
        shards: Some(1),
        wal_size: None,
    }
}

fn start(config: Config) -> Running {
    let (stop, stopped) = oneshot::channel();
    let (end, ended) = oneshot::channel();
    std::thread::spawn(move || {
        let runtime = tokio::runtime::Builder::new_current_thread().enable_all().build().unwrap();
        let until = async {
            let _ = stopped.await;
        };
        let result = runtime.block_on(LocalSet::new().run_until(start::run(config, until)));
        let _ = end.send(result);
    });
    Running { stop: Some(stop), ended }
}

impl Running {
    async fn end(mut self) -> Result<(), StartError> {
        drop(self.stop.take());
        timeout(PATIENCE, &mut self.ended).await.expect("the node ends").unwrap()
    }

    async fn refused(mut self) -> StartError {
        timeout(PATIENCE, &mut self.ended).await.expect("the node ends").unwrap().expect_err("the node refuses")
    }
}

/// Installs whatever is proposed.
struct Authority {
    address: String,
    registrations: mpsc::UnboundedReceiver<(Registration, Outbox)>,
    said: mpsc::UnboundedReceiver<ToAuthority>,
}

impl Authority {
    async fn begin() -> Self {
        let listener = TcpListener::bind("127.0.0.1:0").await.unwrap();
        let address = listener.local_addr().unwrap().to_string();
        let (registered, registrations) = mpsc::unbounded_channel();
        let (heard, said) = mpsc::unbounded_channel();
        spawn_local(async move {
            loop {
                let (stream, _) = listener.accept().await.unwrap();
                let (registered, heard) = (registered.clone(), heard.clone());
                spawn_local(async move {
                    let local = Local { cluster: CLUSTER, node: None, boot: BootId(9), shards: 0 };
                    let Ok((_, link)) = wire::accept(stream, &local).await else { return };
                    let (inbound, outbox) = link.split();
                    Self::talk(inbound, outbox, registered, heard).await;
                });
            }
        });
        Self { address, registrations, said }
    }

    async fn talk(
        mut inbound: Inbound,
        outbox: Outbox,
        registered: mpsc::UnboundedSender<(Registration, Outbox)>,
        heard: mpsc::UnboundedSender<ToAuthority>,
    ) {
        let say = |message| outbox.try_send(&Message::FromAuthority(message)).unwrap();
        while let Ok(Message::ToAuthority(message)) = inbound.next().await {
            match message {
                ToAuthority::Register(registration) if registration.zone == "refused" => {
                    say(FromAuthority::RegisterRefused("not this one".into()));
                }
                ToAuthority::Register(registration) => {
                    let settings = Settings { grace: Span::seconds(60) };
                    let doubts = registration.zone == "doubted";
                    let judge = |(at, opened): (usize, &DeviceOpened)| {
                        let judgement = if doubts && at > 0 {
                            Judgement::Distrusted { boot: opened.boot.next() }
                        } else {
                            Judgement::Sound { boot: opened.boot }
                        };
                        DeviceJudged { device: opened.device, judgement }
                    };
                    let devices = registration.devices.iter().enumerate().map(judge).collect();
                    say(FromAuthority::Registered { settings, revision: Revision(1), devices, complete: true });
                    say(FromAuthority::Nodes(vec![registration.address.clone()]));
                    let _ = registered.send((registration, outbox.clone()));
                }
                ToAuthority::Proposals(proposals) => {
                    let installed = proposals.into_iter().map(|Proposal { mut config, .. }| {
                        config.electable = config.members.clone();
                        Decision::Installed(config)
                    });
                    say(FromAuthority::Decisions(installed.collect()));
                }
                other => drop(heard.send(other)),
            }
        }
    }

    async fn registered(&mut self) -> (Registration, Outbox) {
        timeout(PATIENCE, self.registrations.recv()).await.expect("the node registers").unwrap()
    }

    async fn hears(&mut self, wanted: impl Fn(&ToAuthority) -> bool) -> ToAuthority {
        loop {
            let said = timeout(PATIENCE, self.said.recv()).await.expect("the node says it").unwrap();
            if wanted(&said) {
                return said;
            }
        }
    }
}

fn segment() -> SegmentId {
    SegmentId { volume: VolumeId(1), index: 0 }
}

fn first_configuration(extents: u32) -> Configuration {
    let alone = vec![NodeId(1)];
    Configuration {
        segment: segment(),
        incarnation: Incarnation(1),
        epoch: Epoch(1),
        primary: NodeId(1),
        members: alone.clone(),
        candidates: vec![],
        electable: alone,
        former: vec![],
        generation: Generation(1),
        copies: 1,
        min_copies: 1,
        extents,
    }
}

struct Client {
    inbound: Inbound,
    outbox: Outbox,
    last: u64,
    /// Highest epoch heard of: a primary listens to nobody who has not heard of its reign (I2).
    epoch: Epoch,
}

impl Client {
    async fn connect(address: &str) -> Self {
        let hello = Hello { cluster: CLUSTER, who: Who::Client { name: "test".into() } };
        let (welcome, link) = wire::dial(address, &hello, PATIENCE).await.unwrap();
        assert_eq!(welcome.node, Some(NodeId(1)));
        let (inbound, outbox) = link.split();
        Self { inbound, outbox, last: 0, epoch: Epoch(0) }
    }

    async fn ask(&mut self, segment: SegmentId, op: Op) -> Reply {
        self.last += 1;
        let request = RequestId(self.last);
        let (epoch, generation, session) = (self.epoch, Generation(1), Session(1));
        let asked = Request { segment, epoch, generation, session, request, op };
        self.outbox.try_send(&Message::Request(asked)).unwrap();
        match timeout(PATIENCE, self.inbound.next()).await.expect("an answer").unwrap() {
            Message::Reply(reply) => {
                assert_eq!(reply.request, request);
                reply
            }
            other => panic!("{other:?} is no answer"),
        }
    }

    /// Asks until the primary has begun.
    async fn insist(&mut self, op: &Op) -> Outcome {
        for _ in 0..1000 {
            match self.ask(segment(), op.clone()).await.outcome {
                Outcome::Refused(refusal @ (Refusal::NotPrimary(_) | Refusal::Busy)) => {
                    if let Refusal::NotPrimary(Some(config)) = refusal {
                        self.epoch = self.epoch.max(config.epoch);
                    }
                    tokio::time::sleep(Duration::from_millis(10)).await;
                }
                outcome => return outcome,
            }
        }
        panic!("no primary")
    }
}

fn blocks(first: u32, count: u32, fill: u8) -> Blocks {
    let data = vec![fill; count as usize * 4096];
    let sums = (0..count).flat_map(|index| {
        let seed = sum_seed(segment(), BlockIndex(first + index));
        let mut hasher = crc32fast::Hasher::new_with_initial(seed);
        hasher.update(&data[..4096]);
        hasher.finalize().to_le_bytes()
    });
    Blocks { sums: Bytes::from_iter(sums), data: Bytes::from(data) }
}

fn write(first: u32, count: u32, fill: u8) -> Op {
    Op::Write(Change::Write { block: BlockIndex(first), blocks: blocks(first, count, fill) })
}

fn read(first: u32, count: u32) -> Op {
    Op::Read { block: BlockIndex(first), count }
}

fn scratch() -> tempfile::TempDir {
    // Beside what is built: the usual place for temporary files may be in memory, where O_DIRECT does not work.
    let target = Path::new(env!("CARGO_MANIFEST_DIR")).join("../target");
    tempfile::tempdir_in(target).unwrap()
}

#[tokio::test]
async fn a_replica_is_created_written_read_kept_over_a_restart_and_released() {
    let story = async {
        let dir = scratch();
        let mut authority = Authority::begin().await;
        let node = start(config(dir.path().join("device"), authority.address.clone()));
        let (first, to_node) = authority.registered().await;
        assert_eq!(first.devices[0].boot.0, 1);

        let too_large = first_configuration(1 << 20);
        to_node.try_send(&Message::FromAuthority(FromAuthority::Create { config: too_large })).unwrap();
        let ToAuthority::Created { result, .. } =
            authority.hears(|said| matches!(said, ToAuthority::Created { .. })).await
        else {
            panic!()
        };
        assert!(result.unwrap_err().contains("no space"));

        for _ in 0..2 {
            let create = FromAuthority::Create { config: first_configuration(512) };
            to_node.try_send(&Message::FromAuthority(create)).unwrap();
            let created = authority.hears(|said| matches!(said, ToAuthority::Created { .. })).await;
            assert!(matches!(created, ToAuthority::Created { result: Ok(()), .. }), "{created:?}");
        }

        let mut client = Client::connect(&first.address.primary).await;
        assert_eq!(client.insist(&write(3, 2, 0xAB)).await, Outcome::Written);
        assert_eq!(client.insist(&read(3, 2)).await, Outcome::Data(blocks(3, 2, 0xAB)));
        let nowhere = SegmentId { volume: VolumeId(9), index: 9 };
        let reply = client.ask(nowhere, read(0, 1)).await;
        assert_eq!(reply.outcome, Outcome::Refused(Refusal::Unknown));
        node.end().await.unwrap();

        let node = start(config(dir.path().join("device"), authority.address.clone()));
        let (second, to_node) = authority.registered().await;
        assert_eq!((second.devices[0].boot.0, second.devices[0].device), (2, first.devices[0].device));
        let held = authority.hears(|said| matches!(said, ToAuthority::Replicas { .. })).await;
        assert!(matches!(held, ToAuthority::Replicas { part, last: true } if part.len() == 1));
        let mut client = Client::connect(&second.address.primary).await;
        assert_eq!(client.insist(&read(3, 2)).await, Outcome::Data(blocks(3, 2, 0xAB)));
        let report = authority.hears(|said| matches!(said, ToAuthority::Report(report) if report.serving == 1)).await;
        assert!(matches!(report, ToAuthority::Report(report) if report.booked == 512 && report.replicas == 1));

        let release = FromAuthority::Release { segment: segment(), incarnation: Incarnation(1) };
        to_node.try_send(&Message::FromAuthority(release)).unwrap();
        authority.hears(|said| matches!(said, ToAuthority::Released { .. })).await;
        let reply = client.ask(segment(), read(3, 2)).await;
        assert_eq!(reply.outcome, Outcome::Refused(Refusal::Unknown));
        node.end().await.unwrap();
    };
    LocalSet::new().run_until(story).await;
}

#[tokio::test]
async fn garbage_on_either_port_closes_that_connection_and_nothing_else() {
    let story = async {
        let dir = scratch();
        let mut authority = Authority::begin().await;
        let node = start(config(dir.path().join("device"), authority.address.clone()));
        let (registration, _to_node) = authority.registered().await;
        for address in [&registration.address.primary, &registration.address.replication] {
            let mut stranger = TcpStream::connect(address).await.unwrap();
            stranger.write_all(b"GET / HTTP/1.1\r\n\r\n").await.unwrap();
            let mut rest = Vec::new();
            let closed = tokio::io::AsyncReadExt::read_to_end(&mut stranger, &mut rest);
            // Closed or reset, with or without a word of explanation.
            let _ = timeout(PATIENCE, closed).await.expect("the connection is closed");
        }
        let hello = Hello { cluster: CLUSTER, who: Who::Client { name: "lost".into() } };
        let refused = wire::dial(&registration.address.replication, &hello, PATIENCE).await;
        assert!(refused.is_err(), "clients belong on the primary network");
        let hello = Hello { cluster: ClusterId(0xBAD), who: Who::Client { name: "stranger".into() } };
        assert!(wire::dial(&registration.address.primary, &hello, PATIENCE).await.is_err());
        let mut client = Client::connect(&registration.address.primary).await;
        let reply = client.ask(segment(), Op::Locate { unreachable: false }).await;
        assert_eq!(reply.outcome, Outcome::Refused(Refusal::Unknown));
        node.end().await.unwrap();
    };
    LocalSet::new().run_until(story).await;
}

#[tokio::test]
async fn every_unfit_device_is_refused_untouched() {
    let story = async {
        let dir = scratch();
        let device = dir.path().join("device");
        let mut authority = Authority::begin().await;
        let base = config(device.clone(), authority.address.clone());

        let missing = start(Config { device_size: None, ..base.clone() }).refused().await;
        assert_eq!(missing.exit_code(), 3, "{missing}");
        let small = start(Config { device_size: Some(16 << 20), ..base.clone() }).refused().await;
        assert_eq!(small.exit_code(), 2, "{small}");
        assert!(!device.exists(), "nothing was made");

        let node = start(base.clone());
        authority.registered().await;
        let in_use = start(base.clone()).refused().await;
        assert!(in_use.to_string().contains("in use"), "{in_use}");
        let taken = TcpListener::bind("127.0.0.1:0").await.unwrap();
        let address = taken.local_addr().unwrap();
        let listen = start(Config { primary: address, ..base.clone() }).refused().await;
        assert!(listen.to_string().contains("cannot listen on primary_addr"), "{listen}");
        node.end().await.unwrap();

        let before = std::fs::read(&device).unwrap();
        let other = start(Config { id: NodeId(2), ..base.clone() }).refused().await;
        assert!(other.to_string().contains("belongs to node n1"), "{other}");
        let shards = start(Config { shards: Some(2), ..base.clone() }).refused().await;
        assert!(shards.to_string().contains("formatted with shards 1"), "{shards}");
        assert!(before == std::fs::read(&device).unwrap(), "something was written");

        let file = std::fs::OpenOptions::new().write(true).open(&device).unwrap();
        file.set_len(SIZE - (8 << 20)).unwrap();
        let shrunk = start(base.clone()).refused().await;
        assert!(shrunk.to_string().contains("shrunk"), "{shrunk}");
        file.set_len(SIZE).unwrap();
        let foreign = dir.path().join("foreign");
        std::fs::write(&foreign, vec![7; 192 << 20]).unwrap();
        let refused = start(Config { devices: vec![foreign], ..base.clone() }).refused().await;
        assert_eq!(refused.exit_code(), 4, "{refused}");
    };
    LocalSet::new().run_until(story).await;
}

/// I9: to open both would make an older copy of a device look as if it had lived on.
#[tokio::test]
async fn a_device_is_not_opened_beside_its_copy_nor_twice() {
    let story = async {
        let dir = scratch();
        let (device, copy, link) = (dir.path().join("device"), dir.path().join("copy"), dir.path().join("link"));
        let mut authority = Authority::begin().await;
        let base = config(device.clone(), authority.address.clone());
        let node = start(base.clone());
        authority.registered().await;
        node.end().await.unwrap();
        std::fs::copy(&device, &copy).unwrap();
        std::os::unix::fs::symlink(&device, &link).unwrap();
        let before = std::fs::read(&device).unwrap();
        for (other, why) in [(&copy, "one is a copy of the other"), (&link, "they are the same device")] {
            let error = start(Config { devices: vec![device.clone(), other.clone()], ..base.clone() }).refused().await;
            assert_eq!(error.exit_code(), 2, "{error}");
            assert!(error.to_string().contains(why), "{error}");
            assert!(before == std::fs::read(&device).unwrap(), "something was written");
            assert!(before == std::fs::read(other).unwrap(), "something was written to the other");
        }
    };
    LocalSet::new().run_until(story).await;
}

/// A node's two devices, known to its authority; the node has stopped.
async fn two_devices(authority: &mut Authority, dir: &Path) -> (Config, [DeviceId; 2]) {
    let base = config(dir.join("one"), authority.address.clone());
    let config = Config { devices: vec![dir.join("one"), dir.join("two")], ..base };
    let node = start(config.clone());
    let (registered, _) = authority.registered().await;
    node.end().await.unwrap();
    (config, [registered.devices[0].device, registered.devices[1].device])
}

fn is_without(registered: &Registration, there: DeviceId, why: &str) {
    let came: Vec<DeviceId> = registered.devices.iter().map(|opened| opened.device).collect();
    assert_eq!(came, [there]);
    assert!(registered.absent.iter().any(|absent| absent.contains(why)), "{:?}", registered.absent);
}

#[tokio::test]
async fn a_device_that_does_not_open_holds_up_neither_connections_nor_the_end() {
    let story = async {
        let dir = scratch();
        let mut authority = Authority::begin().await;
        let (config, [one, two]) = two_devices(&mut authority, dir.path()).await;
        let _stuck = Stuck::at(Step::Open, two);
        let node = start(config);
        let (registered, _) = authority.registered().await;
        is_without(&registered, one, "two: it was not open after");
        // They are dealt out in turns.
        for _ in 0..4 {
            let connecting = Client::connect(&registered.address.primary);
            timeout(Duration::from_secs(10), connecting).await.expect("a thread at work has it");
        }
        let asked = std::time::Instant::now();
        node.end().await.unwrap();
        assert!(asked.elapsed() < Duration::from_secs(10), "{:?}", asked.elapsed());
    };
    LocalSet::new().run_until(story).await;
}

#[tokio::test]
async fn a_device_that_cannot_be_taken_in_time_is_missing() {
    let story = async {
        let dir = scratch();
        let mut authority = Authority::begin().await;
        let (config, [one, two]) = two_devices(&mut authority, dir.path()).await;
        let _stuck = Stuck::at(Step::Take, two);
        let node = start(config);
        let (registered, _) = authority.registered().await;
        is_without(&registered, one, "two: it did not answer in");
        node.end().await.unwrap();
    };
    LocalSet::new().run_until(story).await;
}

#[tokio::test]
async fn a_node_ends_while_its_device_does_not_open() {
    let story = async {
        let dir = scratch();
        let device = dir.path().join("device");
        let mut authority = Authority::begin().await;
        let config = config(device.clone(), authority.address.clone());
        let node = start(config.clone());
        let (registered, _) = authority.registered().await;
        node.end().await.unwrap();
        let superblock = |path: &Path| {
            let mut block = vec![0; 4096];
            std::io::Read::read_exact(&mut std::fs::File::open(path).unwrap(), &mut block).unwrap();
            block
        };
        let before = superblock(&device);
        let _stuck = Stuck::at(Step::Open, registered.devices[0].device);
        let node = start(config);
        while superblock(&device) == before {
            tokio::time::sleep(Duration::from_millis(10)).await;
        }
        node.end().await.unwrap();
    };
    LocalSet::new().run_until(story).await;
}

/// I9: as long as the authority takes it for there, it would count what is on it.
#[tokio::test]
async fn a_node_registers_again_without_a_device_that_takes_no_distrust() {
    let story = async {
        let dir = scratch();
        let mut authority = Authority::begin().await;
        let (config, [one, two]) = two_devices(&mut authority, dir.path()).await;
        let _stuck = Stuck::at(Step::Note, two);
        let node = start(Config { zone: "doubted".into(), ..config });
        let (first, _) = authority.registered().await;
        assert_eq!(first.devices.len(), 2);
        let (again, _) = authority.registered().await;
        is_without(&again, one, "did not answer in");
        node.end().await.unwrap();
    };
    LocalSet::new().run_until(story).await;
}

#[tokio::test]
async fn a_node_the_authority_does_not_want_serves_nothing() {
    let story = async {
        let dir = scratch();
        let authority = Authority::begin().await;
        let mut unwanted = config(dir.path().join("device"), authority.address.clone());
        unwanted.zone = "refused".into();
        let error = start(unwanted).refused().await;
        assert_eq!(error.exit_code(), 5, "{error}");
        assert!(error.to_string().contains("not this one"), "{error}");
    };
    LocalSet::new().run_until(story).await;
}

#[tokio::test]
async fn a_device_of_another_cluster_is_refused_untouched() {
    let story = async {
        let dir = scratch();
        let device = dir.path().join("device");
        let mut authority = Authority::begin().await;
        let node = start(config(device.clone(), authority.address.clone()));
        authority.registered().await;
        node.end().await.unwrap();
        let before = std::fs::read(&device).unwrap();

        let listener = TcpListener::bind("127.0.0.1:0").await.unwrap();
        let address = listener.local_addr().unwrap().to_string();
        spawn_local(async move {
            let local = Local { cluster: ClusterId(0xC2), node: None, boot: BootId(9), shards: 0 };
            loop {
                let (stream, _) = listener.accept().await.unwrap();
                let _ = wire::accept(stream, &local).await;
            }
        });
        let refused = start(config(device.clone(), address)).refused().await;
        assert_eq!(refused.exit_code(), 5, "{refused}");
        assert!(before == std::fs::read(&device).unwrap(), "something was written");
    };
    LocalSet::new().run_until(story).await;
}
