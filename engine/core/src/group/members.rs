//! Changes of membership on a replica: asked for, in force once committed, ended by the leader.

use std::cmp::Reverse;
use std::collections::{BTreeSet, VecDeque};
use std::sync::Arc;
use std::time::Duration;

use raft::ProgressState;
use raft::eraftpb::{self, ConfChangeV2, EntryType, MessageType};

use super::{Index, NodeId, Replica, Timestamp, Turn};
use crate::convert::to_peer_message;
use crate::error::{BusyReason, RequestError};
use crate::ids::GroupId;
use crate::io::{ConfState, EntryKind, Event, LogEntry, MemberChange, MemberRole, Reply, Send, Token};
use crate::members::{
    LAG_ENTRIES_MAX, MembersRefusal, MembersRequest, from_raft_conf_state, is_done, is_removal, parse,
    survivor_of, to_conf_change, to_removal, voters_after,
};
use crate::mutants::{self, Mutant};

/// The members of a replica's group, as far as it knows of their commit.
#[derive(Debug)]
pub(super) struct Members {
    /// In force.
    pub(super) now: Arc<ConfState>,
    /// The entry that put them in force; 0 for those that the log began with.
    pub(super) since: Index,
    /// Those in force from an index on, from the beginning of the log: the last are those that are now.
    history: VecDeque<(Index, Arc<ConfState>)>,
    request: Option<MembersRequest>,
    /// When each node was last heard of.
    heard: Vec<(NodeId, Timestamp)>,
    has_changed: bool,
    /// Whether one of them is none any more.
    has_removed: bool,
}

impl Members {
    /// `start`: the entry before the log, as of which these are the members.
    pub(super) fn new(first: &ConfState, start: Index) -> Members {
        let now = Arc::new(first.clone());
        let history = [(start, now.clone())].into();
        let (request, heard) = (None, Vec::new());
        Members { now, since: start, history, request, heard, has_changed: false, has_removed: false }
    }

    fn replace(&mut self, members: ConfState, since: Index) {
        let before = std::mem::replace(&mut self.now, Arc::new(members));
        self.since = since;
        self.has_changed = true;
        let mut nodes = before.voters.iter().chain(&before.learners).chain(&before.voters_outgoing);
        self.has_removed |= nodes.any(|node| !self.now.is_member(*node));
    }

    pub(super) fn put_in_force(&mut self, since: Index, members: ConfState) {
        self.replace(members, since);
        // One entry may change them more than once, in a build with a bug.
        self.history.pop_back_if(|(of, _)| *of == since);
        self.history.push_back((since, self.now.clone()));
        // One that comes back later is a stranger until it is heard again.
        self.heard.retain(|(node, _)| self.now.is_member(*node));
    }

    /// The members as of an entry of the log, or of the one before it.
    pub(super) fn at(&self, index: Index) -> &Arc<ConfState> {
        let after = self.history.partition_point(|(since, _)| *since <= index);
        &self.history[after.checked_sub(1).expect("the log goes back to its members")].1
    }

    /// Those that the log began with.
    pub(super) fn first(&self) -> &Arc<ConfState> {
        &self.history[0].1
    }

    /// A snapshot took the place of the log.
    pub(super) fn restart(&mut self, members: &ConfState, since: Index) {
        self.replace(members.clone(), since);
        self.history = [(since, self.now.clone())].into();
    }

    /// Whether a node was heard of within this time.
    pub(super) fn has_heard(&self, node: NodeId, now: Timestamp, within: Duration) -> bool {
        self.heard.iter().any(|(of, at)| *of == node && now.since(*at) <= within)
    }

    /// The log begins after this entry now.
    pub(super) fn compact_to(&mut self, index: Index) {
        while self.history.get(1).is_some_and(|(since, _)| *since <= index) {
            self.history.pop_front();
        }
    }

    /// Nodes that vote, in either half of a joint configuration; sorted.
    pub(super) fn voters(&self) -> Vec<NodeId> {
        let voters: BTreeSet<NodeId> =
            self.now.voters.iter().chain(&self.now.voters_outgoing).copied().collect();
        voters.into_iter().collect()
    }

    /// A node has sent something.
    pub(super) fn hear(&mut self, node: NodeId, now: Timestamp) {
        match self.heard.iter_mut().find(|(of, _)| *of == node) {
            Some((_, at)) => *at = now.max(*at),
            // A stranger: bounded by the members there have been.
            None if self.now.is_member(node) => self.heard.push((node, now)),
            None => {}
        }
    }

    pub(super) fn forget_heard(&mut self) {
        self.heard = Vec::new();
    }

    /// Whether a change is under way.
    pub(super) fn is_changing(&self) -> bool {
        self.request.is_some() || self.now.is_joint()
    }

    pub(super) fn take_changed(&mut self) -> bool {
        std::mem::take(&mut self.has_changed)
    }

    pub(super) fn take_removed(&mut self) -> bool {
        std::mem::take(&mut self.has_removed)
    }

    /// The request is over, or nobody waits for it any more.
    pub(super) fn fail(&mut self, group: GroupId, error: &RequestError, replies: &mut Vec<Reply>) {
        if let Some(request) = self.request.take() {
            replies.push(Reply::Failed { token: request.token, group, error: error.clone() });
        }
    }

    pub(super) fn handle_deadlines(
        &mut self,
        group: GroupId,
        now: Timestamp,
        leader: Option<NodeId>,
        replies: &mut Vec<Reply>,
    ) {
        if self.request.is_some_and(|request| request.deadline <= now) {
            self.fail(group, &RequestError::OutcomeUnknown { leader }, replies);
        }
    }
}

impl Replica {
    /// A request to change the members: refused, answered, or begun.
    pub(crate) fn handle_change_members(
        &mut self,
        turn: &mut Turn<'_>,
        token: Token,
        changes: &[MemberChange],
        deadline: Timestamp,
    ) {
        let group = self.group;
        if self.is_leader() {
            self.wake(turn);
        }
        match self.begin_change(turn, changes, deadline) {
            Ok(Some(index)) => {
                self.members.request = Some(MembersRequest { token, deadline, index, is_removal: false });
            }
            Ok(None) => {
                let (index, members) = (self.members.since, self.members.now.clone());
                turn.out.replies.push(Reply::MembersChanged { token, group, index, members });
            }
            Err(error) => turn.out.replies.push(Reply::Failed { token, group, error }),
        }
    }

    /// Whether a change can begin now.
    fn check_free(&self) -> Result<(), RequestError> {
        let is_free = self.members.request.is_none() && self.can_change() && !self.members.now.is_joint();
        if is_free { Ok(()) } else { Err(RequestError::busy(BusyReason::Members)) }
    }

    /// A request to remove the group.
    pub(crate) fn handle_remove_group(&mut self, turn: &mut Turn<'_>, token: Token, deadline: Timestamp) {
        let error = if !self.is_leader() {
            RequestError::NotLeader { leader: self.leader_hint() }
        } else if deadline <= turn.now {
            RequestError::Timeout
        } else if let Err(busy) = self.check_free() {
            busy
        } else {
            self.wake(turn);
            let index = self.append_change(turn, to_removal(self.node));
            self.members.request = Some(MembersRequest { token, deadline, index, is_removal: true });
            return;
        };
        turn.out.replies.push(Reply::Failed { token, group: self.group, error });
    }

    /// Appends the entry of a change; `None` when nothing is to change.
    fn begin_change(
        &mut self,
        turn: &mut Turn<'_>,
        changes: &[MemberChange],
        deadline: Timestamp,
    ) -> Result<Option<Index>, RequestError> {
        if !self.is_leader() {
            return Err(RequestError::NotLeader { leader: self.leader_hint() });
        }
        if deadline <= turn.now {
            return Err(RequestError::Timeout);
        }
        let refused = |refusal| RequestError::Members { refusal };
        let voters = voters_after(&self.members.now, changes).map_err(refused)?;
        self.check_free()?;
        if is_done(&self.members.now, changes) {
            return Ok(None);
        }
        self.check_voters(turn, &voters).map_err(refused)?;
        Ok(Some(self.append_change(turn, to_conf_change(changes))))
    }

    /// Whether a change may be appended: the one before is in force, and so is this leader's term
    /// (Ongaro, "bug in single-server membership changes", raft-dev 2015).
    fn can_change(&self) -> bool {
        let raft = &self.raw.raft;
        self.is_leader()
            && raft.commit_to_current_term()
            && !raft.has_pending_conf()
            && !self.leadership.is_transferring()
    }

    /// Whether these voters could go on with the group now.
    fn check_voters(&self, turn: &Turn<'_>, voters: &BTreeSet<NodeId>) -> Result<(), MembersRefusal> {
        let raft = &self.raw.raft;
        let lease = turn.config.tick * turn.config.lease_ticks;
        let is_alive = |node: NodeId| node == self.node || self.members.has_heard(node, turn.now, lease);
        for node in voters.iter().copied().filter(|node| !self.members.now.voters.contains(node)) {
            let progress = raft.prs().get(node.0).ok_or(MembersRefusal::NotLearner { node })?;
            let is_near = progress.matched + LAG_ENTRIES_MAX >= raft.raft_log.committed;
            if progress.state != ProgressState::Replicate || !is_near || !is_alive(node) {
                return Err(MembersRefusal::Lagging { node });
            }
        }
        let count = |nodes: usize| u32::try_from(nodes).expect("few members");
        let alive = count(voters.iter().filter(|node| is_alive(**node)).count());
        let needed = count(voters.len() / 2 + 1);
        if alive < needed { Err(MembersRefusal::WouldLoseQuorum { alive, needed }) } else { Ok(()) }
    }

    fn append_change(&mut self, turn: &mut Turn<'_>, change: ConfChangeV2) -> Index {
        let early = mutants::is(Mutant::ChangeInForceEarly).then(|| change.clone());
        self.raw.propose_conf_change(Vec::new(), change).expect("a leader that may change members takes it");
        self.after_call(turn, false);
        self.is_dirty = true;
        let last = Index(self.raw.raft.raft_log.last_index());
        assert_eq!(self.raw.raft.pending_conf_index, last.0, "raft-rs has taken the change as one");
        if let Some(change) = early {
            self.put_in_force(last, &change);
        }
        last
    }

    /// A leader ends the joint configuration that it finds itself in.
    pub(super) fn leave_joint(&mut self, turn: &mut Turn<'_>) {
        let is_ours = self.members.request.is_some() || !mutants::is(Mutant::JointForgotten);
        if self.members.now.is_joint() && self.can_change() && is_ours {
            self.append_change(turn, ConfChangeV2::default());
        }
    }

    /// Spares the group an election timeout.
    fn name_successor(&self, turn: &mut Turn<'_>) {
        let raft = &self.raw.raft;
        let voters = self.members.now.voters.iter();
        let matched = |node: &NodeId| Some((raft.prs().get(node.0)?.matched, Reverse(*node)));
        let Some((_, Reverse(to))) = voters.filter_map(matched).max() else { return };
        let message = eraftpb::Message {
            msg_type: MessageType::MsgTimeoutNow,
            from: self.node.0,
            to: to.0,
            term: raft.term,
            ..Default::default()
        };
        // Its term is durable: so is the entry that it has just put in force.
        let send = |message| Send { message, after: None };
        turn.out.sends.extend(to_peer_message(self.group, message).map(send));
    }

    /// Puts committed changes in force, in order.
    pub(super) fn apply_changes(&mut self, turn: &mut Turn<'_>, committed: &[eraftpb::Entry]) {
        for stub in committed.iter().filter(|entry| entry.entry_type != EntryType::EntryNormal) {
            let entry = self.raw.store().get(Index(stub.index)).cloned();
            let entry = entry.expect("what was just committed is in memory");
            self.apply_change(&entry);
            if self.members.since == entry.index {
                let (group, members) = (self.group, self.members.now.clone());
                turn.out.events.push(Event::MembersChanged { group, index: entry.index, members });
            }
            self.after_call(turn, false);
            self.answer_change(turn);
            if self.is_leader() && !self.members.now.is_voter(self.node) {
                // raft-rs would lead on without being a member, and panic. The commit has gone out.
                self.name_successor(turn);
                let term = self.raw.raft.term;
                self.raw.raft.become_follower(term, raft::INVALID_ID);
                self.after_call(turn, false);
            }
            self.is_dirty = true;
        }
    }

    /// Puts one change in force. One that does not fit the members is none, on every replica alike.
    pub(super) fn apply_change(&mut self, entry: &LogEntry) {
        let change = match entry.kind {
            EntryKind::ConfChangeV2 => parse(&entry.data),
            EntryKind::Normal | EntryKind::ConfChange => None,
        };
        match change {
            Some(change) if is_removal(&change) => self.leave_for_good(),
            Some(change) => match survivor_of(&change) {
                Some(survivor) => self.put_alone_in_force(entry.index, survivor),
                None => self.put_in_force(entry.index, &change),
            },
            None => {}
        }
    }

    /// Whether the members at the beginning of the log were these.
    pub(crate) fn began_with(&self, members: &ConfState) -> bool {
        let start = self.log_start().index;
        let nodes = |nodes: &[NodeId]| nodes.iter().copied().collect::<BTreeSet<_>>();
        let first = self.members.at(start);
        start == Index(0)
            && nodes(&first.voters) == nodes(&members.voters)
            && nodes(&first.learners) == nodes(&members.learners)
    }

    fn put_in_force(&mut self, since: Index, change: &ConfChangeV2) {
        if mutants::is(Mutant::JointSkipped) && change.changes.len() > 1 {
            for single in change.changes.iter().cloned() {
                let changes = vec![single].into();
                self.put_in_force(since, &ConfChangeV2 { changes, ..ConfChangeV2::default() });
            }
        } else if let Ok(members) = self.raw.apply_conf_change(change) {
            self.members.put_in_force(since, from_raft_conf_state(&members));
            self.voters = self.members.voters();
            if mutants::is(Mutant::LeavesUnasked) && !self.members.now.is_member(self.node) {
                self.leave_unasked(since);
            }
        }
    }

    /// raft-rs counts this replica as a learner of the members that it just took from a snapshot, which it is not.
    pub(super) fn leave_members(&mut self) {
        let change = MemberChange { node: self.node, role: MemberRole::Gone };
        let left = self.raw.apply_conf_change(&to_conf_change(&[change]));
        left.expect("one learner leaves, outside of a joint configuration");
    }

    fn answer_change(&mut self, turn: &mut Turn<'_>) {
        let is_gone = self.is_leaving_for_good();
        if let Some(request) = self.members.request.take_if(|request| request.is_removal && is_gone) {
            turn.out.replies.push(Reply::Removed { token: request.token, group: self.group });
        }
        let is_over = |request: &mut MembersRequest| {
            !request.is_removal && self.members.since >= request.index && !self.members.now.is_joint()
        };
        if let Some(MembersRequest { token, .. }) = self.members.request.take_if(is_over) {
            let (group, index, members) = (self.group, self.members.since, self.members.now.clone());
            turn.out.replies.push(Reply::MembersChanged { token, group, index, members });
        }
    }
}
