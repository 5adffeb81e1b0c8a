//! The fuzz target of the wire: hostile frames, as they are and with lengths and checksums that fit, are errors or
//! decode to what encodes to the same again, and cost no more memory than their length allows.
use super::*;
use crate::fuzz::{run, within};

/// Bytes of memory for each byte of a body; the payload is where it was received.
const PER_BYTE: usize = 100;
/// And whatever the length.
const BASE: usize = 64 * 1024;

fn same_again<T: Wire + PartialEq + std::fmt::Debug>(kind: Kind, body: &[u8], payload: &Bytes) {
    let bound = BASE + PER_BYTE * body.len();
    let Ok(value) = within(bound, || decode::<T>(body, payload.clone())) else { return };
    let frame = encode(kind, &value).expect("what came in a frame fits one");
    assert_eq!(parse::<T>(&bytes_of(&frame)).as_ref().ok(), Some(&value));
}

fn look(bytes: &[u8]) {
    let Some(head) = bytes.first_chunk::<HEADER_LEN>() else { return };
    let rest = &bytes[HEADER_LEN..];
    let word = |at: usize| u32::from_le_bytes(head[at..at + 4].try_into().unwrap()) as usize;
    // As it is, and with a header that fits what is there.
    let payload_len = word(12).min(1 << 20) / 4096 * 4096;
    let mut fitting = *head;
    fitting[..4].copy_from_slice(&MAGIC);
    fitting[4..6].copy_from_slice(&1_u16.to_le_bytes());
    fitting[7] = 0;
    fitting[8..12].copy_from_slice(&(rest.len().min(FRAME_BODY_MAX) as u32).to_le_bytes());
    fitting[12..16].copy_from_slice(&(payload_len as u32).to_le_bytes());
    let sum = crc32fast::hash(&fitting[..20]);
    fitting[20..].copy_from_slice(&sum.to_le_bytes());
    for head in [head, &fitting] {
        let Ok(header) = within(BASE, || Header::from_bytes(head)) else { continue };
        assert!(header.body_len <= FRAME_BODY_MAX && header.payload_len <= FRAME_PAYLOAD_MAX);
        assert_eq!(Header::from_bytes(&header.to_bytes()).ok(), Some(header));
        let Some(body) = rest.get(..header.body_len) else { continue };
        // Files of the corpus end with the body: what data is in a payload matters to nobody.
        let payload = Bytes::from(vec![7; header.payload_len.min(1 << 20)]);
        match header.kind {
            Kind::Hello => same_again::<Hello>(header.kind, body, &payload),
            Kind::Welcome => same_again::<Welcome>(header.kind, body, &payload),
            Kind::Reject => same_again::<Reject>(header.kind, body, &payload),
            Kind::Peer => same_again::<PeerMessage>(header.kind, body, &payload),
            Kind::Request => same_again::<Request>(header.kind, body, &payload),
            Kind::Reply => same_again::<Reply>(header.kind, body, &payload),
            Kind::ToAuthority => same_again::<ToAuthority>(header.kind, body, &payload),
            Kind::FromAuthority => same_again::<FromAuthority>(header.kind, body, &payload),
            Kind::Peers => same_again::<Vec<PeerMessage>>(header.kind, body, &payload),
        }
    }
}

#[test]
fn wire_frames() {
    let golden: Vec<(String, Vec<u8>)> =
        golden_frames().into_iter().map(|(name, frame)| (name.to_lowercase(), frame.head.to_vec())).collect();
    let frame = |name: &str| golden.iter().find(|(found, _)| found == name).unwrap().1.clone();
    let put = |name: &str, at: usize, with: &[u8]| {
        let mut bytes = frame(name);
        bytes[at..at + with.len()].copy_from_slice(with);
        bytes
    };
    let mut seeds: Vec<(String, Vec<u8>)> = [
        ("hostile-empty", vec![]),
        ("hostile-header-alone", frame("welcome")[..HEADER_LEN].to_vec()),
        ("hostile-cut", frame("peer-prepare")[..HEADER_LEN + 20].to_vec()),
        ("hostile-magic", put("welcome", 0, b"GET ")),
        ("hostile-version-0", put("welcome", 4, &[0; 2])),
        ("hostile-version-2", put("welcome", 4, &[2, 0])),
        ("hostile-kind-0", put("welcome", 6, &[0])),
        ("hostile-kind-10", put("welcome", 6, &[10])),
        ("hostile-reserved", put("welcome", 7, &[1])),
        ("hostile-body-huge", put("peer-prepare", 8, &[0xff; 4])),
        ("hostile-payload-huge", put("peer-prepare", 12, &[0xff; 4])),
        ("hostile-payload-odd", put("peer-prepare", 12, &[1, 0, 0, 0])),
        ("hostile-payload-zero", put("peer-prepare", 12, &[0; 4])),
        ("hostile-list-65535", put("peers", HEADER_LEN, &[0xff; 2])),
        ("hostile-list-zero", put("peers", HEADER_LEN, &[0; 2])),
        ("hostile-variant", put("from-authority-create", HEADER_LEN, &[0xff; 2])),
    ]
    .map(|(name, bytes)| (name.to_owned(), bytes))
    .into();
    seeds.extend(golden);
    run("wire", 2000, seeds, look);
}
