//! Giving leadership away, and not taking it (Raft thesis 3.10).
//!
//! A transfer goes in steps, all within one lease while we lead: new proposals wait, what is proposed
//! commits (so that no client loses an answer by it), then raft-rs brings the successor up to date and
//! tells it to campaign. It is answered when another is known to lead, or when its time is over.
//! One at a time for each group.
//!
//! Priorities choose successors here and in `spread`. raft-rs has a priority too, left at 0: a voter with
//! it refuses equal logs of lower priority, also while it cannot lead itself (its disk hangs, nobody hears
//! it), and with another voter away nobody would be elected.

use raft::INVALID_ID;

use super::{GroupId, LogPosition, NodeId, PeerMessage, Replica, Term, Timestamp, Turn};
use crate::convert::to_node;
use crate::disk_watch::DiskHealth;
use crate::error::{RequestError, TransferError};
use crate::io::{MessageKind, Reply, ShardConfig, Token};
use crate::mutants::{self, Mutant};
use crate::recovery::is_lapsed;

/// A replica counts as alive for so many heartbeats after its last answer.
const ALIVE_HEARTBEATS: u32 = 3;

#[derive(Debug, Default)]
pub(super) struct Leadership {
    /// When each replica last answered, while we lead.
    answered: Vec<(NodeId, Timestamp)>,
    transfer: Option<Transfer>,
    /// Ticks for which this replica does not campaign, for it has stepped down.
    rest_ticks: u32,
}

/// Who wants leadership to go elsewhere.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
enum Cause {
    Transfer(Token),
    /// If nobody takes over, we stop leading all the same.
    StepDown(Token),
    DiskHung,
    Spread,
}

#[derive(Clone, Copy, Debug)]
struct Transfer {
    cause: Cause,
    to: NodeId,
    /// The term that we led when it began.
    term: Term,
    /// Since it began.
    ticks: u32,
}

/// What `spread` needs to know of a group.
#[derive(Clone, PartialEq, Eq, Debug)]
pub(crate) struct Seat {
    pub(crate) group: GroupId,
    pub(crate) leader: Option<NodeId>,
    /// Sorted.
    pub(crate) voters: Vec<NodeId>,
}

impl Leadership {
    pub(super) fn is_transferring(&self) -> bool {
        self.transfer.is_some()
    }

    pub(super) fn is_resting(&self) -> bool {
        self.rest_ticks > 0
    }

    pub(super) fn forget_answers(&mut self) {
        self.answered = Vec::new();
    }

    pub(super) fn handle_lost(&mut self) {
        self.answered.clear();
    }

    /// A tick has passed; says whether the end of the turn must look at a transfer.
    pub(super) fn handle_tick(&mut self) -> bool {
        self.rest_ticks = self.rest_ticks.saturating_sub(1);
        self.transfer.iter_mut().for_each(|transfer| transfer.ticks += 1);
        self.transfer.is_some()
    }

    /// A replica was heard at that time.
    pub(super) fn hear(&mut self, from: NodeId, now: Timestamp) {
        match self.answered.iter_mut().find(|(node, _)| *node == from) {
            Some((_, at)) => *at = now.max(*at),
            None => self.answered.push((from, now)),
        }
    }

    fn is_alive(&self, node: NodeId, now: Timestamp, config: &ShardConfig) -> bool {
        let mut heard = self.answered.iter().filter(|(of, _)| *of == node);
        heard.any(|(_, at)| is_lately(*at, now, config)) || mutants::is(Mutant::TransferToTheDead)
    }
}

/// Whether who was heard then can be taken for alive.
fn is_lately(at: Timestamp, now: Timestamp, config: &ShardConfig) -> bool {
    now < at.after(config.tick * config.heartbeat_ticks * ALIVE_HEARTBEATS)
}

impl Replica {
    /// A peer has answered us, if this is an answer to what we said as the leader or as a candidate.
    pub(super) fn note_answer(&mut self, now: Timestamp, from: NodeId, term: Term, kind: MessageKind) {
        let is_answer = matches!(
            kind,
            MessageKind::AppendResponse | MessageKind::HeartbeatResponse | MessageKind::RequestVoteResponse
        );
        if is_answer && self.is_leader() && term.0 == self.raw.raft.term {
            self.leadership.hear(from, now);
        }
    }

    /// Hand leadership over, on behalf of a caller.
    pub(crate) fn handle_transfer(&mut self, turn: &mut Turn<'_>, token: Token, to: Option<NodeId>) {
        let group = self.group;
        if !self.is_leader() {
            let error = RequestError::NotLeader { leader: self.leader_hint() };
            return turn.out.replies.push(Reply::Failed { token, group, error });
        }
        self.wake(turn);
        if to == Some(self.node) {
            return self.answer_given(turn, token, to);
        }
        let chosen = match to {
            Some(to) => self.check_successor(turn, to).map(|()| to),
            None => self.best_successor(turn).ok_or(TransferError::NobodyAlive),
        };
        match chosen.and_then(|to| self.begin_transfer(Cause::Transfer(token), to)) {
            Ok(()) => {}
            Err(error) => turn.out.replies.push(Reply::NotTransferred { token, group, error }),
        }
    }

    /// Stop leading, on behalf of a caller: hand over, or leave the group to elect another.
    pub(crate) fn handle_step_down(&mut self, turn: &mut Turn<'_>, token: Token) {
        let group = self.group;
        if !self.is_leader() {
            let error = RequestError::NotLeader { leader: self.leader_hint() };
            return turn.out.replies.push(Reply::Failed { token, group, error });
        }
        self.wake(turn);
        match self.best_successor(turn) {
            Some(to) => {
                if let Err(error) = self.begin_transfer(Cause::StepDown(token), to) {
                    turn.out.replies.push(Reply::NotTransferred { token, group, error });
                }
            }
            None => {
                self.step_down(turn);
                self.answer_given(turn, token, None);
            }
        }
    }

    /// The shard's leaders are spread: this one goes there, if the replica there has just answered and has all
    /// that is committed. Says whether it does.
    pub(crate) fn handle_spread(&mut self, turn: &mut Turn<'_>, to: NodeId) -> bool {
        if self.is_quiet() && self.is_leader() {
            // Nothing wakes for nothing: a late nod is an answer, too, and a beat may be too old for a transfer.
            let config = turn.config;
            if !self.heard(turn, to).is_some_and(|at| is_lately(at, turn.now, config)) {
                return false;
            }
            self.wake(turn);
        }
        let matched = self.raw.raft.prs().get(to.0).map_or(0, |progress| progress.matched);
        let is_ready = matched >= self.raw.raft.raft_log.committed;
        let is_sound = turn.disk == DiskHealth::Well && self.is_leader();
        is_sound
            && is_ready
            && self.check_successor(turn, to).is_ok()
            && self.begin_transfer(Cause::Spread, to).is_ok()
    }

    /// The disk hangs: somebody else should lead. A lone voter has nobody, and stays.
    pub(super) fn leave_hung_disk(&mut self, turn: &mut Turn<'_>) {
        let is_free = self.is_leader() && self.leadership.transfer.is_none();
        if !is_free || self.raw.raft.prs().is_singleton() || mutants::is(Mutant::HungLeaderLeads) {
            return;
        }
        match self.best_successor(turn) {
            Some(to) => self.begin_transfer(Cause::DiskHung, to).expect("none is under way"),
            None => self.step_down(turn),
        }
    }

    pub(crate) fn seat(&self) -> Seat {
        let mut voters: Vec<NodeId> = self.raw.raft.prs().conf().voters().ids().iter().map(NodeId).collect();
        voters.sort_unstable();
        Seat { group: self.group, leader: self.leader(), voters }
    }

    fn check_successor(&self, turn: &Turn<'_>, to: NodeId) -> Result<(), TransferError> {
        let prs = self.raw.raft.prs();
        if prs.get(to.0).is_none() {
            Err(TransferError::UnknownTarget { to })
        } else if !prs.conf().voters().contains(to.0) {
            Err(TransferError::NotVoter { to })
        } else if !self.leadership.is_alive(to, turn.now, turn.config) {
            Err(TransferError::NotAlive { to })
        } else {
            Ok(())
        }
    }

    /// Of the voters that are alive: one with all that is committed before one without, then by priority,
    /// then by what it has of the rest. Of equal ones the lowest node, so that every run chooses alike.
    fn best_successor(&self, turn: &Turn<'_>) -> Option<NodeId> {
        let prs = self.raw.raft.prs();
        let others = self.seat().voters.into_iter().rev().filter(|node| *node != self.node);
        let alive = others.filter(|node| self.check_successor(turn, *node).is_ok());
        alive.max_by_key(|node| {
            let matched = prs.get(node.0).map_or(0, |progress| progress.matched);
            let is_whole = matched >= self.raw.raft.raft_log.committed;
            (is_whole, turn.config.priority_of(*node), matched)
        })
    }

    fn begin_transfer(&mut self, cause: Cause, to: NodeId) -> Result<(), TransferError> {
        if let Some(Transfer { to, .. }) = self.leadership.transfer {
            return Err(TransferError::UnderWay { to });
        }
        let term = Term(self.raw.raft.term);
        self.leadership.transfer = Some(Transfer { cause, to, term, ticks: 0 });
        self.is_dirty = true;
        Ok(())
    }

    /// Takes the transfer under way a step further, or ends it.
    pub(super) fn advance_transfer(&mut self, turn: &mut Turn<'_>) {
        let Some(transfer) = self.leadership.transfer else { return };
        let raft = &self.raw.raft;
        let leader = to_node(raft.leader_id).filter(|_| raft.term > transfer.term.0);
        let is_leading = self.is_leader() && raft.term == transfer.term.0;
        let lease_ticks = turn.config.lease_ticks;
        if mutants::is(Mutant::TransferAnsweredEarly) && raft.lead_transferee.is_some() {
            self.end_transfer(turn, Ok((transfer.to, Term(raft.term + 1))));
        } else if is_leading && transfer.ticks >= lease_ticks {
            self.end_transfer(turn, Err(TransferError::TimedOut { to: transfer.to }));
        } else if is_leading && raft.lead_transferee.is_none() {
            if raft.raft_log.committed == raft.raft_log.last_index() {
                self.raw.transfer_leader(transfer.to.0);
                self.after_call(turn, false);
            }
        } else if let Some(leader) = leader {
            let term = Term(raft.term);
            self.end_transfer(turn, Ok((leader, term)));
        } else if transfer.ticks >= lease_ticks + turn.config.election_ticks.1 {
            self.end_transfer(turn, Err(TransferError::TimedOut { to: transfer.to }));
        }
    }

    fn end_transfer(&mut self, turn: &mut Turn<'_>, outcome: Result<(NodeId, Term), TransferError>) {
        let Some(Transfer { cause, to, term: began, .. }) = self.leadership.transfer.take() else { return };
        let is_leading = self.is_leader() && self.raw.raft.term == began.0;
        if is_leading {
            self.raw.raft.abort_leader_transfer();
        }
        let group = self.group;
        match (cause, outcome) {
            (Cause::Transfer(token) | Cause::StepDown(token), Ok((leader, term))) if leader == to => {
                turn.out.replies.push(Reply::LeadershipGiven { token, group, leader: Some(leader), term });
            }
            (Cause::StepDown(token), Ok((leader, term))) if leader != self.node => {
                let leader = Some(leader);
                turn.out.replies.push(Reply::LeadershipGiven { token, group, leader, term });
            }
            (Cause::Transfer(token) | Cause::StepDown(token), Ok((leader, term))) => {
                let error = TransferError::WonByAnother { leader, term };
                turn.out.replies.push(Reply::NotTransferred { token, group, error });
            }
            (Cause::Transfer(token), Err(error)) => {
                turn.out.replies.push(Reply::NotTransferred { token, group, error });
            }
            (Cause::StepDown(token), Err(_)) => {
                if is_leading {
                    self.step_down(turn);
                }
                self.answer_given(turn, token, None);
            }
            (Cause::DiskHung, Err(_)) if is_leading => self.step_down(turn),
            (Cause::DiskHung | Cause::Spread, _) => {}
        }
    }

    /// Ends a leadership whose successor is not known. Elsewhere somebody campaigns first.
    fn step_down(&mut self, turn: &mut Turn<'_>) {
        let term = self.raw.raft.term;
        self.raw.raft.become_follower(term, INVALID_ID);
        // What the leader was about to say would only put off the others' campaigns.
        self.raw.raft.msgs.clear();
        self.leadership.rest_ticks = turn.config.election_ticks.1;
        self.is_dirty = true;
        self.after_call(turn, false);
    }

    fn answer_given(&self, turn: &mut Turn<'_>, token: Token, leader: Option<NodeId>) {
        let (group, term) = (self.group, Term(self.raw.raft.term));
        turn.out.replies.push(Reply::LeadershipGiven { token, group, leader, term });
    }

    /// Whether we may not become the leader, even if we are asked to.
    pub(super) fn must_not_lead(&self, turn: &Turn<'_>) -> bool {
        // A lone voter wins its campaign within the call, and raft-rs demands that its whole log is
        // durable then. What came in this very turn is not even on its way to the disk.
        let log = &self.raw.raft.raft_log;
        let is_durable = log.persisted == log.last_index() && !self.persistence.is_waiting();
        let is_lone_too_early = self.raw.raft.prs().is_singleton() && !is_durable;
        let is_disk_well = turn.disk == DiskHealth::Well || mutants::is(Mutant::HungDiskCampaigns);
        let is_bound = self.is_under_repair() && !mutants::is(Mutant::RepairCampaigns);
        is_lone_too_early
            || !is_disk_well
            || is_bound
            || self.is_in_the_past()
            || mutants::is(Mutant::NeverCampaigns)
    }

    /// Whether the members in force here are surely those of long ago: this replica has begun with an empty log, again
    /// perhaps, and takes all that was since. If it was once the only voter, it would be elected by nobody but itself, without what
    /// was committed after that. It is in the past until it has committed the entry that made it a member, and in a group
    /// that was recovered until it has applied the recovery, which its term tells it of.
    pub(super) fn is_in_the_past(&self) -> bool {
        use crate::validate::LogView as _;
        let committed = LogPosition { term: self.term_at(self.commit), index: self.commit };
        let is_lapsed = is_lapsed(self.term_at(self.applied), Term(self.raw.raft.term));
        (is_lapsed || committed < self.joined_at) && !mutants::is(Mutant::PastLeads)
    }

    /// Whether a candidate lacks what was committed before this replica became a member. It may have acknowledged that in
    /// an earlier life, whose log is gone: it votes as if it had that still. So losing the log at a removal breaks no
    /// promise, however many of the voters come back in this way.
    pub(super) fn is_from_the_past(&self, message: &PeerMessage) -> bool {
        matches!(message.kind, MessageKind::RequestVote | MessageKind::RequestPreVote)
            && LogPosition { term: message.log_term, index: message.index } < self.joined_at
            && !mutants::is(Mutant::PastVotes)
    }

    /// Whether the next tick may make this replica campaign, if it would: only so many do in one turn of the shard,
    /// for thousands of groups can lose their leader at once.
    pub(super) fn may_campaign(&self, turn: &mut Turn<'_>) -> bool {
        let is_due = !self.is_leader() && self.raw.raft.election_elapsed + 1 >= self.draw as usize;
        if is_due && *turn.campaigns_left == 0 {
            return false;
        }
        *turn.campaigns_left -= u32::from(is_due);
        true
    }

    /// A tick without a campaign: time goes on all the same, so that the lease that we gave the last leader
    /// runs out and others get our vote.
    pub(super) fn let_tick_pass(&mut self) {
        let raft = &mut self.raw.raft;
        let elapsed_max = raft.randomized_election_timeout() - 1;
        raft.election_elapsed = (raft.election_elapsed + 1).min(elapsed_max);
    }

    /// Everybody who waits for the end of a transfer is told that there is none.
    pub(super) fn fail_transfer(&mut self, error: &RequestError, replies: &mut Vec<Reply>) {
        let group = self.group;
        if let Some(Transfer { cause: Cause::Transfer(token) | Cause::StepDown(token), .. }) =
            self.leadership.transfer.take()
        {
            replies.push(Reply::Failed { token, group, error: error.clone() });
        }
    }
}
