//! Who are you: the first frame each way, before anything else is believed.
//!
//! Whoever dialled says `Hello`; the answer is `Welcome` or `Reject` with a reason for people. Both name the cluster,
//! so that two clusters on one network never mix; both name the process's boot, so that a peer that restarted is seen
//! to have restarted. A node that was never part of a cluster says `ClusterId(0)`; only the authority takes it in.
//! The whole handshake has one deadline, and its frames are small and without payload: a stranger costs next to
//! nothing.

use std::time::Duration;

use engine_core::ids::{BootId, ClusterId, NodeId};
use engine_core::limits::HELLO_DEADLINE;
use engine_core::message::Lane;
use tokio::net::TcpStream;

use super::codec::frame::{Kind, VERSION};
use super::codec::{Wire, decode, encode};
use super::link::{Halves, Link, Stream};
use super::outbox::write_frame;
use super::{Malformed, WireError};

/// Which of the two networks a connection runs over (R8).
#[derive(Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash, Debug)]
pub enum Network {
    /// The fast one, for everything.
    Primary,
    /// The small one: never for bulk.
    Replication,
}

/// Who dialled.
#[derive(Clone, PartialEq, Eq, Debug)]
pub enum Who {
    /// A storage node.
    Node {
        /// Its id.
        id: NodeId,
        /// This run of its process.
        boot: BootId,
        /// How many shards it has.
        shards: u16,
        /// What the connection is for. A connection with the authority says `Live`.
        lane: Lane,
        /// Which network it was dialled over.
        network: Network,
    },
    /// A volume's client.
    Client {
        /// For people.
        name: String,
    },
}

/// First frame of whoever dialled.
#[derive(Clone, PartialEq, Eq, Debug)]
pub struct Hello {
    /// The cluster it belongs to; `ClusterId(0)` is "none yet".
    pub cluster: ClusterId,
    /// Who it is.
    pub who: Who,
}

/// Answer to a hello that is welcome.
#[derive(Clone, PartialEq, Eq, Debug)]
pub struct Welcome {
    /// The cluster.
    pub cluster: ClusterId,
    /// The node that answers; `None` is the authority.
    pub node: Option<NodeId>,
    /// This run of its process.
    pub boot: BootId,
    /// How many shards it has; 0 for the authority.
    pub shards: u16,
}

/// Answer to a hello that is not.
#[derive(Clone, PartialEq, Eq, Debug)]
pub(super) struct Reject {
    pub(super) reason: String,
}

/// Who answers hellos: a node (`node: Some`) or the authority.
pub type Local = Welcome;

/// Connects to `address` (`host:port`) and shakes hands, all within `deadline`. The caller compares `Welcome::node`
/// with whom it wanted to reach.
pub async fn dial(address: &str, hello: &Hello, deadline: Duration) -> Result<(Welcome, Link), WireError> {
    let connect = async {
        let stream = TcpStream::connect(address).await?;
        greet(stream, hello).await
    };
    tokio::time::timeout(deadline, connect).await.unwrap_or(Err(WireError::Slow("no connection within the deadline")))
}

/// Says hello over an established stream and waits for the answer, as long as the caller lets it.
pub async fn greet<S: Stream>(stream: S, hello: &Hello) -> Result<(Welcome, Link), WireError> {
    stream.tune()?;
    let mut halves = Halves::new(stream);
    halves.send(Kind::Hello, hello).await?;
    let (kind, body) = halves.inbound.handshake_frame().await?;
    match kind {
        Kind::Welcome => {
            let welcome: Welcome = decode(&body, bytes::Bytes::new())?;
            if hello.cluster != ClusterId(0) && welcome.cluster != hello.cluster {
                return Err(WireError::Unwelcome(format!(
                    "whoever answered belongs to cluster {}, not {}",
                    welcome.cluster, hello.cluster
                )));
            }
            Ok((welcome, halves.into_link()))
        }
        Kind::Reject => Err(WireError::Rejected(decode::<Reject>(&body, bytes::Bytes::new())?.reason)),
        _ => Err(Malformed("the answer to a hello is neither welcome nor reject").into()),
    }
}

/// Answers the handshake of a connection that was accepted. The error is the caller's to log; the other side has been
/// told already.
pub async fn accept<S: Stream>(stream: S, local: &Local) -> Result<(Hello, Link), WireError> {
    accept_if(stream, local, |_| Ok(())).await
}

/// As [`accept`], for hellos that also pass `check`; its `Err` is the reason the other side is told.
pub async fn accept_if<S: Stream>(
    stream: S,
    local: &Local,
    check: impl FnOnce(&Hello) -> Result<(), String>,
) -> Result<(Hello, Link), WireError> {
    let deadline = Duration::from_nanos(HELLO_DEADLINE.0);
    tokio::time::timeout(deadline, answer(stream, local, check))
        .await
        .unwrap_or(Err(WireError::Slow("no handshake within the deadline")))
}

async fn answer<S: Stream>(
    stream: S,
    local: &Local,
    check: impl FnOnce(&Hello) -> Result<(), String>,
) -> Result<(Hello, Link), WireError> {
    stream.tune()?;
    let mut halves = Halves::new(stream);
    let hello = match halves.inbound.handshake_frame().await {
        Ok((Kind::Hello, body)) => decode::<Hello>(&body, bytes::Bytes::new()).map_err(WireError::from),
        Ok(_) => Err(Malformed("the first frame is not a hello").into()),
        Err(error) => Err(error),
    };
    let verdict = hello.and_then(|hello| {
        let refused = objection(&hello, local).map_or_else(|| check(&hello), Err);
        refused.map_err(WireError::Unwelcome).map(|()| hello)
    });
    match verdict {
        Ok(hello) => {
            halves.send(Kind::Welcome, local).await?;
            Ok((hello, halves.into_link()))
        }
        Err(error) => {
            let reason = match &error {
                WireError::Unwelcome(reason) => reason.clone(),
                WireError::Malformed(malformed) => malformed.to_string(),
                WireError::Version(theirs) => format!("this side speaks version {VERSION}, the hello version {theirs}"),
                _ => return Err(error),
            };
            // Best effort: what matters is that the connection ends.
            let _ = halves.send(Kind::Reject, &Reject { reason }).await;
            halves.finish().await;
            Err(error)
        }
    }
}

fn objection(hello: &Hello, local: &Local) -> Option<String> {
    let stranger = hello.cluster == ClusterId(0);
    if stranger && local.node.is_some() {
        return Some("only the authority takes in a process without a cluster".into());
    }
    if !stranger && hello.cluster != local.cluster {
        return Some(format!("this is cluster {}, the hello is of cluster {}", local.cluster, hello.cluster));
    }
    None
}

impl Halves {
    async fn send<T: Wire>(&mut self, kind: Kind, value: &T) -> Result<(), WireError> {
        let frame = encode(kind, value).map_err(|unsendable| Malformed(unsendable.0))?;
        write_frame(&mut self.writer, frame).await
    }
}
