//! A replica whose recovered tail does not reach back to its commit index, or to its committed changes
//! of membership: these entries are fetched before it takes part. Until then it is silent, like one that
//! is still starting.

use std::sync::Arc;

use crate::ids::{GroupId, Index, Term};
use crate::io::{Fetch, FetchError, FetchFrom, FetchId, GroupState, GroupStatus, LogEntry, Role};

/// Fetches that may come back without an entry, a tick apart, before the log counts as damaged.
const MISSING_MAX: u32 = 100;

#[derive(Debug)]
pub(crate) struct Loading {
    state: GroupState,
    /// What was fetched so far, from the first missing entry on.
    head: Vec<LogEntry>,
    /// Committed changes of membership, in order, as far as they were fetched.
    changes: Vec<LogEntry>,
    fetch: Option<FetchId>,
    missing: u32,
}

/// A replica that has all that it needs to take part.
#[derive(Debug)]
pub(crate) struct Loaded {
    pub(crate) state: GroupState,
    /// The committed changes of membership in its log, in order.
    pub(crate) changes: Vec<LogEntry>,
}

/// How loading goes on.
pub(crate) enum Step {
    Waiting,
    Complete(Box<Loaded>),
    Broken(String),
}

impl Loading {
    /// The state as given, if its tail suffices.
    pub(crate) fn new(state: GroupState) -> Result<Loading, Box<Loaded>> {
        let mut loading = Loading { state, head: Vec::new(), changes: Vec::new(), fetch: None, missing: 0 };
        if loading.gap().is_some() { Ok(loading) } else { Err(Box::new(loading.finish())) }
    }

    /// First and last entry that are missing next.
    fn gap(&self) -> Option<(Index, Index)> {
        let first_of_tail = self.state.last.0 + 1 - (self.state.tail.len() as u64).min(self.state.last.0);
        let from = self.state.hard_state.commit.0 + 1 + self.head.len() as u64;
        if from < first_of_tail {
            return Some((Index(from), Index(first_of_tail - 1)));
        }
        let change = *self.state.conf_changes.get(self.changes.len())?;
        let is_missing = change <= self.state.hard_state.commit && change.0 < first_of_tail;
        is_missing.then_some((change, change))
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
        Loaded { state, changes }
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
            end: Default::default(),
            members: Arc::default(),
            members_since: Default::default(),
            is_quarantined: false,
            is_disk_hung: false,
            is_quiet: false,
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
        let (from, to) = self.gap().expect("what is complete loads no more");
        Some(Fetch { id, group: self.group(), from: FetchFrom::Index(from), to, bytes_max })
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
        let (from, to) = self.gap().expect("what is complete loads no more");
        let is_head = from > self.state.hard_state.commit;
        let mut expected = from;
        for entry in entries {
            if entry.index != expected || entry.index > to || entry.term == Term(0) {
                return Step::Broken("the durable log gave back other entries than asked for".to_owned());
            }
            expected = expected.next();
            if is_head { self.head.push(entry) } else { self.changes.push(entry) }
        }
        match self.gap() {
            Some(_) => Step::Waiting,
            None => Step::Complete(Box::new(self.finish())),
        }
    }
}
