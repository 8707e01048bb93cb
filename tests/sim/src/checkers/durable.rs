//! What each disk must hold: every flush that was reported durable, whole, and found again at every start
//! (this project's promise: "what `run_once` reported is found at every later start"). And what Raft wants of it: terms
//! grow, and a vote stands for its term (Raft paper, figure 2), also of a replica that left and begins again.

use std::collections::{BTreeMap, VecDeque};

use bytes::Bytes;
use iroh_raft_core::{
    Append, ConfState, FlushSeq, GroupAppend, GroupId, GroupState, HardState, Index, Invite, LogChange,
    LogPosition, LogStart, NodeId, Placement, ShardId, Term,
};

use super::log::id_of;
use super::{Checked, EntryId, ensure};
use crate::marks::Marks;

const FOUND_AGAIN: &str = "what was durable is found again";

/// A replica on its disk.
#[derive(Clone, Default, Debug)]
pub(super) struct Stored {
    pub(super) hard_state: HardState,
    conf_state: Option<ConfState>,
    /// From the first entry on, whether the disk still has it or a snapshot covers it.
    meta: Bytes,
    pub(super) entries: Vec<EntryId>,
    start: LogStart,
    is_under_repair: bool,
    pub(super) joined_at: LogPosition,
    /// What stood after its entries, and is damaged: it was durable.
    lost: Vec<EntryId>,
    /// Position of the first of them.
    lost_from: usize,
    /// How many of the first of them stand on the disk as before: it was not told that they are void.
    standing: usize,
    /// The replica has left: this is where it was.
    pub(super) has_left: bool,
    /// Term and vote of the newest hard state, whatever became of the log.
    voted: (Term, NodeId),
}

#[derive(Debug)]
struct Part {
    group: GroupId,
    change: Option<LogChange>,
    has_left: bool,
    hard_state: Option<HardState>,
    conf_state: Option<ConfState>,
    start: Option<LogStart>,
    /// The log is void but for these, which a snapshot covers.
    covered: Option<Vec<EntryId>>,
    under_repair: Option<bool>,
    joined_at: Option<LogPosition>,
    meta: Option<Bytes>,
    first: Index,
    entries: Vec<EntryId>,
}

impl Stored {
    /// How many entries were durable, with those that are damaged by now.
    pub(super) fn last_held(&self) -> usize {
        let lost_to = if self.lost.is_empty() { 0 } else { self.lost_from + self.lost.len() };
        self.entries.len().max(lost_to)
    }

    fn take(&mut self, part: Part) -> Checked {
        if part.change == Some(LogChange::Remove) {
            // A replica that begins anew because its snapshot is damaged still owes what it had.
            let is_owed = part.under_repair == Some(true);
            let lost = if is_owed { std::mem::take(&mut self.lost) } else { Vec::new() };
            *self = Stored { voted: self.voted, lost, ..Stored::default() };
        }
        if let Some(HardState { term, vote, .. }) = part.hard_state {
            let (term_before, vote_before) = std::mem::replace(&mut self.voted, (term, vote));
            let stands = vote == vote_before || vote_before == NodeId(0);
            ensure(term > term_before || (term == term_before && stands), "terms grow, votes stand", || {
                format!("group {}: term {term}, vote {vote} after {term_before}, {vote_before}", part.group)
            })?;
        }
        if let Some(LogChange::StartAfter(_) | LogChange::Remove) = part.change {
            self.has_left = part.has_left;
        }
        if matches!(part.change, Some(LogChange::CutAfter(_) | LogChange::StartAfter(_))) {
            self.standing = 0;
        }
        if let Some(LogChange::CutAfter(place)) = part.change {
            self.entries.truncate(usize::try_from(place.index.0).expect("a short log"));
        }
        self.is_under_repair = part.under_repair.unwrap_or(self.is_under_repair);
        self.joined_at = part.joined_at.unwrap_or(self.joined_at);
        if part.under_repair == Some(false) {
            self.lost.clear();
        }
        self.hard_state = part.hard_state.unwrap_or(self.hard_state);
        self.conf_state = part.conf_state.or(self.conf_state.take());
        self.start = part.start.unwrap_or(self.start);
        self.entries = part.covered.unwrap_or_else(|| std::mem::take(&mut self.entries));
        self.meta = part.meta.unwrap_or(std::mem::take(&mut self.meta));
        if !part.entries.is_empty() {
            self.entries.truncate(usize::try_from(part.first.0 - 1).expect("a short log"));
            self.entries.extend(part.entries);
        }
        Ok(())
    }
}

impl Stored {
    /// What is damaged, with where it stood.
    pub(super) fn lost(&self) -> impl Iterator<Item = (Index, EntryId)> + '_ {
        (self.lost_from as u64 + 1..).map(Index).zip(self.lost.iter().copied())
    }

    /// What follows an entry turns out to be damaged.
    fn lose_after(&mut self, last: Index) {
        let kept = usize::try_from(last.0).expect("a short log");
        if kept < self.entries.len() {
            let mut lost = self.entries.split_off(kept);
            self.standing = lost.len();
            // What a replica under repair has lost before, and did not have again.
            let before = std::mem::take(&mut self.lost);
            lost.extend(before.into_iter().skip((kept + lost.len()).saturating_sub(self.lost_from)));
            (self.lost, self.lost_from) = (lost, kept);
        }
    }

    /// A start that reads no old blocks does not notice again what is damaged in them.
    fn take_back(&mut self) {
        self.lost_from += self.standing;
        self.entries.extend(self.lost.drain(..std::mem::take(&mut self.standing)));
    }
}

#[derive(Default, Debug)]
struct OneShard {
    groups: BTreeMap<GroupId, Stored>,
    persisted: FlushSeq,
    /// Handed to the writer, and not yet known durable.
    pending: VecDeque<(FlushSeq, Vec<Part>)>,
}

impl OneShard {
    fn take_upto(&mut self, seq: FlushSeq) -> Checked {
        while self.pending.front().is_some_and(|(flush, _)| *flush <= seq) {
            for part in self.pending.pop_front().expect("just seen").1 {
                self.groups.entry(part.group).or_default().take(part)?;
            }
        }
        Ok(())
    }
}

/// Whether this is all that stays of a replica.
pub(super) fn has_left(part: &GroupAppend) -> bool {
    part.conf_state == Some(ConfState::default())
}

#[derive(Default, Debug)]
pub(super) struct Durable {
    shards: BTreeMap<(NodeId, ShardId), OneShard>,
    /// Where each replica is.
    places: BTreeMap<(NodeId, GroupId), ShardId>,
}

impl Durable {
    /// `committed`: the entries of a group that are known to be.
    pub(super) fn handed_over<'a>(
        &mut self,
        node: NodeId,
        shard: ShardId,
        append: &Append,
        committed: impl Fn(GroupId, Index) -> &'a [EntryId],
    ) {
        let part = |part: &GroupAppend| Part {
            group: part.group,
            change: part.change,
            has_left: has_left(part),
            hard_state: part.hard_state,
            conf_state: part.conf_state.clone(),
            start: match part.change {
                Some(LogChange::CompactTo(start) | LogChange::StartAfter(start)) => Some(start),
                Some(LogChange::CutAfter(_) | LogChange::Remove) | None => None,
            },
            covered: match part.change {
                Some(LogChange::StartAfter(_)) if has_left(part) => Some(Vec::new()),
                Some(LogChange::StartAfter(start)) => Some(committed(part.group, start.index).to_vec()),
                _ => None,
            },
            under_repair: part.under_repair,
            joined_at: part.joined_at,
            meta: part.meta.clone(),
            first: part.entries.first().map_or(Index(0), |entry| entry.index),
            entries: part.entries.iter().map(id_of).collect(),
        };
        for part in &append.groups {
            self.places.insert((node, part.group), shard);
        }
        let parts = append.groups.iter().map(part).collect();
        self.shards.entry((node, shard)).or_default().pending.push_back((append.seq, parts));
    }

    pub(super) fn persisted(&mut self, node: NodeId, shard: ShardId, seq: FlushSeq) -> Checked {
        let one = self.shards.entry((node, shard)).or_default();
        let last = one.pending.back().map_or(one.persisted, |(last, _)| *last);
        one.persisted = one.persisted.max(seq);
        one.take_upto(seq)?;
        ensure(seq <= last, "only what was handed over is reported durable", || {
            format!("node {node} shard {shard} reports flush {seq}, the last one is {last}")
        })
    }

    /// Compares what recovery found with what must be there.
    pub(super) fn booted(
        &mut self,
        node: NodeId,
        shard: ShardId,
        last_seq: FlushSeq,
        found: &[GroupState],
        marks: &mut Marks,
    ) -> Checked {
        let one = self.shards.entry((node, shard)).or_default();
        ensure(last_seq >= one.persisted, FOUND_AGAIN, || {
            let persisted = one.persisted;
            format!("node {node} shard {shard} is back at flush {last_seq}, {persisted} was reported durable")
        })?;
        one.take_upto(last_seq)?;
        marks.add("torn flush dropped at start", u64::from(!one.pending.is_empty()));
        one.pending.clear();
        one.persisted = last_seq;
        for (group, stored) in &mut one.groups {
            let state = found.iter().find(|state| state.group == *group);
            ensure(state.is_some(), FOUND_AGAIN, || format!("node {node} has lost group {group}"))?;
            if let Some(state) = state {
                found_again(node, stored, state)?;
            }
        }
        Ok(())
    }

    /// A node's groups are on these shards from now on, with all that their disk has of them. What it had of each was found
    /// just before, so nothing of it is on its way. Flushes are counted anew.
    pub(super) fn moved(&mut self, node: NodeId, placement: &Placement) {
        let (its, others) =
            std::mem::take(&mut self.shards).into_iter().partition(|((of, _), _)| *of == node);
        self.shards = others;
        let its: BTreeMap<_, OneShard> = its;
        for (group, stored) in its.into_values().flat_map(|shard| shard.groups) {
            let shard = placement.shard_of(group);
            self.places.insert((node, group), shard);
            self.shards.entry((node, shard)).or_default().groups.insert(group, stored);
        }
    }

    /// Compares what is found of one replica while its shard runs.
    pub(super) fn reopened(&mut self, node: NodeId, shard: ShardId, state: &GroupState) -> Checked {
        let one = self.shards.entry((node, shard)).or_default();
        one.groups.get_mut(&state.group).map_or(Ok(()), |stored| found_again(node, stored, state))
    }

    /// The snapshot that a replica's log begins after is damaged: nothing that it has counts.
    pub(super) fn lose_all(&mut self, node: NodeId, group: GroupId) {
        let Some(shard) = self.places.get(&(node, group)) else { return };
        let one = self.shards.get_mut(&(node, *shard));
        if let Some(stored) = one.and_then(|one| one.groups.get_mut(&group)) {
            stored.lose_after(Index(0));
        }
    }

    /// A replica is about to begin. One that left before does so only for a change of members after that which removed it.
    pub(super) fn invited(&self, node: NodeId, invite: &Invite) -> Checked {
        let left = self.of(node, invite.group).filter(|stored| stored.has_left);
        let left = left.map(|stored| LogPosition { term: stored.start.term, index: stored.start.index });
        ensure(
            left.is_none_or(|left| invite.since > left),
            "who left comes back for a later change only",
            || format!("node {node} left after {left:?}: {invite:?}"),
        )
    }

    /// What a node's disk holds of a group.
    pub(super) fn of(&self, node: NodeId, group: GroupId) -> Option<&Stored> {
        let shard = self.places.get(&(node, group))?;
        self.shards.get(&(node, *shard))?.groups.get(&group)
    }

    /// Whether a node's disk has an entry, or a snapshot in its place.
    pub(super) fn has(&self, node: NodeId, group: GroupId, index: Index, term: Term) -> bool {
        let Some(stored) = self.of(node, group) else { return false };
        let at = usize::try_from(index.0 - 1).expect("a short log");
        stored.entries.get(at).is_some_and(|entry| entry.term == term)
    }

    /// Whether an entry was durable there, also if it is damaged by now.
    pub(super) fn holds(&self, node: NodeId, group: GroupId, index: Index, term: Term) -> bool {
        let Some(stored) = self.of(node, group) else { return false };
        let Some(at) = usize::try_from(index.0).expect("a short log").checked_sub(1) else { return false };
        let has = |entry: Option<&EntryId>| entry.is_some_and(|entry| entry.term == term);
        has(stored.entries.get(at))
            || has(at.checked_sub(stored.lost_from).and_then(|at| stored.lost.get(at)))
    }
}

fn found_again(node: NodeId, stored: &mut Stored, state: &GroupState) -> Checked {
    stored.take_back();
    if state.damage.is_none() {
        return same(node, stored, state);
    }
    stored.lose_after(state.last);
    Ok(())
}

fn same(node: NodeId, stored: &Stored, state: &GroupState) -> Checked {
    let group = state.group;
    ensure(state.hard_state == stored.hard_state, FOUND_AGAIN, || {
        format!("node {node} group {group}: {:?} instead of {:?}", state.hard_state, stored.hard_state)
    })?;
    ensure(stored.conf_state.as_ref() == Some(&state.conf_state), FOUND_AGAIN, || {
        format!("node {node} group {group}: {:?} instead of {:?}", state.conf_state, stored.conf_state)
    })?;
    ensure(state.start == stored.start, FOUND_AGAIN, || {
        format!("node {node} group {group}: begins after {:?} instead of {:?}", state.start, stored.start)
    })?;
    ensure(state.is_under_repair == stored.is_under_repair, FOUND_AGAIN, || {
        format!(
            "node {node} group {group}: under repair is {} instead of {}",
            state.is_under_repair, stored.is_under_repair
        )
    })?;
    ensure(state.joined_at == stored.joined_at, FOUND_AGAIN, || {
        format!(
            "node {node} group {group}: joined at {:?} instead of {:?}",
            state.joined_at, stored.joined_at
        )
    })?;
    ensure(stored.meta == state.meta, FOUND_AGAIN, || {
        format!("node {node} group {group}: the table {:?} instead of {:?}", state.meta, stored.meta)
    })?;
    let last = if stored.has_left { stored.start.index } else { Index(stored.entries.len() as u64) };
    ensure(state.last == last, FOUND_AGAIN, || {
        format!("node {node} group {group}: the log ends at {} instead of {last}", state.last)
    })?;
    let mut runs = Vec::new();
    for (at, entry) in
        (1..).zip(&stored.entries).skip(usize::try_from(stored.start.index.0).expect("a short log"))
    {
        if runs.last().is_none_or(|run: &iroh_raft_core::TermRun| run.term != entry.term) {
            runs.push(iroh_raft_core::TermRun { first: Index(at), term: entry.term });
        }
    }
    ensure(state.term_runs == runs, FOUND_AGAIN, || {
        format!("node {node} group {group}: terms {:?} instead of {runs:?}", state.term_runs)
    })?;
    let wrong = state.tail.iter().find(|entry| {
        let at = usize::try_from(entry.index.0 - 1).expect("a short log");
        stored.entries.get(at) != Some(&id_of(entry))
    });
    ensure(wrong.is_none(), FOUND_AGAIN, || format!("node {node} group {group}: another entry {wrong:?}"))
}
