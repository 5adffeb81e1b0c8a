//! Whose request is next where volumes share a shard.
//!
//! Intuition: what has been begun is in a line that nobody can jump: the device's queue, the next WAL batch, the other
//! members'. So a volume that begins everything it has makes a long line for all. As long as one volume alone asks for
//! anything, everything begins at once. While several do, only a bounded amount is in hand ([`FAIR_IN_HAND`]); the rest
//! waits here, by volume, and goes in turns of equal cost (deficit round robin). A volume that has nothing in hand begins
//! one request at once, whatever the others have.
//!
//! Invariants:
//! - Requests of one volume begin in the order they came in.
//! - While volumes share, one that asks for something waits for at most what is in hand ([`FAIR_IN_HAND`] and one
//!   request) when it has nothing in hand itself, and else for one turn of each other volume more.
//! - What ends as soon as it begins (a read from memory) keeps the shard's thread busy all the same: no more begins in one
//!   turn of the shard than may be in hand.
//! - What a volume has in hand and does not end (a device hangs) holds up others for about [`FAIR_PATIENCE`]; then it is not
//!   counted. What only waits for a lost member is not in hand in the first place (`Replica::in_hand`).
//! - Bounded by volume and altogether (I15): what does not fit is handed back, or not taken from its socket.

use alloc::collections::{BTreeMap, VecDeque};

use crate::ids::VolumeId;
use crate::limits::{
    BLOCK_SIZE, FAIR_IN_HAND, FAIR_MEMORY, FAIR_PATIENCE, FAIR_TURN, FAIR_VOLUMES, FAIR_WAITING_BYTES,
    FAIR_WAITING_BYTES_ALL, FAIR_WAITING_MAX, FAIR_WAITING_MAX_ALL,
};
use crate::message::Op;
use crate::record::Change;
use crate::time::Time;

/// What a request costs a node, in bytes: a small one is more than its data.
#[derive(Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Default, Debug)]
pub struct Cost(pub u64);

impl Cost {
    /// So many requests about so much data.
    #[must_use]
    pub const fn of(requests: u64, bytes: u64) -> Self {
        /// What every request costs beside its data: a block of 4 KiB counts twice, 1 MiB for 128 of those.
        const EACH: u64 = 4096;
        Self(requests * EACH + bytes)
    }

    /// What a client asks for.
    #[must_use]
    pub const fn of_request(op: &Op) -> Self {
        match op {
            Op::Read { count, .. } | Op::Peek { count, .. } => Self::of(1, *count as u64 * BLOCK_SIZE),
            Op::Write(change @ Change::Write { .. }) => Self::of(1, change.data_len()),
            Op::Write(_) | Op::Allocation { .. } | Op::Locate { .. } => Self::of(1, 0),
        }
    }
}

/// What becomes of a request that has just come.
#[derive(Debug, PartialEq, Eq)]
pub enum Offered<T> {
    /// Begin it.
    Now(T),
    /// It waits; [`Fair::next`] gives it back.
    Waits,
    /// Its volume has too much waiting here: it has to come again.
    Full(T),
}

/// One volume's requests.
#[derive(Debug)]
struct Queue<T> {
    waiting: VecDeque<(Cost, T)>,
    waiting_cost: u64,
    /// Begun and not ended.
    in_hand: u64,
    /// When something ended, or began while nothing was in hand.
    moved: Time,
    /// In which turn of the shard it began something last.
    began_in: u64,
    /// What it may still begin in this turn; below nothing when its last request was larger than its turn.
    left: i64,
}

impl<T> Default for Queue<T> {
    fn default() -> Self {
        Self { waiting: VecDeque::new(), waiting_cost: 0, in_hand: 0, moved: Time(0), began_in: 0, left: 0 }
    }
}

impl<T> Queue<T> {
    /// Whether nothing of it is in hand, nor began in this turn and has ended already.
    const fn is_empty_handed(&self, turn: u64) -> bool {
        self.in_hand == 0 && self.began_in != turn
    }
}

/// The requests of one shard's clients that have not begun. `T` is a request as the shell keeps it.
#[derive(Debug)]
pub struct Fair<T> {
    queues: BTreeMap<VolumeId, Queue<T>>,
    /// Volumes with something waiting, in the order of their turns.
    turns: VecDeque<VolumeId>,
    /// Among them those that had nothing in hand left, latest last; some may have something again.
    empty_handed: VecDeque<VolumeId>,
    waiting: usize,
    waiting_cost: u64,
    in_hand: u64,
    /// Number of the shard's turn, and what began in it while volumes shared it.
    turn: (u64, u64),
    /// Who asked last, and when.
    latest: Option<(VolumeId, Time)>,
    /// When anybody else asked last.
    other: Option<Time>,
    /// What is in hand of volumes of which nothing ends.
    stuck: u64,
    /// When that was looked for.
    looked: Time,
}

impl<T> Default for Fair<T> {
    fn default() -> Self {
        Self::new()
    }
}

impl<T> Fair<T> {
    /// Nothing waits, nothing is in hand.
    #[must_use]
    pub const fn new() -> Self {
        Self {
            queues: BTreeMap::new(),
            turns: VecDeque::new(),
            empty_handed: VecDeque::new(),
            waiting: 0,
            waiting_cost: 0,
            in_hand: 0,
            turn: (1, 0),
            latest: None,
            other: None,
            stuck: 0,
            looked: Time(0),
        }
    }

    /// Requests that wait.
    #[must_use]
    pub const fn waiting(&self) -> usize {
        self.waiting
    }

    /// Whether so much waits that no further requests should be taken from anybody.
    #[must_use]
    pub const fn is_full(&self) -> bool {
        self.waiting >= FAIR_WAITING_MAX_ALL || self.waiting_cost >= FAIR_WAITING_BYTES_ALL
    }

    /// A request has come. What begins is counted by [`Fair::began`] as it begins, not here: it may come to nothing.
    pub fn offer(&mut self, now: Time, volume: VolumeId, cost: Cost, request: T) -> Offered<T> {
        self.note_asking(now, volume);
        let shared = self.is_shared(now);
        let has_room = self.has_room(now);
        let nobody_waits = self.waiting == 0;
        let turn = self.turn.0;
        let queue = self.queue(volume);
        let may_begin = nobody_waits && (!shared || has_room);
        if queue.waiting.is_empty() && (may_begin || queue.is_empty_handed(turn)) {
            queue.began_in = turn;
            self.turn.1 += cost.0;
            return Offered::Now(request);
        }
        if queue.waiting.len() >= FAIR_WAITING_MAX || queue.waiting_cost + cost.0 > FAIR_WAITING_BYTES {
            return Offered::Full(request);
        }
        if queue.waiting.is_empty() {
            queue.left = 0;
            self.turns.push_back(volume);
        }
        let queue = self.queue(volume);
        queue.waiting.push_back((cost, request));
        queue.waiting_cost += cost.0;
        self.waiting += 1;
        self.waiting_cost += cost.0;
        Offered::Waits
    }

    /// The shard has looked at its connections: as much as may be in hand may begin before it does so again.
    pub fn begin_turn(&mut self) {
        self.turn = (self.turn.0 + 1, 0);
        self.empty_handed.clear();
        if self.waiting > 0 {
            let (queues, turn) = (&self.queues, self.turn.0);
            let empty_handed = |volume: &&VolumeId| queues.get(volume).is_some_and(|queue| queue.is_empty_handed(turn));
            self.empty_handed.extend(self.turns.iter().filter(empty_handed));
        }
    }

    /// Whether something that waits would begin in another turn, although nothing ends.
    pub fn wants_turn(&mut self, now: Time) -> bool {
        self.waiting > 0 && self.turn.1 > 0 && (self.in_hand < FAIR_IN_HAND + self.stuck || !self.is_shared(now))
    }

    /// The next request that may begin. To be asked again until there is none, whenever something ended or time passed.
    pub fn next(&mut self, now: Time) -> Option<T> {
        if self.waiting == 0 {
            self.empty_handed.clear();
            return None;
        }
        let turn = self.turn.0;
        while let Some(volume) = self.empty_handed.pop_front() {
            let queue = self.queue(volume);
            if queue.is_empty_handed(turn) && !queue.waiting.is_empty() {
                return self.take(volume);
            }
        }
        if self.is_shared(now) && !self.has_room(now) {
            return None;
        }
        let volume = self.whose_turn()?;
        self.take(volume)
    }

    /// So much of this volume has begun: at the device, or on its way to all members.
    pub fn began(&mut self, now: Time, volume: VolumeId, cost: Cost) {
        self.in_hand += cost.0;
        let queue = self.queue(volume);
        if queue.in_hand == 0 {
            queue.moved = now;
        }
        queue.in_hand += cost.0;
    }

    /// So much of it has ended, however.
    pub fn ended(&mut self, now: Time, volume: VolumeId, cost: Cost) {
        let queue = self.queue(volume);
        let ended = cost.0.min(queue.in_hand);
        debug_assert_eq!(ended, cost.0, "it ends once, and after it began");
        queue.in_hand -= ended;
        queue.moved = now;
        if queue.in_hand == 0 && !queue.waiting.is_empty() {
            self.empty_handed.push_back(volume);
        }
        self.in_hand -= ended;
    }

    /// Drops what waits and nobody wants any more.
    pub fn retain(&mut self, mut is_wanted: impl FnMut(&T) -> bool) {
        for queue in self.queues.values_mut().filter(|queue| !queue.waiting.is_empty()) {
            queue.waiting.retain(|(_, request)| is_wanted(request));
            queue.waiting_cost = queue.waiting.iter().map(|(cost, _)| cost.0).sum();
        }
        let queues = &self.queues;
        self.turns.retain(|volume| queues.get(volume).is_some_and(|queue| !queue.waiting.is_empty()));
        self.waiting = queues.values().map(|queue| queue.waiting.len()).sum();
        self.waiting_cost = queues.values().map(|queue| queue.waiting_cost).sum();
    }

    fn note_asking(&mut self, now: Time, volume: VolumeId) {
        match self.latest {
            Some((latest, at)) if latest != volume => {
                self.other = Some(at);
                self.latest = Some((volume, now));
            }
            _ => self.latest = Some((volume, now)),
        }
    }

    /// Whether more than one volume asks for something, or did so just now.
    fn is_shared(&self, now: Time) -> bool {
        self.other.is_some_and(|other| now.since(other) < FAIR_MEMORY)
    }

    fn has_room(&mut self, now: Time) -> bool {
        if self.turn.1 >= FAIR_IN_HAND {
            return false;
        }
        if self.in_hand < FAIR_IN_HAND {
            return true;
        }
        if now.since(self.looked) >= FAIR_PATIENCE {
            let stands_still = |queue: &&Queue<T>| now.since(queue.moved) >= FAIR_PATIENCE;
            self.stuck = self.queues.values().filter(stands_still).map(|queue| queue.in_hand).sum();
            self.looked = now;
        }
        self.in_hand < FAIR_IN_HAND + self.stuck
    }

    /// Whose turn it is among those that wait. Ends: with each look at it a volume has more left.
    fn whose_turn(&mut self) -> Option<VolumeId> {
        loop {
            let volume = *self.turns.front()?;
            let queue = self.queue(volume);
            if queue.left > 0 {
                return Some(volume);
            }
            queue.left += i64::try_from(FAIR_TURN).unwrap_or(i64::MAX);
            self.turns.rotate_left(1);
        }
    }

    fn take(&mut self, volume: VolumeId) -> Option<T> {
        let turn = self.turn.0;
        let queue = self.queue(volume);
        let (cost, request) = queue.waiting.pop_front()?;
        queue.began_in = turn;
        self.turn.1 += cost.0;
        let queue = self.queue(volume);
        queue.waiting_cost -= cost.0;
        queue.left -= i64::try_from(cost.0).unwrap_or(i64::MAX);
        let is_empty = queue.waiting.is_empty();
        self.waiting -= 1;
        self.waiting_cost -= cost.0;
        if is_empty {
            self.turns.retain(|other| *other != volume);
        }
        Some(request)
    }

    fn queue(&mut self, volume: VolumeId) -> &mut Queue<T> {
        if self.queues.len() >= FAIR_VOLUMES && !self.queues.contains_key(&volume) {
            // Volumes that have gone, or sleep: remembering them only saves making room for them anew.
            self.queues.retain(|_, queue| queue.in_hand > 0 || !queue.waiting.is_empty());
        }
        self.queues.entry(volume).or_default()
    }
}

#[cfg(test)]
mod tests;
