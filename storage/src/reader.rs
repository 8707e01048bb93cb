//! Reads entries back while the writer goes on.

use std::sync::Arc;

use bytes::Bytes;
use iroh_raft_core::{Fetch, FetchError, FetchFrom, GroupId, Index, LogEntry};

use crate::block::{Block, Part, offset_after};
use crate::journal::{Journal, JournalError};
use crate::spans::{ReadPlan, Span, SpanIndex};

/// Reads entries of a shard's groups from its journal. Clones share the journal.
#[derive(Clone, Debug)]
pub struct JournalReader {
    journal: Arc<Journal>,
    index: Arc<SpanIndex>,
}

impl JournalReader {
    pub(crate) fn new(journal: Arc<Journal>, index: Arc<SpanIndex>) -> JournalReader {
        JournalReader { journal, index }
    }

    /// Reads contiguous entries from the place asked for, up to `to` or `bytes_max`, at least one.
    /// Blocks on the disk. What it returns was durable and in the log when the call returned; a
    /// suffix that voids it may follow at once, so the core compares terms.
    ///
    /// # Errors
    /// [`FetchError::Missing`] when the log does not have the first entry, or a suffix was voided
    /// while reading; [`FetchError::Corrupt`] when stored bytes are not those that were written;
    /// [`FetchError::Io`] when the medium or redb failed.
    pub fn read(&self, fetch: &Fetch) -> Result<Vec<LogEntry>, FetchError> {
        let plan = match fetch.from {
            FetchFrom::Index(from) => self.index.plan_by_index(fetch.group, from, fetch.to, fetch.bytes_max),
            FetchFrom::Offset(from) => {
                self.index.plan_by_offset(fetch.group, from, fetch.to, fetch.bytes_max)
            }
        };
        let plan = plan.filter(|plan| !plan.spans.is_empty()).ok_or(FetchError::Missing)?;
        let entries = self.read_plan(fetch, &plan)?;
        if entries.is_empty() || self.index.cuts(fetch.group) != plan.cuts {
            return Err(FetchError::Missing);
        }
        Ok(entries)
    }

    fn read_plan(&self, fetch: &Fetch, plan: &ReadPlan) -> Result<Vec<LogEntry>, FetchError> {
        let mut reading = Reading { fetch, entries: Vec::new(), bytes: 0, is_full: false };
        let mut failure = None;
        let mut spans = plan.spans.iter().peekable();
        let mut keys: Vec<_> = plan.spans.iter().map(|span| span.block).collect();
        keys.dedup();
        let looked = self.journal.look_at(keys.into_iter(), |key, bytes| {
            let first = spans.peek().copied();
            let block = bytes.and_then(|bytes| Block::parse(bytes, self.journal.identity).ok());
            let Some(block) = block else {
                failure = first.map(corrupt);
                return false;
            };
            while let Some(span) = spans.next_if(|span| span.block == key) {
                let part =
                    block.part_at(span.position).ok().filter(|part| is_part_of(part, fetch.group, span));
                if part.and_then(|part| reading.take(&part, span)).is_none() {
                    failure = Some(corrupt(span));
                    return false;
                }
            }
            !reading.is_full
        });
        match (looked, failure) {
            (_, Some(failure)) => Err(failure),
            (Ok(()), None) => Ok(reading.entries),
            (Err(error), None) => Err(self.classify(fetch, &error)),
        }
    }

    /// A panic in redb and a failed check of its own both mean that its pages are damaged.
    fn classify(&self, fetch: &Fetch, error: &JournalError) -> FetchError {
        tracing::error!(shard = %self.journal.identity.shard, group = %fetch.group, ?error, "reading the journal failed");
        let is_damaged = match error {
            JournalError::Panicked => true,
            JournalError::Redb(error) => matches!(**error, redb::Error::Corrupted(_)),
        };
        match fetch.from {
            FetchFrom::Index(first) if is_damaged => FetchError::Corrupt { first, last: fetch.to },
            FetchFrom::Offset(_) if is_damaged => FetchError::Corrupt { first: Index(1), last: fetch.to },
            _ => FetchError::Io,
        }
    }
}

fn corrupt(span: &Span) -> FetchError {
    FetchError::Corrupt { first: span.first, last: span.last() }
}

fn is_part_of(part: &Part<'_>, group: GroupId, span: &Span) -> bool {
    part.group == group && part.first == span.first && part.count >= span.count
}

/// A fetch while its entries are gathered.
struct Reading<'a> {
    fetch: &'a Fetch,
    entries: Vec<LogEntry>,
    bytes: usize,
    is_full: bool,
}

impl Reading<'_> {
    /// Takes the wanted entries of a part; `None` if its content is impossible.
    fn take(&mut self, part: &Part<'_>, span: &Span) -> Option<()> {
        let mut at = span.base;
        let mut data_start = 0;
        let mut wanted = Vec::new();
        for entry in part.entries().take(span.count as usize) {
            let end = offset_after(entry.kind, entry.data, at).ok()?;
            let is_before = match self.fetch.from {
                FetchFrom::Index(from) => entry.index < from,
                FetchFrom::Offset(from) => self.entries.is_empty() && wanted.is_empty() && end <= from,
            };
            at = end;
            if is_before {
                data_start += entry.data.len();
                continue;
            }
            let is_first = self.entries.is_empty() && wanted.is_empty();
            let bytes = self.bytes.saturating_add(entry.data.len());
            if entry.index > self.fetch.to || (!is_first && bytes > self.fetch.bytes_max) {
                self.is_full = true;
                break;
            }
            self.bytes = bytes;
            wanted.push(entry);
        }
        // One copy for all wanted entries of the part, which then share it.
        let data_end = data_start + wanted.iter().map(|entry| entry.data.len()).sum::<usize>();
        let data = Bytes::copy_from_slice(part.data().get(data_start..data_end)?);
        let mut start = 0;
        for entry in wanted {
            let end = start + entry.data.len();
            let data = data.slice(start..end);
            start = end;
            self.entries.push(LogEntry { index: entry.index, term: entry.term, kind: entry.kind, data });
        }
        Some(())
    }
}

const _: fn() = || {
    fn is_shareable<T: Send + Sync + Clone>() {}
    is_shareable::<JournalReader>();
};
