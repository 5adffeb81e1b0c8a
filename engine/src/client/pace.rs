//! Where a client holds itself to its volume's limits: between room for a request and its segment's session.
//!
//! Intuition: a turnstile. Requests go through it one at a time, in the order they came; the one in it waits until the
//! core's throttle lets it begin (`engine_core::throttle`). Without limits nobody stops there.
//!
//! Invariants:
//! - Requests leave in the order in which they came here, with limits, without, and while these change.
//! - What waits has room already, so it is bounded like everything a client holds (I15).
//! - Whoever gives up waiting holds up nobody behind and is not counted. Of a volume that is closed or fenced nobody
//!   waits.

use std::cell::RefCell;
use std::rc::Rc;
use std::time::Duration;

use engine_core::limits::LIMITS_EVERY;
use engine_core::random::Random;
use engine_core::throttle::Throttle;
use tokio::sync::Semaphore;
use tokio::time::sleep;

use super::{AskLimits, Shared};
use crate::authority::api::VolumeLimits;

/// A volume's limits and who waits for them.
pub(super) struct Pace {
    throttle: RefCell<Throttle>,
    /// One place; fair.
    turnstile: Semaphore,
}

impl Pace {
    pub(super) fn new(limits: VolumeLimits) -> Self {
        Self { throttle: RefCell::new(Throttle::new(limits)), turnstile: Semaphore::new(1) }
    }

    pub(super) fn set(&self, limits: VolumeLimits) {
        let mut throttle = self.throttle.borrow_mut();
        if throttle.limits() != limits {
            tracing::info!(iops = limits.iops, mibps = limits.mibps, "the volume's limits changed (0: none)");
            throttle.set(limits);
        }
    }

    /// Nothing is limited, and nobody waits from before that would be overtaken.
    fn is_open(&self) -> bool {
        self.throttle.borrow().limits().is_none() && self.turnstile.available_permits() > 0
    }
}

impl Shared {
    /// Waits until a request with so many bytes of data may begin.
    pub(super) async fn pass(&self, bytes: u64) {
        if self.pace.is_open() {
            return;
        }
        // Never closed; and without a place there would be nothing to wait for.
        let _place = self.pace.turnstile.acquire().await;
        // What fails in any case does so at once.
        if self.over.is_set() || self.fenced.is_set() {
            return;
        }
        let now = self.now();
        let begins = self.pace.throttle.borrow().opens(now, bytes);
        if begins > now {
            tokio::select! {
                () = self.ended() => return,
                () = self.fenced.wait() => return,
                () = sleep(Duration::from_nanos(begins.since(now).0)) => {}
            }
        }
        // Only now: whoever gave up while waiting has cost nobody anything.
        self.pace.throttle.borrow_mut().take(begins, bytes);
    }
}

/// Asks for the limits as long as the volume is open. An answer that does not come changes nothing.
pub(super) async fn follow(shared: Rc<Shared>, ask: AskLimits, mut random: Random) {
    let following = async {
        loop {
            // Not all clients at once.
            sleep(Duration::from_nanos(random.between(LIMITS_EVERY.0 / 2, LIMITS_EVERY.0))).await;
            if let Some(limits) = ask().await {
                shared.pace.set(limits);
            }
        }
    };
    tokio::select! {
        () = shared.ended() => {}
        () = following => {}
    }
}

#[cfg(test)]
mod tests {
    //! The turnstile in virtual time: no node, no socket.
    #![allow(clippy::unwrap_used)]

    use engine_core::ids::{ClusterId, Generation, VolumeId};
    use engine_core::layout::Layout;
    use tokio::task::{LocalSet, spawn_local, yield_now};
    use tokio::time::Instant;

    use super::*;
    use crate::authority::api::VolumeMap;
    use crate::client::Options;

    const NONE: VolumeLimits = VolumeLimits { iops: 0, mibps: 0 };

    fn open(limits: VolumeLimits, ask: Option<AskLimits>) -> Rc<Shared> {
        let map = VolumeMap {
            cluster: ClusterId(1),
            volume: VolumeId(1),
            name: "v".into(),
            size: 4096,
            generation: Generation(1),
            limits,
            layout: Layout::default(),
            segments: vec![],
            nodes: vec![],
        };
        Shared::open(map, Options { limits: ask, ..Options::default() })
    }

    fn story(work: impl Future<Output = ()>) {
        let mut builder = tokio::runtime::Builder::new_current_thread();
        let runtime = builder.enable_all().start_paused(true).build().unwrap();
        LocalSet::new().block_on(&runtime, work);
    }

    type Log = Rc<RefCell<Vec<(u64, u64)>>>;

    /// Who passes, and in which second.
    fn send(shared: &Rc<Shared>, log: &Log, began: Instant, who: u64) {
        let (shared, log) = (Rc::clone(shared), Rc::clone(log));
        spawn_local(async move {
            shared.pass(4096).await;
            log.borrow_mut().push((who, began.elapsed().as_secs()));
        });
    }

    #[test]
    fn nobody_overtakes_when_limits_come_change_and_go() {
        story(async {
            let (shared, log, began) = (open(VolumeLimits { iops: 1, mibps: 0 }, None), Log::default(), Instant::now());
            for who in 0..6 {
                send(&shared, &log, began, who);
            }
            sleep(Duration::from_millis(2500)).await;
            assert_eq!(*log.borrow(), [(0, 0), (1, 1), (2, 2)]);
            // The one in the turnstile has its time; those behind wait no longer, and a newcomer stays behind them.
            shared.pace.set(NONE);
            send(&shared, &log, began, 6);
            yield_now().await;
            assert_eq!(log.borrow().len(), 3);
            sleep(Duration::from_secs(1)).await;
            assert_eq!(log.borrow()[3..], [(3, 3), (4, 3), (5, 3), (6, 3)]);
            assert!(shared.pace.is_open());
        });
    }

    #[test]
    fn who_gives_up_and_a_volume_that_closes_or_is_fenced_hold_up_nobody() {
        let ends: [fn(&Rc<Shared>); 2] = [|shared| shared.close(), |shared| shared.fence(Generation(2))];
        for end in ends {
            story(async {
                let (shared, log, began) =
                    (open(VolumeLimits { iops: 1, mibps: 0 }, None), Log::default(), Instant::now());
                send(&shared, &log, began, 0);
                yield_now().await;
                for _ in 0..50 {
                    tokio::time::timeout(Duration::from_millis(10), shared.pass(4096)).await.unwrap_err();
                }
                for who in 1..100 {
                    send(&shared, &log, began, who);
                }
                sleep(Duration::from_millis(600)).await;
                assert_eq!(*log.borrow(), [(0, 0), (1, 1)], "as if nobody had given up");
                end(&shared);
                sleep(Duration::from_millis(100)).await;
                assert_eq!(log.borrow().len(), 100);
            });
        }
    }

    #[test]
    fn a_change_is_followed_within_the_stated_time_and_silence_changes_nothing() {
        story(async {
            let said = Rc::new(RefCell::new(Some(VolumeLimits { iops: 7, mibps: 0 })));
            let answers = Rc::clone(&said);
            let ask: AskLimits = Rc::new(move || {
                let said = *answers.borrow();
                Box::pin(async move { said })
            });
            let shared = open(NONE, Some(ask));
            let every = Duration::from_nanos(LIMITS_EVERY.0) + Duration::from_millis(2);
            let now = || shared.pace.throttle.borrow().limits();
            sleep(every).await;
            assert_eq!(now().iops, 7);
            *said.borrow_mut() = None;
            sleep(every).await;
            assert_eq!(now().iops, 7);
            *said.borrow_mut() = Some(NONE);
            sleep(every).await;
            assert!(now().is_none());
        });
    }
}
