//! Nodes in one process, over real disks, rings and QUIC.

use std::time::Duration;

use iroh_raft::prelude::*;
use iroh_raft::{RequestError, Role};
use iroh_raft_tests::{Plan, until};

fn put(key: &str, value: &str) -> KvCommand {
    KvCommand::Put { key: key.into(), value: value.as_bytes().to_vec() }
}

async fn hash(cluster: &RaftCluster<KeyValue>) -> Option<KvAnswer> {
    Some(cluster.query_local(GroupId(1), &KvQuery::Hash).await.ok()?.0)
}

#[tokio::test]
async fn three_nodes_replicate_over_quic_and_agree() {
    let plan = Plan::new(3);
    let nodes = [plan.start(1).await, plan.start(2).await, plan.start(3).await];
    let client = plan.client().await;
    for number in 0..50 {
        let command = iroh_raft::Message::encode(&put(&format!("key-{}", number % 7), &number.to_string()));
        client.propose(GroupId(1), &command).await.unwrap();
    }
    // Any of them answers a linearizable query.
    let query = KvQuery::Value { key: "key-0".into() };
    for node in &nodes {
        assert_eq!(node.query(&query).await, Ok(KvAnswer::Value(Some(b"49".to_vec()))));
    }
    let wanted = hash(&nodes[0]).await;
    for node in &nodes {
        until("equal hashes", async || (hash(node).await == wanted).then_some(())).await;
    }
    client.close();
    for node in nodes {
        node.shutdown().await.unwrap();
    }
}

#[tokio::test]
async fn what_was_acknowledged_survives_a_restart_of_all() {
    let plan = Plan::new(3);
    let nodes = [plan.start(1).await, plan.start(2).await, plan.start(3).await];
    let client = plan.client().await;
    let mut acknowledged = Vec::new();
    for number in 0..20 {
        let record = iroh_raft::Message::encode(&put("k", &number.to_string()));
        let appended = client.append(GroupId(2), &record).await.unwrap();
        acknowledged.push((appended.offset, record));
    }
    client.close();
    for node in nodes {
        node.shutdown().await.unwrap();
    }
    let nodes = [plan.start(1).await, plan.start(2).await, plan.start(3).await];
    for node in &nodes {
        let records = until("the whole log", async || {
            let records = node.engine().read(GroupId(2), Offset(0), 1 << 20).await.ok()?;
            (records.end == Offset(20)).then_some(records)
        })
        .await;
        let read: Vec<_> = records.iter().map(|record| (record.offset, record.data.to_vec())).collect();
        assert_eq!(read, acknowledged);
    }
    for node in nodes {
        node.shutdown().await.unwrap();
    }
}

#[tokio::test]
async fn a_leader_that_shuts_down_hands_over_first() {
    let plan = Plan::new(3);
    let mut nodes = vec![plan.start(1).await, plan.start(2).await, plan.start(3).await];
    let client = plan.client().await;
    client.append(GroupId(1), iroh_raft::Message::encode(&put("a", "1"))).await.unwrap();
    let leader = until("a leader", async || {
        for (at, node) in nodes.iter().enumerate() {
            let statuses = node.engine().statuses().await.unwrap();
            if statuses.iter().any(|status| status.group == GroupId(1) && status.role == Role::Leader) {
                return Some(at);
            }
        }
        None
    })
    .await;
    nodes.remove(leader).shutdown().await.unwrap();
    client.append(GroupId(1), iroh_raft::Message::encode(&put("a", "2"))).await.unwrap();
    client.close();
    for node in nodes {
        node.shutdown().await.unwrap();
    }
}

#[tokio::test]
async fn a_single_node_answers_at_once_and_refuses_what_it_must() {
    let folder = tempfile::tempdir().unwrap();
    let node = RaftCluster::builder()
        .node_id(1)
        .preset(Preset::Development)
        .data_dir(folder.path().join("n"))
        .tune(|config| config.record_bytes_max = 1024)
        .build()
        .await
        .unwrap();
    let engine = node.engine();
    let appended = engine.append(GroupId(1), &["a", "b"]).await.unwrap();
    assert_eq!((appended.first, appended.count), (Offset(0), 2));
    let large = engine.append(GroupId(1), &[vec![0_u8; 1025]]).await.unwrap_err();
    assert_eq!(large, RequestError::TooLarge { bytes: 1025, bytes_max: 1024 });
    assert_eq!(engine.append(GroupId(9), &["x"]).await.unwrap_err(), RequestError::UnknownGroup);
    let past = engine.read(GroupId(1), Offset(3), 100).await.unwrap_err();
    assert_eq!(past, RequestError::PastEnd { from: Offset(3), end: Offset(2) });
    let command = engine.propose(GroupId(1), b"x").await.unwrap_err();
    assert!(matches!(command, RequestError::Invalid { .. }), "{command}");
    let none: [&str; 0] = [];
    assert!(matches!(engine.append(GroupId(1), &none).await, Err(RequestError::Invalid { .. })));
    node.clone().shutdown().await.unwrap();
    let gone =
        tokio::time::timeout(Duration::from_secs(10), node.engine().append(GroupId(1), &["late"])).await;
    assert!(gone.expect("an ended shard does not leave callers waiting").is_err());
}
