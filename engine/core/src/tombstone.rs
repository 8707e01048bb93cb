//! What stays of a replica that left its group: its term, its vote, and the entry after which it was none.
//!
//! On the disk it is a replica without members, whose log begins and ends after that entry. A replica that begins
//! in its place keeps term and vote, as if it had lost nothing but its log: it cannot vote twice in a term, and
//! a leader of older terms does not count it. It begins only for an entry after that which removed it.
//!
//! One that was given up in a recovery ([`crate::recovery`]) leaves its term alone: nothing of its log is of the group.

use std::collections::BTreeSet;

use crate::ids::{GroupId, Index, LogPosition, NodeId, Term};
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
        state.has_left().then_some(Tombstone { group, term, vote, start })
    }

    /// What has to be durable for it.
    pub(crate) fn append(&self) -> GroupAppend {
        GroupAppend {
            group: self.group,
            change: Some(if self.start == LogStart::default() {
                LogChange::Remove
            } else {
                LogChange::StartAfter(self.start)
            }),
            hard_state: Some(HardState { term: self.term, vote: self.vote, commit: self.start.index }),
            conf_state: Some(ConfState::default()),
            meta: None,
            under_repair: None,
            joined_at: None,
            entries: Vec::new(),
        }
    }

    pub(crate) fn is_of_removed_group(&self) -> bool {
        self.start.index == REMOVED
    }

    /// Whether a replica may begin here again.
    pub(crate) fn admits(&self, since: LogPosition) -> bool {
        let LogStart { index, term, .. } = self.start;
        since > LogPosition { term, index } || mutants::is(Mutant::TombstoneAdmitsAll)
    }

    /// The replica that begins in its place.
    pub(crate) fn reopen(&self, fresh: GroupState) -> GroupState {
        if mutants::is(Mutant::TombstoneForgets) {
            return fresh;
        }
        GroupState { hard_state: HardState { term: self.term, vote: self.vote, commit: Index(0) }, ..fresh }
    }

    /// The answer to a replica that does not know what this one knew as it left: that the group was removed; or, to a
    /// candidate whose log has it, that the entry after which this one left is committed. Members may have lost
    /// that, for it need not be durable anywhere. As far as they know this one still votes, and they would wait for its
    /// vote for ever.
    pub(crate) fn answer(&self, message: &PeerMessage) -> Option<Send> {
        let is_question = matches!(
            message.kind,
            MessageKind::RequestVote | MessageKind::RequestPreVote | MessageKind::MayLeave
        );
        let LogStart { index, term, .. } = self.start;
        let has_it = (message.log_term, message.index) >= (term, index);
        let is_waiting = message.kind != MessageKind::MayLeave && has_it && index > Index(0);
        if !is_question || !(self.is_of_removed_group() || is_waiting) {
            return None;
        }
        let addresses = (message.to, message.from);
        let mut answer = PeerMessage::bare(MessageKind::Gone, self.group, addresses, self.term);
        (answer.index, answer.log_term) = (index, term);
        answer.reject = message.kind == MessageKind::MayLeave;
        if self.is_of_removed_group() {
            // It is true in every term.
            (answer.term, answer.log_term) = (Term(1), Term(REMOVED.0));
        }
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
