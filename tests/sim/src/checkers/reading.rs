//! What readers of a log are promised (this project's promises): a tail gets each committed record from where it
//! began once, in order, and no more than its credit and one entry; searches by time are right, and times never
//! fall; where the kept records begin, and where cursors stand, is a function of the committed log, the same on
//! every replica at the same commit index, and found again by those that restart.

use std::collections::{BTreeMap, BTreeSet};

use iroh_raft_core::batch::Batch;
use iroh_raft_core::group_command::GroupCommands;
use iroh_raft_core::{
    CursorName, GroupCommand, GroupId, GroupMeta, Index, Input, LogEntry, NodeId, Offset, Reply,
    RequestError, Token, WallTime,
};

use super::{Checked, ensure};
use crate::plan::Plan;

const TAILS: &str = "a tail gets each record once, in order, within its credit";
const TABLES: &str = "cursors and trims are what the committed log says";
const TIMES: &str = "records are found by their times";

/// What the commands of a log have made of it.
#[derive(Clone, Default, Debug)]
struct Table {
    first: Offset,
    cursors: BTreeMap<CursorName, Offset>,
}

impl Table {
    fn take(&mut self, command: &GroupCommand) {
        match command {
            GroupCommand::CommitCursor { name, offset } => {
                let at = self.cursors.entry(name.clone()).or_default();
                *at = (*at).max(*offset);
            }
            GroupCommand::SetCursor { name, offset } => {
                self.cursors.insert(name.clone(), *offset);
            }
            GroupCommand::DropCursor { name } => {
                self.cursors.remove(name);
            }
            GroupCommand::Trim { before } => self.first = self.first.max(*before),
            GroupCommand::OpenSession { .. } | GroupCommand::CloseSession { .. } | GroupCommand::Compare => {}
        }
    }

    fn is_same(&self, meta: &GroupMeta) -> bool {
        let cursors = self.cursors.iter().map(|(name, offset)| (name, *offset));
        self.first == meta.first() && meta.cursors().eq(cursors)
    }
}

#[derive(Default, Debug)]
struct OneGroup {
    /// From an index on; none before the first command.
    tables: Vec<(Index, Table)>,
    /// Time of each committed record, by offset.
    times: Vec<WallTime>,
}

#[derive(Debug)]
struct Followed {
    next: Offset,
    granted: u64,
    sent: u64,
}

#[derive(Default, Debug)]
pub(crate) struct Reading {
    /// Groups whose logs go when snapshots cover them, trimmed or not.
    with_snapshots: BTreeSet<GroupId>,
    groups: BTreeMap<GroupId, OneGroup>,
    tails: BTreeMap<(NodeId, Token), Followed>,
    searches: BTreeMap<(NodeId, Token), WallTime>,
}

impl Reading {
    pub(super) fn new(plan: &Plan) -> Reading {
        let groups = plan.groups.iter().filter(|group| group.has_machine);
        Reading { with_snapshots: groups.map(|group| group.id).collect(), ..Reading::default() }
    }

    /// An entry is committed; the first time that anybody knows of it.
    pub(super) fn committed(
        &mut self,
        group: GroupId,
        index: Index,
        commands: Option<&GroupCommands>,
        records: usize,
        at: WallTime,
    ) -> Checked {
        let one = self.groups.entry(group).or_default();
        if let Some(commands) = commands {
            let mut table = one.tables.last().map(|(_, table)| table.clone()).unwrap_or_default();
            commands.commands.iter().for_each(|command| table.take(command));
            one.tables.push((index, table));
        }
        let before = one.times.last().copied().unwrap_or_default();
        ensure(records == 0 || before <= at, TIMES, || {
            format!("group {group}: entry {index} is of {at}, records before it of {before}")
        })?;
        one.times.extend(std::iter::repeat_n(at, records));
        Ok(())
    }

    /// Time of a committed record; that of the last one past the end.
    pub(crate) fn time_of(&self, group: GroupId, offset: Offset) -> WallTime {
        let times = self.groups.get(&group).map_or(&[][..], |one| &one.times);
        let at = usize::try_from(offset.0).expect("a short log");
        times.get(at).or(times.last()).copied().unwrap_or_default()
    }

    /// First record that is kept, as far as anybody knows.
    pub(crate) fn first(&self, group: GroupId) -> Offset {
        let tables = self.groups.get(&group).map_or(&[][..], |one| &one.tables);
        tables.last().map_or(Offset(0), |(_, table)| table.first)
    }

    /// How a replica stands.
    pub(super) fn stands(&self, node: NodeId, group: GroupId, commit: Index, meta: &GroupMeta) -> Checked {
        let tables = self.groups.get(&group).map_or(&[][..], |one| &one.tables);
        let count = tables.partition_point(|(since, _)| *since <= commit.max(meta.as_of()));
        let table = count.checked_sub(1).map(|at| &tables[at].1);
        let is_same = table.unwrap_or(&Table::default()).is_same(meta);
        ensure(is_same, TABLES, || {
            format!("node {node} group {group} at commit {commit}: {meta:?} instead of {table:?}")
        })
    }

    /// A node's process ended.
    pub(super) fn stopped(&mut self, node: NodeId) {
        self.tails.retain(|(of, _), _| *of != node);
        self.searches.retain(|(of, _), _| *of != node);
    }

    /// A core is about to take an input.
    pub(super) fn input(&mut self, node: NodeId, input: &Input) {
        match input {
            Input::Tail { token, from, granted_bytes, .. } => {
                let followed = Followed { next: *from, granted: *granted_bytes, sent: 0 };
                self.tails.insert((node, *token), followed);
            }
            Input::GrantTail { token, granted_bytes, .. } => {
                if let Some(tail) = self.tails.get_mut(&(node, *token)) {
                    tail.granted = tail.granted.max(*granted_bytes);
                }
            }
            Input::Find { token, at, .. } => {
                self.searches.insert((node, *token), *at);
            }
            _ => {}
        }
    }

    /// A core answers.
    pub(super) fn replied(&mut self, node: NodeId, reply: &Reply) -> Checked {
        match reply {
            Reply::Records { token, group, from, entries, is_last, .. } => {
                let checked = match self.tails.get_mut(&(node, *token)) {
                    Some(tail) => tail.sent(node, *group, *from, entries),
                    None => Ok(()),
                };
                if *is_last {
                    self.tails.remove(&(node, *token));
                }
                checked
            }
            Reply::Failed { token, group, error } => {
                self.tails.remove(&(node, *token));
                self.searches.remove(&(node, *token));
                let first = self.first(*group);
                match error {
                    RequestError::BeforeStart { from, start } => {
                        let is_gone = *start <= first || self.with_snapshots.contains(group);
                        ensure(from < start && is_gone, "only what was trimmed is gone", || {
                            format!("node {node} group {group}: {error}, kept are records from {first} on")
                        })
                    }
                    _ => Ok(()),
                }
            }
            Reply::Found { token, group, offset, end } => self.found(node, *token, *group, *offset, *end),
            _ => Ok(()),
        }
    }

    fn found(&mut self, node: NodeId, token: Token, group: GroupId, offset: Offset, end: Offset) -> Checked {
        let Some(at) = self.searches.remove(&(node, token)) else { return Ok(()) };
        let time = |offset: u64| {
            let times = self.groups.get(&group).map_or(&[][..], |one| &one.times);
            times.get(usize::try_from(offset).expect("a short log")).copied()
        };
        let is_late = offset == end || time(offset.0).is_some_and(|time| time >= at);
        // What is gone is not looked at.
        let has_all = !self.with_snapshots.contains(&group);
        let before = offset.0.checked_sub(1).filter(|before| has_all && *before >= self.first(group).0);
        let is_first = before.is_none_or(|before| time(before).is_some_and(|time| time < at));
        ensure(is_late && is_first && offset <= end, TIMES, || {
            let (before, here) = (before.map(time), time(offset.0));
            format!(
                "node {node} group {group}: {offset} of {end} for {at}; it is of {here:?}, before it {before:?}"
            )
        })
    }
}

impl Followed {
    fn sent(&mut self, node: NodeId, group: GroupId, from: Offset, entries: &[LogEntry]) -> Checked {
        let what = |what: &str| format!("node {node} group {group}: {what}, from {from}");
        ensure(entries.is_empty() || from == self.next, TAILS, || {
            what(&format!("the record due is {}", self.next))
        })?;
        ensure(entries.is_empty() || self.sent < self.granted, TAILS, || {
            what(&format!("{} bytes of {} were sent before", self.sent, self.granted))
        })?;
        for entry in entries {
            let Ok(batch) = Batch::parse(&entry.data) else {
                return ensure(false, TAILS, || what("no batch"));
            };
            let end = Offset(batch.base().0 + u64::from(batch.count()));
            ensure((batch.base()..end).contains(&self.next), TAILS, || {
                what(&format!("a batch of {} to {end}, the record due is {}", batch.base(), self.next))
            })?;
            self.next = end;
            self.sent += entry.data.len() as u64;
        }
        Ok(())
    }
}
