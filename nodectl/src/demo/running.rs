//! The demo's cluster: `cluster up` on a thread of this process.
//!
//! The children die with that thread ([`crate::cluster::child`]), and the thread with this process: nothing is left
//! behind, however the demo ends.

use std::sync::mpsc;
use std::thread::JoinHandle;
use std::time::Duration;

use tokio::sync::oneshot;

use crate::cluster::dir::ClusterFile;
use crate::cluster::up;
use crate::failure::{Exit, Failure};
use crate::output;
use crate::signals;

/// How long the cluster may take to come up; longer than its own limit, so that its own reason is seen.
const UP_LIMIT: Duration = Duration::from_secs(150);

/// A running cluster.
pub(crate) struct Running {
    authority: String,
    stop: Option<oneshot::Sender<()>>,
    thread: Option<JoinHandle<Result<(), Failure>>>,
}

impl Running {
    /// Starts it and waits until every node serves.
    pub(crate) fn start(args: up::Args) -> Result<Self, Failure> {
        let (stop, stopped) = oneshot::channel();
        let (ready, is_ready) = mpsc::channel();
        let thread = std::thread::spawn(move || {
            let told = move |_: &_, file: &ClusterFile| {
                // The other end waits, unless it gave up.
                let _ = ready.send(file.authority.clone());
                Ok(())
            };
            signals::block_on(up::serve(&args, told, async move { drop(stopped.await) }))
        });
        let mut running = Self { authority: String::new(), stop: Some(stop), thread: Some(thread) };
        let spinner = output::spinner("starting the cluster");
        let answer = is_ready.recv_timeout(UP_LIMIT);
        spinner.finish_and_clear();
        match answer {
            Ok(authority) => {
                running.authority = authority;
                Ok(running)
            }
            Err(mpsc::RecvTimeoutError::Disconnected) => {
                Err(running.end().err().unwrap_or_else(|| Failure::failed("the cluster ended before it served")))
            }
            Err(mpsc::RecvTimeoutError::Timeout) => {
                Err(Failure::new(Exit::WaitTimedOut, "the cluster did not come up within 150 s"))
            }
        }
    }

    /// The authority's URL.
    pub(crate) fn authority(&self) -> &str {
        &self.authority
    }

    /// Stops everything and waits for it.
    pub(crate) fn stop(mut self) -> Result<(), Failure> {
        self.end()
    }

    fn end(&mut self) -> Result<(), Failure> {
        drop(self.stop.take());
        match self.thread.take().map(JoinHandle::join) {
            None => Ok(()),
            Some(Ok(result)) => result,
            Some(Err(_)) => Err(Failure::failed("the thread that ran the cluster panicked")),
        }
    }
}

impl Drop for Running {
    fn drop(&mut self) {
        let _ = self.end();
    }
}
