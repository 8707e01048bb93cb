//! Comparing replicas: what a replica's state at an index comes to, so that two of them can be held against each other.
//!
//! Equal states are what state machine replication promises (Schneider, 1990; Raft paper, figure 3). Nothing in the protocol
//! checks that they are: a machine that is not deterministic, or a disk or memory that lies, makes them differ for good and in
//! silence. [`GroupCommand::Compare`](crate::GroupCommand::Compare) marks an index in the log; each replica digests its state
//! right after it.

use super::SnapshotBody;
use crate::ids::{GroupId, Index};

/// What a replica's state at an index comes to. Equal on all replicas, unless something is wrong with one.
#[derive(Clone, Copy, PartialEq, Eq, Hash, Debug)]
#[cfg_attr(feature = "serde", derive(serde::Serialize))]
pub struct StateDigest {
    /// Length and CRC-32C of the snapshot that the state machine would make there. `None` in a group without a state
    /// machine, or with one that makes no snapshots: that one is not compared.
    pub machine: Option<SnapshotBody>,
    /// CRC-32C of what the group knows besides its records: consumers' cursors, client sessions, where the kept records begin
    /// ([`GroupMeta`](crate::GroupMeta), encoded, but for its time, which is only a bound).
    pub table: u32,
}

/// What a node knows of its replica's digest at an index.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub enum DigestState {
    /// The digest.
    Known(StateDigest),
    /// The replica has still to get so far, or is at work on it: ask again.
    Pending,
    /// Not made: the shard was at work on another, or the state machine was taken out. A comparison at another index may do
    /// better.
    Missed,
    /// Not here: no comparison was marked there, or the replica has begun since, was restored from a later snapshot, or made so
    /// many digests after it that this one is forgotten.
    Unknown,
}

/// The state after this entry is to be digested. Its driver freezes the state machine right after it has applied the entry.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
#[cfg_attr(feature = "serde", derive(serde::Serialize))]
pub struct Compare {
    /// The group.
    pub group: GroupId,
    /// The entry that marks the place.
    pub index: Index,
    /// See [`StateDigest::table`].
    pub table: u32,
}
