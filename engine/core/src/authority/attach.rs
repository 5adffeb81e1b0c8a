//! Attaching: a new generation, durably; then every serving primary confirms that nothing older can happen (I2).
//!
//! The fence is said to whoever is primary, again and again, until that primary confirms: an election in between
//! only changes whom it is said to. Configurations installed meanwhile carry the new generation already.

use alloc::boxed::Box;
use alloc::collections::BTreeSet;
use alloc::format;
use alloc::string::String;
use alloc::vec::Vec;

use super::document::{AttachVolume, DetachVolume, VolumeMap};
use super::io::{Answer, CallError, CallId, Effects, ErrorCode};
use super::{Authority, volumes};
use crate::ids::{Generation, NodeId, SegmentId, VolumeId};
use crate::limits::{CALL_LIMIT, FENCE_EVERY, FENCES_PER_ROUND};
use crate::message::FromAuthority;
use crate::time::Time;

/// An attachment whose fences are under way.
#[derive(Debug, Clone)]
pub(super) struct Fencing {
    call: CallId,
    generation: Generation,
    waiting: BTreeSet<SegmentId>,
    deadline: Time,
    said: Option<Time>,
    /// Attach is answered with the map, detach with the volume.
    attach: bool,
}

impl Authority {
    pub(super) fn on_attach(
        &mut self,
        now: Time,
        call: CallId,
        name: &str,
        request: &AttachVolume,
        effects: &mut Effects,
    ) {
        let checked = volumes::check_client(&request.client).and_then(|()| self.ready_volume(name));
        match checked {
            Ok(id) => self.fence(now, call, id, Some(request.client.clone()), effects),
            Err(error) => effects.answer(call, Err(error)),
        }
    }

    pub(super) fn on_detach(
        &mut self,
        now: Time,
        call: CallId,
        name: &str,
        request: &DetachVolume,
        effects: &mut Effects,
    ) {
        let id = match self.ready_volume(name) {
            Ok(id) => id,
            Err(error) => return effects.answer(call, Err(error)),
        };
        let record = &self.books.volumes()[&id];
        match request.generation {
            // Its own client leaves and says it is through: nobody has to be fenced.
            Some(own) if own == record.generation => {
                let mut record = record.clone();
                record.attached = None;
                self.books.set_volume(id, Some(record));
                effects.answer(call, Ok(Answer::Volume(Box::new(self.volume_info(now, id)))));
            }
            Some(own) => {
                let message = format!(
                    "{own} is not the current attachment of `{name}`, {} is; it stays as it is",
                    record.generation
                );
                let error = CallError::new(ErrorCode::IllegalState, message);
                effects.answer(call, Err(error.next(format!("nodectl volume show {name}"))));
            }
            None if record.attached.is_none() && !self.fencing.contains_key(&id) => {
                effects.answer(call, Ok(Answer::Volume(Box::new(self.volume_info(now, id)))));
            }
            None => self.fence(now, call, id, None, effects),
        }
    }

    fn fence(&mut self, now: Time, call: CallId, id: VolumeId, client: Option<String>, effects: &mut Effects) {
        let mut record = self.books.volumes()[&id].clone();
        record.generation = record.generation.next();
        let attach = client.is_some();
        record.attached = client;
        let fencing = Fencing {
            call,
            generation: record.generation,
            // Also those a resize is making: they began with the generation before.
            waiting: self.books.segments_of(id).map(|(segment, _)| *segment).collect(),
            deadline: now + CALL_LIMIT,
            said: None,
            attach,
        };
        self.books.set_volume(id, Some(record));
        self.abandon_fence(id, "a newer attach or detach took over", effects);
        self.fencing.insert(id, fencing);
        self.say_fences(now, id, effects);
    }

    fn say_fences(&mut self, now: Time, id: VolumeId, effects: &mut Effects) {
        let Some(fencing) = self.fencing.get_mut(&id) else { return };
        fencing.said = Some(now);
        let generation = fencing.generation;
        for segment in fencing.waiting.iter().take(FENCES_PER_ROUND) {
            let Some(record) = self.books.segments().get(segment) else { continue };
            effects.send(record.config.primary, FromAuthority::Fence { segment: *segment, generation });
        }
    }

    pub(super) fn on_fence_done(
        &mut self,
        now: Time,
        node: NodeId,
        segment: SegmentId,
        generation: Generation,
        effects: &mut Effects,
    ) {
        let id = segment.volume;
        let leads = self.books.segments().get(&segment).is_some_and(|record| record.config.primary == node);
        let Some(fencing) = self.fencing.get_mut(&id) else { return };
        if leads && generation >= fencing.generation {
            fencing.waiting.remove(&segment);
        }
        self.end_fence(now, id, effects);
    }

    /// Answers when all have confirmed.
    fn end_fence(&mut self, now: Time, id: VolumeId, effects: &mut Effects) {
        let Some(fencing) = self.fencing.get(&id).filter(|fencing| fencing.waiting.is_empty()) else { return };
        let (call, attach) = (fencing.call, fencing.attach);
        debug_assert_eq!(
            fencing.generation,
            self.books.volumes()[&id].generation,
            "what was fenced is what is attached"
        );
        self.fencing.remove(&id);
        let answer = if attach {
            Answer::Map(Box::new(self.volume_map(id)))
        } else {
            Answer::Volume(Box::new(self.volume_info(now, id)))
        };
        effects.answer(call, Ok(answer));
    }

    pub(super) fn tick_fences(&mut self, now: Time, effects: &mut Effects) {
        let ids: Vec<VolumeId> = self.fencing.keys().copied().collect();
        for id in ids {
            // A resize that was rolled back took its segments with it.
            let segments = self.books.segments();
            if let Some(fencing) = self.fencing.get_mut(&id) {
                fencing.waiting.retain(|segment| segments.contains_key(segment));
            }
            self.end_fence(now, id, effects);
            let Some(fencing) = self.fencing.get(&id) else { continue };
            if now >= fencing.deadline {
                self.fence_timed_out(now, id, effects);
            } else if fencing.said.is_none_or(|said| now.since(said) >= FENCE_EVERY) {
                self.say_fences(now, id, effects);
            }
        }
    }

    fn fence_timed_out(&mut self, now: Time, id: VolumeId, effects: &mut Effects) {
        let Some(fencing) = self.fencing.remove(&id) else { return };
        let mut record = self.books.volumes()[&id].clone();
        let name = record.name.clone();
        let waits = |segment: &SegmentId| {
            let primary = self.books.segments()[segment].config.primary;
            format!("{segment} (primary {primary}, silent for {} ms)", self.silence_ms(now, primary))
        };
        let mut missing: Vec<String> = fencing.waiting.iter().take(8).map(waits).collect();
        if fencing.waiting.len() > missing.len() {
            missing.push(format!("{} more", fencing.waiting.len() - missing.len()));
        }
        let message = format!(
            "the fence for {} of `{name}` was not confirmed within {} s by the primaries of: {}; \
             older attachments are fenced off everywhere else",
            fencing.generation,
            CALL_LIMIT.as_millis() / 1000,
            missing.join(", ")
        );
        // Nobody got this attachment, so nobody is attached.
        record.attached = None;
        self.books.set_volume(id, Some(record));
        let error = CallError::new(ErrorCode::Timeout, message).next(format!("nodectl volume explain {name}"));
        effects.answer(fencing.call, Err(error));
    }

    /// A newer generation, that nobody else was fenced for, ends what is under way for an older one (I2).
    pub(super) fn abandon_fence(&mut self, id: VolumeId, why: &str, effects: &mut Effects) {
        let Some(older) = self.fencing.remove(&id) else { return };
        let name = &self.books.volumes()[&id].name;
        let message = format!("`{name}`: {why}; this attach or detach has no effect any more");
        let error = CallError::new(ErrorCode::IllegalState, message);
        effects.answer(older.call, Err(error.next(format!("nodectl volume show {name}"))));
    }

    /// Gives up what is under way, because nothing may change any more.
    pub(super) fn abandon_fences(&mut self, error: &CallError, effects: &mut Effects) {
        for (_, fencing) in core::mem::take(&mut self.fencing) {
            effects.answer(fencing.call, Err(error.clone()));
        }
    }

    /// Where a volume's data is.
    pub(super) fn volume_map(&self, id: VolumeId) -> VolumeMap {
        let record = &self.books.volumes()[&id];
        let segments: Vec<_> = self
            .books
            .segments_of(id)
            .take(record.layout.segments() as usize)
            .map(|(_, segment)| segment.config.clone())
            .collect();
        let named: BTreeSet<NodeId> = segments.iter().flat_map(crate::config::Config::holders).collect();
        VolumeMap {
            cluster: self.books.cluster().cluster,
            volume: id,
            name: record.name.clone(),
            size: record.layout.bytes(),
            generation: record.generation,
            limits: record.limits,
            layout: record.layout.clone(),
            segments,
            nodes: self.addresses().into_iter().filter(|a| named.contains(&a.node)).map(Into::into).collect(),
        }
    }
}
