//! A replica whose recovered tail does not reach back to its commit index (with client sessions, to the entry that their
//! table is of), to its committed changes of membership, or to its newest batch, whose time no later one may
//! precede: these entries are fetched before it takes part. Until then it is silent, like one that
//! is still starting.

use std::sync::Arc;

use bytes::Bytes;

use crate::group_meta::GroupMeta;
use crate::ids::{GroupId, Index, Offset, Term, WallTime};
use crate::io::{
    Fetch, FetchError, FetchFrom, FetchId, GroupState, GroupStatus, HardState, LogDamage, LogEntry, LogStart,
    Role, Snapshot, SnapshotHead,
};
use crate::log_window::header_of;
use crate::mutants::{self, Mutant};

/// Fetches that may come back without an entry, a tick apart, before the log counts as damaged.
const MISSING_MAX: u32 = 100;

#[derive(Debug)]
pub(crate) struct Loading {
    state: GroupState,
    written: HardState,
    damage: Option<LogDamage>,
    is_adopted: bool,
    /// The first entry that has to be in memory.
    head_from: Index,
    /// What was fetched so far, from the first missing entry on.
    head: Vec<LogEntry>,
    /// Committed changes of membership, in order, as far as they were fetched.
    changes: Vec<LogEntry>,
    /// Time of the newest batch, if it was fetched.
    at: Option<WallTime>,
    fetch: Option<FetchId>,
    missing: u32,
}

/// A replica that has all that it needs to take part.
#[derive(Debug)]
pub(crate) struct Loaded {
    pub(crate) state: GroupState,
    /// The committed changes of membership in its log, in order.
    pub(crate) changes: Vec<LogEntry>,
    /// The hard state that is durable.
    pub(crate) written: HardState,
    /// What was found damaged, past the end of this log.
    pub(crate) damage: Option<LogDamage>,
    /// Whether the log begins after the snapshot, and the disk has still to be told.
    pub(crate) is_adopted: bool,
    /// Time of the newest batch, if the tail has none.
    pub(crate) at: WallTime,
}

/// How loading goes on.
pub(crate) enum Step {
    Waiting,
    Complete(Box<Loaded>),
    Broken(String),
}

impl Loading {
    /// The state as given, if its tail suffices.
    pub(crate) fn new(mut state: GroupState) -> Result<Loading, Box<Loaded>> {
        let written = state.hard_state;
        if !has_fitting_snapshot(&state) {
            state.snapshot = None;
        }
        let is_void = lacks_snapshot(&state);
        if is_void {
            make_void(&mut state);
        }
        let damage = state.damage.take();
        if damage.is_some() {
            // It comes again from the leader.
            state.hard_state.commit = state.hard_state.commit.min(state.last);
        }
        let is_adopted = is_void || adopt_snapshot(&mut state);
        let (head, changes) = (Vec::new(), Vec::new());
        let head_from = head_from(&state);
        let mut loading = Loading {
            state,
            written,
            damage,
            is_adopted,
            head_from,
            head,
            changes,
            at: None,
            fetch: None,
            missing: 0,
        };
        if loading.wanted().is_some() { Ok(loading) } else { Err(Box::new(loading.finish())) }
    }

    /// Index of the first entry of the tail.
    fn first_of_tail(&self) -> u64 {
        self.state.last.0 + 1 - (self.state.tail.len() as u64).min(self.state.last.0)
    }

    /// First and last entry that are missing before the tail.
    fn head_gap(&self) -> Option<(Index, Index)> {
        let (from, before) = (self.head_from.0 + self.head.len() as u64, self.first_of_tail());
        (from < before).then(|| (Index(from), Index(before - 1)))
    }

    /// First and last entry that are missing next.
    fn gap(&self) -> Option<(Index, Index)> {
        if let Some(gap) = self.head_gap() {
            return Some(gap);
        }
        let first_of_tail = self.first_of_tail();
        let change = *self.state.conf_changes.get(self.changes.len())?;
        let is_missing = change <= self.state.hard_state.commit && change.0 < first_of_tail;
        is_missing.then_some((change, change))
    }

    /// Whether the newest batch is still to be fetched, and by which record.
    fn newest_record(&self) -> Option<Offset> {
        let GroupState { start, next_offset, tail, .. } = &self.state;
        let is_known =
            self.at.is_some() || tail.iter().chain(&self.head).any(|entry| entry.batch().is_some());
        (!is_known && *next_offset > start.offset).then(|| Offset(next_offset.0 - 1))
    }

    /// What to fetch next: from where, and the last index.
    fn wanted(&self) -> Option<(FetchFrom, Index)> {
        let gap = self.gap().map(|(from, to)| (FetchFrom::Index(from), to));
        gap.or_else(|| self.newest_record().map(|offset| (FetchFrom::Offset(offset), self.state.last)))
    }

    fn finish(&mut self) -> Loaded {
        let mut state = self.state.clone();
        let tail = std::mem::take(&mut state.tail);
        let mut changes = std::mem::take(&mut self.changes);
        let indexes = state.conf_changes.iter().skip(changes.len());
        let committed = indexes.take_while(|index| **index <= state.hard_state.commit);
        for index in committed {
            changes.extend(tail.iter().find(|entry| entry.index == *index).cloned());
        }
        state.tail = std::mem::take(&mut self.head);
        state.tail.extend(tail);
        let at = self.at.unwrap_or_default();
        let (written, damage, is_adopted) = (self.written, self.damage, self.is_adopted);
        Loaded { state, changes, written, damage, is_adopted, at }
    }

    pub(crate) fn state(&self) -> &GroupState {
        &self.state
    }

    /// What is damaged, and still stands on the disk.
    pub(crate) fn lost(&self) -> Option<LogDamage> {
        self.damage
    }

    /// Whether an entry is known to be lost already.
    pub(crate) fn has_lost(&self, index: Index) -> bool {
        self.damage.is_some() && index > self.state.last
    }

    pub(crate) fn status(&self) -> GroupStatus {
        GroupStatus {
            group: self.state.group,
            role: Role::Follower,
            term: self.state.hard_state.term,
            leader: None,
            commit: self.state.hard_state.commit,
            applied: Index(0),
            last: self.state.last,
            last_term: self.state.last_term(),
            first: Default::default(),
            end: Default::default(),
            members: Arc::default(),
            members_since: Default::default(),
            is_quarantined: false,
            is_disk_hung: false,
            is_quiet: false,
            is_under_repair: self.damage.is_some() || self.state.is_under_repair,
        }
    }

    /// The next fetch, unless one is open.
    pub(crate) fn take_fetch(&mut self, next: &mut FetchId, bytes_max: usize) -> Option<Fetch> {
        if self.fetch.is_some() {
            return None;
        }
        let id = *next;
        next.0 += 1;
        self.fetch = Some(id);
        let (from, to) = self.wanted().expect("what is complete loads no more");
        Some(Fetch { id, group: self.group(), from, to, bytes_max })
    }

    fn group(&self) -> GroupId {
        self.state.group
    }

    pub(crate) fn handle_fetched(&mut self, id: FetchId, result: Result<Vec<LogEntry>, FetchError>) -> Step {
        if self.fetch != Some(id) {
            return Step::Waiting;
        }
        self.fetch = None;
        match result {
            Ok(entries) if !entries.is_empty() => self.use_fetched(entries),
            Ok(_) | Err(FetchError::Missing) => {
                self.missing += 1;
                if self.missing < MISSING_MAX {
                    return Step::Waiting;
                }
                Step::Broken("entries of its log are not in the durable log".to_owned())
            }
            Err(error) => Step::Broken(error.to_string()),
        }
    }

    fn use_fetched(&mut self, entries: Vec<LogEntry>) -> Step {
        let Some((from, to)) = self.gap() else { return self.use_newest(&entries) };
        let is_head = self.head_gap().is_some();
        let mut expected = from;
        for entry in entries {
            if entry.index != expected || entry.index > to || entry.term == Term(0) {
                return Step::Broken("the durable log gave back other entries than asked for".to_owned());
            }
            expected = expected.next();
            if is_head { self.head.push(entry) } else { self.changes.push(entry) }
        }
        self.go_on()
    }

    fn use_newest(&mut self, entries: &[LogEntry]) -> Step {
        let newest = entries.first().filter(|entry| entry.batch().is_some()).and_then(header_of);
        match newest.filter(|header| header.end() == self.state.next_offset) {
            Some(header) => self.at = Some(header.at),
            None => {
                return Step::Broken("the durable log gave back another record than asked for".to_owned());
            }
        }
        self.go_on()
    }

    fn go_on(&mut self) -> Step {
        match self.wanted() {
            Some(_) => Step::Waiting,
            None => Step::Complete(Box::new(self.finish())),
        }
    }
}

/// Whether the snapshot, if there is one, can be of this log, going by the terms of what is committed. One of a replica that
/// was given up, and in whose place this one began, is of another history. So is one that was received and not
/// installed when its replica was recovered without it.
fn has_fitting_snapshot(state: &GroupState) -> bool {
    let Some(Snapshot { head: SnapshotHead { index, term, .. }, .. }) = state.snapshot else { return true };
    let commit = state.hard_state.commit.min(state.last);
    let fits = if index < state.start.index {
        // It is of no use, whatever it is of.
        true
    } else if index <= commit {
        state.term_at(index) == term
    } else {
        state.term_at(commit) <= term
    };
    fits || mutants::is(Mutant::SnapshotOutlivesReplica)
}

/// Whether nothing here has the state that the log begins after: the snapshot of it is damaged.
fn lacks_snapshot(state: &GroupState) -> bool {
    let covered = state.snapshot.as_ref().map_or(Index(0), |snapshot| snapshot.head.index);
    state.has_state_machine && covered < state.start.index
}

/// Without that state the rest of the log is of no use: the replica has lost all, and gets it again from its leader as one
/// whose entries are damaged does. It keeps term and vote, and the members as of the start of its log.
fn make_void(state: &mut GroupState) {
    let lost = state.damage.map_or(state.last, |damage| damage.last.max(state.last));
    state.damage = Some(LogDamage { first: Index(1), last: lost });
    (state.snapshot, state.meta) = (None, Bytes::new());
    state.start = LogStart::default();
    (state.last, state.next_offset) = (Index(0), Offset(0));
    state.term_runs.clear();
    state.conf_changes.clear();
    state.tail.clear();
}

/// After the commit index, or after what the table of client sessions is of: the rest of it is in the log.
fn head_from(state: &GroupState) -> Index {
    let commit = state.hard_state.commit;
    let meta = GroupMeta::decode(state.meta.clone()).filter(|meta| !meta.sessions().is_empty());
    let covered = meta.map_or(commit, |meta| commit.min(meta.as_of()));
    covered.max(state.start.index).next()
}

/// A published snapshot is of what is committed, whatever the log knows of that: the process ended between the two
/// steps of an installation, or before the log was as durable as the snapshot. Returns whether the log is void.
fn adopt_snapshot(state: &mut GroupState) -> bool {
    let Some(snapshot) = state.snapshot.as_ref().filter(|_| state.has_state_machine) else { return false };
    let SnapshotHead { index, term, offset, conf_state, table } = snapshot.head.clone();
    if index <= state.hard_state.commit {
        return false;
    }
    state.hard_state.commit = index;
    // What cannot be read is found by whoever reads it next.
    let read = |table: &Bytes| GroupMeta::decode(table.clone());
    if let (Some(theirs), Some(ours)) = (read(&table), read(&state.meta)) {
        let newest = if theirs.as_of() > ours.as_of() { &theirs } else { &ours };
        state.meta = newest.with_time(theirs.at().max(ours.at())).covering(index).encode();
    }
    if index <= state.last && state.term_at(index) == term {
        return false;
    }
    state.hard_state.term = state.hard_state.term.max(term);
    state.start = LogStart { index, term, offset };
    (state.conf_state, state.is_durable) = (conf_state, true);
    (state.last, state.next_offset) = (index, offset);
    state.term_runs.clear();
    state.conf_changes.clear();
    state.tail.clear();
    true
}
