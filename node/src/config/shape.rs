//! What values look like as text: the same in files, in the environment and in flags.

use std::fmt;
use std::net::SocketAddr;
use std::time::Duration;

/// What a value has to look like.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub(crate) enum Shape {
    /// A whole number.
    Number {
        /// Smallest.
        min: u64,
        /// Largest.
        max: u64,
    },
    /// Bytes, with or without a unit.
    Bytes {
        /// Fewest.
        min: u64,
        /// Most.
        max: u64,
    },
    /// A time with its unit.
    Time {
        /// Shortest.
        min: Duration,
    },
    /// A time with its unit, or `never`.
    TimeOrNever {
        /// Shortest.
        min: Duration,
    },
    /// true or false.
    Flag,
    /// One of these words.
    Word(&'static [&'static str]),
    /// Any text but an empty one.
    Text,
    /// A path; a relative one counts from the folder of the file that it stands in.
    Path,
    /// An IP address with a port.
    Address,
    /// Something else, said in words.
    Other(&'static str),
    /// A list of these.
    List(&'static str),
}

const KIB: u64 = 1 << 10;
const BYTE_UNITS: [(&str, u64); 5] =
    [("TiB", 1 << 40), ("GiB", 1 << 30), ("MiB", 1 << 20), ("KiB", KIB), ("B", 1)];
const TIME_UNITS: [(&str, u64); 7] = [
    ("ns", 1),
    ("us", 1_000),
    ("ms", 1_000_000),
    ("s", 1_000_000_000),
    ("min", 60 * 1_000_000_000),
    ("h", 3600 * 1_000_000_000),
    ("d", 24 * 3600 * 1_000_000_000),
];

impl fmt::Display for Shape {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Shape::Number { min, max: u64::MAX } => write!(f, "a number from {min}"),
            Shape::Number { min, max } => write!(f, "a number from {min} to {max}"),
            Shape::Bytes { min, max: u64::MAX } => {
                write!(f, "bytes from {}, such as 64MiB", show_bytes(*min))
            }
            Shape::Bytes { min, max } => {
                write!(f, "bytes from {} to {}, such as 4096 or 64KiB", show_bytes(*min), show_bytes(*max))
            }
            Shape::Time { min } => {
                write!(f, "a time from {} with its unit, such as 50ms or 7d", show_time(*min))
            }
            Shape::TimeOrNever { min } => write!(f, "never, or a time from {}, such as 1s", show_time(*min)),
            Shape::Flag => f.write_str("true or false"),
            Shape::Word(words) => write!(f, "one of {}", words.join(", ")),
            Shape::Text => f.write_str("a text"),
            Shape::Path => f.write_str("a path"),
            Shape::Address => f.write_str("an address with its port, such as 10.0.0.1:4701"),
            Shape::Other(what) => f.write_str(what),
            Shape::List(what) => write!(f, "a list, each of it {what}"),
        }
    }
}

impl Shape {
    /// Why a text is no such value, with what would be.
    fn refuse<T>(self, why: &str) -> Result<T, String> {
        Err(format!("{why}: give {self}"))
    }

    pub(crate) fn number(self, text: &str) -> Result<u64, String> {
        let Shape::Number { min, max } = self else { unreachable!("asked of a number only") };
        match text.replace('_', "").parse::<u64>() {
            Ok(number) if (min..=max).contains(&number) => Ok(number),
            Ok(number) if number < min => self.refuse("too small"),
            Ok(_) => self.refuse("too large"),
            Err(_) => self.refuse("not a whole number"),
        }
    }

    pub(crate) fn bytes(self, text: &str) -> Result<u64, String> {
        let Shape::Bytes { min, max } = self else { unreachable!("asked of bytes only") };
        let (digits, unit) = split_unit(text);
        let factor = match unit {
            "" => Some(1),
            unit => {
                BYTE_UNITS.iter().find(|(name, _)| name.eq_ignore_ascii_case(unit)).map(|(_, bytes)| *bytes)
            }
        };
        let Some(factor) = factor else {
            return self.refuse(&format!("{unit} is no unit of bytes (B, KiB, MiB, GiB, TiB)"));
        };
        match digits.parse::<u64>().ok().and_then(|number| number.checked_mul(factor)) {
            Some(bytes) if (min..=max).contains(&bytes) => Ok(bytes),
            Some(bytes) if bytes < min => self.refuse("too few"),
            Some(_) => self.refuse("too many"),
            None => self.refuse("not a number of bytes"),
        }
    }

    pub(crate) fn time(self, text: &str) -> Result<Duration, String> {
        let (Shape::Time { min } | Shape::TimeOrNever { min }) = self else {
            unreachable!("asked of a time only")
        };
        let (digits, unit) = split_unit(text);
        if unit.is_empty() && !digits.is_empty() {
            return self.refuse("it has no unit (ns, us, ms, s, min, h, d)");
        }
        let Some((_, nanos)) = TIME_UNITS.iter().find(|(name, _)| *name == unit) else {
            return self.refuse(&format!("{unit} is no unit of time (ns, us, ms, s, min, h, d)"));
        };
        match digits
            .parse::<u64>()
            .ok()
            .and_then(|number| number.checked_mul(*nanos))
            .map(Duration::from_nanos)
        {
            Some(time) if time >= min => Ok(time),
            Some(_) => self.refuse("too short"),
            None => self.refuse("not a time"),
        }
    }

    pub(crate) fn time_or_never(self, text: &str) -> Result<Option<Duration>, String> {
        if text == "never" { Ok(None) } else { self.time(text).map(Some) }
    }

    pub(crate) fn flag(self, text: &str) -> Result<bool, String> {
        match text {
            "true" => Ok(true),
            "false" => Ok(false),
            _ => self.refuse("neither true nor false"),
        }
    }

    pub(crate) fn word(self, text: &str) -> Result<&'static str, String> {
        let Shape::Word(words) = self else { unreachable!("asked of a word only") };
        match words.iter().find(|word| **word == text) {
            Some(word) => Ok(word),
            None => self.refuse("not known"),
        }
    }

    pub(crate) fn text(self, text: &str) -> Result<String, String> {
        if text.trim().is_empty() { self.refuse("empty") } else { Ok(text.to_owned()) }
    }

    pub(crate) fn address(self, text: &str) -> Result<SocketAddr, String> {
        text.parse().or_else(|_| self.refuse("not an address"))
    }
}

fn split_unit(text: &str) -> (String, &str) {
    let text = text.trim();
    let end = text.find(|c: char| !c.is_ascii_digit() && c != '_').unwrap_or(text.len());
    let (digits, unit) = text.split_at(end);
    (digits.replace('_', ""), unit.trim())
}

/// The items of a list; none of an empty text.
pub(crate) fn items(text: &str) -> impl Iterator<Item = &str> {
    text.split(',').map(str::trim).filter(|item| !item.is_empty())
}

/// Items as the text of a list.
pub(crate) fn list<T: ToString>(items: impl IntoIterator<Item = T>) -> String {
    items.into_iter().map(|item| item.to_string()).collect::<Vec<_>>().join(", ")
}

/// Bytes in the largest unit that loses nothing.
pub(crate) fn show_bytes(bytes: u64) -> String {
    let unit = BYTE_UNITS
        .iter()
        .find(|(_, factor)| bytes >= *factor && bytes.is_multiple_of(*factor) && *factor > 1);
    unit.map_or_else(|| bytes.to_string(), |(name, factor)| format!("{}{name}", bytes / factor))
}

/// A time in the largest unit that loses nothing.
pub(crate) fn show_time(time: Duration) -> String {
    let nanos = u64::try_from(time.as_nanos()).unwrap_or(u64::MAX);
    let unit = TIME_UNITS.iter().rev().find(|(_, factor)| nanos >= *factor && nanos.is_multiple_of(*factor));
    unit.map_or_else(|| "0s".to_owned(), |(name, factor)| format!("{}{name}", nanos / factor))
}

pub(crate) fn show_time_or_never(time: Option<Duration>) -> String {
    time.map_or_else(|| "never".to_owned(), show_time)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn what_is_shown_is_read_again() {
        let bytes = Shape::Bytes { min: 0, max: u64::MAX };
        for value in [0, 1, 4095, 4096, 480 << 10, 64 << 20, (1 << 30) + 1, 3 << 40, u64::MAX] {
            assert_eq!(bytes.bytes(&show_bytes(value)), Ok(value));
        }
        let time = Shape::Time { min: Duration::ZERO };
        for nanos in
            [0, 1, 999, 1_000, 50_000_000, 1_500_000_000, 3600 * 1_000_000_000, 7 * 86_400_000_000_000]
        {
            let value = Duration::from_nanos(nanos);
            assert_eq!(time.time(&show_time(value)), Ok(value), "{}", show_time(value));
        }
    }

    #[test]
    fn what_is_wrong_is_said_with_what_is_right() {
        let bytes = Shape::Bytes { min: 1, max: 1 << 30 };
        for (text, says) in
            [("12MB", "MB is no unit"), ("2GiB", "too many"), ("x", "x is no unit"), ("0", "too few")]
        {
            let error = bytes.bytes(text).unwrap_err();
            assert!(error.contains(says) && error.contains("64KiB"), "{text}: {error}");
        }
        let time = Shape::Time { min: Duration::from_millis(1) };
        for (text, says) in
            [("10", "no unit"), ("10sec", "sec is no unit"), ("1us", "too short"), ("ms", "not a time")]
        {
            let error = time.time(text).unwrap_err();
            assert!(error.contains(says) && error.contains("50ms"), "{text}: {error}");
        }
    }
}
