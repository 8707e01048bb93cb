//! Members are what the committed log says (Raft thesis 4.1; joint consensus 4.3), on every replica that knows of
//! the commit. A model of its own, beside that of raft-rs.

use std::collections::BTreeMap;

use iroh_raft_core::{ConfState, GroupId, GroupStatus, Index, MemberChange, MemberRole, NodeId};

use super::{Checked, ensure};
use crate::plan::Plan;

#[derive(Clone, Debug)]
struct InForce {
    since: Index,
    members: ConfState,
}

#[derive(Debug)]
pub(crate) struct Members(BTreeMap<GroupId, Vec<InForce>>);

impl Members {
    pub(super) fn new(plan: &Plan) -> Members {
        let first = |members| vec![InForce { since: Index(0), members }];
        Members(plan.groups.iter().map(|group| (group.id, first(group.members()))).collect())
    }

    /// An entry that changes members is committed.
    pub(super) fn committed(&mut self, group: GroupId, index: Index, changes: &[MemberChange]) {
        let all = self.0.get_mut(&group).expect("a group of the plan");
        let before = &all.last().expect("those it began with").members;
        if let Some(members) = after(before, changes) {
            all.push(InForce { since: index, members });
        }
    }

    /// An entry that recovers a group is committed: nobody but the survivor is left.
    pub(super) fn recovered(&mut self, group: GroupId, index: Index, survivor: NodeId) {
        let members = ConfState { voters: vec![survivor], ..ConfState::default() };
        self.0.get_mut(&group).expect("a group of the plan").push(InForce { since: index, members });
    }

    /// The members in force as of an entry.
    pub(super) fn at(&self, group: GroupId, index: Index) -> &ConfState {
        let all = &self.0[&group];
        &all[all.partition_point(|one| one.since <= index) - 1].members
    }

    /// The members in force as far as anybody knows.
    pub(crate) fn latest(&self, group: GroupId) -> &ConfState {
        &self.0[&group].last().expect("those it began with").members
    }

    /// A replica has those in force that the log says, as far as it knows of their commit and has them durable.
    pub(super) fn check(
        &self,
        node: NodeId,
        status: &GroupStatus,
        is_durable: impl Fn(Index) -> bool,
    ) -> Checked {
        if status.members.voters.is_empty() {
            // It is loading.
            return Ok(());
        }
        let all = &self.0[&status.group];
        if status.last == Index(0) {
            // It has just begun, with the members as of where its leader's log begins.
            let is_known = all.iter().any(|one| one.members == *status.members);
            return ensure(is_known, "members are what the log says", || format!("node {node}: {status:?}"));
        }
        // A log that does not go back to the change knows of its members as of where it begins.
        let ours = all.iter().rev().find(|one| one.since <= status.members_since);
        ensure(
            ours.is_some_and(|one| one.members == *status.members),
            "members are what the log says",
            || format!("node {node}: {status:?}, the log says {ours:?}"),
        )?;
        let is_known =
            |one: &&InForce| one.since <= status.commit && (one.since == Index(0) || is_durable(one.since));
        let due = all.iter().rev().find(is_known).expect("those it began with");
        ensure(
            status.members_since >= due.since && status.members_since <= status.commit,
            "members are in force once committed",
            || format!("node {node}: {status:?}, due are {due:?}"),
        )
    }

    /// Whether these nodes could commit the entry at an index: under the members in force there, or, for one that
    /// was committed along with the change, those before; or have it under members that came later: whoever left
    /// since has it no more.
    pub(super) fn is_quorum(&self, group: GroupId, index: Index, has: impl Fn(NodeId) -> bool) -> bool {
        let all = &self.0[&group];
        let count = all.partition_point(|one| one.since <= index);
        all[count.saturating_sub(2)..].iter().any(|one| is_quorum(&one.members, &has))
    }
}

/// Whether nodes are a majority of the voters, of both halves in a joint configuration.
pub(crate) fn is_quorum(members: &ConfState, has: impl Fn(NodeId) -> bool) -> bool {
    let is_majority = |voters: &[NodeId]| voters.iter().filter(|node| has(**node)).count() > voters.len() / 2;
    is_majority(&members.voters)
        && (members.voters_outgoing.is_empty() || is_majority(&members.voters_outgoing))
}

/// `None`: a change that does not fit is none.
fn after(before: &ConfState, changes: &[MemberChange]) -> Option<ConfState> {
    let mut members = before.clone();
    if changes.is_empty() {
        members.learners.append(&mut members.learners_next);
        members.learners.sort_unstable();
        members.voters_outgoing.clear();
        return before.is_joint().then_some(members);
    }
    if before.is_joint() {
        return None;
    }
    if changes.len() > 1 {
        members.voters_outgoing.clone_from(&before.voters);
    }
    for MemberChange { node, role } in changes {
        let was_learner = members.learners.contains(node);
        members.voters.retain(|other| other != node);
        members.learners.retain(|other| other != node);
        let list = match role {
            MemberRole::Voter => &mut members.voters,
            MemberRole::Learner if was_learner || !members.voters_outgoing.contains(node) => {
                &mut members.learners
            }
            MemberRole::Learner => &mut members.learners_next,
            MemberRole::Gone => continue,
        };
        list.push(*node);
        list.sort_unstable();
    }
    (!members.voters.is_empty()).then_some(members)
}
