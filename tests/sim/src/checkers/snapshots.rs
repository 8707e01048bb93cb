//! A snapshot is of a committed and applied entry, with its term, offset and members; what it covers goes only once it
//! is published (Raft thesis 5.1 to 5.3); what is on its way of one is bounded, and nothing of it outlives its replica (this
//! project's promises).

use std::collections::{BTreeMap, BTreeSet};

use iroh_raft_core::{
    GroupAppend, GroupId, GroupState, Index, LogChange, LogStart, NodeId, Offset, Outputs, Snapshot,
    SnapshotEvent, SnapshotHead, SnapshotStep, Term,
};

use super::commits::Commits;
use super::durable::has_left;
use super::{Checked, ensure};
use crate::marks::Marks;

/// Chunks of one transfer on their way to or from the disk at most.
const CHUNKS_MAX: u32 = 8;

#[derive(Default, Debug)]
struct Replica {
    /// Last index of the published snapshot.
    published: Index,
    /// What the replica, as long as it has been there, has begun to take or to receive.
    begun: BTreeSet<(Index, Term)>,
    /// Whether one was there before that had a snapshot.
    is_successor: bool,
    /// Chunks to be written, of them those that are confirmed; and to be read, by whom they are for.
    written: u32,
    staged: u32,
    reading: BTreeMap<NodeId, u32>,
}

#[derive(Default, Debug)]
pub(super) struct Snapshots(BTreeMap<(NodeId, GroupId), Replica>);

impl Snapshots {
    /// A replica starts with what its disk has, which does not lie.
    pub(super) fn found(&self, node: NodeId, state: &GroupState) -> Checked {
        let Some(SnapshotHead { index, term, .. }) = state.snapshot.as_ref().map(|snapshot| &snapshot.head)
        else {
            return Ok(());
        };
        let begun = self.0.get(&(node, state.group)).map(|replica| &replica.begun);
        let is_own = !state.has_left() && begun.is_some_and(|begun| begun.contains(&(*index, *term)));
        ensure(is_own, "no snapshot outlives its replica", || {
            format!("node {node} group {}: of {index} in term {term}, begun were {begun:?}", state.group)
        })
    }

    /// A node starts with a replica.
    pub(super) fn booted(&mut self, node: NodeId, state: &GroupState, marks: &mut Marks) {
        let published = state.snapshot.as_ref().map(|snapshot| snapshot.head.index).unwrap_or_default();
        let replica = self.0.entry((node, state.group)).or_default();
        let (begun, is_successor) = (std::mem::take(&mut replica.begun), replica.is_successor);
        let is_reached = is_successor && !state.has_left();
        marks.add("replica restarted in the place of one with a snapshot", u64::from(is_reached));
        *replica = Replica { published, begun, is_successor, ..Replica::default() };
    }

    /// The driver tells a core what became of something.
    pub(super) fn event(
        &mut self,
        node: NodeId,
        group: GroupId,
        event: &SnapshotEvent,
        commits: &mut Commits,
        marks: &mut Marks,
    ) {
        let replica = self.0.entry((node, group)).or_default();
        match event {
            SnapshotEvent::Taken(snapshot) => {
                marks.add("snapshot taken", 1);
                marks.add("snapshot of several chunks", u64::from(snapshot.body.chunks() > 1));
                replica.published = replica.published.max(snapshot.head.index);
            }
            SnapshotEvent::Restored { index } => {
                marks.add("state restored from a snapshot", 1);
                commits.restored(node, group, *index);
            }
            SnapshotEvent::NotRestored { .. } => commits.restored(node, group, Index(0)),
            SnapshotEvent::Staged { chunks, .. } => {
                marks.add("transfer goes on", u64::from(replica.written == 0 && *chunks > 0));
                replica.staged = *chunks;
                replica.written = replica.written.max(*chunks);
            }
            SnapshotEvent::Published { index } => {
                marks.add("snapshot received", 1);
                replica.published = replica.published.max(*index);
            }
            SnapshotEvent::Chunk { to, .. } => {
                let reading = replica.reading.entry(*to).or_default();
                *reading = reading.saturating_sub(1);
            }
            SnapshotEvent::Damaged => {}
            SnapshotEvent::NotTaken { .. } => marks.add("snapshot not taken", 1),
            SnapshotEvent::Failed { .. } => marks.add("snapshot not received", 1),
        }
    }

    /// A turn of a core is over.
    /// `is_void`: whether a group's replica here is of a history that was given up.
    pub(super) fn turn(
        &mut self,
        node: NodeId,
        outputs: &Outputs,
        commits: &Commits,
        is_void: impl Fn(GroupId) -> bool,
    ) -> Checked {
        let parts = outputs.append.iter().flat_map(|append| &append.groups);
        // Not one that begins anew because its snapshot is damaged.
        let begins = |part: &&GroupAppend| {
            part.change == Some(LogChange::Remove) && !has_left(part) && part.under_repair != Some(true)
        };
        for part in parts.filter(begins) {
            let before = self.0.remove(&(node, part.group)).unwrap_or_default();
            let is_successor = before.is_successor || before.published > Index(0);
            self.0.insert((node, part.group), Replica { is_successor, ..Replica::default() });
        }
        for task in &outputs.snapshots {
            if let SnapshotStep::Take(head) | SnapshotStep::Receive(Snapshot { head, .. }) = &task.step {
                let replica = self.0.entry((node, task.group)).or_default();
                replica.begun.insert((head.index, head.term));
            }
        }
        for task in outputs.snapshots.iter().filter(|task| !is_void(task.group)) {
            let replica = self.0.entry((node, task.group)).or_default();
            let bounded = match &task.step {
                SnapshotStep::Take(head) => {
                    is_sound(node, task.group, head, commits)?;
                    let applied = commits.applied_upto(node, task.group);
                    ensure(head.index == applied, "snapshots are of what is applied", || {
                        format!("node {node} group {}: of {} while at {applied}", task.group, head.index)
                    })?;
                    0
                }
                SnapshotStep::Receive(snapshot) => {
                    is_sound(node, task.group, &snapshot.head, commits)?;
                    (replica.written, replica.staged) = (0, 0);
                    0
                }
                SnapshotStep::Write { chunk, .. } => {
                    replica.written = chunk + 1;
                    replica.written - replica.staged.min(replica.written)
                }
                SnapshotStep::Read { to, .. } => {
                    let reading = replica.reading.entry(*to).or_default();
                    *reading += 1;
                    *reading
                }
                SnapshotStep::Restore(_) | SnapshotStep::Publish(_) => 0,
            };
            ensure(bounded <= 2 * CHUNKS_MAX, "chunks on their way are bounded", || {
                format!("node {node} group {}: {bounded} with {:?}", task.group, task.step)
            })?;
        }
        let parts = outputs.append.iter().flat_map(|append| &append.groups);
        for part in parts.filter(|part| !has_left(part) && !is_void(part.group)) {
            if let Some(LogChange::CompactTo(place) | LogChange::StartAfter(place)) = part.change {
                let published = self.0.get(&(node, part.group)).map_or(Index(0), |replica| replica.published);
                let is_trimmed = place.offset <= commits.reading.first(part.group);
                let may_go = if commits.is_log(part.group) { is_trimmed } else { place.index <= published };
                ensure(may_go, "what goes is covered by a snapshot, or was trimmed", || {
                    format!(
                        "node {node} group {}: begins after {place:?}, published is {published}",
                        part.group
                    )
                })?;
                is_place(node, part.group, place, commits)?;
            }
        }
        Ok(())
    }
}

fn is_place(node: NodeId, group: GroupId, place: LogStart, commits: &Commits) -> Checked {
    let entry = commits.of(group).get(usize::try_from(place.index.0 - 1).expect("a short log"));
    ensure(
        entry.is_some_and(|entry| entry.term == place.term),
        "snapshots are of what is committed",
        || format!("node {node} group {group}: {place:?}, committed is {entry:?}"),
    )?;
    let offset = commits.offset_after(group, place.index);
    ensure(place.offset == offset, "offsets are dense across snapshots", || {
        format!("node {node} group {group}: {place:?}, its records end at {offset}")
    })
}

fn is_sound(node: NodeId, group: GroupId, head: &SnapshotHead, commits: &Commits) -> Checked {
    let SnapshotHead { index, term, offset, .. } = *head;
    is_place(node, group, LogStart { index, term, offset: Offset(offset.0) }, commits)?;
    let members = commits.members.at(group, index);
    ensure(head.conf_state == *members, "snapshots name the members of their entry", || {
        format!("node {node} group {group}: {head:?}, members are {members:?}")
    })
}
