//! What a crash left on the disk, and whether it is what it should be.
use engine_core::record::Recovered;

use super::*;
use crate::store::{Depth, Ticket, examine};

/// What a crash left.
struct Left {
    store: ShardStore<MemoryDevice>,
    recovered: Vec<Recovered>,
    states: [State; SEGMENTS],
}

impl World {
    pub(super) fn crash(&mut self) -> Checked {
        self.disk.crash(&mut self.random);
        let mut left = self.look(&self.disk)?;
        self.check_left(&mut left)?;
        let Left { store, recovered, states } = left;
        self.store = store;
        for known in &recovered {
            // What was told before the crash stays true.
            let at = known.segment.index as usize;
            self.told[at] = self.still_told(at, known, &states[at]);
        }
        (self.base, self.now) = (states.clone(), states);
        self.persists.clear();
        self.answered.clear();
        self.copies.clear();
        self.readings.clear();
        if !self.now[CANDIDATE].exists {
            (self.current, self.ignored) = Default::default();
        }
        Ok(())
    }

    /// The power fails now, on a copy of the disk.
    pub(super) fn probe(&mut self) -> Checked {
        let disk = self.disk.snapshot();
        disk.crash(&mut self.probes);
        let mut left = self.look(&disk).map_err(|text| format!("in a crash on a copy: {text}"))?;
        self.check_left(&mut left).map_err(|text| format!("in a crash on a copy: {text}"))
    }

    /// Opens what a crash left: nothing is wrong with it, its books are exact, and it fits what was answered.
    fn look(&self, disk: &Disk) -> Result<Left, String> {
        CRASHES.set(CRASHES.get() + 1);
        let report = examine(&mut disk.clone(), Depth::Data, &mut |_, _| ()).map_err(|error| error.to_string())?;
        if !report.problems.is_empty() {
            return Err(format!("the check says: {:?}", report.problems));
        }
        let mut store = open(disk);
        let recovered = store.take_recovered();
        store.audit();
        let counted = report.shards[0].space.as_ref().ok_or("no books")?;
        let books = [store.slabs.free() as u64, store.space().booked, store.map.ledger.redirected];
        let whole = counted.used + counted.pending + counted.free == counted.slabs;
        if [counted.free, counted.booked, counted.pending] != books || !whole {
            return Err(format!("the check counts {counted:?}, the store {books:?}"));
        }
        let mut states: [State; SEGMENTS] = Default::default();
        for (at, slot) in states.iter_mut().enumerate() {
            let known = recovered.iter().find(|known| known.segment == segment(at as u32));
            let (all, answered) = self.counts(at);
            let fits = |state: &State| match known {
                None => !state.exists,
                Some(known) => state.exists && self.fits(at, state, known),
            };
            let found = (answered..=all).map(|prefix| self.state(at, prefix)).find(fits);
            let tail = || known.map(|known| (known.commit, known.tail.len(), known.damaged));
            *slot = found.ok_or_else(|| {
                format!("segment {at}: no prefix of {answered}..={all} fits {:?}, told {}", tail(), self.told[at])
            })?;
        }
        Ok(Left { store, recovered, states })
    }

    fn still_told(&self, at: usize, known: &Recovered, state: &State) -> u64 {
        self.told[at].max(known.commit.0).min(state.last())
    }

    /// Reads everything: at the commit point that was found, and at the one that was told before.
    fn check_left(&self, left: &mut Left) -> Checked {
        for known in &left.recovered {
            let at = known.segment.index as usize;
            let state = &left.states[at];
            // A copy may be newer than the candidate's own commit point.
            if at != CANDIDATE {
                self.same(at, &read_all(&mut left.store, at)?, state, known.commit.0)?;
            }
            let told = self.still_told(at, known, state);
            left.store.commit(known.segment, Seq(told));
            self.same(at, &read_all(&mut left.store, at)?, state, told)?;
        }
        Ok(())
    }

    pub(super) fn same(&self, at: usize, got: &Blocks, state: &State, commit: u64) -> Checked {
        let content = state.content(commit);
        let known = |block: usize| at != CANDIDATE || state.exists && self.current[block / 32];
        match numbers(got).iter().zip(&content).enumerate().find(|(block, (got, want))| known(*block) && got != want) {
            None => Ok(()),
            Some((block, (got, want))) => {
                Err(format!("segment {at} block {block} at {commit}: got {got}, want {want}"))
            }
        }
    }

    fn fits(&self, at: usize, state: &State, known: &Recovered) -> bool {
        let commit = known.commit.0;
        let tail: Vec<Entry> = state.log.range(commit + 1..).map(|(_, entry)| entry.clone()).collect();
        let bounds =
            commit >= state.commit && (commit <= self.told[at] || state.incarnation != self.now[at].incarnation);
        bounds && !known.damaged && known.tail == tail && known.meta.config.incarnation.0 == state.incarnation
    }
}

/// Reads all of a segment.
pub(super) fn read_all(store: &mut ShardStore<MemoryDevice>, at: usize) -> Result<Blocks, String> {
    let ticket = Ticket(u64::MAX);
    store.read(segment(at as u32), BlockIndex(0), BLOCKS, ticket);
    store.device_mut().hold(false);
    for _ in 0..1000 {
        let mut events = Vec::new();
        store.poll(&mut events);
        for event in events {
            match event {
                Event::Read(got, result) if got == ticket => {
                    return result.map_err(|error| format!("after a crash: {error}"));
                }
                Event::Failed(text) => return Err(text),
                _ => {}
            }
        }
    }
    Err("a read is never answered".into())
}
