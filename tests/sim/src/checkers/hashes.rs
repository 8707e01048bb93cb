//! State machine replication (Schneider, 1990; Raft paper, figure 3): replicas that have applied the same entries are in the
//! same state, what the group itself keeps of cursors and sessions included, as the node tells whoever compares them.

use std::collections::BTreeMap;

use iroh_raft_core::{GroupId, Index, NodeId, StateDigest};

use super::{Checked, ensure};

#[derive(Default, Debug)]
pub(crate) struct Hashes {
    /// What whoever was asked first came to.
    first: BTreeMap<(GroupId, Index), (NodeId, StateDigest)>,
}

impl Hashes {
    /// A node was asked what its replica came to.
    pub(crate) fn told(
        &mut self,
        group: GroupId,
        index: Index,
        node: NodeId,
        digest: StateDigest,
    ) -> Checked {
        let (first, known) = *self.first.entry((group, index)).or_insert((node, digest));
        ensure(known == digest, "equal states at an index on all replicas", || {
            format!("group {group} at {index}: node {first} has {known:?}, node {node} has {digest:?}")
        })
    }
}
