//! One shard of a data folder: its files, opened and recovered together.

use std::path::Path;
use std::sync::Arc;

use iroh_raft_core::{FlushSeq, GroupState};

use crate::block::JournalIdentity;
use crate::disk::{Disk, FolderLock};
use crate::error::Result;
use crate::journal::Journal;
use crate::mark::Mark;
use crate::reader::JournalReader;
use crate::recovery::{RecoveryReport, recover};
use crate::small_file::io_error;
use crate::spans::SpanIndex;
use crate::writer::JournalWriter;

pub(crate) const JOURNAL: &str = "journal.redb";
pub(crate) const MARK: &str = "acked";

/// Settings of a shard's journal.
#[derive(Clone, PartialEq, Eq, Debug)]
pub struct ShardOptions {
    /// Memory for redb's page cache, in bytes. Default 64 MiB. Higher: old entries are read from
    /// memory more often. Too low: a large flush is written in pieces.
    pub cache_bytes: usize,
    /// Disk space reserved for the journal at start, in bytes; 0 for none. Default 0. Higher: space
    /// is known to be there, and growing within it costs the file system less.
    pub preallocate_bytes: u64,
    /// Bytes of the newest entries handed to the core at start, over all groups. Default 64 MiB.
    pub tail_bytes: usize,
}

impl Default for ShardOptions {
    fn default() -> ShardOptions {
        ShardOptions { cache_bytes: 64 << 20, preallocate_bytes: 0, tail_bytes: 64 << 20 }
    }
}

/// A shard, ready to run.
#[derive(Debug)]
#[non_exhaustive]
pub struct OpenShard {
    /// Makes flushes durable.
    pub writer: JournalWriter,
    /// Reads them back.
    pub reader: JournalReader,
    /// Every group that was ever flushed, in order of id. `has_state_machine` is false: it is not
    /// the disk that knows.
    pub groups: Vec<GroupState>,
    /// Newest durable flush; the core's next one is the one after it.
    pub last_seq: FlushSeq,
    /// What recovery found.
    pub report: RecoveryReport,
}

/// Makes the files of a new shard in its folder. They are durable once the folder is synced.
pub(crate) fn create(
    disk: &dyn Disk,
    folder: &Path,
    identity: JournalIdentity,
    lock: &FolderLock,
) -> Result<()> {
    Journal::create(disk, &folder.join(JOURNAL), identity, lock.clone())?;
    Mark::create(disk, &folder.join(MARK), identity)
}

/// Opens a shard and recovers its groups.
pub(crate) fn open(
    disk: &dyn Disk,
    folder: &Path,
    identity: JournalIdentity,
    options: ShardOptions,
    lock: &FolderLock,
) -> Result<OpenShard> {
    let journal_path = folder.join(JOURNAL);
    let (mark, acknowledged) = Mark::open(disk, &folder.join(MARK), identity)?;
    let candidate = Journal::open(disk, &journal_path, identity, options.cache_bytes, lock.clone())?;
    let recovered = recover(candidate, acknowledged, options.tail_bytes)?;
    if options.preallocate_bytes > 0 {
        let reserved = disk.reserve(&journal_path, options.preallocate_bytes);
        reserved.map_err(io_error("reserve space for", &journal_path))?;
    }
    let report = recovered.report;
    let label = identity.shard.to_string();
    metrics::gauge!("storage_recovery_ms", "shard" => label.clone()).set(report.duration.as_secs_f64() * 1e3);
    metrics::counter!("storage_torn_count", "shard" => label).increment(report.torn);
    let journal = Arc::new(recovered.journal);
    let index = Arc::new(SpanIndex::new(recovered.spans));
    Ok(OpenShard {
        writer: JournalWriter::new(journal.clone(), index.clone(), mark, recovered.end),
        reader: JournalReader::new(journal, index),
        groups: recovered.groups,
        last_seq: recovered.end.seq,
        report,
    })
}
