//! What goes in comes out, for any content.

use std::time::Duration;

use bytes::Bytes;
use iroh_raft_core::batch::RecordBlock;
use iroh_raft_core::{
    AnswerOn, BootEpoch, CONTEXT_BYTES_MAX, ClusterId, Consistency, DigestState, EntryKind, Freshness,
    GroupCommand, GroupId, Index, LogEntry, MessageKind, NodeId, Offset, PeerMessage, Placement, Sequence,
    SessionId, ShardId, SnapshotBody, StateDigest, Term, WallTime,
};
use iroh_raft_netbridge::wire::handshake::{Handshake, Introduction, TEXT_BYTES_MAX};
use iroh_raft_netbridge::wire::{
    Answer, ClientBody, ClientReply, ClientRequest, GROUPS_LISTED_MAX, HandedOver, Lane, PeerFrameBuilder,
    ReplyBody, ReplyFrameBuilder, RequestFrameBuilder, Stages,
};
use proptest::collection::vec;
use proptest::prelude::*;

use crate::samples::{
    Content, changes, commit_cursor, cursor_name, decode, encode, entry as entry_of, failures, heartbeat,
    joined, members, message as message_of, open_session, outcomes, recover, refusals, roles, samples,
    session_failures, status, transfer_failures,
};

/// Empty, short, and on both sides of what is copied.
fn payload() -> impl Strategy<Value = Bytes> {
    let length = prop_oneof![Just(0..1), Just(1..200), Just(1000..1050), Just(3000..5000)];
    length.prop_flat_map(|length| vec(any::<u8>(), length)).prop_map(Bytes::from)
}

fn block() -> impl Strategy<Value = RecordBlock> {
    vec(payload(), 1..6).prop_map(|records| RecordBlock::from_records(&records))
}

/// Zero often enough that messages without a detail occur.
fn number() -> impl Strategy<Value = u64> {
    prop_oneof![3 => Just(0), 1 => any::<u64>()]
}

fn entry() -> impl Strategy<Value = LogEntry> {
    let kind = prop::sample::select(vec![EntryKind::Normal, EntryKind::ConfChange, EntryKind::ConfChangeV2]);
    (number(), number(), kind, payload()).prop_map(|(index, term, kind, data)| LogEntry {
        index: Index(index),
        term: Term(term),
        kind,
        data,
    })
}

fn message(lane: Lane) -> impl Strategy<Value = PeerMessage> {
    let kinds: Vec<_> = MessageKind::ALL.into_iter().filter(|kind| Lane::of(*kind) == lane).collect();
    let numbers = prop::array::uniform9(number());
    let rest = (any::<bool>(), prop_oneof![Just(0), any::<i64>()], vec(entry(), 0..4));
    let context = vec(any::<u8>(), 0..=CONTEXT_BYTES_MAX);
    (prop::sample::select(kinds), numbers, rest, context).prop_map(
        |(kind, numbers, (reject, priority, entries), context)| {
            let [group, term, log_term, index, commit, commit_term, reject_hint, request_snapshot, _] =
                numbers;
            PeerMessage {
                kind,
                group: GroupId(group),
                from: NodeId(1),
                to: NodeId(2),
                term: Term(term),
                log_term: Term(log_term),
                index: Index(index),
                commit: Index(commit),
                commit_term: Term(commit_term),
                reject,
                reject_hint: Index(reject_hint),
                request_snapshot: Index(request_snapshot),
                priority,
                context: context.into(),
                entries,
            }
        },
    )
}

fn consistency() -> impl Strategy<Value = Consistency> {
    prop_oneof![Just(Consistency::Local), Just(Consistency::Lease), Just(Consistency::Linearizable)]
}

fn digest() -> impl Strategy<Value = StateDigest> {
    (prop::option::of((any::<u64>(), any::<u32>())), any::<u32>()).prop_map(|(body, table)| {
        let machine = body.map(|(bytes, checksum)| SnapshotBody { bytes, checksum });
        StateDigest { machine, table }
    })
}

fn digest_state() -> impl Strategy<Value = DigestState> {
    prop_oneof![
        digest().prop_map(DigestState::Known),
        Just(DigestState::Pending),
        Just(DigestState::Missed),
        Just(DigestState::Unknown),
    ]
}

fn stages() -> impl Strategy<Value = Stages> {
    let flush_us = prop::option::of(0..u32::MAX);
    (any::<u32>(), any::<u32>(), any::<u32>(), flush_us)
        .prop_map(|(ring_us, turn_us, commit_us, flush_us)| Stages { ring_us, turn_us, commit_us, flush_us })
}

fn request() -> impl Strategy<Value = ClientRequest> {
    let answer = prop_oneof![Just(AnswerOn::Commit), Just(AnswerOn::Apply)];
    let body = prop_oneof![
        (block(), answer, prop::option::of((any::<[u8; 16]>(), any::<u64>()))).prop_map(
            |(block, answer, run)| {
                let run = run.map(|(session, first)| (SessionId(session), Sequence(first)));
                ClientBody::Append { block, answer, run }
            }
        ),
        block().prop_map(|block| ClientBody::TimedAppend { block }),
        (any::<[u8; 16]>(), any::<u64>()).prop_map(|(session, sequence)| ClientBody::Outcome {
            session: SessionId(session),
            sequence: Sequence(sequence),
        }),
        Just(ClientBody::Command(open_session())),
        (consistency(), any::<bool>(), payload()).prop_map(|(consistency, may_forward, query)| {
            let may_forward = may_forward && consistency != Consistency::Local;
            ClientBody::Query { consistency, may_forward, query }
        }),
        (any::<u64>(), any::<u32>(), 1..=u32::MAX, any::<bool>()).prop_map(
            |(from, bytes_max, records_max, is_waiting)| {
                ClientBody::ReadRecords { from: Offset(from), bytes_max, records_max, is_waiting }
            }
        ),
        (any::<u64>(), any::<u64>(), any::<u32>()).prop_map(|(tail, from, granted_bytes)| {
            ClientBody::Tail { tail, from: Offset(from), granted_bytes }
        }),
        (any::<u64>(), any::<u64>())
            .prop_map(|(tail, granted_bytes)| ClientBody::GrantTail { tail, granted_bytes }),
        any::<u64>().prop_map(|tail| ClientBody::EndTail { tail }),
        any::<u64>().prop_map(|at| ClientBody::Find { at: WallTime(at) }),
        Just(ClientBody::Command(commit_cursor())),
        any::<u64>().prop_map(|at| ClientBody::Command(GroupCommand::Trim { before: Offset(at) })),
        Just(ClientBody::FetchCursor { name: cursor_name() }),
        Just(ClientBody::Status),
        Just(ClientBody::Clock),
        (any::<u64>(), 1..=GROUPS_LISTED_MAX)
            .prop_map(|(after, groups_max)| ClientBody::ListGroups { after: GroupId(after), groups_max }),
        prop::option::of(1..=u64::MAX).prop_map(|to| ClientBody::TransferLeader { to: to.map(NodeId) }),
        Just(ClientBody::ChangeMembers { changes: changes() }),
        vec(any::<u64>().prop_map(NodeId), 0..5).prop_map(|voters| ClientBody::CreateGroup { voters }),
        Just(ClientBody::RemoveGroup),
        Just(ClientBody::Revive),
        Just(ClientBody::Command(GroupCommand::Compare)),
        (any::<u64>(), prop::option::of(digest()))
            .prop_map(|(index, expected)| ClientBody::StateDigest { index: Index(index), expected }),
        Just(recover(&[1, 2, 3])),
    ];
    (any::<u64>(), any::<u64>(), any::<u32>(), body).prop_map(|(request, group, deadline_ms, body)| {
        ClientRequest { request, group: GroupId(group), deadline_ms, body }
    })
}

fn reply() -> impl Strategy<Value = ClientReply> {
    let number = any::<u64>;
    let body = prop_oneof![
        (number(), any::<u32>(), number(), number()).prop_map(|(first, count, index, term)| {
            ReplyBody::Appended { first: Offset(first), count, index: Index(index), term: Term(term) }
        }),
        (number(), any::<u32>(), number(), number(), stages()).prop_map(
            |(first, count, index, term, stages)| {
                let (first, index, term) = (Offset(first), Index(index), Term(term));
                ReplyBody::TimedAppended { first, count, index, term, stages }
            }
        ),
        (number(), number(), number(), block()).prop_map(|(first, index, term, responses)| {
            ReplyBody::Responses { first: Offset(first), index: Index(index), term: Term(term), responses }
        }),
        (number(), number(), prop::option::of(any::<u32>()), payload()).prop_map(
            |(applied, commit, heard, bytes)| {
                let heard = heard.map(|micros| Duration::from_micros(micros.into()));
                let freshness = Freshness { applied: Index(applied), commit: Index(commit), heard };
                ReplyBody::Answer(Answer { freshness, bytes })
            }
        ),
        (number(), number(), vec(payload(), 0..4), any::<bool>()).prop_map(
            |(from, end, batches, is_last)| {
                ReplyBody::Records { from: Offset(from), end: Offset(end), batches, is_last }
            }
        ),
        (number(), number())
            .prop_map(|(offset, end)| ReplyBody::Found { offset: Offset(offset), end: Offset(end) }),
        (prop::option::of(any::<u32>()), number()).prop_map(|(offset, index)| {
            let offset = offset.map(|offset| Offset(offset.into()));
            ReplyBody::CommandDone { offset, index: Index(index) }
        }),
        prop::option::of(any::<u32>())
            .prop_map(|offset| ReplyBody::Cursor(offset.map(|offset| Offset(offset.into())))),
        Just(ReplyBody::Granted),
        (any::<u64>(), digest_state())
            .prop_map(|(index, state)| ReplyBody::StateDigest { index: Index(index), state }),
        prop::sample::select(outcomes()).prop_map(ReplyBody::Outcome),
        prop::sample::select(session_failures()).prop_map(ReplyBody::Failed),
        prop::sample::select(roles().to_vec()).prop_map(|role| status(5, role)),
        number().prop_map(|index| ReplyBody::MembersChanged { index: Index(index), members: members() }),
        Just(ReplyBody::Done),
        (prop::collection::btree_set(number(), 0..9), any::<bool>(), 1..=u16::MAX).prop_map(
            |(groups, is_more, shard_count)| {
                let groups = groups.into_iter().map(GroupId).collect();
                ReplyBody::Groups { groups, is_more, shard_count }
            }
        ),
        (prop::option::of(1..=u64::MAX), number()).prop_map(|(leader, term)| {
            ReplyBody::HandedOver(HandedOver { leader: leader.map(NodeId), term: Term(term) })
        }),
        any::<u64>().prop_map(|ms| ReplyBody::Clock(WallTime(ms))),
        prop::sample::select(transfer_failures()).prop_map(ReplyBody::Failed),
        prop::sample::select(failures()).prop_map(ReplyBody::Failed),
    ];
    (number(), body).prop_map(|(request, body)| ClientReply { request, group: GroupId(5), body })
}

fn placement() -> impl Strategy<Value = Option<Placement>> {
    let placed = prop::collection::btree_map(1_u64.., any::<u16>(), 0..20);
    (any::<u16>(), placed).prop_map(|(shards, placed)| {
        let shard = |shard: u16| ShardId(shard.checked_rem(shards).unwrap_or(0));
        let placed = placed.into_iter().map(|(group, at)| (GroupId(group), shard(at))).collect();
        Placement::new(shards, placed).ok()
    })
}

fn handshake() -> impl Strategy<Value = Handshake> {
    let fields = (any::<(u16, [u8; 16], u64, u64)>(), any::<([u8; 16], u64)>(), placement().boxed());
    let introduction =
        fields.prop_map(|((protocol, cluster, node, epoch), (boot_id, fingerprint), placement)| {
            Introduction {
                protocol,
                cluster: ClusterId(cluster),
                node: NodeId(node),
                boot_epoch: BootEpoch(epoch),
                boot_id,
                fingerprint,
                placement,
            }
        });
    let text = "\\PC{0,100}";
    prop_oneof![
        introduction.clone().prop_map(Handshake::Hello),
        introduction.prop_map(Handshake::Welcome),
        (prop::sample::select(refusals()), text)
            .prop_map(|(reason, text)| Handshake::Refused { reason, text }),
    ]
}

pub(crate) fn content() -> impl Strategy<Value = Content> {
    let peer = prop::sample::select(Lane::ALL.to_vec()).prop_flat_map(|lane| {
        vec(message(lane), 0..6).prop_map(move |messages| Content::Peer(lane, messages))
    });
    prop_oneof![
        3 => peer,
        2 => vec(request(), 0..6).prop_map(Content::Requests),
        2 => vec(reply(), 0..6).prop_map(Content::Replies),
        1 => handshake().prop_map(Content::Handshake),
    ]
}

proptest! {
    #[test]
    fn any_content_comes_back(content in content()) {
        prop_assert_eq!(decode(&joined(&encode(&content))), Ok(content));
    }
}

#[test]
fn every_sample_comes_back() {
    for (name, content) in samples() {
        assert_eq!(decode(&joined(&encode(&content))), Ok(content), "{name}");
    }
}

#[test]
fn samples_cover_every_kind_of_message() {
    let samples = samples();
    let kinds: Vec<_> = samples
        .iter()
        .flat_map(|(_, content)| match content {
            Content::Peer(_, messages) => messages.iter().map(|message| message.kind).collect(),
            _ => Vec::new(),
        })
        .collect();
    assert!(MessageKind::ALL.iter().all(|kind| kinds.contains(kind)));
}

#[test]
fn a_builder_that_was_used_before_builds_the_same_frame() {
    let mut peer = PeerFrameBuilder::default();
    let mut request = RequestFrameBuilder::default();
    let mut reply = ReplyFrameBuilder::default();
    let shard = ShardId(0x0102);
    for _ in 0..2 {
        for (name, content) in samples() {
            let frame = match &content {
                Content::Peer(lane, messages) => {
                    messages.iter().for_each(|message| peer.push(message.clone()));
                    assert_eq!(peer.len(), messages.len());
                    peer.finish(*lane, ShardId(3), shard)
                }
                Content::Requests(requests) => {
                    requests.iter().for_each(|one| request.push(one));
                    assert_eq!(request.len(), requests.len());
                    request.finish(shard)
                }
                Content::Replies(replies) => {
                    replies.iter().for_each(|one| reply.push(one.clone()));
                    assert_eq!(reply.len(), replies.len());
                    reply.finish(ShardId(3))
                }
                Content::Handshake(_) => continue,
            };
            assert_eq!(joined(&frame), joined(&encode(&content)), "{name}");
        }
        assert!(peer.is_empty() && request.is_empty() && reply.is_empty());
    }
}

#[test]
fn large_pieces_are_referenced_and_small_ones_travel_together() {
    let large = Bytes::from(vec![1; 100_000]);
    let mut message = message_of(MessageKind::Append, 7);
    let small = Bytes::from_static(b"small");
    let pieces = [&small, &large, &small, &small, &large, &large, &small];
    message.entries = pieces
        .into_iter()
        .zip(1..)
        .map(|(data, index)| entry_of(index, EntryKind::Normal, data.clone()))
        .collect();
    let content = Content::Peer(Lane::Append, vec![message]);
    let frame = encode(&content);
    let lengths: Vec<_> = frame.chunks.iter().map(Bytes::len).collect();
    assert_eq!(lengths[1..], [100_000, 10, 100_000, 100_000, 5]);
    assert_eq!(frame.chunks[1].as_ptr(), large.as_ptr());
    assert_eq!(decode(&joined(&frame)), Ok(content));
}

#[test]
fn a_heartbeat_takes_40_bytes() {
    let frame = |count: u64| {
        let heartbeats = (1..=count).map(heartbeat).collect();
        encode(&Content::Peer(Lane::Heartbeat, heartbeats)).bytes()
    };
    assert_eq!(frame(10_000) - frame(0), 400_000);
}

#[test]
fn the_text_of_a_refusal_is_bounded_and_printable() {
    let long = "ä".repeat(600);
    let refused = Handshake::Refused { reason: refusals()[0], text: format!("line\nof {long}") };
    let Ok(Content::Handshake(Handshake::Refused { text, .. })) =
        decode(&joined(&encode(&Content::Handshake(refused))))
    else {
        panic!("a refusal comes back as one");
    };
    assert!(text.starts_with("lineof ä") && text.len() <= TEXT_BYTES_MAX && text.len() > TEXT_BYTES_MAX - 2);
}
