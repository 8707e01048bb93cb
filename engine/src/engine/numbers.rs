//! What a node says of its work: counters, the rings, the threads, and what each group costs.

use iroh_raft_core::{GroupId, RequestError, ShardId};
use iroh_raft_driver::costs::GroupCost;
use iroh_raft_driver::lines::Command;
use iroh_raft_driver::stats::ShardStats;
use iroh_raft_netbridge::bridge::{Bridge, BridgeStats};
use iroh_raft_netbridge::ring::{RingMeter, RingStats, Waits};

use super::{Engine, lock};
use crate::thread_book::{self, ThreadCost};

/// Counters of a node since start.
#[derive(Clone, Debug)]
pub struct EngineStats {
    /// Per shard.
    pub shards: Vec<ShardStats>,
    /// Of the bridge.
    pub bridge: BridgeStats,
}

/// One ring.
#[derive(Clone, Debug)]
pub struct RingReport {
    /// From which thread to which: `bridge to shard`, `shard to bridge`, `process to shard`, `shard to writer`,
    /// `writer to shard`, `shard to reader`, `reader to shard`.
    pub name: &'static str,
    /// The shard.
    pub shard: ShardId,
    /// What it has seen.
    pub stats: RingStats,
    /// How long items were in it.
    pub waits: Waits,
}

impl Engine {
    /// Counters since start.
    #[must_use]
    pub fn stats(&self) -> EngineStats {
        EngineStats {
            shards: self.inner.shards.iter().map(|shard| shard.counters.snapshot()).collect(),
            bridge: lock(&self.inner.bridge).as_ref().map(Bridge::stats).unwrap_or_default(),
        }
    }

    /// Other nodes that this one knows, connected or not; 0 once it has stopped.
    #[must_use]
    pub fn peers_known(&self) -> usize {
        lock(&self.inner.bridge).as_ref().map_or(0, |bridge| bridge.peers().count())
    }

    /// What the rings between the node's threads have seen since start.
    #[must_use]
    pub fn rings(&self) -> Vec<RingReport> {
        let report = |(name, shard, meter): &(&'static str, ShardId, RingMeter)| RingReport {
            name,
            shard: *shard,
            stats: meter.stats(),
            waits: meter.waits(),
        };
        self.inner.rings.iter().map(report).collect()
    }

    /// What the node's threads have cost since start. Reads three files of `/proc` for each: not for every record.
    #[must_use]
    pub fn thread_costs(&self) -> Vec<ThreadCost> {
        // The bridge's runtime may still start some.
        let ids = lock(&self.inner.bridge).as_ref().map(Bridge::thread_ids).unwrap_or_default();
        let of_bridge = ids.into_iter().filter_map(|id| thread_book::cost("bridge", id));
        self.inner.book.costs().into_iter().chain(of_bridge).collect()
    }

    /// What each group of this node has cost since start, in order of group; those that did nothing are not there.
    ///
    /// # Errors
    /// As [`statuses`](Engine::statuses).
    pub async fn group_costs(&self) -> Result<Vec<(GroupId, GroupCost)>, RequestError> {
        let mut costs = self.ask_shards(Command::Costs).await?;
        costs.sort_unstable_by_key(|(group, _)| *group);
        Ok(costs)
    }
}
