//! Keeps what is counted through `metrics`, which storage does. What records pays an atomic addition, and a histogram is a fixed number of
//! counts: nothing grows while nobody looks.

use std::collections::BTreeMap;
use std::sync::atomic::{AtomicU64, Ordering};
use std::sync::{Arc, Mutex, PoisonError};

use metrics::{Counter, Gauge, GaugeFn, Histogram, HistogramFn, Key, KeyName, Metadata, SharedString, Unit};

use super::text::Counts;

/// Buckets end at powers of two from 1 to 2^26: a minute in microseconds, 64 MiB, 67 million records.
const BUCKETS: usize = 27;

/// Everything that was ever registered, by name and labels.
#[derive(Debug, Default)]
pub(super) struct Recorder {
    series: Mutex<BTreeMap<Series, Cell>>,
}

/// A name with its labels, in order.
pub(super) type Series = (String, Vec<(String, String)>);

#[derive(Clone, Debug)]
enum Cell {
    Counter(Arc<AtomicU64>),
    Gauge(Arc<AtomicU64>),
    Histogram(Arc<Buckets>),
}

/// What a series says.
#[derive(Clone, PartialEq, Debug)]
pub(super) enum Value {
    Number(f64),
    Counts(Counts),
}

#[derive(Debug)]
struct Buckets {
    counts: [AtomicU64; BUCKETS],
    beyond: AtomicU64,
    /// An `f64`, as `metrics` keeps a gauge.
    sum: AtomicU64,
}

impl Default for Buckets {
    fn default() -> Buckets {
        Buckets {
            counts: [const { AtomicU64::new(0) }; BUCKETS],
            beyond: AtomicU64::new(0),
            sum: AtomicU64::new(0_f64.to_bits()),
        }
    }
}

impl HistogramFn for Buckets {
    fn record(&self, value: f64) {
        self.record_many(value, 1);
    }

    fn record_many(&self, value: f64, count: usize) {
        self.counts.get(bucket_of(value)).unwrap_or(&self.beyond).fetch_add(count as u64, Ordering::Relaxed);
        GaugeFn::increment(&self.sum, value * count as f64);
    }
}

/// The first bucket whose end is not below the value.
fn bucket_of(value: f64) -> usize {
    // As a cast does it: what is below 0 or no number is 0.
    match value.ceil() as u64 {
        0 | 1 => 0,
        whole => (whole - 1).ilog2() as usize + 1,
    }
}

impl Buckets {
    fn look(&self) -> Counts {
        let mut count = 0;
        let upto = self.counts.iter().enumerate().map(|(power, bucket)| {
            count += bucket.load(Ordering::Relaxed);
            ((1_u64 << power) as f64, count)
        });
        let upto = upto.collect();
        let sum = f64::from_bits(self.sum.load(Ordering::Relaxed));
        Counts { upto, count: count + self.beyond.load(Ordering::Relaxed), sum }
    }
}

impl Recorder {
    /// All series, in order of name and labels.
    pub(super) fn look(&self) -> BTreeMap<Series, Value> {
        let series = self.series.lock().unwrap_or_else(PoisonError::into_inner).clone();
        let value = |cell| match cell {
            Cell::Counter(cell) => Value::Number(cell.load(Ordering::Relaxed) as f64),
            Cell::Gauge(cell) => Value::Number(f64::from_bits(cell.load(Ordering::Relaxed))),
            Cell::Histogram(cell) => Value::Counts(cell.look()),
        };
        series.into_iter().map(|(series, cell)| (series, value(cell))).collect()
    }

    /// The cell of a key: the one it has, or a new one.
    fn cell(&self, key: &Key, new: impl FnOnce() -> Cell) -> Cell {
        let labels = key.labels().map(|label| (label.key().to_owned(), label.value().to_owned())).collect();
        let mut series = self.series.lock().unwrap_or_else(PoisonError::into_inner);
        series.entry((key.name().to_owned(), labels)).or_insert_with(new).clone()
    }
}

/// What metrics mean stands in [`names`](super::names). A name that is used for two kinds counts as the first of them.
impl metrics::Recorder for Recorder {
    fn describe_counter(&self, _: KeyName, _: Option<Unit>, _: SharedString) {}

    fn describe_gauge(&self, _: KeyName, _: Option<Unit>, _: SharedString) {}

    fn describe_histogram(&self, _: KeyName, _: Option<Unit>, _: SharedString) {}

    fn register_counter(&self, key: &Key, _: &Metadata<'_>) -> Counter {
        match self.cell(key, || Cell::Counter(Arc::default())) {
            Cell::Counter(cell) => Counter::from_arc(cell),
            _ => Counter::noop(),
        }
    }

    fn register_gauge(&self, key: &Key, _: &Metadata<'_>) -> Gauge {
        match self.cell(key, || Cell::Gauge(Arc::default())) {
            Cell::Gauge(cell) => Gauge::from_arc(cell),
            _ => Gauge::noop(),
        }
    }

    fn register_histogram(&self, key: &Key, _: &Metadata<'_>) -> Histogram {
        match self.cell(key, || Cell::Histogram(Arc::default())) {
            Cell::Histogram(cell) => Histogram::from_arc(cell),
            _ => Histogram::noop(),
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn what_is_recorded_is_seen_by_name_and_labels() {
        let recorder = Recorder::default();
        metrics::with_local_recorder(&recorder, || {
            for shard in ["0", "1", "1"] {
                metrics::counter!("some_count", "shard" => shard).increment(2);
            }
            metrics::gauge!("a_level").set(1.5);
            let histogram = metrics::histogram!("a_time_us");
            [0.0, 1.0, 1.5, 2.0, 2.1, 1e12].into_iter().for_each(|value| histogram.record(value));
            histogram.record_many(4.0, 10);
        });
        let seen = recorder.look();
        let label = |shard: &str| vec![("shard".to_owned(), shard.to_owned())];
        assert_eq!(seen[&("some_count".to_owned(), label("0"))], Value::Number(2.0));
        assert_eq!(seen[&("some_count".to_owned(), label("1"))], Value::Number(4.0));
        assert_eq!(seen[&("a_level".to_owned(), Vec::new())], Value::Number(1.5));
        let Value::Counts(counts) = &seen[&("a_time_us".to_owned(), Vec::new())] else { panic!("{seen:?}") };
        assert_eq!(counts.upto[..4], [(1.0, 2), (2.0, 4), (4.0, 15), (8.0, 15)]);
        assert_eq!((counts.count, counts.sum), (16, 1e12 + 46.6));
        assert_eq!(counts.upto.last(), Some(&(f64::from(1 << 26), 15)));
    }
}
