//! Which block holds which entries: the index in memory, shared by writer and readers.
//!
//! Invariants: it knows only what is committed; a group's spans are contiguous in index, from 1,
//! and dense in offset, from 0; a conflicting suffix removes what it voids.

use std::collections::HashMap;
use std::sync::{Mutex, MutexGuard, PoisonError};

use iroh_raft_core::{FlushSeq, GroupId, Index, Offset};

/// Entries of one group that stand in one part of one block.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub(crate) struct Span {
    /// First index (inclusive).
    pub(crate) first: Index,
    /// Offset of its first record.
    pub(crate) base: Offset,
    /// Last flush of the block: its key.
    pub(crate) block: FlushSeq,
    /// Where the part begins in the block, in bytes.
    pub(crate) position: u32,
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

/// The log of one group, as spans.
#[derive(Clone, Default, Debug)]
pub(crate) struct GroupSpans {
    spans: Vec<Span>,
    next_offset: Offset,
    cuts: u64,
}

impl GroupSpans {
    /// Last index of the log; 0 when it is empty.
    pub(crate) fn last(&self) -> Index {
        self.spans.last().map_or(Index(0), Span::last)
    }

    /// Offset that the next record gets.
    pub(crate) fn next_offset(&self) -> Offset {
        self.next_offset
    }

    /// How often a suffix was voided: unchanged means that what was read before still holds.
    pub(crate) fn cuts(&self) -> u64 {
        self.cuts
    }

    /// Adds a span that ends at offset `end` (exclusive); what stood at its first index and after is
    /// void.
    ///
    /// # Panics
    /// If it is empty or leaves a gap: callers have checked that.
    pub(crate) fn append(&mut self, span: Span, end: Offset) {
        assert!(span.count > 0 && span.first.0 > 0, "a span holds entries");
        assert!(span.first <= self.last().next(), "a log has no gaps");
        if span.first <= self.last() {
            self.cuts += 1;
        }
        while self.spans.pop_if(|last| last.first >= span.first).is_some() {}
        if let Some(last) = self.spans.last_mut()
            && last.last() >= span.first
        {
            last.count = (span.first.0 - last.first.0) as u32;
        }
        self.spans.push(span);
        self.next_offset = end;
    }

    /// Position in the list of the span that holds an index.
    fn position_of(&self, index: Index) -> Option<usize> {
        let after = self.spans.partition_point(|span| span.first <= index);
        let position = after.checked_sub(1)?;
        (self.spans.get(position)?.last() >= index).then_some(position)
    }

    /// The span that holds an index.
    pub(crate) fn span_of(&self, index: Index) -> Option<Span> {
        self.spans.get(self.position_of(index)?).copied()
    }

    /// Index at the start of the span that holds a record. Spans without records have the base of
    /// the span after them, so the last one that begins at or before the record holds it.
    fn position_of_record(&self, offset: Offset) -> Option<usize> {
        if offset >= self.next_offset {
            return None;
        }
        self.spans.partition_point(|span| span.base <= offset).checked_sub(1)
    }

    /// The spans to read, from the one at `position` on: up to index `to` (inclusive), and no
    /// more once those after the first hold `bytes_max` bytes.
    fn spans_from(&self, position: usize, to: Index, bytes_max: usize) -> Vec<Span> {
        let mut bytes = 0_usize;
        let rest = self.spans.get(position..).unwrap_or_default();
        rest.iter()
            .take_while(|span| span.first <= to)
            .take_while(|span| {
                let is_wanted = bytes == 0 || bytes < bytes_max;
                // The first span counts one byte: how much of it is skipped is not known here.
                bytes = if bytes == 0 { 1 } else { bytes.saturating_add(span.data_bytes as usize) };
                is_wanted
            })
            .copied()
            .collect()
    }
}

/// What a reader has to read, and how to tell whether it still held afterwards.
#[derive(Clone, Debug)]
pub(crate) struct ReadPlan {
    pub(crate) spans: Vec<Span>,
    pub(crate) cuts: u64,
}

/// The spans of all groups of a shard.
#[derive(Default, Debug)]
pub(crate) struct SpanIndex(Mutex<HashMap<GroupId, GroupSpans>>);

impl SpanIndex {
    pub(crate) fn new(groups: HashMap<GroupId, GroupSpans>) -> SpanIndex {
        SpanIndex(Mutex::new(groups))
    }

    /// For a short look or change; never held while the disk works.
    pub(crate) fn lock(&self) -> MutexGuard<'_, HashMap<GroupId, GroupSpans>> {
        // The only panics under the lock are broken invariants of one group, whose spans stay whole.
        self.0.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// Where to read from an index on.
    pub(crate) fn plan_by_index(
        &self,
        group: GroupId,
        from: Index,
        to: Index,
        bytes_max: usize,
    ) -> Option<ReadPlan> {
        let groups = self.lock();
        let spans = groups.get(&group)?;
        let position = spans.position_of(from)?;
        Some(ReadPlan { spans: spans.spans_from(position, to, bytes_max), cuts: spans.cuts })
    }

    /// Where to read from a record on.
    pub(crate) fn plan_by_offset(
        &self,
        group: GroupId,
        from: Offset,
        to: Index,
        bytes_max: usize,
    ) -> Option<ReadPlan> {
        let groups = self.lock();
        let spans = groups.get(&group)?;
        let position = spans.position_of_record(from)?;
        Some(ReadPlan { spans: spans.spans_from(position, to, bytes_max), cuts: spans.cuts })
    }

    /// How often the group's suffix was voided so far.
    pub(crate) fn cuts(&self, group: GroupId) -> u64 {
        self.lock().get(&group).map_or(0, GroupSpans::cuts)
    }
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    proptest! {
        /// Against a plain list of (block, records) for each entry.
        #[test]
        fn every_index_and_offset_is_found_in_the_newest_block_that_has_it(
            appends in prop::collection::vec((0_u64..6, prop::collection::vec(0_u64..3, 1..5)), 1..20),
        ) {
            let mut spans = GroupSpans::default();
            let mut entries: Vec<(u64, u64)> = Vec::new();
            let mut cuts = 0;
            for (block, (back, records)) in (1..).zip(appends) {
                let kept = entries.len().saturating_sub(back as usize);
                cuts += u64::from(kept < entries.len());
                entries.truncate(kept);
                let base: u64 = entries.iter().map(|(_, records)| records).sum();
                let end = base + records.iter().sum::<u64>();
                let span = Span {
                    first: Index(kept as u64 + 1),
                    base: Offset(base),
                    block: FlushSeq(block),
                    position: 64,
                    count: records.len() as u32,
                    data_bytes: 10,
                };
                spans.append(span, Offset(end));
                entries.extend(records.into_iter().map(|records| (block, records)));
                prop_assert_eq!(spans.next_offset(), Offset(end));
            }
            prop_assert_eq!(spans.cuts(), cuts);
            prop_assert_eq!(spans.last().0, entries.len() as u64);
            prop_assert!(spans.span_of(Index(0)).is_none());
            prop_assert!(spans.span_of(spans.last().next()).is_none());
            let mut offset = 0;
            for (index, (block, records)) in (1..).zip(&entries) {
                prop_assert_eq!(spans.span_of(Index(index)).unwrap().block.0, *block);
                for record in offset..offset + records {
                    let at = spans.position_of_record(Offset(record)).unwrap();
                    prop_assert_eq!(spans.spans[at].block.0, *block, "record {}", record);
                }
                offset += records;
            }
            prop_assert!(spans.position_of_record(Offset(offset)).is_none());
        }
    }
}
