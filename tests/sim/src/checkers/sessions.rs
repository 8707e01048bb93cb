//! Client sessions (Raft thesis 6.3, and this project's promises): a session's records are in the log in order, without a
//! gap, each at most once, and only while the session lives; every answer to a run is that of the first; what replicas know
//! of sessions is what the committed log says, also after restarts and snapshots.

use std::collections::{BTreeMap, BTreeSet};

use iroh_raft_core::batch::Run;
use iroh_raft_core::{
    GroupCommand, GroupId, GroupMeta, Index, NodeId, Offset, Owner, SESSIONS_MAX, Sequence, SessionId, Term,
    WallTime,
};

use super::log::Known;
use super::{Checked, ensure};

const ONCE: &str = "a session's records are in the log once, in order";
const FIRST: &str = "a retry gets the answer of the first";
const TABLES: &str = "sessions are what the committed log says";

/// What a client was told of a run: where it is.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub(crate) struct Told {
    pub(crate) first: Offset,
    pub(crate) count: u32,
    pub(crate) index: Index,
    pub(crate) term: Term,
}

#[derive(Clone, Debug)]
struct Open {
    owner: Owner,
    ttl_ms: u64,
    touched: WallTime,
    next: Sequence,
}

impl Open {
    fn is_expired(&self, at: WallTime) -> bool {
        self.touched.0.saturating_add(self.ttl_ms) < at.0
    }
}

type Table = BTreeMap<SessionId, Open>;

#[derive(Default, Debug)]
struct OneGroup {
    /// From an index on; none before the first session.
    tables: Vec<(Index, Table)>,
    /// Records that clients append in sessions, by their hashes, and which of them are committed.
    sent: BTreeSet<u64>,
    placed: BTreeSet<u64>,
}

#[derive(Default, Debug)]
pub(crate) struct Sessions {
    groups: BTreeMap<GroupId, OneGroup>,
    told: BTreeMap<(SessionId, Sequence), Told>,
    responses: BTreeMap<(SessionId, Sequence), Vec<u8>>,
}

impl Sessions {
    /// A client is about to append records in a session, for the first time.
    pub(crate) fn sent(&mut self, group: GroupId, hashes: &[u64]) {
        self.groups.entry(group).or_default().sent.extend(hashes);
    }

    /// An entry is committed; the first time that anybody knows of it.
    pub(super) fn committed(&mut self, group: GroupId, index: Index, known: &Known) -> Checked {
        let one = self.groups.entry(group).or_default();
        let commands = known.commands.iter().flat_map(|commands| &commands.commands);
        let is_about = |command: &&GroupCommand| {
            matches!(command, GroupCommand::OpenSession { .. } | GroupCommand::CloseSession { .. })
        };
        let commands: Vec<&GroupCommand> = commands.filter(is_about).collect();
        let at = known.commands.as_ref().map_or(known.at, |commands| commands.at);
        if !commands.is_empty() || !known.runs.is_empty() {
            let mut table = one.tables.last().map(|(_, table)| table.clone()).unwrap_or_default();
            commands.into_iter().for_each(|command| take(&mut table, command, at));
            for run in &known.runs {
                let found = table.get_mut(&run.session).filter(|open| !open.is_expired(at));
                let expected = found.as_ref().map(|open| open.next);
                let Some(open) = found.filter(|open| open.next == run.first) else {
                    return ensure(false, ONCE, || {
                        format!("group {group} entry {index} of {at}: {run:?}, next is {expected:?}")
                    });
                };
                open.next.0 += u64::from(run.count);
                open.touched = open.touched.max(at);
            }
            one.tables.push((index, table));
        }
        for (place, hash) in (0..).zip(&known.records) {
            if !one.sent.contains(hash) {
                continue;
            }
            let is_in_run = |run: &Run| (run.place..run.place + run.count).contains(&place);
            ensure(known.runs.iter().any(is_in_run), ONCE, || {
                format!(
                    "group {group} entry {index}: record {place} of a session is in it without the session"
                )
            })?;
            ensure(one.placed.insert(*hash), ONCE, || {
                format!("group {group} entry {index}: record {place} is committed for the second time")
            })?;
        }
        Ok(())
    }

    /// A client was told where a run is.
    pub(crate) fn told(&mut self, session: SessionId, first: Sequence, told: Told) -> Checked {
        let before = *self.told.entry((session, first)).or_insert(told);
        ensure(before == told, FIRST, || {
            format!("{session} from {first}: {told:?}, the first was {before:?}")
        })
    }

    /// Where a client was told that a run is.
    pub(crate) fn place(&self, session: SessionId, first: Sequence) -> Option<Told> {
        self.told.get(&(session, first)).copied()
    }

    /// A client was told the responses to the commands of a run.
    pub(crate) fn responded(&mut self, session: SessionId, first: Sequence, responses: &[u8]) -> Checked {
        let before = self.responses.entry((session, first)).or_insert_with(|| responses.to_vec());
        ensure(before == responses, FIRST, || {
            format!("{session} from {first}: {responses:x?}, the first response was {before:x?}")
        })
    }

    /// How a replica stands.
    pub(super) fn stands(&self, node: NodeId, group: GroupId, commit: Index, meta: &GroupMeta) -> Checked {
        let tables = self.groups.get(&group).map_or(&[][..], |one| &one.tables);
        let count = tables.partition_point(|(since, _)| *since <= commit.max(meta.as_of()));
        let table = count.checked_sub(1).map(|at| &tables[at].1);
        let wanted = table.into_iter().flatten().map(|(session, open)| (*session, open.next));
        ensure(meta.open_sessions().eq(wanted), TABLES, || {
            let found: Vec<_> = meta.open_sessions().collect();
            format!("node {node} group {group} at commit {commit}: {found:?} instead of {table:?}")
        })
    }
}

fn take(table: &mut Table, command: &GroupCommand, at: WallTime) {
    match *command {
        GroupCommand::OpenSession { session, owner, ttl_ms } => {
            table.retain(|_, open| !open.is_expired(at));
            if let Some(open) = table.get_mut(&session) {
                if open.owner == owner {
                    (open.touched, open.ttl_ms) = (open.touched.max(at), ttl_ms);
                }
            } else if table.len() < SESSIONS_MAX {
                table.insert(session, Open { owner, ttl_ms, touched: at, next: Sequence(0) });
            }
        }
        GroupCommand::CloseSession { session, owner } => {
            table.retain(|id, open| *id != session || open.owner != owner);
        }
        _ => {}
    }
}
