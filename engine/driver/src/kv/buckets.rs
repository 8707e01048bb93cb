//! The pairs of the store, shared with the snapshots that are taken of them.
//!
//! They lie in buckets by a hash of the key. Freezing shares all buckets, which takes as long as counting them; a
//! write to a shared one copies that one first, keys and values still shared. A view lets go of each bucket
//! as it is read, so that writes stop copying it.

use std::collections::BTreeMap;
use std::ops::Bound;
use std::sync::Arc;

use crate::state_machine::{Restore, RestoreError, SNAPSHOT_PIECE_BYTES_MAX, SnapshotView};

/// Buckets at most: an empty one takes no memory.
const BUCKETS: u64 = 4096;
/// Bytes of the lengths before each pair.
const LENGTHS_BYTES: usize = 8;

type Bucket = Arc<BTreeMap<Arc<str>, Arc<[u8]>>>;

/// A map from keys to values.
#[derive(Clone, Default, Debug)]
pub(super) struct Buckets {
    buckets: BTreeMap<u16, Bucket>,
    /// The beginning of a pair whose rest has still to come, while a snapshot is taken over.
    partial: Vec<u8>,
}

/// FNV-1a: the same on every build and machine.
pub(super) fn fnv(hash: u64, bytes: &[u8]) -> u64 {
    bytes.iter().fold(hash, |hash, byte| (hash ^ u64::from(*byte)).wrapping_mul(0x0100_0000_01b3))
}

pub(super) const FNV_BASIS: u64 = 0xcbf2_9ce4_8422_2325;

fn bucket_of(key: &str) -> u16 {
    (fnv(FNV_BASIS, key.as_bytes()) % BUCKETS) as u16
}

impl Buckets {
    pub(super) fn get(&self, key: &str) -> Option<&[u8]> {
        self.buckets.get(&bucket_of(key))?.get(key).map(|value| &**value)
    }

    pub(super) fn insert(&mut self, key: &str, value: &[u8]) -> Option<Arc<[u8]>> {
        let bucket = Arc::make_mut(self.buckets.entry(bucket_of(key)).or_default());
        bucket.insert(key.into(), value.into())
    }

    pub(super) fn remove(&mut self, key: &str) -> Option<Arc<[u8]>> {
        let bucket = self.buckets.get_mut(&bucket_of(key)).filter(|bucket| bucket.contains_key(key))?;
        Arc::make_mut(bucket).remove(key)
    }

    /// Every pair, in an order that depends on the pairs alone.
    pub(super) fn pairs(&self) -> impl Iterator<Item = (&str, &[u8])> {
        let pairs = self.buckets.values().flat_map(|bucket| bucket.iter());
        pairs.map(|(key, value)| (&**key, &**value))
    }

    pub(super) fn freeze(&self) -> Box<dyn SnapshotView> {
        Box::new(View { buckets: self.buckets.clone(), after: None, piece: Vec::new() })
    }

    pub(super) fn restore(&mut self, step: Restore<'_>) -> Result<(), RestoreError> {
        match step {
            Restore::Begin => *self = Buckets::default(),
            Restore::Bytes(bytes) => {
                self.partial.extend_from_slice(bytes);
                let partial = std::mem::take(&mut self.partial);
                let mut rest = &partial[..];
                while let Some((key, value, after)) = split_pair(rest) {
                    let key = std::str::from_utf8(key);
                    self.insert(key.map_err(|_| RestoreError { problem: "a key is not text" })?, value);
                    rest = after;
                }
                self.partial = rest.to_vec();
            }
            Restore::End if !self.partial.is_empty() => {
                return Err(RestoreError { problem: "it ends within a pair" });
            }
            Restore::End => {}
        }
        Ok(())
    }
}

/// The first pair, if all of it is there: lengths of key and value (4 bytes each), key, value.
fn split_pair(bytes: &[u8]) -> Option<(&[u8], &[u8], &[u8])> {
    let (key_bytes, rest) = bytes.split_first_chunk()?;
    let (value_bytes, rest) = rest.split_first_chunk()?;
    let (key, rest) = rest.split_at_checked(u32::from_le_bytes(*key_bytes) as usize)?;
    let (value, rest) = rest.split_at_checked(u32::from_le_bytes(*value_bytes) as usize)?;
    Some((key, value, rest))
}

/// The pairs as they were.
struct View {
    buckets: BTreeMap<u16, Bucket>,
    /// Last key of the first bucket that was read.
    after: Option<Arc<str>>,
    /// What was read and not handed out yet.
    piece: Vec<u8>,
}

impl View {
    fn read_pair(&mut self) -> bool {
        while let Some(first) = self.buckets.first_entry() {
            let from = self.after.as_ref().map_or(Bound::Unbounded, |key| Bound::Excluded(key.clone()));
            if let Some((key, value)) = first.get().range((from, Bound::Unbounded)).next() {
                self.piece.reserve(LENGTHS_BYTES + key.len() + value.len());
                for bytes in [key.as_bytes(), value] {
                    // A record, and so what it sets, is far below 4 GiB.
                    self.piece.extend_from_slice(&(bytes.len() as u32).to_le_bytes());
                }
                self.piece.extend_from_slice(key.as_bytes());
                self.piece.extend_from_slice(value);
                self.after = Some(key.clone());
                return true;
            }
            first.remove();
            self.after = None;
        }
        false
    }
}

impl SnapshotView for View {
    fn next_piece(&mut self) -> Option<Vec<u8>> {
        while self.piece.len() < SNAPSHOT_PIECE_BYTES_MAX && self.read_pair() {}
        let rest = self.piece.split_off(self.piece.len().min(SNAPSHOT_PIECE_BYTES_MAX));
        let piece = std::mem::replace(&mut self.piece, rest);
        (!piece.is_empty()).then_some(piece)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn body(mut view: Box<dyn SnapshotView>) -> Vec<u8> {
        let mut body = Vec::new();
        while let Some(piece) = view.next_piece() {
            assert!((1..=SNAPSHOT_PIECE_BYTES_MAX).contains(&piece.len()));
            body.extend(piece);
        }
        body
    }

    fn filled() -> Buckets {
        let mut pairs = Buckets::default();
        for number in 0..5000_u32 {
            pairs.insert(&format!("key {number}"), &number.to_le_bytes().repeat(number as usize % 100));
        }
        pairs.insert("large", &vec![7; 3 * SNAPSHOT_PIECE_BYTES_MAX]);
        pairs.insert("", b"");
        pairs
    }

    #[test]
    fn a_view_is_of_the_moment_it_was_taken() {
        let mut pairs = filled();
        let before = body(pairs.freeze());
        let view = pairs.freeze();
        for number in 0..5000_u32 {
            pairs.insert(&format!("key {number}"), b"new");
            pairs.remove(&format!("key {}", number / 2));
        }
        assert!(body(view) == before && body(pairs.freeze()) != before);
    }

    #[test]
    fn pairs_are_restored_wherever_the_bytes_are_cut() {
        let pairs = filled();
        let body = body(pairs.freeze());
        for piece_bytes in [1 << 20, 262_040, 8191] {
            let mut restored = Buckets::default();
            restored.insert("old", b"value");
            restored.restore(Restore::Begin).unwrap();
            for piece in body.chunks(piece_bytes) {
                restored.restore(Restore::Bytes(piece)).unwrap();
            }
            restored.restore(Restore::End).unwrap();
            assert!(restored.pairs().eq(pairs.pairs()));
        }
        let mut cut = Buckets::default();
        cut.restore(Restore::Bytes(&body[..body.len() - 1])).unwrap();
        assert!(cut.restore(Restore::End).is_err());
    }
}
