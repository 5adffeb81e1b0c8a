//! Reaching a volume's data: attached by the native client, or through somebody's NBD server.
//!
//! Everything that moves data in `nodectl` works on a [`Reach`], so that it measures and proves the same on both
//! paths.

use std::rc::Rc;
use std::time::Duration;

use bytes::Bytes;
use engine::authority::api::{VolumeLimits, VolumeMap};
use engine::client::{Options, Volume};
use engine::gateway::{Export, ExportError};
use engine_core::ids::{NodeId, VolumeId};

use crate::failure::{Exit, Failure};
use crate::http::Api;
use crate::verify::check::Peek;
use crate::{nbd, signals};

/// How long a fresh map may take; the client asks again.
const REFRESH_LIMIT: Duration = Duration::from_secs(3);

/// An open volume.
pub(crate) enum Reach {
    /// Attached here.
    Native(Volume),
    /// Through an NBD server.
    Nbd(nbd::Client),
}

impl Export for Reach {
    fn size(&self) -> u64 {
        match self {
            Self::Native(volume) => volume.size(),
            Self::Nbd(client) => client.size(),
        }
    }

    async fn read(&self, offset: u64, len: u64) -> Result<Bytes, ExportError> {
        match self {
            Self::Native(volume) => volume.read(offset, len).await,
            Self::Nbd(client) => client.read(offset, len).await,
        }
    }

    async fn write(&self, offset: u64, data: Bytes) -> Result<(), ExportError> {
        match self {
            Self::Native(volume) => volume.write(offset, data).await,
            Self::Nbd(client) => client.write(offset, data).await,
        }
    }

    async fn zero(&self, offset: u64, len: u64, punch: bool) -> Result<(), ExportError> {
        match self {
            Self::Native(volume) => volume.zero(offset, len, punch).await,
            Self::Nbd(client) => client.zero(offset, len, punch).await,
        }
    }

    async fn allocation(&self, offset: u64, len: u64) -> Result<Vec<(u64, bool)>, ExportError> {
        match self {
            Self::Native(volume) => volume.allocation(offset, len).await,
            Self::Nbd(client) => client.allocation(offset, len).await,
        }
    }

    fn is_fenced(&self) -> bool {
        match self {
            Self::Native(volume) => volume.is_fenced(),
            Self::Nbd(client) => client.is_fenced(),
        }
    }
}

impl Peek for Reach {
    async fn peek(&self, node: NodeId, offset: u64, len: u64) -> Result<Bytes, String> {
        match self {
            Self::Native(volume) => volume.peek(node, offset, len).await.map_err(|error| error.to_string()),
            Self::Nbd(_) => Err("members cannot be read through NBD".to_owned()),
        }
    }
}

/// An attachment of our own.
pub(crate) struct Session {
    /// The volume.
    pub(crate) volume: Rc<Reach>,
    /// As it was when attached.
    pub(crate) map: VolumeMap,
}

/// Who we say attaches.
pub(crate) fn client_name(what: &str) -> String {
    let host = std::fs::read_to_string("/proc/sys/kernel/hostname").unwrap_or_default();
    format!("nodectl {what} ({} pid {})", host.trim(), std::process::id())
}

/// Opens an attached volume. Needs a `LocalSet`.
pub(crate) fn open(api: &Api, map: &VolumeMap, io_limit: Option<Duration>) -> Reach {
    let (api, name) = (api.clone().with_deadline(REFRESH_LIMIT), map.name.clone());
    let (asked, named) = (api.clone(), name.clone());
    let refresh: engine::client::Refresh = Rc::new(move || Box::pin(fresh_map(asked.clone(), named.clone())));
    let id = map.volume;
    let limits: engine::client::AskLimits = Rc::new(move || Box::pin(limits_of(api.clone(), name.clone(), id)));
    let options = Options { name: client_name("client"), io_limit, refresh: Some(refresh), limits: Some(limits) };
    Reach::Native(Volume::open(map.clone(), options))
}

/// Asks the authority on a thread of its own: this one has I/O to do. At most one at a time is asked for.
async fn fresh_map(api: Api, name: String) -> Option<VolumeMap> {
    let (answer, asked) = tokio::sync::oneshot::channel();
    std::thread::spawn(move || drop(answer.send(api.map(&name).ok())));
    asked.await.ok().flatten()
}

/// Asks likewise for the limits. A volume that only has the same name is another one.
async fn limits_of(api: Api, name: String, volume: VolumeId) -> Option<VolumeLimits> {
    let (answer, asked) = tokio::sync::oneshot::channel();
    std::thread::spawn(move || drop(answer.send(api.volume(&name).ok())));
    asked.await.ok().flatten().filter(|info| info.id == volume).map(|info| info.limits)
}

/// Attaches, runs a task on the volume, and detaches however the task ended.
pub(crate) fn attached<T>(
    api: &Api,
    name: &str,
    io_limit: Option<Duration>,
    task: impl AsyncFnOnce(Session) -> T,
) -> Result<T, Failure> {
    let map = api.attach(name, &client_name("load"))?;
    let generation = map.generation;
    let result = signals::block_on(async {
        let volume = Rc::new(open(api, &map, io_limit));
        task(Session { volume, map }).await
    });
    // If somebody else has attached meanwhile there is nothing to detach, and nothing wrong.
    let _ = api.detach(name, Some(generation));
    Ok(result)
}

/// Connects to an NBD server and runs a task on its export.
pub(crate) fn over_nbd<T>(address: &nbd::Address, task: impl AsyncFnOnce(Rc<Reach>) -> T) -> Result<T, Failure> {
    signals::block_on(async {
        let client = nbd::Client::connect(address).await.map_err(|error| {
            Failure::new(Exit::CannotConnect, format!("cannot use the NBD server at {address}: {error}"))
                .untouched("nothing was read or written")
                .next("nodectl volume attach VOLUME --nbd HOST:PORT serves one")
        })?;
        Ok(task(Rc::new(Reach::Nbd(client))).await)
    })
}
