//! Groups that nobody uses go quiet on real nodes, and wake for whatever is to be done.

use std::time::{Duration, Instant};

use iroh_raft::prelude::*;
use iroh_raft::{Consistency, GroupStatus, Message, Role};
use iroh_raft_tests::{Plan, until};

const GROUPS: usize = 3;
/// From the death of a leader's node to another's lead, at most: detection takes half a second, an election as much.
/// Two cores run everything else as well.
const FAILOVER_MAX: Duration = Duration::from_secs(5);

type Node = RaftCluster<KeyValue>;

fn record(number: u64) -> Vec<u8> {
    Message::encode(&KvCommand::Put { key: "k".into(), value: number.to_le_bytes().to_vec() })
}

async fn statuses(nodes: &[Node]) -> Vec<GroupStatus> {
    let mut all = Vec::new();
    for node in nodes {
        all.extend(node.engine().statuses().await.unwrap());
    }
    all
}

async fn all_quiet(nodes: &[Node]) -> Vec<GroupStatus> {
    until("quiet groups", async || {
        let all = statuses(nodes).await;
        let is_quiet = all.len() == nodes.len() * GROUPS && all.iter().all(|status| status.is_quiet);
        is_quiet.then_some(all)
    })
    .await
}

#[tokio::test]
async fn idle_groups_are_quiet_until_they_are_needed() {
    let plan = Plan::new(3);
    let mut nodes = vec![plan.start(1).await, plan.start(2).await, plan.start(3).await];
    let client = plan.client().await;
    for group in 1..=GROUPS as u64 {
        client.append(GroupId(group), record(group)).await.unwrap();
    }
    let before = all_quiet(&nodes).await;
    // Beats keep them so.
    tokio::time::sleep(Duration::from_secs(2)).await;
    let after = all_quiet(&nodes).await;
    let terms =
        |all: &[GroupStatus]| all.iter().map(|status| (status.group, status.term)).collect::<Vec<_>>();
    assert_eq!(terms(&before), terms(&after), "nobody was elected meanwhile");

    client.append(GroupId(1), record(7)).await.unwrap();
    let answer = client.query(
        GroupId(2),
        Message::encode(&KvQuery::Value { key: "k".into() }),
        Consistency::Linearizable,
    );
    answer.await.unwrap();
    all_quiet(&nodes).await;

    // The node that leads group 1 is gone, without a word.
    let is_leader = |status: &GroupStatus| status.group == GroupId(1) && status.role == Role::Leader;
    let mut leader = None;
    for (at, node) in nodes.iter().enumerate() {
        leader = node.engine().statuses().await.unwrap().iter().any(is_leader).then_some(at).or(leader);
    }
    drop(nodes.remove(leader.expect("a quiet group has a leader")));
    let died = Instant::now();
    until("another leader", async || statuses(&nodes).await.iter().any(is_leader).then_some(())).await;
    assert!(died.elapsed() < FAILOVER_MAX, "{:?}", died.elapsed());
    client.append(GroupId(1), record(8)).await.unwrap();
    // A leader that has not heard the third invites it for as long as that takes: its groups stay awake.
    for node in nodes {
        node.shutdown().await.unwrap();
    }
}
