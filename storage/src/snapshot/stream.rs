//! Bodies as streams: written and read a few chunks at a time.

use std::io;

use bytes::{Buf, Bytes};
use iroh_raft_core::SnapshotBody;

use super::{Result, SNAPSHOT_CHUNK_BYTES, SnapshotError, SnapshotMeta, SnapshotStore};

/// Chunks that become durable together: each commit costs two syncs.
const CHUNKS_PER_COMMIT: usize = 16;

/// Writes the body of a staged snapshot, from where it stopped. Dropped, it leaves what is durable of
/// it to be gone on with.
#[derive(Debug)]
pub struct SnapshotWriter {
    store: SnapshotStore,
    /// What is durable.
    durable: SnapshotMeta,
    /// CRC-32C of the body with what waits.
    checksum: u32,
    /// Full chunks that wait to be made durable, and the one being filled, last.
    waiting: Vec<Vec<u8>>,
}

impl SnapshotWriter {
    pub(super) fn new(store: SnapshotStore, staged: SnapshotMeta) -> SnapshotWriter {
        SnapshotWriter { store, checksum: staged.checksum, durable: staged, waiting: Vec::new() }
    }

    /// Bytes of the body that are written: those that go on come next. Of a snapshot that was begun
    /// before, what is durable of it; always the end of a chunk then.
    #[must_use]
    pub fn position(&self) -> u64 {
        self.durable.body_bytes + self.waiting.iter().map(|chunk| chunk.len() as u64).sum::<u64>()
    }

    /// Number of the chunk that comes next.
    #[must_use]
    pub fn next_chunk(&self) -> u32 {
        self.durable.chunks + self.waiting.iter().filter(|chunk| is_full(chunk)).count() as u32
    }

    /// Whether exactly this body is written.
    #[must_use]
    pub fn is_complete(&self, body: SnapshotBody) -> bool {
        (self.position(), self.checksum) == (body.bytes, body.checksum)
    }

    /// Writes the next bytes of the body. Some of them are durable when it returns, a few chunks at a
    /// time.
    ///
    /// # Errors
    /// [`SnapshotError::Replaced`], [`SnapshotError::TooLarge`], [`SnapshotError::Storage`]; the writer
    /// is of no use after that.
    pub fn write(&mut self, mut data: &[u8]) -> Result<()> {
        while !data.is_empty() {
            if self.waiting.last().is_none_or(is_full) {
                if self.waiting.len() == CHUNKS_PER_COMMIT {
                    self.flush()?;
                }
                self.waiting.push(Vec::with_capacity(SNAPSHOT_CHUNK_BYTES));
            }
            let chunk = self.waiting.last_mut().expect("pushed just now");
            let (taken, rest) = data.split_at(data.len().min(SNAPSHOT_CHUNK_BYTES - chunk.len()));
            chunk.extend_from_slice(taken);
            self.checksum = crc32c::crc32c_append(self.checksum, taken);
            data = rest;
        }
        Ok(())
    }

    /// Makes all full chunks durable.
    ///
    /// # Errors
    /// As [`write`](SnapshotWriter::write).
    pub fn flush(&mut self) -> Result<()> {
        let count = self.waiting.iter().take_while(|chunk| is_full(chunk)).count();
        self.commit(count)
    }

    fn commit(&mut self, count: usize) -> Result<()> {
        if count == 0 {
            return Ok(());
        }
        let max = u32::MAX;
        let chunks = self.durable.chunks.checked_add(count as u32).ok_or(SnapshotError::TooLarge { max })?;
        let (now, later) = self.waiting.split_at(count);
        let bytes: usize = now.iter().map(Vec::len).sum();
        let mut after = self.durable.clone();
        after.chunks = chunks;
        after.body_bytes += bytes as u64;
        after.checksum = now.iter().fold(after.checksum, |crc, chunk| crc32c::crc32c_append(crc, chunk));
        assert!(
            !later.is_empty() || after.checksum == self.checksum,
            "chunks are committed as they were written"
        );
        self.store.add(&self.durable, &after, now)?;
        self.durable = after;
        self.waiting.drain(..count);
        Ok(())
    }

    /// Says that the body is complete: makes the rest durable and puts the snapshot in place of the
    /// group's one before, if any.
    ///
    /// # Errors
    /// As [`write`](SnapshotWriter::write); the one before stays then.
    pub fn publish(mut self) -> Result<SnapshotMeta> {
        self.commit(self.waiting.len())?;
        self.store.publish(&self.durable)?;
        Ok(self.durable)
    }

    /// Drops the snapshot.
    ///
    /// # Errors
    /// [`SnapshotError::Storage`].
    pub fn abort(self) -> Result<()> {
        self.store.remove(self.durable.group, false)
    }
}

#[expect(clippy::ptr_arg, reason = "used as a function over a list of chunks")]
fn is_full(chunk: &Vec<u8>) -> bool {
    chunk.len() == SNAPSHOT_CHUNK_BYTES
}

/// Reads a body, one chunk in memory. A [`SnapshotError`] comes as the source of an [`io::Error`].
#[derive(Debug)]
pub struct SnapshotReader {
    store: SnapshotStore,
    meta: SnapshotMeta,
    chunk: Bytes,
    next: u32,
    checksum: u32,
}

impl SnapshotReader {
    pub(super) fn new(store: SnapshotStore, meta: SnapshotMeta) -> SnapshotReader {
        SnapshotReader { store, meta, chunk: Bytes::new(), next: 0, checksum: 0 }
    }

    fn next_chunk(&mut self) -> Result<()> {
        self.chunk = self.store.read_chunk(&self.meta, self.next)?;
        self.next += 1;
        self.checksum = crc32c::crc32c_append(self.checksum, &self.chunk);
        if self.next == self.meta.chunks && self.checksum != self.meta.checksum {
            let (group, index) = (self.meta.group, self.meta.head.index);
            return Err(SnapshotError::Damaged { group, index, chunk: self.next - 1 });
        }
        Ok(())
    }
}

impl io::Read for SnapshotReader {
    fn read(&mut self, out: &mut [u8]) -> io::Result<usize> {
        if self.chunk.is_empty() && self.next < self.meta.chunks && !out.is_empty() {
            self.next_chunk().map_err(io::Error::other)?;
        }
        let count = out.len().min(self.chunk.len());
        self.chunk.copy_to_slice(&mut out[..count]);
        Ok(count)
    }
}
