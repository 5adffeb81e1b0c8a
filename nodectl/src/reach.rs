//! Reaching a volume's data: attached by the native client, or through somebody's NBD server.
//!
//! Everything that moves data in `nodectl` works on a [`Reach`], so that it measures and proves the same on both
//! paths.

use std::rc::Rc;
use std::time::Duration;

use bytes::Bytes;
use engine::authority::api::VolumeMap;
use engine::gateway::{Export, ExportError};
use engine_core::ids::{BlockIndex, NodeId, SegmentId};

use crate::failure::{Exit, Failure};
use crate::http::Api;
use crate::verify::check::Peek;
use crate::{nbd, signals};

/// An open volume.
pub(crate) enum Reach {
    /// Through an NBD server.
    Nbd(nbd::Client),
}

impl Export for Reach {
    fn size(&self) -> u64 {
        match self {
            Self::Nbd(client) => client.size(),
        }
    }

    async fn read(&self, offset: u64, len: u64) -> Result<Bytes, ExportError> {
        match self {
            Self::Nbd(client) => client.read(offset, len).await,
        }
    }

    async fn write(&self, offset: u64, data: Bytes) -> Result<(), ExportError> {
        match self {
            Self::Nbd(client) => client.write(offset, data).await,
        }
    }

    async fn zero(&self, offset: u64, len: u64, punch: bool) -> Result<(), ExportError> {
        match self {
            Self::Nbd(client) => client.zero(offset, len, punch).await,
        }
    }

    async fn allocation(&self, offset: u64, len: u64) -> Result<Vec<(u64, bool)>, ExportError> {
        match self {
            Self::Nbd(client) => client.allocation(offset, len).await,
        }
    }

    fn is_fenced(&self) -> bool {
        match self {
            Self::Nbd(client) => client.is_fenced(),
        }
    }
}

impl Peek for Reach {
    async fn peek(&self, _: NodeId, _: SegmentId, _: BlockIndex, _: u32) -> Result<Bytes, String> {
        match self {
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
pub(crate) fn open(_map: &VolumeMap, _io_limit: Option<Duration>) -> Result<Reach, Failure> {
    Err(Failure::failed("the native client is not built in yet"))
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
        let volume = Rc::new(open(&map, io_limit)?);
        Ok(task(Session { volume, map }).await)
    });
    // If somebody else has attached meanwhile there is nothing to detach, and nothing wrong.
    let _ = api.detach(name, Some(generation));
    result
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
