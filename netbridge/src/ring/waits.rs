//! How long items were in a ring.

use std::sync::atomic::{AtomicU64, Ordering};
use std::time::Duration;

/// Buckets of one power of two: a value is off by an eighth at most.
const STEPS: usize = 8;
/// Powers of two from 2^8 ns (what is shorter counts as that) to 2^40 ns, 18 minutes (what is longer counts as that).
const LOWEST: u32 = 8;
const HIGHEST: u32 = 40;
const BUCKETS: usize = STEPS * (HIGHEST - LOWEST) as usize;

/// Counts of times, by their length; written by one thread, read by any.
#[derive(Debug)]
pub(super) struct Counts([AtomicU64; BUCKETS]);

impl Default for Counts {
    fn default() -> Counts {
        Counts([const { AtomicU64::new(0) }; BUCKETS])
    }
}

impl Counts {
    pub(super) fn record(&self, time: Duration) {
        // Mostly one consumer, but nothing stops a second one: no count may be lost.
        self.0[bucket_of(time)].fetch_add(1, Ordering::Relaxed);
    }

    pub(super) fn snapshot(&self) -> Waits {
        Waits(self.0.iter().map(|count| count.load(Ordering::Relaxed)).collect())
    }
}

fn bucket_of(time: Duration) -> usize {
    let ns = u64::try_from(time.as_nanos()).unwrap_or(u64::MAX).clamp(1 << LOWEST, (1 << HIGHEST) - 1);
    let power = ns.ilog2();
    let step = (ns >> (power - STEPS.ilog2())) as usize % STEPS;
    STEPS * (power - LOWEST) as usize + step
}

/// The upper end of a bucket.
fn end_of(bucket: usize) -> Duration {
    let (power, step) = (LOWEST + (bucket / STEPS) as u32, bucket % STEPS);
    Duration::from_nanos(((STEPS + step + 1) as u64) << (power - STEPS.ilog2()))
}

/// How long items were in a ring, since it was made or since an earlier look. Right to an eighth, above 256 ns.
#[derive(Clone, PartialEq, Eq, Default, Debug)]
pub struct Waits(Vec<u64>);

impl Waits {
    /// Items that were taken out.
    #[must_use]
    pub fn count(&self) -> u64 {
        self.0.iter().sum()
    }

    /// How long so many of a hundred were in it at most; zero when there were none.
    ///
    /// `percent` is from 0 to 100.
    #[must_use]
    pub fn percentile(&self, percent: f64) -> Duration {
        let rank = ((self.count() as f64 * percent / 100.0).ceil() as u64).max(1);
        let mut seen = 0;
        let found = self.0.iter().position(|count| {
            seen += count;
            seen >= rank
        });
        found.map_or(Duration::ZERO, end_of)
    }

    /// The longest.
    #[must_use]
    pub fn max(&self) -> Duration {
        self.0.iter().rposition(|count| *count > 0).map_or(Duration::ZERO, end_of)
    }

    /// Items that were in it for less than 2^`power` nanoseconds. `power` is from 8 to 40; what was shorter than 2^8 counts as
    /// that, and what was longer than 2^40 as that.
    #[must_use]
    pub fn below(&self, power: u32) -> u64 {
        let buckets = STEPS * power.saturating_sub(LOWEST) as usize;
        self.0.iter().take(buckets).sum()
    }

    /// How long they were in it together.
    #[must_use]
    pub fn total(&self) -> Duration {
        let ns = |(bucket, count): (usize, &u64)| {
            let each = u64::try_from(end_of(bucket).as_nanos()).unwrap_or(u64::MAX);
            each.saturating_mul(*count)
        };
        Duration::from_nanos(self.0.iter().enumerate().map(ns).fold(0, u64::saturating_add))
    }

    /// Those since an earlier look at the same ring.
    #[must_use]
    pub fn since(&self, earlier: &Waits) -> Waits {
        let before = earlier.0.iter().copied().chain(std::iter::repeat(0));
        Waits(self.0.iter().zip(before).map(|(now, before)| now.saturating_sub(before)).collect())
    }

    /// Those of several rings together.
    pub fn add(&mut self, other: &Waits) {
        self.0.resize(self.0.len().max(other.0.len()), 0);
        self.0.iter_mut().zip(&other.0).for_each(|(sum, count)| *sum += count);
    }

    /// The counts, for who sends them elsewhere.
    #[must_use]
    pub fn counts(&self) -> &[u64] {
        &self.0
    }

    /// What [`counts`](Waits::counts) gave.
    #[must_use]
    pub fn from_counts(counts: Vec<u64>) -> Waits {
        Waits(counts.into_iter().take(BUCKETS).collect())
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_time_is_right_to_an_eighth_and_those_beyond_the_ends_count_as_the_ends() {
        let mut ns = 256_u64;
        while ns < 1 << 39 {
            for ns in [ns, ns + ns / 3, 2 * ns - 1] {
                let counts = Counts::default();
                counts.record(Duration::from_nanos(ns));
                let found = counts.snapshot().max().as_nanos() as f64;
                assert!((1.0..=1.125).contains(&(found / ns as f64)), "{found} for {ns}");
            }
            ns *= 2;
        }
        for time in [Duration::ZERO, Duration::MAX] {
            assert!(bucket_of(time) == 0 || bucket_of(time) == BUCKETS - 1);
        }
    }

    #[test]
    fn percentiles_are_of_what_was_recorded_since() {
        let counts = Counts::default();
        counts.record(Duration::from_secs(1));
        let before = counts.snapshot();
        (1..=100).for_each(|ms| counts.record(Duration::from_millis(ms)));
        let waits = counts.snapshot().since(&before);
        assert_eq!(waits.count(), 100);
        let ms = |percent| waits.percentile(percent).as_secs_f64() * 1e3;
        for (percent, expected) in [(1.0, 1.0), (50.0, 50.0), (99.0, 99.0), (100.0, 100.0)] {
            assert!((expected..=1.125 * expected).contains(&ms(percent)), "{} at {percent}", ms(percent));
        }
        assert_eq!(waits.max(), waits.percentile(100.0));
        // 1 to 16 ms are below 2^24 ns, 1 to 100 ms below 2^27; together they are 5050 ms.
        assert_eq!((waits.below(8), waits.below(24), waits.below(27), waits.below(40)), (0, 16, 100, 100));
        assert!(
            (5050.0..=1.125 * 5050.0).contains(&(waits.total().as_secs_f64() * 1e3)),
            "{:?}",
            waits.total()
        );
        let mut both = Waits::default();
        assert_eq!((both.count(), both.percentile(50.0), both.total()), (0, Duration::ZERO, Duration::ZERO));
        both.add(&waits);
        both.add(&before);
        assert_eq!(both, counts.snapshot());
        assert_eq!(Waits::from_counts(both.counts().to_vec()), both);
    }
}
