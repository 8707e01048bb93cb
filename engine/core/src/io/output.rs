//! What a shard says.

use std::sync::Arc;
use std::time::Duration;

use super::{Append, Compare, ConfState, Fetch, LogDamage, LogEntry, PeerMessage, SnapshotTask, Token};
use crate::error::{RequestError, TransferError};
use crate::ids::{FlushSeq, GroupId, Index, LogPosition, NodeId, Offset, Term};
use crate::recovery::Recovered;

/// How far a replica is as it answers a read.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
#[cfg_attr(feature = "serde", derive(serde::Serialize))]
pub struct Freshness {
    /// The answer is the state after this index, exactly.
    pub applied: Index,
    /// Highest committed index that the replica knows; never below `applied`.
    pub commit: Index,
    /// Time since the replica last took a message of a leader, by its own clock; `None` when it has taken none
    /// since it started. Zero for one that leads, which may have been deposed without knowing for
    /// two `lease_ticks` (check-quorum, thesis 6.2).
    pub heard: Option<Duration>,
}

/// Everything a shard wants done after a turn. A driver empties it; the buffers are reused.
#[derive(Debug, Default)]
#[cfg_attr(feature = "serde", derive(serde::Serialize))]
pub struct Outputs {
    /// What has to become durable: at most one per turn, its `seq` one more than the last.
    pub append: Option<Append>,
    /// Messages for peers.
    pub sends: Vec<Send>,
    /// Committed entries for state machines.
    pub applies: Vec<Apply>,
    /// Entries wanted from the durable log.
    pub fetches: Vec<Fetch>,
    /// Groups whose state is wanted from the disk again.
    pub reopens: Vec<Reopen>,
    /// What has to be done about snapshots, in order: before [`Outputs::applies`].
    pub snapshots: Vec<SnapshotTask>,
    /// Replicas that members of their groups want here. A driver answers each by [`Input::Open`](crate::Input::Open),
    /// or not at all: it will be said again.
    pub invites: Vec<Invite>,
    /// States to be digested: before [`Outputs::applies`].
    pub compares: Vec<Compare>,
    /// Answers to clients.
    pub replies: Vec<Reply>,
    /// Things worth telling an operator.
    pub events: Vec<Event>,
}

/// The state of a group that was taken out is wanted again, as its disk holds it. Everything that it handed over is
/// durable.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
#[cfg_attr(feature = "serde", derive(serde::Serialize))]
pub struct Reopen {
    /// The group.
    pub group: GroupId,
    /// What is known to be damaged: the state's log ends before it.
    pub damage: Option<LogDamage>,
}

impl Outputs {
    /// Whether nothing has to be done.
    #[must_use]
    pub fn is_empty(&self) -> bool {
        self.append.is_none()
            && self.sends.is_empty()
            && self.applies.is_empty()
            && self.fetches.is_empty()
            && self.reopens.is_empty()
            && self.snapshots.is_empty()
            && self.invites.is_empty()
            && self.compares.is_empty()
            && self.replies.is_empty()
            && self.events.is_empty()
    }

    /// Empties it and keeps the buffers, up to a size that only a turn of thousands of groups exceeds.
    pub fn clear(&mut self) {
        self.append = None;
        self.sends.clear();
        self.sends.shrink_to(KEPT_MAX);
        self.applies.clear();
        self.applies.shrink_to(KEPT_MAX);
        self.fetches.clear();
        self.reopens.clear();
        self.snapshots.clear();
        self.invites.clear();
        self.compares.clear();
        self.replies.clear();
        self.replies.shrink_to(KEPT_MAX);
        self.events.clear();
        self.events.shrink_to(KEPT_MAX);
    }
}

/// Places for things of one kind that are kept from turn to turn.
const KEPT_MAX: usize = 512;

/// A replica that a member of its group wants here.
#[derive(Clone, PartialEq, Eq, Debug)]
#[cfg_attr(feature = "serde", derive(serde::Serialize))]
pub struct Invite {
    /// The group.
    pub group: GroupId,
    /// Its members as its log begins.
    pub members: ConfState,
    /// The entry that made this node a member, or a later one that is committed; 0 if it is one from the start.
    pub since: LogPosition,
}

/// A message for a peer, and what must be durable before it may leave.
#[derive(Clone, PartialEq, Eq, Debug)]
#[cfg_attr(feature = "serde", derive(serde::Serialize))]
pub struct Send {
    /// The message; its `to` says where it goes.
    pub message: PeerMessage,
    /// It may leave once this flush is durable; `None`: at once.
    pub after: Option<FlushSeq>,
}

/// Committed entries for a group's state machine, in order. Answered by [`Input::Applied`](crate::Input::Applied); the
/// next ones of the group come only after that.
#[derive(Clone, PartialEq, Eq, Debug)]
#[cfg_attr(feature = "serde", derive(serde::Serialize))]
pub struct Apply {
    /// The group.
    pub group: GroupId,
    /// Contiguous committed entries. Only non-empty `Normal` ones carry records.
    pub entries: Vec<LogEntry>,
    /// Requests of this leader that wait for responses of these entries, in order of offset.
    pub waiters: Vec<Waiter>,
}

/// A request that is answered by the state machine's responses.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
#[cfg_attr(feature = "serde", derive(serde::Serialize))]
pub struct Waiter {
    /// Where the answer goes.
    pub token: Token,
    /// Its first record.
    pub first: Offset,
    /// Its number of records.
    pub count: u32,
    /// Index of its entry.
    pub index: Index,
    /// Term of its entry.
    pub term: Term,
}

/// An answer to a client's request.
#[derive(Clone, PartialEq, Eq, Debug)]
#[cfg_attr(feature = "serde", derive(serde::Serialize))]
pub enum Reply {
    /// The records are on stable storage of a quorum, at these offsets, for good.
    Appended {
        /// Whom to answer.
        token: Token,
        /// The group.
        group: GroupId,
        /// Offset of the request's first record; the others follow.
        first: Offset,
        /// Number of records.
        count: u32,
        /// Index of their entry.
        index: Index,
        /// Term of their entry.
        term: Term,
    },
    /// Commands of a client session came again, and are applied: answer with the responses that they had, or with
    /// [`SessionRefusal::ResponseGone`](crate::SessionRefusal::ResponseGone) where these are no longer kept.
    Repeated {
        /// Whom to answer.
        token: Token,
        /// The group.
        group: GroupId,
        /// Offset of the request's first record; the others follow.
        first: Offset,
        /// Number of records.
        count: u32,
        /// Index of their entry.
        index: Index,
        /// Term of their entry.
        term: Term,
    },
    /// The state machine has applied all that the read has to cover: look now, before anything more is
    /// applied.
    ReadReady {
        /// Whom to answer.
        token: Token,
        /// The group.
        group: GroupId,
        /// How far the replica is.
        freshness: Freshness,
    },
    /// Committed records of this replica's log.
    Records {
        /// Whom to answer.
        token: Token,
        /// The group.
        group: GroupId,
        /// Record asked for; the first entry may begin before it.
        from: Offset,
        /// Entries with records, in order; empty when there are none from `from` on, and at the end of a tail.
        entries: Vec<LogEntry>,
        /// Offset after the last committed record of this replica.
        end: Offset,
        /// Whether it is the last answer of its request: not, while a tail goes on.
        is_last: bool,
    },
    /// Where the records of a time begin.
    Found {
        /// Whom to answer.
        token: Token,
        /// The group.
        group: GroupId,
        /// First record of that time or later; `end` when there is none.
        offset: Offset,
        /// Offset after the last committed record of this replica as the search began.
        end: Offset,
    },
    /// A command to the group is committed and applied.
    CommandDone {
        /// Whom to answer.
        token: Token,
        /// The group.
        group: GroupId,
        /// Where the cursor stands now, `None` when it is gone; for a trim the first record kept.
        offset: Option<Offset>,
        /// Its entry.
        index: Index,
    },
    /// This replica does not lead any more: another does, or it has stepped down.
    LeadershipGiven {
        /// Whom to answer.
        token: Token,
        /// The group.
        group: GroupId,
        /// Who leads now; `None` after stepping down with nobody to take over.
        leader: Option<NodeId>,
        /// The term that it leads, or that nobody leads any more.
        term: Term,
    },
    /// Leadership was not handed over.
    NotTransferred {
        /// Whom to answer.
        token: Token,
        /// The group.
        group: GroupId,
        /// Why, and whether to try again.
        error: TransferError,
    },
    /// The group has a replica here.
    Opened {
        /// Whom to answer.
        token: Token,
        /// The group.
        group: GroupId,
    },
    /// The group goes on with the replica here as its only member.
    Recovered {
        /// Whom to answer.
        token: Token,
        /// The group.
        group: GroupId,
        /// What is left of it.
        recovered: Recovered,
    },
    /// The group is removed, for good.
    Removed {
        /// Whom to answer.
        token: Token,
        /// The group.
        group: GroupId,
    },
    /// The members of the group are those that were asked for.
    MembersChanged {
        /// Whom to answer.
        token: Token,
        /// The group.
        group: GroupId,
        /// Entry from which on they are.
        index: Index,
        /// The members now.
        #[cfg_attr(feature = "serde", serde(serialize_with = "super::log::shared"))]
        members: Arc<ConfState>,
    },
    /// The request failed.
    Failed {
        /// Whom to answer.
        token: Token,
        /// The group.
        group: GroupId,
        /// Why, and whether to try again.
        error: RequestError,
    },
}

/// Something worth telling an operator.
#[derive(Clone, PartialEq, Eq, Debug)]
#[cfg_attr(feature = "serde", derive(serde::Serialize))]
pub enum Event {
    /// The replica learned of another leader, or lost the one it had.
    LeaderChanged {
        /// The group.
        group: GroupId,
        /// Its term.
        term: Term,
        /// The leader now; `None` while there is none.
        leader: Option<NodeId>,
    },
    /// Other members are in force on this replica.
    MembersChanged {
        /// The group.
        group: GroupId,
        /// Entry from which on they are.
        index: Index,
        /// The members now.
        #[cfg_attr(feature = "serde", serde(serialize_with = "super::log::shared"))]
        members: Arc<ConfState>,
    },
    /// The group has a new snapshot, taken here.
    SnapshotTaken {
        /// The group.
        group: GroupId,
        /// Last index that it covers.
        index: Index,
        /// Length of its body.
        bytes: u64,
    },
    /// The replica's log and state were replaced by a snapshot of the leader.
    SnapshotInstalled {
        /// The group.
        group: GroupId,
        /// Last index that it covers.
        index: Index,
        /// Length of its body.
        bytes: u64,
    },
    /// The group's stored snapshot is damaged. Another takes its place: of the state in memory, or, where that was to be restored
    /// from it, of the leader's.
    SnapshotDamaged {
        /// The group.
        group: GroupId,
        /// Last index that it covers.
        index: Index,
    },
    /// A snapshot did not reach a follower, or did not come from the leader: it is tried again from where it
    /// was.
    SnapshotGivenUp {
        /// The group.
        group: GroupId,
        /// Last index that it covers.
        index: Index,
        /// The other side.
        peer: NodeId,
        /// Chunks that had arrived.
        chunks: u32,
    },
    /// The replica is no more: its group goes on without it, or was removed.
    ReplicaLeft {
        /// The group.
        group: GroupId,
        /// The last entry that it may have had a part in.
        since: Index,
    },
    /// The quorum of the group was lost, and an operator has made the replica here the only member: what the lost had
    /// beyond its log is given up.
    QuorumRecovered {
        /// The group.
        group: GroupId,
        /// Nodes that were named as lost.
        lost: Vec<NodeId>,
        /// Last entry of before, which is kept with all before it.
        last: Index,
        /// The term in which it goes on.
        term: Term,
    },
    /// Entries of a replica are damaged or gone, and they may have been acknowledged: it is under repair. It takes
    /// them from its leader, and does not vote before it has all that the leader had when it was asked.
    RepairNeeded {
        /// The group.
        group: GroupId,
        /// What is damaged; `None` when an earlier process had begun the repair.
        damage: Option<LogDamage>,
        /// Last entry that is sound.
        last: Index,
        /// What the replica knew to be committed.
        commit: Index,
        /// Its term.
        term: Term,
    },
    /// A replica under repair has all again that it may ever have acknowledged: it is well.
    Repaired {
        /// The group.
        group: GroupId,
        /// The entry up to which its leader demanded it.
        bound: Index,
    },
    /// A group broke an invariant and was taken out; the other groups go on.
    Quarantined {
        /// The group.
        group: GroupId,
        /// What was seen.
        reason: String,
    },
    /// A peer's message was refused before Raft saw it.
    MessageRefused {
        /// The group it named.
        group: GroupId,
        /// Who sent it.
        from: NodeId,
        /// What is wrong with it.
        reason: crate::validate::Refusal,
    },
    /// The shard has fenced itself after a failed write.
    Fenced,
    /// A flush has been on its way for longer than `flush_stuck_after`: the shard gives its leaderships away
    /// and takes none.
    DiskHung {
        /// The oldest flush on its way.
        seq: FlushSeq,
        /// For how long it has been so far.
        waited: Duration,
    },
    /// The flush that hung is durable, and none after it has been on its way for too long.
    DiskRecovered {
        /// How long the disk hung, from the flush that did.
        hung: Duration,
    },
}
