//! Entries of one span, read from the journal and checked.

use bytes::Bytes;
use iroh_raft_core::{FlushSeq, GroupId, Index, LogEntry};

use crate::block::{Block, BlockError, EntryView, JournalIdentity};
use crate::error::AffectedRange;
use crate::group_log::Span;
use crate::journal::Blocks;
use crate::redb_file::RedbFailure;

/// A span that cannot be used.
#[derive(Clone, Copy, Debug)]
pub(crate) struct ReadSpanError {
    /// Last flush of its block.
    pub(crate) at: FlushSeq,
    pub(crate) damage: BlockError,
    pub(crate) affected: AffectedRange,
}

/// Reads the entries of a span.
pub(crate) fn read_span(
    blocks: &Blocks,
    identity: JournalIdentity,
    group: GroupId,
    span: &Span,
) -> Result<Result<Vec<LogEntry>, ReadSpanError>, RedbFailure> {
    let read = (|| -> Result<Result<_, BlockError>, RedbFailure> {
        let raw = match blocks.get(span.block)? {
            Ok(raw) => raw,
            Err(error) => return Ok(Err(error)),
        };
        let directory = raw.directory();
        let part = Block::parse(&directory, identity).and_then(|block| block.part_at(span.place));
        Ok(part.and_then(|part| {
            let is_named = part.group == group && part.first == span.first && part.count >= span.count;
            if !is_named {
                return Err(BlockError::Content);
            }
            let data = raw.copy(part.data_range()).ok_or(BlockError::Content)?;
            if !part.is_data(std::iter::once(&data[..])) {
                return Err(BlockError::Checksum);
            }
            let data = Bytes::from(data);
            let entries = part.entries(&data).take(span.count as usize);
            Ok(shared(entries, &data).collect())
        }))
    })()?;
    let last = Index(span.first.0 + u64::from(span.count) - 1);
    let affected = AffectedRange { group, first: span.first, last };
    Ok(read.map_err(|damage| ReadSpanError { at: span.block, damage, affected }))
}

/// Entries whose data are slices of `data`, one after another from its start.
pub(crate) fn shared<'a>(
    entries: impl Iterator<Item = EntryView<'a>>,
    data: &Bytes,
) -> impl Iterator<Item = LogEntry> {
    let mut at = 0;
    entries.map(move |entry| {
        let from = at;
        at += entry.data.len();
        LogEntry { index: entry.index, term: entry.term, kind: entry.kind, data: data.slice(from..at) }
    })
}
