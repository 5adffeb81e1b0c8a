//! The node's session with the authority: one connection, kept for as long as the node runs.
//!
//! Nothing here is needed to serve: while the authority is away replicas go on with what they know (R20), addresses
//! of peers are kept, and messages for it are dropped, because whoever sent them asks again.

use std::rc::Rc;
use std::sync::Arc;
use std::time::Duration;

use engine_core::gather::Gather;
use engine_core::ids::{ClusterId, DeviceId, Revision};
use engine_core::limits::{HELLO_DEADLINE, REDIAL_MAX, REDIAL_MIN, REGISTER_WAIT, TEXT_BYTES_MAX, TURN_MAX};
use engine_core::message::{
    Decision, DeviceJudged, FromAuthority, Judgement, Lane, LeaseAsk, NodeAddress, Registration, ToAuthority,
};
use engine_core::openings::Opening;
use engine_core::remirror::backoff::Backoff;
use engine_core::time::{Span, Time};
use tokio::sync::{mpsc, oneshot, watch};
use tokio::task::JoinHandle;

use super::clock::{duration, now, seed};
use super::harbour::Addresses;
use super::mail::{Mail, ShardBox};
use super::report::{self, Served};
use super::routes::{Pilot, Way};
use crate::wire::{self, Hello, Inbound, Local, Message, Network, Outbox, Who, WireError};

/// Why a node ends that went to work before the authority could tell it.
const ROLLED_BACK: &str = "an older state of this device is back and was opened before the authority could say so; \
    start this node again: then its replicas come back by catch-up";

/// The authority does not want this node.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
#[error("the authority refuses this node: {0}")]
pub(crate) struct RefusedByAuthority(pub(crate) String);

/// Everything a session needs.
#[derive(Debug)]
pub(crate) struct Session {
    /// `host:port`.
    pub(crate) authority: String,
    pub(crate) local: Local,
    pub(crate) registration: Registration,
    /// The devices that were opened, in the order of their shards.
    pub(crate) opened: Vec<DeviceId>,
    pub(crate) pilot: Rc<Pilot>,
    pub(crate) shards: Vec<ShardBox>,
    /// From the shards.
    pub(crate) outgoing: mpsc::Receiver<ToAuthority>,
    pub(crate) addresses: watch::Sender<Addresses>,
    /// Given once: what the authority said when this node was first taken in.
    pub(crate) registered: Option<oneshot::Sender<TakenIn>>,
    /// Devices that are not served after all, and why: the authority is to take this node without them.
    pub(crate) left_out: mpsc::Receiver<(DeviceId, String)>,
    /// What is to be remembered of what the authority said.
    pub(crate) told: watch::Sender<Told>,
    /// Copies of the superblock found damaged when the device was opened.
    pub(crate) damaged_copies: u64,
}

/// What the device has to remember of what the authority said, for the next start.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(crate) struct Told {
    /// The highest revision heard of (I11).
    pub(crate) revision: Revision,
    /// The devices of which the authority has taken this opening in, as sound (I9).
    pub(crate) taken: Vec<DeviceId>,
}

/// What the authority says to a node that it takes in.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(crate) struct TakenIn {
    /// Grace time of the cluster.
    pub(crate) grace: Span,
    /// What it says of each device (I9).
    pub(crate) devices: Vec<DeviceJudged>,
}

/// What a hello to the authority says.
#[must_use]
pub(crate) fn hello(local: &Local) -> Option<Hello> {
    let who = Who::Node {
        id: local.node?,
        boot: local.boot,
        shards: local.shards,
        lane: Lane::Live,
        network: Network::Primary,
    };
    Some(Hello { cluster: local.cluster, who })
}

/// Asks the authority which cluster it is; `local.cluster` may be `ClusterId(0)`.
pub(crate) async fn ask_cluster(authority: &str, local: &Local) -> Result<ClusterId, WireError> {
    let hello = hello(local).ok_or_else(|| WireError::Unwelcome("not a node".into()))?;
    let (welcome, link) = wire::dial(authority, &hello, duration(HELLO_DEADLINE)).await?;
    drop(link);
    // Its task ends now, not only after the device has been made ready.
    tokio::task::yield_now().await;
    Ok(welcome.cluster)
}

/// Stops a task when its owner goes.
struct Stopped(JoinHandle<()>);

impl Drop for Stopped {
    fn drop(&mut self) {
        self.0.abort();
    }
}

impl Session {
    /// Keeps the session for ever; ends only if the authority refuses this node before it has ever taken it, or finds
    /// out too late that its device was rolled back.
    pub(crate) async fn run(mut self) -> RefusedByAuthority {
        let mut backoff = Backoff::new(REDIAL_MIN, REDIAL_MAX, seed());
        let Some(hello) = hello(&self.local) else { return RefusedByAuthority("not a node".into()) };
        let mut quiet = false;
        loop {
            match wire::dial(&self.authority, &hello, duration(HELLO_DEADLINE)).await {
                Ok((_, link)) => {
                    let (inbound, outbox) = link.split();
                    match self.talk(inbound, &outbox, &mut backoff).await {
                        Ended::Refused(reason) if self.registered.is_some() => return RefusedByAuthority(reason),
                        Ended::RolledBack => return RefusedByAuthority(ROLLED_BACK.into()),
                        Ended::Refused(reason) => {
                            tracing::error!(%reason, "the authority refuses this node now; it goes on serving");
                        }
                        Ended::Broken(error) => tracing::warn!(%error, "the connection to the authority is gone"),
                    }
                    quiet = false;
                }
                Err(WireError::Rejected(reason)) if self.registered.is_some() => return RefusedByAuthority(reason),
                Err(error) => {
                    if !std::mem::replace(&mut quiet, true) {
                        tracing::warn!(authority = %self.authority, %error, "the authority cannot be reached; trying on");
                    }
                }
            }
            self.wait(duration(backoff.pause())).await;
        }
    }

    /// Waits, while messages for an authority that is away are dropped.
    async fn wait(&mut self, pause: Duration) {
        let until = tokio::time::Instant::now() + pause;
        while let Ok(Some(_)) = tokio::time::timeout_at(until, self.outgoing.recv()).await {}
        tokio::time::sleep_until(until).await;
    }

    /// One connection, from registering to its end.
    async fn talk(&mut self, mut inbound: Inbound, outbox: &Outbox, backoff: &mut Backoff) -> Ended {
        let register = ToAuthority::Register(self.registration.clone());
        if let Err(error) = outbox.try_send(&Message::ToAuthority(register)) {
            return Ended::Broken(WireError::Unwelcome(error.to_string()));
        }
        let mut reporter = None;
        let patience = tokio::time::sleep(duration(REGISTER_WAIT));
        tokio::pin!(patience);
        let mut gather = Gather::new();
        let (mut taken, mut open) = (Vec::new(), true);
        loop {
            let said = tokio::select! {
                said = inbound.next() => Some(said),
                Some((device, why)) = self.left_out.recv() => {
                    self.leave_out(device, &Judgement::Refused(why));
                    return Ended::Broken(WireError::Unwelcome(format!("registering again, without device {device}")));
                }
                count = self.outgoing.recv_many(&mut taken, TURN_MAX), if open => {
                    open = count > 0;
                    None
                }
                () = due(gather.wake_at()), if reporter.is_some() => None,
                () = &mut patience, if reporter.is_none() => {
                    return Ended::Broken(WireError::Slow("no answer to the registration"));
                }
            };
            if let Some(Ok(Message::FromAuthority(said))) = &said {
                gather.hear(said);
            }
            // Before it knows this node the authority listens to nothing else.
            if reporter.is_some() {
                pass(&mut gather, &mut taken, outbox);
            }
            taken.clear();
            let Some(said) = said else { continue };
            match said {
                Ok(Message::FromAuthority(FromAuthority::Registered { settings, revision, devices, complete })) => {
                    tracing::info!(authority = %self.authority, %revision, ?devices, "registered with the authority");
                    backoff.reset();
                    self.on_revision(revision);
                    self.pilot.routes().heard(complete);
                    if !self.on_taken_in(TakenIn { grace: settings.grace, devices }) {
                        return Ended::RolledBack;
                    }
                    let reporting =
                        report::keep(self.in_service(), Rc::clone(&self.pilot), self.damaged_copies, outbox.clone());
                    reporter = Some(Stopped(tokio::task::spawn_local(reporting)));
                }
                Ok(Message::FromAuthority(FromAuthority::RegisterRefused(reason))) => return Ended::Refused(reason),
                Ok(Message::FromAuthority(FromAuthority::Revision(revision))) => self.on_revision(revision),
                Ok(Message::FromAuthority(FromAuthority::Nodes(nodes))) => self.on_nodes(nodes),
                Ok(Message::FromAuthority(FromAuthority::ShowConfigs)) => {
                    drop(tokio::task::spawn_local(report::show_configs(self.in_service(), outbox.clone())));
                }
                Ok(Message::FromAuthority(said)) => self.pass_on(said).await,
                Ok(_) => return Ended::Broken(WireError::Unwelcome("the authority said what only others say".into())),
                Err(error) => return Ended::Broken(error),
            }
        }
    }

    fn on_revision(&mut self, revision: Revision) {
        self.registration.revision = self.registration.revision.max(revision);
        self.told.send_if_modified(|told| {
            let newer = revision > told.revision;
            told.revision = told.revision.max(revision);
            newer
        });
    }

    /// `false` when this node is at work already on what it must not trust: then only a new start helps (I9).
    fn on_taken_in(&mut self, taken: TakenIn) -> bool {
        let (mut sound, mut doubted) = (Vec::new(), false);
        for DeviceJudged { device, judgement } in &taken.devices {
            let (Judgement::Sound { boot } | Judgement::Distrusted { boot }) = judgement else {
                doubted = true;
                self.leave_out(*device, judgement);
                continue;
            };
            let is_sound = matches!(judgement, Judgement::Sound { .. });
            doubted |= !is_sound;
            sound.extend(is_sound.then_some(*device));
            if let Some(opened) = self.registration.devices.iter_mut().find(|opened| opened.device == *device) {
                opened.boot = *boot;
                opened.openings.take_in(Opening { id: self.local.boot, count: *boot });
            }
        }
        self.told.send_if_modified(|told| {
            let news = sound.iter().any(|device| !told.taken.contains(device));
            told.taken = sound;
            news
        });
        let heard = self.registered.take().is_some_and(|registered| registered.send(taken).is_ok());
        heard || !doubted
    }

    /// Nothing on this device is listed or found any more, and the next registration comes without it.
    fn leave_out(&mut self, device: DeviceId, judgement: &Judgement) {
        if let Some(at) = self.opened.iter().position(|opened| *opened == device) {
            self.pilot.routes().change(|lodging| lodging.take_out(at));
        }
        self.registration.devices.retain(|opened| opened.device != device);
        if let Judgement::Refused(why) = judgement {
            self.registration.absent.push(format!("device {device}: {why}").chars().take(TEXT_BYTES_MAX / 4).collect());
        }
    }

    /// The shards of devices that are served, by device.
    fn in_service(&self) -> Vec<Served> {
        let routes = self.pilot.routes();
        let served = self.opened.iter().enumerate().filter(|(at, _)| !routes.ask(|lodging| lodging.is_out(*at)));
        let shards = |at| self.shards[routes.shards_of(at)].to_vec();
        served.map(|(at, device)| Served { at, device: *device, shards: shards(at) }).collect()
    }

    fn on_nodes(&self, nodes: Vec<NodeAddress>) {
        let addresses = nodes.into_iter().map(|address| (address.node, address)).collect();
        self.addresses.send_replace(Arc::new(addresses));
    }

    async fn pass_on(&self, said: FromAuthority) {
        let shard = match &said {
            FromAuthority::Create { config } => self.pilot.routes().choose(config.segment, config.extents),
            FromAuthority::Reserve { segment, extents, .. } => self.pilot.routes().choose(*segment, *extents),
            FromAuthority::Release { segment, .. } => match self.pilot.way(*segment) {
                Way::There(shard) | Way::Nowhere(shard) => shard,
                // I11: it may be on the device that is missing; it is said again.
                Way::NotKnown(_) => return,
            },
            FromAuthority::Recover { config } => self.pilot.way(config.segment).shard(),
            FromAuthority::Granted { segment, .. }
            | FromAuthority::Fence { segment, .. }
            | FromAuthority::HandOver { segment, .. } => self.pilot.way(*segment).shard(),
            FromAuthority::Decisions(_) => return self.pass_on_decisions(said).await,
            FromAuthority::Leased(asks) => return self.pass_on_leases(asks).await,
            FromAuthority::Scrub => {
                for shard in &self.shards {
                    let _ = shard.work.send(Mail::Authority(FromAuthority::Scrub)).await;
                }
                return;
            }
            FromAuthority::Registered { .. }
            | FromAuthority::Revision(_)
            | FromAuthority::RegisterRefused(_)
            | FromAuthority::Nodes(_)
            | FromAuthority::ShowConfigs => return,
        };
        // A shard that is over needs no news.
        let _ = self.shards[usize::from(shard)].work.send(Mail::Authority(said)).await;
    }

    /// To each shard its own, in one mail.
    async fn pass_on_leases(&self, asks: &[LeaseAsk]) {
        let mut parts: Vec<Vec<LeaseAsk>> = self.shards.iter().map(|_| Vec::new()).collect();
        for ask in asks {
            parts[usize::from(self.pilot.way(ask.segment).shard())].push(*ask);
        }
        for (shard, part) in self.shards.iter().zip(parts).filter(|(_, part)| !part.is_empty()) {
            let _ = shard.work.send(Mail::Authority(FromAuthority::Leased(part))).await;
        }
    }

    /// To each shard its own, in one mail.
    async fn pass_on_decisions(&self, said: FromAuthority) {
        let FromAuthority::Decisions(decisions) = said else { return };
        let mut parts: Vec<Vec<Decision>> = self.shards.iter().map(|_| Vec::new()).collect();
        for decision in decisions {
            if let Decision::Denied(config, reason) = &decision {
                tracing::info!(segment = %config.segment, %reason, "the authority denied a proposal");
            }
            parts[usize::from(self.pilot.way(decision.segment()).shard())].push(decision);
        }
        for (shard, part) in self.shards.iter().zip(parts).filter(|(_, part)| !part.is_empty()) {
            let _ = shard.work.send(Mail::Authority(FromAuthority::Decisions(part))).await;
        }
    }
}

/// Sends what may go now.
fn pass(gather: &mut Gather, taken: &mut Vec<ToAuthority>, outbox: &Outbox) {
    let moment = now();
    let mut out: Vec<ToAuthority> = taken.drain(..).filter_map(|message| gather.take(moment, message)).collect();
    out.append(&mut gather.next(moment));
    for message in out {
        if outbox.try_send(&Message::ToAuthority(message)).is_err() {
            tracing::debug!("a message to the authority was lost");
        }
    }
}

/// Waits until then.
async fn due(wake: Option<Time>) {
    match wake {
        Some(wake) => tokio::time::sleep(duration(wake.since(now()))).await,
        None => std::future::pending().await,
    }
}

/// How a connection to the authority ended.
enum Ended {
    Refused(String),
    RolledBack,
    Broken(WireError),
}
