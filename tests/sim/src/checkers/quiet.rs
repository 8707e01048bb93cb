//! Quiet groups (CockroachDB: quiescence; TiKV: hibernate regions): nobody is quiet with work to do, and quiet is quiet.
//!
//! - A quiet replica has committed all that it has.
//! - A leader is quiet only once every member has agreed to this very state, except those whose shard of the group it has
//!   not heard of for a lease.
//! - What is quiet and stays so writes nothing, and says nothing but that it is.

use std::collections::{BTreeMap, BTreeSet};

use iroh_raft_core::{
    GroupId, GroupStatus, Index, Input, MessageKind, NodeId, Outputs, Placement, Role, ShardConfig, ShardId,
    Term, Timestamp,
};

use super::{Checked, ensure};

/// Who has nodded, to which term and end of the log.
type Nods = BTreeSet<(NodeId, Term, Index)>;

#[derive(Default, Debug)]
pub(super) struct Quiets {
    /// Who has agreed with a replica to what.
    nods: BTreeMap<(NodeId, GroupId), Nods>,
    /// Groups that took a message in the turn under way: they may have woken, and gone quiet again.
    spoken_to: BTreeSet<GroupId>,
    /// When a shard last heard of a shard of another node.
    beats: BTreeMap<(NodeId, ShardId, NodeId, u64), Timestamp>,
    /// How groups are placed on other nodes, as a shard was told.
    told: BTreeMap<(NodeId, ShardId, NodeId), Placement>,
    /// Since when a replica knows whom as a member: beats before that were of nobody that it shares a group with.
    known: BTreeMap<(NodeId, GroupId), BTreeMap<NodeId, Timestamp>>,
}

impl Quiets {
    /// A shard was started.
    pub(super) fn booted(&mut self, node: NodeId, shard: ShardId) {
        self.beats.retain(|(of, on, ..), _| (*of, *on) != (node, shard));
        self.told.retain(|(of, on, _), _| (*of, *on) != (node, shard));
        self.known.retain(|(of, _), _| *of != node);
    }

    pub(super) fn input(&mut self, node: NodeId, shard: ShardId, now: Timestamp, input: &Input) {
        if let Input::Placement { node: of, placement } = input {
            self.told.insert((node, shard, *of), placement.clone());
        }
        let Input::Message(message) = input else { return };
        self.spoken_to.insert(message.group);
        match message.kind {
            MessageKind::Beat => {
                // Its term says from which shard it is, and to which.
                self.beats.insert((node, shard, message.from, message.term.0 >> 16), now);
            }
            MessageKind::HeartbeatResponse if message.index > Index(0) => {
                let nod = (message.from, message.term, message.index);
                self.nods.entry((node, message.group)).or_default().insert(nod);
            }
            _ => {}
        }
    }

    /// A replica stands so at the end of a turn; `before` is how it stood before it.
    pub(super) fn status(
        &mut self,
        (node, shard, now): (NodeId, ShardId, Timestamp),
        (config, own): (&ShardConfig, &Placement),
        status: &GroupStatus,
        before: Option<&GroupStatus>,
    ) -> Checked {
        let group = status.group;
        let members = || status.members.voters.iter().chain(&status.members.learners).copied();
        let known = self.known.entry((node, group)).or_default();
        known.retain(|member, _| members().any(|of| of == *member));
        members().for_each(|member| {
            known.entry(member).or_insert(now);
        });
        if !status.is_quiet {
            return Ok(());
        }
        ensure(status.commit == status.last, "nobody is quiet with work to do", || {
            format!("node {node} is quiet: {status:?}")
        })?;
        let is_new = status.role == Role::Leader && before.is_none_or(|before| !before.is_quiet);
        if !is_new {
            return Ok(());
        }
        let nods = self.nods.remove(&(node, group)).unwrap_or_default();
        // A tick and a turn: when they fall silent is noticed at ticks.
        let lease = config.tick * (config.lease_ticks - 1);
        let is_heard = |member: NodeId| {
            let placement = self.told.get(&(node, shard, member)).unwrap_or(own);
            let of = u64::from(placement.shard_of(group).0);
            let beat = self.beats.get(&(node, shard, member, of));
            beat.is_some_and(|beat| *beat > known[&member] && now.since(*beat) < lease)
        };
        let has_nodded = |member: NodeId| nods.contains(&(member, status.term, status.last));
        let asleep: Vec<NodeId> =
            members().filter(|member| *member != node && is_heard(*member) && !has_nodded(*member)).collect();
        ensure(asleep.is_empty(), "groups go quiet together", || {
            format!("node {node} is quiet without {asleep:?}: {status:?}")
        })
    }

    /// A shard has said something, about groups that were quiet before the turn and are after it.
    pub(super) fn turn(
        &mut self,
        node: NodeId,
        outputs: &Outputs,
        is_quiet: impl Fn(GroupId) -> bool,
    ) -> Checked {
        let spoken_to = std::mem::take(&mut self.spoken_to);
        let is_meant = |group: &GroupId| is_quiet(*group) && !spoken_to.contains(group);
        let sends = outputs.sends.iter().map(|send| &send.message);
        let loud = sends.filter(|message| message.kind != MessageKind::HeartbeatResponse);
        let said = loud.map(|message| (message.group, message.kind)).find(|(group, _)| is_meant(group));
        let written = outputs.append.iter().flat_map(|append| &append.groups).map(|append| append.group);
        let written = written.into_iter().find(is_meant);
        ensure(said.is_none() && written.is_none(), "quiet groups are quiet", || {
            format!("node {node} says {said:?}, or writes for {written:?}, which is quiet")
        })
    }
}
