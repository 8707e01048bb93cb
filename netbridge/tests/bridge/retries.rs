//! What a client sends anew has a budget, whatever its calls are and however they fail.

use std::time::{Duration, Instant};

use iroh_raft_core::{
    BusyReason, CursorName, GroupId, Index, NodeId, Offset, RequestError, Retry, Sequence, Term,
};
use iroh_raft_netbridge::bridge::BridgeLimits;
use iroh_raft_netbridge::client::{Client, ClientError, ClientLimits, SessionDone, TailOptions};
use iroh_raft_netbridge::identity::Identity;
use iroh_raft_netbridge::port::ToShard;
use iroh_raft_netbridge::wire::{ClientBody, ClientRequest, ReplyBody};
use tokio::task::JoinHandle;

use crate::client::{GROUP, Setting, answer, appended, collect_requests, failed, setting_with};
use crate::harness::{
    DEADLINE, Member, Shard, TestNode, client_config, connect, node_for_client, runtime, until,
};

const BUSY: RequestError = RequestError::Busy { reason: BusyReason::PendingBytes, retry_after_ms: 1 };

/// No floor: what is counted depends on no clock.
fn limits(retry_tokens_max: u32) -> ClientLimits {
    let pause = Duration::from_millis(1);
    ClientLimits {
        deadline: DEADLINE,
        retry_tokens_max,
        successes_per_retry: 10,
        retries_per_s_min: 0,
        retry_pause_min: pause,
        retry_pause_max: pause,
        ..ClientLimits::default()
    }
}

fn setting(retry_tokens_max: u32) -> Setting {
    setting_with(BridgeLimits::default(), 1024, limits(retry_tokens_max))
}

/// Appends to as many groups: each is a request of its own.
fn append(
    runtime: &tokio::runtime::Runtime,
    client: &Client,
    groups: u64,
) -> Vec<JoinHandle<Result<(), ClientError>>> {
    (1..=groups)
        .map(|group| {
            let client = client.clone();
            runtime.spawn(async move { client.append(GroupId(group), "a").await.map(drop) })
        })
        .collect()
}

/// Answers all requests until the calls have ended; returns how many there were.
fn answer_until_ended<T>(
    shard: &Shard,
    calls: &[JoinHandle<T>],
    body: impl Fn(&ClientRequest) -> ReplyBody,
) -> u32 {
    let mut requests = 0;
    let start = Instant::now();
    loop {
        let are_ended = calls.iter().all(JoinHandle::is_finished);
        while let Some(item) = shard.port.from_bridge.pop() {
            let ToShard::Client { connection, frame, .. } = item else { continue };
            for request in frame.requests() {
                requests += 1;
                let body = body(&request);
                answer(shard, connection, [(request, body)]);
            }
        }
        if are_ended {
            return requests;
        }
        assert!(start.elapsed() < DEADLINE, "{requests} requests, and no end of them");
        std::thread::park_timeout(Duration::from_millis(1));
    }
}

fn results<T>(runtime: &tokio::runtime::Runtime, calls: Vec<JoinHandle<T>>) -> Vec<T> {
    calls.into_iter().map(|call| runtime.block_on(call).unwrap()).collect()
}

fn spent() -> ClientError {
    ClientError::RetriesSpent { last: ClientError::Request(BUSY).into() }
}

#[test]
fn where_every_attempt_fails_there_are_as_many_as_the_budget_allows() {
    let Setting { node, client, runtime, .. } = setting(20);
    let shard = node.shard();
    let busy = |_: &ClientRequest| failed(BUSY);
    let calls = append(&runtime, &client, 10);
    assert_eq!(answer_until_ended(shard, &calls, busy), 10 + 20);
    for result in results(&runtime, calls) {
        assert_eq!(result, Err(spent()));
        assert_eq!(result.unwrap_err().retry(), Retry::Safe);
    }
    // Nothing is left, for whichever call.
    let calls = append(&runtime, &client, 10);
    assert_eq!(answer_until_ended(shard, &calls, busy), 10);
    // Thirty that go well earn three.
    for _ in 0..3 {
        let calls = append(&runtime, &client, 10);
        assert_eq!(answer_until_ended(shard, &calls, |request| appended(0, request)), 10);
        assert!(results(&runtime, calls).iter().all(Result::is_ok));
    }
    let calls = append(&runtime, &client, 10);
    assert_eq!(answer_until_ended(shard, &calls, busy), 10 + 3);
    node.shutdown();
}

#[test]
fn a_call_waits_ten_times_as_often_for_a_leader() {
    let Setting { node, client, runtime, .. } = setting(2);
    let calls = append(&runtime, &client, 1);
    let leaderless = |_: &ClientRequest| failed(RequestError::NotLeader { leader: None });
    assert_eq!(answer_until_ended(node.shard(), &calls, leaderless), 1 + 20);
    node.shutdown();
}

#[test]
fn the_way_to_a_leader_that_is_known_is_free() {
    let (one, two, identity) = (Member::new(1), Member::new(2), Identity::generate());
    let nodes = [&one, &two].map(|member| node_for_client(member, &identity, BridgeLimits::default(), 64));
    let runtime = runtime();
    let client = connect(&runtime, &identity, &[&one, &two], limits(1)).unwrap();
    until("both connected", || (client.connected().len() == 2).then_some(()));
    // Even groups are looked for at the first node; the second one leads.
    for group in (2..=40).step_by(2).map(GroupId) {
        let task = client.clone();
        let call = runtime.spawn(async move { task.append(group, "a").await });
        let (connection, mut requests) = collect_requests(nodes[0].shard(), 1);
        let refusal = failed(RequestError::NotLeader { leader: Some(NodeId(2)) });
        answer(nodes[0].shard(), connection, [(requests.remove(0), refusal)]);
        let (connection, mut requests) = collect_requests(nodes[1].shard(), 1);
        let request = requests.remove(0);
        let body = appended(0, &request);
        answer(nodes[1].shard(), connection, [(request, body)]);
        runtime.block_on(call).unwrap().unwrap();
    }
    // The one token is still there.
    let calls = [runtime.spawn(async move { client.append(GroupId(40), "a").await })];
    assert_eq!(answer_until_ended(nodes[1].shard(), &calls, |_| failed(BUSY)), 2);
    nodes.into_iter().for_each(TestNode::shutdown);
}

#[test]
fn what_may_be_done_is_unknown_when_retries_are_spent() {
    let Setting { node, client, runtime, .. } = setting(1);
    let name = CursorName::new("consumer").unwrap();
    let call = runtime.spawn(async move { client.commit_cursor(GROUP, name, Offset(1)).await });
    for refusal in [RequestError::OutcomeUnknown { leader: None }, BUSY] {
        let (connection, mut requests) = collect_requests(node.shard(), 1);
        answer(node.shard(), connection, [(requests.remove(0), failed(refusal))]);
    }
    assert_eq!(runtime.block_on(call).unwrap(), Err(ClientError::OutcomeUnknown));
    node.shutdown();
}

#[test]
fn a_session_ends_its_attempts_with_the_budget_and_keeps_what_may_be_done() {
    let Setting { node, client, runtime, .. } = setting(3);
    let shard = node.shard();
    let opening = [runtime.spawn(async move { client.open_session(GROUP, DEADLINE).await })];
    let opened = |_: &ClientRequest| ReplyBody::CommandDone { offset: None, index: Index(7) };
    assert_eq!(answer_until_ended(shard, &opening, opened), 1);
    let [opening] = opening;
    let mut session = runtime.block_on(opening).unwrap().unwrap();
    let call = [runtime.spawn(async move {
        let result = session.append(&["order 1"]).await;
        (session, result)
    })];
    let unknown = |_: &ClientRequest| failed(RequestError::OutcomeUnknown { leader: None });
    assert_eq!(answer_until_ended(shard, &call, unknown), 1 + 3);
    let [call] = call;
    let (mut session, result) = runtime.block_on(call).unwrap();
    assert_eq!(result, Err(ClientError::OutcomeUnknown));
    assert_eq!((session.is_over(), session.next()), (false, Sequence(0)));
    // Later, the same records again.
    let call = [runtime.spawn(async move { session.resume().await })];
    let body = |request: &ClientRequest| {
        assert!(
            matches!(request.body, ClientBody::Append { run: Some((_, Sequence(0))), .. }),
            "{request:?}"
        );
        appended(5, request)
    };
    assert_eq!(answer_until_ended(shard, &call, body), 1);
    let [call] = call;
    let done = runtime.block_on(call).unwrap().unwrap();
    assert!(matches!(&done, Some(SessionDone::Appended(at)) if (at.offset, at.term) == (Offset(5), Term(2))));
    node.shutdown();
}

#[test]
fn a_session_takes_other_records_when_retries_are_spent_before_anything_was_done() {
    let Setting { node, client, runtime, .. } = setting(3);
    let shard = node.shard();
    let opening = [runtime.spawn(async move { client.open_session(GROUP, DEADLINE).await })];
    answer_until_ended(shard, &opening, |_| ReplyBody::CommandDone { offset: None, index: Index(7) });
    let [opening] = opening;
    let mut session = runtime.block_on(opening).unwrap().unwrap();
    let call = [runtime.spawn(async move {
        let result = session.append(&["order 1"]).await;
        (session, result)
    })];
    assert_eq!(answer_until_ended(shard, &call, |_| failed(BUSY)), 1 + 3);
    let [call] = call;
    let (mut session, result) = runtime.block_on(call).unwrap();
    assert_eq!(result, Err(spent()));
    let call = [runtime.spawn(async move { session.append(&["order 2"]).await })];
    assert_eq!(answer_until_ended(shard, &call, |request| appended(5, request)), 1);
    let [call] = call;
    assert_eq!(runtime.block_on(call).unwrap().unwrap().offset, Offset(5));
    node.shutdown();
}

#[test]
fn a_tail_is_opened_anew_once_for_nothing_and_then_as_the_budget_allows() {
    let Setting { node, client, runtime, .. } = setting(3);
    let client = client.with_deadline(Duration::from_millis(500));
    let mut tail = client.tail(GROUP, Offset(0), TailOptions::default()).unwrap();
    let call = [runtime.spawn(async move { tail.next().await.map(drop) })];
    assert_eq!(answer_until_ended(node.shard(), &call, |_| failed(BUSY)), 1 + 1 + 3);
    let [call] = call;
    assert_eq!(runtime.block_on(call).unwrap(), Err(spent()));
    node.shutdown();
}

#[test]
fn budgets_that_cannot_be_are_refused() {
    let (member, identity, runtime) = (Member::new(1), Identity::generate(), runtime());
    let cases = [
        (ClientLimits { retry_tokens_max: 0, ..limits(1) }, "retry_tokens_max is 1 to 1,000,000"),
        (limits(1_000_001), "retry_tokens_max is 1 to 1,000,000"),
        (ClientLimits { successes_per_retry: 0, ..limits(1) }, "successes_per_retry is 1 to 1,000"),
        (ClientLimits { retries_per_s_min: 1001, ..limits(1) }, "retries_per_s_min is at most 1,000"),
    ];
    for (limits, expected) in cases {
        let refused = runtime.block_on(Client::connect(client_config(&identity, &[&member], limits)));
        let text = refused.unwrap_err().to_string();
        assert!(text.contains(expected), "{text}");
    }
}
