//! How much work a run does.

use std::time::Duration;

use iroh_raft_storage::ShardOptions;

/// Bytes retained where reopening is measured.
pub const REOPEN_BYTES: u64 = 10_000_000_000;

/// How much work the lines do.
#[derive(Clone, Debug)]
pub struct Sizes {
    /// Of the form, for people.
    pub name: &'static str,
    /// Rounds of each line; the median counts.
    pub rounds: usize,
    /// Small flushes in a round.
    pub small_flushes: u64,
    /// Bytes of payload in a round of large flushes.
    pub burst_bytes: u64,
    /// Rounds of the sustained lines.
    pub sustained_rounds: usize,
    /// Least time of a sustained round after its first move.
    pub sustained_time: Duration,
    /// Bytes of payload retained in the sustained lines, and written at least.
    pub retention_bytes: u64,
    /// Bound of the journal in the sustained lines; the default everywhere else.
    pub journal_bytes_max: u64,
    /// Bytes of a move, everywhere.
    pub move_bytes: u64,
    /// Bytes of payload in a round of the lines about moving.
    pub moving_bytes: u64,
    /// Rounds of those.
    pub moving_rounds: usize,
    /// Bytes of payload whose way to the device is counted.
    pub amplified_bytes: u64,
    /// Bytes of payload retained where reopening is measured.
    pub reopen_bytes: u64,
    /// Groups there.
    pub reopen_groups: u64,
    /// Flushes of each line that are read back.
    pub checked_flushes: u64,
}

impl Sizes {
    /// A few minutes.
    pub fn short() -> Sizes {
        let options = ShardOptions::default();
        Sizes {
            name: "short",
            rounds: 7,
            small_flushes: 200,
            burst_bytes: 64 << 20,
            sustained_rounds: 1,
            sustained_time: Duration::from_secs(8),
            retention_bytes: 10 * options.journal_bytes_max,
            journal_bytes_max: options.journal_bytes_max,
            move_bytes: options.move_bytes,
            moving_bytes: 128 << 20,
            moving_rounds: 6,
            amplified_bytes: 512 << 20,
            reopen_bytes: REOPEN_BYTES,
            reopen_groups: 1000,
            checked_flushes: 20,
        }
    }

    /// What the project's figures are made with.
    pub fn long() -> Sizes {
        Sizes {
            name: "long",
            rounds: 15,
            small_flushes: 500,
            burst_bytes: 128 << 20,
            sustained_rounds: 3,
            sustained_time: Duration::from_secs(20),
            retention_bytes: 4 << 30,
            moving_rounds: 20,
            amplified_bytes: 2 << 30,
            ..Sizes::short()
        }
    }

    /// Every line, as small as it can be.
    pub fn smoke() -> Sizes {
        Sizes {
            name: "smoke",
            rounds: 2,
            small_flushes: 3,
            burst_bytes: 2 << 20,
            sustained_rounds: 1,
            sustained_time: Duration::ZERO,
            retention_bytes: 16 << 20,
            journal_bytes_max: 4 << 20,
            move_bytes: 1 << 20,
            moving_bytes: 4 << 20,
            moving_rounds: 2,
            amplified_bytes: 8 << 20,
            reopen_bytes: 16 << 20,
            reopen_groups: 50,
            checked_flushes: 3,
        }
    }

    /// Settings of our storage.
    pub fn options(&self) -> ShardOptions {
        let options = ShardOptions::default();
        ShardOptions {
            journal_bytes_max: options.journal_bytes_max.min(self.journal_bytes_max.max(8 * self.move_bytes)),
            move_bytes: self.move_bytes,
            ..options
        }
    }

    /// Flushes of so many payload bytes that make up `bytes`.
    pub fn flushes(bytes: u64, payload_bytes: u64) -> u64 {
        bytes.div_ceil(payload_bytes).max(2)
    }
}
