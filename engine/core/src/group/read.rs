//! Reads of a replica's state: by a round, by the leader's lease, or at once. What `lease.rs` and `read_index.rs`
//! need of Raft and of its messages.

use super::{Index, MessageKind, PeerMessage, Replica, RequestError, Timestamp, Turn};
use crate::error::BusyReason;
use crate::io::{Consistency, Freshness, Reply, Send};
use crate::lease::{Stamp, Times};
use crate::mutants::{self, Mutant};
use crate::read_index::Read;
use crate::validate::CAMPAIGN_TRANSFER;

impl Replica {
    /// A read: answered at once, or queued for the end of the turn.
    pub(crate) fn handle_read(&mut self, turn: &mut Turn<'_>, read: Read) {
        let (token, group) = (read.token, self.group);
        let is_asked = self.is_leader() || read.may_forward || read.consistency == Consistency::Local;
        if is_asked {
            self.wake(turn);
        }
        if read.consistency == Consistency::Local && self.snapshots.is_restoring {
            let error = RequestError::busy(BusyReason::Starting);
            return turn.out.replies.push(Reply::Failed { token, group, error });
        }
        if read.consistency == Consistency::Local {
            let freshness = self.freshness(turn.now);
            return turn.out.replies.push(Reply::ReadReady { token, group, freshness });
        }
        let error = if !self.is_leader() && !read.may_forward {
            RequestError::NotLeader { leader: self.leader_hint() }
        } else if read.deadline <= turn.now {
            RequestError::Timeout
        } else if self.reads.count() >= turn.config.reads_waiting_max {
            RequestError::busy(BusyReason::Reads)
        } else {
            self.reads.push(read);
            self.is_dirty = true;
            return;
        };
        turn.out.replies.push(Reply::Failed { token, group, error });
    }

    /// How far this replica is.
    pub(super) fn freshness(&self, now: Timestamp) -> Freshness {
        let heard = if self.is_leader() { Some(now) } else { self.promise.heard() };
        Freshness { applied: self.applied, commit: self.commit, heard: heard.map(|heard| now.since(heard)) }
    }

    /// The turn ends: reads that wait get their index, or a round that will tell it.
    pub(super) fn start_reads(&mut self, turn: &mut Turn<'_>) {
        let raft = &self.raw.raft;
        let committed = Index(raft.raft_log.committed);
        let mut asked = Vec::new();
        if self.is_leader() {
            // Until it has committed something in its term, a leader does not know what is committed (thesis 6.4).
            let is_early = mutants::is(Mutant::ReadBeforeFirstCommit);
            if !raft.commit_to_current_term() && !is_early {
                return;
            }
            if self.reads.wants_lease() && self.has_lease(turn) {
                self.reads.handle_lease(committed);
            }
            if is_early || mutants::is(Mutant::ReadWithoutRound) {
                return self.confirm_without_round(turn.now, committed);
            }
        } else if raft.leader_id == raft::INVALID_ID {
            return;
        } else if mutants::is(Mutant::FollowerReadsItsCommit) {
            return self.confirm_without_round(turn.now, committed);
        } else {
            // What a leader asks its followers is asked again with its heartbeats; what is asked of it is not.
            asked = self.reads.take_overdue(turn.now, turn.config.tick * turn.config.heartbeat_ticks);
        }
        if self.reads.can_start_round() {
            asked.push(self.reads.start_round(turn.now));
        }
        for context in asked {
            self.raw.read_index(context);
            self.after_call(turn, false);
        }
    }

    fn confirm_without_round(&mut self, now: Timestamp, committed: Index) {
        if self.reads.can_start_round() {
            let context = self.reads.start_round(now);
            self.reads.handle_confirmed(&context, committed);
        }
    }

    /// Whether nobody else can lead by now (`lease.rs`). `turn.now` was read after the turn's reads had arrived, so
    /// a pause of the process before that ends the lease, and one after it does no harm: the answer is of a
    /// moment at which the read was under way.
    fn has_lease(&self, turn: &Turn<'_>) -> bool {
        let Some(times) = Times::of(turn.config) else { return false };
        let raft = &self.raw.raft;
        let is_survived = mutants::is(Mutant::LeaseSurvivesTransfer);
        if self.lease.is_given_up() || (raft.lead_transferee.is_some() && !is_survived) {
            return false;
        }
        let promised = self.lease.promised(turn.now, times).chain([self.node]);
        mutants::is(Mutant::LeaseOfOne) || raft.prs().has_quorum(&promised.map(|node| node.0).collect())
    }

    /// Completes a message that is about to leave.
    pub(super) fn prepare(&mut self, turn: &Turn<'_>, send: &mut Send) {
        let message = &mut send.message;
        self.prepare_quiet(turn, message);
        match message.kind {
            MessageKind::Heartbeat => {
                if let Some(Times { promise, .. }) = Times::of(turn.config) {
                    message.context = Stamp { sent: turn.now, promise }.put_before(&message.context);
                }
            }
            // It tells nothing of what is durable here.
            MessageKind::ReadIndex => send.after = None,
            MessageKind::TimeoutNow => self.lease.give_up(),
            _ => {}
        }
    }

    /// Handles the stamp of a heartbeat or of its answer, so that Raft sees contexts without one that is
    /// not to be sent back.
    pub(super) fn handle_stamp(&mut self, turn: &Turn<'_>, message: &mut PeerMessage) {
        match message.kind {
            MessageKind::Heartbeat => {
                let promised = Times::of(turn.config).map(|times| times.promise);
                if Stamp::of(&message.context).is_some_and(|stamp| Some(stamp.promise) > promised) {
                    Stamp::take(&mut message.context);
                }
            }
            MessageKind::HeartbeatResponse => {
                let Some(stamp) = Stamp::take(&mut message.context) else { return };
                let raft = &self.raw.raft;
                let is_ours = self.is_leader() && message.term.0 == raft.term;
                if is_ours && raft.prs().get(message.from.0).is_some() {
                    self.lease.handle_answer(turn.now, message.from, stamp.sent);
                }
            }
            _ => {}
        }
    }

    /// Whether a request for votes has to go unheard: its sender is not told either, as with raft-rs' own lease.
    pub(super) fn is_promised_against(&self, now: Timestamp, message: &PeerMessage) -> bool {
        matches!(message.kind, MessageKind::RequestVote | MessageKind::RequestPreVote)
            && message.context != CAMPAIGN_TRANSFER
            && self.promise.is_kept(now)
    }

    /// Whether the next tick would make this replica campaign, and it has promised not to yet.
    pub(super) fn is_bound_to_wait(&self, now: Timestamp) -> bool {
        let is_due = self.raw.raft.election_elapsed + 1 >= self.draw as usize;
        !self.is_leader() && is_due && self.promise.is_kept(now)
    }

    /// Whether this is a read that was forwarded to a leader that leads no longer: it is asked again elsewhere.
    /// raft-rs would pass it on under its sender's name.
    pub(super) fn is_read_for_another(&self, message: &PeerMessage) -> bool {
        message.kind == MessageKind::ReadIndex && !self.is_leader()
    }
}
