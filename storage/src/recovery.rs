//! Opening a shard: reads the journal and the index of the log file, rebuilds every group, and
//! decides what to trust.
//!
//! A newest block that is damaged and was never acknowledged is cut and counted. Damage that can be
//! told to concern single groups takes these out; anything else that is damaged or gone is an error,
//! found before a single byte is written.

use std::collections::{BTreeMap, HashMap};
use std::time::{Duration, Instant};

use bytes::Bytes;
use iroh_raft_core::mutants::{self, Mutant};
use iroh_raft_core::{
    FlushSeq, GroupId, GroupState, Index, LogChange, LogDamage, LogEntry, Retention, TermRun,
};

use crate::block::{Block, BlockError, ChainEnd, JournalIdentity, Part, offset_after};
use crate::cold_block::GroupRow;
use crate::error::{AffectedRange, Result, StorageError};
use crate::group_log::Span;
use crate::index::{Index as ShardIndex, JournalBlock};
use crate::journal::{Blocks, Journal, RawBlock};
use crate::log_file::{Garbage, LogFile, MovedGroup, StoredDamage, StoredLog};
use crate::redb_file::{Candidate, RedbFailure};
use crate::snapshot::StoredSnapshots;
use crate::span_read::read_span;

/// What opening a shard found.
#[derive(Clone, PartialEq, Eq, Default, Debug)]
#[non_exhaustive]
pub struct RecoveryReport {
    /// Time that recovery took.
    pub duration: Duration,
    /// Blocks of the journal that were read.
    pub blocks: u64,
    /// Bytes of those blocks.
    pub bytes: u64,
    /// Flushes at the end that were torn, never acknowledged, and cut: at least so many.
    pub torn: u64,
    /// Newest flush that was known to be acknowledged.
    pub acknowledged: FlushSeq,
}

/// A recovered shard.
#[derive(Debug)]
pub(crate) struct Recovered {
    pub(crate) journal: Journal,
    pub(crate) log: LogFile,
    pub(crate) end: ChainEnd,
    pub(crate) index: ShardIndex,
    pub(crate) groups: Vec<GroupState>,
    /// Groups of which the log file does not say what was lost.
    unstored: Vec<GroupId>,
    pub(crate) snapshots: StoredSnapshots,
    pub(crate) report: RecoveryReport,
}

/// Both files of a shard, read through and found to hold all that was acknowledged. Nothing of them
/// was changed so far.
#[derive(Debug)]
pub(crate) struct Examined {
    journal: Candidate,
    log: Candidate,
    identity: JournalIdentity,
    scan: Scan,
    tails: HashMap<GroupId, Vec<LogEntry>>,
    snapshots: StoredSnapshots,
    report: RecoveryReport,
    began: Instant,
}

/// Reads both files through.
pub(crate) fn examine(
    journal: Candidate,
    log: Candidate,
    identity: JournalIdentity,
    acknowledged: ChainEnd,
    tail_bytes: usize,
) -> Result<Examined> {
    let began = Instant::now();
    Journal::check_origin(&journal, identity)?;
    let stored = LogFile::load(&log, identity)?;
    let snapshots = StoredSnapshots::load(&log, &log.file.path, identity.shard)?;
    let path = journal.file.path.clone();
    let opening = |error: RedbFailure| error.opening(&path, identity.shard);
    let has_fallen_back = journal.has_fallen_back;
    let read = Journal::read_candidate(&journal, |blocks| {
        let scan = match Scan::run(blocks, identity, acknowledged, stored)? {
            Ok(scan) => scan,
            Err(error) => return Ok(Err(error)),
        };
        let tails = read_tails(blocks, identity, &scan.index, tail_bytes)?;
        Ok(Ok((scan, tails)))
    });
    let (scan, tails) = read.map_err(opening)??;
    let report = RecoveryReport {
        blocks: scan.index.blocks.len() as u64,
        bytes: scan.index.blocks.iter().map(|block| u64::from(block.bytes)).sum(),
        torn: u64::from(has_fallen_back) + u64::from(scan.is_torn),
        acknowledged: acknowledged.seq,
        ..RecoveryReport::default()
    };
    Ok(Examined { journal, log, identity, scan, tails, snapshots, report, began })
}

impl Examined {
    /// Takes the files over, to be written from now on: what was cut or is void goes.
    pub(crate) fn accept(self) -> Result<Recovered> {
        let identity = self.identity;
        let recovered = self.take(
            |log| Ok(LogFile { file: log.accept()?, identity }),
            |journal, void| Journal::accept(journal, identity, void),
        )?;
        recovered.store_losses()?;
        Ok(recovered)
    }

    /// Takes the files to be read only: they stay as they are on the disk.
    pub(crate) fn keep(self) -> Result<Recovered> {
        let identity = self.identity;
        self.take(
            |log| Ok(LogFile { file: log.keep(), identity }),
            |journal, _| Ok(Journal::keep(journal, identity)),
        )
    }

    fn take(
        self,
        log: impl FnOnce(Candidate) -> Result<LogFile>,
        journal: impl FnOnce(Candidate, &[FlushSeq]) -> Result<Journal>,
    ) -> Result<Recovered> {
        let log = log(self.log)?;
        let journal = journal(self.journal, &self.scan.void)?;
        let end = self.scan.end;
        let (index, groups, unstored) = self.scan.into_states(self.tails);
        let report = RecoveryReport { duration: self.began.elapsed(), ..self.report };
        Ok(Recovered { journal, log, end, index, groups, unstored, snapshots: self.snapshots, report })
    }
}

impl Recovered {
    /// Says in the log file what was lost of which group: the next flush may void the blocks that say so
    /// now.
    fn store_losses(&self) -> Result<()> {
        let row = |group: &GroupId| {
            let row = GroupRow::of(self.index.groups.get(group)?);
            Some(MovedGroup { group: *group, row, blocks: Vec::new() })
        };
        let groups: Vec<_> = self.unstored.iter().filter_map(row).collect();
        if groups.is_empty() {
            return Ok(());
        }
        let stored = self.log.commit_move(self.index.moved, &groups, Garbage { groups: &[], blocks: &[] });
        stored.map(drop).map_err(|error| error.running(self.log.identity.shard))
    }
}

/// What is known of a group beside its place in the index.
#[derive(Default, Debug)]
struct Recovering {
    term_runs: Vec<TermRun>,
    conf_changes: Vec<Index>,
    /// Entries of the journal whose data is damaged.
    damage: Option<(Index, Index)>,
    /// Entries that the log file's index should know and does not.
    stored_damage: Option<StoredDamage>,
    /// Entries that later parts presuppose and that are not there. Fine if those are void too.
    gap: Option<(Index, Index)>,
    /// Whether the log file knows the group.
    is_stored: bool,
}

impl Recovering {
    fn cut(&mut self, from: Index) {
        while self.term_runs.pop_if(|run| run.first >= from).is_some() {}
        while self.conf_changes.pop_if(|index| *index >= from).is_some() {}
    }

    /// The log, which ends at `last`, begins after `index` now.
    fn compact_to(&mut self, index: Index, last: Index) {
        if index >= last {
            self.term_runs.clear();
        }
        let before = self.term_runs.partition_point(|run| run.first <= index.next());
        self.term_runs.drain(..before.saturating_sub(1));
        if let Some(first) = self.term_runs.first_mut() {
            first.first = first.first.max(index.next());
        }
        self.conf_changes.retain(|change| *change > index);
    }

    /// What the journal said of the log after `moved` is void.
    fn forget_after(&mut self, moved: Index) {
        self.cut(moved.next());
        (self.gap, self.damage) = (None, None);
    }

    /// What was wrong with the log from an index on does not matter any more.
    fn void_damage(&mut self, from: Index) {
        let is_before =
            |(first, last): (Index, Index)| (first < from).then(|| (first, last.min(Index(from.0 - 1))));
        self.damage = self.damage.and_then(is_before);
    }

    /// What was wrong with the log after an index is void with it.
    fn cut_after(&mut self, index: Index) {
        self.cut(index.next());
        self.void_damage(index.next());
        let is_before = |range: &(Index, Index)| range.0 <= index;
        self.gap = self.gap.filter(is_before);
        self.stored_damage = self.stored_damage.filter(|damage| is_before(&damage.range));
    }

    fn note_damage(&mut self, first: Index, last: Index) {
        let (from, to) = self.damage.unwrap_or((first, last));
        self.damage = Some((from.min(first), to.max(last)));
    }
}

/// State of the pass over all blocks, oldest first.
#[derive(Debug)]
struct Scan {
    identity: JournalIdentity,
    index: ShardIndex,
    groups: BTreeMap<GroupId, Recovering>,
    end: ChainEnd,
    is_torn: bool,
    /// Blocks that nobody needs.
    void: Vec<FlushSeq>,
}

impl Scan {
    fn run(
        blocks: &Blocks,
        identity: JournalIdentity,
        acknowledged: ChainEnd,
        stored: StoredLog,
    ) -> Result<Result<Scan>, RedbFailure> {
        let mut scan = Scan {
            identity,
            index: ShardIndex::default(),
            groups: BTreeMap::new(),
            end: ChainEnd::default(),
            is_torn: false,
            void: Vec::new(),
        };
        scan.take_stored(stored);
        let mut keys = blocks.keys_from(FlushSeq(0))?;
        let Some(oldest) = scan.find_newest(blocks, &mut keys, acknowledged)? else {
            return Ok(Err(scan.corrupt(blocks, &keys, keys.last().copied(), BlockError::Chain)));
        };
        let first_live = keys.partition_point(|last| *last < oldest);
        scan.void.extend(keys.drain(..first_live));
        match scan.check_chain(blocks, &keys, oldest, acknowledged)? {
            Ok(()) => {}
            Err(ChainFailure::Storage(error)) => return Ok(Err(error)),
            Err(ChainFailure::Block(at, damage)) => {
                return Ok(Err(scan.corrupt(blocks, &keys, Some(at), damage)));
            }
        }
        // What was carried stood before everything else that is left.
        for is_carried in [true, false] {
            for key in &keys {
                scan.take_parts(blocks, *key, is_carried)?;
            }
        }
        Ok(Ok(scan))
    }

    fn take_stored(&mut self, stored: StoredLog) {
        self.index.moved = stored.moved;
        self.index.compacted = stored.compacted;
        let waiting = self.index.compacted.iter().map(|(_, span)| span);
        let needed = stored.groups.values().flat_map(|stored| stored.log.cold());
        self.index.log_bytes = needed.chain(waiting).map(|span| u64::from(span.bytes)).sum();
        for (group, stored) in stored.groups {
            self.groups.insert(
                group,
                Recovering {
                    term_runs: stored.term_runs,
                    conf_changes: stored.conf_changes,
                    stored_damage: stored.damage,
                    damage: None,
                    gap: None,
                    is_stored: true,
                },
            );
            let log = self.index.group(group);
            let incarnation = log.incarnation;
            *log = stored.log;
            log.incarnation = incarnation;
        }
    }

    /// Drops a newest block that is torn. Returns the first flush that the newest sound one needs;
    /// `None` if there is none that could be believed.
    fn find_newest(
        &mut self,
        blocks: &Blocks,
        keys: &mut Vec<FlushSeq>,
        acknowledged: ChainEnd,
    ) -> Result<Option<FlushSeq>, RedbFailure> {
        for _ in 0..2 {
            let Some(newest) = keys.last().copied() else { return Ok(Some(FlushSeq(1))) };
            let before = keys.iter().rev().nth(1).copied().unwrap_or(self.index.moved.seq);
            match sound_block(blocks, self.identity, newest)? {
                Ok((block, is_data_sound)) if is_data_sound || newest <= acknowledged.seq => {
                    return Ok(Some(block));
                }
                // Only one commit can be under way, and what is older than the mark was acknowledged.
                _ if !self.is_torn && before >= acknowledged.seq => {
                    self.is_torn = true;
                    self.void.extend(keys.pop());
                }
                _ => return Ok(None),
            }
        }
        Ok(None)
    }

    /// Follows the chain from the oldest block to the newest, and compares it with what the log file
    /// and the mark say.
    fn check_chain(
        &mut self,
        blocks: &Blocks,
        keys: &[FlushSeq],
        oldest: FlushSeq,
        acknowledged: ChainEnd,
    ) -> Result<Result<(), ChainFailure>, RedbFailure> {
        let moved = self.index.moved;
        if moved.seq.0 + 1 < oldest.0 {
            let expected = FlushSeq(oldest.0 - 1);
            let shard = self.identity.shard;
            return Ok(Err(StorageError::LogRolledBack { shard, expected, found: moved.seq }.into()));
        }
        let mut at_moved = ChainEnd::default();
        let mut at_mark = ChainEnd::default();
        for (number, key) in keys.iter().enumerate() {
            let parsed = parsed(blocks, self.identity, *key, |block, raw| {
                // All parts have to make sense; damaged data is looked at later, group by group.
                let parts: Result<Vec<_>, _> = block.parts().collect();
                parts.map(|_| (block.before(), block.end(), raw.lengths.total()))
            })?;
            let due_seq = if number == 0 { FlushSeq(oldest.0 - 1) } else { self.end.seq };
            let at = FlushSeq(due_seq.0 + 1);
            let (before, end, bytes) = match parsed {
                Ok(parsed) => parsed,
                Err(error) => return Ok(Err(ChainFailure::Block(at, error))),
            };
            let is_next = before.seq == due_seq && (number == 0 || before == self.end);
            if !is_next || end.seq != *key {
                return Ok(Err(ChainFailure::Block(at, BlockError::Chain)));
            }
            for end in [before, end] {
                at_moved = if end.seq <= moved.seq { end } else { at_moved };
                at_mark = if end.seq <= acknowledged.seq { end } else { at_mark };
            }
            self.end = end;
            let bytes = u32::try_from(bytes).unwrap_or(u32::MAX);
            drop(self.index.add_block(JournalBlock { end, bytes }, oldest));
            if end.seq <= moved.seq {
                self.index.unmoved_bytes = 0;
            }
        }
        let shard = self.identity.shard;
        let rolled_back = |acknowledged: FlushSeq, at: ChainEnd| {
            let found = if at.seq == acknowledged { FlushSeq(at.seq.0.saturating_sub(1)) } else { at.seq };
            Ok(Err(StorageError::JournalRolledBack { shard, acknowledged, found }.into()))
        };
        if moved != at_moved {
            return rolled_back(moved.seq, at_moved);
        }
        // A mark older than the chain's beginning has nothing left to compare with.
        let is_older = !keys.is_empty() && acknowledged.seq.0 + 1 < oldest.0;
        if acknowledged != at_mark && !is_older && !mutants::is(Mutant::MarkIgnored) {
            return rolled_back(acknowledged.seq, at_mark);
        }
        Ok(Ok(()))
    }

    /// Takes the parts of a block: only those that were carried, or only the others.
    fn take_parts(&mut self, blocks: &Blocks, key: FlushSeq, is_carried: bool) -> Result<(), RedbFailure> {
        // The chain was followed a moment ago.
        let Ok(raw) = blocks.get(key)? else { return Ok(()) };
        let directory = raw.directory();
        let Ok(block) = Block::parse(&directory, self.identity) else { return Ok(()) };
        for part in block.parts().flatten().filter(|part| part.is_carried == is_carried) {
            self.take_part(&part, &raw, key);
        }
        Ok(())
    }

    fn take_part(&mut self, part: &Part<'_>, raw: &RawBlock<'_>, key: FlushSeq) {
        if let Some(change) = part.change {
            self.take_change(part.group, change, key);
            let is_all = part.hard_state.is_none()
                && part.conf_state.is_none()
                && part.meta.is_none()
                && part.under_repair.is_none()
                && part.joined_at.is_none()
                && part.count == 0;
            if change == LogChange::Remove && is_all {
                return;
            }
        }
        if part.count > 0 {
            self.take_entries(part, raw, key);
        }
        self.groups.entry(part.group).or_default();
        let log = self.index.group(part.group);
        if let Some(hard_state) = part.hard_state {
            log.hard_state = hard_state;
        }
        if let Some(conf_state) = &part.conf_state {
            log.conf_state.clone_from(conf_state);
        }
        if let Some(meta) = part.meta {
            log.meta = Bytes::copy_from_slice(meta);
        }
        log.is_under_repair = part.under_repair.unwrap_or(log.is_under_repair);
        log.joined_at = part.joined_at.unwrap_or(log.joined_at);
    }

    fn take_change(&mut self, group: GroupId, change: LogChange, key: FlushSeq) {
        let is_moved = key <= self.index.moved.seq;
        let recovering = self.groups.entry(group).or_default();
        match change {
            // The log file knows what became of the group after that.
            LogChange::Remove if is_moved && recovering.is_stored => {
                let log = self.index.group(group);
                log.drop_hot();
                (log.hard_state, log.conf_state, log.meta) = Default::default();
                (log.is_under_repair, log.joined_at) = Default::default();
                recovering.forget_after(log.moved());
            }
            LogChange::Remove => {
                self.groups.remove(&group);
                self.index.change(group, change, key);
                if is_moved {
                    // It has no blocks in the log file, or these are known as garbage.
                    self.index.resets.pop();
                }
            }
            LogChange::StartAfter(_) if is_moved => {
                let log = self.index.group(group);
                log.drop_hot();
                recovering.forget_after(log.moved());
            }
            LogChange::StartAfter(_) => {
                self.index.change(group, change, key);
                *recovering = Recovering { is_stored: recovering.is_stored, ..Recovering::default() };
            }
            LogChange::CutAfter(place) if is_moved => {
                let log = self.index.group(group);
                if place.index <= log.moved() {
                    log.drop_hot();
                    recovering.forget_after(log.moved());
                } else if place.index <= log.last() {
                    log.cut(place.index.next(), place.offset);
                    recovering.cut_after(place.index);
                }
            }
            LogChange::CutAfter(place) => {
                self.index.change(group, change, key);
                recovering.cut_after(place.index);
            }
            LogChange::CompactTo(_) if is_moved => {}
            LogChange::CompactTo(start) => {
                self.index.change(group, change, key);
                recovering.compact_to(start.index, self.index.group(group).last());
                let is_past = |range: &(Index, Index)| range.1 > start.index;
                recovering.gap = recovering.gap.filter(is_past);
                recovering.damage = recovering.damage.filter(is_past);
                let after = |damage: StoredDamage| match damage.before < start.index {
                    true => StoredDamage {
                        range: (start.index.next(), damage.range.1),
                        before: start.index,
                        end: start.offset,
                    },
                    false => damage,
                };
                recovering.stored_damage =
                    recovering.stored_damage.filter(|damage| is_past(&damage.range)).map(after);
            }
        }
    }

    fn take_entries(&mut self, part: &Part<'_>, raw: &RawBlock<'_>, key: FlushSeq) {
        let recovering = self.groups.entry(part.group).or_default();
        let log = self.index.group(part.group);
        if part.last() <= log.moved() {
            // Moved since; but what followed it then was void.
            log.drop_hot();
            recovering.forget_after(log.moved());
            return;
        }
        recovering.void_damage(part.first);
        if part.first > log.last().next() {
            let (from, to) = recovering.gap.unwrap_or((log.last().next(), part.last()));
            recovering.gap = Some((from, to.max(part.last())));
            return;
        }
        recovering.gap = None;
        let is_continued = match part.first == log.last().next() {
            true => part.base == log.next_offset(),
            false => part.base <= log.next_offset(),
        };
        let data = raw.copy(part.data_range()).filter(|data| part.is_data(std::iter::once(&data[..])));
        let end = data.as_deref().filter(|_| is_continued).and_then(|data| {
            part.entries(data).try_fold(part.base, |at, entry| offset_after(entry.kind, entry.data, at).ok())
        });
        let Some(end) = end else {
            let first = part.first.max(log.moved().next());
            recovering.note_damage(first, part.last());
            recovering.cut(first);
            log.cut(first, part.base);
            return;
        };
        let floor = log.moved().next();
        recovering.cut(part.first.max(floor));
        for run in part.term_runs() {
            let run = TermRun { first: run.first.max(floor), ..run };
            // Of the runs that begin in what was moved, the last one counts.
            while recovering.term_runs.pop_if(|last| last.first >= run.first).is_some() {}
            if recovering.term_runs.last().is_none_or(|last| last.term != run.term) {
                recovering.term_runs.push(run);
            }
        }
        recovering.conf_changes.extend(part.conf_changes().filter(|index| *index >= floor));
        let span = Span {
            first: part.first,
            base: part.base,
            block: key,
            place: part.place,
            count: part.count,
            data_bytes: u32::try_from(part.data_bytes).unwrap_or(u32::MAX),
        };
        log.append(span, end);
    }

    /// Says as well as possible whose entries a damaged place concerns: those that later blocks
    /// presuppose.
    fn corrupt(
        &mut self,
        blocks: &Blocks,
        keys: &[FlushSeq],
        at: Option<FlushSeq>,
        damage: BlockError,
    ) -> StorageError {
        let at = at.unwrap_or(FlushSeq(self.end.seq.0 + 1));
        let mut affected: BTreeMap<GroupId, AffectedRange> = BTreeMap::new();
        let mut lasts: HashMap<GroupId, Index> =
            self.index.groups.iter().map(|(group, log)| (*group, log.last())).collect();
        for key in keys {
            let Ok(Ok(raw)) = blocks.get(*key) else { continue };
            let directory = raw.directory();
            let Ok(block) = Block::parse(&directory, self.identity) else { continue };
            for part in block.parts().map_while(Result::ok).filter(|part| part.count > 0) {
                let last = lasts.entry(part.group).or_default();
                if part.first > last.next() && *key > at {
                    let (group, first, last) = (part.group, last.next(), Index(part.first.0 - 1));
                    affected.entry(group).or_insert(AffectedRange { group, first, last }).last = last;
                }
                *last = part.last();
            }
        }
        let shard = self.identity.shard;
        StorageError::Corrupt { shard, at, damage, affected: affected.into_values().collect() }
    }

    /// Index and groups, and those of which the log file does not say yet what was lost.
    fn into_states(
        self,
        mut tails: HashMap<GroupId, Vec<LogEntry>>,
    ) -> (ShardIndex, Vec<GroupState>, Vec<GroupId>) {
        let mut index = self.index;
        let moved = index.moved.seq;
        let mut states = Vec::with_capacity(self.groups.len());
        let mut unstored = Vec::new();
        for (group, recovering) in self.groups {
            let log = index.group(group);
            // What the log file calls lost the journal may have after all.
            let before = Some((log.last().next(), log.lost())).filter(|(_, lost)| *lost > log.last());
            let losses = [recovering.damage, recovering.gap, before];
            let lost = losses.iter().flatten().map(|(_, last)| *last).max().unwrap_or_default();
            if lost != log.lost() {
                log.set_lost(lost);
                unstored.push(group);
            }
            let mut damage = losses.into_iter().flatten().next();
            let mut recovering = recovering;
            let (mut last, mut next_offset) = (log.last(), log.next_offset());
            if let Some(StoredDamage { range: (first, damaged), before, end }) = recovering.stored_damage {
                damage = Some((first, damaged.max(last).max(lost)));
                (last, next_offset) = (before, end);
                recovering.cut(last.next());
                tails.remove(&group);
            }
            states.push(GroupState {
                group,
                hard_state: log.hard_state,
                conf_state: log.conf_state.clone(),
                meta: log.meta.clone(),
                retention: Retention::default(),
                is_durable: true,
                start: log.start(),
                term_runs: recovering.term_runs,
                last,
                next_offset,
                tail: tails.remove(&group).unwrap_or_default(),
                conf_changes: recovering.conf_changes,
                snapshot: None,
                damage: damage.map(|(first, last)| LogDamage { first, last }),
                is_under_repair: log.is_under_repair,
                joined_at: log.joined_at,
                has_state_machine: false,
            });
            if log.hot_up_to(moved).next().is_some() {
                index.left.push(group);
            }
        }
        (index, states, unstored)
    }
}

enum ChainFailure {
    Block(FlushSeq, BlockError),
    Storage(StorageError),
}

impl From<StorageError> for ChainFailure {
    fn from(error: StorageError) -> ChainFailure {
        ChainFailure::Storage(error)
    }
}

/// Looks at a block whose directory is sound.
fn parsed<T>(
    blocks: &Blocks,
    identity: JournalIdentity,
    key: FlushSeq,
    look: impl FnOnce(&Block<'_>, &RawBlock<'_>) -> Result<T, BlockError>,
) -> Result<Result<T, BlockError>, RedbFailure> {
    let raw = match blocks.get(key)? {
        Ok(raw) => raw,
        Err(error) => return Ok(Err(error)),
    };
    let directory = raw.directory();
    Ok(Block::parse(&directory, identity).and_then(|block| look(&block, &raw)))
}

/// The first flush that a block needs, and whether the data of all its parts is sound.
fn sound_block(
    blocks: &Blocks,
    identity: JournalIdentity,
    key: FlushSeq,
) -> Result<Result<(FlushSeq, bool), BlockError>, RedbFailure> {
    parsed(blocks, identity, key, |block, raw| {
        let parts: Vec<_> = block.parts().collect::<Result<_, _>>()?;
        let is_sound = parts.iter().all(|part| part.is_data(raw.pieces(part.data_range())));
        if block.end().seq == key { Ok((block.oldest(), is_sound)) } else { Err(BlockError::Chain) }
    })
}

/// The newest entries of all groups together, as many as fit `bytes_max`.
fn read_tails(
    blocks: &Blocks,
    identity: JournalIdentity,
    index: &ShardIndex,
    bytes_max: usize,
) -> Result<HashMap<GroupId, Vec<LogEntry>>, RedbFailure> {
    // Newest first; within a group from the end, also where entries were carried to a newer block.
    let mut spans: Vec<(FlushSeq, GroupId, Span)> = Vec::new();
    for (group, log) in &index.groups {
        let mut newest = FlushSeq(u64::MAX);
        for span in log.hot().iter().rev() {
            newest = newest.min(span.block);
            spans.push((newest, *group, *span));
        }
    }
    spans.sort_by(|(a, group_a, span_a), (b, group_b, span_b)| {
        (b, group_a, span_b.first).cmp(&(a, group_b, span_a.first))
    });
    let mut left = bytes_max;
    let mut tails: HashMap<GroupId, Vec<LogEntry>> = HashMap::new();
    for (_, group, span) in spans {
        let moved = index.groups.get(&group).map_or(Index(0), |log| log.moved());
        let Ok(entries) = read_span(blocks, identity, group, &span)? else { break };
        let entries: Vec<_> = entries.into_iter().filter(|entry| entry.index > moved).collect();
        let bytes: usize = entries.iter().map(|entry| entry.data.len() + size_of::<LogEntry>()).sum();
        let Some(rest) = left.checked_sub(bytes) else { break };
        left = rest;
        tails.entry(group).or_default().extend(entries.into_iter().rev());
    }
    tails.values_mut().for_each(|tail| tail.reverse());
    Ok(tails)
}
