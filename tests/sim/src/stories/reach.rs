//! Who reaches whom: a lead that its client cannot see, a primary alone with its client, links that come and go (I7, I8,
//! I9). Each says how long nobody is served, and how many configurations it costs at most.

use engine_core::ids::NodeId;
use engine_core::limits::{PREPARE_DEADLINE, TAKE_OVER_PAUSE};
use engine_core::time::Span;

use super::{busy, expect_progress, expect_whole, longest_gap, longest_wait};
use crate::world::World;

told! {
    a_primary_that_its_client_cannot_reach_hands_over_once: 70,
    ways_of_a_client_that_fail_in_turn_move_the_lead_seldom: 71,
    a_primary_that_reaches_its_client_and_no_backup_is_replaced_once: 72,
    a_primary_cut_off_from_one_backup_leads_on_without_it: 73,
    a_backup_whose_link_flaps_costs_few_configurations: 74,
    a_primary_whose_links_flap_costs_few_configurations: 75,
}

/// Silence of a second, a question, a hand-over, another question that finds the new primary.
const UNREACHED: Span = Span::millis(2_600);
/// Silence of the lead, a stagger, the promises of a connected member: the bound that is promised.
const CUT_OFF: Span = Span::millis(4_000);
/// A member owes an acknowledgement for [`PREPARE_DEADLINE`]; then it is left out.
const LEFT_OUT: Span = Span(PREPARE_DEADLINE.0 + Span::millis(600).0);
/// Configurations of one minute of a flapping link: three for each time a member is lost, comes back and joins. Twice
/// it comes back at once, then after 2, 4, 8 and 10 s: seven times in a minute, and one that was cut short.
const FLAPS: u64 = 24;

fn epoch(w: &World) -> u64 {
    w.config(w.segment()).epoch.0
}

fn a_primary_that_its_client_cannot_reach_hands_over_once(seed: u64) {
    let mut w = busy(seed);
    let (old, before) = (w.primary(), epoch(&w));
    // Nobody else notices anything: its backups and the authority are with it.
    w.run(TAKE_OVER_PAUSE);
    w.cut_client(old);
    let wait = longest_wait(&mut w, Span::seconds(6));
    assert!(wait <= UNREACHED, "{wait:?}");
    assert_ne!(w.primary(), old);
    w.run(Span::seconds(30));
    w.heal();
    w.run(Span::seconds(30));
    assert_eq!(epoch(&w), before + 1, "the lead moved once, and no copy was lost");
    assert!(w.is_whole());
    w.verify();
}

fn ways_of_a_client_that_fail_in_turn_move_the_lead_seldom(seed: u64) {
    let mut w = busy(seed);
    let before = epoch(&w);
    for _ in 0..20 {
        let lead = w.primary();
        w.heal();
        w.cut_client(lead);
        w.run(Span::seconds(3));
    }
    let moved = epoch(&w) - before;
    let most = Span::seconds(60).0 / TAKE_OVER_PAUSE.0 + 1;
    assert!((1..=most).contains(&moved), "{moved} configurations in a minute");
    w.heal();
    expect_progress(&mut w, Span::seconds(3));
    w.verify();
}

fn a_primary_that_reaches_its_client_and_no_backup_is_replaced_once(seed: u64) {
    for seed in [seed, seed + 100, seed + 200] {
        let mut w = busy(seed);
        let (old, others, before) = (w.primary(), w.backups(), epoch(&w));
        w.partition(&[old], &others);
        let wait = longest_wait(&mut w, Span::seconds(6));
        assert!(wait <= CUT_OFF, "{wait:?} with seed {seed}");
        let new = w.primary();
        assert_ne!(new, old);
        // The fourth node gets a copy meanwhile: an election, a candidate, a member.
        w.run(Span::seconds(30));
        w.heal();
        w.run(Span::seconds(20));
        assert_eq!(w.primary(), new, "the lead does not come back by itself");
        assert!(epoch(&w) <= before + 4, "{} configurations", epoch(&w) - before);
        expect_whole(&mut w, Span::seconds(5));
        w.verify();
    }
}

fn a_primary_cut_off_from_one_backup_leads_on_without_it(seed: u64) {
    let mut w = World::serving(seed, 3, 3, 2, 4);
    w.load(1024);
    w.run(Span::seconds(3));
    let (primary, cut, before) = (w.primary(), w.backups()[0], epoch(&w));
    w.partition(&[primary], &[cut]);
    let gap = longest_gap(&mut w, Span::seconds(6));
    assert!(gap <= LEFT_OUT, "{gap:?}");
    // The one that is cut off hears the other backup, which hears the primary: nobody is elected against it.
    w.run(Span::seconds(54));
    assert_eq!((w.primary(), epoch(&w)), (primary, before + 1), "it is left out, and that is all");
    w.heal();
    expect_whole(&mut w, Span::seconds(15));
    w.verify();
}

/// A link goes down and up every second or so for a minute; gives the configurations that cost, and the longest time
/// without a write acknowledged.
fn flap(w: &mut World, ones: &[NodeId], others: &[NodeId]) -> (u64, Span) {
    let (before, end) = (epoch(w), w.now + Span::seconds(60));
    let mut longest = Span::ZERO;
    while w.now < end {
        w.partition(ones, others);
        let down = w.between(500, 3_000);
        longest = longest.max(longest_gap(w, Span::millis(down)));
        w.heal();
        let up = w.between(500, 2_000);
        longest = longest.max(longest_gap(w, Span::millis(up)));
    }
    (epoch(w) - before, longest)
}

/// Three nodes, three copies: nobody can take the place of whoever flaps.
fn three(seed: u64) -> World {
    let mut w = World::serving(seed, 3, 3, 2, 4);
    w.load(1024);
    w.run(Span::seconds(3));
    w
}

fn a_backup_whose_link_flaps_costs_few_configurations(seed: u64) {
    for seed in [seed, seed + 100, seed + 200, seed + 300] {
        let mut w = three(seed);
        let (primary, backups) = (w.primary(), w.backups());
        let others = if seed % 200 < 100 { vec![primary] } else { vec![primary, backups[1]] };
        let (changes, gap) = flap(&mut w, &backups[..1], &others);
        assert!((1..=FLAPS).contains(&changes), "{changes} configurations with seed {seed}");
        assert!(gap <= LEFT_OUT, "{gap:?} with seed {seed}");
        assert_eq!(w.primary(), primary, "a backup's link is no reason for another primary (seed {seed})");
        w.heal();
        expect_whole(&mut w, Span::seconds(20));
        w.verify();
    }
}

fn a_primary_whose_links_flap_costs_few_configurations(seed: u64) {
    for seed in [seed, seed + 100, seed + 200, seed + 300] {
        let mut w = three(seed);
        let (primary, backups) = (w.primary(), w.backups());
        let (changes, gap) = flap(&mut w, &[primary], &backups);
        assert!((1..=FLAPS).contains(&changes), "{changes} configurations with seed {seed}");
        assert!(gap <= CUT_OFF, "{gap:?} with seed {seed}");
        w.heal();
        expect_whole(&mut w, Span::seconds(20));
        w.verify();
    }
}
