//! What a node tells the authority by itself: what it holds, then regularly how it does, each of its devices too.
//!
//! A shard that is stuck silences nobody: its last figures are told again. What is on a device that is not served is not
//! told at all.

use std::cell::RefCell;
use std::rc::Rc;
use std::time::Duration;

use engine_core::ids::DeviceId;
use engine_core::limits::{LIST_MAX, PROPOSALS_MAX, REPORT_EVERY};
use engine_core::message::{DeviceReport, ToAuthority};
use tokio::sync::oneshot;

use super::clock::duration;
use super::mail::{Mail, ShardBox};
use super::quay::{self, Figures};
use super::routes::Pilot;
use crate::wire::{Message, Outbox};

/// How long shards may take to tell their figures before the last ones known are reported.
const FIGURES_WAIT: Duration = Duration::from_millis(500);

/// A device that is served.
pub(super) struct Served {
    /// Which of those the node has opened.
    pub(super) at: usize,
    pub(super) device: DeviceId,
    pub(super) shards: Vec<ShardBox>,
}

/// Tells the configuration of every replica here (I11).
pub(super) async fn show_configs(served: Vec<Served>, outbox: Outbox) {
    let mut held = Vec::new();
    for shard in served.iter().flat_map(|one| &one.shards) {
        let (answer, list) = oneshot::channel();
        if shard.work.send(Mail::Configs(answer)).await.is_err() {
            return;
        }
        let Ok(list) = list.await else { return };
        held.extend(list);
    }
    let mut parts = held.chunks(PROPOSALS_MAX).map(<[_]>::to_vec).collect::<Vec<_>>();
    let last = parts.pop().unwrap_or_default();
    for part in parts {
        if outbox.try_send(&Message::ToAuthority(ToAuthority::Configs { part, last: false })).is_err() {
            return; // with a part missing the list is not whole; it is asked for again in the next session
        }
    }
    let _ = outbox.try_send(&Message::ToAuthority(ToAuthority::Configs { part: last, last: true }));
}

/// Lists what is held, then reports regularly.
pub(super) async fn keep(served: Vec<Served>, pilot: Rc<Pilot>, damaged_copies: u64, outbox: Outbox) {
    list(&served, &outbox).await;
    let known: Rc<RefCell<Vec<Vec<Figures>>>> =
        Rc::new(RefCell::new(served.iter().map(|one| vec![Figures::default(); one.shards.len()]).collect()));
    let mut ticks = tokio::time::interval(duration(REPORT_EVERY));
    ticks.set_missed_tick_behavior(tokio::time::MissedTickBehavior::Delay);
    loop {
        ticks.tick().await;
        let places = served.iter().enumerate();
        let places = places.flat_map(|(at, one)| one.shards.iter().enumerate().map(move |shard| (at, shard)));
        let asked = places.map(|(at, (index, shard))| {
            let known = Rc::clone(&known);
            async move {
                let (answer, figures) = oneshot::channel();
                if shard.work.send(Mail::Status(answer)).await.is_ok()
                    && let Ok(figures) = figures.await
                {
                    known.borrow_mut()[at][index] = figures;
                }
            }
        });
        for ask in asked {
            // A shard that is stuck must not silence the others.
            let _ = tokio::time::timeout(FIGURES_WAIT, ask).await;
        }
        let known = known.borrow();
        let mut report = quay::report(known.iter().flatten());
        report.damaged_structures += damaged_copies;
        for (Served { at, device, .. }, figures) in served.iter().zip(known.iter()) {
            let said = device_report(*device, figures);
            let free = said.capacity.saturating_sub(said.booked);
            pilot.routes().ask(|lodging| lodging.note(*at, free, said.failed));
            report.devices.push(said);
        }
        if outbox.try_send(&Message::ToAuthority(ToAuthority::Report(report))).is_err() && outbox.is_closed() {
            return;
        }
    }
}

async fn list(served: &[Served], outbox: &Outbox) {
    let mut held = Vec::new();
    for shard in served.iter().flat_map(|one| &one.shards) {
        let (answer, list) = oneshot::channel();
        if shard.work.send(Mail::Replicas(answer)).await.is_ok() {
            held.extend(list.await.unwrap_or_default());
        }
    }
    let mut parts = held.chunks(LIST_MAX).map(<[_]>::to_vec).collect::<Vec<_>>();
    let last = parts.pop().unwrap_or_default();
    for part in parts {
        let _ = outbox.try_send(&Message::ToAuthority(ToAuthority::Replicas { part, last: false }));
    }
    let _ = outbox.try_send(&Message::ToAuthority(ToAuthority::Replicas { part: last, last: true }));
}

/// A device's figures, of all its shards.
fn device_report(device: DeviceId, shards: &[Figures]) -> DeviceReport {
    DeviceReport {
        device,
        capacity: shards.iter().map(|shard| shard.space.capacity).sum(),
        booked: shards.iter().map(|shard| shard.space.booked).sum(),
        used: shards.iter().map(|shard| shard.space.used).sum(),
        failed: shards.iter().any(|shard| shard.failed),
    }
}
