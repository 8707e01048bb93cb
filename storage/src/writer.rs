//! The writer of a shard's journal: passive, one commit a call.

use std::collections::{HashMap, VecDeque};
use std::panic::{AssertUnwindSafe, catch_unwind};
use std::sync::Arc;
use std::time::{Duration, Instant};

use iroh_raft_core::mutants::{self, Mutant};
use iroh_raft_core::{Append, FlushSeq, GroupAppend, GroupId, Index, LogChange, LogStart, Offset, Term};
use smallvec::SmallVec;

use crate::block::{
    self, BLOCK_BYTES_MAX, BLOCK_HEADER_BYTES, ChainEnd, NewBlock, NewPart, OffsetError, PartPlace,
    offset_after,
};
use crate::error::{AppendProblem, Result, StorageError};
use crate::group_log::Span;
use crate::index::{Index as ShardIndex, JournalBlock, SharedIndex};
use crate::journal::Journal;
use crate::mark::Mark;
use crate::numbers::WriterNumbers;
use crate::space::Space;
use crate::span_read::{ReadSpanError, read_span};

/// Bytes of the buffer for a block's directory that are kept from flush to flush.
const DIRECTORY_KEPT_BYTES: usize = 64 << 10;
/// Parts, and what is known of each, that memory is kept for from flush to flush.
const PARTS_KEPT: usize = 1024;
/// Parts of a block that are listed without a buffer.
const PARTS_IN_PLACE: usize = 16;
/// Void blocks that are removed together when they are small: they share pages.
const SMALL_VOID_BLOCKS: usize = 64;
/// A block below this shares its page with others.
const SMALL_BLOCK_BYTES: u32 = 4096;

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
    /// Whether there is enough in the journal that the mover should run now.
    pub is_move_due: bool,
    /// Whether the journal has reached its bound: the mover has to run before the next flush.
    pub is_full: bool,
    /// Whether the medium has less room than it should: new work is to be refused until it has more.
    pub is_space_low: bool,
}

/// Groups that share the bytes of one move as they are set: 64 KiB for each, by default.
const GROUPS_A_MOVE: u64 = 128;

/// Sizes that writer and mover go by.
#[derive(Clone, Copy, Debug)]
pub(crate) struct Bounds {
    pub(crate) journal_bytes_max: u64,
    pub(crate) move_bytes: u64,
}

/// Makes flushes durable. Owned by one thread, or one task of a simulation.
#[derive(Debug)]
pub struct JournalWriter {
    journal: Arc<Journal>,
    index: Arc<SharedIndex>,
    mark: Mark,
    end: ChainEnd,
    bounds: Bounds,
    space: Space,
    is_fenced: bool,
    /// Blocks that nobody needs and that are still in the file.
    void: VecDeque<JournalBlock>,
    /// These three are reused by every call.
    directory: Vec<u8>,
    plan: Plan,
    places: Vec<PartPlace>,
    numbers: WriterNumbers,
}

/// What a flush does to the index, worked out before anything is written.
#[derive(Default, Debug)]
struct Plan {
    /// Base offset of every part, in order.
    bases: Vec<Offset>,
    /// The parts with entries.
    spans: Vec<PlannedSpan>,
    /// Where groups stand after the parts so far.
    ends: HashMap<GroupId, GroupEnd>,
    records: u64,
}

#[derive(Clone, Copy, Debug)]
struct PlannedSpan {
    group: GroupId,
    /// Number of its part among those of the batch.
    number: usize,
    /// Placed in the block once all parts are known.
    span: Span,
    end: Offset,
}

#[derive(Clone, Copy, Debug)]
struct GroupEnd {
    last: Index,
    next_offset: Offset,
    /// Nothing up to here may be voided: it is moved, or compacted.
    floor: Index,
    commit: Index,
}

impl JournalWriter {
    pub(crate) fn new(
        journal: Arc<Journal>,
        index: Arc<SharedIndex>,
        mark: Mark,
        end: ChainEnd,
        bounds: Bounds,
        space: Space,
    ) -> JournalWriter {
        let numbers = WriterNumbers::new(journal.identity.shard);
        let void = VecDeque::new();
        JournalWriter {
            journal,
            index,
            mark,
            end,
            bounds,
            space,
            is_fenced: false,
            void,
            directory: Vec::new(),
            plan: Plan::default(),
            places: Vec::new(),
            numbers,
        }
    }

    /// Newest flush that is durable.
    #[must_use]
    pub fn last_seq(&self) -> FlushSeq {
        self.end.seq
    }

    /// Makes all these flushes durable in one commit with one sync: all of them or none. Blocks
    /// until the medium has them. An empty batch writes nothing and answers how things stand.
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
            .unwrap_or(Err(StorageError::JournalPanicked { shard }));
        let report = match report {
            Err(_) if mutants::is(Mutant::FailureIgnored) => self.pretend(batch),
            report => report?,
        };
        self.is_fenced = false;
        Ok(report)
    }

    /// Whether the mover has to run before the next flush.
    #[must_use]
    pub fn is_full(&self) -> bool {
        self.bounds.is_full(&self.index.lock())
    }

    fn flush(&mut self, batch: &[Append]) -> Result<FlushReport> {
        let began = Instant::now();
        let Some(last) = batch.last().map(|append| append.seq) else {
            let index = self.index.lock();
            return Ok(FlushReport {
                last: self.end.seq,
                flushes: 0,
                records: 0,
                bytes: 0,
                duration: Duration::ZERO,
                is_move_due: self.bounds.is_move_due(&index),
                is_full: self.bounds.is_full(&index),
                is_space_low: self.space.look(),
            });
        };
        let (oldest, carried) = self.take_carried()?;
        let mut plan = std::mem::take(&mut self.plan);
        self.plan(&mut plan, batch)?;
        let carried_parts = carried.iter().map(|carried| NewPart {
            append: &carried.append,
            base: carried.base,
            is_carried: true,
        });
        let new_parts = batch.iter().flat_map(|append| &append.groups).zip(&plan.bases);
        let new_parts = new_parts.map(|(append, base)| NewPart { append, base: *base, is_carried: false });
        let parts: SmallVec<[NewPart<'_>; PARTS_IN_PLACE]> = carried_parts.chain(new_parts).collect();
        let block =
            NewBlock { identity: self.journal.identity, previous: self.end, last, oldest, parts: &parts };
        let bytes = block.directory_bytes() + block.data_bytes();
        if bytes > BLOCK_BYTES_MAX {
            let problem = AppendProblem::TooLarge { bytes, max: BLOCK_BYTES_MAX };
            return Err(self.invalid(last, GroupId(0), problem));
        }
        let mut places = std::mem::take(&mut self.places);
        find_places(&block, &mut places);
        for planned in &mut plan.spans {
            (planned.span.block, planned.span.place) = (last, places[carried.len() + planned.number]);
        }
        let end = block.encode_directory(&mut self.directory);
        let void = self.take_void();
        self.journal
            .commit(&block, &self.directory, &void)
            .map_err(|error| error.running(self.journal.identity.shard))?;
        let duration = began.elapsed();
        self.mark.write(end)?;
        self.end = end;
        let carried =
            carried.iter().zip(&places).map(|(carried, place)| carried.span(last, *place)).collect();
        let new = JournalBlock { end, bytes: bytes as u32 };
        let (is_move_due, is_full) = self.publish(new, oldest, carried, batch, &plan.spans);
        let unmoved_bytes = self.index.lock().unmoved_bytes;
        self.numbers.flushed(duration, plan.records, bytes, unmoved_bytes);
        let (flushes, records) = (batch.len(), plan.records);
        self.keep_buffers(plan, places);
        // What is flushed is written once more when it moves.
        let is_space_low = self.space.after_write(2 * bytes as u64);
        Ok(FlushReport { last, flushes, records, bytes, duration, is_move_due, is_full, is_space_low })
    }

    /// Empties the buffers for the next flush. Only one of thousands of groups needs more than is kept.
    fn keep_buffers(&mut self, mut plan: Plan, mut places: Vec<PartPlace>) {
        self.directory.clear();
        self.directory.shrink_to(DIRECTORY_KEPT_BYTES);
        plan.bases.clear();
        plan.bases.shrink_to(PARTS_KEPT);
        plan.spans.clear();
        plan.spans.shrink_to(PARTS_KEPT);
        plan.ends.clear();
        plan.ends.shrink_to(PARTS_KEPT);
        plan.records = 0;
        places.clear();
        places.shrink_to(PARTS_KEPT);
        (self.plan, self.places) = (plan, places);
    }

    /// What a flush would have reported.
    fn pretend(&self, batch: &[Append]) -> FlushReport {
        let duration = Duration::ZERO;
        let last = batch.last().map_or(self.end.seq, |append| append.seq);
        let (flushes, is_move_due, is_full, is_space_low) = (batch.len(), false, false, false);
        FlushReport { last, flushes, records: 0, bytes: 0, duration, is_move_due, is_full, is_space_low }
    }

    /// The first flush that is needed from now on, and what of the blocks before it has to go on
    /// living: entries that were not committed when the rest was moved.
    fn take_carried(&mut self) -> Result<(FlushSeq, Vec<Carried>)> {
        let mut wanted = Vec::new();
        let moved = {
            let mut index = self.index.lock();
            let moved = index.moved.seq;
            for group in std::mem::take(&mut index.left) {
                let Some(log) = index.groups.get(&group) else { continue };
                let spans: Vec<Span> = log.hot_up_to(moved).copied().collect();
                if !spans.is_empty() {
                    wanted.push((group, spans));
                }
            }
            moved
        };
        if wanted.is_empty() || mutants::is(Mutant::CarryForgotten) {
            return Ok((FlushSeq(moved.0 + 1), Vec::new()));
        }
        let identity = self.journal.identity;
        let read = self.journal.read(|blocks| {
            let mut carried = Vec::with_capacity(wanted.len());
            for (group, spans) in &wanted {
                let mut entries = Vec::new();
                for span in spans {
                    match read_span(blocks, identity, *group, span)? {
                        Ok(found) => entries.extend(found),
                        Err(error) => return Ok(Err(error)),
                    }
                }
                let base = spans.first().map_or(Offset(0), |span| span.base);
                let append = GroupAppend {
                    group: *group,
                    change: None,
                    hard_state: None,
                    conf_state: None,
                    meta: None,
                    under_repair: None,
                    joined_at: None,
                    entries,
                };
                carried.push(Carried { append, base });
            }
            Ok(Ok(carried))
        });
        match read.map_err(|error| error.running(identity.shard))? {
            Ok(carried) => Ok((FlushSeq(moved.0 + 1), carried)),
            Err(ReadSpanError { at, damage, affected }) => {
                Err(StorageError::Corrupt { shard: identity.shard, at, damage, affected: vec![affected] })
            }
        }
    }

    /// Checks the batch against the log and works out what it does to the index.
    fn plan(&self, plan: &mut Plan, batch: &[Append]) -> Result<()> {
        let index = self.index.lock();
        for (append, due) in batch.iter().zip(self.end.seq.0 + 1..) {
            if append.seq.0 != due {
                let problem = AppendProblem::Sequence { expected: FlushSeq(due) };
                return Err(self.invalid(append.seq, GroupId(0), problem));
            }
            for part in &append.groups {
                self.plan_part(&index, plan, batch, part)
                    .map_err(|error| error.into_storage(self, append.seq, part.group))?;
            }
        }
        Ok(())
    }

    fn plan_part(
        &self,
        index: &ShardIndex,
        plan: &mut Plan,
        batch: &[Append],
        part: &GroupAppend,
    ) -> Result<(), PlanError> {
        let mut end = plan.ends.get(&part.group).copied().unwrap_or_else(|| GroupEnd::of(index, part.group));
        let commit = part.hard_state.map_or(Index(0), |hard_state| hard_state.commit);
        if let Some(change) = part.change {
            if let LogChange::CutAfter(place) = change
                && !index.groups.get(&part.group).is_some_and(|log| log.may_end_at(place))
            {
                return Err(AppendProblem::Cut { index: place.index }.into());
            }
            end.change(change, commit, part.under_repair == Some(true))?;
        }
        end.commit = end.commit.max(commit);
        let number = plan.bases.len();
        let base = match part.entries.first().map(|entry| entry.index) {
            None => end.next_offset,
            Some(first) => {
                if first.0 == 0 || first > end.last.next() {
                    let expected = end.last.next();
                    return Err(AppendProblem::Gap { found: first, expected }.into());
                }
                if first <= end.floor {
                    return Err(AppendProblem::Committed { index: first, floor: end.floor }.into());
                }
                let is_next = first > end.last;
                let base = if is_next {
                    end.next_offset
                } else {
                    self.offset_at(index, plan, batch, part.group, first)?
                };
                let after = check_entries(part, base)?;
                let span = Span {
                    first,
                    base,
                    block: FlushSeq(0),
                    place: PartPlace { position: 0, data_position: 0 },
                    // Both fit: a block is below 1 GiB, which is checked before anything is written.
                    count: part.entries.len() as u32,
                    data_bytes: block::data_bytes(part) as u32,
                };
                plan.spans.push(PlannedSpan { group: part.group, number, span, end: after });
                plan.records += after.0 - base.0;
                (end.last, end.next_offset) = (span.last(), after);
                base
            }
        };
        plan.bases.push(base);
        plan.ends.insert(part.group, end);
        Ok(())
    }

    /// Offset at which the entry `index`, which the log has, begins: for a suffix that replaces it.
    fn offset_at(
        &self,
        index: &ShardIndex,
        plan: &Plan,
        batch: &[Append],
        group: GroupId,
        at: Index,
    ) -> Result<Offset, PlanError> {
        let planned =
            plan.spans.iter().rev().find(|planned| planned.group == group && planned.span.first <= at);
        if let Some(planned) = planned {
            let part = batch.iter().flat_map(|append| &append.groups).nth(planned.number);
            let entries = part.map(|part| part.entries.as_slice()).unwrap_or_default();
            let before = entries.iter().take_while(|entry| entry.index < at);
            return before
                .map(|entry| (entry.kind, &entry.data[..]))
                .try_fold(planned.span.base, |offset, (kind, data)| offset_after(kind, data, offset))
                .map_err(|_| AppendProblem::NotABatch { index: at }.into());
        }
        let span = index.groups.get(&group).and_then(|log| log.hot_span_of(at));
        let span = span.ok_or(AppendProblem::Gap { found: at, expected: Index(0) })?;
        if span.first == at {
            return Ok(span.base);
        }
        let identity = self.journal.identity;
        let entries = self
            .journal
            .read(|blocks| read_span(blocks, identity, group, &span))
            .map_err(|error| PlanError::Storage(error.running(identity.shard)))?;
        let entries = entries.map_err(|ReadSpanError { at, damage, affected }| {
            PlanError::Storage(StorageError::Corrupt {
                shard: identity.shard,
                at,
                damage,
                affected: vec![affected],
            })
        })?;
        let mut before = entries.iter().take_while(|entry| entry.index < at);
        before
            .try_fold(span.base, |offset, entry| offset_after(entry.kind, &entry.data, offset))
            .map_err(|_| AppendProblem::NotABatch { index: at }.into())
    }

    /// Void blocks to remove with this flush: more than it adds, and few enough not to be felt.
    fn take_void(&mut self) -> SmallVec<[JournalBlock; 2]> {
        let is_small = self.void.front().is_some_and(|block| block.bytes < SMALL_BLOCK_BYTES);
        let count = match is_small {
            true if self.void.len() >= SMALL_VOID_BLOCKS => SMALL_VOID_BLOCKS,
            true => 0,
            false => self.void.len().min(2),
        };
        self.void.drain(..count).collect()
    }

    /// Shows what is durable now to mover and readers. Says whether a move is due, and whether it
    /// cannot wait.
    fn publish(
        &mut self,
        block: JournalBlock,
        oldest: FlushSeq,
        carried: Vec<(GroupId, Span)>,
        batch: &[Append],
        spans: &[PlannedSpan],
    ) -> (bool, bool) {
        let mut index = self.index.lock();
        self.void.extend(index.add_block(block, oldest));
        for (group, span) in carried {
            index.group(group).replace_carried(span);
        }
        let mut spans = spans.iter().peekable();
        for (number, part) in batch.iter().flat_map(|append| &append.groups).enumerate() {
            if let Some(change) = part.change {
                index.change(part.group, change, block.end.seq);
                if change == LogChange::Remove && is_nothing_else(part) {
                    continue;
                }
            }
            let log = index.group(part.group);
            if let Some(planned) = spans.next_if(|planned| planned.number == number) {
                log.append(planned.span, planned.end);
            }
            if let Some(hard_state) = part.hard_state {
                log.hard_state = hard_state;
            }
            if let Some(conf_state) = &part.conf_state {
                log.conf_state.clone_from(conf_state);
            }
            if let Some(meta) = &part.meta {
                log.meta.clone_from(meta);
            }
            log.is_under_repair = part.under_repair.unwrap_or(log.is_under_repair);
            log.joined_at = part.joined_at.unwrap_or(log.joined_at);
        }
        index.flushed_bytes += u64::from(block.bytes);
        (self.bounds.is_move_due(&index), self.bounds.is_full(&index))
    }

    fn invalid(&self, seq: FlushSeq, group: GroupId, problem: AppendProblem) -> StorageError {
        StorageError::InvalidAppend { shard: self.journal.identity.shard, seq, group, problem }
    }
}

/// Entries that go from void blocks into a new one.
#[derive(Debug)]
struct Carried {
    append: GroupAppend,
    base: Offset,
}

impl Carried {
    fn span(&self, block: FlushSeq, place: PartPlace) -> (GroupId, Span) {
        let span = Span {
            first: self.append.entries.first().map_or(Index(0), |entry| entry.index),
            base: self.base,
            block,
            place,
            count: self.append.entries.len() as u32,
            data_bytes: block::data_bytes(&self.append) as u32,
        };
        (self.append.group, span)
    }
}

/// Where the parts of a block stand.
fn find_places(block: &NewBlock<'_>, places: &mut Vec<PartPlace>) {
    let mut at = (BLOCK_HEADER_BYTES, block.directory_bytes());
    let place = |part: &NewPart<'_>| {
        // They fit: a block is below 1 GiB.
        let place = PartPlace { position: at.0 as u32, data_position: at.1 as u32 };
        at.0 += block::part_bytes(part.append);
        at.1 += block::data_bytes(part.append);
        place
    };
    places.extend(block.parts.iter().map(place));
}

impl Bounds {
    /// Bytes that one move takes: more with many groups, so that each of them gets a block worth its row in
    /// the index, which every start reads.
    pub(crate) fn one_move(self, index: &ShardIndex) -> u64 {
        let times = (index.groups.len() as u64 / GROUPS_A_MOVE).max(1);
        let most = (self.journal_bytes_max / 2).max(self.move_bytes);
        self.move_bytes.saturating_mul(times).min(most)
    }

    pub(crate) fn is_move_due(self, index: &ShardIndex) -> bool {
        index.unmoved_bytes >= self.one_move(index).max(index.move_after_bytes)
    }

    pub(crate) fn is_full(self, index: &ShardIndex) -> bool {
        // A journal that no move can make shorter is no reason to stop.
        index.unmoved_bytes >= self.journal_bytes_max.max(index.move_after_bytes)
    }
}

impl GroupEnd {
    fn of(index: &ShardIndex, group: GroupId) -> GroupEnd {
        index.groups.get(&group).map_or(
            GroupEnd { last: Index(0), next_offset: Offset(0), floor: Index(0), commit: Index(0) },
            |log| GroupEnd {
                last: log.last(),
                next_offset: log.next_offset(),
                floor: log.moved().max(log.start().index),
                commit: log.hard_state.commit,
            },
        )
    }

    /// `commit` is what the same part says; `is_repair`: a repair begins, which may void what was committed.
    fn change(&mut self, change: LogChange, commit: Index, is_repair: bool) -> Result<(), AppendProblem> {
        match change {
            LogChange::CompactTo(LogStart { index, offset, .. }) => {
                let commit = self.commit.max(commit).min(self.last);
                if index > commit {
                    return Err(AppendProblem::Compaction { index, commit });
                }
                if offset > self.next_offset || (index == self.last && offset != self.next_offset) {
                    return Err(AppendProblem::Offset { index, found: offset, expected: self.next_offset });
                }
                self.floor = self.floor.max(index);
            }
            LogChange::StartAfter(LogStart { index, offset, .. }) => {
                let floor = self.floor.max(self.commit);
                if index < floor && !is_repair {
                    return Err(AppendProblem::Committed { index, floor });
                }
                (self.last, self.next_offset, self.floor) = (index, offset, index);
                self.commit = self.commit.min(index);
            }
            LogChange::CutAfter(LogStart { index, offset, .. }) => {
                if !is_repair {
                    return Err(AppendProblem::Cut { index });
                }
                (self.last, self.next_offset) = (index, offset);
                (self.floor, self.commit) = (self.floor.min(index), self.commit.min(index));
            }
            LogChange::Remove => {
                let zero = Index(0);
                *self = GroupEnd { last: zero, next_offset: Offset(0), floor: zero, commit: zero };
            }
        }
        Ok(())
    }
}

/// Whether a part says nothing besides its change.
fn is_nothing_else(part: &GroupAppend) -> bool {
    part.hard_state.is_none()
        && part.conf_state.is_none()
        && part.meta.is_none()
        && part.under_repair.is_none()
        && part.joined_at.is_none()
        && part.entries.is_empty()
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
