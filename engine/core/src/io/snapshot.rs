//! Snapshots of state machines: what they stand for, and what the core and its driver say of them.

use bytes::Bytes;

use super::ConfState;
use crate::ids::{GroupId, Index, NodeId, Offset, Term};

/// Bytes of a snapshot's body in one chunk; the last chunk has what is left. With the header that it is stored
/// with, a chunk fills 64 pages.
pub const SNAPSHOT_CHUNK_BYTES: usize = 262_040;

/// What a snapshot stands for.
#[derive(Clone, PartialEq, Eq, Default, Debug)]
#[cfg_attr(feature = "serde", derive(serde::Serialize, serde::Deserialize))]
pub struct SnapshotHead {
    /// Last index that it covers. It is committed.
    pub index: Index,
    /// Term of that entry.
    pub term: Term,
    /// Offset after the last record that it covers.
    pub offset: Offset,
    /// The group's members as of that entry; never a joint configuration.
    pub conf_state: ConfState,
    /// The group's table ([`crate::GroupMeta`]) as of that entry or of a later one that is committed.
    pub table: Bytes,
}

/// How long the body of a snapshot is, and what it must come to.
#[derive(Clone, Copy, PartialEq, Eq, Hash, Default, Debug)]
#[cfg_attr(feature = "serde", derive(serde::Serialize, serde::Deserialize))]
pub struct SnapshotBody {
    /// Its length.
    pub bytes: u64,
    /// CRC-32C of all of it.
    pub checksum: u32,
}

impl SnapshotBody {
    /// Longest body, in bytes.
    pub const BYTES_MAX: u64 = 1 << 40;

    /// Number of its chunks.
    #[must_use]
    pub fn chunks(&self) -> u32 {
        u32::try_from(self.bytes.div_ceil(SNAPSHOT_CHUNK_BYTES as u64)).unwrap_or(u32::MAX)
    }

    /// Length of one of its chunks; `None` if it has no such chunk.
    #[must_use]
    pub fn chunk_bytes(&self, chunk: u32) -> Option<usize> {
        let before = u64::from(chunk) * SNAPSHOT_CHUNK_BYTES as u64;
        let left = self.bytes.checked_sub(before).filter(|left| *left > 0)?;
        usize::try_from(left.min(SNAPSHOT_CHUNK_BYTES as u64)).ok()
    }
}

/// A complete snapshot of a group. Of a group without a state machine it has no body: it says where the log begins.
#[derive(Clone, PartialEq, Eq, Default, Debug)]
#[cfg_attr(feature = "serde", derive(serde::Serialize, serde::Deserialize))]
pub struct Snapshot {
    /// What it stands for.
    pub head: SnapshotHead,
    /// Its body.
    pub body: SnapshotBody,
}

/// Something to be done about the snapshots of a group, in the order given. Answered by
/// [`Input::Snapshot`](super::Input::Snapshot) unless it says otherwise.
#[derive(Clone, PartialEq, Eq, Debug)]
#[cfg_attr(feature = "serde", derive(serde::Serialize))]
pub struct SnapshotTask {
    /// The group.
    pub group: GroupId,
    /// What.
    pub step: SnapshotStep,
}

/// See [`SnapshotTask`].
#[derive(Clone, PartialEq, Eq, Debug)]
#[cfg_attr(feature = "serde", derive(serde::Serialize))]
pub enum SnapshotStep {
    /// Take a snapshot of the state machine as it is, before anything that this turn applies, and publish it in
    /// place of the group's last one. Answered by `Taken` or `NotTaken`.
    Take(SnapshotHead),
    /// Put the state machine where the published snapshot says. Answered by `Restored` or `NotRestored`.
    Restore(Snapshot),
    /// Receive this snapshot: begin, or go on with what is durable of it. Answered by `Staged`, by
    /// `Published` if it is there already, or by `Failed`.
    Receive(Snapshot),
    /// Write the next chunk of the one that is received. Answered by `Staged` or `Failed`.
    Write {
        /// Last index that the snapshot covers.
        index: Index,
        /// Number of the chunk, from 0.
        chunk: u32,
        /// The chunk.
        data: Bytes,
    },
    /// All chunks are durable: compare the whole with what it must come to, and put it in place of the group's
    /// last one. Answered by `Published` or, with nothing left of it, by `Failed`.
    Publish(Snapshot),
    /// Read a chunk of the published snapshot for a peer. Answered by `Chunk`.
    Read {
        /// Last index that the snapshot covers.
        index: Index,
        /// Number of the chunk, from 0.
        chunk: u32,
        /// The peer.
        to: NodeId,
    },
}

/// Why a state machine was not put where a snapshot says.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
#[cfg_attr(feature = "serde", derive(serde::Serialize, serde::Deserialize))]
pub enum RestoreProblem {
    /// The medium failed.
    Io,
    /// What is stored is not what was written. The snapshot is dropped.
    Damaged,
    /// A newer one has been published meanwhile, which was begun before the replica began again.
    Replaced,
    /// The state machine does not take it, sound as it is.
    Refused,
}

/// What became of a [`SnapshotTask`].
#[derive(Clone, PartialEq, Eq, Debug)]
#[cfg_attr(feature = "serde", derive(serde::Serialize, serde::Deserialize))]
pub enum SnapshotEvent {
    /// The snapshot is published.
    Taken(Snapshot),
    /// There is none.
    NotTaken {
        /// Whether the state machine can be asked again later; one that makes no snapshots cannot.
        may_retry: bool,
    },
    /// The state machine is at this index.
    Restored {
        /// Last index that the snapshot covers.
        index: Index,
    },
    /// The state machine cannot be put there; it is as it was before its first command.
    NotRestored {
        /// Last index that the snapshot covers.
        index: Index,
        /// Why.
        problem: RestoreProblem,
    },
    /// The published snapshot was found damaged while nobody needed it.
    Damaged,
    /// So much of the snapshot that is received is durable.
    Staged {
        /// Last index that the snapshot covers.
        index: Index,
        /// Number of chunks.
        chunks: u32,
    },
    /// The snapshot that was received is published.
    Published {
        /// Last index that the snapshot covers.
        index: Index,
    },
    /// The snapshot cannot be received.
    Failed {
        /// Last index that the snapshot covers.
        index: Index,
    },
    /// A chunk of the published snapshot.
    Chunk {
        /// Last index that the snapshot covers.
        index: Index,
        /// Number of the chunk, from 0.
        chunk: u32,
        /// Whom it is for.
        to: NodeId,
        /// The chunk; `None` when it cannot be read, or another snapshot took the place of this one.
        data: Option<Bytes>,
    },
}
