//! What Raft has ready: what must be durable, what may leave, and after which flush.
//!
//! Persist before send (Raft paper, figure 2; thesis 10.2.1 for the leader's head start):
//! - a follower's or candidate's messages wait for the newest flush of its group;
//! - a leader's leave at once, except while its term or vote is not durable.

use std::collections::VecDeque;

use raft::StateRole;
use raft::eraftpb::MessageType;

use super::{FlushSeq, HardState, Index, Replica, Term, Turn, to_hard_state};
use crate::convert::{to_log_entry, to_peer_message};
use crate::ids::{LogPosition, NodeId};
use crate::io::{Append, ConfState, GroupAppend, LogChange, LogEntry, MessageKind, Send};
use crate::mutants::{self, Mutant};

/// Readies in one turn after which a group counts as broken: it should have come to rest.
const READIES_MAX: u32 = 10_000;
/// Entries that memory is kept for from turn to turn.
const ENTRIES_KEPT: usize = 1024;

/// What of a replica's state is on its way to the disk.
#[derive(Debug)]
pub(super) struct Persistence {
    /// As last handed out to be written. Its commit index lags: it rides with the next flush.
    written: HardState,
    /// As Raft has it.
    current: HardState,
    conf_state: Option<Box<ConfState>>,
    change: Option<LogChange>,
    under_repair: Option<bool>,
    joined_at: Option<LogPosition>,
    /// Flushes on their way, each with the number of the last `Ready` that it covers.
    flushes: VecDeque<(FlushSeq, u64)>,
    /// Flush that makes our term and vote durable, while it is on its way.
    vote_flush: Option<FlushSeq>,
    campaign: Option<Campaign>,
}

/// A request for votes that was handed out.
#[derive(Clone, Copy, Debug)]
struct Campaign {
    term: Term,
    role: StateRole,
    after: Option<FlushSeq>,
}

impl Persistence {
    /// `written` is what is durable, `current` what the replica starts with: it may know of a later commit.
    pub(super) fn new(
        written: HardState,
        current: HardState,
        conf_state: Option<ConfState>,
        joined_at: LogPosition,
    ) -> Persistence {
        let joined_at = (conf_state.is_some() && joined_at != LogPosition::default()).then_some(joined_at);
        Persistence {
            written,
            current,
            conf_state: conf_state.map(Box::new),
            change: None,
            under_repair: None,
            joined_at,
            flushes: VecDeque::new(),
            vote_flush: None,
            campaign: None,
        }
    }

    pub(super) fn shrink(&mut self) {
        self.flushes.shrink_to_fit();
    }

    /// Whether a flush is on its way.
    pub(super) fn is_waiting(&self) -> bool {
        !self.flushes.is_empty() || self.has_unwritten()
    }

    fn has_unwritten(&self) -> bool {
        self.conf_state.is_some() || self.change.is_some() || self.under_repair.is_some()
    }

    /// Whether the next flush makes the log begin or end elsewhere.
    pub(super) fn has_change(&self) -> bool {
        self.change.is_some()
    }

    /// A repair begins with the next flush: what is void by it, and the members as of the new start, if that is another.
    pub(super) fn begin_repair(&mut self, change: Option<LogChange>, members: Option<ConfState>) {
        (self.change, self.under_repair) = (change, Some(true));
        self.conf_state = members.map(Box::new).or(self.conf_state.take());
    }

    /// A repair begins that leaves nothing of what was stored but term, vote and where the replica joined: they are written again.
    pub(super) fn begin_repair_anew(&mut self, members: ConfState, joined_at: LogPosition) {
        self.begin_anew();
        (self.conf_state, self.under_repair) = (Some(Box::new(members)), Some(true));
        self.joined_at = (joined_at != LogPosition::default()).then_some(joined_at);
    }

    /// The repair is over with the next flush.
    pub(super) fn end_repair(&mut self) {
        self.under_repair = Some(false);
    }

    /// The log begins at another place from the next flush on, with the members as of there.
    pub(super) fn change_log(&mut self, change: LogChange, members: ConfState) {
        self.change = Some(change);
        self.conf_state = Some(Box::new(members));
    }

    /// Whether all there is is durable, this term and vote as well.
    pub(super) fn is_at_rest(&self, term: Term, vote: NodeId) -> bool {
        !self.is_waiting() && (self.written.term, self.written.vote) == (term, vote)
    }

    /// All that was stored before is void, term and vote included: they are written again.
    pub(super) fn begin_anew(&mut self) {
        self.change = Some(LogChange::Remove);
        self.written = HardState::default();
    }

    /// Number of the last `Ready` that flushes up to `persisted` cover, if it has grown.
    pub(super) fn take_persisted(&mut self, persisted: FlushSeq) -> Option<u64> {
        self.vote_flush = self.vote_flush.filter(|seq| *seq > persisted);
        let count = self.flushes.partition_point(|(seq, _)| *seq <= persisted);
        self.flushes.drain(..count).next_back().map(|(_, number)| number)
    }

    /// Whether our request for votes in this term and role may have reached anybody.
    pub(super) fn has_asked_for_votes(&self, term: Term, role: StateRole, persisted: FlushSeq) -> bool {
        self.campaign.is_some_and(|campaign| {
            campaign.term == term
                && campaign.role == role
                && campaign.after.is_none_or(|seq| seq <= persisted)
        })
    }

    /// The flush that makes our term durable, if it is not yet.
    pub(super) fn vote_flush(&self, persisted: FlushSeq) -> Option<FlushSeq> {
        self.vote_flush.filter(|seq| *seq > persisted)
    }

    fn has_vote_changed(&self) -> bool {
        (self.current.term, self.current.vote) != (self.written.term, self.written.vote)
    }
}

impl Replica {
    /// The flush that a message of ours about snapshots waits for: it tells our term.
    pub(super) fn term_flush(&self, turn: &Turn<'_>) -> Option<FlushSeq> {
        let (raft, written) = (&self.raw.raft, &self.persistence.written);
        let is_written = (raft.term, raft.vote) == (written.term.0, written.vote.0);
        if is_written { self.persistence.vote_flush } else { Some(turn.seq) }
    }

    pub(super) fn take_ready(&mut self, turn: &mut Turn<'_>) {
        let sends_before = turn.out.sends.len();
        if self.persistence.has_unwritten() {
            let covered = self.persistence.flushes.back().map_or(0, |(_, covered)| *covered);
            self.flush(turn, &[], covered);
        }
        let mut readies = 0;
        while self.raw.has_ready() {
            self.take_one_ready(turn, sends_before);
            readies += 1;
            assert!(readies < READIES_MAX, "Raft has not come to rest");
        }
    }

    fn take_one_ready(&mut self, turn: &mut Turn<'_>, sends_before: usize) {
        let mut ready = self.raw.ready();
        let number = ready.number();
        if let Some(hard_state) = ready.hs() {
            self.persistence.current = to_hard_state(hard_state);
        }
        let is_restart = !ready.snapshot().is_empty();
        let mut entries = std::mem::take(&mut turn.buffers.entries);
        entries.extend(ready.take_entries().into_iter().map(to_log_entry));
        let messages = ready.take_messages();
        let persisted_messages = ready.take_persisted_messages();
        let committed = ready.take_committed_entries();
        for state in ready.take_read_states() {
            self.reads.handle_confirmed(&state.request_ctx, Index(state.index));
        }
        self.raw.raft.raft_log.store.append(&entries);
        self.raw.advance_append_async(ready);

        // The flush that made the log begin elsewhere was asked for when the snapshot was installed.
        if !entries.is_empty() || is_restart || self.persistence.has_vote_changed() {
            self.flush(turn, &entries, number);
        } else if let Some((_, covered)) = self.persistence.flushes.back_mut() {
            *covered = number;
        } else {
            self.raw.on_persist_ready(number);
        }
        entries.clear();
        entries.shrink_to(ENTRIES_KEPT);
        turn.buffers.entries = entries;
        self.apply_changes(turn, &committed);
        if let Some(last) = committed.last() {
            self.raw.advance_apply_to(last.index);
        }
        self.send(turn, messages, self.persistence.vote_flush, sends_before);
        let newest = self.persistence.flushes.back().map(|(seq, _)| *seq);
        let newest = newest.filter(|_| !mutants::is(Mutant::VoteSentEarly));
        self.send(turn, persisted_messages, newest, sends_before);
        self.after_call(turn, false);
    }

    /// The replica goes on alone, with all that it has: its term, its vote and the entry that makes it so are one flush.
    pub(super) fn write_recovery(&mut self, turn: &mut Turn<'_>, entry: LogEntry) {
        let is_uncommitted = mutants::is(Mutant::RecoveryUncommitted);
        let commit = if is_uncommitted { self.commit } else { entry.index };
        self.persistence.current = HardState { term: entry.term, vote: self.node, commit };
        let entries = [entry];
        self.raw.raft.raft_log.store.append(&entries);
        self.flush(turn, &entries, 0);
    }

    /// Puts entries and whatever else changed into this turn's flush.
    fn flush(&mut self, turn: &mut Turn<'_>, entries: &[LogEntry], number: u64) {
        // What the group knows is written with the commit index that it is of, or not at all.
        self.apply_commands(turn, self.persistence.current.commit);
        let meta = self.take_unwritten_meta();
        let state = &mut self.persistence;
        let append = turn.out.append.get_or_insert_with(|| Append { seq: turn.seq, groups: Vec::new() });
        if append.groups.last().is_none_or(|last| last.group != self.group) {
            let group = self.group;
            append.groups.push(GroupAppend {
                group,
                change: None,
                hard_state: None,
                conf_state: None,
                meta: None,
                under_repair: None,
                joined_at: None,
                entries: Vec::new(),
            });
        }
        let ours = append.groups.last_mut().expect("pushed just now");
        if state.has_vote_changed() {
            state.vote_flush = Some(turn.seq);
        }
        if state.current != state.written {
            ours.hard_state = Some(mutated(state.current, state.written));
            state.written = state.current;
        }
        if let Some(change) = state.change.take() {
            ours.change = Some(change);
        }
        if let Some(meta) = meta {
            ours.meta = Some(meta);
        }
        if let Some(under_repair) = state.under_repair.take() {
            ours.under_repair = Some(under_repair);
        }
        if let Some(joined_at) = state.joined_at.take() {
            ours.joined_at = Some(joined_at);
        }
        if let Some(conf_state) = state.conf_state.take() {
            ours.conf_state = Some(*conf_state);
        }
        if let (Some(last), Some(first)) = (ours.entries.last(), entries.first()) {
            assert_eq!(last.index.next(), first.index, "nothing is cut between the readies of a turn");
        }
        ours.entries.extend_from_slice(entries);
        match state.flushes.back_mut() {
            Some((seq, covered)) if *seq == turn.seq => *covered = number,
            _ => state.flushes.push_back((turn.seq, number)),
        }
    }

    fn send(
        &mut self,
        turn: &mut Turn<'_>,
        messages: Vec<raft::eraftpb::Message>,
        after: Option<FlushSeq>,
        sends_before: usize,
    ) {
        let group = self.group;
        for message in messages {
            if message.msg_type == MessageType::MsgSnapshot {
                self.begin_sending(turn, NodeId(message.to));
                continue;
            }
            let Some(message) = to_peer_message(group, message) else { continue };
            if matches!(message.kind, MessageKind::RequestVote | MessageKind::RequestPreVote) {
                let (term, role) = (Term(self.raw.raft.term), self.raw.raft.state);
                self.persistence.campaign = Some(Campaign { term, role, after });
            }
            let mut send = Send { message, after };
            self.prepare(turn, &mut send);
            if mutants::is(Mutant::CandidateSpeaksEarly) && send.message.kind == MessageKind::RequestVote {
                send.after = None;
            }
            let is_acknowledgement = send.message.kind == MessageKind::AppendResponse && !send.message.reject;
            if mutants::is(Mutant::AcknowledgesTooMuch) && is_acknowledgement {
                send.message.index = send.message.index.next();
            } else if is_acknowledgement {
                send.message.index = self.mutated_acknowledgement(send.message.index);
            }
            let ours = turn.out.sends.get_mut(sends_before..).unwrap_or_default();
            match ours.iter_mut().rev().find(|earlier| earlier.message.to == send.message.to) {
                Some(earlier) if is_implied(earlier, &send) => *earlier = send,
                _ => turn.out.sends.push(send),
            }
        }
    }
}

/// A hard state as it is written: as it is, unless a bug is wanted.
fn mutated(current: HardState, written: HardState) -> HardState {
    if mutants::is(Mutant::VoteNotPersisted) {
        return HardState { vote: NodeId(0), ..current };
    }
    if mutants::is(Mutant::TermNeverGrows) && current.vote != NodeId(0) {
        return HardState { term: written.term, ..current };
    }
    current
}

/// Whether an append that only tells the commit index is said again by a later one.
fn is_implied(earlier: &Send, later: &Send) -> bool {
    let (first, second) = (&earlier.message, &later.message);
    first.kind == MessageKind::Append
        && second.kind == MessageKind::Append
        && first.entries.is_empty()
        && (first.term, first.index) == (second.term, second.index)
        && first.commit <= second.commit
        && earlier.after == later.after
}
