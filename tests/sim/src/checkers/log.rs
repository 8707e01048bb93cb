//! Log matching, leader append-only and leader completeness (Raft paper, figure 3; 5.3 and 5.4).

use std::collections::BTreeMap;

use iroh_raft_core::batch::{Batch, Run};
use iroh_raft_core::group_command::GroupCommands;
use iroh_raft_core::{
    EntryKind, GroupAppend, GroupId, Index, LogChange, LogEntry, LogStart, MemberChange, NodeId, Offset,
    Term, WallTime, decode_change, decode_recovery,
};

use super::durable::has_left;
use super::{Checked, EntryId, ensure};
use crate::marks::Marks;

/// An entry of a term at an index, whoever holds it.
#[derive(Debug)]
pub(super) struct Known {
    id: EntryId,
    /// Term of the entry before it, once somebody has appended it.
    before: Option<Term>,
    /// Its first record's offset and a hash of each record.
    pub(super) base: Offset,
    pub(super) records: Vec<u64>,
    /// Time of its records.
    pub(super) at: WallTime,
    /// Which of them clients appended in sessions.
    pub(super) runs: Vec<Run>,
    /// What it commands its group.
    pub(super) commands: Option<GroupCommands>,
    /// What it changes about the members.
    pub(super) changes: Option<Vec<MemberChange>>,
    /// The only member from it on, if it recovers its group.
    pub(super) survivor: Option<NodeId>,
}

#[derive(Default, Debug)]
pub(super) struct Logs {
    known: BTreeMap<(GroupId, Index, Term), Known>,
    /// Every replica's log with what is on its way to the disk.
    logs: BTreeMap<(NodeId, GroupId), Vec<EntryId>>,
}

pub(super) fn id_of(entry: &LogEntry) -> EntryId {
    EntryId { term: entry.term, hash: record_hash(&entry.data) << 2 | entry.kind as u64 }
}

/// A hash of a record, to compare it by.
pub(crate) fn record_hash(record: &[u8]) -> u64 {
    (record.len() as u64) << 32 | u64::from(crc32c::crc32c(record))
}

impl Logs {
    pub(super) fn of(&self, node: NodeId, group: GroupId) -> &[EntryId] {
        self.logs.get(&(node, group)).map_or(&[], Vec::as_slice)
    }

    pub(super) fn known(&self, group: GroupId, index: Index, term: Term) -> Option<&Known> {
        self.known.get(&(group, index, term))
    }

    /// Whether an entry is the one that everybody has seen at its index and term.
    pub(super) fn check(&mut self, group: GroupId, entry: &LogEntry) -> Checked {
        let id = id_of(entry);
        let known = self.known.entry((group, entry.index, entry.term)).or_insert_with(|| {
            let batch = entry.batch().and_then(|batch| Batch::parse(batch).ok());
            let base = batch.as_ref().map_or(Offset(0), Batch::base);
            let records = batch.iter().flat_map(Batch::records).map(|(_, record)| record_hash(record));
            let is_change = entry.kind == EntryKind::ConfChangeV2;
            let changes = is_change.then(|| decode_change(&entry.data)).flatten();
            let at = batch.as_ref().map_or(WallTime(0), Batch::at);
            let commands = entry.group_commands().and_then(|data| GroupCommands::decode(data).ok());
            let runs = batch.iter().flat_map(Batch::runs).collect();
            let survivor = is_change.then(|| decode_recovery(&entry.data)).flatten();
            let records = records.collect();
            Known { id, before: None, base, records, at, runs, commands, changes, survivor }
        });
        ensure(known.id == id, "entries of one index and term are the same", || {
            format!("group {group}: two entries {} of term {}", entry.index, entry.term)
        })
    }

    /// A replica appends entries. A leader only ever adds to its end. A log that begins after a snapshot counts as what
    /// that covers, and what was compacted away as still there.
    pub(super) fn appended(
        &mut self,
        (node, group): (NodeId, GroupId),
        part: &GroupAppend,
        is_leader: bool,
        covered: Option<&[EntryId]>,
        marks: &mut Marks,
    ) -> Checked {
        if has_left(part) || part.change == Some(LogChange::Remove) {
            self.logs.remove(&(node, group));
        } else if let (Some(LogChange::StartAfter(_)), Some(covered)) = (part.change, covered) {
            marks.add("log replaced by a snapshot", 1);
            self.logs.insert((node, group), covered.to_vec());
        } else if let (Some(LogChange::CutAfter(place)), Some(log)) =
            (part.change, self.logs.get_mut(&(node, group)))
        {
            log.truncate(usize::try_from(place.index.0).expect("a short log"));
        }
        let Some(first) = part.entries.first() else { return Ok(()) };
        part.entries.iter().try_for_each(|entry| self.check(group, entry))?;
        let log = self.logs.entry((node, group)).or_default();
        let kept = usize::try_from(first.index.0).expect("a short log").saturating_sub(1);
        ensure(kept <= log.len(), "logs have no gaps", || {
            format!("node {node} group {group} goes on at {}, its log ends at {}", first.index, log.len())
        })?;
        ensure(!is_leader || kept == log.len(), "leaders only append", || {
            format!("node {node} leads group {group} and overwrites its entry {}", first.index)
        })?;
        marks.add("follower's suffix cut", u64::from(kept < log.len()));
        log.truncate(kept);
        for entry in &part.entries {
            let before = log.last().map_or(Term(0), |last| last.term);
            log.push(id_of(entry));
            let known = self.known.get_mut(&(group, entry.index, entry.term)).expect("checked above");
            let known_before = *known.before.get_or_insert(before);
            ensure(known_before == before, "logs that share an entry share all before it", || {
                let (index, term) = (entry.index, entry.term);
                format!(
                    "node {node} group {group}: entry {index} of term {term} after terms {before} and {known_before}"
                )
            })?;
        }
        Ok(())
    }

    /// The entries up to a place, of whoever has that one.
    pub(super) fn upto(&self, group: GroupId, place: LogStart) -> &[EntryId] {
        let count = usize::try_from(place.index.0).expect("a short log");
        let logs = self.logs.iter().filter(|((_, of), _)| *of == group).map(|(_, log)| log);
        let has_it =
            |log: &&Vec<EntryId>| log.len() >= count && count > 0 && log[count - 1].term == place.term;
        logs.filter(has_it).map(|log| &log[..count]).next().unwrap_or_default()
    }

    /// A replica starts again, in this term, with so many of its entries. What a lone voter wrote in a later one, which is not
    /// durable, nobody was told of: it may campaign in that term again and write something else.
    pub(super) fn restart(&mut self, node: NodeId, group: GroupId, term: Term, entries: &[EntryId]) {
        self.logs.insert((node, group), entries.to_vec());
        let logs: Vec<_> = self.logs.iter().filter(|((_, of), _)| *of == group).map(|(_, log)| log).collect();
        let is_held = |index: Index, term: Term| {
            let at = usize::try_from(index.0).expect("a short log") - 1;
            logs.iter().any(|log| log.get(at).is_some_and(|entry| entry.term == term))
        };
        let known = self.known.range((group, Index(0), Term(0))..=(group, Index(u64::MAX), Term(u64::MAX)));
        let later = known.map(|(key, _)| *key).filter(|(_, _, of)| *of > term);
        let void: Vec<_> = later.filter(|(_, index, of)| !is_held(*index, *of)).collect();
        void.iter().for_each(|key| drop(self.known.remove(key)));
    }
}

/// A new leader has everything that was committed in earlier terms.
pub(super) fn is_complete(
    node: NodeId,
    group: GroupId,
    term: Term,
    log: &[EntryId],
    committed: &[EntryId],
) -> Checked {
    let lacking =
        committed.iter().enumerate().find(|(at, entry)| entry.term < term && log.get(*at) != Some(entry));
    ensure(lacking.is_none(), "leaders have all that is committed", || {
        let index = lacking.map_or(0, |(at, _)| at + 1);
        format!("node {node} leads group {group} in term {term} without committed entry {index}")
    })
}
