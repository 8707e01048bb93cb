//! How load is spread over groups: evenly, or as it is where some are asked for far more than others.

use std::fmt;
use std::str::FromStr;

/// Which share of the load each group gets: `uniform`, `zipf:1.0` or `hot:0.9`.
#[derive(Clone, Copy, PartialEq, Debug)]
pub(crate) enum Skew {
    /// All the same.
    Uniform,
    /// The n-th group gets a share like one over n to this power.
    Zipf(f64),
    /// The first group gets this part, the others the rest.
    Hot(f64),
}

/// Steps by the golden ratio are spread evenly, however many are taken.
const GOLDEN: f64 = 0.618_033_988_749_894_9;

impl Skew {
    /// For each of so many slots which group it belongs to, counted from 0.
    pub(crate) fn deal(self, slots: u64, groups: usize) -> Vec<usize> {
        let weights = (1..=groups).map(|group| match self {
            Skew::Uniform => 1.0,
            Skew::Zipf(power) => (group as f64).powf(-power),
            Skew::Hot(part) if groups == 1 || group == 1 => part,
            Skew::Hot(part) => (1.0 - part) / (groups - 1) as f64,
        });
        let mut sum = 0.0;
        let ends: Vec<f64> = weights
            .map(|weight| {
                sum += weight;
                sum
            })
            .collect();
        let group_of = |slot: u64| {
            let at = ((slot + 1) as f64 * GOLDEN).fract() * sum;
            ends.partition_point(|end| *end <= at).min(groups - 1)
        };
        (0..slots).map(group_of).collect()
    }
}

impl FromStr for Skew {
    type Err = String;

    fn from_str(text: &str) -> Result<Skew, String> {
        let problem = || {
            format!(
                "{text} is no skew: write uniform, zipf:1.0 (a power above 0, up to 4), or hot:0.9 (the part of the first group, \
                 below 1)"
            )
        };
        let (kind, number) = text.split_once(':').unwrap_or((text, ""));
        let number = || number.parse::<f64>().map_err(|_| problem());
        match kind {
            "uniform" => Ok(Skew::Uniform),
            "zipf" => {
                let power = Some(number()?).filter(|power| *power > 0.0 && *power <= 4.0);
                power.map(Skew::Zipf).ok_or_else(problem)
            }
            "hot" => {
                let part = Some(number()?).filter(|part| *part > 0.0 && *part < 1.0);
                part.map(Skew::Hot).ok_or_else(problem)
            }
            _ => Err(problem()),
        }
    }
}

impl fmt::Display for Skew {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Skew::Uniform => f.write_str("uniform"),
            Skew::Zipf(power) => write!(f, "zipf:{power}"),
            Skew::Hot(part) => write!(f, "hot:{part}"),
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn shares_are_as_the_skew_says() {
        let shares = |skew: Skew| {
            let mut counts = [0_u32; 4];
            skew.deal(10_000, 4).into_iter().for_each(|group| counts[group] += 1);
            counts.map(|count| f64::from(count) / 10_000.0)
        };
        let near = |found: [f64; 4], wanted: [f64; 4]| {
            assert!(
                found.iter().zip(wanted).all(|(found, wanted)| (found - wanted).abs() < 0.01),
                "{found:?}"
            );
        };
        near(shares(Skew::Uniform), [0.25; 4]);
        near(shares(Skew::Zipf(1.0)), [0.48, 0.24, 0.16, 0.12]);
        near(shares(Skew::Hot(0.7)), [0.7, 0.1, 0.1, 0.1]);
        assert!(Skew::Hot(0.9).deal(10, 1).iter().all(|group| *group == 0));
    }

    #[test]
    fn skews_are_read_and_refused() {
        for text in ["uniform", "zipf:0.99", "hot:0.5"] {
            assert_eq!(text.parse::<Skew>().unwrap().to_string(), text);
        }
        for text in ["zipf", "zipf:0", "hot:1", "hot:x", "cold:1"] {
            assert!(text.parse::<Skew>().unwrap_err().contains("zipf:1.0"), "{text}");
        }
    }
}
