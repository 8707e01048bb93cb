//! State machine safety: what is committed at an index is the same everywhere and for ever (Raft paper, figure 3
//! and 5.4.3); a replica's commit index never falls while it runs; offsets of committed records are dense
//! (this project's promise).

use std::collections::{BTreeMap, BTreeSet};

use iroh_raft_core::{GroupId, GroupStatus, Index, LogEntry, NodeId, Offset};

use super::log::{Logs, id_of};
use super::members::Members;
use super::reading::Reading;
use super::sessions::Sessions;
use super::{Checked, EntryId, ensure};
use crate::plan::Plan;

#[derive(Default, Debug)]
struct Committed {
    entries: Vec<EntryId>,
    /// Offset after each of them.
    ends: Vec<Offset>,
    /// A hash of each record, by offset.
    records: Vec<u64>,
}

#[derive(Debug)]
pub(crate) struct Commits {
    groups: BTreeMap<GroupId, Committed>,
    /// How far each state machine is.
    applied: BTreeMap<(NodeId, GroupId), Index>,
    /// Those without a state machine.
    logs: BTreeSet<GroupId>,
    pub(crate) members: Members,
    pub(crate) reading: Reading,
    pub(crate) sessions: Sessions,
}

impl Commits {
    pub(super) fn new(plan: &Plan) -> Commits {
        let logs = plan.groups.iter().filter(|group| !group.has_machine).map(|group| group.id).collect();
        let (groups, applied) = Default::default();
        let (members, reading, sessions) = (Members::new(plan), Reading::new(plan), Sessions::default());
        Commits { groups, applied, logs, members, reading, sessions }
    }

    pub(super) fn of(&self, group: GroupId) -> &[EntryId] {
        self.groups.get(&group).map_or(&[], |committed| &committed.entries)
    }

    /// Whether nobody but retention may remove anything of a group.
    pub(crate) fn is_log(&self, group: GroupId) -> bool {
        self.logs.contains(&group)
    }

    /// Offset after an entry that is committed, or after the last one.
    pub(super) fn offset_after(&self, group: GroupId, index: Index) -> Offset {
        let ends = self.groups.get(&group).map_or(&[][..], |committed| &committed.ends);
        let count = ends.len().min(usize::try_from(index.0).expect("a short log"));
        count.checked_sub(1).map_or(Offset(0), |at| ends[at])
    }

    /// Hashes of the committed records of a group, by offset.
    pub(crate) fn records(&self, group: GroupId) -> &[u64] {
        self.groups.get(&group).map_or(&[], |committed| &committed.records)
    }

    /// Index up to which somebody knows of a commit.
    pub(crate) fn last(&self, group: GroupId) -> Index {
        Index(self.of(group).len() as u64)
    }

    /// A replica says how far it knows of commits.
    pub(super) fn advanced(
        &mut self,
        node: NodeId,
        status: &GroupStatus,
        before: Option<&GroupStatus>,
        log: &[EntryId],
        logs: &Logs,
    ) -> Checked {
        let (group, commit) = (status.group, status.commit);
        let from = before.map_or(Index(0), |before| before.commit);
        ensure(commit >= from, "the commit index never falls", || {
            format!("node {node} group {group}: from {from} to {commit}")
        })?;
        ensure(status.applied <= commit && commit <= status.last, "applied <= commit <= last", || {
            format!("node {node}: {status:?}")
        })?;
        self.reached(node, group, from, commit, log, logs)
    }

    /// A replica says or shows that its entries up to one are committed.
    pub(super) fn reached(
        &mut self,
        node: NodeId,
        group: GroupId,
        from: Index,
        commit: Index,
        log: &[EntryId],
        logs: &Logs,
    ) -> Checked {
        let committed = self.groups.entry(group).or_default();
        for index in from.0..commit.0 {
            let at = usize::try_from(index).expect("a short log");
            let index = Index(index + 1);
            let Some(entry) = log.get(at) else {
                return ensure(false, "only what a replica has is committed there", || {
                    format!("node {node} group {group}: entry {index} is not in its log")
                });
            };
            match committed.entries.get(at) {
                Some(known) => ensure(known == entry, "what is committed is the same everywhere", || {
                    format!("node {node} group {group}: entry {index} is {entry:?}, committed was {known:?}")
                })?,
                None => {
                    committed.entries.push(*entry);
                    let known = logs.known(group, index, entry.term).expect("it is in a log");
                    let end = Offset(committed.records.len() as u64);
                    ensure(known.records.is_empty() || known.base == end, "offsets are dense", || {
                        format!("group {group}: entry {index} begins at offset {}, {end} was due", known.base)
                    })?;
                    committed.records.extend(&known.records);
                    committed.ends.push(Offset(committed.records.len() as u64));
                    let (commands, count) = (known.commands.as_ref(), known.records.len());
                    self.reading.committed(group, index, commands, count, known.at)?;
                    self.sessions.committed(group, index, known)?;
                    if let Some(changes) = &known.changes {
                        self.members.committed(group, index, changes);
                    }
                    if let Some(survivor) = known.survivor {
                        self.members.recovered(group, index, survivor);
                    }
                }
            }
        }
        Ok(())
    }

    /// The first so many entries that are known to be committed.
    pub(super) fn upto(&self, group: GroupId, index: Index) -> &[EntryId] {
        let all = self.of(group);
        &all[..all.len().min(usize::try_from(index.0).expect("a short log"))]
    }

    /// A state machine is where a snapshot says, or, without one, at its beginning.
    pub(super) fn restored(&mut self, node: NodeId, group: GroupId, index: Index) {
        self.applied.insert((node, group), index);
    }

    /// How far a state machine is.
    pub(super) fn applied_upto(&self, node: NodeId, group: GroupId) -> Index {
        self.applied.get(&(node, group)).copied().unwrap_or_default()
    }

    /// A node starts: its state machines are empty.
    pub(super) fn restart(&mut self, node: NodeId, group: GroupId) {
        self.applied.remove(&(node, group));
    }

    /// A state machine is given an entry: each once, in order.
    pub(super) fn applied(&mut self, node: NodeId, group: GroupId, entry: &LogEntry) -> Checked {
        let applied = self.applied.entry((node, group)).or_default();
        let due = applied.next();
        ensure(entry.index == due, "entries are applied in order", || {
            format!("node {node} group {group} applies {} where {due} was due", entry.index)
        })?;
        *applied = due;
        let at = usize::try_from(entry.index.0 - 1).expect("a short log");
        let known = self.of(group).get(at);
        ensure(known == Some(&id_of(entry)), "only what is committed is applied", || {
            format!(
                "node {node} group {group} applies {} of {}; committed is {known:?}",
                entry.index, entry.term
            )
        })
    }
}
