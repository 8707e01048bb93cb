//! The writer of a shard's journal: passive, one commit a call.

use std::collections::HashMap;
use std::panic::{AssertUnwindSafe, catch_unwind};
use std::sync::Arc;
use std::time::{Duration, Instant};

use iroh_raft_core::{Append, FlushSeq, GroupAppend, GroupId, Index, Offset, Term};
use metrics::{Counter, Histogram};

use crate::block::{self, BLOCK_BYTES_MAX, BLOCK_HEADER_BYTES, Block, ChainEnd, OffsetError, offset_after};
use crate::error::{AppendProblem, Result, StorageError};
use crate::journal::Journal;
use crate::mark::Mark;
use crate::spans::{Span, SpanIndex};

/// What one commit did.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
#[non_exhaustive]
pub struct FlushReport {
    /// Everything up to and including this flush is on stable storage.
    pub last: FlushSeq,
    /// Flushes that the commit made durable.
    pub flushes: usize,
    /// Records in them.
    pub records: u64,
    /// Bytes of the block.
    pub bytes: usize,
    /// Time from the call to the end of the sync.
    pub duration: Duration,
}

/// Makes flushes durable. Owned by one thread, or one task of a simulation.
#[derive(Debug)]
pub struct JournalWriter {
    journal: Arc<Journal>,
    index: Arc<SpanIndex>,
    mark: Mark,
    end: ChainEnd,
    is_fenced: bool,
    /// Reused by every call.
    plan: Plan,
    numbers: Numbers,
}

/// What a batch does to the index, worked out before anything is written.
#[derive(Default, Debug)]
struct Plan {
    /// Base offset of every part, in order.
    bases: Vec<Offset>,
    /// The parts with entries: group, span, offset after it, number of its part.
    spans: Vec<(GroupId, Span, Offset, usize)>,
    /// Where groups stand after the parts so far.
    ends: HashMap<GroupId, (Index, Offset)>,
    records: u64,
}

#[derive(Debug)]
struct Numbers {
    flush_count: Counter,
    flush_us: Histogram,
    flush_records: Histogram,
    flush_bytes: Histogram,
}

impl JournalWriter {
    pub(crate) fn new(
        journal: Arc<Journal>,
        index: Arc<SpanIndex>,
        mark: Mark,
        end: ChainEnd,
    ) -> JournalWriter {
        let shard = journal.identity.shard.to_string();
        let numbers = Numbers {
            flush_count: metrics::counter!("storage_flush_count", "shard" => shard.clone()),
            flush_us: metrics::histogram!("storage_flush_us", "shard" => shard.clone()),
            flush_records: metrics::histogram!("storage_flush_records", "shard" => shard.clone()),
            flush_bytes: metrics::histogram!("storage_flush_bytes", "shard" => shard),
        };
        JournalWriter { journal, index, mark, end, is_fenced: false, plan: Plan::default(), numbers }
    }

    /// Newest flush that is durable.
    #[must_use]
    pub fn last_seq(&self) -> FlushSeq {
        self.end.seq
    }

    /// Makes all these flushes durable in one commit with one sync: all of them or none. Blocks
    /// until the medium has them. An empty batch does nothing.
    ///
    /// # Errors
    /// Any error fences the writer for good: nothing more is written, every later call answers
    /// [`StorageError::Fenced`]. The flushes of the failed call may or may not be found at the next
    /// start.
    pub fn run_once(&mut self, batch: &[Append]) -> Result<FlushReport> {
        if self.is_fenced {
            return Err(StorageError::Fenced { shard: self.journal.identity.shard });
        }
        // Fenced until it is known to have gone well. A panic anywhere below leaves nothing that a
        // fenced writer would look at again.
        self.is_fenced = true;
        let shard = self.journal.identity.shard;
        let report = catch_unwind(AssertUnwindSafe(|| self.flush(batch)))
            .unwrap_or(Err(StorageError::JournalPanicked { shard }))?;
        self.is_fenced = false;
        Ok(report)
    }

    fn flush(&mut self, batch: &[Append]) -> Result<FlushReport> {
        let began = Instant::now();
        let Some(last) = batch.last().map(|append| append.seq) else {
            let duration = Duration::ZERO;
            return Ok(FlushReport { last: self.end.seq, flushes: 0, records: 0, bytes: 0, duration });
        };
        let bytes = block::block_bytes(batch);
        if bytes > BLOCK_BYTES_MAX {
            let problem = AppendProblem::TooLarge { bytes, max: BLOCK_BYTES_MAX };
            return Err(self.invalid(last, GroupId(0), problem));
        }
        self.make_plan(batch, last)?;
        let end = self
            .journal
            .commit(self.end, batch, &self.plan.bases, bytes)
            .map_err(|error| error.running(self.journal.identity))?;
        let duration = began.elapsed();
        self.mark.write(end)?;
        self.end = end;
        self.publish();
        self.numbers.flush_count.increment(1);
        self.numbers.flush_us.record(duration.as_secs_f64() * 1e6);
        self.numbers.flush_records.record(self.plan.records as f64);
        self.numbers.flush_bytes.record(bytes as f64);
        Ok(FlushReport { last, flushes: batch.len(), records: self.plan.records, bytes, duration })
    }

    /// Checks the batch against the log and works out what it does to the index.
    fn make_plan(&mut self, batch: &[Append], block: FlushSeq) -> Result<()> {
        let mut plan = std::mem::take(&mut self.plan);
        plan.bases.clear();
        plan.spans.clear();
        plan.ends.clear();
        plan.records = 0;
        let mut position = BLOCK_HEADER_BYTES;
        for (append, due) in batch.iter().zip(self.end.seq.0 + 1..) {
            if append.seq.0 != due {
                let problem = AppendProblem::Sequence { expected: FlushSeq(due) };
                return Err(self.invalid(append.seq, GroupId(0), problem));
            }
            for part in &append.groups {
                self.plan_part(&mut plan, batch, part, position, block)
                    .map_err(|error| error.into_storage(self, append.seq, part.group))?;
                position += block::part_bytes(part);
            }
        }
        self.plan = plan;
        Ok(())
    }

    fn plan_part(
        &self,
        plan: &mut Plan,
        batch: &[Append],
        part: &GroupAppend,
        position: usize,
        block: FlushSeq,
    ) -> Result<(), PlanError> {
        let (last, next_offset) = plan.ends.get(&part.group).copied().unwrap_or_else(|| {
            let groups = self.index.lock();
            groups.get(&part.group).map(|spans| (spans.last(), spans.next_offset())).unwrap_or_default()
        });
        let number = plan.bases.len();
        let Some(first) = part.entries.first().map(|entry| entry.index) else {
            plan.bases.push(next_offset);
            return Ok(());
        };
        if first.0 == 0 || first > last.next() {
            return Err(AppendProblem::Gap { found: first, expected: last.next() }.into());
        }
        let base = if first > last { next_offset } else { self.offset_at(plan, batch, part.group, first)? };
        let end = check_entries(part, base)?;
        let data_bytes: usize = part.entries.iter().map(|entry| entry.data.len()).sum();
        let span = Span {
            first,
            base,
            block,
            // Both fit: the block is below 1 GiB.
            position: position as u32,
            count: part.entries.len() as u32,
            data_bytes: data_bytes as u32,
        };
        plan.bases.push(base);
        plan.spans.push((part.group, span, end, number));
        plan.ends.insert(part.group, (span.last(), end));
        plan.records += end.0 - base.0;
        Ok(())
    }

    /// Offset at which the entry `index`, which the log has, begins: for a suffix that replaces it.
    fn offset_at(
        &self,
        plan: &Plan,
        batch: &[Append],
        group: GroupId,
        index: Index,
    ) -> Result<Offset, PlanError> {
        let planned = plan.spans.iter().rev().find(|(of, span, ..)| *of == group && span.first <= index);
        if let Some((_, span, _, number)) = planned {
            let part = batch.iter().flat_map(|append| &append.groups).nth(*number);
            let entries = part.map(|part| part.entries.as_slice()).unwrap_or_default();
            let before = entries.iter().take_while(|entry| entry.index < index);
            return before
                .map(|entry| (entry.kind, &entry.data[..]))
                .try_fold(span.base, |at, (kind, data)| offset_after(kind, data, at))
                .map_err(|_| AppendProblem::NotABatch { index }.into());
        }
        let span = self.index.lock().get(&group).and_then(|spans| spans.span_of(index));
        let span = span.ok_or(AppendProblem::Gap { found: index, expected: Index(0) })?;
        if span.first == index {
            return Ok(span.base);
        }
        self.stored_offset_at(span, index)
    }

    fn stored_offset_at(&self, span: Span, index: Index) -> Result<Offset, PlanError> {
        let mut found = None;
        self.journal
            .look_at(std::iter::once(span.block), |_, bytes| {
                found = bytes.and_then(|bytes| {
                    let part =
                        Block::parse(bytes, self.journal.identity).ok()?.part_at(span.position).ok()?;
                    part.entries()
                        .take_while(|entry| entry.index < index)
                        .try_fold(span.base, |at, entry| offset_after(entry.kind, entry.data, at).ok())
                });
                true
            })
            .map_err(|error| PlanError::Storage(error.running(self.journal.identity)))?;
        found.ok_or_else(|| {
            PlanError::Storage(StorageError::Corrupt {
                shard: self.journal.identity.shard,
                at: span.block,
                damage: crate::block::BlockError::Checksum,
                affected: Vec::new(),
            })
        })
    }

    /// Shows what is durable now to the readers.
    fn publish(&mut self) {
        let mut groups = self.index.lock();
        for (group, span, end, _) in &self.plan.spans {
            groups.entry(*group).or_default().append(*span, *end);
        }
    }

    fn invalid(&self, seq: FlushSeq, group: GroupId, problem: AppendProblem) -> StorageError {
        StorageError::InvalidAppend { shard: self.journal.identity.shard, seq, group, problem }
    }
}

/// Checks a part's entries among themselves; returns the offset after them.
fn check_entries(part: &GroupAppend, base: Offset) -> Result<Offset, AppendProblem> {
    let mut end = base;
    let mut newest = Term(0);
    let first = part.entries.first().map_or(0, |entry| entry.index.0);
    for (entry, due) in part.entries.iter().zip(first..) {
        let index = entry.index;
        if index.0 != due {
            return Err(AppendProblem::Gap { found: index, expected: Index(due) });
        }
        if entry.term < newest {
            return Err(AppendProblem::Term { index });
        }
        newest = entry.term;
        end = offset_after(entry.kind, &entry.data, end).map_err(|error| match error {
            OffsetError::NotABatch => AppendProblem::NotABatch { index },
            OffsetError::Base(found) => AppendProblem::Offset { index, found, expected: end },
        })?;
    }
    Ok(end)
}

enum PlanError {
    Problem(AppendProblem),
    Storage(StorageError),
}

impl From<AppendProblem> for PlanError {
    fn from(problem: AppendProblem) -> PlanError {
        PlanError::Problem(problem)
    }
}

impl PlanError {
    fn into_storage(self, writer: &JournalWriter, seq: FlushSeq, group: GroupId) -> StorageError {
        match self {
            PlanError::Problem(problem) => writer.invalid(seq, group, problem),
            PlanError::Storage(error) => error,
        }
    }
}
