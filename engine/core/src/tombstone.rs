//! What stays of a replica that left its group: its term, its vote, and the entry after which it was none.
//!
//! On the disk it is a replica without members, whose log begins and ends after that entry. A replica that begins
//! in its place keeps term and vote, as if it had lost nothing but its log: it cannot vote twice in a term, and
//! a leader of older terms does not count it. It begins only for an entry after that which removed it.

use std::collections::BTreeSet;

use crate::ids::{GroupId, Index, NodeId, Term};
use crate::io::{
    ConfState, GroupAppend, GroupState, HardState, LogChange, LogStart, MessageKind, PeerMessage, Send,
};
use crate::members::MEMBERS_MAX;
use crate::mutants::{self, Mutant};

/// Stands for the removal of the whole group, beyond every entry.
pub(crate) const REMOVED: Index = Index(1 << 56);

#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub(crate) struct Tombstone {
    group: GroupId,
    term: Term,
    vote: NodeId,
    start: LogStart,
}

impl Tombstone {
    pub(crate) fn new(group: GroupId, term: Term, vote: NodeId, start: LogStart) -> Tombstone {
        Tombstone { group, term, vote, start }
    }

    /// The tombstone that a durable state is, if it is one.
    pub(crate) fn find(state: &GroupState) -> Option<Tombstone> {
        let GroupState { group, hard_state: HardState { term, vote, .. }, start, .. } = *state;
        let is_one = state.is_durable
            && state.damage.is_none()
            && state.conf_state == ConfState::default()
            && state.last == start.index;
        is_one.then_some(Tombstone { group, term, vote, start })
    }

    /// What has to be durable for it.
    pub(crate) fn append(&self) -> GroupAppend {
        GroupAppend {
            group: self.group,
            change: Some(LogChange::StartAfter(self.start)),
            hard_state: Some(HardState { term: self.term, vote: self.vote, commit: self.start.index }),
            conf_state: Some(ConfState::default()),
            meta: None,
            under_repair: None,
            entries: Vec::new(),
        }
    }

    pub(crate) fn is_of_removed_group(&self) -> bool {
        self.start.index == REMOVED
    }

    /// Whether a replica may begin here again.
    pub(crate) fn admits(&self, since: Index) -> bool {
        since > self.start.index || mutants::is(Mutant::TombstoneAdmitsAll)
    }

    /// The replica that begins in its place.
    pub(crate) fn reopen(&self, fresh: GroupState) -> GroupState {
        if mutants::is(Mutant::TombstoneForgets) {
            return fresh;
        }
        GroupState { hard_state: HardState { term: self.term, vote: self.vote, commit: Index(0) }, ..fresh }
    }

    /// The answer to a replica of a removed group that has not heard of it.
    pub(crate) fn answer(&self, message: &PeerMessage) -> Option<Send> {
        let is_question = matches!(
            message.kind,
            MessageKind::RequestVote | MessageKind::RequestPreVote | MessageKind::MayLeave
        );
        if !is_question || !self.is_of_removed_group() {
            return None;
        }
        // It is true in every term.
        let mut answer =
            PeerMessage::bare(MessageKind::Gone, self.group, (message.to, message.from), Term(1));
        (answer.index, answer.log_term) = (REMOVED, Term(REMOVED.0));
        answer.reject = message.kind == MessageKind::MayLeave;
        Some(Send { message: answer, after: None })
    }
}

/// Whether members can be those of the beginning of a log.
pub(crate) fn are_first_members(members: &ConfState) -> bool {
    let (voters, learners) = (&members.voters, &members.learners);
    let count = voters.len() + learners.len();
    let nodes: BTreeSet<NodeId> = voters.iter().chain(learners).copied().collect();
    !voters.is_empty()
        && count <= MEMBERS_MAX
        && !members.is_joint()
        && members.learners_next.is_empty()
        && !members.auto_leave
        && nodes.len() == count
        && !nodes.contains(&NodeId(0))
}
