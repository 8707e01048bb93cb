//! The payload of a frame: how its pieces are gathered, and how they are found again.
//!
//! There is no table of positions: descriptors carry lengths, in order, and a running cursor gives
//! the rest. So pieces can neither overlap nor leave a gap.

use bytes::Bytes;
use iroh_raft_core::ShardId;

use super::archive::{self, Table};
use super::{FrameError, FrameHeader, FrameKind, HEADER_BYTES, OutFrame};

/// Pieces below this size are copied together, larger ones referenced. A piece of its own costs a
/// reference count, an entry in the stream's send queue and one more STREAM frame, about what
/// copying a kilobyte costs.
pub(super) const COPIED_BYTES_MAX: usize = 1024;

/// Gathers payload pieces in order.
#[derive(Debug, Default)]
pub(super) struct PayloadBuilder {
    /// All small pieces, one behind the other.
    copied: Vec<u8>,
    /// Large pieces, each with the length that `copied` had when it came.
    referenced: Vec<(usize, Bytes)>,
    referenced_bytes: usize,
}

impl PayloadBuilder {
    /// Adds a piece and says how long it is.
    ///
    /// # Panics
    /// If it reaches 4 GiB.
    pub(super) fn push(&mut self, piece: Bytes) -> u32 {
        let bytes = u32::try_from(piece.len()).expect("a piece of payload is below 4 GiB");
        if piece.len() < COPIED_BYTES_MAX {
            self.copied.extend_from_slice(&piece);
        } else {
            self.referenced_bytes += piece.len();
            self.referenced.push((self.copied.len(), piece));
        }
        bytes
    }

    /// Copies a short piece and says how long it is.
    pub(super) fn push_slice(&mut self, piece: &[u8]) -> u32 {
        self.copied.extend_from_slice(piece);
        piece.len() as u32
    }

    /// Bytes so far.
    pub(super) fn bytes(&self) -> usize {
        self.copied.len() + self.referenced_bytes
    }

    /// Takes everything as a frame with these descriptors. The copied bytes up to the first large
    /// piece share the archive's chunk.
    ///
    /// # Panics
    /// If archive or payload reach 4 GiB, or the archive is not of the size announced.
    pub(super) fn finish(
        &mut self,
        kind: FrameKind,
        source_shard: ShardId,
        destination_shard: ShardId,
        items: usize,
        archive_bytes: usize,
        table: &impl Table,
    ) -> OutFrame {
        let header = FrameHeader {
            kind,
            source_shard,
            destination_shard,
            archive_bytes: u32::try_from(archive_bytes).expect("an archive is below 4 GiB"),
            payload_bytes: u32::try_from(self.bytes()).expect("a payload is below 4 GiB"),
        };
        let first_copied = self.referenced.first().map_or(self.copied.len(), |(at, _)| *at);
        let mut head = Vec::with_capacity(HEADER_BYTES + archive_bytes + first_copied);
        head.extend_from_slice(&header.encode());
        head = archive::write(table, head);
        assert_eq!(head.len(), HEADER_BYTES + archive_bytes, "an archive has the size that was announced");
        let (with_head, between) = self.copied.split_at(first_copied);
        head.extend_from_slice(with_head);
        let mut chunks = Vec::with_capacity(1 + 2 * self.referenced.len());
        chunks.push(Bytes::from(head));
        // The pieces between and behind the large ones: one buffer for all of them.
        let mut between = Bytes::copy_from_slice(between);
        let mut done = first_copied;
        let mut referenced = self.referenced.drain(..).peekable();
        while let Some((_, piece)) = referenced.next() {
            chunks.push(piece);
            let upto = referenced.peek().map_or(self.copied.len(), |(at, _)| *at);
            if upto > done {
                chunks.push(between.split_to(upto - done));
                done = upto;
            }
        }
        drop(referenced);
        self.copied.clear();
        self.referenced_bytes = 0;
        OutFrame {
            chunks,
            items: u32::try_from(items).expect("fewer than 2^32 items in an archive below 4 GiB"),
        }
    }
}

/// Hands out the payload of a received frame piece by piece.
#[derive(Clone, Debug)]
pub(super) struct PayloadCursor {
    rest: Bytes,
}

impl PayloadCursor {
    pub(super) fn new(payload: Bytes) -> PayloadCursor {
        PayloadCursor { rest: payload }
    }

    /// The next piece: a slice, not a copy.
    pub(super) fn take(&mut self, bytes: u32) -> Result<Bytes, FrameError> {
        let bytes = bytes as usize;
        if bytes > self.rest.len() {
            let (left, expected) = (self.rest.len() as u64, bytes as u64);
            return Err(FrameError::Length { what: "the rest of a payload", bytes: left, expected });
        }
        // An empty slice would still keep the frame alive.
        Ok(if bytes == 0 { Bytes::new() } else { self.rest.split_to(bytes) })
    }

    /// A payload is exactly what the descriptors name, in their order.
    pub(super) fn finish(self) -> Result<(), FrameError> {
        match self.rest.len() {
            0 => Ok(()),
            left => {
                Err(FrameError::Length { what: "payload that nobody names", bytes: left as u64, expected: 0 })
            }
        }
    }
}
