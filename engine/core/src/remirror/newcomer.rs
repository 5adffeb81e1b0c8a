//! What a node does about a peer's message for a segment it holds nothing of.
//!
//! Invariants: nothing is created because somebody merely mentions a segment; only a configuration that names this
//! node as a candidate makes a replica begin here (I10), from nothing, with its space booked (I13).

use crate::config::Config;
use crate::ids::{Epoch, NodeId, Seq};
use crate::message::Peer;
use crate::record::{Meta, Standing};

/// What to do.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Newcomer {
    /// Nothing: whoever sent it will find out.
    Ignore,
    /// Say this to the sender.
    Answer(Peer),
    /// Begin a replica in this state, then give it the message.
    Begin(Meta),
}

/// Decides about `message`, which `node` got for a segment it has nothing of.
#[must_use]
pub fn receive(node: NodeId, message: &Peer) -> Newcomer {
    match message {
        Peer::Invite { config } => Newcomer::Answer(Peer::Held { epoch: config.epoch, standing: None }),
        Peer::Advance { config, .. } if config.is_candidate(node) => Newcomer::Begin(candidate(config)),
        _ => Newcomer::Ignore,
    }
}

/// First state of a new copy: everything has to come.
fn candidate(config: &Config) -> Meta {
    let standing = Standing::Candidate { base: Seq(0) };
    Meta { promised: config.epoch, log_epoch: Epoch(0), config: config.clone(), standing }
}

/// First state of a replica of a new segment, or why this node cannot hold it.
pub fn created(node: NodeId, config: &Config) -> Result<Meta, &'static str> {
    if !config.is_member(node) {
        return Err("the configuration does not name this node");
    }
    if config.extents == 0 || !config.is_member(config.primary) {
        return Err("the configuration is not one");
    }
    Ok(Meta { promised: config.epoch, log_epoch: config.epoch, config: config.clone(), standing: Standing::Member })
}

#[cfg(test)]
mod tests {
    #![allow(clippy::unwrap_used)]
    use alloc::vec;

    use super::*;
    use crate::ids::{Generation, Incarnation, SegmentId, VolumeId};
    use crate::time::Time;

    fn config(members: &[u16], candidates: &[u16]) -> Config {
        Config {
            segment: SegmentId { volume: VolumeId(1), index: 0 },
            incarnation: Incarnation(1),
            epoch: Epoch(5),
            primary: NodeId(members[0]),
            members: members.iter().map(|id| NodeId(*id)).collect(),
            candidates: candidates.iter().map(|id| NodeId(*id)).collect(),
            electable: vec![],
            former: vec![],
            generation: Generation(1),
            copies: 3,
            min_copies: 2,
            extents: 512,
        }
    }

    fn advance(config: Config) -> Peer {
        Peer::Advance { config, log_epoch: Epoch(4), commit: Seq(9), sent: Time(1) }
    }

    #[test]
    fn an_invitation_is_answered_with_nothing_held_and_creates_nothing() {
        let said = receive(NodeId(3), &Peer::Invite { config: config(&[1, 2], &[3]) });
        assert_eq!(said, Newcomer::Answer(Peer::Held { epoch: Epoch(5), standing: None }));
    }

    #[test]
    fn only_a_configuration_that_names_this_node_as_candidate_begins_a_replica() {
        let Newcomer::Begin(meta) = receive(NodeId(3), &advance(config(&[1, 2], &[3]))) else { panic!("no replica") };
        assert_eq!(meta.promised, Epoch(5));
        assert_eq!(meta.standing, Standing::Candidate { base: Seq(0) });
        // A member that holds nothing has lost its device: it must not begin from nothing as a member.
        assert_eq!(receive(NodeId(1), &advance(config(&[1, 2], &[3]))), Newcomer::Ignore);
        assert_eq!(receive(NodeId(4), &advance(config(&[1, 2], &[3]))), Newcomer::Ignore);
        let beat = Peer::Beat { epoch: Epoch(5), commit: Seq(0), sent: Time(0) };
        assert_eq!(receive(NodeId(3), &beat), Newcomer::Ignore);
    }

    #[test]
    fn a_new_segment_begins_with_members_only() {
        let meta = created(NodeId(2), &config(&[1, 2, 3], &[])).unwrap();
        assert_eq!((meta.promised, meta.log_epoch, meta.standing), (Epoch(5), Epoch(5), Standing::Member));
        assert!(created(NodeId(4), &config(&[1, 2, 3], &[])).is_err());
    }
}
