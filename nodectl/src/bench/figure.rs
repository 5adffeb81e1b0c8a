//! What a case is about, and how the figures of several rounds become one.

use serde::Serialize;

/// The figure a case is about.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize)]
#[serde(rename_all = "snake_case")]
pub(crate) enum Figure {
    /// Half of the requests take at most this, in microseconds.
    Latency,
    /// Requests per second.
    Iops,
    /// MiB per second.
    Throughput,
}

impl Figure {
    /// Whether less is better.
    pub(crate) const fn is_less_better(self) -> bool {
        matches!(self, Self::Latency)
    }

    pub(crate) const fn unit(self) -> &'static str {
        match self {
            Self::Latency => "us",
            Self::Iops => "/s",
            Self::Throughput => "MiB/s",
        }
    }

    /// Whether a ratio to the bare disk is as good as this one.
    pub(crate) fn is_met(self, ratio: f64, target: f64) -> bool {
        if self.is_less_better() { ratio <= target } else { ratio >= target }
    }

    /// A target as the tables show it.
    pub(crate) fn target(self, ratio: f64) -> String {
        format!("{} {ratio}", if self.is_less_better() { "<=" } else { ">=" })
    }
}

/// Half are at most this.
pub(crate) fn median(figures: impl Iterator<Item = f64>) -> f64 {
    let mut figures: Vec<f64> = figures.collect();
    figures.sort_by(f64::total_cmp);
    figures.get(figures.len().saturating_sub(1) / 2).copied().unwrap_or_default()
}

/// Of ours to bare: round by round where both have as many, else of the medians.
pub(crate) fn ratio(ours: &[f64], bare: &[f64]) -> f64 {
    if ours.len() == bare.len() {
        median(ours.iter().zip(bare).map(|(ours, bare)| ours / bare))
    } else {
        median(ours.iter().copied()) / median(bare.iter().copied())
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn rounds_are_compared_in_pairs_and_their_median_counts() {
        assert_eq!(ratio(&[160.0, 150.0, 180.0], &[80.0, 100.0, 10.0]), 2.0);
        assert_eq!(ratio(&[150.0], &[100.0, 50.0]), 3.0);
        assert!(Figure::Latency.is_met(1.0, 1.2) && !Figure::Latency.is_met(1.3, 1.2));
        assert!(Figure::Iops.is_met(1.0, 0.9) && !Figure::Iops.is_met(0.8, 0.9));
    }
}
