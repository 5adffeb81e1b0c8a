//! Volumes that share a shard: what one of them asks for, and what becomes of it, costs the other a bounded time (I15).

use engine_core::config::Config;
use engine_core::ids::{NodeId, SegmentId};
use engine_core::limits::PREPARE_DEADLINE;
use engine_core::time::Span;

use super::{expect_progress, expect_whole};
use crate::load::Load;
use crate::world::{Shape, World};

told! {
    a_member_lost_beneath_a_flood_holds_up_no_other_segment: 110,
}

/// A neighbour with one request under way has at most what may be in hand before it: eight small requests. An operation
/// takes at most 6 ms at a device (30 times the longest ordinary one, rarely), and if all nine did, one after the other, it
/// would be 54 ms. The store's own work and the ways are not much beside that.
const NEIGHBOUR_MAX: Span = Span::millis(100);
/// A request in another segment of the flooded volume comes behind 256 of that one's, which begin eight at a time: 130 ms
/// while nothing is wrong. Then it waits for [`engine_core::limits::FAIR_PATIENCE`] once. The member is lost only after
/// [`PREPARE_DEADLINE`]: nobody may have waited for that.
const OTHER_MAX: Span = Span::millis(300);
const _: () = assert!(OTHER_MAX.0 * 2 < PREPARE_DEADLINE.0);

/// The longest that one request in each of these segments takes, asked one after the other while the world goes on for
/// `span`.
fn longest_of_each(w: &mut World, segments: [SegmentId; 3], span: Span) -> [Span; 3] {
    let (end, mut longest, mut number) = (w.now + span, [Span::ZERO; 3], 0);
    while w.now < end {
        for (segment, longest) in segments.into_iter().zip(&mut longest) {
            let mut tasks = w.clients.values().flat_map(|client| client.tasks.values());
            if let Some(task) = tasks.find(|task| task.segment == segment) {
                *longest = w.now.since(task.begun).max(*longest);
                continue;
            }
            number += 1;
            let block = number / 2 % 64;
            if w.between(0, 1) == 0 { w.write(segment, block, 1) } else { w.read(segment, block, 1) }
        }
        w.run(Span(200_000));
    }
    longest
}

/// Two segments of the volume with one primary, and a member of the first that the second can do without.
fn led_by_one(w: &World) -> Option<(SegmentId, SegmentId, NodeId)> {
    let all: Vec<Config> = w.all_segments().into_iter().map(|segment| w.config(segment)).collect();
    let pairs = all.iter().flat_map(|one| all.iter().map(move |other| (one, other)));
    let of_one = pairs.filter(|(one, other)| one.segment != other.segment && one.primary == other.primary);
    let victim = |(one, other): (&Config, &Config)| {
        let victim = one.members.iter().find(|member| !other.is_member(**member))?;
        Some((one.segment, other.segment, *victim))
    };
    of_one.into_iter().find_map(victim)
}

fn expect_none_waits_long(w: &mut World, asked: [SegmentId; 3], span: Span) {
    let [one, another, other] = longest_of_each(w, asked, span);
    assert!(one < NEIGHBOUR_MAX && another < NEIGHBOUR_MAX && other < OTHER_MAX, "{one:?} {another:?} {other:?}");
}

fn a_member_lost_beneath_a_flood_holds_up_no_other_segment(seed: u64) {
    let ends: [fn(&mut World, NodeId); 3] =
        [|w, node| w.crash(node, true), |w, node| w.lose(node), |w, node| w.pause(node, Span::seconds(4))];
    for (end, seed) in ends.into_iter().zip(seed..) {
        let mut w = World::serving(seed, 4, 2, 1, 6 * 64);
        let (flooded, other, victim) = led_by_one(&w).expect("two of six on four nodes");
        let primary = w.config(flooded).primary;
        let shape =
            Shape { nodes: 4, zones: 1, extents: 4096, copies: 2, min_copies: 1, megabytes: 4, spread_zone: false };
        let asked = [0, 1].map(|_| w.add_neighbour(&shape, primary, victim));
        let asked = [asked[0], asked[1], other];
        let (segments, every) = (vec![flooded], Span::millis(1));
        let (depth, burst, reads, zeros, longest, large) = (256, 256, 0, 0, 1, 0);
        w.load = Some(Load { segments, blocks: 4096, hot: 512, depth, every, burst, reads, zeros, longest, large });
        w.run(Span::millis(500));
        expect_none_waits_long(&mut w, asked, Span::seconds(2));
        end(&mut w, victim);
        expect_none_waits_long(&mut w, asked, Span::seconds(4));
        expect_progress(&mut w, Span::seconds(4));
        w.load = None;
        if w.places[&victim].process.is_none() {
            w.start(victim);
        }
        expect_whole(&mut w, Span::seconds(30));
        w.verify();
    }
}
