//! Searching and copying as in 2011: ask anybody, begin at once, find out on the way that the space is gone.

use std::collections::HashSet;

use super::{STEP, Search, World};
use engine_core::time::Span;

/// A copy on its way.
#[derive(Debug, Clone, Copy)]
pub(super) struct Transfer {
    pub(super) search: Search,
    from: u16,
    to: u16,
    got: u64,
}

impl World<'_> {
    /// Who searches, if it is in reach of others.
    pub(super) fn searcher(&self, search: &Search) -> Option<u16> {
        let segment = &self.segments[search.segment as usize];
        match search.stray {
            Some(node) => Some(node),
            None => segment.mirrors.iter().copied().find(|node| self.is_up(*node)),
        }
        .filter(|node| self.is_up(*node))
    }

    /// Whoever has lost a copy asks one node after the other, without pause, and begins with the first that has space.
    pub(super) fn search(&mut self) {
        let per_second = u64::from(self.scenario.naive.searches_per_second);
        self.recorder.figures.searches += per_second * self.searching;
        let has_space: Vec<bool> = (0..self.places.len()).map(|zone| self.has_space(zone)).collect();
        if !has_space.contains(&true) || self.searches.is_empty() {
            return; // all of them in vain
        }
        let busy: HashSet<Search> = self.copies.iter().map(|copy| copy.search).collect();
        let mut per_node: Vec<Vec<Search>> = vec![Vec::new(); self.nodes.len()];
        for search in self.searches.keys().filter(|search| !busy.contains(search)) {
            if let Some(node) = self.searcher(search) {
                per_node[usize::from(node)].push(*search);
            }
        }
        for (node, mut left) in (0..).zip(per_node) {
            let zone = usize::from(self.plan.zones[usize::from(node)]);
            let turns = left.len();
            if turns == 0 || !has_space[zone] {
                continue;
            }
            for turn in 0..usize::try_from(per_second).unwrap_or_default() {
                if left.is_empty() {
                    break;
                }
                let at = turn % turns % left.len();
                if self.probe(node, zone, left[at]) {
                    left.swap_remove(at);
                }
            }
        }
    }

    fn has_space(&self, zone: usize) -> bool {
        self.places[zone]
            .iter()
            .any(|node| self.nodes[usize::from(*node)].up && self.nodes[usize::from(*node)].free >= self.size)
    }

    /// Asks one node, anyone.
    fn probe(&mut self, node: u16, zone: usize, search: Search) -> bool {
        let places = &self.places[zone];
        let at = self.random.between(0, places.len() as u64 - 1);
        let to = places[usize::try_from(at).unwrap_or_default()];
        let target = &self.nodes[usize::from(to)];
        let segment = &self.segments[search.segment as usize];
        let holds = segment.mirrors.contains(&to) || segment.strays.contains(&to);
        // It has space now; nobody keeps it for this copy.
        if !target.up || target.free < self.size || holds || !self.may_go_to(search.segment, to) {
            return false;
        }
        self.nodes[usize::from(to)].takes += 1;
        self.nodes[usize::from(node)].sends += 1;
        self.copies.push(Transfer { search, from: node, to, got: 0 });
        self.recorder.figures.remirrors += 1;
        true
    }

    /// Where copies are spread over zones no two are in one.
    fn may_go_to(&self, segment: u32, to: u16) -> bool {
        if self.scenario.cluster.spread == engine_core::authority::document::Spread::Node {
            return true;
        }
        let zone = self.plan.zones[usize::from(to)];
        self.segments[segment as usize].mirrors.iter().all(|node| self.plan.zones[usize::from(*node)] != zone)
    }

    /// Everything under way moves on for a step; what finds no space fails and gives up what it had.
    pub(super) fn copy(&mut self) {
        let rate = self.scenario.network.copy_rate.0 * (STEP.0 / Span::seconds(1).0);
        let mut copies = std::mem::take(&mut self.copies);
        let mut kept = Vec::with_capacity(copies.len());
        for mut copy in copies.drain(..) {
            let sharing = self.nodes[usize::from(copy.from)].sends.max(self.nodes[usize::from(copy.to)].takes).max(1);
            let step = (rate / u64::from(sharing)).min(self.size - copy.got);
            let wanted = self.searches.contains_key(&copy.search);
            let target = &mut self.nodes[usize::from(copy.to)];
            if !wanted || target.free < step {
                target.free += copy.got;
                self.close(&copy);
                self.recorder.figures.copies_failed += 1;
                if copy.search.stray.is_none() {
                    self.unsettle(copy.search.segment);
                }
                continue;
            }
            target.free -= step;
            copy.got += step;
            self.copied += step;
            if copy.got == self.size {
                self.arrived(&copy);
            } else {
                kept.push(copy);
            }
        }
        kept.append(&mut self.copies);
        self.copies = kept;
    }

    /// Both ends have one copy less under way.
    fn close(&mut self, copy: &Transfer) {
        for node in [copy.from, copy.to] {
            self.nodes[usize::from(node)].closed += 1;
        }
        self.nodes[usize::from(copy.from)].sends -= 1;
        self.nodes[usize::from(copy.to)].takes -= 1;
    }

    fn arrived(&mut self, copy: &Transfer) {
        self.nodes[usize::from(copy.from)].sends -= 1;
        self.nodes[usize::from(copy.to)].takes -= 1;
        let at = copy.search.segment;
        let copies = self.plan.copies;
        self.nodes[usize::from(copy.to)].holds.insert(at);
        let segment = &mut self.segments[at as usize];
        if copy.search.stray.is_none() {
            segment.mirrors.push(copy.to);
            if segment.mirrors.len() >= copies {
                self.whole(at);
            }
            return;
        }
        segment.strays.push(copy.to);
        if let Some(has) = self.searches.get_mut(&copy.search) {
            *has += 1;
            if usize::from(*has) >= copies {
                self.searches.remove(&copy.search);
            }
        }
    }

    /// A node is out of reach: what goes from it and to it ends.
    pub(super) fn close_copies(&mut self, node: u16) {
        let copies = std::mem::take(&mut self.copies);
        let (ended, kept): (Vec<Transfer>, Vec<Transfer>) =
            copies.into_iter().partition(|copy| copy.from == node || copy.to == node);
        self.copies = kept;
        for copy in ended {
            self.nodes[usize::from(copy.to)].free += copy.got;
            self.close(&copy);
            self.recorder.figures.copies_failed += 1;
        }
    }

    /// Strays need not search any more: what they have under way is closed with the next step.
    pub(super) fn drop_strays_searches(&mut self, segment: u32) {
        let first = Search { segment, stray: Some(0) };
        let last = Search { segment, stray: Some(u16::MAX) };
        let gone: Vec<Search> = self.searches.range(first..=last).map(|(search, _)| *search).collect();
        for search in gone {
            self.searches.remove(&search);
        }
    }

    /// A node that has closed very many copies at once may crash: the race of the report.
    pub(super) fn crash(&mut self) {
        let naive = self.scenario.naive;
        let mut crashed = Vec::new();
        for (at, node) in (0..).zip(&mut self.nodes) {
            let closed = std::mem::take(&mut node.closed);
            if node.up && closed >= naive.crash_closes {
                #[allow(clippy::cast_precision_loss)] // 53 bits of chance are enough
                let chance = (self.random.next_u64() >> 11) as f64 / (1u64 << 53) as f64;
                if chance < naive.crash_chance {
                    crashed.push(at);
                }
            }
        }
        for node in crashed {
            self.cut(node);
            self.nodes[usize::from(node)].crashed = true;
            self.recorder.figures.crashed_nodes += 1;
        }
    }
}
