//! The machine a figure was measured on: no figure goes without it.

use std::fmt;

use serde::Serialize;

/// Where it ran.
#[derive(Debug, Clone, Serialize)]
pub(crate) struct Machine {
    version: &'static str,
    optimised: bool,
    kernel: String,
    processor: String,
    processors: usize,
    /// When it began: one minute's average.
    load_average: String,
}

impl Machine {
    pub(crate) fn here() -> Self {
        let read = |path: &str| std::fs::read_to_string(path).unwrap_or_default();
        let info = read("/proc/cpuinfo");
        let model = info.lines().find_map(|line| line.strip_prefix("model name")).unwrap_or_default();
        Self {
            version: env!("CARGO_PKG_VERSION"),
            optimised: !cfg!(debug_assertions),
            kernel: read("/proc/sys/kernel/osrelease").trim().to_owned(),
            processor: model.trim_start_matches(['\t', ' ', ':']).to_owned(),
            processors: std::thread::available_parallelism().map_or(0, usize::from),
            load_average: read("/proc/loadavg").split(' ').next().unwrap_or_default().to_owned(),
        }
    }
}

impl fmt::Display for Machine {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let build = if self.optimised { "" } else { " (NOT an optimised build)" };
        let Self { version, kernel, processor, processors, load_average, .. } = self;
        write!(f, "{processors} x {processor}, kernel {kernel}, load average {load_average} at the beginning; ")?;
        write!(f, "nodectl {version}{build}")
    }
}
