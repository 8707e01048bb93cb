//! A group that is removed is gone from every node, also from one that was away, and never comes back (this
//! project's promise).

use std::time::Duration;

use iroh_raft_core::{NodeId, RequestError};
use iroh_raft_netbridge::wire::{ClientBody, ReplyBody};
use rand::Rng;

use super::{LOOK_EVERY, QUIET_RING_MIN, patience, standing, wait_until};
use crate::checkers::members::is_quorum;
use crate::checkers::{Checked, ensure};
use crate::clients;
use crate::clock::{elapsed, sleep};
use crate::node;
use crate::plan::GroupPlan;
use crate::sim::Shared;

const GONE: &str = "removed groups are gone";
/// How long the node is away, in election timeouts.
const AWAY_ELECTIONS: f64 = 2.0;

pub(super) async fn check(sim: &Shared, group: &GroupPlan) -> Checked {
    if sim.plan.ring < QUIET_RING_MIN || !sim.plan.liars.is_empty() {
        // What a disk did may come to light at any time, and take those out who would tell.
        return Ok(());
    }
    let mut random = sim.random();
    let members = sim.checks.borrow().commits.members.latest(group.id).clone();
    let can_be_missed = |node: &NodeId| is_quorum(&members, |other| other != *node);
    let others: Vec<NodeId> = group.hosts.iter().copied().filter(can_be_missed).collect();
    if others.is_empty() {
        return Ok(());
    }
    let away = others[random.random_range(0..others.len())];
    sim.tell(|| format!("group {} is removed, node {away} is away", group.id));
    node::kill(sim, away);
    remove(sim, group).await?;
    sleep(sim.plan.election().mul_f64(random.random_range(0.0..AWAY_ELECTIONS))).await;
    node::boot(sim, away);
    // A node that has just started says nothing of its replicas until its first turn.
    sleep(sim.plan.election() * 2).await;
    wait_until(sim, group, "a removed group is gone", |sim| {
        let checks = sim.checks.borrow();
        sim.nodes.borrow().is_up(away)
            && sim.plan.node_ids().all(|node| {
                // Of those that were given up, some may know nobody any more who could tell them.
                checks.status_of(node, group.id).is_none() || checks.recoveries.is_void(node, group.id)
            })
    })
    .await?;
    sim.mark("group removed at the end");
    open_again(sim, group).await
}

async fn remove(sim: &Shared, group: &GroupPlan) -> Checked {
    let mut random = sim.random();
    let deadline = elapsed() + patience(sim);
    let mut is_tried = false;
    loop {
        ensure(elapsed() < deadline, GONE, || format!("no removal; {}", standing(sim, group)))?;
        if sim.is_broken() {
            return Ok(());
        }
        sleep(LOOK_EVERY).await;
        let leader = sim.checks.borrow().leader_of(group.id);
        let Some(leader) = leader else {
            // Nobody leads: perhaps because it is done.
            if is_tried && elapsed() + patience(sim) / 2 > deadline {
                return Ok(());
            }
            continue;
        };
        is_tried = true;
        let answer = clients::call(sim, &mut random, leader, group.id, ClientBody::RemoveGroup).await;
        if let Ok(ReplyBody::Done | ReplyBody::Failed(RequestError::UnknownGroup)) = answer {
            return Ok(());
        }
    }
}

async fn open_again(sim: &Shared, group: &GroupPlan) -> Checked {
    let mut random = sim.random();
    let deadline = elapsed() + Duration::from_secs(60);
    // The others may never have had a replica, and know nothing.
    let members = sim.checks.borrow().commits.members.latest(group.id).clone();
    for node in group.hosts.iter().copied().filter(|node| members.is_member(*node)) {
        let body = || ClientBody::CreateGroup { voters: members.voters.clone() };
        loop {
            if sim.is_broken() {
                return Ok(());
            }
            let answer = clients::call(sim, &mut random, node, group.id, body()).await;
            match answer {
                Ok(ReplyBody::Failed(RequestError::GroupRemoved)) => break,
                Ok(ReplyBody::Done) => {
                    return ensure(false, GONE, || format!("group {} begins again on node {node}", group.id));
                }
                Ok(_) | Err(_) => {
                    ensure(elapsed() < deadline, GONE, || format!("node {node} does not answer"))?;
                }
            }
        }
    }
    Ok(())
}
