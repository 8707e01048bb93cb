//! What the leader lets go of, and when: records beyond the age or the bytes that its group keeps.
//!
//! It decides, at intervals, by the times in the log and by the bytes that its own disk holds, and writes where
//! the records begin into the log (`commands.rs`): so all replicas agree, whatever their clocks and disks say.

use super::serve::Purpose;
use super::{Index, Offset, Replica, Turn};
use crate::find::{Find, PROBE_BYTES, Seeker};
use crate::ids::{Timestamp, WallTime};
use crate::io::{FetchFrom, LogEntry, Retention};
use crate::log_window::header_of;

#[derive(Debug)]
pub(super) struct Keeping {
    retention: Retention,
    due: Timestamp,
    /// First record that is kept, and where the log may begin for that: the entry before its own, and the offset
    /// after that.
    place: Option<(Offset, Index, Offset)>,
}

impl Keeping {
    pub(super) fn new(retention: Retention, now: Timestamp) -> Keeping {
        Keeping { retention, due: now, place: None }
    }

    pub(super) fn retention(&self) -> Retention {
        self.retention
    }
}

impl Replica {
    /// Looks for records to let go of, if it is time and this replica leads.
    pub(super) fn look_at_retention(&mut self, turn: &mut Turn<'_>) {
        let Retention { bytes_max, age_max } = self.keeping.retention;
        let is_due = (bytes_max, age_max) != (None, None) && turn.now >= self.keeping.due;
        let is_empty = self.first_kept() >= self.commit_end;
        if !is_due || is_empty || !self.is_leader() {
            return;
        }
        self.keeping.due = turn.now.after(turn.config.retention_interval);
        let deadline = self.keeping.due;
        if let Some(age_max) = age_max
            && !self.finds.is_retaining()
        {
            let age_ms = u64::try_from(age_max.as_millis()).unwrap_or(u64::MAX);
            let at = WallTime(turn.wall.0.saturating_sub(age_ms));
            self.finds.push(Find::new(Seeker::Retention, at, deadline));
            self.is_dirty = true;
        }
        if let Some(bytes) = bytes_max
            && !self.is_fetching(Purpose::Retention)
        {
            let to = self.commit;
            self.fetch(turn, Purpose::Retention, FetchFrom::Newest { bytes }, to, PROBE_BYTES);
        }
    }

    /// When the leader looks next, if records can have become too old by then.
    pub(super) fn retention_due(&self) -> Option<Timestamp> {
        let is_kept = self.first_kept() < self.commit_end;
        let is_bound = self.keeping.retention.age_max.is_some() && is_kept && self.is_leader();
        is_bound.then_some(self.keeping.due)
    }

    /// The oldest block that the bound on bytes leaves.
    pub(super) fn handle_oldest_kept(&mut self, turn: &mut Turn<'_>, entries: &[LogEntry]) {
        let first = entries.iter().filter(|entry| entry.batch().is_some()).find_map(header_of);
        let before: Option<Offset> = first.map(|header| header.base);
        if let Some(before) = before {
            self.trim(turn, before);
        }
    }

    /// Lets the entries go whose records were all trimmed, where no state machine is built from them. Every
    /// replica does it for itself: what it keeps for followers is its own affair.
    pub(super) fn reclaim(&mut self, turn: &mut Turn<'_>) {
        let first = self.commands.meta.first();
        if self.has_state_machine || first <= self.log_start().offset {
            return;
        }
        if self.keeping.place.is_none_or(|(of, ..)| of != first) {
            self.keeping.place = self.place_before(first).map(|(index, offset)| (first, index, offset));
        }
        let purpose = Purpose::Reclaim { first };
        match self.keeping.place {
            Some((_, index, offset)) if index <= self.compaction_limit(turn, self.commit) => {
                self.compact_to(index, offset);
            }
            Some(_) => {}
            None if self.is_fetching(purpose) => {}
            None => self.fetch(turn, purpose, FetchFrom::Offset(first), self.commit, 1),
        }
    }

    /// The entry before that of a record, and the offset after it, if memory tells.
    fn place_before(&self, first: Offset) -> Option<(Index, Offset)> {
        if first >= self.commit_end {
            return Some((self.commit, self.commit_end));
        }
        let window = self.raw.store();
        let entry = window.get(window.index_of(first)?)?;
        Some((Index(entry.index.0 - 1), header_of(entry)?.base))
    }

    /// The entry that holds the first record that is kept.
    pub(super) fn handle_first_kept(&mut self, first: Offset, entry: &LogEntry) {
        let header = header_of(entry).filter(|header| header.base <= first && first < header.end());
        if let Some(header) = header {
            self.keeping.place = Some((first, Index(entry.index.0 - 1), header.base));
        }
    }
}
