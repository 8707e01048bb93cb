//! Frames of answers to a client.

use std::sync::Arc;
use std::time::Duration;

use bytes::Bytes;
use iroh_raft_core::batch::RecordBlock;
use iroh_raft_core::{
    ConfState, DigestState, Freshness, GroupId, GroupStatus, Index, NodeId, Offset, Recovered, RequestError,
    Role, RunOutcome, Sequence, ShardId, Term, WallTime, encode_members,
};
use rkyv::{Archive, Serialize};

use super::failure::Failure;
use super::payload::{PayloadBuilder, PayloadCursor};
use super::stages::Stages;
use super::{
    FrameError, FrameHeader, FrameKind, FrameLimits, HEADER_BYTES, OutFrame, archive, digest, members,
};

/// An answer to a client.
#[derive(Clone, PartialEq, Eq, Debug)]
pub struct ClientReply {
    /// The request it answers.
    pub request: u64,
    /// The group.
    pub group: GroupId,
    /// The answer.
    pub body: ReplyBody,
}

/// What is answered.
#[derive(Clone, PartialEq, Eq, Debug)]
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
    /// Records are durable on a quorum, and where the time went.
    TimedAppended {
        /// Offset of the first.
        first: Offset,
        /// How many.
        count: u32,
        /// Their entry's index.
        index: Index,
        /// Their entry's term.
        term: Term,
        /// The time.
        stages: Stages,
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
    Answer(Answer),
    /// Records of the log.
    Records {
        /// Record asked for; the first batch may begin before it.
        from: Offset,
        /// Offset after this replica's last committed record.
        end: Offset,
        /// Whole batches ([`iroh_raft_core::batch`]), in order.
        batches: Vec<Bytes>,
        /// Whether its request is answered with this: not, while a tail goes on.
        is_last: bool,
    },
    /// Where the records of a time begin.
    Found {
        /// First record of that time or later; `end` when there is none.
        offset: Offset,
        /// Offset after the replica's last committed record as the search began.
        end: Offset,
    },
    /// A command to the group is in force.
    CommandDone {
        /// Where the cursor stands now, `None` when it is gone; for a trim the first record kept.
        offset: Option<Offset>,
        /// Its entry.
        index: Index,
    },
    /// Where a consumer's cursor stands; `None` when it has none.
    Cursor(Option<Offset>),
    /// What became of a record of a session.
    Outcome(RunOutcome),
    /// A grant to a tail, or its end, was taken.
    Granted,
    /// The members of the group are those that were asked for.
    MembersChanged {
        /// Entry from which on they are.
        index: Index,
        /// The members now.
        members: Arc<ConfState>,
    },
    /// The group goes on, alone.
    Recovered(Recovered),
    /// It is done.
    Done,
    /// What the replica came to at an index.
    StateDigest {
        /// The index.
        index: Index,
        /// The digest, or why there is none.
        state: DigestState,
    },
    /// How the replica stands. Its group is that of the reply.
    Status(GroupStatus),
    /// Groups with a replica on this shard, in order of their numbers.
    Groups {
        /// The groups.
        groups: Vec<GroupId>,
        /// Whether there are more after these.
        is_more: bool,
        /// Shards of the node.
        shard_count: u16,
    },
    /// The node's time of day, as its shard took it for the turn in which it answers.
    Clock(WallTime),
    /// Leadership was given away.
    HandedOver(HandedOver),
    /// It failed. The text of [`RequestError::Invalid`] is cut at 120 bytes.
    Failed(RequestError),
}

/// Who leads a group after leadership was given away.
#[derive(Clone, Copy, PartialEq, Eq, Hash, Debug)]
pub struct HandedOver {
    /// The leader now; `None` when the old one stepped down with nobody to take over.
    pub leader: Option<NodeId>,
    /// Its term, or the last one of the old leader.
    pub term: Term,
}

impl ReplyBody {
    /// Whether the request is answered with this.
    #[must_use]
    pub fn is_last(&self) -> bool {
        !matches!(self, ReplyBody::Records { is_last: false, .. })
    }
}

/// A state machine's answer, and of when it is.
#[derive(Clone, PartialEq, Eq, Debug)]
pub struct Answer {
    /// How far the replica was that gave it: the answer is of the state after `applied`, exactly. On the wire
    /// its time is cut to microseconds.
    pub freshness: Freshness,
    /// The answer, the state machine's business.
    pub bytes: Bytes,
}

#[derive(Archive, Serialize, Default, Debug)]
struct Descriptors {
    replies: Vec<ReplyDescriptor>,
    statuses: Vec<StatusDescriptor>,
    /// Bytes of each batch of each Records reply, in order.
    batches: Vec<u32>,
}

/// Fields that a kind does not use are zero.
#[derive(Archive, Serialize, Clone, Copy, Debug)]
struct ReplyDescriptor {
    request: u64,
    group: u64,
    /// Appended, TimedAppended, Responses: first offset. Answer: applied. MembersChanged: index. Records: from. Found: offset.
    /// StateDigest: index. CommandDone, Cursor: offset, or [`NEVER`]. Status: first record kept. Outcome: offset, or the sequence expected.
    /// Recovered: index. HandedOver: the leader, 0 for none. Clock: ms since 1970.
    /// Failed: by its code.
    first: u64,
    /// Appended, TimedAppended, Responses, CommandDone, Outcome: index. Answer: commit. Records, Found: end. Failed: by its code.
    /// Recovered, HandedOver: term. Status: term of the last entry.
    second: u64,
    /// Appended, TimedAppended, Responses, Outcome: term. Answer: microseconds since a leader was heard, or [`NEVER`]. Recovered: end.
    third: u64,
    /// Appended, TimedAppended, Responses: records. Records: batches. Groups: shards of the node. Failed: by its code.
    number: u32,
    /// Responses, Answer, Failed, Status, MembersChanged, StateDigest, TimedAppended, Groups: bytes of payload; of Status and
    /// MembersChanged, members.
    bytes: u32,
    kind: u8,
    /// Failed: why.
    code: u8,
    /// Failed: more about why. Records, Groups: 1 when there are more to come. Outcome, StateDigest: which.
    detail: u8,
    reserved: [u8; 5],
}

/// Present for Status replies, in their order.
#[derive(Archive, Serialize, Clone, Copy, Debug)]
struct StatusDescriptor {
    term: u64,
    leader: u64,
    commit: u64,
    applied: u64,
    last: u64,
    end: u64,
    members_since: u64,
    role: u8,
    quarantined: u8,
    disk_hung: u8,
    quiet: u8,
    under_repair: u8,
    reserved: [u8; 3],
}

const APPENDED: u8 = 1;
const RESPONSES: u8 = 2;
const ANSWER: u8 = 3;
const RECORDS: u8 = 4;
const STATUS: u8 = 5;
const FAILED: u8 = 6;
const MEMBERS_CHANGED: u8 = 7;
const FOUND: u8 = 8;
const COMMAND_DONE: u8 = 9;
const CURSOR: u8 = 10;
const GRANTED: u8 = 11;
const DONE: u8 = 12;
const OUTCOME: u8 = 13;
const STATE_DIGEST: u8 = 15;
const RECOVERED: u8 = 14;
const TIMED_APPENDED: u8 = 16;
const GROUPS: u8 = 17;
const HANDED_OVER: u8 = 18;
const CLOCK: u8 = 19;

const COMMITTED: u8 = 0;
const PENDING: u8 = 1;
const NOT_THERE: u8 = 2;
const FORGOTTEN: u8 = 3;

/// No leader was heard since the replica started; no cursor.
const NEVER: u64 = u64::MAX;

const ROOT_BYTES: usize = size_of::<ArchivedDescriptors>();
const REPLY_BYTES: usize = size_of::<ArchivedReplyDescriptor>();
const STATUS_BYTES: usize = size_of::<ArchivedStatusDescriptor>();
const BATCH_BYTES: usize = size_of::<rkyv::Archived<u32>>();

const _: () = assert!(align_of::<ArchivedDescriptors>() == 1 && ROOT_BYTES == 24);
const _: () = assert!(align_of::<ArchivedReplyDescriptor>() == 1 && REPLY_BYTES == 56);
const _: () = assert!(align_of::<ArchivedStatusDescriptor>() == 1 && STATUS_BYTES == 64);
const _: () = assert!(align_of::<rkyv::Archived<u32>>() == 1 && BATCH_BYTES == 4);

/// The sizes above as one number, for the format's fingerprint.
pub(super) const FORMAT_BYTES: u64 = (ROOT_BYTES << 16 | REPLY_BYTES << 8 | STATUS_BYTES) as u64;

fn archive_bytes(replies: usize, statuses: usize, batches: usize) -> usize {
    ROOT_BYTES + replies * REPLY_BYTES + statuses * STATUS_BYTES + batches * BATCH_BYTES
}

/// A received frame of answers, validated.
///
/// Answers are slices of the one buffer the frame came in: each keeps all
/// [`bytes`](ReplyFrame::bytes) of it alive.
#[derive(Clone, Debug)]
pub struct ReplyFrame {
    source_shard: ShardId,
    replies: usize,
    archive: Bytes,
    payload: Bytes,
}

impl ReplyFrame {
    /// Validates a frame whose header was parsed. `body` is exactly what follows the header.
    ///
    /// # Errors
    /// [`FrameError`], also for a block of responses whose lengths do not add up.
    pub fn decode(header: &FrameHeader, body: Bytes, limits: &FrameLimits) -> Result<ReplyFrame, FrameError> {
        if header.kind != FrameKind::Reply {
            return Err(FrameError::UnexpectedKind { found: header.kind, expected: "reply" });
        }
        let (archive, payload) = archive::split_body(header, body, limits)?;
        let root = archive::access::<ArchivedDescriptors>(&archive)?;
        let expected = archive_bytes(root.replies.len(), root.statuses.len(), root.batches.len());
        archive::check_archive_bytes(&archive, expected)?;
        let mut walk = Walk::new(root, payload.clone());
        while walk.next_reply()?.is_some() {}
        walk.finish()?;
        Ok(ReplyFrame { source_shard: header.source_shard, replies: root.replies.len(), archive, payload })
    }

    /// Shard that answers.
    #[must_use]
    pub fn source_shard(&self) -> ShardId {
        self.source_shard
    }

    /// Number of answers.
    #[must_use]
    pub fn len(&self) -> usize {
        self.replies
    }

    /// Whether there is no answer.
    #[must_use]
    pub fn is_empty(&self) -> bool {
        self.replies == 0
    }

    /// Bytes of memory that the frame and any slice of it hold.
    #[must_use]
    pub fn bytes(&self) -> usize {
        self.archive.len() + self.payload.len()
    }

    /// Its answers, in the order they were pushed; payloads are slices of the frame.
    pub fn replies(&self) -> impl Iterator<Item = ClientReply> + '_ {
        let root = archive::reaccess::<ArchivedDescriptors>(&self.archive);
        let mut walk = Walk::new(root, self.payload.clone());
        std::iter::from_fn(move || archive::checked(walk.next_reply()))
    }
}

/// Goes through tables and payload side by side.
struct Walk<'a> {
    replies: std::slice::Iter<'a, ArchivedReplyDescriptor>,
    statuses: std::slice::Iter<'a, ArchivedStatusDescriptor>,
    batches: &'a [rkyv::Archived<u32>],
    payload: PayloadCursor,
}

impl<'a> Walk<'a> {
    fn new(root: &'a ArchivedDescriptors, payload: Bytes) -> Walk<'a> {
        Walk {
            replies: root.replies.iter(),
            statuses: root.statuses.iter(),
            batches: &root.batches,
            payload: PayloadCursor::new(payload),
        }
    }

    fn next_reply(&mut self) -> Result<Option<ClientReply>, FrameError> {
        let Some(descriptor) = self.replies.next() else { return Ok(None) };
        let group = GroupId(descriptor.group.to_native());
        let (body, unused) = self.body(descriptor, group)?;
        if unused || descriptor.reserved != [0; 5] {
            return Err(FrameError::Reserved { what: "a field that its kind of answer does not use" });
        }
        Ok(Some(ClientReply { request: descriptor.request.to_native(), group, body }))
    }

    /// The answer, and whether a field is set that its kind does not use.
    fn body(
        &mut self,
        descriptor: &ArchivedReplyDescriptor,
        group: GroupId,
    ) -> Result<(ReplyBody, bool), FrameError> {
        let (first, second, third) =
            (descriptor.first.to_native(), descriptor.second.to_native(), descriptor.third.to_native());
        let (number, bytes) = (descriptor.number.to_native(), descriptor.bytes.to_native());
        let (code, detail) = (descriptor.code, descriptor.detail);
        let no_failure = code == 0 && detail == 0;
        let (body, is_clean) = match descriptor.kind {
            APPENDED => {
                let (first, count, index, term) = (Offset(first), number, Index(second), Term(third));
                (ReplyBody::Appended { first, count, index, term }, bytes == 0 && no_failure)
            }
            TIMED_APPENDED => {
                let stages = Stages::decode(&self.payload.take(bytes)?)?;
                let (first, count, index, term) = (Offset(first), number, Index(second), Term(third));
                (ReplyBody::TimedAppended { first, count, index, term, stages }, no_failure)
            }
            RESPONSES => {
                let responses = RecordBlock::new(number, self.payload.take(bytes)?)?;
                let (first, index, term) = (Offset(first), Index(second), Term(third));
                (ReplyBody::Responses { first, index, term, responses }, no_failure)
            }
            ANSWER => {
                let bytes = self.payload.take(bytes)?;
                let heard = (third != NEVER).then(|| Duration::from_micros(third));
                let freshness = Freshness { applied: Index(first), commit: Index(second), heard };
                (ReplyBody::Answer(Answer { freshness, bytes }), number == 0 && no_failure)
            }
            RECORDS => {
                let batches = self.batches(number as usize)?;
                let (from, end) = (Offset(first), Offset(second));
                let body = ReplyBody::Records { from, end, batches, is_last: detail == 0 };
                (body, third == 0 && bytes == 0 && code == 0 && detail <= 1)
            }
            FOUND => {
                let body = ReplyBody::Found { offset: Offset(first), end: Offset(second) };
                (body, third == 0 && number == 0 && bytes == 0 && no_failure)
            }
            COMMAND_DONE => {
                let body = ReplyBody::CommandDone { offset: offset_of(first), index: Index(second) };
                (body, third == 0 && number == 0 && bytes == 0 && no_failure)
            }
            CURSOR => {
                let is_clean = [second, third] == [0; 2] && number == 0 && bytes == 0 && no_failure;
                (ReplyBody::Cursor(offset_of(first)), is_clean)
            }
            CLOCK => {
                let is_clean = [second, third] == [0; 2] && number == 0 && bytes == 0 && no_failure;
                (ReplyBody::Clock(WallTime(first)), is_clean)
            }
            GRANTED => {
                let is_clean = [first, second, third] == [0; 3] && number == 0 && bytes == 0 && no_failure;
                (ReplyBody::Granted, is_clean)
            }
            STATUS => {
                let status = self.statuses.next().ok_or(FrameError::Count { what: "statuses" })?;
                let members = Arc::new(members::decode(&self.payload.take(bytes)?)?);
                let is_clean = third == 0 && number == 0 && no_failure;
                let status = status_of(status, group, (Offset(first), Term(second)), members)?;
                (ReplyBody::Status(status), is_clean)
            }
            FAILED => {
                let text = self.payload.take(bytes)?;
                let text = std::str::from_utf8(&text).map_err(|_| FrameError::Text)?;
                let failure = Failure { code, detail, first, second, number, text };
                (ReplyBody::Failed(failure.error()?), third == 0)
            }
            MEMBERS_CHANGED => {
                let members = Arc::new(members::decode(&self.payload.take(bytes)?)?);
                let is_clean = [second, third] == [0; 2] && number == 0 && no_failure;
                (ReplyBody::MembersChanged { index: Index(first), members }, is_clean)
            }
            DONE => {
                let is_clean = [first, second, third] == [0; 3] && number == 0 && bytes == 0 && no_failure;
                (ReplyBody::Done, is_clean)
            }
            RECOVERED => {
                let (index, term, end) = (Index(first), Term(second), Offset(third));
                let body = ReplyBody::Recovered(Recovered { index, term, end });
                (body, number == 0 && bytes == 0 && no_failure)
            }
            GROUPS => {
                let payload = self.payload.take(bytes)?;
                let (groups, rest) = payload.as_chunks();
                let groups: Vec<_> = groups.iter().map(|group| GroupId(u64::from_le_bytes(*group))).collect();
                let is_ordered = groups.is_sorted_by(|one, next| one < next);
                // What does not fit is refused as a field that is not used.
                let shard_count = u16::try_from(number).unwrap_or(0);
                let is_clean = [first, second, third] == [0; 3] && code == 0 && detail <= 1;
                let body = ReplyBody::Groups { groups, is_more: detail == 1, shard_count };
                (body, is_clean && rest.is_empty() && is_ordered && shard_count > 0)
            }
            HANDED_OVER => {
                let leader = Some(NodeId(first)).filter(|node| node.0 != 0);
                let is_clean = third == 0 && number == 0 && bytes == 0 && no_failure;
                (ReplyBody::HandedOver(HandedOver { leader, term: Term(second) }), is_clean)
            }
            OUTCOME => {
                let (outcome, unused) = match detail {
                    COMMITTED => {
                        let (offset, index, term) = (Offset(first), Index(second), Term(third));
                        (RunOutcome::Committed { offset, index, term }, [0; 3])
                    }
                    PENDING => (RunOutcome::Pending, [first, second, third]),
                    NOT_THERE => (RunOutcome::NotThere { expected: Sequence(first) }, [second, third, 0]),
                    FORGOTTEN => (RunOutcome::Forgotten, [first, second, third]),
                    number => return Err(FrameError::UnknownNumber { what: "outcome", number }),
                };
                let is_clean = unused == [0; 3] && number == 0 && bytes == 0 && code == 0;
                (ReplyBody::Outcome(outcome), is_clean)
            }
            STATE_DIGEST => {
                let state = digest::decode_state(detail, &self.payload.take(bytes)?)?;
                let is_clean = [second, third] == [0; 2] && number == 0 && code == 0;
                (ReplyBody::StateDigest { index: Index(first), state }, is_clean)
            }
            number => return Err(FrameError::UnknownNumber { what: "kind of answer", number }),
        };
        Ok((body, !is_clean))
    }

    fn batches(&mut self, count: usize) -> Result<Vec<Bytes>, FrameError> {
        let split = self.batches.split_at_checked(count);
        let (lengths, rest) = split.ok_or(FrameError::Count { what: "batches" })?;
        self.batches = rest;
        lengths.iter().map(|bytes| self.payload.take(bytes.to_native())).collect()
    }

    fn finish(self) -> Result<(), FrameError> {
        if self.statuses.len() != 0 {
            return Err(FrameError::Count { what: "statuses" });
        }
        if !self.batches.is_empty() {
            return Err(FrameError::Count { what: "batches" });
        }
        self.payload.finish()
    }
}

fn status_of(
    descriptor: &ArchivedStatusDescriptor,
    group: GroupId,
    (first, last_term): (Offset, Term),
    members: Arc<ConfState>,
) -> Result<GroupStatus, FrameError> {
    if descriptor.reserved != [0; 3] {
        return Err(FrameError::Reserved { what: "a status' reserved bytes" });
    }
    Ok(GroupStatus {
        group,
        role: match descriptor.role {
            0 => Role::Follower,
            1 => Role::PreCandidate,
            2 => Role::Candidate,
            3 => Role::Leader,
            number => return Err(FrameError::UnknownNumber { what: "role", number }),
        },
        term: Term(descriptor.term.to_native()),
        leader: Some(NodeId(descriptor.leader.to_native())).filter(|node| node.0 != 0),
        commit: Index(descriptor.commit.to_native()),
        applied: Index(descriptor.applied.to_native()),
        last: Index(descriptor.last.to_native()),
        last_term,
        first,
        end: Offset(descriptor.end.to_native()),
        members,
        members_since: Index(descriptor.members_since.to_native()),
        is_quarantined: flag(descriptor.quarantined)?,
        is_disk_hung: flag(descriptor.disk_hung)?,
        is_quiet: flag(descriptor.quiet)?,
        is_under_repair: flag(descriptor.under_repair)?,
    })
}

fn offset_of(number: u64) -> Option<Offset> {
    (number != NEVER).then_some(Offset(number))
}

fn flag(number: u8) -> Result<bool, FrameError> {
    match number {
        0 => Ok(false),
        1 => Ok(true),
        number => Err(FrameError::UnknownNumber { what: "flag", number }),
    }
}

/// Packs the answers of one turn for one client connection.
///
/// Pushed bytes of a kilobyte and more are referenced, smaller ones copied. The buffers stay from
/// frame to frame: a frame costs the allocations of its [`OutFrame`], an answer none.
#[derive(Debug, Default)]
pub struct ReplyFrameBuilder {
    descriptors: Descriptors,
    payload: PayloadBuilder,
    /// Answers that do not end their requests.
    unfinished: usize,
}

impl ReplyFrameBuilder {
    /// Adds an answer.
    ///
    /// # Panics
    /// If a piece of it reaches 4 GiB, or a status is of another group than its reply.
    pub fn push(&mut self, reply: ClientReply) {
        let mut descriptor = ReplyDescriptor {
            request: reply.request,
            group: reply.group.0,
            first: 0,
            second: 0,
            third: 0,
            number: 0,
            bytes: 0,
            kind: STATUS,
            code: 0,
            detail: 0,
            reserved: [0; 5],
        };
        match reply.body {
            ReplyBody::Appended { first, count, index, term } => {
                descriptor.kind = APPENDED;
                (descriptor.first, descriptor.second, descriptor.third) = (first.0, index.0, term.0);
                descriptor.number = count;
            }
            ReplyBody::TimedAppended { first, count, index, term, stages } => {
                descriptor.kind = TIMED_APPENDED;
                (descriptor.first, descriptor.second, descriptor.third) = (first.0, index.0, term.0);
                descriptor.number = count;
                descriptor.bytes = self.payload.push_slice(&stages.encode());
            }
            ReplyBody::Responses { first, index, term, responses } => {
                descriptor.kind = RESPONSES;
                (descriptor.first, descriptor.second, descriptor.third) = (first.0, index.0, term.0);
                descriptor.number = responses.count();
                descriptor.bytes = self.payload.push(responses.as_bytes().clone());
            }
            ReplyBody::Answer(Answer { freshness: Freshness { applied, commit, heard }, bytes }) => {
                descriptor.kind = ANSWER;
                (descriptor.first, descriptor.second) = (applied.0, commit.0);
                let micros = |heard: Duration| u64::try_from(heard.as_micros()).unwrap_or(NEVER - 1);
                descriptor.third = heard.map_or(NEVER, micros);
                descriptor.bytes = self.payload.push(bytes);
            }
            ReplyBody::Records { from, end, batches, is_last } => {
                descriptor.kind = RECORDS;
                descriptor.detail = u8::from(!is_last);
                self.unfinished += usize::from(!is_last);
                (descriptor.first, descriptor.second) = (from.0, end.0);
                descriptor.number = u32::try_from(batches.len()).expect("fewer than 2^32 batches");
                for batch in batches {
                    self.descriptors.batches.push(self.payload.push(batch));
                }
            }
            ReplyBody::Found { offset, end } => {
                descriptor.kind = FOUND;
                (descriptor.first, descriptor.second) = (offset.0, end.0);
            }
            ReplyBody::CommandDone { offset, index } => {
                descriptor.kind = COMMAND_DONE;
                (descriptor.first, descriptor.second) = (offset.map_or(NEVER, |offset| offset.0), index.0);
            }
            ReplyBody::Cursor(offset) => {
                descriptor.kind = CURSOR;
                descriptor.first = offset.map_or(NEVER, |offset| offset.0);
            }
            ReplyBody::Outcome(outcome) => {
                descriptor.kind = OUTCOME;
                match outcome {
                    RunOutcome::Committed { offset, index, term } => {
                        descriptor.detail = COMMITTED;
                        (descriptor.first, descriptor.second, descriptor.third) = (offset.0, index.0, term.0);
                    }
                    RunOutcome::Pending => descriptor.detail = PENDING,
                    RunOutcome::NotThere { expected } => {
                        (descriptor.detail, descriptor.first) = (NOT_THERE, expected.0);
                    }
                    RunOutcome::Forgotten => descriptor.detail = FORGOTTEN,
                }
            }
            ReplyBody::Granted => descriptor.kind = GRANTED,
            ReplyBody::Status(status) => {
                (descriptor.first, descriptor.second) = (status.first.0, status.last_term.0);
                assert_eq!(status.group, reply.group, "a status is of the group that was asked for");
                self.descriptors.statuses.push(StatusDescriptor::of(&status));
                descriptor.bytes = self.payload.push_slice(&encode_members(&status.members));
            }
            ReplyBody::MembersChanged { index, members } => {
                descriptor.kind = MEMBERS_CHANGED;
                descriptor.first = index.0;
                descriptor.bytes = self.payload.push_slice(&encode_members(&members));
            }
            ReplyBody::StateDigest { index, state } => {
                let (which, payload) = digest::encode_state(state);
                (descriptor.kind, descriptor.detail, descriptor.first) = (STATE_DIGEST, which, index.0);
                descriptor.bytes = self.payload.push_slice(&payload);
            }
            ReplyBody::Recovered(Recovered { index, term, end }) => {
                descriptor.kind = RECOVERED;
                (descriptor.first, descriptor.second, descriptor.third) = (index.0, term.0, end.0);
            }
            ReplyBody::Groups { groups, is_more, shard_count } => {
                (descriptor.kind, descriptor.detail) = (GROUPS, u8::from(is_more));
                descriptor.number = u32::from(shard_count);
                let groups: Vec<u8> = groups.iter().flat_map(|group| group.0.to_le_bytes()).collect();
                descriptor.bytes = self.payload.push_slice(&groups);
            }
            ReplyBody::Clock(time) => (descriptor.kind, descriptor.first) = (CLOCK, time.0),
            ReplyBody::HandedOver(HandedOver { leader, term }) => {
                descriptor.kind = HANDED_OVER;
                (descriptor.first, descriptor.second) = (leader.map_or(0, |node| node.0), term.0);
            }
            ReplyBody::Done => descriptor.kind = DONE,
            ReplyBody::Failed(error) => {
                let failure = Failure::of(&error);
                descriptor.kind = FAILED;
                (descriptor.code, descriptor.detail) = (failure.code, failure.detail);
                (descriptor.first, descriptor.second) = (failure.first, failure.second);
                descriptor.number = failure.number;
                descriptor.bytes = self.payload.push_slice(failure.text.as_bytes());
            }
        }
        self.descriptors.replies.push(descriptor);
    }

    /// Whether there is no answer.
    #[must_use]
    pub fn is_empty(&self) -> bool {
        self.descriptors.replies.is_empty()
    }

    /// Number of answers so far.
    #[must_use]
    pub fn len(&self) -> usize {
        self.descriptors.replies.len()
    }

    /// Bytes of the frame so far, for splitting frames at the limit.
    #[must_use]
    pub fn bytes(&self) -> usize {
        HEADER_BYTES + self.archive_bytes() + self.payload.bytes()
    }

    fn archive_bytes(&self) -> usize {
        let table = &self.descriptors;
        archive_bytes(table.replies.len(), table.statuses.len(), table.batches.len())
    }

    /// The frame; the builder is empty again and keeps its buffers.
    ///
    /// # Panics
    /// If archive or payload reached 4 GiB.
    pub fn finish(&mut self, from: ShardId) -> OutFrame {
        let archive_bytes = self.archive_bytes();
        let frame = self.payload.finish(
            FrameKind::Reply,
            from,
            ShardId(0),
            self.descriptors.replies.len() - std::mem::take(&mut self.unfinished),
            archive_bytes,
            &self.descriptors,
        );
        let table = &mut self.descriptors;
        table.replies.clear();
        table.statuses.clear();
        table.batches.clear();
        frame
    }
}

impl StatusDescriptor {
    fn of(status: &GroupStatus) -> StatusDescriptor {
        StatusDescriptor {
            term: status.term.0,
            leader: status.leader.map_or(0, |node| node.0),
            commit: status.commit.0,
            applied: status.applied.0,
            last: status.last.0,
            end: status.end.0,
            members_since: status.members_since.0,
            role: match status.role {
                Role::Follower => 0,
                Role::PreCandidate => 1,
                Role::Candidate => 2,
                Role::Leader => 3,
            },
            quarantined: status.is_quarantined.into(),
            disk_hung: status.is_disk_hung.into(),
            quiet: status.is_quiet.into(),
            under_repair: status.is_under_repair.into(),
            reserved: [0; 3],
        }
    }
}
