//! A replica that has lost entries does not count where it may be the only one that had them: it gives no vote and asks for
//! none before it has everything again that it had and that is committed (Alagappan et al., "Protocol-Aware Recovery for
//! Consensus-Based Storage", FAST 2018, 3.3.3). No replica is asked: what was lost is known from the disks.

use std::collections::BTreeMap;

use iroh_raft_core::{GroupId, GroupState, Index, MessageKind, NodeId, PeerMessage};

use super::durable::Durable;
use super::{Checked, EntryId, ensure};
use crate::marks::Marks;

#[derive(Default, Debug)]
pub(super) struct Repairs {
    /// Replicas that have lost entries, with these and where they stood.
    lost: BTreeMap<(NodeId, GroupId), BTreeMap<Index, EntryId>>,
}

impl Repairs {
    /// A start found this; the disk's model has what is lost of it by now.
    pub(super) fn booted(
        &mut self,
        node: NodeId,
        state: &GroupState,
        durable: &Durable,
        marks: &mut Marks,
    ) -> Checked {
        let key = (node, state.group);
        marks.add("replica under repair restarted", u64::from(self.lost.contains_key(&key)));
        if state.damage.is_some() {
            let lost = durable.of(node, state.group).map(|stored| stored.lost().collect::<Vec<_>>());
            self.lost.entry(key).or_default().extend(lost.into_iter().flatten());
        } else if !state.is_under_repair
            && durable.of(node, state.group).is_none_or(|stored| stored.lost().next().is_none())
        {
            // It stands on the disk as before, and is found damaged when it is read.
            self.lost.remove(&key);
        }
        let is_forgotten = state.damage.is_none() && !state.is_under_repair && self.lost.contains_key(&key);
        ensure(!is_forgotten, "a repair that began is known until it is over", || {
            format!("node {node} group {} starts as if it had not lost anything", state.group)
        })
    }

    /// The snapshot that a replica's log begins after is damaged; the disk's model has lost everything by now.
    pub(super) fn lost_all(&mut self, node: NodeId, group: GroupId, durable: &Durable) {
        let lost = durable.of(node, group).into_iter().flat_map(|stored| stored.lost());
        self.lost.entry((node, group)).or_default().extend(lost);
    }

    /// A replica says that it has lost entries.
    pub(super) fn needed(&self, node: NodeId, group: GroupId) -> Checked {
        ensure(self.lost.contains_key(&(node, group)), "repairs have a cause", || {
            format!("node {node} repairs group {group}, of which nothing is lost")
        })
    }

    /// A replica says that it has all again.
    pub(super) fn repaired(
        &mut self,
        node: NodeId,
        group: GroupId,
        committed: &[EntryId],
        durable: &Durable,
    ) -> Checked {
        let lost = self.lost.remove(&(node, group)).unwrap_or_default();
        let is_committed = |(index, entry): &(Index, EntryId)| {
            usize::try_from(index.0 - 1).ok().and_then(|at| committed.get(at)) == Some(entry)
        };
        let missing = lost
            .into_iter()
            .filter(is_committed)
            .find(|(index, entry)| !durable.has(node, group, *index, entry.term));
        ensure(missing.is_none(), "a replica is well when it has again what it lost", || {
            format!("node {node} group {group} is said to be well and lacks {missing:?}")
        })
    }

    /// A replica is gone with all that it stored.
    pub(super) fn left(&mut self, node: NodeId, group: GroupId) {
        self.lost.remove(&(node, group));
    }

    /// A message leaves a node.
    pub(super) fn sent(&self, message: &PeerMessage) -> Checked {
        let counts = match message.kind {
            MessageKind::RequestVote | MessageKind::RequestPreVote => true,
            MessageKind::RequestVoteResponse | MessageKind::RequestPreVoteResponse => !message.reject,
            _ => false,
        };
        let is_lossy = counts && self.lost.contains_key(&(message.from, message.group));
        ensure(!is_lossy, "a replica under repair neither votes nor campaigns", || format!("{message:?}"))
    }
}
