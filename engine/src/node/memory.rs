//! What a device remembers for its node, in its superblock: the highest revision of the authority it has heard of (I11), and
//! that the authority has taken it in (I9).
//!
//! Written apart from everything else, at most every [`REVISION_EVERY`]: nothing waits for it, and a device that stands
//! still holds nobody up. The authority knows this opening of the device from its registration, whether or not the
//! device ever hears of it; what is written here only makes the list of openings short again.

use engine_core::ids::BootId;
use engine_core::limits::REVISION_EVERY;
use tokio::sync::watch;

use super::authority::Told;
use super::clock::duration;
use crate::device::file::DeviceFile;
use crate::store::{self, Superblock};

/// Writes each higher revision down, and that this run was taken in. Ends when nobody tells any more.
pub(super) async fn keep(file: DeviceFile, mut superblock: Superblock, id: BootId, mut told: watch::Receiver<Told>) {
    while told.changed().await.is_ok() {
        let (revision, taken) = {
            let told = told.borrow_and_update();
            (told.revision, told.taken.contains(&superblock.device))
        };
        let before = superblock;
        superblock.revision = superblock.revision.max(revision);
        if taken {
            superblock.taken_in(id, superblock.boot);
        }
        if superblock == before {
            continue;
        }
        let mut device = file.clone();
        let written = tokio::task::spawn_blocking(move || store::rewrite(&mut device, &superblock)).await;
        if let Ok(Err(error)) = written {
            // The shards meet the same device and say what that means for them.
            tracing::warn!(%error, "what the authority said could not be written down; it is tried again");
            superblock = before;
            if told.has_changed().is_err() {
                return;
            }
            told.mark_changed();
        }
        tokio::time::sleep(duration(REVISION_EVERY)).await;
    }
}
