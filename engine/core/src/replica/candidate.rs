//! Being brought up to date, by catch-up or from nothing; the candidate keeps the plan, its source only answers.
//!
//! Intuition: live writes begin at `first`; whatever was committed before is in the source's list of extents stamped above
//! the own base. An extent is *current* once it is listed and, if it had to come, durably in; live writes to current
//! extents are taken like a backup's, others are ignored and their extent is copied again until the copy is younger than
//! the newest write ignored. When nothing is missing, everything ignored is committed and in a copy.
//!
//! Invariants: the base moves only when every listed extent is in, never because of a log record; a live write to an
//! extent that was asked for waits until its copy is durable, so that a stamp never says more than is there, and so that
//! an extent written to without a pause is copied once and not for ever; I10 (joining is durable before the primary
//! hears of it).

use alloc::boxed::Box;
use alloc::collections::{BTreeMap, VecDeque};
use alloc::vec;

use super::io::{Durable, Effect, Effects, ListPurpose};
use super::{Replica, Role};
use crate::config::Config;
use crate::epoch;
use crate::ids::{Epoch, ExtentIndex, NodeId, Seq};
use crate::limits::{COPY_INFLIGHT, COPY_PAGE, EXTENT_SIZE, WINDOW_BYTES, WINDOW_ENTRIES};
use crate::message::Peer;
use crate::record::{Change, Entry, ExtentCopy, Record, Standing};
use crate::sabotage::{Invariant, breaks};
use crate::time::{Span, Time};

/// A page or an extent that did not come is asked for again.
const ASK_AGAIN: Span = Span::millis(1000);
/// A list that the source cannot give yet, or a copy older than an ignored write.
const ASK_SOON: Span = Span::millis(20);

/// The plan of a catch-up.
#[derive(Debug)]
pub(super) struct CatchUp {
    primary: NodeId,
    /// The epoch in which the primary's log became the common one.
    common: Epoch,
    full: bool,
    base: Seq,
    /// First live entry; `None` before the stream begins.
    stream: Option<Seq>,
    /// What the stream began with when the plan was made; without a gap one stream continues another.
    plan: Seq,
    /// Own stamps above the base: what an interrupted copy left.
    own: BTreeMap<ExtentIndex, Seq>,
    own_listed: bool,
    /// Extents below are listed.
    frontier: ExtentIndex,
    page_due: Option<Time>,
    /// Extents that have to come, and the lowest stamp that will do.
    wanted: BTreeMap<ExtentIndex, Seq>,
    /// Asked for, and when to ask again.
    asked: BTreeMap<ExtentIndex, Time>,
    /// On the way to the disk.
    landing: BTreeMap<ExtentIndex, Seq>,
    /// Live entries behind one that touches an extent whose copy is on its way.
    held: VecDeque<(Seq, Entry)>,
    held_bytes: u64,
    highest: Seq,
    copied: u64,
    joined: bool,
    /// Joining is durable.
    announced: bool,
}

impl CatchUp {
    fn new(primary: NodeId, common: Epoch, base: Seq) -> Self {
        Self {
            primary,
            common,
            full: base == Seq(0),
            base,
            stream: None,
            plan: Seq(0),
            own: BTreeMap::new(),
            own_listed: false,
            frontier: ExtentIndex(0),
            page_due: None,
            wanted: BTreeMap::new(),
            asked: BTreeMap::new(),
            landing: BTreeMap::new(),
            held: VecDeque::new(),
            held_bytes: 0,
            highest: Seq(0),
            copied: 0,
            joined: false,
            announced: false,
        }
    }

    /// The epoch whose log it is being given.
    pub(super) const fn common(&self) -> Epoch {
        self.common
    }

    pub(super) const fn is_streaming(&self) -> bool {
        self.stream.is_some()
    }

    /// Whether it holds everything, by its own durable word.
    pub(super) const fn has_joined(&self) -> bool {
        self.announced
    }

    /// When something is to be asked for (again) if nothing comes.
    pub(super) fn asks_at(&self) -> Option<Time> {
        let listed = self.stream.is_some() && self.own_listed;
        let page = self.page_due.filter(|_| listed && self.wanted.len() < COPY_PAGE);
        let again = self.asked.values().copied().filter(|_| listed);
        again.chain(page).min()
    }

    /// From nothing or not; bytes in; bytes known to be missing.
    pub(super) fn progress(&self) -> (bool, u64, u64) {
        (self.full, self.copied, (self.wanted.len() + self.landing.len()) as u64 * EXTENT_SIZE)
    }

    fn is_current(&self, extent: ExtentIndex) -> bool {
        extent < self.frontier && !self.wanted.contains_key(&extent)
    }

    /// Whether a copy of what it touches is on its way. From the moment it was asked for every live write is kept:
    /// so the copy and what was kept are the whole extent, however often it is written to.
    fn waits_for(&self, change: &Change) -> bool {
        change.extents().any(|extent| self.landing.contains_key(&extent) || self.asked.contains_key(&extent))
    }

    /// Whether a live entry has to wait for copies. What cannot commit without this candidate waits for all it touches:
    /// it comes with no copy.
    fn must_wait(&self, change: &Change, may_commit: bool) -> bool {
        self.waits_for(change) || !may_commit && !change.extents().all(|extent| self.is_current(extent))
    }

    fn is_full(&self, entry: &Entry) -> bool {
        self.held.len() >= WINDOW_ENTRIES || self.held_bytes + entry.change.data_len() > WINDOW_BYTES
    }

    /// Last live entry that came.
    fn seen(&self, last: Seq) -> Seq {
        self.held.back().map_or(last, |(_, entry)| entry.seq)
    }

    fn is_complete(&self, extents: u32, last: Seq) -> bool {
        self.stream.is_some()
            && self.frontier.0 >= extents
            && (self.wanted.is_empty() || breaks(Invariant::I10))
            && self.landing.is_empty()
            && self.held.is_empty()
            && last >= self.highest
    }
}

impl Replica {
    /// The configuration makes this replica a candidate; the copying begins with the stream.
    pub(super) fn become_candidate(&mut self, config: Config, common: Epoch) {
        let primary = config.primary;
        // Where nothing commits any more, what was ignored so far will never come with a copy: the stream begins anew.
        let stops = self.meta.config.may_commit() && !config.may_commit();
        self.adopt_config(config);
        let goes_on = !stops && matches!(&self.role, Role::Candidate(c) if c.primary == primary && c.common == common);
        if !goes_on {
            self.salvage = alloc::vec::Vec::new();
            self.lose_membership();
            let base = self.base();
            self.meta.standing = Standing::Candidate { base };
            self.role = Role::Candidate(Box::new(CatchUp::new(primary, common, base)));
        }
    }

    fn base(&self) -> Seq {
        match self.meta.standing {
            Standing::Candidate { base } | Standing::Stale { base } => base,
            Standing::Member | Standing::Joining { .. } => self.log.commit(),
        }
    }

    pub(super) fn on_stream(&mut self, now: Time, from: NodeId, said: Epoch, first: Seq, effects: &mut Effects) {
        let config = &self.meta.config;
        if !epoch::is_current(said, config) || from != config.primary || !config.is_candidate(self.node) {
            return;
        }
        let (seen, common) = match &self.role {
            // Held up on its way: the source speaks of a later one since (I10).
            Role::Candidate(catch_up) if catch_up.stream.is_some_and(|stream| first < stream) => return,
            Role::Candidate(catch_up) => {
                (catch_up.is_streaming().then(|| catch_up.seen(self.log.last())), catch_up.common)
            }
            Role::Follower(_) => (Some(self.log.last()), self.meta.log_epoch),
            _ => return,
        };
        // Nothing was missed between the streams: the plan, or what is held already, stays as it is.
        if seen.is_some_and(|seen| seen.next() >= first) {
            if let Role::Candidate(catch_up) = &mut self.role {
                catch_up.stream = Some(first);
            }
            return;
        }
        let base = self.base();
        let plan = CatchUp { stream: Some(first), plan: first, ..CatchUp::new(from, common, base) };
        self.role = Role::Candidate(Box::new(plan));
        self.meta.standing = Standing::Candidate { base };
        // What an earlier stream left above the commit point may never have been committed.
        let above = self.log.commit();
        effects.persist(vec![Record::Truncate { segment: self.segment, above }, self.state_record()]);
        self.log.restart_at(Seq(first.0.saturating_sub(1)));
        self.durable = self.log.last();
        self.writing_since = None;
        effects.push(Effect::List { purpose: ListPurpose::Own, above: base, from: ExtentIndex(0) });
        self.candidate_tick(now, effects);
    }

    pub(super) fn on_own_listed(
        &mut self,
        now: Time,
        listed: &[(ExtentIndex, Seq)],
        next: Option<ExtentIndex>,
        effects: &mut Effects,
    ) {
        let Role::Candidate(catch_up) = &mut self.role else { return };
        catch_up.own.extend(listed.iter().copied());
        match next {
            Some(from) => effects.push(Effect::List { purpose: ListPurpose::Own, above: catch_up.base, from }),
            None => {
                catch_up.own_listed = true;
                catch_up.page_due = Some(now);
                self.pump(now, effects);
            }
        }
    }

    pub(super) fn on_copy_page(
        &mut self,
        now: Time,
        from: NodeId,
        (stream, first): (Seq, ExtentIndex),
        listed: &[(ExtentIndex, Seq)],
        next: Option<ExtentIndex>,
        effects: &mut Effects,
    ) {
        let end = ExtentIndex(self.meta.config.extents);
        let Role::Candidate(catch_up) = &mut self.role else { return };
        // A page of an earlier stream has not seen what was committed between the two.
        let expected = catch_up.stream == Some(stream) && first == catch_up.frontier;
        if from != catch_up.primary || !expected || catch_up.page_due.is_none() {
            return;
        }
        for (extent, stamp) in listed.iter().filter(|(extent, _)| *extent < end) {
            let own = catch_up.own.get(extent).copied().unwrap_or(Seq(0));
            if own < *stamp {
                let lowest = catch_up.wanted.entry(*extent).or_insert(*stamp);
                *lowest = (*lowest).max(*stamp);
            }
        }
        catch_up.frontier = next.filter(|next| *next > first).unwrap_or(end);
        catch_up.page_due = (catch_up.frontier < end).then_some(now);
        self.take_what_waited(now, effects);
        self.pump(now, effects);
        self.check_complete(now, effects);
    }

    /// Asks for what is due: the next page, the next extents.
    fn pump(&mut self, now: Time, effects: &mut Effects) {
        let epoch = self.meta.config.epoch;
        let Role::Candidate(catch_up) = &mut self.role else { return };
        let Some(stream) = catch_up.stream.filter(|_| catch_up.own_listed) else { return };
        if catch_up.page_due.is_some_and(|due| due <= now) && catch_up.wanted.len() < COPY_PAGE {
            catch_up.page_due = Some(now + Span(ASK_SOON.0 * 5));
            let (above, from) = (catch_up.base, catch_up.frontier);
            effects.send_bulk(catch_up.primary, Peer::CopyList { epoch, stream, above, from });
        }
        catch_up.asked.retain(|_, again| *again > now);
        let room = COPY_INFLIGHT.saturating_sub(catch_up.asked.len() + catch_up.landing.len());
        let free =
            |extent: &&ExtentIndex| !catch_up.asked.contains_key(*extent) && !catch_up.landing.contains_key(*extent);
        let next: alloc::vec::Vec<ExtentIndex> = catch_up.wanted.keys().filter(free).take(room).copied().collect();
        for extent in next {
            catch_up.asked.insert(extent, now + ASK_AGAIN);
            effects.send_bulk(catch_up.primary, Peer::CopyGet { epoch, extent });
        }
    }

    pub(super) fn on_copy_data(&mut self, now: Time, from: NodeId, copy: ExtentCopy, effects: &mut Effects) {
        let Some(copy) = self.take_mending(now, from, copy, effects) else { return };
        let Role::Candidate(catch_up) = &mut self.role else { return };
        let (extent, stamp) = (copy.extent, copy.stamp);
        let landing = catch_up.landing.contains_key(&extent);
        let Some(lowest) = catch_up.wanted.get(&extent).filter(|_| from == catch_up.primary && !landing) else {
            return;
        };
        if stamp < *lowest {
            // Older than a write that was ignored: the source commits it soon.
            catch_up.asked.insert(extent, now + ASK_SOON);
            return;
        }
        catch_up.asked.remove(&extent);
        catch_up.wanted.remove(&extent);
        catch_up.landing.insert(extent, stamp);
        catch_up.highest = catch_up.highest.max(stamp);
        catch_up.copied += copy.blocks.data.len() as u64;
        let then = vec![Effect::Feed(Durable::Copied(extent, stamp))];
        effects.push(Effect::CopyIn { copy, then });
        self.pump(now, effects);
    }

    pub(super) fn on_copy_failed(&mut self, now: Time, from: NodeId, extent: ExtentIndex) {
        self.mending_failed(now, from, extent);
        if let Role::Candidate(catch_up) = &mut self.role
            && from == catch_up.primary
            && let Some(again) = catch_up.asked.get_mut(&extent)
        {
            *again = now + ASK_AGAIN;
        }
    }

    pub(super) fn on_copied(&mut self, now: Time, extent: ExtentIndex, stamp: Seq, effects: &mut Effects) {
        let Role::Candidate(catch_up) = &mut self.role else { return };
        // Of this plan or an earlier one: the stamp is true either way.
        if catch_up.landing.get(&extent) == Some(&stamp) {
            catch_up.landing.remove(&extent);
        }
        self.take_what_waited(now, effects);
        self.pump(now, effects);
        self.check_complete(now, effects);
    }

    fn take_what_waited(&mut self, now: Time, effects: &mut Effects) {
        let may_commit = self.meta.config.may_commit();
        while let Role::Candidate(catch_up) = &self.role {
            if catch_up.held.front().is_none_or(|(_, entry)| catch_up.must_wait(&entry.change, may_commit)) {
                break;
            }
            self.take_held(now, effects);
        }
    }

    /// A live write of the primary.
    pub(super) fn candidate_prepare(&mut self, now: Time, commit: Seq, entry: Entry, effects: &mut Effects) {
        let Role::Candidate(catch_up) = &mut self.role else { return };
        // One that came before comes again with a stream that continues another.
        if catch_up.stream.is_none() || entry.seq != catch_up.seen(self.log.last()).next() {
            return;
        }
        if catch_up.is_full(&entry) {
            self.spill(now, effects);
        }
        let may_commit = self.meta.config.may_commit();
        let Role::Candidate(catch_up) = &mut self.role else { return };
        if catch_up.held.is_empty() && !catch_up.must_wait(&entry.change, may_commit) {
            self.take_live(now, commit, entry, effects);
            self.check_complete(now, effects);
        } else {
            catch_up.held_bytes += entry.change.data_len();
            catch_up.held.push_back((commit, entry));
        }
    }

    fn take_held(&mut self, now: Time, effects: &mut Effects) {
        let Role::Candidate(catch_up) = &mut self.role else { return };
        if let Some((commit, entry)) = catch_up.held.pop_front() {
            catch_up.held_bytes -= entry.change.data_len();
            self.take_live(now, commit, entry, effects);
        }
    }

    /// Copies do not come as fast as writes: what is held is ignored, and what it touches has to come again.
    fn spill(&mut self, now: Time, effects: &mut Effects) {
        while let Role::Candidate(catch_up) = &mut self.role {
            let Some((_, entry)) = catch_up.held.front() else { break };
            let seq = entry.seq;
            let late: alloc::vec::Vec<ExtentIndex> = entry
                .change
                .extents()
                .filter(|extent| catch_up.landing.contains_key(extent) || catch_up.asked.contains_key(extent))
                .collect();
            for extent in late {
                let lowest = catch_up.wanted.entry(extent).or_insert(seq);
                *lowest = (*lowest).max(seq);
            }
            self.take_held(now, effects);
        }
    }

    fn take_live(&mut self, now: Time, commit: Seq, mut entry: Entry, effects: &mut Effects) {
        if entry.seq != self.log.last().next() {
            return;
        }
        let Role::Candidate(catch_up) = &mut self.role else { return };
        let primary = catch_up.primary;
        if !entry.change.extents().all(|extent| catch_up.is_current(extent)) {
            for extent in entry.change.extents() {
                let lowest = catch_up.wanted.entry(extent).or_insert(entry.seq);
                *lowest = (*lowest).max(entry.seq);
            }
            // Its place in the order stays; by the time this replica joins, its content has come with a copy.
            entry.change = Change::Nothing;
        }
        self.write_entry(now, primary, commit, entry, effects);
        self.candidate_commit(commit, effects);
    }

    pub(super) fn candidate_commit(&mut self, commit: Seq, effects: &mut Effects) {
        // Without a stream the log is of an earlier life, and nobody's commit point means anything for it.
        if matches!(&self.role, Role::Candidate(catch_up) if catch_up.is_streaming()) {
            self.commit_to(commit.min(self.log.last()), effects);
        }
    }

    pub(super) fn candidate_tick(&mut self, now: Time, effects: &mut Effects) {
        self.pump(now, effects);
        self.check_complete(now, effects);
    }

    fn check_complete(&mut self, _now: Time, effects: &mut Effects) {
        let last = self.log.last();
        let extents = self.meta.config.extents;
        let Role::Candidate(catch_up) = &mut self.role else { return };
        if catch_up.joined || !catch_up.is_complete(extents, last) {
            return;
        }
        catch_up.joined = true;
        // A copy is as old as its source's commit point was: that far everything is in.
        let (plan, first) = (catch_up.plan, catch_up.stream.unwrap_or(Seq(1)));
        let through = catch_up.highest.max(Seq(first.0.saturating_sub(1)));
        self.meta.log_epoch = catch_up.common;
        self.commit_to(through, effects);
        self.meta.standing = Standing::Joining { base: self.log.commit() };
        let (epoch, first) = (self.meta.config.epoch, plan);
        effects.persist(vec![self.state_record()]).then_feed(Durable::Joining { epoch, first });
    }

    pub(super) fn on_joining(&mut self, first: Seq, effects: &mut Effects) {
        let (epoch, durable) = (self.meta.config.epoch, self.durable);
        let Role::Candidate(catch_up) = &mut self.role else { return };
        // Of an earlier stream: what followed it is not durable yet.
        if catch_up.joined && catch_up.plan == first {
            catch_up.announced = true;
            effects.send(catch_up.primary, Peer::CaughtUp { epoch, durable, copied: catch_up.copied });
        }
    }
}
