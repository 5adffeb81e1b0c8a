//! Every bound of the product, with its unit, and the relations between them asserted at compile time (I15).
//!
//! Each says what happens when it is reached. A queue, buffer, retry or loop without a line here is a mistake.

use crate::time::Span;

/// Bytes of a block: the unit of checksums and of alignment.
pub const BLOCK_SIZE: u64 = 4096;
/// Bytes of an extent: the unit of space and of catch-up.
pub const EXTENT_SIZE: u64 = 128 * 1024;
/// Blocks of an extent; a presence map of an extent is one `u32`.
pub const EXTENT_BLOCKS: u32 = 32;
/// Bytes of addresses that go to one segment before a stripe moves to the next.
pub const CHUNK_SIZE: u64 = 1024 * 1024;
/// Segments that one stripe group spreads over.
pub const STRIPE_WIDTH_MAX: u32 = 4;
/// Smallest segment; a volume asking for less is refused.
pub const SEGMENT_SIZE_MIN: u64 = 64 * 1024 * 1024;
/// Largest segment; a volume asking for more is refused.
pub const SEGMENT_SIZE_MAX: u64 = 64 * 1024 * 1024 * 1024;
/// Segment size where nobody asked for another.
pub const SEGMENT_SIZE_DEFAULT: u64 = 1024 * 1024 * 1024;
/// Largest volume; a larger one is refused.
pub const VOLUME_SIZE_MAX: u64 = 64 << 40;
/// Most copies of a segment; asking for more is refused.
pub const COPIES_MAX: usize = 5;
/// Longest name of a volume or zone in bytes; a longer one is refused.
pub const NAME_BYTES_MAX: usize = 64;
/// Nodes of one cell; one more is refused at registration.
pub const NODES_MAX: usize = 1024;
/// Shards of one node; configuration asking for more is refused.
pub const SHARDS_MAX: u16 = 64;
/// Devices of one node, those given up not forgotten; a node with more is refused. All of them share [`SHARDS_MAX`].
pub const DEVICES_MAX: usize = 32;

/// Bytes of one client request's data; a longer request is refused, the client cuts before.
pub const REQUEST_BYTES_MAX: u64 = CHUNK_SIZE;
/// Bytes a client zeroes with one request, so that one entry stays small in what it touches; a longer one is refused.
pub const ZERO_BYTES_MAX: u64 = 64 * 1024 * 1024;
/// Blocks of one question for allocation: that many runs fit a message; a longer one is refused.
pub const ALLOCATION_BLOCKS_MAX: u32 = 4096;
/// Bytes of one frame's payload; a frame that announces more closes its connection.
pub const FRAME_PAYLOAD_MAX: usize = 2 * 1024 * 1024;
/// Bytes of one frame's body (the message without its payload); a frame that announces more closes its connection.
pub const FRAME_BODY_MAX: usize = 256 * 1024;
/// Entries of any list in a message; a longer list does not decode.
pub const LIST_MAX: usize = 4096;
/// Writes of one segment ordered and not yet committed; further ones wait with their client.
pub const WINDOW_ENTRIES: usize = 512;
/// Bytes of one segment's ordered, uncommitted writes; further ones wait with their client.
pub const WINDOW_BYTES: u64 = 8 * 1024 * 1024;
/// Requests of one segment that wait at its primary (for space in the window, for a member); further ones are told
/// `Busy` and come again.
pub const WAITING_MAX: usize = 512;
/// Requests of one segment that wait at a member for the configuration they speak of, which makes it primary; further
/// ones are told who leads as far as it knows.
pub const EARLY_MAX: usize = 256;
/// Requests a client has in flight in one segment; further ones wait in the client.
pub const CLIENT_INFLIGHT_MAX: usize = 256;
/// Requests a client holds for one volume, sent or not; callers of further ones wait.
pub const CLIENT_REQUESTS_MAX: usize = 4096;
/// Bytes of writes a client holds for one volume; callers of further ones wait.
pub const CLIENT_BYTES_MAX: usize = 16 * 1024 * 1024;
/// Most requests per second a volume can be limited to; a higher limit is refused.
pub const LIMIT_IOPS_MAX: u32 = 10_000_000;
/// Most MiB per second a volume can be limited to; a higher limit is refused.
pub const LIMIT_MIBPS_MAX: u32 = 1_000_000;
/// What a limited volume's client may begin at once when it was idle: its rate for so long, or one request. More waits
/// in the client, in order, within [`CLIENT_REQUESTS_MAX`] and [`CLIENT_BYTES_MAX`].
pub const LIMIT_BURST: Span = Span::millis(100);
/// Longest a request waits for its volume's limits behind nobody: for the largest one under the lowest limit.
pub const LIMIT_WAIT_MAX: Span = Span::seconds(1);
/// A client asks for its volume's limits again about this often, while the authority answers.
pub const LIMITS_EVERY: Span = Span::seconds(30);
/// Damaged extents of one replica that are being fetched from another member, or wait for it; further ones are refused to
/// readers and found again by the next read or scrub.
pub const MENDS_MAX: usize = 256;
/// Reads that wait for one damaged extent; further ones are refused.
pub const MEND_READS_MAX: usize = 64;
/// Bytes a scrub reads per second and shard when nobody waits for it.
pub const SCRUB_PACE: u64 = 8 * 1024 * 1024;
/// Bytes a scrub that a person asked for reads per second and shard.
pub const SCRUB_PACE_NOW: u64 = 128 * 1024 * 1024;
/// Extents a scrub reads at a time.
pub const SCRUB_INFLIGHT: usize = 2;
/// Extents of one segment that were scrubbed and wait to be compared with those of its members; further ones are left to
/// the next pass. The scrub goes no further while one is being compared.
pub const COMPARES_WAITING: usize = 4;
/// How often an extent is compared that was written, or of which a member has not heard everything; then it is left to the
/// next pass.
pub const COMPARE_TRIES: u32 = 5;
/// Findings of comparing a replica's members that are remembered beside their number.
pub const FINDINGS_KEPT: usize = 16;
/// Operations of a shard that wait for its store; with more a scrub waits.
pub const SCRUB_YIELD: usize = 64;
/// Client connections of one node; one more is closed at once.
pub const CLIENT_CONNECTIONS_MAX: usize = 1024;
/// Messages waiting for one connection's socket before its segment's work waits (peers) or it is closed (clients).
pub const OUTBOX_MAX: usize = 8192;
/// Bytes waiting for one connection's socket; full like [`OUTBOX_MAX`].
pub const OUTBOX_BYTES_MAX: usize = 32 * 1024 * 1024;
/// Longest text of a message in bytes; a longer one is cut when sent and does not decode.
pub const TEXT_BYTES_MAX: usize = 512;
/// Bytes of a handshake frame's body; a stranger that announces more is closed.
pub const HELLO_BODY_MAX: usize = 1024;
/// Messages waiting at a shard; when it is full, whoever reads a socket for it reads no further.
pub const INBOX_MAX: usize = 1024;
/// Messages a shard takes before it looks at its device again.
pub const TURN_MAX: usize = 256;
/// Writes, reads and copies a shard has handed to its store; above it the shard takes no further client requests.
pub const STORE_INFLIGHT_MAX: usize = 4096;
/// Of volumes that share a shard: bytes of requests begun and not ended, each counted with 4 KiB beside its data; more wait.
/// A volume that has nothing begun begins one request all the same. No more begins in one turn of the shard.
pub const FAIR_IN_HAND: u64 = 8 * 8 * 1024;
/// What one of them begins before it is the next one's turn, counted alike.
pub const FAIR_TURN: u64 = 2 * 8 * 1024;
/// Volumes share a shard for so long after the last time that another one asked.
pub const FAIR_MEMORY: Span = Span::millis(100);
/// What has begun and does not end holds up what waits for this long; then it is not counted.
pub const FAIR_PATIENCE: Span = Span::millis(50);
/// Requests of one volume that wait in a shard for their turn; further ones are told `Busy` and come again.
pub const FAIR_WAITING_MAX: usize = CLIENT_REQUESTS_MAX;
/// Bytes of them, counted as above; full alike.
pub const FAIR_WAITING_BYTES: u64 = 2 * CLIENT_BYTES_MAX as u64;
/// Requests of all volumes that wait in a shard; with more it takes none from its clients' connections.
pub const FAIR_WAITING_MAX_ALL: usize = 4 * FAIR_WAITING_MAX;
/// Bytes of them; full alike.
pub const FAIR_WAITING_BYTES_ALL: u64 = 4 * FAIR_WAITING_BYTES;
/// Volumes a shard keeps a place for; those that have nothing there make room.
pub const FAIR_VOLUMES: usize = 1024;
/// Promises of space alive in one shard; one more is answered "no space".
pub const RESERVATIONS_MAX: usize = 64;
/// Messages for a replica that is still being created; further ones are dropped, their sender says them again.
pub const CREATING_HELD_MAX: usize = 4;
/// What the authority says to a shard before its machines are open; further ones are dropped and said again.
pub const UNHEARD_MAX: usize = 4096;
/// Incoming connections from peers of one node; one more is closed at once.
pub const PEER_CONNECTIONS_MAX: usize = 512;
/// Connections of one node that have not said who they are; one more is closed at once.
pub const STRANGERS_MAX: usize = 256;
/// How long one attempt to reach a peer may take.
pub const DIAL_WAIT: Span = Span::millis(1000);
/// How long a broken peer connection is dialled again before its replicas hear of the loss without the hint "refused".
pub const REFUSAL_WAIT: Span = Span::millis(100);
/// How often a live connection over the replication network looks whether the primary network works again.
pub const PRIMARY_AGAIN: Span = Span::seconds(5);
/// How long a node that starts waits for the authority before its replicas go to work without it (R20).
pub const REGISTER_WAIT: Span = Span::seconds(2);
/// Grace time where the authority has not said another yet.
pub const GRACE_DEFAULT: Span = Span::seconds(60);
/// How long one of a node's several devices may take to say what it is, to count a boot or to note what the authority
/// said of it; then it is missing.
pub const DEVICE_ANSWER_WAIT: Span = Span::seconds(15);
/// How long opening what is on it may take.
pub const DEVICE_OPEN_WAIT: Span = Span::seconds(120);
/// How long a node that stops on purpose waits for its shards to become quiet.
pub const STOP_WAIT: Span = Span::seconds(5);
/// Extents a candidate asks for at a time.
pub const COPY_INFLIGHT: usize = 8;
/// Extents listed in one page of a catch-up list.
pub const COPY_PAGE: usize = 1024;
/// Data connections a gateway serves at a time; one more is closed.
pub const NBD_CONNECTIONS_MAX: usize = 64;
/// Bytes of the smallest range an NBD client can name; another alignment is refused.
pub const NBD_SECTOR: u64 = 512;
/// Requests of one NBD connection in flight; at the bound it is not read from.
pub const NBD_REQUESTS_MAX: usize = 128;
/// Bytes of data of one NBD connection in flight, and of its largest request; at the bound it is not read from.
pub const NBD_BYTES_MAX: u64 = 32 * 1024 * 1024;
/// Bytes of an NBD option's data; a longer one is skipped and refused.
pub const NBD_OPTION_BYTES_MAX: u32 = 64 * 1024;
/// Runs in one answer about what is allocated; the client asks for the rest.
pub const NBD_EXTENTS_MAX: usize = 8192;
/// Permits running at once in one zone; further asks are parked.
pub const PERMITS_PER_ZONE: usize = 8;
/// Permits running at once with one node as source; further asks are parked.
pub const PERMITS_PER_SOURCE: usize = 2;
/// Permits running at once with one node as target; further asks are parked.
pub const PERMITS_PER_TARGET: usize = 2;
/// The same while the breaker is half-open.
pub const PERMITS_PER_ZONE_HALF_OPEN: usize = 2;
/// Nodes lost within this time count together: many of them are no coincidence, and the breaker opens (DESIGN 7.4).
pub const BREAKER_WINDOW: Span = Span::seconds(60);
/// Fewer nodes lost than this are never many, whatever the size of the cluster...
pub const BREAKER_NODES_MIN: usize = 3;
/// ... except where they are all of a zone, and these are enough of one.
pub const BREAKER_ZONE_WHOLE_MIN: usize = 2;
/// So many of a zone's nodes, per thousand, are many.
pub const BREAKER_ZONE_PER_MILLE: usize = 100;
/// So many of all nodes, per thousand, are many.
pub const BREAKER_CLUSTER_PER_MILLE: usize = 50;
/// How often the breaker counts.
pub const BREAKER_EVERY: Span = Span::millis(500);
/// From an authority's start to its first permit: by then it knows who is out of touch.
pub const BREAKER_SETTLE: Span = Span::seconds(5);
/// How long the lost set has to be the same until an open breaker is half-open, where nobody said otherwise.
pub const BREAKER_STABLE: Span = Span::seconds(600);
/// The same, at most, where so few are left of the lost that they would not open it: it closes.
pub const BREAKER_CALM: Span = Span::seconds(60);
/// Copies made while it is half-open and nobody else is lost, until it closes.
pub const BREAKER_TRIAL_COPIES: u32 = 16;
/// Proposals of one message; a node's further ones go with the next, once that one is decided.
pub const PROPOSALS_MAX: usize = 512;
/// Bytes of the proposals, or decisions, of one message; further ones go with the next.
pub const BATCH_BODY_MAX: usize = 128 * 1024;
/// Batches of proposals that are not full which a node sends at once, of each kind; further ones wait
/// [`BATCH_PAUSE`] each.
pub const BATCH_BURST: u32 = 8;
/// Proposals a node gathers while others are decided; one more is dropped, its replica proposes again.
pub const GATHERED_MAX: usize = 64 * 1024;
/// Asks for permits in one message, and per [`PERMIT_ASKS_EVERY`] and node; the less endangered wait their turn.
pub const PERMIT_ASKS_MAX: usize = 64;
/// Asks for leases in one message to the authority; further ones wait for the next message, and take turns.
pub const LEASE_ASKS_MAX: usize = 2048;
/// Asks parked at the authority; one more takes the place of a less endangered one, or is dropped and comes again.
pub const PARKED_MAX: usize = 4096;
/// Parked asks looked through at a time, the most endangered first; the others wait for the next look.
pub const PERMIT_LOOKS_MAX: usize = 256;
/// Small messages to one peer in one frame; further ones begin the next.
pub const PEER_BATCH_MAX: usize = 200;
/// Segments a report lists one by one; the rest is in its counts.
pub const REPORT_SEGMENTS_MAX: usize = 256;

/// How far above what it knows to be committed a copy that is not trusted goes on when a person said that it counts: more
/// writes than a segment ever has, so that no stamp of an interrupted copy is above; a few recoveries fit.
pub const RECOVERY_GAP: u64 = 1 << 48;

/// Operations one shard has in flight on its device; further ones wait in its queue, in order.
pub const DEVICE_INFLIGHT: usize = 256;
/// Bytes of buffers each thread keeps for the next to ask; what is given up beyond goes back to the system.
pub const POOL_BYTES_MAX: usize = 16 * 1024 * 1024;
/// Longest buffer that is kept.
pub const POOL_BUFFER_MAX: usize = 2 * 1024 * 1024;
/// Bytes of the largest `persist`: a whole window adopted at once, with its overhead. A larger one is our mistake.
pub const PERSIST_BYTES_MAX: u64 = WINDOW_BYTES + 1024 * 1024;
/// Bytes after which a WAL batch takes no further `persist`; the rest goes into the next batch.
pub const BATCH_BYTES: u64 = 1024 * 1024;
/// Smallest WAL of a shard; formatting with less is refused.
pub const WAL_SIZE_MIN: u64 = 64 * 1024 * 1024;
/// Largest WAL of a shard; formatting with more is refused (the WAL bounds the store's memory).
pub const WAL_SIZE_MAX: u64 = 8 * 1024 * 1024 * 1024;
/// Problems of one shard that a look at its device lists; further ones are only counted.
pub const PROBLEMS_LISTED_MAX: usize = 1000;
/// Extents being applied at a time; the others wait for the next poll.
pub const APPLY_INFLIGHT: usize = 32;
/// Writes of applying in flight; an extent that has begun goes on beyond it.
pub const APPLY_WRITES_MAX: usize = 128;
/// So many 16ths of what comes into the WAL are applied when apply begins; the fuller the ring, the more, up to
/// [`APPLY_PACE_MAX`] where changes have to slow down. So apply is a little work beside each batch.
pub const APPLY_PACE_MIN: u64 = 16;
/// See [`APPLY_PACE_MIN`].
pub const APPLY_PACE_MAX: u64 = 64;
/// Bytes a write of applying counts for at least: a small one is more work than its bytes.
pub const APPLY_WRITE_COST: u64 = 16 * 1024;
/// Bytes that apply may be behind, or ahead of, what is due; more is not made up for.
pub const APPLY_DUE_MAX: i64 = 512 * 1024;
/// Copies being written at a time in one shard; further ones wait.
pub const COPY_IN_INFLIGHT: usize = 32;
/// Writes and page reads of a checkpoint in flight; the others wait.
pub const CHECKPOINT_INFLIGHT: usize = 16;
/// Pages of checksums one shard keeps in memory (each of 4 KiB for 3 MiB of data); the one not used for the longest time
/// makes room.
pub const SUM_PAGES_MAX: usize = 16 * 1024;
/// Slabs with checksums no checkpoint has; above it a checkpoint is taken.
pub const FRESH_SUMS_MAX: usize = 128 * 1024;
/// Damaged blocks one shard remembers by name; the others are counted.
pub const DAMAGED_LISTED_MAX: usize = 4096;
/// Bytes from which a write goes to slabs of its own, extent by extent.
pub const REDIRECT_BYTES_MIN: u64 = EXTENT_SIZE;
/// Redirected extents and copies one shard writes at a time; further ones wait (copies) or go through the WAL.
pub const LANDING_INFLIGHT: usize = 64;
/// Pieces of one vectored write, the kernel's own bound; data beyond it is gathered into one.
pub const VECTOR_MAX: usize = 1000;
/// Slabs of a shard that nobody books, so that a full device can still apply and take copies (I13).
pub const SCRATCH_SLABS_MIN: u64 = 64;
/// Bytes of one replica's state on disk; a longer one is our mistake (lists of a configuration are bounded).
pub const META_BYTES_MAX: usize = 1024;
/// Volumes of one authority; one more is refused.
pub const VOLUMES_MAX: usize = 16 * 1024;
/// Segments of one volume; a volume that would need more is refused and told to use larger segments.
pub const SEGMENTS_PER_VOLUME_MAX: u32 = 16 * 1024;
/// Segments of one authority; a volume that would exceed it is refused.
pub const SEGMENTS_MAX: usize = 256 * 1024;
/// Part of every node's capacity, per thousand, that only re-mirroring may book, where nobody stated another policy (I13).
pub const HEADROOM_PER_MILLE: u64 = 100;
/// Space is low when so much of what new volumes may book is booked, per thousand, where nobody said otherwise.
pub const SPACE_LOW_PER_MILLE: u64 = 850;
/// Headroom is short when no more than this part of it is left, per thousand, where nobody said otherwise.
pub const SPACE_SHORT_PER_MILLE: u64 = 500;
/// An alarm about space ends when so much of the capacity, per thousand, is free beyond what raised it.
pub const SPACE_HYSTERESIS_PER_MILLE: u64 = 20;
/// Replicas one node is asked to create at a time; the next follow as it confirms.
pub const CREATES_INFLIGHT: usize = 64;
/// Replicas one node is asked to drop at a time; the next follow as it confirms.
pub const RELEASES_INFLIGHT: usize = 64;
/// Fences one attach sends in one round; the next segments follow as primaries confirm.
pub const FENCES_PER_ROUND: usize = 512;
/// Segments one explanation lists; those in trouble come first, the rest is in its counts.
pub const EXPLAIN_SEGMENTS_MAX: usize = 1024;
/// Openings of a device that its node remembers beside the last one known to be taken in by the authority; of more the oldest
/// is forgotten (I9).
pub const OPENINGS_MAX: usize = 7;
/// Bytes of an address (`host:port`); a longer one is refused at registration.
pub const ADDRESS_BYTES_MAX: usize = 96;
/// Connections of one authority, nodes and HTTP together; one more is closed at once.
pub const AUTHORITY_CONNECTIONS_MAX: usize = 2048;
/// HTTP connections of one authority; one more is closed at once, so that they never crowd out the nodes.
pub const HTTP_CONNECTIONS_MAX: usize = 512;
/// Inputs of one class waiting for the authority's loop; whoever brings the next one waits, a report is dropped.
pub const AUTHORITY_QUEUE_MAX: usize = 4096;
/// Bytes of an HTTP request's body; a larger one is refused.
pub const HTTP_BODY_MAX: usize = 64 * 1024;

/// How long a member promises its primary not to help another one answer reads (I7).
pub const LEASE: Span = Span::millis(2000);
/// Stated bound on how differently two clocks run, in parts per thousand.
pub const DRIFT_PER_MILLE: u64 = 10;
/// How often a primary asks its members for their lease.
pub const BEAT_EVERY: Span = Span::millis(400);
/// A member that has not made a prepare durable by then is lost, whatever its lease says (I8).
pub const PREPARE_DEADLINE: Span = Span::millis(1500);
/// A primary not heard of for this long is suspected by its members.
pub const SILENCE: Span = Span::millis(2000);
/// Members stand for election one after the other, this far apart.
pub const ELECTION_STAGGER: Span = Span::millis(150);
/// How long an early request waits for its configuration before it is refused.
pub const EARLY_WAIT: Span = Span::millis(100);
/// How often a node that stops on purpose says so to a primary that has not answered.
pub const LEAVING_EVERY: Span = Span::millis(100);
/// A primary that leads for less than this does not hand over because a client cannot reach it.
pub const TAKE_OVER_PAUSE: Span = Span::seconds(10);
/// A client that has heard nothing of the primary for this long says so to the members it reaches.
pub const CLIENT_UNREACHABLE: Span = Span::millis(1000);
/// How often the authority looks whether the lead is spread evenly.
pub const REBALANCE_EVERY: Span = Span::seconds(2);
/// A node whose session is younger than this is not counted on when the lead is spread.
pub const REBALANCE_SETTLED: Span = Span::seconds(10);
/// A segment whose lead was to move is left alone for this long.
pub const REBALANCE_PAUSE: Span = Span::seconds(60);
/// Hand-overs the authority asks for at a time; the next with the next look.
pub const REBALANCES_PER_LOOK: usize = 32;
/// A member that was lost more often than this lately has to be quiet for a while before it is asked back.
pub const FLAPS_FREE: u32 = 2;
/// What "lately" is.
pub const FLAP_WINDOW: Span = Span::seconds(60);
/// Shortest and longest time its connection has to hold.
pub const QUIET_MIN: Span = Span::seconds(2);
/// See [`QUIET_MIN`].
pub const QUIET_MAX: Span = Span::seconds(10);
/// How long a wish for another primary stands.
pub const WISH_FOR: Span = Span::millis(1000);
/// How long a candidate for primary waits for promises of members whose connection is down.
pub const SEAL_WAIT: Span = Span::millis(250);
/// How long it waits for promises of members that are connected.
pub const SEAL_PATIENCE: Span = Span::millis(1000);
/// How long a proposal may be undecided before it is sent again.
pub const PROPOSAL_RETRY: Span = Span::millis(1000);
/// How often a batch of proposals that is not full may go when many went before ([`BATCH_BURST`]).
pub const BATCH_PAUSE: Span = Span::millis(100);
/// How often at most a node passes on which of its primaries below `min_copies` ask for a lease (I7).
pub const LEASE_ASKS_EVERY: Span = Span::millis(100);
/// How often a node passes on what its primaries ask permits for.
pub const PERMIT_ASKS_EVERY: Span = Span::millis(1000);
/// An ask its primary has not repeated for this long is passed on no more.
pub const PERMIT_ASK_STALE: Span = Span::seconds(5);
/// How often time is handed to machines that wait for it.
pub const TICK: Span = Span::millis(20);
/// How often a node reports to the authority.
pub const REPORT_EVERY: Span = Span::millis(1000);
/// How often at most the authority tells a node its revision, and a node writes a new one to its device (I11).
pub const REVISION_EVERY: Span = Span::millis(2000);
/// A node not heard of for this long is not "in touch" with the authority.
pub const NODE_SILENCE: Span = Span::millis(4000);
/// A permit or reservation nobody renewed for this long ends (R4).
pub const PERMIT_TTL: Span = Span::seconds(30);
/// First and longest pause between attempts to reach a peer (decorrelated jitter, R5).
pub const REDIAL_MIN: Span = Span::millis(20);
/// See [`REDIAL_MIN`].
pub const REDIAL_MAX: Span = Span::millis(2000);
/// Shortest and longest pause of a client before it tries again: at first it is quick, so that failovers are.
pub const RETRY_MIN: Span = Span::millis(20);
/// See [`RETRY_MIN`].
pub const RETRY_MAX: Span = Span::millis(500);
/// A client that waited this long for a reply asks other members whether the configuration changed.
pub const CLIENT_PATIENCE: Span = Span::millis(500);
/// A client that waited this long for a reply starts a new session and sends everything again.
pub const CLIENT_RESEND_AFTER: Span = Span::seconds(10);
/// A connection whose handshake is not done by then is closed.
pub const HELLO_DEADLINE: Span = Span::millis(3000);
/// A frame whose first byte came this long ago and which is not whole closes its connection.
pub const FRAME_DEADLINE: Span = Span::seconds(10);
/// A connection that takes no byte of what waits for it for this long is closed.
pub const WRITE_STALL_MAX: Span = Span::seconds(10);
/// A host that acknowledges nothing for this long is gone: the kernel closes the connection.
pub const SOCKET_SILENCE_MAX: Span = Span::seconds(10);
/// First and longest pause between attempts to bring a former member back.
pub const INVITE_MIN: Span = Span::millis(100);
/// See [`INVITE_MIN`].
pub const INVITE_MAX: Span = Span::seconds(5);
/// An NBD handshake that takes longer ends with the connection closed.
pub const NBD_HANDSHAKE: Span = Span::seconds(10);
/// How long a closing NBD connection waits for its client to take the replies, and a stopping server for its requests.
pub const NBD_FAREWELL: Span = Span::seconds(5);
/// Messages of proposals that wait while the authority waits for its nodes; who is lost among them proposes again.
pub const STANDSTILL_MESSAGES_MAX: usize = 4 * NODES_MAX;
/// Calls that wait meanwhile; further ones are answered at once.
pub const STANDSTILL_CALLS_MAX: usize = 256;
/// How long they do; nodes come back to a restarted authority sooner.
pub const STANDSTILL_PATIENCE: Span = Span::seconds(5);
/// How often time is handed to the authority's machine.
pub const AUTHORITY_TICK: Span = Span::millis(100);
/// How often an attach repeats its fences.
pub const FENCE_EVERY: Span = Span::millis(100);
/// A call that waits for nodes (create, resize, attach, detach) is answered `timeout` after this.
pub const CALL_LIMIT: Span = Span::seconds(30);
/// An HTTP request not answered by then is answered `timeout`, its connection closed.
pub const HTTP_DEADLINE: Span = Span::seconds(40);
/// A connection that has not shown within this time whether it is a node or HTTP is closed.
pub const SNIFF_DEADLINE: Span = Span::seconds(5);
/// How often an unconfirmed release is said again.
pub const RELEASE_RETRY: Span = Span::seconds(5);
/// A target that has not answered a reservation by then is passed over.
pub const RESERVE_WAIT: Span = Span::seconds(3);
/// A node without a session is shown as unreachable after this, before it counts as out of touch.
pub const SESSION_GRACE: Span = Span::millis(1000);
/// From the start of one scrub to that of the next; a longer one is followed by the next at once.
pub const SCRUB_EVERY: Span = Span::seconds(7 * 24 * 3600);
/// Longest a primary waits for what its members say about an extent.
pub const COMPARE_PATIENCE: Span = Span::millis(1000);
/// Until an extent is compared again that could not be: a commit point travels with the next beat at the latest.
pub const COMPARE_PAUSE: Span = Span::millis(150);
/// From a shard's start to its first scrub.
pub const SCRUB_AFTER_START: Span = Span::seconds(600);
/// So much later at most: the nodes of a cluster do not scrub in step.
pub const SCRUB_SPREAD: Span = Span::seconds(3600);

const _: () = assert!(usize::BITS == 64, "lengths of 64 bits are used as indices");
const _: () = assert!(EXTENT_SIZE == BLOCK_SIZE * EXTENT_BLOCKS as u64);
const _: () = assert!(CHUNK_SIZE.is_multiple_of(EXTENT_SIZE));
const _: () = assert!(SEGMENT_SIZE_MIN.is_multiple_of(CHUNK_SIZE));
const _: () = assert!(SEGMENT_SIZE_MAX / BLOCK_SIZE <= u32::MAX as u64, "BlockIndex is a u32");
const _: () = assert!(REQUEST_BYTES_MAX <= WINDOW_BYTES, "one request always fits an empty window");
const _: () = assert!(REQUEST_BYTES_MAX <= FRAME_PAYLOAD_MAX as u64);
const _: () =
    assert!(OUTBOX_BYTES_MAX >= 2 * (FRAME_PAYLOAD_MAX + FRAME_BODY_MAX), "a largest frame never waits for ever");
const _: () = assert!((FRAME_PAYLOAD_MAX as u64).is_multiple_of(BLOCK_SIZE) && TEXT_BYTES_MAX < HELLO_BODY_MAX);
const _: () = assert!(CLIENT_REQUESTS_MAX <= OUTBOX_MAX && CLIENT_BYTES_MAX < OUTBOX_BYTES_MAX, "one client fits");
const _: () = assert!(CLIENT_INFLIGHT_MAX <= WAITING_MAX && CLIENT_BYTES_MAX as u64 >= REQUEST_BYTES_MAX);
const _: () = assert!(RETRY_MIN.0 < RETRY_MAX.0 && CLIENT_PATIENCE.0 < CLIENT_RESEND_AFTER.0);
const _: () = assert!(WISH_FOR.0 < REBALANCE_EVERY.0 && QUIET_MIN.0 < QUIET_MAX.0 && QUIET_MAX.0 < FLAP_WINDOW.0);
const _: () = assert!(FAIR_TURN <= FAIR_IN_HAND && FAIR_WAITING_BYTES >= REQUEST_BYTES_MAX + BLOCK_SIZE, "one fits");
const _: () = assert!(FAIR_PATIENCE.0 < CLIENT_PATIENCE.0, "nobody seems to be lost meanwhile");
const _: () =
    assert!((COMPARE_TRIES as u64 - 1) * COMPARE_PAUSE.0 > BEAT_EVERY.0, "a member hears of the commit point");
const _: () = assert!(COMPARES_WAITING >= SCRUB_INFLIGHT, "what a scrub has read at a time is compared");
const _: () = assert!(BEAT_EVERY.0 * 3 < LEASE.0, "a lease survives two lost beats");
const _: () = assert!(LEASE_ASKS_EVERY.0 * 2 < BEAT_EVERY.0 && LEASE_ASKS_MAX <= LIST_MAX, "nor is one missed here");
const _: () = assert!(SILENCE.0 >= LEASE.0, "whoever suspects has let his own lease end");
const _: () = assert!(DEVICES_MAX <= LIST_MAX && DEVICES_MAX <= SHARDS_MAX as usize);
const _: () = assert!(NODE_SILENCE.0 >= 3 * REPORT_EVERY.0);
const _: () = assert!(PERMITS_PER_TARGET <= PERMITS_PER_ZONE && PERMITS_PER_SOURCE <= PERMITS_PER_ZONE);
const _: () = assert!(0 < PERMITS_PER_ZONE_HALF_OPEN && PERMITS_PER_ZONE_HALF_OPEN < PERMITS_PER_ZONE);
const _: () = assert!(NODE_SILENCE.0 + BREAKER_EVERY.0 < BREAKER_SETTLE.0, "who is out of touch is known by then");
const _: () = assert!(BREAKER_ZONE_WHOLE_MIN > 1 && BREAKER_NODES_MIN > 1, "one node is no storm");
const _: () = assert!(BREAKER_CALM.0 <= BREAKER_STABLE.0 && BREAKER_EVERY.0 < BREAKER_CALM.0);
const _: () = assert!(REPORT_SEGMENTS_MAX <= LIST_MAX && COPY_PAGE <= LIST_MAX && WINDOW_ENTRIES <= LIST_MAX);
const _: () = assert!(PROPOSALS_MAX <= LIST_MAX && PERMIT_ASKS_MAX <= LIST_MAX && PEER_BATCH_MAX <= LIST_MAX);
const _: () = assert!(BATCH_BODY_MAX + META_BYTES_MAX + TEXT_BYTES_MAX <= FRAME_BODY_MAX);
const _: () = assert!(PEER_BATCH_MAX * (META_BYTES_MAX + 256) <= FRAME_BODY_MAX);
const _: () = assert!(PERMIT_ASKS_EVERY.0 * 3 < PERMIT_ASK_STALE.0 && PERMIT_ASK_STALE.0 < PERMIT_TTL.0);
const _: () = assert!(NBD_BYTES_MAX >= REQUEST_BYTES_MAX && NBD_BYTES_MAX <= u32::MAX as u64 / 2);
const _: () = assert!(NBD_BYTES_MAX.is_multiple_of(BLOCK_SIZE), "a connection's bytes are counted in blocks");
const _: () =
    assert!(8 * NBD_EXTENTS_MAX as u64 <= NBD_BYTES_MAX, "an answer about allocation fits an empty connection");
const _: () = assert!(
    APPLY_WRITES_MAX + EXTENT_BLOCKS as usize <= DEVICE_INFLIGHT * 3 / 4,
    "a WAL batch never waits in the device's queue because of what is applied"
);
const _: () =
    assert!(0 < APPLY_PACE_MIN && APPLY_PACE_MIN <= 16 && APPLY_PACE_MAX > 16, "the ring finds its level in between");
const _: () = assert!(PERSIST_BYTES_MAX <= WAL_SIZE_MIN / 7, "the largest persist always fits an empty WAL");
const _: () = assert!(BATCH_BYTES <= PERSIST_BYTES_MAX && WAL_SIZE_MIN <= WAL_SIZE_MAX);
const _: () =
    assert!(SCRATCH_SLABS_MIN >= APPLY_INFLIGHT as u64 + COPY_IN_INFLIGHT as u64, "what is in flight fits scratch");
const _: () = assert!(NODES_MAX + HTTP_CONNECTIONS_MAX <= AUTHORITY_CONNECTIONS_MAX, "HTTP never crowds out the nodes");
const _: () = assert!(NODES_MAX <= LIST_MAX, "the list of nodes fits a message");
const _: () = assert!(ALLOCATION_BLOCKS_MAX as usize <= LIST_MAX, "and the runs of one answer");
const _: () = assert!(NODES_MAX * (2 * ADDRESS_BYTES_MAX + 16) <= FRAME_BODY_MAX, "and its frame");
const _: () = assert!(REQUEST_BYTES_MAX <= 1 << 20, "one request is at most a second under 1 MiB per second");
const _: () = assert!(CALL_LIMIT.0 < HTTP_DEADLINE.0, "the core's answer comes before the connection's end");
const _: () = assert!(CREATES_INFLIGHT + RELEASES_INFLIGHT + FENCES_PER_ROUND < OUTBOX_MAX);
const _: () = assert!(HEADROOM_PER_MILLE < 1000 && SPACE_LOW_PER_MILLE <= 1000 && SPACE_SHORT_PER_MILLE <= 1000);
const _: () = assert!(SESSION_GRACE.0 <= NODE_SILENCE.0 && RESERVE_WAIT.0 < PERMIT_TTL.0);
