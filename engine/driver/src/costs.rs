//! What each group of a shard costs.

use std::collections::HashMap;
use std::time::Duration;

use iroh_raft_core::{Append, GroupId, PeerMessage};

/// Room for the groups of one turn that is kept for the next.
const TURN_ROOM_MAX: usize = 4096;

/// What a group has cost its shard since the node started. Sums over a shard's groups are at most what the shard itself
/// used: what no group asked for is nobody's.
#[derive(Clone, Copy, PartialEq, Eq, Default, Debug)]
pub struct GroupCost {
    /// CPU time of the shard's thread: of each turn, and of waking up for it, the part of its inputs that were this group's.
    /// Without the writer's, the mover's and the bridge's, which come with the bytes.
    pub cpu: Duration,
    /// Messages of peers, requests and the like that the shard took for it.
    pub inputs: u64,
    /// Records acknowledged by this replica as the leader.
    pub records: u64,
    /// Flushes with something of this group in them, shared with other groups.
    pub flushes: u64,
    /// Bytes of its entries in them. The disk writes them to the journal, and again to the log file.
    pub written_bytes: u64,
    /// Messages sent to other nodes.
    pub messages: u64,
    /// Bytes of entries in them.
    pub sent_bytes: u64,
}

/// Adds up the costs of a shard's groups.
#[derive(Debug)]
pub(crate) struct Costs {
    cpu_time: fn() -> Duration,
    /// What `cpu_time` said as the last turn ended.
    cpu_last: Duration,
    groups: HashMap<GroupId, GroupCost>,
    /// Inputs of the current turn.
    turn: Vec<(GroupId, u32)>,
}

impl Costs {
    /// `cpu_time` is what the calling thread has used.
    pub(crate) fn new(cpu_time: fn() -> Duration) -> Costs {
        Costs { cpu_time, cpu_last: Duration::ZERO, groups: HashMap::new(), turn: Vec::new() }
    }

    /// Something came in for a group.
    pub(crate) fn input(&mut self, group: GroupId) {
        match self.turn.last_mut() {
            Some((last, count)) if *last == group => *count += 1,
            _ => self.turn.push((group, 1)),
        }
    }

    pub(crate) fn append(&mut self, append: &Append) {
        for part in &append.groups {
            let Some(cost) = self.groups.get_mut(&part.group) else { continue };
            cost.flushes += 1;
            cost.written_bytes += part.entries.iter().map(|entry| entry.data.len() as u64).sum::<u64>();
        }
    }

    pub(crate) fn send(&mut self, message: &PeerMessage) {
        let Some(cost) = self.groups.get_mut(&message.group) else { return };
        cost.messages += 1;
        cost.sent_bytes += message.entries.iter().map(|entry| entry.data.len() as u64).sum::<u64>();
    }

    pub(crate) fn acknowledged(&mut self, group: GroupId, records: u32) {
        if let Some(cost) = self.groups.get_mut(&group) {
            cost.records += u64::from(records);
        }
    }

    /// A turn ends: what it used is shared out. `is_here` says whether the shard has a group: peers may name any.
    pub(crate) fn end_turn(&mut self, is_here: impl Fn(GroupId) -> bool) {
        let cpu = (self.cpu_time)();
        let spent = cpu.saturating_sub(self.cpu_last);
        self.cpu_last = cpu;
        let all = self.turn.iter().fold(0_u32, |sum, (_, inputs)| sum.saturating_add(*inputs));
        for (group, inputs) in self.turn.drain(..) {
            if !self.groups.contains_key(&group) && !is_here(group) {
                continue;
            }
            let cost = self.groups.entry(group).or_default();
            cost.inputs += u64::from(inputs);
            cost.cpu += spent.mul_f64(f64::from(inputs) / f64::from(all));
        }
        self.turn.shrink_to(TURN_ROOM_MAX);
    }

    /// The group is gone from here.
    pub(crate) fn forget(&mut self, group: GroupId) {
        self.groups.remove(&group);
    }

    /// In no order.
    pub(crate) fn snapshot(&self) -> Vec<(GroupId, GroupCost)> {
        self.groups.iter().map(|(group, cost)| (*group, *cost)).collect()
    }
}

#[cfg(test)]
mod tests {
    use std::cell::Cell;

    use super::*;

    thread_local! { static CPU_MS: Cell<u64> = const { Cell::new(0) }; }

    #[test]
    fn a_turn_is_shared_by_inputs_and_strangers_cost_nothing() {
        let mut costs = Costs::new(|| Duration::from_millis(CPU_MS.get()));
        let [one, two, stranger] = [1, 2, 3].map(GroupId);
        for group in [one, one, two, one, stranger] {
            costs.input(group);
        }
        CPU_MS.set(10);
        costs.end_turn(|group| group != stranger);
        costs.input(two);
        CPU_MS.set(13);
        costs.end_turn(|group| group != stranger);
        costs.acknowledged(one, 7);
        let mut found = costs.snapshot();
        found.sort_unstable_by_key(|(group, _)| *group);
        let cost = |ms, inputs, records| GroupCost {
            cpu: Duration::from_millis(ms),
            inputs,
            records,
            ..GroupCost::default()
        };
        assert_eq!(found, [(one, cost(6, 3, 7)), (two, cost(5, 2, 0))]);
        costs.forget(one);
        assert_eq!(costs.snapshot(), [(two, cost(5, 2, 0))]);
    }
}
