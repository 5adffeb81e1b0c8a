//! The server against hand-written bytes: numbers are spelled out here, so that a mistake in `proto` shows.

#![allow(clippy::unwrap_used, clippy::cast_possible_truncation)]

use std::cell::{Cell, RefCell};

use bytes::Bytes;
use engine_core::limits::{NBD_BYTES_MAX, NBD_OPTION_BYTES_MAX, NBD_REQUESTS_MAX};
use proptest::prelude::*;
use tokio::io::{AsyncReadExt, AsyncWriteExt, DuplexStream};
use tokio::sync::Notify;
use tokio::task::LocalSet;

use super::*;
use crate::gateway::ExportError;
use crate::gateway::memory::MemoryVolume;

const SIZE: u64 = 1 << 20;
const INVALID: u32 = 22;
const NO_SPACE: u32 = 28;
const OVERFLOW: u32 = 75;
const NOT_SUPPORTED: u32 = 95;
const SHUTDOWN: u32 = 108;
const ERR_UNSUP: u32 = 0x8000_0001;
const ERR_INVALID: u32 = 0x8000_0003;
const ERR_UNKNOWN: u32 = 0x8000_0006;
const ERR_TOO_BIG: u32 = 0x8000_0009;

/// A server without sockets, and the clients of it.
struct World<E> {
    server: Rc<NbdServer<E>>,
    stopper: watch::Sender<bool>,
}

impl<E: Export> World<E> {
    fn new(export: E) -> Self {
        Self::with_deadline(export, Duration::from_secs(60))
    }

    fn with_deadline(export: E, handshake: Duration) -> Self {
        let (stopper, stop) = watch::channel(false);
        let slots = Arc::new(Semaphore::new(NBD_CONNECTIONS_MAX));
        Self {
            server: Rc::new(NbdServer { export: Rc::new(export), name: "vol".into(), handshake, slots, stop }),
            stopper,
        }
    }

    fn raw(&self) -> Client {
        let (client, server) = tokio::io::duplex(1 << 16);
        let (reader, writer) = tokio::io::split(server);
        self.server.admit(reader, writer, tracing::Span::none());
        Client { stream: client }
    }

    /// A client that has said hello.
    async fn hello(&self, flags: u32) -> Client {
        let mut client = self.raw();
        assert_eq!(client.take(18).await, *b"NBDMAGICIHAVEOPT\0\x03");
        client.put(&flags.to_be_bytes()).await;
        client
    }

    /// A client in transmission.
    async fn client(&self, structured: bool) -> Client {
        let mut client = self.hello(3).await;
        if structured {
            assert_eq!(client.option(8, b"").await, vec![(1, vec![])]);
            let replies = client.option(10, &context(b"vol", &[b"base:allocation"])).await;
            assert_eq!(replies[0], (4, b"\0\0\0\x01base:allocation".to_vec()));
        }
        assert_eq!(client.option(7, b"\0\0\0\x03vol\0\0").await.last().unwrap().0, 1);
        client
    }
}

struct Client {
    stream: DuplexStream,
}

#[derive(Debug, PartialEq, Eq)]
enum Answer {
    Simple { error: u32, cookie: u64 },
    Chunk { kind: u16, cookie: u64, data: Vec<u8> },
}

impl Client {
    async fn put(&mut self, bytes: &[u8]) {
        self.stream.write_all(bytes).await.unwrap();
    }

    async fn take(&mut self, len: usize) -> Vec<u8> {
        let mut out = vec![0; len];
        self.stream.read_exact(&mut out).await.unwrap();
        out
    }

    /// Everything until the server closes.
    async fn rest(&mut self) -> Vec<u8> {
        let mut out = Vec::new();
        self.stream.read_to_end(&mut out).await.unwrap();
        out
    }

    async fn put_option(&mut self, option: u32, data: &[u8]) {
        self.put(b"IHAVEOPT").await;
        self.put(&option.to_be_bytes()).await;
        self.put(&(data.len() as u32).to_be_bytes()).await;
        self.put(data).await;
    }

    /// Sends an option; the replies up to the last one.
    async fn option(&mut self, option: u32, data: &[u8]) -> Vec<(u32, Vec<u8>)> {
        self.put_option(option, data).await;
        let mut replies = Vec::new();
        loop {
            assert_eq!(self.take(8).await, [0x00, 0x03, 0xe8, 0x89, 0x04, 0x55, 0x65, 0xa9]);
            assert_eq!(self.stream.read_u32().await.unwrap(), option);
            let kind = self.stream.read_u32().await.unwrap();
            let len = self.stream.read_u32().await.unwrap() as usize;
            let data = self.take(len).await;
            replies.push((kind, data));
            if kind == 1 || kind >= 1 << 31 {
                return replies;
            }
        }
    }

    async fn request(&mut self, flags: u16, command: u16, cookie: u64, offset: u64, len: u32) {
        let mut out = vec![0x25, 0x60, 0x95, 0x13];
        out.extend(flags.to_be_bytes());
        out.extend(command.to_be_bytes());
        out.extend(cookie.to_be_bytes());
        out.extend(offset.to_be_bytes());
        out.extend(len.to_be_bytes());
        self.put(&out).await;
    }

    async fn answer(&mut self) -> Answer {
        match self.stream.read_u32().await.unwrap() {
            0x6744_6698 => {
                let error = self.stream.read_u32().await.unwrap();
                Answer::Simple { error, cookie: self.stream.read_u64().await.unwrap() }
            }
            0x668e_33ef => {
                assert_eq!(self.stream.read_u16().await.unwrap(), 1, "one chunk, the last one");
                let kind = self.stream.read_u16().await.unwrap();
                let cookie = self.stream.read_u64().await.unwrap();
                let len = self.stream.read_u32().await.unwrap() as usize;
                Answer::Chunk { kind, cookie, data: self.take(len).await }
            }
            magic => panic!("neither kind of reply: {magic:#x}"),
        }
    }

    /// The error of an answer, of either kind; 0 for none.
    async fn error(&mut self) -> u32 {
        match self.answer().await {
            Answer::Simple { error, .. } => error,
            Answer::Chunk { kind: 0x8001, data, .. } => u32::from_be_bytes(data[..4].try_into().unwrap()),
            Answer::Chunk { .. } => 0,
        }
    }

    async fn write(&mut self, offset: u64, data: &[u8]) -> u32 {
        self.request(0, 1, 7, offset, data.len() as u32).await;
        self.put(data).await;
        self.error().await
    }

    async fn read_simple(&mut self, offset: u64, len: u32) -> Vec<u8> {
        self.request(0, 0, 8, offset, len).await;
        assert_eq!(self.answer().await, Answer::Simple { error: 0, cookie: 8 });
        self.take(len as usize).await
    }
}

fn context(name: &[u8], queries: &[&[u8]]) -> Vec<u8> {
    let mut out = Vec::new();
    out.extend((name.len() as u32).to_be_bytes());
    out.extend(name);
    out.extend((queries.len() as u32).to_be_bytes());
    for query in queries {
        out.extend((query.len() as u32).to_be_bytes());
        out.extend(*query);
    }
    out
}

fn run(test: impl Future<Output = ()>) {
    let runtime = tokio::runtime::Builder::new_current_thread().enable_all().build().unwrap();
    LocalSet::new().block_on(&runtime, async {
        tokio::time::timeout(Duration::from_secs(20), test).await.expect("the test hangs");
    });
}

fn memory() -> World<MemoryVolume> {
    World::new(MemoryVolume::new(SIZE))
}

#[test]
fn go_tells_size_flags_and_block_sizes() {
    run(async {
        let world = memory();
        let mut client = world.hello(3).await;
        // Without structured replies no "do not fragment"; asks for the name, too.
        let replies = client.option(6, b"\0\0\0\0\0\x01\0\x01").await;
        let export = b"\0\0\0\0\0\0\0\x10\0\0\x0d\x6d".to_vec();
        let sizes = b"\0\x03\0\0\x02\0\0\0\x10\0\x02\0\0\0".to_vec();
        assert_eq!(replies, vec![(3, export), (3, sizes), (3, b"\0\x01vol".to_vec()), (1, vec![])]);
        client.option(8, b"").await;
        let replies = client.option(7, b"\0\0\0\x03vol\0\0").await;
        assert_eq!(replies[0], (3, b"\0\0\0\0\0\0\0\x10\0\0\x0d\xed".to_vec()));
        client.request(0, 3, 1, 0, 0).await;
        assert_eq!(client.answer().await, Answer::Simple { error: 0, cookie: 1 });
    });
}

#[test]
fn export_name_with_and_without_padding() {
    run(async {
        let world = memory();
        for (flags, padding) in [(1, 124), (3, 0), (0, 124)] {
            let mut client = world.hello(flags).await;
            client.put_option(1, b"vol").await;
            let answer = client.take(10 + padding).await;
            assert_eq!(answer[..10], *b"\0\0\0\0\0\x10\0\0\x0d\x6d");
            assert!(answer[10..].iter().all(|byte| *byte == 0));
            assert_eq!(client.read_simple(0, 512).await, [0; 512]);
        }
        let mut client = world.hello(3).await;
        client.put_option(1, b"other").await;
        assert!(client.rest().await.is_empty());
    });
}

#[test]
fn options_that_are_answered_and_leave_the_handshake_usable() {
    run(async {
        let world = memory();
        let mut client = world.hello(3).await;
        assert_eq!(client.option(3, b"").await, vec![(2, b"\0\0\0\x03vol".to_vec()), (1, vec![])]);
        for (option, data, error) in [
            (3, &b"x"[..], ERR_INVALID),
            (5, b"", ERR_UNSUP),
            (8, b"x", ERR_INVALID),
            (11, b"", ERR_UNSUP),
            (0, b"", ERR_UNSUP),
            (4_000_000, b"whatever", ERR_UNSUP),
            (7, b"\0\0\0\x03abc\0\0", ERR_UNKNOWN),
            (6, b"\0\0\0\x03abc\0\0", ERR_UNKNOWN),
            (7, b"", ERR_INVALID),
            (7, b"\0\0\0\x04vol\0\0", ERR_INVALID),
            (7, b"\0\0\0\x03vol\0\x01", ERR_INVALID),
            (7, b"\0\0\0\x03vol\0\0x", ERR_INVALID),
            (7, b"\0\0\0\x01\xff\0\0", ERR_INVALID),
            (7, b"\xff\xff\xff\xffvol\0\0", ERR_INVALID),
            (10, b"\0\0\0\x03vol\0\0\0\0", ERR_INVALID),
        ] {
            let replies = client.option(option, data).await;
            assert_eq!(replies.last().unwrap().0, error, "{option} {data:?}");
        }
        let long = vec![0; NBD_OPTION_BYTES_MAX as usize + 1];
        assert_eq!(client.option(7, &long).await[0].0, ERR_TOO_BIG);
        assert_eq!(client.option(2, b"").await, vec![(1, vec![])]);
        assert!(client.rest().await.is_empty(), "closed after ABORT");
    });
}

#[test]
fn metadata_contexts() {
    run(async {
        let world = memory();
        let mut client = world.hello(3).await;
        client.option(8, b"").await;
        let listed = (4, b"\0\0\0\0base:allocation".to_vec());
        let set = (4, b"\0\0\0\x01base:allocation".to_vec());
        let ack = (1, vec![]);
        for (option, queries, want) in [
            (9, &[][..], vec![listed.clone(), ack.clone()]),
            (9, &[&b"base:"[..]], vec![listed.clone(), ack.clone()]),
            (9, &[b"base:allocation"], vec![listed, ack.clone()]),
            (9, &[b"qemu:dirty-bitmap:x"], vec![ack.clone()]),
            (10, &[b"base:"], vec![ack.clone()]),
            (10, &[b"nonsense", b"base:allocation", b"base:allocation"], vec![set, ack.clone()]),
            (10, &[], vec![ack]),
        ] {
            assert_eq!(client.option(option, &context(b"vol", queries)).await, want, "{option} {queries:?}");
        }
        assert_eq!(client.option(10, &context(b"abc", &[])).await[0].0, ERR_UNKNOWN);
        let mut many = context(b"vol", &[]);
        many[7..].copy_from_slice(&u32::MAX.to_be_bytes());
        assert_eq!(client.option(10, &many).await[0].0, ERR_INVALID);
        // The last one selected nothing, so there is nothing to ask about.
        client.option(7, b"\0\0\0\x03vol\0\0").await;
        client.request(0, 7, 1, 0, 512).await;
        assert_eq!(client.error().await, INVALID);
    });
}

#[test]
fn what_is_not_nbd_is_closed() {
    run(async {
        let world = memory();
        assert!(world.hello(4).await.rest().await.is_empty(), "unknown client flag");
        let mut client = world.hello(3).await;
        client.put(b"IHAVEOPS\0\0\0\0\0\0\0\0").await;
        assert!(client.rest().await.is_empty());
        let mut client = world.hello(0).await;
        client.put_option(3, b"").await;
        assert!(client.rest().await.is_empty(), "haggling without fixed newstyle");
        let mut client = world.client(true).await;
        client.put(&[0; 28]).await;
        assert!(client.rest().await.is_empty());
    });
}

#[test]
fn a_silent_handshake_is_closed_and_connections_are_counted() {
    run(async {
        let world = World::with_deadline(MemoryVolume::new(SIZE), Duration::from_millis(30));
        assert_eq!(world.raw().rest().await.len(), 18);
        let world = memory();
        let mut clients = Vec::new();
        for _ in 0..NBD_CONNECTIONS_MAX {
            clients.push(world.client(false).await);
        }
        assert!(world.raw().rest().await.is_empty(), "one too many");
        let mut last = clients.pop().unwrap();
        last.request(0, 2, 0, 0, 0).await;
        assert!(last.rest().await.is_empty());
        tokio::task::yield_now().await;
        world.client(false).await;
    });
}

#[test]
fn simple_replies() {
    run(async {
        let world = memory();
        let mut client = world.client(false).await;
        assert_eq!(client.write(512, &[0xab; 1024]).await, 0);
        let read = client.read_simple(0, 2048).await;
        assert!(read[..512].iter().chain(&read[1536..]).all(|byte| *byte == 0));
        assert_eq!(read[512..1536], [0xab; 1024]);
        for (flags, command, offset, len) in
            [(1, 6, 512, 512), (2, 6, 8192, 4096), (16, 6, 12288, 4096), (1, 4, 0, 4096)]
        {
            client.request(flags, command, 9, offset, len).await;
            assert_eq!(client.answer().await, Answer::Simple { error: 0, cookie: 9 }, "{flags} {command}");
        }
        assert_eq!(world.server.export.used_blocks(), 1, "block 2 only: provisioned zeros");
        assert_eq!(client.read_simple(0, 8192).await, [0; 8192]);
        for command in [3, 5] {
            let len = if command == 3 { 0 } else { 512 };
            client.request(1, command, 10, 0, len).await;
            assert_eq!(client.answer().await, Answer::Simple { error: 0, cookie: 10 });
        }
    });
}

#[test]
fn structured_replies() {
    run(async {
        let world = memory();
        let mut client = world.client(true).await;
        assert_eq!(client.write(4096, &[1; 4096]).await, 0);
        client.request(0, 0, 2, 4096, 512).await;
        let mut data = 4096_u64.to_be_bytes().to_vec();
        data.extend([1; 512]);
        assert_eq!(client.answer().await, Answer::Chunk { kind: 1, cookie: 2, data });
        client.request(4, 0, 3, 8192, 512).await;
        let data = b"\0\0\0\0\0\0\x20\0\0\0\x02\0".to_vec();
        assert_eq!(client.answer().await, Answer::Chunk { kind: 2, cookie: 3, data });
        // Merged runs, and only the first of them.
        client.request(0, 7, 4, 0, 4 << 12).await;
        let data = b"\0\0\0\x01\0\0\x10\0\0\0\0\x03\0\0\x10\0\0\0\0\0\0\0\x20\0\0\0\0\x03".to_vec();
        assert_eq!(client.answer().await, Answer::Chunk { kind: 5, cookie: 4, data });
        client.request(8, 7, 5, 4608, 4 << 12).await;
        let data = b"\0\0\0\x01\0\0\x0e\0\0\0\0\0".to_vec();
        assert_eq!(client.answer().await, Answer::Chunk { kind: 5, cookie: 5, data });
        client.request(0, 0, 6, SIZE, 512).await;
        let Answer::Chunk { kind: 0x8001, cookie: 6, data } = client.answer().await else { panic!("an error chunk") };
        assert_eq!(data[..6], *b"\0\0\0\x16\0\x1c");
        assert_eq!(data[6..], *b"beyond the end of the export");
    });
}

/// Flags, command, offset, length, and the error the protocol wants.
const MISTAKES: [(u16, u16, u64, u32, u32); 26] = [
    (0, 0, 1, 512, INVALID),
    (0, 0, 0, 100, INVALID),
    (0, 0, 0, 0, INVALID),
    (0, 0, SIZE, 512, INVALID),
    (0, 0, SIZE - 512, 1024, INVALID),
    (0, 0, u64::MAX - 511, 512, INVALID),
    (0, 0, 0, NBD_BYTES_MAX as u32 + 512, INVALID),
    (4, 0, 0, NBD_BYTES_MAX as u32 + 512, OVERFLOW),
    (2, 0, 0, 512, INVALID),
    (32, 0, 0, 512, INVALID),
    (0x8000, 0, 0, 512, INVALID),
    (0, 1, SIZE, 512, NO_SPACE),
    (0, 1, 100, 512, INVALID),
    (4, 1, 0, 512, INVALID),
    (0, 1, 0, NBD_BYTES_MAX as u32 + 512, INVALID),
    (0, 3, 0, 512, INVALID),
    (0, 4, SIZE, 512, INVALID),
    (2, 4, 0, 512, INVALID),
    (0, 5, SIZE, 512, INVALID),
    (0, 6, SIZE, 512, NO_SPACE),
    (0, 6, 0, 0, INVALID),
    (16, 6, 512, 4096, NOT_SUPPORTED),
    (18, 6, 0, 4096, NOT_SUPPORTED),
    (0, 7, 0, 0, INVALID),
    (0, 8, 0, 512, INVALID),
    (0, 999, 0, 512, INVALID),
];

#[test]
fn mistakes_get_the_protocols_error_and_the_connection_goes_on() {
    run(async {
        for structured in [false, true] {
            let world = memory();
            let mut client = world.client(structured).await;
            for (flags, command, offset, len, want) in MISTAKES {
                client.request(flags, command, 1, offset, len).await;
                if command == 1 {
                    client.put(&vec![9; len as usize]).await;
                }
                // "Do not fragment" itself is unknown without structured replies.
                let want = if !structured && flags == 4 { INVALID } else { want };
                assert_eq!(client.error().await, want, "{flags} {command} {offset} {len}");
                assert_eq!(client.write(0, &[1; 512]).await, 0);
            }
            assert_eq!(world.server.export.used_blocks(), 1);
        }
    });
}

#[test]
fn once_fenced_every_request_fails_at_once() {
    run(async {
        let world = memory();
        let mut client = world.client(true).await;
        world.server.export.fence();
        for (command, len) in [(0, 512), (3, 0), (4, 512), (5, 512), (6, 512), (7, 512)] {
            client.request(0, command, 1, 0, len).await;
            assert_eq!(client.error().await, SHUTDOWN, "{command}");
        }
        assert_eq!(client.write(0, &[1; 512]).await, SHUTDOWN);
    });
}

/// An export whose reads wait until they are let, and whose writes fail as told.
struct Gate {
    open: Notify,
    started: Cell<usize>,
    write: RefCell<Result<(), ExportError>>,
}

impl Gate {
    fn new() -> Self {
        Self { open: Notify::new(), started: Cell::new(0), write: RefCell::new(Ok(())) }
    }
}

impl Export for Gate {
    fn size(&self) -> u64 {
        1 << 30
    }

    async fn read(&self, _: u64, len: u64) -> Result<Bytes, ExportError> {
        self.started.set(self.started.get() + 1);
        self.open.notified().await;
        Ok(vec![1; len as usize].into())
    }

    async fn write(&self, _: u64, _: Bytes) -> Result<(), ExportError> {
        self.write.borrow().clone()
    }

    async fn zero(&self, _: u64, _: u64, _: bool) -> Result<(), ExportError> {
        Ok(())
    }

    async fn allocation(&self, offset: u64, _: u64) -> Result<Vec<(u64, bool)>, ExportError> {
        assert!(offset == 0, "a mistake of the volume's");
        Ok(Vec::new())
    }

    fn is_fenced(&self) -> bool {
        false
    }
}

#[test]
fn errors_of_the_volume_have_their_numbers() {
    run(async {
        let world = World::new(Gate::new());
        let mut client = world.client(false).await;
        for (error, want) in [
            (ExportError::Fenced, SHUTDOWN),
            (ExportError::NoSpace, NO_SPACE),
            (ExportError::TimedOut, 5),
            (ExportError::Io("damaged".into()), 5),
        ] {
            *world.server.export.write.borrow_mut() = Err(error);
            assert_eq!(client.write(0, &[1; 512]).await, want);
        }
    });
}

#[test]
fn replies_overtake_and_a_goodbye_waits_for_what_is_in_flight() {
    run(async {
        let world = World::new(Gate::new());
        let mut client = world.client(true).await;
        client.request(0, 0, 1, 0, 512).await;
        client.request(0, 6, 2, 0, 512).await;
        assert_eq!(client.answer().await, Answer::Simple { error: 0, cookie: 2 });
        client.request(0, 7, 3, 0, 512).await;
        let data = b"\0\0\0\x01\0\0\x02\0\0\0\0\0".to_vec();
        assert_eq!(client.answer().await, Answer::Chunk { kind: 5, cookie: 3, data }, "an export that does not know");
        client.request(0, 2, 0, 0, 0).await;
        world.server.export.open.notify_one();
        assert!(matches!(client.answer().await, Answer::Chunk { kind: 1, cookie: 1, .. }));
        assert!(client.rest().await.is_empty());
    });
}

#[test]
fn a_request_that_panics_closes_its_connection_only() {
    run(async {
        let world = World::new(Gate::new());
        let (mut one, mut other) = (world.client(true).await, world.client(true).await);
        one.request(0, 7, 1, 512, 512).await;
        assert!(one.rest().await.is_empty());
        other.request(0, 3, 2, 0, 0).await;
        assert_eq!(other.answer().await, Answer::Simple { error: 0, cookie: 2 });
    });
}

#[test]
fn in_flight_is_bounded_by_number_and_by_bytes() {
    run(async {
        for (requests, len, want) in [(NBD_REQUESTS_MAX + 9, 512, NBD_REQUESTS_MAX), (5, NBD_BYTES_MAX as u32 / 2, 2)] {
            let world = World::new(Gate::new());
            let mut client = world.client(false).await;
            for cookie in 0..requests {
                client.request(0, 0, cookie as u64, 0, len).await;
            }
            let started = &world.server.export.started;
            while started.get() < want {
                tokio::task::yield_now().await;
            }
            for _ in 0..100 {
                tokio::task::yield_now().await;
            }
            assert_eq!(started.get(), want, "the rest is not read");
            for done in 0..requests {
                world.server.export.open.notify_one();
                assert!(matches!(client.answer().await, Answer::Simple { error: 0, .. }), "{done}");
                client.take(len as usize).await;
            }
        }
    });
}

#[test]
fn a_stopping_server_finishes_and_closes() {
    run(async {
        let world = World::new(Gate::new());
        let mut client = world.client(false).await;
        client.request(0, 0, 1, 0, 512).await;
        while world.server.export.started.get() == 0 {
            tokio::task::yield_now().await;
        }
        world.stopper.send_replace(true);
        world.server.export.open.notify_one();
        assert_eq!(client.rest().await.len(), 16 + 512);
    });
}

#[test]
fn listens_on_tcp_and_unix_sockets_at_once() {
    run(async {
        let dir = tempfile::tempdir().unwrap();
        let path = dir.path().join("socket");
        let tcp = Listener::bind(&"127.0.0.1:0".parse().unwrap()).await.unwrap();
        let unix = Listener::bind(&Address::Unix(path.clone())).await.unwrap();
        let port = tcp.uri("vol")["nbd://127.0.0.1:".len()..].trim_end_matches("/vol").parse::<u16>().unwrap();
        let (stop, stopped) = tokio::sync::oneshot::channel::<()>();
        let export = Rc::new(MemoryVolume::new(SIZE));
        let serving = tokio::task::spawn_local(async move {
            NbdServer::serve(vec![tcp, unix], export, "vol", async { drop(stopped.await) }).await;
        });
        let mut greeting = [0; 18];
        let mut tcp = TcpStream::connect(("127.0.0.1", port)).await.unwrap();
        let mut unix = tokio::net::UnixStream::connect(&path).await.unwrap();
        tcp.read_exact(&mut greeting).await.unwrap();
        unix.read_exact(&mut greeting).await.unwrap();
        stop.send(()).unwrap();
        serving.await.unwrap();
        assert_eq!(tcp.read(&mut greeting).await.unwrap_or(0), 0, "closed");
        assert!(!path.exists());
    });
}

/// Sends bytes a client would not send and waits for the server to close.
async fn feed(mut client: Client, garbage: &[u8]) {
    let (mut reader, mut writer) = tokio::io::split(&mut client.stream);
    let write = async {
        let _ = writer.write_all(garbage).await;
        let _ = writer.shutdown().await;
    };
    let mut out = Vec::new();
    let (_, read) = tokio::join!(write, reader.read_to_end(&mut out));
    read.unwrap();
}

/// A request as somebody malicious or confused would send it: right magic, the rest near the edges.
fn request_bytes() -> impl Strategy<Value = Vec<u8>> {
    let offset = prop_oneof![Just(0), Just(SIZE), Just(u64::MAX), 0..SIZE, (0..SIZE / 512).prop_map(|n| n * 512)];
    let len = prop_oneof![Just(0_u32), Just(512), Just(u32::MAX), 0..70_000_u32, (0..16_u32).prop_map(|n| n * 512)];
    (any::<[bool; 6]>(), 0..9_u16, any::<u64>(), offset, len).prop_map(|(flags, command, cookie, offset, len)| {
        let flags = flags.iter().enumerate().fold(0, |all, (bit, set)| all | (u16::from(*set) << bit));
        let mut out = vec![0x25, 0x60, 0x95, 0x13];
        out.extend(flags.to_be_bytes());
        out.extend(command.to_be_bytes());
        out.extend(cookie.to_be_bytes());
        out.extend(offset.to_be_bytes());
        out.extend(len.to_be_bytes());
        if command == 1 && len < 100_000 {
            out.extend(vec![5; len as usize]);
        }
        out
    })
}

proptest! {
    #![proptest_config(ProptestConfig { cases: 64, ..ProptestConfig::default() })]

    #[test]
    fn garbage_in_the_handshake_only_ends_it(garbage in proptest::collection::vec(any::<u8>(), 0..300)) {
        run(async {
            let world = memory();
            feed(world.raw(), &garbage).await;
            feed(world.hello(3).await, &garbage).await;
            let mut option = b"IHAVEOPT\0\0\0".to_vec();
            option.extend(garbage.iter().map(|byte| byte % 12));
            feed(world.hello(3).await, &option).await;
            world.client(true).await;
        });
    }

    #[test]
    fn garbage_in_transmission_only_ends_it(
        garbage in proptest::collection::vec(any::<u8>(), 0..300),
        requests in proptest::collection::vec(request_bytes(), 0..20),
    ) {
        run(async {
            let world = memory();
            for structured in [false, true] {
                feed(world.client(structured).await, &garbage).await;
                feed(world.client(structured).await, &requests.concat()).await;
            }
            assert_eq!(world.client(false).await.write(0, &[1; 512]).await, 0);
        });
    }

    #[test]
    fn reads_see_what_writes_and_zeroes_left(
        steps in proptest::collection::vec((0..3_u8, 0..64_u64, 1..40_usize, 1..255_u8), 1..40),
    ) {
        run(async {
            let world = memory();
            let mut client = world.client(false).await;
            let mut model = vec![0; 104 * 512];
            for (kind, sector, sectors, byte) in steps {
                let (offset, len) = (sector * 512, sectors * 512);
                let range = &mut model[offset as usize..offset as usize + len];
                if kind == 0 {
                    range.fill(byte);
                    assert_eq!(client.write(offset, range).await, 0);
                } else {
                    range.fill(0);
                    client.request(0, if kind == 1 { 4 } else { 6 }, 1, offset, len as u32).await;
                    assert_eq!(client.error().await, 0);
                }
                assert_eq!(client.read_simple(0, model.len() as u32).await, model);
            }
        });
    }
}
