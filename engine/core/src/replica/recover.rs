//! A forced, data-losing exit: this replica is taken for whole, in a new life of the segment (I11).
//!
//! Intuition: nobody who holds every acknowledged write can be had, and a person said whose copy is to count instead.
//! It begins a new incarnation as its only member, durably, then stands for election like anybody; every other replica
//! starts from nothing. A log that may be trusted is kept; one that may not is cut at what is known to be committed, and
//! the order goes on far above, so that no stamp an interrupted copy has left is ever above a new write.

use alloc::vec;

use super::follower::Follower;
use super::io::{Durable, Effect, Effects, Input};
use super::{Replica, Role, log};
use crate::config::Config;
use crate::ids::{Incarnation, Seq};
use crate::limits::RECOVERY_GAP;
use crate::message::{HeldConfig, Outcome, Peer, Refusal, ReplicaReport, ToAuthority};
use crate::record::{Meta, Record, Standing};
use crate::time::Time;

impl Replica {
    /// The authority says that this copy counts from now on, in a new life.
    pub(super) fn on_recover(&mut self, now: Time, config: Config, effects: &mut Effects) {
        let own = self.meta.config.incarnation;
        if config.incarnation == own && !matches!(self.role, Role::Stale) {
            // Said again: the answer was lost. While the write is under way it is still to come.
            return self.answer_recovered(effects);
        }
        if config.incarnation <= own || config.members != [self.node] {
            return;
        }
        self.step_down(None, effects);
        let mut records = vec![];
        let mut standing = Standing::Member;
        if !self.salvage.is_empty() {
            // Damaged above: what is whole of its log is all there is.
            let tail = core::mem::take(&mut self.salvage);
            self.log = log::Log::new(self.log.commit(), tail);
        } else if !self.is_trusted() {
            let above = self.log.commit();
            let base = Seq(above.0 + RECOVERY_GAP);
            records.push(Record::Truncate { segment: self.segment, above });
            self.log.restart_at(above);
            standing = Standing::Joining { base };
            self.log.commit_to(base);
        }
        let (epoch, life) = (config.epoch, config.incarnation);
        // I7: a primary of the old life may have a lease of the authority, given before this life was installed.
        self.granted.suppose(now);
        // Promises were given to another life.
        self.meta = Meta { promised: epoch, log_epoch: epoch, config, standing };
        self.durable = self.log.last();
        self.writing_since = None;
        self.role = Role::Stale;
        records.push(self.state_record());
        effects.persist(records).then_feed(Durable::Recovered(life));
        effects.push(Effect::Commit(self.log.commit()));
        self.want_peers(effects);
    }

    /// The new life is durable here.
    pub(super) fn on_recovered(&mut self, now: Time, life: Incarnation, effects: &mut Effects) {
        if self.meta.config.incarnation != life {
            return;
        }
        if matches!(self.role, Role::Stale) && self.is_trusted() {
            self.role = Role::Follower(Follower::new(now));
        }
        self.answer_recovered(effects);
    }

    fn answer_recovered(&self, effects: &mut Effects) {
        let (segment, incarnation) = (self.segment, self.meta.config.incarnation);
        effects.push(Effect::Authority(ToAuthority::Created { segment, incarnation, result: Ok(()) }));
    }

    /// What this replica is, for explanations and for whoever has to choose one by hand.
    #[must_use]
    pub fn facts(&self) -> ReplicaReport {
        // I9: what a failed store holds is unknown; nobody waits for it or counts on it.
        let failed = matches!(self.role, Role::Failed);
        ReplicaReport {
            segment: self.segment,
            incarnation: self.meta.config.incarnation,
            epoch: self.meta.config.epoch,
            log_epoch: self.meta.log_epoch,
            standing: if failed { Standing::Stale { base: Seq(0) } } else { self.meta.standing },
            commit: self.log.commit(),
            last: self.salvage.last().map_or(self.log.last(), |entry| entry.seq),
        }
    }

    /// The last configuration it adopted, and how far it promised.
    #[must_use]
    pub fn held_config(&self) -> HeldConfig {
        HeldConfig { config: self.meta.config.clone(), promised: self.meta.promised }
    }

    /// Nothing is taken or shown any more; but whoever asks is not left waiting (I9).
    pub(super) fn refuse_as_failed(&self, input: Input, effects: &mut Effects) {
        match input {
            Input::Peer { from, message: Peer::Seal { epoch, .. } } => {
                effects.send(from, Peer::Held { epoch, standing: Some(Standing::Stale { base: Seq(0) }) });
            }
            Input::Client { client, request } => {
                self.reply(client, &request, Outcome::Refused(Refusal::Unknown), effects);
            }
            _ => {}
        }
    }

    /// Whether it neither leads, nor follows anybody it hears, nor is being caught up.
    #[must_use]
    pub fn is_stranded(&self, now: Time) -> bool {
        match &self.role {
            Role::Primary(_) | Role::Candidate(_) => false,
            Role::Follower(_) => !self.hears_primary(now),
            Role::Electing(_) | Role::Stale | Role::Failed => true,
        }
    }
}

#[cfg(test)]
mod tests {
    use alloc::vec::Vec;

    use super::*;
    use crate::ids::{BlockIndex, Epoch, Generation, NodeId, SegmentId, VolumeId};
    use crate::record::{Change, Entry, Recovered};
    use crate::replica::io::RoleName;
    use crate::time::Span;

    const OWN: NodeId = NodeId(2);

    fn config(incarnation: u32, epoch: u64, members: &[u16]) -> Config {
        let members: Vec<NodeId> = members.iter().map(|id| NodeId(*id)).collect();
        Config {
            segment: SegmentId { volume: VolumeId(1), index: 0 },
            incarnation: Incarnation(incarnation),
            epoch: Epoch(epoch),
            primary: members[0],
            electable: members.clone(),
            members,
            candidates: vec![],
            former: vec![],
            generation: Generation(1),
            copies: 3,
            min_copies: 2,
            extents: 512,
        }
    }

    fn opened(standing: Standing, damaged: bool) -> Replica {
        let old = config(1, 5, &[1, 2, 3]);
        let entry = |seq| {
            let change = Change::Zero { block: BlockIndex(0), count: 1 };
            Entry { epoch: Epoch(5), seq: Seq(seq), change }
        };
        let meta = Meta { promised: Epoch(9), log_epoch: Epoch(5), config: old, standing };
        let recovered =
            Recovered { segment: meta.config.segment, meta, commit: Seq(7), tail: vec![entry(8), entry(9)], damaged };
        Replica::open(OWN, recovered, Span::seconds(1), Time(0), 1)
    }

    fn say(replica: &mut Replica, now: Time, input: Input) -> Vec<Effect> {
        let mut effects = crate::replica::io::Effects::new();
        replica.handle(now, input, &mut effects);
        effects.drain().collect()
    }

    /// Recovers it, and gives its last entry and what it says once that is durable.
    fn recovered(replica: &mut Replica) -> (Standing, Seq) {
        let said = say(replica, Time(1), Input::Recover(config(2, 6, &[2])));
        let Some(Effect::Persist { records, then }) = said.first() else { panic!("{said:?}") };
        assert!(
            matches!(records.last(), Some(Record::State { meta, .. }) if meta.config.incarnation == Incarnation(2))
        );
        assert_eq!(then, &[Effect::Feed(Durable::Recovered(Incarnation(2)))]);
        assert!(!said.iter().any(|effect| matches!(effect, Effect::Authority(_))), "not before it is durable");
        assert!(say(replica, Time(1), Input::Recover(config(2, 6, &[2]))).is_empty(), "said twice meanwhile");
        let said = say(replica, Time(2), Input::Durable(Durable::Recovered(Incarnation(2))));
        assert!(
            matches!(said.as_slice(), [Effect::Authority(ToAuthority::Created { result: Ok(()), .. })]),
            "{said:?}"
        );
        // It stands for the next epoch: no promise of its old life is in the way.
        say(replica, Time(3), Input::Tick);
        assert_eq!((replica.view().role, replica.meta.promised), (RoleName::Electing, Epoch(7)));
        (replica.meta.standing, replica.log.last())
    }

    #[test]
    fn a_copy_that_is_not_trusted_goes_on_far_above_whatever_a_copy_may_have_left() {
        let mut replica = opened(Standing::Stale { base: Seq(3) }, false);
        let base = Seq(7 + RECOVERY_GAP);
        assert_eq!(recovered(&mut replica), (Standing::Joining { base }, base));
        assert_eq!(replica.log.commit(), base);
    }

    #[test]
    fn a_member_keeps_its_log_and_a_damaged_one_what_is_whole_of_it() {
        assert_eq!(recovered(&mut opened(Standing::Member, false)), (Standing::Member, Seq(9)));
        let mut damaged = opened(Standing::Member, true);
        assert_eq!(damaged.facts().standing, Standing::Stale { base: Seq(0) });
        assert_eq!(damaged.facts().last, Seq(9));
        assert_eq!(recovered(&mut damaged), (Standing::Member, Seq(9)));
    }

    #[test]
    fn a_copy_whose_store_failed_is_not_waited_for() {
        let mut replica = opened(Standing::Member, false);
        say(&mut replica, Time(1), Input::StoreFailed);
        assert_eq!(replica.facts().standing, Standing::Stale { base: Seq(0) });
        let seal = Peer::Seal { epoch: Epoch(6), from: Epoch(5) };
        let said = say(&mut replica, Time(2), Input::Peer { from: NodeId(3), message: seal });
        let held = Peer::Held { epoch: Epoch(6), standing: Some(Standing::Stale { base: Seq(0) }) };
        assert!(
            matches!(said.as_slice(), [Effect::Send { to: NodeId(3), message, .. }] if *message == held),
            "{said:?}"
        );
    }

    #[test]
    fn another_nodes_copy_or_an_older_life_changes_nothing() {
        let mut replica = opened(Standing::Member, false);
        assert!(say(&mut replica, Time(1), Input::Recover(config(2, 6, &[3]))).is_empty());
        assert!(say(&mut replica, Time(1), Input::Recover(config(0, 6, &[2]))).is_empty());
        assert_eq!(replica.config().incarnation, Incarnation(1));
    }
}
