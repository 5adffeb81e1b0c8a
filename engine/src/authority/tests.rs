//! The authority as a process sees it: a port, nodes that speak the wire, people that speak HTTP, a file of records.
#![allow(clippy::unwrap_used)]

use std::net::SocketAddr;
use std::path::{Path, PathBuf};
use std::time::Duration;

use engine_core::authority::policy::Policy;
use engine_core::authority::records::Value as RecordValue;
use engine_core::config::Config;
use engine_core::ids::{BootCount, BootId, ClusterId, DeviceId, Epoch, NodeId, Revision, Seq};
use engine_core::message::{
    Decision, DeviceOpened, FromAuthority, Lane, NodeAddress, Proposal, Registration, ReplicaReport, ToAuthority,
};
use engine_core::record::Standing;
use serde_json::{Value, json};
use tokio::io::{AsyncReadExt, AsyncWriteExt};
use tokio::net::TcpStream;
use tokio::sync::oneshot;
use tokio::task::JoinHandle;

use super::records::{Records, RedbRecords};
use super::{Options, ServeError, serve};
use crate::wire::{Hello, Inbound, Message, Network, Outbox, Who, WireError, dial};

const PATIENCE: Duration = Duration::from_secs(10);

/// An authority in this process.
struct Running {
    address: SocketAddr,
    cluster: ClusterId,
    stop: Option<oneshot::Sender<()>>,
    task: JoinHandle<Result<(), ServeError>>,
}

impl Running {
    async fn start(dir: &Path) -> Self {
        let options = Options {
            dir: dir.to_owned(),
            listen: "127.0.0.1:0".into(),
            grace: Duration::from_secs(5),
            policy: Policy::default(),
        };
        let (tell, told) = oneshot::channel();
        let (stop, stopped) = oneshot::channel::<()>();
        let task =
            tokio::spawn(serve(options, move |cluster, address| tell.send((cluster, address)).unwrap(), async move {
                drop(stopped.await);
            }));
        let (cluster, address) = told.await.unwrap();
        Self { address, cluster, stop: Some(stop), task }
    }

    async fn stop(mut self) {
        drop(self.stop.take());
        tokio::time::timeout(PATIENCE, self.task).await.unwrap().unwrap().unwrap();
    }

    /// What a power cut at this moment would leave: a copy of its files, taken while it runs.
    fn as_cut_off(dir: &Path, to: &Path) {
        std::fs::create_dir_all(to).unwrap();
        std::fs::copy(dir.join("authority.redb"), to.join("authority.redb")).unwrap();
    }

    async fn raw(&self, bytes: &[u8]) -> Vec<u8> {
        let mut stream = TcpStream::connect(self.address).await.unwrap();
        // It may be closed before everything is written; what it answered is what counts.
        let _ = stream.write_all(bytes).await;
        let mut answer = Vec::new();
        let _ = tokio::time::timeout(PATIENCE, stream.read_to_end(&mut answer)).await.expect("the connection ends");
        answer
    }

    async fn http(&self, method: &str, path: &str, body: &str) -> (u16, Value) {
        let len = body.len();
        let request = format!(
            "{method} {path} HTTP/1.1\r\nhost: authority\r\nconnection: close\r\n\
             content-type: application/json\r\ncontent-length: {len}\r\n\r\n{body}"
        );
        let answer = self.raw(request.as_bytes()).await;
        let text = String::from_utf8(answer).unwrap();
        let (head, body) = text.split_once("\r\n\r\n").unwrap_or_else(|| panic!("no HTTP answer: {text:?}"));
        let status = head.split(' ').nth(1).unwrap().parse().unwrap();
        (status, serde_json::from_str(body).unwrap_or(Value::Null))
    }

    async fn get(&self, path: &str) -> Value {
        let (status, body) = self.http("GET", path, "").await;
        assert_eq!(status, 200, "{body}");
        body
    }

    async fn post(&self, path: &str, body: Value) -> (u16, Value) {
        self.http("POST", path, &body.to_string()).await
    }
}

fn registration(id: u16) -> Registration {
    Registration {
        address: NodeAddress {
            node: NodeId(id),
            primary: format!("127.0.0.1:{}", 20000 + id),
            replication: format!("127.0.0.1:{}", 30000 + id),
            shards: 1,
        },
        zone: ["a", "b", "c"][usize::from(id) % 3].into(),
        devices: vec![DeviceOpened {
            device: DeviceId(u128::from(id)),
            boot: BootCount(1),
            openings: Box::default(),
            capacity: 80_000,
        }],
        absent: Vec::new(),
        revision: Revision(0),
    }
}

/// A node that says what it is told to, and confirms what every node would.
struct FakeNode {
    id: NodeId,
    inbound: Inbound,
    outbox: Outbox,
}

impl FakeNode {
    async fn connect(authority: &Running, id: u16) -> Self {
        Self::connect_as(authority, registration(id)).await
    }

    async fn connect_as(authority: &Running, registration: Registration) -> Self {
        let id = registration.address.node;
        let who = Who::Node { id, boot: BootId(7), shards: 1, lane: Lane::Live, network: Network::Primary };
        let hello = Hello { cluster: ClusterId(0), who };
        let (welcome, link) = dial(&authority.address.to_string(), &hello, PATIENCE).await.unwrap();
        assert_eq!(welcome.cluster, authority.cluster);
        let (inbound, outbox) = link.split();
        let node = Self { id, inbound, outbox };
        node.say(ToAuthority::Register(registration));
        node
    }

    async fn welcomed(mut self) -> Self {
        assert!(matches!(self.hear().await, FromAuthority::Registered { .. }));
        assert!(matches!(self.hear().await, FromAuthority::Nodes(_)));
        self
    }

    fn say(&self, message: ToAuthority) {
        self.outbox.try_send(&Message::ToAuthority(message)).unwrap();
    }

    async fn try_hear(&mut self) -> Result<FromAuthority, WireError> {
        match tokio::time::timeout(PATIENCE, self.inbound.next()).await.expect("a message in time")? {
            Message::FromAuthority(message) => Ok(message),
            other => panic!("{other:?}"),
        }
    }

    async fn hear(&mut self) -> FromAuthority {
        self.try_hear().await.unwrap()
    }

    /// The next message that is none of the confirmations every node gives; these are given.
    async fn next(&mut self) -> FromAuthority {
        loop {
            match self.hear().await {
                FromAuthority::Nodes(_) => {}
                FromAuthority::Create { config } => self.say(ToAuthority::Created {
                    segment: config.segment,
                    incarnation: config.incarnation,
                    result: Ok(()),
                }),
                FromAuthority::Release { segment, incarnation } => {
                    self.say(ToAuthority::Released { segment, incarnation });
                }
                FromAuthority::ShowConfigs => self.say(ToAuthority::Configs { part: Vec::new(), last: true }),
                FromAuthority::Fence { segment, generation } => {
                    self.say(ToAuthority::FenceDone { segment, generation });
                }
                message => return message,
            }
        }
    }

    /// Runs in the background as a well-behaved node.
    fn behave(mut self) -> JoinHandle<()> {
        tokio::spawn(async move {
            loop {
                let _ = self.next().await;
            }
        })
    }

    async fn propose(&mut self, config: &Config, promised: bool) -> Decision {
        let expected = Epoch(config.epoch.0 - 1);
        self.say(ToAuthority::Proposals(vec![Proposal { expected, config: config.clone(), promised }]));
        match self.next().await {
            FromAuthority::Decisions(mut decisions) => decisions.remove(0),
            other => panic!("{other:?}"),
        }
    }
}

async fn three_nodes(authority: &Running) -> Vec<FakeNode> {
    let mut nodes = Vec::new();
    for id in 1..=3 {
        nodes.push(FakeNode::connect(authority, id).await.welcomed().await);
    }
    nodes
}

/// Makes volume `name` with nodes that behave while it is made.
async fn create(authority: &Running, nodes: &mut [FakeNode], name: &str) -> Config {
    let request = json!({"name": name, "size": 64 << 20, "segment_size": 64 << 20});
    let (status, body) = {
        let call = authority.post("/v1/volumes", request);
        let [first, second, third] = nodes else { panic!("three nodes") };
        tokio::select! {
            answer = call => answer,
            message = first.next() => panic!("{message:?}"),
            message = second.next() => panic!("{message:?}"),
            message = third.next() => panic!("{message:?}"),
        }
    };
    assert_eq!(status, 200, "{body}");
    assert_eq!(body["state"], "ready");
    let map = authority.get(&format!("/v1/volumes/{name}/map")).await;
    serde_json::from_value(map["segments"][0].clone()).unwrap()
}

fn by_id(nodes: &mut [FakeNode], id: NodeId) -> &mut FakeNode {
    nodes.iter_mut().find(|node| node.id == id).unwrap()
}

fn dirs() -> (tempfile::TempDir, PathBuf, PathBuf) {
    let dir = tempfile::tempdir().unwrap();
    let (first, second) = (dir.path().join("first"), dir.path().join("second"));
    (dir, first, second)
}

#[tokio::test]
async fn a_configuration_is_installed_once_and_survives_a_power_cut() {
    let (_dir, first, second) = dirs();
    let authority = Running::start(&first).await;
    let mut nodes = three_nodes(&authority).await;
    let config = create(&authority, &mut nodes, "v").await;
    assert_eq!((config.epoch, config.members.len()), (Epoch(1), 3));

    let next = Config { epoch: Epoch(2), ..config.clone() };
    let primary = by_id(&mut nodes, config.primary);
    assert_eq!(primary.propose(&next, true).await, Decision::Installed(next.clone()));
    // Decided for good: not a second time, not by anybody else.
    assert_eq!(primary.propose(&next, true).await, Decision::Conflict(next.clone()));
    let backup = config.members[1];
    let usurper = Config { primary: backup, ..next.clone() };
    assert_eq!(by_id(&mut nodes, backup).propose(&usurper, true).await, Decision::Conflict(next.clone()));

    Running::as_cut_off(&first, &second);
    let again = Running::start(&second).await;
    assert_eq!(again.cluster, authority.cluster);
    let map = again.get("/v1/volumes/v/map").await;
    assert_eq!(serde_json::from_value::<Config>(map["segments"][0].clone()).unwrap(), next);
    let (before, after) = (authority.get("/v1/cluster").await, again.get("/v1/cluster").await);
    assert_eq!(before["revision"], after["revision"]);
    assert_eq!(again.get("/v1/nodes").await.as_array().unwrap().len(), 3);
    again.stop().await;
    authority.stop().await;
}

#[tokio::test]
async fn an_attach_waits_for_every_primary_and_takes_over_from_an_older_one() {
    let (_dir, first, _) = dirs();
    let authority = Running::start(&first).await;
    let mut nodes = three_nodes(&authority).await;
    let config = create(&authority, &mut nodes, "v").await;

    let older = authority.post("/v1/volumes/v/attach", json!({"client": "older"}));
    let newer = async {
        // The older attach has begun when its fence is heard.
        let fence = loop {
            match by_id(&mut nodes, config.primary).hear().await {
                FromAuthority::Nodes(_) => {}
                message => break message,
            }
        };
        assert!(matches!(fence, FromAuthority::Fence { generation, .. } if generation.0 == 1), "{fence:?}");
        let call = authority.post("/v1/volumes/v/attach", json!({"client": "newer"}));
        let confirm = async {
            loop {
                if let FromAuthority::Fence { segment, generation } = by_id(&mut nodes, config.primary).hear().await
                    && generation.0 == 2
                {
                    by_id(&mut nodes, config.primary).say(ToAuthority::FenceDone { segment, generation });
                    break;
                }
            }
        };
        tokio::join!(call, confirm).0
    };
    let (older, newer) = tokio::join!(older, newer);
    assert_eq!((older.0, &older.1["code"]), (409, &json!("illegal_state")), "{}", older.1);
    assert_eq!((newer.0, &newer.1["generation"]), (200, &json!(2)), "{}", newer.1);
    assert_eq!(newer.1["nodes"].as_array().unwrap().len(), 3);

    let (status, refused) = authority.http("DELETE", "/v1/volumes/v", "").await;
    assert_eq!((status, &refused["next"]), (409, &json!("nodectl volume detach v")));
    let (status, stale) = authority.post("/v1/volumes/v/detach", json!({"generation": 1})).await;
    assert_eq!((status, &stale["code"]), (409, &json!("illegal_state")));
    let (status, info) = authority.post("/v1/volumes/v/detach", json!({"generation": 2})).await;
    assert_eq!((status, &info["attached"]), (200, &Value::Null));

    // Deleted: the name is free at once, the volume is forgotten when its holders have confirmed.
    let behaving: Vec<_> = nodes.into_iter().map(FakeNode::behave).collect();
    let (status, info) = authority.http("DELETE", "/v1/volumes/v", "").await;
    assert_eq!((status, &info["state"]), (200, &json!("deleting")));
    while authority.http("GET", "/v1/volumes/v", "").await.0 != 404 {
        tokio::task::yield_now().await;
    }
    behaving.iter().for_each(JoinHandle::abort);
    authority.stop().await;
}

#[tokio::test]
async fn a_newer_session_of_a_node_takes_over_and_another_device_is_refused() {
    let (_dir, first, _) = dirs();
    let authority = Running::start(&first).await;
    let mut old = FakeNode::connect(&authority, 1).await.welcomed().await;
    let _new = FakeNode::connect(&authority, 1).await.welcomed().await;
    assert!(old.try_hear().await.is_err(), "the older session is closed");

    let mut stranger = registration(1);
    stranger.devices[0].device = DeviceId(99);
    let mut stranger = FakeNode::connect_as(&authority, stranger).await;
    let refused = stranger.hear().await;
    assert!(matches!(&refused, FromAuthority::RegisterRefused(why) if why.contains("device")), "{refused:?}");
    assert!(stranger.try_hear().await.is_err(), "and the connection ends");
    authority.stop().await;
}

#[tokio::test]
async fn a_replica_nobody_knows_is_kept_and_an_older_authority_freezes() {
    let (_dir, first, second) = dirs();
    let authority = Running::start(&first).await;
    authority.get("/v1/cluster").await;
    Running::as_cut_off(&first, &second);
    let mut nodes = three_nodes(&authority).await;
    let config = create(&authority, &mut nodes, "v").await;
    let revision = authority.get("/v1/cluster").await["revision"].as_u64().unwrap();
    authority.stop().await;

    // The backup knows neither the volume nor the nodes.
    let older = Running::start(&second).await;
    let node = Registration { revision: Revision(revision), ..registration(1) };
    let mut node = FakeNode::connect_as(&older, node).await.welcomed().await;
    let held = ReplicaReport {
        segment: config.segment,
        incarnation: config.incarnation,
        epoch: Epoch(1),
        log_epoch: Epoch(1),
        standing: Standing::Member,
        commit: Seq(0),
        last: Seq(0),
    };
    node.say(ToAuthority::Replicas { part: vec![held], last: true });
    // An answer to a later message proves that nothing was said about the replica.
    assert_eq!(
        node.propose(&Config { epoch: Epoch(2), ..config.clone() }, true).await,
        Decision::Unknown(config.segment)
    );
    let status = older.get("/v1/status").await;
    assert!(status["frozen"].as_str().unwrap().contains("n1"), "{status}");
    assert_eq!(status["health"], "impaired");
    let (code, error) = older.post("/v1/volumes", json!({"name": "w", "size": 1})).await;
    assert_eq!((code, &error["code"]), (503, &json!("unavailable")), "{error}");

    // A person may say that there is no newer record; first it is said what is forgotten.
    let (code, error) = older.post("/v1/authority/accept-older", json!({})).await;
    assert_eq!((code, &error["code"]), (409, &json!("refused")), "{error}");
    assert!(error["message"].as_str().unwrap().contains("which the record does not know"), "{error}");
    let (code, done) = older.post("/v1/authority/accept-older", json!({"revision": revision})).await;
    assert_eq!((code, &done["done"]), (200, &json!(true)), "{done}");
    assert!(older.get("/v1/cluster").await["revision"].as_u64().unwrap() > revision);
    assert_eq!(older.get("/v1/status").await["frozen"], Value::Null);
    older.stop().await;
}

#[tokio::test]
async fn garbage_harms_nobody() {
    let (_dir, first, _) = dirs();
    let authority = Running::start(&first).await;
    let mut nodes = three_nodes(&authority).await;
    let magic = crate::wire::MAGIC;
    let oversized = [&magic[..], &[0xFF; 60]].concat();
    for garbage in [&[0_u8; 64][..], &[0xB7; 64], &oversized, b"GET", b"GET / HTTP/9.9\r\n\r\n", &[b'A'; 70_000]] {
        let mut stream = TcpStream::connect(authority.address).await.unwrap();
        let _ = stream.write_all(garbage).await;
        let _ = stream.shutdown().await;
        let mut answer = Vec::new();
        let ended = tokio::time::timeout(PATIENCE, stream.read_to_end(&mut answer)).await;
        assert!(ended.is_ok(), "closed: {garbage:?}");
    }
    let _silent = TcpStream::connect(authority.address).await.unwrap();
    create(&authority, &mut nodes, "v").await;
    authority.stop().await;
}

#[tokio::test]
async fn http_errors_say_what_was_wrong() {
    let (_dir, first, _) = dirs();
    let authority = Running::start(&first).await;
    let long = format!("{{\"name\": \"{}\"}}", "x".repeat(70_000));
    let cases = [
        ("GET", "/v1/nothing", "", 404, "not_found", "no such path"),
        ("PUT", "/v1/status", "", 405, "invalid", "no such method"),
        ("GET", "/v1/volumes/none", "", 404, "not_found", "no volume `none`"),
        ("GET", "/v1/volumes/a%20b", "", 400, "invalid", "not a volume name"),
        ("GET", "/v1/volumes/%FF", "", 400, "invalid", ""),
        ("GET", "/v1/nodes/x1", "", 400, "invalid", "not a node id"),
        ("GET", "/v1/nodes/n9", "", 404, "not_found", "no node n9"),
        ("POST", "/v1/volumes", "", 400, "invalid", "missing field"),
        ("POST", "/v1/volumes", "{", 400, "invalid", "not the JSON expected"),
        ("POST", "/v1/volumes", r#"{"name":"v","size":1,"color":1}"#, 400, "invalid", "unknown field `color`"),
        ("POST", "/v1/volumes", r#"{"name":"-v","size":1}"#, 400, "invalid", "not a volume name"),
        ("POST", "/v1/volumes", r#"{"name":"v","size":0}"#, 400, "invalid", "1 byte to 64 TiB"),
        ("POST", "/v1/volumes", r#"{"name":"v","size":1,"segment_size":3000000000}"#, 400, "invalid", "power of two"),
        ("POST", "/v1/volumes", r#"{"name":"v","size":1,"copies":9}"#, 400, "invalid", "1 to 5 copies"),
        ("POST", "/v1/volumes", r#"{"name":"v","size":1,"copies":2,"min_copies":3}"#, 400, "invalid", "min_copies"),
        ("POST", "/v1/volumes", r#"{"name":"v","size":1,"zone":"a"}"#, 400, "invalid", "no node of zone a"),
        ("POST", "/v1/volumes", r#"{"name":"v","size":1}"#, 507, "no_space", "nothing was made"),
        ("POST", "/v1/volumes/none/attach", r#"{"client":"x"}"#, 404, "not_found", "no volume"),
        ("POST", "/v1/volumes/none/attach", r#"{"client":""}"#, 400, "invalid", "who attaches"),
        ("POST", "/v1/volumes", &long, 413, "invalid", "65536"),
    ];
    for (method, path, body, status, code, message) in cases {
        let (got, error) = authority.http(method, path, body).await;
        assert_eq!((got, &error["code"]), (status, &json!(code)), "{method} {path} {error}");
        assert!(error["message"].as_str().unwrap().contains(message), "{method} {path} {error}");
    }
    authority.stop().await;
}

#[tokio::test]
async fn the_openapi_document_lists_every_path() {
    let (_dir, first, _) = dirs();
    let authority = Running::start(&first).await;
    let document = authority.get("/v1/openapi.json").await;
    let paths = document["paths"].as_object().unwrap();
    for (path, methods) in [
        ("/v1/status", "get"),
        ("/v1/cluster", "get"),
        ("/v1/nodes", "get"),
        ("/v1/nodes/{id}", "get"),
        ("/v1/volumes", "get post"),
        ("/v1/volumes/{name}", "get delete"),
        ("/v1/volumes/{name}/resize", "post"),
        ("/v1/volumes/{name}/set", "post"),
        ("/v1/volumes/{name}/attach", "post"),
        ("/v1/volumes/{name}/detach", "post"),
        ("/v1/volumes/{name}/map", "get"),
        ("/v1/volumes/{name}/explain", "get"),
        ("/v1/volumes/{name}/recover", "post"),
        ("/v1/nodes/{id}/replace-device", "post"),
        ("/v1/nodes/{id}/release", "post"),
        ("/v1/remirror/breaker", "get post"),
        ("/v1/authority/accept-older", "post"),
        ("/v1/nodes/{id}/scrub", "post"),
        ("/v1/openapi.json", "get"),
    ] {
        for method in methods.split(' ') {
            assert!(paths[path].get(method).is_some(), "{method} {path}");
        }
    }
    assert_eq!(paths.len(), 19);
    let schemas = document["components"]["schemas"].as_object().unwrap();
    for name in ["Status", "VolumeInfo", "VolumeMap", "Config", "Layout", "Explain", "ErrorBody", "CreateVolume"] {
        assert!(schemas.contains_key(name), "{name}");
    }
    assert_eq!(schemas["NodeId"]["type"], "string");
    authority.stop().await;
}

#[tokio::test]
async fn two_authorities_on_one_directory_and_a_taken_port_are_clear_errors() {
    let (_dir, first, second) = dirs();
    let authority = Running::start(&first).await;
    let options = |dir: &Path, listen: String| Options {
        dir: dir.to_owned(),
        listen,
        grace: Duration::from_secs(5),
        policy: Policy::default(),
    };
    let same = serve(options(&first, "127.0.0.1:0".into()), |_, _| {}, std::future::pending()).await.unwrap_err();
    assert!(same.to_string().contains("in use by another authorityd"), "{same}");
    let taken = options(&second, authority.address.to_string());
    let taken = serve(taken, |_, _| {}, std::future::pending()).await.unwrap_err();
    assert!(taken.to_string().contains("can't listen on"), "{taken}");
    authority.stop().await;
}

#[tokio::test]
async fn limits_are_set_over_http_and_a_record_without_them_has_none() {
    let (_dir, first, _) = dirs();
    let authority = Running::start(&first).await;
    let mut nodes = three_nodes(&authority).await;
    create(&authority, &mut nodes, "v").await;
    let behaving: Vec<_> = nodes.into_iter().map(FakeNode::behave).collect();
    let (status, body) = authority.post("/v1/volumes/v/set", json!({"iops": 200})).await;
    assert_eq!((status, &body["limits"]), (200, &json!({"iops": 200, "mibps": 0})), "{body}");
    let (status, body) = authority.post("/v1/volumes/v/set", json!({"mibps": 1_000_001})).await;
    assert_eq!((status, &body["code"]), (400, &json!("invalid")), "{body}");
    let (status, body) = authority.post("/v1/volumes/v/set", json!({"bandwidth": 1})).await;
    assert_eq!((status, &body["code"]), (400, &json!("invalid")), "{body}");
    let map = authority.get("/v1/volumes/v/map").await;
    assert_eq!(map["limits"], json!({"iops": 200, "mibps": 0}));
    for node in behaving {
        node.abort();
    }
    authority.stop().await;

    let records = RedbRecords::open(&first).unwrap().load().unwrap();
    let volume = records.iter().find(|record| matches!(record.value, RecordValue::Volume(_))).unwrap();
    let mut written = serde_json::to_value(&volume.value).unwrap();
    let fields = written["volume"].as_object_mut().unwrap();
    assert_eq!(fields.remove("limits"), Some(json!({"iops": 200, "mibps": 0})));
    let RecordValue::Volume(read) = serde_json::from_value(written).unwrap() else { panic!("a volume") };
    assert!(read.limits.is_none());
}
