//! What a record holds: who made it, and bytes that follow from that.
//!
//! Layout, little-endian: client (u32), group (u32), sequence (u64), then filler derived from all
//! three. So a record read back proves its own identity, and every byte of it is checked.

use crate::sizes::RecordSizes;

/// Smallest record that can name itself, in bytes.
pub(crate) const RECORD_BYTES_MIN: usize = 16;
/// Largest record that the nodes take by default, in bytes.
pub(crate) const RECORD_BYTES_MAX: usize = 1 << 20;

/// A record's identity. Sequences of a client are dense within a group, from 0.
#[derive(Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash, Debug)]
pub(crate) struct RecordId {
    pub(crate) client: u32,
    pub(crate) group: u32,
    pub(crate) sequence: u64,
}

impl RecordId {
    /// Appends the record of this id to `out`.
    pub(crate) fn write(self, record_bytes: usize, out: &mut Vec<u8>) {
        let end = out.len() + record_bytes;
        out.extend_from_slice(&self.client.to_le_bytes());
        out.extend_from_slice(&self.group.to_le_bytes());
        out.extend_from_slice(&self.sequence.to_le_bytes());
        let mut filler = self.filler();
        while out.len() < end {
            let word = filler.next().to_le_bytes();
            let room = (end - out.len()).min(word.len());
            out.extend_from_slice(&word[..room]);
        }
    }

    /// The id that a record claims, and what follows it.
    pub(crate) fn claim(record: &[u8]) -> Option<(RecordId, &[u8])> {
        let (client, rest) = record.split_first_chunk()?;
        let (group, rest) = rest.split_first_chunk()?;
        let (sequence, rest) = rest.split_first_chunk()?;
        let id = RecordId {
            client: u32::from_le_bytes(*client),
            group: u32::from_le_bytes(*group),
            sequence: u64::from_le_bytes(*sequence),
        };
        Some((id, rest))
    }

    /// The id that a record claims and, by every byte of it, proves.
    pub(crate) fn read(record: &[u8], sizes: &RecordSizes) -> Option<RecordId> {
        let (id, rest) = RecordId::claim(record)?;
        let mut filler = id.filler();
        let is_right = record.len() == sizes.of(id)
            && rest.chunks(8).all(|chunk| filler.next().to_le_bytes().starts_with(chunk));
        is_right.then_some(id)
    }

    fn filler(self) -> Filler {
        let place = (u64::from(self.client) << 32) | u64::from(self.group);
        Filler(mix(place) ^ mix(self.sequence ^ 0x5bf0_3635_dcd8_5bb1))
    }
}

/// A counter run through a mixing function (splitmix64): cheap, and different for each record.
struct Filler(u64);

impl Filler {
    fn next(&mut self) -> u64 {
        self.0 = self.0.wrapping_add(0x9e37_79b9_7f4a_7c15);
        mix(self.0)
    }
}

/// The finalizer of splitmix64: every input bit changes about half of the output's.
pub(crate) fn mix(mut value: u64) -> u64 {
    value = (value ^ (value >> 30)).wrapping_mul(0xbf58_476d_1ce4_e5b9);
    value = (value ^ (value >> 27)).wrapping_mul(0x94d0_49bb_1331_11eb);
    value ^ (value >> 31)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_record_proves_its_identity_with_every_byte() {
        for record_bytes in [16, 17, 24, 64, 1000] {
            let id = RecordId { client: 3, group: 8, sequence: 1 << 40 };
            let mut record = Vec::new();
            id.write(record_bytes, &mut record);
            assert_eq!(record.len(), record_bytes);
            let sizes = RecordSizes::Fixed(record_bytes);
            assert_eq!(RecordId::read(&record, &sizes), Some(id));
            for at in 0..record_bytes {
                let mut damaged = record.clone();
                damaged[at] ^= 0x10;
                assert_ne!(RecordId::read(&damaged, &sizes), Some(id), "byte {at}");
            }
            assert_eq!(RecordId::read(&record[1..], &sizes), None);
        }
    }
}
