//! Idle groups go quiet, all of them; and a quiet group whose leader dies has another one, without anybody asking.
//! (The hazards of CockroachDB's quiescence and TiKV's hibernation: replicas that sleep for ever.)

use std::time::Duration;

use super::{LOOK_EVERY, QUIET_RING_MIN, healthy, write};
use crate::checkers::{Checked, ensure};
use crate::clock::{elapsed, sleep};
use crate::node;
use crate::plan::GroupPlan;
use crate::sim::Shared;

const REST: &str = "idle groups go quiet";
const WAKE: &str = "a quiet group wakes when its leader dies";
const WRITE: &str = "a quiet group wakes for a write";
/// Times that a group may begin anew to be idle: late frames, leaders that move.
const ATTEMPTS: u32 = 10;
/// Leases and elections, with votes split and frames late.
const ELECTIONS: u32 = 20;
/// What clients need to find the leader.
const SEARCH: Duration = Duration::from_secs(5);

pub(super) async fn check(sim: &Shared) -> Checked {
    let Some(after) = sim.plan.core.quiet_after else { return Ok(()) };
    if sim.plan.ring < QUIET_RING_MIN || !sim.plan.liars.is_empty() {
        // Beats are lost there even when nothing fails; what a disk did may come to light at any time.
        return Ok(());
    }
    let has_bound =
        |group: &GroupPlan| group.retention.bytes_max.is_some() || group.retention.age_max.is_some();
    if sim.plan.groups.iter().any(has_bound) {
        // Leaders look for records to let go of more often than they would go quiet.
        return Ok(());
    }
    // What is left of stalls from before ends, too.
    let rest = (after + sim.plan.election()) * ATTEMPTS + super::patience(sim);
    let groups = &sim.plan.groups;
    until(sim, rest, REST, groups, |group| is_quiet(sim, group)).await?;
    sim.mark("all groups quiet");
    // Every node in turn would be better and takes long: the first group's leader stands for all.
    let Some(old) = sim.checks.borrow().leader_of(groups[0].id) else { return Ok(()) };
    sim.tell(|| format!("node {old} dies while all is quiet"));
    let led: Vec<GroupPlan> = groups
        .iter()
        .filter(|group| sim.checks.borrow().leader_of(group.id) == Some(old))
        .filter(|group| can_lose(sim, group))
        .cloned()
        .collect();
    node::kill(sim, old);
    let bound = sim.plan.election() * ELECTIONS + SEARCH;
    let is_led =
        |group: &GroupPlan| sim.checks.borrow().leader_of(group.id).is_some_and(|leader| leader != old);
    until(sim, bound, WAKE, &led, is_led).await?;
    node::boot(sim, old);
    until(sim, rest, REST, groups, |group| is_quiet(sim, group)).await?;
    let mut random = sim.random();
    for group in groups {
        let deadline = elapsed() + super::patience(sim);
        let before = sim.checks.borrow().acknowledged.count;
        while sim.checks.borrow().acknowledged.count == before && !sim.is_broken() {
            ensure(elapsed() < deadline, WRITE, || format!("group {}", group.id))?;
            write(sim, &mut random, group).await;
        }
    }
    Ok(())
}

/// Whether the others of a group are enough without its leader.
fn can_lose(sim: &Shared, group: &GroupPlan) -> bool {
    let voters = sim.checks.borrow().commits.members.latest(group.id).voters.clone();
    let healthy = healthy(sim, group);
    voters.len() >= 3 && voters.iter().all(|voter| healthy.contains(voter))
}

fn is_quiet(sim: &Shared, group: &GroupPlan) -> bool {
    let checks = sim.checks.borrow();
    let nodes = healthy(sim, group);
    nodes.iter().all(|node| checks.status_of(*node, group.id).is_some_and(|status| status.is_quiet))
}

async fn until(
    sim: &Shared,
    bound: Duration,
    rule: &'static str,
    groups: &[GroupPlan],
    holds: impl Fn(&GroupPlan) -> bool,
) -> Checked {
    let deadline = elapsed() + bound;
    while let Some(group) = groups.iter().find(|group| !holds(group)) {
        if sim.is_broken() {
            return Ok(());
        }
        ensure(elapsed() < deadline, rule, || {
            format!("group {} not within {bound:?}; {}", group.id, super::standing(sim, group))
        })?;
        sleep(LOOK_EVERY).await;
    }
    Ok(())
}
