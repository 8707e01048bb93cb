//! Frames to try things on: one of every kind, with every field set to something else.

use std::sync::Arc;

use std::sync::Once;
use std::time::Duration;

use bytes::Bytes;
use iroh_raft_core::batch::{RecordBlock, encode_batch};
use iroh_raft_core::{
    AnswerOn, BootEpoch, BusyReason, ClusterId, ConfState, Consistency, CursorName, DigestState, EntryKind,
    Freshness, GroupCommand, GroupId, GroupStatus, Index, LogEntry, MemberChange, MemberRole, MembersRefusal,
    MessageKind, NodeId, Offset, Owner, PeerMessage, Placement, Recovered, RecoveryRefusal, RequestError,
    Role, RunOutcome, Sequence, SessionId, SessionRefusal, ShardId, SnapshotBody, StateDigest, Term,
    TransferError, WallTime,
};
use iroh_raft_netbridge::wire::handshake::{Handshake, Introduction, Refusal};
use iroh_raft_netbridge::wire::{
    Answer, ClientBody, ClientFrame, ClientReply, ClientRequest, FrameError, FrameHeader, FrameKind,
    FrameLimits, GROUPS_LISTED_MAX, HEADER_BYTES, HandedOver, Lane, OutFrame, PeerFrame, PeerFrameBuilder,
    ReplyBody, ReplyFrame, ReplyFrameBuilder, RequestFrameBuilder, Stages,
};

/// What a frame says, whatever its kind.
#[derive(Clone, PartialEq, Debug)]
pub(crate) enum Content {
    Peer(Lane, Vec<PeerMessage>),
    Requests(Vec<ClientRequest>),
    Replies(Vec<ClientReply>),
    Handshake(Handshake),
}

pub(crate) fn limits(kind: FrameKind) -> FrameLimits {
    match kind {
        FrameKind::Peer(_) | FrameKind::Handshake => FrameLimits::PEER,
        FrameKind::Request => FrameLimits::REQUEST,
        FrameKind::Reply => FrameLimits::REPLY,
    }
}

pub(crate) fn encode(content: &Content) -> OutFrame {
    match content {
        Content::Peer(lane, messages) => {
            let mut builder = PeerFrameBuilder::default();
            messages.iter().for_each(|message| builder.push(message.clone()));
            let bytes = builder.bytes();
            let frame = builder.finish(*lane, ShardId(3), ShardId(0x0102));
            assert_eq!(frame.bytes(), bytes);
            frame
        }
        Content::Requests(requests) => {
            let mut builder = RequestFrameBuilder::default();
            requests.iter().for_each(|request| builder.push(request));
            let bytes = builder.bytes();
            let frame = builder.finish(ShardId(0x0102));
            assert_eq!(frame.bytes(), bytes);
            frame
        }
        Content::Replies(replies) => {
            let mut builder = ReplyFrameBuilder::default();
            replies.iter().for_each(|reply| builder.push(reply.clone()));
            let bytes = builder.bytes();
            let frame = builder.finish(ShardId(3));
            assert_eq!(frame.bytes(), bytes);
            frame
        }
        Content::Handshake(handshake) => handshake.encode(),
    }
}

pub(crate) fn joined(frame: &OutFrame) -> Vec<u8> {
    frame.chunks.concat()
}

/// As a lane does it: the header first, then exactly what it announces.
pub(crate) fn decode(frame: &[u8]) -> Result<Content, FrameError> {
    let short = FrameError::Length { what: "a test's frame", bytes: frame.len() as u64, expected: 32 };
    let (header, body) = frame.split_first_chunk::<HEADER_BYTES>().ok_or(short)?;
    // The largest limits of any kind; `decode_body` has those of the kind.
    decode_body(&FrameHeader::parse(header, &FrameLimits::PEER)?, Bytes::copy_from_slice(body))
}

/// Texts of failures are kept up to a bound, and hostile bytes fill it: those of the samples come
/// first.
fn keep_texts() {
    static KEPT: Once = Once::new();
    KEPT.call_once(|| {
        let failed = |error| ClientReply { request: 1, group: GroupId(1), body: ReplyBody::Failed(error) };
        let frame = joined(&encode(&Content::Replies(failures().into_iter().map(failed).collect())));
        let (header, body) = frame.split_first_chunk::<HEADER_BYTES>().unwrap();
        let header = FrameHeader::parse(header, &FrameLimits::REPLY).unwrap();
        ReplyFrame::decode(&header, Bytes::copy_from_slice(body), &FrameLimits::REPLY).unwrap();
    });
}

/// Decodes, walks everything, and checks that each piece of payload lies inside the body.
pub(crate) fn decode_body(header: &FrameHeader, body: Bytes) -> Result<Content, FrameError> {
    keep_texts();
    let range = body.as_ptr_range();
    let inside = |piece: &Bytes| {
        let piece = piece.as_ptr_range();
        assert!(piece.is_empty() || range.start <= piece.start && piece.end <= range.end);
    };
    let limits = limits(header.kind);
    Ok(match header.kind {
        FrameKind::Peer(lane) => {
            let frame = PeerFrame::decode(header, body, &limits)?;
            let messages: Vec<_> = frame.messages().collect();
            assert_eq!((frame.len(), frame.lane()), (messages.len(), lane));
            for message in &messages {
                assert_eq!(Lane::of(message.kind), lane);
                assert_eq!((message.from, message.to), (frame.sender(), frame.receiver()));
                inside(&message.context);
                message.entries.iter().for_each(|entry| inside(&entry.data));
            }
            Content::Peer(lane, messages)
        }
        FrameKind::Request => {
            let frame = ClientFrame::decode(header, body, &limits)?;
            let requests: Vec<_> = frame.requests().collect();
            assert_eq!(frame.len(), requests.len());
            for request in &requests {
                match &request.body {
                    ClientBody::Append { block, .. } | ClientBody::TimedAppend { block } => {
                        inside(block.as_bytes());
                    }
                    ClientBody::Query { query, .. } => inside(query),
                    // Names are copied, or small.
                    ClientBody::ReadRecords { .. }
                    | ClientBody::Tail { .. }
                    | ClientBody::GrantTail { .. }
                    | ClientBody::EndTail { .. }
                    | ClientBody::Find { .. }
                    | ClientBody::Command(_)
                    | ClientBody::FetchCursor { .. }
                    | ClientBody::Outcome { .. }
                    | ClientBody::Status
                    | ClientBody::Clock
                    | ClientBody::ListGroups { .. }
                    | ClientBody::TransferLeader { .. }
                    | ClientBody::CreateGroup { .. }
                    | ClientBody::RemoveGroup
                    | ClientBody::Revive
                    | ClientBody::StateDigest { .. }
                    | ClientBody::Recover { .. }
                    | ClientBody::ChangeMembers { .. } => {}
                }
            }
            Content::Requests(requests)
        }
        FrameKind::Reply => {
            let frame = ReplyFrame::decode(header, body, &limits)?;
            let replies: Vec<_> = frame.replies().collect();
            assert_eq!(frame.len(), replies.len());
            for reply in &replies {
                match &reply.body {
                    ReplyBody::Responses { responses, .. } => inside(responses.as_bytes()),
                    ReplyBody::Answer(answer) => inside(&answer.bytes),
                    ReplyBody::Records { batches, .. } => batches.iter().for_each(inside),
                    ReplyBody::Appended { .. }
                    | ReplyBody::TimedAppended { .. }
                    | ReplyBody::Found { .. }
                    | ReplyBody::CommandDone { .. }
                    | ReplyBody::Cursor(_)
                    | ReplyBody::Outcome(_)
                    | ReplyBody::Granted
                    | ReplyBody::StateDigest { .. }
                    | ReplyBody::Status(_)
                    | ReplyBody::Groups { .. }
                    | ReplyBody::HandedOver(_)
                    | ReplyBody::Clock(_)
                    | ReplyBody::Done
                    | ReplyBody::Recovered(_)
                    | ReplyBody::MembersChanged { .. }
                    | ReplyBody::Failed(_) => {}
                }
            }
            Content::Replies(replies)
        }
        FrameKind::Handshake => Content::Handshake(Handshake::decode(header, &body)?),
    })
}

/// A message of this kind. Its fields tell their places apart: each is another number.
pub(crate) fn message(kind: MessageKind, group: u64) -> PeerMessage {
    let at = group << 32;
    PeerMessage {
        kind,
        group: GroupId(group),
        from: NodeId(0x0a0b),
        to: NodeId(0x0c0d),
        term: Term(at + 1),
        log_term: Term(at + 2),
        index: Index(at + 3),
        commit: Index(at + 4),
        commit_term: Term(at + 5),
        reject: group.is_multiple_of(2),
        reject_hint: Index(at + 6),
        request_snapshot: Index(at + 7),
        priority: -8,
        context: Bytes::from(vec![b'c'; group as usize % 65]),
        entries: Vec::new(),
    }
}

/// A heartbeat as most are: without anything that takes a detail.
pub(crate) fn heartbeat(group: u64) -> PeerMessage {
    PeerMessage {
        log_term: Term(0),
        commit_term: Term(0),
        reject: false,
        reject_hint: Index(0),
        request_snapshot: Index(0),
        priority: 0,
        context: Bytes::new(),
        ..message(MessageKind::Heartbeat, group)
    }
}

pub(crate) fn entry(index: u64, kind: EntryKind, data: Bytes) -> LogEntry {
    LogEntry { index: Index(index), term: Term(index / 2), kind, data }
}

fn block() -> RecordBlock {
    RecordBlock::from_records(&[&b"first"[..], b"", b"third record"])
}

fn introduction() -> Introduction {
    Introduction {
        protocol: 0x0102,
        cluster: ClusterId(*b"sixteen bytes id"),
        node: NodeId(0x0304_0506),
        boot_epoch: BootEpoch(7),
        boot_id: *b"random boot id..",
        fingerprint: 0x1122_3344_5566_7788,
        placement: Some(Placement::even(8).unwrap()),
    }
}

/// Of a node that places some groups by name.
fn placed_introduction() -> Introduction {
    let placed = [(GroupId(9), ShardId(7)), (GroupId(0x0102_0304), ShardId(0x0101))];
    let placement = Placement::new(0x0203, placed.into()).unwrap();
    Introduction { placement: Some(placement), ..introduction() }
}

/// Failures that came to the format after its first fixtures were stored.
fn later_failures() -> Vec<RequestError> {
    let mut later = vec![
        RequestError::Busy { reason: BusyReason::Space, retry_after_ms: 6 },
        RequestError::Busy { reason: BusyReason::Members, retry_after_ms: 7 },
    ];
    let refusals = [
        MembersRefusal::Malformed,
        MembersRefusal::NoVoters,
        MembersRefusal::NotLearner { node: NodeId(13) },
        MembersRefusal::Lagging { node: NodeId(14) },
        MembersRefusal::WouldLoseQuorum { alive: 1, needed: 2 },
    ];
    later.extend(refusals.map(|refusal| RequestError::Members { refusal }));
    later
}

/// One failure of each kind.
pub(crate) fn failures() -> Vec<RequestError> {
    vec![
        RequestError::NotLeader { leader: Some(NodeId(9)) },
        RequestError::NotLeader { leader: None },
        RequestError::Busy { reason: BusyReason::PendingBytes, retry_after_ms: 1 },
        RequestError::Busy { reason: BusyReason::Reads, retry_after_ms: 2 },
        RequestError::Busy { reason: BusyReason::Ring, retry_after_ms: 3 },
        RequestError::Busy { reason: BusyReason::Writer, retry_after_ms: 4 },
        RequestError::Busy { reason: BusyReason::Credit, retry_after_ms: 5 },
        RequestError::OutcomeUnknown { leader: Some(NodeId(10)) },
        RequestError::OutcomeUnknown { leader: None },
        RequestError::Timeout,
        RequestError::UnknownGroup,
        RequestError::TooLarge { bytes: 1 << 40, bytes_max: 1 << 20 },
        RequestError::Invalid { what: "a sample" },
        RequestError::Invalid { what: "" },
        RequestError::PastEnd { from: Offset(12), end: Offset(11) },
        RequestError::Quarantined,
        RequestError::Fenced,
        RequestError::Denied,
        RequestError::ShuttingDown,
    ]
}

/// One refusal of each kind.
pub(crate) fn refusals() -> Vec<Refusal> {
    vec![
        Refusal::WrongCluster { cluster: ClusterId(*b"another cluster!") },
        Refusal::UnknownNode { node: NodeId(1) },
        Refusal::WrongNode { node: NodeId(2) },
        Refusal::Version { offered: 3, supported: 4 },
        Refusal::RolledBack { seen: BootEpoch(6), offered: BootEpoch(5) },
        Refusal::NotAllowed,
        Refusal::Busy,
        Refusal::ShuttingDown,
        Refusal::Fingerprint { offered: 7, supported: 8 },
        Refusal::Other { code: 200 },
    ]
}

pub(crate) fn roles() -> [Role; 4] {
    [Role::Follower, Role::PreCandidate, Role::Candidate, Role::Leader]
}

pub(crate) fn members() -> Arc<ConfState> {
    Arc::new(ConfState {
        voters: vec![NodeId(1), NodeId(2)],
        learners: vec![NodeId(3)],
        voters_outgoing: vec![NodeId(2), NodeId(4), NodeId(5)],
        learners_next: vec![NodeId(4)],
        auto_leave: false,
    })
}

pub(crate) fn changes() -> Vec<MemberChange> {
    let roles = [MemberRole::Gone, MemberRole::Voter, MemberRole::Learner];
    (1..).zip(roles).map(|(node, role)| MemberChange { node: NodeId(node), role }).collect()
}

pub(crate) fn status(group: u64, role: Role) -> ReplyBody {
    ReplyBody::Status(GroupStatus {
        group: GroupId(group),
        role,
        term: Term(1),
        leader: Some(NodeId(2)).filter(|_| role == Role::Leader),
        commit: Index(3),
        applied: Index(4),
        last: Index(5),
        last_term: Term(0),
        first: Offset(0),
        end: Offset(6),
        members: members(),
        members_since: Index(2),
        is_quarantined: role == Role::Candidate,
        is_disk_hung: false,
        is_quiet: false,
        is_under_repair: false,
    })
}

/// As the others, with records before the first that is kept.
fn trimmed_status(group: u64) -> ReplyBody {
    match status(group, Role::Leader) {
        ReplyBody::Status(status) => ReplyBody::Status(GroupStatus { first: Offset(5), ..status }),
        other => other,
    }
}

/// As the others, with the term of the last entry.
fn longer_status(group: u64) -> ReplyBody {
    match status(group, Role::Follower) {
        ReplyBody::Status(status) => ReplyBody::Status(GroupStatus { last_term: Term(4), ..status }),
        other => other,
    }
}

pub(crate) fn recover(lost: &[u64]) -> ClientBody {
    let lost = lost.iter().copied().map(NodeId).collect();
    ClientBody::Recover { lost, last: Index(7), last_term: Term(3) }
}

pub(crate) fn recovered() -> Recovered {
    Recovered { index: Index(8), term: Term(2_000_000), end: Offset(5) }
}

/// One refusal of each kind.
pub(crate) fn recovery_failures() -> Vec<RequestError> {
    let refusals = [
        RecoveryRefusal::Malformed,
        RecoveryRefusal::HasLeader { leader: None },
        RecoveryRefusal::HasLeader { leader: Some(NodeId(2)) },
        RecoveryRefusal::Changed { last: Index(7), term: Term(3) },
        RecoveryRefusal::QuorumLeft { left: 2, needed: 2 },
        RecoveryRefusal::Lives { node: NodeId(3) },
        RecoveryRefusal::UnderRepair,
        RecoveryRefusal::NotVoter { voter: NodeId(4) },
        RecoveryRefusal::NoTerm { term: Term(1 << 55) },
    ];
    refusals.map(|refusal| RequestError::Recovery { refusal }).to_vec()
}

fn status_under_repair(group: u64) -> ReplyBody {
    match status(group, Role::Follower) {
        ReplyBody::Status(status) => ReplyBody::Status(GroupStatus { is_under_repair: true, ..status }),
        other => other,
    }
}

/// Small frames of every kind, by name.
/// Kinds of messages that are not in the frames of their lanes that are stored, but in frames of their own.
const CAME_LATER: [MessageKind; 6] = [
    MessageKind::Invite,
    MessageKind::Gone,
    MessageKind::MayLeave,
    MessageKind::Beat,
    MessageKind::RepairQuestion,
    MessageKind::RepairBound,
];

pub(crate) fn samples() -> Vec<(&'static str, Content)> {
    let batch = encode_batch(Offset(40), WallTime(1_700_000_000_000), [block()].iter());
    let mut append = message(MessageKind::Append, 5);
    append.entries = vec![
        entry(8, EntryKind::Normal, batch.clone()),
        entry(9, EntryKind::Normal, Bytes::new()),
        entry(10, EntryKind::ConfChange, Bytes::from_static(b"conf change")),
        entry(11, EntryKind::ConfChangeV2, Bytes::from_static(b"conf change v2")),
    ];
    let mut read_index = message(MessageKind::ReadIndex, 4);
    read_index.entries = vec![entry(0, EntryKind::Normal, Bytes::from_static(b"context"))];
    // Those of the first fixtures: what came later has its own.
    let on = |lane| {
        let kinds = MessageKind::ALL.into_iter().zip(1..).filter(|(kind, _)| !CAME_LATER.contains(kind));
        let kinds = kinds.filter(move |(kind, _)| Lane::of(*kind) == lane);
        kinds.map(|(kind, group)| message(kind, group)).collect::<Vec<_>>()
    };
    let mut heartbeats = on(Lane::Heartbeat);
    heartbeats.extend([heartbeat(6), read_index]);
    let leaving = [MessageKind::Invite, MessageKind::Gone, MessageKind::MayLeave];
    let leaving = leaving.into_iter().zip(1..).map(|(kind, group)| message(kind, group)).collect();
    let repairing = [MessageKind::RepairQuestion, MessageKind::RepairBound];
    let repairing = repairing.into_iter().zip(1..).map(|(kind, group)| message(kind, group)).collect();
    let mut appends = on(Lane::Append);
    appends.push(append);
    let request =
        |request, body| ClientRequest { request, group: GroupId(request + 1), deadline_ms: 500, body };
    let reply = |request, body| ClientReply { request, group: GroupId(request + 1), body };
    let mut replies = vec![
        reply(1, ReplyBody::Appended { first: Offset(1), count: 2, index: Index(3), term: Term(4) }),
        reply(
            2,
            ReplyBody::Responses { first: Offset(5), index: Index(6), term: Term(7), responses: block() },
        ),
        reply(3, answer(8, 0, Some(Duration::ZERO), b"answer")),
        reply(
            4,
            ReplyBody::Records {
                from: Offset(9),
                end: Offset(10),
                batches: vec![batch.clone(), batch.clone()],
                is_last: true,
            },
        ),
        reply(5, ReplyBody::Records { from: Offset(9), end: Offset(9), batches: vec![], is_last: true }),
    ];
    replies
        .extend(roles().into_iter().zip(6..).map(|(role, number)| reply(number, status(number + 1, role))));
    replies.extend(
        failures().into_iter().zip(20..).map(|(error, number)| reply(number, ReplyBody::Failed(error))),
    );
    let later = later_failures().into_iter().zip(1..);
    let before_start = RequestError::BeforeStart { from: Offset(3), start: Offset(7) };
    let mut chunk = message(MessageKind::SnapshotChunk, 13);
    chunk.entries = vec![entry(8, EntryKind::Normal, Bytes::from_static(b"chunk"))];
    let chunks = vec![chunk, message(MessageKind::SnapshotAck, 14)];
    let mut later: Vec<ClientReply> =
        later.map(|(error, number)| reply(number, ReplyBody::Failed(error))).collect();
    later.push(reply(90, ReplyBody::MembersChanged { index: Index(4), members: members() }));
    vec![
        ("peer-election", Content::Peer(Lane::Election, on(Lane::Election))),
        ("peer-heartbeat", Content::Peer(Lane::Heartbeat, heartbeats)),
        ("peer-beat", Content::Peer(Lane::Heartbeat, vec![message(MessageKind::Beat, 0), heartbeat(6)])),
        ("peer-append", Content::Peer(Lane::Append, appends)),
        ("peer-leaving", Content::Peer(Lane::Append, leaving)),
        ("peer-repair", Content::Peer(Lane::Append, repairing)),
        (
            "request-compare",
            Content::Requests(vec![
                request(1, ClientBody::Command(GroupCommand::Compare)),
                request(2, ClientBody::StateDigest { index: Index(7), expected: None }),
                request(3, ClientBody::StateDigest { index: Index(7), expected: Some(state_digest()) }),
            ]),
        ),
        (
            "reply-compare",
            Content::Replies(
                [
                    DigestState::Known(state_digest()),
                    DigestState::Known(StateDigest { machine: None, table: 3 }),
                    DigestState::Pending,
                    DigestState::Missed,
                    DigestState::Unknown,
                ]
                .into_iter()
                .zip(1..)
                .map(|(state, number)| reply(number, ReplyBody::StateDigest { index: Index(7), state }))
                .chain([reply(9, ReplyBody::Failed(RequestError::busy(BusyReason::Comparing)))])
                .collect(),
            ),
        ),
        (
            "reply-shard-pending",
            Content::Replies(vec![reply(
                1,
                ReplyBody::Failed(RequestError::busy(BusyReason::ShardPendingBytes)),
            )]),
        ),
        (
            "reply-starting",
            Content::Replies(
                [BusyReason::Starting, BusyReason::Recoveries]
                    .into_iter()
                    .zip(1..)
                    .map(|(reason, number)| reply(number, ReplyBody::Failed(RequestError::busy(reason))))
                    .collect(),
            ),
        ),
        ("request-timed", Content::Requests(vec![request(1, ClientBody::TimedAppend { block: block() })])),
        (
            "reply-timed",
            Content::Replies(
                [None, Some(300)]
                    .into_iter()
                    .zip(1..)
                    .map(|(flush_us, number)| {
                        let stages = Stages { ring_us: 5, turn_us: 60, commit_us: 700, flush_us };
                        let (first, index, term) = (Offset(7), Index(8), Term(9));
                        reply(number, ReplyBody::TimedAppended { first, count: 3, index, term, stages })
                    })
                    .collect(),
            ),
        ),
        (
            "request-node",
            Content::Requests(vec![
                request(1, ClientBody::ListGroups { after: GroupId(7), groups_max: GROUPS_LISTED_MAX }),
                request(2, ClientBody::TransferLeader { to: Some(NodeId(3)) }),
                request(3, ClientBody::TransferLeader { to: None }),
            ]),
        ),
        (
            "reply-node",
            Content::Replies(
                [
                    ReplyBody::Groups { groups: groups(&[2, 3, 1 << 40]), is_more: true, shard_count: 3 },
                    ReplyBody::Groups { groups: vec![], is_more: false, shard_count: 1 },
                    ReplyBody::HandedOver(HandedOver { leader: Some(NodeId(3)), term: Term(9) }),
                    ReplyBody::HandedOver(HandedOver { leader: None, term: Term(9) }),
                ]
                .into_iter()
                .chain(transfer_failures().into_iter().map(ReplyBody::Failed))
                .zip(1..)
                .map(|(body, number)| reply(number, body))
                .collect(),
            ),
        ),
        ("request-clock", Content::Requests(vec![request(1, ClientBody::Clock)])),
        ("reply-clock", Content::Replies(vec![reply(1, ReplyBody::Clock(WallTime(1_795_387_081_123)))])),
        ("request-revive", Content::Requests(vec![request(1, ClientBody::Revive)])),
        (
            "request-recover",
            Content::Requests(vec![
                request(1, recover(&[2, 3])),
                request(2, ClientBody::Recover { lost: vec![], last: Index(0), last_term: Term(0) }),
            ]),
        ),
        (
            "reply-recovery",
            Content::Replies(
                [ReplyBody::Recovered(recovered()), longer_status(2)]
                    .into_iter()
                    .chain(recovery_failures().into_iter().map(ReplyBody::Failed))
                    .zip(1..)
                    .map(|(body, number)| ClientReply { group: GroupId(2), ..reply(number, body) })
                    .collect(),
            ),
        ),
        ("reply-under-repair", Content::Replies(vec![reply(1, status_under_repair(2))])),
        ("peer-snapshot", Content::Peer(Lane::Snapshot, vec![message(MessageKind::Snapshot, 12)])),
        (
            "request-groups",
            Content::Requests(vec![
                request(1, ClientBody::CreateGroup { voters: vec![NodeId(1), NodeId(2)] }),
                request(2, ClientBody::RemoveGroup),
            ]),
        ),
        (
            "reply-groups",
            Content::Replies(vec![
                reply(1, ReplyBody::Done),
                reply(2, ReplyBody::Failed(RequestError::GroupExists)),
                reply(3, ReplyBody::Failed(RequestError::GroupRemoved)),
                reply(
                    4,
                    ReplyBody::Failed(RequestError::Busy { reason: BusyReason::Groups, retry_after_ms: 9 }),
                ),
            ]),
        ),
        ("peer-snapshot-chunks", Content::Peer(Lane::Snapshot, chunks)),
        (
            "request",
            Content::Requests(vec![
                request(1, ClientBody::Append { block: block(), answer: AnswerOn::Commit, run: None }),
                request(2, ClientBody::Append { block: block(), answer: AnswerOn::Apply, run: None }),
                request(3, query(Consistency::Linearizable, false, b"query")),
                request(4, query(Consistency::Local, false, b"")),
                request(5, read_records(77, u32::MAX, false)),
                request(6, ClientBody::Status),
            ]),
        ),
        (
            "request-later",
            Content::Requests(vec![request(7, ClientBody::ChangeMembers { changes: changes() })]),
        ),
        ("reply", Content::Replies(replies)),
        ("reply-later", Content::Replies(later)),
        ("reply-before-start", Content::Replies(vec![reply(1, ReplyBody::Failed(before_start))])),
        (
            "request-reads",
            Content::Requests(vec![
                request(1, query(Consistency::Lease, false, b"leader's")),
                request(2, query(Consistency::Lease, true, b"anybody's")),
                request(3, query(Consistency::Linearizable, true, b"anybody's")),
            ]),
        ),
        (
            "reply-reads",
            Content::Replies(vec![
                reply(1, answer(8, 9, Some(Duration::from_micros(1_234)), b"stale")),
                reply(2, answer(0, 9, None, b"")),
            ]),
        ),
        (
            "request-log",
            Content::Requests(vec![
                request(1, read_records(77, 5, true)),
                request(2, ClientBody::Tail { tail: 9, from: Offset(77), granted_bytes: 1 << 20 }),
                request(3, ClientBody::GrantTail { tail: 9, granted_bytes: 1 << 40 }),
                request(4, ClientBody::EndTail { tail: 9 }),
                request(5, ClientBody::Find { at: WallTime(1_700_000_000_000) }),
                request(6, ClientBody::Command(GroupCommand::Trim { before: Offset(7) })),
                request(7, ClientBody::Command(commit_cursor())),
                request(8, ClientBody::FetchCursor { name: cursor_name() }),
            ]),
        ),
        (
            "reply-log",
            Content::Replies(vec![
                reply(
                    1,
                    ReplyBody::Records {
                        from: Offset(40),
                        end: Offset(50),
                        batches: vec![batch],
                        is_last: false,
                    },
                ),
                reply(2, ReplyBody::Found { offset: Offset(7), end: Offset(9) }),
                reply(3, ReplyBody::CommandDone { offset: Some(Offset(7)), index: Index(8) }),
                reply(4, ReplyBody::CommandDone { offset: None, index: Index(8) }),
                reply(5, ReplyBody::Cursor(Some(Offset(7)))),
                reply(6, ReplyBody::Cursor(None)),
                reply(7, ReplyBody::Granted),
                reply(8, ReplyBody::Failed(RequestError::CursorsFull { cursors_max: 1024 })),
                reply(9, ReplyBody::Failed(RequestError::busy(BusyReason::Commands))),
                reply(10, ReplyBody::Failed(RequestError::BeforeStart { from: Offset(3), start: Offset(7) })),
                reply(11, trimmed_status(12)),
            ]),
        ),
        (
            "request-sessions",
            Content::Requests(vec![
                request(1, session_append(AnswerOn::Commit, 7)),
                request(2, session_append(AnswerOn::Apply, u64::MAX)),
                request(3, ClientBody::Outcome { session: SESSION, sequence: Sequence(8) }),
                request(4, ClientBody::Command(open_session())),
                request(
                    5,
                    ClientBody::Command(GroupCommand::CloseSession { session: SESSION, owner: Owner(0) }),
                ),
            ]),
        ),
        (
            "reply-sessions",
            Content::Replies(
                outcomes()
                    .into_iter()
                    .map(ReplyBody::Outcome)
                    .chain(session_failures().into_iter().map(ReplyBody::Failed))
                    .zip(1..)
                    .map(|(body, number)| reply(number, body))
                    .collect(),
            ),
        ),
        ("handshake-hello", Content::Handshake(Handshake::Hello(introduction()))),
        ("handshake-hello-placed", Content::Handshake(Handshake::Hello(placed_introduction()))),
        ("handshake-welcome", Content::Handshake(Handshake::Welcome(introduction()))),
        (
            "handshake-refused",
            Content::Handshake(Handshake::Refused {
                reason: Refusal::RolledBack { seen: BootEpoch(0x0102), offered: BootEpoch(0x0101) },
                text: "seen from 10.0.0.1 — see its log".to_owned(),
            }),
        ),
    ]
}

fn read_records(from: u64, records_max: u32, is_waiting: bool) -> ClientBody {
    ClientBody::ReadRecords { from: Offset(from), bytes_max: 1 << 20, records_max, is_waiting }
}

const SESSION: SessionId = SessionId(*b"a client session");

fn session_append(answer: AnswerOn, first: u64) -> ClientBody {
    ClientBody::Append { block: block(), answer, run: Some((SESSION, Sequence(first))) }
}

pub(crate) fn open_session() -> GroupCommand {
    GroupCommand::OpenSession { session: SESSION, owner: Owner(0), ttl_ms: 60_000 }
}

/// One outcome of each kind.
pub(crate) fn outcomes() -> Vec<RunOutcome> {
    vec![
        RunOutcome::Committed { offset: Offset(7), index: Index(8), term: Term(9) },
        RunOutcome::Pending,
        RunOutcome::NotThere { expected: Sequence(5) },
        RunOutcome::Forgotten,
    ]
}

/// One refusal of each kind.
pub(crate) fn session_failures() -> Vec<RequestError> {
    let refusals = [
        SessionRefusal::Unknown,
        SessionRefusal::OutOfOrder { expected: Sequence(5) },
        SessionRefusal::Forgotten { oldest: Sequence(6) },
        SessionRefusal::Overlap { first: Sequence(7), count: 8 },
        SessionRefusal::Full { sessions_max: 256 },
        SessionRefusal::OwnerFull { sessions_max: 16 },
        SessionRefusal::Ttl { ttl_ms_max: 1 << 40 },
        SessionRefusal::ResponseGone { first: Offset(9) },
    ];
    refusals.map(|refusal| RequestError::Session { refusal }).to_vec()
}

pub(crate) fn cursor_name() -> CursorName {
    CursorName::new("consumer").unwrap()
}

pub(crate) fn commit_cursor() -> GroupCommand {
    GroupCommand::CommitCursor { name: cursor_name(), offset: Offset(7) }
}

fn query(consistency: Consistency, may_forward: bool, query: &'static [u8]) -> ClientBody {
    ClientBody::Query { consistency, may_forward, query: Bytes::from_static(query) }
}

pub(crate) fn answer(applied: u64, commit: u64, heard: Option<Duration>, bytes: &'static [u8]) -> ReplyBody {
    let freshness = Freshness { applied: Index(applied), commit: Index(commit), heard };
    ReplyBody::Answer(Answer { freshness, bytes: Bytes::from_static(bytes) })
}

fn state_digest() -> StateDigest {
    StateDigest { machine: Some(SnapshotBody { bytes: 1 << 33, checksum: 2 }), table: 3 }
}

pub(crate) fn groups(numbers: &[u64]) -> Vec<GroupId> {
    numbers.iter().copied().map(GroupId).collect()
}

/// Every reason not to hand leadership over.
pub(crate) fn transfer_failures() -> Vec<RequestError> {
    let to = NodeId(3);
    let refusals = [
        TransferError::UnknownTarget { to },
        TransferError::NotVoter { to },
        TransferError::NotAlive { to },
        TransferError::NobodyAlive,
        TransferError::UnderWay { to },
        TransferError::TimedOut { to },
        TransferError::WonByAnother { leader: to, term: Term(9) },
    ];
    refusals.map(|refusal| RequestError::Transfer { refusal }).to_vec()
}
