//! Idle groups go quiet: no ticks and no messages (CockroachDB: quiescence; TiKV: hibernate regions).
//!
//! A leader with nothing to do for `quiet_after` puts its last index into its heartbeats: it asks to go quiet. A
//! follower that has exactly that log, committed, and nothing to do either, nods: its answer carries the index,
//! and from then on it does not tick. When all members whose node is heard have nodded, and are a quorum with
//! it, the leader is quiet, too. Any other answer is a refusal. Until then it goes on with its heartbeats, so
//! nothing waits for a nod that got lost; and a heartbeat that does not ask wakes whoever nodded.
//!
//! A quiet replica wakes for everything that is to be done: a message, a proposal, a read, a change, a transfer, a
//! disk that hangs; a time at which a snapshot is due, or records are too old. And for what its shard hears of other nodes (`liveness.rs`): a follower when its leader's
//! node falls silent or comes under another incarnation; a leader when a member's node comes back, or so many
//! are silent that it has no quorum. A follower that wakes for another reason than its leader's word calls its
//! leader, until it is heard.
//!
//! Why nobody sleeps for ever. A quiet replica that leads nothing trusts one that has led its term. If
//! that one leads still, it is awake, and its heartbeats wake whom they reach; or it is quiet, and then
//! there is nothing to do. If it does not lead, it has either learned of a higher term, or was restarted, or taken
//! out, or a change of members took its vote: restarted and taken out, its node's incarnation changes. In the first case it
//! follows: awake, with an election timeout of its own; or quiet, trusting the leader of a higher term. So trust leads to
//! ever higher terms and ends at a replica that is awake, that leads, or whose node is silent. In the last case those that made
//! up its majority are awake since they took the entry, and ask all that are members for votes.
//!
//! Only one that is no member any more, and has missed it, is asked by nobody and gets no heartbeat. Whoever it trusts has led, with
//! it as a member, and learns sooner or later that it is none: then that shard takes back its word, once for each change in
//! which somebody leaves. Members that come or change their role miss nothing: they get the log, awake or quiet.
//!
//! "A node" above is, to a group, the one shard that has it there. Which one that is, a node says as it connects; it
//! changes with a restart only. So the shard that is taken for it is the right one, or the node has not said yet, or it
//! lives anew since. A new life is noticed as such: the first beat of that shard is of another incarnation, or its beats
//! cease. Whoever trusts a wrong shard from then on wakes when the node says where its groups are, which the bridge
//! repeats until the shard here has taken it; if the node dies before that, those beats cease with it.
//!
//! What rests on time stays right, for it never counted ticks: a lease ends by the clock, with nothing that renews
//! it; so does a promise; a local read says how long ago the leader spoke of this very group. raft-rs' own
//! lease does count ticks: a replica that wakes is given as many as its leader's node has been silent for.

use raft::ProgressState;
use raft::eraftpb::{self, MessageType};

use super::{Index, MessageKind, NodeId, PeerMessage, Replica, Term, Timestamp, Turn};
use crate::convert::{to_node, to_peer_message};
use crate::disk_watch::DiskHealth;
use crate::io::{Send, ShardConfig};
use crate::liveness::Change;
use crate::mutants::{self, Mutant};

/// Below so many bytes a quiet replica keeps no entries in memory: the disk has them, and a little buffer that outlives
/// those around it keeps its whole page.
const KEPT_BYTES_MIN: usize = 4 << 10;

#[derive(Default, Debug)]
pub(super) struct Quiet {
    is_quiet: bool,
    /// Ticks in a row with nothing to do, while we lead.
    idle_ticks: u32,
    /// Who has nodded since we asked; as many as there are members.
    nodded: Vec<NodeId>,
    /// We woke by ourselves, and the leader has not spoken since.
    is_calling: bool,
}

/// Why a replica wakes.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub(super) enum Cause {
    /// The leader has spoken.
    Leader,
    /// Anything else: the leader should wake, too.
    Other,
}

impl Replica {
    pub(crate) fn is_quiet(&self) -> bool {
        self.quiet.is_quiet
    }

    /// There is something to do.
    pub(crate) fn wake(&mut self, turn: &mut Turn<'_>) {
        self.stir(turn, Cause::Other);
    }

    /// There is something to do for leaders.
    pub(crate) fn wake_leader(&mut self, turn: &mut Turn<'_>) {
        if self.is_leader() {
            self.wake(turn);
        }
    }

    pub(super) fn stir(&mut self, turn: &mut Turn<'_>, cause: Cause) {
        self.quiet.idle_ticks = 0;
        self.quiet.nodded.clear();
        if !self.quiet.is_quiet {
            return;
        }
        self.quiet.is_quiet = false;
        // All had what there is when they went quiet: whose node is heard lives.
        let others: Vec<NodeId> = self.others().collect();
        for node in others {
            if let Some(heard) = self.heard(turn, node) {
                self.leadership.hear(node, heard);
                self.members.hear(node, heard);
            }
            if mutants::is(Mutant::LeaseSurvivesQuiet) && self.is_leader() {
                self.lease.handle_answer(turn.now, node, turn.now);
            }
        }
        let leader = self.leader_hint();
        let heard = leader.and_then(|leader| self.heard(turn, leader));
        let silent = heard.map(|heard| turn.now.since(heard).as_nanos() / turn.config.tick.as_nanos());
        let lease_ticks = turn.config.lease_ticks as usize;
        self.raw.raft.election_elapsed = match silent {
            _ if self.is_leader() => 0,
            Some(ticks) => usize::try_from(ticks).unwrap_or(usize::MAX).min(lease_ticks),
            None => lease_ticks,
        };
        // A leader that is not heard may come back before anybody campaigns, and be quiet.
        self.quiet.is_calling = cause == Cause::Other && !self.is_leader();
        if self.quiet.is_calling && heard.is_some() {
            self.call_leader(turn);
        }
    }

    /// A node has come or gone, as far as beats tell.
    pub(crate) fn handle_liveness(&mut self, turn: &mut Turn<'_>, change: Change) {
        if !self.is_quiet() {
            return;
        }
        let (Change::Returned(shard) | Change::Silent(shard)) = change;
        let node = shard.node;
        if turn.placements.at(node, self.group) != shard {
            return;
        }
        let is_concerned = match change {
            Change::Returned(_) if self.is_leader() => self.is_member(node),
            Change::Silent(_) if self.is_leader() => !self.hears_quorum(turn),
            Change::Returned(_) | Change::Silent(_) => self.leader_hint() == Some(node),
        };
        if is_concerned {
            self.wake(turn);
        }
    }

    /// A node has its groups on other shards than was thought: what beats vouched for is not known.
    pub(crate) fn handle_moved(&mut self, turn: &mut Turn<'_>, node: NodeId) {
        let is_led_there = self.leader_hint() == Some(node);
        if is_led_there || (self.is_leader() && self.is_member(node)) {
            self.wake(turn);
        }
    }

    fn is_member(&self, node: NodeId) -> bool {
        self.raw.raft.prs().get(node.0).is_some()
    }

    /// When the shard that has a node's replica of this group last beat; `None` if it is not heard.
    pub(super) fn heard(&self, turn: &Turn<'_>, node: NodeId) -> Option<Timestamp> {
        turn.liveness.heard(turn.placements.at(node, self.group))
    }

    fn others(&self) -> impl Iterator<Item = NodeId> {
        let members = self.raw.raft.prs().iter().map(|(node, _)| NodeId(*node));
        members.filter(|node| *node != self.node)
    }

    /// Whether the nodes that are heard are a quorum with this one.
    fn hears_quorum(&self, turn: &Turn<'_>) -> bool {
        let heard = self.others().filter(|node| self.heard(turn, *node).is_some());
        let nodes = heard.chain([self.node]).map(|node| node.0).collect();
        self.raw.raft.prs().has_quorum(&nodes)
    }

    /// Asks the leader to wake, by an answer that is no nod.
    fn call_leader(&self, turn: &mut Turn<'_>) {
        let raft = &self.raw.raft;
        let Some(leader) = self.leader_hint() else { return };
        let message = eraftpb::Message {
            msg_type: MessageType::MsgHeartbeatResponse,
            from: self.node.0,
            to: leader.0,
            term: raft.term,
            ..Default::default()
        };
        // Its term is durable: nobody is quiet before.
        let send = |message| Send { message, after: None };
        turn.out.sends.extend(to_peer_message(self.group, message).map(send));
    }

    /// Whether nothing waits here, for a tick or for anybody.
    fn is_idle(&self, turn: &Turn<'_>) -> bool {
        let (raft, log) = (&self.raw.raft, &self.raw.raft.raft_log);
        log.committed == log.last_index()
            && log.persisted == log.last_index()
            // What is applied may make a snapshot due.
            && (!self.has_state_machine || self.applied.0 == log.committed)
            && self.persistence.is_at_rest(Term(raft.term), NodeId(raft.vote))
            && self.pending.is_empty()
            && self.reads.count() == 0
            && raft.pending_read_count() == 0
            && self.records.reads() + self.records.tails() == 0
            && self.finds.count() == 0
            && self.commands.is_empty()
            && self.snapshots.is_idle()
            && !self.is_snapshot_due(turn)
            && self.quiet_until(turn.config).is_none_or(|at| turn.now < at)
            && self.fetches.is_empty()
            // What raft-rs has asked for in this turn is fetched at its end.
            && !log.store.is_wanting()
            && !self.is_paused_by_missing
            && !self.members.is_changing()
            && !self.leadership.is_transferring()
            && !self.leadership.is_resting()
            && !self.is_under_repair()
            && turn.disk == DiskHealth::Well
    }

    /// When time alone gives this replica something to do: a snapshot by age, records that grow too old.
    pub(crate) fn quiet_until(&self, config: &ShardConfig) -> Option<Timestamp> {
        [self.retention_due(), self.snapshot_due_by_age(config)].into_iter().flatten().min()
    }

    /// A tick has passed.
    pub(super) fn tick_quiet(&mut self, turn: &mut Turn<'_>) {
        if turn.config.quiet_after.is_none() {
            return;
        }
        if self.is_leader() {
            let has_all = self.is_idle(turn) && self.have_all(turn);
            self.quiet.idle_ticks = if has_all { self.quiet.idle_ticks.saturating_add(1) } else { 0 };
            self.go_quiet(turn);
        } else if self.quiet.is_calling {
            let interval = turn.config.heartbeat_ticks as usize;
            if self.raw.raft.election_elapsed.is_multiple_of(interval) {
                self.call_leader(turn);
            }
        }
    }

    /// Whether all that are heard have the whole log, and are enough.
    fn have_all(&self, turn: &Turn<'_>) -> bool {
        let raft = &self.raw.raft;
        let has_all = |node: NodeId| {
            let progress = raft.prs().get(node.0).expect("a member");
            // Probing is how one that was unreachable goes on: with nothing to send it stays that way.
            progress.state != ProgressState::Snapshot && progress.matched == raft.raft_log.last_index()
        };
        // One without anything of the log may have to be invited, for as long as that takes.
        let has_begun = |node: NodeId| raft.prs().get(node.0).is_some_and(|progress| progress.matched > 0);
        let is_blind = mutants::is(Mutant::QuietWhileLacking);
        let heard = |node: &NodeId| self.heard(turn, *node).is_some();
        raft.commit_to_current_term()
            && self.hears_quorum(turn)
            && self
                .others()
                .all(|node| if heard(&node) { is_blind || has_all(node) } else { has_begun(node) })
    }

    /// Whether our heartbeats ask to go quiet.
    pub(super) fn is_asking_quiet(&self, turn: &Turn<'_>) -> bool {
        let Some(after) = turn.config.quiet_after else { return false };
        let is_due = turn.config.tick * self.quiet.idle_ticks >= after;
        is_due && self.is_leader() && self.is_idle(turn) && self.have_all(turn)
    }

    fn go_quiet(&mut self, turn: &mut Turn<'_>) {
        let is_settled = |node: NodeId| self.quiet.nodded.contains(&node) || self.heard(turn, node).is_none();
        if !self.quiet.is_quiet && self.is_asking_quiet(turn) && self.others().all(is_settled) {
            self.begin_quiet();
        }
    }

    /// What the last work needed is given back: most groups of a shard are quiet most of the time.
    fn begin_quiet(&mut self) {
        if std::mem::replace(&mut self.quiet.is_quiet, true) {
            return;
        }
        self.quiet.nodded = Vec::new();
        // What beats say when it wakes takes their place.
        self.leadership.forget_answers();
        self.members.forget_heard();
        self.persistence.shrink();
        self.pending.shrink();
        let raft = &mut self.raw.raft;
        raft.maybe_free_inflight_buffers();
        raft.raft_log.unstable.entries.shrink_to_fit();
        if raft.raft_log.store.bytes() < KEPT_BYTES_MIN {
            self.evict(0);
        }
        self.raw.raft.raft_log.store.shrink();
    }

    /// What goes out may ask, or nod.
    pub(super) fn prepare_quiet(&self, turn: &Turn<'_>, message: &mut PeerMessage) {
        let last = Index(self.raw.raft.raft_log.last_index());
        match message.kind {
            // One that is not heard may lack entries: its heartbeat tells a lower commit index.
            MessageKind::Heartbeat if message.commit == last && self.is_asking_quiet(turn) => {
                message.index = last;
            }
            MessageKind::HeartbeatResponse if self.is_quiet() => message.index = last,
            _ => {}
        }
    }

    /// A sound message has come, and was not looked at yet: wakes, unless it is part of going quiet.
    pub(super) fn wake_for(&mut self, turn: &mut Turn<'_>, message: &PeerMessage) {
        let is_beating = matches!(message.kind, MessageKind::Heartbeat | MessageKind::HeartbeatResponse);
        let is_current = message.term.0 == self.raw.raft.term;
        let is_quieting = is_beating && is_current && message.index.0 != 0;
        if is_quieting || (is_beating && !self.is_quiet()) {
            return;
        }
        // One that was removed, and that nobody can tell, asks without end.
        let is_asking = matches!(
            message.kind,
            MessageKind::RequestVote | MessageKind::RequestPreVote | MessageKind::MayLeave
        );
        if is_asking && !self.members.now.is_member(message.from) {
            return;
        }
        let is_leaders = matches!(
            message.kind,
            MessageKind::Append | MessageKind::Heartbeat | MessageKind::Snapshot | MessageKind::SnapshotChunk
        );
        self.stir(turn, if is_leaders { Cause::Leader } else { Cause::Other });
    }

    /// Raft has taken a heartbeat, or an answer to one, which had this index and came from there.
    pub(super) fn handle_quiet(
        &mut self,
        turn: &mut Turn<'_>,
        kind: MessageKind,
        from: NodeId,
        term: Term,
        index: Index,
    ) {
        let raft = &self.raw.raft;
        if raft.term != term.0 {
            return;
        }
        let is_blind = mutants::is(Mutant::QuietWhileLacking);
        let is_same = index.0 != 0 && (raft.raft_log.last_index() == index.0 || is_blind);
        match kind {
            MessageKind::Append | MessageKind::Heartbeat if to_node(raft.leader_id) == Some(from) => {
                self.quiet.is_calling = false;
                let is_asked = kind == MessageKind::Heartbeat && index.0 != 0;
                let agrees = is_same
                    && turn.config.quiet_after.is_some()
                    && self.heard(turn, from).is_some()
                    && (self.is_idle(turn) || is_blind);
                if is_asked && agrees {
                    self.begin_quiet();
                } else if is_asked {
                    self.stir(turn, Cause::Leader);
                }
            }
            MessageKind::HeartbeatResponse if self.is_leader() => {
                self.quiet.nodded.retain(|node| *node != from);
                if is_same || mutants::is(Mutant::QuietRefusalIgnored) {
                    self.quiet.nodded.push(from);
                    self.go_quiet(turn);
                } else if self.is_quiet() {
                    self.stir(turn, Cause::Other);
                }
            }
            _ => {}
        }
    }
}
