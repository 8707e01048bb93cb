//! Repair between real nodes: records of a stopped node are damaged on its disk, and its peers give them to it again while
//! others append.

use std::path::Path;
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};

use iroh_raft::net::client::{Client, ClientError};
use iroh_raft::prelude::*;
use iroh_raft::stats::ShardStats;
use iroh_raft::{Consistency, GroupStatus, Message, RequestError};
use iroh_raft_tests::{Plan, until};

const GROUP: GroupId = GroupId(1);
/// What values are made of, and what is looked for on the disk.
const FILLER: u8 = b'~';
const VALUE_BYTES: usize = 400;
/// A run of so many fillers is part of a value.
const RUN_BYTES: usize = 100;
const KEYS: u64 = 300;

type Node = RaftCluster<KeyValue>;

fn put(key: u64) -> Vec<u8> {
    Message::encode(&KvCommand::Put { key: format!("key-{key}"), value: vec![FILLER; VALUE_BYTES] })
}

fn stats(node: &Node) -> ShardStats {
    node.engine().stats().shards[0]
}

async fn status(node: &Node) -> GroupStatus {
    let statuses = node.engine().statuses().await.unwrap();
    statuses.into_iter().find(|status| status.group == GROUP).unwrap()
}

/// Writes keys until it is told to stop; returns those whose write was acknowledged.
async fn write_until_over(client: Client, first: u64, is_over: Arc<AtomicBool>) -> Vec<u64> {
    let mut written = Vec::new();
    for key in first.. {
        if is_over.load(Ordering::Relaxed) {
            break;
        }
        match client.propose(GROUP, put(key)).await {
            Ok(_) => written.push(key),
            Err(ClientError::OutcomeUnknown | ClientError::Request(RequestError::OutcomeUnknown { .. })) => {}
            Err(error) => panic!("a write failed: {error}"),
        }
    }
    written
}

/// Damages every value that a file holds. Returns how many.
fn damage_values(path: &Path) -> usize {
    let mut bytes = std::fs::read(path).unwrap();
    let mut count = 0;
    let mut run = 0;
    for byte in &mut bytes {
        run = if *byte == FILLER { run + 1 } else { 0 };
        if run == RUN_BYTES {
            *byte ^= 1;
            count += 1;
        }
    }
    std::fs::write(path, bytes).unwrap();
    count
}

#[tokio::test]
async fn damaged_records_come_back_from_the_peers_under_load() {
    let plan = Plan::new(3);
    let mut nodes = vec![plan.start(1).await, plan.start(2).await, plan.start(3).await];
    let client = plan.client().await;
    for key in 0..KEYS {
        client.propose(GROUP, put(key)).await.unwrap();
    }
    let is_over = Arc::<AtomicBool>::default();
    let writers = (1..=4)
        .map(|writer| tokio::spawn(write_until_over(client.clone(), writer * 1_000_000, is_over.clone())));
    let writers: Vec<_> = writers.collect();

    nodes.pop().unwrap().shutdown().await.unwrap();
    let journal = plan.folder.path().join("node-3/shard-0/journal.redb");
    assert!(damage_values(&journal) > 100, "values are in the journal");
    nodes.push(plan.start(3).await);
    let repaired = until("the repair", async || {
        let status = status(&nodes[2]).await;
        let is_well = stats(&nodes[2]).repairs_done > 0 && !status.is_under_repair;
        is_well.then_some(status)
    })
    .await;
    assert!(!repaired.is_quarantined && stats(&nodes[2]).repairs_begun > 0, "{repaired:?}");

    is_over.store(true, Ordering::Relaxed);
    let mut written: Vec<u64> = (0..KEYS).collect();
    for writer in writers {
        written.extend(writer.await.unwrap());
    }
    // It counts again: with it alone the other follower is not needed.
    nodes.remove(1).shutdown().await.unwrap();
    client.propose(GROUP, put(999)).await.unwrap();
    for key in written.into_iter().chain([999]) {
        let query = Message::encode(&KvQuery::Value { key: format!("key-{key}") });
        let answer = client.query_at(NodeId(3), GROUP, query, Consistency::Linearizable).await.unwrap();
        let answer = KvAnswer::decode(&answer.bytes).unwrap();
        assert_eq!(answer, KvAnswer::Value(Some(vec![FILLER; VALUE_BYTES])), "key {key}");
    }
    for node in nodes {
        node.shutdown().await.unwrap();
    }
}

/// Only what was taken out is opened again.
#[tokio::test]
async fn a_replica_in_service_is_not_opened_again() {
    let plan = Plan::new(1);
    let node = plan.start(1).await;
    let client = plan.client().await;
    client.propose(GROUP, put(1)).await.unwrap();
    assert!(matches!(node.engine().revive(GROUP).await, Err(RequestError::Invalid { .. })));
    let refused = client.revive(NodeId(1), GROUP).await;
    assert!(matches!(refused, Err(ClientError::Request(RequestError::Invalid { .. }))), "{refused:?}");
    let unknown = client.revive(NodeId(1), GroupId(99)).await;
    assert!(matches!(unknown, Err(ClientError::Request(RequestError::UnknownGroup))), "{unknown:?}");
    let reader = plan.connect(&plan.reader).await.unwrap();
    let denied = reader.revive(NodeId(1), GROUP).await;
    assert!(matches!(denied, Err(ClientError::Request(RequestError::Denied))), "{denied:?}");
    node.shutdown().await.unwrap();
}
