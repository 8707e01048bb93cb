//! Snapshots between real nodes: a learner is brought up by one while others append, also when a side ends in the
//! middle of it.

use std::collections::BTreeMap;
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};

use iroh_raft::net::client::{Client, ClientError};
use iroh_raft::prelude::*;
use iroh_raft::stats::ShardStats;
use iroh_raft::{EngineConfig, MemberChange, MemberRole, Message, RequestError};
use iroh_raft_tests::{Plan, until};

const GROUP: GroupId = GroupId(1);
/// What the state is made of: about 6 MB, 23 chunks.
const KEYS: u64 = 600;
const VALUE_BYTES: usize = 10_000;
const CHUNKS: u64 = 22;

type Node = RaftCluster<KeyValue>;

fn small_logs(config: &mut EngineConfig) {
    config.voters = [1, 2, 3].map(NodeId).to_vec();
    config.core.snapshots.entries = 50;
    config.core.snapshots.lag_entries_max = 0;
}

/// As above, and slow enough to be met in the middle.
fn slow_transfers(config: &mut EngineConfig) {
    small_logs(config);
    config.core.snapshots.send_bytes_per_second = 4 << 20;
}

fn put(key: u64, filler: u8) -> Vec<u8> {
    Message::encode(&KvCommand::Put { key: format!("key-{key}"), value: vec![filler; VALUE_BYTES] })
}

fn stats(node: &Node) -> ShardStats {
    node.engine().stats().shards[0]
}

/// Writes the state, until the log begins after some of it.
async fn fill(client: &Client) {
    for key in 0..KEYS {
        client.propose(GROUP, put(key, key as u8)).await.unwrap();
    }
    let leader = client.leader_hint(GROUP).unwrap();
    let start =
        until("a log that is compacted", async || match client.read(leader, GROUP, Offset(0), 1).await {
            Err(ClientError::Request(RequestError::BeforeStart { start, .. })) => Some(start),
            _ => None,
        })
        .await;
    assert!(start > Offset(0));
}

async fn add_learner(client: &Client) {
    let learner = [MemberChange { node: NodeId(4), role: MemberRole::Learner }];
    until("a learner is added", async || client.change_members(GROUP, &learner).await.ok()).await;
}

/// All have the same state, and all of what was acknowledged.
async fn audit(nodes: &BTreeMap<u64, Node>) {
    until("the same state everywhere", async || {
        let mut hashes = Vec::new();
        for node in nodes.values() {
            hashes.push(node.query_local(GROUP, &KvQuery::Hash).await.ok()?.0);
        }
        hashes.windows(2).all(|pair| pair[0] == pair[1]).then_some(())
    })
    .await;
    for key in 0..KEYS {
        let query = KvQuery::Value { key: format!("key-{key}") };
        let (value, _) = nodes[&4].query_local(GROUP, &query).await.unwrap();
        assert_eq!(value, KvAnswer::Value(Some(vec![key as u8; VALUE_BYTES])));
    }
}

async fn start_all(plan: &Plan, change: fn(&mut EngineConfig)) -> BTreeMap<u64, Node> {
    let mut nodes = BTreeMap::new();
    for node in 1..=4 {
        nodes.insert(node, plan.start_tuned(node, change).await);
    }
    nodes
}

async fn shut_down(client: Client, nodes: BTreeMap<u64, Node>) {
    client.close();
    for node in nodes.into_values() {
        node.shutdown().await.unwrap();
    }
}

#[tokio::test]
async fn a_learner_is_brought_up_by_a_snapshot_under_load() {
    let plan = Plan::new(4);
    let nodes = start_all(&plan, small_logs).await;
    let client = plan.client().await;
    fill(&client).await;
    let is_over = Arc::new(AtomicBool::new(false));
    let load = tokio::spawn({
        let (client, is_over) = (plan.client().await, is_over.clone());
        async move {
            let mut number = KEYS;
            while !is_over.load(Ordering::Relaxed) {
                client.propose(GROUP, put(number, 1)).await.unwrap();
                // The same keys, so that the state does not grow.
                number = KEYS + (number + 1) % 50;
            }
            client.close();
        }
    });
    add_learner(&client).await;
    until("a snapshot is installed", async || (stats(&nodes[&4]).snapshots_installed > 0).then_some(()))
        .await;
    is_over.store(true, Ordering::Relaxed);
    load.await.unwrap();
    audit(&nodes).await;
    let received = stats(&nodes[&4]).snapshot_chunks_received;
    // The next one is taken when half as much as the last one was applied: the rest came as log.
    assert!(received >= CHUNKS * 2 / 3, "{received} chunks of a state of {CHUNKS}");

    // It starts again from what it received, not from a log that it never had.
    let mut nodes = nodes;
    nodes.remove(&4).unwrap().shutdown().await.unwrap();
    nodes.insert(4, plan.start_tuned(4, small_logs).await);
    audit(&nodes).await;
    assert_eq!(stats(&nodes[&4]).snapshots_installed, 0);
    shut_down(client, nodes).await;
}

#[tokio::test]
async fn a_transfer_goes_on_where_its_receiver_stopped() {
    let plan = Plan::new(4);
    let mut nodes = start_all(&plan, slow_transfers).await;
    let client = plan.client().await;
    fill(&client).await;
    add_learner(&client).await;
    let received = |node: &Node| stats(node).snapshot_chunks_received;
    until("half of it", async || (received(&nodes[&4]) >= CHUNKS / 2).then_some(())).await;
    let before = received(&nodes[&4]);
    assert!(before < CHUNKS, "it was over too soon to be stopped");
    nodes.remove(&4).unwrap().shutdown().await.unwrap();
    nodes.insert(4, plan.start_tuned(4, slow_transfers).await);
    audit(&nodes).await;
    let after = received(&nodes[&4]);
    assert!(after < CHUNKS, "{before} chunks were there, and {after} came again");
    shut_down(client, nodes).await;
}

#[tokio::test]
async fn a_transfer_survives_the_end_of_its_sender() {
    let plan = Plan::new(4);
    let mut nodes = start_all(&plan, slow_transfers).await;
    let client = plan.client().await;
    fill(&client).await;
    add_learner(&client).await;
    until("some of it", async || (stats(&nodes[&4]).snapshot_chunks_received >= 3).then_some(())).await;
    let senders: Vec<u64> = (1..=3).filter(|node| stats(&nodes[node]).snapshot_chunks_sent > 0).collect();
    assert_eq!(senders.len(), 1, "one node sends: {senders:?}");
    nodes.remove(&senders[0]).unwrap().shutdown().await.unwrap();
    until("a snapshot of another", async || (stats(&nodes[&4]).snapshots_installed > 0).then_some(())).await;
    nodes.insert(senders[0], plan.start_tuned(senders[0], slow_transfers).await);
    audit(&nodes).await;
    shut_down(client, nodes).await;
}
