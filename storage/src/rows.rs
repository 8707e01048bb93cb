//! How a long run of bytes is cut into rows of a redb table.
//!
//! redb stores a value that does not share a page in 2^k pages: one byte more than fits costs twice
//! the space, and twice the bytes written. So a long value becomes a few rows that fill their pages.

use std::ops::Range;

use redb::{AccessGuard, Key, ReadableTable, Table};

use crate::redb_file::RedbFailure;

/// A redb page.
const PAGE_BYTES: usize = 4096;
/// What a page holds beside one value: its header, the end of the value, the key; with room to spare.
const OVERHEAD_BYTES: usize = 40;
/// Largest row: larger ones are harder to place in a file that has holes.
const ROW_PAGES_MAX: usize = 256;

const fn payload(pages: usize) -> usize {
    pages * PAGE_BYTES - OVERHEAD_BYTES
}

/// Lengths of the rows of a value of `bytes` bytes, in order. Depends on nothing else: it is part of
/// the format.
pub(crate) fn row_lengths(bytes: usize) -> impl Iterator<Item = usize> {
    let mut left = bytes;
    std::iter::from_fn(move || {
        if left == 0 {
            return None;
        }
        let mut pages = ROW_PAGES_MAX;
        // The smallest row that takes all the rest, if it is nearly full; else the largest full one.
        while pages > 1 && payload(pages / 2) >= left {
            pages /= 2;
        }
        let is_wasteful = left < payload(pages) / 8 * 7;
        let length = if pages > 1 && is_wasteful { payload(pages / 2) } else { left.min(payload(pages)) };
        left -= length;
        Some(length)
    })
}

/// Bytes that a value takes in the file, about.
pub(crate) fn stored_bytes(bytes: usize) -> u64 {
    let pages = |length: usize| (length + OVERHEAD_BYTES).div_ceil(PAGE_BYTES).next_power_of_two();
    // A short row shares its page with others.
    row_lengths(bytes)
        .map(
            |length| {
                if length < PAGE_BYTES / 2 { length + OVERHEAD_BYTES } else { pages(length) * PAGE_BYTES }
            },
        )
        .sum::<usize>() as u64
}

/// Writes the pieces, `bytes` bytes together, as rows with the keys of `key_of`.
pub(crate) fn insert<'p, K: Key + 'static>(
    table: &mut Table<'_, K, &'static [u8]>,
    bytes: usize,
    key_of: impl Fn(u16) -> K::SelfType<'static>,
    mut pieces: impl Iterator<Item = &'p [u8]>,
) -> Result<(), RedbFailure> {
    let mut piece: &[u8] = &[];
    for (number, length) in (0..).zip(row_lengths(bytes)) {
        let key = key_of(number);
        let mut row = table.insert_reserve(key, length)?;
        let mut rest = row.as_mut();
        while !rest.is_empty() {
            if piece.is_empty() {
                piece = pieces.next().expect("the pieces of a value add up to its length");
                continue;
            }
            let (head, tail) = rest.split_at_mut(piece.len().min(rest.len()));
            let (now, later) = piece.split_at(head.len());
            head.copy_from_slice(now);
            (rest, piece) = (tail, later);
        }
    }
    Ok(())
}

/// Removes the rows of a value of `bytes` bytes.
pub(crate) fn remove<K: Key + 'static>(
    table: &mut Table<'_, K, &'static [u8]>,
    bytes: usize,
    key_of: impl Fn(u16) -> K::SelfType<'static>,
) -> Result<(), RedbFailure> {
    for (number, _) in (0..).zip(row_lengths(bytes)) {
        table.remove(key_of(number))?;
    }
    Ok(())
}

/// The rows of a value, held in memory by redb.
pub(crate) struct Rows<'t> {
    rows: Vec<AccessGuard<'t, &'static [u8]>>,
    bytes: usize,
}

impl<'t> Rows<'t> {
    /// The value of `bytes` bytes, if all its rows are there and as long as they should be.
    pub(crate) fn read<K: Key + 'static>(
        table: &'t impl ReadableTable<K, &'static [u8]>,
        bytes: usize,
        key_of: impl Fn(u16) -> K::SelfType<'static>,
    ) -> Result<Option<Rows<'t>>, RedbFailure> {
        let mut rows = Vec::new();
        for (number, length) in (0..).zip(row_lengths(bytes)) {
            let key = key_of(number);
            match table.get(key)? {
                Some(row) if row.value().len() == length => rows.push(row),
                _ => return Ok(None),
            }
        }
        Ok(Some(Rows { rows, bytes }))
    }

    /// The pieces that hold a range of the value; empty past its end.
    pub(crate) fn pieces(&self, range: Range<usize>) -> impl Iterator<Item = &[u8]> {
        let end = range.end.min(self.bytes);
        let mut at = 0;
        self.rows.iter().filter_map(move |row| {
            let row = row.value();
            let (first, last) = (at, at + row.len());
            at = last;
            let from = range.start.max(first);
            let to = end.min(last);
            (from < to).then(|| &row[from - first..to - first])
        })
    }

    /// A copy of a range; `None` if it is not all there.
    pub(crate) fn copy(&self, range: Range<usize>) -> Option<Vec<u8>> {
        if range.start > range.end || range.end > self.bytes {
            return None;
        }
        let mut copy = Vec::with_capacity(range.len());
        self.pieces(range).for_each(|piece| copy.extend_from_slice(piece));
        Some(copy)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn rows_fill_their_pages() {
        for bytes in (1..20_000).chain([65_536, 70_000, 131_072, 140_000, 262_144, 570_000, 1 << 20, 5 << 20])
        {
            let rows: Vec<_> = row_lengths(bytes).collect();
            assert_eq!(rows.iter().sum::<usize>(), bytes);
            assert!(rows.len() <= 12, "{bytes} bytes in {} rows", rows.len());
            let stored = stored_bytes(bytes) as usize;
            assert!(stored <= bytes / 7 * 8 + 2 * PAGE_BYTES, "{bytes} bytes take {stored}");
        }
        assert!(row_lengths(1 << 30).count() <= usize::from(u16::MAX));
    }
}
