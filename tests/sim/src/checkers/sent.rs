//! Durable before said: a message may only say what its sender's disk would say again after a crash (Raft paper,
//! figure 2: "updated on stable storage before responding to RPCs"; thesis 3.8 and 10.2.1).

use iroh_raft_core::{HardState, MessageKind, PeerMessage};

use super::durable::Durable;
use super::{Checked, ensure};

pub(super) fn check(message: &PeerMessage, durable: &Durable) -> Checked {
    let PeerMessage { from, to, group, term, index, log_term, .. } = *message;
    let stored = durable.of(from, group);
    let HardState { term: stored_term, vote, .. } =
        stored.map(|stored| stored.hard_state).unwrap_or_default();
    let is_pre_vote = message.kind == MessageKind::RequestPreVote
        || (message.kind == MessageKind::RequestPreVoteResponse && !message.reject);
    if !is_pre_vote && message.kind != MessageKind::ReadIndex {
        ensure(stored_term >= term, "durable before said: term", || {
            format!(
                "node {from} sends {:?} of term {term} of {group}, durable is {stored_term}",
                message.kind
            )
        })?;
    }
    let candidate = match message.kind {
        MessageKind::RequestVote => Some(from),
        MessageKind::RequestVoteResponse if !message.reject => Some(to),
        _ => None,
    };
    if let Some(candidate) = candidate.filter(|_| stored_term == term) {
        ensure(vote == candidate, "durable before said: vote", || {
            format!(
                "node {from} votes for {candidate} in term {term} of {group}, durable is a vote for {vote}"
            )
        })?;
    }
    // Whoever left in the same commit has the entry no more, and nobody counts it any more.
    let has_left = stored.is_some_and(|stored| stored.has_left);
    if message.kind == MessageKind::AppendResponse && !message.reject && stored_term == term && !has_left {
        // What was on its way as the damage was found is as true as before: the bound of the repair covers it.
        let last = stored.map_or(0, |stored| stored.last_held() as u64);
        ensure(last >= index.0, "durable before said: entries", || {
            format!("node {from} acknowledges entry {index} of {group} (term {log_term}), durable is {last}")
        })?;
    }
    Ok(())
}
