//! Which connection of a peer is listened to: the latest it has made on a lane, and never two at a time.
//!
//! Intuition: what a peer sent over a connection it has given up may lie here, in a socket that nobody read for a while,
//! when what it said since arrives over the next one. Machines are told that a connection ended and another began; nothing
//! of the old one may come after that. So whoever comes later ends the one before, and begins when that has ended.

use std::collections::BTreeMap;
use std::sync::atomic::{AtomicU64, Ordering};
use std::sync::{Arc, Mutex, PoisonError};

use engine_core::ids::NodeId;
use engine_core::message::Lane;
use tokio::sync::{Mutex as Turn, Notify, OwnedMutexGuard};

/// One ear for each peer and lane that ever came; so many as there are nodes (I15). Shared by all threads.
#[derive(Debug, Clone, Default)]
pub(crate) struct Ears(Arc<Mutex<EarByLane>>);

type EarByLane = BTreeMap<(NodeId, Lane), Arc<Ear>>;

#[derive(Debug, Default)]
struct Ear {
    /// Of the latest connection.
    latest: AtomicU64,
    /// There is a later one.
    later: Notify,
    turn: Arc<Turn<()>>,
}

/// The right of one connection to be listened to.
#[derive(Debug)]
pub(crate) struct Listening {
    ear: Arc<Ear>,
    number: u64,
    _turn: OwnedMutexGuard<()>,
}

impl Ears {
    /// Ends the connection before, if there is one, and waits until nothing of it can be heard any more.
    pub(crate) async fn listen(&self, from: NodeId, lane: Lane) -> Listening {
        let ear = {
            // A panic while the lock was held leaves a map that is still a map.
            let mut ears = self.0.lock().unwrap_or_else(PoisonError::into_inner);
            Arc::clone(ears.entry((from, lane)).or_default())
        };
        let number = ear.latest.fetch_add(1, Ordering::SeqCst) + 1;
        ear.later.notify_waiters();
        let turn = Arc::clone(&ear.turn).lock_owned().await;
        Listening { ear, number, _turn: turn }
    }
}

impl Listening {
    /// What `heard` gives, or `None` when there is a later connection: then nothing more of this one counts.
    pub(crate) async fn unless_later<T>(&self, heard: impl Future<Output = T>) -> Option<T> {
        let later = self.ear.later.notified();
        tokio::pin!(later);
        later.as_mut().enable();
        if self.ear.latest.load(Ordering::SeqCst) != self.number {
            return None;
        }
        tokio::select! {
            () = later => None,
            heard = heard => Some(heard),
        }
    }
}

#[cfg(test)]
mod tests {
    #![allow(clippy::unwrap_used)]
    use std::time::Duration;

    use tokio::sync::mpsc;
    use tokio::time::timeout;

    use super::*;

    const PEER: NodeId = NodeId(3);

    #[tokio::test]
    async fn a_later_connection_waits_until_the_one_before_has_ended() {
        let ears = Ears::default();
        let old = ears.listen(PEER, Lane::Live).await;
        assert_eq!(old.unless_later(async { 7 }).await, Some(7));
        // The one before is stuck: its shard takes nothing.
        let (full, _box) = mpsc::channel::<u8>(1);
        full.send(1).await.unwrap();
        let stuck = tokio::spawn(async move {
            let sent = old.unless_later(full.send(2)).await;
            (sent.is_none(), old)
        });
        let later = {
            let ears = ears.clone();
            tokio::spawn(async move { ears.listen(PEER, Lane::Live).await })
        };
        let (ended, old) = stuck.await.unwrap();
        assert!(ended && !later.is_finished(), "its turn is not over yet");
        assert_eq!(old.unless_later(async { 7 }).await, None);
        drop(old);
        let later = timeout(Duration::from_secs(10), later).await.unwrap().unwrap();
        assert_eq!(later.unless_later(async { 8 }).await, Some(8));
    }

    #[tokio::test]
    async fn another_lane_or_peer_is_no_later_connection() {
        let ears = Ears::default();
        let live = ears.listen(PEER, Lane::Live).await;
        let _bulk = ears.listen(PEER, Lane::Bulk).await;
        let _other = ears.listen(NodeId(4), Lane::Live).await;
        assert_eq!(live.unless_later(async { 7 }).await, Some(7));
    }
}
