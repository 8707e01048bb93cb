//! Client sessions, as a replica keeps them: what a leader lets into its log, and what a start reads again.
//!
//! A leader judges by the sessions as of the end of its log. It makes that table when it begins to lead, of what is
//! applied and of the rest of its log, which is in memory; then it keeps it in step with what it proposes, and drops it
//! with its leadership. So nothing is ever undone in it: an entry that goes from a log goes from that of a follower.

use raft::eraftpb;

use super::{EntryKind, Index, Position, Replica, Term, Turn, WallTime, has_records};
use crate::batch::{Batch, BatchHeader};
use crate::group_command::{GROUP_COMMANDS_TAG, GroupCommand, GroupCommands};
use crate::ids::{Owner, Sequence, SessionId};
use crate::io::LogEntry;
use crate::mutants::{self, Mutant};
use crate::sessions::{RunOutcome, SessionRefusal, Sessions};

/// How much longer than the table the log may be that a start has to read again, and how long in any case: the table is
/// written once for so many bytes of the log.
const LACKING_FACTOR: usize = 16;
const LACKING_BYTES_MIN: usize = 64 << 10;
/// What an entry counts besides its data, about.
pub(super) const ENTRY_BYTES: usize = 64;

/// After which bytes of entries the table is written again.
pub(super) fn lacking_bytes_max(sessions: &Sessions) -> usize {
    (sessions.encoded_bytes() * LACKING_FACTOR).max(LACKING_BYTES_MIN)
}

/// The sessions as of the end of the log; `None` while this replica does not lead.
#[derive(Default, Debug)]
pub(super) struct SessionsAhead {
    sessions: Option<Sessions>,
}

impl SessionsAhead {
    /// The leader has proposed commands.
    pub(super) fn apply(&mut self, commands: &GroupCommands) {
        if let Some(sessions) = &mut self.sessions {
            for command in &commands.commands {
                sessions.apply(command, commands.at);
            }
        }
    }

    pub(super) fn handle_leadership_lost(&mut self) {
        if !mutants::is(Mutant::SessionTailSurvives) {
            self.sessions = None;
        }
    }
}

/// The batch of an entry, if records of client sessions are in it.
pub(super) fn batch_with_runs(entry: &LogEntry) -> Option<Batch<'_>> {
    with_runs(entry.batch()?)
}

fn with_runs(data: &[u8]) -> Option<Batch<'_>> {
    let header = BatchHeader::parse(data).ok().filter(BatchHeader::has_runs);
    header.map(|_| Batch::parse(data).expect("a batch in the log was checked before it came here"))
}

impl Replica {
    /// The durable table is of an earlier entry than the commit index: the rest of it is in the log.
    pub(super) fn replay_sessions(&mut self) {
        let begin = self.log_start().index.max(self.commands.meta.as_of());
        if self.commands.meta.sessions().is_empty() || mutants::is(Mutant::RunsForgotten) {
            return;
        }
        for index in begin.0 + 1..=self.commit.0 {
            let entry = self.raw.store().get(Index(index)).expect("a start reads what the table lacks");
            self.commands.apply_entry(entry);
        }
    }

    /// This replica begins to lead: it learns what its log says of sessions beyond what is applied.
    pub(super) fn look_ahead(&mut self) {
        if mutants::is(Mutant::SessionTailSurvives) && self.commands.ahead.sessions.is_some() {
            return;
        }
        let mut sessions = self.commands.meta.sessions().clone();
        let log = &self.raw.raft.raft_log;
        let first = self.commands.applied.next().0;
        let stable = log.unstable.offset - 1;
        let stored = (first..=stable).filter_map(|index| log.store.get(Index(index)));
        for entry in stored.filter(|_| !mutants::is(Mutant::SessionTailIgnored)) {
            look_at(&mut sessions, entry.kind, entry.index, entry.term, &entry.data);
        }
        for entry in log.unstable.entries.iter().filter(|entry| entry.index >= first) {
            let is_normal = entry.entry_type == eraftpb::EntryType::EntryNormal;
            let kind = if is_normal { EntryKind::Normal } else { EntryKind::ConfChangeV2 };
            look_at(&mut sessions, kind, Index(entry.index), Term(entry.term), &entry.data);
        }
        self.commands.ahead.sessions = Some(sessions);
    }

    /// Packs what waits, as the sessions allow.
    pub(super) fn pack(&mut self, turn: &mut Turn<'_>, position: Position) -> Vec<eraftpb::Entry> {
        let sessions = self.commands.ahead.sessions.get_or_insert_default();
        let known = (self.commit.max(Index(self.raw.raft.raft_log.committed)), self.applied);
        let (buffer, replies) = (&mut turn.buffers.batches, &mut turn.out.replies);
        self.pending.pack(turn.config, position, sessions, known, buffer, replies)
    }

    /// Why a session cannot be opened, if the command opens one and it cannot.
    pub(super) fn refuses_to_open(&self, turn: &Turn<'_>, command: &GroupCommand) -> Option<SessionRefusal> {
        let GroupCommand::OpenSession { session, owner, ttl_ms } = *command else { return None };
        let ttl_ms_max = turn.config.session_ttl_max.as_millis() as u64;
        if !(1..=ttl_ms_max).contains(&ttl_ms) {
            return Some(SessionRefusal::Ttl { ttl_ms_max });
        }
        let at = turn.wall.max(self.at_max());
        let is_alike = |(_, other): &&(_, GroupCommand)| matches!(other, GroupCommand::OpenSession { owner: other, .. } if *other == owner);
        let waiting = self.commands.waiting.iter().filter(is_alike).count();
        let sessions = self.commands.ahead.sessions.as_ref()?;
        let sessions_max = turn.config.sessions_per_owner_max;
        let is_full = sessions.count_of(owner, at) + waiting >= sessions_max as usize;
        // One that is open is touched.
        (is_full && !sessions.is_open(session, owner, at))
            .then_some(SessionRefusal::OwnerFull { sessions_max })
    }

    /// What became of a record of a session, as far as this replica's log goes while it leads, and as far as it is
    /// committed otherwise.
    pub(crate) fn session_outcome(
        &self,
        session: SessionId,
        owner: Owner,
        sequence: Sequence,
        wall: WallTime,
    ) -> Result<RunOutcome, SessionRefusal> {
        let at = wall.max(self.at_max());
        let sessions = self.commands.ahead.sessions.as_ref().unwrap_or(self.commands.meta.sessions());
        sessions.outcome(session, owner, sequence, (at, self.commit))
    }
}

/// What an entry beyond those applied says of sessions.
fn look_at(sessions: &mut Sessions, kind: EntryKind, index: Index, term: Term, data: &bytes::Bytes) {
    if kind == EntryKind::Normal && data.first() == Some(&GROUP_COMMANDS_TAG) {
        let commands = GroupCommands::decode(data);
        let commands = commands.expect("commands in the log were checked before they came here");
        for command in &commands.commands {
            sessions.apply(command, commands.at);
        }
    } else if has_records(kind, data)
        && let Some(batch) = with_runs(data)
    {
        sessions.append_batch(index, term, &batch);
    }
}
