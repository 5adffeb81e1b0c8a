//! Would it notice? Each invariant is broken on purpose, exactly it, and the simulated world has to find that: the swarm
//! within a stated number of seeds, or, where chance takes long, the story that is about it (docs/testing.md).
//!
//! `cargo test --release -p breakwater-sim --features sabotage --test sabotage`; one switch alone with
//! `BREAKWATER_BREAK=I7`.

use std::panic;

use breakwater_sim::{SECONDS, Story, stories, swarm};
use engine_core::sabotage::{Invariant, choose};

/// Who has to notice.
#[derive(Debug, Clone, Copy)]
enum Witness {
    /// The swarm, by this seed at the latest.
    Swarm(u64),
    /// A story.
    Story(&'static str),
}

use Witness::{Story as Told, Swarm};

/// What is broken, and who has to notice.
const TABLE: [(Invariant, Witness); 16] = [
    (Invariant::I1, Swarm(40)),
    (Invariant::I2, Swarm(40)),
    (Invariant::I3, Swarm(40)),
    (Invariant::I4, Swarm(200)),
    (Invariant::I5, Swarm(40)),
    (Invariant::I6, Swarm(40)),
    (Invariant::I7, Told("a_reader_left_with_a_cut_off_primary_is_not_shown_the_past")),
    (Invariant::I8, Told("a_backup_whose_device_hangs_is_left_out_by_its_prepare_deadline")),
    (Invariant::I9, Swarm(40)),
    (Invariant::I10, Swarm(40)),
    (Invariant::I11, Told("an_authority_from_an_old_backup_changes_nothing")),
    (Invariant::I12, Swarm(40)),
    (Invariant::I13, Told("where_there_is_no_space_no_copy_is_made")),
    (Invariant::I14, Told("what_nobody_can_mend_is_refused_and_never_shown")),
    (Invariant::Headroom, Told("what_the_largest_node_had_finds_a_place_on_the_others")),
    (Invariant::Breaker, Told("a_break_that_heals_makes_no_copy_that_a_former_one_could_bring_back")),
];

/// One test, one process: the switch belongs to the process.
#[test]
fn every_broken_invariant_is_noticed() {
    let only = std::env::var("BREAKWATER_BREAK").ok();
    let chosen = |invariant: &Invariant| only.as_ref().is_none_or(|only| *only == format!("{invariant:?}"));
    panic::set_hook(Box::new(|_| {}));
    let mut missed = Vec::new();
    for (invariant, witness) in TABLE.into_iter().filter(|(invariant, _)| chosen(invariant)) {
        choose(Some(invariant));
        let noticed = match witness {
            Swarm(seeds) => (1..=seeds).find_map(|seed| {
                let cause = noticed(|| drop(swarm(seed, SECONDS)))?;
                Some(format!("seed {seed}: {cause}"))
            }),
            Told(name) => noticed(|| tell(name)).map(|cause| format!("{name}: {cause}")),
        };
        choose(None);
        match noticed {
            Some(how) => println!("{invariant:?}: {how}"),
            None => {
                println!("{invariant:?}: not noticed by {witness:?}");
                missed.push(invariant);
            }
        }
    }
    let _ = panic::take_hook();
    assert!(missed.is_empty(), "not noticed: {missed:?}");
}

fn tell(name: &str) {
    let story: &Story = stories().find(|story| story.name == name).expect("a story of this name");
    (story.tell)(story.seed);
}

/// What the panic said, in one line, if there was one.
fn noticed(run: impl FnOnce() + panic::UnwindSafe) -> Option<String> {
    let cause = panic::catch_unwind(run).err()?;
    let text = cause.downcast_ref::<String>().map(String::as_str).or_else(|| cause.downcast_ref::<&str>().copied());
    let line = text.unwrap_or("?").lines().next().unwrap_or("?");
    Some(line.get(..160).unwrap_or(line).to_owned())
}
