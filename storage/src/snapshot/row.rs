//! The bytes of snapshots: what is known of one, and a chunk.

use bytes::Bytes;
use iroh_raft_core::mutants::{self, Mutant};
use iroh_raft_core::{GroupId, Index, Offset, Snapshot, SnapshotBody, Term};

use super::{SNAPSHOT_CHUNK_BYTES, SnapshotHead};
use crate::block::{JournalIdentity, conf_state_bytes, encode_conf_state, parse_conf_state};
use crate::cold_block::{sealed, unsealed};
use crate::cursor::{Cursor, Pen};

const VERSION: u16 = 1;
const MAGIC: [u8; 4] = *b"IRSC";
pub(super) const CHUNK_HEADER_BYTES: usize = 64;
const CHECKSUM_AT: usize = CHUNK_HEADER_BYTES - 4;

/// What is known of a snapshot.
#[derive(Clone, PartialEq, Eq, Debug)]
#[non_exhaustive]
pub struct SnapshotMeta {
    /// The group.
    pub group: GroupId,
    /// What it stands for.
    pub head: SnapshotHead,
    /// Never used by another snapshot of the shard.
    pub number: u64,
    /// Bytes of the body; of a staged one, those that are durable.
    pub body_bytes: u64,
    /// Number of its chunks.
    pub chunks: u32,
    /// CRC-32C of the body.
    pub checksum: u32,
}

impl SnapshotMeta {
    /// The snapshot as the core knows it.
    #[must_use]
    pub fn snapshot(&self) -> Snapshot {
        let body = SnapshotBody { bytes: self.body_bytes, checksum: self.checksum };
        Snapshot { head: self.head.clone(), body }
    }

    /// Bytes of the body in one of its chunks.
    pub(crate) fn chunk_bytes(&self, chunk: u32) -> Option<usize> {
        let before = u64::from(chunk) * SNAPSHOT_CHUNK_BYTES as u64;
        let left = self.body_bytes.checked_sub(before).filter(|_| chunk < self.chunks)?;
        usize::try_from(left.min(SNAPSHOT_CHUNK_BYTES as u64)).ok()
    }

    pub(crate) fn encode(&self) -> Vec<u8> {
        let mut row = vec![0; 56 + conf_state_bytes(&self.head.conf_state) + self.head.table.len()];
        let mut pen = Pen::new(&mut row);
        pen.u16(VERSION);
        pen.u16(0);
        pen.u32(self.chunks);
        pen.u64(self.head.index.0);
        pen.u64(self.head.term.0);
        pen.u64(self.head.offset.0);
        pen.u64(self.number);
        pen.u64(self.body_bytes);
        pen.u32(self.checksum);
        pen.u32(u32::try_from(self.head.table.len()).expect("a table is below 1 MiB"));
        encode_conf_state(&mut pen, &self.head.conf_state);
        pen.put(&self.head.table);
        assert!(pen.is_full(), "the size of a row is computed from its fields");
        sealed(&[self.group.0], row)
    }

    /// Reads a row; `None` if it is not what was written.
    pub(crate) fn parse(group: GroupId, bytes: &[u8]) -> Option<SnapshotMeta> {
        let mut cursor = Cursor::new(unsealed(&[group.0], bytes)?);
        let (version, zero) = (cursor.u16()?, cursor.u16()?);
        let chunks = cursor.u32()?;
        let (index, term) = (Index(cursor.u64()?), Term(cursor.u64()?));
        let offset = Offset(cursor.u64()?);
        let (number, body_bytes) = (cursor.u64()?, cursor.u64()?);
        let (checksum, table_bytes) = (cursor.u32()?, cursor.u32()?);
        let conf_state = parse_conf_state(&mut cursor)?;
        let table = Bytes::copy_from_slice(cursor.bytes(usize::try_from(table_bytes).ok()?)?);
        let is_possible = version == VERSION
            && zero == 0
            && cursor.left() == 0
            && body_bytes.div_ceil(SNAPSHOT_CHUNK_BYTES as u64) == u64::from(chunks);
        let head = SnapshotHead { index, term, offset, conf_state, table };
        is_possible.then_some(SnapshotMeta { group, head, number, body_bytes, chunks, checksum })
    }
}

/// A chunk to be written.
pub(super) struct NewChunk<'a> {
    pub(super) identity: JournalIdentity,
    pub(super) meta: &'a SnapshotMeta,
    pub(super) chunk: u32,
    pub(super) data: &'a [u8],
}

impl NewChunk<'_> {
    pub(super) fn encode_head(&self) -> [u8; CHUNK_HEADER_BYTES] {
        let mut head = [0; CHUNK_HEADER_BYTES];
        let mut pen = Pen::new(&mut head);
        pen.put(&MAGIC);
        pen.u16(VERSION);
        pen.u16(self.identity.shard.0);
        pen.put(&self.identity.storage);
        pen.u64(self.meta.group.0);
        pen.u64(self.meta.number);
        pen.u64(self.meta.head.index.0);
        pen.u32(self.chunk);
        pen.u32(u32::try_from(self.data.len()).expect("a chunk is below 1 MiB"));
        let (body, checksum) = head.split_at_mut(CHECKSUM_AT);
        checksum.copy_from_slice(&crc32c::crc32c_append(crc32c::crc32c(body), self.data).to_le_bytes());
        head
    }
}

/// The data of a chunk, if it is the one asked for, as it was written.
pub(crate) fn parse_chunk<'a>(
    bytes: &'a [u8],
    identity: JournalIdentity,
    meta: &SnapshotMeta,
    chunk: u32,
) -> Option<&'a [u8]> {
    let (head, data) = bytes.split_at_checked(CHUNK_HEADER_BYTES)?;
    let is_sound = NewChunk { identity, meta, chunk, data }.encode_head() == head
        || (mutants::is(Mutant::DamageRestored) && meta.chunk_bytes(chunk) == Some(data.len()));
    is_sound.then_some(data)
}
