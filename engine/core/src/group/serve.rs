//! Applies, reads and fetches of a replica: what follows from a commit index that moved.

use super::snapshots::end_of;
use super::{FetchId, Index, MISSING_MAX, Offset, Replica, Turn};
use crate::io::{Apply, Fetch, FetchError, FetchFrom, LogEntry, Reply, Waiter};
use crate::log_window::Wanted;
use crate::mutants::{self, Mutant};
use crate::records::RecordReads;

/// What a fetch is for. One is outstanding for applies, one for record reads, one for searches, one for
/// retention, one for each follower that lags behind memory.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub(super) enum Purpose {
    Apply,
    Records {
        from: Offset,
    },
    /// A probe of a search by time.
    Find {
        probe: Offset,
    },
    /// The oldest block that retention leaves.
    Retention,
    /// The entry with the first record that is kept.
    Reclaim {
        first: Offset,
    },
    Send {
        from: Index,
    },
}

impl Replica {
    /// Hands out what the commit index and the applied index allow.
    pub(super) fn serve(&mut self, turn: &mut Turn<'_>) {
        let committed = Index(self.raw.raft.raft_log.committed);
        if committed > self.commit {
            self.commit = committed;
            self.commit_end = self.raw.store().end_at(committed);
        }
        self.apply_commands(turn, committed);
        // Before more is applied: a snapshot is of what is applied now.
        self.serve_snapshots(turn);
        self.apply(turn);
        if !self.snapshots.is_restoring {
            self.reads.handle_applied(self.freshness(turn.now), &mut turn.out.replies);
        }
        self.serve_finds(turn);
        self.serve_records(turn);
        self.fetch_for_followers(turn);
    }

    fn apply(&mut self, turn: &mut Turn<'_>) {
        if !self.has_state_machine {
            self.applied = self.commit;
            return;
        }
        let is_busy = self.applying.is_some()
            || self.snapshots.is_restoring
            || self.is_fetching(Purpose::Apply)
            || self.is_paused_by_missing;
        if is_busy || self.applied >= self.commit {
            return;
        }
        let (mut from, window) = (self.applied.next(), self.raw.store());
        let bytes_max = turn.config.apply_bytes_max;
        if mutants::is(Mutant::ApplySkips) && from.0.is_multiple_of(7) && from < self.commit {
            from = from.next();
        }
        if from >= window.first() {
            let stored = Index(self.raw.raft.raft_log.unstable.offset - 1);
            let is_early = mutants::is(Mutant::UncommittedApplied);
            let to = if is_early { stored.max(self.commit) } else { self.commit };
            let entries = window.read(from, to, bytes_max);
            self.emit_apply(turn, entries);
        } else {
            let to = Index(self.commit.0.min(window.first().0 - 1));
            self.fetch(turn, Purpose::Apply, FetchFrom::Index(from), to, bytes_max);
        }
    }

    /// Committed records that the state machine has not applied.
    pub(super) fn apply_lag(&self) -> u64 {
        if self.has_state_machine { self.commit_end.0.saturating_sub(self.applied_end.0) } else { 0 }
    }

    fn emit_apply(&mut self, turn: &mut Turn<'_>, entries: Vec<LogEntry>) {
        let last = entries.last().expect("there is something to apply").index;
        self.applying = Some((last, end_of(&entries, self.applied_end)));
        self.snapshots.handle_applied(&entries);
        let waiters = self.pending.take_waiters(last);
        turn.out.applies.push(Apply { group: self.group, entries, waiters });
    }

    /// The state machine has applied what it was given.
    pub(crate) fn handle_applied(&mut self, turn: &mut Turn<'_>, index: Index) {
        if let Some((_, end)) = self.applying.take_if(|(last, _)| *last == index) {
            (self.applied, self.applied_end) = (index, end);
            self.is_dirty = true;
            // Commands of sessions that came again meanwhile.
            let repeated = self.pending.take_waiters(index).into_iter();
            turn.out.replies.extend(repeated.map(|Waiter { token, first, count, index, term }| {
                Reply::Repeated { token, group: self.group, first, count, index, term }
            }));
        }
    }

    fn fetch_for_followers(&mut self, turn: &mut Turn<'_>) {
        for Wanted { from, to } in self.raw.store().take_wanted() {
            let is_open = |purpose: &&Purpose| matches!(purpose, Purpose::Send { .. });
            let open = self.fetches.values().filter(is_open).count();
            // A follower that finds no slot is served when a fetch comes back.
            let is_forgotten = mutants::is(Mutant::FetchForgotten);
            let has_slot = open < self.raw.raft.prs().iter().len() && !is_forgotten;
            let purpose = Purpose::Send { from };
            if self.is_leader() && has_slot && !self.is_fetching(purpose) {
                let to = Index(to.0.min(self.raw.store().first().0 - 1));
                self.fetch(turn, purpose, FetchFrom::Index(from), to, turn.config.message_bytes_max);
            }
        }
    }

    pub(super) fn is_fetching(&self, purpose: Purpose) -> bool {
        self.fetches.values().any(|open| *open == purpose)
    }

    pub(super) fn fetch(
        &mut self,
        turn: &mut Turn<'_>,
        purpose: Purpose,
        from: FetchFrom,
        to: Index,
        bytes_max: usize,
    ) {
        let id = turn.take_fetch_id();
        self.fetches.insert(id, purpose);
        turn.out.fetches.push(Fetch { id, group: self.group, from, to, bytes_max });
    }

    /// Entries came back from the durable log, or did not.
    pub(crate) fn handle_fetched(
        &mut self,
        turn: &mut Turn<'_>,
        id: FetchId,
        result: Result<Vec<LogEntry>, FetchError>,
    ) {
        let Some(purpose) = self.fetches.remove(&id) else { return };
        self.is_dirty = true;
        match result {
            Ok(entries) if !entries.is_empty() => self.use_fetched(turn, purpose, entries),
            Ok(_) | Err(FetchError::Missing) => self.handle_missing(purpose),
            Err(error) => {
                self.damage = error.damage();
                self.broken = Some(error.to_string());
            }
        }
    }

    fn use_fetched(&mut self, turn: &mut Turn<'_>, purpose: Purpose, entries: Vec<LogEntry>) {
        if let Purpose::Send { .. } = purpose {
            return self.send_fetched(turn, entries);
        }
        self.missing = 0;
        if entries[0].index <= self.log_start().index {
            // Compacted away since: whoever waits for it is told.
            return;
        }
        let is_committed = entries.last().is_some_and(|entry| entry.index <= self.commit);
        if !is_committed || !self.raw.store().contains(&entries) {
            self.broken = Some("the durable log gave back entries that are not those of this log".to_owned());
        } else if let Purpose::Records { from } = purpose {
            let mut records = std::mem::replace(&mut self.records, RecordReads::new(self.group));
            let is_right = records.handle_fetched(entries, from, &self.committed(), &mut turn.out.replies);
            self.records = records;
            self.check_records(is_right);
        } else if let Purpose::Find { probe } = purpose {
            let is_right = self.finds.handle_fetched(&entries, probe);
            self.check_records(is_right);
        } else if purpose == Purpose::Retention {
            self.handle_oldest_kept(turn, &entries);
        } else if let Purpose::Reclaim { first } = purpose {
            self.handle_first_kept(first, &entries[0]);
        } else if entries[0].index == self.applied.next() {
            self.emit_apply(turn, entries);
        } else {
            self.broken = Some("the durable log gave back other entries than asked for".to_owned());
        }
    }

    fn check_records(&mut self, are_right: bool) {
        if !are_right {
            self.broken = Some("the durable log gave back other records than asked for".to_owned());
        }
    }

    /// Builds appends from fetched entries. A log that changed meanwhile asks again by itself.
    fn send_fetched(&mut self, turn: &mut Turn<'_>, entries: Vec<LogEntry>) {
        if !self.is_leader() || !self.raw.store().contains(&entries) {
            return;
        }
        self.raw.mut_store().lend(entries);
        let first = self.raw.store().first().0;
        let lagging = |node: &u64| {
            let progress = self.raw.raft.prs().get(*node);
            progress.is_some_and(|progress| progress.next_idx < first && !progress.is_paused())
        };
        let nodes = self.raw.raft.prs().iter().map(|(node, _)| *node);
        let mut lagging: Vec<u64> = nodes.filter(|node| *node != self.node.0 && lagging(node)).collect();
        lagging.sort_unstable();
        for node in lagging {
            self.raw.raft.send_append(node);
            self.after_call(turn, false);
        }
        self.raw.mut_store().lend(Vec::new());
    }

    /// An entry can be on its way from the journal to the log, or cut meanwhile: ask again at the
    /// next tick. Committed entries that stay away are lost, unless they were compacted away meanwhile.
    fn handle_missing(&mut self, purpose: Purpose) {
        let is_compacted = match purpose {
            // What retention missed it looks for again.
            Purpose::Send { .. } | Purpose::Retention | Purpose::Reclaim { .. } => true,
            Purpose::Records { from } | Purpose::Find { probe: from } => {
                from < self.raw.store().base().offset
            }
            Purpose::Apply => false,
        };
        if is_compacted {
            return;
        }
        self.missing += 1;
        self.is_paused_by_missing = true;
        if self.missing >= MISSING_MAX {
            self.broken = Some("committed entries are not in the durable log".to_owned());
        }
    }
}
