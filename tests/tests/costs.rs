//! What a node says of where time and work go.

use std::time::{Duration, Instant};

use iroh_raft::prelude::*;
use iroh_raft::{Engine, GroupCost, RecordBlock, RequestError, Role};
use iroh_raft_tests::{Plan, until};

const APPENDS: u64 = 20;

async fn leader_of(nodes: &[RaftCluster<KeyValue>], group: GroupId) -> &Engine {
    until("a leader", async || {
        for node in nodes {
            let statuses = node.engine().statuses().await.ok()?;
            if statuses.iter().any(|status| status.group == group && status.role == Role::Leader) {
                return Some(node.engine());
            }
        }
        None
    })
    .await
}

/// The second group of the plan has the load, the others none.
#[tokio::test]
async fn appends_say_where_their_time_went_and_groups_what_they_cost() {
    let plan = Plan::new(3);
    // With several threads on the bridge, as far as that matters here.
    let tune = |config: &mut iroh_raft::EngineConfig| config.bridge_threads = 2;
    let nodes =
        [plan.start_tuned(1, tune).await, plan.start_tuned(2, tune).await, plan.start_tuned(3, tune).await];
    let client = plan.client().await;
    let value = vec![7; 1000];
    let record = iroh_raft::Message::encode(&KvCommand::Put { key: "k".into(), value });
    let (group, idle) = (GroupId(2), GroupId(3));
    // Before that it may have cost nothing at all.
    leader_of(&nodes, idle).await;
    for number in 0..APPENDS {
        let began = Instant::now();
        let (appended, stages) = client.append_timed(group, &[&record, &record]).await.unwrap();
        let all_us = began.elapsed().as_micros();
        assert_eq!(appended.offset, Offset(2 * number));
        let at_leader_us = [stages.ring_us, stages.turn_us, stages.commit_us].map(u128::from).iter().sum();
        assert!((1..=all_us).contains(&at_leader_us), "{stages:?} of {all_us} us");
        assert!(stages.commit_us > 0, "a quorum's disks take time: {stages:?}");
        assert!(stages.flush_us.is_none_or(|flush_us| flush_us <= stages.commit_us), "{stages:?}");
    }
    let leader = leader_of(&nodes, group).await;
    let block = || RecordBlock::from_records(&[&record]);
    let (appended, stages) = leader.append_timed(group, block()).await.unwrap();
    assert_eq!((appended.first, appended.count), (Offset(2 * APPENDS), 1));
    assert!(stages.commit_us > 0, "{stages:?}");
    let follower = nodes.iter().find(|node| node.engine().node() != leader.node()).unwrap();
    let refused = follower.engine().append_timed(group, block()).await;
    assert!(matches!(refused, Err(RequestError::NotLeader { .. })), "{refused:?}");

    let costs = leader.group_costs().await.unwrap();
    let cost = |of: GroupId| costs.iter().find(|(group, _)| *group == of).map(|(_, cost)| *cost).unwrap();
    let GroupCost { cpu, inputs, records, flushes, written_bytes, messages, sent_bytes } = cost(group);
    assert_eq!(records, 2 * APPENDS + 1);
    let bytes = records * record.len() as u64;
    assert!((bytes..bytes + bytes / 5).contains(&written_bytes), "{written_bytes} of {bytes}");
    assert!((2 * bytes..3 * bytes).contains(&sent_bytes), "{sent_bytes} of {bytes} to two followers");
    assert!(flushes > APPENDS && messages >= 2 * APPENDS && inputs >= APPENDS && !cpu.is_zero());
    assert!(cost(idle).written_bytes < bytes / 10 && cost(idle).cpu < cpu);

    let (threads, rings) = (leader.thread_costs(), leader.rings());
    let thread = |name: &str| threads.iter().filter(|thread| thread.name == name).count();
    // Two serve, and one waits for their end.
    let expected = [("shard-0", 1), ("writer-0", 1), ("bridge", 3), ("mover", 1), ("reader", 1)];
    for (name, count) in expected {
        assert!(thread(name) >= count, "{name}: {threads:?}");
    }
    let shard = threads.iter().find(|thread| thread.name == "shard-0").unwrap();
    assert!(shard.cpu >= cpu && shard.sleeps > 0, "{shard:?} {cpu:?}");
    let ring = |name: &str| rings.iter().find(|ring| ring.name == name).unwrap();
    for name in ["bridge to shard", "shard to bridge", "shard to writer", "writer to shard"] {
        let waits = &ring(name).waits;
        assert!(waits.count() >= APPENDS, "{name}: {}", waits.count());
        assert!((Duration::from_nanos(1)..Duration::from_secs(60)).contains(&waits.percentile(99.0)));
    }
    assert_eq!(ring("process to shard").stats.full, 0);
    client.close();
    for node in nodes {
        node.shutdown().await.unwrap();
    }
}
