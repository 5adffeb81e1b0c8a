//! From a configuration to a running node, and to its end.
//!
//! The order is the safety argument: addresses are taken and every check of the device and of the cluster is made
//! before the first byte is written; the boot is counted durably before any replica is opened (I9); no replica goes
//! to work before the authority has had its say about this node, or has not answered for a while (R20).

use std::net::{SocketAddr, TcpListener};
use std::rc::Rc;
use std::sync::Arc;

use engine_core::ids::{BootId, ClusterId, DeviceId, Revision};
use engine_core::limits::{
    DEVICES_MAX, GRACE_DEFAULT, INBOX_MAX, OUTBOX_MAX, REDIAL_MAX, REDIAL_MIN, REGISTER_WAIT, STOP_WAIT, STRANGERS_MAX,
};
use engine_core::message::{NodeAddress, Registration};
use engine_core::remirror::backoff::Backoff;
use engine_core::time::Span;
use tokio::sync::{mpsc, oneshot, watch};
use tokio::time::timeout;

use super::authority::{self, RefusedByAuthority, Session, TakenIn, Told};
use super::clock::{duration, seed};
use super::config::{Config, ConfigError};
use super::devices::{self, Devices};
use super::hold::HoldError;
use super::listen::{self, Arrival, Doors};
use super::mail::{Mail, ShardBox, shard_box};
use super::memory;
use super::routes::{Pilot, Routes};
use super::thread::{self, Crew, Plan};
use crate::wire::{Local, Network, WireError};

/// Why a node did not start or had to end. Nothing was written unless it says so.
#[derive(Debug, thiserror::Error)]
pub enum StartError {
    /// Wrong flags or configuration file.
    #[error(transparent)]
    Config(#[from] ConfigError),
    /// An address cannot be listened on.
    #[error("cannot listen on {name} {address}: {error}. Nothing was written; is another noded running there?")]
    Listen {
        /// Which of the two.
        name: &'static str,
        /// As configured.
        address: SocketAddr,
        /// Why.
        error: std::io::Error,
    },
    /// The device cannot be used.
    #[error(transparent)]
    Device(#[from] HoldError),
    /// None of its devices answers.
    #[error("none of the devices can be used: {0}")]
    NoDevice(String),
    /// The authority does not take this node in.
    #[error("{0}. Nothing is served")]
    Refused(String),
    /// The operating system does not give what a process needs.
    #[error("the operating system refuses: {0}")]
    Runtime(std::io::Error),
    /// A shard could not begin or has ended.
    #[error("shard {shard}: {reason}")]
    Shard {
        /// Which.
        shard: u16,
        /// Why.
        reason: String,
    },
}

impl StartError {
    /// The process's exit code (DESIGN 8).
    #[must_use]
    pub fn exit_code(&self) -> u8 {
        match self {
            Self::Config(_) => 2,
            Self::Device(error) => error.exit_code(),
            Self::Refused(_) => 5,
            Self::NoDevice(_) | Self::Listen { .. } | Self::Runtime(_) | Self::Shard { .. } => 1,
        }
    }
}

/// Runs a node until `stop` is ready or it cannot go on. Must be called inside a `LocalSet`.
pub async fn run(config: Config, stop: impl Future<Output = ()>) -> Result<(), StartError> {
    let mut stop = std::pin::pin!(stop);
    let primary = bind("primary_addr", config.primary)?;
    let replication = bind("replication_addr", config.replication)?;
    let boot = BootId(random_u128());
    let (mut devices, local) = tokio::select! {
        found = find_devices(&config, boot) => found?,
        () = &mut stop => return Ok(()),
    };
    let routes = Arc::new(devices.routes());

    let (boxes, inboxes): (Vec<ShardBox>, Vec<_>) = (0..local.shards).map(|_| shard_box()).unzip();
    let (to_authority, outgoing) = mpsc::channel(OUTBOX_MAX);
    let (addresses, addresses_seen) = watch::channel(Default::default());
    let doors = Doors::default();
    let revision = devices.revision();
    let (told, was_told) = watch::channel(Told { revision, taken: Vec::new() });
    let plan = Plan {
        devices: devices.list.iter().map(|device| (device.file.clone(), device.superblock)).collect(),
        routes: Arc::clone(&routes),
        local: local.clone(),
        boxes: boxes.clone(),
        to_authority,
        addresses: addresses_seen,
    };
    let mut crew = thread::spawn(&plan, inboxes, &doors)?;
    tokio::select! {
        opened = devices.open(&mut crew, &routes, &boxes) => opened?,
        () = &mut stop => return finish(&boxes, &mut crew).await,
    }
    let (at_work, arrivals) = crew.deal(&boxes);
    thread::set_memory_aside(devices.served().map(|device| device.superblock.geometry));

    let (registered, has_registered) = oneshot::channel();
    let (leave_out, left_out) = mpsc::channel(DEVICES_MAX);
    let session = Session {
        authority: config.authority.clone(),
        local,
        registration: registration(&config, &devices, revision, &primary, &replication)?,
        opened: devices.list.iter().map(|device| device.superblock.device).collect(),
        pilot: Rc::new(Pilot::new(Arc::clone(&routes))),
        shards: boxes.clone(),
        outgoing,
        addresses,
        registered: Some(registered),
        left_out,
        told,
        damaged_copies: devices.damaged_copies(),
    };
    let mut session = std::pin::pin!(session.run());
    let grace = tokio::select! {
        refused = &mut session => return Err(refuse(&refused)),
        grace = find_trust(has_registered, &boxes, &routes, &mut devices, boot, &leave_out) => grace?,
        () = &mut stop => return finish(&boxes, &mut crew).await,
        ended = crew.ended() => return Err(ended),
    };
    for device in devices.served() {
        tokio::task::spawn_local(memory::keep(device.file.clone(), device.superblock, boot, was_told.clone()));
    }
    serve(&at_work, grace).await;
    let listeners = open_doors([(primary, Network::Primary), (replication, Network::Replication)], &doors, arrivals)?;
    // The session goes on while the node leaves: without the authority nothing is handed over.
    tokio::select! {
        refused = &mut session => return Err(refuse(&refused)),
        ended = crew.ended() => return Err(ended),
        () = leave(stop, &at_work) => {}
    }
    close(listeners).await;
    finish(&boxes, &mut crew).await
}

/// What the devices are, and which cluster this is; nothing is written until both are known. Then they are this node's.
async fn find_devices(config: &Config, boot: BootId) -> Result<(Devices, Local), StartError> {
    let looked = devices::look(config).await?;
    let local = Local { cluster: looked.cluster(), node: Some(config.id), boot, shards: looked.shards()? };
    let cluster = find_cluster(&config.authority, &local).await?;
    let devices = looked.take(config, cluster, boot).await?;
    let local = Local { cluster, shards: devices.shards(), ..local };
    Ok((devices, local))
}

/// Lets the machines go to work.
async fn serve(boxes: &[ShardBox], grace: Span) {
    for shard in boxes {
        // A shard that is over says so to whoever waits for its end.
        let _ = shard.work.send(Mail::Serve { grace }).await;
    }
}

/// Lets connections in from now on.
fn open_doors(
    listeners: [(TcpListener, Network); 2],
    doors: &Doors,
    arrivals: Vec<mpsc::Sender<Arrival>>,
) -> Result<Vec<tokio::task::JoinHandle<()>>, StartError> {
    let arrivals = Rc::new(arrivals);
    let mut listening = Vec::new();
    for (listener, network) in listeners {
        let listener = tokio::net::TcpListener::from_std(listener).map_err(StartError::Runtime)?;
        let listen = listen::listen(listener, network, doors.clone(), Rc::clone(&arrivals));
        listening.push(tokio::task::spawn_local(listen));
    }
    Ok(listening)
}

/// From here on whoever comes is refused at once, not accepted by a process that is about to end.
async fn close(listeners: Vec<tokio::task::JoinHandle<()>>) {
    for listener in listeners {
        listener.abort();
        // Its end closes the socket; that it was aborted is no news.
        let _ = listener.await;
    }
}

/// Waits until the authority has taken this node in, or has not answered for a while (R20); what it does not trust is
/// not trusted here, durably, before the boot counter goes up (I9). Gives the grace time.
async fn find_trust(
    has_registered: oneshot::Receiver<TakenIn>,
    boxes: &[ShardBox],
    routes: &Routes,
    devices: &mut Devices,
    id: BootId,
    leave_out: &mpsc::Sender<(DeviceId, String)>,
) -> Result<Span, StartError> {
    let Ok(Ok(taken)) = timeout(duration(REGISTER_WAIT), has_registered).await else {
        tracing::warn!("the authority has not answered; the replicas here go to work without it");
        return Ok(GRACE_DEFAULT);
    };
    for unwritten in devices.heed(&taken.devices, id, routes, boxes).await? {
        // There is room for each of them; the session outlives this.
        let _ = leave_out.try_send(unwritten);
    }
    Ok(taken.grace)
}

fn refuse(refused: &RefusedByAuthority) -> StartError {
    StartError::Refused(refused.to_string())
}

fn bind(name: &'static str, address: SocketAddr) -> Result<TcpListener, StartError> {
    let bound = TcpListener::bind(address).and_then(|listener| {
        listener.set_nonblocking(true)?;
        Ok(listener)
    });
    bound.map_err(|error| StartError::Listen { name, address, error })
}

/// The cluster this node belongs to: its device's, unless the authority says that it is another one. A device without
/// a cluster waits for the authority.
async fn find_cluster(authority: &str, local: &Local) -> Result<ClusterId, StartError> {
    let mut backoff = Backoff::new(REDIAL_MIN, REDIAL_MAX, seed());
    let mut told = false;
    loop {
        match authority::ask_cluster(authority, local).await {
            Ok(cluster) => return Ok(cluster),
            Err(WireError::Rejected(reason) | WireError::Unwelcome(reason)) => {
                return Err(StartError::Refused(format!(
                    "the authority at {authority} refuses this node: {reason}; nothing was written"
                )));
            }
            Err(error) if local.cluster != ClusterId(0) => {
                tracing::warn!(%authority, %error, "the authority cannot be reached; the device's cluster is taken as right");
                return Ok(local.cluster);
            }
            Err(error) => {
                if !std::mem::replace(&mut told, true) {
                    tracing::warn!(%authority, %error, "waiting for the authority, to learn which cluster this is");
                }
            }
        }
        tokio::time::sleep(duration(backoff.pause())).await;
    }
}

fn registration(
    config: &Config,
    devices: &Devices,
    revision: Revision,
    primary: &TcpListener,
    replication: &TcpListener,
) -> Result<Registration, StartError> {
    let address = |listener: &TcpListener| listener.local_addr().map(|at| at.to_string()).map_err(StartError::Runtime);
    let shards = devices.served().map(|device| device.superblock.geometry.shards).sum();
    let (devices, absent) = devices.registered();
    Ok(Registration {
        address: NodeAddress {
            node: config.id,
            primary: address(primary)?,
            replication: address(replication)?,
            shards,
        },
        zone: config.zone.clone(),
        devices,
        absent,
        revision,
    })
}

/// Tells every shard, and waits until each has answered.
async fn tell(boxes: &[ShardBox], mail: impl Fn(oneshot::Sender<()>) -> Mail) {
    let mut answers = Vec::new();
    for shard in boxes {
        let (done, is_done) = oneshot::channel();
        if shard.work.send(mail(done)).await.is_ok() {
            answers.push(is_done);
        }
    }
    for answer in answers {
        // A shard that is over has nothing left to do.
        let _ = answer.await;
    }
}

/// When asked to stop: what this node leads is handed over, what it holds goes on without it. It serves meanwhile.
async fn leave(stop: impl Future<Output = ()>, boxes: &[ShardBox]) {
    stop.await;
    tracing::info!("stopping: handing over what this node leads, leaving what it holds");
    if timeout(duration(STOP_WAIT), tell(boxes, Mail::Leave)).await.is_err() {
        tracing::warn!("not everything could be handed over in time; the others take over when this node is gone");
    }
}

/// Stores leave everything ready for a quick restart.
async fn finish(boxes: &[ShardBox], crew: &mut Crew) -> Result<(), StartError> {
    tracing::info!("stopping");
    if timeout(duration(STOP_WAIT) * 2, tell(&crew.working(boxes), Mail::Stop)).await.is_err() {
        tracing::warn!("not everything became quiet in time; the next start reads more of the log");
    }
    crew.gone().await;
    Ok(())
}

fn random_u128() -> u128 {
    (u128::from(seed()) << 64) | u128::from(seed())
}

const _: () = assert!(STRANGERS_MAX <= INBOX_MAX);
