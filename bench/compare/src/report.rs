//! What a run found: figures by name, and the checksum of what it wrote and read back.

use serde_json::{Map, Value, json};

/// Figures are given with so many significant digits.
const DIGITS: usize = 4;

/// Collects the figures of all lines.
#[derive(Default, Debug)]
pub struct Report {
    figures: Map<String, Value>,
    vs_raft_engine: Map<String, Value>,
    hash: u32,
}

impl Report {
    /// A figure of ours.
    pub fn figure(&mut self, name: &str, value: f64) {
        println!("  {name} = {}", rounded(value));
        self.figures.insert(name.to_owned(), rounded(value));
    }

    /// A figure of any shape.
    pub fn value(&mut self, name: &str, value: Value) {
        println!("  {name} = {value}");
        self.figures.insert(name.to_owned(), value);
    }

    /// How many times as fast as raft-engine ours is.
    pub fn vs_raft_engine(&mut self, line: &str, ratio: f64) {
        println!("  vs_raft_engine.{line} = {}", rounded(ratio));
        self.vs_raft_engine.insert(line.to_owned(), rounded(ratio));
    }

    /// Adds the checksum of a line to that of the run.
    pub fn add_hash(&mut self, sum: u32) {
        self.hash = crc32c::crc32c_append(self.hash, &sum.to_le_bytes());
    }

    /// Checksum of everything that was read back and found right. Equal for runs with the same
    /// settings and seed.
    pub fn hash(&self) -> u32 {
        self.hash
    }

    /// The whole object.
    pub fn into_json(mut self) -> Value {
        self.figures.insert("vs_raft_engine".to_owned(), Value::Object(self.vs_raft_engine));
        self.figures.insert("hash".to_owned(), json!(format!("{:08x}", self.hash)));
        Value::Object(self.figures)
    }
}

/// A number without digits that say nothing.
pub fn rounded(value: f64) -> Value {
    // By way of text: a scaled and rounded number has digits of its own at its end.
    json!(format!("{value:.*e}", DIGITS - 1).parse::<f64>().ok().filter(|value| value.is_finite()))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn numbers_keep_four_digits() {
        assert_eq!(rounded(1.234_56), json!(1.235));
        assert_eq!(rounded(5_123_456.0), json!(5_123_000.0));
        assert_eq!(rounded(382_299_999.999), json!(382_300_000.0));
        assert_eq!(rounded(0.0), json!(0.0));
        assert_eq!(rounded(f64::NAN), json!(null));
    }
}
