//! Whatever flushes: ours, raft-engine, a bare file; and rounds of them in turns.

use std::ops::RangeInclusive;
use std::time::Duration;

use hdrhistogram::Histogram;
use iroh_raft_bench::bare::Bare;
use iroh_raft_bench::load::Source;
use iroh_raft_bench::store::Store;

use crate::error::Result;
use crate::peer::Peer;

/// Longest time that a histogram holds: 5 minutes, in nanoseconds.
const TIME_NS_MAX: u64 = 300_000_000_000;

/// A new histogram of nanoseconds, exact to a thousandth.
pub fn times() -> Histogram<u64> {
    Histogram::new_with_max(TIME_NS_MAX, 3).expect("constants that the histogram can hold")
}

/// Records a time.
pub fn record(times: &mut Histogram<u64>, time: Duration) -> Result<()> {
    Ok(times.record(u64::try_from(time.as_nanos()).unwrap_or(u64::MAX))?)
}

/// Something that makes flushes durable, one after the other.
pub trait Subject {
    /// Makes so many flushes; records how long each took.
    fn flush(&mut self, count: u64, times: &mut Histogram<u64>) -> Result<()>;

    /// Called between rounds: what is left to be done in the background is done, in nobody's time.
    fn rest(&mut self) -> Result<()> {
        Ok(())
    }

    /// Reads these flushes back and compares them; returns their checksum.
    fn read_back(&self, _flushes: RangeInclusive<u64>) -> Result<Option<u32>> {
        Ok(None)
    }
}

/// Our storage with its work.
pub struct Ours {
    pub store: Store,
    pub source: Source,
}

impl Subject for Ours {
    fn flush(&mut self, count: u64, times: &mut Histogram<u64>) -> Result<()> {
        for _ in 0..count {
            let flushed = self.store.flush(self.source.next_flush())?;
            record(times, flushed.waited + flushed.duration)?;
        }
        Ok(())
    }

    fn rest(&mut self) -> Result<()> {
        Ok(self.store.drain()?)
    }

    fn read_back(&self, flushes: RangeInclusive<u64>) -> Result<Option<u32>> {
        Ok(Some(self.store.read_back(&self.source, flushes)?))
    }
}

/// raft-engine with the same work.
pub struct Theirs {
    pub peer: Peer,
    pub source: Source,
}

impl Subject for Theirs {
    fn flush(&mut self, count: u64, times: &mut Histogram<u64>) -> Result<()> {
        for _ in 0..count {
            record(times, self.peer.flush(self.source.next_flush())?)?;
        }
        Ok(())
    }

    fn read_back(&self, flushes: RangeInclusive<u64>) -> Result<Option<u32>> {
        Ok(Some(self.peer.read_back(&self.source, flushes)?))
    }
}

impl Subject for Bare {
    fn flush(&mut self, count: u64, times: &mut Histogram<u64>) -> Result<()> {
        for _ in 0..count {
            record(times, Bare::flush(self)?)?;
        }
        Ok(())
    }
}

/// All rounds of one subject.
pub struct Rounds {
    pub name: String,
    rounds: Vec<Histogram<u64>>,
}

impl Rounds {
    /// Percentile of the flush times, microseconds: the median of the rounds.
    pub fn us(&self, percentile: f64) -> f64 {
        median(self.rounds.iter().map(|times| times.value_at_percentile(percentile) as f64 / 1e3))
    }

    /// Percentile of the flush times of all rounds together, microseconds: for those of which a
    /// round has too few.
    pub fn us_of_all(&self, percentile: f64) -> f64 {
        let mut all = times();
        for round in &self.rounds {
            all.add(round).expect("histograms of the same shape");
        }
        all.value_at_percentile(percentile) as f64 / 1e3
    }

    /// Flushes in a second of flushing: the median of the rounds.
    pub fn per_s(&self) -> f64 {
        median(self.rounds.iter().map(|times| 1e9 / times.mean()))
    }

    /// Median over the rounds of how many times as long the median flush took as the other's.
    pub fn p50_vs(&self, other: &Rounds) -> f64 {
        self.ratio(other, |times| times.value_at_percentile(50.0) as f64)
    }

    /// The same for the mean flush.
    pub fn mean_vs(&self, other: &Rounds) -> f64 {
        self.ratio(other, Histogram::mean)
    }

    fn ratio(&self, other: &Rounds, of: impl Fn(&Histogram<u64>) -> f64) -> f64 {
        median(self.rounds.iter().zip(&other.rounds).map(|(times, other)| of(times) / of(other)))
    }

    /// One line for people.
    pub fn print(&self) {
        println!(
            "  {:24} p50 {:>9.1} us   p99 {:>9.1} us   p99.9 {:>9.1} us   {:>9.0} flushes/s",
            self.name,
            self.us(50.0),
            self.us(99.0),
            self.us_of_all(99.9),
            self.per_s()
        );
    }
}

/// Runs rounds of all subjects in turns, so that whatever disturbs the machine disturbs all of them.
/// A first round is not counted.
pub fn in_turns(
    subjects: &mut [(String, Box<dyn Subject>)],
    rounds: usize,
    flushes: u64,
) -> Result<Vec<Rounds>> {
    let mut results: Vec<Rounds> =
        subjects.iter().map(|(name, _)| Rounds { name: name.clone(), rounds: Vec::new() }).collect();
    for round in 0..=rounds {
        for ((_, subject), result) in subjects.iter_mut().zip(&mut results) {
            let mut times = times();
            subject.flush(flushes, &mut times)?;
            subject.rest()?;
            if round > 0 {
                result.rounds.push(times);
            }
        }
    }
    Ok(results)
}

/// Reads the first `count` flushes of every subject back; returns a checksum of all of them.
pub fn check(subjects: &[(String, Box<dyn Subject>)], count: u64) -> Result<u32> {
    let mut sum = 0;
    for (_, subject) in subjects {
        if let Some(found) = subject.read_back(1..=count)? {
            sum = crc32c::crc32c_append(sum, &found.to_le_bytes());
        }
    }
    Ok(sum)
}

/// The middle value; 0 for none.
pub fn median(values: impl Iterator<Item = f64>) -> f64 {
    let mut values: Vec<f64> = values.collect();
    values.sort_by(f64::total_cmp);
    match values.len() {
        0 => 0.0,
        count if count.is_multiple_of(2) => (values[count / 2 - 1] + values[count / 2]) / 2.0,
        count => values[count / 2],
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_median_is_the_middle_or_between_the_two_in_the_middle() {
        assert_eq!(median([3.0, 1.0, 2.0].into_iter()), 2.0);
        assert_eq!(median([4.0, 1.0, 2.0, 3.0].into_iter()), 2.5);
        assert_eq!(median(std::iter::empty()), 0.0);
    }
}
