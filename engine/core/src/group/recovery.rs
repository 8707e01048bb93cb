//! A replica's part in a recovery of its group ([`crate::recovery`]): it becomes the only member, or learns that it was
//! given up.
//!
//! - The survivor writes an entry that makes it the only member, with a term and vote of its own and a commit index that
//!   covers the entry, in one flush, and begins again from its disk. What puts the members in force is the start's
//!   own rule: changes up to the durable commit index are applied again. So a crash in between changes nothing.
//! - A replica that was given up never takes part in a term of the recovered group: what it has committed may
//!   contradict that group's log, and raft-rs would acknowledge it as the same. It asks whoever spoke to it, and
//!   leaves when a leader says so; as a member again it begins with an empty log.

use std::collections::BTreeSet;

use raft::eraftpb::ConfChangeV2;

use super::{Index, MessageKind, NodeId, PeerMessage, Replica, Term, Turn};
use crate::convert::to_node;
use crate::error::RequestError;
use crate::io::{EntryKind, LogEntry, MemberChange, MemberRole, Recover, Send};
use crate::members::{MEMBERS_MAX, encode_change, from_raft_conf_state, to_conf_change, to_recovery};
use crate::mutants::{self, Mutant};
use crate::recovery::{Recovered, RecoveryRefusal, is_lapsed, term_of_recovery};
use crate::validate::LogView;

impl Replica {
    /// An operator makes this replica what is left of the group: `None`: not before what it has said is
    /// durable. After `Some` it has to begin again from its disk.
    ///
    /// # Errors
    /// Why it is not done.
    pub(crate) fn handle_recover(
        &mut self,
        turn: &mut Turn<'_>,
        recover: &Recover,
    ) -> Result<Option<Recovered>, RequestError> {
        let term =
            self.check_recovery(turn, recover).map_err(|refusal| RequestError::Recovery { refusal })?;
        if self.persistence.is_waiting() || self.raw.has_ready() || self.is_opening() {
            return Ok(None);
        }
        let last = Index(self.raw.raft.raft_log.last_index());
        let (index, end) = (last.next(), self.offset_after(last));
        let data = encode_change(&to_recovery(self.node));
        self.write_recovery(turn, LogEntry { index, term, kind: EntryKind::ConfChangeV2, data });
        self.fail_all(&RequestError::Quarantined, &mut turn.out.replies);
        Ok(Some(Recovered { index, term, end }))
    }

    /// Whether the group may be recovered from here, and in which term it goes on then.
    fn check_recovery(&self, turn: &Turn<'_>, recover: &Recover) -> Result<Term, RecoveryRefusal> {
        let lost: BTreeSet<NodeId> = recover.lost.iter().copied().collect();
        let is_sound = (1..=MEMBERS_MAX).contains(&lost.len())
            && lost.len() == recover.lost.len()
            && !lost.contains(&NodeId(0))
            && !lost.contains(&self.node);
        if !is_sound {
            return Err(RecoveryRefusal::Malformed);
        }
        if self.is_under_repair() {
            return Err(RecoveryRefusal::UnderRepair);
        }
        self.check_lost(turn, &lost)?;
        let mut left = self.voters.iter().copied().filter(|voter| !lost.contains(voter));
        if !self.members.now.is_voter(self.node)
            && let Some(voter) = left.next()
        {
            return Err(RecoveryRefusal::NotVoter { voter });
        }
        let last = Index(self.raw.raft.raft_log.last_index());
        let last_term = self.term_at(last);
        if (last, last_term) != (recover.last, recover.last_term) {
            return Err(RecoveryRefusal::Changed { last, term: last_term });
        }
        let term = Term(self.raw.raft.term);
        term_of_recovery(term, self.node).ok_or(RecoveryRefusal::NoTerm { term })
    }

    /// Whether nobody leads, those named are silent, and the others can do nothing without them.
    fn check_lost(&self, turn: &Turn<'_>, lost: &BTreeSet<NodeId>) -> Result<(), RecoveryRefusal> {
        let voters = &self.members.now.voters;
        let left: Vec<NodeId> = self.voters.iter().copied().filter(|voter| !lost.contains(voter)).collect();
        if self.raw.raft.prs().has_quorum(&left.iter().map(|voter| voter.0).collect()) {
            let count = |nodes: usize| u32::try_from(nodes).expect("few members");
            let (left, needed) = (count(left.len()), count(voters.len() / 2 + 1));
            return Err(RecoveryRefusal::QuorumLeft { left, needed });
        }
        if mutants::is(Mutant::RecoveryOfTheLiving) {
            return Ok(());
        }
        let election = turn.config.tick * turn.config.election_ticks.1;
        if self.is_leader() || self.is_quiet() || turn.now.since(self.promise.silent_since()) <= election {
            let leader = to_node(self.raw.raft.leader_id);
            return Err(RecoveryRefusal::HasLeader { leader });
        }
        let lives = |node: &&NodeId| {
            self.heard(turn, **node).is_some() || self.members.has_heard(**node, turn.now, election)
        };
        match lost.iter().find(lives) {
            Some(node) => Err(RecoveryRefusal::Lives { node: *node }),
            None => Ok(()),
        }
    }

    /// The survivor is the only member from here on.
    pub(super) fn put_alone_in_force(&mut self, since: Index, survivor: NodeId) {
        let others: Vec<u64> =
            self.raw.raft.prs().iter().map(|(node, _)| *node).filter(|node| *node != survivor.0).collect();
        let one = |node, role| to_conf_change(&[MemberChange { node, role }]);
        let end = self.members.now.is_joint().then(ConfChangeV2::default);
        let gone = others.into_iter().map(|node| one(NodeId(node), MemberRole::Gone));
        let mut members = None;
        for change in end.into_iter().chain([one(survivor, MemberRole::Voter)]).chain(gone) {
            let after = self.raw.apply_conf_change(&change);
            members =
                Some(after.expect("one node at a time, outside of a joint configuration, and one stays"));
        }
        let members = members.expect("there is one change at least");
        self.members.put_in_force(since, from_raft_conf_state(&members));
        self.voters = self.members.voters();
    }

    /// Whether a message shows that the group was recovered without this replica: it is asked whether that
    /// is so, and otherwise not heard.
    pub(super) fn is_given_up_by(&mut self, turn: &mut Turn<'_>, message: &PeerMessage) -> bool {
        let last = Index(self.raw.raft.raft_log.last_index());
        // One that has nothing yet begins in whatever term its leader has.
        let is_one = last > Index(0)
            && message.kind != MessageKind::Gone
            && is_lapsed(Term(self.raw.raft.term), message.term);
        if is_one {
            self.wake(turn);
            self.leaving.handle_question();
            let addresses = (self.node, message.from);
            let mut question = PeerMessage::bare(MessageKind::MayLeave, self.group, addresses, Term(0));
            (question.index, question.log_term) = (last, self.term_at(last));
            turn.out.sends.push(Send { message: question, after: None });
        }
        is_one
    }

    /// Whether a candidate's log is of a group that was recovered since.
    pub(super) fn is_of_given_up(&self, message: &PeerMessage) -> bool {
        let term = message.term.max(Term(self.raw.raft.term));
        matches!(message.kind, MessageKind::RequestVote | MessageKind::RequestPreVote)
            && is_lapsed(message.log_term, term)
    }
}
