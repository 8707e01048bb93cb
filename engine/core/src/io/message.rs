//! Messages between replicas, as the seam has them.

use bytes::Bytes;

use super::LogEntry;
use crate::ids::{GroupId, Index, NodeId, Term};

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
    /// The leader offers a snapshot (`MsgSnapshot`, without its body): `index` and `log_term` are those of the last
    /// entry that it covers; one entry carries the rest.
    Snapshot = 12,
    /// A chunk of the body of an offered snapshot, as the data of one entry.
    SnapshotChunk = 13,
    /// How much of an offered snapshot the receiver has durable; with `reject` it cannot take any now.
    SnapshotAck = 14,
    /// A replica is to begin on the receiver's node: the sender counts it among the members and has not
    /// heard it. `index`: the entry that put these members in force, 0 for those of the start. Its one entry holds
    /// the members as of the beginning of the sender's log ([`crate::encode_members`]).
    Invite = 15,
    /// The receiver is no member, as of the committed entry at `index`, of term `log_term`. Answer to a
    /// request for votes, or, with `reject`, of a leader to `MayLeave`. To a candidate that has that entry: the sender
    /// left after it.
    Gone = 16,
    /// The sender is no member, as far as it knows, and asks whether that is so.
    MayLeave = 17,
    /// The sender's shard lives: not of a group, sent to group 0.
    Beat = 18,
    /// A replica under repair asks its leader for a bound: its log is sound up to `index`, of term `log_term`. `commit`: the
    /// question's number, which the answer has, too.
    RepairQuestion = 19,
    /// Answer to `RepairQuestion`: the leader's last entry was at `index`, of term `log_term`. Whoever has all of that has
    /// everything again that it may ever have acknowledged.
    RepairBound = 20,
}

impl MessageKind {
    /// All kinds, in order of their numbers.
    pub const ALL: [MessageKind; 20] = [
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
        MessageKind::SnapshotChunk,
        MessageKind::SnapshotAck,
        MessageKind::Invite,
        MessageKind::Gone,
        MessageKind::MayLeave,
        MessageKind::Beat,
        MessageKind::RepairQuestion,
        MessageKind::RepairBound,
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
    /// Log position; its meaning depends on the kind. Of a heartbeat: the last index if the leader asks to go quiet,
    /// otherwise 0; of its answer the same if the follower agrees. Of a beat: a number drawn at the start.
    pub index: Index,
    /// Sender's commit index. Of a beat: how often the sender took back its word since its start.
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
    /// Entries, contiguous, following `index` (for `ReadIndex` and snapshots: one, with their own data).
    pub entries: Vec<LogEntry>,
}

impl PeerMessage {
    /// A message that says nothing but what it is: numbers 0, no context, no entries.
    #[must_use]
    pub fn bare(kind: MessageKind, group: GroupId, (from, to): (NodeId, NodeId), term: Term) -> PeerMessage {
        PeerMessage {
            kind,
            group,
            from,
            to,
            term,
            log_term: Term(0),
            index: Index(0),
            commit: Index(0),
            commit_term: Term(0),
            reject: false,
            reject_hint: Index(0),
            request_snapshot: Index(0),
            priority: 0,
            context: Bytes::new(),
            entries: Vec::new(),
        }
    }
}

/// Longest context of a message, in bytes.
pub const CONTEXT_BYTES_MAX: usize = 64;
