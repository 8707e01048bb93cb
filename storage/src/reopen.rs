//! One group's state, read again from the files of a shard that runs: what recovery would find of it, as far as
//! its directories and index say. What was found damaged before is given: blocks of the log file are not read for that.

use iroh_raft_core::{
    EntryKind, FetchError, GroupId, GroupState, Index, LogDamage, LogEntry, Offset, Retention, TermRun,
};

use crate::cold_block::GroupRow;
use crate::group_log::GroupLog;
use crate::log_file::{StoredDamage, StoredGroup};
use crate::reader::LogReader;
use crate::redb_file::RedbFailure;
use crate::span_read::read_span;

/// Readings of one state: a move that comes in between makes another one necessary.
const READINGS_MAX: u32 = 8;

/// The log of a group while it is put together.
struct Found {
    term_runs: Vec<TermRun>,
    conf_changes: Vec<Index>,
    last: Index,
    next_offset: Offset,
    damage: Option<(Index, Index)>,
}

impl LogReader {
    /// What the files hold of a group. Everything that was handed to the writer for it must be durable. The log of the
    /// state ends before `damage`, and before whatever else is found damaged. Blocks on the disk. `has_state_machine` is
    /// false, as when a shard is opened.
    ///
    /// # Errors
    /// [`FetchError::Missing`] when there is no such group; [`FetchError::Io`] when a file cannot be read.
    pub fn reopen(&self, group: GroupId, damage: Option<LogDamage>) -> Result<GroupState, FetchError> {
        for _ in 0..READINGS_MAX {
            let log = self.group_log(group).ok_or(FetchError::Missing)?;
            let found = self.find(group, &log).map_err(|error| {
                tracing::error!(%group, ?error, "reading a group again failed");
                FetchError::Io
            })?;
            let again = self.group_log(group).ok_or(FetchError::Missing)?;
            if (log.stamp(), log.moved(), log.hot()) == (again.stamp(), again.moved(), again.hot()) {
                return self.state(group, &log, found, damage);
            }
        }
        Err(FetchError::Io)
    }

    fn group_log(&self, group: GroupId) -> Option<GroupLog> {
        self.index.lock().groups.get(&group).map(|log| (**log).clone())
    }

    fn find(&self, group: GroupId, log: &GroupLog) -> Result<Found, RedbFailure> {
        // Blocks that are void stay in the file until a move removes them.
        let mut rows = self.log.index_rows(group)?;
        rows.retain(|(first, _)| log.has_cold(*first));
        let stored = StoredGroup::load(GroupRow::of(log), rows);
        let mut found = Found {
            term_runs: stored.term_runs,
            conf_changes: stored.conf_changes,
            last: log.moved(),
            next_offset: log.moved_end(),
            damage: None,
        };
        if let Some(StoredDamage { range: (first, _), before, end }) = stored.damage {
            found.cut(before, end);
            found.damage = Some((first, log.last()));
            return Ok(found);
        }
        let ends = log.hot().iter().skip(1).map(|span| span.base).chain([log.next_offset()]);
        self.journal.read(|blocks| {
            for (span, end) in log.hot().iter().zip(ends) {
                match read_span(blocks, self.identity, group, span)? {
                    Ok(entries) => found.take(&entries, end),
                    Err(_) => {
                        found.damage = Some((found.last.next(), log.last()));
                        break;
                    }
                }
            }
            Ok(())
        })?;
        if log.lost() > found.last && found.damage.is_none() {
            found.damage = Some((found.last.next(), log.lost()));
        }
        Ok(found)
    }

    fn state(
        &self,
        group: GroupId,
        log: &GroupLog,
        mut found: Found,
        damage: Option<LogDamage>,
    ) -> Result<GroupState, FetchError> {
        if let Some(LogDamage { first, last }) = damage.filter(|damage| damage.first <= found.last) {
            let (before, end) = log.end_before(first);
            found.cut(before, end);
            found.damage = Some((before.next(), log.last().max(last)));
        }
        let snapshot = self.snapshots.found(group).map_err(|error| {
            tracing::error!(%group, %error, "reading a group again failed");
            FetchError::Io
        })?;
        Ok(GroupState {
            group,
            hard_state: log.hard_state,
            conf_state: log.conf_state.clone(),
            meta: log.meta.clone(),
            retention: Retention::default(),
            is_durable: true,
            start: log.start(),
            term_runs: found.term_runs,
            last: found.last,
            next_offset: found.next_offset,
            tail: Vec::new(),
            conf_changes: found.conf_changes,
            snapshot,
            damage: found.damage.map(|(first, last)| LogDamage { first, last }),
            is_under_repair: log.is_under_repair,
            joined_at: log.joined_at,
            has_state_machine: false,
        })
    }
}

impl Found {
    /// Takes the entries of the next span, which ends at offset `end`.
    fn take(&mut self, entries: &[LogEntry], end: Offset) {
        for entry in entries.iter().filter(|entry| entry.index > self.last) {
            if self.term_runs.last().is_none_or(|run| run.term != entry.term) {
                self.term_runs.push(TermRun { first: entry.index, term: entry.term });
            }
            self.conf_changes.extend((entry.kind != EntryKind::Normal).then_some(entry.index));
        }
        self.last = entries.last().map_or(self.last, |entry| entry.index);
        self.next_offset = end;
    }

    /// Ends the log after an index.
    fn cut(&mut self, last: Index, next_offset: Offset) {
        self.term_runs.retain(|run| run.first <= last);
        self.conf_changes.retain(|index| *index <= last);
        (self.last, self.next_offset) = (last, next_offset);
    }
}
