//! A volume's limits: kept with its record, changed at any time, told to its client with the map.
//!
//! The authority only remembers them. Whoever has the volume attached holds itself to them (`engine_core::throttle`): no
//! node knows of them, so a change needs nobody's confirmation and never stands in the way of anything else.

use alloc::boxed::Box;
use alloc::format;

use super::Authority;
use super::document::SetVolume;
use super::io::{Answer, CallError, CallId, Effects, ErrorCode};
use crate::throttle::VolumeLimits;
use crate::time::Time;

/// Limits with what was asked for in them.
pub(super) fn limits(old: VolumeLimits, iops: Option<u32>, mibps: Option<u32>) -> Result<VolumeLimits, CallError> {
    old.with(iops, mibps).map_err(|bad| CallError::new(ErrorCode::Invalid, format!("{}; nothing was changed", bad)))
}

impl Authority {
    pub(super) fn on_set(&mut self, now: Time, call: CallId, name: &str, request: SetVolume, effects: &mut Effects) {
        let result = self.try_set(now, name, request);
        effects.answer(call, result);
    }

    fn try_set(&mut self, now: Time, name: &str, request: SetVolume) -> Result<Answer, CallError> {
        let id = self.ready_volume(name)?;
        if request == SetVolume::default() {
            let message = format!("nothing was named that `{name}` should have: `iops`, `mibps` or both");
            return Err(CallError::new(ErrorCode::Invalid, message).next(format!("nodectl volume set {name} --help")));
        }
        let mut record = self.books.volumes()[&id].clone();
        let wanted = limits(record.limits, request.iops, request.mibps)?;
        if record.limits != wanted {
            record.limits = wanted;
            self.books.set_volume(id, Some(record));
        }
        Ok(Answer::Volume(Box::new(self.volume_info(now, id))))
    }
}
