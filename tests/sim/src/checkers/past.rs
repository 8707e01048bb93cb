//! A replica that left its group and comes back has lost a log that it acknowledged. It joins at an entry that is durable with it from
//! its first flush, and votes as if it had its log still: for no candidate that lacks that entry. Nor does it campaign itself
//! without it, by members of long ago.

use std::collections::BTreeMap;

use iroh_raft_core::{GroupId, LogPosition, MessageKind, NodeId, PeerMessage, Term};

use super::durable::Durable;
use super::{Checked, ensure};

const RULE: &str = "a replica in the past neither votes for it nor campaigns";

#[derive(Default, Debug)]
pub(super) struct Past {
    /// By candidate, and whether it is a pre-vote: the term that it asked in last, and where its log ended.
    asked: BTreeMap<(NodeId, GroupId, bool), (Term, LogPosition)>,
}

impl Past {
    /// A message leaves a node.
    pub(super) fn sent(&mut self, message: &PeerMessage, durable: &Durable) -> Checked {
        let PeerMessage { kind, group, from, to, term, index, log_term, reject, .. } = message;
        let joined_at = durable.of(*from, *group).map_or(LogPosition::default(), |stored| stored.joined_at);
        let is_request = matches!(kind, MessageKind::RequestVote | MessageKind::RequestPreVote);
        let is_pre = matches!(kind, MessageKind::RequestPreVote | MessageKind::RequestPreVoteResponse);
        let is_vote = matches!(kind, MessageKind::RequestVoteResponse | MessageKind::RequestPreVoteResponse);
        let counted_log = if is_request {
            let own = LogPosition { term: *log_term, index: *index };
            self.asked.insert((*from, *group, is_pre), (*term, own));
            Some(own)
        } else if is_vote && !reject {
            let asked = self.asked.get(&(*to, *group, is_pre));
            asked.filter(|(of, _)| of == term).map(|(_, log)| *log)
        } else {
            None
        };
        let is_of_the_past = counted_log.is_some_and(|log| log < joined_at);
        ensure(!is_of_the_past, RULE, || format!("{message:?}: {from} joined at {joined_at:?}"))
    }
}
