//! Frames of a client's requests.

use bytes::Bytes;
use iroh_raft_core::batch::RecordBlock;
use iroh_raft_core::group_command::{decode_command, encode_command};
use iroh_raft_core::{
    AnswerOn, Consistency, CursorName, GroupCommand, GroupId, Index, MemberChange, NodeId, Offset, Sequence,
    SessionId, ShardId, StateDigest, Term, WallTime,
};
use rkyv::{Archive, Serialize};

use super::payload::{PayloadBuilder, PayloadCursor};
use super::{
    FrameError, FrameHeader, FrameKind, FrameLimits, HEADER_BYTES, OutFrame, archive, digest, members,
};

/// A client's request.
#[derive(Clone, PartialEq, Eq, Debug)]
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
#[derive(Clone, PartialEq, Eq, Debug)]
pub enum ClientBody {
    /// Append records, or propose commands and have the state machine's responses.
    Append {
        /// The records.
        block: RecordBlock,
        /// Commit: answered by `Appended`; Apply: by `Responses`.
        answer: AnswerOn,
        /// A session of the client, and the sequence of the first record in it: they are appended once, however often they
        /// are sent.
        run: Option<(SessionId, Sequence)>,
    },
    /// Append records, as `Append` with an answer on commit does, and say where the time went. Answered by `TimedAppended`.
    TimedAppend {
        /// The records.
        block: RecordBlock,
    },
    /// What became of a record of a session, at the leader, with all that was committed before. Answered by `Outcome`.
    Outcome {
        /// The session.
        session: SessionId,
        /// The record.
        sequence: Sequence,
    },
    /// Ask the state machine.
    Query {
        /// What the answer has to cover.
        consistency: Consistency,
        /// Whether a replica that does not lead asks the leader and answers itself; otherwise it says who
        /// leads. Never for a local one.
        may_forward: bool,
        /// The question, the state machine's business.
        query: Bytes,
    },
    /// Read committed records of this very replica.
    ReadRecords {
        /// First record.
        from: Offset,
        /// Bytes of entries at most.
        bytes_max: u32,
        /// Records at most, at least 1; `u32::MAX` for no bound.
        records_max: u32,
        /// Whether to wait, where there is no record yet, until there is one or the deadline has come.
        is_waiting: bool,
    },
    /// Follow the committed records of this very replica, until the deadline: answered by any number of `Records`.
    Tail {
        /// The client's name for it, of no other tail of its connection.
        tail: u64,
        /// First record.
        from: Offset,
        /// Bytes of entries that may be sent until more is granted.
        granted_bytes: u32,
    },
    /// The consumer of a tail takes more. Answered by `Granted`, also when that tail is over.
    GrantTail {
        /// The tail.
        tail: u64,
        /// Bytes granted since it began, in all.
        granted_bytes: u64,
    },
    /// The consumer of a tail takes no more. Answered by `Granted`; the tail by its last `Records`.
    EndTail {
        /// The tail.
        tail: u64,
    },
    /// Find the first committed record of a time.
    Find {
        /// Its batch was written then or later.
        at: WallTime,
    },
    /// A command to the group itself. Answered by `CommandDone`.
    Command(GroupCommand),
    /// Where a consumer's cursor stands, everything acknowledged before included. Answered by `Cursor`.
    FetchCursor {
        /// The consumer.
        name: CursorName,
    },
    /// Who leads, how far is it.
    Status,
    /// Which groups have a replica on the shard of the node that is asked on which the request's group is, or would be.
    /// Answered by `Groups`.
    ListGroups {
        /// Only those with higher numbers.
        after: GroupId,
        /// Groups at most, at least 1 and at most [`GROUPS_LISTED_MAX`].
        groups_max: u32,
    },
    /// What time it is at the node that is asked; of no group. Answered by `Clock`.
    Clock,
    /// Hand leadership to another replica. Answered by `HandedOver`.
    TransferLeader {
        /// The successor; `None` for the best one.
        to: Option<NodeId>,
    },
    /// Begin a group that has never been, on one of its voters; the others hear of it. Answered by `Done`.
    CreateGroup {
        /// Its voters.
        voters: Vec<NodeId>,
    },
    /// Remove the group for good, everywhere. Answered by `Done`.
    RemoveGroup,
    /// Open the group's replica again, which was taken out on the node that is asked. Answered by `Done`.
    Revive,
    /// What this very node's replica came to at an index that was marked by
    /// [`GroupCommand::Compare`]. Answered by `StateDigest`.
    StateDigest {
        /// The entry that marked it.
        index: Index,
        /// What others came to there: a node whose digest is another one says so, in its log and its counters.
        expected: Option<StateDigest>,
    },
    /// The group lost its quorum for good: what the node that is asked has of it becomes the group. Answered by `Recovered`.
    Recover {
        /// Nodes that are gone for good.
        lost: Vec<NodeId>,
        /// Last index of the replica's log, as its status showed it.
        last: Index,
        /// The term of that entry.
        last_term: Term,
    },
    /// Change the members of the group, in one step. Answered by `MembersChanged`.
    ChangeMembers {
        /// What is to change.
        changes: Vec<MemberChange>,
    },
}

/// Groups in one answer to [`ClientBody::ListGroups`].
pub const GROUPS_LISTED_MAX: u32 = 1 << 16;

#[derive(Archive, Serialize, Default, Debug)]
struct Descriptors {
    requests: Vec<RequestDescriptor>,
}

/// Fields that a kind does not use are zero.
#[derive(Archive, Serialize, Clone, Copy, Debug)]
struct RequestDescriptor {
    request: u64,
    group: u64,
    /// ReadRecords, Tail: first record. GrantTail: bytes in all. EndTail: the tail. Find: the time. SessionAppend,
    /// Outcome: the sequence. StateDigest: the index. Recover: the last index. ListGroups: the group before.
    /// TransferLeader: the node, 0 for the best one.
    from: u64,
    deadline_ms: u32,
    /// Append, SessionAppend, TimedAppend: number of records. ReadRecords: bytes at most. Tail: bytes granted.
    /// ListGroups: groups at most.
    number: u32,
    /// Append, Query, ChangeMembers, CreateGroup, Tail, GrantTail, Command, FetchCursor, SessionAppend, Outcome, StateDigest, Recover, TimedAppend:
    /// bytes of payload. ReadRecords: records at most, 0 for no bound.
    bytes: u32,
    kind: u8,
    /// Append, SessionAppend: 1 to answer on apply. Query: its consistency, and whether it may be forwarded. ReadRecords: 1 to wait.
    option: u8,
    reserved: [u8; 2],
}

const APPEND: u8 = 1;
const QUERY: u8 = 2;
const READ_RECORDS: u8 = 3;
const STATUS: u8 = 4;
const CHANGE_MEMBERS: u8 = 5;
const TAIL: u8 = 6;
const GRANT_TAIL: u8 = 7;
const END_TAIL: u8 = 8;
const FIND: u8 = 9;
const COMMAND: u8 = 10;
const FETCH_CURSOR: u8 = 11;
const CREATE_GROUP: u8 = 12;
const REMOVE_GROUP: u8 = 13;
/// The session's id comes before the records.
const SESSION_APPEND: u8 = 14;
const OUTCOME: u8 = 15;
const REVIVE: u8 = 16;
const STATE_DIGEST: u8 = 18;
const TIMED_APPEND: u8 = 19;
const LIST_GROUPS: u8 = 20;
const TRANSFER_LEADER: u8 = 21;
const CLOCK: u8 = 22;
/// The term of the last entry comes before the lost nodes.
const RECOVER: u8 = 17;

const TERM_BYTES: u32 = size_of::<Term>() as u32;

const SESSION_BYTES: u32 = size_of::<SessionId>() as u32;

const LOCAL: u8 = 0;
const LINEARIZABLE: u8 = 1;
const LEASE: u8 = 2;
/// Added to one of the two above.
const MAY_FORWARD: u8 = 4;

const ROOT_BYTES: usize = size_of::<ArchivedDescriptors>();
const REQUEST_BYTES: usize = size_of::<ArchivedRequestDescriptor>();

const _: () = assert!(align_of::<ArchivedDescriptors>() == 1 && ROOT_BYTES == 8);
const _: () = assert!(align_of::<ArchivedRequestDescriptor>() == 1 && REQUEST_BYTES == 40);

/// The sizes above as one number, for the format's fingerprint.
pub(super) const FORMAT_BYTES: u64 = (ROOT_BYTES << 8 | REQUEST_BYTES) as u64;

fn archive_bytes(requests: usize) -> usize {
    ROOT_BYTES + requests * REQUEST_BYTES
}

/// A received frame of client requests, validated.
///
/// Records and queries are slices of the one buffer the frame came in: each keeps all
/// [`bytes`](ClientFrame::bytes) of it alive.
#[derive(Clone, Debug)]
pub struct ClientFrame {
    destination_shard: ShardId,
    requests: usize,
    archive: Bytes,
    payload: Bytes,
}

impl ClientFrame {
    /// Validates a frame whose header was parsed. `body` is exactly what follows the header.
    ///
    /// # Errors
    /// [`FrameError`], also for a block of records whose lengths do not add up.
    pub fn decode(
        header: &FrameHeader,
        body: Bytes,
        limits: &FrameLimits,
    ) -> Result<ClientFrame, FrameError> {
        if header.kind != FrameKind::Request {
            return Err(FrameError::UnexpectedKind { found: header.kind, expected: "request" });
        }
        let (archive, payload) = archive::split_body(header, body, limits)?;
        let requests = &archive::access::<ArchivedDescriptors>(&archive)?.requests;
        archive::check_archive_bytes(&archive, archive_bytes(requests.len()))?;
        let mut cursor = PayloadCursor::new(payload.clone());
        for descriptor in requests.iter() {
            read(descriptor, &mut cursor)?;
        }
        cursor.finish()?;
        Ok(ClientFrame {
            destination_shard: header.destination_shard,
            requests: requests.len(),
            archive,
            payload,
        })
    }

    /// Shard that it was sent to.
    #[must_use]
    pub fn destination_shard(&self) -> ShardId {
        self.destination_shard
    }

    /// Number of requests.
    #[must_use]
    pub fn len(&self) -> usize {
        self.requests
    }

    /// Whether there is no request.
    #[must_use]
    pub fn is_empty(&self) -> bool {
        self.requests == 0
    }

    /// Bytes of memory that the frame and any slice of it hold.
    #[must_use]
    pub fn bytes(&self) -> usize {
        self.archive.len() + self.payload.len()
    }

    /// Its requests, in the order they were pushed; payloads are slices of the frame.
    pub fn requests(&self) -> impl Iterator<Item = ClientRequest> + '_ {
        let mut payload = PayloadCursor::new(self.payload.clone());
        let requests = archive::reaccess::<ArchivedDescriptors>(&self.archive).requests.iter();
        requests.map(move |descriptor| archive::checked(read(descriptor, &mut payload)))
    }
}

fn read(
    descriptor: &ArchivedRequestDescriptor,
    payload: &mut PayloadCursor,
) -> Result<ClientRequest, FrameError> {
    let (from, number, bytes) =
        (descriptor.from.to_native(), descriptor.number.to_native(), descriptor.bytes.to_native());
    let option = descriptor.option;
    let unknown_option = || FrameError::UnknownNumber { what: "option of a request", number: option };
    let (body, unused) = match descriptor.kind {
        kind @ (APPEND | SESSION_APPEND) => {
            let (mut bytes, mut run) = (bytes, None);
            if kind == SESSION_APPEND {
                run = Some((session(&payload.take(SESSION_BYTES.min(bytes))?)?, Sequence(from)));
                bytes -= SESSION_BYTES;
            }
            let block = RecordBlock::new(number, payload.take(bytes)?)?;
            let answer = match option {
                0 => AnswerOn::Commit,
                1 => AnswerOn::Apply,
                _ => return Err(unknown_option()),
            };
            (ClientBody::Append { block, answer, run }, from != 0 && run.is_none())
        }
        TIMED_APPEND => {
            let block = RecordBlock::new(number, payload.take(bytes)?)?;
            (ClientBody::TimedAppend { block }, from != 0 || option != 0)
        }
        OUTCOME => {
            let session = session(&payload.take(bytes)?)?;
            (ClientBody::Outcome { session, sequence: Sequence(from) }, number != 0 || option != 0)
        }
        QUERY => {
            let query = payload.take(bytes)?;
            let may_forward = option & MAY_FORWARD != 0;
            let consistency = match option & !MAY_FORWARD {
                LOCAL if !may_forward => Consistency::Local,
                LINEARIZABLE => Consistency::Linearizable,
                LEASE => Consistency::Lease,
                _ => return Err(unknown_option()),
            };
            (ClientBody::Query { consistency, may_forward, query }, from != 0 || number != 0)
        }
        READ_RECORDS => {
            let is_waiting = match option {
                0 => false,
                1 => true,
                _ => return Err(unknown_option()),
            };
            let records_max = if bytes == 0 { u32::MAX } else { bytes };
            let body =
                ClientBody::ReadRecords { from: Offset(from), bytes_max: number, records_max, is_waiting };
            (body, bytes == u32::MAX)
        }
        TAIL => {
            let tail = tail(&payload.take(bytes)?)?;
            (ClientBody::Tail { tail, from: Offset(from), granted_bytes: number }, option != 0)
        }
        GRANT_TAIL => {
            let tail = tail(&payload.take(bytes)?)?;
            (ClientBody::GrantTail { tail, granted_bytes: from }, number != 0 || option != 0)
        }
        END_TAIL => (ClientBody::EndTail { tail: from }, number != 0 || bytes != 0 || option != 0),
        FIND => (ClientBody::Find { at: WallTime(from) }, number != 0 || bytes != 0 || option != 0),
        COMMAND => {
            let command = decode_command(&payload.take(bytes)?)?;
            (ClientBody::Command(command), from != 0 || number != 0 || option != 0)
        }
        FETCH_CURSOR => {
            let name = CursorName::new(payload.take(bytes)?)?;
            (ClientBody::FetchCursor { name }, from != 0 || number != 0 || option != 0)
        }
        STATUS => (ClientBody::Status, from != 0 || number != 0 || bytes != 0 || option != 0),
        CLOCK => (ClientBody::Clock, from != 0 || number != 0 || bytes != 0 || option != 0),
        LIST_GROUPS => {
            if !(1..=GROUPS_LISTED_MAX).contains(&number) {
                return Err(FrameError::Count { what: "groups to be listed" });
            }
            let body = ClientBody::ListGroups { after: GroupId(from), groups_max: number };
            (body, bytes != 0 || option != 0)
        }
        TRANSFER_LEADER => {
            let to = Some(NodeId(from)).filter(|node| node.0 != 0);
            (ClientBody::TransferLeader { to }, number != 0 || bytes != 0 || option != 0)
        }
        CHANGE_MEMBERS => {
            let changes = members::decode_changes(&payload.take(bytes)?)?;
            (ClientBody::ChangeMembers { changes }, from != 0 || number != 0 || option != 0)
        }
        CREATE_GROUP => {
            let voters = members::decode_nodes(&payload.take(bytes)?)?;
            (ClientBody::CreateGroup { voters }, from != 0 || number != 0 || option != 0)
        }
        REMOVE_GROUP => (ClientBody::RemoveGroup, from != 0 || number != 0 || bytes != 0 || option != 0),
        REVIVE => (ClientBody::Revive, from != 0 || number != 0 || bytes != 0 || option != 0),
        STATE_DIGEST => {
            let expected = digest::decode_expected(&payload.take(bytes)?)?;
            let body = ClientBody::StateDigest { index: Index(from), expected };
            (body, number != 0 || option != 0)
        }
        RECOVER => {
            let last_term = term(&payload.take(TERM_BYTES.min(bytes))?)?;
            let lost = members::decode_nodes(&payload.take(bytes - TERM_BYTES)?)?;
            (ClientBody::Recover { lost, last: Index(from), last_term }, number != 0 || option != 0)
        }
        number => return Err(FrameError::UnknownNumber { what: "kind of request", number }),
    };
    if unused || descriptor.reserved != [0; 2] {
        return Err(FrameError::Reserved { what: "a field that its kind of request does not use" });
    }
    Ok(ClientRequest {
        request: descriptor.request.to_native(),
        group: GroupId(descriptor.group.to_native()),
        deadline_ms: descriptor.deadline_ms.to_native(),
        body,
    })
}

/// The id of a session, as payload.
fn session(payload: &[u8]) -> Result<SessionId, FrameError> {
    let id = payload.try_into().map(SessionId);
    id.map_err(|_| FrameError::Count { what: "bytes of a session's id" })
}

/// A term, as payload.
fn term(payload: &[u8]) -> Result<Term, FrameError> {
    let term = payload.try_into().map(|bytes| Term(u64::from_le_bytes(bytes)));
    term.map_err(|_| FrameError::Count { what: "bytes of a term" })
}

/// The name of a tail, as payload.
fn tail(payload: &[u8]) -> Result<u64, FrameError> {
    payload
        .try_into()
        .map(u64::from_le_bytes)
        .map_err(|_| FrameError::Count { what: "bytes of a tail's name" })
}

/// Packs a client's requests to one shard of a node.
///
/// Pushed bytes of a kilobyte and more are referenced, smaller ones copied. The buffers stay from
/// frame to frame: a frame costs the allocations of its [`OutFrame`], a request none.
#[derive(Debug, Default)]
pub struct RequestFrameBuilder {
    descriptors: Descriptors,
    payload: PayloadBuilder,
}

impl RequestFrameBuilder {
    /// Adds a request.
    ///
    /// # Panics
    /// If its records or its query reach 4 GiB, a local query may be forwarded, or a read or a list wants none or too many.
    pub fn push(&mut self, request: &ClientRequest) {
        let mut descriptor = RequestDescriptor {
            request: request.request,
            group: request.group.0,
            from: 0,
            deadline_ms: request.deadline_ms,
            number: 0,
            bytes: 0,
            kind: STATUS,
            option: 0,
            reserved: [0; 2],
        };
        match &request.body {
            ClientBody::Append { block, answer, run } => {
                descriptor.kind = APPEND;
                descriptor.option = u8::from(*answer == AnswerOn::Apply);
                descriptor.number = block.count();
                if let Some((session, first)) = run {
                    (descriptor.kind, descriptor.from) = (SESSION_APPEND, first.0);
                    descriptor.bytes = self.payload.push_slice(&session.0);
                }
                descriptor.bytes += self.payload.push(block.as_bytes().clone());
            }
            ClientBody::TimedAppend { block } => {
                (descriptor.kind, descriptor.number) = (TIMED_APPEND, block.count());
                descriptor.bytes = self.payload.push(block.as_bytes().clone());
            }
            ClientBody::Outcome { session, sequence } => {
                (descriptor.kind, descriptor.from) = (OUTCOME, sequence.0);
                descriptor.bytes = self.payload.push_slice(&session.0);
            }
            ClientBody::Query { consistency, may_forward, query } => {
                descriptor.kind = QUERY;
                let forwarding = if *may_forward { MAY_FORWARD } else { 0 };
                descriptor.option = forwarding
                    | match consistency {
                        Consistency::Local => LOCAL,
                        Consistency::Linearizable => LINEARIZABLE,
                        Consistency::Lease => LEASE,
                    };
                assert_ne!(descriptor.option, LOCAL | MAY_FORWARD, "a local query asks nobody");
                descriptor.bytes = self.payload.push(query.clone());
            }
            ClientBody::ReadRecords { from, bytes_max, records_max, is_waiting } => {
                assert_ne!(*records_max, 0, "a read wants a record at least");
                descriptor.kind = READ_RECORDS;
                descriptor.from = from.0;
                descriptor.number = *bytes_max;
                descriptor.bytes = if *records_max == u32::MAX { 0 } else { *records_max };
                descriptor.option = u8::from(*is_waiting);
            }
            ClientBody::Tail { tail, from, granted_bytes } => {
                descriptor.kind = TAIL;
                descriptor.from = from.0;
                descriptor.number = *granted_bytes;
                descriptor.bytes = self.payload.push_slice(&tail.to_le_bytes());
            }
            ClientBody::GrantTail { tail, granted_bytes } => {
                descriptor.kind = GRANT_TAIL;
                descriptor.from = *granted_bytes;
                descriptor.bytes = self.payload.push_slice(&tail.to_le_bytes());
            }
            ClientBody::EndTail { tail } => {
                descriptor.kind = END_TAIL;
                descriptor.from = *tail;
            }
            ClientBody::Find { at } => {
                descriptor.kind = FIND;
                descriptor.from = at.0;
            }
            ClientBody::Command(command) => {
                descriptor.kind = COMMAND;
                descriptor.bytes = self.payload.push_slice(&encode_command(command));
            }
            ClientBody::FetchCursor { name } => {
                descriptor.kind = FETCH_CURSOR;
                descriptor.bytes = self.payload.push_slice(name.as_bytes());
            }
            ClientBody::Status => {}
            ClientBody::Clock => descriptor.kind = CLOCK,
            ClientBody::ListGroups { after, groups_max } => {
                assert!((1..=GROUPS_LISTED_MAX).contains(groups_max), "a list has a bound");
                (descriptor.kind, descriptor.from, descriptor.number) = (LIST_GROUPS, after.0, *groups_max);
            }
            ClientBody::TransferLeader { to } => {
                (descriptor.kind, descriptor.from) = (TRANSFER_LEADER, to.map_or(0, |node| node.0));
            }
            ClientBody::CreateGroup { voters } => {
                descriptor.kind = CREATE_GROUP;
                descriptor.bytes = self.payload.push_slice(&members::encode_nodes(voters));
            }
            ClientBody::RemoveGroup => descriptor.kind = REMOVE_GROUP,
            ClientBody::Revive => descriptor.kind = REVIVE,
            ClientBody::StateDigest { index, expected } => {
                (descriptor.kind, descriptor.from) = (STATE_DIGEST, index.0);
                descriptor.bytes = self.payload.push_slice(&digest::encode_expected(*expected));
            }
            ClientBody::Recover { lost, last, last_term } => {
                (descriptor.kind, descriptor.from) = (RECOVER, last.0);
                descriptor.bytes = self.payload.push_slice(&last_term.0.to_le_bytes());
                descriptor.bytes += self.payload.push_slice(&members::encode_nodes(lost));
            }
            ClientBody::ChangeMembers { changes } => {
                descriptor.kind = CHANGE_MEMBERS;
                descriptor.bytes = self.payload.push_slice(&members::encode_changes(changes));
            }
        }
        self.descriptors.requests.push(descriptor);
    }

    /// Whether there is no request.
    #[must_use]
    pub fn is_empty(&self) -> bool {
        self.descriptors.requests.is_empty()
    }

    /// Number of requests so far.
    #[must_use]
    pub fn len(&self) -> usize {
        self.descriptors.requests.len()
    }

    /// Bytes of the frame so far, for splitting frames at the limit.
    #[must_use]
    pub fn bytes(&self) -> usize {
        HEADER_BYTES + archive_bytes(self.len()) + self.payload.bytes()
    }

    /// The frame; the builder is empty again and keeps its buffers.
    ///
    /// # Panics
    /// If archive or payload reached 4 GiB.
    pub fn finish(&mut self, to: ShardId) -> OutFrame {
        let archive_bytes = archive_bytes(self.len());
        let frame = self.payload.finish(
            FrameKind::Request,
            ShardId(0),
            to,
            self.len(),
            archive_bytes,
            &self.descriptors,
        );
        self.descriptors.requests.clear();
        frame
    }
}
