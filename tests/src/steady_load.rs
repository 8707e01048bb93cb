//! Three nodes in this process and a client in the leader's: appends without a pause, as those who embed the engine do.

use std::time::Duration;

use futures_util::future::join_all;
use iroh_raft::prelude::*;
use iroh_raft::storage::{BackendChoice, BackendKind};
use iroh_raft::{Engine, Role};
use iroh_raft::{EngineConfig, RecordBlock};

use crate::{Plan, until};

/// Records of a block.
pub const BLOCK_RECORDS: usize = 1024;
/// Blocks on their way at a time: redb allocates for each commit, so a record costs the less the more a flush holds.
const IN_FLIGHT: usize = 192;
/// Replicas, all in this process.
pub const REPLICAS: u64 = 3;

/// What the replicas did together.
#[derive(Clone, Copy, PartialEq, Eq, Default, Debug)]
pub struct Work {
    /// Blocks appended.
    pub blocks: u64,
    /// Commits of journals.
    pub flushes: u64,
    /// Frames between nodes.
    pub frames: u64,
    /// Times that a shard had nothing to do.
    pub sleeps: u64,
}

impl Work {
    /// Records appended.
    #[must_use]
    pub fn records(&self) -> u64 {
        self.blocks * BLOCK_RECORDS as u64
    }
}

/// One batch for each block, no other leader however busy the machine is, and files written alike in every run.
fn steady(config: &mut EngineConfig) {
    config.backend = BackendChoice::Fixed(BackendKind::Buffered);
    let core = &mut config.core;
    core.entry_records_max = BLOCK_RECORDS;
    (core.lease_ticks, core.election_ticks) = (50, (60, 90));
    core.flush_stuck_after = Duration::from_secs(20);
    core.spread = None;
}

/// A cluster of three, one group.
#[derive(Debug)]
pub struct Cluster {
    nodes: Vec<RaftCluster>,
    _plan: Plan,
    leader: Engine,
    blocks: Vec<RecordBlock>,
}

impl Cluster {
    /// Starts it, with records of so many bytes.
    ///
    /// # Panics
    /// When it does not come up.
    pub async fn start(record_bytes: usize) -> Cluster {
        let plan = Plan::new(REPLICAS);
        let mut nodes = Vec::new();
        for node in 1..=REPLICAS {
            nodes.push(plan.builder(node).groups(1).tune(steady).build().await.unwrap());
        }
        let leader = until("a leader", async || {
            for node in &nodes {
                let statuses = node.engine().statuses().await.ok()?;
                if statuses.iter().any(|status| status.role == Role::Leader) {
                    return Some(node.engine().clone());
                }
            }
            None
        })
        .await;
        let record = vec![7; record_bytes];
        let block = || RecordBlock::from_records(&vec![&record; BLOCK_RECORDS]);
        let blocks = (0..IN_FLIGHT).map(|_| block()).collect();
        Cluster { nodes, _plan: plan, leader, blocks }
    }

    /// Appends so many blocks for each of those on their way, all acknowledged in the end.
    ///
    /// # Panics
    /// When one is refused.
    pub async fn append(&self, rounds: usize) -> Work {
        let before = self.work();
        let each = |block: &RecordBlock| {
            let (leader, block) = (self.leader.clone(), block.clone());
            async move {
                for _ in 0..rounds {
                    leader.append_block(GroupId(1), block.clone()).await.expect("a leader takes it");
                }
            }
        };
        join_all(self.blocks.iter().map(each)).await;
        let after = self.work();
        Work {
            blocks: (rounds * self.blocks.len()) as u64,
            flushes: after.flushes - before.flushes,
            frames: after.frames - before.frames,
            sleeps: after.sleeps - before.sleeps,
        }
    }

    fn work(&self) -> Work {
        let mut work = Work::default();
        for shard in self.nodes.iter().flat_map(|node| node.engine().stats().shards) {
            work.flushes += shard.flushes;
            work.frames += shard.frames_sent;
            work.sleeps += shard.sleeps;
        }
        work
    }

    /// Ends it.
    ///
    /// # Panics
    /// When a node does not end in order.
    pub async fn stop(self) {
        for node in self.nodes {
            node.shutdown().await.unwrap();
        }
    }
}
