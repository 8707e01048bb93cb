//! Snapshots of state machines: bodies of any size, in chunks, in the log file.
//!
//! FORMAT.md, "Snapshots", has the bytes. A snapshot is first *staged*: its chunks become durable a few
//! at a time, and an interrupted one goes on where it stopped. Publishing is one transaction: it takes the
//! place of the group's snapshot before, whose chunks are then collected bit by bit.
//!
//! Invariants: a group has at most one published and one staged snapshot; a published one is complete and
//! never changes; chunks of different snapshots are never mixed (each snapshot has a number of its own;
//! one whose chunks are all removed may be given again after a start). Memory: one writer or reader holds a few chunks, whatever the size of the body.

mod row;
mod stream;

use std::collections::{BTreeSet, VecDeque};
use std::ops::RangeInclusive;
use std::path::Path;
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};

use bytes::Bytes;
use iroh_raft_core::{GroupId, Index, ShardId, Snapshot};
pub use iroh_raft_core::{SNAPSHOT_CHUNK_BYTES, SnapshotHead};
use redb::{ReadOnlyTable, ReadableTable, TableDefinition, TableError};

use crate::error::{Result as StorageResult, StorageError};
use crate::log_file::LogFile;
use crate::redb_file::{Candidate, Commit, RedbFailure};
use crate::rows::{self, Rows};

pub use row::SnapshotMeta;
pub use stream::{SnapshotReader, SnapshotWriter};

pub(crate) use row::parse_chunk;
use row::{CHUNK_HEADER_BYTES, NewChunk};

/// Key: group. Value: its published snapshot.
const PUBLISHED: TableDefinition<'static, u64, &'static [u8]> = TableDefinition::new("snapshot");
/// Key: group. Value: the one being made or received.
const STAGED: TableDefinition<'static, u64, &'static [u8]> = TableDefinition::new("snapshot_staged");
/// Key: number of the snapshot, number of the chunk, number of the row. Value: a row of the chunk.
const CHUNKS: TableDefinition<'static, (u64, u32, u16), &'static [u8]> =
    TableDefinition::new("snapshot_chunk");

// A chunk with its header fills 64 pages.
const _: () = assert!(SNAPSHOT_CHUNK_BYTES == 64 * 4096 - 40 - CHUNK_HEADER_BYTES);

/// Why a snapshot cannot be written or read. None of these is mended by trying again, except
/// [`Replaced`](SnapshotError::Replaced): begin anew with the newest one.
#[derive(Debug, thiserror::Error)]
#[non_exhaustive]
pub enum SnapshotError {
    /// A newer snapshot of the group took its place, or the group is gone.
    #[error("the snapshot of group {group} at index {index} was replaced: begin again with the newest one")]
    Replaced {
        /// The group.
        group: GroupId,
        /// What it covered.
        index: Index,
    },
    /// Stored bytes are not those that were written.
    #[error(
        "the snapshot of group {group} at index {index} is damaged in chunk {chunk}: get one from another replica"
    )]
    Damaged {
        /// The group.
        group: GroupId,
        /// What it covers.
        index: Index,
        /// Number of the chunk, from 0.
        chunk: u32,
    },
    /// What is known of a group's snapshot is damaged as a whole.
    #[error("the snapshot of group {group} is damaged: get one from another replica")]
    DamagedHead {
        /// The group.
        group: GroupId,
    },
    /// There is no such chunk.
    #[error("the snapshot of group {group} has {chunks} chunks, and no chunk {chunk}")]
    NoSuchChunk {
        /// The group.
        group: GroupId,
        /// The chunk asked for.
        chunk: u32,
        /// Number of chunks.
        chunks: u32,
    },
    /// A body has its limits.
    #[error("a snapshot of more than {max} chunks cannot be stored")]
    TooLarge {
        /// Highest number of chunks.
        max: u32,
    },
    /// The log file failed.
    #[error(transparent)]
    Storage(#[from] StorageError),
}

type Result<T, E = SnapshotError> = std::result::Result<T, E>;

/// What a step of collecting did.
#[derive(Clone, Copy, PartialEq, Eq, Default, Debug)]
#[non_exhaustive]
pub struct CollectReport {
    /// Rows of chunks that were removed.
    pub rows: u64,
    /// Bytes of these.
    pub bytes: u64,
    /// Whether there is more to remove.
    pub is_more: bool,
}

/// The snapshots of a shard's groups. Clones share them. Every call may block on the disk.
#[derive(Clone, Debug)]
pub struct SnapshotStore {
    log: Arc<LogFile>,
    shared: Arc<Mutex<Shared>>,
}

#[derive(Debug, Default)]
struct Shared {
    /// Not used since the shard was opened, and no chunk has it.
    next_number: u64,
    /// Numbers whose chunks nobody needs.
    garbage: VecDeque<u64>,
}

/// What a log file says of snapshots when it is opened.
#[derive(Debug, Default)]
pub(crate) struct StoredSnapshots {
    next_number: u64,
    garbage: VecDeque<u64>,
}

impl StoredSnapshots {
    /// Finds out which chunks are needed. A row that is damaged keeps nothing: whoever asks for it is
    /// told.
    pub(crate) fn load(candidate: &Candidate, path: &Path, shard: ShardId) -> StorageResult<StoredSnapshots> {
        let loaded = candidate.file.read(|transaction| {
            let mut needed = BTreeSet::new();
            for definition in [PUBLISHED, STAGED] {
                let Some(table) = existing(transaction.open_table(definition))? else { continue };
                for row in table.iter()? {
                    let (group, row) = row?;
                    let meta = SnapshotMeta::parse(GroupId(group.value()), row.value());
                    needed.extend(meta.map(|meta| meta.number));
                }
            }
            let next_number = needed.last().map_or(1, |number: &u64| number.saturating_add(1));
            let mut stored = StoredSnapshots { next_number, ..StoredSnapshots::default() };
            let Some(chunks) = existing(transaction.open_table(CHUNKS))? else { return Ok(stored) };
            // From number to number: no chunk is read.
            let mut from = 0;
            while let Some(row) = chunks.range((from, 0, 0)..)?.next() {
                let (number, ..) = row?.0.value();
                stored.next_number = stored.next_number.max(number.saturating_add(1));
                if !needed.contains(&number) {
                    stored.garbage.push_back(number);
                }
                let Some(next) = number.checked_add(1) else { break };
                from = next;
            }
            Ok(stored)
        });
        loaded.map_err(|error| error.opening(path, shard))
    }
}

/// A table that is made when it is first needed.
fn existing<T>(opened: std::result::Result<T, TableError>) -> std::result::Result<Option<T>, RedbFailure> {
    match opened {
        Ok(table) => Ok(Some(table)),
        Err(TableError::TableDoesNotExist(_)) => Ok(None),
        Err(error) => Err(error.into()),
    }
}

impl SnapshotStore {
    pub(crate) fn new(log: Arc<LogFile>, stored: StoredSnapshots) -> SnapshotStore {
        let shared = Shared { next_number: stored.next_number, garbage: stored.garbage };
        SnapshotStore { log, shared: Arc::new(Mutex::new(shared)) }
    }

    fn shared(&self) -> MutexGuard<'_, Shared> {
        // Nothing panics while it is held.
        self.shared.lock().unwrap_or_else(PoisonError::into_inner)
    }

    fn running(&self, error: RedbFailure) -> SnapshotError {
        error.running(self.log.identity.shard).into()
    }

    fn read<T>(
        &self,
        look: impl FnOnce(&redb::ReadTransaction) -> std::result::Result<T, RedbFailure>,
    ) -> Result<T> {
        self.log.file.read(look).map_err(|error| self.running(error))
    }

    /// Two-phase, as every commit of the log file: after a crash it must open without a walk.
    fn write<T>(
        &self,
        change: impl FnOnce(&redb::WriteTransaction) -> std::result::Result<T, RedbFailure>,
    ) -> Result<T> {
        self.log.file.write(Commit::QuickRepair, change).map_err(|error| self.running(error))
    }

    /// The published snapshot of a group.
    ///
    /// # Errors
    /// [`SnapshotError::DamagedHead`]; [`SnapshotError::Storage`].
    pub fn latest(&self, group: GroupId) -> Result<Option<SnapshotMeta>> {
        self.row_of(PUBLISHED, group)
    }

    /// The groups that have a published snapshot, the first one last.
    pub(crate) fn groups(&self) -> StorageResult<Vec<GroupId>> {
        let listed = self.log.file.read(|transaction| {
            let Some(table) = existing(transaction.open_table(PUBLISHED))? else { return Ok(Vec::new()) };
            let groups = table.iter()?.rev().map(|row| Ok(GroupId(row?.0.value())));
            groups.collect::<std::result::Result<_, RedbFailure>>()
        });
        listed.map_err(|error| error.running(self.log.identity.shard))
    }

    /// The published snapshot of a group as a start finds it: none, where what is known of it is damaged.
    pub(crate) fn found(&self, group: GroupId) -> StorageResult<Option<Snapshot>> {
        match self.latest(group) {
            Ok(meta) => Ok(meta.map(|meta| meta.snapshot())),
            Err(SnapshotError::Storage(error)) => Err(error),
            Err(error) => {
                tracing::error!(%group, %error, "a snapshot is lost");
                Ok(None)
            }
        }
    }

    /// The snapshot of a group that was begun and not yet published.
    ///
    /// # Errors
    /// As [`latest`](SnapshotStore::latest).
    pub fn staged(&self, group: GroupId) -> Result<Option<SnapshotMeta>> {
        self.row_of(STAGED, group)
    }

    fn row_of(
        &self,
        definition: TableDefinition<'static, u64, &'static [u8]>,
        group: GroupId,
    ) -> Result<Option<SnapshotMeta>> {
        let row = self.read(|transaction| {
            let Some(table) = existing(transaction.open_table(definition))? else { return Ok(None) };
            Ok(table.get(group.0)?.map(|row| SnapshotMeta::parse(group, row.value())))
        })?;
        match row {
            None => Ok(None),
            Some(Some(meta)) => Ok(Some(meta)),
            Some(None) => Err(SnapshotError::DamagedHead { group }),
        }
    }

    /// Begins a snapshot of a group, or goes on with the staged one if it is of the same head. A staged
    /// one of another head is dropped. There must be one writer for a group at a time: an older one
    /// fails with [`SnapshotError::Replaced`].
    ///
    /// # Errors
    /// [`SnapshotError::Storage`].
    pub fn begin(&self, group: GroupId, head: SnapshotHead) -> Result<SnapshotWriter> {
        let before = match self.staged(group) {
            Ok(before) => before,
            Err(SnapshotError::DamagedHead { .. }) => None,
            Err(error) => return Err(error),
        };
        if let Some(staged) = before.as_ref().filter(|staged| staged.head == head) {
            return Ok(SnapshotWriter::new(self.clone(), staged.clone()));
        }
        let number = {
            let mut shared = self.shared();
            shared.next_number += 1;
            shared.next_number - 1
        };
        let staged = SnapshotMeta { group, head, number, body_bytes: 0, chunks: 0, checksum: 0 };
        self.write(|transaction| {
            transaction.open_table(STAGED)?.insert(group.0, staged.encode().as_slice())?;
            Ok(())
        })?;
        self.shared().garbage.extend(before.map(|before| before.number));
        Ok(SnapshotWriter::new(self.clone(), staged))
    }

    /// Makes chunks of a staged snapshot durable; `after` is what it is with them.
    fn add(&self, before: &SnapshotMeta, after: &SnapshotMeta, chunks: &[Vec<u8>]) -> Result<()> {
        let identity = self.log.identity;
        let is_added = self.write(|transaction| {
            let mut staged = transaction.open_table(STAGED)?;
            if !is_row(&staged, before)? {
                return Ok(false);
            }
            let mut table = transaction.open_table(CHUNKS)?;
            for (data, chunk) in chunks.iter().zip(before.chunks..) {
                let head = NewChunk { identity, meta: before, chunk, data }.encode_head();
                let key = |row| (before.number, chunk, row);
                let pieces = [&head[..], &data[..]].into_iter();
                rows::insert(&mut table, head.len() + data.len(), key, pieces)?;
            }
            staged.insert(before.group.0, after.encode().as_slice())?;
            Ok(true)
        })?;
        if is_added { Ok(()) } else { Err(replaced(before)) }
    }

    /// Makes a staged snapshot the group's.
    fn publish(&self, staged: &SnapshotMeta) -> Result<()> {
        let published = self.write(|transaction| {
            let mut table = transaction.open_table(STAGED)?;
            if !is_row(&table, staged)? {
                return Ok(None);
            }
            table.remove(staged.group.0)?;
            let mut table = transaction.open_table(PUBLISHED)?;
            let before = table.insert(staged.group.0, staged.encode().as_slice())?;
            Ok(Some(before.and_then(|row| SnapshotMeta::parse(staged.group, row.value()))))
        })?;
        match published {
            Some(before) => {
                self.shared().garbage.extend(before.map(|before| before.number));
                Ok(())
            }
            None => Err(replaced(staged)),
        }
    }

    /// Drops what is staged of a group, and with `is_all` what is published too: its replica is gone. Writes nothing where
    /// there is nothing.
    ///
    /// # Errors
    /// [`SnapshotError::Storage`].
    pub fn remove(&self, group: GroupId, is_all: bool) -> Result<()> {
        let tables = if is_all { &[STAGED, PUBLISHED][..] } else { &[STAGED] };
        let removed = self.remove_from(tables, group.0..=group.0, |_| true);
        removed.map_err(|error| self.running(error))
    }

    /// Drops what there is of groups whose replica has left.
    pub(crate) fn remove_left(&self, has_left: impl Fn(GroupId) -> bool) -> StorageResult<()> {
        let removed = self.remove_from(&[STAGED, PUBLISHED], 0..=u64::MAX, has_left);
        removed.map_err(|error| error.running(self.log.identity.shard))
    }

    fn remove_from(
        &self,
        tables: &[TableDefinition<'static, u64, &'static [u8]>],
        groups: RangeInclusive<u64>,
        is_gone: impl Fn(GroupId) -> bool,
    ) -> std::result::Result<(), RedbFailure> {
        let rows = self.log.file.read(|transaction| {
            let mut rows = Vec::new();
            for definition in tables {
                let Some(table) = existing(transaction.open_table(*definition))? else { continue };
                for row in table.range(groups.clone())? {
                    let group = row?.0.value();
                    rows.extend(is_gone(GroupId(group)).then_some((*definition, group)));
                }
            }
            Ok(rows)
        })?;
        if rows.is_empty() {
            return Ok(());
        }
        let removed = self.log.file.write(Commit::QuickRepair, |transaction| {
            let mut numbers = Vec::new();
            for (definition, group) in rows {
                let mut table = transaction.open_table(definition)?;
                let row = table.remove(group)?;
                let meta = row.and_then(|row| SnapshotMeta::parse(GroupId(group), row.value()));
                numbers.extend(meta.map(|meta| meta.number));
            }
            Ok(numbers)
        })?;
        self.shared().garbage.extend(removed);
        Ok(())
    }

    /// Reads a chunk of a published snapshot.
    ///
    /// # Errors
    /// [`SnapshotError::Replaced`], [`SnapshotError::Damaged`], [`SnapshotError::NoSuchChunk`],
    /// [`SnapshotError::Storage`].
    pub fn read_chunk(&self, meta: &SnapshotMeta, chunk: u32) -> Result<Bytes> {
        let Some(data_bytes) = meta.chunk_bytes(chunk) else {
            return Err(SnapshotError::NoSuchChunk { group: meta.group, chunk, chunks: meta.chunks });
        };
        let read = self.read(|transaction| {
            let Some(published) = existing(transaction.open_table(PUBLISHED))? else { return Ok(None) };
            if !is_row(&published, meta)? {
                return Ok(None);
            }
            let Some(table) = existing(transaction.open_table(CHUNKS))? else { return Ok(Some(None)) };
            let table: ReadOnlyTable<_, _> = table;
            let bytes = CHUNK_HEADER_BYTES + data_bytes;
            let rows = Rows::read(&table, bytes, |row| (meta.number, chunk, row))?;
            Ok(Some(rows.and_then(|rows| rows.copy(0..bytes))))
        })?;
        let bytes = Bytes::from(read.ok_or_else(|| replaced(meta))?.unwrap_or_default());
        let data = parse_chunk(&bytes, self.log.identity, meta, chunk).map(|data| bytes.slice_ref(data));
        data.ok_or(SnapshotError::Damaged { group: meta.group, index: meta.head.index, chunk })
    }

    /// The body of a published snapshot, from its beginning.
    #[must_use]
    pub fn reader(&self, meta: SnapshotMeta) -> SnapshotReader {
        SnapshotReader::new(self.clone(), meta)
    }

    /// Removes chunks that nobody needs any more, about `bytes_max` bytes, at least one.
    ///
    /// # Errors
    /// [`SnapshotError::Storage`].
    pub fn collect(&self, bytes_max: u64) -> Result<CollectReport> {
        let Some(number) = self.shared().garbage.front().copied() else {
            return Ok(CollectReport::default());
        };
        let (mut report, is_done) = self.write(|transaction| {
            let mut table = transaction.open_table(CHUNKS)?;
            let mut report = CollectReport::default();
            let rows = (number, 0, 0)..=(number, u32::MAX, u16::MAX);
            let mut taken = Vec::new();
            for row in table.range(rows.clone())? {
                if report.bytes >= bytes_max && report.rows > 0 {
                    break;
                }
                let (key, row) = row?;
                taken.push(key.value());
                report.rows += 1;
                report.bytes += row.value().len() as u64;
            }
            for key in taken {
                table.remove(key)?;
            }
            let is_done = table.range(rows)?.next().is_none();
            Ok((report, is_done))
        })?;
        let mut shared = self.shared();
        if is_done {
            shared.garbage.retain(|garbage| *garbage != number);
        }
        report.is_more = !shared.garbage.is_empty();
        Ok(report)
    }
}

/// Whether this is what the table says of the group now.
fn is_row(
    table: &impl ReadableTable<u64, &'static [u8]>,
    meta: &SnapshotMeta,
) -> std::result::Result<bool, RedbFailure> {
    let row = table.get(meta.group.0)?;
    Ok(row.is_some_and(|row| SnapshotMeta::parse(meta.group, row.value()).as_ref() == Some(meta)))
}

fn replaced(meta: &SnapshotMeta) -> SnapshotError {
    SnapshotError::Replaced { group: meta.group, index: meta.head.index }
}
