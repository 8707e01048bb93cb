//! Election safety: at most one leader a term (Raft paper, figure 3 and 5.2), and one vote a term, restarts
//! included (5.2; Ongaro's thesis 3.4: votes are durable before they are given).

use std::collections::BTreeMap;

use iroh_raft_core::{GroupId, MessageKind, NodeId, PeerMessage, Term};

use super::{Checked, ensure};

#[derive(Default, Debug)]
pub(super) struct Elections {
    leaders: BTreeMap<(GroupId, Term), NodeId>,
    votes: BTreeMap<(GroupId, Term, NodeId), NodeId>,
}

impl Elections {
    pub(super) fn elected(&mut self, node: NodeId, group: GroupId, term: Term) -> Checked {
        let leader = *self.leaders.entry((group, term)).or_insert(node);
        ensure(leader == node, "one leader a term", || {
            format!("nodes {leader} and {node} both lead group {group} in term {term}")
        })
    }

    /// A message that may be a vote: a granted one, or a candidate's for itself.
    pub(super) fn voted(&mut self, message: &PeerMessage) -> Checked {
        let candidate = match message.kind {
            MessageKind::RequestVote => message.from,
            MessageKind::RequestVoteResponse if !message.reject => message.to,
            _ => return Ok(()),
        };
        let key = (message.group, message.term, message.from);
        let voted = *self.votes.entry(key).or_insert(candidate);
        ensure(voted == candidate, "one vote a term", || {
            let PeerMessage { from, group, term, .. } = message;
            format!("node {from} votes for {candidate} in term {term} of {group}, after {voted}")
        })
    }
}
