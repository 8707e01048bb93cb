//! Replicas of real nodes are compared: equal ones are, and one that has lost a command is named.

use std::collections::BTreeMap;

use iroh_raft::core::{DigestState, Index, StateDigest};
use iroh_raft::net::client::{Client, ClientError, Compared, StateComparison};
use iroh_raft::prelude::*;
use iroh_raft::{
    ApplyContext, CursorName, EngineConfig, Message, RequestError, Restore, RestoreError, SnapshotView,
};
use iroh_raft_tests::{Plan, until};

const GROUP: GroupId = GroupId(1);
/// The command that the faulty machine loses.
const LOST: Offset = Offset(5);

/// A store, which may lose a command: what a fault of memory, or a machine that is not deterministic, comes to.
struct Shaky {
    store: KeyValue,
    loses: Option<Offset>,
}

impl StateMachine for Shaky {
    type Command = KvCommand;
    type Response = KvResponse;
    type Query = KvQuery;
    type Answer = KvAnswer;

    fn apply(&mut self, context: ApplyContext, command: <KvCommand as Message>::View<'_>) -> KvResponse {
        if Some(context.offset) == self.loses {
            return KvResponse { is_done: true, previous: None };
        }
        self.store.apply(context, command)
    }

    fn query(&self, query: <KvQuery as Message>::View<'_>) -> KvAnswer {
        StateMachine::query(&self.store, query)
    }

    fn snapshot(&self) -> Option<Box<dyn SnapshotView>> {
        StateMachine::snapshot(&self.store)
    }

    fn restore(&mut self, step: Restore<'_>) -> Result<(), RestoreError> {
        StateMachine::restore(&mut self.store, step)
    }
}

fn sound() -> Shaky {
    Shaky { store: KeyValue::default(), loses: None }
}

fn faulty() -> Shaky {
    Shaky { loses: Some(LOST), ..sound() }
}

fn plain(_: &mut EngineConfig) {}

async fn put(client: &Client, key: u64) {
    let put = KvCommand::Put { key: format!("key-{key}"), value: vec![key as u8; 3000] };
    client.propose(GROUP, put.encode()).await.unwrap();
}

/// Compared when all members answered.
async fn compare(client: &Client) -> StateComparison {
    until("all members are compared", async || {
        let comparison = client.compare_state(GROUP).await.ok()?;
        let is_complete = comparison.digests().count() == comparison.members.len();
        is_complete.then_some(comparison)
    })
    .await
}

fn machine_bytes(comparison: &StateComparison) -> u64 {
    comparison.majority().unwrap().machine.unwrap().bytes
}

#[tokio::test]
async fn a_replica_that_lost_a_command_is_named() {
    let plan = Plan::new(3);
    let mut nodes = BTreeMap::new();
    for node in 1..=3 {
        let make = if node == 3 { faulty } else { sound };
        nodes.insert(node, plan.start_machine(node, plain, make).await);
    }
    let client = plan.client().await;
    for key in 0..LOST.0 {
        put(&client, key).await;
    }
    let before = compare(&client).await;
    assert!(before.is_equal(), "{before:?}");
    assert_eq!(before.members.iter().map(|(node, _)| node.0).collect::<Vec<_>>(), [1, 2, 3]);

    // What the group itself keeps is a part of it.
    client.commit_cursor(GROUP, CursorName::new("consumer").unwrap(), Offset(2)).await.unwrap();
    let with_cursor = compare(&client).await;
    assert!(with_cursor.is_equal(), "{with_cursor:?}");
    let table = |comparison: &StateComparison| comparison.majority().unwrap().table;
    assert_ne!(table(&with_cursor), table(&before));
    assert_eq!(machine_bytes(&with_cursor), machine_bytes(&before));

    put(&client, LOST.0).await;
    let after = compare(&client).await;
    assert!(!after.is_equal());
    assert_eq!(after.differing(), [NodeId(3)]);
    assert!(machine_bytes(&after) > machine_bytes(&before));
    let differing = |node: &RaftCluster<Shaky>| {
        node.engine().stats().shards.iter().map(|shard| shard.states_differing).sum::<u64>()
    };
    assert!(differing(&nodes[&3]) > 0);
    assert_eq!((differing(&nodes[&1]), differing(&nodes[&2])), (0, 0));

    // The node's own process can look, too; other places than those that were marked have no digest.
    let own = nodes[&3].engine().state_digest(GROUP, after.index, None).await;
    let Ok(DigestState::Known(StateDigest { machine: Some(_), .. })) = own else { panic!("{own:?}") };
    let elsewhere = nodes[&3].engine().state_digest(GROUP, Index(1), None).await;
    assert_eq!(elsewhere, Ok(DigestState::Unknown));

    // Who may only read may not.
    let reader = plan.connect(&plan.reader).await.unwrap();
    let denied = reader.compare_state(GROUP).await;
    assert_eq!(denied, Err(ClientError::Request(RequestError::Denied)));
    reader.close();

    // A node that is away is named as such, and the others are compared.
    nodes.remove(&3).unwrap().shutdown().await.unwrap();
    let without = until("a comparison of two", async || client.compare_state(GROUP).await.ok()).await;
    assert!(matches!(without.members[2], (NodeId(3), Compared::Failed(_))), "{without:?}");
    assert_eq!((without.digests().count(), without.differing(), without.is_equal()), (2, vec![], false));
    client.close();
    for node in nodes.into_values() {
        node.shutdown().await.unwrap();
    }
}
