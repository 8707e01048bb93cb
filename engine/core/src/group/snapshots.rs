//! Snapshots of a replica: taken of its state machine when enough was applied, restored from, offered to followers.
//! What they cover then goes from the log, as far as nobody near needs it (thesis 5.1 to 5.3).
//!
//! A snapshot is published, durable and complete, before anything rests on it: before the log is
//! compacted, before it is offered, before a received one is installed. So a crash in between leaves a
//! replica with either log; recovery makes the log begin after a published snapshot that is ahead of it.

use std::collections::VecDeque;

use super::snapshot_receive::Incoming;
use super::snapshot_send::Outgoing;
use super::{Again, EntryKind, Index, LogEntry, NodeId, Offset, Replica, Timestamp, Turn};
use crate::io::{
    Event, FetchError, LogStart, RestoreProblem, Snapshot, SnapshotBody, SnapshotConfig, SnapshotEvent,
    SnapshotHead, SnapshotStep, SnapshotTask,
};
use crate::mutants::{self, Mutant};

/// Chunks of one transfer on their way at once, on either side: what bounds its memory.
pub(crate) const CHUNKS_IN_FLIGHT_MAX: u32 = 8;

/// Places of earlier snapshots that are remembered, so that the log can be cut at one of them.
const PLACES_MAX: usize = 16;

/// How many of its groups' snapshots a shard has in hand.
#[derive(Clone, Copy, PartialEq, Eq, Default, Debug)]
pub(crate) struct SnapshotsOpen {
    pub(crate) taking: usize,
    pub(crate) sending: usize,
    pub(crate) receiving: usize,
}

impl SnapshotsOpen {
    /// The sum, after one group's share has become another.
    pub(crate) fn after(self, before: SnapshotsOpen, now: SnapshotsOpen) -> SnapshotsOpen {
        SnapshotsOpen {
            taking: self.taking + now.taking - before.taking,
            sending: self.sending + now.sending - before.sending,
            receiving: self.receiving + now.receiving - before.receiving,
        }
    }
}

/// What a shard may still send of chunks. It is overdrawn by one chunk at most.
#[derive(Clone, Copy, Debug)]
pub(crate) struct SendBudget {
    bytes: i64,
    filled: Timestamp,
}

impl SendBudget {
    pub(crate) fn new(now: Timestamp) -> SendBudget {
        SendBudget { bytes: 0, filled: now }
    }

    /// Time has passed: at most what two ticks bring is saved up.
    pub(crate) fn fill(&mut self, now: Timestamp, tick: std::time::Duration, per_second: u64) {
        let bytes =
            |nanos: u128| i64::try_from(u128::from(per_second) * nanos / 1_000_000_000).unwrap_or(i64::MAX);
        let since = now.since(self.filled).as_nanos();
        let most = bytes(2 * tick.as_nanos()).max(1);
        self.bytes = self.bytes.saturating_add(bytes(since.min(3_600_000_000_000))).min(most);
        self.filled = now;
    }

    /// Takes what a chunk needs, if anything is left.
    pub(super) fn take(&mut self, bytes: usize) -> bool {
        let is_left = self.bytes > 0;
        if is_left {
            self.bytes -= bytes as i64;
        }
        is_left
    }
}

#[derive(Debug)]
pub(super) struct Snapshots {
    /// The published one, at most at the commit index.
    pub(super) own: Option<Box<Snapshot>>,
    /// Places at which the log may be made to begin, oldest first: those of snapshots.
    places: VecDeque<(Index, Offset)>,
    /// Whether one is being taken.
    is_taking: bool,
    /// Whether the state machine makes any.
    is_able: bool,
    /// Whether the state machine is being put where the last one says: it is of no use meanwhile.
    pub(super) is_restoring: bool,
    /// The restoration has still to be asked for.
    is_restore_due: bool,
    /// The published one turned out to be damaged as it was sent.
    pub(super) is_unreadable: bool,
    /// When one could last not be taken: it is tried again after a while.
    failed_at: Option<Timestamp>,
    /// Bytes of entries applied since the last one was begun.
    applied_bytes: u64,
    /// When it was.
    taken_at: Timestamp,
    pub(super) incoming: Option<Box<Incoming>>,
    pub(super) outgoing: Vec<Outgoing>,
    /// Chunks that were asked for and have not come, by whom they are for: those of transfers that were given up as well, for
    /// whoever reads has them all in a queue. Without zeros.
    pub(super) reading: Vec<(NodeId, u32)>,
}

impl Snapshots {
    pub(super) fn new(own: Option<Snapshot>, now: Timestamp) -> Snapshots {
        let places = own.iter().map(|own| (own.head.index, own.head.offset)).collect();
        Snapshots {
            is_restoring: own.is_some(),
            is_restore_due: own.is_some(),
            own: own.map(Box::new),
            places,
            is_taking: false,
            is_able: true,
            is_unreadable: false,
            failed_at: None,
            applied_bytes: 0,
            taken_at: now,
            incoming: None,
            outgoing: Vec::new(),
            reading: Vec::new(),
        }
    }

    pub(super) fn needs_turn(&self) -> bool {
        self.is_restore_due
    }

    /// Whether nothing is on its way or waits for a turn.
    pub(super) fn is_idle(&self) -> bool {
        self.open() == SnapshotsOpen::default() && !self.is_restoring && !self.is_restore_due
    }

    pub(super) fn open(&self) -> SnapshotsOpen {
        SnapshotsOpen {
            taking: usize::from(self.is_taking),
            sending: self.outgoing.len(),
            receiving: usize::from(self.incoming.is_some()),
        }
    }

    pub(super) fn handle_applied(&mut self, entries: &[LogEntry]) {
        self.applied_bytes += entries.iter().map(|entry| entry.data.len() as u64).sum::<u64>();
    }

    fn push_place(&mut self, place: (Index, Offset)) {
        if self.places.back().is_some_and(|last| last.0 >= place.0) {
            return;
        }
        if self.places.len() == PLACES_MAX {
            self.places.pop_front();
        }
        self.places.push_back(place);
    }

    /// The group goes on from this snapshot, whatever it had before.
    pub(super) fn handle_installed(&mut self, snapshot: Snapshot, has_state_machine: bool, now: Timestamp) {
        self.places.clear();
        if has_state_machine {
            self.places.push_back((snapshot.head.index, snapshot.head.offset));
            self.own = Some(Box::new(snapshot));
            (self.is_restoring, self.is_restore_due) = (true, true);
        }
        (self.applied_bytes, self.taken_at) = (0, now);
    }
}

impl Replica {
    pub(crate) fn snapshots_open(&self) -> SnapshotsOpen {
        self.snapshots.open()
    }

    pub(super) fn ask(&self, turn: &mut Turn<'_>, step: SnapshotStep) {
        turn.out.snapshots.push(SnapshotTask { group: self.group, step });
    }

    /// What a follower that needs it is offered: the published snapshot, or without a state machine the
    /// beginning of the log.
    pub(super) fn offer(&self) -> Option<Snapshot> {
        if self.has_state_machine {
            return self.snapshots.own.as_deref().cloned();
        }
        let LogStart { index, term, offset } = self.log_start();
        let conf_state = || (**self.members.at(index)).clone();
        let table = || self.meta().with_time(self.at_max()).encode();
        let head = || SnapshotHead { index, term, offset, conf_state: conf_state(), table: table() };
        (index > Index(0)).then(|| Snapshot { head: head(), body: SnapshotBody::default() })
    }

    /// raft-rs asks its storage what it may send.
    pub(super) fn show_offer(&mut self) {
        let offer = self.offer().map(|snapshot| snapshot.head);
        self.raw.mut_store().set_offer(offer);
    }

    /// A tick has passed.
    pub(super) fn handle_snapshot_tick(&mut self, turn: &mut Turn<'_>) {
        self.is_dirty |= self.is_snapshot_due(turn) || self.snapshots.is_restore_due;
        self.handle_send_tick(turn);
        self.handle_receive_tick(turn);
        if !self.snapshots.places.is_empty() {
            self.compact(turn);
        }
        self.reclaim(turn);
    }

    /// The end of a turn: what is due.
    pub(super) fn serve_snapshots(&mut self, turn: &mut Turn<'_>) {
        if std::mem::take(&mut self.snapshots.is_restore_due)
            && let Some(own) = self.snapshots.own.as_deref().cloned()
        {
            self.ask(turn, SnapshotStep::Restore(own));
        }
        if self.is_snapshot_due(turn) && self.may_take(turn) {
            self.take_snapshot(turn);
        }
        self.send_chunks(turn);
    }

    /// When a snapshot is due without anything more being applied, if one will be.
    pub(super) fn snapshot_due_by_age(&self, config: &crate::io::ShardConfig) -> Option<Timestamp> {
        let state = &self.snapshots;
        let covered = state.own.as_ref().map_or(Index(0), |own| own.head.index);
        let is_wanted = self.has_state_machine && state.is_able && self.applied > covered;
        let retry = state.failed_at.map(|at| at.after(config.snapshots.stall_after));
        let due = state.taken_at.after(config.snapshots.age);
        is_wanted.then(|| retry.map_or(due, |retry| retry.max(due)))
    }

    pub(super) fn is_snapshot_due(&self, turn: &Turn<'_>) -> bool {
        let SnapshotConfig { entries, bytes, age, stall_after, .. } = turn.config.snapshots;
        let state = &self.snapshots;
        let has_failed = state.failed_at.is_some_and(|at| turn.now.since(at) < stall_after);
        if has_failed || self.applied == Index(0) {
            return false;
        }
        let since = self.applied.0 - state.own.as_ref().map_or(0, |own| own.head.index.0.min(self.applied.0));
        // Writing snapshots costs at most twice as much as writing the log, however large the state is.
        let last_bytes = state.own.as_ref().map_or(0, |own| own.body.bytes);
        let is_much =
            (since >= entries || state.applied_bytes >= bytes) && state.applied_bytes >= last_bytes / 2;
        self.has_state_machine
            && state.is_able
            && !state.is_taking
            && (state.is_unreadable || (since > 0 && (is_much || turn.now.since(state.taken_at) >= age)))
    }

    /// Whether a snapshot may be taken in this very turn: the state machine is at `applied`, and no transfer needs
    /// the published one.
    fn may_take(&self, turn: &Turn<'_>) -> bool {
        let state = &self.snapshots;
        self.applying.is_none()
            && !state.is_restoring
            && state.incoming.is_none()
            && state.outgoing.is_empty()
            && turn.snapshots_open.taking < turn.config.snapshots.taking_max
            && self.knows_members_at(self.applied)
            && !self.members.at(self.applied).is_joint()
    }

    /// Whether all changes of members up to an applied entry are in force: they wait for our own disk, which
    /// commits do not.
    fn knows_members_at(&self, index: Index) -> bool {
        let in_force = self.raw.raft.raft_log.applied;
        let is_change = |index: u64| {
            let entry = self.raw.store().get(Index(index));
            entry.is_none_or(|entry| entry.kind != EntryKind::Normal)
        };
        !(in_force + 1..=index.0).any(is_change)
    }

    fn take_snapshot(&mut self, turn: &mut Turn<'_>) {
        self.wake(turn);
        let (mut index, mut offset) = (self.applied, self.applied_end);
        if mutants::is(Mutant::SnapshotAhead) && !self.members.at(self.commit).is_joint() {
            (index, offset) = (self.commit, self.commit_end);
        }
        let is_forgetful = mutants::is(Mutant::SnapshotForgetsMembers);
        let members = if is_forgetful { self.members.first() } else { self.members.at(index) };
        let conf_state = (**members).clone();
        let term = self.raw.store().term_at(index);
        (self.snapshots.is_taking, self.snapshots.applied_bytes) = (true, 0);
        self.snapshots.taken_at = turn.now;
        let table = self.meta().with_time(self.at_max()).encode();
        self.ask(turn, SnapshotStep::Take(SnapshotHead { index, term, offset, conf_state, table }));
    }

    /// Something became of what was asked for.
    pub(crate) fn handle_snapshot(&mut self, turn: &mut Turn<'_>, event: SnapshotEvent) {
        self.is_dirty = true;
        match event {
            SnapshotEvent::Taken(snapshot) => self.handle_taken(turn, snapshot),
            SnapshotEvent::NotTaken { may_retry } => {
                self.snapshots.is_taking = false;
                self.snapshots.is_able &= may_retry;
                self.snapshots.failed_at = Some(turn.now);
            }
            SnapshotEvent::Restored { index } => {
                let is_ours = self.snapshots.own.as_ref().is_some_and(|own| own.head.index == index);
                if is_ours && !self.snapshots.is_restore_due {
                    self.snapshots.is_restoring = false;
                }
            }
            SnapshotEvent::NotRestored { index, problem } => self.handle_not_restored(turn, index, problem),
            // Who restores from it, or sends it, meets the damage itself.
            SnapshotEvent::Damaged if self.snapshots.is_restoring => {}
            SnapshotEvent::Damaged => self.note_unreadable(turn),
            SnapshotEvent::Staged { index, chunks } => self.handle_staged(turn, index, chunks),
            SnapshotEvent::Published { index } => self.handle_published(turn, index),
            SnapshotEvent::Failed { index } => self.handle_receive_failed(turn, index),
            SnapshotEvent::Chunk { index, chunk, to, data } => {
                self.handle_chunk_read(turn, index, chunk, to, data);
            }
        }
    }

    fn handle_taken(&mut self, turn: &mut Turn<'_>, snapshot: Snapshot) {
        let is_asked = std::mem::take(&mut self.snapshots.is_taking);
        let SnapshotHead { index, offset, .. } = snapshot.head;
        if !is_asked || index > self.applied {
            // Asked for before the group was taken out and came back.
            return;
        }
        let is_again = std::mem::take(&mut self.snapshots.is_unreadable);
        let before = self.snapshots.own.as_ref().map_or(Index(0), |own| own.head.index);
        // A newer one may have come from the leader meanwhile.
        if index < before || (index == before && !is_again) {
            return;
        }
        let (group, bytes) = (self.group, snapshot.body.bytes);
        turn.out.events.push(Event::SnapshotTaken { group, index, bytes });
        self.snapshots.push_place((index, offset));
        self.snapshots.own = Some(Box::new(snapshot));
        self.show_offer();
        self.compact(turn);
    }

    /// The published snapshot cannot be read: another is taken in its place, of the state in memory.
    pub(super) fn note_unreadable(&mut self, turn: &mut Turn<'_>) {
        let Some(own) = &self.snapshots.own else { return };
        if !std::mem::replace(&mut self.snapshots.is_unreadable, true) {
            let (group, index) = (self.group, own.head.index);
            turn.out.events.push(Event::SnapshotDamaged { group, index });
        }
    }

    /// What was to be restored cannot be read. Where the log goes back to its beginning nothing is lost; otherwise the replica
    /// begins anew with what its leader has (`repair.rs`).
    fn handle_not_restored(&mut self, turn: &mut Turn<'_>, index: Index, problem: RestoreProblem) {
        if self.snapshots.own.as_ref().is_none_or(|own| own.head.index != index) {
            return;
        }
        let begins_later = self.log_start().index > Index(0);
        match problem {
            RestoreProblem::Io => {
                self.broken = Some(FetchError::Io.to_string());
                return;
            }
            RestoreProblem::Replaced => {
                self.broken = Some(format!("its snapshot at index {index} is an old one: it begins again"));
                self.again = Some(Again::AsStored);
                return;
            }
            RestoreProblem::Refused if begins_later => {
                self.broken = Some(format!(
                    "its state machine does not take its snapshot at index {index}, and its log begins after it"
                ));
                return;
            }
            RestoreProblem::Refused => {}
            RestoreProblem::Damaged => {
                turn.out.events.push(Event::SnapshotDamaged { group: self.group, index });
                if begins_later {
                    self.broken = Some(format!(
                        "its snapshot at index {index} is damaged, and its log begins after it"
                    ));
                    self.again = Some(Again::WithoutSnapshot);
                    return;
                }
            }
        }
        (self.snapshots.own, self.snapshots.is_restoring) = (None, false);
        self.snapshots.places.clear();
        (self.applied, self.applied_end) = (Index(0), Offset(0));
        self.show_offer();
    }

    /// Lets go of entries that the last snapshot covers, but for those that a live follower may still be sent: a
    /// leader knows whose they are, the others keep some for when they lead.
    fn compact(&mut self, turn: &Turn<'_>) {
        let Some(own) = &self.snapshots.own else { return };
        if self.snapshots.is_restoring {
            return;
        }
        let covered = own.head.index.min(self.applied);
        let mut limit = self.compaction_limit(turn, covered);
        if mutants::is(Mutant::CompactionIgnoresSnapshot) && self.snapshots.places.is_empty() {
            return;
        }
        if mutants::is(Mutant::CompactionIgnoresSnapshot) {
            limit = self.applied;
            self.snapshots.push_place((self.applied, self.applied_end));
        }
        let count = self.snapshots.places.partition_point(|(index, _)| *index <= limit);
        let places: Vec<_> = self.snapshots.places.drain(..count).collect();
        for (index, offset) in places.into_iter().rev() {
            if self.compact_to(index, offset) {
                break;
            }
        }
    }

    /// How far the log may be compacted, of what nobody here needs any more: followers may.
    pub(super) fn compaction_limit(&self, turn: &Turn<'_>, covered: Index) -> Index {
        let kept_from = Index(covered.0.saturating_sub(turn.config.snapshots.lag_entries_max));
        match self.slowest_live(turn) {
            Some(slowest) => covered.min(slowest.max(kept_from)),
            None => kept_from,
        }
    }

    /// How far the slowest of the followers has come that answer; `None` unless we lead.
    fn slowest_live(&self, turn: &Turn<'_>) -> Option<Index> {
        if !self.is_leader() {
            return None;
        }
        let lease = turn.config.tick * turn.config.lease_ticks;
        let progress = self.raw.raft.prs().iter();
        let live = progress.filter(|(node, _)| {
            **node == self.node.0 || self.members.has_heard(super::NodeId(**node), turn.now, lease)
        });
        live.map(|(_, at)| Index(at.matched)).min()
    }
}

/// Offset after entries that began at one.
pub(super) fn end_of(entries: &[LogEntry], before: Offset) -> Offset {
    let batches = entries.iter().rev().filter(|entry| entry.kind == EntryKind::Normal);
    batches.filter_map(crate::log_window::header_of).map(|header| header.end()).next().unwrap_or(before)
}
