//! What the node itself remembers, in its superblock: the highest revision of the authority it has heard of (I11).
//!
//! Written apart from everything else, at most every [`REVISION_EVERY`]: nothing waits for it, and a device that stands
//! still holds nobody up.

use engine_core::ids::Revision;
use engine_core::limits::REVISION_EVERY;
use tokio::sync::watch;

use super::clock::duration;
use crate::device::file::DeviceFile;
use crate::store::{self, Superblock};

/// Writes each higher revision down. Ends when nobody tells any more.
pub(super) async fn keep(file: DeviceFile, mut superblock: Superblock, mut told: watch::Receiver<Revision>) {
    while told.changed().await.is_ok() {
        let revision = *told.borrow_and_update();
        if revision <= superblock.revision {
            continue;
        }
        superblock.revision = revision;
        let mut device = file.clone();
        let written = tokio::task::spawn_blocking(move || store::rewrite(&mut device, &superblock)).await;
        if let Ok(Err(error)) = written {
            // The shards meet the same device and say what that means for them.
            tracing::warn!(%error, "the authority's revision could not be written down");
        }
        tokio::time::sleep(duration(REVISION_EVERY)).await;
    }
}
