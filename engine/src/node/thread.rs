//! The threads of the shards: each opens its ring and its store, then runs its shard and its connections.
//!
//! A shard whose device cannot be used, or must not be, leaves its thread to the connections: what the other devices of
//! the node serve goes on over them.

use std::ops::Range;
use std::rc::Rc;
use std::sync::Arc;
use std::sync::atomic::AtomicU64;

use engine_core::ids::SegmentId;
use engine_core::limits::{INBOX_MAX, STOP_WAIT, STRANGERS_MAX};
use engine_core::message::ToAuthority;
use tokio::sync::{mpsc, oneshot, watch};

use super::clock::{duration, seed};
use super::harbour::{self, Addresses, Harbour, Keepers};
use super::listen::{Arrival, Doors};
use super::mail::{PeerControl, ShardBox, ShardInbox};
use super::routes::{Pilot, Routes};
use super::shard::{self, Ended, Shard, Surroundings};
use super::start::StartError;
use crate::device::Device;
use crate::device::buffer::set_aside;
use crate::device::file::DeviceFile;
use crate::device::uring::UringDevice;
use crate::store::{Geometry, ShardStore, Superblock, window};
use crate::wire::Local;

/// What all threads are made from.
pub(crate) struct Plan {
    /// The node's devices, each with its shards.
    pub(crate) devices: Vec<(DeviceFile, Superblock)>,
    pub(crate) routes: Arc<Routes>,
    pub(crate) local: Local,
    pub(crate) boxes: Vec<ShardBox>,
    pub(crate) to_authority: mpsc::Sender<ToAuthority>,
    pub(crate) addresses: watch::Receiver<Addresses>,
}

/// The running threads.
pub(crate) struct Crew {
    /// Where each takes its arrivals.
    arrivals: Vec<mpsc::Sender<Arrival>>,
    ready: Vec<Opening>,
    keepers: Keepers,
    over: mpsc::Receiver<(u16, String)>,
}

/// A thread on its way to work.
struct Opening {
    ready: oneshot::Receiver<Ready>,
    /// Its device has answered, whatever it said.
    answered: bool,
}

impl Crew {
    /// Waits until the stores of these shards are open; gives what is in all of them, or which could not be opened.
    pub(crate) async fn ready(&mut self, shards: Range<usize>) -> Result<Opened, StartError> {
        let mut all = Opened::default();
        for (shard, opening) in (0u16..).zip(&mut self.ready).skip(shards.start).take(shards.len()) {
            let opened = (&mut opening.ready).await.unwrap_or_else(|_| Err("its thread has ended".into()));
            opening.answered = true;
            let opened = opened.map_err(|reason| StartError::Shard { shard, reason })?;
            all.capacity += opened.capacity;
            all.segments.extend(opened.segments);
        }
        Ok(all)
    }

    /// The threads at work now: not those whose devices have not answered.
    fn at_work(&mut self) -> Vec<usize> {
        let mut at_work = Vec::new();
        for (at, opening) in self.ready.iter_mut().enumerate() {
            opening.answered =
                opening.answered || !matches!(opening.ready.try_recv(), Err(oneshot::error::TryRecvError::Empty));
            at_work.extend(opening.answered.then_some(at));
        }
        at_work
    }

    /// The shards whose threads are at work.
    pub(crate) fn working(&mut self, boxes: &[ShardBox]) -> Vec<ShardBox> {
        self.at_work().into_iter().map(|at| boxes[at].clone()).collect()
    }

    /// From now on only the threads at work carry connections: one whose device has not answered is not waited for. Gives
    /// their shards, and where each takes its arrivals.
    pub(crate) fn deal(&mut self, boxes: &[ShardBox]) -> (Vec<ShardBox>, Vec<mpsc::Sender<Arrival>>) {
        let at_work = self.at_work();
        self.keepers.only(at_work.clone());
        at_work.into_iter().map(|at| (boxes[at].clone(), self.arrivals[at].clone())).unzip()
    }

    /// Waits until every thread at work has ended, so that the device is free for whoever opens it next.
    pub(crate) async fn gone(&mut self) {
        let threads = self.at_work().len();
        let all = async {
            for _ in 0..threads {
                self.over.recv().await?;
            }
            Some(())
        };
        if tokio::time::timeout(duration(STOP_WAIT), all).await.is_err() {
            tracing::warn!("a shard's thread has not ended");
        }
    }

    /// Waits until a thread has ended although nobody asked for it.
    pub(crate) async fn ended(&mut self) -> StartError {
        match self.over.recv().await {
            Some((shard, reason)) => StartError::Shard { shard, reason },
            None => StartError::Shard { shard: 0, reason: "all threads have ended".into() },
        }
    }
}

/// What was found when a store was opened.
#[derive(Debug, Default)]
pub(crate) struct Opened {
    /// Extents it can hold.
    pub(crate) capacity: u64,
    /// Replicas in it.
    pub(crate) segments: Vec<SegmentId>,
}

type Ready = Result<Opened, String>;

/// One thread's share of the plan.
struct Share {
    /// Among all of the node's.
    shard: u16,
    device: usize,
    /// Among those of its device.
    part: u16,
    file: DeviceFile,
    superblock: Superblock,
    harbour: Harbour,
    to_authority: mpsc::Sender<ToAuthority>,
    inbox: ShardInbox,
    arrivals: mpsc::Receiver<Arrival>,
    control: mpsc::Receiver<PeerControl>,
    ready: oneshot::Sender<Ready>,
}

/// Starts a thread for each inbox.
pub(crate) fn spawn(plan: &Plan, inboxes: Vec<ShardInbox>, doors: &Doors) -> Result<Crew, StartError> {
    let (over, over_end) = mpsc::channel(inboxes.len().max(1));
    let (keepers, controls): (Vec<_>, Vec<_>) = inboxes.iter().map(|_| mpsc::channel(INBOX_MAX)).unzip();
    let keepers = Keepers::new(keepers);
    let last_client = Arc::new(AtomicU64::new(0));
    let mut crew = Crew { arrivals: Vec::new(), ready: Vec::new(), keepers: keepers.clone(), over: over_end };
    for ((shard, inbox), control) in (0u16..).zip(inboxes).zip(controls) {
        let (arrivals, arrivals_end) = mpsc::channel(STRANGERS_MAX);
        let (ready, is_ready) = oneshot::channel();
        crew.arrivals.push(arrivals);
        crew.ready.push(Opening { ready: is_ready, answered: false });
        let device = plan.routes.device_of(shard);
        let (file, superblock) = plan.devices[device].clone();
        let harbour = Harbour {
            local: plan.local.clone(),
            shards: plan.boxes.clone(),
            pilot: Pilot::new(Arc::clone(&plan.routes)),
            keepers: keepers.clone(),
            addresses: plan.addresses.clone(),
            doors: doors.clone(),
            last_client: Arc::clone(&last_client),
        };
        let share = Share {
            shard,
            device,
            part: shard - u16::try_from(plan.routes.shards_of(device).start).unwrap_or(0),
            file,
            superblock,
            harbour,
            to_authority: plan.to_authority.clone(),
            inbox,
            arrivals: arrivals_end,
            control,
            ready,
        };
        let over = over.clone();
        std::thread::Builder::new()
            .name(format!("shard-{shard}"))
            .spawn(move || {
                let reason = share.run().err().unwrap_or_else(|| "stopped".into());
                // Nobody listens when the node stops.
                let _ = over.blocking_send((shard, reason));
            })
            .map_err(StartError::Runtime)?;
    }
    Ok(crew)
}

/// Sets aside the memory that the stores will need under load, so that no write waits for it; in the background, behind
/// whatever else wants a core.
pub(crate) fn set_memory_aside(devices: impl Iterator<Item = Geometry>) {
    let bytes = devices.map(|geometry| window(geometry.wal_size) * u64::from(geometry.shards)).sum();
    let work = move || {
        // SAFETY: changes nothing but how often the calling thread runs.
        let refused = unsafe { libc::setpriority(libc::PRIO_PROCESS, 0, 10) } != 0;
        tracing::debug!(bytes, refused, "memory is set aside");
        set_aside(bytes);
    };
    if let Err(error) = std::thread::Builder::new().name("memory".into()).spawn(work) {
        tracing::warn!(%error, "no thread to set memory aside: writes will wait for it one by one");
    }
}

impl Share {
    fn run(self) -> Result<(), String> {
        let runtime = tokio::runtime::Builder::new_current_thread()
            .enable_all()
            .build()
            .map_err(|error| format!("no runtime: {error}"))?;
        let local = tokio::task::LocalSet::new();
        runtime.block_on(local.run_until(self.work()))
    }

    async fn work(self) -> Result<(), String> {
        let Self { shard, device, part, file, superblock, harbour, to_authority, inbox, arrivals, control, ready } =
            self;
        let opened = open(&file, &superblock, part).map(|(store, wake_fd)| {
            let around = Surroundings {
                node: superblock.node,
                shard,
                authority: to_authority,
                peers: harbour.keepers.clone(),
                seed: seed(),
                routes: harbour.pilot.share(),
                device,
            };
            (Shard::new(around, store), wake_fd)
        });
        // Whoever waits is told; nobody waiting means the node is stopping.
        let _ = ready.send(opened.as_ref().map(|(shard, _)| shard.opened()).map_err(Clone::clone));
        tokio::task::spawn_local(harbour::run(Rc::new(harbour), arrivals, control));
        let Ok((shard, wake_fd)) = opened else {
            shard::idle(inbox).await;
            return Ok(());
        };
        // A task like those of the connections, not what they all run inside: so it has its turn right behind them,
        // before the runtime looks at its sockets again.
        let run = tokio::task::spawn_local(shard::run(shard, inbox, wake_fd));
        match run.await {
            Ok(Ok(Ended::Stopped)) => Ok(()),
            Ok(Ok(Ended::Retired(inbox))) => {
                shard::idle(inbox).await;
                Ok(())
            }
            Ok(Err(error)) => Err(error.to_string()),
            Err(error) => Err(error.to_string()),
        }
    }
}

type OpenStore = (ShardStore<UringDevice>, Option<std::os::fd::RawFd>);

fn open(file: &DeviceFile, superblock: &Superblock, shard: u16) -> Result<OpenStore, String> {
    #[cfg(test)]
    super::devices::stuck::wait(super::devices::stuck::Step::Open, superblock.device);
    let region = superblock.geometry.region(shard);
    let device =
        UringDevice::new(file.clone(), region.base, region.len).map_err(|error| format!("io_uring: {error}"))?;
    let wake_fd = device.wake_fd();
    let store = ShardStore::open(&mut file.clone(), device, superblock, shard).map_err(|error| error.to_string())?;
    Ok((store, wake_fd))
}
