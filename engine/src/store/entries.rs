//! A replica's log in memory: its entries by their place in the order.
//!
//! Entries come in order and with hardly a gap, and each is looked up several times until every extent has it: to be shown,
//! to be composed, to be let go. So they lie in chunks of neighbouring places: finding one is a search among few chunks and a
//! step into one of them, however long the log is. A chunk is there as long as something is in it, so a gap of any length
//! costs nothing.

use std::collections::BTreeMap;
use std::ops::Index;

use engine_core::ids::Seq;

use super::replica::Logged;

/// Places of one chunk.
const PLACES: usize = 64;

#[derive(Debug)]
struct Chunk {
    places: [Option<Logged>; PLACES],
    used: u32,
}

impl Default for Chunk {
    fn default() -> Self {
        Self { places: [const { None }; PLACES], used: 0 }
    }
}

/// The entries of one replica's log.
#[derive(Debug, Default)]
pub(crate) struct Entries {
    /// By number, none of them empty. Boxed: what a search passes by stays small.
    chunks: BTreeMap<u64, Box<Chunk>>,
    len: usize,
}

#[allow(clippy::cast_possible_truncation)] // 64
const fn split(seq: Seq) -> (u64, usize) {
    (seq.0 / PLACES as u64, (seq.0 % PLACES as u64) as usize)
}

impl Entries {
    pub(crate) const fn len(&self) -> usize {
        self.len
    }

    pub(crate) fn get(&self, seq: Seq) -> Option<&Logged> {
        let (number, place) = split(seq);
        self.chunks.get(&number)?.places[place].as_ref()
    }

    pub(crate) fn get_mut(&mut self, seq: Seq) -> Option<&mut Logged> {
        let (number, place) = split(seq);
        self.chunks.get_mut(&number)?.places[place].as_mut()
    }

    /// Puts an entry in its place, which is free.
    pub(crate) fn insert(&mut self, seq: Seq, logged: Logged) {
        let (number, place) = split(seq);
        let chunk = self.chunks.entry(number).or_default();
        debug_assert!(chunk.places[place].is_none(), "{seq:?} is taken");
        chunk.places[place] = Some(logged);
        chunk.used += 1;
        self.len += 1;
    }

    pub(crate) fn remove(&mut self, seq: Seq) -> Option<Logged> {
        let (number, place) = split(seq);
        let chunk = self.chunks.get_mut(&number)?;
        let logged = chunk.places[place].take()?;
        chunk.used -= 1;
        if chunk.used == 0 {
            self.chunks.remove(&number);
        }
        self.len -= 1;
        Some(logged)
    }

    /// Takes out everything at or behind `first`, in order.
    pub(crate) fn take_from(&mut self, first: Seq) -> Vec<Logged> {
        let seqs: Vec<Seq> = self.from(first).map(|(seq, _)| seq).collect();
        seqs.into_iter().filter_map(|seq| self.remove(seq)).collect()
    }

    /// The entries at or behind `first`, in order.
    pub(crate) fn from(&self, first: Seq) -> impl Iterator<Item = (Seq, &Logged)> + '_ {
        let (number, place) = split(first);
        self.chunks.range(number..).flat_map(move |(at, chunk)| {
            let skip = if *at == number { place } else { 0 };
            let places = chunk.places.iter().zip(at * PLACES as u64..).skip(skip);
            places.filter_map(|(logged, seq)| Some((Seq(seq), logged.as_ref()?)))
        })
    }

    /// All of them, in order.
    pub(crate) fn all(&self) -> impl Iterator<Item = (Seq, &Logged)> + '_ {
        self.from(Seq(0))
    }

    /// The last place that is taken.
    pub(crate) fn last(&self) -> Option<Seq> {
        let (number, chunk) = self.chunks.last_key_value()?;
        (number * PLACES as u64..)
            .zip(&chunk.places)
            .filter(|(_, logged)| logged.is_some())
            .map(|(seq, _)| Seq(seq))
            .last()
    }
}

impl Index<Seq> for Entries {
    type Output = Logged;

    /// An entry that an overlay names, which is here as long as one does.
    fn index(&self, seq: Seq) -> &Logged {
        self.get(seq).expect("an entry leaves the log after the overlays")
    }
}

#[cfg(test)]
mod tests {
    use engine_core::ids::Epoch;
    use engine_core::random::Random;

    use super::super::entry::{Kind, LogEntry};
    use super::*;

    fn logged(cost: u64) -> Logged {
        Logged::new(LogEntry { epoch: Epoch(1), kind: Kind::Nothing }, 1, cost)
    }

    fn seen(entries: &Entries, first: u64) -> Vec<(u64, u64)> {
        entries.from(Seq(first)).map(|(seq, logged)| (seq.0, logged.cost)).collect()
    }

    #[test]
    fn behaves_like_a_sorted_map() {
        let (mut entries, mut known) = (Entries::default(), BTreeMap::new());
        let mut random = Random::new(5);
        for step in 0..20_000_u64 {
            // Dense, with far gaps now and then.
            let seq = random.between(0, 400) + if random.between(0, 9) == 0 { 1 << 40 } else { 0 };
            match random.between(0, 20) {
                0..8 => {
                    known.entry(seq).or_insert_with(|| {
                        entries.insert(Seq(seq), logged(step));
                        step
                    });
                }
                8..16 => assert_eq!(entries.remove(Seq(seq)).map(|logged| logged.cost), known.remove(&seq)),
                16 => {
                    let taken: Vec<u64> = entries.take_from(Seq(seq)).iter().map(|logged| logged.cost).collect();
                    assert_eq!(taken, known.split_off(&seq).into_values().collect::<Vec<_>>());
                }
                _ => assert_eq!(seen(&entries, seq), known.range(seq..).map(|(k, v)| (*k, *v)).collect::<Vec<_>>()),
            }
            assert_eq!(entries.get(Seq(seq)).map(|logged| logged.cost), known.get(&seq).copied());
            assert_eq!((entries.len(), entries.last()), (known.len(), known.keys().next_back().copied().map(Seq)));
        }
    }

    #[test]
    fn a_gap_costs_nothing_and_what_is_empty_goes() {
        let mut entries = Entries::default();
        for seq in [1, 1 << 20, 1 << 40, 1 << 62] {
            entries.insert(Seq(seq), logged(seq));
        }
        assert_eq!(entries.chunks.len(), 4);
        assert_eq!(entries.take_from(Seq(0)).len(), 4);
        assert_eq!((entries.chunks.len(), entries.len()), (0, 0));
    }
}
