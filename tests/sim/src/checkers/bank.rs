//! Money (Jepsen's bank test): accounts open with a fixed sum and transfers only move it, so the total follows from the
//! number of accounts, at every index of every replica; replicas that applied the same commands hold the same accounts;
//! and what a session did with accounts of its own happened exactly once.

use std::collections::BTreeMap;

use iroh_raft_core::{GroupId, NodeId, Offset, SessionId};
use iroh_raft_driver::bank::{BankAnswer, BankResponse};

use super::{Checked, ensure};
use crate::bank::{Look, OPENING};

const TOTAL: &str = "money is neither made nor lost";
const SAME: &str = "banks that applied the same hold the same";
const ONCE: &str = "a session's transfers happen exactly once";

#[derive(Default, Debug)]
pub(crate) struct Banks {
    /// What whoever applied a command first held after it.
    after: BTreeMap<(GroupId, Offset), (NodeId, u64)>,
}

impl Banks {
    /// A replica's bank was looked at. `is_void`: it is of a history that was given up.
    pub(crate) fn stands(&mut self, node: NodeId, look: &Look, is_void: bool) -> Checked {
        let Look { group, after, amount, accounts, hash } = *look;
        ensure(amount == accounts * OPENING, TOTAL, || {
            format!("node {node} group {group} after {after:?}: {amount} in {accounts} accounts")
        })?;
        let Some(offset) = after.filter(|_| !is_void) else { return Ok(()) };
        let (first, held) = *self.after.entry((group, offset)).or_insert((node, hash));
        ensure(held == hash, SAME, || {
            format!("group {group} after {offset}: nodes {first} and {node} hold different accounts")
        })
    }
}

/// A client was told the total.
pub(crate) fn told_total(group: GroupId, node: NodeId, answer: BankAnswer) -> Checked {
    let is_right = matches!(
        answer, BankAnswer::Total { amount, accounts } if amount == accounts * OPENING
    );
    ensure(is_right, TOTAL, || format!("group {group}, asked of node {node}: {answer:?}"))
}

/// A session was answered; nobody else uses its accounts.
pub(crate) fn answered(
    group: GroupId,
    session: SessionId,
    due: BankResponse,
    response: Option<BankResponse>,
) -> Checked {
    ensure(response == Some(due), ONCE, || {
        format!("group {group}, {session}: {response:?} where {due:?} was due")
    })
}

/// A session was told what an account of its own holds, all it sent being answered.
pub(crate) fn told_balance(group: GroupId, account: u64, due: u64, answer: BankAnswer) -> Checked {
    ensure(answer == BankAnswer::Balance(Some(due)), ONCE, || {
        format!("group {group}: account {account} is told to be {answer:?}, {due} was due")
    })
}
