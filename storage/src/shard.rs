//! One shard of a data folder: its files, opened and recovered together.

use std::collections::BTreeSet;
use std::path::Path;
use std::sync::Arc;

use iroh_raft_core::mutants::{self, Mutant};
use iroh_raft_core::{FlushSeq, GroupId, GroupState};

use crate::block::JournalIdentity;
use crate::disk::{Disk, FileKind, ShardLock};
use crate::error::Result;
use crate::index::SharedIndex;
use crate::journal::Journal;
use crate::log_file::LogFile;
use crate::mark::Mark;
use crate::mover::Mover;
use crate::numbers;
use crate::reader::LogReader;
use crate::recovery::{Examined, RecoveryReport, examine};
use crate::redb_file::RedbFile;
use crate::scrub::Scrubber;
use crate::small_file::io_error;
use crate::snapshot::SnapshotStore;
use crate::space::Space;
use crate::writer::{Bounds, JournalWriter};

pub(crate) const JOURNAL: &str = "journal.redb";
pub(crate) const LOG: &str = "log.redb";
pub(crate) const MARK: &str = "acked";

/// Settings of a shard's durable log.
#[derive(Clone, PartialEq, Eq, Debug)]
pub struct ShardOptions {
    /// Bytes of the journal that are not yet in the log file, at most; the writer waits for the mover
    /// there. Default 256 MiB. Higher: longer bursts at full speed, a longer recovery. What is not
    /// committed stays in the journal whatever this says.
    pub journal_bytes_max: u64,
    /// Bytes of the journal that are moved to the log file at a time, for up to 128 groups; in proportion more
    /// for more of them, up to half the journal's bound. Default 8 MiB. Higher: larger blocks of each group
    /// and fewer commits, a faster start, but more memory and longer stretches of work beside the flushes.
    pub move_bytes: u64,
    /// Memory for redb's cache of the journal, in bytes. Default 320 MiB: with less than the journal's
    /// bound, the mover reads from the disk.
    pub journal_cache_bytes: usize,
    /// Memory for redb's cache of the log file, in bytes. Default 64 MiB. Higher: old entries are read
    /// from memory more often.
    pub log_cache_bytes: usize,
    /// Free bytes of the medium below which new work is refused: what was taken on before still has to
    /// be flushed and moved. Default 768 MiB: a journal twice, and some more. Higher: earlier.
    pub free_bytes_min: u64,
    /// Disk space reserved for the journal at start, in bytes; 0 for none. Default 0. Higher: space
    /// is known to be there, and growing within it costs the file system less.
    pub preallocate_bytes: u64,
    /// Bytes of the newest entries handed to the core at start, over all groups. Default 64 MiB.
    pub tail_bytes: usize,
}

impl Default for ShardOptions {
    fn default() -> ShardOptions {
        ShardOptions {
            journal_bytes_max: 256 << 20,
            move_bytes: 8 << 20,
            journal_cache_bytes: 320 << 20,
            log_cache_bytes: 64 << 20,
            free_bytes_min: 768 << 20,
            preallocate_bytes: 0,
            tail_bytes: 64 << 20,
        }
    }
}

/// A shard, ready to run.
#[derive(Debug)]
#[non_exhaustive]
pub struct OpenShard {
    /// Makes flushes durable.
    pub writer: JournalWriter,
    /// Moves what is committed to the log file.
    pub mover: Mover,
    /// Reads entries back.
    pub reader: LogReader,
    /// Verifies what is stored, a little at a time.
    pub scrubber: Scrubber,
    /// The groups' snapshots.
    pub snapshots: SnapshotStore,
    /// Every group that was ever flushed and not removed, in order of id. `has_state_machine` is
    /// false: it is not the disk that knows.
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
    lock: &Arc<ShardLock>,
) -> Result<()> {
    Journal::create(disk, &folder.join(JOURNAL), identity, lock.clone())?;
    LogFile::create(disk, &folder.join(LOG), identity, lock.clone())?;
    Mark::create(disk, &folder.join(MARK), identity)
}

/// A shard that is only read: nothing of its files changes.
#[derive(Debug)]
#[non_exhaustive]
pub struct ReadShard {
    /// Reads entries.
    pub reader: LogReader,
    /// Verifies everything stored.
    pub scrubber: Scrubber,
    /// The groups' snapshots; nothing may be written to them.
    pub snapshots: SnapshotStore,
    /// As in [`OpenShard`], without entries in memory.
    pub groups: Vec<GroupState>,
    /// Newest durable flush.
    pub last_seq: FlushSeq,
    /// What recovery would find.
    pub report: RecoveryReport,
}

/// Opens a shard and recovers its groups.
pub(crate) fn open(
    disk: &Arc<dyn Disk>,
    folder: &Path,
    identity: JournalIdentity,
    options: &ShardOptions,
    lock: &Arc<ShardLock>,
) -> Result<OpenShard> {
    let (examined, mark) = examine_shard(disk.as_ref(), folder, identity, options, lock)?;
    let recovered = examined.accept()?;
    if options.preallocate_bytes > 0 {
        let journal_path = folder.join(JOURNAL);
        let reserved = disk.reserve(&journal_path, options.preallocate_bytes);
        reserved.map_err(io_error("reserve space for", &journal_path))?;
    }
    let report = recovered.report;
    numbers::recovered(identity.shard, &report);
    let journal = Arc::new(recovered.journal);
    let log = Arc::new(recovered.log);
    let index = Arc::new(SharedIndex::new(recovered.index));
    let bounds = Bounds { journal_bytes_max: options.journal_bytes_max, move_bytes: options.move_bytes };
    let space = Space::new(disk.clone(), folder, options.free_bytes_min);
    let snapshots = SnapshotStore::new(log.clone(), recovered.snapshots);
    let mut groups = recovered.groups;
    if !mutants::is(Mutant::SnapshotOutlivesReplica) {
        // The process may have ended after a replica, and before its snapshots were gone: they are not for the next one.
        let left = groups.iter().filter(|state| state.has_left());
        let left: BTreeSet<GroupId> = left.map(|state| state.group).collect();
        snapshots.remove_left(|group| left.contains(&group))?;
    }
    for state in &mut groups {
        state.snapshot = snapshots.found(state.group)?;
    }
    Ok(OpenShard {
        writer: JournalWriter::new(journal.clone(), index.clone(), mark, recovered.end, bounds, space),
        mover: Mover::new(journal.clone(), log.clone(), index.clone(), bounds),
        scrubber: Scrubber::new(journal.clone(), log.clone(), index.clone(), snapshots.clone()),
        reader: LogReader::new(journal, log, index, snapshots.clone()),
        snapshots,
        groups,
        last_seq: recovered.end.seq,
        report,
    })
}

/// Opens a shard to read it, whatever state a crash left it in.
pub(crate) fn open_for_reading(
    disk: &dyn Disk,
    folder: &Path,
    identity: JournalIdentity,
    options: &ShardOptions,
    lock: &Arc<ShardLock>,
) -> Result<ReadShard> {
    let (examined, _) = examine_shard(disk, folder, identity, options, lock)?;
    let recovered = examined.keep()?;
    let journal = Arc::new(recovered.journal);
    let log = Arc::new(recovered.log);
    let index = Arc::new(SharedIndex::new(recovered.index));
    let snapshots = SnapshotStore::new(log.clone(), recovered.snapshots);
    Ok(ReadShard {
        scrubber: Scrubber::new(journal.clone(), log.clone(), index.clone(), snapshots.clone()),
        reader: LogReader::new(journal, log, index, snapshots.clone()),
        snapshots,
        groups: recovered.groups,
        last_seq: recovered.end.seq,
        report: recovered.report,
    })
}

fn examine_shard(
    disk: &dyn Disk,
    folder: &Path,
    identity: JournalIdentity,
    options: &ShardOptions,
    lock: &Arc<ShardLock>,
) -> Result<(Examined, Mark)> {
    let shard = identity.shard;
    let (mark, acknowledged) = Mark::open(disk, &folder.join(MARK), identity)?;
    let open_file = |name: &str, kind, cache_bytes| {
        RedbFile::open(disk, &folder.join(name), kind, shard, cache_bytes, lock.clone())
    };
    let journal = open_file(JOURNAL, FileKind::Journal, options.journal_cache_bytes)?;
    let log = open_file(LOG, FileKind::Log, options.log_cache_bytes)?;
    Ok((examine(journal, log, identity, acknowledged, options.tail_bytes)?, mark))
}
