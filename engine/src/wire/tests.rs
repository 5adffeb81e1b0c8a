//! Round trips, golden frames, garbage, and links that misbehave.
#![allow(clippy::unwrap_used, clippy::cast_possible_truncation)]

mod fuzz;

use std::path::PathBuf;
use std::time::Duration;

use bytes::Bytes;
use engine_core::ids::{
    BlockIndex, BootId, ClusterId, Epoch, Generation, NodeId, RequestId, SegmentId, Session, VolumeId,
};
use engine_core::limits::{FRAME_BODY_MAX, FRAME_PAYLOAD_MAX, OUTBOX_MAX};
use engine_core::message::{FromAuthority, Lane, Op, Outcome, Peer, PeerMessage, Refusal, Reply, Request, ToAuthority};
use engine_core::random::Random;
use engine_core::record::{Blocks, Change};
use proptest::prelude::*;
use tokio::io::{AsyncReadExt, AsyncWriteExt, DuplexStream};

use super::codec::frame::{Header, Kind};
use super::codec::sample::Sample;
use super::codec::{Frame, Wire, decode, encode};
use super::hello::Reject;
use super::*;

fn bytes_of(frame: &Frame) -> Vec<u8> {
    let mut bytes = frame.head.to_vec();
    frame.payload.iter().for_each(|piece| bytes.extend_from_slice(piece));
    bytes
}

/// Decodes one frame from contiguous bytes, the way a link does.
fn parse<T: Wire>(bytes: &[u8]) -> Result<T, WireError> {
    let head = bytes.first_chunk().ok_or(Malformed("short"))?;
    let header = Header::from_bytes(head)?;
    let body = bytes.get(HEADER_LEN..HEADER_LEN + header.body_len).ok_or(Malformed("short"))?;
    if crc32fast::hash(body) != header.body_crc {
        return Err(Malformed("crc").into());
    }
    let payload = &bytes[HEADER_LEN + header.body_len..];
    if payload.len() != header.payload_len {
        return Err(Malformed("short").into());
    }
    Ok(decode(body, Bytes::copy_from_slice(payload))?)
}

fn round_trip<T: Wire + PartialEq + std::fmt::Debug>(kind: Kind, value: &T) {
    let bytes = bytes_of(&encode(kind, value).unwrap());
    assert_eq!(&parse::<T>(&bytes).unwrap(), value);
}

proptest! {
    #[test]
    fn every_message_survives_a_round_trip(seed: u64) {
        let random = &mut Random::new(seed);
        round_trip(Kind::Hello, &Hello::sample(random));
        round_trip(Kind::Welcome, &Welcome::sample(random));
        round_trip(Kind::Reject, &Reject::sample(random));
        for name in Peer::VARIANTS {
            round_trip(Kind::Peer, &PeerMessage { body: Peer::sample_variant(name, random), ..PeerMessage::sample(random) });
        }
        for name in Op::VARIANTS {
            round_trip(Kind::Request, &Request { op: Op::sample_variant(name, random), ..Request::sample(random) });
        }
        for name in Outcome::VARIANTS {
            round_trip(Kind::Reply, &Reply { outcome: Outcome::sample_variant(name, random), ..Reply::sample(random) });
        }
        for name in ToAuthority::VARIANTS {
            round_trip(Kind::ToAuthority, &ToAuthority::sample_variant(name, random));
        }
        for name in FromAuthority::VARIANTS {
            round_trip(Kind::FromAuthority, &FromAuthority::sample_variant(name, random));
        }
    }

    #[test]
    fn garbage_bodies_never_panic(body in proptest::collection::vec(any::<u8>(), 0..300), blocks in 0usize..3) {
        let payload = Bytes::from(vec![7; blocks * 4096]);
        let _ = decode::<PeerMessage>(&body, payload.clone());
        let _ = decode::<Request>(&body, payload.clone());
        let _ = decode::<Reply>(&body, payload.clone());
        let _ = decode::<ToAuthority>(&body, payload.clone());
        let _ = decode::<FromAuthority>(&body, payload.clone());
        let _ = decode::<Hello>(&body, payload);
    }

    #[test]
    fn damaged_frames_are_noticed_or_harmless(seed: u64, at in any::<prop::sample::Index>(), bit in 0u8..8) {
        let random = &mut Random::new(seed);
        let message = PeerMessage::sample(random);
        let frame = encode(Kind::Peer, &message).unwrap();
        let mut bytes = bytes_of(&frame);
        // The payload is protected by its blocks' checksums, not by the frame.
        let at = at.index(frame.head.len());
        bytes[at] ^= 1 << bit;
        prop_assert!(parse::<PeerMessage>(&bytes).is_err());
    }

    #[test]
    fn random_headers_never_pass(bytes: [u8; HEADER_LEN]) {
        prop_assert!(Header::from_bytes(&bytes).is_err());
    }
}

/// One frame of every message, by name. Each name is its own seed, so that a new message changes no other's file.
fn golden_frames() -> Vec<(String, Frame)> {
    let mut frames = Vec::new();
    let mut add = |name: String, make: &dyn Fn(&mut Random) -> Frame| {
        let seed = u64::from(crc32fast::hash(name.to_lowercase().as_bytes()));
        let frame = make(&mut Random::new(seed));
        frames.push((name, frame));
    };
    for name in Who::VARIANTS {
        add(format!("hello-{name}"), &|random| {
            let hello = Hello { cluster: ClusterId(0xB7), who: Who::sample_variant(name, random) };
            encode(Kind::Hello, &hello).unwrap()
        });
    }
    add("welcome".into(), &|random| encode(Kind::Welcome, &Welcome::sample(random)).unwrap());
    add("reject".into(), &|random| encode(Kind::Reject, &Reject::sample(random)).unwrap());
    for name in Peer::VARIANTS {
        add(format!("peer-{name}"), &|random| {
            let message = PeerMessage { body: Peer::sample_variant(name, random), ..PeerMessage::sample(random) };
            encode(Kind::Peer, &message).unwrap()
        });
    }
    for name in Op::VARIANTS {
        add(format!("request-{name}"), &|random| {
            let message = Request { op: Op::sample_variant(name, random), ..Request::sample(random) };
            encode(Kind::Request, &message).unwrap()
        });
    }
    for name in Outcome::VARIANTS {
        add(format!("reply-{name}"), &|random| {
            let message = Reply { outcome: Outcome::sample_variant(name, random), ..Reply::sample(random) };
            encode(Kind::Reply, &message).unwrap()
        });
    }
    for name in Refusal::VARIANTS {
        add(format!("reply-refused-{name}"), &|random| {
            let outcome = Outcome::Refused(Refusal::sample_variant(name, random));
            let message = Reply { outcome, ..Reply::sample(random) };
            encode(Kind::Reply, &message).unwrap()
        });
    }
    for name in ToAuthority::VARIANTS {
        add(format!("to-authority-{name}"), &|random| {
            encode(Kind::ToAuthority, &ToAuthority::sample_variant(name, random)).unwrap()
        });
    }
    for name in FromAuthority::VARIANTS {
        add(format!("from-authority-{name}"), &|random| {
            encode(Kind::FromAuthority, &FromAuthority::sample_variant(name, random)).unwrap()
        });
    }
    let beat = |random: &mut Random| PeerMessage {
        body: Peer::sample_variant("BeatAck", random),
        ..PeerMessage::sample(random)
    };
    add("peers".into(), &|random| encode(Kind::Peers, &vec![beat(random), beat(random)]).unwrap());
    frames
}

/// Golden files hold hexadecimal lines of header, body and payload; a payload of equal bytes per block is shortened
/// to `count x byte` lines, so that a person can read a difference.
fn golden_text(frame: &Frame) -> String {
    let mut text = String::new();
    let (header, body) = frame.head.split_at(HEADER_LEN);
    for (name, part) in [("header", header), ("body", body)] {
        text.push_str(name);
        for line in part.chunks(32) {
            text.push_str("\n ");
            line.iter().for_each(|byte| text.push_str(&format!(" {byte:02x}")));
        }
        text.push('\n');
    }
    for block in frame.payload.iter().flat_map(|piece| piece.chunks(4096)) {
        assert!(block.iter().all(|byte| *byte == block[0]));
        text.push_str(&format!("block {} x {:02x}\n", block.len(), block[0]));
    }
    text
}

#[test]
fn golden_frames_have_not_changed() {
    let folder = PathBuf::from(concat!(env!("CARGO_MANIFEST_DIR"), "/../fixtures/wire/v1"));
    let bless = std::env::var_os("BREAKWATER_BLESS").is_some();
    if bless {
        std::fs::create_dir_all(&folder).unwrap();
    }
    for (name, frame) in golden_frames() {
        let path = folder.join(format!("{}.txt", name.to_lowercase()));
        if bless {
            std::fs::write(&path, golden_text(&frame)).unwrap();
        }
        let golden = std::fs::read_to_string(&path).unwrap_or_default();
        assert_eq!(golden, golden_text(&frame), "{name}: the protocol changed (BREAKWATER_BLESS=1 rewrites {path:?})");
    }
}

#[test]
fn every_truncation_of_a_golden_frame_is_refused() {
    for (name, frame) in golden_frames() {
        let bytes = bytes_of(&frame);
        let head = frame.head.len();
        for len in (0..head).chain((head..bytes.len()).step_by(1021)) {
            assert!(parse::<PeerMessage>(&bytes[..len]).is_err(), "{name} cut at {len}");
        }
        // The same with lengths and checksum that fit: the decoder itself has to notice.
        let body = &frame.head[HEADER_LEN..];
        let payload = Bytes::from(bytes[head..].to_vec());
        for len in 0..body.len() {
            let _ = decode::<PeerMessage>(&body[..len], payload.clone());
            let _ = decode::<Request>(&body[..len], payload.clone());
            let _ = decode::<Reply>(&body[..len], payload.clone());
            let _ = decode::<ToAuthority>(&body[..len], payload.clone());
            let _ = decode::<FromAuthority>(&body[..len], payload.clone());
        }
    }
}

#[test]
fn announced_lengths_are_checked_first() {
    let mut header = Header { kind: Kind::Peer, body_len: 0, payload_len: 0, body_crc: 0 }.to_bytes();
    let patch = |at: usize, value: u32| {
        let mut bytes = header;
        bytes[at..at + 4].copy_from_slice(&value.to_le_bytes());
        let crc = crc32fast::hash(&bytes[..20]);
        bytes[20..24].copy_from_slice(&crc.to_le_bytes());
        Header::from_bytes(&bytes).map(|_| ())
    };
    assert!(patch(8, FRAME_BODY_MAX as u32).is_ok());
    assert!(patch(8, FRAME_BODY_MAX as u32 + 1).is_err());
    assert!(patch(12, FRAME_PAYLOAD_MAX as u32).is_ok());
    assert!(patch(12, FRAME_PAYLOAD_MAX as u32 + 4096).is_err());
    assert!(patch(12, 100).is_err());
    header[4] = 9;
    assert!(matches!(Header::from_bytes(&header), Err(WireError::Version(9))));
    assert!(looks_like_wire(&MAGIC) && !looks_like_wire(b"GET "));
}

#[test]
fn blocks_without_checksums_are_not_sent() {
    let blocks = Blocks { data: Bytes::from(vec![0; 4096]), sums: Bytes::new() };
    let change = Change::Write { block: BlockIndex(0), blocks };
    assert!(encode(Kind::Request, &Request { op: Op::Write(change), ..Request::sample(&mut Random::new(1)) }).is_err());
}

// Links.

const CLUSTER: ClusterId = ClusterId(77);

fn node() -> Local {
    Welcome { cluster: CLUSTER, node: Some(NodeId(3)), boot: BootId(1), shards: 2 }
}

fn authority() -> Local {
    Welcome { cluster: CLUSTER, node: None, boot: BootId(1), shards: 0 }
}

fn hello(cluster: ClusterId) -> Hello {
    let who = Who::Node { id: NodeId(1), boot: BootId(9), shards: 2, lane: Lane::Live, network: Network::Primary };
    Hello { cluster, who }
}

fn request(number: u64, data: usize) -> Message {
    let blocks = Blocks { data: Bytes::from(vec![number as u8; data]), sums: Bytes::from(vec![1; data / 1024]) };
    Message::Request(Request {
        segment: SegmentId { volume: VolumeId(1), index: 0 },
        epoch: Epoch(1),
        generation: Generation(1),
        session: Session(1),
        request: RequestId(number),
        op: if data == 0 {
            Op::Locate { unreachable: false }
        } else {
            Op::Write(Change::Write { block: BlockIndex(5), blocks })
        },
    })
}

async fn pair(buffer: usize) -> (Link, Link) {
    let (ours, theirs) = tokio::io::duplex(buffer);
    let local = node();
    let hello = hello(CLUSTER);
    let (accepted, greeted) = tokio::join!(accept(theirs, &local), greet(ours, &hello));
    let (heard, link) = accepted.unwrap();
    assert_eq!(heard, hello);
    let (welcome, own) = greeted.unwrap();
    assert_eq!(welcome, local);
    (own, link)
}

#[tokio::test(flavor = "current_thread")]
async fn messages_arrive_in_order_whatever_the_sizes() {
    for buffer in [64, 5000, 1 << 20] {
        let (own, theirs) = pair(buffer).await;
        let (_keep, outbox) = own.split();
        let (mut inbound, _outbox) = theirs.split();
        let sizes = [0, 4096, 0, 65536, 8192, 0, 0, 1 << 20, 4096, 4096, 131_072, 0];
        let sent: Vec<Message> = (0..60).map(|number| request(number, sizes[number as usize % sizes.len()])).collect();
        for message in &sent {
            outbox.try_send(message).unwrap();
        }
        for message in &sent {
            let Message::Request(got) = inbound.next().await.unwrap() else { panic!() };
            assert_eq!(Message::Request(got.clone()), *message);
            if let Op::Write(Change::Write { blocks, .. }) = got.op {
                assert_eq!(blocks.data.as_ptr() as usize % 4096, 0, "the device can write from where it was received");
            }
        }
        assert_eq!(outbox.queued(), (0, 0));
    }
}

#[tokio::test(flavor = "current_thread")]
async fn next_can_be_cancelled_anywhere() {
    let (own, theirs) = pair(700).await;
    let (_keep, outbox) = own.split();
    let (mut inbound, _outbox) = theirs.split();
    for number in 0..20 {
        outbox.try_send(&request(number, 8192)).unwrap();
    }
    let mut got = 0;
    while got < 20 {
        tokio::select! {
            biased;
            message = inbound.next() => {
                assert_eq!(message.unwrap(), request(got, 8192));
                got += 1;
            }
            () = tokio::task::yield_now() => {}
        }
    }
}

#[tokio::test(flavor = "current_thread")]
async fn a_link_over_tcp_and_its_end() {
    let listener = tokio::net::TcpListener::bind("127.0.0.1:0").await.unwrap();
    let address = listener.local_addr().unwrap().to_string();
    let served = async {
        let (stream, _) = listener.accept().await.unwrap();
        let (_, link) = accept(stream, &node()).await.unwrap();
        let (mut inbound, outbox) = link.split();
        let message = inbound.next().await.unwrap();
        outbox.try_send(&message).unwrap();
        outbox.close();
        assert_eq!(outbox.try_send(&message), Err(SendError::Closed));
        assert!(matches!(inbound.next().await, Err(WireError::Closed)));
    };
    let called = async {
        let (welcome, link) = dial(&address, &hello(CLUSTER), Duration::from_secs(5)).await.unwrap();
        assert_eq!(welcome.node, Some(NodeId(3)));
        let (mut inbound, outbox) = link.split();
        outbox.try_send(&request(1, 1 << 20)).unwrap();
        assert_eq!(inbound.next().await.unwrap(), request(1, 1 << 20));
        assert!(matches!(inbound.next().await, Err(WireError::Closed)));
        assert!(outbox.is_closed());
    };
    tokio::join!(served, called);
    drop(listener);
    let refused = dial(&address, &hello(CLUSTER), Duration::from_secs(5)).await.unwrap_err();
    assert!(refused.is_refused(), "{refused}");
}

#[tokio::test(flavor = "current_thread")]
async fn strangers_are_told_why_they_are_not_welcome() {
    async fn meet(hello: Hello, local: Local) -> (Option<String>, Option<String>) {
        let (ours, theirs) = tokio::io::duplex(4096);
        let (accepted, greeted) = tokio::join!(accept(theirs, &local), greet(ours, &hello));
        (accepted.err().map(|e| e.to_string()), greeted.err().map(|e| e.to_string()))
    }
    let (here, there) = meet(hello(ClusterId(5)), node()).await;
    assert!(here.unwrap().contains("cluster") && there.unwrap().contains("rejected by the other side"));
    let (here, _) = meet(hello(ClusterId(0)), node()).await;
    assert!(here.unwrap().contains("only the authority"));
    let (here, there) = meet(hello(ClusterId(0)), authority()).await;
    assert_eq!((here, there), (None, None));
    let (here, _) = meet(hello(ClusterId(5)), authority()).await;
    assert!(here.is_some());

    let (ours, theirs) = tokio::io::duplex(4096);
    let picky = |_: &Hello| Err("no room".to_string());
    let (local, hello) = (node(), hello(CLUSTER));
    let (accepted, greeted) = tokio::join!(accept_if(theirs, &local, picky), greet(ours, &hello));
    assert!(matches!(accepted, Err(WireError::Unwelcome(_))));
    assert!(matches!(greeted, Err(WireError::Rejected(reason)) if reason == "no room"));
}

/// What accept says to raw bytes; the stream's other end stays open unless `close`.
async fn accept_raw(bytes: &[u8], close: bool) -> (Result<(Hello, Link), WireError>, DuplexStream) {
    let (mut ours, theirs) = tokio::io::duplex(1 << 16);
    ours.write_all(bytes).await.unwrap();
    if close {
        ours.shutdown().await.unwrap();
    }
    (accept(theirs, &node()).await, ours)
}

#[tokio::test(flavor = "current_thread", start_paused = true)]
async fn bad_handshakes_end_in_time() {
    let good = bytes_of(&encode(Kind::Hello, &hello(CLUSTER)).unwrap());
    // Garbage is noticed by its first bytes and answered with a reject.
    let (result, mut stream) = accept_raw(b"GET / HTTP/1.1\r\n", false).await;
    assert!(matches!(result, Err(WireError::Malformed(_))));
    let mut answer = Vec::new();
    stream.read_to_end(&mut answer).await.unwrap();
    assert!(parse::<Reject>(&answer).unwrap().reason.contains("not a frame"));
    // Another version.
    let mut other = good.clone();
    other[4] = 2;
    assert!(matches!(accept_raw(&other, false).await.0, Err(WireError::Version(2))));
    // Nothing, or a part, and then silence: the deadline. A part and then the end: closed.
    for len in 0..good.len() {
        assert!(matches!(accept_raw(&good[..len], false).await.0, Err(WireError::Slow(_))), "{len}");
        assert!(matches!(accept_raw(&good[..len], true).await.0, Err(WireError::Closed)), "{len}");
    }
    assert!(accept_raw(&good, false).await.0.is_ok());
    // Not a hello, or one too large for a stranger.
    let Message::Request(request) = request(1, 4096) else { panic!() };
    let early = bytes_of(&encode(Kind::Request, &request).unwrap());
    assert!(matches!(accept_raw(&early, false).await.0, Err(WireError::Malformed(_))));
    let large = Header { kind: Kind::Hello, body_len: FRAME_BODY_MAX, payload_len: 0, body_crc: 0 }.to_bytes();
    assert!(matches!(accept_raw(&large, false).await.0, Err(WireError::Malformed(_))));
}

#[tokio::test(flavor = "current_thread", start_paused = true)]
async fn a_frame_that_never_becomes_whole_closes_the_link() {
    let Message::Request(request) = request(1, 8192) else { panic!() };
    let frame = bytes_of(&encode(Kind::Request, &request).unwrap());
    for len in [1, HEADER_LEN, 40, frame.len() - 5000, frame.len() - 1] {
        let (result, mut stream) = accept_raw(&bytes_of(&encode(Kind::Hello, &hello(CLUSTER)).unwrap()), false).await;
        let (mut inbound, outbox) = result.unwrap().1.split();
        // An idle link lives on.
        assert!(tokio::time::timeout(Duration::from_secs(3600), inbound.next()).await.is_err());
        stream.write_all(&frame[..len]).await.unwrap();
        assert!(matches!(inbound.next().await, Err(WireError::Slow(_))), "{len}");
        assert!(outbox.is_closed());
        assert!(matches!(inbound.next().await, Err(WireError::Closed)));
    }
}

#[tokio::test(flavor = "current_thread", start_paused = true)]
async fn a_peer_that_does_not_read_fills_the_outbox_and_is_closed() {
    let (own, theirs) = pair(1000).await;
    let (mut inbound, outbox) = own.split();
    let mut taken = 0;
    while outbox.try_send(&request(taken, 0)).is_ok() {
        taken += 1;
    }
    assert_eq!(taken as usize, OUTBOX_MAX);
    assert_eq!(outbox.try_send(&request(0, 0)), Err(SendError::Full));
    assert!(matches!(inbound.next().await, Err(WireError::Closed)), "the stalled writer ends the link");
    assert_eq!(outbox.try_send(&request(0, 0)), Err(SendError::Closed));
    drop(theirs);
}

#[tokio::test(flavor = "current_thread", start_paused = true)]
async fn large_messages_fill_the_outbox_by_bytes() {
    let (own, theirs) = pair(1000).await;
    let (_inbound, outbox) = own.split();
    let mut taken = 0;
    while outbox.try_send(&request(taken, 1 << 20)).is_ok() {
        taken += 1;
    }
    assert_eq!(taken, 31, "the headers count too");
    outbox.abort();
    let (mut inbound, _) = theirs.split();
    assert!(matches!(inbound.next().await, Err(WireError::Closed)));
}

#[tokio::test(flavor = "current_thread")]
async fn dropping_every_outbox_or_the_inbound_ends_the_link() {
    let (own, theirs) = pair(1 << 16).await;
    let (mut inbound, outbox) = own.split();
    let clone = outbox.clone();
    drop(outbox);
    clone.try_send(&request(1, 0)).unwrap();
    drop(clone);
    let (mut their_inbound, their_outbox) = theirs.split();
    assert_eq!(their_inbound.next().await.unwrap(), request(1, 0));
    assert!(matches!(their_inbound.next().await, Err(WireError::Closed)));
    assert!(matches!(inbound.next().await, Err(WireError::Closed)));
    drop(their_inbound);
    assert!(their_outbox.is_closed());
}

#[tokio::test(flavor = "current_thread")]
async fn a_reply_that_is_no_message_ends_the_link() {
    let reply = Reply { outcome: Outcome::Refused(Refusal::Busy), ..Reply::sample(&mut Random::new(3)) };
    let mut frame = bytes_of(&encode(Kind::Reply, &reply).unwrap());
    *frame.last_mut().unwrap() = 99;
    let hello = bytes_of(&encode(Kind::Hello, &hello(CLUSTER)).unwrap());
    let (result, mut stream) = accept_raw(&hello, false).await;
    stream.write_all(&frame).await.unwrap();
    let (mut inbound, _outbox) = result.unwrap().1.split();
    assert!(matches!(inbound.next().await, Err(WireError::Malformed(_))));
}
