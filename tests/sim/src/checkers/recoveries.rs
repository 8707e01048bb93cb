//! A recovered group keeps all that its survivor had (this project's promise, `engine/core/src/recovery.rs`), and what comes
//! back of those that were given up ends.
//!
//! The operator of the simulation recovers only where the survivor has all that is known to be committed: no checker forgets
//! anything. From then on what is said in the terms of before is of a history that was given up: it is held against its
//! own terms, votes and disks, and no more against what is committed; its answers never reach a client, who must take
//! them for unknown. Until it ends it may say what it likes; that it ends is asked for when the faults are over.

use std::collections::{BTreeMap, BTreeSet};

use iroh_raft_core::{GroupId, GroupStatus, Index, NodeId, Recovered, Reply, Shard, Term};

use super::durable::Durable;
use super::{Checked, EntryId, ensure};

/// Terms that must lie between a group and what it is after its recovery.
const TERMS_APART: u64 = 1_000_000;

#[derive(Default, Debug)]
pub(crate) struct Recoveries {
    /// The term since which each recovered group is what it is.
    terms: BTreeMap<GroupId, Term>,
    /// The newest survivor of each, with the term of the recovery before, if there was one.
    survivors: BTreeMap<GroupId, (NodeId, Option<Term>)>,
    /// Replicas of a history that was given up, as of their node's last turn.
    void: BTreeSet<(NodeId, GroupId)>,
}

impl Recoveries {
    /// A replica becomes its group. `before`: how it stood before; `log`: all of its entries, with that of the recovery.
    pub(super) fn recovered(
        &mut self,
        (node, group): (NodeId, GroupId),
        (last, term): (Index, Term),
        before: Option<&GroupStatus>,
        log: &[EntryId],
        committed: &[EntryId],
    ) -> Checked {
        let earlier = self.terms.insert(group, term);
        self.survivors.insert(group, (node, earlier));
        let known = before.map_or(Term(0), |before| before.term);
        ensure(term.0 > known.0 + TERMS_APART, "the lost do not reach the term of a recovery", || {
            format!("node {node} recovers group {group} in term {term}, after {known}")
        })?;
        ensure(
            log.len() as u64 == last.0 + 1 && log.starts_with(committed),
            "a recovery keeps all there is",
            || {
                let (kept, known) = (log.len(), committed.len());
                format!("node {node} recovers group {group} up to {last}: has {kept}, {known} are committed")
            },
        )
    }

    /// A replica starts again in a term. Where the survivor's is an earlier one its recovery was not durable: nothing happened.
    pub(super) fn restarted(&mut self, node: NodeId, group: GroupId, at: Term) {
        let Some((survivor, earlier)) = self.survivors.get(&group).copied() else { return };
        if survivor != node || self.terms.get(&group).is_none_or(|term| at >= *term) {
            return;
        }
        self.survivors.remove(&group);
        match earlier {
            Some(term) => self.terms.insert(group, term),
            None => self.terms.remove(&group),
        };
        self.void.retain(|(_, of)| *of != group);
    }

    /// An operator is told that it is done.
    pub(super) fn replied(node: NodeId, group: GroupId, recovered: Recovered, durable: &Durable) -> Checked {
        let state = durable.of(node, group).map(|stored| stored.hard_state).unwrap_or_default();
        let is_durable = durable.has(node, group, recovered.index, recovered.term)
            && state.commit >= recovered.index
            && state.term == recovered.term;
        ensure(is_durable, "a recovery is durable once it is answered", || {
            format!("node {node} group {group}: {recovered:?}, durable is {state:?}")
        })
    }

    /// A node's turn is over: which of its replicas are of what was given up.
    pub(super) fn look(&mut self, node: NodeId, shard: &Shard) {
        for (group, term) in &self.terms {
            let Some(status) = shard.status(*group) else { continue };
            if status.term < *term {
                self.void.insert((node, *group));
            } else {
                self.void.remove(&(node, *group));
            }
        }
    }

    /// A replica is gone.
    pub(super) fn left(&mut self, node: NodeId, group: GroupId) {
        self.void.remove(&(node, group));
    }

    /// A node's process ended.
    pub(super) fn stopped(&mut self, node: NodeId) {
        self.void.retain(|(of, _)| *of != node);
    }

    /// Whether what a replica says is of a history that was given up.
    pub(crate) fn is_void(&self, node: NodeId, group: GroupId) -> bool {
        self.void.contains(&(node, group))
    }

    /// The term since which a group is what it is, if it was recovered.
    pub(crate) fn term_of(&self, group: GroupId) -> Option<Term> {
        self.terms.get(&group).copied()
    }
}

pub(super) fn group_of(reply: &Reply) -> GroupId {
    match reply {
        Reply::Appended { group, .. }
        | Reply::Repeated { group, .. }
        | Reply::ReadReady { group, .. }
        | Reply::Records { group, .. }
        | Reply::Found { group, .. }
        | Reply::CommandDone { group, .. }
        | Reply::LeadershipGiven { group, .. }
        | Reply::NotTransferred { group, .. }
        | Reply::Opened { group, .. }
        | Reply::Recovered { group, .. }
        | Reply::Removed { group, .. }
        | Reply::MembersChanged { group, .. }
        | Reply::Failed { group, .. } => *group,
    }
}
