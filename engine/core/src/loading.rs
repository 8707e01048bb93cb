//! A replica whose recovered tail does not reach back to its commit index: the entries between are
//! fetched before it takes part. Until then it is silent, like one that is still starting.

use crate::ids::{GroupId, Index, Term};
use crate::io::{Fetch, FetchError, FetchFrom, FetchId, GroupState, GroupStatus, LogEntry, Role};

/// Fetches that may come back without an entry, a tick apart, before the log counts as damaged.
const MISSING_MAX: u32 = 100;

#[derive(Debug)]
pub(crate) struct Loading {
    state: GroupState,
    /// What was fetched so far, from the first missing entry on.
    head: Vec<LogEntry>,
    fetch: Option<FetchId>,
    missing: u32,
}

/// How loading goes on.
pub(crate) enum Step {
    Waiting,
    Complete(Box<GroupState>),
    Broken(String),
}

impl Loading {
    /// The state as given, if its tail suffices.
    pub(crate) fn new(state: GroupState) -> Result<Loading, Box<GroupState>> {
        let loading = Loading { state, head: Vec::new(), fetch: None, missing: 0 };
        let (from, to) = loading.gap();
        if from > to { Err(Box::new(loading.state)) } else { Ok(loading) }
    }

    /// First and last entry that is missing; the first is beyond the last when none is.
    fn gap(&self) -> (Index, Index) {
        let from = self.state.hard_state.commit.0 + 1 + self.head.len() as u64;
        (Index(from), Index(self.state.last.0.saturating_sub(self.state.tail.len() as u64)))
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
            is_quarantined: false,
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
        let (from, to) = self.gap();
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
        let (mut expected, to) = self.gap();
        for entry in entries {
            if entry.index != expected || entry.index > to || entry.term == Term(0) {
                return Step::Broken("the durable log gave back other entries than asked for".to_owned());
            }
            expected = expected.next();
            self.head.push(entry);
        }
        if expected <= to {
            return Step::Waiting;
        }
        let mut state = self.state.clone();
        let tail = std::mem::take(&mut state.tail);
        state.tail = std::mem::take(&mut self.head);
        state.tail.extend(tail);
        Step::Complete(Box::new(state))
    }
}
