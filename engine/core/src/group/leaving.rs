//! Replicas that come and go: members ask nodes to begin one, and tell those that are none any more.
//!
//! - A leader invites the members that have nothing of its log and that it has not heard. A replica that campaigns with
//!   an empty log, or again without a leader, invites its fellow voters: so a group begins wherever one of them was
//!   told of it, and goes on if those whom it had reached first are lost.
//!   Nobody answers an invitation: the new replica answers what comes next.
//! - A replica that is no member leaves: its log goes, its term and vote stay ([`crate::tombstone`]).
//!   It does not go by its own reading of the log alone, which may not reach to the entry that made it a
//!   member again: once no leader has spoken to it for the longest election timeout, it asks. So do learners. The leader says
//!   that it is gone, if it is, once it has committed in its term and so knows every change before that.
//! - A replica that slept through its removal asks for votes. Whoever knows of the removal tells it, if its log
//!   lacks that entry: then it has acknowledged nothing since, and what it holds is of the past.

use bytes::Bytes;

use raft::StateRole;

use super::{Index, LogPosition, NodeId, Replica, Term, Timestamp, Turn};
use crate::error::RequestError;
use crate::io::{EntryKind, Event, LogEntry, LogStart, MessageKind, PeerMessage, Send};
use crate::members::encode_members;
use crate::mutants::{self, Mutant};
use crate::recovery::is_lapsed;
use crate::tombstone::{REMOVED, Tombstone};
use crate::validate::LogView;

/// Campaigns after which voters that are not heard are invited once more, at the latest.
const INVITE_CAMPAIGNS: u32 = 16;

#[derive(Debug, Default)]
pub(super) struct Leaving {
    /// Where the log of the replica that is no more begins and ends.
    start: Option<LogStart>,
    /// Ticks since a leader spoke.
    silent_ticks: u32,
    /// Campaigns of this replica since there was a leader.
    campaigns: u32,
    has_asked: bool,
    /// The term of a group that was recovered without this replica.
    lapsed: Term,
    invited_at: Timestamp,
    is_inviting: bool,
}

impl Leaving {
    /// The leader has spoken.
    pub(super) fn handle_leader(&mut self) {
        self.silent_ticks = 0;
        (self.campaigns, self.has_asked) = (0, false);
    }

    /// The replica has asked whether it may leave.
    pub(super) fn handle_question(&mut self) {
        self.has_asked = true;
    }
}

impl Replica {
    /// The replica goes, if it has to, at the beginning of the end of a turn: what it said before stands.
    pub(crate) fn take_leave(&mut self, turn: &mut Turn<'_>) -> Option<Tombstone> {
        let start = self.leaving.start?;
        let (group, since) = (self.group, start.index);
        self.fail_all(&RequestError::UnknownGroup, &mut turn.out.replies);
        turn.out.events.push(Event::ReplicaLeft { group, since });
        let raft = &self.raw.raft;
        // Whoever begins here again must not vote among those that were given up.
        let (term, vote) = if self.leaving.lapsed.0 > raft.term {
            (self.leaving.lapsed, NodeId(0))
        } else {
            (Term(raft.term), NodeId(raft.vote))
        };
        Some(Tombstone::new(group, term, vote, start))
    }

    fn leave(&mut self, index: Index, term: Term) {
        let (index, term) =
            if index < self.commit { (self.commit, self.term_at(self.commit)) } else { (index, term) };
        self.leaving.start = Some(LogStart { index, term, offset: self.commit_end });
        self.is_dirty = true;
    }

    /// What a replica must not do.
    pub(super) fn leave_unasked(&mut self, index: Index) {
        self.leave(index, self.term_at(index));
    }

    /// The group was removed: everybody leaves, for good.
    pub(super) fn leave_for_good(&mut self) {
        self.leave(REMOVED, Term(REMOVED.0));
    }

    pub(super) fn is_leaving_for_good(&self) -> bool {
        self.leaving.start.is_some_and(|start| start.index == REMOVED)
    }

    /// A tick has passed.
    pub(super) fn handle_leaving_tick(&mut self, turn: &mut Turn<'_>, has_campaigned: bool) {
        let campaigns = &mut self.leaving.campaigns;
        *campaigns =
            if self.raw.raft.state == StateRole::Leader { 0 } else { *campaigns + u32::from(has_campaigned) };
        // Less and less often: where many groups have no leader, invitations must not be in the way of votes.
        let is_time =
            *campaigns > 1 && (campaigns.is_power_of_two() || campaigns.is_multiple_of(INVITE_CAMPAIGNS));
        let is_alone = has_campaigned && (is_time || self.raw.raft.raft_log.last_index() == 0);
        let pause = turn.config.tick * turn.config.heartbeat_ticks;
        let is_due = self.is_leader() && turn.now >= self.leaving.invited_at.after(pause);
        if is_alone || is_due {
            (self.leaving.is_inviting, self.is_dirty) = (true, true);
        }
        // Voters ask for votes, unless they must not.
        if self.members.now.is_voter(self.node) && !self.is_under_repair() && !self.is_in_the_past() {
            return;
        }
        self.leaving.silent_ticks = self.leaving.silent_ticks.saturating_add(1);
        let (patience, pause) = (turn.config.election_ticks.1, turn.config.lease_ticks);
        let ticks = self.leaving.silent_ticks;
        if ticks >= patience && (ticks - patience).is_multiple_of(pause) {
            self.leaving.has_asked = true;
            let question = |to: &NodeId| self.say(MessageKind::MayLeave, *to, Term(0));
            let questions = self.voters.iter().filter(|node| **node != self.node).map(question);
            turn.out.sends.extend(questions.map(|message| Send { message, after: None }));
        }
    }

    /// Invites the members that have not been heard of, at most once a heartbeat.
    pub(super) fn invite(&mut self, turn: &mut Turn<'_>) {
        if !std::mem::take(&mut self.leaving.is_inviting) {
            return;
        }
        let raft = &self.raw.raft;
        self.leaving.invited_at = turn.now;
        let has_nothing = |node: &NodeId| raft.prs().get(node.0).is_none_or(|progress| progress.matched == 0);
        let members = self.members.now.voters.iter().chain(&self.members.now.learners).copied();
        let strangers = members.filter(|node| *node != self.node && has_nothing(node));
        let lease = turn.config.tick * turn.config.lease_ticks;
        let strangers: Vec<NodeId> =
            strangers.filter(|node| !self.members.has_heard(*node, turn.now, lease)).collect();
        if strangers.is_empty() {
            return;
        }
        let members: Bytes = encode_members(self.members.at(self.log_start().index)).into();
        let since = self.members_since();
        for to in strangers {
            let mut message = self.say(MessageKind::Invite, to, Term(0));
            (message.log_term, message.index) = (since.term, since.index);
            let (index, term, kind) = (Index(0), Term(0), EntryKind::ConfChangeV2);
            message.entries.push(LogEntry { index, term, kind, data: members.clone() });
            let after = self.persistence.vote_flush(turn.persisted);
            turn.out.sends.push(Send { message, after });
        }
    }

    /// The change that put the members in force. Of what was compacted away no term is known: then where the log begins, for
    /// nothing has changed between.
    fn members_since(&self) -> LogPosition {
        let (start, since) = (self.log_start(), self.members.since);
        if since <= start.index {
            LogPosition { term: start.term, index: start.index }
        } else {
            LogPosition { term: self.term_at(since), index: since }
        }
    }

    fn say(&self, kind: MessageKind, to: NodeId, term: Term) -> PeerMessage {
        PeerMessage::bare(kind, self.group, (self.node, to), term)
    }

    /// Tells somebody who is no member, and does not know it, that it is none. Says whether it is none.
    pub(super) fn dismiss(&self, turn: &mut Turn<'_>, message: &PeerMessage) -> bool {
        let LogPosition { term, index } = self.members_since();
        let place = (term, index);
        // One that was given up has to begin anew, also where it is a member again.
        let is_given_up = message.kind == MessageKind::MayLeave
            && message.index > Index(0)
            && is_lapsed(message.log_term, Term(self.raw.raft.term));
        let is_member = self.members.now.is_member(message.from)
            && !is_given_up
            && !mutants::is(Mutant::MembersDismissed);
        let is_known = match message.kind {
            MessageKind::RequestVote | MessageKind::RequestPreVote => {
                (message.log_term, message.index) < place
            }
            MessageKind::MayLeave => self.is_leader() && self.raw.raft.commit_to_current_term(),
            _ => false,
        };
        let is_untold = mutants::is(Mutant::LostNotDismissed) && is_lapsed(message.log_term, place.0);
        if is_member || !is_known || is_untold {
            return false;
        }
        let term = Term(self.raw.raft.term);
        let mut answer = self.say(MessageKind::Gone, message.from, term);
        (answer.log_term, answer.index) = place;
        answer.reject = message.kind == MessageKind::MayLeave;
        turn.out.sends.push(Send { message: answer, after: self.persistence.vote_flush(turn.persisted) });
        true
    }

    /// A member says that this replica is none; or one that was a member, that it left after an entry of this log, which
    /// is committed then. `has_asked`: whether this one asked for votes.
    pub(super) fn handle_gone(&mut self, message: &PeerMessage, has_asked: bool) {
        let is_of_leader = message.reject;
        let last = Index(self.raw.raft.raft_log.last_index());
        let lacks_it = (self.term_at(last), last) < (message.log_term, message.index);
        let is_true = if is_of_leader {
            let is_removed = message.index == REMOVED;
            self.leaving.has_asked && (is_removed || message.term.0 >= self.raw.raft.term)
        } else {
            has_asked && lacks_it
        };
        // Of those that were given up, all that led since may be unknown.
        let is_lapsed = is_lapsed(Term(self.raw.raft.term), message.term) && last > Index(0);
        if !self.voters.contains(&message.from) && !is_lapsed {
            return;
        }
        if is_true && is_lapsed {
            // What it has committed may contradict the group's log: nothing of it counts.
            (self.leaving.lapsed, self.leaving.start) = (message.term, Some(LogStart::default()));
            self.is_dirty = true;
        } else if is_true {
            self.leave(message.index, message.log_term);
        } else if !is_of_leader && has_asked && message.index <= last {
            // It has all that was committed before an entry of its newest term (thesis 3.6.3).
            let is_here = self.term_at(message.index) == message.log_term;
            if is_here && message.index > self.commit {
                self.raw.raft.raft_log.commit_to(message.index.0);
                self.is_dirty = true;
            }
        }
    }
}
