//! The operator: compares the replicas of a group now and then, whatever else happens, and of every group at the end.

use iroh_raft_core::{DigestState, GroupCommand, Index, NodeId};
use iroh_raft_netbridge::wire::{ClientBody, ReplyBody};
use rand::Rng;
use rand::rngs::SmallRng;

use crate::clients::{self, Trouble, ask, pick};
use crate::clock::sleep;
use crate::plan::{GroupPlan, within};
use crate::sim::Shared;

/// Questions to a replica that is not there yet.
const ATTEMPTS: u32 = 8;
/// Pause between comparisons.
const EVERY: (u64, u64) = (50_000, 3_000_000);

pub(crate) async fn run(sim: Shared) {
    let mut random = sim.random();
    while !sim.clients.borrow().is_over {
        sleep(within(&mut random, EVERY)).await;
        if sim.clients.borrow().is_over || sim.clients.borrow().is_resting {
            continue;
        }
        let group = pick(&mut random, &sim.plan.groups).clone();
        let Ok(index) = mark(&sim, &mut random, &group).await else { continue };
        for node in &group.hosts {
            // Some are left out, so that others are asked sooner.
            if random.random_bool(0.8) {
                digest(&sim, &mut random, &group, *node, index).await;
            }
        }
    }
}

/// Marks a place at which the replicas are to be compared.
pub(crate) async fn mark(sim: &Shared, random: &mut SmallRng, group: &GroupPlan) -> Result<Index, Trouble> {
    match ask(sim, random, group, ClientBody::Command(GroupCommand::Compare)).await? {
        (_, ReplyBody::CommandDone { index, .. }) => Ok(index),
        (_, other) => clients::wrong(sim, group.id, &other),
    }
}

/// Asks a replica what it came to, for a while; whether it came to something.
pub(crate) async fn digest(
    sim: &Shared,
    random: &mut SmallRng,
    group: &GroupPlan,
    node: NodeId,
    index: Index,
) -> bool {
    for _ in 0..ATTEMPTS {
        let body = ClientBody::StateDigest { index, expected: None };
        match clients::call(sim, random, node, group.id, body).await {
            Ok(ReplyBody::StateDigest { state: DigestState::Known(digest), .. }) => {
                let checked = sim.checks.borrow_mut().hashes.told(group.id, index, node, digest);
                sim.checks.borrow_mut().note(checked);
                sim.mark("state of a replica compared");
                return true;
            }
            Ok(ReplyBody::StateDigest { state: DigestState::Pending, .. }) => {}
            Ok(ReplyBody::StateDigest { state, .. }) => {
                sim.tell(|| format!("node {node} has no digest of group {} at {index}: {state:?}", group.id));
                return false;
            }
            _ => return false,
        }
        sleep(within(random, sim.plan.think)).await;
    }
    false
}
