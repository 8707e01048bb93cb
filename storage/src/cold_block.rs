//! A block of the log file: contiguous committed entries of one group.
//!
//! FORMAT.md, "Log file", has the bytes. A block is written once and never changed. Beside each
//! block stands a small index row, so that opening reads no block.

use bytes::Bytes;
use iroh_raft_core::{EntryKind, GroupId, Index, LogPosition, LogStart, Offset, ShardId, Term, TermRun};
use smallvec::SmallVec;

use crate::block::{
    BLOCK_BYTES_MAX, BlockError, ENTRY_ROW_BYTES, EntryRows, EntryView, JournalIdentity, encode_entry_row,
    entries, is_consistent, parse_conf_state, parse_hard_state,
};
use crate::block::{
    POSITION_BYTES, conf_state_bytes, encode_conf_state, encode_hard_state, encode_position, parse_position,
};
use crate::cursor::{Cursor, Pen};
use crate::group_log::{ColdSpan, GroupLog};

const MAGIC: [u8; 4] = *b"IRLB";
pub(crate) const LOG_VERSION: u16 = 1;
/// Flags of a group's row.
const ROW_UNDER_REPAIR: u16 = 1;
const ROW_JOINED: u16 = 2;
const HEADER_BYTES: usize = 64;
const CHECKSUM_AT: usize = HEADER_BYTES - 4;

/// A block to be written.
#[derive(Debug)]
pub(crate) struct NewColdBlock<'a> {
    pub(crate) first: Index,
    pub(crate) base: Offset,
    /// Offset after its last record.
    pub(crate) end: Offset,
    pub(crate) rows: SmallVec<[(Term, u32, EntryKind); 8]>,
    /// The data of the entries, in pieces.
    pub(crate) data: SmallVec<[&'a [u8]; 16]>,
    pub(crate) data_bytes: usize,
}

impl NewColdBlock<'_> {
    pub(crate) fn last(&self) -> Index {
        Index(self.first.0 + self.rows.len() as u64 - 1)
    }

    pub(crate) fn bytes(&self) -> usize {
        HEADER_BYTES + self.rows.len() * ENTRY_ROW_BYTES + self.data_bytes
    }

    /// Writes header and rows in place of what is in `head`. Returns the checksum of the whole block.
    pub(crate) fn encode_head(
        &self,
        identity: JournalIdentity,
        group: GroupId,
        previous: u32,
        head: &mut Vec<u8>,
    ) -> u32 {
        head.clear();
        head.resize(HEADER_BYTES + self.rows.len() * ENTRY_ROW_BYTES, 0);
        let small = |bytes: usize| u32::try_from(bytes).expect("a block is below 1 GiB");
        let mut pen = Pen::new(head);
        pen.put(&MAGIC);
        pen.u16(LOG_VERSION);
        pen.u16(identity.shard.0);
        pen.put(&identity.storage);
        pen.u64(group.0);
        pen.u64(self.first.0);
        pen.u64(self.base.0);
        pen.u32(small(self.rows.len()));
        pen.u32(small(self.data_bytes));
        pen.u32(previous);
        pen.u32(0);
        for (term, bytes, kind) in &self.rows {
            encode_entry_row(&mut pen, *term, *bytes as usize, *kind);
        }
        let checksum = checksum_of(head, self.data.iter().copied());
        head[CHECKSUM_AT..HEADER_BYTES].copy_from_slice(&checksum.to_le_bytes());
        checksum
    }

    fn term_runs(&self) -> Vec<TermRun> {
        let mut runs: Vec<TermRun> = Vec::new();
        for ((term, ..), index) in self.rows.iter().zip(self.first.0..) {
            if runs.last().is_none_or(|run| run.term != *term) {
                runs.push(TermRun { first: Index(index), term: *term });
            }
        }
        runs
    }

    /// The row that stands beside the block.
    pub(crate) fn index_row(&self, previous: u32, checksum: u32) -> IndexRow {
        let is_change = |kind: EntryKind| kind != EntryKind::Normal;
        let changes = self.rows.iter().zip(self.first.0..).filter(|((.., kind), _)| is_change(*kind));
        IndexRow {
            span: ColdSpan {
                first: self.first,
                last: self.last(),
                base: self.base,
                bytes: self.bytes() as u32,
                checksum,
            },
            end: self.end,
            previous,
            term_runs: self.term_runs(),
            conf_changes: changes.map(|(_, index)| Index(index)).collect(),
        }
    }
}

fn checksum_of<'a>(head: &[u8], data: impl Iterator<Item = &'a [u8]>) -> u32 {
    let (before, rest) = head.split_at(CHECKSUM_AT);
    let (_, rows) = rest.split_at(HEADER_BYTES - CHECKSUM_AT);
    data.fold(crc32c::crc32c_append(crc32c::crc32c(before), rows), crc32c::crc32c_append)
}

/// A block, read in place.
#[derive(Clone, Debug)]
pub(crate) struct ColdBlock<'a> {
    rows: &'a [u8],
    pub(crate) data: &'a [u8],
    first: Index,
    pub(crate) base: Offset,
}

impl<'a> ColdBlock<'a> {
    /// Reads a block and checks that it is the one that the index names.
    ///
    /// # Errors
    /// [`BlockError`], by what is wrong.
    pub(crate) fn parse(
        bytes: &'a [u8],
        identity: JournalIdentity,
        group: GroupId,
        span: &ColdSpan,
    ) -> Result<ColdBlock<'a>, BlockError> {
        let length = BlockError::Length { bytes: bytes.len() };
        let mut cursor = Cursor::new(bytes);
        if cursor.array() != Some(MAGIC) {
            return Err(BlockError::Magic);
        }
        let version = cursor.u16().ok_or(length)?;
        if version != LOG_VERSION {
            return Err(BlockError::Version { version });
        }
        let shard = ShardId(cursor.u16().ok_or(length)?);
        let storage = cursor.array().ok_or(length)?;
        let of = GroupId(cursor.u64().ok_or(length)?);
        let first = Index(cursor.u64().ok_or(length)?);
        let base = Offset(cursor.u64().ok_or(length)?);
        let count = cursor.u32().ok_or(length)?;
        let data_bytes = cursor.u32().ok_or(length)? as usize;
        let _previous = cursor.u32().ok_or(length)?;
        let checksum = cursor.u32().ok_or(length)?;
        let rows =
            cursor.bytes((count as usize).checked_mul(ENTRY_ROW_BYTES).ok_or(length)?).ok_or(length)?;
        let data = cursor.bytes(data_bytes).ok_or(length)?;
        if cursor.left() != 0 {
            return Err(length);
        }
        if (JournalIdentity { storage, shard }) != identity || of != group {
            return Err(BlockError::Foreign);
        }
        let head = bytes.get(..bytes.len() - data_bytes).ok_or(length)?;
        if checksum_of(head, std::iter::once(data)) != checksum {
            return Err(BlockError::Checksum);
        }
        let is_named = first == span.first
            && base == span.base
            && checksum == span.checksum
            // The index after the last one must be representable too.
            && first.0.checked_add(u64::from(count)).and_then(|end| end.checked_sub(1)) == Some(span.last.0);
        if !is_named {
            return Err(BlockError::Chain);
        }
        let block = ColdBlock { rows, data, first, base };
        if is_consistent(block.rows(), data_bytes) { Ok(block) } else { Err(BlockError::Content) }
    }

    fn rows(&self) -> EntryRows<'a> {
        EntryRows(Cursor::new(self.rows))
    }

    /// The entries, in order.
    pub(crate) fn entries(&self) -> impl Iterator<Item = EntryView<'a>> + use<'a> {
        entries(self.first, self.rows(), self.data)
    }
}

/// What the log file's index says of a block.
#[derive(Clone, PartialEq, Eq, Debug)]
pub(crate) struct IndexRow {
    pub(crate) span: ColdSpan,
    /// Offset after its last record.
    pub(crate) end: Offset,
    /// Checksum of the group's block before.
    pub(crate) previous: u32,
    pub(crate) term_runs: Vec<TermRun>,
    pub(crate) conf_changes: Vec<Index>,
}

impl IndexRow {
    pub(crate) fn encode(&self, group: GroupId) -> Vec<u8> {
        let mut row = zeros(48 + 16 * self.term_runs.len() + 8 * self.conf_changes.len());
        let small =
            |count: usize| u32::try_from(count).expect("a block below 1 GiB has fewer than 2^32 entries");
        let mut pen = Pen::new(&mut row);
        pen.u64(self.span.last.0);
        pen.u64(self.span.base.0);
        pen.u64(self.end.0);
        pen.u32(self.span.bytes);
        pen.u32(self.span.checksum);
        pen.u32(self.previous);
        pen.u32(small(self.term_runs.len()));
        pen.u32(small(self.conf_changes.len()));
        pen.u32(0);
        for run in &self.term_runs {
            pen.u64(run.first.0);
            pen.u64(run.term.0);
        }
        for index in &self.conf_changes {
            pen.u64(index.0);
        }
        sealed(&[group.0, self.span.first.0], row)
    }

    /// Reads a row; `None` if it is not what was written.
    pub(crate) fn parse(group: GroupId, first: Index, bytes: &[u8]) -> Option<IndexRow> {
        let mut cursor = Cursor::new(unsealed(&[group.0, first.0], bytes)?);
        let last = Index(cursor.u64()?);
        let base = Offset(cursor.u64()?);
        let end = Offset(cursor.u64()?);
        let bytes = cursor.u32()?;
        let checksum = cursor.u32()?;
        let previous = cursor.u32()?;
        let runs = cursor.u32()? as usize;
        let changes = cursor.u32()? as usize;
        let reserved = cursor.u32()?;
        let mut rows = Cursor::new(cursor.bytes(runs.checked_mul(16)?)?);
        let term_runs: Vec<_> =
            std::iter::from_fn(|| Some(TermRun { first: Index(rows.u64()?), term: Term(rows.u64()?) }))
                .collect();
        let mut rows = Cursor::new(cursor.bytes(changes.checked_mul(8)?)?);
        let conf_changes = std::iter::from_fn(|| rows.u64().map(Index)).collect();
        let is_possible = first.0 > 0
            && last >= first
            && end >= base
            && reserved == 0
            && cursor.left() == 0
            && bytes as usize <= BLOCK_BYTES_MAX
            && term_runs.first().is_some_and(|run| run.first == first);
        let span = ColdSpan { first, last, base, bytes, checksum };
        is_possible.then_some(IndexRow { span, end, previous, term_runs, conf_changes })
    }
}

/// What the log file says of a group.
#[derive(Clone, PartialEq, Eq, Debug)]
pub(crate) struct GroupRow {
    pub(crate) start: LogStart,
    /// Last index in the log file; past its last block if what follows there was lost.
    pub(crate) moved: Index,
    pub(crate) moved_end: Offset,
    /// Checksum of its newest block; 0 if it has none.
    pub(crate) checksum: u32,
    pub(crate) hard_state: iroh_raft_core::HardState,
    pub(crate) conf_state: iroh_raft_core::ConfState,
    pub(crate) meta: Bytes,
    pub(crate) is_under_repair: bool,
    pub(crate) joined_at: LogPosition,
}

impl GroupRow {
    /// The row of a group as it is in memory, with its blocks up to where they were moved.
    pub(crate) fn of(log: &GroupLog) -> GroupRow {
        GroupRow {
            start: log.start(),
            moved: log.moved_or_lost(),
            moved_end: log.moved_end(),
            checksum: log.cold_checksum,
            hard_state: log.hard_state,
            conf_state: log.conf_state.clone(),
            meta: log.meta.clone(),
            is_under_repair: log.is_under_repair,
            joined_at: log.joined_at,
        }
    }

    pub(crate) fn encode(&self, group: GroupId) -> Vec<u8> {
        let has_joined = self.joined_at != LogPosition::default();
        let position_bytes = if has_joined { POSITION_BYTES } else { 0 };
        let mut row =
            zeros(8 + 24 + 16 + 24 + position_bytes + conf_state_bytes(&self.conf_state) + self.meta.len());
        let mut pen = Pen::new(&mut row);
        pen.u16(LOG_VERSION);
        pen.u16((u16::from(self.is_under_repair) * ROW_UNDER_REPAIR) | (u16::from(has_joined) * ROW_JOINED));
        pen.u32(self.checksum);
        pen.u64(self.start.index.0);
        pen.u64(self.start.term.0);
        pen.u64(self.start.offset.0);
        pen.u64(self.moved.0);
        pen.u64(self.moved_end.0);
        encode_hard_state(&mut pen, self.hard_state);
        encode_conf_state(&mut pen, &self.conf_state);
        if has_joined {
            encode_position(&mut pen, self.joined_at);
        }
        pen.put(&self.meta);
        sealed(&[group.0], row)
    }

    /// Reads a row; `None` if it is not what was written.
    pub(crate) fn parse(group: GroupId, bytes: &[u8]) -> Option<GroupRow> {
        let mut cursor = Cursor::new(unsealed(&[group.0], bytes)?);
        let version = cursor.u16()?;
        let flags = cursor.u16()?;
        if flags & !(ROW_UNDER_REPAIR | ROW_JOINED) != 0 {
            return None;
        }
        let is_under_repair = flags & ROW_UNDER_REPAIR != 0;
        let checksum = cursor.u32()?;
        let start = LogStart {
            index: Index(cursor.u64()?),
            term: Term(cursor.u64()?),
            offset: Offset(cursor.u64()?),
        };
        let moved = Index(cursor.u64()?);
        let moved_end = Offset(cursor.u64()?);
        let hard_state = parse_hard_state(&mut cursor)?;
        let conf_state = parse_conf_state(&mut cursor)?;
        let has_joined = flags & ROW_JOINED != 0;
        let joined_at = if has_joined { parse_position(&mut cursor)? } else { LogPosition::default() };
        let meta = Bytes::copy_from_slice(cursor.bytes(cursor.left())?);
        let is_possible = version == LOG_VERSION && moved >= start.index && moved_end >= start.offset;
        let row = GroupRow {
            start,
            moved,
            moved_end,
            checksum,
            hard_state,
            conf_state,
            meta,
            is_under_repair,
            joined_at,
        };
        is_possible.then_some(row)
    }
}

/// A row to be written, with room for its checksum.
fn zeros(bytes: usize) -> Vec<u8> {
    let mut row = Vec::with_capacity(bytes + 4);
    row.resize(bytes, 0);
    row
}

/// Adds a checksum to a small row, of its key as well: redb verifies none when it reads.
pub(crate) fn sealed(key: &[u64], mut row: Vec<u8>) -> Vec<u8> {
    let checksum = crc32c::crc32c_append(key_checksum(key), &row);
    row.extend_from_slice(&checksum.to_le_bytes());
    row
}

fn key_checksum(key: &[u64]) -> u32 {
    key.iter().fold(0, |checksum, part| crc32c::crc32c_append(checksum, &part.to_le_bytes()))
}

/// The row that was sealed under that key; `None` if it was another row, or key.
pub(crate) fn unsealed<'b>(key: &[u64], bytes: &'b [u8]) -> Option<&'b [u8]> {
    let (body, checksum) = bytes.split_last_chunk::<4>()?;
    let expected = crc32c::crc32c_append(key_checksum(key), body);
    (expected == u32::from_le_bytes(*checksum)).then_some(body)
}
