//! A storm of nodes killed and started again while clients work, one node at a time and only when all is well again:
//! the volume must not lose more copies than it can spare.

use std::sync::atomic::{AtomicBool, AtomicU32, Ordering};
use std::time::{Duration, Instant};

use crate::support::cluster::{PATIENCE, TestCluster};

/// How long a killed node stays away.
const AWAY: Duration = Duration::from_millis(1500);

/// What a storm has done so far.
#[derive(Default)]
pub(crate) struct Storm {
    over: AtomicBool,
    survived: AtomicU32,
}

/// Ends the storm also when the clients' part panics.
struct Over<'a>(&'a Storm);

impl Drop for Over<'_> {
    fn drop(&mut self) {
        self.0.over.store(true, Ordering::Relaxed);
    }
}

impl Storm {
    /// Nodes that were killed, came back, and after whom everything was whole again.
    pub(crate) fn survived(&self) -> u32 {
        self.survived.load(Ordering::Relaxed)
    }

    fn is_over(&self) -> bool {
        self.over.load(Ordering::Relaxed)
    }

    fn rage(&self, cluster: &TestCluster, volume: &str) {
        let nodes = cluster.nodes();
        for node in nodes.iter().cycle() {
            if self.is_over() {
                return;
            }
            cluster.act("kill", node);
            std::thread::sleep(AWAY);
            cluster.act("start", node);
            if self.until_whole(cluster, volume) {
                self.survived.fetch_add(1, Ordering::Relaxed);
            }
        }
    }

    /// Waits until every copy is there again; false when the storm ended before.
    fn until_whole(&self, cluster: &TestCluster, volume: &str) -> bool {
        let begin = Instant::now();
        while !self.is_over() {
            let status = cluster.try_json(&["status"]).unwrap_or_default();
            if status["health"] == "ok" && status["nodes_up"] == status["nodes_total"] {
                return true;
            }
            if begin.elapsed() >= PATIENCE {
                let why = cluster.run(&["volume", "explain", volume]);
                panic!("not whole again after {PATIENCE:?}: {status}\n{why}");
            }
            std::thread::sleep(Duration::from_millis(100));
        }
        false
    }
}

/// Lets `clients` work while nodes are killed and started again.
pub(crate) fn storm(cluster: &TestCluster, volume: &str, clients: impl FnOnce(&Storm)) {
    let storm = Storm::default();
    std::thread::scope(|scope| {
        let raging = scope.spawn(|| {
            let _over = Over(&storm);
            storm.rage(cluster, volume);
        });
        {
            let _over = Over(&storm);
            clients(&storm);
        }
        raging.join().expect("the storm itself goes well");
    });
}

/// Says how long something took, for whoever wants the suite faster.
pub(crate) fn timed(what: &str, act: impl FnOnce()) {
    let begin = Instant::now();
    act();
    eprintln!("{what}: {:.1} s", begin.elapsed().as_secs_f32());
}
