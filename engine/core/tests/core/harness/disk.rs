//! The durable log of one node: flushes are atomic and in order; a crash loses those not yet done.

use std::collections::BTreeMap;

use bytes::Bytes;
use iroh_raft_core::batch::BatchHeader;
use iroh_raft_core::{
    Append, ConfState, EntryKind, Fetch, FetchError, FetchFrom, FlushSeq, GroupId, GroupState, HardState,
    Index, LogChange, LogDamage, LogEntry, LogPosition, LogStart, Offset, TermRun,
};

#[derive(Clone, Debug, Default)]
pub(crate) struct StoredGroup {
    pub(crate) hard_state: HardState,
    pub(crate) conf_state: Option<ConfState>,
    pub(crate) start: LogStart,
    pub(crate) meta: Bytes,
    pub(crate) is_under_repair: bool,
    pub(crate) joined_at: LogPosition,
    /// First entry that is damaged, and the last one that there was then.
    pub(crate) damage: Option<LogDamage>,
    pub(crate) entries: Vec<LogEntry>,
}

#[derive(Clone, Debug, Default)]
pub(crate) struct Disk {
    pub(crate) last_seq: FlushSeq,
    pub(crate) groups: BTreeMap<GroupId, StoredGroup>,
}

impl Disk {
    pub(crate) fn write(&mut self, append: &Append) {
        assert_eq!(append.seq.0, self.last_seq.0 + 1, "flushes are dense");
        self.last_seq = append.seq;
        for change in &append.groups {
            let stored = self.groups.entry(change.group).or_default();
            if change.change == Some(LogChange::Remove) {
                // Term and vote outlive the log.
                let HardState { term, vote, .. } = stored.hard_state;
                let hard_state = HardState { term, vote, commit: Index(0) };
                *stored = StoredGroup { hard_state, ..StoredGroup::default() };
                assert!(change.hard_state.is_some(), "term and vote are written again");
            }
            let mut before = stored.hard_state;
            if change.under_repair == Some(true) {
                before.commit = Index(0);
            }
            stored.is_under_repair = change.under_repair.unwrap_or(stored.is_under_repair);
            stored.joined_at = change.joined_at.unwrap_or(stored.joined_at);
            stored.hard_state = change.hard_state.unwrap_or(before);
            let HardState { term, vote, commit } = stored.hard_state;
            let is_back = before.commit > commit && stored.damage.is_none();
            assert!(before.term <= term && !is_back, "{before:?} becomes {change:?}");
            let is_revoted = before.term == term && before.vote.0 != 0 && before.vote != vote;
            assert!(!is_revoted, "a second vote in a term: {before:?} becomes {change:?}");
            if let Some(conf_state) = &change.conf_state {
                let is_first = stored.conf_state.replace(conf_state.clone()).is_none();
                assert!(is_first || change.change.is_some(), "members are written where a log begins");
            }
            stored.change(change.change);
            if let Some(meta) = &change.meta {
                stored.meta.clone_from(meta);
            }
            if let Some(first) = change.entries.first() {
                let keep = usize::try_from(first.index.0 - 1 - stored.start.index.0).unwrap();
                assert!(keep <= stored.entries.len(), "an append leaves a gap");
                assert!(first.index > before.commit, "commit is never cut");
                stored.entries.truncate(keep);
                stored.entries.extend_from_slice(&change.entries);
            }
            assert!(stored.hard_state.commit <= stored.last(), "commit within the log");
            for (at, entry) in stored.entries.iter().enumerate().skip(stored.entries.len().saturating_sub(64))
            {
                assert_eq!(entry.index.0, stored.start.index.0 + at as u64 + 1, "entries are contiguous");
                assert_ne!(entry.kind, EntryKind::ConfChange, "members change by joint consensus");
                assert!(entry.term <= stored.hard_state.term, "an entry of a term to come");
            }
        }
    }

    /// Entries of a group are damaged.
    pub(crate) fn spoil(&mut self, group: GroupId, damage: LogDamage) {
        let stored = self.groups.entry(group).or_default();
        let first = stored.damage.map_or(damage.first, |before| before.first.min(damage.first));
        stored.damage = Some(LogDamage { first, last: stored.last().max(damage.last) });
    }

    /// What recovery would hand to the shard, with at most `tail_max` entries of each group.
    pub(crate) fn recover(&self, fresh: &GroupState, tail_max: usize) -> GroupState {
        let Some(stored) = self.groups.get(&fresh.group) else { return fresh.clone() };
        if let Some(damage) = stored.damage {
            let mut sound = stored.clone();
            sound.entries.retain(|entry| entry.index < damage.first);
            sound.damage = None;
            let state = Disk { last_seq: self.last_seq, groups: [(fresh.group, sound)].into() };
            return GroupState { damage: Some(damage), ..state.recover(fresh, tail_max) };
        }
        let mut runs: Vec<TermRun> = Vec::new();
        for entry in &stored.entries {
            if runs.last().is_none_or(|run| run.term != entry.term) {
                runs.push(TermRun { first: entry.index, term: entry.term });
            }
        }
        GroupState {
            hard_state: stored.hard_state,
            conf_state: stored.conf_state.clone().unwrap_or_else(|| fresh.conf_state.clone()),
            meta: stored.meta.clone(),
            is_durable: stored.conf_state.is_some(),
            start: stored.start,
            damage: None,
            is_under_repair: stored.is_under_repair,
            joined_at: stored.joined_at,
            term_runs: runs,
            last: stored.last(),
            next_offset: stored.next_offset(),
            conf_changes: stored.changes().collect(),
            tail: stored.entries[stored.entries.len().saturating_sub(tail_max)..].to_vec(),
            ..fresh.clone()
        }
    }

    pub(crate) fn read(&self, fetch: &Fetch) -> Result<Vec<LogEntry>, FetchError> {
        let stored = self.groups.get(&fetch.group).ok_or(FetchError::Missing)?;
        let (entries, start) = (&stored.entries, stored.start.index.0);
        let from = match fetch.from {
            FetchFrom::Index(index) => index.0.checked_sub(start + 1).ok_or(FetchError::Missing)?,
            FetchFrom::Offset(offset) => {
                let holds = |entry: &&LogEntry| header(entry).is_some_and(|header| header.end() > offset);
                entries.iter().find(holds).ok_or(FetchError::Missing)?.index.0 - 1 - start
            }
            // Each entry is a block here.
            FetchFrom::Newest { bytes } => {
                let mut left = bytes;
                let mut fits = |entry: &&LogEntry| {
                    left.checked_sub(entry.data.len() as u64).map(|rest| left = rest).is_some()
                };
                (entries.len() - entries.iter().rev().take_while(|entry| fits(entry)).count()) as u64
            }
        };
        let to = usize::try_from(fetch.to.0.saturating_sub(start)).unwrap().min(entries.len());
        let wanted = entries.get(usize::try_from(from).unwrap()..to).unwrap_or_default();
        let mut bytes = 0;
        let fitting = wanted.iter().take_while(|entry| {
            let is_first = bytes == 0;
            bytes += entry.data.len() + 1;
            is_first || bytes <= fetch.bytes_max
        });
        let found: Vec<LogEntry> = fitting.cloned().collect();
        if found.is_empty() { Err(FetchError::Missing) } else { Ok(found) }
    }
}

impl StoredGroup {
    pub(crate) fn last(&self) -> Index {
        Index(self.start.index.0 + self.entries.len() as u64)
    }

    fn change(&mut self, change: Option<LogChange>) {
        match change {
            Some(LogChange::CompactTo(start)) => {
                assert!(start.index <= self.last(), "only what is there is compacted");
                self.entries.retain(|entry| entry.index > start.index);
                self.start = start;
            }
            Some(LogChange::StartAfter(start)) => {
                assert!(start.index >= self.start.index, "a log does not go back");
                self.entries.clear();
                (self.start, self.damage) = (start, None);
            }
            Some(LogChange::CutAfter(place)) => {
                assert!(place.index <= self.last(), "only what is there is cut");
                self.entries.retain(|entry| entry.index <= place.index);
                self.damage = None;
            }
            Some(LogChange::Remove) | None => {}
        }
    }

    fn changes(&self) -> impl Iterator<Item = Index> {
        let changes = self.entries.iter().filter(|entry| entry.kind != EntryKind::Normal);
        changes.map(|entry| entry.index)
    }

    pub(crate) fn next_offset(&self) -> Offset {
        self.entries.iter().rev().find_map(header).map_or(self.start.offset, |header| header.end())
    }
}

pub(crate) fn header(entry: &LogEntry) -> Option<BatchHeader> {
    entry.batch().map(|batch| BatchHeader::parse(batch).unwrap())
}
