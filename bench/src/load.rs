//! The work: flushes of records, made from a fixed seed.

use std::ops::RangeInclusive;

use bytes::Bytes;
use iroh_raft_core::batch::{BATCH_HEADER_BYTES, RecordBlock, encode_batch};
use iroh_raft_core::{
    Append, EntryKind, FlushSeq, GroupAppend, GroupId, HardState, Index, LogChange, LogEntry, LogStart,
    NodeId, Offset, Term, WallTime,
};
use rand::rngs::SmallRng;
use rand::{RngCore, SeedableRng};

/// The term of every entry.
pub const TERM: Term = Term(1);
/// Where a batch holds the offset of its first record (FORMAT.md, "Batch").
const BASE_OFFSET: std::ops::Range<usize> = 8..16;
const _: () = assert!(BASE_OFFSET.end <= BATCH_HEADER_BYTES);

/// Shape of every flush of a run: one entry in each group.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub struct Load {
    /// Groups that each flush touches, with ids from 1.
    pub groups: u64,
    /// Records in the entry of each group.
    pub entry_records: u64,
    /// Bytes of each record.
    pub record_bytes: usize,
}

impl Load {
    /// `records` of `record_bytes` a flush, spread evenly over `groups`.
    ///
    /// # Panics
    /// If they do not divide evenly.
    #[must_use]
    pub const fn new(groups: u64, records: u64, record_bytes: usize) -> Load {
        assert!(groups > 0 && records.is_multiple_of(groups), "records are spread evenly over the groups");
        Load { groups, entry_records: records / groups, record_bytes }
    }

    /// Records in one flush.
    #[must_use]
    pub const fn records(&self) -> u64 {
        self.groups * self.entry_records
    }

    /// Bytes of the records in one flush: what a user would count.
    #[must_use]
    pub const fn payload_bytes(&self) -> u64 {
        self.records() * self.record_bytes as u64
    }

    /// Bytes of the entries in one flush: batches with their headers and lengths.
    #[must_use]
    pub const fn entry_bytes(&self) -> u64 {
        self.payload_bytes() + self.groups * BATCH_HEADER_BYTES as u64 + self.records() * 4
    }
}

/// Makes one flush after the other. Entry `n` of every group goes into flush `n`.
#[derive(Debug)]
pub struct Source {
    load: Load,
    /// One batch a group; its base is that of the next flush once it is made.
    batches: Vec<Bytes>,
    seq: u64,
    /// Flushes that are kept before they are compacted away, and how many go at a time.
    retention: Option<(u64, u64)>,
    compacted: u64,
}

impl Source {
    /// A source that begins with flush 1. Equal seeds give equal records.
    #[must_use]
    pub fn new(load: Load, seed: u64) -> Source {
        let mut random = SmallRng::seed_from_u64(seed);
        let mut batch = |_| {
            // Incompressible: what compresses would be written faster by whoever compresses.
            let mut records = vec![vec![0; load.record_bytes]; load.entry_records as usize];
            records.iter_mut().for_each(|record| random.fill_bytes(record));
            encode_batch(Offset(0), WallTime(0), std::iter::once(&RecordBlock::from_records(&records)))
        };
        let batches = (0..load.groups).map(&mut batch).collect();
        Source { load, batches, seq: 0, retention: None, compacted: 0 }
    }

    /// Compacts what is older than `bytes` of payload, a sixteenth of it at a time.
    #[must_use]
    pub fn with_retention(mut self, bytes: u64) -> Source {
        let kept = bytes.div_ceil(self.load.payload_bytes()).max(1);
        self.retention = Some((kept, (kept / 16).max(1)));
        self
    }

    /// Goes on after flush `seq`, which a log that was opened again has.
    pub fn skip_to(&mut self, seq: u64) {
        self.seq = seq;
    }

    /// The shape of its flushes.
    #[must_use]
    pub fn load(&self) -> Load {
        self.load
    }

    /// Number of the newest flush made; 0 for none yet.
    #[must_use]
    pub fn seq(&self) -> u64 {
        self.seq
    }

    /// Makes the next flush. Costs no copy when nobody holds the entries of the one before.
    #[must_use]
    pub fn next_flush(&mut self) -> Flush<'_> {
        self.seq += 1;
        let base = (self.seq - 1) * self.load.entry_records;
        for batch in &mut self.batches {
            *batch = with_base(std::mem::take(batch), base);
        }
        let mut compact_to = None;
        if let Some((kept, step)) = self.retention
            && self.seq >= self.compacted + kept + step
        {
            self.compacted += step;
            compact_to = Some(self.compacted);
        }
        Flush { load: self.load, seq: self.seq, compact_to, batches: &self.batches }
    }

    /// The entry `index` of a group, as it was made.
    ///
    /// # Panics
    /// If there is no such group.
    #[must_use]
    pub fn entry_data(&self, group: u64, index: u64) -> Bytes {
        let batch = &self.batches[group as usize - 1];
        with_base(Bytes::copy_from_slice(batch), (index - 1) * self.load.entry_records)
    }

    /// Checksum over the entries of all groups at these indexes: what reading them back has to give.
    #[must_use]
    pub fn checksum(&self, indexes: RangeInclusive<u64>) -> u32 {
        let entries =
            (1..=self.load.groups).flat_map(|group| indexes.clone().map(move |index| (group, index)));
        entries.fold(0, |sum, (group, index)| crc32c::crc32c_append(sum, &self.entry_data(group, index)))
    }
}

fn with_base(batch: Bytes, base: u64) -> Bytes {
    let mut batch = batch.try_into_mut().unwrap_or_else(|shared| (&shared[..]).into());
    batch[BASE_OFFSET].copy_from_slice(&base.to_le_bytes());
    batch.freeze()
}

/// One flush, to be written in whatever form its subject takes.
#[derive(Clone, Copy, Debug)]
pub struct Flush<'a> {
    load: Load,
    /// Its number, from 1, which is also the index of its entries.
    pub seq: u64,
    /// Index up to which every group is to be compacted before this flush.
    pub compact_to: Option<u64>,
    /// Data of the entry of every group, in order of group id.
    pub batches: &'a [Bytes],
}

impl Flush<'_> {
    /// Index of the newest committed entry: that of the flush before.
    #[must_use]
    pub fn commit(&self) -> u64 {
        self.seq - 1
    }

    /// The flush as our storage takes it.
    #[must_use]
    pub fn to_append(self) -> Append {
        let change = self.compact_to.map(|index| {
            let offset = Offset(index * self.load.entry_records);
            LogChange::CompactTo(LogStart { index: Index(index), term: TERM, offset })
        });
        let hard_state = HardState { term: TERM, vote: NodeId(1), commit: Index(self.commit()) };
        let part = |(group, data): (u64, &Bytes)| {
            let entry =
                LogEntry { index: Index(self.seq), term: TERM, kind: EntryKind::Normal, data: data.clone() };
            GroupAppend {
                group: GroupId(group),
                change,
                hard_state: Some(hard_state),
                conf_state: None,
                meta: None,
                under_repair: None,
                joined_at: None,
                entries: vec![entry],
            }
        };
        Append { seq: FlushSeq(self.seq), groups: (1..).zip(self.batches).map(part).collect() }
    }
}

#[cfg(test)]
mod tests {
    use iroh_raft_core::batch::Batch;

    use super::*;

    const LOAD: Load = Load::new(4, 12, 64);

    #[test]
    fn flushes_follow_each_other_and_are_the_same_for_the_same_seed() {
        let (mut one, mut other) = (Source::new(LOAD, 7), Source::new(LOAD, 7));
        for seq in 1..=3 {
            let append = one.next_flush().to_append();
            assert_eq!(append, other.next_flush().to_append());
            assert_eq!(append.seq, FlushSeq(seq));
            for part in &append.groups {
                assert_eq!(part.hard_state.map(|hard_state| hard_state.commit), Some(Index(seq - 1)));
                let batch = Batch::parse(&part.entries[0].data).unwrap();
                assert_eq!((batch.base(), batch.count()), (Offset((seq - 1) * 3), 3));
                assert_eq!(part.entries[0].data, one_entry(&other, part, seq));
            }
        }
    }

    fn one_entry(source: &Source, part: &GroupAppend, seq: u64) -> Bytes {
        source.entry_data(part.group.0, seq)
    }

    #[test]
    fn a_flush_that_is_still_held_is_not_changed_by_the_next_one() {
        let mut source = Source::new(LOAD, 7);
        let held = source.next_flush().to_append();
        let copy = held.groups[0].entries[0].data.to_vec();
        let _ = source.next_flush();
        assert_eq!(held.groups[0].entries[0].data, copy);
    }

    #[test]
    fn what_is_older_than_the_retention_is_compacted_in_steps() {
        let mut source = Source::new(LOAD, 7).with_retention(32 * LOAD.payload_bytes());
        let compactions: Vec<_> = (0..40)
            .filter_map(|_| {
                let flush = source.next_flush();
                flush.compact_to.map(|index| (flush.seq, index))
            })
            .collect();
        assert_eq!(compactions, [(34, 2), (36, 4), (38, 6), (40, 8)]);
    }
}
