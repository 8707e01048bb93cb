//! Opening a shard: reads every block, rebuilds every group, and decides what to trust.
//!
//! A newest block that is damaged and was never acknowledged is cut and counted. Anything else that
//! is damaged or gone is an error, found before a single byte is written.

use std::collections::{BTreeMap, HashMap};
use std::time::{Duration, Instant};

use iroh_raft_core::{
    ConfState, EntryKind, FlushSeq, GroupId, GroupState, HardState, Index, LogEntry, TermRun,
};

use crate::block::{Block, BlockError, ChainEnd, JournalIdentity, Part, offset_after};
use crate::error::{AffectedRange, Result, StorageError};
use crate::journal::{Candidate, Journal};
use crate::spans::{GroupSpans, Span};

/// What opening a shard found.
#[derive(Clone, PartialEq, Eq, Default, Debug)]
#[non_exhaustive]
pub struct RecoveryReport {
    /// Time that recovery took.
    pub duration: Duration,
    /// Blocks read.
    pub blocks: u64,
    /// Bytes of those blocks.
    pub bytes: u64,
    /// Flushes at the end that were torn, never acknowledged, and cut: at least so many.
    pub torn: u64,
    /// Newest flush that was known to be acknowledged.
    pub acknowledged: FlushSeq,
}

/// A recovered journal.
#[derive(Debug)]
pub(crate) struct Recovered {
    pub(crate) journal: Journal,
    pub(crate) end: ChainEnd,
    pub(crate) spans: HashMap<GroupId, GroupSpans>,
    pub(crate) groups: Vec<GroupState>,
    pub(crate) report: RecoveryReport,
}

/// Reads a candidate through, and accepts it if it holds all that was acknowledged.
pub(crate) fn recover(candidate: Candidate, acknowledged: ChainEnd, tail_bytes: usize) -> Result<Recovered> {
    let began = Instant::now();
    let identity = candidate.journal.identity;
    let mut scan = Scan::new(identity, candidate.origin, acknowledged);
    let scanned = candidate.journal.look_at_all(false, |key, bytes| scan.take(key, bytes));
    scanned.map_err(|error| error.opening(&candidate.path, identity))?;
    let torn_block = match scan.damage {
        Some(damage) if scan.end.seq >= acknowledged.seq && damage.is_newest => Some(damage.key),
        Some(damage) => return Err(scan.corrupt(&candidate, damage)),
        None => None,
    };
    scan.check_mark()?;
    let mut report = RecoveryReport {
        blocks: scan.blocks,
        bytes: scan.bytes,
        torn: u64::from(candidate.has_fallen_back) + u64::from(torn_block.is_some()),
        acknowledged: acknowledged.seq,
        ..RecoveryReport::default()
    };
    let path = candidate.path.clone();
    let journal = candidate.accept()?;
    if let Some(key) = torn_block {
        journal.remove(key).map_err(|error| error.opening(&path, identity))?;
    }
    let tails = read_tails(&journal, &scan.groups, tail_bytes);
    let tails = tails.map_err(|error| error.opening(&path, identity))?;
    let end = scan.end;
    let (spans, groups) = scan.into_states(tails);
    report.duration = began.elapsed();
    Ok(Recovered { journal, end, spans, groups, report })
}

/// One group while its blocks are read.
#[derive(Default, Debug)]
struct Recovering {
    hard_state: HardState,
    conf_state: ConfState,
    spans: GroupSpans,
    term_runs: Vec<TermRun>,
    conf_changes: Vec<Index>,
}

impl Recovering {
    /// Takes a part of the next block.
    fn take(&mut self, part: &Part<'_>, block: FlushSeq) -> Result<(), BlockError> {
        if part.count > 0 {
            self.take_entries(part, block)?;
        }
        if let Some(hard_state) = part.hard_state {
            self.hard_state = hard_state;
        }
        if let Some(conf_state) = &part.conf_state {
            self.conf_state = conf_state.clone();
        }
        Ok(())
    }

    fn take_entries(&mut self, part: &Part<'_>, block: FlushSeq) -> Result<(), BlockError> {
        let due = self.spans.last().next();
        let is_continued = match part.first.cmp(&due) {
            std::cmp::Ordering::Equal => part.place.base == self.spans.next_offset(),
            std::cmp::Ordering::Less => part.place.base <= self.spans.next_offset(),
            std::cmp::Ordering::Greater => false,
        };
        if !is_continued {
            return Err(BlockError::Content);
        }
        while self.term_runs.pop_if(|run| run.first >= part.first).is_some() {}
        while self.conf_changes.pop_if(|index| *index >= part.first).is_some() {}
        let mut end = part.place.base;
        for entry in part.entries() {
            end = offset_after(entry.kind, entry.data, end).map_err(|_| BlockError::Content)?;
            if self.term_runs.last().is_none_or(|run| run.term != entry.term) {
                self.term_runs.push(TermRun { first: entry.index, term: entry.term });
            }
            if entry.kind != EntryKind::Normal {
                self.conf_changes.push(entry.index);
            }
        }
        self.spans.append(span_of(part, block), end);
        Ok(())
    }
}

fn span_of(part: &Part<'_>, block: FlushSeq) -> Span {
    Span {
        first: part.first,
        base: part.place.base,
        block,
        position: part.place.position,
        count: part.count,
        data_bytes: u32::try_from(part.data_bytes()).unwrap_or(u32::MAX),
    }
}

#[derive(Clone, Copy, Debug)]
struct Damage {
    key: FlushSeq,
    error: BlockError,
    /// Whether no block follows.
    is_newest: bool,
}

/// State of the pass over all blocks, oldest first.
#[derive(Debug)]
struct Scan {
    identity: JournalIdentity,
    acknowledged: ChainEnd,
    groups: BTreeMap<GroupId, Recovering>,
    end: ChainEnd,
    /// Newest block end at or before the mark.
    at_mark: ChainEnd,
    blocks: u64,
    bytes: u64,
    damage: Option<Damage>,
}

impl Scan {
    fn new(identity: JournalIdentity, origin: ChainEnd, acknowledged: ChainEnd) -> Scan {
        Scan {
            identity,
            acknowledged,
            groups: BTreeMap::new(),
            end: origin,
            at_mark: origin,
            blocks: 0,
            bytes: 0,
            damage: None,
        }
    }

    /// Takes the next block; false once there is nothing more to learn.
    fn take(&mut self, key: FlushSeq, bytes: &[u8]) -> bool {
        if let Some(damage) = &mut self.damage {
            damage.is_newest = false;
            return false;
        }
        if let Err(error) = self.take_block(key, bytes) {
            self.damage = Some(Damage { key, error, is_newest: true });
        }
        true
    }

    fn take_block(&mut self, key: FlushSeq, bytes: &[u8]) -> Result<(), BlockError> {
        let block = Block::parse(bytes, self.identity)?;
        if !block.is_after(self.end) || block.end().seq != key {
            return Err(BlockError::Chain);
        }
        // A block is taken whole or not at all: a torn one is cut as if it had never been.
        let parts: Vec<_> = block.parts().collect::<Result<_, _>>()?;
        for part in &parts {
            self.groups.entry(part.group).or_default().take(part, key)?;
        }
        self.end = block.end();
        if self.end.seq <= self.acknowledged.seq {
            self.at_mark = self.end;
        }
        self.blocks += 1;
        self.bytes += bytes.len() as u64;
        Ok(())
    }

    /// Whether everything acknowledged is here, and is what was acknowledged.
    fn check_mark(&self) -> Result<()> {
        // A mark older than the chain's beginning has nothing left to compare with.
        if self.acknowledged.seq < self.at_mark.seq || self.acknowledged == self.at_mark {
            return Ok(());
        }
        let found = match self.acknowledged.seq == self.at_mark.seq {
            true => FlushSeq(self.at_mark.seq.0.saturating_sub(1)),
            false => self.at_mark.seq,
        };
        Err(StorageError::JournalRolledBack {
            shard: self.identity.shard,
            acknowledged: self.acknowledged.seq,
            found,
        })
    }

    /// Says as well as possible whose entries a damaged place concerns: those that the damaged block
    /// names, and those that later blocks presuppose.
    fn corrupt(&self, candidate: &Candidate, damage: Damage) -> StorageError {
        let mut affected: BTreeMap<GroupId, AffectedRange> = BTreeMap::new();
        let mut lasts: HashMap<GroupId, Index> =
            self.groups.iter().map(|(group, state)| (*group, state.spans.last())).collect();
        let mut note = |group: GroupId, first: Index, last: Index| {
            let range = affected.entry(group).or_insert(AffectedRange { group, first, last });
            range.first = range.first.min(first);
            range.last = range.last.max(last);
        };
        let looked = candidate.journal.look_at_all(false, |key, bytes| {
            if key < damage.key {
                return true;
            }
            let Ok(block) = Block::parse_unchecked(bytes, self.identity) else { return true };
            let is_sound = Block::parse(bytes, self.identity).is_ok();
            for part in block.parts().map_while(Result::ok).filter(|part| part.count > 0) {
                let last = lasts.entry(part.group).or_default();
                if part.first > last.next() {
                    note(part.group, last.next(), Index(part.first.0 - 1));
                }
                if !is_sound {
                    note(part.group, part.first, part.last());
                }
                *last = part.last();
            }
            true
        });
        if looked.is_err() {
            tracing::warn!(shard = %self.identity.shard, "the damaged journal could not be read to its end");
        }
        StorageError::Corrupt {
            shard: self.identity.shard,
            at: FlushSeq(self.end.seq.0.saturating_add(1)),
            damage: damage.error,
            affected: affected.into_values().collect(),
        }
    }

    fn into_states(
        self,
        mut tails: HashMap<GroupId, Vec<LogEntry>>,
    ) -> (HashMap<GroupId, GroupSpans>, Vec<GroupState>) {
        let mut spans = HashMap::with_capacity(self.groups.len());
        let mut states = Vec::with_capacity(self.groups.len());
        for (group, recovering) in self.groups {
            states.push(GroupState {
                group,
                hard_state: recovering.hard_state,
                conf_state: recovering.conf_state,
                is_durable: true,
                start: Default::default(),
                damage: None,
                term_runs: recovering.term_runs,
                last: recovering.spans.last(),
                next_offset: recovering.spans.next_offset(),
                tail: tails.remove(&group).unwrap_or_default(),
                conf_changes: recovering.conf_changes,
                has_state_machine: false,
            });
            spans.insert(group, recovering.spans);
        }
        (spans, states)
    }
}

/// The newest entries of all groups together, as many as fit `bytes_max`, by group in order.
fn read_tails(
    journal: &Journal,
    groups: &BTreeMap<GroupId, Recovering>,
    bytes_max: usize,
) -> Result<HashMap<GroupId, Vec<LogEntry>>, crate::journal::JournalError> {
    let mut left = bytes_max;
    let mut tails: HashMap<GroupId, Vec<LogEntry>> = HashMap::new();
    journal.look_at_all(true, |key, bytes| {
        // The same bytes were checked a moment ago.
        let Ok(block) = Block::parse_unchecked(bytes, journal.identity) else { return false };
        let parts: Vec<_> = block.parts().map_while(Result::ok).filter(|part| part.count > 0).collect();
        for part in parts.iter().rev() {
            let live = groups.get(&part.group).and_then(|state| state.spans.span_of(part.first));
            let Some(span) = live.filter(|span| (span.block, span.position) == (key, part.place.position))
            else {
                continue;
            };
            let entries: Vec<_> = part.entries().take(span.count as usize).collect();
            let tail = tails.entry(part.group).or_default();
            for entry in entries.iter().rev() {
                let bytes = entry.data.len() + size_of::<LogEntry>();
                let Some(rest) = left.checked_sub(bytes) else { return false };
                left = rest;
                tail.push(entry.to_entry());
            }
        }
        true
    })?;
    tails.values_mut().for_each(|tail| tail.reverse());
    Ok(tails)
}
