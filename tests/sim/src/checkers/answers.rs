//! Of when an answer is: exactly the state after the applied index that it states, which is committed and never goes
//! back while a replica is there; and a leader was not heard later than stated (this project's promise: `Freshness`).

use std::collections::BTreeMap;
use std::time::Duration;

use iroh_raft_core::batch::Batch;
use iroh_raft_core::{
    Freshness, GroupId, GroupStatus, Index, LogEntry, NodeId, Role, Term, Timestamp, Token,
};

use super::{Checked, ensure};
use crate::machine::{self, Change};

#[derive(Default, Debug)]
struct States {
    /// Entries that are looked through.
    upto: Index,
    /// What each register held from which index on, in order.
    registers: BTreeMap<u32, Vec<(Index, u64)>>,
}

impl States {
    fn at(&self, register: u32, index: Index) -> u64 {
        let values = self.registers.get(&register).map_or(&[][..], Vec::as_slice);
        let count = values.partition_point(|(from, _)| *from <= index);
        values[..count].last().map_or(0, |(_, value)| *value)
    }

    fn apply(&mut self, index: Index, command: &[u8]) {
        let Some((register, change)) = machine::decode(command) else { return };
        let held = self.at(register, index);
        let value = match change {
            Change::Write { value } => value,
            Change::Swap { expected, value } if expected == held => value,
            Change::Swap { .. } => return,
        };
        self.registers.entry(register).or_default().push((index, value));
    }
}

#[derive(Default, Debug)]
pub(crate) struct Answers {
    states: BTreeMap<GroupId, States>,
    /// Where each replica answered last.
    last: BTreeMap<(NodeId, GroupId), Index>,
    /// When each replica was last sent something by a leader, or by one that was.
    heard: BTreeMap<(NodeId, GroupId), Timestamp>,
    /// Local reads of the turn under way: time since then as they were asked, and the term in which the replica
    /// followed before the turn, if it did.
    local: BTreeMap<Token, (Option<Duration>, Option<Term>)>,
}

impl Answers {
    /// A node's process ended.
    pub(super) fn stopped(&mut self, node: NodeId) {
        self.last.retain(|(of, _), _| *of != node);
        self.heard.retain(|(of, _), _| *of != node);
    }

    /// A replica left, or begins anew while its node runs: it begins with nothing.
    pub(super) fn left(&mut self, node: NodeId, group: GroupId) {
        self.last.remove(&(node, group));
        self.heard.remove(&(node, group));
    }

    /// A state machine is given committed entries.
    pub(super) fn applied(&mut self, group: GroupId, entries: &[LogEntry]) {
        let states = self.states.entry(group).or_default();
        for entry in entries {
            // The others of the group are given the same.
            if entry.index != states.upto.next() {
                continue;
            }
            states.upto = entry.index;
            if let Ok(batch) = Batch::parse(&entry.data) {
                batch.records().for_each(|(_, command)| states.apply(entry.index, command));
            }
        }
    }

    /// A replica takes a message that a leader sends.
    pub(super) fn heard(&mut self, now: Timestamp, node: NodeId, group: GroupId) {
        self.heard.insert((node, group), now);
    }

    /// A replica takes a local read; `before` is how it stood before the turn.
    pub(super) fn asked(
        &mut self,
        now: Timestamp,
        (node, group, token): (NodeId, GroupId, Token),
        before: Option<&GroupStatus>,
    ) {
        let heard = self.heard.get(&(node, group)).map(|heard| now.since(*heard));
        let followed = before.filter(|status| status.role != Role::Leader).map(|status| status.term);
        self.local.insert(token, (heard, followed));
    }

    /// A replica says that a read may look; `after` is how it stands after the turn, `committed` what anybody knows.
    pub(super) fn ready(
        &mut self,
        (node, group, token): (NodeId, GroupId, Token),
        freshness: &Freshness,
        after: Option<&GroupStatus>,
        committed: Index,
    ) -> Checked {
        let Freshness { applied, commit, heard } = *freshness;
        let who = || format!("node {node} group {group}: {freshness:?}, committed is {committed}");
        ensure(applied <= commit && commit <= committed, "answers are of what is committed", who)?;
        let last = self.last.insert((node, group), applied).unwrap_or_default();
        ensure(last <= applied, "answers of a replica do not go back", || format!("{}, was {last}", who()))?;
        let Some((least, followed)) = self.local.remove(&token) else { return Ok(()) };
        // A leader hears nobody: it may have been one at any time of the turn, unless it followed throughout.
        let has_followed =
            after.is_some_and(|status| status.role != Role::Leader && followed == Some(status.term));
        let is_honest = match heard {
            None => true,
            Some(Duration::ZERO) if !has_followed => true,
            Some(heard) => least.is_some_and(|least| heard >= least),
        };
        ensure(is_honest, "an answer is no newer than it says", || {
            format!("{}; the last message of a leader came {least:?} before", who())
        })
    }

    /// A turn is over.
    pub(super) fn turn_over(&mut self) {
        self.local.clear();
    }

    /// An answer about a register leaves a node.
    pub(crate) fn answered(
        &self,
        node: NodeId,
        group: GroupId,
        register: u32,
        freshness: &Freshness,
        value: u64,
    ) -> Checked {
        let expected = self.states.get(&group).map_or(0, |states| states.at(register, freshness.applied));
        ensure(value == expected, "an answer is of the state that it states", || {
            format!(
                "node {node} group {group} register {register}: {value}, after {} it is {expected}",
                freshness.applied
            )
        })
    }
}
