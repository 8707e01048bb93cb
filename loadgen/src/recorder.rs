//! Latencies, recorded by the thread that sees them and merged by another.

use std::time::Duration;

use hdrhistogram::Histogram;
use serde::{Deserialize, Serialize};

/// Longest latency that is told apart, in microseconds; longer ones count as this.
const LATENCY_US_MAX: u64 = 120_000_000;
/// Significant decimal digits of a latency.
const DIGITS: u8 = 3;

/// An empty histogram of latencies in microseconds.
pub(crate) fn latencies() -> Histogram<u64> {
    Histogram::new_with_bounds(1, LATENCY_US_MAX, DIGITS).expect("the bounds are in order")
}

/// What one thread saw in one stretch of time.
#[derive(Debug)]
pub(crate) struct Interval {
    /// Whether it lies in the measured window.
    pub(crate) is_measured: bool,
    /// Of acknowledged records, in microseconds: from when they were sent, or due in the open loop.
    pub(crate) latencies: Histogram<u64>,
    /// In the open loop: the same from when they were sent.
    pub(crate) services: Histogram<u64>,
    /// In the open loop: requests that were answered, and not sent when they were due.
    pub(crate) late: u64,
    /// Records that were certainly not done.
    pub(crate) refused: u64,
    /// Records that may have been done.
    pub(crate) unknown: u64,
    /// Of reads that brought the right record, as the latencies.
    pub(crate) reads: Histogram<u64>,
    /// In the open loop: the same from when they were sent.
    pub(crate) read_services: Histogram<u64>,
    /// Bytes that came with them.
    pub(crate) read_bytes: u64,
    /// Reads without a right answer.
    pub(crate) failed_reads: u64,
    /// From when a record was sent, or due in the open loop, to when a follower had it; of each follower.
    pub(crate) deliveries: Histogram<u64>,
    /// Records that followers had, and of which nobody knew any more when they were sent.
    pub(crate) untimed: u64,
}

fn us(time: Duration) -> u64 {
    u64::try_from(time.as_micros()).unwrap_or(u64::MAX).max(1)
}

impl Interval {
    /// An empty one.
    pub(crate) fn new(is_measured: bool) -> Interval {
        Interval {
            is_measured,
            latencies: latencies(),
            services: latencies(),
            late: 0,
            refused: 0,
            unknown: 0,
            reads: latencies(),
            read_services: latencies(),
            read_bytes: 0,
            failed_reads: 0,
            deliveries: latencies(),
            untimed: 0,
        }
    }

    /// Notes `records` acknowledged after `latency`.
    pub(crate) fn record(&mut self, latency: Duration, records: u64) {
        self.latencies.saturating_record_n(us(latency), records);
    }

    /// In the open loop: notes that `records` were answered so long after they were sent.
    pub(crate) fn serve(&mut self, service: Duration, records: u64) {
        self.services.saturating_record_n(us(service), records);
    }

    /// Notes a read that brought the right record, in so many bytes.
    pub(crate) fn read(&mut self, latency: Duration, answer_bytes: u64) {
        self.read_bytes += answer_bytes;
        self.reads.saturating_record(us(latency));
    }

    /// In the open loop: notes how long after it was sent that was.
    pub(crate) fn serve_read(&mut self, service: Duration) {
        self.read_services.saturating_record(us(service));
    }

    /// Notes `records` that a follower had after `latency`.
    pub(crate) fn deliver(&mut self, latency: Duration, records: u64) {
        self.deliveries.saturating_record_n(us(latency), records);
    }

    /// Adds another thread's.
    pub(crate) fn merge(&mut self, other: &Interval) {
        let pairs = [
            (&mut self.latencies, &other.latencies),
            (&mut self.services, &other.services),
            (&mut self.reads, &other.reads),
            (&mut self.read_services, &other.read_services),
            (&mut self.deliveries, &other.deliveries),
        ];
        for (mine, theirs) in pairs {
            mine.add(theirs).expect("all histograms have the same bounds");
        }
        self.late += other.late;
        self.refused += other.refused;
        self.unknown += other.unknown;
        self.read_bytes += other.read_bytes;
        self.failed_reads += other.failed_reads;
        self.untimed += other.untimed;
    }

    /// What of a closed loop crosses from a process to another.
    pub(crate) fn parts(&self) -> IntervalParts {
        let latencies = self.latencies.iter_recorded();
        IntervalParts {
            latencies: latencies.map(|at| (at.value_iterated_to(), at.count_at_value())).collect(),
            refused: self.refused,
            unknown: self.unknown,
        }
    }

    /// Adds another process's.
    pub(crate) fn merge_parts(&mut self, other: &IntervalParts) {
        for &(us, records) in &other.latencies {
            self.latencies.saturating_record_n(us, records);
        }
        self.refused += other.refused;
        self.unknown += other.unknown;
    }

    /// Acknowledged records.
    pub(crate) fn acked(&self) -> u64 {
        self.latencies.len()
    }

    /// Records that followers had, each as often as they had it.
    pub(crate) fn delivered(&self) -> u64 {
        self.deliveries.len() + self.untimed
    }
}

/// An interval, as text can have it.
#[derive(Clone, PartialEq, Eq, Default, Debug, Serialize, Deserialize)]
pub(crate) struct IntervalParts {
    /// Microseconds, and how many records took so long.
    latencies: Vec<(u64, u64)>,
    refused: u64,
    unknown: u64,
}

/// When each group acknowledged something: whole milliseconds since the start, each once.
#[derive(Clone, PartialEq, Eq, Default, Debug, Serialize, Deserialize)]
pub(crate) struct Timeline {
    groups: Vec<Vec<u32>>,
}

impl Timeline {
    /// Nothing yet. Groups are numbered from 1.
    pub(crate) fn new(groups: u32) -> Timeline {
        Timeline { groups: vec![Vec::new(); groups as usize] }
    }

    /// Notes an acknowledgement of a group. Times do not run backwards.
    pub(crate) fn note(&mut self, group: u32, at: Duration) {
        let at = u32::try_from(at.as_millis()).unwrap_or(u32::MAX);
        let times = &mut self.groups[group as usize - 1];
        if times.last() != Some(&at) {
            times.push(at);
        }
    }

    /// Adds another thread's.
    pub(crate) fn merge(&mut self, other: Timeline) {
        for (mine, theirs) in self.groups.iter_mut().zip(other.groups) {
            mine.extend(theirs);
            mine.sort_unstable();
            mine.dedup();
        }
    }

    /// The longest time without an acknowledgement of a group between `from` and `to`, in
    /// milliseconds. It begins with the last acknowledgement before `from`.
    pub(crate) fn longest_gap_ms(&self, group: u32, from: Duration, to: Duration) -> u64 {
        let ms = |time: Duration| u32::try_from(time.as_millis()).unwrap_or(u32::MAX);
        let (from, to) = (ms(from), ms(to));
        let times = &self.groups[group as usize - 1];
        let after = times.partition_point(|&at| at <= from);
        let start = after.checked_sub(1).and_then(|at| times.get(at)).copied().unwrap_or(from);
        let within = times[after..].iter().copied().take_while(|&at| at < to).chain([to]);
        let mut last = start;
        let mut longest = 0;
        for at in within {
            longest = longest.max(u64::from(at - last));
            last = at;
        }
        longest
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn an_interval_of_another_process_counts_as_one_of_this() {
        let mut there = Interval::new(true);
        there.record(Duration::from_micros(750), 40);
        there.record(Duration::from_secs(900), 2);
        (there.refused, there.unknown) = (3, 5);
        let line = serde_json::to_string(&there.parts()).unwrap();
        let mut here = Interval::new(true);
        here.record(Duration::from_micros(750), 1);
        here.merge_parts(&serde_json::from_str(&line).unwrap());
        assert_eq!((here.acked(), here.refused, here.unknown), (43, 3, 5));
        assert_eq!(here.latencies.count_between(700, 800), 41);
        assert_eq!(here.latencies.max(), there.latencies.max());
    }

    #[test]
    fn intervals_of_two_threads_merge_without_losing_a_record() {
        let mut one = Interval::new(true);
        let mut two = Interval::new(true);
        one.record(Duration::from_micros(100), 900);
        one.record(Duration::from_nanos(10), 1);
        two.record(Duration::from_millis(50), 99);
        two.record(Duration::from_secs(100_000), 1);
        two.refused = 3;
        one.merge(&two);
        assert_eq!((one.acked(), one.refused, one.unknown), (1001, 3, 0));
        assert_eq!(one.latencies.value_at_quantile(0.5), 100);
        assert!(one.latencies.value_at_quantile(0.95).abs_diff(50_000) < 100);
        assert!(one.latencies.max() >= LATENCY_US_MAX);
    }

    #[test]
    fn the_longest_gap_begins_before_the_fault_and_may_last_to_the_end() {
        let ms = Duration::from_millis;
        let mut one = Timeline::new(1);
        let mut two = one.clone();
        for at in [0, 900, 900, 2000, 2010] {
            one.note(1, ms(at));
        }
        two.note(1, ms(950));
        one.merge(two);
        assert_eq!(one.longest_gap_ms(1, ms(1000), ms(2100)), 1050);
        assert_eq!(one.longest_gap_ms(1, ms(1000), ms(9000)), 6990);
        assert_eq!(one.longest_gap_ms(1, ms(1000), ms(1500)), 550);
        assert_eq!(Timeline::new(1).longest_gap_ms(1, ms(5), ms(25)), 20);
    }
}
