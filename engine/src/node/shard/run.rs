//! The loop of a shard: wait for messages, the device or the clock, then take a turn.

use std::os::fd::{BorrowedFd, OwnedFd, RawFd};

use engine_core::limits::{STOP_WAIT, TICK, TURN_MAX};
use engine_core::time::{Span, Time};
use tokio::io::Interest;
use tokio::io::unix::AsyncFd;
use tokio::sync::oneshot;
use tokio::time::MissedTickBehavior;

use super::super::clock::{duration, now};
use super::super::mail::{Mail, ShardInbox};
use super::Shard;
use crate::store::Store;

/// Time for the last messages of machines that stop to leave before the device is settled.
const FAREWELL: Span = Span::millis(100);

/// A descriptor of our own for what somebody else's one waits for.
fn watch(fd: RawFd) -> std::io::Result<AsyncFd<OwnedFd>> {
    // SAFETY: the store that gave it keeps it open, and the store outlives this call.
    let own = unsafe { BorrowedFd::borrow_raw(fd) }.try_clone_to_owned()?;
    // SAFETY: an OwnedFd stays the same open descriptor until it is dropped.
    Ok(unsafe { AsyncFd::register_with_interest(own, Interest::READABLE) }?)
}

/// What woke the loop.
enum Woke {
    Mail,
    Device,
    Tick,
    Ended,
}

/// How a shard came to its end.
pub(crate) enum Ended {
    /// The node stops.
    Stopped,
    /// Its device is not served; the thread goes on for the others, with what comes for it.
    Retired(ShardInbox),
}

/// Takes what comes for a shard whose device is not served, until told to stop: nobody waits for it.
pub(crate) async fn idle(mut inbox: ShardInbox) {
    loop {
        tokio::select! {
            mail = inbox.work.recv() => match mail {
                Some(Mail::Stop(done)) => {
                    let _ = done.send(());
                    return;
                }
                Some(Mail::Leave(done)) => {
                    let _ = done.send(());
                }
                // Whoever waits for an answer sees that there is none.
                Some(_) => {}
                None => return,
            },
            request = inbox.requests.recv() => if request.is_none() { return },
        }
    }
}

/// Runs the shard until it is told to stop. `wake_fd` is readable when the store's device has something to take; it
/// stays open as long as the store lives.
pub(crate) async fn run<S: Store>(
    mut shard: Shard<S>,
    mut inbox: ShardInbox,
    wake_fd: Option<RawFd>,
) -> std::io::Result<Ended> {
    let device = wake_fd.map(watch).transpose()?;
    let mut ticks = tokio::time::interval(duration(TICK));
    ticks.set_missed_tick_behavior(MissedTickBehavior::Delay);
    let (mut mail, mut requests) = (Vec::with_capacity(TURN_MAX), Vec::with_capacity(TURN_MAX));
    let mut events = Vec::new();
    let mut again = false;
    let mut orders = Orders::default();
    loop {
        let open = !shard.is_congested() && orders.stop.is_none();
        let woke = tokio::select! {
            taken = inbox.work.recv_many(&mut mail, TURN_MAX) => if taken == 0 { Woke::Ended } else { Woke::Mail },
            taken = inbox.requests.recv_many(&mut requests, TURN_MAX), if open => {
                if taken == 0 { Woke::Ended } else { Woke::Mail }
            }
            () = device_ready(device.as_ref()) => Woke::Device,
            () = tokio::task::yield_now(), if again => Woke::Device,
            _ = ticks.tick() => Woke::Tick,
        };
        let moment = now();
        match woke {
            Woke::Ended => return Ok(Ended::Stopped), // nobody is left who could ask for anything
            Woke::Tick => shard.tick(moment),
            Woke::Mail | Woke::Device => {}
        }
        for one in mail.drain(..) {
            orders.take(&mut shard, moment, one);
        }
        for one in requests.drain(..) {
            shard.take_client(moment, one);
        }
        again = shard.advance(moment, &mut events);
        if orders.are_done(&mut shard, moment) {
            return Ok(Ended::Stopped);
        }
        if orders.retire {
            return Ok(Ended::Retired(inbox));
        }
    }
}

/// What the shard was told about its end.
#[derive(Default)]
struct Orders {
    leave: Option<oneshot::Sender<()>>,
    stop: Option<Stop>,
    retire: bool,
}

impl Orders {
    fn take<S: Store>(&mut self, shard: &mut Shard<S>, moment: Time, mail: Mail) {
        match mail {
            Mail::Leave(done) => {
                shard.take_leave(moment);
                self.leave = Some(done);
            }
            Mail::Stop(done) => {
                shard.take_stop(moment);
                self.stop = Some(Stop { done, since: moment, settling: false });
            }
            Mail::Retire => self.retire = true,
            mail => shard.take(moment, mail),
        }
    }

    /// Answers what has been done; whether this is the end.
    fn are_done<S: Store>(&mut self, shard: &mut Shard<S>, moment: Time) -> bool {
        // Those who asked may have lost patience.
        if self.leave.is_some() && shard.may_stop() {
            let _ = self.leave.take().map(|done| done.send(()));
        }
        if self.stop.as_mut().is_some_and(|stop| stop.is_done(shard, moment)) {
            let _ = self.stop.take().map(|stop| stop.done.send(()));
            return true;
        }
        false
    }
}

async fn device_ready(device: Option<&AsyncFd<OwnedFd>>) {
    match device {
        // An error of the descriptor shows when the device is polled; the clock keeps the loop alive meanwhile.
        Some(device) => match device.readable().await {
            Ok(mut guard) => guard.clear_ready(),
            Err(_) => std::future::pending().await,
        },
        None => std::future::pending().await,
    }
}

/// A stop on purpose, under way.
struct Stop {
    done: oneshot::Sender<()>,
    since: Time,
    settling: bool,
}

impl Stop {
    fn is_done<S: Store>(&mut self, shard: &mut Shard<S>, moment: Time) -> bool {
        let passed = moment.since(self.since);
        if passed < FAREWELL {
            return false;
        }
        if !self.settling {
            self.settling = true;
            shard.settle();
            return false;
        }
        shard.is_quiet() || passed > STOP_WAIT
    }
}
