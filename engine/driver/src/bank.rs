//! A bank as a state machine: the example in which commands depend on each other. Money is made only by opening
//! accounts and moves only between them, so the total says whether every replica applied each command once.

#![expect(missing_docs, reason = "the archived types that rkyv derives have no documentation")]

use std::collections::BTreeMap;
use std::ops::Bound;
use std::sync::Arc;

use crate::state_machine::{
    ApplyContext, Message, Restore, RestoreError, SNAPSHOT_PIECE_BYTES_MAX, SnapshotView, StateMachine,
};

/// Bytes of an account in a snapshot: its number and its balance.
const ROW_BYTES: usize = 16;

/// A change of the bank.
#[derive(rkyv::Archive, rkyv::Serialize, rkyv::Deserialize, Clone, PartialEq, Eq, Debug)]
pub enum BankCommand {
    /// Opens an account.
    Open {
        /// Its number.
        account: u64,
        /// Its first balance.
        balance: u64,
    },
    /// Moves money.
    Transfer {
        /// From this account,
        from: u64,
        /// to this one.
        to: u64,
        /// So much.
        amount: u64,
    },
}

/// What a change answers. A refusal changes nothing, and is the same on every replica.
#[derive(rkyv::Archive, rkyv::Serialize, rkyv::Deserialize, Clone, Copy, PartialEq, Eq, Debug)]
pub enum BankResponse {
    /// It is done.
    Done,
    /// There is such an account already.
    Exists,
    /// There is no such account.
    NoAccount {
        /// Which.
        account: u64,
    },
    /// The account has less than that.
    TooLittle {
        /// What it has.
        balance: u64,
    },
    /// The bank cannot hold so much: 2^64 - 1 in all.
    TooMuch,
}

/// A question to the bank.
#[derive(rkyv::Archive, rkyv::Serialize, rkyv::Deserialize, Clone, PartialEq, Eq, Debug)]
pub enum BankQuery {
    /// What an account has.
    Balance {
        /// Which.
        account: u64,
    },
    /// What all accounts have together.
    Total,
}

/// What a question answers.
#[derive(rkyv::Archive, rkyv::Serialize, rkyv::Deserialize, Clone, Copy, PartialEq, Eq, Debug)]
pub enum BankAnswer {
    /// The balance, if there is such an account.
    Balance(Option<u64>),
    /// The total.
    Total {
        /// Of all balances.
        amount: u64,
        /// Number of accounts.
        accounts: u64,
    },
}

/// Accounts in memory, shared with a snapshot while it is read: the first change meanwhile copies them all.
#[derive(Clone, Default, Debug)]
pub struct Bank {
    accounts: Arc<BTreeMap<u64, u64>>,
    total: u64,
    /// The beginning of an account whose rest has still to come, while a snapshot is taken over.
    partial: Vec<u8>,
}

impl Bank {
    fn open(&mut self, account: u64, balance: u64) -> BankResponse {
        if self.accounts.contains_key(&account) {
            return BankResponse::Exists;
        }
        let Some(total) = self.total.checked_add(balance) else { return BankResponse::TooMuch };
        self.total = total;
        Arc::make_mut(&mut self.accounts).insert(account, balance);
        BankResponse::Done
    }

    fn transfer(&mut self, from: u64, to: u64, amount: u64) -> BankResponse {
        let none = |account| BankResponse::NoAccount { account };
        let Some(&balance) = self.accounts.get(&from) else { return none(from) };
        if !self.accounts.contains_key(&to) {
            return none(to);
        }
        if balance < amount {
            return BankResponse::TooLittle { balance };
        }
        let accounts = Arc::make_mut(&mut self.accounts);
        // One after the other: they may be the same. The total fits, so a balance does.
        *accounts.entry(from).or_default() -= amount;
        *accounts.entry(to).or_default() += amount;
        BankResponse::Done
    }
}

impl StateMachine for Bank {
    type Command = BankCommand;
    type Response = BankResponse;
    type Query = BankQuery;
    type Answer = BankAnswer;

    fn apply(&mut self, _context: ApplyContext, command: <BankCommand as Message>::View<'_>) -> BankResponse {
        match command {
            ArchivedBankCommand::Open { account, balance } => {
                self.open(account.to_native(), balance.to_native())
            }
            ArchivedBankCommand::Transfer { from, to, amount } => {
                self.transfer(from.to_native(), to.to_native(), amount.to_native())
            }
        }
    }

    fn query(&self, query: <BankQuery as Message>::View<'_>) -> BankAnswer {
        match query {
            ArchivedBankQuery::Balance { account } => {
                BankAnswer::Balance(self.accounts.get(&account.to_native()).copied())
            }
            // Added up anew: a sum that is carried along would say nothing of what the accounts hold.
            ArchivedBankQuery::Total => BankAnswer::Total {
                amount: self.accounts.values().sum(),
                accounts: self.accounts.len() as u64,
            },
        }
    }

    fn snapshot(&self) -> Option<Box<dyn SnapshotView>> {
        Some(Box::new(View { accounts: self.accounts.clone(), after: Bound::Unbounded }))
    }

    fn restore(&mut self, step: Restore<'_>) -> Result<(), RestoreError> {
        match step {
            Restore::Begin => *self = Bank::default(),
            Restore::Bytes(bytes) => {
                self.partial.extend_from_slice(bytes);
                let partial = std::mem::take(&mut self.partial);
                let (rows, rest) = partial.as_chunks::<ROW_BYTES>();
                for row in rows {
                    let [account, balance] = [0, 8]
                        .map(|at| u64::from_le_bytes(row[at..at + 8].try_into().expect("8 bytes of a row")));
                    if self.open(account, balance) != BankResponse::Done {
                        return Err(RestoreError {
                            problem: "an account is there twice, or they hold too much",
                        });
                    }
                }
                self.partial = rest.to_vec();
            }
            Restore::End if !self.partial.is_empty() => {
                return Err(RestoreError { problem: "it ends within an account" });
            }
            Restore::End => {}
        }
        Ok(())
    }
}

/// The accounts as they were.
struct View {
    accounts: Arc<BTreeMap<u64, u64>>,
    after: Bound<u64>,
}

impl SnapshotView for View {
    fn next_piece(&mut self) -> Option<Vec<u8>> {
        let mut piece = Vec::new();
        for (account, balance) in
            self.accounts.range((self.after, Bound::Unbounded)).take(SNAPSHOT_PIECE_BYTES_MAX / ROW_BYTES)
        {
            piece.extend_from_slice(&account.to_le_bytes());
            piece.extend_from_slice(&balance.to_le_bytes());
            self.after = Bound::Excluded(*account);
        }
        (!piece.is_empty()).then_some(piece)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn total(bank: &Bank) -> u64 {
        bank.accounts.values().sum()
    }

    #[test]
    fn money_moves_and_stays_the_same() {
        let mut bank = Bank::default();
        assert_eq!((bank.open(1, 100), bank.open(2, 50)), (BankResponse::Done, BankResponse::Done));
        assert_eq!(bank.open(1, 7), BankResponse::Exists);
        assert_eq!(bank.open(3, u64::MAX), BankResponse::TooMuch);
        assert_eq!(bank.transfer(1, 2, 60), BankResponse::Done);
        assert_eq!(bank.transfer(1, 2, 60), BankResponse::TooLittle { balance: 40 });
        assert_eq!(bank.transfer(1, 3, 1), BankResponse::NoAccount { account: 3 });
        assert_eq!(bank.transfer(3, 1, 1), BankResponse::NoAccount { account: 3 });
        assert_eq!(bank.transfer(2, 2, 110), BankResponse::Done);
        assert_eq!((bank.accounts[&1], bank.accounts[&2], total(&bank)), (40, 110, 150));
    }

    #[test]
    fn equal_banks_have_equal_snapshots_however_they_came_about() {
        let body = |bank: &Bank| {
            let mut view = bank.snapshot().unwrap();
            std::iter::from_fn(|| view.next_piece()).flatten().collect::<Vec<u8>>()
        };
        let (mut one, mut other) = (Bank::default(), Bank::default());
        (0..100).for_each(|account| assert_eq!(one.open(account, 10), BankResponse::Done));
        (0..100).rev().for_each(|account| assert_eq!(other.open(account, 10), BankResponse::Done));
        assert_eq!(other.transfer(3, 4, 10), BankResponse::Done);
        assert_ne!(body(&one), body(&other));
        assert_eq!(other.transfer(4, 3, 10), BankResponse::Done);
        assert_eq!(body(&one), body(&other));
    }

    #[test]
    fn a_snapshot_is_of_the_moment_and_comes_back_in_any_pieces() {
        let mut bank = Bank::default();
        (0..40_000).for_each(|account| assert_eq!(bank.open(account, account), BankResponse::Done));
        let before = bank.clone();
        let mut view = bank.snapshot().unwrap();
        assert_eq!(bank.transfer(9, 1, 5), BankResponse::Done);
        let mut body = Vec::new();
        while let Some(piece) = view.next_piece() {
            assert!((1..=SNAPSHOT_PIECE_BYTES_MAX).contains(&piece.len()));
            body.extend(piece);
        }
        for cut in [1, 7, 1000, body.len()] {
            let mut other = Bank::default();
            other.restore(Restore::Begin).unwrap();
            body.chunks(cut).for_each(|bytes| other.restore(Restore::Bytes(bytes)).unwrap());
            other.restore(Restore::End).unwrap();
            assert_eq!((&other.accounts, other.total), (&before.accounts, total(&before)));
        }
        let mut other = Bank::default();
        other.restore(Restore::Bytes(&body[..100])).unwrap();
        assert!(other.restore(Restore::End).is_err());
        let mut other = Bank::default();
        other.restore(Restore::Bytes(&body[..ROW_BYTES])).unwrap();
        assert!(other.restore(Restore::Bytes(&body[..ROW_BYTES])).is_err(), "an account twice");
    }
}
