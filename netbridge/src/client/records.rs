//! What a read of a group's log gives.

use bytes::Bytes;
use iroh_raft_core::Offset;
use iroh_raft_core::batch::{Batch, Record, records_of};

/// Committed records of one replica, in order and without a gap.
#[derive(Clone, PartialEq, Eq, Debug)]
pub struct Records {
    from: Offset,
    end: Offset,
    next: Offset,
    batches: Vec<Bytes>,
}

impl Records {
    /// `None` when the batches are not batches, leave a gap, or do not begin where they should.
    pub(super) fn new(from: Offset, end: Offset, batches: Vec<Bytes>) -> Option<Records> {
        let mut next = from;
        for (at, data) in batches.iter().enumerate() {
            let batch = Batch::parse(data).ok()?;
            let is_first = at == 0;
            let follows = if is_first { batch.base() <= from } else { batch.base() == next };
            let batch_end = Offset(batch.base().0.checked_add(batch.count().into())?);
            if !follows || batch_end <= next || batch_end > end {
                return None;
            }
            next = batch_end;
        }
        Some(Records { from, end, next, batches })
    }

    /// The record that was asked for.
    #[must_use]
    pub fn from(&self) -> Offset {
        self.from
    }

    /// Offset after the replica's last committed record.
    #[must_use]
    pub fn end(&self) -> Offset {
        self.end
    }

    /// Where to read on: the offset after the last record here.
    #[must_use]
    pub fn next(&self) -> Offset {
        self.next
    }

    /// Whether there is no record at or after the one asked for.
    #[must_use]
    pub fn is_empty(&self) -> bool {
        self.batches.is_empty()
    }

    /// The records from the one asked for.
    pub fn iter(&self) -> impl Iterator<Item = Record<'_>> {
        records_of(&self.batches).filter(|record| record.offset >= self.from)
    }

    /// Bytes of the batches.
    #[must_use]
    pub fn bytes(&self) -> usize {
        self.batches.iter().map(Bytes::len).sum()
    }

    /// The batches as they stand in the log; the first may begin before the record asked for.
    #[must_use]
    pub fn batches(&self) -> &[Bytes] {
        &self.batches
    }
}

#[cfg(test)]
mod tests {
    use iroh_raft_core::WallTime;
    use iroh_raft_core::batch::{RecordBlock, encode_batch};

    use super::*;

    fn batch(base: u64, records: &[&[u8]]) -> Bytes {
        encode_batch(Offset(base), WallTime(0), [RecordBlock::from_records(records)].iter())
    }

    #[test]
    fn records_begin_at_the_one_asked_for() {
        let batches = vec![batch(4, &[b"a", b"b", b"c"]), batch(7, &[b"d"])];
        let records = Records::new(Offset(5), Offset(9), batches).unwrap();
        let found: Vec<_> = records.iter().map(|record| (record.offset, record.data)).collect();
        assert_eq!(found, [(Offset(5), &b"b"[..]), (Offset(6), b"c"), (Offset(7), b"d")]);
        assert_eq!((records.next(), records.end()), (Offset(8), Offset(9)));
    }

    #[test]
    fn batches_that_do_not_fit_together_are_no_answer() {
        let one = || batch(4, &[b"a", b"b"]);
        for (from, end, batches) in [
            (4, 9, vec![one(), batch(7, &[b"gap"])]),
            (4, 9, vec![one(), one()]),
            (3, 9, vec![one()]),
            (6, 9, vec![one()]),
            (4, 5, vec![one()]),
            (4, 9, vec![Bytes::from_static(b"no batch")]),
        ] {
            assert_eq!(Records::new(Offset(from), Offset(end), batches), None);
        }
        assert!(Records::new(Offset(9), Offset(9), Vec::new()).unwrap().is_empty());
    }
}
