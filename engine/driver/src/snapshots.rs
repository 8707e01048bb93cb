//! What a shard's turn does about snapshots: a little of it in each, the rest by a worker that may block.
//!
//! A snapshot is taken of a frozen state, one piece in a turn, and restored one chunk in a turn: no other group of
//! the shard waits for longer than that takes. Pieces and chunks on their way are bounded, whatever the size of the
//! state.

mod worker;

use std::collections::{BTreeMap, VecDeque};
use std::fmt;

use bytes::Bytes;
use iroh_raft_core::mutants::{self, Mutant};
use iroh_raft_core::{
    FlushSeq, GroupId, Index, RestoreProblem, Snapshot, SnapshotEvent, SnapshotHead, SnapshotStep,
    SnapshotTask,
};
use iroh_raft_netbridge::ring::{Consumer, Producer};

use crate::machines::Machines;
use crate::state_machine::{Restore, SNAPSHOT_PIECE_BYTES_MAX, SnapshotView};

pub use worker::SnapshotWorker;

/// Pieces of a snapshot that is taken, on their way to the disk.
const PIECES_IN_FLIGHT_MAX: usize = 4;
/// Chunks of a snapshot that is restored, on their way from the disk.
const CHUNKS_AHEAD_MAX: u32 = 4;

/// Work for a shard's [`SnapshotWorker`].
#[derive(Debug)]
pub struct SnapshotJob {
    pub(crate) group: GroupId,
    pub(crate) work: Work,
}

#[derive(Debug)]
pub(crate) enum Work {
    /// Begin a snapshot that is taken here.
    Begin(SnapshotHead),
    /// Write its next bytes.
    Append(Vec<u8>),
    /// It is complete.
    Finish,
    /// Drop it.
    Abort,
    /// Drop the published one, unless another took its place: it is damaged.
    Drop {
        index: Index,
    },
    /// The replica has left: drop all that there is of the group.
    Remove,
    Receive(Snapshot),
    Write {
        index: Index,
        chunk: u32,
        data: Bytes,
    },
    Publish(Snapshot),
    Read {
        index: Index,
        chunk: u32,
        whose: Reader,
    },
}

#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub(crate) enum Reader {
    Peer(iroh_raft_core::NodeId),
    Restore,
}

/// What a [`SnapshotWorker`] has done.
#[derive(Debug)]
pub struct SnapshotDone {
    pub(crate) group: GroupId,
    pub(crate) what: Done,
}

#[derive(Debug)]
pub(crate) enum Done {
    /// A piece is written.
    Appended,
    /// Nothing is left of a replica that has left.
    Removed,
    /// For the core.
    Event(SnapshotEvent),
    /// A chunk for the state machine, or why there is none.
    ToRestore { index: Index, chunk: u32, data: Result<Bytes, Unreadable> },
}

/// Why a chunk cannot be read.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub(crate) enum Unreadable {
    /// The medium failed.
    Io,
    /// It is damaged.
    Gone,
    /// It is of another snapshot by now.
    Replaced,
}

/// A snapshot being taken.
struct Taking {
    /// `None` when all of it is on its way.
    view: Option<Box<dyn SnapshotView>>,
    in_flight: usize,
}

/// A state machine being restored.
struct Restoring {
    group: GroupId,
    snapshot: Snapshot,
    /// Chunk to be asked for, and to be taken over, next; `None` before the first.
    asked: u32,
    taken: Option<u32>,
    checksum: u32,
}

/// The snapshots of a shard's groups, as far as its turns have to do with them.
pub struct Snapshots {
    jobs: Producer<SnapshotJob>,
    done: Consumer<SnapshotDone>,
    /// Jobs that found the ring full, in order; as many as the core lets there be.
    waiting: VecDeque<SnapshotJob>,
    taking: BTreeMap<GroupId, Taking>,
    /// The first is worked on.
    restoring: VecDeque<Restoring>,
    /// Groups whose replica has left, until nothing of its snapshots is there: with the flush that has to be durable
    /// before they go, `None` once they are on their way out.
    leaving: BTreeMap<GroupId, Option<FlushSeq>>,
}

impl Snapshots {
    /// `jobs` go to whoever calls the shard's [`SnapshotWorker`], and come back as `done`.
    #[must_use]
    pub fn new(jobs: Producer<SnapshotJob>, done: Consumer<SnapshotDone>) -> Snapshots {
        let (waiting, taking, restoring, leaving) = Default::default();
        Snapshots { jobs, done, waiting, taking, restoring, leaving }
    }

    /// Whether something can go on at once.
    pub(crate) fn has_work(&self) -> bool {
        let can_piece = |taking: &Taking| taking.view.is_some() && taking.in_flight < PIECES_IN_FLIGHT_MAX;
        let is_fresh = self.restoring.front().is_some_and(|restoring| restoring.taken.is_none());
        !self.done.is_empty() || self.taking.values().any(can_piece) || is_fresh
    }

    fn push(&mut self, group: GroupId, work: Work) {
        let job = SnapshotJob { group, work };
        if !self.waiting.is_empty() {
            return self.waiting.push_back(job);
        }
        if let Err(job) = self.jobs.push(job) {
            self.waiting.push_back(job);
        }
    }

    /// What the core asks for; `None` unless it can be answered at once.
    pub(crate) fn begin(
        &mut self,
        task: SnapshotTask,
        machines: &Machines,
        is_space_low: bool,
    ) -> Option<SnapshotEvent> {
        let SnapshotTask { group, step } = task;
        let work = match step {
            // What is taken on already has to find room first.
            SnapshotStep::Take(_) if is_space_low => {
                return Some(SnapshotEvent::NotTaken { may_retry: true });
            }
            SnapshotStep::Receive(snapshot) if is_space_low => {
                return Some(SnapshotEvent::Failed { index: snapshot.head.index });
            }
            SnapshotStep::Take(head) => {
                let Some(view) = machines.freeze(group) else {
                    return Some(SnapshotEvent::NotTaken { may_retry: false });
                };
                self.taking.insert(group, Taking { view: Some(view), in_flight: 0 });
                Work::Begin(head)
            }
            SnapshotStep::Restore(snapshot) => {
                self.restoring.retain(|restoring| restoring.group != group);
                let (asked, taken, checksum) = (0, None, 0);
                self.restoring.push_back(Restoring { group, snapshot, asked, taken, checksum });
                return None;
            }
            SnapshotStep::Receive(snapshot) => {
                // Of a group one is written at a time.
                self.taking.remove(&group);
                Work::Receive(snapshot)
            }
            SnapshotStep::Write { index, chunk, data } => Work::Write { index, chunk, data },
            SnapshotStep::Publish(snapshot) => Work::Publish(snapshot),
            SnapshotStep::Read { index, chunk, to } => Work::Read { index, chunk, whose: Reader::Peer(to) },
        };
        self.push(group, work);
        None
    }

    /// A group begins anew: what was under way with its state machine is void.
    pub(crate) fn forget(&mut self, group: GroupId) {
        self.restoring.retain(|restoring| restoring.group != group);
        if self.taking.remove(&group).is_some() {
            self.push(group, Work::Abort);
        }
    }

    /// A replica has left: what was under way is void, and its snapshots go once flush `after` is durable, which says so. If it
    /// is lost, the replica is there again, and needs them.
    pub(crate) fn handle_left(&mut self, group: GroupId, after: FlushSeq) {
        if mutants::is(Mutant::SnapshotOutlivesReplica) {
            return;
        }
        self.restoring.retain(|restoring| restoring.group != group);
        self.taking.remove(&group);
        self.leaving.insert(group, Some(after));
    }

    /// Whether there may be something of a replica that has left: no other may begin in its place.
    pub(crate) fn is_leaving(&self, group: GroupId) -> bool {
        self.leaving.contains_key(&group)
    }

    /// Everything up to a flush is durable.
    pub(crate) fn handle_persisted(&mut self, seq: FlushSeq) {
        let due = self.leaving.iter_mut().filter(|(_, after)| after.is_some_and(|after| after <= seq));
        let due: Vec<GroupId> = due
            .map(|(group, after)| {
                *after = None;
                *group
            })
            .collect();
        due.into_iter().for_each(|group| self.push(group, Work::Remove));
    }

    /// Takes what the worker has done, and goes on with a piece and a chunk. Says what the core has to know.
    pub(crate) fn turn(&mut self, machines: &mut Machines, mut tell: impl FnMut(GroupId, SnapshotEvent)) {
        while let Some(job) = self.waiting.pop_front() {
            if let Err(job) = self.jobs.push(job) {
                self.waiting.push_front(job);
                break;
            }
        }
        while let Some(SnapshotDone { group, what }) = self.done.pop() {
            match what {
                Done::Appended => {
                    if let Some(taking) = self.taking.get_mut(&group) {
                        taking.in_flight = taking.in_flight.saturating_sub(1);
                    }
                }
                Done::Removed => drop(self.leaving.remove(&group)),
                Done::Event(event) => {
                    if matches!(event, SnapshotEvent::Taken(_) | SnapshotEvent::NotTaken { .. }) {
                        self.taking.remove(&group);
                    }
                    tell(group, event);
                }
                Done::ToRestore { index, chunk, data } => {
                    let is_taken = self.take_over(machines, (group, index, chunk), data, &mut tell);
                    if is_taken {
                        break;
                    }
                }
            }
        }
        self.take_piece(&mut tell);
        self.go_on_restoring(machines, &mut tell);
    }

    /// One piece of one snapshot: the groups take turns by the worker's answers.
    fn take_piece(&mut self, tell: &mut impl FnMut(GroupId, SnapshotEvent)) {
        let can_go_on = |taking: &Taking| taking.view.is_some() && taking.in_flight < PIECES_IN_FLIGHT_MAX;
        let next = self.taking.iter_mut().find(|(_, taking)| can_go_on(taking));
        let Some((&group, taking)) = next else { return };
        let Some(view) = &mut taking.view else { return };
        let piece = std::panic::catch_unwind(std::panic::AssertUnwindSafe(|| view.next_piece()));
        match piece {
            Ok(Some(piece)) if piece.len() <= SNAPSHOT_PIECE_BYTES_MAX => {
                taking.in_flight += 1;
                self.push(group, Work::Append(piece));
            }
            Ok(None) => {
                taking.view = None;
                self.push(group, Work::Finish);
            }
            Ok(Some(_)) | Err(_) => {
                tracing::error!(%group, "the state machine made no snapshot: its log is kept");
                self.taking.remove(&group);
                self.push(group, Work::Abort);
                tell(group, SnapshotEvent::NotTaken { may_retry: false });
            }
        }
    }

    fn go_on_restoring(&mut self, machines: &mut Machines, tell: &mut impl FnMut(GroupId, SnapshotEvent)) {
        let Some(restoring) = self.restoring.front_mut() else { return };
        let group = restoring.group;
        if restoring.taken.is_none() {
            restoring.taken = Some(0);
            if let Err(error) = machines.restore(group, Restore::Begin) {
                return self.end_restoring(machines, Some((RestoreProblem::Refused, error.problem)), tell);
            }
        }
        let taken = restoring.taken.unwrap_or(0);
        let chunks = restoring.snapshot.body.chunks();
        if taken == chunks {
            let is_right =
                restoring.checksum == restoring.snapshot.body.checksum || mutants::is(Mutant::DamageRestored);
            let problem = match machines.restore(group, Restore::End) {
                _ if !is_right => Some((RestoreProblem::Damaged, "it does not have its digest")),
                Ok(()) => None,
                Err(error) => Some((RestoreProblem::Refused, error.problem)),
            };
            return self.end_restoring(machines, problem, tell);
        }
        let index = restoring.snapshot.head.index;
        let from = restoring.asked;
        restoring.asked = from.max(chunks.min(taken + CHUNKS_AHEAD_MAX));
        for chunk in from..restoring.asked {
            self.push(group, Work::Read { index, chunk, whose: Reader::Restore });
        }
    }

    /// Gives a chunk to the state machine; whether it took time.
    fn take_over(
        &mut self,
        machines: &mut Machines,
        (group, index, chunk): (GroupId, Index, u32),
        data: Result<Bytes, Unreadable>,
        tell: &mut impl FnMut(GroupId, SnapshotEvent),
    ) -> bool {
        let Some(restoring) = self.restoring.front_mut() else { return false };
        if (restoring.group, restoring.snapshot.head.index, restoring.taken) != (group, index, Some(chunk)) {
            return false;
        }
        let problem = match &data {
            Err(Unreadable::Io) => Some((RestoreProblem::Io, "the log file cannot be read")),
            Err(Unreadable::Gone) => Some((RestoreProblem::Damaged, "a chunk is damaged")),
            Err(Unreadable::Replaced) => Some((RestoreProblem::Replaced, "a newer one took its place")),
            Ok(data) => {
                restoring.checksum = crc32c::crc32c_append(restoring.checksum, data);
                restoring.taken = Some(chunk + 1);
                let is_lost =
                    mutants::is(Mutant::RestoreLosesEnd) && chunk + 1 == restoring.snapshot.body.chunks();
                let bytes = if is_lost { &[][..] } else { data };
                let refused = machines.restore(group, Restore::Bytes(bytes)).err();
                refused.map(|error| (RestoreProblem::Refused, error.problem))
            }
        };
        if problem.is_some() {
            self.end_restoring(machines, problem, tell);
        }
        true
    }

    fn end_restoring(
        &mut self,
        machines: &mut Machines,
        problem: Option<(RestoreProblem, &'static str)>,
        tell: &mut impl FnMut(GroupId, SnapshotEvent),
    ) {
        let Some(Restoring { group, snapshot, .. }) = self.restoring.pop_front() else { return };
        let index = snapshot.head.index;
        let Some((problem, why)) = problem else {
            return tell(group, SnapshotEvent::Restored { index });
        };
        tracing::error!(%group, %index, why, "a snapshot cannot be restored");
        if problem == RestoreProblem::Damaged {
            // It would be taken for the same one that the leader offers.
            self.push(group, Work::Drop { index });
        }
        // What is left of it must not be applied to.
        let _ = machines.restore(group, Restore::Begin);
        tell(group, SnapshotEvent::NotRestored { index, problem });
    }
}

impl fmt::Debug for Snapshots {
    fn fmt(&self, formatter: &mut fmt::Formatter<'_>) -> fmt::Result {
        formatter
            .debug_struct("Snapshots")
            .field("waiting", &self.waiting.len())
            .field("taking", &self.taking.len())
            .field("restoring", &self.restoring.len())
            .field("leaving", &self.leaving.len())
            .finish_non_exhaustive()
    }
}

#[cfg(test)]
mod tests;
