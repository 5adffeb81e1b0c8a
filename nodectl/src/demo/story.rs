//! The steps of the demo. Each waits for something to happen, for a limited time, and says so when it does not.

use std::collections::BTreeSet;
use std::rc::Rc;
use std::sync::Arc;
use std::thread::JoinHandle;
use std::time::{Duration, Instant};

use engine::authority::api::{CreateVolume, Spread, Status, VolumeMap};
use engine_core::ids::NodeId;
use indicatif::ProgressBar;

use super::report::{CatchUp, Claim, Remirror, Report};
use crate::cluster::control::{self, Order, Verb, Who};
use crate::cluster::dir::Dir;
use crate::failure::{Exit, Failure};
use crate::http::Api;
use crate::verify::check::{self, Checked};
use crate::verify::log::{Ledger, Log};
use crate::verify::write::{self, Pattern, Plan, Progress, Written};
use crate::{output, reach, signals, units};

/// The demo's volume.
const VOLUME: &str = "demo";
const VOLUME_SIZE: u64 = 2 << 30;
const SEGMENT_SIZE: u64 = 256 << 20;
/// What has to be written in all, under load, through everything that happens.
const WRITTEN: u64 = 2 << 30;
/// What is written before anything happens, and while the killed node is away.
const FIRST: u64 = 512 << 20;
const WHILE_AWAY: u64 = 96 << 20;
/// The load's pace: so much that it hurts, and enough left of two cores to copy beside it.
const RATE: u64 = 40 << 20;
const DEPTH: usize = 16;
/// How long one asking may take.
const DEADLINE: Duration = Duration::from_secs(5);
/// A figure that has not changed for so long in reports that come once a second is the last.
const SETTLED: Duration = Duration::from_millis(2500);
const POLL: Duration = Duration::from_millis(100);
const LOAD_LIMIT: Duration = Duration::from_secs(120);
const FAILOVER_LIMIT: Duration = Duration::from_secs(30);
const CATCH_UP_LIMIT: Duration = Duration::from_secs(60);
const REMIRROR_LIMIT: Duration = Duration::from_secs(120);
const END_LIMIT: Duration = Duration::from_secs(30);

type Load = JoinHandle<Result<(Written, Option<Failure>), Failure>>;

/// The demo under way.
pub(crate) struct Story {
    dir: Dir,
    api: Api,
    nodes: u16,
    zones: u16,
    begun: Instant,
    bar: ProgressBar,
    progress: Arc<Progress>,
}

impl Story {
    /// At its beginning: the cluster serves, nothing is on it.
    pub(crate) fn new(dir: Dir, authority: &str, nodes: u16, zones: u16) -> Self {
        let bar = output::bar(WRITTEN, "load");
        let api = Api::new(authority, Some(DEADLINE));
        Self { dir, api, nodes, zones, begun: Instant::now(), bar, progress: Arc::default() }
    }

    /// A line of the story, on stderr.
    pub(crate) fn say(&self, what: &str) {
        self.bar.suspend(|| eprintln!("{:6.1} s  {what}", self.begun.elapsed().as_secs_f64()));
    }

    /// All of it.
    pub(crate) fn tell(&self) -> Result<Report, Failure> {
        self.create()?;
        let log = self.dir.path().join("acknowledged");
        let load = self.start_load(&log)?;
        let result = self.happenings(&load);
        self.progress.stop();
        let ended = end_load(load);
        self.bar.finish_and_clear();
        // What the load met explains best why the story could not go on.
        let (written, catch_up, remirror) = match (ended, result) {
            (Ok((_, Some(failure))) | Err(failure), _) | (Ok(_), Err(failure)) => return Err(failure),
            (Ok((written, None)), Ok((catch_up, remirror))) => (written, catch_up, remirror),
        };
        self.say(&format!("load ended: {} acknowledged", units::size(written.acknowledged_bytes)));
        let verified = self.verify(&log)?;
        Ok(self.report(&written, catch_up, remirror, verified))
    }

    fn create(&self) -> Result<(), Failure> {
        // Where a zone has one node only, no other could take over its copies: then each copy on another node must do.
        let spread = if self.zones >= 3 && self.nodes >= 2 * self.zones { Spread::Zone } else { Spread::Node };
        let wanted = CreateVolume {
            name: VOLUME.to_owned(),
            size: VOLUME_SIZE,
            copies: Some(3),
            min_copies: None,
            segment_size: Some(SEGMENT_SIZE),
            zone: None,
            spread: Some(spread),
            iops: None,
            mibps: None,
        };
        let volume = Api::new(self.api.base(), None).create(&wanted)?;
        let segments = volume.segments.total;
        self.wait("every segment of the new volume to serve", END_LIMIT, || {
            let segments = self.api.volume(VOLUME)?.segments;
            Ok((segments.total > 0 && segments.full == segments.total).then_some(()))
        })?;
        self.say(&format!("volume of {} in {segments} segments, 3 copies", units::size(VOLUME_SIZE)));
        Ok(())
    }

    /// The load writes on a thread of its own until it is told to end.
    fn start_load(&self, log: &std::path::Path) -> Result<Load, Failure> {
        let map = Api::new(self.api.base(), None).attach(VOLUME, &reach::client_name("demo"))?;
        let volume = u64::from(map.volume.0);
        let log = Log::open(log, volume)?;
        let sizes = vec![4 << 10, 16 << 10, 64 << 10, 256 << 10];
        let limit = Some(Duration::from_secs(600));
        let plan = Plan {
            volume,
            limit,
            bytes: None,
            depth: DEPTH,
            seed: 1,
            sizes,
            zeroes: 0,
            pattern: Pattern::Random,
            rate: Some(RATE),
        };
        let progress = self.progress.clone();
        let api = self.api.clone();
        Ok(std::thread::spawn(move || {
            signals::block_on(async {
                let volume = Rc::new(reach::open(&api, &map, None));
                Ok(write::run(volume, plan, log, progress).await)
            })
        }))
    }

    fn happenings(&self, load: &Load) -> Result<(CatchUp, Remirror), Failure> {
        self.wait_written(FIRST, "the first 512 MiB to be acknowledged", load)?;
        self.say(&format!("{} acknowledged", units::size(FIRST)));
        let (killed, catch_up) = self.kill_and_return(load)?;
        let remirror = self.lose(killed, load)?;
        self.wait_written(WRITTEN, "2 GiB to be acknowledged", load)?;
        Ok((catch_up, remirror))
    }

    fn wait_written(&self, bytes: u64, what: &str, load: &Load) -> Result<(), Failure> {
        self.wait(what, LOAD_LIMIT, || self.written(bytes, load))
    }

    fn written(&self, bytes: u64, load: &Load) -> Result<Option<()>, Failure> {
        self.bar.set_position(self.progress.bytes().min(WRITTEN));
        if self.progress.bytes() >= bytes {
            return Ok(Some(()));
        }
        if load.is_finished() {
            return Err(Failure::new(Exit::IllegalState, "the load ended too early"));
        }
        Ok(None)
    }

    /// SIGKILL of the primary of the first segment, its return, and nothing copied but what it missed.
    fn kill_and_return(&self, load: &Load) -> Result<(NodeId, CatchUp), Failure> {
        let map = self.api.map(VOLUME)?;
        let first = map.segments.first().ok_or_else(|| Failure::failed("the volume has no segments"))?;
        let node = first.primary;
        let had = held_by(&map, node);
        self.order(Verb::Kill, node)?;
        let killed = Instant::now();
        self.say(&format!("SIGKILL to {node}, primary of segment {}", first.segment));
        let enough = self.progress.bytes() + WHILE_AWAY;
        self.wait("writes to go on without the killed primary", FAILOVER_LIMIT, || self.written(enough, load))?;
        self.say(&format!("writes go on; longest gap {}", units::time(self.progress.longest_gap())));
        self.order(Verb::Start, node)?;
        let started = Instant::now();
        let away_seconds = killed.elapsed().as_secs_f64();
        self.say(&format!("{node} is started again"));
        self.wait(&format!("{node} to catch up in all its segments"), CATCH_UP_LIMIT, || {
            self.written(u64::MAX, load)?;
            let map = self.api.map(VOLUME)?;
            Ok((is_whole(&map) && held_by(&map, node).is_superset(&had)).then_some(()))
        })?;
        let seconds = started.elapsed().as_secs_f64();
        let caught_up_bytes = self.settled(|| Ok(self.api.node(node)?.copied_bytes))?;
        let held_bytes = self.api.node(node)?.used;
        self.say(&format!(
            "{node} has caught up with {} of {} it holds",
            units::size(caught_up_bytes),
            units::size(held_bytes)
        ));
        Ok((node, CatchUp { node: node.to_string(), away_seconds, seconds, caught_up_bytes, held_bytes }))
    }

    /// Another node lost for good, and its copies made again elsewhere.
    fn lose(&self, spared: NodeId, load: &Load) -> Result<Remirror, Failure> {
        let map = self.api.map(VOLUME)?;
        let others = map.segments.iter().flat_map(|config| config.members.iter().copied()).filter(|n| *n != spared);
        let node = others
            .max_by_key(|node| held_by(&map, *node).len())
            .ok_or_else(|| Failure::failed("no node but the first holds anything, so there is nothing to lose"))?;
        let replicas = held_by(&map, node).len() as u64;
        let before = self.copied(node)?;
        self.order(Verb::Lose, node)?;
        let lost = Instant::now();
        self.say(&format!("{node} is lost for good, with {replicas} replicas"));
        let mut begun = None;
        self.wait(&format!("the replicas of {node} to be re-mirrored"), REMIRROR_LIMIT, || {
            self.written(u64::MAX, load)?;
            if begun.is_none() && self.copied(node)? > before {
                begun = Some(Instant::now());
                self.say("re-mirroring has begun");
            }
            let map = self.api.map(VOLUME)?;
            Ok((is_whole(&map) && held_by(&map, node).is_empty()).then_some(()))
        })?;
        let ended = Instant::now();
        let begun = begun.unwrap_or(ended);
        let bytes = self.settled(|| self.copied(node))?.saturating_sub(before);
        let took = ended - begun;
        let mib_per_second = units::mib_per_second(bytes, took);
        self.say(&format!("re-mirrored {} at {mib_per_second:.0} MiB/s", units::size(bytes)));
        Ok(Remirror {
            node: node.to_string(),
            replicas,
            waited_seconds: (begun - lost).as_secs_f64(),
            seconds: took.as_secs_f64(),
            bytes,
            mib_per_second,
        })
    }

    /// Bytes copied to all nodes but one, since they started.
    fn copied(&self, but: NodeId) -> Result<u64, Failure> {
        Ok(self.api.nodes()?.iter().filter(|node| node.id != but).map(|node| node.copied_bytes).sum())
    }

    /// A figure from the nodes' reports once it does not change any more: they come once a second.
    fn settled(&self, ask: impl Fn() -> Result<u64, Failure>) -> Result<u64, Failure> {
        let mut last = (Instant::now(), ask()?);
        self.wait("the nodes to report what they copied", END_LIMIT, || {
            let now = ask()?;
            if now != last.1 {
                last = (Instant::now(), now);
            }
            Ok((last.0.elapsed() > SETTLED).then_some(now))
        })
    }

    fn verify(&self, log: &std::path::Path) -> Result<Checked, Failure> {
        let ledger = Ledger::read(log)?;
        let bar = output::bar(2 * VOLUME_SIZE, "verifying");
        let api = Api::new(self.api.base(), None);
        let found = reach::attached(&api, VOLUME, Some(END_LIMIT), async |session| {
            check::run(session.volume, session.map, ledger, true, check::CATCH_UP, bar.clone()).await
        })?;
        bar.finish_and_clear();
        self.say(&format!("{} blocks checked by the client, {} on members", found.client_blocks, found.member_blocks));
        Ok(found)
    }

    fn order(&self, verb: Verb, node: NodeId) -> Result<(), Failure> {
        control::order(&self.dir, Order { verb, who: Who::Node(node) }).map(drop)
    }

    /// Asks until there is an answer. An authority that cannot be asked is asked again; anything else ends it.
    fn wait<T>(
        &self,
        what: &str,
        limit: Duration,
        mut ask: impl FnMut() -> Result<Option<T>, Failure>,
    ) -> Result<T, Failure> {
        let begun = Instant::now();
        let mut last = String::new();
        loop {
            match ask() {
                Ok(Some(answer)) => return Ok(answer),
                Ok(None) => last.clear(),
                Err(failure) if failure.exit == Exit::IllegalState => return Err(failure),
                Err(failure) => last = format!(" (last error: {})", failure.what),
            }
            if begun.elapsed() > limit {
                let condition = self.api.status().map(|status| condition(&status)).unwrap_or_default();
                let what = format!("waited {:.0} s for {what}{last}{condition}", limit.as_secs_f64());
                return Err(Failure::new(Exit::WaitTimedOut, what));
            }
            std::thread::sleep(POLL);
        }
    }

    fn report(&self, written: &Written, catch_up: CatchUp, remirror: Remirror, verified: Checked) -> Report {
        let claims = claims(written, &catch_up, &remirror, &verified);
        Report {
            at: jiff::Timestamp::now().to_string(),
            ok: claims.iter().all(|claim| claim.held),
            claims,
            nodes: self.nodes,
            zones: self.zones,
            acknowledged_writes: written.acknowledged_writes,
            acknowledged_bytes: written.acknowledged_bytes,
            load_seconds: written.seconds,
            longest_client_gap_ms: written.longest_gap_ms,
            longest_client_wait_ms: written.longest_wait_ms,
            catch_up,
            remirror,
            verified,
            seconds: 0.0,
        }
    }
}

fn claims(written: &Written, catch_up: &CatchUp, remirror: &Remirror, verified: &Checked) -> Vec<Claim> {
    let promised = verified.acknowledged_blocks * 3;
    vec![
        Claim {
            claim: "2 GiB acknowledged under load, no error reached the client",
            held: written.acknowledged_bytes >= WRITTEN && written.error.is_none(),
            figures: format!(
                "{} in {} writes, {:.1} MiB/s, longest client gap {:.0} ms, longest single write {:.0} ms",
                units::size(written.acknowledged_bytes),
                written.acknowledged_writes,
                written.mib_per_second,
                written.longest_gap_ms,
                written.longest_wait_ms
            ),
        },
        Claim {
            claim: "a killed primary came back by catch-up",
            held: catch_up.caught_up_bytes > 0 && catch_up.caught_up_bytes < catch_up.held_bytes,
            figures: format!(
                "{} away {:.1} s: {} copied of {} held, in {:.1} s",
                catch_up.node,
                catch_up.away_seconds,
                units::size(catch_up.caught_up_bytes),
                units::size(catch_up.held_bytes),
                catch_up.seconds
            ),
        },
        Claim {
            claim: "a lost node was re-mirrored",
            held: remirror.bytes > 0,
            figures: format!(
                "{}: {} replicas, {} after {:.1} s, at {:.0} MiB/s",
                remirror.node,
                remirror.replicas,
                units::size(remirror.bytes),
                remirror.waited_seconds,
                remirror.mib_per_second
            ),
        },
        Claim {
            claim: "every acknowledged byte is there, on every member",
            held: verified.wrong == 0 && verified.member_blocks_acknowledged == promised && promised > 0,
            figures: format!(
                "{} writes in {} blocks x 3 members verified, {} wrong",
                verified.acknowledged_writes, verified.acknowledged_blocks, verified.wrong
            ),
        },
    ]
}

/// The cluster's condition in a sentence, for whoever waited in vain.
fn condition(status: &Status) -> String {
    let (s, r) = (&status.segments, &status.remirror);
    format!(
        "; of {} segments {} are full, {} degraded, {} read-only, {} stuck; re-mirroring: {} active, {} parked",
        s.total, s.full, s.degraded, s.read_only, s.stuck, r.active, r.parked
    )
}

/// Segments a node is a member of.
fn held_by(map: &VolumeMap, node: NodeId) -> BTreeSet<u32> {
    map.segments.iter().filter(|config| config.is_member(node)).map(|config| config.segment.index).collect()
}

/// Whether every segment has all its copies.
fn is_whole(map: &VolumeMap) -> bool {
    map.segments.iter().all(|config| config.missing() == 0)
}

/// Waits for the load's end, for a limited time.
fn end_load(load: Load) -> Result<(Written, Option<Failure>), Failure> {
    let begun = Instant::now();
    while !load.is_finished() {
        if begun.elapsed() > END_LIMIT {
            return Err(Failure::new(Exit::WaitTimedOut, "writes in flight did not end within 30 s of the load's end"));
        }
        std::thread::sleep(POLL);
    }
    load.join().unwrap_or_else(|_| Err(Failure::failed("the load's thread panicked")))
}
