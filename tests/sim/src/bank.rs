//! Groups whose state machine is the bank of the examples, looked at after every command, and their clients: some move
//! money between accounts that all know, some in sessions between accounts of their own.

use std::fmt;
use std::sync::{Arc, Mutex};

use iroh_raft_core::batch::RecordBlock;
use iroh_raft_core::{AnswerOn, Consistency, GroupId, Offset, SessionId};
use iroh_raft_driver::bank::{Bank, BankAnswer, BankCommand, BankQuery, BankResponse};
use iroh_raft_driver::state_machine::{
    ApplyContext, DecodeError, Machine, Message, Restore, RestoreError, SnapshotView,
};
use iroh_raft_netbridge::wire::{ClientBody, ReplyBody};
use rand::Rng;
use rand::rngs::SmallRng;

use crate::checkers::bank as rules;
use crate::checkers::record_hash;
use crate::clients::{self, ask, pick, unique};
use crate::machine;
use crate::plan::GroupPlan;
use crate::sim::Shared;

/// What every account begins with. Transfers are of amounts that no other has, so some are of more.
pub(crate) const OPENING: u64 = 10_000;
/// Accounts of a group that all know.
const ACCOUNTS: usize = 8;
/// Accounts of a session.
const OWN: usize = 2;
const ROW_BYTES: usize = 16;

/// What a replica's bank held.
#[derive(Clone, Copy, Debug)]
pub(crate) struct Look {
    pub(crate) group: GroupId,
    /// The command applied last; `None` after a snapshot, which may be of any.
    pub(crate) after: Option<Offset>,
    pub(crate) amount: u64,
    pub(crate) accounts: u64,
    pub(crate) hash: u64,
}

/// Where the banks of a shard leave what they hold. A state machine must be able to change threads; here it never does.
pub(crate) type Books = Arc<Mutex<Vec<Look>>>;

/// A bank that shows its books.
pub(crate) struct Audited {
    bank: Bank,
    group: GroupId,
    books: Books,
}

impl Audited {
    pub(crate) fn new(group: GroupId, books: Books) -> Audited {
        Audited { bank: Bank::default(), group, books }
    }

    /// All accounts with what they hold, as a snapshot has them.
    fn rows(&self) -> Vec<u8> {
        let mut view = Machine::snapshot(&self.bank).expect("banks make snapshots");
        std::iter::from_fn(|| view.next_piece()).flatten().collect()
    }

    fn look(&self, after: Option<Offset>) {
        let rows = self.rows();
        let (accounts, _) = rows.as_chunks::<ROW_BYTES>();
        let balance =
            |row: &[u8; ROW_BYTES]| u64::from_le_bytes(*row.last_chunk().expect("a row ends with a balance"));
        let look = Look {
            group: self.group,
            after,
            amount: accounts.iter().map(balance).sum(),
            accounts: accounts.len() as u64,
            hash: record_hash(&rows),
        };
        self.books.lock().expect("one thread").push(look);
    }
}

impl fmt::Debug for Audited {
    fn fmt(&self, formatter: &mut fmt::Formatter<'_>) -> fmt::Result {
        formatter.debug_struct("Audited").field("bank", &self.bank).finish_non_exhaustive()
    }
}

impl Machine for Audited {
    fn is_command(&self, command: &[u8]) -> bool {
        self.bank.is_command(command)
    }

    fn apply(&mut self, context: ApplyContext, command: &[u8]) -> Vec<u8> {
        let response = Machine::apply(&mut self.bank, context, command);
        self.look(Some(context.offset));
        response
    }

    fn query(&self, query: &[u8]) -> Result<Vec<u8>, DecodeError> {
        if query == machine::ALL { Ok(self.rows()) } else { Machine::query(&self.bank, query) }
    }

    fn snapshot(&self) -> Option<Box<dyn SnapshotView>> {
        Machine::snapshot(&self.bank)
    }

    fn restore(&mut self, step: Restore<'_>) -> Result<(), RestoreError> {
        Machine::restore(&mut self.bank, step)?;
        if step == Restore::End {
            self.look(None);
        }
        Ok(())
    }
}

/// Moves money, or asks how much there is.
pub(crate) async fn operate(sim: &Shared, random: &mut SmallRng, group: &GroupPlan) {
    if random.random_bool(0.7) { transfer(sim, random, group).await } else { total(sim, random, group).await }
}

/// Moves money between accounts that all know; opens another one while these are few.
pub(crate) async fn transfer(sim: &Shared, random: &mut SmallRng, group: &GroupPlan) {
    let known = sim.clients.borrow().accounts.get(&group.id).cloned().unwrap_or_default();
    let command = if known.len() < ACCOUNTS {
        BankCommand::Open { account: unique(sim), balance: OPENING }
    } else {
        let (from, to) = (*pick(random, &known), *pick(random, &known));
        BankCommand::Transfer { from, to, amount: unique(sim) }
    };
    let record = command.encode();
    let block = RecordBlock::from_records(std::slice::from_ref(&record));
    let body = ClientBody::Append { block, answer: AnswerOn::Apply, run: None };
    let Ok((_, answer)) = ask(sim, random, group, body).await else { return };
    let ReplyBody::Responses { first, responses, .. } = &answer else {
        return drop(clients::wrong::<()>(sim, group.id, &answer));
    };
    clients::acknowledge(sim, group.id, *first, responses.count(), &[record_hash(&record)]);
    match (command, response_of(&answer)) {
        (BankCommand::Open { account, .. }, Some(BankResponse::Done)) => {
            sim.clients.borrow_mut().accounts.entry(group.id).or_default().push(account);
        }
        (BankCommand::Transfer { .. }, Some(BankResponse::Done)) => {
            sim.mark("transfer between accounts answered");
        }
        (BankCommand::Transfer { .. }, Some(BankResponse::TooLittle { .. })) => {
            sim.mark("transfer between accounts refused");
        }
        _ => drop(clients::wrong::<()>(sim, group.id, &answer)),
    }
}

fn response_of(answer: &ReplyBody) -> Option<BankResponse> {
    let ReplyBody::Responses { responses, .. } = answer else { return None };
    BankResponse::decode(responses.records().next()?).ok()
}

/// Asks any replica for the total: it is right at every index, also at an old one.
async fn total(sim: &Shared, random: &mut SmallRng, group: &GroupPlan) {
    let consistency = *pick(
        random,
        &[Consistency::Linearizable, Consistency::Lease, Consistency::Local, Consistency::Local],
    );
    let node = *pick(random, &group.hosts);
    let may_forward = consistency != Consistency::Local;
    let body = ClientBody::Query { consistency, may_forward, query: BankQuery::Total.encode().into() };
    let Ok(ReplyBody::Answer(answer)) = clients::call(sim, random, node, group.id, body).await else {
        return;
    };
    let Ok(answer) = BankAnswer::decode(&answer.bytes) else { return };
    let checked = rules::told_total(group.id, node, answer);
    sim.checks.borrow_mut().note(checked);
    sim.mark("total of a bank read");
}

/// What a session's own accounts hold, all that it sent being applied once: nobody else knows them.
#[derive(Default, Debug)]
pub(crate) struct Purse(Vec<(u64, u64)>);

impl Purse {
    /// The next command, and what the bank has to answer.
    pub(crate) fn next(&mut self, sim: &Shared, random: &mut SmallRng) -> (BankCommand, BankResponse) {
        let number = unique(sim);
        if self.0.len() < OWN {
            self.0.push((number, OPENING));
            return (BankCommand::Open { account: number, balance: OPENING }, BankResponse::Done);
        }
        let (from, to) = (random.random_range(0..OWN), random.random_range(0..OWN));
        let balance = self.0[from].1;
        let amount = number;
        let command = BankCommand::Transfer { from: self.0[from].0, to: self.0[to].0, amount };
        if balance < amount {
            return (command, BankResponse::TooLittle { balance });
        }
        self.0[from].1 -= amount;
        self.0[to].1 += amount;
        (command, BankResponse::Done)
    }

    /// Asks what an account holds, everything sent being answered.
    pub(crate) async fn look(&self, sim: &Shared, random: &mut SmallRng, group: &GroupPlan) {
        if self.0.is_empty() {
            return;
        }
        let (account, due) = *pick(random, &self.0);
        let query = BankQuery::Balance { account }.encode().into();
        let body = ClientBody::Query { consistency: Consistency::Linearizable, may_forward: false, query };
        let Ok((_, ReplyBody::Answer(answer))) = ask(sim, random, group, body).await else { return };
        let Ok(answer) = BankAnswer::decode(&answer.bytes) else { return };
        let checked = rules::told_balance(group.id, account, due, answer);
        sim.checks.borrow_mut().note(checked);
        sim.mark("balance of a session's account read");
    }
}

/// What a session asked of the bank was answered.
pub(crate) fn answered(
    sim: &Shared,
    group: &GroupPlan,
    session: SessionId,
    due: BankResponse,
    answer: &ReplyBody,
) {
    let checked = rules::answered(group.id, session, due, response_of(answer));
    sim.checks.borrow_mut().note(checked);
}
