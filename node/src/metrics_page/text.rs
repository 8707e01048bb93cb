//! The text format of Prometheus, version 0.0.4.

use std::collections::BTreeMap;
use std::fmt::Write as _;

use iroh_raft::RingReport;

use super::names::{Kind, METRICS, Metric, Source};
use super::recorder::{Series, Value};
use super::sample::Sample;

/// Counts of values up to bounds.
#[derive(Clone, PartialEq, Debug)]
pub(super) struct Counts {
    /// Bounds, and how many values were not above each.
    pub(super) upto: Vec<(f64, u64)>,
    /// All of them.
    pub(super) count: u64,
    /// The values together.
    pub(super) sum: f64,
}

/// Powers of two, in nanoseconds, at which the buckets of a ring's waits end: from a microsecond to a second.
const WAIT_POWERS: std::ops::RangeInclusive<u32> = 10..=30;
/// Every second power is enough to see where time goes, and seven rings a shard are many.
const WAIT_POWERS_STEP: usize = 2;

type Labels<'a> = &'a [(&'a str, &'a str)];

/// The page.
pub(super) fn page(sample: &Sample, recorded: &BTreeMap<Series, Value>) -> String {
    let mut page = String::with_capacity(64 << 10);
    for metric in METRICS {
        let mut lines = String::new();
        put_metric(&mut lines, metric, sample, recorded);
        // A metric without a series is none: nothing is known of it now.
        if !lines.is_empty() {
            let Metric { name, meaning, kind, .. } = metric;
            _ = write!(page, "# HELP {name} {meaning}\n# TYPE {name} {}\n{lines}", kind.name());
        }
    }
    // What somebody began to record and nobody has described is shown all the same.
    for ((name, labels), value) in
        recorded.iter().filter(|((name, _), _)| METRICS.iter().all(|metric| metric.name != name))
    {
        put_value(&mut page, name, &borrowed(labels), value);
    }
    page
}

fn put_metric(out: &mut String, metric: &Metric, sample: &Sample, recorded: &BTreeMap<Series, Value>) {
    let name = metric.name;
    match metric.source {
        Source::Recorded(_) => {
            for ((_, labels), value) in recorded.iter().filter(|((of, _), _)| of == name) {
                put_value(out, name, &borrowed(labels), value);
            }
        }
        Source::About => {
            let about = &sample.about;
            let node = about.node.to_string();
            let version = env!("CARGO_PKG_VERSION");
            put(out, name, &[("node", &node), ("cluster", &about.cluster), ("version", version)], 1.0);
        }
        Source::One(read) => {
            if let Some(value) = read(sample) {
                put(out, name, &[], value);
            }
        }
        Source::Each(label, read) => {
            read(sample).iter().for_each(|(of, value)| put(out, name, &[(label, of)], *value));
        }
        Source::Shard(read) => {
            for (shard, stats) in sample.stats.shards.iter().enumerate() {
                put(out, name, &[("shard", &shard.to_string())], read(stats));
            }
        }
        Source::Ring(read) => {
            for ring in &sample.rings {
                put(out, name, &[("ring", ring.name), ("shard", &ring.shard.to_string())], read(&ring.stats));
            }
        }
        Source::RingWaits => {
            for ring in &sample.rings {
                let labels = [("ring", ring.name), ("shard", &*ring.shard.to_string())];
                put_counts(out, name, &labels, &waits(ring));
            }
        }
    }
}

fn waits(ring: &RingReport) -> Counts {
    let powers = WAIT_POWERS.step_by(WAIT_POWERS_STEP);
    let upto = powers.map(|power| ((1_u64 << power) as f64 / 1e9, ring.waits.below(power))).collect();
    Counts { upto, count: ring.waits.count(), sum: ring.waits.total().as_secs_f64() }
}

fn borrowed(labels: &[(String, String)]) -> Vec<(&str, &str)> {
    labels.iter().map(|(label, value)| (label.as_str(), value.as_str())).collect()
}

fn put_value(out: &mut String, name: &str, labels: Labels<'_>, value: &Value) {
    match value {
        Value::Number(number) => put(out, name, labels, *number),
        Value::Counts(counts) => put_counts(out, name, labels, counts),
    }
}

fn put_counts(out: &mut String, name: &str, labels: Labels<'_>, counts: &Counts) {
    let bucket = format!("{name}_bucket");
    let ends = counts.upto.iter().map(|(bound, count)| (bound.to_string(), *count));
    for (bound, count) in ends.chain([("+Inf".to_owned(), counts.count)]) {
        let labels: Vec<_> = labels.iter().copied().chain([("le", bound.as_str())]).collect();
        put(out, &bucket, &labels, count as f64);
    }
    put(out, &format!("{name}_sum"), labels, counts.sum);
    put(out, &format!("{name}_count"), labels, counts.count as f64);
}

fn put(out: &mut String, name: &str, labels: Labels<'_>, value: f64) {
    out.push_str(name);
    for (at, (label, value)) in labels.iter().enumerate() {
        let value = value.replace('\\', "\\\\").replace('"', "\\\"").replace('\n', "\\n");
        _ = write!(out, "{}{label}=\"{value}\"", if at == 0 { '{' } else { ',' });
    }
    out.push_str(if labels.is_empty() { " " } else { "} " });
    _ = writeln!(out, "{value}");
}

impl Kind {
    /// As the format says it.
    pub(super) fn name(self) -> &'static str {
        match self {
            Kind::Counter => "counter",
            Kind::Gauge => "gauge",
            Kind::Histogram => "histogram",
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn lines_are_as_the_format_wants_them() {
        let mut out = String::new();
        put(&mut out, "plain_total", &[], 3.0);
        put(&mut out, "named", &[("a", "x\\y\"z\n"), ("b", "c")], 0.25);
        let counts = Counts { upto: vec![(0.001, 1), (2.0, 3)], count: 4, sum: 7.5 };
        put_counts(&mut out, "time_seconds", &[("shard", "0")], &counts);
        assert_eq!(
            out,
            "plain_total 3\nnamed{a=\"x\\\\y\\\"z\\n\",b=\"c\"} 0.25\n\
             time_seconds_bucket{shard=\"0\",le=\"0.001\"} 1\ntime_seconds_bucket{shard=\"0\",le=\"2\"} 3\n\
             time_seconds_bucket{shard=\"0\",le=\"+Inf\"} 4\ntime_seconds_sum{shard=\"0\"} 7.5\n\
             time_seconds_count{shard=\"0\"} 4\n"
        );
    }
}
