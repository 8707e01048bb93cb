use bytes::Bytes;

use super::*;
use crate::batch::{RecordBlock, encode_batch};
use crate::ids::{GroupId, WallTime};
use crate::io::{ConfState, SNAPSHOT_CHUNK_BYTES, Snapshot, SnapshotBody, SnapshotHead};
use crate::snapshot_wire::{Ack, parse_offer, put_ack, put_chunk, put_offer};

/// A log of `terms`, each entry from index 1 on with one record; node 1, in term 5.
struct Log(Vec<u64>);

impl LogView for Log {
    fn term_at(&self, index: Index) -> Term {
        if index.0 == 0 { Term(0) } else { Term(self.0[index.0 as usize - 1]) }
    }

    fn offset_after(&self, index: Index) -> Offset {
        Offset(index.0)
    }
}

fn follower(log: &Log) -> GroupView<'_> {
    GroupView {
        start: Index(0),
        node: NodeId(1),
        now: Timestamp(1_000),
        term: Term(5),
        role: Role::Follower,
        leader: Some(NodeId(2)),
        commit: Index(2),
        last: Index(log.0.len() as u64),
        has_asked_for_votes: false,
        reads_waiting: 0,
        has_state_machine: true,
        log,
    }
}

fn log() -> Log {
    Log(vec![1, 1, 3, 4])
}

fn message(kind: MessageKind) -> PeerMessage {
    PeerMessage {
        kind,
        group: GroupId(1),
        from: NodeId(2),
        to: NodeId(1),
        term: Term(5),
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

fn entry(index: u64, term: u64, base: u64) -> LogEntry {
    let data = encode_batch(Offset(base), WallTime(1), [RecordBlock::from_records(&[b"r"])].iter());
    LogEntry { index: Index(index), term: Term(term), kind: EntryKind::Normal, data }
}

/// Continues the log after entry 4 with two batches.
fn append() -> PeerMessage {
    let entries = vec![entry(5, 4, 4), entry(6, 5, 5)];
    PeerMessage { index: Index(4), log_term: Term(4), entries, ..message(MessageKind::Append) }
}

fn refusal(view: &GroupView<'_>, message: PeerMessage) -> Refusal {
    check(view, &message).expect_err("it is wrong")
}

#[test]
fn what_an_honest_peer_says_passes() {
    let log = log();
    let view = follower(&log);
    let candidate =
        GroupView { role: Role::Candidate, leader: None, has_asked_for_votes: true, ..follower(&log) };
    let pre_candidate = GroupView { role: Role::PreCandidate, ..follower(&log) };
    let pre_candidate = GroupView { leader: None, has_asked_for_votes: true, ..pre_candidate };
    let leader = GroupView { role: Role::Leader, leader: Some(NodeId(1)), ..follower(&log) };
    let vote = PeerMessage { index: Index(4), log_term: Term(4), ..message(MessageKind::RequestVote) };
    let read = read_of(2);
    let cases = [
        (&view, append()),
        (&view, PeerMessage { term: Term(9), from: NodeId(77), ..append() }),
        (
            &view,
            PeerMessage { index: Index(40), log_term: Term(5), entries: vec![entry(41, 5, 99)], ..append() },
        ),
        (
            &view,
            PeerMessage { index: Index(2), log_term: Term(1), entries: vec![entry(3, 5, 2)], ..append() },
        ),
        (&view, PeerMessage { commit: Index(4), ..message(MessageKind::Heartbeat) }),
        (&view, PeerMessage { term: Term(3), commit: Index(40), ..message(MessageKind::Heartbeat) }),
        (&view, vote.clone()),
        (&view, PeerMessage { context: Bytes::from_static(CAMPAIGN_TRANSFER), ..vote.clone() }),
        (&view, PeerMessage { kind: MessageKind::RequestPreVote, term: Term(6), ..vote.clone() }),
        (&view, PeerMessage { index: Index(0), log_term: Term(0), ..vote }),
        (&view, message(MessageKind::TimeoutNow)),
        (&view, PeerMessage { term: Term(4), from: NodeId(3), ..message(MessageKind::TimeoutNow) }),
        (&candidate, message(MessageKind::RequestVoteResponse)),
        (
            &candidate,
            PeerMessage { reject: true, term: Term(8), ..message(MessageKind::RequestVoteResponse) },
        ),
        (&candidate, message(MessageKind::RequestPreVoteResponse)),
        (&pre_candidate, PeerMessage { term: Term(6), ..message(MessageKind::RequestPreVoteResponse) }),
        (&pre_candidate, PeerMessage { reject: true, ..message(MessageKind::RequestPreVoteResponse) }),
        (&leader, PeerMessage { index: Index(4), ..message(MessageKind::AppendResponse) }),
        (&leader, PeerMessage { term: Term(6), ..message(MessageKind::AppendResponse) }),
        (&leader, message(MessageKind::HeartbeatResponse)),
        (&leader, PeerMessage { context: stamped(1_000), ..message(MessageKind::HeartbeatResponse) }),
        // The clock of a leader of an older term may have been another.
        (&view, PeerMessage { context: stamped(2_000), ..message(MessageKind::HeartbeatResponse) }),
        (
            &leader,
            PeerMessage { term: Term(4), context: stamped(2_000), ..message(MessageKind::HeartbeatResponse) },
        ),
        (&leader, PeerMessage { term: Term(0), entries: vec![read], ..message(MessageKind::ReadIndex) }),
        (&view, PeerMessage { entries: vec![read_of(1)], ..message(MessageKind::ReadIndexResponse) }),
    ];
    for (view, message) in cases {
        assert_eq!(check(view, &message), Ok(()), "{message:?}");
    }
}

#[test]
fn an_envelope_that_cannot_be_is_refused() {
    let log = log();
    let view = follower(&log);
    let heartbeat = || message(MessageKind::Heartbeat);
    let from = |from| PeerMessage { from: NodeId(from), ..heartbeat() };
    assert_eq!(refusal(&view, from(0)), Refusal::Sender { from: NodeId(0) });
    assert_eq!(refusal(&view, from(1)), Refusal::Sender { from: NodeId(1) });
    assert_eq!(
        refusal(&view, PeerMessage { to: NodeId(3), ..heartbeat() }),
        Refusal::Receiver { to: NodeId(3) }
    );
    for kind in MessageKind::ALL {
        let has_none = matches!(kind, MessageKind::ReadIndex | MessageKind::Invite | MessageKind::MayLeave);
        let term = if has_none { Term(5) } else { Term(0) };
        assert_eq!(refusal(&view, PeerMessage { term, ..message(kind) }), Refusal::Term { kind, term });
    }
    let (kind, term) = (MessageKind::Heartbeat, Term(u64::MAX));
    assert_eq!(refusal(&view, PeerMessage { term, ..heartbeat() }), Refusal::Term { kind, term });
    let index = Index(u64::MAX);
    for message in [
        PeerMessage { index, log_term: Term(4), ..append() },
        PeerMessage { commit: index, ..heartbeat() },
        PeerMessage { reject_hint: index, ..heartbeat() },
    ] {
        assert_eq!(refusal(&view, message), Refusal::IndexRange { index });
    }
    let context = Bytes::from(vec![0; CONTEXT_BYTES_MAX + 1]);
    assert_eq!(refusal(&view, PeerMessage { context, ..heartbeat() }), Refusal::Context { bytes: 65 });
    let entries = vec![entry(1, 1, 0)];
    assert_eq!(refusal(&view, PeerMessage { entries, ..heartbeat() }), Refusal::Entries { kind, count: 1 });
    let request_snapshot = Index(1);
    assert_eq!(refusal(&view, PeerMessage { request_snapshot, ..heartbeat() }), Refusal::SnapshotRequest);
}

#[test]
fn a_second_leader_of_a_term_is_refused() {
    let log = log();
    let leader = GroupView { role: Role::Leader, leader: Some(NodeId(1)), ..follower(&log) };
    for message in [append(), message(MessageKind::Heartbeat)] {
        let second = PeerMessage { from: NodeId(3), ..message.clone() };
        let refused = Refusal::SecondLeader { from: NodeId(3), leader: NodeId(2), term: Term(5) };
        assert_eq!(refusal(&follower(&log), second), refused);
        let refused = Refusal::SecondLeader { from: NodeId(2), leader: NodeId(1), term: Term(5) };
        assert_eq!(refusal(&leader, message), refused);
    }
}

#[test]
fn an_append_that_does_not_hold_together_is_refused() {
    let log = log();
    let view = follower(&log);
    let at = |index, log_term| PeerMessage { index: Index(index), log_term: Term(log_term), ..append() };
    let log_term =
        |index, log_term| Refusal::LogTerm { index: Index(index), log_term: Term(log_term), term: Term(5) };
    // The trap: raft-rs takes term 0 beyond its log for a match.
    assert_eq!(refusal(&view, at(9, 0)), log_term(9, 0));
    assert_eq!(refusal(&view, at(0, 1)), log_term(0, 1));
    assert_eq!(refusal(&view, at(4, 6)), log_term(4, 6));
    let with = |entries| PeerMessage { entries, ..append() };
    let gap = |index, expected| Refusal::Gap { index: Index(index), expected: Index(expected) };
    assert_eq!(refusal(&view, with(vec![entry(6, 4, 4)])), gap(6, 5));
    assert_eq!(refusal(&view, with(vec![entry(5, 4, 4), entry(5, 4, 5)])), gap(5, 6));
    let term = |index, term| Refusal::EntryTerm { index: Index(index), term: Term(term) };
    assert_eq!(refusal(&view, with(vec![entry(5, 3, 4)])), term(5, 3));
    assert_eq!(refusal(&view, with(vec![entry(5, 5, 4), entry(6, 4, 5)])), term(6, 4));
    assert_eq!(refusal(&view, with(vec![entry(5, 6, 4)])), term(5, 6));
    let first = PeerMessage { index: Index(0), log_term: Term(0), entries: vec![entry(1, 0, 0)], ..append() };
    assert_eq!(refusal(&view, first), term(1, 0));
    for kind in [EntryKind::ConfChange, EntryKind::ConfChangeV2] {
        let change = LogEntry { kind, ..entry(5, 5, 4) };
        assert_eq!(refusal(&view, with(vec![change])), Refusal::Membership { index: Index(5) });
    }
}

#[test]
fn an_append_against_what_is_committed_is_refused() {
    let log = log();
    let view = follower(&log);
    let refused = Refusal::ConflictsWithCommitted { index: Index(2), term: Term(2), ours: Term(1) };
    let anchor = PeerMessage { index: Index(2), log_term: Term(2), entries: Vec::new(), ..append() };
    assert_eq!(refusal(&view, anchor), refused);
    let entries = vec![entry(2, 2, 1), entry(3, 3, 2)];
    let overwriting = PeerMessage { index: Index(1), log_term: Term(1), entries, ..append() };
    assert_eq!(refusal(&view, overwriting), refused);
}

#[test]
fn batches_that_do_not_continue_the_offsets_are_refused() {
    let log = log();
    let view = follower(&log);
    let with = |entries| PeerMessage { entries, ..append() };
    let offset = |index, base, expected| Refusal::BaseOffset {
        index: Index(index),
        base: Offset(base),
        expected: Offset(expected),
    };
    assert_eq!(refusal(&view, with(vec![entry(5, 5, 3)])), offset(5, 3, 4));
    assert_eq!(refusal(&view, with(vec![entry(5, 5, 4), entry(6, 5, 6)])), offset(6, 6, 5));
    assert_eq!(refusal(&view, with(vec![entry(5, 5, u64::MAX - 1)])), offset(5, u64::MAX - 1, 4));
    let error = BatchError::Offsets { base: Offset(u64::MAX), count: 1 };
    let beyond = with(vec![entry(5, 5, u64::MAX)]);
    assert_eq!(refusal(&view, beyond), Refusal::Batch { index: Index(5), error });
    // Where the log before it is unknown, a message must still agree with itself.
    let far = |base| {
        let entries = vec![entry(41, 5, 7), entry(42, 5, base)];
        PeerMessage { index: Index(40), log_term: Term(5), entries, ..append() }
    };
    assert_eq!(check(&view, &far(8)), Ok(()));
    assert_eq!(refusal(&view, far(9)), offset(42, 9, 8));
    // An entry that is ours by index and term is kept, whatever this one holds.
    let two = encode_batch(Offset(2), WallTime(1), [RecordBlock::from_records(&[b"a", b"b"])].iter());
    for data in [two, Bytes::new()] {
        let entries = vec![LogEntry { data, ..entry(3, 3, 2) }];
        let other = PeerMessage { index: Index(2), log_term: Term(1), entries, ..append() };
        assert_eq!(refusal(&view, other), Refusal::SameTermOtherData { index: Index(3), term: Term(3) });
    }
    let cut = LogEntry { data: entry(5, 5, 4).data.slice(..36), ..entry(5, 5, 4) };
    let error = BatchError::Short { bytes: 36, expected: 37 };
    assert_eq!(refusal(&view, with(vec![cut])), Refusal::Batch { index: Index(5), error });
}

#[test]
fn commits_and_matches_beyond_the_log_are_refused() {
    let log = log();
    let heartbeat = PeerMessage { commit: Index(5), ..message(MessageKind::Heartbeat) };
    let refused = Refusal::CommitBeyondLast { commit: Index(5), last: Index(4) };
    assert_eq!(refusal(&follower(&log), heartbeat), refused);
    let leader = GroupView { role: Role::Leader, leader: Some(NodeId(1)), ..follower(&log) };
    let response = PeerMessage { index: Index(5), ..message(MessageKind::AppendResponse) };
    assert_eq!(refusal(&leader, response), Refusal::MatchBeyondLast { index: Index(5), last: Index(4) });
}

#[test]
fn vote_requests_that_cannot_be_are_refused() {
    let log = log();
    let view = follower(&log);
    for kind in [MessageKind::RequestVote, MessageKind::RequestPreVote] {
        let request = || PeerMessage { index: Index(4), log_term: Term(4), ..message(kind) };
        let term = Term(4);
        let refused =
            |index, log_term| Refusal::LogTerm { index: Index(index), log_term: Term(log_term), term };
        assert_eq!(refusal(&view, PeerMessage { log_term: Term(5), ..request() }), refused(4, 5));
        assert_eq!(refusal(&view, PeerMessage { log_term: Term(0), ..request() }), refused(4, 0));
        assert_eq!(refusal(&view, PeerMessage { index: Index(0), ..request() }), refused(0, 4));
        let context = Bytes::from_static(b"please");
        assert_eq!(refusal(&view, PeerMessage { context, ..request() }), Refusal::VoteContext { kind });
        assert_eq!(
            refusal(&view, PeerMessage { priority: -1, ..request() }),
            Refusal::Priority { priority: -1 }
        );
        for (commit, commit_term) in [(5, 1), (3, 5)] {
            let (commit, commit_term) = (Index(commit), Term(commit_term));
            let refused = Refusal::CommitInfo { commit, commit_term };
            assert_eq!(refusal(&view, PeerMessage { commit, commit_term, ..request() }), refused);
        }
    }
}

#[test]
fn votes_that_nobody_asked_for_are_refused() {
    let log = log();
    let candidate =
        |role, has_asked_for_votes| GroupView { role, leader: None, has_asked_for_votes, ..follower(&log) };
    let vote = |kind, term| PeerMessage { term: Term(term), ..message(kind) };
    let refused = |term| Refusal::UnaskedVote { term: Term(term) };
    let (plain, pre) = (MessageKind::RequestVoteResponse, MessageKind::RequestPreVoteResponse);
    // Our request is not durable yet, so nobody can have seen it.
    assert_eq!(refusal(&candidate(Role::Candidate, false), vote(plain, 5)), refused(5));
    assert_eq!(refusal(&candidate(Role::PreCandidate, false), vote(pre, 6)), refused(6));
    // For another term than we campaign in.
    assert_eq!(refusal(&candidate(Role::Candidate, true), vote(plain, 6)), refused(6));
    assert_eq!(refusal(&candidate(Role::PreCandidate, true), vote(pre, 5)), refused(5));
    assert_eq!(refusal(&candidate(Role::PreCandidate, true), vote(pre, 7)), refused(7));
    let commit_term = Term(6);
    let lying = PeerMessage { commit_term, reject: true, ..vote(plain, 5) };
    let refused = Refusal::CommitInfo { commit: Index(0), commit_term };
    assert_eq!(refusal(&candidate(Role::Candidate, true), lying), refused);
}

#[test]
fn only_the_leader_may_ask_for_a_campaign() {
    let log = log();
    let view = follower(&log);
    let ask =
        |from, term| PeerMessage { from: NodeId(from), term: Term(term), ..message(MessageKind::TimeoutNow) };
    assert_eq!(refusal(&view, ask(3, 5)), Refusal::CampaignNotFromLeader);
    assert_eq!(refusal(&view, ask(2, 6)), Refusal::CampaignNotFromLeader);
}

#[test]
fn reads_are_forwarded_only_under_the_senders_name() {
    let log = log();
    let leader = |reads_waiting| GroupView { role: Role::Leader, reads_waiting, ..follower(&log) };
    let read = |entries| PeerMessage { term: Term(0), entries, ..message(MessageKind::ReadIndex) };
    let kind = MessageKind::ReadIndex;
    assert_eq!(refusal(&leader(0), read(vec![])), Refusal::Entries { kind, count: 0 });
    assert_eq!(refusal(&leader(0), read(vec![read_of(2), read_of(2)])), Refusal::Entries { kind, count: 2 });
    assert_eq!(refusal(&leader(0), read(vec![read_of(1)])), Refusal::ReadContext);
    // A stamp in front of it must be told from it by its length.
    for bytes in [0, 5, ROUND_BYTES - 1, ROUND_BYTES + 1, CONTEXT_BYTES_MAX] {
        let data = [&2_u64.to_le_bytes()[..], &[0; CONTEXT_BYTES_MAX]].concat();
        let other = LogEntry { data: Bytes::from(data).slice(..bytes), ..read_of(2) };
        assert_eq!(refusal(&leader(0), read(vec![other])), Refusal::ReadContext);
    }
    assert_eq!(refusal(&leader(FORWARDED_READS_MAX), read(vec![read_of(2)])), Refusal::ReadsFull);
}

#[test]
fn forwarded_reads_are_answered_by_the_leader_and_to_whom_they_belong() {
    let log = log();
    let view = follower(&log);
    let answer = |entries| PeerMessage { entries, ..message(MessageKind::ReadIndexResponse) };
    let kind = MessageKind::ReadIndexResponse;
    assert_eq!(refusal(&view, answer(vec![])), Refusal::Entries { kind, count: 0 });
    assert_eq!(refusal(&view, answer(vec![read_of(2)])), Refusal::UnaskedRead);
    let second = Refusal::SecondLeader { from: NodeId(3), leader: NodeId(2), term: Term(5) };
    assert_eq!(refusal(&view, PeerMessage { from: NodeId(3), ..answer(vec![read_of(1)]) }), second);
    let term = Term(0);
    assert_eq!(
        refusal(&view, PeerMessage { term, ..answer(vec![read_of(1)]) }),
        Refusal::Term { kind, term }
    );
}

#[test]
fn a_heartbeat_that_was_not_sent_yet_has_no_answer() {
    let log = log();
    let leader = GroupView { role: Role::Leader, leader: Some(NodeId(1)), ..follower(&log) };
    let answer = PeerMessage { context: stamped(1_001), ..message(MessageKind::HeartbeatResponse) };
    assert_eq!(refusal(&leader, answer), Refusal::Stamp { sent: Timestamp(1_001) });
}

/// An entry as a forwarded read of this node has it.
fn read_of(node: u64) -> LogEntry {
    let mut data = node.to_le_bytes().to_vec();
    data.resize(ROUND_BYTES, 9);
    LogEntry { data: data.into(), ..entry(0, 0, 0) }
}

fn stamped(sent: u64) -> Bytes {
    Stamp { sent: Timestamp(sent), promise: std::time::Duration::from_millis(500) }.put_before(&[])
}

fn snapshot() -> Snapshot {
    let conf_state = ConfState { voters: vec![NodeId(1), NodeId(2)], ..ConfState::default() };
    let head = SnapshotHead {
        index: Index(9),
        term: Term(4),
        offset: Offset(7),
        conf_state,
        table: Default::default(),
    };
    Snapshot { head, body: SnapshotBody { bytes: 300_000, checksum: 5 } }
}

fn offer(change: impl FnOnce(&mut Snapshot)) -> PeerMessage {
    let mut snapshot = snapshot();
    change(&mut snapshot);
    let mut message = message(MessageKind::Snapshot);
    put_offer(&mut message, &snapshot);
    message
}

#[test]
fn an_offer_is_read_as_it_was_written() {
    let log = log();
    let view = follower(&log);
    let offered = offer(|_| {});
    assert_eq!(check(&view, &offered), Ok(()));
    assert_eq!(parse_offer(&offered), Some(snapshot()));
    let bodiless = GroupView { has_state_machine: false, ..follower(&log) };
    assert_eq!(check(&bodiless, &offer(|snapshot| snapshot.body.bytes = 0)), Ok(()));
}

#[test]
fn offers_of_what_cannot_be_are_refused() {
    let log = log();
    let view = follower(&log);
    let malformed = Refusal::Snapshot { index: Index(9) };
    let members = |voters: &[u64], learners: &[u64]| {
        let nodes = |ids: &[u64]| ids.iter().copied().map(NodeId).collect();
        let conf_state =
            ConfState { voters: nodes(voters), learners: nodes(learners), ..ConfState::default() };
        offer(|snapshot| snapshot.head.conf_state = conf_state)
    };
    for wrong in [
        members(&[], &[1]),
        members(&[0, 1], &[]),
        members(&[2, 1], &[]),
        members(&[1, 2], &[2]),
        members(&(1..=257).collect::<Vec<u64>>(), &[]),
        offer(|snapshot| snapshot.body.bytes = u64::MAX),
        offer(|snapshot| snapshot.head.offset = Offset(u64::MAX)),
        PeerMessage { context: Bytes::new(), ..offer(|_| {}) },
        PeerMessage { entries: Vec::new(), ..offer(|_| {}) },
    ] {
        assert_eq!(refusal(&view, wrong), malformed);
    }
    let bodiless = GroupView { has_state_machine: false, ..follower(&log) };
    assert_eq!(refusal(&bodiless, offer(|_| {})), malformed);
    let old = offer(|snapshot| snapshot.head.term = Term(6));
    assert!(matches!(refusal(&view, old), Refusal::LogTerm { .. }));
    let other = offer(|snapshot| snapshot.head.index = Index(2));
    assert!(matches!(refusal(&view, other), Refusal::ConflictsWithCommitted { .. }));
    let stranger = PeerMessage { from: NodeId(3), ..offer(|_| {}) };
    assert!(matches!(refusal(&view, stranger), Refusal::SecondLeader { .. }));
}

#[test]
fn a_chunk_has_its_digest() {
    let log = log();
    let view = follower(&log);
    let mut chunk = message(MessageKind::SnapshotChunk);
    put_chunk(&mut chunk, &snapshot(), 1, Bytes::from_static(b"the rest"));
    assert_eq!(check(&view, &chunk), Ok(()));
    chunk.entries[0].data = Bytes::from_static(b"the best");
    assert_eq!(refusal(&view, chunk.clone()), Refusal::SnapshotDigest { index: Index(9), chunk: 1 });
    put_chunk(&mut chunk, &snapshot(), 1, vec![0; SNAPSHOT_CHUNK_BYTES + 1].into());
    assert_eq!(refusal(&view, chunk), Refusal::Snapshot { index: Index(9) });
    let mut ack = message(MessageKind::SnapshotAck);
    put_ack(&mut ack, (Index(9), Term(4)), Ack { chunks: 1, body_checksum: 5 });
    assert_eq!(check(&view, &ack), Ok(()));
    ack.context = Bytes::from_static(b"1234567");
    assert_eq!(refusal(&view, ack), Refusal::Snapshot { index: Index(9) });
}
