//! Leadership that moves between real nodes: on request, and away from a disk that hangs.

use std::cell::Cell;
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, AtomicU64, Ordering};
use std::time::Instant;

use iroh_raft::net::client::{Client, ClientError};
use iroh_raft::prelude::*;
use iroh_raft::storage::HangingDisk;
use iroh_raft::{
    EngineConfig, GroupStatus, HandedOver, LeadershipError, Message, RequestError, Role, TransferError,
};
use iroh_raft_tests::{Plan, until};

const GROUP: GroupId = GroupId(1);
/// Transfers of the test under load.
const TRANSFERS: usize = 12;
/// Appends between two of them, at least.
const APPENDS: u64 = 200;

type Node = RaftCluster<KeyValue>;

fn record(number: u64) -> Vec<u8> {
    Message::encode(&KvCommand::Put { key: "k".into(), value: number.to_le_bytes().to_vec() })
}

async fn status(node: &Node) -> Option<GroupStatus> {
    node.engine().statuses().await.unwrap().into_iter().find(|status| status.group == GROUP)
}

async fn leader(nodes: &[Node]) -> usize {
    until("a leader", async || {
        for (at, node) in nodes.iter().enumerate() {
            if status(node).await.is_some_and(|status| status.role == Role::Leader) {
                return Some(at);
            }
        }
        None
    })
    .await
}

#[derive(Default)]
struct Load {
    is_over: AtomicBool,
    appended: AtomicU64,
    unknown: AtomicU64,
}

/// Appends until it is told to stop, and counts. What ends as unknown was lost by an election.
async fn append_until_over(client: Client, load: Arc<Load>) {
    while !load.is_over.load(Ordering::Relaxed) {
        let count = match client.append(GROUP, record(0)).await {
            Ok(_) => &load.appended,
            Err(ClientError::OutcomeUnknown | ClientError::Request(RequestError::OutcomeUnknown { .. })) => {
                &load.unknown
            }
            Err(error) => panic!("an append failed: {error}"),
        };
        count.fetch_add(1, Ordering::Relaxed);
    }
}

async fn shut_down(nodes: Vec<Node>) {
    for node in nodes {
        node.shutdown().await.unwrap();
    }
}

/// Every transfer is answered with what came of it, and no client notices more than a pause.
#[tokio::test]
async fn leadership_moves_under_load_and_no_append_fails() {
    let plan = Plan::new(3);
    let nodes = vec![plan.start(1).await, plan.start(2).await, plan.start(3).await];
    let client = plan.client().await;
    client.append(GROUP, record(0)).await.unwrap();
    let load = Arc::<Load>::default();
    let writer = |_| tokio::spawn(append_until_over(client.clone(), load.clone()));
    let writers: Vec<_> = (0..8).map(writer).collect();
    let at_start = status(&nodes[leader(&nodes).await]).await.unwrap();
    for turn in 0..TRANSFERS {
        let wanted = load.appended.load(Ordering::Relaxed) + APPENDS;
        until("some appends", async || (load.appended.load(Ordering::Relaxed) >= wanted).then_some(())).await;
        let old = leader(&nodes).await;
        let to = nodes[(old + 1) % nodes.len()].engine().node();
        let from = &nodes[old];
        // A follower that the others' disks are slow for, here and there, is not ready at once.
        let HandedOver { leader: next, term } = until("a transfer", async || {
            let moved = match turn % 3 {
                0 => from.transfer_leader(GROUP, Some(to)).await,
                1 => from.transfer_leader(GROUP, None).await,
                _ => from.step_down(GROUP).await,
            };
            match moved {
                Ok(over) => Some(over),
                Err(error) => {
                    println!("transfer {turn}: {error}");
                    None
                }
            }
        })
        .await;
        if turn % 3 == 0 {
            assert_eq!(next, Some(to));
        }
        if let Some(next) = next {
            assert_ne!(next, from.engine().node());
        }
        let after = status(from).await.unwrap();
        assert!(after.term >= term && after.role != Role::Leader, "{after:?}");
    }
    load.is_over.store(true, Ordering::Relaxed);
    for writer in writers {
        writer.await.unwrap();
    }
    let [appended, unknown] = [&load.appended, &load.unknown].map(|count| count.load(Ordering::Relaxed));
    let at_end = status(&nodes[leader(&nodes).await]).await.unwrap();
    let records = at_end.end.0 - 1;
    assert!((appended..=appended + unknown).contains(&records), "each append is in the log once: {at_end:?}");
    // A machine that stands still has elections that nobody asked for, and they may cost answers.
    let terms = at_end.term.0 - at_start.term.0;
    if terms == TRANSFERS as u64 {
        assert_eq!(unknown, 0, "a transfer loses no answer");
    }
    println!("{appended} records appended, {unknown} unknown, {TRANSFERS} transfers, {terms} terms");
    client.close();
    shut_down(nodes).await;
}

#[tokio::test]
async fn transfers_that_cannot_be_are_refused_with_the_reason() {
    let plan = Plan::new(3);
    let mut nodes = vec![plan.start(1).await, plan.start(2).await, plan.start(3).await];
    let client = plan.client().await;
    client.append(GROUP, record(0)).await.unwrap();
    let at = leader(&nodes).await;
    let follower = &nodes[(at + 1) % 3];
    let asked = follower.transfer_leader(GROUP, None).await.unwrap_err();
    let not_leader =
        |error: &LeadershipError| matches!(error, LeadershipError::Request(RequestError::NotLeader { .. }));
    assert!(not_leader(&asked), "{asked}");
    assert!(not_leader(&follower.step_down(GROUP).await.unwrap_err()));
    let unknown = nodes[at].transfer_leader(GROUP, Some(NodeId(9))).await.unwrap_err();
    assert_eq!(unknown, LeadershipError::Transfer(TransferError::UnknownTarget { to: NodeId(9) }));
    let group = nodes[at].transfer_leader(GroupId(99), None).await.unwrap_err();
    assert_eq!(group, LeadershipError::Request(RequestError::UnknownGroup));
    let gone = nodes.remove((at + 1) % 3);
    let to = gone.engine().node();
    gone.shutdown().await.unwrap();
    let at = leader(&nodes).await;
    until("a dead node that is known to be", async || {
        let refused = nodes[at].transfer_leader(GROUP, Some(to)).await.unwrap_err();
        (refused == LeadershipError::Transfer(TransferError::NotAlive { to })).then_some(())
    })
    .await;
    client.append(GROUP, record(1)).await.unwrap();
    client.close();
    shut_down(nodes).await;
}

/// The leader's disk hangs: nothing fails, and it would lead on for ever on its followers' disks.
#[tokio::test]
async fn a_leader_whose_disk_hangs_hands_over_and_comes_back() {
    let plan = Plan::new(3);
    let disks: Vec<HangingDisk> = (0..3).map(|_| HangingDisk::default()).collect();
    let mut nodes = Vec::new();
    for (node, disk) in (1..).zip(&disks) {
        let disk = disk.clone();
        let tune = move |config: &mut EngineConfig| config.disk = Some(Arc::new(disk));
        nodes.push(plan.start_tuned(node, tune).await);
    }
    let client = plan.client().await;
    client.append(GROUP, record(0)).await.unwrap();
    let old = leader(&nodes).await;
    let (node, disk) = (&nodes[old], &disks[old]);
    disk.hang(true);
    let hung_at = Instant::now();
    let count = Cell::new(0);
    until("another leader that acknowledges", async || {
        count.set(count.get() + 1);
        client.append(GROUP, record(count.get())).await.unwrap();
        let leader = client.leader_hint(GROUP);
        leader.filter(|leader| *leader != node.engine().node())
    })
    .await;
    let stuck_after =
        EngineConfig::new(Preset::Testing, iroh_raft::cluster_id("tests"), NodeId(1), plan.folder.path())
            .core
            .flush_stuck_after;
    println!(
        "another leader acknowledged {:?} after the disk of the old one hung, {stuck_after:?} of that to notice; \
         {} appends meanwhile",
        hung_at.elapsed(),
        count.get()
    );
    let status_of_old = status(node).await.unwrap();
    assert!(status_of_old.is_disk_hung && status_of_old.role == Role::Follower, "{status_of_old:?}");
    assert_eq!(node.engine().stats().shards[0].disk_hangs, 1);
    disk.hang(false);
    until("a disk that is back", async || status(node).await.filter(|status| !status.is_disk_hung).map(drop))
        .await;
    // It may lead again.
    until("the old leader leads again", async || {
        let new = leader(&nodes).await;
        let moved = nodes[new].transfer_leader(GROUP, Some(node.engine().node())).await;
        moved.ok().filter(|over| over.leader == Some(node.engine().node())).map(drop)
    })
    .await;
    client.append(GROUP, record(count.get() + 1)).await.unwrap();
    client.close();
    shut_down(nodes).await;
}
