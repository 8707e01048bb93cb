//! Reads of every kind, over real disks, rings and QUIC.

use std::time::Duration;

use iroh_raft::prelude::*;
use iroh_raft::{Answer, EngineConfig, Freshness, LeaseReads, Message, Role};
use iroh_raft_tests::{Plan, until};

const GROUP: GroupId = GroupId(1);

fn value_of(answer: &Answer) -> Option<Vec<u8>> {
    match KvAnswer::decode(&answer.bytes).unwrap() {
        KvAnswer::Value(value) => value,
        other @ KvAnswer::Hash(_) => panic!("{other:?}"),
    }
}

#[tokio::test]
async fn every_node_answers_every_kind_of_read() {
    let plan = Plan::new(3);
    let leases = |config: &mut EngineConfig| config.core.lease_reads = Some(LeaseReads::default());
    let nodes = [
        plan.start_tuned(1, leases).await,
        plan.start_tuned(2, leases).await,
        plan.start_tuned(3, leases).await,
    ];
    let client = plan.client().await;
    let query = KvQuery::Value { key: "k".into() };
    for number in 0..20 {
        let value = vec![number];
        let put = KvCommand::Put { key: "k".into(), value: value.clone() };
        client.propose(GROUP, Message::encode(&put)).await.unwrap();
        // At once, from whoever leads and from every single node.
        for consistency in [Consistency::Lease, Consistency::Linearizable] {
            let answer = client.query(GROUP, Message::encode(&query), consistency).await.unwrap();
            assert_eq!(value_of(&answer), Some(value.clone()));
            for node in 1..=3 {
                let asked = client.query_at(NodeId(node), GROUP, Message::encode(&query), consistency).await;
                let answer = asked.unwrap();
                assert_eq!(value_of(&answer), Some(value.clone()), "node {node}, {consistency:?}");
                assert!(answer.freshness.applied <= answer.freshness.commit);
            }
        }
        let embedded = &nodes[usize::from(number) % 3];
        assert_eq!(embedded.query(&query).await, Ok(KvAnswer::Value(Some(value.clone()))));
        assert_eq!(embedded.query_by_lease(GROUP, &query).await, Ok(KvAnswer::Value(Some(value))));
    }
    // Local ones get there, and say how old they may be: a leader sends a heartbeat every 100 ms.
    for node in &nodes {
        until("a local answer that is up to date", async || {
            let (answer, Freshness { applied, commit, heard }) =
                node.query_local(GROUP, &query).await.unwrap();
            let is_led = heard.is_some_and(|heard| heard < Duration::from_secs(1));
            (answer == KvAnswer::Value(Some(vec![19])) && applied == commit && is_led).then_some(())
        })
        .await;
    }
    client.close();
    for node in nodes {
        node.shutdown().await.unwrap();
    }
}

#[tokio::test]
async fn a_node_without_a_leader_answers_local_reads_alone_and_says_how_old_they_are() {
    let plan = Plan::new(3);
    let mut nodes = vec![plan.start(1).await, plan.start(2).await, plan.start(3).await];
    let client = plan.client().await;
    let put = KvCommand::Put { key: "k".into(), value: b"v".to_vec() };
    client.propose(GROUP, Message::encode(&put)).await.unwrap();
    client.close();
    let query = KvQuery::Value { key: "k".into() };
    let wanted = KvAnswer::Value(Some(b"v".to_vec()));
    assert_eq!(nodes[0].query(&query).await, Ok(wanted.clone()));
    for node in nodes.drain(1..) {
        node.shutdown().await.unwrap();
    }
    let node = &nodes[0];
    until("it follows nobody", async || {
        let statuses = node.engine().statuses().await.unwrap();
        statuses.iter().all(|status| status.leader.is_none() && status.role != Role::Leader).then_some(())
    })
    .await;
    until("it says that it has not heard a leader for long", async || {
        let (answer, freshness) = node.query_local(GROUP, &query).await.unwrap();
        assert_eq!(answer, wanted);
        freshness.heard.is_none_or(|heard| heard > Duration::from_millis(300)).then_some(())
    })
    .await;
    nodes.remove(0).shutdown().await.unwrap();
}
