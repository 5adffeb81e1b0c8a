//! Leading below `min_copies`: reads need a lease of the authority beside those of the members (I7).
//!
//! Intuition: whoever was in the last epoch that could commit stays electable (I5), and when enough of them are back they
//! elect without asking a member here. What they cannot do without is the authority. So a primary that may not commit
//! asks it whether its configuration is still the one at work, and reads for a lease's time from when it asked. It asks
//! only while somebody reads.
//!
//! Invariant: the lease ends before anybody who succeeds this primary without its promise has waited for it
//! (`election`, `Replica::learn`): both are counted from points in time before and after that one's installation.

use alloc::vec;

use super::io::{Effect, Effects};
use super::{Replica, Role};
use crate::ids::Incarnation;
use crate::limits::{BEAT_EVERY, LEASE};
use crate::message::{LeaseAsk, ToAuthority};
use crate::time::Time;

/// What is asked of the authority for reads.
#[derive(Debug, Clone, Copy, Default)]
pub(super) struct Lone {
    asked: Option<Time>,
    /// When something was read last.
    read: Option<Time>,
}

impl Replica {
    /// Reads are served now.
    pub(super) fn note_lone_read(&mut self, now: Time) {
        if let Role::Primary(primary) = &mut self.role
            && primary.has_reads()
        {
            primary.lone.read = Some(now);
        }
    }

    /// Somebody wants to read, and some lease is missing.
    pub(super) fn ask_lone_lease(&mut self, now: Time, effects: &mut Effects) {
        if let Role::Primary(primary) = &self.role
            && primary.has_reads()
            && !primary.lease.covers_outsiders(now)
            && primary.lone.asked.is_none_or(|asked| now.since(asked) >= BEAT_EVERY)
        {
            self.send_lone_ask(now, effects);
        }
    }

    /// Part of a primary's beat: whoever reads does not wait for a lease that has run out.
    pub(super) fn renew_lone_lease(&mut self, now: Time, effects: &mut Effects) {
        if let Role::Primary(primary) = &self.role
            && (primary.has_reads() || primary.lone.read.is_some_and(|read| now.since(read) < LEASE))
        {
            self.send_lone_ask(now, effects);
        }
    }

    fn send_lone_ask(&mut self, now: Time, effects: &mut Effects) {
        let config = &self.meta.config;
        if config.may_commit() || !self.is_healthy(now) {
            return;
        }
        let ask = LeaseAsk { segment: self.segment, incarnation: config.incarnation, epoch: config.epoch, sent: now };
        let Role::Primary(primary) = &mut self.role else { return };
        primary.lone.asked = Some(now);
        effects.push(Effect::Authority(ToAuthority::LeaseAsks(vec![ask])));
    }

    /// The authority has answered what was asked at `sent`. In which epoch does not matter: whoever leads this reign now
    /// led then, so whatever replaces it is installed later than that.
    pub(super) fn on_leased(&mut self, now: Time, incarnation: Incarnation, sent: Time, effects: &mut Effects) {
        let same_life = incarnation == self.meta.config.incarnation;
        let Role::Primary(primary) = &mut self.role else { return };
        // What this reign has not asked is an echo of another one.
        if same_life && primary.lone.asked.is_some_and(|asked| sent <= asked) {
            primary.lease.renew_by_authority(sent);
            self.serve(now, effects);
        }
    }
}

#[cfg(test)]
mod tests {
    use alloc::vec::Vec;

    use super::*;
    use crate::config::Config;
    use crate::ids::{BlockIndex, Epoch, Generation, NodeId, RequestId, SegmentId, Seq, Session, VolumeId};
    use crate::limits::SILENCE;
    use crate::message::{Decision, Op, Outcome, Peer, Request};
    use crate::record::{Blocks, Meta, Standing};
    use crate::replica::io::{ClientRef, Durable, Input, ReadPurpose};
    use crate::time::Span;

    const OWN: NodeId = NodeId(1);
    const OTHER: NodeId = NodeId(2);
    const THIRD: NodeId = NodeId(3);

    fn config(epoch: u64, members: &[NodeId]) -> Config {
        Config {
            segment: SegmentId { volume: VolumeId(1), index: 0 },
            incarnation: Incarnation(1),
            epoch: Epoch(epoch),
            primary: members[0],
            members: members.to_vec(),
            candidates: vec![],
            electable: vec![OWN, OTHER, THIRD],
            former: vec![],
            generation: Generation(1),
            copies: 3,
            min_copies: 2,
            extents: 512,
        }
    }

    fn opened(config: Config) -> Replica {
        let segment = config.segment;
        let meta = Meta { promised: config.epoch, log_epoch: config.epoch, config, standing: Standing::Member };
        Replica::create(OWN, segment, meta, SILENCE, Time(0), 1)
    }

    fn say(replica: &mut Replica, now: Time, input: Input) -> Vec<Effect> {
        let mut effects = Effects::new();
        replica.handle(now, input, &mut effects);
        effects.drain().collect()
    }

    /// Stands for election over `old` with the promises of `promised`, and learns that `new` is installed.
    fn elect(replica: &mut Replica, now: Time, promised: &[NodeId], new: &Config) {
        say(replica, now, Input::Tick);
        say(replica, now, Input::Durable(Durable::Promise(new.epoch)));
        for from in promised {
            let message = Peer::Promise {
                epoch: new.epoch,
                log_epoch: Epoch(1),
                last: Seq(0),
                commit: Seq(0),
                lease_left: Span::ZERO,
            };
            say(replica, now, Input::Peer { from: *from, message });
        }
        say(replica, now, Input::Decided(Decision::Installed(new.clone())));
        say(replica, now, Input::Durable(Durable::Begun(new.epoch)));
    }

    fn lease_left(replica: &Replica, now: Time) -> Span {
        let Role::Primary(primary) = &replica.role else { panic!("it leads") };
        primary.lease_left(now)
    }

    /// The only member left of three, after it has begun its epoch.
    fn lone(now: Time) -> Replica {
        let mut replica = opened(config(5, &[OWN]));
        elect(&mut replica, now, &[], &config(6, &[OWN]));
        assert!(replica.is_serving() && lease_left(&replica, now) == Span::ZERO);
        replica
    }

    fn read(replica: &mut Replica, now: Time) -> Vec<Effect> {
        let op = Op::Read { block: BlockIndex(0), count: 1 };
        let (segment, epoch, generation) = (replica.segment(), replica.config().epoch, Generation(1));
        let request = Request { segment, epoch, generation, session: Session(1), request: RequestId(1), op };
        say(replica, now, Input::Client { client: ClientRef(1), request })
    }

    fn asks(effects: &[Effect]) -> bool {
        effects.iter().any(|effect| matches!(effect, Effect::Authority(ToAuthority::LeaseAsks(_))))
    }

    fn reading(effects: &[Effect]) -> Option<ReadPurpose> {
        effects.iter().find_map(|effect| match effect {
            Effect::Read { purpose, .. } => Some(purpose.clone()),
            _ => None,
        })
    }

    #[test]
    fn below_min_copies_it_reads_for_a_lease_from_when_it_asked_the_authority() {
        let sent = Time(0) + Span::seconds(10);
        let mut replica = lone(sent);
        let effects = read(&mut replica, sent);
        assert!(asks(&effects) && reading(&effects).is_none(), "{effects:?}");
        assert!(!asks(&read(&mut replica, sent)), "once is enough");
        let answered = sent + Span::millis(300);
        let leased = Input::Leased { incarnation: Incarnation(1), sent };
        let purpose = reading(&say(&mut replica, answered, leased)).expect("now it reads");
        // The disk takes until its lease has run out by its own clock, earlier than by anybody else's.
        let late = sent + LEASE - Span::millis(20);
        let data = Ok(Blocks { data: vec![0; 4096].into(), sums: vec![0; 4].into() });
        let effects = say(&mut replica, late, Input::Read { purpose, result: data });
        assert!(!effects.iter().any(|effect| matches!(effect, Effect::Reply { .. })), "{effects:?}");
        // The read waits, and asks for another lease.
        assert!(asks(&say(&mut replica, late, Input::Tick)));
        let leased = Input::Leased { incarnation: Incarnation(1), sent: late };
        let purpose = reading(&say(&mut replica, late, leased)).expect("it is read again");
        let data = Ok(Blocks { data: vec![0; 4096].into(), sums: vec![0; 4].into() });
        let effects = say(&mut replica, late, Input::Read { purpose, result: data });
        assert!(
            matches!(effects.as_slice(), [Effect::Reply { reply, .. }] if matches!(reply.outcome, Outcome::Data(_)))
        );
    }

    #[test]
    fn it_asks_on_while_somebody_reads_and_stops_soon_after() {
        let mut now = Time(0) + Span::seconds(10);
        let mut replica = lone(now);
        read(&mut replica, now);
        say(&mut replica, now, Input::Leased { incarnation: Incarnation(1), sent: now });
        let mut asked = vec![];
        for _ in 0..50 {
            now = now + Span::millis(100);
            if asks(&say(&mut replica, now, Input::Tick)) {
                asked.push(now);
            }
        }
        let first = Time(0) + Span::seconds(10);
        assert!(asked.len() >= 4 && asked.iter().all(|at| at.since(first) <= LEASE), "{asked:?}");
    }

    #[test]
    fn an_echo_of_another_life_or_of_what_it_never_asked_is_no_lease() {
        let now = Time(0) + Span::seconds(10);
        let mut replica = lone(now);
        read(&mut replica, now);
        let of_later = Input::Leased { incarnation: Incarnation(1), sent: now + Span::seconds(1) };
        assert!(reading(&say(&mut replica, now, of_later)).is_none());
        let of_another = Input::Leased { incarnation: Incarnation(2), sent: now };
        assert!(reading(&say(&mut replica, now, of_another)).is_none());
    }

    #[test]
    fn who_succeeds_a_lone_primary_without_its_promise_waits_for_its_lease() {
        let now = Time(0) + Span::seconds(10);
        let new = Config { primary: OWN, ..config(6, &[OWN, THIRD]) };
        let mut replica = opened(config(5, &[OTHER]));
        elect(&mut replica, now, &[THIRD], &new);
        assert_eq!(lease_left(&replica, now), LEASE);
        let mut replica = opened(config(5, &[OTHER]));
        elect(&mut replica, now, &[OTHER, THIRD], &new);
        assert_eq!(lease_left(&replica, now), Span::ZERO, "it has promised, so it reads no more");
        let mut replica = opened(config(5, &[OTHER, OWN, THIRD]));
        elect(&mut replica, now, &[THIRD], &new);
        assert_eq!(lease_left(&replica, now), Span::ZERO, "above min_copies it needs a lease of each");
    }

    #[test]
    fn who_becomes_a_member_unheard_of_counts_the_lease_of_one_who_led_alone_before() {
        // The lone primary proposed to take it in and has not heard that this is installed.
        let now = Time(0) + Span::seconds(10);
        let mut replica = opened(config(5, &[OTHER]));
        say(&mut replica, now, Input::Decided(Decision::Conflict(config(6, &[OTHER, OWN, THIRD]))));
        assert_eq!(replica.granted.left(None, now), LEASE);
        let mut replica = opened(config(5, &[OTHER, OWN, THIRD]));
        say(&mut replica, now, Input::Decided(Decision::Conflict(config(6, &[OTHER, OWN]))));
        assert_eq!(replica.granted.left(None, now), Span::ZERO);
    }
}
