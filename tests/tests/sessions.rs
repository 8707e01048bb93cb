//! Client sessions over real nodes: what is retried is done once.

use std::time::Duration;

use iroh_raft::net::client::{Client, ClientError, SessionDone};
use iroh_raft::prelude::*;
use iroh_raft::{EngineConfig, Message, RequestError, Role, RunOutcome, Sequence, SessionRefusal};
use iroh_raft_tests::{Plan, until};

const GROUP: GroupId = GroupId(1);
/// Fewer than a session's answers that are remembered.
const RECORDS: u64 = 60;
const TTL: Duration = Duration::from_secs(60);

fn put(key: &str, value: &str) -> Vec<u8> {
    KvCommand::Put { key: key.into(), value: value.as_bytes().to_vec() }.encode()
}

fn refusal<T: std::fmt::Debug>(result: Result<T, ClientError>) -> SessionRefusal {
    match result {
        Err(ClientError::Request(RequestError::Session { refusal })) => refusal,
        other => panic!("{other:?}"),
    }
}

async fn leader(nodes: &[RaftCluster<KeyValue>], group: GroupId) -> usize {
    until("a leader", async || {
        for (at, node) in nodes.iter().enumerate() {
            let statuses = node.engine().statuses().await.unwrap();
            if statuses.iter().any(|status| status.group == group && status.role == Role::Leader) {
                return Some(at);
            }
        }
        None
    })
    .await
}

async fn records(client: &Client, count: u64) -> Vec<(Offset, Vec<u8>)> {
    until("all records", async || {
        let records = client.read(client.leader_hint(GROUP)?, GROUP, Offset(0), 1 << 20).await.ok()?;
        let found: Vec<_> = records.iter().map(|record| (record.offset, record.data.to_vec())).collect();
        (found.len() as u64 == count).then_some(found)
    })
    .await
}

#[tokio::test]
async fn a_session_goes_on_over_leaders_that_come_and_go() {
    let plan = Plan::new(3);
    let nodes = [plan.start(1).await, plan.start(2).await, plan.start(3).await];
    let client = plan.client().await;
    let mut session = client.open_session(GROUP, TTL).await.unwrap();
    let task = tokio::spawn(async move {
        let mut answered = Vec::new();
        for number in 0..RECORDS {
            let record = put(&format!("key-{number}"), "value");
            answered.push((session.append(&[&record]).await.unwrap().offset, record));
        }
        (session, answered)
    });
    while !task.is_finished() {
        let leader = leader(&nodes, GROUP).await;
        // It may have been given away meanwhile.
        let _ = nodes[leader].transfer_leader(GROUP, None).await;
    }
    let (mut session, answered) = task.await.unwrap();
    assert_eq!(records(&client, RECORDS).await, answered);
    let outcome = session.outcome(Sequence(7)).await.unwrap();
    assert!(
        matches!(outcome, RunOutcome::Committed { offset, .. } if offset == answered[7].0),
        "{outcome:?}"
    );
    let outcome = session.outcome(Sequence(RECORDS)).await.unwrap();
    assert_eq!(outcome, RunOutcome::NotThere { expected: Sequence(RECORDS) });
    assert_eq!(session.resume().await.unwrap(), None);
    // A proposal's response comes from where it was applied.
    let response = session.propose(put("a", "1")).await.unwrap();
    assert!(KvResponse::decode(&response).is_ok());
    session.close().await.unwrap();
    client.close();
    for node in nodes {
        node.shutdown().await.unwrap();
    }
}

#[tokio::test]
async fn what_was_cut_off_is_resumed_and_done_once() {
    let plan = Plan::new(3);
    let nodes = [plan.start(1).await, plan.start(2).await, plan.start(3).await];
    let client = plan.client().await;
    let mut session = client.open_session(GROUP, TTL).await.unwrap();
    for number in 0..20 {
        let record = put("key", &number.to_string());
        // Dropped before it ends: it may have been sent or not.
        let _ = tokio::time::timeout(Duration::from_micros(number * 50), session.append(&[&record])).await;
        if session.next() == Sequence(number) {
            assert_eq!(session.append(&["other"]).await, Err(ClientError::Unfinished));
            let done = session.resume().await.unwrap();
            assert!(matches!(done, Some(SessionDone::Appended(_))), "{done:?}");
        }
    }
    let found = records(&client, 20).await;
    let wanted: Vec<_> = (0..20).map(|number| (Offset(number), put("key", &number.to_string()))).collect();
    assert_eq!(found, wanted);
    client.close();
    for node in nodes {
        node.shutdown().await.unwrap();
    }
}

/// The records would get the answer of those before.
#[tokio::test]
async fn what_may_be_in_the_log_keeps_its_sequence_whatever_another_node_says() {
    const SOME: GroupId = GroupId(42);
    let plan = Plan::new(3);
    let still = |config: &mut EngineConfig| config.core.spread = None;
    let nodes = [
        plan.start_tuned(1, still).await,
        plan.start_tuned(2, still).await,
        plan.start_tuned(3, still).await,
    ];
    nodes[0].engine().create_group(SOME, &[1, 2].map(NodeId)).await.unwrap();
    let at = leader(&nodes, SOME).await;
    let mut session =
        until("a session", async || nodes[at].engine().open_session(SOME, TTL).await.ok()).await;
    let (first, second) = ([put("order", "1")], [put("order", "2")]);
    // Handed over, and nobody waits for the answer.
    tokio::select! {
        biased;
        ended = session.append(&first) => panic!("two disks are not so fast: {ended:?}"),
        () = std::future::ready(()) => {}
    }
    until("it is in the log", async || {
        matches!(session.outcome(Sequence(0)).await, Ok(RunOutcome::Committed { .. })).then_some(())
    })
    .await;
    let other = session.append(&second).await;
    assert!(matches!(other, Err(RequestError::Invalid { .. })), "{other:?}");

    session.move_to(nodes[2].engine());
    assert_eq!(session.resume().await, Err(RequestError::UnknownGroup));
    assert_eq!((session.is_over(), session.next()), (true, Sequence(0)));
    session.move_to(nodes[at].engine());
    let other = session.append(&second).await;
    assert!(matches!(other, Err(RequestError::Invalid { .. })), "{other:?}");
    let done = session.resume().await.unwrap();
    assert!(
        matches!(&done, Some(iroh_raft::SessionDone::Appended(appended)) if appended.first == Offset(0)),
        "{done:?}"
    );
    assert_eq!((session.is_over(), session.next()), (false, Sequence(1)));
    assert_eq!(session.append(&second).await.unwrap().first, Offset(1));
    let records = nodes[at].engine().read(SOME, Offset(0), 1 << 20).await.unwrap();
    assert_eq!(
        records.iter().map(|record| record.data.to_vec()).collect::<Vec<_>>(),
        [first, second].concat()
    );
    drop(session);
    for node in nodes {
        node.shutdown().await.unwrap();
    }
}

#[tokio::test]
async fn sessions_are_their_clients_own_expire_and_are_bounded() {
    let plan = Plan::new(1);
    let node = plan.start_tuned(1, |config| config.core.sessions_per_owner_max = 2).await;
    let client = plan.client().await;
    let reader = plan.connect(&plan.reader).await.unwrap();
    let denied = reader.open_session(GROUP, TTL).await.map(|_| ());
    assert_eq!(denied, Err(ClientError::Request(RequestError::Denied)));
    let mut session = client.open_session(GROUP, TTL).await.unwrap();
    let mut brief = client.open_session(GROUP, Duration::from_millis(300)).await.unwrap();
    assert_eq!(refusal(client.open_session(GROUP, TTL).await), SessionRefusal::OwnerFull { sessions_max: 2 });
    brief.append(&[put("a", "1")]).await.unwrap();
    session.append(&[put("b", "1"), put("c", "1")]).await.unwrap();
    assert_eq!(session.next(), Sequence(2));
    // The embedding process is somebody else, and sessions of its own do the same.
    let mut own = node.engine().open_session(GROUP, TTL).await.unwrap();
    own.append(&[put("d", "1")]).await.unwrap();
    let response = own.propose(put("d", "2")).await.unwrap();
    assert!(KvResponse::decode(&response).is_ok());
    assert!(matches!(own.outcome(Sequence(1)).await, Ok(RunOutcome::Committed { offset: Offset(4), .. })));
    own.close().await.unwrap();
    let mut own = node.engine().open_session(GROUP, Duration::from_millis(300)).await.unwrap();
    until("its time is over", async || {
        matches!(
            brief.outcome(Sequence(0)).await,
            Err(ClientError::Request(RequestError::Session { refusal: SessionRefusal::Unknown }))
        )
        .then_some(())
    })
    .await;
    assert_eq!(refusal(brief.append(&[put("a", "2")]).await), SessionRefusal::Unknown);
    assert!(brief.is_over());
    assert_eq!(brief.append(&[put("a", "3")]).await, Err(ClientError::Over));
    let unknown = RequestError::Session { refusal: SessionRefusal::Unknown };
    until("its time is over as well", async || {
        (own.outcome(Sequence(0)).await == Err(unknown.clone())).then_some(())
    })
    .await;
    assert_eq!(own.append(&[put("a", "2")]).await, Err(unknown));
    assert!(own.is_over());
    let over = own.append(&[put("a", "3")]).await;
    assert!(matches!(over, Err(RequestError::Invalid { .. })), "{over:?}");
    let third = client.open_session(GROUP, TTL).await.unwrap();
    third.close().await.unwrap();
    assert_eq!(records(&client, 5).await.len(), 5);
    client.close();
    node.shutdown().await.unwrap();
}
