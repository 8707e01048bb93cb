//! Bugs of counting, for the mutants that have them.

use super::{NodeId, Replica};
use crate::mutants::{self, Mutant};

impl Replica {
    /// Commits what the chosen bug takes for committed.
    pub(super) fn miscount(&mut self) {
        if !self.is_leader() {
            return;
        }
        let members = &self.members.now;
        let counted: Vec<NodeId> = if mutants::is(Mutant::OlderTermCounted) {
            // Raft paper, figure 8.
            members.voters.clone()
        } else if mutants::is(Mutant::JointHalfCounts) && members.is_joint() {
            members.voters.clone()
        } else if mutants::is(Mutant::LearnersCount) {
            members.voters.iter().chain(&members.learners).copied().collect()
        } else {
            return;
        };
        let raft = &mut self.raw.raft;
        let matched = |node: &NodeId| raft.prs().get(node.0).map_or(0, |progress| progress.matched);
        let mut matched: Vec<u64> = counted.iter().map(matched).collect();
        matched.sort_unstable_by_key(|index| std::cmp::Reverse(*index));
        let taken =
            if mutants::is(Mutant::LearnersCount) { members.voters.len() / 2 } else { counted.len() / 2 };
        let commit = matched[taken].min(raft.raft_log.last_index());
        let is_ours = raft.raft_log.term(commit).is_ok_and(|term| term == raft.term);
        if commit > raft.raft_log.committed && (is_ours || mutants::is(Mutant::OlderTermCounted)) {
            raft.raft_log.commit_to(commit);
        }
    }
}
