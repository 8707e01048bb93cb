//! The client against bridges whose shards the test plays.

use std::sync::Arc;
use std::time::Duration;

use bytes::Bytes;
use iroh_raft_core::batch::{RecordBlock, encode_batch};
use iroh_raft_core::{
    AnswerOn, BusyReason, ConfState, Consistency, Freshness, GroupId, GroupStatus, Index, NodeId, Offset,
    RequestError, Role, ShardId, Term, WallTime,
};
use iroh_raft_netbridge::bridge::{BridgeLimits, ClientGrant, Rights};
use iroh_raft_netbridge::client::{Client, ClientError, ClientLimits, Completion};
use iroh_raft_netbridge::identity::Identity;
use iroh_raft_netbridge::port::{ToBridge, ToShard};
use iroh_raft_netbridge::wire::{
    Answer, ClientBody, ClientReply, ClientRequest, ReplyBody, ReplyFrameBuilder,
};

use crate::harness::{
    ALL_RIGHTS, DEADLINE, Epochs, Member, Shard, TestNode, client_config, connect, node_for_client, runtime,
    until,
};

pub(crate) const GROUP: GroupId = GroupId(1);

fn read_records(from: u64, bytes_max: u32) -> ClientBody {
    let (records_max, is_waiting) = (u32::MAX, false);
    ClientBody::ReadRecords { from: Offset(from), bytes_max, records_max, is_waiting }
}

/// One node, one client, connected.
pub(crate) struct Setting {
    pub(crate) member: Member,
    pub(crate) identity: Identity,
    pub(crate) node: TestNode,
    pub(crate) client: Client,
    pub(crate) runtime: tokio::runtime::Runtime,
}

pub(crate) fn setting_with(bridge: BridgeLimits, ring: usize, limits: ClientLimits) -> Setting {
    let (member, identity) = (Member::new(1), Identity::generate());
    let node = node_for_client(&member, &identity, bridge, ring);
    let runtime = runtime();
    let client = connect(&runtime, &identity, &[&member], limits).unwrap();
    Setting { member, identity, node, client, runtime }
}

pub(crate) fn setting() -> Setting {
    setting_with(BridgeLimits::default(), 1024, ClientLimits::default())
}

/// The next requests, with the connection to answer.
pub(crate) fn next_requests(shard: &Shard) -> (u64, Rights, Vec<ClientRequest>) {
    loop {
        if let ToShard::Client { connection, rights, frame, .. } = shard.next() {
            return (connection, rights, frame.requests().collect());
        }
    }
}

/// Collects `count` requests, however they are spread over frames.
pub(crate) fn collect_requests(shard: &Shard, count: usize) -> (u64, Vec<ClientRequest>) {
    let mut all = Vec::new();
    loop {
        let (connection, _, requests) = next_requests(shard);
        all.extend(requests);
        assert!(all.len() <= count);
        if all.len() == count {
            return (connection, all);
        }
    }
}

pub(crate) fn answer(
    shard: &Shard,
    connection: u64,
    replies: impl IntoIterator<Item = (ClientRequest, ReplyBody)>,
) {
    let mut builder = ReplyFrameBuilder::default();
    for (request, body) in replies {
        builder.push(ClientReply { request: request.request, group: request.group, body });
    }
    let frame = builder.finish(ShardId(0));
    let mut item = Some(ToBridge::Client { connection, frame });
    until("room in the ring to the bridge", || {
        item = shard.port.to_bridge.push(item.take()?).err();
        item.is_none().then_some(())
    });
}

pub(crate) fn appended(first: u64, request: &ClientRequest) -> ReplyBody {
    let ClientBody::Append { block, .. } = &request.body else { panic!("{request:?}") };
    ReplyBody::Appended { first: Offset(first), count: block.count(), index: Index(9), term: Term(2) }
}

pub(crate) fn status() -> GroupStatus {
    GroupStatus {
        group: GROUP,
        role: Role::Leader,
        term: Term(2),
        leader: Some(NodeId(1)),
        commit: Index(10),
        applied: Index(10),
        last: Index(11),
        last_term: Term(2),
        first: Offset(1),
        end: Offset(3),
        members: Arc::new(ConfState { voters: vec![NodeId(1), NodeId(2)], ..ConfState::default() }),
        members_since: Index(3),
        is_quarantined: false,
        is_disk_hung: true,
        is_quiet: false,
        is_under_repair: true,
    }
}

pub(crate) fn failed(error: RequestError) -> ReplyBody {
    ReplyBody::Failed(error)
}

#[test]
fn appends_of_several_groups_are_answered_in_any_order() {
    let setting = setting();
    let client = &setting.client;
    let calls: Vec<_> = (1..=5)
        .map(|group| {
            let client = client.clone();
            let call = async move { client.append(GroupId(group), format!("record {group}")).await };
            (group, setting.runtime.spawn(call))
        })
        .collect();
    let shard = setting.node.shard();
    let (connection, mut requests) = collect_requests(shard, 5);
    requests.sort_by_key(|request| std::cmp::Reverse(request.group));
    for request in requests {
        let body = appended(request.group.0 * 100, &request);
        answer(shard, connection, [(request, body)]);
    }
    for (group, call) in calls {
        let appended = setting.runtime.block_on(call).unwrap().unwrap();
        assert_eq!(
            (appended.offset, appended.index, appended.term),
            (Offset(group * 100), Index(9), Term(2))
        );
    }
    setting.node.shutdown();
}

#[test]
fn every_kind_of_call_gets_its_answer() {
    let Setting { node, client, runtime, .. } = setting();
    let calls = runtime.spawn(async move {
        let batch = client.append_batch(GROUP, &["a", "b", "c"]).await?;
        let response = client.propose(GROUP, "command").await?;
        let answer = client.query(GROUP, "question", Consistency::Lease).await?;
        let records = client.read(NodeId(1), GROUP, Offset(1), 1000).await?;
        let status = client.status(NodeId(1), GROUP).await?;
        let unknown = client.status(NodeId(7), GROUP).await;
        assert_eq!(unknown, Err(ClientError::UnknownNode { node: NodeId(7) }));
        Ok::<_, ClientError>((batch, response, answer, records, status))
    });
    let shard = node.shard();
    let next = || {
        let (connection, mut requests) = collect_requests(shard, 1);
        (connection, requests.remove(0))
    };
    let (connection, request) = next();
    let body = appended(7, &request);
    answer(shard, connection, [(request, body)]);

    let (_, request) = next();
    let ClientBody::Append { block, answer: AnswerOn::Apply, .. } = &request.body else {
        panic!("{request:?}")
    };
    assert_eq!(block.records().collect::<Vec<_>>(), [b"command"]);
    let responses = RecordBlock::from_records(&["done"]);
    let body = ReplyBody::Responses { first: Offset(10), index: Index(10), term: Term(2), responses };
    answer(shard, connection, [(request, body)]);

    let (_, request) = next();
    let (consistency, may_forward) = (Consistency::Lease, false);
    assert_eq!(request.body, ClientBody::Query { consistency, may_forward, query: "question".into() });
    let heard = Some(Duration::ZERO);
    let freshness = Freshness { applied: Index(10), commit: Index(11), heard };
    let body = ReplyBody::Answer(Answer { freshness, bytes: "42".into() });
    answer(shard, connection, [(request, body)]);

    let (_, request) = next();
    assert_eq!(request.body, read_records(1, 1000));
    let blocks = [RecordBlock::from_records(&["x", "y", "z"])];
    let batches = vec![encode_batch(Offset(0), WallTime(5), blocks.iter())];
    let body = ReplyBody::Records { from: Offset(1), end: Offset(3), batches, is_last: true };
    answer(shard, connection, [(request, body)]);

    let (_, request) = next();
    let status = status();
    answer(shard, connection, [(request, ReplyBody::Status(status.clone()))]);

    let (batch, response, answer, records, answered) = runtime.block_on(calls).unwrap().unwrap();
    assert_eq!(batch.offset, Offset(7));
    assert_eq!((response, answer.bytes), (Bytes::from("done"), Bytes::from("42")));
    assert_eq!(answer.freshness, freshness);
    let found: Vec<_> = records.iter().map(|record| (record.offset, record.at.0, record.data)).collect();
    assert_eq!(found, [(Offset(1), 5, &b"y"[..]), (Offset(2), 5, b"z")]);
    assert_eq!(answered, status);
    node.shutdown();
}

#[test]
fn the_shard_learns_the_rights_and_the_end_of_a_client() {
    let (member, identity) = (Member::new(1), Identity::generate());
    let rights = Rights { append: true, read: false, manage: false };
    let mut config = member.config(&[]);
    config.clients = vec![ClientGrant { endpoint: identity.endpoint_id(), rights }];
    let node = TestNode::start(config);
    let runtime = runtime();
    let client = connect(&runtime, &identity, &[&member], ClientLimits::default()).unwrap();
    let task = client.clone();
    let call = runtime.spawn(async move { task.append(GROUP, "a").await });
    let (connection, found, _) = next_requests(node.shard());
    assert_eq!(found, rights);
    client.close();
    assert_eq!(runtime.block_on(call).unwrap(), Err(ClientError::OutcomeUnknown));
    assert!(matches!(node.shard().next(), ToShard::ClientGone { connection: gone } if gone == connection));
    assert_eq!(runtime.block_on(client.append(GROUP, "b")), Err(ClientError::Closed));
    node.shutdown();
}

#[test]
fn records_that_gather_share_a_request_and_each_gets_its_own_end() {
    let limits = ClientLimits { requests_per_group_max: 1, ..ClientLimits::default() };
    let Setting { node, client, runtime, .. } = setting_with(BridgeLimits::default(), 64, limits);
    let (appender, mut completions) = client.appender();
    appender.try_append(GROUP, "first", 1).unwrap();
    let shard = node.shard();
    let (connection, mut requests) = collect_requests(shard, 1);
    // The first is under way, so these wait and gather.
    for tag in 2..=100 {
        appender.try_append(GROUP, format!("record {tag}"), tag).unwrap();
    }
    let request = requests.remove(0);
    let body = appended(500, &request);
    answer(shard, connection, [(request, body)]);
    let (_, mut requests) = collect_requests(shard, 1);
    let request = requests.remove(0);
    let ClientBody::Append { block, .. } = &request.body else { panic!("{request:?}") };
    assert_eq!(block.count(), 99);
    let body = appended(501, &request);
    answer(shard, connection, [(request, body)]);
    drop(appender);
    let mut ends: Vec<Completion> = Vec::new();
    runtime.block_on(async { while completions.recv(&mut ends).await > 0 {} });
    ends.sort_by_key(|end| end.tag);
    let offsets: Vec<u64> = ends.iter().map(|end| end.result.as_ref().unwrap().offset.0).collect();
    assert_eq!(offsets, (500..600).collect::<Vec<_>>());
    node.shutdown();
}

#[test]
fn room_is_bounded_and_comes_back() {
    let limits = ClientLimits { in_flight_bytes_max: 4096, ..ClientLimits::default() };
    let Setting { node, client, runtime, .. } = setting_with(BridgeLimits::default(), 64, limits);
    let (appender, mut completions) = client.appender();
    let record = vec![0; 1000];
    let fitting = (0..).take_while(|tag| appender.try_append(GROUP, &record, *tag).is_ok()).count();
    assert_eq!(fitting, 3);
    assert_eq!(appender.try_append(GROUP, &record, 9), Err(ClientError::Full));
    let late = vec![0; 5000];
    assert!(matches!(appender.try_append(GROUP, &late, 9), Err(ClientError::TooLarge { .. })));
    let mut ends = Vec::new();
    let shard = node.shard();
    let mut answered = 0;
    while answered < fitting {
        let (connection, _, requests) = next_requests(shard);
        for request in requests {
            let ClientBody::Append { block, .. } = &request.body else { panic!("{request:?}") };
            answered += block.count() as usize;
            let body = appended(0, &request);
            answer(shard, connection, [(request, body)]);
        }
    }
    while ends.len() < fitting {
        runtime.block_on(completions.recv(&mut ends));
    }
    assert_eq!(appender.try_append(GROUP, &record, 9), Ok(()));
    node.shutdown();
}

#[test]
fn a_client_follows_the_hint_to_the_leader() {
    let (one, two, identity) = (Member::new(1), Member::new(2), Identity::generate());
    let nodes = [&one, &two].map(|member| node_for_client(member, &identity, BridgeLimits::default(), 64));
    let runtime = runtime();
    let client = connect(&runtime, &identity, &[&one, &two], ClientLimits::default()).unwrap();
    until("both connected", || (client.connected().len() == 2).then_some(()));
    let task = client.clone();
    // Group 2 is tried at the first of two nodes.
    let call = runtime.spawn(async move { task.append(GroupId(2), "a").await });
    let (connection, mut requests) = collect_requests(nodes[0].shard(), 1);
    let body = failed(RequestError::NotLeader { leader: Some(NodeId(2)) });
    answer(nodes[0].shard(), connection, [(requests.remove(0), body)]);
    let (connection, mut requests) = collect_requests(nodes[1].shard(), 1);
    let request = requests.remove(0);
    let body = appended(3, &request);
    answer(nodes[1].shard(), connection, [(request, body)]);
    assert_eq!(runtime.block_on(call).unwrap().unwrap().offset, Offset(3));
    assert_eq!(client.leader_hint(GroupId(2)), Some(NodeId(2)));
    // The next one goes there at once.
    let task = client;
    let call = runtime.spawn(async move { task.append(GroupId(2), "b").await });
    let (connection, mut requests) = collect_requests(nodes[1].shard(), 1);
    let request = requests.remove(0);
    let body = appended(4, &request);
    answer(nodes[1].shard(), connection, [(request, body)]);
    runtime.block_on(call).unwrap().unwrap();
    nodes.into_iter().for_each(TestNode::shutdown);
}

#[test]
fn without_a_hint_the_nodes_are_tried_in_turn() {
    let (one, two, identity) = (Member::new(1), Member::new(2), Identity::generate());
    let nodes = [&one, &two].map(|member| node_for_client(member, &identity, BridgeLimits::default(), 64));
    let runtime = runtime();
    let client = connect(&runtime, &identity, &[&one, &two], ClientLimits::default()).unwrap();
    until("both connected", || (client.connected().len() == 2).then_some(()));
    let task = client;
    let call = runtime.spawn(async move { task.append(GroupId(2), "a").await });
    for at in [0, 1, 0] {
        let (connection, mut requests) = collect_requests(nodes[at].shard(), 1);
        let body = failed(RequestError::NotLeader { leader: None });
        answer(nodes[at].shard(), connection, [(requests.remove(0), body)]);
    }
    let (connection, mut requests) = collect_requests(nodes[1].shard(), 1);
    let request = requests.remove(0);
    let body = appended(3, &request);
    answer(nodes[1].shard(), connection, [(request, body)]);
    assert_eq!(runtime.block_on(call).unwrap().unwrap().offset, Offset(3));
    nodes.into_iter().for_each(TestNode::shutdown);
}

#[test]
fn a_full_ring_answers_busy_and_the_client_tries_again() {
    let limits = ClientLimits { requests_per_group_max: 1, ..ClientLimits::default() };
    let Setting { node, client, runtime, .. } = setting_with(BridgeLimits::default(), 1, limits);
    let shard = node.shard();
    let calls: Vec<_> = (1..=3)
        .map(|group| {
            let task = client.clone();
            let call = runtime.spawn(async move { task.append(GroupId(group), "a").await });
            // One frame each: the next call starts once this one has come to the bridge.
            node.until_stats("a frame more", |stats| stats.client_frames_in >= group);
            call
        })
        .collect();
    node.until_stats("busy answers", |stats| stats.requests_busy > 0);
    let mut answered = 0;
    while answered < 3 {
        let (connection, _, requests) = next_requests(shard);
        for request in requests {
            let body = appended(request.group.0, &request);
            answer(shard, connection, [(request, body)]);
            answered += 1;
        }
    }
    for call in calls {
        runtime.block_on(call).unwrap().unwrap();
    }
    node.shutdown();
}

#[test]
fn more_requests_than_granted_are_answered_busy() {
    let bridge = BridgeLimits { client_requests_max: 2, ..BridgeLimits::default() };
    let limits = ClientLimits { attempts_max: 0, ..ClientLimits::default() };
    let Setting { node, client, runtime, .. } = setting_with(bridge, 64, limits);
    let shard = node.shard();
    let open: Vec<_> = (1..=2)
        .map(|group| {
            let task = client.clone();
            let call = runtime.spawn(async move { task.append(GroupId(group), "a").await });
            (collect_requests(shard, 1), call)
        })
        .collect();
    let refused = runtime.block_on(client.append(GroupId(3), "a")).unwrap_err();
    let busy = matches!(refused, ClientError::Request(RequestError::Busy { reason: BusyReason::Credit, .. }));
    assert!(busy, "{refused}");
    // Answers give the credit back.
    for ((connection, mut requests), call) in open {
        let request = requests.remove(0);
        let body = appended(0, &request);
        answer(shard, connection, [(request, body)]);
        runtime.block_on(call).unwrap().unwrap();
    }
    let task = client;
    let call = runtime.spawn(async move { task.append(GroupId(3), "a").await });
    let (connection, mut requests) = collect_requests(shard, 1);
    let request = requests.remove(0);
    let body = appended(0, &request);
    answer(shard, connection, [(request, body)]);
    runtime.block_on(call).unwrap().unwrap();
    node.shutdown();
}

#[test]
fn bytes_of_requests_are_credited_until_their_last_slice_is_gone() {
    let bridge = BridgeLimits { client_request_bytes_max: 3000, ..BridgeLimits::default() };
    let limits = ClientLimits { attempts_max: 0, ..ClientLimits::default() };
    let Setting { node, client, runtime, .. } = setting_with(bridge, 64, limits);
    let shard = node.shard();
    let task = client.clone();
    let call = runtime.spawn(async move { task.append(GROUP, vec![1; 2000]).await });
    let (connection, mut requests) = collect_requests(shard, 1);
    let held = requests.remove(0);
    let body = appended(0, &held);
    answer(shard, connection, [(held.clone(), body)]);
    runtime.block_on(call).unwrap().unwrap();
    let refused = runtime.block_on(client.append(GROUP, vec![2; 2000])).unwrap_err();
    let busy = matches!(refused, ClientError::Request(RequestError::Busy { reason: BusyReason::Credit, .. }));
    assert!(busy, "the request's slice is still held: {refused}");
    drop(held);
    let task = client;
    let call = runtime.spawn(async move { task.append(GROUP, vec![3; 2000]).await });
    let (connection, mut requests) = collect_requests(shard, 1);
    let request = requests.remove(0);
    let body = appended(0, &request);
    answer(shard, connection, [(request, body)]);
    runtime.block_on(call).unwrap().unwrap();
    node.shutdown();
}

#[test]
fn a_sent_append_whose_connection_is_lost_is_unknown_and_never_sent_again() {
    let Setting { member, identity, node, client, runtime } = setting();
    let task = client.clone();
    let call = runtime.spawn(async move { task.append(GROUP, "a").await });
    let read = client;
    let (_, requests) = collect_requests(node.shard(), 1);
    assert_eq!(requests[0].group, GROUP);
    // A read may be sent again.
    let read = runtime.spawn(async move { read.read(NodeId(1), GROUP, Offset(0), 10).await });
    collect_requests(node.shard(), 1);
    node.shutdown();
    assert_eq!(runtime.block_on(call).unwrap(), Err(ClientError::OutcomeUnknown));

    let node = node_for_client(&member, &identity, BridgeLimits::default(), 64);
    let (connection, mut requests) = collect_requests(node.shard(), 1);
    let request = requests.remove(0);
    assert_eq!(request.body, read_records(0, 10));
    let body = ReplyBody::Records { from: Offset(0), end: Offset(0), batches: Vec::new(), is_last: true };
    answer(node.shard(), connection, [(request, body)]);
    assert!(runtime.block_on(read).unwrap().unwrap().is_empty());
    node.shutdown();
}

#[test]
fn an_append_that_was_not_sent_waits_for_the_node_to_come_back() {
    let Setting { member, identity, node, client, runtime } = setting();
    node.shutdown();
    until("the loss noticed", || client.connected().is_empty().then_some(()));
    let task = client;
    let call = runtime.spawn(async move { task.append(GROUP, "a").await });
    let node = node_for_client(&member, &identity, BridgeLimits::default(), 64);
    let (connection, mut requests) = collect_requests(node.shard(), 1);
    let request = requests.remove(0);
    let body = appended(8, &request);
    answer(node.shard(), connection, [(request, body)]);
    assert_eq!(runtime.block_on(call).unwrap().unwrap().offset, Offset(8));
    node.shutdown();
}

#[test]
fn a_deadline_ends_calls_sent_or_not() {
    let Setting { node, client, runtime, .. } = setting();
    let hurried = client.with_deadline(Duration::from_millis(50));
    assert_eq!(runtime.block_on(hurried.append(GROUP, "a")), Err(ClientError::OutcomeUnknown));
    assert_eq!(runtime.block_on(hurried.query(GROUP, "q", Consistency::Local)), Err(ClientError::Deadline));
    let (connection, mut requests) = collect_requests(node.shard(), 1);
    // The late answer is for nobody, and harms nobody.
    let request = requests.remove(0);
    let body = appended(8, &request);
    answer(node.shard(), connection, [(request, body)]);
    let task = client;
    let call = runtime.spawn(async move { task.append(GroupId(2), "b").await });
    let mut found = None;
    while found.is_none() {
        let (_, _, requests) = next_requests(node.shard());
        found = requests.into_iter().find(|request| request.group == GroupId(2));
    }
    let request = found.unwrap();
    let body = appended(9, &request);
    answer(node.shard(), connection, [(request, body)]);
    assert_eq!(runtime.block_on(call).unwrap().unwrap().offset, Offset(9));
    node.shutdown();
}

#[test]
fn errors_that_a_retry_cannot_mend_come_back_as_they_are() {
    let Setting { node, client, runtime, .. } = setting();
    for error in [
        RequestError::UnknownGroup,
        RequestError::TooLarge { bytes: 9, bytes_max: 8 },
        RequestError::Denied,
        RequestError::Invalid { what: "so it is" },
    ] {
        let task = client.clone();
        let call = runtime.spawn(async move { task.append(GROUP, "a").await });
        let (connection, mut requests) = collect_requests(node.shard(), 1);
        answer(node.shard(), connection, [(requests.remove(0), failed(error.clone()))]);
        let result = runtime.block_on(call).unwrap().unwrap_err();
        match (&result, &error) {
            // The text of a malformed request is not carried word for word.
            (ClientError::Request(RequestError::Invalid { .. }), RequestError::Invalid { .. }) => {}
            _ => assert_eq!(result, ClientError::Request(error)),
        }
    }
    assert_eq!(runtime.block_on(client.append_batch::<&str>(GROUP, &[])), Err(ClientError::Empty));
    node.shutdown();
}

#[test]
fn one_record_that_is_too_large_does_not_spoil_the_others() {
    let limits = ClientLimits { requests_per_group_max: 1, ..ClientLimits::default() };
    let Setting { node, client, runtime, .. } = setting_with(BridgeLimits::default(), 64, limits);
    let (appender, mut completions) = client.appender();
    let shard = node.shard();
    appender.try_append(GROUP, "first", 0).unwrap();
    let (connection, mut requests) = collect_requests(shard, 1);
    appender.try_append(GROUP, "fits", 1).unwrap();
    appender.try_append(GROUP, "does not fit", 2).unwrap();
    let request = requests.remove(0);
    let body = appended(0, &request);
    answer(shard, connection, [(request, body)]);
    let (_, mut requests) = collect_requests(shard, 1);
    let too_large = RequestError::TooLarge { bytes: 12, bytes_max: 5 };
    answer(shard, connection, [(requests.remove(0), failed(too_large.clone()))]);
    let (_, requests) = collect_requests(shard, 2);
    for request in requests {
        let ClientBody::Append { block, .. } = &request.body else { panic!("{request:?}") };
        let body = if block.payload_bytes() > 5 { failed(too_large.clone()) } else { appended(1, &request) };
        answer(shard, connection, [(request, body)]);
    }
    drop(appender);
    let mut ends = Vec::new();
    runtime.block_on(async { while completions.recv(&mut ends).await > 0 {} });
    ends.sort_by_key(|end: &Completion| end.tag);
    let results: Vec<_> =
        ends.iter().map(|end| end.result.clone().map(|appended| appended.offset.0)).collect();
    assert_eq!(results, [Ok(0), Ok(1), Err(ClientError::Request(too_large))]);
    node.shutdown();
}

#[test]
fn a_client_that_does_not_read_its_answers_is_cut_off() {
    let bridge = BridgeLimits { client_reply_bytes_max: 100_000, ..BridgeLimits::default() };
    let Setting { node, client, runtime, .. } = setting_with(bridge, 1024, ClientLimits::default());
    let task = client.with_deadline(Duration::from_millis(500));
    let call = runtime.spawn(async move { task.read(NodeId(1), GROUP, Offset(0), 10).await });
    let shard = node.shard();
    let (connection, _, requests) = next_requests(shard);
    // The client's runtime does not turn while its only worker is held, so nobody reads.
    let (release, held) = std::sync::mpsc::channel::<()>();
    runtime.spawn(async move {
        let _ = held.recv_timeout(DEADLINE);
    });
    let request = &requests[0];
    let blocks = [RecordBlock::from_records(&[vec![0; 80_000]])];
    let batches = vec![encode_batch(Offset(0), WallTime(5), blocks.iter())];
    until("cut off", || {
        let mut builder = ReplyFrameBuilder::default();
        let body =
            ReplyBody::Records { from: Offset(0), end: Offset(1), batches: batches.clone(), is_last: true };
        builder.push(ClientReply { request: request.request, group: GROUP, body });
        let frame = builder.finish(ShardId(0));
        let _ = shard.port.to_bridge.push(ToBridge::Client { connection, frame });
        (node.bridge.stats().clients_cut_off > 0).then_some(())
    });
    assert!(matches!(shard.next(), ToShard::ClientGone { connection: gone } if gone == connection));
    drop(release);
    // What became of the read is the client's business; it must end.
    let _ = runtime.block_on(async { tokio::time::timeout(DEADLINE, call).await }).expect("the call ends");
    node.shutdown();
}

#[test]
fn a_client_is_told_when_no_node_can_be_reached_or_none_is_given() {
    let (member, identity, runtime) = (Member::new(1), Identity::generate(), runtime());
    let limits = ClientLimits { connect_deadline: Duration::from_millis(50), ..ClientLimits::default() };
    let error = connect(&runtime, &identity, &[&member], limits).unwrap_err();
    assert!(matches!(error, ClientError::Unreachable { .. }), "{error}");
    let error = connect(&runtime, &identity, &[], ClientLimits::default()).unwrap_err();
    assert!(matches!(error, ClientError::Endpoint { .. }), "{error}");
}

#[test]
fn a_client_of_another_cluster_is_refused() {
    let (member, identity) = (Member::new(1), Identity::generate());
    let node = node_for_client(&member, &identity, BridgeLimits::default(), 64);
    let mut config = client_config(&identity, &[&member], ClientLimits::default());
    config.cluster.0[0] ^= 1;
    let error = runtime().block_on(Client::connect(config)).unwrap_err();
    assert!(error.to_string().contains("cluster"), "{error}");
    node.shutdown();
}

#[test]
fn more_clients_than_allowed_are_refused() {
    let (member, identity) = (Member::new(1), Identity::generate());
    let mut config = member.config(&[]);
    let other = Identity::generate();
    config.clients = [&identity, &other]
        .map(|identity| ClientGrant { endpoint: identity.endpoint_id(), rights: ALL_RIGHTS })
        .to_vec();
    config.limits.client_connections_max = 1;
    let node = TestNode::start_with(config, Epochs::default(), 64);
    let runtime = runtime();
    let first = connect(&runtime, &identity, &[&member], ClientLimits::default()).unwrap();
    let limits = ClientLimits { connect_deadline: Duration::from_millis(300), ..ClientLimits::default() };
    let error = connect(&runtime, &other, &[&member], limits).unwrap_err();
    assert!(error.to_string().contains("too many connections"), "{error}");
    drop(first);
    connect(&runtime, &other, &[&member], ClientLimits::default()).unwrap();
    node.shutdown();
}
