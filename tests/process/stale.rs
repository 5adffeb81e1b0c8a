//! A primary that slept through its own replacement answers nothing old when it wakes (I2, I7).

use std::time::Duration;

use engine::authority::api::VolumeMap;
use engine::wire::{Hello, Inbound, Message, Who};
use engine_core::ids::{BlockIndex, RequestId, Session};
use engine_core::message::{Op, Outcome, Request};

use crate::support::alone;
use crate::support::cluster::{SMALL, TestCluster};

const BLOCK: usize = 4096;
const READS: u64 = 64;

/// The client that tries has a connection from before the pause and asks while the primary sleeps, so that its
/// requests are the first thing the primary finds.
#[test]
fn a_primary_paused_past_its_lease_answers_no_stale_read() {
    let _alone = alone();
    let cluster = TestCluster::start("stale", SMALL);
    cluster.create("v", "64M", &[]);
    let gateway = cluster.attach("v");
    let mut client = gateway.connect(Duration::from_secs(60));
    client.write(0, &[1; BLOCK]).expect("a write");
    let map = map_of(&cluster, "v");
    let runtime = tokio::runtime::Builder::new_current_thread().enable_all().build().expect("a runtime");
    let old = map.segments[0].primary;
    let mut link = runtime.block_on(connect(&map));
    cluster.pause(&old.to_string());
    runtime.block_on(ask(&mut link, &map));
    // Acknowledged, so by somebody else: the paused primary can't have had a part in it.
    client.write(0, &[2; BLOCK]).expect("a write under the next primary");
    cluster.resume(&old.to_string());
    let answers = runtime.block_on(answers(&mut link));
    assert!(!answers.is_empty(), "it answered nothing at all: this proves nothing");
    for answer in &answers {
        if let Outcome::Data(blocks) = answer {
            assert!(blocks.data.iter().all(|byte| *byte == 2), "a stale read: {:?}", &blocks.data[..8]);
        }
    }
    cluster.wait_healthy();
    assert_eq!(client.read(0, BLOCK).expect("a read"), [2; BLOCK]);
}

fn map_of(cluster: &TestCluster, volume: &str) -> VolumeMap {
    let description = cluster.description();
    let authority = description["authority"].as_str().expect("a URL").trim_end_matches('/');
    let mut answer = ureq::get(format!("{authority}/v1/volumes/{volume}/map")).call().expect("a map");
    answer.body_mut().read_json().expect("a map")
}

struct Asking {
    inbound: Inbound,
    outbox: engine::wire::Outbox,
}

async fn connect(map: &VolumeMap) -> Asking {
    let primary = map.segments[0].primary;
    let address = map.nodes.iter().find(|node| node.node == primary).expect("an address").primary.clone();
    let hello = Hello { cluster: map.cluster, who: Who::Client { name: "stale".into() } };
    let (_, link) = engine::wire::dial(&address, &hello, Duration::from_secs(5)).await.expect("a connection");
    let (inbound, outbox) = link.split();
    Asking { inbound, outbox }
}

async fn ask(link: &mut Asking, map: &VolumeMap) {
    for number in 1..=READS {
        let request = Request {
            segment: map.segments[0].segment,
            epoch: map.segments[0].epoch,
            generation: map.generation,
            session: Session(1 << 40),
            request: RequestId(number),
            op: Op::Read { block: BlockIndex(0), count: 1 },
        };
        link.outbox.try_send(&Message::Request(request)).expect("room");
    }
    // Until everything has left this process.
    while link.outbox.queued().0 > 0 {
        tokio::task::yield_now().await;
    }
}

/// Everything that is answered, until all is or the connection ends or nothing more comes.
async fn answers(link: &mut Asking) -> Vec<Outcome> {
    let mut answers = Vec::new();
    while answers.len() < usize::try_from(READS).expect("small") {
        match tokio::time::timeout(Duration::from_secs(5), link.inbound.next()).await {
            Ok(Ok(Message::Reply(reply))) => answers.push(reply.outcome),
            Ok(Ok(_)) => {}
            Ok(Err(_)) | Err(_) => break,
        }
    }
    answers
}
