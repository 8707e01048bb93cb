//! What goes into a shard and what comes out: the seam between the core and its drivers.
//!
//! Everything here is data. A driver feeds [`Input`]s as they arrive and ends each turn with
//! [`Input::EndTurn`]; the shard then says in [`Outputs`] what the world has to do. Neither side
//! calls back into the other.

use std::sync::Arc;
use std::time::Duration;

use bytes::Bytes;

use crate::batch::RecordBlock;
use crate::error::{RequestError, TransferError};
use crate::ids::{FlushSeq, GroupId, Index, NodeId, Offset, Term, Timestamp, WallTime};

/// Where an answer goes. The core carries it and never looks inside.
#[derive(Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash, Debug)]
#[cfg_attr(feature = "serde", derive(serde::Serialize, serde::Deserialize))]
pub struct Token {
    /// Who asked: 0 for the embedding process, otherwise the bridge's number of a client connection.
    pub origin: u64,
    /// The asker's own number of the request.
    pub request: u64,
}

/// What an entry of the log is for.
#[derive(Clone, Copy, PartialEq, Eq, Hash, Debug)]
#[cfg_attr(feature = "serde", derive(serde::Serialize, serde::Deserialize))]
#[repr(u8)]
pub enum EntryKind {
    /// A batch of records, or empty: the entry with which a leader opens its term.
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
    /// For [`EntryKind::Normal`]: empty, or a batch ([`crate::batch`]). For
    /// [`EntryKind::ConfChangeV2`]: what [`crate::decode_change`] reads.
    pub data: Bytes,
}

impl LogEntry {
    /// The entry's batch, if it has one: the entry with which a leader opens its term and changes of
    /// membership have none.
    #[must_use]
    pub fn batch(&self) -> Option<&Bytes> {
        Some(&self.data).filter(|data| self.kind == EntryKind::Normal && !data.is_empty())
    }
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
fn shared<S: serde::Serializer>(members: &Arc<ConfState>, serializer: S) -> Result<S::Ok, S::Error> {
    serde::Serialize::serialize(&**members, serializer)
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
    /// The group is gone with all that it stored. Later entries begin a new one.
    Remove,
}

/// Stored entries that are damaged: the replica neither votes nor serves until it is repaired.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
#[cfg_attr(feature = "serde", derive(serde::Serialize, serde::Deserialize))]
pub struct LogDamage {
    /// First index concerned (inclusive).
    pub first: Index,
    /// Last index concerned (inclusive).
    pub last: Index,
}

/// A replica as its shard starts: fresh, or as recovery found it.
#[derive(Clone, Debug)]
#[cfg_attr(feature = "serde", derive(serde::Serialize, serde::Deserialize))]
pub struct GroupState {
    /// The group.
    pub group: GroupId,
    /// Last durable hard state; default for a fresh replica.
    pub hard_state: HardState,
    /// Members as of the start of the log (conf changes in the log are applied again).
    pub conf_state: ConfState,
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
    /// What recovery found damaged. The rest of the state is then only a hint.
    pub damage: Option<LogDamage>,
    /// Whether committed entries go to a state machine ([`Outputs::applies`]). A group that is only
    /// a log answers on commit and applies nothing.
    pub has_state_machine: bool,
}

impl GroupState {
    /// A replica that has stored nothing yet.
    #[must_use]
    pub fn fresh(group: GroupId, conf_state: ConfState, has_state_machine: bool) -> GroupState {
        GroupState {
            group,
            hard_state: HardState::default(),
            conf_state,
            is_durable: false,
            start: LogStart::default(),
            term_runs: Vec::new(),
            last: Index(0),
            next_offset: Offset(0),
            tail: Vec::new(),
            conf_changes: Vec::new(),
            damage: None,
            has_state_machine,
        }
    }
}

/// Kinds of message between replicas. The numbers are the wire's and never change.
#[derive(Clone, Copy, PartialEq, Eq, Hash, Debug)]
#[cfg_attr(feature = "serde", derive(serde::Serialize, serde::Deserialize))]
#[repr(u8)]
pub enum MessageKind {
    /// Entries from the leader (`MsgAppend`).
    Append = 1,
    /// Answer to `Append`.
    AppendResponse = 2,
    /// A candidate asks for a vote (`MsgRequestVote`).
    RequestVote = 3,
    /// Answer to `RequestVote`.
    RequestVoteResponse = 4,
    /// Would you vote for me? (`MsgRequestPreVote`, thesis 9.6)
    RequestPreVote = 5,
    /// Answer to `RequestPreVote`.
    RequestPreVoteResponse = 6,
    /// The leader lives (`MsgHeartbeat`).
    Heartbeat = 7,
    /// Answer to `Heartbeat`.
    HeartbeatResponse = 8,
    /// The leader asks its successor to campaign at once (`MsgTimeoutNow`, thesis 3.10).
    TimeoutNow = 9,
    /// A follower forwards a linearizable read (`MsgReadIndex`).
    ReadIndex = 10,
    /// Answer to `ReadIndex`.
    ReadIndexResponse = 11,
    /// A snapshot's metadata (`MsgSnapshot`). Reserved: none is sent yet.
    Snapshot = 12,
}

impl MessageKind {
    /// All kinds, in order of their numbers.
    pub const ALL: [MessageKind; 12] = [
        MessageKind::Append,
        MessageKind::AppendResponse,
        MessageKind::RequestVote,
        MessageKind::RequestVoteResponse,
        MessageKind::RequestPreVote,
        MessageKind::RequestPreVoteResponse,
        MessageKind::Heartbeat,
        MessageKind::HeartbeatResponse,
        MessageKind::TimeoutNow,
        MessageKind::ReadIndex,
        MessageKind::ReadIndexResponse,
        MessageKind::Snapshot,
    ];

    /// The kind with this number, if there is one.
    #[must_use]
    pub fn from_u8(number: u8) -> Option<MessageKind> {
        let position = usize::from(number).checked_sub(1)?;
        MessageKind::ALL.get(position).copied()
    }
}

/// One Raft message between two replicas of a group: raft-rs' message in plain types.
///
/// Field meanings depend on the kind, as in raft-rs; `validate.rs` says which combinations are
/// legal. Nothing of a received message is trusted before that check.
#[derive(Clone, PartialEq, Eq, Debug)]
#[cfg_attr(feature = "serde", derive(serde::Serialize, serde::Deserialize))]
pub struct PeerMessage {
    /// What it is.
    pub kind: MessageKind,
    /// The group it belongs to.
    pub group: GroupId,
    /// Sender. The bridge has checked it against the connection's key.
    pub from: NodeId,
    /// Receiver.
    pub to: NodeId,
    /// Sender's term (for pre-votes: the term it would campaign in).
    pub term: Term,
    /// Term of the entry at `index`.
    pub log_term: Term,
    /// Log position; its meaning depends on the kind.
    pub index: Index,
    /// Sender's commit index.
    pub commit: Index,
    /// Term of the sender's commit index (votes).
    pub commit_term: Term,
    /// Whether the answer is a no.
    pub reject: bool,
    /// With `reject` of an append: where the follower's log may agree.
    pub reject_hint: Index,
    /// Index a follower wants a snapshot for; 0 for none.
    pub request_snapshot: Index,
    /// Sender's election priority.
    pub priority: i64,
    /// Heartbeat and ReadIndex context: at most [`CONTEXT_BYTES_MAX`] bytes.
    pub context: Bytes,
    /// Entries, contiguous, following `index` (for `ReadIndex`: one, with the context as data).
    pub entries: Vec<LogEntry>,
}

/// Longest context of a message, in bytes.
pub const CONTEXT_BYTES_MAX: usize = 64;

/// When a proposal is answered.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
#[cfg_attr(feature = "serde", derive(serde::Serialize, serde::Deserialize))]
pub enum AnswerOn {
    /// When its entry is committed: [`Reply::Appended`].
    Commit,
    /// When its records are applied: the driver answers with the state machine's responses, told by
    /// [`Apply::waiters`].
    Apply,
}

/// What a read covers.
#[derive(Clone, Copy, PartialEq, Eq, Hash, Debug)]
#[cfg_attr(feature = "serde", derive(serde::Serialize, serde::Deserialize))]
pub enum Consistency {
    /// What this replica has applied, however old: [`Freshness`] says how old it may be.
    Local,
    /// Everything that was acknowledged before the read was asked. The leader answers without a round while it
    /// holds a lease ([`ShardConfig::lease_reads`]), which rests on the bound on the drift of the clocks; without
    /// one the read is like a linearizable one.
    Lease,
    /// Everything that was acknowledged before the read was asked, by a round of heartbeats (Raft thesis 6.4): no
    /// clock is trusted.
    Linearizable,
}

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
    /// A read wants to know when it may look at the state machine: answered by [`Reply::ReadReady`].
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
    /// Read committed records of this replica's log: answered by [`Reply::Records`].
    ReadRecords {
        /// Where the answer goes.
        token: Token,
        /// The group to read.
        group: GroupId,
        /// First record wanted.
        from: Offset,
        /// Bytes of entries to return at most; one entry is returned even if it is larger.
        bytes_max: usize,
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
    /// A scrub found stored entries of a group damaged: its replica is taken out, as if it had read
    /// them itself.
    Damaged {
        /// The group.
        group: GroupId,
        /// The entries.
        damage: LogDamage,
    },
    /// Entries that [`Outputs::fetches`] asked for.
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
        /// Last index of the [`Apply`] that is done.
        index: Index,
    },
    /// The connection to a node is gone; appends to its replicas are probed from now on.
    Unreachable {
        /// The node.
        node: NodeId,
    },
    /// Change the members of a group, all in one step: by joint consensus when more than one node is
    /// named (thesis 4.3). Answered by [`Reply::MembersChanged`] when the new members are in force, at
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
    /// over. Answered by [`Reply::LeadershipGiven`] once another is known to lead, or by
    /// [`Reply::NotTransferred`] within a lease and the longest election timeout.
    TransferLeader {
        /// Where the answer goes.
        token: Token,
        /// The group.
        group: GroupId,
        /// The successor. `None` for the best one: a voter that answers; of these one that has all that is
        /// committed; then by priority, then by how much it has of the rest.
        to: Option<NodeId>,
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
    /// When to answer.
    pub answer: AnswerOn,
    /// When the asker stops waiting: the outcome is then unknown to it.
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
    /// Answers to clients.
    pub replies: Vec<Reply>,
    /// Things worth telling an operator.
    pub events: Vec<Event>,
}

impl Outputs {
    /// Whether nothing has to be done.
    #[must_use]
    pub fn is_empty(&self) -> bool {
        self.append.is_none()
            && self.sends.is_empty()
            && self.applies.is_empty()
            && self.fetches.is_empty()
            && self.replies.is_empty()
            && self.events.is_empty()
    }

    /// Empties it and keeps the buffers.
    pub fn clear(&mut self) {
        self.append = None;
        self.sends.clear();
        self.applies.clear();
        self.fetches.clear();
        self.replies.clear();
        self.events.clear();
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
    /// Contiguous entries. The first may be at or below the stored last index: everything stored
    /// from there on is then void (Raft paper, 5.3).
    pub entries: Vec<LogEntry>,
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

/// Committed entries for a group's state machine, in order. Answered by [`Input::Applied`]; the
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
        /// Entries with records, in order; empty when `from` is at the end.
        entries: Vec<LogEntry>,
        /// Offset after the last committed record of this replica.
        end: Offset,
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
    /// The members of the group are those that were asked for.
    MembersChanged {
        /// Whom to answer.
        token: Token,
        /// The group.
        group: GroupId,
        /// Entry from which on they are.
        index: Index,
        /// The members now.
        #[cfg_attr(feature = "serde", serde(serialize_with = "shared"))]
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
        #[cfg_attr(feature = "serde", serde(serialize_with = "shared"))]
        members: Arc<ConfState>,
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
    /// Offset after the last committed record.
    pub end: Offset,
    /// The members in force on this replica; none while it loads, or was taken out.
    pub members: Arc<ConfState>,
    /// Entry that put them in force; 0 for those that the log began with.
    pub members_since: Index,
    /// Whether it was taken out after a broken invariant.
    pub is_quarantined: bool,
    /// Whether the disk of its shard hangs ([`Event::DiskHung`]).
    pub is_disk_hung: bool,
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

/// Reads from a leader's lease. Safe while no clock of the group's nodes runs faster or slower than true time
/// by more than the bound: see ARCHITECTURE.md for the argument.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
#[cfg_attr(feature = "serde", derive(serde::Serialize, serde::Deserialize))]
pub struct LeaseReads {
    /// Bound on the drift of a clock's rate, in parts per million: 1 to 500,000. Default 10,000 (1 %): an oscillator
    /// is off by 200 at most, and time synchronization bends the monotonic clock by 500 at most; the rest is
    /// margin, and costs 2 % of the lease. Hazard: a machine that is suspended, or moved while it runs,
    /// may lose more: then stale reads are possible.
    pub drift_ppm_max: u32,
}

impl Default for LeaseReads {
    fn default() -> LeaseReads {
        LeaseReads { drift_ppm_max: 10_000 }
    }
}

/// Settings of a shard's core. All replicas of a group should agree on the timing ones.
#[derive(Clone, PartialEq, Eq, Debug)]
#[cfg_attr(feature = "serde", derive(serde::Serialize, serde::Deserialize))]
pub struct ShardConfig {
    /// This node.
    pub node: NodeId,
    /// Seed of every random choice of the shard.
    pub seed: u64,
    /// Length of a tick. Default 50 ms. Shorter: faster elections, more wake-ups.
    pub tick: Duration,
    /// Ticks between a leader's heartbeats. Default 2.
    pub heartbeat_ticks: u32,
    /// Ticks without a leader for which a replica still refuses votes for others (check-quorum
    /// lease, thesis 4.2.3). Default 10.
    pub lease_ticks: u32,
    /// Shortest and longest ticks (inclusive) without a leader before a replica campaigns; each
    /// wait is drawn from the seed. Both above `lease_ticks`, so that the others' leases have run
    /// out when it asks. Default 12 to 18.
    pub election_ticks: (u32, u32),
    /// Bytes of records packed into one entry at most; one larger block still gets an entry of its
    /// own. Default 480 KiB, which with its tables stays below 512 KiB: redb writes values in
    /// power-of-two sizes. Higher: longer turns and frames.
    pub entry_bytes_max: usize,
    /// Records packed into one entry at most. Default 16,384.
    pub entry_records_max: usize,
    /// Bytes of uncommitted and waiting proposals of a group; more is refused as busy. Default
    /// 16 MiB.
    pub pending_bytes_max: usize,
    /// Bytes of entries in one append message. Default 1 MiB.
    pub message_bytes_max: usize,
    /// Append messages in flight to one follower. Default 128.
    pub inflight_messages_max: usize,
    /// Bytes of persisted entries that the shard keeps in memory, over all its groups. Default
    /// 64 MiB. Lower: slow followers and readers go to the disk sooner.
    pub window_bytes_max: usize,
    /// Bytes of entries handed to a state machine at a time. Default 1 MiB.
    pub apply_bytes_max: usize,
    /// Reads of a group that may wait at once; more are refused as busy. Default 65,536.
    pub reads_waiting_max: usize,
    /// Whether leaders answer reads of [`Consistency::Lease`] from a lease, and voters keep the promise that it
    /// rests on: no vote against a leader for `lease_ticks` after they heard it, nor for so long after a start.
    /// Default: none. It may be switched on node by node: a leader has a lease once a quorum has it on, for
    /// `lease_ticks` as long as its own. To switch it off, or to shorten tick or `lease_ticks`, let each node stay
    /// down for the old lease: what it promised before it stopped must run out.
    pub lease_reads: Option<LeaseReads>,
    /// Time that a flush may take before the disk counts as hung: the shard's leaders then hand over, or step
    /// down, and none campaigns. Default 1 s; at least a tick. Shorter: a slow disk costs leaderships; longer:
    /// a leader without a disk takes more into memory.
    pub flush_stuck_after: Duration,
    /// Whether and how leaders are spread over the nodes by themselves. Default: every 10 s, band 2.
    pub spread: Option<SpreadConfig>,
    /// How much leaders are wanted on a node, 0 where it is not named; the higher wins. It chooses among
    /// replicas that can lead, and never keeps one from being elected. All nodes should agree. Default: none.
    pub priorities: Vec<(NodeId, u32)>,
}

/// How a shard gives leaderships away that it has too many of.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
#[cfg_attr(feature = "serde", derive(serde::Serialize, serde::Deserialize))]
pub struct SpreadConfig {
    /// Shortest time between two moves; the longest is twice that. At least the longest election timeout.
    /// Shorter: sooner even after a restart, and more moves under changing faults.
    pub interval: Duration,
    /// Leaderships that a node may have beyond another's, in each shard, of the groups that both are voters
    /// of. At least 1: a difference of one cannot always be mended. Higher: fewer moves.
    pub band: u32,
}

impl ShardConfig {
    /// The defaults for a node.
    #[must_use]
    pub fn new(node: NodeId, seed: u64) -> ShardConfig {
        ShardConfig {
            node,
            seed,
            tick: Duration::from_millis(50),
            heartbeat_ticks: 2,
            lease_ticks: 10,
            election_ticks: (12, 18),
            entry_bytes_max: 480 << 10,
            entry_records_max: 16_384,
            pending_bytes_max: 16 << 20,
            message_bytes_max: 1 << 20,
            inflight_messages_max: 128,
            window_bytes_max: 64 << 20,
            apply_bytes_max: 1 << 20,
            reads_waiting_max: 65_536,
            lease_reads: None,
            flush_stuck_after: Duration::from_secs(1),
            spread: Some(SpreadConfig { interval: Duration::from_secs(10), band: 2 }),
            priorities: Vec::new(),
        }
    }

    /// How much leaders are wanted on a node.
    #[must_use]
    pub fn priority_of(&self, node: NodeId) -> u32 {
        self.priorities.iter().find(|(of, _)| *of == node).map_or(0, |(_, priority)| *priority)
    }
}
