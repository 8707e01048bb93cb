//! Nodes that come back with other shards, one after the other, under load: the cluster serves all the while, groups go
//! quiet and wake, and nothing that was acknowledged is lost.

use std::collections::BTreeMap;
use std::sync::atomic::{AtomicBool, Ordering};
use std::sync::{Arc, Mutex};

use iroh_raft::net::client::Client;
use iroh_raft::prelude::*;
use iroh_raft::{EngineConfig, ShardId, storage};
use iroh_raft_tests::{Plan, until};

const GROUPS: u64 = 6;
/// The group that is placed by name.
const HOT: GroupId = GroupId(3);
/// Records of each group between two restarts, at least.
const RECORDS: usize = 20;

type Node = RaftCluster<KeyValue>;
/// What was acknowledged, by group and offset.
type Acknowledged = Arc<Mutex<BTreeMap<(GroupId, Offset), Vec<u8>>>>;

fn groups() -> impl Iterator<Item = GroupId> {
    (1..=GROUPS).map(GroupId)
}

fn placed(shards: u16, hot: Option<u16>) -> impl FnOnce(&mut EngineConfig) {
    move |engine| {
        engine.shards = shards;
        engine.placed = hot.map(|shard| (HOT, ShardId(shard))).into_iter().collect();
        engine.groups = groups().collect();
    }
}

fn command(number: u64) -> Vec<u8> {
    let put = KvCommand::Put { key: format!("key-{number}"), value: number.to_le_bytes().to_vec() };
    iroh_raft::Message::encode(&put)
}

/// Writes to all groups until it is told to stop; a write whose outcome is not known is not counted.
async fn write(client: Client, acknowledged: Acknowledged, is_over: Arc<AtomicBool>) {
    let mut number = 0;
    while !is_over.load(Ordering::Relaxed) {
        for group in groups() {
            number += 1;
            let record = command(number);
            if let Ok(appended) = client.append(group, &record).await {
                acknowledged.lock().unwrap().insert((group, appended.offset), record);
            }
        }
    }
}

/// Waits until every group has acknowledged more.
async fn progress(acknowledged: &Acknowledged) {
    let count = |group: GroupId| acknowledged.lock().unwrap().keys().filter(|(of, _)| *of == group).count();
    let before: Vec<usize> = groups().map(count).collect();
    for (group, before) in groups().zip(before) {
        until(&format!("writes to group {group}"), async || (count(group) >= before + RECORDS).then_some(()))
            .await;
    }
}

async fn all_quiet(nodes: &[Option<Node>]) {
    until("quiet groups", async || {
        let mut count = 0;
        for node in nodes.iter().flatten() {
            count += node.engine().statuses().await.unwrap().iter().filter(|status| status.is_quiet).count();
        }
        (count == nodes.len() * GROUPS as usize).then_some(())
    })
    .await;
}

async fn read_all(client: &Client, node: NodeId, group: GroupId) -> Option<BTreeMap<Offset, Vec<u8>>> {
    let (mut found, mut from) = (BTreeMap::new(), Offset(0));
    loop {
        let records = client.read(node, group, from, 1 << 20).await.ok()?;
        found.extend(records.iter().map(|record| (record.offset, record.data.to_vec())));
        from = records.next();
        if records.is_empty() {
            return Some(found);
        }
    }
}

struct Load {
    is_over: Arc<AtomicBool>,
    writer: tokio::task::JoinHandle<()>,
}

impl Load {
    fn start(client: &Client, acknowledged: &Acknowledged) -> Load {
        let is_over = Arc::<AtomicBool>::default();
        let writer = tokio::spawn(write(client.clone(), acknowledged.clone(), is_over.clone()));
        Load { is_over, writer }
    }

    async fn end(self) {
        self.is_over.store(true, Ordering::Relaxed);
        self.writer.await.unwrap();
    }
}

#[tokio::test]
async fn nodes_come_back_with_other_shards_under_load() {
    let plan = Plan::new(3);
    let mut nodes = Vec::new();
    for node in 1..=3 {
        nodes.push(Some(plan.start_tuned(node, placed(1, None)).await));
    }
    let client = plan.client().await;
    let acknowledged = Acknowledged::default();
    let mut load = Load::start(&client, &acknowledged);
    progress(&acknowledged).await;

    // The first node has two shards while the others have one, and so on; at last all differ in something.
    let rounds: [(u16, Option<u16>); 3] = [(2, None), (3, Some(2)), (1, None)];
    for (shards, hot) in rounds {
        for (at, number) in [(0, 1), (1, 2), (2, 3)] {
            let node: Node = nodes[at].take().unwrap();
            node.shutdown().await.unwrap();
            progress(&acknowledged).await;
            nodes[at] = Some(plan.start_tuned(number, placed(shards, hot)).await);
            let started = nodes[at].as_ref().unwrap().engine();
            assert_eq!(started.stats().shards.len(), usize::from(shards));
            progress(&acknowledged).await;
            if number == 1 {
                // Nobody asks for anything while their placements differ.
                load.end().await;
                all_quiet(&nodes).await;
                load = Load::start(&client, &acknowledged);
                progress(&acknowledged).await;
            }
        }
    }
    load.end().await;

    let expected = acknowledged.lock().unwrap().clone();
    for number in 1..=3 {
        for group in groups() {
            let last = expected.keys().filter(|(of, _)| *of == group).map(|(_, offset)| *offset).max();
            let records = until("all records of a group", async || {
                let records = read_all(&client, NodeId(number), group).await?;
                (records.keys().max().copied() >= last).then_some(records)
            })
            .await;
            for ((_, offset), record) in expected.range((group, Offset(0))..=(group, Offset(u64::MAX))) {
                assert_eq!(
                    records.get(offset),
                    Some(record),
                    "node {number}, group {group}, offset {offset}"
                );
            }
        }
    }
    client.close();
    for node in nodes.into_iter().flatten() {
        node.shutdown().await.unwrap();
    }
    for number in 1..=3 {
        let report = storage::check(plan.folder.path().join(format!("node-{number}"))).unwrap();
        assert!(report.is_sound(), "{report}");
        assert_eq!(report.identity.placement.shard_count(), 1);
    }
}
