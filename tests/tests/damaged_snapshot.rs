//! A stored snapshot is damaged on the disk of a stopped node, whose log begins after it: its leader's takes its place.

use std::path::Path;

use iroh_raft::net::client::{Client, ClientError};
use iroh_raft::prelude::*;
use iroh_raft::stats::ShardStats;
use iroh_raft::{EngineConfig, Message, RequestError};
use iroh_raft_tests::{Plan, until};

const GROUP: GroupId = GroupId(1);
const KEYS: u64 = 300;
const VALUE_BYTES: usize = 2_000;
/// How a stored chunk begins, and where its data does (FORMAT.md, "Snapshots").
const CHUNK_MAGIC: &[u8] = b"IRSC";
const CHUNK_HEADER_BYTES: usize = 64;

type Node = RaftCluster<KeyValue>;

fn small_logs(config: &mut EngineConfig) {
    config.core.snapshots.entries = 50;
    config.core.snapshots.lag_entries_max = 0;
}

fn put(key: u64) -> Vec<u8> {
    Message::encode(&KvCommand::Put { key: format!("key-{key}"), value: vec![key as u8; VALUE_BYTES] })
}

fn stats(node: &Node) -> ShardStats {
    node.engine().stats().shards[0]
}

/// Flips a bit in each chunk that a file holds. Returns how many.
fn damage_chunks(path: &Path) -> usize {
    let mut bytes = std::fs::read(path).unwrap();
    let heads = bytes.windows(CHUNK_MAGIC.len()).enumerate().filter(|(_, found)| *found == CHUNK_MAGIC);
    let heads: Vec<usize> = heads.map(|(at, _)| at).collect();
    heads.iter().for_each(|at| bytes[at + CHUNK_HEADER_BYTES] ^= 1);
    std::fs::write(path, bytes).unwrap();
    heads.len()
}

async fn wait_until_compacted(client: &Client, node: NodeId) {
    until("a log that begins after a snapshot", async || {
        let read = client.read(node, GROUP, Offset(0), 1).await;
        matches!(read, Err(ClientError::Request(RequestError::BeforeStart { .. }))).then_some(())
    })
    .await;
}

#[tokio::test]
async fn a_damaged_snapshot_comes_from_the_leader() {
    let plan = Plan::new(3);
    let mut nodes = Vec::new();
    for node in 1..=3 {
        nodes.push(plan.start_tuned(node, small_logs).await);
    }
    let client = plan.client().await;
    for key in 0..KEYS {
        client.propose(GROUP, put(key)).await.unwrap();
    }
    wait_until_compacted(&client, NodeId(3)).await;
    nodes.pop().unwrap().shutdown().await.unwrap();
    let log = plan.folder.path().join("node-3/shard-0/log.redb");
    assert!(damage_chunks(&log) > 0, "a snapshot is in the log file");

    nodes.push(plan.start_tuned(3, small_logs).await);
    until("the replica is well again", async || {
        let stats = stats(&nodes[2]);
        (stats.snapshots_damaged > 0 && stats.repairs_done > 0).then_some(())
    })
    .await;
    // It counts again: with it alone the other follower is not needed.
    nodes.remove(1).shutdown().await.unwrap();
    client.propose(GROUP, put(KEYS)).await.unwrap();
    until("the same state", async || {
        let (ours, _) = nodes[1].query_local(GROUP, &KvQuery::Hash).await.ok()?;
        let (theirs, _) = nodes[0].query_local(GROUP, &KvQuery::Hash).await.ok()?;
        (ours == theirs).then_some(())
    })
    .await;
    for key in 0..=KEYS {
        let query = KvQuery::Value { key: format!("key-{key}") };
        let (value, _) = nodes[1].query_local(GROUP, &query).await.unwrap();
        assert_eq!(value, KvAnswer::Value(Some(vec![key as u8; VALUE_BYTES])), "key {key}");
    }
    client.close();
    for node in nodes {
        node.shutdown().await.unwrap();
    }
}
