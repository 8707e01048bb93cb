//! Moves committed entries from the journal to the log file: passive, one commit a call.
//!
//! A move takes the oldest blocks of the journal, gathers what each group has committed in them into
//! large blocks of one group, and makes these durable with one commit. Only then may the writer void
//! the journal's blocks; a crash between leaves both, and recovery keeps one. What was compacted
//! before it moved never moves. The writer goes on meanwhile and is never waited for.

use std::collections::{BTreeMap, BTreeSet, HashMap};
use std::panic::{AssertUnwindSafe, catch_unwind};
use std::sync::Arc;
use std::time::{Duration, Instant};

use iroh_raft_core::mutants::{self, Mutant};
use iroh_raft_core::{FlushSeq, GroupId, Index, Offset, ShardId};
use smallvec::SmallVec;

use crate::block::{Block, BlockError, ChainEnd, EntryRows, offset_after};
use crate::cold_block::{GroupRow, NewColdBlock};
use crate::error::{AffectedRange, Result, StorageError};
use crate::group_log::{ColdSpan, Span};
use crate::index::{Reset, SharedIndex};
use crate::journal::{Blocks, Journal, RawBlock};
use crate::log_file::{Garbage, LogFile, MovedGroup};
use crate::numbers::MoverNumbers;
use crate::redb_file::RedbFailure;
use crate::rows::stored_bytes;
use crate::writer::Bounds;

/// A block of the log file is closed once it holds this: with header and rows, 256 KiB and a little.
const BLOCK_DATA_BYTES: usize = 252 << 10;
/// Compacted blocks that are removed with a move, beside as many bytes as it adds.
const GARBAGE_BYTES: u64 = 16 << 20;
/// Readings of one move. A flush carries on what the move before left behind once, so that a second
/// reading sees it; another flush may have been on its way with what was left before that.
const TRIES_MAX: u32 = 4;

/// What one move did.
#[derive(Clone, Copy, PartialEq, Eq, Default, Debug)]
#[non_exhaustive]
pub struct MoveReport {
    /// Blocks of the journal that were moved.
    pub blocks: usize,
    /// Entries that stand in the log file now.
    pub entries: u64,
    /// Bytes written for them.
    pub bytes: u64,
    /// Blocks of the log file that were removed: they had been compacted away.
    pub removed: usize,
    /// Time that it took.
    pub duration: Duration,
    /// Whether another move is due at once.
    pub is_more: bool,
}

/// Moves a shard's committed entries to its log file. Owned by one thread, or one task of a
/// simulation.
#[derive(Debug)]
pub struct Mover {
    journal: Arc<Journal>,
    log: Arc<LogFile>,
    index: Arc<SharedIndex>,
    bounds: Bounds,
    is_fenced: bool,
    numbers: MoverNumbers,
}

/// What is going to be moved of a group.
#[derive(Debug)]
struct Wanted {
    group: GroupId,
    incarnation: u64,
    row: GroupRow,
    /// Last index that is moved; `row` may say more.
    moved: Index,
    /// From the first entry that is not moved.
    spans: Vec<Span>,
    /// Last index to move; below the first span if nothing of it may move yet.
    to: Index,
    /// Bytes of entries that stay behind.
    left_bytes: u64,
}

/// A read of the journal that found damage.
#[derive(Clone, Copy, Debug)]
struct Damage {
    at: FlushSeq,
    error: BlockError,
    affected: Option<AffectedRange>,
}

impl Mover {
    pub(crate) fn new(
        journal: Arc<Journal>,
        log: Arc<LogFile>,
        index: Arc<SharedIndex>,
        bounds: Bounds,
    ) -> Mover {
        let numbers = MoverNumbers::new(journal.identity.shard);
        Mover { journal, log, index, bounds, is_fenced: false, numbers }
    }

    /// Whether there is enough in the journal that a move should be made now.
    #[must_use]
    pub fn is_due(&self) -> bool {
        let index = self.index.lock();
        self.bounds.is_move_due(&index) || self.bounds.is_full(&index)
    }

    /// Moves the oldest blocks of the journal, about as many bytes as one move takes, and removes
    /// compacted blocks of the log file. Does nothing when there is nothing to do. Blocks on the disk.
    ///
    /// # Errors
    /// Any error fences the mover for good: the journal can no longer be kept within its bound, so
    /// the shard has to stop. Nothing is lost by it.
    pub fn run_once(&mut self) -> Result<MoveReport> {
        let shard = self.journal.identity.shard;
        if self.is_fenced {
            return Err(StorageError::Fenced { shard });
        }
        self.is_fenced = true;
        let report = catch_unwind(AssertUnwindSafe(|| self.run()))
            .unwrap_or(Err(StorageError::JournalPanicked { shard }))?;
        self.is_fenced = false;
        Ok(report)
    }

    /// Removes everything that was compacted away from the log file and gives the space back to the
    /// file system. Rewrites what is stored behind it: slow, and the log file is not read meanwhile.
    /// Returns whether the file became shorter.
    ///
    /// # Errors
    /// As [`run_once`](Mover::run_once).
    pub fn compact(&mut self) -> Result<bool> {
        while !self.index.lock().compacted.is_empty() {
            self.run_once()?;
        }
        let shard = self.journal.identity.shard;
        if self.is_fenced {
            return Err(StorageError::Fenced { shard });
        }
        let compacted = self.log.file.compact();
        self.is_fenced = compacted.is_err();
        compacted.map_err(|error| error.running(shard))
    }

    fn run(&mut self) -> Result<MoveReport> {
        let began = Instant::now();
        let shard = self.journal.identity.shard;
        let (moved_before, keys) = self.choose();
        if keys.is_empty() && self.index.lock().compacted.is_empty() {
            return Ok(MoveReport::default());
        }
        let mut tries = 0;
        let mut report = loop {
            tries += 1;
            match self.try_move(moved_before, &keys)? {
                Ok(report) => break report,
                // What the last move left behind was carried into a block that this read is too old
                // to see. Nothing was written yet.
                Err(damage) if damage.error == BlockError::Chain && tries < TRIES_MAX => {}
                Err(damage) => return Err(damage.into_storage(shard)),
            }
        };
        report.blocks = keys.len();
        report.duration = began.elapsed();
        self.numbers.moved(report.duration, report.bytes);
        let (log_bytes, flushed_bytes) = {
            let index = self.index.lock();
            (index.log_bytes, index.flushed_bytes)
        };
        self.numbers.stand(&self.journal, &self.log, log_bytes, flushed_bytes);
        Ok(report)
    }

    /// One reading of the chosen blocks, and the commit of what they hold.
    fn try_move(&self, moved_before: ChainEnd, keys: &[FlushSeq]) -> Result<Result<MoveReport, Damage>> {
        let shard = self.journal.identity.shard;
        let journal = self.journal.clone();
        let moved = journal.read(|blocks| {
            let mut source = match SourceBlocks::load(blocks, &journal, keys)? {
                Ok(source) => source,
                Err(damage) => return Ok(Err(damage)),
            };
            let moved = source.newest.unwrap_or(moved_before);
            let wanted = self.want(&source.groups, moved);
            if let Err(damage) = source.load_rest(blocks, &journal, &wanted)? {
                return Ok(Err(damage));
            }
            Ok(source.gather(&wanted).map(|groups| self.commit(moved, wanted, &groups)))
        });
        match moved.map_err(|error| error.running(shard))? {
            Ok(report) => Ok(Ok(report.map_err(|error| error.running(shard))?)),
            Err(damage) => Ok(Err(damage)),
        }
    }

    /// The oldest blocks that are not moved, about as many bytes as one move takes. They end before the first entry that
    /// is not committed, if that leaves half a move: what is left behind is written to the journal once more. If it does
    /// not, a move that became due waits for more, as long as the journal is not half full.
    fn choose(&self) -> (ChainEnd, Vec<FlushSeq>) {
        let mut index = self.index.lock();
        let bytes_max = self.bounds.one_move(&index);
        let wait_until = self.bounds.journal_bytes_max / 2;
        let may_wait = self.bounds.is_move_due(&index) && index.unmoved_bytes < wait_until;
        let choose_before = |end: FlushSeq| {
            let mut bytes = 0;
            let unmoved = index.blocks.iter().filter(|block| block.end.seq > index.moved.seq);
            let chosen = unmoved.take_while(|block| {
                let is_taken = block.end.seq < end && bytes < bytes_max;
                bytes += if is_taken { stored_bytes(block.bytes as usize) } else { 0 };
                is_taken
            });
            let keys: Vec<FlushSeq> = chosen.map(|block| block.end.seq).collect();
            (keys, bytes)
        };
        let (keys, bytes) = choose_before(index.settled_before());
        if !keys.is_empty() && bytes >= bytes_max / 2 {
            return (index.moved, keys);
        }
        if may_wait {
            index.move_after_bytes = (index.unmoved_bytes + bytes_max.div_ceil(2)).min(wait_until);
            return (index.moved, Vec::new());
        }
        (index.moved, choose_before(FlushSeq(u64::MAX)).0)
    }

    /// What to move of the groups that have something in the chosen blocks, or had before.
    fn want(&self, groups: &BTreeSet<GroupId>, moved: ChainEnd) -> Vec<Wanted> {
        let index = self.index.lock();
        let all: BTreeSet<GroupId> = groups.iter().chain(&index.left).copied().collect();
        let want = |group: GroupId| {
            let log = index.groups.get(&group)?;
            let spans: Vec<Span> = log.hot_up_to(moved.seq).copied().collect();
            let last = spans.last().map_or(log.moved(), Span::last);
            let is_all = mutants::is(Mutant::UncommittedMoved);
            let to = if is_all { last } else { last.min(log.hard_state.commit) };
            let left = spans.iter().filter(|span| span.last() > to);
            let left_bytes = left.map(|span| u64::from(span.data_bytes)).sum();
            Some(Wanted {
                group,
                incarnation: log.incarnation,
                row: GroupRow::of(log),
                moved: log.moved(),
                spans,
                to,
                left_bytes,
            })
        };
        all.into_iter().filter_map(want).collect()
    }

    /// Makes the move durable and shows it to writer and readers.
    fn commit(
        &self,
        moved: ChainEnd,
        wanted: Vec<Wanted>,
        groups: &[MovedGroup<'_>],
    ) -> Result<MoveReport, RedbFailure> {
        let bytes = groups.iter().flat_map(|group| &group.blocks).map(|block| block.bytes() as u64).sum();
        let (garbage, removed_groups) = self.take_garbage(moved, groups, bytes);
        let spans =
            self.log.commit_move(moved, groups, Garbage { groups: &removed_groups, blocks: &garbage })?;
        let entries =
            groups.iter().flat_map(|group| &group.blocks).map(|block| block.rows.len() as u64).sum();
        let removed_bytes: u64 = garbage.iter().map(|(_, span)| u64::from(span.bytes)).sum();
        let mut index = self.index.lock();
        index.log_bytes = (index.log_bytes + bytes).saturating_sub(removed_bytes);
        let is_newer = moved.seq > index.moved.seq;
        if is_newer {
            let freed = index
                .blocks
                .iter()
                .filter(|block| (index.moved.seq.0 + 1..=moved.seq.0).contains(&block.end.seq.0));
            let freed: u64 = freed.map(|block| stored_bytes(block.bytes as usize)).sum();
            index.unmoved_bytes -= freed;
            index.moved = moved;
        }
        let mut left_bytes = 0;
        for ((wanted, group), spans) in wanted.into_iter().zip(groups).zip(spans) {
            let end = group.blocks.last().map_or(Offset(0), |block| block.end);
            let log = index.groups.get_mut(&wanted.group).filter(|log| log.incarnation == wanted.incarnation);
            let Some(log) = log else {
                // Removed meanwhile: what was just moved goes with the rest.
                index.add_to_reset(wanted.group, spans);
                continue;
            };
            let compacted = log.take_moved(spans, end);
            if log.hot_up_to(moved.seq).next().is_some() {
                index.left.push(wanted.group);
                left_bytes += wanted.left_bytes;
            }
            index.compacted.extend(compacted.into_iter().map(|span| (wanted.group, span)));
        }
        // What stays behind is written again by the next flush: not worth it over and over.
        index.move_after_bytes = 2 * left_bytes;
        let is_more = self.bounds.is_move_due(&index);
        Ok(MoveReport { entries, bytes, removed: garbage.len(), is_more, ..MoveReport::default() })
    }

    /// Blocks of the log file to remove with this move: those of groups that began anew by a block
    /// that is moved now, all; of those compacted away, some.
    fn take_garbage(
        &self,
        moved: ChainEnd,
        groups: &[MovedGroup<'_>],
        bytes: u64,
    ) -> (Vec<(GroupId, ColdSpan)>, Vec<GroupId>) {
        let mut index = self.index.lock();
        let (due, later): (Vec<Reset>, Vec<Reset>) =
            std::mem::take(&mut index.resets).into_iter().partition(|reset| reset.seq <= moved.seq);
        index.resets = later;
        let removed = due.iter().filter(|reset| reset.is_removed).map(|reset| reset.group).collect();
        let of_reset =
            |reset: &Reset| reset.blocks.iter().map(|span| (reset.group, *span)).collect::<Vec<_>>();
        let mut garbage: Vec<_> = due.iter().flat_map(of_reset).collect();
        // A key that is going to be used again must be free before.
        let first: HashMap<GroupId, Index> =
            groups.iter().filter_map(|group| Some((group.group, group.blocks.first()?.first))).collect();
        let is_in_the_way =
            |group: &GroupId, span: &ColdSpan| first.get(group).is_some_and(|first| span.first >= *first);
        let mut budget = bytes * 2 + GARBAGE_BYTES;
        index.compacted.retain(|(group, span)| {
            let is_taken = budget > 0 || is_in_the_way(group, span);
            if is_taken {
                budget = budget.saturating_sub(u64::from(span.bytes));
                garbage.push((*group, *span));
            }
            !is_taken
        });
        (garbage, removed)
    }
}

impl Damage {
    fn into_storage(self, shard: ShardId) -> StorageError {
        let affected = self.affected.into_iter().collect();
        StorageError::Corrupt { shard, at: self.at, damage: self.error, affected }
    }
}

/// Blocks of the journal while their entries are gathered; redb holds their pages in memory.
struct SourceBlocks<'t> {
    blocks: BTreeMap<FlushSeq, (RawBlock<'t>, Vec<u8>)>,
    groups: BTreeSet<GroupId>,
    newest: Option<ChainEnd>,
}

impl<'t> SourceBlocks<'t> {
    fn load(
        blocks: &'t Blocks,
        journal: &Journal,
        keys: &[FlushSeq],
    ) -> Result<Result<Self, Damage>, RedbFailure> {
        let mut source = SourceBlocks { blocks: BTreeMap::new(), groups: BTreeSet::new(), newest: None };
        for key in keys {
            if let Err(damage) = source.load_block(blocks, journal, *key)? {
                return Ok(Err(damage));
            }
        }
        for (_, directory) in source.blocks.values() {
            // Checked when it was loaded.
            let Ok(block) = Block::parse(directory, journal.identity) else { continue };
            source.groups.extend(block.parts().flatten().map(|part| part.group));
            source.newest = Some(block.end());
        }
        Ok(Ok(source))
    }

    /// Loads the blocks of spans that are none of the chosen ones.
    fn load_rest(
        &mut self,
        blocks: &'t Blocks,
        journal: &Journal,
        wanted: &[Wanted],
    ) -> Result<Result<(), Damage>, RedbFailure> {
        for span in wanted.iter().flat_map(Wanted::due) {
            if !self.blocks.contains_key(&span.block)
                && let Err(damage) = self.load_block(blocks, journal, span.block)?
            {
                return Ok(Err(damage));
            }
        }
        Ok(Ok(()))
    }

    fn load_block(
        &mut self,
        blocks: &'t Blocks,
        journal: &Journal,
        key: FlushSeq,
    ) -> Result<Result<(), Damage>, RedbFailure> {
        let loaded = blocks.get(key)?.and_then(|raw| {
            let directory = raw.directory();
            Block::parse(&directory, journal.identity)?;
            Ok((raw, directory))
        });
        Ok(match loaded {
            Ok(block) => {
                self.blocks.insert(key, block);
                Ok(())
            }
            Err(error) => Err(Damage { at: key, error, affected: None }),
        })
    }

    /// Cuts what is wanted of each group into blocks.
    fn gather(&self, wanted: &[Wanted]) -> Result<Vec<MovedGroup<'_>>, Damage> {
        let mut groups = Vec::with_capacity(wanted.len());
        for wanted in wanted {
            let mut cutter = Cutter { blocks: Vec::new(), is_open: false };
            for span in wanted.due() {
                self.cut(&mut cutter, wanted, span).map_err(|error| {
                    let affected =
                        AffectedRange { group: wanted.group, first: span.first, last: span.last() };
                    Damage { at: span.block, error, affected: Some(affected) }
                })?;
            }
            groups.push(MovedGroup { group: wanted.group, row: wanted.row.clone(), blocks: cutter.blocks });
        }
        Ok(groups)
    }

    fn cut<'s>(&'s self, cutter: &mut Cutter<'s>, wanted: &Wanted, span: &Span) -> Result<(), BlockError> {
        let (raw, directory) = self.blocks.get(&span.block).ok_or(BlockError::Chain)?;
        let part = Block::part_of(directory, span.place)?;
        if part.group != wanted.group || part.first != span.first || part.count < span.count {
            return Err(BlockError::Content);
        }
        if !part.is_data(raw.pieces(part.data_range())) {
            return Err(BlockError::Checksum);
        }
        let (mut offset, mut at) = (span.base, part.data_range().start);
        let rows: EntryRows<'_> = part.rows();
        for ((term, bytes, kind), index) in rows.zip(span.first.0..).take(span.count as usize) {
            let kind = kind.ok_or(BlockError::Content)?;
            let range = at..at + bytes as usize;
            at = range.end;
            let mut head = [0; iroh_raft_core::batch::BATCH_HEADER_BYTES];
            let head = raw.head(range.clone(), &mut head);
            let end = offset_after(kind, head, offset).map_err(|_| BlockError::Content)?;
            if index > wanted.moved.0 && index <= wanted.to.0 {
                let block = cutter.block(Index(index), offset);
                block.rows.push((term, bytes, kind));
                block.data.extend(raw.pieces(range));
                block.data_bytes += bytes as usize;
                block.end = end;
                cutter.is_open = block.data_bytes < BLOCK_DATA_BYTES;
            }
            offset = end;
        }
        Ok(())
    }
}

impl Wanted {
    /// The spans of which something is moved.
    fn due(&self) -> impl Iterator<Item = &Span> {
        self.spans.iter().filter(|span| span.first <= self.to)
    }
}

/// Blocks of one group while entries are put into them.
struct Cutter<'s> {
    blocks: Vec<NewColdBlock<'s>>,
    is_open: bool,
}

impl<'s> Cutter<'s> {
    /// The block for the next entry.
    fn block(&mut self, index: Index, offset: Offset) -> &mut NewColdBlock<'s> {
        if !self.is_open {
            self.blocks.push(NewColdBlock {
                first: index,
                base: offset,
                end: offset,
                rows: SmallVec::new(),
                data: SmallVec::new(),
                data_bytes: 0,
            });
        }
        self.blocks.last_mut().expect("a block was pushed before the first entry")
    }
}
