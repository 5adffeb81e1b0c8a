//! Proving that everything acknowledged is there: on the client's path, and on every member's own disk.
//!
//! A block must hold the last acknowledged write or a later one (zeros are, where the log announces them); a block nobody was promised may be zero or any
//! stamped block of its place. Members must besides agree with each other about every block, acknowledged or not:
//! an undecided write ends everywhere or nowhere (I9). A member learns the commit point a moment after the client
//! got its answer, so what is not there yet is asked for again for a while before it counts as lost.

use std::cell::RefCell;
use std::rc::Rc;
use std::time::Duration;

use bytes::Bytes;
use engine::authority::api::VolumeMap;
use engine::gateway::Export;
use engine_core::ids::NodeId;
use indicatif::ProgressBar;
use serde::Serialize;
use tokio::task::JoinSet;
use tokio::time::Instant;

use super::log::Ledger;
use super::stamp::{BLOCK, Content, Stamp, Wrong, judge};

/// Bytes looked at in one step; a chunk never spans two segments.
pub(crate) const STEP: u64 = engine_core::limits::CHUNK_SIZE;
/// Steps in flight.
const DEPTH: usize = 8;
/// Losses named one by one; the rest is counted.
const NAMED: usize = 10;
/// How long a member may be behind, from the beginning of the check on (which writes nothing).
pub(crate) const CATCH_UP: Duration = Duration::from_secs(10);
/// How long one member may take to show a step.
const PEEK_LIMIT: Duration = Duration::from_secs(5);
/// Pause before a member is asked again.
const AGAIN: Duration = Duration::from_millis(200);

/// Reading one member's own blocks, whatever its role.
pub(crate) trait Peek: 'static {
    /// Reads whole blocks of the volume from what one node holds of them.
    fn peek(&self, node: NodeId, offset: u64, len: u64) -> impl Future<Output = Result<Bytes, String>>;
}

/// One block that is not what it has to be.
#[derive(Debug, Clone, PartialEq, Eq, Serialize)]
pub(crate) struct Loss {
    /// Which 4 KiB of the volume.
    pub(crate) block: u64,
    /// Where it was read: `client` or a node.
    pub(crate) at: String,
    /// What is wrong with it.
    pub(crate) wrong: Wrong,
    /// Write number that had to be there.
    pub(crate) acknowledged: Option<u64>,
    /// Write number found, or why there is none.
    pub(crate) found: String,
}

/// What the check found.
#[derive(Debug, Clone, Default, PartialEq, Eq, Serialize)]
pub(crate) struct Checked {
    /// Acknowledged writes in the log.
    pub(crate) acknowledged_writes: u64,
    /// Blocks with an acknowledged write.
    pub(crate) acknowledged_blocks: u64,
    /// Blocks judged on the client's path.
    pub(crate) client_blocks: u64,
    /// Blocks judged on members, each member counted.
    pub(crate) member_blocks: u64,
    /// Blocks times members that had to hold an acknowledged write and do.
    pub(crate) member_blocks_acknowledged: u64,
    /// Blocks that are not what they have to be.
    pub(crate) wrong: u64,
    /// The first of them.
    pub(crate) first_wrong: Vec<Loss>,
}

impl Checked {
    fn note(&mut self, loss: Loss) {
        self.wrong += 1;
        if self.first_wrong.len() < NAMED {
            self.first_wrong.push(loss);
        }
    }
}

/// A check under way.
struct Check<E> {
    volume: Rc<E>,
    map: VolumeMap,
    ledger: Ledger,
    found: RefCell<Checked>,
    bar: ProgressBar,
    /// Until then a member may be behind.
    patience: Instant,
}

impl<E: Export> Check<E> {
    fn acknowledged_in(&self, first: u64, blocks: u64) -> bool {
        (first..first + blocks).any(|block| self.ledger.blocks.contains_key(&block))
    }

    /// Judges a run of blocks; gives back those that are wrong.
    fn judge(&self, at: &str, first: u64, data: &[u8]) -> Vec<Loss> {
        let mut losses = Vec::new();
        for (block, bytes) in (first..).zip(data.chunks_exact(BLOCK)) {
            let content = Stamp::read(bytes);
            let acknowledged = self.ledger.blocks.get(&block).copied();
            let zeros = self.ledger.zeros.get(&block).copied();
            if let Err(wrong) = judge(content, self.ledger.volume, block, acknowledged, zeros) {
                losses.push(Loss { block, at: at.to_owned(), wrong, acknowledged, found: describe(content) });
            }
        }
        losses
    }

    fn unreadable(&self, at: &str, first: u64, blocks: u64, why: &str) -> Vec<Loss> {
        let loss = |block| Loss {
            block,
            at: at.to_owned(),
            wrong: Wrong::Unreadable,
            acknowledged: self.ledger.blocks.get(&block).copied(),
            found: why.to_owned(),
        };
        (first..first + blocks).map(loss).collect()
    }

    /// Whether a step can be skipped: nothing was promised in it, and nothing is there.
    async fn is_hole(&self, offset: u64, len: u64) -> bool {
        if self.acknowledged_in(offset / BLOCK as u64, len / BLOCK as u64) {
            return false;
        }
        match self.volume.allocation(offset, len).await {
            Ok(runs) => runs.iter().map(|(len, _)| len).sum::<u64>() >= len && runs.iter().all(|(_, data)| !data),
            Err(_) => false,
        }
    }

    async fn client_step(&self, offset: u64, len: u64) {
        let (first, blocks) = (offset / BLOCK as u64, len / BLOCK as u64);
        if !self.is_hole(offset, len).await {
            let losses = match self.volume.read(offset, len).await {
                Ok(data) if data.len() as u64 == len => self.judge("client", first, &data),
                Ok(data) => self.unreadable("client", first, blocks, &format!("{} bytes instead of {len}", data.len())),
                Err(error) => self.unreadable("client", first, blocks, &error.to_string()),
            };
            let mut found = self.found.borrow_mut();
            found.client_blocks += blocks;
            losses.into_iter().for_each(|loss| found.note(loss));
        }
        self.bar.inc(len);
    }
}

impl<E: Export + Peek> Check<E> {
    async fn members_step(&self, offset: u64, len: u64) {
        if !self.is_hole(offset, len).await {
            let mut at = offset;
            for run in self.map.layout.runs(offset, len) {
                match self.map.segments.get(run.segment as usize) {
                    Some(config) => self.run_on_members(&config.members, at, run.len).await,
                    None => {
                        let why = format!("the map has no segment {}", run.segment);
                        let losses = self.unreadable("map", at / BLOCK as u64, run.len / BLOCK as u64, &why);
                        losses.into_iter().for_each(|loss| self.found.borrow_mut().note(loss));
                    }
                }
                at += run.len;
            }
        }
        self.bar.inc(len);
    }

    async fn run_on_members(&self, members: &[NodeId], offset: u64, len: u64) {
        let (losses, good) = loop {
            let (losses, good) = self.ask_members(members, offset, len).await;
            if losses.is_empty() || Instant::now() >= self.patience {
                break (losses, good);
            }
            tokio::time::sleep(AGAIN).await;
        };
        let mut found = self.found.borrow_mut();
        found.member_blocks += len / BLOCK as u64 * members.len() as u64;
        found.member_blocks_acknowledged += good;
        losses.into_iter().for_each(|loss| found.note(loss));
    }

    /// Asks every member once: what is wrong, and how many acknowledged blocks are right.
    async fn ask_members(&self, members: &[NodeId], offset: u64, len: u64) -> (Vec<Loss>, u64) {
        let mut losses = Vec::new();
        let mut good = 0;
        let mut reference: Option<Bytes> = None;
        let (first, blocks) = (offset / BLOCK as u64, len / BLOCK as u64);
        let promised = (first..first + blocks).filter(|block| self.ledger.blocks.contains_key(block)).count() as u64;
        for node in members {
            let name = node.to_string();
            let answer = tokio::time::timeout(PEEK_LIMIT, self.volume.peek(*node, offset, len)).await;
            let data = match answer.unwrap_or_else(|_| Err("no answer in time".to_owned())) {
                Ok(data) if data.len() as u64 == len => data,
                Ok(data) => {
                    losses.extend(self.unreadable(&name, first, blocks, &format!("{} bytes", data.len())));
                    continue;
                }
                Err(why) => {
                    losses.extend(self.unreadable(&name, first, blocks, &why));
                    continue;
                }
            };
            let mut wrong = self.judge(&name, first, &data);
            good += promised - wrong.iter().filter(|loss| loss.acknowledged.is_some()).count() as u64;
            if wrong.is_empty() && reference.as_ref().is_some_and(|other| *other != data) {
                let other = reference.as_ref().expect("just seen");
                wrong = self.differences(&name, first, other, &data);
            }
            losses.append(&mut wrong);
            reference.get_or_insert(data);
        }
        (losses, good)
    }

    fn differences(&self, at: &str, first: u64, one: &[u8], other: &[u8]) -> Vec<Loss> {
        let pairs = (first..).zip(one.chunks_exact(BLOCK).zip(other.chunks_exact(BLOCK)));
        let differing = pairs.filter(|(_, (one, other))| one != other);
        let loss = |(block, (one, other)): (u64, (&[u8], &[u8]))| Loss {
            block,
            at: at.to_owned(),
            wrong: Wrong::Differs,
            acknowledged: self.ledger.blocks.get(&block).copied(),
            found: format!("{}; another member: {}", describe(Stamp::read(other)), describe(Stamp::read(one))),
        };
        differing.map(loss).collect()
    }
}

fn describe(content: Content) -> String {
    match content {
        Content::Zero => "zeros".to_owned(),
        Content::Torn => "a torn block".to_owned(),
        Content::Foreign => "other data".to_owned(),
        Content::Stamped(stamp) => format!("write {} of block {} of v{}", stamp.number, stamp.block, stamp.volume),
    }
}

/// Waits for one step; `false` when none is left. A step that died judged nothing: never pass over that in silence.
async fn finish_one(tasks: &mut JoinSet<()>) -> bool {
    match tasks.join_next().await {
        Some(joined) => {
            joined.expect("a step does not panic");
            true
        }
        None => false,
    }
}

/// Reads the volume through once (and every member's copy, with `replicas`) and judges every block against the log;
/// a member may be behind for as long as `patience`. Needs a `LocalSet`.
pub(crate) async fn run<E: Export + Peek>(
    volume: Rc<E>,
    map: VolumeMap,
    ledger: Ledger,
    replicas: bool,
    patience: Duration,
    bar: ProgressBar,
) -> Checked {
    let size = volume.size();
    let found = Checked {
        acknowledged_writes: ledger.writes,
        acknowledged_blocks: ledger.blocks.len() as u64,
        ..Checked::default()
    };
    let patience = Instant::now() + patience;
    let check = Rc::new(Check { volume, map, ledger, found: RefCell::new(found), bar, patience });
    for members in [false, true] {
        if members && !replicas {
            break;
        }
        let mut tasks = JoinSet::new();
        for offset in (0..size).step_by(usize::try_from(STEP).expect("1 MiB")) {
            if tasks.len() >= DEPTH {
                finish_one(&mut tasks).await;
            }
            let (check, len) = (check.clone(), STEP.min(size - offset));
            tasks.spawn_local(async move {
                if members { check.members_step(offset, len).await } else { check.client_step(offset, len).await }
            });
        }
        while finish_one(&mut tasks).await {}
    }
    let mut found = check.found.borrow().clone();
    found.first_wrong.sort_by(|a, b| (a.block, &a.at).cmp(&(b.block, &b.at)));
    found
}
