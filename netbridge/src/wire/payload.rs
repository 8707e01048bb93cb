//! The payload of a frame: how its pieces are gathered, and how they are found again.
//!
//! There is no table of positions: descriptors carry lengths, in order, and a running cursor gives
//! the rest. So pieces can neither overlap nor leave a gap.

use bytes::{Bytes, BytesMut};
use iroh_raft_core::ShardId;

use super::archive::{self, Table};
use super::{Chunks, FrameError, FrameHeader, FrameKind, HEADER_BYTES, OutFrame};

/// Pieces below this size are copied together, larger ones referenced. A piece of its own costs a
/// reference count, an entry in the stream's send queue and one more STREAM frame, about what
/// copying a kilobyte costs.
pub(super) const COPIED_BYTES_MAX: usize = 1024;

/// What a frame has to copy is cut from a buffer for many frames if it is at most this, and has a buffer of its own otherwise:
/// a frame that waits for its flush keeps the whole buffer alive.
const SHARED_BYTES_MAX: usize = 2 << 10;
const SHARED_BUFFER_BYTES: usize = 16 << 10;

/// Gathers payload pieces in order.
#[derive(Debug, Default)]
pub(super) struct PayloadBuilder {
    /// All small pieces, one behind the other.
    copied: Vec<u8>,
    /// Large pieces, each with the length that `copied` had when it came.
    referenced: Vec<(usize, Bytes)>,
    referenced_bytes: usize,
    /// What a frame begins with, before it goes into its chunk.
    head: Vec<u8>,
    /// First chunks of small frames are cut from it, one after the other.
    shared: BytesMut,
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
        let copied_bytes = HEADER_BYTES + archive_bytes + self.copied.len();
        let is_shared = copied_bytes <= SHARED_BYTES_MAX;
        let mut head =
            if is_shared { std::mem::take(&mut self.head) } else { Vec::with_capacity(copied_bytes) };
        head.clear();
        head.extend_from_slice(&header.encode());
        head = archive::write(table, head);
        assert_eq!(head.len(), HEADER_BYTES + archive_bytes, "an archive has the size that was announced");
        head.extend_from_slice(&self.copied);
        // Everything that is copied has one buffer: the first chunk, and the pieces between and behind the large ones.
        let mut between = if is_shared {
            if !self.shared.try_reclaim(copied_bytes) {
                self.shared = BytesMut::with_capacity(SHARED_BUFFER_BYTES);
            }
            self.shared.extend_from_slice(&head);
            self.head = head;
            self.shared.split().freeze()
        } else {
            Bytes::from(head)
        };
        let first = between.split_to(HEADER_BYTES + archive_bytes + first_copied);
        let pieces = self.referenced.len();
        let mut chunks = Chunks::with_capacity(1 + pieces + if between.is_empty() { 0 } else { pieces });
        chunks.push(first);
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
