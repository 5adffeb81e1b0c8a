//! All devices of a node: looked at one by one, so that one that is gone, damaged or refused takes nothing from the others.
//!
//! What is wrong with the only device of a node ends its process, as does what a person wrote down wrong. What is wrong
//! with one of several is noted, told to the authority and logged; the others serve. Nothing is decided here about what
//! was on it: the authority knows that device, and a person says whether it comes back.

use std::os::unix::fs::{FileTypeExt, MetadataExt};
use std::path::{Path, PathBuf};
use std::sync::Arc;
use std::time::Duration;

use engine_core::ids::{BootId, ClusterId, DeviceId, Revision};
use engine_core::limits::{DEVICE_ANSWER_WAIT, DEVICE_OPEN_WAIT, SHARDS_MAX, STOP_WAIT, TEXT_BYTES_MAX};
use engine_core::message::{DeviceJudged, DeviceOpened, Judgement};
use engine_core::time::Span;
use tokio::sync::oneshot;
use tokio::time::{Instant, timeout, timeout_at};

use super::clock::{duration, seed};
use super::config::{Config, ConfigError};
use super::hold::{self, Held, Hold, HoldError};
use super::mail::{Mail, ShardBox};
use super::routes::Routes;
use super::start::StartError;
use super::thread::Crew;
use crate::device::file::DeviceFile;
use crate::store::{self, Superblock};

/// Longest reason told to the authority.
const REASON_MAX: usize = TEXT_BYTES_MAX - 64;

/// A mistake of whoever wrote the configuration is an error, however many devices there are.
fn is_mistake(error: &HoldError) -> bool {
    error.exit_code() == 2
}

fn shortened(reason: &str) -> String {
    reason[..reason.floor_char_boundary(REASON_MAX)].to_owned()
}

/// What was found where the devices should be. Nothing has been written.
pub(super) struct Looked {
    found: Vec<(PathBuf, Hold)>,
    absent: Vec<String>,
}

/// Looks at every device.
pub(super) async fn look(config: &Config) -> Result<Looked, StartError> {
    let alone = config.devices.len() == 1;
    name_each_once(&config.devices)?;
    let (mut found, mut absent, mut first) = (Vec::new(), Vec::new(), None);
    // All at once: one that answers nothing takes its time beside the others.
    let looking: Vec<_> = config.devices.iter().map(|path| (path, look_apart(config, path))).collect();
    let until = (!alone).then(|| Until::within(DEVICE_ANSWER_WAIT));
    for (path, told) in looking {
        match in_time(path, told, until).await {
            Ok(Ok(hold)) => found.push((path.clone(), hold)),
            Ok(Err(error)) if alone || is_mistake(&error) => return Err(error.into()),
            Ok(Err(error)) => {
                tracing::error!(%error, "this device is not there; the others are served");
                absent.push(shortened(&error.to_string()));
                first = first.or(Some(error));
            }
            Err(reason) => {
                tracing::error!(reason, "this device is not there; the others are served");
                absent.push(shortened(&reason));
            }
        }
    }
    if found.is_empty() {
        return Err(first.map_or(StartError::NoDevice(absent.join("; ")), StartError::from));
    }
    find_images(&found)?;
    Ok(Looked { found, absent })
}

fn twice(one: &Path, other: &Path, reason: &str) -> StartError {
    let value = format!("{} and {}", one.display(), other.display());
    ConfigError::Bad { name: "device", value, reason: format!("{reason}; nothing was written") }.into()
}

/// Two names of one file are a mistake; which of them counts nobody could say.
fn name_each_once(paths: &[PathBuf]) -> Result<(), StartError> {
    let mut seen: Vec<((u64, u64), &Path)> = Vec::new();
    for path in paths {
        let Ok(found) = std::fs::metadata(path) else { continue };
        let id = if found.file_type().is_block_device() { (0, found.rdev()) } else { (found.dev(), found.ino()) };
        if let Some((_, other)) = seen.iter().find(|(seen, _)| *seen == id) {
            return Err(twice(other, path, "they are the same device"));
        }
        seen.push((id, path));
    }
    Ok(())
}

/// A copy of a device beside the device itself: to open both would make the older of them look as if it had lived on (I9).
fn find_images(found: &[(PathBuf, Hold)]) -> Result<(), StartError> {
    let mut seen: Vec<(DeviceId, &Path)> = Vec::new();
    for (path, hold) in found {
        let Hold::Ours(_, superblock) = hold else { continue };
        if let Some((device, other)) = seen.iter().find(|(device, _)| *device == superblock.device) {
            return Err(twice(
                other,
                path,
                &format!("one is a copy of the other, both are device {device}: leave one away"),
            ));
        }
        seen.push((superblock.device, path));
    }
    Ok(())
}

/// What work on a device will give; `Err`: it could not begin.
type Apart<T> = std::io::Result<oneshot::Receiver<T>>;

/// Works on a device on a thread of its own: one that answers nothing holds nobody up, nor the end of the process.
fn apart<T: Send + 'static>(work: impl FnOnce() -> T + Send + 'static) -> Apart<T> {
    let (tell, told) = oneshot::channel();
    std::thread::Builder::new().name("device".into()).spawn(move || {
        // Whoever asked may have lost patience.
        let _ = tell.send(work());
    })?;
    Ok(told)
}

fn look_apart(config: &Config, path: &Path) -> Apart<Result<Hold, HoldError>> {
    let (config, path) = (config.clone(), path.to_owned());
    apart(move || hold::look(&config, &path))
}

/// How long somebody waits for a device.
#[derive(Clone, Copy)]
struct Until {
    wait: Duration,
    end: Instant,
}

impl Until {
    fn within(span: Span) -> Self {
        // Tests have less patience.
        let wait = if cfg!(test) { Duration::from_secs(5) } else { duration(span) };
        Self { wait, end: Instant::now() + wait }
    }
}

/// What was told in time; without an end it is waited for as long as it takes.
async fn in_time<T>(path: &Path, told: Apart<T>, until: Option<Until>) -> Result<T, String> {
    let path = path.display();
    let told = told.map_err(|error| format!("{path}: {error}"))?;
    let told = match until {
        Some(Until { wait, end }) => {
            timeout_at(end, told).await.map_err(|_| format!("{path}: it did not answer in {} s", wait.as_secs()))?
        }
        None => told.await,
    };
    told.map_err(|_| format!("{path}: who asked it has ended"))
}

impl Looked {
    /// The cluster they are of; `ClusterId(0)` is "none yet".
    pub(super) fn cluster(&self) -> ClusterId {
        let clusters = self.found.iter().map(|(_, hold)| hold.cluster());
        clusters.into_iter().find(|cluster| *cluster != ClusterId(0)).unwrap_or(ClusterId(0))
    }

    /// Shards they have or will have.
    pub(super) fn shards(&self) -> Result<u16, ConfigError> {
        let shards = self.found.iter().map(|(_, hold)| u32::from(hold.shards())).sum::<u32>();
        u16::try_from(shards).ok().filter(|shards| *shards <= SHARDS_MAX).ok_or_else(|| ConfigError::Bad {
            name: "device",
            value: format!("{} devices with {shards} shards", self.found.len()),
            reason: format!("a node has at most {SHARDS_MAX} shards on all its devices together"),
        })
    }

    /// Makes each of them this node's, and counts this boot on it (I9). From here on things are written.
    pub(super) async fn take(self, config: &Config, cluster: ClusterId, boot: BootId) -> Result<Devices, StartError> {
        let alone = config.devices.len() == 1;
        let (mut list, mut absent, mut first) = (Vec::<Device>::new(), self.absent, None);
        let takes = self.found.into_iter().map(|(path, hold)| {
            let until = hold.patience().filter(|_| !alone).map(Until::within);
            let id = DeviceId((u128::from(seed()) << 64) | u128::from(seed()));
            let (config, at) = (config.clone(), path.clone());
            (path, until, apart(move || hold.take(&config, &at, cluster, id, boot)))
        });
        for (path, until, told) in takes.collect::<Vec<_>>() {
            let taken = match in_time(&path, told, until).await {
                Ok(taken) => taken,
                Err(reason) => {
                    tracing::error!(reason, "this device cannot be used; the others are served");
                    absent.push(shortened(&reason));
                    continue;
                }
            };
            match taken {
                Ok(Held { file, superblock, damaged_copies }) => {
                    let Superblock { device, boot, geometry, .. } = &superblock;
                    tracing::info!(node = %config.id, %cluster, %device, %boot, shards = geometry.shards,
                        "the device is this node's");
                    list.push(Device { path, file, superblock, damaged_copies, capacity: 0, out: false });
                }
                Err(error) if alone || is_mistake(&error) => return Err(error.into()),
                Err(error) => {
                    tracing::error!(%error, "this device cannot be used; the others are served");
                    absent.push(shortened(&error.to_string()));
                    first = first.or(Some(error));
                }
            }
        }
        if list.is_empty() {
            return Err(first.map_or(StartError::NoDevice(absent.join("; ")), StartError::from));
        }
        Ok(Devices { list, absent, alone })
    }
}

/// A device that is this node's.
pub(super) struct Device {
    path: PathBuf,
    pub(super) file: DeviceFile,
    pub(super) superblock: Superblock,
    damaged_copies: u64,
    capacity: u64,
    /// Not served.
    out: bool,
}

/// The devices of a node that could be taken.
pub(super) struct Devices {
    pub(super) list: Vec<Device>,
    /// Those that could not, in words.
    absent: Vec<String>,
    /// Only one was ever asked for.
    alone: bool,
}

impl Devices {
    /// Which shard is on which of them.
    pub(super) fn routes(&self) -> Routes {
        Routes::new(self.list.iter().map(|device| device.superblock.geometry.shards), self.absent.is_empty())
    }

    /// Shards of all of them.
    pub(super) fn shards(&self) -> u16 {
        self.list.iter().map(|device| device.superblock.geometry.shards).sum()
    }

    /// The highest revision of the authority any of them remembers (I11).
    pub(super) fn revision(&self) -> Revision {
        self.list.iter().map(|device| device.superblock.revision).max().unwrap_or(Revision(0))
    }

    /// Copies of superblocks found damaged.
    pub(super) fn damaged_copies(&self) -> u64 {
        self.list.iter().map(|device| device.damaged_copies).sum()
    }

    /// Those that are served.
    pub(super) fn served(&self) -> impl Iterator<Item = &Device> {
        self.list.iter().filter(|device| !device.out)
    }

    /// What is told of them to the authority.
    pub(super) fn registered(&self) -> (Vec<DeviceOpened>, Vec<String>) {
        let opened = |device: &Device| DeviceOpened {
            device: device.superblock.device,
            boot: device.superblock.boot,
            openings: Box::new(device.superblock.openings),
            capacity: device.capacity,
        };
        (self.served().map(opened).collect(), self.absent.clone())
    }

    /// Waits until the stores of every device are open.
    pub(super) async fn open(
        &mut self,
        crew: &mut Crew,
        routes: &Arc<Routes>,
        boxes: &[ShardBox],
    ) -> Result<(), StartError> {
        // They open beside each other.
        let Until { wait, end } = Until::within(DEVICE_OPEN_WAIT);
        for at in 0..self.list.len() {
            let shards = routes.shards_of(at);
            let opened =
                if self.alone { Ok(crew.ready(shards).await) } else { timeout_at(end, crew.ready(shards)).await };
            let reason = match opened {
                Ok(Ok(opened)) => match routes.change(|lodging| lodging.found(at, &opened.segments)) {
                    Ok(()) => {
                        self.list[at].capacity = opened.capacity;
                        continue;
                    }
                    Err(segment) => format!("segment {segment} is on it and on another device of this node"),
                },
                Ok(Err(error)) if self.alone => return Err(error),
                Ok(Err(error)) => error.to_string(),
                Err(_) => format!("it was not open after {} s", wait.as_secs()),
            };
            self.take_out(at, &reason, routes, boxes).await?;
        }
        Ok(())
    }

    /// A device is not served from now on. `Err`: it was the last.
    async fn take_out(
        &mut self,
        at: usize,
        reason: &str,
        routes: &Routes,
        boxes: &[ShardBox],
    ) -> Result<(), StartError> {
        let device = &mut self.list[at];
        let what = format!("{}: {reason}", device.path.display());
        tracing::error!(device = %device.superblock.device, "{what}; the other devices are served");
        device.out = true;
        self.absent.push(shortened(&what));
        routes.change(|lodging| lodging.take_out(at));
        for shard in routes.shards_of(at) {
            // One that does not answer hears it when it does.
            let _ = boxes[shard].work.try_send(Mail::Retire);
        }
        if self.served().next().is_none() {
            return Err(StartError::Shard {
                shard: u16::try_from(routes.shards_of(at).start).unwrap_or(0),
                reason: what,
            });
        }
        Ok(())
    }

    /// Does what the authority says of each: what it does not trust is not trusted here, durably, before that device's boot
    /// counter goes up (I9); what it refuses is not served. Gives those on which that could not be written: the authority takes
    /// them for present still.
    pub(super) async fn heed(
        &mut self,
        judged: &[DeviceJudged],
        id: BootId,
        routes: &Routes,
        boxes: &[ShardBox],
    ) -> Result<Vec<(DeviceId, String)>, StartError> {
        let mut unwritten = Vec::new();
        for DeviceJudged { device, judgement } in judged {
            let Some(at) = self.list.iter().position(|one| one.superblock.device == *device && !one.out) else {
                continue;
            };
            let reason = match judgement {
                Judgement::Sound { .. } => continue,
                Judgement::Refused(reason) => reason.clone(),
                Judgement::Distrusted { boot } => {
                    let shards = &boxes[routes.shards_of(at)];
                    let waited = timeout(duration(STOP_WAIT) * 4, distrust(shards));
                    let distrusted = if self.alone { distrust(shards).await } else { waited.await.unwrap_or(false) };
                    let one = &mut self.list[at];
                    one.superblock.taken_in(id, *boot);
                    let until = (!self.alone).then(|| Until::within(DEVICE_ANSWER_WAIT));
                    let written = if distrusted {
                        let (mut file, superblock) = (one.file.clone(), one.superblock);
                        let writing = apart(move || {
                            #[cfg(test)]
                            stuck::wait(stuck::Step::Note, superblock.device);
                            store::rewrite(&mut file, &superblock)
                        });
                        in_time(&one.path, writing, until).await
                    } else {
                        Err("could not write that its replicas are stale".to_owned())
                    };
                    let reason = match written {
                        Ok(Ok(())) => continue,
                        Ok(Err(error)) if self.alone => return Err(StartError::Runtime(error)),
                        Ok(Err(error)) => error.to_string(),
                        Err(reason) => reason,
                    };
                    unwritten.push((*device, reason.clone()));
                    reason
                }
            };
            self.take_out(at, &reason, routes, boxes).await?;
        }
        Ok(unwritten)
    }
}

/// Has every shard of a device take what it found for damaged (I9).
async fn distrust(boxes: &[ShardBox]) -> bool {
    for to in boxes {
        let (done, is_done) = oneshot::channel();
        let sent = to.work.send(Mail::Distrust(done)).await.is_ok();
        if !sent || is_done.await.is_err() {
            return false;
        }
    }
    true
}

/// Devices that answer nothing: tests say which, and the code that would meet such a device asks here.
#[cfg(test)]
pub(crate) mod stuck {
    use std::sync::{Mutex, PoisonError};
    use std::time::Duration;

    use engine_core::ids::DeviceId;

    static STUCK: Mutex<Vec<(Step, DeviceId)>> = Mutex::new(Vec::new());

    /// Where a device may hang.
    #[derive(Clone, Copy, PartialEq, Eq)]
    pub(crate) enum Step {
        Take,
        Open,
        Note,
    }

    /// Does not return while the device is stuck there.
    pub(crate) fn wait(step: Step, device: DeviceId) {
        while STUCK.lock().unwrap_or_else(PoisonError::into_inner).contains(&(step, device)) {
            std::thread::sleep(Duration::from_millis(5));
        }
    }

    /// A device is stuck as long as this lives.
    pub(crate) struct Stuck(Step, DeviceId);

    impl Stuck {
        pub(crate) fn at(step: Step, device: DeviceId) -> Self {
            STUCK.lock().unwrap_or_else(PoisonError::into_inner).push((step, device));
            Self(step, device)
        }
    }

    impl Drop for Stuck {
        fn drop(&mut self) {
            STUCK.lock().unwrap_or_else(PoisonError::into_inner).retain(|stuck| *stuck != (self.0, self.1));
        }
    }
}
