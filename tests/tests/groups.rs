//! Groups and nodes that come and go while a real cluster runs.

use std::sync::Arc;
use std::time::Duration;

use iroh_raft::net::allow::{AllowError, PeerAddress};
use iroh_raft::net::client::{Client, ClientError};
use iroh_raft::prelude::*;
use iroh_raft::storage::HangingDisk;
use iroh_raft::{EndpointId, EngineError, MemberChange, MemberRole, NodeError, RequestError};
use iroh_raft_tests::{Plan, free_addresses, until};

const GROUP: GroupId = GroupId(40);

fn nodes(ids: &[u64]) -> Vec<NodeId> {
    ids.iter().copied().map(NodeId).collect()
}

async fn put(client: &Client, number: u64) {
    let put = KvCommand::Put { key: format!("key-{number}"), value: number.to_le_bytes().to_vec() };
    let command = iroh_raft::Message::encode(&put);
    until("a put", async || client.propose(GROUP, &command).await.ok()).await;
}

async fn has(node: &RaftCluster<KeyValue>, number: u64) -> Option<()> {
    let query = KvQuery::Value { key: format!("key-{number}") };
    let (answer, _) = node.query_local(GROUP, &query).await.ok()?;
    (answer == KvAnswer::Value(Some(number.to_le_bytes().to_vec()))).then_some(())
}

async fn is_here(node: &RaftCluster<KeyValue>) -> bool {
    node.engine().statuses().await.unwrap().iter().any(|status| status.group == GROUP)
}

fn request_error(error: ClientError) -> RequestError {
    match error {
        ClientError::Request(error) => error,
        other => panic!("{other:?}"),
    }
}

#[tokio::test]
async fn a_group_begins_on_some_nodes_and_is_removed_from_all() {
    let plan = Plan::new(4);
    let mut cluster = Vec::new();
    for node in 1..=4 {
        cluster.push(plan.start(node).await);
    }
    let client = plan.client().await;
    let reader = plan.connect(&plan.reader).await.unwrap();
    let denied = reader.create_group(GROUP, &nodes(&[1, 2, 3])).await.unwrap_err();
    assert_eq!(request_error(denied), RequestError::Denied);
    client.create_group(GROUP, &nodes(&[1, 2, 3])).await.unwrap();
    client.create_group(GROUP, &nodes(&[3, 2, 1])).await.unwrap();
    let other = client.create_group(GROUP, &nodes(&[2, 3, 4])).await;
    assert!(matches!(other, Err(ClientError::Request(RequestError::GroupExists)) | Ok(())), "{other:?}");
    put(&client, 1).await;
    until("the third", async || has(&cluster[2], 1).await).await;
    let stranger = cluster[3].engine().create_group(GROUP, &nodes(&[1, 2, 3])).await;
    assert!(
        matches!(stranger, Err(RequestError::Invalid { .. } | RequestError::GroupExists)),
        "{stranger:?}"
    );

    // One is away while the group is removed.
    cluster.remove(2).shutdown().await.unwrap();
    until("the removal", async || match client.remove_group(GROUP).await {
        Ok(()) => Some(()),
        Err(ClientError::Request(RequestError::UnknownGroup)) => Some(()),
        Err(_) => None,
    })
    .await;
    cluster.insert(2, plan.start(3).await);
    for node in &cluster {
        until("nobody has it", async || (!is_here(node).await).then_some(())).await;
    }
    let again = client.create_group(GROUP, &nodes(&[1, 2, 3])).await.unwrap_err();
    assert_eq!(request_error(again), RequestError::GroupRemoved);
    client.close();
    reader.close();
    for node in cluster {
        node.shutdown().await.unwrap();
    }
}

/// A node whose disk is lost is replaced by one with a new number and a new key.
#[tokio::test]
async fn a_new_node_takes_the_place_of_one_that_is_gone() {
    let mut plan = Plan::new(3);
    let mut cluster = Vec::new();
    for node in 1..=3 {
        cluster.push(plan.start(node).await);
    }
    let client = plan.client().await;
    client.create_group(GROUP, &nodes(&[1, 2, 3])).await.unwrap();
    for number in 0..20 {
        put(&client, number).await;
    }
    let old = plan.peers[2];
    cluster.pop().unwrap().shutdown().await.unwrap();

    // Known to nobody yet.
    let key = Identity::load_or_create(plan.folder.path().join("key-4")).unwrap();
    let fourth = PeerAddress { node: NodeId(4), endpoint: key.endpoint_id(), addr: free_addresses(1)[0] };
    plan.peers[2] = fourth;
    let joining = plan.start_tuned(4, |config| config.groups.clear()).await;
    for node in &cluster {
        node.engine().add_node(fourth).unwrap();
        node.engine().add_node(fourth).unwrap();
    }
    let client = {
        client.close();
        plan.client().await
    };
    let change = |node: u64, role| MemberChange { node: NodeId(node), role };
    let learner = [change(4, MemberRole::Learner)];
    until("a learner", async || client.change_members(GROUP, &learner).await.ok()).await;
    let swap = [change(4, MemberRole::Voter), change(3, MemberRole::Gone)];
    let now = until("the change", async || client.change_members(GROUP, &swap).await.ok()).await;
    assert_eq!(now.voters, nodes(&[1, 2, 4]));
    until("all that was acknowledged", async || has(&joining, 19).await).await;

    for node in &cluster {
        assert!(node.engine().remove_node(old.node).unwrap());
        assert!(!node.engine().remove_node(old.node).unwrap());
        let refused = |peer: PeerAddress| match node.engine().add_node(peer) {
            Err(NodeError::Refused(error)) => error,
            other => panic!("{other:?}"),
        };
        assert_eq!(refused(old), AllowError::Removed { node: old.node });
        let elsewhere: EndpointId = Identity::generate().endpoint_id();
        assert_eq!(
            refused(PeerAddress { endpoint: elsewhere, ..old }),
            AllowError::Removed { node: old.node }
        );
    }

    // What was said of nodes is remembered: this one's settings name neither.
    cluster.remove(0).shutdown().await.unwrap();
    plan.peers.retain(|peer| peer.node != NodeId(4));
    let first = plan.start(1).await;
    plan.peers.push(fourth);
    put(&client, 20).await;
    until("the new node", async || has(&joining, 20).await).await;
    until("the first", async || has(&first, 20).await).await;
    client.close();
    for node in [first, joining, cluster.remove(0)] {
        node.shutdown().await.unwrap();
    }
}

#[tokio::test]
async fn a_node_that_cannot_be_remembered_yet_holds_up_nothing_else() {
    let (plan, disk) = (Plan::new(1), HangingDisk::default());
    let of_node = Arc::new(disk.clone());
    let node = plan.start_tuned(1, |config| config.disk = Some(of_node)).await;
    let engine = node.engine().clone();
    let endpoint = Identity::generate().endpoint_id();
    let other = PeerAddress { node: NodeId(2), endpoint, addr: free_addresses(1)[0] };
    disk.hang_small_files(true);
    let of_thread = engine.clone();
    let change = std::thread::spawn(move || of_thread.add_node(other));
    until("a change that hangs", async || (disk.small_files_waiting() > 0).then_some(())).await;
    assert_eq!(engine.stats().shards.len(), 1);
    assert_eq!(engine.statuses().await.unwrap().len(), 3);
    match engine.clone().shutdown(Duration::from_secs(1)).await {
        Err(EngineError::ShutdownTimeout { threads, .. }) => {
            assert_eq!(threads, "a change of the known nodes");
        }
        other => panic!("{other:?}"),
    }
    assert_eq!(engine.statuses().await, Err(RequestError::ShuttingDown));
    disk.hang_small_files(false);
    change.join().unwrap().unwrap();
    assert!(matches!(engine.add_node(other), Err(NodeError::Stopped)));
    drop((node, engine));
    // It was remembered.
    let node = plan.start(1).await;
    assert!(node.engine().remove_node(other.node).unwrap());
    node.shutdown().await.unwrap();
}
