//! One thing goes wrong at a time, and what must happen then.
//!
//! A story is a function of a seed, named in its file's `told!` with the seed its test takes. Names are unique: they
//! are what `nodectl sim` is given.

use engine_core::ids::NodeId;
use engine_core::time::Span;

use crate::world::World;

/// A story that can be told again.
#[derive(Debug, Clone, Copy)]
pub struct Story {
    /// What must happen, as a sentence with underscores.
    pub name: &'static str,
    /// The seed its test takes.
    pub seed: u64,
    /// Lets it happen; panics when it does not.
    pub tell: fn(u64),
}

/// Lists a file's stories and makes a test of each.
macro_rules! told {
    ($($name:ident: $seed:literal),* $(,)?) => {
        /// The stories of this file.
        pub(super) const STORIES: &[$crate::stories::Story] =
            &[$($crate::stories::Story { name: stringify!($name), seed: $seed, tell: $name }),*];

        #[cfg(test)]
        mod tests {
            $(#[test]
            fn $name() {
                super::$name($seed);
            })*
        }
    };
}

mod attachments;
mod balance;
mod breaker;
mod comparing;
mod copies;
mod exits;
mod headroom;
mod leases;
mod leaving;
mod losses;
mod neighbours;
mod reach;
mod repairs;
mod weather;

/// All stories.
pub fn stories() -> impl Iterator<Item = &'static Story> {
    // One line each: who adds a file touches nobody else's.
    let all: [&[Story]; 14] = [
        attachments::STORIES,
        balance::STORIES,
        breaker::STORIES,
        comparing::STORIES,
        copies::STORIES,
        exits::STORIES,
        headroom::STORIES,
        leases::STORIES,
        leaving::STORIES,
        losses::STORIES,
        neighbours::STORIES,
        reach::STORIES,
        repairs::STORIES,
        weather::STORIES,
    ];
    all.into_iter().flatten()
}

/// Three of four nodes hold a volume of 4 MiB, written all over, with load on it.
fn busy(seed: u64) -> World {
    let mut w = World::serving(seed, 4, 3, 2, 4);
    w.load(1024);
    w.run(Span::seconds(3));
    w
}

fn outsider(w: &World) -> NodeId {
    let config = w.config(w.segment());
    *w.places.keys().find(|node| !config.is_member(**node)).expect("a node without a copy")
}

/// Writes go on being acknowledged.
fn expect_progress(w: &mut World, limit: Span) {
    let before = w.history.acknowledged;
    w.expect("writes are acknowledged", limit, |w| w.history.acknowledged > before + 50);
}

/// The longest time without an acknowledged write while the world goes on for `span`.
fn longest_gap(w: &mut World, span: Span) -> Span {
    let end = w.now + span;
    let (mut longest, mut last, mut count) = (Span::ZERO, w.now, w.history.acknowledged);
    while w.now < end {
        w.run(Span::millis(1));
        if w.history.acknowledged > count {
            (count, last) = (w.history.acknowledged, w.now);
        }
        longest = longest.max(w.now.since(last));
    }
    longest
}

/// The longest time anything asked for has waited while the world goes on for `span`.
fn longest_wait(w: &mut World, span: Span) -> Span {
    let end = w.now + span;
    let mut longest = Span::ZERO;
    while w.now < end {
        w.run(Span::millis(1));
        let tasks = w.client().into_iter().flat_map(|client| client.tasks.values());
        longest = tasks.map(|task| w.now.since(task.begun)).fold(longest, Span::max);
    }
    longest
}

fn expect_whole(w: &mut World, limit: Span) {
    w.expect("all copies are back", limit, |w| w.is_whole());
}

#[cfg(test)]
mod tests {
    use std::collections::BTreeSet;

    #[test]
    fn names_are_unique() {
        let names: BTreeSet<&str> = super::stories().map(|story| story.name).collect();
        assert_eq!(names.len(), super::stories().count());
    }
}
