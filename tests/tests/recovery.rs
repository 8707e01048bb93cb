//! Two of three real nodes are lost for good, disks and all: the group goes on from the third, which has every record,
//! and takes two new nodes in.

use iroh_raft::net::allow::PeerAddress;
use iroh_raft::net::client::{Client, ClientError};
use iroh_raft::prelude::*;
use iroh_raft::{GroupStatus, MemberChange, MemberRole, RecoveryRefusal, RequestError};
use iroh_raft_tests::{Plan, free_addresses, until};

const GROUP: GroupId = GroupId(1);
const RECORDS: u64 = 200;

type Node = RaftCluster<KeyValue>;

fn put(number: u64) -> Vec<u8> {
    let put = KvCommand::Put { key: format!("key-{number}"), value: number.to_le_bytes().to_vec() };
    iroh_raft::Message::encode(&put)
}

async fn status(node: &Node) -> GroupStatus {
    let statuses = node.engine().statuses().await.unwrap();
    statuses.into_iter().find(|status| status.group == GROUP).unwrap()
}

async fn has(node: &Node, number: u64) -> Option<()> {
    let query = KvQuery::Value { key: format!("key-{number}") };
    let (answer, _) = node.query_local(GROUP, &query).await.ok()?;
    (answer == KvAnswer::Value(Some(number.to_le_bytes().to_vec()))).then_some(())
}

fn refusal(error: ClientError) -> RecoveryRefusal {
    match error {
        ClientError::Request(RequestError::Recovery { refusal }) => refusal,
        other => panic!("{other:?}"),
    }
}

/// Nodes 4 and 5: known to the survivor, and to nobody else.
fn new_nodes(plan: &Plan) -> Vec<PeerAddress> {
    let addresses = free_addresses(2);
    let address = |(node, addr): (u64, _)| {
        let key = Identity::load_or_create(plan.folder.path().join(format!("key-{node}"))).unwrap();
        PeerAddress { node: NodeId(node), endpoint: key.endpoint_id(), addr }
    };
    (4..).zip(addresses).map(address).collect()
}

async fn take_in(client: &Client, node: u64) {
    for role in [MemberRole::Learner, MemberRole::Voter] {
        let change = [MemberChange { node: NodeId(node), role }];
        until("a new member", async || client.change_members(GROUP, &change).await.ok()).await;
    }
}

#[tokio::test]
async fn a_group_goes_on_from_its_only_survivor() {
    let mut plan = Plan::new(3);
    let survivor = plan.start(1).await;
    let others = [plan.start(2).await, plan.start(3).await];
    let client = plan.client().await;
    for number in 0..RECORDS {
        client.propose(GROUP, put(number)).await.unwrap();
    }
    until("all records", async || has(&survivor, RECORDS - 1).await).await;

    let lost = [2, 3].map(NodeId);
    let GroupStatus { last, last_term, .. } = status(&survivor).await;
    let early = client.recover(NodeId(1), GROUP, &lost, (last, last_term)).await.unwrap_err();
    assert!(matches!(refusal(early), RecoveryRefusal::HasLeader { .. }));
    let reader = plan.connect(&plan.reader).await.unwrap();
    let denied = reader.recover(NodeId(1), GROUP, &lost, (last, last_term)).await.unwrap_err();
    assert!(matches!(denied, ClientError::Request(RequestError::Denied)), "{denied:?}");

    for (node, id) in others.into_iter().zip([2, 3]) {
        node.shutdown().await.unwrap();
        std::fs::remove_dir_all(plan.folder.path().join(format!("node-{id}"))).unwrap();
    }
    // What the operator saw of the log is out of date once it has grown, be it by the entry of a new leader.
    let recovered = until("the silence of the others", async || {
        let GroupStatus { last, last_term, .. } = client.status(NodeId(1), GROUP).await.ok()?;
        let wrong =
            client.recover(NodeId(1), GROUP, &lost, (iroh_raft::core::Index(last.0 + 1), last_term)).await;
        match refusal(wrong.unwrap_err()) {
            RecoveryRefusal::Changed { .. } => {}
            RecoveryRefusal::HasLeader { .. } | RecoveryRefusal::Lives { .. } => return None,
            other => panic!("{other:?}"),
        }
        client.recover(NodeId(1), GROUP, &lost, (last, last_term)).await.ok()
    })
    .await;
    assert!(recovered.end.0 >= RECORDS && recovered.term.0 >= 1_000_000, "{recovered:?}");
    let stats = survivor.engine().stats().shards[0];
    assert_eq!((stats.quorums_recovered, stats.groups_quarantined), (1, 0));
    until("a write", async || client.propose(GROUP, put(RECORDS)).await.ok()).await;
    assert_eq!(status(&survivor).await.members.voters, [NodeId(1)]);

    let fresh = new_nodes(&plan);
    plan.peers.retain(|peer| peer.node == NodeId(1));
    plan.peers.extend(fresh.iter().copied());
    for peer in &fresh {
        survivor.engine().add_node(*peer).unwrap();
    }
    let joined = [
        plan.start_tuned(4, |config| config.groups.clear()).await,
        plan.start_tuned(5, |config| config.groups.clear()).await,
    ];
    client.close();
    let client = plan.client().await;
    take_in(&client, 4).await;
    take_in(&client, 5).await;

    // It counts on the new ones now.
    survivor.shutdown().await.unwrap();
    until("a write without the survivor", async || client.propose(GROUP, put(RECORDS + 1)).await.ok()).await;
    for node in &joined {
        for number in 0..=RECORDS + 1 {
            until("every record", async || has(node, number).await).await;
        }
    }
    client.close();
    reader.close();
    for node in joined {
        node.shutdown().await.unwrap();
    }
}
