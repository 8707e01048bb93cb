//! What must hold in every run, checked as it goes. Each file says whose rule it checks.
//!
//! They see what goes into every core and what comes out of it, every message that leaves a node, and what
//! recovery finds; they see it all at once, which no replica ever does.

mod acknowledged;
mod answers;
pub(crate) mod bank;
mod commits;
mod durable;
mod elections;
mod hashes;
mod leadership;
pub(crate) mod linear;
mod log;
pub(crate) mod members;
mod past;
mod placement;
mod quiet;
pub(crate) mod reading;
mod recoveries;
mod repair;
mod sent;
pub(crate) mod sessions;
mod snapshots;
mod trace;

use std::collections::{BTreeMap, BTreeSet, VecDeque};

use iroh_raft_core::{
    Apply, Consistency, Event, FetchError, FlushSeq, GroupId, GroupState, GroupStatus, Index, Input,
    LogChange, MessageKind, NodeId, Outputs, PeerMessage, Placement, Reply, RestoreProblem, Role, Shard,
    ShardId, SnapshotEvent, Term, Timestamp, Token,
};

use crate::clock::elapsed;
use crate::marks::Marks;
use crate::plan::Plan;
use acknowledged::Acknowledged;
use answers::Answers;
use bank::Banks;
use commits::Commits;
use durable::Durable;
use elections::Elections;
use hashes::Hashes;
use leadership::Leadership;
use log::Logs;
use past::Past;
use placement::Placed;
use quiet::Quiets;
use recoveries::{Recoveries, group_of};
use repair::Repairs;
use snapshots::Snapshots;
use trace::Trace;

pub(crate) use acknowledged::read as acknowledged_read;
pub(crate) use log::record_hash;

/// Lines that are kept of a run that is told.
const TOLD_MAX: usize = 2000;

/// Term and content of an entry.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub(crate) struct EntryId {
    pub(crate) term: Term,
    pub(crate) hash: u64,
}

/// Something that must never happen.
#[derive(Clone, Debug)]
pub(crate) struct Violation {
    pub(crate) invariant: &'static str,
    pub(crate) what: String,
}

/// The result of a check: what was seen, if it broke the rule.
pub(crate) type Checked = Result<(), Violation>;

/// Breaks a rule unless something holds.
pub(crate) fn ensure(holds: bool, invariant: &'static str, what: impl FnOnce() -> String) -> Checked {
    if holds { Ok(()) } else { Err(Violation { invariant, what: what() }) }
}

/// All checkers together.
pub(crate) struct Checks {
    plan: Plan,
    pub(crate) violation: Option<Violation>,
    pub(crate) marks: Marks,
    pub(crate) elected: u64,
    /// Requests of members for votes, and for pre-votes.
    pub(crate) campaigns: u64,
    pub(crate) trace: Trace,
    durable: Durable,
    elections: Elections,
    leadership: Leadership,
    logs: Logs,
    placed: Placed,
    quiets: Quiets,
    pub(crate) recoveries: Recoveries,
    past: Past,
    repairs: Repairs,
    snapshots: Snapshots,
    pub(crate) commits: Commits,
    pub(crate) acknowledged: Acknowledged,
    pub(crate) answers: Answers,
    pub(crate) banks: Banks,
    pub(crate) hashes: Hashes,
    /// Replicas whose state machine could not be restored, since their snapshot is damaged.
    unrestored: BTreeSet<(NodeId, GroupId)>,
    /// Reads by a lease that came in this turn.
    leased: BTreeSet<Token>,
    /// How each replica stood at the end of its last turn.
    statuses: BTreeMap<(NodeId, GroupId), GroupStatus>,
    /// The last things that happened, if they are told.
    told: Option<VecDeque<String>>,
}

impl Checks {
    pub(crate) fn new(plan: &Plan, is_told: bool) -> Checks {
        Checks {
            plan: plan.clone(),
            violation: None,
            marks: Marks::default(),
            elected: 0,
            campaigns: 0,
            trace: Trace::default(),
            durable: Durable::default(),
            elections: Elections::default(),
            leadership: Leadership::default(),
            logs: Logs::default(),
            placed: Placed::default(),
            quiets: Quiets::default(),
            recoveries: Recoveries::default(),
            past: Past::default(),
            repairs: Repairs::default(),
            snapshots: Snapshots::default(),
            commits: Commits::new(plan),
            acknowledged: Acknowledged::default(),
            answers: Answers::default(),
            banks: Banks::default(),
            hashes: Hashes::default(),
            unrestored: BTreeSet::new(),
            leased: BTreeSet::new(),
            statuses: BTreeMap::new(),
            told: is_told.then(VecDeque::new),
        }
    }

    /// Keeps the first violation.
    pub(crate) fn note(&mut self, checked: Checked) {
        if let (Err(violation), None) = (checked, &self.violation) {
            self.tell(|| format!("VIOLATION {}: {}", violation.invariant, violation.what));
            self.violation = Some(violation);
        }
    }

    pub(crate) fn tell(&mut self, line: impl FnOnce() -> String) {
        if let Some(told) = &mut self.told {
            if told.len() == TOLD_MAX {
                told.pop_front();
            }
            told.push_back(format!("{:>12.6} {}", elapsed().as_secs_f64(), line()));
        }
    }

    pub(crate) fn told(&self) -> impl Iterator<Item = &str> {
        self.told.iter().flatten().map(String::as_str)
    }

    /// A node's process ended.
    pub(crate) fn stopped(&mut self, node: NodeId) {
        self.statuses.retain(|(of, _), _| *of != node);
        self.unrestored.retain(|(of, _)| *of != node);
        self.answers.stopped(node);
        self.commits.reading.stopped(node);
        self.recoveries.stopped(node);
    }

    /// A node starts with its groups placed like this.
    pub(crate) fn placed(&mut self, node: NodeId, placement: &Placement) {
        self.tell(|| format!("node {node} starts with {placement:?}"));
        self.placed.starts(node, placement);
    }

    /// A shard was opened, not to run, but to be read; these are the replicas that recovery found.
    pub(crate) fn looked(&mut self, node: NodeId, shard: ShardId, last_seq: FlushSeq, found: &[GroupState]) {
        let checked = self.durable.booted(node, shard, last_seq, found, &mut self.marks);
        self.note(checked);
    }

    /// A node's groups, looked at before, are on these shards.
    pub(crate) fn moved(&mut self, node: NodeId, placement: &Placement) {
        self.durable.moved(node, placement);
    }

    /// A shard was opened; these are the replicas that recovery found.
    pub(crate) fn booted(&mut self, node: NodeId, shard: ShardId, last_seq: FlushSeq, found: &[GroupState]) {
        self.tell(|| format!("node {node} shard {shard} starts after flush {last_seq}"));
        self.leadership.booted(node, shard);
        self.quiets.booted(node, shard);
        let checked = self.durable.booted(node, shard, last_seq, found, &mut self.marks);
        self.note(checked);
        found.iter().for_each(|state| self.found(node, state));
        self.trace.booted(node, shard, last_seq, found);
    }

    /// A replica begins with what its disk holds.
    fn found(&mut self, node: NodeId, state: &GroupState) {
        let checked = self.repairs.booted(node, state, &self.durable, &mut self.marks);
        self.note(checked);
        let is_unrestored = self.unrestored.remove(&(node, state.group));
        let covered = state.snapshot.as_ref().map_or(Index(0), |snapshot| snapshot.head.index);
        let has_machine = self.plan.group(state.group).has_machine;
        let needs_snapshot = has_machine && state.start.index > Index(0) && !state.has_left();
        if needs_snapshot && (is_unrestored || covered < state.start.index) {
            self.marks.add("replica begins anew without its snapshot", 1);
            self.durable.lose_all(node, state.group);
            self.repairs.lost_all(node, state.group, &self.durable);
        }
        let entries = self.durable.of(node, state.group).map_or(&[][..], |stored| &stored.entries);
        // A snapshot that was published before the log began after it covers what is damaged.
        let before = self.logs.of(node, state.group);
        let is_covered = state.damage.is_some() && !is_unrestored && state.start.index < covered;
        let entries = if is_covered && covered.0 > entries.len() as u64 {
            before[..before.len().min(usize::try_from(covered.0).expect("a short log"))].to_vec()
        } else {
            entries.to_vec()
        };
        self.recoveries.restarted(node, state.group, state.hard_state.term);
        self.logs.restart(node, state.group, state.hard_state.term, &entries);
        self.commits.restart(node, state.group);
        if !self.plan.liars.contains(&node) {
            let checked = self.snapshots.found(node, state);
            self.note(checked);
        }
        self.snapshots.booted(node, state, &mut self.marks);
        let is_damaged = state.damage.is_some();
        self.marks.add("group damaged at start", u64::from(is_damaged));
        let open = state.conf_changes.iter().filter(|index| **index > state.hard_state.commit).count();
        let checked = ensure(is_damaged || open <= 1, "one change of members at a time", || {
            format!("node {node} starts group {} with {open} changes beyond its commit", state.group)
        });
        self.note(checked);
        let checked = ensure(!is_damaged || self.plan.liars.contains(&node), "damage has a cause", || {
            format!("node {node} finds {:?} damaged: {:?}", state.group, state.damage)
        });
        self.note(checked);
        if !is_damaged {
            let checked = state.tail.iter().try_for_each(|entry| self.logs.check(state.group, entry));
            self.note(checked);
        }
    }

    /// A core is about to take an input.
    pub(crate) fn input(&mut self, node: NodeId, shard: ShardId, now: Timestamp, input: &Input) {
        match input {
            Input::Persisted { seq } => {
                let checked = self.durable.persisted(node, shard, *seq);
                self.note(checked);
            }
            Input::Fetched { group, result: Ok(entries), .. } => {
                self.marks.add("entries fetched from the disk", 1);
                let checked = entries.iter().try_for_each(|entry| self.logs.check(*group, entry));
                self.note(checked);
            }
            Input::Reopened { result: Ok(state), .. } => {
                self.marks.add("group opened again", 1);
                let checked = self.durable.reopened(node, shard, state);
                self.note(checked);
                self.found(node, state);
                self.answers.left(node, state.group);
            }
            Input::Snapshot { group, event } => {
                if matches!(event, SnapshotEvent::NotRestored { problem: RestoreProblem::Damaged, .. }) {
                    self.unrestored.insert((node, *group));
                }
                self.snapshots.event(node, *group, event, &mut self.commits, &mut self.marks);
            }
            Input::Message(message)
                if matches!(message.kind, MessageKind::Append | MessageKind::Heartbeat) =>
            {
                self.answers.heard(now, node, message.group);
            }
            Input::Read { token, group, consistency: Consistency::Local, .. } => {
                let before = self.statuses.get(&(node, *group));
                self.answers.asked(now, (node, *group, *token), before);
            }
            Input::Read { token, consistency: Consistency::Lease, .. } => {
                self.leased.insert(*token);
            }
            _ => {}
        }
        self.commits.reading.input(node, input);
        self.leadership.input(node, shard, now, &self.plan.core, input);
        self.quiets.input(node, shard, now, input);
        self.trace.input(node, shard, now, input);
    }

    /// A turn of a core has ended.
    pub(crate) fn turn(
        &mut self,
        node: NodeId,
        id: ShardId,
        now: Timestamp,
        shard: &Shard,
        outputs: &Outputs,
    ) {
        self.trace.outputs(node, id, now, outputs);
        self.recoveries.look(node, shard);
        let is_void = |group| self.recoveries.is_void(node, group);
        let checked = self.snapshots.turn(node, outputs, &self.commits, is_void);
        self.note(checked);
        if let Some(append) = &outputs.append {
            for part in &append.groups {
                let checked = self.placed.has(node, id, part.group);
                self.note(checked);
                let key = (node, part.group);
                let status = shard.status(part.group);
                let led = |status: Option<&GroupStatus>| {
                    status.filter(|status| status.role == Role::Leader).map(|status| status.term)
                };
                let is_leader =
                    led(status.as_ref()).is_some() && led(status.as_ref()) == led(self.statuses.get(&key));
                self.tell(|| {
                    let range = part.entries.first().zip(part.entries.last());
                    let range = range.map(|(first, last)| (first.index.0, last.index.0, last.term.0));
                    let (group, seq) = (part.group, append.seq);
                    format!("node {node} group {group} flush {seq}: {:?} entries {range:?}", part.hard_state)
                });
                let covered = match part.change {
                    Some(LogChange::StartAfter(start)) if self.recoveries.is_void(node, part.group) => {
                        Some(self.logs.upto(part.group, start).to_vec())
                    }
                    Some(LogChange::StartAfter(start)) => {
                        Some(self.commits.upto(part.group, start.index).to_vec())
                    }
                    _ => None,
                };
                let checked = self.logs.appended(key, part, is_leader, covered.as_deref(), &mut self.marks);
                self.note(checked);
            }
            self.durable.handed_over(node, id, append, |group, index| {
                if self.recoveries.is_void(node, group) {
                    let log = self.logs.of(node, group);
                    return &log[..log.len().min(usize::try_from(index.0).expect("a short log"))];
                }
                self.commits.upto(group, index)
            });
        }
        let checked = outputs.invites.iter().try_for_each(|invite| self.durable.invited(node, invite));
        self.note(checked);
        let is_end = |event: &&Event| matches!(event, Event::ReplicaLeft { .. });
        outputs.events.iter().filter(|event| !is_end(event)).for_each(|event| self.event(node, event));
        let was_quiet = |group| self.statuses.get(&(node, group)).is_some_and(|status| status.is_quiet);
        let is_quiet = |group| was_quiet(group) && shard.status(group).is_some_and(|status| status.is_quiet);
        let checked = self.quiets.turn(node, outputs, is_quiet);
        self.note(checked);
        let is_fenced = outputs.events.contains(&Event::Fenced);
        for status in shard.statuses() {
            if self.recoveries.is_void(node, status.group) {
                self.status_of_void(node, status);
                continue;
            }
            let before = self.statuses.get(&(node, status.group));
            self.marks.add(
                "group quiet",
                u64::from(status.is_quiet && before.is_none_or(|before| !before.is_quiet)),
            );
            let own = self.placed.of(node);
            let checked = self.quiets.status((node, id, now), (&self.plan.core, own), &status, before);
            let checked = checked.and_then(|()| self.placed.has(node, id, status.group));
            self.note(checked);
            if let Some(meta) = shard.meta(status.group).filter(|_| self.violation.is_none()) {
                let (group, commit) = (status.group, status.commit);
                self.status(node, status, is_fenced);
                let checked = self.commits.reading.stands(node, group, commit, meta);
                let checked = checked.and_then(|()| self.commits.sessions.stands(node, group, commit, meta));
                self.note(checked);
            } else {
                self.status(node, status, is_fenced);
            }
        }
        self.replies(node, outputs);
        // A replica that is gone was still there for what else the turn said of it.
        outputs.events.iter().filter(is_end).for_each(|event| self.event(node, event));
        self.answers.turn_over();
        self.leased.clear();
        let checked = self.leadership.turn(node, id, now, &self.plan.core, shard, outputs);
        self.note(checked);
    }

    fn event(&mut self, node: NodeId, event: &Event) {
        self.tell(|| format!("node {node}: {event:?}"));
        match event {
            Event::Quarantined { group, reason } => {
                self.marks.add("group quarantined", 1);
                // A log file that failed can no longer be read either; its shard is about to be fenced.
                let has_cause = self.plan.liars.contains(&node) || *reason == FetchError::Io.to_string();
                let checked = ensure(has_cause, "no quarantine without a cause", || {
                    format!("node {node} took out group {group}: {reason}")
                });
                self.note(checked);
            }
            Event::MessageRefused { .. } => self.marks.add("message refused by the validator", 1),
            Event::DiskHung { .. } => self.marks.add("disk hung", 1),
            Event::MembersChanged { .. } => self.marks.add("members in force", 1),
            Event::ReplicaLeft { group, .. } => {
                self.marks.add("replica left", 1);
                self.statuses.remove(&(node, *group));
                self.commits.restart(node, *group);
                self.repairs.left(node, *group);
                self.recoveries.left(node, *group);
                self.answers.left(node, *group);
            }
            Event::QuorumRecovered { group, last, term, .. } => {
                let before = self.statuses.get(&(node, *group));
                let (log, committed) = (self.logs.of(node, *group), self.commits.of(*group));
                let checked =
                    self.recoveries.recovered((node, *group), (*last, *term), before, log, committed);
                self.note(checked);
            }
            Event::RepairNeeded { group, .. } => {
                self.marks.add("replica under repair", 1);
                let checked = self.repairs.needed(node, *group);
                self.note(checked);
            }
            Event::Repaired { group, .. } => {
                self.marks.add("replica repaired", 1);
                let checked = self.repairs.repaired(node, *group, self.commits.of(*group), &self.durable);
                self.note(checked);
            }
            Event::SnapshotInstalled { .. } => self.marks.add("snapshot installed", 1),
            Event::SnapshotDamaged { group, index } => {
                self.marks.add("stored snapshot damaged", 1);
                let checked = ensure(self.plan.liars.contains(&node), "damage has a cause", || {
                    format!("node {node}: the snapshot of group {group} at {index}")
                });
                self.note(checked);
            }
            Event::SnapshotGivenUp { .. } => self.marks.add("transfer given up", 1),
            Event::LeaderChanged { .. }
            | Event::SnapshotTaken { .. }
            | Event::DiskRecovered { .. }
            | Event::Fenced => {}
        }
    }

    /// A replica of a history that was given up: it leads and votes as any other.
    fn status_of_void(&mut self, node: NodeId, status: GroupStatus) {
        let (group, term) = (status.group, status.term);
        let before = self.statuses.insert((node, group), status.clone());
        self.marks.add("replica of a history that was given up", u64::from(before.is_none()));
        if status.role == Role::Leader
            && before.is_none_or(|before| (before.role, before.term) != (Role::Leader, term))
        {
            self.tell(|| format!("node {node} leads group {group}, which was given up, in term {term}"));
            let checked = self.elections.elected(node, group, term);
            self.note(checked);
        }
    }

    fn status(&mut self, node: NodeId, status: GroupStatus, is_fenced: bool) {
        let group = status.group;
        let before = self.statuses.get(&(node, group)).cloned();
        if status.is_quarantined {
            self.statuses.remove(&(node, group));
        }
        if status.is_quarantined || before.as_ref() == Some(&status) {
            return;
        }
        let log = self.logs.of(node, group);
        let checked = self.commits.advanced(node, &status, before.as_ref(), log, &self.logs);
        self.note(checked);
        // A shard that is fenced in the turn in which it hears of a flush acts on it no more: what it has in force must
        // still be what the log says, but no change is due for that flush.
        let is_durable = |index: Index| {
            let at = usize::try_from(index.0 - 1).expect("a short log");
            let entry = self.commits.of(group).get(at);
            let is_durable = entry.is_some_and(|entry| self.durable.has(node, group, index, entry.term));
            is_durable && !is_fenced
        };
        let checked = self.commits.members.check(node, &status, is_durable);
        self.note(checked);
        let was_leader =
            before.as_ref().filter(|status| status.role == Role::Leader).map(|status| status.term);
        let is_leader = (status.role == Role::Leader).then_some(status.term);
        self.marks.add("leader stepped down", u64::from(was_leader.is_some() && is_leader != was_leader));
        if let Some(term) = is_leader.filter(|_| is_leader != was_leader) {
            self.tell(|| format!("node {node} leads group {group} in term {term}"));
            self.elected += 1;
            self.marks.add("leader elected", 1);
            let checked = self.elections.elected(node, group, term).and_then(|()| {
                let committed = self.commits.of(group);
                log::is_complete(node, group, term, self.logs.of(node, group), committed)
            });
            self.note(checked);
        }
        self.statuses.insert((node, group), status);
    }

    fn replies(&mut self, node: NodeId, outputs: &Outputs) {
        for reply in &outputs.replies {
            let is_void = self.recoveries.is_void(node, group_of(reply));
            let checked = self.commits.reading.replied(node, reply);
            if !is_void {
                self.note(checked);
            }
            match reply {
                Reply::LeadershipGiven { leader: Some(_), .. } => self.marks.add("leadership handed over", 1),
                Reply::LeadershipGiven { leader: None, .. } => {
                    self.marks.add("leader stepped down when told", 1);
                }
                Reply::NotTransferred { .. } => self.marks.add("transfer failed", 1),
                _ => {}
            }
            if is_void {
                continue;
            }
            if let Reply::Recovered { group, recovered, .. } = reply {
                let checked = Recoveries::replied(node, *group, *recovered, &self.durable);
                self.note(checked);
            }
            if let Reply::ReadReady { token, group, freshness } = reply {
                // A round takes longer than a turn.
                self.marks.add("read answered by a lease", u64::from(self.leased.contains(token)));
                let after = self.statuses.get(&(node, *group));
                let committed = self.commits.last(*group);
                let checked = self.answers.ready((node, *group, *token), freshness, after, committed);
                self.note(checked);
            }
            if let Reply::Appended { group, index, term, .. } = reply {
                // A shard that is fenced in the same turn says no more how far it was.
                let (from, log) = (self.commits.last(*group), self.logs.of(node, *group));
                let is_known = *index <= from;
                let checked = self.commits.reached(node, *group, from, *index, log, &self.logs);
                self.note(checked);
                let checked = if is_known {
                    // Answered before, perhaps, and replicas have left since.
                    let known = self.commits.upto(*group, *index).last();
                    ensure(
                        known.is_some_and(|known| known.term == *term),
                        "answers are of what is committed",
                        || {
                            format!(
                                "node {node} answers for entry {index} of term {term} of {group}: {known:?}"
                            )
                        },
                    )
                } else {
                    self.acknowledgeable(node, *group, *index, *term)
                };
                self.note(checked);
            }
        }
        let is_kept = |apply: &&Apply| !self.recoveries.is_void(node, apply.group);
        for apply in outputs.applies.iter().filter(is_kept).collect::<Vec<_>>() {
            for waiter in &apply.waiters {
                let checked = self.acknowledgeable(node, apply.group, waiter.index, waiter.term);
                self.note(checked);
            }
            self.answers.applied(apply.group, &apply.entries);
            let checked =
                apply.entries.iter().try_for_each(|entry| self.commits.applied(node, apply.group, entry));
            self.note(checked);
        }
    }

    fn acknowledgeable(&self, node: NodeId, group: GroupId, index: Index, term: Term) -> Checked {
        let holds = |node| self.durable.holds(node, group, index, term);
        let is_quorum = self.commits.members.is_quorum(group, index, holds);
        ensure(is_quorum, "acknowledged only when durable on a quorum", || {
            let holders: Vec<NodeId> = self.plan.node_ids().filter(|node| holds(*node)).collect();
            let members = self.commits.members.latest(group);
            format!(
                "node {node} answers for entry {index} of term {term} of {group}, which {holders:?} hold, now {members:?}"
            )
        })
    }

    /// Messages leave a node.
    pub(crate) fn sent(&mut self, messages: impl Iterator<Item = PeerMessage>) {
        // A beat is of no group, and said in every interval.
        for message in messages.filter(|message| message.kind != MessageKind::Beat) {
            self.tell(|| {
                let PeerMessage { kind, group, from, to, term, index, log_term, commit, reject, .. } = &message;
                let (count, no) = (message.entries.len(), if *reject { ", no" } else { "" });
                format!("{from} -> {to}: {kind:?} of group {group}, term {term}: {index} of {log_term}, {count} entries, commit {commit}{no}")
            });
            let is_campaign = matches!(message.kind, MessageKind::RequestVote | MessageKind::RequestPreVote);
            // One that was removed and has not heard of it asks on, in vain.
            let is_member = self.commits.members.latest(message.group).is_member(message.from);
            self.campaigns += u64::from(is_campaign && is_member);
            // What a forwarded read has is not of the log.
            let is_append = message.kind == MessageKind::Append;
            let mut entries = message.entries.iter().filter(|_| is_append);
            let checked = sent::check(&message, &self.durable)
                .and_then(|()| self.repairs.sent(&message))
                .and_then(|()| self.past.sent(&message, &self.durable))
                .and_then(|()| self.elections.voted(&message))
                .and_then(|()| entries.try_for_each(|entry| self.logs.check(message.group, entry)));
            self.note(checked);
        }
    }
}

impl Checks {
    /// The node that thinks it leads a group, in the highest term.
    pub(crate) fn leader_of(&self, group: GroupId) -> Option<NodeId> {
        let leaders =
            self.statuses.iter().filter(|((_, of), status)| *of == group && status.role == Role::Leader);
        leaders.max_by_key(|(_, status)| status.term).map(|((node, _), _)| *node)
    }

    /// Whether a replica that runs has all that is known to be committed, on its way to the disk at least.
    pub(crate) fn has_all(&self, node: NodeId, group: GroupId) -> bool {
        self.statuses.contains_key(&(node, group))
            && self.logs.of(node, group).starts_with(self.commits.of(group))
    }

    /// How a replica stood at the end of its last turn; `None` when it does not run or was taken out.
    pub(crate) fn status_of(&self, node: NodeId, group: GroupId) -> Option<&GroupStatus> {
        self.statuses.get(&(node, group))
    }
}
