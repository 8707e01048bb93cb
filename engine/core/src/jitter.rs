//! Election timeouts: drawn from the seed, and spread over the voters so that votes rarely split.
//!
//! raft-rs draws from an ambient generator. Its draw is overwritten after every call with one of
//! ours, which is a function of (seed, group, term, attempt) alone.

use crate::ids::{GroupId, NodeId, Term};

/// What a draw depends on.
#[derive(Clone, Copy, Debug)]
pub(crate) struct Draw<'a> {
    pub(crate) seed: u64,
    pub(crate) node: NodeId,
    pub(crate) group: GroupId,
    pub(crate) term: Term,
    /// Tells draws of one term apart.
    pub(crate) attempt: u64,
    /// All voters of the group, sorted.
    pub(crate) voters: &'a [NodeId],
    /// Shortest and longest timeout, inclusive.
    pub(crate) ticks: (u32, u32),
}

impl Draw<'_> {
    /// An election timeout in ticks, within `ticks`.
    ///
    /// Each voter has a slot of its own, where the range is wide enough: its rank among the voters,
    /// rotated by a hash of (group, term) that every replica computes alike. So two voters of one
    /// term do not time out together, and over terms and groups nobody is favoured.
    pub(crate) fn election_ticks(self) -> u32 {
        let (shortest, longest) = self.ticks;
        let width = u64::from(longest - shortest) + 1;
        let (first, count) = self.slot(width).unwrap_or((0, width));
        let noise = [self.group.0, self.term.0, self.attempt, self.node.0]
            .into_iter()
            .fold(mix(self.seed), |state, word| mix(state ^ word));
        let ticks = first + noise % count;
        shortest + u32::try_from(ticks).expect("a slot lies within the range")
    }

    fn slot(self, width: u64) -> Option<(u64, u64)> {
        let voters = self.voters.len() as u64;
        let rank = self.voters.binary_search(&self.node).ok()? as u64;
        if voters > width {
            return None;
        }
        let slot = (rank + mix(mix(self.group.0) ^ self.term.0) % voters) % voters;
        let first = slot * width / voters;
        Some((first, (slot + 1) * width / voters - first))
    }
}

/// One step of splitmix64: every bit of the result depends on every bit of `state`.
pub(crate) fn mix(state: u64) -> u64 {
    let z = state.wrapping_add(0x9e37_79b9_7f4a_7c15);
    let z = (z ^ (z >> 30)).wrapping_mul(0xbf58_476d_1ce4_e5b9);
    let z = (z ^ (z >> 27)).wrapping_mul(0x94d0_49bb_1331_11eb);
    z ^ (z >> 31)
}

#[cfg(test)]
mod tests {
    use super::*;

    fn ticks(node: u64, term: u64, attempt: u64, voters: &[NodeId], ticks: (u32, u32)) -> u32 {
        let (node, group, term) = (NodeId(node), GroupId(7), Term(term));
        Draw { seed: node.0 * 1000 + 1, node, group, term, attempt, voters, ticks }.election_ticks()
    }

    #[test]
    fn voters_of_a_term_never_share_a_timeout_and_all_lie_within_the_range() {
        let voters = [NodeId(1), NodeId(4), NodeId(9)];
        for term in 0..500 {
            let drawn: Vec<u32> =
                voters.iter().map(|node| ticks(node.0, term, term % 3, &voters, (12, 18))).collect();
            assert!(drawn.iter().all(|ticks| (12..=18).contains(ticks)), "term {term}: {drawn:?}");
            assert!(
                drawn[0] != drawn[1] && drawn[1] != drawn[2] && drawn[0] != drawn[2],
                "term {term}: {drawn:?}"
            );
        }
    }

    #[test]
    fn every_voter_is_first_in_some_term_and_every_timeout_is_drawn() {
        let voters = [NodeId(1), NodeId(2), NodeId(3)];
        let mut first = [0; 3];
        let mut seen = [false; 7];
        for term in 0..300 {
            let drawn = [1, 2, 3].map(|node| ticks(node, term, 0, &voters, (12, 18)));
            drawn.iter().for_each(|ticks| seen[*ticks as usize - 12] = true);
            let winner = (0..3).min_by_key(|at| drawn[*at]).unwrap();
            first[winner] += 1;
        }
        assert!(first.iter().all(|wins| *wins > 50), "{first:?}");
        assert_eq!(seen, [true; 7]);
    }

    #[test]
    fn a_range_narrower_than_the_voters_is_shared() {
        let voters: Vec<NodeId> = (1..=5).map(NodeId).collect();
        for node in 1..=6 {
            assert!((12..=13).contains(&ticks(node, 3, 0, &voters, (12, 13))));
            assert_eq!(ticks(node, 3, 0, &voters, (12, 12)), 12);
        }
    }
}
