//! Changes of membership on real nodes, over the client protocol.

use iroh_raft::net::client::{Client, ClientError};
use iroh_raft::prelude::*;
use iroh_raft::{MemberChange, MemberRole, MembersRefusal, RequestError};
use iroh_raft_tests::{Plan, until};

const GROUP: GroupId = GroupId(1);

async fn start(plan: &Plan, node: u64) -> RaftCluster<KeyValue> {
    plan.start_tuned(node, |config| config.voters = [1, 2, 3].map(NodeId).to_vec()).await
}

fn change(node: u64, role: MemberRole) -> MemberChange {
    MemberChange { node: NodeId(node), role }
}

fn refusal(error: &ClientError) -> Option<MembersRefusal> {
    match error {
        ClientError::Request(RequestError::Members { refusal }) => Some(*refusal),
        _ => None,
    }
}

async fn put(client: &Client, number: u64) {
    let put = KvCommand::Put { key: format!("key-{number}"), value: number.to_le_bytes().to_vec() };
    client.propose(GROUP, iroh_raft::Message::encode(&put)).await.unwrap();
}

async fn members(client: &Client, node: u64) -> Vec<NodeId> {
    client.status(NodeId(node), GROUP).await.unwrap().members.voters.clone()
}

#[tokio::test]
async fn a_node_takes_the_place_of_the_leader() {
    let plan = Plan::new(4);
    let mut nodes = Vec::new();
    for node in 1..=4 {
        nodes.push(start(&plan, node).await);
    }
    let client = plan.client().await;
    put(&client, 0).await;

    let reader = plan.connect(&plan.reader).await.unwrap();
    let denied = reader.change_members(GROUP, &[change(4, MemberRole::Learner)]).await.unwrap_err();
    assert!(matches!(denied, ClientError::Request(RequestError::Denied)), "{denied:?}");

    let early = client.change_members(GROUP, &[change(4, MemberRole::Voter)]).await.unwrap_err();
    assert_eq!(refusal(&early), Some(MembersRefusal::NotLearner { node: NodeId(4) }));
    let learners = client.change_members(GROUP, &[change(4, MemberRole::Learner)]).await.unwrap();
    assert_eq!(learners.learners, [NodeId(4)]);

    // The leader goes in the same step in which the learner becomes a voter.
    let leader = client.leader_hint(GROUP).unwrap();
    let changes = [change(4, MemberRole::Voter), change(leader.0, MemberRole::Gone)];
    let now = until("the learner keeps up", async || client.change_members(GROUP, &changes).await.ok()).await;
    let expected: Vec<NodeId> = (1..=4).map(NodeId).filter(|node| *node != leader).collect();
    assert_eq!((&now.voters, now.is_joint()), (&expected, false));
    for number in 1..20 {
        put(&client, number).await;
    }

    // Its members are found again in the log.
    nodes.pop().unwrap().shutdown().await.unwrap();
    let again = start(&plan, 4).await;
    until("the members of before", async || (members(&client, 4).await == expected).then_some(())).await;
    let query = KvQuery::Value { key: "key-19".into() };
    let value = KvAnswer::Value(Some(19_u64.to_le_bytes().to_vec()));
    until("all that was acknowledged", async || {
        (again.query_local(GROUP, &query).await.ok()?.0 == value).then_some(())
    })
    .await;
    nodes.push(again);
    client.close();
    reader.close();
    for node in nodes {
        node.shutdown().await.unwrap();
    }
}
