//! One replica: a raft-rs `RawNode` and what surrounds it.
//!
//! Inputs step Raft or queue; [`Replica::handle_turn`] then proposes what waits, takes everything
//! that Raft has ready (`ready.rs`) and serves applies, reads and fetches.
//! After every call into raft-rs, [`Replica::after_call`] restores what it cannot be trusted with
//! (its ambient election timeout) and settles what the call decided (commits, leadership).

mod commands;
mod compaction;
mod leadership;
mod leaving;
mod members;
mod miscount;
mod quiet;
mod read;
mod reading;
mod ready;
mod recovery;
mod repair;
mod retention;
mod serve;
mod sessions;
mod snapshot_receive;
mod snapshot_send;
mod snapshots;

use std::collections::BTreeMap;
use std::sync::{Arc, LazyLock};

use bytes::Bytes;
use raft::eraftpb::{self, MessageType};
use raft::{RawNode, ReadOnlyOption, StateRole};
use slog::{Discard, Logger, o};

use crate::batch::BatchBuffer;
use crate::convert::{to_hard_state, to_node, to_raft_message, to_role};
use crate::disk_watch::DiskHealth;
use crate::error::{BusyReason, RequestError};
use crate::find::Finds;
use crate::group_meta::GroupMeta;
use crate::ids::{FlushSeq, GroupId, Index, LogPosition, NodeId, Offset, Term, Timestamp, WallTime};
use crate::io::{
    AnswerOn, ConfState, EntryKind, Event, FetchId, GroupStatus, HardState, LogChange, LogDamage, LogEntry,
    MessageKind, Outputs, PeerMessage, Propose, Reply, Retention, ShardConfig, Token, has_records,
};
use crate::jitter::Draw;
use crate::lease::{Lease, Promise, Times};
use crate::liveness::Liveness;
use crate::loading::Loaded;
use crate::log_window::{Inconsistent, LogWindow};
use crate::mutants::{self, Mutant};
use crate::pending::{Pending, Position, block_bytes, check_room};
use crate::placement::Placements;
use crate::read_index::Reads;
use crate::records::RecordReads;
use crate::validate::{self, GroupView, LogView, Refusal};
use commands::Commands;
use leadership::Leadership;
pub(crate) use leadership::Seat;
use leaving::Leaving;
use members::Members;
use quiet::Quiet;
use ready::Persistence;
use repair::Repair;
use retention::Keeping;
use serve::Purpose;
use snapshots::Snapshots;
pub(crate) use snapshots::{SendBudget, SnapshotsOpen};

/// Data of a received entry below this is copied: a slice would keep its whole frame in memory.
pub(crate) const COPY_BYTES_MAX: usize = 4 << 10;
/// Fetches of one purpose that may come back without an entry, a tick apart, before the log counts
/// as damaged.
const MISSING_MAX: u32 = 100;

/// What a call needs of the shard.
pub(crate) struct Turn<'a> {
    pub(crate) config: &'a ShardConfig,
    pub(crate) now: Timestamp,
    pub(crate) wall: WallTime,
    /// Number of the flush that this turn makes, if it makes one.
    pub(crate) seq: FlushSeq,
    /// Newest durable flush.
    pub(crate) persisted: FlushSeq,
    pub(crate) disk: DiskHealth,
    pub(crate) liveness: &'a Liveness,
    pub(crate) placements: &'a Placements,
    /// Campaigns that may still begin in this turn of the shard.
    pub(crate) campaigns_left: &'a mut u32,
    pub(crate) next_fetch: &'a mut FetchId,
    /// What the shard's other groups have in hand of snapshots.
    pub(crate) snapshots_open: SnapshotsOpen,
    pub(crate) send_budget: &'a mut SendBudget,
    /// What counts against `shard_pending_bytes_max`, of all groups.
    pub(crate) shard_pending_bytes: usize,
    pub(crate) buffers: &'a mut Buffers,
    pub(crate) out: &'a mut Outputs,
}

/// Memory that the groups of a shard use in turn.
#[derive(Debug)]
pub(crate) struct Buffers {
    pub(crate) batches: BatchBuffer,
    /// Entries that are about to become durable; empty between calls.
    entries: Vec<LogEntry>,
}

impl Default for Buffers {
    fn default() -> Buffers {
        Buffers { batches: BatchBuffer::new(COPY_BYTES_MAX), entries: Vec::new() }
    }
}

impl Turn<'_> {
    fn take_fetch_id(&mut self) -> FetchId {
        let id = *self.next_fetch;
        self.next_fetch.0 += 1;
        id
    }
}

/// How a replica that is out begins again by itself.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub(crate) enum Again {
    /// From what its disk has by then.
    AsStored,
    /// Its snapshot is damaged, and nothing else here has the state that it was of.
    WithoutSnapshot,
}

pub(crate) struct Replica {
    group: GroupId,
    node: NodeId,
    raw: RawNode<LogWindow>,
    voters: Vec<NodeId>,
    members: Members,
    has_state_machine: bool,

    /// Our draw of the election timeout, and the (term, role) it was made for.
    draw: u32,
    drawn_for: (Term, StateRole),
    draws: u64,

    /// The term that we lead, while we do.
    leading: Option<Term>,
    leadership: Leadership,
    leaving: Leaving,
    /// The entry that made this replica a member.
    joined_at: LogPosition,
    /// Who waits until this replica is on the disk.
    opening: Option<Token>,
    announced: (Term, Option<NodeId>),
    persistence: Persistence,

    pending: Pending,
    reads: Reads,
    lease: Lease,
    promise: Promise,
    records: RecordReads,
    quiet: Quiet,
    finds: Finds,
    commands: Commands,
    keeping: Keeping,
    repair: Option<Box<Repair>>,

    commit: Index,
    /// Offset after the last committed record.
    commit_end: Offset,
    applied: Index,
    /// Offset after the last record applied.
    applied_end: Offset,
    /// Last index of the apply that the driver works on, and the offset after it.
    applying: Option<(Index, Offset)>,
    snapshots: Snapshots,
    fetches: BTreeMap<FetchId, Purpose>,
    /// Fetches came back without an entry: how often in a row, and whether to wait for a tick.
    missing: u32,
    is_paused_by_missing: bool,

    is_dirty: bool,
    /// What broke this replica, found without a panic.
    broken: Option<String>,
    /// Entries that it found damaged by that.
    damage: Option<LogDamage>,
    /// How it is to begin again by itself, if it can.
    again: Option<Again>,
}

impl Replica {
    /// A replica as its shard starts.
    ///
    /// # Errors
    /// What is inconsistent about its state.
    pub(crate) fn new(config: &ShardConfig, loaded: &Loaded, now: Timestamp) -> Result<Replica, String> {
        let Loaded { state, changes, written, damage, is_adopted, at } = loaded;
        let snapshot = state.snapshot.clone().filter(|_| state.has_state_machine);
        let snapshot_index = snapshot.as_ref().map_or(Index(0), |snapshot| snapshot.head.index);
        let meta = GroupMeta::decode(state.meta.clone()).ok_or("its table of cursors is not readable")?;
        let covered = snapshot.as_ref().and_then(|snapshot| GroupMeta::decode(snapshot.head.table.clone()));
        let at = (*at).max(meta.at()).max(covered.map_or(WallTime(0), |table| table.at()));
        let window = LogWindow::new(state, at).map_err(|error| error.to_string())?;
        let commit = state.hard_state.commit;
        let commit_end = window.end_at(commit);
        let raft_config = raft_config(config, commit);
        static SILENT: LazyLock<Logger> = LazyLock::new(|| Logger::root(Discard, o!()));
        let mut raw = RawNode::new(&raft_config, window, &SILENT).map_err(|error| error.to_string())?;
        raw.raft.maybe_free_inflight_buffers();
        raw.mut_store().forget_start();
        // raft-rs keeps a table of what it has handed out. It is made here, beside the rest of the replica: made between the
        // messages of a start, it would keep the holes that they leave.
        let nothing = raw.ready();
        raw.advance_append(nothing);
        let members = Members::new(&state.conf_state, state.start.index);
        let first_conf_state: Option<ConfState> = (!state.is_durable).then(|| state.conf_state.clone());
        let mut replica = Replica {
            group: state.group,
            node: config.node,
            raw,
            voters: members.voters(),
            members,
            has_state_machine: state.has_state_machine,
            draw: 0,
            drawn_for: (state.hard_state.term, StateRole::Leader),
            draws: 0,
            leading: None,
            leadership: Leadership::default(),
            leaving: Leaving::default(),
            joined_at: state.joined_at,
            opening: None,
            announced: (state.hard_state.term, None),
            is_dirty: first_conf_state.is_some() || (state.has_state_machine && commit.0 > 0),
            persistence: Persistence::new(*written, state.hard_state, first_conf_state, state.joined_at),
            pending: Pending::new(state.group),
            reads: Reads::new(state.group, config.node, config.seed),
            lease: Lease::default(),
            promise: Promise::at_start(now, state.hard_state.term > Term(0), Times::of(config)),
            records: RecordReads::new(state.group),
            quiet: Quiet::default(),
            finds: Finds::new(state.group),
            // A commit index that a snapshot brought came with its table, and goes to the disk with it.
            commands: Commands::new(meta, commit, written.commit < commit),
            keeping: Keeping::new(state.retention, now),
            repair: Repair::at_start(state, *damage, *is_adopted, written.commit).map(Box::new),
            commit,
            commit_end,
            applied: if state.has_state_machine { snapshot_index } else { commit },
            applied_end: snapshot.as_ref().map_or(Offset(0), |snapshot| snapshot.head.offset),
            applying: None,
            snapshots: Snapshots::new(snapshot, now),
            fetches: BTreeMap::new(),
            missing: 0,
            is_paused_by_missing: false,
            broken: None,
            damage: None,
            again: None,
        };
        for change in changes.iter().filter(|_| !mutants::is(Mutant::ChangesForgotten)) {
            let window = replica.raw.store();
            if change.kind == EntryKind::Normal || change.term != window.term_at(change.index) {
                return Err(Inconsistent::Membership { index: change.index }.to_string());
            }
            replica.apply_change(change);
        }
        if *is_adopted && damage.is_none() {
            replica.persistence.change_log(LogChange::StartAfter(state.start), state.conf_state.clone());
        }
        // Nobody rests on what this replica agreed to: it has agreed to nothing.
        replica.members.take_changed();
        replica.members.take_removed();
        replica.replay_sessions();
        replica.is_dirty |= *is_adopted || replica.repair.is_some() || replica.snapshots.needs_turn();
        replica.show_offer();
        replica.write_draw(config, false);
        Ok(replica)
    }

    /// The replica has just begun, perhaps in the place of one that left. Somebody waits until it is on the disk.
    pub(crate) fn handle_opening(&mut self, token: Token, is_again: bool) {
        self.opening = Some(token);
        if is_again {
            self.persistence.begin_anew();
        }
    }

    pub(crate) fn is_opening(&self) -> bool {
        self.opening.is_some()
    }

    /// Whether the end of the turn has something to do here.
    pub(crate) fn is_dirty(&self) -> bool {
        self.is_dirty
    }

    /// What broke this replica, if something did, and the damaged entries that it found.
    pub(crate) fn broken(&self) -> Option<(&str, Option<LogDamage>)> {
        self.broken.as_deref().map(|reason| (reason, self.damage))
    }

    /// How it is to begin again by itself; `None` if that would be of no use.
    pub(crate) fn begins_again(&self) -> Option<Again> {
        self.again
    }

    /// What its disk does not know of it: whether it has a state machine, and how long it keeps records.
    pub(crate) fn settings(&self) -> (bool, Retention) {
        (self.has_state_machine, self.keeping.retention())
    }

    /// Bytes of entries in memory.
    pub(crate) fn window_bytes(&self) -> usize {
        self.raw.store().bytes()
    }

    /// Bytes of proposals that wait or are not committed.
    pub(crate) fn pending_bytes(&self) -> usize {
        self.pending.bytes()
    }

    /// Lets go of entries in memory beyond `bytes_max`, as far as they are committed and durable.
    pub(crate) fn evict(&mut self, bytes_max: usize) {
        let log = &mut self.raw.raft.raft_log;
        let up_to = Index(self.commit.0.min(log.persisted));
        log.store.evict(up_to, bytes_max);
    }

    pub(crate) fn leader(&self) -> Option<NodeId> {
        to_node(self.raw.raft.leader_id)
    }

    pub(crate) fn status(&self) -> GroupStatus {
        let raft = &self.raw.raft;
        GroupStatus {
            group: self.group,
            role: to_role(raft.state),
            term: Term(raft.term),
            leader: to_node(raft.leader_id),
            commit: self.commit,
            applied: self.applied,
            last: Index(raft.raft_log.last_index()),
            last_term: self.term_at(Index(raft.raft_log.last_index())),
            first: self.first_kept().min(self.commit_end),
            end: self.commit_end,
            members: self.members.now.clone(),
            members_since: self.members.since,
            is_quarantined: false,
            is_disk_hung: false,
            is_quiet: self.is_quiet(),
            is_under_repair: self.is_under_repair(),
        }
    }

    /// Whether its members have changed since this was last asked.
    pub(crate) fn take_members_changed(&mut self) -> bool {
        self.members.take_changed()
    }

    /// Whether one that was a member is none any more since this was last asked.
    pub(crate) fn take_member_removed(&mut self) -> bool {
        self.members.take_removed()
    }

    /// Uses the same copy of its members as other replicas that have the same.
    pub(crate) fn share_members(&mut self, common: &mut Arc<ConfState>) {
        if self.members.now == *common {
            self.members.now = common.clone();
        } else {
            *common = self.members.now.clone();
        }
    }

    pub(crate) fn group(&self) -> GroupId {
        self.group
    }

    pub(crate) fn members(&self) -> impl Iterator<Item = NodeId> {
        self.raw.raft.prs().iter().map(|(node, _)| NodeId(*node))
    }

    /// How far each replica's log is known to be ours, while we lead.
    pub(crate) fn matched(&self) -> Vec<(NodeId, Index)> {
        if !self.is_leader() {
            return Vec::new();
        }
        let progress = self.raw.raft.prs().iter();
        let mut matched: Vec<_> = progress.map(|(node, at)| (NodeId(*node), Index(at.matched))).collect();
        matched.sort_unstable();
        matched
    }

    /// The leader to send a client to: nobody, if it is us.
    fn leader_hint(&self) -> Option<NodeId> {
        self.leader().filter(|leader| *leader != self.node)
    }

    fn is_leader(&self) -> bool {
        self.raw.raft.state == StateRole::Leader
    }

    // Inputs

    /// Time has passed: `ticks` of Raft's, and deadlines.
    pub(crate) fn handle_ticks(&mut self, turn: &mut Turn<'_>, ticks: u32) {
        let leader = self.leader_hint();
        self.pending.handle_deadlines(turn.now, leader, &mut turn.out.replies);
        self.reads.handle_deadlines(turn.now, &mut turn.out.replies);
        self.records.handle_deadlines(turn.now, self.commit_end, &mut turn.out.replies);
        self.finds.handle_deadlines(turn.now, &mut turn.out.replies);
        self.commands.handle_deadlines(self.group, turn.now, leader, &mut turn.out.replies);
        self.members.handle_deadlines(self.group, turn.now, leader, &mut turn.out.replies);
        self.is_dirty |= std::mem::take(&mut self.is_paused_by_missing);
        self.is_dirty |= self.reads.is_asking();
        for _ in 0..ticks {
            if self.is_quiet() {
                break;
            }
            self.is_dirty |= self.leadership.handle_tick();
            if self.is_bound_to_wait(turn.now) {
                continue;
            }
            if !self.is_leader() && (self.must_not_lead(turn) || self.leadership.is_resting()) {
                self.let_tick_pass();
                self.handle_repair_tick(turn);
                if !self.is_under_repair() && self.is_in_the_past() {
                    // It asks for no votes, and so it would hear of nothing: not that the group is gone.
                    self.handle_leaving_tick(turn, false);
                }
                continue;
            }
            if !self.may_campaign(turn) {
                self.let_tick_pass();
                continue;
            }
            let has_campaigned = self.raw.tick() && !self.is_leader();
            self.is_dirty |=
                self.raw.has_ready() || self.pending.has_waiting() || self.commands.has_waiting();
            self.after_call(turn, has_campaigned);
            self.tick_quiet(turn);
            self.handle_leaving_tick(turn, has_campaigned);
        }
        self.handle_snapshot_tick(turn);
        if turn.disk == DiskHealth::Hung {
            self.leave_hung_disk(turn);
        }
        self.look_at_retention(turn);
    }

    /// A message of a peer: refused, dropped as stale, or stepped.
    pub(crate) fn handle_message(&mut self, turn: &mut Turn<'_>, mut message: PeerMessage) {
        self.hold_back_commit(&mut message);
        if let Err(reason) = validate::check(&self.view(turn), &message) {
            if matches!(reason, Refusal::ConflictsWithCommitted { .. }) && self.is_given_up_by(turn, &message)
            {
                return;
            }
            let (group, from) = (self.group, message.from);
            turn.out.events.push(Event::MessageRefused { group, from, reason });
            return;
        }
        self.wake_for(turn, &message);
        self.members.hear(message.from, turn.now);
        if self.dismiss(turn, &message) || self.is_given_up_by(turn, &message) {
            return;
        }
        if message.kind == MessageKind::Gone {
            let (term, role) = (Term(self.raw.raft.term), self.raw.raft.state);
            let has_asked = self.persistence.has_asked_for_votes(term, role, turn.persisted);
            return self.handle_gone(&message, has_asked);
        }
        let is_campaign = matches!(
            message.kind,
            MessageKind::TimeoutNow | MessageKind::RequestVoteResponse | MessageKind::RequestPreVoteResponse
        ) && !self.is_leader();
        if self.is_stale_reject(&message)
            || (is_campaign && self.must_not_lead(turn))
            || self.is_read_for_another(&message)
            || self.is_promised_against(turn.now, &message)
            || self.is_of_given_up(&message)
        {
            return;
        }
        if self.is_kept_from(&message) || self.is_from_the_past(&message) {
            return;
        }
        match message.kind {
            MessageKind::RepairQuestion => return self.handle_repair_question(turn, &message),
            MessageKind::RepairBound => return self.handle_repair_bound(&message),
            MessageKind::Snapshot => return self.handle_offer(turn, &message),
            MessageKind::SnapshotChunk => return self.handle_chunk(turn, &message),
            MessageKind::SnapshotAck => return self.handle_ack(turn, &message),
            _ => {}
        }
        self.handle_stamp(turn, &mut message);
        for entry in message.entries.iter_mut().filter(|entry| entry.data.len() < COPY_BYTES_MAX) {
            entry.data = Bytes::copy_from_slice(&entry.data);
        }
        let (kind, from, term, index) = (message.kind, message.from, message.term, message.index);
        if mutants::is(Mutant::VoteWithoutLog)
            && matches!(kind, MessageKind::RequestVote | MessageKind::RequestPreVote)
        {
            (message.index, message.log_term) = (Index(u64::MAX / 4), Term(u64::MAX / 4));
        }
        let waited = self.raw.raft.election_elapsed;
        // Its errors are those of stale answers, which change nothing.
        let Some(message) = to_raft_message(message) else { return };
        let _ = self.raw.step(message);
        if mutants::is(Mutant::Deaf) && matches!(kind, MessageKind::Append | MessageKind::Heartbeat) {
            self.raw.raft.election_elapsed = waited;
        }
        if matches!(kind, MessageKind::Append | MessageKind::Heartbeat)
            && (self.raw.raft.leader_id, self.raw.raft.term) == (from.0, term.0)
        {
            self.promise.handle_leader(turn.now, Times::of(turn.config));
            self.leaving.handle_leader();
        }
        self.note_answer(turn.now, from, term, kind);
        self.is_dirty = true;
        self.after_call(turn, false);
        self.handle_quiet(turn, kind, from, term, index);
    }

    /// raft-rs 0.7 lets a late rejection push a follower's next index to or below what it is known
    /// to have.
    fn is_stale_reject(&self, message: &PeerMessage) -> bool {
        let matched = || self.raw.raft.prs().get(message.from.0).map_or(0, |progress| progress.matched);
        message.kind == MessageKind::AppendResponse
            && message.reject
            && self.is_leader()
            && message.term.0 == self.raw.raft.term
            && message.index.0 <= matched()
    }

    fn view(&self, turn: &Turn<'_>) -> GroupView<'_> {
        let (raft, persisted) = (&self.raw.raft, turn.persisted);
        GroupView {
            node: self.node,
            now: turn.now,
            term: Term(raft.term),
            role: to_role(raft.state),
            leader: to_node(raft.leader_id),
            start: raft.store().base().index,
            commit: Index(raft.raft_log.committed),
            last: Index(raft.raft_log.last_index()),
            has_asked_for_votes: self.persistence.has_asked_for_votes(Term(raft.term), raft.state, persisted),
            reads_waiting: raft.pending_read_count(),
            has_state_machine: self.has_state_machine,
            log: self,
        }
    }

    /// A client's records: queued, or answered at once if they cannot be taken.
    pub(crate) fn handle_propose(&mut self, turn: &mut Turn<'_>, propose: Propose) {
        let bytes = block_bytes(&propose.block);
        let bytes_max = turn.config.pending_bytes_max;
        let error = if bytes > bytes_max {
            RequestError::TooLarge { bytes: bytes as u64, bytes_max: bytes_max as u64 }
        } else if propose.answer == AnswerOn::Apply && !self.has_state_machine {
            RequestError::Invalid { what: "the group has no state machine to answer from" }
        } else if !self.is_leader() {
            RequestError::NotLeader { leader: self.leader_hint() }
        } else if propose.deadline <= turn.now {
            RequestError::Timeout
        } else if let Err(reason) =
            check_room(turn.config, self.pending.bytes(), turn.shard_pending_bytes, bytes)
        {
            RequestError::busy_since(reason, self.pending.oldest(turn.now))
        } else if self.apply_lag() >= turn.config.apply_lag_records_max as u64 {
            RequestError::busy(BusyReason::Applying)
        } else {
            if !mutants::is(Mutant::QuietWithProposal) {
                self.wake(turn);
            }
            self.pending.push(propose);
            self.is_dirty = true;
            return;
        };
        turn.out.replies.push(Reply::Failed { token: propose.token, group: self.group, error });
    }

    /// Highest time known in the log: none that is written from now on may be earlier.
    fn at_max(&self) -> WallTime {
        self.raw.store().at_max().max(self.commands.meta.at())
    }

    /// A node cannot be reached: probe its replica from now on.
    pub(crate) fn handle_unreachable(&mut self, turn: &mut Turn<'_>, node: NodeId) {
        // A quiet leader has nothing on the way that could be lost.
        if self.is_leader() && !self.is_quiet() && self.raw.raft.prs().get(node.0).is_some() {
            self.raw.report_unreachable(node.0);
            self.is_dirty = true;
            self.after_call(turn, false);
        }
    }

    /// Everything up to a flush is durable.
    pub(crate) fn handle_persisted(&mut self, turn: &mut Turn<'_>) {
        if let Some(number) = self.persistence.take_persisted(turn.persisted) {
            self.raw.on_persist_ready(number);
            self.is_dirty = true;
            self.after_call(turn, false);
            let opened = |token| Reply::Opened { token, group: self.group };
            turn.out.replies.extend(self.opening.take().map(opened));
            self.end_repair(turn);
        }
    }

    /// The shard is fenced: nothing that is not durable by now ever will be.
    pub(crate) fn handle_fence(&mut self, turn: &mut Turn<'_>) {
        let term = self.raw.raft.term;
        self.raw.raft.become_follower(term, raft::INVALID_ID);
        self.leading = None;
        self.write_draw(turn.config, false);
        self.fail_all(&RequestError::Fenced, &mut turn.out.replies);
    }

    /// Answers everything that is open: `error` to what was not proposed.
    pub(crate) fn fail_all(&mut self, error: &RequestError, replies: &mut Vec<Reply>) {
        let failed = |token| Reply::Failed { token, group: self.group, error: error.clone() };
        replies.extend(self.opening.take().map(failed));
        self.fail_transfer(error, replies);
        self.pending.fail_all(error, replies);
        self.reads.fail_all(error, replies);
        self.records.fail_all(error, replies);
        self.finds.fail_all(error, replies);
        self.commands.fail_all(self.group, error, replies);
        let error = RequestError::OutcomeUnknown { leader: None };
        self.members.fail(self.group, &error, replies);
    }

    // Turn

    /// The turn ends: say everything that has to be done.
    pub(crate) fn handle_turn(&mut self, turn: &mut Turn<'_>) {
        self.is_dirty = false;
        self.advance_repair(turn);
        self.advance_transfer(turn);
        self.leave_joint(turn);
        self.propose_commands(turn);
        self.propose(turn);
        self.start_reads(turn);
        self.take_ready(turn);
        self.invite(turn);
        self.serve(turn);
        self.announce_leader(turn);
    }

    fn propose(&mut self, turn: &mut Turn<'_>) {
        // While leadership is handed over raft-rs drops proposals: they wait for its outcome.
        let is_leaving = self.leadership.is_transferring();
        if !self.pending.has_waiting() || !self.is_leader() || is_leaving {
            return;
        }
        let raft = &self.raw.raft;
        let last = Index(raft.raft_log.last_index());
        let at = turn.wall.max(self.at_max());
        let is_miscounted = mutants::is(Mutant::OffsetFromCommit);
        let base = if is_miscounted { self.commit_end } else { self.offset_after(last) };
        let position = Position { index: last.next(), term: Term(raft.term), base, at, now: turn.now };
        let entries = self.pack(turn, position);
        if entries.is_empty() {
            return;
        }
        let message = eraftpb::Message {
            msg_type: MessageType::MsgPropose,
            from: self.node.0,
            entries: entries.into(),
            ..Default::default()
        };
        self.raw.step(message).expect("a leader that hands nothing over takes every proposal");
        self.after_call(turn, false);
    }

    fn announce_leader(&mut self, turn: &mut Turn<'_>) {
        let leader = (Term(self.raw.raft.term), to_node(self.raw.raft.leader_id));
        let (_, announced) = self.announced;
        if leader == self.announced || (leader.1.is_none() && announced.is_none()) {
            return;
        }
        self.announced = leader;
        let (term, leader) = leader;
        turn.out.events.push(Event::LeaderChanged { group: self.group, term, leader });
    }

    /// Follows every call into raft-rs.
    fn after_call(&mut self, turn: &mut Turn<'_>, has_campaigned: bool) {
        self.miscount();
        self.write_draw(turn.config, has_campaigned);
        let raft = &self.raw.raft;
        let term = Term(raft.term);
        let is_leading = |of: Term| raft.state == StateRole::Leader && term == of;
        let log = &raft.raft_log;
        let is_any_ours = mutants::is(Mutant::AnswerByIndex);
        let is_ours = |index: Index, of: Term| is_leading(of) || log.match_term(index.0, of.0) || is_any_ours;
        let leader = self.leader_hint();
        let is_early = mutants::is(Mutant::LocalCommit) && raft.state == StateRole::Leader;
        let commit = if is_early { log.last_index() } else { log.committed };
        self.pending.handle_commit(Index(commit), leader, is_ours, &mut turn.out.replies);
        if self.leading.is_some_and(|of| !is_leading(of)) {
            if mutants::is(Mutant::LostLeaderAnswers) {
                let all = Index(u64::MAX);
                self.pending.handle_commit(all, leader, |_, _| true, &mut turn.out.replies);
            }
            if !is_any_ours {
                self.pending.handle_leadership_lost(leader, &mut turn.out.replies);
            }
            self.commands.handle_leadership_lost(self.group, leader, &mut turn.out.replies);
            self.commands.ahead.handle_leadership_lost();
            self.leadership.handle_lost();
            let unknown = RequestError::OutcomeUnknown { leader };
            self.members.fail(self.group, &unknown, &mut turn.out.replies);
            self.leading = None;
            self.snapshots.outgoing.clear();
            self.raw.raft.maybe_free_inflight_buffers();
        }
        let known = (term, to_node(self.raw.raft.leader_id));
        self.reads.handle_leader(known, &mut turn.out.replies);
        if self.is_leader() && self.leading.is_none() {
            self.leading = Some(term);
            self.lease = Lease::default();
            self.look_ahead();
        }
    }

    /// Puts our election timeout in place of the one that raft-rs drew, or may have drawn.
    fn write_draw(&mut self, config: &ShardConfig, has_campaigned: bool) {
        let now = (Term(self.raw.raft.term), self.raw.raft.state);
        if now != self.drawn_for || has_campaigned {
            self.drawn_for = now;
            self.draws += 1;
            self.draw = Draw {
                seed: config.seed,
                node: self.node,
                group: self.group,
                term: now.0,
                attempt: self.draws,
                voters: &self.voters,
                ticks: config.election_ticks,
            }
            .election_ticks();
        }
        self.raw.raft.set_randomized_election_timeout(self.draw as usize);
    }
}

impl LogView for Replica {
    fn term_at(&self, index: Index) -> Term {
        Term(self.raw.raft.raft_log.term(index.0).expect("terms of the whole log are in memory"))
    }

    fn offset_after(&self, index: Index) -> Offset {
        let log = &self.raw.raft.raft_log;
        let stable = Index(log.unstable.offset - 1);
        if index <= stable {
            return log.store.end_at(index);
        }
        let count = usize::try_from(index.0 - stable.0).expect("a position in memory");
        let headers = log.unstable.entries.iter().take(count).rev().filter(|entry| {
            entry.entry_type == eraftpb::EntryType::EntryNormal && has_records(EntryKind::Normal, &entry.data)
        });
        let mut headers = headers.map(|entry| crate::batch::BatchHeader::parse(&entry.data));
        match headers.next() {
            Some(header) => header.expect("a batch in the log was checked before it came here").end(),
            None => log.store.end_at(stable),
        }
    }
}

/// Ways to break a replica from within, for tests of what contains it.
#[cfg(test)]
impl Replica {
    pub(crate) fn plant_commit_beyond_last(&mut self) {
        self.raw.raft.raft_log.committed = u64::MAX / 2;
    }

    pub(crate) fn plant_miscounted_reads(&mut self) {
        self.reads.plant_miscount();
    }

    /// The next end of a turn panics once it has said everything.
    pub(crate) fn plant_panic_after_turn(&mut self) {
        (self.applied, self.commit) = (Index(u64::MAX / 4), Index(u64::MAX / 2));
        self.has_state_machine = true;
    }
}

fn raft_config(config: &ShardConfig, commit: Index) -> raft::Config {
    let (shortest, longest) = config.election_ticks;
    raft::Config {
        id: config.node.0,
        election_tick: config.lease_ticks as usize,
        heartbeat_tick: config.heartbeat_ticks as usize,
        // raft-rs' applied index is the cursor of membership changes only; ours is `applied`.
        applied: commit.0,
        max_size_per_msg: config.message_bytes_max as u64,
        max_inflight_msgs: config.inflight_messages_max,
        check_quorum: true,
        pre_vote: true,
        min_election_tick: shortest as usize,
        max_election_tick: longest as usize + 1,
        read_only_option: ReadOnlyOption::Safe,
        skip_bcast_commit: false,
        batch_append: false,
        // Ours chooses successors, and never refuses a vote: see `leadership`.
        priority: 0,
        // Uncommitted bytes are bounded by `pending_bytes_max`, before Raft sees them.
        max_uncommitted_size: raft::NO_LIMIT,
        max_committed_size_per_ready: raft::NO_LIMIT,
    }
}
