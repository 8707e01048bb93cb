//! Leaders that spread by themselves come to rest: no node leads more than its fair share and the band, and then
//! nobody moves any more. (Kafka's and others' rebalancing that never ends.)

use std::collections::BTreeMap;
use std::time::Duration;

use iroh_raft_core::{GroupId, NodeId, ShardId, Term};

use super::{LOOK_EVERY, QUIET_RING_MIN, healthy};
use crate::checkers::{Checked, ensure};
use crate::clock::{elapsed, sleep};
use crate::plan::GroupPlan;
use crate::sim::Shared;

const REST: &str = "leaders come to rest";
/// Longest rounds without a move after which nothing moves any more: more than those for which a node is left out
/// that did not take over.
const QUIET_ROUNDS: u32 = 7;
/// Rounds beyond one for each group: nodes that had just failed are left out of some.
const SPARE_ROUNDS: u32 = 20;

pub(super) async fn check(sim: &Shared) -> Checked {
    let Some(spread) = sim.plan.core.spread else { return Ok(()) };
    if sim.plan.ring < QUIET_RING_MIN {
        // Heartbeats are lost there even when nothing fails.
        return Ok(());
    }
    let round = spread.interval * 2;
    let groups = u32::try_from(sim.plan.groups.len()).expect("few groups");
    let latest = elapsed() + round * (groups + SPARE_ROUNDS);
    let is_whole = |group: &GroupPlan| {
        let healthy = healthy(sim, group);
        voters(sim, group).iter().all(|voter| healthy.contains(voter))
    };
    let are_all_there = sim.plan.groups.iter().all(is_whole);
    let mut leaders = leaders(sim);
    let mut since = elapsed();
    loop {
        let over = if are_all_there { over_share(sim, spread.band as usize) } else { Vec::new() };
        if over.is_empty() && elapsed() >= since + round * QUIET_ROUNDS {
            sim.mark("leaders came to rest");
            return Ok(());
        }
        ensure(elapsed() < latest, REST, || {
            let moved: Duration = elapsed() - since;
            format!("last move {moved:?} ago with {spread:?}; over their share: {over:?}; {leaders:?}")
        })?;
        if sim.is_broken() {
            return Ok(());
        }
        sleep(LOOK_EVERY).await;
        let now = self::leaders(sim);
        if now != leaders {
            (leaders, since) = (now, elapsed());
        }
    }
}

fn leaders(sim: &Shared) -> BTreeMap<GroupId, Option<(Term, NodeId)>> {
    let checks = sim.checks.borrow();
    let leader = |group: &GroupPlan| {
        let leader = checks.leader_of(group.id)?;
        Some((checks.status_of(leader, group.id)?.term, leader))
    };
    sim.plan.groups.iter().map(|group| (group.id, leader(group))).collect()
}

fn voters(sim: &Shared, group: &GroupPlan) -> Vec<NodeId> {
    let mut voters = sim.checks.borrow().commits.members.latest(group.id).voters.clone();
    voters.sort_unstable();
    voters
}

/// Nodes that lead more groups of a shard than are at home there, by more than the band.
fn over_share(sim: &Shared, band: usize) -> Vec<(NodeId, usize, usize)> {
    let (checks, nodes) = (sim.checks.borrow(), sim.nodes.borrow());
    let mut counts: BTreeMap<(NodeId, ShardId), (usize, usize)> = BTreeMap::new();
    for group in &sim.plan.groups {
        let home = home(sim, group);
        counts.entry((home, nodes.shard_of(home, group.id))).or_default().1 += 1;
        if let Some(leader) = checks.leader_of(group.id) {
            counts.entry((leader, nodes.shard_of(leader, group.id))).or_default().0 += 1;
        }
    }
    let over = counts.into_iter().filter(|(_, (led, share))| *led > share + band);
    over.map(|((node, _), (led, share))| (node, led, share)).collect()
}

/// Of the voters of the highest priority the one on which the group's number falls (Fibonacci hashing).
fn home(sim: &Shared, group: &GroupPlan) -> NodeId {
    let priority = |node: &NodeId| sim.plan.core.priority_of(*node);
    let voters = voters(sim, group);
    let highest = voters.iter().map(priority).max().expect("a group has voters");
    let wanted: Vec<NodeId> = voters.into_iter().filter(|node| priority(node) == highest).collect();
    let point = u128::from(group.id.0.wrapping_mul(0x9e37_79b9_7f4a_7c15));
    wanted[usize::try_from((point * wanted.len() as u128) >> 64).expect("a place among the voters")]
}
