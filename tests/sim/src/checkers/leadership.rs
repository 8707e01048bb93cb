//! Who leads, and who may not (Raft thesis 3.10; design: a leader commits without its own disk).
//!
//! - A shard whose disk hangs asks nobody for votes, nor does it before one longest election timeout after; and
//!   it gives away what it leads.
//! - Whoever is told to campaign has answered lately.
//! - Who was said to lead did.
//!
//! The disks' state is told anew here from what the shard handed over and heard of, on the node's own clock; time
//! in which the node stood still does not count.

use std::collections::{BTreeMap, VecDeque};
use std::time::Duration;

use iroh_raft_core::{
    FlushSeq, GroupId, GroupStatus, Input, MessageKind, NodeId, Outputs, Reply, Role, Shard, ShardConfig,
    ShardId, Term, Timestamp, TransferError,
};

use super::{Checked, ensure};

/// Transfers that may be under way one after the other before a hung leader steps down: one that began before,
/// one that somebody asked for meanwhile, its own.
const TRANSFERS: u32 = 3;
/// Heartbeats within which an answer is late.
const ANSWER_HEARTBEATS: u32 = 3;

#[derive(Default, Debug)]
struct Disk {
    turn_at: Timestamp,
    open: VecDeque<(FlushSeq, Timestamp)>,
    is_hung: bool,
    /// Until when nobody on it campaigns.
    rests_until: Timestamp,
    /// When a leader of these groups last had no other voter.
    lone_at: BTreeMap<GroupId, Timestamp>,
}

#[derive(Default, Debug)]
pub(super) struct Leadership {
    disks: BTreeMap<(NodeId, ShardId), Disk>,
    /// When a replica last answered one of a shard, or its node beat, on that shard's clock.
    answered: BTreeMap<(NodeId, ShardId, GroupId, NodeId), Timestamp>,
    leaders: BTreeMap<(GroupId, Term), NodeId>,
}

impl Leadership {
    pub(super) fn booted(&mut self, node: NodeId, shard: ShardId) {
        self.disks.insert((node, shard), Disk::default());
        self.answered.retain(|(of, at, _, _), _| (*of, *at) != (node, shard));
    }

    pub(super) fn input(
        &mut self,
        node: NodeId,
        shard: ShardId,
        now: Timestamp,
        config: &ShardConfig,
        input: &Input,
    ) {
        match input {
            Input::Persisted { seq } => {
                let disk = self.disks.entry((node, shard)).or_default();
                while disk.open.front().is_some_and(|(open, _)| open <= seq) {
                    disk.open.pop_front();
                }
                if std::mem::take(&mut disk.is_hung) {
                    disk.rests_until = now.after(election(config));
                }
            }
            Input::Message(message) => {
                let is_answer = matches!(
                    message.kind,
                    MessageKind::AppendResponse
                        | MessageKind::HeartbeatResponse
                        | MessageKind::RequestVoteResponse
                        | MessageKind::Beat
                );
                if is_answer {
                    self.answered.insert((node, shard, message.group, message.from), now);
                }
            }
            _ => {}
        }
    }

    pub(super) fn turn(
        &mut self,
        node: NodeId,
        id: ShardId,
        now: Timestamp,
        config: &ShardConfig,
        shard: &Shard,
        outputs: &Outputs,
    ) -> Checked {
        for status in shard.statuses().filter(|status| status.role == Role::Leader) {
            self.leaders.insert((status.group, status.term), node);
        }
        for message in outputs.sends.iter().map(|send| &send.message) {
            if matches!(message.kind, MessageKind::Append | MessageKind::Heartbeat) {
                self.leaders.insert((message.group, message.term), node);
            }
        }
        self.disk(node, id, now, config, shard, outputs)?;
        for message in outputs.sends.iter().map(|send| &send.message) {
            if message.kind == MessageKind::TimeoutNow {
                // A group that was quiet a moment ago goes by the beats of nodes, which are of no group.
                let of = |group: GroupId| self.answered.get(&(node, id, group, message.to));
                let answered = of(message.group).max(of(GroupId(0)));
                let time =
                    config.tick * (config.heartbeat_ticks * ANSWER_HEARTBEATS + config.lease_ticks + 1);
                ensure(answered.is_some_and(|at| now <= at.after(time)), "successors are alive", || {
                    let (to, group) = (message.to, message.group);
                    format!(
                        "node {node} tells {to} to lead group {group}, which last answered at {answered:?}, now {now:?}"
                    )
                })?;
            }
        }
        outputs.replies.iter().try_for_each(|reply| self.reply(node, shard, reply))
    }

    fn disk(
        &mut self,
        node: NodeId,
        id: ShardId,
        now: Timestamp,
        config: &ShardConfig,
        shard: &Shard,
        outputs: &Outputs,
    ) -> Checked {
        let disk = self.disks.entry((node, id)).or_default();
        let gap = Duration::from_nanos(now.0 - disk.turn_at.0.min(now.0));
        disk.turn_at = now;
        let awake_max = config.tick * config.heartbeat_ticks;
        if gap > awake_max {
            let pause = gap - awake_max + config.tick;
            disk.open.iter_mut().for_each(|(_, since)| *since = since.after(pause));
            // Nor does its own pause say anything about other nodes.
            let beats = self
                .answered
                .iter_mut()
                .filter(|((of, at, group, _), _)| (*of, *at, *group) == (node, id, GroupId(0)));
            beats.for_each(|(_, at)| *at = at.after(pause));
        }
        let oldest =
            disk.open.front().map(|(seq, since)| (*seq, Duration::from_nanos(now.0.saturating_sub(since.0))));
        let hung = oldest.filter(|(_, open)| *open >= config.flush_stuck_after + config.tick);
        disk.is_hung |= hung.is_some();
        let asks = outputs.sends.iter().map(|send| &send.message);
        let asked = asks
            .filter(|message| matches!(message.kind, MessageKind::RequestVote | MessageKind::RequestPreVote));
        let asked: Vec<GroupId> = asked.map(|message| message.group).collect();
        let may_ask = !disk.is_hung && now >= disk.rests_until;
        ensure(asked.is_empty() || may_ask, "nobody campaigns on a hung disk", || {
            let until = disk.rests_until;
            format!(
                "node {node} shard {id} campaigns in {asked:?} at {now:?}, oldest flush {oldest:?}, to rest until {until:?}"
            )
        })?;
        let transfers = config.tick * (config.lease_ticks * TRANSFERS + 5);
        let late = hung.filter(|(_, open)| *open >= config.flush_stuck_after + transfers);
        let led = || shard.statuses().filter(|status| status.role == Role::Leader);
        // A lone voter has nobody to give it to.
        let is_lone = |status: &GroupStatus| status.members.voters.len() == 1 && !status.members.is_joint();
        for status in led().filter(is_lone) {
            disk.lone_at.insert(status.group, now);
        }
        let was_lone = |group| {
            disk.lone_at.get(&group).is_some_and(|at| now < at.after(config.flush_stuck_after + transfers))
        };
        let leader = led().find(|status| late.is_some() && !was_lone(status.group));
        ensure(leader.is_none(), "nobody leads on a hung disk", || {
            format!("node {node} shard {id}: {leader:?}, {late:?}")
        })?;
        if let Some(append) = &outputs.append {
            disk.open.push_back((append.seq, now));
        }
        Ok(())
    }

    fn reply(&self, node: NodeId, shard: &Shard, reply: &Reply) -> Checked {
        let (group, leader, term) = match reply {
            Reply::LeadershipGiven { group, leader: None, term, .. } => {
                let status = shard.status(*group);
                let leads = status.is_some_and(|status| status.role == Role::Leader && status.term == *term);
                return ensure(!leads, "who stepped down does not lead", || {
                    format!("node {node} leads group {group} in term {term}, which it gave up")
                });
            }
            Reply::LeadershipGiven { group, leader: Some(leader), term, .. } => (group, leader, term),
            Reply::NotTransferred { group, error: TransferError::WonByAnother { leader, term }, .. } => {
                (group, leader, term)
            }
            _ => return Ok(()),
        };
        let known = self.leaders.get(&(*group, *term));
        ensure(known == Some(leader), "an answered transfer did what it said", || {
            format!("node {node} says that {leader} leads group {group} in term {term}; known: {known:?}")
        })
    }
}

fn election(config: &ShardConfig) -> Duration {
    config.tick * config.election_ticks.1
}
