//! Writing and checking over a volume in memory whose members can be made to lose things.
#![allow(clippy::unwrap_used)]

use std::cell::RefCell;
use std::collections::HashMap;
use std::path::PathBuf;
use std::rc::Rc;
use std::sync::Arc;

use bytes::Bytes;
use engine::authority::api::{VolumeLimits, VolumeMap};
use engine::gateway::{Export, ExportError};
use engine_core::config::Config;
use engine_core::ids::{ClusterId, Epoch, Generation, Incarnation, NodeId, SegmentId, VolumeId};
use engine_core::layout::Layout;
use indicatif::ProgressBar;

use super::check::{self, Checked, Peek};
use super::log::{Ledger, Log};
use super::stamp::{BLOCK, Wrong};
use super::write::{self, Pattern, Plan, Progress};
use crate::signals;

const MIB: u64 = 1 << 20;
const SIZE: u64 = 130 * MIB;

/// A volume of three members in memory.
struct Memory {
    layout: Layout,
    members: RefCell<HashMap<NodeId, Vec<u8>>>,
    /// Writes after which every further one is refused as fenced.
    fenced_after: Option<u64>,
    writes: RefCell<u64>,
}

impl Memory {
    fn new() -> Self {
        let members = (1..=3).map(|id| (NodeId(id), vec![0; usize::try_from(SIZE).unwrap()])).collect();
        let layout = Layout::new(SIZE, 64 * MIB);
        Self { layout, members: RefCell::new(members), fenced_after: None, writes: RefCell::new(0) }
    }

    fn map(&self) -> VolumeMap {
        let nodes = vec![NodeId(1), NodeId(2), NodeId(3)];
        let config = |index| Config {
            segment: SegmentId { volume: VolumeId(7), index },
            incarnation: Incarnation(1),
            epoch: Epoch(2),
            primary: NodeId(1),
            members: nodes.clone(),
            candidates: Vec::new(),
            electable: nodes.clone(),
            former: Vec::new(),
            generation: Generation(1),
            copies: 3,
            min_copies: 2,
            extents: self.layout.extents(index),
        };
        VolumeMap {
            cluster: ClusterId(1),
            volume: VolumeId(7),
            name: "m".to_owned(),
            size: SIZE,
            generation: Generation(1),
            limits: VolumeLimits::default(),
            layout: self.layout.clone(),
            segments: (0..self.layout.segments()).map(config).collect(),
            nodes: Vec::new(),
        }
    }

    /// Overwrites a block on one member.
    fn damage(&self, node: u16, block: u64, with: &[u8]) {
        let at = usize::try_from(block).unwrap() * BLOCK;
        self.members.borrow_mut().get_mut(&NodeId(node)).unwrap()[at..at + BLOCK].copy_from_slice(with);
    }

    fn block(&self, node: u16, block: u64) -> Vec<u8> {
        let at = usize::try_from(block).unwrap() * BLOCK;
        self.members.borrow()[&NodeId(node)][at..at + BLOCK].to_vec()
    }
}

impl Export for Memory {
    fn size(&self) -> u64 {
        SIZE
    }

    async fn read(&self, offset: u64, len: u64) -> Result<Bytes, ExportError> {
        let at = usize::try_from(offset).unwrap();
        Ok(Bytes::copy_from_slice(&self.members.borrow()[&NodeId(1)][at..at + usize::try_from(len).unwrap()]))
    }

    async fn write(&self, offset: u64, data: Bytes) -> Result<(), ExportError> {
        tokio::task::yield_now().await;
        *self.writes.borrow_mut() += 1;
        if self.fenced_after.is_some_and(|limit| *self.writes.borrow() > limit) {
            return Err(ExportError::Fenced);
        }
        let at = usize::try_from(offset).unwrap();
        for member in self.members.borrow_mut().values_mut() {
            member[at..at + data.len()].copy_from_slice(&data);
        }
        Ok(())
    }

    async fn zero(&self, offset: u64, len: u64, _: bool) -> Result<(), ExportError> {
        self.write(offset, vec![0; usize::try_from(len).unwrap()].into()).await
    }

    async fn allocation(&self, _: u64, len: u64) -> Result<Vec<(u64, bool)>, ExportError> {
        Ok(vec![(len, true)])
    }

    fn is_fenced(&self) -> bool {
        false
    }
}

impl Peek for Memory {
    async fn peek(&self, node: NodeId, offset: u64, len: u64) -> Result<Bytes, String> {
        let at = usize::try_from(offset).unwrap();
        Ok(Bytes::copy_from_slice(&self.members.borrow()[&node][at..at + usize::try_from(len).unwrap()]))
    }
}

fn plan(pattern: Pattern, bytes: u64) -> Plan {
    let sizes = vec![BLOCK as u64, 64 << 10];
    Plan { volume: 7, limit: None, bytes: Some(bytes), depth: 16, seed: 1, sizes, zeroes: 25, pattern, rate: None }
}

fn log_path(name: &str) -> PathBuf {
    let path = std::env::temp_dir().join(format!("nodectl-verify-{}-{name}", std::process::id()));
    let _ = std::fs::remove_file(&path);
    path
}

/// Writes 8 MiB, spoils what `spoil` spoils, and checks.
fn story(name: &str, pattern: Pattern, spoil: impl FnOnce(&Memory, &Ledger)) -> Checked {
    let path = log_path(name);
    let found = signals::block_on(async {
        let memory = Rc::new(Memory::new());
        let progress = Arc::new(Progress::default());
        let log = Log::open(&path, 7).unwrap();
        let (written, failure) = write::run(memory.clone(), plan(pattern, 8 * MIB), log, progress).await;
        assert_eq!(failure, None);
        assert!(written.acknowledged_bytes >= 8 * MIB);
        let ledger = Ledger::read(&path).unwrap();
        assert_eq!(ledger.writes, written.acknowledged_writes);
        spoil(&memory, &ledger);
        check::run(memory.clone(), memory.map(), ledger, true, std::time::Duration::ZERO, ProgressBar::hidden()).await
    });
    std::fs::remove_file(&path).unwrap();
    found
}

/// One whose last write left its stamp there.
fn some_block(ledger: &Ledger) -> u64 {
    let stamped = ledger.blocks.iter().filter(|(block, number)| ledger.zeros.get(block) != Some(number));
    *stamped.map(|(block, _)| block).min().unwrap()
}

/// One whose last write left zeros.
fn some_zeros(ledger: &Ledger) -> u64 {
    let zeros = ledger.blocks.iter().filter(|(block, number)| ledger.zeros.get(block) == Some(number));
    *zeros.map(|(block, _)| block).min().unwrap()
}

#[test]
fn what_was_acknowledged_is_there_on_every_member() {
    for (name, pattern) in [("random", Pattern::Random), ("sequential", Pattern::Sequential)] {
        let found = story(name, pattern, |_, _| {});
        assert_eq!((found.wrong, &found.first_wrong), (0, &Vec::new()));
        assert_eq!(found.client_blocks, SIZE / BLOCK as u64);
        assert_eq!(found.member_blocks, 3 * SIZE / BLOCK as u64);
        assert_eq!(found.member_blocks_acknowledged, 3 * found.acknowledged_blocks);
    }
}

#[test]
fn a_loss_on_the_clients_path_is_named() {
    let mut lost = 0;
    let found = story("client", Pattern::Random, |memory, ledger| {
        lost = some_block(ledger);
        memory.damage(1, lost, &[0; BLOCK]);
    });
    let first = &found.first_wrong[0];
    assert_eq!((first.block, first.at.as_str(), first.wrong), (lost, "client", Wrong::Lost));
}

#[test]
fn a_loss_on_one_backup_is_named() {
    let found = story("backup", Pattern::Random, |memory, ledger| {
        memory.damage(3, some_block(ledger), &[0; BLOCK]);
    });
    assert_eq!(found.wrong, 1);
    assert_eq!((found.first_wrong[0].at.as_str(), found.first_wrong[0].wrong), ("n3", Wrong::Lost));
}

#[test]
fn zeros_that_were_lost_on_one_backup_are_named() {
    let found = story("zeros", Pattern::Random, |memory, ledger| {
        let lost = some_zeros(ledger);
        let mut block = vec![0; BLOCK];
        super::stamp::Stamp { volume: 7, block: lost, number: ledger.blocks[&lost] - 1 }.fill(&mut block);
        memory.damage(2, lost, &block);
    });
    assert_eq!(found.wrong, 1);
    assert_eq!((found.first_wrong[0].at.as_str(), found.first_wrong[0].wrong), ("n2", Wrong::Lost));
}

#[test]
fn members_that_differ_are_named_even_where_nothing_was_promised() {
    let found = story("differ", Pattern::Sequential, |memory, ledger| {
        // A whole, well stamped block of its place that only one member has.
        let beyond = ledger.blocks.keys().max().unwrap() + 1000;
        let mut block = memory.block(1, 0);
        super::stamp::Stamp { volume: 7, block: beyond, number: 1 }.fill(&mut block);
        memory.damage(2, beyond, &block);
    });
    assert!(found.wrong >= 1, "{found:?}");
    assert!(found.first_wrong.iter().all(|loss| loss.wrong == Wrong::Differs));
}

#[test]
fn a_fenced_writer_says_so_and_its_log_holds_what_was_acknowledged() {
    let path = log_path("fenced");
    signals::block_on(async {
        let memory = Rc::new(Memory { fenced_after: Some(100), ..Memory::new() });
        let progress = Arc::new(Progress::default());
        let log = Log::open(&path, 7).unwrap();
        let (written, failure) = write::run(memory, plan(Pattern::Random, 64 * MIB), log, progress).await;
        assert_eq!(failure.unwrap().exit, crate::failure::Exit::IllegalState);
        assert_eq!(written.acknowledged_writes, 100);
        assert_eq!(Ledger::read(&path).unwrap().writes, 100);
    });
    std::fs::remove_file(&path).unwrap();
}
