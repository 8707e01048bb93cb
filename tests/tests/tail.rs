//! Reading the log as a product, over real disks, rings and QUIC: tails, searches by time, cursors, trims.

use std::time::Duration;

use iroh_raft::net::client::{Client, ClientError, TailOptions};
use iroh_raft::prelude::*;
use iroh_raft::{CursorName, Engine, GroupCommand, RequestError, Retention, Role, WallTime};
use iroh_raft_tests::{PATIENCE, Plan, until};
use tokio::time::timeout;

const GROUP: GroupId = GroupId(1);

fn record(number: u64) -> Vec<u8> {
    iroh_raft::Message::encode(&KvCommand::Put { key: "k".into(), value: number.to_le_bytes().to_vec() })
}

fn name(text: &'static str) -> CursorName {
    CursorName::new(text).unwrap()
}

/// Appends records until so many are acknowledged. A retry after an unknown outcome may leave one twice.
async fn append_all(client: Client, count: u64) {
    for number in 0..count {
        until("an append", async || client.append(GROUP, record(number)).await.ok()).await;
    }
}

/// Takes records until those of all numbers have come; each must have the offset that is due.
async fn take_all(tail: &mut iroh_raft::net::client::Tail, count: u64) -> Vec<Vec<u8>> {
    let mut taken: Vec<Vec<u8>> = Vec::new();
    while taken.last() != Some(&record(count - 1)) {
        let records = timeout(PATIENCE, tail.next()).await.expect("records come").unwrap();
        for record in records.iter() {
            assert_eq!(record.offset.0, taken.len() as u64, "each record once, in order");
            taken.push(record.data.to_vec());
        }
    }
    taken
}

#[tokio::test]
async fn a_tail_goes_on_when_its_node_and_leader_is_gone() {
    let plan = Plan::new(3);
    let mut nodes = vec![Some(plan.start(1).await), Some(plan.start(2).await), Some(plan.start(3).await)];
    let client = plan.client().await;
    client.append(GROUP, record(0)).await.unwrap();
    let mut tail = client.tail(GROUP, Offset(0), TailOptions::default()).unwrap();
    assert_eq!(tail.next().await.unwrap().iter().count(), 1);
    // The leader is asked first.
    let node = tail.node().unwrap();
    assert_eq!(Some(node), client.leader_hint(GROUP));
    let writer = tokio::spawn(append_all(client.clone(), 500));
    let other = plan.client().await;
    let mut slow = other.tail(GROUP, Offset(0), TailOptions { credit_bytes: 64, node: None }).unwrap();
    slow.next().await.unwrap();
    nodes[node.0 as usize - 1].take().unwrap().shutdown().await.unwrap();
    let mut all = client.tail(GROUP, Offset(0), TailOptions::default()).unwrap();
    writer.await.unwrap();
    // One that only another node can send: all others may have come before their node was gone.
    until("an append", async || client.append(GROUP, record(500)).await.ok()).await;
    // What the two took before is there again for the third.
    let taken = take_all(&mut all, 501).await;
    for tail in [&mut tail, &mut slow] {
        let mut due = tail.offset().0 as usize;
        while due < taken.len() {
            let records = timeout(PATIENCE, tail.next()).await.expect("records come").unwrap();
            for record in records.iter() {
                assert_eq!((record.offset.0, record.data), (due as u64, &taken[due][..]));
                due += 1;
            }
        }
        assert_ne!(tail.node(), Some(node));
    }
    client.close();
    assert_eq!(timeout(PATIENCE, tail.next()).await.expect("a closed client ends"), Err(ClientError::Closed));
    other.close();
    for node in nodes.into_iter().flatten() {
        node.shutdown().await.unwrap();
    }
}

#[tokio::test]
async fn cursors_survive_a_restart_of_all_and_trims_are_told() {
    let plan = Plan::new(3);
    let nodes = [plan.start(1).await, plan.start(2).await, plan.start(3).await];
    let client = plan.client().await;
    append_all(client.clone(), 30).await;
    assert_eq!(client.cursor(GROUP, name("reader")).await, Ok(None));
    assert_eq!(client.commit_cursor(GROUP, name("reader"), Offset(20)).await, Ok(Offset(20)));
    assert_eq!(client.commit_cursor(GROUP, name("reader"), Offset(7)).await, Ok(Offset(20)));
    assert_eq!(client.set_cursor(GROUP, name("other"), Offset(5)).await, Ok(Offset(5)));
    let past = client.commit_cursor(GROUP, name("reader"), Offset(1_000)).await.unwrap_err();
    assert!(matches!(past, ClientError::Request(RequestError::PastEnd { .. })), "{past}");
    // Whoever may only read has cursors, and trims nothing.
    let reader = plan.connect(&plan.reader).await.unwrap();
    assert_eq!(reader.commit_cursor(GROUP, name("third"), Offset(1)).await, Ok(Offset(1)));
    let denied = reader.trim(GROUP, Offset(1)).await.unwrap_err();
    assert_eq!(denied, ClientError::Request(RequestError::Denied));
    reader.close();
    assert_eq!(client.trim(GROUP, Offset(10)).await, Ok(Offset(10)));
    client.drop_cursor(GROUP, name("other")).await.unwrap();
    client.close();
    for node in nodes {
        node.shutdown().await.unwrap();
    }
    let nodes = [plan.start(1).await, plan.start(2).await, plan.start(3).await];
    let client = plan.client().await;
    assert_eq!(client.cursor(GROUP, name("reader")).await, Ok(Some(Offset(20))));
    assert_eq!(client.cursor(GROUP, name("third")).await, Ok(Some(Offset(1))));
    assert_eq!(client.cursor(GROUP, name("other")).await, Ok(None));
    for node in 1..=3 {
        let gone = RequestError::BeforeStart { from: Offset(3), start: Offset(10) };
        let error = until("the trim on every node", async || {
            client.read(NodeId(node), GROUP, Offset(3), 100).await.err()
        })
        .await;
        assert_eq!(error, ClientError::Request(gone), "node {node}");
        assert_eq!(client.status(NodeId(node), GROUP).await.unwrap().first, Offset(10));
    }
    let mut tail = client.tail(GROUP, Offset(0), TailOptions::default()).unwrap();
    let error = tail.next().await.unwrap_err();
    let ClientError::Request(RequestError::BeforeStart { start, .. }) = error else { panic!("{error}") };
    tail.seek(start);
    assert_eq!(tail.next().await.unwrap().iter().next().unwrap().offset, Offset(10));
    client.close();
    for node in nodes {
        node.shutdown().await.unwrap();
    }
}

async fn alone(folder: &std::path::Path, retention: Retention) -> RaftCluster<iroh_raft::LogOnly> {
    let builder = RaftCluster::builder().node_id(1).preset(Preset::Development).data_dir(folder.join("n"));
    let tuned = |config: &mut iroh_raft::EngineConfig| {
        config.core.window_bytes_max = 64 << 10;
        config.core.retention_interval = Duration::from_millis(50);
    };
    builder.retention(1, retention).tune(tuned).build().await.unwrap()
}

fn now() -> WallTime {
    let now = std::time::SystemTime::now().duration_since(std::time::UNIX_EPOCH).unwrap();
    WallTime(now.as_millis() as u64)
}

/// Far more than memory holds, at a consumer that grants little.
#[tokio::test]
async fn a_slow_tail_of_an_embedded_node_is_fed_from_the_disk() {
    let folder = tempfile::tempdir().unwrap();
    let node = alone(folder.path(), Retention::default()).await;
    let engine: &Engine = node.engine();
    let large = |number: u64| [&number.to_le_bytes()[..], &[7; 8 << 10]].concat();
    let mut tail = engine.tail(GROUP, Offset(0), 32 << 10);
    for number in 0..400 {
        engine.append(GROUP, &[large(number)]).await.unwrap();
    }
    let before = now();
    engine.append(GROUP, &[large(400)]).await.unwrap();
    let mut due = 0;
    while due <= 400 {
        let records = timeout(PATIENCE, tail.next()).await.expect("records come").unwrap();
        assert!(records.bytes() <= (32 << 10) + (9 << 10), "{} bytes at once", records.bytes());
        for record in records.iter() {
            assert_eq!((record.offset, record.data), (Offset(due), &large(due)[..]));
            due += 1;
        }
    }
    // Nothing more: it waits, and what comes then is sent at once.
    assert!(timeout(Duration::from_millis(50), tail.next()).await.is_err());
    engine.append(GROUP, &["late"]).await.unwrap();
    let late = timeout(PATIENCE, tail.next()).await.expect("a record comes").unwrap();
    assert_eq!(late.iter().next().unwrap().data, b"late");
    let found = engine.find(GROUP, before).await.unwrap();
    assert!((Offset(390)..=Offset(400)).contains(&found), "{found}");
    assert_eq!(engine.find(GROUP, WallTime(0)).await, Ok(Offset(0)));
    assert_eq!(engine.find(GROUP, WallTime(u64::MAX)).await, Ok(Offset(402)));
    let bounded = engine.read_from(GROUP, Offset(5), 1 << 20, 3).await.unwrap();
    assert_eq!((bounded.iter().count(), bounded.next()), (3, Offset(8)));
    node.clone().shutdown().await.unwrap();
    assert!(timeout(PATIENCE, tail.next()).await.expect("an ended node ends its tails").is_err());
}

#[tokio::test]
async fn a_leader_trims_what_its_group_does_not_keep() {
    let folder = tempfile::tempdir().unwrap();
    let retention = Retention { bytes_max: Some(256 << 10), age_max: None };
    let node = alone(folder.path(), retention).await;
    let engine = node.engine();
    for _ in 0..100 {
        engine.append(GROUP, &[[7; 8 << 10]]).await.unwrap();
    }
    let status = until("records are let go of", async || {
        let statuses = engine.statuses().await.unwrap();
        let status = statuses.into_iter().find(|status| status.group == GROUP).unwrap();
        (status.first > Offset(60)).then_some(status)
    })
    .await;
    assert!(status.role == Role::Leader && status.first < Offset(100), "{status:?}");
    let cursor = GroupCommand::CommitCursor { name: name("c"), offset: Offset(100) };
    assert_eq!(engine.command(GROUP, cursor).await, Ok(Some(Offset(100))));
    assert_eq!(engine.cursor(GROUP, name("c")).await, Ok(Some(Offset(100))));
    node.clone().shutdown().await.unwrap();
}
