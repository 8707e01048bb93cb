//! Recovery of a group that lost its quorum for good: what one survivor has becomes the group.
//!
//! Raft has no such step: whoever takes it gives up what the lost majority may have acknowledged beyond the log of the
//! survivor, and promises that the lost do not come back. The operator says so, node by node. What makes it safe as
//! far as that promise holds, and ends what happens where it does not, is the term.
//!
//! - The survivor begins again, alone, in a term that is more than `LAPSE_TERMS` above all that it knows of
//!   (`term_of_recovery`). Nobody elects so many leaders: the lost never reach it, whoever of them comes back.
//! - So a replica with a log that hears of a term that far above its own knows that its group was recovered
//!   without it, and a candidate whose log ends that far below its own term is of what was given up. The
//!   first takes no part in that term and asks whether it may leave; the second gets no vote (`group/recovery.rs`).
//! - A majority of the lost that comes back together elects a leader of its own, and acknowledges appends until one of
//!   it hears of the recovered group. These are lost as well: nobody can know of them before.
//!
//! The idea of one survivor's log with a new configuration is that of etcd's `--force-new-cluster` and TiKV's
//! `unsafe-recover`; the gap of terms takes the place of their rule that the lost must never be started again.

use crate::error::Retry;
use crate::ids::{Index, NodeId, Offset, Term};
use crate::mutants::{self, Mutant};
use crate::tombstone::REMOVED;

/// Terms that no group goes through without a recovery while it appends nothing. At an election every second and
/// nothing appended, eleven days.
pub(crate) const LAPSE_TERMS: u64 = 1_000_000;
/// Survivors that are told apart by their terms, should several be recovered by mistake.
const SURVIVORS: u64 = 256;

/// The term in which a survivor begins again: a multiple of [`LAPSE_TERMS`], more than that above its own, and another
/// one on another node. `None` when there is none any more.
pub(crate) fn term_of_recovery(term: Term, node: NodeId) -> Option<Term> {
    if mutants::is(Mutant::RecoveryKeepsTerm) {
        return Some(Term(term.0 + 1));
    }
    let next = (term.0 / LAPSE_TERMS + 2 + node.0 % SURVIVORS).checked_mul(LAPSE_TERMS)?;
    (next < REMOVED.0).then_some(Term(next))
}

/// Whether a recovery lies between two terms.
pub(crate) fn is_lapsed(before: Term, after: Term) -> bool {
    before.0.saturating_add(LAPSE_TERMS) <= after.0
}

/// What is left of a group that was recovered.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
#[cfg_attr(feature = "serde", derive(serde::Serialize))]
pub struct Recovered {
    /// The entry that makes the survivor the only member. All before it is committed.
    pub index: Index,
    /// Its term, and that of the survivor.
    pub term: Term,
    /// Offset after the last record that is kept.
    pub end: Offset,
}

/// Why a group is not recovered. Nothing was done.
#[derive(Clone, Copy, PartialEq, Eq, Debug, thiserror::Error)]
#[cfg_attr(feature = "serde", derive(serde::Serialize))]
pub enum RecoveryRefusal {
    /// No node is named as lost, or one twice, or node 0, or the survivor itself.
    #[error("name the lost nodes, each once, and not the survivor")]
    Malformed,
    /// The group has a leader, as far as is known: this replica leads, or has heard one within the longest election
    /// timeout.
    #[error(
        "the group has a leader: change its members in the ordinary way, or wait until it is surely gone"
    )]
    HasLeader {
        /// The leader, if it is known.
        leader: Option<NodeId>,
    },
    /// The log does not end where the operator saw its end.
    #[error("the log ends at entry {last} of term {term}: look at all survivors again, and choose anew")]
    Changed {
        /// Its last index.
        last: Index,
        /// The term of that entry.
        term: Term,
    },
    /// Those that are not named as lost could elect a leader.
    #[error(
        "{left} voters are not named as lost and {needed} are enough: bring them back, and change members"
    )]
    QuorumLeft {
        /// Voters that are left.
        left: u32,
        /// A majority of them.
        needed: u32,
    },
    /// A node that is named as lost lives: it was heard of not long ago.
    #[error("node {node} is named as lost and lives: shut it down for good, or keep it")]
    Lives {
        /// The node.
        node: NodeId,
    },
    /// Entries of the replica are damaged, and wait for a leader.
    #[error("the replica has lost entries, and is under repair: choose another survivor, if there is one")]
    UnderRepair,
    /// A learner may have less than any voter.
    #[error("the replica does not vote, and voter {voter} is not named as lost: recover on a voter")]
    NotVoter {
        /// A voter that may be left.
        voter: NodeId,
    },
    /// The group was recovered so often that there is no term left.
    #[error("no term is left above {term}")]
    NoTerm {
        /// The term.
        term: Term,
    },
}

impl RecoveryRefusal {
    /// Whether trying again can help.
    #[must_use]
    pub fn retry(&self) -> Retry {
        match self {
            RecoveryRefusal::HasLeader { .. } | RecoveryRefusal::Lives { .. } => Retry::Safe,
            RecoveryRefusal::Malformed
            | RecoveryRefusal::Changed { .. }
            | RecoveryRefusal::QuorumLeft { .. }
            | RecoveryRefusal::UnderRepair
            | RecoveryRefusal::NotVoter { .. }
            | RecoveryRefusal::NoTerm { .. } => Retry::Never,
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_term_of_a_recovery_is_beyond_what_the_lost_can_reach() {
        for (term, node) in [(0, 1), (5, 1), (999_999, 2), (1_000_000, 3), (7_654_321, 256)] {
            let next = term_of_recovery(Term(term), NodeId(node)).unwrap();
            assert!(is_lapsed(Term(term + 1), next), "{term} of {node}: {next}");
            assert_eq!(next.0 % LAPSE_TERMS, 0);
        }
        assert!(!is_lapsed(Term(1_000_001), Term(2_000_000)) && is_lapsed(Term(1_000_000), Term(2_000_000)));
    }

    #[test]
    fn two_survivors_get_terms_that_are_apart() {
        let first = term_of_recovery(Term(9), NodeId(1)).unwrap();
        let second = term_of_recovery(Term(9), NodeId(2)).unwrap();
        assert!(is_lapsed(first, second));
    }

    #[test]
    fn terms_come_to_an_end() {
        assert_eq!(term_of_recovery(Term(REMOVED.0 - 1), NodeId(1)), None);
        assert_eq!(term_of_recovery(Term(u64::MAX), NodeId(1)), None);
    }
}
