//! What is told of a run: figures over time, and a few that sum it up.

use serde::Serialize;

use engine_core::time::{Span, Time};

use super::cluster::{START, float};

/// How often a sample is taken.
pub(super) const SAMPLE_EVERY: Span = Span::seconds(10);

/// One line per sample.
#[derive(Debug, Default, Serialize)]
pub(super) struct Series {
    /// Seconds since the beginning.
    pub(super) at_s: Vec<f64>,
    /// Segments whose I/O is blocked.
    pub(super) stuck: Vec<u64>,
    /// Segments with fewer copies than they should have.
    pub(super) degraded: Vec<u64>,
    /// Nodes that look for space, or ask for leave to.
    pub(super) searching_nodes: Vec<u64>,
    /// Part of the capacity of the nodes in reach that is free, where it went wrong.
    pub(super) free_share: Vec<f64>,
    /// MiB per second of copies that arrive: catch-up and re-mirroring.
    pub(super) copy_mib_s: Vec<f64>,
    /// Calls and messages that wait at the control plane, at most.
    pub(super) authority_queue: Vec<u64>,
    /// Messages per second to the busiest control plane.
    pub(super) authority_messages_s: Vec<u64>,
    /// By zone.
    pub(super) api: Vec<ZoneSeries>,
}

/// `CreateVolume` of one zone.
#[derive(Debug, Default, Serialize)]
pub(super) struct ZoneSeries {
    pub(super) zone: String,
    /// Of those answered since the sample before; nothing where none was.
    pub(super) p99_ms: Vec<Option<f64>>,
    /// Of those that ended since the sample before, in parts.
    pub(super) failed_share: Vec<f64>,
}

/// A run in short.
#[derive(Debug, Default, Clone, Serialize)]
pub(super) struct Figures {
    /// Segments counted: those of the zone that was hit, or all where copies are spread over zones.
    pub(super) segments: u64,
    /// At most, at any time.
    pub(super) stuck_peak_share: f64,
    /// On average from the beginning of the first fault to the end of the last that ends.
    pub(super) stuck_mean_during_share: f64,
    /// At most, after the last fault that ends was over.
    pub(super) stuck_peak_after_share: f64,
    /// One hour after that; nothing where the scenario ended before.
    pub(super) stuck_hour_after_share: Option<f64>,
    pub(super) stuck_at_end: u64,
    /// Seconds from then until the last segment was not stuck any more; nothing where some are at the end.
    pub(super) unstuck_after_s: Option<f64>,
    /// The same of segments with too few copies.
    pub(super) whole_after_s: Option<f64>,
    pub(super) degraded_at_end: u64,
    pub(super) searching_nodes_peak: u64,
    pub(super) searching_nodes_at_end: u64,
    /// Whole copies begun.
    pub(super) remirrors: u64,
    /// Of those, of segments of which a former copy was or came back within the run.
    pub(super) remirrors_needless: u64,
    /// Copies that were begun and given up.
    pub(super) copies_failed: u64,
    pub(super) catch_ups: u64,
    pub(super) copied_bytes: u64,
    /// Least part of the capacity of the nodes in reach that was free, where it went wrong.
    pub(super) free_min_share: f64,
    /// Questions for space.
    pub(super) searches: u64,
    pub(super) crashed_nodes: u64,
    /// Messages within one second at the busiest control plane.
    pub(super) authority_messages_peak: u64,
    /// What they can be at most.
    pub(super) authority_messages_bound: Option<u64>,
    /// The busiest control plane had so many waiting.
    pub(super) authority_queue_peak: u64,
    pub(super) api_hit_zone: ApiFigures,
    pub(super) api_other_zones: ApiFigures,
}

/// `CreateVolume`, before and since the first fault.
#[derive(Debug, Default, Clone, Serialize)]
pub(super) struct ApiFigures {
    pub(super) calm_p99_ms: f64,
    pub(super) storm_p99_ms: f64,
    pub(super) calm_failed_share: f64,
    pub(super) storm_failed_share: f64,
}

/// Calls of one zone, as they end.
#[derive(Debug, Default)]
struct Calls {
    calm: Vec<f64>,
    storm: Vec<f64>,
    failed: [u64; 2],
    recent: Vec<f64>,
    recent_failed: u64,
}

/// Gathers what is told of a run.
#[derive(Debug)]
pub(super) struct Recorder {
    pub(super) series: Series,
    calls: Vec<Calls>,
    hit_zone: usize,
    broken_at: Time,
    healed_at: Time,
    /// When a segment was stuck, or had too few copies, last.
    stuck_last: Option<Time>,
    degraded_last: Option<Time>,
    pub(super) figures: Figures,
}

/// What one sample says beside the API.
#[derive(Debug, Clone, Copy)]
pub(super) struct Sample {
    pub(super) searching_nodes: u64,
    pub(super) free_share: f64,
    pub(super) copied_bytes: u64,
    pub(super) queue: u64,
    pub(super) messages: u64,
}

impl Recorder {
    pub(super) fn new(zones: &[String], hit_zone: usize, segments: u64, broken_at: Time, healed_at: Time) -> Self {
        let api = zones.iter().map(|zone| ZoneSeries { zone: zone.clone(), ..ZoneSeries::default() }).collect();
        let calls = zones.iter().map(|_| Calls::default()).collect();
        let figures = Figures { segments, free_min_share: 1.0, ..Figures::default() };
        let series = Series { api, ..Series::default() };
        Self { series, calls, hit_zone, broken_at, healed_at, stuck_last: None, degraded_last: None, figures }
    }

    /// How many segments are stuck and degraded from now on.
    pub(super) fn count(&mut self, now: Time, stuck: u64, degraded: u64) {
        let share = |count: u64, of: u64| if of == 0 { 0.0 } else { float(count) / float(of) };
        let figures = &mut self.figures;
        let stuck_share = share(stuck, figures.segments);
        figures.stuck_peak_share = figures.stuck_peak_share.max(stuck_share);
        if now >= self.healed_at {
            figures.stuck_peak_after_share = figures.stuck_peak_after_share.max(stuck_share);
        }
        if now < self.healed_at + Span::seconds(3600) {
            figures.stuck_hour_after_share = Some(stuck_share);
        }
        (figures.stuck_at_end, figures.degraded_at_end) = (stuck, degraded);
        self.stuck_last = if stuck > 0 { None } else { Some(self.stuck_last.unwrap_or(now)) };
        self.degraded_last = if degraded > 0 { None } else { Some(self.degraded_last.unwrap_or(now)) };
    }

    /// A call has ended.
    pub(super) fn call(&mut self, zone: usize, now: Time, took: Result<Span, ()>) {
        let calls = &mut self.calls[zone];
        let storm = now >= self.broken_at;
        match took {
            Ok(span) => {
                let millis = float(span.0) / 1e6;
                if storm {
                    calls.storm.push(millis);
                } else {
                    calls.calm.push(millis);
                }
                calls.recent.push(millis);
            }
            Err(()) => {
                calls.failed[usize::from(storm)] += 1;
                calls.recent_failed += 1;
            }
        }
    }

    pub(super) fn sample(&mut self, now: Time, stuck: u64, degraded: u64, sample: &Sample) {
        self.count(now, stuck, degraded);
        let series = &mut self.series;
        series.at_s.push(float(now.since(START).0) / 1e9);
        series.stuck.push(stuck);
        series.degraded.push(degraded);
        series.searching_nodes.push(sample.searching_nodes);
        series.free_share.push(round(sample.free_share, 1e5));
        let seconds = float(SAMPLE_EVERY.0) / 1e9;
        series.copy_mib_s.push(round(float(sample.copied_bytes) / seconds / float(1 << 20), 10.0));
        series.authority_queue.push(sample.queue);
        series.authority_messages_s.push(sample.messages);
        let figures = &mut self.figures;
        figures.searching_nodes_peak = figures.searching_nodes_peak.max(sample.searching_nodes);
        figures.searching_nodes_at_end = sample.searching_nodes;
        figures.free_min_share = figures.free_min_share.min(sample.free_share);
        figures.copied_bytes += sample.copied_bytes;
        figures.authority_queue_peak = figures.authority_queue_peak.max(sample.queue);
        figures.authority_messages_peak = figures.authority_messages_peak.max(sample.messages);
        for (zone, calls) in series.api.iter_mut().zip(&mut self.calls) {
            let ended = calls.recent.len() as u64 + calls.recent_failed;
            let failed = if ended == 0 { 0.0 } else { float(calls.recent_failed) / float(ended) };
            zone.failed_share.push(round(failed, 1e4));
            zone.p99_ms.push(p99(&mut calls.recent).map(|millis| round(millis, 1e3)));
            calls.recent.clear();
            calls.recent_failed = 0;
        }
    }

    /// Of the samples while a fault lasted.
    fn mean_during(&self) -> f64 {
        let from = float(self.broken_at.since(START).0) / 1e9;
        let until = float(self.healed_at.since(START).0) / 1e9;
        let samples = self.series.at_s.iter().zip(&self.series.stuck);
        let during: Vec<u64> =
            samples.filter(|(at, _)| **at > from && **at <= until).map(|(_, stuck)| *stuck).collect();
        let all = float(during.len() as u64) * float(self.figures.segments);
        if all == 0.0 { 0.0 } else { round(float(during.iter().sum()) / all, 1e6) }
    }

    /// The run is over.
    pub(super) fn finish(mut self, end: Time) -> (Figures, Series) {
        let after = |last: Option<Time>| last.map(|at| round(float(at.since(self.healed_at).0) / 1e9, 1e3));
        self.figures.stuck_mean_during_share = self.mean_during();
        self.figures.unstuck_after_s = after(self.stuck_last);
        self.figures.whole_after_s = after(self.degraded_last);
        if end < self.healed_at + Span::seconds(3600) {
            self.figures.stuck_hour_after_share = None;
        }
        let hit = self.hit_zone;
        let (mut own, mut others) = (Calls::default(), Calls::default());
        for (zone, calls) in self.calls.into_iter().enumerate() {
            let sum = if zone == hit { &mut own } else { &mut others };
            sum.calm.extend(calls.calm);
            sum.storm.extend(calls.storm);
            (0..2).for_each(|at| sum.failed[at] += calls.failed[at]);
        }
        self.figures.api_hit_zone = own.figures();
        self.figures.api_other_zones = others.figures();
        (self.figures, self.series)
    }
}

impl Calls {
    fn figures(mut self) -> ApiFigures {
        let failed = |failed: u64, done: usize| {
            let all = failed + done as u64;
            if all == 0 { 0.0 } else { round(float(failed) / float(all), 1e5) }
        };
        ApiFigures {
            calm_failed_share: failed(self.failed[0], self.calm.len()),
            storm_failed_share: failed(self.failed[1], self.storm.len()),
            calm_p99_ms: p99(&mut self.calm).map_or(0.0, |millis| round(millis, 1e3)),
            storm_p99_ms: p99(&mut self.storm).map_or(0.0, |millis| round(millis, 1e3)),
        }
    }
}

/// Of a hundred the slowest but one.
fn p99(millis: &mut [f64]) -> Option<f64> {
    millis.sort_by(f64::total_cmp);
    millis.get((millis.len() * 99).div_ceil(100).saturating_sub(1)).copied()
}

/// To so many parts of one.
pub(super) fn round(number: f64, parts: f64) -> f64 {
    (number * parts).round() / parts
}
