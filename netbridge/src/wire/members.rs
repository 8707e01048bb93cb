//! Members of a group, and changes of them, as payload: counts, then nodes; little-endian.

use iroh_raft_core::{ConfState, MemberChange, MemberRole, NodeId, decode_members};

use super::FrameError;

const NODE_BYTES: usize = 8;
const CHANGE_BYTES: usize = NODE_BYTES + 1;

pub(super) fn decode(bytes: &[u8]) -> Result<ConfState, FrameError> {
    decode_members(bytes).ok_or(FrameError::Count { what: "members" })
}

/// Nodes, one after the other.
pub(super) fn encode_nodes(nodes: &[NodeId]) -> Vec<u8> {
    nodes.iter().flat_map(|node| node.0.to_le_bytes()).collect()
}

pub(super) fn decode_nodes(bytes: &[u8]) -> Result<Vec<NodeId>, FrameError> {
    let (nodes, rest) = bytes.as_chunks::<NODE_BYTES>();
    if !rest.is_empty() {
        return Err(FrameError::Count { what: "nodes" });
    }
    Ok(nodes.iter().map(|node| NodeId(u64::from_le_bytes(*node))).collect())
}

/// A node and what it is to become, each.
pub(super) fn encode_changes(changes: &[MemberChange]) -> Vec<u8> {
    let role = |role| match role {
        MemberRole::Gone => 0,
        MemberRole::Voter => 1,
        MemberRole::Learner => 2,
    };
    let change = |change: &MemberChange| change.node.0.to_le_bytes().into_iter().chain([role(change.role)]);
    changes.iter().flat_map(change).collect()
}

pub(super) fn decode_changes(bytes: &[u8]) -> Result<Vec<MemberChange>, FrameError> {
    let (changes, rest) = bytes.as_chunks::<CHANGE_BYTES>();
    if !rest.is_empty() {
        return Err(FrameError::Count { what: "changes of members" });
    }
    let change = |[node @ .., role]: &[u8; CHANGE_BYTES]| {
        let role = match role {
            0 => MemberRole::Gone,
            1 => MemberRole::Voter,
            2 => MemberRole::Learner,
            number => return Err(FrameError::UnknownNumber { what: "role of a member", number: *number }),
        };
        Ok(MemberChange { node: NodeId(u64::from_le_bytes(*node)), role })
    };
    changes.iter().map(change).collect()
}
