//! Linearizability of registers: the algorithm of Wing and Gong with Lowe's memory of configurations already tried
//! (Lowe, "Testing for linearizability", 2017), one register at a time, which is enough (Herlihy and Wing 1990:
//! linearizability is local).

use std::collections::{BTreeMap, HashSet};
use std::time::Duration;

use iroh_raft_core::GroupId;

use super::Violation;
use crate::machine::Change;

/// What was done to a register, and what was answered; `None` while nobody knows.
#[derive(Clone, Copy, Debug)]
pub(crate) enum Action {
    Change { change: Change, before: Option<u64> },
    Read { value: u64 },
}

/// An action from its call to its return.
#[derive(Clone, Copy, Debug)]
pub(crate) struct Operation {
    pub(crate) called: Duration,
    /// `None`: it may take effect at any time after its call, or never.
    pub(crate) returned: Option<Duration>,
    pub(crate) action: Action,
}

/// Configurations after which the search gives up on a register: it is then not decided.
const CONFIGURATIONS_MAX: usize = 200_000;

#[derive(Default, Debug)]
pub(crate) struct Histories {
    registers: BTreeMap<(GroupId, u32), Vec<Operation>>,
}

impl Histories {
    pub(crate) fn record(&mut self, group: GroupId, register: u32, operation: Operation) {
        self.registers.entry((group, register)).or_default().push(operation);
    }

    /// Checks every register; returns how many could not be decided.
    pub(crate) fn check(&mut self) -> Result<u64, Violation> {
        let mut undecided = 0;
        for ((group, register), operations) in &mut self.registers {
            // A read that nobody heard of tells nothing and changes nothing: it was not recorded.
            operations.sort_by_key(|operation| operation.called);
            match is_linearizable(operations) {
                Some(true) => {}
                None => undecided += 1,
                Some(false) => {
                    let what = format!("group {group} register {register}: {operations:#?}");
                    return Err(Violation { invariant: "reads and changes are linearizable", what });
                }
            }
        }
        Ok(undecided)
    }
}

/// What a register holds after an action, if it can have happened to one that holds `value`.
fn apply(action: Action, value: u64) -> Option<u64> {
    match action {
        Action::Read { value: read } => (read == value).then_some(value),
        Action::Change { before: Some(before), .. } if before != value => None,
        Action::Change { change: Change::Write { value }, .. } => Some(value),
        Action::Change { change: Change::Swap { expected, value: new }, .. } => {
            Some(if expected == value { new } else { value })
        }
    }
}

/// Whether the operations, sorted by call, have an order that explains them; `None` when that is too hard.
pub(crate) fn is_linearizable(operations: &[Operation]) -> Option<bool> {
    let mut tried: HashSet<(Vec<u64>, u64)> = HashSet::new();
    // Depth first: the configuration and the next operation to try from it.
    let mut done = vec![0u64; operations.len().div_ceil(64)];
    let mut value = 0;
    let mut path: Vec<(usize, u64)> = Vec::new();
    let mut next = 0;
    let is_done = |done: &[u64], at: usize| done[at / 64] >> (at % 64) & 1 == 1;
    loop {
        let is_left = |at: &usize| !is_done(&done, *at) && operations[*at].returned.is_some();
        // Nothing may come before an operation that returned before it was called.
        let deadline = (0..operations.len()).filter(is_left).filter_map(|at| operations[at].returned).min();
        let Some(deadline) = deadline else { return Some(true) };
        let candidate = (next..operations.len()).find_map(|at| {
            let operation = &operations[at];
            let can_be_next = !is_done(&done, at) && operation.called <= deadline;
            let after = apply(operation.action, value).filter(|_| can_be_next)?;
            let mut with = done.clone();
            with[at / 64] |= 1 << (at % 64);
            (!tried.contains(&(with.clone(), after))).then_some((at, after, with))
        });
        match candidate {
            Some((at, after, with)) => {
                tried.insert((with.clone(), after));
                if tried.len() > CONFIGURATIONS_MAX {
                    return None;
                }
                path.push((at, value));
                (done, value, next) = (with, after, 0);
            }
            None => {
                let Some((at, before)) = path.pop() else { return Some(false) };
                done[at / 64] &= !(1 << (at % 64));
                (value, next) = (before, at + 1);
            }
        }
    }
}
