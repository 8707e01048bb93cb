//! When records of an open loop are due: at a fixed rate, at one that grows, in bursts, or as if nobody knew of the others
//! (Poisson).

use std::fmt;
use std::str::FromStr;
use std::time::Duration;

use crate::record::mix;

/// Times that a thread of clients keeps at most, eight bytes each.
pub(crate) const TIMES_MAX: f64 = 20_000_000.0;

/// How records arrive: `fixed`, `poisson`, `bursts:100` or `ramp:100000`.
#[derive(Clone, Copy, PartialEq, Debug)]
pub(crate) enum Arrivals {
    /// One after the other, in equal steps.
    Fixed,
    /// Independent of each other; the rate is their mean.
    Poisson,
    /// So many at once, as often as the rate needs.
    Bursts(u32),
    /// From the rate at the beginning to this one at the end, evenly.
    Ramp(u32),
}

impl FromStr for Arrivals {
    type Err = String;

    fn from_str(text: &str) -> Result<Arrivals, String> {
        let (kind, number) = text.split_once(':').unwrap_or((text, ""));
        let number = number.parse::<u32>().ok().filter(|number| (1..=100_000_000).contains(number));
        match (kind, number) {
            ("fixed", None) => Ok(Arrivals::Fixed),
            ("poisson", None) => Ok(Arrivals::Poisson),
            ("bursts", Some(of)) => Ok(Arrivals::Bursts(of)),
            ("ramp", Some(to)) => Ok(Arrivals::Ramp(to)),
            _ => Err(format!(
                "{text} is no way to arrive: write fixed, poisson, bursts:100 (so many at once) or ramp:100000 (the rate at the end)"
            )),
        }
    }
}

impl fmt::Display for Arrivals {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Arrivals::Fixed => f.write_str("fixed"),
            Arrivals::Poisson => f.write_str("poisson"),
            Arrivals::Bursts(of) => write!(f, "bursts:{of}"),
            Arrivals::Ramp(to) => write!(f, "ramp:{to}"),
        }
    }
}

/// Arrivals at a rate.
#[derive(Clone, Copy, PartialEq, Debug)]
pub(crate) struct Pattern {
    /// Records a second, above 0.
    pub(crate) per_s: u32,
    pub(crate) arrivals: Arrivals,
}

impl Pattern {
    /// The times of one of so many threads, up to `end`. `seed`: of what is drawn.
    pub(crate) fn times(self, thread: u32, threads: u32, end: Duration, seed: u64) -> Times {
        let share = |number: u32| f64::from(number) / f64::from(threads);
        let per_s = share(self.per_s);
        match self.arrivals {
            Arrivals::Fixed => Times::Fixed { per_s },
            Arrivals::Bursts(of) => Times::Bursts { per_s, of: (share(of).round() as u64).max(1) },
            Arrivals::Ramp(to) => Times::Ramp { per_s, to_per_s: share(to), over_s: end.as_secs_f64() },
            Arrivals::Poisson => {
                let mut draws = mix(seed ^ (u64::from(thread) << 32));
                let mut at_s = 0.0;
                let mut times = Vec::new();
                while at_s < end.as_secs_f64() {
                    times.push((at_s * 1e9) as u64);
                    draws = draws.wrapping_add(0x9e37_79b9_7f4a_7c15);
                    // Above 0 and up to 1, in steps of 2^-53.
                    let drawn = ((mix(draws) >> 11) + 1) as f64 / (1_u64 << 53) as f64;
                    at_s -= drawn.ln() / per_s;
                }
                Times::Listed(times)
            }
        }
    }
}

/// When the records of a thread are due, by their number from 0.
#[derive(Clone, PartialEq, Debug)]
pub(crate) enum Times {
    Fixed {
        per_s: f64,
    },
    Bursts {
        per_s: f64,
        of: u64,
    },
    Ramp {
        per_s: f64,
        to_per_s: f64,
        over_s: f64,
    },
    /// In nanoseconds.
    Listed(Vec<u64>),
}

impl Times {
    /// When a record is due, from the start of the load.
    pub(crate) fn at(&self, record: u64) -> Duration {
        match self {
            Times::Fixed { per_s } => Duration::from_secs_f64(record as f64 / per_s),
            Times::Bursts { per_s, of } => Duration::from_secs_f64((record / of * of) as f64 / per_s),
            Times::Ramp { per_s, to_per_s, over_s } => {
                // record = per_s * t + growth / 2 * t^2, solved so that nothing is lost where the growth is small.
                let growth = (to_per_s - per_s) / over_s;
                let root = (per_s * per_s + 2.0 * growth * record as f64).max(0.0).sqrt();
                Duration::from_secs_f64(2.0 * record as f64 / (per_s + root))
            }
            Times::Listed(times) => {
                times.get(record as usize).map_or(Duration::MAX, |time| Duration::from_nanos(*time))
            }
        }
    }

    /// How many are due by then.
    pub(crate) fn by(&self, elapsed: Duration) -> u64 {
        let elapsed_s = elapsed.as_secs_f64();
        match self {
            Times::Fixed { per_s } => (elapsed_s * per_s) as u64 + 1,
            Times::Bursts { per_s, of } => ((elapsed_s * per_s / *of as f64) as u64 + 1) * of,
            Times::Ramp { per_s, to_per_s, over_s } => {
                let elapsed_s = elapsed_s.min(*over_s);
                (per_s * elapsed_s + (to_per_s - per_s) / over_s * elapsed_s * elapsed_s / 2.0) as u64 + 1
            }
            Times::Listed(times) => {
                times.partition_point(|time| u128::from(*time) <= elapsed.as_nanos()) as u64
            }
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    const ALL: [Arrivals; 5] =
        [Arrivals::Fixed, Arrivals::Poisson, Arrivals::Bursts(50), Arrivals::Ramp(20_000), Arrivals::Ramp(1)];

    #[test]
    fn what_is_due_by_a_time_was_due_before_it() {
        let end = Duration::from_secs(4);
        for arrivals in ALL {
            let times = Pattern { per_s: 5000, arrivals }.times(0, 2, end, 7);
            for ms in [0, 1, 3, 999, 1000, 2500, 3999] {
                let elapsed = Duration::from_millis(ms);
                let (due, early) = (times.by(elapsed), Duration::from_nanos(100));
                assert!(due == 0 || times.at(due - 1) <= elapsed + early, "{arrivals} after {ms} ms");
                assert!(times.at(due) + early > elapsed, "{arrivals} after {ms} ms: {due}");
            }
        }
    }

    #[test]
    fn as_many_arrive_as_the_rate_says() {
        let end = Duration::from_secs(20);
        for (arrivals, all) in [
            (Arrivals::Fixed, 20_000),
            (Arrivals::Poisson, 20_000),
            (Arrivals::Bursts(100), 20_000),
            (Arrivals::Ramp(3000), 40_000),
        ] {
            let times = Pattern { per_s: 1000, arrivals }.times(0, 1, end, 1);
            let due = times.by(end);
            assert!(due.abs_diff(all) < 600, "{arrivals}: {due}");
        }
    }

    /// Gaps of a Poisson process have a standard deviation like their mean; the same seed draws the same.
    #[test]
    fn poisson_arrivals_are_independent_and_repeatable() {
        let pattern = Pattern { per_s: 1000, arrivals: Arrivals::Poisson };
        let end = Duration::from_secs(20);
        let Times::Listed(times) = pattern.times(0, 1, end, 42) else { unreachable!("they are listed") };
        let gaps: Vec<f64> = times.windows(2).map(|pair| (pair[1] - pair[0]) as f64 / 1e9).collect();
        let mean = gaps.iter().sum::<f64>() / gaps.len() as f64;
        let variance = gaps.iter().map(|gap| (gap - mean).powi(2)).sum::<f64>() / gaps.len() as f64;
        assert!((mean * 1000.0 - 1.0).abs() < 0.05, "{mean}");
        assert!((variance.sqrt() / mean - 1.0).abs() < 0.05, "{variance}");
        assert_eq!(pattern.times(0, 1, end, 42), Times::Listed(times.clone()));
        assert_ne!(pattern.times(0, 1, end, 43), Times::Listed(times.clone()));
        assert_ne!(pattern.times(1, 1, end, 42), Times::Listed(times));
    }

    #[test]
    fn arrivals_are_read_and_refused() {
        for arrivals in ALL {
            assert_eq!(arrivals.to_string().parse(), Ok(arrivals));
        }
        for text in ["bursts", "bursts:0", "ramp:x", "poisson:3", "often"] {
            assert!(text.parse::<Arrivals>().unwrap_err().contains("bursts:100"), "{text}");
        }
    }
}
