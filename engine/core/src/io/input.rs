//! What a shard takes.

use super::{ConfState, GroupState, LogDamage, LogEntry, PeerMessage, Retention, SnapshotEvent};
use crate::batch::RecordBlock;
use crate::group_command::GroupCommand;
use crate::ids::{
    FlushSeq, GroupId, Index, LogPosition, NodeId, Offset, Owner, Sequence, SessionId, Term, Timestamp,
    WallTime,
};
use crate::placement::Placement;

/// Where an answer goes. The core carries it and never looks inside.
#[derive(Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash, Debug)]
#[cfg_attr(feature = "serde", derive(serde::Serialize, serde::Deserialize))]
pub struct Token {
    /// Who asked: 0 for the embedding process, otherwise the bridge's number of a client connection.
    pub origin: u64,
    /// The asker's own number of the request.
    pub request: u64,
}

/// What a node is to become in a group.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
#[cfg_attr(feature = "serde", derive(serde::Serialize, serde::Deserialize))]
pub enum MemberRole {
    /// Receives the log and votes. Only a learner that keeps up can become one.
    Voter,
    /// Receives the log and does not vote.
    Learner,
    /// Neither.
    Gone,
}

/// One node's part of a change of members.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
#[cfg_attr(feature = "serde", derive(serde::Serialize, serde::Deserialize))]
pub struct MemberChange {
    /// The node.
    pub node: NodeId,
    /// What it is to become.
    pub role: MemberRole,
}

/// When a proposal is answered.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
#[cfg_attr(feature = "serde", derive(serde::Serialize, serde::Deserialize))]
pub enum AnswerOn {
    /// When its entry is committed: [`Reply::Appended`](crate::Reply::Appended).
    Commit,
    /// When its records are applied: the driver answers with the state machine's responses, told by
    /// [`Apply::waiters`](crate::Apply::waiters).
    Apply,
}

/// What a read covers.
#[derive(Clone, Copy, PartialEq, Eq, Hash, Debug)]
#[cfg_attr(feature = "serde", derive(serde::Serialize, serde::Deserialize))]
pub enum Consistency {
    /// What this replica has applied, however old: [`Freshness`](crate::Freshness) says how old it may be.
    Local,
    /// Everything that was acknowledged before the read was asked. The leader answers without a round while it
    /// holds a lease ([`ShardConfig::lease_reads`](crate::ShardConfig::lease_reads)), which rests on the bound on the drift of the clocks; without
    /// one the read is like a linearizable one.
    Lease,
    /// Everything that was acknowledged before the read was asked, by a round of heartbeats (Raft thesis 6.4): no
    /// clock is trusted.
    Linearizable,
}

/// One event for a shard.
#[derive(Clone, Debug)]
#[cfg_attr(feature = "serde", derive(serde::Serialize, serde::Deserialize))]
pub enum Input {
    /// Nothing more arrived: pack proposals, tick what is due, and say what has to be done. Also
    /// the input for a wake-up at [`crate::Shard::next_wakeup`].
    EndTurn,
    /// The wall clock, for batch headers. Clamped so that it never runs backwards.
    Wall(WallTime),
    /// A message from a peer replica. `message.from` was checked against the connection.
    Message(PeerMessage),
    /// A client's records for a group.
    Propose(Propose),
    /// A read wants to know when it may look at the state machine: answered by [`Reply::ReadReady`](crate::Reply::ReadReady).
    Read {
        /// Where the answer goes.
        token: Token,
        /// The group to read.
        group: GroupId,
        /// What the answer has to cover.
        consistency: Consistency,
        /// Whether a replica that does not lead asks the leader on the reader's behalf, and answers itself;
        /// otherwise it says who leads. A local read asks nobody.
        may_forward: bool,
        /// When the asker stops waiting.
        deadline: Timestamp,
    },
    /// Read committed records of this replica's log: answered by [`Reply::Records`](crate::Reply::Records).
    ReadRecords {
        /// Where the answer goes.
        token: Token,
        /// The group to read.
        group: GroupId,
        /// First record wanted.
        from: Offset,
        /// Bytes of entries to return at most; one entry is returned even if it is larger.
        bytes_max: usize,
        /// Records to return at most; those of the last entry are returned even if they are more.
        records_max: u32,
        /// Whether to wait, where there is no record yet, until there is one: with the deadline the answer is
        /// that there is none. Otherwise that is said at once.
        is_waiting: bool,
        /// When the asker stops waiting.
        deadline: Timestamp,
    },
    /// Follow the committed records of this replica's log: answered by any number of [`Reply::Records`](crate::Reply::Records), the first
    /// without records and at once, the last of which says so, or in the end by one [`Reply::Failed`](crate::Reply::Failed). Goes on where it ended, at any replica.
    Tail {
        /// Where the answers go, and the name of the tail: of no other that is open.
        token: Token,
        /// The group to follow.
        group: GroupId,
        /// First record wanted. It may lie beyond the end of this replica's log.
        from: Offset,
        /// Bytes of entries that may be sent until more is granted; the last entry sent may exceed it.
        granted_bytes: u64,
        /// When the tail ends by itself, unless it is ended before.
        deadline: Timestamp,
    },
    /// The consumer of a tail takes more. Not answered; a tail that is over is not heard of again.
    GrantTail {
        /// The tail.
        token: Token,
        /// Its group.
        group: GroupId,
        /// Bytes granted since it began, in all: a grant that arrives twice counts once.
        granted_bytes: u64,
    },
    /// The consumer of a tail takes no more: answered by its last [`Reply::Records`](crate::Reply::Records), without records.
    EndTail {
        /// The tail.
        token: Token,
        /// Its group.
        group: GroupId,
    },
    /// Find the first committed record of a time: answered by [`Reply::Found`](crate::Reply::Found).
    Find {
        /// Where the answer goes.
        token: Token,
        /// The group to search.
        group: GroupId,
        /// The record's batch was written then or later, by its leader's clock.
        at: WallTime,
        /// When the asker stops waiting.
        deadline: Timestamp,
    },
    /// A command to the group itself, for its leader: answered by [`Reply::CommandDone`](crate::Reply::CommandDone).
    Command {
        /// Where the answer goes.
        token: Token,
        /// The group.
        group: GroupId,
        /// What is to be done.
        command: GroupCommand,
        /// When the asker stops waiting.
        deadline: Timestamp,
    },
    /// Every flush up to and including this one is on stable storage.
    Persisted {
        /// The newest durable flush.
        seq: FlushSeq,
    },
    /// A write or an fsync failed. The shard fences itself for good: it steps down, acknowledges
    /// nothing more and refuses work until restart.
    PersistFailed,
    /// A scrub found stored entries of a group damaged: its replica is taken out and opened again without
    /// them, as if it had read them itself.
    Damaged {
        /// The group.
        group: GroupId,
        /// The entries.
        damage: LogDamage,
    },
    /// A group's state machine panicked: what it would apply to is no longer known, so its replica is taken out until
    /// somebody revives it.
    MachinePanicked {
        /// The group.
        group: GroupId,
    },
    /// A group that was taken out is to be opened again from its disk: answered by [`Reply::Opened`](crate::Reply::Opened).
    Revive {
        /// Where the answer goes.
        token: Token,
        /// The group.
        group: GroupId,
    },
    /// A group lost its quorum for good: what the replica here has becomes the group. Answered by
    /// [`Reply::Recovered`](crate::Reply::Recovered) once that is durable and in force.
    Recover(Recover),
    /// A state that [`Outputs::reopens`](crate::Outputs::reopens) asked for.
    Reopened {
        /// The group.
        group: GroupId,
        /// What its disk holds; that it has a state machine, and how long records are kept, the shard knows.
        result: Result<Box<GroupState>, FetchError>,
    },
    /// Entries that [`Outputs::fetches`](crate::Outputs::fetches) asked for.
    Fetched {
        /// The fetch that is answered.
        id: FetchId,
        /// Its group.
        group: GroupId,
        /// Contiguous entries from the place asked for; never empty on success.
        result: Result<Vec<LogEntry>, FetchError>,
    },
    /// The state machine has applied everything up to this index.
    Applied {
        /// The group.
        group: GroupId,
        /// Last index of the [`Apply`](crate::Apply) that is done.
        index: Index,
    },
    /// Something became of a [`SnapshotTask`](super::SnapshotTask).
    Snapshot {
        /// The group.
        group: GroupId,
        /// What.
        event: SnapshotEvent,
    },
    /// A node that a connection is made to has said which of its shards has which group: from now on messages for it
    /// go by that. Until then it is taken to be like this one.
    Placement {
        /// The node.
        node: NodeId,
        /// What it said.
        placement: Placement,
    },
    /// The connection to a node is gone; appends to its replicas are probed from now on.
    Unreachable {
        /// The node.
        node: NodeId,
    },
    /// Change the members of a group, all in one step: by joint consensus when more than one node is
    /// named (thesis 4.3). Answered by [`Reply::MembersChanged`](crate::Reply::MembersChanged) when the new members are in force, at
    /// once when they are already.
    ChangeMembers {
        /// Where the answer goes.
        token: Token,
        /// The group.
        group: GroupId,
        /// What is to change: 1 to [`crate::MEMBER_CHANGES_MAX`] different nodes.
        changes: Vec<MemberChange>,
        /// When the asker stops waiting.
        deadline: Timestamp,
    },
    /// Hand leadership of a group to another replica (Raft thesis 3.10). New proposals wait until it is
    /// over. Answered by [`Reply::LeadershipGiven`](crate::Reply::LeadershipGiven) once another is known to lead, or by
    /// [`Reply::NotTransferred`](crate::Reply::NotTransferred) within a lease and the longest election timeout.
    TransferLeader {
        /// Where the answer goes.
        token: Token,
        /// The group.
        group: GroupId,
        /// The successor. `None` for the best one: a voter that answers; of these one that has all that is
        /// committed; then by priority, then by how much it has of the rest.
        to: Option<NodeId>,
    },
    /// A replica of a group begins here, with an empty log. The same members for the same group everywhere,
    /// whoever gives them. Answered by [`Reply::Opened`](crate::Reply::Opened), also when it is here
    /// already with these.
    Open(Open),
    /// Remove a group for good, with all that it stored, everywhere. Answered by
    /// [`Reply::Removed`](crate::Reply::Removed) once that is committed; replicas that are away follow when they are back.
    RemoveGroup {
        /// Where the answer goes.
        token: Token,
        /// The group.
        group: GroupId,
        /// When the asker stops waiting.
        deadline: Timestamp,
    },
    /// Stop leading a group: hand over to the best replica, or if none answers or it does not take over,
    /// follow, and do not campaign for the longest election timeout. Answered like a transfer.
    StepDown {
        /// Where the answer goes.
        token: Token,
        /// The group.
        group: GroupId,
    },
}

/// Where a client's records stand in its session.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
#[cfg_attr(feature = "serde", derive(serde::Serialize, serde::Deserialize))]
pub struct ClientRun {
    /// The session.
    pub session: SessionId,
    /// Sequence of the first record; the others follow.
    pub first: Sequence,
    /// Who asks.
    pub owner: Owner,
}

/// A client's records for one group. They go into one entry together, in order, or not at all.
#[derive(Clone, Debug)]
#[cfg_attr(feature = "serde", derive(serde::Serialize, serde::Deserialize))]
pub struct Propose {
    /// Where the answer goes.
    pub token: Token,
    /// The group to append to.
    pub group: GroupId,
    /// The records.
    pub block: RecordBlock,
    /// Their place in a client session: they are appended once, however often they come.
    pub run: Option<ClientRun>,
    /// When to answer.
    pub answer: AnswerOn,
    /// When the asker stops waiting: the outcome is then unknown to it.
    pub deadline: Timestamp,
}

/// A replica that is to begin.
#[derive(Clone, PartialEq, Eq, Debug)]
#[cfg_attr(feature = "serde", derive(serde::Serialize, serde::Deserialize))]
pub struct Open {
    /// Where the answer goes.
    pub token: Token,
    /// The group. Never 0, and never that of a group that was removed.
    pub group: GroupId,
    /// Its members as its log begins.
    pub members: ConfState,
    /// The entry that made this node a member, or a later one that is committed; 0 if it is one from the start. A
    /// replica that left the group comes back only for a later entry than the one that removed it.
    pub since: LogPosition,
    /// Whether committed entries go to a state machine.
    pub has_state_machine: bool,
    /// How long its records are kept.
    pub retention: Retention,
}

/// What an operator knows and accepts who recovers a group from one survivor ([`crate::recovery`]).
#[derive(Clone, PartialEq, Eq, Debug)]
#[cfg_attr(feature = "serde", derive(serde::Serialize, serde::Deserialize))]
pub struct Recover {
    /// Where the answer goes.
    pub token: Token,
    /// The group.
    pub group: GroupId,
    /// Nodes that are gone for good: so many that the rest of the voters elect nobody.
    pub lost: Vec<NodeId>,
    /// Last index of the survivor's log, as the operator saw it: what others had beyond it is given up.
    pub last: Index,
    /// The term of that entry.
    pub last_term: Term,
    /// When the asker stops waiting.
    pub deadline: Timestamp,
}

/// Number of a fetch, unique within its shard's life.
#[derive(Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash, Debug)]
#[cfg_attr(feature = "serde", derive(serde::Serialize, serde::Deserialize))]
pub struct FetchId(pub u64);

/// Where a fetch starts.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
#[cfg_attr(feature = "serde", derive(serde::Serialize))]
pub enum FetchFrom {
    /// At this index.
    Index(Index),
    /// At the entry that holds this record.
    Offset(Offset),
    /// At the oldest block from which on the stored log has at most so many bytes.
    Newest {
        /// Bytes of whole blocks, as they are stored.
        bytes: u64,
    },
}

/// Entries that are no longer in memory, wanted from the durable log.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
#[cfg_attr(feature = "serde", derive(serde::Serialize))]
pub struct Fetch {
    /// To be returned with the answer.
    pub id: FetchId,
    /// The group.
    pub group: GroupId,
    /// First entry wanted.
    pub from: FetchFrom,
    /// Last index wanted (inclusive).
    pub to: Index,
    /// Bytes of entry data to return at most; one entry is returned even if it is larger.
    pub bytes_max: usize,
}

/// Why a fetch failed.
#[derive(Clone, Copy, PartialEq, Eq, Debug, thiserror::Error)]
#[cfg_attr(feature = "serde", derive(serde::Serialize, serde::Deserialize))]
pub enum FetchError {
    /// The durable log no longer has it (cut by a conflicting suffix meanwhile): ask again.
    #[error("the entry is not in the durable log")]
    Missing,
    /// Stored bytes failed their check: the replica must not serve or vote.
    #[error("stored entries are damaged from index {first} to {last}")]
    Corrupt {
        /// First damaged index (inclusive).
        first: Index,
        /// Last damaged index (inclusive).
        last: Index,
    },
    /// The medium failed.
    #[error("reading the durable log failed")]
    Io,
}

impl FetchError {
    /// The entries that it says are damaged.
    #[must_use]
    pub fn damage(&self) -> Option<LogDamage> {
        match *self {
            FetchError::Corrupt { first, last } => Some(LogDamage { first, last }),
            FetchError::Missing | FetchError::Io => None,
        }
    }
}
