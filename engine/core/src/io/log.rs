//! What a log is made of, and what a durable one is told and holds.

use bytes::Bytes;

use super::{Retention, Snapshot};
use crate::group_command::GROUP_COMMANDS_TAG;
use crate::ids::{FlushSeq, GroupId, Index, LogPosition, NodeId, Offset, Term};

/// What an entry of the log is for.
#[derive(Clone, Copy, PartialEq, Eq, Hash, Debug)]
#[cfg_attr(feature = "serde", derive(serde::Serialize, serde::Deserialize))]
#[repr(u8)]
pub enum EntryKind {
    /// A batch of records, commands to the group, or empty: the entry with which a leader opens its term.
    Normal = 0,
    /// A change of the group's members (raft-rs `ConfChange`).
    ConfChange = 1,
    /// A change of the group's members by joint consensus (raft-rs `ConfChangeV2`).
    ConfChangeV2 = 2,
}

impl EntryKind {
    /// The kind with this number, if there is one.
    #[must_use]
    pub fn from_u8(number: u8) -> Option<EntryKind> {
        match number {
            0 => Some(EntryKind::Normal),
            1 => Some(EntryKind::ConfChange),
            2 => Some(EntryKind::ConfChangeV2),
            _ => None,
        }
    }
}

/// One entry of a group's log.
#[derive(Clone, PartialEq, Eq, Debug)]
#[cfg_attr(feature = "serde", derive(serde::Serialize, serde::Deserialize))]
pub struct LogEntry {
    /// Position in the log, from 1.
    pub index: Index,
    /// Term of the leader that made it.
    pub term: Term,
    /// What it is for.
    pub kind: EntryKind,
    /// For [`EntryKind::Normal`]: empty, a batch ([`crate::batch`]), or commands to the group
    /// ([`crate::group_command`]). For [`EntryKind::ConfChangeV2`]: what [`crate::decode_change`] reads.
    pub data: Bytes,
}

impl LogEntry {
    /// The entry's batch, if it has one: the entry with which a leader opens its term, commands to the group
    /// and changes of membership have none.
    #[must_use]
    pub fn batch(&self) -> Option<&Bytes> {
        Some(&self.data).filter(|data| has_records(self.kind, data))
    }

    /// The entry's commands to the group, if it has any.
    #[must_use]
    pub fn group_commands(&self) -> Option<&Bytes> {
        let is_ours = self.kind == EntryKind::Normal && self.data.first() == Some(&GROUP_COMMANDS_TAG);
        Some(&self.data).filter(|_| is_ours)
    }
}

/// Whether an entry's data is a batch, going by its first byte: all that count offsets ask this.
#[must_use]
pub fn has_records(kind: EntryKind, data: &[u8]) -> bool {
    kind == EntryKind::Normal && data.first().is_some_and(|first| *first != GROUP_COMMANDS_TAG)
}

/// The part of a replica's state that must be durable before it speaks (Raft paper, figure 2).
#[derive(Clone, Copy, PartialEq, Eq, Default, Debug)]
#[cfg_attr(feature = "serde", derive(serde::Serialize, serde::Deserialize))]
pub struct HardState {
    /// Latest term this replica has seen.
    pub term: Term,
    /// Candidate that got this replica's vote in `term`; `NodeId(0)` for none.
    pub vote: NodeId,
    /// Highest index known to be committed. Durable as a hint: it may lag.
    pub commit: Index,
}

/// Who takes part in a group (raft-rs `ConfState`).
#[derive(Clone, PartialEq, Eq, Default, Debug)]
#[cfg_attr(feature = "serde", derive(serde::Serialize, serde::Deserialize))]
pub struct ConfState {
    /// Nodes whose votes count.
    pub voters: Vec<NodeId>,
    /// Nodes that receive the log and do not vote.
    pub learners: Vec<NodeId>,
    /// The outgoing voters of a joint configuration; empty outside of one.
    pub voters_outgoing: Vec<NodeId>,
    /// Voters that become learners when the joint configuration ends.
    pub learners_next: Vec<NodeId>,
    /// Whether raft-rs ends the joint configuration. Never: every leader that finds itself in one does.
    pub auto_leave: bool,
}

impl ConfState {
    /// Whether two sets of voters have to agree: a change is under way (thesis 4.3).
    #[must_use]
    pub fn is_joint(&self) -> bool {
        !self.voters_outgoing.is_empty()
    }

    /// Whether a node receives the log.
    #[must_use]
    pub fn is_member(&self, node: NodeId) -> bool {
        self.is_voter(node) || self.learners.contains(&node)
    }

    /// Whether a node votes, in either half of a joint configuration.
    #[must_use]
    pub fn is_voter(&self, node: NodeId) -> bool {
        self.voters.contains(&node) || self.voters_outgoing.contains(&node)
    }
}

/// What is shared is written like what is not.
#[cfg(feature = "serde")]
pub(super) fn shared<S: serde::Serializer>(
    members: &std::sync::Arc<ConfState>,
    serializer: S,
) -> Result<S::Ok, S::Error> {
    serde::Serialize::serialize(&**members, serializer)
}

/// A run of entries of one term: the term of every index from `first` to the next run's first.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
#[cfg_attr(feature = "serde", derive(serde::Serialize, serde::Deserialize))]
pub struct TermRun {
    /// First index of the run (inclusive).
    pub first: Index,
    /// Its term.
    pub term: Term,
}

/// Where a log begins: the last entry that is not in it.
#[derive(Clone, Copy, PartialEq, Eq, Default, Debug)]
#[cfg_attr(feature = "serde", derive(serde::Serialize, serde::Deserialize))]
pub struct LogStart {
    /// Index of that entry; 0 when nothing was ever compacted.
    pub index: Index,
    /// Its term.
    pub term: Term,
    /// Offset of the first record after it.
    pub offset: Offset,
}

/// A change of a durable log other than by entries. Made before the entries of the same
/// [`GroupAppend`].
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
#[cfg_attr(feature = "serde", derive(serde::Serialize))]
pub enum LogChange {
    /// Entries up to and including that of the place are no longer wanted. It must be committed;
    /// what was compacted already is no error.
    CompactTo(LogStart),
    /// The whole log is void, and goes on after this place: a snapshot was installed.
    StartAfter(LogStart),
    /// What follows this place is void, committed or not: it is damaged, and comes from the leader again
    /// ([`GroupAppend::under_repair`]). The place is the end of a stored block, or of the log.
    CutAfter(LogStart),
    /// The group is gone with all that it stored. Later entries begin a new one.
    Remove,
}

/// Stored entries that are damaged or gone: the replica is under repair until the leader has given them again.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
#[cfg_attr(feature = "serde", derive(serde::Serialize, serde::Deserialize))]
pub struct LogDamage {
    /// First index concerned (inclusive).
    pub first: Index,
    /// Last index concerned (inclusive).
    pub last: Index,
}

/// A replica as its shard starts: fresh, or as recovery found it.
#[derive(Clone, PartialEq, Eq, Debug)]
#[cfg_attr(feature = "serde", derive(serde::Serialize, serde::Deserialize))]
pub struct GroupState {
    /// The group.
    pub group: GroupId,
    /// Last durable hard state; default for a fresh replica.
    pub hard_state: HardState,
    /// Members as of the start of the log (conf changes in the log are applied again).
    pub conf_state: ConfState,
    /// What the group knows besides its records, as of the commit index of `hard_state`, or with client sessions
    /// of an earlier entry of the log ([`crate::GroupMeta`]); empty before its first command.
    pub meta: Bytes,
    /// How long records are kept. Not durable: a setting, which all replicas should have alike.
    pub retention: Retention,
    /// Whether `conf_state` is durable already; a fresh replica's goes into its first flush.
    pub is_durable: bool,
    /// Where the log begins.
    pub start: LogStart,
    /// Terms of the whole log, in order of index; the first run begins with the first entry.
    /// Empty exactly when the log is.
    pub term_runs: Vec<TermRun>,
    /// Last index of the log; that of `start` when it is empty.
    pub last: Index,
    /// Offset that the next record of the log will get.
    pub next_offset: Offset,
    /// A tail of the log: contiguous, ending at `last`. May be shorter than the log; older entries
    /// are fetched.
    pub tail: Vec<LogEntry>,
    /// Indexes of all conf-change entries of the log, wherever they are.
    pub conf_changes: Vec<Index>,
    /// The group's published snapshot, if it has one. It may be ahead of the log: a crash came before the log
    /// was made to begin after it.
    pub snapshot: Option<Snapshot>,
    /// What recovery found damaged, from the first entry on. The log of this state ends before it; hard state, members and
    /// `meta` are what they were, and may be of a later entry.
    pub damage: Option<LogDamage>,
    /// Whether a repair was under way when the process ended ([`GroupAppend::under_repair`]).
    pub is_under_repair: bool,
    /// The entry that made this replica a member ([`GroupAppend::joined_at`]).
    pub joined_at: LogPosition,
    /// Whether committed entries go to a state machine ([`Outputs::applies`](crate::Outputs::applies)). A group that is only
    /// a log answers on commit and applies nothing.
    pub has_state_machine: bool,
}

impl GroupState {
    /// Term of the entry at `last`; 0 when there is none.
    #[must_use]
    pub fn last_term(&self) -> Term {
        self.term_runs.last().map_or(self.start.term, |run| run.term)
    }

    /// Whether this is what stays of a replica that left its group: term, vote, and where it was. Nothing else of it counts
    /// any more, its snapshots included: another replica may begin in its place.
    #[must_use]
    pub fn has_left(&self) -> bool {
        self.is_durable
            && self.damage.is_none()
            && self.conf_state == ConfState::default()
            && self.last == self.start.index
    }

    /// Term of an entry of the log, or of the one before it.
    pub(crate) fn term_at(&self, index: Index) -> Term {
        let after = self.term_runs.partition_point(|run| run.first <= index);
        after.checked_sub(1).map_or(self.start.term, |at| self.term_runs[at].term)
    }

    /// A replica that has stored nothing yet.
    #[must_use]
    pub fn fresh(group: GroupId, conf_state: ConfState, has_state_machine: bool) -> GroupState {
        GroupState {
            group,
            hard_state: HardState::default(),
            conf_state,
            meta: Bytes::new(),
            retention: Retention::default(),
            is_durable: false,
            start: LogStart::default(),
            term_runs: Vec::new(),
            last: Index(0),
            next_offset: Offset(0),
            tail: Vec::new(),
            conf_changes: Vec::new(),
            snapshot: None,
            damage: None,
            is_under_repair: false,
            joined_at: LogPosition::default(),
            has_state_machine,
        }
    }
}

/// One flush: everything that the groups of a shard want durable after one turn. Atomic.
#[derive(Clone, PartialEq, Eq, Debug)]
#[cfg_attr(feature = "serde", derive(serde::Serialize))]
pub struct Append {
    /// Number of the flush.
    pub seq: FlushSeq,
    /// The groups concerned, each once.
    pub groups: Vec<GroupAppend>,
}

/// What one group wants durable.
#[derive(Clone, PartialEq, Eq, Debug)]
#[cfg_attr(feature = "serde", derive(serde::Serialize))]
pub struct GroupAppend {
    /// The group.
    pub group: GroupId,
    /// A change of the log besides its entries.
    pub change: Option<LogChange>,
    /// New hard state, if it changed.
    pub hard_state: Option<HardState>,
    /// Members, if they changed (or the replica is new).
    pub conf_state: Option<ConfState>,
    /// What the group knows besides its records, if it changed: as of the commit index that is durable
    /// with this flush. At most [`crate::group_meta::GROUP_META_BYTES_MAX`] bytes.
    pub meta: Option<Bytes>,
    /// Whether the replica is under repair from this flush on, if that changes: it has lost entries that it may have
    /// acknowledged, and must not vote before it has them again.
    pub under_repair: Option<bool>,
    /// A committed entry at or after the one that made this replica a member, if it begins with this flush and is none
    /// from the start. It may have had, and may have acknowledged, all before that in an earlier life.
    pub joined_at: Option<LogPosition>,
    /// Contiguous entries. The first may be at or below the stored last index: everything stored
    /// from there on is then void (Raft paper, 5.3).
    pub entries: Vec<LogEntry>,
}
