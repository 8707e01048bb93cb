//! Reads entries back while writer and mover go on.

use std::sync::Arc;

use bytes::Bytes;
use iroh_raft_core::{Fetch, FetchError, FetchFrom, Index, LogEntry, Offset};

use crate::block::{JournalIdentity, offset_after};
use crate::cold_block::ColdBlock;
use crate::group_log::{ColdSpan, ReadPlan, Source, Span};
use crate::index::SharedIndex;
use crate::journal::Journal;
use crate::log_file::LogFile;
use crate::redb_file::RedbFailure;
use crate::snapshot::SnapshotStore;
use crate::span_read::{read_span, shared};

/// Plans made anew because what they named was moved meanwhile. Each move takes far longer than a
/// plan, so a second one hardly ever fails.
const PLANS_MAX: u32 = 8;

/// Reads entries of a shard's groups from its files. Clones share them.
#[derive(Clone, Debug)]
pub struct LogReader {
    pub(crate) journal: Arc<Journal>,
    pub(crate) log: Arc<LogFile>,
    pub(crate) index: Arc<SharedIndex>,
    pub(crate) snapshots: SnapshotStore,
    pub(crate) identity: JournalIdentity,
}

/// Why a plan could not be followed.
enum ReadError {
    /// It may have been moved or voided since: look again.
    Damaged {
        first: Index,
        last: Index,
    },
    Failed(RedbFailure),
}

impl LogReader {
    pub(crate) fn new(
        journal: Arc<Journal>,
        log: Arc<LogFile>,
        index: Arc<SharedIndex>,
        snapshots: SnapshotStore,
    ) -> LogReader {
        let identity = journal.identity;
        LogReader { journal, log, index, snapshots, identity }
    }

    /// Reads contiguous entries from the place asked for, up to `to` or `bytes_max`, at least one.
    /// Blocks on the disk. What it returns was durable and in the log when the call returned; a
    /// suffix that voids it may follow at once, so the core compares terms.
    ///
    /// # Errors
    /// [`FetchError::Missing`] when the log does not have the first entry (it was compacted, or never
    /// there), or a suffix was voided while reading; [`FetchError::Corrupt`] when stored bytes are not
    /// those that were written; [`FetchError::Io`] when the medium or redb failed.
    pub fn read(&self, fetch: &Fetch) -> Result<Vec<LogEntry>, FetchError> {
        let mut plan = self.plan(fetch)?;
        for _ in 0..PLANS_MAX {
            let read = self.read_plan(fetch, &plan);
            let again = self.plan(fetch)?;
            let is_same = again.sources == plan.sources;
            match read {
                Ok(entries) if entries.is_empty() || again.stamp != plan.stamp => {
                    return Err(FetchError::Missing);
                }
                Ok(entries) => return Ok(entries),
                Err(ReadError::Damaged { first, last }) if is_same => {
                    return Err(FetchError::Corrupt { first, last });
                }
                Err(ReadError::Failed(error)) if is_same => return Err(self.classify(fetch, &error)),
                Err(_) => plan = again,
            }
        }
        Err(FetchError::Missing)
    }

    fn plan(&self, fetch: &Fetch) -> Result<ReadPlan, FetchError> {
        let index = self.index.lock();
        let log = index.groups.get(&fetch.group).ok_or(FetchError::Missing)?;
        let plan = match fetch.from {
            FetchFrom::Index(from) => log.plan_by_index(from, fetch.to, fetch.bytes_max),
            FetchFrom::Offset(from) => log.plan_by_offset(from, fetch.to, fetch.bytes_max),
            FetchFrom::Newest { bytes } => log.plan_newest(bytes, fetch.to, fetch.bytes_max),
        };
        plan.filter(|plan| !plan.sources.is_empty()).ok_or(FetchError::Missing)
    }

    fn read_plan(&self, fetch: &Fetch, plan: &ReadPlan) -> Result<Vec<LogEntry>, ReadError> {
        let mut reading = Reading { fetch, start: plan.start, entries: Vec::new(), bytes: 0, is_full: false };
        let is_cold = |source: &Source| matches!(source, Source::Log(_));
        let (cold, hot) = plan.sources.split_at(plan.sources.partition_point(is_cold));
        let cold =
            cold.iter().filter_map(|source| if let Source::Log(span) = source { Some(span) } else { None });
        let mut failure = None;
        let looked = self.log.look_at(fetch.group, cold, |span, bytes| {
            let taken =
                bytes.map(Bytes::from).and_then(|bytes| self.take_cold(&mut reading, fetch, span, &bytes));
            if taken.is_none() {
                failure = Some(ReadError::Damaged { first: span.first, last: span.last });
            }
            failure.is_none() && !reading.is_full
        });
        if let Some(failure) = failure {
            return Err(failure);
        }
        looked.map_err(ReadError::Failed)?;
        let hot: Vec<&Span> = hot
            .iter()
            .filter_map(|source| if let Source::Journal(span) = source { Some(span) } else { None })
            .collect();
        if reading.is_full || hot.is_empty() {
            return Ok(reading.entries);
        }
        let looked = self.journal.read(|blocks| {
            for span in hot {
                let taken = match read_span(blocks, self.identity, fetch.group, span)? {
                    Ok(entries) => reading.take(entries.into_iter(), span.base),
                    Err(_) => None,
                };
                if taken.is_none() {
                    return Ok(Some(ReadError::Damaged { first: span.first, last: span.last() }));
                }
                if reading.is_full {
                    break;
                }
            }
            Ok(None)
        });
        match looked {
            Ok(None) => Ok(reading.entries),
            Ok(Some(failure)) => Err(failure),
            Err(error) => Err(ReadError::Failed(error)),
        }
    }

    fn take_cold(
        &self,
        reading: &mut Reading<'_>,
        fetch: &Fetch,
        span: &ColdSpan,
        bytes: &Bytes,
    ) -> Option<()> {
        let block = ColdBlock::parse(bytes, self.identity, fetch.group, span).ok()?;
        let data = bytes.slice_ref(block.data);
        reading.take(shared(block.entries(), &data), block.base)
    }

    /// A panic in redb and a failed check of its own both mean that its pages are damaged.
    fn classify(&self, fetch: &Fetch, error: &RedbFailure) -> FetchError {
        tracing::error!(shard = %self.identity.shard, group = %fetch.group, ?error, "reading the log failed");
        match fetch.from {
            FetchFrom::Index(first) if error.is_damage() => FetchError::Corrupt { first, last: fetch.to },
            FetchFrom::Offset(_) | FetchFrom::Newest { .. } if error.is_damage() => {
                FetchError::Corrupt { first: Index(1), last: fetch.to }
            }
            _ => FetchError::Io,
        }
    }
}

/// A fetch while its entries are gathered.
struct Reading<'a> {
    fetch: &'a Fetch,
    /// Where the log begins: blocks may hold older entries.
    start: Index,
    entries: Vec<LogEntry>,
    bytes: usize,
    is_full: bool,
}

impl Reading<'_> {
    /// Takes the wanted ones of contiguous entries, of which the first begins at `base`; `None` if
    /// their content is impossible.
    fn take(&mut self, entries: impl Iterator<Item = LogEntry>, base: Offset) -> Option<()> {
        let mut at = base;
        for entry in entries {
            let end = offset_after(entry.kind, &entry.data, at).ok()?;
            at = end;
            let is_before = match self.fetch.from {
                FetchFrom::Index(from) => entry.index < from,
                FetchFrom::Offset(from) => self.entries.is_empty() && end <= from,
                FetchFrom::Newest { .. } => false,
            };
            let is_known = self.entries.last().is_some_and(|last| entry.index <= last.index);
            if is_before || is_known || entry.index <= self.start {
                continue;
            }
            let bytes = self.bytes.saturating_add(entry.data.len());
            if entry.index > self.fetch.to || (!self.entries.is_empty() && bytes > self.fetch.bytes_max) {
                self.is_full = true;
                break;
            }
            self.bytes = bytes;
            self.entries.push(entry);
        }
        Some(())
    }
}

const _: fn() = || {
    fn is_shareable<T: Send + Sync + Clone>() {}
    is_shareable::<LogReader>();
};
