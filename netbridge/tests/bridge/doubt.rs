//! What may have been done is never called undone, is not done twice, and leaves no room for something else.

use std::time::Duration;

use bytes::Bytes;
use iroh_raft_core::batch::{RecordBlock, encode_batch};
use iroh_raft_core::{
    BusyReason, Consistency, CursorName, DigestState, GroupCommand, GroupId, Index, NodeId, Offset,
    RequestError, Sequence, SessionRefusal, StateDigest, Term, WallTime,
};
use iroh_raft_netbridge::bridge::BridgeLimits;
use iroh_raft_netbridge::client::{Client, ClientError, ClientLimits, Session, SessionDone, TailOptions};
use iroh_raft_netbridge::identity::Identity;
use iroh_raft_netbridge::port::ToShard;
use iroh_raft_netbridge::wire::{ClientBody, ClientRequest, FrameLimits, ReplyBody};

use crate::client::{
    GROUP, Setting, answer, appended, collect_requests, failed, next_requests, setting, setting_with, status,
};
use crate::harness::{Member, Shard, TestNode, connect, node_for_client, runtime, until};

const TTL: Duration = Duration::from_secs(60);

fn next(shard: &Shard) -> (u64, ClientRequest) {
    let (connection, mut requests) = collect_requests(shard, 1);
    (connection, requests.remove(0))
}

fn command_done() -> ReplyBody {
    ReplyBody::CommandDone { offset: None, index: Index(7) }
}

fn session_of(setting: &Setting, client: &Client) -> Session {
    let client = client.clone();
    let call = setting.runtime.spawn(async move { client.open_session(GROUP, TTL).await });
    let (connection, request) = next(setting.node.shard());
    assert!(matches!(request.body, ClientBody::Command(GroupCommand::OpenSession { .. })), "{request:?}");
    answer(setting.node.shard(), connection, [(request, command_done())]);
    setting.runtime.block_on(call).unwrap().unwrap()
}

/// Appends in a session, while the test plays the shard.
fn append(
    setting: &Setting,
    mut session: Session,
    record: &'static str,
    play: impl FnOnce(&Shard),
) -> (Session, Result<Offset, ClientError>) {
    let call = setting.runtime.spawn(async move {
        let result = session.append(&[record]).await;
        (session, result.map(|appended| appended.offset))
    });
    play(setting.node.shard());
    setting.runtime.block_on(call).unwrap()
}

/// Fails the next request. Returns it.
fn fail_next(shard: &Shard, error: RequestError) -> ClientRequest {
    let (connection, request) = next(shard);
    answer(shard, connection, [(request.clone(), failed(error))]);
    request
}

const UNKNOWN: RequestError = RequestError::OutcomeUnknown { leader: None };

#[test]
fn an_append_of_a_session_that_may_be_in_the_log_keeps_its_sequence() {
    for refusal in
        [RequestError::UnknownGroup, RequestError::TooLarge { bytes: 9, bytes_max: 8 }, RequestError::Denied]
    {
        let setting = setting();
        let session = session_of(&setting, &setting.client);
        let mut first = None;
        let (mut session, result) = append(&setting, session, "order 1", |shard| {
            first = Some(fail_next(shard, UNKNOWN).body);
            let again = fail_next(shard, refusal.clone()).body;
            assert_eq!(Some(again), first);
        });
        assert_eq!(result, Err(ClientError::Request(refusal)));
        assert_eq!((session.is_over(), session.next()), (true, Sequence(0)));
        assert_eq!(setting.runtime.block_on(session.append(&["order 2"])), Err(ClientError::Over));

        // It may still turn out that it is there, and then the session goes on.
        let call = setting.runtime.spawn(async move {
            let done = session.resume().await;
            (session, done)
        });
        let (connection, request) = next(setting.node.shard());
        assert_eq!(Some(&request.body), first.as_ref());
        let body = appended(5, &request);
        answer(setting.node.shard(), connection, [(request, body)]);
        let (session, done) = setting.runtime.block_on(call).unwrap();
        assert!(matches!(&done, Ok(Some(SessionDone::Appended(at))) if at.offset == Offset(5)), "{done:?}");
        assert_eq!((session.is_over(), session.next()), (false, Sequence(1)));
        let (_, result) = append(&setting, session, "order 2", |shard| {
            let (connection, request) = next(shard);
            assert!(
                matches!(request.body, ClientBody::Append { run: Some((_, Sequence(1))), .. }),
                "{request:?}"
            );
            let body = appended(6, &request);
            answer(shard, connection, [(request, body)]);
        });
        assert_eq!(result, Ok(Offset(6)));
        setting.node.shutdown();
    }
}

#[test]
fn a_client_that_is_let_in_no_more_does_not_forget_what_it_sent_in_a_session() {
    let limits = ClientLimits { attempts_max: 2, ..ClientLimits::default() };
    let setting = setting_with(BridgeLimits::default(), 64, limits);
    let mut session = session_of(&setting, &setting.client);
    let Setting { member, node, runtime, .. } = setting;
    let call = runtime.spawn(async move {
        let result = session.append(&["order 1"]).await;
        (session, result)
    });
    next(node.shard());
    node.shutdown();
    // The same node, which knows no clients any more.
    let node = TestNode::start(member.config(&[]));
    let (mut session, result) = runtime.block_on(call).unwrap();
    assert!(matches!(result, Err(ClientError::Refused { .. })), "{result:?}");
    assert!(session.is_over());
    assert_eq!(runtime.block_on(session.append(&["order 2"])), Err(ClientError::Over));
    node.shutdown();
}

#[test]
fn what_was_never_sent_leaves_a_session_as_it_was() {
    let request_frame = FrameLimits { payload_bytes_max: 2000, ..FrameLimits::REQUEST };
    let setting =
        setting_with(BridgeLimits::default(), 64, ClientLimits { request_frame, ..ClientLimits::default() });
    let mut session = session_of(&setting, &setting.client);
    let large = setting.runtime.block_on(session.append(&[[0; 3000]]));
    assert!(matches!(large, Err(ClientError::TooLarge { .. })), "{large:?}");
    assert!(!session.is_over());
    let (mut session, result) = append(&setting, session, "order 1", |shard| {
        let (connection, request) = next(shard);
        let body = appended(5, &request);
        answer(shard, connection, [(request, body)]);
    });
    assert_eq!(result, Ok(Offset(5)));
    setting.client.close();
    assert_eq!(setting.runtime.block_on(session.append(&["order 2"])), Err(ClientError::Closed));
    assert_eq!((session.is_over(), session.next()), (false, Sequence(1)));
    setting.node.shutdown();
}

#[test]
fn what_became_of_an_append_is_asked_within_the_time_that_is_left() {
    const PAUSE_MS: u32 = 300;
    let setting = setting();
    let session = session_of(&setting, &setting.client);
    let (_, result) = append(&setting, session, "order 1", |shard| {
        let busy = RequestError::Busy { reason: BusyReason::Reads, retry_after_ms: PAUSE_MS };
        let deadline_ms = fail_next(shard, busy).deadline_ms;
        fail_next(shard, RequestError::Session { refusal: SessionRefusal::Unknown });
        let (connection, request) = next(shard);
        assert!(matches!(request.body, ClientBody::Outcome { .. }), "{request:?}");
        assert!(request.deadline_ms <= deadline_ms - PAUSE_MS, "{} of {deadline_ms}", request.deadline_ms);
        let refusal = RequestError::Session { refusal: SessionRefusal::Unknown };
        answer(shard, connection, [(request, failed(refusal))]);
    });
    let refusal = RequestError::Session { refusal: SessionRefusal::Unknown };
    assert_eq!(result, Err(ClientError::Request(refusal)));
    setting.node.shutdown();
}

#[test]
fn changes_that_were_sent_end_as_unknown_when_time_is_up() {
    let setting = setting();
    let client = setting.client.with_deadline(Duration::from_millis(500));
    let session = session_of(&setting, &setting.client);
    let name = CursorName::new("consumer").unwrap();
    let (lost, last) = ([NodeId(2), NodeId(3)], (Index(1), Term(1)));
    let changes = setting.runtime.spawn(async move {
        let (cursor, trim, create, revive, recover) = tokio::join!(
            client.commit_cursor(GROUP, name, Offset(1)),
            client.trim(GROUP, Offset(1)),
            client.create_group(GROUP, &[NodeId(1)]),
            client.revive(NodeId(1), GROUP),
            client.recover(NodeId(1), GROUP, &lost, last),
        );
        let changes = [cursor.map(drop), trim.map(drop), create, revive, recover.map(drop)];
        let reads = tokio::join!(
            client.status(NodeId(1), GROUP),
            client.query(GROUP, "q", Consistency::Local),
            client.compare_state(GROUP),
        );
        (changes, [reads.0.map(drop), reads.1.map(drop), reads.2.map(drop)])
    });
    collect_requests(setting.node.shard(), 5);
    let (changes, reads) = setting.runtime.block_on(changes).unwrap();
    assert_eq!(changes, [(); 5].map(|()| Err(ClientError::OutcomeUnknown)));
    assert_eq!(reads, [(); 3].map(|()| Err(ClientError::Deadline)));
    drop(session);
    setting.node.shutdown();
}

#[test]
fn a_recovery_is_not_repeated_when_its_connection_is_lost_and_a_cursor_is() {
    let Setting { member, identity, node, client, runtime } = setting();
    let (cursor, short, recovery) =
        (client.clone(), client.with_deadline(Duration::from_millis(500)), client);
    let name = || CursorName::new("consumer").unwrap();
    let commit =
        |client: Client| runtime.spawn(async move { client.commit_cursor(GROUP, name(), Offset(1)).await });
    let recovery = runtime
        .spawn(async move { recovery.recover(NodeId(1), GROUP, &[NodeId(2)], (Index(1), Term(1))).await });
    let (cursor, short) = (commit(cursor), commit(short));
    collect_requests(node.shard(), 3);
    node.shutdown();
    assert_eq!(runtime.block_on(recovery).unwrap(), Err(ClientError::OutcomeUnknown));
    // Sent again or not by then: the first attempt may have done it.
    assert_eq!(runtime.block_on(short).unwrap(), Err(ClientError::OutcomeUnknown));

    let node = node_for_client(&member, &identity, BridgeLimits::default(), 64);
    let (connection, request) = next(node.shard());
    let command = GroupCommand::CommitCursor { name: name(), offset: Offset(1) };
    assert_eq!(request.body, ClientBody::Command(command));
    let body = ReplyBody::CommandDone { offset: Some(Offset(1)), index: Index(7) };
    answer(node.shard(), connection, [(request, body)]);
    assert_eq!(runtime.block_on(cursor).unwrap(), Ok(Offset(1)));
    node.shutdown();
}

#[test]
fn replicas_are_asked_for_their_digests_together_in_the_time_that_is_left() {
    let (one, two, identity) = (Member::new(1), Member::new(2), Identity::generate());
    let nodes = [&one, &two].map(|member| node_for_client(member, &identity, BridgeLimits::default(), 64));
    let runtime = runtime();
    let client = connect(&runtime, &identity, &[&one, &two], ClientLimits::default()).unwrap();
    until("both connected", || (client.connected().len() == 2).then_some(()));
    let call = runtime.spawn(async move { client.compare_state(GroupId(2)).await });
    let group = GroupId(2);
    let (connection, request) = next(nodes[0].shard());
    assert_eq!(request.body, ClientBody::Command(GroupCommand::Compare));
    let all_ms = request.deadline_ms;
    answer(nodes[0].shard(), connection, [(request, command_done())]);
    let (connection, request) = next(nodes[0].shard());
    assert_eq!((request.group, &request.body), (group, &ClientBody::Status));
    let mut status = status();
    status.group = group;
    answer(nodes[0].shard(), connection, [(request, ReplyBody::Status(status))]);
    let asked = [0, 1].map(|at| next(nodes[at].shard()));
    let tables = [3, 4];
    for ((node, (connection, request)), table) in nodes.iter().zip(asked).zip(tables) {
        assert_eq!(request.body, ClientBody::StateDigest { index: Index(7), expected: None });
        assert!(request.deadline_ms < all_ms, "some is kept for those that differ: {}", request.deadline_ms);
        let state = DigestState::Known(StateDigest { machine: None, table });
        answer(node.shard(), connection, [(request, ReplyBody::StateDigest { index: Index(7), state })]);
    }
    let comparison = runtime.block_on(call).unwrap().unwrap();
    assert_eq!(comparison.digests().map(|(_, digest)| digest.table).collect::<Vec<_>>(), tables);
    nodes.into_iter().for_each(TestNode::shutdown);
}

#[test]
fn a_node_that_sends_a_tail_more_than_was_granted_is_cut_off() {
    const FRAME_BYTES: u32 = 200_000;
    /// Of which two are within the frame that may exceed the credit.
    const BATCHES: u64 = 6;
    let reply_frame = FrameLimits { payload_bytes_max: FRAME_BYTES, ..FrameLimits::REPLY };
    let limits = ClientLimits { reply_frame, ..ClientLimits::default() };
    let Setting { node, client, runtime, .. } = setting_with(BridgeLimits::default(), 64, limits);
    let options = TailOptions { credit_bytes: 1000, node: None };
    let mut tail = client.tail(GROUP, Offset(0), options).unwrap();
    let call = runtime.spawn(async move {
        let records = tail.next().await;
        (tail, records)
    });
    let shard = node.shard();
    let (connection, request) = next(shard);
    let send = |from: u64, bytes: usize| {
        let block = RecordBlock::from_records(&[Bytes::from(vec![7; bytes])]);
        let batches = vec![encode_batch(Offset(from), WallTime(5), [block].iter())];
        let end = Offset(from + 1);
        let body = ReplyBody::Records { from: Offset(from), end, batches, is_last: false };
        answer(shard, connection, [(request.clone(), body)]);
    };
    send(0, 80_000);
    let (mut tail, records) = runtime.block_on(call).unwrap();
    assert_eq!(records.unwrap().next(), Offset(1));
    // Nobody takes what comes now.
    (1..=BATCHES).for_each(|from| send(from, 80_000));
    loop {
        match shard.next() {
            ToShard::ClientGone { connection: gone } if gone == connection => break,
            // What the first batch let the tail grant.
            ToShard::Client { .. } => {}
            other => panic!("{other:?}"),
        }
    }
    let ends: Vec<_> = (0..3).map(|_| runtime.block_on(tail.next()).map(|records| records.next())).collect();
    let protocol = ClientError::Protocol { node: NodeId(1) };
    assert_eq!(ends, [Ok(Offset(2)), Ok(Offset(3)), Err(protocol)]);
    // Whoever else uses the client goes on.
    let call = runtime.spawn(async move { client.append(GROUP, "a").await });
    loop {
        let (connection, _, requests) = next_requests(shard);
        let is_append = |request: &ClientRequest| matches!(request.body, ClientBody::Append { .. });
        if let Some(request) = requests.into_iter().find(is_append) {
            let body = appended(9, &request);
            answer(shard, connection, [(request, body)]);
            break;
        }
    }
    assert_eq!(runtime.block_on(call).unwrap().unwrap().offset, Offset(9));
    node.shutdown();
}
