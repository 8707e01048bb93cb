//! Members of a group, and changes of them, as payload: counts, then nodes; little-endian.

use iroh_raft_core::{ConfState, MemberChange, MemberRole, NodeId};

use super::FrameError;

const NODE_BYTES: usize = 8;
const CHANGE_BYTES: usize = NODE_BYTES + 1;

/// Four counts (voters, learners, outgoing voters, learners-to-be), then the nodes of each.
pub(super) fn encode(members: &ConfState) -> Vec<u8> {
    let lists = [&members.voters, &members.learners, &members.voters_outgoing, &members.learners_next];
    let mut bytes = Vec::new();
    for list in lists {
        let count = u16::try_from(list.len()).expect("few members");
        bytes.extend(count.to_le_bytes());
    }
    bytes.extend(lists.into_iter().flatten().flat_map(|node| node.0.to_le_bytes()));
    bytes
}

pub(super) fn decode(bytes: &[u8]) -> Result<ConfState, FrameError> {
    let wrong = || FrameError::Count { what: "members" };
    let (counts, mut rest) = bytes.split_first_chunk::<8>().ok_or_else(wrong)?;
    let (counts, _) = counts.as_chunks::<2>();
    let mut counts = counts.iter().map(|count| usize::from(u16::from_le_bytes(*count)));
    let mut list = || -> Result<Vec<NodeId>, FrameError> {
        let count = counts.next().ok_or_else(wrong)?;
        let (nodes, others) = rest.split_at_checked(count * NODE_BYTES).ok_or_else(wrong)?;
        rest = others;
        let (nodes, _) = nodes.as_chunks::<NODE_BYTES>();
        Ok(nodes.iter().map(|node| NodeId(u64::from_le_bytes(*node))).collect())
    };
    let (voters, learners, voters_outgoing, learners_next) = (list()?, list()?, list()?, list()?);
    if !rest.is_empty() {
        return Err(wrong());
    }
    Ok(ConfState { voters, learners, voters_outgoing, learners_next, auto_leave: false })
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
