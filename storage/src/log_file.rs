//! The log file of a shard: blocks of one group each, moved here from the journal in few large
//! commits, and what is known of the groups as of the last move.

use std::collections::{BTreeMap, VecDeque};
use std::path::Path;
use std::sync::Arc;

use iroh_raft_core::{GroupId, Index, Offset, TermRun};
use redb::{ReadableTable, TableDefinition};

use crate::block::{ChainEnd, JournalIdentity};
use crate::cold_block::{GroupRow, IndexRow, NewColdBlock, sealed, unsealed};
use crate::disk::{Disk, FileKind, ShardLock};
use crate::error::{Result, StorageError};
use crate::group_log::{ColdSpan, GroupLog};
use crate::mark::{seal_chain_end, unseal_chain_end};
use crate::redb_file::{Candidate, Commit, RedbFailure, RedbFile};
use crate::rows::{self, Rows};
use crate::small_file::Kind;

/// Key: group, first index, number of the row. Value: a row of the block.
const LOG: TableDefinition<'static, (u64, u64, u16), &'static [u8]> = TableDefinition::new("log");
/// Key: group, first index. Value: what the block holds.
const INDEX: TableDefinition<'static, (u64, u64), &'static [u8]> = TableDefinition::new("index");
/// Key: group. Value: what it was at the last move that concerned it.
const GROUP: TableDefinition<'static, u64, &'static [u8]> = TableDefinition::new("group");
/// Facts about the file, by name.
const META: TableDefinition<'static, &'static str, &'static [u8]> = TableDefinition::new("meta");
/// Name of the row that says whose log this is and up to where the journal was moved here.
const MOVED: &str = "moved";
/// Name of the row with the sum of the checksums of all rows of `group`: none of them is an older one
/// that a lost write left there, and none is gone.
const GROUPS: &str = "groups";
const MOVED_KIND: Kind = Kind { magic: *b"IRAFTLOG", version: 1 };

/// An open log file.
#[derive(Debug)]
pub(crate) struct LogFile {
    pub(crate) file: RedbFile,
    pub(crate) identity: JournalIdentity,
}

/// What a move writes of one group.
#[derive(Debug)]
pub(crate) struct MovedGroup<'a> {
    pub(crate) group: GroupId,
    /// The group as it was before the move, with what was lost of it.
    pub(crate) row: GroupRow,
    pub(crate) blocks: Vec<NewColdBlock<'a>>,
}

/// What a move removes.
#[derive(Clone, Copy, Debug)]
pub(crate) struct Garbage<'a> {
    /// Groups that are gone; one that is back has its row written after that.
    pub(crate) groups: &'a [GroupId],
    pub(crate) blocks: &'a [(GroupId, ColdSpan)],
}

/// A group as the log file knows it.
#[derive(Debug)]
pub(crate) struct StoredGroup {
    pub(crate) log: GroupLog,
    pub(crate) term_runs: Vec<TermRun>,
    pub(crate) conf_changes: Vec<Index>,
    /// Entries that the index should know and does not.
    pub(crate) damage: Option<StoredDamage>,
    /// Where the last block ends that was taken: its last index, and the offset after it.
    end: (Index, Offset),
}

/// Entries that the index of the log file should know and does not.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub(crate) struct StoredDamage {
    /// First and last of them.
    pub(crate) range: (Index, Index),
    /// Last index before them that is sound: the end of a block, or the start of the log.
    pub(crate) before: Index,
    /// Offset after it.
    pub(crate) end: Offset,
}

/// The log file as it was found.
#[derive(Debug)]
pub(crate) struct StoredLog {
    pub(crate) moved: ChainEnd,
    pub(crate) groups: BTreeMap<GroupId, StoredGroup>,
    /// Blocks that were compacted away, and are still there.
    pub(crate) compacted: VecDeque<(GroupId, ColdSpan)>,
}

impl LogFile {
    /// Creates an empty, durable log file.
    pub(crate) fn create(
        disk: &dyn Disk,
        path: &Path,
        identity: JournalIdentity,
        lock: Arc<ShardLock>,
    ) -> Result<()> {
        RedbFile::create(disk, path, FileKind::Log, identity.shard, lock, |transaction| {
            let moved = seal_chain_end(MOVED_KIND, identity, ChainEnd::default());
            let mut meta = transaction.open_table(META)?;
            meta.insert(MOVED, moved.as_slice())?;
            meta.insert(GROUPS, GroupsSum::default().encode().as_slice())?;
            transaction.open_table(LOG)?;
            transaction.open_table(INDEX)?;
            transaction.open_table(GROUP)?;
            Ok(())
        })
    }

    /// Reads what a candidate says of its groups: index and marks, no block.
    pub(crate) fn load(candidate: &Candidate, identity: JournalIdentity) -> Result<StoredLog> {
        let path = candidate.file.path.as_path();
        let opening = |error: RedbFailure| error.opening(path, identity.shard);
        let moved = candidate.file.read(|transaction| {
            let table = transaction.open_table(META)?;
            let row = table.get(MOVED)?;
            Ok(row.map(|row| unseal_chain_end(MOVED_KIND, row.value(), identity)))
        });
        let moved = moved.map_err(opening)?.ok_or_else(|| damaged(path))?;
        let moved = moved.map_err(|error| error.at(path, MOVED_KIND))?;
        let mut log = StoredLog { moved, groups: BTreeMap::new(), compacted: VecDeque::new() };
        let loaded = candidate.file.read(|transaction| {
            let meta = transaction.open_table(META)?;
            let sum = meta.get(GROUPS)?.and_then(|row| GroupsSum::parse(row.value()));
            let mut found = GroupsSum::default();
            for row in transaction.open_table(GROUP)?.iter()? {
                let (group, row) = row?;
                // Without its row nothing of the group can be believed, its vote least of all.
                let group = GroupId(group.value());
                found.add(row.value());
                let Some(row) = GroupRow::parse(group, row.value()) else { return Ok(false) };
                log.groups.insert(group, StoredGroup::new(row));
            }
            if sum != Some(found) {
                return Ok(false);
            }
            for row in transaction.open_table(INDEX)?.iter()? {
                let (key, row) = row?;
                let (group, first) = (GroupId(key.value().0), Index(key.value().1));
                let row = IndexRow::parse(group, first, row.value());
                if !log.take_index_row(group, first, row) {
                    return Ok(false);
                }
            }
            Ok(true)
        });
        if !loaded.map_err(opening)? {
            return Err(damaged(path));
        }
        log.groups.values_mut().for_each(StoredGroup::finish);
        Ok(log)
    }

    /// The rows of the index of one group, in order; `None` for what is none.
    pub(crate) fn index_rows(&self, group: GroupId) -> Result<Vec<(Index, Option<IndexRow>)>, RedbFailure> {
        self.file.read(|transaction| {
            let table = transaction.open_table(INDEX)?;
            let mut rows = Vec::new();
            for row in table.range((group.0, 0)..=(group.0, u64::MAX))? {
                let (key, row) = row?;
                let first = Index(key.value().1);
                rows.push((first, IndexRow::parse(group, first, row.value())));
            }
            Ok(rows)
        })
    }

    /// Makes a move durable. Returns each group's new blocks and the offset after them.
    pub(crate) fn commit_move(
        &self,
        moved: ChainEnd,
        groups: &[MovedGroup<'_>],
        garbage: Garbage<'_>,
    ) -> Result<Vec<Vec<ColdSpan>>, RedbFailure> {
        self.file.write(Commit::QuickRepair, |transaction| {
            let mut log = transaction.open_table(LOG)?;
            let mut index = transaction.open_table(INDEX)?;
            let mut rows = transaction.open_table(GROUP)?;
            let mut meta = transaction.open_table(META)?;
            // Compared when the file was opened, and sealed.
            let sum = meta.get(GROUPS)?.and_then(|row| GroupsSum::parse(row.value()));
            let mut sum = sum.ok_or_else(|| redb::StorageError::Corrupted("no sum of the groups".into()))?;
            for (group, span) in garbage.blocks {
                let key = |row| (group.0, span.first.0, row);
                rows::remove(&mut log, span.bytes as usize, key)?;
                index.remove((group.0, span.first.0))?;
            }
            for group in garbage.groups {
                sum.remove(rows.remove(group.0)?.as_ref().map(|row| row.value()));
            }
            let mut spans = Vec::with_capacity(groups.len());
            let mut head = Vec::new();
            for moved in groups {
                let group = moved.group;
                let mut row = moved.row.clone();
                let mut new = Vec::with_capacity(moved.blocks.len());
                for block in &moved.blocks {
                    let checksum = block.encode_head(self.identity, group, row.checksum, &mut head);
                    let pieces = std::iter::once(&head[..]).chain(block.data.iter().copied());
                    let key = |row| (group.0, block.first.0, row);
                    rows::insert(&mut log, block.bytes(), key, pieces)?;
                    let index_row = block.index_row(row.checksum, checksum);
                    index.insert((group.0, block.first.0), index_row.encode(group).as_slice())?;
                    let moved = row.moved.max(block.last());
                    (row.checksum, row.moved, row.moved_end) = (checksum, moved, block.end);
                    new.push(index_row.span);
                }
                let row = row.encode(group);
                sum.remove(rows.insert(group.0, row.as_slice())?.as_ref().map(|row| row.value()));
                sum.add(&row);
                spans.push(new);
            }
            let moved = seal_chain_end(MOVED_KIND, self.identity, moved);
            meta.insert(MOVED, moved.as_slice())?;
            meta.insert(GROUPS, sum.encode().as_slice())?;
            Ok(spans)
        })
    }

    /// The bytes of these blocks in turn, until `look` says false. `None` for one that is not there.
    pub(crate) fn look_at<'s>(
        &self,
        group: GroupId,
        spans: impl Iterator<Item = &'s ColdSpan>,
        mut look: impl FnMut(&ColdSpan, Option<Vec<u8>>) -> bool,
    ) -> Result<(), RedbFailure> {
        self.file.read(|transaction| {
            let table = transaction.open_table(LOG)?;
            for span in spans {
                let bytes = span.bytes as usize;
                let rows = Rows::read(&table, bytes, |row| (group.0, span.first.0, row))?;
                if !look(span, rows.and_then(|rows| rows.copy(0..bytes))) {
                    break;
                }
            }
            Ok(())
        })
    }
}

/// The sum of the checksums of the groups' rows.
#[derive(Clone, Copy, PartialEq, Eq, Default, Debug)]
struct GroupsSum(u64);

impl GroupsSum {
    /// A row ends with its checksum.
    fn of(row: &[u8]) -> u64 {
        row.last_chunk().map_or(0, |checksum| u64::from(u32::from_le_bytes(*checksum)))
    }

    fn add(&mut self, row: &[u8]) {
        self.0 = self.0.wrapping_add(GroupsSum::of(row));
    }

    fn remove(&mut self, row: Option<&[u8]>) {
        self.0 = self.0.wrapping_sub(row.map_or(0, GroupsSum::of));
    }

    fn encode(self) -> Vec<u8> {
        sealed(&[], self.0.to_le_bytes().to_vec())
    }

    fn parse(row: &[u8]) -> Option<GroupsSum> {
        unsealed(&[], row)?.try_into().ok().map(|sum| GroupsSum(u64::from_le_bytes(sum)))
    }
}

fn damaged(path: &Path) -> StorageError {
    let damage = crate::error::FileDamage::Content;
    StorageError::DamagedFile { path: path.to_owned(), damage }
}

impl StoredGroup {
    fn new(row: GroupRow) -> StoredGroup {
        let mut log = GroupLog::from_log_file(row.start, row.moved, row.moved_end, row.checksum);
        log.hard_state = row.hard_state;
        log.is_under_repair = row.is_under_repair;
        log.joined_at = row.joined_at;
        log.conf_state = row.conf_state;
        log.meta = row.meta;
        let end = (row.start.index, row.start.offset);
        StoredGroup { log, term_runs: Vec::new(), conf_changes: Vec::new(), damage: None, end }
    }

    /// The group as its row says, with these rows of its index.
    pub(crate) fn load(row: GroupRow, rows: Vec<(Index, Option<IndexRow>)>) -> StoredGroup {
        let mut stored = StoredGroup::new(row);
        for (first, row) in rows {
            match row {
                Some(row) => drop(stored.take(row)),
                None => stored.note_damage(first, stored.log.moved().max(first)),
            }
        }
        stored.finish();
        stored
    }

    /// Takes the next row of its index; false if the block lies before the start, or was cut off the end.
    fn take(&mut self, row: IndexRow) -> bool {
        let (start, moved) = (self.log.start(), self.log.moved());
        // A log is cut between blocks, or at its start, which may be within one.
        let is_cut = row.span.last > moved && (row.span.first > moved || moved == start.index);
        if row.span.last <= start.index || is_cut {
            return false;
        }
        if row.span.last > self.log.moved() {
            self.note_damage(row.span.first, row.span.last);
        }
        match self.log.cold_back() {
            Some(before) if before.last.next() != row.span.first || before.checksum != row.previous => {
                self.note_damage(before.last.next(), Index(row.span.first.0.max(before.last.0 + 2) - 1));
            }
            None if row.span.first > start.index.next() => {
                self.note_damage(start.index.next(), Index(row.span.first.0 - 1));
            }
            _ => {}
        }
        for run in &row.term_runs {
            if self.term_runs.last().is_none_or(|last| last.term != run.term) {
                self.term_runs.push(*run);
            }
        }
        self.conf_changes.extend(row.conf_changes.iter().filter(|index| **index > start.index));
        self.log.push_cold(row.span);
        self.end = (row.span.last, row.end);
        true
    }

    /// All its rows were taken.
    fn finish(&mut self) {
        let (start, moved) = (self.log.start(), self.log.moved());
        let newest = self.log.cold_back().copied();
        let (last, checksum) = newest.map_or((start.index, 0), |span| (span.last, span.checksum));
        if last < moved && checksum == self.log.cold_checksum {
            // No block is missing: the journal may still have what follows, or says what of it is damaged.
            self.log.lose_after(last);
        } else if last < moved {
            self.note_damage(last.next(), moved);
        } else if newest.is_some_and(|span| span.checksum != self.log.cold_checksum) {
            self.note_damage(start.index.next(), moved);
        }
        // What the start cuts off from the first runs.
        let before = self.term_runs.partition_point(|run| run.first <= start.index.next());
        self.term_runs.drain(..before.saturating_sub(1));
        if let Some(first) = self.term_runs.first_mut() {
            first.first = start.index.next();
        }
    }

    fn note_damage(&mut self, first: Index, last: Index) {
        let start = self.log.start();
        let (before, end) = if self.end.0 < first { self.end } else { (start.index, start.offset) };
        let new = StoredDamage { range: (first, last), before, end };
        let damage = self.damage.get_or_insert(new);
        if first < damage.range.0 {
            *damage = StoredDamage { range: (first, damage.range.1), ..new };
        }
        damage.range.1 = damage.range.1.max(last);
    }
}

impl StoredLog {
    /// Takes a row of the index; false if it is of a group that is not there. A group's row goes with
    /// its last blocks, in one commit.
    fn take_index_row(&mut self, group: GroupId, first: Index, row: Option<IndexRow>) -> bool {
        let Some(stored) = self.groups.get_mut(&group) else { return false };
        match row {
            None => {
                let last = stored.log.moved().max(first);
                stored.note_damage(first, last);
            }
            Some(row) => {
                let span = row.span;
                if !stored.take(row) {
                    self.compacted.push_back((group, span));
                }
            }
        }
        true
    }
}
