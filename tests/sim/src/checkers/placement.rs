//! A replica is on the shard where its node places its group, and nothing is written of it on another one (this project's
//! promise: what a node was told to do with its shards, it has done before it speaks).

use std::collections::BTreeMap;

use iroh_raft_core::{GroupId, NodeId, Placement, ShardId};

use super::{Checked, ensure};

#[derive(Default, Debug)]
pub(super) struct Placed(BTreeMap<NodeId, Placement>);

impl Placed {
    /// A node starts with its groups placed like this.
    pub(super) fn starts(&mut self, node: NodeId, placement: &Placement) {
        self.0.insert(node, placement.clone());
    }

    /// How a node's groups are placed.
    pub(super) fn of(&self, node: NodeId) -> &Placement {
        &self.0[&node]
    }

    /// A shard has a replica of a group, or writes of one.
    pub(super) fn has(&self, node: NodeId, shard: ShardId, group: GroupId) -> Checked {
        let placed = self.of(node).shard_of(group);
        ensure(placed == shard, "a group is on one shard", || {
            format!("node {node} has group {group} on shard {shard}, and places it on {placed}")
        })
    }
}
