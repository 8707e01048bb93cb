//! What a replica looks like from outside.

use std::sync::Arc;

use super::ConfState;
use crate::ids::{GroupId, Index, NodeId, Offset, Term};

/// How a replica stands, for status pages and metrics.
#[derive(Clone, PartialEq, Eq, Debug)]
pub struct GroupStatus {
    /// The group.
    pub group: GroupId,
    /// Its role now.
    pub role: Role,
    /// Its term.
    pub term: Term,
    /// The leader it knows.
    pub leader: Option<NodeId>,
    /// Highest committed index it knows.
    pub commit: Index,
    /// Highest applied index.
    pub applied: Index,
    /// Last index of its log.
    pub last: Index,
    /// Term of the entry at `last`; 0 when there is none.
    pub last_term: Term,
    /// First record that is kept: those before it were trimmed.
    pub first: Offset,
    /// Offset after the last committed record.
    pub end: Offset,
    /// The members in force on this replica; none while it loads, or was taken out.
    pub members: Arc<ConfState>,
    /// Entry that put them in force; for those that the log began with, the entry before it.
    pub members_since: Index,
    /// Whether it was taken out after a broken invariant.
    pub is_quarantined: bool,
    /// Whether the disk of its shard hangs ([`Event::DiskHung`](crate::Event::DiskHung)).
    pub is_disk_hung: bool,
    /// Whether it is quiet: no ticks, no messages, until there is something to do.
    pub is_quiet: bool,
    /// Whether it is under repair ([`Event::RepairNeeded`](crate::Event::RepairNeeded)): its log is sound up to
    /// `last`, and it does not vote.
    pub is_under_repair: bool,
}

/// Role of a replica.
#[derive(Clone, Copy, PartialEq, Eq, Hash, Debug)]
#[cfg_attr(feature = "serde", derive(serde::Serialize))]
pub enum Role {
    /// Follows a leader, or waits for one.
    Follower,
    /// Asks whether a campaign has a chance.
    PreCandidate,
    /// Asks for votes.
    Candidate,
    /// Leads.
    Leader,
}
