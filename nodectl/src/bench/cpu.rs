//! Processor time of processes, from `/proc/PID/stat`: what an I/O costs, wherever it is spent.

use std::time::Duration;

/// Processor time a process has used so far, all its threads; `None` when it is gone.
pub(crate) fn of(pid: u32) -> Option<Duration> {
    let stat = std::fs::read_to_string(format!("/proc/{pid}/stat")).ok()?;
    Some(Duration::from_secs_f64(ticks(&stat)? / ticks_per_second()))
}

/// `utime + stime`. The command's name may hold blanks and brackets: fields are counted behind the last bracket.
fn ticks(stat: &str) -> Option<f64> {
    let mut fields = stat.rsplit_once(')')?.1.split_whitespace().skip(11);
    let user: f64 = fields.next()?.parse().ok()?;
    let system: f64 = fields.next()?.parse().ok()?;
    Some(user + system)
}

#[allow(clippy::cast_precision_loss)] // 100
fn ticks_per_second() -> f64 {
    // SAFETY: sysconf has no preconditions.
    let ticks = unsafe { libc::sysconf(libc::_SC_CLK_TCK) };
    if ticks > 0 { ticks as f64 } else { 100.0 }
}

/// Processor time of several processes together.
pub(crate) fn of_all(pids: &[u32]) -> Duration {
    pids.iter().filter_map(|pid| of(*pid)).sum()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn names_with_brackets_do_not_confuse() {
        let stat = "42 (a) b (c) S 1 42 42 0 -1 4194304 100 0 0 0 250 50 0 0 20 0 1 0 100 1000 10";
        assert_eq!(ticks(stat), Some(300.0));
        assert_eq!(ticks("nonsense"), None);
    }

    #[test]
    fn this_process_has_some_and_a_missing_one_none() {
        assert!(of(std::process::id()).is_some());
        assert!(of(u32::MAX).is_none());
    }
}
