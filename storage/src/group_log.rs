//! One group's log as an index in memory: which entries stand in which block of which file.
//!
//! Invariants: it knows only what is durable. The log is contiguous: what stands in the log file
//! (`cold`) ends at `moved`, what stands only in the journal (`hot`) begins after it. Nothing at or
//! below `moved` is ever voided by entries: it is committed.

use std::collections::VecDeque;

use bytes::Bytes;
use iroh_raft_core::{ConfState, FlushSeq, HardState, Index, LogChange, LogPosition, LogStart, Offset};

use crate::block::PartPlace;

/// Entries that stand in one part of one journal block.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub(crate) struct Span {
    /// First index (inclusive).
    pub(crate) first: Index,
    /// Offset of its first record.
    pub(crate) base: Offset,
    /// Last flush of the block: its key.
    pub(crate) block: FlushSeq,
    pub(crate) place: PartPlace,
    /// Number of entries, at least 1; fewer than in the part if a later suffix voided the rest.
    pub(crate) count: u32,
    /// Bytes of data in the part.
    pub(crate) data_bytes: u32,
}

impl Span {
    /// Last index (inclusive).
    pub(crate) fn last(&self) -> Index {
        Index(self.first.0 + u64::from(self.count) - 1)
    }
}

/// One block of the log file.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub(crate) struct ColdSpan {
    /// First index (inclusive): with the group, its key.
    pub(crate) first: Index,
    /// Last index (inclusive).
    pub(crate) last: Index,
    /// Offset of its first record.
    pub(crate) base: Offset,
    /// Bytes of the block.
    pub(crate) bytes: u32,
    pub(crate) checksum: u32,
}

/// The log of one group.
#[derive(Clone, Default, Debug)]
pub(crate) struct GroupLog {
    /// Told from a group of the same id that was removed.
    pub(crate) incarnation: u64,
    pub(crate) hard_state: HardState,
    pub(crate) conf_state: ConfState,
    pub(crate) meta: Bytes,
    pub(crate) is_under_repair: bool,
    pub(crate) joined_at: LogPosition,
    start: LogStart,
    cold: VecDeque<ColdSpan>,
    /// Last index in the log file, or where the log starts.
    moved: Index,
    /// Offset after it.
    moved_end: Offset,
    /// Checksum of the newest block in the log file: what the next one follows.
    pub(crate) cold_checksum: u32,
    hot: VecDeque<Span>,
    /// Last index that was durable and is damaged or gone, past the end of the log; 0 if there is none.
    lost: Index,
    next_offset: Offset,
    cuts: u64,
}

/// Where entries have to be read.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub(crate) enum Source {
    Journal(Span),
    Log(ColdSpan),
}

/// What a reader has to read, and how to tell whether it still held afterwards.
#[derive(Clone, Debug)]
pub(crate) struct ReadPlan {
    pub(crate) sources: Vec<Source>,
    /// Where the log begins: the first block may hold older entries.
    pub(crate) start: Index,
    pub(crate) stamp: Stamp,
}

/// Unchanged means that what was read before still holds.
#[derive(Clone, Copy, PartialEq, Eq, Default, Debug)]
pub(crate) struct Stamp {
    incarnation: u64,
    cuts: u64,
}

impl GroupLog {
    /// An empty log.
    pub(crate) fn new(incarnation: u64) -> GroupLog {
        GroupLog { incarnation, ..GroupLog::default() }
    }

    /// A log as the log file knows it.
    pub(crate) fn from_log_file(
        start: LogStart,
        moved: Index,
        moved_end: Offset,
        cold_checksum: u32,
    ) -> GroupLog {
        GroupLog { start, moved, moved_end, cold_checksum, next_offset: moved_end, ..GroupLog::default() }
    }

    pub(crate) fn start(&self) -> LogStart {
        self.start
    }

    /// Last index in the log file; where the log starts, if that is later.
    pub(crate) fn moved(&self) -> Index {
        self.moved
    }

    pub(crate) fn moved_end(&self) -> Offset {
        self.moved_end
    }

    pub(crate) fn hot(&self) -> &VecDeque<Span> {
        &self.hot
    }

    /// Last index of the log; where it starts when it is empty.
    pub(crate) fn last(&self) -> Index {
        self.hot.back().map_or(self.moved, Span::last)
    }

    /// Offset that the next record gets.
    pub(crate) fn next_offset(&self) -> Offset {
        self.next_offset
    }

    pub(crate) fn stamp(&self) -> Stamp {
        Stamp { incarnation: self.incarnation, cuts: self.cuts }
    }

    /// Adds a span that ends at offset `end` (exclusive); what stood at its first index and after is
    /// void.
    ///
    /// # Panics
    /// If it is empty, leaves a gap or voids what was moved: callers have checked that.
    pub(crate) fn append(&mut self, span: Span, end: Offset) {
        assert!(span.count > 0 && span.last() > self.moved, "a span holds entries that are not moved");
        assert!(span.first <= self.last().next(), "a log has no gaps");
        if span.first <= self.last() {
            self.cuts += 1;
        }
        self.drop_hot_from(span.first);
        if self.hot.capacity() == 0 {
            // Most groups of many have one block at a time in the journal.
            self.hot.reserve_exact(1);
        }
        self.hot.push_back(span);
        self.next_offset = end;
    }

    fn drop_hot_from(&mut self, first: Index) {
        while self.hot.pop_back_if(|last| last.first >= first).is_some() {}
        if let Some(last) = self.hot.back_mut()
            && last.last() >= first
        {
            last.count = (first.0 - last.first.0) as u32;
        }
        // What is left of it may all be moved.
        while self.hot.pop_back_if(|last| last.last() <= self.moved).is_some() {}
    }

    /// Ends the log before an index, which is not moved and begins at `base`: what replaced it and what
    /// followed is damaged.
    pub(crate) fn cut(&mut self, first: Index, base: Offset) {
        self.drop_hot_from(first);
        self.next_offset = if self.hot.is_empty() { self.moved_end } else { base.min(self.next_offset) };
        self.cuts += 1;
    }

    /// Last index that is damaged or gone, past the end of the log; 0 if there is none.
    pub(crate) fn lost(&self) -> Index {
        self.lost
    }

    pub(crate) fn set_lost(&mut self, last: Index) {
        self.lost = last;
    }

    /// The log file says more than it has: what follows this index was lost before it could be moved.
    pub(crate) fn lose_after(&mut self, moved: Index) {
        (self.lost, self.moved) = (self.moved, moved);
    }

    /// Last index that is moved or lost: what the log file says was moved. It misses what was lost at every
    /// start then, also once the journal is past it.
    pub(crate) fn moved_or_lost(&self) -> Index {
        self.moved.max(self.lost)
    }

    /// Makes a change; returns the blocks of the log file that are void by it, at once or in time.
    pub(crate) fn change(&mut self, change: LogChange) -> Vec<ColdSpan> {
        match change {
            LogChange::CompactTo(start) => {
                self.compact_to(start);
                self.take_compacted()
            }
            LogChange::StartAfter(start) => {
                self.restart(start);
                self.cold.drain(..).collect()
            }
            LogChange::CutAfter(place) => self.cut_after(place),
            LogChange::Remove => self.cold.drain(..).collect(),
        }
    }

    /// Whether the log can be made to end there, wherever what follows stands.
    pub(crate) fn may_end_at(&self, place: LogStart) -> bool {
        let is_end_of_block = self.cold.binary_search_by_key(&place.index, |span| span.last).is_ok();
        place == self.start || is_end_of_block || (self.moved..=self.last()).contains(&place.index)
    }

    /// The end of the last stored block before an entry, or the start of the log: its index, and the offset after it.
    pub(crate) fn end_before(&self, index: Index) -> (Index, Offset) {
        let hot = self.hot.iter().find(|span| span.last() >= index).map(|span| (span.first, span.base));
        let cold = self.cold.get(self.cold.partition_point(|span| span.last < index));
        let (first, base) = match (cold, hot) {
            (Some(span), _) => (span.first, span.base),
            (None, Some((first, base))) if first > self.moved => (first, base),
            (None, Some(_)) => return (self.moved, self.moved_end),
            (None, None) => return (self.last(), self.next_offset),
        };
        if first <= self.start.index.next() {
            (self.start.index, self.start.offset)
        } else {
            (Index(first.0 - 1), base)
        }
    }

    /// What follows a place is void, also in the log file. Returns its blocks there.
    fn cut_after(&mut self, place: LogStart) -> Vec<ColdSpan> {
        // A start reads the cut again when the log file knows already that it was compacted after that.
        let place = if place.index < self.start.index { self.start } else { place };
        if place.index > self.last() {
            // What stood there then was void later, and was not carried on.
            return Vec::new();
        }
        let kept = self.cold.partition_point(|span| span.last <= place.index);
        let void = self.cold.split_off(kept).into();
        if place.index < self.moved {
            self.hot.clear();
            (self.moved, self.moved_end) = (place.index, place.offset);
            self.cold_checksum = self.cold.back().map_or(0, |span| span.checksum);
        } else {
            self.drop_hot_from(place.index.next());
        }
        self.next_offset = place.offset;
        self.lost = Index(0);
        self.cuts += 1;
        void
    }

    fn compact_to(&mut self, start: LogStart) {
        if start.index <= self.start.index {
            return;
        }
        self.start = start;
        self.drop_hot_to(start.index);
        if start.index > self.moved {
            (self.moved, self.moved_end) = (start.index, start.offset);
            self.cold_checksum = 0;
        }
        if start.index >= self.last() {
            self.next_offset = self.next_offset.max(start.offset);
        }
    }

    /// Begins anew after a place; what stands in the log file is not looked at.
    pub(crate) fn restart(&mut self, start: LogStart) {
        self.hot.clear();
        self.lost = Index(0);
        self.start = start;
        (self.moved, self.moved_end, self.next_offset) = (start.index, start.offset, start.offset);
        self.cold_checksum = 0;
        self.cuts += 1;
    }

    /// Forgets what stands only in the journal.
    pub(crate) fn drop_hot(&mut self) {
        self.hot.clear();
        self.next_offset = self.moved_end;
        self.cuts += 1;
    }

    /// Blocks in the log file, oldest first.
    pub(crate) fn cold(&self) -> impl Iterator<Item = &ColdSpan> {
        self.cold.iter()
    }

    /// Whether a block in the log file begins with this entry.
    pub(crate) fn has_cold(&self, first: Index) -> bool {
        self.cold.binary_search_by_key(&first, |span| span.first).is_ok()
    }

    /// Newest block in the log file.
    pub(crate) fn cold_back(&self) -> Option<&ColdSpan> {
        self.cold.back()
    }

    /// Takes the next block of the log file, while the log is loaded.
    pub(crate) fn push_cold(&mut self, span: ColdSpan) {
        self.cold.push_back(span);
    }

    /// Takes out the blocks of the log file that lie wholly before the start.
    fn take_compacted(&mut self) -> Vec<ColdSpan> {
        let mut taken = Vec::new();
        while let Some(span) = self.cold.pop_front_if(|span| span.last <= self.start.index) {
            taken.push(span);
        }
        taken
    }

    fn drop_hot_to(&mut self, index: Index) {
        while self.hot.pop_front_if(|span| span.last() <= index).is_some() {}
    }

    /// The blocks are in the log file now. Returns those that were compacted meanwhile.
    pub(crate) fn take_moved(&mut self, blocks: Vec<ColdSpan>, end: Offset) -> Vec<ColdSpan> {
        let Some(last) = blocks.last() else { return Vec::new() };
        if last.last > self.moved {
            (self.moved, self.moved_end) = (last.last, end);
            self.cold_checksum = last.checksum;
            self.drop_hot_to(last.last);
        }
        self.cold.extend(blocks);
        self.take_compacted()
    }

    /// The spans that stand in blocks up to this one, and all before them in the log.
    pub(crate) fn hot_up_to(&self, block: FlushSeq) -> impl Iterator<Item = &Span> {
        let count = self.hot.iter().rposition(|span| span.block <= block).map_or(0, |at| at + 1);
        self.hot.iter().take(count)
    }

    /// Last flush of the oldest block with an entry beyond the commit index.
    pub(crate) fn first_unsettled(&self) -> Option<FlushSeq> {
        let settled = self.hot.partition_point(|span| span.last() <= self.hard_state.commit);
        self.hot.range(settled..).map(|span| span.block).min()
    }

    /// Entries at the front stand together in another block now.
    pub(crate) fn replace_carried(&mut self, span: Span) {
        // They may have been moved meanwhile.
        if span.last() > self.moved {
            self.drop_hot_to(span.last());
            self.hot.push_front(span);
        }
    }

    /// The hot span that holds an index.
    pub(crate) fn hot_span_of(&self, index: Index) -> Option<Span> {
        let after = self.hot.partition_point(|span| span.first <= index);
        let span = self.hot.get(after.checked_sub(1)?)?;
        (span.last() >= index).then_some(*span)
    }

    /// Where to read from an index on: up to `to` (inclusive), and no more once the sources after the
    /// first hold `bytes_max` bytes.
    pub(crate) fn plan_by_index(&self, from: Index, to: Index, bytes_max: usize) -> Option<ReadPlan> {
        if from <= self.start.index || from > self.last() {
            return None;
        }
        let cold = self.cold.partition_point(|span| span.last < from);
        let hot = self.hot.partition_point(|span| span.last() < from);
        Some(self.plan(cold, hot, to, bytes_max))
    }

    /// Where to read from a record on.
    pub(crate) fn plan_by_offset(&self, from: Offset, to: Index, bytes_max: usize) -> Option<ReadPlan> {
        if from < self.start.offset || from >= self.next_offset {
            return None;
        }
        // Spans without records have the base of the span after them: the last one that begins at or
        // before the record holds it.
        let cold = self.cold.partition_point(|span| span.base <= from).saturating_sub(1);
        if from < self.moved_end {
            return Some(self.plan(cold, 0, to, bytes_max));
        }
        let hot = self.hot.partition_point(|span| span.base <= from).saturating_sub(1);
        Some(self.plan(self.cold.len(), hot, to, bytes_max))
    }

    /// Where to read from the oldest block on from which on there are at most `bytes` in all, as they are stored.
    pub(crate) fn plan_newest(&self, bytes: u64, to: Index, bytes_max: usize) -> Option<ReadPlan> {
        let mut left = bytes;
        let mut fits = |bytes: u32| left.checked_sub(u64::from(bytes)).map(|rest| left = rest).is_some();
        let hot = self.hot.iter().rev().take_while(|span| fits(span.data_bytes)).count();
        if hot < self.hot.len() {
            return (hot > 0).then(|| self.plan(self.cold.len(), self.hot.len() - hot, to, bytes_max));
        }
        let cold = self.cold.iter().rev().take_while(|span| fits(span.bytes)).count();
        Some(self.plan(self.cold.len() - cold, 0, to, bytes_max))
    }

    fn plan(&self, cold: usize, hot: usize, to: Index, bytes_max: usize) -> ReadPlan {
        let mut bytes = 0_usize;
        let cold = self.cold.iter().skip(cold).map(|span| (span.first, span.bytes, Source::Log(*span)));
        let hot = self.hot.iter().skip(hot).map(|span| (span.first, span.data_bytes, Source::Journal(*span)));
        let sources = cold
            .chain(hot)
            .take_while(|(first, ..)| *first <= to)
            .take_while(|(_, source_bytes, _)| {
                let is_wanted = bytes == 0 || bytes < bytes_max;
                // The first source counts one byte: how much of it is skipped is not known here.
                bytes = if bytes == 0 { 1 } else { bytes.saturating_add(*source_bytes as usize) };
                is_wanted
            })
            .map(|(.., source)| source)
            .collect();
        ReadPlan { sources, start: self.start.index, stamp: self.stamp() }
    }
}

#[cfg(test)]
mod tests;
