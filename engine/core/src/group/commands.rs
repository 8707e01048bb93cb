//! Commands to the group itself, from their arrival to their answer, and the table that they make.
//!
//! The leader writes the commands of a turn as one entry; each replica applies them when it learns of the
//! commit, and the table goes to its disk with that commit index. Answered once committed and applied.
//! What client sessions append goes into the same table (`sessions.rs`).

use std::collections::VecDeque;

use raft::eraftpb::{self, MessageType};

use super::sessions::{self, SessionsAhead};
use super::{Index, Offset, Replica, RequestError, Term, Timestamp, Turn};
use crate::error::BusyReason;
use crate::group_command::{GROUP_COMMANDS_MAX, GroupCommand, GroupCommands};
use crate::group_meta::{CURSORS_MAX, GroupMeta, GroupOutcome};
use crate::ids::{GroupId, NodeId};
use crate::io::{Compare, LogEntry, Reply, Token};
use crate::mutants::{self, Mutant};
use crate::sessions::{SESSIONS_MAX, SessionRefusal};

/// A command of this replica's own has nobody who waits for it.
type Asker = Option<(Token, Timestamp)>;

/// An entry of ours that is not applied yet.
#[derive(Debug)]
struct Proposed {
    index: Index,
    term: Term,
    /// One for each command.
    askers: Vec<Asker>,
}

/// The table, and the commands on their way into it. What waits and what is proposed is bounded by
/// [`GROUP_COMMANDS_MAX`]; full means busy.
#[derive(Debug)]
pub(super) struct Commands {
    pub(super) meta: GroupMeta,
    /// The table is as of this entry, or of a later one that it came with.
    pub(super) applied: Index,
    is_unwritten: bool,
    /// Whether a start reads on from the table as it was written last: there are sessions in it. If not it has to be
    /// written with every commit index that has changed it.
    is_read_on: bool,
    /// Bytes of the entries that the durable table lacks.
    lacking_bytes: usize,
    pub(super) ahead: SessionsAhead,
    pub(super) waiting: Vec<(Asker, GroupCommand)>,
    proposed: VecDeque<Proposed>,
}

impl Commands {
    pub(super) fn new(meta: GroupMeta, commit: Index, is_unwritten: bool) -> Commands {
        Commands {
            applied: commit.max(meta.as_of()),
            is_read_on: !meta.sessions().is_empty(),
            meta,
            is_unwritten,
            lacking_bytes: 0,
            ahead: SessionsAhead::default(),
            waiting: Vec::new(),
            proposed: VecDeque::new(),
        }
    }

    /// Applies what the next committed entry has for the table. Returns what became of its commands.
    pub(super) fn apply_entry(&mut self, entry: &LogEntry) -> Vec<GroupOutcome> {
        let mut outcomes = Vec::new();
        if let Some(data) = entry.group_commands() {
            let commands = GroupCommands::decode(data);
            let commands = commands.expect("commands in the log were checked before they came here");
            outcomes = self.meta.apply(entry.index, &commands);
            self.is_unwritten |= !self.is_read_on;
        } else if let Some(batch) = sessions::batch_with_runs(entry) {
            self.meta.apply_runs(entry.index, entry.term, &batch);
        }
        if self.is_read_on {
            self.lacking_bytes += entry.data.len() + sessions::ENTRY_BYTES;
            self.is_unwritten |= self.lacking_bytes >= sessions::lacking_bytes_max(self.meta.sessions());
        }
        outcomes
    }

    /// The log is about to begin later: the durable table may lack nothing before that.
    pub(super) fn handle_compacted(&mut self) {
        self.is_unwritten |= self.lacking_bytes > 0 && !mutants::is(Mutant::RunsCompactedUnwritten);
    }

    /// A snapshot with this table was installed: what it covers is not applied here.
    pub(super) fn install(&mut self, meta: GroupMeta, index: Index) {
        let at = self.meta.at().max(meta.at());
        if meta.as_of() > self.meta.as_of() && !mutants::is(Mutant::SnapshotForgetsTable) {
            let is_forgetful = mutants::is(Mutant::SnapshotForgetsSessions);
            self.meta = if is_forgetful { meta.without_sessions() } else { meta };
        }
        self.meta = self.meta.with_time(at);
        self.is_unwritten = true;
        self.applied = self.applied.max(index).max(self.meta.as_of());
    }

    fn count(&self) -> usize {
        self.waiting.len() + self.proposed.iter().map(|proposed| proposed.askers.len()).sum::<usize>()
    }

    /// Whether nobody waits, and nothing is on its way.
    pub(super) fn is_empty(&self) -> bool {
        self.count() == 0 && self.proposed.is_empty()
    }

    pub(super) fn has_waiting(&self) -> bool {
        !self.waiting.is_empty()
    }

    fn fail(
        askers: impl Iterator<Item = Asker>,
        group: GroupId,
        error: &RequestError,
        replies: &mut Vec<Reply>,
    ) {
        let failed = |(token, _)| Reply::Failed { token, group, error: error.clone() };
        replies.extend(askers.flatten().map(failed));
    }

    /// What was proposed may be applied or not.
    pub(super) fn handle_leadership_lost(
        &mut self,
        group: GroupId,
        leader: Option<NodeId>,
        replies: &mut Vec<Reply>,
    ) {
        let askers = std::mem::take(&mut self.proposed).into_iter().flat_map(|proposed| proposed.askers);
        Commands::fail(askers, group, &RequestError::OutcomeUnknown { leader }, replies);
        let askers = std::mem::take(&mut self.waiting).into_iter().map(|(asker, _)| asker);
        Commands::fail(askers, group, &RequestError::NotLeader { leader }, replies);
    }

    pub(super) fn fail_all(&mut self, group: GroupId, error: &RequestError, replies: &mut Vec<Reply>) {
        let askers = std::mem::take(&mut self.waiting).into_iter().map(|(asker, _)| asker);
        Commands::fail(askers, group, error, replies);
        self.handle_leadership_lost(group, None, replies);
    }

    pub(super) fn handle_deadlines(
        &mut self,
        group: GroupId,
        now: Timestamp,
        leader: Option<NodeId>,
        replies: &mut Vec<Reply>,
    ) {
        let mut late = |asker: &Asker, error: RequestError| {
            let late = asker.filter(|(_, deadline)| *deadline <= now);
            Commands::fail([late].into_iter(), group, &error, replies);
            late.is_some()
        };
        self.waiting.retain(|(asker, _)| !late(asker, RequestError::Timeout));
        for asker in self.proposed.iter_mut().flat_map(|proposed| &mut proposed.askers) {
            asker.take_if(|asker| late(&Some(*asker), RequestError::OutcomeUnknown { leader }));
        }
    }
}

impl Replica {
    /// A command to the group: queued, or answered at once if it cannot be taken.
    pub(crate) fn handle_command(
        &mut self,
        turn: &mut Turn<'_>,
        token: Token,
        command: GroupCommand,
        deadline: Timestamp,
    ) {
        let end = self.commit_end;
        let from = match &command {
            GroupCommand::CommitCursor { offset, .. } | GroupCommand::SetCursor { offset, .. } => *offset,
            GroupCommand::Trim { before } => *before,
            GroupCommand::DropCursor { .. }
            | GroupCommand::OpenSession { .. }
            | GroupCommand::CloseSession { .. }
            | GroupCommand::Compare => Offset(0),
        };
        let error = if !self.is_leader() {
            RequestError::NotLeader { leader: self.leader_hint() }
        } else if deadline <= turn.now {
            RequestError::Timeout
        } else if from > end {
            // Nobody has read beyond it, and nothing is there to be trimmed.
            RequestError::PastEnd { from, end }
        } else if self.commands.count() >= GROUP_COMMANDS_MAX {
            RequestError::busy(BusyReason::Commands)
        } else if let Some(refusal) = self.refuses_to_open(turn, &command) {
            RequestError::Session { refusal }
        } else {
            self.wake(turn);
            self.commands.waiting.push((Some((token, deadline)), command.detached()));
            self.is_dirty = true;
            return;
        };
        turn.out.replies.push(Reply::Failed { token, group: self.group, error });
    }

    /// The leader wants records before an offset to go. It may have gone quiet since it began to look for it.
    pub(super) fn trim(&mut self, turn: &mut Turn<'_>, before: Offset) {
        let is_new = before > self.commands.meta.first() && before <= self.commit_end;
        if is_new && self.is_leader() && self.commands.count() < GROUP_COMMANDS_MAX {
            self.wake(turn);
            self.commands.waiting.push((None, GroupCommand::Trim { before }));
            self.is_dirty = true;
        }
    }

    /// The turn ends: what waits becomes one entry.
    pub(super) fn propose_commands(&mut self, turn: &mut Turn<'_>) {
        if !self.commands.has_waiting() || !self.is_leader() || self.leadership.is_transferring() {
            return;
        }
        let raft = &self.raw.raft;
        let (index, term) = (Index(raft.raft_log.last_index()).next(), Term(raft.term));
        let at = turn.wall.max(self.at_max());
        let (askers, commands) = std::mem::take(&mut self.commands.waiting).into_iter().unzip();
        let commands = GroupCommands { at, commands };
        self.commands.ahead.apply(&commands);
        if mutants::is(Mutant::CommandUncommitted) {
            self.commands.meta.apply(index, &commands);
        }
        let entry = eraftpb::Entry { data: commands.encode(), ..Default::default() };
        let message = eraftpb::Message {
            msg_type: MessageType::MsgPropose,
            from: self.node.0,
            entries: vec![entry].into(),
            ..Default::default()
        };
        self.commands.proposed.push_back(Proposed { index, term, askers });
        self.raw.step(message).expect("a leader that hands nothing over takes every proposal");
        self.after_call(turn, false);
    }

    /// Applies the commands of committed entries, up to `commit`. What is not applied yet is in memory, like all
    /// that is not known to be committed.
    pub(super) fn apply_commands(&mut self, turn: &mut Turn<'_>, commit: Index) {
        let group = self.group;
        for index in self.commands.applied.0 + 1..=commit.0 {
            let entry = self.raw.store().get(Index(index)).expect("what is not applied is in memory");
            let (index, term) = (entry.index, entry.term);
            let outcomes = self.commands.apply_entry(entry);
            if outcomes.is_empty() {
                continue;
            }
            if outcomes.contains(&GroupOutcome::Marked) {
                let table = self.commands.meta.digest();
                turn.out.compares.push(Compare { group, index, table });
            }
            let is_ours = |proposed: &mut Proposed| (proposed.index, proposed.term) == (index, term);
            let Some(ours) = self.commands.proposed.pop_front_if(is_ours) else { continue };
            for (asker, outcome) in ours.askers.into_iter().zip(outcomes) {
                let Some((token, _)) = asker else { continue };
                let error = match outcome {
                    GroupOutcome::Done(_) | GroupOutcome::Marked => {
                        let offset = if let GroupOutcome::Done(offset) = outcome { offset } else { None };
                        turn.out.replies.push(Reply::CommandDone { token, group, offset, index });
                        continue;
                    }
                    GroupOutcome::CursorsFull => {
                        RequestError::CursorsFull { cursors_max: CURSORS_MAX as u32 }
                    }
                    GroupOutcome::SessionsFull => {
                        let refusal = SessionRefusal::Full { sessions_max: SESSIONS_MAX as u32 };
                        RequestError::Session { refusal }
                    }
                    GroupOutcome::SessionUnknown => {
                        RequestError::Session { refusal: SessionRefusal::Unknown }
                    }
                };
                turn.out.replies.push(Reply::Failed { token, group, error });
            }
        }
        self.commands.applied = self.commands.applied.max(commit);
    }

    /// The table for the flush that writes a commit index, if it has changed.
    pub(super) fn take_unwritten_meta(&mut self) -> Option<bytes::Bytes> {
        let is_unwritten = std::mem::take(&mut self.commands.is_unwritten);
        if is_unwritten {
            self.commands.lacking_bytes = 0;
            self.commands.is_read_on = !self.commands.meta.sessions().is_empty();
        }
        let meta = || self.commands.meta.clone().covering(self.commands.applied).encode();
        (is_unwritten && !mutants::is(Mutant::CursorsForgotten)).then(meta)
    }

    /// What the group knows besides its records, as of its commit index.
    pub(crate) fn meta(&self) -> &GroupMeta {
        &self.commands.meta
    }

    /// First record that is handed out.
    pub(super) fn first_kept(&self) -> Offset {
        let first = self.commands.meta.first();
        let is_ahead = mutants::is(Mutant::TrimsAhead) && first > Offset(0);
        Offset(first.0 + u64::from(is_ahead)).max(self.raw.store().base().offset)
    }
}
