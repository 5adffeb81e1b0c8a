//! A volume attached by `nodectl volume attach` and served as NBD.

use std::time::Duration;

use super::child::Child;
use super::cluster::{PATIENCE, TestCluster};
use super::nbd::Nbd;
use super::wait_for;

/// A running gateway.
pub(crate) struct Gateway {
    child: Child,
    /// Where it serves.
    pub(crate) uri: String,
}

impl Gateway {
    /// Attaches and waits until the URI is printed.
    pub(crate) fn start(cluster: &TestCluster, volume: &str) -> Self {
        Self::start_at(cluster, volume, "127.0.0.1:0")
    }

    /// The same at a place of the caller's choice: `host:port` or `unix:path`.
    pub(crate) fn start_at(cluster: &TestCluster, volume: &str, at: &str) -> Self {
        use std::sync::atomic::{AtomicU32, Ordering};
        static NEXT: AtomicU32 = AtomicU32::new(0);
        let name = format!("gateway{}", NEXT.fetch_add(1, Ordering::Relaxed));
        let command = cluster.command(&["volume", "attach", volume, "--nbd", at]);
        let mut child = Child::start(command, cluster.scratch(), &name);
        let uri = wait_for("the gateway's URI", PATIENCE, || {
            assert!(child.ended().is_none(), "the gateway ended:\n{}", child.stderr());
            let said = child.stdout();
            let uri =
                said.split_whitespace().find(|word| word.starts_with("nbd://") || word.starts_with("nbd+unix://"));
            uri.map(str::to_owned).ok_or(said)
        });
        Self { child, uri }
    }

    /// A connection of our own client; every answer within `patience`.
    pub(crate) fn connect(&self, patience: Duration) -> Nbd {
        Nbd::connect(&self.uri, patience).unwrap_or_else(|error| panic!("{}: {error:?}\n{}", self.uri, self.log()))
    }

    /// Process id.
    pub(crate) fn pid(&self) -> u32 {
        self.child.pid()
    }

    /// What it has logged.
    pub(crate) fn log(&self) -> String {
        self.child.stderr()
    }

    /// SIGKILL.
    pub(crate) fn kill(&mut self) {
        self.child.kill();
    }

    /// SIGTERM; gives whether it ended well in time.
    pub(crate) fn stop(&mut self) -> bool {
        self.child.stop(Duration::from_secs(10)).is_some_and(|status| status.success())
    }
}
