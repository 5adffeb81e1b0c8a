//! A random workload on several segments, power failures at any point, and a model that knows what must be there.
//!
//! Segments 0 and 1 are members: they get every entry. Segment 2 is a candidate: it missed a part of the history, ignores
//! writes to extents that it does not have yet, and copies them in. After a crash the store must be in the state after
//! some prefix of each segment's persists that holds at least all that were answered; its books are exact, and
//! `store check` has nothing to tell.
//!
//! Three crashes of a seed are lived through. Between any two steps the power may fail too: on a copy of the disk, which
//! is opened, looked at in the same way, and forgotten.
mod left;

use std::cell::Cell;
use std::collections::BTreeMap;

use engine_core::ids::ExtentIndex;
use engine_core::random::Random;
use engine_core::record::ExtentCopy;
use left::read_all;

use super::*;
use crate::store::Ticket;

const SIZE: u64 = 21 * MIB;
const WAL: u64 = 1024 * 1024;
const EXTENTS: u32 = 4;
const BLOCKS: u32 = EXTENTS * 32;
const SEGMENTS: usize = 3;
const CANDIDATE: usize = 2;

/// In how many steps the power fails once, on a copy.
const PROBED: u64 = 30;

type Checked = Result<(), String>;

thread_local! {
    static CRASHES: Cell<u64> = const { Cell::new(0) };
}

/// What a segment is after some prefix of the persists.
#[derive(Clone, Default)]
struct State {
    exists: bool,
    incarnation: u32,
    /// What really happened, by sequence number.
    history: BTreeMap<u64, Entry>,
    /// What this replica was told to log.
    log: BTreeMap<u64, Entry>,
    /// Highest commit point in a record.
    commit: u64,
}

impl State {
    fn last(&self) -> u64 {
        self.history.keys().next_back().copied().unwrap_or(0)
    }

    /// The number in each block at a commit point.
    fn content(&self, commit: u64) -> Vec<u64> {
        let mut content = vec![0; BLOCKS as usize];
        for entry in self.history.range(..=commit).map(|(_, entry)| entry) {
            let (first, count) = entry.change.range();
            for block in first.0..first.0 + count {
                content[block as usize] = match &entry.change {
                    Change::Write { blocks, .. } => numbers(blocks)[(block - first.0) as usize],
                    _ => 0,
                };
            }
        }
        content
    }
}

#[derive(Clone)]
enum Op {
    Create { incarnation: u32, missed: Vec<Entry> },
    Prepare { commit: u64, entry: Entry, logged: Entry },
    Truncate(u64),
    Drop,
    State,
}

fn apply(state: &mut State, op: &Op) {
    match op {
        Op::Create { incarnation, missed } => {
            let history = missed.iter().map(|entry| (entry.seq.0, entry.clone())).collect();
            *state = State { exists: true, incarnation: *incarnation, history, ..State::default() };
        }
        Op::Prepare { commit, entry, logged } => {
            state.history.insert(entry.seq.0, entry.clone());
            state.log.insert(logged.seq.0, logged.clone());
            state.commit = state.commit.max(*commit);
        }
        Op::Truncate(above) => {
            state.history.split_off(&(above + 1));
            state.log.split_off(&(above + 1));
        }
        Op::Drop => *state = State::default(),
        Op::State => {}
    }
}

struct Reading {
    at: usize,
    block: u32,
    count: u32,
    from: u64,
    life: u32,
}

struct World {
    random: Random,
    /// Of the crashes on copies: with and without them a seed does the same.
    probes: Random,
    disk: Disk,
    store: ShardStore<MemoryDevice>,
    /// After the last recovery.
    base: [State; SEGMENTS],
    persists: Vec<(usize, Vec<Op>)>,
    /// Which of them were answered.
    answered: Vec<bool>,
    /// After all persists.
    now: [State; SEGMENTS],
    told: [u64; SEGMENTS],
    /// By extent of the candidate: held, and the newest write that was ignored.
    current: [bool; EXTENTS as usize],
    ignored: [u64; EXTENTS as usize],
    copies: BTreeMap<u64, (u32, u64, u32)>,
    readings: BTreeMap<u64, Reading>,
    incarnations: u32,
    next: u64,
}

impl World {
    fn new(seed: u64) -> Self {
        let disk = formatted(SIZE, WAL);
        let store = open(&disk);
        Self {
            random: Random::new(seed),
            probes: Random::new(seed ^ 0x9E37_79B9),
            disk,
            store,
            base: Default::default(),
            persists: Vec::new(),
            answered: Vec::new(),
            now: Default::default(),
            told: [0; SEGMENTS],
            current: [false; EXTENTS as usize],
            ignored: [0; EXTENTS as usize],
            copies: BTreeMap::new(),
            readings: BTreeMap::new(),
            incarnations: 1,
            next: 1,
        }
    }

    fn roll(&mut self, below: u64) -> u64 {
        self.random.between(0, below - 1)
    }

    fn number(&mut self) -> u64 {
        self.next += 1;
        self.next
    }

    fn meta(&self, at: usize, incarnation: u32) -> Meta {
        let standing = if at == CANDIDATE { Standing::Candidate { base: Seq(0) } } else { Standing::Member };
        let mut meta = meta(segment(at as u32), EXTENTS, standing, 1);
        meta.config.incarnation = Incarnation(incarnation);
        meta
    }

    #[allow(clippy::needless_pass_by_value)] // reads better where it is called
    fn persist(&mut self, ops: Vec<(usize, Op)>) {
        let records = ops.iter().map(|(at, op)| {
            let id = segment(*at as u32);
            match op {
                Op::Create { incarnation, .. } => Record::Create { segment: id, meta: self.meta(*at, *incarnation) },
                Op::Prepare { commit, logged, .. } => prepare(id, *commit, logged.clone()),
                Op::Truncate(above) => Record::Truncate { segment: id, above: Seq(*above) },
                Op::Drop => Record::Drop { segment: id, incarnation: Incarnation(self.now[*at].incarnation) },
                Op::State => Record::State { segment: id, meta: self.meta(*at, self.now[*at].incarnation) },
            }
        });
        let records = records.collect();
        self.persists.push((ops[0].0, ops.iter().map(|(_, op)| op.clone()).collect()));
        self.answered.push(false);
        for (at, op) in &ops {
            apply(&mut self.now[*at], op);
        }
        self.store.persist(records, Ticket(self.persists.len() as u64));
    }

    fn random_change(&mut self, at: usize, seq: u64) -> Entry {
        if self.roll(12) == 0 {
            return self.large_write(at, seq);
        }
        // Mostly one hot extent; the candidate's writes stay inside one.
        let extent = if self.roll(3) == 0 { self.roll(u64::from(EXTENTS)) as u32 } else { 1 };
        let first = extent * 32 + self.roll(32) as u32;
        let room = if at == CANDIDATE { (extent + 1) * 32 - first } else { BLOCKS - first };
        let count = (1 + self.roll(4) as u32).min(room);
        match self.roll(10) {
            0 => Entry { epoch: Epoch(1), seq: Seq(seq), change: Change::Nothing },
            1 => zero(seq, first, count),
            2 if at == CANDIDATE => zero(seq, extent * 32, 32),
            2 => zero(seq, 0, BLOCKS),
            _ => {
                let number = self.number();
                write(segment(at as u32), seq, first, count, number)
            }
        }
    }

    /// One that has a whole extent in it: it goes to a slab of its own, if there is one to spare.
    fn large_write(&mut self, at: usize, seq: u64) -> Entry {
        let extent = self.roll(u64::from(EXTENTS)) as u32;
        let (before, behind) = if at == CANDIDATE { (0, 0) } else { (self.roll(3) as u32, self.roll(3) as u32) };
        let first = (extent * 32).saturating_sub(before);
        let count = ((extent + 1) * 32 + behind).min(BLOCKS) - first;
        let number = self.number();
        write(segment(at as u32), seq, first, count, number)
    }

    fn prepare_op(&mut self, at: usize, seq: u64) -> Op {
        let entry = self.random_change(at, seq);
        let mut logged = entry.clone();
        if at == CANDIDATE
            && let Some(extent) = entry.change.extents().next()
            && !self.current[extent.0 as usize]
        {
            self.ignored[extent.0 as usize] = seq;
            logged.change = Change::Nothing;
        }
        Op::Prepare { commit: self.told[at], entry, logged }
    }

    fn create(&mut self, at: usize) {
        self.incarnations += 1;
        let missed = if at == CANDIDATE { (1..=12).map(|seq| self.random_change(at, seq)).collect() } else { vec![] };
        if at == CANDIDATE {
            (self.current, self.ignored) = Default::default();
            self.copies.clear();
        }
        self.told[at] = missed.len() as u64;
        self.persist(vec![(at, Op::Create { incarnation: self.incarnations, missed })]);
        // Told before it is durable, as a message may.
        self.store.commit(segment(at as u32), Seq(self.told[at]));
    }

    /// A segment after its first `prefix` persists.
    fn state(&self, at: usize, prefix: usize) -> State {
        let mut state = self.base[at].clone();
        let own = self.persists.iter().filter(|(which, _)| *which == at).take(prefix);
        own.flat_map(|(_, ops)| ops).for_each(|op| apply(&mut state, op));
        state
    }

    /// How many of a segment's persists there are, and were answered: the first ones.
    fn counts(&self, at: usize) -> (usize, usize) {
        let own = || self.persists.iter().zip(&self.answered).filter(move |((which, _), _)| *which == at);
        (own().count(), own().filter(|(_, answered)| **answered).count())
    }

    fn acked_state(&self, at: usize) -> State {
        self.state(at, self.counts(at).1)
    }

    fn open_persists(&self) -> usize {
        self.answered.iter().filter(|answered| !**answered).count()
    }

    fn act(&mut self) {
        let at = self.roll(SEGMENTS as u64) as usize;
        let acked = self.acked_state(at);
        if !self.now[at].exists {
            if !acked.exists {
                self.create(at);
            }
            return;
        }
        match self.roll(40) {
            0..16 => {
                let count = 1 + self.roll(3);
                let first = self.now[at].last() + 1;
                let mut ops: Vec<_> = (first..first + count).map(|seq| (at, self.prepare_op(at, seq))).collect();
                // A persist has its bound.
                let large =
                    |op: &(usize, Op)| matches!(&op.1, Op::Prepare { entry, .. } if entry.change.data_len() > 65536);
                if ops.iter().any(large) {
                    let at_most = ops.iter().position(large).map_or(1, |index| index.max(1));
                    ops.truncate(at_most);
                }
                self.persist(ops);
            }
            16..24 => {
                let durable = self.durable(at, &acked);
                if durable > self.told[at] {
                    self.told[at] = self.random.between(self.told[at] + 1, durable);
                    self.store.commit(segment(at as u32), Seq(self.told[at]));
                }
            }
            24 => {
                let (told, last) = (self.told[at], self.now[at].last());
                let above = self.random.between(told, last.max(told));
                let mut ops = vec![(at, Op::Truncate(above))];
                if self.roll(2) == 0 {
                    ops.push((at, self.prepare_op(at, above + 1)));
                }
                self.persist(ops);
            }
            25 => self.persist(vec![(at, Op::State)]),
            26 if self.roll(4) == 0 => self.persist(vec![(at, Op::Drop)]),
            27..34 if acked.exists && acked.incarnation == self.now[at].incarnation => self.read(at),
            34..39 if acked.exists && acked.incarnation == self.now[at].incarnation => self.copy(),
            39 => self.store.settle(),
            _ => {}
        }
    }

    /// Only what is durable here and still there can be committed.
    fn durable(&self, at: usize, acked: &State) -> u64 {
        let same = acked.exists && acked.incarnation == self.now[at].incarnation;
        let durable = if same { acked.last().min(self.now[at].last()) } else { 0 };
        let agreed = |seq: &u64| acked.log.get(seq) == self.now[at].log.get(seq);
        (self.told[at] + 1..=durable).take_while(agreed).last().unwrap_or(0)
    }

    fn commit_all(&mut self) {
        for at in 0..SEGMENTS {
            let durable = self.durable(at, &self.acked_state(at));
            if durable > self.told[at] {
                self.told[at] = durable;
                self.store.commit(segment(at as u32), Seq(durable));
            }
        }
    }

    fn read(&mut self, at: usize) {
        let block = self.roll(u64::from(BLOCKS)) as u32;
        let count = 1 + self.roll(u64::from(BLOCKS - block).min(64)) as u32;
        let ticket = self.number();
        let reading = Reading { at, block, count, from: self.told[at], life: self.now[at].incarnation };
        self.readings.insert(ticket, reading);
        self.store.read(segment(at as u32), BlockIndex(block), count, Ticket(ticket));
    }

    fn copy(&mut self) {
        let at = CANDIDATE;
        if !self.now[at].exists || self.now[at].incarnation != self.acked_state(at).incarnation {
            return;
        }
        let extent = self.roll(u64::from(EXTENTS)) as u32;
        let stamp = self.told[at];
        let content = self.now[at].content(stamp);
        let held: Vec<(u32, u64)> =
            (0..32).map(|at| (at, content[(extent * 32 + at) as usize])).filter(|(_, number)| *number != 0).collect();
        let present = held.iter().fold(0, |mask, (at, _)| mask | 1 << at);
        let blocks = blocks(segment(at as u32), extent * 32, &held);
        let ticket = self.number();
        self.copies.insert(ticket, (extent, stamp, self.now[at].incarnation));
        let copy = ExtentCopy { extent: ExtentIndex(extent), stamp: Seq(stamp), present, blocks };
        self.store.copy_in(segment(at as u32), copy, Ticket(ticket));
    }

    /// Finishes some of the device's operations in any order.
    fn step(&mut self, all: bool) -> Checked {
        let device = self.store.device_mut();
        device.hold(!all);
        if !all && device.running() > 0 {
            let index = self.random.between(0, device.running() as u64 - 1) as usize;
            device.finish(index);
        }
        let mut events = Vec::new();
        self.store.poll(&mut events);
        events.into_iter().try_for_each(|event| self.on_event(event))
    }

    fn on_event(&mut self, event: Event) -> Checked {
        match event {
            Event::Persisted(Ticket(number)) => {
                let index = number as usize - 1;
                let at = self.persists[index].0;
                let earlier = self.persists.iter().zip(&self.answered).take(index);
                if self.answered[index] || earlier.filter(|((which, _), _)| *which == at).any(|(_, done)| !done) {
                    return Err(format!("persist {number} of segment {at} answered out of order"));
                }
                self.answered[index] = true;
            }
            Event::CopiedIn(Ticket(ticket)) => {
                if let Some((extent, stamp, life)) = self.copies.remove(&ticket)
                    && life == self.now[CANDIDATE].incarnation
                {
                    self.current[extent as usize] |= stamp >= self.ignored[extent as usize];
                }
            }
            Event::Read(Ticket(ticket), result) => {
                let Some(reading) = self.readings.remove(&ticket) else { return Ok(()) };
                if self.now[reading.at].incarnation == reading.life {
                    let blocks = result.map_err(|error| format!("read: {error}"))?;
                    return self.check(reading.at, reading.block, &blocks, reading.from, self.told[reading.at]);
                }
                assert!(reading.count > 0);
            }
            Event::Extent(..) => {}
            Event::Failed(text) => return Err(text),
        }
        Ok(())
    }

    /// Each block is as it was at some commit point between these two.
    fn check(&self, at: usize, first: u32, blocks: &Blocks, from: u64, to: u64) -> Checked {
        let contents: Vec<_> = (from..=to).map(|commit| self.now[at].content(commit)).collect();
        for (index, got) in numbers(blocks).into_iter().enumerate() {
            let block = first as usize + index;
            if at == CANDIDATE && !self.current[block / 32] {
                continue;
            }
            if !contents.iter().any(|content| content[block] == got) {
                let want: Vec<_> = contents.iter().map(|content| content[block]).collect();
                return Err(format!("segment {at} block {block} at {from}..={to}: got {got}, want one of {want:?}"));
            }
        }
        Ok(())
    }

    fn rest(&mut self) -> Checked {
        self.store.settle();
        for _ in 0..3000 {
            self.step(true)?;
            self.commit_all();
            if self.store.is_quiet() {
                self.store.audit();
                if self.open_persists() > 0 {
                    return Err("quiet with unanswered persists".into());
                }
                return Ok(());
            }
        }
        let (ring, map) = (&self.store.wal.ring, &self.store.map);
        let queued = (self.store.wal.queue.len(), self.store.wal.own.len(), self.store.wal.blocked);
        let told = (self.told, map.unresolved, map.dirty);
        Err(format!("the store does not come to rest: {ring:?} {queued:?} {told:?} {:?}", self.store.checkpoint))
    }
}

fn scenario(seed: u64) -> Checked {
    let mut world = World::new(seed);
    for _ in 0..3 {
        let steps = 20 + world.roll(200);
        for _ in 0..steps {
            // Never more than a full ring of uncommitted entries: that would wait, rightly.
            if world.open_persists() < 8 {
                world.act();
            }
            for _ in 0..world.roll(5) {
                world.step(false)?;
                if world.probes.between(1, PROBED) == 1 {
                    world.probe()?;
                }
            }
            if world.now.iter().zip(world.told).any(|(state, told)| state.last() > told + 6) {
                for _ in 0..20 {
                    world.step(true)?;
                }
                world.commit_all();
            }
        }
        if world.roll(3) == 0 {
            world.rest()?;
        }
        world.crash()?;
    }
    world.rest()?;
    for at in 0..SEGMENTS {
        if world.now[at].exists {
            let got = read_all(&mut world.store, at)?;
            world.same(at, &got, &world.now[at], world.told[at])?;
        }
    }
    Ok(())
}

fn seeds(default: u64) -> std::ops::Range<u64> {
    let from = std::env::var("BREAKWATER_SEED").ok().and_then(|seed| seed.parse().ok());
    let count = std::env::var("BREAKWATER_SEEDS").ok().and_then(|count| count.parse().ok());
    from.map_or(0..count.unwrap_or(default), |seed: u64| seed..seed + count.unwrap_or(1))
}

#[test]
fn what_was_answered_survives_every_crash() {
    CRASHES.set(0);
    let seeds = seeds(500);
    let whole = seeds.end - seeds.start >= 500;
    for seed in seeds {
        let result = std::panic::catch_unwind(|| scenario(seed)).unwrap_or_else(|_| Err("panicked".into()));
        if let Err(text) = result {
            panic!("seed {seed}: {text}\nreplay: BREAKWATER_SEED={seed} cargo test -p engine --lib what_was_answered");
        }
    }
    println!("{} crashes", CRASHES.get());
    assert!(!whole || CRASHES.get() >= 10_000, "only {} crashes", CRASHES.get());
}

#[test]
fn the_crash_test_sees_mistakes() {
    let hook = std::panic::take_hook();
    std::panic::set_hook(Box::new(|_| ()));
    let mut unseen = Vec::new();
    for wrong in [Mistake::ApplyBeforeCommit, Mistake::ReuseAtOnce, Mistake::AckBeforeSync, Mistake::HeaderFirst] {
        MISTAKE.set(Some(wrong));
        let seen = |seed| !matches!(std::panic::catch_unwind(|| scenario(seed)), Ok(Ok(())));
        if !(0..400).any(seen) {
            unseen.push(wrong);
        }
        MISTAKE.set(None);
    }
    std::panic::set_hook(hook);
    assert!(unseen.is_empty(), "{unseen:?}");
}
