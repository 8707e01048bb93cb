//! Changes of a group's members (Raft thesis 4): one voter at a time, or several by joint consensus (4.3).
//!
//! A change is an entry of the log. It takes effect on a replica when that learns of its commit; one
//! that goes through a joint configuration is followed by an entry without changes that ends it, which
//! every leader appends that finds itself in one.

use std::collections::BTreeSet;

use bytes::Bytes;
use protobuf::Message;
use raft::eraftpb::{
    ConfChangeSingle, ConfChangeTransition, ConfChangeType, ConfChangeV2, ConfState as RaftConfState,
};

use crate::error::Retry;
use crate::ids::{Index, NodeId, Timestamp};
use crate::io::{ConfState, MemberChange, MemberRole, Token};

/// Nodes that one change may name.
pub const MEMBER_CHANGES_MAX: usize = 16;

/// Members of a group at most.
pub const MEMBERS_MAX: usize = 256;

/// Longest data of an entry that changes members, in bytes.
const CHANGE_BYTES_MAX: usize = 1 << 10;

const NODE_BYTES: usize = 8;

/// Entries by which a learner may be behind the commit index and still be made a voter.
pub(crate) const LAG_ENTRIES_MAX: u64 = 256;

/// Why a change of members is refused. Nothing was done.
#[derive(Clone, Copy, PartialEq, Eq, Debug, thiserror::Error)]
#[cfg_attr(feature = "serde", derive(serde::Serialize))]
pub enum MembersRefusal {
    /// No node is named, or more than [`MEMBER_CHANGES_MAX`], or one twice, or node 0.
    #[error("a change names 1 to {MEMBER_CHANGES_MAX} different nodes, none of them 0")]
    Malformed,
    /// Nobody could vote any more.
    #[error("the group would have no voter left")]
    NoVoters,
    /// A node is to vote that does not receive the log yet.
    #[error("node {node} has to be a learner before it becomes a voter: add it as one first")]
    NotLearner {
        /// The node.
        node: NodeId,
    },
    /// A node is to vote whose log is not up to date, or who does not answer.
    #[error("node {node} does not keep up with the log yet: try again when it does")]
    Lagging {
        /// The node.
        node: NodeId,
    },
    /// Too few of the voters-to-be answer now: the group would stand still.
    #[error("{alive} of the voters-to-be answer and {needed} are needed: bring nodes back, or keep others")]
    WouldLoseQuorum {
        /// Those that have answered within the last lease, this node included.
        alive: u32,
        /// The majority.
        needed: u32,
    },
}

impl MembersRefusal {
    /// Whether trying again can help, be it after what the refusal asks for.
    #[must_use]
    pub fn retry(&self) -> Retry {
        match self {
            MembersRefusal::NotLearner { .. }
            | MembersRefusal::Lagging { .. }
            | MembersRefusal::WouldLoseQuorum { .. } => Retry::Safe,
            MembersRefusal::Malformed | MembersRefusal::NoVoters => Retry::Never,
        }
    }
}

/// A request for a change, until the change is over.
#[derive(Clone, Copy, Debug)]
pub(crate) struct MembersRequest {
    pub(crate) token: Token,
    pub(crate) deadline: Timestamp,
    /// Entry that began the change.
    pub(crate) index: Index,
    /// Whether it removes the group.
    pub(crate) is_removal: bool,
}

/// Marks an entry that removes the group. raft-rs takes it for a change that changes nothing.
const REMOVAL: &[u8] = b"remove group";

/// The entry that removes a group which has this voter.
pub(crate) fn to_removal(voter: NodeId) -> ConfChangeV2 {
    let change = to_conf_change(&[MemberChange { node: voter, role: MemberRole::Voter }]);
    ConfChangeV2 { context: REMOVAL.into(), ..change }
}

/// Whether an entry that changes members removes the group.
pub(crate) fn is_removal(change: &ConfChangeV2) -> bool {
    &change.context[..] == REMOVAL
}

/// Marks an entry that makes a survivor the only member ([`crate::recovery`]). raft-rs takes it for a change that
/// makes it a voter.
const RECOVERY: &[u8] = b"recover quorum";

/// The entry that makes this node the only member.
pub(crate) fn to_recovery(survivor: NodeId) -> ConfChangeV2 {
    let change = to_conf_change(&[MemberChange { node: survivor, role: MemberRole::Voter }]);
    ConfChangeV2 { context: RECOVERY.into(), ..change }
}

/// The only member from this entry on, if it is that of a recovery.
pub(crate) fn survivor_of(change: &ConfChangeV2) -> Option<NodeId> {
    let survivor = change.changes.first().filter(|_| &change.context[..] == RECOVERY)?;
    Some(NodeId(survivor.node_id))
}

/// The bytes of an entry that changes members.
pub(crate) fn encode_change(change: &ConfChangeV2) -> Bytes {
    change.write_to_bytes().expect("a small message").into()
}

/// The entry of a change as raft-rs wants it.
pub(crate) fn to_conf_change(changes: &[MemberChange]) -> ConfChangeV2 {
    let singles: Vec<ConfChangeSingle> = changes
        .iter()
        .map(|change| ConfChangeSingle {
            change_type: match change.role {
                MemberRole::Voter => ConfChangeType::AddNode,
                MemberRole::Learner => ConfChangeType::AddLearnerNode,
                MemberRole::Gone => ConfChangeType::RemoveNode,
            },
            node_id: change.node.0,
            ..Default::default()
        })
        .collect();
    // Explicit: raft-rs ends a joint configuration only where it was leader all along. We end it.
    let transition =
        if changes.len() > 1 { ConfChangeTransition::Explicit } else { ConfChangeTransition::Auto };
    ConfChangeV2 { transition, changes: singles.into(), ..Default::default() }
}

/// Reads the data of an entry that changes members. Empty: it ends a joint configuration.
pub(crate) fn parse(data: &[u8]) -> Option<ConfChangeV2> {
    if data.len() > CHANGE_BYTES_MAX {
        return None;
    }
    let change = ConfChangeV2::parse_from_bytes(data).ok()?;
    let singles = &change.changes;
    let nodes: BTreeSet<u64> = singles.iter().map(|single| single.node_id).collect();
    let is_sound = nodes.len() == singles.len()
        && singles.len() <= MEMBER_CHANGES_MAX
        && !nodes.contains(&0)
        && (change.context.is_empty() || is_alone(&change))
        && change.get_unknown_fields().fields.is_none()
        && change.transition == to_conf_change(&from_conf_change(&change)).transition;
    is_sound.then_some(change)
}

/// Whether a change that is marked is one that is written.
fn is_alone(change: &ConfChangeV2) -> bool {
    let singles = &change.changes;
    [REMOVAL, RECOVERY].contains(&&change.context[..])
        && singles.len() == 1
        && singles.iter().all(|single| single.change_type == ConfChangeType::AddNode)
}

/// The node that is the only member from an entry on which recovers a group; `None` when the data is not of such an
/// entry.
#[must_use]
pub fn decode_recovery(data: &[u8]) -> Option<NodeId> {
    parse(data).as_ref().and_then(survivor_of)
}

/// What an entry that changes members does; empty: it ends a joint configuration. `None` when the
/// data is not of such an entry, removes the group, or recovers it ([`decode_recovery`]).
#[must_use]
pub fn decode_change(data: &[u8]) -> Option<Vec<MemberChange>> {
    parse(data).filter(|change| change.context.is_empty()).map(|change| from_conf_change(&change))
}

fn from_conf_change(change: &ConfChangeV2) -> Vec<MemberChange> {
    let role = |single: &ConfChangeSingle| match single.change_type {
        ConfChangeType::AddNode => MemberRole::Voter,
        ConfChangeType::AddLearnerNode => MemberRole::Learner,
        ConfChangeType::RemoveNode => MemberRole::Gone,
    };
    let singles = change.changes.iter();
    singles.map(|single| MemberChange { node: NodeId(single.node_id), role: role(single) }).collect()
}

/// Members as bytes: four counts (voters, learners, outgoing voters, learners-to-be; u16), then the nodes of each
/// (u64); little-endian.
///
/// # Panics
/// If there are 2^16 of a kind.
#[must_use]
pub fn encode_members(members: &ConfState) -> Vec<u8> {
    let lists = [&members.voters, &members.learners, &members.voters_outgoing, &members.learners_next];
    let mut bytes = Vec::new();
    for list in lists {
        let count = u16::try_from(list.len()).expect("few members");
        bytes.extend(count.to_le_bytes());
    }
    bytes.extend(lists.into_iter().flatten().flat_map(|node| node.0.to_le_bytes()));
    bytes
}

/// Reads what [`encode_members`] wrote; `None` when it did not.
#[must_use]
pub fn decode_members(bytes: &[u8]) -> Option<ConfState> {
    let (counts, mut rest) = bytes.split_first_chunk::<8>()?;
    let (counts, _) = counts.as_chunks::<2>();
    let mut counts = counts.iter().map(|count| usize::from(u16::from_le_bytes(*count)));
    let mut list = || -> Option<Vec<NodeId>> {
        let (nodes, others) = rest.split_at_checked(counts.next()? * NODE_BYTES)?;
        rest = others;
        let (nodes, _) = nodes.as_chunks::<NODE_BYTES>();
        Some(nodes.iter().map(|node| NodeId(u64::from_le_bytes(*node))).collect())
    };
    let (voters, learners, voters_outgoing, learners_next) = (list()?, list()?, list()?, list()?);
    rest.is_empty().then_some(ConfState {
        voters,
        learners,
        voters_outgoing,
        learners_next,
        auto_leave: false,
    })
}

pub(crate) fn from_raft_conf_state(state: &RaftConfState) -> ConfState {
    let nodes = |ids: &[u64]| {
        let mut nodes: Vec<NodeId> = ids.iter().copied().map(NodeId).collect();
        // raft-rs keeps them in hash sets.
        nodes.sort_unstable();
        nodes
    };
    ConfState {
        voters: nodes(&state.voters),
        learners: nodes(&state.learners),
        voters_outgoing: nodes(&state.voters_outgoing),
        learners_next: nodes(&state.learners_next),
        auto_leave: state.auto_leave,
    }
}

/// The voters of a configuration after a change, once it is over.
///
/// # Errors
/// [`MembersRefusal`] when the change is malformed or leaves nobody to vote.
pub(crate) fn voters_after(
    members: &ConfState,
    changes: &[MemberChange],
) -> Result<BTreeSet<NodeId>, MembersRefusal> {
    let nodes: BTreeSet<NodeId> = changes.iter().map(|change| change.node).collect();
    let is_sound = (1..=MEMBER_CHANGES_MAX).contains(&changes.len())
        && nodes.len() == changes.len()
        && !nodes.contains(&NodeId(0));
    if !is_sound {
        return Err(MembersRefusal::Malformed);
    }
    let mut voters: BTreeSet<NodeId> = members.voters.iter().copied().collect();
    for change in changes {
        match change.role {
            MemberRole::Voter => voters.insert(change.node),
            MemberRole::Learner | MemberRole::Gone => voters.remove(&change.node),
        };
    }
    if voters.is_empty() { Err(MembersRefusal::NoVoters) } else { Ok(voters) }
}

/// Whether a change would change nothing.
pub(crate) fn is_done(members: &ConfState, changes: &[MemberChange]) -> bool {
    let role = |node: &NodeId| {
        if members.voters.contains(node) {
            MemberRole::Voter
        } else if members.learners.contains(node) {
            MemberRole::Learner
        } else {
            MemberRole::Gone
        }
    };
    !members.is_joint() && changes.iter().all(|change| role(&change.node) == change.role)
}

#[cfg(test)]
mod tests {
    use super::*;

    fn change(node: u64, role: MemberRole) -> MemberChange {
        MemberChange { node: NodeId(node), role }
    }

    #[test]
    fn an_entry_is_read_as_it_was_written() {
        let roles = [MemberRole::Voter, MemberRole::Learner, MemberRole::Gone];
        let mut changes: Vec<MemberChange> = Vec::new();
        for (node, role) in (1..).zip(roles) {
            changes.push(change(node, role));
            let bytes = to_conf_change(&changes).write_to_bytes().expect("a small message");
            assert_eq!(decode_change(&bytes), Some(changes.clone()));
        }
        assert_eq!(decode_change(&[]), Some(vec![]));
    }

    #[test]
    fn what_no_leader_writes_is_not_read() {
        let twice = [change(1, MemberRole::Voter), change(1, MemberRole::Gone)];
        let many: Vec<MemberChange> = (1..=17).map(|node| change(node, MemberRole::Learner)).collect();
        let nobody = [change(0, MemberRole::Voter)];
        for changes in [&twice[..], &many, &nobody] {
            let bytes = to_conf_change(changes).write_to_bytes().expect("a small message");
            assert_eq!(decode_change(&bytes), None, "{changes:?}");
        }
        let mut implicit = to_conf_change(&twice[..1]);
        implicit.transition = ConfChangeTransition::Implicit;
        assert_eq!(decode_change(&implicit.write_to_bytes().expect("a small message")), None);
        assert_eq!(decode_change(&[0xff; 8]), None);
        assert_eq!(decode_change(&vec![0; CHANGE_BYTES_MAX + 1]), None);
    }

    #[test]
    fn a_change_leaves_somebody_to_vote() {
        let members = ConfState { voters: vec![NodeId(1)], ..ConfState::default() };
        let gone = [change(1, MemberRole::Gone)];
        assert_eq!(voters_after(&members, &gone), Err(MembersRefusal::NoVoters));
        let replaced = [change(1, MemberRole::Gone), change(2, MemberRole::Voter)];
        assert_eq!(voters_after(&members, &replaced), Ok([NodeId(2)].into()));
        assert_eq!(voters_after(&members, &[]), Err(MembersRefusal::Malformed));
        assert!(is_done(&members, &[change(1, MemberRole::Voter), change(3, MemberRole::Gone)]));
        assert!(!is_done(&members, &replaced));
    }
}
