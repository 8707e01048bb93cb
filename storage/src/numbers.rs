//! What storage counts, through `metrics`: every name, with label `shard`.
//!
//! | name | kind | what |
//! |---|---|---|
//! | `storage_flush_count` | counter | commits of the journal, one sync each |
//! | `storage_flush_us` | histogram | time of a commit, microseconds |
//! | `storage_flush_records` | histogram | records in a commit |
//! | `storage_flush_bytes` | histogram | bytes of its block |
//! | `storage_journal_bytes` | gauge | bytes of the journal that are not moved |
//! | `storage_move_count` | counter | commits of the log file |
//! | `storage_move_us` | histogram | time of a move, microseconds |
//! | `storage_move_bytes` | counter | bytes of the blocks moved |
//! | `storage_log_bytes` | gauge | bytes of the blocks in the log file |
//! | `storage_written_bytes` | counter, also by `file` | bytes that redb wrote to a file |
//! | `storage_write_amplification` | gauge | bytes written to both files for each byte of a block flushed |
//! | `storage_cache_hit_count` | counter, also by `file` | pages found in redb's cache |
//! | `storage_cache_miss_count` | counter, also by `file` | pages read from the file |
//! | `storage_scrub_bytes` | counter | bytes verified |
//! | `storage_damage_count` | counter | damaged blocks that the scrub found |
//! | `storage_recovery_ms` | gauge | time of the last recovery, milliseconds |
//! | `storage_torn_count` | counter | torn flushes cut by recovery |
//!
//! The gauges and counters of files are brought up to date by each move.

use std::time::Duration;

use iroh_raft_core::ShardId;
use metrics::{Counter, Gauge, Histogram, counter, gauge, histogram};

use crate::journal::Journal;
use crate::log_file::LogFile;
use crate::recovery::RecoveryReport;
use crate::redb_file::RedbFile;

/// What the writer counts.
#[derive(Debug)]
pub(crate) struct WriterNumbers {
    flush_count: Counter,
    flush_us: Histogram,
    flush_records: Histogram,
    flush_bytes: Histogram,
    journal_bytes: Gauge,
}

impl WriterNumbers {
    pub(crate) fn new(shard: ShardId) -> WriterNumbers {
        let shard = shard.to_string();
        WriterNumbers {
            flush_count: counter!("storage_flush_count", "shard" => shard.clone()),
            flush_us: histogram!("storage_flush_us", "shard" => shard.clone()),
            flush_records: histogram!("storage_flush_records", "shard" => shard.clone()),
            flush_bytes: histogram!("storage_flush_bytes", "shard" => shard.clone()),
            journal_bytes: gauge!("storage_journal_bytes", "shard" => shard),
        }
    }

    pub(crate) fn flushed(&self, duration: Duration, records: u64, bytes: usize, unmoved_bytes: u64) {
        self.flush_count.increment(1);
        self.flush_us.record(duration.as_secs_f64() * 1e6);
        self.flush_records.record(records as f64);
        self.flush_bytes.record(bytes as f64);
        self.journal_bytes.set(unmoved_bytes as f64);
    }
}

/// What the mover counts.
#[derive(Debug)]
pub(crate) struct MoverNumbers {
    move_count: Counter,
    move_us: Histogram,
    move_bytes: Counter,
    log_bytes: Gauge,
    write_amplification: Gauge,
    journal: FileNumbers,
    log: FileNumbers,
}

#[derive(Debug)]
struct FileNumbers {
    written_bytes: Counter,
    cache_hit_count: Counter,
    cache_miss_count: Counter,
}

impl MoverNumbers {
    pub(crate) fn new(shard: ShardId) -> MoverNumbers {
        let shard = shard.to_string();
        MoverNumbers {
            move_count: counter!("storage_move_count", "shard" => shard.clone()),
            move_us: histogram!("storage_move_us", "shard" => shard.clone()),
            move_bytes: counter!("storage_move_bytes", "shard" => shard.clone()),
            log_bytes: gauge!("storage_log_bytes", "shard" => shard.clone()),
            write_amplification: gauge!("storage_write_amplification", "shard" => shard.clone()),
            journal: FileNumbers::new(&shard, "journal"),
            log: FileNumbers::new(&shard, "log"),
        }
    }

    pub(crate) fn moved(&self, duration: Duration, bytes: u64) {
        self.move_count.increment(1);
        self.move_us.record(duration.as_secs_f64() * 1e6);
        self.move_bytes.increment(bytes);
    }

    /// How the files stand. `flushed_bytes` are those of all blocks flushed since they were opened.
    pub(crate) fn stand(&self, journal: &Journal, log: &LogFile, log_bytes: u64, flushed_bytes: u64) {
        self.log_bytes.set(log_bytes as f64);
        let written = self.journal.read(&journal.file) + self.log.read(&log.file);
        if flushed_bytes > 0 {
            self.write_amplification.set(written as f64 / flushed_bytes as f64);
        }
    }
}

impl FileNumbers {
    fn new(shard: &str, file: &'static str) -> FileNumbers {
        let shard = shard.to_owned();
        FileNumbers {
            written_bytes: counter!("storage_written_bytes", "shard" => shard.clone(), "file" => file),
            cache_hit_count: counter!("storage_cache_hit_count", "shard" => shard.clone(), "file" => file),
            cache_miss_count: counter!("storage_cache_miss_count", "shard" => shard, "file" => file),
        }
    }

    /// Brings the counters up to date; returns the bytes written.
    fn read(&self, file: &RedbFile) -> u64 {
        let written = file.written_bytes();
        self.written_bytes.absolute(written);
        let (hits, misses) = file.cache_hits();
        self.cache_hit_count.absolute(hits);
        self.cache_miss_count.absolute(misses);
        written
    }
}

/// What a scrub counts.
#[derive(Debug)]
pub(crate) struct ScrubNumbers {
    scrub_bytes: Counter,
    damage_count: Counter,
}

impl ScrubNumbers {
    pub(crate) fn new(shard: ShardId) -> ScrubNumbers {
        let shard = shard.to_string();
        ScrubNumbers {
            scrub_bytes: counter!("storage_scrub_bytes", "shard" => shard.clone()),
            damage_count: counter!("storage_damage_count", "shard" => shard),
        }
    }

    pub(crate) fn stepped(&self, bytes: u64, damage: usize) {
        self.scrub_bytes.increment(bytes);
        self.damage_count.increment(damage as u64);
    }
}

/// A shard was recovered.
pub(crate) fn recovered(shard: ShardId, report: &RecoveryReport) {
    let shard = shard.to_string();
    gauge!("storage_recovery_ms", "shard" => shard.clone()).set(report.duration.as_secs_f64() * 1e3);
    counter!("storage_torn_count", "shard" => shard).increment(report.torn);
}
