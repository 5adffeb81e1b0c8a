//! Every kind of fault there is, how it is made, and the mixture one seed draws. docs/testing.md says which of them must be survived
//! with nothing lost and which only have to be noticed.
//!
//! Disks that lie or lose what they promised to keep are not survived by copies alone when they are many: one node of a
//! world, the *victim*, may have them, and is replaced when everything heals.

use std::collections::BTreeSet;

use engine::device::memory::Disk;
use engine_core::ids::NodeId;
use engine_core::limits::DRIFT_PER_MILLE;
use engine_core::random::Random;
use engine_core::time::{Span, Time};

use crate::faults::RESET;
use crate::network::{DELAY, NETS, Net};
use crate::world::{DISK_SLOW, SEAT_SLOW, Shape, World};

macro_rules! faults {
    ($($(#[$doc:meta])* $fault:ident = $name:literal, $weight:literal;)*) => {
        /// A kind of fault.
        #[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord)]
        pub(crate) enum Fault { $($(#[$doc])* $fault),* }

        /// All of them, with their names and how often each is drawn into a mixture.
        pub(crate) const FAULTS: &[(Fault, &str, u64)] = &[$((Fault::$fault, $name, $weight)),*];
    };
}

faults! {
    /// A node's power fails: unsynced writes are lost or torn, its host is silent.
    PowerOff = "fault: power off", 3;
    /// A process dies; its host lives and refuses connections.
    Kill = "fault: process killed", 3;
    /// The same to the primary of a segment.
    KillPrimary = "fault: primary killed", 3;
    /// It dies and starts again at once.
    Restart = "fault: process restarted", 2;
    /// A node is asked to stop: it hands over and leaves first.
    Stop = "fault: node stops on purpose", 2;
    /// The same to the primary of a segment.
    StopPrimary = "fault: primary stops on purpose", 3;
    /// All nodes lose power at once.
    Blackout = "fault: all power off", 1;
    /// A process stands still for a while.
    Pause = "fault: process paused", 3;
    /// The same to a primary, past its lease.
    PausePrimary = "fault: primary paused", 2;
    CutOneWay = "fault: one way cut", 2;
    CutPair = "fault: two nodes cut", 2;
    Isolate = "fault: node isolated", 2;
    /// Some nodes do not hear the others.
    Split = "fault: nodes split", 2;
    /// A node's primary network is down.
    CutPrimaryNet = "fault: primary network cut", 2;
    CutReplicationNet = "fault: replication network cut", 1;
    Flap = "fault: connections flap", 2;
    SlowNetwork = "fault: network slow", 1;
    NarrowNetwork = "fault: bandwidth limited", 1;
    SlowDisk = "fault: disk slow", 2;
    /// The whole device does nothing for a while.
    HungDisk = "fault: disk hangs", 2;
    WriteError = "fault: write error (EIO)", 2;
    DiskFull = "fault: write error (ENOSPC)", 1;
    /// The victim is gone for good; another node comes.
    DiskLost = "fault: disk lost", 1;
    /// An image of the victim's disk is taken while it is off; later, after it has run on, it is put back.
    RolledBack = "fault: device rolled back", 2;
    BitRot = "fault: bit rot", 1;
    Unreadable = "fault: sector unreadable", 1;
    Misdirected = "fault: write misdirected", 1;
    LostWrite = "fault: write lost", 1;
    Drift = "fault: clocks drift within bounds", 2;
    WildClock = "fault: clocks drift beyond bounds", 1;
    AuthorityDies = "fault: authority dies", 2;
    /// It stands still, its connections stay; then it hears everything at once.
    AuthorityStalls = "fault: authority stands still", 2;
    /// It is started elsewhere, where the clock is ahead or behind.
    AuthorityMoves = "fault: authority restarts with another clock", 2;
    AuthoritySlow = "fault: authority slow", 1;
    AuthorityMute = "fault: decisions lost", 1;
    AuthorityCut = "fault: node cut from the authority", 2;
    ClientCut = "fault: clients cut from a node", 2;
    ClientReset = "fault: client connections reset", 2;
    ClientDies = "fault: client dies", 2;
    ClientReplaced = "fault: client replaced", 2;
    /// Volumes are made until no node has space for another one.
    Full = "fault: nodes full", 1;
    ZoneOff = "fault: zone off", 2;
    ZoneCut = "fault: zone cut off", 2;
}

/// Names of all faults.
pub(crate) fn names() -> impl Iterator<Item = &'static str> {
    FAULTS.iter().map(|(_, name, _)| *name)
}

/// What one seed has to do with.
#[derive(Debug)]
pub(crate) struct Mixture {
    kinds: Vec<Fault>,
    /// The node whose disk may lie.
    victim: NodeId,
    /// Nodes that do not come back.
    gone: BTreeSet<NodeId>,
    shape: Shape,
    /// An image of the victim's disk, older than what it has done since.
    image: Option<Disk>,
    /// Faults made.
    pub(crate) made: u64,
}

impl Mixture {
    /// Draws the kinds. `keeps`: a copy may be lost for good and all is still there.
    pub(crate) fn draw(w: &World, random: &mut Random, shape: &Shape, keeps: bool) -> Self {
        let zones: BTreeSet<&str> = w.places.values().map(|place| place.zone.as_str()).collect();
        let possible = |fault: Fault| match fault {
            _ if fault.is_damage() => keeps,
            Fault::ZoneOff | Fault::ZoneCut => zones.len() > 1,
            _ => true,
        };
        let weights: Vec<(Fault, u64)> =
            FAULTS.iter().filter(|(fault, ..)| possible(*fault)).map(|(fault, _, weight)| (*fault, *weight)).collect();
        let total: u64 = weights.iter().map(|(_, weight)| weight).sum();
        let mut kinds = Vec::new();
        for _ in 0..random.between(3, 9) {
            let mut at = random.between(0, total - 1);
            let drawn = weights.iter().find(|(_, weight)| {
                let here = at < *weight;
                at = at.saturating_sub(*weight);
                here
            });
            kinds.extend(drawn.map(|(fault, _)| *fault));
        }
        let all: Vec<NodeId> = w.places.keys().copied().collect();
        let victim = aim(w, random, &all).expect("a world has nodes");
        Self { kinds, victim, gone: BTreeSet::new(), shape: *shape, image: None, made: 0 }
    }

    /// Makes one fault, of the kinds that were drawn; sometimes brings back what is down instead.
    pub(crate) fn strike(&mut self, w: &mut World, random: &mut Random) {
        match random.between(0, 9) {
            0 => return w.heal(),
            1 | 2 => {
                let down: Vec<NodeId> = self.down(w).collect();
                if let Some(node) = pick(&down, random) {
                    return self.start(w, node);
                }
            }
            _ => {}
        }
        let Some(fault) = pick(&self.kinds, random) else { return };
        if self.make(w, random, fault) {
            let (_, name, _) = FAULTS.iter().find(|(known, ..)| *known == fault).expect("all are listed");
            w.say(name);
            w.coverage.count(name);
            self.made += 1;
        }
    }

    fn down<'a>(&'a self, w: &'a World) -> impl Iterator<Item = NodeId> + 'a {
        let down = w.places.iter().filter(|(_, place)| place.process.is_none()).map(|(node, _)| *node);
        down.filter(|node| !self.gone.contains(node))
    }

    fn start(&mut self, w: &mut World, node: NodeId) {
        if !w.start(node) {
            self.replace(w, node);
        }
    }

    /// A node goes for good, and a new one comes in its zone.
    fn replace(&mut self, w: &mut World, node: NodeId) {
        w.lose(node);
        self.gone.insert(node);
        let zone = w.places[&node].zone.clone();
        let new = w.add_node(&zone, self.shape.extents);
        w.start(new);
        if node == self.victim {
            // Another one may be the next, once what was lost is there again.
            self.kinds.retain(|fault| !fault.is_damage());
            if self.kinds.is_empty() {
                // All that was drawn needed that disk. Faults go on all the same, with one that is always possible.
                self.kinds.push(Fault::Restart);
            }
        }
    }

    /// Says whether it could be made.
    fn make(&mut self, w: &mut World, random: &mut Random, fault: Fault) -> bool {
        let up: Vec<NodeId> =
            w.places.iter().filter(|(_, place)| place.process.is_some()).map(|(node, _)| *node).collect();
        let Some(one) = aim(w, random, &up) else { return false };
        let other = pick(&up, random).filter(|other| *other != one);
        let segments = w.all_segments();
        let primary = pick(&segments, random).map_or(one, |segment| w.config(segment).primary);
        match fault {
            Fault::PowerOff => w.crash(one, false),
            Fault::Kill => w.kill(one),
            Fault::KillPrimary => w.kill(primary),
            Fault::Restart => {
                w.kill(one);
                self.start(w, one);
            }
            Fault::Stop => w.stop(one),
            Fault::StopPrimary => w.stop(primary),
            Fault::Blackout => up.iter().for_each(|node| w.crash(*node, random.between(0, 1) == 0)),
            Fault::Pause => w.pause(one, Span::millis(random.between(10, 8000))),
            Fault::PausePrimary => w.pause(primary, Span::millis(random.between(1500, 8000))),
            Fault::SlowNetwork => w.network.delay_max = Span::millis(random.between(1, 8)),
            Fault::NarrowNetwork => {
                let rate = random.between(1_000_000, 20_000_000);
                NETS.into_iter().for_each(|net| w.network.limit(one, net, Some(rate)));
            }
            Fault::Drift => return drift(w, random, DRIFT_PER_MILLE as i64 * 5),
            Fault::WildClock => {
                w.history.clocks_agree = false;
                return drift(w, random, 5_000);
            }
            Fault::ZoneOff | Fault::ZoneCut => return zone(w, random, fault),
            Fault::CutOneWay | Fault::CutPair | Fault::Isolate | Fault::Split => {
                return cut(w, random, fault, one, other, &up);
            }
            Fault::CutPrimaryNet => cut_net(w, Net::Primary, one),
            Fault::CutReplicationNet => cut_net(w, Net::Replication, one),
            Fault::Flap => return flap(w, random, one, other),
            Fault::AuthorityDies
            | Fault::AuthorityStalls
            | Fault::AuthorityMoves
            | Fault::AuthoritySlow
            | Fault::AuthorityMute
            | Fault::AuthorityCut => authority(w, random, fault, one),
            Fault::ClientCut => w.cut_client(one),
            Fault::ClientReset => w.drop_conns(one, RESET),
            Fault::ClientDies => {
                w.kill_client(w.attached);
                w.begin_attach();
            }
            Fault::ClientReplaced => w.begin_attach(),
            Fault::Full => {
                let Shape { copies, min_copies, .. } = self.shape;
                w.fill(copies, min_copies, [64, 128, 256, 440][random.between(0, 3) as usize]);
            }
            _ => return self.disk(w, random, fault, one),
        }
        true
    }

    fn disk(&mut self, w: &mut World, random: &mut Random, fault: Fault, one: NodeId) -> bool {
        let victim = self.victim;
        if fault.is_damage() {
            if w.places[&victim].process.is_none() {
                return false;
            }
            w.damage |= !matches!(fault, Fault::DiskLost | Fault::RolledBack);
        }
        let hangs = w.now + Span::millis(random.between(100, 8_000));
        let place = w.places.get_mut(&one).expect("a node");
        match fault {
            Fault::SlowDisk => place.disk_slow = Span::millis(random.between(1, 60)),
            Fault::HungDisk => place.disk_hangs = hangs,
            Fault::WriteError => place.disk.fail_writes(random.between(1, 3)),
            // As of a device that was made without its space: it fails now and goes on failing.
            Fault::DiskFull => place.disk.fail_writes_with(1000, 28),
            Fault::DiskLost => self.replace(w, victim),
            Fault::RolledBack => return self.roll_back(w),
            _ => {
                let disk = w.places[&victim].disk.clone();
                for _ in 0..random.between(1, 4) {
                    let Some(at) = disk.somewhere(random) else { return false };
                    match fault {
                        Fault::BitRot => disk.flip(at + random.between(0, 4095), random.between(0, 7) as u8),
                        Fault::Unreadable => disk.spoil(at),
                        Fault::Misdirected => disk.misdirect_writes(1),
                        _ => disk.lose_writes(1),
                    }
                }
            }
        }
        true
    }

    /// The victim's power fails: the first time an image of its disk is taken, the next time it is put back. It has begun
    /// at least one boot in between, and what it has done since is lost (I9).
    fn roll_back(&mut self, w: &mut World) -> bool {
        let victim = self.victim;
        w.crash(victim, false);
        let image = self.image.take();
        match &image {
            Some(image) => w.roll_back(victim, image),
            None => self.image = Some(w.places[&victim].disk.image()),
        }
        self.start(w, victim);
        image.is_some()
    }

    /// Everything is put right: what is down starts, who has a bad disk is replaced, a client is attached.
    pub(crate) fn heal(&mut self, w: &mut World) {
        w.heal();
        w.seat.mute_decisions = false;
        w.seat.slow = SEAT_SLOW;
        w.network.delay_max = DELAY;
        if w.damage && !self.gone.contains(&self.victim) {
            self.replace(w, self.victim);
        }
        let now = w.now;
        w.seat.clock.run(now, 0);
        let all: Vec<NodeId> = w.places.keys().copied().filter(|node| !self.gone.contains(node)).collect();
        for node in all {
            let place = w.places.get_mut(&node).expect("a node");
            place.disk_slow = DISK_SLOW;
            place.disk_hangs = Time(0);
            place.clock.run(now, 0);
            place.disk.fail_writes(0);
            NETS.into_iter().for_each(|net| w.network.limit(node, net, None));
            if w.places[&node]
                .process
                .as_ref()
                .is_some_and(|process| process.leaving || process.quay.failure().is_some())
            {
                w.crash(node, true);
            }
            self.start(w, node);
        }
        w.resume_authority();
        if w.seat.machine.is_none() {
            w.start_authority();
        }
        if w.client().is_none_or(|client| !client.is_usable()) {
            w.begin_attach();
        }
    }
}

impl Fault {
    /// Whether it may take away what a copy has promised to keep.
    const fn is_damage(self) -> bool {
        matches!(
            self,
            Self::RolledBack | Self::DiskLost | Self::BitRot | Self::Unreadable | Self::Misdirected | Self::LostWrite
        )
    }
}

fn pick<T: Copy>(list: &[T], random: &mut Random) -> Option<T> {
    let last = list.len().checked_sub(1)? as u64;
    list.get(random.between(0, last) as usize).copied()
}

/// A node to strike: more often than not one that counts.
fn aim(w: &World, random: &mut Random, up: &[NodeId]) -> Option<NodeId> {
    let config = w.config(pick(&w.all_segments(), random)?);
    let counts: &[NodeId] = match random.between(0, 4) {
        0 | 1 => &[config.primary],
        2 | 3 => &config.members,
        _ => up,
    };
    let counts: Vec<NodeId> = counts.iter().copied().filter(|node| up.contains(node)).collect();
    pick(&counts, random).or_else(|| pick(up, random))
}

fn drift(w: &mut World, random: &mut Random, most: i64) -> bool {
    let now = w.now;
    w.seat.clock.run(now, random.between(0, 2 * most as u64) as i64 - most);
    for place in w.places.values_mut() {
        place.clock.run(now, random.between(0, 2 * most as u64) as i64 - most);
    }
    true
}

fn zone(w: &mut World, random: &mut Random, fault: Fault) -> bool {
    let zones: Vec<String> = w.places.values().map(|place| place.zone.clone()).collect();
    let zone = &zones[random.between(0, zones.len() as u64 - 1) as usize];
    let (inside, outside): (Vec<NodeId>, Vec<NodeId>) = w.places.keys().partition(|node| w.places[node].zone == *zone);
    if fault == Fault::ZoneOff {
        inside.iter().for_each(|node| w.crash(*node, false));
        return true;
    }
    w.partition(&inside, &outside);
    if random.between(0, 1) == 0 {
        inside.iter().for_each(|node| w.cut_authority(*node));
    }
    if random.between(0, 1) == 0 {
        inside.iter().for_each(|node| w.cut_client(*node));
    }
    true
}

fn cut(w: &mut World, random: &mut Random, fault: Fault, one: NodeId, other: Option<NodeId>, up: &[NodeId]) -> bool {
    let all: Vec<NodeId> = w.places.keys().copied().collect();
    match (fault, other) {
        (Fault::Isolate, _) => w.partition(&[one], &all),
        (Fault::Split, _) => {
            let (some, rest): (Vec<NodeId>, Vec<NodeId>) = up.iter().partition(|_| random.between(0, 1) == 0);
            w.partition(&some, &rest);
        }
        (Fault::CutOneWay, Some(other)) => w.block(one, other),
        (Fault::CutPair, Some(other)) => w.partition(&[one], &[other]),
        _ => return false,
    }
    true
}

fn cut_net(w: &mut World, net: Net, node: NodeId) {
    let others: Vec<NodeId> = w.places.keys().copied().filter(|other| *other != node).collect();
    for other in others {
        w.block_on(net, node, other);
        w.block_on(net, other, node);
    }
}

fn flap(w: &mut World, random: &mut Random, one: NodeId, other: Option<NodeId>) -> bool {
    let Some(other) = other else { return false };
    for _ in 0..random.between(1, 6) {
        w.sever(one, other, false);
        w.run(Span::millis(random.between(1, 60)));
        w.sever(other, one, false);
    }
    true
}

fn authority(w: &mut World, random: &mut Random, fault: Fault, one: NodeId) {
    match fault {
        Fault::AuthorityDies if w.seat.machine.is_some() => w.stop_authority(),
        Fault::AuthorityDies => w.start_authority(),
        Fault::AuthorityStalls => w.stall_authority(Span::millis(random.between(100, 12_000))),
        Fault::AuthorityMoves => w.move_authority(random.between(0, 1 << 41)),
        Fault::AuthoritySlow => w.seat.slow = Span::millis(random.between(5, 3_000)),
        Fault::AuthorityMute => w.seat.mute_decisions = !w.seat.mute_decisions,
        _ => w.cut_authority(one),
    }
}
