//! A bank over real nodes whose leaders go: money is neither made nor lost.

use std::collections::BTreeMap;
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, AtomicU64, Ordering};

use iroh_raft::bank::{Bank, BankAnswer, BankCommand, BankQuery, BankResponse};
use iroh_raft::net::client::Client;
use iroh_raft::prelude::*;
use iroh_raft::{EngineConfig, Message, Role};
use iroh_raft_tests::{Plan, until};

const GROUP: GroupId = GroupId(1);
const ACCOUNTS: u64 = 10;
const BALANCE: u64 = 1_000;
const TELLERS: u64 = 4;
/// Transfers that were answered between two faults.
const TRANSFERS: u64 = 60;
const ALL: BankAnswer = BankAnswer::Total { amount: ACCOUNTS * BALANCE, accounts: ACCOUNTS };

/// Snapshots come often, and turns are short.
fn restless(config: &mut EngineConfig) {
    config.core.snapshots.entries = 40;
    config.core.snapshots.lag_entries_max = 0;
    config.apply_budget.records_max = 2;
}

async fn start(plan: &Plan, node: u64) -> RaftCluster<Bank> {
    plan.start_machine(node, restless, Bank::default).await
}

async fn order(client: &Client, command: &BankCommand) -> Option<BankResponse> {
    let response = client.propose(GROUP, command.encode()).await.ok()?;
    Some(BankResponse::decode(&response).unwrap())
}

/// Moves money between accounts at random. An outcome that is unknown may stay so: either way the total is the same.
async fn tell(client: Client, seed: u64, done: Arc<AtomicU64>, is_over: Arc<AtomicBool>) {
    let mut draw = seed;
    let mut next = |below: u64| {
        draw = draw.wrapping_mul(6_364_136_223_846_793_005).wrapping_add(1_442_695_040_888_963_407);
        (draw >> 33) % below
    };
    while !is_over.load(Ordering::Relaxed) {
        let (from, to, amount) = (next(ACCOUNTS), next(ACCOUNTS), next(BALANCE));
        match order(&client, &BankCommand::Transfer { from, to, amount }).await {
            Some(BankResponse::Done | BankResponse::TooLittle { .. }) => {
                done.fetch_add(1, Ordering::Relaxed);
            }
            Some(other) => panic!("{other:?} to a transfer of {amount} from {from} to {to}"),
            None => {}
        }
    }
    client.close();
}

async fn leader(nodes: &BTreeMap<u64, RaftCluster<Bank>>) -> u64 {
    until("a leader", async || {
        for (id, node) in nodes {
            let statuses = node.engine().statuses().await.unwrap();
            if statuses.iter().any(|status| status.group == GROUP && status.role == Role::Leader) {
                return Some(*id);
            }
        }
        None
    })
    .await
}

#[tokio::test]
async fn money_is_neither_made_nor_lost_while_leaders_go() {
    let plan = Plan::new(3);
    let mut nodes = BTreeMap::new();
    for node in 1..=3 {
        nodes.insert(node, start(&plan, node).await);
    }
    let client = plan.client().await;
    for account in 0..ACCOUNTS {
        let open = BankCommand::Open { account, balance: BALANCE };
        let answer = until("an account", async || order(&client, &open).await).await;
        assert!(matches!(answer, BankResponse::Done | BankResponse::Exists), "{answer:?}");
    }
    let (done, is_over) = (Arc::new(AtomicU64::new(0)), Arc::new(AtomicBool::new(false)));
    let mut tellers = Vec::new();
    for seed in 1..=TELLERS {
        tellers.push(tokio::spawn(tell(plan.client().await, seed, done.clone(), is_over.clone())));
    }
    let total = BankQuery::Total.encode();
    for round in 1..=3 {
        let aim = done.load(Ordering::Relaxed) + TRANSFERS;
        until("transfers", async || (done.load(Ordering::Relaxed) >= aim).then_some(())).await;
        let answer = until("the total", async || {
            client.query(GROUP, total.clone(), Consistency::Linearizable).await.ok()
        })
        .await;
        assert_eq!(BankAnswer::decode(&answer.bytes), Ok(ALL), "round {round}");
        let old = leader(&nodes).await;
        nodes.remove(&old).unwrap().shutdown().await.unwrap();
        let aim = done.load(Ordering::Relaxed) + TRANSFERS;
        until("transfers without it", async || (done.load(Ordering::Relaxed) >= aim).then_some(())).await;
        nodes.insert(old, start(&plan, old).await);
    }
    is_over.store(true, Ordering::Relaxed);
    for teller in tellers {
        teller.await.unwrap();
    }
    // All replicas come to hold the same accounts.
    until("the same accounts everywhere", async || {
        let mut books = Vec::new();
        for node in nodes.values() {
            let mut book = vec![node.query_local(GROUP, &BankQuery::Total).await.ok()?.0];
            assert!(
                matches!(book[0], BankAnswer::Total { accounts, .. } if accounts < ACCOUNTS)
                    || book[0] == ALL
            );
            for account in 0..ACCOUNTS {
                book.push(node.query_local(GROUP, &BankQuery::Balance { account }).await.ok()?.0);
            }
            books.push(book);
        }
        books.windows(2).all(|pair| pair[0] == pair[1]).then_some(())
    })
    .await;
    client.close();
    for node in nodes.into_values() {
        node.shutdown().await.unwrap();
    }
}
