//! What a replica keeps of its log in memory: the storage that raft-rs reads from.
//!
//! Invariants: the terms of the whole log are here, as runs, and that of the entry before it; entries are a
//! contiguous tail ending at the last index; everything above the commit index or not yet durable is in
//! it; so is the offset after each of its entries.
//!
//! raft-rs asks for entries in three situations, told apart by how it asks (facts of raft 0.7):
//! - to send them to a follower: what left memory is fetched, and it is asked again later;
//! - to apply them (a size limit is given): the shard applies by its own cursor, so entries without
//!   data will do;
//! - to look for changes of membership before a campaign (no size limit): among what is committed and not
//!   yet durable, which is in memory; entries without data will do.

use std::cell::RefCell;
use std::collections::VecDeque;

use bytes::Bytes;
use raft::{GetEntriesContext, RaftState, Storage, StorageError, eraftpb};
use smallvec::SmallVec;

use crate::batch::BatchHeader;
use crate::convert::{to_raft_conf_state, to_raft_entry, to_raft_hard_state, to_raft_snapshot};
use crate::group::COPY_BYTES_MAX;
use crate::group_command::GroupCommands;
use crate::ids::{Index, NodeId, Offset, Term, WallTime};
use crate::io::{EntryKind, GroupState, LogEntry, LogStart, SnapshotHead, TermRun};

/// What an entry takes in memory besides its data, about.
const ENTRY_BYTES: usize = 96;
/// Entries without data handed to raft-rs at a time.
const STUBS_MAX: u64 = 4096;

/// Why a group's recovered state cannot be right.
#[derive(Clone, Copy, PartialEq, Eq, Debug, thiserror::Error)]
pub(crate) enum Inconsistent {
    #[error("the terms of its log are out of order at index {index}")]
    TermRuns { index: Index },
    #[error("its log ends at {last}, its terms say otherwise")]
    Last { last: Index },
    #[error("entry {index} stands in its log tail where {expected} belongs")]
    Gap { index: Index, expected: Index },
    #[error("entry {index} of its log tail has term {found} instead of {expected}")]
    Term { index: Index, found: Term, expected: Term },
    #[error("the batch of entry {index} does not fit the offsets of its log")]
    Offsets { index: Index },
    #[error("its commit index {commit} lies beyond its last index {last}")]
    Commit { commit: Index, last: Index },
    #[error("its term {term} is older than its log, which ends in term {last_term}")]
    OldTerm { term: Term, last_term: Term },
    #[error("entry {index} should change the membership, and does not")]
    Membership { index: Index },
    #[error("its log begins after entry {index}, and its commit index is {commit}")]
    Start { index: Index, commit: Index },
    #[error("its stored entries {first} to {last} are damaged")]
    Damaged { first: Index, last: Index },
}

/// Entries of a log that rests are copied out of shared buffers up to these bytes: the waste is at most a buffer at each
/// end, which is little beside more than that.
const REST_BYTES_MAX: usize = 1 << 20;

/// Entries that raft-rs wanted for a follower and that are not in memory.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub(crate) struct Wanted {
    pub(crate) from: Index,
    /// Last index wanted (inclusive).
    pub(crate) to: Index,
}

#[derive(Debug)]
struct Slot {
    entry: LogEntry,
    /// Offset after the entry's last record.
    end: Offset,
    /// Highest time up to here, as far as memory went back when it came.
    at: WallTime,
}

#[derive(Debug)]
pub(crate) struct LogWindow {
    /// What raft-rs begins with, until it has.
    start_state: Option<Box<RaftState>>,
    /// Where the log begins.
    base: LogStart,
    /// In place while they are few: a little buffer for each quiet group would keep a page each.
    runs: SmallVec<[TermRun; 2]>,
    last: Index,
    slots: VecDeque<Slot>,
    /// Offset before the first slot.
    start: Offset,
    /// Time before the first slot, as it was known then.
    start_at: WallTime,
    bytes: usize,
    /// Highest time seen in the log, of a batch or of commands; never falls, even if these are cut.
    at_max: WallTime,
    /// Entries on loan for the append that is being built. Contiguous.
    fetched: Vec<LogEntry>,
    wanted: RefCell<Vec<Wanted>>,
    /// What a follower may be sent that needs what is gone.
    offer: Option<Box<SnapshotHead>>,
}

impl LogWindow {
    /// raft-rs has begun.
    pub(crate) fn forget_start(&mut self) {
        self.start_state = None;
    }

    /// Whether raft-rs has asked for entries that are not here.
    pub(crate) fn is_wanting(&self) -> bool {
        !self.wanted.borrow().is_empty()
    }

    /// Gives back memory that it has room for and no entries. Few entries get buffers of their own: each may be a slice of
    /// a large one, which it would keep for as long as the log rests.
    pub(crate) fn shrink(&mut self) {
        if self.bytes <= REST_BYTES_MAX {
            let entries = self.slots.iter_mut().map(|slot| &mut slot.entry);
            for entry in entries.filter(|entry| entry.data.len() >= COPY_BYTES_MAX) {
                entry.data = Bytes::copy_from_slice(&entry.data);
            }
        }
        self.slots.shrink_to_fit();
        self.runs.shrink_to_fit();
        self.fetched = Vec::new();
        self.wanted.get_mut().shrink_to_fit();
    }

    /// The window of a replica as it starts. The tail must reach back to the commit index; `at` is a time that
    /// the log is known to have reached before it.
    pub(crate) fn new(state: &GroupState, at: WallTime) -> Result<LogWindow, Inconsistent> {
        check_state(state)?;
        let mut window = LogWindow {
            start_state: Some(Box::new(RaftState::new(
                to_raft_hard_state(&state.hard_state),
                to_raft_conf_state(&state.conf_state),
            ))),
            base: state.start,
            runs: SmallVec::from_slice(&state.term_runs),
            last: state.last,
            slots: VecDeque::with_capacity(state.tail.len()),
            start: Offset(0),
            start_at: WallTime(0),
            bytes: 0,
            at_max: at,
            fetched: Vec::new(),
            wanted: RefCell::new(Vec::new()),
            offer: None,
        };
        let mut expected = Index(state.last.0 + 1 - state.tail.len() as u64);
        let mut end = state.next_offset;
        // Backwards: only the offset at the end of the log is given.
        for entry in state.tail.iter().rev().filter(|entry| entry.batch().is_some()) {
            let header = header_of(entry).ok_or(Inconsistent::Offsets { index: entry.index })?;
            if header.end() != end {
                return Err(Inconsistent::Offsets { index: entry.index });
            }
            end = header.base;
        }
        window.start = end;
        if expected == state.start.index.next() && end != state.start.offset {
            return Err(Inconsistent::Offsets { index: expected });
        }
        for entry in &state.tail {
            if entry.index != expected {
                return Err(Inconsistent::Gap { index: entry.index, expected });
            }
            let term = window.term_at(entry.index);
            if entry.term != term {
                return Err(Inconsistent::Term { index: entry.index, found: entry.term, expected: term });
            }
            window.push(entry.clone());
            expected = expected.next();
        }
        Ok(window)
    }

    /// Index of the first entry in memory; one past the last if there is none.
    pub(crate) fn first(&self) -> Index {
        Index(self.last.0 + 1 - self.slots.len() as u64)
    }

    /// What the entries take in memory, about.
    pub(crate) fn bytes(&self) -> usize {
        self.bytes
    }

    pub(crate) fn at_max(&self) -> WallTime {
        self.at_max
    }

    /// Where the log begins.
    pub(crate) fn base(&self) -> LogStart {
        self.base
    }

    /// Term of an index of the log, or of the entry before it.
    ///
    /// # Panics
    /// If the index lies beyond the last, or further before the first.
    pub(crate) fn term_at(&self, index: Index) -> Term {
        let (base, last) = (self.base.index, self.last);
        assert!(
            (base..=last).contains(&index),
            "the log knows the terms of {base} to {last}, not of {index}"
        );
        let after = self.runs.partition_point(|run| run.first <= index);
        after.checked_sub(1).map_or(self.base.term, |at| self.runs[at].term)
    }

    /// Offset after the entry at an index.
    ///
    /// # Panics
    /// If the entry and the one after it are not in memory.
    pub(crate) fn end_at(&self, index: Index) -> Offset {
        if index.next() == self.first() {
            return self.start;
        }
        self.slots[self.position(index)].end
    }

    fn position(&self, index: Index) -> usize {
        let first = self.first();
        assert!(index >= first && index <= self.last, "entry {index} is not in {first}..={}", self.last);
        usize::try_from(index.0 - first.0).expect("a position in memory")
    }

    /// Takes entries behind what raft-rs calls stable. The first may cut a conflicting suffix.
    ///
    /// # Panics
    /// If they leave a gap, or cut what is no longer in memory: that was committed.
    pub(crate) fn append(&mut self, entries: &[LogEntry]) {
        let Some(first) = entries.first() else { return };
        assert!(first.index.0 <= self.last.0 + 1, "entry {} leaves a gap after {}", first.index, self.last);
        if first.index <= self.last {
            self.cut(first.index);
        }
        for entry in entries {
            assert_eq!(entry.index, self.last.next(), "entries follow each other");
            if self.runs.last().is_none_or(|run| run.term != entry.term) {
                self.runs.push(TermRun { first: entry.index, term: entry.term });
            }
            self.last = entry.index;
            self.push(entry.clone());
        }
    }

    /// Drops everything from an index on.
    fn cut(&mut self, from: Index) {
        let position = self.position(from);
        for slot in self.slots.drain(position..) {
            self.bytes -= entry_bytes(&slot.entry);
        }
        let runs = self.runs.partition_point(|run| run.first < from);
        self.runs.truncate(runs);
        self.last = Index(from.0 - 1);
    }

    fn push(&mut self, entry: LogEntry) {
        let (before, mut at) =
            self.slots.back().map_or((self.start, self.start_at), |slot| (slot.end, slot.at));
        let mut end = before;
        if entry.batch().is_some() {
            let header = header_of(&entry).expect("a batch in the log was checked before it came here");
            assert_eq!(header.base, before, "the batch of entry {} continues the offsets", entry.index);
            end = header.end();
            at = at.max(header.at);
        } else if let Some(data) = entry.group_commands() {
            let commands = GroupCommands::decode(data);
            at = at.max(commands.expect("commands in the log were checked before they came here").at);
        }
        self.at_max = self.at_max.max(at);
        self.bytes += entry_bytes(&entry);
        self.slots.push_back(Slot { entry, end, at });
    }

    /// Lets go of the oldest entries up to `up_to` (inclusive) until at most `bytes_max` are left.
    pub(crate) fn evict(&mut self, up_to: Index, bytes_max: usize) {
        while self.bytes > bytes_max && self.slots.front().is_some_and(|slot| slot.entry.index <= up_to) {
            self.pop_front();
        }
    }

    /// Moves the beginning of the log: entries up to that of the place are gone.
    ///
    /// # Panics
    /// If the place is before the present one, or not in the log.
    pub(crate) fn compact_to(&mut self, place: LogStart) {
        assert!(
            place.index >= self.base.index && place.term == self.term_at(place.index),
            "a place of the log"
        );
        while self.slots.front().is_some_and(|slot| slot.entry.index <= place.index) {
            self.pop_front();
        }
        if self.first() == place.index.next() {
            assert_eq!(self.start, place.offset, "a place has the offset after its entry");
        }
        self.base = place;
        let first = place.index.next();
        let before = self.runs.partition_point(|run| run.first <= first).saturating_sub(1);
        self.runs.drain(..before);
        match self.runs.first_mut() {
            Some(run) if self.last >= first => run.first = run.first.max(first),
            _ => self.runs.clear(),
        }
    }

    /// The log is void, and goes on after a place.
    pub(crate) fn restart(&mut self, place: LogStart) {
        self.slots.clear();
        self.runs.clear();
        (self.base, self.last, self.start, self.bytes) = (place, place.index, place.offset, 0);
        self.fetched.clear();
        self.wanted.take();
    }

    /// What a follower may be sent that needs what is gone.
    pub(crate) fn set_offer(&mut self, offer: Option<SnapshotHead>) {
        self.offer = offer.map(Box::new);
    }

    fn pop_front(&mut self) {
        let slot = self.slots.pop_front().expect("looked at just now");
        self.bytes -= entry_bytes(&slot.entry);
        (self.start, self.start_at) = (slot.end, slot.at);
    }

    /// Entries from one in memory to `to` (inclusive), of at most `bytes_max` but at least one.
    pub(crate) fn read(&self, from: Index, to: Index, bytes_max: usize) -> Vec<LogEntry> {
        let slots = self.slots.range(self.position(from)..);
        let entries = slots.map(|slot| &slot.entry).take_while(|entry| entry.index <= to);
        limited(entries, bytes_max).cloned().collect()
    }

    /// Index of the entry in memory that holds a record.
    pub(crate) fn index_of(&self, offset: Offset) -> Option<Index> {
        if offset < self.start {
            return None;
        }
        let position = self.slots.partition_point(|slot| slot.end <= offset);
        self.slots.get(position).map(|slot| slot.entry.index)
    }

    /// Offset of the first committed record in memory of a time or later, or after all of them; and whether no
    /// record before memory can be of that time.
    pub(crate) fn first_from(&self, at: WallTime, commit: Index) -> (Offset, bool) {
        let count =
            usize::try_from((commit.0 + 1).saturating_sub(self.first().0)).expect("a count in memory");
        let (mut low, mut high) = (0, count.min(self.slots.len()));
        while low < high {
            let middle = low + (high - low) / 2;
            if self.slots[middle].at < at { low = middle + 1 } else { high = middle }
        }
        let offset = low.checked_sub(1).map_or(self.start, |before| self.slots[before].end);
        (offset, offset > self.start)
    }

    /// Whether entries read back from the durable log are those of this log.
    pub(crate) fn contains(&self, entries: &[LogEntry]) -> bool {
        let is_contiguous = entries.windows(2).all(|pair| pair[1].index == pair[0].index.next());
        let is_ours = |entry: &LogEntry| {
            (self.base.index.next()..=self.last).contains(&entry.index)
                && entry.term == self.term_at(entry.index)
        };
        is_contiguous && entries.iter().all(is_ours)
    }

    /// Lends entries that left memory to raft-rs while it builds appends.
    pub(crate) fn lend(&mut self, entries: Vec<LogEntry>) {
        self.fetched = entries;
    }

    /// What raft-rs missed since the last call: at most one range for each follower's position.
    pub(crate) fn take_wanted(&self) -> Vec<Wanted> {
        self.wanted.take()
    }

    /// The entry at an index without its data. What it is for is known as long as it is in memory.
    fn stub(&self, index: Index) -> eraftpb::Entry {
        let kind = self.get(index).map_or(EntryKind::Normal, |entry| entry.kind);
        to_raft_entry(&LogEntry { index, term: self.term_at(index), kind, data: Bytes::new() })
    }

    /// An entry in memory.
    pub(crate) fn get(&self, index: Index) -> Option<&LogEntry> {
        let position = index.0.checked_sub(self.first().0)?;
        self.slots.get(usize::try_from(position).ok()?).map(|slot| &slot.entry)
    }

    fn want(&self, wanted: Wanted) {
        let mut all = self.wanted.borrow_mut();
        if all.iter().all(|other| other.from != wanted.from) {
            all.push(wanted);
        }
    }

    fn entries_to_send(&self, from: Index, to: Index, bytes_max: usize) -> Option<Vec<eraftpb::Entry>> {
        if from >= self.first() {
            let slots = self.slots.range(self.position(from)..);
            let entries = slots.map(|slot| &slot.entry).take_while(|entry| entry.index <= to);
            return Some(limited(entries, bytes_max).map(to_raft_entry).collect());
        }
        let first = self.fetched.first()?.index;
        let skipped = usize::try_from(from.0.checked_sub(first.0)?).ok()?;
        let entries = self.fetched.get(skipped..)?.iter().take_while(|entry| entry.index <= to);
        Some(limited(entries, bytes_max).map(to_raft_entry).collect())
            .filter(|found: &Vec<_>| !found.is_empty())
    }
}

impl Storage for LogWindow {
    fn initial_state(&self) -> raft::Result<RaftState> {
        Ok(self.start_state.as_deref().expect("raft-rs asks once, as it begins").clone())
    }

    fn entries(
        &self,
        low: u64,
        high: u64,
        max_size: impl Into<Option<u64>>,
        context: GetEntriesContext,
    ) -> raft::Result<Vec<eraftpb::Entry>> {
        let max_size: Option<u64> = max_size.into();
        if context.can_async() {
            let to = Index(high - 1);
            let bytes_max = max_size.map_or(usize::MAX, |bytes| usize::try_from(bytes).unwrap_or(usize::MAX));
            return self.entries_to_send(Index(low), to, bytes_max).ok_or_else(|| {
                self.want(Wanted { from: Index(low), to });
                raft::Error::Store(StorageError::LogTemporarilyUnavailable)
            });
        }
        let high = if max_size.is_some() { high.min(low + STUBS_MAX) } else { high };
        Ok((low..high).map(|index| self.stub(Index(index))).collect())
    }

    fn term(&self, index: u64) -> raft::Result<u64> {
        if index > self.last.0 {
            return Err(raft::Error::Store(StorageError::Unavailable));
        }
        if index < self.base.index.0 {
            return Err(raft::Error::Store(StorageError::Compacted));
        }
        Ok(self.term_at(Index(index)).0)
    }

    fn first_index(&self) -> raft::Result<u64> {
        Ok(self.base.index.0 + 1)
    }

    fn last_index(&self) -> raft::Result<u64> {
        Ok(self.last.0)
    }

    fn snapshot(&self, _: u64, to: u64) -> raft::Result<eraftpb::Snapshot> {
        let offer = self.offer.as_ref().map(|head| to_raft_snapshot(head, NodeId(to)));
        offer.ok_or(raft::Error::Store(StorageError::SnapshotTemporarilyUnavailable))
    }
}

fn check_state(state: &GroupState) -> Result<(), Inconsistent> {
    let start = state.start;
    let count = state.last.0.checked_sub(start.index.0).ok_or(Inconsistent::Last { last: state.last })?;
    if state.term_runs.is_empty() != (count == 0) || state.tail.len() as u64 > count {
        return Err(Inconsistent::Last { last: state.last });
    }
    let mut before = TermRun { first: start.index, term: start.term };
    for (number, run) in state.term_runs.iter().enumerate() {
        let is_after = if number == 0 {
            // It may go on with the term of the entry before the log.
            run.first == start.index.next() && run.term >= start.term.max(Term(1))
        } else {
            run.first > before.first && run.term > before.term
        };
        if !is_after || run.first > state.last {
            return Err(Inconsistent::TermRuns { index: run.first });
        }
        before = *run;
    }
    if state.hard_state.commit < start.index {
        return Err(Inconsistent::Start { index: start.index, commit: state.hard_state.commit });
    }
    if state.hard_state.commit > state.last {
        return Err(Inconsistent::Commit { commit: state.hard_state.commit, last: state.last });
    }
    if state.hard_state.term < before.term {
        return Err(Inconsistent::OldTerm { term: state.hard_state.term, last_term: before.term });
    }
    Ok(())
}

/// Header of an entry's batch; `None` if it has none.
pub(crate) fn header_of(entry: &LogEntry) -> Option<BatchHeader> {
    BatchHeader::parse(&entry.data).ok()
}

fn entry_bytes(entry: &LogEntry) -> usize {
    entry.data.len() + ENTRY_BYTES
}

/// As many entries as fit into `bytes_max` of data, but at least one.
pub(crate) fn limited<'a>(
    entries: impl Iterator<Item = &'a LogEntry>,
    bytes_max: usize,
) -> impl Iterator<Item = &'a LogEntry> {
    let mut bytes = 0_usize;
    let mut is_first = true;
    entries.take_while(move |entry| {
        bytes = bytes.saturating_add(entry.data.len());
        std::mem::take(&mut is_first) || bytes <= bytes_max
    })
}

#[cfg(test)]
mod tests;
