//! Comparing the replicas of a group with each other.

use std::time::Duration;

use futures_util::future::join_all;
use iroh_raft_core::{DigestState, GroupCommand, GroupId, Index, NodeId, StateDigest};
use tokio::time::{Instant, sleep};

use super::call::{Outcome, Target};
use super::{Client, ClientError};
use crate::wire::ClientBody;

/// Part of the deadline that is kept for telling those that differ: nodes that do not answer take all the rest.
const TELLING: u32 = 8;
/// Pause before a replica that is not there yet is asked again.
const PAUSE: Duration = Duration::from_millis(10);

/// What a member came to.
#[derive(Clone, PartialEq, Debug)]
pub enum Compared {
    /// Its digest.
    Digest(StateDigest),
    /// It had none in time, and why: it is behind ([`DigestState::Pending`]), was busy, or has begun since.
    None(DigestState),
    /// Its node could not be asked.
    Failed(ClientError),
}

/// The replicas of a group, held against each other at one index.
#[derive(Clone, PartialEq, Debug)]
pub struct StateComparison {
    /// The entry after which all of them were digested.
    pub index: Index,
    /// Each member of the group, in order, and what it came to.
    pub members: Vec<(NodeId, Compared)>,
}

impl StateComparison {
    /// Those that came to something, with their digests.
    pub fn digests(&self) -> impl Iterator<Item = (NodeId, StateDigest)> + '_ {
        self.members.iter().filter_map(|(node, compared)| match compared {
            Compared::Digest(digest) => Some((*node, *digest)),
            Compared::None(_) | Compared::Failed(_) => None,
        })
    }

    /// Whether every member has come to something, and all to the same.
    #[must_use]
    pub fn is_equal(&self) -> bool {
        self.digests().count() == self.members.len() && self.differing().is_empty()
    }

    /// What more than half of those that were compared came to, if there is such a digest.
    #[must_use]
    pub fn majority(&self) -> Option<StateDigest> {
        let count = |of: StateDigest| self.digests().filter(|(_, digest)| *digest == of).count();
        let all = self.digests().count();
        self.digests().map(|(_, digest)| digest).find(|digest| count(*digest) * 2 > all)
    }

    /// The nodes whose replicas differ from the majority; all that were compared, when there is none and nobody can tell.
    /// Empty when those that were compared are the same.
    #[must_use]
    pub fn differing(&self) -> Vec<NodeId> {
        let majority = self.majority();
        let differs = |(_, digest): &(NodeId, StateDigest)| Some(*digest) != majority;
        self.digests().filter(differs).map(|(node, _)| node).collect()
    }
}

impl Client {
    /// Compares the state of all members of a group, each right after the same entry: what their state machines would put
    /// into a snapshot, and what the group itself keeps (cursors, client sessions, where records begin). Each reads its
    /// state once, a piece in a turn; nothing waits for it. A member that differs from the majority says so in its own
    /// log, and counts it.
    ///
    /// A difference means that a replica is not what its log says: its state machine is not deterministic, or its machine's
    /// memory or disk is faulty. Take such a replica out, and let it begin anew. Needs the right to manage.
    ///
    /// # Errors
    /// [`ClientError`]; [`Comparing`](iroh_raft_core::BusyReason::Comparing) when the leader's shard is at work on another
    /// comparison. What became of single members is in the answer, within the client's deadline.
    pub async fn compare_state(&self, group: GroupId) -> Result<StateComparison, ClientError> {
        let end = Instant::now() + self.deadline;
        let until = end - self.deadline / TELLING;
        let mark = ClientBody::Command(GroupCommand::Compare);
        let index = match self.ask(group, mark, Target::Leader).await? {
            Outcome::Marked(index) => index,
            _ => unreachable!("succeed() gives a mark nothing else"),
        };
        // Whoever has just answered.
        let members = match self.until(until).ask(group, ClientBody::Status, Target::Leader).await? {
            Outcome::Status(status) => status.members,
            _ => unreachable!("succeed() gives a status nothing else"),
        };
        let mut nodes: Vec<NodeId> = [&members.voters, &members.learners, &members.voters_outgoing]
            .into_iter()
            .flatten()
            .copied()
            .collect();
        nodes.sort_unstable();
        nodes.dedup();
        let compared = nodes.iter().map(|node| self.digest_of(*node, group, index, until));
        let compared = join_all(compared).await;
        let comparison = StateComparison { index, members: nodes.into_iter().zip(compared).collect() };
        if let majority @ Some(_) = comparison.majority() {
            let client = self.until(end);
            let differing = comparison.differing();
            // They are told; whether they hear of it changes nothing here.
            join_all(differing.iter().map(|node| client.digest_at(*node, group, index, majority))).await;
        }
        Ok(comparison)
    }

    /// Asks a node until it has a digest, says that there will be none, or time is up.
    async fn digest_of(&self, node: NodeId, group: GroupId, index: Index, until: Instant) -> Compared {
        let mut is_behind = false;
        loop {
            match self.until(until).digest_at(node, group, index, None).await {
                Ok(DigestState::Known(digest)) => return Compared::Digest(digest),
                Ok(DigestState::Pending) if Instant::now() < until => {
                    is_behind = true;
                    sleep(PAUSE).await;
                }
                Ok(state) => return Compared::None(state),
                Err(ClientError::Deadline) if is_behind => return Compared::None(DigestState::Pending),
                Err(error) => return Compared::Failed(error),
            }
        }
    }

    /// What this node's replica came to at an index that a comparison marked. `expected` is what others came to: a node
    /// that differs says so in its log and its counters. Needs the right to manage.
    ///
    /// # Errors
    /// [`ClientError`].
    pub async fn digest_at(
        &self,
        node: NodeId,
        group: GroupId,
        index: Index,
        expected: Option<StateDigest>,
    ) -> Result<DigestState, ClientError> {
        let target = self.shared().node_at(node)?;
        match self.ask(group, ClientBody::StateDigest { index, expected }, target).await? {
            Outcome::Digest(state) => Ok(state),
            _ => unreachable!("succeed() gives a digest nothing else"),
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn comparison(tables: &[Option<u32>]) -> StateComparison {
        let compared = |table: &Option<u32>| match table {
            Some(table) => Compared::Digest(StateDigest { machine: None, table: *table }),
            None => Compared::None(DigestState::Pending),
        };
        let members = (1..).map(NodeId).zip(tables.iter().map(compared)).collect();
        StateComparison { index: Index(1), members }
    }

    #[test]
    fn who_differs_from_most_is_named() {
        assert!(comparison(&[Some(1), Some(1), Some(1)]).is_equal());
        let one = comparison(&[Some(1), Some(2), Some(1)]);
        assert_eq!((one.is_equal(), one.differing()), (false, vec![NodeId(2)]));
        let missing = comparison(&[Some(1), None, Some(1)]);
        assert_eq!((missing.is_equal(), missing.differing()), (false, vec![]));
        // Nobody can tell which of two is right.
        let two = comparison(&[Some(1), Some(2), None]);
        assert_eq!((two.majority(), two.differing()), (None, vec![NodeId(1), NodeId(2)]));
    }
}
