//! What a shard tells about itself; bounded whatever happens (DESIGN 7).

use engine_core::limits::REPORT_SEGMENTS_MAX;
use engine_core::message::{CopyReport, ReplicaReport};

use super::super::mail::Figures;
use super::{Open, Shard, Slot};
use crate::store::Store;

impl<S: Store> Shard<S> {
    fn machines(&self) -> impl Iterator<Item = &Open> {
        self.slots.values().filter_map(|slot| if let Slot::Open(open) = slot { Some(open) } else { None })
    }

    pub(super) fn figures(&self) -> Figures {
        let mut figures = Figures {
            space: self.store.space(),
            corrupt_blocks: self.store.damaged_blocks(),
            copied_bytes: self.copied_bytes,
            ..Figures::default()
        };
        for open in self.machines() {
            figures.replicas += 1;
            let view = open.replica.view();
            if open.replica.is_serving() {
                figures.serving += 1;
            } else if open.replica.should_serve() && figures.not_serving.len() < REPORT_SEGMENTS_MAX {
                figures.not_serving.push(view.segment);
            }
            if let Some((full, copied, left)) = view.copy
                && figures.copies.len() < REPORT_SEGMENTS_MAX
            {
                figures.copies.push(CopyReport { segment: view.segment, full, copied, left });
            }
        }
        figures
    }

    /// Everything held durably, whether its machine is open yet or not.
    pub(super) fn replicas(&self) -> Vec<ReplicaReport> {
        let found = self.found.iter().map(|recovered| &recovered.meta.config);
        let mut list: Vec<ReplicaReport> = found
            .map(|config| ReplicaReport {
                segment: config.segment,
                incarnation: config.incarnation,
                epoch: config.epoch,
            })
            .collect();
        list.extend(self.machines().map(|open| ReplicaReport {
            segment: open.replica.segment(),
            incarnation: open.incarnation,
            epoch: open.replica.config().epoch,
        }));
        list
    }
}
