//! Frames (the codec lands here).

use bytes::Bytes;
use iroh_raft_core::batch::RecordBlock;
use iroh_raft_core::{
    AnswerOn, GroupId, Index, MessageKind, Offset, PeerMessage, RequestError, ShardId, Term,
};

/// Priority of a stream: a lower number goes first.
#[derive(Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash, Debug)]
#[repr(u8)]
pub enum Lane {
    /// Votes, pre-votes, TimeoutNow.
    Election = 0,
    /// Heartbeats and ReadIndex.
    Heartbeat = 1,
    /// Entries and their answers.
    Append = 2,
    /// Snapshots.
    Snapshot = 3,
}

impl Lane {
    /// The lane of a kind of message.
    #[must_use]
    pub fn of(kind: MessageKind) -> Lane {
        match kind {
            MessageKind::RequestVote
            | MessageKind::RequestVoteResponse
            | MessageKind::RequestPreVote
            | MessageKind::RequestPreVoteResponse
            | MessageKind::TimeoutNow => Lane::Election,
            MessageKind::Heartbeat
            | MessageKind::HeartbeatResponse
            | MessageKind::ReadIndex
            | MessageKind::ReadIndexResponse => Lane::Heartbeat,
            MessageKind::Append | MessageKind::AppendResponse => Lane::Append,
            MessageKind::Snapshot => Lane::Snapshot,
        }
    }
}

/// A frame ready to be written: header and archive first, then payload slices.
#[derive(Clone, Debug, Default)]
pub struct OutFrame {
    /// To be written in this order.
    pub chunks: Vec<Bytes>,
}

impl OutFrame {
    /// Bytes of the whole frame.
    #[must_use]
    pub fn bytes(&self) -> usize {
        self.chunks.iter().map(Bytes::len).sum()
    }
}

/// A received frame of peer messages, validated.
#[derive(Clone, Debug)]
pub struct PeerFrame {}

impl PeerFrame {
    /// Its messages; payloads are slices of the frame.
    pub fn messages(&self) -> impl Iterator<Item = PeerMessage> + '_ {
        std::iter::empty()
    }
}

/// Packs the messages of one turn for one shard of one peer, one lane and one persistence gate.
#[derive(Debug, Default)]
pub struct PeerFrameBuilder {}

impl PeerFrameBuilder {
    /// Adds a message.
    pub fn push(&mut self, _message: PeerMessage) {}
    /// Whether there is none.
    #[must_use]
    pub fn is_empty(&self) -> bool {
        true
    }
    /// Bytes so far, for splitting frames at the limit.
    #[must_use]
    pub fn bytes(&self) -> usize {
        0
    }
    /// The frame; the builder is empty again and keeps its buffers.
    pub fn finish(&mut self, _lane: Lane, _from: ShardId, _to: ShardId) -> OutFrame {
        OutFrame::default()
    }
}

/// A client's request.
#[derive(Clone, Debug)]
pub struct ClientRequest {
    /// The client's number of it, unique among its open requests on the connection.
    pub request: u64,
    /// The group.
    pub group: GroupId,
    /// How long the client waits, in milliseconds.
    pub deadline_ms: u32,
    /// What it wants.
    pub body: ClientBody,
}

/// What a client wants.
#[derive(Clone, Debug)]
pub enum ClientBody {
    /// Append records, or propose commands and have the state machine's responses.
    Append {
        /// The records.
        block: RecordBlock,
        /// Commit: answered by `Appended`; Apply: by `Responses`.
        answer: AnswerOn,
    },
    /// Ask the state machine.
    Query {
        /// Whether the answer must be linearizable; otherwise local and possibly stale.
        is_linearizable: bool,
        /// The question, the state machine's business.
        query: Bytes,
    },
    /// Read committed records of this very replica.
    ReadRecords {
        /// First record.
        from: Offset,
        /// Bytes of entries at most.
        bytes_max: u32,
    },
    /// Who leads, how far is it.
    Status,
}

/// A received frame of client requests, validated.
#[derive(Clone, Debug)]
pub struct ClientFrame {}

impl ClientFrame {
    /// Its requests; payloads are slices of the frame.
    pub fn requests(&self) -> impl Iterator<Item = ClientRequest> + '_ {
        std::iter::empty()
    }
}

/// An answer to a client.
#[derive(Clone, Debug)]
pub struct ClientReply {
    /// The request it answers.
    pub request: u64,
    /// The group.
    pub group: GroupId,
    /// The answer.
    pub body: ReplyBody,
}

/// What is answered.
#[derive(Clone, Debug)]
pub enum ReplyBody {
    /// Records are durable on a quorum.
    Appended {
        /// Offset of the first.
        first: Offset,
        /// How many.
        count: u32,
        /// Their entry's index.
        index: Index,
        /// Their entry's term.
        term: Term,
    },
    /// Commands are applied; one response each.
    Responses {
        /// Offset of the first.
        first: Offset,
        /// Their entry's index.
        index: Index,
        /// Their entry's term.
        term: Term,
        /// The responses, as a block (count and lengths).
        responses: RecordBlock,
    },
    /// The state machine's answer.
    Answer {
        /// Applied index it was given at.
        index: Index,
        /// The answer.
        answer: Bytes,
    },
    /// Records of the log.
    Records {
        /// Record asked for; the first batch may begin before it.
        from: Offset,
        /// Offset after this replica's last committed record.
        end: Offset,
        /// Whole batches ([`iroh_raft_core::batch`]), in order.
        batches: Vec<Bytes>,
    },
    /// How the replica stands.
    Status(iroh_raft_core::GroupStatus),
    /// It failed.
    Failed(RequestError),
}

/// Packs the answers of one turn for one client connection.
#[derive(Debug, Default)]
pub struct ReplyFrameBuilder {}

impl ReplyFrameBuilder {
    /// Adds an answer.
    pub fn push(&mut self, _reply: ClientReply) {}
    /// Whether there is none.
    #[must_use]
    pub fn is_empty(&self) -> bool {
        true
    }
    /// Bytes so far.
    #[must_use]
    pub fn bytes(&self) -> usize {
        0
    }
    /// The frame; the builder is empty again and keeps its buffers.
    pub fn finish(&mut self, _from: ShardId) -> OutFrame {
        OutFrame::default()
    }
}
