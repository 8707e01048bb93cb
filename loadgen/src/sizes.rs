//! How large records are: each size follows from the record's identity, so that whoever reads one back knows what it
//! must be.

use std::fmt;
use std::str::FromStr;

use serde::{Deserialize, Serialize};

use crate::record::{RECORD_BYTES_MAX, RECORD_BYTES_MIN, RecordId, mix};

/// Most sizes of a mixture.
const PARTS_MAX: usize = 16;

/// Sizes of records in bytes: `64`, `64-1024` or `64x9,1024x1`.
#[derive(Clone, PartialEq, Eq, Debug, Serialize, Deserialize)]
#[serde(into = "String", try_from = "String")]
pub(crate) enum RecordSizes {
    /// All the same.
    Fixed(usize),
    /// Each from the first to the second as often as any other.
    Uniform(usize, usize),
    /// Sizes with their weights.
    Mixed(Vec<(usize, u32)>),
}

impl RecordSizes {
    /// How large a record is.
    pub(crate) fn of(&self, id: RecordId) -> usize {
        let draw = || {
            let place = (u64::from(id.client) << 32) | u64::from(id.group);
            mix(mix(place ^ 0xa076_1d64_78bd_642f) ^ id.sequence)
        };
        match self {
            RecordSizes::Fixed(bytes) => *bytes,
            RecordSizes::Uniform(least, most) => least + (draw() % (most - least + 1) as u64) as usize,
            RecordSizes::Mixed(parts) => {
                let mut left = draw() % parts.iter().map(|(_, weight)| u64::from(*weight)).sum::<u64>();
                let mut parts = parts.iter();
                loop {
                    match parts.next() {
                        Some((_, weight)) if left >= u64::from(*weight) => left -= u64::from(*weight),
                        Some((bytes, _)) => return *bytes,
                        None => unreachable!("what is drawn is below the sum of the weights"),
                    }
                }
            }
        }
    }

    /// The largest one.
    pub(crate) fn max(&self) -> usize {
        match self {
            RecordSizes::Fixed(bytes) | RecordSizes::Uniform(_, bytes) => *bytes,
            RecordSizes::Mixed(parts) => parts.iter().map(|(bytes, _)| *bytes).max().unwrap_or(0),
        }
    }

    /// What records have on average.
    pub(crate) fn mean(&self) -> f64 {
        match self {
            RecordSizes::Fixed(bytes) => *bytes as f64,
            RecordSizes::Uniform(least, most) => (least + most) as f64 / 2.0,
            RecordSizes::Mixed(parts) => {
                let weights: f64 = parts.iter().map(|(_, weight)| f64::from(*weight)).sum();
                parts.iter().map(|(bytes, weight)| *bytes as f64 * f64::from(*weight)).sum::<f64>() / weights
            }
        }
    }
}

impl FromStr for RecordSizes {
    type Err = String;

    fn from_str(text: &str) -> Result<RecordSizes, String> {
        let size = |text: &str| {
            let bytes: usize = text.trim().parse().map_err(|_| {
                format!(
                    "{text:?} is not a number of bytes: write 64, or 64-1024 for sizes between two, or 64x9,1024x1 for sizes with \
                     their weights"
                )
            })?;
            if (RECORD_BYTES_MIN..=RECORD_BYTES_MAX).contains(&bytes) {
                return Ok(bytes);
            }
            Err(format!(
                "a record has {RECORD_BYTES_MIN} to {RECORD_BYTES_MAX} bytes: its first {RECORD_BYTES_MIN} say who sent it"
            ))
        };
        if let Some((least, most)) = text.split_once('-') {
            let (least, most) = (size(least)?, size(most)?);
            return if least < most {
                Ok(RecordSizes::Uniform(least, most))
            } else {
                Err(format!("{text}: write the smaller size first"))
            };
        }
        if !text.contains('x') {
            return Ok(RecordSizes::Fixed(size(text)?));
        }
        let part = |part: &str| {
            let (bytes, weight) =
                part.split_once('x').ok_or_else(|| format!("{part:?} has no weight: write {part}x1"))?;
            let weight = weight.trim().parse().ok().filter(|weight| *weight > 0);
            Ok((size(bytes)?, weight.ok_or_else(|| format!("{part:?}: a weight is a number above 0"))?))
        };
        let parts = text.split(',').map(part).collect::<Result<Vec<_>, String>>()?;
        if parts.len() > PARTS_MAX {
            return Err(format!("{text}: at most {PARTS_MAX} sizes"));
        }
        Ok(RecordSizes::Mixed(parts))
    }
}

impl fmt::Display for RecordSizes {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            RecordSizes::Fixed(bytes) => write!(f, "{bytes}"),
            RecordSizes::Uniform(least, most) => write!(f, "{least}-{most}"),
            RecordSizes::Mixed(parts) => {
                for (at, (bytes, weight)) in parts.iter().enumerate() {
                    write!(f, "{}{bytes}x{weight}", if at == 0 { "" } else { "," })?;
                }
                Ok(())
            }
        }
    }
}

impl From<RecordSizes> for String {
    fn from(sizes: RecordSizes) -> String {
        sizes.to_string()
    }
}

impl TryFrom<String> for RecordSizes {
    type Error = String;

    fn try_from(text: String) -> Result<RecordSizes, String> {
        text.parse()
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn sizes_are_drawn_as_they_were_asked_for() {
        for (text, least, most) in
            [("64", 64, 64), ("64-1024", 64, 1024), ("64x90,1024x9,65536x1", 64, 65_536)]
        {
            let sizes: RecordSizes = text.parse().unwrap();
            assert_eq!((sizes.to_string().as_str(), sizes.max()), (text, most));
            let id = |sequence| RecordId { client: 3, group: 7, sequence };
            let drawn: Vec<usize> = (0..20_000).map(|sequence| sizes.of(id(sequence))).collect();
            assert!(drawn.iter().all(|bytes| (least..=most).contains(bytes)), "{text}");
            let mean = drawn.iter().sum::<usize>() as f64 / drawn.len() as f64;
            assert!((mean / sizes.mean() - 1.0).abs() < 0.2, "{text}: {mean} of {}", sizes.mean());
        }
        let sizes: RecordSizes = "64x9,1024x1".parse().unwrap();
        let id = |sequence| RecordId { client: 0, group: 1, sequence };
        let large = (0..10_000).filter(|sequence| sizes.of(id(*sequence)) == 1024).count();
        assert!((800..1200).contains(&large), "{large} of 10000");
    }

    #[test]
    fn wrong_sizes_are_refused_with_what_is_right() {
        for (text, hint) in [
            ("15", "16 to 1048576 bytes"),
            ("many", "64-1024"),
            ("1024-64", "smaller size first"),
            ("64x9,1024", "1024x1"),
            ("64x0", "above 0"),
        ] {
            let error = text.parse::<RecordSizes>().unwrap_err();
            assert!(error.contains(hint), "{text}: {error}");
        }
    }
}
